//! How this node and others stand as candidates.

use super::super::eligibility::EligibilityFact;
use super::super::rank::{CandidateState, ClaimRank};
use super::Election;
use crate::cause::Cause;
use crate::node::NodeId;
use crate::time::Moment;
use crate::unfit::Unfit;

/// How candidates stand.
impl Election {
    /// The rank of a candidate that is alive and eligible.
    pub(super) fn rank_of(&self, now: Moment, node: &NodeId) -> Option<ClaimRank> {
        let state = self.state_of(now, node).filter(CandidateState::is_eligible)?;
        self.rules.rank(node, &state)
    }

    pub(super) fn state_of(&self, now: Moment, node: &NodeId) -> Option<CandidateState> {
        if *node == self.own {
            return Some(self.candidate_state(now));
        }
        self.peers.state(now, node).cloned()
    }

    /// How this node stands.
    pub(super) fn candidate_state(&self, now: Moment) -> CandidateState {
        if self.rules.candidate(&self.own).is_none() {
            return CandidateState::Witness;
        }
        if self.stopping.is_some() {
            return CandidateState::Unfit(Unfit::new(Cause::AgentStopped, "its agent is stopping"));
        }
        if self.owns() && self.resumed.is_some() && self.eligibility.holds(EligibilityFact::Draining) {
            return CandidateState::Fit;
        }
        match self.eligibility.candidate_state(now) {
            CandidateState::Fit | CandidateState::Recovering
                if self.contest.is_listening() && !self.owns() =>
            {
                CandidateState::Listening
            }
            state => state,
        }
    }
}
