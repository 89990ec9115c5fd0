//! One screen of status.

use proto::backends::BackendState;
use proto::control::{
    BackendStatus, MemberState, MemberStatus, ServiceSource, ServiceStatus, Status, in_order,
};
use proto::node::{Name, Role};
use proto::open_enum::OpenEnum;
use proto::time::UnixMs;
use proto::topology::Place;

use super::table::{Cell, Column, Table, cut, paragraph, sanitize};
use super::time::{age, at, until};
use super::verdict::StatusSummary;
use super::{members, vips};

/// Members shown one by one; of a larger cluster the masters and those that are not up, no more than these.
const MAX_MEMBERS: usize = 20;
const MAX_MASTERS: usize = 9;
const MAX_AWAY: usize = 10;

/// Backends shown one by one; of more than these those that are not good, and as few of them.
const MAX_BACKENDS: usize = 20;
const MAX_BAD_BACKENDS: usize = 10;

/// Problems shown.
const MAX_PROBLEMS: usize = 12;

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
        for problem in status.problems.iter().take(MAX_PROBLEMS) {
            paragraph(&mut text, "  - ", &problem.to_string(), columns);
        }
        if status.problems.len() > MAX_PROBLEMS {
            let more = status.problems.len() - MAX_PROBLEMS;
            text.push_str(&format!("  and {more} more; for all, run: agent status --json\n"));
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
    if let Some(line) = core(status) {
        paragraph(text, "core     ", &line, columns);
    }
    if let Some(end) = cluster.open_until_unix_ms {
        let line =
            format!("joins without an invite are accepted here until {} ({})", at(end, now), until(end, now));
        paragraph(text, "open     ", &line, columns);
    }
}

/// Who gossips, where not all do, and where that leaves this node.
fn core(status: &Status) -> Option<String> {
    let (cluster, node) = (&status.cluster, &status.node);
    let here = match node.place {
        OpenEnum::Known(Place::Everyone) => return None,
        OpenEnum::Known(Place::Core) => ", this node among them".to_owned(),
        OpenEnum::Known(Place::Attached) if node.attached_to.is_empty() => {
            "; this node is attached to none of them yet".to_owned()
        }
        OpenEnum::Known(Place::Attached) => {
            let to: Vec<&str> = node.attached_to.iter().map(Name::as_str).collect();
            format!("; this node is attached to {}", to.join(", "))
        }
        OpenEnum::Other(place) => format!("; place of this node: {}", place.as_str()),
    };
    Some(format!("{} of {} members gossip{here}", cluster.core, cluster.members))
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
    let shown = shown_backends(&service.backends);
    for backend in &shown {
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
    if !shown.is_empty() {
        text.push_str(&table.render(columns, colours));
    }
    let mut rest = String::new();
    for state in BackendState::ALL {
        let of = |one: &&BackendStatus| one.state == *state;
        let count = service.backends.iter().filter(of).count() - shown.iter().copied().filter(of).count();
        count_up(&mut rest, count, state.as_str(), "");
    }
    if !rest.is_empty() {
        text.push_str(&format!("  and {rest}; for all, run: agent status --json\n"));
    }
}

/// The backends that are shown: of many those that are not good.
fn shown_backends(all: &[BackendStatus]) -> Vec<&BackendStatus> {
    if all.len() <= MAX_BACKENDS {
        return all.iter().collect();
    }
    all.iter().filter(|one| !one.state.is_good()).take(MAX_BAD_BACKENDS).collect()
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
    let in_state = |state| all.iter().filter(|member| member.state == state).count();
    let states = [MemberState::Up, MemberState::Suspect, MemberState::Down, MemberState::Left];
    let mut listed = String::new();
    states.iter().for_each(|state| count_up(&mut listed, in_state(*state), state.as_str(), ""));
    // Of those that are away and not named it is not known who they are.
    let unnamed = status.unnamed();
    let line = match unnamed {
        0 => listed,
        _ => format!(
            "{} of {} up by what core members say, who name {} of the others",
            in_state(MemberState::Up) - unnamed,
            all.len(),
            all.len() - in_state(MemberState::Up)
        ),
    };
    paragraph(text, "members  ", &line, columns);
    let shown = shown_members(all);
    if !shown.is_empty() {
        text.push_str(&members::table(&shown, now, false, 2).render(columns, colours));
    }
    if shown.len() == all.len() {
        return;
    }
    let mut rest = String::new();
    for state in states {
        for (role, one, many) in
            [(Role::Master, "master ", "masters "), (Role::Worker, "worker ", "workers ")]
        {
            let of = |member: &&MemberStatus| member.role == role && member.state == state;
            let count = all.iter().filter(of).count() - shown.iter().copied().filter(of).count();
            count_up(&mut rest, count, if count == 1 { one } else { many }, state.as_str());
        }
    }
    if unnamed > 0 || rest.is_empty() {
        rest = format!("{} more", all.len() - shown.len());
    }
    paragraph(text, "  ", &format!("and {rest}; for all, run: agent members"), columns);
}

/// The members that are shown: of many the masters and those that are not up, what is wrong first.
fn shown_members(all: &[MemberStatus]) -> Vec<&MemberStatus> {
    if all.len() <= MAX_MEMBERS {
        return all.iter().collect();
    }
    let sorted = in_order(all.iter(), |one| (one.state.urgency(), one.name.as_str()));
    let (mut masters, mut away) = (MAX_MASTERS, MAX_AWAY);
    let fits = |one: &&MemberStatus| {
        let room = match one.role == Role::Master {
            true => &mut masters,
            false => &mut away,
        };
        let fits = *room > 0 && (one.role == Role::Master || one.state != MemberState::Up);
        *room -= usize::from(fits);
        fits
    };
    let shown: Vec<&MemberStatus> = sorted.into_iter().filter(fits).collect();
    let of = |master| shown.iter().filter(move |one| (one.role == Role::Master) == master).copied();
    of(true).chain(of(false)).collect()
}

/// Adds to a list like `3 up, 1 down`; not those of which there is none.
fn count_up(list: &mut String, count: usize, what: &str, state: &str) {
    if count > 0 {
        let gap = if list.is_empty() { "" } else { ", " };
        list.push_str(&format!("{gap}{count} {what}{state}"));
    }
}
