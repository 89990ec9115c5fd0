//! Sockets that listen, connects to backends, and how a side is reset.

use std::io;
use std::net::SocketAddr;
use std::os::fd::AsFd;
use std::time::Duration;

use rustix::io::Errno;
use rustix::net::SendFlags;
use socket2::{Domain, Protocol, SockRef, Socket, Type};

use super::options::{KEEPALIVE_PROBES, ONE_PACKET, send_at_once, tune};
use super::stream::Stream;

/// Clients that may wait to be accepted; the kernel lowers it to net.core.somaxconn.
const BACKLOG: i32 = 4096;

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
    send_at_once(&socket);
    tune(&SockRef::from(&socket), Some(KEEPALIVE_PROBES));
    socket.bind(&address.into())?;
    Ok(socket)
}

/// A started connect to a backend.
pub(super) enum PendingConnect {
    /// It has completed already, as happens within one machine, and so many of the client's first bytes were sent.
    Done(Stream, usize),
    UnderWay(Stream),
}

impl PendingConnect {
    /// Connects; `first`: what the client has sent already, which goes out at once where it can.
    pub(super) fn begin(address: SocketAddr, first: &[u8]) -> io::Result<PendingConnect> {
        let kind = Type::STREAM.nonblocking();
        let socket = Socket::new(Domain::for_address(address), kind, Some(Protocol::TCP))?;
        if !first.is_empty() {
            // The last packet of the handshake then goes with these bytes.
            let _ = socket.set_tcp_quickack(false);
        }
        // The first call on a non-blocking socket never reports completion; the next does, and if there is something
        // to send, that is the next.
        let mut sent = 0;
        let mut is_done = is_done(socket.connect(&address.into()), Errno::INPROGRESS)?;
        if first.is_empty() {
            is_done = is_done || self::is_done(socket.connect(&address.into()), Errno::ALREADY)?;
        } else {
            if first.len() > ONE_PACKET {
                send_at_once(&socket);
            }
            match rustix::net::send(&socket, first, SendFlags::NOSIGNAL) {
                Ok(n) => (sent, is_done) = (n, true),
                Err(Errno::AGAIN | Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
        let stream = Stream::dialled(socket, is_done, first.len())?;
        Ok(if is_done { PendingConnect::Done(stream, sent) } else { PendingConnect::UnderWay(stream) })
    }

    /// Waits until it has completed.
    pub(super) async fn finish(self) -> io::Result<Stream> {
        match self {
            PendingConnect::Done(stream, _) => Ok(stream),
            PendingConnect::UnderWay(stream) => stream.connected().await.map(|()| stream),
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
pub(super) fn reset_on_drop(socket: &impl AsFd) {
    let _ = SockRef::from(socket).set_linger(Some(Duration::ZERO));
}

/// Writes a few bytes to a socket that has just connected and so has room for them; false when it broke.
pub(super) fn write_at_once(stream: &Stream, bytes: &[u8]) -> bool {
    bytes.is_empty() || stream.write_now(bytes).is_ok_and(|n| n == bytes.len())
}

/// Whether an error means that this process or machine is out of descriptors.
pub(super) fn is_starved(error: &io::Error) -> bool {
    matches!(Errno::from_io_error(error), Some(Errno::MFILE | Errno::NFILE))
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;

    use super::super::options::{KEEPALIVE_IDLE, KEEPALIVE_INTERVAL, USER_TIMEOUT};
    use super::super::stream::Listener;
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

    /// A connection as the proxy has it on both sides.
    async fn pair() -> (Stream, Stream) {
        let listener =
            Listener::new(listen(SocketAddr::from(([127, 0, 0, 1], 0)), 1, false).unwrap().remove(0));
        let address = SockRef::from(&listener).local_addr().unwrap().as_socket().unwrap();
        let dialled = PendingConnect::begin(address, &[]).unwrap().finish().await.unwrap();
        (dialled, listener.accept().await.unwrap().0)
    }

    async fn within<T>(work: impl Future<Output = T>) -> T {
        tokio::time::timeout(Duration::from_secs(5), work).await.unwrap()
    }

    #[tokio::test]
    async fn the_next_read_finds_the_rest() {
        let (dialled, accepted) = pair().await;
        let mut eight = [0; 8];
        // A short read first: the rest is awaited.
        assert_eq!(dialled.write_now(b"0").unwrap(), 1);
        let read = within(poll_fn(|cx| accepted.poll_read(cx, &mut eight))).await.unwrap();
        assert_eq!((read.bytes, read.is_last), (1, false));
        assert_eq!(dialled.write_now(b"12345678").unwrap(), 8);
        within(poll_fn(|cx| accepted.poll_read_ready(cx))).await.unwrap();
        let mut four = [0; 4];
        assert_eq!(accepted.read_now(&mut four).unwrap().unwrap().bytes, 4);
        let rest = within(poll_fn(|cx| accepted.poll_read(cx, &mut four))).await.unwrap();
        assert_eq!((rest.bytes, &four), (4, b"5678"));
        assert_eq!(accepted.read_now(&mut four).unwrap(), None);
    }

    #[tokio::test]
    async fn an_end_that_has_come_with_the_last_bytes_is_known() {
        let (dialled, accepted) = pair().await;
        let mut eight = [0; 8];
        assert_eq!(accepted.read_now(&mut eight).unwrap(), None);
        let waits = within(poll_fn(|cx| accepted.poll_read_ready(cx)));
        let (ready, ()) = tokio::join!(waits, async {
            dialled.write_now(b"last").unwrap();
            dialled.finish().unwrap();
        });
        ready.unwrap();
        // The event of FIN may be a moment behind that of the bytes.
        tokio::time::sleep(Duration::from_millis(50)).await;
        let read = accepted.read_now(&mut eight).unwrap().unwrap();
        assert_eq!((read.bytes, read.is_last), (4, true));
        assert_eq!(accepted.read_now(&mut eight).unwrap().unwrap().bytes, 0);
        // A reset is no end, whatever had come before.
        let (dialled, accepted) = pair().await;
        let waits = within(poll_fn(|cx| accepted.poll_read_ready(cx)));
        let (ready, ()) = tokio::join!(waits, async {
            dialled.write_now(b"last").unwrap();
            reset_on_drop(&dialled);
            drop(dialled);
        });
        ready.unwrap();
        tokio::time::sleep(Duration::from_millis(50)).await;
        let read = accepted.read_now(&mut eight).unwrap().unwrap();
        assert_eq!((read.bytes, read.is_last), (4, false));
        assert_eq!(accepted.read_now(&mut eight).unwrap_err().kind(), io::ErrorKind::ConnectionReset);
    }

    #[tokio::test]
    async fn what_the_client_has_sent_goes_out_with_the_connect() {
        let listener =
            Listener::new(listen(SocketAddr::from(([127, 0, 0, 1], 0)), 1, false).unwrap().remove(0));
        let address = SockRef::from(&listener).local_addr().unwrap().as_socket().unwrap();
        for first in [&[1; 8][..], &[2; 2_000]] {
            let Ok(PendingConnect::Done(dialled, sent)) = PendingConnect::begin(address, first) else {
                panic!("within one machine it is connected at once")
            };
            assert_eq!(sent, first.len());
            let (accepted, _) = within(listener.accept()).await.unwrap();
            let mut found = vec![0; first.len()];
            let read = within(poll_fn(|cx| accepted.poll_read(cx, &mut found))).await.unwrap();
            assert_eq!((read.bytes, &*found), (first.len(), first));
            // A second write that waited for the first's acknowledgment would wait for 40 ms.
            assert_eq!(SockRef::from(&dialled).tcp_nodelay().unwrap(), first.len() > ONE_PACKET);
            dialled.write_now(b"second").unwrap();
            assert!(SockRef::from(&dialled).tcp_nodelay().unwrap());
        }
    }

    #[tokio::test]
    async fn both_sides_have_their_options() {
        let (dialled, accepted) = pair().await;
        let has = |stream: &Stream| {
            let socket = SockRef::from(stream);
            (
                socket.tcp_nodelay().unwrap() && socket.keepalive().unwrap(),
                socket.tcp_keepalive_time().unwrap(),
                socket.tcp_keepalive_interval().unwrap(),
                socket.tcp_user_timeout().unwrap().filter(|timeout| !timeout.is_zero()),
            )
        };
        let expected = |timeout| (true, KEEPALIVE_IDLE, KEEPALIVE_INTERVAL, timeout);
        assert_eq!(has(&accepted), expected(None));
        assert_eq!(SockRef::from(&accepted).tcp_keepalive_retries().unwrap(), KEEPALIVE_PROBES);
        // A backend's come when it has lived for a while, though nothing happens on it.
        let come = async {
            while has(&dialled) != expected(Some(USER_TIMEOUT)) {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        within(come).await;
    }
}
