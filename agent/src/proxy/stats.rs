//! Counters and gauges of the proxy.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use proto::cause::Fault;
use proto::control::Histogram;
use proto::node::NodeId;

/// A service as this node's proxy sees it now.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct ServiceStats {
    /// Each listener's address, and the error if it is not bound.
    pub(crate) listens: Vec<(SocketAddr, Option<Fault>)>,
    /// Current clients.
    pub(crate) connections: u32,
    /// Most concurrent clients since start, and all clients accepted.
    pub(crate) most: u64,
    pub(crate) total: u64,
    /// Limit of concurrent clients.
    pub(crate) maxconn: u32,
    /// Clients reset since start because `maxconn` was reached.
    pub(crate) refused: u64,
    /// Clients reset since start because no backend answered.
    pub(crate) unserved: u64,
    /// Dials since start that were started while another was late.
    pub(crate) races: u64,
    /// ClientHellos since start that were sent again to another backend.
    pub(crate) replays: u64,
    /// Dials and ClientHellos since start that the budget did not allow.
    pub(crate) denied: u64,
    /// By the backend's node. A backend that was never dialled is absent.
    pub(crate) backends: BTreeMap<NodeId, BackendStats>,
}

/// One backend's part.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct BackendStats {
    /// Current connections and dials in progress.
    pub(crate) connections: u64,
    /// Clients assigned to it since start.
    pub(crate) total: u64,
    /// ClientHellos since start that it accepted and did not answer in time.
    pub(crate) silences: u64,
    /// Most concurrent connections since start, dials in progress included.
    pub(crate) most: u64,
    /// Bytes of ended connections, to it and from it.
    pub(crate) bytes_in: u64,
    pub(crate) bytes_out: u64,
    /// Failed dials, raced dials, and dials for a replayed ClientHello.
    pub(crate) errors: u64,
    pub(crate) races: u64,
    pub(crate) replays: u64,
    /// Connections reset because it was down or gone, and connections closed because it drained.
    pub(crate) resets_down: u64,
    pub(crate) resets_leave: u64,
    /// Duration of successful dials.
    pub(crate) dials: Histogram,
}
