//! One screen of status.

use proto::backends::BackendState;
use proto::control::{BackendStatus, MemberState, MemberStatus, ServiceSource, ServiceStatus, Status};
use proto::time::UnixMs;

use super::table::{Cell, Column, Table, cut, paragraph, sanitize};
use super::time::{age, at, until};
use super::verdict::StatusSummary;
use super::{members, vips};

/// Members shown one by one; of a larger cluster only those that are not up, and no more than these.
const MAX_MEMBERS: usize = 16;

/// Writes a status as lines of at most `columns` columns.
pub(super) fn render(
    status: &Status,
    verdict: &StatusSummary,
    now: UnixMs,
    columns: usize,
    colours: bool,
) -> String {
    let mut text = String::new();
    text.push_str(&verdict.severity.paint(&cut(&sanitize(&verdict.text), columns), colours));
    text.push_str("\n\n");
    about(&mut text, status, now, columns);
    for service in &status.services {
        text.push('\n');
        show_service(&mut text, service, now, columns, colours);
    }
    vips::show(&mut text, status, now, columns, colours);
    text.push('\n');
    show_members(&mut text, status, now, columns, colours);
    if !status.problems.is_empty() {
        text.push_str("\nproblems\n");
        for problem in &status.problems {
            paragraph(&mut text, "  - ", &problem.to_string(), columns);
        }
    }
    text
}

/// This node and its cluster, a line each.
fn about(text: &mut String, status: &Status, now: UnixMs, columns: usize) {
    let node = &status.node;
    let place = match &node.address {
        Some(address) => format!("{address} on {}", node.interface),
        None => format!("no address on {}", node.interface),
    };
    let up = age(node.started_unix_ms, now);
    let line = format!("{}, {}, {place}, agent {}, up {up}", node.name, node.role, node.version);
    paragraph(text, "node     ", &line, columns);
    let cluster = &status.cluster;
    let s = if cluster.members == 1 { "" } else { "s" };
    let line = format!(
        "{}, {} member{s}, document {}, key {}",
        cluster.name, cluster.members, cluster.document, cluster.key_epoch
    );
    paragraph(text, "cluster  ", &line, columns);
    if let Some(end) = cluster.open_until_unix_ms {
        let line =
            format!("joins without an invite are accepted here until {} ({})", at(end, now), until(end, now));
        paragraph(text, "open     ", &line, columns);
    }
}

fn show_service(text: &mut String, service: &ServiceStatus, now: UnixMs, columns: usize, colours: bool) {
    let listen = if service.listen.is_empty() {
        "not served here".to_owned()
    } else {
        format!("on {}", service.listeners())
    };
    let mut line =
        format!("{listen}, {}, {} of {} connections", service.balance, service.connections, service.maxconn);
    line.push_str(match service.source {
        ServiceSource::Default | ServiceSource::File | ServiceSource::Other(_) => "",
        ServiceSource::Cluster => ", set cluster-wide",
        ServiceSource::FileOverCluster => {
            ", set by this node's own file, which overrides the cluster-wide setting"
        }
    });
    if service.refused > 0 {
        line.push_str(&format!(", {} refused at the limit", service.refused));
    }
    paragraph(text, &format!("{}  ", service.name), &line, columns);
    if service.backends.is_empty() {
        text.push_str("  no node offers it yet\n");
        return;
    }
    let mut table = Table::new(vec![
        Column::left("NODE"),
        Column::left("ADDRESS"),
        Column::left("STATE"),
        Column::left("SINCE"),
        Column::right("RTT").optional(1),
        Column::right("CONNS").optional(2),
        Column::right("TOTAL").optional(3),
    ])
    .indent(2);
    for backend in &service.backends {
        table.row(vec![
            Cell::plain(backend.node.as_str()),
            Cell::plain(&backend.address),
            Cell::toned(backend.state.as_str(), backend.state.into()),
            Cell::plain(age(backend.since_unix_ms, now)),
            Cell::plain(members::rtt(backend.rtt_ms)),
            Cell::plain(backend.connections.to_string()),
            Cell::plain(backend.total.to_string()),
        ]);
        if let Some(note) = note(backend, now) {
            table.note(note);
        }
    }
    text.push_str(&table.render(columns, colours));
}

/// Why a backend gets no connections, or less than the others.
fn note(backend: &BackendStatus, now: UnixMs) -> Option<String> {
    let mut parts = Vec::new();
    if backend.state != BackendState::Ready {
        if !backend.reason.is_empty() {
            parts.push(backend.reason.to_string());
        }
        if backend.since_unix_ms != UnixMs(0) {
            parts.push(format!("since {}", at(backend.since_unix_ms, now)));
        }
    }
    if backend.weight == 0 {
        parts.push("weight 0: no new connections while another is healthy".to_owned());
    }
    (!parts.is_empty()).then(|| parts.join(", "))
}

fn show_members(text: &mut String, status: &Status, now: UnixMs, columns: usize, colours: bool) {
    let all = &status.members;
    let shown: Vec<&MemberStatus> = if all.len() <= MAX_MEMBERS {
        all.iter().collect()
    } else {
        all.iter().filter(|member| member.state != MemberState::Up).take(MAX_MEMBERS).collect()
    };
    text.push_str(&format!("members  {}\n", counts(all)));
    if !shown.is_empty() {
        text.push_str(&members::table(&shown, now, false, 2).render(columns, colours));
    }
    if shown.len() < all.len() {
        text.push_str("  for all, run: agent members\n");
    }
}

/// How many are what, as `3 up, 1 down`.
fn counts(all: &[MemberStatus]) -> String {
    let states = [MemberState::Up, MemberState::Suspect, MemberState::Down, MemberState::Left];
    let count = |state| all.iter().filter(|member| member.state == state).count();
    let parts: Vec<String> = states
        .into_iter()
        .map(|state| (count(state), state))
        .filter(|(count, _)| *count > 0)
        .map(|(count, state)| format!("{count} {}", state.as_str()))
        .collect();
    parts.join(", ")
}
