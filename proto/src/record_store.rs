//! The latest valid record of every member, from which a [`crate::view::ClusterView`] is built.
//!
//! It is independent of gossip, so that gossip's own versions, deletions and failure detector can neither
//! remove a record nor delay it. Bounded by the members of the cluster document: one record for each, and for
//! each of them as a sender one budget of signatures to verify.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::node::{NodeId, PublicKey};
use crate::signed_record::{RecordVersion, SignedRecord};
use crate::time::{Moment, UnixMs};

/// A start further ahead than this can't be right, unless this node's own clock is wrong.
const AHEAD: Duration = Duration::from_secs(24 * 3600);

/// Signatures verified per sender and second, once its burst is used up: a verification takes about 60 us, so
/// a sender of garbage costs a tenth of a percent of a core.
const PER_SECOND: u32 = 20;

/// Signatures verified for one sender at once, in addition to one for each member: a joining node gets the
/// records of all from one sender.
const BURST: u32 = 64;

/// What happened to an offered record.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OfferOutcome {
    /// It is the latest of its node, and was stored.
    Taken,
    /// It is stored already.
    Held,
    /// A later one is stored.
    Older,
    /// Its node is no member here.
    NotMember,
    /// Its signature is invalid.
    Forged,
    /// Its sender has used up its signatures for now; it will be offered again.
    Later,
}

/// Signatures that may still be verified for one sender.
#[derive(Debug, Clone, Copy)]
struct VerifyBudget {
    left: u32,
    at: Moment,
}

/// The latest record of every member.
#[derive(Debug, Clone, Default)]
pub struct RecordStore {
    cluster: String,
    members: BTreeMap<NodeId, PublicKey>,
    held: BTreeMap<NodeId, SignedRecord>,
    budgets: BTreeMap<NodeId, VerifyBudget>,
}

/// Order of a node's records. Versions further ahead than [`AHEAD`] come after all others: a node that once
/// signed with a clock that was years ahead is not locked out by it. Nothing is refused for its time, since
/// this node's own clock may be wrong.
fn standing(version: RecordVersion, wall: UnixMs) -> (bool, RecordVersion) {
    (version.generation <= wall.after(AHEAD).0 / 1000, version)
}

impl RecordStore {
    /// Takes the members from the cluster document: all others are forgotten.
    pub fn set_members(&mut self, cluster: &str, members: BTreeMap<NodeId, PublicKey>) {
        cluster.clone_into(&mut self.cluster);
        self.held.retain(|id, _| members.contains_key(id));
        self.budgets.retain(|id, _| members.contains_key(id));
        self.members = members;
    }

    /// The record of a member.
    pub fn get(&self, id: &NodeId) -> Option<&SignedRecord> {
        self.held.get(id)
    }

    /// All records.
    pub fn iter(&self) -> impl Iterator<Item = &SignedRecord> {
        self.held.values()
    }

    /// The stored version of a member; the lowest without one.
    pub fn version(&self, id: &NodeId) -> RecordVersion {
        self.held.get(id).map_or_else(RecordVersion::default, |record| record.version)
    }

    /// Whether this is a member here.
    pub fn is_member(&self, id: &NodeId) -> bool {
        self.members.contains_key(id)
    }

    /// Whether a record of this version would replace the stored one, if its signature were valid.
    pub fn is_newer(&self, id: &NodeId, version: RecordVersion, wall: UnixMs) -> bool {
        self.held.get(id).is_none_or(|held| standing(held.version, wall) < standing(version, wall))
    }

    /// Stores a record from `sender`, if it is later and validly signed by its node.
    pub fn offer(
        &mut self,
        record: SignedRecord,
        sender: &NodeId,
        now: Moment,
        wall: UnixMs,
    ) -> OfferOutcome {
        let id = record.node;
        if !self.members.contains_key(&id) {
            return OfferOutcome::NotMember;
        }
        if !self.is_newer(&id, record.version, wall) {
            return if self.held.get(&id) == Some(&record) {
                OfferOutcome::Held
            } else {
                OfferOutcome::Older
            };
        }
        match self.verify(&record, sender, now) {
            OfferOutcome::Taken => {
                self.held.insert(id, record);
                OfferOutcome::Taken
            }
            refused => refused,
        }
    }

    /// Verifies a record without storing it: [`OfferOutcome::Taken`] means that its signature is valid.
    pub fn verify(&mut self, record: &SignedRecord, sender: &NodeId, now: Moment) -> OfferOutcome {
        let Some(key) = self.members.get(&record.node).copied() else { return OfferOutcome::NotMember };
        if !self.spend(sender, now) {
            return OfferOutcome::Later;
        }
        if record.verify(&self.cluster, &key) { OfferOutcome::Taken } else { OfferOutcome::Forged }
    }

    /// Drops the records of other members than these: an attached node needs few.
    pub fn keep(&mut self, needed: impl Fn(&NodeId) -> bool) {
        self.held.retain(|id, _| needed(id));
    }

    /// Stores this node's own record, which it has just signed.
    pub fn publish(&mut self, record: SignedRecord) {
        self.held.insert(record.node, record);
    }

    /// The stored versions, for a peer that is asked for newer ones.
    pub fn versions(&self) -> Vec<(NodeId, RecordVersion)> {
        self.held.iter().map(|(id, record)| (*id, record.version)).collect()
    }

    /// Records that a peer lacks, up to `most` bytes of them: those that are newer than its versions, and those that
    /// it does not have of the nodes that it `wants`.
    pub fn newer_than(
        &self,
        known: &[(NodeId, RecordVersion)],
        wants: impl Fn(&NodeId) -> bool,
        most: usize,
    ) -> Vec<SignedRecord> {
        let known: BTreeMap<NodeId, RecordVersion> = known.iter().copied().collect();
        let mut left = most;
        self.held
            .values()
            .filter(|record| {
                known
                    .get(&record.node)
                    .map_or_else(|| wants(&record.node), |version| *version < record.version)
            })
            .take_while(|record| {
                let size = record.body().len() + 128;
                let fits = size <= left;
                left = left.saturating_sub(size);
                fits
            })
            .cloned()
            .collect()
    }

    fn spend(&mut self, sender: &NodeId, now: Moment) -> bool {
        if !self.members.contains_key(sender) {
            return false;
        }
        let most = BURST.saturating_add(u32::try_from(self.members.len()).unwrap_or(u32::MAX));
        let budget = self.budgets.entry(*sender).or_insert(VerifyBudget { left: most, at: now });
        let earned = now.since(budget.at).as_millis() * u128::from(PER_SECOND) / 1000;
        if earned > 0 {
            budget.left = budget.left.saturating_add(u32::try_from(earned).unwrap_or(u32::MAX)).min(most);
            budget.at = now;
        }
        let enough = budget.left > 0;
        budget.left = budget.left.saturating_sub(1);
        enough
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::signed_record::tests::{CLUSTER, pair, signed};

    const WALL: UnixMs = UnixMs(1_700_000_000_000);
    const NOW: Moment = Moment::from_millis(5);

    fn id(n: u8) -> NodeId {
        pair(n).1.id()
    }

    fn store(members: u8) -> RecordStore {
        let mut store = RecordStore::default();
        store.set_members(CLUSTER, (1..=members).map(|n| (id(n), pair(n).1)).collect());
        store
    }

    /// The record with another node and version.
    fn as_if(node: NodeId, generation: u64, mut record: SignedRecord) -> SignedRecord {
        record.node = node;
        record.version.generation = generation;
        record
    }

    #[test]
    fn the_highest_valid_record_wins_from_any_sender_in_any_order() {
        let mut store = store(3);
        let mut offer = |record, from| store.offer(record, &id(from), NOW, WALL);
        assert_eq!(offer(signed(1, 9, 2, b"b"), 3), OfferOutcome::Taken);
        assert_eq!(offer(signed(1, 9, 2, b"b"), 2), OfferOutcome::Held);
        assert_eq!(offer(signed(1, 9, 1, b"a"), 1), OfferOutcome::Older);
        assert_eq!(offer(signed(1, 8, 7, b"z"), 1), OfferOutcome::Older);
        assert_eq!(offer(signed(1, 10, 1, b"c"), 2), OfferOutcome::Taken);
        assert_eq!(offer(signed(4, 10, 1, b"c"), 2), OfferOutcome::NotMember);
        // Signed by another member, or by its node for another version.
        let forged = as_if(id(1), 11, signed(2, 11, 1, b"mine"));
        assert_eq!(offer(forged, 2), OfferOutcome::Forged);
        let lifted = as_if(id(1), 12, signed(1, 10, 1, b"c"));
        assert_eq!(offer(lifted, 2), OfferOutcome::Forged);
        assert_eq!(store.get(&id(1)).unwrap().body(), b"c");
    }

    #[test]
    fn a_clock_that_was_years_ahead_locks_nobody_out() {
        let mut store = store(2);
        let seconds = WALL.0 / 1000;
        let far = seconds + 10 * 365 * 86_400;
        assert_eq!(store.offer(signed(1, far, 1, b"2033"), &id(1), NOW, WALL), OfferOutcome::Taken);
        assert_eq!(store.offer(signed(1, far + 1, 1, b"2033"), &id(1), NOW, WALL), OfferOutcome::Taken);
        assert_eq!(store.offer(signed(1, seconds, 1, b"now"), &id(1), NOW, WALL), OfferOutcome::Taken);
        assert_eq!(store.offer(signed(1, far + 2, 1, b"again"), &id(1), NOW, WALL), OfferOutcome::Older);
        // With its own clock never set, a node still accepts others' records.
        let unset = UnixMs(0);
        assert_eq!(store.offer(signed(2, seconds, 1, b"a"), &id(1), NOW, unset), OfferOutcome::Taken);
        assert_eq!(store.offer(signed(2, seconds, 2, b"b"), &id(1), NOW, unset), OfferOutcome::Taken);
        assert_eq!(store.offer(signed(2, seconds, 1, b"a"), &id(1), NOW, unset), OfferOutcome::Older);
    }

    #[test]
    fn each_sender_has_its_own_budget_of_signatures() {
        let mut store = store(3);
        let garbage = as_if(id(1), 11, signed(2, 11, 1, b"mine"));
        let count = |store: &mut RecordStore, now| {
            (0..1000)
                .filter(|_| store.offer(garbage.clone(), &id(2), now, WALL) == OfferOutcome::Forged)
                .count()
        };
        assert_eq!(count(&mut store, NOW), 64 + 3);
        assert_eq!(count(&mut store, NOW.after(Duration::from_secs(1))), 20);
        assert_eq!(count(&mut store, NOW.after(Duration::from_millis(1_020))), 0, "none for parts of a turn");
        assert_eq!(store.offer(signed(1, 9, 2, b"b"), &id(2), NOW, WALL), OfferOutcome::Later);
        assert_eq!(store.offer(signed(1, 9, 2, b"b"), &id(3), NOW, WALL), OfferOutcome::Taken);
    }

    #[test]
    fn a_removed_node_is_forgotten_and_a_peer_gets_what_it_lacks() {
        let mut store = store(3);
        for n in 1..=3 {
            assert_eq!(store.offer(signed(n, 9, 2, &[n; 300]), &id(1), NOW, WALL), OfferOutcome::Taken);
        }
        let known =
            [(id(1), RecordVersion { generation: 9, sequence: 2 }), (id(2), RecordVersion::default())];
        let nodes = |records: Vec<SignedRecord>| {
            records.iter().map(|record| record.node).collect::<std::collections::BTreeSet<_>>()
        };
        assert_eq!(nodes(store.newer_than(&known, |_| false, 10_000)), [id(2)].into());
        assert_eq!(nodes(store.newer_than(&known, |_| true, 10_000)), [id(2), id(3)].into());
        assert_eq!(store.newer_than(&[], |_| true, 900).len(), 2, "the rest comes with the next question");
        assert_eq!(nodes(store.newer_than(&known, |one| *one == id(3), 10_000)), [id(2), id(3)].into());
        store.keep(|one| *one != id(1));
        assert_eq!(nodes(store.iter().cloned().collect()), [id(2), id(3)].into());
        store.set_members(CLUSTER, [(id(2), pair(2).1)].into());
        assert_eq!(nodes(store.iter().cloned().collect()), [id(2)].into());
        assert_eq!(store.offer(signed(1, 10, 1, b"back"), &id(2), NOW, WALL), OfferOutcome::NotMember);
    }

    proptest! {
        #[test]
        fn any_order_results_in_the_same_record(order in proptest::collection::vec((1u64..4, 1u64..4), 1..12)) {
            let mut store = store(2);
            for (generation, sequence) in &order {
                store.offer(signed(1, *generation, *sequence, b"x"), &id(2), NOW, WALL);
            }
            let version = |&(generation, sequence)| RecordVersion { generation, sequence };
            let highest = order.iter().map(version).max();
            prop_assert_eq!(Some(store.version(&id(1))), highest);
        }
    }
}
