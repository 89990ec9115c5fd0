//! Where members are reached: what others say, what they say themselves, and what was proven.
//!
//! An address is proven when its node has repeated a random number that was sent there, or has held a TLS
//! handshake there: nobody else could. What is only said is a hint. It is tried, but it displaces nothing
//! that was proven, and counts for nothing else.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex};

use proto::node::NodeId;
use proto::rpc::Addresses;
use tokio::sync::watch;

use super::{TrustedKeys, lock};

/// Most addresses that are kept of one peer: its own word has at most eight, and one is where it was seen.
const MAX: usize = 9;

/// Most proven addresses that are kept of one peer: some for each interface, old ones of a laptop that moves.
const MAX_PROVEN: usize = 16;

#[derive(Debug, Default)]
struct PeerAddresses {
    /// Best first.
    addresses: Vec<SocketAddr>,
    /// Latest last.
    proven: Vec<IpAddr>,
}

impl PeerAddresses {
    /// How many at the front are not for hints to move: the best one, where it is proven.
    fn fixed(&self) -> usize {
        usize::from(self.addresses.first().is_some_and(|best| self.proven.contains(&best.ip())))
    }
}

/// Addresses of members. Locked for single look-ups only, never over an await, and nothing that is done under
/// the lock grows with what anyone sends.
#[derive(Debug)]
pub(crate) struct AddressBook {
    peers: Mutex<BTreeMap<NodeId, PeerAddresses>>,
    trust: watch::Receiver<Arc<TrustedKeys>>,
    /// Counts what was proven anew.
    changes: watch::Sender<u64>,
}

impl AddressBook {
    /// An empty book, which takes members alone.
    pub(crate) fn new(trust: watch::Receiver<Arc<TrustedKeys>>) -> AddressBook {
        AddressBook { peers: Mutex::default(), trust, changes: watch::Sender::new(0) }
    }

    fn is_member(&self, id: &NodeId) -> bool {
        self.trust.borrow().document.member(id).is_some()
    }

    /// The addresses of a peer, best first.
    pub(crate) fn all(&self, id: &NodeId) -> Vec<SocketAddr> {
        lock(&self.peers).get(id).map(|peer| peer.addresses.clone()).unwrap_or_default()
    }

    /// The best address of a peer.
    pub(crate) fn best(&self, id: &NodeId) -> Option<SocketAddr> {
        lock(&self.peers).get(id).and_then(|peer| peer.addresses.first()).copied()
    }

    /// Whose best address this is.
    pub(crate) fn who(&self, at: SocketAddr) -> Option<NodeId> {
        lock(&self.peers).iter().find(|(_, peer)| peer.addresses.first() == Some(&at)).map(|(id, _)| *id)
    }

    /// Whether this node has proven that it is at this address.
    pub(crate) fn is_proven(&self, id: &NodeId, ip: IpAddr) -> bool {
        lock(&self.peers).get(id).is_some_and(|peer| peer.proven.contains(&ip.to_canonical()))
    }

    /// All addresses of members, those that are only hints too.
    pub(super) fn ips(&self) -> BTreeSet<IpAddr> {
        let peers = lock(&self.peers);
        peers
            .values()
            .flat_map(|peer| {
                peer.addresses.iter().map(|at| at.ip().to_canonical()).chain(peer.proven.clone())
            })
            .collect()
    }

    /// Changes with every address that is proven for the first time.
    pub(crate) fn changes(&self) -> watch::Receiver<u64> {
        self.changes.subscribe()
    }

    /// A member has proven that it is here.
    pub(crate) fn proven(&self, id: NodeId, at: SocketAddr) {
        if !self.is_member(&id) {
            return;
        }
        let ip = at.ip().to_canonical();
        let mut peers = lock(&self.peers);
        let peer = peers.entry(id).or_default();
        let known = peer.proven.iter().position(|one| *one == ip);
        match known {
            Some(place) => peer.proven[place..].rotate_left(1),
            None => peer.proven.push(ip),
        }
        if peer.proven.len() > MAX_PROVEN {
            peer.proven.remove(0);
        }
        if !peer.addresses.contains(&at) {
            peer.addresses.insert(peer.fixed().min(peer.addresses.len()), at);
            peer.addresses.truncate(MAX);
        }
        drop(peers);
        if known.is_none() {
            self.changes.send_modify(|count| *count += 1);
        }
    }

    /// A fresh datagram came from here, which is proven: it is the best address now. False when it is not
    /// proven, and nothing was changed.
    pub(crate) fn confirm_address(&self, id: NodeId, from: SocketAddr) -> bool {
        let mut peers = lock(&self.peers);
        let Some(peer) = peers.get_mut(&id) else { return false };
        if !peer.proven.contains(&from.ip()) {
            return false;
        }
        if peer.addresses.first() != Some(&from) {
            peer.addresses.retain(|address| *address != from);
            peer.addresses.insert(0, from);
            peer.addresses.truncate(MAX);
        }
        true
    }

    /// A hint: what the peer says of itself, or an older list. Taken as the rest of the addresses.
    /// `authoritative` drops those that it does not name, except a best one that is proven.
    pub(crate) fn add_hint(&self, id: NodeId, named: &[SocketAddr], authoritative: bool) {
        let named = named.get(..named.len().min(MAX)).unwrap_or_default();
        if named.is_empty() || !self.is_member(&id) {
            return;
        }
        let mut peers = lock(&self.peers);
        let peer = peers.entry(id).or_default();
        if authoritative {
            let fixed = peer.addresses.first().copied().filter(|_| peer.fixed() == 1);
            peer.addresses.retain(|address| named.contains(address) || Some(*address) == fixed);
        }
        for address in named {
            if !peer.addresses.contains(address) {
                peer.addresses.push(*address);
            }
        }
        peer.addresses.truncate(MAX);
    }

    /// Everything, for the disk and for peers.
    pub(crate) fn snapshot(&self) -> Addresses {
        let peers = lock(&self.peers);
        peers.iter().map(|(id, peer)| (*id, peer.addresses.clone())).collect()
    }

    /// Keeps only those.
    pub(crate) fn retain(&self, keep: impl Fn(&NodeId) -> bool) {
        lock(&self.peers).retain(|id, _| keep(id));
    }
}

/// An IPv4 address that a dual-stack socket shows as IPv6, as IPv4.
pub(crate) fn unmapped(address: SocketAddr) -> SocketAddr {
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
    use std::time::{Duration, Instant};

    use super::super::tests::{identity, trust_of};
    use super::*;

    fn book() -> (AddressBook, NodeId) {
        let trust = watch::Sender::new(Arc::new(trust_of(&[1, 2], &[1])));
        (AddressBook::new(trust.subscribe()), identity(2).id)
    }

    fn at(n: u32) -> SocketAddr {
        SocketAddr::from(((0x0a00_0000 + n).to_be_bytes(), 1))
    }

    #[test]
    fn where_a_peer_was_proven_comes_first_and_its_word_replaces_the_rest() {
        let (book, id) = book();
        book.add_hint(id, &[at(1), at(2)], false);
        assert!(!book.confirm_address(id, at(3)), "from an address that is not proven");
        assert_eq!(book.all(&id), [at(1), at(2)]);
        book.proven(id, at(3));
        assert_eq!(book.all(&id), [at(3), at(1), at(2)]);
        book.proven(id, at(4));
        assert_eq!(book.best(&id), Some(at(3)), "as good as the one before, and not in use");
        assert!(book.confirm_address(id, at(4)));
        assert_eq!(book.best(&id), Some(at(4)));
        book.add_hint(id, &[at(2), at(3)], true);
        assert_eq!(book.all(&id), [at(4), at(3), at(2)], "a hint never displaces what is proven");
        book.add_hint(id, &[], true);
        assert_eq!(book.best(&id), Some(at(4)), "a node whose network is away says no address");
    }

    #[test]
    fn only_members_are_entered_and_what_is_proven_stays_as_long_as_they_do() {
        let (book, id) = book();
        let stranger = identity(9).id;
        book.add_hint(stranger, &[at(1)], false);
        book.proven(stranger, at(1));
        assert!(book.snapshot().is_empty() && !book.is_proven(&stranger, at(1).ip()));
        let mut changes = book.changes();
        changes.mark_unchanged();
        book.proven(id, at(1));
        assert!(changes.has_changed().unwrap());
        changes.mark_unchanged();
        book.proven(id, at(1));
        assert!(!changes.has_changed().unwrap(), "it was proven before");
        for n in 2..100 {
            book.proven(id, at(n));
        }
        assert!(book.is_proven(&id, at(99).ip()) && book.is_proven(&id, at(84).ip()));
        assert!(!book.is_proven(&id, at(83).ip()), "sixteen are kept");
        book.retain(|_| false);
        assert!(!book.is_proven(&id, at(99).ip()));
    }

    #[test]
    fn a_flood_of_addresses_costs_no_time_and_no_room() {
        let (book, id) = book();
        let many: Vec<SocketAddr> = (0..150_000).map(at).collect();
        let began = Instant::now();
        for _ in 0..100 {
            book.add_hint(id, &many, false);
            book.add_hint(id, &many, true);
        }
        assert!(began.elapsed() < Duration::from_millis(500), "{:?}", began.elapsed());
        assert_eq!(book.all(&id).len(), MAX);
    }
}
