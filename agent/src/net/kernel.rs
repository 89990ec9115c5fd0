//! Queries to the kernel by netlink. Each opens its own socket: they are rare, and nothing has to be kept
//! open or repaired in between.

use std::io;
use std::net::IpAddr;

use nix::libc::{
    IFA_F_DADFAILED, IFA_F_DEPRECATED, IFA_F_OPTIMISTIC, IFA_F_SECONDARY, IFA_F_TENTATIVE, RTM_GETADDR,
    RTM_GETLINK, RTM_GETROUTE, RTN_LOCAL, RTN_UNICAST,
};
use rustix::io::Errno;

use super::{Interface, InterfaceAddress, NetError, fallback};
use crate::netlink::route::{
    AddressMessage, EVERY_ADDRESS, IFF_BROADCAST, IFF_LOOPBACK, IFF_NOARP, IFF_POINTOPOINT, IFF_RUNNING,
    IFF_UP, LinkMessage, RouteMessage,
};
use crate::netlink::{Netlink, ROUTE, errno};

/// Names of route types (`linux/rtnetlink.h`); only unicast and local ones lead anywhere.
const ROUTE_KINDS: [&str; 10] = [
    "unspecified",
    "unicast",
    "local",
    "broadcast",
    "anycast",
    "multicast",
    "blackhole",
    "unreachable",
    "prohibit",
    "throw",
];

/// The kernel's route to an address.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Route {
    /// The source address of packets.
    pub(crate) source: IpAddr,
    /// The outgoing interface; the loopback for an address of this node.
    pub(crate) interface: String,
}

/// All interfaces with their addresses, in the kernel's order.
pub(crate) fn interfaces() -> Result<Vec<Interface>, NetError> {
    let mut kernel = open()?;
    let mut all =
        kernel.dump(RTM_GETLINK, &LinkMessage::ask(None, None), interface_of).map_err(links_failed)?;
    let addresses = addresses(&mut kernel)?;
    all.iter_mut().for_each(|interface| hand_out(interface, &addresses));
    Ok(all)
}

/// One interface; None when there is none of this name.
pub(crate) fn interface(name: &str) -> Result<Option<Interface>, NetError> {
    let mut kernel = open()?;
    let found = match kernel.get(RTM_GETLINK, &LinkMessage::ask(None, Some(name)), interface_of) {
        Err(error) if errno(&error) == Some(Errno::NODEV) => None,
        found => found.map_err(links_failed)?,
    };
    let Some(mut interface) = found else { return Ok(None) };
    hand_out(&mut interface, &addresses(&mut kernel)?);
    Ok(Some(interface))
}

/// The route to an address, with the source address.
pub(crate) fn route_to(to: IpAddr) -> Result<Route, NetError> {
    match route_by_netlink(to) {
        Err(NetError::NotPermitted { .. }) => fallback::route_to(to),
        answer => answer,
    }
}

fn route_by_netlink(to: IpAddr) -> Result<Route, NetError> {
    let act = "ask for the route";
    let no_route = |why: String| NetError::NoRoute { to, why };
    let missing = |why: &str| NetError::Answer { act, why: why.to_owned() };
    let mut kernel = open()?;
    let way = kernel.get(RTM_GETROUTE, &RouteMessage::ask(to), RouteMessage::read);
    let way = way.map_err(|source| match errno(&source) {
        Some(_) => no_route(source.to_string()),
        None => NetError::Ask { act, source },
    })?;
    let way = way.ok_or_else(|| missing("no answer"))?;
    if way.kind != RTN_UNICAST && way.kind != RTN_LOCAL {
        let kind = ROUTE_KINDS.get(usize::from(way.kind)).unwrap_or(&"unknown");
        return Err(no_route(format!("{kind} route")));
    }
    let source = way.source.ok_or_else(|| no_route("no source address".to_owned()))?;
    let ask = LinkMessage::ask(Some(way.index), None);
    let link = kernel.get(RTM_GETLINK, &ask, interface_of).map_err(links_failed)?;
    let link = link.ok_or_else(|| missing("its interface is gone"))?;
    Ok(Route { source, interface: link.name })
}

fn open() -> Result<Netlink, NetError> {
    Netlink::open(ROUTE).map_err(|source| NetError::NotPermitted { source })
}

/// An address, and the index of the interface that has it.
type HeldAddress = (u32, InterfaceAddress);

fn addresses(kernel: &mut Netlink) -> Result<Vec<HeldAddress>, NetError> {
    let failed = |source| NetError::Ask { act: "list the addresses", source };
    kernel.dump(RTM_GETADDR, &EVERY_ADDRESS, address_of).map_err(failed)
}

fn hand_out(interface: &mut Interface, all: &[HeldAddress]) {
    let own = all.iter().filter(|(index, _)| *index == interface.index);
    interface.addresses = own.map(|(_, address)| *address).collect();
}

/// An interface without its addresses.
fn interface_of(kind: u16, body: &[u8]) -> Option<Interface> {
    let link = LinkMessage::read(kind, body)?;
    let has = |flag| link.flags & flag != 0;
    Some(Interface {
        up: has(IFF_UP) && has(IFF_RUNNING),
        loopback: has(IFF_LOOPBACK),
        point_to_point: has(IFF_POINTOPOINT),
        broadcast: has(IFF_BROADCAST),
        no_arp: has(IFF_NOARP),
        name: link.name.unwrap_or_else(|| format!("#{}", link.index)),
        index: link.index,
        kind: link.kind,
        mtu: link.mtu.unwrap_or(0),
        addresses: Vec::new(),
    })
}

/// A usable address.
fn address_of(kind: u16, body: &[u8]) -> Option<HeldAddress> {
    let AddressMessage { index, ip, prefix, flags, .. } =
        AddressMessage::read(kind, body).filter(|found| !found.gone)?;
    let unproven = flags & IFA_F_TENTATIVE != 0 && flags & IFA_F_OPTIMISTIC == 0;
    if unproven || flags & IFA_F_DADFAILED != 0 {
        return None;
    }
    // The bit for secondary (IPv4) means temporary for IPv6.
    let temporary = flags & (IFA_F_DEPRECATED | IFA_F_SECONDARY) != 0;
    Some((index, InterfaceAddress { ip, prefix, temporary }))
}

fn links_failed(source: io::Error) -> NetError {
    NetError::Ask { act: "list the interfaces", source }
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use nix::libc::{RTM_NEWADDR, RTM_NEWLINK};

    use super::*;
    use crate::netlink::put;
    use crate::testing::in_namespaces;

    #[test]
    fn the_loopback_is_found_with_its_address() {
        let all = interfaces().unwrap();
        let lo = all.iter().find(|i| i.name == "lo").unwrap();
        assert!(lo.up && lo.loopback && !lo.vpn_like() && lo.mtu > 0 && lo.kind.is_none(), "{lo:?}");
        for held in ["127.0.0.1", "127.0.0.9", "127.200.3.4"] {
            assert!(lo.holds(held.parse().unwrap()), "{held}");
        }
        assert!(!lo.holds("10.0.0.1".parse().unwrap()));
        assert_eq!(interface("lo").unwrap().as_ref(), Some(lo));
        assert_eq!(interface("no-such-one").unwrap(), None);
    }

    #[test]
    fn the_route_to_a_loopback_address_starts_there() {
        let to: IpAddr = "127.0.0.1".parse().unwrap();
        assert_eq!(route_to(to).unwrap(), Route { source: to, interface: "lo".to_owned() });
    }

    fn run_ip(lines: &[&str]) {
        for line in lines {
            let status = Command::new("ip").args(line.split(' ')).status().expect("needs `ip` of iproute2");
            assert!(status.success(), "ip {line}");
        }
    }

    #[test]
    fn queries_are_right_in_a_network_of_their_own() {
        let test = "net::kernel::tests::queries_are_right_in_a_network_of_their_own";
        if in_namespaces(test, &["--net"], "ip link set lo up").is_none() {
            return;
        }
        let ip = |s: &str| -> IpAddr { s.parse().unwrap() };
        let route = |to: &str| route_to(ip(to));
        for to in ["10.9.0.7", "fd09::7"] {
            let error = route(to).unwrap_err();
            assert!(matches!(error, NetError::NoRoute { .. }), "{error:?}");
            assert!(
                error.to_string().starts_with(&format!("no route to {to} (Network is unreach")),
                "{error}"
            );
        }
        run_ip(&[
            "link add w0 mtu 1420 type veth peer name w1",
            "addr add 10.9.0.1/24 dev w0",
            "addr add fd09::1/64 dev w0 nodad",
            "addr add 10.8.0.1 peer 10.8.0.2 dev w1",
        ]);
        let down = interface("w0").unwrap().unwrap();
        assert!(!down.up);
        run_ip(&["link set w0 up"]);
        assert!(!interface("w0").unwrap().unwrap().up, "no carrier");
        run_ip(&["link set w1 up", "route add blackhole 10.7.0.0/16"]);
        let up = interface("w0").unwrap().unwrap();
        assert!(up.up && up.broadcast && up.mtu == 1420 && up.kind.as_deref() == Some("veth"), "{up:?}");
        assert!(up.holds(ip("10.9.0.1")) && up.holds(ip("fd09::1")) && !up.holds(ip("10.9.0.2")));
        let peer = interface("w1").unwrap().unwrap();
        assert!(peer.holds(ip("10.8.0.1")) && !peer.holds(ip("10.8.0.2")), "{peer:?}");
        // The route uses w0, and the fallback finds the same without netlink.
        for (to, source) in [("10.9.0.7", "10.9.0.1"), ("fd09::7", "fd09::1")] {
            let expected = Route { source: ip(source), interface: "w0".to_owned() };
            assert_eq!(route(to).unwrap(), expected);
            assert_eq!(fallback::route_to(ip(to)).unwrap(), expected);
        }
        let own = route("10.9.0.1").unwrap();
        assert_eq!((own.source, own.interface.as_str()), (ip("10.9.0.1"), "lo"));
        let picked = super::super::pick_for_seed(ip("10.9.0.1"), None, None).unwrap();
        assert_eq!((picked.interface.as_str(), picked.warning), ("w0", None));
        let picked = super::super::pick_for_seed(ip("10.8.0.2"), None, None).unwrap();
        assert_eq!((picked.address, picked.interface.as_str()), (ip("10.8.0.1"), "w1"));
        assert!(matches!(route("10.7.0.1"), Err(NetError::NoRoute { .. })), "a black hole is no route");
    }

    type Attribute<'a> = (u16, &'a [u8]);

    /// Header flags, attributes; the address and whether it is temporary, if it is usable.
    type Case<'a> = (u8, &'a [Attribute<'a>], Option<(&'a str, bool)>);

    /// A message's body: its fixed part, and the attributes after it.
    fn body(head: &[u8], attributes: &[Attribute<'_>]) -> Vec<u8> {
        let mut body = head.to_vec();
        attributes.iter().for_each(|(kind, value)| put(&mut body, *kind, value));
        body
    }

    #[test]
    fn only_usable_addresses_are_taken() {
        let (one, two) = ([10, 0, 0, 1], [10, 0, 0, 2]);
        let both: &[Attribute<'_>] = &[(1, &two), (2, &one)];
        let cases: [Case<'_>; 10] = [
            (0x80, &[(1, &one)], Some(("10.0.0.1", false))),
            (0x80, both, Some(("10.0.0.1", false))),
            (0x01, both, Some(("10.0.0.1", true))),
            (0x20, both, Some(("10.0.0.1", true))),
            (0x40, both, None),
            (0x44, both, Some(("10.0.0.1", false))),
            (0x08, both, None),
            (0x40, &[(2, &one), (8, &[0x80, 0, 0, 0])], Some(("10.0.0.1", false))),
            (0x80, &[(2, &one), (8, &0x248u32.to_ne_bytes())], None),
            (0x80, &[(2, &one[..3])], None),
        ];
        for (i, (flags, attributes, expected)) in cases.into_iter().enumerate() {
            let body = body(&[2, 24, flags, 0, 7, 0, 0, 0], attributes);
            let found = address_of(RTM_NEWADDR, &body).map(|(_, a)| (a.ip.to_string(), a.temporary));
            assert_eq!(found, expected.map(|(ip, temporary)| (ip.to_owned(), temporary)), "case {i}");
        }
    }

    #[test]
    fn an_interface_without_a_name_goes_by_its_number() {
        let head =
            [[0; 4], 7u32.to_ne_bytes(), (IFF_UP | IFF_RUNNING | IFF_NOARP).to_ne_bytes(), [0; 4]].concat();
        let bare = interface_of(RTM_NEWLINK, &body(&head, &[])).unwrap();
        assert_eq!((bare.name.as_str(), bare.kind, bare.up, bare.no_arp), ("#7", None, true, true));
        let named = body(&head, &[(3, b"wg0\0"), (18, &body(&[], &[(1, b"wireguard\0")]))]);
        let named = interface_of(RTM_NEWLINK, &named).unwrap();
        assert_eq!((named.name.as_str(), named.kind.as_deref()), ("wg0", Some("wireguard")));
        let half = [head.as_slice(), &[9, 0, 3, 0, b'w']].concat();
        assert_eq!(interface_of(RTM_NEWLINK, &half).unwrap().name, "#7");
    }
}
