//! Hooks: executables that are run with each event, as JSON on their standard input.
//!
//! They run with the agent's rights, so they and every directory above them must be such that nobody but root
//! and the agent's user can change them ([`trusted()`]): looked at when they are configured, and again right
//! before each run. Everything on the way there is then out of the reach of others, so none of them can put
//! something else there between that look and the run.
//!
//! One task for each path that is configured; it runs one program at a time, and kills one with all that it
//! started when it takes too long. A queue stands before it: who is slow loses events, and is told of.

use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::sync::Arc;
use std::time::Duration;

use proto::event::Event;
use proto::problem::{Problem, ProblemCode};
use proto::time::human;
use rustix::process::{Pid, Signal, kill_process_group};
use tokio::io::AsyncWriteExt;
use tokio::process::{Child, Command};
use tokio::sync::mpsc;

use super::SinkErrors;
use crate::lifecycle::Lifecycle;
use crate::trusted::{self, TrustError};

/// Events that wait for one path: some minutes of a bad day; what is older is of no use to a program.
const QUEUE: usize = 64;

/// Longest time of one run.
const PATIENCE: Duration = if cfg!(test) { Duration::from_millis(500) } else { Duration::from_secs(10) };

/// What a run may still take when the agent ends. Short, since nobody listens in place of it meanwhile.
const LAST: Duration = Duration::from_secs(1);

/// The queue before one path. When it is dropped, what waits in it is still told.
pub(super) struct Hook {
    pub(super) name: String,
    queue: mpsc::Sender<Arc<Event>>,
    dropped: u64,
    sink_errors: SinkErrors,
}

impl Hook {
    /// Starts the task of a path: a program, or a directory of programs.
    pub(super) fn spawn(path: &str, sink_errors: SinkErrors, life: &Lifecycle) -> Hook {
        let (sender, queue) = mpsc::channel::<Arc<Event>>(QUEUE);
        let (path_buf, over, said) = (PathBuf::from(path), life.shutdown.clone(), sink_errors.clone());
        life.supervise("hooks", queue, move |queue| {
            let (path_buf, over, said) = (path_buf.clone(), over.clone(), said.clone());
            let work = async move {
                // What is wrong is known when it is configured, not only when it is needed.
                let name = path_buf.display().to_string();
                if let Some(Err(why)) = list_programs(&path_buf).await {
                    said.report_problem(why.problem(&name));
                }
                while let Some(event) = queue.recv().await {
                    run_all(&path_buf, &event, &said).await;
                }
                // It is no longer asked for, and so no trouble.
                said.resolved(ProblemCode::EventsDropped, &name);
                said.resolved(ProblemCode::Hook, &name);
            };
            let limit = async move {
                over.cancelled().await;
                tokio::time::sleep(LAST).await;
            };
            Box::pin(async move {
                tokio::select! { () = work => {}, () = limit => {} }
            })
        });
        Hook { name: path.to_owned(), queue: sender, dropped: 0, sink_errors }
    }

    /// Hands an event over, or counts it as dropped.
    pub(super) fn enqueue(&mut self, event: &Arc<Event>) {
        if self.queue.try_send(event.clone()).is_err() {
            self.dropped += 1;
            let detail = format!("{} is too slow: {} events were dropped", self.name, self.dropped);
            self.sink_errors
                .report_problem(Problem::new(ProblemCode::EventsDropped, detail).about(&self.name));
        }
    }
}

/// Why a program is not run, or was run in vain.
#[derive(Debug, thiserror::Error)]
pub(super) enum HookError {
    /// It could not be looked at.
    #[error("notify: {} can't be read: {source}", path.display())]
    Unreadable {
        /// What.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// Others may change it.
    #[error("notify: {} was not run: {source}", path.display())]
    Untrusted {
        /// Which program or directory.
        path: PathBuf,
        /// Who may.
        source: TrustError,
    },
    /// It is no program.
    #[error("notify: {} is not executable", .0.display())]
    NotExecutable(PathBuf),
    /// The event can't be written as JSON.
    #[error("notify: the event can't be written as JSON: {0}")]
    Event(serde_json::Error),
    /// The kernel does not run it.
    #[error("notify: {} can't be run: {source}", path.display())]
    Spawn {
        /// Which.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// It says that it failed.
    #[error("notify: {} ended with {status}", path.display())]
    Ended {
        /// Which.
        path: PathBuf,
        /// What it says.
        status: ExitStatus,
    },
    /// Its end is not known.
    #[error("notify: lost track of {}: {source}", path.display())]
    Lost {
        /// Which.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// It did not end in time.
    #[error("notify: {} was killed because it ran for more than {}", .0.display(), human(PATIENCE))]
    TooSlow(PathBuf),
}

impl HookError {
    /// For status; `name` is the path that configuration gives.
    fn problem(&self, name: &str) -> Problem {
        let problem = Problem::new(ProblemCode::Hook, self).about(name);
        match self {
            HookError::NotExecutable(path) => {
                problem.fix(format!("make it executable: chmod 755 {}", path.display()))
            }
            _ => problem,
        }
    }
}

/// Runs every program of a path, in the order of their names.
async fn run_all(path: &Path, event: &Event, sink_errors: &SinkErrors) {
    let name = path.display().to_string();
    let (programs, mut problem) = match list_programs(path).await {
        Some(Ok(found)) => found,
        Some(Err(why)) => return sink_errors.report_problem(why.problem(&name)),
        None => return,
    };
    for program in programs {
        if let Err(why) = run_trusted(program, event).await {
            problem = Some(why);
        }
    }
    match problem {
        Some(why) => sink_errors.report_problem(why.problem(&name)),
        None => sink_errors.resolved(ProblemCode::Hook, &name),
    }
}

/// [`programs`] where a thread may wait; none: the process is ending.
async fn list_programs(path: &Path) -> Option<Result<(Vec<PathBuf>, Option<HookError>), HookError>> {
    let path = path.to_owned();
    tokio::task::spawn_blocking(move || programs(&path)).await.ok()
}

/// The programs of a path: itself, or what can be run in it, and what is wrong with one that is left out.
fn programs(path: &Path) -> Result<(Vec<PathBuf>, Option<HookError>), HookError> {
    let failed = |source: io::Error| HookError::Unreadable { path: path.to_owned(), source };
    if !trusted(path)?.is_dir {
        return runnable(path).map(|()| (vec![path.to_owned()], None));
    }
    let (mut found, mut problem) = (Vec::new(), None);
    for entry in std::fs::read_dir(path).map_err(failed)? {
        let entry = entry.map_err(failed)?.path();
        let name = entry.file_name().unwrap_or_default().to_string_lossy().into_owned();
        // What editors and package managers leave is not meant.
        if name.starts_with('.') || name.ends_with('~') || name.contains(".dpkg-") || name.contains(".rpm") {
            continue;
        }
        let Ok(about) = std::fs::metadata(&entry) else { continue };
        if about.is_dir() || about.mode() & 0o111 == 0 {
            continue;
        }
        match runnable(&entry) {
            Ok(()) => found.push(entry),
            Err(why) => problem = Some(why),
        }
    }
    found.sort_unstable();
    Ok((found, problem))
}

/// Refuses what cannot be run, and what others may change: it would be run with this agent's rights.
fn runnable(path: &Path) -> Result<(), HookError> {
    if trusted(path)?.is_program { Ok(()) } else { Err(HookError::NotExecutable(path.to_owned())) }
}

fn trusted(path: &Path) -> Result<trusted::CheckedFile, HookError> {
    trusted::check(path).map_err(|why| match why {
        TrustError::Unreadable { path, source } => HookError::Unreadable { path, source },
        source => HookError::Untrusted { path: path.to_owned(), source },
    })
}

/// Runs one program with one event, if it can still be trusted: those before it may have taken their time.
async fn run_trusted(program: PathBuf, event: &Event) -> Result<(), HookError> {
    let path = program.clone();
    match tokio::task::spawn_blocking(move || runnable(&path)).await {
        Ok(Ok(())) => {}
        Ok(Err(why)) => return Err(why),
        Err(_) => return Ok(()), // the process is ending
    }
    run(&program, event).await
}

/// Runs one program with one event.
async fn run(program: &Path, event: &Event) -> Result<(), HookError> {
    let failed = |source| HookError::Spawn { path: program.to_owned(), source };
    let json = serde_json::to_vec(event).map_err(HookError::Event)?;
    let mut command = Command::new(program);
    command
        .args(event.keepalived().into_iter().flatten())
        .env_clear()
        .env("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin")
        .env("AGENT_EVENT", event.kind.name())
        .current_dir("/")
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        // It goes where the agent's own does.
        .stderr(Stdio::inherit())
        .process_group(0)
        .kill_on_drop(true);
    let mut child = command.spawn().map_err(failed)?;
    let group = ProcessGroup(child.id());
    let stdin = child.stdin.take();
    let work = async {
        if let Some(mut stdin) = stdin {
            // Whoever does not read it does not want it.
            let _ = stdin.write_all(&json).await;
        }
        ended(program, &mut child).await
    };
    match tokio::time::timeout(PATIENCE, work).await {
        Ok(result) => {
            // What it has left running is meant to go on.
            std::mem::forget(group);
            result
        }
        Err(_) => {
            drop(group);
            let _ = child.wait().await;
            Err(HookError::TooSlow(program.to_owned()))
        }
    }
}

async fn ended(program: &Path, child: &mut Child) -> Result<(), HookError> {
    match child.wait().await {
        Ok(status) if status.success() => Ok(()),
        Ok(status) => Err(HookError::Ended { path: program.to_owned(), status }),
        Err(source) => Err(HookError::Lost { path: program.to_owned(), source }),
    }
}

/// Kills the program and all that it started, also when the task is dropped.
struct ProcessGroup(Option<u32>);

impl Drop for ProcessGroup {
    fn drop(&mut self) {
        let pid = self.0.and_then(|id| i32::try_from(id).ok()).and_then(Pid::from_raw);
        if let Some(pid) = pid {
            let _ = kill_process_group(pid, Signal::KILL);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use proto::event::EventKind;
    use proto::time::UnixMs;

    use super::*;
    use crate::testing::trusted_dir;

    fn script(dir: &Path, name: &str, mode: u32, text: &str) -> PathBuf {
        let path = dir.join(name);
        std::fs::write(&path, format!("#!/bin/sh\n{text}\n")).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).unwrap();
        path
    }

    fn is_open(why: &HookError) -> bool {
        matches!(why, HookError::Untrusted { source: TrustError::Writable { .. }, .. })
    }

    fn vip() -> Event {
        let mut event = Event::new(EventKind::VipState, UnixMs(7), "10.0.0.9", "master");
        event.priority = Some(99);
        event
    }

    #[tokio::test]
    async fn a_program_gets_the_event_its_arguments_and_a_clean_environment() {
        let dir = trusted_dir();
        let out = dir.path().join("out");
        let text = format!("{{ cat; echo; echo \"$@\"; env | sort; }} > {}", out.display());
        run(&script(dir.path(), "hook", 0o755, &text), &vip()).await.unwrap();
        let said = std::fs::read_to_string(out).unwrap();
        let mut lines = said.lines();
        assert_eq!(lines.next().unwrap(), serde_json::to_string(&vip()).unwrap());
        assert_eq!(lines.next().unwrap(), "INSTANCE 10.0.0.9 MASTER 99");
        let names: Vec<&str> = lines.filter_map(|line| line.split('=').next()).collect();
        assert!(names.contains(&"AGENT_EVENT") && !names.contains(&"HOME"), "{names:?}");
        assert!(!names.iter().any(|name| name.starts_with("CARGO")), "{names:?}");
    }

    #[tokio::test]
    async fn one_that_hangs_is_killed_with_what_it_started() {
        let dir = trusted_dir();
        let out = dir.path().join("pid");
        let text = format!("sleep 60 & echo $! > {}; wait", out.display());
        let why = run(&script(dir.path(), "hook", 0o755, &text), &vip()).await.unwrap_err();
        assert!(matches!(why, HookError::TooSlow(_)), "{why}");
        let pid: i32 = std::fs::read_to_string(out).unwrap().trim().parse().unwrap();
        let dead = || {
            // Nobody may have reaped it here, and a zombie is dead.
            let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
            stat.is_empty() || stat.contains(") Z ")
        };
        for _ in 0..100 {
            if dead() {
                return;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        panic!("process {pid} lives on");
    }

    #[test]
    fn only_programs_are_run_and_none_that_anyone_may_write() {
        let dir = trusted_dir();
        for (name, mode) in
            [("20-b", 0o755), ("10-a", 0o700), ("readme", 0o644), (".x", 0o755), ("c~", 0o755)]
        {
            script(dir.path(), name, mode, "");
        }
        let (found, problem) = programs(dir.path()).unwrap();
        assert!(problem.is_none());
        let names: Vec<_> = found.iter().map(|path| path.file_name().unwrap().to_string_lossy()).collect();
        assert_eq!(names, ["10-a", "20-b"]);
        script(dir.path(), "open", 0o777, "");
        let (found, problem) = programs(dir.path()).unwrap();
        assert!(found.len() == 2 && is_open(&problem.unwrap()), "only that one is left out");
        assert!(programs(&dir.path().join("open")).is_err());
        std::fs::set_permissions(dir.path(), std::fs::Permissions::from_mode(0o777)).unwrap();
        assert!(is_open(&programs(dir.path()).unwrap_err()), "anyone could put one there");
        std::fs::set_permissions(dir.path(), std::fs::Permissions::from_mode(0o755)).unwrap();
        let readme = programs(&dir.path().join("readme")).unwrap_err();
        assert!(matches!(readme, HookError::NotExecutable(_)), "{readme}");
        assert!(readme.problem("x").to_string().contains("; make it executable: chmod 755 "));
        let none = programs(&dir.path().join("none")).unwrap_err();
        assert!(matches!(none, HookError::Unreadable { .. }), "{none}");
    }

    #[tokio::test]
    async fn one_that_others_could_change_meanwhile_is_not_run() {
        let dir = trusted_dir();
        let out = dir.path().join("out");
        let inner = dir.path().join("notify.d");
        std::fs::create_dir(&inner).unwrap();
        // The first opens the directory for all.
        script(&inner, "10-first", 0o755, &format!("chmod 777 {}", inner.display()));
        script(&inner, "20-second", 0o755, &format!("touch {}", out.display()));
        let sink_errors = SinkErrors::default();
        run_all(&inner, &vip(), &sink_errors).await;
        let said: String = sink_errors.list().iter().map(Problem::to_string).collect();
        assert!(said.contains("20-second was not run: ") && said.contains("run: chmod go-w "), "{said}");
        assert!(!out.exists());
    }

    #[tokio::test]
    async fn what_is_wrong_is_said_before_there_is_an_event() {
        let dir = trusted_dir();
        let path = script(dir.path(), "hook", 0o777, "");
        let (sink_errors, life) = (SinkErrors::default(), Lifecycle::new());
        let _hook = Hook::spawn(&path.display().to_string(), sink_errors.clone(), &life);
        for _ in 0..500 {
            if sink_errors.list().iter().any(|problem| problem.code == ProblemCode::Hook) {
                return life.shutdown.cancel();
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        panic!("{:?}", sink_errors.list());
    }

    #[tokio::test]
    async fn what_waits_is_handed_over_after_a_panic_too() {
        let dir = trusted_dir();
        let out = dir.path().join("out");
        let path = script(dir.path(), "hook", 0o755, &format!("touch {}", out.display()));
        let life = Lifecycle::new();
        crate::supervisor::tests::fail_once("hooks");
        let mut hook = Hook::spawn(&path.display().to_string(), SinkErrors::default(), &life);
        hook.enqueue(&Arc::new(vip()));
        // What waits in a queue is handed over when nobody can add to it.
        drop(hook);
        life.finished().await;
        assert!(crate::supervisor::tests::has_failed() && out.exists());
    }

    #[tokio::test]
    async fn what_fails_and_what_is_dropped_is_said() {
        let dir = trusted_dir();
        let path = script(dir.path(), "hook", 0o755, "exit 3");
        let sink_errors = SinkErrors::default();
        run_all(&path, &vip(), &sink_errors).await;
        assert!(sink_errors.list()[0].to_string().contains("exit status: 3"), "{:?}", sink_errors.list());
        let life = Lifecycle::new();
        let mut hook = Hook::spawn(&path.display().to_string(), sink_errors.clone(), &life);
        // This runtime has one thread, so the hook's task has not run yet.
        for _ in 0..QUEUE + 5 {
            hook.enqueue(&Arc::new(vip()));
        }
        let dropped =
            sink_errors.list().into_iter().find(|problem| problem.code == ProblemCode::EventsDropped);
        assert!(dropped.unwrap().to_string().contains("5 events"), "{:?}", sink_errors.list());
        drop(hook);
        life.shutdown.cancel();
        life.finished().await;
    }
}
