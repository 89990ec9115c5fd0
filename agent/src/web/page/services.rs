//! Services with their backends, and virtual IPs.

use proto::backends::State;
use proto::cause::Cause;
use proto::control::{BackendStatus, ServiceSource, ServiceStatus, Status, VipState, VipStatus};
use proto::time::UnixMs;

use super::html::{Html, bytes, lasted};
use crate::tone::Tone;

const COLUMNS: &[&str] = &[
    "node",
    "state",
    "last check",
    "!rtt",
    "!now",
    "!most",
    "!total",
    "!in",
    "!out",
    "!errors",
    "!races",
    "!replays",
    "last change",
    "!downtime",
];

/// One service.
pub(super) fn service(html: &mut Html, service: &ServiceStatus, status: &Status, acts: bool) {
    let name = service.name.as_str();
    html.section(&format!("service-{name}"), name);
    html.raw("<p class=\"about\">");
    if service.listen.is_empty() {
        html.raw("not served here");
    } else {
        html.raw("on <code>").text(&service.listeners()).raw("</code>");
    }
    html.raw(", ").show(&service.balance).raw(", ").show(&service.connections).raw(" of ");
    html.show(&service.maxconn).raw(" connections, at most ").show(&service.counted.most).raw(" at once, ");
    html.show(&service.counted.total).raw(" since the start");
    for (count, what) in
        [(service.refused, " refused at the limit"), (service.counted.unserved, " found no master")]
    {
        if count > 0 {
            html.raw(", <strong>").show(&count).raw(what).raw("</strong>");
        }
    }
    match service.source {
        ServiceSource::Default | ServiceSource::Other(_) => {}
        ServiceSource::File => _ = html.raw(", described by this node's file"),
        ServiceSource::Cluster => _ = html.raw(", described by the cluster's settings"),
        ServiceSource::FileOverCluster => {
            html.raw(
                ", <strong>this node's file differs from the cluster's settings and counts here</strong>",
            );
        }
    }
    html.raw("</p>");
    if service.backends.is_empty() {
        html.raw("<p>Nobody offers it yet.</p></section>");
        return;
    }
    let mut columns = COLUMNS.to_vec();
    if acts {
        columns.push("act");
    }
    html.table(&format!("Backends of {name}, as this node sees them"), &columns);
    let mut backends: Vec<&BackendStatus> = service.backends.iter().collect();
    backends.sort_by(|a, b| a.node.cmp(&b.node));
    for backend in backends {
        row(html, backend, status, acts);
    }
    html.raw("</tbody></table></section>");
}

fn row(html: &mut Html, one: &BackendStatus, status: &Status, acts: bool) {
    let (counted, now) = (&one.counted, status.taken_unix_ms);
    html.row(one.node.as_str());
    html.cell("state").state(one.state.into(), one.state.word());
    html.raw(" <span class=\"q\">").text(&one.address);
    if one.weight != 100 {
        html.raw(", weight ").show(&one.weight);
    }
    html.raw("</span></td>");
    html.cell("last check");
    if one.reason.is_empty() {
        html.text("–");
    } else {
        let label = one.cause.map_or("", Cause::label);
        html.raw("<span title=\"").text(label).raw("\">").show(&one.reason).raw("</span>");
    }
    // Of one that is not heard the reason is not its check's.
    if let Some(ms) = one.check_ms.filter(|_| one.check_code().is_some()) {
        html.raw(" <span class=\"q\">in ").show(&ms).raw(" ms</span>");
    }
    html.raw("</td>").ms("!rtt", one.rtt_ms).number("now", one.connections).number("most", counted.most);
    html.number("total", one.total);
    html.cell("!in").text(&bytes(counted.bytes_in)).raw("</td>");
    html.cell("!out").text(&bytes(counted.bytes_out)).raw("</td>");
    html.number("errors", counted.connect_errors + counted.silences);
    html.number("races", counted.races).number("replays", counted.replays);
    html.since("last change", one.since_unix_ms, now);
    html.cell("!downtime").text(&lasted(counted.downtime_ms)).raw("</td>");
    if acts {
        act(html, one);
    }
    html.raw("</tr>");
}

/// What may be done with its node. The settings that it changes hold for the whole cluster.
fn act(html: &mut Html, one: &BackendStatus) {
    let drains = one.state == State::Draining;
    let (verb, word) = if drains { ("undrain", "Take connections") } else { ("drain", "Drain") };
    html.cell("act")
        .raw("<form method=\"post\" action=\"/act\"><input type=\"hidden\" name=\"node\" value=\"");
    html.show(&one.node).raw("\"><button name=\"verb\" value=\"").raw(verb).raw("\">").raw(word);
    html.raw(" <span class=\"ear\">").show(&one.node).raw("</span></button> <label>weight ");
    html.raw("<span class=\"ear\">of ")
        .show(&one.node)
        .raw("</span> <input type=\"number\" name=\"weight\" min=\"0\" ");
    html.raw("max=\"256\" value=\"").show(&one.weight).raw("\"></label> ");
    html.raw("<button name=\"verb\" value=\"weigh\">Set <span class=\"ear\">weight of ").show(&one.node);
    html.raw("</span></button></form></td>");
}

/// The virtual IPs with who could have them.
pub(super) fn vips(html: &mut Html, vips: &[VipStatus], now: UnixMs) {
    if vips.is_empty() {
        return;
    }
    html.section("vips", "Virtual IPs");
    html.table(
        "Virtual IPs and the nodes that could have them, best first",
        &["address", "state", "owner", "since", "!epoch", "interface", "candidates"],
    );
    for vip in vips {
        let tone = match vip.state {
            VipState::OwnedHere | VipState::Owned => Tone::Good,
            VipState::Unowned | VipState::Unavailable => Tone::Bad,
            VipState::Other(_) => Tone::Doubt,
        };
        html.row(&vip.address.to_string()).cell("state").state(tone, vip.state.word());
        let label = vip.cause.map_or("", Cause::label);
        html.raw(" <span class=\"q\" title=\"").raw(label).raw("\">").show(&vip.reason).raw("</span></td>");
        html.cell("owner").text(vip.owner.as_ref().map_or("nobody", |owner| owner.as_str())).raw("</td>");
        html.since("since", vip.since_unix_ms, now).number("epoch", vip.epoch);
        html.cell("interface").text(vip.interface.as_deref().unwrap_or("–")).raw("</td>");
        html.cell("candidates").raw("<ol class=\"flat\">");
        for one in &vip.candidates {
            let tone = if one.eligible { Tone::Good } else { Tone::Dim };
            let label = one.cause.map_or("", Cause::label);
            html.raw("<li>").state(tone, one.node.as_str());
            html.raw(" <span class=\"q\" title=\"").raw(label).raw("\">");
            html.raw(if one.eligible { "can" } else { "can't" });
            if !one.reason.is_empty() {
                html.raw(": ").show(&one.reason);
            }
            html.raw("</span></li>");
        }
        html.raw("</ol></td></tr>");
    }
    html.raw("</tbody></table></section>");
}
