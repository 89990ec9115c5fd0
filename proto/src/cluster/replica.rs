//! A node's copy of the document, and which others it takes over.
//!
//! Whoever changes the document seals it: a signature over the hash of all that stands in it. A replica
//! adopts what a master has sealed, a master as its *own* copy has it, and merges it. So
//!
//! - a worker changes nothing: its seal counts nowhere;
//! - a removal re-signs, by its author's seal, all that stands, also what the removed node once wrote: nobody
//!   else is lost with it, whoever admitted them;
//! - from the moment that a replica knows of a removal, nothing that the removed node seals reaches it,
//!   whatever keys it kept and whatever its clock says. What was adopted before stays.
//!
//! ```text
//!   sealed copy of another ──► known master? signature? ──► bounds, steps, times ──► merge ──► bounds
//!                                                                                      │
//!                equal to ours: nothing        equal to theirs: a worker keeps it with its seal
//!                                              neither: a worker waits for a seal
//!                                              a master seals either itself
//! ```
//!
//! Where two masters remove each other at once, each third master takes over what it hears first and refuses
//! the other from then on; two that have heard different ones meet, and both are out. A worker
//! follows: when part of what it holds came from a node that the copy of a standing master has removed or
//! demoted, it takes that copy as it is. What other masters know besides comes again with their copies.
//!
//! A promotion may be forgotten by its own author, which was removed or demoted for a while and then followed
//! others. So whoever was promoted keeps the sealed copy that says so. It meets a master that has it as a worker
//! either with that proof, which counts there while its sealer is a master, or as a worker again.

use std::collections::BTreeSet;

use ring::signature::{ED25519, Ed25519KeyPair, UnparsedPublicKey};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

use super::limits::TimeAhead;
use super::{BadDocument, CounterExhausted, CounterJump, Document};
use crate::node::{NodeId, PublicKey, Role};
use crate::time::UnixMs;

/// Separates these signatures from everything else that the same key signs.
const DOMAIN: &[u8] = b"agent cluster document, version 1\0";

/// Who answers for a document as a whole.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Seal {
    /// Who.
    pub by: NodeId,
    #[serde(with = "text")]
    signature: Vec<u8>,
}

impl std::fmt::Debug for Seal {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Seal({})", self.by)
    }
}

impl Seal {
    fn new(document: &Document, by: NodeId, pair: &Ed25519KeyPair) -> Seal {
        let signature = pair.sign(&[DOMAIN, &document.digest()].concat()).as_ref().to_vec();
        Seal { by, signature }
    }

    fn holds(&self, document: &Document, key: &PublicKey) -> bool {
        let signed = [DOMAIN, &document.digest()].concat();
        key.id() == self.by
            && UnparsedPublicKey::new(&ED25519, &key.0).verify(&signed, &self.signature).is_ok()
    }
}

/// A signature as hex, since it also lies in files that people read.
mod text {
    use super::{Deserialize, Deserializer, Serializer, de};

    pub(super) fn serialize<S: Serializer>(bytes: &[u8], serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&data_encoding::HEXLOWER.encode(bytes))
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<u8>, D::Error> {
        let text = String::deserialize(deserializer)?;
        data_encoding::HEXLOWER.decode(text.as_bytes()).map_err(de::Error::custom)
    }
}

/// A document and its seal as nodes hand them on. The document stays bytes until it is adopted: whoever
/// sends it has shown nothing yet.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SealedDocument {
    #[serde(with = "crate::bytes")]
    document: Vec<u8>,
    seal: Seal,
}

impl SealedDocument {
    /// Canonical bytes of a document under a seal that nobody has looked at.
    pub(super) fn new(document: Vec<u8>, seal: Seal) -> SealedDocument {
        SealedDocument { document, seal }
    }

    /// Reads the document. Its seal has not been looked at then.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn open(&self) -> Result<Document, BadDocument> {
        Document::from_bytes(&self.document)
    }

    /// Who has sealed it, as it says.
    pub fn by(&self) -> NodeId {
        self.seal.by
    }

    /// The same document under another's seal, as a forger would have it.
    #[cfg(test)]
    pub(super) fn under_seal_of(&self, other: &SealedDocument) -> SealedDocument {
        SealedDocument { document: self.document.clone(), seal: other.seal.clone() }
    }

    /// How many bytes the document has.
    pub fn size(&self) -> usize {
        self.document.len()
    }
}

/// Why a copy was not adopted.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AdoptError {
    /// It is no good, whoever sealed it.
    #[error(transparent)]
    Bad(#[from] BadDocument),
    /// The node that sealed it is not known.
    #[error(
        "it was sealed by {0}, which is unknown to this node; if all masters it knew are gone, run \
         agent join with a new invite"
    )]
    UnknownSealer(NodeId),
    /// The node that sealed it was removed.
    #[error("it was sealed by {0}, which was removed")]
    RemovedSealer(NodeId),
    /// The node that sealed it may not change the document.
    #[error("it was sealed by {0}, which is a worker")]
    WorkerSealer(NodeId),
    /// The seal is not that of the node that it names.
    #[error("its seal is not that of {0}")]
    WrongSeal(NodeId),
    /// A counter jumps.
    #[error("{0}")]
    Jump(CounterJump),
    /// A time lies in the future.
    #[error(
        "it has an entry of {by} from {}, which is in the future: the clock of {by} is ahead, or this \
         node's is behind; correct them",
        at.log_date()
    )]
    Future {
        /// Whose clock it was.
        by: NodeId,
        /// The time.
        at: UnixMs,
    },
}

/// What became of a copy that was adopted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Adoption {
    /// It holds nothing new.
    Nothing,
    /// This replica is now what was sealed.
    Taken,
    /// This replica has more than what was sealed, and changed: a master seals it.
    Merged {
        /// The key that counts was made by a node that did not know of a removal: it needs a successor.
        key_is_known_to_removed: bool,
    },
}

/// Why a change was not made.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ChangeError {
    /// This node is a worker.
    #[error("this node is a worker and cannot change the cluster; run this on a master: {0}")]
    Worker(String),
    /// This node was removed.
    #[error("this node was removed from the cluster; run: agent leave --force")]
    Removed,
    /// A counter is at its end.
    #[error(transparent)]
    Exhausted(#[from] CounterExhausted),
    /// The document would become too large.
    #[error("it does not fit into the cluster document: {0}")]
    Bad(#[from] BadDocument),
}

/// A node's copy of the document, with the seal under which it stands; a worker's merged copy waits for one.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Replica {
    document: Document,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    seal: Option<Seal>,
    /// Whose seals brought what stands here: one node, but for a worker's merged copy. Never more than there
    /// are masters at a time.
    #[serde(default)]
    from: BTreeSet<NodeId>,
    /// What made this node a master, as it came: the proof for masters that have not heard of it. None on a
    /// worker, and on a master that was admitted as one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    promotion: Option<Promotion>,
    /// The document of this node when it was last a master, until it is one again: what only it knew is lost
    /// with its removal or demotion, but not with one that does not stand.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    before_demotion: Option<Document>,
}

/// The copy that made a node a master.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Promotion {
    document: Document,
    seal: Seal,
}

impl Replica {
    fn under(document: Document, seal: Seal) -> Replica {
        let from = BTreeSet::from([seal.by]);
        Replica { document, seal: Some(seal), from, promotion: None, before_demotion: None }
    }

    /// Takes another state of the document. What was kept of earlier ones is left alone.
    fn replace(&mut self, document: Document, seal: Seal) {
        let (promotion, before_demotion) = (self.promotion.take(), self.before_demotion.take());
        *self = Replica { promotion, before_demotion, ..Replica::under(document, seal) };
    }

    /// The replica of a node that founds a cluster.
    pub fn new(document: Document, own: NodeId, pair: &Ed25519KeyPair) -> Replica {
        let seal = Seal::new(&document, own, pair);
        Replica::under(document, seal)
    }

    /// The replica of a node that joins, from what a master gave it whose key is confirmed.
    ///
    /// # Errors
    /// The document is no good, or not sealed by a master.
    pub fn join(sealed: &SealedDocument, from: &PublicKey) -> Result<Replica, AdoptError> {
        let document = sealed.open()?;
        check_seal(&document, &document, &sealed.seal)?;
        let giver = from.id();
        match document.role(&giver) {
            Some(Role::Master) => Ok(Replica::under(document, sealed.seal.clone())),
            Some(Role::Worker) => Err(AdoptError::WorkerSealer(giver)),
            None => Err(AdoptError::UnknownSealer(giver)),
        }
    }

    /// The document.
    pub fn document(&self) -> &Document {
        &self.document
    }

    /// The seal of the document, if it has one.
    pub(super) fn seal_of_document(&self) -> Option<&Seal> {
        self.seal.as_ref()
    }

    /// The document with its seal, to be handed on; none while it has none.
    pub fn sealed(&self) -> Option<SealedDocument> {
        let seal = self.seal.clone()?;
        Some(SealedDocument { document: self.document.to_bytes(), seal })
    }

    /// Adopts a copy of another node.
    ///
    /// # Errors
    /// Why not; this replica is then unchanged.
    pub fn adopt(&mut self, theirs: &SealedDocument, now: UnixMs) -> Result<Adoption, AdoptError> {
        let ours = &self.document;
        let seal = &theirs.seal;
        let theirs = theirs.open()?;
        if theirs.id != ours.id {
            return Err(BadDocument::OtherCluster { theirs: theirs.id, ours: ours.id.clone() }.into());
        }
        check_seal(ours, &theirs, seal)?;
        ours.check_steps(&theirs).map_err(AdoptError::Jump)?;
        ours.check_times(&theirs, now).map_err(|TimeAhead { by, at }| AdoptError::Future { by, at })?;
        let mut merged = ours.clone();
        merged.merge(&theirs)?;
        if merged == *ours {
            if self.seal.is_none() && merged == theirs {
                self.replace(theirs, seal.clone());
            }
            return Ok(Adoption::Nothing);
        }
        if merged == theirs {
            self.replace(theirs, seal.clone());
            return Ok(Adoption::Taken);
        }
        merged.check()?;
        Ok(self.take_merged(merged, &theirs, seal.by))
    }

    /// Takes what came of merging `theirs`, which waits for a seal.
    fn take_merged(&mut self, merged: Document, theirs: &Document, by: NodeId) -> Adoption {
        let winner = if merged.key == theirs.key { theirs } else { &self.document };
        let key_is_known_to_removed = merged.removed.keys().any(|id| !winner.removed.contains_key(id));
        (self.document, self.seal) = (merged, None);
        self.from.insert(by);
        Adoption::Merged { key_is_known_to_removed }
    }

    /// Adopts a copy, and gives up what the node `own` has besides from nodes that are masters no more, so that
    /// it ends with what the masters agree on. A worker gives up all of that; a master, when whoever sealed its
    /// promotion is no master any more for the others.
    ///
    /// Of a master that `theirs` has as a worker, either is true: the sealer of its promotion is no master there,
    /// and it gives up; or it is one, and who sealed `theirs` adopts the promotion: see [`Replica::proof_for`].
    ///
    /// # Errors
    /// As [`Replica::adopt`].
    pub fn adopt_from_master(
        &mut self,
        theirs: &SealedDocument,
        own: &NodeId,
        now: UnixMs,
    ) -> Result<Adoption, AdoptError> {
        let before = self.document.is_master(own).then(|| self.document.clone());
        let mut adoption = self.adopt(theirs, now)?;
        if self.seal.is_none() {
            let document = theirs.open()?;
            let gone = |by: &NodeId| !document.is_master(by);
            let gives_up = if self.document.is_master(own) {
                gone(own) && self.made_master_by(own).is_some_and(|by| gone(&by))
            } else {
                self.from.iter().any(gone)
            };
            if gives_up {
                self.replace(document, theirs.seal.clone());
                adoption = Adoption::Taken;
            }
        }
        match (before, self.document.is_master(own)) {
            (None, false) => {}
            (Some(before), false) => {
                self.promotion = None;
                self.before_demotion = Some(before);
            }
            (None, true) => {
                let document = theirs.open()?;
                self.promotion = Some(Promotion { document, seal: theirs.seal.clone() });
                adoption = self.restore(own).unwrap_or(adoption);
            }
            (Some(_), true) => {}
        }
        Ok(adoption)
    }

    /// Adds what the node `own`, a master again, knew before a removal or demotion that does not stand: as if it
    /// had never heard of that. What was decided for good, and then changed again, brings nothing back.
    fn restore(&mut self, own: &NodeId) -> Option<Adoption> {
        let before = self.before_demotion.take()?;
        let never_demoted = self.document.roles.get(own) == before.roles.get(own);
        let mut merged = self.document.clone();
        let changed = never_demoted && merged.merge(&before).ok()? && merged.check().is_ok();
        changed.then(|| self.take_merged(merged, &before, *own))
    }

    /// Whose seal made this node a master; where that is not known, who says so in the document.
    fn made_master_by(&self, id: &NodeId) -> Option<NodeId> {
        let sealed = self.promotion.as_ref().map(|promotion| promotion.seal.by);
        let changed = || self.document.roles.get(id).map(|change| change.by);
        sealed.or_else(changed).or_else(|| self.document.nodes.get(id).map(|admitted| admitted.by))
    }

    /// What shows the sealer of `theirs`, and whoever has sent that copy, that the node `own` is a master, when
    /// they have that node as a worker: they adopt nothing that the node seals itself, but the promotion under the
    /// seal of a master that they know.
    pub fn proof_for(&self, theirs: &SealedDocument, own: &NodeId) -> Option<SealedDocument> {
        let Promotion { document, seal } = self.promotion.as_ref()?;
        let judge = theirs.open().ok()?;
        let wanted = judge.role(own) == Some(Role::Worker) && judge.is_master(&seal.by);
        wanted.then(|| SealedDocument { document: document.to_bytes(), seal: seal.clone() })
    }

    /// Changes the document as a master, and seals it. When anything fails, nothing has changed.
    ///
    /// # Errors
    /// This node is no master, or what the change says.
    pub fn change<T>(
        &mut self,
        own: NodeId,
        pair: &Ed25519KeyPair,
        change: impl FnOnce(&mut Document) -> Result<T, ChangeError>,
    ) -> Result<T, ChangeError> {
        match self.document.role(&own) {
            Some(Role::Master) => {}
            Some(Role::Worker) => return Err(ChangeError::Worker(self.document.master_names())),
            None => return Err(ChangeError::Removed),
        }
        let mut document = self.document.clone();
        let result = change(&mut document)?;
        document.check()?;
        let seal = Seal::new(&document, own, pair);
        self.replace(document, seal);
        Ok(result)
    }

    /// Seals what was adopted, where this node is a master of it: a merged copy, and also one that stands
    /// under another's seal, since some who hear it from this node may know nothing of that other, or no
    /// good. True when it did.
    pub fn seal(&mut self, own: NodeId, pair: &Ed25519KeyPair) -> bool {
        let sealed = self.seal.as_ref().is_some_and(|seal| seal.by == own);
        let wanted = !sealed && self.document.is_master(&own);
        if wanted {
            self.seal = Some(Seal::new(&self.document, own, pair));
            self.from = BTreeSet::from([own]);
        }
        wanted
    }
}

/// Checks that a document is sealed by someone who is a master in the copy that judges.
fn check_seal(judge: &Document, document: &Document, seal: &Seal) -> Result<(), AdoptError> {
    let Some(admitted) = judge.member(&seal.by) else {
        let removed = judge.removed.contains_key(&seal.by);
        return Err(if removed {
            AdoptError::RemovedSealer(seal.by)
        } else {
            AdoptError::UnknownSealer(seal.by)
        });
    };
    if !judge.is_master(&seal.by) {
        return Err(AdoptError::WorkerSealer(seal.by));
    }
    if seal.holds(document, &admitted.key) { Ok(()) } else { Err(AdoptError::WrongSeal(seal.by)) }
}
