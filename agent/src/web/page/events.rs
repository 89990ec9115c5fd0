//! The timeline.

use maud::{Markup, html};
use proto::event::{Event, EventRing};
use proto::time::UnixMs;

use super::html::{quiet, state};
use crate::times::{age, at};

/// Events shown: two screens. The API has all of them.
const SHOWN: usize = 40;

/// Recent events, newest first.
pub(super) fn timeline(ring: &EventRing, now: UnixMs) -> Markup {
    let latest: Vec<_> = ring.after(ring.newest().saturating_sub(SHOWN as u64)).collect();
    html! {
        // It scrolls, so it has to be reachable by keyboard.
        section #events aria-labelledby="h-events" tabindex="0" {
            h2 #h-events { "Events" }
            @if latest.is_empty() {
                p.about { "Nothing yet." }
            } @else {
                ol.events reversed {
                    @for event in latest.iter().rev() { (one(event, now)) }
                }
            }
        }
    }
}

fn one(event: &Event, now: UnixMs) -> Markup {
    html! {
        li {
            span.when {
                time { (at(event.time_unix_ms, now)) }
                " " (quiet(age(event.time_unix_ms, now)))
            }
            " " (state(event.level.into(), event.level.name()))
            " " span { (event.sentence()) }
        }
    }
}
