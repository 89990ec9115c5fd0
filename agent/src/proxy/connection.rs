//! One client, from accept to end.

use std::future::poll_fn;
use std::io;
use std::net::SocketAddr;
use std::os::fd::AsRawFd;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

use futures_util::future::BoxFuture;
use proto::access::{Access, Phase, Termination};
use proto::handover::{HandedConnection, HandedDirection, HandedLog, Slot};
use proto::time::UnixMs;
use tokio_util::sync::CancellationToken;

use super::client_hello::{AnsweredUpstream, ClientHelloBuffer, answer};
use super::copy::{BrokenConnection, CopyBoth, LINGER};
use super::dial::{DialResult, Upstream, dial};
use super::held::{CancelHandle, ConnGuard};
use super::pool::OpenClient;
use super::stream::Stream;
use super::{ProxyShared, socket};
use crate::handover;
use crate::lifecycle::wall;

/// How many backends a client may lose before it has sent a whole message: each must go down meanwhile.
const MOST_LOST: u32 = 3;

/// Finds a backend for `client` and copies until both directions have ended. Any other end resets both sides,
/// so that neither peer waits for the other.
pub(super) fn serve(client: Stream, open: OpenClient, shared: Arc<ProxyShared>) -> ServeClient {
    let access_record = open.pool.access_log.load(Relaxed).then(|| AccessRecord::begin(&client)).flatten();
    let hello = ClientHelloBuffer::default();
    ServeClient::Finding(Box::pin(prepare(client, hello, access_record, open, shared)))
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
    /// It has said what another process needs.
    is_handed: bool,
}

impl Tunnel {
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let pulled = self.cancel.poll_pulled(cx);
        let ended = match self.shared.pause.is_on() {
            true => ready!(self.poll_paused()),
            false if pulled => None,
            false => {
                if std::mem::take(&mut self.is_handed) {
                    self.copy.keep_open(false);
                }
                Some(ready!(Pin::new(&mut self.copy).poll(cx)))
            }
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

    /// Says once what another process needs to go on; ready when there is nothing to go on with.
    fn poll_paused(&mut self) -> Poll<Option<Result<(), BrokenConnection>>> {
        if self.is_handed {
            return Poll::Pending;
        }
        let Some((mut handed, master)) = self.copy.hand_over() else {
            let error = io::ErrorKind::BrokenPipe.into();
            return Poll::Ready(Some(Err(BrokenConnection { cause: Termination::Resources, error })));
        };
        let held = &self.conn_guard.held;
        handed.backend = Some((master, held.node, held.name.clone()));
        handed.log = self.access_record.as_deref().map(AccessRecord::handed);
        self.open.pool.hand_connection(handed);
        self.shared.pause.stopped();
        self.is_handed = true;
        Poll::Pending
    }
}

/// Goes on with what the process before this one held: it has that backend, if it has one.
pub(super) fn go_on(
    client: Stream,
    backend: Option<(Stream, ConnGuard)>,
    handed: HandedConnection,
    open: OpenClient,
    shared: Arc<ProxyShared>,
) -> ServeClient {
    let access_record = handed.log.and_then(|log| AccessRecord::continued(&client, log));
    let Some((stream, mut conn_guard)) = backend else {
        let hello = ClientHelloBuffer::of(handed.up.left);
        return ServeClient::Finding(Box::pin(prepare(client, hello, access_record, open, shared)));
    };
    let cancel = conn_guard.cancel_handle();
    let copy = CopyBoth::new(client, stream, LINGER).continued(handed.up, handed.down);
    ServeClient::Carrying(Tunnel { copy, cancel, conn_guard, open, shared, access_record, is_handed: false })
}

/// Finds a backend, and waits for the answer to a ClientHello that can be sent again; `None` when the client
/// was reset. `hello`: what the client has sent already.
async fn prepare(
    client: Stream,
    mut hello: ClientHelloBuffer,
    mut access_record: Option<Box<AccessRecord>>,
    open: OpenClient,
    shared: Arc<ProxyShared>,
) -> Option<Tunnel> {
    let over = &shared.life.shutdown;
    let mut lost = 0;
    // Each turn but the last ends with a pause, or with a backend that is lost.
    let (upstream, unsent) = 'dial: loop {
        if hello.begin(&client).is_err() {
            return give_up(&client, access_record, &open, None, Termination::Client, &shared);
        }
        let finding = unless_over(over, find(&client, &mut hello, &open, &shared, &mut access_record));
        let Some(found) = shared.pause.unless_begun(finding).await else {
            hand_over(&client, &hello, None, &access_record, &open, &shared).await;
            keep_open(&client, None, false);
            continue;
        };
        let mut upstream = match found.unwrap_or(Err(Termination::Killed)) {
            Ok(upstream) => upstream,
            Err(cause) => return give_up(&client, access_record, &open, None, cause, &shared),
        };
        let cancel = upstream.conn_guard.cancel_handle();
        if over.is_cancelled() {
            cancel.pull(); // nobody else does any more
        }
        while !hello.is_read() {
            let reading = cancel.run(hello.read(&client, &upstream.stream));
            match shared.pause.unless_begun(reading).await {
                Some(Some(Ok(()))) => {}
                // It went down and has not answered: another gets what the client has sent so far.
                Some(None) if lost < MOST_LOST && !over.is_cancelled() => {
                    socket::reset_on_drop(&upstream.stream);
                    hello.begin_again();
                    lost += 1;
                    continue 'dial;
                }
                Some(broken) => {
                    socket::reset_on_drop(&upstream.stream);
                    let cause = cause(&broken, &shared);
                    return give_up(&client, access_record, &open, Some(&upstream), cause, &shared);
                }
                None => {
                    hand_over(&client, &hello, Some(&upstream), &access_record, &open, &shared).await;
                    keep_open(&client, Some(&upstream), false);
                }
            }
        }
        if !hello.is_hello {
            break (upstream, hello.unsent());
        }
        let answered =
            Box::pin(over.run_until_cancelled(wait_first_flight(&client, upstream, &hello, &open, &shared)));
        match shared.pause.unless_begun(answered).await {
            Some(Some(Ok(answered))) => {
                note_replay(&mut access_record, answered.replays);
                break (answered.upstream, answered.unsent);
            }
            Some(failed) => {
                let cause = failed.and_then(Result::err).unwrap_or(Termination::Killed);
                return give_up(&client, access_record, &open, None, cause, &shared);
            }
            None => {
                hello.begin_again();
                hand_over(&client, &hello, None, &access_record, &open, &shared).await;
                keep_open(&client, None, false);
            }
        }
    };
    let Upstream { stream, mut conn_guard } = upstream;
    conn_guard.client_assigned();
    let cancel = conn_guard.cancel_handle();
    if over.is_cancelled() {
        cancel.pull();
    }
    let copy = CopyBoth::new(client, stream, LINGER).begin_with(unsent);
    Some(Tunnel { copy, cancel, conn_guard, open, shared, access_record, is_handed: false })
}

/// Runs `work` until `over`; `None` when it was first. What is done at once takes no lock that others wait for.
async fn unless_over<T>(over: &CancellationToken, work: impl Future<Output = T>) -> Option<T> {
    let (mut work, mut cancelled) = (pin!(work), None);
    poll_fn(|cx| {
        if cancelled.is_none() && over.is_cancelled() {
            return Poll::Ready(None);
        }
        if let Poll::Ready(done) = work.as_mut().poll(cx) {
            return Poll::Ready(Some(done));
        }
        cancelled.get_or_insert_with(|| Box::pin(over.cancelled())).as_mut().poll(cx).map(|()| None)
    })
    .await
}

/// Resets a client that is not served.
fn give_up(
    client: &Stream,
    access_record: Option<Box<AccessRecord>>,
    open: &OpenClient,
    upstream: Option<&Upstream>,
    cause: Termination,
    shared: &ProxyShared,
) -> Option<Tunnel> {
    socket::reset_on_drop(client);
    write_access_log(access_record, open, upstream.map(|one| &one.conn_guard), cause, 0, shared);
    None
}

/// Whether both sockets stay open when this process becomes another program.
fn keep_open(client: &Stream, upstream: Option<&Upstream>, stay: bool) {
    handover::keep_open(client, stay);
    if let Some(upstream) = upstream {
        handover::keep_open(&upstream.stream, stay);
    }
}

/// Says what another process needs to go on with a client whose backend has not answered yet; returns what ends with
/// the pause. Without an upstream it begins anew, with what the client has sent.
fn hand_over(
    client: &Stream,
    hello: &ClientHelloBuffer,
    upstream: Option<&Upstream>,
    access_record: &Option<Box<AccessRecord>>,
    open: &OpenClient,
    shared: &ProxyShared,
) -> BoxFuture<'static, ()> {
    let number = |stream: &Stream| Slot::from(stream.as_raw_fd().unsigned_abs());
    keep_open(client, upstream, true);
    let backend = upstream.map(|upstream| {
        let held = &upstream.conn_guard.held;
        // The other process takes it as assigned.
        upstream.conn_guard.client_assigned();
        (number(&upstream.stream), held.node, held.name.clone())
    });
    let up = HandedDirection { left: hello.rest().to_vec(), ..HandedDirection::default() };
    let log = access_record.as_deref().map(AccessRecord::handed);
    let client = number(client);
    open.pool.hand_connection(HandedConnection { client, backend, up, log, ..HandedConnection::default() });
    shared.pause.stopped();
    shared.pause.until(false)
}

/// Dials, and sends the PROXY header if configured.
async fn find(
    client: &Stream,
    hello: &mut ClientHelloBuffer,
    open: &OpenClient,
    shared: &Arc<ProxyShared>,
    access_record: &mut Option<Box<AccessRecord>>,
) -> Result<Upstream, Termination> {
    let header = header(client, open);
    // The header comes first.
    let early = if header.is_empty() { hello.early() } else { &[] };
    let DialResult { upstream, tries, moved, sent } = dial(open, early, shared).await;
    hello.was_sent(sent);
    if let Some(access_record) = access_record {
        access_record.retries = tries.saturating_sub(1);
        access_record.moved = moved;
        access_record.connect = upstream.is_ok().then(|| access_record.began.elapsed());
    }
    let upstream = upstream?;
    if socket::write_at_once(&upstream.stream, &header) { Ok(upstream) } else { Err(Termination::Server) }
}

/// The PROXY header; empty when none is configured.
fn header(client: &Stream, open: &OpenClient) -> Vec<u8> {
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
    client: &Stream,
    upstream: Upstream,
    flight: &ClientHelloBuffer,
    open: &OpenClient,
    shared: &Arc<ProxyShared>,
) -> Result<AnsweredUpstream, Termination> {
    answer(client, upstream, flight, &header(client, open), open, shared).await
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
    fn begin(client: &Stream) -> Option<Box<AccessRecord>> {
        let client = client.peer_addr().ok()?;
        let (came, began) = (wall(), Instant::now());
        Some(Box::new(AccessRecord { client, came, began, connect: None, retries: 0, moved: false }))
    }

    fn handed(&self) -> HandedLog {
        let ms = |long: Duration| u64::try_from(long.as_millis()).unwrap_or(u64::MAX);
        HandedLog {
            came: self.came,
            age_ms: ms(self.began.elapsed()),
            connect_ms: self.connect.map(ms),
            retries: self.retries,
            moved: self.moved,
        }
    }

    fn continued(client: &Stream, log: HandedLog) -> Option<Box<AccessRecord>> {
        let HandedLog { came, age_ms, connect_ms, retries, moved } = log;
        let (client, now) = (client.peer_addr().ok()?, Instant::now());
        let began = now.checked_sub(Duration::from_millis(age_ms)).unwrap_or(now);
        let connect = connect_ms.map(Duration::from_millis);
        Some(Box::new(AccessRecord { client, came, began, connect, retries, moved }))
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
