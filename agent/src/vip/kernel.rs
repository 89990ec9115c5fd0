//! The addresses of virtual IPs in this node's kernel: sets them so that they end by themselves, takes them away, and
//! reads back what is there.

use std::collections::BTreeMap;
use std::io;
use std::net::IpAddr;
use std::time::Duration;

use nix::libc::{
    IFA_F_NODAD, IFA_F_NOPREFIXROUTE, RTM_DELADDR, RTM_GETADDR, RTM_GETLINK, RTM_GETNEIGH, RTM_NEWADDR,
    RTM_NEWNEIGH,
};
use proto::arp::Mac;
use proto::cause::Cause;
use proto::time::Moment;
use proto::unfit::Unfit;
use rustix::io::Errno;
use tracing::{info, warn};

use super::caps::RaisedCapabilities;
use super::reset::reset_connections;
use crate::netlink::route::{AddressMessage, EVERY_ADDRESS, EVERY_NEIGHBOUR, LinkMessage, NeighbourMessage};
use crate::netlink::{CREATE, Netlink, REPLACE, ROUTE, errno};

/// What the kernel has refused is tried again after this time.
const RETRY: Duration = Duration::from_secs(30);

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
    /// The same of all interfaces.
    pub(super) all_arp_ignore: u32,
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
struct VipKernel(Netlink);

impl VipKernel {
    fn open() -> io::Result<VipKernel> {
        Ok(VipKernel(Netlink::open(ROUTE)?))
    }

    /// Sets an address for so many seconds, or lengthens its time.
    fn hold(&mut self, ip: IpAddr, index: u32, label: Option<&str>, seconds: u32) -> io::Result<()> {
        // Preferred for 0 seconds: IPv6 would else choose it as source of this node's own connections,
        // which would break when it moves. IPv4 prefers an address of the network anyway.
        let body = match ip {
            IpAddr::V4(_) => AddressMessage::make(ip, index, label, (seconds, seconds), 0),
            IpAddr::V6(_) => AddressMessage::make(ip, index, None, (0, seconds), V6_FLAGS),
        };
        self.0.request(RTM_NEWADDR, CREATE | REPLACE, &body)
    }

    /// Takes an address away; true when it was there.
    fn drop(&mut self, ip: IpAddr, index: u32) -> io::Result<bool> {
        match self.0.request(RTM_DELADDR, 0, &AddressMessage::name(ip, index)) {
            Ok(()) => Ok(true),
            Err(error) if absent(&error) => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// All addresses of this node.
    fn addresses(&mut self) -> io::Result<Vec<HeldAddress>> {
        self.0.dump(RTM_GETADDR, &EVERY_ADDRESS, |kind, body| {
            AddressMessage::read(kind, body).map(HeldAddress::from)
        })
    }

    /// All interfaces of this node.
    fn interfaces(&mut self) -> io::Result<Vec<LinkState>> {
        let ask = LinkMessage::ask(None, None);
        let mut all = self
            .0
            .dump(RTM_GETLINK, &ask, |kind, body| LinkMessage::read(kind, body).map(LinkState::from))?;
        let ignore = std::fs::read_to_string("/proc/sys/net/ipv4/conf/all/arp_ignore").ok();
        let ignore = ignore.and_then(|text| text.trim().parse().ok()).unwrap_or(0);
        all.iter_mut().for_each(|one| one.all_arp_ignore = ignore);
        Ok(all)
    }

    /// The addresses that the kernel has found at this Ethernet address.
    fn neighbours_at(&mut self, mac: Mac) -> io::Result<Vec<IpAddr>> {
        self.0.dump(RTM_GETNEIGH, &EVERY_NEIGHBOUR, |kind, body| {
            let neighbour = NeighbourMessage::read(kind, body)?;
            (neighbour.mac == Some(mac)).then_some(neighbour.ip)
        })
    }

    /// Says where a neighbour is now, if it is known at all. The entry ages as any other.
    fn move_neighbour(&mut self, ip: IpAddr, index: u32, mac: Mac) -> io::Result<()> {
        match self.0.request(RTM_NEWNEIGH, REPLACE, &NeighbourMessage::found(ip, index, mac)) {
            Err(error) if !absent(&error) => Err(error),
            _ => Ok(()),
        }
    }
}

/// No such address, neighbour or interface.
pub(super) fn absent(error: &io::Error) -> bool {
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
            all_arp_ignore: 0,
        }
    }
}

/// What is set, what the kernel says is there, and why something can't be set.
#[derive(Default)]
pub(super) struct KernelAddresses {
    /// None: there are no virtual IPs, or the kernel can't be asked.
    kernel: Option<VipKernel>,
    /// Held while there are virtual IPs.
    raised: Option<RaisedCapabilities>,
    /// Why this node can't set any.
    problem: Option<Unfit>,
    /// The interface that each was set on, while it is.
    held: BTreeMap<IpAddr, u32>,
    /// Those that the kernel has refused, and when.
    refused: BTreeMap<IpAddr, (Moment, Unfit)>,
    interfaces: Vec<LinkState>,
    listed: Vec<HeldAddress>,
}

impl KernelAddresses {
    /// Takes up what setting addresses needs, if it is not there yet.
    pub(super) fn open(&mut self) {
        if self.kernel.is_some() {
            return;
        }
        let raised = RaisedCapabilities::raise();
        self.problem = raised.missing().map(|missing| Unfit::new(Cause::NotPermitted, missing));
        self.raised = Some(raised);
        match VipKernel::open() {
            Ok(kernel) => self.kernel = Some(kernel),
            Err(error) => {
                let reason = format_args!("cannot query the kernel (netlink): {error}");
                self.problem = Some(Unfit::new(Cause::NotPermitted, reason));
            }
        }
        if let Some(problem) = &self.problem {
            warn!("this node can't own virtual IPs: {problem}");
        }
    }

    /// Lays it down: there are no virtual IPs any more.
    pub(super) fn close(&mut self) {
        *self = KernelAddresses::default();
    }

    /// This one begins anew.
    pub(super) fn forget(&mut self, address: IpAddr) {
        self.held.remove(&address);
        self.refused.remove(&address);
    }

    /// Why this node can't set any.
    pub(super) fn problem(&self) -> Option<&Unfit> {
        self.problem.as_ref()
    }

    /// Why this one can't be set: the kernel has refused it.
    pub(super) fn refusal(&self, address: IpAddr) -> Option<&Unfit> {
        self.refused.get(&address).map(|(_, why)| why)
    }

    /// What was refused long ago may be tried again.
    pub(super) fn expire_refusals(&mut self, now: Moment) {
        self.refused.retain(|_, (at, _)| now.since(*at) < RETRY);
    }

    /// Sets an address on an interface, or lengthens its time.
    ///
    /// # Errors
    /// The kernel refuses it.
    pub(super) fn set(
        &mut self,
        now: Moment,
        address: IpAddr,
        (index, interface): (u32, &str),
        label: Option<&str>,
        lifetime: Duration,
    ) -> Result<(), Unfit> {
        let Some(kernel) = &mut self.kernel else { return Ok(()) };
        let seconds = u32::try_from(lifetime.as_secs()).unwrap_or(2).max(1);
        match kernel.hold(address, index, label, seconds) {
            Ok(()) => {
                self.held.insert(address, index);
                self.refused.remove(&address);
                Ok(())
            }
            Err(error) => {
                let reason = format_args!("the kernel rejects {address} on {interface}: {error}");
                let why = Unfit::new(Cause::KernelRefused, reason);
                if self.refused.insert(address, (now, why.clone())).is_none() {
                    warn!("{why}");
                }
                Err(why)
            }
        }
    }

    /// Takes an address away, its connections first, while a reset can still leave.
    pub(super) fn withdraw(&mut self, address: IpAddr) {
        let Some(kernel) = &mut self.kernel else { return };
        let mut places: Vec<u32> = self.held.remove(&address).into_iter().collect();
        // What an agent has left that was killed; only that ends by itself.
        let lone = if address.is_ipv4() { 32 } else { 128 };
        let listed = kernel.addresses().unwrap_or_default();
        let left = listed.iter().filter(|held| held.ip == address && held.ends && held.prefix == lone);
        for held in left {
            if !places.contains(&held.index) {
                places.push(held.index);
            }
        }
        if places.is_empty() {
            return;
        }
        let ended = reset_connections(address);
        for index in places {
            if let Err(error) = kernel.drop(address, index) {
                warn!("cannot remove {address}, which will expire: {error}");
            }
        }
        info!(vip = %address, connections = ended, "address removed");
    }

    /// Lists interfaces and addresses anew; false when that can't be done.
    pub(super) fn list(&mut self) -> bool {
        let Some(kernel) = &mut self.kernel else { return false };
        match (kernel.interfaces(), kernel.addresses()) {
            (Ok(interfaces), Ok(listed)) => {
                (self.interfaces, self.listed) = (interfaces, listed);
                true
            }
            (Err(error), _) | (_, Err(error)) => {
                warn!("cannot list interfaces and addresses: {error}");
                false
            }
        }
    }

    /// All interfaces, as listed last.
    pub(super) fn interfaces(&self) -> &[LinkState] {
        &self.interfaces
    }

    /// All addresses, as listed last, but for this one where this node has set it.
    pub(super) fn others(&self, address: IpAddr) -> Vec<HeldAddress> {
        let ours = |held: &&HeldAddress| held.ip == address && self.is_held_on(address, held.index);
        self.listed.iter().filter(|held| !ours(held)).cloned().collect()
    }

    /// Whether this node has set the address on this interface.
    pub(super) fn is_held_on(&self, address: IpAddr, index: u32) -> bool {
        self.held.get(&address) == Some(&index)
    }

    /// Whether the address is on the interface where it belongs, as listed last. It is taken from another one, that
    /// it was set on before.
    pub(super) fn read_back(&mut self, address: IpAddr, index: u32) -> bool {
        let on = self.held.get(&address).copied().unwrap_or(index);
        if on != index {
            if let Some(kernel) = &mut self.kernel {
                let _ = kernel.drop(address, on);
            }
            self.held.remove(&address);
            return false;
        }
        self.listed.iter().any(|held| held.ip == address && held.index == index && held.ends)
    }

    /// The addresses that the kernel has found at this Ethernet address.
    pub(super) fn neighbours_at(&mut self, mac: Mac) -> Vec<IpAddr> {
        self.kernel.as_mut().and_then(|kernel| kernel.neighbours_at(mac).ok()).unwrap_or_default()
    }

    /// Says where the owner of an address is now; false when nobody could be told.
    pub(super) fn move_neighbour(&mut self, address: IpAddr, index: u32, mac: Mac) -> bool {
        let Some(kernel) = &mut self.kernel else { return false };
        if let Err(error) = kernel.move_neighbour(address, index, mac) {
            warn!("cannot set the neighbour entry of {address}, relying on ARP: {error}");
        }
        true
    }
}

#[cfg(test)]
mod tests {
    use std::process::Command;
    use std::time::Duration;

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
    fn what_is_set_is_read_back_and_taken_from_where_it_does_not_belong() {
        let test = "vip::kernel::tests::what_is_set_is_read_back_and_taken_from_where_it_does_not_belong";
        if in_namespaces(test, &["--net"], SETUP).is_none() {
            return;
        }
        let mut kernel = KernelAddresses::default();
        let vip: IpAddr = [10, 9, 0, 50].into();
        assert!(!kernel.list(), "not open");
        kernel.open();
        assert!(kernel.list() && kernel.problem().is_none());
        let index = |name: &str, kernel: &KernelAddresses| {
            kernel.interfaces().iter().find(|one| one.name == name).unwrap().index
        };
        let (w0, w1) = (index("w0", &kernel), index("w1", &kernel));
        let there = |kernel: &KernelAddresses| kernel.others(vip).iter().any(|held| held.ip == vip);
        let set = |kernel: &mut KernelAddresses, on| {
            let outcome = kernel.set(Moment::ZERO, vip, (on, "w"), None, Duration::from_secs(100));
            assert!(kernel.list());
            outcome.is_ok()
        };
        assert!(set(&mut kernel, w0) && kernel.is_held_on(vip, w0));
        assert!(kernel.read_back(vip, w0) && !there(&kernel), "ours");
        assert!(!kernel.read_back(vip, w1), "it belongs elsewhere now");
        assert!(kernel.list() && !there(&kernel) && !kernel.is_held_on(vip, w0), "and is gone from there");
        // An earlier agent has left one, which ends by itself.
        assert!(set(&mut kernel, w1));
        kernel.forget(vip);
        assert!(there(&kernel) && kernel.read_back(vip, w1));
        kernel.withdraw(vip);
        assert!(kernel.list() && !there(&kernel));
        // Another's, with a network or without an end, stays.
        ip("addr add 10.9.0.50/24 dev w1");
        kernel.withdraw(vip);
        assert!(kernel.list() && there(&kernel) && !kernel.read_back(vip, w1));
        // What is refused is named until it is tried again.
        assert!(!set(&mut kernel, 999));
        kernel.expire_refusals(Moment::ZERO);
        assert!(kernel.refusal(vip).is_some());
        kernel.expire_refusals(Moment::ZERO.after(RETRY));
        assert!(kernel.refusal(vip).is_none());
        kernel.close();
        assert!(!kernel.list() && kernel.interfaces().is_empty());
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
}
