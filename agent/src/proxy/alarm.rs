//! A condition that is logged when it starts and when it ends, not for each connection that meets it.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use proto::time::Moment;

/// A condition has ended when it was not met for this long. At a limit every other connection meets it: without
/// this each would be logged.
const QUIET: Duration = Duration::from_secs(5);

/// Off, or when it was last met.
#[derive(Debug, Default)]
pub(super) struct LimitAlarm(AtomicU64);

impl LimitAlarm {
    /// The condition is met now; true when that has to be logged.
    pub(super) fn raise(&self, now: Moment) -> bool {
        self.0.swap(now.as_millis().saturating_add(1), Relaxed) == 0
    }

    /// The condition is not met now; true when that has to be logged.
    pub(super) fn relieve(&self, now: impl FnOnce() -> Moment) -> bool {
        let met = self.0.load(Relaxed);
        met != 0
            && now().since(Moment::from_millis(met - 1)) >= QUIET
            && self.0.compare_exchange(met, 0, Relaxed, Relaxed).is_ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_changes_are_logged() {
        let alarm = LimitAlarm::default();
        let at = Moment::from_millis;
        assert!(!alarm.relieve(|| at(0)));
        assert!(alarm.raise(at(0)));
        assert!(!alarm.raise(at(100)));
        assert!(!alarm.relieve(|| at(200)), "too early to say that it is over");
        assert!(alarm.relieve(|| at(5100)));
        assert!(!alarm.relieve(|| at(5100)));
        assert!(alarm.raise(at(5200)));
    }
}
