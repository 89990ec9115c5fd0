//! Since when this node listens, and how long it must before it may claim.

use std::time::Duration;

use super::peers::CandidatePeers;
use super::rank::{Candidate, VipRules};
use crate::node::NodeId;
use crate::time::Moment;

/// Time to listen after the loop was late: the queue of old messages is read, new beats have come.
const LATE: Duration = Duration::from_millis(300);

/// Time to listen after a start when all candidates have been heard.
pub(super) const ALL_HEARD: Duration = Duration::from_millis(500);

/// The same while some have not: they may be starting too.
const SOME_MISSING: Duration = Duration::from_secs(2);

/// A time of listening.
#[derive(Debug, Clone, Copy)]
struct ListenWindow {
    from: Moment,
    /// This node knows nothing yet, rather than nothing of the last moment.
    full: bool,
}

/// Since when, and before what.
#[derive(Debug, Clone)]
pub(super) struct Listening {
    /// Without a gap.
    since: Moment,
    /// Before this is over the node does not claim.
    window: Option<ListenWindow>,
}

impl Listening {
    /// It listens, as a witness.
    pub(super) fn new(now: Moment) -> Listening {
        Listening { since: now, window: None }
    }

    /// It has become a candidate. As a witness it has listened already.
    pub(super) fn begin(&mut self) {
        self.window = Some(ListenWindow { from: self.since, full: true });
    }

    /// It could not listen until now.
    pub(super) fn interrupted(&mut self, now: Moment) {
        self.since = now;
        self.window = Some(ListenWindow { from: now, full: self.window.is_some_and(|window| window.full) });
    }

    pub(super) fn since(&self) -> Moment {
        self.since
    }

    /// Whether it may not claim yet.
    pub(super) fn is_pending(&self) -> bool {
        self.window.is_some()
    }

    /// Ends what is over; returns when the rest is.
    pub(super) fn poll(
        &mut self,
        now: Moment,
        own: &NodeId,
        rules: &VipRules,
        peers: &CandidatePeers,
    ) -> Option<Moment> {
        let window = self.window?;
        let awaited = |one: &Candidate| {
            one.node != *own && one.unfit.is_none() && !peers.heard_since(&one.node, window.from)
        };
        let time = match () {
            () if !window.full => LATE,
            () if rules.candidates.iter().any(awaited) => SOME_MISSING,
            () => ALL_HEARD,
        };
        let over = window.from.after(time);
        if now < over {
            return Some(over);
        }
        self.window = None;
        None
    }

    #[cfg(test)]
    pub(super) fn skip(&mut self) {
        self.window = None;
    }
}

#[cfg(test)]
mod tests {
    use super::super::rank::CandidateState;
    use super::super::tests::{at, id, rules};
    use super::*;

    #[test]
    fn it_takes_as_long_as_a_candidate_is_missing_and_less_after_a_gap() {
        let mut rules = rules(&[100, 100]);
        let mut peers = CandidatePeers::default();
        let mut listening = Listening::new(at(1_000));
        let poll = |listening: &Listening, rules: &VipRules, peers: &CandidatePeers, ms| {
            listening.clone().poll(at(ms), &id(1), rules, peers)
        };
        assert_eq!(poll(&listening, &rules, &peers, 1_000), None, "a witness may not claim anyway");
        listening.begin();
        assert_eq!(poll(&listening, &rules, &peers, 2_999), Some(at(3_000)));
        assert_eq!(poll(&listening, &rules, &peers, 3_000), None);
        rules.candidates[1].unfit = Some(crate::cause::Cause::NoSegment.into());
        assert_eq!(poll(&listening, &rules, &peers, 1_000), Some(at(1_500)), "nobody waits for who can't");
        rules.candidates[1].unfit = None;
        peers.record(at(1_100), id(2), &CandidateState::Fit);
        assert_eq!(poll(&listening, &rules, &peers, 1_100), Some(at(1_500)));
        listening.interrupted(at(1_200));
        assert_eq!(poll(&listening, &rules, &peers, 1_200), Some(at(3_200)), "it knows nothing yet");
        listening.skip();
        listening.interrupted(at(5_000));
        assert_eq!(poll(&listening, &rules, &peers, 5_000), Some(at(5_300)), "nothing of the last moment");
        assert_eq!(listening.since(), at(5_000));
    }
}
