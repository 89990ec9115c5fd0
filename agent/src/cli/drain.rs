//! `agent drain` and `agent undrain`: this node's apiserver goes on, and gets no new connections.

use std::process::ExitCode;

use proto::control::Request;

use super::{Settings, ask};

/// Send no new connections to this node's apiserver, on any node
///
/// Held connections are left to finish. It lasts until "agent undrain", or until the agent starts anew.
#[derive(Debug, clap::Args)]
pub(crate) struct DrainArgs {}

/// Send new connections to this node's apiserver again
#[derive(Debug, clap::Args)]
pub(crate) struct UndrainArgs {}

/// Runs `agent drain`.
pub(super) async fn drain(settings: &Settings) -> anyhow::Result<ExitCode> {
    ask::tell(settings, &Request::Drain { on: true }).await
}

/// Runs `agent undrain`.
pub(super) async fn undrain(settings: &Settings) -> anyhow::Result<ExitCode> {
    ask::tell(settings, &Request::Drain { on: false }).await
}
