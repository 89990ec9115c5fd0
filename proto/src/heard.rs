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
//! A report has an entry for a peer that was heard a moment ago, and for one that does not answer its sender. What a
//! node that pulses seldom heard seconds ago says nothing.
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

use std::collections::BTreeMap;
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

/// A node to which each of several peers has been silent for this long has probably lost its own network, and reports
/// nothing.
const ISOLATED: Duration = Duration::from_millis(200);

/// Age up to which a report makes this node doubt a peer.
const FRESH: Duration = Duration::from_millis(300);

/// Shortest time between two alarms about one peer, and the age up to which there are some: by then all have decided.
const AGAIN: Duration = Duration::from_millis(80);
const OVER: Duration = Duration::from_secs(2);

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
}

impl PeerReport {
    /// Whether it says, within `fresh`, that the peer does not answer.
    fn accuses(&self, fresh: Duration, now: Moment) -> bool {
        self.age >= self.silent && now.since(self.at) <= fresh
    }

    /// Whether it says so now, and has not for long.
    fn doubts(&self, now: Moment) -> bool {
        self.accuses(FRESH, now) && self.age < OVER
    }
}

/// What others have reported about one peer. Of constant size, however many there are.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct PeerReports {
    /// The latest moment at which anyone heard it. Reports travel for a while, so it is never too early.
    heard: Option<Moment>,
    /// The same by masters alone: against what one of them says, a worker's word counts for nothing.
    heard_by_master: Option<Moment>,
    /// The latest reports of two nodes.
    last: [Option<PeerReport>; 2],
    /// The latest report of a master.
    by_master: Option<PeerReport>,
}

impl PeerReports {
    /// Adds the report of a node, which is a master or not.
    pub fn add(&mut self, from: NodeId, is_master: bool, age: Duration, now: Moment) {
        let heard = Some(now.before(age));
        self.heard = self.heard.max(heard);
        let report = Some(PeerReport { from, at: now, age, silent: lately(is_master) });
        if is_master {
            self.by_master = report;
            self.heard_by_master = self.heard_by_master.max(heard);
        }
        let is_from = |one: &Option<PeerReport>| one.is_some_and(|one| one.from == from);
        match self.last.iter().position(is_from) {
            Some(place) => self.last[place] = report,
            None => self.last = [self.last[1], report],
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

    /// Whether it has just fallen silent by fresh reports of a master, and no master has heard it a moment ago; or of
    /// two nodes, and nobody has. After two seconds all have decided: if two masters cannot reach each other for hours,
    /// others need not look all the time.
    fn doubts(&self, now: Moment) -> bool {
        let accuses = |one: &Option<PeerReport>| one.is_some_and(|one| one.doubts(now));
        let heard = |at: Option<Moment>| at.is_some_and(|heard| now.since(heard) < LATELY);
        accuses(&self.by_master) && !heard(self.heard_by_master)
            || self.last.iter().all(accuses) && !heard(self.heard)
    }

    /// Whether anyone says so, whatever others say.
    fn doubted_by_any(&self, now: Moment) -> bool {
        self.by_master.iter().chain(self.last.iter().flatten()).any(|one| one.doubts(now))
    }

    /// Whether two nodes or a master have reported within `fresh` that it does not answer them.
    pub fn silent_elsewhere(&self, fresh: Duration, now: Moment) -> bool {
        let accuses = |one: &Option<PeerReport>| one.is_some_and(|one| one.accuses(fresh, now));
        accuses(&self.by_master) || self.last.iter().all(accuses)
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
    fn is_doubted_by_any(&mut self, now: Moment) -> bool {
        let rested = self.doubted_by_any.is_none_or(|at| now.since(at) >= BY_ANY);
        let doubted = rested && self.reports.doubted_by_any(now);
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
    /// This node has noticed it itself, or hears the peer again: others of the core may not know yet.
    pub own: bool,
    /// Those attached to this node.
    pub attached: Vec<NodeId>,
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

    /// Takes a member's report. Returns the peers that are silent by this report and others.
    pub fn add(&mut self, from: NodeId, is_master: bool, report: &[u8], now: Moment) -> Vec<NodeId> {
        let mut doubted = Vec::new();
        for reported in from_bytes(report) {
            for (id, peer) in &mut self.watched {
                // What a node says of itself says nothing about who hears it.
                if reported.is_about(id) && *id != from {
                    peer.reports.add(from, is_master, reported.age, now);
                    if reported.age >= LATELY && (peer.reports.doubts(now) || peer.is_doubted_by_any(now)) {
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
            let says = age < lately(self.is_master) || peer.silence(Some(at), now) >= UNANSWERED;
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

    /// What to tell at once on a core member, if a peer is silent that was not a moment ago, or is heard after all.
    pub fn alarm(&mut self, last_heard: impl Fn(&NodeId) -> Option<Moment>, now: Moment) -> Option<Alarm> {
        let isolated = self.is_isolated(&last_heard, now);
        let (mut ages, mut own) = (Vec::new(), false);
        for (id, peer) in &mut self.watched {
            let heard = last_heard(id);
            if peer.told.is_some_and(|at| heard > Some(at) && now.since(at) < OVER) {
                ages.push((*id, now.since(heard.unwrap_or_default())));
                (own, peer.told) = (true, None);
                continue;
            }
            let noticed = !isolated && (UNANSWERED..OVER).contains(&peer.silence(heard, now));
            let last = now.since(heard.max(peer.reports.heard_by_master).unwrap_or_default());
            let due = (LATELY..OVER).contains(&last) && peer.told.is_none_or(|at| now.since(at) >= AGAIN);
            if due && (noticed || peer.reports.doubts(now)) {
                // Its own word alone: others' would come to seem later with each node that passes it on.
                ages.push((*id, now.since(heard.unwrap_or_default())));
                own |= noticed;
                peer.told = Some(now);
            }
        }
        if ages.is_empty() {
            return None;
        }
        self.attached.retain(|_, at| now.since(*at) < LISTENS);
        Some(Alarm { report: to_bytes(ages), own, attached: self.attached.keys().copied().collect() })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const MS: Duration = Duration::from_millis(1);

    fn id(n: u8) -> NodeId {
        NodeId([n; NodeId::LEN])
    }

    fn at(ms: u64) -> Moment {
        Moment::from_millis(ms)
    }

    #[test]
    fn a_report_reads_back_rounded_down_and_names_the_silent_ones_first() {
        let bytes = to_bytes(vec![(id(1), MS * 99), (id(2), Duration::from_secs(60))]);
        assert_eq!(bytes, [2, 1, 1, 1, 1, 9, 2, 2, 2, 2, 255]);
        let later = [bytes.as_slice(), b"next"].concat();
        let ages: Vec<ReportedAge> = from_bytes(&later).collect();
        assert_eq!([ages[0].age, ages[1].age], [MS * 90, MS * 2_550]);
        assert!(ages[0].is_about(&id(1)) && !ages[0].is_about(&id(2)) && ages.len() == 2);
        assert_eq!(from_bytes(&bytes[..10]).count(), 0, "truncated");
        assert_eq!(from_bytes(&[]).count(), 0);
        let many = to_bytes((1..=20).map(|n| (id(n), MS * 10 * u32::from(n))).collect());
        assert!(many.len() == 1 + MAX_REPORTED * ENTRY && from_bytes(&many).any(|one| one.is_about(&id(20))));
        assert!(!from_bytes(&many).any(|one| one.is_about(&id(1))));
    }

    #[test]
    fn two_nodes_or_a_master_that_do_not_hear_it_lately() {
        let silent = |reports: &PeerReports, ms| reports.silent_elsewhere(MS * 400, at(ms));
        let mut reports = PeerReports::default();
        reports.add(id(1), false, MS * 300, at(1_000));
        reports.add(id(1), false, MS * 350, at(1_050));
        assert!(!silent(&reports, 1_050), "one worker, twice");
        reports.add(id(2), false, MS * 240, at(1_100));
        assert!(!silent(&reports, 1_100), "another, which pulses every 200 ms");
        reports.add(id(2), false, MS * 250, at(1_110));
        assert!(silent(&reports, 1_110) && silent(&reports, 1_450));
        assert!(!silent(&reports, 1_451), "old");
        let mut reports = PeerReports::default();
        reports.add(id(3), true, MS * 150, at(1_000));
        reports.add(id(1), false, Duration::ZERO, at(1_000));
        reports.add(id(2), false, Duration::ZERO, at(1_000));
        assert!(silent(&reports, 1_000), "a master");
        assert!(reports.heard_within(MS * 400, at(1_399)) && !reports.heard_within(MS * 400, at(1_400)));
    }

    #[test]
    fn a_report_of_long_silence_moves_nothing_back() {
        let mut reports = PeerReports::default();
        reports.add(id(1), true, MS * 10, at(1_000));
        reports.add(id(2), true, MS * 2_550, at(1_100));
        assert!(reports.heard_within(MS * 200, at(1_100)));
    }

    /// When this node last heard each, in milliseconds.
    fn last(heard: &[(u8, u64)]) -> impl Fn(&NodeId) -> Option<Moment> {
        |peer: &NodeId| heard.iter().find(|(n, _)| id(*n) == *peer).map(|(_, ms)| at(*ms))
    }

    /// A book that watches these peers and has sent a pulse to each at that time, in milliseconds.
    fn watching(peers: &[(u8, u64)]) -> HeardBook {
        let mut book = HeardBook::default();
        book.watch(peers.iter().map(|(n, _)| id(*n)), true);
        peers.iter().for_each(|(n, ms)| book.asked(&id(*n), MS * 20, None, at(*ms)));
        book
    }

    #[test]
    fn a_report_tells_who_was_heard_a_moment_ago_and_who_does_not_answer() {
        let book = watching(&[(1, 100), (2, 700), (3, 880)]);
        let report = |to: u8, heard: &[(u8, u64)], now| {
            let bytes = book.report(&id(to), last(heard), at(now))?;
            Some(from_bytes(&bytes).map(|one| one.age.as_millis()).collect::<Vec<_>>())
        };
        assert_eq!(report(9, &[], 1_000), None, "it has never heard anyone");
        assert_eq!(report(9, &[(1, 900), (2, 500)], 1_000), Some(vec![100, 500]));
        assert_eq!(report(1, &[(1, 900), (2, 500)], 1_000), Some(vec![500]), "nobody is told of itself");
        assert_eq!(
            report(9, &[(3, 500)], 999),
            None,
            "an answer may take 20 ms, and 100 more are no silence"
        );
        assert_eq!(report(9, &[(3, 500)], 1_000), Some(vec![500]));
        assert_eq!(report(9, &[(1, 800)], 1_000), None, "it was not asked since");
        assert_eq!(report(9, &[(1, 50), (2, 50)], 1_000), None, "this node has lost its network");
    }

    #[test]
    fn a_worker_that_pulses_every_200_ms_says_that_it_hears_a_master() {
        let mut book = HeardBook::default();
        let names = |book: &HeardBook, ms| book.report(&id(9), last(&[(1, 1_000)]), at(ms)).is_some();
        book.watch([id(1)].into_iter(), false);
        assert!(names(&book, 1_249) && !names(&book, 1_250));
        book.watch([id(1)].into_iter(), true);
        assert!(names(&book, 1_149) && !names(&book, 1_150), "a master asks again sooner");
    }

    #[test]
    fn a_report_counts_for_watched_peers_and_not_for_its_sender() {
        let mut book = watching(&[(1, 0), (2, 0)]);
        let report = to_bytes([1, 2, 3].map(|n| (id(n), Duration::ZERO)).into());
        book.add(id(2), true, &report, at(1_000));
        let heard = |book: &HeardBook, n| book.of(&id(n)).heard_within(MS * 100, at(1_000));
        assert!(heard(&book, 1) && !heard(&book, 2) && !heard(&book, 3));
        book.watch([id(1), id(3)].into_iter(), true);
        assert!(heard(&book, 1) && !heard(&book, 3));
    }

    #[test]
    fn a_master_or_two_others_raise_a_doubt_unless_someone_has_just_heard_it() {
        let silent = to_bytes(vec![(id(1), MS * 250)]);
        let mut book = watching(&[(1, 0)]);
        assert_eq!(book.add(id(5), false, &silent, at(1_000)), [id(1)], "one worker, every three seconds");
        assert!(book.add(id(5), false, &silent, at(1_100)).is_empty(), "the same");
        assert_eq!(book.add(id(6), false, &silent, at(1_150)), [id(1)]);
        let mut book = watching(&[(1, 0)]);
        assert_eq!(book.add(id(2), true, &silent, at(1_000)), [id(1)], "a master");
        let hears = to_bytes(vec![(id(1), MS * 10)]);
        book.add(id(5), false, &hears, at(1_010));
        assert_eq!(
            book.add(id(2), true, &silent, at(1_020)),
            [id(1)],
            "a worker does not speak for a master"
        );
        book.add(id(3), true, &hears, at(1_030));
        assert_eq!(book.add(id(2), true, &silent, at(1_040)), [id(1)], "another hears it, but it may lie");
        assert!(book.add(id(2), true, &silent, at(1_050)).is_empty(), "that is asked every three seconds");
    }

    #[test]
    fn those_attached_are_told_at_once_and_again_while_it_lasts() {
        let heard = [(1, 850), (2, 1_000)];
        let alarm = |book: &mut HeardBook, ms| book.alarm(last(&heard), at(ms));
        let mut book = watching(&[(1, 880), (2, 900)]);
        book.attached(id(7), at(500));
        assert_eq!(alarm(&mut book, 999), None);
        let one = alarm(&mut book, 1_000).unwrap();
        assert_eq!((one.own, &one.attached), (true, &vec![id(7)]));
        let ages: Vec<ReportedAge> = from_bytes(&one.report).collect();
        assert!(ages.len() == 1 && ages[0].is_about(&id(1)) && ages[0].age == MS * 150);
        assert_eq!(alarm(&mut book, 1_079), None, "a moment ago");
        assert!(alarm(&mut book, 1_080).is_some());
        assert_eq!(alarm(&mut book, 2_850), None, "by now all have decided");
        // One that this node has not asked since, by the word of a master; and of one that another hears, nothing.
        let mut book = watching(&[(1, 0)]);
        let report = |age: u32| to_bytes(vec![(id(1), MS * age)]);
        book.add(id(3), true, &report(200), at(1_100));
        let one = alarm(&mut book, 1_100).unwrap();
        assert!(!one.own && one.attached.is_empty());
        book.add(id(4), false, &report(0), at(1_190));
        assert!(alarm(&mut book, 1_195).is_some(), "a worker's word");
        book.add(id(4), true, &report(0), at(1_200));
        assert_eq!(alarm(&mut book, 1_210), None);
        // It is heard after all, which is told once.
        let mut book = watching(&[(1, 880)]);
        assert!(book.alarm(last(&[(1, 850)]), at(1_000)).is_some() && book.has_told(at(1_040)));
        let clear = book.alarm(last(&[(1, 1_030)]), at(1_040)).unwrap();
        assert!(clear.own && from_bytes(&clear.report).all(|one| one.age == MS * 10));
        assert!(!book.has_told(at(1_040)) && book.alarm(last(&[(1, 1_030)]), at(1_041)).is_none());
        // Who has not reported for long is not told.
        let mut book = watching(&[(1, 880)]);
        book.attached(id(7), at(0));
        assert!(alarm(&mut book, 1_000).unwrap().attached == [id(7)]);
        let gone = book.alarm(|_| Some(at(7_000)), at(7_200));
        assert!(gone.is_none(), "it was not asked");
        book.asked(&id(1), MS * 20, Some(at(7_000)), at(7_001));
        assert!(book.alarm(|_| Some(at(7_000)), at(7_200)).unwrap().attached.is_empty());
    }

    #[test]
    fn a_path_that_is_cut_for_long_makes_nobody_look_again() {
        // Another master has not heard it for long; this node does, now and then.
        let mut book = watching(&[(1, 0)]);
        let report = |age: u32| to_bytes(vec![(id(1), MS * age)]);
        assert_eq!(book.add(id(2), true, &report(1_990), at(10_000)), [id(1)]);
        assert!(book.add(id(2), true, &report(2_000), at(10_100)).is_empty());
        assert_eq!(book.alarm(last(&[(1, 9_800)]), at(10_100)), None);
        // This node has not heard it for long, others did a second ago.
        let mut book = watching(&[(1, 0), (2, 9_950)]);
        book.asked(&id(1), MS * 20, Some(at(5_000)), at(5_010));
        book.add(id(3), false, &report(1_000), at(10_000));
        assert_eq!(book.alarm(last(&[(1, 5_000), (2, 9_990)]), at(10_000)), None);
    }

    proptest! {
        #[test]
        fn no_bytes_make_it_panic(bytes in proptest::collection::vec(any::<u8>(), 0..100)) {
            prop_assert!(from_bytes(&bytes).count() <= MAX_REPORTED);
        }
    }
}
