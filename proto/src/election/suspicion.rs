//! A candidate's doubt whether the VIP has an owner: whom it asks, and when it may claim.
//!
//! Two moments decide. `direct`: this node heard the owner itself. `alive`: the latest moment at which
//! anyone is known to have heard it, by what others say of their own ears. Questions begin when two beats
//! are missing, so that the answers are there when the third is; every answer that is fresh moves `alive`,
//! and the claim with it. So a fresh answer vetoes, as long as there are any.
//!
//! How long `alive` must lie back depends on whether the owner is dead or only not heard from here. If it
//! died, all ears heard it last at nearly the same time. If somebody has heard it clearly later than this
//! node, the way is cut and not the owner, and then one lost packet of the one witness must not make two
//! owners.

use std::time::Duration;

use crate::time::Moment;

/// Time between two beats of an owner to candidates. All ticks of all VIPs fall on its multiples.
pub const BEAT: Duration = Duration::from_millis(50);

/// Silence of the owner after which it is doubted: two beats are missing.
pub(super) const DOUBT: Duration = Duration::from_millis(110);

/// Silence after which it is gone: three are missing.
const SILENCE: Duration = Duration::from_millis(160);

/// The same where others have heard it later than this node, so that the way may be cut: three and five
/// beats of those that witnesses get.
const CUT: [(Duration, Duration); 2] = [
    (Duration::from_millis(60), Duration::from_millis(300)),
    (Duration::from_millis(150), Duration::from_millis(500)),
];

/// Time for answers, of witnesses and to probes, before a claim.
pub(super) const WINDOW: Duration = Duration::from_millis(50);

/// Time between the claims of two candidates in the order of their ranks.
const STAGGER: Duration = Duration::from_millis(50);

/// Who suddenly hears nobody at all is likely cut off itself, and nobody would find the address there. It
/// claims all the same, since the others may all be dead, but not for a short cut: its higher epoch would
/// move the address when the cut heals.
pub(super) const ALONE: Duration = Duration::from_millis(1_500);

/// How long a message of somebody else shows that this node is not alone.
pub(super) const COMPANY: Duration = Duration::from_millis(500);

/// A member's answer to a probe counts for so long: more than one round.
pub(super) const LEFTOVER: Duration = Duration::from_millis(250);

/// How long alive must lie back before a claim.
pub(super) fn grace_period(direct: Option<Moment>, alive: Moment) -> Duration {
    let Some(direct) = direct else { return CUT[1].1 };
    let later = alive.since(direct);
    let mut patience = SILENCE;
    for (beyond, longer) in CUT {
        if later > beyond {
            patience = longer;
        }
    }
    patience
}

/// A doubt, from its beginning until the owner is heard again or somebody claims.
#[derive(Debug, Clone)]
pub(super) struct OwnerSuspicion {
    /// Since when.
    pub(super) since: Moment,
    /// Not before this: answers could not be read, since this node's own loop was late.
    pub(super) not_before: Moment,
    /// When a member's hardware address answered last.
    pub(super) leftover: Option<Moment>,
    /// A stranger has the address.
    pub(super) strange: bool,
    next: Moment,
    base: Moment,
    ahead: u32,
    /// When what stood against a claim became less.
    eased: Moment,
}

impl OwnerSuspicion {
    pub(super) fn new(now: Moment) -> OwnerSuspicion {
        OwnerSuspicion {
            since: now,
            not_before: now,
            leftover: None,
            strange: false,
            next: now,
            base: now,
            ahead: 0,
            eased: now,
        }
    }

    /// Whether questions and probes are due now.
    pub(super) fn round(&mut self, now: Moment) -> bool {
        if now < self.next {
            return false;
        }
        let age = now.since(self.since);
        // Three rounds in the window, then one for every beat, and slower when it lasts.
        let wait = match () {
            () if self.strange => Duration::from_secs(1),
            () if age < WINDOW => WINDOW / 3,
            () if age < Duration::from_secs(1) => BEAT,
            () => BEAT * 2,
        };
        self.next = now.after(wait);
        true
    }

    /// When it is this node's turn: everyone may claim from `base` on, in the order of ranks. When a veto
    /// ends early, or somebody ahead is gone, all see it at once: the order counts anew from there, or all
    /// would claim in that moment.
    pub(super) fn claim_slot(&mut self, now: Moment, base: Moment, ahead: u32, rtt: Duration) -> Moment {
        if base < self.base || ahead < self.ahead {
            self.eased = now;
        }
        (self.base, self.ahead) = (base, ahead);
        base.max(self.eased).after((STAGGER + rtt).saturating_mul(ahead))
    }

    pub(super) fn deadline(&self) -> Moment {
        self.next
    }
}
