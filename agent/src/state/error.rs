//! What can go wrong with the state directory, in words that name the act, the path and the next step.

use std::fmt;
use std::io::{self, ErrorKind};
use std::path::PathBuf;

use super::{StateFile, stem};

/// A failed act on the state directory.
#[derive(Debug)]
pub(crate) enum StateError {
    /// The directory was missing and can't be made.
    Create { dir: PathBuf, source: io::Error },
    /// Another process holds the directory.
    InUse { dir: PathBuf, pid: Option<u32> },
    /// The lock failed for another reason.
    Lock { path: PathBuf, source: io::Error },
    /// Neither copy could be read, by no fault of what they contain.
    Read { path: PathBuf, source: io::Error },
    /// A whole file of a later agent: its version, or its format, is higher than the highest that this one
    /// reads. It stays as it is.
    Newer { path: PathBuf, what: &'static str, version: u32, highest: u32 },
    /// A whole file whose value is not what this agent expects. It stays as it is.
    NotUnderstood { path: PathBuf, source: serde_json::Error },
    /// A file that was one of the two above when it was read, and still lies there: it is not written over.
    Kept { path: PathBuf },
    /// The value can't be put in JSON.
    Encode { name: String, source: serde_json::Error },
    /// Something could not be written. The state on disk is the old one.
    Write { act: &'static str, dir: PathBuf, path: PathBuf, source: io::Error },
}

impl StateError {
    /// The file is another agent's, most likely a newer one's, and is left as it is.
    pub(crate) fn is_kept(&self) -> bool {
        use StateError::{Kept, Newer, NotUnderstood};
        matches!(self, Newer { .. } | NotUnderstood { .. } | Kept { .. })
    }

    /// It is about a copy of this file.
    pub(crate) fn is_about(&self, file: StateFile) -> bool {
        use StateError::{Kept, Newer, NotUnderstood, Read};
        match self {
            Read { path, .. } | Newer { path, .. } | NotUnderstood { path, .. } | Kept { path } => {
                path.file_name().and_then(|name| name.to_str()).is_some_and(|name| stem(name) == file.name)
            }
            _ => false,
        }
    }
}

impl fmt::Display for StateError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            StateError::Create { dir, source } => write!(
                f,
                "cannot create the state directory {}: {source}; create it, or choose another with --state-dir",
                dir.display()
            ),
            StateError::InUse { dir, pid } => {
                write!(f, "another agent")?;
                if let Some(pid) = pid {
                    write!(f, " (process {pid})")?;
                }
                write!(
                    f,
                    " uses the state directory {}; stop it first (systemctl stop agent), or give this one \
                     its own directory with --state-dir",
                    dir.display()
                )
            }
            StateError::Lock { path, source } => {
                write!(f, "cannot lock {}: {source}; check the permissions of the directory", path.display())
            }
            StateError::Read { path, source } => write!(
                f,
                "cannot read {}: {source}; check its owner, or run as the user that wrote it",
                path.display()
            ),
            StateError::Newer { path, what, version, highest } => write!(
                f,
                "{} was written by a newer agent ({what} {version}; this agent reads up to {highest}); it is \
                 kept as it is: install the newer agent again, or move the file away to do without it",
                path.display()
            ),
            StateError::NotUnderstood { path, source } => write!(
                f,
                "{} is intact but not understood, perhaps written by a newer agent ({source}); it is kept: \
                 install the agent that wrote it, or move the file away to do without it",
                path.display()
            ),
            StateError::Kept { path } => write!(
                f,
                "{} belongs to a newer agent and is not overwritten; install the agent that wrote it, or move the \
                 file away to do without it",
                path.display()
            ),
            StateError::Encode { name, source } => write!(f, "can't save {name}: {source}"),
            StateError::Write { act, dir, path, source } => {
                let (what, next) = match source.kind() {
                    ErrorKind::StorageFull | ErrorKind::QuotaExceeded => ("is full", "free space"),
                    ErrorKind::ReadOnlyFilesystem => ("is read-only", "make it writable"),
                    ErrorKind::PermissionDenied => ("is not writable", "check its owner"),
                    ErrorKind::NotFound => ("is gone", "restore it"),
                    _ => ("can't be written", "check the disk"),
                };
                write!(
                    f,
                    "state directory {} {what}: {act} {}: {source}; {next}; the agent continues without saving",
                    dir.display(),
                    path.display()
                )
            }
        }
    }
}

impl std::error::Error for StateError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            StateError::Create { source, .. }
            | StateError::Lock { source, .. }
            | StateError::Read { source, .. }
            | StateError::Write { source, .. } => Some(source),
            StateError::Encode { source, .. } | StateError::NotUnderstood { source, .. } => Some(source),
            StateError::InUse { .. } | StateError::Newer { .. } | StateError::Kept { .. } => None,
        }
    }
}
