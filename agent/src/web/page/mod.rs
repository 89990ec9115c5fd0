//! The page: complete without JavaScript, live with it. One document, nothing from elsewhere.
//!
//! [`main`] is the part that changes. The script fetches it again whenever the event stream says so, and
//! replaces what differs, so that focus and scrolling stay.

mod day;
mod events;
mod html;
mod nodes;
mod services;

use std::sync::OnceLock;

use maud::{DOCTYPE, Markup, PreEscaped, html};
use proto::control::{MemberState, Status};
use proto::event::EventRing;
use proto::time::UnixMs;

use crate::severity::Severity;
use crate::times::at;
use crate::verdict::{HealthLevel, evaluate};

use html::{milliseconds, pairs, shape, tame};

const STYLE: &str = include_str!("style.css");
const SCRIPT: &str = include_str!("live.js");
const SHAPES: &str = include_str!("shapes.svg");

/// Most problems shown; the JSON has all.
const MAX_PROBLEMS: usize = 20;

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

/// The whole page; `page` counts those of the table of members, from 1.
pub(super) fn whole(status: &Status, ring: &EventRing, acts: bool, page: usize) -> Vec<u8> {
    let now = at(status.taken_unix_ms, status.taken_unix_ms);
    let content = html! {
        header {
            p.brand { "agent" }
            dl { (pairs([("cluster", status.cluster.name.as_str()), ("seen from", status.node.name.as_str())])) }
            p #live .dim { "as of " time { (now) } ", reload to update" }
        }
        main #main { (body(status, ring, acts, page)) }
        footer {
            p {
                "Other formats: " a href="/api/v1/status" { "JSON" } ", "
                a href="/api/v1/events?list" { "events" } ", " a href="/metrics" { "metrics" } ", "
                a href="/stats;csv" { "haproxy's CSV" } ". Times are UTC."
            }
        }
    };
    document(&title(status), content, Some(SCRIPT))
}

/// The part of the page that changes.
pub(super) fn main(status: &Status, ring: &EventRing, acts: bool, page: usize) -> Vec<u8> {
    let content = html! { (DOCTYPE) title { (title(status)) } (body(status, ring, acts, page)) };
    tame(content).into_bytes()
}

/// A page with one sentence, shown after an action.
pub(super) fn message_page(sentence: &str) -> Vec<u8> {
    let content = html! {
        main { section { p { (sentence) } p { a href="/" { "Back to the status" } } } }
    };
    document("agent", content, None)
}

/// A whole document. Our own style and script are inserted unchanged: the policy has their hashes.
fn document(title: &str, content: Markup, script: Option<&str>) -> Vec<u8> {
    let title = PreEscaped(tame(html! { (title) }));
    let content = PreEscaped(tame(content));
    let page = html! {
        (DOCTYPE)
        html lang="en" {
            head {
                meta charset="utf-8";
                meta name="viewport" content="width=device-width,initial-scale=1";
                meta name="color-scheme" content="light dark";
                link rel="icon" href="data:,";
                title { (title) }
                style { (PreEscaped(STYLE)) }
            }
            body {
                (PreEscaped(SHAPES))
                (content)
                @if let Some(script) = script { script { (PreEscaped(script)) } }
            }
        }
    };
    format!("{}\n", page.into_string()).into_bytes()
}

fn word(level: HealthLevel) -> &'static str {
    match level {
        HealthLevel::Fine => "ok",
        HealthLevel::Degraded => "degraded",
        HealthLevel::NoMaster => "no master",
    }
}

/// The tab's title: health comes first, since tabs are narrow.
fn title(status: &Status) -> String {
    let level = evaluate(status, status.taken_unix_ms).level;
    format!("{} · {} · agent on {}", word(level), status.cluster.name, status.node.name)
}

fn body(status: &Status, ring: &EventRing, acts: bool, page: usize) -> Markup {
    let now = status.taken_unix_ms;
    html! {
        (verdict(status, now))
        (numbers(status))
        @for service in &status.services { (services::service(service, status, acts)) }
        (services::vips(&status.vips, now))
        (day::day(status, ring))
        div #beside .beside {
            (events::timeline(ring, now))
            div { (nodes::matrix(status)) (nodes::differences(status)) }
        }
        (nodes::members(status, page))
        (nodes::own(status))
    }
}

/// Cluster health as text.
fn verdict(status: &Status, now: UnixMs) -> Markup {
    let verdict = evaluate(status, now);
    let (severity, word) = (Severity::from(verdict.level), word(verdict.level));
    // The verdict starts with its own level; here that is the heading.
    let text = verdict.text.strip_prefix(word).unwrap_or(&verdict.text);
    html! {
        section #verdict class={ "verdict " (severity.as_str()) } aria-label="Verdict" {
            h1 { (shape(severity)) (word) }
            p { (text.trim_start_matches([':', ';', ' '])) }
            @if !status.problems.is_empty() {
                ul {
                    @for problem in status.problems.iter().take(MAX_PROBLEMS) { li { (problem) } }
                    @if status.problems.len() > MAX_PROBLEMS {
                        li { (status.problems.len() - MAX_PROBLEMS) " more problems" }
                    }
                }
            }
            // Read out when it changes, and so without ages, which change all the time.
            p.visually-hidden role="status" { (word) ": " (spoken(status)) }
        }
    }
}

/// The verdict without times.
fn spoken(status: &Status) -> String {
    let all = status.services.first().map_or(&[][..], |service| &service.backends);
    let good = all.iter().filter(|one| one.state.is_good()).count();
    let bad: String = all
        .iter()
        .filter(|one| !one.state.is_good())
        .map(|one| format!("; {} {}", one.node, one.state.as_str()))
        .collect();
    format!("{good} of {} masters serve{bad}", all.len())
}

/// The four most requested numbers.
fn numbers(status: &Status) -> Markup {
    let up = status.members.iter().filter(|one| one.state == MemberState::Up).count() - status.unnamed();
    let backends = status.services.iter().flat_map(|service| &service.backends);
    let slowest = backends.clone().filter(|one| one.state.is_good()).filter_map(|one| one.rtt_ms);
    let slowest = slowest.reduce(f64::max).map_or_else(|| "–".to_owned(), milliseconds);
    let errors: u64 = backends.map(|one| one.counted.connect_errors + one.counted.silences).sum();
    let unserved: u64 = status.services.iter().map(|service| service.counted.unserved).sum();
    let connections: u64 = status.services.iter().map(|service| service.connections).sum();
    let four = [
        ("members up", format!("{up} of {}", status.members.len())),
        ("connections here", connections.to_string()),
        ("slowest master", slowest),
        ("errors since start", (errors + unserved).to_string()),
    ];
    html! { dl #numbers .numbers { (pairs(four)) } }
}
