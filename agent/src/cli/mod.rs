//! The command line: a file a command. Raw arguments first, then one checked [`CommandSettings`], then the command.

use std::ffi::OsString;
use std::process::ExitCode;

use clap::{CommandFactory, Parser, Subcommand};

mod ask;
mod check;
mod completions;
mod demo;
mod doctor;
mod drain;
mod events;
mod exit;
mod get;
mod init;
mod install;
mod invite;
mod join;
mod kubernetes;
mod leave;
mod man;
mod members;
mod migrate;
mod open;
mod out;
mod promote;
mod remove;
mod rotate;
mod run;
mod set;
mod settings;
mod status;
mod steps;
mod table;
mod uninstall;
mod upgrade;
mod vip;
mod waiting;
mod weight;

use settings::{CommandSettings, Global};

use crate::handover;
use crate::hardening;
use crate::times as time;

/// Highly available Kubernetes masters without a load balancer. The agents find the healthy masters, and
/// each node serves them on 127.0.0.1:16443.
#[derive(Debug, Parser)]
#[command(name = "agent", version, max_term_width = 80, after_help = AFTER_HELP)]
struct Cli {
    #[command(flatten)]
    global: Global,
    #[command(subcommand)]
    command: Command,
}

const AFTER_HELP: &str = "\
Examples:
  agent init                   on the first node; prints the commands for the others
  agent join agent1qk3v…       on every other node
  agent status                 cluster health: which masters serve, and why others do not";

#[derive(Debug, Subcommand)]
enum Command {
    Init(init::Args),
    Join(join::Args),
    Run(run::Args),
    Status(status::Args),
    Members(members::Args),
    Events(events::Args),
    Check(check::Args),
    Doctor(doctor::Args),
    Migrate(migrate::Args),
    Invite(invite::Args),
    Approve(waiting::ApproveArgs),
    Reject(waiting::RejectArgs),
    Open(open::Args),
    Promote(promote::PromoteArgs),
    Demote(promote::DemoteArgs),
    Remove(remove::Args),
    Leave(leave::Args),
    Rotate(rotate::Args),
    Drain(drain::DrainArgs),
    Undrain(drain::UndrainArgs),
    Vip(vip::Args),
    Kubernetes(kubernetes::Args),
    Weight(weight::Args),
    Set(set::SetArgs),
    Unset(set::UnsetArgs),
    Get(get::Args),
    Install(install::Args),
    Uninstall(uninstall::Args),
    Upgrade(upgrade::Args),
    Demo(demo::Args),
    #[command(hide = true)]
    DemoMaster(demo::MasterArgs),
    Completions(completions::Args),
    Man(man::Args),
}

/// Runs one command line and returns what the process ends with.
pub(crate) fn main(args: impl IntoIterator<Item = OsString>) -> ExitCode {
    let cli = match Cli::try_parse_from(args) {
        Ok(cli) => cli,
        Err(error) => return usage(&error),
    };
    dispatch(cli).unwrap_or_else(|error| exit::report(&error))
}

/// Prints help, the version, or what is wrong with the arguments.
fn usage(error: &clap::Error) -> ExitCode {
    if error.use_stderr() {
        out::warn(error.to_string().trim_end());
        return ExitCode::from(exit::USAGE);
    }
    match out::print(&error.to_string()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(_) => ExitCode::from(exit::CANT_CREATE),
    }
}

fn dispatch(cli: Cli) -> anyhow::Result<ExitCode> {
    // These have to work on a machine whose configuration is broken.
    match cli.command {
        Command::Check(args) => return check::run(&args, &cli.global),
        Command::Migrate(args) => return migrate::run(&args, &cli.global),
        Command::Completions(args) => return completions::run(&args, Cli::command()),
        Command::Man(args) => return man::run(&args, Cli::command()),
        Command::Demo(args) => return runtime(false)?.block_on(demo::run(args)),
        Command::DemoMaster(args) => return runtime(false)?.block_on(demo::master(args)),
        _ => {}
    }
    let settings = CommandSettings::load(cli.global)?;
    let command = match cli.command {
        // It has taken the place of one that had entered the cluster already.
        Command::Init(_) | Command::Join(_) if handover::is_pending() => Command::Run(run::Args {}),
        command => command,
    };
    let is_agent = matches!(command, Command::Run(_) | Command::Init(_) | Command::Join(_));
    if is_agent {
        // Before there are threads: each begins with what its maker has.
        if becomes_agent(&command) {
            hardening::keep_only_needed_capabilities();
        }
        crate::vip::drop_capabilities();
    }
    runtime(is_agent)?.block_on(run_command(command, settings))
}

/// Whether this process itself is going to be the agent, and installs no service.
fn becomes_agent(command: &Command) -> bool {
    let foreground = match command {
        Command::Init(args) => args.foreground,
        Command::Join(args) => args.foreground,
        command => return matches!(command, Command::Run(_)),
    };
    foreground || !install::is_possible()
}

/// The agent's tasks share a thread, since two wake each other up for nothing most of the time: that cost a quarter of
/// an idle agent's CPU. What blocks on a disk has threads of its own, for which that takes the runtime of many; so do
/// connections and virtual IPs. A command that asks the agent something needs no other thread.
fn runtime(is_agent: bool) -> std::io::Result<tokio::runtime::Runtime> {
    let mut builder = if is_agent {
        tokio::runtime::Builder::new_multi_thread()
    } else {
        tokio::runtime::Builder::new_current_thread()
    };
    builder.worker_threads(1);
    builder.enable_all().build()
}

async fn run_command(command: Command, settings: CommandSettings) -> anyhow::Result<ExitCode> {
    match command {
        Command::Init(args) => init::run(args, settings).await,
        Command::Join(args) => join::run(args, settings).await,
        Command::Run(args) => run::run(args, settings).await,
        Command::Status(args) => status::run(&args, &settings).await,
        Command::Members(args) => members::run(&args, &settings).await,
        Command::Events(args) => events::run(&args, &settings).await,
        Command::Doctor(args) => doctor::run(args, &settings).await,
        Command::Invite(args) => invite::run(&args, &settings).await,
        Command::Approve(args) => waiting::approve(&args, &settings).await,
        Command::Reject(args) => waiting::reject(&args, &settings).await,
        Command::Open(args) => open::run(&args, &settings).await,
        Command::Promote(args) => promote::promote(args, &settings).await,
        Command::Demote(args) => promote::demote(args, &settings).await,
        Command::Remove(args) => remove::run(args, &settings).await,
        Command::Leave(args) => leave::run(&args, &settings).await,
        Command::Rotate(args) => rotate::run(&args, &settings).await,
        Command::Vip(args) => vip::run(args, &settings).await,
        Command::Kubernetes(args) => kubernetes::run(args, &settings).await,
        Command::Drain(args) => drain::drain(args, &settings).await,
        Command::Undrain(args) => drain::undrain(args, &settings).await,
        Command::Weight(args) => weight::run(args, &settings).await,
        Command::Set(args) => set::set(args, &settings).await,
        Command::Unset(args) => set::unset(args, &settings).await,
        Command::Get(args) => get::run(&args, &settings).await,
        Command::Upgrade(args) => upgrade::run(&args, &settings).await,
        Command::Install(args) => install::run(&args, &settings),
        Command::Uninstall(args) => uninstall::run(&args, &settings).await,
        // Answered before the configuration was read.
        Command::Check(_)
        | Command::Migrate(_)
        | Command::Completions(_)
        | Command::Man(_)
        | Command::Demo(_)
        | Command::DemoMaster(_) => Ok(ExitCode::SUCCESS),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(line: &str) -> Result<Cli, clap::Error> {
        Cli::try_parse_from(line.split_whitespace())
    }

    #[test]
    fn the_definition_holds_together() {
        Cli::command().debug_assert();
    }

    #[test]
    fn every_command_of_the_handbook_is_accepted() {
        for line in [
            "agent init",
            "agent init --name m1 --cluster prod --addr 10.0.0.1 --iface wg0 --foreground",
            "agent init --vip 10.0.0.9 --vip fd00::9/64",
            "agent vip move 10.0.0.9 m2",
            "agent kubernetes endpoints",
            "agent kubernetes endpoints --nodes -",
            "agent kubernetes endpoints --masters",
            "agent kubernetes rbac --user agent",
            "agent unset node-local --force",
            "agent set node-local=10.91.91.50 --force",
            "agent uninstall --force",
            "agent join agent1abc",
            "agent join 10.0.0.1:7646 --name w1 --addr fd00::2 --iface wg0 --json --foreground",
            "agent run --state-dir /s --runtime-dir /r --log json --log-level debug",
            "agent --config /etc/x.toml status --json --exit-code",
            "agent members --json",
            "agent events",
            "agent events -f --cluster --since 1h --json",
            "agent events --since 2026-03-01T14:03:11Z",
            "agent check",
            "agent check file.toml",
            "agent doctor",
            "agent doctor --json m1 m2",
            "agent migrate haproxy.cfg",
            "agent migrate haproxy.cfg keepalived.conf --node m1",
            "agent migrate haproxy.cfg --names 10.0.0.1=m1,fd00::2=m2",
            "agent migrate --explain haproxy.cfg",
            "agent migrate --notify-script keepalived.conf",
            "agent invite --for 15m --uses 3 --json",
            "agent approve",
            "agent approve k7qm-2xpd",
            "agent reject k7qm-2xpd",
            "agent open --for 15m",
            "agent open --for 0",
            "agent remove m3",
            "agent leave --force",
            "agent rotate",
            "agent drain",
            "agent drain m2 --wait",
            "agent drain --wait 5m",
            "agent undrain m2",
            "agent weight m3 50",
            "agent set vip=10.0.0.9 service.web.listen=",
            "agent unset vip service.web",
            "agent get",
            "agent get balance --json",
            "agent status --watch",
            "agent init --vip 10.0.0.9/24 --vip fd00::9",
            "agent install --no-start",
            "agent uninstall --purge",
            "agent upgrade",
            "agent upgrade ./agent-new",
            "agent demo",
            "agent demo --for 20s",
            "agent demo-master --listen 127.0.0.11:6443 --name m1",
            "agent completions bash",
            "agent man",
            "agent man man1",
        ] {
            assert!(parse(line).is_ok(), "{line}: {}", parse(line).unwrap_err());
        }
    }

    #[test]
    fn what_is_wrong_on_the_command_line_is_refused() {
        for line in [
            "agent",
            "agent frobnicate",
            "agent join",
            "agent migrate",
            "agent migrate a b c",
            "agent migrate a --names m1",
            "agent migrate a --names 10.0.0=m1",
            "agent migrate a --explain --notify-script",
            "agent init --name Not_A_Name",
            "agent init --addr wg0",
            "agent vip move 10.0.0.9",
            "agent kubernetes",
            "agent kubernetes endpoints --masters --nodes -",
            "agent kubernetes rbac --user a:b",
            "agent init --vip 10.0.0",
            "agent weight m3 257",
            "agent weight m3",
            "agent set vip",
            "agent set",
            "agent unset",
            "agent drain m2 --wait soon",
            "agent status --watch --json",
            "agent run --log xml",
            "agent run --log-level loud",
            "agent invite --for soon",
            "agent invite --for 0",
            "agent invite --uses 0",
            "agent events --since yesterday",
            "agent open",
            "agent remove",
            "agent completions cobol",
            "agent run --state-dir relative",
        ] {
            assert!(parse(line).is_err(), "{line}");
        }
    }

    #[test]
    fn help_fits_80_columns() {
        let mut pages = vec![Cli::command()];
        pages.extend(Cli::command().get_subcommands().cloned());
        for mut page in pages {
            // A subcommand on its own does not know its parent's width.
            page = page.max_term_width(80).term_width(80);
            for line in page.render_long_help().to_string().lines() {
                assert!(line.chars().count() <= 80, "{}: {line}", page.get_name());
            }
        }
    }
}
