//! Who hears whom: what others report about the peers that this node watches, and what this node reports.

use std::collections::BTreeMap;
use std::sync::Mutex;
use std::time::Duration;

use proto::heard::{self, PeerReports};
use proto::node::NodeId;
use proto::time::Moment;

use super::lock;

/// A node that has heard none of several peers for this long has probably lost its own network, and reports
/// nothing.
const ISOLATED: Duration = Duration::from_millis(300);

/// What is known of watched peers by others.
#[derive(Default)]
pub(super) struct PeerReportBook {
    watched: Mutex<BTreeMap<NodeId, PeerReports>>,
}

impl PeerReportBook {
    /// Watches these peers from now on, and no others.
    pub(super) fn watch(&self, peers: impl Iterator<Item = NodeId>) {
        let mut watched = lock(&self.watched);
        let mut before = std::mem::take(&mut *watched);
        *watched = peers.map(|id| (id, before.remove(&id).unwrap_or_default())).collect();
    }

    /// Takes a member's report.
    pub(super) fn add(&self, from: NodeId, is_master: bool, report: &[u8], now: Moment) {
        let mut watched = lock(&self.watched);
        for reported in heard::from_bytes(report) {
            for (id, reports) in watched.iter_mut() {
                // What a node says of itself says nothing about who hears it.
                if reported.is_about(id) && *id != from {
                    reports.add(from, is_master, reported.age, now);
                }
            }
        }
    }

    /// What others report about a peer.
    pub(super) fn of(&self, peer: &NodeId) -> PeerReports {
        lock(&self.watched).get(peer).cloned().unwrap_or_default()
    }

    /// This node's own report to a peer; `last_heard` knows when this node last heard each. None: there is nothing
    /// to report.
    pub(super) fn report(
        &self,
        to: &NodeId,
        last_heard: impl Fn(&NodeId) -> Option<Moment>,
        now: Moment,
    ) -> Option<Vec<u8>> {
        let watched = lock(&self.watched);
        let age = |id: &NodeId| last_heard(id).map(|at| (*id, now.since(at)));
        let ages: Vec<(NodeId, Duration)> = watched.keys().filter_map(age).collect();
        let isolated = ages.len() > 1 && ages.iter().all(|(_, age)| *age > ISOLATED);
        let ages: Vec<_> = ages.into_iter().filter(|(id, _)| id != to).collect();
        (!isolated && !ages.is_empty()).then(|| heard::to_bytes(ages))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(n: u8) -> NodeId {
        NodeId([n; NodeId::LEN])
    }

    fn at(ms: u64) -> Moment {
        Moment::from_millis(ms)
    }

    #[test]
    fn an_isolated_node_reports_nothing_and_nobody_is_told_of_itself() {
        let book = PeerReportBook::default();
        book.watch([id(1), id(2), id(3)].into_iter());
        let report = |to: u8, heard: &[(u8, u64)], now| {
            let last = |peer: &NodeId| heard.iter().find(|(n, _)| id(*n) == *peer).map(|(_, ms)| at(*ms));
            let bytes = book.report(&id(to), last, at(now))?;
            Some(heard::from_bytes(&bytes).map(|one| one.age.as_millis()).collect::<Vec<_>>())
        };
        assert_eq!(report(9, &[], 1_000), None, "it has never heard anyone");
        assert_eq!(report(9, &[(1, 900), (2, 500)], 1_000), Some(vec![100, 500]));
        assert_eq!(report(1, &[(1, 900), (2, 500)], 1_000), Some(vec![500]));
        assert_eq!(report(1, &[(1, 600), (2, 500)], 1_000), None);
        assert_eq!(report(9, &[(2, 500)], 1_000), Some(vec![500]), "of a single one nobody can tell");
    }

    #[test]
    fn a_report_counts_for_watched_peers_and_not_for_its_sender() {
        let book = PeerReportBook::default();
        book.watch([id(1), id(2)].into_iter());
        let report = heard::to_bytes([1, 2, 3].map(|n| (id(n), Duration::ZERO)).into());
        book.add(id(2), true, &report, at(1_000));
        let heard = |n| book.of(&id(n)).heard_within(Duration::from_millis(100), at(1_000));
        assert!(heard(1) && !heard(2) && !heard(3));
        book.watch([id(1), id(3)].into_iter());
        assert!(heard(1) && !heard(3));
    }
}
