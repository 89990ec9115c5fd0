//! The loop: hears, looks, polls the elections and has their actions carried out, and sleeps until the next
//! is due. Its parts know nothing of each other; what one has found out it hands to those that it concerns.

mod facts;
mod repeats;
mod steady;

use std::collections::BTreeMap;
use std::future::poll_fn;
use std::io;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use proto::arp::Mac;
use proto::cluster::Document;
use proto::election::wire::{VipMessage, pack, unpack};
use proto::election::{Action, MessageLimiter, VipEvent};
use proto::node::NodeId;
use proto::time::Moment;
use proto::view::ClusterView;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tracing::debug;

use self::steady::SteadyBeats;
use super::agent_probe::AgentProbe;
use super::clock::{now, on_kernel};
use super::events::event;
use super::kernel::KernelAddresses;
use super::local::LocalVips;
use super::lookout::{KernelChange, KernelLookout};
use super::moves::PendingMoves;
use super::packet::AddressSighting;
use super::report::VipReporter;
use super::segments::{self, L2Segments, SegmentKey};
use super::{VipInputs, VipOrder, VipReport};
use crate::lifecycle::{Lifecycle, wall};
use crate::timer::KernelTimer;

/// A loop later than this looks at its elections before it hears anything that has waited.
const LATE: Duration = Duration::from_millis(100);
/// Messages that are read before the elections are polled again.
const BATCH: usize = 64;

/// Everything, in one task.
pub(super) struct VipDriver {
    inputs: VipInputs,
    life: Lifecycle,
    own: NodeId,
    /// How much each member may say.
    limiter: MessageLimiter,
    vips: LocalVips,
    kernel: KernelAddresses,
    lookout: KernelLookout,
    segments: L2Segments,
    agent_probe: AgentProbe,
    moves: PendingMoves,
    reporter: VipReporter,
    /// What others are expected to say again.
    repeats: BTreeMap<NodeId, Vec<Vec<VipMessage>>>,
    beats: SteadyBeats,
    /// When everything is looked at again.
    tick: Moment,
}

/// What the loop woke for.
enum LoopEvent {
    Time,
    Heard(NodeId, Vec<u8>),
    Sighted(SegmentKey, io::Result<AddressSighting>),
    Changed(io::Result<Vec<KernelChange>>),
    Inputs,
    Order(VipOrder),
    /// Nobody listens where an owner's agent should.
    Refused(IpAddr, NodeId),
    Stop,
}

impl VipDriver {
    pub(super) fn new(
        inputs: VipInputs,
        report: watch::Sender<Arc<VipReport>>,
        life: Lifecycle,
    ) -> VipDriver {
        VipDriver {
            own: inputs.link.own(),
            inputs,
            life,
            limiter: MessageLimiter::default(),
            vips: LocalVips::default(),
            kernel: KernelAddresses::default(),
            lookout: KernelLookout::new(),
            segments: L2Segments::default(),
            agent_probe: AgentProbe::new(),
            moves: PendingMoves::default(),
            reporter: VipReporter::new(report),
            repeats: BTreeMap::new(),
            beats: SteadyBeats::default(),
            tick: Moment::ZERO,
        }
    }

    /// Runs until the process stops and every election has said goodbye.
    pub(super) async fn run(&mut self) {
        self.begin();
        let stopping = self.life.draining.clone();
        let (mut timer, mut stopped) = (KernelTimer::boottime(), false);
        self.apply_inputs();
        loop {
            self.act();
            self.end_repeats(now());
            if stopped && self.vips.is_empty() {
                return;
            }
            let next = self.deadline();
            let turn = self.next_event(&mut timer, next, stopped, &stopping).await;
            if now().since(next) >= LATE {
                self.act();
            }
            match turn {
                LoopEvent::Stop => {
                    stopped = true;
                    self.vips.leave_all(now());
                }
                LoopEvent::Inputs if stopped => {}
                turn => self.take(turn),
            }
        }
    }

    /// Forgets what an earlier run, which has failed, left behind, and begins as after a start of the agent:
    /// at no address, with the epochs that were known.
    fn begin(&mut self) {
        self.inputs.epochs.extend(self.reporter.epochs());
        (self.vips, self.moves) = (LocalVips::default(), PendingMoves::default());
        (self.kernel, self.lookout) = (KernelAddresses::default(), KernelLookout::new());
        (self.segments, self.tick) = (L2Segments::default(), Moment::ZERO);
        self.reporter.restart();
    }

    async fn next_event(
        &mut self,
        timer: &mut KernelTimer,
        next: Moment,
        stopped: bool,
        stopping: &CancellationToken,
    ) -> LoopEvent {
        let VipDriver { inputs, lookout, segments, agent_probe, .. } = self;
        tokio::select! {
            () = timer.until(on_kernel(next)) => LoopEvent::Time,
            Some((from, message)) = inputs.arrivals.recv() => LoopEvent::Heard(from, message),
            (key, claim) = poll_fn(|context| segments.poll_claim(context)) => LoopEvent::Sighted(key, claim),
            changed = lookout.changed() => LoopEvent::Changed(changed),
            Ok(()) = inputs.trust.changed() => LoopEvent::Inputs,
            Ok(()) = inputs.settings.changed() => LoopEvent::Inputs,
            Ok(()) = inputs.view.changed() => LoopEvent::Inputs,
            Ok(()) = inputs.fit.changed() => LoopEvent::Inputs,
            Some(order) = inputs.orders.recv() => LoopEvent::Order(order),
            Some((vip, node)) = agent_probe.refused() => LoopEvent::Refused(vip, node),
            () = stopping.cancelled(), if !stopped => LoopEvent::Stop,
        }
    }

    fn take(&mut self, turn: LoopEvent) {
        let now = now();
        self.hear_repeats(now);
        match turn {
            LoopEvent::Time | LoopEvent::Stop => {}
            LoopEvent::Heard(from, message) => {
                self.hear(now, from, &message);
                for _ in 0..BATCH {
                    let Ok((from, message)) = self.inputs.arrivals.try_recv() else { break };
                    self.hear(now, from, &message);
                }
            }
            LoopEvent::Sighted(key, Ok(sighting)) => self.sighted(now, &key, sighting),
            // The interface is down or gone; its change comes by netlink.
            LoopEvent::Sighted(_, Err(_)) => {}
            LoopEvent::Changed(changes) => {
                let VipDriver { lookout, kernel, .. } = self;
                lookout.take(now, changes, |ip, index| kernel.is_held_on(ip, index));
            }
            LoopEvent::Inputs => self.apply_inputs(),
            LoopEvent::Order(VipOrder::Pause(pausing, told)) => {
                self.vips.active_mut().for_each(|vip| vip.election_mut().set_pausing(now, pausing));
                self.act();
                let _ = told.send(());
            }
            LoopEvent::Order(VipOrder::Move(command)) => {
                let document = self.document();
                let asked = self.moves.begin(now, self.own, command, &mut self.vips, &document);
                asked.into_iter().for_each(|(owner, message)| self.send(owner, &[message]));
            }
            LoopEvent::Refused(vip, node) => {
                if let Some(vip) = self.vips.get_mut(&vip) {
                    vip.election_mut().refused(now, &node);
                }
            }
        }
    }

    fn hear(&mut self, now: Moment, from: NodeId, message: &[u8]) {
        let messages = unpack(message).unwrap_or_else(|error| {
            debug!(%from, "unreadable VIP messages: {error}");
            Vec::new()
        });
        // What can't be read counts too: it has cost something.
        if !self.limiter.admit(now, from, messages.len().max(1)) {
            return;
        }
        for message in &messages {
            if let Some(vip) = self.vips.get_mut(&message.vip) {
                vip.election_mut().receive(now, from, message);
            }
        }
        self.expect_repeats(now, from, message, messages);
    }

    /// Someone on a segment says to have an address.
    fn sighted(&mut self, now: Moment, key: &SegmentKey, sighting: AddressSighting) {
        // Another card of this node on the same segment answers for all of its addresses (arp_filter=0).
        if self.kernel.interfaces().iter().any(|one| one.mac == Some(sighting.mac)) {
            return;
        }
        self.segments.answered(now, key, &sighting);
        if self.vips.get(&sighting.ip).is_some() {
            let member = self.owner_of_mac(sighting.ip, sighting.mac);
            if let Some(vip) = self.vips.get_mut(&sighting.ip) {
                vip.sighted(now, sighting.mac, member);
            }
        }
        self.update_facts(now);
    }

    /// The member whose card this is: by what it gossips, or, sooner, by where the kernel finds the addresses
    /// that the link knows.
    fn owner_of_mac(&mut self, vip: IpAddr, mac: Mac) -> Option<NodeId> {
        if let Some(member) = segments::member_with(&self.view(), mac) {
            return Some(member);
        }
        let there = self.kernel.neighbours_at(mac);
        let document = self.document();
        let book = self.inputs.link.addresses();
        let lives = |id: &&NodeId| book.all(id).iter().any(|at| there.contains(&at.ip()) && at.ip() != vip);
        document.members().map(|(id, _)| id).find(lives).copied()
    }

    /// Looks at what is due by time; returns when something is next.
    fn deadline(&self) -> Moment {
        let Some(elections) = self.vips.deadline() else { return now().after(Duration::from_secs(3_600)) };
        let due = [elections, self.lookout.deadline(), self.tick];
        due.into_iter().chain(self.segments.deadline()).fold(elections, Moment::min)
    }

    fn document(&self) -> Arc<Document> {
        self.inputs.trust.borrow().document.clone()
    }

    fn view(&self) -> Arc<ClusterView> {
        self.inputs.view.borrow().clone()
    }
}

/// Decisions, carried out.
impl VipDriver {
    /// Polls every election and does what it says, in its order; messages go last, so that nobody hears of
    /// an address that has not been set or is not gone yet.
    fn act(&mut self) {
        let at = now();
        self.run_due_tasks(at);
        let mut outbox: BTreeMap<NodeId, Vec<VipMessage>> = BTreeMap::new();
        for address in self.vips.addresses() {
            let Some(vip) = self.vips.get_mut(&address) else { continue };
            for action in vip.election_mut().poll(now()) {
                match action {
                    Action::Send { to, message } => {
                        for node in to {
                            outbox.entry(node).or_default().push(message.clone());
                        }
                    }
                    action => self.carry_out(address, action),
                }
            }
        }
        self.send_all(outbox);
        if self.vips.remove_finished(at) {
            self.open_or_close();
        }
        if self.reporter.take_stale() {
            self.publish(at);
        }
    }

    fn send(&self, to: NodeId, messages: &[VipMessage]) {
        for datagram in pack(messages) {
            self.inputs.link.datagrams().send_vip(to, &datagram);
        }
    }

    fn carry_out(&mut self, address: IpAddr, action: Action) {
        let (view, now) = (self.view(), now());
        let VipDriver { vips, kernel, segments, reporter, .. } = self;
        let Some(vip) = vips.get_mut(&address) else { return };
        match (action, vip.place()) {
            (Action::Add { lifetime } | Action::Renew { lifetime }, Ok(place)) => {
                let (on, label) = ((place.index, place.name.as_str()), vip.settings().label.as_deref());
                if let Err(why) = kernel.set(now, address, on, label, lifetime) {
                    vip.set_blocked(now, why);
                }
            }
            (Action::Delete, _) => kernel.withdraw(address),
            (Action::Probe, place) => {
                place.into_iter().for_each(|place| segments.probe(address, place));
                self.probe_agent(now, address);
            }
            (Action::Announce, Ok(place)) => segments.announce(address, place, self.own, &view),
            (Action::Neighbour { owner }, Ok(place)) => {
                let endpoint = segments::endpoint_of_member(&view, &owner, address);
                if let Some(endpoint) = endpoint.filter(|endpoint| place.shares(endpoint))
                    && kernel.move_neighbour(address, place.index, endpoint.mac)
                {
                    reporter.set_stale();
                }
            }
            (Action::Event(happened), _) => {
                reporter.set_stale();
                if let VipEvent::Gained { cause, .. } = &happened {
                    reporter.gained(address, cause);
                }
                let since = reporter.since(address);
                let told = event(self.own, address, happened, &self.document(), since, wall());
                // Nobody is waited for: what does not fit is lost.
                if let Some(told) = told {
                    let _ = self.inputs.tell.try_send(told);
                }
            }
            // Messages are sent together, and without a place nothing can be done.
            (Action::Send { .. }, _) | (_, Err(_)) => {}
        }
    }

    /// Asks whether the agent of a silent owner is there.
    fn probe_agent(&mut self, now: Moment, address: IpAddr) {
        let Some(vip) = self.vips.get(&address).filter(|vip| !vip.election().owns()) else { return };
        let Some(owner) = vip.election().status(now).owner else { return };
        if let Some(at) = self.inputs.link.addresses().best(&owner) {
            self.agent_probe.ask(now, address, owner, at, &self.life);
        }
    }

    /// Says anew what is known, and ends the wishes that have come true or have not in time.
    fn publish(&mut self, now: Moment) {
        let document = self.document();
        let problem = self.kernel.problem().or(self.segments.problem());
        self.reporter.publish(now, self.own, &self.vips, &document, problem);
        for (owner, message) in self.moves.follow(now, self.own, &self.vips, &document) {
            self.send(owner, &[message]);
        }
    }
}
