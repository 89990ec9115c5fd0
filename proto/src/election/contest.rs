//! Whether this node may claim, and from when on: what it waits for first, and what stands against it.

use std::time::Duration;

use super::action::Gain;
use super::conflict::AddressConflict;
use super::knowledge::OwnerKnowledge;
use super::listening::{ALL_HEARD, Listening};
use super::peers::CandidatePeers;
use super::rank::{ClaimRank, VipRules};
use super::suspicion::OwnerSuspicion;
use super::wire::Holding;
use crate::arp::Mac;
use crate::node::NodeId;
use crate::time::Moment;

/// A named successor has so long before everyone may claim.
const HANDOVER: Duration = Duration::from_millis(100);

/// Who suddenly hears nobody at all is likely cut off itself, and nobody would find the address there. It
/// claims all the same, since the others may all be dead, but not for a short cut: its higher epoch would
/// move the address when the cut heals.
const ALONE: Duration = Duration::from_millis(1_500);

/// Who takes part, and what is known of the owner.
#[derive(Debug, Clone, Copy)]
pub(super) struct Contenders<'a> {
    pub(super) own: NodeId,
    pub(super) rules: &'a VipRules,
    pub(super) knowledge: &'a OwnerKnowledge,
    pub(super) peers: &'a CandidatePeers,
}

/// What a candidate does about an owner that is silent or gone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct ContestStep {
    /// It asks all others who hears the owner, and probes the address.
    pub(super) ask: bool,
    /// It claims, for this reason.
    pub(super) claim: Option<Gain>,
    /// When something is due again.
    pub(super) next: Option<Moment>,
}

/// The claim under way, and what comes before it.
#[derive(Debug, Clone)]
pub(super) struct Contest {
    listening: Listening,
    conflict: AddressConflict,
    /// The owner has released the VIP to this node, which is to claim at once.
    named: bool,
    suspicion: Option<OwnerSuspicion>,
}

impl Contest {
    /// A witness, which claims nothing.
    pub(super) fn new(now: Moment) -> Contest {
        Contest {
            listening: Listening::new(now),
            conflict: AddressConflict::default(),
            named: false,
            suspicion: None,
        }
    }

    /// This node has become a candidate.
    pub(super) fn join(&mut self) {
        self.listening.begin();
    }

    /// Whether it must listen first.
    pub(super) fn is_listening(&self) -> bool {
        self.listening.is_pending()
    }

    /// There is another claim, or it was released; `named`: by its owner, to this node.
    pub(super) fn claim_changed(&mut self, named: bool) {
        self.suspicion = None;
        self.named = named;
    }

    /// This node may not claim, or need not.
    pub(super) fn abandon(&mut self) {
        self.suspicion = None;
    }

    /// The loop stood still for so long that nobody could be heard.
    pub(super) fn interrupted(&mut self, now: Moment) {
        self.listening.interrupted(now);
        self.claim_changed(false);
    }

    /// The loop was a little late.
    pub(super) fn loop_stalled(&mut self, now: Moment, by: Duration) {
        if let Some(suspicion) = &mut self.suspicion {
            suspicion.loop_stalled(now, by);
        }
    }

    /// A member's hardware address has answered a probe.
    pub(super) fn member_sighted(&mut self, now: Moment) {
        if let Some(suspicion) = &mut self.suspicion {
            suspicion.member_answered(now);
        }
    }

    /// A stranger has the address; true when it has only now come into the way of a claim.
    pub(super) fn stranger_sighted(&mut self, now: Moment, mac: Mac) -> bool {
        self.conflict.stranger_sighted(now, mac) && self.suspicion.is_some()
    }

    /// The stranger that has the address.
    pub(super) fn stranger(&self, now: Moment) -> Option<Mac> {
        self.conflict.stranger(now)
    }

    /// The address is on the interface of this node, which does not own it; whether it is deleted now.
    pub(super) fn found_here(&mut self, now: Moment) -> bool {
        self.conflict.found_here(now)
    }

    /// Listens for as long as it must; returns until when.
    pub(super) fn listen(&mut self, now: Moment, all: &Contenders<'_>) -> Option<Moment> {
        self.listening.poll(now, &all.own, all.rules, all.peers)
    }

    /// What is due of a node that could own the VIP, and has this rank.
    pub(super) fn poll(&mut self, now: Moment, all: &Contenders<'_>, rank: ClaimRank) -> ContestStep {
        let (due, cause) = self.opening(now, all);
        if now < due {
            self.abandon();
            return ContestStep { ask: false, claim: None, next: Some(due) };
        }
        if matches!(cause, Gain::Handed(_)) {
            return ContestStep { ask: false, claim: Some(cause), next: None };
        }
        let stranger = self.conflict.stranger(now).is_some();
        let mut suspicion = OwnerSuspicion::follow(self.suspicion.take(), now, stranger);
        let ask = suspicion.round(now);
        let base = self.claimable_from(now, all, &suspicion, cause);
        let ahead = all.peers.ahead_of(now, all.rules, rank, all.knowledge.holder());
        let slot = suspicion.claim_slot(now, base, ahead, all.rules.rtt);
        let next = suspicion.deadline();
        self.suspicion = Some(suspicion);
        if slot <= now {
            ContestStep { ask, claim: Some(cause), next: Some(next) }
        } else {
            ContestStep { ask, claim: None, next: Some(next.min(slot)) }
        }
    }

    /// From when on this node might claim, and why.
    fn opening(&self, now: Moment, all: &Contenders<'_>) -> (Moment, Gain) {
        let claims = all.knowledge.claims();
        let Some(known) = claims.highest() else { return (now, Gain::Vacant) };
        match known.holding {
            Holding::Held => {
                let quiet = now.since(all.knowledge.last_heard());
                (all.knowledge.suspected_at(all.rules.rtt), Gain::Silent { quiet })
            }
            Holding::Released { why, .. } if self.named => (now, Gain::Handed(why)),
            Holding::Released { why, successor } => {
                let wait = if successor.is_some() { HANDOVER } else { Duration::ZERO };
                (claims.changed().after(wait), Gain::Released(why))
            }
        }
    }

    /// From when on candidates may claim, by what is known now.
    fn claimable_from(
        &self,
        now: Moment,
        all: &Contenders<'_>,
        suspicion: &OwnerSuspicion,
        cause: Gain,
    ) -> Moment {
        let Contenders { own, rules, knowledge, peers } = *all;
        let (rtt, since) = (rules.rtt, suspicion.since());
        let silent = matches!(cause, Gain::Silent { .. }).then(|| knowledge.gone_at(rtt));
        // With nobody to ask, a member's kernel that answers may have a live agent behind it.
        let leftover = suspicion.member_gone_at().filter(|_| !knowledge.is_owner_ruled_out(now, since));
        // Somebody other than the holder should answer: a candidate that was there a moment ago, or a witness.
        let expected = !rules.witnesses.is_empty() || peers.expects_any(now, knowledge.holder());
        let alone = (expected && !knowledge.has_company(now, since))
            .then(|| knowledge.last_company(self.listening.since()).after(ALONE));
        // Nodes that start together: the better one comes in a moment, and would not take it back.
        let coming = (cause == Gain::Vacant && peers.is_better_coming(now, rules, &own))
            .then(|| since.after(ALL_HEARD));
        let obstacles = [silent, self.conflict.stranger_gone_at(), leftover, alone, coming];
        let at = obstacles.into_iter().flatten().fold(suspicion.answered_at(rtt), Moment::max);
        knowledge.vetoed(at, rtt)
    }

    #[cfg(test)]
    pub(super) fn skip_listening(&mut self) {
        self.listening.skip();
    }
}

#[cfg(test)]
mod tests {
    use super::super::claims::Comparison;
    use super::super::rank::CandidateState;
    use super::super::tests::{MAC, at, held, id, released, rules};
    use super::super::wire::HighestClaim;
    use super::*;

    /// When a candidate asks and when it claims, of those that know this since the beginning.
    fn asks_and_claims(known: Option<HighestClaim>, change: impl Fn(&mut Contest)) -> [Option<u64>; 2] {
        let (rules, peers) = (rules(&[100, 100]), CandidatePeers::default());
        let mut knowledge = OwnerKnowledge::new(id(1), at(0));
        known.into_iter().for_each(|known| knowledge.adopt(at(0), &rules, known));
        let rank = rules.rank(&id(1), &CandidateState::Fit);
        let all = Contenders { own: id(1), rules: &rules, knowledge: &knowledge, peers: &peers };
        let mut contest = Contest::new(at(0));
        change(&mut contest);
        let mut asked = None;
        for ms in 0..10_000 {
            let step = rank.map(|rank| contest.poll(at(ms), &all, rank));
            asked = asked.or(step.filter(|step| step.ask).map(|_| ms));
            if step.is_some_and(|step| step.claim.is_some()) {
                return [asked, Some(ms)];
            }
        }
        [asked, None]
    }

    #[test]
    fn how_long_an_address_must_have_been_without_an_owner() {
        let handed = released(5, 2, Some(1));
        let other = released(5, 2, Some(3));
        for (known, asks, claims) in [
            (None, Some(0), 50),
            (held(5, 2), Some(110), 500),
            (released(5, 2, None), Some(0), 50),
            (other, Some(100), 150),
        ] {
            assert_eq!(asks_and_claims(known, |_| ()), [asks, Some(claims)], "{known:?}");
        }
        assert_eq!(asks_and_claims(handed, |contest| contest.claim_changed(true)), [None, Some(0)]);
        let stranger =
            |contest: &mut Contest| assert!(!contest.stranger_sighted(at(0), MAC), "nobody asks yet");
        assert_eq!(asks_and_claims(None, stranger), [Some(0), Some(2_550)]);
    }

    #[test]
    fn what_others_say_is_over_when_the_owner_is_heard_again() {
        let (rules, peers) = (rules(&[100, 100]), CandidatePeers::default());
        let mut knowledge = OwnerKnowledge::new(id(1), at(0));
        let mut contest = Contest::new(at(0));
        let mut poll = |knowledge: &OwnerKnowledge, ms| {
            let all = Contenders { own: id(1), rules: &rules, knowledge, peers: &peers };
            let rank = rules.rank(&id(1), &CandidateState::Fit)?;
            Some(contest.poll(at(ms), &all, rank))
        };
        held(5, 2).into_iter().for_each(|known| knowledge.adopt(at(0), &rules, known));
        assert!(poll(&knowledge, 110).is_some_and(|step| step.ask && step.next == Some(at(126))));
        let beat = held(5, 2).map(|known| knowledge.compare(at(111), id(2), &known, None));
        assert_eq!(beat, Some(Comparison::Held));
        let waits = ContestStep { ask: false, claim: None, next: Some(at(221)) };
        assert_eq!(poll(&knowledge, 111), Some(waits));
        assert!(poll(&knowledge, 221).is_some_and(|step| step.ask), "anew");
    }
}
