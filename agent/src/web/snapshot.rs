//! One status snapshot, shared by all requests within a short time.

use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Duration;

use hyper::body::Bytes;
use proto::control::Status;
use proto::event::EventRing;
use proto::time::Moment;
use tokio::sync::watch;

use crate::lifecycle::Lifecycle;

/// How long a snapshot is reused: what a hundred collectors ask for at once is rendered once, and nobody sees
/// the difference.
const FRESH: Duration = Duration::from_millis(100);

/// What can be rendered from a status.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum SnapshotKind {
    /// The whole page.
    Page,
    /// The part of it that changes.
    Main,
    /// `agent status --json`.
    Json,
    /// Prometheus' text.
    Metrics,
    /// haproxy's columns.
    Csv,
}

/// A status, and what has been rendered from it.
pub(super) struct StatusSnapshot {
    /// Number of the snapshot.
    pub(super) number: u64,
    taken: Moment,
    /// Changes counted when it was taken.
    changes: u64,
    pub(super) status: Status,
    pub(super) ring: Arc<EventRing>,
    made: [OnceLock<Bytes>; 5],
}

impl StatusSnapshot {
    /// The output of `make`, rendered once.
    pub(super) fn get(&self, kind: SnapshotKind, make: impl FnOnce(&StatusSnapshot) -> Vec<u8>) -> Bytes {
        match self.made.get(kind as usize) {
            Some(place) => place.get_or_init(|| make(self).into()).clone(),
            None => Bytes::new(), // there is a place for every kind
        }
    }
}

/// Takes a snapshot when the last one is too old.
pub(super) struct SnapshotCache {
    status: Box<dyn Fn() -> Status + Send + Sync>,
    changes: watch::Receiver<u64>,
    ring: watch::Receiver<Arc<EventRing>>,
    last: Mutex<Option<Arc<StatusSnapshot>>>,
    life: Lifecycle,
}

impl SnapshotCache {
    pub(super) fn new(
        status: Box<dyn Fn() -> Status + Send + Sync>,
        changes: watch::Receiver<u64>,
        ring: watch::Receiver<Arc<EventRing>>,
        life: &Lifecycle,
    ) -> SnapshotCache {
        SnapshotCache { status, changes, ring, last: Mutex::new(None), life: life.clone() }
    }

    /// The current status; a caller that was notified of a change finds it here. Others wait while it is
    /// being built, so that it is not built twice; that takes a fraction of a millisecond.
    pub(super) fn now(&self) -> Arc<StatusSnapshot> {
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        let (now, changes) = (self.life.now(), *self.changes.borrow());
        match &*last {
            Some(good) if good.changes == changes && now.since(good.taken) < FRESH => Arc::clone(good),
            old => {
                let number = old.as_ref().map_or(1, |old| old.number + 1);
                let (status, ring) = ((self.status)(), self.ring.borrow().clone());
                let made = Default::default();
                let fresh = Arc::new(StatusSnapshot { number, taken: now, changes, status, ring, made });
                *last = Some(Arc::clone(&fresh));
                fresh
            }
        }
    }
}
