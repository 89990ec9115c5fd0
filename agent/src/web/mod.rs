//! The status page, the metrics and the API, by HTTP: what a person or a collector sees of this node.
//!
//! Tasks, and what each owns: `listen`, one for each address, owns the listening socket; one for each
//! connection serves it; one for each open stream of events feeds it. Stopping any of them anywhere is safe:
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
mod snapshot;
mod stream;
#[cfg(test)]
mod tests;

use std::sync::Arc;

use proto::config::Web;
use proto::control::{Request, Response, Status};
use proto::event::Ring;
use tokio::sync::watch;

use crate::http::Later;
use crate::lifecycle::Life;

use auth::Guard;
use snapshot::Snapshots;

/// What the page works with.
pub(crate) struct Inputs {
    pub(crate) config: Web,
    /// How everything is.
    pub(crate) status: Box<dyn Fn() -> Status + Send + Sync>,
    /// Counts changes that a person should see at once.
    pub(crate) changes: watch::Receiver<u64>,
    /// The latest events.
    pub(crate) ring: watch::Receiver<Arc<Ring>>,
    /// Carries out what a person asks for.
    pub(crate) act: Box<dyn Fn(Request) -> Later<Response> + Send + Sync>,
}

/// What every connection may use.
struct Site {
    snapshots: Snapshots,
    guard: Guard,
    changes: watch::Receiver<u64>,
    ring: watch::Receiver<Arc<Ring>>,
    act: Box<dyn Fn(Request) -> Later<Response> + Send + Sync>,
    streams: Arc<tokio::sync::Semaphore>,
    haproxy_metrics: bool,
    life: Life,
}

/// Serves until the life is over. An address that is taken is tried again; it never keeps the agent from
/// starting.
pub(crate) fn spawn(inputs: Inputs, life: &Life) {
    let Inputs { config, status, changes, ring, act } = inputs;
    let site = Arc::new(Site {
        snapshots: Snapshots::new(status, changes.clone(), ring.clone(), life),
        guard: Guard::new(&config),
        changes,
        ring,
        act,
        streams: stream::places(),
        haproxy_metrics: config.haproxy_metrics,
        life: life.clone(),
    });
    listen::spawn(&config, &site, life);
}
