//! When to exchange the document with whom: pure, so that it can be tested by table.
//!
//! - At start, with two random members: one of them may know a newer document or key.
//! - With a member whose gossiped hash differs, one at a time.
//! - While nobody is heard, with one random member after the other, for ever (serf#333, consul#7750): gossip
//!   can't work while keys differ, and TLS does not need them (consul#719).

use std::time::Duration;

use proto::node::NodeId;
use proto::time::Moment;

/// Shortest time between two exchanges because of differing hashes.
const DIFFER: Duration = Duration::from_secs(1);

/// How long this node's document has to stand before differing hashes count: while many join, every document is
/// replaced every second, and whoever changes it tells the others without being asked.
const STANDS: Duration = Duration::from_secs(2);

/// Time between two exchanges while nobody is heard; up to as much again is added by chance, so that a
/// cluster that comes back at once does not all call the same node.
const ALONE: Duration = Duration::from_secs(2);

/// Time that a silent mesh is given before the first of those.
const PATIENCE: Duration = Duration::from_secs(2);

/// An exchange that takes longer than this has been given up by the link.
const LOST: Duration = Duration::from_secs(60);

/// What was exchanged, and when.
#[derive(Debug)]
pub(super) struct SyncScheduler {
    at_start: u32,
    under_way: Option<Moment>,
    last: Moment,
    heard: Moment,
    /// When this node's document changed last.
    changed: Option<Moment>,
    wait: Duration,
    hurry: bool,
}

impl SyncScheduler {
    /// Nothing yet.
    pub(super) fn new(now: Moment) -> SyncScheduler {
        SyncScheduler {
            at_start: 2,
            under_way: None,
            last: now,
            heard: now,
            changed: None,
            wait: ALONE,
            hurry: false,
        }
    }

    /// A datagram came under a key that is not held: someone has a newer one.
    pub(super) fn wake(&mut self) {
        self.hurry = true;
    }

    /// This node's document has changed.
    pub(super) fn changed(&mut self, now: Moment) {
        self.changed = Some(now);
    }

    /// The exchange that was started has ended.
    pub(super) fn ended(&mut self, now: Moment) {
        self.under_way = None;
        self.last = now;
    }

    /// Whom to exchange with now. `differ` are heard members with another hash, `anyone` tells whether any
    /// is heard, `dice` is a random number.
    pub(super) fn next(
        &mut self,
        now: Moment,
        members: &[NodeId],
        differ: &[NodeId],
        anyone: bool,
        dice: u64,
    ) -> Option<NodeId> {
        if anyone {
            self.heard = now;
        }
        if self.under_way.is_some_and(|since| now.since(since) < LOST) {
            return None;
        }
        let pick = |from: &[NodeId]| from.get((dice % from.len().max(1) as u64) as usize).copied();
        let since_last = now.since(self.last);
        let stands = self.changed.is_none_or(|at| now.since(at) >= STANDS);
        let peer = if self.at_start > 0 {
            self.at_start -= 1;
            pick(members)
        } else if !differ.is_empty() && since_last >= DIFFER && stands {
            pick(differ)
        } else if self.hurry && since_last >= ALONE {
            self.hurry = false;
            pick(members)
        } else if !anyone && now.since(self.heard) >= PATIENCE && since_last >= self.wait {
            self.wait = ALONE + Duration::from_millis(dice % 2000);
            pick(members)
        } else {
            None
        };
        if peer.is_some() {
            self.under_way = Some(now);
        }
        peer
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(n: u8) -> NodeId {
        NodeId([n; 10])
    }

    fn at(ms: u64) -> Moment {
        Moment::from_millis(ms)
    }

    /// A spread that has its start behind it.
    fn started() -> SyncScheduler {
        let mut spread = SyncScheduler::new(at(0));
        for _ in 0..2 {
            assert!(spread.next(at(0), &[id(1)], &[], true, 0).is_some());
            spread.ended(at(0));
        }
        spread
    }

    #[test]
    fn in_a_quiet_cluster_nothing_is_exchanged() {
        let mut spread = started();
        for second in 1..100 {
            assert_eq!(spread.next(at(second * 1000), &[id(1)], &[], true, second), None);
        }
    }

    #[test]
    fn a_differing_hash_is_settled_one_exchange_at_a_time() {
        let mut spread = started();
        assert_eq!(spread.next(at(1000), &[id(1), id(2)], &[id(2)], true, 7), Some(id(2)));
        assert_eq!(spread.next(at(2000), &[id(1), id(2)], &[id(2)], true, 7), None, "one is under way");
        spread.ended(at(2000));
        assert_eq!(spread.next(at(2500), &[id(1), id(2)], &[id(2)], true, 7), None, "too soon");
        assert_eq!(spread.next(at(3000), &[id(1), id(2)], &[id(2)], true, 7), Some(id(2)));
    }

    #[test]
    fn while_its_document_changes_all_the_time_a_node_waits_to_be_told() {
        let mut spread = started();
        for second in 1..10 {
            spread.changed(at(second * 1000));
            assert_eq!(spread.next(at(second * 1000 + 500), &[id(1)], &[id(1)], true, 7), None);
        }
        assert_eq!(spread.next(at(11_000), &[id(1)], &[id(1)], true, 7), Some(id(1)), "it stands for 2 s");
    }

    #[test]
    fn alone_it_asks_one_after_the_other_for_ever() {
        let mut spread = started();
        let members = [id(1), id(2), id(3)];
        let mut asked = std::collections::BTreeSet::new();
        for second in 1..=120u64 {
            if let Some(peer) = spread.next(at(second * 1000), &members, &[], false, second * 7919) {
                asked.insert(peer);
                spread.ended(at(second * 1000));
            }
        }
        assert_eq!(asked.len(), 3);
    }

    #[test]
    fn an_unknown_key_is_asked_after_and_a_flood_of_them_is_not() {
        let mut spread = started();
        let mut exchanges = 0;
        for ms in (0..10_000).step_by(100) {
            spread.wake();
            if spread.next(at(ms), &[id(1)], &[], true, ms).is_some() {
                exchanges += 1;
                spread.ended(at(ms));
            }
        }
        assert!((3..=6).contains(&exchanges), "{exchanges}");
    }

    #[test]
    fn a_node_without_others_asks_nobody() {
        let mut spread = SyncScheduler::new(at(0));
        assert_eq!(spread.next(at(10_000), &[], &[], false, 5), None);
    }
}
