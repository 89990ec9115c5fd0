//! `agent weight`: a node's share.

use std::process::ExitCode;

use proto::service::MAX_WEIGHT;

use super::{Settings, set};

/// Change a node's share of new connections, on every node
///
/// 100 is the usual share; 0 sends nothing new there while another is good. It outlives restarts, and
/// counts more than what the node's own file says. Take it back with: agent unset weight.NODE
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
pub(super) async fn run(args: Args, settings: &Settings) -> anyhow::Result<ExitCode> {
    set::change(settings, vec![(format!("weight.{}", args.node), Some(args.weight.to_string()))]).await
}
