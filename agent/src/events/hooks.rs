//! Hooks: executables that are run with each event, as JSON on their standard input.
//!
//! They run with the agent's rights, so they and every directory above them must be writable only by root and
//! the agent's user ([`trusted()`]): checked when they are configured, and again right before each run.
//! Everything on the path is then out of reach of others, so none of them can replace anything between that
//! check and the run.
//!
//! One task for each configured path; it runs one program at a time, and kills one with all that it started
//! when it takes too long. Each has a queue: a slow program loses events, and that is reported.

use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::sync::Arc;
use std::time::Duration;

use proto::event::Event;
use proto::problem::{Problem, ProblemCode};
use proto::time::human;
use tokio::io::AsyncWriteExt;
use tokio::process::Child;
use tokio::sync::mpsc;

use super::SinkErrors;
use crate::handover;
use crate::lifecycle::Lifecycle;
use crate::program::{self, ProcessGroup};
use crate::trusted::{self, TrustError};

/// Events queued for one path: some minutes of a bad day; older ones are of no use to a program.
const QUEUE: usize = 64;

/// Longest duration of one run.
const PATIENCE: Duration = if cfg!(test) { Duration::from_millis(500) } else { Duration::from_secs(10) };

/// What a run may still take when the agent ends. Short, since nothing listens in the agent's place
/// meanwhile.
const LAST: Duration = Duration::from_secs(1);

/// The queue of one path. When it is dropped, queued events are still delivered.
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
                // Problems are reported when the path is configured, not only at the first event.
                let name = path_buf.display().to_string();
                if let Some(Err(why)) = list_programs(&path_buf).await {
                    said.report_problem(why.problem(&name));
                }
                while let Some(event) = queue.recv().await {
                    run_all(&path_buf, &event, &said).await;
                }
                // It is no longer configured, and so no problem.
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

    /// Queues an event, or counts it as dropped.
    pub(super) fn enqueue(&mut self, event: &Arc<Event>) {
        if self.queue.try_send(event.clone()).is_err() {
            self.dropped += 1;
            let detail = format!("{} is too slow: {} events were dropped", self.name, self.dropped);
            self.sink_errors
                .report_problem(Problem::new(ProblemCode::EventsDropped, detail).about(&self.name));
        }
    }
}

/// Why a program is not run, or its run failed.
#[derive(Debug, thiserror::Error)]
pub(super) enum HookError {
    /// It could not be examined.
    #[error("notify: {} can't be read: {source}", path.display())]
    Unreadable {
        /// Path of the file.
        path: PathBuf,
        /// The error.
        source: io::Error,
    },
    /// Others may change it.
    #[error("notify: {} was not run: {}", path.display(), source.with_fix())]
    Untrusted {
        /// Path of the program or directory.
        path: PathBuf,
        /// Who may change it.
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
        /// Path of the program.
        path: PathBuf,
        /// The error.
        source: io::Error,
    },
    /// It reported a failure.
    #[error("notify: {} ended with {status}", path.display())]
    Ended {
        /// Path of the program.
        path: PathBuf,
        /// Its exit status.
        status: ExitStatus,
    },
    /// Its exit status is unknown.
    #[error("notify: lost track of {}: {source}", path.display())]
    Lost {
        /// Path of the program.
        path: PathBuf,
        /// The error.
        source: io::Error,
    },
    /// It did not end in time.
    #[error("notify: {} was killed because it ran for more than {}", .0.display(), human(PATIENCE))]
    TooSlow(PathBuf),
}

impl HookError {
    /// For status; `name` is the path as configured.
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

/// [`programs`] on a blocking thread; `None`: the process is ending.
async fn list_programs(path: &Path) -> Option<Result<(Vec<PathBuf>, Option<HookError>), HookError>> {
    let path = path.to_owned();
    tokio::task::spawn_blocking(move || programs(&path)).await.ok()
}

/// The programs of a path: itself, or the executables in it, and what is wrong with one that is left out.
fn programs(path: &Path) -> Result<(Vec<PathBuf>, Option<HookError>), HookError> {
    let failed = |source: io::Error| HookError::Unreadable { path: path.to_owned(), source };
    if !trusted(path)?.is_dir {
        return runnable(path).map(|()| (vec![path.to_owned()], None));
    }
    let (mut found, mut problem) = (Vec::new(), None);
    for entry in std::fs::read_dir(path).map_err(failed)? {
        let entry = entry.map_err(failed)?.path();
        let name = entry.file_name().unwrap_or_default().to_string_lossy().into_owned();
        // Leftovers of editors and package managers are skipped.
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

/// Runs one program with one event, if it is still trusted: the programs before it may have taken a while.
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
    while handover::is_under_way() {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    let mut command = program::command(program);
    command
        .args(event.keepalived().into_iter().flatten())
        .env("AGENT_EVENT", event.kind.name())
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        // Goes where the agent's own goes.
        .stderr(Stdio::inherit());
    let mut child = command.spawn().map_err(failed)?;
    let group = ProcessGroup::of(&child);
    let stdin = child.stdin.take();
    let work = async {
        if let Some(mut stdin) = stdin {
            // A program that does not read it does not need it.
            let _ = stdin.write_all(&json).await;
        }
        ended(program, &mut child).await
    };
    match tokio::time::timeout(PATIENCE, work).await {
        Ok(result) => {
            // What it left running may continue.
            group.release();
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
    async fn a_hung_program_is_killed_with_what_it_started() {
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
    fn only_programs_are_run_and_no_world_writable_ones() {
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
    async fn a_program_that_became_writable_for_others_is_not_run() {
        let dir = trusted_dir();
        let out = dir.path().join("out");
        let inner = dir.path().join("notify.d");
        std::fs::create_dir(&inner).unwrap();
        // The first makes the directory writable for all.
        script(&inner, "10-first", 0o755, &format!("chmod 777 {}", inner.display()));
        script(&inner, "20-second", 0o755, &format!("touch {}", out.display()));
        let sink_errors = SinkErrors::default();
        run_all(&inner, &vip(), &sink_errors).await;
        let said: String = sink_errors.list().iter().map(Problem::to_string).collect();
        assert!(said.contains("20-second was not run: ") && said.contains("run: chmod go-w "), "{said}");
        assert!(!out.exists());
    }

    #[tokio::test]
    async fn problems_are_reported_before_the_first_event() {
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
    async fn queued_events_are_delivered_after_a_panic_too() {
        let dir = trusted_dir();
        let out = dir.path().join("out");
        let path = script(dir.path(), "hook", 0o755, &format!("touch {}", out.display()));
        let life = Lifecycle::new();
        crate::supervisor::tests::fail_once("hooks");
        let mut hook = Hook::spawn(&path.display().to_string(), SinkErrors::default(), &life);
        hook.enqueue(&Arc::new(vip()));
        // Queued events are delivered once the queue is closed.
        drop(hook);
        life.finished().await;
        assert!(crate::supervisor::tests::has_failed() && out.exists());
    }

    #[tokio::test]
    async fn failures_and_dropped_events_are_reported() {
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
