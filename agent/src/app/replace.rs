//! Replacing this process by another program that goes on with all that it holds: `agent upgrade`.
//!
//! The proxy stops at the edge of a read, everything is written into a [`HandOver`], and the process becomes the other
//! program. If that fails, everything goes on as it was.

use proto::control::{RefusalCode, Response};
use proto::handover::HandOver;
use tracing::{error, info};

use super::RunningAgent;
use crate::lifecycle::wall;
use crate::{handover, watchdog};

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
    let paused = running.clients.proxy().pause().await;
    let why = if paused { become_other(running) } else { "a connection did not stop in time".to_owned() };
    running.clients.proxy().resume();
    running.link.resume();
    handover::set_under_way(false);
    watchdog::ready();
    error!("not replaced, everything goes on: {why}");
    refused(&format!("{why}; nothing has changed, and every connection goes on"))
}

/// Hands everything over. Returns only when that fails, and why.
fn become_other(running: &RunningAgent) -> String {
    let mut record = running.peers.records().lock().version(&running.link.own());
    // One may be signed at this moment.
    record.sequence += 1;
    let vips = running.vips.report();
    let vips = vips.borrow().ownerships.iter().map(|(address, held)| (*address, held.epoch)).collect();
    let mut form = HandOver {
        agent: env!("CARGO_PKG_VERSION").to_owned(),
        began: running.own.began(),
        at: wall(),
        record,
        vips,
        ..HandOver::default()
    };
    running.link.hand_over(&mut form);
    running.clients.proxy().hand_over(&mut form);
    format!("cannot start the new version: {}", handover::exec(&form))
}
