//! Seals datagrams for a peer, and opens those of peers: with the keys of each pair, this node's boot and its
//! sequence numbers, and the version that each peer speaks.

use std::collections::BTreeMap;
use std::ops::RangeInclusive;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use proto::next_wire;
use proto::node::NodeId;
use proto::seal::DatagramKey;
use proto::time::UnixMs;
use proto::transport::{DatagramHeader, GossipKey, HEADER_LEN, KeyHint, MAX_PLAINTEXT, TAG_LEN, version_for};

use super::pairs::PairKeyCache;
use super::tls::Identity;
use super::{TrustedKeys, lock, random};

/// How far back a datagram may lie that this node is said to have sent: a second at the most that a node
/// sends.
const RECENT: u64 = 10_000;

/// Numbers that are left out when another process goes on: others may be taken at this moment, and one that is used
/// twice breaks a seal.
const HANDED: u64 = 1 << 20;

/// What opens and seals.
pub(super) struct DatagramSealer {
    identity: Arc<Identity>,
    boot: u64,
    /// Of the last datagram that was sealed.
    sequence: AtomicU64,
    pairs: PairKeyCache,
    /// The versions of datagrams that each peer says it speaks.
    versions: Mutex<BTreeMap<NodeId, RangeInclusive<u8>>>,
}

/// A datagram that a member has sealed for this node. Whether it is new is not known yet.
pub(super) struct OpenedDatagram<'a> {
    pub(super) header: DatagramHeader,
    pub(super) plaintext: &'a [u8],
    key: (&'a GossipKey, DatagramKey),
}

/// Why a datagram was not opened.
pub(super) enum Unopened {
    /// Its sender is no other member, or it is no datagram.
    Stranger,
    /// It is sealed with a gossip key that is not held; by whom, if it is true.
    UnknownKey(NodeId),
    /// The seal is wrong.
    BadSeal,
}

impl DatagramSealer {
    /// A new boot, or that of the process before this one, with a number above all that it has used.
    pub(super) fn new(identity: Arc<Identity>, before: Option<(u64, u64)>) -> DatagramSealer {
        let (boot, sequence) = before.unwrap_or_else(|| (u64::from_be_bytes(random()), 0));
        DatagramSealer {
            pairs: PairKeyCache::new(identity.clone(), boot),
            identity,
            boot,
            sequence: AtomicU64::new(sequence),
            versions: Mutex::default(),
        }
    }

    /// Opens a datagram in place.
    pub(super) fn open<'a>(
        &self,
        trust: &'a TrustedKeys,
        datagram: &'a mut [u8],
        now: UnixMs,
    ) -> Result<OpenedDatagram<'a>, Unopened> {
        let (header, _) = DatagramHeader::parse(datagram).ok_or(Unopened::Stranger)?;
        let peer = trust.document.member(&header.sender).filter(|_| header.sender != self.identity.id);
        let peer = peer.ok_or(Unopened::Stranger)?.key;
        let ciphertext = datagram.get_mut(HEADER_LEN..).ok_or(Unopened::Stranger)?;
        let (mut held, mut opened) = (false, None);
        for gossip in trust.ring.hinted(header.key, now) {
            held = true;
            let key = self.pairs.from(&header, &peer, gossip);
            if let Some(key) = key.filter(|key| key.open(&header, ciphertext).is_some()) {
                opened = Some((gossip, key));
                break;
            }
        }
        if !held {
            return Err(Unopened::UnknownKey(header.sender));
        }
        let key = opened.ok_or(Unopened::BadSeal)?;
        let plaintext = ciphertext.get(..ciphertext.len() - TAG_LEN).unwrap_or_default();
        Ok(OpenedDatagram { header, plaintext, key })
    }

    /// Keeps the key of a datagram whose boot has proven itself.
    pub(super) fn keep(&self, datagram: OpenedDatagram<'_>) {
        let (gossip, key) = datagram.key;
        self.pairs.keep(&datagram.header, gossip, key);
    }

    /// Seals frames for a peer. None: it is no member, or no key is held to seal with.
    pub(super) fn seal(
        &self,
        trust: &TrustedKeys,
        to: NodeId,
        plaintext: &[u8],
        now: UnixMs,
    ) -> Option<Vec<u8>> {
        let admitted = trust.document.member(&to)?;
        let gossip = trust.ring.sealing(&trust.document, self.pairs.heard_under(&to), now)?;
        let key = self.pairs.to(to, &admitted.key, gossip)?;
        let header = DatagramHeader {
            version: version_for(lock(&self.versions).get(&to).cloned()),
            key: KeyHint::of(gossip.id),
            sender: self.identity.id,
            boot: self.boot,
            sequence: self.next_sequence(),
        };
        key.seal(&header, &next_wire::frames(plaintext, MAX_PLAINTEXT))
    }

    fn next_sequence(&self) -> u64 {
        self.sequence.fetch_add(1, Ordering::Relaxed) + 1
    }

    /// The boot of this process's datagrams.
    pub(super) fn boot(&self) -> u64 {
        self.boot
    }

    /// The boot, and a number that is above all that is used until this process is another one.
    pub(super) fn hand_over(&self) -> (u64, u64) {
        (self.boot, self.sequence.load(Ordering::Relaxed).saturating_add(HANDED))
    }

    /// Whether this node has sealed a datagram with this header, a moment ago.
    pub(super) fn has_sealed(&self, header: &DatagramHeader) -> bool {
        let last = self.sequence.load(Ordering::Relaxed);
        header.sender == self.identity.id
            && header.boot == self.boot
            && header.sequence <= last
            && last - header.sequence < RECENT
    }

    /// Which versions of datagrams a peer says it speaks.
    pub(super) fn speaks(&self, peer: NodeId, versions: RangeInclusive<u8>) {
        lock(&self.versions).insert(peer, versions);
    }

    /// Forgets everyone who is not a member any more.
    pub(super) fn retain(&self, member: impl Fn(&NodeId) -> bool) {
        self.pairs.retain(&member);
        lock(&self.versions).retain(|id, _| member(id));
    }

    /// The boot and the number of a datagram that a test seals in this node's name.
    #[cfg(test)]
    pub(super) fn next_datagram(&self) -> (u64, u64) {
        (self.boot, self.next_sequence())
    }

    /// The keys of pairs, which tests look into.
    #[cfg(test)]
    pub(super) fn pairs(&self) -> &PairKeyCache {
        &self.pairs
    }
}

#[cfg(test)]
mod tests {
    use proto::cluster::KeyId;

    use super::super::tests::identity;
    use super::*;

    #[test]
    fn only_what_was_really_sent_can_be_refused() {
        let sealer = DatagramSealer::new(identity(1), None);
        sealer.sequence.store(20_000, Ordering::Relaxed);
        let header = |n, boot, sequence| DatagramHeader {
            version: 1,
            key: KeyHint::of(KeyId::of_key(&[1; 32])),
            sender: identity(n).id,
            boot,
            sequence,
        };
        assert!(sealer.has_sealed(&header(1, sealer.boot, 19_990)));
        assert!(!sealer.has_sealed(&header(1, sealer.boot, 20_001)), "not sent yet");
        assert!(!sealer.has_sealed(&header(1, sealer.boot, 9_000)), "long ago");
        assert!(!sealer.has_sealed(&header(1, sealer.boot ^ 1, 19_990)), "of another boot");
        assert!(!sealer.has_sealed(&header(2, sealer.boot, 19_990)), "of another node");
    }
}
