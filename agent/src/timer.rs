//! A timer of the kernel, for what is due several times a second. tokio's wheel wakes up twice for each timer that is
//! more than 64 ms away, once only to sort it in, and writes to itself when one is set that is due before all others.

use std::os::fd::OwnedFd;
use std::time::Duration;

use proto::time::Moment;
use rustix::time::{
    ClockId, Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec, clock_gettime,
    timerfd_create, timerfd_settime,
};
use tokio::io::unix::AsyncFd;
use tracing::debug;

use crate::lifecycle::{Lifecycle, since_zero};
use crate::netlink::watched;

/// One timer. Those for the same moment wake a thread up once.
pub(crate) struct KernelTimer {
    /// None: the kernel has no descriptor left, and tokio's timers do.
    timer: Option<AsyncFd<OwnedFd>>,
    clock: ClockId,
    /// What it is set for.
    set: Option<Duration>,
}

impl KernelTimer {
    /// A timer of this runtime that is not set, on the clock of a [`Lifecycle`].
    pub(crate) fn new() -> KernelTimer {
        KernelTimer::on(ClockId::Monotonic, TimerfdClockId::Monotonic)
    }

    /// The same on the clock that also counts while the machine sleeps.
    pub(crate) fn boottime() -> KernelTimer {
        KernelTimer::on(ClockId::Boottime, TimerfdClockId::Boottime)
    }

    fn on(clock: ClockId, timers: TimerfdClockId) -> KernelTimer {
        let flags = TimerfdFlags::NONBLOCK | TimerfdFlags::CLOEXEC;
        let timer = timerfd_create(timers, flags).map_err(Into::into).and_then(watched);
        let timer = timer.inspect_err(|error| debug!("no timer of the kernel: {error}")).ok();
        KernelTimer { timer, clock, set: None }
    }

    /// How long it is until then on its clock.
    fn remaining(&self, at: Duration) -> Duration {
        at.saturating_sub(since_zero(clock_gettime(self.clock)))
    }

    /// Waits until its clock shows `at`. May be dropped anywhere: waiting again for the same costs nothing.
    pub(crate) async fn until(&mut self, at: Duration) {
        if self.remaining(at) > Duration::ZERO && self.set != Some(at) {
            self.set(at);
        }
        loop {
            let remaining = self.remaining(at);
            match &self.timer {
                _ if remaining == Duration::ZERO => return,
                None => tokio::time::sleep(remaining).await,
                Some(timer) => match timer.readable().await {
                    Ok(mut fired) => fired.clear_ready(),
                    // The runtime ends.
                    Err(_) => std::future::pending().await,
                },
            }
        }
    }

    fn set(&mut self, at: Duration) {
        let zero = Timespec { tv_sec: 0, tv_nsec: 0 };
        let tv_sec = i64::try_from(at.as_secs()).unwrap_or(i64::MAX);
        let value = Timespec { tv_sec, tv_nsec: at.subsec_nanos().into() };
        let value = Itimerspec { it_interval: zero, it_value: value };
        let set = |timer| timerfd_settime(timer, TimerfdTimerFlags::ABSTIME, &value);
        match self.timer.as_ref().map(set) {
            Some(Ok(_)) => self.set = Some(at),
            Some(Err(error)) => {
                debug!("the kernel's timer fails: {error}");
                self.timer = None;
            }
            None => {}
        }
    }
}

/// Ticks at multiples of a period on this process's clock.
pub(crate) struct Ticks {
    timer: KernelTimer,
    life: Lifecycle,
    period: Duration,
    next: Moment,
}

impl Ticks {
    /// The first is due at the next multiple.
    pub(crate) fn new(life: &Lifecycle, period: Duration) -> Ticks {
        let next = life.now().next_multiple(period);
        Ticks { timer: KernelTimer::new(), life: life.clone(), period, next }
    }

    /// Waits for the next one, and returns how late it was. A missed one is not made up for. May be dropped anywhere.
    pub(crate) async fn tick(&mut self) -> Duration {
        self.timer.until(self.life.monotonic(self.next)).await;
        let late = self.life.instant(self.next).elapsed();
        self.next = self.life.now().next_multiple(self.period);
        late
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_timer_fires_once_at_each_moment_whatever_was_waited_for_before() {
        for mut timer in [KernelTimer::new(), KernelTimer::boottime()] {
            let clock = timer.clock;
            let now = || since_zero(clock_gettime(clock));
            assert!(timer.timer.is_some());
            let (far, near) = (now() + Duration::from_secs(3_600), now() + Duration::from_millis(30));
            tokio::select! {
                biased;
                () = timer.until(far) => panic!("an hour is not over"),
                () = tokio::task::yield_now() => {}
            }
            timer.until(near).await;
            assert!(now() >= near);
            timer.until(near).await;
            let next = now() + Duration::from_millis(30);
            timer.until(next).await;
            assert!(now() >= next, "what fired before does not count");
            timer.timer = None;
            let last = now() + Duration::from_millis(5);
            timer.until(last).await;
            assert!(now() >= last, "without the kernel's");
        }
    }

    #[tokio::test]
    async fn ticks_are_due_at_multiples_and_one_that_was_missed_is_left_out() {
        let life = Lifecycle::new();
        let period = Duration::from_millis(20);
        let mut ticks = Ticks::new(&life, period);
        ticks.tick().await;
        let first = life.now();
        assert_eq!(ticks.next, first.next_multiple(period));
        std::thread::sleep(period * 3);
        assert!(ticks.tick().await >= period, "it was late");
        assert!(ticks.next > life.now() || life.now().since(ticks.next) < period);
    }
}
