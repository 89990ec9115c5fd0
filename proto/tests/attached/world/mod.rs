//! A cluster of which only a core gossips, in virtual time: every node's place, attachment, pulses, reports and paths
//! are decided by the real state machines, and every message has its real bytes where proto makes them.
//!
//! Modelled are: gossip within the core (who is alive by it: an oracle that is late by the time that chitchat
//! needs; its bytes: see `table`), the network (loss, delays of 1 to 40 ms each way, cuts), the pull of records
//! over TLS, whose bytes are constants, and an agent's restart, which leaves the machine and its apiserver running.
//! The document does not change.

mod message;
mod place;
mod pulses;

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap};
use std::time::Duration;

use proto::heard::HeardBook;
use proto::node::{NodeId, Role};
use proto::path::{BackendPath, Evidence, Reachability};
use proto::pulse::{Liveness, Pace, PeerPulse};
use proto::time::{Moment, UnixMs};
use proto::topology::{Attach, Beacon, CoreOrder, Place, SilentNames, Topology, measurements, pace};

pub(crate) use self::message::{AROUND, Kind, Message, RECORD, Traffic};
use crate::random::Dice;

pub(crate) const MASTERS: usize = 3;

/// Time until the failure detector of gossip notices that a node is gone, and until it is back.
const GOSSIP: u64 = 8_000;
const RETURNED: u64 = 2_000;

/// One master, as one node sees it.
pub(crate) struct Peer {
    master: usize,
    pulse: PeerPulse,
    path: BackendPath,
    pub(crate) heard: Option<Moment>,
    pub(crate) liveness: Liveness,
    pub(crate) reach: Reachability,
}

pub(crate) struct Node {
    id: NodeId,
    /// Its agent runs.
    pub(crate) up: bool,
    /// When its agent last stopped and started.
    stopped: u64,
    pub(crate) started: u64,
    pub(crate) topology: Topology,
    book: HeardBook,
    pub(crate) peers: Vec<Peer>,
    phase: Duration,
    /// When its pulses, and its place, are due next.
    wake: u64,
    turn: u64,
    /// How many members are not alive, and which it names to those attached to it; and when it looks again.
    silent: usize,
    names: SilentNames,
    look: u64,
    /// The core and the records that it has told those attached to it, and when.
    told: ((u64, u64), u64),
    /// The number of its own record, those of others that it holds, and the records that every node needs.
    record: u32,
    records: BTreeMap<usize, u32>,
    needed: u64,
    pull: u64,
    pulled: u64,
    /// Since when it has had no backend; the longest time so far.
    bare: Option<u64>,
    pub(crate) longest_bare: u64,
    pub(crate) sent: Traffic,
    pub(crate) received: Traffic,
}

/// Nothing passes between these and those, either way, for a while.
pub(crate) struct Cut {
    pub(crate) these: Vec<bool>,
    pub(crate) those: Vec<bool>,
    pub(crate) from: u64,
    pub(crate) until: u64,
}

#[derive(PartialEq, Eq, PartialOrd, Ord)]
enum Event {
    Wake(usize),
    Turn(usize),
    Datagram(usize, usize, Message),
    Refused {
        node: usize,
        by: usize,
    },
    Probed {
        node: usize,
        peer: usize,
        took: Option<u64>,
    },
    /// A probe's hello is answered, or was not yet after this time.
    Greeted {
        node: usize,
        peer: usize,
        unanswered: Option<u64>,
    },
    Pulled {
        node: usize,
        needed: u64,
    },
    Stop {
        node: usize,
        pause: u64,
    },
    Start(usize),
    /// A cut begins or ends: who has a backend now?
    Judge,
    /// The record of a core member changes.
    News(usize),
}

pub(crate) struct World {
    pub(crate) dice: Dice,
    loss: u64,
    /// Delays each way, in milliseconds: the shortest and the longest.
    delay: [u64; 2],
    pub(crate) ms: u64,
    order: CoreOrder,
    pub(crate) nodes: Vec<Node>,
    events: BinaryHeap<Reverse<(u64, u64, Event)>>,
    count: u64,
    pub(crate) cuts: Vec<Cut>,
    /// How often the record of a core member has changed.
    changes: u64,
    pub(crate) suspicions: u64,
    /// Who has called which master down, when, and whether as a cut path.
    pub(crate) downs: Vec<(u64, usize, usize, bool)>,
}

fn id(node: usize) -> NodeId {
    let mut id = NodeId([0; NodeId::LEN]);
    id.0[..4].copy_from_slice(&u32::try_from(node).unwrap_or(u32::MAX).to_be_bytes());
    id
}

fn index(id: &NodeId) -> usize {
    id.0[..4].iter().fold(0, |all, byte| all << 8 | usize::from(*byte))
}

/// As of the Kubernetes API.
fn tls_path(wall: UnixMs) -> BackendPath {
    let mut path = BackendPath::new(wall);
    path.set_speaks_tls(true);
    path
}

impl World {
    pub(crate) fn new(members: usize, loss: u64, seed: u64) -> World {
        let role = |node| if node < MASTERS { Role::Master } else { Role::Worker };
        let order = CoreOrder::new("cluster", (0..members).map(|node| (id(node), role(node))));
        let mut world = World {
            dice: Dice(seed),
            loss,
            delay: [1, 40],
            ms: 0,
            order,
            nodes: Vec::new(),
            events: BinaryHeap::new(),
            count: 0,
            cuts: Vec::new(),
            changes: 0,
            suspicions: 0,
            downs: Vec::new(),
        };
        for node in 0..members {
            let started = world.started(node, members, 1_000);
            world.nodes.push(started);
            world.push(0, Event::Wake(node));
            world.push(0, Event::Turn(node));
        }
        world
    }

    /// All on one switch, which loses nothing: what the lab has.
    pub(crate) fn near(members: usize, seed: u64) -> World {
        World { delay: [0, 1], ..World::new(members, 0, seed) }
    }

    /// A node whose agent starts now, and pulses first within `spread`.
    fn started(&mut self, node: usize, members: usize, spread: u64) -> Node {
        let now = self.now();
        let topology = Topology::new(id(node), self.order.clone(), now);
        let phase = Duration::from_millis(self.dice.between(0, 200));
        let pace = Pace { phase, ..pace(topology.place(), node < MASTERS, MASTERS, members) };
        let masters = (0..MASTERS).filter(|master| *master != node);
        let mut book = HeardBook::default();
        book.watch(masters.clone().map(id), node < MASTERS);
        let peer = |master| Peer {
            master,
            pulse: PeerPulse::new(
                now.after(Duration::from_millis(self.dice.between(0, spread))),
                pace,
                self.dice.next() >> 1,
            ),
            path: tls_path(UnixMs(self.ms)),
            heard: None,
            liveness: Liveness::Unknown,
            reach: Reachability::Up,
        };
        Node {
            id: id(node),
            up: true,
            stopped: 0,
            started: self.ms,
            topology,
            book,
            peers: masters.map(peer).collect(),
            phase,
            wake: self.ms,
            turn: self.ms,
            silent: 0,
            names: SilentNames::default(),
            look: self.ms,
            told: ((0, 0), self.ms),
            record: 1,
            records: BTreeMap::new(),
            needed: 0,
            pull: self.ms,
            pulled: self.changes,
            bare: None,
            longest_bare: 0,
            sent: Traffic::default(),
            received: Traffic::default(),
        }
    }

    pub(crate) fn now(&self) -> Moment {
        Moment::from_millis(self.ms)
    }

    fn push(&mut self, at: u64, event: Event) {
        self.count += 1;
        self.events.push(Reverse((at, self.count, event)));
    }

    /// Has an agent stop at a time, and start again after a pause.
    pub(crate) fn restart(&mut self, node: usize, at: u64, pause: u64) {
        self.push(at, Event::Stop { node, pause });
    }

    /// Has the record of each core member change as often as it may.
    pub(crate) fn restless(&mut self) {
        let most = self.news();
        for node in 0..self.nodes.len() {
            let at = self.ms + self.dice.between(0, most);
            self.push(at, Event::News(node));
        }
    }

    /// Time between two changes of a record for round trips that vary.
    fn news(&self) -> u64 {
        u64::try_from(measurements(self.nodes.len()).as_millis()).unwrap_or(u64::MAX)
    }

    /// A cut between some nodes and others.
    pub(crate) fn cut(
        &mut self,
        these: impl Fn(usize) -> bool,
        those: impl Fn(usize) -> bool,
        from: u64,
        until: u64,
    ) {
        let all = || 0..self.nodes.len();
        let (these, those) = (all().map(these).collect(), all().map(those).collect());
        self.cuts.push(Cut { these, those, from, until });
        self.push(from, Event::Judge);
        self.push(until, Event::Judge);
    }

    /// Since when nothing passes between two nodes.
    fn cut_since(&self, one: usize, other: usize) -> Option<u64> {
        let between = |cut: &&Cut| {
            let apart = cut.these[one] && cut.those[other] || cut.these[other] && cut.those[one];
            apart && one != other && (cut.from..cut.until).contains(&self.ms)
        };
        self.cuts.iter().filter(between).map(|cut| cut.from).min()
    }

    /// Whether a packet between these passes.
    fn passes(&mut self, one: usize, other: usize) -> bool {
        self.cut_since(one, other).is_none() && !self.dice.percent(self.loss)
    }

    /// Whether gossip shows `other` as alive to `one`.
    fn gossips(&self, one: usize, other: usize) -> bool {
        let node = &self.nodes[other];
        if let Some(since) = self.cut_since(one, other) {
            return self.ms - since < GOSSIP;
        }
        // A cut that has just ended.
        let apart = |cut: &Cut| {
            let apart = cut.these[one] && cut.those[other] || cut.these[other] && cut.those[one];
            apart && cut.until <= self.ms && self.ms - cut.until < RETURNED && cut.until - cut.from >= GOSSIP
        };
        if !node.up {
            return self.ms - node.stopped < GOSSIP;
        }
        let was_away = node.started.saturating_sub(node.stopped) >= GOSSIP && node.stopped > 0;
        let back = !was_away || self.ms - node.started >= RETURNED;
        node.topology.place() == Place::Core && back && !self.cuts.iter().any(apart)
    }

    /// How long a packet is under way.
    fn takes(&mut self) -> u64 {
        self.dice.between(self.delay[0], self.delay[1])
    }

    /// What a member says that lies: that it has heard a master this long ago.
    pub(crate) fn lie(&mut self, from: usize, about: usize, age: Duration) {
        let report = proto::heard::to_bytes(vec![(id(about), age)]);
        for to in (0..self.nodes.len()).filter(|to| *to != from && *to != about) {
            self.send(from, to, Message::Report(report.clone()));
        }
    }

    fn send(&mut self, from: usize, to: usize, message: Message) {
        let (bytes, kind) = (message.bytes(), message.kind());
        let sent = &mut self.nodes[from].sent;
        sent.count(kind, bytes);
        sent.datagrams += 1;
        if self.passes(from, to) {
            let at = self.ms + self.takes();
            self.push(at, Event::Datagram(from, to, message));
        }
    }

    /// What a node says of whom it hears.
    fn report(&self, of: usize, to: usize) -> Vec<u8> {
        let node = &self.nodes[of];
        let heard = |id: &NodeId| node.peers.iter().find(|peer| peer.master == index(id))?.heard;
        node.book.report(&self.nodes[to].id, heard, self.now()).unwrap_or_default()
    }

    pub(crate) fn run(&mut self, until: u64) {
        while self.events.peek().is_some_and(|Reverse((at, ..))| *at < until) {
            let Some(Reverse((at, _, event))) = self.events.pop() else { return };
            self.ms = at;
            match event {
                Event::Wake(node) if self.nodes[node].up && self.nodes[node].wake == at => self.pulse(node),
                Event::Turn(node) if self.nodes[node].up && self.nodes[node].turn == at => self.turn(node),
                Event::Wake(_) | Event::Turn(_) => {}
                Event::Datagram(from, to, message) => self.deliver(from, to, message),
                Event::Refused { node, by } => {
                    let peer = self.nodes[node].peers.iter_mut().find(|peer| peer.master == by);
                    peer.into_iter().for_each(|peer| peer.pulse.refused());
                    if self.nodes[node].up {
                        self.pulse(node);
                    }
                }
                Event::Probed { node, peer, took } => {
                    let took = took.map(Duration::from_millis);
                    let evidence = took.map_or(Evidence::Unanswered, |took| Evidence::Connected { took });
                    if self.nodes[node].up {
                        self.observe(node, peer, evidence);
                        if took.is_some() {
                            self.greet(node, peer);
                        }
                        self.pulse(node);
                    }
                }
                Event::Greeted { node, peer, unanswered } => {
                    let waited = unanswered.map(Duration::from_millis);
                    let evidence =
                        waited.map_or(Evidence::HelloAnswered, |waited| Evidence::HelloUnanswered { waited });
                    if self.nodes[node].up {
                        self.observe(node, peer, evidence);
                        self.pulse(node);
                    }
                }
                Event::Judge => (0..self.nodes.len()).for_each(|node| self.judge(node)),
                Event::News(node) => {
                    if self.nodes[node].topology.place() == Place::Core {
                        self.nodes[node].record += 1;
                        self.changes += 1;
                    }
                    self.push(at + self.news(), Event::News(node));
                }
                Event::Pulled { node, needed } => self.nodes[node].needed = needed,
                Event::Stop { node, pause } => {
                    let one = &mut self.nodes[node];
                    (one.up, one.stopped, one.bare) = (false, at, None);
                    self.push(at + pause, Event::Start(node));
                }
                Event::Start(node) => {
                    let new = self.started(node, self.nodes.len(), 0);
                    let old = std::mem::replace(&mut self.nodes[node], new);
                    let one = &mut self.nodes[node];
                    (one.stopped, one.longest_bare) = (old.stopped, old.longest_bare);
                    (one.sent, one.received, one.record) = (old.sent, old.received, old.record + 1);
                    self.judge(node);
                    self.push(at, Event::Wake(node));
                    self.push(at, Event::Turn(node));
                }
            }
        }
        self.ms = until;
    }

    fn deliver(&mut self, from: usize, to: usize, message: Message) {
        let now = self.now();
        let node = &mut self.nodes[to];
        if !node.up {
            // Its machine says so.
            if matches!(message, Message::Pulse(..)) && self.passes(to, from) {
                let at = self.ms + self.takes();
                self.push(at, Event::Refused { node: from, by: to });
            }
            return;
        }
        node.received.count(message.kind(), message.bytes());
        node.received.datagrams += 1;
        if let Some(peer) = node.peers.iter_mut().find(|peer| peer.master == from) {
            peer.heard = Some(now);
        }
        match message {
            Message::Attach(body, carried) => self.attached(from, to, &Attach::from_bytes(&body), carried),
            Message::Beacon(body, carried) => self.beacon(from, to, &Beacon::from_bytes(&body), carried),
            Message::Pulse(number, report) => {
                self.reported(from, to, &report, None);
                let report = self.report(to, from);
                self.send(to, from, Message::Answer(number, report));
            }
            Message::Answer(number, report) => self.reported(from, to, &report, Some(number)),
            Message::Report(report) => self.reported(from, to, &report, None),
        }
    }

    fn reported(&mut self, from: usize, to: usize, report: &[u8], answer: Option<u64>) {
        let now = self.now();
        let sender = self.nodes[from].id;
        let node = &mut self.nodes[to];
        let peer = node.peers.iter_mut().find(|peer| peer.master == from);
        let answered = peer.and_then(|peer| peer.pulse.answered(answer?, now)).is_some();
        let peers = &node.peers;
        let heard = |id: &NodeId| peers.iter().find(|peer| peer.master == index(id))?.heard;
        let doubted = node.book.add(sender, from < MASTERS, report, heard, now);
        let doubts = node.peers.iter_mut().filter(|peer| doubted.iter().any(|id| index(id) == peer.master));
        doubts.for_each(|peer| peer.pulse.doubt(now));
        if answered || !doubted.is_empty() {
            self.pulse(to);
        }
    }

    /// Hours of all pairs.
    pub(crate) fn hours(&self) -> f64 {
        self.nodes.iter().map(|node| node.peers.len()).sum::<usize>() as f64 * self.ms as f64 / 3.6e6
    }

    /// How many core members a node holds that are not `lost` and answer; a core member needs none.
    pub(crate) fn holds(&self, node: usize, lost: &[bool]) -> usize {
        let topology = &self.nodes[node].topology;
        let answering = topology.attachment().answering().filter(|(id, _)| !lost[index(id)]);
        if topology.place() == Place::Attached { answering.count() } else { usize::MAX }
    }

    /// Who is in the core now.
    pub(crate) fn core(&self) -> Vec<usize> {
        let core = |node: &usize| self.nodes[*node].up && self.nodes[*node].topology.place() == Place::Core;
        (0..self.nodes.len()).filter(core).collect()
    }
}
