//! The addresses of this machine, as the kernel has them, and those on `lo` that are set and taken away here.

use std::collections::BTreeSet;
use std::io;
use std::net::IpAddr;

use nix::libc::{
    IFA_F_NODAD, IFA_F_NOPREFIXROUTE, RTM_DELADDR, RTM_GETADDR, RTM_GETLINK, RTM_GETROUTE, RTM_NEWADDR,
    RTN_UNICAST,
};
use proto::node_local::HostAddress;

use super::super::kernel::absent;
use super::super::reset::reset_connections;
use crate::netlink::route::{
    AddressMessage, EVERY_ADDRESS, FOREVER, IFF_LOOPBACK, IFF_NOARP, IFF_POINTOPOINT, LinkMessage,
    RouteMessage,
};
use crate::netlink::{CREATE, Netlink, REPLACE, ROUTE};

/// What to ask the kernel with.
pub(super) struct Host {
    netlink: Netlink,
    links: Vec<LinkMessage>,
}

/// An address and the number of its interface.
type Placed = (AddressMessage, u32);

impl Host {
    pub(super) fn open() -> io::Result<Host> {
        Ok(Host { netlink: Netlink::open(ROUTE)?, links: Vec::new() })
    }

    /// All addresses of this machine.
    pub(super) fn addresses(&mut self) -> io::Result<Vec<HostAddress>> {
        self.links = self.netlink.dump(RTM_GETLINK, &LinkMessage::ask(None, None), LinkMessage::read)?;
        let all: Vec<Placed> = self.netlink.dump(RTM_GETADDR, &EVERY_ADDRESS, |kind, body| {
            AddressMessage::read(kind, body).map(|one| {
                let index = one.index;
                (one, index)
            })
        })?;
        let named = |(one, index): Placed| {
            let link = self.links.iter().find(|link| link.index == index)?;
            let interface = link.name.clone().unwrap_or_default();
            Some(HostAddress { ip: one.ip, prefix: one.prefix, interface })
        };
        Ok(all.into_iter().filter_map(named).collect())
    }

    fn lo(&mut self) -> io::Result<u32> {
        if self.links.is_empty() {
            self.addresses()?;
        }
        let lo = self.links.iter().find(|link| link.flags & IFF_LOOPBACK != 0);
        lo.map(|link| link.index).ok_or_else(|| io::Error::other("there is no lo"))
    }

    /// Sets an address on `lo`, for as long as nobody takes it away: a client of a dead agent is to be refused at
    /// once, which only an address that is there can do.
    pub(super) fn add(&mut self, ip: IpAddr) -> io::Result<()> {
        let lo = self.lo()?;
        let body = match ip {
            IpAddr::V4(_) => AddressMessage::make(ip, lo, None, (FOREVER, FOREVER), 0),
            // Preferred for 0 seconds: it is never to be chosen as the source of this node's own connections.
            IpAddr::V6(_) => {
                AddressMessage::make(ip, lo, None, (0, FOREVER), IFA_F_NODAD | IFA_F_NOPREFIXROUTE)
            }
        };
        self.netlink.request(RTM_NEWADDR, CREATE | REPLACE, &body)
    }

    /// Takes an address away from `lo`, its connections first, while a reset can still leave.
    pub(super) fn remove(&mut self, ip: IpAddr) -> io::Result<()> {
        let lo = self.lo()?;
        reset_connections(ip);
        match self.netlink.request(RTM_DELADDR, 0, &AddressMessage::name(ip, lo)) {
            Err(error) if !absent(&error) => Err(error),
            _ => Ok(()),
        }
    }

    /// Whether packets to an address would leave this machine for one that is no member: over a member's tunnel or by
    /// way of a member, the member itself would answer, since it has the address, too.
    pub(super) fn leaves_the_cluster(&mut self, ip: IpAddr, members: &[IpAddr]) -> bool {
        let Ok(Some(route)) = self.netlink.get(RTM_GETROUTE, &RouteMessage::ask(ip), RouteMessage::read)
        else {
            return false;
        };
        let link = self.links.iter().find(|link| link.index == route.index);
        let is_tunnel = link.is_none_or(|link| link.flags & (IFF_NOARP | IFF_POINTOPOINT) != 0);
        route.kind == RTN_UNICAST
            && match route.gateway {
                Some(gateway) => !members.contains(&gateway),
                None => !is_tunnel,
            }
    }
}

/// All addresses of this machine, as far as the kernel says.
pub(crate) fn host_addresses() -> Vec<HostAddress> {
    Host::open().and_then(|mut host| host.addresses()).unwrap_or_default()
}

/// The addresses on `lo`, without those of the kernel's own.
pub(crate) fn on_lo() -> BTreeSet<IpAddr> {
    let here = host_addresses().into_iter().filter(|one| one.interface == "lo" && !one.ip.is_loopback());
    here.map(|one| one.ip).collect()
}

/// Takes addresses away from `lo` for a command, which has no thread of virtual IPs.
///
/// # Errors
/// The kernel's: CAP_NET_ADMIN is missing.
pub(crate) fn remove_from_lo(addresses: &BTreeSet<IpAddr>) -> io::Result<()> {
    if addresses.is_empty() {
        return Ok(());
    }
    let mut host = Host::open()?;
    addresses.iter().try_for_each(|ip| host.remove(*ip))
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;
    use crate::testing::in_namespaces;

    #[test]
    fn an_address_on_lo_stays_until_it_is_taken_away() {
        let test = "vip::node_local::host::tests::an_address_on_lo_stays_until_it_is_taken_away";
        let setup =
            "ip link set lo up; ip link add w0 type veth peer name w1; ip addr add 10.9.0.1/24 dev w0;
            ip link set w0 up; ip link set w1 up; ip route add default via 10.9.0.2";
        if in_namespaces(test, &["--net"], setup).is_none() {
            return;
        }
        let shown = |args: &str| {
            let ran = Command::new("ip").args(args.split(' ')).output().expect("needs `ip` of iproute2");
            String::from_utf8_lossy(&ran.stdout).into_owned()
        };
        let mut host = Host::open().unwrap();
        for text in ["10.91.91.50", "fd91::50"] {
            let ip: IpAddr = text.parse().unwrap();
            assert!(!on_lo().contains(&ip));
            host.add(ip).unwrap();
            host.add(ip).unwrap();
            assert!(on_lo().contains(&ip));
            let line = shown("-o addr show dev lo");
            let line = line.lines().find(|line| line.contains(text)).unwrap();
            assert!(line.contains("valid_lft forever") && !line.contains("tentative"), "{line}");
            assert_eq!(line.contains("deprecated"), ip.is_ipv6(), "{line}");
            assert!(!host.leaves_the_cluster(ip, &[]), "it is here");
            host.remove(ip).unwrap();
            host.remove(ip).unwrap();
            assert!(!on_lo().contains(&ip));
        }
        let away: IpAddr = [10, 91, 91, 50].into();
        assert!(host.leaves_the_cluster(away, &[]));
        assert!(!host.leaves_the_cluster(away, &[[10, 9, 0, 2].into()]), "a member would answer");
        let listed = host.addresses().unwrap();
        let of = |name: &str| listed.iter().find(|one| one.interface == name && one.ip.is_ipv4()).cloned();
        assert_eq!(of("w0").map(|one| (one.ip.to_string(), one.prefix)), Some(("10.9.0.1".to_owned(), 24)));
        remove_from_lo(&BTreeSet::from([away])).unwrap();
    }
}
