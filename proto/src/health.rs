//! Turns a node's own checks into the health that it publishes.
//!
//! ```text
//!             first answer           good x rise (401, 403 x rise: Alive)
//!   Absent ────────────────► Alive / NotReady ──► Ready
//!      ▲                            ▲               │ 401, 403, 5xx: at once
//!      │ down for FORGET_AFTER      │ any answer    │ refused: at once
//!      └────────────── Down ◄───────┴───────────────┘ no answer x fall
//! ```
//!
//! A worse answer counts at once, and a better one after `rise` in a row: sending a client to a master that
//! is not ready costs more than waiting a second. That includes 401 and 403: a starting apiserver answers 403
//! to everyone until it has loaded its RBAC rules, about a second. Silence counts only after `fall` of them,
//! since a machine under load is slow before it is dead (k3s#10240, talos#8112). One that does not even answer TLS
//! hellos is not slow: [`crate::handshake`] has its rules.
//!
//! That there is no instance is a statement of its own, after which others reset their connections to it. So
//! a checker that replaces another starts with that one's health ([`HealthTracker::resume`]), and one that
//! starts with its agent starts with [`ServiceHealth::not_checked_yet`] if there was an instance before:
//! neither may report that there is none before it has checked.

use std::fmt;
use std::time::Duration;

use crate::cause::{Cause, Detail, Reason};
use crate::handshake::HandshakeSilence;
use crate::time::{Moment, UnixMs};

/// After this long without any answer an instance counts as removed: its node stops offering it. Longer than
/// a restart of an apiserver, which should show as down and not as gone.
const FORGET_AFTER: Duration = Duration::from_secs(60);

/// A node's health report of its own instance of a service. The order is from best to worst.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Readiness {
    /// It serves.
    Ready,
    /// It answers, but does not reveal whether it is ready (401, 403).
    Alive,
    /// A readiness of a later version.
    Other,
    /// It answers that it is not ready.
    NotReady,
    /// It does not answer.
    Down,
}

impl Readiness {
    /// The code in pulses and records.
    pub fn code(self) -> u8 {
        match self {
            Readiness::Ready => 0,
            Readiness::Alive => 1,
            Readiness::NotReady => 2,
            Readiness::Down => 3,
            Readiness::Other => u8::MAX,
        }
    }

    /// The readiness of a code.
    pub fn of_code(code: u64) -> Readiness {
        match code {
            0 => Readiness::Ready,
            1 => Readiness::Alive,
            2 => Readiness::NotReady,
            3 => Readiness::Down,
            _ => Readiness::Other,
        }
    }

    /// The name in gossip and status.
    pub fn as_str(self) -> &'static str {
        match self {
            Readiness::Ready => "ready",
            Readiness::Alive => "alive",
            Readiness::Other => "other",
            Readiness::NotReady => "not-ready",
            Readiness::Down => "down",
        }
    }

    /// The readiness of a name.
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

/// The result of one check.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CheckAnswer {
    /// It reported ready.
    Good,
    /// It is there, but readiness is unknown.
    Alive,
    /// It reported not ready, or answered unexpectedly.
    NotReady,
    /// The port is closed: nothing runs there.
    Refused,
    /// Nothing came back in time, or the connection broke.
    Silent,
}

/// The result of one check, and why.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CheckOutcome {
    /// The result.
    pub answer: CheckAnswer,
    /// Why.
    pub cause: Cause,
    /// Details in a few words for people; may be empty.
    pub detail: String,
}

impl CheckOutcome {
    /// An outcome without a detail.
    pub fn new(answer: CheckAnswer, cause: Cause) -> CheckOutcome {
        CheckOutcome { answer, cause, detail: String::new() }
    }

    /// With a detail.
    #[must_use]
    pub fn with(self, detail: impl Into<String>) -> CheckOutcome {
        CheckOutcome { detail: detail.into(), ..self }
    }
}

/// A node's report about one of its services.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServiceHealth {
    /// Its readiness.
    pub readiness: Readiness,
    /// Why. Others act on it: if the port of a down instance is closed, the machine is alive, and its kernel
    /// ends the connections still held there (see [`crate::backends::held_action`]).
    pub cause: Cause,
    /// Details, for people.
    pub detail: Detail,
    /// When `readiness` last changed.
    pub since: UnixMs,
}

impl ServiceHealth {
    /// Of an instance that existed when its agent stopped and has not been checked since. As far as others
    /// know it serves: they keep their connections to it, and prefer instances that report ready.
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
    /// Consecutive answers that are good or of unknown readiness.
    alive_in_a_row: u32,
    silent_in_a_row: u32,
    /// It has had no answer yet, or none since the instance was removed.
    unanswered: bool,
    /// Start of [`FORGET_AFTER`]; `None` while nothing is published.
    last_answer: Option<Moment>,
    health: Option<ServiceHealth>,
    /// The last published detail, and its number.
    detail: String,
    revision: u16,
}

impl HealthTracker {
    /// A tracker without any result.
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

    /// A tracker that continues from earlier health: its first answer counts at once like any first one, and
    /// silence is that of an existing instance.
    pub fn resume(rise: u32, fall: u32, health: ServiceHealth, now: Moment) -> HealthTracker {
        // Its details differ from earlier ones, and so does the number.
        let revision = health.detail.revision().wrapping_add(1);
        HealthTracker {
            last_answer: Some(now),
            health: Some(health),
            revision,
            ..HealthTracker::new(rise, fall)
        }
    }

    /// The current health.
    pub fn health(&self) -> Option<&ServiceHealth> {
        self.health.as_ref()
    }

    /// Applies one outcome; true when the published health changed (a new cause alone is no change of state,
    /// but is published too).
    pub fn observe(&mut self, now: Moment, wall: UnixMs, outcome: CheckOutcome) -> bool {
        // That this process may open nothing more says nothing of the other side.
        if outcome.cause == Cause::NoDescriptors {
            return false;
        }
        let first = self.unanswered;
        let next = |count: u32, goes_on: bool| if goes_on { count.saturating_add(1) } else { 0 };
        let CheckOutcome { answer, cause, detail } = outcome;
        let good = answer == CheckAnswer::Good;
        self.good_in_a_row = next(self.good_in_a_row, good);
        self.alive_in_a_row = next(self.alive_in_a_row, good || answer == CheckAnswer::Alive);
        match answer {
            CheckAnswer::Good => {
                self.answered(now);
                // The very first answer counts at once: a node that starts next to a healthy apiserver should
                // serve within one check.
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

    /// Applies the silence of hellos; true when the published health changed. Where there was no answer yet, there may
    /// be no instance, or one that starts: its checks have the time that they always had.
    pub fn hellos_unanswered(&mut self, now: Moment, wall: UnixMs, silence: HandshakeSilence) -> bool {
        if self.unanswered || self.is(Readiness::Down) {
            return false;
        }
        (self.good_in_a_row, self.alive_in_a_row) = (0, 0);
        let cause = Cause::HelloUnanswered;
        match silence {
            HandshakeSilence::Late => self.publish(wall, Readiness::NotReady, cause, String::new()),
            HandshakeSilence::Hung => self.no_answer(now, wall, cause, String::new()),
        }
    }

    /// It is better than the published health, but does not count yet.
    fn not_yet(&mut self, wall: UnixMs, cause: Cause, detail: &str, seen: u32) -> bool {
        let byte = |count: u32| u8::try_from(count).unwrap_or(u8::MAX);
        let recovering = Cause::Recovering { seen: byte(seen), of: byte(self.rise) };
        let detail = if detail.is_empty() { cause.to_string() } else { format!("{cause}: {detail}") };
        let readiness = self.health.as_ref().map(|health| health.readiness);
        // It answers, so it is no longer down.
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
        // The author's full text, before it is a detail: readers compare the number.
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
    fn a_check_without_a_descriptor_says_nothing_and_interrupts_nothing() {
        use Readiness::{Down, Ready};
        let none = || CheckOutcome::new(CheckAnswer::Silent, Cause::NoDescriptors);
        let held: Vec<_> = std::iter::once((0, good())).chain((1..90).map(|s| (s * 1000, none()))).collect();
        assert!(run(&held).iter().all(|one| *one == Some(Ready)));
        assert_eq!(run(&[(0, none()), (1, none())]), [None, None]);
        let silence = [(0, good()), (1, silent()), (2, none()), (3, silent()), (4, silent())];
        assert_eq!(run(&silence).last(), Some(&Some(Down)));
    }

    #[test]
    fn every_transition_of_the_diagram() {
        use Readiness::{Alive, Down, NotReady, Ready};
        // Nothing there: never offered.
        assert_eq!(run(&[(0, refused()), (1000, silent())]), [None, None]);
        // The first good answer counts at once.
        assert_eq!(run(&[(0, good())]), [Some(Ready)]);
        // A bad answer counts at once, a good one after it only twice in a row.
        assert_eq!(
            run(&[(0, good()), (1, not_ready()), (2, good()), (3, good())]),
            [Some(Ready), Some(NotReady), Some(NotReady), Some(Ready)]
        );
        assert_eq!(run(&[(0, alive()), (1, good()), (2, good())]), [Some(Alive), Some(Alive), Some(Ready)]);
        // Silence counts after `fall`, a closed port at once.
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
        // Gone for a minute: no longer offered, and counted at once when it returns.
        assert_eq!(
            run(&[(0, good()), (1, refused()), (60_000, refused()), (60_001, good())]),
            [Some(Ready), Some(Down), None, Some(Ready)]
        );
    }

    #[test]
    fn an_earlier_instance_exists_until_it_has_not_answered_for_a_minute() {
        use Readiness::{Alive, Down, NotReady, Ready};
        let resumed = |outcomes: &[(u64, CheckOutcome)]| {
            let checker =
                HealthTracker::resume(2, 3, ServiceHealth::not_checked_yet(UnixMs(0)), Moment::ZERO);
            assert_eq!(checker.health().map(|health| health.readiness), Some(Alive));
            run_with(checker, outcomes)
        };
        // One under load does not answer in time, as under any other tracker.
        assert_eq!(
            resumed(&[(0, silent()), (1, silent()), (2, silent())]),
            [Some(Alive), Some(Alive), Some(Down)]
        );
        // The first answer counts at once, however long it takes.
        assert_eq!(
            resumed(&[(0, silent()), (1, silent()), (2, good())]),
            [Some(Alive), Some(Alive), Some(Ready)]
        );
        assert_eq!(resumed(&[(0, not_ready())]), [Some(NotReady)]);
        // It restarts with the agent: it is down with its port closed, and not gone.
        assert_eq!(resumed(&[(0, refused()), (1, good())]), [Some(Down), Some(Ready)]);
        // It was removed while the agent was stopped.
        assert_eq!(
            resumed(&[(0, refused()), (59_999, refused()), (60_000, refused())]),
            [Some(Down), Some(Down), None]
        );
    }

    #[test]
    fn a_starting_apiserver_that_answers_403_for_a_second_gets_no_clients() {
        use Readiness::{Alive, Down, NotReady, Ready};
        // It restarts: one 403 before its RBAC rules are loaded, then it is ready.
        assert_eq!(
            run(&[(0, good()), (1, refused()), (2, alive()), (3, good()), (4, good())]),
            [Some(Ready), Some(Down), Some(NotReady), Some(NotReady), Some(Ready)]
        );
        // One that never reveals more counts in the end.
        assert_eq!(
            run(&[(0, alive()), (1, refused()), (2, alive()), (3, alive()), (4, alive())]),
            [Some(Alive), Some(Down), Some(NotReady), Some(Alive), Some(Alive)]
        );
        assert_eq!(
            run(&[(0, not_ready()), (1, alive()), (2, silent()), (3, alive())]),
            [Some(NotReady), Some(NotReady), Some(NotReady), Some(NotReady)]
        );
        // If it is worse than what was known, it counts at once.
        assert_eq!(run(&[(0, good()), (1, alive())]), [Some(Ready), Some(Alive)]);
    }

    #[test]
    fn late_hellos_count_at_once_and_a_hang_without_a_further_check() {
        use Readiness::{Down, NotReady, Ready};
        let mut checker = HealthTracker::new(2, 3);
        let mut step = |what: Result<CheckOutcome, HandshakeSilence>| {
            match what {
                Ok(outcome) => checker.observe(Moment::ZERO, UnixMs(0), outcome),
                Err(silence) => checker.hellos_unanswered(Moment::ZERO, UnixMs(0), silence),
            };
            checker.health().map(|health| health.readiness)
        };
        let (late, hung) = (Err(HandshakeSilence::Late), Err(HandshakeSilence::Hung));
        // Nothing was ever there.
        assert_eq!([step(late.clone()), step(hung.clone())], [None, None]);
        let steps = [
            Ok(good()),
            late.clone(),
            hung,
            late.clone(),
            Ok(silent()),
            Ok(good()),
            Ok(good()),
            late,
            Ok(good()),
            Ok(good()),
        ];
        assert_eq!(
            steps.map(step),
            [Ready, NotReady, Down, Down, Down, NotReady, Ready, NotReady, NotReady, Ready].map(Some)
        );
        // Nor since the agent started.
        let mut before = HealthTracker::resume(2, 3, ServiceHealth::not_checked_yet(UnixMs(0)), Moment::ZERO);
        assert!(!before.hellos_unanswered(Moment::ZERO, UnixMs(0), HandshakeSilence::Hung));
    }

    #[test]
    fn since_changes_only_with_the_state() {
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
    fn a_new_detail_is_published_and_an_old_one_not_again() {
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
    fn a_recovering_instance_reports_its_progress() {
        let mut checker = HealthTracker::new(3, 1);
        for outcome in [good(), refused(), good(), good()] {
            checker.observe(Moment::ZERO, UnixMs(5), outcome);
        }
        let health = checker.health().unwrap();
        assert_eq!(health.cause, Cause::Recovering { seen: 2, of: 3 });
        assert_eq!(health.reason().to_string(), "recovering, 2 of 3 checks: HTTP 200");
    }
}
