//! `agent promote` and `agent demote`: the role of a member.

use std::process::ExitCode;

use proto::control::Request;
use proto::node::Role;

use super::{CommandSettings, ask};

/// Make a worker a master
///
/// A master's apiserver is used, and it may change the cluster: admit, remove, set and rotate.
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:\n  agent promote m4")]
pub(crate) struct PromoteArgs {
    /// The node's name or id, as "agent members" shows them
    #[arg(value_name = "NODE")]
    node: String,
}

/// Make a master a worker
///
/// Its apiserver is no longer used, and it can no longer change the cluster.
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:\n  agent demote m4")]
pub(crate) struct DemoteArgs {
    /// The node's name or id, as "agent members" shows them
    #[arg(value_name = "NODE")]
    node: String,
    /// Demote even the last master; the cluster can then no longer be changed
    #[arg(long)]
    force: bool,
}

/// Runs `agent promote`.
pub(super) async fn promote(args: PromoteArgs, settings: &CommandSettings) -> anyhow::Result<ExitCode> {
    let request = Request::SetRole { node: args.node, role: Role::Master, force: false };
    ask::run_and_print(settings, &request).await
}

/// Runs `agent demote`.
pub(super) async fn demote(args: DemoteArgs, settings: &CommandSettings) -> anyhow::Result<ExitCode> {
    let request = Request::SetRole { node: args.node, role: Role::Worker, force: args.force };
    ask::run_and_print(settings, &request).await
}
