//! Who owns a virtual IP: elected by its candidates, witnessed by everyone else, without a quorum.
//!
//! Every member runs one [`Election`] for each VIP. Inputs are methods that take the time and values;
//! after any of them, and at [`Election::deadline`], the shell calls [`Election::poll`] and carries out the
//! actions in their order. A candidate goes this way:
//!
//! ```text
//!      start, candidate now,                      (fit) the owner is silent for 110 ms,
//!      woken after a stall                        released it, or there is none
//!             │                      ┌────────┐                        ┌──────────┐
//!             ▼          0.3 to 2 s  │        │ ─────────────────────► │ Doubting │ asks all others, probes
//!        Listening ────────────────► │ Backup │                        └──────────┘
//!                                    │        │ ◄───────────────────────┘   │ nobody has heard the owner for
//!                                    └────────┘  the owner is heard again,  │ 160 ms, no stranger answers,
//!                                     ▲  │       or a higher claim          │ 50 ms passed, and 50 ms more for
//!     higher claim heard: Delete      │  │                                  │ each better candidate: Add,
//!     stalled for 1.5 s: Delete       │  │ named as successor: at once      │ Announce, epoch + 1
//!     stop, drain, unfit, moved,      │  ▼                                  ▼
//!     preempted, stranger: Delete,   ┌───────────────────────────────────────┐
//!     name a successor, if any       │ Owner: beats, renews, announces,      │
//!                                    │ looks for others with the address     │
//!                                    └───────────────────────────────────────┘
//! ```
//!
//! # Why it is safe, and where not
//!
//! What nodes tell each other only grows ([`HighestClaim`]): a higher claim replaces a lower one, a release ends a
//! claim for ever. So messages may be lost, doubled or late. Any two owners that hear each other, or one
//! witness in common, agree at once who stays: the higher claim. An owner is never taken over while
//! anybody whom the candidate hears has heard it lately; what a worker says counts for less (`authority`). A
//! kernel removes the address by itself when it is not renewed. What can't be promised: sides of a partition
//! that no member bridges have an owner each, since there is no quorum; and a machine whose clock stood still
//! with its kernel (a paused VM) may answer until its first message after waking.

mod action;
mod authority;
mod candidacy;
mod eligibility;
mod limiter;
mod ownership;
mod rank;
mod receive;
mod status;
mod suspicion;
pub mod wire;

use std::collections::{BTreeMap, VecDeque};
use std::net::IpAddr;
use std::time::Duration;

pub use self::action::{
    Action, CandidateStatus, ElectionStatus, Gain, LossReason, MoveError, OwnershipState, VipEvent,
};
use self::authority::WorkerReports;
pub use self::authority::{CEILING, SOLO, STEP};
use self::eligibility::VipEligibility;
pub use self::eligibility::{EligibilityFact, FALL, RISE};
pub use self::limiter::{MessageLimiter, RATE};
pub use self::ownership::LIFETIME;
use self::ownership::{ConflictResponse, Ownership};
use self::rank::ClaimRank;
pub use self::rank::{Candidate, CandidateState, DEFAULT_PRIORITY, MAX_CANDIDATES, NEAR_WITNESSES, VipRules};
pub use self::suspicion::BEAT;
use self::suspicion::{OwnerSuspicion, WINDOW};
pub use self::wire::{Claim, HighestClaim, Holding, MessageKind, ReleaseReason, VipMessage};
use crate::arp::Mac;
use crate::cause::Cause;
use crate::node::NodeId;
use crate::time::Moment;
use crate::unfit::Unfit;

/// Time between two beats of a candidate that is not the owner: they only tell how it stands.
const BACKUP_BEAT: Duration = Duration::from_millis(200);

/// Time between two beats of an owner to the witnesses that are asked.
const NEAR_BEAT: Duration = Duration::from_millis(100);

/// The same to all other members, which only want to know who the owner is: a share of them at each beat,
/// since a thousand datagrams in one go would make the owner itself late.
const FAR_BEAT: Duration = Duration::from_secs(1);

/// News is said again after these times, since one message may be lost.
const REPEATS: [Duration; 3] =
    [Duration::from_millis(20), Duration::from_millis(50), Duration::from_millis(200)];

/// A candidate heard within this is alive: three of its beats.
const LIVE: Duration = Duration::from_millis(650);

/// What an owner that has missed a higher claim makes of it: when its holder was heard by anyone within
/// this, it stands down; else it takes a higher epoch itself.
const RECENT: Duration = Duration::from_secs(1);

/// How late the loop may be before silence is this node's own fault.
const LATE: Duration = Duration::from_millis(150);

/// How late an owner's loop may be before the address is dropped: others have taken over, or had to.
const STALL: Duration = Duration::from_millis(1_500);

/// Time to listen after the loop was late: the queue of old messages is read, new beats have come.
const LISTEN_LATE: Duration = Duration::from_millis(300);

/// Time to listen after a start when all candidates have been heard.
const LISTEN: Duration = Duration::from_millis(500);

/// The same while some have not: they may be starting too.
const LISTEN_FULL: Duration = Duration::from_secs(2);

/// A named successor has so long before everyone may claim.
const HANDOVER: Duration = Duration::from_millis(100);

/// A stranger that has not answered for so long is gone: two questions, one a second.
const STRANGER: Duration = Duration::from_millis(2_500);

/// How long a stopping owner stays to say again that it has released.
const FAREWELL: Duration = Duration::from_millis(60);

/// How long a wish to move is repeated.
const MOVING: Duration = Duration::from_secs(1);

/// Another candidate.
#[derive(Debug, Clone)]
struct CandidatePeer {
    heard: Moment,
    candidate_state: CandidateState,
    fit_since: Option<Moment>,
}

/// A time of listening before this node may claim.
#[derive(Debug, Clone, Copy)]
struct ListenWindow {
    from: Moment,
    /// It knows nothing yet, rather than nothing of the last moment.
    full: bool,
}

/// One VIP, as one node sees it and takes part in it.
#[derive(Debug, Clone)]
pub struct Election {
    own: NodeId,
    address: IpAddr,
    rules: VipRules,
    fitness: VipEligibility,
    floor: u64,
    /// What workers say of higher epochs: the next claim is above it.
    lifted: u64,
    lift_at: Option<Moment>,
    known: Option<HighestClaim>,
    /// Since when it listens without a gap.
    began: Moment,
    /// When `known` came to be what it is: claimed, or released.
    changed: Moment,
    /// Since when the owner is the owner.
    since: Moment,
    /// When this node itself heard the holder last.
    direct: Option<Moment>,
    /// The latest moment at which anyone is known to have heard the holder.
    alive: Moment,
    peers: BTreeMap<NodeId, CandidatePeer>,
    /// When a node other than the holder was heard last.
    company: Option<Moment>,
    /// The same of one whose word counts alone.
    trusted_company: Option<Moment>,
    workers: WorkerReports,
    /// The owner is no candidate any more, and is heard until then.
    lapses: Option<Moment>,
    listen: Option<ListenWindow>,
    ownership: Option<Ownership>,
    suspicion: Option<OwnerSuspicion>,
    /// This node is named as successor and shall claim at once.
    handed: bool,
    /// The holder's machine says that no agent runs there.
    refused: bool,
    stranger: Option<(Mac, Moment)>,
    cleaned: Option<Moment>,
    /// Changes of owner that were seen lately, for damping.
    moves: VecDeque<Moment>,
    moving: Option<(NodeId, Moment)>,
    stopping: Option<Moment>,
    said: CandidateState,
    beat: Moment,
    /// What is left of saying news, to whom and when next.
    news: Option<(NewsAudience, usize, Moment)>,
    actions: Vec<Action>,
    /// The deadline that the last poll has promised: the shell is late when it comes later.
    promised: Option<Moment>,
    next: Moment,
}

/// Who is to hear news.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum NewsAudience {
    Candidates,
    Everyone,
}

impl Election {
    /// This node's view of a VIP. It knows nobody, is unfit until a check and the segment's test say
    /// otherwise, and its first action deletes what an earlier agent may have left.
    pub fn new(own: NodeId, address: IpAddr, now: Moment) -> Election {
        Election {
            own,
            address,
            rules: VipRules::default(),
            fitness: VipEligibility::new(),
            floor: 0,
            lifted: 0,
            lift_at: None,
            known: None,
            began: now,
            changed: now,
            since: now,
            direct: None,
            alive: now,
            peers: BTreeMap::new(),
            company: None,
            trusted_company: None,
            workers: WorkerReports::default(),
            lapses: None,
            listen: None,
            ownership: None,
            suspicion: None,
            handed: false,
            refused: false,
            stranger: None,
            cleaned: None,
            moves: VecDeque::new(),
            moving: None,
            stopping: None,
            said: CandidateState::Witness,
            beat: now,
            news: None,
            actions: vec![Action::Delete],
            promised: None,
            next: now,
        }
    }

    /// Follows configuration and membership.
    pub fn set_rules(&mut self, now: Moment, rules: VipRules) {
        let was = self.rules.candidate(&self.own).is_some();
        self.rules = rules.normalized(self.own);
        let Election { peers, rules, .. } = self;
        peers.retain(|node, _| rules.candidate(node).is_some());
        self.lapse(now);
        if !was && self.rules.candidate(&self.own).is_some() {
            // As a witness it has listened already.
            self.listen = Some(ListenWindow { from: self.began, full: true });
        }
        self.next = now;
    }

    /// What must hold apart from health; others are told the reason in a few ASCII words.
    pub fn set_fact(&mut self, now: Moment, fact: EligibilityFact, holds: Result<(), Unfit>) {
        self.fitness.set(fact, holds);
        self.next = now;
    }

    /// One check of the service that the VIP fronts, repeated every 250 to 500 ms: [`FALL`] bad ones in a
    /// row make this node unfit, after [`RISE`] good ones it is as good as any. The first is believed.
    pub fn checked(&mut self, now: Moment, outcome: Result<(), Unfit>) {
        self.fitness.checked(outcome);
        self.next = now;
    }

    /// What the interface has: told when it changes, after looking (an event may be older than the last
    /// action).
    pub fn address(&mut self, now: Moment, present: bool) {
        match &mut self.ownership {
            Some(ownership) if !present => ownership.removed(),
            None if present && self.cleaned.is_none_or(|last| now.since(last) >= RECENT) => {
                self.cleaned = Some(now);
                self.actions.push(Action::Delete);
                self.actions.push(Action::Event(VipEvent::Cleaned));
            }
            _ => {}
        }
        self.next = now;
    }

    /// A hardware address other than this node's was seen to have the VIP: it answered a probe, or announced
    /// it, or asks with it as source. `member`: whose it is, by what members gossip.
    pub fn address_sighted(&mut self, now: Moment, mac: Mac, member: Option<NodeId>) {
        self.next = now;
        if member.is_none() {
            let known = self.stranger.is_some_and(|(_, last)| now.since(last) < STRANGER);
            self.stranger = Some((mac, now));
            if self.ownership.is_none() && !known && self.suspicion.is_some() {
                self.notify(VipEvent::Stranger { mac, defended: false });
            }
        }
        match (&mut self.ownership, member) {
            (None, Some(_)) => {
                if let Some(suspicion) = &mut self.suspicion {
                    suspicion.leftover = Some(now);
                }
            }
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
        if self.holder() == Some(*peer) {
            self.refused = true;
            self.next = now;
        }
    }

    /// A person wants the VIP on this node. Done when status says so; this only begins it.
    ///
    /// # Errors
    /// Why it can't be.
    pub fn move_to(&mut self, now: Moment, to: NodeId) -> Result<(), MoveError> {
        let holder = self.holder().ok_or(MoveError::NoOwner)?;
        if holder == to {
            return Err(MoveError::Already);
        }
        if self.rules.candidate(&to).is_none() {
            return Err(MoveError::NotCandidate);
        }
        match self.standing_of(now, &to).ok_or(MoveError::NotHeard)? {
            CandidateState::Unfit(reason) => return Err(MoveError::Unfit(reason)),
            CandidateState::Listening => return Err(MoveError::Unfit(status::starting())),
            _ => {}
        }
        self.next = now;
        if self.ownership.is_some() {
            self.release(now, ReleaseReason::Move, Some(to));
        } else {
            self.moving = Some((to, now.after(MOVING)));
            self.send(now, vec![holder], MessageKind::Move(to));
        }
        Ok(())
    }

    /// Let go and take part no more. The shell goes on until [`Election::is_finished`].
    pub fn stop(&mut self, now: Moment) {
        if self.stopping.is_some() {
            return;
        }
        self.stopping = Some(if self.ownership.is_some() { now.after(FAREWELL) } else { now });
        if self.ownership.is_some() {
            self.release(now, ReleaseReason::Stop, self.successor(now));
        }
        self.next = now;
    }

    /// Whether a stopped election has said all it has to say.
    pub fn is_finished(&self, now: Moment) -> bool {
        self.stopping.is_some_and(|over| now >= over)
    }

    /// Whether this node owns the VIP.
    pub fn owns(&self) -> bool {
        self.ownership.is_some()
    }

    /// When [`Election::poll`] has something to do by itself.
    pub fn deadline(&self) -> Moment {
        self.next
    }

    /// Does what is due, and returns everything that is to be carried out.
    pub fn poll(&mut self, now: Moment) -> Vec<Action> {
        if let Some(promised) = self.promised {
            self.loop_stalled(now, now.since(promised));
        }
        self.next = now.after(Duration::from_secs(1));
        self.maintain_ownership(now);
        self.contend(now);
        self.send_due_messages(now);
        self.promised = Some(self.next.max(now));
        std::mem::take(&mut self.actions)
    }

    /// This node's own loop was late by so long: found by [`Election::poll`] itself against its deadline;
    /// for a shell that knows better. Nobody is accused of a silence that was not listened to.
    pub fn loop_stalled(&mut self, now: Moment, by: Duration) {
        self.next = now;
        if by >= STALL && self.ownership.is_some() {
            self.release(now, ReleaseReason::Stall, None);
        }
        if by >= LATE {
            self.began = now;
            self.alive = now;
            self.direct = self.direct.map(|_| now);
            self.suspicion = None;
            self.handed = false;
            self.listen =
                Some(ListenWindow { from: now, full: self.listen.is_some_and(|listen| listen.full) });
        } else if by >= WINDOW / 2
            && let Some(suspicion) = &mut self.suspicion
        {
            suspicion.not_before = now.after(WINDOW / 2);
        }
    }

    /// What an owner does.
    fn maintain_ownership(&mut self, now: Moment) {
        if self.ownership.is_none() {
            return;
        }
        let why = match self.candidate_state(now) {
            CandidateState::Witness => Some(ReleaseReason::Rules),
            CandidateState::Unfit(_) if !self.fitness.holds(EligibilityFact::Draining) => {
                Some(ReleaseReason::Drain)
            }
            CandidateState::Unfit(_) => Some(ReleaseReason::Unfit),
            _ => None,
        };
        if let Some(why) = why {
            if why == ReleaseReason::Unfit {
                self.fitness.lost(now);
            }
            return self.release(now, why, self.successor(now));
        }
        if let Some(better) = self.preferred(now) {
            return self.release(now, ReleaseReason::Preempt, Some(better));
        }
        if let Some(ownership) = &mut self.ownership {
            let next = ownership.poll(now, &mut self.actions);
            self.wake(next);
        }
    }

    /// Lets the address go: it is deleted before anyone hears of it.
    fn release(&mut self, now: Moment, why: ReleaseReason, successor: Option<NodeId>) {
        let Some(known) = self.known.filter(|_| self.ownership.is_some()) else { return };
        self.ownership = None;
        self.actions.push(Action::Delete);
        let holding = Holding::Released { why, successor };
        self.adopt_claim(now, HighestClaim { claim: known.claim, holding });
        self.notify(VipEvent::Lost {
            epoch: known.claim.epoch,
            to: successor,
            cause: LossReason::Released(why),
        });
        self.announce_news(now, NewsAudience::Everyone);
    }

    /// An owner claims what it has anew, above an epoch whose owner is gone: the address stays.
    fn claim_new_epoch(&mut self, now: Moment, mine: HighestClaim) {
        let Some(epoch) = self.next_epoch() else { return };
        let claim = Claim::new(self.address, epoch, mine.claim.priority, mine.claim.owner);
        self.adopt_claim(now, HighestClaim { claim, holding: Holding::Held });
        self.announce_news(now, NewsAudience::Everyone);
    }

    /// Takes this as what is known.
    fn adopt_claim(&mut self, now: Moment, known: HighestClaim) {
        if self.known.map(|before| before.claim.owner) != Some(known.claim.owner) {
            self.since = now;
        }
        self.known = Some(known);
        self.changed = now;
        self.direct = None;
        self.alive = now;
        self.suspicion = None;
        self.handed = false;
        self.refused = false;
        self.lapses = None;
        self.lapse(now);
    }

    fn note_move(&mut self, now: Moment) {
        if self.moves.len() >= 3 {
            self.moves.pop_front();
        }
        self.moves.push_back(now);
    }

    /// The node that holds the VIP, as far as is known.
    fn holder(&self) -> Option<NodeId> {
        self.known.and_then(|known| known.holder())
    }

    /// The best other candidate that is alive.
    fn successor(&self, now: Moment) -> Option<NodeId> {
        let ranked = self.peers.keys().filter_map(|node| Some((self.rank_of(now, node)?, *node)));
        ranked.min().map(|(_, node)| node)
    }

    /// The rank of a candidate that is alive and eligible.
    fn rank_of(&self, now: Moment, node: &NodeId) -> Option<ClaimRank> {
        let candidate_state = self.standing_of(now, node).filter(CandidateState::is_eligible)?;
        self.rules.rank(node, &candidate_state)
    }

    fn standing_of(&self, now: Moment, node: &NodeId) -> Option<CandidateState> {
        if *node == self.own {
            return Some(self.candidate_state(now));
        }
        self.peers
            .get(node)
            .filter(|peer| now.since(peer.heard) < LIVE)
            .map(|peer| peer.candidate_state.clone())
    }

    /// How this node stands.
    fn candidate_state(&self, now: Moment) -> CandidateState {
        if self.rules.candidate(&self.own).is_none() {
            return CandidateState::Witness;
        }
        if self.stopping.is_some() {
            return CandidateState::Unfit(Unfit::new(Cause::AgentStopped, "its agent is stopping"));
        }
        match self.fitness.candidate_state(now) {
            CandidateState::Fit | CandidateState::Recovering
                if self.listen.is_some() && self.ownership.is_none() =>
            {
                CandidateState::Listening
            }
            candidate_state => candidate_state,
        }
    }

    fn wake(&mut self, at: Moment) {
        self.next = self.next.min(at);
    }

    fn notify(&mut self, event: VipEvent) {
        self.actions.push(Action::Event(event));
    }
}

#[cfg(test)]
mod authority_tests;
#[cfg(test)]
mod tests;
#[cfg(test)]
mod wire_tests;
