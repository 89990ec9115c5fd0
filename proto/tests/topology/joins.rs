//! Many nodes that join a running cluster at once, so that it grows beyond the size in which all gossip: nobody calls a
//! member down that it has not had the time to hear, and one that dies is noticed as soon as ever.

use std::collections::BTreeMap;

use proto::node::Role;
use proto::time::Moment;
use proto::topology::{CoreOrder, Place, Topology, prefix};

use super::{GOSSIP, LOOK, MOST_SILENT, STEP, World};

const MASTERS: usize = 3;

/// A member that has sent a datagram within this time is alive.
const DIRECT: u64 = 3_000;

/// Rounds of gossip until it takes a newcomer for alive.
const ROUNDS: u64 = 4_000;

/// Between two rounds of gossip, and how many it then reaches.
const ROUND: u64 = 1_200;
const FAN_OUT: u64 = 3;

/// Longest time from an admission to the start of the agent, and until a member has the document with it.
const STARTS: u64 = 1_500;
const SPREADS: u64 = 1_200;

/// What a node knows of the cluster, beside its topology.
#[derive(Clone, Copy, Default)]
struct Knows {
    members: usize,
    /// When it has the next document, and of how many members.
    next: (u64, usize),
    /// Since when it has been in its place.
    place: (Place, u64),
}

struct Joining {
    world: World,
    knows: Vec<Knows>,
    /// When each is admitted, and when its agent starts.
    admitted: Vec<u64>,
    starts: Vec<u64>,
    /// Who says that who is not alive, of those that are, and when that began.
    alarms: BTreeMap<(usize, usize), u64>,
}

impl Joining {
    /// Masters have run for a minute when the others are admitted within `within` milliseconds.
    fn new(members: usize, loss: u64, within: u64) -> Joining {
        let mut world = World::new(members, loss);
        let mut joining: Vec<u64> =
            (MASTERS..members).map(|_| 60_000 + world.dice.between(0, within)).collect();
        joining.sort_unstable();
        let admitted: Vec<u64> = std::iter::repeat_n(0, MASTERS).chain(joining).collect();
        let starts = (0..members)
            .map(|at| if at < MASTERS { 0 } else { admitted[at] + world.dice.between(100, STARTS) })
            .collect();
        let mut joining = Joining {
            knows: vec![Knows { members: MASTERS, ..Knows::default() }; members],
            admitted,
            starts,
            alarms: BTreeMap::new(),
            world,
        };
        for at in 0..members {
            joining.world.nodes[at].up = at < MASTERS;
            joining.start(at, MASTERS);
        }
        joining
    }

    fn order(&self, members: usize) -> CoreOrder {
        let role = |at: usize| if at < MASTERS { Role::Master } else { Role::Worker };
        let nodes = self.world.nodes.iter().take(members).enumerate();
        CoreOrder::new("cluster", nodes.map(|(at, node)| (node.id, role(at))))
    }

    fn start(&mut self, at: usize, members: usize) {
        let (order, now) = (self.order(members), self.world.now());
        let node = &mut self.world.nodes[at];
        node.topology = Topology::new(node.id, order, now);
        self.knows[at] = Knows { members, place: (node.topology.place(), self.world.ms), ..Knows::default() };
    }

    /// Documents arrive, and agents start.
    fn learn(&mut self) {
        let (ms, now) = (self.world.ms, self.world.now());
        let members = self.admitted.iter().filter(|at| **at <= ms).count();
        for at in 0..members {
            if !self.world.nodes[at].up {
                if ms >= self.starts[at] && self.world.nodes[at].since == 0 {
                    (self.world.nodes[at].up, self.world.nodes[at].since) = (true, ms);
                    self.start(at, members);
                }
                continue;
            }
            let (due, size) = self.knows[at].next;
            if due == 0 && self.knows[at].members < members {
                self.knows[at].next = (ms + self.world.dice.between(STEP, SPREADS), members);
            } else if due > 0 && ms >= due {
                let order = self.order(size);
                self.world.nodes[at].topology.set_members(order, now);
                (self.knows[at].members, self.knows[at].next) = (size, (0, 0));
            }
        }
    }

    /// Whom a node gossips with, if it does.
    fn gossips(&self, at: usize) -> Vec<usize> {
        let node = &self.world.nodes[at];
        match node.topology.place() {
            Place::Everyone => (0..self.knows[at].members).collect(),
            Place::Core => node.topology.core().iter().map(|id| self.world.index[id]).collect(),
            Place::Attached => Vec::new(),
        }
    }

    /// Datagrams of gossip.
    fn gossip(&mut self) {
        let ms = self.world.ms;
        for at in (0..self.knows.len()).filter(|at| self.world.nodes[*at].up) {
            if (ms + at as u64 * STEP) % ROUND >= STEP {
                continue;
            }
            let peers = self.gossips(at);
            for _ in 0..FAN_OUT.min(peers.len() as u64) {
                let to = peers[self.world.dice.between(0, peers.len() as u64 - 1) as usize];
                if self.world.nodes[to].up && !self.world.dice.percent(self.world.loss) {
                    self.world.heard.insert((to, at), ms);
                }
            }
        }
    }

    /// Members that gossip or a datagram shows to be alive to a node.
    fn shown(&self, at: usize) -> Vec<bool> {
        let ms = self.world.ms;
        let since = |one: usize| self.knows[one].place.1;
        let direct =
            |other: usize| self.world.heard.get(&(at, other)).is_some_and(|heard| ms - heard < DIRECT);
        let mut shown: Vec<bool> = (0..self.knows.len()).map(|other| other == at || direct(other)).collect();
        for other in self.gossips(at) {
            let node = &self.world.nodes[other];
            let gossips = node.topology.place() != Place::Attached && node.since > 0 || other < MASTERS;
            let long = ms - since(at).max(since(other)) >= ROUNDS;
            shown[other] |= gossips && long && (node.up || ms - node.since < GOSSIP);
        }
        shown
    }

    fn step(&mut self) {
        self.world.ms += STEP;
        self.world.deliver();
        self.learn();
        self.gossip();
        let ms = self.world.ms;
        for at in 0..self.knows.len() {
            if !self.world.nodes[at].up {
                continue;
            }
            if ms.is_multiple_of(LOOK) {
                self.look(at);
            }
            self.world.sends(at);
        }
    }

    fn started(&mut self, at: usize) {
        let (id, now) = (self.world.nodes[at].id, self.world.now());
        self.world.nodes.iter_mut().for_each(|node| node.topology.has_started(id, now));
    }

    /// Looks who is alive, and decides.
    fn look(&mut self, at: usize) {
        let (ms, now) = (self.world.ms, self.world.now());
        let shown = self.shown(at);
        let index = &self.world.index;
        let node = &mut self.world.nodes[at];
        let place = node.topology.update(|id| shown[index[id]], now);
        if self.knows[at].place.0 != place {
            self.knows[at].place = (place, ms);
            // Its record shows that.
            self.started(at);
        }
        let (node, index) = (&mut self.world.nodes[at], &self.world.index);
        let silent = node.topology.silent(|id| shown[index[id]], now);
        node.silent = silent.iter().take(MOST_SILENT).map(prefix).collect();
        if place != Place::Everyone {
            for (other, shown) in shown.into_iter().enumerate().take(self.knows[at].members).skip(MASTERS) {
                let one = &self.world.nodes[other];
                let said = self.world.nodes[at].topology.is_alive(&one.id, shown, now);
                let lives = one.up || one.since == 0;
                if lives && !said {
                    self.alarms.entry((at, other)).or_insert(ms);
                }
            }
        }
    }

    fn run(&mut self, until: u64) {
        while self.world.ms < until {
            self.step();
        }
    }

    /// Kills a node. Returns how long until all that are not attached, and then all others, say so.
    fn kill(&mut self, victim: usize) -> [u64; 2] {
        let (id, began) = (self.world.nodes[victim].id, self.world.ms);
        self.world.kill(&[victim]);
        let mut last = [began; 2];
        self.run_while(began + 40_000, |this| {
            let now = this.world.now();
            for at in (0..this.knows.len()).filter(|at| this.world.nodes[*at].up) {
                let topology = &this.world.nodes[at].topology;
                let attached = usize::from(topology.place() == Place::Attached);
                if topology.is_alive(&id, this.shown(at)[victim], now) {
                    last[attached] = this.world.ms;
                }
            }
        });
        last.map(|at| at - began)
    }

    fn run_while(&mut self, until: u64, mut look: impl FnMut(&Joining)) {
        while self.world.ms < until {
            self.step();
            if self.world.ms.is_multiple_of(LOOK) {
                look(self);
            }
        }
    }
}

#[test]
fn nobody_is_called_down_while_many_join_and_one_that_dies_then_is_noticed() {
    for (members, loss, within) in [(100, 0, 1_500), (60, 0, 20_000), (40, 0, 300)] {
        let mut joining = Joining::new(members, loss, within);
        joining.run(60_000 + within + 60_000);
        let places = |place| joining.knows.iter().filter(|one| one.place.0 == place).count();
        assert_eq!(places(Place::Everyone), 0, "{members}");
        let (core, alarms) = (places(Place::Core), joining.alarms.len());
        let attached = (0..members).rfind(|at| joining.knows[*at].place.0 == Place::Attached);
        let worker = (MASTERS..members).find(|at| joining.knows[*at].place.0 == Place::Core);
        println!(
            "{members} nodes join within {within} ms, {loss} % loss: {core} in the core, {alarms} alarms"
        );
        assert_eq!(joining.alarms, BTreeMap::new(), "{members} nodes, {loss} % loss");
        for victim in [attached, worker].into_iter().flatten() {
            let noticed = joining.kill(victim);
            println!(
                "{:?} {victim} dies: its death is known after {noticed:?} ms",
                joining.knows[victim].place.0
            );
            // Its last list goes out 7 s later and counts for 17 s, and then those attached have to be told.
            assert!(noticed.into_iter().all(|ms| ms < 27_000), "{noticed:?}");
        }
    }
}

#[test]
fn a_cluster_that_shrinks_until_all_gossip_calls_nobody_down() {
    let mut joining = Joining::new(34, 0, 300);
    joining.run(120_000);
    let (now, order) = (joining.world.now(), joining.order(27));
    for at in 0..34 {
        joining.world.nodes[at].up = at < 27;
        joining.knows[at].members = 27;
        joining.world.nodes[at].topology.set_members(order.clone(), now);
    }
    joining.admitted.truncate(27);
    joining.run_while(180_000, |this| {
        for at in 0..27 {
            let shown = this.shown(at);
            let topology = &this.world.nodes[at].topology;
            let silent = |other: &usize| {
                !topology.is_alive(&this.world.nodes[*other].id, shown[*other], this.world.now())
            };
            let silent: Vec<usize> = (0..27).filter(silent).collect();
            assert_eq!(silent, [], "on {at} at {} ms", this.world.ms);
        }
    });
    let now = joining.world.now();
    assert!(joining.world.nodes.iter().take(27).all(|one| one.topology.place() == Place::Everyone));
    assert!(joining.world.nodes.iter().take(27).all(|one| one.topology.silent_before(now).is_none()));
}

#[test]
fn a_member_that_never_comes_is_named_after_a_while_and_a_master_that_has_died_is_not_taken_for_alive() {
    let mut joining = Joining::new(100, 0, 300);
    let never = 99;
    joining.starts[never] = u64::MAX;
    joining.run(90_000);
    let now: Moment = joining.world.now();
    let id = joining.world.nodes[never].id;
    let all = joining.world.nodes.iter().filter(|node| node.up);
    let alive = all.filter(|node| node.topology.is_alive(&id, false, now)).count();
    assert_eq!(alive, 0, "30 s later");
    let order = joining.order(100);
    let core = Topology::new(joining.world.nodes[0].id, order, now);
    assert!(!core.is_alive(&joining.world.nodes[1].id, false, now), "masters are pulsed");
    assert!(core.is_alive(&joining.world.nodes[50].id, false, now), "it has just started");
    assert_eq!(core.silent(|_| false, now), []);
}
