//! `agent upgrade`: another version of the running agent, without losing a connection.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

use proto::control::{Request, Status};
use proto::handover::VERSION;

use super::exit::{self, ExitError};
use super::install::{NEXT, PREVIOUS, Package, unable, write};
use super::{CommandSettings, ask, out, steps};
use crate::app::setup;
use crate::control::CallError;

/// What `--check` prints: that something else has ended well says nothing.
const CAN_TAKE_OVER: &str = "can take over";

/// Replace the running agent by another version without losing a connection
///
/// Checks FILE first, puts it where the agent was started from, keeps the version before beside it as
/// agent.previous, and has the running process become it: every connection and listener goes on. Without FILE, the
/// agent becomes what lies there already, for example after a package was upgraded. Going back to the version
/// before is the same command. An agent from a package is upgraded by the package manager, which loses no connection
/// either.
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
    /// Only say whether this binary could take over a hand-over of this version
    #[arg(long, hide = true, value_name = "VERSION")]
    check: Option<u64>,
}

/// Runs the command.
pub(super) async fn run(args: &Args, settings: &CommandSettings) -> anyhow::Result<ExitCode> {
    if let Some(version) = args.check {
        setup::look(&settings.config).member()?;
        if version > VERSION {
            let text = format!("it reads hand-overs of version {VERSION}, and this is {version}");
            return Err(ExitError::error(exit::DATA, text));
        }
        out::line(CAN_TAKE_OVER)?;
        return Ok(ExitCode::SUCCESS);
    }
    let before = ask::status(settings).await?;
    if before.node.program.is_empty() {
        let text = format!(
            "the running agent has version {}, which can't be replaced without losing its connections; to lose \
             them, put the new binary in its place and run: systemctl restart agent",
            before.node.version
        );
        return Err(ExitError::error(exit::UNAVAILABLE, text));
    }
    let program = Path::new(&before.node.program);
    if let (Some(package), true) =
        (Package::find(Path::new("/")), Package::has(program) && args.file.is_some())
    {
        return Err(package.refuses_upgrade());
    }
    let installed = match &args.file {
        Some(file) => install(file, program, settings)?,
        None => {
            check(program, program, settings)?;
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
    let is_other = |status: &Status| status.node.replaced_unix_ms != before.node.replaced_unix_ms;
    let Some(after) = steps::status_when(settings, steps::PATIENCE, is_other).await.ok().filter(is_other)
    else {
        let text = "the new version does not answer; see: journalctl -u agent";
        return Err(ExitError::error(exit::UNAVAILABLE, text));
    };
    out::line(&format!(
        "version {} replaced version {}; {} connections go on",
        after.node.version, before.node.version, after.node.replaced_connections
    ))?;
    Ok(ExitCode::SUCCESS)
}

/// Puts a checked binary in the place of the running one; returns where the latter is kept. Nothing is done where it
/// is the very same file.
fn install(file: &Path, program: &Path, settings: &CommandSettings) -> anyhow::Result<Option<PathBuf>> {
    let content = fs::read(file).map_err(|error| unable("read", file, &error))?;
    if file.canonicalize().is_ok_and(|file| file == program) {
        check(program, file, settings)?;
        return Ok(None);
    }
    // What is checked is what is installed, whoever may write to the file.
    let next = beside(program, NEXT);
    write(&next, &content, 0o755).map_err(|error| unable("write", &next, &error))?;
    let checked = check(&next, file, settings);
    if checked.is_err() {
        let _ = fs::remove_file(&next);
    }
    checked?;
    let previous = beside(program, PREVIOUS);
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
fn check(binary: &Path, named: &Path, settings: &CommandSettings) -> anyhow::Result<()> {
    let mut command = Command::new(binary);
    command.args(["upgrade", "--check", &VERSION.to_string(), "--state-dir"]).arg(settings.state_dir());
    if let Some(file) = &settings.global.config {
        command.arg("--config").arg(file);
    }
    let why = match command.output() {
        Ok(ran) if ran.status.success() && ran.stdout.starts_with(CAN_TAKE_OVER.as_bytes()) => return Ok(()),
        Ok(ran) if ran.status.code() == Some(i32::from(exit::USAGE)) => {
            "it is of a version that can't take over connections".to_owned()
        }
        Ok(ran) => String::from_utf8_lossy(&ran.stderr).lines().next().unwrap_or("it fails").to_owned(),
        Err(error) => error.to_string(),
    };
    let text = format!("{} can't replace the running agent: {why}; nothing was changed", named.display());
    Err(ExitError::error(exit::DATA, text))
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
