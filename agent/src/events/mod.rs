//! Events: every change of state, told to whoever wants to know.

use std::sync::Arc;

use proto::event::{Event, Ring};
use proto::time::UnixMs;
use tokio::sync::{mpsc, watch};

use crate::lifecycle::Life;

/// Events on their way to the task, from parts that tell it themselves. It takes them at once; whoever finds
/// it full drops the event, which is better than waiting.
pub(crate) const QUEUE: usize = 256;

/// What the task works with.
pub(crate) struct Inputs {
    /// This node's name.
    pub(crate) node: String,
    /// When the agent started.
    pub(crate) began: UnixMs,
    /// What other parts tell.
    pub(crate) told: mpsc::Receiver<Event>,
}

/// Starts the task. The ring is written here alone.
pub(crate) fn spawn(mut inputs: Inputs, ring: watch::Sender<Arc<Ring>>, life: &Life) {
    let over = life.over.clone();
    life.spawn(async move {
        loop {
            let event = tokio::select! {
                Some(event) = inputs.told.recv() => event,
                () = over.cancelled() => return,
            };
            let mut next = Ring::clone(&ring.borrow());
            next.push(&inputs.node, event);
            ring.send_replace(Arc::new(next));
        }
    });
}
