//! The first bytes of a client: a TLS ClientHello is kept until the backend has answered it, and sent to
//! another backend when this one disconnects or stays silent for too long.
//!
//! ```text
//!   bytes of client ──► Partial ──► Hello ── first byte ──────────────────────► copy with who answered
//!                          │          ├── reset, closed or silent for too long ──► send it to another too
//!                          └► Other   └── the client sends more, or leaves ──► copy with the first
//! ```
//!
//! [`proto::client_hello`] explains why this is safe. A silent backend keeps its connection: the first to send
//! a byte wins, and the others are closed. Stopping anywhere is safe: upstreams and counts belong to the
//! futures.

use std::future::poll_fn;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use proto::access::Termination;
use proto::client_hello::{ClientHello, MAX_HELLO, inspect};
use proto::node::NodeId;

use super::copy::{BrokenConnection, with_scratch};
use super::dial::{DialAttempt, Upstream};
use super::held::CancelHandle;
use super::pool::{OpenClient, PoolClient, ServicePool};
use super::reactor::Timer;
use super::stream::Stream;
use super::{ProxyShared, socket};

/// Most additional backends that get one ClientHello: with three masters, all of them.
const MOST_REPLAYS: u32 = 2;

/// What a client has sent so far, and how much of it was forwarded to the backend.
#[derive(Default)]
pub(super) struct ClientHelloBuffer {
    bytes: Vec<u8>,
    sent: usize,
    /// The bytes are a complete ClientHello, and the backend has sent nothing yet.
    pub(super) is_hello: bool,
    /// No more is awaited before the backend answers.
    is_read: bool,
    /// The same, but it may still have to be sent.
    is_complete: bool,
}

impl ClientHelloBuffer {
    /// What a client has sent to another process, which has not answered it.
    pub(super) fn of(bytes: Vec<u8>) -> ClientHelloBuffer {
        let is_hello = inspect(&bytes) == ClientHello::Hello;
        ClientHelloBuffer { is_read: !bytes.is_empty(), is_hello, sent: 0, bytes, is_complete: false }
    }

    pub(super) fn is_read(&self) -> bool {
        self.is_read
    }

    /// All of it goes to another backend.
    pub(super) fn begin_again(&mut self) {
        self.sent = 0;
    }

    /// Reads what the client has already sent, before a backend is dialled: that can then have it with the connect.
    pub(super) fn begin(&mut self, client: &Stream) -> io::Result<()> {
        if self.bytes.is_empty() && !self.is_read {
            self.read_now(client)?;
        }
        Ok(())
    }

    /// What a backend may have with the connect.
    pub(super) fn early(&self) -> &[u8] {
        if self.is_read { &[] } else { &self.bytes }
    }

    /// So much of it was sent with the connect.
    pub(super) fn was_sent(&mut self, sent: usize) {
        self.sent = sent;
    }

    /// Waits for a client's ClientHello. Ends without one as soon as the master sends data. May be dropped anywhere.
    pub(super) async fn read(&mut self, client: &Stream, master: &Stream) -> Result<(), BrokenConnection> {
        // In another turn, after a pause, some of it is there.
        if !self.at_once(client, master)? {
            poll_fn(|cx| self.poll(cx, client, master)).await?;
        }
        self.is_read = true;
        Ok(())
    }

    /// Sends what the client has already sent, which most have while their backend was dialled; true when no more has
    /// to be awaited.
    fn at_once(&mut self, client: &Stream, master: &Stream) -> Result<bool, BrokenConnection> {
        if self.bytes.is_empty() {
            self.read_now(client).map_err(by(Termination::Client))?;
        }
        if let Some(rest @ [_, ..]) = self.bytes.get(self.sent..) {
            self.sent += master.write_now(rest).map_err(by(Termination::Server))?;
        }
        Ok(self.is_complete)
    }

    fn read_now(&mut self, client: &Stream) -> io::Result<()> {
        with_scratch(|scratch| {
            let most = scratch.len().min(MAX_HELLO);
            if let Some(found) = client.read_now(&mut scratch[..most])? {
                self.bytes = scratch[..found.bytes].to_vec();
                self.is_complete = self.is_whole(0);
            }
            Ok(())
        })
    }

    /// Whether the ClientHello is complete, given that there is more than `before` or the client has closed.
    fn is_whole(&mut self, before: usize) -> bool {
        let flight = inspect(&self.bytes);
        self.is_hello = flight == ClientHello::Hello;
        flight != ClientHello::Partial || self.bytes.len() == before
    }

    fn poll(
        &mut self,
        cx: &mut Context<'_>,
        client: &Stream,
        master: &Stream,
    ) -> Poll<Result<(), BrokenConnection>> {
        loop {
            // The start of a hello may be the whole of another protocol's message: nothing is held back.
            while let Some(rest @ [_, ..]) = self.bytes.get(self.sent..) {
                match master.poll_write(cx, rest, false).map_err(by(Termination::Server))? {
                    Poll::Ready(n) => self.sent += n,
                    Poll::Pending => break,
                }
            }
            if master.poll_read_ready(cx).map_err(by(Termination::Server))?.is_ready() {
                return Poll::Ready(Ok(()));
            }
            let before = self.bytes.len();
            ready!(with_scratch(|scratch| {
                let most = scratch.len().min(MAX_HELLO);
                let found = ready!(client.poll_read(cx, &mut scratch[..most]))?;
                self.bytes.extend_from_slice(&scratch[..found.bytes]);
                Poll::Ready(io::Result::Ok(()))
            }))
            .map_err(by(Termination::Client))?;
            if self.is_whole(before) {
                return Poll::Ready(Ok(()));
            }
        }
    }

    /// The same, while more may come.
    pub(super) fn rest(&self) -> &[u8] {
        self.bytes.get(self.sent..).unwrap_or_default()
    }

    /// What the backend was not sent yet.
    pub(super) fn unsent(mut self) -> Vec<u8> {
        self.bytes.drain(..self.sent);
        self.bytes
    }
}

fn by(cause: Termination) -> impl Fn(io::Error) -> BrokenConnection {
    move |error| BrokenConnection { cause, error }
}

/// An upstream that is ready for copying, and what still has to be sent to it.
pub(super) struct AnsweredUpstream {
    pub(super) upstream: Upstream,
    pub(super) unsent: Vec<u8>,
    /// How often the ClientHello was sent again.
    pub(super) replays: u32,
}

/// An upstream that gets a hello, and how much of it was sent.
struct HelloAttempt {
    upstream: Upstream,
    sent: AtomicUsize,
}

/// Where an attempt begins.
enum AttemptStart {
    Connected(Arc<HelloAttempt>, Arc<CancelHandle>),
    Dial(DialAttempt),
}

/// How an attempt went.
enum AttemptOutcome {
    /// A byte came back.
    Answered(Arc<HelloAttempt>, Duration),
    /// It closed without a byte.
    Closed(Arc<HelloAttempt>),
    /// The dial failed, or the connection broke or was cancelled.
    Failed,
}

/// Sends a hello until a backend answers it; the cause when none does.
pub(super) async fn answer(
    client: &Stream,
    upstream: Upstream,
    first: &ClientHelloBuffer,
    header: &[u8],
    open: &OpenClient,
    shared: &Arc<ProxyShared>,
) -> Result<AnsweredUpstream, Termination> {
    let (pool, asking) = (&open.pool, open.of(shared));
    let sender = HelloSender { hello: &first.bytes, header, too_long: pool.too_long(), pool, asking, shared };
    let mut tried = vec![upstream.conn_guard.held.node];
    let (run, cancel) = connected(upstream, first.sent);
    let original = Arc::downgrade(&run);
    let mut race = FuturesUnordered::new();
    race.push(sender.attempt(AttemptStart::Connected(run, cancel)));
    let (mut closed, mut replays, mut only_hello) = (None, 0, true);
    let mut patience = Timer::new(sender.too_long);
    let winner = loop {
        tokio::select! {
            biased;
            outcome = race.next() => match outcome {
                Some(AttemptOutcome::Answered(run, took)) => {
                    pool.answered(&run.upstream.conn_guard.held, took);
                    break Some(run);
                }
                Some(AttemptOutcome::Closed(run)) => closed = Some(run),
                Some(AttemptOutcome::Failed) | None => {}
            },
            more = client.peek(), if only_hello => {
                let more = more.map_err(|_| Termination::Client)?;
                // From here on the client has sent more than a hello, so no further backend gets it.
                only_hello = false;
                match original.upgrade() {
                    Some(original) if replays == 0 => break Some(original),
                    // Several backends have it and the client disconnects: nobody needs an answer.
                    _ if more == 0 => return Err(Termination::Client),
                    _ => {}
                }
            }
            () = &mut patience => {}
        }
        patience.reset(sender.too_long);
        if only_hello
            && replays < MOST_REPLAYS
            && let Some(start) = sender.again(&mut tried)
        {
            replays += 1;
            race.push(sender.attempt(start));
        }
        if race.is_empty() {
            break closed.take();
        }
    };
    // The losers, and with them every other handle to the winner.
    drop((race, closed));
    let HelloAttempt { upstream, sent } = winner.and_then(Arc::into_inner).ok_or(Termination::Server)?;
    let unsent = first.bytes.get(sent.into_inner()..).unwrap_or_default().to_vec();
    Ok(AnsweredUpstream { upstream, unsent, replays })
}

/// An upstream to start an attempt with; it ends when its [`CancelHandle`] is pulled.
fn connected(mut upstream: Upstream, sent: usize) -> (Arc<HelloAttempt>, Arc<CancelHandle>) {
    let cancel = upstream.conn_guard.cancel_handle();
    (Arc::new(HelloAttempt { upstream, sent: AtomicUsize::new(sent) }), cancel)
}

struct HelloSender<'a> {
    hello: &'a [u8],
    header: &'a [u8],
    too_long: Duration,
    pool: &'a Arc<ServicePool>,
    asking: PoolClient,
    shared: &'a Arc<ProxyShared>,
}

impl HelloSender<'_> {
    /// The next backend to send it to, if one is good and the budget allows it.
    fn again(&self, tried: &mut Vec<NodeId>) -> Option<AttemptStart> {
        let now = self.shared.life.now();
        let table = Arc::clone(&self.shared.table.borrow());
        let backends = table.get(&self.pool.service)?;
        let (chosen, conn_guard) = self.pool.another(backends, self.asking, now, tried)?;
        let backend = backends.get(chosen).filter(|_| self.pool.may_replay(now))?;
        tried.push(backend.node);
        conn_guard.held.counts.replays.fetch_add(1, Relaxed);
        Some(AttemptStart::Dial(DialAttempt::begin(conn_guard, backend.address, &[], self.pool, self.shared)))
    }

    async fn attempt(&self, start: AttemptStart) -> AttemptOutcome {
        let (run, cancel) = match start {
            AttemptStart::Connected(run, cancel) => (run, cancel),
            AttemptStart::Dial(attempt) => {
                let Ok(upstream) = attempt.run().await else { return AttemptOutcome::Failed };
                if !socket::write_at_once(&upstream.stream, self.header) {
                    return AttemptOutcome::Failed;
                }
                connected(upstream, 0)
            }
        };
        let mut wait = FirstByteWait { sender: self, run: &run, since: Instant::now(), ended: false };
        let spoke = cancel.run(wait.first_byte()).await;
        wait.ended = true;
        let took = wait.since.elapsed();
        drop(wait);
        match spoke {
            Some(Ok(0)) => AttemptOutcome::Closed(run),
            Some(Ok(_)) => AttemptOutcome::Answered(run, took),
            Some(Err(_)) | None => {
                socket::reset_on_drop(&run.upstream.stream);
                AttemptOutcome::Failed
            }
        }
    }
}

/// Waits for a backend to answer. Dropped before that, it counts the silence if it was too long.
struct FirstByteWait<'a> {
    sender: &'a HelloSender<'a>,
    run: &'a HelloAttempt,
    since: Instant,
    ended: bool,
}

impl FirstByteWait<'_> {
    /// Sends the rest of the hello; returns how many bytes of an answer were seen, 0 at EOF.
    async fn first_byte(&self) -> io::Result<usize> {
        let stream = &self.run.upstream.stream;
        while let Some(rest @ [_, ..]) = self.sender.hello.get(self.run.sent.load(Relaxed)..) {
            let n = poll_fn(|cx| stream.poll_write(cx, rest, false)).await?;
            self.run.sent.fetch_add(n, Relaxed);
        }
        stream.peek().await
    }
}

impl Drop for FirstByteWait<'_> {
    fn drop(&mut self) {
        if !self.ended && self.since.elapsed() >= self.sender.too_long {
            self.sender.pool.silent(&self.run.upstream.conn_guard.held, self.sender.shared.life.now());
        }
    }
}
