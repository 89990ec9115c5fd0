//! The UDP socket that all peers share.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::os::fd::{AsFd, BorrowedFd};

use proto::transport::DatagramHeader;
use rustix::net::{RecvFlags, SendFlags, recvfrom, sendto};
use socket2::{Domain, Protocol, Socket, Type};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use super::addresses::{for_socket, unmapped};
use super::refused;
use crate::netlink::watched;

/// Receive buffer asked of the kernel: a second of datagrams at 5,000 a second.
const RECEIVE_BUFFER: usize = 1 << 20;

/// Datagrams that are read before others of the agent have their turn.
const BATCH: usize = 64;

/// A socket of either family; both families where no address is given and the kernel has IPv6.
pub(super) fn socket(
    address: Option<IpAddr>,
    kind: Type,
    protocol: Protocol,
    port: u16,
) -> io::Result<(Socket, SocketAddr)> {
    let make = |ip: IpAddr| -> io::Result<(Socket, SocketAddr)> {
        let socket = Socket::new(Domain::for_address((ip, port).into()), kind, Some(protocol))?;
        if ip.is_ipv6() {
            socket.set_only_v6(address.is_some())?;
        }
        // An address that comes later than the agent, as at boot: its packets arrive once it is there.
        let _ = if ip.is_ipv6() { socket.set_freebind_v6(true) } else { socket.set_freebind_v4(true) };
        socket.set_nonblocking(true)?;
        Ok((socket, SocketAddr::new(ip, port)))
    };
    match address {
        Some(ip) => make(ip),
        None => make(IpAddr::V6(Ipv6Addr::UNSPECIFIED)).or_else(|_| make(IpAddr::V4(Ipv4Addr::UNSPECIFIED))),
    }
}

impl AsFd for DatagramSocket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.udp.get_ref().as_fd()
    }
}

/// The bound socket. Addresses are IPv4 or IPv6 here, whatever its family makes of them.
pub(super) struct DatagramSocket {
    udp: AsyncFd<UdpSocket>,
    /// It takes IPv6 addresses.
    v6: bool,
}

impl DatagramSocket {
    /// Binds the port.
    pub(super) fn bind(address: Option<IpAddr>, port: u16) -> io::Result<DatagramSocket> {
        let (socket, at) = socket(address, Type::DGRAM, Protocol::UDP, port)?;
        // A smaller buffer than asked for is no reason not to start.
        let _ = socket.set_recv_buffer_size(RECEIVE_BUFFER);
        // What waits in the kernel for a neighbour that does not answer takes this room from all others.
        let _ = socket.set_send_buffer_size(RECEIVE_BUFFER);
        refused::ask_for(&socket);
        match socket.bind(&at.into()) {
            // A kernel with IPv6 switched off still makes the socket and refuses the address.
            Err(_) if address.is_none() && at.is_ipv6() => {
                return DatagramSocket::bind(Some(IpAddr::V4(Ipv4Addr::UNSPECIFIED)), port);
            }
            bound => bound?,
        }
        DatagramSocket::of(socket.into())
    }

    /// A bound socket with its options set.
    pub(super) fn of(socket: UdpSocket) -> io::Result<DatagramSocket> {
        let v6 = socket.local_addr()?.is_ipv6();
        Ok(DatagramSocket { udp: watched(socket)?, v6 })
    }

    /// Where it is bound.
    pub(super) fn local(&self) -> io::Result<SocketAddr> {
        Ok(unmapped(self.udp.get_ref().local_addr()?))
    }

    /// Waits for datagrams, and takes those that are there. An error is about an earlier send (ICMP), and nothing to do
    /// with what comes next.
    pub(super) async fn receive(
        &self,
        buffer: &mut [u8],
        mut take: impl FnMut(&mut [u8], SocketAddr),
    ) -> io::Result<()> {
        let read = |socket: &UdpSocket| {
            for _ in 0..BATCH {
                let (length, _, from) = recvfrom(socket, &mut *buffer, RecvFlags::empty())?;
                let from = from.and_then(|from| SocketAddr::try_from(from).ok());
                if let (Some(from), Some(datagram)) = (from, buffer.get_mut(..length)) {
                    take(datagram, unmapped(from));
                }
            }
            Ok(())
        };
        self.udp.async_io(Interest::READABLE, read).await
    }

    /// Sends a datagram, and never waits. False: the kernel did not take it.
    pub(super) fn send(&self, to: SocketAddr, datagram: &[u8]) -> bool {
        // Straight to the kernel: tokio would refuse the first datagram, since it has not been told yet that
        // the socket can be written to.
        let to = for_socket(to, self.v6);
        let send = || sendto(self.udp.get_ref(), datagram, SendFlags::DONTWAIT, &to);
        // The kernel also hands out here that an earlier datagram, to whomever, was refused, and then sends
        // nothing: once more, since this one may be fine.
        send().or_else(|_| send()).is_ok()
    }

    /// Where the next datagram went that came back refused, if `sent` knows it by its header. May be dropped
    /// anywhere.
    pub(super) async fn refused(&self, sent: impl Fn(&DatagramHeader) -> bool) -> SocketAddr {
        refused::next(&self.udp, sent).await
    }
}
