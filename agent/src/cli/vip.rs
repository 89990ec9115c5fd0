//! `agent vip move`: hands a virtual IP to another node on purpose.

use std::net::IpAddr;
use std::process::ExitCode;

use proto::control::Request;

use super::{CommandSettings, ask};

/// Hand a virtual IP to another node
///
/// "agent status" shows the virtual IPs and their owners; "agent set vip=ADDRESS" adds one.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, clap::Subcommand)]
enum Command {
    /// Hand a virtual IP to another eligible node
    ///
    /// The owner removes it and names that node as its successor, so clients only see a reset. Without
    /// "preempt", it stays there until that node fails.
    #[command(after_help = "Example:\n  agent vip move 10.0.0.50 m2")]
    Move {
        /// The virtual IP
        #[arg(value_name = "ADDRESS", value_parser = proto::settings::check_vip)]
        address: IpAddr,
        /// Name or id of the node
        #[arg(value_name = "NODE")]
        node: String,
    },
}

/// Runs the command.
pub(super) async fn run(args: Args, settings: &CommandSettings) -> anyhow::Result<ExitCode> {
    let Command::Move { address, node } = args.command;
    ask::run_and_print(settings, &Request::VipMove { address, node }).await
}
