//! `agent vip move`: hands a virtual IP to another node on purpose.

use std::net::IpAddr;
use std::process::ExitCode;

use proto::control::Request;

use super::{Settings, ask};

/// Virtual IPs: hand one to another node
///
/// Which there are, who has them and why: agent status. To add one: agent set vip=ADDRESS.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, clap::Subcommand)]
enum Command {
    /// Hand a virtual IP to a node that could have it
    ///
    /// Its owner takes it away and names that node, so clients notice nothing but a reset. Without
    /// "preempt" it then stays there until that node fails.
    #[command(after_help = "Example:\n  agent vip move 10.91.91.50 m2")]
    Move {
        /// The virtual IP
        #[arg(value_name = "ADDRESS", value_parser = proto::settings::check_vip)]
        address: IpAddr,
        /// The node: its name, or its id
        #[arg(value_name = "NODE")]
        node: String,
    },
}

/// Runs the command.
pub(super) async fn run(args: Args, settings: &Settings) -> anyhow::Result<ExitCode> {
    let Command::Move { address, node } = args.command;
    ask::tell(settings, &Request::VipMove { address, node }).await
}
