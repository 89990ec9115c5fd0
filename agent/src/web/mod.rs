//! The status page, the metrics and the API, by HTTP: what a person or a collector sees of this node.
//!
//! Tasks, and what each owns: `listen` has one that follows the configuration, and one for each address, which
//! accepts; one for each connection serves it; one for each open stream of events feeds it. Stopping any of them
//! anywhere is safe:
//! they only read, and what a person asks for here belongs to the handler that also serves the control socket.
//!
//! Everything is made of one snapshot at a time, which many askers share, so what they see agrees and a
//! hundred of them cost little more than one.

mod auth;
mod csv;
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
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;

use crate::http::BoxFuture;
use crate::lifecycle::Lifecycle;

use auth::WebAuth;
use snapshot::SnapshotCache;

/// What the page works with.
pub(crate) struct WebInputs {
    /// The configuration as it is; of it `[web]` counts here.
    pub(crate) config: watch::Receiver<Arc<Config>>,
    /// How everything is.
    pub(crate) status: Box<dyn Fn() -> Status + Send + Sync>,
    /// Counts changes that a person should see at once.
    pub(crate) changes: watch::Receiver<u64>,
    /// The latest events.
    pub(crate) ring: watch::Receiver<Arc<EventRing>>,
    /// Carries out what a person asks for.
    pub(crate) act: Box<dyn Fn(Request) -> BoxFuture<Response> + Send + Sync>,
    /// Where it tells of an address that is refused.
    pub(crate) tell: mpsc::Sender<Event>,
}

/// What every connection may use. What the configuration says of it holds to its end: with other credentials
/// there is another site.
struct WebState {
    all: Arc<WebShared>,
    guard: WebAuth,
    haproxy_metrics: bool,
    /// It is no longer what the configuration says, and its connections end.
    ended: CancellationToken,
}

/// What outlives a change of the configuration.
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

/// Serves until the life is over. An address that is taken is tried again; it never keeps the agent from
/// starting.
pub(crate) fn spawn(inputs: WebInputs, life: &Lifecycle) {
    let WebInputs { config, status, changes, ring, act, tell } = inputs;
    let all = Arc::new(WebShared {
        snapshots: SnapshotCache::new(status, changes.clone(), ring.clone(), life),
        changes,
        ring,
        act,
        streams: stream::places(),
        life: life.clone(),
    });
    let over = life.shutdown.clone();
    life.supervise("web", config, move |config| {
        let (over, all, tell) = (over.clone(), all.clone(), tell.clone());
        Box::pin(async move {
            over.run_until_cancelled(listen::watch_config(config, all, tell)).await;
        })
    });
}
