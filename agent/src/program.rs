//! Programs of the operator, which run with the agent's rights: with a clean environment, and in a process group of
//! their own, so that what they start can be ended with them.

use std::path::Path;

use rustix::process::{Pid, Signal, kill_process_group};
use tokio::process::{Child, Command};

/// A command without anything of the agent's own environment. Killed when it is dropped.
pub(crate) fn command(program: &Path) -> Command {
    let mut command = Command::new(program);
    command
        .env_clear()
        .env("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin")
        .current_dir("/")
        .process_group(0)
        .kill_on_drop(true);
    command
}

/// Kills the program and all that it started when it is dropped.
pub(crate) struct ProcessGroup(Option<u32>);

impl ProcessGroup {
    /// That of a child which [`command`] has started.
    pub(crate) fn of(child: &Child) -> ProcessGroup {
        ProcessGroup(child.id())
    }

    /// Leaves to itself what the program has started.
    pub(crate) fn release(mut self) {
        self.0 = None;
    }
}

impl Drop for ProcessGroup {
    fn drop(&mut self) {
        let pid = self.0.and_then(|id| i32::try_from(id).ok()).and_then(Pid::from_raw);
        if let Some(pid) = pid {
            let _ = kill_process_group(pid, Signal::KILL);
        }
    }
}
