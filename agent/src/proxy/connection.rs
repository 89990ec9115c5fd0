//! One client, from accept to end.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant};

use futures_util::future::{AbortHandle, AbortRegistration, Abortable, Aborted};
use proto::access::{Access, Cause, Phase};
use proto::time::UnixMs;
use tokio::net::TcpStream;

use super::copy::{Broken, CopyBoth, LINGER};
use super::dial::{Dialled, Leg, dial};
use super::flight::{Answered, First, answer, first};
use super::pool::Open;
use super::{Shared, socket};
use crate::lifecycle::wall;

/// Finds a backend for `client` and copies until both directions have ended. Whatever else ends it resets
/// both legs, so that neither peer waits for the other.
pub(super) async fn serve(mut client: TcpStream, open: Open, shared: Arc<Shared>) {
    let mut story = open.pool.access_log.load(Relaxed).then(|| Story::begin(&client)).flatten();
    let over = &shared.life.over;
    // In a box, since a connection is found in milliseconds and held for hours.
    let found = Box::pin(over.run_until_cancelled(find(&client, &open, &shared, &mut story))).await;
    let mut leg = match found.unwrap_or(Err(Cause::Killed)) {
        Ok(leg) => leg,
        Err(cause) => {
            socket::reset_on_drop(&client);
            return tell(story, &open, None, cause, 0, &shared);
        }
    };
    let unsent;
    let registration = hold(&mut leg, &shared);
    match Abortable::new(first(&mut client, &mut leg.stream), registration).await {
        Ok(Ok(flight)) if flight.is_hello => {
            let answered = hear(&client, leg, flight, &open, &shared);
            match Box::pin(over.run_until_cancelled(answered)).await.unwrap_or(Err(Cause::Killed)) {
                Ok(answered) => {
                    (leg, unsent) = (answered.leg, answered.unsent);
                    note(&mut story, answered.replays);
                }
                Err(cause) => {
                    socket::reset_on_drop(&client);
                    return tell(story, &open, None, cause, 0, &shared);
                }
            }
        }
        Ok(Ok(flight)) => unsent = flight.unsent(),
        broken => {
            reset(&client, &leg);
            return tell(story, &open, Some(leg), cause(&broken, &shared), 0, &shared);
        }
    }
    leg.ticket.given();
    let registration = hold(&mut leg, &shared);
    let mut copy = CopyBoth::new(&mut client, &mut leg.stream, LINGER).begin_with(unsent);
    let ended = Abortable::new(&mut copy, registration).await;
    let bytes = copy.received();
    let sent = copy.sent();
    leg.ticket.held.counts.bytes_in.fetch_add(sent, Relaxed);
    leg.ticket.held.counts.bytes_out.fetch_add(bytes, Relaxed);
    let cause = cause(&ended, &shared);
    if cause != Cause::Normal {
        reset(&client, &leg);
    }
    tell(story, &open, Some(leg), cause, bytes, &shared);
}

fn reset(client: &TcpStream, leg: &Leg) {
    socket::reset_on_drop(client);
    socket::reset_on_drop(&leg.stream);
}

/// Dials, and says who the client is where that is wanted.
async fn find(
    client: &TcpStream,
    open: &Open,
    shared: &Arc<Shared>,
    story: &mut Option<Box<Story>>,
) -> Result<Leg, Cause> {
    let Dialled { leg, tries, moved } = dial(&open.pool, shared).await;
    if let Some(story) = story {
        story.retries = tries.saturating_sub(1);
        story.moved = moved;
        story.connect = leg.is_ok().then(|| story.began.elapsed());
    }
    let leg = leg?;
    if socket::write_at_once(&leg.stream, &header(client, open)) { Ok(leg) } else { Err(Cause::Server) }
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
) -> Result<Answered, Cause> {
    answer(client, leg, flight, &header(client, open), &open.pool, shared).await
}

/// Makes `leg` end when its backend's connections are to end. An abort handle and no token: polling a token
/// takes a lock that all connections would share.
fn hold(leg: &mut Leg, shared: &Shared) -> AbortRegistration {
    let (handle, registration) = AbortHandle::new_pair();
    leg.ticket.hold(handle.clone());
    if shared.life.over.is_cancelled() {
        handle.abort();
    }
    registration
}

/// What ended a connection.
fn cause<T>(ended: &Result<Result<T, Broken>, Aborted>, shared: &Shared) -> Cause {
    match ended {
        Ok(Ok(_)) => Cause::Normal,
        Ok(Err(broken)) => {
            tracing::trace!("a connection broke: {}", broken.error);
            broken.cause
        }
        Err(Aborted) if shared.life.over.is_cancelled() => Cause::Killed,
        Err(Aborted) => Cause::Down,
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
fn tell(story: Option<Box<Story>>, open: &Open, leg: Option<Leg>, cause: Cause, bytes: u64, shared: &Shared) {
    let Some(story) = story else { return };
    let (front, back) = open.pool.counts();
    let server = leg.as_ref().map(|leg| &*leg.ticket.held);
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
