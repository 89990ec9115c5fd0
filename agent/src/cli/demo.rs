//! `agent demo`: a whole cluster on one machine, to look at and to break.

use std::process::ExitCode;

use super::Settings;

/// Show it at work: three masters and two workers on this machine, to break as you like
///
/// Needs no root and no Kubernetes. Ctrl-C ends it and leaves nothing behind.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {}

/// Runs the command.
pub(crate) async fn run(args: Args, settings: Settings) -> anyhow::Result<ExitCode> {
    anyhow::bail!("demo is not part of this build: {args:?} {}", settings.config.port)
}
