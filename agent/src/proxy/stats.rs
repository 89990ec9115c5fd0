//! What the proxy tells of itself.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use proto::cause::Fault;
use proto::control::Histogram;
use proto::node::NodeId;

/// A service as this node's proxy sees it now.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct ServiceStats {
    /// Each listener's address, and why it does not listen when it does not.
    pub(crate) listens: Vec<(SocketAddr, Option<Fault>)>,
    /// Clients held now.
    pub(crate) connections: u32,
    /// Most clients held at once since start, and all that were taken.
    pub(crate) most: u64,
    pub(crate) total: u64,
    /// Most clients held at once.
    pub(crate) maxconn: u32,
    /// Clients reset since start because `maxconn` was reached.
    pub(crate) refused: u64,
    /// Clients reset since start because no backend answered.
    pub(crate) unserved: u64,
    /// Dials since start that began beside another that was late.
    pub(crate) races: u64,
    /// First flights since start that were sent again to another backend.
    pub(crate) replays: u64,
    /// Dials and first flights since start that the budget did not allow.
    pub(crate) denied: u64,
    /// By the backend's node. A backend that was never dialled is absent.
    pub(crate) backends: BTreeMap<NodeId, BackendStats>,
}

/// One backend's share.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct BackendStats {
    /// Connections held now, and dials under way.
    pub(crate) connections: u64,
    /// Clients that were given to it since start.
    pub(crate) total: u64,
    /// First flights since start that it took and did not answer in time.
    pub(crate) silences: u64,
    /// Most connections held at once since start, dials under way included.
    pub(crate) most: u64,
    /// Bytes of ended connections, to it and from it.
    pub(crate) bytes_in: u64,
    pub(crate) bytes_out: u64,
    /// Dials that failed, that began beside another, and that were for a first flight sent again.
    pub(crate) errors: u64,
    pub(crate) races: u64,
    pub(crate) replays: u64,
    /// Connections reset because it was down or gone, and closed because it wanted no more.
    pub(crate) resets_down: u64,
    pub(crate) resets_leave: u64,
    /// How long dials that were answered took.
    pub(crate) dials: Histogram,
}
