//! The last day as a picture: a strip for each backend and each virtual IP, and the same as text for screen
//! readers.
//!
//! Each state has its own height and colour, so that colour alone is never needed. Positions are percentages
//! in whole minutes: they stretch with the window and change once a minute.

use std::ops::Range;
use std::time::Duration;

use maud::{Markup, html};
use proto::backends::BackendState;
use proto::control::{BackendStatus, Status, in_order};
use proto::event::{EventKind, EventRing};
use proto::time::{UnixMs, human};
use proto::timeline::{Followed, Span, spans};

use super::html::{section, state};
use super::nodes::more;
use crate::severity::Severity;
use crate::times::at;

const MINUTE: u64 = 60_000;
const DAY: u64 = 24 * 60 * MINUTE;

/// Most changes shown per strip, the latest: a telephone has few more pixels.
const MAX_DRAWN: usize = 200;
const MAX_SAID: usize = 20;

/// Least width of a part, in minutes, so that a short outage is visible on a telephone too.
const THIN: u64 = 6;

/// Least width of a part that shows its text, in minutes.
const WIDE: u64 = 150;

/// Most strips of backends: a screen of them.
const MAX_STRIPS: usize = 24;

/// How the strips of masters begin.
const MASTERS: &str = "kube-api/";

/// All strips.
pub(super) fn day(status: &Status, ring: &EventRing) -> Markup {
    let end = UnixMs(status.taken_unix_ms.0.div_ceil(MINUTE) * MINUTE);
    let within = UnixMs(end.0.saturating_sub(DAY))..end;
    let all = status.services.iter().map(|service| service.backends.len()).sum();
    let mut backends: Vec<(String, &BackendStatus)> = Vec::new();
    for service in &status.services {
        backends.extend(service.backends.iter().map(|one| (format!("{}/{}", service.name, one.node), one)));
    }
    let rank = |(subject, one): &(String, &BackendStatus)| {
        u8::from(!subject.starts_with(MASTERS)) * 2 + u8::from(one.state.is_good())
    };
    let mut backends: Vec<&(String, &BackendStatus)> = match all > MAX_STRIPS {
        true => in_order(backends.iter(), |one| (rank(one), one.0.as_str())),
        false => backends.iter().collect(),
    };
    // Those of masters first, and then what is wrong.
    backends.truncate(MAX_STRIPS);
    let backends = backends.iter().map(|(subject, one)| {
        let (state, since) = (one.state.as_str(), one.since_unix_ms);
        strip(ring, EventKind::Backend, subject, (state, since), &within, reachable)
    });
    let vips = status.vips.iter().map(|vip| {
        let owner = vip.owner.as_ref().map_or(NOBODY, |owner| owner.as_str());
        strip(ring, EventKind::VipOwner, &vip.address.to_string(), (owner, vip.since_unix_ms), &within, owned)
    });
    let strips: Vec<Markup> = backends.chain(vips).collect();
    if strips.is_empty() {
        return html! {};
    }
    let content = html! {
        p.about {
            "As this node saw it: " (state(Severity::Good, "serves or is owned")) " "
            (state(Severity::Doubt, "in doubt or draining")) " " (state(Severity::Bad, "down or nobody's")) " "
            (state(Severity::Dim, "not known"))
        }
        ul.day { @for strip in strips { li { (strip) } } }
        (more(all, MAX_STRIPS, "backends"))
        p.axis aria-hidden="true" {
            @for quarter in (0..=4).rev() {
                span { (hour(UnixMs(end.0.saturating_sub(quarter * DAY / 4)))) }
            }
        }
    };
    section("day", "The last 24 hours", &content)
}

/// Owner in an event when a virtual IP has none.
const NOBODY: &str = "nobody";

fn reachable(state: &str) -> Severity {
    BackendState::ALL
        .iter()
        .find(|known| known.as_str() == state)
        .map_or(Severity::Doubt, |state| Severity::from(*state))
}

fn owned(owner: &str) -> Severity {
    if owner == NOBODY { Severity::Bad } else { Severity::Good }
}

fn strip(
    ring: &EventRing,
    kind: EventKind,
    subject: &str,
    (state, since): (&str, UnixMs),
    within: &Range<UnixMs>,
    severity: fn(&str) -> Severity,
) -> Markup {
    let followed = Followed { kind, subject, state, since };
    let spans = spans(ring.all().map(|event| &**event), followed, within.clone());
    let drawn = spans.get(spans.len().saturating_sub(MAX_DRAWN)..).unwrap_or_default();
    // Short spans are drawn last, over long ones.
    let mut order: Vec<&Span<'_>> = drawn.iter().collect();
    order.sort_by_key(|span| std::cmp::Reverse(span.ms()));
    let named = kind == EventKind::VipOwner;
    html! {
        span.name { (subject) }
        svg.strip aria-hidden="true" {
            @for span in order {
                @if let Some(state) = span.state {
                    (part(span, state, severity(state), named, within))
                }
            }
        }
        ol.visually-hidden {
            @let said = spans.get(spans.len().saturating_sub(MAX_SAID)..).unwrap_or_default();
            @for span in said.iter().rev() { li { (words(span, within.end)) } }
            @if said.len() < spans.len() { li { (spans.len() - said.len()) " changes before" } }
        }
    }
}

/// One part of a strip.
fn part(span: &Span<'_>, state: &str, severity: Severity, named: bool, within: &Range<UnixMs>) -> Markup {
    let minute = |at: UnixMs| at.0.saturating_sub(within.start.0) / MINUTE;
    let whole = DAY / MINUTE;
    let width = minute(span.until).saturating_sub(minute(span.from)).max(THIN);
    let begin = minute(span.from).min(whole - THIN);
    let percent = |minutes: u64| format!("{}.{:02}%", minutes * 100 / whole, minutes * 10_000 / whole % 100);
    let top = match severity {
        Severity::Good => "0",
        Severity::Doubt => "35%",
        Severity::Bad | Severity::Plain | Severity::Dim => "70%",
    };
    html! {
        svg x=(percent(begin)) width=(percent(width)) {
            rect class=(severity.as_str()) y=(top) width="100%" height="100%" {}
            // Two owners in a row have the same colour.
            @if named { rect.edge width="2" height="100%" {} }
            // Lower parts have no room for text.
            @if named && severity == Severity::Good && width >= WIDE { text x="5" y="16" { (state) } }
        }
    }
}

/// As `down from 14:03:11Z to 14:05:00Z, for 2m`.
fn words(span: &Span<'_>, now: UnixMs) -> String {
    let state = span.state.unwrap_or("not known");
    let lasted = human(Duration::from_secs(span.ms() / 1000)).replace("0ms", "0s");
    match span.until == now {
        true => format!("{state} since {}, for {lasted}", at(span.from, now)),
        false => format!("{state} from {} to {}, for {lasted}", at(span.from, now), at(span.until, now)),
    }
}

/// As `14:03`.
fn hour(at: UnixMs) -> String {
    let minutes = at.0 / MINUTE;
    format!("{:02}:{:02}", minutes / 60 % 24, minutes % 60)
}

#[cfg(test)]
mod tests {
    use proto::event::Event;

    use super::*;

    /// 20 days after 1970, so that the day before is still after 1970.
    const END: UnixMs = UnixMs(20 * DAY);

    fn ago(hours: u64) -> UnixMs {
        UnixMs(END.0 - hours * 60 * MINUTE)
    }

    #[test]
    fn a_short_outage_is_drawn_over_longer_spans_and_listed() {
        let mut ring = EventRing::default();
        let down = Event::new(EventKind::Backend, ago(6), "kube-api/m1", "down").since("ready", ago(40));
        ring.push("w1", down);
        let back = UnixMs(ago(6).0 + MINUTE);
        ring.push("w1", Event::new(EventKind::Backend, back, "kube-api/m1", "ready").since("down", ago(6)));
        let within = ago(24)..END;
        let made = strip(&ring, EventKind::Backend, "kube-api/m1", ("ready", back), &within, reachable);
        let made = made.into_string();
        let parts: Vec<&str> = made.split("<svg x=").skip(1).collect();
        assert_eq!(parts.len(), 3, "{made}");
        assert!(parts[0].starts_with("\"0.00%\" width=\"75.00%\"><rect class=\"good\" y=\"0\""), "{made}");
        assert!(parts[2].starts_with("\"75.00%\" width=\"0.41%\"><rect class=\"bad\" y=\"70%\""), "{made}");
        let said: Vec<&str> = made.split("<li>").skip(1).map(|one| one.split('<').next().unwrap()).collect();
        let expected = [
            "ready since 18:01:00Z, for 5h",
            "down from 18:00:00Z to 18:01:00Z, for 60s",
            "ready from 1970-01-20 00:00Z to 18:00:00Z, for 18h",
        ];
        assert_eq!(said, expected, "{made}");
    }

    #[test]
    fn owners_are_named_and_a_flapping_owner_stays_bounded() {
        let mut ring = EventRing::default();
        for i in 0..1000 {
            let (from, to) = if i % 2 == 0 { ("m1", "m2") } else { ("m2", NOBODY) };
            let at = UnixMs(ago(12).0 + i * 1000);
            ring.push(
                "w1",
                Event::new(EventKind::VipOwner, at, "10.0.0.9", to).since(from, UnixMs(at.0 - 1000)),
            );
        }
        let within = ago(24)..END;
        let made =
            strip(&ring, EventKind::VipOwner, "10.0.0.9", ("m1", ago(11)), &within, owned).into_string();
        assert!(made.contains("<text x=\"5\" y=\"16\">m1</text>"), "{made}");
        assert_eq!(made.matches("<rect class=\"edge\"").count(), MAX_DRAWN);
        assert!(made.contains("changes before") && made.len() < 40_000, "{}", made.len());
    }
}
