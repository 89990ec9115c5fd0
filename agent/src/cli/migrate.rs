//! `agent migrate`: what haproxy and keepalived were told, as a file and commands of ours.

use std::collections::BTreeMap;
use std::io::Read;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use proto::control::{MemberStatus, Status};
use proto::migrate::{MigrateError, SourceFile, Surroundings, migrate};
use proto::node::{BadName, Name};

use super::exit::{self, ExitError};
use super::{CommandSettings, Global, ask, out, settings};

/// Largest file that is read: a thousand times what people write.
const MAX_FILE: u64 = 1024 * 1024;

/// Convert haproxy.cfg and keepalived.conf to agent.toml
///
/// Prints an equivalent configuration, with the steps for each node and the commands for the cluster as
/// comments. Lines that are lost or need attention go to stderr. Variables of the files are taken from the
/// environment, and names of nodes from the cluster if an agent runs here. Changes nothing.
///
/// Exit codes: 0 everything is carried over; 10 not whole, see stderr; 65 nothing is written, since a file is
/// none of these or no agent would take the result.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  agent migrate /etc/haproxy/haproxy.cfg > agent.toml
  agent migrate haproxy.cfg keepalived.conf --node lb1 > agent.toml
  agent migrate --explain haproxy.cfg | less
  agent check agent.toml")]
pub(crate) struct Args {
    /// haproxy.cfg, keepalived.conf, or both, in any order
    #[arg(value_name = "FILE", required = true, num_args = 1..=2)]
    files: Vec<PathBuf>,
    /// Name of the node that the files are from [default: the placeholder NODE1]
    #[arg(long, value_name = "NAME")]
    node: Option<Name>,
    /// Names of nodes where no agent runs yet, such as 10.0.0.1=m1,10.0.0.2=m2
    #[arg(long, value_name = "ADDRESS=NAME", value_delimiter = ',', value_parser = named_address)]
    names: Vec<(IpAddr, Name)>,
    /// Print what became of each line instead of the configuration
    #[arg(long, conflicts_with = "notify_script")]
    explain: bool,
    /// Print a script that calls keepalived's notify scripts as keepalived did
    #[arg(long)]
    notify_script: bool,
}

/// Why a text is no address with a name.
#[derive(Debug, thiserror::Error)]
enum BadNamedAddress {
    /// There is no `=` in it.
    #[error("write it as ADDRESS=NAME, such as 10.0.0.1=m1")]
    NoName,
    /// It begins with no address.
    #[error("\"{0}\" is not an IP address, such as 10.0.0.1")]
    Address(String),
    /// It ends with no name.
    #[error(transparent)]
    Name(#[from] BadName),
}

fn named_address(text: &str) -> Result<(IpAddr, Name), BadNamedAddress> {
    let (address, name) = text.split_once('=').ok_or(BadNamedAddress::NoName)?;
    let wrong = |_| BadNamedAddress::Address(address.to_owned());
    let address: IpAddr = address.trim().parse().map_err(wrong)?;
    Ok((address.to_canonical(), name.trim().parse()?))
}

/// Runs the command.
pub(super) fn run(args: &Args, global: &Global) -> anyhow::Result<ExitCode> {
    let mut files = Vec::new();
    for path in &args.files {
        files.push((path.display().to_string(), read(path)?));
    }
    let sources: Vec<SourceFile<'_>> = files.iter().map(|(name, bytes)| SourceFile { name, bytes }).collect();
    let mut names = if args.names.is_empty() { members(global) } else { BTreeMap::new() };
    names.extend(args.names.iter().cloned());
    let variables = |name: &str| std::env::var(name).ok();
    let around = Surroundings { node: args.node.as_ref(), names: &names, variables: &variables };
    let made = migrate(&sources, &around).map_err(|error| {
        if let MigrateError::Invalid { problems, .. } = &error {
            problems.iter().for_each(|problem| out::warn(problem));
        }
        ExitError::error(exit::DATA, error.to_string())
    })?;
    if args.explain {
        out::print(&made.explanation)?;
    } else if args.notify_script {
        let none = || ExitError::error(exit::DATA, "the files have no notify scripts".to_owned());
        out::print(made.notify_script.as_deref().ok_or_else(none)?)?;
        return Ok(ExitCode::SUCCESS);
    } else {
        out::print(&made.text)?;
        made.problems.iter().for_each(|problem| out::warn(problem));
    }
    Ok(if made.problems.is_empty() { ExitCode::SUCCESS } else { ExitCode::from(exit::DEGRADED) })
}

/// The names of the cluster's members by their addresses; none where no agent runs or the caller may not ask it.
fn members(global: &Global) -> BTreeMap<IpAddr, Name> {
    let ask = || -> anyhow::Result<Status> {
        let settings = CommandSettings::load(global.clone())?;
        super::runtime(false)?.block_on(async { ask::status(&settings).await })
    };
    let members = ask().map(|status| status.members).unwrap_or_default();
    let named = |one: MemberStatus| Some((one.address.parse::<IpAddr>().ok()?.to_canonical(), one.name));
    members.into_iter().filter_map(named).collect()
}

fn read(path: &Path) -> anyhow::Result<Vec<u8>> {
    let shown = path.display();
    let mut bytes = Vec::new();
    let result = settings::open_file(path).and_then(|file| file.take(MAX_FILE + 1).read_to_end(&mut bytes));
    if let Err(error) = result {
        let code = match error.kind() {
            std::io::ErrorKind::PermissionDenied => exit::NO_PERMISSION,
            _ => exit::NO_INPUT,
        };
        return Err(ExitError::error(code, format!("can't read {shown}: {}", settings::plain(&error))));
    }
    if bytes.len() as u64 > MAX_FILE {
        let message = format!("{shown} is larger than {} kB, too large for a configuration", MAX_FILE / 1024);
        return Err(ExitError::error(exit::DATA, message));
    }
    Ok(bytes)
}
