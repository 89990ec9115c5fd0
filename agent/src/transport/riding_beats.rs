//! Beats of virtual IPs that go with answers to pulses. An owner beats to nodes that mostly pulse it at the same
//! moments anyway: one datagram then does for both.
//!
//! The VIP thread says what a node is to hear while nothing changes, and twenty times a second that it is still so: for
//! one that hangs nothing is said. What was to go with an answer and has not, since the pulse was lost or is late, is
//! taken back by the next beat and sent by itself.

use std::collections::BTreeMap;
use std::sync::Mutex;
use std::time::Duration;

use proto::node::NodeId;
use proto::time::Moment;

use super::lock;

/// A pulse that is due within this is waited for.
const SOON: Duration = Duration::from_millis(30);

/// A pulse that is late by more is not waited for. And a node that heard a beat within this needs no other.
const JUST: Duration = Duration::from_millis(10);

/// How long a beat waits: until the next one.
const WAIT: Duration = Duration::from_millis(45);

/// How long the VIP thread is believed: it wakes up every 50 ms while it owns anything.
const ALIVE: Duration = Duration::from_millis(60);

/// How long a beat is repeated with answers unless the VIP thread offers it again: each node is told four times a
/// second at least.
const OFFERED: Duration = Duration::from_millis(250);

/// One node: when it pulses, and what it is told.
#[derive(Default)]
struct Listener {
    pulsed: Moment,
    /// Time between its last two pulses.
    interval: Duration,
    /// The beat, and when the VIP thread offered it last.
    beat: Option<(Moment, Vec<u8>)>,
    /// When the beat went with an answer last.
    told: Moment,
    /// The beat that was offered last goes with the next answer.
    waiting: bool,
}

#[derive(Default)]
struct Beats {
    alive_until: Moment,
    listeners: BTreeMap<NodeId, Listener>,
}

/// The beats of this node.
#[derive(Default)]
pub(super) struct RidingBeats(Mutex<Beats>);

impl RidingBeats {
    /// A node has pulsed this one; returns the beat that goes with the answer.
    pub(super) fn pulsed(&self, from: NodeId, now: Moment) -> Option<Vec<u8>> {
        let Beats { alive_until, listeners } = &mut *lock(&self.0);
        let listener = listeners.entry(from).or_default();
        listener.interval = now.since(listener.pulsed);
        listener.pulsed = now;
        let (offered, beat) = listener.beat.as_ref()?;
        if now > *alive_until || now.since(*offered) > OFFERED {
            return None;
        }
        (listener.told, listener.waiting) = (now, false);
        Some(beat.clone())
    }

    /// What a node is told from now on. Whether it goes with the answer to a pulse, or just has; else it is to be sent.
    pub(super) fn offer(&self, to: &NodeId, beat: &[u8], now: Moment) -> bool {
        let mut all = lock(&self.0);
        let Some(listener) = all.listeners.get_mut(to) else { return false };
        let same = listener.beat.take().is_some_and(|(_, before)| before == beat);
        listener.beat = Some((now, beat.to_vec()));
        let due = listener.pulsed.after(listener.interval);
        let told = same && listener.told > Moment::ZERO && now.since(listener.told) <= JUST;
        listener.waiting = !told && now.after(SOON) >= due && now <= due.after(JUST);
        told || listener.waiting
    }

    /// What was offered is still so.
    pub(super) fn keep_alive(&self, now: Moment) {
        lock(&self.0).alive_until = now.after(ALIVE);
    }

    /// A node is told something else, or all are.
    pub(super) fn cancel(&self, whom: impl Fn(&NodeId) -> bool) {
        for (_, listener) in lock(&self.0).listeners.iter_mut().filter(|(id, _)| whom(id)) {
            (listener.beat, listener.waiting) = (None, false);
        }
    }

    /// The beats whose pulse has not come in time.
    pub(super) fn take_overdue(&self, now: Moment) -> Vec<(NodeId, Vec<u8>)> {
        let mut all = lock(&self.0);
        let overdue = all.listeners.iter_mut().filter_map(|(to, listener)| {
            let (_, beat) = listener.beat.as_ref().filter(|(offered, _)| now.since(*offered) >= WAIT)?;
            std::mem::take(&mut listener.waiting).then(|| (*to, beat.clone()))
        });
        overdue.collect()
    }

    /// Forgets everyone who is not a member any more.
    pub(super) fn retain(&self, member: impl Fn(&NodeId) -> bool) {
        lock(&self.0).listeners.retain(|id, _| member(id));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const AT: fn(u64) -> Moment = Moment::from_millis;
    const NODE: NodeId = NodeId([1; 10]);
    const BEAT: &[u8] = b"beat";

    /// Beats to a node that has pulsed at 1,000 and 1,200 ms, while the VIP thread is alive.
    fn pulsed_twice() -> RidingBeats {
        let beats = RidingBeats::default();
        assert_eq!([1_000, 1_200].map(|ms| beats.pulsed(NODE, AT(ms))), [None, None]);
        beats.keep_alive(AT(1_400));
        beats
    }

    fn goes(beats: &RidingBeats, ms: u64) -> bool {
        beats.pulsed(NODE, AT(ms)).is_some_and(|beat| beat == BEAT)
    }

    #[test]
    fn a_beat_goes_with_the_answer_to_the_pulse_that_is_due_or_has_just_come() {
        let beats = pulsed_twice();
        assert!(beats.offer(&NODE, BEAT, AT(1_399)));
        assert!(goes(&beats, 1_401));
        assert!(beats.offer(&NODE, BEAT, AT(1_402)), "it was told");
        assert_eq!(beats.take_overdue(AT(1_460)), []);
        beats.keep_alive(AT(1_550));
        assert!(goes(&beats, 1_600), "as soon as it pulses, before the beat is due");
        assert!(beats.offer(&NODE, BEAT, AT(1_601)));
        assert!(!beats.offer(&NODE, b"other", AT(1_602)), "that was not told");
    }

    #[test]
    fn a_beat_is_sent_where_no_pulse_is_due() {
        let beats = pulsed_twice();
        assert!([1_250, 1_300, 1_350, 1_450, 1_600].iter().all(|ms| !beats.offer(&NODE, BEAT, AT(*ms))));
        assert!(!beats.offer(&NodeId([2; 10]), BEAT, AT(1_400)), "it has never pulsed");
    }

    #[test]
    fn a_beat_whose_pulse_does_not_come_is_sent_with_the_next() {
        let beats = pulsed_twice();
        assert!(beats.offer(&NODE, BEAT, AT(1_400)));
        assert_eq!(beats.take_overdue(AT(1_444)), []);
        assert_eq!(beats.take_overdue(AT(1_450)), [(NODE, BEAT.to_vec())]);
        assert_eq!(beats.take_overdue(AT(1_450)), []);
    }

    #[test]
    fn nothing_is_said_for_a_thread_that_hangs_or_has_something_else_to_say() {
        let beats = pulsed_twice();
        assert!(beats.offer(&NODE, BEAT, AT(1_400)));
        assert!(goes(&beats, 1_460) && !goes(&beats, 1_461), "it has hung for 61 ms");
        beats.keep_alive(AT(1_640));
        assert!(goes(&beats, 1_650) && !goes(&beats, 1_651), "offered 251 ms ago");
        beats.offer(&NODE, BEAT, AT(1_650));
        beats.cancel(|id| *id == NODE);
        assert!(!goes(&beats, 1_660));
        beats.offer(&NODE, BEAT, AT(1_660));
        beats.retain(|_| false);
        assert!(!goes(&beats, 1_661));
    }
}
