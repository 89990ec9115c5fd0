//! What this node knows of the VIP's owner: the highest claim, how lately its holder was heard, and what that means
//! for a claim of its own. It puts together what [`claims`](super::claims), [`owner`](super::owner),
//! [`witness`](super::witness), [`epoch`](super::epoch) and [`authority`](super::authority) know one by one.

use std::time::Duration;

use super::authority::{Authority, SenderRole};
use super::claims::{Comparison, KnownClaim};
use super::epoch::EpochBounds;
use super::owner::OwnerLiveness;
use super::rank::VipRules;
use super::wire::{Claim, HighestClaim, VipMessage};
use super::witness::{Witnesses, WorkerEvidence};
use crate::node::NodeId;
use crate::pulse::PAUSE;
use crate::time::Moment;

/// An owner that nobody here has heard for so long is not called one: far witnesses hear it once a second.
const FORGOTTEN: Duration = Duration::from_secs(5);

/// What is to be believed of what a message says of the owner.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Evidence {
    /// None.
    None,
    /// This claim.
    Believed(HighestClaim),
    /// Only that there was a higher epoch, whose owner is gone.
    HigherEpoch,
}

/// Everything that is known of the owner.
#[derive(Debug, Clone)]
pub(super) struct OwnerKnowledge {
    own: NodeId,
    claims: KnownClaim,
    epochs: EpochBounds,
    owner: OwnerLiveness,
    witnesses: Witnesses,
    authority: Authority,
}

impl OwnerKnowledge {
    /// Nothing is known.
    pub(super) fn new(own: NodeId, now: Moment) -> OwnerKnowledge {
        OwnerKnowledge {
            own,
            claims: KnownClaim::new(now),
            epochs: EpochBounds::default(),
            owner: OwnerLiveness::new(now),
            witnesses: Witnesses::default(),
            authority: Authority::default(),
        }
    }

    /// The highest claim and its changes.
    pub(super) fn claims(&self) -> &KnownClaim {
        &self.claims
    }

    pub(super) fn highest(&self) -> Option<HighestClaim> {
        self.claims.highest()
    }

    /// The node that holds the VIP, as far as is known.
    pub(super) fn holder(&self) -> Option<NodeId> {
        self.claims.holder()
    }

    /// When this node itself heard the holder last.
    pub(super) fn heard_directly(&self) -> Option<Moment> {
        self.owner.direct()
    }

    /// Follows the rules.
    pub(super) fn rules_changed(&mut self, now: Moment, rules: &VipRules) {
        self.authority.rules_changed(now, rules, self.claims.holder());
    }

    /// This node could not listen until now.
    pub(super) fn excuse_silence(&mut self, now: Moment) {
        self.owner.excuse_silence(now);
    }

    /// The machine of this node refuses its agent's port; whether that matters.
    pub(super) fn refused(&mut self, peer: &NodeId) -> bool {
        let holds = self.holder() == Some(*peer);
        if holds {
            self.owner.refused();
        }
        holds
    }

    /// Takes this as what is known: nobody has heard its holder since.
    pub(super) fn adopt(&mut self, now: Moment, rules: &VipRules, known: HighestClaim) {
        self.claims.replace(now, known);
        self.owner = OwnerLiveness::new(now);
        self.authority.holder_changed(now, rules, known.holder());
    }

    /// The owner has changed.
    pub(super) fn note_move(&mut self, now: Moment) {
        self.claims.note_move(now);
    }
}

/// Epochs.
impl OwnerKnowledge {
    /// The epoch of this node's next claim; none when there is none left.
    pub(super) fn next_epoch(&self) -> Option<u64> {
        self.epochs.next(self.claims.epoch())
    }

    /// The highest that was ever heard of.
    pub(super) fn highest_epoch(&self) -> u64 {
        self.epochs.highest(self.claims.epoch())
    }

    /// One from the disk; false when it is not believed.
    pub(super) fn restore_epoch(&mut self, epoch: u64) -> bool {
        self.epochs.restore(epoch)
    }

    /// The next claim is above this one.
    pub(super) fn raise_epoch(&mut self, epoch: u64) {
        self.epochs.raise(epoch);
    }

    /// A member gossips that it owns the VIP with this epoch.
    pub(super) fn gossiped(&mut self, now: Moment, rules: &VipRules, from: &NodeId, epoch: u64) {
        if self.role(now, rules, from) != SenderRole::Worker && self.is_plausible(epoch) {
            self.epochs.raise(epoch);
        }
    }

    /// The claim that this node holds, if it is to be claimed anew, above an epoch that a worker knows.
    pub(super) fn begin_lift(&mut self, now: Moment) -> Option<HighestClaim> {
        let mine = self.claims.highest()?;
        self.epochs.begin_lift(now, mine.claim.epoch).then_some(mine)
    }

    fn is_plausible(&self, epoch: u64) -> bool {
        self.epochs.is_plausible(self.claims.epoch(), epoch)
    }
}

/// Messages.
impl OwnerKnowledge {
    fn role(&self, now: Moment, rules: &VipRules, from: &NodeId) -> SenderRole {
        self.authority.role(now, rules, self.claims.highest(), from)
    }

    /// What is to be believed of a message.
    pub(super) fn hear(
        &mut self,
        now: Moment,
        rules: &VipRules,
        from: NodeId,
        message: &VipMessage,
    ) -> Evidence {
        let role = self.role(now, rules, &from);
        if self.holder() != Some(from) {
            self.witnesses.heard(now, role != SenderRole::Worker);
        }
        let plausible = message.known.filter(|theirs| self.is_plausible(theirs.claim.epoch));
        if role != SenderRole::Worker {
            return plausible.map_or(Evidence::None, Evidence::Believed);
        }
        // Its own claim can be of the time when it was a candidate: that it gives it up is good news.
        let release = message.known.filter(|theirs| self.claims.is_release_by(from, theirs));
        // Else who holds it can't be a worker, and who is no candidate bears no witness of itself.
        let of_another = plausible.filter(|theirs| theirs.claim.owner != from);
        let mine = self.claims.highest();
        let evidence = self.witnesses.report(now, self.own, mine, from, of_another, message.heard);
        match (release, evidence) {
            (Some(release), _) | (None, WorkerEvidence::Confirmed(release)) => Evidence::Believed(release),
            (None, WorkerEvidence::HigherEpoch(epoch)) => {
                self.epochs.lift(self.claims.epoch(), epoch);
                Evidence::HigherEpoch
            }
            (None, WorkerEvidence::Noted) => Evidence::None,
        }
    }

    /// Compares what another knows, and remembers when it has heard the holder of the same claim.
    pub(super) fn compare(
        &mut self,
        now: Moment,
        from: NodeId,
        theirs: &HighestClaim,
        heard: Option<Duration>,
    ) -> Comparison {
        let comparison = self.claims.compare(self.own, theirs);
        match heard {
            _ if comparison != Comparison::Held => {}
            _ if theirs.claim.owner == from => self.owner.heard(now),
            Some(age) => self.owner.heard_by_other(now.before(age)),
            None => {}
        }
        comparison
    }

    /// The holder's process is being replaced: until the next one speaks it counts as heard, for as long as that may
    /// take.
    pub(super) fn holder_pauses(&mut self, now: Moment) {
        self.owner.heard(now.after(PAUSE));
    }

    /// Another node holds a higher claim, which has just been adopted: who has heard it, and when.
    pub(super) fn first_heard(&mut self, now: Moment, from: NodeId, claim: &Claim, heard: Option<Duration>) {
        match heard {
            _ if claim.owner == from => self.owner.heard(now),
            Some(age) => self.owner.last_heard_by_other(now.before(age)),
            None => {}
        }
    }
}

/// What it means for a claim of this node.
impl OwnerKnowledge {
    /// When the holder's silence is suspicious.
    pub(super) fn suspected_at(&self, rtt: Duration) -> Moment {
        self.owner.suspected_at(self.claims.changed(), rtt)
    }

    /// When a silent holder is gone, by those whose word counts alone.
    pub(super) fn gone_at(&self, rtt: Duration) -> Moment {
        self.owner.gone_at(self.owner.alive(), rtt)
    }

    /// When what workers say lets this node claim, which without it could from `at` on.
    pub(super) fn vetoed(&self, at: Moment, rtt: Duration) -> Moment {
        let counts = |claim: &Claim| self.claims.is_vetoed_by(claim);
        self.witnesses.vetoed(at, counts, |heard| self.owner.gone_at(heard, rtt))
    }

    /// When anyone whose word counts has heard the holder last.
    pub(super) fn last_heard(&self) -> Moment {
        let held = self.claims.highest().filter(|known| known.holder().is_some());
        let by_two = held.and_then(|known| self.witnesses.heard_by_two(&known.claim));
        by_two.map_or(self.owner.alive(), |heard| heard.max(self.owner.alive()))
    }

    /// Whether the holder was heard lately enough to be shown as owner.
    pub(super) fn is_holder_remembered(&self, now: Moment) -> bool {
        let heard = self.owner.direct().unwrap_or_default();
        now.since(self.last_heard().max(heard)) < FORGOTTEN
    }

    /// Whether the address at a member is what its agent has left: its machine says that no agent runs, or nobody
    /// who would tell of a live owner has done so since then.
    pub(super) fn is_owner_ruled_out(&self, now: Moment, since: Moment) -> bool {
        self.owner.is_agent_gone() || self.witnesses.trusted_since(now, since)
    }

    /// Whether anyone has been heard since then, and a moment ago.
    pub(super) fn has_company(&self, now: Moment, since: Moment) -> bool {
        self.witnesses.any_since(now, since)
    }

    /// When anyone was heard last, the holder too; `began`: since when this node listens.
    pub(super) fn last_company(&self, began: Moment) -> Moment {
        self.witnesses.last_heard().unwrap_or(began).max(self.owner.alive())
    }
}

#[cfg(test)]
mod tests {
    use super::super::rank::CandidateState;
    use super::super::tests::{at, held, id, released, rules, said};
    use super::*;

    /// A candidate, a master that is none, and a worker.
    const SENDERS: [u8; 3] = [3, 9, 7];

    fn knowing(known: Option<HighestClaim>) -> OwnerKnowledge {
        let mut knowledge = OwnerKnowledge::new(id(1), at(0));
        known.into_iter().for_each(|known| knowledge.adopt(at(0), &rules(&[100; 3]), known));
        knowledge
    }

    #[test]
    fn a_worker_is_believed_only_what_costs_it_something() {
        for (theirs, believed) in [
            (None, [false, false, false]),
            (held(6, 2), [true, true, false]),
            (released(5, 2, None), [true, true, false]),
            (held(u64::MAX, 2), [false, false, false]),
        ] {
            let hears = |from| {
                let message = said(theirs, Some(0), CandidateState::Witness);
                let evidence = knowing(held(5, 2)).hear(at(10), &rules(&[100; 3]), id(from), &message);
                matches!(evidence, Evidence::Believed(_))
            };
            assert_eq!(SENDERS.map(hears), believed, "{theirs:?}");
        }
        let message = said(released(5, 7, None), None, CandidateState::Witness);
        let evidence = knowing(held(5, 7)).hear(at(10), &rules(&[100; 3]), id(7), &message);
        assert!(matches!(evidence, Evidence::Believed(_)), "it gives up what it has");
    }

    #[test]
    fn who_heard_the_holder_moves_the_moment_at_which_it_is_gone() {
        let gone = |from: u8, heard| {
            let mut knowledge = knowing(held(5, 2));
            let compared = held(5, 2).map(|theirs| knowledge.compare(at(1_000), id(from), &theirs, heard));
            assert_eq!(compared, Some(Comparison::Held));
            (knowledge.heard_directly(), knowledge.gone_at(Duration::ZERO))
        };
        assert_eq!(gone(2, None), (Some(at(1_000)), at(1_160)), "itself");
        assert_eq!(gone(3, Some(Duration::from_millis(100))), (None, at(1_400)), "another");
        assert_eq!(gone(3, None), (None, at(500)), "nobody");
    }

    #[test]
    fn a_holder_that_nobody_has_heard_for_five_seconds_is_not_shown() {
        let knowledge = knowing(held(5, 2));
        assert!(knowledge.is_holder_remembered(at(4_999)) && !knowledge.is_holder_remembered(at(5_000)));
    }
}
