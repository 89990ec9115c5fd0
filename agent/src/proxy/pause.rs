//! A moment in which the proxy accepts nothing and moves no bytes, so that another process can continue.
//!
//! ```text
//!   begin ──► each listener and each client says what there is of it ──► exec, and this process is gone
//!                                                                    └─► end: all go on where they were
//! ```

use std::future::poll_fn;
use std::pin::pin;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed, Ordering::SeqCst};
use std::task::Poll;

use futures_util::future::BoxFuture;
use tokio::sync::watch;

/// Whether bytes move, and who has stopped.
pub(super) struct Pause {
    /// The same as `told`, for connections, of which there are too many to wait for it.
    on: AtomicBool,
    told: watch::Sender<bool>,
    /// Accept loops.
    loops: AtomicU64,
    /// Clients and accept loops that have said what there is of them.
    stopped: AtomicU64,
}

impl Default for Pause {
    fn default() -> Pause {
        let told = watch::Sender::new(false);
        Pause { on: AtomicBool::new(false), told, loops: AtomicU64::new(0), stopped: AtomicU64::new(0) }
    }
}

impl Pause {
    pub(super) fn begin(&self) {
        self.stopped.store(0, SeqCst);
        self.on.store(true, SeqCst);
        self.told.send_replace(true);
    }

    pub(super) fn end(&self) {
        self.on.store(false, SeqCst);
        self.told.send_replace(false);
    }

    pub(super) fn is_on(&self) -> bool {
        self.on.load(SeqCst)
    }

    /// One more has stopped.
    pub(super) fn stopped(&self) {
        self.stopped.fetch_add(1, SeqCst);
    }

    /// Whether all have, of so many clients.
    pub(super) fn is_complete(&self, clients: u64) -> bool {
        self.stopped.load(SeqCst) >= clients + self.loops.load(SeqCst)
    }

    /// Counts an accept loop until it is dropped.
    pub(super) fn accepting(&self) -> AcceptLoop<'_> {
        self.loops.fetch_add(1, Relaxed);
        AcceptLoop(self)
    }

    /// Ends when there is a pause, or none.
    pub(super) fn until(&self, on: bool) -> BoxFuture<'static, ()> {
        let mut told = self.told.subscribe();
        Box::pin(async move {
            let _ = told.wait_for(|is| *is == on).await;
        })
    }

    /// Runs `work` unless a pause begins; `None` when one did. What is done at once, as nearly all is, waits for
    /// nothing and takes no lock that others take.
    pub(super) async fn unless_begun<T>(&self, work: impl Future<Output = T>) -> Option<T> {
        let (mut work, mut begun) = (pin!(work), None);
        poll_fn(|cx| {
            // Not by `on`, which is set a moment earlier than who waits for the end of the pause is told.
            if *self.told.borrow() {
                return Poll::Ready(None);
            }
            if let Poll::Ready(done) = work.as_mut().poll(cx) {
                return Poll::Ready(Some(done));
            }
            let begun = begun.get_or_insert_with(|| self.until(true));
            begun.as_mut().poll(cx).map(|()| None)
        })
        .await
    }
}

/// An accept loop that has to stop as well.
pub(super) struct AcceptLoop<'a>(&'a Pause);

impl Drop for AcceptLoop<'_> {
    fn drop(&mut self) {
        self.0.loops.fetch_sub(1, Relaxed);
    }
}
