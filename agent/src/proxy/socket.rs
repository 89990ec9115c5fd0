//! Options of the two legs of a connection, and how a leg is reset.

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use socket2::{Domain, Protocol, SockRef, Socket, TcpKeepalive, Type};
use tokio::net::{TcpSocket, TcpStream};

/// Idle time before the first keepalive probe. With the interval and the count below, a peer that vanished
/// is noticed after 30 s; the usual defaults take two hours.
const KEEPALIVE_IDLE: Duration = Duration::from_secs(15);
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(5);
const KEEPALIVE_PROBES: u32 = 3;

/// How long data sent to a backend may stay unacknowledged. Keepalive does not run while data is under way,
/// and retransmission gives up after 15 minutes, for which clients hang (k8s#41916). Only on the backend's
/// leg: it also ends connections whose peer keeps its window shut, which a paused client may do.
const USER_TIMEOUT: Duration = Duration::from_secs(20);

/// Clients that may wait to be accepted; the kernel lowers it to net.core.somaxconn.
const BACKLOG: i32 = 4096;

/// Options that both legs have. One that the kernel does not know is no reason not to serve.
fn tune(socket: &SockRef<'_>) {
    let keepalive = TcpKeepalive::new()
        .with_time(KEEPALIVE_IDLE)
        .with_interval(KEEPALIVE_INTERVAL)
        .with_retries(KEEPALIVE_PROBES);
    let _ = socket.set_tcp_nodelay(true);
    let _ = socket.set_tcp_keepalive(&keepalive);
}

/// Sockets that listen at the same address. Accepted sockets inherit their options, which saves four calls
/// for each client.
pub(super) fn listen(address: SocketAddr, count: usize) -> io::Result<Vec<std::net::TcpListener>> {
    let first = bound(address, false)?;
    // Only now, so that an address that somebody else listens at is not shared but taken.
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
    // Connections of an earlier process in TIME_WAIT must not hold up a restart.
    socket.set_reuse_address(true)?;
    if shared {
        socket.set_reuse_port(true)?;
    }
    if address.is_ipv6() {
        // Each address stands for itself: [::] and 0.0.0.0 may both be listed.
        socket.set_only_v6(true)?;
    }
    tune(&SockRef::from(&socket));
    socket.bind(&address.into())?;
    Ok(socket)
}

/// Connects to a backend.
pub(super) async fn connect(address: SocketAddr) -> io::Result<TcpStream> {
    let socket = if address.is_ipv6() { TcpSocket::new_v6()? } else { TcpSocket::new_v4()? };
    let options = SockRef::from(&socket);
    tune(&options);
    let _ = options.set_tcp_user_timeout(Some(USER_TIMEOUT));
    socket.connect(address).await
}

/// Makes dropping the socket send RST: the peer learns at once, and nothing lingers in the kernel.
pub(super) fn reset_on_drop(stream: &TcpStream) {
    let _ = SockRef::from(stream).set_linger(Some(Duration::ZERO));
}

/// Writes a few bytes to a socket that has just connected, and so has room for them; false when it broke.
pub(super) fn write_at_once(stream: &TcpStream, bytes: &[u8]) -> bool {
    // Straight to the kernel: tokio may not have heard yet that the socket can be written to.
    bytes.is_empty() || SockRef::from(stream).send(bytes).is_ok_and(|n| n == bytes.len())
}

/// Whether an error is one of this process or machine being out of descriptors.
pub(super) fn is_starved(error: &io::Error) -> bool {
    use rustix::io::Errno;
    matches!(Errno::from_io_error(error), Some(Errno::MFILE | Errno::NFILE))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_shared_among_our_own_threads_and_with_nobody_else() {
        let sockets = listen(SocketAddr::from(([127, 0, 0, 1], 0)), 3).unwrap();
        let address = sockets[0].local_addr().unwrap();
        assert!(sockets.iter().all(|socket| socket.local_addr().unwrap() == address));
        assert_eq!(listen(address, 3).unwrap_err().kind(), io::ErrorKind::AddrInUse);
        drop(sockets);
        listen(address, 3).unwrap();
    }

    #[tokio::test]
    async fn both_legs_have_their_options() {
        let mut listeners = listen(SocketAddr::from(([127, 0, 0, 1], 0)), 1).unwrap();
        let listener = tokio::net::TcpListener::from_std(listeners.pop().unwrap()).unwrap();
        let dialled = connect(listener.local_addr().unwrap()).await.unwrap();
        let (accepted, _) = listener.accept().await.unwrap();
        for (stream, user_timeout) in [(&dialled, Some(USER_TIMEOUT)), (&accepted, None)] {
            let socket = SockRef::from(stream);
            assert!(socket.tcp_nodelay().unwrap() && socket.keepalive().unwrap());
            assert_eq!(socket.tcp_keepalive_time().unwrap(), KEEPALIVE_IDLE);
            assert_eq!(socket.tcp_keepalive_interval().unwrap(), KEEPALIVE_INTERVAL);
            assert_eq!(socket.tcp_keepalive_retries().unwrap(), KEEPALIVE_PROBES);
            assert_eq!(socket.tcp_user_timeout().unwrap().filter(|timeout| !timeout.is_zero()), user_timeout);
        }
    }
}
