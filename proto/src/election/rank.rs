//! Who may own a VIP, and who comes first.

use std::cmp::Reverse;
use std::collections::BTreeSet;
use std::time::Duration;

use crate::node::NodeId;
use crate::unfit::Unfit;

/// Most candidates that take part: each beats to each. Of more, those of the highest priority take part and
/// the others are witnesses.
pub const MAX_CANDIDATES: usize = 16;

/// Most witnesses that are asked, and that the owner keeps informed five to ten times a second. With 16 of them all
/// answers are lost once in 10^11 times at 10 % loss each way; more would only cost.
pub const NEAR_WITNESSES: usize = 16;

/// Priority of a node that has none configured.
pub const DEFAULT_PRIORITY: u8 = 100;

/// Whether a node could own the VIP, as it says itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum CandidateState {
    /// It is no candidate: it only bears witness.
    Witness,
    /// It could.
    Fit,
    /// It could, but was not fit a moment ago or has lost the VIP too often: only when nobody else can.
    Recovering,
    /// It has just started or woken and must hear what is going on first.
    Listening,
    /// It could not, and why.
    Unfit(Unfit),
    /// What a later version says, by its code. It is not handed the VIP.
    Other(u8),
}

impl CandidateState {
    /// Whether it may claim or be named as successor.
    pub fn is_eligible(&self) -> bool {
        matches!(self, CandidateState::Fit | CandidateState::Recovering)
    }
}

/// A node that may own the VIP.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Candidate {
    /// The node.
    pub node: NodeId,
    /// 1 to 255, the higher the better; [`DEFAULT_PRIORITY`] when nothing is configured.
    pub priority: u8,
    /// Why it can't own it, as gossip says: for those that are not heard by beats, such as one without a
    /// segment, which sends none. Only for show, and so that nobody waits to hear from it.
    pub unfit: Option<Unfit>,
}

/// What is configured for one VIP, and whom the cluster has.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct VipRules {
    /// Who may own it, this node too if it may.
    pub candidates: Vec<Candidate>,
    /// Candidates that are silent now, as pulses and datagrams show sooner than gossip. Only for show, and so that the
    /// VIP is not moved there: one that has not been heard yet is waited for.
    pub silent: BTreeSet<NodeId>,
    /// Every other member that is thought to be alive (candidates and this node may be among them, and are
    /// left out). A dead one that is listed while no other is alive costs a second and a half at a takeover.
    pub witnesses: Vec<NodeId>,
    /// The masters of the cluster, candidates or not: what they say of others is believed, and they may have
    /// the VIP moved.
    pub masters: Vec<NodeId>,
    /// Give it to a node of higher priority that has been fit for this long; none: never.
    pub preempt: Option<Duration>,
    /// This VIP's place among all configured ones: with equal priorities each VIP prefers another node, so
    /// that several spread, and better than by a hash, which puts two of two on one node often.
    pub turn: usize,
    /// The slowest round trip between candidates, as pulses know it; zero when unknown. All patience is
    /// longer by it.
    pub rtt: Duration,
}

impl VipRules {
    /// Brings what was handed in into one order and within bounds: candidates by node, those beyond the
    /// bound and all other members as witnesses.
    #[must_use]
    pub(super) fn normalized(mut self, own: NodeId) -> VipRules {
        self.candidates.sort_by_key(|one| one.node);
        self.candidates.dedup_by_key(|one| one.node);
        self.candidates.sort_by_key(|one| (Reverse(one.priority), one.node));
        let beyond = self.candidates.split_off(self.candidates.len().min(MAX_CANDIDATES));
        self.candidates.sort_by_key(|one| one.node);
        self.witnesses.extend(beyond.iter().map(|one| one.node));
        self.witnesses.sort();
        self.witnesses.dedup();
        self.masters.sort();
        self.masters.dedup();
        let VipRules { candidates, witnesses, .. } = &mut self;
        witnesses.retain(|node| *node != own && !candidates.iter().any(|one| one.node == *node));
        self.rtt = self.rtt.min(Duration::from_millis(500));
        self
    }

    /// Whether this node is a master of the cluster.
    pub(super) fn is_master(&self, node: &NodeId) -> bool {
        self.masters.binary_search(node).is_ok()
    }

    /// This candidate.
    pub(super) fn candidate(&self, node: &NodeId) -> Option<&Candidate> {
        self.candidates.iter().find(|one| one.node == *node)
    }

    /// The place of a candidate in the order of claims; none when it is none or can't claim.
    pub(super) fn rank(&self, node: &NodeId, candidate_state: &CandidateState) -> Option<ClaimRank> {
        let place = self.candidates.iter().position(|one| one.node == *node)?;
        let tier = match candidate_state {
            CandidateState::Fit => ClaimTier::Fit,
            CandidateState::Recovering => ClaimTier::Recovering,
            CandidateState::Listening => ClaimTier::Listening,
            CandidateState::Unfit(_) | CandidateState::Witness | CandidateState::Other(_) => return None,
        };
        let count = self.candidates.len();
        let priority = Reverse(self.candidates.get(place)?.priority);
        Some(ClaimRank { tier, priority, turn: (place + count - self.turn % count) % count })
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum ClaimTier {
    Fit,
    Recovering,
    Listening,
}

/// The order of claims, best first: the order of the fields is the policy. Health excludes, it does not
/// subtract; priority next; among equals the VIPs take turns.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct ClaimRank {
    tier: ClaimTier,
    priority: Reverse<u8>,
    turn: usize,
}
