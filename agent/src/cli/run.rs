//! `agent run`: the agent itself.

use std::process::ExitCode;

use super::Settings;

/// Run the agent in the foreground, from its state directory; the service does this
///
/// SIGTERM stops it, SIGHUP reads the configuration again.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {}

/// Runs the command.
pub(crate) async fn run(args: Args, settings: Settings) -> anyhow::Result<ExitCode> {
    anyhow::bail!("run is not part of this build: {args:?} {}", settings.config.port)
}
