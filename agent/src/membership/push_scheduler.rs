//! When peers are told of admissions: pure, so that it can be tested by table.
//!
//! A node that comes alone is known everywhere a moment later. Where many come at once the masters are told every
//! moment, since a newcomer needs them first; the others are told once a second of all that came meanwhile. So what
//! a change costs does not grow with the number of changes, and gossip of the document's hash brings the rest.
//!
//! ```text
//!            a change                   GATHER over, and PACE since the last round of all
//!   quiet ──────────────► gathering ─────────────────────────────────────────────────────► a round of all
//!     ▲                       │ GATHER over                                                      │
//!     │                       └────────────────► a round of masters, and again gathering         │
//!     └──────────────────── after enough rounds for everyone ◄───────────────────────────────────┘
//! ```

use std::time::Duration;

use proto::node::NodeId;
use proto::time::Moment;

/// Most peers of one round of all: each costs a TLS handshake.
pub(super) const ROUND: usize = 64;

/// Most rounds of all after a change: beyond these, gossip of the hash is cheaper.
const MOST_ROUNDS: usize = 4;

/// How long changes are gathered: nobody answers the newcomer before it is known.
const GATHER: Duration = Duration::from_millis(100);

/// Shortest time between two rounds of all.
const PACE: Duration = Duration::from_secs(1);

/// Whom to tell, and how soon.
#[derive(Debug, Default)]
pub(super) struct PushScheduler {
    /// When the masters are to be told.
    masters: Option<Moment>,
    /// When the next round of all is due, and how many there are.
    all: Option<Moment>,
    rounds: usize,
    last: Option<Moment>,
    /// Where the next round of all begins: the one after the last peer of the previous round.
    after: Option<NodeId>,
}

impl PushScheduler {
    /// Something has changed that these peers do not know.
    pub(super) fn changed(&mut self, now: Moment, peers: usize) {
        let soon = now.after(GATHER);
        self.masters.get_or_insert(soon);
        self.rounds = peers.div_ceil(ROUND).clamp(1, MOST_ROUNDS);
        let paced = self.last.map_or(soon, |last| last.after(PACE).max(soon));
        self.all.get_or_insert(paced);
    }

    /// When to ask [`PushScheduler::due`] again; none: after a change.
    pub(super) fn deadline(&self) -> Option<Moment> {
        self.masters.into_iter().chain(self.all).min()
    }

    /// Who is to be told now. `peers` are all others in the order of their ids.
    pub(super) fn due(
        &mut self,
        now: Moment,
        peers: &[NodeId],
        is_master: impl Fn(&NodeId) -> bool,
    ) -> Vec<NodeId> {
        let mut told = Vec::new();
        if self.masters.is_some_and(|at| at <= now) {
            self.masters = None;
            told.extend(peers.iter().filter(|id| is_master(id)).copied());
        }
        if self.all.is_some_and(|at| at <= now) {
            let begin = peers.partition_point(|id| Some(*id) <= self.after);
            let (before, behind) = peers.split_at(begin);
            let round = behind.iter().chain(before).take(ROUND);
            let masters: Vec<NodeId> = std::mem::take(&mut told);
            told.extend(round.copied());
            self.after = told.last().copied();
            told.extend(masters.into_iter().filter(|id| !told.contains(id)).collect::<Vec<_>>());
            self.last = Some(now);
            self.rounds = self.rounds.saturating_sub(1);
            self.all = (self.rounds > 0).then(|| now.after(PACE));
        }
        told
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    fn at(ms: u64) -> Moment {
        Moment::from_millis(ms)
    }

    /// So many peers, of which the first is a master.
    fn peers(count: u8) -> Vec<NodeId> {
        (1..=count).map(|n| NodeId([n; 10])).collect()
    }

    fn is_master(id: &NodeId) -> bool {
        *id == NodeId([1; 10])
    }

    #[test]
    fn a_single_change_is_told_to_all_in_a_moment_and_once() {
        let (peers, mut push) = (peers(9), PushScheduler::default());
        assert_eq!(push.deadline(), None);
        push.changed(at(0), peers.len());
        assert_eq!(push.deadline(), Some(at(100)));
        assert!(push.due(at(99), &peers, is_master).is_empty());
        assert_eq!(push.due(at(100), &peers, is_master), peers);
        assert_eq!(push.deadline(), None);
        push.changed(at(5_000), peers.len());
        assert_eq!(push.deadline(), Some(at(5_100)), "as soon as the first");
    }

    #[test]
    fn many_changes_are_told_to_masters_at_once_and_to_others_once_a_second() {
        let (peers, mut push) = (peers(60), PushScheduler::default());
        let mut told = [0, 0];
        for ms in (0..5_000).step_by(10) {
            push.changed(at(ms), peers.len());
            for id in push.due(at(ms), &peers, is_master) {
                told[usize::from(!is_master(&id))] += 1;
            }
        }
        assert!((40..=50).contains(&told[0]), "{told:?}");
        assert_eq!(told[1], 5 * 59);
        assert_eq!(push.due(at(5_110), &peers, is_master).len(), 60, "of the last one all are told");
        assert_eq!(push.deadline(), None);
    }

    #[test]
    fn a_large_cluster_is_told_in_rounds_and_a_larger_one_in_part() {
        let (peers, mut push) = (peers(200), PushScheduler::default());
        push.changed(at(0), peers.len());
        let mut told = BTreeSet::new();
        let mut rounds = 0;
        while let Some(now) = push.deadline() {
            let round = push.due(now, &peers, is_master);
            assert!(round.len() <= ROUND + 1);
            told.extend(round);
            rounds += 1;
        }
        assert_eq!((told.len(), rounds), (200, 4));
        push.changed(at(60_000), 5_000);
        let rounds = std::iter::from_fn(|| push.deadline().map(|now| push.due(now, &peers, is_master)));
        assert_eq!(rounds.count(), MOST_ROUNDS);
    }
}
