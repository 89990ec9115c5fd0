//! Tests of adoption: who can change what, through partitions, removals, demotions and a removed node that
//! does not stop.

use proptest::prelude::*;
use ring::signature::{Ed25519KeyPair, KeyPair};

use super::*;

const NOW: UnixMs = UnixMs(1_000_000_000_000);

fn pair(n: u8) -> Ed25519KeyPair {
    Ed25519KeyPair::from_seed_unchecked(&[n; 32]).unwrap()
}

fn key(n: u8) -> PublicKey {
    PublicKey(pair(n).public_key().as_ref().try_into().unwrap())
}

fn id(n: u8) -> NodeId {
    key(n).id()
}

fn admitted(n: u8, role: Role) -> Admitted {
    Admitted::new(format!("n{n}").parse().unwrap(), key(n), role, id(0), NOW)
}

fn gossip_key(n: u64) -> KeyId {
    let mut bytes = [0; 16];
    bytes[..8].copy_from_slice(&n.to_be_bytes());
    KeyId(bytes)
}

/// One node: its replica, and its own key pair.
struct Node {
    n: u8,
    replica: Replica,
}

impl Node {
    fn document(&self) -> &Document {
        self.replica.document()
    }

    fn change(&mut self, change: impl FnOnce(&mut Document)) -> bool {
        let changed = self.replica.change(id(self.n), &pair(self.n), |document| {
            change(document);
            Ok(())
        });
        changed.is_ok()
    }

    /// Takes over what another hands on, as the keeper does.
    fn peer_link(&mut self, other: &SealedDocument) -> Result<Adoption, AdoptError> {
        let adoption = self.replica.adopt_from_master(other, &id(self.n), NOW);
        self.replica.seal(id(self.n), &pair(self.n));
        adoption
    }

    fn remove(&mut self, other: u8) -> bool {
        let by = id(self.n);
        self.change(|document| document.remove(id(other), by, NOW))
    }
}

/// A cluster whose first `masters` nodes of `all` are masters, all of one mind.
fn cluster(masters: u8, all: u8) -> Vec<Node> {
    let mut document = Document::new([1; 16], "c".parse().unwrap(), admitted(0, Role::Master), gossip_key(0));
    for n in 1..all {
        document.admit(admitted(n, if n < masters { Role::Master } else { Role::Worker }));
    }
    let replica = Replica::new(document, id(0), &pair(0));
    (0..all).map(|n| Node { n, replica: replica.clone() }).collect()
}

/// Every pair exchanges what it has, often enough for all to have heard of all; who was removed in the copy
/// of the other is not spoken to.
fn exchange(nodes: &mut [Node], apart: &dyn Fn(u8, u8) -> bool) {
    for _ in 0..nodes.len() + 2 {
        let before: Vec<Replica> = nodes.iter().map(|node| node.replica.clone()).collect();
        for a in 0..nodes.len() {
            for b in 0..nodes.len() {
                if a == b || apart(nodes[a].n, nodes[b].n) {
                    continue;
                }
                let Some(sealed) = nodes[b].replica.sealed() else { continue };
                let _ = nodes[a].peer_link(&sealed);
                let Some(proof) = nodes[a].replica.proof_for(&sealed, &id(nodes[a].n)) else { continue };
                let sealer = nodes.iter().position(|node| id(node.n) == sealed.by());
                for shown in sealer.into_iter().chain([b]) {
                    if !apart(nodes[a].n, nodes[shown].n) {
                        let _ = nodes[shown].peer_link(&proof);
                    }
                }
            }
        }
        if nodes.iter().zip(&before).all(|(node, before)| node.replica == *before) {
            return;
        }
    }
}

fn together(_: u8, _: u8) -> bool {
    false
}

fn agree(nodes: &[Node]) -> bool {
    let standing: Vec<&Node> =
        nodes.iter().filter(|node| nodes[0].document().member(&id(node.n)).is_some()).collect();
    standing.iter().all(|node| node.document().digest() == standing[0].document().digest())
}

/// The masters and the members that take them for such, and hold another document.
fn unsettled(nodes: &[Node]) -> Vec<(u8, u8)> {
    let pairs = nodes.iter().flat_map(|master| nodes.iter().map(move |other| (master, other)));
    let follows = |master: &Node, other: &Node| {
        [master, other].iter().all(|node| node.document().is_master(&id(master.n)))
            && [master, other].iter().all(|node| node.document().member(&id(other.n)).is_some())
    };
    pairs
        .filter(|(master, other)| follows(master, other))
        .filter(|(master, other)| master.document().digest() != other.document().digest())
        .map(|(master, other)| (master.n, other.n))
        .collect()
}

#[test]
fn a_worker_s_seal_counts_nowhere_and_it_changes_nothing() {
    let mut nodes = cluster(1, 3);
    let worker = &mut nodes[2];
    assert!(!worker.remove(0));
    // Not by its rules, but by its keys.
    let mut document = worker.document().clone();
    document.set_role(id(2), Role::Master, id(2), NOW).unwrap();
    let forged = Replica::new(document, id(2), &pair(2)).sealed().unwrap();
    for node in &mut nodes[..2] {
        assert_eq!(node.peer_link(&forged), Err(AdoptError::WorkerSealer(id(2))));
    }
    // In the name of the master, with a key that is not the master's.
    let stolen = Replica::new(nodes[0].document().clone(), id(0), &pair(2)).sealed().unwrap();
    assert_eq!(nodes[1].peer_link(&stolen), Err(AdoptError::WrongSeal(id(0))));
    let stranger = Replica::new(nodes[0].document().clone(), id(9), &pair(9)).sealed().unwrap();
    assert_eq!(nodes[1].peer_link(&stranger), Err(AdoptError::UnknownSealer(id(9))));
}

#[test]
fn a_seal_holds_for_one_document_only() {
    let mut nodes = cluster(2, 2);
    let old = nodes[0].replica.sealed().unwrap();
    assert!(nodes[0].change(|document| document.admit(admitted(5, Role::Worker))));
    let new = nodes[0].replica.sealed().unwrap();
    assert_eq!(nodes[1].peer_link(&new.under_seal_of(&old)), Err(AdoptError::WrongSeal(id(0))));
    assert_eq!(nodes[1].peer_link(&new), Ok(Adoption::Taken));
    assert_eq!(nodes[1].peer_link(&old), Ok(Adoption::Nothing), "an old copy brings nothing back");
}

#[test]
fn removing_the_first_master_erases_nobody() {
    let mut nodes = cluster(3, 6);
    assert!(nodes[1].remove(0));
    exchange(&mut nodes[1..], &together);
    for node in &nodes[1..] {
        let members: Vec<NodeId> = node.document().members().map(|(id, _)| *id).collect();
        assert_eq!(members.len(), 5, "{members:?}");
        assert_eq!(node.document().removed[&id(0)].seen, cluster(3, 6)[0].document().state());
    }
    // What it once sealed and what it seals now counts nowhere.
    nodes[0].change(|document| document.admit(admitted(9, Role::Master)));
    let sealed = nodes[0].replica.sealed().unwrap();
    for node in &mut nodes[1..] {
        assert_eq!(node.peer_link(&sealed), Err(AdoptError::RemovedSealer(id(0))));
    }
    let founding = cluster(3, 6)[0].replica.sealed().unwrap();
    assert_eq!(nodes[2].peer_link(&founding), Err(AdoptError::RemovedSealer(id(0))));
}

#[test]
fn a_demoted_master_changes_nothing_any_more() {
    let mut nodes = cluster(2, 3);
    assert!(nodes[0].change(|document| document.set_role(id(1), Role::Worker, id(0), NOW).unwrap()));
    exchange(&mut nodes, &together);
    assert!(!nodes[1].remove(0));
    let mut document = nodes[1].document().clone();
    document.set_role(id(1), Role::Master, id(1), NOW).unwrap();
    let forged = Replica::new(document, id(1), &pair(1)).sealed().unwrap();
    assert_eq!(nodes[2].peer_link(&forged), Err(AdoptError::WorkerSealer(id(1))));
    assert!(nodes[0].change(|document| document.set_role(id(1), Role::Master, id(0), NOW).unwrap()));
    exchange(&mut nodes, &together);
    assert!(nodes[1].change(|document| document.admit(admitted(7, Role::Worker))));
}

#[test]
fn two_masters_that_remove_each_other_keep_their_own_and_a_third_settles_it() {
    // Only the two: each side keeps its own.
    let mut nodes = cluster(2, 2);
    assert!(nodes[0].remove(1) && nodes[1].remove(0));
    exchange(&mut nodes, &together);
    assert!(nodes[0].document().member(&id(1)).is_none() && nodes[1].document().member(&id(0)).is_none());
    assert!(nodes[0].document().is_master(&id(0)) && nodes[1].document().is_master(&id(1)));

    // Two others that have heard different ones: both are out.
    let mut nodes = cluster(4, 6);
    assert!(nodes[0].remove(1) && nodes[1].remove(0));
    let (a, b) = (nodes[0].replica.sealed().unwrap(), nodes[1].replica.sealed().unwrap());
    nodes[2].peer_link(&a).unwrap();
    nodes[3].peer_link(&b).unwrap();
    nodes[4].peer_link(&b).unwrap();
    exchange(&mut nodes[2..], &together);
    for node in &nodes[2..] {
        assert!(node.document().member(&id(0)).is_none() && node.document().member(&id(1)).is_none());
        assert_eq!(node.document().digest(), nodes[2].document().digest());
    }

    // One other: what it heard first counts, also for a worker that heard the second first.
    let mut nodes = cluster(3, 5);
    assert!(nodes[0].remove(1) && nodes[1].remove(0));
    let (a, b) = (nodes[0].replica.sealed().unwrap(), nodes[1].replica.sealed().unwrap());
    nodes[2].peer_link(&a).unwrap();
    nodes[3].peer_link(&b).unwrap();
    assert_eq!(nodes[2].peer_link(&b), Err(AdoptError::RemovedSealer(id(1))));
    exchange(&mut nodes, &|a, b| a == 1 || b == 1);
    for node in [&nodes[0], &nodes[3], &nodes[4]] {
        assert_eq!(node.document().digest(), nodes[2].document().digest());
        assert!(node.document().is_master(&id(0)) && node.document().member(&id(1)).is_none());
    }
}

/// Master 0 promotes 4 and only 4 hears it; what becomes of 0 meanwhile crosses that. `heard` is the order in
/// which the copies of others reach whom.
fn promotion_crossed(crossing: &[(u8, Crossing)], heard: &[(u8, u8)]) -> Vec<Node> {
    let mut nodes = cluster(4, 5);
    assert!(nodes[0].change(|document| document.set_role(id(4), Role::Master, id(0), NOW).unwrap()));
    let promotion = nodes[0].replica.sealed().unwrap();
    nodes[4].peer_link(&promotion).unwrap();
    for (by, crossing) in crossing {
        let (node, own) = (&mut nodes[usize::from(*by)], id(*by));
        match crossing {
            Crossing::Remove(n) => drop(node.remove(*n)),
            Crossing::Demote(n) => {
                node.change(|document| document.set_role(id(*n), Role::Worker, own, NOW).unwrap());
            }
            Crossing::Promote(n) => {
                node.change(|document| document.set_role(id(*n), Role::Master, own, NOW).unwrap());
            }
        }
    }
    for (from, to) in heard {
        if let Some(sealed) = nodes[usize::from(*from)].replica.sealed() {
            let _ = nodes[usize::from(*to)].peer_link(&sealed);
        }
    }
    nodes
}

enum Crossing {
    Remove(u8),
    Demote(u8),
    Promote(u8),
}

#[test]
fn a_promotion_that_its_author_s_removal_crosses_is_taken_by_all_or_given_up_by_who_was_promoted() {
    use Crossing::{Demote, Promote, Remove};
    let tables: [&[(u8, Crossing)]; 5] = [
        &[(1, Remove(0))],
        &[(1, Remove(0)), (2, Demote(1))],
        &[(1, Remove(0)), (2, Remove(1))],
        &[(1, Demote(0)), (2, Demote(1))],
        &[(1, Demote(0)), (1, Promote(0))],
    ];
    for (row, crossing) in tables.iter().enumerate() {
        // Whether 0 hears what crosses before others do, or after.
        for first in [&[][..], &[(1, 0)], &[(1, 0), (2, 0)], &[(1, 0), (2, 0), (2, 3)]] {
            for order in ["forwards", "backwards"] {
                let mut nodes = promotion_crossed(crossing, first);
                if order == "backwards" {
                    nodes.reverse();
                }
                exchange(&mut nodes, &together);
                let split = unsettled(&nodes);
                assert!(split.is_empty(), "row {row}, {first:?}, {order}: {split:?}");
                let promoted = nodes.iter().find(|node| node.n == 4).unwrap();
                let says = |node: &Node| node.document().role(&id(4));
                let third = nodes.iter().find(|node| node.n == 3).unwrap();
                assert_eq!(says(promoted), says(third), "row {row}, {first:?}, {order}");
                // What an operator says next holds everywhere.
                for role in [Role::Master, Role::Worker] {
                    let third = nodes.iter_mut().find(|node| node.n == 3).unwrap();
                    assert!(third.change(|document| document.set_role(id(4), role, id(3), NOW).unwrap()));
                    exchange(&mut nodes, &together);
                    assert!(unsettled(&nodes).is_empty(), "row {row}, {first:?}, {order}");
                    let promoted = nodes.iter().find(|node| node.n == 4).unwrap();
                    assert_eq!(promoted.document().role(&id(4)), Some(role));
                }
            }
        }
    }
}

#[test]
fn whoever_was_away_learns_a_promotion_from_who_was_promoted() {
    // 0 promotes 2 and is never heard again; 1, a master, and 3, a worker, were away.
    for back in [&[1][..], &[3], &[1, 3]] {
        let mut nodes = cluster(2, 4);
        assert!(nodes[0].change(|document| document.set_role(id(2), Role::Master, id(0), NOW).unwrap()));
        let promotion = nodes[0].replica.sealed().unwrap();
        nodes[2].peer_link(&promotion).unwrap();
        nodes.retain(|node| node.n == 2 || back.contains(&node.n));
        exchange(&mut nodes, &together);
        for node in &nodes {
            assert!(node.document().is_master(&id(2)), "n{} of {back:?}", node.n);
        }
        assert!(agree(&nodes), "{back:?}");
    }
}

#[test]
fn a_forged_promotion_is_taken_by_nobody() {
    let mut nodes = cluster(2, 4);
    let mut document = nodes[2].document().clone();
    document.set_role(id(2), Role::Master, id(0), NOW).unwrap();
    let seal = |by: u8, with: u8| Replica::new(document.clone(), id(by), &pair(with)).sealed().unwrap();
    let true_seal = nodes[0].replica.sealed().unwrap();
    for (forged, why) in [
        (seal(2, 2), AdoptError::WorkerSealer(id(2))),
        (seal(0, 2), AdoptError::WrongSeal(id(0))),
        (seal(3, 3), AdoptError::WorkerSealer(id(3))),
        (seal(9, 9), AdoptError::UnknownSealer(id(9))),
        (seal(2, 2).under_seal_of(&true_seal), AdoptError::WrongSeal(id(0))),
    ] {
        for node in [0, 1, 3] {
            assert_eq!(nodes[node].peer_link(&forged), Err(why.clone()));
            assert!(!nodes[node].document().is_master(&id(2)));
        }
    }
    // One that was true and was taken back brings nothing back.
    assert!(nodes[0].change(|document| document.set_role(id(2), Role::Master, id(0), NOW).unwrap()));
    let promotion = nodes[0].replica.sealed().unwrap();
    assert!(nodes[0].change(|document| document.set_role(id(2), Role::Worker, id(0), NOW).unwrap()));
    exchange(&mut nodes, &together);
    for node in &mut nodes {
        assert_eq!(node.peer_link(&promotion), Ok(Adoption::Nothing));
    }
}

#[test]
fn two_masters_that_demote_each_other_keep_their_own_until_one_side_joins_the_other_again() {
    let set = |node: &mut Node, other: u8, role: Role| {
        let by = id(node.n);
        assert!(node.change(|document| document.set_role(id(other), role, by, NOW).unwrap()));
    };
    // Workers 2 and 3 hear one of them first, and follow it.
    let mut nodes = cluster(2, 4);
    set(&mut nodes[0], 1, Role::Worker);
    set(&mut nodes[1], 0, Role::Worker);
    for (from, to) in [(0, 2), (1, 3)] {
        let sealed = nodes[from].replica.sealed().unwrap();
        nodes[to].peer_link(&sealed).unwrap();
    }
    for _ in 0..2 {
        exchange(&mut nodes, &together);
        for (node, master, other) in [(0, 0, 1), (2, 0, 1), (1, 1, 0), (3, 1, 0)] {
            let document = nodes[node].document();
            assert!(document.is_master(&id(master)) && !document.is_master(&id(other)), "n{node}");
        }
    }
    // The way out: the one that gives way, and who follows it, join the other again.
    for node in [1, 3] {
        let sealed = nodes[0].replica.sealed().unwrap();
        nodes[node].replica = Replica::join(&sealed, &key(0)).unwrap();
    }
    exchange(&mut nodes, &together);
    assert!(agree(&nodes) && nodes[3].document().is_master(&id(0)) && !nodes[3].document().is_master(&id(1)));
    set(&mut nodes[0], 1, Role::Master);
    exchange(&mut nodes, &together);
    assert!(agree(&nodes) && [0, 1].iter().all(|n| nodes[3].document().is_master(&id(*n))));
}

#[test]
fn counters_that_jump_and_times_ahead_are_refused_and_the_node_is_named() {
    let mut nodes = cluster(2, 2);
    let mut forged = nodes[0].document().clone();
    forged.set("drain.n1", Some("1".to_owned()), id(0), NOW).unwrap();
    forged.settings.get_mut("drain.n1").unwrap().clock = 1 << 40;
    let forged = Replica::new(forged, id(0), &pair(0)).sealed().unwrap();
    assert!(matches!(nodes[1].peer_link(&forged), Err(AdoptError::Jump(jump)) if jump.by == id(0)));
    assert!(nodes[1].change(|document| document.set("drain.n1", None, id(1), NOW).unwrap()));

    let mut forged = nodes[0].document().clone();
    forged.key.epoch = 1 << 50;
    let forged = Replica::new(forged, id(0), &pair(0)).sealed().unwrap();
    assert!(matches!(nodes[1].peer_link(&forged), Err(AdoptError::Jump(_))));

    let day = std::time::Duration::from_secs(24 * 3600);
    let mut ahead = nodes[0].document().clone();
    ahead.admit(Admitted { at: NOW.after(day), ..admitted(5, Role::Worker) });
    let good = Replica::new(ahead.clone(), id(0), &pair(0)).sealed().unwrap();
    ahead.nodes.get_mut(&id(5)).unwrap().at = UnixMs(NOW.0 + 2 * 24 * 3_600_000);
    let bad = Replica::new(ahead, id(0), &pair(0)).sealed().unwrap();
    let refused = nodes[1].peer_link(&bad).unwrap_err();
    assert!(matches!(refused, AdoptError::Future { by, .. } if by == id(0)), "{refused}");
    assert!(refused.to_string().contains("clock"), "{refused}");
    assert_eq!(nodes[1].replica.adopt(&good, NOW), Ok(Adoption::Merged { key_is_known_to_removed: false }));
    // A clock that has not been set yet keeps nobody out of what it has adopted already.
    let later = cluster(2, 2)[0].replica.sealed().unwrap();
    assert_eq!(cluster(2, 2)[1].replica.adopt(&later, UnixMs(0)), Ok(Adoption::Nothing));
}

#[test]
fn a_key_made_without_knowing_of_a_removal_needs_a_successor() {
    let mut nodes = cluster(3, 4);
    assert!(nodes[0].change(|document| {
        document.remove(id(3), id(0), NOW);
        document.turn_key(gossip_key(1), id(0), NOW, true).unwrap();
    }));
    assert!(nodes[1].change(|document| {
        document.turn_key(gossip_key(2), id(1), NOW, false).unwrap();
        document.turn_key(gossip_key(3), id(1), NOW, false).unwrap();
    }));
    let sealed = nodes[1].replica.sealed().unwrap();
    let known = Adoption::Merged { key_is_known_to_removed: true };
    assert_eq!(nodes[0].replica.adopt(&sealed, NOW), Ok(known));
}

#[test]
fn a_join_takes_what_the_confirmed_master_gives_and_nothing_from_others() {
    let nodes = cluster(2, 3);
    let sealed = nodes[0].replica.sealed().unwrap();
    assert!(Replica::join(&sealed, &key(0)).is_ok());
    assert!(Replica::join(&sealed, &key(1)).is_ok(), "another master may hand it on");
    assert_eq!(Replica::join(&sealed, &key(2)), Err(AdoptError::WorkerSealer(id(2))));
    assert_eq!(Replica::join(&sealed, &key(9)), Err(AdoptError::UnknownSealer(id(9))));
    let forged = Replica::new(nodes[0].document().clone(), id(2), &pair(2)).sealed().unwrap();
    assert!(Replica::join(&forged, &key(0)).is_err());
}

#[derive(Debug, Clone)]
enum Step {
    /// A master admits a node that is new to it.
    Admit(u8, u8),
    Remove(u8, u8),
    Demote(u8, u8),
    Promote(u8, u8),
    Set(u8, u8),
    Turn(u8),
    /// One node hears another.
    Hear(u8, u8),
}

/// Five nodes, of which the first three are masters at first; 5 to 8 are admitted later.
/// Nodes below `stays` are never removed and never demoted.
fn step(stays: u8) -> impl Strategy<Value = Step> {
    prop_oneof![
        2 => (0u8..5, 5u8..8).prop_map(|(a, b)| Step::Admit(a, b)),
        1 => (0u8..5, stays..5).prop_map(|(a, b)| Step::Remove(a, b)),
        1 => (0u8..5, stays..5).prop_map(|(a, b)| Step::Demote(a, b)),
        1 => (0u8..5, 0u8..5).prop_map(|(a, b)| Step::Promote(a, b)),
        2 => (0u8..5, 0u8..3).prop_map(|(a, b)| Step::Set(a, b)),
        1 => (0u8..5).prop_map(Step::Turn),
        6 => (0u8..5, 0u8..5).prop_map(|(a, b)| Step::Hear(a, b)),
    ]
}

fn play(nodes: &mut [Node], steps: &[Step]) {
    for (count, step) in steps.iter().enumerate() {
        let by = |n: u8| id(n);
        match step.clone() {
            Step::Admit(a, b) => drop(
                nodes[usize::from(a)]
                    .change(|d| d.admit(Admitted { by: by(a), ..admitted(b, Role::Worker) })),
            ),
            Step::Remove(a, b) if a != b => drop(nodes[usize::from(a)].remove(b)),
            Step::Demote(a, b) if a != b => {
                nodes[usize::from(a)].change(|d| d.set_role(id(b), Role::Worker, by(a), NOW).unwrap());
            }
            Step::Promote(a, b) => {
                nodes[usize::from(a)].change(|d| d.set_role(id(b), Role::Master, by(a), NOW).unwrap());
            }
            Step::Set(a, key) => {
                let value = Some(count.to_string());
                nodes[usize::from(a)].change(|d| d.set(&format!("k{key}"), value, by(a), NOW).unwrap());
            }
            Step::Turn(a) => {
                let new = gossip_key(count as u64 + 1);
                nodes[usize::from(a)].change(|d| d.turn_key(new, by(a), NOW, false).unwrap());
            }
            Step::Hear(a, b) if a != b => {
                if let Some(sealed) = nodes[usize::from(b)].replica.sealed() {
                    let _ = nodes[usize::from(a)].peer_link(&sealed);
                }
            }
            _ => {}
        }
    }
}

#[test]
fn a_master_whose_removal_does_not_stand_keeps_what_only_it_knew() {
    use Step::{Admit, Demote, Hear, Remove, Set};
    // 1 removes or demotes 0, and 2 demotes 1: 0 hears of both, in either order, and whether or not 1 knew all.
    let gone = |a, b| if a { Remove(1, b) } else { Demote(1, b) };
    for (removes, known) in [(true, false), (true, true), (false, false), (false, true)] {
        let mut steps = vec![Admit(0, 5), Set(0, 1), Hear(4, 0)];
        if known {
            steps.push(Hear(1, 0));
        }
        steps.extend([gone(removes, 0), Admit(0, 5), Demote(2, 1), Hear(4, 2)]);
        for order in [[1, 2], [2, 1]] {
            let mut nodes = cluster(3, 5);
            play(&mut nodes, &steps);
            play(&mut nodes, &order.map(|from| Hear(0, from)));
            exchange(&mut nodes, &together);
            assert_eq!(unsettled(&nodes), [], "removes {removes}, known {known}, {order:?}");
            for n in [0, 2, 4] {
                let document = nodes[n].document();
                assert!(document.member(&id(5)).is_some() && document.is_master(&id(0)), "n{n}, {order:?}");
            }
        }
    }
    // One that stands, and is taken back by a promotion: what only it knew stays lost.
    let mut nodes = cluster(3, 5);
    play(&mut nodes, &[Demote(1, 0), Admit(0, 5), Hear(0, 1), Step::Promote(1, 0), Hear(0, 1)]);
    assert!(nodes[0].document().is_master(&id(0)) && nodes[0].document().member(&id(5)).is_none());
}

/// How many cases: 64, or what PROPTEST_CASES says.
fn cases() -> u32 {
    std::env::var("PROPTEST_CASES").ok().and_then(|cases| cases.parse().ok()).unwrap_or(64)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: cases(), ..ProptestConfig::default() })]

    /// Node 0 is never removed and never demoted: with it as the one that all hear, all who stand end with
    /// one document, whatever was partitioned before.
    #[test]
    fn all_who_stand_end_with_one_document(steps in proptest::collection::vec(step(1), 0..30)) {
        let mut nodes = cluster(3, 5);
        play(&mut nodes, &steps);
        exchange(&mut nodes, &together);
        prop_assert!(agree(&nodes), "{:?}", nodes.iter().map(|n| n.document().hash()).collect::<Vec<_>>());
        // Nobody is lost who was admitted or stood, but for those with a tombstone and those whom only a
        // removed or demoted node ever knew.
        let mind = nodes[0].document();
        for n in 0..5 {
            prop_assert!(mind.member(&id(n)).is_some() || mind.removed.contains_key(&id(n)));
        }
    }

    /// Anyone may go, the founder too, and masters may remove and demote each other. A node that takes another
    /// for a master, which takes itself for one and the first for a member, holds the same document.
    #[test]
    fn a_master_and_those_who_follow_it_end_with_one_document(
        steps in proptest::collection::vec(step(0), 0..30),
    ) {
        let mut nodes = cluster(3, 5);
        play(&mut nodes, &steps);
        exchange(&mut nodes, &together);
        prop_assert_eq!(unsettled(&nodes), vec![]);
    }

    /// From when its removal is known, nothing that a removed node does reaches a replica.
    #[test]
    fn a_removed_node_adds_nothing(
        before in proptest::collection::vec(step(1), 0..12),
        after in proptest::collection::vec(step(1), 0..12),
    ) {
        let mut nodes = cluster(3, 5);
        play(&mut nodes, &before);
        prop_assume!(nodes[0].document().member(&id(1)).is_some());
        prop_assert!(nodes[0].remove(1));
        // It goes on by itself, with the keys that it has, and a clock of its own.
        for step in &after {
            let own = match step {
                Step::Admit(_, b) => Step::Admit(1, *b),
                Step::Remove(_, b) => Step::Remove(1, *b),
                Step::Demote(_, b) => Step::Demote(1, *b),
                Step::Promote(_, b) => Step::Promote(1, *b),
                Step::Set(_, key) => Step::Set(1, *key),
                Step::Turn(_) => Step::Turn(1),
                Step::Hear(..) => continue,
            };
            play(&mut nodes, &[own]);
        }
        let sealed = nodes[1].replica.sealed();
        let state = nodes[0].document().clone();
        if let Some(sealed) = sealed.filter(|sealed| sealed.by() == id(1)) {
            let _ = nodes[0].peer_link(&sealed);
        }
        prop_assert_eq!(nodes[0].document(), &state);
        prop_assert!(nodes[0].document().is_master(&id(0)));
    }
}
