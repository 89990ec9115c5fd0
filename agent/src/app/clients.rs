//! What clients need, and nothing else does: what holds on this node, the proxy, and the backends that it dials.
//! It starts first and alone, from what is on disk: everything else can wait for milliseconds.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use proto::backends::{BackendTable, LastKnownGood};
use proto::config::Config;
use proto::node::NodeId;
use proto::service::ServiceName;
use tokio::sync::{mpsc, watch};
use tracing::warn;

use super::effective_config::{self, EffectiveConfig, EffectiveWatches};
use super::peers::Peers;
use crate::handover::Received;
use crate::lifecycle::Lifecycle;
use crate::membership::disk::{MemberStore, StoredMember};
use crate::proxy::{self, Listeners, Proxy};
use crate::reachability;
use crate::transport::TrustedKeys;
use crate::vip::NodeLocalReport;

/// The way of clients to backends.
pub(super) struct ClientPath {
    proxy: Proxy,
    effective: EffectiveWatches,
    table: watch::Receiver<Arc<BackendTable>>,
    serving: watch::Receiver<Arc<LastKnownGood>>,
    node_local: watch::Receiver<Arc<NodeLocalReport>>,
    descriptors: u64,
}

/// The node-local addresses that are here, and on which the proxy listens for kube-api.
fn served(proxy: &Proxy, report: &NodeLocalReport) -> Vec<IpAddr> {
    if report.held.is_empty() {
        return Vec::new();
    }
    let listeners = proxy.listeners().remove(&ServiceName::kube_api()).unwrap_or_default();
    let takes = |ip: &&IpAddr| {
        listeners.iter().any(|(at, fault)| {
            let any = at.ip().is_unspecified() && at.is_ipv4() == ip.is_ipv4();
            fault.is_none() && (at.ip() == **ip || any)
        })
    };
    report.held.iter().filter(takes).copied().collect()
}

impl ClientPath {
    /// Serves clients by the last good list, and by what peers say as soon as they do. Returns also how many
    /// connections of the process before this one go on, and how many had to be ended.
    pub(super) fn start(
        configured: watch::Receiver<Arc<Config>>,
        (disk, member): (&Arc<MemberStore>, &StoredMember),
        (trust, node_local): (&watch::Receiver<Arc<TrustedKeys>>, watch::Receiver<Arc<NodeLocalReport>>),
        peers: &Peers,
        mut received: Option<&mut Received>,
        life: &Lifecycle,
    ) -> (ClientPath, usize, usize) {
        let descriptors = proxy::raise_descriptor_limit();
        let here = node_local.borrow().held.clone();
        let first = EffectiveConfig::of(&configured.borrow(), member.document(), &member.identity.id, &here);
        let (most, maxconn) = (
            proxy::descriptor_budget().connections,
            first.services.iter().map(|one| u64::from(one.maxconn)).sum::<u64>(),
        );
        if most < maxconn {
            warn!(
                "the open file limit of {descriptors} bounds the proxy to {most} connections (maxconn is {maxconn}); the \
                 rest is for checks, the link and the control socket; raise LimitNOFILE"
            );
        }
        let listeners = Listeners::bind(&first.services, received.as_deref_mut());
        let table = reachability::first_table(&first.services, &member.serving);
        let (table_in, table) = watch::channel(Arc::new(table));
        let (reports_in, reports) = mpsc::channel(reachability::REPORTS);
        let proxy = Proxy::start(listeners, member.identity.id, table.clone(), reports_in.clone(), life);
        let (held, ended) = received.map_or((0, 0), |received| proxy.go_on(received));
        let effective = effective_config::spawn(
            first,
            member.identity.id,
            configured,
            (trust.clone(), node_local.clone()),
            proxy.clone(),
            life,
        );
        let (members, degraded) = (trust.clone(), disk.is_degraded());
        let inputs = reachability::ReachabilityInputs {
            services: effective.services(),
            view: peers.view(),
            liveness: peers.liveness(),
            settings: effective.settings(),
            reports,
            probes: reports_in,
            // Outside of any cluster nobody is known to have left it: what served last is served.
            is_member: Arc::new(move |id| degraded || members.borrow().document.member(id).is_some()),
        };
        let serving = reachability::spawn(inputs, table_in, member.serving.clone(), life);
        life.follow("reachability", serving.clone(), disk.clone(), |disk, list| {
            disk.save_serving(&list);
        });
        (ClientPath { proxy, effective, table, serving, node_local, descriptors }, held, ended)
    }

    /// What became of the node-local address here.
    pub(super) fn node_local(&self) -> watch::Receiver<Arc<NodeLocalReport>> {
        self.node_local.clone()
    }

    /// The node-local addresses on which the proxy listens for kube-api.
    pub(super) fn node_local_served(&self) -> Vec<IpAddr> {
        served(&self.proxy, &self.node_local.borrow())
    }

    /// The same for who asks later.
    pub(super) fn watch_node_local_served(&self) -> Box<dyn Fn() -> Vec<IpAddr> + Send> {
        let (proxy, node_local) = (self.proxy.clone(), self.node_local.clone());
        Box::new(move || served(&proxy, &node_local.borrow()))
    }

    /// The proxy.
    pub(super) fn proxy(&self) -> &Proxy {
        &self.proxy
    }

    /// What holds on this node.
    pub(super) fn effective(&self) -> &EffectiveWatches {
        &self.effective
    }

    /// The backends of each service.
    pub(super) fn table(&self) -> watch::Receiver<Arc<BackendTable>> {
        self.table.clone()
    }

    /// The last good list.
    pub(super) fn serving(&self) -> watch::Receiver<Arc<LastKnownGood>> {
        self.serving.clone()
    }

    /// How many files this process may open.
    pub(super) fn descriptors(&self) -> u64 {
        self.descriptors
    }

    /// Counts the connections that the proxy holds to a node, for all services.
    pub(super) fn connections_to(&self) -> Box<dyn Fn(&NodeId) -> u64 + Send> {
        let proxy = self.proxy.clone();
        Box::new(move |node| {
            let stats = proxy.stats();
            stats.values().filter_map(|service| service.backends.get(node)).map(|one| one.connections).sum()
        })
    }

    /// Waits until a backend serves, for so long at most.
    pub(super) async fn serves(&self, within: Duration) {
        let mut table = self.table.clone();
        let good =
            |table: &Arc<BackendTable>| table.values().flatten().any(|backend| backend.state.is_good());
        let _ = tokio::time::timeout(within, table.wait_for(good)).await;
    }

    /// Waits until no connection is open.
    pub(super) async fn drained(&self) {
        let open = || self.proxy.stats().values().map(|service| u64::from(service.connections)).sum::<u64>();
        while open() > 0 {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }
}
