//! `agent migrate`: what haproxy and keepalived were told, as a file and commands of ours.

use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use proto::migrate::{SourceFile, migrate};
use proto::node::Name;

use super::exit::{self, ExitError};
use super::{out, settings};

/// Largest file that is read: a thousand times what people write.
const MAX_FILE: u64 = 1024 * 1024;

/// Convert haproxy.cfg and keepalived.conf to agent.toml
///
/// Prints an equivalent configuration. Its comments list the steps for each node and what became of every
/// line: kept, set cluster-wide, automatic, not needed, not supported, or not understood.
/// Lines that need attention also go to stderr. Changes nothing and needs no running agent.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  agent migrate /etc/haproxy/haproxy.cfg > agent.toml
  agent migrate haproxy.cfg keepalived.conf --node m1 > agent.toml
  agent check agent.toml")]
pub(crate) struct Args {
    /// haproxy.cfg, keepalived.conf, or both, in any order
    #[arg(value_name = "FILE", required = true, num_args = 1..=2)]
    files: Vec<PathBuf>,
    /// Name of the node that the files are from, for its priority [default: the placeholder NODE]
    #[arg(long, value_name = "NAME")]
    node: Option<Name>,
}

/// Runs the command. What is not done is told and is no failure; a file that can't be read is.
pub(super) fn run(args: &Args) -> anyhow::Result<ExitCode> {
    let mut files = Vec::new();
    for path in &args.files {
        files.push((path.display().to_string(), read(path)?));
    }
    let sources: Vec<SourceFile<'_>> = files.iter().map(|(name, bytes)| SourceFile { name, bytes }).collect();
    let made = migrate(&sources, args.node.as_ref())
        .map_err(|error| ExitError::error(exit::DATA, error.to_string()))?;
    out::print(&made.text)?;
    for problem in &made.problems {
        out::warn(problem);
    }
    Ok(ExitCode::SUCCESS)
}

fn read(path: &Path) -> anyhow::Result<Vec<u8>> {
    let shown = path.display();
    let mut bytes = Vec::new();
    let result = std::fs::File::open(path).and_then(|file| file.take(MAX_FILE + 1).read_to_end(&mut bytes));
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
