//! A candidate's suspicion that the VIP has no owner: when it asks, and when it may claim.

use std::time::Duration;

use super::beats::BEAT;
use crate::time::Moment;

/// Time for answers, of witnesses and to probes, before a claim.
const WINDOW: Duration = Duration::from_millis(50);

/// How late the loop may be: answers may wait in the queue behind that.
const LATE: Duration = Duration::from_millis(25);

/// Time between the claims of two candidates in the order of their ranks.
const STAGGER: Duration = Duration::from_millis(50);

/// A member's answer to a probe counts for so long: more than one round.
const LEFTOVER: Duration = Duration::from_millis(250);

/// A suspicion, from its beginning until the owner is heard again or somebody claims.
#[derive(Debug, Clone)]
pub(super) struct OwnerSuspicion {
    since: Moment,
    /// Answers could not be read before this, since this node's own loop was late.
    not_before: Moment,
    /// When a member's hardware address answered last.
    leftover: Option<Moment>,
    /// A stranger has the address.
    stranger: bool,
    next_round: Moment,
    base: Moment,
    ahead: u32,
    /// When what stood against a claim became less.
    eased: Moment,
}

impl OwnerSuspicion {
    fn new(now: Moment) -> OwnerSuspicion {
        OwnerSuspicion {
            since: now,
            not_before: now,
            leftover: None,
            stranger: false,
            next_round: now,
            base: now,
            ahead: 0,
            eased: now,
        }
    }

    /// Goes on, or begins. While a stranger has the address nobody is asked often: all is asked again when it is
    /// gone.
    pub(super) fn follow(before: Option<OwnerSuspicion>, now: Moment, stranger: bool) -> OwnerSuspicion {
        let suspicion = before.filter(|before| stranger || !before.stranger);
        OwnerSuspicion { stranger, ..suspicion.unwrap_or_else(|| OwnerSuspicion::new(now)) }
    }

    /// Whether questions and probes are due now.
    pub(super) fn round(&mut self, now: Moment) -> bool {
        if now < self.next_round {
            return false;
        }
        let age = now.since(self.since);
        // Three rounds in the window, then one for every beat, and slower when it lasts.
        let wait = match () {
            () if self.stranger => Duration::from_secs(1),
            () if age < WINDOW => WINDOW / 3,
            () if age < Duration::from_secs(1) => BEAT,
            () => BEAT * 2,
        };
        self.next_round = now.after(wait);
        true
    }

    /// When the next are.
    pub(super) fn deadline(&self) -> Moment {
        self.next_round
    }

    pub(super) fn since(&self) -> Moment {
        self.since
    }

    /// This node's loop was late by so long.
    pub(super) fn loop_stalled(&mut self, now: Moment, by: Duration) {
        if by >= LATE {
            self.not_before = now.after(LATE);
        }
    }

    /// A member's hardware address has answered a probe.
    pub(super) fn member_answered(&mut self, now: Moment) {
        self.leftover = Some(now);
    }

    /// When that has not been repeated for so long that nothing is there.
    pub(super) fn member_gone_at(&self) -> Option<Moment> {
        self.leftover.map(|last| last.after(LEFTOVER))
    }

    /// When there was time for answers.
    pub(super) fn answered_at(&self, rtt: Duration) -> Moment {
        self.since.after(WINDOW + rtt).max(self.not_before)
    }

    /// When it is this node's turn: everyone may claim from `base` on, in the order of ranks. When a veto
    /// ends early, or somebody ahead is gone, all see it at once: the order counts anew from there, or all
    /// would claim in that moment.
    pub(super) fn claim_slot(&mut self, now: Moment, base: Moment, ahead: u32, rtt: Duration) -> Moment {
        if base < self.base || ahead < self.ahead {
            self.eased = now;
        }
        (self.base, self.ahead) = (base, ahead);
        base.max(self.eased).after((STAGGER + rtt).saturating_mul(ahead))
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::at;
    use super::*;

    fn rounds(suspicion: &mut OwnerSuspicion, until: u64) -> Vec<u64> {
        (0..until).filter(|ms| suspicion.round(at(*ms))).collect()
    }

    #[test]
    fn it_asks_three_times_before_a_claim_and_ever_less_after() {
        let asked = rounds(&mut OwnerSuspicion::follow(None, at(0), false), 2_000);
        assert_eq!(asked[..5], [0, 16, 32, 48, 64]);
        assert_eq!(asked[5..].iter().filter(|ms| **ms < 1_000).count(), 18);
        assert_eq!(asked.iter().filter(|ms| **ms >= 1_000).count(), 10);
        assert_eq!(rounds(&mut OwnerSuspicion::follow(None, at(0), true), 2_000), [0, 1_000], "a stranger");
    }

    #[test]
    fn it_begins_anew_when_a_stranger_is_gone() {
        let first = OwnerSuspicion::follow(None, at(0), false);
        let during = OwnerSuspicion::follow(Some(first.clone()), at(100), true);
        assert_eq!(during.since(), at(0));
        assert_eq!(OwnerSuspicion::follow(Some(during), at(200), false).since(), at(200));
        assert_eq!(OwnerSuspicion::follow(Some(first), at(200), false).since(), at(0));
    }

    #[test]
    fn each_of_those_ahead_has_its_turn_which_counts_anew_when_what_was_in_the_way_ends() {
        let slot = |suspicion: &mut OwnerSuspicion, now, base, ahead| {
            suspicion.claim_slot(at(now), at(base), ahead, Duration::ZERO).as_millis()
        };
        let mut suspicion = OwnerSuspicion::follow(None, at(0), false);
        assert_eq!(slot(&mut suspicion, 0, 50, 2), 150);
        assert_eq!(slot(&mut suspicion, 10, 900, 2), 1_000, "a veto");
        assert_eq!(slot(&mut suspicion, 500, 50, 2), 600, "it ends early");
        assert_eq!(slot(&mut suspicion, 520, 50, 1), 570, "somebody ahead is gone");
        let slow = suspicion.claim_slot(at(520), at(50), 1, Duration::from_millis(30));
        assert_eq!(slow, at(600));
    }

    #[test]
    fn a_late_loop_gets_time_to_read_the_answers() {
        let mut suspicion = OwnerSuspicion::follow(None, at(0), false);
        assert_eq!(suspicion.answered_at(Duration::from_millis(10)), at(60));
        suspicion.loop_stalled(at(40), Duration::from_millis(24));
        assert_eq!(suspicion.answered_at(Duration::ZERO), at(50));
        suspicion.loop_stalled(at(40), Duration::from_millis(25));
        assert_eq!(suspicion.answered_at(Duration::ZERO), at(65));
        assert_eq!(suspicion.member_gone_at(), None);
        suspicion.member_answered(at(45));
        assert_eq!(suspicion.member_gone_at(), Some(at(295)));
    }
}
