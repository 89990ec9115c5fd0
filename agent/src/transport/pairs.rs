//! The keys that this node shares with each member, kept between datagrams: what two nodes share costs as
//! much as sixty datagrams, a key made of it as much as one.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use proto::cluster::KeyId;
use proto::node::{NodeId, PublicKey};
use proto::seal::{DatagramKey, PairSecret};
use proto::transport::{DatagramHeader, GossipKey};

use super::lock;
use super::tls::Identity;

/// Which gossip key, and which boot of the sender.
type KeySource = (u64, KeyId, u64);

#[derive(Default)]
struct PairKeys {
    /// None: the peer's key is one that nothing may be sealed with.
    secret: Option<PairSecret>,
    /// To the peer.
    to: Option<(KeySource, DatagramKey)>,
    /// From the peer, of the boot that has proven itself.
    from: Option<(KeySource, DatagramKey)>,
}

/// What is shared with each peer. Only members are ever entered, about 200 bytes each.
pub(super) struct PairKeyCache {
    identity: Arc<Identity>,
    boot: u64,
    pairs: Mutex<BTreeMap<NodeId, PairKeys>>,
}

impl PairKeyCache {
    pub(super) fn new(identity: Arc<Identity>, boot: u64) -> PairKeyCache {
        PairKeyCache { identity, boot, pairs: Mutex::default() }
    }

    fn with<T>(&self, peer: &PublicKey, id: NodeId, work: impl FnOnce(&mut PairKeys) -> T) -> T {
        let mut pairs = lock(&self.pairs);
        let pair = pairs
            .entry(id)
            .or_insert_with(|| PairKeys { secret: self.identity.pair_secret(peer), ..PairKeys::default() });
        work(pair)
    }

    /// The key of what this node sends to the peer. None: the peer's key is none to seal with.
    pub(super) fn to(&self, id: NodeId, peer: &PublicKey, gossip: &GossipKey) -> Option<DatagramKey> {
        let made = (gossip.epoch, gossip.id, self.boot);
        self.with(peer, id, |pair| {
            if pair.to.as_ref().is_none_or(|(of, _)| *of != made) {
                let key = pair.secret.as_ref()?.key(&gossip.secret, &self.identity.id, &id, self.boot)?;
                pair.to = Some((made, key));
            }
            pair.to.as_ref().map(|(_, key)| key.clone())
        })
    }

    /// The key of what the peer sends in this boot of it.
    pub(super) fn from(
        &self,
        header: &DatagramHeader,
        peer: &PublicKey,
        gossip: &GossipKey,
    ) -> Option<DatagramKey> {
        let made = (gossip.epoch, gossip.id, header.boot);
        self.with(peer, header.sender, |pair| match &pair.from {
            Some((of, key)) if *of == made => Some(key.clone()),
            _ => pair.secret.as_ref()?.key(&gossip.secret, &header.sender, &self.identity.id, header.boot),
        })
    }

    /// Keeps the key of a boot that has proven itself: any other would be one for a stranger to choose.
    pub(super) fn keep(&self, header: &DatagramHeader, gossip: &GossipKey, key: DatagramKey) {
        if let Some(pair) = lock(&self.pairs).get_mut(&header.sender) {
            let made = (gossip.epoch, gossip.id, header.boot);
            if pair.from.as_ref().is_none_or(|(of, _)| *of != made) {
                pair.from = Some((made, key));
            }
        }
    }

    /// The gossip key that a peer used last, as far as its boot has proven itself.
    pub(super) fn heard_under(&self, peer: &NodeId) -> Option<KeyId> {
        let pairs = lock(&self.pairs);
        pairs.get(peer)?.from.as_ref().map(|((_, id, _), _)| *id)
    }

    /// Whether the key of this boot is kept.
    #[cfg(test)]
    pub(super) fn keeps(&self, sender: &NodeId, boot: u64) -> bool {
        let pairs = lock(&self.pairs);
        let from = pairs.get(sender).and_then(|pair| pair.from.as_ref());
        from.is_some_and(|((_, _, of), _)| *of == boot)
    }

    /// How many peers are remembered.
    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        lock(&self.pairs).len()
    }

    /// Forgets everyone who is not a member any more.
    pub(super) fn retain(&self, member: impl Fn(&NodeId) -> bool) {
        lock(&self.pairs).retain(|id, _| member(id));
    }
}
