//! The other candidates, as they say themselves that they stand.

use std::collections::BTreeMap;
use std::time::Duration;

use super::rank::{CandidateState, ClaimRank, VipRules};
use crate::node::NodeId;
use crate::time::Moment;

/// A candidate heard within this is alive: three of its beats.
const LIVE: Duration = Duration::from_millis(650);

/// A candidate heard within this should answer a question, or is likely to have died just now.
const EXPECTED: Duration = Duration::from_secs(3);

/// Another candidate.
#[derive(Debug, Clone)]
struct CandidatePeer {
    heard: Moment,
    candidate_state: CandidateState,
    fit_since: Option<Moment>,
}

/// All of them that were ever heard.
#[derive(Debug, Clone, Default)]
pub(super) struct CandidatePeers(BTreeMap<NodeId, CandidatePeer>);

impl CandidatePeers {
    /// Forgets who is no candidate any more.
    pub(super) fn retain(&mut self, rules: &VipRules) {
        self.0.retain(|node, _| rules.candidate(node).is_some());
    }

    /// A candidate says how it stands; true when it was not alive before.
    pub(super) fn record(&mut self, now: Moment, from: NodeId, candidate_state: &CandidateState) -> bool {
        let before = self.0.get(&from).filter(|peer| now.since(peer.heard) < LIVE);
        let appears = before.is_none();
        let fit = *candidate_state == CandidateState::Fit;
        let fit_since = before.and_then(|peer| peer.fit_since).or(Some(now)).filter(|_| fit);
        let peer = CandidatePeer { heard: now, candidate_state: candidate_state.clone(), fit_since };
        self.0.insert(from, peer);
        appears
    }

    fn alive(&self, now: Moment) -> impl Iterator<Item = (&NodeId, &CandidatePeer)> {
        self.0.iter().filter(move |(_, peer)| now.since(peer.heard) < LIVE)
    }

    fn eligible(&self, now: Moment, rules: &VipRules) -> impl Iterator<Item = (ClaimRank, NodeId)> {
        let eligible = self.alive(now).filter(|(_, peer)| peer.candidate_state.is_eligible());
        eligible.filter_map(|(node, peer)| Some((rules.rank(node, &peer.candidate_state)?, *node)))
    }

    /// How one stands; none: it is not alive.
    pub(super) fn state(&self, now: Moment, node: &NodeId) -> Option<&CandidateState> {
        self.0.get(node).filter(|peer| now.since(peer.heard) < LIVE).map(|peer| &peer.candidate_state)
    }

    /// Whether one was heard at this moment or later.
    pub(super) fn heard_since(&self, node: &NodeId, since: Moment) -> bool {
        self.0.get(node).is_some_and(|peer| peer.heard >= since)
    }

    /// Whether one is fit and has been for so long.
    pub(super) fn is_fit_for(&self, now: Moment, node: &NodeId, wait: Duration) -> bool {
        self.0.get(node).is_some_and(|peer| {
            peer.candidate_state == CandidateState::Fit
                && peer.fit_since.is_some_and(|since| now.since(since) >= wait)
        })
    }

    /// The best that is alive and eligible.
    pub(super) fn best(&self, now: Moment, rules: &VipRules) -> Option<NodeId> {
        self.eligible(now, rules).min().map(|(_, node)| node)
    }

    /// How many claim before one of this rank. A silent owner does not: it was heard lately enough to look alive.
    pub(super) fn ahead_of(
        &self,
        now: Moment,
        rules: &VipRules,
        own: ClaimRank,
        owner: Option<NodeId>,
    ) -> u32 {
        let better = |(rank, node): &(ClaimRank, NodeId)| Some(*node) != owner && *rank < own;
        u32::try_from(self.eligible(now, rules).filter(better).count()).unwrap_or(u32::MAX)
    }

    /// Whether one that still listens would come before this node if both were fit.
    pub(super) fn is_better_coming(&self, now: Moment, rules: &VipRules, own: &NodeId) -> bool {
        let fit = |node: &NodeId| rules.rank(node, &CandidateState::Fit);
        self.alive(now)
            .any(|(node, peer)| peer.candidate_state == CandidateState::Listening && fit(node) < fit(own))
    }

    /// Whether one other than the owner was there a moment ago.
    pub(super) fn expects_any(&self, now: Moment, owner: Option<NodeId>) -> bool {
        self.0.iter().any(|(node, peer)| Some(*node) != owner && now.since(peer.heard) < EXPECTED)
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::{at, id, rules};
    use super::*;
    use crate::cause::Cause;

    fn peers(states: &[(u8, u64, CandidateState)]) -> CandidatePeers {
        let mut peers = CandidatePeers::default();
        for (node, ms, state) in states {
            peers.record(at(*ms), id(*node), state);
        }
        peers
    }

    #[test]
    fn who_is_silent_for_three_beats_is_not_alive() {
        let mut peers = peers(&[(2, 0, CandidateState::Fit)]);
        assert_eq!(peers.state(at(649), &id(2)), Some(&CandidateState::Fit));
        assert_eq!(peers.state(at(650), &id(2)), None);
        assert!(peers.expects_any(at(2_999), None) && !peers.expects_any(at(3_000), None));
        assert!(!peers.expects_any(at(0), Some(id(2))), "the owner");
        assert!(!peers.record(at(649), id(2), &CandidateState::Fit));
        assert!(peers.record(at(1_299), id(2), &CandidateState::Fit), "it appears again");
    }

    #[test]
    fn fitness_counts_from_the_last_silence_or_trouble() {
        let mut peers = CandidatePeers::default();
        let fit_for = |peers: &CandidatePeers, ms| peers.is_fit_for(at(ms), &id(2), Duration::from_secs(1));
        for ms in (0..=1_000).step_by(200) {
            peers.record(at(ms), id(2), &CandidateState::Fit);
            assert_eq!(fit_for(&peers, ms), ms == 1_000, "{ms}");
        }
        peers.record(at(1_200), id(2), &CandidateState::Recovering);
        peers.record(at(1_400), id(2), &CandidateState::Fit);
        assert!(!fit_for(&peers, 2_000));
        peers.record(at(2_050), id(2), &CandidateState::Fit);
        assert!(!fit_for(&peers, 2_399), "silent in between");
    }

    #[test]
    fn the_best_is_alive_and_eligible_and_the_order_of_claims_skips_the_silent_owner() {
        let rules = rules(&[100, 50, 200, 200, 200]);
        let peers = peers(&[
            (2, 1_000, CandidateState::Fit),
            (3, 1_000, CandidateState::Recovering),
            (4, 300, CandidateState::Fit),
            (5, 1_000, CandidateState::Unfit(Cause::Draining.into())),
        ]);
        assert_eq!(peers.best(at(1_000), &rules), Some(id(2)), "4 is silent and 3 only recovering");
        let ahead = |ms, own, owner| {
            let rank = rules.rank(&id(1), &own)?;
            Some(peers.ahead_of(at(ms), &rules, rank, owner))
        };
        assert_eq!(ahead(900, CandidateState::Fit, None), Some(1), "4 has the higher priority");
        assert_eq!(ahead(900, CandidateState::Fit, Some(id(4))), Some(0));
        assert_eq!(ahead(900, CandidateState::Recovering, Some(id(4))), Some(2));
    }

    #[test]
    fn a_better_one_that_still_listens_is_waited_for() {
        let rules = rules(&[100, 50, 200]);
        for (node, state, coming) in [
            (2, CandidateState::Listening, false),
            (3, CandidateState::Listening, true),
            (3, CandidateState::Fit, false),
        ] {
            let peers = peers(&[(node, 0, state)]);
            assert_eq!(peers.is_better_coming(at(0), &rules, &id(1)), coming);
            assert!(!peers.is_better_coming(at(700), &rules, &id(1)), "silent");
        }
    }
}
