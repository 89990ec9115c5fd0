//! One client, from accept to end.

use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

use proto::access::{Access, Phase, Termination};
use proto::time::UnixMs;
use tokio::net::TcpStream;

use super::copy::{Broken, CopyBoth, LINGER};
use super::dial::{Dialled, Leg, dial};
use super::flight::{Answered, First, answer, first};
use super::held::{Leash, Ticket};
use super::pool::Open;
use super::{Shared, socket};
use crate::lifecycle::wall;

/// Finds a backend for `client` and copies until both directions have ended. Whatever else ends it resets
/// both legs, so that neither peer waits for the other.
pub(super) fn serve(client: TcpStream, open: Open, shared: Arc<Shared>) -> Serve {
    Serve::Finding(Box::pin(prepare(client, open, shared)))
}

/// One client's whole life. By hand, since a connection is found in milliseconds and held for hours: what
/// finding takes is in a box, and gone when it has ended.
#[allow(clippy::large_enum_variant)] // nearly all are in the large one
pub(super) enum Serve {
    Finding(Pin<Box<dyn Future<Output = Option<Carried>> + Send>>),
    Carrying(Carried),
}

impl Future for Serve {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        loop {
            match &mut *self {
                Serve::Finding(finding) => match ready!(finding.as_mut().poll(cx)) {
                    Some(carried) => *self = Serve::Carrying(carried),
                    None => return Poll::Ready(()),
                },
                Serve::Carrying(carried) => return carried.poll(cx),
            }
        }
    }
}

/// A client and its backend, and what is counted while they are connected.
pub(super) struct Carried {
    copy: CopyBoth,
    leash: Arc<Leash>,
    ticket: Ticket,
    open: Open,
    shared: Arc<Shared>,
    story: Option<Box<Story>>,
}

impl Carried {
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let ended = match self.leash.poll_pulled(cx) {
            true => None,
            false => Some(ready!(Pin::new(&mut self.copy).poll(cx))),
        };
        let cause = cause(&ended, &self.shared);
        if cause != Termination::Normal {
            self.copy.reset();
        }
        let (bytes, sent) = (self.copy.received(), self.copy.sent());
        let counts = &self.ticket.held.counts;
        counts.bytes_in.fetch_add(sent, Relaxed);
        counts.bytes_out.fetch_add(bytes, Relaxed);
        tell(self.story.take(), &self.open, Some(&self.ticket), cause, bytes, &self.shared);
        Poll::Ready(())
    }
}

/// Finds a backend, and sees that it answers a first flight that can be sent again; none when the client
/// was told that there is none.
async fn prepare(mut client: TcpStream, open: Open, shared: Arc<Shared>) -> Option<Carried> {
    let mut story = open.pool.access_log.load(Relaxed).then(|| Story::begin(&client)).flatten();
    let over = &shared.life.over;
    let found = over.run_until_cancelled(find(&client, &open, &shared, &mut story)).await;
    let mut leg = match found.unwrap_or(Err(Termination::Killed)) {
        Ok(leg) => leg,
        Err(cause) => {
            socket::reset_on_drop(&client);
            tell(story, &open, None, cause, 0, &shared);
            return None;
        }
    };
    let leash = leg.ticket.leash();
    if over.is_cancelled() {
        leash.pull(); // nobody else does any more
    }
    let unsent = match leash.run(first(&mut client, &mut leg.stream)).await {
        Some(Ok(flight)) if flight.is_hello => {
            let answered = Box::pin(over.run_until_cancelled(hear(&client, leg, flight, &open, &shared)));
            match answered.await.unwrap_or(Err(Termination::Killed)) {
                Ok(answered) => {
                    leg = answered.leg;
                    note(&mut story, answered.replays);
                    answered.unsent
                }
                Err(cause) => {
                    socket::reset_on_drop(&client);
                    tell(story, &open, None, cause, 0, &shared);
                    return None;
                }
            }
        }
        Some(Ok(flight)) => flight.unsent(),
        broken => {
            socket::reset_on_drop(&client);
            socket::reset_on_drop(&leg.stream);
            let cause = cause(&broken, &shared);
            tell(story, &open, Some(&leg.ticket), cause, 0, &shared);
            return None;
        }
    };
    let Leg { stream, mut ticket } = leg;
    ticket.given();
    let leash = ticket.leash();
    if over.is_cancelled() {
        leash.pull();
    }
    let copy = CopyBoth::new(client, stream, LINGER).begin_with(unsent);
    Some(Carried { copy, leash, ticket, open, shared, story })
}

/// Dials, and says who the client is where that is wanted.
async fn find(
    client: &TcpStream,
    open: &Open,
    shared: &Arc<Shared>,
    story: &mut Option<Box<Story>>,
) -> Result<Leg, Termination> {
    let Dialled { leg, tries, moved } = dial(&open.pool, shared).await;
    if let Some(story) = story {
        story.retries = tries.saturating_sub(1);
        story.moved = moved;
        story.connect = leg.is_ok().then(|| story.began.elapsed());
    }
    let leg = leg?;
    if socket::write_at_once(&leg.stream, &header(client, open)) { Ok(leg) } else { Err(Termination::Server) }
}

/// What tells a backend who the client is; empty when it is not to be told.
fn header(client: &TcpStream, open: &Open) -> Vec<u8> {
    if !open.pool.send_proxy.load(Relaxed) {
        return Vec::new();
    }
    match (client.peer_addr(), client.local_addr()) {
        (Ok(from), Ok(to)) => proto::proxy_v2::header(from, to),
        // It has gone already, and nothing of it will reach the backend.
        _ => Vec::new(),
    }
}

async fn hear(
    client: &TcpStream,
    leg: Leg,
    flight: First,
    open: &Open,
    shared: &Arc<Shared>,
) -> Result<Answered, Termination> {
    answer(client, leg, flight, &header(client, open), &open.pool, shared).await
}

/// What ended a connection; none is its leash.
fn cause<T>(ended: &Option<Result<T, Broken>>, shared: &Shared) -> Termination {
    match ended {
        Some(Ok(_)) => Termination::Normal,
        Some(Err(broken)) => {
            tracing::trace!("a connection broke: {}", broken.error);
            broken.cause
        }
        None if shared.life.over.is_cancelled() => Termination::Killed,
        None => Termination::Down,
    }
}

/// What the access log wants to know and nobody else remembers.
struct Story {
    client: SocketAddr,
    came: UnixMs,
    began: Instant,
    connect: Option<Duration>,
    retries: u32,
    moved: bool,
}

impl Story {
    fn begin(client: &TcpStream) -> Option<Box<Story>> {
        let client = client.peer_addr().ok()?;
        let (came, began) = (wall(), Instant::now());
        Some(Box::new(Story { client, came, began, connect: None, retries: 0, moved: false }))
    }
}

/// The first flight was sent again.
fn note(story: &mut Option<Box<Story>>, replays: u32) {
    if let Some(story) = story {
        story.retries += replays;
        story.moved |= replays > 0;
    }
}

/// Writes the line of the access log.
fn tell(
    story: Option<Box<Story>>,
    open: &Open,
    ticket: Option<&Ticket>,
    cause: Termination,
    bytes: u64,
    shared: &Shared,
) {
    let Some(story) = story else { return };
    let (front, back) = open.pool.counts();
    let server = ticket.map(|ticket| &*ticket.held);
    let at_server = server.map_or(0, |held| held.connections.load(Relaxed));
    let own = u64::from(server.is_some());
    let held =
        [shared.clients.load(Relaxed).saturating_sub(1), front.saturating_sub(1), back.saturating_sub(own)];
    let access = Access {
        client: story.client,
        came: story.came,
        service: open.pool.service.as_str(),
        server: server.map(|held| held.name.as_str()),
        connect: story.connect,
        total: story.began.elapsed(),
        bytes,
        cause,
        phase: if story.connect.is_some() { Phase::Data } else { Phase::Connect },
        held: [held[0], held[1], held[2], at_server.saturating_sub(own)],
        retries: story.retries,
        redispatched: story.moved,
    };
    tracing::info!(target: "access", "{access}");
}
