//! The timeline.

use proto::event::{Event, Ring};
use proto::time::UnixMs;

use super::html::Html;
use crate::times::{age, at};

/// Events that are shown: what fits two screens. The API has them all.
const SHOWN: usize = 40;

/// What has happened, newest first.
pub(super) fn timeline(html: &mut Html, ring: &Ring, now: UnixMs) {
    // It scrolls, so the keyboard has to reach it.
    html.raw("<section id=\"events\" aria-labelledby=\"h-events\" tabindex=\"0\">");
    html.raw("<h2 id=\"h-events\">What happened</h2>");
    let mut latest = ring.after(ring.newest().saturating_sub(SHOWN as u64)).peekable();
    if latest.peek().is_none() {
        html.raw("<p class=\"about\">Nothing yet.</p></section>");
        return;
    }
    let latest: Vec<_> = latest.collect();
    html.raw("<ol class=\"events\" reversed>");
    for event in latest.iter().rev() {
        one(html, event, now);
    }
    html.raw("</ol></section>");
}

fn one(html: &mut Html, event: &Event, now: UnixMs) {
    html.raw("<li><span class=\"when\"><time>").text(&at(event.time_unix_ms, now));
    html.raw("</time> <span class=\"q\">").text(&age(event.time_unix_ms, now)).raw("</span></span> ");
    html.state(event.level.into(), event.level.word());
    html.raw(" <span>").text(&event.sentence()).raw("</span></li>");
}
