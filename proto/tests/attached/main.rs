//! Liveness in clusters of which only a core gossips, in virtual time: how soon every node knows that a master's power
//! is cut, how often one is called down that is not, and what pulses cost. The real decisions of every node, with
//! delays of 1 to 40 ms each way.
//!
//! A pair is one node and one master that it pulses; hours are those of all pairs together.
//!
//! `cargo test --release -p proto --test attached -- --include-ignored --nocapture` prints the numbers;
//! `ATTACHED_SEED=7` replays a seed.

#[path = "../random/mod.rs"]
mod random;

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap};
use std::time::Duration;

use proto::heard::HeardBook;
use proto::node::NodeId;
use proto::path::{BackendPath, Evidence, Reachability};
use proto::pulse::{Liveness, Pace, PeerPulse};
use proto::time::{Moment, UnixMs};
use proto::topology::{Place, core_size, pace};
use proto::transport::{HEADER_LEN, TAG_LEN};
use random::Dice;

const MASTERS: usize = 3;

/// What a datagram has beside its frames: IP, UDP, header and tag.
const AROUND: u64 = 28 + HEADER_LEN as u64 + TAG_LEN as u64;

/// Frames of a pulse, and of an answer: a status with one service, and the fingerprint of a record.
const PULSE: u64 = 3 + 8;
const ANSWER: u64 = 3 + 8 + 19 + 7;

/// As in the agent: silence after which a node looks more closely, how often, and how old the word of others may be
/// before it asks for it.
const LOOK: u64 = 25;
const ASK: Duration = Duration::from_millis(300);

/// One master, as one node sees it.
struct Peer {
    master: usize,
    pulse: PeerPulse,
    path: BackendPath,
    heard: Option<Moment>,
    liveness: Liveness,
    reach: Reachability,
}

struct Node {
    place: Place,
    book: HeardBook,
    peers: Vec<Peer>,
    wake: u64,
    sent: u64,
    received: u64,
}

#[derive(PartialEq, Eq, PartialOrd, Ord)]
enum Event {
    Wake(usize),
    Datagram { from: usize, to: usize, pulse: Option<u64>, answer: Option<u64>, report: Vec<u8> },
    Probed { node: usize, peer: usize, took: Option<u64> },
}

struct World {
    dice: Dice,
    loss: u64,
    ms: u64,
    nodes: Vec<Node>,
    core: Vec<usize>,
    events: BinaryHeap<Reverse<(u64, u64, Event)>>,
    count: u64,
    /// From then on nothing passes to or from the first master.
    cut: u64,
    /// From then on nothing passes between the first master and this node.
    path_cut: (usize, u64),
    suspicions: u64,
    /// Who has called which master down, when, and whether as a cut path.
    downs: Vec<(u64, usize, usize, bool)>,
}

fn id(node: usize) -> NodeId {
    let mut id = NodeId([0; NodeId::LEN]);
    id.0[..4].copy_from_slice(&u32::try_from(node).unwrap_or(u32::MAX).to_be_bytes());
    id
}

fn index(id: &NodeId) -> usize {
    id.0[..4].iter().fold(0, |all, byte| all << 8 | usize::from(*byte))
}

impl World {
    fn new(members: usize, loss: u64, seed: u64) -> World {
        let mut dice = Dice(seed);
        let core: Vec<usize> = (0..core_size(members)).collect();
        let place = |node: usize| if node < core.len() { Place::Core } else { Place::Attached };
        let mut nodes = Vec::new();
        for node in 0..members {
            let phase = Duration::from_millis(dice.between(0, 200));
            let pace = Pace { phase, ..pace(place(node), node < MASTERS, MASTERS, members) };
            let masters = (0..MASTERS).filter(|master| *master != node);
            let mut book = HeardBook::default();
            book.watch(masters.clone().map(id), node < MASTERS);
            let peer = |master| Peer {
                master,
                pulse: PeerPulse::new(Moment::from_millis(dice.between(0, 1_000)), pace, dice.next() >> 1),
                path: BackendPath::new(UnixMs(0)),
                heard: None,
                liveness: Liveness::Unknown,
                reach: Reachability::Up,
            };
            let peers = masters.map(peer).collect();
            nodes.push(Node { place: place(node), book, peers, wake: 0, sent: 0, received: 0 });
        }
        // Each holds three of the core, for ever.
        let ever = Moment::from_millis(u64::MAX);
        for node in core.len()..members {
            let mut held = core.clone();
            for _ in 0..3 {
                let one = held.swap_remove(dice.below(held.len()));
                nodes[one].book.attached(id(node), ever);
            }
        }
        let mut world = World {
            dice,
            loss,
            ms: 0,
            nodes,
            core,
            events: BinaryHeap::new(),
            count: 0,
            cut: u64::MAX,
            path_cut: (0, u64::MAX),
            suspicions: 0,
            downs: Vec::new(),
        };
        (0..members).for_each(|node| world.push(0, Event::Wake(node)));
        world
    }

    fn push(&mut self, at: u64, event: Event) {
        self.count += 1;
        self.events.push(Reverse((at, self.count, event)));
    }

    /// Whether a packet between these passes.
    fn passes(&mut self, one: usize, other: usize) -> bool {
        let first = one == 0 || other == 0;
        let cut = first && self.ms >= self.cut;
        let (node, at) = self.path_cut;
        let apart = first && (one == node || other == node) && self.ms >= at;
        !cut && !apart && !self.dice.percent(self.loss)
    }

    fn send(&mut self, from: usize, to: usize, pulse: Option<u64>, answer: Option<u64>, report: Vec<u8>) {
        let head = if report.is_empty() { 0 } else { 3 };
        let asked = if pulse.is_some() { PULSE } else { 0 } + if answer.is_some() { ANSWER } else { 0 };
        let bytes = AROUND + asked + head + report.len() as u64;
        self.nodes[from].sent += bytes;
        if self.passes(from, to) {
            self.nodes[to].received += bytes;
            let at = self.ms + self.dice.between(1, 40);
            self.push(at, Event::Datagram { from, to, pulse, answer, report });
        }
    }

    /// What a node says of whom it hears.
    fn report(&self, of: usize, to: usize) -> Vec<u8> {
        let node = &self.nodes[of];
        let heard = |id: &NodeId| node.peers.iter().find(|peer| peer.master == index(id))?.heard;
        node.book.report(&id(to), heard, Moment::from_millis(self.ms)).unwrap_or_default()
    }

    fn run(&mut self, until: u64) {
        while self.events.peek().is_some_and(|Reverse((at, ..))| *at < until) {
            let Some(Reverse((at, _, event))) = self.events.pop() else { return };
            self.ms = at;
            let now = Moment::from_millis(at);
            match event {
                Event::Wake(node) => {
                    if self.nodes[node].wake == at {
                        self.step(node);
                    }
                }
                Event::Datagram { from, to, pulse, answer, report } => {
                    let node = &mut self.nodes[to];
                    let peer = node.peers.iter_mut().find(|peer| peer.master == from);
                    let answered = peer.map(|peer| {
                        peer.heard = Some(now);
                        answer.map(|number| peer.pulse.answered(number, now))
                    });
                    let doubted = node.book.add(id(from), from < MASTERS, &report, now);
                    let doubted: Vec<usize> = doubted.iter().map(index).collect();
                    let doubts = node.peers.iter_mut().filter(|peer| doubted.contains(&peer.master));
                    doubts.for_each(|peer| peer.pulse.hasten(now));
                    if answered.flatten().is_some() || !doubted.is_empty() {
                        self.step(to);
                    }
                    if let Some(number) = pulse {
                        let report = self.report(to, from);
                        self.send(to, from, None, Some(number), report);
                    }
                }
                Event::Probed { node, peer, took } => {
                    let took = took.map(Duration::from_millis);
                    let evidence = took.map_or(Evidence::Unanswered, |took| Evidence::Connected { took });
                    self.observe(node, peer, evidence);
                    self.step(node);
                }
            }
        }
        self.ms = until;
    }

    /// What the agent's loop does.
    fn step(&mut self, of: usize) {
        let now = Moment::from_millis(self.ms);
        let node = &mut self.nodes[of];
        let asks = node.peers.iter().any(|peer| {
            let waits = peer.pulse.liveness(now) == Liveness::Late;
            waits && !node.book.of(&id(peer.master)).any_within(ASK, now)
        });
        if asks {
            node.peers.iter_mut().for_each(|peer| peer.pulse.hasten(now));
        }
        let mut due = Vec::new();
        for peer in &mut node.peers {
            if let Some(number) = peer.pulse.poll(now) {
                node.book.asked(&id(peer.master), peer.pulse.slack(), peer.heard, now);
                due.push((peer.master, number));
            }
        }
        for (master, number) in due {
            let report = self.report(of, master);
            self.send(of, master, Some(number), None, report);
        }
        self.alarm(of);
        for peer in 0..self.nodes[of].peers.len() {
            let node = &self.nodes[of];
            let one = &node.peers[peer];
            let liveness = one.pulse.liveness_for_all(now, one.heard, &node.book.of(&id(one.master)));
            if liveness != one.liveness {
                self.nodes[of].peers[peer].liveness = liveness;
                self.observe(of, peer, Evidence::Liveness(liveness));
            }
            self.probe(of, peer);
        }
        let node = &mut self.nodes[of];
        let due = node.peers.iter().flat_map(|peer| [Some(peer.pulse.deadline()), peer.path.next_probe()]);
        let next = due.flatten().min().unwrap_or_default().as_millis().max(self.ms + 1);
        let silent = node.peers.iter().any(|peer| peer.pulse.silence(now) > peer.pulse.slack());
        node.wake = if silent { next.min(self.ms + LOOK) } else { next };
        let at = node.wake;
        self.push(at, Event::Wake(of));
    }

    fn alarm(&mut self, of: usize) {
        let node = &mut self.nodes[of];
        if node.place != Place::Core {
            return;
        }
        let peer = |id: &NodeId| node.peers.iter().find(|peer| peer.master == index(id));
        let heard = |id: &NodeId| peer(id)?.heard;
        let Some(alarm) = node.book.alarm(heard, Moment::from_millis(self.ms)) else { return };
        let mut told: Vec<usize> = alarm.attached.iter().map(index).collect();
        if alarm.own && of < MASTERS {
            told.extend(self.core.iter().filter(|other| **other != of));
        }
        told.into_iter().for_each(|to| self.send(of, to, None, None, alarm.report.clone()));
    }

    fn observe(&mut self, of: usize, peer: usize, evidence: Evidence) {
        let one = &mut self.nodes[of].peers[peer];
        one.path.observe(Moment::from_millis(self.ms), UnixMs(self.ms), evidence);
        let (reach, master) = (one.path.reach(), one.master);
        if std::mem::replace(&mut one.reach, reach) != reach {
            match reach {
                Reachability::Suspect => self.suspicions += 1,
                Reachability::Down => {
                    self.downs.push((self.ms, of, master, one.liveness == Liveness::CutOff));
                }
                Reachability::Up => {}
            }
        }
    }

    fn probe(&mut self, of: usize, peer: usize) {
        let now = Moment::from_millis(self.ms);
        let one = &mut self.nodes[of].peers[peer];
        let master = one.master;
        if one.path.next_probe().is_some_and(|at| at <= now) {
            let timeout = u64::try_from(one.path.probe_timeout().as_millis()).unwrap_or(u64::MAX);
            one.path.probe_started(now);
            // A lost SYN or SYN-ACK is sent again only after a second: too late for this probe.
            let passes = self.passes(of, master) && self.passes(master, of);
            let took = passes.then(|| self.dice.between(2, 80));
            self.push(self.ms + took.unwrap_or(timeout), Event::Probed { node: of, peer, took });
        }
    }

    /// Hours of all pairs.
    fn hours(&self) -> f64 {
        self.nodes.iter().map(|node| node.peers.len()).sum::<usize>() as f64 * self.ms as f64 / 3.6e6
    }
}

fn seeds(count: u64) -> std::ops::Range<u64> {
    let seed = std::env::var("ATTACHED_SEED").ok().and_then(|seed| seed.parse().ok());
    seed.map_or(0..count, |seed| seed..seed + 1)
}

/// After how many milliseconds each node calls the first master down, in order.
fn cuts(members: usize, loss: u64, count: u64) -> Vec<u64> {
    let mut times = Vec::new();
    for seed in seeds(count) {
        let mut world = World::new(members, loss, seed);
        let cut = 60_000 + seed * 37 % 1_000;
        world.cut = cut;
        world.run(cut + 5_000);
        let mut down = BTreeMap::new();
        for (ms, node, master, _) in &world.downs {
            if *master == 0 && *ms >= cut {
                down.entry(*node).or_insert(ms - cut);
            }
        }
        assert_eq!(down.len(), members - 1, "ATTACHED_SEED={seed}: some never say down");
        times.extend(down.into_values());
    }
    times.sort_unstable();
    let (median, last) = (times[times.len() / 2], times[times.len() - 1]);
    println!("{members} members, {loss} % loss, power cut to down: median {median} max {last} ms");
    times
}

/// Wrong downs and hours.
fn alarms(members: usize, loss: u64, hours: f64, seed: u64) -> (usize, f64) {
    let mut world = World::new(members, loss, seed);
    while world.hours() < hours {
        world.run(world.ms + 60_000);
    }
    let (downs, hours) = (world.downs.len(), world.hours());
    println!(
        "{members} members, {loss} % loss: {downs} wrong downs in {hours:.0} h of pairs, {:.2} suspicions an hour",
        world.suspicions as f64 / hours
    );
    (downs, hours)
}

/// kB/s that the most burdened of each kind sends and receives: a master, a worker in the core, an attached node.
fn traffic(members: usize, loss: u64) -> [[f64; 2]; 3] {
    const SPAN: u64 = 100_000;
    let mut world = World::new(members, loss, 1);
    world.run(120_000);
    world.nodes.iter_mut().for_each(|node| (node.sent, node.received) = (0, 0));
    world.run(120_000 + SPAN);
    let core = world.core.len();
    let kinds = [0..MASTERS, MASTERS..core, core..members];
    let most = kinds.map(|kind| {
        let of = &world.nodes[kind];
        let most = |count: fn(&Node) -> u64| of.iter().map(count).max().unwrap_or(0) as f64 / SPAN as f64;
        [most(|node| node.sent), most(|node| node.received)]
    });
    println!(
        "{members} members, {loss} % loss, kB/s of pulses sent and received: master {:.2} {:.2}, worker in the core \
         {:.2} {:.2}, attached {:.2} {:.2}",
        most[0][0], most[0][1], most[1][0], most[1][1], most[2][0], most[2][1]
    );
    most
}

#[test]
fn a_power_cut_is_down_on_every_node_within_a_second() {
    for loss in [0, 10, 20] {
        let times = cuts(100, loss, 5);
        assert!(times[times.len() / 2] <= 650 && times.iter().all(|ms| *ms <= 1_000));
    }
}

#[test]
fn nobody_is_called_down_at_ten_percent_loss_each_way() {
    assert_eq!(alarms(100, 10, 20.0, 1).0, 0);
}

#[test]
fn a_master_gets_a_tenth_of_what_it_got_when_all_pulsed_it_ten_times_a_second() {
    for members in [100, 1_000] {
        for [sent, received] in traffic(members, 0) {
            assert!(sent < 25.0 && received < 25.0);
        }
    }
}

#[test]
fn a_cut_path_of_an_attached_node_is_called_so() {
    for seed in seeds(5) {
        let mut world = World::new(100, 10, seed);
        let node = 60;
        world.path_cut = (node, 30_000);
        world.run(40_000);
        let down = world.downs.iter().find(|(ms, ..)| *ms >= 30_000);
        assert!(matches!(down, Some((_, 60, 0, true))), "ATTACHED_SEED={seed}: {:?}", world.downs);
        assert!(world.downs.iter().all(|(_, of, ..)| *of == node), "{:?}", world.downs);
    }
}

#[test]
#[ignore = "minutes; prints what ARCHITECTURE.md says"]
fn all_numbers() {
    for members in [100, 1_000, 5_000] {
        traffic(members, 0);
        for loss in [0, 10, 20] {
            cuts(members, loss, if members > 1_000 { 10 } else { 50 });
        }
        for (loss, most) in [(10, 0.0), (20, 0.1)] {
            let (downs, hours) = alarms(members, loss, 1_000.0, 1);
            assert!(downs as f64 <= hours * most);
        }
    }
}
