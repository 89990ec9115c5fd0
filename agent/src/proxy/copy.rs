//! Copies bytes between two sockets in both directions until both have ended.
//!
//! ```text
//!          bytes          FIN read, nothing left to write
//!   Open ────────► Open ──────────────────────────────────► Ended (FIN forwarded)
//! ```
//!
//! An idle connection holds no buffer: bytes are read into one buffer per thread and written at once; only what
//! the other socket does not take is kept until it does. There is no idle time-out: a watch may be silent for
//! hours, and keepalive shows whether the peer is alive.
//!
//! A direction that fills the buffer twice in a row moves bulk data, and switches to splice(2): its bytes then
//! stay in the kernel. It switches back when reads are small again.

use std::cell::RefCell;
use std::future::Future;
use std::io;
use std::os::fd::AsRawFd;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use proto::access::Termination;
use proto::handover::{HandedConnection, HandedDirection, HandedStage, Slot};
use rustix::pipe::{SpliceFlags, splice};

use super::pipes::Pipe;
use super::reactor::Timer;
use super::socket::reset_on_drop;
use super::stream::Stream;
use crate::handover;

/// After one direction has ended, the other may be silent for this long. Peers that vanish half-closed would
/// otherwise be kept forever (tokio#4556, rathole#460); HTTP needs the other half only for an answer.
pub(super) const LINGER: Duration = Duration::from_secs(60);

/// The buffer of each thread: what a read of a busy socket usually returns. In tests it is so small that the
/// smallest sockets fill it.
const SCRATCH_BYTES: usize = if cfg!(test) { 4 * 1024 } else { 64 * 1024 };

/// Full buffers in a row that mean bulk: one may be a single large answer.
const BULK_AFTER: u8 = 2;

/// Below this, splicing costs more than copying: two more calls, and a page for each segment.
const SMALL_BYTES: usize = SCRATCH_BYTES / 4;

/// Small reads in a row that mean the end of bulk.
const SMALL_AFTER: u8 = 8;

/// Reads in a row before yielding to other tasks: about a megabyte, below a millisecond. A splice may move as much
/// alone.
const ROUNDS: usize = 16;

thread_local! {
    static SCRATCH: RefCell<Box<[u8]>> = RefCell::new(vec![0; SCRATCH_BYTES].into_boxed_slice());
}

/// Lends the thread's buffer.
pub(super) fn with_scratch<T>(use_it: impl FnOnce(&mut [u8]) -> T) -> T {
    SCRATCH.with_borrow_mut(|scratch| use_it(scratch))
}

/// Has the task polled again after all others that are ready, and after a look for new events: where ten connections
/// carry bulk, a new client would otherwise wait until each of them had had several turns.
fn take_turns(cx: &mut Context<'_>) {
    let _: Poll<()> = std::pin::pin!(tokio::task::yield_now()).poll(cx);
}

/// What broke a connection, and on whose side.
#[derive(Debug)]
pub(super) struct BrokenConnection {
    pub(super) cause: Termination,
    pub(super) error: io::Error,
}

/// Returns `Ok` when both peers have closed; an error when either broke, or stayed half-closed and silent.
pub(super) struct CopyBoth {
    client: Stream,
    master: Stream,
    up: CopyDirection,
    down: CopyDirection,
    linger: Duration,
    /// Set while one direction has ended: the timer, and how much the other had moved when it was set.
    lingering: Option<(Box<Timer>, u64)>,
}

impl CopyBoth {
    pub(super) fn new(client: Stream, master: Stream, linger: Duration) -> CopyBoth {
        CopyBoth {
            client,
            master,
            up: CopyDirection::default(),
            down: CopyDirection::default(),
            linger,
            lingering: None,
        }
    }

    /// Sends what was read from the client before and not written yet, ahead of what follows.
    pub(super) fn begin_with(mut self, unsent: Vec<u8>) -> CopyBoth {
        self.up.keep(unsent);
        self
    }

    /// Goes on where another process has stopped.
    pub(super) fn continued(mut self, up: HandedDirection, down: HandedDirection) -> CopyBoth {
        self.up = CopyDirection::continued(up);
        self.down = CopyDirection::continued(down);
        self
    }

    /// What another process needs to go on, with the numbers of both sockets, which stay open for it; so may this one.
    /// `None`: the connection is broken.
    pub(super) fn hand_over(&mut self) -> Option<(HandedConnection, Slot)> {
        let number = |socket: &Stream| Slot::from(socket.as_raw_fd().unsigned_abs());
        let (up, down) = (self.up.hand_over().ok()?, self.down.hand_over().ok()?);
        let (client, master) = (number(&self.client), number(&self.master));
        self.master.tune();
        self.keep_open(true);
        Some((HandedConnection { client, up, down, ..HandedConnection::default() }, master))
    }

    /// Whether both sockets stay open when this process becomes another program.
    pub(super) fn keep_open(&self, stay: bool) {
        handover::keep_open(&self.client, stay);
        handover::keep_open(&self.master, stay);
    }

    /// Makes both sockets reset when they are dropped.
    pub(super) fn reset(&self) {
        reset_on_drop(&self.client);
        reset_on_drop(&self.master);
    }

    /// Bytes that went from the master to the client.
    pub(super) fn received(&self) -> u64 {
        self.down.moved
    }

    /// Bytes that went from the client to the master.
    pub(super) fn sent(&self) -> u64 {
        self.up.moved
    }

    /// Ready when half-closed and without progress for too long. Checks the progress only when the timer fires,
    /// so that moving bytes costs nothing: "too long" is up to twice as long.
    fn poll_linger(&mut self, cx: &mut Context<'_>) -> Poll<BrokenConnection> {
        let moved = self.up.moved.wrapping_add(self.down.moved);
        let linger = self.linger;
        let (timer, seen) = self.lingering.get_or_insert_with(|| (Box::new(Timer::new(linger)), moved));
        while Pin::new(&mut **timer).poll(cx).is_ready() {
            if *seen == moved {
                // The open side is the one that is awaited.
                let up_ended = self.up.stage == CopyStage::Ended;
                let cause = if up_ended { Termination::ServerTimeout } else { Termination::ClientTimeout };
                return Poll::Ready(BrokenConnection { cause, error: io::ErrorKind::TimedOut.into() });
            }
            *seen = moved;
            timer.reset(linger);
        }
        Poll::Pending
    }
}

impl Future for CopyBoth {
    type Output = Result<(), BrokenConnection>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Result<(), BrokenConnection>> {
        let this = self.get_mut();
        let (up, down) = with_scratch(|scratch| {
            let last = this.down.stage == CopyStage::Ended;
            let up = this.up.poll(cx, &this.client, &this.master, scratch, last);
            let last = this.up.stage == CopyStage::Ended;
            let down = this.down.poll(cx, &this.master, &this.client, scratch, last);
            // Both have moved what they could: what one peer sent before it broke still arrives.
            let up = up.map_err(|fault| fault.of(Termination::Client, Termination::Server))?;
            let down = down.map_err(|fault| fault.of(Termination::Server, Termination::Client))?;
            Result::<_, BrokenConnection>::Ok((up, down))
        })?;
        match (up, down) {
            (Poll::Ready(()), Poll::Ready(())) => Poll::Ready(Ok(())),
            (Poll::Pending, Poll::Pending) => Poll::Pending,
            _ => this.poll_linger(cx).map(Err),
        }
    }
}

/// One direction.
#[derive(Default)]
struct CopyDirection {
    /// What was read and could not be written yet. Boxed, like the rest: most connections are idle.
    left: Option<Box<PendingBytes>>,
    /// What was spliced and could not be written yet. Never both: each is empty before anything is read.
    pipe: Option<Pipe>,
    piped: usize,
    moved: u64,
    stage: CopyStage,
    mode: CopyMode,
}

/// Bytes to be written, from `written` on.
struct PendingBytes {
    bytes: Vec<u8>,
    written: usize,
}

#[derive(Default, PartialEq, Eq)]
enum CopyStage {
    #[default]
    Open,
    /// FIN was read and is forwarded once nothing is left.
    Ending,
    Ended,
}

/// How a direction moves its bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum CopyMode {
    /// Through the buffer, which was filled so many times in a row.
    Copy(u8),
    /// Through a pipe, where so many reads in a row were small.
    Splice(u8),
    /// Through the buffer forever: the kernel does not splice this socket.
    CopyOnly,
}

impl Default for CopyMode {
    fn default() -> CopyMode {
        CopyMode::Copy(0)
    }
}

/// Which socket of a direction broke.
enum BrokenSocket {
    From(io::Error),
    To(io::Error),
}

impl BrokenSocket {
    fn of(self, from: Termination, to: Termination) -> BrokenConnection {
        match self {
            BrokenSocket::From(error) => BrokenConnection { cause: from, error },
            BrokenSocket::To(error) => BrokenConnection { cause: to, error },
        }
    }
}

impl CopyDirection {
    /// Moves what can be moved; ready when the direction has ended. After the `last` one both sockets are
    /// closed, which forwards FIN as well.
    fn poll(
        &mut self,
        cx: &mut Context<'_>,
        from: &Stream,
        to: &Stream,
        scratch: &mut [u8],
        last: bool,
    ) -> Poll<Result<(), BrokenSocket>> {
        let mut rounds = ROUNDS;
        while rounds > 0 {
            ready!(self.poll_left(cx, to)).map_err(BrokenSocket::To)?;
            ready!(self.poll_piped(cx, to)).map_err(BrokenSocket::To)?;
            match self.stage {
                CopyStage::Ended => return Poll::Ready(Ok(())),
                CopyStage::Ending => {
                    if !last {
                        to.finish().map_err(BrokenSocket::To)?;
                    }
                    self.stage = CopyStage::Ended;
                    return Poll::Ready(Ok(()));
                }
                CopyStage::Open => {}
            }
            if matches!(self.mode, CopyMode::Splice(_)) {
                ready!(self.poll_splice(cx, from)).map_err(BrokenSocket::From)?;
                ready!(self.poll_piped(cx, to)).map_err(BrokenSocket::To)?;
                break;
            }
            let found = ready!(from.poll_read(cx, scratch)).map_err(BrokenSocket::From)?;
            self.copied(found.bytes, found.bytes == scratch.len());
            let read = scratch.get(..found.bytes).unwrap_or_default();
            // With the last bytes goes FIN, in one packet.
            self.write(cx, to, read, found.is_last).map_err(BrokenSocket::To)?;
            if found.is_last || read.is_empty() {
                self.stage = CopyStage::Ending;
            }
            rounds -= 1;
        }
        take_turns(cx);
        Poll::Pending
    }

    /// Updates the mode after a read through the buffer: is it bulk?
    fn copied(&mut self, found: usize, is_full: bool) {
        if let CopyMode::Copy(full) = self.mode {
            let full = if is_full && found > 0 { full + 1 } else { 0 };
            self.mode = if full >= BULK_AFTER { CopyMode::Splice(0) } else { CopyMode::Copy(full) };
        }
    }

    /// Updates the mode after a splice: is it still bulk?
    fn spliced(&mut self, found: usize) {
        if let CopyMode::Splice(small) = self.mode {
            let small = if found < SMALL_BYTES { small + 1 } else { 0 };
            self.mode = if small >= SMALL_AFTER { CopyMode::Copy(0) } else { CopyMode::Splice(small) };
        }
    }

    /// Fills the empty pipe: "would block" then always means that the socket has nothing, never that the pipe
    /// is full. Also ready when the mode has changed instead.
    fn poll_splice(&mut self, cx: &mut Context<'_>, from: &Stream) -> Poll<io::Result<()>> {
        if from.poll_read_ready(cx)?.is_pending() {
            // A paused direction holds no pipe.
            self.give_back();
            return Poll::Pending;
        }
        if self.pipe.is_none() {
            self.pipe = Pipe::take();
        }
        let Some((_, end, size)) = self.pipe.as_ref().and_then(Pipe::ends) else {
            self.mode = CopyMode::Copy(0);
            return Poll::Ready(Ok(()));
        };
        let fill = || splice(from, None, end, None, size, SpliceFlags::NONBLOCK | SpliceFlags::MOVE);
        match from.poll_out_of(cx, fill) {
            Poll::Pending => {
                self.give_back();
                return Poll::Pending;
            }
            Poll::Ready(Ok(0)) => {
                self.give_back();
                self.stage = CopyStage::Ending;
            }
            Poll::Ready(Ok(n)) => {
                self.piped = n;
                self.spliced(n);
            }
            Poll::Ready(Err(error)) if error.kind() == io::ErrorKind::InvalidInput => {
                self.give_back();
                self.mode = CopyMode::CopyOnly;
            }
            Poll::Ready(Err(error)) => return Poll::Ready(Err(error)),
        }
        Poll::Ready(Ok(()))
    }

    /// Empties the pipe; ready when it is empty.
    fn poll_piped(&mut self, cx: &mut Context<'_>, to: &Stream) -> Poll<io::Result<()>> {
        while self.piped > 0 {
            let Some((end, _, _)) = self.pipe.as_ref().and_then(Pipe::ends) else { break };
            let flags = SpliceFlags::NONBLOCK | SpliceFlags::MOVE;
            let n = ready!(to.poll_into(cx, || splice(end, None, to, None, self.piped, flags)))?;
            if n == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            self.piped -= n;
            self.moved = self.moved.wrapping_add(n as u64);
        }
        if !matches!(self.mode, CopyMode::Splice(_)) {
            self.give_back();
        }
        Poll::Ready(Ok(()))
    }

    /// Returns the empty pipe.
    fn give_back(&mut self) {
        if let Some(pipe) = self.pipe.take() {
            pipe.give_back();
        }
    }

    /// Writes `bytes` as far as the socket takes them and keeps the rest. `last`: FIN follows.
    fn write(&mut self, cx: &mut Context<'_>, to: &Stream, mut bytes: &[u8], last: bool) -> io::Result<()> {
        while !bytes.is_empty() {
            match to.poll_write(cx, bytes, last)? {
                Poll::Ready(0) => return Err(io::ErrorKind::WriteZero.into()),
                Poll::Ready(n) => {
                    self.moved = self.moved.wrapping_add(n as u64);
                    bytes = bytes.get(n..).unwrap_or_default();
                }
                Poll::Pending => {
                    self.keep(bytes.to_vec());
                    break;
                }
            }
        }
        Ok(())
    }

    fn continued(handed: HandedDirection) -> CopyDirection {
        let stage = match handed.stage {
            HandedStage::Open => CopyStage::Open,
            HandedStage::Ending => CopyStage::Ending,
            HandedStage::Ended => CopyStage::Ended,
        };
        let mut direction = CopyDirection { moved: handed.moved, stage, ..CopyDirection::default() };
        direction.keep(handed.left);
        direction
    }

    /// What has to be written yet, and how far this direction is. What was spliced comes out of its pipe.
    fn hand_over(&mut self) -> io::Result<HandedDirection> {
        if self.piped > 0 {
            let mut bytes = vec![0; self.piped];
            let (end, _, _) = self.pipe.as_ref().and_then(Pipe::ends).ok_or(io::ErrorKind::BrokenPipe)?;
            let mut rest = bytes.as_mut_slice();
            while !rest.is_empty() {
                let n = rustix::io::read(end, &mut *rest)?;
                rest = rest.get_mut(n..).filter(|_| n > 0).ok_or(io::ErrorKind::UnexpectedEof)?;
            }
            self.piped = 0;
            self.give_back();
            self.keep(bytes);
        }
        let left = self.left.as_ref().and_then(|left| left.bytes.get(left.written..)).unwrap_or_default();
        let stage = match self.stage {
            CopyStage::Open => HandedStage::Open,
            CopyStage::Ending => HandedStage::Ending,
            CopyStage::Ended => HandedStage::Ended,
        };
        Ok(HandedDirection { left: left.to_vec(), moved: self.moved, stage })
    }

    /// Keeps `bytes` until they can be written.
    fn keep(&mut self, bytes: Vec<u8>) {
        self.left = (!bytes.is_empty()).then(|| Box::new(PendingBytes { bytes, written: 0 }));
    }

    /// Writes what was left; ready when nothing is.
    fn poll_left(&mut self, cx: &mut Context<'_>, to: &Stream) -> Poll<io::Result<()>> {
        let Some(left) = &mut self.left else { return Poll::Ready(Ok(())) };
        while let Some(bytes @ [_, ..]) = left.bytes.get(left.written..) {
            let n = ready!(to.poll_write(cx, bytes, false))?;
            if n == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            left.written += n;
            self.moved = self.moved.wrapping_add(n as u64);
        }
        self.left = None;
        Poll::Ready(Ok(()))
    }
}

#[cfg(test)]
#[path = "copy_tests.rs"]
mod tests;

#[cfg(test)]
#[path = "copy_schedules.rs"]
mod schedules;
