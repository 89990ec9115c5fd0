//! Processes on a node.

use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use rustix::process::{Pid, Signal, kill_process_group};

use crate::wait::eventually;

/// How a command ended.
#[derive(Debug)]
pub struct Ran {
    /// The command, for messages.
    pub command: String,
    /// Its exit code; `None` when a signal ended it.
    pub code: Option<i32>,
    /// Its standard output.
    pub out: String,
    /// Its standard error.
    pub err: String,
}

impl Ran {
    pub(crate) fn of(command: String, output: &std::process::Output) -> Ran {
        Ran {
            command,
            code: output.status.code(),
            out: String::from_utf8_lossy(&output.stdout).into_owned(),
            err: String::from_utf8_lossy(&output.stderr).into_owned(),
        }
    }

    /// Its standard output.
    ///
    /// # Errors
    /// It did not succeed.
    pub fn ok(self) -> Result<String> {
        match self.code {
            Some(0) => Ok(self.out),
            _ => bail!("{self}"),
        }
    }

    /// All its output.
    ///
    /// # Errors
    /// It did not end with this exit code.
    pub fn fails_with(self, code: i32) -> Result<String> {
        match self.code {
            Some(is) if is == code => Ok(self.out + &self.err),
            _ => bail!("expected exit code {code}: {self}"),
        }
    }
}

impl std::fmt::Display for Ran {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let code = self.code.map_or_else(|| "by a signal".to_owned(), |code| format!("with {code}"));
        write!(f, "`{}` ended {code}", self.command)?;
        for (name, text) in [("stdout", &self.out), ("stderr", &self.err)] {
            if !text.trim().is_empty() {
                write!(f, "\n{name}: {}", text.trim_end())?;
            }
        }
        Ok(())
    }
}

/// A background process of a test. Dropping it kills it and its children.
pub struct Proc {
    name: String,
    child: Child,
    log: PathBuf,
}

impl Proc {
    /// Starts it in a process group of its own; standard output and error go to one file, in the order in
    /// which they were written.
    pub(crate) fn spawn(name: &str, log: PathBuf, mut command: Command) -> Result<Proc> {
        use std::os::unix::process::CommandExt;
        let out = File::options().append(true).create(true).open(&log)?;
        let child = command
            .stdin(Stdio::piped())
            .stdout(out.try_clone()?)
            .stderr(out)
            .process_group(0)
            .spawn()
            .with_context(|| format!("start {name}"))?;
        Ok(Proc { name: name.to_owned(), child, log })
    }

    /// Types a line into it.
    ///
    /// # Errors
    /// It has ended.
    pub fn types(&mut self, line: &str) -> Result<()> {
        let stdin = self.child.stdin.as_mut().context("it has no input")?;
        writeln!(stdin, "{line}").with_context(|| format!("type into {}", self.name))
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Sends a signal to it and its children.
    ///
    /// # Errors
    /// It has ended.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        let group = i32::try_from(self.pid()).ok().and_then(Pid::from_raw).context("a process id")?;
        kill_process_group(group, signal).with_context(|| format!("signal {signal:?} to {}", self.name))
    }

    /// Whether it runs.
    pub fn is_running(&mut self) -> bool {
        matches!(self.child.try_wait(), Ok(None))
    }

    /// Kills it, as a crash would.
    ///
    /// # Errors
    /// It can't be waited for.
    pub fn kill(&mut self) -> Result<()> {
        let _ = self.signal(Signal::KILL);
        self.child.wait().with_context(|| format!("wait for {}", self.name))?;
        Ok(())
    }

    /// Asks it to stop, and waits until it has.
    ///
    /// # Errors
    /// It has ended before, or does not end in time.
    pub fn stop(&mut self, limit: Duration) -> Result<Option<i32>> {
        self.signal(Signal::TERM)?;
        self.ended(limit)
    }

    /// Waits until it ends by itself, and returns its exit code; `None` when a signal ended it.
    ///
    /// # Errors
    /// It does not end in time.
    pub fn ended(&mut self, limit: Duration) -> Result<Option<i32>> {
        let name = self.name.clone();
        let (status, _) = eventually(&format!("{name} ends"), limit, || {
            self.child.try_wait()?.with_context(|| format!("{name} runs still"))
        })
        .with_context(|| self.tail(30))?;
        Ok(status.code())
    }

    /// All its output.
    ///
    /// # Errors
    /// The log can't be read.
    pub fn log(&self) -> Result<String> {
        Ok(String::from_utf8_lossy(&std::fs::read(&self.log)?).into_owned())
    }

    /// The last lines of its output.
    pub fn tail(&self, lines: usize) -> String {
        tail(&self.log, lines)
    }
}

impl Drop for Proc {
    fn drop(&mut self) {
        if self.is_running() {
            let _ = self.kill();
        }
    }
}

/// The logs of a lab's processes, for a failing test.
#[derive(Clone, Default)]
pub(crate) struct Logs(Arc<Mutex<Vec<PathBuf>>>);

impl Logs {
    /// Adds one.
    pub(crate) fn add(&self, log: &Path) {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if !all.iter().any(|one| one == log) {
            all.push(log.to_owned());
        }
    }

    /// The last lines of each non-empty log.
    pub(crate) fn tails(&self, lines: usize) -> String {
        let all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        all.iter().map(|log| tail(log, lines)).collect()
    }
}

fn tail(log: &Path, lines: usize) -> String {
    let text = std::fs::read(log).map(|bytes| String::from_utf8_lossy(&bytes).into_owned());
    let all: Vec<&str> = text.as_deref().unwrap_or_default().lines().collect();
    if all.is_empty() {
        return String::new();
    }
    let name: PathBuf = log.iter().rev().take(2).collect::<Vec<_>>().into_iter().rev().collect();
    let shown = all[all.len().saturating_sub(lines)..].join("\n  ");
    format!("--- {}, last of {} lines\n  {shown}\n", name.display(), all.len())
}
