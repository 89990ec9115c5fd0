//! What stands in a document, and which of two versions of an entry counts.

use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::fmt;

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

use super::Extra;
use crate::next_wire;
use crate::node::{Name, NodeId, PublicKey, Role};
use crate::time::UnixMs;

/// Names one state of the document: half of its SHA-256.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct DocumentHash(pub [u8; 16]);

impl DocumentHash {
    pub(super) fn of_digest(digest: &[u8; 32]) -> DocumentHash {
        let mut hash = [0; 16];
        hash.copy_from_slice(&digest[..16]);
        DocumentHash(hash)
    }
}

impl fmt::Display for DocumentHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&data_encoding::HEXLOWER.encode(&self.0))
    }
}

impl fmt::Debug for DocumentHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl Serialize for DocumentHash {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for DocumentHash {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<DocumentHash, D::Error> {
        hex(deserializer).map(DocumentHash)
    }
}

/// Reads so many bytes from hex.
pub(super) fn hex<'de, D: Deserializer<'de>, const N: usize>(deserializer: D) -> Result<[u8; N], D::Error> {
    let text = String::deserialize(deserializer)?;
    let bytes = data_encoding::HEXLOWER.decode(text.as_bytes()).ok();
    let bytes = bytes.and_then(|bytes| bytes.try_into().ok());
    bytes.ok_or_else(|| de::Error::custom(format!("not {N} bytes as hex")))
}

/// A role as the document has it. What a later version may write is kept, and counts as a worker.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct RoleName(pub(super) String);

impl From<Role> for RoleName {
    fn from(role: Role) -> RoleName {
        RoleName(role.to_string())
    }
}

impl RoleName {
    /// The role that counts.
    pub fn role(&self) -> Role {
        if self.0 == "master" { Role::Master } else { Role::Worker }
    }
}

/// Names one gossip key without giving it away: half of its SHA-256, so that nobody can make another key
/// with the same id.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct KeyId(pub [u8; KeyId::LEN]);

impl KeyId {
    /// Length in bytes.
    pub const LEN: usize = 16;

    /// The id of a key.
    pub fn of_key(key: &[u8; 32]) -> KeyId {
        let digest = ring::digest::digest(&ring::digest::SHA256, key);
        let mut id = [0; KeyId::LEN];
        id.copy_from_slice(&digest.as_ref()[..KeyId::LEN]);
        KeyId(id)
    }
}

impl Serialize for KeyId {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for KeyId {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<KeyId, D::Error> {
        hex(deserializer).map(KeyId)
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

/// A node that may take part. Of two admissions of one node, the earlier counts.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Admitted {
    /// When it was admitted.
    pub at: UnixMs,
    /// Its name.
    pub name: Name,
    /// Its key.
    pub key: PublicKey,
    /// The role that it was admitted with.
    pub role: RoleName,
    /// Who admitted it.
    pub by: NodeId,
    /// What a later version has added.
    #[serde(flatten)]
    pub extra: Extra,
}

impl Admitted {
    /// An admission.
    pub fn new(name: Name, key: PublicKey, role: Role, by: NodeId, at: UnixMs) -> Admitted {
        Admitted { at, name, key, role: role.into(), by, extra: next_wire::extra() }
    }
}

/// A node that may never take part again. Of two removals of one node, the earlier counts.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Removed {
    /// When it was removed.
    pub at: UnixMs,
    /// The name it had.
    pub name: Name,
    /// Who removed it; itself, when it left.
    pub by: NodeId,
    /// The document that this was decided on.
    pub seen: DocumentHash,
    /// What a later version has added.
    #[serde(flatten)]
    pub extra: Extra,
}

/// A promotion or demotion. Of two, the one with the higher clock counts; of one clock, the demotion.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RoleChange {
    /// Counts the changes of this node's role, from 1.
    pub clock: u64,
    /// The role from now on.
    pub role: RoleName,
    /// When.
    pub at: UnixMs,
    /// Who changed it.
    pub by: NodeId,
    /// The document that this was decided on.
    pub seen: DocumentHash,
    /// What a later version has added.
    #[serde(flatten)]
    pub extra: Extra,
}

/// A setting that holds for all nodes. Of two, the one with the higher clock counts, then the higher node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Setting {
    /// Logical clock (Lamport): one more than the highest that its writer had seen.
    pub clock: u64,
    /// Who wrote it.
    pub by: NodeId,
    /// When, by its writer's clock: for people, since the logical clock decides.
    pub at: UnixMs,
    /// The value; none: unset.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub value: Option<String>,
    /// What a later version has added.
    #[serde(flatten)]
    pub extra: Extra,
}

/// Which gossip key counts. Of two, the later epoch counts; of the same epoch, the one made by a removal,
/// then the higher id: so that two rotations at once end with one winner everywhere.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct KeyEpoch {
    /// Counts the keys, from 1.
    pub epoch: u64,
    /// Made because a node was removed.
    #[serde(default, skip_serializing_if = "super::is_default")]
    pub by_removal: bool,
    /// Which key.
    pub id: KeyId,
    /// The key before it, which is accepted for a while; none after a removal.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub previous: Option<KeyId>,
    /// Who made it.
    pub by: NodeId,
    /// When.
    pub at: UnixMs,
    /// What a later version has added.
    #[serde(flatten)]
    pub extra: Extra,
}

/// An entry of which two versions may meet: the one with the higher rank counts. The rank takes in every
/// field, so that equal ranks are equal entries.
pub(super) trait Entry: Clone {
    fn beats(&self, other: &Self) -> bool;
}

impl Entry for Admitted {
    fn beats(&self, other: &Admitted) -> bool {
        let rank = |one: &Admitted| {
            let Admitted { at, name, key, role, by, extra } = one.clone();
            (Reverse(at), name, key, role.role(), role, by, extra)
        };
        rank(self) > rank(other)
    }
}

impl Entry for Removed {
    fn beats(&self, other: &Removed) -> bool {
        let rank = |one: &Removed| {
            let Removed { at, name, by, seen, extra } = one.clone();
            (Reverse(at), name, by, seen, extra)
        };
        rank(self) > rank(other)
    }
}

impl Entry for RoleChange {
    fn beats(&self, other: &RoleChange) -> bool {
        let rank = |one: &RoleChange| {
            let RoleChange { clock, role, at, by, seen, extra } = one.clone();
            // Of two roles, a worker's is the greater.
            (clock, role.role(), role, by, at, seen, extra)
        };
        rank(self) > rank(other)
    }
}

impl Entry for Setting {
    fn beats(&self, other: &Setting) -> bool {
        let rank = |one: &Setting| {
            let Setting { clock, by, at, value, extra } = one.clone();
            (clock, by, at, value, extra)
        };
        rank(self) > rank(other)
    }
}

impl KeyEpoch {
    pub(super) fn rank(&self) -> impl Ord + use<> {
        let KeyEpoch { epoch, by_removal, id, previous, by, at, extra } = self.clone();
        (epoch, by_removal, id, previous, by, at, extra)
    }
}

pub(super) fn merge_map<K: Ord + Clone, V: Entry>(ours: &mut BTreeMap<K, V>, theirs: &BTreeMap<K, V>) {
    for (key, value) in theirs {
        match ours.get_mut(key) {
            Some(known) if value.beats(known) => *known = value.clone(),
            Some(_) => {}
            None => drop(ours.insert(key.clone(), value.clone())),
        }
    }
}
