//! What holds on this node: its own configuration, over the settings of the whole cluster.
//!
//! One task reconciles them whenever either changes, and alone writes what follows: the services that are
//! proxied and checked here, and the settings that others follow. Stopping it anywhere is safe: it keeps
//! nothing that it could not read again.

use std::sync::Arc;

use proto::cluster::Document;
use proto::config::{Config, Mistake, overlay};
use proto::control::{ServiceSource, SettingStatus};
use proto::service::{KUBE_API, Service, ServiceName};
use proto::settings::Settings;
use tokio::sync::watch;
use tracing::warn;

use crate::lifecycle::Lifecycle;
use crate::proxy::Proxy;
use crate::transport::TrustedKeys;

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
    /// Settles a configuration with what a document says.
    pub(super) fn of(config: &Config, document: &Document) -> EffectiveConfig {
        let (settings, mut mistakes) = Settings::of(document);
        let (services, more) = overlay(config, &settings.services);
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

/// What the task works with.
pub(super) struct ConfigInputs {
    /// This node's own configuration.
    pub(super) config: watch::Receiver<Arc<Config>>,
    pub(super) trust: watch::Receiver<Arc<TrustedKeys>>,
    pub(super) proxy: Proxy,
}

/// Starts the task. `services`, `settings` and `settled` are written here alone.
pub(super) fn spawn(
    inputs: ConfigInputs,
    services: watch::Sender<Arc<Vec<Service>>>,
    settings: watch::Sender<Arc<Settings>>,
    effective: watch::Sender<Arc<EffectiveConfig>>,
    life: &Lifecycle,
) {
    let stopping = life.draining.clone();
    log_mistakes(&effective.borrow().mistakes, &[]);
    let outputs = (services, settings, effective);
    life.supervise("settings", (inputs, outputs), move |(inputs, outputs)| {
        let (stopping, (services, settings, effective)) = (stopping.clone(), &*outputs);
        // An earlier run, which has failed, may not have carried out what it had read.
        inputs.trust.mark_changed();
        Box::pin(async move {
            loop {
                tokio::select! {
                    Ok(()) = inputs.config.changed() => {}
                    Ok(()) = inputs.trust.changed() => {}
                    () = stopping.cancelled() => return,
                }
                let config = inputs.config.borrow_and_update().clone();
                let document = inputs.trust.borrow_and_update().document.clone();
                let now = Arc::new(EffectiveConfig::of(&config, &document));
                let before = effective.borrow().clone();
                if *before == *now {
                    continue;
                }
                log_mistakes(&now.mistakes, &before.mistakes);
                if before.services != now.services {
                    inputs.proxy.reload(&now.services);
                    services.send_replace(Arc::new(now.services.clone()));
                }
                if before.settings != now.settings {
                    settings.send_replace(Arc::new(now.settings.clone()));
                }
                effective.send_replace(now);
            }
        })
    });
}

/// Logs what is new among the mistakes.
fn log_mistakes(now: &[Mistake], before: &[Mistake]) {
    for mistake in now.iter().filter(|mistake| !before.contains(mistake)) {
        warn!("cluster-wide setting ignored: {mistake}");
    }
}
