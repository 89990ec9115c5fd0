//! Replacing this process by another program that goes on with all that it holds: `agent upgrade`.
//!
//! The proxy stops at the edge of a read, everything is written into a [`HandOver`], and the process becomes the other
//! program. If that fails, everything goes on as it was.

use proto::control::{RefusalCode, ReplaceStatus, Response, TakeOver};
use proto::handover::{HandOver, VERSION};
use tokio::sync::Mutex;
use tracing::{error, info};

use super::RunningAgent;
use crate::lifecycle::wall;
use crate::{handover, watchdog};

/// What the process before this one handed over, and who replaces this one.
#[derive(Default)]
pub(super) struct Replacing {
    /// Held by who does.
    turn: Mutex<()>,
    last: Option<TakeOver>,
}

impl Replacing {
    pub(super) fn new(last: Option<TakeOver>) -> Replacing {
        Replacing { turn: Mutex::default(), last }
    }

    pub(super) fn last(&self) -> Option<&TakeOver> {
        self.last.as_ref()
    }
}

/// How this agent is replaced.
pub(super) fn status(running: &RunningAgent) -> Option<ReplaceStatus> {
    let program = handover::program()?.to_string_lossy().into_owned();
    Some(ReplaceStatus { program, form: VERSION, last: running.replacing.last.clone() })
}

/// Becomes the program that lies where this one was started from. Returns only when that fails.
pub(super) async fn replace(running: &RunningAgent) -> Response {
    let refused = |why: &str| Response::refused(RefusalCode::Other(0), why);
    let Ok(_turn) = running.replacing.turn.try_lock() else {
        return refused("the agent is being replaced already");
    };
    let Some(program) = handover::program().filter(|program| program.is_file()) else {
        return refused("the file that this agent was started from is gone; put it back, and repeat this");
    };
    if running.life.draining.is_cancelled() {
        return refused("the agent is stopping");
    }
    info!("becoming {}", program.display());
    watchdog::reloading();
    let mut form = HandOver {
        agent: env!("CARGO_PKG_VERSION").to_owned(),
        began: running.own.began(),
        ..HandOver::default()
    };
    handover::set_under_way(true);
    running.link.hand_over(&mut form);
    let why = match running.clients.proxy().hand_over(&mut form).await {
        true => {
            form.at = wall();
            form.record = running.peers.records().lock().version(&running.link.own());
            // One may be signed at this moment.
            form.record.sequence += 1;
            let why = handover::exec(&form);
            running.clients.proxy().resume();
            format!("cannot start {}: {why}", program.display())
        }
        false => "a connection did not stop in time".to_owned(),
    };
    running.link.resume();
    handover::set_under_way(false);
    watchdog::ready();
    error!("not replaced, everything goes on: {why}");
    refused(&format!("{why}; nothing has changed, and every connection goes on"))
}
