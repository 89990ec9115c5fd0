//! Start, readiness and end of the process: the tokens that stop tasks, and the tracker that every task
//! belongs to.

use std::future::Future;
use std::time::{Duration, Instant};

use proto::time::{Moment, UnixMs};
use tokio::runtime::Handle;
use tokio::task::JoinHandle;
use tokio::time::{Interval, MissedTickBehavior};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

/// Given to every task. Cloning is cheap; all clones are the same lifecycle.
#[derive(Clone)]
pub(crate) struct Lifecycle {
    tasks: TaskTracker,
    /// Cancelled when the process starts to end: accept nothing new, finish what is in progress.
    pub(crate) draining: CancellationToken,
    /// Cancelled when the drain time is over: drop everything.
    pub(crate) shutdown: CancellationToken,
    origin: Instant,
}

impl Lifecycle {
    /// A lifecycle that starts now.
    pub(crate) fn new() -> Lifecycle {
        Lifecycle {
            tasks: TaskTracker::new(),
            draining: CancellationToken::new(),
            shutdown: CancellationToken::new(),
            origin: Instant::now(),
        }
    }

    /// Spawns a task that is awaited at the end. It has to return soon after `shutdown`.
    pub(crate) fn spawn<F>(&self, task: F)
    where
        F: Future<Output = ()> + Send + 'static,
    {
        self.tasks.spawn(task);
    }

    /// Spawns such a task on another runtime.
    pub(crate) fn spawn_on<F>(&self, task: F, runtime: &Handle) -> JoinHandle<()>
    where
        F: Future<Output = ()> + Send + 'static,
    {
        self.tasks.spawn_on(task, runtime)
    }

    /// Now, on this process's monotonic clock.
    pub(crate) fn now(&self) -> Moment {
        Moment::from_millis(u64::try_from(self.origin.elapsed().as_millis()).unwrap_or(u64::MAX))
    }

    /// The tokio instant of a moment, to sleep until.
    pub(crate) fn instant(&self, moment: Moment) -> tokio::time::Instant {
        tokio::time::Instant::from_std(self.origin) + moment.since(Moment::ZERO)
    }

    /// Waits until then; for ever where nothing is due.
    pub(crate) async fn until(&self, moment: Option<Moment>) {
        match moment {
            Some(moment) => tokio::time::sleep_until(self.instant(moment)).await,
            None => std::future::pending().await,
        }
    }

    /// Ticks at multiples of the period on this process's clock: what is due regularly is due at once, and the agent
    /// wakes up once for it. A missed tick is not made up for.
    pub(crate) fn ticks(&self, period: Duration) -> Interval {
        let mut ticks = tokio::time::interval_at(self.next_tick(period), period);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Skip);
        ticks
    }

    /// When the next of these is due.
    pub(crate) fn next_tick(&self, period: Duration) -> tokio::time::Instant {
        self.instant(self.now().next_multiple(period))
    }

    /// Waits until every spawned task has returned.
    pub(crate) async fn finished(&self) {
        self.tasks.close();
        self.tasks.wait().await;
    }
}

/// Now, on the wall clock.
pub(crate) fn wall() -> UnixMs {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    UnixMs(u64::try_from(since.as_millis()).unwrap_or(u64::MAX))
}
