//! Events: every change of state, delivered to the log, a file, hooks and a webhook.
//!
//! One task, the recorder, owns the [`EventRing`]: it reads every watch, finds changes ([`diff`]), takes
//! events of other parts from a bounded queue, and publishes the ring by a watch. It forwards each event
//! without waiting: to the log, to the task that writes the file ([`disk`]), to one task for each hook
//! ([`hooks`]) and to that of the webhook ([`webhook`]). Stopping it anywhere is safe: only events that were
//! not recorded yet are lost.

mod cluster;
mod diff;
mod disk;
mod hooks;
mod standing;
mod webhook;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use proto::backends::BackendTable;
use proto::config::Config;
use proto::control::VipStatus;
use proto::event::{Event, EventKind, EventLevel, EventRing, EventSummer};
use proto::node::{Name, NodeId};
use proto::problem::{Problem, ProblemCode};
use proto::pulse::PeerLivenessMap;
use proto::record::ServiceOffer;
use proto::service::ServiceName;
use proto::time::{Moment, UnixMs};
use proto::view::ClusterView;
use tokio::sync::{mpsc, watch};

pub(crate) use self::cluster::{all, own};
use self::diff::PreviousState;
pub(crate) use self::diff::{PolledState, ProxyCounters};
use self::standing::StandingStates;
pub(crate) use self::webhook::Resolve;
use crate::lifecycle::{Lifecycle, wall};
use crate::timer::Ticks;
use crate::transport::TrustedKeys;

/// Events queued for the recorder by parts that report them themselves. It takes them at once; a sender that
/// finds it full drops the event, which is better than waiting.
pub(crate) const QUEUE: usize = 256;

/// Interval of the stall check.
const TICK: Duration = Duration::from_millis(200);

/// Ticks between two polls of what no watch carries.
const LOOK: u32 = 5;

/// A tick this late means that the whole process was held up.
const STALL: Duration = Duration::from_millis(750);

/// What this process has taken over from another.
#[derive(Debug, Clone)]
pub(crate) struct TakeOver {
    /// The version of the other.
    pub(crate) from: String,
    pub(crate) at: UnixMs,
    /// Connections that go on.
    pub(crate) connections: u64,
}

/// What the recorder needs.
pub(crate) struct EventInputs {
    pub(crate) own: NodeId,
    pub(crate) node: Name,
    /// When the agent started.
    pub(crate) began: UnixMs,
    /// It has taken over from another process since.
    pub(crate) replaced: Option<TakeOver>,
    /// Events reported by other parts.
    pub(crate) told: mpsc::Receiver<Event>,
    pub(crate) table: watch::Receiver<Arc<BackendTable>>,
    pub(crate) view: watch::Receiver<Arc<ClusterView>>,
    pub(crate) liveness: watch::Receiver<Arc<PeerLivenessMap>>,
    pub(crate) trust: watch::Receiver<Arc<TrustedKeys>>,
    pub(crate) health: watch::Receiver<Arc<BTreeMap<ServiceName, ServiceOffer>>>,
    pub(crate) vips: watch::Receiver<Vec<VipStatus>>,
    /// State that no watch carries.
    pub(crate) look: Box<dyn Fn() -> PolledState + Send>,
    pub(crate) sinks: EventSinks,
}

/// Where events go, in addition to the ring.
pub(crate) struct EventSinks {
    /// The state directory.
    pub(crate) dir: PathBuf,
    /// The configuration: its programs, and its webhook.
    pub(crate) config: watch::Receiver<Arc<Config>>,
    pub(crate) resolve: Resolve,
    pub(crate) sink_errors: SinkErrors,
}

/// Problems of event delivery, for status.
#[derive(Clone, Default)]
pub(crate) struct SinkErrors(Arc<Mutex<BTreeMap<(ProblemCode, String), Problem>>>);

impl SinkErrors {
    /// All of them.
    pub(crate) fn list(&self) -> Vec<Problem> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).values().cloned().collect()
    }

    /// Records a problem, and logs it once.
    fn report_problem(&self, problem: Problem) {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let key = (problem.code, problem.subject.clone());
        if !all.contains_key(&key) {
            tracing::warn!("{problem}");
        }
        all.insert(key, problem);
    }

    /// Removes the problem of that kind with `subject`.
    fn resolved(&self, code: ProblemCode, subject: &str) {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        all.remove(&(code, subject.to_owned()));
    }
}

/// Starts the recorder. Nothing else writes the ring.
pub(crate) fn spawn(inputs: EventInputs, ring: watch::Sender<Arc<EventRing>>, life: &Lifecycle) {
    let own = life.clone();
    life.supervise("events", (inputs, ring), move |(inputs, ring)| {
        let life = own.clone();
        Box::pin(async move {
            if let Some(task) = EventRecorder::begin(inputs, ring, &life).await {
                task.run(&life).await;
            }
        })
    });
}

struct EventRecorder<'a> {
    inputs: &'a mut EventInputs,
    seen: PreviousState,
    /// Empty, unless this process has taken over from another.
    standing: StandingStates,
    /// Changes of workers that wait for others of the same way.
    summer: EventSummer,
    ring: EventRing,
    published: &'a watch::Sender<Arc<EventRing>>,
    disk: Option<mpsc::Sender<Vec<Arc<Event>>>>,
    hooks: Vec<hooks::Hook>,
    webhook: Option<webhook::WebhookSender>,
    sink_errors: SinkErrors,
    /// Problem found in the events of earlier runs.
    torn: Option<Problem>,
}

impl<'a> EventRecorder<'a> {
    /// Reads the events of earlier runs, and starts the sinks.
    async fn begin(
        inputs: &'a mut EventInputs,
        published: &'a watch::Sender<Arc<EventRing>>,
        life: &Lifecycle,
    ) -> Option<EventRecorder<'a>> {
        let (dir, sink_errors) = (inputs.sinks.dir.clone(), inputs.sinks.sink_errors.clone());
        let read = tokio::task::spawn_blocking(move || (disk::load(&dir), disk::EventLog::open(&dir)));
        let ((ring, torn), log) = tokio::select! {
            read = read => read.ok()?,
            // The disk hangs.
            () = life.shutdown.cancelled() => return None,
        };
        // After a failure of this task numbers continue, however much of it reached the disk.
        let before = published.borrow().clone();
        let ring = if before.newest() == 0 { ring } else { EventRing::clone(&before) };
        let disk = match log {
            Ok(log) => Some(disk::spawn(log, sink_errors.clone(), life)),
            Err(error) => {
                let detail = format!("cannot write events to disk: {error}");
                sink_errors.report_problem(Problem::new(ProblemCode::EventsDisk, detail));
                None
            }
        };
        let document = inputs.trust.borrow().document.clone();
        // Who took over from another process has to hear everyone anew.
        let hears = if inputs.replaced.is_some() { wall() } else { inputs.began };
        let seen = PreviousState::new(inputs.own, hears, document);
        let (hooks, webhook) = (Vec::new(), None);
        // Not again when only this task has restarted.
        let took_over = inputs.replaced.is_some() && before.newest() == 0;
        let standing = if took_over { StandingStates::new(&ring) } else { StandingStates::default() };
        let summer = EventSummer::default();
        let mut task = EventRecorder {
            seen,
            standing,
            summer,
            ring,
            published,
            disk,
            hooks,
            webhook,
            sink_errors,
            torn,
            inputs,
        };
        task.apply_config(life);
        Some(task)
    }

    /// Starts and stops sinks as the configuration names them. Unchanged ones are not disturbed.
    fn apply_config(&mut self, life: &Lifecycle) {
        let config = self.inputs.sinks.config.borrow_and_update().clone();
        let mut before = std::mem::take(&mut self.hooks);
        for path in &config.notify {
            let hook = match before.iter().position(|hook| hook.name == *path) {
                Some(at) => before.swap_remove(at),
                None => hooks::Hook::spawn(path, self.sink_errors.clone(), life),
            };
            self.hooks.push(hook);
        }
        if self.webhook.as_ref().map(|sender| &sender.webhook) == config.webhook.as_ref() {
            return;
        }
        let (resolve, sink_errors) = (self.inputs.sinks.resolve.clone(), self.sink_errors.clone());
        self.webhook = config
            .webhook
            .clone()
            .map(|webhook| webhook::WebhookSender::spawn(webhook, resolve, sink_errors, life));
    }

    async fn run(mut self, life: &Lifecycle) {
        // Not again when only this task has restarted.
        let is_start = self.published.borrow().newest() == 0;
        let first = is_start.then(|| started(&self.ring, self.inputs));
        // The next events repair it, so it is no lasting problem.
        let torn = self.torn.take().map(|torn| {
            let event = Event::new(EventKind::Problem, wall(), torn.name(), "resolved");
            event.reason(torn.to_string()).level(EventLevel::Warning)
        });
        self.take(torn.into_iter().chain(first).collect());
        let (mut ticks, mut count, mut stopping) = (Ticks::new(life, TICK), 0_u32, false);
        // What a watch held before its first read counts as changed.
        self.inputs.table.mark_changed();
        self.inputs.view.mark_changed();
        self.inputs.trust.mark_changed();
        self.inputs.health.mark_changed();
        loop {
            let mut new = Vec::new();
            let inputs = &mut *self.inputs;
            tokio::select! {
                () = life.shutdown.cancelled() => break,
                Ok(()) = inputs.sinks.config.changed() => self.apply_config(life),
                () = life.draining.cancelled(), if !stopping => {
                    stopping = true;
                    let event = Event::new(EventKind::AgentStopping, wall(), inputs.node.as_str(), "stopping");
                    let mut before = self.summer.take_all(life.now());
                    before.push(event.since("running", inputs.began));
                    self.take(before);
                }
                late = ticks.tick() => {
                    new.extend(stalled(inputs.node.as_str(), late));
                    count = count.wrapping_add(1);
                    if count.is_multiple_of(LOOK) {
                        let view = inputs.view.borrow().clone();
                        self.seen.poll_state(&(inputs.look)(), &view, wall(), &mut new);
                        self.members(&mut new);
                    }
                }
                Some(event) = inputs.told.recv() => new.push(event),
                Ok(()) = inputs.table.changed() => {
                    let table = inputs.table.borrow_and_update().clone();
                    self.seen.table(&table, wall(), &mut new);
                    self.members(&mut new);
                }
                Ok(()) = inputs.view.changed() => self.members(&mut new),
                Ok(()) = inputs.liveness.changed() => self.members(&mut new),
                Ok(()) = inputs.trust.changed() => {
                    let document = inputs.trust.borrow_and_update().document.clone();
                    self.seen.document(&document, wall(), &mut new);
                }
                Ok(()) = inputs.vips.changed() => {
                    let vips = inputs.vips.borrow_and_update().clone();
                    self.seen.vips(&vips, wall(), &mut new);
                }
                Ok(()) = inputs.health.changed() => {
                    let health = inputs.health.borrow_and_update().clone();
                    self.seen.checks(&health, wall(), &mut new);
                }
            }
            let new = self.sum_up(new, life.now());
            self.take(new);
        }
        let mut last = self.summer.take_all(life.now());
        while let Ok(event) = self.inputs.told.try_recv() {
            last.push(event);
        }
        self.take(last);
    }

    fn members(&mut self, new: &mut Vec<Event>) {
        let view = self.inputs.view.borrow_and_update().clone();
        let liveness = self.inputs.liveness.borrow_and_update().clone();
        let table = self.inputs.table.borrow().clone();
        self.seen.members(&view, &liveness, &table, wall(), new);
    }

    /// Lets those wait that may be of many, and returns the others and what has waited long enough.
    fn sum_up(&mut self, new: Vec<Event>, now: Moment) -> Vec<Event> {
        let (many, mut single): (Vec<Event>, Vec<Event>) =
            new.into_iter().partition(|event| self.seen.is_one_of_many(event));
        many.into_iter().for_each(|event| self.summer.add(event, now));
        single.extend(self.summer.take_due(now));
        single
    }

    /// Numbers these events, publishes them and forwards them.
    fn take(&mut self, mut new: Vec<Event>) {
        while let Ok(event) = self.inputs.told.try_recv() {
            new.push(event);
        }
        new.retain(|event| !self.standing.repeats(event));
        if new.is_empty() {
            return;
        }
        let node = self.inputs.node.as_str();
        let events: Vec<Arc<Event>> = new.into_iter().map(|event| self.ring.push(node, event)).collect();
        self.published.send_replace(Arc::new(self.ring.clone()));
        for event in &events {
            crate::log::event(event);
            self.hooks.iter_mut().for_each(|hook| hook.enqueue(event));
            self.webhook.iter_mut().for_each(|webhook| webhook.enqueue(event));
        }
        if let Some(disk) = &self.disk
            && disk.try_send(events).is_err()
        {
            let detail = "cannot write events to disk: the disk does not respond";
            self.sink_errors.report_problem(Problem::new(ProblemCode::EventsDisk, detail));
        }
    }
}

/// The first event of a run. The last one of the previous run shows how that ended.
fn started(ring: &EventRing, inputs: &EventInputs) -> Event {
    let version = concat!("version ", env!("CARGO_PKG_VERSION"));
    if let Some(TakeOver { from, at, connections }) = &inputs.replaced {
        let event = Event::new(EventKind::AgentStarted, wall(), inputs.node.as_str(), "running");
        let reason = format!("{version} replaced version {from} and goes on with {connections} connections");
        return event.since("replaced", *at).reason(reason);
    }
    let event = Event::new(EventKind::AgentStarted, inputs.began, inputs.node.as_str(), "running");
    let Some(last) = ring.all().next_back() else { return event.reason(version) };
    // Events reported while it stops come after its stop event.
    let was = ring
        .all()
        .rev()
        .find(|event| matches!(event.kind, EventKind::AgentStopping | EventKind::AgentStarted));
    if was.is_some_and(|event| event.kind == EventKind::AgentStopping) {
        return event.since("stopped", last.time_unix_ms).reason(version);
    }
    let cause = format!("{version}; the last run did not stop cleanly: killed, crashed or power lost");
    event.since("lost", last.time_unix_ms).reason(cause).level(EventLevel::Warning)
}

/// A stall event if a tick was so late that nothing can have run.
fn stalled(node: &str, late: Duration) -> Option<Event> {
    (late >= STALL).then(|| {
        let event = Event::new(EventKind::Stall, wall(), node, "running").from("stalled", Some(late));
        event
            .reason("no task ran: the machine was overloaded, suspended or stopped")
            .level(EventLevel::Warning)
    })
}

#[cfg(test)]
mod tests;
