//! `agent init`: the first node.

use std::net::IpAddr;
use std::process::ExitCode;

use proto::config;
use proto::control::{MemberState, MemberStatus, Request, Response};
use proto::invite;
use proto::node::{Name, Role};
use proto::settings;

use super::exit::{self, ExitError};
use super::steps::{self, Steps};
use super::{CommandSettings, ask, install};
use crate::app::setup::{self, FirstNode, SetupOptions};
use crate::control;

/// Create a cluster on its first node and print the commands for the others
///
/// Picks the address and the interface if exactly one interface looks like a VPN; otherwise it lists
/// what it found and asks for --iface. As root under systemd, it installs and starts the service;
/// otherwise it stays in the foreground. Running it again changes nothing; with --invites it prints new ones.
///
/// With --successor, a node whose cluster has lost all its masters for good starts a new one with the
/// same name and settings and this node as its master. Other nodes join it with its invites.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  agent init
  agent init --name m1 --iface wg0
  agent init --vip 10.0.0.50
  agent init --invites      new invites, on a node that is in a cluster
  agent init --successor    after losing all masters")]
pub(crate) struct Args {
    /// Name of this node [default: its host name]
    #[arg(long, value_name = "NODE_NAME")]
    pub(crate) name: Option<Name>,
    /// Name of the cluster [default: derived from this node's name]
    #[arg(long, value_name = "NAME")]
    pub(crate) cluster: Option<Name>,
    /// Address at which the others reach this node
    #[arg(long, value_name = "IP", value_parser = config::check_address)]
    pub(crate) addr: Option<IpAddr>,
    /// Interface of the mesh
    #[arg(long, value_name = "IF", value_parser = config::check_interface)]
    pub(crate) iface: Option<String>,
    /// Virtual IP of the cluster; may be repeated
    #[arg(long, value_name = "IP", value_parser = settings::check_vip)]
    pub(crate) vip: Vec<IpAddr>,
    /// Replace this node's cluster, which has lost all its masters
    #[arg(long, conflicts_with_all = ["name", "cluster", "addr", "iface", "vip"])]
    pub(crate) successor: bool,
    /// Print new invites if this node is in a cluster already
    #[arg(long)]
    pub(crate) invites: bool,
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
    if args.successor {
        return succeed(&SetupOptions::new(config), settings, steps, args.foreground, args.no_wait).await;
    }
    if let Some(running) = steps::already_runs(&settings).await? {
        steps::same_place(&flags, &running)?;
        steps.step("cluster", true, &format!("already a member of \"{}\"", running.cluster.name));
        if !args.vip.is_empty() {
            let request = Request::Change(vec![("vip".to_owned(), Some(setup::vip_setting(&args.vip)))]);
            if let Response::Changed(changes, _) = ask::ask(&settings, &request).await? {
                changes.iter().for_each(|change| steps.step("setting", true, &super::set::line(change)));
            }
        }
        if args.invites {
            let masters = new_invite(&settings, Role::Master, invite::MASTER_USES).await?;
            let workers = new_invite(&settings, Role::Worker, invite::WORKER_USES).await?;
            steps.invites(&masters, &workers);
        } else {
            steps.step("invite", true, "none was made; for new ones run: agent init --invites");
        }
        return Ok(ExitCode::SUCCESS);
    }
    let first = FirstNode { cluster: args.cluster, vips: &args.vip, invites: args.invites };
    let entered = setup::init(&SetupOptions::new(config), first, &mut |step| steps.setup(&step))
        .map_err(exit::of_setup)?;
    steps::go_on(entered, settings, steps, args.foreground, args.no_wait).await
}

async fn new_invite(settings: &CommandSettings, role: Role, uses: u32) -> anyhow::Result<String> {
    let seconds = invite::DEFAULT_TTL.as_secs();
    match ask::ask(settings, &Request::Invite { seconds, uses: Some(uses), role }).await? {
        Response::Invite { line, .. } => Ok(line),
        other => Err(ask::unexpected(&other)),
    }
}

/// Starts the successor of a cluster without masters.
async fn succeed(
    options: &SetupOptions,
    settings: CommandSettings,
    steps: Steps,
    foreground: bool,
    no_wait: bool,
) -> anyhow::Result<ExitCode> {
    if let Some(running) = steps::already_runs(&settings).await? {
        let lives = |one: &&MemberStatus| {
            one.role == Role::Master && one.name != running.node.name && one.state == MemberState::Up
        };
        if let Some(master) = running.members.iter().find(lives) {
            let text =
                format!("{} is a master of this cluster and up, so no successor is needed", master.name);
            return Err(ExitError::error(exit::UNAVAILABLE, text));
        }
        // The state directory has to be free.
        install::stop(&mut |line| steps.step("service", true, line))?;
        if control::is_running(settings.runtime_dir()) {
            let text = "an agent is still running here in the foreground; stop it and repeat this command";
            return Err(ExitError::error(exit::UNAVAILABLE, text));
        }
    }
    let entered = setup::succeed(options, &mut |step| steps.setup(&step)).map_err(exit::of_setup)?;
    steps::go_on(entered, settings, steps, foreground, no_wait).await
}
