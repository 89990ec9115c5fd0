//! Sockets of clients and backends on a [`Reactor`].
//!
//! A socket is used until it would block; only then its task waits. Of one socket one task may wait for reading and
//! one for writing: the last that asked is woken.

use std::future::poll_fn;
use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::sync::atomic::{AtomicU32, Ordering::AcqRel, Ordering::Acquire, Ordering::Relaxed};
use std::sync::{Arc, Mutex, Weak};
use std::task::{Context, Poll, ready};

use futures_util::task::AtomicWaker;
use rustix::event::epoll::EventFlags;
use rustix::io::Errno;
use rustix::net::{RecvFlags, SendFlags, SocketFlags};

use super::options::{self, ONE_PACKET};
use super::reactor::{Reactor, Watched};
use super::{lock, workers};

/// What is known of a socket, one bit each. Above them stands how many events have come: a bit is only cleared if none
/// has come since it was looked at.
mod bits {
    pub(super) const READABLE: u32 = 1;
    pub(super) const WRITABLE: u32 = 1 << 1;
    /// FIN has come, and all that was sent before it.
    pub(super) const READ_CLOSED: u32 = 1 << 2;
    /// There is an error, or both directions are closed.
    pub(super) const BROKEN: u32 = 1 << 3;
    /// An urgent byte has come, at which reads stop short.
    pub(super) const URGENT: u32 = 1 << 4;
    /// It has no options yet that only matter once it has lived for a while.
    pub(super) const YOUNG: u32 = 1 << 5;
    /// It may hold a small write back until the last one is acknowledged, and has written once.
    pub(super) const DELAYS: u32 = 1 << 6;
    pub(super) const WROTE: u32 = 1 << 7;
    pub(super) const EVENT: u32 = 1 << 8;
}

/// Events of a connection. What it can be written is only asked for once a write would block: nearly none do.
const READS: EventFlags =
    EventFlags::IN.union(EventFlags::PRI).union(EventFlags::RDHUP).union(EventFlags::ET);

/// A socket as its reactor knows it.
pub(super) struct Source {
    socket: OwnedFd,
    state: AtomicU32,
    reader: AtomicWaker,
    writer: AtomicWaker,
    registered: Mutex<Option<Registered>>,
}

struct Registered {
    reactor: Arc<Reactor>,
    key: u64,
    /// Its events include that it can be written.
    writes: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Direction {
    Read,
    Write,
}

impl Direction {
    /// The bits with which it is worth trying.
    fn ready(self) -> u32 {
        match self {
            Direction::Read => bits::READABLE | bits::READ_CLOSED | bits::BROKEN,
            Direction::Write => bits::WRITABLE | bits::BROKEN,
        }
    }
}

impl Source {
    pub(super) fn new(socket: OwnedFd, state: u32) -> Arc<Source> {
        Arc::new(Source {
            socket,
            state: AtomicU32::new(state),
            reader: AtomicWaker::new(),
            writer: AtomicWaker::new(),
            registered: Mutex::new(None),
        })
    }

    fn undelay(&self) {
        if self.state.fetch_and(!bits::DELAYS, AcqRel) & bits::DELAYS != 0 {
            options::send_at_once(self.as_fd());
        }
    }

    /// What is known, as soon as it is worth trying; else the task is woken when it is.
    fn poll_ready(self: &Arc<Source>, cx: &mut Context<'_>, direction: Direction) -> Poll<io::Result<u32>> {
        let state = self.state.load(Acquire);
        if state & direction.ready() != 0 {
            return Poll::Ready(Ok(state));
        }
        match direction {
            Direction::Read => self.reader.register(cx.waker()),
            Direction::Write => self.writer.register(cx.waker()),
        }
        self.register(READS, direction == Direction::Write)?;
        let state = self.state.load(Acquire);
        if state & direction.ready() != 0 { Poll::Ready(Ok(state)) } else { Poll::Pending }
    }

    fn register(self: &Arc<Source>, reads: EventFlags, writes: bool) -> io::Result<()> {
        let mut registered = lock(&self.registered);
        let flags = if writes { reads | EventFlags::OUT } else { reads };
        match &mut *registered {
            Some(known) if writes && !known.writes => {
                known.reactor.change(self.as_ref(), known.key, flags)?;
                known.writes = true;
            }
            Some(_) => {}
            None => {
                let reactor = workers::current_reactor()?;
                let key = reactor.add(Arc::clone(self) as Arc<dyn Watched>, flags)?;
                *registered = Some(Registered { reactor, key, writes });
            }
        }
        Ok(())
    }

    /// It would block, as far as `seen` knew: no bit says that a try is worth it any more.
    fn would_block(&self, direction: Direction, seen: u32) {
        self.clear(direction.ready(), seen);
    }

    /// Nothing is left to read, or no room to write.
    fn exhausted(&self, direction: Direction, seen: u32) {
        self.clear(direction.ready() & (bits::READABLE | bits::WRITABLE), seen);
    }

    fn clear(&self, bit: u32, seen: u32) {
        // These may be set by others meanwhile, and no event.
        let mut seen = seen;
        while let Err(now) = self.state.compare_exchange(seen, seen & !bit, AcqRel, Acquire) {
            if now / bits::EVENT != seen / bits::EVENT {
                return; // something has happened: it is worth another try
            }
            seen = now;
        }
    }

    fn deregister(&self, is_level_triggered: bool) {
        if let Some(Registered { reactor, key, .. }) = lock(&self.registered).take() {
            if is_level_triggered {
                reactor.silence(self);
            }
            reactor.remove(key);
        }
    }
}

impl Watched for Source {
    fn happened(&self, flags: EventFlags) {
        let mut set = 0;
        for (flag, bit) in [
            (EventFlags::IN, bits::READABLE),
            (EventFlags::OUT, bits::WRITABLE),
            (EventFlags::RDHUP, bits::READABLE | bits::READ_CLOSED),
            (EventFlags::HUP | EventFlags::ERR, bits::READABLE | bits::WRITABLE | bits::BROKEN),
            (EventFlags::PRI, bits::READABLE | bits::URGENT),
        ] {
            set |= if flags.intersects(flag) { bit } else { 0 };
        }
        let _ =
            self.state.fetch_update(AcqRel, Acquire, |state| Some((state | set).wrapping_add(bits::EVENT)));
        if set & Direction::Read.ready() != 0 {
            self.reader.wake();
        }
        if set & Direction::Write.ready() != 0 {
            self.writer.wake();
        }
    }

    fn has_grown(&self) {
        if self.state.fetch_and(!bits::YOUNG, AcqRel) & bits::YOUNG != 0 {
            self.undelay();
            options::tune_backend(self.as_fd());
        }
    }

    fn descriptor(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

impl AsFd for Source {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

/// What a read has found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct ReadOutcome {
    /// Bytes; 0 at the end.
    pub(super) bytes: usize,
    /// The end follows these bytes: it need not be read.
    pub(super) is_last: bool,
}

/// A connection.
pub(super) struct Stream(Arc<Source>);

impl Stream {
    /// A connection that is open: a try says what there is. Its socket does not block.
    pub(super) fn open(socket: impl Into<OwnedFd>) -> Stream {
        Stream(Source::new(socket.into(), bits::READABLE | bits::WRITABLE))
    }

    /// A connection to a backend, known to be `connected` or not yet, which gets its options when it has lived for a
    /// while. `tried`: the length of a first write; a long one has had it set to send small ones at once.
    pub(super) fn dialled(socket: impl Into<OwnedFd>, connected: bool, tried: usize) -> io::Result<Stream> {
        let mut state = bits::YOUNG;
        for (bit, is) in
            [(bits::WRITABLE, connected), (bits::WROTE, tried > 0), (bits::DELAYS, tried <= ONE_PACKET)]
        {
            state |= if is { bit } else { 0 };
        }
        let source = Source::new(socket.into(), state);
        workers::current_reactor()?.has_young(Arc::downgrade(&source) as Weak<dyn Watched>);
        Ok(Stream(source))
    }

    /// Waits until it is connected, or why it is not.
    pub(super) async fn connected(&self) -> io::Result<()> {
        let state = poll_fn(|cx| self.0.poll_ready(cx, Direction::Write)).await?;
        match state & bits::BROKEN {
            0 => Ok(()),
            _ => Ok(rustix::net::sockopt::socket_error(&self.0)??),
        }
    }

    /// Gives it the options now that it would get when it has lived for a while.
    pub(super) fn tune(&self) {
        self.0.has_grown();
    }

    /// Reads what is there.
    pub(super) fn poll_read(&self, cx: &mut Context<'_>, buffer: &mut [u8]) -> Poll<io::Result<ReadOutcome>> {
        loop {
            let state = ready!(self.0.poll_ready(cx, Direction::Read))?;
            if let Some(outcome) = self.read(buffer, state)? {
                return Poll::Ready(Ok(outcome));
            }
        }
    }

    /// Reads what is there; `None`: nothing.
    pub(super) fn read_now(&self, buffer: &mut [u8]) -> io::Result<Option<ReadOutcome>> {
        self.read(buffer, self.0.state.load(Acquire))
    }

    fn read(&self, buffer: &mut [u8], state: u32) -> io::Result<Option<ReadOutcome>> {
        let bytes = match rustix::net::recv(&self.0, &mut *buffer, RecvFlags::empty()) {
            Ok((bytes, _)) => bytes,
            Err(Errno::AGAIN) => {
                self.0.would_block(Direction::Read, state);
                return Ok(None);
            }
            Err(Errno::INTR) => return Ok(None),
            Err(error) => return Err(error.into()),
        };
        // A read that was given less than it has room for has taken all there was, but at an urgent byte.
        let took_all = (1..buffer.len()).contains(&bytes) && state & bits::URGENT == 0;
        if took_all {
            self.0.exhausted(Direction::Read, state);
        }
        // What has come before FIN had come when FIN had. After a reset an error follows.
        let is_last = took_all && state & (bits::READ_CLOSED | bits::BROKEN) == bits::READ_CLOSED;
        Ok(Some(ReadOutcome { bytes, is_last }))
    }

    /// Whether a byte has come, and is there still; 0 at the end.
    pub(super) async fn peek(&self) -> io::Result<usize> {
        poll_fn(|cx| {
            loop {
                let state = ready!(self.0.poll_ready(cx, Direction::Read))?;
                // What an event has said need not be asked, but for an end or an error.
                if state / bits::EVENT != 0 && state & (bits::READ_CLOSED | bits::BROKEN) == 0 {
                    return Poll::Ready(Ok(1));
                }
                match rustix::net::recv(&self.0, &mut [0; 1], RecvFlags::PEEK) {
                    Ok((bytes, _)) => return Poll::Ready(Ok(bytes)),
                    Err(Errno::AGAIN) => self.0.would_block(Direction::Read, state),
                    Err(Errno::INTR) => {}
                    Err(error) => return Poll::Ready(Err(error.into())),
                }
            }
        })
        .await
    }

    /// Whether a read is worth trying.
    pub(super) fn poll_read_ready(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.0.poll_ready(cx, Direction::Read).map_ok(drop)
    }

    /// Writes what it takes. `more`: something follows at once, at least FIN, and may go in the same packet.
    pub(super) fn poll_write(
        &self,
        cx: &mut Context<'_>,
        bytes: &[u8],
        more: bool,
    ) -> Poll<io::Result<usize>> {
        loop {
            let state = ready!(self.0.poll_ready(cx, Direction::Write))?;
            if let Some(n) = self.write(bytes, more, state)? {
                return Poll::Ready(Ok(n));
            }
        }
    }

    /// Writes what it takes now; 0: nothing.
    pub(super) fn write_now(&self, bytes: &[u8]) -> io::Result<usize> {
        Ok(self.write(bytes, false, self.0.state.load(Acquire))?.unwrap_or(0))
    }

    fn write(&self, bytes: &[u8], more: bool, state: u32) -> io::Result<Option<usize>> {
        if state & bits::DELAYS != 0 {
            if state & bits::WROTE != 0 || bytes.len() > ONE_PACKET {
                self.0.undelay();
            } else {
                self.0.state.fetch_or(bits::WROTE, Relaxed);
            }
        }
        let flags = if more { SendFlags::NOSIGNAL | SendFlags::MORE } else { SendFlags::NOSIGNAL };
        match rustix::net::send(&self.0, bytes, flags) {
            Ok(n) => {
                if n < bytes.len() {
                    self.0.exhausted(Direction::Write, state);
                }
                Ok(Some(n))
            }
            Err(Errno::AGAIN) => {
                self.0.would_block(Direction::Write, state);
                Ok(None)
            }
            Err(Errno::INTR) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    /// Moves bytes out of it by another call, which is repeated when it is worth trying again.
    pub(super) fn poll_out_of(
        &self,
        cx: &mut Context<'_>,
        act: impl FnMut() -> rustix::io::Result<usize>,
    ) -> Poll<io::Result<usize>> {
        self.poll_by(cx, Direction::Read, act)
    }

    /// The same, into it.
    pub(super) fn poll_into(
        &self,
        cx: &mut Context<'_>,
        act: impl FnMut() -> rustix::io::Result<usize>,
    ) -> Poll<io::Result<usize>> {
        self.0.undelay();
        self.poll_by(cx, Direction::Write, act)
    }

    fn poll_by(
        &self,
        cx: &mut Context<'_>,
        direction: Direction,
        mut act: impl FnMut() -> rustix::io::Result<usize>,
    ) -> Poll<io::Result<usize>> {
        loop {
            let state = ready!(self.0.poll_ready(cx, direction))?;
            match act() {
                Ok(n) => return Poll::Ready(Ok(n)),
                Err(Errno::AGAIN) => self.0.would_block(direction, state),
                Err(Errno::INTR) => {}
                Err(error) => return Poll::Ready(Err(error.into())),
            }
        }
    }

    /// Sends FIN.
    pub(super) fn finish(&self) -> io::Result<()> {
        Ok(rustix::net::shutdown(&self.0, rustix::net::Shutdown::Write)?)
    }

    pub(super) fn peer_addr(&self) -> io::Result<SocketAddr> {
        Ok(rustix::net::getpeername(&self.0)?.and_then(|addr| addr.try_into().ok()).ok_or(Errno::NOTCONN)?)
    }

    pub(super) fn local_addr(&self) -> io::Result<SocketAddr> {
        Ok(SocketAddr::try_from(rustix::net::getsockname(&self.0)?)?)
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        self.0.deregister(false);
    }
}

impl AsFd for Stream {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl AsRawFd for Stream {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_fd().as_raw_fd()
    }
}

/// A listening socket. Its events repeat while clients wait, so that the last accept need not be followed by one that
/// finds nobody.
pub(super) struct Listener(Arc<Source>);

impl Listener {
    pub(super) fn new(socket: std::net::TcpListener) -> Listener {
        Listener(Source::new(socket.into(), 0))
    }

    /// Waits for a client.
    pub(super) async fn accept(&self) -> io::Result<(Stream, SocketAddr)> {
        poll_fn(|cx| {
            loop {
                let state = match self.0.poll_ready_to_accept(cx) {
                    Poll::Ready(state) => state?,
                    Poll::Pending => return Poll::Pending,
                };
                let accepted = self.accept_now();
                // Whoever else waits is told of by the next event.
                self.0.exhausted(Direction::Read, state);
                match accepted {
                    Ok(Some(accepted)) => return Poll::Ready(Ok(accepted)),
                    Ok(None) => {}
                    Err(error) => return Poll::Ready(Err(error)),
                }
            }
        })
        .await
    }

    /// Accepts a client if one waits.
    pub(super) fn accept_now(&self) -> io::Result<Option<(Stream, SocketAddr)>> {
        match rustix::net::acceptfrom_with(&self.0, SocketFlags::NONBLOCK | SocketFlags::CLOEXEC) {
            Ok((socket, from)) => {
                let from = from.and_then(|from| from.try_into().ok()).ok_or(Errno::CONNABORTED)?;
                Ok(Some((Stream::open(socket), from)))
            }
            Err(Errno::AGAIN | Errno::INTR) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    /// Is not told of clients while nobody accepts them: their events would repeat.
    pub(super) fn rest(&self) {
        self.0.deregister(true);
    }

    /// Rests when what is returned is dropped, however its accept loop ends.
    pub(super) fn accepting(&self) -> impl Drop {
        struct Rests<'a>(&'a Listener);
        impl Drop for Rests<'_> {
            fn drop(&mut self) {
                self.0.rest();
            }
        }
        Rests(self)
    }
}

impl Source {
    fn poll_ready_to_accept(self: &Arc<Source>, cx: &mut Context<'_>) -> Poll<io::Result<u32>> {
        self.reader.register(cx.waker());
        self.register(EventFlags::IN, false)?;
        let state = self.state.load(Acquire);
        if state & Direction::Read.ready() != 0 { Poll::Ready(Ok(state)) } else { Poll::Pending }
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        self.rest();
    }
}

impl AsFd for Listener {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl AsRawFd for Listener {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_fd().as_raw_fd()
    }
}
