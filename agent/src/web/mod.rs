//! The status page, the metrics and the API, by HTTP.
//!
//! Tasks: `listen` has one that watches the configuration, and one for each address, which accepts; one for
//! each connection serves it; one for each open event stream feeds it. Stopping any of them anywhere is safe:
//! they only read, and actions are carried out by the handler that also serves the control socket.
//!
//! Every response is rendered from a status snapshot, which concurrent requests share: they agree, and a
//! hundred of them cost little more than one.

mod auth;
mod csv;
mod health;
mod listen;
mod metrics;
mod page;
mod route;
mod slots;
mod snapshot;
mod stream;
#[cfg(test)]
mod tests;

use std::sync::Arc;

use proto::config::{Config, WebConfig};
use proto::control::{Request, Response, Status};
use proto::event::{Event, EventRing};
use proto::settings::Settings;
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;

use crate::http::BoxFuture;
use crate::lifecycle::Lifecycle;

use auth::WebAuth;
use health::HealthState;
use snapshot::SnapshotCache;

/// What the web server needs.
pub(crate) struct WebInputs {
    /// The current configuration; only `[web]` and `[health]` are used here.
    pub(crate) config: watch::Receiver<Arc<Config>>,
    /// The cluster's settings, for load balancers.
    pub(crate) settings: watch::Receiver<Arc<Settings>>,
    /// Returns the current status.
    pub(crate) status: Box<dyn Fn() -> Status + Send + Sync>,
    /// Counts changes that should be visible at once.
    pub(crate) changes: watch::Receiver<u64>,
    /// The latest events.
    pub(crate) ring: watch::Receiver<Arc<EventRing>>,
    /// Carries out a requested action.
    pub(crate) act: Box<dyn Fn(Request) -> BoxFuture<Response> + Send + Sync>,
    /// Reports an address that is refused.
    pub(crate) tell: mpsc::Sender<Event>,
}

/// Shared by all connections. Its configuration never changes: other credentials make another site.
struct WebState {
    all: Arc<WebShared>,
    guard: WebAuth,
    haproxy_metrics: bool,
    /// The configuration has changed, and its connections end.
    ended: CancellationToken,
}

/// What survives a change of the configuration.
struct WebShared {
    snapshots: SnapshotCache,
    changes: watch::Receiver<u64>,
    ring: watch::Receiver<Arc<EventRing>>,
    act: Box<dyn Fn(Request) -> BoxFuture<Response> + Send + Sync>,
    streams: Arc<tokio::sync::Semaphore>,
    life: Lifecycle,
}

impl WebState {
    fn new(config: &WebConfig, all: &Arc<WebShared>) -> Arc<WebState> {
        Arc::new(WebState {
            all: all.clone(),
            guard: WebAuth::new(config),
            haproxy_metrics: config.haproxy_metrics,
            ended: CancellationToken::new(),
        })
    }
}

impl std::ops::Deref for WebState {
    type Target = WebShared;

    fn deref(&self) -> &WebShared {
        &self.all
    }
}

/// Serves until shutdown. An address in use is retried; it never keeps the agent from starting.
pub(crate) fn spawn(inputs: WebInputs, life: &Lifecycle) {
    let WebInputs { config, settings, status, changes, ring, act, tell } = inputs;
    let all = Arc::new(WebShared {
        snapshots: SnapshotCache::new(status, changes.clone(), ring.clone(), life),
        changes,
        ring,
        act,
        streams: stream::places(),
        life: life.clone(),
    });
    let (over, asked) = (life.shutdown.clone(), Arc::new(HealthState { all: all.clone(), settings }));
    life.supervise("health", config.clone(), move |config| {
        let (over, asked) = (over.clone(), asked.clone());
        Box::pin(async move {
            over.run_until_cancelled(health::watch_config(config, &asked)).await;
        })
    });
    let over = life.shutdown.clone();
    life.supervise("web", config, move |config| {
        let (over, all, tell) = (over.clone(), all.clone(), tell.clone());
        Box::pin(async move {
            over.run_until_cancelled(listen::watch_config(config, all, tell)).await;
        })
    });
}
