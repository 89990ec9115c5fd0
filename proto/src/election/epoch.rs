//! The numbers of claims: which ones are believed, and which one the next claim gets.
//!
//! An epoch that is said may step by [`STEP`] above what is known, so that no single message locks later claims, and
//! ends at [`CEILING`], so that there is always a higher one. What workers say raises the next one by less.

use std::time::Duration;

use crate::time::Moment;

/// How far an epoch may lie above what is known. Owners change some times a second at the very most, so a
/// node that was off for a year still follows.
pub const STEP: u64 = 1 << 28;

/// No epoch reaches this: whoever may step needs ten years of messages at their highest rate, so that there
/// is always a higher one.
pub const CEILING: u64 = 1 << 62;

/// How far the word of workers raises the number of this node's next claim. It may be true: all masters may
/// have lost what they knew. It is not counted from an earlier lift, so that it stays within [`STEP`].
const LIFT: u64 = 1 << 16;

/// An owner that is told of a higher epoch by a worker claims anew above it, at most so often.
const LIFT_EVERY: Duration = Duration::from_secs(10);

/// What bounds the epoch of this node's next claim from below, beside the highest claim that is known, whose epoch
/// is the argument `known`.
#[derive(Debug, Clone, Default)]
pub(super) struct EpochBounds {
    /// The next claim is above it: stored by an earlier agent, gossiped, or of a claim whose owner is gone.
    minimum: u64,
    /// What workers say of higher epochs: the next claim is above it.
    lifted: u64,
    lifted_at: Option<Moment>,
}

impl EpochBounds {
    /// Whether an epoch is one that may be: it steps, and leaves room for higher ones.
    pub(super) fn is_plausible(&self, known: Option<u64>, epoch: u64) -> bool {
        epoch < CEILING && epoch.saturating_sub(self.proven(known)) <= STEP
    }

    /// The highest epoch that is surely known.
    fn proven(&self, known: Option<u64>) -> u64 {
        match known {
            // What an earlier agent wrote is not believed against what all others say.
            Some(known) if self.minimum.saturating_sub(known) > STEP => known,
            Some(known) => known.max(self.minimum),
            None => self.minimum,
        }
    }

    /// The highest that was ever heard of, for the disk.
    pub(super) fn highest(&self, known: Option<u64>) -> u64 {
        known.unwrap_or(0).max(self.minimum)
    }

    /// The epoch of this node's next claim; none when there is none left.
    pub(super) fn next(&self, known: Option<u64>) -> Option<u64> {
        let next = self.proven(known).max(self.lifted).checked_add(1)?;
        (next < CEILING).then_some(next)
    }

    /// An epoch from the disk. One that can't be is not believed; false then.
    pub(super) fn restore(&mut self, epoch: u64) -> bool {
        let believed = epoch < CEILING / 2;
        if believed {
            self.raise(epoch);
        }
        believed
    }

    /// An epoch that is believed.
    pub(super) fn raise(&mut self, epoch: u64) {
        self.minimum = self.minimum.max(epoch);
    }

    /// A worker knows of a higher epoch whose owner is gone.
    pub(super) fn lift(&mut self, known: Option<u64>, epoch: u64) {
        self.lifted = self.lifted.max(epoch.min(self.proven(known) + LIFT));
    }

    /// Whether an owner with this epoch claims anew now, because it was lifted above it.
    pub(super) fn begin_lift(&mut self, now: Moment, owned: u64) -> bool {
        let recent = self.lifted_at.is_some_and(|last| now.since(last) < LIFT_EVERY);
        if self.lifted <= owned || recent {
            return false;
        }
        self.lifted_at = Some(now);
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_stored_counts_within_one_step_of_what_all_others_say() {
        for (stored, known, next) in [
            (0, None, 1),
            (41, None, 42),
            (41, Some(5), 42),
            (41, Some(50), 51),
            (STEP + 5, Some(5), STEP + 6),
            (STEP + 6, Some(5), 6),
            (STEP + 6, None, STEP + 7),
        ] {
            let mut epochs = EpochBounds::default();
            assert!(epochs.restore(stored));
            assert_eq!(epochs.next(known), Some(next), "{stored} {known:?}");
            assert_eq!(epochs.highest(known), stored.max(known.unwrap_or(0)));
        }
        assert!(!EpochBounds::default().restore(CEILING / 2));
    }

    #[test]
    fn an_owner_is_lifted_once_in_ten_seconds_and_only_above_what_it_has() {
        let at = Moment::from_millis;
        let mut epochs = EpochBounds::default();
        epochs.lift(Some(5), 3);
        epochs.lift(Some(5), 5);
        assert!(!epochs.begin_lift(at(0), 5), "it has as much");
        epochs.lift(Some(5), u64::MAX);
        assert_eq!(epochs.next(Some(5)), Some(5 + LIFT + 1));
        assert!(epochs.begin_lift(at(0), 5));
        assert!(!epochs.begin_lift(at(9_999), 5));
        assert!(epochs.begin_lift(at(10_000), 5));
    }
}
