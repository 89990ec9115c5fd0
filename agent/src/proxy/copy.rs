//! Copies bytes between two sockets, both ways, until both directions have ended.
//!
//! ```text
//!          bytes          FIN read, nothing left to write
//!   Open ────────► Open ──────────────────────────────────► Ended (FIN passed on)
//! ```
//!
//! A connection that is idle holds no buffer: bytes are read into one buffer for each thread and written
//! at once; only what the other socket would not take is kept until it does. There is no idle time-out:
//! a watch may be silent for hours, and keepalive tells whether the peer lives.

use std::cell::RefCell;
use std::future::Future;
use std::io;
use std::net::Shutdown;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use socket2::SockRef;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::time::{Instant, Sleep};

/// After one direction has ended, the other may be silent for this long. Peers that vanish half-closed
/// would else be kept for ever (tokio#4556, rathole#460); HTTP needs the other half only for an answer.
pub(super) const LINGER: Duration = Duration::from_secs(60);

/// The buffer of each thread: what a read of a busy socket usually finds.
const SCRATCH_BYTES: usize = 64 * 1024;

/// Reads in a row before other tasks have their turn: about a megabyte, below a millisecond.
const ROUNDS: usize = 16;

thread_local! {
    static SCRATCH: RefCell<Box<[u8]>> = RefCell::new(vec![0; SCRATCH_BYTES].into_boxed_slice());
}

/// Ends well when both peers have closed; with an error when either broke, or stayed half-closed and silent.
pub(super) struct CopyBoth<'a> {
    client: &'a mut TcpStream,
    master: &'a mut TcpStream,
    up: Flow,
    down: Flow,
    linger: Duration,
    /// Set while one direction has ended: the timer, and how much the other had moved when it was set.
    lingering: Option<(Pin<Box<Sleep>>, u64)>,
}

impl<'a> CopyBoth<'a> {
    pub(super) fn new(
        client: &'a mut TcpStream,
        master: &'a mut TcpStream,
        linger: Duration,
    ) -> CopyBoth<'a> {
        CopyBoth { client, master, up: Flow::default(), down: Flow::default(), linger, lingering: None }
    }

    /// Ready when half-closed and without progress for too long. Looks at the progress only when the timer
    /// rings, so that moving bytes costs nothing: "too long" is up to twice as long.
    fn poll_linger(&mut self, cx: &mut Context<'_>) -> Poll<io::Error> {
        let moved = self.up.moved.wrapping_add(self.down.moved);
        let linger = self.linger;
        let (timer, seen) =
            self.lingering.get_or_insert_with(|| (Box::pin(tokio::time::sleep(linger)), moved));
        while timer.as_mut().poll(cx).is_ready() {
            if *seen == moved {
                return Poll::Ready(io::ErrorKind::TimedOut.into());
            }
            *seen = moved;
            timer.as_mut().reset(Instant::now() + linger);
        }
        Poll::Pending
    }
}

impl Future for CopyBoth<'_> {
    type Output = io::Result<()>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let (up, down) = SCRATCH.with_borrow_mut(|scratch| {
            let up = this.up.poll(cx, this.client, this.master, scratch);
            let down = this.down.poll(cx, this.master, this.client, scratch);
            // Both have moved what they could: what one peer said before it broke still gets through.
            io::Result::Ok((up?, down?))
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
struct Flow {
    /// What was read and could not be written yet, from `written` on.
    left: Vec<u8>,
    written: usize,
    moved: u64,
    stage: Stage,
}

#[derive(Default, PartialEq, Eq)]
enum Stage {
    #[default]
    Open,
    /// FIN was read and is passed on once nothing is left.
    Ending,
    Ended,
}

impl Flow {
    /// Moves what can be moved; ready when the direction has ended.
    fn poll(
        &mut self,
        cx: &mut Context<'_>,
        from: &mut TcpStream,
        to: &mut TcpStream,
        scratch: &mut [u8],
    ) -> Poll<io::Result<()>> {
        for _ in 0..ROUNDS {
            ready!(self.poll_left(cx, to))?;
            match self.stage {
                Stage::Ended => return Poll::Ready(Ok(())),
                Stage::Ending => {
                    SockRef::from(&*to).shutdown(Shutdown::Write)?;
                    self.stage = Stage::Ended;
                    return Poll::Ready(Ok(()));
                }
                Stage::Open => {}
            }
            // A read that does not fill the buffer also tells tokio that the socket is empty, so that the
            // next round waits without asking the kernel.
            let mut buffer = ReadBuf::new(scratch);
            ready!(Pin::new(&mut *from).poll_read(cx, &mut buffer))?;
            match buffer.filled() {
                [] => self.stage = Stage::Ending,
                read => self.write(cx, to, read)?,
            }
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    }

    /// Writes `bytes` as far as the socket takes them and keeps the rest.
    fn write(&mut self, cx: &mut Context<'_>, to: &mut TcpStream, mut bytes: &[u8]) -> io::Result<()> {
        while !bytes.is_empty() {
            match Pin::new(&mut *to).poll_write(cx, bytes)? {
                Poll::Ready(0) => return Err(io::ErrorKind::WriteZero.into()),
                Poll::Ready(n) => {
                    self.moved = self.moved.wrapping_add(n as u64);
                    bytes = bytes.get(n..).unwrap_or_default();
                }
                Poll::Pending => {
                    self.left = bytes.to_vec();
                    self.written = 0;
                    break;
                }
            }
        }
        Ok(())
    }

    /// Writes what was left; ready when nothing is.
    fn poll_left(&mut self, cx: &mut Context<'_>, to: &mut TcpStream) -> Poll<io::Result<()>> {
        while let Some(bytes @ [_, ..]) = self.left.get(self.written..) {
            let n = ready!(Pin::new(&mut *to).poll_write(cx, bytes))?;
            if n == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            self.written += n;
            self.moved = self.moved.wrapping_add(n as u64);
        }
        if !self.left.is_empty() {
            (self.left, self.written) = (Vec::new(), 0);
        }
        Poll::Ready(Ok(()))
    }
}

#[cfg(test)]
#[path = "copy_tests.rs"]
mod tests;
