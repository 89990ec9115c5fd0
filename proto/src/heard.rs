//! Reports about whom others hear: each pulse and each answer carries how long ago its sender last heard each
//! peer that it watches, by any authenticated datagram.
//!
//! They tell a dead master from a cut path. Nobody has heard a dead one for a while, and everyone says so; one
//! that others hear is alive, whatever is wrong with the path from here. [`crate::pulse`] decides.
//!
//! A report is believed as far as it can do no harm. That a peer was heard delays a verdict, to this node's own
//! full time at the most. That it was not counts only beside this node's own silence, from two nodes or from a
//! master, and not against anyone who has heard it.
//!
//! A report has an entry for a peer that was heard a moment ago, and for one that does not answer its sender, unless a
//! master has heard that a moment ago. What a node that pulses seldom heard seconds ago says nothing.
//!
//! In a large cluster most nodes pulse seldom, so the core tells them at once of a silent master
//! ([`HeardBook::alarm`]):
//!
//! ```text
//!   a master that another does not answer ──► all of the core, and those attached to it
//!   a core member that it does not answer, or that a master has told ──► those attached to it
//! ```
//!
//! Told means asked to pulse, nothing more: each node believes its own silence. By two nodes or a master; by one alone,
//! or if others say that they hear it, every three seconds at most. Who hears the master after all tells the same
//! nodes, and that counts against the rest; what a worker hears does not count against a master.
//!
//! `count 1 | (first 4 bytes of the id | age 1, in units of 10 ms, 255: or longer) …`. What follows is for later
//! versions.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use crate::node::NodeId;
use crate::time::Moment;

/// Most peers in one report: a cluster has seldom more masters, and the report goes with every pulse.
pub const MAX_REPORTED: usize = 16;

/// Bytes of an id in a report. Should two ids begin alike, whichever was heard last counts for both.
const PREFIX: usize = 4;

/// Bytes of one peer in a report.
const ENTRY: usize = PREFIX + 1;

/// Unit of an age.
const UNIT_MS: u128 = 10;

/// Age below which a peer was heard a moment ago. One of which a master reports an older one does not answer.
pub const LATELY: Duration = Duration::from_millis(150);

/// The same of a worker, which pulses half as often.
const LATELY_BY_WORKER: Duration = Duration::from_millis(250);

/// The age below which a master or a worker has heard a peer a moment ago.
fn lately(is_master: bool) -> Duration {
    if is_master { LATELY } else { LATELY_BY_WORKER }
}

/// Silence after the first unanswered pulse that a node reports, beyond the time that an answer may take.
const UNANSWERED: Duration = Duration::from_millis(100);

/// The same of which a master tells others at once while it hears no third one, whose word would count against it.
const UNANSWERED_FOR_ONE: Duration = Duration::from_millis(200);

/// The same of which a worker in the core tells others at once. Its burst has a pulse in up to 125 ms, so that four are
/// lost by then; masters notice sooner, and tell it.
const UNANSWERED_FOR_WORKER: Duration = Duration::from_millis(400);

/// Reports of one node of which each came within this time of the last are of one silence.
const SAME_SILENCE: Duration = Duration::from_millis(500);

/// A node to which each of several peers has been silent for this long has probably lost its own network, and reports
/// nothing.
const ISOLATED: Duration = Duration::from_millis(200);

/// Age up to which a report makes this node doubt a peer.
const FRESH: Duration = Duration::from_millis(300);

/// Shortest time between two alarms about one peer while not all can have decided, and how long that is.
const AGAIN: Duration = Duration::from_millis(80);
const UNDECIDED: Duration = Duration::from_secs(1);

/// The same after that: most have.
const AGAIN_LATER: Duration = Duration::from_millis(240);

/// How long there are alarms after it was last heard, and the age from which on a report is no news: by then all have
/// decided.
const OVER: Duration = Duration::from_secs(2);

/// Highest age in an alarm, which is news however seldom its sender has pulsed the peer.
const NEWS: Duration = Duration::from_millis(1_990);

/// Shortest time between two doubts because of what one node says alone, or against others: of the core members that a
/// node is attached to, two may have just been started again, and who says that it hears a dead master may lie. A liar
/// who tells 5,000 nodes that a living one is silent causes 1,700 pulses a second.
const BY_ANY: Duration = Duration::from_secs(3);

/// How long a node is told of silent peers after it has last reported to this one.
const LISTENS: Duration = Duration::from_secs(7);

/// How long ago a node last heard a peer, as it reports.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ReportedAge {
    prefix: [u8; PREFIX],
    /// The age, rounded down.
    pub age: Duration,
}

impl ReportedAge {
    /// Whether it is about this peer.
    pub fn is_about(&self, peer: &NodeId) -> bool {
        peer.0.starts_with(&self.prefix)
    }
}

/// A report of these ages. If there are too many, those that were heard last are left out: of them nobody needs to
/// be told.
pub fn to_bytes(mut ages: Vec<(NodeId, Duration)>) -> Vec<u8> {
    if ages.len() > MAX_REPORTED {
        ages.sort_by_key(|(_, age)| std::cmp::Reverse(*age));
        ages.truncate(MAX_REPORTED);
    }
    let mut bytes = Vec::with_capacity(1 + ages.len() * ENTRY);
    bytes.push(u8::try_from(ages.len()).unwrap_or(0));
    for (peer, age) in ages {
        bytes.extend_from_slice(&peer.0[..PREFIX]);
        bytes.push(u8::try_from(age.as_millis() / UNIT_MS).unwrap_or(u8::MAX));
    }
    bytes
}

/// The ages in a report; none if it is truncated.
pub fn from_bytes(bytes: &[u8]) -> impl Iterator<Item = ReportedAge> {
    let (count, entries) =
        bytes.split_first().map_or((0, bytes), |(count, rest)| (usize::from(*count), rest));
    let whole = count <= MAX_REPORTED && entries.len() >= count * ENTRY;
    entries.chunks_exact(ENTRY).take(if whole { count } else { 0 }).filter_map(|entry| {
        let (prefix, rest) = entry.split_first_chunk()?;
        let [units] = rest else { return None };
        Some(ReportedAge { prefix: *prefix, age: Duration::from_millis(10) * u32::from(*units) })
    })
}

/// One node's latest report about a peer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct PeerReport {
    from: NodeId,
    /// When it arrived.
    at: Moment,
    /// The age in it.
    age: Duration,
    /// From which age on it says that the peer does not answer.
    silent: Duration,
    /// The first report of this silence, if it says so.
    since: Moment,
}

impl PeerReport {
    /// Whether it says, within `fresh`, that the peer does not answer.
    fn accuses(&self, fresh: Duration, now: Moment) -> bool {
        self.age >= self.silent && now.since(self.at) <= fresh
    }

    /// Whether it says so now, has not for long, and this node has not `heard` the peer since it began: it has looked.
    fn doubts(&self, heard: Option<Moment>, now: Moment) -> bool {
        self.accuses(FRESH, now) && self.age < OVER && heard.is_none_or(|heard| heard < self.since)
    }
}

/// What others have reported about one peer. Of constant size, however many there are.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct PeerReports {
    /// The latest moment at which anyone heard it. Reports travel for a while, so it is never too early.
    heard: Option<Moment>,
    /// The same by masters alone: against what one of them says, a worker's word counts for nothing.
    heard_by_master: Option<Moment>,
    /// The latest reports of some nodes: of the three core members that an attached node holds, and another.
    last: [Option<PeerReport>; 4],
    /// The latest report of a master.
    by_master: Option<PeerReport>,
}

impl PeerReports {
    /// Adds the report of a node, which is a master or not.
    pub fn add(&mut self, from: NodeId, is_master: bool, age: Duration, now: Moment) {
        let heard = Some(now.before(age));
        self.heard = self.heard.max(heard);
        let before = self.last.iter().chain([&self.by_master]).flatten().find(|one| one.from == from);
        let same = before.filter(|one| one.accuses(SAME_SILENCE, now));
        let since = same.map_or(now, |one| one.since);
        let report = Some(PeerReport { from, at: now, age, silent: lately(is_master), since });
        if is_master {
            self.by_master = report;
            self.heard_by_master = self.heard_by_master.max(heard);
        }
        let is_from = |one: &Option<PeerReport>| one.is_some_and(|one| one.from == from);
        match self.last.iter().position(is_from) {
            Some(place) => self.last[place] = report,
            None => {
                let oldest = self.last.iter_mut().min_by_key(|one| one.map(|one| one.at));
                oldest.into_iter().for_each(|one| *one = report);
            }
        }
    }

    /// Whether reports within this time say enough: that it was heard, or that it does not answer others.
    pub fn says(&self, within: Duration, now: Moment) -> bool {
        self.heard_within(within, now) || self.silent_elsewhere(within, now)
    }

    /// Whether anyone has heard it within this time.
    pub fn heard_within(&self, within: Duration, now: Moment) -> bool {
        self.heard.is_some_and(|heard| now.since(heard) < within)
    }

    /// The same by a master.
    fn heard_by_master_within(&self, within: Duration, now: Moment) -> bool {
        self.heard_by_master.is_some_and(|heard| now.since(heard) < within)
    }

    /// Whether it has just fallen silent by fresh reports of a master, and no master has heard it a moment ago; or of
    /// two nodes, and nobody has. After two seconds all have decided: if two masters cannot reach each other for hours,
    /// others need not look all the time; nor need this node, if it has `heard` the peer since then.
    fn doubts(&self, heard: Option<Moment>, now: Moment) -> bool {
        let doubts = |one: &PeerReport| one.doubts(heard, now);
        self.by_master.is_some_and(|one| doubts(&one)) && !self.heard_by_master_within(LATELY, now)
            || self.two(doubts) && !self.heard_within(LATELY, now)
    }

    /// Whether this holds for the reports of two nodes.
    fn two(&self, holds: impl Fn(&PeerReport) -> bool) -> bool {
        self.last.iter().flatten().filter(|one| holds(one)).count() > 1
    }

    /// Whether anyone says so, whatever others say.
    fn doubted_by_any(&self, heard: Option<Moment>, now: Moment) -> bool {
        self.by_master.iter().chain(self.last.iter().flatten()).any(|one| one.doubts(heard, now))
    }

    /// Whether two nodes or a master have reported within `fresh` that it does not answer them.
    pub fn silent_elsewhere(&self, fresh: Duration, now: Moment) -> bool {
        let accuses = |one: &PeerReport| one.accuses(fresh, now);
        self.by_master.is_some_and(|one| accuses(&one)) || self.two(accuses)
    }
}

/// What is known of one watched peer.
#[derive(Debug, Clone, Default)]
struct WatchedPeer {
    reports: PeerReports,
    /// The first pulse after it was last heard.
    asked: Option<Moment>,
    /// Time that an answer may take.
    slack: Duration,
    /// When others were last told of its silence.
    told: Option<Moment>,
    /// When it was last doubted because of what one node says alone, or against others.
    doubted_by_any: Option<Moment>,
}

impl WatchedPeer {
    /// How long pulses have had no answer, beyond the time that it may take; nor was it heard otherwise.
    fn silence(&self, last_heard: Option<Moment>, now: Moment) -> Duration {
        let asked = self.asked.filter(|at| last_heard.is_some_and(|heard| heard < *at));
        asked.map_or(Duration::ZERO, |at| now.since(at.after(self.slack)))
    }

    /// Whether anyone gives reason to doubt it, and nobody has for a while.
    fn is_doubted_by_any(&mut self, heard: Option<Moment>, now: Moment) -> bool {
        let rested = self.doubted_by_any.is_none_or(|at| now.since(at) >= BY_ANY);
        let doubted = rested && self.reports.doubted_by_any(heard, now);
        if doubted {
            self.doubted_by_any = Some(now);
        }
        doubted
    }
}

/// Whom to tell that peers are silent, and what.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Alarm {
    /// The report.
    pub report: Vec<u8>,
    /// Those attached to this node; and all of the core, if a master has noticed it itself, or hears the peer again.
    pub to: BTreeSet<NodeId>,
}

/// Who hears the watched peers: what others report, what this node reports, and whom it tells at once. When this node
/// last heard a peer itself, by any datagram, is the caller's to know.
#[derive(Debug, Clone, Default)]
pub struct HeardBook {
    watched: BTreeMap<NodeId, WatchedPeer>,
    /// Nodes that are attached to this one, and when each last said so.
    attached: BTreeMap<NodeId, Moment>,
    /// This node is a master.
    is_master: bool,
}

impl HeardBook {
    /// Watches these peers from now on, and no others, as a master or a worker.
    pub fn watch(&mut self, peers: impl Iterator<Item = NodeId>, is_master: bool) {
        self.is_master = is_master;
        let mut before = std::mem::take(&mut self.watched);
        self.watched = peers.map(|id| (id, before.remove(&id).unwrap_or_default())).collect();
    }

    /// A pulse was sent to a peer, whose answer may take this long.
    pub fn asked(&mut self, peer: &NodeId, slack: Duration, last_heard: Option<Moment>, now: Moment) {
        if let Some(peer) = self.watched.get_mut(peer) {
            peer.slack = slack;
            peer.asked = peer.asked.filter(|at| last_heard.is_none_or(|heard| heard < *at)).or(Some(now));
        }
    }

    /// Takes a member's report. Returns the peers that are silent by this report and others, and that this node has to
    /// look at.
    pub fn add(
        &mut self,
        from: NodeId,
        is_master: bool,
        report: &[u8],
        last_heard: impl Fn(&NodeId) -> Option<Moment>,
        now: Moment,
    ) -> Vec<NodeId> {
        let mut doubted = Vec::new();
        for reported in from_bytes(report) {
            for (id, peer) in &mut self.watched {
                // What a node says of itself says nothing about who hears it.
                if reported.is_about(id) && *id != from {
                    peer.reports.add(from, is_master, reported.age, now);
                    let heard = last_heard(id);
                    if reported.age >= LATELY
                        && (peer.reports.doubts(heard, now) || peer.is_doubted_by_any(heard, now))
                    {
                        doubted.push(*id);
                    }
                }
            }
        }
        doubted
    }

    /// What others report about a peer.
    pub fn of(&self, peer: &NodeId) -> PeerReports {
        self.watched.get(peer).map(|peer| peer.reports.clone()).unwrap_or_default()
    }

    fn is_isolated(&self, last_heard: impl Fn(&NodeId) -> Option<Moment>, now: Moment) -> bool {
        let known = || self.watched.iter().filter_map(|(id, peer)| Some((peer, last_heard(id)?)));
        known().count() > 1 && known().all(|(peer, at)| peer.silence(Some(at), now) > ISOLATED)
    }

    /// This node's own report to a peer. None: there is nothing to report.
    pub fn report(
        &self,
        to: &NodeId,
        last_heard: impl Fn(&NodeId) -> Option<Moment>,
        now: Moment,
    ) -> Option<Vec<u8>> {
        let entry = |(id, peer): (&NodeId, &WatchedPeer)| {
            let at = last_heard(id).filter(|_| id != to)?;
            let age = now.since(at);
            let says = age < lately(self.is_master)
                || peer.silence(Some(at), now) >= UNANSWERED
                    && !peer.reports.heard_by_master_within(LATELY, now);
            says.then_some((*id, age))
        };
        let ages: Vec<(NodeId, Duration)> = self.watched.iter().filter_map(entry).collect();
        (!ages.is_empty() && !self.is_isolated(last_heard, now)).then(|| to_bytes(ages))
    }

    /// A node is attached to this one: it is told of silent peers.
    pub fn attached(&mut self, node: NodeId, now: Moment) {
        self.attached.insert(node, now);
    }

    /// Forgets nodes that are not members any more.
    pub fn retain(&mut self, member: impl Fn(&NodeId) -> bool) {
        self.attached.retain(|id, _| member(id));
    }

    /// Whether others were told that a peer is silent, and may have to hear that it is not.
    pub fn has_told(&self, now: Moment) -> bool {
        self.watched.values().any(|peer| peer.told.is_some_and(|at| now.since(at) < OVER))
    }

    /// What to tell at once on a member of this core, if a peer is silent that was not a moment ago, or is heard after
    /// all.
    pub fn alarm(
        &mut self,
        core: &BTreeSet<NodeId>,
        last_heard: impl Fn(&NodeId) -> Option<Moment>,
        now: Moment,
    ) -> Option<Alarm> {
        let isolated = self.is_isolated(&last_heard, now);
        let is_heard = |id: &NodeId| last_heard(id).is_some_and(|heard| now.since(heard) < FRESH);
        let all_heard = self.watched.keys().filter(|id| is_heard(id)).count();
        let unanswered = |id: &NodeId| match self.is_master {
            false => UNANSWERED_FOR_WORKER,
            true if all_heard > usize::from(is_heard(id)) => UNANSWERED,
            true => UNANSWERED_FOR_ONE,
        };
        let (mut ages, mut own) = (Vec::new(), false);
        for (id, peer) in &mut self.watched {
            let heard = last_heard(id);
            if peer.told.is_some_and(|at| heard > Some(at) && now.since(at) < OVER) {
                ages.push((*id, now.since(heard.unwrap_or_default())));
                (own, peer.told) = (true, None);
                continue;
            }
            let noticed = !isolated && (unanswered(id)..OVER).contains(&peer.silence(heard, now));
            let last = now.since(heard.max(peer.reports.heard_by_master).unwrap_or_default());
            let again = if last < UNDECIDED { AGAIN } else { AGAIN_LATER };
            let due = (LATELY..OVER).contains(&last) && peer.told.is_none_or(|at| now.since(at) >= again);
            if due && (noticed || peer.reports.doubts(heard, now)) {
                // Its own word alone: others' would come to seem later with each node that passes it on.
                ages.push((*id, now.since(heard.unwrap_or_default()).min(NEWS)));
                own |= noticed;
                peer.told = Some(now);
            }
        }
        if ages.is_empty() {
            return None;
        }
        self.attached.retain(|_, at| now.since(*at) < LISTENS);
        // Core members that check each other attach themselves for a moment. Masters tell the core, and nobody else:
        // what workers say to workers would go round in it.
        let attached = self.attached.keys().filter(|id| !core.contains(*id));
        let others = core.iter().filter(|_| own && self.is_master);
        Some(Alarm { report: to_bytes(ages), to: attached.chain(others).copied().collect() })
    }
}

#[cfg(test)]
#[path = "heard_tests.rs"]
mod tests;
