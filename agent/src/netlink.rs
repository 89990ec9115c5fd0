//! Netlink without a library: the socket here, the messages in [`route`]. A request is one system call and
//! its answer another, so that removing an address waits for no task, queue or allocation of a library. Only
//! what `net` and `vip` need is here; netlink-packet-route would make the binary 0.4 MB larger and reject an
//! interface with an attribute that it can't parse.
//!
//! The kernel answers within the call, so a request does not wait; only changes are awaited.

pub(crate) mod listeners;
pub(crate) mod route;

use std::fmt;
use std::io;
use std::net::IpAddr;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::time::Duration;

use nix::sys::socket::{setsockopt, sockopt::SetBool};
use nix::{libc, setsockopt_impl};
use rustix::io::Errno;
use rustix::net::netlink::SocketAddrNetlink;
use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, netlink, sockopt};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// Netlink protocol; `None`: addresses, interfaces and routes (it is number 0).
pub(crate) type Protocol = Option<rustix::net::Protocol>;
/// Addresses, interfaces and routes.
pub(crate) const ROUTE: Protocol = None;
/// Sockets.
pub(crate) const DIAG: Protocol = Some(netlink::SOCK_DIAG);

const ERROR: u16 = 2;
const DONE: u16 = 3;

const REQUEST: u16 = 1;
const ACK: u16 = 4;
const DUMP: u16 = 0x300;
/// Replaces an existing object.
pub(crate) const REPLACE: u16 = 0x100;
/// Creates a missing object.
pub(crate) const CREATE: u16 = 0x400;

// The kernel's marks on messages: a dump that spans a change; an error without the body of its request; one
// with a text.
const INTERRUPTED: u16 = 0x10;
const CAPPED: u16 = 0x100;
const WORDS: u16 = 0x200;

/// Groups of changes: links, IPv4 addresses, IPv6 addresses.
const CHANGES: u32 = 0x1 | 0x10 | 0x100;

const HEADER: usize = 16;

/// The kernel answers at once; this only keeps a lost answer from blocking everything.
const PATIENCE: Duration = Duration::from_millis(500);

/// The kernel puts no more than this into one part of a dump.
const BUFFER: usize = 32 * 1024;

/// Attempts at a dump that spans a change. If something changes all the time, the last one is used: one entry
/// of it may be missing or old, and the listener gets the change that caused it.
const DUMPS: u32 = 4;

/// A netlink socket for requests.
pub(crate) struct Netlink {
    socket: OwnedFd,
    sequence: u32,
    buffer: Vec<u8>,
}

#[derive(Clone)]
struct ExplainedError;
setsockopt_impl!(ExplainedError, libc::SOL_NETLINK, libc::NETLINK_EXT_ACK, bool, SetBool);

/// Opens a netlink socket that receives these groups (a bit each).
fn open(protocol: Protocol, groups: u32, flags: SocketFlags) -> io::Result<OwnedFd> {
    let flags = flags | SocketFlags::CLOEXEC;
    let socket = rustix::net::socket_with(AddressFamily::NETLINK, SocketType::RAW, flags, protocol)?;
    rustix::net::bind(&socket, &SocketAddrNetlink::new(0, groups))?;
    Ok(socket)
}

/// Lets tokio wait for what a socket receives. Not for room to send: the kernel would wake the agent each time that
/// something has left.
pub(crate) fn watched<T: AsFd + AsRawFd>(socket: T) -> io::Result<AsyncFd<T>> {
    // SAFETY: the caller passes the owner of the descriptor, which stays open and the same for its lifetime.
    #[allow(unsafe_code)]
    unsafe {
        Ok(AsyncFd::register_with_interest(socket, Interest::READABLE | Interest::ERROR)?)
    }
}

impl Netlink {
    pub(crate) fn open(protocol: Protocol) -> io::Result<Netlink> {
        let socket = open(protocol, 0, SocketFlags::empty())?;
        sockopt::set_socket_timeout(&socket, sockopt::Timeout::Recv, Some(PATIENCE))?;
        // Connected to the kernel, so nobody else can send.
        rustix::net::connect(&socket, &SocketAddrNetlink::new(0, 0))?;
        // A kernel before 4.12 sends only numbers.
        let _ = setsockopt(&socket, ExplainedError, &true);
        Ok(Netlink::over(socket))
    }

    fn over(socket: OwnedFd) -> Netlink {
        Netlink { socket, sequence: 0, buffer: vec![0; BUFFER] }
    }

    /// Performs a change, and returns when it is done.
    ///
    /// # Errors
    /// The kernel's.
    pub(crate) fn request(&mut self, kind: u16, flags: u16, body: &[u8]) -> io::Result<()> {
        self.send(kind, flags | ACK, body)?;
        self.answer(&mut |_, _| {}).map(drop)
    }

    /// Requests one object; None when the answer has nothing that `read` accepts.
    ///
    /// # Errors
    /// The kernel's.
    pub(crate) fn get<T>(
        &mut self,
        kind: u16,
        body: &[u8],
        read: impl Fn(u16, &[u8]) -> Option<T>,
    ) -> io::Result<Option<T>> {
        self.send(kind, ACK, body)?;
        let mut found = None;
        self.answer(&mut |kind, body| found = found.take().or_else(|| read(kind, body)))?;
        Ok(found)
    }

    /// Requests all objects of a kind and keeps those that `read` accepts.
    ///
    /// # Errors
    /// The kernel's.
    pub(crate) fn dump<T>(
        &mut self,
        kind: u16,
        body: &[u8],
        read: impl Fn(u16, &[u8]) -> Option<T>,
    ) -> io::Result<Vec<T>> {
        let mut all = Vec::new();
        for _ in 0..DUMPS {
            all.clear();
            self.send(kind, DUMP, body)?;
            if self.answer(&mut |kind, body| all.extend(read(kind, body)))? {
                break;
            }
        }
        Ok(all)
    }

    fn send(&mut self, kind: u16, flags: u16, body: &[u8]) -> io::Result<()> {
        self.sequence = self.sequence.wrapping_add(1);
        let message = message(kind, flags | REQUEST, self.sequence, body);
        rustix::net::send(&self.socket, &message, SendFlags::empty())?;
        Ok(())
    }

    /// Reads the whole answer; false when something has changed meanwhile.
    fn answer(&mut self, each: &mut dyn FnMut(u16, &[u8])) -> io::Result<bool> {
        let mut whole = true;
        loop {
            let received = rustix::net::recv(&self.socket, &mut self.buffer[..], RecvFlags::TRUNC);
            let length = match received {
                Err(Errno::INTR) => continue,
                Err(Errno::AGAIN) => {
                    return Err(io::Error::new(io::ErrorKind::TimedOut, "the kernel does not respond"));
                }
                received => received?.1,
            };
            // A truncated answer is not taken for a whole one.
            let bytes = self.buffer.get(..length).ok_or(Errno::MSGSIZE)?;
            for message in messages(bytes) {
                // Left over from an earlier request whose answer came too late.
                if message.sequence != self.sequence {
                    continue;
                }
                whole &= message.flags & INTERRUPTED == 0;
                match message.kind {
                    DONE | ERROR => return message.verdict().map(|()| whole),
                    kind => each(kind, message.body),
                }
            }
        }
    }
}

/// The kernel's notifications about addresses and interfaces.
pub(crate) struct KernelChanges {
    socket: AsyncFd<OwnedFd>,
    buffer: Vec<u8>,
}

impl KernelChanges {
    /// Subscribes from now on.
    ///
    /// # Errors
    /// There may be no such socket.
    pub(crate) fn subscribe() -> io::Result<KernelChanges> {
        let socket = open(ROUTE, CHANGES, SocketFlags::NONBLOCK)?;
        Ok(KernelChanges { socket: watched(socket)?, buffer: vec![0; BUFFER / 2] })
    }

    /// Waits for a datagram of changes; None when some were lost, so that everything has to be read again.
    /// Cancelling the wait loses nothing.
    ///
    /// # Errors
    /// The socket's.
    pub(crate) async fn next(&mut self) -> io::Result<Option<&[u8]>> {
        loop {
            let mut ready = self.socket.readable().await?;
            let buffer = &mut self.buffer[..];
            let received =
                ready.try_io(|socket| Ok(rustix::net::recv(socket.get_ref(), buffer, RecvFlags::TRUNC)?));
            match received {
                Err(_would_block) => {}
                // They came faster than they were read.
                Ok(Err(error)) if errno(&error) == Some(Errno::NOBUFS) => return Ok(None),
                // One that is longer than the buffer is truncated, and as good as lost.
                Ok(received) => return received.map(|(_, length)| self.buffer.get(..length)),
            }
        }
    }
}

/// One message of a datagram.
pub(crate) struct NetlinkMessage<'a> {
    pub(crate) kind: u16,
    flags: u16,
    sequence: u32,
    pub(crate) body: &'a [u8],
}

impl NetlinkMessage<'_> {
    /// The result in the last message of an answer.
    fn verdict(&self) -> io::Result<()> {
        let code = number(self.body, 0).map_or(0, u32::cast_signed);
        if code >= 0 {
            return Ok(());
        }
        let error = io::Error::from_raw_os_error(code.saturating_neg());
        Err(match self.words() {
            Some(words) => io::Error::new(error.kind(), NetlinkError { error, words }),
            None => error,
        })
    }

    /// The kernel's text for an error, in addition to its number.
    fn words(&self) -> Option<String> {
        if self.flags & WORDS == 0 {
            return None;
        }
        // It follows the request, which may be its header alone; the end of a dump has none.
        let request = match self.kind {
            ERROR if self.flags & CAPPED == 0 => number(self.body, 4)? as usize,
            ERROR => HEADER,
            _ => 0,
        };
        let rest = self.body.get(4..)?.get(request.checked_next_multiple_of(4)?..)?;
        attribute(rest, 1).map(text).filter(|words| !words.is_empty())
    }
}

/// A refusal that the kernel explains.
#[derive(Debug)]
struct NetlinkError {
    error: io::Error,
    words: String,
}

impl fmt::Display for NetlinkError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.error, self.words)
    }
}

impl std::error::Error for NetlinkError {}

/// The kernel's number for an error, explained or not; None when it is not the kernel's.
pub(crate) fn errno(error: &io::Error) -> Option<Errno> {
    let refused = error.get_ref().and_then(|inner| inner.downcast_ref::<NetlinkError>());
    Errno::from_io_error(refused.map_or(error, |refused| &refused.error))
}

fn message(kind: u16, flags: u16, sequence: u32, body: &[u8]) -> Vec<u8> {
    // No request of ours comes near 64 kB.
    let length = (HEADER + body.len()) as u32;
    let mut message = Vec::with_capacity(HEADER + body.len());
    message.extend_from_slice(&length.to_ne_bytes());
    message.extend_from_slice(&kind.to_ne_bytes());
    message.extend_from_slice(&flags.to_ne_bytes());
    message.extend_from_slice(&sequence.to_ne_bytes());
    message.extend_from_slice(&[0; 4]);
    message.extend_from_slice(body);
    message
}

/// The messages of a datagram.
pub(crate) fn messages(mut bytes: &[u8]) -> impl Iterator<Item = NetlinkMessage<'_>> {
    std::iter::from_fn(move || {
        let header = bytes.first_chunk::<HEADER>()?;
        let length = number(header, 0)? as usize;
        let body = bytes.get(HEADER..length)?;
        bytes = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
        let short = |at: usize| u16::from_ne_bytes([header[at], header[at + 1]]);
        Some(NetlinkMessage { kind: short(4), flags: short(6), sequence: number(header, 8)?, body })
    })
}

/// The four bytes at this place as a number.
pub(crate) fn number(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_ne_bytes(*bytes.get(at..)?.first_chunk()?))
}

/// A text, which the kernel ends with a zero.
pub(crate) fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes.strip_suffix(&[0]).unwrap_or(bytes)).into_owned()
}

/// Appends an attribute.
pub(crate) fn put(body: &mut Vec<u8>, kind: u16, value: &[u8]) {
    // Values are addresses, names and small structures.
    body.extend_from_slice(&((value.len() + 4) as u16).to_ne_bytes());
    body.extend_from_slice(&kind.to_ne_bytes());
    body.extend_from_slice(value);
    body.resize(body.len().next_multiple_of(4), 0);
}

/// The attributes of a message, after its fixed part.
pub(crate) fn attributes(mut bytes: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
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

/// The first attribute of a kind.
pub(crate) fn attribute(bytes: &[u8], wanted: u16) -> Option<&[u8]> {
    attributes(bytes).find(|(kind, _)| *kind == wanted).map(|(_, value)| value)
}

/// The family's number.
pub(crate) fn family(ip: IpAddr) -> u8 {
    if ip.is_ipv4() { 2 } else { 10 }
}

/// An address as the kernel has it.
pub(crate) fn octets(ip: IpAddr) -> Vec<u8> {
    match ip {
        IpAddr::V4(ip) => ip.octets().to_vec(),
        IpAddr::V6(ip) => ip.octets().to_vec(),
    }
}

/// An address from the kernel.
pub(crate) fn address(bytes: &[u8]) -> Option<IpAddr> {
    let v4 = <[u8; 4]>::try_from(bytes).map(IpAddr::from);
    v4.or_else(|_| <[u8; 16]>::try_from(bytes).map(IpAddr::from)).ok()
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixDatagram;

    use nix::libc::{RTM_GETLINK, RTM_GETROUTE, RTM_NEWADDR, RTM_NEWLINK};
    use proptest::prelude::*;

    use super::*;
    use crate::testing::in_namespaces;

    #[test]
    fn attributes_read_back_as_put() {
        let mut body = Vec::new();
        put(&mut body, 3, b"vpn0:0\0");
        put(&mut body, 2, &[10, 0, 0, 1]);
        put(&mut body, 9, &[]);
        assert_eq!(body.len(), 12 + 8 + 4);
        let read: Vec<(u16, &[u8])> = attributes(&body).collect();
        assert_eq!(read, [(3, &b"vpn0:0\0"[..]), (2, &[10, 0, 0, 1][..]), (9, &[][..])]);
        assert_eq!(attribute(&body, 3).map(text).as_deref(), Some("vpn0:0"));
    }

    #[test]
    fn an_error_is_the_kernels_own() {
        let mut netlink = Netlink::open(ROUTE).unwrap();
        // No such kind of message, and no such interface.
        let error = netlink.request(0x3ff, 0, &[0; 16]).unwrap_err();
        assert_eq!(errno(&error), Some(Errno::OPNOTSUPP), "{error}");
        let error = netlink
            .get(RTM_GETLINK, &route::LinkMessage::ask(Some(u32::MAX >> 1), None), |_, _| Some(()))
            .unwrap_err();
        assert_eq!(errno(&error), Some(Errno::NODEV), "{error}");
        let seen =
            netlink.dump(RTM_GETLINK, &[0; 16], |kind, _| (kind == RTM_NEWLINK).then_some(())).unwrap();
        assert!(!seen.is_empty(), "there is a loopback at least");
    }

    #[test]
    fn an_error_keeps_the_kernels_text() {
        let mut netlink = Netlink::open(ROUTE).unwrap();
        // An interface's number (RTA_OIF) has four bytes.
        let mut body = vec![2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
        put(&mut body, 4, &[1, 2]);
        let error = netlink.get(RTM_GETROUTE, &body, |_, _| Some(())).unwrap_err();
        let number = errno(&error).unwrap();
        let words = error.to_string();
        assert!(words.contains(&format!("(os error {}): ", number.raw_os_error())), "{words}");
    }

    #[test]
    fn the_kernels_text_is_found_after_the_request_or_its_header() {
        let words = |kind, flags, request: &[u8]| {
            let mut body = (-22i32).to_ne_bytes().to_vec();
            body.extend_from_slice(request);
            put(&mut body, 1, b"no\0");
            NetlinkMessage { kind, flags, sequence: 1, body: &body }.verdict().unwrap_err().to_string()
        };
        let request = message(RTM_GETLINK, 0, 1, &[7; 8]);
        let said = "Invalid argument (os error 22): no";
        assert_eq!(words(ERROR, WORDS, &request), said);
        assert_eq!(words(ERROR, WORDS | CAPPED, &request[..HEADER]), said);
        assert_eq!(words(DONE, WORDS, &[]), said);
        assert_eq!(words(ERROR, 0, &request), "Invalid argument (os error 22)");
    }

    /// The result of a two-part dump, when the kernel marks so many of its dumps as interrupted.
    fn dumped(interrupted: u32) -> (Vec<u8>, u32) {
        let (kernel, ours) = UnixDatagram::pair().unwrap();
        let mut netlink = Netlink::over(ours.into());
        let answering = std::thread::spawn(move || {
            let (mut request, mut asked) = ([0; 100], 0);
            while kernel.recv(&mut request).unwrap() > 0 {
                asked += 1;
                let flags = if asked <= interrupted { INTERRUPTED } else { 0 };
                let sequence = number(&request, 8).unwrap();
                let stale = message(RTM_NEWLINK, 0, sequence.wrapping_sub(1), &[99]);
                let one = message(RTM_NEWLINK, 0, sequence, &[asked as u8, 0, 0, 0]);
                kernel.send(&[stale, vec![0; 3], one].concat()).unwrap();
                let two = message(RTM_NEWLINK, flags, sequence, &[asked as u8 + 100, 0, 0, 0]);
                kernel.send(&[two, message(DONE, 0, sequence, &[0; 4])].concat()).unwrap();
            }
            asked
        });
        let all = netlink.dump(RTM_GETLINK, &[], |_, body| body.first().copied()).unwrap();
        rustix::net::send(&netlink.socket, &[], SendFlags::empty()).unwrap();
        (all, answering.join().unwrap())
    }

    #[test]
    fn a_dump_that_spans_a_change_is_repeated_but_not_forever() {
        assert_eq!(dumped(0), (vec![1, 101], 1));
        assert_eq!(dumped(2), (vec![3, 103], 3));
        assert_eq!(dumped(u32::MAX), (vec![DUMPS as u8, DUMPS as u8 + 100], DUMPS));
    }

    #[test]
    fn an_answer_with_an_error_or_truncated_is_none() {
        let (kernel, ours) = UnixDatagram::pair().unwrap();
        let mut netlink = Netlink::over(ours.into());
        let mut said = |answer: &[u8]| {
            kernel.send(answer).unwrap();
            // Its number is the next.
            errno(&netlink.dump(RTM_GETLINK, &[], |_, body| Some(body.to_vec())).unwrap_err())
        };
        let busy = (-16i32).to_ne_bytes();
        let found = message(RTM_NEWLINK, 0, 1, &[0; 4]);
        assert_eq!(said(&[found, message(DONE, 0, 1, &busy)].concat()), Some(Errno::BUSY));
        assert_eq!(said(&message(RTM_NEWLINK, 0, 2, &[0; BUFFER])), Some(Errno::MSGSIZE));
    }

    #[test]
    fn lost_changes_are_reported_once_and_the_next_ones_arrive() {
        let test = "netlink::tests::lost_changes_are_reported_once_and_the_next_ones_arrive";
        if in_namespaces(test, &["--net"], "ip link set lo up").is_none() {
            return;
        }
        let mut netlink = Netlink::open(ROUTE).unwrap();
        let mut add = |last: u8| {
            let mut body = vec![2, 32, 0, 0, 1, 0, 0, 0];
            put(&mut body, 2, &[10, 9, 0, last]);
            netlink.request(RTM_NEWADDR, CREATE, &body).unwrap();
        };
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let mut changes = KernelChanges::subscribe().unwrap();
            sockopt::set_socket_recv_buffer_size(changes.socket.get_ref(), 1).unwrap();
            (1..200).for_each(&mut add);
            assert!(changes.next().await.unwrap().is_none());
            // Earlier changes are still there.
            let kept = tokio::time::timeout(Duration::ZERO, async {
                while changes.next().await.unwrap().is_some() {}
            });
            assert!(kept.await.is_err(), "lost twice");
            add(200);
            let next = changes.next().await.unwrap().unwrap();
            let message = messages(next).next().unwrap();
            assert_eq!(message.kind, RTM_NEWADDR);
            assert_eq!(attribute(&message.body[8..], 2), Some(&[10, 9, 0, 200][..]));
        });
    }

    proptest! {
        #[test]
        fn no_bytes_make_it_panic(
            bytes in proptest::collection::vec(any::<u8>(), 0..200), length in 0u32..220, flags: u16,
        ) {
            let mut bytes = bytes;
            if let Some(first) = bytes.first_chunk_mut::<4>() {
                *first = length.to_ne_bytes();
            }
            for message in messages(&bytes).take(100) {
                attributes(message.body).take(100).for_each(drop);
            }
            for kind in [ERROR, DONE] {
                let _ = NetlinkMessage { kind, flags, sequence: 0, body: &bytes }.verdict();
            }
        }
    }
}
