//! How good or bad something is, beside its words: the same on the terminal and on the page.

use proto::backends::State;
use proto::control::MemberState;
use proto::event;

use crate::verdict;

/// What a text means, beside its words: never the only carrier of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Tone {
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

impl From<State> for Tone {
    fn from(state: State) -> Tone {
        match state {
            State::Ready => Tone::Good,
            State::Alive | State::Draining | State::Unknown | State::Suspect | State::Other(_) => Tone::Doubt,
            State::NotReady | State::Down => Tone::Bad,
        }
    }
}

impl From<MemberState> for Tone {
    fn from(state: MemberState) -> Tone {
        match state {
            MemberState::Up => Tone::Good,
            MemberState::Suspect => Tone::Doubt,
            MemberState::Down => Tone::Bad,
            MemberState::Left | MemberState::Other(_) => Tone::Dim,
        }
    }
}

impl From<verdict::Level> for Tone {
    fn from(level: verdict::Level) -> Tone {
        match level {
            verdict::Level::Fine => Tone::Good,
            verdict::Level::Degraded => Tone::Doubt,
            verdict::Level::NoMaster => Tone::Bad,
        }
    }
}

impl From<event::Level> for Tone {
    fn from(level: event::Level) -> Tone {
        match level {
            event::Level::Info => Tone::Plain,
            event::Level::Warning => Tone::Doubt,
            event::Level::Error => Tone::Bad,
        }
    }
}
