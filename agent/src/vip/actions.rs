//! Carries out what the elections want: addresses first, then the wire, then messages.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::time::Duration;

use proto::cause::Cause;
use proto::control::Response;
use proto::election::wire::{MessageKind, VipMessage, pack};
use proto::election::{Action, CandidateState, EligibilityFact, Gain, LossReason, MoveError, VipEvent};
use proto::event::{Event as Told, EventKind, EventLevel};
use proto::node::NodeId;
use proto::settings;
use proto::time::{Moment, UnixMs, human};
use proto::unfit::Unfit;
use tokio::net::TcpStream;
use tokio::sync::mpsc;
use tracing::{info, warn};

use super::VipCommand;
use super::driver::{DrivenVip, VipDriver, now};
use super::reset::reset_connections;
use super::segments::{endpoint_of_member, endpoints_of, key};
use crate::lifecycle::{Lifecycle, wall};
use crate::transport::Link;

/// Longest wait for a wish to come true: the time of a handover many times over.
const MOVE: Duration = Duration::from_secs(2);

/// Between two questions to a silent owner's machine whether its agent is there.
const KNOCK: Duration = Duration::from_millis(200);

/// Neighbours that are told of an address one by one.
const TOLD: usize = 64;

impl VipDriver {
    /// Polls every election and does what it says, in its order; messages go last, so that nobody hears of
    /// an address that has not been set or is not gone yet.
    pub(super) fn act(&mut self) {
        let at = now();
        self.run_due_tasks(at);
        let mut outbox: BTreeMap<NodeId, Vec<VipMessage>> = BTreeMap::new();
        let addresses: Vec<IpAddr> = self.vips.keys().copied().collect();
        for address in addresses {
            let Some(vip) = self.vips.get_mut(&address) else { continue };
            for action in vip.election.poll(now()) {
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
        for (node, messages) in outbox {
            for datagram in pack(&messages) {
                self.inputs.link.datagrams().send_vip(node, &datagram);
            }
        }
        let before = self.vips.len();
        self.vips.retain(|_, vip| !(vip.leaving && vip.election.is_finished(at)));
        if self.vips.len() < before {
            self.adjust_capabilities();
        }
        if std::mem::take(&mut self.dirty) {
            self.publish(at);
        }
    }

    fn carry_out(&mut self, address: IpAddr, action: Action) {
        let Some(vip) = self.vips.get_mut(&address) else { return };
        let segment = vip.place.as_ref().ok().and_then(|place| self.segments.get(&key(place)));
        match action {
            Action::Add { lifetime } | Action::Renew { lifetime } => self.set_address(address, lifetime),
            Action::Delete => self.withdraw(address),
            Action::Probe => {
                if let Some(segment) = segment {
                    segment.wire.probe(address);
                }
                if !vip.election.owns() {
                    probe_agent(vip, &self.inputs.link, &self.pending_probes, &self.life);
                }
            }
            Action::Announce => {
                let Some(segment) = segment else { return };
                segment.wire.announce(address);
                let view = self.inputs.view.borrow().clone();
                for (_, endpoint) in endpoints_of(&view, self.own, &segment.place).into_iter().take(TOLD) {
                    segment.wire.announce_to(address, endpoint.mac, endpoint.address);
                }
            }
            Action::Neighbour { owner } => {
                let view = self.inputs.view.borrow().clone();
                let (Ok(place), Some(kernel)) = (&vip.place, &mut self.kernel) else { return };
                let endpoint =
                    endpoint_of_member(&view, &owner, address).filter(|endpoint| place.shares(endpoint));
                let Some(endpoint) = endpoint else { return };
                if let Err(error) = kernel.move_neighbour(address, place.index, endpoint.mac) {
                    warn!("cannot set the neighbour entry of {address}, relying on ARP: {error}");
                }
                self.dirty = true;
            }
            Action::Event(event) => {
                self.dirty = true;
                if let VipEvent::Gained { cause, .. } = &event {
                    vip.seen.gained(cause);
                }
                self.publish_event(address, event);
            }
            Action::Send { .. } => {}
        }
    }

    /// Sets the address, or lengthens its time.
    fn set_address(&mut self, address: IpAddr, lifetime: Duration) {
        let (Some(vip), Some(kernel)) = (self.vips.get_mut(&address), &mut self.kernel) else { return };
        let Ok(place) = &vip.place else { return };
        let seconds = u32::try_from(lifetime.as_secs()).unwrap_or(2).max(1);
        match kernel.hold(address, place.index, vip.settings.label.as_deref(), seconds) {
            Ok(()) => {
                vip.held = Some(place.index);
                vip.refused = None;
            }
            Err(error) => {
                let reason = format_args!("the kernel rejects {address} on {}: {error}", place.name);
                let (at, why) = (now(), Unfit::new(Cause::KernelRefused, reason));
                if vip.refused.replace((at, why.clone())).is_none() {
                    warn!("{why}");
                }
                vip.fact(at, EligibilityFact::Capability, Err(why));
            }
        }
    }

    /// Takes the address away, its connections first, while a reset can still leave.
    fn withdraw(&mut self, address: IpAddr) {
        let (Some(vip), Some(kernel)) = (self.vips.get_mut(&address), &mut self.kernel) else { return };
        let mut places: Vec<u32> = vip.held.take().into_iter().collect();
        // What an agent has left that was killed; only that ends by itself.
        let lone = if address.is_ipv4() { 32 } else { 128 };
        let listed = kernel.addresses().unwrap_or_default();
        let left = listed.iter().filter(|held| held.ip == address && held.ends && held.prefix == lone);
        for held in left {
            if !places.contains(&held.index) {
                places.push(held.index);
            }
        }
        if places.is_empty() {
            return;
        }
        let ended = reset_connections(address);
        for index in places {
            if let Err(error) = kernel.drop(address, index) {
                warn!("cannot remove {address}, which will expire: {error}");
            }
        }
        info!(vip = %address, connections = ended, "address removed");
    }

    /// Begins what a person wishes.
    pub(super) fn start_move(&mut self, now: Moment, order: VipCommand) {
        let document = self.inputs.trust.borrow().document.clone();
        let VipCommand { address, node, reply } = order;
        let refuse = |reply: tokio::sync::oneshot::Sender<Response>, text: String| {
            let _ = reply.send(Response::Failed(text));
        };
        let Some(vip) = self.vips.get_mut(&address).filter(|vip| !vip.leaving) else {
            let all: Vec<String> = self.vips.keys().map(IpAddr::to_string).collect();
            let all = if all.is_empty() {
                "none; set one: agent set vip=ADDRESS".to_owned()
            } else {
                all.join(", ")
            };
            return refuse(
                reply,
                format!("{address} is not a virtual IP of this cluster; the virtual IPs are: {all}"),
            );
        };
        let name = match settings::member(&document, &node) {
            Ok(name) => name,
            Err(error) => return refuse(reply, error.to_string()),
        };
        let Some((id, _)) = document.members().find(|(_, one)| one.name == name) else { return };
        let owner = vip.election.status(now).owner;
        let candidates = &vip.rules.candidates;
        let unfit = candidates.iter().find(|one| one.node == *id).and_then(|one| one.unfit.clone());
        let looks_on = candidates.iter().all(|one| one.node != self.own);
        match (vip.election.move_to(now, *id), owner) {
            (Ok(()), _) => self.moves.push((address, *id, now.after(MOVE), reply)),
            // A node that only looks on doesn't hear those in waiting; the owner does.
            (Err(MoveError::NotHeard), Some(owner)) if looks_on && unfit.is_none() => {
                self.send_move_request(address, owner, *id);
                self.moves.push((address, *id, now.after(MOVE), reply));
            }
            (Err(error), _) => {
                let unfit = unfit.filter(|_| error == MoveError::NotHeard);
                let why = unfit.map_or_else(|| error.to_string(), |unfit| unfit.to_string());
                refuse(reply, format!("cannot move {address} to {name}: {why}"));
            }
        }
    }

    /// Tells an owner what a person wishes. It may come twice: who does not own it passes over it.
    pub(super) fn send_move_request(&self, address: IpAddr, owner: NodeId, to: NodeId) {
        let (purpose, state) = (MessageKind::Move(to), CandidateState::Witness);
        let message = VipMessage { vip: address, purpose, known: None, heard: None, state };
        for datagram in pack(&[message]) {
            self.inputs.link.datagrams().send_vip(owner, &datagram);
        }
    }

    /// Tells of it as an event, which the log shows too. Nobody is waited for: what does not fit is lost.
    fn publish_event(&self, address: IpAddr, event: VipEvent) {
        let document = self.inputs.trust.borrow().document.clone();
        let name = |id: NodeId| document.member(&id).map_or(id.to_string(), |one| one.name.to_string());
        let named = |id: Option<NodeId>| id.map_or("nobody".to_owned(), name);
        let since = self.vips.get(&address).map_or(UnixMs(0), |vip| vip.seen.since);
        let moved = |from: String, to: String, why: String| {
            Told::new(EventKind::VipOwner, wall(), address.to_string(), to).since(from, since).reason(why)
        };
        let wrong = |what: &str, why: String| {
            let told = Told::new(EventKind::VipProblem, wall(), address.to_string(), what);
            told.reason(why).level(EventLevel::Warning)
        };
        let told = match event {
            VipEvent::Gained { from, cause, .. } => {
                let why = match cause {
                    Gain::Vacant => "it had no owner".to_owned(),
                    Gain::Silent { quiet } => format!("its owner has been silent for {}", human(quiet)),
                    Gain::Handed(why) => format!("handed over: {why}"),
                    Gain::Released(why) => format!("released: {why}"),
                };
                moved(named(from), name(self.own), why)
            }
            VipEvent::Lost { to, cause, .. } => {
                let why = match cause {
                    LossReason::Released(why) => why.to_string(),
                    LossReason::Higher => "another owner has a higher claim".to_owned(),
                };
                moved(name(self.own), named(to), why)
            }
            // That this node has lost it is told already.
            VipEvent::Moved { from, .. } if from == Some(self.own) => return,
            VipEvent::Moved { from, to, cause, .. } => {
                let silent = if from.is_some() { "its owner fell silent" } else { "it had no owner" };
                moved(named(from), name(to), cause.map_or(silent.to_owned(), |why| why.to_string()))
            }
            VipEvent::Contested { by, .. } => {
                wrong("doubled", format!("{} owns it too, with a lower claim", name(by)))
            }
            VipEvent::PutBack => wrong("put-back", "the address had been removed by someone else".to_owned()),
            VipEvent::Cleaned => wrong("cleaned", "the address had been added by someone else".to_owned()),
            VipEvent::Stranger { mac, defended } => {
                let what = if defended { "defended" } else { "yielded" };
                wrong(what, format!("a stranger has the address: {mac}"))
            }
        };
        let _ = self.inputs.tell.try_send(told);
    }
}

/// Asks the machine of a silent owner whether anyone listens at the agent's port. A refusal says that only
/// the agent is gone, so that its address is a leftover.
fn probe_agent(
    vip: &mut DrivenVip,
    link: &Link,
    pending_probes: &mpsc::Sender<(IpAddr, NodeId)>,
    life: &Lifecycle,
) {
    let at = now();
    let Some(owner) = vip.election.status(at).owner else { return };
    let Some(to) = link.addresses().best(&owner).filter(|_| at.since(vip.knocked) >= KNOCK) else { return };
    vip.knocked = at;
    let (pending_probes, address) = (pending_probes.clone(), vip.settings.address);
    life.spawn(async move {
        let refused = std::io::ErrorKind::ConnectionRefused;
        if let Ok(Err(error)) = tokio::time::timeout(KNOCK, TcpStream::connect(to)).await
            && error.kind() == refused
        {
            let _ = pending_probes.try_send((address, owner));
        }
    });
}
