//! The records of all members, shared by their sources (gossip, pulses, TLS) and their readers.
//!
//! The lock is held no longer than for a lookup or the verification of one message's signatures.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Mutex, MutexGuard, PoisonError};

use proto::cluster::Document;
use proto::node::NodeId;
use proto::record_store::{OfferOutcome, RecordStore};
use proto::signed_record::SignedRecord;
use proto::time::Moment;
use tokio::sync::Notify;

use crate::lifecycle::wall;

/// Most bytes of records in one response over TLS; the rest comes with the next request.
pub(crate) const MOST_BYTES: usize = 1 << 20;

/// The records of all members.
#[derive(Debug, Default)]
pub(crate) struct SharedRecords {
    store: Mutex<RecordStore>,
    /// Whose records every node needs: what attached nodes are given.
    needed: Mutex<BTreeSet<NodeId>>,
    news: Notify,
}

impl SharedRecords {
    /// The store, locked.
    pub(crate) fn lock(&self) -> MutexGuard<'_, RecordStore> {
        // Every method of the store ends in one assignment: a panic leaves nothing half-written.
        self.store.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes the members from the document.
    pub(crate) fn set_members(&self, document: &Document) {
        let members: BTreeMap<_, _> = document.members().map(|(id, one)| (*id, one.key)).collect();
        self.lock().set_members(&document.id.to_string(), members);
    }

    /// Sets whose records every node needs.
    pub(crate) fn set_needed(&self, needed: BTreeSet<NodeId>) {
        *self.needed.lock().unwrap_or_else(PoisonError::into_inner) = needed;
    }

    /// Whose records every node needs.
    pub(crate) fn needed(&self) -> BTreeSet<NodeId> {
        self.needed.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Stores records that a member has sent.
    pub(crate) fn offer(&self, records: Vec<SignedRecord>, sender: &NodeId, now: Moment) {
        let mut news = false;
        for record in records {
            let node = record.node;
            // Locked for each separately: thousands of signatures take a while.
            let came = self.lock().offer(record, sender, now, wall());
            news |= came == OfferOutcome::Taken;
            if came == OfferOutcome::Forged {
                tracing::warn!(%sender, %node, "a record with an invalid signature was refused");
            }
        }
        if news {
            self.wake_waiters();
        }
    }

    /// Wakes tasks that wait for new records.
    pub(crate) fn wake_waiters(&self) {
        self.news.notify_one();
    }

    /// Resolves when a new record has arrived.
    pub(crate) async fn changed(&self) {
        self.news.notified().await;
    }
}
