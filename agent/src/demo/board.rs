//! History of the demo: the client's requests, the agent's reports, the user's actions.

use std::collections::VecDeque;
use std::fmt;
use std::time::{Duration, Instant};

use proto::backends::BackendState;

use super::client::{ClientReport, RequestError};
use super::watch::WatchedMaster;

/// Requests remembered: the ten seconds that "slowest" covers, and those in progress.
const MAX_SLOTS: usize = 128;

/// Events remembered; a screen shows a dozen.
const MAX_EVENTS: usize = 64;

/// The period that "slowest" covers.
pub(super) const LATELY: Duration = Duration::from_secs(10);

/// The outcome of one request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum RequestOutcome {
    /// In progress.
    Pending,
    /// This master answered, after that time.
    Served(String, Duration),
    /// Nobody answered, for that time.
    Failed(Duration),
}

/// One request.
#[derive(Debug)]
pub(super) struct RequestSlot {
    number: u64,
    begun: Instant,
    pub(super) outcome: RequestOutcome,
}

/// An event, and when after the start.
#[derive(Debug)]
pub(super) struct BoardEvent {
    pub(super) at: Duration,
    pub(super) text: String,
}

impl fmt::Display for BoardEvent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:6.1} s  {}", self.at.as_secs_f64(), self.text)
    }
}

/// Everything since the cluster started to serve.
pub(super) struct Board {
    begun: Instant,
    pub(super) slots: VecDeque<RequestSlot>,
    pub(super) ok: u64,
    pub(super) failed: u64,
    slowest: Duration,
    /// Which master has the held connection.
    pub(super) held: Option<String>,
    pub(super) resets: u64,
    pub(super) seen: Option<Vec<WatchedMaster>>,
    pub(super) events: VecDeque<BoardEvent>,
    /// Events that [`Board::new_events`] has not returned yet.
    fresh: usize,
    /// Failures of the current trouble; 0: there is none.
    trouble: u64,
    /// Successes since the last failure.
    calm: u64,
}

/// Successes in a row that end a trouble: it continues while every second request fails.
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

    /// Records an event.
    pub(super) fn record(&mut self, now: Instant, text: String) {
        let at = self.age(now);
        self.events.push_back(BoardEvent { at, text });
        self.fresh += 1;
        if self.events.len() > MAX_EVENTS {
            self.events.pop_front();
            self.fresh = self.fresh.min(MAX_EVENTS);
        }
    }

    /// The events since the last call.
    pub(super) fn new_events(&mut self) -> impl Iterator<Item = &BoardEvent> {
        let old = self.events.len() - std::mem::take(&mut self.fresh);
        self.events.iter().skip(old)
    }

    /// A request was started.
    pub(super) fn request_started(&mut self, now: Instant, number: u64) {
        self.slots.push_back(RequestSlot { number, begun: now, outcome: RequestOutcome::Pending });
        if self.slots.len() > MAX_SLOTS {
            self.slots.pop_front();
        }
    }

    /// The client has reported.
    pub(super) fn client_reported(&mut self, now: Instant, told: ClientReport) {
        match told {
            ClientReport::Request { number, took, result } => self.ended(now, number, took, result),
            ClientReport::Held(name) => {
                if self.held.as_ref() != Some(&name) {
                    self.record(now, format!("the long-lived connection is on {name}"));
                }
                self.held = Some(name);
            }
            ClientReport::Lost => {
                self.resets += 1;
                let name = self.held.take().unwrap_or_default();
                self.record(
                    now,
                    format!("the long-lived connection to {name} was closed; the client reconnects"),
                );
            }
        }
    }

    fn ended(&mut self, now: Instant, number: u64, took: Duration, result: Result<String, RequestError>) {
        self.slowest = self.slowest.max(took);
        let outcome = match result {
            Ok(name) => {
                self.ok += 1;
                self.calm += 1;
                if self.trouble > 0 && self.calm >= CALM {
                    let failed = std::mem::take(&mut self.trouble);
                    self.record(now, format!("requests succeed again after {failed} failures"));
                }
                RequestOutcome::Served(name, took)
            }
            Err(error) => {
                self.failed += 1;
                self.calm = 0;
                self.trouble += 1;
                // One line for a change of state, not one for each request.
                if self.trouble == 1 {
                    self.record(now, format!("a request failed: {error}"));
                }
                RequestOutcome::Failed(took)
            }
        };
        if let Some(slot) = self.slots.iter_mut().rev().find(|slot| slot.number == number) {
            slot.outcome = outcome;
        }
    }

    /// The agent has reported how it sees the masters; each change is an event.
    pub(super) fn agent_reported(&mut self, now: Instant, who: &str, seen: Option<Vec<WatchedMaster>>) {
        if self.seen.is_some() != seen.is_some() {
            let word = if seen.is_some() { "answers" } else { "does not answer" };
            self.record(now, format!("{who}'s agent {word}"));
        }
        let before = std::mem::replace(&mut self.seen, seen);
        let state = |list: &[WatchedMaster], node: &str| {
            list.iter().find(|seen| seen.node == node).map(|seen| seen.state)
        };
        let (Some(before), Some(after)) = (before, self.seen.clone()) else { return };
        for WatchedMaster { node, state: now_is, reason, .. } in &after {
            let was = state(&before, node);
            if was != Some(*now_is) {
                let was = was.as_ref().map_or("nothing", BackendState::as_str);
                self.record(now, format!("{who} sees {node}: {was} -> {}, {reason}", now_is.as_str()));
            }
        }
        for gone in before.iter().filter(|seen| state(&after, &seen.node).is_none()) {
            self.record(now, format!("{who} sees {}: {} -> nothing", gone.node, gone.state.as_str()));
        }
    }

    /// How the agent sees one master.
    pub(super) fn seen_of(&self, node: &str) -> Option<&WatchedMaster> {
        self.seen.as_ref()?.iter().find(|seen| seen.node == node)
    }

    /// The slowest request of the last [`LATELY`], those in progress included.
    pub(super) fn slowest_recent(&self, now: Instant) -> Duration {
        let lately = self.slots.iter().filter(|slot| now.saturating_duration_since(slot.begun) <= LATELY);
        let times = lately.map(|slot| match &slot.outcome {
            RequestOutcome::Pending => now.saturating_duration_since(slot.begun),
            RequestOutcome::Served(_, took) | RequestOutcome::Failed(took) => *took,
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

    fn seen(node: &str, state: BackendState) -> WatchedMaster {
        WatchedMaster { node: node.into(), state, reason: "because".into(), connections: 0 }
    }

    fn texts(board: &mut Board) -> Vec<String> {
        board.new_events().map(|event| event.text.clone()).collect()
    }

    #[test]
    fn requests_are_counted_and_a_failure_is_reported_once() {
        let t0 = Instant::now();
        let at = |ms| t0 + Duration::from_millis(ms);
        let mut board = Board::new(t0);
        let end = |board: &mut Board, number: u64, took: u64, result: Result<&str, RequestError>| {
            board.request_started(at(number * 100), number);
            let result = result.map(str::to_owned);
            let took = Duration::from_millis(took);
            board.client_reported(at(number * 100 + 50), ClientReport::Request { number, took, result });
        };
        end(&mut board, 0, 40, Ok("m1"));
        end(&mut board, 1, 2000, Err(RequestError::Cut));
        end(&mut board, 2, 30, Err(RequestError::Cut));
        for number in 3..13 {
            assert_eq!(board.events.len(), 1, "not calm yet");
            end(&mut board, number, 30, Ok("m2"));
        }
        assert_eq!(
            texts(&mut board),
            ["a request failed: closed", "requests succeed again after 2 failures"]
        );
        assert!(texts(&mut board).is_empty(), "news are told once");
        assert_eq!(
            board.summary(),
            "requests 13, failed 2, slowest 2000 ms, closed long-lived connections 0"
        );
        assert_eq!(board.slowest_recent(at(1300)), Duration::from_secs(2));
        assert_eq!(board.slowest_recent(at(10_250)), Duration::from_millis(30));
        board.request_started(at(11_000), 13);
        assert_eq!(board.slowest_recent(at(11_700)), Duration::from_millis(700), "also while it waits");
    }

    #[test]
    fn a_change_of_state_is_one_event() {
        let now = Instant::now();
        let mut board = Board::new(now);
        let all = |second| Some(vec![seen("m1", BackendState::Ready), seen("m2", second)]);
        board.agent_reported(now, "w1", all(BackendState::Ready));
        assert_eq!(texts(&mut board), ["w1's agent answers"]);
        board.agent_reported(now, "w1", all(BackendState::Ready));
        assert!(texts(&mut board).is_empty());
        board.agent_reported(now, "w1", all(BackendState::Down));
        board.agent_reported(now, "w1", Some(vec![seen("m1", BackendState::Ready)]));
        board.agent_reported(now, "w1", None);
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
            board.request_started(now, number);
            board.record(now, format!("{number}"));
        }
        assert_eq!((board.slots.len(), board.events.len()), (MAX_SLOTS, MAX_EVENTS));
        assert_eq!(board.new_events().count(), MAX_EVENTS);
    }
}
