//! What virtual IPs want of the kernel: addresses that end by themselves, interfaces, neighbours, and word
//! of changes.

use std::io;
use std::net::IpAddr;

use nix::libc::{
    IFA_F_NODAD, IFA_F_NOPREFIXROUTE, RTM_DELADDR, RTM_DELLINK, RTM_GETADDR, RTM_GETLINK, RTM_GETNEIGH,
    RTM_NEWADDR, RTM_NEWLINK, RTM_NEWNEIGH,
};
use proto::arp::Mac;
use rustix::io::Errno;

use crate::netlink::route::{AddressMessage, EVERY_ADDRESS, EVERY_NEIGHBOUR, LinkMessage, NeighbourMessage};
use crate::netlink::{self, CREATE, Netlink, REPLACE, ROUTE, errno, messages};

/// Nobody is asked about it for a second, and nothing is routed by it.
const V6_FLAGS: u32 = IFA_F_NODAD | IFA_F_NOPREFIXROUTE;

/// An interface, as far as a virtual IP cares.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct LinkState {
    pub(super) index: u32,
    pub(super) name: String,
    /// Its Ethernet address.
    pub(super) mac: Option<Mac>,
    /// What the driver calls itself.
    pub(super) kind: String,
    /// IFF_ flags.
    pub(super) flags: u32,
    /// ARPHRD_ number; 1 is Ethernet.
    pub(super) hardware: u16,
    /// Its own `arp_ignore`, where the kernel says it.
    pub(super) arp_ignore: u32,
}

/// An address on an interface.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct HeldAddress {
    pub(super) index: u32,
    pub(super) ip: IpAddr,
    pub(super) prefix: u8,
    /// It ends by itself, as ours do.
    pub(super) ends: bool,
}

/// What to ask the kernel with.
pub(super) struct VipKernel(Netlink);

impl VipKernel {
    pub(super) fn open() -> io::Result<VipKernel> {
        Ok(VipKernel(Netlink::open(ROUTE)?))
    }

    /// Sets an address for so many seconds, or lengthens its time.
    pub(super) fn hold(
        &mut self,
        ip: IpAddr,
        index: u32,
        label: Option<&str>,
        seconds: u32,
    ) -> io::Result<()> {
        // Preferred for 0 seconds: IPv6 would else choose it as source of this node's own connections,
        // which would break when it moves. IPv4 prefers an address of the network anyway.
        let body = match ip {
            IpAddr::V4(_) => AddressMessage::make(ip, index, label, (seconds, seconds), 0),
            IpAddr::V6(_) => AddressMessage::make(ip, index, None, (0, seconds), V6_FLAGS),
        };
        self.0.request(RTM_NEWADDR, CREATE | REPLACE, &body)
    }

    /// Takes an address away; true when it was there.
    pub(super) fn drop(&mut self, ip: IpAddr, index: u32) -> io::Result<bool> {
        match self.0.request(RTM_DELADDR, 0, &AddressMessage::name(ip, index)) {
            Ok(()) => Ok(true),
            Err(error) if absent(&error) => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// All addresses of this node.
    pub(super) fn addresses(&mut self) -> io::Result<Vec<HeldAddress>> {
        self.0.dump(RTM_GETADDR, &EVERY_ADDRESS, |kind, body| {
            AddressMessage::read(kind, body).map(HeldAddress::from)
        })
    }

    /// All interfaces of this node.
    pub(super) fn interfaces(&mut self) -> io::Result<Vec<LinkState>> {
        let ask = LinkMessage::ask(None, None);
        self.0.dump(RTM_GETLINK, &ask, |kind, body| LinkMessage::read(kind, body).map(LinkState::from))
    }

    /// The addresses that the kernel has found at this Ethernet address.
    pub(super) fn neighbours_at(&mut self, mac: Mac) -> io::Result<Vec<IpAddr>> {
        self.0.dump(RTM_GETNEIGH, &EVERY_NEIGHBOUR, |kind, body| {
            let neighbour = NeighbourMessage::read(kind, body)?;
            (neighbour.mac == Some(mac)).then_some(neighbour.ip)
        })
    }

    /// Says where a neighbour is now, if it is known at all. The entry ages as any other.
    pub(super) fn move_neighbour(&mut self, ip: IpAddr, index: u32, mac: Mac) -> io::Result<()> {
        match self.0.request(RTM_NEWNEIGH, REPLACE, &NeighbourMessage::found(ip, index, mac)) {
            Err(error) if !absent(&error) => Err(error),
            _ => Ok(()),
        }
    }
}

/// No such address, neighbour or interface.
fn absent(error: &io::Error) -> bool {
    [Some(Errno::ADDRNOTAVAIL), Some(Errno::NOENT), Some(Errno::NODEV)].contains(&errno(error))
}

impl From<AddressMessage> for HeldAddress {
    fn from(said: AddressMessage) -> HeldAddress {
        let AddressMessage { index, ip, prefix, valid_seconds, .. } = said;
        HeldAddress { index, ip, prefix, ends: valid_seconds.is_some() }
    }
}

impl From<LinkMessage> for LinkState {
    fn from(said: LinkMessage) -> LinkState {
        LinkState {
            index: said.index,
            name: said.name.unwrap_or_default(),
            mac: said.mac.filter(|mac| mac.is_unicast()),
            kind: said.kind.unwrap_or_default(),
            flags: said.flags,
            hardware: said.hardware,
            arp_ignore: said.arp_ignore.unwrap_or(0),
        }
    }
}

/// What has changed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum KernelChange {
    /// An interface, in whatever way, or addresses other than the one below.
    Something,
    /// An address is gone from an interface.
    Gone(IpAddr, u32),
}

/// Word of the kernel about addresses and interfaces.
pub(super) struct KernelWatch(netlink::KernelChanges);

impl KernelWatch {
    pub(super) fn subscribe() -> io::Result<KernelWatch> {
        Ok(KernelWatch(netlink::KernelChanges::subscribe()?))
    }

    /// Waits for changes. Nothing is lost by giving up waiting.
    pub(super) async fn next(&mut self) -> io::Result<Vec<KernelChange>> {
        loop {
            let changes = match self.0.next().await? {
                Some(bytes) => changes(bytes),
                // Which are not known: look at everything.
                None => vec![KernelChange::Something],
            };
            if !changes.is_empty() {
                return Ok(changes);
            }
        }
    }
}

fn changes(bytes: &[u8]) -> Vec<KernelChange> {
    let mut changes = Vec::new();
    for message in messages(bytes) {
        let change = match (message.kind, AddressMessage::read(message.kind, message.body)) {
            (_, Some(gone)) if gone.gone => KernelChange::Gone(gone.ip, gone.index),
            // Every renewal of ours says so too.
            (_, Some(held)) if held.valid_seconds.is_some() => continue,
            (RTM_NEWLINK | RTM_DELLINK | RTM_NEWADDR, _) => KernelChange::Something,
            _ => continue,
        };
        if !changes.contains(&change) {
            changes.push(change);
        }
    }
    changes
}

#[cfg(test)]
mod tests {
    use std::process::Command;
    use std::time::Duration;

    use proptest::prelude::*;

    use super::*;
    use crate::testing::in_namespaces;

    fn ip(line: &str) -> String {
        let ran = Command::new("ip").args(line.split(' ')).output().expect("needs `ip` of iproute2");
        assert!(ran.status.success(), "ip {line}: {}", String::from_utf8_lossy(&ran.stderr));
        String::from_utf8_lossy(&ran.stdout).into_owned()
    }

    const SETUP: &str = "
        ip link set lo up
        ip link add w0 address 02:00:00:00:00:01 type veth peer name w1
        ip addr add 10.9.0.1/24 dev w0; ip addr add fd09::1/64 dev w0 nodad
        ip link set w0 up; ip link set w1 up";

    #[test]
    fn addresses_come_are_renewed_end_by_themselves_and_are_dropped() {
        let test = "vip::kernel::tests::addresses_come_are_renewed_end_by_themselves_and_are_dropped";
        if in_namespaces(test, &["--net"], SETUP).is_none() {
            return;
        }
        let mut kernel = VipKernel::open().unwrap();
        let all = kernel.interfaces().unwrap();
        let w0 = all.iter().find(|one| one.name == "w0").unwrap().clone();
        assert_eq!((w0.mac, w0.hardware, w0.kind.as_str()), ("02:00:00:00:00:01".parse().ok(), 1, "veth"));
        let lo = all.iter().find(|one| one.name == "lo").unwrap();
        assert_eq!((lo.mac, lo.hardware), (None, 772));
        for vip in ["10.9.0.50", "fd09::50"] {
            let vip: IpAddr = vip.parse().unwrap();
            kernel.hold(vip, w0.index, Some("w0:vip"), 1).unwrap();
            let shown = ip("addr show dev w0");
            assert!(shown.contains(&format!("{vip}/")), "{shown}");
            let line = shown.lines().find(|line| line.contains(&format!("{vip}/"))).unwrap();
            assert!(!line.contains("tentative"), "{shown}");
            assert_eq!(shown.contains(" w0:vip\n"), vip.is_ipv4(), "{shown}");
            kernel.hold(vip, w0.index, Some("w0:vip"), 100).unwrap();
            std::thread::sleep(Duration::from_millis(2_500));
            let held =
                |kernel: &mut VipKernel| kernel.addresses().unwrap().into_iter().find(|one| one.ip == vip);
            let prefix = if vip.is_ipv4() { 32 } else { 128 };
            let expected = HeldAddress { index: w0.index, ip: vip, prefix, ends: true };
            assert_eq!(held(&mut kernel), Some(expected), "renewed, so still there");
            assert!(kernel.drop(vip, w0.index).unwrap());
            assert_eq!(held(&mut kernel), None);
            assert!(!kernel.drop(vip, w0.index).unwrap(), "dropping twice is no error");
            assert!(!kernel.drop(vip, 999).unwrap(), "nor is an interface that is gone");
            kernel.hold(vip, w0.index, Some("w0:vip"), 1).unwrap();
            // The kernel looks at lifetimes at most once a second, whoever in whichever namespace they are of.
            let began = std::time::Instant::now();
            while held(&mut kernel).is_some() {
                assert!(began.elapsed() < Duration::from_secs(5), "not renewed, and still there");
                std::thread::sleep(Duration::from_millis(20));
            }
        }
        let own = kernel.addresses().unwrap();
        let own = own.iter().find(|one| one.ip.to_string() == "10.9.0.1").unwrap();
        assert_eq!((own.prefix, own.ends), (24, false));
        std::fs::write("/proc/sys/net/ipv4/conf/w0/arp_ignore", "2").unwrap();
        ip("link set w0 down");
        let down = kernel.interfaces().unwrap().into_iter().find(|one| one.name == "w0").unwrap();
        assert_eq!((down.flags & 1, down.arp_ignore), (0, 2));
    }

    #[test]
    fn a_known_neighbour_moves_and_an_unknown_one_is_left_alone() {
        let test = "vip::kernel::tests::a_known_neighbour_moves_and_an_unknown_one_is_left_alone";
        if in_namespaces(test, &["--net"], SETUP).is_none() {
            return;
        }
        let mut kernel = VipKernel::open().unwrap();
        let w0 = kernel.interfaces().unwrap().into_iter().find(|one| one.name == "w0").unwrap().index;
        let mac: Mac = "02:00:00:00:00:77".parse().unwrap();
        for vip in ["10.9.0.50", "fd09::50"] {
            kernel.move_neighbour(vip.parse().unwrap(), w0, mac).unwrap();
            assert!(!ip("neigh show dev w0").contains(vip));
            ip(&format!("neigh add {vip} lladdr 02:00:00:00:00:66 nud stale dev w0"));
            kernel.move_neighbour(vip.parse().unwrap(), w0, mac).unwrap();
            let shown = ip("neigh show dev w0");
            assert!(shown.contains(&format!("{vip} lladdr {mac} REACHABLE")), "{shown}");
            assert!(kernel.neighbours_at(mac).unwrap().contains(&vip.parse().unwrap()));
        }
        assert!(kernel.neighbours_at("02:00:00:00:00:66".parse().unwrap()).unwrap().is_empty());
    }

    #[test]
    fn an_address_that_goes_is_told_and_so_is_a_link() {
        let test = "vip::kernel::tests::an_address_that_goes_is_told_and_so_is_a_link";
        if in_namespaces(test, &["--net"], SETUP).is_none() {
            return;
        }
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let mut kernel = VipKernel::open().unwrap();
            let w0 = kernel.interfaces().unwrap().into_iter().find(|one| one.name == "w0").unwrap().index;
            let mut changes = KernelWatch::subscribe().unwrap();
            for vip in ["10.9.0.50", "fd09::50"] {
                let gone: IpAddr = vip.parse().unwrap();
                kernel.hold(gone, w0, None, 100).unwrap();
                kernel.hold(gone, w0, None, 100).unwrap();
                let prefix = if gone.is_ipv4() { 32 } else { 128 };
                ip(&format!("addr del {vip}/{prefix} dev w0"));
                // The interface may still be settling; the address itself is told of once.
                let mut told = Vec::new();
                while !told.contains(&KernelChange::Gone(gone, w0)) {
                    told.extend(changes.next().await.unwrap());
                }
                assert_eq!(told.iter().filter(|one| **one != KernelChange::Something).count(), 1, "{told:?}");
            }
            ip("link set w0 down");
            while !changes.next().await.unwrap().contains(&KernelChange::Something) {}
        });
    }

    proptest! {
        #[test]
        fn no_answer_makes_it_panic(
            mut bytes in proptest::collection::vec(any::<u8>(), 20..200), kind in RTM_NEWLINK..=RTM_DELADDR,
        ) {
            let length = bytes.len() as u32;
            bytes[..4].copy_from_slice(&length.to_ne_bytes());
            bytes[4..6].copy_from_slice(&kind.to_ne_bytes());
            let _ = changes(&bytes);
        }
    }
}
