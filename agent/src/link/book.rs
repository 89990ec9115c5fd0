//! Where peers are reached: what they gossip, and where their last proven datagram came from.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Mutex, MutexGuard, PoisonError};

use proto::exchange::Addresses;
use proto::node::NodeId;

/// Most addresses that are kept of one peer: its own word has at most eight, and one is where it was seen.
const MAX: usize = 9;

/// A shared list of addresses. Locked for single look-ups only, never over an await.
#[derive(Debug, Default)]
pub(crate) struct AddressBook(Mutex<BTreeMap<NodeId, Vec<SocketAddr>>>);

impl AddressBook {
    fn lock(&self) -> MutexGuard<'_, BTreeMap<NodeId, Vec<SocketAddr>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The addresses of a peer, best first.
    pub(crate) fn all(&self, id: &NodeId) -> Vec<SocketAddr> {
        self.lock().get(id).cloned().unwrap_or_default()
    }

    /// The best address of a peer.
    pub(crate) fn best(&self, id: &NodeId) -> Option<SocketAddr> {
        self.lock().get(id).and_then(|addresses| addresses.first()).copied()
    }

    /// Whose best address this is.
    pub(crate) fn who(&self, at: SocketAddr) -> Option<NodeId> {
        self.lock().iter().find(|(_, addresses)| addresses.first() == Some(&at)).map(|(id, _)| *id)
    }

    /// A proven datagram came from here: it is the best address now.
    pub(crate) fn seen(&self, id: NodeId, from: SocketAddr) {
        let mut book = self.lock();
        let addresses = book.entry(id).or_default();
        if addresses.first() == Some(&from) {
            return;
        }
        addresses.retain(|address| *address != from);
        addresses.insert(0, from);
        addresses.truncate(MAX);
    }

    /// What the peer says of itself, or an older list: taken as the rest of the addresses. `authoritative`
    /// drops those that it does not name, except where it was seen itself.
    pub(crate) fn heard(&self, id: NodeId, named: &[SocketAddr], authoritative: bool) {
        if named.is_empty() {
            return;
        }
        let mut book = self.lock();
        let addresses = book.entry(id).or_default();
        if authoritative {
            addresses.retain(|address| named.contains(address));
        }
        for address in named {
            if !addresses.contains(address) {
                addresses.push(*address);
            }
        }
        addresses.truncate(MAX);
    }

    /// Everything, for the disk and for peers.
    pub(crate) fn snapshot(&self) -> Addresses {
        self.lock().clone()
    }

    /// Keeps only those.
    pub(crate) fn retain(&self, keep: impl Fn(&NodeId) -> bool) {
        self.lock().retain(|id, _| keep(id));
    }
}

/// An IPv4 address that a dual-stack socket shows as IPv6, as IPv4.
pub(crate) fn plain(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(address.ip().to_canonical(), address.port())
}

/// An address as a socket of this family takes it.
pub(crate) fn for_socket(address: SocketAddr, v6: bool) -> SocketAddr {
    match address.ip() {
        IpAddr::V4(ip) if v6 => SocketAddr::new(IpAddr::V6(ip.to_ipv6_mapped()), address.port()),
        _ => address,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn where_a_peer_was_seen_comes_first_and_its_word_replaces_the_rest() {
        let book = AddressBook::default();
        let id = NodeId([1; 10]);
        let [a, b, c]: [SocketAddr; 3] =
            ["10.0.0.1:1", "10.0.0.2:1", "10.0.0.3:1"].map(|text| text.parse().unwrap());
        book.heard(id, &[a, b], false);
        book.seen(id, c);
        assert_eq!(book.all(&id), [c, a, b]);
        book.heard(id, &[b, c], true);
        assert_eq!(book.all(&id), [c, b]);
        book.heard(id, &[], true);
        assert_eq!(book.best(&id), Some(c), "a node whose network is away says no address");
    }
}
