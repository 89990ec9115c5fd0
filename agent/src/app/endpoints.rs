//! Where pods are led that ask for the API, as masters watch it: `node-local.endpoints`.
//!
//! A master that starts with the default reconciler rewrites the endpoints of the Service `kubernetes` to its own
//! address with our port, and every pod loses the API. Nobody but the masters can see it, so each looks every few
//! seconds, says so, and puts it right where it may. Stopping the task anywhere is safe: what it applies is the same
//! each time.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use proto::backends::BackendTable;
use proto::event::{Event, EventKind, EventLevel};
use proto::kubernetes::{
    ENDPOINTS_PATH, Endpoints, SLICE_PATH, SLICES_PATH, SliceList, Target, endpoints_object, named,
    slice_object,
};
use proto::node::{Name, NodeId};
use proto::problem::{Problem, ProblemCode};
use proto::service::{CheckKind, Service, ServiceName, TlsCheck};
use proto::settings::{EndpointsMode, Settings};
use tokio::sync::{mpsc, watch};
use tracing::{info, warn};

use crate::check::{KubeClient, KubeError};
use crate::lifecycle::{Lifecycle, wall};
use crate::transport::TrustedKeys;

/// Between two looks.
const EVERY: Duration = Duration::from_secs(3);

/// Looks in a row that must fail before it is a problem that nothing is seen: an apiserver that restarts is none.
const BLIND: u32 = 5;

/// What the task reads.
pub(super) struct EndpointInputs {
    pub(super) own: NodeId,
    pub(super) settings: watch::Receiver<Arc<Settings>>,
    pub(super) services: watch::Receiver<Arc<Vec<Service>>>,
    pub(super) trust: watch::Receiver<Arc<TrustedKeys>>,
    pub(super) table: watch::Receiver<Arc<BackendTable>>,
    /// The addresses of all members.
    pub(super) members: Box<dyn Fn() -> Vec<(Name, IpAddr)> + Send>,
    pub(super) tell: mpsc::Sender<Event>,
}

/// The task.
struct EndpointTask {
    inputs: EndpointInputs,
    client: Option<(TlsCheck, KubeClient)>,
    /// Looks that have failed in a row.
    failed: u32,
    out: watch::Sender<Option<Problem>>,
}

/// Starts the task, which alone writes what is wrong.
pub(super) fn spawn(inputs: EndpointInputs, life: &Lifecycle) -> watch::Receiver<Option<Problem>> {
    let (out, problem) = watch::channel(None);
    let stopping = life.draining.clone();
    let task = EndpointTask { inputs, client: None, failed: 0, out };
    life.supervise("endpoints", task, move |task| {
        let stopping = stopping.clone();
        Box::pin(async move {
            stopping.run_until_cancelled(task.run()).await;
        })
    });
    problem
}

/// The check of kube-api, whose credentials are used.
pub(crate) fn credentials(services: &[Service]) -> TlsCheck {
    let api = services.iter().find(|service| service.name == ServiceName::kube_api());
    match api.map(|service| &service.check.kind) {
        Some(CheckKind::Https(_, tls)) => tls.clone(),
        _ => TlsCheck { discover: true, ..TlsCheck::default() },
    }
}

/// Where pods are led now.
pub(crate) async fn read(client: &mut KubeClient, at: SocketAddr) -> Result<BTreeSet<SocketAddr>, KubeError> {
    let endpoints: Option<Endpoints> = client.get(at, ENDPOINTS_PATH).await?;
    let slices: Option<SliceList> = client.get(at, SLICES_PATH).await?;
    Ok(named(&endpoints.unwrap_or_default(), &slices.unwrap_or_default()))
}

impl EndpointTask {
    async fn run(&mut self) {
        loop {
            let settings = self.inputs.settings.borrow_and_update().clone();
            let is_master = self.inputs.trust.borrow_and_update().document.is_master(&self.inputs.own);
            let wanted = &settings.node_local;
            if wanted.endpoints == EndpointsMode::Off || wanted.addresses.is_empty() || !is_master {
                self.failed = 0;
                self.publish(None);
                tokio::select! {
                    Ok(()) = self.inputs.settings.changed() => continue,
                    Ok(()) = self.inputs.trust.changed() => continue,
                    else => return,
                }
            }
            let problem = self.look(&settings).await;
            self.publish(problem);
            tokio::select! {
                () = tokio::time::sleep(EVERY) => {}
                Ok(()) = self.inputs.settings.changed() => {}
            }
        }
    }

    /// Looks once, and puts right what is wrong where that is wanted; returns what is wrong then.
    async fn look(&mut self, settings: &Settings) -> Option<Problem> {
        let at = self.apiserver()?;
        let (addresses, port) = (&settings.node_local.addresses, settings.node_local.kube_api_port());
        let now = match self.read(at).await {
            Ok(now) => now,
            Err(error) => {
                self.failed = self.failed.saturating_add(1);
                let forbidden = matches!(error, KubeError::Forbidden(_) | KubeError::NoCredentials);
                let before = self.out.borrow().clone();
                return if forbidden || self.failed >= BLIND { Some(blind(&error)) } else { before };
            }
        };
        self.failed = 0;
        let target = Target::of(addresses, port, &now)?;
        let wrong = self.deviation(target, &now)?;
        if settings.node_local.endpoints != EndpointsMode::Restore {
            return Some(problem(&wrong, ""));
        }
        match self.restore(at, target).await {
            Ok(()) => {
                warn!("{wrong}; restored");
                let event =
                    Event::new(EventKind::KubernetesEndpoints, wall(), "default/kubernetes", "restored");
                let _ = self.inputs.tell.try_send(event.reason(&wrong).level(EventLevel::Warning));
                let now = self.read(at).await.ok()?;
                self.deviation(target, &now)
                    .map(|wrong| problem(&wrong, "it was restored and changed again; "))
            }
            Err(error) => Some(problem(&wrong, &format!("it cannot be restored: {error}; "))),
        }
    }

    fn deviation(&self, target: Target, now: &BTreeSet<SocketAddr>) -> Option<String> {
        let members = (self.inputs.members)();
        target
            .deviation(now, |ip| members.iter().find(|(_, own)| *own == ip).map(|(name, _)| name.to_string()))
    }

    /// The best apiserver: this node's own, or else another that serves.
    fn apiserver(&self) -> Option<SocketAddr> {
        let table = self.inputs.table.borrow().clone();
        let all = table.get(&ServiceName::kube_api())?;
        let good = || all.iter().filter(|backend| backend.state.is_good());
        let own = good().find(|backend| backend.node == self.inputs.own);
        own.or_else(|| good().next()).map(|backend| backend.address)
    }

    fn client(&mut self) -> &mut KubeClient {
        let check = credentials(&self.inputs.services.borrow());
        if self.client.as_ref().is_none_or(|(known, _)| *known != check) {
            self.client = None;
        }
        let make = || (check.clone(), KubeClient::new(&check, Path::new("/")));
        &mut self.client.get_or_insert_with(make).1
    }

    async fn read(&mut self, at: SocketAddr) -> Result<BTreeSet<SocketAddr>, KubeError> {
        read(self.client(), at).await
    }

    async fn restore(&mut self, at: SocketAddr, Target(place): Target) -> Result<(), KubeError> {
        let client = self.client();
        client.apply(at, ENDPOINTS_PATH, endpoints_object(&[place])).await?;
        client.apply(at, SLICE_PATH, slice_object(&[place])).await
    }

    fn publish(&self, problem: Option<Problem>) {
        self.out.send_if_modified(|known| {
            let text = |one: &Option<Problem>| one.as_ref().map(Problem::to_string);
            let changed = text(known) != text(&problem);
            if changed {
                match &problem {
                    Some(problem) => warn!("{problem}"),
                    None => info!("pods are led to the node-local address again"),
                }
                *known = problem;
            }
            changed
        });
    }
}

fn problem(wrong: &str, more: &str) -> Problem {
    let fix = format!(
        "{more}put --endpoint-reconciler-type=none on every master, then run: agent kubernetes endpoints | kubectl apply --server-side \
         --force-conflicts -f -"
    );
    Problem::new(ProblemCode::KubernetesEndpoints, wrong).fix(fix)
}

fn blind(error: &KubeError) -> Problem {
    let detail = format!("this master cannot see where pods are led: {error}");
    Problem::new(ProblemCode::KubernetesEndpoints, detail).fix("see: agent kubernetes rbac")
}
