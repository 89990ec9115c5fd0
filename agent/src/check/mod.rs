//! Checks this node's own services, and publishes what it offers.
//!
//! Tasks: one for each service checks it and owns its [`HealthTracker`]; one owner starts and stops them as
//! the configuration changes, and is the only writer of [`OwnHealth`]. The checkers report to the owner by a
//! bounded queue; each report carries a generation, so that a report of a replaced checker no longer counts.
//! Stopping anywhere is safe: a check changes nothing but the next report.

mod counts;
mod credentials;
mod inspect;
mod kube;
mod probe;
#[cfg(test)]
mod tests;
mod tls;
mod watcher;

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use proto::backends::LastKnownGood;
use proto::health::{HealthTracker, ServiceHealth};
use proto::node::NodeId;
use proto::record::ServiceOffer;
use proto::service::{Service, ServiceName};
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;

use crate::lifecycle::{Lifecycle, wall};
pub(crate) use counts::CheckCounters;
pub(crate) use inspect::inspect;
pub(crate) use kube::{KubeClient, KubeError};
use watcher::ServiceWatcher;

/// This node's offers: only services that have, or had a moment ago, an instance here.
pub(crate) type OwnHealth = BTreeMap<ServiceName, ServiceOffer>;

/// Reports queued for the owner. It takes them at once; this many cover every service reporting at the same
/// moment.
const REPORTS: usize = 64;

/// This node's offers until they are checked: its own entries of `serving`, the last known good list, with what the
/// process before this one has handed over of its checks. Others reset their connections to a master that withdraws its
/// offer, so only a check may withdraw it.
pub(crate) fn until_checked(
    services: &[Service],
    serving: &LastKnownGood,
    own: &NodeId,
    handed: &[(ServiceName, ServiceHealth)],
) -> OwnHealth {
    let before = |service: &Service| {
        let (_, list) = serving.iter().find(|(name, _)| *name == service.name)?;
        let address = list.iter().find(|one| one.node == *own)?.address;
        let address = watcher::offered_address(service, Some(address.ip()))?;
        let checked = handed.iter().find(|(name, _)| *name == service.name);
        let health =
            checked.map_or_else(|| ServiceHealth::not_checked_yet(wall()), |(_, health)| health.clone());
        Some((service.name.clone(), ServiceOffer { address, weight: service.weight, health, check_ms: None }))
    };
    services.iter().filter(|service| service.offer).filter_map(before).collect()
}

/// Checks the configured services until shutdown. `out` keeps its value until a check changes it, see
/// [`until_checked`]. `own` is this node's mesh address. Checks continue while the node drains: its apiserver
/// serves others as long as it runs.
pub(crate) fn spawn(
    services: watch::Receiver<Arc<Vec<Service>>>,
    own: watch::Receiver<Option<IpAddr>>,
    first: OwnHealth,
    counts: Arc<CheckCounters>,
    life: &Lifecycle,
) -> watch::Receiver<Arc<OwnHealth>> {
    let (out, health) = watch::channel(Arc::new(first));
    spawn_at(services, own, out, counts, life, Path::new("/"));
    health
}

/// As [`spawn`], with Kubernetes' files below `root`.
fn spawn_at(
    services: watch::Receiver<Arc<Vec<Service>>>,
    own: watch::Receiver<Option<IpAddr>>,
    out: watch::Sender<Arc<OwnHealth>>,
    counts: Arc<CheckCounters>,
    life: &Lifecycle,
    root: &Path,
) {
    let (reports, inbox) = mpsc::channel(REPORTS);
    let owner = CheckerOwner {
        services,
        own,
        out,
        life: life.clone(),
        root: root.to_owned(),
        reports,
        counts,
        running: BTreeMap::new(),
        generation: 0,
    };
    life.supervise("check", (owner, inbox), |(owner, inbox)| Box::pin(owner.run(inbox)));
}

/// A checker's report; `offer` is `None` while there is no instance here.
struct CheckerReport {
    name: ServiceName,
    generation: u64,
    offer: Option<ServiceOffer>,
}

/// The owner's handle to a checker.
struct RunningChecker {
    service: Service,
    listeners: Arc<[SocketAddr]>,
    generation: u64,
    stop: CancellationToken,
}

struct CheckerOwner {
    services: watch::Receiver<Arc<Vec<Service>>>,
    own: watch::Receiver<Option<IpAddr>>,
    out: watch::Sender<Arc<OwnHealth>>,
    life: Lifecycle,
    root: PathBuf,
    reports: mpsc::Sender<CheckerReport>,
    counts: Arc<CheckCounters>,
    running: BTreeMap<ServiceName, RunningChecker>,
    generation: u64,
}

impl CheckerOwner {
    async fn run(&mut self, inbox: &mut mpsc::Receiver<CheckerReport>) {
        let over = self.life.shutdown.clone();
        // Checkers of an earlier run, which has failed, are replaced; their reports stand until then.
        for (_, running) in std::mem::take(&mut self.running) {
            running.stop.cancel();
        }
        self.reconcile();
        loop {
            tokio::select! {
                () = over.cancelled() => return,
                Ok(()) = self.services.changed() => self.reconcile(),
                Some(report) = inbox.recv() => self.take(report),
            }
        }
    }

    /// Starts and stops checkers to match the configuration. One whose service changed is restarted, and the
    /// old report stands until the new checker has a result.
    fn reconcile(&mut self) {
        let services = Arc::clone(&self.services.borrow_and_update());
        let listeners: Arc<[SocketAddr]> =
            services.iter().flat_map(|service| service.listen.iter().copied()).collect();
        self.running.retain(|_, running| {
            let kept = running.service.offer
                && services.contains(&running.service)
                && running.listeners == listeners;
            if !kept {
                running.stop.cancel();
            }
            kept
        });
        let offered = || services.iter().filter(|service| service.offer);
        for service in offered() {
            if !self.running.contains_key(&service.name) {
                self.start(service, &listeners);
            }
        }
        self.publish(|health| health.retain(|name, _| offered().any(|service| service.name == *name)));
    }

    fn start(&mut self, service: &Service, listeners: &Arc<[SocketAddr]>) {
        self.generation += 1;
        let (rise, fall) = (service.check.rise, service.check.fall);
        let said = self.out.borrow().get(&service.name).map(|offer| offer.health.clone());
        let checker = match said {
            Some(health) => HealthTracker::resume(rise, fall, health, self.life.now()),
            None => HealthTracker::new(rise, fall),
        };
        let stop = self.life.shutdown.child_token();
        let watcher = ServiceWatcher {
            service: service.clone(),
            listeners: Arc::clone(listeners),
            probes: Vec::new(),
            root: self.root.clone(),
            checker,
            own: self.own.clone(),
            life: self.life.clone(),
            generation: self.generation,
            reports: self.reports.clone(),
            hint: None,
            counts: self.counts.clone(),
            check_ms: None,
        };
        let until = stop.clone();
        self.life.supervise("check", watcher, move |watcher| {
            let until = until.clone();
            Box::pin(async move {
                until.run_until_cancelled(watcher.run()).await;
            })
        });
        let running = RunningChecker {
            service: service.clone(),
            listeners: Arc::clone(listeners),
            generation: self.generation,
            stop,
        };
        self.running.insert(service.name.clone(), running);
    }

    fn take(&mut self, report: CheckerReport) {
        if self.running.get(&report.name).is_none_or(|running| running.generation != report.generation) {
            return;
        }
        self.publish(|health| match report.offer {
            Some(offer) => {
                health.insert(report.name, offer);
            }
            None => {
                health.remove(&report.name);
            }
        });
    }

    fn publish(&self, change: impl FnOnce(&mut OwnHealth)) {
        self.out.send_if_modified(|current| {
            let mut next = OwnHealth::clone(current);
            change(&mut next);
            let changed = next != **current;
            if changed {
                *current = Arc::new(next);
            }
            changed
        });
    }
}
