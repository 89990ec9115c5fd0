//! Nodes, their kernels, and the network between them.

pub(crate) mod faults;
mod judge;
pub(crate) mod liar;
#[path = "../../random/mod.rs"]
mod random;

use std::collections::{BTreeSet, VecDeque};
use std::net::{IpAddr, Ipv4Addr};
use std::rc::Rc;
use std::time::Duration;

use faults::{Act, Script};
use liar::{Liar, Lie};
use proto::arp::Mac;
use proto::cause::Cause;
use proto::election::wire::{MessageKind, pack, unpack};
use proto::election::{
    Action, Candidate, Election, EligibilityFact, LossReason, ReleaseReason, VipEvent, VipMessage, VipRules,
};
use proto::node::NodeId;
use proto::time::Moment;
pub(crate) use random::Dice;

pub(crate) const VIP: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 91, 91, 50));
const ROUND: u64 = 64;
const STRANGER: Mac = Mac([0xde, 0xad, 0xbe, 0xef, 0, 1]);

#[derive(Clone)]
enum Input {
    Message(NodeId, Rc<VipMessage>),
    Seen(Option<NodeId>),
    Address,
}

/// One machine: its kernel and its agent.
pub(crate) struct Node {
    id: NodeId,
    priority: Option<u8>,
    /// What its role in the cluster is.
    master: bool,
    powered: bool,
    agent: Option<Election>,
    frozen: bool,
    /// Since when it was frozen last, until when, and the epoch that it owned then.
    froze: u64,
    woke: Option<(u64, u64)>,
    froze_epoch: Option<u64>,
    carrier: bool,
    /// Milliseconds of its own clock at the origin, and for each second of the world.
    offset: u64,
    rate: u64,
    /// Until when its kernel has the address.
    kernel: Option<u64>,
    /// Since when its kernel has it though its agent does not own it.
    orphan: Option<u64>,
    missing: Option<u64>,
    inbox: VecDeque<Input>,
    next_check: u64,
    sick: bool,
    flapping: bool,
    draining: bool,
    bad_checks: u32,
    unfit_since: Option<u64>,
    owned_since: Option<u64>,
    /// When something was last done to it.
    touched: u64,
    excuses: BTreeSet<ReleaseReason>,
    epoch: u64,
    /// When that changed last.
    stepped: u64,
    disk: u64,
    neighbour: Option<NodeId>,
}

impl Node {
    fn local(&self, now: u64) -> Moment {
        Moment::from_millis(self.offset + now * self.rate / 1000)
    }

    fn runs(&self) -> bool {
        self.powered && !self.frozen && self.agent.is_some()
    }

    fn owns(&self) -> bool {
        self.agent.as_ref().is_some_and(Election::owns)
    }

    fn eligible(&self) -> bool {
        self.priority.is_some() && self.bad_checks == 0 && !self.draining && self.carrier
    }
}

/// One direction between two nodes.
#[derive(Clone, Copy, Default)]
struct Way {
    udp_cut: bool,
    l2_cut: bool,
    changed: u64,
}

pub(crate) struct World {
    now: u64,
    dice: Dice,
    candidates: usize,
    pub(crate) nodes: Vec<Node>,
    ways: Vec<Vec<Way>>,
    loss_permille: u64,
    ever_lossy: u64,
    jitter: u64,
    stranger: bool,
    /// A worker that lies.
    pub(crate) liar: Option<Liar>,
    preempt: bool,
    /// What is under way, by the moment of arrival: no delay is longer than the round.
    flying: Vec<Vec<(usize, Input)>>,
    /// When something last changed.
    changed: u64,
    judged: judge::Memory,
    pub(crate) broken: Vec<String>,
    log: Vec<String>,
    pub(crate) claims: u64,
}

/// Whether it is a beat of an owner that the agent lets go with the answer to a pulse: every other one, since pulses
/// come every 100 ms.
fn goes_with_answer(from: NodeId, message: &VipMessage, now: Moment) -> bool {
    let owner = message.known.and_then(|known| known.holder());
    message.purpose == MessageKind::Beat && owner == Some(from) && now.as_millis() % 100 < 50
}

fn id(n: usize) -> NodeId {
    // Spread, so that the order of ids is not the order of creation.
    let mut bytes = [0; 10];
    bytes[0] = (n as u8).wrapping_mul(97);
    bytes[9] = n as u8;
    NodeId(bytes)
}

impl World {
    pub(crate) fn new(mut dice: Dice, script: &Script) -> World {
        let count = script.candidates + script.witnesses;
        let node = |n: usize, dice: &mut Dice| Node {
            id: id(n),
            priority: (n < script.candidates)
                .then(|| if script.priorities { [50, 100, 100, 200][dice.next() as usize % 4] } else { 100 }),
            master: match n {
                n if n < script.candidates => script.masters,
                n => dice.percent(20) && script.liar.is_none_or(|liar| liar.node != n),
            },
            powered: true,
            agent: None,
            frozen: false,
            froze: 0,
            woke: None,
            froze_epoch: None,
            carrier: true,
            offset: dice.between(10_000, 10_000_000),
            rate: dice.between(1000 - script.skew, 1000 + script.skew),
            kernel: None,
            orphan: None,
            missing: None,
            inbox: VecDeque::new(),
            next_check: 0,
            sick: false,
            flapping: false,
            draining: false,
            bad_checks: 0,
            unfit_since: None,
            owned_since: None,
            touched: 0,
            excuses: BTreeSet::new(),
            epoch: 0,
            stepped: 0,
            disk: 0,
            neighbour: None,
        };
        let nodes: Vec<Node> = (0..count).map(|n| node(n, &mut dice)).collect();
        World {
            now: 0,
            candidates: script.candidates,
            nodes,
            ways: vec![vec![Way::default(); count]; count],
            loss_permille: script.loss_permille,
            ever_lossy: if script.loss_permille > 0 { u64::MAX } else { 0 },
            jitter: script.jitter,
            stranger: false,
            liar: script.liar,
            preempt: script.preempt,
            flying: (0..ROUND).map(|_| Vec::new()).collect(),
            changed: 0,
            judged: judge::Memory::default(),
            broken: Vec::new(),
            log: Vec::new(),
            claims: 0,
            dice,
        }
    }

    pub(crate) fn report(&self, seed: u64) -> String {
        let skip = self.log.len().saturating_sub(120);
        let log = self.log[skip..].join("\n  ");
        format!("ELECTION_SEED={seed}\n  {log}\n  BROKEN: {}", self.broken.join("\n  BROKEN: "))
    }

    fn note(&mut self, text: String) {
        self.log.push(format!("{:6} {text}", self.now));
    }

    fn index(&self, id: NodeId) -> usize {
        usize::from(id.0[9])
    }

    /// Starts an agent.
    fn start(&mut self, n: usize) {
        let now = self.nodes[n].local(self.now);
        let mut agent = Election::new(self.nodes[n].id, VIP, now);
        if self.dice.percent(50) {
            agent.set_minimum_epoch(self.nodes[n].disk);
        }
        agent.set_rules(now, self.rules());
        agent.set_fact(now, EligibilityFact::Segment, Ok(()));
        let node = &mut self.nodes[n];
        let _ =
            (!node.carrier).then(|| agent.set_fact(now, EligibilityFact::Link, Err(Cause::LinkDown.into())));
        let _ = node
            .draining
            .then(|| agent.set_fact(now, EligibilityFact::Draining, Err(Cause::Draining.into())));
        node.agent = Some(agent);
        node.inbox.clear();
        node.frozen = false;
        node.bad_checks = 0;
        node.epoch = 0;
        node.neighbour = None;
        node.excuses.insert(ReleaseReason::Restart);
        node.touched = self.now;
        node.next_check = self.now + 20;
        self.changed = self.now;
        self.follow(100);
    }

    /// Gossip tells everyone who is there.
    fn follow(&mut self, percent: u64) {
        let rules = self.rules();
        for node in &mut self.nodes {
            if !self.dice.percent(percent) {
                continue;
            }
            let local = node.local(self.now);
            if let Some(agent) = node.agent.as_mut().filter(|_| !node.frozen) {
                agent.set_rules(local, rules.clone());
            }
        }
    }

    fn rules(&self) -> VipRules {
        let candidates = self
            .nodes
            .iter()
            .filter_map(|node| Some(Candidate { node: node.id, priority: node.priority?, unfit: None }));
        VipRules {
            candidates: candidates.collect(),
            witnesses: self.nodes.iter().filter(|node| node.powered).map(|node| node.id).collect(),
            silent: Default::default(),
            masters: self.nodes.iter().filter(|node| node.master).map(|node| node.id).collect(),
            preempt: self.preempt.then_some(Duration::from_secs(2)),
            turn: 1,
            rtt: Duration::from_millis(if self.jitter > 10 { self.jitter * 2 } else { 0 }),
        }
    }

    pub(crate) fn run(&mut self, script: Script) {
        for (n, at) in script.starts.iter().enumerate() {
            // Whoever starts later is off until then.
            self.nodes[n].powered = *at == 0;
            if *at == 0 {
                self.start(n);
            }
        }
        let mut acts: VecDeque<(u64, Act, usize, usize)> = script.acts.into();
        for (n, at) in script.starts.iter().enumerate().filter(|(_, at)| **at > 0) {
            let place = acts.partition_point(|(when, ..)| when < at);
            acts.insert(place, (*at, Act::PowerOn, n, n));
        }
        while self.now < script.length && self.broken.is_empty() {
            while acts.front().is_some_and(|(at, ..)| *at <= self.now) {
                if let Some((_, act, a, b)) = acts.pop_front() {
                    self.act(act, a, b);
                }
            }
            self.step();
        }
    }

    /// One millisecond.
    fn step(&mut self) {
        if self.now % 1_000 == 999 {
            self.follow(100);
        }
        for n in 0..self.nodes.len() {
            if self.nodes[n].kernel.is_some_and(|until| until <= self.now) {
                self.nodes[n].kernel = None;
                self.give(n, Input::Address);
            }
            if self.nodes[n].runs() && self.nodes[n].next_check <= self.now {
                self.check(n);
            }
        }
        self.lie();
        for (to, input) in std::mem::take(&mut self.flying[(self.now % ROUND) as usize]) {
            self.give(to, input);
        }
        for n in 0..self.nodes.len() {
            let node = &self.nodes[n];
            let due = node.agent.as_ref().is_some_and(|agent| agent.deadline() <= node.local(self.now));
            if node.runs() && due {
                self.poll(n);
            }
        }
        self.judge();
        self.now += 1;
    }

    /// A check of the service, four times a second.
    fn check(&mut self, n: usize) {
        let flap = self.dice.percent(60);
        let now = self.now;
        let node = &mut self.nodes[n];
        node.next_check = now + 250;
        let local = node.local(now);
        let good = !(node.sick || node.flapping && flap);
        let was = node.bad_checks > 0;
        node.bad_checks = if good { 0 } else { node.bad_checks + 1 };
        if was != (node.bad_checks > 0) {
            self.changed = now;
        }
        let node = &mut self.nodes[n];
        if let Some(agent) = &mut node.agent {
            agent.checked(local, if good { Ok(()) } else { Err(Cause::TimedOut.into()) });
        }
        if node.bad_checks >= 3 {
            node.excuses.insert(ReleaseReason::Unfit);
        }
    }

    /// Gives an input to an agent, or to the queue of its socket while it is frozen.
    fn give(&mut self, n: usize, input: Input) {
        let now = self.now;
        let node = &mut self.nodes[n];
        if !node.powered || node.agent.is_none() {
            return;
        }
        if node.frozen {
            if node.inbox.len() < 300 {
                node.inbox.push_back(input);
            }
            return;
        }
        let local = node.local(now);
        let has = node.kernel.is_some();
        let Some(agent) = &mut node.agent else { return };
        match input {
            Input::Message(from, message) => agent.receive(local, from, &message),
            Input::Seen(who) => {
                let mac = who.map_or(STRANGER, |id| Mac([2, 0, 0, 0, 0, id.0[9]]));
                agent.address_sighted(local, mac, who);
            }
            // The shell looks again before it tells.
            Input::Address => agent.address(local, has),
        }
    }

    fn poll(&mut self, n: usize) {
        let local = self.nodes[n].local(self.now);
        let Some(agent) = &mut self.nodes[n].agent else { return };
        let actions = agent.poll(local);
        let over = agent.is_finished(local);
        for action in actions {
            self.carry_out(n, action);
        }
        if over {
            self.nodes[n].agent = None;
            self.nodes[n].touched = self.now;
        }
    }

    fn carry_out(&mut self, n: usize, action: Action) {
        let now = self.now;
        let expiry = |lifetime: Duration, rate: u64| Some(now + lifetime.as_millis() as u64 * 1000 / rate);
        match action {
            Action::Send { to, message } => {
                let wire = pack(std::slice::from_ref(&message));
                let read = unpack(&wire.concat());
                assert_eq!(read.as_deref(), Ok(std::slice::from_ref(&message)));
                if self.liar.is_some_and(|liar| liar.node == n && liar.silent) {
                    return;
                }
                let from = self.nodes[n].id;
                let rides = goes_with_answer(from, &message, self.nodes[n].local(now));
                let message = Rc::new(message);
                for to in to {
                    let to = self.index(to);
                    // The pulse may be lost, too.
                    if !self.ways[n][to].udp_cut && self.carriers(n, to) && !(rides && self.is_lost()) {
                        self.fly(to, Input::Message(from, Rc::clone(&message)));
                    }
                }
            }
            Action::Add { lifetime } | Action::Renew { lifetime } => {
                self.nodes[n].kernel = expiry(lifetime, self.nodes[n].rate);
                self.nodes[n].missing = None;
            }
            Action::Delete => self.nodes[n].kernel = None,
            Action::Probe => {
                for other in 0..self.nodes.len() {
                    let node = &self.nodes[other];
                    let (there, who) = (node.powered && node.kernel.is_some(), Some(node.id));
                    let cut = self.ways[n][other].l2_cut || self.ways[other][n].l2_cut;
                    if other != n && there && !cut && self.carriers(n, other) {
                        self.fly(n, Input::Seen(who));
                    }
                }
                if self.stranger && self.nodes[n].carrier {
                    self.fly(n, Input::Seen(None));
                }
            }
            Action::Announce => {
                for other in 0..self.nodes.len() {
                    if other != n && !self.ways[n][other].l2_cut && self.carriers(n, other) {
                        self.fly(other, Input::Seen(Some(self.nodes[n].id)));
                    }
                }
            }
            Action::Neighbour { owner } => self.nodes[n].neighbour = Some(owner),
            Action::Event(event) => {
                if !matches!(event, VipEvent::Moved { .. }) {
                    self.note(format!("node {n}: {event:?}"));
                }
                if let VipEvent::Lost { cause: LossReason::Released(ReleaseReason::Preempt), .. } = event {
                    self.changed = now;
                }
                if let VipEvent::Gained { epoch, from, cause } = event {
                    self.claims += 1;
                    self.judge_claim(n, epoch, from, cause);
                }
            }
        }
    }

    fn carriers(&self, a: usize, b: usize) -> bool {
        self.nodes[a].carrier && self.nodes[b].carrier
    }

    fn is_lost(&mut self) -> bool {
        self.dice.next() % 1000 < self.loss_permille
    }

    fn fly(&mut self, to: usize, input: Input) {
        if self.is_lost() {
            return;
        }
        let delay = if self.jitter == 0 { 0 } else { self.dice.next() % (self.jitter + 1) };
        self.flying[((self.now + 1 + delay) % ROUND) as usize].push((to, input));
    }

    /// A quiet small cluster, one fault of its owner at a random moment, and how long until another node
    /// has the address.
    pub(crate) fn takeover(seed: u64, act: Act, lossy: bool, lie: Option<Lie>) -> u64 {
        let mut dice = Dice(seed ^ 0x5eed);
        let mut script = Script::quiet(&mut dice, if lossy { 10 } else { 0 });
        if lie.is_some() {
            script.witnesses = script.witnesses.max(1);
            script.starts = vec![0; script.candidates + script.witnesses];
            script.liar = Some(Liar::new(script.starts.len() - 1, lie, true));
            script.length += 4_000;
        }
        let mut world = World::new(dice, &script);
        let begin = script.length + world.dice.between(0, 300);
        world.run(Script { length: begin, ..script });
        let Some(owner) = world.nodes.iter().position(Node::owns) else {
            panic!("nobody owned it before the fault: {}", world.report(seed));
        };
        world.act(act, owner, owner);
        let mut from = world.now;
        while world.now < begin + 10_000 && world.broken.is_empty() {
            world.step();
            if act == Act::Sick && world.nodes[owner].bad_checks < 3 {
                from = world.now;
            }
            let has = |(n, node): (usize, &Node)| n != owner && node.kernel.is_some();
            if world.nodes.iter().enumerate().any(has) {
                return world.now - from;
            }
        }
        panic!("nobody took over: {}", world.report(seed));
    }
}
