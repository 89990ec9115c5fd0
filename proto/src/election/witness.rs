//! Who else is heard, and what workers say of the owner.
//!
//! What one worker says changes nothing that is known. What two say of the same owner counts like the word of a
//! candidate, and the veto of one counts for [`SOLO`]; `authority` has the table.

use std::collections::BTreeMap;
use std::time::Duration;

use super::owner::RECENT;
use super::wire::{Claim, HighestClaim, Holding};
use crate::node::NodeId;
use crate::time::Moment;

/// How long the veto of one worker alone delays a takeover.
pub const SOLO: Duration = Duration::from_secs(3);

/// Most workers whose reports are remembered: four times those that are asked.
const MAX_WORKERS: usize = 64;

/// How long a message of somebody else shows that this node is not alone.
const COMPANY: Duration = Duration::from_millis(500);

/// What is to be believed of what a worker says of the owner.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum WorkerEvidence {
    /// It is remembered, and no more.
    Noted,
    /// Another worker has heard the same owner, whose claim is higher than what is known.
    Confirmed(HighestClaim),
    /// A higher epoch, whose owner is gone.
    HigherEpoch(u64),
}

/// What one worker has said last.
#[derive(Debug, Clone, Copy)]
struct WorkerReport {
    at: Moment,
    /// The claim whose holder it has heard, and when.
    heard: Option<(Claim, Moment)>,
}

/// All members other than the owner, as far as they were heard.
#[derive(Debug, Clone, Default)]
pub(super) struct Witnesses {
    /// When one was heard last.
    heard: Option<Moment>,
    /// The same of one whose word counts alone.
    trusted_heard: Option<Moment>,
    /// What workers have said of late.
    reports: BTreeMap<NodeId, WorkerReport>,
}

impl Witnesses {
    /// One that does not hold the VIP has said something. `trusted`: its word counts alone.
    pub(super) fn heard(&mut self, now: Moment, trusted: bool) {
        self.heard = Some(now);
        if trusted {
            self.trusted_heard = Some(now);
        }
    }

    /// A worker says that it knows this claim of somebody else, and that it heard its holder so long ago. `mine`: the
    /// highest claim that is known here.
    pub(super) fn report(
        &mut self,
        now: Moment,
        own: NodeId,
        mine: Option<HighestClaim>,
        from: NodeId,
        known: Option<HighestClaim>,
        heard: Option<Duration>,
    ) -> WorkerEvidence {
        let heard = heard.filter(|age| *age < Duration::from_secs(60));
        self.note(now, from, known, heard);
        let Some(theirs) = known.filter(|theirs| mine.is_none_or(|mine| theirs.claim > mine.claim)) else {
            return WorkerEvidence::Noted;
        };
        let held_by_other = theirs.holding == Holding::Held && theirs.claim.owner != own;
        if held_by_other && self.confirmed_by_two(now, &theirs.claim) {
            return WorkerEvidence::Confirmed(theirs);
        }
        // Of an owner that is heard now this node learns when a second one says so, or from itself.
        let fresh = heard.is_some_and(|age| age < RECENT);
        if held_by_other && fresh {
            WorkerEvidence::Noted
        } else {
            WorkerEvidence::HigherEpoch(theirs.claim.epoch)
        }
    }

    fn note(&mut self, now: Moment, from: NodeId, known: Option<HighestClaim>, heard: Option<Duration>) {
        if !self.reports.contains_key(&from) && self.reports.len() >= MAX_WORKERS {
            let oldest = self.reports.iter().min_by_key(|(_, report)| report.at).map(|(node, _)| *node);
            oldest.map(|node| self.reports.remove(&node));
        }
        let claim = known.filter(|known| known.holding == Holding::Held).map(|known| known.claim);
        let heard = claim.zip(heard).map(|(claim, age)| (claim, now.before(age)));
        self.reports.insert(from, WorkerReport { at: now, heard });
    }

    /// Whether two of them have heard the holder of this claim lately.
    fn confirmed_by_two(&self, now: Moment, claim: &Claim) -> bool {
        let agrees = |report: &&WorkerReport| {
            now.since(report.at) < RECENT
                && report.heard.is_some_and(|(one, at)| one == *claim && now.since(at) < RECENT)
        };
        self.reports.values().filter(agrees).count() >= 2
    }

    /// When holders of such claims were heard: by one worker, and by a second one.
    fn sightings(&self, counts: impl Fn(&Claim) -> bool) -> [Option<Moment>; 2] {
        let heard = self.reports.values().filter_map(|report| report.heard);
        let mut times: Vec<Moment> = heard.filter(|(claim, _)| counts(claim)).map(|(_, at)| at).collect();
        times.sort_unstable();
        [times.pop(), times.pop()]
    }

    /// When two of them have heard the holder of this claim.
    pub(super) fn heard_by_two(&self, claim: &Claim) -> Option<Moment> {
        self.sightings(|one| one == claim)[1]
    }

    /// When the workers' reports let this node claim, which without it could from `at` on. `counts`: whose holder
    /// vetoes; `gone_at`: when an owner is gone that was heard last at that moment.
    pub(super) fn vetoed(
        &self,
        at: Moment,
        counts: impl Fn(&Claim) -> bool,
        gone_at: impl Fn(Moment) -> Moment,
    ) -> Moment {
        let [one, two] = self.sightings(counts);
        let at = two.map_or(at, |heard| at.max(gone_at(heard)));
        one.map_or(at, |heard| at.max(gone_at(heard).min(at.after(SOLO))))
    }

    /// When anyone was heard last.
    pub(super) fn last_heard(&self) -> Option<Moment> {
        self.heard
    }

    /// Whether anyone was heard since then, and a moment ago.
    pub(super) fn any_since(&self, now: Moment, since: Moment) -> bool {
        self.heard.is_some_and(|last| last >= since && now.since(last) < COMPANY)
    }

    /// Whether somebody who would tell of a live owner has spoken since then: a candidate, a master, or two
    /// workers.
    pub(super) fn trusted_since(&self, now: Moment, since: Moment) -> bool {
        let lately = |at: Moment| at >= since && now.since(at) < COMPANY;
        let since_then = since.max(now.before(COMPANY));
        self.trusted_heard.is_some_and(lately)
            || self.reports.values().filter(|report| report.at >= since_then).count() >= 2
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::{at, claim, held, id};
    use super::*;

    const OWN: NodeId = NodeId([1; 10]);

    fn age(ms: u64) -> Option<Duration> {
        Some(Duration::from_millis(ms))
    }

    #[test]
    fn a_worker_alone_tells_of_a_higher_number_and_two_of_a_higher_owner() {
        let mine = held(5, 2);
        let mut witnesses = Witnesses::default();
        for (known, heard, evidence) in [
            (None, None, WorkerEvidence::Noted),
            (held(5, 2), age(0), WorkerEvidence::Noted),
            (held(4, 3), None, WorkerEvidence::Noted),
            (held(7, 3), None, WorkerEvidence::HigherEpoch(7)),
            (held(7, 3), age(1_000), WorkerEvidence::HigherEpoch(7)),
            (held(7, 1), age(0), WorkerEvidence::HigherEpoch(7)),
            (held(7, 3), age(999), WorkerEvidence::Noted),
        ] {
            assert_eq!(
                witnesses.report(at(2_000), OWN, mine, id(8), known, heard),
                evidence,
                "{known:?} {heard:?}"
            );
        }
        let second =
            |witnesses: &mut Witnesses, known| witnesses.report(at(2_000), OWN, mine, id(9), known, age(0));
        assert_eq!(second(&mut witnesses, held(8, 3)), WorkerEvidence::Noted, "not the same");
        let Some(higher) = held(7, 3) else { return };
        assert_eq!(second(&mut witnesses, Some(higher)), WorkerEvidence::Confirmed(higher));
    }

    #[test]
    fn one_vetoes_for_a_time_and_two_for_as_long_as_they_hear_it() {
        let gone_at = |heard: Moment| heard.after(Duration::from_millis(500));
        let vetoed = |witnesses: &Witnesses, ms| witnesses.vetoed(at(ms), |one| *one == claim(5, 2), gone_at);
        let mut witnesses = Witnesses::default();
        assert_eq!(vetoed(&witnesses, 1_000), at(1_000));
        witnesses.report(at(1_000), OWN, None, id(8), held(5, 2), age(0));
        assert_eq!(vetoed(&witnesses, 1_000), at(1_500));
        witnesses.report(at(9_000), OWN, None, id(8), held(5, 2), age(0));
        assert_eq!(vetoed(&witnesses, 1_000), at(4_000), "three seconds and no more");
        witnesses.report(at(9_000), OWN, None, id(9), held(5, 2), age(100));
        assert_eq!(vetoed(&witnesses, 1_000), at(9_500));
        assert_eq!(witnesses.heard_by_two(&claim(5, 2)), Some(at(8_900)));
        assert_eq!(witnesses.heard_by_two(&claim(5, 3)), None);
    }

    #[test]
    fn who_would_tell_of_a_live_owner() {
        let mut witnesses = Witnesses::default();
        witnesses.heard(at(1_000), false);
        assert!(witnesses.any_since(at(1_000), at(1_000)) && !witnesses.any_since(at(1_000), at(1_001)));
        assert!(!witnesses.any_since(at(1_500), at(1_000)), "too long ago");
        witnesses.report(at(1_000), OWN, None, id(8), None, None);
        assert!(!witnesses.trusted_since(at(1_000), at(1_000)), "one worker");
        witnesses.report(at(1_100), OWN, None, id(9), None, None);
        assert!(witnesses.trusted_since(at(1_500), at(1_000)));
        assert!(!witnesses.trusted_since(at(1_501), at(1_000)));
        witnesses.heard(at(1_501), true);
        assert!(witnesses.trusted_since(at(1_501), at(1_000)));
    }

    #[test]
    fn what_they_say_takes_bounded_memory() {
        let mut witnesses = Witnesses::default();
        for n in 0..1_000_u16 {
            let [a, b] = n.to_be_bytes();
            let from = NodeId([a, b, 7, 7, 7, 7, 7, 7, 7, 7]);
            witnesses.report(at(u64::from(n)), OWN, None, from, held(5, 2), age(10));
        }
        assert_eq!(witnesses.reports.len(), MAX_WORKERS);
        assert!(witnesses.reports.values().all(|report| report.at >= at(1_000 - MAX_WORKERS as u64)));
    }
}
