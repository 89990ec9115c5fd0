//! The cluster document: what must outlive every node, and how two copies of it become one.
//!
//! Merge is commutative, associative and idempotent, so copies may be exchanged in any order and any number
//! of times (property-tested below). Nothing is ever taken out: a removal is a tombstone that wins over
//! every admission of the same id. Whether a copy is merged at all is decided by [`Replica::adopt`]: it has
//! to be sealed by a master.
//!
//! Fields that this version does not know, at every level, are kept, hashed and merged ([`Value`]), so that
//! a rewrite by an older node loses nothing and both have the same hash.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::OnceLock;

use serde::{Deserialize, Serialize};

use crate::next_wire;
use crate::node::{Name, NodeId, PublicKey, Role};
use crate::time::UnixMs;

mod difference;
mod entries;
mod limits;
mod replica;
mod value;

#[cfg(test)]
mod replica_tests;
#[cfg(test)]
pub(crate) mod tests;

pub use difference::{DocumentDifference, DocumentJournal};
use entries::merge_map;
pub use entries::{Admitted, DocumentHash, KeyEpoch, KeyId, Removed, RoleChange, RoleName, Setting};
pub use limits::{CounterJump, MAX_BYTES, MAX_NODES};
pub use replica::{AdoptError, Adoption, ChangeError, Replica, Seal, SealedDocument};
pub use value::{Extra, Value};

/// The digest of a document with these canonical bytes.
fn digest_of(canonical: &[u8]) -> [u8; 32] {
    let mut hash = [0; 32];
    hash.copy_from_slice(ring::digest::digest(&ring::digest::SHA256, canonical).as_ref());
    hash
}

/// Format of the document that this version writes. It counts only changes that an older agent must not
/// read past; new fields are no such change.
const VERSION: u8 = 1;

/// A cluster's identity: a hash of its [`Genesis`] and its name, so that nobody can make another cluster
/// with the same id. Shown as hex.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct ClusterId(pub String);

impl fmt::Display for ClusterId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

/// What a cluster's id commits to, besides its name.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Genesis {
    /// 16 random bytes as hex.
    pub random: String,
    /// Key of the first node.
    pub key: PublicKey,
    /// The cluster that this one takes the place of, when that one had no master left.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub succeeds: Option<ClusterId>,
    /// What a later version has added.
    #[serde(flatten)]
    pub extra: Extra,
}

impl Genesis {
    fn id(&self, name: &Name) -> ClusterId {
        let bytes =
            [b"agent cluster 1\0".as_slice(), name.as_str().as_bytes(), b"\0", &value::canonical(self)];
        let digest = ring::digest::digest(&ring::digest::SHA256, &bytes.concat());
        ClusterId(data_encoding::HEXLOWER.encode(&digest.as_ref()[..16]))
    }
}

pub(crate) fn is_default<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
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
    /// What the id commits to.
    pub genesis: Genesis,
    /// Who may take part, those removed since included.
    pub nodes: BTreeMap<NodeId, Admitted>,
    /// Who may not any more.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub removed: BTreeMap<NodeId, Removed>,
    /// Whose role has changed since the admission.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub roles: BTreeMap<NodeId, RoleChange>,
    /// Settings that hold for all.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub settings: BTreeMap<String, Setting>,
    /// The gossip key that counts.
    pub key: KeyEpoch,
    /// Keys of earlier epochs are not accepted any more, not even for a while: a removed node knows them.
    #[serde(default, skip_serializing_if = "is_default")]
    pub key_floor: u64,
    /// What a later version has added.
    #[serde(flatten)]
    pub extra: Extra,
    /// Kept once it has been asked for; every method that changes the document forgets it.
    #[serde(skip)]
    digest: Digest,
}

/// The SHA-256 of a document's canonical bytes, once it is known. No part of the document: copies are equal
/// whether they know it or not, and a clone, which may be about to change, does not.
#[derive(Debug, Default)]
struct Digest(OnceLock<[u8; 32]>);

impl Clone for Digest {
    fn clone(&self) -> Digest {
        Digest::default()
    }
}

impl PartialEq for Digest {
    fn eq(&self, _: &Digest) -> bool {
        true
    }
}

impl Eq for Digest {}

/// Why a document is no good, whoever wrote it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BadDocument {
    /// It is of another cluster.
    #[error("it belongs to cluster {theirs}, but this node to {ours}")]
    OtherCluster {
        /// The document's.
        theirs: ClusterId,
        /// This node's.
        ours: ClusterId,
    },
    /// A later agent wrote it.
    #[error("it has format {0}, this version knows {VERSION}; upgrade this node")]
    Version(u8),
    /// The id is not that of the genesis.
    #[error("its cluster id does not match its name and first node")]
    Genesis,
    /// More than a document may hold.
    #[error("it has {found} {what}; the limit is {most}")]
    TooLarge {
        /// Of what.
        what: &'static str,
        /// How many.
        found: usize,
        /// The bound.
        most: usize,
    },
    /// An id that is not its key's.
    #[error("the key of node {0} does not match its id")]
    WrongKey(NodeId),
    /// A counter that no cluster reaches by itself.
    #[error("a counter is too high: {0}")]
    Counter(CounterJump),
    /// It can't be read.
    #[error("it can't be read: {0}")]
    Garbled(String),
}

/// A counter is at its end, so nothing can be written over what it stands on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the counter of {0} is exhausted; start a successor cluster with: agent init --successor")]
pub struct CounterExhausted(pub &'static str);

impl Document {
    /// The document of a new cluster with its first node, which is a master.
    pub fn new(random: [u8; 16], name: Name, first: Admitted, key: KeyId) -> Document {
        Document::found(random, name, first, key, None)
    }

    fn found(
        random: [u8; 16],
        name: Name,
        first: Admitted,
        key: KeyId,
        succeeds: Option<ClusterId>,
    ) -> Document {
        let node = first.key.id();
        let at = first.at;
        let random = data_encoding::HEXLOWER.encode(&random);
        let genesis = Genesis { random, key: first.key, succeeds, extra: next_wire::extra() };
        let key = KeyEpoch {
            epoch: 1,
            by_removal: false,
            id: key,
            previous: None,
            by: node,
            at,
            extra: next_wire::extra(),
        };
        Document {
            version: VERSION,
            id: genesis.id(&name),
            name,
            genesis,
            nodes: BTreeMap::from([(node, Admitted { role: Role::Master.into(), ..first })]),
            removed: BTreeMap::new(),
            roles: BTreeMap::new(),
            settings: BTreeMap::new(),
            key,
            key_floor: 0,
            extra: next_wire::extra(),
            digest: Digest::default(),
        }
    }

    /// The document of a cluster that takes the place of this one, which has no master left: the same name
    /// and settings, and one node, a master.
    pub fn successor(&self, random: [u8; 16], first: Admitted, key: KeyId) -> Document {
        let (by, at) = (first.key.id(), first.at);
        let mut new = Document::found(random, self.name.clone(), first, key, Some(self.id.clone()));
        let set = self.settings.iter().filter(|(_, setting)| setting.value.is_some());
        new.settings = set
            .map(|(key, setting)| {
                let value = setting.value.clone();
                (key.clone(), Setting { clock: 1, by, at, value, extra: next_wire::extra() })
            })
            .collect();
        new
    }

    /// The admission of a node that was not removed.
    pub fn member(&self, id: &NodeId) -> Option<&Admitted> {
        if self.removed.contains_key(id) { None } else { self.nodes.get(id) }
    }

    /// All nodes that were not removed.
    pub fn members(&self) -> impl Iterator<Item = (&NodeId, &Admitted)> {
        self.nodes.iter().filter(|(id, _)| !self.removed.contains_key(*id))
    }

    /// The role that a node has now; none: it is no member.
    pub fn role(&self, id: &NodeId) -> Option<Role> {
        let admitted = self.member(id)?;
        Some(self.roles.get(id).map_or(&admitted.role, |change| &change.role).role())
    }

    /// Whether a node is a master now.
    pub fn is_master(&self, id: &NodeId) -> bool {
        self.role(id) == Some(Role::Master)
    }

    /// All masters.
    pub fn masters(&self) -> impl Iterator<Item = (&NodeId, &Admitted)> {
        self.members().filter(|(id, _)| self.is_master(id))
    }

    /// The names of all masters, for sentences.
    pub fn master_names(&self) -> String {
        let names: Vec<String> = self.masters().map(|(id, _)| self.shown_name(id).to_string()).collect();
        if names.is_empty() { "(none is left)".to_owned() } else { names.join(", ") }
    }

    /// What people call a member: its name, or its id when another member has the same name, so that no
    /// sentence and no command means the wrong one.
    pub fn shown_name(&self, id: &NodeId) -> Name {
        let as_id = Name::nearest(&id.to_string());
        let Some(admitted) = self.member(id) else { return as_id };
        let shared = self.members().any(|(other, one)| other != id && one.name == admitted.name);
        if shared { as_id } else { admitted.name.clone() }
    }

    /// The same of every member at once, in one pass: status of thousands is made ten times a second.
    pub fn shown_names(&self) -> BTreeMap<NodeId, Name> {
        let shared = self.shared_names();
        let shown = |(id, admitted): (&NodeId, &Admitted)| {
            let is_shared = shared.contains(&admitted.name);
            (*id, if is_shared { Name::nearest(&id.to_string()) } else { admitted.name.clone() })
        };
        self.members().map(shown).collect()
    }

    /// What a node is called where the past is told: its name, also after it was removed, or its id where this
    /// document never had it.
    pub fn name_of(&self, id: &NodeId) -> Name {
        let admitted = self.member(id).map(|one| &one.name);
        let removed = || self.removed.get(id).map(|one| &one.name);
        admitted.or_else(removed).cloned().unwrap_or_else(|| Name::nearest(&id.to_string()))
    }

    /// Names that several members have.
    pub fn shared_names(&self) -> BTreeSet<&Name> {
        let mut seen = BTreeSet::new();
        self.members().map(|(_, admitted)| &admitted.name).filter(|name| !seen.insert(*name)).collect()
    }

    /// The members that a text names: by name, or by id or its beginning (at least 4 characters).
    pub fn find(&self, text: &str) -> Vec<(NodeId, &Admitted)> {
        let by_id = |id: &NodeId| text.len() >= 4 && id.to_string().starts_with(&text.to_ascii_lowercase());
        self.members()
            .filter(|(id, admitted)| admitted.name.as_str() == text || by_id(id))
            .map(|(id, admitted)| (*id, admitted))
            .collect()
    }

    /// Joins another copy into this one; true when this one changed. Nothing is checked but the cluster: see
    /// [`Replica::adopt`].
    ///
    /// # Errors
    /// The other copy is not of this cluster; this one is then unchanged.
    pub fn merge(&mut self, other: &Document) -> Result<bool, BadDocument> {
        if other.id != self.id || other.name != self.name || other.genesis != self.genesis {
            return Err(BadDocument::OtherCluster { theirs: other.id.clone(), ours: self.id.clone() });
        }
        let before = self.clone();
        merge_map(&mut self.nodes, &other.nodes);
        merge_map(&mut self.removed, &other.removed);
        merge_map(&mut self.roles, &other.roles);
        merge_map(&mut self.settings, &other.settings);
        if self.key.rank() < other.key.rank() {
            self.key = other.key.clone();
        }
        self.key_floor = self.key_floor.max(other.key_floor);
        value::merge_extra(&mut self.extra, &other.extra);
        self.digest = Digest::default();
        Ok(*self != before)
    }

    /// The SHA-256 of the canonical bytes: what a seal signs.
    pub fn digest(&self) -> [u8; 32] {
        *self.digest.0.get_or_init(|| digest_of(&self.to_bytes()))
    }

    /// Names this state of the document.
    pub fn state(&self) -> DocumentHash {
        DocumentHash::of_digest(&self.digest())
    }

    /// Names this state of the document in gossip and status: equal on two nodes when they hold the same.
    pub fn hash(&self) -> String {
        data_encoding::HEXLOWER.encode(&self.digest()[..6])
    }

    /// The canonical bytes: MessagePack with named and sorted fields, those of later versions among them.
    pub fn to_bytes(&self) -> Vec<u8> {
        fn entries<K: fmt::Display, V: Serialize>(map: &BTreeMap<K, V>) -> Vec<u8> {
            let mut sorted: BTreeMap<String, Vec<u8>> = BTreeMap::new();
            sorted.extend(map.iter().map(|(key, value)| (key.to_string(), value::canonical(value))));
            value::canonical_map(sorted.into_iter())
        }
        let mut fields: BTreeMap<&str, Vec<u8>> = BTreeMap::new();
        fields.extend(self.extra.iter().map(|(key, value)| (key.as_str(), value::canonical(value))));
        fields.insert("version", value::canonical(&self.version));
        fields.insert("id", value::canonical(&self.id));
        fields.insert("name", value::canonical(&self.name));
        fields.insert("genesis", value::canonical(&self.genesis));
        fields.insert("nodes", entries(&self.nodes));
        fields.insert("key", value::canonical(&self.key));
        if !self.removed.is_empty() {
            fields.insert("removed", entries(&self.removed));
        }
        if !self.roles.is_empty() {
            fields.insert("roles", entries(&self.roles));
        }
        if !self.settings.is_empty() {
            fields.insert("settings", entries(&self.settings));
        }
        if self.key_floor > 0 {
            fields.insert("key_floor", value::canonical(&self.key_floor));
        }
        value::canonical_map(fields.into_iter())
    }

    /// Reads a document and checks it.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn from_bytes(bytes: &[u8]) -> Result<Document, BadDocument> {
        limits::bound("bytes", bytes.len(), MAX_BYTES)?;
        value::check_bytes(bytes)?;
        let document: Document =
            crate::msgpack::from_slice(bytes).map_err(|error| BadDocument::Garbled(error.to_string()))?;
        document.check()?;
        Ok(document)
    }

    /// To be called after every change but a merge.
    fn changed(&mut self) {
        self.extra.extend(next_wire::extra());
        self.digest = Digest::default();
    }

    /// Admits a node. Admitting it again changes nothing.
    pub fn admit(&mut self, admitted: Admitted) {
        self.nodes.entry(admitted.key.id()).or_insert(admitted);
        self.changed();
    }

    /// Removes a node for ever. Removing it again, or one that was never admitted, changes nothing.
    pub fn remove(&mut self, id: NodeId, by: NodeId, at: UnixMs) {
        let Some(name) = self.member(&id).map(|admitted| admitted.name.clone()) else { return };
        let seen = self.state();
        self.removed.insert(id, Removed { at, name, by, seen, extra: next_wire::extra() });
        self.changed();
    }

    /// Gives a member another role.
    ///
    /// # Errors
    /// The counter of its changes is at its end.
    pub fn set_role(
        &mut self,
        id: NodeId,
        role: Role,
        by: NodeId,
        at: UnixMs,
    ) -> Result<(), CounterExhausted> {
        if self.role(&id).is_none_or(|now| now == role) {
            return Ok(());
        }
        let clock = self.roles.get(&id).map_or(0, |change| change.clock);
        let clock = limits::next(clock).ok_or(CounterExhausted("role changes"))?;
        let seen = self.state();
        self.roles
            .insert(id, RoleChange { clock, role: role.into(), at, by, seen, extra: next_wire::extra() });
        self.changed();
        Ok(())
    }

    /// Makes `id` the key that counts. After a removal, all earlier keys end at once.
    ///
    /// # Errors
    /// The counter of keys is at its end.
    pub fn turn_key(
        &mut self,
        id: KeyId,
        by: NodeId,
        at: UnixMs,
        by_removal: bool,
    ) -> Result<(), CounterExhausted> {
        let epoch = limits::next(self.key.epoch).ok_or(CounterExhausted("gossip keys"))?;
        let previous = (!by_removal).then_some(self.key.id);
        self.key = KeyEpoch { epoch, by_removal, id, previous, by, at, extra: next_wire::extra() };
        if by_removal {
            self.key_floor = epoch;
        }
        self.changed();
        Ok(())
    }

    /// Writes a setting with a clock above every one seen.
    ///
    /// # Errors
    /// The clock is at its end: the change would not count.
    pub fn set(
        &mut self,
        key: &str,
        value: Option<String>,
        by: NodeId,
        at: UnixMs,
    ) -> Result<(), CounterExhausted> {
        let highest = self.settings.values().map(|setting| setting.clock).max().unwrap_or(0);
        let clock = limits::next(highest).ok_or(CounterExhausted("settings"))?;
        self.settings.insert(key.to_owned(), Setting { clock, by, at, value, extra: next_wire::extra() });
        self.changed();
        Ok(())
    }
}
