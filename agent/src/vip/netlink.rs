//! Netlink by hand: a request is one system call and its answer another, so that taking an address away
//! waits for no task, queue or allocation of a library. Only what virtual IPs need is here.

use std::io;
use std::net::IpAddr;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::time::Duration;

use rustix::io::Errno;
use rustix::net::netlink::SocketAddrNetlink;
use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, netlink, sockopt};
use tokio::io::unix::AsyncFd;

/// Which part of the kernel is asked; none: addresses and interfaces (it is number 0).
pub(super) type Protocol = Option<rustix::net::Protocol>;
/// Addresses and interfaces.
pub(super) const ROUTE: Protocol = None;
/// Sockets.
pub(super) const DIAG: Protocol = Some(netlink::SOCK_DIAG);

const REQUEST: u16 = 1;
const ACK: u16 = 4;
const DUMP: u16 = 0x300;
/// Changes what is there.
pub(super) const REPLACE: u16 = 0x100;
/// Makes what is not there.
pub(super) const CREATE: u16 = 0x400;

const ERROR: u16 = 2;
const DONE: u16 = 3;
const HEADER: usize = 16;

/// The kernel answers at once; this only keeps a lost answer from stopping everything.
const PATIENCE: Duration = Duration::from_millis(500);

/// The kernel puts no more than this into one piece of a dump.
const BUFFER: usize = 32 * 1024;

/// A netlink socket for requests.
pub(super) struct Netlink {
    socket: OwnedFd,
    sequence: u32,
    buffer: Vec<u8>,
}

/// Opens a netlink socket that hears these groups (a bit each).
pub(super) fn open(protocol: Protocol, groups: u32, flags: SocketFlags) -> io::Result<OwnedFd> {
    let flags = flags | SocketFlags::CLOEXEC;
    let socket = rustix::net::socket_with(AddressFamily::NETLINK, SocketType::RAW, flags, protocol)?;
    rustix::net::bind(&socket, &SocketAddrNetlink::new(0, groups))?;
    Ok(socket)
}

/// Lets tokio wait for a socket.
pub(super) fn watched<T: AsFd + AsRawFd>(socket: T) -> io::Result<AsyncFd<T>> {
    // SAFETY: whoever calls hands over what owns its descriptor, which is open for as long as it lives and
    // always the same.
    #[allow(unsafe_code)]
    unsafe {
        Ok(AsyncFd::register(socket)?)
    }
}

impl Netlink {
    pub(super) fn open(protocol: Protocol) -> io::Result<Netlink> {
        let socket = open(protocol, 0, SocketFlags::empty())?;
        sockopt::set_socket_timeout(&socket, sockopt::Timeout::Recv, Some(PATIENCE))?;
        Ok(Netlink { socket, sequence: 0, buffer: vec![0; BUFFER] })
    }

    /// Has something done, and returns when it is.
    ///
    /// # Errors
    /// The kernel's.
    pub(super) fn request(&mut self, kind: u16, flags: u16, body: &[u8]) -> io::Result<()> {
        self.send(kind, flags | ACK, body)?;
        self.answers(&mut |_, _| {})
    }

    /// Asks for everything of a kind; `each` gets every message.
    ///
    /// # Errors
    /// The kernel's.
    pub(super) fn dump(
        &mut self,
        kind: u16,
        body: &[u8],
        each: &mut dyn FnMut(u16, &[u8]),
    ) -> io::Result<()> {
        self.send(kind, DUMP, body)?;
        self.answers(each)
    }

    fn send(&mut self, kind: u16, flags: u16, body: &[u8]) -> io::Result<()> {
        self.sequence = self.sequence.wrapping_add(1);
        // No request of ours comes near 64 kB.
        let length = (HEADER + body.len()) as u32;
        let mut message = Vec::with_capacity(HEADER + body.len());
        message.extend_from_slice(&length.to_ne_bytes());
        message.extend_from_slice(&kind.to_ne_bytes());
        message.extend_from_slice(&(flags | REQUEST).to_ne_bytes());
        message.extend_from_slice(&self.sequence.to_ne_bytes());
        message.extend_from_slice(&[0; 4]);
        message.extend_from_slice(body);
        rustix::net::sendto(&self.socket, &message, SendFlags::empty(), &SocketAddrNetlink::new(0, 0))?;
        Ok(())
    }

    fn answers(&mut self, each: &mut dyn FnMut(u16, &[u8])) -> io::Result<()> {
        loop {
            let (length, _) = match rustix::net::recv(&self.socket, &mut self.buffer[..], RecvFlags::empty())
            {
                Err(Errno::INTR) => continue,
                received => received?,
            };
            for message in messages(self.buffer.get(..length).unwrap_or_default()) {
                // What is left of an earlier request whose answer came too late.
                if message.sequence != self.sequence {
                    continue;
                }
                match message.kind {
                    DONE => return Ok(()),
                    ERROR => {
                        let code =
                            message.body.first_chunk::<4>().map_or(0, |code| i32::from_ne_bytes(*code));
                        return if code == 0 { Ok(()) } else { Err(io::Error::from_raw_os_error(-code)) };
                    }
                    kind => each(kind, message.body),
                }
            }
        }
    }
}

/// One message of what was received.
pub(super) struct Message<'a> {
    pub(super) kind: u16,
    pub(super) sequence: u32,
    pub(super) body: &'a [u8],
}

/// The messages of a datagram.
pub(super) fn messages(mut bytes: &[u8]) -> impl Iterator<Item = Message<'_>> {
    std::iter::from_fn(move || {
        let header = bytes.first_chunk::<HEADER>()?;
        let length = number(header, 0)? as usize;
        let body = bytes.get(HEADER..length)?;
        bytes = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
        let kind = u16::from_ne_bytes([header[4], header[5]]);
        Some(Message { kind, sequence: number(header, 8)?, body })
    })
}

/// The four bytes at this place as a number.
pub(super) fn number(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_ne_bytes(*bytes.get(at..)?.first_chunk()?))
}

/// Appends an attribute.
pub(super) fn put(body: &mut Vec<u8>, kind: u16, value: &[u8]) {
    // Values are addresses, names and small structures.
    body.extend_from_slice(&((value.len() + 4) as u16).to_ne_bytes());
    body.extend_from_slice(&kind.to_ne_bytes());
    body.extend_from_slice(value);
    body.resize(body.len().next_multiple_of(4), 0);
}

/// The attributes of a message, behind its fixed part.
pub(super) fn attributes(mut bytes: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    std::iter::from_fn(move || {
        let header = bytes.first_chunk::<4>()?;
        let length = usize::from(u16::from_ne_bytes([header[0], header[1]]));
        // Two bits mark nesting and byte order.
        let kind = u16::from_ne_bytes([header[2], header[3]]) & 0x3fff;
        let value = bytes.get(4..length)?;
        bytes = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some((kind, value))
    })
}

/// The family's number.
pub(super) fn family(ip: IpAddr) -> u8 {
    if ip.is_ipv4() { 2 } else { 10 }
}

/// An address as the kernel has it.
pub(super) fn octets(ip: IpAddr) -> Vec<u8> {
    match ip {
        IpAddr::V4(ip) => ip.octets().to_vec(),
        IpAddr::V6(ip) => ip.octets().to_vec(),
    }
}

/// An address from the kernel.
pub(super) fn address(bytes: &[u8]) -> Option<IpAddr> {
    let v4 = <[u8; 4]>::try_from(bytes).map(IpAddr::from);
    v4.or_else(|_| <[u8; 16]>::try_from(bytes).map(IpAddr::from)).ok()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn attributes_read_back_as_put() {
        let mut body = Vec::new();
        put(&mut body, 3, b"vpn0:0\0");
        put(&mut body, 2, &[10, 0, 0, 1]);
        put(&mut body, 9, &[]);
        assert_eq!(body.len(), 12 + 8 + 4);
        let read: Vec<(u16, &[u8])> = attributes(&body).collect();
        assert_eq!(read, [(3, &b"vpn0:0\0"[..]), (2, &[10, 0, 0, 1][..]), (9, &[][..])]);
    }

    #[test]
    fn an_error_is_the_kernels_own() {
        let mut netlink = Netlink::open(ROUTE).unwrap();
        // No such kind of message, and no such interface.
        assert_eq!(netlink.request(0x3ff, 0, &[0; 16]).unwrap_err().raw_os_error(), Some(95));
        let mut seen = 0;
        netlink.dump(18, &[0; 16], &mut |kind, _| seen += usize::from(kind == 16)).unwrap();
        assert!(seen > 0, "there is a loopback at least");
    }

    proptest! {
        #[test]
        fn no_bytes_make_it_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200), length in 0u32..220) {
            let mut bytes = bytes;
            if let Some(first) = bytes.first_chunk_mut::<4>() {
                *first = length.to_ne_bytes();
            }
            for message in messages(&bytes).take(100) {
                attributes(message.body).take(100).for_each(drop);
            }
        }
    }
}
