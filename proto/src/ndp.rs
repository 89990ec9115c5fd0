//! Neighbour discovery (RFC 4861): what ARP is for IPv4, as Ethernet frames with ICMPv6 in IPv6.

use std::net::Ipv6Addr;

use crate::arp::Mac;

const ETHERNET: usize = 14;
const IPV6: usize = 40;
/// Type, code, checksum, flags and target.
const MESSAGE: usize = 24;
/// The one option that is used: an Ethernet address.
const OPTION: usize = 8;

const ICMPV6: u8 = 58;
/// Routed packets are ignored (RFC 4861, 7.1).
const HOP_LIMIT: u8 = 255;
const SOLICITATION: u8 = 135;
const ADVERTISEMENT: u8 = 136;
const SOURCE_MAC: u8 = 1;
const TARGET_MAC: u8 = 2;
const SOLICITED: u8 = 0x40;
const OVERRIDE: u8 = 0x20;

const ALL_NODES: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1);

/// An advertisement: the MAC of an address.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Advertisement {
    /// The address.
    pub target: Ipv6Addr,
    /// Its MAC.
    pub mac: Mac,
    /// It answers a solicitation.
    pub solicited: bool,
}

/// The frame that asks whether anyone has an address, without claiming one (RFC 4862, 5.4.2).
pub fn probe(own: Mac, address: Ipv6Addr) -> Vec<u8> {
    frame(own, Ipv6Addr::UNSPECIFIED, Dest::solicited(address), SOLICITATION, 0, address, None)
}

/// The frame that asks who has an address; answers go to `sender`.
pub fn solicitation(own: Mac, sender: Ipv6Addr, target: Ipv6Addr) -> Vec<u8> {
    frame(own, sender, Dest::solicited(target), SOLICITATION, 0, target, Some((SOURCE_MAC, own)))
}

/// The unsolicited frame that announces an address to all and overrides earlier entries.
pub fn announcement(own: Mac, address: Ipv6Addr) -> Vec<u8> {
    let all = Dest { ip: ALL_NODES, mac: Dest::multicast(ALL_NODES) };
    frame(own, address, all, ADVERTISEMENT, OVERRIDE, address, Some((TARGET_MAC, own)))
}

/// The same to one node.
pub fn unicast_advertisement(own: Mac, address: Ipv6Addr, to: Mac, at: Ipv6Addr) -> Vec<u8> {
    frame(own, address, Dest { ip: at, mac: to }, ADVERTISEMENT, OVERRIDE, address, Some((TARGET_MAC, own)))
}

/// Reads a frame; `None` when it carries no valid advertisement.
pub fn parse(frame: &[u8]) -> Option<Advertisement> {
    let (ethernet, packet) = frame.split_at_checked(ETHERNET)?;
    let (ip, payload) = packet.split_at_checked(IPV6)?;
    let long = usize::from(u16::from_be_bytes([ip[4], ip[5]]));
    let payload = payload.get(..long)?;
    let message = payload.get(..MESSAGE)?;
    let good = ethernet[12..] == [0x86, 0xdd]
        && ip[0] >> 4 == 6
        && ip[6] == ICMPV6
        && ip[7] == HOP_LIMIT
        && message[0] == ADVERTISEMENT
        && message[1] == 0
        && checksum(&ip[8..], payload) == 0;
    if !good {
        return None;
    }
    let mut target = [0; 16];
    target.copy_from_slice(&message[8..24]);
    let target = Ipv6Addr::from(target);
    // A unicast answer may omit the option: then the frame's source is the MAC.
    let mut mac = Mac(<[u8; 6]>::try_from(ethernet.get(6..12)?).ok()?);
    let mut options = payload.get(MESSAGE..)?;
    while let [kind, eights, ..] = options {
        let length = usize::from(*eights) * 8;
        let option = options.get(..length).filter(|option| !option.is_empty())?;
        if *kind == TARGET_MAC && length == OPTION {
            mac = Mac(<[u8; 6]>::try_from(option.get(2..)?).ok()?);
        }
        options = options.get(length..)?;
    }
    let real = mac.is_unicast() && !target.is_multicast() && !target.is_unspecified();
    real.then_some(Advertisement { target, mac, solicited: message[4] & SOLICITED != 0 })
}

#[derive(Clone, Copy)]
struct Dest {
    ip: Ipv6Addr,
    mac: Mac,
}

impl Dest {
    /// The solicited-node group of this address (RFC 4291, 2.7.1).
    fn solicited(address: Ipv6Addr) -> Dest {
        let [.., a, b, c] = address.octets();
        let ip = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 1, 0xff00 | u16::from(a), u16::from_be_bytes([b, c]));
        Dest { ip, mac: Dest::multicast(ip) }
    }

    /// The Ethernet group of this multicast address (RFC 2464, section 7).
    fn multicast(ip: Ipv6Addr) -> Mac {
        let [.., a, b, c, d] = ip.octets();
        Mac([0x33, 0x33, a, b, c, d])
    }
}

fn frame(
    own: Mac,
    source: Ipv6Addr,
    to: Dest,
    kind: u8,
    flags: u8,
    target: Ipv6Addr,
    option: Option<(u8, Mac)>,
) -> Vec<u8> {
    let mut payload = Vec::with_capacity(MESSAGE + OPTION);
    payload.extend_from_slice(&[kind, 0, 0, 0, flags, 0, 0, 0]);
    payload.extend_from_slice(&target.octets());
    if let Some((kind, mac)) = option {
        payload.extend_from_slice(&[kind, 1]);
        payload.extend_from_slice(&mac.0);
    }
    let addresses = [source.octets(), to.ip.octets()].concat();
    let sum = checksum(&addresses, &payload).to_be_bytes();
    payload[2..4].copy_from_slice(&sum);
    let mut frame = Vec::with_capacity(ETHERNET + IPV6 + payload.len());
    frame.extend_from_slice(&to.mac.0);
    frame.extend_from_slice(&own.0);
    // EtherType of IPv6, then version 6 without class and flow.
    frame.extend_from_slice(&[0x86, 0xdd, 0x60, 0, 0, 0, 0]);
    // Never more than 32.
    frame.push(payload.len() as u8);
    frame.extend_from_slice(&[ICMPV6, HOP_LIMIT]);
    frame.extend_from_slice(&addresses);
    frame.extend_from_slice(&payload);
    frame
}

/// The checksum of ICMPv6 with its pseudo-header (RFC 8200, 8.1); zero over a packet with a valid one.
fn checksum(addresses: &[u8], payload: &[u8]) -> u16 {
    let words = |bytes: &[u8]| -> u32 {
        let pairs = bytes.chunks(2).map(|pair| match pair {
            [a, b] => u32::from(u16::from_be_bytes([*a, *b])),
            [a] => u32::from(*a) << 8,
            _ => 0,
        });
        pairs.sum()
    };
    // A frame has at most 64 kB, so the sum can't overflow.
    let mut sum = words(addresses) + words(payload) + payload.len() as u32 + u32::from(ICMPV6);
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !(sum as u16)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const OWN: Mac = Mac([2, 0, 0, 0, 0, 1]);
    const OTHER: Mac = Mac([2, 0, 0, 0, 0, 2]);
    const VIP: Ipv6Addr = Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0x91, 0x50);
    const AT: Ipv6Addr = Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, 2);

    #[test]
    fn solicitations_go_to_the_solicited_group_and_announcements_to_all() {
        let probe = probe(OWN, VIP);
        assert_eq!(probe[..6], [0x33, 0x33, 0xff, 0x91, 0x00, 0x50]);
        assert_eq!(probe.len(), 78, "a probe has no option (RFC 4861, 4.3)");
        assert_eq!(solicitation(OWN, AT, VIP).len(), 86);
        let all = announcement(OWN, VIP);
        assert_eq!(all[..6], [0x33, 0x33, 0, 0, 0, 1]);
        assert_eq!(parse(&all), Some(Advertisement { target: VIP, mac: OWN, solicited: false }));
        let one = unicast_advertisement(OWN, VIP, OTHER, AT);
        assert_eq!(one[..6], OTHER.0);
        assert_eq!(parse(&one), Some(Advertisement { target: VIP, mac: OWN, solicited: false }));
        assert_eq!(parse(&probe), None, "a question claims nothing");
    }

    #[test]
    fn a_routed_or_corrupted_packet_is_ignored() {
        let good = announcement(OWN, VIP);
        let mut routed = good.clone();
        routed[21] = 254;
        assert_eq!(parse(&routed), None);
        for at in 22..good.len() {
            let mut bent = good.clone();
            bent[at] ^= 1;
            assert_eq!(parse(&bent), None, "byte {at}");
        }
        for length in 0..good.len() {
            assert_eq!(parse(&good[..length]), None, "cut at {length}");
        }
    }

    #[test]
    fn an_answer_without_an_option_comes_from_its_sender() {
        let bare = frame(OTHER, VIP, Dest { ip: AT, mac: OWN }, ADVERTISEMENT, SOLICITED, VIP, None);
        assert_eq!(parse(&bare), Some(Advertisement { target: VIP, mac: OTHER, solicited: true }));
    }

    proptest! {
        #[test]
        fn an_announcement_reads_back_as_sent(mac: [u8; 6], target: u128) {
            let (mac, target) = (Mac(mac), Ipv6Addr::from_bits(target));
            prop_assume!(mac.is_unicast() && !target.is_multicast() && !target.is_unspecified());
            let read = parse(&announcement(mac, target));
            prop_assert_eq!(read, Some(Advertisement { target, mac, solicited: false }));
        }

        #[test]
        fn no_frame_makes_it_panic(mut frame in proptest::collection::vec(any::<u8>(), 0..120), real: bool) {
            if real && frame.len() > 54 {
                let head = announcement(OWN, VIP);
                frame[..22].copy_from_slice(&head[..22]);
            }
            let _ = parse(&frame);
        }
    }
}
