//! One look at everything, shared by all who ask within the same moment.

use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Duration;

use hyper::body::Bytes;
use proto::control::Status;
use proto::event::EventRing;
use proto::time::Moment;
use tokio::sync::watch;

use crate::lifecycle::Lifecycle;

/// How long a look is good for: what a hundred collectors ask for in one go is made once, and nobody sees
/// the difference.
const FRESH: Duration = Duration::from_millis(100);

/// What can be made of a status.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum SnapshotKind {
    /// The whole page.
    Page,
    /// What of it changes.
    Main,
    /// `agent status --json`.
    Json,
    /// Prometheus' text.
    Metrics,
    /// haproxy's columns.
    Csv,
}

/// A status, and what was made of it so far.
pub(super) struct StatusSnapshot {
    /// Which look it was.
    pub(super) number: u64,
    taken: Moment,
    /// Changes that had been counted by then.
    changes: u64,
    pub(super) status: Status,
    pub(super) ring: Arc<EventRing>,
    made: [OnceLock<Bytes>; 5],
}

impl StatusSnapshot {
    /// What `make` makes of it, made once.
    pub(super) fn get(&self, kind: SnapshotKind, make: impl FnOnce(&StatusSnapshot) -> Vec<u8>) -> Bytes {
        match self.made.get(kind as usize) {
            Some(place) => place.get_or_init(|| make(self).into()).clone(),
            None => Bytes::new(), // there is a place for every kind
        }
    }
}

/// Takes a look where the last one is too old.
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

    /// The status now; who was told of a change finds it in here. Others wait while it is put together, so
    /// that it is not done twice; it takes a fraction of a millisecond.
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
