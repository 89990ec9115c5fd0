//! Events on disk: a line of JSON for each, appended and not synced; two files, so that the older can be
//! dropped whole.
//!
//! A power cut may take the last lines or tear one; what can't be read is skipped and said. The file stays
//! open, so that a node that has left its cluster does not write into the directory that it has emptied.

use std::fs::{self, File, OpenOptions};
use std::io::{self, BufRead, BufReader, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use proto::event::{Event, Ring};
use proto::problem::{Problem, ProblemCode};
use tokio::sync::mpsc;

use super::Troubles;
use crate::lifecycle::Life;
use crate::state::{EVENTS, EVENTS_OLD};

/// Largest file: holds more than [`proto::event::KEPT`] events of the usual size.
const MAX_FILE: u64 = 512 * 1024;

/// Longest line that is read: several times the longest event.
const MAX_LINE: u64 = 8 * 1024;

/// Batches on their way to the disk. One that hangs costs the events that do not fit, and nothing else.
const QUEUE: usize = 64;

/// The file that is written.
#[derive(Debug)]
pub(super) struct Log {
    dir: PathBuf,
    file: File,
    len: u64,
    /// The last write failed, perhaps in the middle of a line.
    torn: bool,
}

impl Log {
    /// Opens the file for appending; a torn last line, which [`load`] has told of, is cut off.
    pub(super) fn open(dir: &Path) -> io::Result<Log> {
        let mut file = options().open(dir.join(EVENTS))?;
        let mut len = file.seek(SeekFrom::End(0))?;
        let mut end = Vec::new();
        file.seek(SeekFrom::Start(len.saturating_sub(MAX_LINE)))?;
        (&file).take(MAX_LINE).read_to_end(&mut end)?;
        let whole = end.iter().rposition(|byte| *byte == b'\n').map(|at| at + 1);
        // A file that holds only the beginning of a line.
        let whole = whole.or((len < MAX_LINE).then_some(0));
        if let Some(torn) = whole.map(|whole| end.len() - whole).filter(|torn| *torn > 0) {
            len -= torn as u64;
            file.set_len(len)?;
        }
        Ok(Log { dir: dir.to_owned(), file, len, torn: whole.is_none() && len > 0 })
    }

    /// Appends events in one write.
    pub(super) fn append(&mut self, events: &[Arc<Event>]) -> io::Result<()> {
        if self.len >= MAX_FILE {
            fs::rename(self.dir.join(EVENTS), self.dir.join(EVENTS_OLD))?;
            self.file = options().open(self.dir.join(EVENTS))?;
            self.len = 0;
        }
        let mut bytes = if std::mem::replace(&mut self.torn, true) { vec![b'\n'] } else { Vec::new() };
        for event in events {
            serde_json::to_writer(&mut bytes, &proto::next_wire::grown(event))?;
            bytes.push(b'\n');
        }
        self.file.write_all(&bytes)?;
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

/// Reads what earlier runs kept. The second value says what was wrong with it.
pub(super) fn load(dir: &Path) -> (Ring, Option<Problem>) {
    let (mut ring, mut bad) = (Ring::default(), 0_u32);
    let mut problem = None;
    for name in [EVENTS_OLD, EVENTS] {
        match File::open(dir.join(name)) {
            Ok(file) => {
                if let Err(error) = read(file, &mut ring, &mut bad) {
                    problem = Some(unread(&error));
                }
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => problem = Some(unread(&error)),
        }
    }
    if bad > 0 {
        let detail = format!("{bad} events of earlier runs were torn and are skipped");
        problem = Some(Problem::new(ProblemCode::EventsDisk, detail));
    }
    (ring, problem)
}

fn unread(error: &io::Error) -> Problem {
    Problem::new(ProblemCode::EventsDisk, format!("the events of earlier runs can't be read: {error}"))
}

fn read(file: File, ring: &mut Ring, bad: &mut u32) -> io::Result<()> {
    let mut lines = BufReader::new(file);
    let mut line = Vec::new();
    loop {
        line.clear();
        if lines.by_ref().take(MAX_LINE).read_until(b'\n', &mut line)? == 0 {
            return Ok(());
        }
        match serde_json::from_slice::<Event>(&line) {
            // Numbers go up; what does not was put there by someone else, or by a disk.
            Ok(event) if event.seq > ring.newest() && event.seq < u64::MAX / 2 => {
                ring.restore(event);
            }
            Ok(_) | Err(_) => *bad += u32::from(line != b"\n"),
        }
    }
}

/// Starts the task that writes. It goes on until the sender is gone, so that the last events are kept too.
pub(super) fn spawn(mut log: Log, troubles: Troubles, life: &Life) -> mpsc::Sender<Vec<Arc<Event>>> {
    let (sender, mut queue) = mpsc::channel::<Vec<Arc<Event>>>(QUEUE);
    life.spawn(async move {
        while let Some(mut batch) = queue.recv().await {
            while let Ok(more) = queue.try_recv() {
                batch.extend(more);
            }
            let work = move || {
                let done = log.append(&batch);
                (log, done)
            };
            let Ok((back, done)) = tokio::task::spawn_blocking(work).await else { return };
            log = back;
            match done {
                Ok(()) => troubles.mended(ProblemCode::EventsDisk, ""),
                Err(error) => {
                    let detail = format!("events can't be kept on disk: {error}");
                    troubles.found(Problem::new(ProblemCode::EventsDisk, detail));
                }
            }
        }
    });
    sender
}

#[cfg(test)]
mod tests {
    use proto::event::Kind;
    use proto::time::UnixMs;

    use super::*;

    fn events(ring: &mut Ring, count: u64) -> Vec<Arc<Event>> {
        let event = |n| Event::new(Kind::Member, UnixMs(n), "m1", "up").reason("x".repeat(100));
        (0..count).map(|n| ring.push("w1", event(n))).collect()
    }

    #[test]
    fn what_was_kept_is_read_and_numbers_go_on() {
        let dir = tempfile::tempdir().unwrap();
        let mut ring = Ring::default();
        let mut log = Log::open(dir.path()).unwrap();
        log.append(&events(&mut ring, 3)).unwrap();
        let (mut again, problem) = load(dir.path());
        assert!(again.newest() == 3 && problem.is_none());
        let written =
            |ring: &Ring| ring.all().map(|one| serde_json::to_string(one).unwrap()).collect::<Vec<_>>();
        assert_eq!(written(&again), written(&ring));
        Log::open(dir.path()).unwrap().append(&events(&mut again, 1)).unwrap();
        assert_eq!(load(dir.path()).0.newest(), 4);
    }

    #[test]
    fn a_torn_last_line_is_skipped_and_said_and_does_not_spoil_the_next() {
        let dir = tempfile::tempdir().unwrap();
        let mut ring = Ring::default();
        Log::open(dir.path()).unwrap().append(&events(&mut ring, 3)).unwrap();
        let path = dir.path().join(EVENTS);
        let len = fs::metadata(&path).unwrap().len();
        options().open(&path).unwrap().set_len(len - 20).unwrap();
        let (mut again, problem) = load(dir.path());
        assert_eq!(again.newest(), 2);
        assert!(problem.unwrap().to_string().contains("1 events of earlier runs were torn"));
        Log::open(dir.path()).unwrap().append(&events(&mut again, 1)).unwrap();
        let (again, problem) = load(dir.path());
        assert_eq!((again.newest(), again.all().len()), (3, 3));
        assert!(problem.is_none(), "said once");
    }

    #[test]
    fn files_are_bounded_and_the_ring_is_whole_after_a_rotation() {
        let dir = tempfile::tempdir().unwrap();
        let mut ring = Ring::default();
        let mut log = Log::open(dir.path()).unwrap();
        for _ in 0..80 {
            log.append(&events(&mut ring, 100)).unwrap();
        }
        let size = |name| fs::metadata(dir.path().join(name)).unwrap().len();
        assert!(size(EVENTS) < MAX_FILE + 50_000 && size(EVENTS_OLD) < MAX_FILE + 50_000);
        let (again, problem) = load(dir.path());
        assert_eq!((again.newest(), again.all().len()), (8000, proto::event::KEPT));
        assert!(problem.is_none());
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
