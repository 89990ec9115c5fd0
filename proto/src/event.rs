//! Changes of state for people, hooks and journald, and the ring that keeps the latest.
//!
//! An [`Event`] serializes to the JSON of `agent events --json`, the API, hooks and the webhook. Its shape is
//! stable: fields are added, never renamed or removed. Texts are for people and never secret.

mod summary;

use std::collections::{BTreeMap, VecDeque};
use std::fmt::{self, Write};
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

pub use self::summary::{EventSummer, ONE_BY_ONE};
use crate::cause::{Cause, Reason};
use crate::next_wire;
use crate::open_enum;
use crate::time::{UnixMs, human};

/// Most events that a [`EventRing`] keeps: a bad day of a large cluster, in a few hundred kilobytes.
pub const KEPT: usize = 1024;

/// Longest subject, state and label that are kept, in bytes.
const MAX_WORD: usize = 128;

/// Nodes that the sentence of many names.
const NAMED: usize = 5;

/// Longest reason that is kept, in bytes.
const MAX_REASON: usize = 256;

/// Kinds, each with its stable name, its stable MESSAGE_ID of journald, and what its subject is.
macro_rules! kinds {
    ($($(#[doc = $doc:literal])+ $kind:ident $name:literal $id:literal $subject:literal,)+) => {
        /// The kind of an event.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
        pub enum EventKind {
            $($(#[doc = $doc])+ $kind,)+
            /// A kind of a later version.
            Other,
        }

        impl EventKind {
            /// Every kind that this version makes.
            pub const ALL: &[EventKind] = &[$(EventKind::$kind),+];

            /// Name, MESSAGE_ID, subject.
            const fn about(self) -> (&'static str, &'static str, &'static str) {
                match self {
                    $(EventKind::$kind => ($name, $id, $subject),)+
                    EventKind::Other => ("other", "d1358644271b4fe795079f1e401c9ef5", "depends on the kind"),
                }
            }
        }
    };
}

kinds! {
    /// The agent of this node has started.
    AgentStarted "agent-started" "c384f6a694284102a253e31b0d936df3" "the node",
    /// The agent of this node stops on purpose.
    AgentStopping "agent-stopping" "4fa63fd9ffd04a7c916bc71d9e53d19e" "the node",
    /// The state of a backend of this node's proxy has changed.
    Backend "backend" "42488d26cb7f4e0fb5e25913542d5a3c" "SERVICE/NODE",
    /// The result of this node's checks of its own instance of a service has changed.
    Check "check" "6fa508fde2ed4149b769e42749edf938" "SERVICE",
    /// A member is alive, suspect, silent, or has stopped on purpose.
    Member "member" "6073eb1aa88b4c6593729c0379b918ac" "NODE",
    /// A node was admitted.
    MemberJoined "member-joined" "24d6eadc288a49da9029081235e575d9" "NODE",
    /// A node was removed, or has left forever.
    MemberRemoved "member-removed" "7eed2ebcb7e149b9aa9ecba5f2aac3cc" "NODE",
    /// A node starts or stops to drain.
    Drain "drain" "60fd822ed758490e9db64ab1b2874fb5" "NODE",
    /// The value of a cluster-wide setting has changed.
    Setting "setting" "679135afd6364987ae1c7d64d4cd2e19" "the setting's key",
    /// The gossip key has changed; `from` and `to` are epochs.
    KeyRotated "key-rotated" "4692a6ac0f494340bb77f5e75d350494" "gossip-key",
    /// An address of a service could not be bound, or was bound again.
    Listener "listener" "3053305dcd08428880c78f31b4e8c8e5" "SERVICE/ADDRESS",
    /// A service has reached its connection limit, and refuses more.
    Limit "limit" "988b7a1b1e6442758fcb5115a0c1ff8f" "SERVICE",
    /// The budget for second dials and hellos of a service is used up.
    Budget "budget" "642ef088cfa8441e92fccec680a425f7" "SERVICE",
    /// The configuration was reloaded, or the reload was refused.
    Reload "reload" "f59b7332eb3148758224ae331a4692d1" "configuration",
    /// A member's record or document is not understood or differs.
    Document "document" "944dd36a5b464b30aed63fa9149f9d21" "NODE",
    /// This node has a problem with its own state directory or network.
    Problem "problem" "e567cdf7194746edaddd50b0628b2f86" "CODE or CODE/SUBJECT",
    /// The process stalled: none of its tasks ran.
    Stall "stall" "2df5e6a8daf64f54b83bb53580d539cc" "the node",
    /// This node's state for a virtual IP; `to` is `master`, `backup` or `fault`, as in keepalived.
    VipState "vip-state" "594b36cd3f5f468885c472e8bf440e5c" "the VIP",
    /// A virtual IP has a new owner; `from` and `to` are nodes.
    VipOwner "vip-owner" "46464c87c7224d60bb435f5ce257f389" "the VIP",
    /// The node-local address was set on this node, removed, or put back after others had removed it.
    NodeLocal "node-local" "0ad1d1c79be64b0f8d4a9c2f7f0a5b63" "the address",
    /// Masters have put the endpoints of the service `kubernetes` right.
    KubernetesEndpoints "kubernetes-endpoints" "7c2f6f0e5a9b4f6f9d3e1b84c5a7de21" "default/kubernetes",
    /// A virtual IP has a problem: duplicate, without an owner, not configurable.
    VipProblem "vip-problem" "4160a4505f634cb58a749018c35dd792" "the VIP",
}

impl EventKind {
    /// The stable name, as in JSON.
    pub fn name(self) -> &'static str {
        self.about().0
    }

    /// The stable MESSAGE_ID of journald: 128 bits in hex.
    pub fn message_id(self) -> &'static str {
        self.about().1
    }

    /// What the subject of such an event is.
    pub fn subject(self) -> &'static str {
        self.about().2
    }

    /// The kind of this name; [`EventKind::Other`] for those of later versions.
    pub fn from_name(name: &str) -> EventKind {
        EventKind::ALL.iter().copied().find(|kind| kind.name() == name).unwrap_or(EventKind::Other)
    }
}

impl fmt::Display for EventKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

impl Serialize for EventKind {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(next_wire::say(self.name()))
    }
}

impl<'de> Deserialize<'de> for EventKind {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<EventKind, D::Error> {
        Ok(EventKind::from_name(next_wire::hear(&String::deserialize(deserializer)?)))
    }
}

/// How urgent an event is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum EventLevel {
    /// Normal, or requested.
    Info,
    /// Worth a look.
    Warning,
    /// Something does not work.
    Error,
}

impl EventLevel {
    /// Its name in JSON.
    pub fn name(self) -> &'static str {
        match self {
            EventLevel::Info => "info",
            EventLevel::Warning => "warning",
            EventLevel::Error => "error",
        }
    }

    /// Its number in syslog(3) and journald.
    pub fn syslog(self) -> u8 {
        match self {
            EventLevel::Info => 6,
            EventLevel::Warning => 4,
            EventLevel::Error => 3,
        }
    }
}

fn level<'de, D: Deserializer<'de>>(deserializer: D) -> Result<EventLevel, D::Error> {
    open_enum::or(deserializer, EventLevel::Warning)
}

/// One change of state, as one node saw it. Node and number together identify it in the cluster.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Event {
    /// Its number on its node, from 1, also over restarts; 0 until the ring has added it.
    pub seq: u64,
    /// When, on that node's wall clock.
    pub time_unix_ms: UnixMs,
    /// The node that saw it; empty until the ring has added it.
    pub node: String,
    /// Its kind.
    pub kind: EventKind,
    /// How urgent it is; an unknown level of a later version counts as a warning.
    #[serde(deserialize_with = "level")]
    pub level: EventLevel,
    /// What it concerns; [`EventKind::subject`] says what that is.
    pub subject: String,
    /// The previous state; empty: there was none.
    pub from: String,
    /// The new state.
    pub to: String,
    /// Why, as the stable label of a [`Cause`]; empty: none of those.
    #[serde(default)]
    pub cause: String,
    /// Why, in a few words for people; may be empty.
    #[serde(default)]
    pub reason: Reason,
    /// How long the previous state lasted, in milliseconds; `None`: not known.
    pub duration_ms: Option<u64>,
    /// The priority of this node for a virtual IP; `None` for all other kinds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub priority: Option<u8>,
    /// How many nodes it is about, where it sums up many of them: see [`EventSummer`]. `None`: it is a single event.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub count: Option<u32>,
    /// Some of these nodes.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub nodes: Vec<String>,
}

impl Event {
    /// An event without anything else, for information.
    pub fn new(kind: EventKind, time: UnixMs, subject: impl Into<String>, to: impl Into<String>) -> Event {
        Event {
            seq: 0,
            time_unix_ms: time,
            node: String::new(),
            kind,
            level: EventLevel::Info,
            subject: subject.into(),
            from: String::new(),
            to: to.into(),
            cause: String::new(),
            reason: Reason::default(),
            duration_ms: None,
            priority: None,
            count: None,
            nodes: Vec::new(),
        }
    }

    /// With the previous state, and how long that lasted.
    #[must_use]
    pub fn from(mut self, from: impl Into<String>, lasted: Option<Duration>) -> Event {
        self.from = from.into();
        self.duration_ms = lasted.map(|lasted| u64::try_from(lasted.as_millis()).unwrap_or(u64::MAX));
        self
    }

    /// With the previous state and since when it was so; an unknown time is zero.
    #[must_use]
    pub fn since(self, from: impl Into<String>, since: UnixMs) -> Event {
        let known = (since != UnixMs(0)).then_some(since);
        let now = self.time_unix_ms;
        self.from(from, known.map(|since| Duration::from_millis(now.0.saturating_sub(since.0))))
    }

    /// With a cause. Without a [`Event::reason`] of its own it gets the cause's text.
    #[must_use]
    pub fn because(mut self, cause: Cause) -> Event {
        cause.label().clone_into(&mut self.cause);
        if self.reason.is_empty() {
            self.reason = cause.into();
        }
        self
    }

    /// With a reason, for people.
    #[must_use]
    pub fn reason(mut self, reason: impl fmt::Display) -> Event {
        self.reason = Reason::new(reason);
        self
    }

    /// It was requested: `by` says who; may be empty.
    #[must_use]
    pub fn requested(mut self, by: impl fmt::Display) -> Event {
        Cause::Requested.label().clone_into(&mut self.cause);
        self.reason(by)
    }

    /// With a level.
    #[must_use]
    pub fn level(mut self, level: EventLevel) -> Event {
        self.level = level;
        self
    }

    /// As text, without time and node: `backend kube-api/m1: ready -> down after 3h: refused`.
    pub fn sentence(&self) -> String {
        let mut text = format!("{} {}: ", self.kind, self.subject);
        if !self.from.is_empty() {
            let _ = write!(text, "{} -> ", self.from);
        }
        text.push_str(&self.to);
        if let Some(ms) = self.duration_ms {
            let _ = write!(text, " after {}", human(Duration::from_millis(ms)));
        }
        if !self.reason.is_empty() {
            let _ = write!(text, ": {}", self.reason);
        }
        if let Some(names) = self.nodes.get(..NAMED) {
            let _ = write!(text, " ({}, …)", names.join(", "));
        }
        text
    }

    /// The arguments of keepalived's notify scripts for a virtual IP: `INSTANCE name STATE priority`. None
    /// for other events, and for those of a VIP that are not about this node's own state.
    pub fn keepalived(&self) -> Option<[String; 4]> {
        let state = match (self.kind, self.to.as_str()) {
            (EventKind::VipState, "master") => "MASTER",
            (EventKind::VipState, "backup") => "BACKUP",
            (EventKind::VipState, _) => "FAULT",
            _ => return None,
        };
        let priority = self.priority.unwrap_or(0).to_string();
        Some(["INSTANCE".to_owned(), self.subject.clone(), state.to_owned(), priority])
    }
}

/// Which events to return.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct EventQuery {
    /// Not those before this time.
    pub since: UnixMs,
    /// By node, the newest number already seen; only later ones.
    pub after: BTreeMap<String, u64>,
    /// At most so many of each node, the latest.
    pub most: u32,
    /// Those of all members, not only of the queried node.
    pub cluster: bool,
}

/// Cuts a text at a character's end, and removes control characters: none may reach a terminal or start a new
/// line in a log.
fn trim(text: &mut String, most: usize) {
    if text.len() > most {
        let mut end = most;
        while !text.is_char_boundary(end) {
            end -= 1;
        }
        text.truncate(end);
    }
    if text.contains(char::is_control) {
        *text = text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
    }
}

/// The latest events of a node, in the order of their numbers, without gaps.
///
/// The one task that writes it publishes it by a watch. To read along, remember [`EventRing::newest`] and get
/// the events [`EventRing::after`] it whenever the watch has changed: a slow reader misses what was pushed
/// out.
#[derive(Debug, Clone, Default)]
pub struct EventRing {
    events: VecDeque<Arc<Event>>,
    newest: u64,
}

impl EventRing {
    /// Adds an event as this node's next; returns it with its number.
    pub fn push(&mut self, node: &str, mut event: Event) -> Arc<Event> {
        event.seq = self.newest + 1;
        node.clone_into(&mut event.node);
        self.restore(event)
    }

    /// Adds an event that already has its number, as read from disk. Its number is not below the earlier
    /// ones.
    pub fn restore(&mut self, mut event: Event) -> Arc<Event> {
        for (text, most) in [
            (&mut event.subject, MAX_WORD),
            (&mut event.from, MAX_WORD),
            (&mut event.to, MAX_WORD),
            (&mut event.cause, MAX_WORD),
        ] {
            trim(text, most);
        }
        event.nodes.truncate(summary::MOST_NAMED);
        event.nodes.iter_mut().for_each(|node| trim(node, MAX_WORD));
        event.reason = std::mem::take(&mut event.reason).at_most(MAX_REASON);
        self.newest = self.newest.max(event.seq);
        let event = Arc::new(event);
        if self.events.len() >= KEPT {
            self.events.pop_front();
        }
        self.events.push_back(event.clone());
        event
    }

    /// Number of the newest event; 0: there is none.
    pub fn newest(&self) -> u64 {
        self.newest
    }

    /// All kept events, oldest first.
    pub fn all(&self) -> impl DoubleEndedIterator<Item = &Arc<Event>> + ExactSizeIterator {
        self.events.iter()
    }

    /// Events after this number, oldest first. A number that was never assigned here is of an earlier life of
    /// this node, whose state was lost: then all events are after it.
    pub fn after(&self, seq: u64) -> impl DoubleEndedIterator<Item = &Arc<Event>> {
        let seq = if seq > self.newest { 0 } else { seq };
        self.events.iter().filter(move |event| event.seq > seq)
    }

    /// Events at this time or later, oldest first.
    pub fn since(&self, time: UnixMs) -> impl DoubleEndedIterator<Item = &Arc<Event>> {
        self.events.iter().filter(move |event| event.time_unix_ms >= time)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    fn event(n: u64) -> Event {
        Event::new(EventKind::Backend, UnixMs(n), "kube-api/m1", "down")
    }

    #[test]
    fn names_and_ids_are_unique_and_stand_for_their_kind() {
        let ids: BTreeSet<&str> = EventKind::ALL.iter().map(|kind| kind.message_id()).collect();
        assert_eq!(ids.len(), EventKind::ALL.len());
        for kind in EventKind::ALL {
            assert_eq!(EventKind::from_name(kind.name()), *kind);
            let id = kind.message_id();
            assert!(id.len() == 32 && id.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b)));
        }
        assert_eq!(EventKind::from_name("of-next-year"), EventKind::Other);
    }

    #[test]
    fn the_ring_keeps_the_latest_and_numbers_continue() {
        let mut ring = EventRing::default();
        for n in 1..=KEPT as u64 + 10 {
            assert_eq!(ring.push("w1", event(n)).seq, n);
        }
        assert_eq!(ring.all().len(), KEPT);
        assert_eq!(ring.all().next().unwrap().seq, 11);
        assert_eq!(ring.newest(), KEPT as u64 + 10);
        let after: Vec<u64> = ring.after(ring.newest() - 2).map(|event| event.seq).collect();
        assert_eq!(after, [KEPT as u64 + 9, KEPT as u64 + 10]);
        assert_eq!(ring.after(ring.newest()).count(), 0);
        assert_eq!(ring.after(u64::MAX).count(), KEPT, "a number of an earlier life");
        assert_eq!(ring.since(UnixMs(KEPT as u64 + 10)).count(), 1);
    }

    #[test]
    fn a_ring_continues_after_the_events_on_disk() {
        let mut ring = EventRing::default();
        ring.restore(Event { seq: 41, ..event(1) });
        assert_eq!(ring.push("w1", event(2)).seq, 42);
    }

    #[test]
    fn texts_are_cut_and_can_not_command_a_terminal() {
        let mut ring = EventRing::default();
        let long = "ü".repeat(500);
        let taken = ring.push("w1", event(1).reason(format!("\x1b[2J\n{long}")));
        let shown = taken.reason.to_string();
        assert!(shown.len() <= MAX_REASON && shown.starts_with(" [2J ü"), "{shown}");
    }

    #[test]
    fn sentences_contain_what_is_known() {
        let whole = event(10_000).since("ready", UnixMs(4_000)).because(Cause::PortClosed);
        assert_eq!(whole.cause, "port-closed");
        assert_eq!(whole.sentence(), "backend kube-api/m1: ready -> down after 6s: connection refused");
        assert_eq!(event(1).sentence(), "backend kube-api/m1: down");
        assert_eq!(event(1).since("ready", UnixMs(0)).duration_ms, None);
    }

    #[test]
    fn hooks_get_keepalived_arguments_for_this_nodes_vip_state() {
        let mut vip = Event::new(EventKind::VipState, UnixMs(1), "10.0.0.9", "master");
        vip.priority = Some(150);
        assert_eq!(vip.keepalived().unwrap().join(" "), "INSTANCE 10.0.0.9 MASTER 150");
        assert!(Event::new(EventKind::VipOwner, UnixMs(1), "10.0.0.9", "m1").keepalived().is_none());
    }
}
