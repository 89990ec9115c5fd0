//! Frames of an Ethernet segment, encoded and decoded here: ARP requests and claims, and echoes in IPv4 and
//! IPv6.

use std::fmt;
use std::io::{ErrorKind, Read};
use std::net::{IpAddr, Ipv4Addr};
use std::time::Duration;

use anyhow::{Context, Result};
use socket2::{Domain, Protocol, SockAddr, SockAddrStorage, Socket, Type};

use crate::lab::Node;

/// The number of "every protocol" (ETH_P_ALL).
const EVERY_PROTOCOL: u16 = 0x0003;

/// An Ethernet address.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Mac(pub [u8; 6]);

impl Mac {
    /// The broadcast address.
    pub const ALL: Mac = Mac([0xff; 6]);
}

impl fmt::Display for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Mac([a, b, c, d, e, g]) = self;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

impl fmt::Debug for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// Content of a frame, as far as the tests need it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Says {
    /// ARP, either operation.
    Arp(Arp),
    /// An answer to an echo, with the first eight bytes of its payload.
    Echo(IpAddr, u64),
    /// ICMPv6 of another type: neighbour discovery, and the rest.
    Icmp6(u8),
    /// Another protocol.
    Other,
}

/// An ARP packet (RFC 826).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Arp {
    /// It is a reply, or has the form of one.
    pub reply: bool,
    /// The sender.
    pub sender: (Mac, Ipv4Addr),
    /// The target.
    pub target: (Mac, Ipv4Addr),
}

impl Arp {
    /// The question who has an address, from a node with another one.
    pub fn question(sender: (Mac, Ipv4Addr), about: Ipv4Addr) -> Arp {
        Arp { reply: false, sender, target: (Mac([0; 6]), about) }
    }

    /// The announcement of an address, in the form of a request.
    pub fn announcement(owner: Mac, address: Ipv4Addr) -> Arp {
        Arp { reply: false, sender: (owner, address), target: (Mac([0; 6]), address) }
    }

    /// Whether it is an announcement (RFC 5227, section 3).
    pub fn announces(&self) -> bool {
        self.sender.1 == self.target.1
    }

    /// The frame that carries it.
    pub fn frame(&self, to: Mac) -> Vec<u8> {
        let mut frame = Vec::with_capacity(42);
        frame.extend(to.0);
        frame.extend(self.sender.0.0);
        frame.extend([8, 6, 0, 1, 8, 0, 6, 4, 0, if self.reply { 2 } else { 1 }]);
        for (mac, address) in [self.sender, self.target] {
            frame.extend(mac.0);
            frame.extend(address.octets());
        }
        frame
    }
}

/// A frame that crossed an interface.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Frame {
    /// The destination.
    pub to: Mac,
    /// The source.
    pub from: Mac,
    /// The content.
    pub says: Says,
}

impl Frame {
    /// Reads one; `None` when it is truncated.
    pub fn read(bytes: &[u8]) -> Option<Frame> {
        let (to, from) = (mac(bytes)?, mac(bytes.get(6..)?)?);
        let rest = bytes.get(14..)?;
        let says = match (bytes[12], bytes[13]) {
            (8, 6) => Says::Arp(arp(rest)?),
            (8, 0) => echo4(rest).unwrap_or(Says::Other),
            (0x86, 0xdd) => icmp6(rest).unwrap_or(Says::Other),
            _ => Says::Other,
        };
        Some(Frame { to, from, says })
    }
}

fn mac(bytes: &[u8]) -> Option<Mac> {
    Some(Mac(bytes.get(..6)?.try_into().ok()?))
}

fn arp(packet: &[u8]) -> Option<Arp> {
    let side = |at: usize| -> Option<(Mac, Ipv4Addr)> {
        let address: [u8; 4] = packet.get(at + 6..at + 10)?.try_into().ok()?;
        Some((mac(packet.get(at..)?)?, address.into()))
    };
    Some(Arp { reply: *packet.get(7)? == 2, sender: side(8)?, target: side(18)? })
}

fn echo4(packet: &[u8]) -> Option<Says> {
    let header = usize::from(packet.first()? & 15) * 4;
    if *packet.get(9)? != 1 || *packet.get(header)? != 0 {
        return None;
    }
    let from: [u8; 4] = packet.get(12..16)?.try_into().ok()?;
    Some(Says::Echo(from.into(), carried(packet.get(header..)?)?))
}

/// Without extension headers.
fn icmp6(packet: &[u8]) -> Option<Says> {
    if *packet.get(6)? != 58 {
        return None;
    }
    let from: [u8; 16] = packet.get(8..24)?.try_into().ok()?;
    Some(match *packet.get(40)? {
        129 => Says::Echo(from.into(), carried(packet.get(40..)?)?),
        kind => Says::Icmp6(kind),
    })
}

fn carried(echo: &[u8]) -> Option<u64> {
    Some(u64::from_be_bytes(echo.get(8..16)?.try_into().ok()?))
}

/// An echo request for a raw socket of the address' family; the kernel adds the headers.
pub(super) fn echo(to: IpAddr, carries: u64) -> Vec<u8> {
    let mut packet = vec![if to.is_ipv4() { 8 } else { 128 }, 0, 0, 0, 0x56, 0x49, 0, 0];
    packet.extend(carries.to_be_bytes());
    if to.is_ipv4() {
        // RFC 1071; the kernel computes it for IPv6 itself.
        let mut sum: u32 = packet.chunks(2).map(|two| u32::from(two[0]) << 8 | u32::from(two[1])).sum();
        while sum > 0xffff {
            sum = (sum & 0xffff) + (sum >> 16);
        }
        let check = !(sum as u16);
        packet[2..4].copy_from_slice(&check.to_be_bytes());
    }
    packet
}

/// A node's interface, as shown by `ip`.
#[derive(Debug, Clone, Copy)]
pub struct Link {
    /// Its index.
    pub index: i32,
    /// Its Ethernet address.
    pub mac: Mac,
}

impl Link {
    /// Queries it.
    ///
    /// # Errors
    /// There is none, or it is no Ethernet.
    pub fn of(node: &Node) -> Result<Link> {
        let said = node.exec(&["ip", "-o", "link", "show", node.interface])?.ok()?;
        let index = said.split(':').next().and_then(|word| word.trim().parse().ok());
        let text = said.split("link/ether ").nth(1).and_then(|rest| rest.split(' ').next());
        let mut bytes = [0; 6];
        for (byte, part) in bytes.iter_mut().zip(text.with_context(|| said.clone())?.split(':')) {
            *byte = u8::from_str_radix(part, 16)?;
        }
        Ok(Link { index: index.with_context(|| said.clone())?, mac: Mac(bytes) })
    }
}

/// A packet socket on a node's interface: receives every frame, and sends.
pub struct Tap {
    socket: Socket,
    to: SockAddr,
}

impl Tap {
    /// Opens one; receiving waits at most `patience`.
    ///
    /// # Errors
    /// It can't be opened.
    pub fn open(node: &Node, patience: Duration) -> Result<Tap> {
        let said = node.exec(&["ip", "-o", "link", "show", node.interface])?.ok()?;
        let index = said.split(':').next().and_then(|word| word.trim().parse().ok());
        let to = on_interface(index.with_context(|| said.clone())?);
        let socket = node.inside(|| {
            let every = Protocol::from(i32::from(EVERY_PROTOCOL.to_be()));
            let socket = Socket::new(Domain::PACKET, Type::RAW, Some(every))?;
            socket.bind(&to)?;
            Ok(socket)
        })?;
        socket.set_read_timeout(Some(patience))?;
        Ok(Tap { socket, to })
    }

    /// The next frame; `None` when there is none in time, or it is truncated.
    ///
    /// # Errors
    /// The socket's.
    pub fn hear(&self, buffer: &mut [u8]) -> Result<Option<Frame>> {
        Ok(self.read(buffer)?.and_then(|length| Frame::read(&buffer[..length])))
    }

    /// The length of the next raw frame; `None` when there is none in time. A tunnel's frames have no
    /// Ethernet header.
    ///
    /// # Errors
    /// The socket's.
    pub fn read(&self, buffer: &mut [u8]) -> Result<Option<usize>> {
        match (&self.socket).read(buffer) {
            Ok(length) => Ok(Some(length)),
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => Ok(None),
            // The interface went down; it will come back, or the test will report what is missing.
            Err(error) if error.kind() == ErrorKind::NetworkDown => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    /// Sends a frame.
    ///
    /// # Errors
    /// The socket's.
    pub fn say(&self, frame: &[u8]) -> Result<()> {
        self.socket.send_to(frame, &self.to)?;
        Ok(())
    }

    /// Another handle for it, for another thread.
    ///
    /// # Errors
    /// No descriptor is left.
    pub fn try_clone(&self) -> Result<Tap> {
        Ok(Tap { socket: self.socket.try_clone()?, to: self.to.clone() })
    }
}

/// The address of an interface, as packet(7) wants it: `struct sockaddr_ll`.
fn on_interface(index: i32) -> SockAddr {
    const PACKET: u16 = 17;
    let mut bytes = [0; 20];
    bytes[0..2].copy_from_slice(&PACKET.to_ne_bytes());
    bytes[2..4].copy_from_slice(&EVERY_PROTOCOL.to_be_bytes());
    bytes[4..8].copy_from_slice(&index.to_ne_bytes());
    let mut storage = SockAddrStorage::zeroed();
    // Safe: plain bytes, fewer than the storage has, in the layout of the family that they start with.
    #[allow(unsafe_code)]
    unsafe {
        *storage.view_as::<[u8; 20]>() = bytes;
        SockAddr::new(storage, 20)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: Mac = Mac([2, 0, 0, 0, 0, 0xa]);

    #[test]
    fn a_frame_reads_back_as_written_and_a_truncated_one_does_not() {
        let arp = Arp::question((A, [10, 0, 0, 1].into()), [10, 0, 0, 9].into());
        let bytes = arp.frame(Mac::ALL);
        let frame = Frame::read(&bytes).unwrap();
        assert_eq!(frame, Frame { to: Mac::ALL, from: A, says: Says::Arp(arp) });
        assert!(!arp.announces() && Arp::announcement(A, [10, 0, 0, 9].into()).announces());
        for length in 0..bytes.len() {
            assert_eq!(Frame::read(&bytes[..length]), None);
        }
        assert_eq!(A.to_string(), "02:00:00:00:00:0a");
    }

    #[test]
    fn an_echo_has_a_right_sum_and_its_answer_is_read() {
        let address = IpAddr::from([10, 0, 0, 9]);
        let mut answer = echo(address, 7);
        let sum: u32 = answer.chunks(2).map(|two| u32::from(two[0]) << 8 | u32::from(two[1])).sum();
        assert_eq!(sum & 0xffff, 0xffff - (sum >> 16));
        answer[0] = 0;
        let header = [0x45, 0, 0, 36, 0, 0, 0, 0, 64, 1, 0, 0, 10, 0, 0, 9, 10, 0, 0, 1];
        let ethernet = [Mac::ALL.0.as_slice(), &A.0, &[8, 0]].concat();
        let bytes = [ethernet.as_slice(), &header, &answer].concat();
        assert_eq!(Frame::read(&bytes).unwrap().says, Says::Echo(address, 7));
        // The request itself is not.
        let request = [ethernet.as_slice(), &header, &echo(address, 7)].concat();
        assert_eq!(Frame::read(&request).unwrap().says, Says::Other);

        let address: IpAddr = "fd91::9".parse().unwrap();
        let mut answer = echo(address, 8);
        answer[0] = 129;
        let mut header = vec![0x60, 0, 0, 0, 0, 16, 58, 64, 0xfd, 0x91];
        header.extend([0; 13]);
        header.push(9);
        header.extend([0; 16]);
        let ethernet = [Mac::ALL.0.as_slice(), &A.0, &[0x86, 0xdd]].concat();
        let bytes = [ethernet.as_slice(), &header, &answer].concat();
        assert_eq!(Frame::read(&bytes).unwrap().says, Says::Echo(address, 8));
    }
}
