//! `agent events`: what has changed, here or in the whole cluster.

use std::collections::BTreeMap;
use std::process::ExitCode;
use std::time::Duration;

use proto::control::{Request, Response};
use proto::event::{Event, EventQuery};
use proto::time::UnixMs;

use super::table::{Severity, wrap};
use super::{CommandSettings, ask, exit, out, time};
use crate::lifecycle::wall;

/// Events that are shown when no time is given.
const LATEST: u32 = 50;

/// The same when what follows is waited for.
const LATEST_OF_FOLLOWED: u32 = 10;

/// Between two questions while following: soon enough for a person. Each member costs a handshake, so the
/// cluster is asked less often.
const AGAIN: Duration = Duration::from_millis(500);
const AGAIN_ALL: Duration = Duration::from_secs(2);

/// List events: changes of backends, members, checks, settings and agents
#[derive(Debug, clap::Args)]
#[command(after_help = "Times are UTC. Each node keeps about a thousand events, even across restarts.")]
pub(crate) struct Args {
    /// Keep running and print new events
    #[arg(short, long)]
    follow: bool,
    /// Print JSON, one line per event
    #[arg(long)]
    json: bool,
    /// Start at this time: 1h, 14:03, "2026-03-01 14:03" [default: the latest events]
    #[arg(long, value_name = "TIME", value_parser = since)]
    since: Option<Since>,
    /// Include the events of all members
    #[arg(long)]
    cluster: bool,
}

/// A time, or how long ago.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Since {
    Ago(Duration),
    At(UnixMs),
    /// Of today or, where that is still to come, of yesterday.
    TimeOfDay(Duration),
}

/// A text that is no time.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[error("\"{0}\" is not a time; use 1h, 14:03 or \"2026-03-01 14:03\", in UTC")]
struct BadSince(String);

fn since(text: &str) -> Result<Since, BadSince> {
    if let Ok(ago) = proto::time::parse_duration(text) {
        return Ok(Since::Ago(ago));
    }
    let wrong = || BadSince(text.to_owned());
    let (date, clock) = match text.split_once([' ', 'T']) {
        Some((date, clock)) => (Some(date), Some(clock)),
        None if text.contains(':') => (None, Some(text)),
        None => (Some(text), None),
    };
    let clock = clock.map_or(Some(Duration::ZERO), time_of_day).ok_or_else(wrong)?;
    match date {
        None => Ok(Since::TimeOfDay(clock)),
        Some(date) => {
            let day = day(date).ok_or_else(wrong)?;
            Ok(Since::At(UnixMs(day * 86_400_000).after(clock)))
        }
    }
}

/// `14:03`, `14:03:11`, `14:03:11Z`.
fn time_of_day(text: &str) -> Option<Duration> {
    let mut parts = text.strip_suffix('Z').unwrap_or(text).split(':');
    let mut next = |most: u64| {
        let part = parts.next()?;
        part.parse::<u64>().ok().filter(|number| *number < most && part.len() == 2)
    };
    let (hour, minute) = (next(24)?, next(60)?);
    let second = next(60).unwrap_or(0);
    let whole = parts.next().is_none() && matches!(text.trim_end_matches('Z').len(), 5 | 8);
    whole.then(|| Duration::from_secs(hour * 3600 + minute * 60 + second))
}

/// Days from 1970-01-01 to `2026-03-01`.
fn day(text: &str) -> Option<u64> {
    let mut parts = text.splitn(3, '-').map(|part| part.parse::<u64>().ok());
    let (year, month, day) = (parts.next()??, parts.next()??, parts.next()??);
    if !(1970..=9999).contains(&year) || !(1..=12).contains(&month) || !(1..=31).contains(&day) {
        return None;
    }
    // Years are counted from March, so that the leap day comes last.
    let (y, m) = if month > 2 { (year, month - 3) } else { (year - 1, month + 9) };
    let days = 365 * y + y / 4 - y / 100 + y / 400 + (153 * m + 2) / 5 + day - 1;
    days.checked_sub(719_468)
}

impl Since {
    fn time(self, now: UnixMs) -> UnixMs {
        let ago = |wait: Duration| UnixMs(now.0.saturating_sub(wait.as_millis() as u64));
        match self {
            Since::At(at) => at,
            Since::Ago(wait) => ago(wait),
            Since::TimeOfDay(clock) => {
                let today = UnixMs(now.0 / 86_400_000 * 86_400_000).after(clock);
                if today <= now { today } else { UnixMs(today.0.saturating_sub(86_400_000)) }
            }
        }
    }
}

/// Runs the command.
pub(super) async fn run(args: &Args, settings: &CommandSettings) -> anyhow::Result<ExitCode> {
    let now = wall();
    let most = match (args.since, args.follow) {
        (Some(_), _) => u32::MAX,
        (None, true) => LATEST_OF_FOLLOWED,
        (None, false) => LATEST,
    };
    let since = args.since.map_or(UnixMs(0), |since| since.time(now));
    let mut ask = EventQuery { since, after: BTreeMap::new(), most, cluster: args.cluster };
    let (events, mut missed) = query(&ask, settings).await?;
    // Of the whole cluster as many as of one node, too.
    let skip = if args.since.is_some() { 0 } else { events.len().saturating_sub(most as usize) };
    show(&events[skip..], args)?;
    warn_missed(&missed);
    if events.is_empty() && !args.follow && !args.json {
        out::warn("no events in this time");
    }
    if !args.follow {
        return Ok(if missed.is_empty() { ExitCode::SUCCESS } else { ExitCode::from(exit::DEGRADED) });
    }
    let mut new = events;
    ask.most = u32::MAX;
    loop {
        for event in &new {
            // Of a node whose state was lost the numbers begin anew.
            ask.after.insert(event.node.clone(), event.seq);
        }
        if ask.after.is_empty() {
            ask.since = now;
        }
        tokio::time::sleep(if args.cluster { AGAIN_ALL } else { AGAIN }).await;
        new = match query(&ask, settings).await {
            Ok((events, silent)) => {
                if silent != missed {
                    warn_missed(&silent);
                    missed = silent;
                }
                events
            }
            // The agent starts anew: what happens meanwhile is told when it is back.
            Err(_) => Vec::new(),
        };
        show(&new, args)?;
    }
}

async fn query(ask: &EventQuery, settings: &CommandSettings) -> anyhow::Result<(Vec<Event>, Vec<String>)> {
    match ask::ask(settings, &Request::Events(ask.clone())).await? {
        Response::Events { events, silent } => Ok((events, silent)),
        other => Err(ask::unexpected(&other)),
    }
}

fn warn_missed(silent: &[String]) {
    if !silent.is_empty() {
        out::warn(&format!("no answer from {}; their events are missing", silent.join(", ")));
    }
}

fn show(events: &[Event], args: &Args) -> anyhow::Result<()> {
    let mut text = String::new();
    let (now, columns, colours) = (wall(), out::columns(), out::colours());
    for event in events {
        if args.json {
            text.push_str(&serde_json::to_string(event)?);
            text.push('\n');
        } else {
            lines(&mut text, event, now, args.cluster, columns, colours);
        }
    }
    out::print(&text)?;
    Ok(())
}

/// One event: the time, the node where several are shown, and the sentence below itself.
fn lines(text: &mut String, event: &Event, now: UnixMs, node: bool, columns: usize, colours: bool) {
    let mut head = format!("{}  ", time::at(event.time_unix_ms, now));
    if node {
        head.push_str(&format!("{:<8} ", super::table::sanitize(&event.node)));
    }
    let indent = head.chars().count();
    let severity = Severity::from(event.level);
    for (i, line) in wrap(&event.sentence(), columns.saturating_sub(indent)).iter().enumerate() {
        let head = if i == 0 { head.as_str() } else { &" ".repeat(indent) };
        text.push_str(&format!("{}{}\n", Severity::Dim.paint(head, colours), severity.paint(line, colours)));
    }
}

#[cfg(test)]
mod tests {
    use proto::event::EventKind;

    use super::*;

    #[test]
    fn times_are_read_as_people_write_them() {
        let now = UnixMs(1_772_373_791_000); // 2026-03-01 14:03:11Z
        for (text, expected) in [
            ("1h", 1_772_370_191_000),
            ("14:03", 1_772_373_780_000),
            ("14:03:11Z", 1_772_373_791_000),
            ("15:00", 1_772_290_800_000),
            ("2026-03-01", 1_772_323_200_000),
            ("2026-03-01 14:03", 1_772_373_780_000),
            ("2026-03-01T14:03:11Z", 1_772_373_791_000),
            ("1970-01-01", 0),
            ("2024-02-29 00:00", 1_709_164_800_000),
        ] {
            assert_eq!(since(text).map(|since| since.time(now)), Ok(UnixMs(expected)), "{text}");
        }
        for text in [
            "",
            "now",
            "25:00",
            "14:60",
            "1:2",
            "14:03:11:00",
            "2026-13-01",
            "2026-03",
            "1969-12-31",
            "14:0x",
        ] {
            assert!(since(text).is_err(), "{text}");
        }
    }

    #[test]
    fn lines_fit_80_columns_and_hang_below_their_sentence() {
        let mut event = Event::new(EventKind::Backend, UnixMs(50_591_000), "kube-api/m1", "down");
        event.node = "w1".to_owned();
        let event = event.since("ready", UnixMs(39_791_000)).reason("no answer to pulses, ".repeat(5));
        let mut text = String::new();
        lines(&mut text, &event, UnixMs(50_600_000), true, 80, false);
        assert!(
            text.starts_with("14:03:11Z  w1       backend kube-api/m1: ready -> down after 3h: no"),
            "{text}"
        );
        assert!(text.lines().all(|line| line.chars().count() <= 80), "{text}");
        assert!(text.lines().skip(1).all(|line| line.starts_with(&" ".repeat(20))), "{text}");
    }
}
