//! The path MTU, as far as the kernel has learned it.

use std::net::{Ipv4Addr, SocketAddr, UdpSocket};

use nix::sys::socket::{getsockopt, sockopt};

/// The largest packet on the path to an address, by its route, its interface and the responses to earlier
/// packets; `None`: the kernel does not know. Nothing is sent.
pub(crate) fn path_mtu(to: SocketAddr) -> Option<u32> {
    // For IPv6 it takes an option that no safe wrapper has.
    if to.is_ipv6() {
        return None;
    }
    let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).ok()?;
    socket.connect(to).ok()?;
    u32::try_from(getsockopt(&socket, sockopt::IpMtu).ok()?).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_loopback_carries_what_its_interface_says() {
        let mtu = path_mtu("127.0.0.1:9".parse().unwrap());
        assert!(mtu.is_some_and(|mtu| mtu >= 1280), "{mtu:?}");
    }
}
