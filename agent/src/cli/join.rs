//! `agent join`: every other node.

use std::net::IpAddr;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::Context;
use proto::config;
use proto::control::{Request, Response};
use proto::invite::{self, Invite, IssuerPin, JoinRefusal};
use proto::node::Name;

use super::exit::{self, ExitError};
use super::steps::{self, Steps};
use super::{CommandSettings, install};
use crate::app::setup::{self, JoinSeed, SetupOptions};
use crate::control;

/// Join a cluster
///
/// SEED is the invite that `agent init` or `agent invite` printed; `-` reads it from stdin, so it does not
/// show in the process list. With just the address of a master, this node shows a short
/// code, waits until someone runs `agent approve CODE` on a master, and asks for the second code that
/// approve prints. With --key, the master is known by its key, which `agent open` prints. Each step is
/// reported on a line. Running it again is safe.
///
/// Exit codes: 20 unknown invite, 21 invite expired, 22 used up, 23 wrong secret, 24 another key
/// answered, 25 rejected, 26 not approved in time, 27 too many nodes wait, 28 this node was removed,
/// 29 the name is taken, 30 this node belongs to another cluster, 31 the cluster can't take it, 32 the
/// invite's issuer is a worker now, 33 the node that was asked was removed from its cluster,
/// 34 nobody has confirmed by the codes that this is the right cluster.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  agent join agent1qk3v…
  agent join 10.0.0.1
  agent join --invite-file /run/secrets/invite
  agent join m1.example:7646 --name w1")]
pub(crate) struct Args {
    #[arg(
        value_name = "SEED",
        help = "An invite, - to read one from stdin, or HOST[:PORT] of a master",
        required_unless_present = "invite_file"
    )]
    pub(crate) seed: Option<String>,
    /// Read the invite from a file with mode 0600
    #[arg(long, value_name = "FILE", conflicts_with = "seed")]
    pub(crate) invite_file: Option<PathBuf>,
    /// Key of the master, if there is no invite
    #[arg(long, value_name = "KEY", value_parser = invite::parse_pin)]
    pub(crate) key: Option<IssuerPin>,
    /// Name of this node [default: its host name]
    #[arg(long, value_name = "NAME")]
    pub(crate) name: Option<Name>,
    /// Address at which the others reach this node [default: source of the route to the seed]
    #[arg(long, value_name = "IP", value_parser = config::check_address)]
    pub(crate) addr: Option<IpAddr>,
    /// Interface of the mesh [default: that of the route to the seed]
    #[arg(long, value_name = "IF", value_parser = config::check_interface)]
    pub(crate) iface: Option<String>,
    /// Return once the service runs, whether or not a master serves
    #[arg(long)]
    pub(crate) no_wait: bool,
    /// Print one JSON object per line
    #[arg(long)]
    pub(crate) json: bool,
    /// Stay in the foreground instead of installing a service
    #[arg(long)]
    pub(crate) foreground: bool,
}

/// Runs the command.
pub(crate) async fn run(args: Args, settings: CommandSettings) -> anyhow::Result<ExitCode> {
    if !args.foreground {
        install::check_program()?;
    }
    let (flags, config) = settings.with_place(args.name, args.addr, args.iface)?;
    let steps = Steps::new(args.json);
    let text = seed(args.seed, args.invite_file.as_deref())?;
    if let Some(running) = steps::already_runs(&settings).await? {
        steps::same_place(&flags, &running)?;
        if running.node.removed {
            return Err(JoinRefusal::Removed.into());
        }
        let invite = text.parse::<Invite>().ok();
        if let Some(invite) = &invite
            && !running.members.iter().any(|member| invite.issuer.starts_with(&member.id.0))
        {
            let why = format!(
                "this node runs as a member of \"{}\", to which the issuer of this invite does not belong; to move the \
                 node to another cluster, first run: agent leave --force",
                running.cluster.name
            );
            return Err(ExitError::error(JoinRefusal::OtherCluster.exit_code(), why));
        }
        let listed = |invite: Invite| invite.addresses.iter().map(ToString::to_string).collect();
        let seeds = invite.map_or_else(|| vec![text], listed);
        steps.step("cluster", true, &format!("already a member of \"{}\" and running", running.cluster.name));
        // Its members may have other addresses now, and the agent know none of them.
        match control::call(settings.runtime_dir(), &Request::Seed(seeds)).await {
            Ok(Response::Done(text)) => steps.step("seed", true, &text),
            Ok(Response::Failed(text)) => steps.step("seed", false, &text),
            Ok(_) | Err(_) => {}
        }
        let (ok, text) = running.serving();
        steps.step("serves", ok, &text);
        return Ok(ExitCode::SUCCESS);
    }
    let seed = JoinSeed { text: &text, key: args.key, typed: &typed };
    let joined = setup::join(&SetupOptions::new(config), &seed, &mut |step| steps.setup(&step)).await;
    let entered = joined.map_err(exit::of_setup)?;
    steps::go_on(entered, settings, steps, args.foreground, args.no_wait).await
}

/// A line from stdin; none at its end.
fn typed() -> Option<String> {
    let mut line = String::new();
    match std::io::stdin().read_line(&mut line) {
        Ok(0) | Err(_) => None,
        Ok(_) => Some(line),
    }
}

/// The invite or address, from where it stands.
fn seed(argument: Option<String>, file: Option<&Path>) -> anyhow::Result<String> {
    if let Some(file) = file {
        let about = std::fs::metadata(file).with_context(|| file.display().to_string())?;
        let own = rustix::process::geteuid().as_raw();
        if about.mode() & 0o077 != 0 || ![0, own].contains(&about.uid()) {
            let text = format!(
                "{} must belong to root or this user and be readable by nobody else; run: chmod 600 {0}",
                file.display()
            );
            return Err(ExitError::error(exit::DATA, text));
        }
        let text = std::fs::read_to_string(file).with_context(|| file.display().to_string())?;
        return Ok(first_word(&text));
    }
    match argument.as_deref() {
        Some("-") => match typed() {
            Some(line) => Ok(first_word(&line)),
            None => Err(ExitError::error(exit::DATA, "no invite on stdin")),
        },
        _ => Ok(argument.unwrap_or_default()),
    }
}

/// The invite in a line: alone, or the whole command as `agent init` prints it.
fn first_word(text: &str) -> String {
    let invite = text.split_whitespace().find(|word| word.starts_with(invite::PREFIX));
    invite.unwrap_or(text.trim()).to_owned()
}
