//! Frames of ARP and neighbour discovery on one interface, past the kernel's own tables.
//!
//! A socket sees only what its filter lets through, in the kernel: answers, and whoever speaks as one of
//! the virtual IPs. A segment full of other questions wakes nobody.

use std::io;
use std::net::IpAddr;
use std::task::{Context, Poll};

use proto::arp::{ArpOperation, ArpPacket, Mac};
use proto::ndp;
use socket2::{Domain, Protocol, SockAddr, SockAddrStorage, SockFilter, Socket, Type};
use tokio::io::unix::AsyncFd;

use crate::netlink::watched;

const ETHERTYPE_ARP: u16 = 0x0806;
const ETHERTYPE_IPV6: u16 = 0x86dd;

/// The kernel's `sockaddr_ll`.
#[repr(C)]
struct LinkAddress {
    family: u16,
    /// In network order.
    protocol: u16,
    index: u32,
    hardware: u16,
    packet_type: u8,
    length: u8,
    address: [u8; 8],
}

/// Says that someone has an address.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct AddressSighting {
    pub(super) ip: IpAddr,
    pub(super) mac: Mac,
}

/// Where frames go out and come in: one family on one interface.
pub(super) struct PacketSocket {
    socket: AsyncFd<Socket>,
    own: Mac,
    v4: bool,
}

impl PacketSocket {
    /// Opens it on the interface with this index and Ethernet address. `vips` are the addresses whose
    /// claims are wanted even from those who only ask; all of one family, at least one.
    ///
    /// # Errors
    /// CAP_NET_RAW is missing, or the interface is gone.
    pub(super) fn open(index: u32, own: Mac, vips: &[IpAddr]) -> io::Result<PacketSocket> {
        let v4 = vips.iter().any(IpAddr::is_ipv4);
        let ethertype = if v4 { ETHERTYPE_ARP } else { ETHERTYPE_IPV6 };
        // With protocol 0 nothing comes in before the filter stands.
        let socket = Socket::new(Domain::PACKET, Type::RAW, Some(Protocol::from(0)))?;
        socket.set_nonblocking(true)?;
        socket.attach_filter(&if v4 { arp_filter(vips) } else { advertisement_filter() })?;
        socket.bind(&link_address(index, ethertype))?;
        Ok(PacketSocket { socket: watched(socket)?, own, v4 })
    }

    /// Asks who has an address, without claiming one.
    pub(super) fn probe(&self, address: IpAddr) {
        match address {
            IpAddr::V4(ip) => self.send(&ArpPacket::probe(self.own, ip).to_frame(Mac::BROADCAST)),
            IpAddr::V6(ip) => self.send(&ndp::probe(self.own, ip)),
        }
    }

    /// Asks who has `target`, as the one who has `sender`.
    pub(super) fn request(&self, sender: IpAddr, target: IpAddr) {
        match (sender, target) {
            (IpAddr::V4(sender), IpAddr::V4(target)) => {
                self.send(&ArpPacket::request(self.own, sender, target).to_frame(Mac::BROADCAST));
            }
            (IpAddr::V6(sender), IpAddr::V6(target)) => {
                self.send(&ndp::solicitation(self.own, sender, target));
            }
            _ => {}
        }
    }

    /// Says to all that an address is here.
    pub(super) fn announce(&self, address: IpAddr) {
        match address {
            IpAddr::V4(ip) => {
                for operation in [ArpOperation::Request, ArpOperation::Reply] {
                    self.send(&ArpPacket::announcement(self.own, ip, operation).to_frame(Mac::BROADCAST));
                }
            }
            IpAddr::V6(ip) => self.send(&ndp::announcement(self.own, ip)),
        }
    }

    /// Says to one that an address is here.
    pub(super) fn announce_to(&self, address: IpAddr, to: Mac, at: IpAddr) {
        match (address, at) {
            (IpAddr::V4(ip), IpAddr::V4(at)) => {
                self.send(&ArpPacket::unicast_announcement(self.own, ip, to, at).to_frame(to));
            }
            (IpAddr::V6(ip), IpAddr::V6(at)) => self.send(&ndp::unicast_advertisement(self.own, ip, to, at)),
            _ => {}
        }
    }

    /// What can't be sent now is as good as lost on the way; whoever waits for an answer asks again.
    fn send(&self, frame: &[u8]) {
        if let Err(error) = self.socket.get_ref().send(frame) {
            tracing::debug!("cannot send a frame: {error}");
        }
    }

    /// Waits for someone else's claim.
    ///
    /// # Errors
    /// The interface went down or away.
    pub(super) fn poll_claim(&self, context: &mut Context<'_>) -> Poll<io::Result<AddressSighting>> {
        // ARP, or an advertisement with a few options; the rest of anything longer is none of ours.
        let mut buffer = [0; 256];
        loop {
            let mut ready = std::task::ready!(self.socket.poll_read_ready(context))?;
            let length = match ready.try_io(|socket| io::Read::read(&mut socket.get_ref(), &mut buffer)) {
                Err(_would_block) => continue,
                Ok(received) => received?,
            };
            let claim = buffer.get(..length).and_then(|frame| self.read(frame));
            if let Some(claim) = claim.filter(|claim| claim.mac != self.own) {
                return Poll::Ready(Ok(claim));
            }
        }
    }

    fn read(&self, frame: &[u8]) -> Option<AddressSighting> {
        if self.v4 {
            let (ip, mac) = ArpPacket::parse(frame)?.claim()?;
            return Some(AddressSighting { ip: ip.into(), mac });
        }
        ndp::parse(frame).map(|said| AddressSighting { ip: said.target.into(), mac: said.mac })
    }
}

fn link_address(index: u32, ethertype: u16) -> SockAddr {
    const FAMILY: u16 = 17;
    let address = LinkAddress {
        family: FAMILY,
        protocol: ethertype.to_be(),
        index,
        hardware: 0,
        packet_type: 0,
        length: 0,
        address: [0; 8],
    };
    let mut storage = SockAddrStorage::zeroed();
    // SAFETY: LinkAddress is laid out as the kernel's sockaddr_ll, is smaller than the storage and needs no
    // stricter alignment, and the length is its own.
    #[allow(unsafe_code)]
    unsafe {
        *storage.view_as::<LinkAddress>() = address;
        SockAddr::new(storage, size_of::<LinkAddress>() as _)
    }
}

// Instructions of the kernel's packet filter (`linux/filter.h`).
const LOAD_WORD: u16 = 0x20;
const LOAD_HALF: u16 = 0x28;
const LOAD_BYTE: u16 = 0x30;
const IF_EQUAL: u16 = 0x15;
const RETURN: u16 = 0x06;
const WHOLE: u32 = 0xffff;

/// Replies, and whoever speaks as one of these addresses.
fn arp_filter(vips: &[IpAddr]) -> Vec<SockFilter> {
    let senders: Vec<u32> = vips
        .iter()
        .filter_map(|ip| match ip {
            IpAddr::V4(ip) => Some(ip.to_bits()),
            IpAddr::V6(_) => None,
        })
        // Jumps reach no further; more virtual IPs than this are still seen by their replies.
        .take(200)
        .collect();
    let count = senders.len() as u8;
    let mut filter = vec![
        SockFilter::new(LOAD_HALF, 0, 0, 20),
        // To the end, where it is taken.
        SockFilter::new(IF_EQUAL, count + 2, 0, 2),
        SockFilter::new(LOAD_WORD, 0, 0, 28),
    ];
    for (i, sender) in senders.iter().enumerate() {
        filter.push(SockFilter::new(IF_EQUAL, count - i as u8, 0, *sender));
    }
    filter.push(SockFilter::new(RETURN, 0, 0, 0));
    filter.push(SockFilter::new(RETURN, 0, 0, WHOLE));
    filter
}

/// ICMPv6 neighbour advertisements without extension headers, which none has.
fn advertisement_filter() -> Vec<SockFilter> {
    vec![
        SockFilter::new(LOAD_BYTE, 0, 0, 20),
        SockFilter::new(IF_EQUAL, 0, 3, 58),
        SockFilter::new(LOAD_BYTE, 0, 0, 54),
        SockFilter::new(IF_EQUAL, 0, 1, 136),
        SockFilter::new(RETURN, 0, 0, WHOLE),
        SockFilter::new(RETURN, 0, 0, 0),
    ]
}

#[cfg(test)]
mod tests {
    use std::process::Command;
    use std::time::Duration;

    use tokio::time::timeout;

    use super::*;
    use crate::testing::in_namespaces;
    use crate::vip::kernel::KernelAddresses;

    const OWN: Mac = Mac([2, 0, 0, 0, 0, 1]);
    const OTHER: Mac = Mac([2, 0, 0, 0, 0, 2]);

    fn run(line: &str) {
        let status = Command::new("sh").args(["-c", line]).status().unwrap();
        assert!(status.success(), "{line}");
    }

    fn index(interface: &str) -> u32 {
        let mut kernel = KernelAddresses::default();
        kernel.open();
        assert!(kernel.list());
        let index = kernel.interfaces().iter().find(|one| one.name == interface).unwrap().index;
        // With it this thread's capabilities would go.
        std::mem::forget(kernel);
        index
    }

    /// w0 here and w1 in a network of its own, held by a process that is killed with the returned value.
    struct Other(std::process::Child);

    impl Other {
        fn new() -> Other {
            let child = Command::new("unshare").args(["--net", "sleep", "60"]).spawn().unwrap();
            let pid = child.id();
            std::thread::sleep(Duration::from_millis(300));
            run(&format!("ip link set w1 netns {pid}"));
            let other = Other(child);
            other.run("ip link set lo up");
            other.run("ip link set w1 address 02:00:00:00:00:02 up");
            other.run("ip addr add 10.9.0.2/24 dev w1; ip addr add fd09::2/64 dev w1 nodad");
            other
        }

        fn run(&self, line: &str) {
            let pid = self.0.id().to_string();
            let status = Command::new("nsenter").args(["--net", "--target", &pid, "sh", "-c", line]).status();
            assert!(status.unwrap().success(), "{line}");
        }
    }

    impl Drop for Other {
        fn drop(&mut self) {
            let _ = self.0.kill();
            let _ = self.0.wait();
        }
    }

    const SETUP: &str = "
        ip link set lo up
        ip link add w0 address 02:00:00:00:00:01 type veth peer name w1
        ip addr add 10.9.0.1/24 dev w0; ip addr add fd09::1/64 dev w0 nodad; ip link set w0 up";

    async fn next(wire: &PacketSocket) -> Option<AddressSighting> {
        let claim = std::future::poll_fn(|context| wire.poll_claim(context));
        timeout(Duration::from_millis(500), claim).await.ok().and_then(Result::ok)
    }

    #[test]
    fn a_neighbour_answers_probes_and_questions_and_learns_from_announcements() {
        let test =
            "vip::packet::tests::a_neighbour_answers_probes_and_questions_and_learns_from_announcements";
        if in_namespaces(test, &["--net"], SETUP).is_none() {
            return;
        }
        let other = Other::new();
        let index = index("w0");
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            for (vip, own, at) in [("10.9.0.50", "10.9.0.1", "10.9.0.2"), ("fd09::50", "fd09::1", "fd09::2")]
            {
                let [vip, own, at] = [vip, own, at].map(|text| text.parse::<IpAddr>().unwrap());
                let wire = PacketSocket::open(index, OWN, &[vip]).unwrap();
                wire.probe(vip);
                assert_eq!(next(&wire).await, None, "nobody has {vip}");
                wire.request(own, at);
                assert_eq!(next(&wire).await, Some(AddressSighting { ip: at, mac: OTHER }));
                wire.probe(at);
                assert_eq!(
                    next(&wire).await,
                    Some(AddressSighting { ip: at, mac: OTHER }),
                    "a probe of what is there"
                );
                // The other learns where the address is, and learns anew.
                other.run(&format!("ip neigh add {vip} lladdr 02:00:00:00:00:99 nud stale dev w1"));
                wire.announce(vip);
                let learnt = format!("ip neigh show {vip} dev w1 | grep -q 02:00:00:00:00:01");
                other.run(&format!(
                    "for i in 1 2 3 4 5 6 7 8 9; do {learnt} && exit 0; sleep 0.1; done; false"
                ));
                other.run(&format!("ip neigh replace {vip} lladdr 02:00:00:00:00:99 nud stale dev w1"));
                // Linux takes a second change within a second only if it is forced to look (LOCKTIME).
                tokio::time::sleep(Duration::from_millis(1_100)).await;
                wire.announce_to(vip, OTHER, at);
                other.run(&format!(
                    "for i in 1 2 3 4 5 6 7 8 9; do {learnt} && exit 0; sleep 0.1; done; false"
                ));
            }
        });
    }

    #[test]
    fn claims_of_others_are_seen_and_other_questions_are_not() {
        let test = "vip::packet::tests::claims_of_others_are_seen_and_other_questions_are_not";
        if in_namespaces(test, &["--net"], SETUP).is_none() {
            return;
        }
        let other = Other::new();
        let index = index("w0");
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let vip: IpAddr = "10.9.0.50".parse().unwrap();
            let wire = PacketSocket::open(index, OWN, &[vip]).unwrap();
            other.run("ping -c 1 -W 1 10.9.0.77 >/dev/null 2>&1; true");
            assert_eq!(next(&wire).await, None, "a question of someone else");
            other.run("ip addr add 10.9.0.50/32 dev w1; ping -c 1 -W 1 -I 10.9.0.50 10.9.0.78 >/dev/null 2>&1; true");
            assert_eq!(next(&wire).await, Some(AddressSighting { ip: vip, mac: OTHER }));
        });
    }
}
