//! Bounds of a document: how large it may be, how far its counters may step, how far its times may lie ahead.
//! They are checked on what comes and on what a merge would make of it, before that is adopted.

use std::fmt;
use std::time::Duration;

use super::{BadDocument, Document, Genesis, KeyEpoch, VERSION};
use crate::node::NodeId;
use crate::time::UnixMs;

/// Most nodes that a document may hold, and most removed ones besides: far above any Kubernetes cluster
/// (5,000), low enough that a hostile document can't fill memory.
pub const MAX_NODES: usize = 20_000;

/// Most settings, unset ones included: a weight and a drain for each of 5,000 nodes.
const MAX_SETTINGS: usize = 10_000;

/// Longest key of a setting, in bytes.
const MAX_KEY: usize = 256;

/// Longest value of a setting, in bytes: twice what `agent set` takes, so that a later version may take more.
const MAX_VALUE: usize = 16 * 1024;

/// Largest document, in bytes: half of the largest frame between members.
pub const MAX_BYTES: usize = 4 * 1024 * 1024;

/// No counter goes beyond this: what JSON carries exactly, and 285,000 years of one change a millisecond.
const CEILING: u64 = 1 << 53;

/// How far a counter may be ahead of ours in one adoption. A node that was off for ten years of one change
/// a minute is 5 million behind; a counter that jumps further was forged.
const STEP: u64 = 1 << 23;

/// How far a time may lie ahead of this node's clock: the error of a clock, not of a document.
const AHEAD: Duration = Duration::from_secs(24 * 3600);

/// A counter that has run away.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CounterJump {
    /// Of what.
    pub what: &'static str,
    /// Who wrote it, as the document says.
    pub by: NodeId,
    /// Where it stands.
    pub at: u64,
    /// The highest that would be taken.
    pub most: u64,
}

impl fmt::Display for CounterJump {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} is at {}, written by {}; the limit is {}", self.what, self.at, self.by, self.most)
    }
}

/// A time that lies ahead.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct TimeAhead {
    /// Whose clock was it.
    pub(super) by: NodeId,
    /// The time.
    pub(super) at: UnixMs,
}

/// The next value of a counter; none: it is at its end.
pub(super) fn next(counter: u64) -> Option<u64> {
    counter.checked_add(1).filter(|next| *next <= CEILING)
}

pub(super) fn bound(what: &'static str, found: usize, most: usize) -> Result<(), BadDocument> {
    if found > most { Err(BadDocument::TooLarge { what, found, most }) } else { Ok(()) }
}

fn counter(what: &'static str, by: NodeId, at: u64, most: u64) -> Result<(), CounterJump> {
    if at > most { Err(CounterJump { what, by, at, most }) } else { Ok(()) }
}

impl Document {
    /// Checks the rules that hold for every document, whoever wrote it.
    ///
    /// # Errors
    /// The first rule that is broken.
    pub fn check(&self) -> Result<(), BadDocument> {
        if self.version != VERSION {
            return Err(BadDocument::Version(self.version));
        }
        if Genesis::id(&self.genesis, &self.name) != self.id {
            return Err(BadDocument::Genesis);
        }
        bound("nodes", self.nodes.len(), MAX_NODES)?;
        bound("removed nodes", self.removed.len(), MAX_NODES)?;
        bound("changes of roles", self.roles.len(), MAX_NODES)?;
        bound("settings", self.settings.len(), MAX_SETTINGS)?;
        for (key, setting) in &self.settings {
            bound("bytes in the key of a setting", key.len(), MAX_KEY)?;
            bound("bytes in a setting", setting.value.as_ref().map_or(0, String::len), MAX_VALUE)?;
        }
        if let Some((id, _)) = self.nodes.iter().find(|(id, admitted)| admitted.key.id() != **id) {
            return Err(BadDocument::WrongKey(*id));
        }
        self.counters(|_, _| CEILING).map_err(BadDocument::Counter)?;
        if self.key_floor > self.key.epoch {
            return Err(BadDocument::Garbled("its keys end before they begin".to_owned()));
        }
        bound("bytes", self.to_bytes().len(), MAX_BYTES)
    }

    /// Checks each counter against the highest that it may be.
    fn counters(&self, most: impl Fn(&'static str, NodeId) -> u64) -> Result<(), CounterJump> {
        for setting in self.settings.values() {
            counter("the clock of settings", setting.by, setting.clock, most("settings", setting.by))?;
        }
        for (id, change) in &self.roles {
            counter("the count of role changes", change.by, change.clock, most("roles", *id))?;
        }
        let KeyEpoch { epoch, by, .. } = self.key;
        counter("the epoch of the gossip key", by, epoch, most("key", by))
    }

    /// Checks that no counter of `other` is further ahead than honest nodes could have brought it.
    pub(super) fn check_steps(&self, other: &Document) -> Result<(), CounterJump> {
        let settings = self.settings.values().map(|setting| setting.clock).max().unwrap_or(0);
        other.counters(|what, id| {
            let ours = match what {
                "settings" => settings,
                "roles" => self.roles.get(&id).map_or(0, |change| change.clock),
                _ => self.key.epoch,
            };
            ours.saturating_add(STEP)
        })
    }

    /// Checks that no time lies in the future. Where this node's own clock is behind what it has adopted
    /// already, as on a board without a battery, that counts as now.
    pub(super) fn check_times(&self, other: &Document, now: UnixMs) -> Result<(), TimeAhead> {
        let newest = self.times().map(|ahead| ahead.at).max().unwrap_or_default();
        let latest = now.max(newest).after(AHEAD);
        other.times().find(|time| time.at > latest).map_or(Ok(()), Err)
    }

    fn times(&self) -> impl Iterator<Item = TimeAhead> {
        let nodes = self.nodes.values().map(|one| (one.by, one.at));
        let removed = self.removed.values().map(|one| (one.by, one.at));
        let roles = self.roles.values().map(|one| (one.by, one.at));
        let settings = self.settings.values().map(|one| (one.by, one.at));
        let all = nodes.chain(removed).chain(roles).chain(settings);
        all.chain([(self.key.by, self.key.at)]).map(|(by, at)| TimeAhead { by, at })
    }
}
