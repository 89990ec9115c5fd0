//! What the checks of each service came to, for metrics.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use proto::control::{CheckCounts, Histogram};
use proto::health::{Answer, Outcome};
use proto::service::ServiceName;

use crate::meter::Meter;

/// Since the start, by service. A lock is enough: there are a few checks a second.
#[derive(Default)]
pub(crate) struct Counts(Mutex<BTreeMap<ServiceName, ([u64; 5], Meter)>>);

impl Counts {
    /// A check has ended.
    pub(super) fn add(&self, service: &ServiceName, outcome: &Outcome, took: Duration) {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let (counts, meter) = all.entry(service.clone()).or_default();
        let [good, alive, not_ready, refused, silent] = counts;
        *match outcome.answer {
            Answer::Good => good,
            Answer::Alive => alive,
            Answer::NotReady => not_ready,
            Answer::Refused => refused,
            Answer::Silent => silent,
        } += 1;
        meter.took(took);
    }

    /// All of it.
    pub(crate) fn read(&self) -> Vec<CheckCounts> {
        let all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let read = |(service, (counts, meter)): (&ServiceName, &([u64; 5], Meter))| {
            let [good, alive, not_ready, refused, silent] = *counts;
            let took: Histogram = meter.read();
            CheckCounts { service: service.clone(), good, alive, not_ready, refused, silent, took }
        };
        all.iter().map(read).collect()
    }
}
