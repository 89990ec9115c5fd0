//! Decides which candidate to dial when, for one new connection.
//!
//! A plan owns no socket: the shell carries out the step of [`DialPlan::next`], reports the result, and waits
//! until the returned deadline.
//!
//! ```text
//!   start 1st ── no answer for its patience, or failed ──► start 2nd ── … ──► all failed, or BUDGET over:
//!                          first to connect wins, the others are closed         give up
//! ```
//!
//! A second attempt in addition to the first is extra load, and most wanted when everybody is slow. So
//! [`RaceBudget`] limits such extras, and when it is used up, waiting wins.

use std::time::Duration;

use crate::time::Moment;

/// Total time for finding a backend: well below the shortest time-out of a Kubernetes client (10 s for
/// leases), so that a client gets a reset and retries by itself.
pub const BUDGET: Duration = Duration::from_secs(3);

/// The shortest patience: a scheduler's hiccup on a busy node must not look like silence.
const MIN_PATIENCE: Duration = Duration::from_millis(50);

/// The longest patience, also for a backend of unknown round-trip time. Above the round-trip time of any mesh
/// that etcd could work on, below what a person notices.
pub const MAX_PATIENCE: Duration = Duration::from_millis(300);

/// How long a backend may take to connect before another is raced: three round trips, since one is needed and
/// a path that is that late has most likely lost a packet.
pub fn connect_patience(rtt: Option<Duration>) -> Duration {
    rtt.map_or(MAX_PATIENCE, |rtt| rtt.saturating_mul(3).clamp(MIN_PATIENCE, MAX_PATIENCE))
}

/// What to do next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DialStep {
    /// Start dialling the candidate with this index.
    Dial(usize),
    /// Wait for an attempt to end, or until this moment.
    Wait(Moment),
    /// Nothing is left to try: reset the client.
    GiveUp,
}

/// The plan for one new connection over candidates in the order of their rank.
#[derive(Debug, Clone)]
pub struct DialPlan {
    patience: Vec<Duration>,
    started: usize,
    under_way: usize,
    hedge_at: Moment,
    deadline: Moment,
}

impl DialPlan {
    /// A plan over candidates with these [`connect_patience`]s, starting now.
    pub fn new(patience: Vec<Duration>, now: Moment) -> DialPlan {
        DialPlan { patience, started: 0, under_way: 0, hedge_at: now, deadline: now.after(BUDGET) }
    }

    /// What to do now. `may_race` is called, and so charged, when a candidate would be started while another
    /// is still in progress; if it returns false it is called again after as much patience.
    pub fn next(&mut self, now: Moment, may_race: impl FnOnce() -> bool) -> DialStep {
        if now >= self.deadline {
            return DialStep::GiveUp;
        }
        match self.patience.get(self.started).copied() {
            Some(patience) if self.under_way == 0 || now >= self.hedge_at => {
                self.hedge_at = now.after(patience);
                if self.under_way > 0 && !may_race() {
                    return DialStep::Wait(self.hedge_at.min(self.deadline));
                }
                self.started += 1;
                self.under_way += 1;
                DialStep::Dial(self.started - 1)
            }
            Some(_) => DialStep::Wait(self.hedge_at.min(self.deadline)),
            None if self.under_way == 0 => DialStep::GiveUp,
            None => DialStep::Wait(self.deadline),
        }
    }

    /// An attempt failed.
    pub fn failed(&mut self) {
        self.under_way = self.under_way.saturating_sub(1);
    }
}

/// Seconds that [`RaceBudget`] remembers.
const WINDOW_S: usize = 10;

/// Extras that are always allowed in a window: a service with few clients has no other history.
const FLOOR: u32 = 10;

/// One extra for so many connections. A fifth: enough for one of three masters to fail until the others know
/// of it, and a cluster that is slow as a whole gets at most that much additional load.
const SHARE: u32 = 5;

/// Bounds races and replays to a share of the recent connections of a service. One for each service.
///
/// Exact rather than a bucket of tokens: within the window there are never more extras than the larger of
/// the floor and the share of the connections that began in it.
#[derive(Debug, Clone, Default)]
pub struct RaceBudget {
    /// By second, modulo the window: connections and extras.
    slots: [(u32, u32); WINDOW_S],
    /// The second of the newest slot.
    second: u64,
}

impl RaceBudget {
    /// Counts a client.
    pub fn connection(&mut self, now: Moment) {
        let slot = self.turn(now);
        slot.0 = slot.0.saturating_add(1);
    }

    /// Requests one extra attempt; it is charged when true.
    pub fn extra(&mut self, now: Moment) -> bool {
        self.turn(now);
        let sum = |of: fn(&(u32, u32)) -> u32| self.slots.iter().map(of).fold(0, u32::saturating_add);
        let (connections, extras) = (sum(|slot| slot.0), sum(|slot| slot.1));
        if extras >= FLOOR.max(connections / SHARE) {
            return false;
        }
        self.turn(now).1 += 1;
        true
    }

    /// The current slot, after all slots older than the window were emptied.
    fn turn(&mut self, now: Moment) -> &mut (u32, u32) {
        let second = now.as_millis() / 1000;
        let passed = second.saturating_sub(self.second).min(WINDOW_S as u64);
        self.second = self.second.max(second);
        for back in 0..passed {
            self.slots[((self.second - back) % WINDOW_S as u64) as usize] = (0, 0);
        }
        &mut self.slots[(self.second % WINDOW_S as u64) as usize]
    }
}

/// Shortest and longest silence after a ClientHello before it is sent again: a garbage collection of an
/// apiserver takes less than the former, and people notice the latter.
const MIN_SILENCE: Duration = Duration::from_millis(250);
const MAX_SILENCE: Duration = Duration::from_secs(1);

/// How long a service's backends take from the ClientHello to their first byte, and from that how long a
/// silence is too long.
#[derive(Debug, Clone, Copy, Default)]
pub struct FirstByteLatency {
    /// About the slowest of a hundred, in microseconds: it rises by a quarter of the excess of a slower
    /// sample, and falls by a 256th of the difference to a faster one.
    slow_us: Option<u64>,
}

impl FirstByteLatency {
    /// A backend's first byte arrived after `took`.
    pub fn observe(&mut self, took: Duration) {
        // Anything slower than the longest patience can't lengthen it.
        let took = u64::try_from(took.min(MAX_SILENCE).as_micros()).unwrap_or(u64::MAX);
        self.slow_us = Some(match self.slow_us {
            None => took,
            Some(slow) if took > slow => slow + (took - slow).div_ceil(4),
            Some(slow) => slow - (slow - took) / 256,
        });
    }

    /// A silence that is too long: four times what is slow, within bounds. The longest while nothing is
    /// known.
    pub fn too_long(&self) -> Duration {
        self.slow_us.map_or(MAX_SILENCE, |slow| {
            Duration::from_micros(slow).saturating_mul(4).clamp(MIN_SILENCE, MAX_SILENCE)
        })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn at(ms: u64) -> Moment {
        Moment::from_millis(ms)
    }

    fn plan(candidates: usize) -> DialPlan {
        DialPlan::new(vec![MAX_PATIENCE; candidates], at(0))
    }

    #[test]
    fn patience_is_three_round_trips_within_bounds() {
        let ms = Duration::from_millis;
        let table =
            [(None, 300), (Some(1), 50), (Some(16), 50), (Some(20), 60), (Some(99), 297), (Some(500), 300)];
        for (rtt, expected) in table {
            assert_eq!(connect_patience(rtt.map(ms)), ms(expected), "{rtt:?}");
        }
    }

    #[test]
    fn a_refusal_moves_on_at_once_and_is_no_race() {
        let mut plan = plan(2);
        let no = || unreachable!("a lone attempt needs no leave");
        assert_eq!(plan.next(at(0), no), DialStep::Dial(0));
        plan.failed();
        assert_eq!(plan.next(at(1), no), DialStep::Dial(1));
        plan.failed();
        assert_eq!(plan.next(at(2), no), DialStep::GiveUp);
    }

    #[test]
    fn a_silent_dial_is_raced_until_the_budget_is_over() {
        let mut plan = plan(2);
        assert_eq!(plan.next(at(0), || true), DialStep::Dial(0));
        assert_eq!(plan.next(at(10), || true), DialStep::Wait(at(300)));
        assert_eq!(plan.next(at(300), || true), DialStep::Dial(1));
        assert_eq!(plan.next(at(301), || true), DialStep::Wait(at(3000)));
        assert_eq!(plan.next(at(3000), || true), DialStep::GiveUp);
    }

    #[test]
    fn each_backend_gets_its_own_patience() {
        let ms = Duration::from_millis;
        let mut plan = DialPlan::new(vec![ms(50), ms(120), ms(300)], at(0));
        assert_eq!(plan.next(at(0), || true), DialStep::Dial(0));
        assert_eq!(plan.next(at(1), || true), DialStep::Wait(at(50)));
        assert_eq!(plan.next(at(50), || true), DialStep::Dial(1));
        assert_eq!(plan.next(at(51), || true), DialStep::Wait(at(170)));
    }

    #[test]
    fn without_race_budget_the_plan_waits() {
        let mut plan = plan(2);
        assert_eq!(plan.next(at(0), || false), DialStep::Dial(0));
        assert_eq!(plan.next(at(300), || false), DialStep::Wait(at(600)));
        assert_eq!(plan.next(at(600), || true), DialStep::Dial(1));
    }

    #[test]
    fn without_candidates_the_plan_gives_up_at_once() {
        assert_eq!(plan(0).next(at(0), || true), DialStep::GiveUp);
    }

    #[test]
    fn a_slow_cluster_gets_a_fifth_more_dials_and_a_quiet_one_ten() {
        let mut quiet = RaceBudget::default();
        assert_eq!((0..100).filter(|_| quiet.extra(at(500))).count(), 10);
        assert!(!quiet.extra(at(9_999)) && quiet.extra(at(10_000)), "they are forgotten after the window");
        let mut busy = RaceBudget::default();
        let mut extras = 0;
        for ms in (0..60_000).step_by(20) {
            busy.connection(at(ms));
            extras += usize::from(busy.extra(at(ms)));
        }
        assert!((550..=610).contains(&extras), "{extras} of 3000");
        assert!(busy.extra(at(1_000_000)), "a long pause leaves the floor");
    }

    proptest! {
        #[test]
        fn no_window_has_more_extras_than_it_may(
            steps in proptest::collection::vec((0u64..400, any::<bool>()), 0..400)
        ) {
            let (mut budget, mut now) = (RaceBudget::default(), 0);
            let (mut came, mut extras) = (Vec::new(), Vec::new());
            for (wait, asks) in steps {
                now += wait;
                if !asks {
                    budget.connection(at(now));
                    came.push(now);
                } else if budget.extra(at(now)) {
                    extras.push(now);
                    let begin = (now / 1000).saturating_sub(WINDOW_S as u64 - 1) * 1000;
                    let within = |list: &[u64]| list.iter().filter(|one| **one >= begin).count() as u32;
                    prop_assert!(within(&extras) <= FLOOR.max(within(&came) / SHARE));
                }
            }
        }
    }

    #[test]
    fn the_silence_limit_adapts_to_the_service() {
        let ms = Duration::from_millis;
        let after = |samples: &[u64]| {
            let mut first = FirstByteLatency::default();
            samples.iter().for_each(|sample| first.observe(ms(*sample)));
            first.too_long()
        };
        assert_eq!(after(&[]), MAX_SILENCE);
        assert_eq!(after(&[3; 10]), MIN_SILENCE);
        assert_eq!(after(&[100; 10]), ms(400));
        assert_eq!(after(&[60_000]), MAX_SILENCE);
        // One of a hundred at 200 ms is normal for this service; a single one is forgotten.
        let mixed: Vec<u64> = (0..2000).map(|i| if i % 100 == 0 { 200 } else { 5 }).collect();
        assert!(after(&mixed) > ms(250), "{:?}", after(&mixed));
        let lone: Vec<u64> = std::iter::once(200).chain([5; 2000]).collect();
        assert_eq!(after(&lone), MIN_SILENCE);
    }
}
