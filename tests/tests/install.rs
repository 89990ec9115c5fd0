//! `tests/install` on a machine whose own upgrades run, as those of a fresh one do.

use std::fs::File;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};
use rustix::fs::{FlockOperation, fcntl_lock};

/// A private apt below `dir`: no sources, so that it needs no network, and its own locks.
fn private_apt(dir: &Path) -> Result<()> {
    for sub in ["state/lists/partial", "dpkg", "cache/archives/partial"] {
        std::fs::create_dir_all(dir.join(sub))?;
    }
    std::fs::copy("/var/lib/dpkg/status", dir.join("dpkg/status")).context("not a Debian machine")?;
    let here = dir.display();
    let config = format!(
        "Dir::State \"{here}/state\"; Dir::State::status \"{here}/dpkg/status\"; Dir::Cache \"{here}/cache\";\n\
         Dir::Etc::sourcelist \"/dev/null\"; Dir::Etc::sourceparts \"/dev/null\";\n"
    );
    Ok(std::fs::write(dir.join("apt.conf"), config)?)
}

#[test]
fn an_installation_waits_for_apts_locks() -> Result<()> {
    for lock in ["state/lists/lock", "dpkg/lock-frontend", "dpkg/lock", "cache/archives/lock"] {
        let dir = tempfile::tempdir()?;
        private_apt(dir.path())?;
        let held = File::create(dir.path().join(lock))?;
        fcntl_lock(&held, FlockOperation::NonBlockingLockExclusive)?;
        // A tool that no machine has, of a package that every machine has: apt only takes its locks.
        let mut install = Command::new(concat!(env!("CARGO_MANIFEST_DIR"), "/install"))
            .arg("no-such-tool:coreutils")
            .env("APT_CONFIG", dir.path().join("apt.conf"))
            .stdout(Stdio::piped())
            .spawn()?;
        let mut lines = BufReader::new(install.stdout.take().context("its output")?).lines();
        let waits = lines.find_map(|line| line.ok().filter(|line| line.contains(lock)));
        ensure!(waits.is_some_and(|line| line.contains("waiting")), "{lock}: it did not wait");
        drop(held);
        let rest: Vec<String> = lines.collect::<Result<_, _>>()?;
        ensure!(install.wait()?.success(), "{lock}: it failed after the lock was free: {rest:?}");
    }
    Ok(())
}
