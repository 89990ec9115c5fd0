//! The highest claim that is known, since when, and how often the owner has changed.
//!
//! It only grows: a higher claim replaces a lower one, and a release ends a claim for ever.

use std::cmp::Ordering;
use std::collections::VecDeque;
use std::time::Duration;

use super::wire::{Claim, HighestClaim, Holding};
use crate::node::NodeId;
use crate::time::Moment;

/// Changes of owner that are remembered, and so many within [`MEMORY`] are too many.
const RESTLESS: usize = 3;

/// How long a change of owner counts.
const MEMORY: Duration = Duration::from_secs(300);

/// What a claim that somebody knows is to this node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Comparison {
    /// It knows as much or more.
    Known,
    /// The claim that it knows is held, as the owner itself says or as another has heard.
    Held,
    /// The claim that it knows has been released.
    Released,
    /// It is higher.
    Higher,
}

/// The claim, and the changes that led to it.
#[derive(Debug, Clone)]
pub(super) struct KnownClaim {
    highest: Option<HighestClaim>,
    /// When it came to be what it is: claimed, or released.
    changed: Moment,
    /// Since when the owner is the owner.
    owner_since: Moment,
    /// Changes of owner that were seen lately, for damping.
    moves: VecDeque<Moment>,
}

impl KnownClaim {
    /// None is known.
    pub(super) fn new(now: Moment) -> KnownClaim {
        KnownClaim { highest: None, changed: now, owner_since: now, moves: VecDeque::new() }
    }

    pub(super) fn highest(&self) -> Option<HighestClaim> {
        self.highest
    }

    /// Its epoch.
    pub(super) fn epoch(&self) -> Option<u64> {
        self.highest.map(|known| known.claim.epoch)
    }

    /// The node that holds the VIP, as far as is known.
    pub(super) fn holder(&self) -> Option<NodeId> {
        self.highest.and_then(|known| known.holder())
    }

    /// When it was claimed or released.
    pub(super) fn changed(&self) -> Moment {
        self.changed
    }

    pub(super) fn owner_since(&self) -> Moment {
        self.owner_since
    }

    /// Takes this as what is known.
    pub(super) fn replace(&mut self, now: Moment, known: HighestClaim) {
        if self.highest.map(|before| before.claim.owner) != Some(known.claim.owner) {
            self.owner_since = now;
        }
        self.highest = Some(known);
        self.changed = now;
    }

    /// The owner has changed.
    pub(super) fn note_move(&mut self, now: Moment) {
        if self.moves.len() >= RESTLESS {
            self.moves.pop_front();
        }
        self.moves.push_back(now);
    }

    /// Whether the owner has changed too often of late to change without need.
    pub(super) fn is_restless(&self, now: Moment) -> bool {
        self.moves.iter().filter(|at| now.since(**at) < MEMORY).count() >= RESTLESS
    }

    /// What another node knows, against what this one does.
    pub(super) fn compare(&self, own: NodeId, theirs: &HighestClaim) -> Comparison {
        match self.highest.map_or(Ordering::Greater, |mine| theirs.claim.cmp(&mine.claim)) {
            Ordering::Greater => Comparison::Higher,
            Ordering::Less => Comparison::Known,
            // Its own claim: nobody knows better than this node.
            Ordering::Equal if theirs.claim.owner == own || self.holder().is_none() => Comparison::Known,
            Ordering::Equal if theirs.holding == Holding::Held => Comparison::Held,
            Ordering::Equal => Comparison::Released,
        }
    }

    /// Whether a node with this claim has missed a higher one.
    pub(super) fn is_above(&self, claim: &Claim) -> bool {
        self.highest.is_some_and(|known| known.claim > *claim)
    }

    /// Whether this node gives up, with this, the very claim that it holds.
    pub(super) fn is_release_by(&self, from: NodeId, theirs: &HighestClaim) -> bool {
        theirs.holding != Holding::Held
            && self.holder() == Some(from)
            && self.highest.is_some_and(|mine| mine.claim == theirs.claim)
    }

    /// Whether a sighting of the holder of this claim stands against a claim of this node.
    pub(super) fn is_vetoed_by(&self, claim: &Claim) -> bool {
        self.highest
            .is_none_or(|mine| *claim > mine.claim || *claim == mine.claim && mine.holding == Holding::Held)
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::{at, claim, held, id, released};
    use super::*;

    fn knowing(known: Option<HighestClaim>) -> KnownClaim {
        let mut claims = KnownClaim::new(at(0));
        known.into_iter().for_each(|known| claims.replace(at(0), known));
        claims
    }

    #[test]
    fn what_another_knows_is_compared_and_a_release_is_final() {
        for (mine, theirs, expected) in [
            (None, released(1, 2, None), Comparison::Higher),
            (held(5, 2), held(4, 3), Comparison::Known),
            (held(5, 2), held(6, 3), Comparison::Higher),
            (held(5, 2), released(6, 3, None), Comparison::Higher),
            (held(5, 2), held(5, 2), Comparison::Held),
            (held(5, 2), released(5, 2, None), Comparison::Released),
            (released(5, 2, None), held(5, 2), Comparison::Known),
            (released(5, 2, None), released(5, 2, None), Comparison::Known),
            (held(5, 1), released(5, 1, None), Comparison::Known),
        ] {
            let found = theirs.map(|theirs| knowing(mine).compare(id(1), &theirs));
            assert_eq!(found, Some(expected), "{mine:?} {theirs:?}");
        }
    }

    #[test]
    fn only_the_holder_gives_up_its_own_claim() {
        for (from, theirs, expected) in [
            (2, released(5, 2, None), true),
            (3, released(5, 2, None), false),
            (2, released(4, 2, None), false),
            (2, held(5, 2), false),
        ] {
            let found = theirs.map(|theirs| knowing(held(5, 2)).is_release_by(id(from), &theirs));
            assert_eq!(found, Some(expected), "{from} {theirs:?}");
        }
    }

    #[test]
    fn sightings_of_this_holder_and_of_higher_ones_veto() {
        for (mine, seen, vetoes) in [
            (None, claim(1, 3), true),
            (held(5, 2), claim(5, 2), true),
            (held(5, 2), claim(4, 2), false),
            (held(5, 2), claim(6, 3), true),
            (released(5, 2, None), claim(5, 2), false),
        ] {
            assert_eq!(knowing(mine).is_vetoed_by(&seen), vetoes, "{mine:?} {seen:?}");
        }
    }

    #[test]
    fn an_owner_that_claims_anew_stays_the_same_owner() {
        let mut claims = KnownClaim::new(at(0));
        for (ms, known, since) in [(10, held(5, 2), 10), (20, held(6, 2), 10), (30, held(7, 3), 30)] {
            known.into_iter().for_each(|known| claims.replace(at(ms), known));
            assert_eq!((claims.owner_since(), claims.changed()), (at(since), at(ms)));
        }
    }

    #[test]
    fn three_changes_of_owner_in_five_minutes_are_too_many() {
        let mut claims = KnownClaim::new(at(0));
        for ms in [0, 1_000, 2_000] {
            assert!(!claims.is_restless(at(ms)));
            claims.note_move(at(ms));
        }
        assert!(claims.is_restless(at(299_999)));
        assert!(!claims.is_restless(at(300_000)));
    }
}
