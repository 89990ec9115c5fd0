//! What a candidate does about an owner that is silent or gone, and an owner about a better candidate.

use std::time::Duration;

use super::action::{Action, Gain, VipEvent};
use super::ownership::{LIFETIME, Ownership};
use super::rank::{Candidate, CandidateState};
use super::receive::UnaskedWitnesses;
use super::suspicion::{ALONE, COMPANY, DOUBT, LEFTOVER, OwnerSuspicion, WINDOW, grace_period};
use super::wire::{Claim, HighestClaim, Holding, MessageKind};
use super::{
    CandidatePeer, Election, HANDOVER, LISTEN, LISTEN_FULL, LISTEN_LATE, LIVE, ListenWindow, NewsAudience,
    RECENT, STRANGER,
};
use crate::node::NodeId;
use crate::time::Moment;

impl Election {
    /// The node that has been better, and fit for long enough, while the owner did not change often.
    pub(super) fn preferred(&self, now: Moment) -> Option<NodeId> {
        // Counted from the claim too: who has just died or handed over still looks fit for a moment.
        let wait = self.rules.preempt?.max(RECENT);
        if now.since(self.changed) < wait {
            return None;
        }
        let restless = self.moves.iter().filter(|at| now.since(**at) < Duration::from_secs(300)).count();
        let own = self.rules.candidate(&self.own)?.priority;
        let best = self.successor(now)?;
        let peer = self.peers.get(&best)?;
        let better = self.rules.candidate(&best)?.priority > own;
        let long = peer.candidate_state == CandidateState::Fit
            && peer.fit_since.is_some_and(|at| now.since(at) >= wait);
        (better && long && restless < 3).then_some(best)
    }

    /// What a candidate does about an owner that is silent or gone.
    pub(super) fn contend(&mut self, now: Moment) {
        let Some(cause) = self.opening(now) else {
            self.suspicion = None;
            return;
        };
        if matches!(cause, Gain::Handed(_)) {
            return self.claim(now, cause);
        }
        let stranger = self.stranger.is_some_and(|(_, last)| now.since(last) < STRANGER);
        // While a stranger has it nobody is asked often: all is asked again when it is gone.
        let fresh = |suspicion: &OwnerSuspicion| stranger || !suspicion.strange;
        let mut suspicion = self.suspicion.take().filter(fresh).unwrap_or_else(|| OwnerSuspicion::new(now));
        suspicion.strange = stranger;
        if suspicion.round(now) {
            let others = self.others(true, UnaskedWitnesses::None);
            self.send(now, others, MessageKind::Ask);
            self.actions.push(Action::Probe);
        }
        self.wake(suspicion.deadline());
        let Some((base, ahead)) = self.claim_slot(now, &suspicion, cause) else { return };
        let at = suspicion.claim_slot(now, base, ahead, self.rules.rtt);
        self.suspicion = Some(suspicion);
        if at <= now {
            self.claim(now, cause);
        } else {
            self.wake(at);
        }
    }

    /// Why this node might claim; none: it may not, or need not now.
    fn opening(&mut self, now: Moment) -> Option<Gain> {
        if let Some(listen) = self.listen {
            let over = self.listened(listen);
            if now < over {
                self.wake(over);
            } else {
                self.listen = None;
            }
        }
        if self.ownership.is_some() || !self.candidate_state(now).is_eligible() {
            if let Some(at) = self.fitness.deadline(now) {
                self.wake(at);
            }
            return None;
        }
        let Some(known) = self.known else { return Some(Gain::Vacant) };
        let (due, cause) = match known.holding {
            Holding::Held => {
                let heard = self.direct.unwrap_or(self.changed);
                let quiet = now.since(self.last_heard());
                (heard.after(DOUBT + self.rules.rtt), Gain::Silent { quiet })
            }
            Holding::Released { why, .. } if self.handed => return Some(Gain::Handed(why)),
            Holding::Released { why, successor } => {
                let wait = if successor.is_some() { HANDOVER } else { Duration::ZERO };
                (self.changed.after(wait), Gain::Released(why))
            }
        };
        if now < due {
            self.wake(due);
            return None;
        }
        Some(cause)
    }

    /// From when on candidates may claim, by what is known now, and how many of them come before this one.
    fn claim_slot(&self, now: Moment, suspicion: &OwnerSuspicion, cause: Gain) -> Option<(Moment, u32)> {
        let rtt = self.rules.rtt;
        let mut at = suspicion.since.after(WINDOW + rtt).max(suspicion.not_before);
        if matches!(cause, Gain::Silent { .. }) {
            at = at.max(self.alive.after(grace_period(self.direct, self.alive) + rtt));
        }
        if let Some((_, last)) = self.stranger {
            at = at.max(last.after(STRANGER));
        }
        // With nobody to ask, a member's kernel that answers may have a live agent behind it.
        if let Some(last) =
            suspicion.leftover.filter(|_| !self.refused && !self.would_have_heard(now, suspicion.since))
        {
            at = at.max(last.after(LEFTOVER));
        }
        let asked = |heard: Moment| heard >= suspicion.since;
        let company = self.company.is_some_and(|last| asked(last) && now.since(last) < COMPANY);
        if !company && self.expects_company(now) {
            let last = self.company.unwrap_or(self.began).max(self.alive);
            at = at.max(last.after(ALONE));
        }
        let own = self.rank_of(now, &self.own)?;
        // The silent owner itself is heard of lately enough to look alive.
        let holder = self.holder();
        let better =
            |node: &&NodeId| Some(**node) != holder && self.rank_of(now, node).is_some_and(|rank| rank < own);
        let ahead = u32::try_from(self.peers.keys().filter(better).count()).unwrap_or(u32::MAX);
        if cause == Gain::Vacant {
            // Nodes that start together: the better one comes in a moment, and would not take it back.
            let coming = |(node, peer): (&NodeId, &CandidatePeer)| {
                peer.candidate_state == CandidateState::Listening
                    && now.since(peer.heard) < LIVE
                    && self.rules.rank(node, &CandidateState::Fit)
                        < self.rules.rank(&self.own, &CandidateState::Fit)
            };
            if self.peers.iter().any(coming) {
                at = at.max(suspicion.since.after(LISTEN));
            }
        }
        Some((self.vetoed(at), ahead))
    }

    /// Whether somebody other than the holder should answer: a candidate that was there a moment ago, or a
    /// witness.
    fn expects_company(&self, now: Moment) -> bool {
        let holder = self.holder();
        let lately = |(node, peer): (&NodeId, &CandidatePeer)| {
            Some(*node) != holder && now.since(peer.heard) < Duration::from_secs(3)
        };
        !self.rules.witnesses.is_empty() || self.peers.iter().any(lately)
    }

    fn claim(&mut self, now: Moment, cause: Gain) {
        let Some(priority) = self.rules.candidate(&self.own).map(|one| one.priority) else { return };
        let Some(epoch) = self.next_epoch() else { return };
        let from = self.known.map(|known| known.claim.owner).filter(|owner| *owner != self.own);
        let claim = Claim::new(self.address, epoch, priority, self.own);
        self.actions.push(Action::Add { lifetime: LIFETIME });
        let mut ownership = Ownership::new(now);
        let next = ownership.poll(now, &mut self.actions);
        self.wake(next);
        self.ownership = Some(ownership);
        self.adopt_claim(now, HighestClaim { claim, holding: Holding::Held });
        self.note_move(now);
        self.notify(VipEvent::Gained { epoch: claim.epoch, from, cause });
        self.announce_news(now, NewsAudience::Everyone);
    }

    /// When a time of listening is over.
    fn listened(&self, listen: ListenWindow) -> Moment {
        let awaited = |one: &Candidate| {
            let heard = self.peers.get(&one.node).is_some_and(|peer| peer.heard >= listen.from);
            one.node != self.own && one.unfit.is_none() && !heard
        };
        let time = match () {
            () if !listen.full => LISTEN_LATE,
            () if self.rules.candidates.iter().any(awaited) => LISTEN_FULL,
            () => LISTEN,
        };
        listen.from.after(time)
    }
}
