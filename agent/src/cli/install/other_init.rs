//! Init systems other than systemd, whose service deploy/install.sh sets up: started, stopped and removed here.

use std::fs;
use std::io;
use std::path::Path;
use std::process::{Command, Stdio};

use super::{out_of, package, unable};
use crate::cli::exit::{self, ExitError};

/// How one of them is used.
#[derive(Debug, Clone, Copy)]
pub(super) struct OtherInit {
    /// The file that says that the service is set up, below the root.
    file: &'static str,
    /// What is in it.
    mark: &'static str,
    /// Starts the service, or again where it waits for the node to become a member.
    start: &'static [&'static str],
    /// Stops it.
    stop: &'static [&'static str],
    /// Has it start at no boot any more.
    disable: &'static [&'static str],
    /// Its files and directories, in the order in which they are removed.
    files: &'static [&'static str],
}

const ALL: [OtherInit; 3] = [
    OtherInit {
        file: "etc/init.d/agent",
        mark: "openrc-run",
        start: &["rc-service", "agent", "start"],
        stop: &["rc-service", "agent", "stop"],
        disable: &["rc-update", "-q", "del", "agent"],
        files: &["etc/init.d/agent"],
    },
    OtherInit {
        file: "etc/init.d/agent",
        mark: "rc.common",
        start: &["/etc/init.d/agent", "start"],
        stop: &["/etc/init.d/agent", "stop"],
        disable: &["/etc/init.d/agent", "disable"],
        files: &["etc/init.d/agent"],
    },
    OtherInit {
        file: "etc/sv/agent/run",
        mark: "agent run",
        start: &["sv", "restart", "agent"],
        stop: &["sv", "force-stop", "agent"],
        disable: &["sv", "exit", "agent"],
        files: &["etc/service/agent", "var/service/agent", "etc/sv/agent"],
    },
];

impl OtherInit {
    /// The one whose service is set up below a root.
    pub(super) fn find(root: &Path) -> Option<OtherInit> {
        ALL.into_iter()
            .find(|one| fs::read_to_string(root.join(one.file)).is_ok_and(|text| text.contains(one.mark)))
    }

    /// Starts the service.
    pub(super) fn start(&self) -> anyhow::Result<()> {
        run(self.start)
    }

    /// Stops it.
    pub(super) fn stop(&self) -> anyhow::Result<()> {
        run(self.stop)
    }

    /// Stops it for good and removes its files, unless they are a package's: then says so, and returns false.
    pub(super) fn remove(&self, root: &Path, say: &mut dyn FnMut(&str)) -> anyhow::Result<bool> {
        self.stop()?;
        run(self.disable)?;
        say("stopped and disabled");
        let program = format!("/{}", package::PROGRAM);
        if fs::read_to_string(root.join(self.file)).is_ok_and(|text| text.contains(&program)) {
            say(&format!("kept the files of the package {}", package::NAME));
            return Ok(false);
        }
        for file in self.files.iter().map(|file| root.join(file)) {
            let Ok(about) = fs::symlink_metadata(&file) else { continue };
            let removed = if about.is_dir() { fs::remove_dir_all(&file) } else { fs::remove_file(&file) };
            removed.map_err(|error: io::Error| unable("remove", &file, &error))?;
            say(&format!("removed {}", file.display()));
        }
        Ok(true)
    }
}

/// Runs a command of the init system, and turns its failure into words.
fn run(command: &[&str]) -> anyhow::Result<()> {
    let [program, arguments @ ..] = command else { return Ok(()) };
    let ran = Command::new(program).args(arguments).stdin(Stdio::null()).output();
    let why = match ran {
        Ok(output) if output.status.success() => return Ok(()),
        Ok(output) => out_of(&output.stderr),
        Err(error) => error.to_string(),
    };
    Err(ExitError::error(exit::UNAVAILABLE, format!("{} failed: {why}", command.join(" "))))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_service_file_is_known() {
        let deploy = Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy");
        for (file, at, first) in [
            ("openrc/agent", "etc/init.d/agent", "rc-service"),
            ("procd/agent", "etc/init.d/agent", "/etc/init.d/agent"),
            ("runit/agent/run", "etc/sv/agent/run", "sv"),
        ] {
            let root = tempfile::tempdir().unwrap();
            assert!(OtherInit::find(root.path()).is_none());
            let at = root.path().join(at);
            fs::create_dir_all(at.parent().unwrap()).unwrap();
            fs::copy(deploy.join(file), at).unwrap();
            assert_eq!(OtherInit::find(root.path()).unwrap().start[0], first, "{file}");
        }
    }
}
