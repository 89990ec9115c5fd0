//! `agent init`: the first node.

use std::net::IpAddr;
use std::process::ExitCode;

use proto::config;
use proto::control::{Request, Response};
use proto::invite;
use proto::node::Name;
use proto::settings;

use super::Settings;
use super::steps::{self, Steps};
use crate::app::enter::{self, Wish};

/// Create a cluster on its first node, and print the line that lets the others join
///
/// Picks the address and the interface by itself where one interface looks like a VPN; otherwise it lists
/// what it found and asks for --iface. Under systemd and as root it installs and starts the service;
/// elsewhere it stays in the foreground. Running it again changes nothing and prints a new invite.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  agent init
  agent init --name m1 --iface wg0
  agent init --vip 10.91.91.50")]
pub(crate) struct Args {
    /// Name of this node [default: its host name]
    #[arg(long, value_name = "NODE_NAME")]
    pub(crate) name: Option<Name>,
    /// Name of the cluster, for people [default: made from this node's name]
    #[arg(long, value_name = "NAME")]
    pub(crate) cluster: Option<Name>,
    /// Address that the others reach this node at
    #[arg(long, value_name = "IP", value_parser = config::check_address)]
    pub(crate) addr: Option<IpAddr>,
    /// Interface that carries the mesh
    #[arg(long, value_name = "IF", value_parser = config::check_interface)]
    pub(crate) iface: Option<String>,
    /// Virtual IP of the cluster; may be given several times
    #[arg(long, value_name = "IP", value_parser = settings::check_vip)]
    pub(crate) vip: Vec<IpAddr>,
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
        steps.step("cluster", true, &format!("already a member of \"{}\"", running.cluster.name));
        if !args.vip.is_empty() {
            let request = Request::Change(vec![("vip".to_owned(), Some(enter::vip_setting(&args.vip)))]);
            if let Response::Changed(changes, _) = super::ask::ask(&settings, &request).await? {
                changes.iter().for_each(|change| steps.step("setting", true, &super::set::line(change)));
            }
        }
        let request = Request::Invite { seconds: invite::DEFAULT_TTL.as_secs(), uses: None };
        if let Response::Invite { line, .. } = super::ask::ask(&settings, &request).await? {
            steps.invite(&line);
        }
        return Ok(ExitCode::SUCCESS);
    }
    let entered =
        enter::init(&wish, args.cluster, &args.vip, &mut |step, ok, detail| steps.step(step, ok, detail))?;
    steps::go_on(entered, settings, steps, args.foreground).await
}
