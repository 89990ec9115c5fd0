//! Clusters of which only a core gossips, in virtual time: how long until every node holds two core members, and
//! what that costs. Deterministic: `TOPOLOGY_SEED=7 cargo test -p proto --test topology -- --nocapture`.

mod joins;
#[path = "../random/mod.rs"]
mod random;

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, BinaryHeap};
use std::time::Duration;

use proto::node::{NodeId, Role};
use proto::time::Moment;
use proto::topology::{
    Attach, Beacon, CoreOrder, IdPrefix, Knowledge, MOST_SILENT, Place, Topology, core_size, prefix,
    unless_known,
};
use proto::transport::{HEADER_LEN, TAG_LEN};
use random::Dice;

/// What a datagram has beside the body of its one frame: IP, UDP, header, tag, and the frame's kind and length.
const AROUND: u64 = 28 + HEADER_LEN as u64 + TAG_LEN as u64 + 3;

/// Time until the failure detector of gossip notices that a node is gone.
const GOSSIP: u64 = 8_000;

const STEP: u64 = 100;

/// Time after a start in which a node may count as silent.
const RETURNED: u64 = 3_000;

/// Time between two looks at who is alive.
const LOOK: u64 = 500;

struct Node {
    id: NodeId,
    up: bool,
    /// When it last changed between up and down.
    since: u64,
    topology: Topology,
    /// The fingerprint of the core that it has told those attached to it.
    told: Vec<NodeId>,
    /// Members that are not alive, as it says to those attached to it.
    silent: Vec<IdPrefix>,
    /// When it looks again who they are.
    look: u64,
    sent: u64,
    received: u64,
}

enum Message {
    Attach(Vec<u8>),
    Beacon(Vec<u8>),
}

struct World {
    dice: Dice,
    loss: u64,
    order: CoreOrder,
    nodes: Vec<Node>,
    index: BTreeMap<NodeId, usize>,
    ms: u64,
    /// Arrivals by time, number, sender and receiver.
    wire: BinaryHeap<Reverse<(u64, u64, usize, usize)>>,
    bodies: BTreeMap<u64, Message>,
    count: u64,
    /// Nodes that are up, and that a core member took for silent.
    alarms: BTreeSet<NodeId>,
    /// When a node (the first) last received something of another.
    heard: BTreeMap<(usize, usize), u64>,
}

impl World {
    fn new(members: usize, loss: u64) -> World {
        let seed = std::env::var("TOPOLOGY_SEED").ok().and_then(|seed| seed.parse().ok()).unwrap_or(1);
        let mut dice = Dice(seed);
        let mut id = || {
            let mut id = NodeId([0; NodeId::LEN]);
            id.0[..8].copy_from_slice(&dice.next().to_be_bytes());
            id
        };
        let ids: Vec<NodeId> = (0..members).map(|_| id()).collect();
        let role = |at: usize| if at < 3 { Role::Master } else { Role::Worker };
        let order = CoreOrder::new("cluster", ids.iter().enumerate().map(|(at, id)| (*id, role(at))));
        let now = Moment::ZERO;
        let node = |id: &NodeId| Node {
            id: *id,
            up: true,
            since: 0,
            topology: Topology::new(*id, order.clone(), now),
            told: Vec::new(),
            silent: Vec::new(),
            look: 0,
            sent: 0,
            received: 0,
        };
        let nodes: Vec<Node> = ids.iter().map(node).collect();
        let index = ids.iter().enumerate().map(|(at, id)| (*id, at)).collect();
        let wire = BinaryHeap::new();
        World {
            dice,
            loss,
            order,
            nodes,
            index,
            ms: 0,
            wire,
            bodies: BTreeMap::new(),
            count: 0,
            alarms: BTreeSet::new(),
            heard: BTreeMap::new(),
        }
    }

    fn now(&self) -> Moment {
        Moment::from_millis(self.ms)
    }

    fn send(&mut self, from: usize, to: &NodeId, message: Message) {
        let (Message::Attach(body) | Message::Beacon(body)) = &message;
        let bytes = AROUND + body.len() as u64;
        self.nodes[from].sent += bytes;
        let Some(to) = self.index.get(to).copied() else { return };
        if self.dice.percent(self.loss) {
            return;
        }
        self.count += 1;
        let at = self.ms + self.dice.between(1, 40);
        self.wire.push(Reverse((at, self.count, from, to)));
        self.bodies.insert(self.count, message);
    }

    fn deliver(&mut self) {
        while self.wire.peek().is_some_and(|Reverse((at, ..))| *at <= self.ms) {
            let Some(Reverse((_, number, from, to))) = self.wire.pop() else { return };
            let Some(message) = self.bodies.remove(&number) else { continue };
            if !self.nodes[to].up {
                continue;
            }
            let (now, sender) = (self.now(), self.nodes[from].id);
            self.heard.insert((to, from), self.ms);
            let node = &mut self.nodes[to];
            let (Message::Attach(body) | Message::Beacon(body)) = &message;
            node.received += AROUND + body.len() as u64;
            match message {
                Message::Attach(body) => {
                    let attach = Attach::from_bytes(&body);
                    node.topology.attached_by(sender, &attach, now);
                    let silent = unless_known(node.silent.clone(), attach.silent);
                    let said = node.topology.beacon(attach.knows.core);
                    let beacon = Beacon { up: 5_000, yours: 1, silent, ..said };
                    if node.topology.has_answer() {
                        self.send(to, &sender, Message::Beacon(beacon.to_bytes()));
                    }
                }
                Message::Beacon(body) => {
                    node.topology.heard(sender, &Beacon::from_bytes(&body), now);
                }
            }
        }
    }

    fn step(&mut self) {
        self.ms += STEP;
        self.deliver();
        let (ms, now) = (self.ms, self.now());
        // Whom gossip calls alive: members of the core that are up, or were until a moment ago.
        let gossips: BTreeMap<NodeId, bool> = self
            .nodes
            .iter()
            .map(|node| {
                (
                    node.id,
                    node.up && node.topology.place() == Place::Core || !node.up && ms - node.since < GOSSIP,
                )
            })
            .collect();
        let up: Vec<bool> = self.nodes.iter().map(|node| node.up && ms - node.since >= RETURNED).collect();
        for at in 0..self.nodes.len() {
            let node = &mut self.nodes[at];
            if !node.up {
                continue;
            }
            node.topology.update(|id| gossips.get(id) == Some(&true), now);
            if ms >= node.look && node.topology.place() == Place::Core {
                node.look = ms + LOOK;
                let silent = node.topology.silent(|id| gossips.get(id) == Some(&true), now);
                node.silent = silent.iter().take(MOST_SILENT).map(prefix).collect();
                self.alarms.extend(silent.iter().filter(|id| up[self.index[*id]]));
            }
            if node.topology.place() == Place::Attached && node.topology.deadline(now) > now {
                continue;
            }
            self.sends(at);
        }
    }

    fn sends(&mut self, at: usize) {
        let now = self.now();
        let node = &mut self.nodes[at];
        let due = node.topology.poll(now);
        let core: Vec<NodeId> = node.topology.core().iter().copied().collect();
        let place = node.topology.place();
        let changed = place == Place::Core && node.told != core;
        let here: Vec<NodeId> =
            if changed { node.topology.attached().here().map(|(id, _)| id).collect() } else { Vec::new() };
        let said = node.topology.beacon(0);
        let beacon = Beacon { silent: Some(node.silent.clone()), ..said }.to_bytes();
        if changed {
            node.told.clone_from(&core);
        }
        for id in here {
            self.send(at, &id, Message::Beacon(beacon.clone()));
        }
        for one in due.attach {
            let knows = Knowledge { core: one.core, document: 1, records: 1 };
            let lost = self.nodes[at].topology.lost(now);
            let attach =
                Attach { knows, record: 1, first: one.first, carried: None, lost, silent: one.silent };
            self.send(at, &one.to, Message::Attach(attach.to_bytes()));
        }
        for id in due.probes {
            self.send(at, &id, Message::Attach(Attach::default().to_bytes()));
        }
        if let Some(list) = due.list {
            let listed = Beacon {
                in_core: true,
                attached: Some(list.iter().map(prefix).collect()),
                ..Beacon::default()
            };
            for id in self.nodes[at].topology.peers(now) {
                self.send(at, &id, Message::Beacon(listed.to_bytes()));
            }
        }
    }

    /// Nodes that are up and hold fewer than two core members that are up.
    fn unattached(&self) -> usize {
        let in_core = |id: &NodeId| {
            let node = &self.nodes[self.index[id]];
            node.up && node.topology.place() == Place::Core
        };
        let lacks = |node: &&Node| {
            let held = node.topology.attachment().answering().filter(|(id, _)| in_core(id)).count();
            node.up && node.topology.place() == Place::Attached && held < 2
        };
        self.nodes.iter().filter(lacks).count()
    }

    /// Runs until every node holds two core members, for at most so many seconds. Returns how long that took.
    fn until_attached(&mut self, within: u64) -> f64 {
        let began = self.ms;
        while self.unattached() > 0 {
            self.step();
            assert!(self.ms - began <= within * 1000, "{} hold no two after {within} s", self.unattached());
        }
        (self.ms - began) as f64 / 1000.0
    }

    /// Runs until as many nodes gossip as should, for at most so many seconds. Returns how long that took.
    fn until_full(&mut self, within: u64) -> f64 {
        let (began, size) = (self.ms, core_size(self.nodes.len()));
        while self.core().len() < size {
            self.step();
            let core = self.core().len();
            assert!(self.ms - began <= within * 1000, "{core} of {size} in the core after {within} s");
        }
        (self.ms - began) as f64 / 1000.0
    }

    /// Bytes a second of a node, sent and received, over so many seconds: the average and the highest.
    fn traffic(&mut self, seconds: u64) -> (u64, u64) {
        self.nodes.iter_mut().for_each(|node| (node.sent, node.received) = (0, 0));
        for _ in 0..seconds * 1000 / STEP {
            self.step();
        }
        let each: Vec<u64> = self.nodes.iter().map(|node| (node.sent + node.received) / seconds).collect();
        (each.iter().sum::<u64>() / each.len() as u64, each.iter().copied().max().unwrap_or(0))
    }

    fn core(&self) -> Vec<usize> {
        let core = |at: &usize| self.nodes[*at].up && self.nodes[*at].topology.place() == Place::Core;
        (0..self.nodes.len()).filter(core).collect()
    }

    fn kill(&mut self, nodes: &[usize]) {
        for at in nodes {
            self.nodes[*at].up = false;
            self.nodes[*at].since = self.ms;
        }
    }

    fn restart_all(&mut self) {
        let (now, order) = (self.now(), self.order.clone());
        self.bodies.clear();
        self.wire.clear();
        for node in &mut self.nodes {
            node.up = true;
            node.since = self.ms;
            node.topology = Topology::new(node.id, order.clone(), now);
        }
    }
}

/// All that is promised, for one size and one loss.
fn run(members: usize, loss: u64) {
    let mut world = World::new(members, loss);
    let start = world.until_attached(10);
    let (usual, most) = world.traffic(10);
    let core = world.core();
    let size = core_size(members);
    assert!((size..=size + 1).contains(&core.len()), "{} in the core", core.len());
    world.alarms.clear();
    world.kill(&core[1..]);
    let one_left = world.until_attached(60);
    let full = world.until_full(60);
    world.restart_all();
    let restart = world.until_attached(10);
    let alarms = world.alarms.len();
    println!(
        "{members} nodes, {loss} % loss: start {start} s, restart of all {restart} s, all of the core lost but one \
         {one_left} s, and full again {full} s later, {alarms} falsely silent; {usual} B/s a node, {most} B/s at most"
    );
    assert!(most < 50_000 && usual < 2_000, "{usual} and {most} B/s");
}

#[test]
fn a_hundred_nodes_hold_two_core_members_within_seconds() {
    run(100, 0);
    run(100, 10);
}

#[test]
fn a_thousand_nodes_hold_two_core_members_within_seconds() {
    run(1_000, 0);
    run(1_000, 10);
}

/// `cargo test --profile simulation -p proto --test topology five_thousand -- --ignored --nocapture`
#[test]
#[ignore = "takes minutes"]
fn five_thousand_nodes_hold_two_core_members_within_seconds() {
    run(5_000, 10);
}

#[test]
fn a_core_that_is_lost_as_a_whole_is_made_up_for_by_those_next_in_order() {
    for members in [40, 100, 1_000] {
        let mut world = World::new(members, 10);
        world.until_attached(10);
        world.kill(&world.core());
        let took = world.until_attached(90);
        let full = world.until_full(60);
        println!("{members} nodes, the whole core lost: {took} s, and full again {full} s later");
    }
}

#[test]
fn in_a_calm_cluster_with_loss_the_core_does_not_change() {
    let mut world = World::new(300, 10);
    world.until_attached(10);
    let before = world.core();
    let patience = Duration::from_secs(300).as_millis() as u64;
    while world.ms < patience {
        world.step();
        assert_eq!(world.core(), before, "at {} ms", world.ms);
    }
}
