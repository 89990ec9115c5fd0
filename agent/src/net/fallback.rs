//! Routes and addresses without netlink, for processes that may not open such a socket. The kernel's socket
//! calls still show which address it would use, and which are local.

use std::fs;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};

use super::{NetError, Route};

/// The route that the kernel would use. Connecting a UDP socket sends nothing.
pub(super) fn route_to(to: IpAddr) -> Result<Route, NetError> {
    let unspecified: IpAddr =
        if to.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
    let asked = UdpSocket::bind((unspecified, 0)).and_then(|socket| {
        // Any port will do, it is not part of a route.
        socket.connect(SocketAddr::new(to, 9))?;
        socket.local_addr()
    });
    let source = asked.map_err(|error| NetError::NoRoute { to, why: error.to_string() })?.ip();
    let interface = match (source, to) {
        (IpAddr::V4(_), IpAddr::V4(to)) if !source.is_loopback() => {
            fs::read_to_string("/proc/net/route").ok().and_then(|table| longest_match(&table, to))
        }
        (IpAddr::V6(source), _) => {
            fs::read_to_string("/proc/net/if_inet6").ok().and_then(|table| holder(&table, source))
        }
        _ => Some("lo".to_owned()),
    };
    let why = "the interface is not listed in /proc/net".to_owned();
    let interface = interface.ok_or(NetError::Answer { act: "find the interface of a route", why })?;
    Ok(Route { source, interface })
}

/// Whether the address is this node's: only local ones can be bound.
pub(crate) fn is_here(ip: IpAddr) -> bool {
    UdpSocket::bind((ip, 0)).is_ok()
}

/// The interface of the narrowest route in `/proc/net/route` that covers `to`.
fn longest_match(table: &str, to: Ipv4Addr) -> Option<String> {
    // Words in the machine's byte order, as hex: name, destination, gateway, flags, …, mask.
    let word = |s: &str| u32::from_str_radix(s, 16).ok().map(|n| u32::from_be_bytes(n.to_ne_bytes()));
    let routes = table.lines().skip(1).filter_map(|line| {
        let fields: Vec<&str> = line.split_whitespace().collect();
        let (net, mask) = (word(fields.get(1)?)?, word(fields.get(7)?)?);
        (to.to_bits() & mask == net).then(|| (mask, fields[0].to_owned()))
    });
    routes.max_by_key(|(mask, _)| *mask).map(|(_, name)| name)
}

/// The interface in `/proc/net/if_inet6` that has the address.
fn holder(table: &str, ip: Ipv6Addr) -> Option<String> {
    let wanted = format!("{:032x}", ip.to_bits());
    let line = table.lines().find(|line| line.starts_with(&wanted))?;
    line.split_whitespace().nth(5).map(str::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_narrowest_route_wins() {
        let table = "Iface\tDestination\tGateway\tFlags\tRefCnt\tUse\tMetric\tMask\tMTU\tWindow\tIRTT\n\
                     eth0\t00000000\t010200C0\t0003\t0\t0\t0\t00000000\t0\t0\t0\n\
                     wg0\t0000000A\t00000000\t0001\t0\t0\t0\t000000FF\t0\t0\t0\n\
                     cni0\t00002A0A\t00000000\t0001\t0\t0\t0\t0000FFFF\t0\t0\t0\n\
                     broken line\n";
        let cases = [("10.1.2.3", "wg0"), ("10.42.0.1", "cni0"), ("192.0.2.7", "eth0")];
        for (to, interface) in cases {
            if cfg!(target_endian = "little") {
                assert_eq!(longest_match(table, to.parse().unwrap()).as_deref(), Some(interface), "{to}");
            }
        }
        assert_eq!(longest_match("Iface\n", "10.1.2.3".parse().unwrap()), None);
    }

    #[test]
    fn an_ipv6_address_is_found_on_its_interface() {
        let table = "00000000000000000000000000000001 01 80 10 80       lo\n\
                     fd000000000000000000000000000002 04 40 00 80     eth0\n";
        assert_eq!(holder(table, "fd00::2".parse().unwrap()).as_deref(), Some("eth0"));
        assert_eq!(holder(table, "fd00::3".parse().unwrap()), None);
    }

    #[test]
    fn a_loopback_address_is_here_and_on_lo() {
        let to: IpAddr = "127.0.0.7".parse().unwrap();
        assert_eq!(route_to(to).unwrap().interface, "lo");
        assert!(is_here(to));
        assert!(!is_here("198.51.100.77".parse().unwrap()));
    }
}
