//! Members: who belongs, who hears whom, who differs; and this node itself.

use std::collections::BTreeMap;

use proto::control::{MemberState, MemberStatus, SeenStatus, Status};
use proto::node::Role;

use super::html::{Html, bytes, loss, milliseconds};
use crate::times::age;
use crate::tone::Tone;

/// Members that are shown; of a larger cluster those that are not up come first. A table of thousands helps
/// nobody, and the page is fetched every other second.
const MAX_MEMBERS: usize = 64;

/// Rows and columns of the matrix at most.
const MAX_ROWS: usize = 32;
const MAX_COLUMNS: usize = 9;

/// Those worth showing, most important first: what is wrong, then masters, then names.
fn ordered(status: &Status, most: usize) -> Vec<&MemberStatus> {
    let mut all: Vec<&MemberStatus> = status.members.iter().collect();
    if all.len() > most {
        all.sort_by_key(|one| (one.state == MemberState::Up, one.role != Role::Master, &one.name));
        all.truncate(most);
    } else {
        all.sort_by_key(|one| (one.role != Role::Master, &one.name));
    }
    all
}

fn more(html: &mut Html, all: usize, shown: usize, what: &str) {
    if all > shown {
        html.raw("<p class=\"about\">").show(&(all - shown)).raw(" more ").raw(what).raw(" are not shown; ");
        html.raw("<a href=\"/api/v1/status\">the JSON</a> has them all.</p>");
    }
}

/// Everyone.
pub(super) fn members(html: &mut Html, status: &Status) {
    html.section("members", "Members");
    html.table(
        "Members of the cluster, as this node hears them",
        &["node", "role", "state", "address", "!rtt", "!loss", "agent", "document", "since"],
    );
    let shown = ordered(status, MAX_MEMBERS);
    for one in &shown {
        html.row(one.name.as_str()).cell("role").show(&one.role);
        if one.id == status.node.id {
            html.raw(" <span class=\"q\">this node</span>");
        }
        html.raw("</td>").cell("state").state(one.state.into(), one.state.word()).raw("</td>");
        html.cell("address").raw("<code>").text(or_dash(&one.address)).raw("</code></td>");
        html.ms("!rtt", one.rtt_ms);
        let lost = one.loss_permille.map(|permille| format!("{}.{} %", permille / 10, permille % 10));
        html.cell("!loss").text(lost.as_deref().unwrap_or("–")).raw("</td>");
        html.cell("agent").text(or_dash(&one.version)).raw("</td>");
        html.cell("document").raw("<code>").text(or_dash(short(&one.document))).raw("</code></td>");
        html.since("since", one.since_unix_ms, status.taken_unix_ms).raw("</tr>");
    }
    html.raw("</tbody></table>");
    more(html, status.members.len(), shown.len(), "members");
    html.raw("</section>");
}

fn or_dash(text: &str) -> &str {
    if text.is_empty() { "–" } else { text }
}

fn short(hash: &str) -> &str {
    hash.get(..12).unwrap_or(hash)
}

/// Who hears whom: a row is what one node says of the masters.
pub(super) fn matrix(html: &mut Html, status: &Status) {
    let mut masters: Vec<&MemberStatus> =
        status.members.iter().filter(|one| one.role == Role::Master).collect();
    masters.sort_by_key(|one| &one.name);
    masters.truncate(MAX_COLUMNS);
    if masters.is_empty() || status.members.len() < 2 {
        return;
    }
    html.section("matrix", "Who hears whom");
    html.raw("<p class=\"about\">Round trips and losses of pulses, as each node says of itself. Rows hear ");
    html.raw("columns.</p><div class=\"wide\" tabindex=\"0\" role=\"region\" aria-labelledby=\"h-matrix\">");
    html.raw("<table class=\"matrix\"><caption class=\"ear\">Each row is a node, each column a master that it hears");
    html.raw("</caption><thead><tr><td></td>");
    for master in &masters {
        html.raw("<th scope=\"col\">").show(&master.name).raw("</th>");
    }
    html.raw("</tr></thead><tbody>");
    let shown = ordered(status, MAX_ROWS);
    for one in &shown {
        html.raw("<tr><th scope=\"row\">").show(&one.name).raw("</th>");
        for master in &masters {
            html.raw("<td>");
            let seen = one.sees.iter().find(|seen| seen.node == master.name);
            hears(html, one, master, seen);
            html.raw("</td>");
        }
        html.raw("</tr>");
    }
    html.raw("</tbody></table></div>");
    more(html, status.members.len(), shown.len(), "rows");
    html.raw("</section>");
}

fn hears(html: &mut Html, one: &MemberStatus, other: &MemberStatus, seen: Option<&SeenStatus>) {
    match seen {
        _ if one.id == other.id => html.raw("<span class=\"q\">itself</span>"),
        None => html.raw("<span class=\"q\">not said</span>"),
        // What it said last is old news.
        Some(_) if one.state == MemberState::Down => html.raw("<span class=\"q\">not heard itself</span>"),
        Some(seen) if !seen.heard => html.state(Tone::Bad, "not heard"),
        Some(seen) => {
            let word = seen.rtt_ms.map_or_else(|| "heard".to_owned(), milliseconds);
            let tone = if seen.loss_permille >= 50 { Tone::Doubt } else { Tone::Good };
            html.state(tone, &word);
            if seen.loss_permille > 0 {
                html.raw(" <span class=\"q\">").text(&loss(seen.loss_permille)).raw("</span>");
            }
            html
        }
    };
}

/// Versions and documents, where they are not all the same.
pub(super) fn differences(html: &mut Html, status: &Status) {
    html.section("differences", "Versions and settings");
    let versions = groups(status, |one| &one.version);
    let documents = groups(status, |one| short(&one.document));
    if versions.len() <= 1 && documents.len() <= 1 {
        html.state(Tone::Good, "no difference").raw(" <span class=\"q\">");
        let version = versions.keys().next().copied().unwrap_or("–");
        html.raw("all that are heard run ").text(version).raw(" and hold document ");
        html.text(documents.keys().next().copied().unwrap_or("–")).raw("</span></section>");
        return;
    }
    html.table("What differs between the members that are heard", &["what", "value", "nodes"]);
    for (what, groups) in [("version of agent", versions), ("cluster document", documents)] {
        let tone = if groups.len() > 1 { Tone::Doubt } else { Tone::Good };
        for (value, names) in groups {
            html.row(what).cell("value").state(tone, value).raw("</td>");
            html.cell("nodes").text(&names).raw("</td></tr>");
        }
    }
    html.raw("</tbody></table></section>");
}

/// Names by value, a few of each.
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

/// This node itself.
pub(super) fn own(html: &mut Html, status: &Status) {
    let (node, cluster, link) = (&status.node, &status.cluster, &status.node.link);
    let refused = [
        link.refused_stranger,
        link.refused_key,
        link.refused_seal,
        link.refused_replay,
        link.refused_unproven,
        link.refused_flood,
    ];
    html.section("own", "This node");
    html.raw("<dl class=\"facts\">");
    for (name, value) in [
        ("name", node.name.to_string()),
        ("role", node.role.to_string()),
        ("address", node.address.clone().unwrap_or_else(|| "none".to_owned())),
        ("interface", node.interface.clone()),
        ("agent", node.version.clone()),
        ("up", age(node.started_unix_ms, status.taken_unix_ms)),
        ("document", short(&cluster.document).to_owned()),
        ("gossip key", cluster.key_epoch.to_string()),
        ("sent", bytes(link.sent_bytes)),
        ("received", bytes(link.received_bytes)),
        ("datagrams refused", refused.iter().sum::<u64>().to_string()),
        ("open files, at most", node.descriptors.to_string()),
    ] {
        html.raw("<div><dt>").raw(name).raw("</dt><dd>").text(&value).raw("</dd></div>");
    }
    html.raw("</dl></section>");
}
