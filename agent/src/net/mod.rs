//! This node's addresses, interfaces and routes as the kernel has them, and name resolution.
//!
//! `kernel` asks by netlink; `fallback` does without where netlink is forbidden; `pick` decides at which
//! address this node is reached, without I/O; `own` is the one task here, and watches that address; `resolve`
//! turns user input into socket addresses.

mod fallback;
mod kernel;
mod own;
mod path_mtu;
mod pick;
mod resolve;

use std::io;
use std::net::IpAddr;

pub(crate) use fallback::is_here;
pub(crate) use kernel::{Route, interface, interfaces, route_to};
pub(crate) use own::{NoOwnAddress, OwnAddressRule, OwnAddressWatch, OwnInterface, watch_own};
pub(crate) use path_mtu::path_mtu;
pub(crate) use pick::{PickError, PickedAddress, pick_for_init, pick_for_seed};
pub(crate) use resolve::{ResolveError, resolve};

/// An address on an interface, ready for use.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct InterfaceAddress {
    /// The address.
    pub(crate) ip: IpAddr,
    /// Length of its network's prefix.
    pub(crate) prefix: u8,
    /// Deprecated or a privacy address: it will disappear, so it is not advertised.
    pub(crate) temporary: bool,
}

/// A network interface.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Interface {
    /// Its name.
    pub(crate) name: String,
    /// Its index; a recreated interface gets a new one.
    pub(crate) index: u32,
    /// The driver's kind: wireguard, tun, bridge, veth. None for most hardware.
    pub(crate) kind: Option<String>,
    /// Administratively up and with a carrier.
    pub(crate) up: bool,
    /// A loopback.
    pub(crate) loopback: bool,
    /// Leads to one peer.
    pub(crate) point_to_point: bool,
    /// Supports broadcast.
    pub(crate) broadcast: bool,
    /// Does not use ARP.
    pub(crate) no_arp: bool,
    /// Largest packet.
    pub(crate) mtu: u32,
    /// Its addresses, without those that can't be used yet (duplicate address detection is in progress or has
    /// failed).
    pub(crate) addresses: Vec<InterfaceAddress>,
}

/// Interfaces of containers, virtual machines and cluster networks: no other node's agent is reached there.
const INNER: &[&str] = &[
    "antrea",
    "cali",
    "cbr",
    "cilium",
    "cni",
    "datapath",
    "docker",
    "flannel",
    "genev_sys",
    "incusbr",
    "kube-",
    "lxc",
    "lxd",
    "nodelocaldns",
    "ovn",
    "ovs",
    "podman",
    "tunl",
    "veth",
    "virbr",
    "vnet",
    "vxlan.calico",
    "vxlan-v6.calico",
    "vxlan_sys",
    "weave",
    "wg-v6.cali",
    "wireguard.cali",
];
const VPN_NAMES: &[&str] =
    &["edge", "n2n", "nebula", "ovpn", "tailscale", "tap", "tun", "vpn", "wg", "wt", "zt"];
const VPN_KINDS: &[&str] = &["wireguard", "tun", "ovpn"];

impl Interface {
    /// Made for pods or virtual machines on this node, not for other nodes.
    fn inner(&self) -> bool {
        // Docker names a bridge by an id. A br-lan or br-ex may well have the node's own address.
        let docker = |id: &str| !id.is_empty() && id.bytes().all(|b| b.is_ascii_hexdigit());
        INNER.iter().any(|start| self.name.starts_with(start))
            || self.name.strip_prefix("br-").is_some_and(docker)
    }

    /// Looks like a VPN interface.
    pub(crate) fn vpn_like(&self) -> bool {
        let kind = self.kind.as_deref().is_some_and(|kind| VPN_KINDS.contains(&kind));
        let name = VPN_NAMES.iter().any(|start| self.name.starts_with(start));
        !self.loopback && !self.inner() && (kind || name || self.point_to_point)
    }

    /// Whether `ip` is an address of this interface. All of 127.0.0.0/8 is on the loopback, though only
    /// 127.0.0.1 is listed.
    pub(crate) fn holds(&self, ip: IpAddr) -> bool {
        self.addresses.iter().any(|a| a.ip == ip || (self.loopback && a.ip.is_loopback() && a.net_has(ip)))
    }

    /// The address at which other nodes reach this one. IPv4 before IPv6; a permanent address before one that
    /// will disappear; one with a network before a lone one, which may be a virtual IP that moves away.
    fn best(&self, of: impl Fn(IpAddr) -> bool) -> Option<IpAddr> {
        let usable = self.addresses.iter().filter(|a| reachable(a.ip) && of(a.ip));
        usable.min_by_key(|a| (a.ip.is_ipv6(), a.temporary, a.lone())).map(|a| a.ip)
    }

    /// Its kind in one word, for lists.
    fn kind_word(&self) -> &str {
        match &self.kind {
            Some(kind) => kind,
            None if self.loopback => "loopback",
            None if self.point_to_point => "point-to-point",
            None => "ethernet",
        }
    }
}

impl InterfaceAddress {
    fn lone(&self) -> bool {
        self.prefix == if self.ip.is_ipv4() { 32 } else { 128 }
    }

    fn net_has(&self, ip: IpAddr) -> bool {
        let (ours, theirs, shift) = match (self.ip, ip) {
            (IpAddr::V4(a), IpAddr::V4(b)) => (u128::from(a.to_bits()), u128::from(b.to_bits()), 32),
            (IpAddr::V6(a), IpAddr::V6(b)) => (a.to_bits(), b.to_bits(), 128),
            _ => return false,
        };
        let host_bits = u32::from(shift - self.prefix.min(shift));
        ours.checked_shr(host_bits) == theirs.checked_shr(host_bits)
    }
}

/// Whether another node could send to it at all.
fn reachable(ip: IpAddr) -> bool {
    let link_local = match ip {
        IpAddr::V4(v4) => v4.is_link_local() || v4.is_broadcast(),
        IpAddr::V6(v6) => v6.is_unicast_link_local(),
    };
    !(link_local || ip.is_loopback() || ip.is_unspecified() || ip.is_multicast())
}

/// Why the kernel's answer is missing.
#[derive(Debug, thiserror::Error)]
pub(crate) enum NetError {
    /// This process may not ask.
    #[error(
        "this process may not query interfaces and routes (netlink: {source}); allow \
         AF_NETLINK (RestrictAddressFamilies= of a unit, the seccomp profile of a container)"
    )]
    NotPermitted { source: io::Error },
    /// The kernel refused.
    #[error("can't {act}: {source}")]
    Ask { act: &'static str, source: io::Error },
    /// The answer made no sense.
    #[error("can't {act}: {why}")]
    Answer { act: &'static str, why: String },
    /// There is no route.
    #[error(
        "no route to {to} ({why}): is the VPN up? `ip route get {to}` shows what the kernel does; --addr and \
         --iface choose another address"
    )]
    NoRoute { to: IpAddr, why: String },
}
