//! `agent uninstall`: the way back.

use std::process::ExitCode;

use super::{CommandSettings, install, out};

/// Stop and remove the service and the installed binary
///
/// The node remains a member: run "agent leave" first, or "agent remove NODE" on a master. Its state is kept
/// unless --purge is given. The configuration in /etc/agent is kept.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Also delete this node's identity and state
    #[arg(long)]
    purge: bool,
}

/// Runs the command.
pub(super) fn run(args: &Args, settings: &CommandSettings) -> anyhow::Result<ExitCode> {
    install::uninstall(settings, args.purge, &mut |line| drop(out::line(line)))?;
    Ok(ExitCode::SUCCESS)
}
