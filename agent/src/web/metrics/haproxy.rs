//! The names of haproxy's exporter that dashboards use, so that they keep working after a migration. What
//! haproxy counts and the agent does not, because it does not parse HTTP, is omitted rather than reported as
//! zero.

use proto::backends::BackendState;
use proto::control::{BackendStatus, ServiceStatus, Status};

use super::MetricType::{Counter, Gauge};
use super::{MetricFamily, MetricsText, flag};

const FRONTEND: &[MetricFamily<ServiceStatus>] = &[
    ("haproxy_frontend_current_sessions", Gauge, "Current number of sessions.", |s| {
        Some(s.connections as f64)
    }),
    ("haproxy_frontend_max_sessions", Gauge, "Highest number of sessions at once since the start.", |s| {
        Some(s.counted.most as f64)
    }),
    ("haproxy_frontend_limit_sessions", Gauge, "Limit of concurrent sessions.", |s| {
        Some(f64::from(s.maxconn))
    }),
    ("haproxy_frontend_sessions_total", Counter, "Sessions since the start.", |s| {
        Some(s.counted.total as f64)
    }),
    ("haproxy_frontend_connections_total", Counter, "Connections accepted since the start.", |s| {
        Some(s.counted.total as f64)
    }),
    ("haproxy_frontend_denied_connections_total", Counter, "Connections refused at the limit.", |s| {
        Some(s.refused as f64)
    }),
    ("haproxy_frontend_bytes_in_total", Counter, "Bytes from clients.", |s| {
        Some(sum(s, |b| b.counted.bytes_in))
    }),
    ("haproxy_frontend_bytes_out_total", Counter, "Bytes to clients.", |s| {
        Some(sum(s, |b| b.counted.bytes_out))
    }),
];

const BACKEND: &[MetricFamily<ServiceStatus>] = &[
    ("haproxy_backend_current_sessions", Gauge, "Current number of sessions.", |s| {
        Some(sum(s, |b| b.connections))
    }),
    ("haproxy_backend_max_sessions", Gauge, "Highest number of sessions at once since the start.", |s| {
        Some(s.counted.most as f64)
    }),
    ("haproxy_backend_sessions_total", Counter, "Sessions since the start.", |s| Some(sum(s, |b| b.total))),
    ("haproxy_backend_current_queue", Gauge, "Queued connections; always 0.", |_| Some(0.0)),
    ("haproxy_backend_bytes_in_total", Counter, "Bytes to servers.", |s| {
        Some(sum(s, |b| b.counted.bytes_in))
    }),
    ("haproxy_backend_bytes_out_total", Counter, "Bytes from servers.", |s| {
        Some(sum(s, |b| b.counted.bytes_out))
    }),
    ("haproxy_backend_connection_errors_total", Counter, "Clients for which no server answered.", |s| {
        Some(s.counted.unserved as f64)
    }),
    (
        "haproxy_backend_retry_warnings_total",
        Counter,
        "Connection attempts that failed and were retried.",
        |s| Some(sum(s, |b| b.counted.connect_errors)),
    ),
    (
        "haproxy_backend_redispatch_warnings_total",
        Counter,
        "Connection attempts sent to another server.",
        |s| Some(sum(s, |b| b.counted.races + b.counted.replays)),
    ),
    ("haproxy_backend_active_servers", Gauge, "Servers that are up.", |s| {
        Some(s.backends.iter().filter(|b| b.state.is_good()).count() as f64)
    }),
    ("haproxy_backend_weight", Gauge, "Sum of the weights of servers that are up.", |s| {
        let up = s.backends.iter().filter(|b| b.state.is_good());
        Some(up.map(|b| f64::from(b.weight)).sum())
    }),
    ("haproxy_backend_loadbalanced_total", Counter, "Sessions assigned to a server.", |s| {
        Some(sum(s, |b| b.total))
    }),
];

const SERVER: &[MetricFamily<BackendStatus>] = &[
    ("haproxy_server_current_sessions", Gauge, "Current number of sessions.", |b| Some(b.connections as f64)),
    ("haproxy_server_max_sessions", Gauge, "Highest number of sessions at once since the start.", |b| {
        Some(b.counted.most as f64)
    }),
    ("haproxy_server_sessions_total", Counter, "Sessions since the start.", |b| Some(b.total as f64)),
    ("haproxy_server_current_queue", Gauge, "Queued connections; always 0.", |_| Some(0.0)),
    ("haproxy_server_bytes_in_total", Counter, "Bytes to the server.", |b| Some(b.counted.bytes_in as f64)),
    ("haproxy_server_bytes_out_total", Counter, "Bytes from the server.", |b| {
        Some(b.counted.bytes_out as f64)
    }),
    ("haproxy_server_connection_errors_total", Counter, "Dials that failed.", |b| {
        Some(b.counted.connect_errors as f64)
    }),
    ("haproxy_server_response_errors_total", Counter, "TLS hellos that were not answered.", |b| {
        Some(b.counted.silences as f64)
    }),
    ("haproxy_server_redispatch_warnings_total", Counter, "Dials that came from another server.", |b| {
        Some((b.counted.races + b.counted.replays) as f64)
    }),
    ("haproxy_server_server_aborts_total", Counter, "Sessions ended because the server went down.", |b| {
        Some((b.counted.resets_down + b.counted.resets_leave) as f64)
    }),
    ("haproxy_server_weight", Gauge, "The server's weight.", |b| Some(f64::from(b.weight))),
    ("haproxy_server_check_code", Gauge, "Status code of the last check.", |b| b.check_code().map(f64::from)),
    ("haproxy_server_check_duration_seconds", Gauge, "Duration of the last check, roughly.", |b| {
        b.check_ms.map(|ms| f64::from(ms) / 1e3)
    }),
    ("haproxy_server_check_up_down_total", Counter, "Changes of state.", |b| Some(b.counted.changes as f64)),
    ("haproxy_server_downtime_seconds_total", Counter, "Time spent down.", |b| {
        Some(b.counted.downtime_ms as f64 / 1e3)
    }),
];

fn sum(service: &ServiceStatus, of: impl Fn(&BackendStatus) -> u64) -> f64 {
    service.backends.iter().map(of).sum::<u64>() as f64
}

/// haproxy's name of a state.
fn word(state: BackendState) -> &'static str {
    match state {
        BackendState::Ready | BackendState::Alive | BackendState::Unknown | BackendState::Other(_) => "UP",
        BackendState::Draining => "DRAIN",
        BackendState::NotReady => "NOLB",
        BackendState::Suspect | BackendState::Down => "DOWN",
    }
}

pub(super) fn write(text: &mut MetricsText, status: &Status) {
    let uptime = status.taken_unix_ms.0.saturating_sub(status.node.started_unix_ms.0);
    for (name, help, value) in [
        ("haproxy_process_uptime_seconds", "Time since the start.", uptime as f64 / 1e3),
        (
            "haproxy_process_current_connections",
            "Current number of connections.",
            status.services.iter().map(|one| one.connections).sum::<u64>() as f64,
        ),
        (
            "haproxy_process_max_connections",
            "Most connections at once.",
            status.services.iter().map(|one| f64::from(one.maxconn)).sum(),
        ),
    ] {
        text.family(name, Gauge, help);
        text.sample(name, &[], value);
    }
    let services: Vec<_> =
        status.services.iter().map(|one| (vec![("proxy", one.name.as_str())], one)).collect();
    text.table(FRONTEND, &services);
    text.table(BACKEND, &services);
    for (name, up) in [
        ("haproxy_frontend_status", ServiceStatus::is_listening as fn(&ServiceStatus) -> bool),
        ("haproxy_backend_status", |s| s.backends.iter().any(|b| b.state.is_good())),
    ] {
        text.family(name, Gauge, "Current status of the service, per state label value.");
        for one in &status.services {
            for (state, is) in [("DOWN", !up(one)), ("UP", up(one))] {
                text.sample(name, &[("proxy", one.name.as_str()), ("state", state)], flag(is));
            }
        }
    }
    let servers: Vec<_> = super::backends(status)
        .into_iter()
        .map(|(service, one)| (vec![("proxy", service.name.as_str()), ("server", one.node.as_str())], one))
        .collect();
    text.table(SERVER, &servers);
    let name = "haproxy_server_status";
    text.family(name, Gauge, "Current status of the service, per state label value.");
    for (labels, backend) in &servers {
        for state in ["DOWN", "UP", "MAINT", "DRAIN", "NOLB"] {
            let mut labels = labels.clone();
            labels.push(("state", state));
            text.sample(name, &labels, flag(word(backend.state) == state));
        }
    }
    let name = "haproxy_server_check_last_change_seconds";
    text.family(name, Gauge, "How long ago the state changed.");
    for (labels, backend) in &servers {
        let ago = status.taken_unix_ms.0.saturating_sub(backend.since_unix_ms.0);
        if backend.since_unix_ms.0 > 0 {
            text.sample(name, labels, (ago / 1000) as f64);
        }
    }
}
