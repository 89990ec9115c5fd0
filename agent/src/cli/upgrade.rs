//! `agent upgrade`: another version of the running agent, without losing a connection.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::time::Duration;

use proto::control::{ReplaceStatus, Request, Response, Status};
use proto::handover::VERSION;
use tokio::time::{Instant, sleep};

use super::exit::{self, ExitError};
use super::install::{unable, write};
use super::{CommandSettings, ask, out};
use crate::app::setup;
use crate::control::{self, CallError};

/// What `--check` prints before the version of the hand-over.
const CAN_TAKE_OVER: &str = "can take over: ";

/// Longest wait for the new version to answer.
const PATIENCE: Duration = Duration::from_secs(10);

/// Replace the running agent by another version without losing a connection
///
/// Checks FILE first, puts it where the agent was started from, keeps the version before beside it as
/// agent.previous, and has the running process become it: every connection and listener goes on. Without FILE, the
/// agent becomes what lies there already, for example after a package was upgraded. Going back to the version
/// before is the same command.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  agent upgrade ./agent-new
  agent upgrade                                 after a package has replaced the binary
  agent upgrade /usr/local/bin/agent.previous   back to the version before")]
pub(crate) struct Args {
    /// The new binary
    #[arg(value_name = "FILE")]
    file: Option<PathBuf>,
    /// Only say whether this binary could replace the running agent
    #[arg(long, hide = true, conflicts_with = "file")]
    check: bool,
}

/// Runs the command.
pub(super) async fn run(args: &Args, settings: &CommandSettings) -> anyhow::Result<ExitCode> {
    if args.check {
        setup::look(&settings.config).member()?;
        out::line(&format!("{CAN_TAKE_OVER}{VERSION}"))?;
        return Ok(ExitCode::SUCCESS);
    }
    let before = ask::status(settings).await?;
    let Some(replace) = before.node.replace.clone() else {
        let text = format!(
            "the running agent has version {}, which can't be replaced without losing its connections; to lose \
             them, put the new binary in its place and run: systemctl restart agent",
            before.node.version
        );
        return Err(ExitError::error(exit::UNAVAILABLE, text));
    };
    let program = Path::new(&replace.program);
    let installed = match &args.file {
        Some(file) => install(file, program, &replace, settings)?,
        None => {
            check(program, program, &replace, settings)?;
            None
        }
    };
    if let Err(error) = become_it(settings).await {
        if let Some(previous) = installed {
            // What runs is what lies there, so that a restart changes nothing.
            let back = fs::read(&previous).and_then(|content| write(program, &content, 0o755));
            back.map_err(|error| unable("put back", program, &error))?;
        }
        return Err(error);
    }
    let after = wait_for(settings, &replace).await?;
    let went_on = after.node.replace.and_then(|replace| replace.last);
    let (connections, ended) = went_on.map_or((0, 0), |last| (last.connections, last.ended));
    let lost = if ended > 0 { format!("; {ended} had to be ended, see the log") } else { String::new() };
    out::line(&format!(
        "version {} replaced version {}; {connections} connections go on{lost}",
        after.node.version, before.node.version
    ))?;
    Ok(ExitCode::SUCCESS)
}

/// Puts a checked binary in the place of the running one; returns where the latter is kept. Nothing is done where it
/// is the very same file.
fn install(
    file: &Path,
    program: &Path,
    replace: &ReplaceStatus,
    settings: &CommandSettings,
) -> anyhow::Result<Option<PathBuf>> {
    let content = fs::read(file).map_err(|error| unable("read", file, &error))?;
    if file.canonicalize().is_ok_and(|file| file == program) {
        check(program, file, replace, settings)?;
        return Ok(None);
    }
    // What is checked is what is installed, whoever may write to the file.
    let next = beside(program, ".next");
    write(&next, &content, 0o755).map_err(|error| unable("write", &next, &error))?;
    let checked = check(&next, file, replace, settings);
    if checked.is_err() {
        let _ = fs::remove_file(&next);
    }
    checked?;
    let previous = beside(program, ".previous");
    let kept = fs::read(program).and_then(|running| write(&previous, &running, 0o755));
    kept.map_err(|error| unable("write", &previous, &error))?;
    fs::rename(&next, program).map_err(|error| unable("replace", program, &error))?;
    Ok(Some(previous))
}

/// The file of the same name with this end.
fn beside(program: &Path, end: &str) -> PathBuf {
    let mut path = program.as_os_str().to_owned();
    path.push(end);
    path.into()
}

/// Whether a binary, which people know as `named`, could go on with what the running agent holds.
fn check(
    binary: &Path,
    named: &Path,
    replace: &ReplaceStatus,
    settings: &CommandSettings,
) -> anyhow::Result<()> {
    let refuse = |why: String| {
        let text = format!("{} can't replace the running agent: {why}; nothing was changed", named.display());
        Err(ExitError::error(exit::DATA, text))
    };
    let mut command = Command::new(binary);
    command.args(["upgrade", "--check", "--state-dir"]).arg(settings.state_dir());
    if let Some(file) = &settings.global.config {
        command.arg("--config").arg(file);
    }
    let ran = match command.output() {
        Ok(ran) => ran,
        Err(error) => return refuse(format!("it does not run ({error})")),
    };
    let (said, wrong) = (String::from_utf8_lossy(&ran.stdout), String::from_utf8_lossy(&ran.stderr));
    let form = said.lines().find_map(|line| line.strip_prefix(CAN_TAKE_OVER)?.parse::<u64>().ok());
    match (form, ran.status.code()) {
        (Some(form), _) if form >= replace.form => Ok(()),
        (Some(form), _) => {
            refuse(format!("it reads hand-overs of version {form}, and this is {}", replace.form))
        }
        (None, Some(code)) if code == i32::from(exit::USAGE) => {
            refuse("it is a version that can't take over connections".to_owned())
        }
        (None, _) => refuse(format!("it says: {}", wrong.lines().next().unwrap_or("nothing"))),
    }
}

/// Has the running agent become what lies where it was started from.
async fn become_it(settings: &CommandSettings) -> anyhow::Result<()> {
    match ask::ask_if_running(settings, &Request::Replace).await? {
        // Who was asked is no more: that is success.
        Err(CallError::Stopped) => Ok(()),
        Err(none) => Err(ExitError::error(exit::UNAVAILABLE, none.to_string())),
        Ok(response) => Err(ask::unexpected(&response)),
    }
}

/// Waits until the agent answers that it has been replaced.
async fn wait_for(settings: &CommandSettings, before: &ReplaceStatus) -> anyhow::Result<Status> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let asked = control::call(settings.runtime_dir(), &Request::Status).await;
        if let Ok(Response::Status(status)) = asked
            && status.node.replace.as_ref().is_none_or(|now| now.last != before.last)
        {
            return Ok(*status);
        }
        if Instant::now() >= deadline {
            let text = "the new version does not answer; see: journalctl -u agent";
            return Err(ExitError::error(exit::UNAVAILABLE, text));
        }
        sleep(Duration::from_millis(20)).await;
    }
}
