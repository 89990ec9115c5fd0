//! Who is in the core: all masters, and as many workers as it takes, in an order that all nodes compute alike.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use crate::cluster::Document;
use crate::node::{NodeId, Role};
use crate::time::Moment;

/// Up to so many members all gossip: it costs them less than 3 kB/s each.
pub const ALL_GOSSIP: usize = 32;

/// Smallest core: two of a cluster's machines may stop at any time, and a handful fail together.
pub(super) const SMALLEST: usize = 12;

/// One member in so many is in the core: each core member then has about 150 attached nodes, three for each.
const SHARE: usize = 50;

/// Silence after which a worker in the core is replaced: longer than its agent takes to be upgraded.
const REPLACED: Duration = Duration::from_secs(15);

/// The same while less than half of the core is alive: by then the others were silent for seconds ([`super::probes`]).
const REPLACED_URGENTLY: Duration = Duration::from_secs(1);

/// How long a replaced worker must be alive again before the order counts for it.
const RETURNED: Duration = Duration::from_secs(60);

/// The same where another core member has replaced it: that one may have been wrong, or have changed its mind.
const RETURNED_TO_OTHERS: Duration = Duration::from_secs(5);

/// Time after a start in which a node has not heard from all others yet.
const START: Duration = Duration::from_secs(10);

/// Size of the core in a cluster of so many members.
pub fn core_size(members: usize) -> usize {
    SMALLEST.max(members / SHARE)
}

/// The members in the order in which they are taken into the core.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct CoreOrder {
    masters: Vec<NodeId>,
    workers: Vec<NodeId>,
}

impl CoreOrder {
    /// The order of the members of this document.
    pub fn of(document: &Document) -> CoreOrder {
        let cluster = document.id.to_string();
        CoreOrder::new(&cluster, document.members().filter_map(|(id, _)| Some((*id, document.role(id)?))))
    }

    /// The order of these members of this cluster. Workers are sorted by a hash, so that no two clusters choose by
    /// the same ids.
    pub fn new(cluster: &str, members: impl Iterator<Item = (NodeId, Role)>) -> CoreOrder {
        let salt = cluster.bytes().fold(0, |all, byte| mix(all ^ u64::from(byte)));
        let (masters, workers): (Vec<_>, Vec<_>) = members.partition(|(_, role)| *role == Role::Master);
        let mut workers: Vec<NodeId> = workers.into_iter().map(|(id, _)| id).collect();
        workers.sort_by_cached_key(|id| (mix(salt ^ number(id)), *id));
        CoreOrder { masters: masters.into_iter().map(|(id, _)| id).collect(), workers }
    }

    /// Number of members.
    pub fn members(&self) -> usize {
        self.masters.len() + self.workers.len()
    }

    /// All members.
    pub fn iter(&self) -> impl Iterator<Item = &NodeId> {
        self.masters.iter().chain(&self.workers)
    }

    /// Whether a member is a master.
    pub(super) fn is_master(&self, id: &NodeId) -> bool {
        self.masters.contains(id)
    }

    /// The core, if these can be used: masters belong to it in any case, and those that cannot be used are made up
    /// for by workers.
    pub fn core(&self, usable: impl Fn(&NodeId) -> bool) -> BTreeSet<NodeId> {
        let size = core_size(self.members());
        let masters = self.masters.iter().filter(|id| usable(id)).count();
        let workers = self.workers.iter().filter(|id| usable(id)).take(size.saturating_sub(masters));
        self.masters.iter().chain(workers).copied().collect()
    }
}

/// A node's id as a number: it is a piece of a hash.
fn number(id: &NodeId) -> u64 {
    id.0.iter().take(8).fold(0, |all, byte| all << 8 | u64::from(*byte))
}

/// SplitMix64: every bit of the result depends on every bit of the input.
pub(super) fn mix(x: u64) -> u64 {
    let x = x.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}

/// How well a core member suits a node, by rendezvous hashing: each node has an order of its own over all core
/// members, so that the load is even, and a change of the core moves only those whom it concerns.
pub(super) fn suits(node: &NodeId, core_member: &NodeId) -> u64 {
    mix(mix(number(node)) ^ number(core_member))
}

/// Names a set of nodes: two sets with one fingerprint are equal.
pub fn fingerprint<'a>(nodes: impl IntoIterator<Item = &'a NodeId>) -> u64 {
    nodes.into_iter().fold(1, |all, id| mix(all ^ number(id)))
}

/// Names a set of records, by their nodes and fingerprints: see [`fingerprint`].
pub fn fingerprint_of_records(records: impl IntoIterator<Item = (NodeId, u32)>) -> u64 {
    records.into_iter().fold(1, |all, (id, record)| mix(mix(all ^ number(&id)) ^ u64::from(record)))
}

/// A member that is not alive, or was not.
#[derive(Debug, Clone, Copy)]
struct Absence {
    since: Moment,
    back: Option<Moment>,
    replaced: bool,
    /// How long it must be alive until it counts again.
    probation: Duration,
}

/// Decides on a core member who is in the core, by who is alive.
///
/// ```text
///            silent for 15 s                alive for 60 s
///   usable ─────────────────► replaced ─────────────────────► usable
/// ```
#[derive(Debug, Clone)]
pub struct CoreWatch {
    started: Moment,
    absent: BTreeMap<NodeId, Absence>,
    core: BTreeSet<NodeId>,
    /// Less than half of it is alive.
    urgent: bool,
}

impl CoreWatch {
    /// Nobody was heard yet.
    pub fn new(now: Moment) -> CoreWatch {
        let started = now.after(START);
        CoreWatch { started, absent: BTreeMap::new(), core: BTreeSet::new(), urgent: false }
    }

    /// That of a node that was called into this core. Whom that passes over was replaced, and so was who was silent:
    /// they are added to `silent`.
    pub fn called(
        order: &CoreOrder,
        core: BTreeSet<NodeId>,
        silent: &mut BTreeSet<NodeId>,
        now: Moment,
    ) -> CoreWatch {
        let last = order.workers.iter().rposition(|id| core.contains(id)).unwrap_or(0);
        silent.extend(order.workers.iter().take(last).filter(|id| !core.contains(*id)));
        let replaced = Absence { since: now, back: None, replaced: true, probation: RETURNED_TO_OTHERS };
        let absent = silent.iter().map(|id| (*id, replaced)).collect();
        CoreWatch { started: now, absent, core, urgent: false }
    }

    /// The core as of now.
    pub fn update(
        &mut self,
        order: &CoreOrder,
        alive: impl Fn(&NodeId) -> bool,
        now: Moment,
    ) -> &BTreeSet<NodeId> {
        let living = self.core.iter().filter(|id| alive(id)).count();
        self.urgent = living * 2 < self.core.len();
        let patience = if self.urgent { REPLACED_URGENTLY } else { REPLACED };
        let mut before = std::mem::take(&mut self.absent);
        for id in order.iter() {
            let known = before.remove(id);
            let absence =
                if alive(id) { returned(known, now) } else { Some(self.silent(known, patience, now)) };
            self.absent.extend(absence.map(|absence| (*id, absence)));
        }
        self.core = order.core(|id| self.absent.get(id).is_none_or(|absence| !absence.replaced));
        &self.core
    }

    /// Whether less than half of the core was alive at the last update.
    pub fn is_urgent(&self) -> bool {
        self.urgent
    }

    fn silent(&self, known: Option<Absence>, patience: Duration, now: Moment) -> Absence {
        let began = now.max(self.started);
        let fresh = Absence { since: began, back: None, replaced: false, probation: RETURNED };
        // Silent again before it counted: it stays replaced.
        let known = known.unwrap_or(fresh);
        Absence { back: None, replaced: known.replaced || now.since(known.since) >= patience, ..known }
    }
}

/// What is left of the absence of a member that is alive.
fn returned(known: Option<Absence>, now: Moment) -> Option<Absence> {
    let absence = known.filter(|absence| absence.replaced)?;
    let back = absence.back.unwrap_or(now);
    (now.since(back) < absence.probation).then_some(Absence { back: Some(back), ..absence })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn id(n: u16) -> NodeId {
        let mut id = NodeId([0; NodeId::LEN]);
        id.0[..8].copy_from_slice(&mix(u64::from(n)).to_be_bytes());
        id
    }

    /// Members 1 and 2 are masters.
    fn order(members: u16) -> CoreOrder {
        let role = |n| if n <= 2 { Role::Master } else { Role::Worker };
        CoreOrder::new("c", (1..=members).map(|n| (id(n), role(n))))
    }

    fn at(seconds: u64) -> Moment {
        Moment::from_millis(seconds * 1000)
    }

    #[test]
    fn the_core_has_twelve_or_a_fiftieth_and_every_master() {
        for (members, size) in [(40, 12), (600, 12), (1_000, 20), (5_000, 100)] {
            let core = order(members).core(|_| true);
            assert_eq!(core.len(), size, "{members}");
            assert!(core.contains(&id(1)) && core.contains(&id(2)));
        }
        let all = CoreOrder::new("c", (1..=40).map(|n| (id(n), Role::Master)));
        assert_eq!(all.core(|_| true).len(), 40);
    }

    #[test]
    fn a_silent_worker_is_replaced_after_15_s_and_back_after_another_minute() {
        let order = order(100);
        let mut watch = CoreWatch::new(at(0));
        let full = watch.update(&order, |_| true, at(20)).clone();
        let lost = *full.iter().find(|id| order.workers.contains(id)).unwrap();
        let mut update =
            |alive: bool, seconds| watch.update(&order, |id| alive || *id != lost, at(seconds)).clone();
        for (alive, seconds, member) in [
            (false, 30, true),
            (false, 44, true),
            (true, 45, true),
            (false, 46, true),
            (false, 60, true),
            (false, 61, false),
            (true, 70, false),
            // It fails again: its minute begins anew.
            (false, 100, false),
            (true, 110, false),
            (true, 169, false),
            (true, 170, true),
        ] {
            let core = update(alive, seconds);
            assert_eq!(core.contains(&lost), member, "at {seconds}");
            assert_eq!(core.len(), full.len(), "another takes its place");
        }
        assert_eq!(update(true, 171), full);
    }

    #[test]
    fn a_core_that_has_lost_more_than_half_is_made_up_sooner_and_no_node_is_accused_at_its_start() {
        let order = order(100);
        let mut watch = CoreWatch::new(at(0));
        let full = watch.update(&order, |_| false, at(9)).clone();
        assert_eq!(watch.update(&order, |_| false, at(10)), &full, "nobody was heard yet");
        let mut watch = CoreWatch::new(at(0));
        watch.update(&order, |_| true, at(20));
        watch.update(&order, |id| !full.contains(id), at(21));
        assert!(watch.is_urgent());
        let core = watch.update(&order, |id| !full.contains(id), at(22)).clone();
        assert_eq!(core.iter().filter(|id| full.contains(id)).collect::<Vec<_>>(), {
            let mut masters: Vec<_> = order.masters.iter().collect();
            masters.sort();
            masters
        });
        assert_eq!(core.len(), 14, "the masters do not count, and stay");
    }

    #[test]
    fn a_node_that_is_called_goes_on_with_the_core_that_called_it() {
        let order = order(100);
        let lost = order.workers[..3].to_vec();
        let core = order.core(|id| !lost.contains(id));
        let mut passed_over = BTreeSet::new();
        let mut watch = CoreWatch::called(&order, core.clone(), &mut passed_over, at(0));
        assert!(passed_over.iter().eq(lost.iter().collect::<BTreeSet<_>>()));
        let silent = |id: &NodeId| !passed_over.contains(id);
        for seconds in 1..40 {
            assert_eq!(watch.update(&order, silent, at(seconds)), &core, "at {seconds}");
        }
        watch.update(&order, |_| true, at(40));
        assert_eq!(watch.update(&order, |_| true, at(44)), &core, "they may be gone again");
        assert_eq!(watch.update(&order, |_| true, at(45)), &order.core(|_| true), "they are back");
        // A master that is silent is made up for by workers, as it was by those who called.
        let silent = order.masters[0];
        let core = order.core(|id| *id != silent);
        let mut watch = CoreWatch::called(&order, core.clone(), &mut BTreeSet::from([silent]), at(0));
        for seconds in 1..40 {
            assert_eq!(watch.update(&order, |id| *id != silent, at(seconds)), &core, "at {seconds}");
        }
    }

    proptest! {
        #[test]
        fn all_nodes_compute_the_same_core_from_the_same_document(members in 33u16..400, seed: u64) {
            let order = order(members);
            let mut shuffled: Vec<(NodeId, Role)> = order.masters.iter().map(|id| (*id, Role::Master)).collect();
            shuffled.extend(order.workers.iter().map(|id| (*id, Role::Worker)));
            shuffled.sort_by_key(|(id, _)| mix(seed ^ number(id)));
            let again = CoreOrder::new("c", shuffled.into_iter());
            prop_assert_eq!(again.core(|_| true), order.core(|_| true));
        }

        #[test]
        fn one_member_more_or_less_moves_hardly_anyone(members in 40u16..600) {
            let (before, after) = (order(members).core(|_| true), order(members + 1).core(|_| true));
            prop_assert!(before.difference(&after).count() <= 1);
        }
    }
}
