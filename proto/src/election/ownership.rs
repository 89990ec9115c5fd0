//! What an owner does while it owns: renew, announce, look out for others, put back.

use std::time::Duration;

use super::action::{Action, VipEvent};
use crate::time::Moment;

/// Lifetime of the address in the kernel. Removed 2.0 s after the last renewal (measured), so that a killed
/// or frozen agent has lost it within 2.5 s in any case.
pub const LIFETIME: Duration = Duration::from_secs(2);

/// Time between two renewals: four in a row must fail before the kernel takes the address from a live owner. They are
/// due at its multiples, as beats are, so that the owner wakes up once for both.
const RENEWAL: Duration = Duration::from_millis(500);

/// When it is announced, counted from the claim: switches throttle or lose announcements, and Linux may pass
/// over a second one inside a second.
const ANNOUNCEMENTS: [u64; 6] = [0, 5, 50, 200, 1_100, 3_000];

/// Time between two announcements after these.
const REFRESH: Duration = Duration::from_secs(30);

/// Time between two looks for another that answers for the address.
const LOOKOUT: Duration = Duration::from_secs(5);

/// Within this after a defence, a second sign of a stranger means that it stays (RFC 5227, 2.4 b).
const DEFENCE: Duration = Duration::from_secs(10);

/// Signs of one appearance come in bursts: one question gets more than one answer.
const BURST: Duration = Duration::from_millis(500);

/// Shortest time between two times of putting back.
const PUT_BACK: Duration = Duration::from_millis(250);

/// How often it is put back so quickly; each second allows one more. Who removes it at once every time is
/// not fought four times a second for ever.
const PUT_BACKS: u64 = 10;

/// One ownership, from claim to release.
#[derive(Debug, Clone)]
pub(super) struct Ownership {
    renew: Moment,
    announced_from: Moment,
    announcements: usize,
    announce: Moment,
    again: Option<Moment>,
    look: Moment,
    defended: Option<Moment>,
    missing: bool,
    put_back: Option<Moment>,
    /// Times of putting back that are left, in thousandths.
    budget: u64,
}

/// What to do about a stranger.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum ConflictResponse {
    Nothing,
    Defend,
    Yield,
}

impl Ownership {
    pub(super) fn new(now: Moment) -> Ownership {
        Ownership {
            renew: now.next_multiple(RENEWAL),
            announced_from: now,
            announcements: 0,
            announce: now,
            again: None,
            look: now.after(LOOKOUT),
            defended: None,
            missing: false,
            put_back: None,
            budget: PUT_BACKS * 1000,
        }
    }

    /// Does what is due; returns when something is next.
    pub(super) fn poll(&mut self, now: Moment, actions: &mut Vec<Action>) -> Moment {
        let back = self.may_restore_address();
        if self.missing && now >= back {
            if let Some(last) = self.put_back {
                let gained = u64::try_from(now.since(last).as_millis()).unwrap_or(u64::MAX);
                self.budget = self.budget.saturating_add(gained).min(PUT_BACKS * 1000);
            }
            self.budget = self.budget.saturating_sub(1000);
            self.missing = false;
            self.put_back = Some(now);
            self.renew = now.next_multiple(RENEWAL);
            self.announce = now;
            actions.push(Action::Add { lifetime: LIFETIME });
            actions.push(Action::Event(VipEvent::PutBack));
        }
        if now >= self.renew {
            self.renew = now.next_multiple(RENEWAL);
            actions.push(Action::Renew { lifetime: LIFETIME });
        }
        if now >= self.announce {
            while self.announcements < ANNOUNCEMENTS.len() && self.next_announcement() <= now {
                self.announcements += 1;
            }
            let listed = self.announcements < ANNOUNCEMENTS.len();
            self.announce = if listed { self.next_announcement() } else { now.after(REFRESH) };
            actions.push(Action::Announce);
        }
        if now >= self.look {
            self.look = now.after(LOOKOUT);
            actions.push(Action::Probe);
        }
        let next = self.renew.min(self.announce).min(self.look);
        if self.missing { next.min(back) } else { next }
    }

    fn may_restore_address(&self) -> Moment {
        let Some(last) = self.put_back else { return Moment::ZERO };
        last.after(PUT_BACK.max(Duration::from_millis(1000_u64.saturating_sub(self.budget))))
    }

    fn next_announcement(&self) -> Moment {
        let wait = ANNOUNCEMENTS.get(self.announcements).copied().unwrap_or(0);
        self.announced_from.after(Duration::from_millis(wait))
    }

    /// The address is gone from the interface.
    pub(super) fn removed(&mut self) {
        self.missing = true;
    }

    /// Another owner was heard, with a lower claim, or somebody who may have been one: clients that have heard
    /// it must hear this one again, now and after it has deleted. False: that was done a moment ago.
    pub(super) fn announce_again(&mut self, now: Moment) -> bool {
        if self.again.is_some_and(|last| now.since(last) < BURST) {
            return false;
        }
        self.again = Some(now);
        self.announced_from = now;
        self.announcements = 0;
        self.announce = now;
        true
    }

    /// A stranger answers for the address.
    pub(super) fn conflicting_address(&mut self, now: Moment) -> ConflictResponse {
        match self.defended {
            Some(last) if now.since(last) < BURST => ConflictResponse::Nothing,
            Some(last) if now.since(last) < DEFENCE => ConflictResponse::Yield,
            _ => {
                self.defended = Some(now);
                self.announce = now;
                // Whether it has gone is asked soon, not at the next look.
                self.look = now.after(Duration::from_secs(1));
                ConflictResponse::Defend
            }
        }
    }
}
