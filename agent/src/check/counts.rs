//! Results of each service's checks, for metrics.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use proto::control::{CheckCounts, Histogram};
use proto::health::{CheckAnswer, CheckOutcome};
use proto::service::ServiceName;

use crate::histogram::HistogramMeter;

/// Since start, by service. A lock is enough: there are a few checks per second.
#[derive(Default)]
pub(crate) struct CheckCounters(Mutex<BTreeMap<ServiceName, ([u64; 5], HistogramMeter)>>);

impl CheckCounters {
    /// A check has ended.
    pub(super) fn add(&self, service: &ServiceName, outcome: &CheckOutcome, took: Duration) {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let (counts, meter) = all.entry(service.clone()).or_default();
        let [good, alive, not_ready, refused, silent] = counts;
        *match outcome.answer {
            CheckAnswer::Good => good,
            CheckAnswer::Alive => alive,
            CheckAnswer::NotReady => not_ready,
            CheckAnswer::Refused => refused,
            CheckAnswer::Silent => silent,
        } += 1;
        meter.record(took);
    }

    /// All counters.
    pub(crate) fn read(&self) -> Vec<CheckCounts> {
        let all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let read = |(service, (counts, meter)): (&ServiceName, &([u64; 5], HistogramMeter))| {
            let [good, alive, not_ready, refused, silent] = *counts;
            let took: Histogram = meter.read();
            CheckCounts { service: service.clone(), good, alive, not_ready, refused, silent, took }
        };
        all.iter().map(read).collect()
    }
}
