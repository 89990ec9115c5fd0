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

use std::fmt;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::time::{Moment, UnixMs};

/// After this long without any answer an instance counts as taken away: its node stops offering it.
/// Longer than a restart of an apiserver, which should show as down and not as gone.
pub const FORGET_AFTER: Duration = Duration::from_secs(60);

/// Longest reason that is kept, in bytes of ASCII.
pub const MAX_REASON: usize = 80;

/// The reason of what is down because its port is closed. Others go by it: the machine lives, so what is
/// still held there is its kernel's to end (see [`crate::backends::fate`]).
pub const REFUSED: &str = "connection refused";

/// What a node says of its own instance of a service. The order is from best to worst.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Readiness {
    /// It serves.
    Ready,
    /// It answers, but would not say whether it is ready (401, 403).
    Alive,
    /// It answers that it is not ready.
    NotReady,
    /// It does not answer.
    Down,
}

impl Readiness {
    /// The word that gossip and status use.
    pub fn word(self) -> &'static str {
        match self {
            Readiness::Ready => "ready",
            Readiness::Alive => "alive",
            Readiness::NotReady => "not-ready",
            Readiness::Down => "down",
        }
    }

    /// The readiness that a word stands for.
    pub fn from_word(word: &str) -> Option<Readiness> {
        [Readiness::Ready, Readiness::Alive, Readiness::NotReady, Readiness::Down]
            .into_iter()
            .find(|readiness| readiness.word() == word)
    }
}

impl fmt::Display for Readiness {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.word())
    }
}

/// What one check found. The texts are short ASCII sentences for people.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// It said that it is ready.
    Good(String),
    /// It is there, but readiness is unknown.
    Alive(String),
    /// It said that it is not ready, or answered what was not expected.
    NotReady(String),
    /// The port is closed: nothing runs there.
    Refused(String),
    /// Nothing came back in time, or the connection broke.
    Silent(String),
}

/// What a node says of one of its services, and since when.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Health {
    /// How it is.
    pub readiness: Readiness,
    /// Why, in a few words.
    pub reason: String,
    /// Since when `readiness` has been so.
    pub since: UnixMs,
}

impl Health {
    /// It is down, and its port is closed.
    pub fn is_refused(&self) -> bool {
        self.readiness == Readiness::Down && self.reason.contains(REFUSED)
    }
}

/// Turns outcomes of checks into [`Health`]. `None` means that there is no such service here.
#[derive(Debug, Clone)]
pub struct Checker {
    rise: u32,
    fall: u32,
    good_in_a_row: u32,
    /// Answers in a row that are good or of unknown readiness.
    alive_in_a_row: u32,
    silent_in_a_row: u32,
    last_answer: Option<Moment>,
    health: Option<Health>,
}

impl Checker {
    /// A checker that has seen nothing yet.
    pub fn new(rise: u32, fall: u32) -> Checker {
        Checker {
            rise: rise.max(1),
            fall: fall.max(1),
            good_in_a_row: 0,
            alive_in_a_row: 0,
            silent_in_a_row: 0,
            last_answer: None,
            health: None,
        }
    }

    /// What is currently said.
    pub fn health(&self) -> Option<&Health> {
        self.health.as_ref()
    }

    /// Takes one outcome in; true when what is said changed (a new reason alone is no change of state,
    /// but is said too).
    pub fn observe(&mut self, now: Moment, wall: UnixMs, outcome: Outcome) -> bool {
        let first = self.last_answer.is_none();
        let next = |count: u32, goes_on: bool| if goes_on { count.saturating_add(1) } else { 0 };
        let good = matches!(outcome, Outcome::Good(_));
        self.good_in_a_row = next(self.good_in_a_row, good);
        self.alive_in_a_row = next(self.alive_in_a_row, good || matches!(outcome, Outcome::Alive(_)));
        match outcome {
            Outcome::Good(reason) => {
                self.answered(now);
                // The very first answer is believed at once: a node that starts beside a healthy
                // apiserver should serve within one check.
                if first || self.good_in_a_row >= self.rise || self.is(Readiness::Ready) {
                    return self.say(wall, Readiness::Ready, reason);
                }
                self.not_yet(wall, &reason, self.good_in_a_row, "good checks")
            }
            Outcome::Alive(reason) => {
                self.answered(now);
                let worse = self.is(Readiness::Ready) || self.is(Readiness::Alive);
                if first || worse || self.alive_in_a_row >= self.rise {
                    return self.say(wall, Readiness::Alive, reason);
                }
                self.not_yet(wall, &reason, self.alive_in_a_row, "checks")
            }
            Outcome::NotReady(reason) => {
                self.answered(now);
                self.say(wall, Readiness::NotReady, reason)
            }
            Outcome::Refused(reason) => {
                self.silent_in_a_row = self.silent_in_a_row.saturating_add(1);
                self.no_answer(now, wall, reason)
            }
            Outcome::Silent(reason) => {
                self.silent_in_a_row = self.silent_in_a_row.saturating_add(1);
                if self.silent_in_a_row < self.fall && !self.is(Readiness::Down) {
                    return false;
                }
                self.no_answer(now, wall, reason)
            }
        }
    }

    /// It is better than what is said, and not believed yet.
    fn not_yet(&mut self, wall: UnixMs, reason: &str, seen: u32, what: &str) -> bool {
        let reason = format!("{reason}, {seen} of {} {what}", self.rise);
        let readiness = self.health.as_ref().map(|health| health.readiness);
        // It answers, so it is not down any more.
        let readiness = readiness.filter(|one| *one != Readiness::Down).unwrap_or(Readiness::NotReady);
        self.say(wall, readiness, reason)
    }

    fn answered(&mut self, now: Moment) {
        self.last_answer = Some(now);
        self.silent_in_a_row = 0;
    }

    fn no_answer(&mut self, now: Moment, wall: UnixMs, reason: String) -> bool {
        match self.last_answer {
            None => false,
            Some(answer) if now.since(answer) >= FORGET_AFTER => {
                self.last_answer = None;
                self.health.take().is_some()
            }
            Some(_) => self.say(wall, Readiness::Down, reason),
        }
    }

    fn is(&self, readiness: Readiness) -> bool {
        self.health.as_ref().is_some_and(|health| health.readiness == readiness)
    }

    fn say(&mut self, wall: UnixMs, readiness: Readiness, reason: String) -> bool {
        let reason = short_reason(&reason);
        let since = match &self.health {
            Some(health) if health.readiness == readiness => health.since,
            _ => wall,
        };
        let health = Health { readiness, reason, since };
        if self.health.as_ref() == Some(&health) {
            return false;
        }
        self.health = Some(health);
        true
    }
}

/// A reason as it may be gossiped: printable ASCII, at most [`MAX_REASON`] bytes. What is longer ends with a
/// whole word and dots.
pub fn short_reason(text: &str) -> String {
    const DOTS: &str = "...";
    let plain = |c: char| if c.is_ascii_graphic() || c == ' ' { c } else { '?' };
    let mut short: String = text.chars().map(plain).take(MAX_REASON + 1).collect();
    if short.len() > MAX_REASON {
        short.truncate(MAX_REASON - DOTS.len());
        // A text without spaces is cut where it has to be.
        let end = short.rfind(' ').filter(|end| *end > MAX_REASON / 2).unwrap_or(short.len());
        short.truncate(end);
        short += DOTS;
    }
    short
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(outcomes: &[(u64, Outcome)]) -> Vec<Option<Readiness>> {
        let mut checker = Checker::new(2, 3);
        outcomes
            .iter()
            .map(|(at, outcome)| {
                checker.observe(Moment::from_millis(*at), UnixMs(*at), outcome.clone());
                checker.health().map(|health| health.readiness)
            })
            .collect()
    }

    fn good() -> Outcome {
        Outcome::Good("200".into())
    }
    fn silent() -> Outcome {
        Outcome::Silent("no answer".into())
    }
    fn refused() -> Outcome {
        Outcome::Refused("refused".into())
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
            run(&[(0, good()), (1, Outcome::NotReady("500".into())), (2, good()), (3, good())]),
            [Some(Ready), Some(NotReady), Some(NotReady), Some(Ready)]
        );
        assert_eq!(
            run(&[(0, Outcome::Alive("401".into())), (1, good()), (2, good())]),
            [Some(Alive), Some(Alive), Some(Ready)]
        );
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
    fn a_starting_apiserver_that_refuses_everyone_for_a_second_gets_no_clients_for_it() {
        use Readiness::{Alive, Down, NotReady, Ready};
        let alive = || Outcome::Alive("403".into());
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
            run(&[(0, Outcome::NotReady("500".into())), (1, alive()), (2, silent()), (3, alive())]),
            [Some(NotReady), Some(NotReady), Some(NotReady), Some(NotReady)]
        );
        // Where it is worse than what was known it is believed at once.
        assert_eq!(run(&[(0, good()), (1, alive())]), [Some(Ready), Some(Alive)]);
    }

    #[test]
    fn a_long_reason_ends_with_a_whole_word_and_says_so() {
        let short = short_reason(&"word ".repeat(30));
        assert!(short.ends_with("word...") && short.len() <= MAX_REASON, "{short}");
        assert_eq!(short_reason(&"x".repeat(200)).len(), MAX_REASON);
        assert_eq!(short_reason("as \u{1b}[31m it is"), "as ?[31m it is");
        let whole = "y".repeat(MAX_REASON);
        assert_eq!(short_reason(&whole), whole);
    }

    #[test]
    fn since_moves_only_with_the_state() {
        let mut checker = Checker::new(1, 1);
        checker.observe(Moment::ZERO, UnixMs(5), good());
        assert!(checker.observe(Moment::ZERO, UnixMs(9), Outcome::Good("204".into())));
        assert_eq!(checker.health().map(|health| health.since), Some(UnixMs(5)));
        assert!(!checker.observe(Moment::ZERO, UnixMs(10), Outcome::Good("204".into())));
    }
}
