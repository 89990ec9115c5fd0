//! What clients need, and nothing else does: what holds on this node, the proxy, and the backends that it dials.
//! It starts first and alone, from what is on disk: everything else can wait for milliseconds.

use std::sync::Arc;
use std::time::Duration;

use proto::backends::{BackendTable, LastKnownGood};
use proto::config::Config;
use proto::node::NodeId;
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

/// The way of clients to backends.
pub(super) struct ClientPath {
    proxy: Proxy,
    effective: EffectiveWatches,
    table: watch::Receiver<Arc<BackendTable>>,
    serving: watch::Receiver<Arc<LastKnownGood>>,
    descriptors: u64,
}

impl ClientPath {
    /// Serves clients by the last good list, and by what peers say as soon as they do. Returns also how many
    /// connections of the process before this one go on, and how many had to be ended.
    pub(super) fn start(
        configured: watch::Receiver<Arc<Config>>,
        (disk, member): (&Arc<MemberStore>, &StoredMember),
        trust: &watch::Receiver<Arc<TrustedKeys>>,
        peers: &Peers,
        mut received: Option<&mut Received>,
        life: &Lifecycle,
    ) -> (ClientPath, usize, usize) {
        let descriptors = proxy::raise_descriptor_limit();
        let first = EffectiveConfig::of(&configured.borrow(), member.document(), &member.identity.id);
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
            trust.clone(),
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
        (ClientPath { proxy, effective, table, serving, descriptors }, held, ended)
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
