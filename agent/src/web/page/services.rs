//! Services with their backends, and virtual IPs.

use maud::{Markup, html};
use proto::backends::BackendState;
use proto::cause::Cause;
use proto::control::{BackendStatus, ServiceSource, ServiceStatus, Status, VipState, VipStatus, in_order};
use proto::time::UnixMs;

use super::html::{bytes, cell, cell_of, lasted, ms, quiet, row, section, since, state, table};
use super::nodes::more;
use crate::severity::Severity;

/// Backends of a service that are all shown; of more those that are not good come first, and fewer are shown.
const MAX_BACKENDS: usize = 50;
const FEW_BACKENDS: usize = 24;

/// Most candidates of a virtual IP that are shown, the best.
const MAX_CANDIDATES: usize = 12;

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
pub(super) fn service(service: &ServiceStatus, status: &Status, acts: bool) -> Markup {
    let name = service.name.as_str();
    let many = service.backends.len() > MAX_BACKENDS;
    let rank = |one: &BackendStatus| u8::from(many && one.state.is_good());
    let mut backends = in_order(service.backends.iter(), |one| (rank(one), one.node.as_str()));
    backends.truncate(if many { FEW_BACKENDS } else { MAX_BACKENDS });
    let shown = backends.len();
    let columns: Vec<&str> = COLUMNS.iter().copied().chain(acts.then_some("act")).collect();
    let content = html! {
        p.about { (about(service)) }
        @if backends.is_empty() {
            p { "No node offers it yet." }
        } @else {
            @let rows = html! { @for one in backends { (backend(one, status, acts)) } };
            (table(&format!("Backends of {name}, as seen from this node"), &columns, &rows))
            (more(service.backends.len(), shown, "backends"))
        }
    };
    section(&format!("service-{name}"), name, &content)
}

/// Listeners, balancing, connections, and where the service is defined.
fn about(service: &ServiceStatus) -> Markup {
    let ServiceStatus { balance, connections, maxconn, counted, .. } = service;
    let bad = [(service.refused, " refused at the limit"), (counted.unserved, " without a master")];
    html! {
        @if service.listen.is_empty() { "not served here" } @else { "on " code { (service.listeners()) } }
        ", " (balance) ", " (connections) " of " (maxconn) " connections, maximum " (counted.most)
        " concurrent, " (counted.total) " since start"
        @for (count, what) in bad {
            @if count > 0 { ", " strong { (count) (what) } }
        }
        @match service.source {
            ServiceSource::Default | ServiceSource::Other(_) => {}
            ServiceSource::File => { ", defined by this node's file" }
            ServiceSource::Cluster => { ", defined by cluster-wide settings" }
            ServiceSource::FileOverCluster => {
                ", " strong { "this node's file overrides the cluster-wide settings" }
            }
        }
    }
}

fn backend(one: &BackendStatus, status: &Status, acts: bool) -> Markup {
    let counted = &one.counted;
    let address = html! {
        (state(one.state.into(), one.state.as_str())) " "
        span.q {
            (one.address)
            @if one.weight != 100 { ", weight " (one.weight) }
        }
    };
    let check = html! {
        @if one.reason.is_empty() {
            "–"
        } @else {
            span title=(one.cause.map_or("", Cause::label)) { (one.reason) }
        }
        // The cause of an unreachable backend is not from its check.
        @if let Some(ms) = one.check_ms.filter(|_| one.check_code().is_some()) {
            " " span.q { "in " (ms) " ms" }
        }
    };
    let cells = html! {
        (cell_of("state", &address))
        (cell_of("last check", &check))
        (ms("!rtt", one.rtt_ms))
        (cell("!now", one.connections))
        (cell("!most", counted.most))
        (cell("!total", one.total))
        (cell("!in", bytes(counted.bytes_in)))
        (cell("!out", bytes(counted.bytes_out)))
        (cell("!errors", counted.connect_errors + counted.silences))
        (cell("!races", counted.races))
        (cell("!replays", counted.replays))
        (since("last change", one.since_unix_ms, status.taken_unix_ms))
        (cell("!downtime", lasted(counted.downtime_ms)))
        @if acts { (cell_of("act", &act(one))) }
    };
    row(&one.node, &cells)
}

/// Buttons for its node. The settings that they change apply to the whole cluster.
fn act(one: &BackendStatus) -> Markup {
    let drains = one.state == BackendState::Draining;
    let (verb, word) = if drains { ("undrain", "Undrain") } else { ("drain", "Drain") };
    html! {
        form method="post" action="/act" {
            input type="hidden" name="node" value=(one.node);
            button name="verb" value=(verb) { (word) " " span.visually-hidden { (one.node) } }
            " "
            label {
                "weight " span.visually-hidden { "of " (one.node) } " "
                input type="number" name="weight" min="0" max="256" value=(one.weight);
            }
            " "
            button name="verb" value="weigh" { "Set " span.visually-hidden { "weight of " (one.node) } }
        }
    }
}

/// The virtual IPs and their candidates.
pub(super) fn vips(vips: &[VipStatus], now: UnixMs) -> Markup {
    if vips.is_empty() {
        return html! {};
    }
    let columns = ["address", "state", "owner", "since", "!epoch", "interface", "candidates"];
    let rows = html! { @for one in vips { (vip(one, now)) } };
    let caption = "Virtual IPs and their candidates, best first";
    section("vips", "Virtual IPs", &table(caption, &columns, &rows))
}

fn vip(vip: &VipStatus, now: UnixMs) -> Markup {
    let severity = match vip.state {
        VipState::OwnedHere | VipState::Owned => Severity::Good,
        VipState::Unowned | VipState::Unavailable => Severity::Bad,
        VipState::Other(_) => Severity::Doubt,
    };
    let label = |cause: Option<Cause>| cause.map_or("", Cause::label);
    let said = html! {
        (state(severity, vip.state.as_str())) " " span.q title=(label(vip.cause)) { (vip.reason) }
    };
    let candidates = html! {
        ol.flat {
            @for one in vip.candidates.iter().take(MAX_CANDIDATES) {
                li {
                    (state(if one.eligible { Severity::Good } else { Severity::Dim }, one.node.as_str()))
                    " "
                    span.q title=(label(one.cause)) {
                        @if one.eligible { "can" } @else { "can't" }
                        @if !one.reason.is_empty() { ": " (one.reason) }
                    }
                }
            }
            @if vip.candidates.len() > MAX_CANDIDATES {
                li { (quiet(format!("and {} more", vip.candidates.len() - MAX_CANDIDATES))) }
            }
        }
    };
    let cells = html! {
        (cell_of("state", &said))
        (cell("owner", vip.owner.as_ref().map_or("nobody", |owner| owner.as_str())))
        (since("since", vip.since_unix_ms, now))
        (cell("!epoch", vip.epoch))
        (cell("interface", vip.interface.as_deref().unwrap_or("–")))
        (cell_of("candidates", &candidates))
    };
    row(vip.address, &cells)
}
