//! Whose word counts for what: a worker that lies must neither move the VIP nor hold it up for long.
//!
//! | what is said | by a candidate or a master | by any other member (a worker) |
//! | --- | --- | --- |
//! | a claim of its own, and its beats as owner | counts | does not |
//! | the release of the claim that it is known to hold | counts | counts: it gives away only its own |
//! | somebody else's claim or release | counts | does not |
//! | "I heard the owner", a veto | counts | of two workers it counts, of one for [`SOLO`] |
//! | "I heard another owner, with a higher claim" | counts | of two workers it counts |
//! | "there was a higher epoch" | counts | raises the number of this node's next claim, a little |
//! | hand over to another node ([`super::Purpose::Move`]) | of masters only | does not |
//!
//! A master that is no candidate here may be one soon: candidates follow what is gossiped of services, and
//! masters are trusted with availability anyway. The successor that an owner has named counts as a candidate
//! too. What is the other way round, a candidate of a moment ago, is heard as owner for [`LAPSE`] more, since
//! it may be the last to learn that it is none.
//!
//! So a bridge of two honest workers still keeps two owners apart that can't hear each other, one lying
//! worker delays a takeover by 3 s at most, and no number that a worker says locks later claims.

use std::collections::BTreeMap;
use std::time::Duration;

use super::rank::VipRules;
use super::suspicion::{COMPANY, grace_period};
use super::wire::{Claim, HighestClaim, Holding};
use super::{Election, RECENT};
use crate::node::NodeId;
use crate::time::Moment;

/// How long the veto of one worker alone delays a takeover.
pub const SOLO: Duration = Duration::from_secs(3);

/// How long an owner that is no candidate any more is still heard: the document reaches all within this.
const LAPSE: Duration = Duration::from_secs(3);

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

/// Most workers whose word is remembered: four times those that are asked.
const MAX_WORKERS: usize = 64;

/// Who says something.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum SenderRole {
    /// It may own the VIP.
    Candidate,
    /// It may not, but is a master.
    Master,
    /// It only bears witness.
    Worker,
}

/// What one worker has said last.
#[derive(Debug, Clone, Copy)]
struct WorkerReport {
    at: Moment,
    /// The claim whose holder it has heard, and when.
    heard: Option<(Claim, Moment)>,
}

/// What workers have said of late.
#[derive(Debug, Clone, Default)]
pub(super) struct WorkerReports(BTreeMap<NodeId, WorkerReport>);

impl WorkerReports {
    /// `heard`: when it has heard the holder of what it knows.
    fn note(&mut self, now: Moment, from: NodeId, known: Option<HighestClaim>, heard: Option<Duration>) {
        if !self.0.contains_key(&from) && self.0.len() >= MAX_WORKERS {
            let oldest = self.0.iter().min_by_key(|(_, word)| word.at).map(|(node, _)| *node);
            oldest.map(|node| self.0.remove(&node));
        }
        let claim = known.filter(|known| known.holding == Holding::Held).map(|known| known.claim);
        let heard = claim.zip(heard).map(|(claim, age)| (claim, ago(now, age)));
        self.0.insert(from, WorkerReport { at: now, heard });
    }

    /// Whether two of them have heard the holder of this claim lately.
    fn confirmed_by_two(&self, now: Moment, claim: &Claim) -> bool {
        let agrees = |word: &&WorkerReport| {
            now.since(word.at) < RECENT
                && word.heard.is_some_and(|(one, at)| one == *claim && now.since(at) < RECENT)
        };
        self.0.values().filter(agrees).count() >= 2
    }

    /// When the holder of a claim that is not below this was heard: by one, and by a second one.
    fn sightings(&self, least: impl Fn(&Claim) -> bool) -> [Option<Moment>; 2] {
        let mut times: Vec<Moment> = self
            .0
            .values()
            .filter_map(|word| word.heard)
            .filter(|(claim, _)| least(claim))
            .map(|(_, at)| at)
            .collect();
        times.sort_unstable();
        [times.pop(), times.pop()]
    }

    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.0.len()
    }

    fn reported_since(&self, since: Moment) -> usize {
        self.0.values().filter(|word| word.at >= since).count()
    }
}

impl VipRules {
    fn speaker(&self, node: &NodeId) -> SenderRole {
        if self.candidate(node).is_some() {
            SenderRole::Candidate
        } else if self.is_master(node) {
            SenderRole::Master
        } else {
            SenderRole::Worker
        }
    }
}

impl Election {
    /// Whose word it is.
    pub(super) fn speaker(&self, now: Moment, from: &NodeId) -> SenderRole {
        let speaker = self.rules.speaker(from);
        let named = self.known.is_some_and(|known| match known.holding {
            Holding::Held => known.claim.owner == *from && self.lapses.is_some_and(|end| now < end),
            Holding::Released { successor, .. } => successor == Some(*from),
        });
        if speaker == SenderRole::Worker && named { SenderRole::Candidate } else { speaker }
    }

    /// Whether an owner that was a candidate until now is still heard, and until when.
    pub(super) fn lapse(&mut self, now: Moment) {
        let trusted = self.holder().is_none_or(|holder| self.rules.speaker(&holder) != SenderRole::Worker);
        self.lapses = if trusted { None } else { Some(self.lapses.unwrap_or(now.after(LAPSE))) };
    }

    /// Whether an epoch is one that may be: it steps, and leaves room for higher ones.
    pub(super) fn is_plausible(&self, epoch: u64) -> bool {
        epoch < CEILING && epoch.saturating_sub(self.proven_epoch()) <= STEP
    }

    /// The highest epoch that is surely known.
    fn proven_epoch(&self) -> u64 {
        let known = self.known.map_or(0, |known| known.claim.epoch);
        // What an earlier agent wrote is not believed against what all others say.
        let floor =
            if self.known.is_some() && self.floor.saturating_sub(known) > STEP { 0 } else { self.floor };
        known.max(floor)
    }

    /// The epoch of this node's next claim; none when there is none left.
    pub(super) fn next_epoch(&self) -> Option<u64> {
        let next = self.proven_epoch().max(self.lifted).checked_add(1)?;
        (next < CEILING).then_some(next)
    }

    /// An epoch of an earlier agent of this node, from its disk: the next claim is higher. One that can't be
    /// is not believed; false then.
    pub fn set_minimum_epoch(&mut self, epoch: u64) -> bool {
        let believed = epoch < CEILING / 2;
        if believed {
            self.floor = self.floor.max(epoch);
        }
        believed
    }

    /// An epoch that a member gossips to own the VIP with: slower than its beats, for those who hear none.
    pub fn gossiped(&mut self, now: Moment, from: &NodeId, epoch: u64) {
        if self.speaker(now, from) != SenderRole::Worker && self.is_plausible(epoch) {
            self.floor = self.floor.max(epoch);
        }
    }

    /// A worker has said something. Returns whether what it knows is to be believed like the word of a
    /// candidate: another worker has heard the same.
    pub(super) fn witness(
        &mut self,
        now: Moment,
        from: NodeId,
        known: Option<HighestClaim>,
        heard: Option<Duration>,
    ) -> bool {
        // Who holds it can't be a worker, and who is no candidate bears no witness of itself.
        let known = known.filter(|known| known.claim.owner != from && self.is_plausible(known.claim.epoch));
        let heard = heard.filter(|age| *age < Duration::from_secs(60));
        self.workers.note(now, from, known, heard);
        let Some(theirs) = known else { return false };
        let higher = self.known.is_none_or(|mine| theirs.claim > mine.claim);
        if theirs.holding == Holding::Held
            && theirs.claim.owner != self.own
            && self.workers.confirmed_by_two(now, &theirs.claim)
        {
            return higher;
        }
        // Of an owner that is heard now this node learns when a second one says so, or from itself.
        let fresh = theirs.holding == Holding::Held && heard.is_some_and(|age| age < RECENT);
        if higher && !(fresh && theirs.claim.owner != self.own) {
            self.observe_stale_epoch(now, theirs.claim.epoch);
        }
        false
    }

    /// A worker knows of a higher epoch whose owner is gone.
    fn observe_stale_epoch(&mut self, now: Moment, epoch: u64) {
        self.lifted = self.lifted.max(epoch.min(self.proven_epoch() + LIFT));
        let Some(mine) = self.known.filter(|_| self.ownership.is_some()) else { return };
        if self.lifted <= mine.claim.epoch || self.lift_at.is_some_and(|last| now.since(last) < LIFT_EVERY) {
            return;
        }
        self.lift_at = Some(now);
        self.claim_new_epoch(now, mine);
    }

    /// When the workers' word lets this node claim, which without it could from `at` on.
    pub(super) fn vetoed(&self, at: Moment) -> Moment {
        let counts = |claim: &Claim| match self.known {
            None => true,
            Some(mine) => *claim > mine.claim || *claim == mine.claim && mine.holding == Holding::Held,
        };
        let due = |heard: Moment| heard.after(grace_period(self.direct, heard) + self.rules.rtt);
        let [one, two] = self.workers.sightings(counts);
        let at = two.map_or(at, |heard| at.max(due(heard)));
        one.map_or(at, |heard| at.max(due(heard).min(at.after(SOLO))))
    }

    /// When anyone whose word counts has heard the holder last.
    pub(super) fn last_heard(&self) -> Moment {
        let Some(mine) = self.known.filter(|known| known.holding == Holding::Held) else { return self.alive };
        let [_, two] = self.workers.sightings(|claim| *claim == mine.claim);
        two.map_or(self.alive, |heard| self.alive.max(heard))
    }

    /// Whether somebody who would tell of a live owner has spoken since then: a candidate, a master, or two
    /// workers.
    pub(super) fn would_have_heard(&self, now: Moment, since: Moment) -> bool {
        let lately = |at: Moment| at >= since && now.since(at) < COMPANY;
        let recent = Moment::from_millis(now.as_millis().saturating_sub(super::receive::millis(COMPANY)));
        self.trusted_company.is_some_and(lately) || self.workers.reported_since(since.max(recent)) >= 2
    }
}

/// The moment so long before now.
fn ago(now: Moment, age: Duration) -> Moment {
    Moment::from_millis(now.as_millis().saturating_sub(super::receive::millis(age)))
}
