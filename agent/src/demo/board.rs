//! What has happened so far: the client's requests, what the agent said, what was done.

use std::collections::VecDeque;
use std::fmt;
use std::time::{Duration, Instant};

use proto::backends::State;

use super::client::{RequestError, Told};
use super::watch::Seen;

/// Requests that are remembered: the ten seconds that "slowest" speaks of, and those still under way.
const MAX_SLOTS: usize = 128;

/// Events that are remembered; a screen shows a dozen.
const MAX_EVENTS: usize = 64;

/// The time that "slowest" speaks of.
pub(super) const LATELY: Duration = Duration::from_secs(10);

/// How one request ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Fate {
    /// It has not.
    Pending,
    /// This master answered, after that time.
    Served(String, Duration),
    /// Nobody did, for that time.
    Failed(Duration),
}

/// One request.
#[derive(Debug)]
pub(super) struct Slot {
    number: u64,
    begun: Instant,
    pub(super) fate: Fate,
}

/// What happened, when after the start.
#[derive(Debug)]
pub(super) struct Event {
    pub(super) at: Duration,
    pub(super) text: String,
}

impl fmt::Display for Event {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:6.1} s  {}", self.at.as_secs_f64(), self.text)
    }
}

/// Everything since the cluster began to serve.
pub(super) struct Board {
    begun: Instant,
    pub(super) slots: VecDeque<Slot>,
    pub(super) ok: u64,
    pub(super) failed: u64,
    slowest: Duration,
    /// Who holds the held connection.
    pub(super) held: Option<String>,
    pub(super) resets: u64,
    pub(super) seen: Option<Vec<Seen>>,
    pub(super) events: VecDeque<Event>,
    /// Events that were not taken by [`Board::news`] yet.
    fresh: usize,
    /// Failures of the trouble that is told of; 0: there is none.
    trouble: u64,
    /// Requests that have succeeded since the last failure.
    calm: u64,
}

/// So many successes in a row end a trouble: where every second request fails, it goes on.
const CALM: u64 = 10;

impl Board {
    /// An empty one.
    pub(super) fn new(now: Instant) -> Board {
        Board {
            begun: now,
            slots: VecDeque::new(),
            ok: 0,
            failed: 0,
            slowest: Duration::ZERO,
            held: None,
            resets: 0,
            seen: None,
            events: VecDeque::new(),
            fresh: 0,
            trouble: 0,
            calm: 0,
        }
    }

    /// Time since the start.
    pub(super) fn age(&self, now: Instant) -> Duration {
        now.saturating_duration_since(self.begun)
    }

    /// Something has happened.
    pub(super) fn say(&mut self, now: Instant, text: String) {
        let at = self.age(now);
        self.events.push_back(Event { at, text });
        self.fresh += 1;
        if self.events.len() > MAX_EVENTS {
            self.events.pop_front();
            self.fresh = self.fresh.min(MAX_EVENTS);
        }
    }

    /// The events since the last call.
    pub(super) fn news(&mut self) -> impl Iterator<Item = &Event> {
        let old = self.events.len() - std::mem::take(&mut self.fresh);
        self.events.iter().skip(old)
    }

    /// A request was begun.
    pub(super) fn asked(&mut self, now: Instant, number: u64) {
        self.slots.push_back(Slot { number, begun: now, fate: Fate::Pending });
        if self.slots.len() > MAX_SLOTS {
            self.slots.pop_front();
        }
    }

    /// The client has told something.
    pub(super) fn told(&mut self, now: Instant, told: Told) {
        match told {
            Told::Request { number, took, result } => self.ended(now, number, took, result),
            Told::Held(name) => {
                if self.held.as_ref() != Some(&name) {
                    self.say(now, format!("the long-lived connection is on {name}"));
                }
                self.held = Some(name);
            }
            Told::Lost => {
                self.resets += 1;
                let name = self.held.take().unwrap_or_default();
                self.say(now, format!("the long-lived connection to {name} was closed; the client reconnects"));
            }
        }
    }

    fn ended(&mut self, now: Instant, number: u64, took: Duration, result: Result<String, RequestError>) {
        self.slowest = self.slowest.max(took);
        let fate = match result {
            Ok(name) => {
                self.ok += 1;
                self.calm += 1;
                if self.trouble > 0 && self.calm >= CALM {
                    let failed = std::mem::take(&mut self.trouble);
                    self.say(now, format!("requests succeed again after {failed} failures"));
                }
                Fate::Served(name, took)
            }
            Err(error) => {
                self.failed += 1;
                self.calm = 0;
                self.trouble += 1;
                // One line for a change of state, not one for each request.
                if self.trouble == 1 {
                    self.say(now, format!("a request failed: {error}"));
                }
                Fate::Failed(took)
            }
        };
        if let Some(slot) = self.slots.iter_mut().rev().find(|slot| slot.number == number) {
            slot.fate = fate;
        }
    }

    /// The agent has said how it sees the masters; each change is an event.
    pub(super) fn sees(&mut self, now: Instant, who: &str, seen: Option<Vec<Seen>>) {
        if self.seen.is_some() != seen.is_some() {
            let word = if seen.is_some() { "answers" } else { "does not answer" };
            self.say(now, format!("{who}'s agent {word}"));
        }
        let before = std::mem::replace(&mut self.seen, seen);
        let state =
            |list: &[Seen], node: &str| list.iter().find(|seen| seen.node == node).map(|seen| seen.state);
        let (Some(before), Some(after)) = (before, self.seen.clone()) else { return };
        for Seen { node, state: now_is, reason, .. } in &after {
            let was = state(&before, node);
            if was != Some(*now_is) {
                let was = was.as_ref().map_or("nothing", State::word);
                self.say(now, format!("{who} sees {node}: {was} -> {}, {reason}", now_is.word()));
            }
        }
        for gone in before.iter().filter(|seen| state(&after, &seen.node).is_none()) {
            self.say(now, format!("{who} sees {}: {} -> nothing", gone.node, gone.state.word()));
        }
    }

    /// How the agent sees one master.
    pub(super) fn seen_of(&self, node: &str) -> Option<&Seen> {
        self.seen.as_ref()?.iter().find(|seen| seen.node == node)
    }

    /// The slowest request of the last [`LATELY`], those still under way included.
    pub(super) fn slowest_lately(&self, now: Instant) -> Duration {
        let lately = self.slots.iter().filter(|slot| now.saturating_duration_since(slot.begun) <= LATELY);
        let times = lately.map(|slot| match &slot.fate {
            Fate::Pending => now.saturating_duration_since(slot.begun),
            Fate::Served(_, took) | Fate::Failed(took) => *took,
        });
        times.max().unwrap_or_default()
    }

    /// The whole run in one line.
    pub(super) fn summary(&self) -> String {
        format!(
            "requests {}, failed {}, slowest {} ms, closed long-lived connections {}",
            self.ok + self.failed,
            self.failed,
            self.slowest.as_millis(),
            self.resets
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seen(node: &str, state: State) -> Seen {
        Seen { node: node.into(), state, reason: "because".into(), connections: 0 }
    }

    fn texts(board: &mut Board) -> Vec<String> {
        board.news().map(|event| event.text.clone()).collect()
    }

    #[test]
    fn requests_are_counted_and_a_failure_is_told_once() {
        let t0 = Instant::now();
        let at = |ms| t0 + Duration::from_millis(ms);
        let mut board = Board::new(t0);
        let end = |board: &mut Board, number: u64, took: u64, result: Result<&str, RequestError>| {
            board.asked(at(number * 100), number);
            let result = result.map(str::to_owned);
            let took = Duration::from_millis(took);
            board.told(at(number * 100 + 50), Told::Request { number, took, result });
        };
        end(&mut board, 0, 40, Ok("m1"));
        end(&mut board, 1, 2000, Err(RequestError::Cut));
        end(&mut board, 2, 30, Err(RequestError::Cut));
        for number in 3..13 {
            assert_eq!(board.events.len(), 1, "not calm yet");
            end(&mut board, number, 30, Ok("m2"));
        }
        assert_eq!(texts(&mut board), ["a request failed: closed", "requests succeed again after 2 failures"]);
        assert!(texts(&mut board).is_empty(), "news are told once");
        assert_eq!(board.summary(), "requests 13, failed 2, slowest 2000 ms, closed long-lived connections 0");
        assert_eq!(board.slowest_lately(at(1300)), Duration::from_secs(2));
        assert_eq!(board.slowest_lately(at(10_250)), Duration::from_millis(30));
        board.asked(at(11_000), 13);
        assert_eq!(board.slowest_lately(at(11_700)), Duration::from_millis(700), "also while it waits");
    }

    #[test]
    fn a_change_of_state_is_one_event() {
        let now = Instant::now();
        let mut board = Board::new(now);
        let all = |second| Some(vec![seen("m1", State::Ready), seen("m2", second)]);
        board.sees(now, "w1", all(State::Ready));
        assert_eq!(texts(&mut board), ["w1's agent answers"]);
        board.sees(now, "w1", all(State::Ready));
        assert!(texts(&mut board).is_empty());
        board.sees(now, "w1", all(State::Down));
        board.sees(now, "w1", Some(vec![seen("m1", State::Ready)]));
        board.sees(now, "w1", None);
        assert_eq!(
            texts(&mut board),
            [
                "w1 sees m2: ready -> down, because",
                "w1 sees m2: down -> nothing",
                "w1's agent does not answer"
            ]
        );
    }

    #[test]
    fn memory_is_bounded() {
        let now = Instant::now();
        let mut board = Board::new(now);
        for number in 0..1000 {
            board.asked(now, number);
            board.say(now, format!("{number}"));
        }
        assert_eq!((board.slots.len(), board.events.len()), (MAX_SLOTS, MAX_EVENTS));
        assert_eq!(board.news().count(), MAX_EVENTS);
    }
}
