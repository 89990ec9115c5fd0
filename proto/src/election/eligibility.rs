//! Whether this node could own the VIP: what must hold, and checks whose flapping is damped.
//!
//! ```text
//!               first check good              3 bad in a row
//!   Unchecked ────────────────────────► Fit ─────────────────► Bad
//!       │ first check bad                ▲                     │ ▲
//!       ▼                                │ 10 good in a row,   │ │
//!      Bad                               │ hold-down over      │ │
//!                                        │        1 good       ▼ │
//!                                        └──────────────── Recovering
//!                                                     3 bad in a row
//! ```
//!
//! Recovering may own, but only when no other node is fit: damping must never leave an address without an
//! owner. A fact that does not hold counts at once and so does its return, since facts do not flap by load.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use super::rank::CandidateState;
use crate::cause::Cause;
use crate::time::Moment;
use crate::unfit::Unfit;

/// Bad checks in a row that make a node unfit.
pub const FALL: u32 = 3;

/// Good checks in a row after which it is fit again.
pub const RISE: u32 = 10;

/// Losses by bad health within [`MEMORY`] after which it is held back.
const TOLERATED: usize = 3;

/// How long a loss is remembered.
const MEMORY: Duration = Duration::from_secs(300);

/// The first hold-down; each further loss doubles it.
const HOLD: Duration = Duration::from_secs(5);

/// The longest hold-down.
const MAX_HOLD: Duration = Duration::from_secs(60);

/// Something that must hold apart from the service's health.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum EligibilityFact {
    /// It may change addresses and open packet sockets, and the kernel has taken the address.
    Capability,
    /// An interface covers the VIP and has L2, which is tested. Untested until told otherwise; while it
    /// does not hold, nothing is sent for this VIP.
    Segment,
    /// The interface is up and has a carrier.
    Link,
    /// The VIP is not an address that the node has for itself.
    Address,
    /// It takes new connections.
    Draining,
}

/// What this node knows of its own fitness.
#[derive(Debug, Clone)]
pub(super) struct VipEligibility {
    wrong: BTreeMap<EligibilityFact, Unfit>,
    good: u32,
    bad: u32,
    /// None: healthy, or recovering.
    unhealthy: Option<Unfit>,
    losses: VecDeque<Moment>,
    hold: Duration,
    held_until: Moment,
}

impl VipEligibility {
    pub(super) fn new() -> VipEligibility {
        VipEligibility {
            wrong: BTreeMap::from([(EligibilityFact::Segment, Cause::SegmentUntested.into())]),
            good: 0,
            bad: 0,
            unhealthy: Some(Unfit::new(Cause::NotCheckedYet, "the service is not checked yet")),
            losses: VecDeque::new(),
            hold: Duration::ZERO,
            held_until: Moment::ZERO,
        }
    }

    pub(super) fn set(&mut self, fact: EligibilityFact, holds: Result<(), Unfit>) {
        match holds {
            Ok(()) => self.wrong.remove(&fact),
            Err(reason) => self.wrong.insert(fact, reason),
        };
    }

    pub(super) fn holds(&self, fact: EligibilityFact) -> bool {
        !self.wrong.contains_key(&fact)
    }

    /// Takes in one check of the service.
    pub(super) fn checked(&mut self, outcome: Result<(), Unfit>) {
        let first = self.good == 0 && self.bad == 0;
        match outcome {
            Ok(()) => {
                self.bad = 0;
                self.good = if first { RISE } else { self.good.saturating_add(1).min(RISE) };
                self.unhealthy = None;
            }
            Err(reason) => {
                self.bad = self.bad.saturating_add(1);
                if self.good < RISE {
                    self.good = 0;
                }
                if self.bad >= FALL || self.unhealthy.is_some() {
                    self.good = 0;
                    self.unhealthy = Some(reason);
                }
            }
        }
    }

    /// It was owner and became unfit.
    pub(super) fn lost(&mut self, now: Moment) {
        self.losses.retain(|at| now.since(*at) < MEMORY);
        if self.losses.len() >= TOLERATED {
            self.losses.pop_front();
        }
        self.losses.push_back(now);
        if self.losses.len() < TOLERATED {
            self.hold = Duration::ZERO;
            return;
        }
        self.hold = (self.hold * 2).clamp(HOLD, MAX_HOLD);
        self.held_until = now.after(self.hold);
    }

    /// How it stands, apart from what only the election knows.
    pub(super) fn candidate_state(&self, now: Moment) -> CandidateState {
        match (self.wrong.values().next(), &self.unhealthy) {
            (Some(reason), _) | (None, Some(reason)) => CandidateState::Unfit(reason.clone()),
            (None, None) if self.good < RISE || now < self.held_until => CandidateState::Recovering,
            (None, None) => CandidateState::Fit,
        }
    }

    /// Why it is only recovering.
    pub(super) fn recovery(&self, now: Moment) -> Unfit {
        if now < self.held_until {
            let left = self.held_until.since(now).as_secs() + 1;
            let reason = format_args!("held back for {left}s: unhealthy {TOLERATED} times in 5 minutes");
            return Unfit::new(Cause::HeldBack, reason);
        }
        let seen = u8::try_from(self.good).unwrap_or(u8::MAX);
        let cause = Cause::Recovering { seen, of: RISE as u8 };
        Unfit::new(cause, format_args!("recovering: {seen} of {RISE} good checks"))
    }

    /// When its standing changes by itself.
    pub(super) fn deadline(&self, now: Moment) -> Option<Moment> {
        (now < self.held_until).then_some(self.held_until)
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::at;
    use super::*;

    #[test]
    fn checks_are_damped() {
        let mut fitness = VipEligibility::new();
        fitness.set(EligibilityFact::Segment, Ok(()));
        let mut check = |outcome: &str| -> Vec<char> {
            let step = |good: char| {
                fitness.checked(if good == '+' { Ok(()) } else { Err(Cause::TimedOut.into()) });
                match fitness.candidate_state(at(0)) {
                    CandidateState::Fit => 'F',
                    CandidateState::Recovering => 'R',
                    _ => 'u',
                }
            };
            outcome.chars().map(step).collect()
        };
        assert_eq!(check("+--+--+---").iter().collect::<String>(), "FFFFFFFFFu", "three in a row");
        assert_eq!(check("-+--+++++++++++").iter().collect::<String>(), "uRRRRRRRRRRRRFF", "ten in a row");
    }

    #[test]
    fn who_loses_it_three_times_in_five_minutes_is_held_back_for_ever_longer() {
        let mut fitness = VipEligibility::new();
        fitness.set(EligibilityFact::Segment, Ok(()));
        fitness.checked(Ok(()));
        let mut held = Vec::new();
        for n in 0..8 {
            fitness.lost(at(n * 1_000));
            held.push(fitness.held_until.since(at(n * 1_000)).as_secs());
        }
        assert_eq!(held, [0, 0, 5, 10, 20, 40, 60, 60]);
        assert_eq!(
            fitness.candidate_state(at(8_000)),
            CandidateState::Recovering,
            "and claims when nobody else can"
        );
        fitness.lost(at(1_000_000));
        assert_eq!(fitness.candidate_state(at(1_000_000)), CandidateState::Fit, "forgotten");
    }
}
