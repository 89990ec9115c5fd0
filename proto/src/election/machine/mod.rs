//! The state machine of one VIP at one node. It decides nothing alone: each of its parts does one thing, and it hands
//! what comes in to those that it concerns and puts what they decide into actions.

mod resume;
mod standing;

use std::net::IpAddr;
use std::time::Duration;

use super::action::{Action, ElectionStatus, Gain, LossReason, MoveError, VipEvent};
use super::beats::{Audience, BeatPace, BeatSchedule, NewsAudience};
use super::claims::Comparison;
use super::contest::{Contenders, Contest};
use super::eligibility::{EligibilityFact, VipEligibility};
use super::knowledge::{Evidence, OwnerKnowledge};
use super::move_request::MoveRequest;
use super::owner::RECENT;
use super::ownership::{ConflictResponse, LIFETIME, Ownership};
use super::peers::CandidatePeers;
use super::rank::{CandidateState, VipRules};
use super::resumed::Resumed;
use super::status::{StatusFacts, starting};
use super::wakeup::Wakeup;
use super::wire::{Claim, HighestClaim, Holding, MessageKind, ReleaseReason, VipMessage};
use crate::arp::Mac;
use crate::node::NodeId;
use crate::time::Moment;
use crate::unfit::Unfit;

/// How late the loop may be before silence is this node's own fault.
const LATE: Duration = Duration::from_millis(150);

/// How late an owner's loop may be before the address is dropped: others have taken over, or had to.
const STALL: Duration = Duration::from_millis(1_500);

/// How long a stopping owner stays to say again that it has released.
const FAREWELL: Duration = Duration::from_millis(60);

/// One VIP, as one node sees it and takes part in it.
#[derive(Debug, Clone)]
pub struct Election {
    own: NodeId,
    address: IpAddr,
    rules: VipRules,
    /// Whether this node could own it.
    eligibility: VipEligibility,
    /// Who does.
    knowledge: OwnerKnowledge,
    /// Who else could.
    peers: CandidatePeers,
    /// Whether this node claims.
    contest: Contest,
    /// What it does as owner.
    ownership: Option<Ownership>,
    move_request: MoveRequest,
    /// It takes part no more, and has said so by then.
    stopping: Option<Moment>,
    /// It owns what another process of this node has owned.
    resumed: Option<Resumed>,
    beats: BeatSchedule,
    /// This process is about to be replaced by another that owns on.
    pausing: bool,
    wakeup: Wakeup,
    actions: Vec<Action>,
}

/// Inputs.
impl Election {
    /// This node's view of a VIP. It knows nobody, is unfit until a check and the segment's test say
    /// otherwise, and its first action deletes what an earlier agent may have left.
    pub fn new(own: NodeId, address: IpAddr, now: Moment) -> Election {
        Election {
            own,
            address,
            rules: VipRules::default(),
            eligibility: VipEligibility::new(),
            knowledge: OwnerKnowledge::new(own, now),
            peers: CandidatePeers::default(),
            contest: Contest::new(now),
            ownership: None,
            move_request: MoveRequest::default(),
            stopping: None,
            resumed: None,
            beats: BeatSchedule::new(now),
            pausing: false,
            wakeup: Wakeup::new(now),
            actions: vec![Action::Delete],
        }
    }

    /// Follows configuration and membership.
    pub fn set_rules(&mut self, now: Moment, rules: VipRules) {
        let was = self.rules.candidate(&self.own).is_some();
        self.rules = rules.normalized(self.own);
        self.peers.retain(&self.rules);
        self.knowledge.rules_changed(now, &self.rules);
        if !was && self.rules.candidate(&self.own).is_some() {
            self.contest.join();
        }
        self.wakeup.at_once(now);
    }

    /// An epoch of an earlier agent of this node, from its disk: the next claim is higher. One that can't be
    /// is not believed; false then.
    pub fn set_minimum_epoch(&mut self, epoch: u64) -> bool {
        self.knowledge.restore_epoch(epoch)
    }

    /// An epoch that a member gossips to own the VIP with: slower than its beats, for those who hear none.
    pub fn gossiped(&mut self, now: Moment, from: &NodeId, epoch: u64) {
        self.knowledge.gossiped(now, &self.rules, from, epoch);
    }

    /// What must hold apart from health; others are told the reason in a few ASCII words.
    pub fn set_fact(&mut self, now: Moment, fact: EligibilityFact, holds: Result<(), Unfit>) {
        self.eligibility.set(fact, holds);
        self.wakeup.at_once(now);
    }

    /// One check of the service that the VIP fronts, repeated every 250 to 500 ms: three bad ones in a
    /// row make this node unfit, after ten good ones it is as good as any. The first is believed.
    pub fn checked(&mut self, now: Moment, outcome: Result<(), Unfit>) {
        self.eligibility.checked(outcome);
        self.wakeup.at_once(now);
    }

    /// What the interface has: told when it changes, after looking (an event may be older than the last
    /// action).
    pub fn address(&mut self, now: Moment, present: bool) {
        match &mut self.ownership {
            Some(ownership) if !present => ownership.removed(),
            None if self.resumed.is_some() => {}
            None if present && self.contest.found_here(now) => {
                self.actions.push(Action::Delete);
                self.notify(VipEvent::Cleaned);
            }
            _ => {}
        }
        self.wakeup.at_once(now);
    }

    /// A hardware address other than this node's was seen to have the VIP: it answered a probe, or announced
    /// it, or asks with it as source. `member`: whose it is, by what members gossip.
    pub fn address_sighted(&mut self, now: Moment, mac: Mac, member: Option<NodeId>) {
        self.wakeup.at_once(now);
        let appears = member.is_none() && self.contest.stranger_sighted(now, mac);
        match (&mut self.ownership, member) {
            (None, Some(_)) => self.contest.member_sighted(now),
            (None, None) if appears => self.notify(VipEvent::Stranger { mac, defended: false }),
            (None, None) => {}
            // A member that answers is a leftover, which goes by itself, or an owner, with whom beats settle
            // it; clients that heard it must hear this one again.
            (Some(ownership), Some(_)) => drop(ownership.announce_again(now)),
            (Some(ownership), None) => match ownership.conflicting_address(now) {
                ConflictResponse::Nothing => {}
                ConflictResponse::Defend => self.notify(VipEvent::Stranger { mac, defended: true }),
                ConflictResponse::Yield => {
                    self.notify(VipEvent::Stranger { mac, defended: false });
                    self.release(now, ReleaseReason::Stranger, None);
                }
            },
        }
    }

    /// The machine of this peer answers that nothing listens on the link's port: its agent is gone, so that
    /// an answer to a probe comes from what it has left.
    pub fn refused(&mut self, now: Moment, peer: &NodeId) {
        if self.knowledge.refused(peer) {
            self.wakeup.at_once(now);
        }
    }

    /// A person wants the VIP on this node. Done when status says so; this only begins it.
    ///
    /// # Errors
    /// Why it can't be.
    pub fn move_to(&mut self, now: Moment, to: NodeId) -> Result<(), MoveError> {
        let holder = self.knowledge.holder().ok_or(MoveError::NoOwner)?;
        if holder == to {
            return Err(MoveError::Already);
        }
        if self.rules.candidate(&to).is_none() {
            return Err(MoveError::NotCandidate);
        }
        match self.state_of(now, &to).ok_or(MoveError::NotHeard)? {
            CandidateState::Unfit(reason) => return Err(MoveError::Unfit(reason)),
            CandidateState::Listening => return Err(MoveError::Unfit(starting())),
            _ => {}
        }
        self.wakeup.at_once(now);
        // Also where this node owns it: the successor may be unable to claim at this moment, and another does.
        self.move_request.begin(now, to);
        if self.ownership.is_some() {
            self.release(now, ReleaseReason::Move, Some(to));
        } else {
            self.send(now, vec![holder], MessageKind::Move(to));
        }
        Ok(())
    }

    /// Let go and take part no more. The shell goes on until [`Election::is_finished`].
    pub fn stop(&mut self, now: Moment) {
        if self.stopping.is_some() {
            return;
        }
        self.stopping = Some(if self.owns() { now.after(FAREWELL) } else { now });
        self.release(now, ReleaseReason::Stop, self.peers.best(now, &self.rules));
        self.wakeup.at_once(now);
    }

    /// This node's own loop was late by so long: found by [`Election::poll`] itself against its deadline;
    /// for a shell that knows better. Nobody is accused of a silence that was not listened to.
    pub fn loop_stalled(&mut self, now: Moment, by: Duration) {
        self.wakeup.at_once(now);
        if by >= STALL {
            self.release(now, ReleaseReason::Stall, None);
        }
        if by >= LATE {
            self.knowledge.excuse_silence(now);
            self.contest.interrupted(now);
        } else {
            self.contest.loop_stalled(now, by);
        }
    }
}

/// Outputs.
impl Election {
    /// When [`Election::poll`] has something to do by itself.
    pub fn deadline(&self) -> Moment {
        self.wakeup.deadline()
    }

    /// Does what is due, and returns everything that is to be carried out.
    pub fn poll(&mut self, now: Moment) -> Vec<Action> {
        self.loop_stalled(now, self.wakeup.lateness(now));
        self.wakeup.begin(now);
        self.maintain_resumed(now);
        self.maintain_ownership(now);
        self.contend(now);
        self.send_due_messages(now);
        self.wakeup.end(now);
        std::mem::take(&mut self.actions)
    }

    /// Whether a stopped election has said all it has to say.
    pub fn is_finished(&self, now: Moment) -> bool {
        self.stopping.is_some_and(|over| now >= over)
    }

    /// Whether this node owns the VIP.
    pub fn owns(&self) -> bool {
        self.ownership.is_some()
    }

    /// Whether this node takes another one for the owner, and has nothing in hand against that: a beat of it that
    /// repeats the last one may be received later, as of when it came.
    pub fn follows(&self, owner: &NodeId) -> bool {
        self.knowledge.holder() == Some(*owner) && self.ownership.is_none() && self.resumed.is_none()
    }

    /// Whether another candidate says what this node knows already: who owns it, and how that candidate stands. When it
    /// last heard the owner may be news, but none that anybody has to be woken for.
    pub fn knows_all_of(&self, now: Moment, from: &NodeId, message: &VipMessage) -> bool {
        let known = self.knowledge.highest().filter(|known| known.holder().is_some_and(|one| one != *from));
        message.purpose == MessageKind::Beat
            && known.is_some()
            && message.known == known
            && self.resumed.is_none()
            && self.peers.state(now, from) == Some(&message.state)
    }

    /// The highest epoch that is known, for the disk and gossip, and for [`Election::set_minimum_epoch`] later.
    pub fn epoch(&self) -> u64 {
        self.knowledge.highest_epoch()
    }

    /// All there is to show.
    pub fn status(&self, now: Moment) -> ElectionStatus {
        let claims = self.knowledge.claims();
        let owner = claims.holder().filter(|_| self.owns() || self.knowledge.is_holder_remembered(now));
        let facts = StatusFacts {
            own: self.own,
            address: self.address,
            rules: &self.rules,
            owner: owner.map(|owner| (owner, claims.owner_since())),
            epoch: claims.epoch().unwrap_or(0),
            stranger: self.contest.stranger(now),
        };
        facts.status(|node| self.state_of(now, node))
    }

    /// Why this node is only recovering; none: it is not.
    pub fn recovery(&self, now: Moment) -> Option<Unfit> {
        (self.candidate_state(now) == CandidateState::Recovering).then(|| self.eligibility.recovery(now))
    }

    fn notify(&mut self, event: VipEvent) {
        self.actions.push(Action::Event(event));
    }

    fn send(&mut self, now: Moment, to: Vec<NodeId>, purpose: MessageKind) {
        if to.is_empty() {
            return;
        }
        let purpose = self.purpose(purpose);
        let direct = self.knowledge.heard_directly().map(|at| now.since(at));
        let heard = if self.owns() { Some(Duration::ZERO) } else { direct };
        let message = VipMessage {
            vip: self.address,
            purpose,
            known: self.knowledge.highest(),
            heard: heard.filter(|age| *age < Duration::from_secs(60)),
            state: self.candidate_state(now),
        };
        self.actions.push(Action::Send { to, message });
    }

    /// Sends what is due: beats, news, wishes.
    fn send_due_messages(&mut self, now: Moment) {
        // Without a segment nothing is said of this VIP, unless somebody asks.
        let off_segment = !self.eligibility.holds(EligibilityFact::Segment) && self.resumed.is_none();
        self.beats.follow_state(now, self.candidate_state(now), off_segment);
        let pace = match self.rules.candidate(&self.own) {
            _ if self.owns() => BeatPace::Owner,
            Some(_) if !off_segment => BeatPace::Backup,
            _ => BeatPace::Silent,
        };
        let (beat, audience) = self.beats.poll(now, pace);
        self.wakeup.by(self.beats.deadline(pace));
        if let Some(audience) = audience {
            self.send(now, audience.nodes(self.own, &self.rules), MessageKind::Beat);
        }
        let request = self.move_request.poll(now, self.knowledge.holder());
        if let Some((holder, to)) = request.filter(|(holder, _)| beat && *holder != self.own) {
            self.send(now, vec![holder], MessageKind::Move(to));
        }
    }
}

/// What others say.
impl Election {
    /// Takes in what a member has said of this VIP. The shell has made sure that `from` said it.
    pub fn receive(&mut self, now: Moment, from: NodeId, message: &VipMessage) {
        if from == self.own || message.vip != self.address {
            return;
        }
        self.wakeup.at_once(now);
        if self.rules.candidate(&from).is_some()
            && self.peers.record(now, from, &message.state)
            && let Some(ownership) = &mut self.ownership
        {
            // It was cut off, may have owned it there, and may have let go before this node could notice:
            // clients on its side must hear this one again.
            ownership.announce_again(now);
        }
        match self.knowledge.hear(now, &self.rules, from, message) {
            Evidence::None => {}
            Evidence::Believed(theirs) => {
                match self.knowledge.compare(now, from, &theirs, message.heard) {
                    Comparison::Known | Comparison::Held => {}
                    Comparison::Released => self.adopt_claim(now, theirs, from),
                    Comparison::Higher => self.higher_claim(now, from, theirs, message.heard),
                }
                if theirs.holder() == Some(from) && self.knowledge.claims().is_above(&theirs.claim) {
                    self.correct_owner(now, from, theirs.claim);
                }
            }
            Evidence::HigherEpoch => {
                if self.owns()
                    && let Some(mine) = self.knowledge.begin_lift(now)
                {
                    self.claim_new_epoch(now, mine);
                }
            }
        }
        match message.purpose {
            MessageKind::Ask => self.send(now, vec![from], MessageKind::Answer),
            MessageKind::Move(to)
                if self.owns()
                    && self.rules.is_master(&from)
                    && self.rank_of(now, &to).is_some()
                    && to != self.own =>
            {
                self.release(now, ReleaseReason::Move, Some(to));
            }
            MessageKind::Pausing => self.heard_of_pause(now, from),
            MessageKind::Beat | MessageKind::Answer | MessageKind::Move(_) | MessageKind::Other(_) => {}
        }
    }

    /// A higher claim than any that was known.
    fn higher_claim(&mut self, now: Moment, from: NodeId, theirs: HighestClaim, heard: Option<Duration>) {
        let held_by_other = theirs.holding == Holding::Held && theirs.claim.owner != self.own;
        let lately = theirs.claim.owner == from || heard.is_some_and(|age| age < RECENT);
        let before = self.knowledge.highest();
        if let Some(mine) = before.filter(|_| self.owns()) {
            if !(held_by_other && lately) {
                // Its holder is gone or has released it: the address is here, only the number is too low.
                self.knowledge.raise_epoch(theirs.claim.epoch);
                return self.claim_new_epoch(now, mine);
            }
            self.ownership = None;
            self.actions.push(Action::Delete);
            let to = Some(theirs.claim.owner);
            self.notify(VipEvent::Lost { epoch: mine.claim.epoch, to, cause: LossReason::Higher });
        }
        if theirs.claim.owner == self.own && self.resumed.is_some() {
            return; // it is about to be owned again
        }
        if theirs.claim.owner == self.own {
            // Said of an earlier start of this agent, which has left nothing.
            let ended = HighestClaim { holding: Holding::RESTARTED, ..theirs };
            self.adopt_claim(now, if theirs.holder().is_some() { ended } else { theirs }, from);
            return self.beats.announce(now, NewsAudience::Everyone);
        }
        self.adopt_claim(now, theirs, from);
        if held_by_other {
            self.knowledge.first_heard(now, from, &theirs.claim, heard);
            self.owner_changed(now, before, theirs.claim);
        }
        self.beats.owner_changed(now);
    }

    fn owner_changed(&mut self, now: Moment, before: Option<HighestClaim>, claim: Claim) {
        self.move_request.owner_changed(claim.owner);
        let from = before.map(|known| known.claim.owner);
        if before.and_then(|known| known.holder()) == Some(claim.owner) {
            return;
        }
        let cause = before.and_then(|known| known.release_reason());
        self.knowledge.note_move(now);
        self.actions.push(Action::Neighbour { owner: claim.owner });
        self.notify(VipEvent::Moved { epoch: claim.epoch, from, to: claim.owner, cause });
    }

    /// An owner speaks that has missed a higher claim: whoever hears it tells it, so that two owners that
    /// can't hear each other part when one witness hears both.
    fn correct_owner(&mut self, now: Moment, from: NodeId, claim: Claim) {
        if let Some(ownership) = &mut self.ownership
            && ownership.announce_again(now)
        {
            let epoch = self.knowledge.claims().epoch().unwrap_or(claim.epoch);
            self.notify(VipEvent::Contested { epoch, by: from });
        }
        self.send(now, vec![from], MessageKind::Answer);
    }

    /// Takes this as what is known. A release counts as a handover if its owner says so itself.
    fn adopt_claim(&mut self, now: Moment, known: HighestClaim, from: NodeId) {
        self.knowledge.adopt(now, &self.rules, known);
        let handed = from != self.own && known.claim.owner == from && known.names(self.own);
        self.contest.claim_changed(handed);
    }
}

/// Owning, and letting go.
impl Election {
    /// What an owner does.
    fn maintain_ownership(&mut self, now: Moment) {
        if self.ownership.is_none() {
            return;
        }
        let why = match self.candidate_state(now) {
            CandidateState::Witness => Some(ReleaseReason::Rules),
            CandidateState::Unfit(_) if !self.eligibility.holds(EligibilityFact::Draining) => {
                Some(ReleaseReason::Drain)
            }
            CandidateState::Unfit(_) => Some(ReleaseReason::Unfit),
            _ => None,
        };
        if let Some(why) = why {
            if why == ReleaseReason::Unfit {
                self.eligibility.lost(now);
            }
            return self.release(now, why, self.peers.best(now, &self.rules));
        }
        if let Some(better) = self.preferred(now) {
            return self.release(now, ReleaseReason::Preempt, Some(better));
        }
        if let Some(ownership) = &mut self.ownership {
            self.wakeup.by([ownership.poll(now, &mut self.actions)]);
        }
    }

    /// Lets the address go, if this node has it: it is deleted before anyone hears of it.
    fn release(&mut self, now: Moment, why: ReleaseReason, successor: Option<NodeId>) {
        let Some(known) = self.knowledge.highest().filter(|_| self.owns()) else { return };
        self.ownership = None;
        self.actions.push(Action::Delete);
        let holding = Holding::Released { why, successor };
        self.adopt_claim(now, HighestClaim { claim: known.claim, holding }, self.own);
        let (epoch, cause) = (known.claim.epoch, LossReason::Released(why));
        self.notify(VipEvent::Lost { epoch, to: successor, cause });
        self.beats.announce(now, NewsAudience::Everyone);
    }

    /// An owner claims what it has anew, above an epoch whose owner is gone: the address stays.
    fn claim_new_epoch(&mut self, now: Moment, mine: HighestClaim) {
        let Some(epoch) = self.knowledge.next_epoch() else { return };
        let claim = Claim::new(self.address, epoch, mine.claim.priority, mine.claim.owner);
        self.adopt_claim(now, HighestClaim { claim, holding: Holding::Held }, self.own);
        self.beats.announce(now, NewsAudience::Everyone);
    }

    /// The node that has been better, and fit for long enough, while the owner did not change often.
    fn preferred(&self, now: Moment) -> Option<NodeId> {
        // Counted from the claim too: who has just died or handed over still looks fit for a moment.
        let wait = self.rules.preempt?.max(RECENT);
        let claims = self.knowledge.claims();
        if now.since(claims.changed()) < wait || claims.is_restless(now) {
            return None;
        }
        let own = self.rules.candidate(&self.own)?.priority;
        let best = self.peers.best(now, &self.rules)?;
        let better = self.rules.candidate(&best)?.priority > own;
        (better && self.peers.is_fit_for(now, &best, wait)).then_some(best)
    }
}

/// Claiming.
impl Election {
    /// What a candidate does about an owner that is silent or gone.
    fn contend(&mut self, now: Moment) {
        let Election { own, ref rules, ref knowledge, ref peers, .. } = *self;
        let all = Contenders { own, rules, knowledge, peers };
        self.wakeup.by(self.contest.listen(now, &all));
        let state = self.candidate_state(now);
        let rank = self.rules.rank(&self.own, &state).filter(|_| state.is_eligible() && !self.owns());
        let Some(rank) = rank else {
            self.contest.abandon();
            self.wakeup.by(self.eligibility.deadline(now));
            return;
        };
        let step = self.contest.poll(now, &all, rank);
        self.wakeup.by(step.next);
        if step.ask {
            self.send(now, Audience::ASKED.nodes(self.own, &self.rules), MessageKind::Ask);
            self.actions.push(Action::Probe);
        }
        if let Some(cause) = step.claim {
            self.claim(now, cause);
        }
    }

    fn claim(&mut self, now: Moment, cause: Gain) {
        let Some(priority) = self.rules.candidate(&self.own).map(|one| one.priority) else { return };
        let Some(epoch) = self.knowledge.next_epoch() else { return };
        let from = self.knowledge.highest().map(|known| known.claim.owner).filter(|owner| *owner != self.own);
        let claim = Claim::new(self.address, epoch, priority, self.own);
        self.actions.push(Action::Add { lifetime: LIFETIME });
        let mut ownership = Ownership::new(now);
        self.wakeup.by([ownership.poll(now, &mut self.actions)]);
        self.ownership = Some(ownership);
        self.adopt_claim(now, HighestClaim { claim, holding: Holding::Held }, self.own);
        self.knowledge.note_move(now);
        self.notify(VipEvent::Gained { epoch: claim.epoch, from, cause });
        self.beats.announce(now, NewsAudience::Everyone);
    }
}

#[cfg(test)]
impl Election {
    pub(super) fn knowledge(&self) -> &OwnerKnowledge {
        &self.knowledge
    }

    /// No wait because of the start.
    pub(super) fn skip_listening(&mut self) {
        self.contest.skip_listening();
    }
}
