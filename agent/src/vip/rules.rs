//! Who may own a virtual IP and who is asked, by settings, members and what they gossip.

use std::time::Duration;

use proto::cause::Cause;
use proto::cluster::{Admitted, Document};
use proto::election::{Candidate, VipRules};
use proto::health::Readiness;
use proto::node::NodeId;
use proto::pulse::{Liveness, PeerLivenessMap};
use proto::settings::{NodeSelector, PRIORITY, VipSettings};
use proto::time::UnixMs;
use proto::unfit::Unfit;
use proto::view::{ClusterView, MemberView};

use super::LocalEligibility;
use super::segments;

/// A member that has been heard for so long has said where it stands.
const SETTLED_MS: u64 = 5_000;

/// Gossip needs this long at most until everyone knows of a new node.
const JOINED_MS: u64 = 10_000;

/// What the rules are made of.
#[derive(Clone, Copy)]
pub(super) struct RulesInputs<'a> {
    pub(super) own: NodeId,
    pub(super) document: &'a Document,
    pub(super) view: &'a ClusterView,
    pub(super) fit: &'a LocalEligibility,
    pub(super) liveness: &'a PeerLivenessMap,
    pub(super) wall: UnixMs,
    /// Whether a member's datagram came a moment ago.
    pub(super) heard: &'a dyn Fn(&NodeId) -> bool,
}

impl RulesInputs<'_> {
    /// The rules of one. `turn`: its place among all; `young`: it was set a moment ago.
    pub(super) fn rules(&self, settings: &VipSettings, turn: usize, young: bool) -> VipRules {
        let RulesInputs { own, document, view, fit, liveness, wall, heard } = *self;
        let may = |id: &NodeId| match &settings.candidates {
            // Only those with an apiserver.
            NodeSelector::Masters => fit.masters.contains(id) && document.is_master(id),
            nodes => {
                let named = |one: &Admitted, role| nodes.includes(&one.name, role);
                document.member(id).zip(document.role(id)).is_some_and(|(one, role)| named(one, role))
            }
        };
        let masters = document.masters().map(|(id, _)| *id).collect();
        let mut rules = VipRules { preempt: settings.preempt, turn, masters, ..VipRules::default() };
        for (id, admitted) in document.members() {
            let member = view.members.get(id);
            // Who has just joined is in the document, and heard by the link, seconds before gossip has told
            // of it everywhere, and may be the only one who still hears an owner.
            let joined = wall.0.abs_diff(admitted.at.0) < JOINED_MS;
            let left = member.is_some_and(|member| member.record.left);
            let alive = !left && (heard(id) || joined || member.is_some_and(|member| member.heard));
            if alive {
                rules.witnesses.push(*id);
            }
            if !may(id) {
                continue;
            }
            let others = member.filter(|_| *id != own);
            let unfit = others.and_then(|member| gossiped_state(member, settings, wall, young));
            if *id != own && self.is_silent(id) {
                rules.silent.insert(*id);
            }
            let priority = settings.priorities.get(&admitted.name).copied().unwrap_or(PRIORITY);
            rules.candidates.push(Candidate { node: *id, priority, unfit });
            let rtt = liveness.get(id).and_then(|peer_liveness| peer_liveness.rtt).unwrap_or_default();
            rules.rtt = rules.rtt.max(Duration::from_millis(rtt.as_millis() as u64));
        }
        rules
    }
}

impl RulesInputs<'_> {
    /// Whether another node is not heard: by pulses, where it is pulsed, else by any datagram and gossip.
    fn is_silent(&self, id: &NodeId) -> bool {
        match self.liveness.get(id).map(|one| one.liveness) {
            Some(Liveness::Alive | Liveness::Late) => false,
            Some(Liveness::Silent | Liveness::CutOff) => true,
            Some(Liveness::Unknown) | None => {
                !(self.heard)(id) && !self.view.members.get(id).is_some_and(|member| member.heard)
            }
        }
    }
}

/// Why another node can't own it, by what it gossips: slower than its beats, for those that send none.
fn gossiped_state(member: &MemberView, vip: &VipSettings, wall: UnixMs, young: bool) -> Option<Unfit> {
    let record = &member.record;
    let served = record.services.get(&vip.service).map(|offer| &offer.health);
    let bad = served.filter(|health| !matches!(health.readiness, Readiness::Ready | Readiness::Alive));
    let (address, service) = (vip.address, &vip.service);
    match bad {
        _ if record.left => Some(Unfit::new(Cause::AgentStopped, "its agent has stopped")),
        _ if !member.heard => Some(Unfit::new(Cause::NotHeard, "no answer from it")),
        _ if record.draining.is_some() => Some(Unfit::new(Cause::Draining, "it is draining")),
        _ if record.unfit.contains_key(&address) => record.unfit.get(&address).cloned(),
        Some(bad) => {
            let reason = format_args!("its {service} is {}: {}", bad.readiness, bad.reason());
            Some(Unfit::new(bad.cause, reason))
        }
        // Of an address that has just been set nobody has said anything yet, nor has one that has just been
        // heard; and who is waited for must not be given up for that.
        None if young => None,
        None if wall.0.saturating_sub(member.since.0) < SETTLED_MS => None,
        None if segments::endpoint_in_record(record, address).is_some() => None,
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
    use proto::pulse::PeerLiveness;
    use proto::record::{L2Endpoint, NodeRecord, ServiceOffer};
    use proto::view::ClusterView;

    use super::super::tests::{document, id};
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
        let mut record = NodeRecord::new("m2".parse().unwrap());
        record.addresses.push("10.8.0.2:7646".parse().unwrap());
        record.services.insert(proto::service::ServiceName::kube_api(), offer);
        record.l2_endpoints.push(endpoint);
        let mut member = MemberView { id: NodeId([2; 10]), record, heard: true, since: UnixMs(0) };
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
    fn candidates_are_those_that_the_settings_name_and_witnesses_those_that_are_alive() {
        let (document, view, liveness) = (document(), ClusterView::default(), PeerLivenessMap::default());
        let fit = LocalEligibility { masters: [id(1), id(3)].into(), ..Default::default() };
        let rules = |candidates, heard: &dyn Fn(&NodeId) -> bool, wall| {
            let mut settings = VipSettings::new([10, 9, 0, 50].into());
            settings.candidates = candidates;
            settings.priorities.insert("m3".parse().unwrap(), 200);
            let (document, view, fit, liveness) = (&document, &view, &fit, &liveness);
            RulesInputs { own: id(1), document, view, fit, liveness, wall, heard }.rules(&settings, 4, false)
        };
        let named = NodeSelector::Names(["m3".parse().unwrap()].into());
        let mut all = [id(1), id(2), id(3)];
        all.sort();
        for (candidates, may) in
            [(NodeSelector::Masters, vec![id(1)]), (NodeSelector::All, all.to_vec()), (named, vec![id(3)])]
        {
            let rules = rules(candidates, &|_| false, WALL);
            let mut nodes: Vec<NodeId> = rules.candidates.iter().map(|one| one.node).collect();
            nodes.sort();
            assert_eq!(nodes, may);
            let priority = |one: &Candidate| one.priority == if one.node == id(3) { 200 } else { PRIORITY };
            assert!(rules.candidates.iter().all(priority));
            assert_eq!((rules.witnesses.len(), rules.turn, rules.masters.len()), (0, 4, 2));
        }
        let one_heard = rules(NodeSelector::All, &|node| *node == id(2), WALL);
        assert_eq!((one_heard.witnesses, one_heard.silent), (vec![id(2)], [id(3)].into()));
        assert_eq!(rules(NodeSelector::All, &|_| false, UnixMs(JOINED_MS)).witnesses.len(), 3, "just joined");
    }

    #[test]
    fn pulses_show_sooner_than_gossip_who_is_silent() {
        let (document, fit) = (document(), LocalEligibility::default());
        let settings =
            VipSettings { candidates: NodeSelector::All, ..VipSettings::new([10, 9, 0, 50].into()) };
        for (liveness, gossip, silent) in [
            (None, None, true),
            (None, Some(true), false),
            (None, Some(false), true),
            (Some(Liveness::Unknown), None, true),
            (Some(Liveness::Alive), None, false),
            (Some(Liveness::Late), Some(false), false),
            (Some(Liveness::Silent), Some(true), true),
            (Some(Liveness::CutOff), Some(true), true),
        ] {
            let mut view = ClusterView::default();
            if let Some(heard) = gossip {
                let member = member(|one| (one.id, one.heard) = (id(2), heard));
                view.members.insert(id(2), member);
            }
            let pulsed = liveness.map(|liveness| {
                let one = PeerLiveness { liveness, status: None, rtt: None, loss_permille: 0 };
                (id(2), one)
            });
            let liveness: PeerLivenessMap = pulsed.into_iter().collect();
            let inputs = RulesInputs {
                own: id(1),
                document: &document,
                view: &view,
                fit: &fit,
                liveness: &liveness,
                wall: WALL,
                heard: &|_| false,
            };
            let rules = inputs.rules(&settings, 0, false);
            assert_eq!(rules.silent.contains(&id(2)), silent, "{liveness:?} {gossip:?}");
            assert!(!rules.silent.contains(&id(1)), "this node itself");
        }
    }

    #[test]
    fn gossip_tells_why_another_node_can_not_own_it() {
        assert_eq!(said(|_| ()), None);
        assert_eq!(said(|one| one.record.left = true), Some(Cause::AgentStopped));
        assert_eq!(said(|one| one.heard = false), Some(Cause::NotHeard));
        assert_eq!(said(|one| one.record.draining = Some(WALL)), Some(Cause::Draining));
        let no_l2 = ([10, 9, 0, 50].into(), Unfit::from(Cause::NoSegment));
        assert_eq!(said(|one| one.record.unfit.extend([no_l2])), Some(Cause::NoSegment));
        let down = |one: &mut MemberView| {
            one.record.services.values_mut().for_each(|offer| offer.health.readiness = Readiness::Down);
        };
        assert_eq!(said(down), Some(Cause::Connected), "what its check found");
        assert_eq!(said(|one| one.record.l2_endpoints.clear()), Some(Cause::NoInterface));
        assert_eq!(told(true, |one| one.record.l2_endpoints.clear()), None, "the address has just been set");
        let fresh = |one: &mut MemberView| {
            one.record.l2_endpoints.clear();
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
