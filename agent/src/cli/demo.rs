//! `agent demo`: a whole cluster on one machine, to look at and to break.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use crate::demo::standin::{self, StandInOptions};
use crate::demo::{self, Options, Script};

/// Run a demo cluster on this machine: three masters and two workers
///
/// Needs neither root nor Kubernetes: five agents on loopback addresses, stand-ins for apiservers on the
/// masters, and a client that connects through a worker's proxy ten times a second. Press a key to kill,
/// hang, stop or restart a master. Without a terminal, it reads commands from stdin, one per line, such as "kill
/// m2". Ctrl-C stops it and removes everything.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  agent demo
  agent demo --for 20s --script \"5s kill m2; 10s back m2\"")]
pub(crate) struct Args {
    /// Stop after this time, such as 20s
    #[arg(long = "for", value_name = "TIME", value_parser = proto::time::parse_duration)]
    time: Option<Duration>,
    /// Timed steps separated by ";": a time, then kill, hang, stop, back or kill-node, then a master
    #[arg(long, value_name = "STEPS", default_value = "", hide_default_value = true)]
    script: Script,
}

/// Runs the command.
pub(crate) async fn run(args: Args) -> anyhow::Result<ExitCode> {
    demo::run(Options { time: args.time, script: args.script }).await?;
    Ok(ExitCode::SUCCESS)
}

/// A stand-in for an apiserver, as `agent demo` runs them
#[derive(Debug, clap::Args)]
pub(crate) struct MasterArgs {
    /// Where it listens
    #[arg(long, value_name = "IP:PORT")]
    listen: SocketAddr,
    /// What it calls itself
    #[arg(long)]
    name: String,
    /// PEM file of its certificate [default: it makes its own]
    #[arg(long, value_name = "FILE", requires = "key_file")]
    cert_file: Option<PathBuf>,
    /// PEM file of the certificate's key
    #[arg(long, value_name = "FILE", requires = "cert_file")]
    key_file: Option<PathBuf>,
}

/// Runs the hidden command `demo-master`.
pub(crate) async fn master(args: MasterArgs) -> anyhow::Result<ExitCode> {
    let files = args.cert_file.zip(args.key_file);
    standin::run(StandInOptions { listen: args.listen, name: args.name, files }).await?;
    Ok(ExitCode::SUCCESS)
}
