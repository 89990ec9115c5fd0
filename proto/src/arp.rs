//! ARP over Ethernet (RFC 826, RFC 5227): the frames that look for a virtual IP and announce it.

use std::fmt;
use std::net::Ipv4Addr;
use std::str::FromStr;

/// Length of a frame: Ethernet header and packet. Cards pad it to what the wire needs.
pub const FRAME_LEN: usize = 42;

/// An Ethernet address, shown as `02:00:5e:10:00:01`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Mac(pub [u8; 6]);

impl Mac {
    /// The broadcast address.
    pub const BROADCAST: Mac = Mac([0xff; 6]);

    /// Whether it can be a card's own address.
    pub fn is_unicast(self) -> bool {
        self.0[0] & 1 == 0 && self != Mac::default()
    }
}

impl fmt::Display for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

/// A text that is no Ethernet address.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("not an Ethernet address, as 02:00:5e:10:00:01")]
pub struct BadMac;

impl FromStr for Mac {
    type Err = BadMac;

    fn from_str(text: &str) -> Result<Mac, BadMac> {
        let mut mac = [0; 6];
        let mut parts = text.split(':');
        for byte in &mut mac {
            let hex = |part: &&str| part.len() == 2 && part.bytes().all(|b| b.is_ascii_hexdigit());
            let part = parts.next().filter(hex).ok_or(BadMac)?;
            *byte = u8::from_str_radix(part, 16).map_err(|_| BadMac)?;
        }
        if parts.next().is_some() { Err(BadMac) } else { Ok(Mac(mac)) }
    }
}

/// Operation of an ARP packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ArpOperation {
    /// "Who has the target's address?"
    Request,
    /// "The sender has the sender's address."
    Reply,
}

/// An ARP packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ArpPacket {
    /// Its operation.
    pub operation: ArpOperation,
    /// The sender.
    pub sender_mac: Mac,
    /// The address that the sender claims; 0.0.0.0 in a probe, which claims none.
    pub sender: Ipv4Addr,
    /// The target; zero if that is the question.
    pub target_mac: Mac,
    /// The address that it is about.
    pub target: Ipv4Addr,
}

impl ArpPacket {
    /// "Does anyone have this address?", without claiming one (RFC 5227, 2.1.1).
    pub fn probe(own: Mac, address: Ipv4Addr) -> ArpPacket {
        ArpPacket::request(own, Ipv4Addr::UNSPECIFIED, address)
    }

    /// "Who has this address? Tell `sender`."
    pub fn request(own: Mac, sender: Ipv4Addr, target: Ipv4Addr) -> ArpPacket {
        ArpPacket {
            operation: ArpOperation::Request,
            sender_mac: own,
            sender,
            target_mac: Mac::default(),
            target,
        }
    }

    /// "This address is here", to all: some listeners learn only from requests, others only from replies (RFC
    /// 5227, section 3; RFC 5944, section 4.6).
    pub fn announcement(own: Mac, address: Ipv4Addr, operation: ArpOperation) -> ArpPacket {
        let target_mac = if operation == ArpOperation::Reply { own } else { Mac::default() };
        ArpPacket { operation, sender_mac: own, sender: address, target_mac, target: address }
    }

    /// "This address is here", to one node: some switches filter broadcasts.
    pub fn unicast_announcement(own: Mac, address: Ipv4Addr, to: Mac, at: Ipv4Addr) -> ArpPacket {
        ArpPacket {
            operation: ArpOperation::Reply,
            sender_mac: own,
            sender: address,
            target_mac: to,
            target: at,
        }
    }

    /// The Ethernet frame that carries it.
    pub fn to_frame(&self, to: Mac) -> [u8; FRAME_LEN] {
        let mut frame = [0; FRAME_LEN];
        frame[..6].copy_from_slice(&to.0);
        frame[6..12].copy_from_slice(&self.sender_mac.0);
        frame[12..14].copy_from_slice(&[0x08, 0x06]);
        // Ethernet, IPv4, lengths of their addresses.
        frame[14..20].copy_from_slice(&[0, 1, 0x08, 0x00, 6, 4]);
        frame[21] = if self.operation == ArpOperation::Request { 1 } else { 2 };
        frame[22..28].copy_from_slice(&self.sender_mac.0);
        frame[28..32].copy_from_slice(&self.sender.octets());
        frame[32..38].copy_from_slice(&self.target_mac.0);
        frame[38..42].copy_from_slice(&self.target.octets());
        frame
    }

    /// Reads a frame; `None` when it carries no ARP between Ethernet and IPv4.
    pub fn parse(frame: &[u8]) -> Option<ArpPacket> {
        let (frame, _padding) = frame.split_first_chunk::<FRAME_LEN>()?;
        if frame[12..20] != [0x08, 0x06, 0, 1, 0x08, 0x00, 6, 4] {
            return None;
        }
        let operation = match frame[20..22] {
            [0, 1] => ArpOperation::Request,
            [0, 2] => ArpOperation::Reply,
            _ => return None,
        };
        let mac = |from: usize| {
            let mut mac = [0; 6];
            mac.copy_from_slice(&frame[from..from + 6]);
            Mac(mac)
        };
        let ip = |from: usize| {
            let mut ip = [0; 4];
            ip.copy_from_slice(&frame[from..from + 4]);
            Ipv4Addr::from(ip)
        };
        Some(ArpPacket {
            operation,
            sender_mac: mac(22),
            sender: ip(28),
            target_mac: mac(32),
            target: ip(38),
        })
    }

    /// The address and its MAC that this packet claims; `None` when it claims nothing.
    pub fn claim(&self) -> Option<(Ipv4Addr, Mac)> {
        let real = !self.sender.is_unspecified() && self.sender_mac.is_unicast();
        real.then_some((self.sender, self.sender_mac))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const OWN: Mac = Mac([2, 0, 0, 0, 0, 1]);
    const OTHER: Mac = Mac([2, 0, 0, 0, 0, 2]);
    const VIP: Ipv4Addr = Ipv4Addr::new(10, 91, 91, 50);
    const AT: Ipv4Addr = Ipv4Addr::new(10, 91, 91, 2);

    #[test]
    fn packets_match_the_standards() {
        let hex = |frame: &[u8]| data_encoding::HEXLOWER.encode(frame);
        let table = [
            (
                ArpPacket::probe(OWN, VIP).to_frame(Mac::BROADCAST),
                "ffffffffffff0200000000010806000108000604000102000000000100000000000000000000",
            ),
            (
                ArpPacket::announcement(OWN, VIP, ArpOperation::Request).to_frame(Mac::BROADCAST),
                "ffffffffffff020000000001080600010800060400010200000000010a5b5b32000000000000",
            ),
            (
                ArpPacket::announcement(OWN, VIP, ArpOperation::Reply).to_frame(Mac::BROADCAST),
                "ffffffffffff020000000001080600010800060400020200000000010a5b5b32020000000001",
            ),
        ];
        for (frame, expected) in table {
            assert_eq!(hex(&frame), format!("{expected}0a5b5b32"));
        }
        let told = ArpPacket::unicast_announcement(OWN, VIP, OTHER, AT).to_frame(OTHER);
        assert_eq!(
            hex(&told),
            "020000000002020000000001080600010800060400020200000000010a5b5b320200000000020a5b5b02"
        );
    }

    #[test]
    fn a_probe_claims_nothing_and_an_announcement_does() {
        assert_eq!(ArpPacket::probe(OWN, VIP).claim(), None);
        for operation in [ArpOperation::Request, ArpOperation::Reply] {
            assert_eq!(ArpPacket::announcement(OWN, VIP, operation).claim(), Some((VIP, OWN)));
        }
        assert_eq!(ArpPacket::request(Mac::BROADCAST, VIP, AT).claim(), None, "nobody has that address");
    }

    #[test]
    fn addresses_read_back_as_shown() {
        assert_eq!("02:00:00:00:00:01".parse(), Ok(OWN));
        for text in [
            "",
            "02:00:00:00:00",
            "02:00:00:00:00:01:03",
            "2:0:0:0:0:1",
            "02:00:00:00:00:0g",
            "+2:00:00:00:00:01",
        ] {
            assert_eq!(text.parse::<Mac>(), Err(BadMac), "{text}");
        }
    }

    proptest! {
        #[test]
        fn a_packet_reads_back_as_sent(reply: bool, macs: [[u8; 6]; 3], ips: [[u8; 4]; 2], padding in 0usize..30) {
            let operation = if reply { ArpOperation::Reply } else { ArpOperation::Request };
            let [sender_mac, target_mac, to] = macs.map(Mac);
            let [sender, target] = ips.map(Ipv4Addr::from);
            let arp = ArpPacket { operation, sender_mac, sender, target_mac, target };
            let mut frame = arp.to_frame(to).to_vec();
            frame.resize(FRAME_LEN + padding, 0);
            prop_assert_eq!(ArpPacket::parse(&frame), Some(arp));
            prop_assert_eq!(sender_mac.to_string().parse::<Mac>(), Ok(sender_mac));
        }

        #[test]
        fn no_frame_makes_it_panic(frame in proptest::collection::vec(any::<u8>(), 0..80)) {
            let _ = ArpPacket::parse(&frame);
        }
    }
}
