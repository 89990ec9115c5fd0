//! What another process of this node has owned, and has handed over: owned again at once, by all that is known, and
//! judged once this process knows as much.

use std::time::Duration;

use crate::pulse::PAUSE;
use crate::time::Moment;

/// A hand-over that took longer than this is too old to go on from: others take over then.
const HANDED: Duration = PAUSE;

/// How long what is not known yet does not count against the owner: the first check of its service and the test of
/// its segment are over by then.
const UNTESTED: Duration = Duration::from_secs(5);

/// How far it is.
#[derive(Debug, Clone, Copy)]
pub(super) enum Resumed {
    /// It is owned as soon as this node is known to be a candidate, until then.
    Awaited(u64, Moment),
    /// It is owned, and nothing that is not known yet counts against that, until then.
    Untested(Moment),
}

/// What is known of the rest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct ResumeFacts {
    pub(super) is_candidate: bool,
    pub(super) owns: bool,
    /// The service serves, the segment is proven, and so on.
    pub(super) is_good: bool,
    /// The highest epoch that was heard of.
    pub(super) heard: Option<u64>,
}

/// What follows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum ResumeStep {
    /// Nothing yet.
    Wait,
    /// It is owned with this epoch from now on.
    Own(u64),
    /// It is owned, or was, as any other.
    Over,
    /// It can't be owned: what is left of it is deleted.
    Delete,
}

impl Resumed {
    /// A hand-over of so long ago; none where that is too long.
    pub(super) fn of(now: Moment, epoch: u64, ago: Duration) -> Option<Resumed> {
        (ago < HANDED).then(|| Resumed::Awaited(epoch, now.after(HANDED - ago)))
    }

    /// When something is due by time.
    pub(super) fn deadline(self) -> Moment {
        let (Resumed::Awaited(_, until) | Resumed::Untested(until)) = self;
        until
    }

    /// What is due.
    pub(super) fn poll(&mut self, now: Moment, facts: ResumeFacts) -> ResumeStep {
        match *self {
            Resumed::Awaited(epoch, until)
                if now >= until || facts.heard.is_some_and(|heard| heard > epoch) =>
            {
                ResumeStep::Delete
            }
            Resumed::Awaited(epoch, _) if facts.is_candidate => {
                *self = Resumed::Untested(now.after(UNTESTED));
                ResumeStep::Own(epoch)
            }
            Resumed::Untested(until) if !facts.owns || facts.is_good || now >= until => ResumeStep::Over,
            Resumed::Awaited(..) | Resumed::Untested(_) => ResumeStep::Wait,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::ownership::LIFETIME;
    use super::super::tests::{VIP, at, backup, events, held, id, node, owner_beat, rules, run, said, times};
    use super::super::wire::{MessageKind, ReleaseReason, VipMessage};
    use super::super::{Action, CandidateState, Election, EligibilityFact, LossReason, VipEvent};
    use super::*;
    use crate::cause::Cause;

    /// Node 1, whose process has just taken the place of an owner with epoch 5, and knows nothing.
    fn resumed() -> Election {
        let mut one = Election::new(id(1), VIP, at(0));
        one.resume(at(0), 5, Duration::from_millis(30));
        one
    }

    #[test]
    fn an_owner_whose_process_was_replaced_owns_on_and_nobody_hears_of_it() {
        let mut one = resumed();
        // The others say what they knew, and the kernel has the address, before it is known who is a candidate.
        one.receive(at(1), id(2), &said(held(5, 1), Some(40), CandidateState::Fit));
        one.address(at(2), true);
        one.checked(at(2), Err(Cause::NotCheckedYet.into()));
        let mut done = run(&mut one, 0, 19);
        one.set_rules(at(20), rules(&[100, 100]));
        done.extend(run(&mut one, 20, 1_000));
        assert!(one.owns() && one.epoch() == 5);
        assert!(times(&done, &Action::Delete).is_empty() && events(&done).is_empty(), "{done:?}");
        assert_eq!(times(&done, &Action::Renew { lifetime: LIFETIME }), [500, 1_000], "{done:?}");
        let said = done.iter().find_map(|(ms, action)| match action {
            Action::Send { message, .. } => Some((*ms, message.known, message.state.clone())),
            _ => None,
        });
        assert_eq!(said, Some((20, held(5, 1), CandidateState::Fit)), "at once");
        // What turns out to be good makes it an owner as any other, and what is bad then counts.
        one.set_fact(at(1_001), EligibilityFact::Segment, Ok(()));
        (0..20).for_each(|_| one.checked(at(1_001), Ok(())));
        run(&mut one, 1_001, 1_100);
        one.set_fact(at(1_101), EligibilityFact::Link, Err(Cause::LinkDown.into()));
        let done = run(&mut one, 1_101, 1_110);
        assert_eq!(times(&done, &Action::Delete).len(), 1);
    }

    /// When a backup claims that hears a beat for this purpose, and nothing more of the owner.
    fn claims_after(last: MessageKind) -> u64 {
        let mut one = backup(1_000);
        one.receive(at(1_010), id(2), &VipMessage { purpose: MessageKind::Pausing, ..owner_beat(5, 2) });
        one.receive(at(1_020), id(2), &VipMessage { purpose: last, ..owner_beat(5, 2) });
        let mut done = Vec::new();
        for ms in (1_020..5_000).step_by(10) {
            one.receive(at(ms), id(3), &said(held(5, 2), None, CandidateState::Fit));
            done.extend(run(&mut one, ms, ms + 9));
        }
        events(&done).first().map_or(u64::MAX, |(ms, _)| *ms)
    }

    #[test]
    fn an_owner_that_is_being_replaced_is_waited_for_and_no_longer() {
        let usual = claims_after(MessageKind::Beat);
        assert!((1_180..1_300).contains(&usual), "it is back, and dies then: {usual}");
        let paused = claims_after(MessageKind::Pausing);
        assert_eq!(paused - usual, PAUSE.as_millis() as u64, "{paused}");
    }

    #[test]
    fn an_owner_says_that_it_is_being_replaced_until_it_is_or_is_not() {
        let mut one = node(1, &[100, 100]);
        run(&mut one, 0, 3_000);
        assert!(one.owns());
        let purposes = |done: &[(u64, Action)]| -> Vec<MessageKind> {
            let purpose = |(_, action): &(u64, Action)| match action {
                Action::Send { message, .. } => Some(message.purpose),
                _ => None,
            };
            let mut all: Vec<MessageKind> = done.iter().filter_map(purpose).collect();
            all.dedup();
            all
        };
        one.set_pausing(at(3_001), true);
        assert_eq!(purposes(&run(&mut one, 3_001, 3_001)), [MessageKind::Pausing], "at once");
        one.receive(
            at(3_002),
            id(2),
            &VipMessage { purpose: MessageKind::Ask, ..said(held(5, 1), None, CandidateState::Fit) },
        );
        assert_eq!(purposes(&run(&mut one, 3_002, 3_500)), [MessageKind::Pausing]);
        one.set_pausing(at(3_501), false);
        assert_eq!(purposes(&run(&mut one, 3_501, 3_501)), [MessageKind::Beat], "at once");
    }

    #[test]
    fn what_stays_unknown_counts_in_the_end() {
        let mut one = resumed();
        one.set_rules(at(10), rules(&[100, 100]));
        let done = run(&mut one, 10, 6_000);
        let lost = VipEvent::Lost { epoch: 5, to: None, cause: LossReason::Released(ReleaseReason::Unfit) };
        assert_eq!(events(&done), [(5_010, lost)]);
    }

    #[test]
    fn what_can_not_be_owned_again_is_deleted() {
        type Story = fn(&mut Election);
        let table: [(&str, u64, Story); 3] = [
            ("no candidate", 1_970, |_| {}),
            ("taken over meanwhile", 5, |one| {
                one.receive(at(5), id(9), &said(held(6, 2), Some(0), CandidateState::Witness));
                one.set_rules(at(5), rules(&[100, 100]));
            }),
            ("taken over, and told late", 5, |one| {
                one.set_rules(at(5), rules(&[100, 100]));
                one.receive(at(5), id(2), &said(held(6, 2), Some(0), CandidateState::Fit));
            }),
        ];
        for (what, deleted, story) in table {
            let mut one = resumed();
            // Who it is heard from counts by the rules.
            one.set_rules(at(0), rules(&[]));
            story(&mut one);
            let done = run(&mut one, 5, 2_500);
            assert_eq!(times(&done, &Action::Delete), [deleted], "{what}");
            assert!(!one.owns(), "{what}");
        }
        let mut late = node(1, &[100, 100]);
        late.resume(at(0), 5, HANDED);
        assert_eq!(times(&run(&mut late, 0, 10), &Action::Delete), [0], "too long ago");
    }
}
