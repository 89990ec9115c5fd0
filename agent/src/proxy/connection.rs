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

use super::client_hello::{AnsweredUpstream, ClientHelloBuffer, answer, first};
use super::copy::{BrokenConnection, CopyBoth, LINGER};
use super::dial::{DialResult, Upstream, dial};
use super::held::{CancelHandle, ConnGuard};
use super::pool::OpenClient;
use super::{ProxyShared, socket};
use crate::lifecycle::wall;

/// Finds a backend for `client` and copies until both directions have ended. Any other end resets both sides,
/// so that neither peer waits for the other.
pub(super) fn serve(client: TcpStream, open: OpenClient, shared: Arc<ProxyShared>) -> ServeClient {
    ServeClient::Finding(Box::pin(prepare(client, open, shared)))
}

/// The life of one client. Hand-written, since a connection is set up in milliseconds and held for hours: the
/// setup state is boxed and freed when setup has ended.
#[allow(clippy::large_enum_variant)] // nearly all connections are in the large variant
pub(super) enum ServeClient {
    Finding(Pin<Box<dyn Future<Output = Option<Tunnel>> + Send>>),
    Carrying(Tunnel),
}

impl Future for ServeClient {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        loop {
            match &mut *self {
                ServeClient::Finding(finding) => match ready!(finding.as_mut().poll(cx)) {
                    Some(carried) => *self = ServeClient::Carrying(carried),
                    None => return Poll::Ready(()),
                },
                ServeClient::Carrying(carried) => return carried.poll(cx),
            }
        }
    }
}

/// A client and its backend, and what is counted while they are connected.
pub(super) struct Tunnel {
    copy: CopyBoth,
    cancel: Arc<CancelHandle>,
    conn_guard: ConnGuard,
    open: OpenClient,
    shared: Arc<ProxyShared>,
    access_record: Option<Box<AccessRecord>>,
}

impl Tunnel {
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let ended = match self.cancel.poll_pulled(cx) {
            true => None,
            false => Some(ready!(Pin::new(&mut self.copy).poll(cx))),
        };
        let cause = cause(&ended, &self.shared);
        if cause != Termination::Normal {
            self.copy.reset();
        }
        let (bytes, sent) = (self.copy.received(), self.copy.sent());
        let counts = &self.conn_guard.held.counts;
        counts.bytes_in.fetch_add(sent, Relaxed);
        counts.bytes_out.fetch_add(bytes, Relaxed);
        write_access_log(
            self.access_record.take(),
            &self.open,
            Some(&self.conn_guard),
            cause,
            bytes,
            &self.shared,
        );
        Poll::Ready(())
    }
}

/// Finds a backend, and waits for the answer to a ClientHello that can be sent again; `None` when the client
/// was reset.
async fn prepare(mut client: TcpStream, open: OpenClient, shared: Arc<ProxyShared>) -> Option<Tunnel> {
    let mut access_record =
        open.pool.access_log.load(Relaxed).then(|| AccessRecord::begin(&client)).flatten();
    let over = &shared.life.shutdown;
    let found = over.run_until_cancelled(find(&client, &open, &shared, &mut access_record)).await;
    let mut upstream = match found.unwrap_or(Err(Termination::Killed)) {
        Ok(upstream) => upstream,
        Err(cause) => {
            socket::reset_on_drop(&client);
            write_access_log(access_record, &open, None, cause, 0, &shared);
            return None;
        }
    };
    let cancel = upstream.conn_guard.cancel_handle();
    if over.is_cancelled() {
        cancel.pull(); // nobody else does any more
    }
    let unsent = match cancel.run(first(&mut client, &mut upstream.stream)).await {
        Some(Ok(flight)) if flight.is_hello => {
            let answered = Box::pin(
                over.run_until_cancelled(wait_first_flight(&client, upstream, flight, &open, &shared)),
            );
            match answered.await.unwrap_or(Err(Termination::Killed)) {
                Ok(answered) => {
                    upstream = answered.upstream;
                    note_replay(&mut access_record, answered.replays);
                    answered.unsent
                }
                Err(cause) => {
                    socket::reset_on_drop(&client);
                    write_access_log(access_record, &open, None, cause, 0, &shared);
                    return None;
                }
            }
        }
        Some(Ok(flight)) => flight.unsent(),
        broken => {
            socket::reset_on_drop(&client);
            socket::reset_on_drop(&upstream.stream);
            let cause = cause(&broken, &shared);
            write_access_log(access_record, &open, Some(&upstream.conn_guard), cause, 0, &shared);
            return None;
        }
    };
    let Upstream { stream, mut conn_guard } = upstream;
    conn_guard.client_assigned();
    let cancel = conn_guard.cancel_handle();
    if over.is_cancelled() {
        cancel.pull();
    }
    let copy = CopyBoth::new(client, stream, LINGER).begin_with(unsent);
    Some(Tunnel { copy, cancel, conn_guard, open, shared, access_record })
}

/// Dials, and sends the PROXY header if configured.
async fn find(
    client: &TcpStream,
    open: &OpenClient,
    shared: &Arc<ProxyShared>,
    access_record: &mut Option<Box<AccessRecord>>,
) -> Result<Upstream, Termination> {
    let DialResult { upstream, tries, moved } = dial(&open.pool, shared).await;
    if let Some(access_record) = access_record {
        access_record.retries = tries.saturating_sub(1);
        access_record.moved = moved;
        access_record.connect = upstream.is_ok().then(|| access_record.began.elapsed());
    }
    let upstream = upstream?;
    if socket::write_at_once(&upstream.stream, &header(client, open)) {
        Ok(upstream)
    } else {
        Err(Termination::Server)
    }
}

/// The PROXY header; empty when none is configured.
fn header(client: &TcpStream, open: &OpenClient) -> Vec<u8> {
    if !open.pool.send_proxy.load(Relaxed) {
        return Vec::new();
    }
    match (client.peer_addr(), client.local_addr()) {
        (Ok(from), Ok(to)) => proto::proxy_v2::header(from, to),
        // The client has gone already, and nothing of it will reach the backend.
        _ => Vec::new(),
    }
}

async fn wait_first_flight(
    client: &TcpStream,
    upstream: Upstream,
    flight: ClientHelloBuffer,
    open: &OpenClient,
    shared: &Arc<ProxyShared>,
) -> Result<AnsweredUpstream, Termination> {
    answer(client, upstream, flight, &header(client, open), &open.pool, shared).await
}

/// Why a connection ended; `None`: it was cancelled.
fn cause<T>(ended: &Option<Result<T, BrokenConnection>>, shared: &ProxyShared) -> Termination {
    match ended {
        Some(Ok(_)) => Termination::Normal,
        Some(Err(broken)) => {
            tracing::trace!("a connection broke: {}", broken.error);
            broken.cause
        }
        None if shared.life.shutdown.is_cancelled() => Termination::Killed,
        None => Termination::Down,
    }
}

/// What only the access log needs.
struct AccessRecord {
    client: SocketAddr,
    came: UnixMs,
    began: Instant,
    connect: Option<Duration>,
    retries: u32,
    moved: bool,
}

impl AccessRecord {
    fn begin(client: &TcpStream) -> Option<Box<AccessRecord>> {
        let client = client.peer_addr().ok()?;
        let (came, began) = (wall(), Instant::now());
        Some(Box::new(AccessRecord { client, came, began, connect: None, retries: 0, moved: false }))
    }
}

/// The ClientHello was sent again.
fn note_replay(access_record: &mut Option<Box<AccessRecord>>, replays: u32) {
    if let Some(access_record) = access_record {
        access_record.retries += replays;
        access_record.moved |= replays > 0;
    }
}

/// Writes the line of the access log.
fn write_access_log(
    access_record: Option<Box<AccessRecord>>,
    open: &OpenClient,
    conn_guard: Option<&ConnGuard>,
    cause: Termination,
    bytes: u64,
    shared: &ProxyShared,
) {
    let Some(access_record) = access_record else { return };
    let (front, back) = open.pool.counts();
    let server = conn_guard.map(|conn_guard| &*conn_guard.held);
    let at_server = server.map_or(0, |held| held.connections.load(Relaxed));
    let own = u64::from(server.is_some());
    let held =
        [shared.clients.load(Relaxed).saturating_sub(1), front.saturating_sub(1), back.saturating_sub(own)];
    let access = Access {
        client: access_record.client,
        came: access_record.came,
        service: open.pool.service.as_str(),
        server: server.map(|held| held.name.as_str()),
        connect: access_record.connect,
        total: access_record.began.elapsed(),
        bytes,
        cause,
        phase: if access_record.connect.is_some() { Phase::Data } else { Phase::Connect },
        held: [held[0], held[1], held[2], at_server.saturating_sub(own)],
        retries: access_record.retries,
        redispatched: access_record.moved,
    };
    tracing::info!(target: "access", "{access}");
}
