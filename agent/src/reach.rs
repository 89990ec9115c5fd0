//! Which backends can be reached from here: owns every [`Path`], feeds them evidence, and publishes the
//! table that the proxy follows.
//!
//! One task. Evidence comes from gossip (heard or silent), from the proxy's dials, and from probes that
//! this task starts itself when a path is in doubt, each a task that ends within a second. It also keeps
//! the last good list, which is what a node dials after a restart before it has heard anyone.

use std::collections::BTreeMap;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use proto::backends::{Backend, LastGood, Serving, Table, backends};
use proto::cause::Detail;
use proto::health::{Health, Readiness};
use proto::node::{Name, NodeId};
use proto::path::{Evidence, Path, Report};
use proto::pulse::{Ears, Hearing};
use proto::service::{Service, ServiceName};
use proto::settings::Settings;
use proto::time::UnixMs;
use proto::view::View;
use tokio::net::TcpStream;
use tokio::sync::{mpsc, watch};

use crate::lifecycle::{Life, wall};

/// Reports that wait for the task. The proxy drops what does not fit: the next dial says the same.
pub(crate) const REPORTS: usize = 256;

/// What the task works with.
pub(crate) struct Inputs {
    pub(crate) services: watch::Receiver<Arc<Vec<Service>>>,
    pub(crate) view: watch::Receiver<Arc<View>>,
    /// What pulses hear.
    pub(crate) ears: watch::Receiver<Arc<Ears>>,
    /// Of the whole cluster: drains, which hold also while the agent of a node can't say so.
    pub(crate) settings: watch::Receiver<Arc<Settings>>,
    pub(crate) reports: mpsc::Receiver<Report>,
    pub(crate) probes: mpsc::Sender<Report>,
    /// Who is a member: removed nodes are no backends, whatever old lists say.
    pub(crate) is_member: Arc<dyn Fn(&NodeId) -> bool + Send + Sync>,
}

/// Starts the task. Both outputs are written here alone.
pub(crate) fn spawn(
    inputs: Inputs,
    table: watch::Sender<Arc<Table>>,
    serving: watch::Sender<Arc<Serving>>,
    life: &Life,
) {
    let reach =
        Keeper { paths: BTreeMap::new(), said: Said::default(), inputs, table, serving, life: life.clone() };
    life.supervise("reachability", reach, |reach| Box::pin(reach.run()));
}

/// The table that the last good list alone gives: what is dialled in the first milliseconds.
pub(crate) fn first_table(services: &[Service], serving: &Serving) -> Table {
    let view = View::default();
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

fn last<'a>(serving: &'a Serving, service: &ServiceName) -> &'a [LastGood] {
    serving.iter().find(|(name, _)| name == service).map_or(&[], |(_, list)| list.as_slice())
}

/// The view with the latest word of everyone whom pulses hear laid over what gossip says: a change travels
/// in one pulse, and gossip takes seconds.
#[derive(Default)]
struct Said {
    view: View,
    /// Readiness by pulse that gossip does not say yet, and since when.
    ahead: BTreeMap<(NodeId, ServiceName), (Readiness, UnixMs)>,
}

impl Said {
    fn overlay(&mut self, view: &View, ears: &Ears, drains: &BTreeMap<Name, UnixMs>) {
        let mut view = view.clone();
        let mut ahead = BTreeMap::new();
        for member in view.members.values_mut() {
            let Some(ear) = ears.get(&member.id) else { continue };
            match ear.hearing {
                Hearing::Unknown => continue,
                Hearing::Heard | Hearing::Late => member.heard = true,
                Hearing::Lost => {
                    // Its agent has stopped, or the machine has: what it said of stopping is over, and
                    // what TCP finds is what counts.
                    member.heard = false;
                    member.word.left = false;
                    member.word.draining = None;
                    continue;
                }
            }
            let Some(saying) = &ear.saying else { continue };
            member.word.left = saying.leaving;
            let since = member.word.draining.unwrap_or_else(wall);
            member.word.draining = saying.draining.then_some(since);
            for (name, offer) in &mut member.word.services {
                let health = &offer.health;
                let by_gossip = (health.readiness, health.cause);
                let Some(&(said, cause)) = saying.services.get(name).filter(|said| **said != by_gossip)
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
                // What is known beyond the cause takes gossip's time.
                offer.health = Health { readiness: said, cause, detail: Detail::default(), since };
            }
        }
        for member in view.members.values_mut() {
            if let Some(since) = drains.get(&member.word.name) {
                member.word.draining = Some(*since);
            }
        }
        (self.view, self.ahead) = (view, ahead);
    }
}

struct Keeper {
    paths: BTreeMap<(NodeId, ServiceName), Path>,
    said: Said,
    inputs: Inputs,
    table: watch::Sender<Arc<Table>>,
    serving: watch::Sender<Arc<Serving>>,
    life: Life,
}

impl Keeper {
    async fn run(&mut self) {
        // What an earlier run believed, which has failed, is learnt again.
        (self.paths, self.said) = Default::default();
        self.inputs.view.mark_changed();
        self.settle();
        loop {
            let deadline = self.paths.values().filter_map(Path::next_probe).min();
            let probe = async {
                match deadline {
                    Some(at) => tokio::time::sleep_until(self.life.instant(at)).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                () = self.life.over.cancelled() => return,
                () = probe => {}
                Ok(()) = self.inputs.view.changed() => self.listen(),
                Ok(()) = self.inputs.ears.changed() => self.listen(),
                Ok(()) = self.inputs.settings.changed() => self.listen(),
                Ok(()) = self.inputs.services.changed() => { self.inputs.services.borrow_and_update(); }
                Some(report) = self.inputs.reports.recv() => {
                    self.weigh(report);
                    // A burst of dials is settled once.
                    while let Ok(report) = self.inputs.reports.try_recv() {
                        self.weigh(report);
                    }
                }
            }
            self.start_probes();
            self.settle();
        }
    }

    /// Turns what is heard into evidence: by pulses, and by gossip of those that have not answered any yet.
    fn listen(&mut self) {
        let view = self.inputs.view.borrow_and_update().clone();
        let ears = self.inputs.ears.borrow_and_update().clone();
        for member in view.members.values() {
            let by_gossip = if member.heard { Hearing::Heard } else { Hearing::Lost };
            let hearing = match ears.get(&member.id).map(|ear| ear.hearing) {
                None | Some(Hearing::Unknown) => by_gossip,
                Some(hearing) => hearing,
            };
            for service in member.word.services.keys() {
                let evidence = Evidence::Hearing(hearing);
                self.weigh(Report { node: member.id, service: service.clone(), evidence });
            }
        }
        let settings = self.inputs.settings.borrow_and_update().clone();
        self.said.overlay(&view, &ears, &settings.drains);
        let is_member = self.inputs.is_member.clone();
        self.paths.retain(|(id, _), _| is_member(id));
    }

    fn weigh(&mut self, report: Report) {
        let Report { node, service, evidence } = report;
        let path = self.paths.entry((node, service)).or_insert_with(|| Path::new(wall()));
        path.observe(self.life.now(), wall(), evidence);
    }

    fn start_probes(&mut self) {
        let now = self.life.now();
        let table = self.table.borrow().clone();
        for ((node, service), path) in &mut self.paths {
            if path.next_probe().is_none_or(|at| at > now) {
                continue;
            }
            let within = path.probe_timeout();
            path.probe_started(now);
            let backend = table.get(service).and_then(|all| all.iter().find(|backend| backend.node == *node));
            let Some(address) = backend.map(|backend| backend.address) else { continue };
            let (node, service, probes) = (*node, service.clone(), self.inputs.probes.clone());
            self.life.spawn(async move {
                let evidence = probe(address, within).await;
                let _ = probes.try_send(Report { node, service, evidence });
            });
        }
    }

    /// Publishes the table, and the last good list, when they have changed.
    fn settle(&mut self) {
        let view = &self.said.view;
        let services = self.inputs.services.borrow().clone();
        let old = self.serving.borrow().clone();
        let table: Table = services
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

/// The last good list after this table: what is good now, and what is only in doubt or unheard stays; a
/// list is never emptied (k3s#11349).
fn next_serving(table: &Table, old: &Serving) -> Serving {
    table
        .iter()
        .map(|(name, all)| {
            let keep = |backend: &&Backend| {
                backend.state.is_good() || last(old, name).iter().any(|one| one.node == backend.node)
            };
            let list: Vec<LastGood> = all
                .iter()
                .filter(keep)
                .map(|backend| LastGood {
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

/// Connects once and hangs up.
async fn probe(address: SocketAddr, within: Duration) -> Evidence {
    let started = Instant::now();
    match tokio::time::timeout(within, TcpStream::connect(address)).await {
        Ok(Ok(_)) => Evidence::Connected { took: started.elapsed().max(Duration::from_micros(1)) },
        Ok(Err(error)) if error.kind() == io::ErrorKind::ConnectionRefused => Evidence::Refused,
        Ok(Err(_)) | Err(_) => Evidence::Unanswered,
    }
}

#[cfg(test)]
mod tests {
    use proto::backends::{Fate, State, fate};
    use proto::cause::Cause;
    use proto::pulse::{Ear, Saying};
    use proto::record::{NodeRecord, Offer};
    use proto::view::Member;

    use super::*;

    fn member(n: u8) -> Member {
        let health = Health {
            readiness: Readiness::Ready,
            cause: Cause::Http(200),
            detail: Detail::default(),
            since: UnixMs(1),
        };
        let offer =
            Offer { address: SocketAddr::from(([10, 0, 0, n], 6443)), weight: 100, health, check_ms: None };
        let services = BTreeMap::from([(ServiceName::kube_api(), offer)]);
        let word = NodeRecord { services, ..NodeRecord::new(Name::nearest(&format!("m{n}"))) };
        Member { id: NodeId([n; NodeId::LEN]), word, heard: true, since: UnixMs(0) }
    }

    /// What becomes of what is held to a master that says by pulse that it is down, and gossip not yet.
    fn held(cause: Cause) -> (State, Fate) {
        let view = View {
            members: [member(1), member(2)].map(|member| (member.id, member)).into(),
            not_counted: Vec::new(),
        };
        let name = ServiceName::kube_api();
        let saying = Saying {
            services: BTreeMap::from([(name.clone(), (Readiness::Down, cause))]),
            ..Saying::default()
        };
        let down = NodeId([1; NodeId::LEN]);
        let ear = Ear { hearing: Hearing::Heard, saying: Some(saying), rtt: None, loss_permille: 0 };
        let mut said = Said::default();
        said.overlay(&view, &BTreeMap::from([(down, ear)]), &BTreeMap::new());
        let backends = backends(&name, &said.view, &BTreeMap::new(), &[], |_| true);
        let state = backends.iter().find(|one| one.node == down).map(|one| one.state).unwrap();
        (state, fate(&down, &backends))
    }

    #[test]
    fn a_pulse_tells_a_closed_port_from_an_apiserver_that_hangs() {
        assert_eq!(held(Cause::PortClosed), (State::Down, Fate::Leave), "it may be stopping in peace");
        assert_eq!(held(Cause::TimedOut), (State::Down, Fate::Reset));
        let later = Cause::from_wire(60_000, 0);
        assert_eq!(held(later), (State::Down, Fate::Reset), "down for a cause of a later version");
    }
}
