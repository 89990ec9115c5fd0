//! Many nodes that change in the same way at the same time: one event says so.
//!
//! After a power cut, an upgrade of all nodes or a mass join, hundreds of members change within seconds. Each as an
//! event of its own would push everything else out of the ring, and call a program or a webhook as often. So in a
//! larger cluster the changes of workers wait for a moment, and become one event if there are many. Masters, backends
//! and virtual IPs never wait.

use std::time::Duration;

use super::{Event, EventKind};
use crate::cause::{Cause, Reason};
use crate::time::Moment;

/// In a cluster of up to so many members nothing waits.
pub const ONE_BY_ONE: usize = 16;

/// Changes of the same way that stay single events.
const FEW: usize = 8;

/// How long a change waits for others; the same while many go on to change: it takes gossip seconds to notice all.
const WAIT: Duration = Duration::from_secs(2);
const WAIT_ON: Duration = Duration::from_secs(10);

/// Most changes that wait.
const MOST_WAITING: usize = 4096;

/// Most nodes that an event of many names.
pub(super) const MOST_NAMED: usize = 16;

/// Changes that wait for others of the same way. It has no clock of its own.
#[derive(Debug, Default)]
pub struct EventSummer {
    waiting: Vec<Event>,
    due: Moment,
    /// What waits began within the time after a sum.
    goes_on: bool,
    /// Until when a change still belongs to the last sum.
    until: Option<Moment>,
}

impl EventSummer {
    /// Whether events of this kind may be summed up, where they are about a worker.
    pub fn takes(kind: EventKind) -> bool {
        matches!(
            kind,
            EventKind::Member
                | EventKind::MemberJoined
                | EventKind::MemberRemoved
                | EventKind::Drain
                | EventKind::Document
        )
    }

    /// Lets a change wait.
    pub fn add(&mut self, event: Event, now: Moment) {
        if self.waiting.is_empty() {
            self.goes_on = self.until.is_some_and(|until| now < until);
            self.due = now.after(if self.goes_on { WAIT_ON } else { WAIT });
        }
        self.waiting.push(event);
        if self.waiting.len() >= MOST_WAITING {
            self.due = now;
        }
    }

    /// What has waited long enough, in the order of the first of each.
    pub fn take_due(&mut self, now: Moment) -> Vec<Event> {
        if self.waiting.is_empty() || now < self.due { Vec::new() } else { self.take_all(now) }
    }

    /// What waits, due or not.
    pub fn take_all(&mut self, now: Moment) -> Vec<Event> {
        let few = if self.goes_on { 1 } else { FEW };
        let all = std::mem::take(&mut self.waiting);
        // The ways of change with the nodes of each.
        let mut ways: Vec<(&Event, Vec<&str>)> = Vec::new();
        let is = |a: &Event, b: &Event| a.kind == b.kind && a.to == b.to;
        for event in &all {
            match ways.iter_mut().find(|(first, _)| is(first, event)) {
                Some((_, nodes)) => nodes.push(&event.subject),
                None => ways.push((event, vec![&event.subject])),
            }
        }
        for (_, nodes) in &mut ways {
            nodes.sort_unstable();
            nodes.dedup();
        }
        let mut out = Vec::new();
        for event in &all {
            match ways.iter().find(|(first, _)| is(first, event)) {
                Some((first, nodes)) if nodes.len() > few => {
                    if std::ptr::eq(*first, event) {
                        self.until = Some(now.after(WAIT_ON));
                        out.push(sum(event, all.iter().filter(|other| is(event, other)), nodes.len()));
                    }
                }
                _ => out.push(event.clone()),
            }
        }
        out
    }
}

/// One event for many. What they do not have in common is left out.
fn sum<'a>(first: &Event, same: impl Iterator<Item = &'a Event>, count: usize) -> Event {
    let mut sum = first.clone();
    sum.subject = format!("{count} nodes");
    sum.count = u32::try_from(count).ok();
    sum.duration_ms = None;
    for event in same {
        if event.from != first.from {
            sum.from.clear();
        }
        if event.cause != first.cause {
            sum.cause.clear();
        }
        sum.level = sum.level.max(event.level);
        if sum.nodes.len() < MOST_NAMED && !sum.nodes.contains(&event.subject) {
            sum.nodes.push(event.subject.clone());
        }
    }
    // Who requested it differs; of all other causes the text is the same.
    if sum.cause == Cause::Requested.label() || sum.cause.is_empty() {
        sum.reason = Reason::default();
    }
    sum
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::event::EventLevel;
    use crate::time::UnixMs;

    fn at(ms: u64) -> Moment {
        Moment::from_millis(ms)
    }

    fn down(node: usize, ms: u64) -> Event {
        let event =
            Event::new(EventKind::Member, UnixMs(ms), format!("n{node}"), "down").since("up", UnixMs(0));
        event.because(Cause::NotHeard).level(EventLevel::Error)
    }

    fn joined(node: usize, by: &str) -> Event {
        Event::new(EventKind::MemberJoined, UnixMs(1), format!("n{node}"), "member").requested(by)
    }

    /// What comes of changes, each at its time in milliseconds, when it is asked for every quarter of a second.
    fn run(changes: Vec<(u64, Event)>) -> Vec<(u64, String)> {
        let (mut summer, mut out) = (EventSummer::default(), Vec::new());
        let mut changes = changes.into_iter().peekable();
        for ms in (0..40_000).step_by(250) {
            while let Some((at_ms, event)) = changes.next_if(|(when, _)| *when <= ms) {
                summer.add(event, at(at_ms));
            }
            out.extend(summer.take_due(at(ms)).iter().map(|event| (ms, event.sentence())));
        }
        assert!(summer.take_all(at(40_000)).is_empty());
        out
    }

    fn said(ms: u64, text: &str) -> (u64, String) {
        (ms, text.to_owned())
    }

    #[test]
    fn few_changes_stay_single_and_many_of_one_way_become_one_event() {
        let few: Vec<_> = (0..8).map(|n| (0, down(n, 0))).collect();
        let single = run(few);
        assert_eq!(single.len(), 8);
        assert_eq!(single[3], said(2_000, "member n3: up -> down: no answer from the node"));
        let many = (0..147).map(|n| (n as u64 * 10, down(n, n as u64))).collect();
        assert_eq!(
            run(many),
            [said(2_000, "member 147 nodes: up -> down: no answer from the node (n0, n1, n2, n3, n4, …)")]
        );
    }

    #[test]
    fn what_follows_within_the_next_seconds_is_summed_up_with_less_and_later_is_not() {
        let mut changes: Vec<_> = (0..9).map(|n| (0, down(n, 0))).collect();
        changes.extend((9..11).map(|n| (3_000 + n as u64, down(n, 3_000))));
        changes.extend((11..13).map(|n| (30_000, down(n, 30_000))));
        let texts: Vec<_> = run(changes).into_iter().map(|(ms, text)| (ms, text[..16].to_owned())).collect();
        let expected = [
            said(2_000, "member 9 nodes: "),
            said(13_250, "member 2 nodes: "),
            said(32_000, "member n11: up -"),
            said(32_000, "member n12: up -"),
        ];
        assert_eq!(texts, expected);
    }

    #[test]
    fn each_way_is_summed_up_by_itself_without_what_differs() {
        let mut changes: Vec<_> =
            (0..20).map(|n| (0, joined(n, if n < 10 { "by m0" } else { "by m1" }))).collect();
        changes.push((0, down(77, 5)));
        let up = |n| Event::new(EventKind::Member, UnixMs(9), format!("n{n}"), "up");
        changes.extend((0..9).map(|n| (0, if n < 4 { up(n) } else { up(n).since("down", UnixMs(0)) })));
        assert_eq!(
            run(changes),
            [
                said(2_000, "member-joined 20 nodes: member (n0, n1, n2, n3, n4, …)"),
                said(2_000, "member n77: up -> down: no answer from the node"),
                said(2_000, "member 9 nodes: up (n0, n1, n2, n3, n4, …)"),
            ]
        );
    }

    #[test]
    fn a_restart_of_a_thousand_nodes_within_seconds_is_a_handful_of_events() {
        let up = |n: usize| {
            Event::new(EventKind::Member, UnixMs(9), format!("n{n}"), "up").since("down", UnixMs(0))
        };
        let mut changes: Vec<_> = (0..1_000).map(|n| (n as u64 * 10, down(n, 0))).collect();
        changes.extend((0..1_000).map(|n| (3_000 + n as u64 * 17, up(n))));
        changes.sort_by_key(|(ms, _)| *ms);
        let all = run(changes);
        assert!(all.len() <= 6, "{all:?}");
    }

    #[test]
    fn the_sum_has_the_count_some_names_the_worst_level_and_a_node_once() {
        let mut summer = EventSummer::default();
        for n in 0..40 {
            let level = if n == 7 { EventLevel::Error } else { EventLevel::Info };
            summer.add(down(n % 20, n as u64).level(level), at(0));
        }
        let all = summer.take_all(at(1));
        let [sum] = all.as_slice() else { panic!("{all:?}") };
        assert_eq!((sum.count, sum.nodes.len(), sum.level), (Some(20), MOST_NAMED, EventLevel::Error));
        let json = serde_json::to_value(sum).unwrap();
        assert_eq!(
            (&json["subject"], &json["count"], &json["nodes"][1]),
            (&"20 nodes".into(), &20.into(), &"n1".into())
        );
        assert_eq!(
            (&json["from"], &json["to"], &json["cause"]),
            (&"up".into(), &"down".into(), &"not-heard".into())
        );
    }

    #[test]
    fn no_more_than_a_bound_of_changes_waits() {
        let mut summer = EventSummer::default();
        for n in 0..MOST_WAITING {
            assert!(summer.take_due(at(0)).is_empty());
            summer.add(down(n, 0), at(0));
        }
        assert_eq!(summer.take_due(at(0)).len(), 1);
    }
}
