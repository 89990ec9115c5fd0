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
//! `count 1 | (first 4 bytes of the id | age 1, in units of 10 ms, 255: or longer) …`. What follows is for later
//! versions.

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
}

/// What others have reported about one peer. Of constant size, however many there are.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct PeerReports {
    /// The latest moment at which anyone heard it. Reports travel for a while, so it is never too early.
    heard: Option<Moment>,
    /// The latest reports of two nodes.
    last: [Option<PeerReport>; 2],
    /// The latest report of a master.
    by_master: Option<PeerReport>,
}

impl PeerReports {
    /// Adds the report of a node, which is a master or not.
    pub fn add(&mut self, from: NodeId, is_master: bool, age: Duration, now: Moment) {
        self.heard = self.heard.max(Some(now.before(age)));
        let report = Some(PeerReport { from, at: now, age });
        if is_master {
            self.by_master = report;
        }
        let is_from = |one: &Option<PeerReport>| one.is_some_and(|one| one.from == from);
        match self.last.iter().position(is_from) {
            Some(place) => self.last[place] = report,
            None => self.last = [self.last[1], report],
        }
    }

    /// Whether anyone has heard it within this time.
    pub fn heard_within(&self, within: Duration, now: Moment) -> bool {
        self.heard.is_some_and(|heard| now.since(heard) < within)
    }

    /// Whether two nodes or a master have reported within `fresh` that they had not heard it for `silence`.
    pub fn silent_elsewhere(&self, silence: Duration, fresh: Duration, now: Moment) -> bool {
        let accuses = |one: &Option<PeerReport>| {
            one.is_some_and(|one| one.age >= silence && now.since(one.at) <= fresh)
        };
        accuses(&self.by_master) || self.last.iter().all(accuses)
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
        let silent = |reports: &PeerReports, ms| reports.silent_elsewhere(MS * 200, MS * 400, at(ms));
        let mut reports = PeerReports::default();
        reports.add(id(1), false, MS * 300, at(1_000));
        reports.add(id(1), false, MS * 350, at(1_050));
        assert!(!silent(&reports, 1_050), "one worker, twice");
        reports.add(id(2), false, MS * 190, at(1_100));
        assert!(!silent(&reports, 1_100), "another, which may have heard it just before");
        reports.add(id(2), false, MS * 200, at(1_110));
        assert!(silent(&reports, 1_110) && silent(&reports, 1_450));
        assert!(!silent(&reports, 1_451), "old");
        let mut reports = PeerReports::default();
        reports.add(id(3), true, MS * 200, at(1_000));
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

    proptest! {
        #[test]
        fn no_bytes_make_it_panic(bytes in proptest::collection::vec(any::<u8>(), 0..100)) {
            prop_assert!(from_bytes(&bytes).count() <= MAX_REPORTED);
        }
    }
}
