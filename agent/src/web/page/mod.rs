//! The page: useful as it comes, and live where JavaScript runs. One document, nothing from elsewhere.
//!
//! [`main`] is what changes. The script asks for it again whenever the stream of events says so, and puts in
//! what differs, so that focus and scrolling stay.

mod events;
mod html;
mod nodes;
mod services;

use std::sync::OnceLock;

use proto::control::{MemberState, Status};
use proto::event::Ring;
use proto::time::UnixMs;

use crate::times::at;
use crate::tone::Tone;
use crate::verdict::{Level, judge};

use html::Html;

const STYLE: &str = include_str!("style.css");
const SCRIPT: &str = include_str!("live.js");
const SHAPES: &str = include_str!("shapes.svg");

/// The content security policy: this style and this script, by their hashes, this node, and nothing else.
pub(super) fn policy() -> &'static str {
    static POLICY: OnceLock<String> = OnceLock::new();
    POLICY.get_or_init(|| {
        let hash = |text: &str| {
            let digest = ring::digest::digest(&ring::digest::SHA256, text.as_bytes());
            data_encoding::BASE64.encode(digest.as_ref())
        };
        format!(
            "default-src 'none'; script-src 'sha256-{}'; style-src 'sha256-{}'; connect-src 'self'; img-src data:; \
             form-action 'self'; base-uri 'none'; frame-ancestors 'none'",
            hash(SCRIPT),
            hash(STYLE)
        )
    })
}

/// The whole page.
pub(super) fn whole(status: &Status, ring: &Ring, acts: bool) -> Vec<u8> {
    let mut html = Html(String::with_capacity(64 * 1024));
    head(&mut html, &title(status));
    html.raw("<header><p class=\"brand\">agent</p><dl><div><dt>cluster</dt><dd>");
    html.text(&status.cluster.name).raw("</dd></div><div><dt>seen from</dt><dd>").show(&status.node.name);
    html.raw("</dd></div></dl><p id=\"live\" class=\"dim\">as of <time>");
    html.text(&at(status.taken_unix_ms, status.taken_unix_ms)).raw("</time>, reload for news</p></header>");
    html.raw("<main id=\"main\">");
    body(&mut html, status, ring, acts);
    html.raw("</main><footer><p>The same in other forms: <a href=\"/api/v1/status\">JSON</a>, ");
    html.raw("<a href=\"/api/v1/events?list\">events</a>, <a href=\"/metrics\">metrics</a>, ");
    html.raw("<a href=\"/stats;csv\">haproxy's CSV</a>. Times are UTC.</p></footer><script>");
    html.raw(SCRIPT).raw("</script></body></html>\n");
    html.0.into_bytes()
}

/// What of the page changes.
pub(super) fn main(status: &Status, ring: &Ring, acts: bool) -> Vec<u8> {
    let mut html = Html(String::with_capacity(32 * 1024));
    html.raw("<!doctype html><title>").text(&title(status)).raw("</title>");
    body(&mut html, status, ring, acts);
    html.0.into_bytes()
}

/// A page that says one sentence, after something was done.
pub(super) fn said(sentence: &str) -> Vec<u8> {
    let mut html = Html(String::new());
    head(&mut html, "agent");
    html.raw("<main><section><p>").text(sentence).raw("</p><p><a href=\"/\">Back to the status</a></p>");
    html.raw("</section></main></body></html>\n");
    html.0.into_bytes()
}

fn head(html: &mut Html, title: &str) {
    html.raw("<!doctype html><html lang=\"en\"><head><meta charset=\"utf-8\">");
    html.raw("<meta name=\"viewport\" content=\"width=device-width,initial-scale=1\">");
    html.raw("<meta name=\"color-scheme\" content=\"light dark\"><link rel=\"icon\" href=\"data:,\"><title>");
    html.text(title).raw("</title><style>").raw(STYLE).raw("</style></head><body>").raw(SHAPES);
}

fn word(level: Level) -> &'static str {
    match level {
        Level::Fine => "ok",
        Level::Degraded => "degraded",
        Level::NoMaster => "no master",
    }
}

/// What a tab shows: how it is comes first, since tabs are narrow.
fn title(status: &Status) -> String {
    let level = judge(status, status.taken_unix_ms).level;
    format!("{} · {} · agent on {}", word(level), status.cluster.name, status.node.name)
}

fn body(html: &mut Html, status: &Status, ring: &Ring, acts: bool) {
    let now = status.taken_unix_ms;
    verdict(html, status, now);
    for service in &status.services {
        services::service(html, service, status, acts);
    }
    services::vips(html, &status.vips, now);
    html.raw("<div id=\"beside\" class=\"beside\">");
    events::timeline(html, ring, now);
    html.raw("<div>");
    nodes::matrix(html, status);
    nodes::differences(html, status);
    html.raw("</div></div>");
    nodes::members(html, status);
    nodes::own(html, status);
}

/// How it is, in words, and the four numbers that people ask for.
fn verdict(html: &mut Html, status: &Status, now: UnixMs) {
    let verdict = judge(status, now);
    let tone = Tone::from(verdict.level);
    html.raw("<section id=\"verdict\" class=\"verdict ")
        .raw(tone.word())
        .raw("\" aria-label=\"Verdict\"><h1>");
    // The judgement begins with its own word; here that stands as a heading.
    let text = verdict.text.strip_prefix(word(verdict.level)).unwrap_or(&verdict.text);
    let text = text.trim_start_matches([':', ';', ' ']);
    html.shape(tone).raw(word(verdict.level)).raw("</h1><p>").text(text).raw("</p>");
    if !status.problems.is_empty() {
        html.raw("<ul>");
        for problem in &status.problems {
            html.raw("<li>").show(problem).raw("</li>");
        }
        html.raw("</ul>");
    }
    // Read out when it changes, and so without ages, which change all the time.
    html.raw("<p class=\"ear\" role=\"status\">").raw(word(verdict.level)).raw(": ");
    html.text(&spoken(status)).raw("</p></section>");
    numbers(html, status);
}

/// The verdict without times.
fn spoken(status: &Status) -> String {
    let all = status.services.first().map_or(&[][..], |service| &service.backends);
    let good = all.iter().filter(|one| one.state.is_good()).count();
    let bad: String = all
        .iter()
        .filter(|one| !one.state.is_good())
        .map(|one| format!("; {} {}", one.node, one.state.word()))
        .collect();
    format!("{good} of {} masters serve{bad}", all.len())
}

fn numbers(html: &mut Html, status: &Status) {
    let up = status.members.iter().filter(|one| one.state == MemberState::Up).count();
    let backends = status.services.iter().flat_map(|service| &service.backends);
    let slowest = backends.clone().filter(|one| one.state.is_good()).filter_map(|one| one.rtt_ms);
    let slowest = slowest.reduce(f64::max).map_or_else(|| "–".to_owned(), html::milliseconds);
    let errors: u64 = backends.map(|one| one.counted.connect_errors + one.counted.silences).sum();
    let unserved: u64 = status.services.iter().map(|service| service.counted.unserved).sum();
    let connections: u64 = status.services.iter().map(|service| service.connections).sum();
    html.raw("<dl id=\"numbers\" class=\"numbers\">");
    for (name, value) in [
        ("members up", format!("{up} of {}", status.members.len())),
        ("connections here", connections.to_string()),
        ("slowest master", slowest),
        ("errors since start", (errors + unserved).to_string()),
    ] {
        html.raw("<div><dt>").raw(name).raw("</dt><dd>").text(&value).raw("</dd></div>");
    }
    html.raw("</dl>");
}
