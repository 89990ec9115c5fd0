//! `agent status`: is it fine, who serves, since when, and why not the others.

use std::process::ExitCode;

use proto::invite::JoinRefusal;

use super::table::{self, Severity};
use super::{CommandSettings, ask, members, out, time};

mod render;
#[cfg(test)]
mod tests;
mod verdict;
mod vips;
mod watch;

/// Show cluster health: which masters serve, since when, and why others do not
///
/// Ends with 28 on a node that was removed from its cluster.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  agent status
  agent status --json | jq '.services[0].backends'
  agent status --watch
  agent status --exit-code > /dev/null || alert")]
pub(crate) struct Args {
    /// Print JSON; its format is stable and versioned by "schema"
    #[arg(long)]
    json: bool,
    /// Exit with 10 if something is wrong, and with 11 if no master serves
    #[arg(long)]
    exit_code: bool,
    /// Keep running and show every change; q quits
    #[arg(long, conflicts_with_all = ["json", "exit_code"])]
    watch: bool,
}

/// Runs the command.
pub(super) async fn run(args: &Args, settings: &CommandSettings) -> anyhow::Result<ExitCode> {
    if args.watch {
        return watch::run(settings).await;
    }
    let status = ask::status(settings).await?;
    let now = crate::lifecycle::wall();
    let verdict = verdict::summarize(&status, now);
    if args.json {
        out::json(&status)?;
    } else {
        out::print(&render::render(&status, &verdict, now, out::columns(), out::colours()))?;
    }
    if status.node.removed {
        return Ok(ExitCode::from(JoinRefusal::Removed.exit_code()));
    }
    Ok(if args.exit_code { ExitCode::from(verdict.code) } else { ExitCode::SUCCESS })
}
