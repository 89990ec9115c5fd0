//! A node's own checks, turned into what it says of itself.
//!
//! ```text
//!             first answer           good x rise (401, 403 x rise: Alive)
//!   Absent ────────────────► Alive / NotReady ──► Ready
//!      ▲                            ▲               │ 401, 403, 5xx: at once
//!      │ down for FORGET_AFTER      │ any answer    │ refused: at once
//!      └────────────── Down ◄───────┴───────────────┘ no answer x fall
//! ```
//!
//! An answer is believed at once when it is worse than what is known and after `rise` in a row when it is
//! better: sending a client to a master that is not ready costs more than waiting a second. That goes for
//! 401 and 403 as well: an apiserver that starts answers 403 to everyone until it has loaded who may do
//! what, about a second. Silence is believed only after
//! `fall` of them, since a machine under load is slow before it is dead (k3s#10240, talos#8112).
//!
//! That there is no instance is a statement of its own, after which others reset what they hold to it. So a
//! checker that takes the place of another begins with what that one said ([`HealthTracker::resume`]), and one that
//! starts with its agent begins with [`ServiceHealth::not_checked_yet`] where there was an instance before: neither
//! may say that there is none before it has looked.

use std::fmt;
use std::time::Duration;

use crate::cause::{Cause, Detail, Reason};
use crate::time::{Moment, UnixMs};

/// After this long without any answer an instance counts as taken away: its node stops offering it.
/// Longer than a restart of an apiserver, which should show as down and not as gone.
const FORGET_AFTER: Duration = Duration::from_secs(60);

/// What a node says of its own instance of a service. The order is from best to worst.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Readiness {
    /// It serves.
    Ready,
    /// It answers, but would not say whether it is ready (401, 403).
    Alive,
    /// It says something that only a later version understands.
    Other,
    /// It answers that it is not ready.
    NotReady,
    /// It does not answer.
    Down,
}

impl Readiness {
    /// The code that stands for it in pulses and records.
    pub fn code(self) -> u8 {
        match self {
            Readiness::Ready => 0,
            Readiness::Alive => 1,
            Readiness::NotReady => 2,
            Readiness::Down => 3,
            Readiness::Other => u8::MAX,
        }
    }

    /// The readiness that a code stands for.
    pub fn of_code(code: u64) -> Readiness {
        match code {
            0 => Readiness::Ready,
            1 => Readiness::Alive,
            2 => Readiness::NotReady,
            3 => Readiness::Down,
            _ => Readiness::Other,
        }
    }

    /// The word that gossip and status use.
    pub fn as_str(self) -> &'static str {
        match self {
            Readiness::Ready => "ready",
            Readiness::Alive => "alive",
            Readiness::Other => "other",
            Readiness::NotReady => "not-ready",
            Readiness::Down => "down",
        }
    }

    /// The readiness that a word stands for.
    pub fn from_word(word: &str) -> Option<Readiness> {
        [Readiness::Ready, Readiness::Alive, Readiness::Other, Readiness::NotReady, Readiness::Down]
            .into_iter()
            .find(|readiness| readiness.as_str() == word)
    }
}

impl fmt::Display for Readiness {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

/// What one check came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CheckAnswer {
    /// It said that it is ready.
    Good,
    /// It is there, but readiness is unknown.
    Alive,
    /// It said that it is not ready, or answered what was not expected.
    NotReady,
    /// The port is closed: nothing runs there.
    Refused,
    /// Nothing came back in time, or the connection broke.
    Silent,
}

/// What one check found, and why.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CheckOutcome {
    /// What it came to.
    pub answer: CheckAnswer,
    /// Why.
    pub cause: Cause,
    /// What else is known, in a few words for people; may be empty.
    pub detail: String,
}

impl CheckOutcome {
    /// An outcome of which no more is known than its cause.
    pub fn new(answer: CheckAnswer, cause: Cause) -> CheckOutcome {
        CheckOutcome { answer, cause, detail: String::new() }
    }

    /// With what else is known.
    #[must_use]
    pub fn with(self, detail: impl Into<String>) -> CheckOutcome {
        CheckOutcome { detail: detail.into(), ..self }
    }
}

/// What a node says of one of its services, and since when.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServiceHealth {
    /// How it is.
    pub readiness: Readiness,
    /// Why. Others go by it: where the port of what is down is closed, the machine lives, and what is still
    /// held there is its kernel's to end (see [`crate::backends::held_action`]).
    pub cause: Cause,
    /// What else is known, for people.
    pub detail: Detail,
    /// Since when `readiness` has been so.
    pub since: UnixMs,
}

impl ServiceHealth {
    /// Of an instance that was there when its agent stopped and has not been checked since. As far as others
    /// know it serves: they keep what they hold to it, and prefer those that say that they are ready.
    pub fn not_checked_yet(since: UnixMs) -> ServiceHealth {
        let detail = Detail::default();
        ServiceHealth { readiness: Readiness::Alive, cause: Cause::NotCheckedYet, detail, since }
    }

    /// Why, for people.
    pub fn reason(&self) -> Reason {
        self.cause.with(&self.detail)
    }
}

/// Turns outcomes of checks into [`ServiceHealth`]. `None` means that there is no such service here.
#[derive(Debug, Clone)]
pub struct HealthTracker {
    rise: u32,
    fall: u32,
    good_in_a_row: u32,
    /// Answers in a row that are good or of unknown readiness.
    alive_in_a_row: u32,
    silent_in_a_row: u32,
    /// It has had no answer yet, or none since the instance was taken away.
    unanswered: bool,
    /// From here on [`FORGET_AFTER`] counts; none where nothing is said.
    last_answer: Option<Moment>,
    health: Option<ServiceHealth>,
    /// What was last said beyond the cause, and its number.
    detail: String,
    revision: u16,
}

impl HealthTracker {
    /// A checker that has seen nothing yet.
    pub fn new(rise: u32, fall: u32) -> HealthTracker {
        HealthTracker {
            rise: rise.max(1),
            fall: fall.max(1),
            good_in_a_row: 0,
            alive_in_a_row: 0,
            silent_in_a_row: 0,
            unanswered: true,
            last_answer: None,
            health: None,
            detail: String::new(),
            revision: 0,
        }
    }

    /// A checker that goes on from what was said before it: its first answer is believed at once as any first
    /// one, and silence is that of an instance that is there.
    pub fn resume(rise: u32, fall: u32, health: ServiceHealth, now: Moment) -> HealthTracker {
        // Its own words are others than those of before, and so is their number.
        let revision = health.detail.revision().wrapping_add(1);
        HealthTracker {
            last_answer: Some(now),
            health: Some(health),
            revision,
            ..HealthTracker::new(rise, fall)
        }
    }

    /// What is currently said.
    pub fn health(&self) -> Option<&ServiceHealth> {
        self.health.as_ref()
    }

    /// Takes one outcome in; true when what is said changed (a new cause alone is no change of state, but is
    /// said too).
    pub fn observe(&mut self, now: Moment, wall: UnixMs, outcome: CheckOutcome) -> bool {
        let first = self.unanswered;
        let next = |count: u32, goes_on: bool| if goes_on { count.saturating_add(1) } else { 0 };
        let CheckOutcome { answer, cause, detail } = outcome;
        let good = answer == CheckAnswer::Good;
        self.good_in_a_row = next(self.good_in_a_row, good);
        self.alive_in_a_row = next(self.alive_in_a_row, good || answer == CheckAnswer::Alive);
        match answer {
            CheckAnswer::Good => {
                self.answered(now);
                // The very first answer is believed at once: a node that starts beside a healthy
                // apiserver should serve within one check.
                if first || self.good_in_a_row >= self.rise || self.is(Readiness::Ready) {
                    return self.publish(wall, Readiness::Ready, cause, detail);
                }
                self.not_yet(wall, cause, &detail, self.good_in_a_row)
            }
            CheckAnswer::Alive => {
                self.answered(now);
                let worse = self.is(Readiness::Ready) || self.is(Readiness::Alive);
                if first || worse || self.alive_in_a_row >= self.rise {
                    return self.publish(wall, Readiness::Alive, cause, detail);
                }
                self.not_yet(wall, cause, &detail, self.alive_in_a_row)
            }
            CheckAnswer::NotReady => {
                self.answered(now);
                self.publish(wall, Readiness::NotReady, cause, detail)
            }
            CheckAnswer::Refused => {
                self.silent_in_a_row = self.silent_in_a_row.saturating_add(1);
                self.no_answer(now, wall, cause, detail)
            }
            CheckAnswer::Silent => {
                self.silent_in_a_row = self.silent_in_a_row.saturating_add(1);
                if self.silent_in_a_row < self.fall && !self.is(Readiness::Down) {
                    return false;
                }
                self.no_answer(now, wall, cause, detail)
            }
        }
    }

    /// It is better than what is said, and not believed yet.
    fn not_yet(&mut self, wall: UnixMs, cause: Cause, detail: &str, seen: u32) -> bool {
        let byte = |count: u32| u8::try_from(count).unwrap_or(u8::MAX);
        let recovering = Cause::Recovering { seen: byte(seen), of: byte(self.rise) };
        let detail = if detail.is_empty() { cause.to_string() } else { format!("{cause}: {detail}") };
        let readiness = self.health.as_ref().map(|health| health.readiness);
        // It answers, so it is not down any more.
        let readiness = readiness.filter(|one| *one != Readiness::Down).unwrap_or(Readiness::NotReady);
        self.publish(wall, readiness, recovering, detail)
    }

    fn answered(&mut self, now: Moment) {
        self.unanswered = false;
        self.last_answer = Some(now);
        self.silent_in_a_row = 0;
    }

    fn no_answer(&mut self, now: Moment, wall: UnixMs, cause: Cause, detail: String) -> bool {
        match self.last_answer {
            None => false,
            Some(answer) if now.since(answer) >= FORGET_AFTER => {
                self.last_answer = None;
                self.unanswered = true;
                self.health.take().is_some()
            }
            Some(_) => self.publish(wall, Readiness::Down, cause, detail),
        }
    }

    fn is(&self, readiness: Readiness) -> bool {
        self.health.as_ref().is_some_and(|health| health.readiness == readiness)
    }

    fn publish(&mut self, wall: UnixMs, readiness: Readiness, cause: Cause, detail: String) -> bool {
        // The author's own words, before they are a detail: whoever reads them goes by the number.
        if detail != self.detail {
            self.revision = self.revision.wrapping_add(1);
            self.detail = detail;
        }
        let since = match &self.health {
            Some(health) if health.readiness == readiness => health.since,
            _ => wall,
        };
        let health =
            ServiceHealth { readiness, cause, detail: Detail::new(self.revision, &self.detail), since };
        if self.health.as_ref() == Some(&health) {
            return false;
        }
        self.health = Some(health);
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(outcomes: &[(u64, CheckOutcome)]) -> Vec<Option<Readiness>> {
        run_with(HealthTracker::new(2, 3), outcomes)
    }

    fn run_with(mut checker: HealthTracker, outcomes: &[(u64, CheckOutcome)]) -> Vec<Option<Readiness>> {
        outcomes
            .iter()
            .map(|(at, outcome)| {
                checker.observe(Moment::from_millis(*at), UnixMs(*at), outcome.clone());
                checker.health().map(|health| health.readiness)
            })
            .collect()
    }

    fn good() -> CheckOutcome {
        CheckOutcome::new(CheckAnswer::Good, Cause::Http(200))
    }
    fn silent() -> CheckOutcome {
        CheckOutcome::new(CheckAnswer::Silent, Cause::TimedOut)
    }
    fn refused() -> CheckOutcome {
        CheckOutcome::new(CheckAnswer::Refused, Cause::PortClosed)
    }
    fn not_ready() -> CheckOutcome {
        CheckOutcome::new(CheckAnswer::NotReady, Cause::Http(500))
    }
    fn alive() -> CheckOutcome {
        CheckOutcome::new(CheckAnswer::Alive, Cause::Http(403))
    }

    #[test]
    fn every_transition_of_the_diagram() {
        use Readiness::{Alive, Down, NotReady, Ready};
        // Nothing there: never offered.
        assert_eq!(run(&[(0, refused()), (1000, silent())]), [None, None]);
        // The first good answer is believed at once.
        assert_eq!(run(&[(0, good())]), [Some(Ready)]);
        // A bad answer is believed at once, a good one after it only twice in a row.
        assert_eq!(
            run(&[(0, good()), (1, not_ready()), (2, good()), (3, good())]),
            [Some(Ready), Some(NotReady), Some(NotReady), Some(Ready)]
        );
        assert_eq!(run(&[(0, alive()), (1, good()), (2, good())]), [Some(Alive), Some(Alive), Some(Ready)]);
        // Silence is believed after `fall`, a closed port at once.
        assert_eq!(
            run(&[(0, good()), (1, silent()), (2, silent()), (3, silent())]),
            [Some(Ready), Some(Ready), Some(Ready), Some(Down)]
        );
        assert_eq!(run(&[(0, good()), (1, refused())]), [Some(Ready), Some(Down)]);
        // Back from down: not ready until `rise`.
        assert_eq!(
            run(&[(0, good()), (1, refused()), (2, good()), (3, good())]),
            [Some(Ready), Some(Down), Some(NotReady), Some(Ready)]
        );
        // Gone for a minute: no longer offered, and believed at once when it returns.
        assert_eq!(
            run(&[(0, good()), (1, refused()), (60_000, refused()), (60_001, good())]),
            [Some(Ready), Some(Down), None, Some(Ready)]
        );
    }

    #[test]
    fn what_was_there_before_the_checker_is_there_until_it_has_not_answered_for_a_minute() {
        use Readiness::{Alive, Down, NotReady, Ready};
        let resumed = |outcomes: &[(u64, CheckOutcome)]| {
            let checker =
                HealthTracker::resume(2, 3, ServiceHealth::not_checked_yet(UnixMs(0)), Moment::ZERO);
            assert_eq!(checker.health().map(|health| health.readiness), Some(Alive));
            run_with(checker, outcomes)
        };
        // One under load does not answer in time, as under any other checker.
        assert_eq!(
            resumed(&[(0, silent()), (1, silent()), (2, silent())]),
            [Some(Alive), Some(Alive), Some(Down)]
        );
        // The first answer is believed at once, however long it takes.
        assert_eq!(
            resumed(&[(0, silent()), (1, silent()), (2, good())]),
            [Some(Alive), Some(Alive), Some(Ready)]
        );
        assert_eq!(resumed(&[(0, not_ready())]), [Some(NotReady)]);
        // It restarts with the agent: it is down with its port closed, and not gone.
        assert_eq!(resumed(&[(0, refused()), (1, good())]), [Some(Down), Some(Ready)]);
        // It was taken away while the agent was stopped.
        assert_eq!(
            resumed(&[(0, refused()), (59_999, refused()), (60_000, refused())]),
            [Some(Down), Some(Down), None]
        );
    }

    #[test]
    fn a_starting_apiserver_that_refuses_everyone_for_a_second_gets_no_clients_for_it() {
        use Readiness::{Alive, Down, NotReady, Ready};
        // It restarts: one 403 before it knows who may do what, then it is ready.
        assert_eq!(
            run(&[(0, good()), (1, refused()), (2, alive()), (3, good()), (4, good())]),
            [Some(Ready), Some(Down), Some(NotReady), Some(NotReady), Some(Ready)]
        );
        // One that never says more is believed in the end.
        assert_eq!(
            run(&[(0, alive()), (1, refused()), (2, alive()), (3, alive()), (4, alive())]),
            [Some(Alive), Some(Down), Some(NotReady), Some(Alive), Some(Alive)]
        );
        assert_eq!(
            run(&[(0, not_ready()), (1, alive()), (2, silent()), (3, alive())]),
            [Some(NotReady), Some(NotReady), Some(NotReady), Some(NotReady)]
        );
        // Where it is worse than what was known it is believed at once.
        assert_eq!(run(&[(0, good()), (1, alive())]), [Some(Ready), Some(Alive)]);
    }

    #[test]
    fn since_moves_only_with_the_state() {
        let mut checker = HealthTracker::new(1, 1);
        checker.observe(Moment::ZERO, UnixMs(5), good());
        assert!(checker.observe(
            Moment::ZERO,
            UnixMs(9),
            CheckOutcome::new(CheckAnswer::Good, Cause::Http(204))
        ));
        assert_eq!(checker.health().map(|health| health.since), Some(UnixMs(5)));
        assert!(!checker.observe(
            Moment::ZERO,
            UnixMs(10),
            CheckOutcome::new(CheckAnswer::Good, Cause::Http(204))
        ));
    }

    #[test]
    fn a_new_detail_is_said_and_an_old_one_is_not_said_again() {
        let mut checker = HealthTracker::new(1, 1);
        let mut step = |detail: &str| {
            let changed = checker.observe(Moment::ZERO, UnixMs(5), not_ready().with(detail));
            (changed, checker.health().map(|health| health.reason().to_string()).unwrap_or_default())
        };
        assert_eq!(step("etcd failed"), (true, "HTTP 500: etcd failed".to_owned()));
        assert!(!step("etcd failed").0);
        assert_eq!(step("ping failed"), (true, "HTTP 500: ping failed".to_owned()));
    }

    #[test]
    fn what_recovers_says_how_far_it_is() {
        let mut checker = HealthTracker::new(3, 1);
        for outcome in [good(), refused(), good(), good()] {
            checker.observe(Moment::ZERO, UnixMs(5), outcome);
        }
        let health = checker.health().unwrap();
        assert_eq!(health.cause, Cause::Recovering { seen: 2, of: 3 });
        assert_eq!(health.reason().to_string(), "recovering, 2 of 3 checks: HTTP 200");
    }
}
