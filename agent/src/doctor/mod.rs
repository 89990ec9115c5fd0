//! What `agent doctor` reads of this machine: files of the service, of Kubernetes and of the kernel. Nothing
//! is evaluated here, and nothing is kept. It blocks on file I/O: call it from a blocking thread.

mod clients;
mod kernel;
#[cfg(test)]
mod tests;

use std::fs;
use std::io::{self, Read};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use proto::doctor::facts::{Distribution, KubeClient, SystemdService, UntrustedFile};
use proto::doctor::mesh::Firewall;

pub(crate) use kernel::sysctl;

use crate::trusted;

/// Larger than any unit or kubeconfig; a larger file is read up to here.
const MAX_FILE: u64 = 256 * 1024;

/// The unit, as packages ship it and `agent install` writes it.
pub(crate) const UNIT: &str = include_str!("../../../deploy/systemd/agent.service");

/// Where systemd looks for units, in order of precedence.
const UNIT_DIRS: [&str; 5] = [
    "etc/systemd/system",
    "run/systemd/system",
    "usr/local/lib/systemd/system",
    "usr/lib/systemd/system",
    "lib/systemd/system",
];

/// The drop-in that `agent install` writes.
const OWN_DROP_IN: &str = "10-install.conf";

/// Where to look.
#[derive(Debug, Clone)]
pub(crate) struct HostPaths {
    /// The root of the machine's files.
    pub(crate) root: PathBuf,
    /// The agent's state.
    pub(crate) state_dir: PathBuf,
    /// Its control socket.
    pub(crate) socket: PathBuf,
    /// The unit that this binary contains.
    pub(crate) unit: &'static str,
    /// The files that the agent reads and trusts, besides its configuration.
    pub(crate) believed: Vec<PathBuf>,
}

/// What was read.
#[derive(Debug, Default)]
pub(crate) struct HostFiles {
    pub(crate) is_member: bool,
    pub(crate) service: Option<SystemdService>,
    pub(crate) loose: Vec<(String, u32)>,
    pub(crate) untrusted: Vec<UntrustedFile>,
    pub(crate) unreadable: Vec<String>,
    pub(crate) distribution: Option<Distribution>,
    /// Their host names are not resolved yet.
    pub(crate) clients: Vec<KubeClient>,
    pub(crate) own_balancer: bool,
}

impl HostPaths {
    /// Reads everything.
    pub(crate) fn read(&self) -> HostFiles {
        let mut files = HostFiles {
            is_member: self.state_dir.join("node").exists(),
            service: self.service(),
            ..HostFiles::default()
        };
        self.modes(&mut files);
        clients::read(&self.root, &mut files);
        files
    }

    fn service(&self) -> Option<SystemdService> {
        if !self.root.join("run/systemd/system").is_dir() {
            return None;
        }
        let mut service = SystemdService::default();
        for dir in UNIT_DIRS {
            let unit = self.root.join(dir).join("agent.service");
            if let (None, Ok(Some(text))) = (&service.unit, text(&unit)) {
                // A package has the program elsewhere, see deploy/package.
                service.as_shipped = text.replace("/usr/bin/agent", "/usr/local/bin/agent") == self.unit;
                service.unit = Some(unit.display().to_string());
            }
            for file in names(&self.root.join(dir).join("agent.service.d")) {
                let ours = dir == UNIT_DIRS[0] && file.ends_with(OWN_DROP_IN);
                if !ours && file.extension().is_some_and(|kind| kind == "conf") {
                    service.drop_ins.push(file.display().to_string());
                }
            }
        }
        Some(service)
    }

    /// Files that are open to users other than their owner: state files that they may read, and any file that
    /// they may write.
    fn modes(&self, files: &mut HostFiles) {
        let open = |path: &Path, bits: u32| {
            let about = fs::symlink_metadata(path).ok()?;
            let is_open = !about.file_type().is_symlink() && about.mode() & bits != 0;
            is_open.then(|| (path.display().to_string(), about.mode() & 0o7777))
        };
        let config = self.root.join("etc/agent/agent.toml");
        let believed = self.believed.iter().map(|file| (file, false));
        for (file, is_config) in std::iter::once((&config, true)).chain(believed) {
            let Err(why) = trusted::check(file) else { continue };
            // A file that is missing or unreadable for this user is checked elsewhere, if at all.
            let Some(fix) = why.fix() else { continue };
            let what =
                if why.path() == file { why.to_string() } else { format!("{}: {why}", file.display()) };
            files.untrusted.push(UntrustedFile { what, is_config, fix });
        }
        let mut look = |path: &Path, bits: u32| files.loose.extend(open(path, bits));
        look(&self.state_dir, 0o022);
        for file in names(&self.state_dir) {
            look(&file, 0o077);
        }
        look(&self.socket, 0o007);
    }

    /// Which firewall manages this host, as far as its files show.
    pub(crate) fn firewall(&self) -> Firewall {
        let ufw = text(&self.root.join("etc/ufw/ufw.conf"));
        if matches!(ufw, Ok(Some(text)) if text.lines().any(|line| line.trim() == "ENABLED=yes")) {
            return Firewall::Ufw;
        }
        if self.root.join("run/firewalld").is_dir() {
            return Firewall::Firewalld;
        }
        Firewall::Nftables
    }
}

/// A file's text; `None`: there is no such file.
fn text(path: &Path) -> io::Result<Option<String>> {
    let mut bytes = Vec::new();
    match fs::File::open(path) {
        Ok(file) => file.take(MAX_FILE).read_to_end(&mut bytes)?,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error),
    };
    Ok(Some(String::from_utf8_lossy(&bytes).into_owned()))
}

/// The entries of a directory, sorted by name; none if it does not exist.
fn names(dir: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(dir).into_iter().flatten().flatten();
    let mut all: Vec<PathBuf> = entries.map(|entry| entry.path()).collect();
    all.sort_unstable();
    all
}
