//! This node's view of all members: their records, as far as they count.
//!
//! A signature proves who published something, not that it was authorized to. So a view leaves out what its
//! node has no authority for, each item alone, and lists it in [`ClusterView::not_counted`]: an apiserver of
//! a node that was admitted as a worker, a service that the settings let others offer, an offer at an address
//! that its node has not proven to be its own, a virtual IP that it is no candidate for.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};

use crate::node::{Name, NodeId, Role};
use crate::problem::{Problem, ProblemCode};
use crate::record::{NodeRecord, RecordField};
use crate::service::ServiceName;
use crate::time::UnixMs;

/// Highest epoch of a virtual IP that is accepted: one per second for a century. After one near the end of
/// its range there could be no next.
const MAX_EPOCH: u64 = u32::MAX as u64;

/// One member, as far as its record counts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MemberView {
    /// Its id.
    pub id: NodeId,
    /// Its record.
    pub record: NodeRecord,
    /// Gossip from it arrives.
    pub heard: bool,
    /// When `heard` last changed, on this node's wall clock.
    pub since: UnixMs,
}

impl MemberView {
    /// A member that offers the default service is a master.
    pub fn role(&self) -> Role {
        if self.record.services.contains_key(&ServiceName::kube_api()) { Role::Master } else { Role::Worker }
    }

    /// Addresses of its transport port, best first.
    pub fn addresses(&self) -> &[SocketAddr] {
        &self.record.addresses
    }
}

/// A member's record, and what was not understood of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PublishedRecord<'a> {
    /// Its node.
    pub id: NodeId,
    /// The record.
    pub record: &'a NodeRecord,
    /// Fields that were left out.
    pub left_out: &'a [RecordField],
    /// Whether it is alive.
    pub alive: bool,
}

/// Rules about who may publish what.
pub struct Authority<'a> {
    /// The role that a member was admitted with, or was given since; `None`: it is no member.
    pub role: &'a dyn Fn(&NodeId) -> Option<Role>,
    /// Whether the settings let a node of this name and role offer a service.
    pub may_offer: &'a dyn Fn(&ServiceName, &Name, Role) -> bool,
    /// Whether the settings let a node of this name and role own a virtual IP.
    pub may_own: &'a dyn Fn(IpAddr, &Name, Role) -> bool,
    /// Whether a node has proven that it owns an address.
    pub proven: &'a dyn Fn(&NodeId, IpAddr) -> bool,
}

/// A member's claim that has no effect here.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct IgnoredClaim {
    /// Its node.
    pub node: NodeId,
    /// That node's name.
    pub name: Name,
    /// The claim.
    pub what: Ignored,
    /// Since when it has been ignored.
    pub since: UnixMs,
}

/// What is ignored of a record, and why.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Ignored {
    /// A field that is not understood, or one beyond a limit.
    NotUnderstood(RecordField),
    /// An apiserver on a node that was admitted as a worker.
    NotMaster,
    /// A service that the settings let others offer.
    NotNamed(ServiceName),
    /// An offer at an address that is not proven to be the node's own.
    Unproven(ServiceName, IpAddr),
    /// An offer at the address that another node offers the service at now: a machine that was set up anew under
    /// another name.
    Taken(ServiceName, SocketAddr, Name),
    /// A virtual IP that the node is no candidate for.
    NotCandidate(IpAddr),
    /// A virtual IP in an impossible epoch.
    Epoch(IpAddr),
}

impl IgnoredClaim {
    /// The problem that status shows, with its fix.
    pub fn problem(&self) -> Problem {
        let name = &self.name;
        let (code, about, detail, fix) = match &self.what {
            Ignored::NotUnderstood(field) => (
                ProblemCode::RecordNotUnderstood,
                field.to_string(),
                format!("{name} publishes {field} that this version does not understand; ignored"),
                "if it runs a newer agent, upgrade this node".to_owned(),
            ),
            Ignored::NotMaster => (
                ProblemCode::MasterNotPromoted,
                "kube-api".to_owned(),
                format!("an apiserver runs on {name}, but {name} is a worker; ignored"),
                format!("to use it, run on a master: agent promote {name}"),
            ),
            Ignored::NotNamed(service) => (
                ProblemCode::NotAuthorized,
                service.to_string(),
                format!("{name} offers {service}, which the settings do not allow; ignored"),
                format!("to allow it, run: agent set service.{service}.offer=all (or node names)"),
            ),
            Ignored::Unproven(service, ip) => (
                ProblemCode::AddressUnproven,
                service.to_string(),
                format!(
                    "{name} offers {service} at {ip}, which it has not proven to be its address; ignored"
                ),
                "its agent must be reachable there, by UDP and TCP".to_owned(),
            ),
            Ignored::Taken(service, address, by) => (
                ProblemCode::AddressTaken,
                service.to_string(),
                format!("{name} offers {service} at {address}, which is {by} now; ignored"),
                format!("if {name} was set up anew as {by}, run on a master: agent remove {name}"),
            ),
            Ignored::NotCandidate(vip) => (
                ProblemCode::NotAuthorized,
                vip.to_string(),
                format!("{name} claims to own {vip} but is not a candidate for it; ignored"),
                String::new(),
            ),
            Ignored::Epoch(vip) => (
                ProblemCode::NotAuthorized,
                vip.to_string(),
                format!("{name} claims to own {vip} in an impossible epoch; ignored"),
                String::new(),
            ),
        };
        Problem::new(code, detail).about(format!("{name}/{about}")).fix(fix)
    }
}

/// Everything that this node knows of all members, itself included.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ClusterView {
    /// The members, by id.
    pub members: BTreeMap<NodeId, MemberView>,
    /// Claims that have no effect.
    pub not_counted: Vec<IgnoredClaim>,
    /// What core members say of those without a record here; `None`: all members gossip.
    pub others: Option<OtherMembers>,
    /// How many members gossip; 0: all do.
    pub core: usize,
    /// Core members that this node is attached to and that answer.
    pub attached_to: Vec<NodeId>,
}

/// Members whose records this node does not need, and so does not have.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct OtherMembers {
    /// Number of all members.
    pub members: usize,
    /// How many of them are alive.
    pub up: usize,
    /// Those that are not alive, or some of them.
    pub silent: BTreeSet<NodeId>,
    /// Core members that have another document.
    pub differ: Vec<NodeId>,
}

impl ClusterView {
    /// Number of members, with those whose records this node does not have.
    pub fn size(&self) -> usize {
        self.others.as_ref().map_or(self.members.len(), |others| others.members)
    }

    /// Whether a member without a record here is alive by what core members say.
    pub fn is_said_alive(&self, id: &NodeId) -> bool {
        let others = self.others.as_ref().filter(|_| !self.members.contains_key(id));
        others.is_some_and(|others| !others.silent.contains(id))
    }

    /// Builds a view from the members' records. `previous` has since when. Non-members are left out, so that
    /// a removed node disappears from every list at once.
    pub fn new<'a>(
        published: impl IntoIterator<Item = PublishedRecord<'a>>,
        previous: &ClusterView,
        wall: UnixMs,
        authority: &Authority<'_>,
    ) -> ClusterView {
        let mut view = ClusterView::default();
        for one in published {
            let Some(role) = (authority.role)(&one.id) else { continue };
            let since = match previous.members.get(&one.id) {
                Some(member) if member.heard == one.alive => member.since,
                _ => wall,
            };
            let (record, ignored) = counts(&one, role, authority);
            for what in ignored {
                let known =
                    previous.not_counted.iter().find(|known| known.node == one.id && known.what == what);
                let since = known.map_or(wall, |known| known.since);
                view.not_counted.push(IgnoredClaim { node: one.id, name: record.name.clone(), what, since });
            }
            view.members.insert(one.id, MemberView { id: one.id, record, heard: one.alive, since });
        }
        view.ignore_taken(previous, wall);
        view
    }

    /// One address is one backend. Of several nodes that offer a service there, the one counts that is heard, and of
    /// several of those the one whose agent started last.
    fn ignore_taken(&mut self, previous: &ClusterView, wall: UnixMs) {
        type Standing = (bool, UnixMs, NodeId);
        let mut at: BTreeMap<(ServiceName, SocketAddr), Vec<Standing>> = BTreeMap::new();
        for member in self.members.values() {
            for (service, offer) in &member.record.services {
                let standing = (member.heard, member.record.started, member.id);
                at.entry((service.clone(), offer.address)).or_default().push(standing);
            }
        }
        for ((service, address), mut all) in at {
            all.sort_unstable();
            let Some((_, _, holder)) = all.pop() else { continue };
            let Some(by) = self.members.get(&holder).map(|member| member.record.name.clone()) else {
                continue;
            };
            for (_, _, node) in all {
                let Some(member) = self.members.get_mut(&node) else { continue };
                member.record.services.remove(&service);
                let what = Ignored::Taken(service.clone(), address, by.clone());
                let known =
                    previous.not_counted.iter().find(|known| known.node == node && known.what == what);
                let since = known.map_or(wall, |known| known.since);
                self.not_counted.push(IgnoredClaim { node, name: member.record.name.clone(), what, since });
            }
        }
    }
}

/// Splits a record into what counts and what does not.
fn counts(one: &PublishedRecord<'_>, role: Role, authority: &Authority<'_>) -> (NodeRecord, Vec<Ignored>) {
    let mut record = one.record.clone();
    let mut ignored: Vec<Ignored> = one.left_out.iter().copied().map(Ignored::NotUnderstood).collect();
    let name = record.name.clone();
    record.services.retain(|service, offer| {
        let ip = offer.address.ip();
        let why = if *service == ServiceName::kube_api() {
            (role != Role::Master).then_some(Ignored::NotMaster)
        } else {
            let may = (authority.may_offer)(service, &name, role);
            (!may).then(|| Ignored::NotNamed(service.clone()))
        };
        let unproven = || (!(authority.proven)(&one.id, ip)).then(|| Ignored::Unproven(service.clone(), ip));
        let why = why.or_else(unproven);
        let good = why.is_none();
        ignored.extend(why);
        good
    });
    record.vips.retain(|vip, claim| {
        let why = if !(authority.may_own)(*vip, &name, role) {
            Some(Ignored::NotCandidate(*vip))
        } else {
            (claim.epoch > MAX_EPOCH).then_some(Ignored::Epoch(*vip))
        };
        let good = why.is_none();
        ignored.extend(why);
        good
    });
    (record, ignored)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cause::{Cause, Detail};
    use crate::health::{Readiness, ServiceHealth};
    use crate::record::{ServiceOffer, VipOwnership};

    fn id(n: u8) -> NodeId {
        NodeId([n; 10])
    }

    /// A node at 10.0.0.n that offers kube-api and a service "web", and owns a VIP.
    fn record(n: u8) -> NodeRecord {
        let health = ServiceHealth {
            readiness: Readiness::Ready,
            cause: Cause::Connected,
            detail: Detail::default(),
            since: UnixMs(1),
        };
        let offer = |port| ServiceOffer {
            address: SocketAddr::from(([10, 0, 0, n], port)),
            weight: 100,
            health: health.clone(),
            check_ms: None,
        };
        NodeRecord {
            services: BTreeMap::from([
                (ServiceName::kube_api(), offer(6443)),
                ("web".parse().unwrap(), offer(80)),
            ]),
            vips: BTreeMap::from([(vip(), VipOwnership { epoch: 1, since: UnixMs(1) })]),
            ..NodeRecord::new(Name::nearest(&format!("n{n}")))
        }
    }

    fn vip() -> IpAddr {
        IpAddr::from([10, 0, 0, 50])
    }

    /// Node 1 is a master, node 2 a worker, all others are no members; "web" is for workers, VIPs for
    /// masters, and nobody has an address beyond 10.0.0.9.
    fn authority() -> Authority<'static> {
        Authority {
            role: &|who| match *who {
                NodeId([1, ..]) => Some(Role::Master),
                NodeId([2, ..]) => Some(Role::Worker),
                _ => None,
            },
            may_offer: &|_, _, role| role == Role::Worker,
            may_own: &|_, _, role| role == Role::Master,
            proven: &|_, ip| ip < IpAddr::from([10, 0, 0, 10]),
        }
    }

    fn view(all: &[(u8, &NodeRecord, bool)], previous: &ClusterView, wall: u64) -> ClusterView {
        let published = all.iter().map(|(n, record, alive)| PublishedRecord {
            id: id(*n),
            record,
            left_out: &[],
            alive: *alive,
        });
        ClusterView::new(published, previous, UnixMs(wall), &authority())
    }

    #[test]
    fn members_count_for_what_they_are_authorized_for_and_strangers_for_nothing() {
        let (master, worker) = (record(1), record(2));
        let view = view(
            &[(1, &master, true), (2, &worker, true), (3, &record(3), true)],
            &ClusterView::default(),
            3,
        );
        assert_eq!(view.members.keys().collect::<Vec<_>>(), [&id(1), &id(2)]);
        let offers =
            |n| view.members[&id(n)].record.services.keys().map(ServiceName::as_str).collect::<Vec<_>>();
        assert_eq!((offers(1), offers(2)), (vec!["kube-api"], vec!["web"]));
        assert_eq!(view.members[&id(1)].record.vips.len() + view.members[&id(2)].record.vips.len(), 1);
        let web: ServiceName = "web".parse().unwrap();
        let what: Vec<(NodeId, Ignored)> =
            view.not_counted.iter().map(|problem| (problem.node, problem.what.clone())).collect();
        assert_eq!(
            what,
            [
                (id(1), Ignored::NotNamed(web)),
                (id(2), Ignored::NotMaster),
                (id(2), Ignored::NotCandidate(vip())),
            ]
        );
        let text = view.not_counted[1].problem().to_string();
        assert!(text.ends_with(": agent promote n2"), "{text}");
    }

    #[test]
    fn an_offer_counts_only_at_a_proven_address_and_a_claim_only_in_a_possible_epoch() {
        let mut master = record(1);
        let name = ServiceName::kube_api();
        master.services.get_mut(&name).unwrap().address = "10.0.0.77:6443".parse().unwrap();
        master.services.remove(&"web".parse().unwrap());
        master.vips.get_mut(&vip()).unwrap().epoch = u64::MAX;
        let first = view(&[(1, &master, true)], &ClusterView::default(), 3);
        assert!(first.members[&id(1)].record.services.is_empty());
        assert!(first.members[&id(1)].record.vips.is_empty());
        let what = [Ignored::Unproven(name, IpAddr::from([10, 0, 0, 77])), Ignored::Epoch(vip())];
        assert_eq!(first.not_counted.iter().map(|one| one.what.clone()).collect::<Vec<_>>(), what);
        let second = view(&[(1, &master, true)], &first, 9);
        assert!(second.not_counted.iter().all(|problem| problem.since == UnixMs(3)), "as long as it lasts");
    }

    #[test]
    fn one_address_is_one_backend_and_the_node_that_had_it_before_is_named() {
        let masters = Authority { role: &|_| Some(Role::Master), may_offer: &|_, _, _| true, ..authority() };
        // Of nodes 1 and 2, which both offer kube-api at 10.0.0.1: heard, and when the agent started; who keeps it.
        for (what, one, two, keeps) in [
            ("set up anew under another name", (false, 5), (true, 9), 2),
            ("the other way round", (true, 5), (false, 9), 1),
            ("the old one seems alive for some seconds", (true, 5), (true, 9), 2),
            ("neither is heard", (false, 5), (false, 9), 2),
        ] {
            let mut records = [record(1), record(2)];
            let address = SocketAddr::from(([10, 0, 0, 1], 6443));
            records[1].services.get_mut(&ServiceName::kube_api()).unwrap().address = address;
            let states = [one, two];
            for (record, (_, started)) in records.iter_mut().zip(states) {
                record.started = UnixMs(started);
            }
            let look = |previous: &ClusterView, wall| {
                let all = records.iter().zip(states).zip(1..);
                let published = all.map(|((record, (alive, _)), n)| PublishedRecord {
                    id: id(n),
                    record,
                    left_out: &[],
                    alive,
                });
                ClusterView::new(published, previous, UnixMs(wall), &masters)
            };
            let view = look(&look(&ClusterView::default(), 3), 8);
            let offers = |n: u8| view.members[&id(n)].record.services.len();
            assert_eq!((offers(keeps), offers(3 - keeps)), (2, 1), "{what}: the other service stays");
            let [ignored] = view.not_counted.as_slice() else { panic!("{what}: {:?}", view.not_counted) };
            assert_eq!((ignored.node, ignored.since), (id(3 - keeps), UnixMs(3)), "{what}");
            let text = ignored.problem().to_string();
            let remedy = format!("as n{keeps}, run on a master: agent remove n{}", 3 - keeps);
            assert!(text.ends_with(&remedy) && text.contains("10.0.0.1:6443"), "{text}");
        }
    }

    #[test]
    fn since_changes_when_heard_does() {
        let record = record(1);
        let first = view(&[(1, &record, true)], &ClusterView::default(), 1);
        let second = view(&[(1, &record, true)], &first, 2);
        let third = view(&[(1, &record, false)], &second, 3);
        assert_eq!(second.members[&id(1)].since, UnixMs(1));
        assert_eq!(third.members[&id(1)].since, UnixMs(3));
    }
}
