//! `agent remove`: put a node out.

use std::process::ExitCode;

use proto::control::Request;

use super::{CommandSettings, ask};

/// Remove a node from the cluster for good and change the gossip key
///
/// Its identity is never admitted again. To bring the machine back, run "agent leave --force" there, then
/// "agent join".
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:\n  agent remove m3")]
pub(crate) struct Args {
    /// The node's name or id, as "agent members" shows them
    #[arg(value_name = "NODE")]
    node: String,
}

/// Runs the command.
pub(super) async fn run(args: Args, settings: &CommandSettings) -> anyhow::Result<ExitCode> {
    ask::run_and_print(settings, &Request::Remove { node: args.node }).await
}
