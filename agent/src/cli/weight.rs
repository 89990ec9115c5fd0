//! `agent weight`: a node's share.

use std::process::ExitCode;

use proto::service::MAX_WEIGHT;

use super::{CommandSettings, set};

/// Change a node's share of new connections, on every node
///
/// The default is 100; with 0 it gets no new connections while another is healthy. It survives restarts and
/// overrides the node's own file. To undo it, run: agent unset weight.NODE
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:\n  agent weight m3 50")]
pub(crate) struct Args {
    /// The node's name or id, as "agent members" shows them
    #[arg(value_name = "NODE")]
    node: String,
    /// Its share among equals, 0 to 256
    #[arg(value_name = "N", value_parser = clap::value_parser!(u16).range(0..=i64::from(MAX_WEIGHT)))]
    weight: u16,
}

/// Runs the command.
pub(super) async fn run(args: Args, settings: &CommandSettings) -> anyhow::Result<ExitCode> {
    set::change(settings, vec![(format!("weight.{}", args.node), Some(args.weight.to_string()))]).await
}
