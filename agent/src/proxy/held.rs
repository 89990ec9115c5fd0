//! The connections held to one backend: how they are counted and how they are closed.

use std::collections::HashMap;
use std::future::poll_fn;
use std::pin::pin;
use std::sync::atomic::{
    AtomicBool, AtomicU32, AtomicU64, Ordering::Acquire, Ordering::Relaxed, Ordering::Release,
};
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};
use std::time::Duration;

use futures_util::task::AtomicWaker;
use proto::backends::{BackendLoad, GRACE, close_delay};
use proto::node::{Name, NodeId};
use proto::time::Moment;

use super::{BackendStats, lock};
use crate::histogram::HistogramMeter;

/// Consecutive ClientHellos that a backend left unanswered before it counts as unresponsive: one may meet a
/// pause, three in a row meet a process that hangs.
const UNRESPONSIVE_AFTER: u32 = 3;

/// How long an unresponsive backend is deprioritized before one client tries it again. That costs this client
/// one patience; meanwhile the backend's own check decides.
const RETRY_UNRESPONSIVE: Duration = Duration::from_secs(5);

/// A success is reported this often unless something else was reported: thousands per second would all say the
/// same, and each rebuilds the table.
const SUCCESS_INTERVAL: Duration = Duration::from_millis(100);

/// How often draining connections are checked.
const TICK: Duration = Duration::from_millis(100);

/// Counters that are one number each.
const PLAIN_COUNTERS: usize = 10;

/// The connections to one backend.
pub(super) struct HeldConnections {
    pub(super) node: NodeId,
    pub(super) name: Name,
    pub(super) connections: AtomicU64,
    total: AtomicU64,
    /// ClientHellos left unanswered since start, and consecutively.
    silences: AtomicU64,
    streak: AtomicU32,
    /// When an unresponsive backend is tried again, in milliseconds.
    again: AtomicU64,
    /// When its next success is reported, in milliseconds.
    news: AtomicU64,
    handles: Mutex<HeldHandles>,
    pub(super) counts: HeldCounts,
}

/// Plain counters.
#[derive(Default)]
pub(super) struct HeldCounts {
    most: AtomicU64,
    pub(super) bytes_in: AtomicU64,
    pub(super) bytes_out: AtomicU64,
    pub(super) errors: AtomicU64,
    pub(super) races: AtomicU64,
    pub(super) replays: AtomicU64,
    resets_down: AtomicU64,
    resets_leave: AtomicU64,
    pub(super) dials: HistogramMeter,
}

#[derive(Default)]
struct HeldHandles {
    next: u64,
    by_number: HashMap<u64, Arc<CancelHandle>>,
}

/// Cancels one connection from outside. No token: polling one takes a lock that all would share.
#[derive(Default)]
pub(super) struct CancelHandle {
    pulled: AtomicBool,
    waker: AtomicWaker,
}

impl CancelHandle {
    pub(super) fn pull(&self) {
        self.pulled.store(true, Release);
        self.waker.wake();
    }

    pub(super) fn is_pulled(&self) -> bool {
        self.pulled.load(Acquire)
    }

    /// Whether it was pulled; if not, the task is woken when it is. Of several tasks only the last one is.
    pub(super) fn poll_pulled(&self, cx: &mut Context<'_>) -> bool {
        self.waker.register(cx.waker());
        self.is_pulled()
    }

    /// Runs `work` until the handle is pulled; `None` when it was.
    pub(super) async fn run<T>(&self, work: impl Future<Output = T>) -> Option<T> {
        let mut work = pin!(work);
        let turn = |cx: &mut Context<'_>| match self.poll_pulled(cx) {
            true => Poll::Ready(None),
            false => work.as_mut().poll(cx).map(Some),
        };
        poll_fn(turn).await
    }
}

/// Draining connections: those with a number below a bound, since a moment.
#[derive(Debug, Clone, Copy)]
pub(super) struct DrainState {
    since: Moment,
    below: u64,
    /// The start of closing was logged.
    logged: bool,
}

impl HeldConnections {
    pub(super) fn new(node: NodeId, name: Name) -> HeldConnections {
        HeldConnections {
            node,
            name,
            connections: AtomicU64::new(0),
            total: AtomicU64::new(0),
            silences: AtomicU64::new(0),
            streak: AtomicU32::new(0),
            again: AtomicU64::new(0),
            news: AtomicU64::new(0),
            handles: Mutex::default(),
            counts: HeldCounts::default(),
        }
    }

    pub(super) fn stats(&self) -> BackendStats {
        let counts = &self.counts;
        BackendStats {
            connections: self.connections.load(Relaxed),
            total: self.total.load(Relaxed),
            silences: self.silences.load(Relaxed),
            most: counts.most.load(Relaxed),
            bytes_in: counts.bytes_in.load(Relaxed),
            bytes_out: counts.bytes_out.load(Relaxed),
            errors: counts.errors.load(Relaxed),
            races: counts.races.load(Relaxed),
            replays: counts.replays.load(Relaxed),
            resets_down: counts.resets_down.load(Relaxed),
            resets_leave: counts.resets_leave.load(Relaxed),
            dials: counts.dials.read(),
        }
    }

    /// Load for the ranking; `limit` 0: no limit.
    pub(super) fn usage(&self, limit: u32, now: Moment) -> BackendLoad {
        let connections = self.connections.load(Relaxed);
        let unresponsive =
            self.streak.load(Relaxed) >= UNRESPONSIVE_AFTER && now.as_millis() < self.again.load(Relaxed);
        BackendLoad { connections, full: limit > 0 && connections >= u64::from(limit), unresponsive }
    }

    /// A dial starts. For an unresponsive backend it is the retry, so the next retry is delayed.
    pub(super) fn conn_guard(self: &Arc<HeldConnections>, now: Moment) -> ConnGuard {
        if self.streak.load(Relaxed) >= UNRESPONSIVE_AFTER {
            self.again.store(now.after(RETRY_UNRESPONSIVE).as_millis(), Relaxed);
        }
        let now_held = self.connections.fetch_add(1, Relaxed) + 1;
        self.counts.most.fetch_max(now_held, Relaxed);
        ConnGuard { held: Arc::clone(self), cancel: None }
    }

    /// It left a ClientHello unanswered for too long; true when that makes it unresponsive.
    pub(super) fn silent(&self, now: Moment) -> bool {
        self.silences.fetch_add(1, Relaxed);
        let streak = self.streak.fetch_add(1, Relaxed).saturating_add(1);
        if streak >= UNRESPONSIVE_AFTER {
            self.again.store(now.after(RETRY_UNRESPONSIVE).as_millis(), Relaxed);
        }
        streak == UNRESPONSIVE_AFTER
    }

    /// It answered a ClientHello; true when it was unresponsive.
    pub(super) fn answered(&self) -> bool {
        self.streak.load(Relaxed) != 0 && self.streak.swap(0, Relaxed) >= UNRESPONSIVE_AFTER
    }

    /// Whether a successful connect has to be reported.
    pub(super) fn is_news(&self, now: Moment) -> bool {
        let is = now.as_millis() >= self.news.load(Relaxed);
        if is {
            self.news.store(now.after(SUCCESS_INTERVAL).as_millis(), Relaxed);
        }
        is
    }

    /// A failure is reported.
    pub(super) fn failure_reported(&self) {
        self.news.store(0, Relaxed);
    }

    pub(super) fn reset_all(&self) -> usize {
        let handles = lock(&self.handles);
        handles.by_number.values().for_each(|cancel| cancel.pull());
        self.counts.resets_down.fetch_add(handles.by_number.len() as u64, Relaxed);
        handles.by_number.len()
    }

    /// Has every connection look whether there is a pause.
    pub(super) fn wake_all(&self) {
        lock(&self.handles).by_number.values().for_each(|cancel| cancel.waker.wake());
    }

    /// The counters, in the order in which [`HeldConnections::add`] takes them.
    pub(super) fn counters(&self) -> Vec<u64> {
        let dials = self.counts.dials.read();
        let plain = self.counters_in_order().map(|counter| counter.load(Relaxed));
        plain.into_iter().chain([dials.sum_us]).chain(dials.counts).collect()
    }

    /// Goes on with the counters of another process.
    pub(super) fn add(&self, counters: &[u64]) {
        let (plain, dials) = counters.split_at_checked(PLAIN_COUNTERS).unwrap_or((counters, &[]));
        for (to, from) in self.counters_in_order().iter().zip(plain) {
            to.fetch_add(*from, Relaxed);
        }
        self.counts.dials.add(dials);
    }

    fn counters_in_order(&self) -> [&AtomicU64; PLAIN_COUNTERS] {
        let HeldConnections { total, silences, counts, .. } = self;
        let HeldCounts {
            most, bytes_in, bytes_out, errors, races, replays, resets_down, resets_leave, ..
        } = counts;
        [total, silences, most, bytes_in, bytes_out, errors, races, replays, resets_down, resets_leave]
    }

    /// All current connections start to drain.
    pub(super) fn begin_drain(&self, now: Moment) -> DrainState {
        DrainState { since: now, below: lock(&self.handles).next, logged: false }
    }

    /// Closes those that are due; returns when to check again, if any is left. `before_close` is called once
    /// with their number, before the first ones are closed.
    pub(super) fn continue_drain(
        &self,
        leave: &mut DrainState,
        seed: u64,
        now: Moment,
        before_close: impl FnOnce(usize),
    ) -> Option<Moment> {
        let handles = lock(&self.handles);
        let leaving =
            || handles.by_number.iter().filter(|(number, one)| **number < leave.below && !one.is_pulled());
        let count = leaving().count();
        let passed = now.since(leave.since);
        if count == 0 {
            return None;
        }
        if passed < GRACE {
            return Some(leave.since.after(GRACE));
        }
        for (number, cancel) in leaving() {
            if passed >= close_delay(seed, *number) {
                self.counts.resets_leave.fetch_add(1, Relaxed);
                cancel.pull();
            }
        }
        drop(handles);
        if !std::mem::replace(&mut leave.logged, true) {
            before_close(count);
        }
        Some(now.after(TICK))
    }
}

/// A dial or a connection that counts towards its backend's load.
pub(super) struct ConnGuard {
    pub(super) held: Arc<HeldConnections>,
    cancel: Option<(u64, Arc<CancelHandle>)>,
}

impl ConnGuard {
    /// Cancels the guarded connection when the backend's connections are to end; registered by the first call.
    pub(super) fn cancel_handle(&mut self) -> Arc<CancelHandle> {
        if let Some((_, cancel)) = &self.cancel {
            return Arc::clone(cancel);
        }
        let cancel = Arc::<CancelHandle>::default();
        let mut handles = lock(&self.held.handles);
        let number = handles.next;
        handles.next += 1;
        handles.by_number.insert(number, Arc::clone(&cancel));
        drop(handles);
        self.cancel = Some((number, Arc::clone(&cancel)));
        cancel
    }

    /// A client was assigned to it.
    pub(super) fn client_assigned(&self) {
        self.held.total.fetch_add(1, Relaxed);
    }
}

impl Drop for ConnGuard {
    fn drop(&mut self) {
        self.held.connections.fetch_sub(1, Relaxed);
        if let Some((number, _)) = self.cancel {
            lock(&self.held.handles).by_number.remove(&number);
        }
    }
}

#[cfg(test)]
mod tests {
    use proto::backends::SPREAD;

    use super::super::tests::id;
    use super::*;

    fn at(ms: u64) -> Moment {
        Moment::from_millis(ms)
    }

    fn held() -> Arc<HeldConnections> {
        Arc::new(HeldConnections::new(id(1), "m1".parse().unwrap()))
    }

    #[test]
    fn silence_makes_a_backend_unresponsive_and_one_client_retries_it() {
        let held = held();
        let unresponsive = |ms| held.usage(0, at(ms)).unresponsive;
        assert!(!held.silent(at(0)) && !held.silent(at(1)) && !unresponsive(1));
        assert!(held.silent(at(2)) && unresponsive(3));
        assert!(!held.silent(at(4)), "no news");
        assert!(unresponsive(5003) && !unresponsive(5004));
        let _trial = held.conn_guard(at(5010));
        assert!(unresponsive(5011), "one is enough");
        assert!(held.answered() && !held.answered() && !unresponsive(5012));
        assert_eq!(held.stats().silences, 4);
    }

    #[test]
    fn a_success_is_reported_periodically_and_after_a_failure() {
        let held = held();
        assert!(held.is_news(at(0)) && !held.is_news(at(1)) && !held.is_news(at(99)));
        assert!(held.is_news(at(100)) && !held.is_news(at(101)));
        held.failure_reported();
        assert!(held.is_news(at(102)) && !held.is_news(at(103)));
    }

    #[test]
    fn counters_of_another_process_are_added() {
        let (before, after) = (held(), held());
        for (i, counter) in before.counters_in_order().into_iter().enumerate() {
            counter.store(i as u64 + 1, Relaxed);
        }
        before.counts.dials.record(Duration::from_micros(700));
        after.add(&before.counters());
        assert_eq!(after.stats(), before.stats());
        after.add(&[5]);
        assert_eq!(after.stats().total, 6, "those of a version that has fewer");
    }

    #[test]
    fn a_backend_at_its_limit_is_full() {
        let held = held();
        let _ticket = held.conn_guard(at(0));
        assert!(!held.usage(0, at(0)).full && held.usage(1, at(0)).full && !held.usage(2, at(0)).full);
    }

    #[test]
    fn connections_are_closed_gradually_after_the_grace() {
        let held = held();
        let mut connections: Vec<(ConnGuard, Arc<CancelHandle>)> = (0..100)
            .map(|_| {
                let mut conn_guard = held.conn_guard(at(0));
                let cancel = conn_guard.cancel_handle();
                (conn_guard, cancel)
            })
            .collect();
        let mut leave = held.begin_drain(at(1000));
        let mut newer = held.conn_guard(at(1000));
        let later = newer.cancel_handle();
        let mut logged = 0;
        let (mut now, mut steps) = (at(1000), Vec::new());
        while let Some(next) = held.continue_drain(&mut leave, 7, now, |count| logged += count) {
            let before = connections.len();
            connections.retain(|(_, cancel)| !cancel.is_pulled());
            steps.push(before - connections.len());
            assert!(next > now);
            now = next;
        }
        assert!(connections.is_empty() && !later.is_pulled());
        assert_eq!((logged, steps[0]), (100, 0));
        assert!(steps.iter().all(|closed| *closed <= 10), "{steps:?}");
        let end = at(1000).after(GRACE + SPREAD + TICK * 2);
        assert!(now >= at(1000).after(GRACE) && now <= end, "{now:?}");
    }

    #[tokio::test]
    async fn a_cancel_handle_ends_current_and_later_work() {
        let held = held();
        let mut conn_guard = held.conn_guard(at(0));
        let cancel = conn_guard.cancel_handle();
        assert_eq!(cancel.run(std::future::ready(1)).await, Some(1));
        let work = tokio::spawn(async move { cancel.run(std::future::pending::<()>()).await });
        tokio::task::yield_now().await;
        assert_eq!(held.reset_all(), 1);
        assert_eq!(work.await.unwrap(), None);
        assert_eq!(conn_guard.cancel_handle().run(std::future::ready(1)).await, None, "it stays pulled");
        drop(conn_guard);
        assert_eq!(held.reset_all(), 0);
    }
}
