//! Speaking and hearing: when a node beats to whom, and what it learns from what others say.

use std::time::Duration;

use super::action::{Action, LossReason, VipEvent};
use super::authority::SenderRole;
use super::rank::{CandidateState, NEAR_WITNESSES};
use super::wire::{Claim, HighestClaim, Holding, MessageKind, ReleaseReason, VipMessage};
use super::{
    BACKUP_BEAT, BEAT, CandidatePeer, Election, EligibilityFact, FAR_BEAT, LIVE, NEAR_BEAT, NewsAudience,
    RECENT, REPEATS,
};
use crate::node::NodeId;
use crate::time::Moment;

/// Which of the witnesses that are not asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum UnaskedWitnesses {
    None,
    Share(u64),
    All,
}

impl Election {
    /// Takes in what a member has said of this VIP. The shell has made sure that `from` said it.
    pub fn receive(&mut self, now: Moment, from: NodeId, message: &VipMessage) {
        if from == self.own || message.vip != self.address {
            return;
        }
        self.next = now;
        self.record_candidate(now, from, &message.state);
        let speaker = self.speaker(now, &from);
        if self.holder() != Some(from) {
            self.company = Some(now);
            if speaker != SenderRole::Worker {
                self.trusted_company = Some(now);
            }
        }
        let believed = match speaker {
            SenderRole::Candidate | SenderRole::Master => {
                message.known.filter(|theirs| self.is_plausible(theirs.claim.epoch))
            }
            SenderRole::Worker => {
                // Its own claim can be of the time when it was a candidate: that it gives it up is good news.
                let own = |theirs: &HighestClaim| self.is_release_of_holder(from, theirs);
                let own = message.known.filter(own);
                let seconded = self.witness(now, from, message.known, message.heard);
                own.or(message.known.filter(|_| seconded))
            }
        };
        if let Some(theirs) = believed {
            self.merge_knowledge(now, from, theirs, message.heard);
            let outdated =
                theirs.holder() == Some(from) && self.known.is_some_and(|known| known.claim > theirs.claim);
            if outdated {
                self.correct_owner(now, from, theirs.claim);
            }
        }
        match message.purpose {
            MessageKind::Ask => self.send(now, vec![from], MessageKind::Answer),
            MessageKind::Move(to)
                if self.ownership.is_some()
                    && self.rules.is_master(&from)
                    && self.rank_of(now, &to).is_some()
                    && to != self.own =>
            {
                self.release(now, ReleaseReason::Move, Some(to));
            }
            MessageKind::Beat | MessageKind::Answer | MessageKind::Move(_) | MessageKind::Other(_) => {}
        }
    }

    fn is_release_of_holder(&self, from: NodeId, theirs: &HighestClaim) -> bool {
        theirs.holding != Holding::Held
            && self.holder() == Some(from)
            && self.known.is_some_and(|mine| mine.claim == theirs.claim)
    }

    /// Remembers how a candidate stands.
    fn record_candidate(&mut self, now: Moment, from: NodeId, candidate_state: &CandidateState) {
        if self.rules.candidate(&from).is_none() {
            return;
        }
        let fit = *candidate_state == CandidateState::Fit;
        let before = self.peers.get(&from).filter(|peer| now.since(peer.heard) < LIVE);
        if before.is_none()
            && let Some(ownership) = &mut self.ownership
        {
            // It was cut off, may have owned it there, and may have let go before this node could notice:
            // clients on its side must hear this one again.
            ownership.announce_again(now);
        }
        let since = before.and_then(|peer| peer.fit_since).or(Some(now)).filter(|_| fit);
        let peer = CandidatePeer { heard: now, candidate_state: candidate_state.clone(), fit_since: since };
        self.peers.insert(from, peer);
    }

    /// Merges what another knows: the higher claim, released rather than held, heard rather later.
    fn merge_knowledge(&mut self, now: Moment, from: NodeId, theirs: HighestClaim, heard: Option<Duration>) {
        let mine = self.known;
        let himself = theirs.claim.owner == from;
        match mine.map(|mine| theirs.claim.cmp(&mine.claim)) {
            Some(std::cmp::Ordering::Less) => {}
            Some(std::cmp::Ordering::Equal) => {
                let held = self.holder().is_some();
                match theirs.holding {
                    // Its own claim: nobody knows better than this node.
                    _ if theirs.claim.owner == self.own => {}
                    Holding::Released { successor, .. } if held => {
                        self.adopt_claim(now, theirs);
                        self.handed = himself && successor == Some(self.own);
                    }
                    Holding::Held if held && himself => {
                        self.direct = Some(now);
                        self.alive = now;
                        self.refused = false;
                    }
                    Holding::Held if held => {
                        self.alive = self.alive.max(ago(now, heard));
                    }
                    _ => {}
                }
            }
            Some(std::cmp::Ordering::Greater) | None => self.higher_claim(now, from, theirs, heard),
        }
    }

    /// A higher claim than any that was known.
    fn higher_claim(&mut self, now: Moment, from: NodeId, theirs: HighestClaim, heard: Option<Duration>) {
        let himself = theirs.claim.owner == from;
        let stands = theirs.holding == Holding::Held
            && theirs.claim.owner != self.own
            && (himself || heard.is_some_and(|age| age < RECENT));
        if let Some(mine) = self.known.filter(|_| self.ownership.is_some()) {
            if !stands {
                // Its holder is gone or has released it: the address is here, only the number is too low.
                self.floor = self.floor.max(theirs.claim.epoch);
                return self.claim_new_epoch(now, mine);
            }
            self.ownership = None;
            self.actions.push(Action::Delete);
            let to = Some(theirs.claim.owner);
            self.notify(VipEvent::Lost { epoch: mine.claim.epoch, to, cause: LossReason::Higher });
        }
        let before_it = self.known;
        if theirs.claim.owner == self.own {
            // Said of an earlier start of this agent, which has left nothing.
            let holding = match theirs.holding {
                Holding::Held => Holding::Released { why: ReleaseReason::Restart, successor: None },
                released => released,
            };
            self.adopt_claim(now, HighestClaim { claim: theirs.claim, holding });
            return self.announce_news(now, NewsAudience::Everyone);
        }
        self.adopt_claim(now, theirs);
        match theirs.holding {
            Holding::Held => {
                if himself {
                    self.direct = Some(now);
                } else if heard.is_some() {
                    self.alive = ago(now, heard);
                }
                self.owner_changed(now, before_it, theirs.claim);
            }
            Holding::Released { successor, .. } => self.handed = himself && successor == Some(self.own),
        }
        self.announce_news_if_candidate(now);
    }

    fn owner_changed(&mut self, now: Moment, before: Option<HighestClaim>, claim: Claim) {
        if self.moving.is_some_and(|(to, _)| to == claim.owner) {
            self.moving = None;
        }
        let from = before.map(|known| known.claim.owner);
        if from == Some(claim.owner) && before.is_some_and(|known| known.holding == Holding::Held) {
            return;
        }
        let cause = before.and_then(|known| match known.holding {
            Holding::Released { why, .. } => Some(why),
            Holding::Held => None,
        });
        self.note_move(now);
        self.actions.push(Action::Neighbour { owner: claim.owner });
        self.notify(VipEvent::Moved { epoch: claim.epoch, from, to: claim.owner, cause });
    }

    /// An owner speaks that has missed a higher claim: whoever hears it tells it, so that two owners that
    /// can't hear each other part when one witness hears both.
    fn correct_owner(&mut self, now: Moment, from: NodeId, claim: Claim) {
        if let Some(ownership) = &mut self.ownership
            && ownership.announce_again(now)
        {
            let epoch = self.known.map_or(claim.epoch, |known| known.claim.epoch);
            self.notify(VipEvent::Contested { epoch, by: from });
        }
        self.send(now, vec![from], MessageKind::Answer);
    }

    /// Sends what is due: beats, news, wishes.
    pub(super) fn send_due_messages(&mut self, now: Moment) {
        let candidate_state = self.candidate_state(now);
        if std::mem::discriminant(&candidate_state) != std::mem::discriminant(&self.said) {
            let was_mute = self.is_off_segment() && !self.said.is_eligible();
            self.said = candidate_state;
            if !was_mute {
                self.announce_news(now, NewsAudience::Candidates);
            }
        }
        let mut audience = None;
        if let Some((to, count, at)) = self.news {
            if now >= at {
                audience = Some(to);
                self.news = REPEATS.get(count).map(|wait| (to, count + 1, now.after(*wait)));
            }
            if let Some((_, _, at)) = self.news {
                self.wake(at);
            }
        }
        let owns = self.ownership.is_some();
        let candidate = self.rules.candidate(&self.own).is_some() && !self.is_off_segment();
        let mut beat = false;
        if owns || candidate {
            let every = if owns { BEAT } else { BACKUP_BEAT };
            beat = now >= self.beat;
            // Multiples of the beat: all VIPs of a node speak in one datagram.
            let tick = millis(every);
            let next = Moment::from_millis((now.as_millis() / tick + 1) * tick);
            if beat || self.beat > next {
                self.beat = next;
            }
            self.wake(self.beat);
        }
        if beat || audience.is_some() {
            let all = audience == Some(NewsAudience::Everyone);
            let is_tick = |every: Duration| beat && owns && now.as_millis() % millis(every) < millis(BEAT);
            let share = (beat && owns).then(|| now.as_millis() % millis(FAR_BEAT) / millis(BEAT));
            let far = if all {
                UnaskedWitnesses::All
            } else {
                share.map_or(UnaskedWitnesses::None, UnaskedWitnesses::Share)
            };
            let to = self.others(all || is_tick(NEAR_BEAT), far);
            self.send(now, to, MessageKind::Beat);
        }
        self.repeat_move_request(now, beat);
    }

    fn repeat_move_request(&mut self, now: Moment, beat: bool) {
        match (self.moving, self.holder()) {
            (Some((to, until)), Some(holder)) if now < until && holder != to => {
                if beat {
                    self.send(now, vec![holder], MessageKind::Move(to));
                }
            }
            _ => self.moving = None,
        }
    }

    /// Without a segment nothing is said of this VIP, unless somebody asks.
    fn is_off_segment(&self) -> bool {
        !self.fitness.holds(EligibilityFact::Segment)
    }

    /// Says what this node knows now, and a few times again.
    pub(super) fn announce_news(&mut self, now: Moment, to: NewsAudience) {
        let audience = self.news.map_or(to, |(before, _, _)| before.max(to));
        self.news = Some((audience, 0, now));
    }

    /// A backup says at once that it has seen a new owner, so that it is not asked for it later.
    fn announce_news_if_candidate(&mut self, now: Moment) {
        if self.said.is_eligible() {
            self.beat = self.beat.min(now);
        }
    }

    /// The other candidates, and witnesses if wanted: those that are asked, the rest.
    pub(super) fn others(&self, near: bool, far: UnaskedWitnesses) -> Vec<NodeId> {
        let shares = millis(FAR_BEAT) / millis(BEAT);
        let wanted = |at: usize| match far {
            _ if at < NEAR_WITNESSES => near,
            UnaskedWitnesses::None => false,
            UnaskedWitnesses::Share(share) => at as u64 % shares == share,
            UnaskedWitnesses::All => true,
        };
        let candidates = self.rules.candidates.iter().map(|one| one.node);
        let witnesses = self.rules.witnesses.iter().enumerate().filter(|(at, _)| wanted(*at));
        candidates.filter(|node| *node != self.own).chain(witnesses.map(|(_, node)| *node)).collect()
    }

    pub(super) fn send(&mut self, now: Moment, to: Vec<NodeId>, purpose: MessageKind) {
        if to.is_empty() {
            return;
        }
        let owns = self.ownership.is_some();
        let heard = if owns { Some(Duration::ZERO) } else { self.direct.map(|at| now.since(at)) };
        let message = VipMessage {
            vip: self.address,
            purpose,
            known: self.known,
            heard: heard.filter(|age| *age < Duration::from_secs(60)),
            state: self.candidate_state(now),
        };
        self.actions.push(Action::Send { to, message });
    }
}

/// The moment so long before now; without an age, long ago.
fn ago(now: Moment, age: Option<Duration>) -> Moment {
    age.map_or(Moment::ZERO, |age| Moment::from_millis(now.as_millis().saturating_sub(millis(age))))
}

pub(super) fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}
