//! What is wanted: settings, members and health, handed on to the elections.

use std::collections::BTreeSet;
use std::time::Duration;

use proto::cause::Cause;
use proto::election::{Candidate, VipRules};
use proto::health::Readiness;
use proto::node::NodeId;
use proto::settings::{Candidates, PRIORITY, VipSettings};
use proto::time::{Moment, UnixMs};
use proto::unfit::Unfit;
use proto::view::MemberView;
use tracing::{info, warn};

use super::caps;
use super::driver::{DrivenVip, GOSSIPED, SETTLE, VipDriver, now};
use super::kernel::{KernelWatch, VipKernel};
use super::segments::{self, L2Segments};
use crate::lifecycle::wall;

/// A member that has been heard for so long has said where it stands.
const SETTLED_MS: u64 = 5_000;

/// Gossip needs this long at most until everyone knows of a new node.
const JOINED_MS: u64 = 10_000;

/// A member whose datagram came within this time is alive.
const ALIVE: Duration = Duration::from_secs(3);

impl VipDriver {
    /// Follows settings, members and health.
    pub(super) fn apply_settings(&mut self) {
        let now = now();
        self.inputs.trust.borrow_and_update();
        self.inputs.view.borrow_and_update();
        self.inputs.fit.borrow_and_update();
        let wanted = self.inputs.settings.borrow_and_update().vips.clone();
        for vip in self.vips.values_mut() {
            if !vip.leaving && !wanted.iter().any(|one| one.address == vip.settings.address) {
                vip.leave();
            }
        }
        for settings in wanted {
            let known = self.vips.get_mut(&settings.address).filter(|vip| !vip.leaving);
            match known {
                Some(vip) if vip.settings == settings => {}
                Some(vip) => {
                    vip.settings = settings;
                    self.look = now;
                }
                None => {
                    info!(vip = %settings.address, "virtual IP");
                    let epoch = self.inputs.epochs.get(&settings.address).copied().unwrap_or(0);
                    self.vips.insert(settings.address, DrivenVip::new(self.own, settings, epoch, now));
                    self.look = now;
                }
            }
        }
        self.intake.set_vips(self.vips.len());
        self.adjust_capabilities();
        self.set_rules(now);
        let view = self.inputs.view.borrow().clone();
        let trusted = self.trusted();
        self.segments.apply_records(now, self.own, &view, &trusted);
        self.check(now);
        self.update_facts(now);
    }

    /// Takes up what virtual IPs need, or lays it down.
    pub(super) fn adjust_capabilities(&mut self) {
        self.dirty = true;
        if self.vips.is_empty() {
            if self.kernel.take().is_some() {
                caps::drop_capabilities();
            }
            (self.changes, self.problem, self.closed) = (None, None, None);
            self.segments = L2Segments::default();
            return;
        }
        if self.kernel.is_none() {
            self.problem =
                caps::raise_capabilities().err().map(|error| Unfit::new(Cause::NotPermitted, error));
            match VipKernel::open() {
                Ok(kernel) => self.kernel = Some(kernel),
                Err(error) => {
                    let reason = format_args!("cannot query the kernel (netlink): {error}");
                    self.problem = Some(Unfit::new(Cause::NotPermitted, reason));
                }
            }
            if let Some(problem) = &self.problem {
                warn!("this node can't own virtual IPs: {problem}");
            }
        }
        self.listens();
    }

    /// Whether changes of the kernel have been listened to; if not, they are from now on, where they can be.
    pub(super) fn listens(&mut self) -> bool {
        let did = self.changes.is_some();
        if !did {
            self.changes = KernelWatch::subscribe().ok();
        }
        did
    }

    pub(super) fn set_rules(&mut self, now: Moment) {
        let document = self.inputs.trust.borrow().document.clone();
        let view = self.inputs.view.borrow().clone();
        let fit = self.inputs.fit.borrow().clone();
        let liveness = self.inputs.liveness.borrow().clone();
        let (wall, heard_at, link) = (wall(), self.life.now(), self.inputs.link.clone());
        for (turn, (address, vip)) in self.vips.iter_mut().filter(|(_, vip)| !vip.leaving).enumerate() {
            let may = |id: &NodeId| match &vip.settings.candidates {
                Candidates::Masters => fit.masters.contains(id) && document.is_master(id),
                Candidates::All => true,
                Candidates::Names(names) => document.member(id).is_some_and(|one| names.contains(&one.name)),
            };
            let young = now.since(vip.made) < GOSSIPED;
            let masters = document.masters().map(|(id, _)| *id).collect();
            let mut rules = VipRules { preempt: vip.settings.preempt, turn, masters, ..VipRules::default() };
            for (id, admitted) in document.members() {
                let member = view.members.get(id);
                // Who has just joined is in the document, and heard by the link, seconds before gossip has told
                // of it everywhere, and may be the only one who still hears an owner.
                let direct = link.datagrams().last_heard(id).is_some_and(|at| heard_at.since(at) < ALIVE);
                let joined = wall.0.abs_diff(admitted.at.0) < JOINED_MS;
                let left = member.is_some_and(|member| member.word.left);
                let alive = !left && (direct || joined || member.is_some_and(|member| member.heard));
                if alive {
                    rules.witnesses.push(*id);
                }
                if !may(id) {
                    continue;
                }
                let others = member.filter(|_| *id != self.own);
                let unfit = others.and_then(|member| gossiped_state(member, &vip.settings, wall, young));
                let priority = vip.settings.priorities.get(&admitted.name).copied().unwrap_or(PRIORITY);
                rules.candidates.push(Candidate { node: *id, priority, unfit });
                let rtt = liveness.get(id).and_then(|peer_liveness| peer_liveness.rtt).unwrap_or_default();
                rules.rtt = rules.rtt.max(Duration::from_millis(rtt.as_millis() as u64));
            }
            if rules != vip.rules {
                self.look = self.look.min(now.after(SETTLE));
            }
            // Also when they are the same: what is shown of them may be news.
            vip.rules = rules.clone();
            vip.election.set_rules(now, rules);
            // By the rules of now: who is no candidate says nothing of epochs.
            for (id, member) in &view.members {
                if let Some(claim) = member.word.vips.get(address) {
                    vip.election.gossiped(now, id, claim.epoch);
                }
            }
        }
    }

    /// Whose word about others and about segments counts: masters and candidates.
    pub(super) fn trusted(&self) -> BTreeSet<NodeId> {
        let document = self.inputs.trust.borrow().document.clone();
        let mut trusted: BTreeSet<NodeId> = document.masters().map(|(id, _)| *id).collect();
        trusted.extend(self.vips.values().flat_map(|vip| vip.rules.candidates.iter().map(|one| one.node)));
        trusted
    }

    /// Hands the last check of the services on.
    fn check(&mut self, now: Moment) {
        let fit = self.inputs.fit.borrow().clone();
        if std::mem::replace(&mut self.checks, fit.checks) == fit.checks {
            return;
        }
        for vip in self.vips.values_mut() {
            let service = &vip.settings.service;
            let absent = || Err(Unfit::new(Cause::NotServed, format_args!("{service} is not served here")));
            vip.election.checked(now, fit.services.get(service).cloned().unwrap_or_else(absent));
        }
    }
}

/// Why another node can't own it, by what it gossips: slower than its beats, for those that send none.
fn gossiped_state(member: &MemberView, vip: &VipSettings, wall: UnixMs, young: bool) -> Option<Unfit> {
    let word = &member.word;
    let served = word.services.get(&vip.service).map(|offer| &offer.health);
    let bad = served.filter(|health| !matches!(health.readiness, Readiness::Ready | Readiness::Alive));
    let (address, service) = (vip.address, &vip.service);
    match bad {
        _ if word.left => Some(Unfit::new(Cause::AgentStopped, "its agent has stopped")),
        _ if !member.heard => Some(Unfit::new(Cause::NotHeard, "no answer from it")),
        _ if word.draining.is_some() => Some(Unfit::new(Cause::Draining, "it is draining")),
        _ if word.unfit.contains_key(&address) => word.unfit.get(&address).cloned(),
        Some(bad) => {
            let reason = format_args!("its {service} is {}: {}", bad.readiness, bad.reason());
            Some(Unfit::new(bad.cause, reason))
        }
        // Of an address that has just been set nobody has said anything yet, nor has one that has just been
        // heard; and who is waited for must not be given up for that.
        None if young => None,
        None if wall.0.saturating_sub(member.since.0) < SETTLED_MS => None,
        None if segments::endpoint_in_record(word, address).is_some() => None,
        None => {
            let reason = format_args!("it has no interface in the network of {address}");
            Some(Unfit::new(Cause::NoInterface, reason))
        }
    }
}

#[cfg(test)]
mod tests {
    use proto::arp::Mac;
    use proto::cause::Detail;
    use proto::health::ServiceHealth;
    use proto::record::{L2Endpoint, NodeRecord, ServiceOffer};
    use proto::view::ClusterView;

    use super::*;

    const WALL: UnixMs = UnixMs(100_000);

    fn member(change: impl FnOnce(&mut MemberView)) -> MemberView {
        let health = ServiceHealth {
            readiness: Readiness::Ready,
            cause: Cause::Connected,
            detail: Detail::default(),
            since: UnixMs(0),
        };
        let offer =
            ServiceOffer { address: ([10, 9, 0, 2], 6443).into(), weight: 100, health, check_ms: None };
        let endpoint = L2Endpoint {
            interface: "eth0".into(),
            mac: Mac([2, 0, 0, 0, 0, 2]),
            address: [10, 9, 0, 2].into(),
            prefix: 24,
        };
        let mut word = NodeRecord::new("m2".parse().unwrap());
        word.addresses.push("10.8.0.2:7646".parse().unwrap());
        word.services.insert(proto::service::ServiceName::kube_api(), offer);
        word.l2_endpoints.push(endpoint);
        let mut member = MemberView { id: NodeId([2; 10]), word, heard: true, since: UnixMs(0) };
        change(&mut member);
        member
    }

    fn told(young: bool, change: impl FnOnce(&mut MemberView)) -> Option<Cause> {
        let settings = VipSettings::new([10, 9, 0, 50].into());
        gossiped_state(&member(change), &settings, WALL, young).map(|unfit| unfit.cause)
    }

    fn said(change: impl FnOnce(&mut MemberView)) -> Option<Cause> {
        told(false, change)
    }

    #[test]
    fn gossip_tells_why_another_node_can_not_own_it() {
        assert_eq!(said(|_| ()), None);
        assert_eq!(said(|one| one.word.left = true), Some(Cause::AgentStopped));
        assert_eq!(said(|one| one.heard = false), Some(Cause::NotHeard));
        assert_eq!(said(|one| one.word.draining = Some(WALL)), Some(Cause::Draining));
        let no_l2 = ([10, 9, 0, 50].into(), Unfit::from(Cause::NoSegment));
        assert_eq!(said(|one| one.word.unfit.extend([no_l2])), Some(Cause::NoSegment));
        let down = |one: &mut MemberView| {
            one.word.services.values_mut().for_each(|offer| offer.health.readiness = Readiness::Down);
        };
        assert_eq!(said(down), Some(Cause::Connected), "what its check found");
        assert_eq!(said(|one| one.word.l2_endpoints.clear()), Some(Cause::NoInterface));
        assert_eq!(told(true, |one| one.word.l2_endpoints.clear()), None, "the address has just been set");
        let fresh = |one: &mut MemberView| {
            one.word.l2_endpoints.clear();
            one.since = WALL;
        };
        assert_eq!(said(fresh), None, "it has not said everything yet");
    }

    #[test]
    fn a_members_own_address_is_known_as_such() {
        let one = member(|_| ());
        let view = ClusterView { members: [(one.id, one)].into(), ..ClusterView::default() };
        for own in [[10, 9, 0, 2], [10, 8, 0, 2]] {
            assert_eq!(segments::node_at(&view, own.into(), |_| true), Some(NodeId([2; 10])), "{own:?}");
        }
        assert_eq!(segments::node_at(&view, [10, 9, 0, 2].into(), |_| false), None, "a worker says so");
        assert_eq!(segments::node_at(&view, [10, 9, 0, 50].into(), |_| true), None);
        assert_eq!(segments::member_with(&view, Mac([2, 0, 0, 0, 0, 2])), Some(NodeId([2; 10])));
        assert_eq!(segments::member_with(&view, Mac([2, 0, 0, 0, 0, 9])), None);
    }
}
