//! Catches panics of the agent's parts: logs and counts them, and restarts the part.
//!
//! No part takes the process down with it, on purpose. An exit would close every held connection, and a panic
//! that some input provokes would let that input's sender close them. So each part is written to be
//! restarted: it keeps its channels, and rebuilds the rest from watches, disk and peers, as after a start of
//! the agent:
//!
//! | part | what it begins with again |
//! | --- | --- |
//! | reachability, pulse, net, check | nothing: the next pulses, dials and checks say it all within a second |
//! | record, settings, vip-fitness | nothing: derived from watches |
//! | membership | the document, keys and invites that it holds; joins under way are given up |
//! | link-udp, link-tcp | the port, the sessions and the address book; connections under way go on |
//! | joining | nodes that wait to be let in; conversations under way go on |
//! | events | the ring as it was published, and the configuration |
//! | hooks, webhook | what waits in their queues; the event that was being handed over is lost |
//! | systemd | nothing: it is told again at once |
//! | web, control | their sockets, bound again; connections under way end |
//! | vip | epochs as last reported; the addresses that it held have ended by themselves meanwhile (2 s) |
//! | endpoints | nothing: the next look at the apiserver says it all within seconds |
//! | node-local | what it has set, as last reported; the address stays meanwhile |
//! | proxy | its listening sockets; held connections are tasks of their own and go on |
//!
//! A part that hangs is the watchdog's task instead. Tasks that serve one connection or one request are not
//! restarted: they end alone, and are still counted here.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::future::Future;
use std::panic::{AssertUnwindSafe, PanicHookInfo};
use std::sync::{Arc, Mutex, Once, PoisonError};
use std::time::Duration;

use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use proto::problem::{Problem, ProblemCode};
use proto::time::{UnixMs, human};
use tokio::sync::watch;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::lifecycle::{Lifecycle, wall};

/// Wait before a part is restarted: the first, doubled each time, up to the last. Short enough that a single
/// failure is a hiccup, long enough that a repeated one costs nothing.
const PAUSES: (Duration, Duration) =
    (Duration::from_millis(if cfg!(test) { 10 } else { 1_000 }), Duration::from_secs(60));

/// A part that ran this long has recovered from its failure.
const RECOVERED: Duration = Duration::from_secs(120);

/// How long a failure stays in status after its last occurrence: long enough for a person who looks after an
/// alert, short enough that status is not red forever.
const SHOWN: Duration = Duration::from_secs(3600);

/// Most panic locations remembered. There are no more than the code has panics.
const MAX_PLACES: usize = 64;

/// Failures by location. Global, since panics of every thread are recorded here.
static FAILURES: Mutex<BTreeMap<String, PanicLocation>> = Mutex::new(BTreeMap::new());

thread_local! {
    /// Where this thread panicked last, for whoever catches it.
    static PLACE: RefCell<Option<String>> = const { RefCell::new(None) };
}

/// A location in the code that has panicked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct PanicLocation {
    /// The part that was restarted; `None`: a task that ended alone.
    pub(crate) part: Option<&'static str>,
    /// How often.
    pub(crate) count: u64,
    /// The first time.
    pub(crate) since: UnixMs,
    /// The last time.
    pub(crate) last: UnixMs,
}

/// Logs and counts every panic of this process from now on.
pub(crate) fn watch_panics() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let before = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |info| {
            panicked(info);
            // A failing test reports by this hook.
            if cfg!(test) {
                before(info);
            }
        }));
    });
}

fn panicked(info: &PanicHookInfo<'_>) {
    let place = info.location().map_or_else(|| "an unknown place".to_owned(), ToString::to_string);
    let text = info.payload_as_str().unwrap_or("no message");
    tracing::error!("panicked at {place}: {text}");
    count(&place);
    PLACE.set(Some(place));
}

fn count(place: &str) {
    // A panic under this lock would come here again.
    let Ok(mut failures) = FAILURES.try_lock() else { return };
    let now = wall();
    if failures.len() >= MAX_PLACES && !failures.contains_key(place) {
        return;
    }
    let new = PanicLocation { part: None, count: 0, since: now, last: now };
    let failure = failures.entry(place.to_owned()).or_insert(new);
    failure.count += 1;
    failure.last = now;
}

/// Recent failures, by location.
pub(crate) fn failures() -> BTreeMap<String, PanicLocation> {
    let mut all = FAILURES.lock().unwrap_or_else(PoisonError::into_inner).clone();
    let oldest = wall().0.saturating_sub(u64::try_from(SHOWN.as_millis()).unwrap_or(u64::MAX));
    all.retain(|_, failure| failure.last.0 >= oldest);
    all
}

/// The same for status.
pub(crate) fn problems() -> Vec<Problem> {
    let ago = |at: UnixMs| human(Duration::from_millis(wall().0.saturating_sub(at.0)));
    let sentence = |(place, failure): (String, PanicLocation)| {
        let PanicLocation { part, count, since, .. } = failure;
        let times = if count == 1 { "once".to_owned() } else { format!("{count} times") };
        let what = match part {
            Some(part) => format!("\"{part}\" failed {times} and was restarted"),
            None => format!("a task failed {times}"),
        };
        let since = ago(since);
        let fix = "this is a bug: report it with journalctl -u agent -p err";
        let detail = format!("{what}, first {since} ago at {place}");
        Problem::new(ProblemCode::PartFailed, detail).about(place).fix(fix)
    };
    failures().into_iter().map(sentence).collect()
}

/// Runs a part to its end. When it panics it is restarted after a pause, with the same inputs; not once
/// `over` is cancelled.
pub(crate) async fn supervised<I, F>(part: &'static str, mut inputs: I, over: CancellationToken, run: F)
where
    I: Send,
    F: for<'a> Fn(&'a mut I) -> BoxFuture<'a, ()> + Send,
{
    let mut pause = PAUSES.0;
    loop {
        let began = Instant::now();
        // State that the panic left half-done is what `run` resets first; see the table above.
        let running = run(&mut inputs);
        #[cfg(test)]
        let running = tests::sabotaged(part, running);
        if AssertUnwindSafe(running).catch_unwind().await.is_ok() {
            return;
        }
        name(part);
        if began.elapsed() >= RECOVERED {
            pause = PAUSES.0;
        }
        tracing::error!("{part} failed and restarts in {}", human(pause));
        if over.run_until_cancelled(tokio::time::sleep(pause)).await.is_none() {
            return;
        }
        pause = (pause * 2).min(PAUSES.1);
    }
}

/// Records the part whose panic was this thread's last one.
fn name(part: &'static str) {
    let place = PLACE.take().unwrap_or_else(|| {
        let place = format!("an unknown place in {part}");
        count(&place);
        place
    });
    let mut failures = FAILURES.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(failure) = failures.get_mut(&place) {
        failure.part = Some(part);
    }
}

impl Lifecycle {
    /// Spawns a part that lasts as long as the agent, and is restarted when it panics. `run` gets the same
    /// inputs each time and has to reset what an earlier run may have left half-done.
    pub(crate) fn supervise<I, F>(&self, part: &'static str, inputs: I, run: F)
    where
        I: Send + 'static,
        F: for<'a> Fn(&'a mut I) -> BoxFuture<'a, ()> + Send + 'static,
    {
        self.spawn(supervised(part, inputs, self.shutdown.clone(), run));
    }

    /// Handles each new value of a watch until shutdown or until its sender is gone. After a panic the latest
    /// value is handled again.
    pub(crate) fn follow<T, S, F>(&self, part: &'static str, watched: watch::Receiver<T>, state: S, each: F)
    where
        T: Clone + Send + Sync + 'static,
        S: Send + 'static,
        F: Fn(&mut S, T) + Send + Sync + 'static,
    {
        let (over, each) = (self.shutdown.clone(), Arc::new(each));
        self.supervise(part, (watched, state, false), move |(watched, state, under_way)| {
            let (over, each) = (over.clone(), each.clone());
            Box::pin(async move {
                if *under_way {
                    watched.mark_changed();
                }
                while let Some(Ok(())) = over.run_until_cancelled(watched.changed()).await {
                    let now = watched.borrow_and_update().clone();
                    *under_way = true;
                    each(state, now);
                    *under_way = false;
                }
            })
        });
    }

    /// The same as [`Lifecycle::supervise`] for a part whose run is a self-contained future, recreated each
    /// time.
    pub(crate) fn supervise_each<F, Fut>(&self, part: &'static str, run: F)
    where
        F: Fn() -> Fut + Send + 'static,
        Fut: Future<Output = ()> + Send + 'static,
    {
        self.supervise(part, (), move |()| Box::pin(run()));
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use std::cell::Cell;
    use std::future::poll_fn;

    use tokio::sync::mpsc;

    use super::*;

    thread_local! {
        /// The part of this thread that panics when it is next polled.
        static FAILS: Cell<Option<&'static str>> = const { Cell::new(None) };
    }

    /// Makes a part of this thread panic once, at its next event.
    pub(crate) fn fail_once(part: &'static str) {
        FAILS.set(Some(part));
    }

    /// A part that panics on demand.
    pub(super) async fn sabotaged(part: &'static str, mut run: BoxFuture<'_, ()>) {
        let poll = |context: &mut std::task::Context<'_>| {
            if FAILS.get() == Some(part) {
                FAILS.set(None);
                panic!("told to fail");
            }
            run.as_mut().poll(context)
        };
        poll_fn(poll).await;
    }

    /// Whether it has panicked.
    pub(crate) fn has_failed() -> bool {
        FAILS.get().is_none()
    }

    fn of(part: &str) -> Option<PanicLocation> {
        failures().into_values().find(|failure| failure.part == Some(part))
    }

    #[tokio::test]
    async fn a_panicking_part_is_restarted_with_its_queue_and_named() {
        watch_panics();
        let life = Lifecycle::new();
        let (sender, queue) = mpsc::channel::<u32>(4);
        let (out, mut done) = mpsc::channel::<u32>(4);
        life.supervise("test-part", queue, move |queue| {
            let out = out.clone();
            Box::pin(async move {
                while let Some(number) = queue.recv().await {
                    assert!(number != 2, "two is not understood");
                    let _ = out.send(number).await;
                }
            })
        });
        for number in [1, 2, 3] {
            sender.send(number).await.unwrap();
        }
        assert_eq!((done.recv().await, done.recv().await), (Some(1), Some(3)), "what waited is not lost");
        let failure = of("test-part").unwrap();
        assert_eq!(failure.count, 1);
        let said =
            problems().iter().map(Problem::to_string).find(|text| text.contains("\"test-part\"")).unwrap();
        assert!(said.contains("failed once and was restarted") && said.contains("supervisor.rs:"), "{said}");
        // It is over when it says so itself.
        drop(sender);
        life.finished().await;
    }

    #[tokio::test]
    async fn watched_values_arrive_and_one_lost_to_a_panic_is_repeated() {
        watch_panics();
        let life = Lifecycle::new();
        let (sender, watched) = watch::channel(0);
        let (out, mut done) = mpsc::channel::<u32>(4);
        life.follow("test-follow", watched, (out, 0), |(out, tries), number| {
            *tries += 1;
            assert!(*tries != 2, "the second value takes two tries");
            let _ = out.try_send(number);
        });
        for number in [1, 2, 3] {
            sender.send(number).unwrap();
            assert_eq!(done.recv().await, Some(number));
        }
        assert_eq!(of("test-follow").unwrap().count, 1);
        drop(sender);
        life.finished().await;
    }

    #[tokio::test]
    async fn a_repeatedly_failing_part_waits_longer_and_ends_at_shutdown() {
        watch_panics();
        let life = Lifecycle::new();
        let began = Instant::now();
        life.supervise_each("test-loop", || async { panic!("again") });
        let count = || of("test-loop").map_or(0, |failure| failure.count);
        while count() < 5 {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        assert!(began.elapsed() >= PAUSES.0 * 15, "1 + 2 + 4 + 8 pauses: {:?}", began.elapsed());
        life.shutdown.cancel();
        life.finished().await;
        assert_eq!(count(), 5);
    }

    #[tokio::test]
    async fn a_panicked_task_is_counted_too() {
        watch_panics();
        let life = Lifecycle::new();
        life.spawn(async { panic!("alone") });
        life.finished().await;
        let said = problems().iter().map(Problem::to_string).collect::<Vec<_>>().join("\n");
        assert!(said.contains("a task failed once, first"), "{said}");
    }
}
