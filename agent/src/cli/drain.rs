//! `agent drain` and `agent undrain`: a node's apiserver goes on, and gets no new connections.

use std::io::{self, IsTerminal, Write};
use std::process::ExitCode;
use std::time::Duration;

use proto::control::{HeldStatus, Request, Response};
use proto::time::{human, parse_duration};
use tokio::time::Instant;

use super::exit::{self, ExitError};
use super::{CommandSettings, ask, out};

/// Time between two questions: each asks every node.
const ASK: Duration = Duration::from_secs(2);

/// Stop sending new connections to a node's apiserver
///
/// Open connections have a minute to finish and are then closed one by one, as long as another master is
/// healthy. The drain lasts until "agent undrain", even across restarts.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  agent drain                  this node
  agent drain m2 --wait 5m && ssh m2 reboot")]
pub(crate) struct DrainArgs {
    /// The node's name or id [default: this node]
    #[arg(value_name = "NODE")]
    node: Option<String>,
    /// Wait until no node has an open connection to it, at most for TIME
    #[arg(long, value_name = "TIME", num_args = 0..=1, value_parser = parse_duration)]
    wait: Option<Option<Duration>>,
}

/// Send new connections to a node's apiserver again
#[derive(Debug, clap::Args)]
pub(crate) struct UndrainArgs {
    /// The node's name or id [default: this node]
    #[arg(value_name = "NODE")]
    node: Option<String>,
}

/// Runs `agent drain`.
pub(super) async fn drain(args: DrainArgs, settings: &CommandSettings) -> anyhow::Result<ExitCode> {
    let code = ask::run_and_print(settings, &Request::Drain { on: true, node: args.node.clone() }).await?;
    match args.wait {
        Some(limit) => wait(args.node, limit, settings).await,
        None => Ok(code),
    }
}

/// Runs `agent undrain`.
pub(super) async fn undrain(args: UndrainArgs, settings: &CommandSettings) -> anyhow::Result<ExitCode> {
    ask::run_and_print(settings, &Request::Drain { on: false, node: args.node }).await
}

/// Waits until nobody holds anything, with a line that tells how far it is.
async fn wait(
    node: Option<String>,
    limit: Option<Duration>,
    settings: &CommandSettings,
) -> anyhow::Result<ExitCode> {
    let begun = Instant::now();
    let mut progress = Progress::default();
    loop {
        let held = match ask::ask(settings, &Request::Held { node: node.clone() }).await? {
            Response::Held(held) => held,
            other => return Err(ask::unexpected(&other)),
        };
        if held.total() == 0 && held.silent.is_empty() {
            progress.end();
            out::line(&done(&held, begun.elapsed()))?;
            return Ok(ExitCode::SUCCESS);
        }
        progress.show(&left(&held));
        let next = Instant::now() + ASK;
        if let Some(limit) = limit.filter(|limit| next > begun + *limit) {
            tokio::time::sleep_until(begun + limit).await;
            progress.end();
            let message =
                format!("not finished after {}: {}; the node stays drained", human(limit), left(&held));
            return Err(ExitError::error(exit::NOT_FINISHED, message));
        }
        tokio::time::sleep_until(next).await;
    }
}

fn done(held: &HeldStatus, took: Duration) -> String {
    let took = human(Duration::from_secs(took.as_secs())).replace("0ms", "0s");
    let mut text = format!("no open connections to {} after {took}", held.node);
    if !held.away.is_empty() {
        text.push_str(&format!("; not asked because they are down: {}", names(&held.away)));
    }
    text
}

/// `m2: 12 connections (w1 7, w2 5); not answered: w3`.
fn left(held: &HeldStatus) -> String {
    let total = held.total();
    let s = if total == 1 { "" } else { "s" };
    let mut most: Vec<&(proto::node::Name, u64)> = held.by.iter().collect();
    most.sort_by_key(|(_, count)| std::cmp::Reverse(*count));
    let some: Vec<String> = most.iter().take(4).map(|(name, count)| format!("{name} {count}")).collect();
    let more = if most.len() > some.len() { ", …" } else { "" };
    let by = if some.is_empty() { String::new() } else { format!(" ({}{more})", some.join(", ")) };
    let mut text = format!("{}: {total} connection{s}{by}", held.node);
    if !held.silent.is_empty() {
        text.push_str(&format!("; no answer from {}", names(&held.silent)));
    }
    text
}

fn names(all: &[proto::node::Name]) -> String {
    let some: Vec<&str> = all.iter().take(4).map(|name| name.as_str()).collect();
    let more = if all.len() > some.len() { ", …" } else { "" };
    format!("{}{more}", some.join(", "))
}

/// One line that is written over on a terminal, and a line for each change elsewhere.
#[derive(Default)]
struct Progress {
    last: String,
}

impl Progress {
    fn show(&mut self, text: &str) {
        if self.last == text {
            return;
        }
        self.last = text.to_owned();
        let mut stderr = io::stderr().lock();
        // Whoever closed it does not want to know.
        let _ = if stderr.is_terminal() {
            write!(stderr, "\r{text}\x1b[K").and_then(|()| stderr.flush())
        } else {
            writeln!(stderr, "{text}")
        };
    }

    /// What follows begins on a line of its own.
    fn end(&mut self) {
        if !self.last.is_empty() && io::stderr().is_terminal() {
            let _ = write!(io::stderr().lock(), "\r\x1b[K");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_left_is_told_with_who_holds_it() {
        let name = |text: &str| text.parse().unwrap();
        let mut held = HeldStatus {
            node: name("m2"),
            by: vec![(name("w1"), 5), (name("w2"), 7)],
            silent: vec![name("w3")],
            away: vec![name("w4")],
        };
        assert_eq!(left(&held), "m2: 12 connections (w2 7, w1 5); no answer from w3");
        held.by = vec![(name("w1"), 1)];
        held.silent.clear();
        assert_eq!(left(&held), "m2: 1 connection (w1 1)");
        let text = done(&held, Duration::from_millis(400));
        assert_eq!(text, "no open connections to m2 after 0s; not asked because they are down: w4");
    }
}
