//! The messages of the control socket, and the status that they carry: MessagePack in length-delimited
//! frames, one request and its response per connection.
//!
//! [`Status`] is also the output of `agent status --json`. Its shape is stable: fields are added, never
//! renamed or removed, and `schema` counts the exceptions.

mod health;
mod members;
mod refusal;

use std::collections::BTreeMap;
use std::fmt;
use std::net::{IpAddr, SocketAddr};

use serde::{Deserialize, Serialize};

pub use self::members::{MemberState, MemberStatus, PeerLinkStatus, complete, in_order};
pub use self::refusal::{Refusal, RefusalCode};
use crate::backends::BackendState;
use crate::cause::{Cause, Fault, Reason};
use crate::cluster::is_default;
use crate::doctor::Examination;
use crate::event::{Event, EventQuery};
use crate::invite::PendingJoin;
use crate::node::{Name, NodeId, Role};
use crate::open_enum::{OpenEnum, UnknownWord, open_enum_names};
use crate::problem::Problem;
use crate::service::{Balance, ServiceName};
use crate::settings::SettingChange;
use crate::time::UnixMs;
use crate::topology::{MOST_SILENT, Place};

/// Largest frame: the status of the largest cluster.
pub const MAX_FRAME: usize = 16 * 1024 * 1024;

/// Requests of the command line to the running agent.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Request {
    /// Report the status.
    Status,
    /// Make an invite.
    Invite {
        /// Time to live in seconds.
        seconds: u64,
        /// Uses; none: any number.
        uses: Option<u32>,
        /// The role of the nodes that join by it.
        role: Role,
    },
    /// List nodes that wait for approval, anywhere in the cluster.
    Waiting,
    /// Approve or reject a waiting node.
    Answer {
        /// Its code.
        code: String,
        /// Approve it with this role; `None`: reject it.
        role: Option<Role>,
    },
    /// Change the role of a member.
    SetRole {
        /// Its name, or its id.
        node: String,
        /// The role.
        role: Role,
        /// Even if no master is left then.
        force: bool,
    },
    /// Admit every node that comes to this one, for a while; 0 closes.
    Open {
        /// How long, in seconds.
        seconds: u64,
    },
    /// Remove a node forever.
    Remove {
        /// Its name, or its id.
        node: String,
    },
    /// Leave the cluster forever: this node removes itself.
    Leave,
    /// Change the gossip key.
    Rotate,
    /// Drain a node's backends, or end that.
    Drain {
        /// Drain.
        on: bool,
        /// The node's name, or its id; none: this one.
        node: Option<String>,
    },
    /// Move a virtual IP to another node.
    VipMove {
        /// The virtual IP.
        address: IpAddr,
        /// The new owner: a name, or an id.
        node: String,
    },
    /// List who holds connections to a node's backends.
    Held {
        /// The node's name, or its id; none: this one.
        node: Option<String>,
    },
    /// List the cluster-wide settings.
    Settings,
    /// Change some of them, all or none: keys with their values; without one: unset.
    Change(Vec<(String, Option<String>)>),
    /// Report the status with the members as a core member knows them, where this node does not.
    Members,
    /// List events.
    Events(EventQuery),
    /// Examine these members and the paths to them, by names or ids; none named: all.
    Doctor(Vec<String>),
    /// Dial a member at one of these hosts or addresses, since it may be elsewhere now.
    Seed(Vec<String>),
    /// Become the program that lies where the agent was started from, with every connection. What succeeds is not
    /// answered: who answered is no more.
    Replace,
    /// Known only to the next version.
    #[cfg(feature = "next-wire")]
    Next,
}

/// Responses of the running agent.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub enum Response {
    /// The status.
    Status(Box<Status>),
    /// A complete invite.
    Invite {
        /// The line.
        line: String,
        /// When it expires.
        expires: UnixMs,
    },
    /// The waiting nodes.
    Waiting(Vec<PendingJoin>),
    /// The holders of connections.
    Held(HeldStatus),
    /// The cluster-wide settings.
    Settings(Vec<SettingStatus>),
    /// What was changed, and a sentence that says which nodes know.
    Changed(Vec<SettingChange>, String),
    /// The events, oldest first.
    Events {
        /// The events.
        events: Vec<Event>,
        /// Members that did not answer.
        silent: Vec<String>,
    },
    /// What was examined and found beyond this node.
    Doctor(Box<Examination>),
    /// Done; a sentence that says what.
    Done(String),
    /// Not done; a sentence that says why and what would be right.
    Failed(String),
    /// Not done, for a reason that scripts tell apart.
    Refused(Refusal),
    /// The running agent does not know the request. The caller shows this version along with its own.
    Unsupported {
        /// Version of the running agent.
        version: String,
    },
}

/// The full status of a node.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Status {
    /// Version of this shape: 1.
    pub schema: u32,
    /// The cluster.
    pub cluster: ClusterStatus,
    /// This node.
    pub node: NodeStatus,
    /// The proxied services.
    pub services: Vec<ServiceStatus>,
    /// All members.
    pub members: Vec<MemberStatus>,
    /// The core member that has completed `members`, if one was asked to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub members_from: Option<Name>,
    /// Virtual IPs.
    pub vips: Vec<VipStatus>,
    /// Problems of this node itself; empty when there are none.
    pub problems: Vec<Problem>,
    /// When this was taken.
    #[serde(default)]
    pub taken_unix_ms: UnixMs,
}

impl Status {
    /// Members that are away by what core members say, who name only a part of them, so that `members` has them as up.
    pub fn unnamed(&self) -> usize {
        let up = self.members.iter().filter(|one| one.state == MemberState::Up).count();
        // As long as all are named, the two numbers differ for moments only.
        let some = (self.members.len() - up) * 2 >= MOST_SILENT;
        self.cluster.up.filter(|_| some).map_or(0, |said| up.saturating_sub(said))
    }

    /// What serves here, as text, and whether anything does: each listener with the nodes behind it.
    pub fn serving(&self) -> (bool, String) {
        let mut serves = false;
        let lines: Vec<String> = self
            .services
            .iter()
            .map(|service| {
                let good = service.backends.iter().filter(|backend| backend.state.is_good());
                let names: Vec<&str> = good.map(|backend| backend.node.as_str()).collect();
                serves |= !names.is_empty();
                let names = if names.is_empty() { "no master yet".to_owned() } else { names.join(", ") };
                format!("{} -> {names}", service.listeners())
            })
            .collect();
        (serves, lines.join("; "))
    }
}

/// Connections to the backends of one node, from anywhere.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HeldStatus {
    /// The node with the backends.
    pub node: Name,
    /// Holders and their counts; nodes that hold none are left out.
    pub by: Vec<(Name, u64)>,
    /// Nodes that are up and did not answer.
    pub silent: Vec<Name>,
    /// Nodes that are away, whose connections would be of no use.
    pub away: Vec<Name>,
}

impl HeldStatus {
    /// The sum.
    pub fn total(&self) -> u64 {
        self.by.iter().map(|(_, count)| *count).fold(0, u64::saturating_add)
    }
}

/// A cluster-wide setting.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SettingStatus {
    /// Its key.
    pub key: String,
    /// What was written.
    pub value: String,
    /// Who set it; the id if that node is no longer a member.
    pub set_by: String,
    /// When, by the writer's clock.
    pub set_unix_ms: UnixMs,
    /// Logical clock: the value with the higher one wins.
    pub clock: u64,
    /// Why it has no effect, or not on this node; empty when it has.
    pub remark: String,
}

/// The cluster, as this node knows it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ClusterStatus {
    /// Its id.
    pub id: String,
    /// Its name.
    pub name: String,
    /// Number of members.
    pub members: usize,
    /// How many of them gossip; 0: all do.
    #[serde(default, skip_serializing_if = "is_default")]
    pub core: usize,
    /// How many are up by what core members say, who may not name all others; `None`: this node is not attached to any.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub up: Option<usize>,
    /// Hash of the document that this node holds.
    pub document: String,
    /// Epoch of the current gossip key.
    pub key_epoch: u64,
    /// Until when nodes without an invite are admitted here; `None`: they are not.
    pub open_until_unix_ms: Option<UnixMs>,
}

/// The responding node.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct NodeStatus {
    /// Its id.
    pub id: NodeId,
    /// Its name.
    pub name: Name,
    /// The address that it advertises; `None`: its network is down.
    pub address: Option<String>,
    /// Interface that carries the mesh.
    pub interface: String,
    /// Its role, as the cluster document has it.
    pub role: OpenEnum<Role>,
    /// Its place in a cluster of which only a core gossips.
    #[serde(default, skip_serializing_if = "Place::is_everyone")]
    pub place: OpenEnum<Place>,
    /// Core members that it reports to and that answer; empty in every other place than `attached`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub attached_to: Vec<Name>,
    /// Version of its agent.
    pub version: String,
    /// When its agent started.
    pub started_unix_ms: UnixMs,
    /// Set when this node was removed from the cluster.
    pub removed: bool,
    /// Most files and connections that the process may have open.
    pub descriptors: u64,
    /// Transport counters.
    pub link: LinkStatus,
    /// Lag of the event loop.
    #[serde(default)]
    pub loop_lag: Histogram,
    /// The checks of this node's own services.
    #[serde(default)]
    pub checks: Vec<CheckCounts>,
    /// Events since start, by the name of their kind.
    #[serde(default)]
    pub events: BTreeMap<String, u64>,
    /// The file that the agent was started from, and that it becomes by `agent upgrade`; empty: it can't.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub program: String,
    /// When it took the place of another version; `None`: it has started as usual.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub replaced_unix_ms: Option<UnixMs>,
    /// Connections of that one that go on.
    #[serde(default, skip_serializing_if = "is_default")]
    pub replaced_connections: u64,
}

/// Upper bounds of a histogram's buckets, in microseconds; one more bucket takes all longer durations. From a
/// round trip in one building to the longest wait for a backend.
pub const BUCKETS_US: [u64; 12] =
    [500, 1_000, 2_500, 5_000, 10_000, 25_000, 50_000, 100_000, 250_000, 500_000, 1_000_000, 2_500_000];

/// A histogram of durations since start.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Histogram {
    /// Number in each of [`BUCKETS_US`], and beyond the last.
    pub counts: [u64; BUCKETS_US.len() + 1],
    /// Sum of all durations, in microseconds.
    pub sum_us: u64,
}

/// Results of the checks of one service on this node, since start.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CheckCounts {
    /// Its name.
    pub service: ServiceName,
    /// It was ready.
    pub good: u64,
    /// It answered without saying whether it is ready.
    pub alive: u64,
    /// It was not ready.
    pub not_ready: u64,
    /// Its port was closed.
    pub refused: u64,
    /// It did not answer in time.
    pub silent: u64,
    /// Their duration.
    pub took: Histogram,
}

/// Transport counters since start. Bytes are payload of UDP, seal included, and of TLS.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct LinkStatus {
    /// Bytes sent.
    pub sent_bytes: u64,
    /// Bytes received.
    pub received_bytes: u64,
    /// Datagrams sent.
    pub sent_datagrams: u64,
    /// Datagrams received, refused ones included.
    pub received_datagrams: u64,
    /// Datagrams refused: not from a member, or not one of ours at all.
    pub refused_stranger: u64,
    /// Datagrams refused: sealed with an unknown key.
    pub refused_key: u64,
    /// Datagrams refused: the seal is invalid.
    pub refused_seal: u64,
    /// Datagrams refused: replayed.
    pub refused_replay: u64,
    /// Datagrams refused: the sender had not proven its start yet.
    pub refused_unproven: u64,
    /// Datagrams of members dropped by the rate limit.
    #[serde(default)]
    pub refused_flood: u64,
    /// Connections closed to make room for others.
    #[serde(default)]
    pub refused_connections: u64,
    /// Bytes of gossip sent, included in the above.
    #[serde(default)]
    pub sent_gossip_bytes: u64,
    /// Pulses sent.
    #[serde(default)]
    pub sent_pulses: u64,
    /// Answers to pulses, and unsolicited status updates.
    #[serde(default)]
    pub received_answers: u64,
}

/// Where a service is defined.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum ServiceSource {
    /// Nowhere: it is built in.
    #[default]
    Default,
    /// In this node's own file.
    File,
    /// In cluster-wide settings.
    Cluster,
    /// In both, and this node's file overrides the settings here.
    FileOverCluster,
    /// A source of a later version.
    Other(UnknownWord),
}

open_enum_names!(ServiceSource:
    Default = "default",
    File = "file",
    Cluster = "cluster",
    FileOverCluster = "file-over-cluster",
);

/// One service, as this node's proxy sees it.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct ServiceStatus {
    /// Its name.
    pub name: ServiceName,
    /// Where the proxy listens, or should.
    pub listen: Vec<ListenerStatus>,
    /// Where it is defined.
    pub source: ServiceSource,
    /// How connections are balanced.
    pub balance: OpenEnum<Balance>,
    /// Its backends.
    pub backends: Vec<BackendStatus>,
    /// Current connections.
    pub connections: u64,
    /// Limit of concurrent connections.
    pub maxconn: u32,
    /// Connections refused because of it, since start.
    pub refused: u64,
    /// Other counters.
    #[serde(default)]
    pub counted: ServiceCounts,
}

impl ServiceStatus {
    /// Whether every listener is bound.
    pub fn is_listening(&self) -> bool {
        self.listen.iter().all(|one| one.state == ListenerState::Listening)
    }

    /// The listeners that could not be bound.
    pub fn failed_listeners(&self) -> impl Iterator<Item = &ListenerStatus> {
        self.listen.iter().filter(|one| one.state == ListenerState::Failed)
    }

    /// Its listeners as text, separated by commas.
    pub fn listeners(&self) -> String {
        let all: Vec<String> = self.listen.iter().map(ToString::to_string).collect();
        all.join(", ")
    }
}

/// State of a listener.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ListenerState {
    /// It accepts clients.
    Listening,
    /// It could not be bound, and is retried.
    Failed,
    /// A state of a later version.
    #[serde(other)]
    Other,
}

/// An address that the proxy listens on, or should.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct ListenerStatus {
    /// The address.
    pub address: SocketAddr,
    /// Its state.
    pub state: ListenerState,
    /// Why it failed, as its stable label; `None`: it did not.
    pub cause: Option<Cause>,
    /// Why, for people; empty: it did not fail.
    pub reason: Reason,
}

impl ListenerStatus {
    /// A listener that is bound, or could not be.
    pub fn new(address: SocketAddr, fault: Option<&Fault>) -> ListenerStatus {
        ListenerStatus {
            address,
            state: if fault.is_none() { ListenerState::Listening } else { ListenerState::Failed },
            cause: fault.map(|fault| fault.cause),
            reason: fault.map(Reason::new).unwrap_or_default(),
        }
    }
}

impl fmt::Display for ListenerStatus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ListenerStatus { address, state, reason, .. } = self;
        match state {
            ListenerState::Listening => write!(f, "{address}"),
            ListenerState::Failed | ListenerState::Other => write!(f, "{address} ({reason})"),
        }
    }
}

/// This node's proxy counters of a service since start.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct ServiceCounts {
    /// Accepted clients.
    pub total: u64,
    /// Most concurrent clients.
    pub most: u64,
    /// Clients reset because no backend answered.
    pub unserved: u64,
}

/// One backend, as this node sees it.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct BackendStatus {
    /// Name of its node.
    pub node: Name,
    /// The address to dial.
    pub address: String,
    /// Its state.
    pub state: BackendState,
    /// Why, as its stable label; `None`: nothing more is known.
    #[serde(default)]
    pub cause: Option<Cause>,
    /// Why, for people.
    pub reason: Reason,
    /// Since when.
    pub since_unix_ms: UnixMs,
    /// Round-trip time, when known.
    pub rtt_ms: Option<f64>,
    /// Open connections from here.
    pub connections: u64,
    /// Connections made from here since start.
    pub total: u64,
    /// Share among equals.
    pub weight: u16,
    /// Duration of the last check on its own node, in milliseconds, rounded; `None`: not known.
    #[serde(default)]
    pub check_ms: Option<u32>,
    /// Counters of this node.
    #[serde(default)]
    pub counted: BackendCounts,
}

impl BackendStatus {
    /// The status code of its check, if it was answered by HTTP.
    pub fn check_code(&self) -> Option<u16> {
        self.cause.and_then(Cause::http_status)
    }
}

/// This node's counters of a backend since start.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct BackendCounts {
    /// Most concurrent connections.
    pub most: u64,
    /// Bytes from clients to it, of connections that have ended.
    pub bytes_in: u64,
    /// Bytes from it to clients, of connections that have ended.
    pub bytes_out: u64,
    /// Dials that failed.
    pub connect_errors: u64,
    /// Dials to it that started while another was late.
    pub races: u64,
    /// ClientHellos sent to it that another had left unanswered.
    pub replays: u64,
    /// ClientHellos that it left unanswered.
    pub silences: u64,
    /// Connections reset because it was down or gone.
    pub resets_down: u64,
    /// Connections closed one by one because it drained or was not ready.
    pub resets_leave: u64,
    /// Changes of its state.
    pub changes: u64,
    /// Suspicions that ended without being confirmed.
    pub false_alarms: u64,
    /// Time in which it was neither ready nor alive, in milliseconds.
    pub downtime_ms: u64,
    /// Duration of successful dials.
    pub dials: Histogram,
}

/// State of a virtual IP, as this node sees it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum VipState {
    /// This node owns it.
    OwnedHere,
    /// Another node owns it.
    Owned,
    /// No node owns it now.
    Unowned,
    /// It can't be owned here, and this node knows of no owner; the reason says why.
    Unavailable,
    /// A state of a later version.
    Other(UnknownWord),
}

open_enum_names!(VipState:
    OwnedHere = "owned-here",
    Owned = "owned",
    Unowned = "unowned",
    Unavailable = "unavailable",
);

/// A virtual IP, as this node sees it.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct VipStatus {
    /// The address.
    pub address: IpAddr,
    /// Its state.
    pub state: VipState,
    /// Its owner.
    pub owner: Option<Name>,
    /// Increases with each new owner.
    pub epoch: u64,
    /// This node's interface for it; `None`: it has none.
    pub interface: Option<String>,
    /// Since when `state` and `owner` have been so.
    pub since_unix_ms: UnixMs,
    /// Why, or what prevents owning it here, as its stable label; `None`: nothing is wrong, or not known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cause: Option<Cause>,
    /// The same for people; may be empty.
    pub reason: Reason,
    /// The candidates, best first.
    pub candidates: Vec<VipCandidate>,
    /// Takeovers by this node since start, by cause.
    #[serde(default)]
    pub gains: VipTakeovers,
}

/// Number of takeovers of a virtual IP.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct VipTakeovers {
    /// It had no owner.
    pub vacant: u64,
    /// Its owner had been silent for a while.
    pub silent: u64,
    /// Its owner handed it over.
    pub handed: u64,
    /// Its owner released it, and the named successor had not taken it.
    pub released: u64,
}

/// A candidate for a virtual IP.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct VipCandidate {
    /// Its name.
    pub node: Name,
    /// Its rank, from 1.
    pub rank: u32,
    /// It could own it now.
    pub eligible: bool,
    /// Why it could not, as its stable label; `None`: it could, or the cause is not known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cause: Option<Cause>,
    /// The same for people; empty when it could.
    pub reason: Reason,
}

#[cfg(test)]
#[path = "control_tests.rs"]
mod tests;
