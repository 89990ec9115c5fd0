//! Child processes that can be killed, hung, stopped and restarted, and that never outlive the demo.

use std::env;
use std::ffi::OsStr;
use std::fs::OpenOptions;
use std::io;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{ExitStatus, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal};
use tokio::process::{Child, Command};

/// Names the parent of a child. Not one of the agent's own `AGENT_` variables, which are configuration.
const PARENT: &str = "DEMO_OF_AGENT_PID";

/// Longest wait for a killed process to be gone; it takes milliseconds.
const GONE_WITHIN: Duration = Duration::from_secs(2);

/// Makes this process die with the demo that started it, however that ends; does nothing in other processes.
/// Must be called first, on the main thread.
pub(crate) fn die_with_parent() {
    let Some(parent) = env::var(PARENT).ok().and_then(|pid| pid.parse::<i32>().ok()) else { return };
    let armed = rustix::process::set_parent_process_death_signal(Some(Signal::KILL));
    // The parent may have died before the signal was armed.
    let now = rustix::process::getppid().map(|pid| pid.as_raw_nonzero().get());
    if armed.is_err() || now != Some(parent) {
        std::process::exit(0);
    }
}

/// State of a process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum ProcessState {
    /// It runs.
    Running,
    /// It is stopped by SIGSTOP: the kernel accepts connections, nothing is answered.
    Hung,
    /// It was asked to stop, and is finishing.
    Stopping,
    /// It stopped as asked.
    Stopped,
    /// It was killed.
    Killed,
    /// It ended unexpectedly.
    Failed,
}

impl ProcessState {
    /// Its name on the screen.
    pub(super) fn as_str(self) -> &'static str {
        match self {
            ProcessState::Running => "running",
            ProcessState::Hung => "hung",
            ProcessState::Stopping => "stopping",
            ProcessState::Stopped => "stopped",
            ProcessState::Killed => "killed",
            ProcessState::Failed => "failed",
        }
    }

    /// Whether there is a process.
    pub(super) fn is_alive(self) -> bool {
        matches!(self, ProcessState::Running | ProcessState::Hung | ProcessState::Stopping)
    }
}

/// A child process. Dropping this kills it.
pub(super) struct Process {
    child: Child,
    state: ProcessState,
}

impl Process {
    /// Starts `program`, with its output appended to `log`.
    pub(super) fn start(program: &Path, args: &[&OsStr], log: &Path) -> io::Result<Process> {
        let log = OpenOptions::new().create(true).append(true).open(log)?;
        let mut command = Command::new(program);
        command
            .args(args)
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            // Ctrl-C is for the demo, which then stops its children itself.
            .process_group(0)
            .env(PARENT, std::process::id().to_string());
        // Configuration of an agent on this machine is not for those of the demo.
        for (key, _) in env::vars_os() {
            if key.as_encoded_bytes().starts_with(b"AGENT_") {
                command.env_remove(key);
            }
        }
        Ok(Process { child: command.spawn()?, state: ProcessState::Running })
    }

    /// Its current state.
    pub(super) fn state(&mut self) -> ProcessState {
        if self.state.is_alive()
            && let Ok(Some(status)) = self.child.try_wait()
        {
            self.state = self.ended(status);
        }
        self.state
    }

    fn ended(&self, status: ExitStatus) -> ProcessState {
        match (self.state, status.signal()) {
            (_, Some(signal)) if signal == Signal::KILL.as_raw() => ProcessState::Killed,
            (ProcessState::Stopping, _) => ProcessState::Stopped,
            _ => ProcessState::Failed,
        }
    }

    /// Kills it at once, as a crash would.
    pub(super) fn kill(&mut self) {
        self.signal(Signal::KILL);
        let begun = Instant::now();
        while self.state().is_alive() && begun.elapsed() < GONE_WITHIN {
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    /// Suspends it in the middle of whatever it does.
    pub(super) fn hang(&mut self) {
        if self.state() == ProcessState::Running {
            self.signal(Signal::STOP);
            self.state = ProcessState::Hung;
        }
    }

    /// Resumes it.
    pub(super) fn resume(&mut self) {
        if self.state() == ProcessState::Hung {
            self.signal(Signal::CONT);
            self.state = ProcessState::Running;
        }
    }

    /// Asks it to stop.
    pub(super) fn stop(&mut self) {
        self.resume();
        if self.state() == ProcessState::Running {
            self.signal(Signal::TERM);
            self.state = ProcessState::Stopping;
        }
    }

    /// Only sent to a process that was not reaped yet, so that its id can't be another's.
    fn signal(&mut self, signal: Signal) {
        let pid = self.child.id().and_then(|id| i32::try_from(id).ok()).and_then(Pid::from_raw);
        if let Some(pid) = pid {
            // It may have ended by itself at this moment.
            let _ = rustix::process::kill_process(pid, signal);
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.kill();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn start(script: &str, dir: &Path) -> Process {
        let args = ["-c", script].map(OsStr::new);
        Process::start(Path::new("/bin/sh"), &args, &dir.join("log")).unwrap()
    }

    /// The output of the process, once it contains `wanted`.
    async fn printed(dir: &Path, wanted: &str) -> String {
        let begun = Instant::now();
        loop {
            let text = std::fs::read_to_string(dir.join("log")).unwrap_or_default();
            if text.contains(wanted) {
                return text;
            }
            assert!(begun.elapsed() < Duration::from_secs(10), "no {wanted} in {text}");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    async fn until(process: &mut Process, state: ProcessState) {
        let begun = Instant::now();
        while process.state() != state {
            assert!(begun.elapsed() < Duration::from_secs(10), "{:?} is not {state:?}", process.state());
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    /// The state letter of proc(5), or none when there is no such process.
    fn letter(pid: u32) -> Option<char> {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        stat.rsplit_once(") ")?.1.chars().next()
    }

    #[tokio::test]
    async fn a_process_is_killed_hung_stopped_and_never_outlives_its_handle() {
        let dir = tempfile::tempdir().unwrap();
        let mut process = start("trap 'exit 0' TERM; echo up; while :; do sleep 0.01; done", dir.path());
        printed(dir.path(), "up").await;
        assert_eq!(process.state(), ProcessState::Running);
        let pid = process.child.id().unwrap();
        process.hang();
        assert_eq!(process.state(), ProcessState::Hung);
        let begun = Instant::now();
        while letter(pid) != Some('T') {
            assert!(begun.elapsed() < Duration::from_secs(10), "it goes on");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        process.resume();
        process.stop();
        until(&mut process, ProcessState::Stopped).await;

        let mut hung = start("while :; do sleep 0.01; done", dir.path());
        hung.hang();
        hung.kill();
        assert_eq!(hung.state(), ProcessState::Killed);
        let mut failed = start("exit 3", dir.path());
        until(&mut failed, ProcessState::Failed).await;

        let dropped = start("while :; do sleep 0.01; done", dir.path());
        let pid = dropped.child.id().unwrap();
        drop(dropped);
        assert_eq!(letter(pid), None);
    }

    #[tokio::test]
    async fn a_child_has_its_parents_pid_and_no_agent_variables() {
        let dir = tempfile::tempdir().unwrap();
        let _process = start("env; echo end=here", dir.path());
        let text = printed(dir.path(), "end=here").await;
        assert!(text.contains(&format!("{PARENT}={}\n", std::process::id())), "{text}");
        assert!(!text.lines().any(|line| line.starts_with("AGENT_")), "{text}");
    }
}
