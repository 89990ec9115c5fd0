//! What holds on this node: its own configuration, over the settings of the whole cluster.
//!
//! One task reconciles them whenever either changes, and alone writes what follows: the services that are
//! proxied and checked here, and the settings that others follow. Stopping it anywhere is safe: it keeps
//! nothing that it could not read again.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use proto::cluster::Document;
use proto::config::{Config, Mistake, add_node_local, overlay};
use proto::control::{ServiceSource, SettingStatus};
use proto::node::{NodeId, Role};
use proto::service::{KUBE_API, Service, ServiceName};
use proto::settings::Settings;
use tokio::sync::watch;
use tracing::warn;

use crate::lifecycle::Lifecycle;
use crate::proxy::Proxy;
use crate::transport::TrustedKeys;
use crate::vip::NodeLocalReport;

/// What holds on this node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct EffectiveConfig {
    /// The cluster's settings, as far as they are understood.
    pub(crate) settings: Settings,
    /// What is proxied here.
    pub(crate) services: Vec<Service>,
    /// The services that this node's own file speaks of.
    named: Vec<ServiceName>,
    /// What of the settings does not count.
    pub(super) mistakes: Vec<Mistake>,
}

impl EffectiveConfig {
    /// Settles a configuration with what a document says for this node.
    /// `here`: the addresses on `lo`, of which the node-local ones are listened on once they are there.
    pub(super) fn of(
        config: &Config,
        document: &Document,
        own: &NodeId,
        here: &BTreeSet<IpAddr>,
    ) -> EffectiveConfig {
        let (settings, mut mistakes) = Settings::of(document);
        let (name, role) = (document.shown_name(own), document.role(own).unwrap_or(Role::Worker));
        let (mut services, mut more) = overlay(config, &settings.services_at(&name, role));
        let mut listeners = settings.node_local_at(&name, role);
        for one in &mut listeners {
            one.addresses.retain(|at| here.contains(&at.ip()));
        }
        more.extend(add_node_local(config, &mut services, &listeners));
        for mistake in more {
            if !mistakes.contains(&mistake) {
                mistakes.push(mistake);
            }
        }
        EffectiveConfig { settings, services, named: config.named.clone(), mistakes }
    }

    /// Where a service is described.
    pub(super) fn source(&self, name: &ServiceName) -> ServiceSource {
        let in_cluster = self.settings.services.iter().any(|service| service.name == *name);
        match (self.named.contains(name), in_cluster) {
            (true, true) => ServiceSource::FileOverCluster,
            (true, false) => ServiceSource::File,
            (false, true) => ServiceSource::Cluster,
            (false, false) if name.as_str() == KUBE_API => ServiceSource::Default,
            (false, false) => ServiceSource::File,
        }
    }

    /// What is set, for people.
    pub(super) fn list(&self, document: &Document) -> Vec<SettingStatus> {
        let set = document.settings.iter().filter_map(|(key, setting)| {
            let by = document.nodes.get(&setting.by).map(|admitted| admitted.name.to_string());
            Some(SettingStatus {
                key: key.clone(),
                value: setting.value.clone()?,
                set_by: by.unwrap_or_else(|| setting.by.to_string()),
                set_unix_ms: setting.at,
                clock: setting.clock,
                remark: self.ignored_reason(key),
            })
        });
        set.collect()
    }

    /// Why a setting does not count here; empty when it does.
    fn ignored_reason(&self, key: &str) -> String {
        if let Some(mistake) = self.mistakes.iter().find(|mistake| mistake.key == key) {
            return format!("ignored: {}", mistake.message);
        }
        let service = key.strip_prefix("service.").and_then(|rest| rest.split('.').next());
        match self.named.iter().find(|name| Some(name.as_str()) == service) {
            Some(name) => format!("overridden on this node, whose own file describes {name}"),
            None => String::new(),
        }
    }
}

/// What holds now, for all who follow it.
pub(super) struct EffectiveWatches {
    services: watch::Receiver<Arc<Vec<Service>>>,
    settings: watch::Receiver<Arc<Settings>>,
    all: watch::Receiver<Arc<EffectiveConfig>>,
}

impl EffectiveWatches {
    /// What is proxied and checked here.
    pub(super) fn services(&self) -> watch::Receiver<Arc<Vec<Service>>> {
        self.services.clone()
    }

    /// The cluster's settings.
    pub(super) fn settings(&self) -> watch::Receiver<Arc<Settings>> {
        self.settings.clone()
    }

    /// All of it, for those who wait for a change.
    pub(super) fn watch(&self) -> watch::Receiver<Arc<EffectiveConfig>> {
        self.all.clone()
    }

    /// All of it as it is now.
    pub(super) fn now(&self) -> Arc<EffectiveConfig> {
        self.all.borrow().clone()
    }
}

/// Longest wait for listeners to close, which takes milliseconds.
const CLOSING: Duration = Duration::from_secs(1);

/// The task: what it reads, and the watches that it alone writes.
struct ConfigTask {
    own: NodeId,
    config: watch::Receiver<Arc<Config>>,
    trust: watch::Receiver<Arc<TrustedKeys>>,
    node_local: watch::Receiver<Arc<NodeLocalReport>>,
    proxy: Proxy,
    services: watch::Sender<Arc<Vec<Service>>>,
    settings: watch::Sender<Arc<Settings>>,
    all: watch::Sender<Arc<EffectiveConfig>>,
}

/// Starts the task with what holds at `first`, of which the proxy has heard already.
pub(super) fn spawn(
    first: EffectiveConfig,
    own: NodeId,
    config: watch::Receiver<Arc<Config>>,
    (trust, node_local): (watch::Receiver<Arc<TrustedKeys>>, watch::Receiver<Arc<NodeLocalReport>>),
    proxy: Proxy,
    life: &Lifecycle,
) -> EffectiveWatches {
    log_mistakes(&first.mistakes, &[]);
    let (services_in, services) = watch::channel(Arc::new(first.services.clone()));
    let (settings_in, settings) = watch::channel(Arc::new(first.settings.clone()));
    let (all_in, all) = watch::channel(Arc::new(first));
    let task = ConfigTask {
        own,
        config,
        trust,
        node_local,
        proxy,
        services: services_in,
        settings: settings_in,
        all: all_in,
    };
    let stopping = life.draining.clone();
    life.supervise("settings", task, move |task| {
        let stopping = stopping.clone();
        Box::pin(async move {
            stopping.run_until_cancelled(task.run()).await;
        })
    });
    EffectiveWatches { services, settings, all }
}

impl ConfigTask {
    async fn run(&mut self) {
        // An earlier run, which has failed, may not have carried out what it had read.
        self.trust.mark_changed();
        loop {
            tokio::select! {
                Ok(()) = self.config.changed() => {}
                Ok(()) = self.trust.changed() => {}
                Ok(()) = self.node_local.changed() => {}
                else => return,
            }
            self.reconcile().await;
        }
    }

    /// Reads both, and hands on what has changed.
    async fn reconcile(&mut self) {
        let config = self.config.borrow_and_update().clone();
        let document = self.trust.borrow_and_update().document.clone();
        let node_local = self.node_local.borrow_and_update().clone();
        let now = Arc::new(EffectiveConfig::of(&config, &document, &self.own, &node_local.held));
        let before = self.all.borrow().clone();
        if *before == *now {
            return;
        }
        log_mistakes(&now.mistakes, &before.mistakes);
        if before.services != now.services {
            // A check must not find a listener that is about to close: it would be taken for an instance of this node.
            self.proxy.reload(&now.services).closed(CLOSING).await;
            self.services.send_replace(Arc::new(now.services.clone()));
        }
        if before.settings != now.settings {
            self.settings.send_replace(Arc::new(now.settings.clone()));
        }
        self.all.send_replace(now);
    }
}

/// Logs what is new among the mistakes.
fn log_mistakes(now: &[Mistake], before: &[Mistake]) {
    for mistake in now.iter().filter(|mistake| !before.contains(mistake)) {
        warn!("cluster-wide setting ignored: {mistake}");
    }
}
