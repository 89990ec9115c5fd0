//! The loop: hears, looks, polls the elections and has their actions carried out, and sleeps until the next
//! is due.

use std::collections::BTreeMap;
use std::future::poll_fn;
use std::io;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use proto::arp::Mac;
use proto::cause::Cause;
use proto::control::Response;
use proto::election::wire::unpack;
use proto::election::{Election, EligibilityFact, MessageLimiter, VipRules};
use proto::node::NodeId;
use proto::settings::VipSettings;
use proto::time::Moment;
use proto::unfit::Unfit;
use rustix::time::{ClockId, clock_gettime};
use tokio::sync::{mpsc, oneshot, watch};
use tracing::{debug, warn};

use super::kernel::{HeldAddress, KernelChange, KernelWatch, LinkState, VipKernel};
use super::packet::AddressSighting;
use super::segment::{NoSegment, VipPlacement, advice, place};
use super::segments::{self, L2Segments};
use super::{VipCommand, VipInputs, VipReport};
use crate::lifecycle::Lifecycle;

/// Time between a change of interfaces or addresses and the look at them: they come in bursts.
pub(super) const SETTLE: Duration = Duration::from_millis(20);
/// The second net, should a change go unheard, and for round-trip times and reports.
const TICK: Duration = Duration::from_secs(1);
/// What the kernel has refused is tried again after this time.
const RETRY: Duration = Duration::from_secs(30);
/// Between two looks without a cause.
const LOOK: Duration = Duration::from_secs(10);
/// A loop later than this looks at its elections before it hears anything that has waited.
const LATE: Duration = Duration::from_millis(100);
/// Messages that are read before the elections are polled again.
const BATCH: usize = 64;
/// By then all have gossiped where they stand: a few rounds.
pub(super) const GOSSIPED: Duration = Duration::from_secs(5);
/// A peer heard within this is alive, so that its silence elsewhere means something.
const HEARD: Duration = Duration::from_secs(2);

/// One virtual IP.
pub(super) struct DrivenVip {
    pub(super) settings: VipSettings,
    pub(super) election: Election,
    pub(super) rules: VipRules,
    pub(super) place: Result<VipPlacement, NoSegment>,
    /// The interface that it was set on, while it is.
    pub(super) held: Option<u32>,
    /// The kernel has refused it, and when.
    pub(super) refused: Option<(Moment, Unfit)>,
    /// It is no setting any more and only says goodbye.
    pub(super) leaving: bool,
    pub(super) made: Moment,
    /// When the owner was last asked whether its agent is there.
    pub(super) knocked: Moment,
    pub(super) seen: super::report::ReportedState,
}

/// Everything, in one task.
pub(super) struct VipDriver {
    pub(super) inputs: VipInputs,
    pub(super) report: watch::Sender<Arc<VipReport>>,
    pub(super) life: Lifecycle,
    pub(super) own: NodeId,
    pub(super) kernel: Option<VipKernel>,
    pub(super) changes: Option<KernelWatch>,
    pub(super) vips: BTreeMap<IpAddr, DrivenVip>,
    pub(super) segments: L2Segments,
    pub(super) interfaces: Vec<LinkState>,
    pub(super) addresses: Vec<HeldAddress>,
    /// Why this node can't take part.
    pub(super) problem: Option<Unfit>,
    /// Why a segment can't be opened.
    pub(super) closed: Option<Unfit>,
    pub(super) look: Moment,
    tick: Moment,
    pub(super) checks: u64,
    /// How much each member may say.
    pub(super) intake: MessageLimiter,
    pub(super) dirty: bool,
    /// Wishes that wait for their end: which, to whom, until when.
    pub(super) moves: Vec<(IpAddr, NodeId, Moment, oneshot::Sender<Response>)>,
    pub(super) pending_probes: mpsc::Sender<(IpAddr, NodeId)>,
    knocked: mpsc::Receiver<(IpAddr, NodeId)>,
}

/// What the loop woke for.
enum LoopEvent {
    Time,
    Heard(NodeId, Vec<u8>),
    Claim(segments::SegmentKey, io::Result<AddressSighting>),
    Changed(io::Result<Vec<KernelChange>>),
    Inputs,
    Order(VipCommand),
    /// Nobody listens where an owner's agent should.
    Refused(IpAddr, NodeId),
    Stop,
}

/// Now, on a clock that also counts while the machine sleeps: what was set before has ended then.
pub(super) fn now() -> Moment {
    let time = clock_gettime(ClockId::Boottime);
    let ms = time.tv_sec.unsigned_abs() * 1_000 + time.tv_nsec.unsigned_abs() / 1_000_000;
    Moment::from_millis(ms)
}

impl VipDriver {
    pub(super) fn new(
        inputs: VipInputs,
        report: watch::Sender<Arc<VipReport>>,
        life: Lifecycle,
    ) -> VipDriver {
        let own = inputs.link.own();
        // One for each virtual IP and a few more: they come at most five times a second.
        let (pending_probes, knocked) = mpsc::channel(16);
        VipDriver {
            inputs,
            report,
            life,
            own,
            kernel: None,
            changes: None,
            vips: BTreeMap::new(),
            segments: L2Segments::default(),
            interfaces: Vec::new(),
            addresses: Vec::new(),
            problem: None,
            closed: None,
            look: Moment::ZERO,
            tick: Moment::ZERO,
            checks: 0,
            intake: MessageLimiter::default(),
            dirty: true,
            moves: Vec::new(),
            pending_probes,
            knocked,
        }
    }

    /// Runs until the process stops and every election has said goodbye.
    pub(super) async fn run(&mut self) {
        self.begin();
        let stopping = self.life.draining.clone();
        let mut stopped = false;
        self.apply_settings();
        loop {
            self.act();
            if stopped && self.vips.is_empty() {
                return;
            }
            let next = self.deadline();
            let turn = self.run_once(next, stopped, &stopping).await;
            if now().since(next) >= LATE {
                self.act();
            }
            match turn {
                LoopEvent::Stop => {
                    stopped = true;
                    self.vips.values_mut().for_each(|vip| vip.leave());
                }
                LoopEvent::Inputs if stopped => {}
                turn => self.take(turn),
            }
        }
    }

    /// Forgets what an earlier run, which has failed, left behind, and begins as after a start of the agent:
    /// at no address, with the epochs that were known.
    fn begin(&mut self) {
        self.inputs.epochs.extend(self.report.borrow().epochs.clone());
        (self.kernel, self.changes, self.problem, self.closed) = (None, None, None, None);
        (self.vips, self.segments) = (BTreeMap::new(), L2Segments::default());
        (self.interfaces, self.addresses, self.moves) = (Vec::new(), Vec::new(), Vec::new());
        (self.look, self.tick, self.checks, self.dirty) = (Moment::ZERO, Moment::ZERO, 0, true);
    }

    async fn run_once(
        &mut self,
        next: Moment,
        stopped: bool,
        stopping: &tokio_util::sync::CancellationToken,
    ) -> LoopEvent {
        let VipDriver { inputs, changes, segments, knocked, .. } = self;
        let change = async {
            match changes {
                Some(changes) => changes.next().await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            () = tokio::time::sleep(next.since(now())) => LoopEvent::Time,
            Some((from, message)) = inputs.arrivals.recv() => LoopEvent::Heard(from, message),
            (key, claim) = poll_fn(|context| segments.poll_claim(context)) => LoopEvent::Claim(key, claim),
            changed = change => LoopEvent::Changed(changed),
            Ok(()) = inputs.trust.changed() => LoopEvent::Inputs,
            Ok(()) = inputs.settings.changed() => LoopEvent::Inputs,
            Ok(()) = inputs.view.changed() => LoopEvent::Inputs,
            Ok(()) = inputs.fit.changed() => LoopEvent::Inputs,
            Some(order) = inputs.orders.recv() => LoopEvent::Order(order),
            Some((vip, node)) = knocked.recv() => LoopEvent::Refused(vip, node),
            () = stopping.cancelled(), if !stopped => LoopEvent::Stop,
        }
    }

    fn take(&mut self, turn: LoopEvent) {
        let now = now();
        match turn {
            LoopEvent::Time | LoopEvent::Stop => {}
            LoopEvent::Heard(from, message) => {
                self.hear(now, from, &message);
                for _ in 0..BATCH {
                    let Ok((from, message)) = self.inputs.arrivals.try_recv() else { break };
                    self.hear(now, from, &message);
                }
            }
            LoopEvent::Claim(key, Ok(claim)) => self.claimed(now, key, claim),
            // The interface is down or gone; its change comes by netlink.
            LoopEvent::Claim(_, Err(_)) => {}
            LoopEvent::Changed(Ok(changes)) => {
                let ours = |change: &KernelChange| match change {
                    KernelChange::Gone(ip, index) => {
                        self.vips.get(ip).is_some_and(|vip| vip.held == Some(*index))
                    }
                    KernelChange::Something => false,
                };
                let wait = if changes.iter().any(ours) { Duration::ZERO } else { SETTLE };
                if changes.contains(&KernelChange::Something) || wait.is_zero() {
                    self.look = self.look.min(now.after(wait));
                }
            }
            LoopEvent::Changed(Err(error)) => {
                warn!("no notifications of interface changes, polling instead: {error}");
                self.changes = None;
            }
            LoopEvent::Inputs => self.apply_settings(),
            LoopEvent::Order(order) => self.start_move(now, order),
            LoopEvent::Refused(vip, node) => {
                if let Some(vip) = self.vips.get_mut(&vip) {
                    vip.election.refused(now, &node);
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
        if !self.intake.admit(now, from, messages.len().max(1)) {
            return;
        }
        for message in messages {
            if let Some(vip) = self.vips.get_mut(&message.vip) {
                vip.election.receive(now, from, &message);
            }
        }
    }

    fn claimed(&mut self, now: Moment, key: segments::SegmentKey, claim: AddressSighting) {
        // Another card of this node on the same segment answers for all of its addresses (arp_filter=0).
        if self.interfaces.iter().any(|one| one.mac == Some(claim.mac)) {
            return;
        }
        if let Some(segment) = self.segments.get_mut(&key) {
            segment.test.answered(now, claim.ip, claim.mac);
        }
        if self.vips.contains_key(&claim.ip) {
            let member = self.owner_of_mac(claim.ip, claim.mac);
            let Some(vip) = self.vips.get_mut(&claim.ip) else { return };
            // Members that have started together may not have said which cards are theirs: between owners
            // beats decide. Who does not own it takes everyone unknown for a stranger, and waits.
            if member.is_some() || !vip.election.owns() || now.since(vip.made) >= GOSSIPED {
                vip.election.address_sighted(now, claim.mac, member);
            }
        }
        self.update_facts(now);
    }

    /// The member whose card this is: by what it gossips, or, sooner, by where the kernel finds the addresses
    /// that the link knows.
    fn owner_of_mac(&mut self, vip: IpAddr, mac: Mac) -> Option<NodeId> {
        let view = self.inputs.view.borrow().clone();
        if let Some(member) = segments::member_with(&view, mac) {
            return Some(member);
        }
        let there =
            self.kernel.as_mut().and_then(|kernel| kernel.neighbours_at(mac).ok()).unwrap_or_default();
        let document = self.inputs.trust.borrow().document.clone();
        let book = self.inputs.link.addresses();
        let lives = |id: &&NodeId| book.all(id).iter().any(|at| there.contains(&at.ip()) && at.ip() != vip);
        document.members().map(|(id, _)| id).find(lives).copied()
    }

    /// Looks at what is due by time; returns when something is next.
    fn deadline(&mut self) -> Moment {
        let at = now();
        if self.vips.is_empty() {
            return at.after(Duration::from_secs(3_600));
        }
        let elections = self.vips.values().map(|vip| vip.election.deadline());
        let next = elections.chain(self.segments.deadline()).chain([self.look, self.tick]).min();
        next.unwrap_or(at)
    }

    /// What is due apart from the elections.
    pub(super) fn run_due_tasks(&mut self, now: Moment) {
        if self.vips.is_empty() {
            return;
        }
        if now >= self.tick {
            self.tick = now.after(TICK);
            self.dirty = true;
            self.set_rules(now);
            if !self.listens() {
                self.look = now;
            }
            self.update_facts(now);
        }
        if now >= self.look {
            self.look = now.after(LOOK);
            self.look_at_kernel(now);
            self.update_facts(now);
        }
        if self.segments.test(now) {
            self.update_facts(now);
        }
    }

    fn look_at_kernel(&mut self, now: Moment) {
        let Some(kernel) = &mut self.kernel else { return };
        match (kernel.interfaces(), kernel.addresses()) {
            (Ok(interfaces), Ok(addresses)) => (self.interfaces, self.addresses) = (interfaces, addresses),
            (Err(error), _) | (_, Err(error)) => {
                warn!("cannot list interfaces and addresses: {error}");
                return;
            }
        }
        let mut wanted: BTreeMap<segments::SegmentKey, (VipPlacement, Vec<IpAddr>)> = BTreeMap::new();
        for (address, vip) in &mut self.vips {
            let ours = |held: &HeldAddress| held.ip == *address && vip.held == Some(held.index);
            let others: Vec<HeldAddress> =
                self.addresses.iter().filter(|held| !ours(held)).cloned().collect();
            vip.place = place(*address, vip.settings.interface.as_deref(), &self.interfaces, &others);
            let Ok(place) = &vip.place else { continue };
            let on = vip.held.unwrap_or(place.index);
            let present =
                self.addresses.iter().any(|held| held.ip == *address && held.index == on && held.ends);
            vip.election.address(now, present && on == place.index);
            if on != place.index {
                // It belongs on another interface now, where the election will put it back.
                let _ = kernel.drop(*address, on);
                vip.held = None;
            }
            let candidate = vip.rules.candidates.iter().any(|one| one.node == self.own);
            if candidate && !vip.leaving {
                let entry = wanted.entry(segments::key(place)).or_insert_with(|| (place.clone(), Vec::new()));
                entry.1.push(*address);
            }
        }
        self.closed = self.segments.reconcile(now, wanted);
        let view = self.inputs.view.borrow().clone();
        let trusted = self.trusted();
        self.segments.apply_records(now, self.own, &view, &trusted);
        self.dirty = true;
    }

    /// Tells the elections what holds and what does not.
    pub(super) fn update_facts(&mut self, now: Moment) {
        let draining = self.inputs.fit.borrow().draining;
        let document = self.inputs.trust.borrow().document.clone();
        let view = self.inputs.view.borrow().clone();
        let (link, life) = (self.inputs.link.clone(), self.life.clone());
        let heard =
            |id: &NodeId| link.datagrams().last_heard(id).is_some_and(|at| life.now().since(at) < HEARD);
        let name = |id: &NodeId| document.member(id).map_or("?".to_owned(), |one| one.name.to_string());
        let trusted = self.trusted();
        for (address, vip) in &mut self.vips {
            vip.refused.take_if(|(at, _)| now.since(*at) >= RETRY);
            let refused = vip.refused.as_ref().map(|(_, why)| why);
            let blocked = self.problem.as_ref().or(self.closed.as_ref()).or(refused).cloned();
            vip.fact(now, EligibilityFact::Capability, blocked.map_or(Ok(()), Err));
            let drains = || Err(Unfit::new(Cause::Draining, "it is draining"));
            vip.fact(now, EligibilityFact::Draining, if draining { drains() } else { Ok(()) });
            let (own, segment) = match &vip.place {
                Ok(_) => (Ok(()), Ok(())),
                Err(NoSegment::Own(why)) => (Err(why.clone()), Ok(())),
                Err(NoSegment::Segment(why)) => (Ok(()), Err(why.clone())),
            };
            // A worker's word counts where it has proven that it is at that very address.
            let lives = |id: &NodeId| link.addresses().is_proven(id, *address);
            let taken = segments::node_at(&view, *address, |id| trusted.contains(id) || lives(id));
            let taken = taken.map(|node| {
                let name = name(&node);
                let reason = format_args!("{address} is the own address of {name}; choose an unused one");
                Err(Unfit::new(Cause::OwnAddress, reason))
            });
            vip.fact(now, EligibilityFact::Address, taken.unwrap_or(own));
            let Ok(place) = vip.place.clone() else {
                vip.fact(now, EligibilityFact::Segment, segment);
                continue;
            };
            let down = || Err(Unfit::new(Cause::LinkDown, format_args!("{} is down", place.name)));
            vip.fact(now, EligibilityFact::Link, if place.up { Ok(()) } else { down() });
            let interface = self.interfaces.iter().find(|one| one.index == place.index);
            let segment = match (
                interface.and_then(|one| advice(*address, one)),
                self.segments.get_mut(&segments::key(&place)),
            ) {
                (Some(advice), _) => Err(advice),
                (None, Some(segment)) => segment.test.verdict(now, &place.name, heard, name),
                (None, None) => {
                    let reason = format_args!("{} is not open yet", place.name);
                    Err(Unfit::new(Cause::SegmentUntested, reason))
                }
            };
            vip.fact(now, EligibilityFact::Segment, segment);
        }
    }
}

impl DrivenVip {
    /// `epoch`: the highest that is known from before.
    pub(super) fn new(own: NodeId, settings: VipSettings, epoch: u64, now: Moment) -> DrivenVip {
        let mut election = Election::new(own, settings.address, now);
        if !election.set_minimum_epoch(epoch) {
            warn!(vip = %settings.address, "ignoring the impossible stored epoch {epoch}");
        }
        DrivenVip {
            election,
            settings,
            rules: VipRules::default(),
            place: Err(NoSegment::Segment(Unfit::new(Cause::SegmentUntested, "not tested yet"))),
            held: None,
            refused: None,
            leaving: false,
            made: now,
            knocked: Moment::ZERO,
            seen: super::report::ReportedState::default(),
        }
    }

    pub(super) fn leave(&mut self) {
        self.leaving = true;
        self.election.stop(now());
    }

    /// Said each time, though it is seldom news: what is shown of it may be.
    pub(super) fn fact(&mut self, now: Moment, fact: EligibilityFact, holds: Result<(), Unfit>) {
        self.election.set_fact(now, fact, holds);
    }
}
