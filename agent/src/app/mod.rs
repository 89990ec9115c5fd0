//! Composition: puts the feature modules together, and ends them in order. Only this module knows them all.
//!
//! Start ([`start`]): [`clients`] first, from the last good list, so that clients are served before anyone is
//! heard; then the link, [`own_node`], membership, and what [`peers`] say; then "ready". Stop: say so by gossip,
//! take nothing new, let connections finish for a while, end.

mod clients;
pub(crate) mod doctor;
mod effective_config;
pub(crate) mod endpoints;
mod event_wiring;
mod history;
mod members;
mod node_local;
mod own_node;
mod peers;
mod record;
mod replace;
mod requests;
mod seeds;
pub(crate) mod setup;
mod start;
mod status;
mod vip;

use std::sync::Arc;
use std::time::Duration;

use proto::cluster::Document;
use proto::config::Config;
use proto::problem::Problem;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;
use tracing::{error, info, warn};

use crate::events::TakeOver;
use crate::lifecycle::Lifecycle;
use crate::membership::disk::{MemberStore, StoredMember};
use crate::membership::task::MembershipHandle;
use crate::transport::{Link, TrustedKeys};
use crate::{supervisor, watchdog};

/// Longest time that open connections get to finish at a stop. Kubernetes' watches never do, and their
/// clients reconnect through the same listener as soon as the agent is back.
const DRAIN: Duration = Duration::from_secs(5);

/// Time for "this node stops" to reach a few peers.
const GOODBYE: Duration = Duration::from_millis(200);

/// What runs: a part for each thing that is asked of it.
pub(crate) struct RunningAgent {
    link: Arc<Link>,
    disk: Arc<MemberStore>,
    trust: watch::Receiver<Arc<TrustedKeys>>,
    membership: MembershipHandle,
    clients: clients::ClientPath,
    own: own_node::OwnNode,
    peers: peers::Peers,
    vips: vip::VipHandle,
    events: event_wiring::EventHandle,
    /// What is wrong with where pods are led, as this master sees it.
    endpoints: watch::Receiver<Option<Problem>>,
    /// What only time shows.
    history: history::BackendHistory,
    /// Which files `agent doctor` reads.
    places: crate::doctor::HostPaths,
    /// What was taken over from the process before this one.
    taken_over: Option<TakeOver>,
    /// What was read last.
    configured: watch::Receiver<Arc<Config>>,
    life: Lifecycle,
}

impl RunningAgent {
    /// The cluster document as it is now.
    fn document(&self) -> Arc<Document> {
        self.trust.borrow().document.clone()
    }

    /// Waits until something serves, for so long at most, and says what: listeners and nodes.
    pub(crate) async fn what_serves(&self, within: Duration) -> (bool, String) {
        self.clients.serves(within).await;
        status::of(self).serving()
    }
}

/// Runs the agent until it is told to stop. `reload` reads the configuration again; `started` is called
/// once everything runs.
///
/// # Errors
/// What keeps it from starting: the port or the control socket is taken.
pub(crate) async fn run(
    config: Config,
    disk: Arc<MemberStore>,
    member: StoredMember,
    reload: impl Fn() -> anyhow::Result<Config> + Send + 'static,
    started: impl FnOnce(Arc<RunningAgent>, &Lifecycle),
) -> anyhow::Result<()> {
    supervisor::watch_panics();
    let life = Lifecycle::new();
    crate::log_limit::report(&life);
    let result = start::start(config, disk, member, &life);
    let (running, configured) = match result {
        Ok(running) => running,
        Err(error) => {
            life.draining.cancel();
            life.shutdown.cancel();
            return Err(error);
        }
    };
    started(running.clone(), &life);
    live(&running, &configured, reload, &life).await?;
    stop(&running, &life).await;
    Ok(())
}

/// Follows signals until one says stop.
async fn live(
    running: &RunningAgent,
    configured: &watch::Sender<Arc<Config>>,
    reload: impl Fn() -> anyhow::Result<Config>,
    life: &Lifecycle,
) -> anyhow::Result<()> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut hang_up = signal(SignalKind::hangup())?;
    let started_with = configured.borrow().clone();
    watchdog::spawn_watchdog(life);
    watchdog::ready();
    loop {
        tokio::select! {
            _ = terminate.recv() => {
                replace::restart(running).await;
                return Ok(());
            }
            _ = interrupt.recv() => return Ok(()),
            () = life.draining.cancelled() => return Ok(()),
            _ = hang_up.recv() => match reload() {
                Ok(config) => {
                    let later = config.keys_of_a_restart(&started_with);
                    configured.send_replace(Arc::new(config));
                    info!("configuration reloaded");
                    if !later.is_empty() {
                        let later = later.join(", ");
                        warn!("not applied before a restart: {later}; run: systemctl restart agent");
                    }
                    running.events.reloaded(true);
                }
                Err(error) => {
                    error!("configuration not reloaded, the old one stays in use: {error:#}");
                    running.events.reloaded(false);
                }
            },
        }
    }
}

async fn stop(running: &RunningAgent, life: &Lifecycle) {
    watchdog::stopping();
    info!("stopping");
    // Gossip says so first; the proxy stops accepting by the same token.
    life.draining.cancel();
    tokio::time::sleep(GOODBYE).await;
    if tokio::time::timeout(DRAIN, running.clients.drained()).await.is_err() {
        warn!("closing connections that did not finish within {DRAIN:?}");
    }
    life.shutdown.cancel();
    if tokio::time::timeout(Duration::from_secs(5), life.finished()).await.is_err() {
        warn!("some tasks did not end in time");
    }
}
