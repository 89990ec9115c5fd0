//! `agent rotate`: a new gossip key.

use std::process::ExitCode;

use proto::control::Request;

use super::{CommandSettings, ask};

/// Change the gossip key
///
/// Every node fetches the new key; the old one is accepted for 10 minutes. A node that is off
/// in the meantime catches up when it returns.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {}

/// Runs the command.
pub(super) async fn run(_: &Args, settings: &CommandSettings) -> anyhow::Result<ExitCode> {
    ask::run_and_print(settings, &Request::Rotate).await
}
