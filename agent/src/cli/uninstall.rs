//! `agent uninstall`: the way back.

use std::process::ExitCode;

use super::kubernetes::{self, Removal};
use super::{CommandSettings, install, leave, out};

/// Stop and remove the service and the installed binary
///
/// The node remains a member: run "agent leave" first, or "agent remove NODE" on a master. Its state is kept
/// unless --purge is given. The configuration in /etc/agent is kept.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Also delete this node's identity and state
    #[arg(long)]
    purge: bool,
    /// For the scripts of a package that is removed: stop, take the addresses away, and leave all files alone
    #[arg(long, hide = true, conflicts_with = "purge")]
    package: bool,
    /// Even while pods of this node are led to the node-local address
    #[arg(long)]
    force: bool,
}

/// Runs the command.
pub(super) async fn run(args: &Args, settings: &CommandSettings) -> anyhow::Result<ExitCode> {
    // A package manager would be left half-way by a refusal.
    if !args.force && !args.package {
        kubernetes::refuse_while_used(settings, Removal::Node).await?;
    }
    // A closed stdout must not stop half-way.
    let mut say = |line: &str| drop(out::line(line));
    if args.package {
        install::stop(&mut say)?;
    } else {
        install::uninstall(&mut say)?;
    }
    let dir = settings.state_dir();
    leave::free_node_local(dir, &mut say);
    if args.package {
        return Ok(ExitCode::SUCCESS);
    }
    if args.purge {
        if leave::wipe(dir)? {
            say(&format!("deleted the state in {}", dir.display()));
        }
    } else if dir.exists() {
        say(&format!("kept the state in {} (--purge deletes it)", dir.display()));
    }
    Ok(ExitCode::SUCCESS)
}
