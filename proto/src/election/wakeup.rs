//! When the election is polled next, and whether it was polled in time.

use std::time::Duration;

use crate::time::Moment;

/// The longest time without a poll, whatever is due.
const IDLE: Duration = Duration::from_secs(1);

/// The deadline that the shell is promised, and keeps or misses.
#[derive(Debug, Clone)]
pub(super) struct Wakeup {
    next: Moment,
    /// What the last poll has promised: the shell is late when it comes later.
    promised: Option<Moment>,
}

impl Wakeup {
    /// At once.
    pub(super) fn new(now: Moment) -> Wakeup {
        Wakeup { next: now, promised: None }
    }

    /// When to poll.
    pub(super) fn deadline(&self) -> Moment {
        self.next
    }

    /// Something has changed: the poll is due.
    pub(super) fn at_once(&mut self, now: Moment) {
        self.next = now;
    }

    /// Something is due then.
    pub(super) fn by(&mut self, at: impl IntoIterator<Item = Moment>) {
        self.next = at.into_iter().fold(self.next, Moment::min);
    }

    /// How late a poll is.
    pub(super) fn lateness(&self, now: Moment) -> Duration {
        self.promised.map_or(Duration::ZERO, |promised| now.since(promised))
    }

    /// A poll begins, which says anew what is due.
    pub(super) fn begin(&mut self, now: Moment) {
        self.next = now.after(IDLE);
    }

    /// It ends.
    pub(super) fn end(&mut self, now: Moment) {
        self.promised = Some(self.next.max(now));
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::at;
    use super::*;

    #[test]
    fn only_a_missed_promise_is_late() {
        let mut wakeup = Wakeup::new(at(100));
        assert_eq!(
            (wakeup.deadline(), wakeup.lateness(at(5_000))),
            (at(100), Duration::ZERO),
            "none was given"
        );
        wakeup.begin(at(5_000));
        wakeup.by([at(5_300), at(5_200)]);
        wakeup.end(at(5_000));
        assert_eq!(wakeup.deadline(), at(5_200));
        wakeup.at_once(at(5_100));
        assert_eq!(wakeup.deadline(), at(5_100), "an input");
        assert_eq!(wakeup.lateness(at(5_200)), Duration::ZERO, "which the shell could not know of");
        assert_eq!(wakeup.lateness(at(5_207)), Duration::from_millis(7));
        wakeup.begin(at(5_207));
        wakeup.by([at(5_000)]);
        wakeup.end(at(5_207));
        assert_eq!(wakeup.lateness(at(5_208)), Duration::from_millis(1), "what is overdue is due now");
    }
}
