//! Picks the address at which this node is reached, and checks a given one.

#[cfg(test)]
pub(super) mod tests;

use std::fmt;
use std::net::IpAddr;

use super::{Interface, NetError, interfaces, reachable, route_to};

/// The picked address.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct PickedAddress {
    /// The address to advertise.
    pub(crate) address: IpAddr,
    /// The interface that has it.
    pub(crate) interface: String,
    /// What looks wrong about it, in a sentence for the user.
    pub(crate) warning: Option<String>,
}

impl PickedAddress {
    fn new(address: IpAddr, interface: &str) -> PickedAddress {
        PickedAddress { address, interface: interface.to_owned(), warning: None }
    }
}

/// Picks without a seed whose route could decide: the only VPN, else the only other interface. If that is
/// ambiguous, asking is better than advertising an address that the other nodes can't reach (k3s#13063).
pub(crate) fn pick_for_init(
    interfaces: &[Interface],
    wanted_iface: Option<&str>,
    wanted_addr: Option<IpAddr>,
) -> Result<PickedAddress, PickError> {
    if wanted_iface.is_some() || wanted_addr.is_some() {
        return pick_wanted(interfaces, wanted_iface, wanted_addr, |_| true);
    }
    let usable: Vec<(&Interface, IpAddr)> = interfaces
        .iter()
        .filter(|i| i.up && !i.loopback && !i.inner())
        .filter_map(|i| Some((i, i.best(|_| true)?)))
        .collect();
    let (vpn, other): (Vec<_>, Vec<_>) = usable.into_iter().partition(|(i, _)| i.vpn_like());
    match (vpn.as_slice(), other.as_slice()) {
        ([(interface, address)], _) => Ok(PickedAddress::new(*address, &interface.name)),
        ([], [_, ..]) if vpn_down(interfaces).is_some() => {
            let vpn = vpn_down(interfaces).map(|i| i.name.clone()).unwrap_or_default();
            Err(PickError::VpnDown { vpn, others: listed(other.iter().map(|(i, _)| *i)) })
        }
        ([], [(interface, address)]) => Ok(PickedAddress::new(*address, &interface.name)),
        ([], []) => Err(PickError::None { found: listed(interfaces) }),
        _ => Err(PickError::Several { found: listed(vpn.iter().chain(&other).map(|(i, _)| *i)) }),
    }
}

/// Picks the address from which the kernel would reach the seed.
pub(crate) fn pick_for_seed(
    seed: IpAddr,
    wanted_iface: Option<&str>,
    wanted_addr: Option<IpAddr>,
) -> Result<PickedAddress, PickError> {
    let interfaces = match interfaces() {
        Ok(interfaces) => interfaces,
        // Then the route is enough, and known by other means.
        Err(NetError::NotPermitted { .. }) if wanted_iface.is_none() && wanted_addr.is_none() => Vec::new(),
        Err(error) => return Err(error.into()),
    };
    if wanted_iface.is_some() || wanted_addr.is_some() {
        let same_family = |ip: IpAddr| ip.is_ipv4() == seed.is_ipv4();
        return pick_wanted(&interfaces, wanted_iface, wanted_addr, same_family);
    }
    let route = route_to(seed)?;
    if !reachable(route.source) && !route.source.is_loopback() {
        return Err(PickError::Useless { address: route.source });
    }
    let mut picked = PickedAddress::new(route.source, &route.interface);
    // The route to an address of this very node uses the loopback, which is not the interface that has it.
    let holder = interfaces.iter().find(|i| i.addresses.iter().any(|a| a.ip == picked.address));
    if let Some(holder) = holder {
        picked.interface.clone_from(&holder.name);
    }
    picked.warning = vpn_down_hint(seed, &picked, &interfaces);
    Ok(picked)
}

fn pick_wanted(
    interfaces: &[Interface],
    wanted_iface: Option<&str>,
    wanted_addr: Option<IpAddr>,
    preferred: impl Fn(IpAddr) -> bool,
) -> Result<PickedAddress, PickError> {
    if let Some(address) = wanted_addr
        && !reachable(address)
        && !address.is_loopback()
    {
        return Err(PickError::Useless { address });
    }
    let named = match wanted_iface {
        Some(name) => match interfaces.iter().find(|i| i.name == name) {
            Some(interface) => Some(interface),
            None => {
                return Err(PickError::NoInterface { name: name.to_owned(), found: listed(interfaces) });
            }
        },
        None => None,
    };
    let (interface, address) = match (named, wanted_addr) {
        (Some(interface), None) => {
            let loopback = || interface.addresses.iter().map(|a| a.ip).find(|ip| ip.is_loopback());
            let best = interface.best(preferred).or_else(|| interface.best(|_| true)).or_else(loopback);
            if !interface.up {
                return Err(PickError::Down { name: interface.name.clone() });
            }
            let none = || PickError::NoAddress { name: interface.name.clone() };
            (interface, best.ok_or_else(none)?)
        }
        (named, address) => {
            // At least one of both is given.
            let Some(address) = address else { return Err(PickError::None { found: listed(interfaces) }) };
            let holder = interfaces.iter().find(|i| i.holds(address));
            match (holder, named) {
                (Some(holder), Some(named)) if !named.holds(address) => {
                    let (holder, named) = (holder.name.clone(), named.name.clone());
                    return Err(PickError::Elsewhere { address, holder, named });
                }
                (Some(holder), named) => (named.unwrap_or(holder), address),
                (None, _) => return Err(PickError::NotHere { address, found: listed(interfaces) }),
            }
        }
    };
    if !interface.up {
        return Err(PickError::Down { name: interface.name.clone() });
    }
    Ok(PickedAddress::new(address, &interface.name))
}

/// A VPN that is set up but not running: its address may be the right one, and is missing now.
fn vpn_down(interfaces: &[Interface]) -> Option<&Interface> {
    let real = |i: &Interface| i.kind.as_deref() == Some("wireguard") || i.best(|_| true).is_some();
    interfaces.iter().find(|i| i.vpn_like() && !i.up && real(i))
}

/// With the VPN down the default route replaces it, and any address is routed there.
fn vpn_down_hint(seed: IpAddr, picked: &PickedAddress, interfaces: &[Interface]) -> Option<String> {
    let (address, name) = (picked.address, &picked.interface);
    let chosen = interfaces.iter().find(|i| i.name == *name)?;
    let neighbour = chosen.addresses.iter().any(|a| a.net_has(seed));
    if !private(seed) || chosen.vpn_like() || neighbour || seed == address {
        return None;
    }
    if let Some(vpn) = interfaces.iter().find(|i| i.vpn_like() && !i.up) {
        return Some(format!(
            "the route to {seed} uses {name} ({address}), but {} looks like the VPN and is down; if \
             the mesh is on it, bring it up and join again",
            vpn.name
        ));
    }
    (!private(address)).then(|| {
        format!(
            "{seed} is a private address, but the route uses the public address {address} on {name}; is the VPN \
             up?"
        )
    })
}

fn private(ip: IpAddr) -> bool {
    match ip {
        // 100.64.0.0/10 is shared space (RFC 6598); Tailscale lives there.
        IpAddr::V4(v4) => v4.is_private() || (v4.octets()[0] == 100 && v4.octets()[1] & 0xc0 == 64),
        IpAddr::V6(v6) => v6.is_unique_local(),
    }
}

/// Why no address was picked. The lists have a line for each interface.
#[derive(Debug)]
pub(crate) enum PickError {
    /// More than one is possible.
    Several { found: String },
    /// None is possible.
    None { found: String },
    /// The probable interface is down.
    VpnDown { vpn: String, others: String },
    /// `--iface` names no interface.
    NoInterface { name: String, found: String },
    /// The interface has no usable address.
    NoAddress { name: String },
    /// The given interface is down.
    Down { name: String },
    /// `--addr` is not this node's.
    NotHere { address: IpAddr, found: String },
    /// `--addr` is on another interface than `--iface`.
    Elsewhere { address: IpAddr, holder: String, named: String },
    /// Such an address means something else on every node.
    Useless { address: IpAddr },
    /// The kernel did not answer.
    Net(NetError),
}

impl From<NetError> for PickError {
    fn from(error: NetError) -> PickError {
        PickError::Net(error)
    }
}

impl fmt::Display for PickError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            PickError::Several { found } => {
                write!(f, "more than one interface may be the mesh:\n{found}choose one with --iface NAME")
            }
            PickError::None { found } => write!(
                f,
                "no interface has an address that other nodes can reach:\n{found}bring up the VPN or the \
                 network first, or choose one with --iface NAME"
            ),
            PickError::VpnDown { vpn, others } => write!(
                f,
                "{vpn} looks like the VPN and is down; bring it up first, or choose one of these with --iface \
                 NAME:\n{}",
                others.trim_end()
            ),
            PickError::NoInterface { name, found } => {
                write!(f, "there is no interface {name}; the interfaces are:\n{}", found.trim_end())
            }
            PickError::NoAddress { name } => write!(
                f,
                "{name} has no address that other nodes can reach; assign one (`ip addr show {name}` lists \
                 its addresses), or choose another with --iface"
            ),
            PickError::Down { name } => write!(f, "{name} is down; bring it up (`ip link set {name} up`)"),
            PickError::NotHere { address, found } => {
                write!(f, "{address} is not an address of this node; it has:\n{}", found.trim_end())
            }
            PickError::Elsewhere { address, holder, named } => {
                write!(f, "{address} is on {holder}, not on {named}; leave out one of --addr and --iface")
            }
            PickError::Useless { address } => write!(
                f,
                "{address} can't be this node's address for others: it is unspecified, multicast or of one link \
                 only; choose one with --addr that every node can reach"
            ),
            PickError::Net(error) => error.fmt(f),
        }
    }
}

impl std::error::Error for PickError {}

/// A line for each: name, kind, addresses, and whether it is down. Each ends in a line feed.
fn listed<'a>(interfaces: impl IntoIterator<Item = &'a Interface>) -> String {
    let rows: Vec<(&str, &str, String)> = interfaces
        .into_iter()
        .map(|i| {
            let ips: Vec<String> = i.addresses.iter().map(|a| a.ip).map(|ip| ip.to_string()).collect();
            let down = if i.up { "" } else { " (down)" };
            let ips = if ips.is_empty() { "no address".to_owned() } else { ips.join(" ") };
            (i.name.as_str(), i.kind_word(), ips + down)
        })
        .collect();
    let names = rows.iter().map(|(name, ..)| name.len()).max().unwrap_or(0);
    let kinds = rows.iter().map(|(_, kind, _)| kind.len()).max().unwrap_or(0);
    rows.iter().map(|(name, kind, ips)| format!("  {name:names$}  {kind:kinds$}  {ips}\n")).collect()
}
