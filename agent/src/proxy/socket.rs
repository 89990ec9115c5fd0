//! Socket options of both sides of a connection, and how a side is reset.

use std::io::{self, Read};
use std::net::SocketAddr;
use std::time::Duration;

use rustix::io::Errno;
use socket2::{Domain, Protocol, SockRef, Socket, TcpKeepalive, Type};
use tokio::io::Interest;
use tokio::net::TcpStream;

/// Idle time before the first keepalive probe. With the interval and the count below, a client that vanished is
/// noticed after 30 s; the usual defaults take two hours. For a backend it is [`USER_TIMEOUT`], which replaces
/// the count (tcp(7)).
const KEEPALIVE_IDLE: Duration = Duration::from_secs(15);
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(5);
const KEEPALIVE_PROBES: u32 = 3;

/// How long data sent to a backend may stay unacknowledged. Keepalive does not run while data is in flight, and
/// retransmission gives up after 15 minutes, for which clients hang (k8s#41916). Only on the backend's side: it
/// also ends connections whose peer keeps its window closed, which a paused client may do.
///
/// As long as the idle time and all probes together: for an idle connection the kernel counts from the last
/// packet received, so with less a single lost probe would end it, and of many thousand connections some always
/// lose one.
const USER_TIMEOUT: Duration = Duration::from_secs(30);

/// Clients that may wait to be accepted; the kernel lowers it to net.core.somaxconn.
const BACKLOG: i32 = 4096;

/// Options of both sides. One that the kernel does not know does not prevent serving.
fn tune(socket: &SockRef<'_>, probes: Option<u32>) {
    let mut keepalive = TcpKeepalive::new().with_time(KEEPALIVE_IDLE).with_interval(KEEPALIVE_INTERVAL);
    if let Some(probes) = probes {
        keepalive = keepalive.with_retries(probes);
    }
    let _ = socket.set_tcp_nodelay(true);
    let _ = socket.set_tcp_keepalive(&keepalive);
}

/// Sockets that listen at the same address. Accepted sockets inherit their options, which saves four calls for
/// each client.
/// `shared`: another process may listen there too, if it lets them.
pub(super) fn listen(
    address: SocketAddr,
    count: usize,
    shared: bool,
) -> io::Result<Vec<std::net::TcpListener>> {
    let first = bound(address, shared)?;
    // Only now: an address that another process listens at is then in use, unless it may be shared.
    first.set_reuse_port(true)?;
    let address = first.local_addr()?.as_socket().unwrap_or(address);
    let mut sockets = vec![first];
    for _ in 1..count {
        sockets.push(bound(address, true)?);
    }
    sockets.iter().try_for_each(|socket| socket.listen(BACKLOG))?;
    Ok(sockets.into_iter().map(Into::into).collect())
}

fn bound(address: SocketAddr, shared: bool) -> io::Result<Socket> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    socket.set_nonblocking(true)?;
    // Connections of an earlier process in TIME_WAIT must not delay a restart.
    socket.set_reuse_address(true)?;
    if shared {
        socket.set_reuse_port(true)?;
    }
    if address.is_ipv6() {
        // Each address stands for itself: [::] and 0.0.0.0 may both be listed.
        socket.set_only_v6(true)?;
    }
    tune(&SockRef::from(&socket), Some(KEEPALIVE_PROBES));
    socket.bind(&address.into())?;
    Ok(socket)
}

/// A started connect to a backend.
pub(super) enum PendingConnect {
    /// It has completed already, as happens within one machine.
    Done(TcpStream),
    UnderWay(TcpStream),
}

impl PendingConnect {
    pub(super) fn begin(address: SocketAddr) -> io::Result<PendingConnect> {
        let kind = Type::STREAM.nonblocking();
        let socket = Socket::new(Domain::for_address(address), kind, Some(Protocol::TCP))?;
        let options = SockRef::from(&socket);
        tune(&options, None);
        let _ = options.set_tcp_user_timeout(Some(USER_TIMEOUT));
        let is_done = is_done(socket.connect(&address.into()), Errno::INPROGRESS)?
            // The first call on a non-blocking socket never reports completion; the second does.
            || is_done(socket.connect(&address.into()), Errno::ALREADY)?;
        let stream = TcpStream::from_std(socket.into())?;
        Ok(if is_done { PendingConnect::Done(stream) } else { PendingConnect::UnderWay(stream) })
    }

    /// Waits until it has completed.
    pub(super) async fn finish(self) -> io::Result<TcpStream> {
        let stream = match self {
            PendingConnect::Done(stream) => return Ok(stream),
            PendingConnect::UnderWay(stream) => stream,
        };
        stream.writable().await?;
        match stream.take_error()? {
            Some(error) => Err(error),
            None => Ok(stream),
        }
    }
}

fn is_done(connect: io::Result<()>, under_way: Errno) -> io::Result<bool> {
    match connect {
        Ok(()) => Ok(true),
        Err(error) if Errno::from_io_error(&error) == Some(under_way) => Ok(false),
        Err(error) => Err(error),
    }
}

/// Makes dropping the socket send RST: the peer learns at once, and nothing lingers in the kernel.
pub(super) fn reset_on_drop(stream: &TcpStream) {
    let _ = SockRef::from(stream).set_linger(Some(Duration::ZERO));
}

/// Writes what the socket accepts now; 0 when that is nothing. Asks the kernel directly: tokio may not know yet
/// that a new socket is writable.
pub(super) fn write_now(stream: &TcpStream, bytes: &[u8]) -> io::Result<usize> {
    match SockRef::from(stream).send(bytes) {
        Err(error) if is_transient(&error) => Ok(0),
        result => result,
    }
}

/// Reads what is there; `None` when nothing is. Asks the kernel directly, for the same reason.
pub(super) fn read_now(stream: &TcpStream, buffer: &mut [u8]) -> io::Result<Option<usize>> {
    // If tokio knows of the readiness, it has to learn when there is no more, or it would ask the kernel again.
    // Never when there may be more: it would wait for an event that has already come.
    let most = buffer.len();
    let mut read = || (&*SockRef::from(stream)).read(buffer);
    let mut result = None;
    let _ = stream.try_io(Interest::READABLE, || {
        result = Some(read());
        match &result {
            Some(Ok(n)) if (1..most).contains(n) => Err(io::ErrorKind::WouldBlock.into()),
            _ => Ok(()),
        }
    });
    match result.unwrap_or_else(read) {
        Ok(n) => Ok(Some(n)),
        Err(error) if is_transient(&error) => Ok(None),
        Err(error) => Err(error),
    }
}

/// Writes a few bytes to a socket that has just connected and so has room for them; false when it broke.
pub(super) fn write_at_once(stream: &TcpStream, bytes: &[u8]) -> bool {
    bytes.is_empty() || write_now(stream, bytes).is_ok_and(|n| n == bytes.len())
}

/// Whether a call only has to be repeated, at once or when the socket is ready.
pub(super) fn is_transient(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted)
}

/// Whether an error means that this process or machine is out of descriptors.
pub(super) fn is_starved(error: &io::Error) -> bool {
    matches!(Errno::from_io_error(error), Some(Errno::MFILE | Errno::NFILE))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_shared_among_own_threads_only() {
        let sockets = listen(SocketAddr::from(([127, 0, 0, 1], 0)), 3, false).unwrap();
        let address = sockets[0].local_addr().unwrap();
        assert!(sockets.iter().all(|socket| socket.local_addr().unwrap() == address));
        assert_eq!(listen(address, 3, false).unwrap_err().kind(), io::ErrorKind::AddrInUse);
        drop(sockets);
        listen(address, 3, false).unwrap();
    }

    #[tokio::test]
    async fn the_next_read_finds_the_rest() {
        use tokio::io::AsyncReadExt as _;

        let mut listeners = listen(SocketAddr::from(([127, 0, 0, 1], 0)), 1, false).unwrap();
        let listener = tokio::net::TcpListener::from_std(listeners.pop().unwrap()).unwrap();
        let dialled = PendingConnect::begin(listener.local_addr().unwrap()).unwrap().finish().await.unwrap();
        let (mut accepted, _) = listener.accept().await.unwrap();
        // A short read first: the rest is awaited, and its event has already been delivered.
        assert_eq!(write_now(&dialled, b"0").unwrap(), 1);
        assert_eq!(accepted.read(&mut [0; 8]).await.unwrap(), 1);
        assert_eq!(write_now(&dialled, b"12345678").unwrap(), 8);
        accepted.readable().await.unwrap();
        let mut four = [0; 4];
        assert_eq!(read_now(&accepted, &mut four).unwrap(), Some(4));
        let rest = accepted.read_exact(&mut four);
        tokio::time::timeout(Duration::from_secs(5), rest).await.unwrap().unwrap();
        assert_eq!((read_now(&accepted, &mut four).unwrap(), &four), (None, b"5678"));
    }

    #[tokio::test]
    async fn both_sides_have_their_options() {
        let mut listeners = listen(SocketAddr::from(([127, 0, 0, 1], 0)), 1, false).unwrap();
        let listener = tokio::net::TcpListener::from_std(listeners.pop().unwrap()).unwrap();
        let dialled = PendingConnect::begin(listener.local_addr().unwrap()).unwrap().finish().await.unwrap();
        let (accepted, _) = listener.accept().await.unwrap();
        for (stream, user_timeout) in [(&dialled, Some(USER_TIMEOUT)), (&accepted, None)] {
            let socket = SockRef::from(stream);
            assert!(socket.tcp_nodelay().unwrap() && socket.keepalive().unwrap());
            assert_eq!(socket.tcp_keepalive_time().unwrap(), KEEPALIVE_IDLE);
            assert_eq!(socket.tcp_keepalive_interval().unwrap(), KEEPALIVE_INTERVAL);
            assert_eq!(socket.tcp_user_timeout().unwrap().filter(|timeout| !timeout.is_zero()), user_timeout);
        }
        assert_eq!(SockRef::from(&accepted).tcp_keepalive_retries().unwrap(), KEEPALIVE_PROBES);
    }
}
