//! `agent open`: let nodes in without an invite, for a while.

use std::process::ExitCode;
use std::time::Duration;

use proto::control::Request;
use proto::time::{BadDuration, human, parse_duration};

use super::{CommandSettings, ask};

/// Longest that a cluster may stand open: a day is a rollout, more is a door forgotten.
const MAX_OPEN: Duration = Duration::from_secs(24 * 3600);

/// Admit workers without an invite, for a limited time
///
/// Prints the command to run on them, with this node's key. Anyone who reaches its port and knows the key is
/// admitted as a worker without approval. Meant for automated rollouts on a trusted network.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  agent open --for 15m
  agent open --for 0       closes the cluster again")]
pub(crate) struct Args {
    /// How long, such as 90s, 15m or 2h; 0 closes the cluster
    #[arg(long = "for", value_name = "TIME", value_parser = how_long)]
    time: Duration,
}

/// Why a time to stand open is none.
#[derive(Debug, PartialEq, thiserror::Error)]
enum BadTime {
    #[error(transparent)]
    Duration(#[from] BadDuration),
    #[error("a cluster may be open for at most {}", human(MAX_OPEN))]
    TooLong,
}

fn how_long(text: &str) -> Result<Duration, BadTime> {
    if text == "0" {
        return Ok(Duration::ZERO);
    }
    let time = parse_duration(text)?;
    if time > MAX_OPEN {
        return Err(BadTime::TooLong);
    }
    // The request counts seconds, and 0 closes: half a second must not.
    Ok(if time.is_zero() { time } else { time.max(Duration::from_secs(1)) })
}

/// Runs the command.
pub(super) async fn run(args: &Args, settings: &CommandSettings) -> anyhow::Result<ExitCode> {
    ask::run_and_print(settings, &Request::Open { seconds: args.time.as_secs() }).await
}
