//! What only time shows: how often backends changed, how long they were down, how late this process was; and
//! one number that grows whenever a person should look again.
//!
//! Two tasks. Stopping them anywhere is safe: they hold nothing but counts.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use proto::backends::{BackendState, BackendTable};
use proto::config::Config;
use proto::control::BackendCounts;
use proto::event::EventRing;
use proto::node::NodeId;
use proto::service::ServiceName;
use proto::time::Moment;
use tokio::sync::watch;

use super::{RunningAgent, status};
use crate::histogram::HistogramMeter;
use crate::lifecycle::Lifecycle;
use crate::timer::Ticks;
use crate::web;

/// Between two looks at how late the event loop is: often enough to meet a stall of a second, seldom enough
/// to cost nothing.
const LOOK: Duration = Duration::from_millis(600);

/// Shortest time between two changes that are told of.
const REST: Duration = Duration::from_millis(20);

/// What has been seen so far.
#[derive(Default)]
pub(crate) struct BackendHistory {
    pub(super) lag: HistogramMeter,
    backends: Mutex<BTreeMap<(ServiceName, NodeId), PastBackend>>,
    /// Events by kind, and the number of the last that was counted.
    events: Mutex<(BTreeMap<String, u64>, u64)>,
}

/// One backend's past.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct PastBackend {
    state: BackendState,
    since: Moment,
    changes: u64,
    false_alarms: u64,
    /// Time in which it was not good, without what is not over.
    down: Duration,
}

impl PastBackend {
    fn new(state: BackendState, now: Moment) -> PastBackend {
        PastBackend { state, since: now, changes: 0, false_alarms: 0, down: Duration::ZERO }
    }

    /// It is in this state now.
    fn observe(&mut self, state: BackendState, now: Moment) {
        if state == self.state {
            return;
        }
        self.down = self.down(now);
        self.changes += 1;
        // A doubt that ends well was none.
        self.false_alarms += u64::from(self.state == BackendState::Suspect && state.is_good());
        (self.state, self.since) = (state, now);
    }

    fn down(&self, now: Moment) -> Duration {
        let open = if self.state.is_good() { Duration::ZERO } else { now.since(self.since) };
        self.down + open
    }
}

impl BackendHistory {
    fn backends(&self) -> MutexGuard<'_, BTreeMap<(ServiceName, NodeId), PastBackend>> {
        self.backends.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes in how all backends are now, and forgets those that are gone.
    fn update(&self, table: &BackendTable, now: Moment) {
        let mut kept = self.backends();
        kept.retain(|(service, node), _| {
            table.get(service).is_some_and(|all| all.iter().any(|backend| backend.node == *node))
        });
        for (service, all) in table {
            for backend in all {
                let key = (service.clone(), backend.node);
                kept.entry(key)
                    .or_insert_with(|| PastBackend::new(backend.state, now))
                    .observe(backend.state, now);
            }
        }
    }

    /// Counts what has happened since it was last asked.
    pub(super) fn events(&self, ring: &EventRing) -> BTreeMap<String, u64> {
        let mut events = self.events.lock().unwrap_or_else(PoisonError::into_inner);
        let (counts, last) = &mut *events;
        for event in ring.after(*last) {
            *counts.entry(event.kind.name().to_owned()).or_default() += 1;
        }
        *last = ring.newest();
        counts.clone()
    }

    /// Lays what was seen of a backend over its counts.
    pub(super) fn count(&self, service: &ServiceName, node: NodeId, now: Moment, counts: &mut BackendCounts) {
        if let Some(kept) = self.backends().get(&(service.clone(), node)) {
            counts.changes = kept.changes;
            counts.false_alarms = kept.false_alarms;
            counts.downtime_ms = u64::try_from(kept.down(now).as_millis()).unwrap_or(u64::MAX);
        }
    }
}

/// Starts both tasks, and the page that shows what they see.
pub(super) fn spawn(running: &Arc<RunningAgent>, config: watch::Receiver<Arc<Config>>, life: &Lifecycle) {
    let (changes, seen) = watch::channel(0);
    let asked = running.clone();
    let inputs = web::WebInputs {
        config,
        settings: running.clients.effective().settings(),
        status: Box::new(move || status::of(&asked)),
        changes: seen,
        ring: running.events.watch(),
        act: Box::new(super::requests::handler(running.clone())),
        tell: running.events.tell(),
    };
    web::spawn(inputs, life);
    let (own, followed) = (life.clone(), running.clone());
    life.supervise("status", changes, move |changes| {
        let (over, following) = (own.shutdown.clone(), follow(followed.clone(), changes, own.clone()));
        Box::pin(async move {
            over.run_until_cancelled(following).await;
        })
    });
    let (own, measured) = (life.clone(), running.clone());
    life.supervise_each("status", move || {
        let (over, measuring) = (own.shutdown.clone(), measure(measured.clone(), own.clone()));
        async move {
            over.run_until_cancelled(measuring).await;
        }
    });
}

async fn follow(running: Arc<RunningAgent>, changes: &watch::Sender<u64>, life: Lifecycle) {
    let (mut table, mut liveness) = (running.clients.table(), running.peers.liveness());
    let (mut view, mut trust) = (running.peers.view(), running.trust.clone());
    let (mut effective, mut own) = (running.clients.effective().watch(), running.own.watch_address());
    let (mut known, mut only_table) = (None, false);
    loop {
        let now = table.borrow_and_update().clone();
        running.history.update(&now, life.now());
        // Round trips change with every dial, and are shown when someone looks.
        let states: Vec<(NodeId, BackendState, u16)> =
            now.values().flatten().map(|one| (one.node, one.state, one.weight)).collect();
        if !only_table || known.as_ref() != Some(&states) {
            known = Some(states);
            changes.send_modify(|number| *number += 1);
        }
        tokio::time::sleep(REST).await;
        only_table = false;
        let changed = tokio::select! {
            changed = table.changed() => {
                only_table = true;
                changed
            }
            changed = liveness.changed() => changed,
            changed = view.changed() => changed,
            changed = trust.changed() => changed,
            changed = effective.changed() => changed,
            changed = own.changed() => changed,
        };
        if changed.is_err() {
            return; // the process is ending
        }
    }
}

async fn measure(running: Arc<RunningAgent>, life: Lifecycle) {
    let mut ticks = Ticks::new(&life, LOOK);
    loop {
        running.history.lag.record(ticks.tick().await);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_down_is_counted_and_a_doubt_that_ends_well_is_a_false_alarm() {
        let at = |s: u64| Moment::from_millis(s * 1000);
        let mut kept = PastBackend::new(BackendState::Ready, at(0));
        kept.observe(BackendState::Ready, at(5));
        assert_eq!((kept.changes, kept.down(at(9))), (0, Duration::ZERO));
        kept.observe(BackendState::Suspect, at(10));
        kept.observe(BackendState::Ready, at(11));
        assert_eq!((kept.changes, kept.false_alarms), (2, 1));
        kept.observe(BackendState::Suspect, at(20));
        kept.observe(BackendState::Down, at(21));
        assert_eq!(kept.down(at(30)), Duration::from_secs(11), "it goes on");
        kept.observe(BackendState::Ready, at(31));
        assert_eq!((kept.changes, kept.false_alarms), (5, 1));
        assert_eq!(kept.down(at(99)), Duration::from_secs(12));
    }
}
