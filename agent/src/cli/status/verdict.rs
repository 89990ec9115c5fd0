//! The first line of status: its tone, and the code to end with.

use proto::control::Status;
use proto::time::UnixMs;

use super::Tone;
use crate::cli::exit;
use crate::verdict::{self, Level};

/// How it is, all in all.
pub(super) struct Verdict {
    /// What `--exit-code` ends with.
    pub(super) code: u8,
    /// The line.
    pub(super) text: String,
    /// How it sounds.
    pub(super) tone: Tone,
}

/// Judges a status.
pub(super) fn judge(status: &Status, now: UnixMs) -> Verdict {
    let verdict::Verdict { level, text } = verdict::judge(status, now);
    let code = match level {
        Level::Fine => 0,
        Level::Degraded => exit::DEGRADED,
        Level::NoMaster => exit::NO_MASTER,
    };
    Verdict { code, text, tone: level.into() }
}
