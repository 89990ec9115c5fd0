//! The document as a difference, for whoever has it as it was a moment ago: a merge patch (RFC 7396) of its canonical
//! form, with the seal of what comes out. Whoever applies it to something else gets another hash, and asks for the
//! whole document.

use std::collections::VecDeque;

use serde::{Deserialize, Serialize};

use super::limits::MAX_BYTES;
use super::replica::{Replica, Seal, SealedDocument};
use super::value::{self, Value};
use super::{Document, DocumentHash, digest_of};

/// Most steps of a journal.
const MOST_STEPS: usize = 64;

/// A difference larger than this part of the document is not worth a second way.
const WORTH: usize = 4;

/// What a node lacks that has an earlier state of the document.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DocumentDifference {
    /// The state that it leads to.
    pub target: DocumentHash,
    #[serde(with = "crate::bytes")]
    patch: Vec<u8>,
    seal: Seal,
}

impl DocumentDifference {
    /// The document that it leads to, with its seal; nobody has looked at either then. `None`: from this state it leads
    /// elsewhere, or nowhere.
    pub fn apply(&self, ours: &Document) -> Option<SealedDocument> {
        if self.patch.len() > MAX_BYTES || value::check_bytes(&self.patch).is_err() {
            return None;
        }
        let mut all = value_of(ours)?;
        all.apply(&crate::msgpack::from_slice(&self.patch).ok()?);
        // Read and checked when it is adopted, as a whole one is.
        let document = rmp_serde::to_vec_named(&all).ok()?;
        let reached = DocumentHash::of_digest(&digest_of(&document));
        (reached == self.target).then(|| SealedDocument::new(document, self.seal.clone()))
    }

    /// What leads from one state to that of a replica.
    #[cfg(test)]
    pub(crate) fn between(before: &Document, replica: &Replica) -> Option<DocumentDifference> {
        let patch = value_of(before)?.patch_to(&value_of(replica.document())?)?;
        DocumentDifference::of(&patch, replica)
    }

    fn of(patch: &Value, replica: &Replica) -> Option<DocumentDifference> {
        let (target, seal) = (replica.document().state(), replica.seal_of_document()?.clone());
        Some(DocumentDifference { target, patch: rmp_serde::to_vec_named(patch).ok()?, seal })
    }

    /// Bytes of the patch.
    pub fn size(&self) -> usize {
        self.patch.len()
    }
}

fn value_of(document: &Document) -> Option<Value> {
    crate::msgpack::from_slice(&document.to_bytes()).ok()
}

/// One change of the document.
#[derive(Debug, Clone)]
struct Step {
    before: DocumentHash,
    patch: Value,
    bytes: usize,
}

/// The last changes of a node's document, as far as they are shorter than itself.
#[derive(Debug, Clone, Default)]
pub struct DocumentJournal(VecDeque<Step>);

impl DocumentJournal {
    /// The document has changed.
    pub fn follow(&mut self, before: &Document, now: &Document) {
        if before.state() == now.state() {
            return;
        }
        let whole = now.to_bytes();
        let value = crate::msgpack::from_slice(&whole).ok();
        let patch = value_of(before).zip(value).and_then(|(before, now)| before.patch_to(&now));
        let Some(patch) = patch else { return };
        let bytes = rmp_serde::to_vec_named(&patch).map_or(usize::MAX, |bytes| bytes.len());
        self.0.push_back(Step { before: before.state(), patch, bytes });
        let all =
            |steps: &VecDeque<Step>| steps.iter().fold(0, |all: usize, one| all.saturating_add(one.bytes));
        while self.0.len() > MOST_STEPS || all(&self.0) > whole.len() / WORTH {
            self.0.pop_front();
        }
    }

    /// What leads from a known state to this replica's; from any state that the journal has, if none is named. `None`:
    /// the whole document is shorter, or no master has sealed it yet.
    pub fn since(&self, known: Option<&DocumentHash>, replica: &Replica) -> Option<DocumentDifference> {
        let first = known.map_or(Some(0), |known| self.0.iter().rposition(|step| step.before == *known))?;
        let mut patches = self.0.iter().skip(first).map(|step| step.patch.clone());
        let mut all = patches.next()?;
        patches.for_each(|next| all.follow_with(next));
        DocumentDifference::of(&all, replica)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use ring::signature::{Ed25519KeyPair, KeyPair};

    use super::super::tests::{Change, apply, change};
    use super::*;
    use crate::node::PublicKey;

    fn sealed(document: Document) -> Replica {
        let pair = Ed25519KeyPair::from_seed_unchecked(&[1; 32]).unwrap();
        let id = PublicKey(pair.public_key().as_ref().try_into().unwrap()).id();
        Replica::new(document, id, &pair)
    }

    /// A document that is large beside a change.
    fn large() -> Vec<Change> {
        (0..90).map(|n| Change::Admit(n + 10, 1)).collect()
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(24))]

        #[test]
        fn a_difference_leads_from_every_state_of_the_journal_to_the_last(
            changes in proptest::collection::vec(change(), 1..12),
        ) {
            let mut all = large();
            let mut states = vec![apply(&all, 1)];
            let mut journal = DocumentJournal::default();
            for change in changes {
                all.push(change);
                let now = apply(&all, 1);
                journal.follow(states.last().unwrap(), &now);
                states.push(now);
            }
            let last = sealed(states.last().unwrap().clone());
            let whole = last.sealed().unwrap();
            for before in &states {
                let Some(difference) = journal.since(Some(&before.state()), &last) else { continue };
                prop_assert_eq!(difference.apply(before), Some(whole.clone()));
                prop_assert!(difference.size() * WORTH <= whole.size());
            }
            // The longest one leads on from every state between, too.
            if let Some(difference) = journal.since(None, &last) {
                for step in &journal.0 {
                    let before = states.iter().find(|state| state.state() == step.before).unwrap();
                    prop_assert_eq!(difference.apply(before), Some(whole.clone()));
                }
            }
        }

        #[test]
        fn no_patch_makes_it_panic(patch in proptest::collection::vec(any::<u8>(), 0..60)) {
            let document = apply(&large(), 1);
            let seal = sealed(document.clone()).seal_of_document().unwrap().clone();
            let difference = DocumentDifference { target: DocumentHash([1; 16]), patch, seal };
            prop_assert_eq!(difference.apply(&document), None);
        }
    }

    #[test]
    fn a_journal_ends_where_the_document_is_shorter() {
        let mut journal = DocumentJournal::default();
        let (few, many) = (apply(&[Change::Admit(1, 1)], 1), apply(&large(), 1));
        journal.follow(&few, &many);
        assert_eq!(journal.since(Some(&few.state()), &sealed(many.clone())), None);
        let more = apply(&[large(), vec![Change::Admit(9, 1)]].concat(), 1);
        journal.follow(&many, &more);
        let difference = journal.since(Some(&many.state()), &sealed(more.clone())).unwrap();
        assert!(difference.size() < 250, "{} of {}", difference.size(), more.to_bytes().len());
        assert_eq!(difference.apply(&few), None, "from elsewhere it leads nowhere");
    }
}
