//! Init systems other than systemd, whose service deploy/install.sh sets up: started, stopped and removed here.

use std::fmt::Write as _;
use std::fs;
use std::io;
use std::path::Path;
use std::process::{Command, Stdio};

use proto::config::Config;

use super::{drop_in, out_of, package, unable, write};
use crate::cli::Global;
use crate::cli::exit::{self, ExitError};

/// The variables of the service, which its script reads; beside the configuration.
const VARIABLES: &str = "etc/agent/service.env";

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
        mark: "bin/agent",
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

    /// Has the service see what the command saw: its options and AGENT_* variables.
    pub(super) fn prepare(
        &self,
        root: &Path,
        config: &Config,
        global: &Global,
        environment: impl Iterator<Item = (String, String)>,
        say: &mut dyn FnMut(&str),
    ) -> anyhow::Result<()> {
        let path = root.join(VARIABLES);
        let Some(text) = variables(config, global, environment)? else { return remove(&path, say) };
        if fs::read(&path).is_ok_and(|found| found == text.as_bytes()) {
            return Ok(());
        }
        write(&path, text.as_bytes(), 0o600).map_err(|error| unable("write", &path, &error))?;
        say(&format!("wrote {}", path.display()));
        Ok(())
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
        remove(&root.join(VARIABLES), say)?;
        let program = format!("/{}", package::PROGRAM);
        if fs::read_to_string(root.join(self.file)).is_ok_and(|text| text.contains(&program)) {
            say(&format!("kept the files of the package {}", package::NAME));
            return Ok(false);
        }
        for file in self.files {
            remove(&root.join(file), say)?;
        }
        Ok(true)
    }
}

/// Removes a file or a directory, where it is there.
fn remove(path: &Path, say: &mut dyn FnMut(&str)) -> anyhow::Result<()> {
    let Ok(about) = fs::symlink_metadata(path) else { return Ok(()) };
    let removed = if about.is_dir() { fs::remove_dir_all(path) } else { fs::remove_file(path) };
    removed.map_err(|error: io::Error| unable("remove", path, &error))?;
    say(&format!("removed {}", path.display()));
    Ok(())
}

/// The lines of a shell that set them, unless something else has: a person's own file of the init system comes first.
fn variables(
    config: &Config,
    global: &Global,
    environment: impl Iterator<Item = (String, String)>,
) -> anyhow::Result<Option<String>> {
    let mut all = drop_in::variables(global, environment);
    // The script looks there for a member, and reads no TOML.
    if config.state_dir != Config::default().state_dir && !all.iter().any(|(key, _)| key == "AGENT_STATE_DIR")
    {
        all.push(("AGENT_STATE_DIR".to_owned(), config.state_dir.clone()));
    }
    if let Some(file) = &global.config {
        let file = std::path::absolute(file)?.to_string_lossy().into_owned();
        // It becomes words of a command line.
        if !file.chars().all(|c| c.is_ascii_alphanumeric() || "/._-+@:".contains(c)) {
            let message = format!(
                "\"{file}\" can't be handed to the service of this init system; \
                 name a file by letters, digits and /._-+@: alone"
            );
            return Err(ExitError::error(exit::CONFIG, message));
        }
        all.push(("agent_args".to_owned(), format!("--config {file}")));
    }
    if all.is_empty() {
        return Ok(None);
    }
    let mut text = "# Written by agent install from its own options; overwritten by the next.\n".to_owned();
    for (key, value) in &all {
        let value = value.replace('\'', r"'\''");
        let _ = writeln!(text, "[ -n \"${{{key}+set}}\" ] || {key}='{value}'\nexport {key}");
    }
    Ok(Some(text))
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
            let text = fs::read_to_string(deploy.join(file)).unwrap();
            assert!(text.contains(&format!("/{VARIABLES}")), "{file} does not read what install writes");
        }
    }

    #[test]
    fn the_service_sees_what_the_command_saw() {
        let root = tempfile::tempdir().unwrap();
        let prepare = |state: &str, global: &Global, environment: &[(&str, &str)]| {
            let config = Config { state_dir: state.to_owned(), ..Config::default() };
            let environment = environment.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned()));
            ALL[0].prepare(root.path(), &config, global, environment, &mut |_| ())
        };
        let global = Global { config: Some("/etc/other.toml".into()), ..Global::default() };
        prepare("/srv/it's", &global, &[("AGENT_NODE_NAME", "m 1"), ("PATH", "/bin"), ("AGENT_BIN", "/x")])
            .unwrap();
        let script = "AGENT_NODE_NAME=mine; . \"$1\"; echo \"$AGENT_NODE_NAME|$AGENT_STATE_DIR|$agent_args\"";
        let file = root.path().join(VARIABLES);
        let output = Command::new("sh").args(["-euc", script, "sh"]).arg(&file).output().unwrap();
        assert_eq!(String::from_utf8(output.stdout).unwrap(), "mine|/srv/it's|--config /etc/other.toml\n");
        let global = Global { config: Some("/etc/$(reboot).toml".into()), ..Global::default() };
        assert!(prepare("/srv", &global, &[]).is_err());
        prepare(&Config::default().state_dir, &Global::default(), &[]).unwrap();
        assert!(!file.exists());
    }
}
