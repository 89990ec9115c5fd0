//! Which backends can be reached from here: owns every [`BackendPath`], feeds them evidence, and publishes
//! the table that the proxy uses.
//!
//! One task. Evidence comes from pulses and gossip, from the proxy's dials, and from probes that this task
//! starts itself when a path is in doubt ([`probe`]), each a task that ends within some seconds. It also keeps
//! the last known good list, which a node dials after a restart before it has heard from anyone.

mod probe;

use std::collections::BTreeMap;
use std::sync::Arc;

use proto::backends::{Backend, BackendTable, KnownBackend, LastKnownGood, backends};
use proto::cause::Detail;
use proto::health::{Readiness, ServiceHealth};
use proto::node::{Name, NodeId};
use proto::path::{BackendPath, Evidence, EvidenceReport};
use proto::pulse::{Liveness, PeerLivenessMap};
use proto::service::{Service, ServiceName};
use proto::settings::Settings;
use proto::time::UnixMs;
use proto::view::ClusterView;
use tokio::sync::{mpsc, watch};

use crate::lifecycle::{Lifecycle, wall};

/// Reports queued for the task. The proxy drops what does not fit: the next dial says the same.
pub(crate) const REPORTS: usize = 256;

/// What the task needs.
pub(crate) struct ReachabilityInputs {
    pub(crate) services: watch::Receiver<Arc<Vec<Service>>>,
    pub(crate) view: watch::Receiver<Arc<ClusterView>>,
    /// Liveness from pulses.
    pub(crate) liveness: watch::Receiver<Arc<PeerLivenessMap>>,
    /// Cluster-wide settings: drains, which also apply while the agent of a node can't report them.
    pub(crate) settings: watch::Receiver<Arc<Settings>>,
    pub(crate) reports: mpsc::Receiver<EvidenceReport>,
    pub(crate) probes: mpsc::Sender<EvidenceReport>,
    /// Whether a node is a member: removed nodes are no backends, whatever old lists contain.
    pub(crate) is_member: Arc<dyn Fn(&NodeId) -> bool + Send + Sync>,
}

/// Starts the task, the only writer of the table and of the returned last known good list.
pub(crate) fn spawn(
    inputs: ReachabilityInputs,
    table: watch::Sender<Arc<BackendTable>>,
    serving: LastKnownGood,
    life: &Lifecycle,
) -> watch::Receiver<Arc<LastKnownGood>> {
    let (serving, list) = watch::channel(Arc::new(serving));
    let reach = ReachabilityTask {
        paths: BTreeMap::new(),
        said: StatusOverlay::default(),
        inputs,
        table,
        serving,
        hello: probe::hello_config().ok(),
        life: life.clone(),
    };
    life.supervise("reachability", reach, |reach| Box::pin(reach.run()));
    list
}

/// The table from the last known good list alone, for the first milliseconds.
pub(crate) fn first_table(services: &[Service], serving: &LastKnownGood) -> BackendTable {
    let view = ClusterView::default();
    let paths = BTreeMap::new();
    services
        .iter()
        .map(|service| {
            (
                service.name.clone(),
                backends(&service.name, &view, &paths, last(serving, &service.name), |_| true),
            )
        })
        .collect()
}

fn last<'a>(serving: &'a LastKnownGood, service: &ServiceName) -> &'a [KnownBackend] {
    serving.iter().find(|(name, _)| name == service).map_or(&[], |(_, list)| list.as_slice())
}

/// Overlays the view with the latest pulse status of every live node: a change takes one pulse, and by gossip
/// seconds.
#[derive(Default)]
struct StatusOverlay {
    view: ClusterView,
    /// Readiness from pulses that gossip does not have yet, and since when.
    ahead: BTreeMap<(NodeId, ServiceName), (Readiness, UnixMs)>,
}

impl StatusOverlay {
    fn overlay(&mut self, view: &ClusterView, liveness: &PeerLivenessMap, drains: &BTreeMap<Name, UnixMs>) {
        let mut view = view.clone();
        let mut ahead = BTreeMap::new();
        for member in view.members.values_mut() {
            let Some(peer_liveness) = liveness.get(&member.id) else { continue };
            match peer_liveness.liveness {
                Liveness::Unknown => continue,
                Liveness::Alive | Liveness::Late => member.heard = true,
                Liveness::Silent | Liveness::CutOff => {
                    // Its agent has stopped, or the machine has: its last stop announcement is obsolete, and
                    // TCP decides.
                    member.heard = false;
                    member.record.left = false;
                    member.record.draining = None;
                    continue;
                }
            }
            let Some(pulse_status) = &peer_liveness.status else { continue };
            member.record.left = pulse_status.leaving;
            let since = member.record.draining.unwrap_or_else(wall);
            member.record.draining = pulse_status.draining.then_some(since);
            for (name, offer) in &mut member.record.services {
                let health = &offer.health;
                let by_gossip = (health.readiness, health.cause);
                let Some(&(said, cause)) = pulse_status.services.get(name).filter(|said| **said != by_gossip)
                else {
                    continue;
                };
                let key = (member.id, name.clone());
                let since = match self.ahead.get(&key) {
                    _ if health.readiness == said => health.since,
                    Some((known, since)) if *known == said => *since,
                    _ => wall(),
                };
                ahead.insert(key, (said, since));
                // Details other than the cause arrive by gossip.
                offer.health = ServiceHealth { readiness: said, cause, detail: Detail::default(), since };
            }
        }
        for member in view.members.values_mut() {
            if let Some(since) = drains.get(&member.record.name) {
                member.record.draining = Some(*since);
            }
        }
        (self.view, self.ahead) = (view, ahead);
    }
}

struct ReachabilityTask {
    paths: BTreeMap<(NodeId, ServiceName), BackendPath>,
    said: StatusOverlay,
    inputs: ReachabilityInputs,
    table: watch::Sender<Arc<BackendTable>>,
    serving: watch::Sender<Arc<LastKnownGood>>,
    /// What probes say hello with; `None`: it can't be set up, which no input causes, and a connect has to do.
    hello: Option<Arc<rustls::ClientConfig>>,
    life: Lifecycle,
}

impl ReachabilityTask {
    async fn run(&mut self) {
        // State of an earlier run, which has failed, is learnt again.
        (self.paths, self.said) = Default::default();
        self.inputs.view.mark_changed();
        self.publish_table();
        loop {
            let deadline = self.paths.values().filter_map(BackendPath::next_probe).min();
            let probe = async {
                match deadline {
                    Some(at) => tokio::time::sleep_until(self.life.instant(at)).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                () = self.life.shutdown.cancelled() => return,
                () = probe => {}
                Ok(()) = self.inputs.view.changed() => self.listen(),
                Ok(()) = self.inputs.liveness.changed() => self.listen(),
                Ok(()) = self.inputs.settings.changed() => self.listen(),
                Ok(()) = self.inputs.services.changed() => { self.inputs.services.borrow_and_update(); }
                Some(report) = self.inputs.reports.recv() => {
                    self.apply_evidence(report);
                    // A burst of dials is handled once.
                    while let Ok(report) = self.inputs.reports.try_recv() {
                        self.apply_evidence(report);
                    }
                }
            }
            self.start_probes();
            self.publish_table();
        }
    }

    /// Turns liveness into evidence: from pulses, and from gossip for nodes that have not answered any yet.
    fn listen(&mut self) {
        let view = self.inputs.view.borrow_and_update().clone();
        let liveness = self.inputs.liveness.borrow_and_update().clone();
        for member in view.members.values() {
            let by_gossip = if member.heard { Liveness::Alive } else { Liveness::Silent };
            let liveness = match liveness.get(&member.id).map(|peer_liveness| peer_liveness.liveness) {
                None | Some(Liveness::Unknown) => by_gossip,
                Some(liveness) => liveness,
            };
            for service in member.record.services.keys() {
                let evidence = Evidence::Liveness(liveness);
                self.apply_evidence(EvidenceReport { node: member.id, service: service.clone(), evidence });
            }
        }
        let settings = self.inputs.settings.borrow_and_update().clone();
        self.said.overlay(&view, &liveness, &settings.drains);
        let is_member = self.inputs.is_member.clone();
        self.paths.retain(|(id, _), _| is_member(id));
    }

    fn apply_evidence(&mut self, report: EvidenceReport) {
        let EvidenceReport { node, service, evidence } = report;
        let speaks_tls = self.hello.is_some() && self.speaks_tls(&service);
        let path = self.paths.entry((node, service)).or_insert_with(|| BackendPath::new(wall()));
        path.set_speaks_tls(speaks_tls);
        path.observe(self.life.now(), wall(), evidence);
    }

    /// By this node's own check of the service, which is the same on every node.
    fn speaks_tls(&self, service: &ServiceName) -> bool {
        self.inputs.services.borrow().iter().any(|one| one.name == *service && one.check.kind.speaks_tls())
    }

    fn start_probes(&mut self) {
        let tls: Vec<ServiceName> = self
            .inputs
            .services
            .borrow()
            .iter()
            .filter(|one| one.check.kind.speaks_tls())
            .map(|one| one.name.clone())
            .collect();
        let now = self.life.now();
        let table = self.table.borrow().clone();
        for ((node, service), path) in &mut self.paths {
            // Several, where this loop is late.
            while path.next_probe().is_some_and(|at| at <= now) {
                let within = path.probe_timeout();
                path.probe_started(now);
                let backend = table.get(service).and_then(|all| all.iter().find(|one| one.node == *node));
                let Some(address) = backend.map(|backend| backend.address) else { continue };
                let hello = self.hello.clone().filter(|_| tls.contains(service));
                let (node, service, probes) = (*node, service.clone(), self.inputs.probes.clone());
                self.life.spawn(async move {
                    let report = |evidence| {
                        let _ = probes.try_send(EvidenceReport { node, service: service.clone(), evidence });
                    };
                    probe::probe(address, within, hello, report).await;
                });
            }
        }
    }

    /// Publishes the table and the last known good list when they have changed.
    fn publish_table(&mut self) {
        let view = &self.said.view;
        let services = self.inputs.services.borrow().clone();
        let old = self.serving.borrow().clone();
        let table: BackendTable = services
            .iter()
            .map(|service| {
                let name = &service.name;
                let is_member = |id: &NodeId| (self.inputs.is_member)(id);
                (name.clone(), backends(name, view, &self.paths, last(&old, name), is_member))
            })
            .collect();
        if *self.table.borrow().as_ref() != table {
            let serving = next_serving(&table, &old);
            self.table.send_replace(Arc::new(table));
            if *old != serving {
                self.serving.send_replace(Arc::new(serving));
            }
        }
    }
}

/// The last known good list after this table: good backends, and those that are only suspect or unknown stay;
/// a list is never emptied (k3s#11349).
fn next_serving(table: &BackendTable, old: &LastKnownGood) -> LastKnownGood {
    table
        .iter()
        .map(|(name, all)| {
            let keep = |backend: &&Backend| {
                backend.state.is_good() || last(old, name).iter().any(|one| one.node == backend.node)
            };
            let list: Vec<KnownBackend> = all
                .iter()
                .filter(keep)
                .map(|backend| KnownBackend {
                    node: backend.node,
                    name: backend.name.clone(),
                    address: backend.address,
                    weight: backend.weight,
                })
                .collect();
            let list = if list.is_empty() { last(old, name).to_vec() } else { list };
            (name.clone(), list)
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use std::net::SocketAddr;

    use proto::backends::{BackendState, HeldAction, held_action};
    use proto::cause::Cause;
    use proto::pulse::{PeerLiveness, PulseStatus};
    use proto::record::{NodeRecord, ServiceOffer};
    use proto::view::MemberView;

    use super::*;

    fn member(n: u8) -> MemberView {
        let health = ServiceHealth {
            readiness: Readiness::Ready,
            cause: Cause::Http(200),
            detail: Detail::default(),
            since: UnixMs(1),
        };
        let offer = ServiceOffer {
            address: SocketAddr::from(([10, 0, 0, n], 6443)),
            weight: 100,
            health,
            check_ms: None,
        };
        let services = BTreeMap::from([(ServiceName::kube_api(), offer)]);
        let record = NodeRecord { services, ..NodeRecord::new(Name::nearest(&format!("m{n}"))) };
        MemberView { id: NodeId([n; NodeId::LEN]), record, heard: true, since: UnixMs(0) }
    }

    /// State and connections of a master that reports itself down by pulse, and by gossip not yet.
    fn held(cause: Cause) -> (BackendState, HeldAction) {
        let view = ClusterView {
            members: [member(1), member(2)].map(|member| (member.id, member)).into(),
            ..ClusterView::default()
        };
        let name = ServiceName::kube_api();
        let pulse_status = PulseStatus {
            services: BTreeMap::from([(name.clone(), (Readiness::Down, cause))]),
            ..PulseStatus::default()
        };
        let down = NodeId([1; NodeId::LEN]);
        let peer_liveness = PeerLiveness {
            liveness: Liveness::Alive,
            status: Some(Arc::new(pulse_status)),
            rtt: None,
            loss_permille: 0,
        };
        let mut said = StatusOverlay::default();
        said.overlay(&view, &BTreeMap::from([(down, peer_liveness)]), &BTreeMap::new());
        let backends = backends(&name, &said.view, &BTreeMap::new(), &[], |_| true);
        let state = backends.iter().find(|one| one.node == down).map(|one| one.state).unwrap();
        (state, held_action(&down, &backends))
    }

    #[test]
    fn a_pulse_tells_a_closed_port_from_an_apiserver_that_hangs() {
        assert_eq!(
            held(Cause::PortClosed),
            (BackendState::Down, HeldAction::Drain),
            "it may be shutting down gracefully"
        );
        assert_eq!(held(Cause::TimedOut), (BackendState::Down, HeldAction::Reset));
        let later = Cause::from_wire(60_000, 0);
        assert_eq!(
            held(later),
            (BackendState::Down, HeldAction::Reset),
            "down for a cause of a later version"
        );
    }
}
