//! Everything that a person asks of a node, from one look at every part.

use std::collections::BTreeMap;

use proto::backends::{Backend, BackendState, BackendTable};
use proto::cause::Cause;
use proto::cluster::Document;
use proto::control::{
    BackendCounts, BackendStatus, ClusterStatus, ListenerStatus, MemberState, MemberStatus, NodeStatus,
    PeerLinkStatus, ServiceCounts, ServiceSource, ServiceStatus, Status,
};
use proto::node::{Name, NodeId, Role};
use proto::problem::{Problem, ProblemCode};
use proto::pulse::{Liveness, PeerLivenessMap};
use proto::record::{NodeRecord, PeerLink};
use proto::service::{Service, ServiceName};
use proto::settings;
use proto::time::UnixMs;
use proto::view::{ClusterView, Ignored, IgnoredClaim};

use super::RunningAgent;
use crate::handover;
use crate::lifecycle::wall;
use crate::net::{NoOwnAddress, OwnInterface};
use crate::proxy::{BackendStats, ServiceStats};
use crate::supervisor;

/// Milliseconds that a node is given to prove an address before status says that it has not.
const PROVING: u64 = 5_000;

/// Milliseconds in which those that offer a service have checked it and told of it.
const OFFERING: u64 = 10_000;

fn milliseconds(rtt: std::time::Duration) -> f64 {
    // Three digits after the point: clocks do not carry more.
    (rtt.as_secs_f64() * 1e6).round() / 1e3
}

/// The status now.
pub(super) fn of(running: &RunningAgent) -> Status {
    let trust = running.trust.borrow().clone();
    let document = &trust.document;
    let view = running.peers.view().borrow().clone();
    let table = running.clients.table().borrow().clone();
    let services = running.clients.effective().services().borrow().clone();
    let liveness = running.peers.liveness().borrow().clone();
    let ring = running.events.ring();
    let effective = running.clients.effective().now();
    let mut stats = running.clients.proxy().stats();
    let kube_api = table.get(&ServiceName::kube_api()).map_or(&[][..], Vec::as_slice);
    let own = running.link.own();
    let role = |id: &NodeId| document.role(id).unwrap_or(Role::Worker);
    let names = document.shown_names();
    let open_until = running.membership.open_until();
    // Taken out at once: a borrow held while the same watch is borrowed again waits for ever once a writer
    // stands between them.
    let address = running.own.address();
    let vips = running.vips.report().borrow().clone();
    Status {
        schema: 1,
        cluster: ClusterStatus {
            id: document.id.to_string(),
            name: document.name.to_string(),
            members: document.members().count(),
            core: view.core,
            up: view.others.as_ref().map(|others| others.up),
            document: document.hash(),
            key_epoch: document.key.epoch,
            open_until_unix_ms: (open_until > wall()).then_some(open_until),
        },
        node: NodeStatus {
            id: own,
            name: running.own.file().name.clone(),
            address: address.map(|ip| ip.to_string()),
            interface: running.own.interface().name,
            role: role(&own).into(),
            place: running.peers.place().into(),
            attached_to: view.attached_to.iter().filter_map(|id| names.get(id).cloned()).collect(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            started_unix_ms: running.own.began(),
            removed: document.member(&own).is_none(),
            descriptors: running.clients.descriptors(),
            link: running.link.counters().status(),
            loop_lag: running.history.lag.read(),
            checks: running.own.checks(),
            events: running.history.events(&ring),
            program: handover::program().map_or_else(String::new, |path| path.to_string_lossy().into_owned()),
            replaced_unix_ms: running.taken_over.as_ref().map(|last| last.at),
            replaced_connections: running.taken_over.as_ref().map_or(0, |last| last.connections),
        },
        services: services
            .iter()
            .map(|service| {
                let backends = table.get(&service.name).map_or(&[][..], Vec::as_slice);
                let stats = stats.remove(&service.name).unwrap_or_default();
                let source = effective.source(&service.name);
                service_status(running, (&view, &liveness), (service, source), backends, stats)
            })
            .collect(),
        members: document
            .members()
            .map(|(id, _)| {
                let backend = kube_api.iter().find(|backend| backend.node == *id);
                member_status(running, (&view, &names), *id, role(id), backend)
            })
            .collect(),
        members_from: None,
        vips: vips.vips.clone(),
        problems: problems(running)
            .into_iter()
            .chain(running.events.problems())
            .chain(not_offered(running, &view, &table))
            .collect(),
        taken_unix_ms: wall(),
    }
}

fn service_status(
    running: &RunningAgent,
    (view, liveness): (&ClusterView, &PeerLivenessMap),
    (service, source): (&Service, ServiceSource),
    backends: &[Backend],
    stats: ServiceStats,
) -> ServiceStatus {
    let listen = stats.listens.iter().map(|(address, fault)| ListenerStatus::new(*address, fault.as_ref()));
    ServiceStatus {
        name: service.name.clone(),
        listen: listen.collect(),
        source,
        balance: service.balance.into(),
        backends: backends
            .iter()
            .map(|backend| {
                let stats = stats.backends.get(&backend.node).copied().unwrap_or_default();
                let mut counted = counted(stats);
                running.history.count(&service.name, backend.node, running.life.now(), &mut counted);
                let offer =
                    view.members.get(&backend.node).and_then(|one| one.record.services.get(&service.name));
                BackendStatus {
                    node: backend.name.clone(),
                    address: backend.address.to_string(),
                    state: backend.state,
                    cause: backend.cause,
                    reason: backend.reason(),
                    since_unix_ms: backend.since,
                    rtt_ms: backend
                        .rtt
                        .or_else(|| liveness.get(&backend.node).and_then(|peer_liveness| peer_liveness.rtt))
                        .map(milliseconds),
                    connections: stats.connections,
                    total: stats.total,
                    weight: backend.weight,
                    check_ms: offer.and_then(|offer| offer.check_ms),
                    counted,
                }
            })
            .collect(),
        connections: u64::from(stats.connections),
        maxconn: service.maxconn,
        refused: stats.refused,
        counted: ServiceCounts { total: stats.total, most: stats.most, unserved: stats.unserved },
    }
}

fn counted(stats: BackendStats) -> BackendCounts {
    BackendCounts {
        most: stats.most,
        bytes_in: stats.bytes_in,
        bytes_out: stats.bytes_out,
        connect_errors: stats.errors,
        races: stats.races,
        replays: stats.replays,
        silences: stats.silences,
        resets_down: stats.resets_down,
        resets_leave: stats.resets_leave,
        dials: stats.dials,
        ..BackendCounts::default()
    }
}

fn member_status(
    running: &RunningAgent,
    (view, names): (&ClusterView, &BTreeMap<NodeId, Name>),
    id: NodeId,
    role: Role,
    backend: Option<&Backend>,
) -> MemberStatus {
    let member = view.members.get(&id);
    let own = id == running.link.own();
    let liveness = running.peers.liveness().borrow().clone();
    let peer_liveness = liveness.get(&id).filter(|peer_liveness| peer_liveness.liveness != Liveness::Unknown);
    let serves = backend.is_some_and(|backend| backend.state == BackendState::Ready);
    let state = match own {
        true => MemberState::Up,
        false => {
            MemberState::of(view, &id, peer_liveness.map(|peer_liveness| peer_liveness.liveness), serves)
        }
    };
    let address = match (own, running.link.addresses().best(&id)) {
        (true, _) => running.own.address().map(|ip| ip.to_string()),
        (false, seen) => seen.map(|address| address.ip().to_string()),
    };
    MemberStatus {
        id,
        name: names.get(&id).cloned().unwrap_or_else(|| Name::nearest(&id.to_string())),
        address: address.unwrap_or_default(),
        role: role.into(),
        state,
        version: member.map_or(String::new(), |member| member.record.version.clone()),
        // An upgrade begins the view anew, and this node is up for as long as its agent runs.
        since_unix_ms: member.filter(|_| !own).map_or(running.own.began(), |member| member.since),
        rtt_ms: peer_liveness
            .and_then(|peer_liveness| peer_liveness.rtt)
            .or(backend.and_then(|backend| backend.rtt))
            .map(milliseconds),
        loss_permille: peer_liveness.map(|peer_liveness| peer_liveness.loss_permille),
        document: member.map_or(String::new(), |member| member.record.document.clone()),
        sees: member.map_or(Vec::new(), |member| peer_links(names, &member.record)),
        node_local: match own {
            true => running.clients.node_local_served(),
            false => member.map_or(Vec::new(), |member| member.record.node_local.clone()),
        },
    }
}

/// Whom a member hears, by name.
fn peer_links(names: &BTreeMap<NodeId, Name>, record: &NodeRecord) -> Vec<PeerLinkStatus> {
    let named = |(id, peer_link): (&NodeId, &PeerLink)| {
        Some(PeerLinkStatus {
            node: names.get(id)?.clone(),
            alive: peer_link.alive,
            rtt_ms: peer_link.rtt_us.map(|us| f64::from(us) / 1e3),
            loss_permille: peer_link.loss_permille,
        })
    };
    record.links.iter().filter_map(named).collect()
}

/// Identities that are used in two places.
fn duplicates(running: &RunningAgent, document: &Document) -> Vec<Problem> {
    let datagrams = running.link.datagrams();
    let aside = *datagrams.aside().borrow();
    let (own, others) = datagrams.duplicates(running.life.now());
    let problem = |node: &Name, detail: String, fix: &str| {
        Problem::new(ProblemCode::IdentityInUse, detail).about(node.as_str()).fix(fix)
    };
    let on_copy = "on the copy, run: agent leave --force, then join it with an invite";
    let own = match (aside, own) {
        (Some(at), _) => Some((
            format!("this node's identity is in use at {}, so this one takes no part", at.ip()),
            "if this is the copy, run: agent leave --force, then join with an invite; if not, stop the other",
        )),
        (None, Some(at)) => {
            Some((format!("another machine, {}, has this node's identity", at.ip()), on_copy))
        }
        (None, None) => None,
    };
    let own = own.map(|(detail, fix)| problem(&running.own.file().name, detail, fix));
    let others = others.into_iter().map(|(id, [first, second])| {
        let name = document.shown_name(&id);
        let (first, second) = (first.ip(), second.ip());
        let detail =
            format!("{name} runs in two places, {first} and {second}, with one identity; {first} counts");
        problem(&name, detail, on_copy)
    });
    own.into_iter().chain(others).collect()
}

/// Services that nobody offers. No event tells of them: backends have their own.
fn not_offered(running: &RunningAgent, view: &ClusterView, table: &BackendTable) -> Vec<Problem> {
    let now = wall();
    let young = |since: UnixMs| now.0.saturating_sub(since.0) < OFFERING;
    if young(running.own.began()) {
        return Vec::new();
    }
    let effective = running.clients.effective().now();
    let document = running.document();
    let nobody = |service: &&Service| {
        let name = &service.name;
        let below = format!("service.{name}.");
        let settings = document.settings.iter().filter(|(key, _)| key.starts_with(&below));
        let ignored = |one: &IgnoredClaim| matches!(&one.what, Ignored::NotNamed(service) if service == name);
        *name != ServiceName::kube_api()
            && table.get(name).is_none_or(Vec::is_empty)
            && !settings.into_iter().any(|(_, setting)| young(setting.at))
            // Told with who does, and how to allow it.
            && !view.not_counted.iter().any(ignored)
    };
    effective.services.iter().filter(nobody).map(|service| effective.settings.not_offered(service)).collect()
}

/// What is wrong with this node, except with telling of it.
pub(super) fn problems(running: &RunningAgent) -> Vec<Problem> {
    let view = running.peers.view().borrow().clone();
    let document = running.document();
    let effective = running.clients.effective().now();
    let now = wall();
    let mut problems = running.disk.found();
    problems.extend(supervisor::problems());
    if document.member(&running.link.own()).is_none() {
        let detail = "this node was removed from the cluster and serves from its last known good list";
        problems.push(Problem::new(ProblemCode::Removed, detail).fix("run: agent leave --force"));
    }
    problems.extend(duplicates(running, &document));
    let shared = document.shared_names();
    for (id, admitted) in document.members() {
        if shared.contains(&admitted.name) {
            let detail = format!("two members have the name {}; {id} is one of them", admitted.name);
            let fix = "use their ids, or remove one of them";
            problems.push(Problem::new(ProblemCode::NameTwice, detail).about(id.to_string()).fix(fix));
        }
    }
    problems.extend(no_address(running));
    let node = running.own.file();
    if let Some(why) = running.configured.borrow().place_changes(&node.place()).name_refused(&node.name) {
        problems.push(Problem::new(ProblemCode::SettingIgnored, why).about("name"));
    }
    if let Some(problem) = &running.vips.report().borrow().problem {
        let detail = format!("this node can't own virtual IPs: {problem}");
        problems.push(Problem::new(ProblemCode::VipUnable, detail));
    }
    for vip in running.vips.report().borrow().vips.iter().filter(|vip| vip.cause == Some(Cause::Stranger)) {
        let fix = "find that machine by its MAC and take the address from it";
        let problem = Problem::new(ProblemCode::VipStranger, &vip.reason);
        problems.push(problem.about(vip.address.to_string()).fix(fix));
    }
    problems.extend(running.endpoints.borrow().clone());
    let node_local = running.clients.node_local().borrow().clone();
    problems.extend(node_local.wrong.iter().map(|(address, why)| {
        let held = node_local.held.contains(address);
        settings::node_local_problem(*address, held, why)
    }));
    problems.extend(running.peers.gossip_problems().problems(&document, now));
    // Where a node is, is proven within milliseconds of its record: only what lasts is a problem.
    let lasting = |one: &&IgnoredClaim| match one.what {
        Ignored::Unproven(..) => now.0.saturating_sub(one.since.0) >= PROVING,
        _ => true,
    };
    problems.extend(view.not_counted.iter().filter(lasting).map(IgnoredClaim::problem));
    for mistake in &effective.mistakes {
        let detail = format!("cluster-wide setting ignored: {mistake}");
        problems.push(Problem::new(ProblemCode::SettingIgnored, detail).about(&mistake.key));
    }
    if running.clients.descriptors() < 4096 {
        let detail = format!("the open file limit is only {}", running.clients.descriptors());
        let fix = "raise LimitNOFILE to serve more connections";
        problems.push(Problem::new(ProblemCode::FewDescriptors, detail).fix(fix));
    }
    problems
}

/// Why other nodes cannot reach this one.
fn no_address(running: &RunningAgent) -> Option<Problem> {
    let OwnInterface { name, missing } = running.own.interface();
    let at = running.own.file().address;
    let (why, fix) = match missing? {
        NoOwnAddress::NoInterface => (
            format!("there is no interface {name}, and no other has {at}"),
            format!(
                "bring {name} up; if it has another name and address now: set interface in agent.toml, and restart the agent"
            ),
        ),
        NoOwnAddress::Down => (format!("{name} is down or has no carrier"), format!("ip link set {name} up")),
        NoOwnAddress::Removed => (
            format!("{name} no longer has {at}"),
            format!("give it back to {name}, or set address in agent.toml and restart the agent"),
        ),
        NoOwnAddress::Useless => {
            (format!("{name} has no address that other nodes can reach"), format!("give {at} back to it"))
        }
    };
    let detail = format!("{why}, so other nodes cannot reach this one");
    Some(Problem::new(ProblemCode::NoAddress, detail).about(name).fix(fix))
}
