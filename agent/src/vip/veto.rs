//! Programs by which this node's operator says that it must not own a virtual IP, as keepalived's `track_script` does.
//!
//! One task runs all of them every second, each in a process group that is killed once the program has ended or has
//! taken too long. It alone writes the outcomes. Only this node's own file names them. Stopping it anywhere is safe: a
//! program that runs is killed with its handle.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::Path;
use std::process::{ExitStatus, Stdio};
use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use proto::cause::Cause;
use proto::config::Config;
use proto::settings::Settings;
use proto::unfit::Unfit;
use tokio::io::AsyncReadExt;
use tokio::net::unix::pipe;
use tokio::sync::watch;

use crate::lifecycle::Lifecycle;
use crate::program::{self, ProcessGroup};
use crate::{handover, trusted};

/// Between the end of one round and the next.
const EVERY: Duration = Duration::from_secs(1);

/// Longest duration of one run.
const PATIENCE: Duration = if cfg!(test) { Duration::from_millis(500) } else { Duration::from_secs(2) };

/// What is kept of what a program says: its first line is shown.
const MOST_SAID: usize = 256;

/// Whether each virtual IP with a program may be owned here.
pub(crate) type Vetoes = BTreeMap<IpAddr, Result<(), Unfit>>;

/// The task, and what it reads and writes.
struct VetoTask {
    config: watch::Receiver<Arc<Config>>,
    settings: watch::Receiver<Arc<Settings>>,
    out: watch::Sender<Arc<Vetoes>>,
}

/// Starts the task. What has not run yet is against it.
pub(crate) fn spawn(
    config: watch::Receiver<Arc<Config>>,
    settings: watch::Receiver<Arc<Settings>>,
    life: &Lifecycle,
) -> watch::Receiver<Arc<Vetoes>> {
    let first = wanted(&config.borrow(), &settings.borrow()).keys().map(|vip| (*vip, not_yet())).collect();
    let (out, vetoes) = watch::channel(Arc::new(first));
    let over = life.shutdown.clone();
    life.supervise("vip-check", VetoTask { config, settings, out }, move |task| {
        let over = over.clone();
        Box::pin(async move {
            over.run_until_cancelled(task.run()).await;
        })
    });
    vetoes
}

/// The programs of the addresses that are virtual IPs.
fn wanted(config: &Config, settings: &Settings) -> BTreeMap<IpAddr, String> {
    let is_vip = |address: &IpAddr| settings.vips.iter().any(|vip| vip.address == *address);
    config
        .vip_checks
        .iter()
        .filter(|(address, _)| is_vip(address))
        .map(|(address, program)| (*address, program.clone()))
        .collect()
}

fn not_yet() -> Result<(), Unfit> {
    Err(Unfit::new(Cause::NotCheckedYet, "its check program has not run yet"))
}

impl VetoTask {
    async fn run(&mut self) {
        loop {
            let all = wanted(&self.config.borrow_and_update(), &self.settings.borrow_and_update());
            self.out.send_if_modified(|known| {
                let mut next = Vetoes::clone(known);
                next.retain(|vip, _| all.contains_key(vip));
                for vip in all.keys() {
                    next.entry(*vip).or_insert_with(not_yet);
                }
                let changed = next != **known;
                *known = Arc::new(next);
                changed
            });
            let run = |(vip, program): (IpAddr, String)| async move {
                (vip, run_trusted(Path::new(&program), vip).await)
            };
            let mut round: FuturesUnordered<_> = all.into_iter().map(run).collect();
            let idle = round.is_empty();
            while let Some((vip, outcome)) = round.next().await {
                self.publish(vip, outcome);
            }
            tokio::select! {
                () = tokio::time::sleep(EVERY), if !idle => {}
                Ok(()) = self.config.changed() => {}
                Ok(()) = self.settings.changed() => {}
                else => return,
            }
        }
    }

    fn publish(&self, vip: IpAddr, outcome: Result<(), Unfit>) {
        self.out.send_if_modified(|known| {
            let before = known.get(&vip);
            let said = |one: &Result<(), Unfit>| one.as_ref().err().map(ToString::to_string);
            if before.map(said) == Some(said(&outcome)) {
                return false;
            }
            match &outcome {
                Ok(()) => tracing::info!(%vip, "its check program is for it"),
                Err(why) => tracing::warn!(%vip, "not owned here: {why}"),
            }
            let mut next = Vetoes::clone(known);
            next.insert(vip, outcome);
            *known = Arc::new(next);
            true
        });
    }
}

/// Why a program is against it, or could not be asked.
#[derive(Debug, thiserror::Error)]
enum Veto {
    /// Others may change it, or it can't be looked at.
    #[error("its check program was not run: {}", .0.with_fix())]
    Untrusted(#[from] trusted::TrustError),
    /// It is no program.
    #[error("its check program is not executable; run: chmod 755 {0}")]
    NotExecutable(String),
    /// The kernel does not run it.
    #[error("its check program cannot be run: {0}")]
    Spawn(#[from] std::io::Error),
    /// It took too long.
    #[error("its check program was killed after {}{}", proto::time::human(PATIENCE), words(.0))]
    TooSlow(String),
    /// It is against it.
    #[error("its check program ended with {}{}", .0, words(.1))]
    Ended(ExitStatus, String),
}

/// What it has said, if anything.
fn words(said: &str) -> String {
    if said.is_empty() { String::new() } else { format!(": {said}") }
}

async fn run_trusted(program: &Path, vip: IpAddr) -> Result<(), Unfit> {
    let path = program.to_owned();
    let outcome = match tokio::task::spawn_blocking(move || trusted::check(&path)).await {
        Ok(Ok(file)) if file.is_program => run(program, vip).await,
        Ok(Ok(_)) => Err(Veto::NotExecutable(program.display().to_string())),
        Ok(Err(why)) => Err(why.into()),
        Err(_) => return not_yet(), // the process is ending
    };
    outcome.map_err(|why| Unfit::new(Cause::Vetoed, why))
}

async fn run(program: &Path, vip: IpAddr) -> Result<(), Veto> {
    while handover::is_under_way() {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    let (output, input) = std::io::pipe()?;
    let mut output = pipe::Receiver::from_owned_fd(output.into())?;
    let mut child = program::command(program)
        .env("VIP", vip.to_string())
        .stdin(Stdio::null())
        .stdout(input.try_clone()?)
        .stderr(input)
        .spawn()?;
    let group = ProcessGroup::of(&child);
    let (mut said, mut buffer, mut open) = (Vec::new(), [0; 512], true);
    let deadline = tokio::time::Instant::now() + PATIENCE;
    let ended = loop {
        tokio::select! {
            status = child.wait() => break Some(status?),
            read = output.read(&mut buffer), if open => match read {
                Ok(length @ 1..) => keep(&mut said, buffer.get(..length).unwrap_or_default()),
                _ => open = false,
            },
            () = tokio::time::sleep_until(deadline) => break None,
        }
    };
    // With all that it has left running.
    drop(group);
    if ended.is_none() {
        let _ = child.wait().await;
    }
    while let Ok(length @ 1..) = output.try_read(&mut buffer) {
        keep(&mut said, buffer.get(..length).unwrap_or_default());
        if said.len() == MOST_SAID {
            break;
        }
    }
    let said = String::from_utf8_lossy(&said)
        .lines()
        .map(str::trim)
        .find(|line| !line.is_empty())
        .unwrap_or_default()
        .to_owned();
    match ended {
        Some(status) if status.success() => Ok(()),
        Some(status) => Err(Veto::Ended(status, said)),
        None => Err(Veto::TooSlow(said)),
    }
}

fn keep(said: &mut Vec<u8>, more: &[u8]) {
    let room = MOST_SAID.saturating_sub(said.len());
    said.extend_from_slice(more.get(..room.min(more.len())).unwrap_or_default());
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;
    use std::path::PathBuf;

    use super::*;
    use crate::testing::trusted_dir;

    const VIP: &str = "10.9.0.50";

    fn script(dir: &Path, mode: u32, text: &str) -> PathBuf {
        let path = dir.join("check");
        std::fs::write(&path, format!("#!/bin/sh\n{text}\n")).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).unwrap();
        path
    }

    async fn outcome(path: &Path) -> Result<(), String> {
        run_trusted(path, VIP.parse().unwrap()).await.map_err(|why| {
            assert_eq!(why.cause, Cause::Vetoed);
            why.to_string()
        })
    }

    #[tokio::test]
    async fn its_exit_code_decides_and_its_first_line_is_told() {
        let dir = trusted_dir();
        for (mode, text, said) in [
            (0o755, "test \"$VIP\" = 10.9.0.50 && test -z \"$HOME$CARGO\"", None),
            (0o755, "echo fine", None),
            (0o755, "exit 3", Some("its check program ended with exit status: 3")),
            (
                0o755,
                "echo; echo ' the uplink is down ' >&2; echo more; exit 1",
                Some("its check program ended with exit status: 1: the uplink is down"),
            ),
            (0o755, "kill -9 $$", Some("its check program ended with signal: 9 (SIGKILL)")),
            (0o644, "true", Some("its check program is not executable; run: chmod 755 ")),
            (0o777, "true", Some("its check program was not run: ")),
            (0o755, "yes | head -c 1000000; exit 1", Some("its check program ended with exit status: 1: y")),
        ] {
            let found = outcome(&script(dir.path(), mode, text)).await;
            match said {
                None => assert_eq!(found, Ok(()), "{text}"),
                Some(said) => assert!(found.clone().unwrap_err().starts_with(said), "{text}: {found:?}"),
            }
        }
        let none = outcome(Path::new("/nonexistent/check")).await.unwrap_err();
        assert!(none.contains("can't be read"), "{none}");
    }

    #[tokio::test]
    async fn one_that_hangs_is_killed_with_its_children_and_so_is_what_one_leaves_behind() {
        let dir = trusted_dir();
        let out = dir.path().join("pid");
        for (text, said) in [
            (
                format!("echo waiting; sleep 60 & echo $! > {}; wait", out.display()),
                Some("was killed after 500ms: waiting"),
            ),
            (format!("sleep 60 & echo $! > {}", out.display()), None),
        ] {
            let found = outcome(&script(dir.path(), 0o755, &text)).await;
            assert_eq!(found.is_err(), said.is_some(), "{found:?}");
            assert!(said.is_none_or(|said| found.unwrap_err().contains(said)));
            let pid: i32 = std::fs::read_to_string(&out).unwrap().trim().parse().unwrap();
            let dead = || {
                // Nobody may have reaped it here, and a zombie is dead.
                let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
                stat.is_empty() || stat.contains(") Z ")
            };
            let mut tries = 0;
            while !dead() {
                tries += 1;
                assert!(tries < 100, "process {pid} lives on");
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        }
    }

    #[tokio::test]
    async fn an_address_is_not_owned_before_its_program_has_run_and_without_one_nobody_asks() {
        let dir = trusted_dir();
        let path = script(dir.path(), 0o755, "test ! -e \"$0.no\"");
        let vip: IpAddr = VIP.parse().unwrap();
        let config = |checks: &[(IpAddr, &Path)]| {
            let checks = checks.iter().map(|(vip, path)| (*vip, path.display().to_string()));
            Arc::new(Config { vip_checks: checks.collect(), ..Config::default() })
        };
        let other: IpAddr = [10, 9, 0, 51].into();
        let (config_in, configured) = watch::channel(config(&[(vip, &path), (other, &path)]));
        let settings = Settings { vips: vec![proto::settings::VipSettings::new(vip)], ..Settings::default() };
        let (_settings_in, settings) = watch::channel(Arc::new(settings));
        let life = Lifecycle::new();
        let mut vetoes = spawn(configured, settings, &life);
        let causes = |now: &Vetoes| -> Vec<(IpAddr, Option<Cause>)> {
            now.iter().map(|(vip, one)| (*vip, one.as_ref().err().map(|why| why.cause))).collect()
        };
        assert_eq!(causes(&vetoes.borrow()), [(vip, Some(Cause::NotCheckedYet))]);
        let until = |wanted: Vec<(IpAddr, Option<Cause>)>| {
            let mut vetoes = vetoes.clone();
            async move {
                let waiting = vetoes.wait_for(|now| causes(now) == wanted);
                let found = tokio::time::timeout(Duration::from_secs(10), waiting).await;
                assert!(found.is_ok_and(|found| found.is_ok()), "not {wanted:?}");
            }
        };
        until(vec![(vip, None)]).await;
        std::fs::write(dir.path().join("check.no"), "").unwrap();
        until(vec![(vip, Some(Cause::Vetoed))]).await;
        config_in.send_replace(config(&[]));
        until(vec![]).await;
        vetoes.mark_unchanged();
        life.shutdown.cancel();
        life.finished().await;
    }
}
