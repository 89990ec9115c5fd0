//! What is shown of a VIP.

use std::net::IpAddr;

use super::action::{CandidateStatus, ElectionStatus, OwnershipState};
use super::rank::{Candidate, CandidateState, VipRules};
use crate::arp::Mac;
use crate::cause::Cause;
use crate::node::NodeId;
use crate::time::Moment;
use crate::unfit::Unfit;

/// What is known of a VIP, apart from its candidates.
#[derive(Debug, Clone, Copy)]
pub(super) struct StatusFacts<'a> {
    pub(super) own: NodeId,
    pub(super) address: IpAddr,
    pub(super) rules: &'a VipRules,
    /// The owner, if anyone has heard it lately, and since when it is.
    pub(super) owner: Option<(NodeId, Moment)>,
    pub(super) epoch: u64,
    /// The stranger that has the address.
    pub(super) stranger: Option<Mac>,
}

impl StatusFacts<'_> {
    /// All there is to show. `state_of`: how a candidate stands; none: it has not been heard lately.
    pub(super) fn status(&self, state_of: impl Fn(&NodeId) -> Option<CandidateState>) -> ElectionStatus {
        let owner = self.owner.map(|(owner, _)| owner);
        let answers = self.stranger.map(|mac| {
            let asked = if self.address.is_ipv4() { "ARP" } else { "neighbour discovery" };
            let address = self.address;
            let reason = format_args!("{address} answers {asked} from MAC {mac}, which belongs to no member");
            Unfit::new(Cause::Stranger, reason)
        });
        let shown = |one: &Candidate| candidate(one, state_of(&one.node));
        let mut candidates: Vec<CandidateStatus> = self.rules.candidates.iter().map(shown).collect();
        candidates.sort_by_key(|place| {
            let rank = place.candidate_state.as_ref().and_then(|state| self.rules.rank(&place.node, state));
            let last = place.reason.is_some() || rank.is_none();
            (owner != Some(place.node), last, rank, std::cmp::Reverse(place.priority), place.node)
        });
        let (state, reason) = self.state(&candidates);
        // While a stranger has the address, nobody claims it.
        if let Some(answers) = answers.as_ref().filter(|_| owner.is_none()) {
            for place in candidates.iter_mut().filter(|place| place.reason.is_none()) {
                place.reason = Some(answers.clone());
            }
        }
        ElectionStatus {
            state,
            owner,
            epoch: self.epoch,
            since: self.owner.map(|(_, since)| since),
            reason: answers.or(reason),
            candidates,
        }
    }

    fn state(&self, candidates: &[CandidateStatus]) -> (OwnershipState, Option<Unfit>) {
        let able = candidates.iter().any(|place| place.reason.is_none());
        let own = candidates.iter().filter(|place| place.node == self.own);
        match self.owner {
            Some((owner, _)) if owner == self.own => (OwnershipState::OwnedHere, None),
            Some(_) => (OwnershipState::Owned, None),
            None if candidates.is_empty() => {
                (OwnershipState::Unavailable, Some(Unfit::new(Cause::NoCandidates, "it has no candidates")))
            }
            None if able && self.stranger.is_none() => (OwnershipState::Unowned, None),
            None if able => (OwnershipState::Unavailable, None),
            None => {
                // This node's own reason first.
                let reason = own.chain(candidates).find_map(|place| place.reason.clone());
                (OwnershipState::Unavailable, reason)
            }
        }
    }
}

fn candidate(one: &Candidate, candidate_state: Option<CandidateState>) -> CandidateStatus {
    let reason = match &candidate_state {
        Some(CandidateState::Unfit(reason)) => Some(reason.clone()),
        Some(CandidateState::Listening) => Some(starting()),
        Some(CandidateState::Witness) => {
            Some(Unfit::new(Cause::NotCandidate, "it has not learned yet that it is a candidate"))
        }
        Some(CandidateState::Other(code)) => {
            let reason = format_args!("its agent is newer and reports an unknown state ({code})");
            Some(Unfit::new(Cause::UnknownState, reason))
        }
        Some(CandidateState::Fit | CandidateState::Recovering) => None,
        None => Some(one.unfit.clone().unwrap_or_else(|| Unfit::new(Cause::NotHeard, "no answer from it"))),
    };
    CandidateStatus { node: one.node, priority: one.priority, candidate_state, reason }
}

/// Why a node is passed over that is still listening.
pub(super) fn starting() -> Unfit {
    Unfit::new(Cause::Starting, "it has just started")
}

#[cfg(test)]
mod tests {
    use super::super::tests::{MAC, VIP, at, id, rules};
    use super::*;

    #[test]
    fn why_nobody_owns_it() {
        let draining = || CandidateState::Unfit(Cause::Draining.into());
        for (priorities, owner, stranger, first, second, state, cause) in [
            (2, Some(1), None, None, None, OwnershipState::OwnedHere, None),
            (2, Some(2), Some(MAC), None, None, OwnershipState::Owned, Some(Cause::Stranger)),
            (0, None, None, None, None, OwnershipState::Unavailable, Some(Cause::NoCandidates)),
            (2, None, None, Some(draining()), Some(CandidateState::Fit), OwnershipState::Unowned, None),
            (
                2,
                None,
                Some(MAC),
                Some(CandidateState::Fit),
                None,
                OwnershipState::Unavailable,
                Some(Cause::Stranger),
            ),
            (2, None, None, Some(draining()), None, OwnershipState::Unavailable, Some(Cause::Draining)),
            (2, None, None, None, Some(draining()), OwnershipState::Unavailable, Some(Cause::NotHeard)),
            (
                2,
                None,
                None,
                Some(CandidateState::Listening),
                Some(CandidateState::Other(9)),
                OwnershipState::Unavailable,
                Some(Cause::Starting),
            ),
        ] {
            let rules = rules(&[100, 200][..priorities]);
            let facts = StatusFacts {
                own: id(1),
                address: VIP,
                rules: &rules,
                owner: owner.map(|node| (id(node), at(7))),
                epoch: 3,
                stranger,
            };
            let status = facts.status(|node| if *node == id(1) { first.clone() } else { second.clone() });
            let can = status.candidates.iter().any(|place| place.reason.is_none());
            let has_claimer = first == Some(CandidateState::Fit) || second == Some(CandidateState::Fit);
            assert_eq!(can, has_claimer && stranger.is_none(), "{owner:?} {first:?} {second:?}");
            let found = (status.state, status.reason.map(|why| why.cause));
            assert_eq!(found, (state, cause), "{owner:?} {first:?} {second:?}");
            assert_eq!(status.since, owner.map(|_| at(7)));
        }
    }
}
