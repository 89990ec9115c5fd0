//! How lately the owner was heard, and so whether it is silent or gone.
//!
//! Two moments decide. `direct`: this node heard the owner itself. `alive`: the latest moment at which
//! anyone is known to have heard it, by what others say of what they heard. Questions begin when two beats
//! are missing, so that the answers are there when the third is; every answer that is fresh moves `alive`,
//! and the claim with it. So a fresh answer vetoes, as long as there are any.
//!
//! How long `alive` must lie back depends on whether the owner is dead or only not heard from here. If it
//! died, everyone heard it last at nearly the same time. If somebody has heard it clearly later than this
//! node, the way is cut and not the owner, and then one lost packet of the one witness must not make two
//! owners.

use std::time::Duration;

use crate::time::Moment;

/// Silence of the owner after which it is suspected: two beats are missing.
const SUSPECTED: Duration = Duration::from_millis(110);

/// Silence after which it is gone: three are missing.
const SILENCE: Duration = Duration::from_millis(160);

/// The same where others have heard it later than this node, so that the way may be cut: three and five
/// beats of those that some of the witnesses get.
const CUT: [(Duration, Duration); 2] = [
    (Duration::from_millis(60), Duration::from_millis(300)),
    (Duration::from_millis(150), Duration::from_millis(500)),
];

/// An owner that was heard by anyone within this is there: when one with a higher claim is, another owner stands
/// down, else that one takes a higher epoch itself.
pub(super) const RECENT: Duration = Duration::from_secs(1);

/// When the owner of the highest claim was heard, by whom. It begins anew with each claim.
#[derive(Debug, Clone)]
pub(super) struct OwnerLiveness {
    /// When this node itself heard the owner last.
    direct: Option<Moment>,
    /// The latest moment at which anyone is known to have heard it.
    alive: Moment,
    /// Its machine says that no agent runs there.
    agent_gone: bool,
}

impl OwnerLiveness {
    /// Of a claim that was learnt now, from others.
    pub(super) fn new(now: Moment) -> OwnerLiveness {
        OwnerLiveness { direct: None, alive: now, agent_gone: false }
    }

    /// This node hears it.
    pub(super) fn heard(&mut self, now: Moment) {
        *self = OwnerLiveness { direct: Some(now), ..OwnerLiveness::new(now) };
    }

    /// Another node whose word counts has heard it then.
    pub(super) fn heard_by_other(&mut self, at: Moment) {
        self.alive = self.alive.max(at);
    }

    /// The claim is news, and the one who says so has heard the owner then and not now.
    pub(super) fn last_heard_by_other(&mut self, at: Moment) {
        self.alive = at;
    }

    /// This node could not listen until now: that the owner was silent means nothing.
    pub(super) fn excuse_silence(&mut self, now: Moment) {
        self.alive = now;
        self.direct = self.direct.map(|_| now);
    }

    /// The owner's machine refuses its agent's port.
    pub(super) fn refused(&mut self) {
        self.agent_gone = true;
    }

    pub(super) fn is_agent_gone(&self) -> bool {
        self.agent_gone
    }

    pub(super) fn direct(&self) -> Option<Moment> {
        self.direct
    }

    pub(super) fn alive(&self) -> Moment {
        self.alive
    }

    /// When its silence is suspicious; `claimed`: when the claim was learnt.
    pub(super) fn suspected_at(&self, claimed: Moment, rtt: Duration) -> Moment {
        self.direct.unwrap_or(claimed).after(SUSPECTED + rtt)
    }

    /// When it is gone, if anyone has heard it last at this moment.
    pub(super) fn gone_at(&self, heard: Moment, rtt: Duration) -> Moment {
        heard.after(self.patience(heard) + rtt)
    }

    /// How long that moment must lie back before a claim.
    fn patience(&self, heard: Moment) -> Duration {
        let Some(direct) = self.direct else { return CUT[1].1 };
        let later = heard.since(direct);
        let longer = CUT.iter().rev().find(|(beyond, _)| later > *beyond);
        longer.map_or(SILENCE, |(_, longer)| *longer)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(ms: u64) -> Moment {
        Moment::from_millis(ms)
    }

    #[test]
    fn the_later_others_have_heard_it_the_longer_it_is_waited_for() {
        let mut owner = OwnerLiveness::new(at(500));
        assert_eq!(owner.gone_at(at(500), Duration::ZERO), at(1_000), "this node has never heard it");
        owner.heard(at(1_000));
        for (heard, gone) in [
            (900, 1_060),
            (1_000, 1_160),
            (1_060, 1_220),
            (1_061, 1_361),
            (1_150, 1_450),
            (1_151, 1_651),
            (9_000, 9_500),
        ] {
            assert_eq!(owner.gone_at(at(heard), Duration::ZERO), at(gone), "{heard}");
        }
        assert_eq!(owner.gone_at(at(1_000), Duration::from_millis(40)), at(1_200), "a slow way");
        assert_eq!(owner.suspected_at(at(500), Duration::ZERO), at(1_110));
    }

    #[test]
    fn a_node_that_could_not_listen_accuses_nobody_and_claims_to_have_heard_nobody() {
        for (direct, expected) in [(true, Some(at(3_000))), (false, None)] {
            let mut owner = OwnerLiveness::new(at(1_000));
            if direct {
                owner.heard(at(1_000));
            }
            owner.excuse_silence(at(3_000));
            assert_eq!((owner.direct(), owner.alive()), (expected, at(3_000)));
        }
    }

    #[test]
    fn an_owner_that_is_heard_again_has_its_agent() {
        let mut owner = OwnerLiveness::new(at(0));
        owner.refused();
        owner.heard_by_other(at(10));
        assert!(owner.is_agent_gone() && owner.alive() == at(10));
        owner.heard_by_other(at(5));
        assert_eq!(owner.alive(), at(10), "it only grows");
        owner.heard(at(20));
        assert!(!owner.is_agent_gone());
    }
}
