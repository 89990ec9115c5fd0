//! The cluster document: what must outlive every node, and how two copies of it become one.
//!
//! Merge is commutative, associative and idempotent, so copies may be exchanged in any order and any
//! number of times (property-tested below). Nothing is ever taken out: a removal is a tombstone that
//! wins over every admission of the same id.

use std::collections::BTreeMap;
use std::fmt;

use serde::{Deserialize, Serialize};

use crate::node::{Name, NodeId, PublicKey};
use crate::time::UnixMs;

/// Most nodes that a document may hold, removed ones included: far above any Kubernetes cluster (5,000),
/// low enough that a hostile document can't fill memory.
pub const MAX_NODES: usize = 20_000;

/// Format of the document that this version writes.
const VERSION: u8 = 1;

/// A cluster's identity: 16 random bytes made by `agent init`, shown as hex.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct ClusterId(pub String);

impl ClusterId {
    /// The id made of these random bytes.
    pub fn from_random(bytes: [u8; 16]) -> ClusterId {
        ClusterId(data_encoding::HEXLOWER.encode(&bytes))
    }
}

impl fmt::Display for ClusterId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

/// Names one gossip key without giving it away: the first bytes of its SHA-256.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct KeyId(pub [u8; KeyId::LEN]);

impl KeyId {
    /// Length in bytes.
    pub const LEN: usize = 4;

    /// The id of a key.
    pub fn of_key(key: &[u8; 32]) -> KeyId {
        let digest = ring::digest::digest(&ring::digest::SHA256, key);
        let mut id = [0; KeyId::LEN];
        id.copy_from_slice(&digest.as_ref()[..KeyId::LEN]);
        KeyId(id)
    }
}

impl fmt::Display for KeyId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&data_encoding::HEXLOWER.encode(&self.0))
    }
}

impl fmt::Debug for KeyId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// A node that may take part.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Admitted {
    /// When it was admitted.
    pub at: UnixMs,
    /// Its name.
    pub name: Name,
    /// Its key.
    pub key: PublicKey,
    /// Who admitted it.
    pub by: NodeId,
}

/// A node that may never take part again.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Removed {
    /// When it was removed.
    pub at: UnixMs,
    /// The name it had.
    pub name: Name,
    /// Who removed it; itself, when it left.
    pub by: NodeId,
}

/// A setting that holds for all nodes. Of two, the one with the higher clock counts, then the higher node.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Setting {
    /// Logical clock (Lamport): one more than the highest that its writer had seen.
    pub clock: u64,
    /// Who wrote it.
    pub by: NodeId,
    /// When, by its writer's clock: for people, since the logical clock decides.
    pub at: UnixMs,
    /// The value; none: unset.
    pub value: Option<String>,
}

/// Which gossip key counts. Of two, the later epoch counts; of the same epoch, the one made by a removal,
/// then the higher id: so that two rotations at once end with one winner everywhere.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct KeyEpoch {
    /// Counts the keys, from 1.
    pub epoch: u64,
    /// Made because a node was removed.
    pub by_removal: bool,
    /// Which key.
    pub id: KeyId,
    /// Who made it.
    pub by: NodeId,
    /// When.
    pub at: UnixMs,
}

/// The cluster document.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Document {
    /// Format.
    pub version: u8,
    /// Which cluster.
    pub id: ClusterId,
    /// Its name, for people.
    pub name: Name,
    /// Who may take part, those removed since included.
    pub nodes: BTreeMap<NodeId, Admitted>,
    /// Who may not any more.
    pub removed: BTreeMap<NodeId, Removed>,
    /// Settings that hold for all.
    pub settings: BTreeMap<String, Setting>,
    /// The gossip key that counts.
    pub key: KeyEpoch,
    /// Keys of earlier epochs are not accepted any more, not even for a while: a removed node knows them.
    pub key_floor: u64,
}

/// Why a document is not taken over.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BadDocument {
    /// It is of another cluster.
    #[error("it belongs to cluster {theirs}, this node to {ours}")]
    OtherCluster {
        /// The document's.
        theirs: ClusterId,
        /// This node's.
        ours: ClusterId,
    },
    /// A later agent wrote it.
    #[error("it has format {0}, this agent knows {VERSION}: upgrade this node")]
    Version(u8),
    /// More nodes than a cluster can have.
    #[error("it holds {0} nodes; {MAX_NODES} is the most")]
    TooLarge(usize),
    /// An id that is not its key's.
    #[error("node {0} does not have the key that its id was made of")]
    WrongKey(NodeId),
    /// It can't be read.
    #[error("it can't be read: {0}")]
    Garbled(String),
}

impl Document {
    /// The document of a new cluster with its first node.
    pub fn new(id: ClusterId, name: Name, first: Admitted, key: KeyId) -> Document {
        let node = first.key.id();
        let at = first.at;
        Document {
            version: VERSION,
            id,
            name,
            nodes: BTreeMap::from([(node, first)]),
            removed: BTreeMap::new(),
            settings: BTreeMap::new(),
            key: KeyEpoch { epoch: 1, by_removal: false, id: key, by: node, at },
            key_floor: 0,
        }
    }

    /// The admission of a node that was not removed.
    pub fn member(&self, id: &NodeId) -> Option<&Admitted> {
        if self.removed.contains_key(id) { None } else { self.nodes.get(id) }
    }

    /// All nodes that were not removed.
    pub fn members(&self) -> impl Iterator<Item = (&NodeId, &Admitted)> {
        self.nodes.iter().filter(|(id, _)| !self.removed.contains_key(*id))
    }

    /// The members that a text names: by name, or by id or its beginning (at least 4 characters).
    pub fn find(&self, text: &str) -> Vec<(NodeId, &Admitted)> {
        let by_id = |id: &NodeId| text.len() >= 4 && id.to_string().starts_with(&text.to_ascii_lowercase());
        self.members()
            .filter(|(id, admitted)| admitted.name.as_str() == text || by_id(id))
            .map(|(id, admitted)| (*id, admitted))
            .collect()
    }

    /// Joins another copy into this one; true when this one changed.
    ///
    /// # Errors
    /// The other copy is not of this cluster or breaks a rule; this one is then unchanged.
    pub fn merge(&mut self, other: &Document) -> Result<bool, BadDocument> {
        if other.id != self.id {
            return Err(BadDocument::OtherCluster { theirs: other.id.clone(), ours: self.id.clone() });
        }
        other.check()?;
        let before = self.hash();
        self.name = self.name.clone().max(other.name.clone());
        merge_map(&mut self.nodes, &other.nodes);
        merge_map(&mut self.removed, &other.removed);
        merge_map(&mut self.settings, &other.settings);
        self.key = self.key.max(other.key);
        self.key_floor = self.key_floor.max(other.key_floor);
        Ok(self.hash() != before)
    }

    /// Checks the rules that hold for every document, whoever wrote it.
    ///
    /// # Errors
    /// The first rule that is broken.
    pub fn check(&self) -> Result<(), BadDocument> {
        if self.version != VERSION {
            return Err(BadDocument::Version(self.version));
        }
        let size = self.nodes.len() + self.removed.len() + self.settings.len();
        if size > MAX_NODES {
            return Err(BadDocument::TooLarge(size));
        }
        match self.nodes.iter().find(|(id, admitted)| admitted.key.id() != **id) {
            Some((id, _)) => Err(BadDocument::WrongKey(*id)),
            None => Ok(()),
        }
    }

    /// Names this state of the document: equal on two nodes exactly when they hold the same.
    pub fn hash(&self) -> String {
        let bytes = self.to_bytes();
        let digest = ring::digest::digest(&ring::digest::SHA256, &bytes);
        data_encoding::HEXLOWER.encode(&digest.as_ref()[..6])
    }

    /// The document as MessagePack with named fields, so that later versions can add some.
    pub fn to_bytes(&self) -> Vec<u8> {
        // Every field is a plain value: encoding to memory has no way to fail.
        rmp_serde::to_vec_named(self).unwrap_or_default()
    }

    /// Reads a document and checks it.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn from_bytes(bytes: &[u8]) -> Result<Document, BadDocument> {
        let document: Document =
            rmp_serde::from_slice(bytes).map_err(|error| BadDocument::Garbled(error.to_string()))?;
        document.check()?;
        Ok(document)
    }

    /// Admits a node. Admitting it again changes nothing.
    pub fn admit(&mut self, admitted: Admitted) {
        self.nodes.entry(admitted.key.id()).or_insert(admitted);
    }

    /// Removes a node for ever.
    pub fn remove(&mut self, id: NodeId, removed: Removed) {
        self.removed.entry(id).or_insert(removed);
    }

    /// Makes `id` the key that counts. After a removal, all earlier keys end at once.
    pub fn turn_key(&mut self, id: KeyId, by: NodeId, at: UnixMs, by_removal: bool) {
        let epoch = self.key.epoch.saturating_add(1);
        self.key = KeyEpoch { epoch, by_removal, id, by, at };
        if by_removal {
            self.key_floor = epoch;
        }
    }

    /// Writes a setting with a clock above every one seen.
    pub fn set(&mut self, key: &str, value: Option<String>, by: NodeId, at: UnixMs) {
        let highest = self.settings.values().map(|setting| setting.clock).max().unwrap_or(0);
        let clock = highest.saturating_add(1);
        self.settings.insert(key.to_owned(), Setting { clock, by, at, value });
    }
}

fn merge_map<K: Ord + Clone, V: Ord + Clone>(ours: &mut BTreeMap<K, V>, theirs: &BTreeMap<K, V>) {
    for (key, value) in theirs {
        match ours.get_mut(key) {
            Some(known) if *known < *value => *known = value.clone(),
            Some(_) => {}
            None => {
                ours.insert(key.clone(), value.clone());
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn key(n: u8) -> PublicKey {
        PublicKey([n; 32])
    }

    fn admitted(n: u8, at: u64) -> Admitted {
        Admitted { at: UnixMs(at), name: format!("n{n}").parse().unwrap(), key: key(n), by: key(0).id() }
    }

    fn new() -> Document {
        Document::new(
            ClusterId::from_random([1; 16]),
            "cluster".parse().unwrap(),
            admitted(0, 1),
            KeyId([0; 4]),
        )
    }

    #[derive(Debug, Clone)]
    enum Change {
        Admit(u8, u64),
        Remove(u8, u64),
        Turn(u8, bool),
        Set(u8, u8),
    }

    fn change() -> impl Strategy<Value = Change> {
        prop_oneof![
            (0u8..6, 0u64..4).prop_map(|(n, at)| Change::Admit(n, at)),
            (0u8..6, 0u64..4).prop_map(|(n, at)| Change::Remove(n, at)),
            (0u8..4, any::<bool>()).prop_map(|(n, removal)| Change::Turn(n, removal)),
            (0u8..3, 0u8..3).prop_map(|(key, value)| Change::Set(key, value)),
        ]
    }

    fn apply(changes: &[Change], by: u8) -> Document {
        let mut document = new();
        for change in changes {
            match change {
                Change::Admit(n, at) => document.admit(admitted(*n, *at)),
                Change::Remove(n, at) => {
                    let name = format!("n{n}").parse().unwrap();
                    document.remove(key(*n).id(), Removed { at: UnixMs(*at), name, by: key(by).id() });
                }
                Change::Turn(n, removal) => {
                    document.turn_key(KeyId([*n; 4]), key(by).id(), UnixMs(1), *removal);
                }
                Change::Set(name, value) => {
                    document.set(&format!("k{name}"), Some(value.to_string()), key(by).id(), UnixMs(1));
                }
            }
        }
        document
    }

    fn merged(a: &Document, b: &Document) -> Document {
        let mut document = a.clone();
        document.merge(b).unwrap();
        document
    }

    proptest! {
        #[test]
        fn merge_is_commutative_associative_and_idempotent(
            a in proptest::collection::vec(change(), 0..8),
            b in proptest::collection::vec(change(), 0..8),
            c in proptest::collection::vec(change(), 0..8),
        ) {
            let (a, b, c) = (apply(&a, 1), apply(&b, 2), apply(&c, 3));
            prop_assert_eq!(merged(&a, &b), merged(&b, &a));
            prop_assert_eq!(merged(&merged(&a, &b), &c), merged(&a, &merged(&b, &c)));
            prop_assert_eq!(merged(&a, &a), a.clone());
            prop_assert_eq!(merged(&a, &b).hash(), merged(&b, &a).hash());
            // What was removed anywhere is out everywhere.
            for id in a.removed.keys().chain(b.removed.keys()) {
                prop_assert!(merged(&a, &b).member(id).is_none());
            }
        }

        #[test]
        fn no_bytes_make_the_decoder_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = Document::from_bytes(&bytes);
        }

        #[test]
        fn a_bent_document_is_read_or_refused(at in 0usize..400, byte: u8) {
            let mut bytes = apply(&[Change::Admit(1, 1), Change::Remove(2, 1)], 1).to_bytes();
            let at = at % bytes.len();
            bytes[at] = byte;
            let _ = Document::from_bytes(&bytes);
        }
    }

    #[test]
    fn a_document_reads_back_as_written() {
        let document = apply(&[Change::Admit(1, 1), Change::Remove(1, 2), Change::Set(0, 1)], 1);
        assert_eq!(Document::from_bytes(&document.to_bytes()).unwrap(), document);
    }

    #[test]
    fn an_id_with_another_key_and_another_cluster_are_refused() {
        let mut forged = new();
        forged.nodes.insert(key(5).id(), admitted(6, 1));
        assert_eq!(new().merge(&forged), Err(BadDocument::WrongKey(key(5).id())));
        let mut other = new();
        other.id = ClusterId::from_random([2; 16]);
        assert!(matches!(new().merge(&other), Err(BadDocument::OtherCluster { .. })));
    }

    #[test]
    fn a_removal_ends_all_earlier_keys_even_when_a_rotation_follows() {
        let mut document = new();
        document.turn_key(KeyId([2; 4]), key(0).id(), UnixMs(2), true);
        document.turn_key(KeyId([3; 4]), key(0).id(), UnixMs(3), false);
        assert_eq!((document.key.epoch, document.key_floor), (3, 2));
    }

    #[test]
    fn a_node_is_found_by_name_id_or_its_beginning() {
        let mut document = new();
        document.admit(admitted(1, 1));
        let id = key(1).id().to_string();
        assert_eq!(document.find("n1").len(), 1);
        assert_eq!(document.find(&id).len(), 1);
        assert_eq!(document.find(&id[..6]).len(), 1);
        assert!(document.find(&id[..3]).is_empty());
    }
}
