//! Socket options of both sides of a connection.

use std::os::fd::AsFd;
use std::time::Duration;

use socket2::{SockRef, TcpKeepalive};

/// Idle time before the first keepalive probe. With the interval and the count below, a client that vanished is
/// noticed after 30 s; the usual defaults take two hours. For a backend it is [`USER_TIMEOUT`], which replaces
/// the count (tcp(7)).
pub(super) const KEEPALIVE_IDLE: Duration = Duration::from_secs(15);
pub(super) const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(5);
pub(super) const KEEPALIVE_PROBES: u32 = 3;

/// How long data sent to a backend may stay unacknowledged. Keepalive does not run while data is in flight, and
/// retransmission gives up after 15 minutes, for which clients hang (k8s#41916). Only on the backend's side: it
/// also ends connections whose peer keeps its window closed, which a paused client may do.
///
/// As long as the idle time and all probes together: for an idle connection the kernel counts from the last
/// packet received, so with less a single lost probe would end it, and of many thousand connections some always
/// lose one.
pub(super) const USER_TIMEOUT: Duration = Duration::from_secs(30);

/// A first write of up to this is one packet on every path, and goes out at once: nothing is unacknowledged yet. The
/// last packet of a longer one would wait for the acknowledgment of those before it.
pub(super) const ONE_PACKET: usize = 500;

/// Options of both sides but one. One that the kernel does not know does not prevent serving.
pub(super) fn tune(socket: &SockRef<'_>, probes: Option<u32>) {
    let mut keepalive = TcpKeepalive::new().with_time(KEEPALIVE_IDLE).with_interval(KEEPALIVE_INTERVAL);
    if let Some(probes) = probes {
        keepalive = keepalive.with_retries(probes);
    }
    let _ = socket.set_tcp_keepalive(&keepalive);
}

/// Small writes are sent whatever is unacknowledged.
pub(super) fn send_at_once(socket: impl AsFd) {
    let _ = SockRef::from(&socket.as_fd()).set_tcp_nodelay(true);
}

/// Options of a connection to a backend that has lived for a while: they find out what becomes of it when nothing is
/// heard for long, and one that ends at once does without their five calls.
pub(super) fn tune_backend(socket: impl AsFd) {
    let socket = socket.as_fd();
    let socket = SockRef::from(&socket);
    tune(&socket, None);
    let _ = socket.set_tcp_user_timeout(Some(USER_TIMEOUT));
}
