//! The clock of virtual IPs.

use std::sync::OnceLock;
use std::time::Duration;

use proto::time::Moment;
use rustix::time::{ClockId, clock_gettime};

use crate::lifecycle::{STEP, in_step, rest, since_zero};

/// Now, on a clock that also counts while the machine sleeps: what was set before has ended then.
pub(super) fn now() -> Moment {
    let shown = since_zero(clock_gettime(ClockId::Boottime)).saturating_sub(behind());
    Moment::from_millis(u64::try_from(shown.as_millis()).unwrap_or(u64::MAX))
}

/// How far that clock is behind the kernel's, so that all nodes beat at the same moments: see [`in_step`].
fn behind() -> Duration {
    static BEHIND: OnceLock<Duration> = OnceLock::new();
    *BEHIND.get_or_init(|| rest(since_zero(clock_gettime(ClockId::Boottime)).saturating_sub(in_step()), STEP))
}

/// A moment as the kernel's clock shows it.
pub(super) fn on_kernel(moment: Moment) -> Duration {
    moment.since(Moment::ZERO) + behind()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lifecycle::wall;

    #[test]
    fn beats_of_all_nodes_are_due_at_the_same_moments() {
        let ahead = |a: u64, b: u64| (a + 200 - b % 200) % 200;
        // The two may be looked at far apart on a busy machine, but not always.
        assert!((0..10_000).any(|_| ahead(now().as_millis(), wall().0) <= 1));
        assert!(behind() < STEP);
        assert!(on_kernel(now()) <= since_zero(clock_gettime(ClockId::Boottime)));
    }
}
