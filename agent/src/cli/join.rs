//! `agent join`: every other node.

use std::net::IpAddr;
use std::process::ExitCode;

use proto::config;
use proto::invite::{EXIT_WRONG_PIN, Refusal};
use proto::node::Name;

use super::Settings;
use super::exit::{self, Failure};
use super::steps::{self, Steps};
use crate::app::enter::{self, Wish};
use crate::membership::join::JoinError;

/// Join a cluster, and say what serves
///
/// SEED is the invite that `agent init` or `agent invite` printed. With the bare address of any member
/// instead, this node shows a short code and waits until someone runs `agent approve CODE` on a member.
/// Each fact is reported on a line as it is checked. Running it again is safe.
///
/// Ends with 20 when the invite is not known, 21 expired, 22 used up, 23 its secret is wrong, 24 someone
/// else answered, 25 rejected, 26 nobody approved, 27 too many wait, 28 this node was removed, 29 the name
/// is taken.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  agent join agent1qk3v…
  agent join 10.0.0.1
  agent join m1.example:7646 --name w1")]
pub(crate) struct Args {
    #[arg(value_name = "SEED", help = "An invite, or HOST[:PORT] of a member")]
    pub(crate) seed: String,
    /// Name of this node [default: its host name]
    #[arg(long, value_name = "NAME")]
    pub(crate) name: Option<Name>,
    /// Address that the others reach this node at [default: that of the route to the seed]
    #[arg(long, value_name = "IP", value_parser = config::check_address)]
    pub(crate) addr: Option<IpAddr>,
    /// Interface that carries the mesh [default: that of the route to the seed]
    #[arg(long, value_name = "IF", value_parser = config::check_interface)]
    pub(crate) iface: Option<String>,
    /// Print one JSON object a line
    #[arg(long)]
    pub(crate) json: bool,
    /// Stay in the foreground instead of installing a service
    #[arg(long)]
    pub(crate) foreground: bool,
}

/// Runs the command.
pub(crate) async fn run(args: Args, settings: Settings) -> anyhow::Result<ExitCode> {
    let wish =
        Wish { config: settings.config.clone(), name: args.name, address: args.addr, interface: args.iface };
    let steps = Steps::new(args.json);
    if let Some(running) = steps::already_runs(&settings).await? {
        if running.node.removed {
            return Err(Refusal::Removed.into());
        }
        steps.step(
            "cluster",
            true,
            &format!("already a member of \"{}\", and running", running.cluster.name),
        );
        let (ok, text) = running.serving();
        steps.step("serves", ok, &text);
        return Ok(ExitCode::SUCCESS);
    }
    let joined = enter::join(&wish, &args.seed, &mut |step, ok, detail| steps.step(step, ok, detail)).await;
    let entered = joined.map_err(|error| match error.downcast_ref::<JoinError>() {
        Some(JoinError::Refused(refusal)) => Failure::error(refusal.exit_code(), error.to_string()),
        Some(JoinError::WrongPin(_)) => Failure::error(EXIT_WRONG_PIN, error.to_string()),
        Some(JoinError::Unreachable { .. } | JoinError::Broken(_)) => {
            Failure::error(exit::UNAVAILABLE, error.to_string())
        }
        None => error,
    })?;
    steps::go_on(entered, settings, steps, args.foreground).await
}
