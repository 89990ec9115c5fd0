//! What can go wrong with the state directory, in words that name the act, the path and the next step.

use std::fmt;
use std::io::{self, ErrorKind};
use std::path::PathBuf;

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
    /// A whole file in a format that this agent does not know.
    Newer { path: PathBuf, version: u32 },
    /// The value can't be put in JSON.
    Encode { name: String, source: serde_json::Error },
    /// Something could not be written. The state on disk is the old one.
    Write { act: &'static str, dir: PathBuf, path: PathBuf, source: io::Error },
}

impl fmt::Display for StateError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            StateError::Create { dir, source } => write!(
                f,
                "can't create the state directory {}: {source}; create it, or choose another by --state-dir",
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
                     its own directory by --state-dir",
                    dir.display()
                )
            }
            StateError::Lock { path, source } => {
                write!(f, "can't lock {}: {source}; check who may use this directory", path.display())
            }
            StateError::Read { path, source } => write!(
                f,
                "can't read {}: {source}; check who owns it, or run as the user that wrote it",
                path.display()
            ),
            StateError::Newer { path, version } => write!(
                f,
                "{} was written by a newer agent (format {version}, this one reads 1); install that agent",
                path.display()
            ),
            StateError::Encode { name, source } => write!(f, "can't save {name}: {source}"),
            StateError::Write { act, dir, path, source } => {
                let (what, next) = match source.kind() {
                    ErrorKind::StorageFull | ErrorKind::QuotaExceeded => ("is full", "free space"),
                    ErrorKind::ReadOnlyFilesystem => ("is read-only", "make it writable"),
                    ErrorKind::PermissionDenied => ("may not be written", "check who owns it"),
                    ErrorKind::NotFound => ("is gone", "put it back"),
                    _ => ("can't be written", "check the disk"),
                };
                write!(
                    f,
                    "state directory {} {what}: {act} {}: {source}; {next}, the agent goes on without saving",
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
            StateError::Encode { source, .. } => Some(source),
            StateError::InUse { .. } | StateError::Newer { .. } => None,
        }
    }
}
