//! Histograms of durations, for metrics: two additions, no lock.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use proto::control::{BUCKETS_US, Histogram};

/// A histogram that any task may update.
#[derive(Debug, Default)]
pub(crate) struct HistogramMeter {
    counts: [AtomicU64; BUCKETS_US.len() + 1],
    sum_us: AtomicU64,
}

impl HistogramMeter {
    /// Records one duration.
    pub(crate) fn record(&self, long: Duration) {
        let us = u64::try_from(long.as_micros()).unwrap_or(u64::MAX);
        let bucket = BUCKETS_US.partition_point(|bound| *bound < us);
        if let Some(count) = self.counts.get(bucket) {
            count.fetch_add(1, Relaxed);
            self.sum_us.fetch_add(us, Relaxed);
        }
    }

    /// Adds those of another histogram: the sum in microseconds, then a number for each bucket.
    pub(crate) fn add(&self, values: &[u64]) {
        let own = [&self.sum_us].into_iter().chain(&self.counts);
        for (to, from) in own.zip(values) {
            to.fetch_add(*from, Relaxed);
        }
    }

    /// The current values.
    pub(crate) fn read(&self) -> Histogram {
        let mut histogram = Histogram { sum_us: self.sum_us.load(Relaxed), ..Histogram::default() };
        for (to, from) in histogram.counts.iter_mut().zip(&self.counts) {
            *to = from.load(Relaxed);
        }
        histogram
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_length_has_its_bucket() {
        let meter = HistogramMeter::default();
        for us in [0, 500, 501, 2_500_000, 2_500_001, u64::MAX / 4] {
            meter.record(Duration::from_micros(us));
        }
        let counts = meter.read().counts;
        assert_eq!((counts[0], counts[1], counts[11], counts[12]), (2, 1, 1, 2));
        assert_eq!(counts.iter().sum::<u64>(), 6);
    }
}
