//! What is shown of a VIP.

use std::time::Duration;

use super::action::{CandidateStatus, ElectionStatus, OwnershipState};
use super::rank::{Candidate, CandidateState};
use super::{Election, STRANGER};
use crate::cause::Cause;
use crate::time::Moment;
use crate::unfit::Unfit;

/// An owner that nobody here has heard for so long is not called one: far witnesses hear it once a second.
const FORGOTTEN: Duration = Duration::from_secs(5);

impl Election {
    /// All there is to show.
    pub fn status(&self, now: Moment) -> ElectionStatus {
        let heard = self.last_heard().max(self.direct.unwrap_or_default());
        let owner = self.holder().filter(|_| self.owns() || now.since(heard) < FORGOTTEN);
        let mut candidates: Vec<CandidateStatus> =
            self.rules.candidates.iter().map(|one| self.place(now, one)).collect();
        candidates.sort_by_key(|place| {
            let rank = place
                .candidate_state
                .as_ref()
                .and_then(|candidate_state| self.rules.rank(&place.node, candidate_state));
            let last = place.reason.is_some() || rank.is_none();
            (owner != Some(place.node), last, rank, std::cmp::Reverse(place.priority), place.node)
        });
        let stranger = self.stranger.filter(|(_, last)| now.since(*last) < STRANGER);
        let own = candidates.iter().find(|place| place.node == self.own);
        let refusal = own.and_then(|place| place.reason.clone());
        let able = candidates.iter().any(|place| place.reason.is_none());
        let (state, reason) = match owner {
            Some(owner) if owner == self.own => (OwnershipState::OwnedHere, None),
            Some(_) => (OwnershipState::Owned, None),
            None if candidates.is_empty() => {
                (OwnershipState::Unavailable, Some(Unfit::new(Cause::NoCandidates, "it has no candidates")))
            }
            None if able => (OwnershipState::Unowned, None),
            None => (
                OwnershipState::Unavailable,
                refusal.or_else(|| candidates.iter().find_map(|one| one.reason.clone())),
            ),
        };
        let answers = stranger.map(|(mac, _)| {
            let asked = if self.address.is_ipv4() { "ARP" } else { "neighbour discovery" };
            let address = self.address;
            let reason = format_args!("{address} answers {asked} from MAC {mac}, which belongs to no member");
            Unfit::new(Cause::Stranger, reason)
        });
        ElectionStatus {
            state: if stranger.is_some() && owner.is_none() { OwnershipState::Unavailable } else { state },
            owner,
            epoch: self.known.map_or(0, |known| known.claim.epoch),
            since: owner.map(|_| self.since),
            reason: answers.or(reason),
            candidates,
        }
    }

    fn place(&self, now: Moment, one: &Candidate) -> CandidateStatus {
        let candidate_state = self.standing_of(now, &one.node);
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
            None => {
                Some(one.unfit.clone().unwrap_or_else(|| Unfit::new(Cause::NotHeard, "no answer from it")))
            }
        };
        CandidateStatus { node: one.node, priority: one.priority, candidate_state, reason }
    }

    /// Why this node is only recovering; none: it is not.
    pub fn recovery(&self, now: Moment) -> Option<Unfit> {
        (self.candidate_state(now) == CandidateState::Recovering).then(|| self.fitness.recovery(now))
    }

    /// The highest epoch that is known, for the disk and gossip, and for [`Election::set_minimum_epoch`] later.
    pub fn epoch(&self) -> u64 {
        self.known.map_or(0, |known| known.claim.epoch).max(self.floor)
    }
}

/// Why a node is passed over that is still listening.
pub(super) fn starting() -> Unfit {
    Unfit::new(Cause::Starting, "it has just started")
}
