//! How good or bad something is: the same on the terminal and on the page.

use proto::backends::BackendState;
use proto::control::MemberState;
use proto::event;

use crate::verdict;

/// Severity of a text, in addition to its words: never its only carrier.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Severity {
    /// Nothing special.
    Plain,
    /// As it should be.
    Good,
    /// Worth a look.
    Doubt,
    /// Broken.
    Bad,
    /// Background.
    Dim,
}

impl From<BackendState> for Severity {
    fn from(state: BackendState) -> Severity {
        match state {
            BackendState::Ready => Severity::Good,
            BackendState::Alive
            | BackendState::Draining
            | BackendState::Unknown
            | BackendState::Suspect
            | BackendState::Other(_) => Severity::Doubt,
            BackendState::NotReady | BackendState::Down => Severity::Bad,
        }
    }
}

impl From<MemberState> for Severity {
    fn from(state: MemberState) -> Severity {
        match state {
            MemberState::Up => Severity::Good,
            MemberState::Suspect => Severity::Doubt,
            MemberState::Down => Severity::Bad,
            MemberState::Left | MemberState::Other(_) => Severity::Dim,
        }
    }
}

impl From<verdict::HealthLevel> for Severity {
    fn from(level: verdict::HealthLevel) -> Severity {
        match level {
            verdict::HealthLevel::Fine => Severity::Good,
            verdict::HealthLevel::Degraded => Severity::Doubt,
            verdict::HealthLevel::NoMaster => Severity::Bad,
        }
    }
}

impl From<event::EventLevel> for Severity {
    fn from(level: event::EventLevel) -> Severity {
        match level {
            event::EventLevel::Info => Severity::Plain,
            event::EventLevel::Warning => Severity::Doubt,
            event::EventLevel::Error => Severity::Bad,
        }
    }
}
