//! The task that checks one service.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use proto::cause::Cause;
use proto::handshake::{HandshakeSilence, HandshakeWatch};
use proto::health::{CheckAnswer, CheckOutcome, HealthTracker, Readiness};
use proto::record::ServiceOffer;
use proto::service::{Check, Service};
use proto::time::Moment;
use tokio::sync::{mpsc, watch};

use super::CheckerReport;
use super::counts::CheckCounters;
use super::probe::{self, HelloEvent, Probe};
use crate::lifecycle::{Lifecycle, wall};
use crate::timer::KernelTimer;

/// Longest wait for a listener on loopback, which answers at once or not at all.
const LOOPBACK_WITHIN: Duration = Duration::from_millis(200);

/// Shortest time between two checks, whatever is configured: checks are not a load test.
const MIN_INTERVAL: Duration = Duration::from_millis(10);

/// Most concurrent checks of one service: the default time-out and interval need three.
const MAX_AT_ONCE: u128 = 8;

/// As many probes as can wait for an answer concurrently.
pub(super) fn probes(check: &Check, root: &Path) -> Vec<Probe> {
    let interval = check.interval.max(MIN_INTERVAL).as_millis();
    let at_once = (check.timeout.as_millis().div_ceil(interval) + 1).min(MAX_AT_ONCE);
    (0..at_once).map(|_| Probe::new(check, root)).collect()
}

/// Checks one service.
pub(super) struct ServiceWatcher {
    pub(super) service: Service,
    /// Where this agent's own proxy listens.
    pub(super) listeners: Arc<[SocketAddr]>,
    /// Free probes: as many as can be needed at once, see [`probes`].
    pub(super) probes: Vec<Probe>,
    /// Kubernetes' files are below it.
    pub(super) root: PathBuf,
    pub(super) checker: HealthTracker,
    pub(super) own: watch::Receiver<Option<IpAddr>>,
    pub(super) life: Lifecycle,
    pub(super) generation: u64,
    pub(super) reports: mpsc::Sender<CheckerReport>,
    /// Last logged reason why an instance is not offered.
    pub(super) hint: Option<Cause>,
    pub(super) counts: Arc<CheckCounters>,
    /// Rounded duration of a check.
    pub(super) check_ms: Option<u32>,
}

/// The checks in progress, and what becomes of their hellos.
struct ChecksInProgress {
    running: FuturesUnordered<RunningCheck>,
    /// Number of the last one.
    last: u64,
    handshakes: HandshakeWatch,
    reporter: mpsc::Sender<(u64, HelloEvent)>,
    events: mpsc::Receiver<(u64, HelloEvent)>,
}

impl ChecksInProgress {
    fn new(check: &Check) -> ChecksInProgress {
        let (reporter, events) = mpsc::channel(HELLO_EVENTS);
        ChecksInProgress {
            running: FuturesUnordered::new(),
            last: 0,
            handshakes: HandshakeWatch::new(check.timeout),
            reporter,
            events,
        }
    }

    fn hello(&mut self, (check, event): (u64, HelloEvent), now: Moment) {
        match event {
            HelloEvent::Sent => self.handshakes.sent(check, now),
            HelloEvent::Answered => self.handshakes.answered(check, now),
        }
    }

    /// A check has ended, after all of its events.
    fn ended(&mut self, checked: &FinishedCheck, now: Moment) {
        while let Ok(event) = self.events.try_recv() {
            self.hello(event, now);
        }
        let timed_out = checked.outcome.cause == Cause::TimedOut;
        self.handshakes.ended(checked.number, timed_out, now);
    }
}

/// Events of hellos that wait for the watcher: two of each check at once, with room to spare.
const HELLO_EVENTS: usize = 64;

/// A finished check: its probe, to be reused, and its result.
struct FinishedCheck {
    number: u64,
    probe: Probe,
    target: SocketAddr,
    outcome: CheckOutcome,
    took: Duration,
}

type RunningCheck = Pin<Box<dyn Future<Output = FinishedCheck> + Send>>;

impl ServiceWatcher {
    /// Checks until it is dropped, and reports changes.
    ///
    /// A waiting check does not delay the next one: a hung instance is noticed after one time-out and a few
    /// intervals, not after several time-outs in sequence.
    pub(super) async fn run(&mut self) {
        // Probes of an earlier run, which has failed, went with its checks.
        self.probes = probes(&self.service.check, &self.root);
        let interval = self.service.check.interval.max(MIN_INTERVAL);
        let (mut timer, mut next) = (KernelTimer::new(), self.life.now());
        let mut checks = ChecksInProgress::new(&self.service.check);
        let mut reported = None;
        loop {
            let due = checks.handshakes.deadline().map(|at| self.life.instant(at));
            let silence = async {
                match due {
                    Some(at) => tokio::time::sleep_until(at).await,
                    None => std::future::pending().await,
                }
            };
            let offer = tokio::select! {
                // What has arrived counts before what has not.
                biased;
                Some(event) = checks.events.recv() => {
                    checks.hello(event, self.life.now());
                    None
                }
                Some(checked) = checks.running.next() => {
                    checks.ended(&checked, self.life.now());
                    self.end(checked)
                }
                () = silence => match checks.handshakes.poll(self.life.now()) {
                    Some(silence) => self.hellos_unanswered(silence),
                    None => None,
                },
                () = timer.until(self.life.monotonic(next)) => {
                    next = self.life.now().next_regular(interval);
                    self.begin(&mut checks)
                }
                // A new address is checked and reported at once; the next check comes an interval later,
                // since two at the same moment would count as two.
                Ok(()) = self.own.changed() => {
                    next = self.life.now().after(interval);
                    self.begin(&mut checks)
                }
            };
            let Some(offer) = offer else { continue };
            if reported.as_ref() != Some(&offer) {
                reported = Some(offer.clone());
                let report =
                    CheckerReport { name: self.service.name.clone(), generation: self.generation, offer };
                if self.reports.send(report).await.is_err() {
                    return;
                }
            }
        }
    }

    /// Starts a check if a probe is free. The report is known at once only when there is nothing to check.
    fn begin(&mut self, checks: &mut ChecksInProgress) -> Option<Option<ServiceOffer>> {
        let own = *self.own.borrow_and_update();
        let target = target(&self.service, own);
        if let Some(listener) = self.listeners.iter().find(|listener| covers(**listener, target)) {
            // Our own proxy would answer, with another node's health.
            self.log_missing_tls(Cause::OwnListener, &format!("{listener} covers {target}"));
            return Some(None);
        }
        let mut probe = self.probes.pop()?;
        let listeners = self.listeners.clone();
        checks.last += 1;
        let (number, reporter, now) = (checks.last, checks.reporter.clone(), self.life.now());
        checks.running.push(Box::pin(async move {
            let began = tokio::time::Instant::now();
            let hello = move |event| {
                let _ = reporter.try_send((number, event));
            };
            let outcome = probe.check(now, target, Box::new(hello)).await;
            let took = began.elapsed();
            let outcome = match outcome.answer {
                CheckAnswer::Refused => on_loopback(&listeners, target).await.unwrap_or(outcome),
                _ => outcome,
            };
            FinishedCheck { number, probe, target, outcome, took }
        }));
        None
    }

    /// What to report after a check; `None` when nothing has changed.
    fn end(&mut self, checked: FinishedCheck) -> Option<Option<ServiceOffer>> {
        let FinishedCheck { probe, target, outcome, took, .. } = checked;
        self.counts.add(&self.service.name, &outcome, took);
        self.check_ms = Some(rounded_ms(self.check_ms, took));
        self.probes.push(probe);
        let own = *self.own.borrow();
        if target != self::target(&self.service, own) {
            // This node's address has changed meanwhile, and another check is in progress.
            return None;
        }
        let before = self.checker.health().map(|health| health.readiness);
        let elsewhere = (outcome.cause == Cause::LoopbackOnly).then(|| outcome.detail.clone());
        self.checker.observe(self.life.now(), wall(), outcome);
        self.log(before, target);
        match elsewhere {
            Some(where_not) if self.checker.health().is_none() => {
                self.log_missing_tls(Cause::LoopbackOnly, &where_not);
            }
            _ => self.hint = None,
        }
        self.offer(own)
    }

    /// What to report when hellos of checks in progress are not answered.
    fn hellos_unanswered(&mut self, silence: HandshakeSilence) -> Option<Option<ServiceOffer>> {
        let own = *self.own.borrow();
        let target = target(&self.service, own);
        let before = self.checker.health().map(|health| health.readiness);
        self.checker.hellos_unanswered(self.life.now(), wall(), silence);
        self.log(before, target);
        self.offer(own)
    }

    /// This node's offer now.
    fn offer(&self, own: Option<IpAddr>) -> Option<Option<ServiceOffer>> {
        let Some(health) = self.checker.health() else { return Some(None) };
        // Without an address nobody reaches it, and once the address is back it is where it was: nothing to
        // report.
        let address = offered_address(&self.service, own)?;
        let (weight, health) = (self.service.weight, health.clone());
        Some(Some(ServiceOffer { address, weight, health, check_ms: self.check_ms }))
    }

    /// Logs each change of state.
    fn log(&self, before: Option<Readiness>, target: SocketAddr) {
        let name = &self.service.name;
        match self.checker.health() {
            Some(health) if before != Some(health.readiness) => {
                let (state, reason) = (health.readiness, health.reason());
                tracing::info!(service = %name, %state, "{name} at {target} is {state}: {reason}");
            }
            None if before.is_some() => {
                tracing::info!(
                    service = %name, state = "gone",
                    "{name} is no longer on this node: nothing has answered at {target} for a while"
                );
            }
            _ => {}
        }
    }

    /// Logs once why an instance is not offered, since nothing else would show it.
    fn log_missing_tls(&mut self, cause: Cause, detail: &str) {
        if self.hint != Some(cause) {
            let name = &self.service.name;
            tracing::warn!(service = %name, cause = cause.label(), "{name} is not offered: {cause}: {detail}");
            self.hint = Some(cause);
        }
    }
}

/// Rounded milliseconds: the published value stays until the new one is half or double, since every change is
/// sent to others.
fn rounded_ms(said: Option<u32>, took: Duration) -> u32 {
    let ms = u32::try_from(took.as_millis()).unwrap_or(u32::MAX).max(1);
    said.filter(|said| ms <= said.saturating_mul(2) && ms >= said / 2).unwrap_or(ms)
}

/// A closed port at the mesh address and an open one on loopback: the service is bound to the wrong address,
/// which nobody guesses from "refused".
async fn on_loopback(listeners: &[SocketAddr], target: SocketAddr) -> Option<CheckOutcome> {
    let loopback = match target.ip() {
        IpAddr::V4(_) => IpAddr::V4(Ipv4Addr::LOCALHOST),
        IpAddr::V6(_) => IpAddr::V6(Ipv6Addr::LOCALHOST),
    };
    let beside = SocketAddr::new(loopback, target.port());
    let ours = listeners.iter().any(|listener| covers(*listener, beside));
    if target == beside || ours || !probe::accepts(beside, LOOPBACK_WITHIN).await {
        return None;
    }
    let detail = format!("{loopback}, not {}", target.ip());
    Some(CheckOutcome::new(CheckAnswer::Refused, Cause::LoopbackOnly).with(detail))
}

/// The address that is checked.
fn target(service: &Service, own: Option<IpAddr>) -> SocketAddr {
    service
        .check
        .address
        .unwrap_or_else(|| SocketAddr::new(own.unwrap_or(IpAddr::V4(Ipv4Addr::LOCALHOST)), service.port))
}

/// The address that others dial: the checked one, unless it is loopback and the mesh is not, since everybody
/// would then reach their own.
pub(super) fn offered_address(service: &Service, own: Option<IpAddr>) -> Option<SocketAddr> {
    let at_own = own.map(|own| SocketAddr::new(own, service.port));
    match service.check.address {
        Some(address) if !address.ip().is_loopback() => Some(address),
        Some(address) if own.is_some_and(|own| own.is_loopback()) => Some(address),
        _ => at_own,
    }
}

/// Whether a connection to `target` on this machine would reach `listener`.
fn covers(listener: SocketAddr, target: SocketAddr) -> bool {
    listener.port() == target.port() && (listener.ip() == target.ip() || listener.ip().is_unspecified())
}
