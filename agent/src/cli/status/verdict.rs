//! The first line of status: its tone, and the code to end with.

use proto::control::Status;
use proto::time::UnixMs;

use super::Severity;
use crate::cli::exit;
use crate::verdict::{self, HealthLevel};

/// How it is, all in all.
pub(super) struct StatusSummary {
    /// What `--exit-code` ends with.
    pub(super) code: u8,
    /// The line.
    pub(super) text: String,
    /// How it sounds.
    pub(super) severity: Severity,
}

/// Judges a status.
pub(super) fn summarize(status: &Status, now: UnixMs) -> StatusSummary {
    let verdict::HealthVerdict { level, text } = verdict::evaluate(status, now);
    let code = match level {
        HealthLevel::Fine => 0,
        HealthLevel::Degraded => exit::DEGRADED,
        HealthLevel::NoMaster => exit::NO_MASTER,
    };
    StatusSummary { code, text, severity: level.into() }
}
