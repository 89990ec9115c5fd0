//! The agent that a package of the distribution has installed, see deploy/package.

use std::fs;
use std::path::Path;

use crate::cli::exit::{self, ExitError};

/// The name of the package.
pub(super) const NAME: &str = "agent-ha";

/// Where it has the binary, below the root.
pub(super) const PROGRAM: &str = "usr/bin/agent";

/// Where it has the unit: where /lib is no link to /usr/lib, Debian's lies there.
const UNITS: [&str; 2] = ["usr/lib/systemd/system/agent.service", "lib/systemd/system/agent.service"];

/// What tells which package manager has it, and what people run there.
const MANAGERS: [(&str, &str, &str); 2] = [
    (
        "var/lib/dpkg/info/agent-ha.list",
        "apt-get install ./agent-ha_VERSION_ARCH.deb",
        "apt-get remove agent-ha",
    ),
    ("usr/bin/zypper", "zypper install ./agent-ha-VERSION.ARCH.rpm", "zypper remove agent-ha"),
];

/// An installed package.
pub(in crate::cli) struct Package {
    /// The command that installs another version.
    upgrade: &'static str,
    /// The command that removes it.
    pub(super) remove: &'static str,
}

impl Package {
    /// The package that is installed below a root.
    pub(in crate::cli) fn find(root: &Path) -> Option<Package> {
        let starts = format!("ExecStart=/{PROGRAM} ");
        let has_unit =
            |unit: &str| fs::read_to_string(root.join(unit)).is_ok_and(|text| text.contains(&starts));
        if !root.join(PROGRAM).is_file() || !UNITS.into_iter().any(has_unit) {
            return None;
        }
        let manager = MANAGERS.iter().find(|(mark, ..)| root.join(mark).exists());
        let (_, upgrade, remove) = manager.copied().unwrap_or((
            "",
            "dnf install ./agent-ha-VERSION.ARCH.rpm",
            "dnf remove agent-ha",
        ));
        Some(Package { upgrade, remove })
    }

    /// Whether the running agent was started from the package's program.
    pub(in crate::cli) fn has(program: &Path) -> bool {
        program == Path::new("/").join(PROGRAM)
    }

    /// Refuses a program that is not the package's own.
    pub(super) fn must_be(&self, root: &Path, running: &[u8]) -> anyhow::Result<()> {
        if fs::read(root.join(PROGRAM)).is_ok_and(|packaged| packaged == running) {
            return Ok(());
        }
        let text = format!(
            "the package {NAME} has installed another version as /{PROGRAM}: run that one, or install this \
             version's package ({}), or remove the package ({})",
            self.upgrade, self.remove
        );
        Err(ExitError::error(exit::UNAVAILABLE, text))
    }

    /// Why a file is not put in the place of the package's program.
    pub(in crate::cli) fn refuses_upgrade(&self) -> anyhow::Error {
        let text = format!(
            "the agent here comes from the package {NAME}, so its package manager upgrades it: {}; no connection is \
             lost",
            self.upgrade
        );
        ExitError::error(exit::UNAVAILABLE, text)
    }
}
