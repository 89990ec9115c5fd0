//! The agent's own names. Labels are nodes, services and fixed values.

use std::collections::BTreeSet;

use proto::backends::BackendState;
use proto::control::{
    BackendStatus, CheckCounts, LinkStatus, MemberState, MemberStatus, ServiceStatus, Status, VipState,
    VipStatus,
};
use proto::node::Role;
use proto::problem::ProblemCode;

use super::MetricType::{Counter, Gauge, Histogram};
use super::{MetricFamily, MetricsText, flag};

/// Of the node and the cluster, as this node knows it.
const NODE: &[MetricFamily<Status>] = &[
    ("agent_start_time_seconds", Gauge, "Start time of the agent, in seconds since 1970.", |s| {
        Some(s.node.started_unix_ms.0 as f64 / 1e3)
    }),
    ("agent_open_files_limit", Gauge, "Open file limit of the process.", |s| Some(s.node.descriptors as f64)),
    ("agent_problems", Gauge, "Number of problems of this node; the status page lists them.", |s| {
        Some(s.problems.len() as f64)
    }),
    ("agent_removed", Gauge, "1 if this node was removed from the cluster.", |s| Some(flag(s.node.removed))),
    ("agent_network_up", Gauge, "1 if this node has an address on the mesh.", |s| {
        Some(flag(s.node.address.is_some()))
    }),
    ("agent_key_epoch", Gauge, "Epoch of the current gossip key.", |s| Some(s.cluster.key_epoch as f64)),
    (
        "agent_member_versions",
        Gauge,
        "Number of different agent versions among the members that are up.",
        |s| Some(different(s, |one| &one.version)),
    ),
    (
        "agent_member_documents",
        Gauge,
        "Number of different cluster documents among the members that are up.",
        |s| Some(different(s, |one| &one.document)),
    ),
];

/// Of the transport.
const LINK: &[MetricFamily<LinkStatus>] = &[
    ("agent_link_sent_bytes_total", Counter, "Bytes sent on port 7646, UDP payload and TLS.", |l| {
        Some(l.sent_bytes as f64)
    }),
    ("agent_link_received_bytes_total", Counter, "Bytes received on port 7646, UDP payload and TLS.", |l| {
        Some(l.received_bytes as f64)
    }),
    ("agent_link_sent_datagrams_total", Counter, "Datagrams sent.", |l| Some(l.sent_datagrams as f64)),
    ("agent_link_received_datagrams_total", Counter, "Datagrams received, including refused ones.", |l| {
        Some(l.received_datagrams as f64)
    }),
    (
        "agent_gossip_sent_bytes_total",
        Counter,
        "Bytes of gossip sent, included in agent_link_sent_bytes_total.",
        |l| Some(l.sent_gossip_bytes as f64),
    ),
    ("agent_pulses_sent_total", Counter, "Pulses sent.", |l| Some(l.sent_pulses as f64)),
    ("agent_pulse_answers_received_total", Counter, "Pulse answers received.", |l| {
        Some(l.received_answers as f64)
    }),
];

/// Of the members that this node pulses: the masters.
const PEER: &[MetricFamily<MemberStatus>] = &[
    ("agent_peer_up", Gauge, "1 if the peer answers.", |m| Some(flag(m.state == MemberState::Up))),
    ("agent_peer_rtt_seconds", Gauge, "Smoothed round-trip time of pulses.", |m| m.rtt_ms.map(|ms| ms / 1e3)),
    ("agent_peer_loss_ratio", Gauge, "Smoothed share of unanswered pulses.", |m| {
        m.loss_permille.map(|loss| f64::from(loss) / 1e3)
    }),
];

const SERVICE: &[MetricFamily<ServiceStatus>] = &[
    ("agent_service_connections", Gauge, "Current client connections.", |s| Some(s.connections as f64)),
    (
        "agent_service_connections_max",
        Gauge,
        "Highest number of concurrent client connections since start.",
        |s| Some(s.counted.most as f64),
    ),
    ("agent_service_connections_limit", Gauge, "Limit of concurrent client connections (maxconn).", |s| {
        Some(f64::from(s.maxconn))
    }),
    ("agent_service_connections_total", Counter, "Client connections accepted.", |s| {
        Some(s.counted.total as f64)
    }),
    ("agent_service_listening", Gauge, "1 if all listeners of the service are bound.", |s| {
        Some(flag(s.is_listening()))
    }),
];

const BACKEND: &[MetricFamily<BackendStatus>] = &[
    ("agent_backend_up", Gauge, "1 if the backend gets new connections.", |b| Some(flag(b.state.is_good()))),
    ("agent_backend_weight", Gauge, "Weight of the backend.", |b| Some(f64::from(b.weight))),
    ("agent_backend_rtt_seconds", Gauge, "Smoothed round-trip time to the backend.", |b| {
        b.rtt_ms.map(|ms| ms / 1e3)
    }),
    (
        "agent_backend_last_change_time_seconds",
        Gauge,
        "Time of the last state change, in seconds since 1970.",
        |b| Some(b.since_unix_ms.0 as f64 / 1e3),
    ),
    (
        "agent_backend_check_duration_seconds",
        Gauge,
        "Approximate duration of the latest health check on the backend's node.",
        |b| b.check_ms.map(|ms| f64::from(ms) / 1e3),
    ),
    ("agent_backend_connections", Gauge, "Current connections from this node to the backend.", |b| {
        Some(b.connections as f64)
    }),
    ("agent_backend_connections_max", Gauge, "Highest number of concurrent connections since start.", |b| {
        Some(b.counted.most as f64)
    }),
    ("agent_backend_connections_total", Counter, "Client connections assigned to the backend.", |b| {
        Some(b.total as f64)
    }),
    (
        "agent_backend_received_bytes_total",
        Counter,
        "Bytes from clients to the backend, counted when a connection ends.",
        |b| Some(b.counted.bytes_in as f64),
    ),
    (
        "agent_backend_sent_bytes_total",
        Counter,
        "Bytes from the backend to clients, counted when a connection ends.",
        |b| Some(b.counted.bytes_out as f64),
    ),
    ("agent_backend_connect_errors_total", Counter, "Failed connection attempts.", |b| {
        Some(b.counted.connect_errors as f64)
    }),
    (
        "agent_backend_races_total",
        Counter,
        "Connection attempts started while another backend was slow to answer.",
        |b| Some(b.counted.races as f64),
    ),
    (
        "agent_backend_replays_total",
        Counter,
        "TLS hellos resent to this backend after another one left them unanswered.",
        |b| Some(b.counted.replays as f64),
    ),
    ("agent_backend_silences_total", Counter, "TLS hellos that the backend left unanswered.", |b| {
        Some(b.counted.silences as f64)
    }),
    ("agent_backend_changes_total", Counter, "State changes.", |b| Some(b.counted.changes as f64)),
    ("agent_backend_false_alarms_total", Counter, "Suspicions that were not confirmed.", |b| {
        Some(b.counted.false_alarms as f64)
    }),
    (
        "agent_backend_downtime_seconds_total",
        Counter,
        "Total time in which the backend was neither ready nor alive.",
        |b| Some(b.counted.downtime_ms as f64 / 1e3),
    ),
];

const VIP: &[MetricFamily<VipStatus>] = &[
    ("agent_vip_owned_here", Gauge, "1 if this node owns the virtual IP.", |v| {
        Some(flag(v.state == VipState::OwnedHere))
    }),
    ("agent_vip_owned", Gauge, "1 if any node owns the virtual IP, as far as this node knows.", |v| {
        Some(flag(matches!(v.state, VipState::OwnedHere | VipState::Owned)))
    }),
    ("agent_vip_epoch", Gauge, "Epoch of the virtual IP; increases with each new owner.", |v| {
        Some(v.epoch as f64)
    }),
    (
        "agent_vip_last_change_time_seconds",
        Gauge,
        "Time of the last state change, in seconds since 1970.",
        |v| Some(v.since_unix_ms.0 as f64 / 1e3),
    ),
    ("agent_vip_candidates", Gauge, "Number of nodes that are eligible to own the virtual IP now.", |v| {
        Some(v.candidates.iter().filter(|one| one.eligible).count() as f64)
    }),
];

pub(super) fn write(text: &mut MetricsText, status: &Status) {
    text.family("agent_build_info", Gauge, "Version of the running agent; always 1.");
    text.sample("agent_build_info", &[("version", &status.node.version)], 1.0);
    text.family(
        "agent_cluster_info",
        Gauge,
        "Name of the cluster and hash of the document on this node; always 1.",
    );
    let about = [("cluster", status.cluster.name.as_str()), ("document", &status.cluster.document)];
    text.sample("agent_cluster_info", &about, 1.0);
    text.table(NODE, &[(Vec::new(), status)]);
    text.family("agent_event_loop_lag_seconds", Histogram, "Lag of the event loop.");
    text.histogram("agent_event_loop_lag_seconds", &[], &status.node.loop_lag);
    text.family("agent_events_total", Counter, "Events, by kind.");
    for (kind, count) in &status.node.events {
        text.sample("agent_events_total", &[("kind", kind)], *count as f64);
    }
    text.family("agent_problem", Gauge, "Number of problems of this node, by code.");
    for code in ProblemCode::ALL.iter().chain([&ProblemCode::Other]) {
        let found = status.problems.iter().filter(|problem| problem.code == *code).count();
        text.sample("agent_problem", &[("code", code.label())], found as f64);
    }
    members(text, status);
    link(text, &status.node.link);
    services(text, status);
    backends(text, status);
    checks(text, &status.node.checks);
    vips(text, &status.vips);
}

/// Number of distinct values among the members that are up.
fn different<'a>(status: &'a Status, of: impl Fn(&'a MemberStatus) -> &'a String) -> f64 {
    let up = status.members.iter().filter(|one| one.state == MemberState::Up).map(of);
    up.filter(|text| !text.is_empty()).collect::<BTreeSet<_>>().len() as f64
}

fn members(text: &mut MetricsText, status: &Status) {
    text.family("agent_members", Gauge, "Number of members, by role and state.");
    for (role, word) in [(Role::Master, "master"), (Role::Worker, "worker")] {
        for state in [MemberState::Up, MemberState::Suspect, MemberState::Down, MemberState::Left] {
            let mut found =
                status.members.iter().filter(|one| one.role == role && one.state == state).count();
            // All masters are known well.
            match state {
                MemberState::Up if role == Role::Worker => found = found.saturating_sub(status.unnamed()),
                MemberState::Down if role == Role::Worker => found += status.unnamed(),
                _ => {}
            }
            text.sample("agent_members", &[("role", word), ("state", state.as_str())], found as f64);
        }
    }
    let peers = super::peers(status).into_iter();
    let peers: Vec<_> = peers.map(|one| (vec![("peer", one.name.as_str())], one)).collect();
    text.table(PEER, &peers);
}

fn link(text: &mut MetricsText, link: &LinkStatus) {
    text.table(LINK, &[(Vec::new(), link)]);
    let name = "agent_link_refused_datagrams_total";
    text.family(name, Counter, "Datagrams refused, by reason.");
    for (reason, count) in [
        ("stranger", link.refused_stranger),
        ("key", link.refused_key),
        ("seal", link.refused_seal),
        ("replay", link.refused_replay),
        ("unproven", link.refused_unproven),
        ("flood", link.refused_flood),
    ] {
        text.sample(name, &[("reason", reason)], count as f64);
    }
}

fn services(text: &mut MetricsText, status: &Status) {
    let all: Vec<_> = status.services.iter().map(|one| (vec![("service", one.name.as_str())], one)).collect();
    text.table(SERVICE, &all);
    let name = "agent_service_refused_total";
    text.family(name, Counter, "Client connections refused before a backend was assigned, by reason.");
    for one in &status.services {
        for (reason, count) in [("limit", one.refused), ("no-backend", one.counted.unserved)] {
            text.sample(name, &[("service", one.name.as_str()), ("reason", reason)], count as f64);
        }
    }
    text.family("agent_backends", Gauge, "Number of backends, by state.");
    for one in &status.services {
        for &state in BackendState::ALL {
            let found = one.backends.iter().filter(|backend| backend.state == state).count();
            let labels = [("service", one.name.as_str()), ("state", state.as_str())];
            text.sample("agent_backends", &labels, found as f64);
        }
    }
}

fn backends(text: &mut MetricsText, status: &Status) {
    let all: Vec<_> = super::backends(status)
        .into_iter()
        .map(|(service, one)| (vec![("service", service.name.as_str()), ("backend", one.node.as_str())], one))
        .collect();
    text.table(BACKEND, &all);
    text.family("agent_backend_state", Gauge, "1 for the current state, 0 for all others.");
    for (labels, backend) in &all {
        for &state in BackendState::ALL {
            let mut labels = labels.clone();
            labels.push(("state", state.as_str()));
            text.sample("agent_backend_state", &labels, flag(backend.state == state));
        }
    }
    text.family("agent_backend_cause", Gauge, "Cause of the current state; always 1.");
    for (labels, backend) in &all {
        if let Some(cause) = backend.cause {
            let mut labels = labels.clone();
            labels.push(("cause", cause.label()));
            text.sample("agent_backend_cause", &labels, 1.0);
        }
    }
    let name = "agent_backend_resets_total";
    text.family(name, Counter, "Open connections closed by the proxy, by reason.");
    for (labels, backend) in &all {
        for (reason, count) in
            [("down", backend.counted.resets_down), ("leave", backend.counted.resets_leave)]
        {
            let mut labels = labels.clone();
            labels.push(("reason", reason));
            text.sample(name, &labels, count as f64);
        }
    }
    text.family("agent_backend_dial_seconds", Histogram, "Duration of successful connection attempts.");
    for (labels, backend) in &all {
        text.histogram("agent_backend_dial_seconds", labels, &backend.counted.dials);
    }
}

fn checks(text: &mut MetricsText, checks: &[CheckCounts]) {
    text.family("agent_checks_total", Counter, "Health checks of this node's own services, by result.");
    for one in checks {
        for (result, count) in [
            ("good", one.good),
            ("alive", one.alive),
            ("not-ready", one.not_ready),
            ("refused", one.refused),
            ("silent", one.silent),
        ] {
            let labels = [("service", one.service.as_str()), ("result", result)];
            text.sample("agent_checks_total", &labels, count as f64);
        }
    }
    text.family(
        "agent_check_seconds",
        Histogram,
        "Duration of the health checks of this node's own services.",
    );
    for one in checks {
        text.histogram("agent_check_seconds", &[("service", one.service.as_str())], &one.took);
    }
}

fn vips(text: &mut MetricsText, vips: &[VipStatus]) {
    let named: Vec<(String, &VipStatus)> = vips.iter().map(|vip| (vip.address.to_string(), vip)).collect();
    let all: Vec<_> = named.iter().map(|(name, vip)| (vec![("vip", name.as_str())], *vip)).collect();
    text.table(VIP, &all);
    let name = "agent_vip_gained_total";
    text.family(name, Counter, "Times that this node became the owner of the virtual IP, by cause.");
    for (address, vip) in &named {
        for (cause, count) in [
            ("vacant", vip.gains.vacant),
            ("silent", vip.gains.silent),
            ("handed", vip.gains.handed),
            ("released", vip.gains.released),
        ] {
            text.sample(name, &[("vip", address), ("cause", cause)], count as f64);
        }
    }
    text.family("agent_vip_cause", Gauge, "Cause of the current state of the virtual IP; always 1.");
    for (name, vip) in &named {
        if let Some(cause) = vip.cause {
            text.sample("agent_vip_cause", &[("vip", name), ("cause", cause.label())], 1.0);
        }
    }
    text.family("agent_vip_owner", Gauge, "Owner of the virtual IP, as far as this node knows; always 1.");
    for (name, vip) in &named {
        if let Some(owner) = &vip.owner {
            text.sample("agent_vip_owner", &[("vip", name), ("owner", owner.as_str())], 1.0);
        }
    }
}
