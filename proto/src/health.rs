//! A node's own checks, turned into what it says of itself.
//!
//! ```text
//!             first answer           good x rise
//!   Absent ────────────────► Alive / NotReady ──► Ready
//!      ▲                            ▲               │ 401, 403, 5xx: at once
//!      │ down for FORGET_AFTER      │ any answer    │ refused: at once
//!      └────────────── Down ◄───────┴───────────────┘ no answer x fall
//! ```
//!
//! An answer is believed at once when it is bad and after `rise` good ones when it is good: sending a
//! client to a master that is not ready costs more than waiting a second. Silence is believed only after
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

/// Turns outcomes of checks into [`Health`]. `None` means that there is no such service here.
#[derive(Debug, Clone)]
pub struct Checker {
    rise: u32,
    fall: u32,
    good_in_a_row: u32,
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
        match outcome {
            Outcome::Good(reason) => {
                self.answered(now);
                self.good_in_a_row = self.good_in_a_row.saturating_add(1);
                // The very first answer is believed at once: a node that starts beside a healthy
                // apiserver should serve within one check.
                if first || self.good_in_a_row >= self.rise || self.is(Readiness::Ready) {
                    return self.say(wall, Readiness::Ready, reason);
                }
                let seen = self.good_in_a_row;
                let reason = format!("{reason}, {seen} of {} good checks", self.rise);
                let readiness = if self.is(Readiness::Down) {
                    Readiness::NotReady
                } else {
                    self.health.as_ref().map_or(Readiness::NotReady, |health| health.readiness)
                };
                self.say(wall, readiness, reason)
            }
            Outcome::Alive(reason) => {
                self.answered(now);
                self.good_in_a_row = 0;
                self.say(wall, Readiness::Alive, reason)
            }
            Outcome::NotReady(reason) => {
                self.answered(now);
                self.good_in_a_row = 0;
                self.say(wall, Readiness::NotReady, reason)
            }
            Outcome::Refused(reason) => {
                self.good_in_a_row = 0;
                self.silent_in_a_row = self.silent_in_a_row.saturating_add(1);
                self.no_answer(now, wall, reason)
            }
            Outcome::Silent(reason) => {
                self.good_in_a_row = 0;
                self.silent_in_a_row = self.silent_in_a_row.saturating_add(1);
                if self.silent_in_a_row < self.fall && !self.is(Readiness::Down) {
                    return false;
                }
                self.no_answer(now, wall, reason)
            }
        }
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

/// A reason as it may be gossiped: printable ASCII, at most [`MAX_REASON`] bytes.
pub fn short_reason(text: &str) -> String {
    text.chars().map(|c| if c.is_ascii_graphic() || c == ' ' { c } else { '?' }).take(MAX_REASON).collect()
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
    fn since_moves_only_with_the_state() {
        let mut checker = Checker::new(1, 1);
        checker.observe(Moment::ZERO, UnixMs(5), good());
        assert!(checker.observe(Moment::ZERO, UnixMs(9), Outcome::Good("204".into())));
        assert_eq!(checker.health().map(|health| health.since), Some(UnixMs(5)));
        assert!(!checker.observe(Moment::ZERO, UnixMs(10), Outcome::Good("204".into())));
    }
}
