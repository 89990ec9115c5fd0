//! States over time, from the kept events: since when something was in which state, and when nobody watched.

use std::ops::Range;

use crate::event::{Event, EventKind};
use crate::time::UnixMs;

/// A period in one state.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Span<'a> {
    /// Its start.
    pub from: UnixMs,
    /// Its end, and the start of the next.
    pub until: UnixMs,
    /// The state; `None`: unknown, since the agent did not run or no event says.
    pub state: Option<&'a str>,
}

impl Span<'_> {
    /// Its length.
    pub fn ms(&self) -> u64 {
        self.until.0.saturating_sub(self.from.0)
    }
}

/// What to extract from the events of one node.
#[derive(Debug, Clone, Copy)]
pub struct Followed<'a> {
    /// The kind of its events.
    pub kind: EventKind,
    /// Their subject.
    pub subject: &'a str,
    /// Its current state.
    pub state: &'a str,
    /// Since when; 0: not known.
    pub since: UnixMs,
}

/// The states in this period, without gaps, oldest first. Neighbours differ. `events` are those of one node,
/// in their order; dropped ones are unknown, except for the previous state that a later one has.
pub fn spans<'a>(
    events: impl IntoIterator<Item = &'a Event>,
    followed: Followed<'a>,
    within: Range<UnixMs>,
) -> Vec<Span<'a>> {
    let mut line = Line { changes: Vec::new(), floor: UnixMs(0) };
    for event in events {
        let before = UnixMs(event.time_unix_ms.0.saturating_sub(event.duration_ms.unwrap_or(0)));
        match event.kind {
            EventKind::AgentStopping => line.blind(event.time_unix_ms, event.time_unix_ms),
            // It also has the end of the last run.
            EventKind::AgentStarted => line.blind(before, event.time_unix_ms),
            kind if kind == followed.kind && event.subject == followed.subject => {
                if !event.from.is_empty() && event.duration_ms.is_some() {
                    line.is(before, &event.from);
                }
                line.is(event.time_unix_ms, &event.to);
            }
            _ => {}
        }
    }
    if followed.since != UnixMs(0) {
        line.is(followed.since, followed.state);
    }
    line.cut(within)
}

/// Changes of state, in the order of time.
struct Line<'a> {
    changes: Vec<(UnixMs, Option<&'a str>)>,
    /// Earlier periods are ignored: they are known already, or nobody watched.
    floor: UnixMs,
}

impl<'a> Line<'a> {
    /// It was in this state from then on.
    fn is(&mut self, from: UnixMs, state: &'a str) {
        if self.changes.last().is_some_and(|(_, last)| *last == Some(state)) {
            return;
        }
        // A wall clock may have been set back.
        self.floor = self.floor.max(from);
        // A removed thing has no state.
        self.changes.push((self.floor, Some(state).filter(|state| *state != "gone")));
    }

    /// Nobody watched from `from` on, at least until `until`.
    fn blind(&mut self, from: UnixMs, until: UnixMs) {
        self.changes.push((self.floor.max(from), None));
        self.floor = self.floor.max(until);
    }

    fn cut(&self, within: Range<UnixMs>) -> Vec<Span<'a>> {
        let ends = self.changes.iter().skip(1).map(|(at, _)| *at).chain([within.end]);
        let before = (UnixMs(0), self.changes.first().map_or(within.end, |(at, _)| *at), None);
        let told = self.changes.iter().zip(ends).map(|((from, state), until)| (*from, until, *state));
        let mut spans: Vec<Span<'_>> = Vec::new();
        for (from, until, state) in std::iter::once(before).chain(told) {
            let (from, until) = (from.max(within.start), until.min(within.end));
            match spans.last_mut() {
                _ if from >= until => {}
                Some(last) if last.state == state => last.until = until,
                _ => spans.push(Span { from, until, state }),
            }
        }
        spans
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const DAY: Range<UnixMs> = UnixMs(1000)..UnixMs(2000);

    fn event(at: u64, from: (&str, u64), to: &str) -> Event {
        let event = Event::new(EventKind::Backend, UnixMs(at), "kube-api/m1", to);
        if from.0.is_empty() { event } else { event.since(from.0, UnixMs(from.1)) }
    }

    fn agent(kind: EventKind, at: u64, since: u64) -> Event {
        Event::new(kind, UnixMs(at), "m1", "running").since("stopped", UnixMs(since))
    }

    fn followed(state: &str, since: u64) -> Followed<'_> {
        Followed { kind: EventKind::Backend, subject: "kube-api/m1", state, since: UnixMs(since) }
    }

    /// As `1000 ready, 1500 down`; `?` for unknown.
    fn shown(events: &[Event], now: Followed<'_>) -> String {
        let spans = spans(events, now, DAY);
        assert!(spans.windows(2).all(|two| two[0].until == two[1].from && two[0].state != two[1].state));
        assert_eq!(spans.first().map(|span| span.from), Some(DAY.start));
        assert_eq!(spans.last().map(|span| span.until), Some(DAY.end));
        let one = |span: &Span<'_>| format!("{} {}", span.from.0, span.state.unwrap_or("?"));
        spans.iter().map(one).collect::<Vec<_>>().join(", ")
    }

    #[test]
    fn a_state_lasts_until_the_next_and_the_last_until_now() {
        let down = event(1500, ("ready", 200), "down");
        let back = event(1600, ("down", 1500), "ready");
        let other = Event { subject: "kube-api/m2".to_owned(), ..down.clone() };
        let cases: [(&str, Vec<Event>, Followed<'_>); 9] = [
            ("1000 ready", vec![], followed("ready", 200)),
            ("1000 ?, 1700 ready", vec![], followed("ready", 1700)),
            ("1000 ?", vec![], followed("ready", 0)),
            ("1000 ready, 1500 down, 1600 ready", vec![down.clone(), back.clone()], followed("ready", 1600)),
            // The previous event was dropped, and this one has its state.
            ("1000 ?, 1500 down, 1600 ready", vec![back.clone()], followed("ready", 1600)),
            // Its time is not known.
            ("1000 ?, 1500 down", vec![event(1500, ("ready", 0), "down")], followed("down", 1500)),
            // The event of the current state was lost.
            ("1000 ready, 1500 down, 1900 ready", vec![down.clone()], followed("ready", 1900)),
            ("1000 ready, 1500 ?", vec![event(1500, ("ready", 200), "gone")], followed("gone", 1500)),
            ("1000 ready", vec![other], followed("ready", 200)),
        ];
        for (i, (expected, events, now)) in cases.into_iter().enumerate() {
            assert_eq!(shown(&events, now), expected, "case {i}");
        }
    }

    #[test]
    fn while_the_agent_does_not_run_the_state_is_unknown() {
        let ready = event(1100, ("", 0), "ready");
        let stopped = agent(EventKind::AgentStopping, 1400, 1000);
        let started = agent(EventKind::AgentStarted, 1600, 1410);
        let all = [ready.clone(), stopped, started.clone()];
        // That it was ready all the time is its node's report, not what was seen from here.
        assert_eq!(shown(&all, followed("ready", 200)), "1000 ?, 1100 ready, 1400 ?, 1600 ready");
        // Killed: it was seen until the last event.
        assert_eq!(
            shown(&[ready, started], followed("ready", 200)),
            "1000 ?, 1100 ready, 1410 ?, 1600 ready"
        );
    }

    #[test]
    fn a_clock_that_was_set_back_leaves_no_overlap() {
        let down = event(1500, ("ready", 200), "down");
        let back = event(1300, ("down", 1500), "ready");
        assert_eq!(shown(&[down, back], followed("ready", 1300)), "1000 ready");
    }

    proptest! {
        #[test]
        fn any_events_cover_the_time_exactly_once(
            events in proptest::collection::vec((0..3000u64, 0..4usize, 0..3000u64, 0..3usize), 0..40),
            since in 0..3000u64,
        ) {
            let states = ["ready", "down", "gone", ""];
            let events: Vec<Event> = events.into_iter().map(|(at, state, before, kind)| match kind {
                0 => event(at, (states[3 - state], before), states[state]),
                1 => agent(EventKind::AgentStarted, at, before),
                _ => agent(EventKind::AgentStopping, at, before),
            }).collect();
            shown(&events, followed("ready", since));
        }
    }
}
