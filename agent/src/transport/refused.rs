//! "Nothing listens here": what comes back when a datagram reaches a machine whose agent is gone.
//!
//! The socket is shared by all peers and so never connected, and the kernel tells such a socket of ICMP
//! errors only when asked to (`IP_RECVERR`, ip(7)): each is queued with where the datagram went and with its
//! first bytes. A socket connected to each master would hear the same, at the price of a port for each, which
//! firewalls and NAT between nodes would have to know.
//!
//! Nobody has sealed an ICMP message, so what it quotes has to be a datagram that this node has just sent:
//! whoever has not seen it can't make one up. Who has seen it could have dropped it as well.

use std::io::{self, IoSliceMut};
use std::net::{SocketAddr, UdpSocket};
use std::os::fd::AsRawFd;

use nix::errno::Errno;
use nix::sys::socket::{
    ControlMessageOwned, MsgFlags, SockaddrLike, SockaddrStorage, recvmsg, setsockopt, sockopt,
};
use proto::transport::DatagramHeader;
use socket2::Socket;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use super::addresses::unmapped;

/// As much of a quoted datagram as is read: more than its header.
const QUOTED: usize = 64;

/// Asks the kernel to queue errors. Where it refuses, an agent that has ended is missed a moment later.
pub(super) fn ask_for(socket: &Socket) {
    let _ = setsockopt(socket, sockopt::Ipv4RecvErr, &true);
    // A socket for both families takes both options, one for IPv4 alone refuses this one.
    let _ = setsockopt(socket, sockopt::Ipv6RecvErr, &true);
}

/// The next refusal of a datagram that was `sent`: where it went. May be dropped anywhere.
pub(super) async fn next(socket: &AsyncFd<UdpSocket>, sent: impl Fn(&DatagramHeader) -> bool) -> SocketAddr {
    loop {
        match socket.async_io(Interest::ERROR, |socket| read(socket, &sent)).await {
            Ok(Some(at)) => return at,
            Ok(None) => {}
            // A kernel that has no such queue: there is nothing to wait for.
            Err(_) => std::future::pending().await,
        }
    }
}

/// Takes one error off the queue; none when it is another one, or about nothing that was sent.
fn read(socket: &UdpSocket, sent: impl Fn(&DatagramHeader) -> bool) -> io::Result<Option<SocketAddr>> {
    let mut quoted = [0; QUOTED];
    // A sock_extended_err and the address of who sent the message.
    let mut space = nix::cmsg_space!([u8; 64]);
    let flags = MsgFlags::MSG_ERRQUEUE | MsgFlags::MSG_DONTWAIT;
    let (refused, to, length) = {
        let mut parts = [IoSliceMut::new(&mut quoted)];
        let message = recvmsg::<SockaddrStorage>(socket.as_raw_fd(), &mut parts, Some(&mut space), flags)?;
        let refused = message.cmsgs()?.any(|part| match part {
            ControlMessageOwned::Ipv4RecvErr(error, _) | ControlMessageOwned::Ipv6RecvErr(error, _) => {
                error.ee_errno == Errno::ECONNREFUSED as u32
            }
            _ => false,
        });
        (refused, message.address, message.bytes)
    };
    let header = quoted.get(..length).and_then(DatagramHeader::parse).map(|(header, _)| header);
    Ok(to.as_ref().and_then(address).filter(|_| refused && header.is_some_and(|header| sent(&header))))
}

fn address(of: &SockaddrStorage) -> Option<SocketAddr> {
    let at = match of.family()? {
        nix::sys::socket::AddressFamily::Inet => SocketAddr::V4((*of.as_sockaddr_in()?).into()),
        _ => SocketAddr::V6((*of.as_sockaddr_in6()?).into()),
    };
    Some(unmapped(at))
}
