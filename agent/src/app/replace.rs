//! Replacing this process by another that goes on with all that it holds: `agent upgrade` and `systemctl restart`.
//!
//! The proxy stops at the edge of a read, and everything is written into a [`HandOver`]. Then the process becomes the
//! other program, or ends and leaves all of it to systemd. If that fails, everything goes on as it was.

use proto::control::{RefusalCode, Response};
use proto::handover::HandOver;
use tracing::{error, info, warn};

use super::RunningAgent;
use crate::handover::{self, store};
use crate::lifecycle::wall;
use crate::watchdog;

/// Becomes the program that lies where this one was started from. Returns only when that fails.
pub(super) async fn replace(running: &RunningAgent) -> Response {
    let refused = |why: &str| Response::refused(RefusalCode::Other(0), why);
    let Some(program) = handover::program().filter(|program| program.is_file()) else {
        return refused("the file that this agent was started from is gone; put it back, and repeat this");
    };
    if running.life.draining.is_cancelled() || handover::set_under_way(true) {
        return refused("the agent is stopping or being replaced already");
    }
    info!("becoming {}", program.display());
    watchdog::reloading();
    let why = paused(running, |form| format!("cannot start the new version: {}", handover::exec(form))).await;
    watchdog::ready();
    error!("not replaced, everything goes on: {why}");
    refused(&format!("{why}; nothing has changed, and every connection goes on"))
}

/// Ends this process and leaves everything to systemd, where that stops it only to start the next. Returns where it
/// does not, or can't keep what there is.
pub(super) async fn restart(running: &RunningAgent) {
    if !tokio::task::spawn_blocking(store::is_restart).await.unwrap_or(false) || handover::set_under_way(true)
    {
        return;
    }
    info!("stopping to be started again; connections go on in the next process");
    let why = paused(running, |form| match store::keep(form) {
        // Not the orderly end: that would take addresses away and close what goes on.
        Ok(()) => std::process::exit(0),
        Err(error) => error.to_string(),
    });
    warn!("connections end with this process: {}", why.await);
}

/// Pauses the proxy and does `next` with all that is handed over. It goes on when that returns, which says why.
async fn paused(running: &RunningAgent, next: impl FnOnce(&HandOver) -> String) -> String {
    // Others wait for the next process a little longer than for one that is dead.
    running.set_pausing(true).await;
    let paused = running.clients.proxy().pause().await;
    let why = if paused { next(&whole(running)) } else { "a connection did not stop in time".to_owned() };
    running.clients.proxy().resume();
    running.link.resume();
    running.set_pausing(false).await;
    handover::set_under_way(false);
    why
}

/// Everything that is handed over.
fn whole(running: &RunningAgent) -> HandOver {
    let mut record = running.peers.records().lock().version(&running.link.own());
    // One may be signed at this moment.
    record.sequence += 1;
    let vips = running.vips.report();
    let vips = vips.borrow().ownerships.iter().map(|(address, held)| (*address, held.epoch)).collect();
    let health = running
        .own
        .health()
        .borrow()
        .iter()
        .map(|(name, offer)| (name.clone(), offer.health.clone()))
        .collect();
    let mut form = HandOver {
        agent: env!("CARGO_PKG_VERSION").to_owned(),
        began: running.own.began(),
        at: wall(),
        record,
        vips,
        health,
        ..HandOver::default()
    };
    running.link.hand_over(&mut form);
    running.clients.proxy().hand_over(&mut form);
    form
}

impl RunningAgent {
    /// Tells the others whether this process is about to be replaced.
    async fn set_pausing(&self, pausing: bool) {
        self.link.datagrams().set_pausing(pausing, self.life.now());
        self.vips.set_pausing(pausing).await;
    }
}
