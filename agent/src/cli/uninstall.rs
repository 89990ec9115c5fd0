//! `agent uninstall`: the way back.

use std::process::ExitCode;

use super::{Settings, install, out};

/// Stop and remove the service and the installed binary; the state stays unless --purge is given
///
/// The node stays a member of its cluster: "agent leave" before, or "agent remove NODE" elsewhere, ends that.
/// The configuration in /etc/agent is left alone.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Also delete this node's identity and state
    #[arg(long)]
    purge: bool,
}

/// Runs the command.
pub(super) fn run(args: &Args, settings: &Settings) -> anyhow::Result<ExitCode> {
    install::uninstall(settings, args.purge, &mut |line| drop(out::line(line)))?;
    Ok(ExitCode::SUCCESS)
}
