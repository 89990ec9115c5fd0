//! `/metrics`: Prometheus' text format, from tables. A family is a line of a table: its name, its type, its
//! help, and how a value is read from the status.

mod haproxy;
mod native;

use std::fmt::Write;

use proto::control::{BUCKETS_US, BackendStatus, Histogram, MemberStatus, ServiceStatus, Status, in_order};
use proto::node::Role;
use proto::service::KUBE_API;

/// Most backends, of all services together, and most peers with series of their own: a backend has 60. So a node
/// has less than 2,000 series, whatever the size of the cluster. Totals count all.
const MAX_BACKENDS: usize = 24;
const MAX_PEERS: usize = 32;

/// Counters only grow until the next start; gauges are current values.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum MetricType {
    Counter,
    Gauge,
    Histogram,
}

/// A family with one value for each `T`.
type MetricFamily<T> = (&'static str, MetricType, &'static str, fn(&T) -> Option<f64>);

/// The metrics of a status.
pub(super) fn write(status: &Status, haproxy: bool) -> Vec<u8> {
    let mut text = MetricsText(String::with_capacity(16 * 1024));
    native::write(&mut text, status);
    if haproxy {
        haproxy::write(&mut text, status);
    }
    text.0.into_bytes()
}

/// The backends with series of their own: of kube-api first, since alerts count them, then of services from the
/// smallest on; where not all fit, those that are not good come first.
fn backends(status: &Status) -> Vec<(&ServiceStatus, &BackendStatus)> {
    let rank = |one: &ServiceStatus| match one.name.as_str() {
        KUBE_API => 0,
        // Of two that are nearly as large any may be first.
        _ => 1 + u8::try_from(one.backends.len().checked_ilog2().unwrap_or(0)).unwrap_or(u8::MAX - 1),
    };
    let mut left = MAX_BACKENDS;
    let mut shown = Vec::new();
    for service in in_order(status.services.iter(), |one| (rank(one), one.name.as_str())) {
        let many = service.backends.len() > left;
        let rank = |one: &BackendStatus| u8::from(many && one.state.is_good());
        let backends = in_order(service.backends.iter(), |one| (rank(one), one.node.as_str()));
        shown.extend(backends.into_iter().take(left).map(|one| (service, one)));
        left = left.saturating_sub(service.backends.len());
    }
    shown
}

/// The peers with series of their own: of those that this node pulses the masters, and those that are not up first.
fn peers(status: &Status) -> Vec<&MemberStatus> {
    let pulsed = status.members.iter().filter(|one| one.loss_permille.is_some());
    let rank = |one: &MemberStatus| match one.role == Role::Master {
        true => 0,
        false => 1 + one.state.urgency(),
    };
    let mut pulsed = in_order(pulsed, |one| (rank(one), one.name.as_str()));
    pulsed.truncate(MAX_PEERS);
    pulsed
}

struct MetricsText(String);

impl MetricsText {
    /// Starts a family.
    fn family(&mut self, name: &str, kind: MetricType, help: &str) {
        let kind = match kind {
            MetricType::Counter => "counter",
            MetricType::Gauge => "gauge",
            MetricType::Histogram => "histogram",
        };
        for part in ["# HELP ", name, " ", help, "\n# TYPE ", name, " ", kind, "\n"] {
            self.0.push_str(part);
        }
    }

    /// A value with its labels.
    fn sample(&mut self, name: &str, labels: &[(&str, &str)], value: f64) {
        self.0.push_str(name);
        for (i, (label, text)) in labels.iter().enumerate() {
            self.0.push(if i == 0 { '{' } else { ',' });
            self.0.push_str(label);
            self.0.push_str("=\"");
            for c in text.chars() {
                match c {
                    '\\' => self.0.push_str("\\\\"),
                    '"' => self.0.push_str("\\\""),
                    '\n' => self.0.push_str("\\n"),
                    c => self.0.push(c),
                }
            }
            self.0.push('"');
        }
        // Writing to a String can't fail.
        let _ = writeln!(self.0, "{} {value}", if labels.is_empty() { "" } else { "}" });
    }

    /// A histogram of seconds with its labels.
    fn histogram(&mut self, name: &str, labels: &[(&str, &str)], histogram: &Histogram) {
        let bucket = format!("{name}_bucket");
        let mut sum = 0;
        for (i, count) in histogram.counts.iter().enumerate() {
            sum += count;
            let bound = BUCKETS_US.get(i).map_or_else(|| "+Inf".to_owned(), |us| seconds(*us).to_string());
            let mut labels = labels.to_vec();
            labels.push(("le", &bound));
            self.sample(&bucket, &labels, sum as f64);
        }
        self.sample(&format!("{name}_sum"), labels, seconds(histogram.sum_us));
        self.sample(&format!("{name}_count"), labels, sum as f64);
    }

    /// A table of families over the same items; `labels` are those of each item.
    fn table<T>(&mut self, families: &[MetricFamily<T>], things: &[(Vec<(&'static str, &str)>, &T)]) {
        for (name, kind, help, value) in families {
            self.family(name, *kind, help);
            for (labels, thing) in things {
                if let Some(value) = value(thing) {
                    self.sample(name, labels, value);
                }
            }
        }
    }
}

fn seconds(us: u64) -> f64 {
    us as f64 / 1e6
}

/// 1 for yes.
fn flag(yes: bool) -> f64 {
    f64::from(u8::from(yes))
}
