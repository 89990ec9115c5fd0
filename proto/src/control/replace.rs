//! How an agent is replaced, and what it has taken over from the one before.

use serde::{Deserialize, Serialize};

use crate::time::UnixMs;

/// How the agent is replaced without losing connections.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReplaceStatus {
    /// The file that it was started from, and that it becomes.
    pub program: String,
    /// The version of what it hands over: [`crate::handover::VERSION`].
    pub form: u64,
    /// The last time that it was; `None`: it has started as usual.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last: Option<TakeOver>,
}

/// What an agent has taken over from the one that it replaced.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TakeOver {
    /// The version of the other.
    pub from: String,
    /// When.
    pub unix_ms: UnixMs,
    /// Connections that went on.
    pub connections: u64,
    /// Connections that had to be ended.
    pub ended: u64,
}
