//! The address where it should not be: at a stranger, or on this node's interface though it owns nothing.

use std::time::Duration;

use crate::arp::Mac;
use crate::time::Moment;

/// A stranger that has not answered for so long is gone: two questions, one a second.
const GONE: Duration = Duration::from_millis(2_500);

/// Shortest time between two times of cleaning up: who adds the address every time is not fought.
const CLEANED: Duration = Duration::from_secs(1);

/// What was last seen of it.
#[derive(Debug, Clone, Default)]
pub(super) struct AddressConflict {
    /// Its hardware address, and when it was seen.
    stranger: Option<(Mac, Moment)>,
    cleaned: Option<Moment>,
}

impl AddressConflict {
    /// A stranger has the address; true when none had it until now.
    pub(super) fn stranger_sighted(&mut self, now: Moment, mac: Mac) -> bool {
        let appears = self.stranger(now).is_none();
        self.stranger = Some((mac, now));
        appears
    }

    /// The stranger that has it now.
    pub(super) fn stranger(&self, now: Moment) -> Option<Mac> {
        self.stranger.filter(|(_, last)| now.since(*last) < GONE).map(|(mac, _)| mac)
    }

    /// When the last stranger is gone.
    pub(super) fn stranger_gone_at(&self) -> Option<Moment> {
        self.stranger.map(|(_, last)| last.after(GONE))
    }

    /// The address is on the interface of a node that does not own it; whether it is deleted now.
    pub(super) fn found_here(&mut self, now: Moment) -> bool {
        if self.cleaned.is_some_and(|last| now.since(last) < CLEANED) {
            return false;
        }
        self.cleaned = Some(now);
        true
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::{MAC, at};
    use super::*;

    #[test]
    fn a_stranger_is_there_until_two_questions_go_unanswered() {
        let mut conflict = AddressConflict::default();
        assert!(conflict.stranger_sighted(at(0), MAC));
        assert!(!conflict.stranger_sighted(at(2_499), MAC), "still the same");
        assert_eq!(conflict.stranger_gone_at(), Some(at(4_999)));
        assert_eq!((conflict.stranger(at(4_998)), conflict.stranger(at(4_999))), (Some(MAC), None));
        assert!(conflict.stranger_sighted(at(4_999), MAC));
    }

    #[test]
    fn it_is_cleaned_up_once_a_second_at_most() {
        let mut conflict = AddressConflict::default();
        let cleaned: Vec<u64> = (0..2_500).filter(|ms| conflict.found_here(at(*ms))).collect();
        assert_eq!(cleaned, [0, 1_000, 2_000]);
    }
}
