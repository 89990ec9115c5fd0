//! `agent doctor`, put together: what is read here, what comes of speaking with the others, and what they
//! say of themselves. Each node reads its own files; what travels are findings.
//!
//! Nothing is kept and nothing changed, so stopping it anywhere is safe. A question costs its asker a
//! connection to each member, and each member one back and a look at its own files; a member answers few at
//! once.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use proto::backends::BackendState;
use proto::cause::Reason;
use proto::cluster::{Admitted, Document};
use proto::config::Config;
use proto::control::{BackendStatus, MemberState, RefusalCode, Response, ServiceStatus, Status};
use proto::doctor::facts::{
    AgentFacts, ApiserverFacts, HostFacts, InterfaceFacts, KubeFacts, RouteFacts, UnavailableBackend,
};
use proto::doctor::mesh::{MeshFacts, PeerConversation, PeerFacts, ReturnPath};
use proto::doctor::{DoctorAnswer, Examination, Finding, MOST_FINDINGS, host, mesh, x509};
use proto::node::NodeId;
use proto::problem::{Problem, ProblemCode};
use proto::pulse::Liveness;
use proto::rpc::{FailCode, FromMember, ToMember};
use proto::service::{Check, CheckKind, KUBE_API, Service};
use tokio::sync::Semaphore;

use super::{RunningAgent, members, status};
use crate::check;
use crate::doctor::{HostFiles, HostPaths, UNIT, sysctl};
use crate::lifecycle::wall;
use crate::transport::{Link, MemberRequest};
use crate::{control, net};

/// Members that are spoken with at once; each costs a few handshakes.
const AT_ONCE: usize = 16;

/// Time for all of them: below what the command line waits for.
const ALL: Duration = Duration::from_secs(24);

/// Time in which conversations begin; each takes as long as three seconds and an answer.
const START: Duration = Duration::from_secs(14);

/// Time for one answer: the member dials back, which takes three seconds where nothing answers.
const ANSWER: Duration = Duration::from_secs(6);

/// Bytes that go and come back: several packets of the largest size in use.
const FULL: usize = 24 * 1024;

/// Questions of members that are answered at once; more are asked to come again.
const EXAMINATIONS: usize = 4;

/// Ways to members that are looked up: of a larger cluster the first say enough.
const MOST_ROUTES: usize = 64;

/// Which files are read.
pub(crate) fn places(config: &Config) -> HostPaths {
    HostPaths {
        root: PathBuf::from("/"),
        state_dir: PathBuf::from(&config.state_dir),
        socket: Path::new(&config.runtime_dir).join(control::SOCKET),
        unit: UNIT,
        believed: config.believed_files().into_iter().map(PathBuf::from).collect(),
    }
}

/// This machine and its agent; `status` is none where no agent runs. `here` is the node where the findings
/// are read, unless it is this one; `asked_by` the version of a command that is not the agent itself.
pub(crate) async fn own(
    places: HostPaths,
    status: Option<&Status>,
    services: &[Service],
    here: Option<&str>,
    asked_by: Option<&str>,
) -> Examination {
    let root = places.root.clone();
    let files = tokio::task::spawn_blocking(move || places.read()).await.unwrap_or_default();
    let node = status.map_or("this node", |status| status.node.name.as_str()).to_owned();
    let agent = status.map(|status| agent(status, asked_by));
    let routes = status.map(routes).unwrap_or_default();
    let interfaces = net::interfaces().unwrap_or_default();
    let host = HostFacts {
        here: here.unwrap_or(&node).to_owned(),
        node,
        now: wall(),
        agent,
        is_member: files.is_member,
        kubernetes: kubernetes(&files, status, services, &root).await,
        service: files.service,
        loose: files.loose,
        untrusted: files.untrusted,
        unreadable: files.unreadable,
        interfaces: interfaces.iter().map(|one| interface(one, &root)).collect(),
        routes,
    };
    host::examine(&host)
}

fn agent(status: &Status, asked_by: Option<&str>) -> AgentFacts {
    let services = || status.services.iter();
    let closed = services()
        .flat_map(|service| service.failed_listeners().map(|at| format!("{} on {at}", service.name)));
    let away = services().flat_map(|service| {
        let away = |one: &&BackendStatus| {
            matches!(one.state, BackendState::Suspect | BackendState::NotReady | BackendState::Down)
        };
        service.backends.iter().filter(away).map(|one| UnavailableBackend {
            service: service.name.to_string(),
            node: one.node.to_string(),
            how: format!("{}, {}", one.state.as_str(), one.reason),
        })
    });
    // A service that nobody offers is a problem with its own steps.
    let told = |service: &ServiceStatus| {
        let of = |one: &Problem| one.code == ProblemCode::NotOffered && one.subject == service.name.as_str();
        status.problems.iter().any(of)
    };
    let nobody = |service: &&ServiceStatus| {
        !service.listen.is_empty()
            && !told(service)
            && !service.backends.iter().any(|backend| backend.state.is_good())
    };
    let unserved = |service: &ServiceStatus| {
        (service.name.to_string(), service.backends.iter().any(|one| one.state != BackendState::Down))
    };
    // What is told with its own finding is not told twice.
    let problems = status.problems.iter().filter(|problem| problem.code != ProblemCode::FewDescriptors);
    AgentFacts {
        version: status.node.version.clone(),
        asked_by: asked_by.map(str::to_owned),
        interface: status.node.interface.clone(),
        descriptors: status.node.descriptors,
        maxconn: status.services.iter().map(|service| u64::from(service.maxconn)).sum(),
        vips: status.vips.iter().map(|vip| vip.address).collect(),
        problems: problems.cloned().collect(),
        closed: closed.collect(),
        away: away.collect(),
        unserved: services().filter(nobody).map(unserved).collect(),
    }
}

fn interface(one: &net::Interface, root: &Path) -> InterfaceFacts {
    InterfaceFacts {
        name: one.name.clone(),
        speaks_arp: one.up && one.broadcast && !one.no_arp && !one.loopback && !one.point_to_point,
        addresses: one.addresses.iter().map(|address| (address.ip, address.prefix)).collect(),
        rp_filter: sysctl(root, &one.name, "rp_filter"),
        arp_ignore: sysctl(root, &one.name, "arp_ignore"),
    }
}

fn routes(status: &Status) -> Vec<RouteFacts> {
    let mut routes = Vec::new();
    let others = status.members.iter().filter(|member| member.id != status.node.id);
    for member in others.filter(|member| member.state != MemberState::Left).take(MOST_ROUTES) {
        let Ok(to) = member.address.parse() else { continue };
        let by = net::route_to(to).map(|route| route.interface).map_err(Reason::new);
        routes.push(RouteFacts { name: member.name.to_string(), to, by });
    }
    routes
}

async fn kubernetes(
    files: &HostFiles,
    status: Option<&Status>,
    services: &[Service],
    root: &Path,
) -> KubeFacts {
    let mut clients = files.clients.clone();
    for client in &mut clients {
        let host = client.url.split("://").nth(1).unwrap_or_default();
        let host = host.split('/').next().unwrap_or_default();
        client.at = net::resolve(host, 443).await.unwrap_or_default();
    }
    let api = services.iter().find(|service| service.name.as_str() == KUBE_API);
    let own = status.and_then(|status| {
        let service = status.services.iter().find(|service| service.name.as_str() == KUBE_API)?;
        service.backends.iter().find(|backend| backend.node == status.node.name)?.address.parse().ok()
    });
    let (look, at) = match (api, own) {
        (Some(Service { check: Check { kind: CheckKind::Https(_, tls), .. }, .. }), Some(at)) => {
            (check::inspect(at, tls, root).await, Some(at))
        }
        _ => (None, None),
    };
    let members = status.map(|status| {
        let known = status.members.iter().filter(|member| member.id != status.node.id);
        known.filter_map(|member| Some((member.name.to_string(), member.address.parse().ok()?))).collect()
    });
    KubeFacts {
        distribution: files.distribution,
        credentials: look.as_ref().is_some_and(|look| look.credentials),
        apiserver: look.zip(at).map(|(look, at)| ApiserverFacts {
            at,
            certificate: look.certificate.as_deref().and_then(x509::read),
            readyz: look.readyz,
        }),
        clients,
        own_balancer: files.own_balancer,
        api_listeners: listeners(status, services, |name| name == KUBE_API),
        listeners: listeners(status, services, |_| true),
        vips: status.map(|status| status.vips.iter().map(|vip| vip.address).collect()).unwrap_or_default(),
        members: members.unwrap_or_default(),
    }
}

/// Where the services listen: as the agent says, or else as this node's own file does.
fn listeners(status: Option<&Status>, services: &[Service], of: impl Fn(&str) -> bool) -> Vec<SocketAddr> {
    match status {
        Some(status) => {
            let services = status.services.iter().filter(|service| of(service.name.as_str()));
            services.flat_map(|service| service.listen.iter().map(|one| one.address)).collect()
        }
        None => {
            let services = services.iter().filter(|service| of(service.name.as_str()));
            services.flat_map(|service| service.listen.iter().copied()).collect()
        }
    }
}

/// Nobody is called so.
#[derive(Debug, thiserror::Error)]
#[error("there is no member \"{text}\"; the members are: {}", names.join(", "))]
struct NoMember {
    text: String,
    names: Vec<String>,
}

/// The members that are named by names or ids, or all, without this node.
fn chosen<'a>(
    document: &'a Document,
    nodes: &[String],
    own: NodeId,
) -> Result<Vec<(NodeId, &'a Admitted)>, NoMember> {
    let mut chosen: Vec<(NodeId, &Admitted)> = Vec::new();
    for node in nodes {
        let found = document.find(node);
        if found.is_empty() {
            let names = document.members().map(|(_, admitted)| admitted.name.to_string()).collect();
            return Err(NoMember { text: node.clone(), names });
        }
        chosen.extend(found);
    }
    if nodes.is_empty() {
        chosen = document.members().map(|(id, admitted)| (*id, admitted)).collect();
    }
    chosen.retain(|(id, _)| *id != own);
    chosen.sort_unstable_by_key(|(id, _)| *id);
    chosen.dedup_by_key(|(id, _)| *id);
    Ok(chosen)
}

/// Answers the command line: the ways to the members that are named, or all, and what these say.
pub(super) async fn answer(running: &Arc<RunningAgent>, nodes: &[String]) -> Response {
    let document = running.document();
    let wanted = match chosen(&document, nodes, running.link.own()) {
        Ok(wanted) => wanted,
        Err(error) => return Response::refused(RefusalCode::BadInput, error),
    };
    let view = running.peers.view().borrow().clone();
    let liveness = running.peers.liveness().borrow().clone();
    let best = |id: &NodeId| running.link.addresses().best(id);
    let more = match wanted.iter().all(|(id, _)| best(id).is_some()) {
        true => Vec::new(),
        false => members::full(running).await.members,
    };
    let port = running.own.file().port;
    let known = |id: &NodeId, admitted: &Admitted| PeerFacts {
        name: admitted.name.to_string(),
        address: best(id).or_else(|| {
            let said = more.iter().find(|one| one.id == *id)?;
            Some(SocketAddr::new(said.address.parse().ok()?, port))
        }),
        left: view.members.get(id).is_some_and(|member| member.record.left),
        cut_off: liveness.get(id).is_some_and(|one| one.liveness == Liveness::CutOff),
        ..PeerFacts::default()
    };
    let began = tokio::time::Instant::now();
    let until = began + ALL;
    let (mut peers, mut findings) = (Vec::new(), Vec::new());
    let mut waiting = wanted.into_iter();
    let mut under_way = FuturesUnordered::new();
    loop {
        while under_way.len() < AT_ONCE
            && began.elapsed() < START
            && let Some((id, admitted)) = waiting.next()
        {
            under_way.push(probe_member(&running.link, id, admitted, known(&id, admitted), until));
        }
        let Some((peer, theirs)) = under_way.next().await else { break };
        findings.extend(theirs.into_iter().take(MOST_FINDINGS).filter_map(|one| one.said_by(&peer.name)));
        peers.push(peer);
    }
    peers.sort_unstable_by(|a, b| a.name.cmp(&b.name));
    let skipped = waiting.count();
    let asked = peers.iter().filter(|peer| peer.talk == PeerConversation::Whole).count();
    let mut examined = mesh::examine(&facts(running, peers).await);
    if asked > 0 {
        let (have, whom) = if asked == 1 { ("", "itself") } else { ("s", "themselves") };
        let more = match skipped {
            0 => String::new(),
            _ => format!("; {skipped} skipped for lack of time; to check them, name them"),
        };
        examined.checked("others", format!("{asked} member{have} checked {whom} in the same way{more}"));
    }
    findings.sort_by(|a, b| a.node.cmp(&b.node));
    examined.findings.extend(findings);
    Response::Doctor(Box::new(examined))
}

async fn facts(running: &RunningAgent, peers: Vec<PeerFacts>) -> MeshFacts {
    let address = running.own.address();
    let port = running.own.file().port;
    let places = running.places.clone();
    let firewall = tokio::task::spawn_blocking(move || places.firewall()).await.unwrap_or_default();
    MeshFacts {
        node: running.own.file().name.to_string(),
        address: address.map_or_else(|| "no address".to_owned(), |ip| SocketAddr::new(ip, port).to_string()),
        interface: running.own.interface().name,
        mtu: mtu(&running.own.interface().name),
        port,
        firewall,
        peers,
    }
}

fn mtu(interface: &str) -> Option<u32> {
    Some(net::interface(interface).ok()??.mtu)
}

/// Speaks with one member, and adds to what is known what came of it. Returns also what it found of itself.
async fn probe_member(
    link: &Link,
    id: NodeId,
    admitted: &Admitted,
    mut peer: PeerFacts,
    until: tokio::time::Instant,
) -> (PeerFacts, Vec<Finding>) {
    let Some(address) = peer.address.filter(|_| !peer.left) else { return (peer, Vec::new()) };
    (peer.tcp, peer.udp) = link.dial_back(admitted.key, address).await;
    let mut findings = Vec::new();
    if peer.tcp.is_none() {
        (peer.talk, peer.back) = match ask(link, id, FULL, until).await {
            Ok((back, theirs)) => {
                findings = theirs;
                (PeerConversation::Whole, Some(back))
            }
            Err(AskError::Refused(why)) => (PeerConversation::Nothing(why), None),
            // Small packets only: everything but what makes the answer long.
            Err(AskError::Silent) => match ask(link, id, 0, until).await {
                Ok((back, _)) => (PeerConversation::SmallOnly, Some(back)),
                Err(AskError::Refused(why)) => (PeerConversation::Nothing(why), None),
                Err(AskError::Silent) => (PeerConversation::Nothing("no answer".to_owned()), None),
            },
        };
        peer.path_mtu = net::path_mtu(address);
    }
    (peer, findings)
}

/// Why a question was not answered.
enum AskError {
    Silent,
    Refused(String),
}

async fn ask(
    link: &Link,
    id: NodeId,
    bytes: usize,
    until: tokio::time::Instant,
) -> Result<(ReturnPath, Vec<Finding>), AskError> {
    let began = wall();
    let request = FromMember::Examine(vec![0; bytes]);
    let until = until.min(tokio::time::Instant::now() + ANSWER);
    let answer = tokio::time::timeout_at(until, link.dialer().call(id, &request)).await;
    let ended = wall();
    let answer = match answer {
        Err(_) => return Err(AskError::Silent),
        Ok(Ok(ToMember::Examined(answer, _))) => *answer,
        Ok(Ok(ToMember::Failed { reason, .. })) => return Err(AskError::Refused(reason)),
        Ok(Ok(_)) => return Err(AskError::Refused("unexpected answer".to_owned())),
        Ok(Err(error)) if error.is_silence() => return Err(AskError::Silent),
        Ok(Err(error)) => return Err(AskError::Refused(error.to_string())),
    };
    // As NTP has it (RFC 5905, section 8): its clock against ours, at the question and at the answer.
    let [t1, t2, t3, t4] =
        [began, answer.received, answer.sent, ended].map(|t| i64::try_from(t.0).unwrap_or(0));
    let ahead = t2.saturating_sub(t1).saturating_add(t3.saturating_sub(t4)) / 2;
    let slack = t4.saturating_sub(t1).saturating_sub(t3.saturating_sub(t2)) / 2;
    let back = ReturnPath {
        tcp: answer.tcp,
        udp: answer.udp,
        mtu: answer.mtu,
        ahead_ms: ahead,
        slack_ms: slack.max(0),
    };
    Ok((back, answer.findings))
}

/// How many questions of members may be answered at once.
pub(super) fn examinations() -> Arc<Semaphore> {
    Arc::new(Semaphore::new(EXAMINATIONS))
}

/// Answers a member that asks this node to look at itself, and back.
pub(super) fn answer_member(running: &Arc<RunningAgent>, slots: &Arc<Semaphore>, incoming: MemberRequest) {
    let received = wall();
    let MemberRequest { from, request: FromMember::Examine(mut padding), reply } = incoming else { return };
    padding.truncate(FULL);
    let Ok(slot) = slots.clone().try_acquire_owned() else {
        let _ = reply.send(ToMember::failed(FailCode::Busy, "it is busy with other checks; try again"));
        return;
    };
    let (running, over) = (running.clone(), running.life.shutdown.clone());
    running.life.clone().spawn(async move {
        let work = async {
            let document = running.document();
            let asker = document.member(&from);
            let (tcp, udp) = match (asker, running.link.addresses().best(&from)) {
                (Some(asker), Some(address)) => running.link.dial_back(asker.key, address).await,
                _ => (None, None),
            };
            let here = asker.map_or_else(String::new, |asker| asker.name.to_string());
            let findings = match padding.is_empty() {
                true => Vec::new(),
                false => agent_facts(&running, &here).await,
            };
            let mtu = mtu(&running.own.interface().name);
            let answer = DoctorAnswer { received, sent: wall(), mtu, tcp, udp, findings };
            let _ = reply.send(ToMember::Examined(Box::new(answer), padding));
        };
        over.run_until_cancelled(work).await;
        drop(slot);
    });
}

async fn agent_facts(running: &RunningAgent, here: &str) -> Vec<Finding> {
    let services = running.clients.effective().services().borrow().clone();
    let status = status::of(running);
    own(running.places.clone(), Some(&status), &services, Some(here), None).await.findings
}
