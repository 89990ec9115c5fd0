//! All agents restart at the same moment, and all workers of the core lose power at the same moment: how soon the rest
//! is attached again, whether any node is without a backend, and how soon a master is known that dies shortly after.

use super::faults::{AWAY, CALM, Loads, RESTART, last_to_know};
use super::world::{MASTERS, World};

/// Time between what happens to all, and the power cut of a master.
const THEN: u64 = 10_000;

/// A pause from which no agent is back.
const NEVER: u64 = 1 << 40;

/// What followed. What nodes send then is printed, and more than in calm times: all attach at once, and most of what
/// is said of silence is news.
struct Outcome {
    /// Until each node that is left held two core members that are, in milliseconds.
    attached: u64,
    last: u64,
    /// Nodes that had not heard that master yet.
    never: usize,
    bare: u64,
    wrong: usize,
    /// Bytes a second of the node that sends or receives most: in all, in the worst ten seconds, and in the worst one.
    most: [u64; 3],
}

/// Runs from `start`, and cuts the power of the first master a while later. `lost` nodes have none from `start` on.
fn run(mut world: World, start: u64, lost: &[bool]) -> Outcome {
    let members = world.nodes.len();
    let cut = start + THEN;
    world.cut(|node| node == 0, |_| true, cut, cut + AWAY);
    world.run(start);
    let mut loads = Loads::new(&world);
    let unattached =
        |world: &World| (0..members).filter(|node| !lost[*node] && world.holds(*node, lost) < 2).count();
    let mut attached = None;
    while world.ms < cut {
        let until = world.ms + 100;
        loads.run(&mut world, until);
        if attached.is_none() && unattached(&world) == 0 {
            attached = Some(world.ms - start);
        }
    }
    let unheard = |node: &usize| !lost[*node] && world.nodes[*node].peers[0].heard.is_none();
    let never = (1..members).filter(unheard).count();
    loads.run(&mut world, cut + 5_000);
    let last = last_to_know(&world, cut, 0, lost);
    loads.run(&mut world, cut + 10_000);
    loads.all().iter().for_each(|load| println!("  {load}"));
    let rightly = |ms: u64, master: usize| master == 0 && ms >= cut;
    let wrong =
        world.downs.iter().filter(|(ms, of, master, _)| !lost[*of] && *of != 0 && !rightly(*ms, *master));
    let left = world.nodes.iter().zip(lost).filter(|(_, lost)| !**lost);
    Outcome {
        attached: attached.unwrap_or(u64::MAX),
        last,
        never,
        bare: left.map(|(node, _)| node.longest_bare).max().unwrap_or(0),
        wrong: wrong.count(),
        most: loads.most(),
    }
}

fn print(what: &str, members: usize, loss: u64, outcome: &Outcome) {
    let Outcome { attached, last, never, bare, wrong, most } = outcome;
    println!(
        "{members} members, {loss} % loss, {what}: all attached after {attached} ms, no backend for {bare} ms, {wrong} \
         wrong downs; a master without power 10 s later is down on the last node after {last} ms; {never} had \
         not heard it before; most of a node, in all, in 10 s and in one: {most:?}"
    );
}

/// All agents stop at the same moment, and start again.
fn all_restart(members: usize, loss: u64, seed: u64) -> Outcome {
    let mut world = World::new(members, loss, seed);
    (0..members).for_each(|node| world.restart(node, CALM, RESTART));
    let outcome = run(world, CALM + RESTART, &vec![false; members]);
    print("all restart at once", members, loss, &outcome);
    outcome
}

/// All workers of the core lose power at the same moment, so that its masters alone are left.
fn core_is_lost(members: usize, loss: u64, seed: u64) -> Outcome {
    let mut world = World::new(members, loss, seed);
    world.run(CALM);
    let core = world.core();
    let lost: Vec<bool> = (0..members).map(|node| node >= MASTERS && core.contains(&node)).collect();
    world.cut(|node| lost[node], |_| true, CALM, u64::MAX);
    (0..members).filter(|node| lost[*node]).for_each(|node| world.restart(node, CALM, NEVER));
    let outcome = run(world, CALM, &lost);
    print("all workers of the core lost at once", members, loss, &outcome);
    outcome
}

fn check(outcome: &Outcome, loss: u64, [attached, last]: [u64; 2]) {
    assert!(outcome.attached <= attached && outcome.bare == 0);
    assert!(outcome.last <= last);
    assert!(outcome.most[0] <= if loss < 20 { 65_000 } else { 100_000 });
    assert!(outcome.wrong == 0 || loss > 10);
}

#[test]
#[ignore = "minutes; prints what ARCHITECTURE.md says"]
fn restarts_of_thousands() {
    for (members, loss) in
        [1_000, 5_000].into_iter().flat_map(|members| [0, 10, 20].map(|loss| (members, loss)))
    {
        let known = |most_loss| if loss <= most_loss { 1_000 } else { 3_000 };
        check(&all_restart(members, loss, 1), loss, [5_000, known(10)]);
        check(&core_is_lost(members, loss, 1), loss, [15_000, known(0)]);
    }
}
