//! Events on disk: a line of JSON for each, appended and not synced; two files, so that the older can be
//! dropped whole. The first line of each holds its version. As with the other state files, fields and kinds
//! may be added within one version; a file of a later version is neither read nor written to.
//!
//! A power cut may lose the last lines or tear one; unreadable lines are skipped and reported. The file stays
//! open, so that a node that has left its cluster does not write into the directory that it has emptied.

use std::fs::{self, File, OpenOptions};
use std::io::{self, BufRead, BufReader, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use proto::event::{Event, EventRing, KEPT};
use proto::problem::{Problem, ProblemCode};
use serde::{Deserialize, Serialize};
use tokio::sync::mpsc;

use super::SinkErrors;
use crate::lifecycle::Lifecycle;
use crate::state::{EVENTS, EVENTS_OLD};

/// Largest file: holds more than [`proto::event::KEPT`] events of the usual size.
const MAX_FILE: u64 = 512 * 1024;

/// Longest line that is read: several times the longest event.
const MAX_LINE: u64 = 8 * 1024;

/// The version that is written, and the highest that is read.
const VERSION: u32 = 1;

/// Batches queued for the disk. A disk that hangs loses the events that do not fit, and nothing else.
const QUEUE: usize = 64;

/// Time until what could not be written is tried again, where no other event comes before.
const RETRY: Duration = Duration::from_secs(5);

/// The first line of a file.
#[derive(Debug, Serialize, Deserialize)]
struct Header {
    version: u32,
}

/// A newer agent wrote the file.
#[derive(Debug, thiserror::Error)]
#[error(
    "{} was written by a newer agent (version {found}; this agent reads up to {VERSION}) and stays as it is; \
     to go on with it, install the newer agent again",
    path.display()
)]
struct Newer {
    path: PathBuf,
    found: u32,
}

impl Newer {
    /// Refuses a file by its first line, if that is complete.
    fn check(path: &Path, file: &File) -> io::Result<()> {
        let mut line = Vec::new();
        BufReader::new(file).take(MAX_LINE).read_until(b'\n', &mut line)?;
        match serde_json::from_slice::<Header>(&line) {
            Ok(Header { version: found }) if found > VERSION => {
                Err(io::Error::other(Newer { path: path.to_owned(), found }))
            }
            _ => Ok(()),
        }
    }
}

/// The file being written.
#[derive(Debug)]
pub(super) struct EventLog {
    dir: PathBuf,
    file: File,
    len: u64,
    /// The last write failed, perhaps in the middle of a line.
    torn: bool,
}

impl EventLog {
    /// Opens the file for appending; a torn last line, which [`load`] has reported, is cut off.
    ///
    /// Neither file may be of a newer agent: the older one would be replaced.
    pub(super) fn open(dir: &Path) -> io::Result<EventLog> {
        let old = dir.join(EVENTS_OLD);
        match File::open(&old) {
            Ok(file) => Newer::check(&old, &file)?,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
        let path = dir.join(EVENTS);
        let mut file = options().open(&path)?;
        Newer::check(&path, &file)?;
        let mut len = file.seek(SeekFrom::End(0))?;
        let mut end = Vec::new();
        file.seek(SeekFrom::Start(len.saturating_sub(MAX_LINE)))?;
        (&file).take(MAX_LINE).read_to_end(&mut end)?;
        let whole = end.iter().rposition(|byte| *byte == b'\n').map(|at| at + 1);
        // A file that holds only a partial line.
        let whole = whole.or((len < MAX_LINE).then_some(0));
        if let Some(torn) = whole.map(|whole| end.len() - whole).filter(|torn| *torn > 0) {
            len -= torn as u64;
            file.set_len(len)?;
        }
        Ok(EventLog { dir: dir.to_owned(), file, len, torn: whole.is_none() && len > 0 })
    }

    /// Appends events in one write.
    pub(super) fn append(&mut self, events: &[Arc<Event>]) -> io::Result<()> {
        if self.len >= MAX_FILE {
            fs::rename(self.dir.join(EVENTS), self.dir.join(EVENTS_OLD))?;
            self.file = options().open(self.dir.join(EVENTS))?;
            self.len = 0;
        }
        let torn = std::mem::replace(&mut self.torn, true);
        let mut bytes = if torn { vec![b'\n'] } else { Vec::new() };
        if self.len == 0 {
            serde_json::to_writer(&mut bytes, &Header { version: VERSION })?;
            bytes.push(b'\n');
        }
        for event in events {
            serde_json::to_writer(&mut bytes, &proto::next_wire::grown(event))?;
            bytes.push(b'\n');
        }
        if let Err(error) = self.file.write_all(&bytes) {
            // The same events come again.
            self.torn = self.file.set_len(self.len).is_err() || torn;
            return Err(error);
        }
        self.len += bytes.len() as u64;
        self.torn = false;
        Ok(())
    }
}

fn options() -> OpenOptions {
    let mut options = OpenOptions::new();
    options.read(true).append(true).create(true).mode(0o600);
    options
}

/// Reads the events of earlier runs. The second value is what was wrong with them.
pub(super) fn load(dir: &Path) -> (EventRing, Option<Problem>) {
    let (mut ring, mut bad) = (EventRing::default(), 0_u32);
    let mut problem = None;
    for name in [EVENTS_OLD, EVENTS] {
        let path = dir.join(name);
        match File::open(&path) {
            Ok(file) => {
                if let Err(error) = read(&path, file, &mut ring, &mut bad) {
                    problem = Some(unread(&error));
                }
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => problem = Some(unread(&error)),
        }
    }
    if bad > 0 {
        let were = if bad == 1 {
            "event of an earlier run was torn and is"
        } else {
            "events of earlier runs were torn and are"
        };
        let detail = format!("{bad} {were} skipped");
        problem = Some(Problem::new(ProblemCode::EventsDisk, detail));
    }
    (ring, problem)
}

fn unread(error: &io::Error) -> Problem {
    Problem::new(ProblemCode::EventsDisk, format!("cannot read the events of earlier runs: {error}"))
}

fn read(path: &Path, mut file: File, ring: &mut EventRing, bad: &mut u32) -> io::Result<()> {
    Newer::check(path, &file)?;
    file.rewind()?;
    let mut first = true;
    let mut lines = BufReader::new(file);
    let mut line = Vec::new();
    loop {
        line.clear();
        if lines.by_ref().take(MAX_LINE).read_until(b'\n', &mut line)? == 0 {
            return Ok(());
        }
        if std::mem::take(&mut first) && serde_json::from_slice::<Header>(&line).is_ok() {
            continue;
        }
        match serde_json::from_slice::<Event>(&line) {
            // Numbers increase; anything else was written by someone else, or by a faulty disk.
            Ok(event) if event.seq > ring.newest() && event.seq < u64::MAX / 2 => {
                ring.restore(event);
            }
            Ok(_) | Err(_) => *bad += u32::from(line != b"\n"),
        }
    }
}

/// Starts the task that writes. It runs until the sender is gone, so that the last events are kept too.
pub(super) fn spawn(
    mut log: EventLog,
    sink_errors: SinkErrors,
    life: &Lifecycle,
) -> mpsc::Sender<Vec<Arc<Event>>> {
    let (sender, mut queue) = mpsc::channel::<Vec<Arc<Event>>>(QUEUE);
    life.spawn(async move {
        let mut batch: Vec<Arc<Event>> = Vec::new();
        loop {
            match tokio::time::timeout(if batch.is_empty() { Duration::MAX } else { RETRY }, queue.recv())
                .await
            {
                Ok(Some(more)) => batch.extend(more),
                Ok(None) => return,
                Err(_elapsed) => {}
            }
            while let Ok(more) = queue.try_recv() {
                batch.extend(more);
            }
            let excess = batch.len().saturating_sub(KEPT);
            batch.drain(..excess);
            let work = move || {
                let done = log.append(&batch);
                (log, batch, done)
            };
            let Ok((back, written, done)) = tokio::task::spawn_blocking(work).await else { return };
            (log, batch) = (back, written);
            match done {
                Ok(()) => {
                    batch.clear();
                    sink_errors.resolved(ProblemCode::EventsDisk, "");
                }
                Err(error) => {
                    let detail = format!("cannot write events to disk: {error}");
                    sink_errors.report_problem(Problem::new(ProblemCode::EventsDisk, detail));
                }
            }
        }
    });
    sender
}

#[cfg(test)]
mod tests {
    use proto::event::EventKind;
    use proto::time::UnixMs;

    use super::*;

    fn events(ring: &mut EventRing, count: u64) -> Vec<Arc<Event>> {
        let event = |n| Event::new(EventKind::Member, UnixMs(n), "m1", "up").reason("x".repeat(100));
        (0..count).map(|n| ring.push("w1", event(n))).collect()
    }

    #[test]
    fn kept_events_are_read_and_numbers_continue() {
        let dir = tempfile::tempdir().unwrap();
        let mut ring = EventRing::default();
        let mut log = EventLog::open(dir.path()).unwrap();
        log.append(&events(&mut ring, 3)).unwrap();
        let (mut again, problem) = load(dir.path());
        assert!(again.newest() == 3 && problem.is_none());
        let written =
            |ring: &EventRing| ring.all().map(|one| serde_json::to_string(one).unwrap()).collect::<Vec<_>>();
        assert_eq!(written(&again), written(&ring));
        EventLog::open(dir.path()).unwrap().append(&events(&mut again, 1)).unwrap();
        assert_eq!(load(dir.path()).0.newest(), 4);
    }

    #[test]
    fn a_torn_last_line_is_skipped_reported_and_does_not_affect_the_next() {
        let dir = tempfile::tempdir().unwrap();
        let mut ring = EventRing::default();
        EventLog::open(dir.path()).unwrap().append(&events(&mut ring, 3)).unwrap();
        let path = dir.path().join(EVENTS);
        let len = fs::metadata(&path).unwrap().len();
        options().open(&path).unwrap().set_len(len - 20).unwrap();
        let (mut again, problem) = load(dir.path());
        assert_eq!(again.newest(), 2);
        assert!(problem.unwrap().to_string().contains("1 event of an earlier run was torn and is skipped"));
        EventLog::open(dir.path()).unwrap().append(&events(&mut again, 1)).unwrap();
        let (again, problem) = load(dir.path());
        assert_eq!((again.newest(), again.all().len()), (3, 3));
        assert!(problem.is_none(), "said once");
    }

    #[test]
    fn files_are_bounded_and_the_ring_is_whole_after_a_rotation() {
        let dir = tempfile::tempdir().unwrap();
        let mut ring = EventRing::default();
        let mut log = EventLog::open(dir.path()).unwrap();
        for _ in 0..80 {
            log.append(&events(&mut ring, 100)).unwrap();
        }
        let size = |name| fs::metadata(dir.path().join(name)).unwrap().len();
        assert!(size(EVENTS) < MAX_FILE + 50_000 && size(EVENTS_OLD) < MAX_FILE + 50_000);
        let (again, problem) = load(dir.path());
        assert_eq!((again.newest(), again.all().len()), (8000, proto::event::KEPT));
        assert!(problem.is_none());
    }

    /// The bytes of the file, as the first version with this format wrote them.
    fn golden() -> PathBuf {
        Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/state/events")
    }

    #[test]
    fn the_file_has_the_bytes_of_its_release_and_they_are_read() {
        let dir = tempfile::tempdir().unwrap();
        let mut ring = EventRing::default();
        let mut vip = Event::new(EventKind::VipState, UnixMs(1_700_000_000_000), "10.0.0.9", "master");
        (vip.priority, vip.duration_ms) = (Some(99), Some(1500));
        let member =
            Event::new(EventKind::Member, UnixMs(1_700_000_001_000), "m2", "down").reason("it is silent");
        let events: Vec<_> = [vip, member].into_iter().map(|event| ring.push("m1", event)).collect();
        EventLog::open(dir.path()).unwrap().append(&events).unwrap();
        let written = fs::read_to_string(dir.path().join(EVENTS)).unwrap();
        if std::env::var_os("WRITE_GOLDEN").is_some() {
            fs::write(golden(), &written).unwrap();
        }
        assert_eq!(written, fs::read_to_string(golden()).unwrap());
        fs::copy(golden(), dir.path().join(EVENTS)).unwrap();
        let (read, problem) = load(dir.path());
        assert!(problem.is_none(), "{problem:?}");
        let lines: Vec<String> = read.all().map(|one| serde_json::to_string(one).unwrap()).collect();
        assert!(written.lines().skip(1).eq(lines), "{written}");
    }

    #[test]
    fn a_newer_agents_file_is_reported_and_kept_and_a_newer_field_is_ignored() {
        for name in [EVENTS, EVENTS_OLD] {
            let dir = tempfile::tempdir().unwrap();
            let path = dir.path().join(name);
            let newer = fs::read_to_string(golden()).unwrap().replacen(":1", ":2", 1);
            fs::write(&path, &newer).unwrap();
            let (ring, problem) = load(dir.path());
            assert_eq!(ring.newest(), 0);
            let text = problem.unwrap().to_string();
            assert!(text.contains("version 2; this agent reads up to 1"), "{text}");
            assert!(text.contains(&path.display().to_string()), "{text}");
            assert!(EventLog::open(dir.path()).is_err());
            assert_eq!(fs::read_to_string(&path).unwrap(), newer);
        }
        let dir = tempfile::tempdir().unwrap();
        let text = fs::read_to_string(golden()).unwrap();
        let later = text.replace('{', "{\"of_next_year\":[1],").replace("\"member\"", "\"next year's\"");
        fs::write(dir.path().join(EVENTS), later).unwrap();
        let (ring, problem) = load(dir.path());
        assert!(ring.newest() == 2 && problem.is_none(), "{problem:?}");
    }

    #[test]
    fn garbage_is_no_event_and_no_panic() {
        let dir = tempfile::tempdir().unwrap();
        let mut bytes = vec![0xff; 100_000];
        bytes.extend(b"\n{\"seq\":18446744073709551615}\n[]\n");
        fs::write(dir.path().join(EVENTS), bytes).unwrap();
        let (ring, problem) = load(dir.path());
        assert_eq!(ring.newest(), 0);
        assert!(problem.is_some());
    }
}
