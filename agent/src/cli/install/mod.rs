//! `agent install`: this binary as a service of systemd. Each step looks first and only then acts, so that
//! it can be repeated at any time, and says on a line what it found or did.
//!
//! Where a package of the distribution has brought binary and unit, these are used and never written to.

use std::fs;
use std::io::{self, Read, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::Context;

use super::exit::{self, ExitError};
use super::{CommandSettings, out, settings};
use crate::doctor::UNIT;

mod drop_in;
mod other_init;
mod package;
#[cfg(test)]
mod tests;

use other_init::OtherInit;
pub(super) use package::Package;

const SERVICE: &str = "agent.service";
const UNIT_PATH: &str = "etc/systemd/system/agent.service";
const DROP_IN_PATH: &str = "etc/systemd/system/agent.service.d/10-install.conf";
const BINARY_PATH: &str = "usr/local/bin/agent";
/// What an upgrade puts behind the binary's name: the version before, and the next while it is checked.
pub(super) const PREVIOUS: &str = ".previous";
pub(super) const NEXT: &str = ".next";
/// The files of the state directory of which the unit wants one, or it starts nothing.
const MEMBER: [&str; 3] = ["node", "node.prev", "cluster"];

/// Install this binary and its systemd unit, and start the service
///
/// Running it again is safe; running it from a newer binary upgrades the installed one. --config, --state-dir,
/// --runtime-dir, the log options and AGENT_* variables of this command are written into the
/// unit too. Where a package has installed the agent, its binary and unit are used.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  agent install
  ./agent-new install        upgrades the installed binary and restarts the service")]
pub(crate) struct Args {
    /// Do not start the service until the next boot
    #[arg(long)]
    no_start: bool,
}

/// Runs the command.
pub(super) fn run(args: &Args, settings: &CommandSettings) -> anyhow::Result<ExitCode> {
    // A closed stdout must not stop an installation half-way.
    let mut say = |line: &str| drop(out::line(line));
    install(settings, !args.no_start, &mut say)?;
    Ok(ExitCode::SUCCESS)
}

/// Whether there can be a service here: this is root, and systemd runs, or another init system has the service already.
pub(crate) fn is_possible() -> bool {
    rustix::process::geteuid().is_root() && (systemd_runs() || OtherInit::find(Path::new("/")).is_some())
}

/// Refuses to set up a service for this program where a package has brought another one.
///
/// # Errors
/// Says which, and what to do.
pub(super) fn check_program() -> anyhow::Result<()> {
    match Package::find(Path::new("/")) {
        Some(package) if is_possible() => package.must_be(Path::new("/"), &running_program()?),
        _ => Ok(()),
    }
}

/// Whether systemd runs this machine (sd_booted(3)).
fn systemd_runs() -> bool {
    Path::new("/run/systemd/system").is_dir()
}

/// Installs the service for `settings`, and starts it, or restarts it when something changed. Returns when
/// the agent says that it is ready. Blocks: call it where a thread may wait.
///
/// Each step is handed to `say` as a line of words.
pub(crate) fn install(
    settings: &CommandSettings,
    start: bool,
    say: &mut dyn FnMut(&str),
) -> anyhow::Result<()> {
    must_be_root("install the service")?;
    if !systemd_runs() {
        return start_elsewhere(settings, start, say);
    }
    let binary = running_program()?;
    TargetHost { root: PathBuf::from("/"), systemctl: &systemctl }.install(&binary, settings, start, say)
}

/// The same without systemd: the service is there already.
fn start_elsewhere(settings: &CommandSettings, start: bool, say: &mut dyn FnMut(&str)) -> anyhow::Result<()> {
    let Some(init) = OtherInit::find(Path::new("/")) else {
        let message = "systemd is not running, so no service can be installed; deploy/install.sh does it for \
                       OpenRC, procd and runit; have any other init system run this as root: agent run";
        return Err(ExitError::error(exit::UNAVAILABLE, message));
    };
    init.prepare(Path::new("/"), &settings.config, &settings.global, settings::environment(), say)?;
    if start {
        init.start()?;
        say("started");
    }
    Ok(())
}

/// The program that runs, byte for byte. By /proc/self/exe, which is the very file that was started: at the
/// path that it was started from anyone who may write there can have put another by now.
fn running_program() -> anyhow::Result<Vec<u8>> {
    let mut content = Vec::new();
    let mut file = fs::File::open("/proc/self/exe").context("open the running program")?;
    file.read_to_end(&mut content).context("read the running program")?;
    Ok(content)
}

/// Stops the service where it is installed and runs; nothing elsewhere.
pub(super) fn stop(say: &mut dyn FnMut(&str)) -> anyhow::Result<()> {
    match OtherInit::find(Path::new("/")) {
        _ if systemd_runs() => {
            if systemctl(&["is-active", "--quiet", SERVICE]).is_err() {
                return Ok(());
            }
            systemctl(&["stop", SERVICE])?;
        }
        Some(init) => init.stop()?,
        None => return Ok(()),
    }
    say("stopped the service");
    Ok(())
}

/// Stops and removes the service and the installed binary. The state stays.
pub(super) fn uninstall(say: &mut dyn FnMut(&str)) -> anyhow::Result<()> {
    must_be_root("remove the service")?;
    let nothing = |_: &[&str]| Ok(());
    let systemctl: &dyn Fn(&[&str]) -> anyhow::Result<()> =
        if systemd_runs() { &systemctl } else { &nothing };
    if let (false, Some(init)) = (systemd_runs(), OtherInit::find(Path::new("/")))
        && !init.remove(Path::new("/"), say)?
    {
        return Ok(());
    }
    TargetHost { root: PathBuf::from("/"), systemctl }.uninstall(say)
}

fn must_be_root(what: &str) -> anyhow::Result<()> {
    if rustix::process::geteuid().is_root() {
        return Ok(());
    }
    Err(ExitError::error(exit::NO_PERMISSION, format!("only root can {what}; repeat it with sudo")))
}

/// Runs systemctl and turns its failure into words.
fn systemctl(args: &[&str]) -> anyhow::Result<()> {
    let output = std::process::Command::new("systemctl").args(args).output().context("run systemctl")?;
    if output.status.success() {
        return Ok(());
    }
    let message = format!(
        "systemctl {} failed: {}; see: journalctl -u agent -n 20",
        args.join(" "),
        out_of(&output.stderr)
    );
    Err(ExitError::error(exit::UNAVAILABLE, message))
}

/// What a command gave as the reason of its failure.
fn out_of(stderr: &[u8]) -> String {
    String::from_utf8_lossy(stderr).lines().next().unwrap_or("no reason given").to_owned()
}

/// The machine that is installed on: `/`, or a directory in tests.
struct TargetHost<'a> {
    root: PathBuf,
    systemctl: &'a dyn Fn(&[&str]) -> anyhow::Result<()>,
}

impl TargetHost<'_> {
    fn install(
        &self,
        binary: &[u8],
        settings: &CommandSettings,
        start: bool,
        say: &mut dyn FnMut(&str),
    ) -> anyhow::Result<()> {
        let package = Package::find(&self.root);
        let program = if package.is_some() { package::PROGRAM } else { BINARY_PATH };
        let drop_in =
            drop_in::text(&settings.config, &settings.global, settings::environment(), Path::new(program))?;
        let mut changed = match &package {
            Some(package) => {
                package.must_be(&self.root, binary)?;
                say(&format!("using the unit and the binary of the package {}", package::NAME));
                // They would be used in place of the package's.
                let unit = self.put(UNIT_PATH, None, say)?;
                self.put(BINARY_PATH, None, say)? || unit
            }
            None => {
                let placed = self.put_binary(binary, say)?;
                self.put(UNIT_PATH, Some(UNIT), say)? || placed
            }
        };
        changed |= self.put(DROP_IN_PATH, drop_in.as_deref(), say)?;
        if changed {
            (self.systemctl)(&["daemon-reload"])?;
        }
        (self.systemctl)(&["enable", "--quiet", SERVICE])?;
        say("enabled at boot");
        let state = self.root.join(settings.state_dir().strip_prefix("/").unwrap_or(settings.state_dir()));
        if start && !MEMBER.iter().any(|file| state.join(file).exists()) {
            say(
                "not started: this node is not a member of a cluster yet; run: agent init or: agent join SEED",
            );
        } else if start {
            // A running agent keeps its old binary until it is restarted; an unchanged one is left alone.
            (self.systemctl)(&[if changed { "restart" } else { "start" }, SERVICE])?;
            say("started");
        }
        Ok(())
    }

    fn uninstall(&self, say: &mut dyn FnMut(&str)) -> anyhow::Result<()> {
        let package = Package::find(&self.root);
        if package.is_some() || self.root.join(UNIT_PATH).exists() {
            (self.systemctl)(&["disable", "--quiet", "--now", SERVICE])?;
            say("stopped and disabled");
        }
        let mut changed = self.put(DROP_IN_PATH, None, say)?;
        changed |= self.put(UNIT_PATH, None, say)?;
        if changed {
            (self.systemctl)(&["daemon-reload"])?;
        }
        let mut binary = self.put(BINARY_PATH, None, say)?;
        // What an upgrade has left beside it.
        for end in [PREVIOUS, NEXT] {
            binary |= self.put(&format!("{BINARY_PATH}{end}"), None, say)?;
        }
        match package {
            Some(package) => say(&format!(
                "kept the unit and the binary of the package {}; to remove them: {}",
                package::NAME,
                package.remove
            )),
            None if !changed && !binary => say("nothing was installed"),
            None => {}
        }
        Ok(())
    }

    /// Puts the program in its place, unless it is there.
    fn put_binary(&self, content: &[u8], say: &mut dyn FnMut(&str)) -> anyhow::Result<bool> {
        let target = self.root.join(BINARY_PATH);
        let placed =
            fs::symlink_metadata(&target).is_ok_and(|about| about.is_file() && is_ours(&about, 0o755));
        if placed && fs::read(&target).is_ok_and(|installed| installed == content) {
            say(&format!("{} is up to date", target.display()));
            return Ok(false);
        }
        write(&target, content, 0o755).map_err(|error| unable("write", &target, &error))?;
        say(&format!("wrote {}", target.display()));
        Ok(true)
    }

    /// Makes a file hold a text, or be absent, and says whether that changed anything.
    fn put(&self, path: &str, text: Option<&str>, say: &mut dyn FnMut(&str)) -> anyhow::Result<bool> {
        let path = self.root.join(path);
        match text {
            None => match fs::remove_file(&path) {
                Ok(()) => {
                    say(&format!("removed {}", path.display()));
                    // Fails while others keep files there, which is as it should be.
                    if path.extension().is_some_and(|extension| extension == "conf") {
                        let _ = path.parent().map(fs::remove_dir);
                    }
                    Ok(true)
                }
                Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
                Err(error) => Err(unable("remove", &path, &error)),
            },
            Some(text) if fs::read(&path).is_ok_and(|found| found == text.as_bytes()) => {
                say(&format!("{} is up to date", path.display()));
                Ok(false)
            }
            Some(text) => {
                write(&path, text.as_bytes(), 0o644).map_err(|error| unable("write", &path, &error))?;
                say(&format!("wrote {}", path.display()));
                Ok(true)
            }
        }
    }
}

pub(super) fn unable(act: &str, path: &Path, error: &io::Error) -> anyhow::Error {
    let code = match error.kind() {
        io::ErrorKind::PermissionDenied => exit::NO_PERMISSION,
        _ => exit::CANT_CREATE,
    };
    ExitError::error(code, format!("can't {act} {}: {}", path.display(), settings::plain(error)))
}

/// Whether a file belongs to whoever installs and has this mode.
fn is_ours(about: &fs::Metadata, mode: u32) -> bool {
    about.uid() == rustix::process::geteuid().as_raw() && about.mode() & 0o7777 == mode
}

/// Writes a file as a whole or not at all, also when it is a binary that runs. It belongs to whoever installs,
/// root outside of tests, with that one's group: some directories would give it theirs.
pub(super) fn write(path: &Path, content: &[u8], mode: u32) -> io::Result<()> {
    let dir = path.parent().unwrap_or(Path::new("/"));
    fs::create_dir_all(dir)?;
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let fresh = dir.join(format!(".{name}.{}", std::process::id()));
    // Left by one that was killed, or a trap: never written through.
    let _ = fs::remove_file(&fresh);
    let written = (|| {
        let mut file = fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(&fresh)?;
        file.write_all(content)?;
        let (user, group) = (rustix::process::geteuid(), rustix::process::getegid());
        std::os::unix::fs::fchown(&file, Some(user.as_raw()), Some(group.as_raw()))?;
        // The umask may have taken bits away.
        file.set_permissions(fs::Permissions::from_mode(mode))?;
        file.sync_all()?;
        fs::rename(&fresh, path)?;
        // Else a power cut may bring the old name back, or none.
        fs::File::open(dir)?.sync_all()
    })();
    if written.is_err() {
        let _ = fs::remove_file(&fresh);
    }
    written
}
