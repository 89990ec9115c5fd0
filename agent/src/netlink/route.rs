//! The rtnetlink messages that `net` and `vip` use, by named fields. Only this module decodes them; the
//! meaning is up to the caller.

use std::net::IpAddr;

use nix::libc::{
    self, AF_INET, IFA_ADDRESS, IFA_CACHEINFO, IFA_FLAGS, IFA_LABEL, IFA_LOCAL, IFLA_ADDRESS, IFLA_AF_SPEC,
    IFLA_EXT_MASK, IFLA_IFNAME, IFLA_INFO_KIND, IFLA_LINKINFO, IFLA_MTU, NDA_DST, NDA_LLADDR, NUD_REACHABLE,
    RTA_DST, RTA_GATEWAY, RTA_OIF, RTA_PREFSRC, RTEXT_FILTER_SKIP_STATS, RTM_DELADDR, RTM_NEWADDR,
    RTM_NEWLINK, RTM_NEWNEIGH, RTM_NEWROUTE,
};
use proto::arp::Mac;

use super::{address, attribute, attributes, family, number, octets, put, text};

/// An interface's IPv4 settings, a number each, in IFLA_AF_SPEC (`linux/if_link.h`); and the position of
/// `arp_ignore` among them, which is the 19th (`linux/ip.h`).
const IFLA_INET_CONF: u16 = 1;
const ARP_IGNORE: usize = 18;

// Flags of an interface, as the numbers that they are.
pub(crate) const IFF_UP: u32 = libc::IFF_UP.cast_unsigned();
pub(crate) const IFF_RUNNING: u32 = libc::IFF_RUNNING.cast_unsigned();
pub(crate) const IFF_BROADCAST: u32 = libc::IFF_BROADCAST.cast_unsigned();
pub(crate) const IFF_LOOPBACK: u32 = libc::IFF_LOOPBACK.cast_unsigned();
pub(crate) const IFF_POINTOPOINT: u32 = libc::IFF_POINTOPOINT.cast_unsigned();
pub(crate) const IFF_NOARP: u32 = libc::IFF_NOARP.cast_unsigned();

/// An infinite lifetime.
pub(crate) const FOREVER: u32 = u32::MAX;

/// Requests all addresses.
pub(crate) const EVERY_ADDRESS: [u8; 8] = [0; 8];
/// Requests all neighbours.
pub(crate) const EVERY_NEIGHBOUR: [u8; 12] = [0; 12];

/// An interface.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct LinkMessage {
    pub(crate) index: u32,
    /// ARPHRD_ number; 1 is Ethernet.
    pub(crate) hardware: u16,
    /// IFF_ flags.
    pub(crate) flags: u32,
    pub(crate) name: Option<String>,
    /// Of six bytes, as on Ethernet.
    pub(crate) mac: Option<Mac>,
    pub(crate) mtu: Option<u32>,
    /// The driver's kind.
    pub(crate) kind: Option<String>,
    /// Its own `arp_ignore`.
    pub(crate) arp_ignore: Option<u32>,
}

impl LinkMessage {
    /// Reads a message about an interface that is there.
    pub(crate) fn read(kind: u16, body: &[u8]) -> Option<LinkMessage> {
        let (head, rest) = body.split_first_chunk::<16>().filter(|_| kind == RTM_NEWLINK)?;
        let mut link = LinkMessage {
            hardware: u16::from_ne_bytes([head[2], head[3]]),
            index: number(head, 4)?,
            flags: number(head, 8)?,
            ..LinkMessage::default()
        };
        for (kind, value) in attributes(rest) {
            match kind {
                IFLA_ADDRESS => link.mac = mac(value),
                IFLA_IFNAME => link.name = Some(text(value)),
                IFLA_MTU => link.mtu = number(value, 0),
                IFLA_LINKINFO => link.kind = attribute(value, IFLA_INFO_KIND).map(text),
                IFLA_AF_SPEC => {
                    let inet = attribute(value, AF_INET as u16);
                    let settings = inet.and_then(|inet| attribute(inet, IFLA_INET_CONF));
                    link.arp_ignore = settings.and_then(|all| number(all, ARP_IGNORE * 4));
                }
                _ => {}
            }
        }
        Some(link)
    }

    /// Requests all interfaces, or the one with this index or name, without their counters, which are the
    /// larger part.
    pub(crate) fn ask(index: Option<u32>, name: Option<&str>) -> Vec<u8> {
        let mut body = vec![0; 4];
        body.extend_from_slice(&index.unwrap_or(0).to_ne_bytes());
        body.resize(16, 0);
        put(&mut body, IFLA_EXT_MASK, &RTEXT_FILTER_SKIP_STATS.to_ne_bytes());
        if let Some(name) = name {
            put(&mut body, IFLA_IFNAME, &[name.as_bytes(), &[0]].concat());
        }
        body
    }
}

/// An address on an interface.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct AddressMessage {
    /// It was removed.
    pub(crate) gone: bool,
    pub(crate) index: u32,
    pub(crate) ip: IpAddr,
    pub(crate) prefix: u8,
    /// IFA_F_ flags.
    pub(crate) flags: u32,
    /// It expires, in so many seconds.
    pub(crate) valid_seconds: Option<u32>,
}

impl AddressMessage {
    /// Reads a message about an address that exists or was removed.
    pub(crate) fn read(kind: u16, body: &[u8]) -> Option<AddressMessage> {
        let (head, rest) =
            body.split_first_chunk::<8>().filter(|_| [RTM_NEWADDR, RTM_DELADDR].contains(&kind))?;
        let (mut local, mut other) = (None, None);
        let (mut flags, mut valid_seconds) = (u32::from(head[2]), None);
        for (kind, value) in attributes(rest) {
            match kind {
                IFA_ADDRESS => other = address(value),
                IFA_LOCAL => local = address(value),
                // All flags; the header has room for eight.
                IFA_FLAGS => flags = number(value, 0).unwrap_or(flags),
                // The first number is the preferred lifetime.
                IFA_CACHEINFO => valid_seconds = number(value, 4).filter(|seconds| *seconds != FOREVER),
                _ => {}
            }
        }
        Some(AddressMessage {
            gone: kind == RTM_DELADDR,
            index: number(head, 4)?,
            // On a point-to-point interface IFA_ADDRESS is the peer's; IPv6 has no IFA_LOCAL without a peer.
            ip: local.or(other)?,
            prefix: head[1],
            flags,
            valid_seconds,
        })
    }

    /// Address, whole prefix, interface: only the three together identify it, and nothing else is touched.
    pub(crate) fn name(ip: IpAddr, index: u32) -> Vec<u8> {
        let mut body = vec![family(ip), octets(ip).len() as u8 * 8, 0, 0];
        body.extend_from_slice(&index.to_ne_bytes());
        put(&mut body, IFA_LOCAL, &octets(ip));
        put(&mut body, IFA_ADDRESS, &octets(ip));
        body
    }

    /// The same with its properties: for how many seconds it is preferred and valid.
    pub(crate) fn make(
        ip: IpAddr,
        index: u32,
        label: Option<&str>,
        seconds: (u32, u32),
        flags: u32,
    ) -> Vec<u8> {
        let mut body = AddressMessage::name(ip, index);
        if let Some(label) = label {
            put(&mut body, IFA_LABEL, &[label.as_bytes(), &[0]].concat());
        }
        // The kernel sets the times of creation and change.
        let times = [seconds.0.to_ne_bytes(), seconds.1.to_ne_bytes(), [0; 4], [0; 4]].concat();
        put(&mut body, IFA_CACHEINFO, &times);
        if flags != 0 {
            put(&mut body, IFA_FLAGS, &flags.to_ne_bytes());
        }
        body
    }
}

/// The route to an address.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct RouteMessage {
    /// RTN_ number.
    pub(crate) kind: u8,
    /// The interface.
    pub(crate) index: u32,
    /// The source address of packets.
    pub(crate) source: Option<IpAddr>,
    /// The next machine, if it is not the last.
    pub(crate) gateway: Option<IpAddr>,
}

impl RouteMessage {
    /// Reads a message about an existing route.
    pub(crate) fn read(kind: u16, body: &[u8]) -> Option<RouteMessage> {
        let (head, rest) = body.split_first_chunk::<12>().filter(|_| kind == RTM_NEWROUTE)?;
        let (mut index, mut source, mut gateway) = (0, None, None);
        for (kind, value) in attributes(rest) {
            match kind {
                RTA_OIF => index = number(value, 0).unwrap_or(0),
                RTA_PREFSRC => source = address(value),
                RTA_GATEWAY => gateway = address(value),
                _ => {}
            }
        }
        Some(RouteMessage { kind: head[7], index, source, gateway })
    }

    /// Requests the route to an address.
    pub(crate) fn ask(to: IpAddr) -> Vec<u8> {
        let address = octets(to);
        let mut body = vec![family(to), address.len() as u8 * 8];
        body.resize(12, 0);
        put(&mut body, RTA_DST, &address);
        body
    }
}

/// A neighbour.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct NeighbourMessage {
    pub(crate) ip: IpAddr,
    /// Its MAC, as far as it is known.
    pub(crate) mac: Option<Mac>,
}

impl NeighbourMessage {
    /// Reads a message about an existing neighbour.
    pub(crate) fn read(kind: u16, body: &[u8]) -> Option<NeighbourMessage> {
        let rest = body.get(12..).filter(|_| kind == RTM_NEWNEIGH)?;
        let (mut ip, mut at) = (None, None);
        for (kind, value) in attributes(rest) {
            match kind {
                NDA_DST => ip = address(value),
                NDA_LLADDR => at = mac(value),
                _ => {}
            }
        }
        Some(NeighbourMessage { ip: ip?, mac: at })
    }

    /// A neighbour that was just confirmed.
    pub(crate) fn found(ip: IpAddr, index: u32, mac: Mac) -> Vec<u8> {
        let mut body = vec![family(ip), 0, 0, 0];
        body.extend_from_slice(&index.to_ne_bytes());
        body.extend_from_slice(&NUD_REACHABLE.to_ne_bytes());
        body.extend_from_slice(&[0, 0]);
        put(&mut body, NDA_DST, &octets(ip));
        put(&mut body, NDA_LLADDR, &mac.0);
        body
    }
}

fn mac(bytes: &[u8]) -> Option<Mac> {
    <[u8; 6]>::try_from(bytes).map(Mac).ok()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn what_is_asked_for_reads_back() {
        for (ip, prefix) in [("10.9.0.50", 32), ("fd09::50", 128)] {
            let ip: IpAddr = ip.parse().unwrap();
            let made = AddressMessage::make(ip, 7, Some("w0:vip"), (0, 3), 0x202);
            let read =
                AddressMessage { gone: false, index: 7, ip, prefix, flags: 0x202, valid_seconds: Some(3) };
            assert_eq!(AddressMessage::read(RTM_NEWADDR, &made), Some(read.clone()));
            let gone = AddressMessage { gone: true, flags: 0, valid_seconds: None, ..read };
            assert_eq!(AddressMessage::read(RTM_DELADDR, &AddressMessage::name(ip, 7)), Some(gone));
            let for_ever = AddressMessage::make(ip, 7, None, (FOREVER, FOREVER), 0);
            assert_eq!(AddressMessage::read(RTM_NEWADDR, &for_ever).unwrap().valid_seconds, None);
            let mac = Mac([2, 0, 0, 0, 0, 1]);
            let found = NeighbourMessage::found(ip, 7, mac);
            let read = NeighbourMessage { ip, mac: Some(mac) };
            assert_eq!(NeighbourMessage::read(RTM_NEWNEIGH, &found), Some(read));
            let route = RouteMessage::read(RTM_NEWROUTE, &RouteMessage::ask(ip)).unwrap();
            assert_eq!((route.index, route.source), (0, None));
        }
        let link = LinkMessage::read(RTM_NEWLINK, &LinkMessage::ask(Some(7), Some("w0"))).unwrap();
        assert_eq!((link.index, link.name.as_deref()), (7, Some("w0")));
    }

    #[test]
    fn a_truncated_attribute_is_none_and_the_others_stay() {
        let mut body = LinkMessage::ask(Some(7), None);
        put(&mut body, IFLA_MTU, &1420u32.to_ne_bytes());
        put(&mut body, IFLA_ADDRESS, &[1, 2, 3]);
        body.extend_from_slice(&[9, 0, 3, 0, b'w']);
        let link = LinkMessage::read(RTM_NEWLINK, &body).unwrap();
        assert_eq!((link.index, link.mtu, link.mac, link.name), (7, Some(1420), None, None));
    }

    proptest! {
        #[test]
        fn no_answer_makes_it_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = LinkMessage::read(RTM_NEWLINK, &bytes);
            let _ = AddressMessage::read(RTM_NEWADDR, &bytes);
            let _ = RouteMessage::read(RTM_NEWROUTE, &bytes);
            let _ = NeighbourMessage::read(RTM_NEWNEIGH, &bytes);
        }
    }
}
