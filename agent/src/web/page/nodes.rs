//! Members, the matrix of links between them, their differences, and this node.

use std::collections::BTreeMap;

use maud::{Markup, html};
use proto::control::{MemberState, MemberStatus, PeerLinkStatus, Status, in_order};
use proto::node::Role;
use proto::open_enum::OpenEnum;
use proto::topology::Place;

use super::html::{
    bytes, cell, cell_of, loss, milliseconds, ms, pairs, quiet, row, section, since, state, table,
};
use crate::severity::Severity;
use crate::times::age;

/// Members on one page of their table: the page is fetched every two seconds.
const PAGE: usize = 50;

/// Most rows and columns of the matrix.
const MAX_ROWS: usize = 32;
const MAX_COLUMNS: usize = 9;

/// Members in the order of a table; of more than `most` what is wrong comes first, then masters, then the rest.
fn ordered(status: &Status, most: usize) -> Vec<&MemberStatus> {
    let urgency = |one: &MemberStatus| if status.members.len() > most { one.state.urgency() } else { 0 };
    let rank = |one: &MemberStatus| urgency(one) * 2 + u8::from(one.role != Role::Master);
    in_order(status.members.iter(), |one| (rank(one), one.name.as_str()))
}

pub(super) fn more(all: usize, shown: usize, what: &str) -> Markup {
    html! {
        @if all > shown {
            p.about {
                (all - shown) " more " (what) " not shown; "
                a href="/api/v1/status" { "the JSON" } " lists all."
            }
        }
    }
}

/// The links between the pages of a table; `page` counts from 1.
fn pages(all: usize, page: usize, last: usize) -> Markup {
    let (from, to) = ((page - 1) * PAGE + 1, all.min(page * PAGE));
    let link = |word: &str, to: usize, rel: Option<&str>| {
        html! {
            " "
            @if to == page || to == 0 || to > last {
                (quiet(word))
            } @else {
                a href={ "/?page=" (to) "#members" } rel=[rel] { (word) }
            }
        }
    };
    html! {
        nav.pages aria-label="Pages of members" {
            p { (from) " to " (to) " of " (all) ", what is wrong first, then masters" }
            p {
                (link("first", 1, None)) (link("previous", page - 1, Some("prev")))
                " page " (page) " of " (last)
                (link("next", page + 1, Some("next"))) (link("last", last, None))
            }
        }
    }
}

/// A page of the members.
pub(super) fn members(status: &Status, page: usize) -> Markup {
    let columns = ["node", "role", "state", "address", "!rtt", "!loss", "agent", "document", "since"];
    let all = ordered(status, PAGE);
    let last = all.len().div_ceil(PAGE).max(1);
    let page = page.clamp(1, last);
    let rows =
        html! { @for one in all.chunks(PAGE).nth(page - 1).unwrap_or_default() { (member(one, status)) } };
    let nav = if last > 1 {
        pages(all.len(), page, last)
    } else {
        html! {}
    };
    let content = html! {
        (nav)
        (table("Members of the cluster, as seen from this node", &columns, &rows))
    };
    section("members", "Members", &content)
}

fn member(one: &MemberStatus, status: &Status) -> Markup {
    let lost = one.loss_permille.map(|permille| format!("{}.{} %", permille / 10, permille % 10));
    let code = |text| html! { code { (or_dash(text)) } };
    let role = html! {
        (one.role)
        @if one.id == status.node.id { " " (quiet("this node")) }
    };
    let cells = html! {
        (cell_of("role", &role))
        (cell_of("state", &state(one.state.into(), one.state.as_str())))
        (cell_of("address", &code(&one.address)))
        (ms("!rtt", one.rtt_ms))
        (cell("!loss", lost.as_deref().unwrap_or("–")))
        (cell("agent", or_dash(&one.version)))
        (cell_of("document", &code(short(&one.document))))
        (since("since", one.since_unix_ms, status.taken_unix_ms))
    };
    row(&one.name, &cells)
}

fn or_dash(text: &str) -> &str {
    if text.is_empty() { "–" } else { text }
}

fn short(hash: &str) -> &str {
    hash.get(..12).unwrap_or(hash)
}

/// The matrix: a row is one node's view of the masters.
pub(super) fn matrix(status: &Status) -> Markup {
    let masters = status.members.iter().filter(|one| one.role == Role::Master);
    let mut masters = in_order(masters, |one| (0, one.name.as_str()));
    masters.truncate(MAX_COLUMNS);
    if masters.is_empty() || status.members.len() < 2 {
        return html! {};
    }
    let mut shown = ordered(status, MAX_ROWS);
    shown.truncate(MAX_ROWS);
    let content = html! {
        p.about { "Round trips and pulse loss, as reported by each row's node for the master in the columns." }
        div.wide tabindex="0" role="region" aria-labelledby="h-matrix" {
            table.matrix {
                caption.visually-hidden { "Each row is a node, each column a master that it pulses" }
                thead {
                    tr {
                        td {}
                        @for master in &masters { th scope="col" { (master.name) } }
                    }
                }
                tbody {
                    @for one in &shown {
                        tr {
                            th scope="row" { (one.name) }
                            @for master in &masters { td { (link_cell(one, master)) } }
                        }
                    }
                }
            }
        }
        (more(status.members.len(), shown.len(), "rows"))
    };
    section("matrix", "Connectivity", &content)
}

fn link_cell(one: &MemberStatus, other: &MemberStatus) -> Markup {
    let seen = one.sees.iter().find(|seen| seen.node == other.name);
    match seen {
        _ if one.id == other.id => quiet("itself"),
        None => quiet("no report"),
        // Its last record is out of date.
        Some(_) if one.state == MemberState::Down => quiet("down itself"),
        Some(seen) if !seen.alive => state(Severity::Bad, "not heard"),
        Some(PeerLinkStatus { rtt_ms, loss_permille, .. }) => {
            let word = rtt_ms.map_or_else(|| "heard".to_owned(), milliseconds);
            let severity = if *loss_permille >= 50 { Severity::Doubt } else { Severity::Good };
            html! {
                (state(severity, &word))
                @if *loss_permille > 0 { " " (quiet(loss(*loss_permille))) }
            }
        }
    }
}

/// Versions and documents, if they differ.
pub(super) fn differences(status: &Status) -> Markup {
    let versions = groups(status, |one| &one.version);
    let documents = groups(status, |one| short(&one.document));
    let content = if versions.len() <= 1 && documents.len() <= 1 {
        let first = |groups: &BTreeMap<&str, String>| groups.keys().next().map_or("–", |key| key).to_owned();
        let (version, document) = (first(&versions), first(&documents));
        let text = format!("all members that are up run {version} and have document {document}");
        html! { (state(Severity::Good, "no difference")) " " (quiet(text)) }
    } else {
        let rows = html! {
            @for (what, groups) in [("agent version", versions), ("cluster document", documents)] {
                @let severity = if groups.len() > 1 { Severity::Doubt } else { Severity::Good };
                @for (value, names) in groups {
                    (row(what, &html! { (cell_of("value", &state(severity, value))) (cell("nodes", names)) }))
                }
            }
        };
        table("Differences between the members that are up", &["what", "value", "nodes"], &rows)
    };
    section("differences", "Differences", &content)
}

/// Names by value, a few for each.
fn groups<'a>(status: &'a Status, of: impl Fn(&'a MemberStatus) -> &'a str) -> BTreeMap<&'a str, String> {
    let mut found: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    for one in status.members.iter().filter(|one| one.state != MemberState::Down) {
        let value = of(one);
        if !value.is_empty() {
            found.entry(value).or_default().push(one.name.as_str());
        }
    }
    let few = |names: Vec<&str>| match names.get(..8) {
        Some(few) if names.len() > 8 => format!("{} and {} more", few.join(", "), names.len() - 8),
        _ => names.join(", "),
    };
    found.into_iter().map(|(value, names)| (value, few(names))).collect()
}

/// Whether this node gossips, and if not, to whom it is attached.
fn gossips(status: &Status) -> String {
    let (cluster, node) = (&status.cluster, &status.node);
    let to: Vec<&str> = node.attached_to.iter().map(|one| one.as_str()).collect();
    match node.place {
        OpenEnum::Known(Place::Everyone) => "yes, as all members".to_owned(),
        OpenEnum::Known(Place::Core) => format!("yes, as {} of {} members", cluster.core, cluster.members),
        OpenEnum::Known(Place::Attached) if to.is_empty() => "no, and attached to none yet".to_owned(),
        OpenEnum::Known(Place::Attached) => format!("no, attached to {}", to.join(", ")),
        OpenEnum::Other(place) => place.as_str().to_owned(),
    }
}

/// This node.
pub(super) fn own(status: &Status) -> Markup {
    let (node, cluster, link) = (&status.node, &status.cluster, &status.node.link);
    let refused = [
        link.refused_stranger,
        link.refused_key,
        link.refused_seal,
        link.refused_replay,
        link.refused_unproven,
        link.refused_flood,
    ];
    let facts = [
        ("name", node.name.to_string()),
        ("role", node.role.to_string()),
        ("address", node.address.clone().unwrap_or_else(|| "none".to_owned())),
        ("interface", node.interface.clone()),
        ("agent", node.version.clone()),
        ("up", age(node.started_unix_ms, status.taken_unix_ms)),
        ("gossips", gossips(status)),
        ("document", short(&cluster.document).to_owned()),
        ("gossip key", cluster.key_epoch.to_string()),
        ("sent", bytes(link.sent_bytes)),
        ("received", bytes(link.received_bytes)),
        ("datagrams refused", refused.iter().sum::<u64>().to_string()),
        ("open file limit", node.descriptors.to_string()),
    ];
    section("own", "This node", &html! { dl.facts { (pairs(facts)) } })
}
