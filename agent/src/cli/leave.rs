//! `agent leave`: this node goes for good.

use std::fs;
use std::io;
use std::path::Path;
use std::process::ExitCode;

use proto::control::Request;

use super::exit::{self, Failure};
use super::{Settings, ask, install, out, settings};
use crate::control;

/// Take this node out of the cluster for good
///
/// A stop or a restart is not a leave: a node that is only off stays a member. With --force it also
/// forgets the cluster and its own identity, even when no agent runs here or no other node answers; after
/// that it can join again as a new node.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Also delete this node's identity and state, whatever the others say
    #[arg(long)]
    force: bool,
}

/// Runs the command.
pub(super) async fn run(args: &Args, settings: &Settings) -> anyhow::Result<ExitCode> {
    if !args.force {
        return ask::tell(settings, &Request::Leave).await;
    }
    match ask::tell(settings, &Request::Leave).await {
        Ok(_) => {}
        Err(error) => out::remark(&format!("the others were not told: {error:#}")),
    }
    install::stop(&mut |line| out::remark(line))?;
    if control::is_running(settings.runtime_dir()) {
        let message = "an agent still runs here, in the foreground; stop it, then repeat this command";
        return Err(Failure::error(exit::UNAVAILABLE, message));
    }
    let dir = settings.state_dir();
    let forgotten = wipe(dir)?;
    out::line(&match forgotten {
        0 => format!("there was no state in {}", dir.display()),
        _ => format!("forgot the cluster and this node's identity ({})", dir.display()),
    })?;
    Ok(ExitCode::SUCCESS)
}

/// Deletes the files of a state directory and says how many there were. Refuses a directory that holds
/// anything but files: it is someone else's, and `--state-dir` was a mistake.
pub(super) fn wipe(dir: &Path) -> anyhow::Result<usize> {
    let entries = match fs::read_dir(dir) {
        Ok(entries) => entries.collect::<Result<Vec<_>, _>>(),
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(0),
        Err(error) => Err(error),
    };
    let unable = |error: io::Error| {
        let code = match error.kind() {
            io::ErrorKind::PermissionDenied => exit::NO_PERMISSION,
            _ => exit::CANT_CREATE,
        };
        Failure::error(
            code,
            format!("can't delete the state in {}: {}", dir.display(), settings::plain(&error)),
        )
    };
    let entries = entries.map_err(unable)?;
    for entry in &entries {
        if !entry.file_type().map_err(unable)?.is_file() {
            let message = format!(
                "{} is not the agent's: nothing was deleted in {}",
                entry.path().display(),
                dir.display()
            );
            return Err(Failure::error(exit::DATA, message));
        }
    }
    for entry in &entries {
        fs::remove_file(entry.path()).map_err(unable)?;
    }
    Ok(entries.len())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_directory_that_is_not_ours_is_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("identity"), "x").unwrap();
        fs::create_dir(dir.path().join("home")).unwrap();
        assert!(wipe(dir.path()).unwrap_err().to_string().contains("nothing was deleted"));
        assert!(dir.path().join("identity").exists());

        fs::remove_dir(dir.path().join("home")).unwrap();
        assert_eq!(wipe(dir.path()).unwrap(), 1);
        assert_eq!(wipe(dir.path()).unwrap(), 0);
        assert_eq!(wipe(&dir.path().join("absent")).unwrap(), 0);
    }
}
