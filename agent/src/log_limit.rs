//! Limits the lines of each kind: a peer that makes the agent log, by one datagram or connection at a time,
//! must not be able to fill the journal, or to push out earlier lines.
//!
//! A kind is a log statement, so their number is fixed, and a flood of one takes nothing from the others.
//! Suppressed lines are counted and reported once the flood is over.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use tracing::callsite::Identifier;
use tracing::{Event, Metadata, Subscriber};
use tracing_subscriber::layer::{Context, Filter};

use crate::lifecycle::Lifecycle;

/// Lines of one kind in one [`WINDOW`]: a cluster of a hundred nodes that all change at once logs as much.
const MOST: u32 = 200;

/// Period of the limit.
const WINDOW: Duration = Duration::from_secs(10);

/// Lines that are enabled one by one and limited by their source: the access log.
const EXEMPT: &str = "access";

/// Suppressed lines that were not reported yet.
static LEFT_OUT: AtomicU64 = AtomicU64::new(0);

/// Counts lines.
#[derive(Default)]
pub(crate) struct LineLimit {
    /// By log statement: when the window started, and lines in it.
    kinds: Mutex<HashMap<Identifier, (Instant, u32)>>,
}

impl LineLimit {
    fn allows(&self, about: &Metadata<'_>, now: Instant) -> bool {
        if about.target() == EXEMPT {
            return true;
        }
        let mut kinds = self.kinds.lock().unwrap_or_else(PoisonError::into_inner);
        let (since, count) = kinds.entry(about.callsite()).or_insert((now, 0));
        if now.duration_since(*since) >= WINDOW {
            (*since, *count) = (now, 0);
        }
        *count = count.saturating_add(1);
        *count <= MOST
    }
}

impl<S: Subscriber> Filter<S> for LineLimit {
    fn enabled(&self, _: &Metadata<'_>, _: &Context<'_, S>) -> bool {
        true
    }

    fn event_enabled(&self, event: &Event<'_>, _: &Context<'_, S>) -> bool {
        let allowed = self.allows(event.metadata(), Instant::now());
        if !allowed {
            LEFT_OUT.fetch_add(1, Ordering::Relaxed);
        }
        allowed
    }
}

/// Reports suppressed lines, after each window in which there were any.
pub(crate) fn report(life: &Lifecycle) {
    let over = life.shutdown.clone();
    life.supervise_each("log", move || {
        let over = over.clone();
        async move {
            while over.run_until_cancelled(tokio::time::sleep(WINDOW)).await.is_some() {
                let count = LEFT_OUT.swap(0, Ordering::Relaxed);
                if count > 0 {
                    let window = proto::time::human(WINDOW);
                    tracing::warn!("suppressed {count} log lines: too many of one kind in {window}");
                }
            }
        }
    });
}

#[cfg(test)]
mod tests {
    use tracing::Level;
    use tracing_subscriber::layer::SubscriberExt;
    use tracing_subscriber::{Layer, Registry};

    use super::*;

    /// Counts the lines that reach the log.
    #[derive(Clone, Default)]
    struct LineCounter(std::sync::Arc<Mutex<Vec<Level>>>);

    impl<S: Subscriber> Layer<S> for LineCounter {
        fn on_event(&self, event: &Event<'_>, _: Context<'_, S>) {
            self.0.lock().unwrap().push(*event.metadata().level());
        }
    }

    #[test]
    fn a_flood_of_one_kind_is_limited_and_others_are_not() {
        let counter = LineCounter::default();
        let log = Registry::default().with(counter.clone().with_filter(LineLimit::default()));
        tracing::subscriber::with_default(log, || {
            for i in 0..10 * MOST {
                tracing::warn!("provoked {i}");
            }
            tracing::error!("of another kind");
            for i in 0..2 * MOST {
                tracing::info!(target: "access", "asked for {i}");
            }
        });
        let count = |level| counter.0.lock().unwrap().iter().filter(|one| **one == level).count();
        assert_eq!(count(Level::WARN), MOST as usize);
        assert_eq!(count(Level::ERROR), 1);
        assert_eq!(count(Level::INFO), 2 * MOST as usize);
        assert!(LEFT_OUT.load(Ordering::Relaxed) >= u64::from(9 * MOST));
    }
}
