//! The threads that serve clients.
//!
//! A connection stays on the thread that accepted it: its two sockets are in one epoll set, and nothing that
//! happens to it wakes another thread. Each thread has its own listening socket for each address, and the
//! kernel spreads new clients over them; so no thread hands connections to others.

use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::thread;
use std::time::Duration;

use tokio::runtime::{Builder, Handle};
use tokio_util::task::TaskTracker;

use crate::lifecycle::Lifecycle;

/// Most threads: each handles some ten thousand connections per second, or more bytes than a network card.
const MOST: usize = 4;

/// A timer that is always armed: one that is set for later than the next does not have to wake its thread.
/// Nearly every connection sets one for [`LINGER`](super::copy::LINGER) when it is half-closed.
const TICK: Duration = Duration::from_secs(15);

/// Turns of tasks after which one that another thread has given to this one gets its turn: every second. After a
/// replacement thousands of connections arrive that way at once, and with tokio's 31 those that carry bulk hold up the
/// rest for seconds.
const FROM_OTHERS: u32 = 2;

/// Number of threads that serve clients, and of sockets that listen at one address.
pub(super) fn count() -> usize {
    thread::available_parallelism().map_or(1, usize::from).min(MOST)
}

/// The threads' runtimes; never empty.
pub(super) struct WorkerRuntimes {
    handles: Vec<Handle>,
    next: AtomicUsize,
}

impl WorkerRuntimes {
    /// Starts the threads. They end on shutdown once nothing is left in `open`. If none can be started, the
    /// caller's runtime serves.
    pub(super) fn start(life: &Lifecycle, open: &TaskTracker) -> WorkerRuntimes {
        let start = || {
            let runtime =
                Builder::new_current_thread().enable_all().global_queue_interval(FROM_OTHERS).build()?;
            let handle = runtime.handle().clone();
            let (over, open) = (life.shutdown.clone(), open.clone());
            let serve = async move {
                let tick = async {
                    loop {
                        tokio::time::sleep(TICK).await;
                    }
                };
                over.run_until_cancelled(tick).await;
                open.close(); // not every order of events has had it closed
                open.wait().await;
            };
            thread::Builder::new().name("proxy".to_owned()).spawn(move || runtime.block_on(serve))?;
            std::io::Result::Ok(handle)
        };
        let mut handles = Vec::new();
        for _ in 0..count() {
            match start() {
                Ok(handle) => handles.push(handle),
                Err(error) => tracing::warn!("cannot start a proxy thread: {error}"),
            }
        }
        if handles.is_empty() {
            return WorkerRuntimes::here();
        }
        WorkerRuntimes { handles, next: AtomicUsize::new(0) }
    }

    /// No threads: the caller's runtime serves.
    pub(super) fn here() -> WorkerRuntimes {
        WorkerRuntimes { handles: vec![Handle::current()], next: AtomicUsize::new(0) }
    }

    /// The thread for the next listening socket.
    pub(super) fn next(&self) -> &Handle {
        let next = self.next.fetch_add(1, Relaxed) % self.handles.len();
        &self.handles[next]
    }
}
