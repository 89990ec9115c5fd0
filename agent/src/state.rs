//! The state directory: what a node needs to return to its cluster after a restart.
//!
//! Each file is one JSON value after a header line with its checksum. A file is replaced by a rename, and the
//! old one is kept as `.prev`, so at every moment, also after a power cut between any two operations, a whole
//! copy can be read. Garbled files are set aside, never deleted.
//!
//! ```text
//! cluster           the value
//! cluster.prev      the value before
//! cluster.bad-1700  a copy that could not be read, and when that was seen; the newest three are kept
//! cluster.new       a write that has not finished; worthless after a crash
//! lock              held by the agent that uses the directory
//! ```
//!
//! All of it blocks; from a task, call it by `spawn_blocking`.

mod error;
mod format;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::fs::{self, DirBuilder, File, OpenOptions, TryLockError};
use std::io::{self, ErrorKind, Read, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use serde::Serialize;
use serde::de::{DeserializeOwned, IgnoredAny};

use crate::lifecycle::wall;
pub(crate) use error::StateError;
use format::{FileContent, FileValue, MARK};

/// More garbled copies of one file than this are of no use, and a failing disk would fill up.
const BAD_KEPT: usize = 3;
const LOCK: &str = "lock";

/// Most that is read of a file: a cluster document at its limits takes a fraction of it, and a larger file must
/// not cost the node its memory.
const LARGEST_BYTES: usize = 64 << 20;

/// The lines of events, and the older half of them: not in the store's format, but the agent's all the same.
pub(crate) const EVENTS: &str = "events";
pub(crate) const EVENTS_OLD: &str = "events.1";

/// A kind of state file: its name, and the highest version that this agent reads, which is the one that it
/// writes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct StateFile {
    pub(crate) name: &'static str,
    pub(crate) version: u32,
}

impl StateFile {
    /// A file at its first version.
    pub(crate) const fn first(name: &'static str) -> StateFile {
        StateFile { name, version: 1 }
    }

    /// The same, with a new version in the next release.
    pub(crate) const fn raised_next(name: &'static str) -> StateFile {
        StateFile { name, version: 1 + proto::next_wire::RAISE as u32 }
    }
}

/// The bytes of a file with this value.
pub(crate) fn encode<T: Serialize>(file: StateFile, value: &T) -> Result<Vec<u8>, StateError> {
    format::encode(file, value).map_err(|source| StateError::Encode { name: file.name.into(), source })
}

/// A state directory that this process alone uses.
#[derive(Debug)]
pub(crate) struct StateDir {
    dir: PathBuf,
    /// Holds the lock for as long as the store lives. None if the file system has no locks.
    _lock: Option<File>,
    /// Another process uses it: nothing is changed.
    only_looks: bool,
    /// One write at a time: all writes of a name go through the same temporary file.
    writing: Mutex<WriteState>,
}

/// State that writes need.
#[derive(Debug, Default)]
struct WriteState {
    /// By name, the copy that belongs to another agent. While it exists, nothing is written.
    kept: BTreeMap<&'static str, PathBuf>,
}

/// What was found under a name.
#[derive(Debug)]
pub(crate) struct LoadedFile<T> {
    /// The newest complete copy; None when there is none.
    pub(crate) value: Option<T>,
    /// One sentence for a person when something was wrong with the files.
    pub(crate) problem: Option<String>,
}

/// The operations of one save, in order. A list, so that a test can stop after each of them.
#[derive(Debug, Clone, Copy, PartialEq)]
enum SaveStep {
    /// Removes leftovers of an interrupted save.
    Clear,
    /// Writes the new value next to the old one and syncs it.
    WriteNew,
    /// Hard-links the old value, so that it always has a name.
    LinkOld,
    /// Makes that the previous copy.
    KeepOld,
    /// The one moment at which the value changes.
    Replace,
    /// Syncs the directory.
    SyncDir,
}

const SAVE: [SaveStep; 6] = [
    SaveStep::Clear,
    SaveStep::WriteNew,
    SaveStep::LinkOld,
    SaveStep::KeepOld,
    SaveStep::Replace,
    SaveStep::SyncDir,
];

impl StateDir {
    /// Opens the directory, creates it if missing, and locks it. A directory that can be read but not written
    /// opens too: the agent then serves from what it knows and reports that it can't save.
    pub(crate) fn open(dir: &Path) -> Result<StateDir, StateError> {
        let create = |source| StateError::Create { dir: dir.into(), source };
        if !dir.is_dir() {
            if let Some(parent) = dir.parent() {
                fs::create_dir_all(parent).map_err(create)?;
            }
            DirBuilder::new().mode(0o700).create(dir).map_err(create)?;
        }
        let lock = lock(dir)?;
        Ok(StateDir { dir: dir.into(), _lock: lock, only_looks: false, writing: Mutex::default() })
    }

    /// The directory of a running agent, to see whether this program could use it. Nothing in it is changed.
    pub(crate) fn look(dir: &Path) -> StateDir {
        StateDir { dir: dir.into(), _lock: None, only_looks: true, writing: Mutex::default() }
    }

    /// The directory.
    #[cfg(test)]
    pub(crate) fn dir(&self) -> &Path {
        &self.dir
    }

    /// Reads the newest complete copy of `file`. No file at all is no problem; a problem without a value
    /// means that there was something and none of it can be used. A file of another agent is an error
    /// ([`StateError::is_kept`]), stays where it is, and is not overwritten as long as it exists.
    pub(crate) fn read<T: DeserializeOwned>(&self, file: StateFile) -> Result<LoadedFile<T>, StateError> {
        let mut writing = self.writing.lock().unwrap_or_else(PoisonError::into_inner);
        self.newest(file).inspect_err(|error| {
            if let StateError::Newer { path, .. } | StateError::NotUnderstood { path, .. } = error {
                writing.kept.insert(file.name, path.clone());
            }
        })
    }

    fn newest<T: DeserializeOwned>(&self, file: StateFile) -> Result<LoadedFile<T>, StateError> {
        let name = file.name;
        let prev = format!("{name}.prev");
        let path = self.dir.join(name);
        let mut unreadable = None;
        let found = match self.copy::<T>(file, name)? {
            StoredCopy::Whole(value) => return Ok(LoadedFile { value: Some(value), problem: None }),
            StoredCopy::Missing => None,
            StoredCopy::Bad(why) => Some(format!("{why}{}", self.set_aside(name, name))),
            StoredCopy::Unreadable(error) => {
                let why = format!("can't be read ({error})");
                unreadable = Some(error);
                Some(why)
            }
        };
        let missing = found.is_none();
        let found = format!("state file {} {}", path.display(), found.as_deref().unwrap_or("is missing"));
        let (value, end) = match self.copy::<T>(file, &prev)? {
            StoredCopy::Whole(value) => (Some(value), format!("using its previous copy {prev}")),
            StoredCopy::Missing if missing => return Ok(LoadedFile { value: None, problem: None }),
            StoredCopy::Unreadable(source) => {
                return Err(StateError::Read { path: self.dir.join(prev), source });
            }
            StoredCopy::Missing => (None, "there is no previous copy".to_owned()),
            StoredCopy::Bad(why) => {
                (None, format!("its previous copy {prev} {why}{}", self.set_aside(&prev, name)))
            }
        };
        match (value, unreadable) {
            // This must not look like a new node: its state exists, but can't be read.
            (None, Some(source)) => Err(StateError::Read { path, source }),
            (value, _) => Ok(LoadedFile { value, problem: Some(format!("{found}; {end}")) }),
        }
    }

    /// Replaces the value of `file`. When it fails, the old value is still there.
    pub(crate) fn write<T: Serialize>(&self, file: StateFile, value: &T) -> Result<(), StateError> {
        self.write_bytes(file, &encode(file, value)?)
    }

    /// The same with a value that is encoded already.
    pub(crate) fn write_bytes(&self, file: StateFile, bytes: &[u8]) -> Result<(), StateError> {
        let name = file.name;
        if self.only_looks {
            return Err(StateError::Kept { path: self.dir.join(name) });
        }
        let mut writing = self.writing.lock().unwrap_or_else(PoisonError::into_inner);
        self.check_kept(&mut writing, file)?;
        self.save(name, bytes, &SAVE).inspect_err(|_| {
            // A half-written file on a full disk only makes it fuller. Its removal may fail as well.
            let _ = fs::remove_file(self.dir.join(format!("{name}.new")));
        })
    }

    /// Whether it belongs to another agent and was not overwritten.
    pub(crate) fn is_kept(&self, file: StateFile) -> bool {
        let mut writing = self.writing.lock().unwrap_or_else(PoisonError::into_inner);
        self.check_kept(&mut writing, file).is_err_and(|error| error.is_kept())
    }

    /// Refuses when a copy belongs to another agent: as read before, or, for a file that was not read yet, by
    /// the version of either copy.
    fn check_kept(&self, writing: &mut WriteState, file: StateFile) -> Result<(), StateError> {
        if let Some(path) = writing.kept.get(file.name) {
            if path.exists() {
                return Err(StateError::Kept { path: path.clone() });
            }
            writing.kept.remove(file.name);
        }
        for copy in [file.name.to_owned(), format!("{}.prev", file.name)] {
            self.copy::<IgnoredAny>(file, &copy)?;
        }
        Ok(())
    }

    /// Removes every file that a store wrote here, and nothing else. Returns what else is there.
    pub(crate) fn remove_all(&self) -> Result<Vec<PathBuf>, StateError> {
        let _one_at_a_time = self.writing.lock().unwrap_or_else(PoisonError::into_inner);
        let names = self.names()?;
        // A garbled copy has lost its mark, so one marked copy vouches for its siblings.
        let marked = |name: &String| {
            let mut start = [0; MARK.len()];
            let file = File::open(self.dir.join(name)).and_then(|mut f| f.read_exact(&mut start));
            file.is_ok() && start == *MARK.as_bytes()
        };
        let ours: Vec<String> = names.iter().filter(|n| marked(n)).map(|n| stem(n).to_owned()).collect();
        let mut left = Vec::new();
        for name in names {
            let path = self.dir.join(&name);
            if ours.iter().any(|s| s == stem(&name)) || [EVENTS, EVENTS_OLD].contains(&name.as_str()) {
                fs::remove_file(&path).map_err(|source| self.failed("remove", &path, source))?;
            } else if name != LOCK {
                left.push(path);
            }
        }
        self.sync_dir()?;
        Ok(left)
    }

    /// Removes all of it, and the directory too when it is then empty. Returns the foreign files.
    pub(crate) fn purge(self) -> Result<Vec<PathBuf>, StateError> {
        let left = self.remove_all()?;
        let lock = self.dir.join(LOCK);
        match fs::remove_file(&lock) {
            Err(source) if source.kind() != ErrorKind::NotFound => {
                return Err(self.failed("remove", &lock, source));
            }
            _ => {}
        }
        if left.is_empty() {
            // It may be a mount point or belong to systemd, which then removes it.
            let _ = fs::remove_dir(&self.dir);
        }
        Ok(left)
    }

    fn save(&self, name: &str, bytes: &[u8], steps: &[SaveStep]) -> Result<(), StateError> {
        let current = self.dir.join(name);
        let prev = self.dir.join(format!("{name}.prev"));
        let new = self.dir.join(format!("{name}.new"));
        let link = self.dir.join(format!("{name}.prev.new"));
        for step in steps {
            match step {
                SaveStep::Clear => {
                    for leftover in [&new, &link] {
                        self.ok_if_missing("remove", leftover, fs::remove_file(leftover))?;
                    }
                }
                SaveStep::WriteNew => {
                    write_synced(&new, bytes).map_err(|source| self.failed("write", &new, source))?;
                }
                SaveStep::LinkOld => self.link_old(name, &current, &link)?,
                // There is no old value before the first save.
                SaveStep::KeepOld => {
                    self.ok_if_missing("rename", &prev, fs::rename(&link, &prev))?;
                    // After an interrupted save both may be names of one file, which rename(2) does not
                    // touch.
                    self.ok_if_missing("remove", &link, fs::remove_file(&link))?;
                }
                SaveStep::Replace => {
                    fs::rename(&new, &current).map_err(|source| self.failed("rename", &current, source))?;
                }
                SaveStep::SyncDir => self.sync_dir()?,
            }
        }
        Ok(())
    }

    fn link_old(&self, name: &str, current: &Path, link: &Path) -> Result<(), StateError> {
        // What is missing or unreadable can't become the previous copy; the new value replaces it.
        let Ok(old) = read_bounded(current) else { return Ok(()) };
        if !matches!(format::decode(&old), FileContent::Whole(_)) {
            // A garbled file must not replace the good previous copy.
            self.set_aside(name, name);
            return Ok(());
        }
        match fs::hard_link(current, link) {
            Ok(()) => Ok(()),
            Err(source) if full_or_read_only(&source) => Err(self.failed("link", link, source)),
            // Not every file system has hard links.
            Err(_) => write_synced(link, &old).map_err(|source| self.failed("write", link, source)),
        }
    }

    fn sync_dir(&self) -> Result<(), StateError> {
        let synced = File::open(&self.dir).and_then(|dir| dir.sync_all());
        synced.map_err(|source| self.failed("sync", &self.dir, source))
    }

    fn copy<T: DeserializeOwned>(&self, file: StateFile, copy: &str) -> Result<StoredCopy<T>, StateError> {
        let path = self.dir.join(copy);
        let bytes = match read_bounded(&path) {
            Ok(bytes) if bytes.len() > LARGEST_BYTES => {
                return Ok(StoredCopy::Bad("is larger than any state file".to_owned()));
            }
            Ok(bytes) => bytes,
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(StoredCopy::Missing),
            Err(error) => return Ok(StoredCopy::Unreadable(error)),
        };
        match format::decode(&bytes) {
            FileContent::Newer(version) => {
                Err(StateError::Newer { path, what: "format", version, highest: format::VERSION })
            }
            FileContent::Bad(why) => Ok(StoredCopy::Bad(why.to_owned())),
            FileContent::Whole(body) => match format::value(file, body) {
                FileValue::Whole(value) => Ok(StoredCopy::Whole(value)),
                FileValue::Newer(version) => {
                    Err(StateError::Newer { path, what: "version", version, highest: file.version })
                }
                FileValue::Odd(source) => Err(StateError::NotUnderstood { path, source }),
            },
        }
    }

    /// Renames a garbled `file` so that a person can examine it. Returns where it went, as the end of a
    /// sentence.
    fn set_aside(&self, file: &str, name: &str) -> String {
        if self.only_looks {
            return String::new();
        }
        let mut bad: Vec<(u64, String)> = self
            .names()
            .unwrap_or_default()
            .into_iter()
            .filter_map(|n| Some((bad_at(&n, name)?, n)))
            .collect();
        bad.sort_unstable();
        // Never the name of an earlier one, even if the clock stood still or was set back.
        let at = bad.last().map_or(0, |(at, _)| at.saturating_add(1)).max(wall().0);
        let aside = format!("{name}.bad-{at}");
        if let Err(error) = fs::rename(self.dir.join(file), self.dir.join(&aside)) {
            return format!(" and cannot be moved aside ({error})");
        }
        for (_, old) in bad.iter().rev().skip(BAD_KEPT - 1) {
            // If it stays, the next call removes it.
            let _ = fs::remove_file(self.dir.join(old));
        }
        format!(" and was moved to {aside}")
    }

    fn names(&self) -> Result<Vec<String>, StateError> {
        let read = |source| StateError::Read { path: self.dir.clone(), source };
        let mut names = Vec::new();
        for entry in fs::read_dir(&self.dir).map_err(read)? {
            names.push(entry.map_err(read)?.file_name().to_string_lossy().into_owned());
        }
        names.sort_unstable();
        Ok(names)
    }

    fn ok_if_missing(&self, act: &'static str, path: &Path, done: io::Result<()>) -> Result<(), StateError> {
        match done {
            Err(source) if source.kind() != ErrorKind::NotFound => Err(self.failed(act, path, source)),
            _ => Ok(()),
        }
    }

    fn failed(&self, act: &'static str, path: &Path, source: io::Error) -> StateError {
        StateError::Write { act, dir: self.dir.clone(), path: path.into(), source }
    }
}

enum StoredCopy<T> {
    Whole(T),
    Missing,
    /// The reason, as the end of a sentence that starts with the file.
    Bad(String),
    Unreadable(io::Error),
}

/// `cluster` of `cluster`, `cluster.prev`, `cluster.prev.new`, `cluster.new` and `cluster.bad-1700`.
fn stem(name: &str) -> &str {
    if let Some((stem, at)) = name.rsplit_once(".bad-")
        && at.parse::<u64>().is_ok()
    {
        return stem;
    }
    let name = name.strip_suffix(".new").unwrap_or(name);
    name.strip_suffix(".prev").unwrap_or(name)
}

fn bad_at(file: &str, name: &str) -> Option<u64> {
    file.strip_prefix(name)?.strip_prefix(".bad-")?.parse().ok()
}

/// A file's bytes, or one more than [`LARGEST_BYTES`].
fn read_bounded(path: &Path) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    File::open(path)?.take(LARGEST_BYTES as u64 + 1).read_to_end(&mut bytes)?;
    Ok(bytes)
}

fn write_synced(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)?;
    file.write_all(bytes)?;
    file.sync_all()
}

fn full_or_read_only(error: &io::Error) -> bool {
    use ErrorKind::{QuotaExceeded, ReadOnlyFilesystem, StorageFull};
    matches!(error.kind(), StorageFull | QuotaExceeded | ReadOnlyFilesystem)
}

fn lock(dir: &Path) -> Result<Option<File>, StateError> {
    let path = dir.join(LOCK);
    let writable =
        OpenOptions::new().read(true).write(true).create(true).truncate(false).mode(0o600).open(&path);
    // If nothing can be written, the file of an earlier start or the directory itself can still be locked.
    let mut file = writable
        .or_else(|_| File::open(&path))
        .or_else(|_| File::open(dir))
        .map_err(|source| StateError::Lock { path: path.clone(), source })?;
    match file.try_lock() {
        Ok(()) => {
            // Only for the error message of a second agent, so it may fail.
            let _ = file.set_len(0).and_then(|()| write!(file, "{}", std::process::id()));
            Ok(Some(file))
        }
        Err(TryLockError::WouldBlock) => {
            let mut holder = String::new();
            let _ = file.read_to_string(&mut holder);
            Err(StateError::InUse { dir: dir.into(), pid: holder.trim().parse().ok() })
        }
        Err(TryLockError::Error(source)) if source.kind() == ErrorKind::Unsupported => {
            tracing::warn!(
                "{} is on a file system without locks; make sure that only one agent uses it",
                dir.display()
            );
            Ok(None)
        }
        Err(TryLockError::Error(source)) => Err(StateError::Lock { path, source }),
    }
}
