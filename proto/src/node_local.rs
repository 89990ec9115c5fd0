//! The node-local address: whether a node may have it, as far as that can be seen on the node.
//!
//! It is not a virtual IP: nobody owns it and nobody announces it. Every node has it on `lo`, so no packet to it
//! leaves a node, as long as nothing else in the nodes' networks has the same address.

use std::net::IpAddr;

use crate::node::Name;

/// An address of this machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HostAddress {
    /// The address.
    pub ip: IpAddr,
    /// Length of its network's prefix.
    pub prefix: u8,
    /// Its interface.
    pub interface: String,
}

impl HostAddress {
    /// Whether it is that of one machine, with no network around it.
    fn is_lone(&self) -> bool {
        self.prefix >= if self.ip.is_ipv4() { 32 } else { 128 }
    }

    /// Whether its network has this address.
    fn covers(&self, ip: IpAddr) -> bool {
        let same = |ours: u128, theirs: u128, bits: u32| {
            let host = bits.saturating_sub(u32::from(self.prefix)).min(bits);
            host >= 128 || ours >> host == theirs >> host
        };
        match (self.ip, ip) {
            (IpAddr::V4(ours), IpAddr::V4(theirs)) => {
                same(u32::from(ours).into(), u32::from(theirs).into(), 32)
            }
            (IpAddr::V6(ours), IpAddr::V6(theirs)) => same(ours.into(), theirs.into(), 128),
            _ => false,
        }
    }

    /// Its network, as people write it.
    fn network(&self) -> String {
        let network: IpAddr = match self.ip {
            IpAddr::V4(ip) => {
                let host = 32 - u32::from(self.prefix.min(32));
                let mask = u32::MAX.checked_shl(host).unwrap_or(0);
                IpAddr::V4((u32::from(ip) & mask).into())
            }
            IpAddr::V6(ip) => {
                let host = 128 - u32::from(self.prefix.min(128));
                let mask = u128::MAX.checked_shl(host).unwrap_or(0);
                IpAddr::V6((u128::from(ip) & mask).into())
            }
        };
        format!("{network}/{}", self.prefix)
    }
}

/// Why a node may not have an address as its node-local one. The next step is the same for all: another address.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AddressConflict {
    /// It is in a network that this machine is connected to.
    #[error("{address} lies in {network} of {interface}, where other machines may have it")]
    InNetwork {
        /// The address.
        address: IpAddr,
        /// The network.
        network: String,
        /// Its interface.
        interface: String,
    },
    /// This machine has it on another interface than lo.
    #[error("{interface} has {address} already")]
    OnInterface {
        /// The address.
        address: IpAddr,
        /// The interface.
        interface: String,
    },
    /// It is the address of a member.
    #[error("{address} is the address of {member}")]
    OfMember {
        /// The address.
        address: IpAddr,
        /// Whose.
        member: Name,
    },
    /// Another machine has it.
    #[error("another machine answers at {address}")]
    Answers {
        /// The address.
        address: IpAddr,
    },
}

/// What is against an address, by what this machine and the cluster know. `members` are the addresses of all members.
pub fn conflict<'a>(
    address: IpAddr,
    host: &[HostAddress],
    members: impl IntoIterator<Item = (&'a Name, IpAddr)>,
) -> Option<AddressConflict> {
    let mut members = members.into_iter();
    if let Some((member, _)) = members.find(|(_, ip)| *ip == address) {
        return Some(AddressConflict::OfMember { address, member: member.clone() });
    }
    let others = || host.iter().filter(|one| one.interface != "lo");
    if let Some(one) = others().find(|one| one.ip == address) {
        return Some(AddressConflict::OnInterface { address, interface: one.interface.clone() });
    }
    let network = others().filter(|one| !one.is_lone()).find(|one| one.covers(address))?;
    Some(AddressConflict::InNetwork {
        address,
        network: network.network(),
        interface: network.interface.clone(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn host(text: &str, interface: &str) -> HostAddress {
        let (ip, prefix) = text.split_once('/').unwrap();
        HostAddress {
            ip: ip.parse().unwrap(),
            prefix: prefix.parse().unwrap(),
            interface: interface.to_owned(),
        }
    }

    #[test]
    fn an_address_that_somebody_has_or_may_have_is_no_node_local_one() {
        let m2: Name = "m2".parse().unwrap();
        let machine = [
            host("127.0.0.1/8", "lo"),
            host("10.0.0.1/24", "wg0"),
            host("10.4.0.7/32", "eth1"),
            host("fd00::1/64", "wg0"),
            host("10.91.91.50/32", "lo"),
        ];
        for (address, words) in [
            ("10.91.91.50", None),
            ("10.4.0.8", None),
            ("fd91::50", None),
            ("10.0.0.50", Some("10.0.0.50 lies in 10.0.0.0/24 of wg0, where other machines may have it")),
            ("fd00::50", Some("fd00::50 lies in fd00::/64 of wg0, where other machines may have it")),
            ("10.4.0.7", Some("eth1 has 10.4.0.7 already")),
            ("192.0.2.2", Some("192.0.2.2 is the address of m2")),
        ] {
            let members = [(&m2, "192.0.2.2".parse().unwrap())];
            let found = conflict(address.parse().unwrap(), &machine, members);
            assert_eq!(found.map(|one| one.to_string()).as_deref(), words, "{address}");
        }
        let all = [host("0.0.0.0/0", "tun0"), host("::/0", "tun0")];
        assert!(conflict("192.0.2.9".parse().unwrap(), &all, []).is_some());
        assert!(conflict("fd99::1".parse().unwrap(), &all, []).is_some());
        let odd = [host("10.0.0.1/200", "eth0"), host("fd00::1/200", "eth0")];
        assert!(conflict("10.0.0.2".parse().unwrap(), &odd, []).is_none());
    }
}
