//! Which candidate to dial when, for one new connection.
//!
//! A plan owns no socket: the shell starts what [`Plan::next`] says, reports how it went, and waits until
//! the deadline that it was given.
//!
//! ```text
//!   start 1st ── no answer for HEDGE, or failed ──► start 2nd ── … ──► all failed, or BUDGET over: give up
//!                          first to connect wins, the others are closed
//! ```

use std::time::Duration;

use crate::time::Moment;

/// Whole time for finding a backend: well below the shortest time-out of a Kubernetes client (10 s for
/// leases), so that a client gets a reset and tries again itself.
pub const BUDGET: Duration = Duration::from_secs(3);

/// A candidate that has not answered for this long gets company. Above the round-trip time of any mesh
/// that etcd could live on, below what a person notices.
pub const HEDGE: Duration = Duration::from_millis(300);

/// What to do next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// Start dialling the candidate with this index.
    Dial(usize),
    /// Wait for an attempt to end, or until this moment.
    Wait(Moment),
    /// Nothing is left to try: reset the client.
    GiveUp,
}

/// The plan for one new connection over `candidates` in the order of their rank.
#[derive(Debug, Clone)]
pub struct Plan {
    candidates: usize,
    started: usize,
    under_way: usize,
    hedge_at: Moment,
    deadline: Moment,
}

impl Plan {
    /// A plan over this many candidates, beginning now.
    pub fn new(candidates: usize, now: Moment) -> Plan {
        Plan { candidates, started: 0, under_way: 0, hedge_at: now, deadline: now.after(BUDGET) }
    }

    /// What to do now.
    pub fn next(&mut self, now: Moment) -> Step {
        if now >= self.deadline {
            return Step::GiveUp;
        }
        let left = self.started < self.candidates;
        if left && (self.under_way == 0 || now >= self.hedge_at) {
            let index = self.started;
            self.started += 1;
            self.under_way += 1;
            self.hedge_at = now.after(HEDGE);
            return Step::Dial(index);
        }
        match (self.under_way, left) {
            (0, _) => Step::GiveUp,
            (_, true) => Step::Wait(self.hedge_at.min(self.deadline)),
            (_, false) => Step::Wait(self.deadline),
        }
    }

    /// An attempt failed.
    pub fn failed(&mut self) {
        self.under_way = self.under_way.saturating_sub(1);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(ms: u64) -> Moment {
        Moment::from_millis(ms)
    }

    #[test]
    fn a_refusal_moves_on_at_once() {
        let mut plan = Plan::new(2, at(0));
        assert_eq!(plan.next(at(0)), Step::Dial(0));
        plan.failed();
        assert_eq!(plan.next(at(1)), Step::Dial(1));
        plan.failed();
        assert_eq!(plan.next(at(2)), Step::GiveUp);
    }

    #[test]
    fn silence_gets_company_and_then_the_budget_ends_it() {
        let mut plan = Plan::new(2, at(0));
        assert_eq!(plan.next(at(0)), Step::Dial(0));
        assert_eq!(plan.next(at(10)), Step::Wait(at(300)));
        assert_eq!(plan.next(at(300)), Step::Dial(1));
        assert_eq!(plan.next(at(301)), Step::Wait(at(3000)));
        assert_eq!(plan.next(at(3000)), Step::GiveUp);
    }

    #[test]
    fn no_candidate_is_given_up_at_once() {
        assert_eq!(Plan::new(0, at(0)).next(at(0)), Step::GiveUp);
    }
}
