//! Whose word counts for what: a worker that lies must neither move the VIP nor hold it up for long.
//!
//! | what is said | by a candidate or a master | by any other member (a worker) |
//! | --- | --- | --- |
//! | a claim of its own, and its beats as owner | counts | does not |
//! | the release of the claim that it is known to hold | counts | counts: it gives away only its own |
//! | somebody else's claim or release | counts | does not |
//! | "I heard the owner", a veto | counts | of two workers it counts, of one for [`SOLO`](super::SOLO) |
//! | "I heard another owner, with a higher claim" | counts | of two workers it counts |
//! | "there was a higher epoch" | counts | raises the number of this node's next claim, a little |
//! | hand over to another node ([`MessageKind::Move`](super::MessageKind::Move)) | of masters only | does not |
//!
//! A master that is no candidate here may be one soon: candidates follow what is gossiped of services, and
//! masters are trusted with availability anyway. The successor that an owner has named counts as a candidate
//! too. What is the other way round, a candidate of a moment ago, is heard as owner for [`LAPSE`] more, since
//! it may be the last to learn that it is none.
//!
//! So a bridge of two honest workers still keeps two owners apart that can't hear each other, one lying
//! worker delays a takeover by 3 s at most, and no number that a worker says locks later claims.

use std::time::Duration;

use super::rank::VipRules;
use super::wire::{HighestClaim, Holding};
use crate::node::NodeId;
use crate::time::Moment;

/// How long an owner that is no candidate any more is still heard: the document reaches all within this.
const LAPSE: Duration = Duration::from_secs(3);

/// Who says something.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum SenderRole {
    /// It may own the VIP.
    Candidate,
    /// It may not, but is a master.
    Master,
    /// It only bears witness.
    Worker,
}

impl SenderRole {
    /// By the rules alone.
    fn configured(rules: &VipRules, node: &NodeId) -> SenderRole {
        if rules.candidate(node).is_some() {
            SenderRole::Candidate
        } else if rules.is_master(node) {
            SenderRole::Master
        } else {
            SenderRole::Worker
        }
    }
}

/// Who counts as a candidate beside those that the rules name.
#[derive(Debug, Clone, Default)]
pub(super) struct Authority {
    /// The owner is no candidate any more, and is heard until then.
    lapses: Option<Moment>,
}

impl Authority {
    /// Whose word it is, where this claim is known.
    pub(super) fn role(
        &self,
        now: Moment,
        rules: &VipRules,
        known: Option<HighestClaim>,
        from: &NodeId,
    ) -> SenderRole {
        let role = SenderRole::configured(rules, from);
        let named = known.is_some_and(|known| match known.holding {
            Holding::Held => known.claim.owner == *from && self.lapses.is_some_and(|end| now < end),
            Holding::Released { successor, .. } => successor == Some(*from),
        });
        if role == SenderRole::Worker && named { SenderRole::Candidate } else { role }
    }

    /// The rules have changed: whether an owner that was a candidate until now is still heard, and until when.
    pub(super) fn rules_changed(&mut self, now: Moment, rules: &VipRules, holder: Option<NodeId>) {
        let trusted =
            holder.is_none_or(|holder| SenderRole::configured(rules, &holder) != SenderRole::Worker);
        self.lapses = if trusted { None } else { Some(self.lapses.unwrap_or(now.after(LAPSE))) };
    }

    /// The holder has changed: its time begins now, if it is no candidate.
    pub(super) fn holder_changed(&mut self, now: Moment, rules: &VipRules, holder: Option<NodeId>) {
        self.lapses = None;
        self.rules_changed(now, rules, holder);
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::{at, held, id, released, rules};
    use super::*;

    #[test]
    fn the_rules_name_candidates_and_masters_and_an_owner_names_its_successor() {
        let (rules, authority) = (rules(&[100, 100]), Authority::default());
        for (from, known, role) in [
            (1, None, SenderRole::Candidate),
            (9, None, SenderRole::Master),
            (7, None, SenderRole::Worker),
            (7, held(5, 7), SenderRole::Worker),
            (7, released(5, 2, Some(7)), SenderRole::Candidate),
            (7, released(5, 2, Some(8)), SenderRole::Worker),
            (9, released(5, 2, Some(9)), SenderRole::Master),
        ] {
            assert_eq!(authority.role(at(0), &rules, known, &id(from)), role, "{from} {known:?}");
        }
    }

    #[test]
    fn an_owner_that_is_no_candidate_any_more_is_one_for_three_seconds_however_often_the_rules_change() {
        let (before, after) = (rules(&[100, 100]), rules(&[100]));
        let mut authority = Authority::default();
        authority.holder_changed(at(0), &before, Some(id(2)));
        authority.rules_changed(at(1_000), &after, Some(id(2)));
        authority.rules_changed(at(3_000), &after, Some(id(2)));
        let role = |authority: &Authority, ms| authority.role(at(ms), &after, held(5, 2), &id(2));
        assert_eq!(role(&authority, 3_999), SenderRole::Candidate);
        assert_eq!(role(&authority, 4_000), SenderRole::Worker);
        authority.holder_changed(at(4_000), &after, Some(id(2)));
        assert_eq!(role(&authority, 6_999), SenderRole::Candidate, "a new claim");
        authority.rules_changed(at(5_000), &before, Some(id(2)));
        authority.rules_changed(at(6_000), &after, Some(id(2)));
        assert_eq!(role(&authority, 8_999), SenderRole::Candidate, "it was one in between");
    }
}
