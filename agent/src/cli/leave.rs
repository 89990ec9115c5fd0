//! `agent leave`: this node goes for good.

use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;

use proto::control::Request;

use super::exit::{self, ExitError};
use super::kubernetes::{self, Removal};
use super::{CommandSettings, ask, install, out};
use crate::membership::disk::node_local_of;
use crate::state::StateDir;
use crate::{control, vip};

/// Time for an agent to end after it has left: it gives connections 5 s to finish.
const ENDS: Duration = Duration::from_secs(15);

/// Between two looks whether it has.
const POLL: Duration = Duration::from_millis(50);

/// Remove this node from the cluster for good
///
/// Stopping or restarting the agent does not do this: a node that is off stays a member. With --force,
/// the node also deletes its state and identity, even if no agent runs here or no other node answers;
/// after that it can join again as a new node.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Also delete this node's identity and state, even if no other node answers
    #[arg(long)]
    force: bool,
}

/// Runs the command.
pub(super) async fn run(args: &Args, settings: &CommandSettings) -> anyhow::Result<ExitCode> {
    if !args.force {
        kubernetes::refuse_while_used(settings, Removal::Node).await?;
    }
    let asked = ask::run_and_print(settings, &Request::Leave).await;
    let left = asked.is_ok();
    match asked {
        Err(error) if !args.force => return Err(error),
        Err(error) => out::warn(&format!("the other members were not notified: {error:#}")),
        Ok(_) => {}
    }
    // A service would only come back to say that there is no cluster.
    install::stop(&mut |line| out::warn(line))?;
    let dir = settings.runtime_dir();
    let runs = if left { !ended(dir).await } else { control::is_running(dir) };
    if !args.force {
        return Ok(ExitCode::SUCCESS);
    }
    if runs {
        let message = "an agent is still running here in the foreground; stop it and repeat this command";
        return Err(ExitError::error(exit::UNAVAILABLE, message));
    }
    let dir = settings.state_dir();
    free_node_local(dir, &mut |line| out::warn(line));
    out::line(&match wipe(dir)? {
        false => format!("there was no state in {}", dir.display()),
        true => format!("deleted the state and the identity of this node ({})", dir.display()),
    })?;
    Ok(ExitCode::SUCCESS)
}

/// Waits for the agent that has left: `agent leave && agent join INVITE` is to find none. False: one still runs.
async fn ended(runtime_dir: &Path) -> bool {
    for _ in 0..ENDS.as_millis() / POLL.as_millis() {
        if !control::is_running(runtime_dir) {
            return true;
        }
        tokio::time::sleep(POLL).await;
    }
    false
}

/// Takes the node-local address from lo where an agent has left it, as one that is stopped or killed does.
pub(super) fn free_node_local(dir: &Path, say: &mut dyn FnMut(&str)) {
    if !dir.is_dir() {
        return;
    }
    let left = node_local_of(&StateDir::look(dir));
    let names: Vec<String> = left.iter().map(ToString::to_string).collect();
    match vip::remove_from_lo(&left) {
        Ok(()) if left.is_empty() => {}
        Ok(()) => say(&format!("removed the node-local address {} from lo", names.join(" and "))),
        Err(error) => {
            let names = names.join(" and ");
            say(&format!("cannot remove the node-local address {names} from lo: {error}"));
        }
    }
}

/// Deletes an agent's files in a state directory, and says whether there was one. What others put there
/// stays, and is named.
pub(super) fn wipe(dir: &Path) -> anyhow::Result<bool> {
    if !dir.is_dir() {
        return Ok(false);
    }
    for foreign in StateDir::open(dir)?.purge()? {
        out::warn(&format!("{} does not belong to the agent and was kept", foreign.display()));
    }
    Ok(true)
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::state::StateFile;

    #[test]
    fn only_what_is_ours_is_deleted() {
        let dir = tempfile::tempdir().unwrap();
        let state = dir.path().join("state");
        StateDir::open(&state).unwrap().write(StateFile::first("identity"), &"x").unwrap();
        fs::write(state.join("theirs"), "y").unwrap();
        assert!(wipe(&state).unwrap());
        assert!(!state.join("identity").exists());
        assert!(state.join("theirs").exists());

        fs::remove_file(state.join("theirs")).unwrap();
        assert!(wipe(&state).unwrap());
        assert!(!state.exists());
        assert!(!wipe(&state).unwrap());
    }
}
