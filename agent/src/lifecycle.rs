//! Start, readiness and end of the process: the tokens that stop tasks, and the tracker that every task
//! belongs to.

use std::future::Future;
use std::time::{Duration, Instant};

use proto::time::{Moment, UnixMs};
use rustix::time::{ClockId, Timespec, clock_gettime};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tokio_util::task::task_tracker::TrackedFuture;

/// The interval of a worker's pulses, and a multiple of those of masters and virtual IPs.
pub(crate) const STEP: Duration = Duration::from_millis(200);

/// Given to every task. Cloning is cheap; all clones are the same lifecycle.
#[derive(Clone)]
pub(crate) struct Lifecycle {
    tasks: TaskTracker,
    /// Cancelled when the process starts to end: accept nothing new, finish what is in progress.
    pub(crate) draining: CancellationToken,
    /// Cancelled when the drain time is over: drop everything.
    pub(crate) shutdown: CancellationToken,
    origin: Instant,
    /// The same on the kernel's monotonic clock, never earlier.
    origin_of_kernel: Duration,
}

impl Lifecycle {
    /// A lifecycle that starts now.
    pub(crate) fn new() -> Lifecycle {
        let (now, shown) = (Instant::now(), since_zero(clock_gettime(ClockId::Monotonic)));
        // The machine may have started a moment ago.
        let ahead = in_step().min(shown);
        Lifecycle {
            tasks: TaskTracker::new(),
            draining: CancellationToken::new(),
            shutdown: CancellationToken::new(),
            origin: now.checked_sub(ahead).unwrap_or(now),
            origin_of_kernel: shown - ahead,
        }
    }

    /// Spawns a task that is awaited at the end. It has to return soon after `shutdown`.
    pub(crate) fn spawn<F>(&self, task: F)
    where
        F: Future<Output = ()> + Send + 'static,
    {
        self.tasks.spawn(task);
    }

    /// Such a task, for who runs it without tokio.
    pub(crate) fn tracked<F: Future>(&self, task: F) -> TrackedFuture<F> {
        self.tasks.track_future(task)
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

    /// A moment on the kernel's monotonic clock; never before it on the process's own.
    pub(crate) fn monotonic(&self, moment: Moment) -> Duration {
        self.origin_of_kernel + moment.since(Moment::ZERO)
    }

    /// Waits until every spawned task has returned.
    pub(crate) async fn finished(&self) {
        self.tasks.close();
        self.tasks.wait().await;
    }
}

/// How long ago the wall clock showed a multiple of [`STEP`]. A clock that shows as much when it begins shows multiples
/// of intervals at the same moments on all nodes whose wall clocks agree: what they send each other then arrives
/// together, and wakes the receiver up once. Nothing else depends on it.
pub(crate) fn in_step() -> Duration {
    rest(since_epoch(), STEP)
}

/// What is left of a time when multiples of a period are taken from it.
pub(crate) fn rest(time: Duration, period: Duration) -> Duration {
    let nanos = time.as_nanos() % period.as_nanos().max(1);
    Duration::from_nanos(u64::try_from(nanos).unwrap_or(0))
}

/// Now, on the wall clock.
pub(crate) fn wall() -> UnixMs {
    UnixMs(u64::try_from(since_epoch().as_millis()).unwrap_or(u64::MAX))
}

fn since_epoch() -> Duration {
    std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default()
}

/// What a clock of the kernel shows.
pub(crate) fn since_zero(shown: Timespec) -> Duration {
    Duration::new(shown.tv_sec.unsigned_abs(), u32::try_from(shown.tv_nsec).unwrap_or(0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_clock_of_a_process_is_in_step_with_the_wall_clock_and_with_the_kernels() {
        let life = Lifecycle::new();
        let ahead = |a: u64, b: u64| (a + 200 - b % 200) % 200;
        // The two may be looked at far apart on a busy machine, but not always.
        let in_step = (0..10_000).any(|_| ahead(life.now().as_millis(), wall().0) <= 1);
        assert!(in_step);
        let shown = clock_gettime(ClockId::Monotonic);
        let now = life.monotonic(life.now());
        assert!(now >= Duration::new(shown.tv_sec.unsigned_abs(), 0) - Duration::from_millis(1));
        assert_eq!(rest(Duration::from_millis(1_350), STEP), Duration::from_millis(150));
        assert_eq!(rest(Duration::from_millis(1_350), Duration::ZERO), Duration::ZERO);
    }
}
