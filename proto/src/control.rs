//! The messages of the control socket, and the status that they carry: MessagePack in length-delimited
//! frames, one request and its answer for each connection.
//!
//! [`Status`] is also what `agent status --json` prints. Its shape is stable: fields are added, never
//! renamed or taken away, and `schema` counts the exceptions.

use std::collections::BTreeMap;
use std::fmt;
use std::net::{IpAddr, SocketAddr};

use serde::{Deserialize, Serialize};

use crate::backends::BackendState;
use crate::cause::{Cause, Fault, Reason};
use crate::doctor::Examination;
use crate::event::{Event, EventQuery};
use crate::invite::PendingJoin;
use crate::node::{Name, NodeId, Role};
use crate::open_enum::{OpenEnum, UnknownWord, open_enum_names};
use crate::problem::Problem;
use crate::pulse::Liveness;
use crate::service::{Balance, ServiceName};
use crate::settings::SettingChange;
use crate::time::UnixMs;
use crate::view;

/// Largest frame: the status of the largest cluster.
pub const MAX_FRAME: usize = 16 * 1024 * 1024;

/// What the command line asks of the running agent.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Request {
    /// How is everything?
    Status,
    /// Make an invite.
    Invite {
        /// Time to live in seconds.
        seconds: u64,
        /// Uses; none: any number.
        uses: Option<u32>,
        /// The role of who comes in by it.
        role: Role,
    },
    /// Who waits for approval, anywhere in the cluster?
    Waiting,
    /// Let a waiting node in, or turn it away.
    Answer {
        /// Its code.
        code: String,
        /// Let it in with this role; none: turn it away.
        role: Option<Role>,
    },
    /// Give a member another role.
    SetRole {
        /// Its name, or its id.
        node: String,
        /// The role.
        role: Role,
        /// Even if no master is left then.
        force: bool,
    },
    /// Let in whoever comes to this node, for a while; 0 closes.
    Open {
        /// How long, in seconds.
        seconds: u64,
    },
    /// Remove a node for ever.
    Remove {
        /// Its name, or its id.
        node: String,
    },
    /// Leave the cluster for ever: this node removes itself.
    Leave,
    /// Change the gossip key.
    Rotate,
    /// Take no new connections on a node's backends, or take them again.
    Drain {
        /// Take none.
        on: bool,
        /// The node's name, or its id; none: this one.
        node: Option<String>,
    },
    /// Hand a virtual IP to another node.
    VipMove {
        /// Which.
        address: IpAddr,
        /// To whom: a name, or an id.
        node: String,
    },
    /// Who holds connections to a node's backends?
    Held {
        /// The node's name, or its id; none: this one.
        node: Option<String>,
    },
    /// Which settings hold for the whole cluster?
    Settings,
    /// Change some of them, all or none: keys with their values; without one: unset.
    Change(Vec<(String, Option<String>)>),
    /// What has happened?
    Events(EventQuery),
    /// How are the ways to these members, by names or ids, and they themselves? None named: all.
    Doctor(Vec<String>),
    /// What only the next version asks.
    #[cfg(feature = "next-wire")]
    Next,
}

/// What the running agent answers.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub enum Response {
    /// How everything is.
    Status(Box<Status>),
    /// An invite, whole.
    Invite {
        /// The line.
        line: String,
        /// When it ends.
        expires: UnixMs,
    },
    /// Who waits.
    Waiting(Vec<PendingJoin>),
    /// Who holds connections.
    Held(HeldStatus),
    /// What is set for the whole cluster.
    Settings(Vec<SettingStatus>),
    /// What was changed, and a sentence that says who knows.
    Changed(Vec<SettingChange>, String),
    /// What has happened, oldest first.
    Events {
        /// The events.
        events: Vec<Event>,
        /// Members that did not answer.
        silent: Vec<String>,
    },
    /// What was looked at and found beyond this node.
    Doctor(Box<Examination>),
    /// Done; a sentence that says what.
    Done(String),
    /// Not done; a sentence that says why and what would be right.
    Failed(String),
    /// The running agent does not know the request: by its version, which the asking side names beside its
    /// own.
    Unsupported {
        /// Version of the running agent.
        version: String,
    },
}

/// Everything that a person asks of a node.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Status {
    /// Version of this shape: 1.
    pub schema: u32,
    /// The cluster.
    pub cluster: ClusterStatus,
    /// This node.
    pub node: NodeStatus,
    /// What is proxied here.
    pub services: Vec<ServiceStatus>,
    /// Everyone.
    pub members: Vec<MemberStatus>,
    /// Virtual IPs.
    pub vips: Vec<VipStatus>,
    /// What is wrong with this node itself; empty when nothing is.
    pub problems: Vec<Problem>,
    /// When this was put together.
    #[serde(default)]
    pub taken_unix_ms: UnixMs,
}

impl Status {
    /// What serves here, in words, and whether anything does: each listener with the nodes behind it.
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

/// Connections to the backends of one node, wherever they begin.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HeldStatus {
    /// Whose backends.
    pub node: Name,
    /// Who holds how many; nodes that hold none are left out.
    pub by: Vec<(Name, u64)>,
    /// Who is up and did not answer.
    pub silent: Vec<Name>,
    /// Who is away, and holds nothing that would be of use.
    pub away: Vec<Name>,
}

impl HeldStatus {
    /// All of them.
    pub fn total(&self) -> u64 {
        self.by.iter().map(|(_, count)| *count).fold(0, u64::saturating_add)
    }
}

/// A setting of the whole cluster.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SettingStatus {
    /// Its key.
    pub key: String,
    /// What was written.
    pub value: String,
    /// Who wrote it; its id when it is no member any more.
    pub set_by: String,
    /// When, by the writer's clock.
    pub set_unix_ms: UnixMs,
    /// Logical clock: of two values the one with the higher counts.
    pub clock: u64,
    /// Why it does not count, or not on this node; empty when it does.
    pub remark: String,
}

/// The cluster, as this node knows it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ClusterStatus {
    /// Its id.
    pub id: String,
    /// Its name.
    pub name: String,
    /// How many nodes may take part.
    pub members: usize,
    /// Hash of the document that this node holds.
    pub document: String,
    /// Epoch of the gossip key that counts.
    pub key_epoch: u64,
    /// Until when nodes without an invite are let in here; none: they are not.
    pub open_until_unix_ms: Option<UnixMs>,
}

/// The node that answers.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct NodeStatus {
    /// Its id.
    pub id: NodeId,
    /// Its name.
    pub name: Name,
    /// Address that it advertises; none: its network is away.
    pub address: Option<String>,
    /// Interface that carries the mesh.
    pub interface: String,
    /// Its role, as the cluster document has it.
    pub role: OpenEnum<Role>,
    /// Version of its agent.
    pub version: String,
    /// When its agent started.
    pub started_unix_ms: UnixMs,
    /// Set when this node was removed from the cluster.
    pub removed: bool,
    /// Most files and connections that the process may have open.
    pub descriptors: u64,
    /// What was counted on the link.
    pub link: LinkStatus,
    /// How late the event loop was, each time that it was looked at.
    #[serde(default)]
    pub loop_lag: Histogram,
    /// The checks of this node's own services.
    #[serde(default)]
    pub checks: Vec<CheckCounts>,
    /// Events since the start, by the name of their kind.
    #[serde(default)]
    pub events: BTreeMap<String, u64>,
}

/// Upper bounds of a histogram's buckets, in microseconds; one more bucket takes all that is longer. From a
/// round trip in one building to the longest wait for a backend.
pub const BUCKETS_US: [u64; 12] =
    [500, 1_000, 2_500, 5_000, 10_000, 25_000, 50_000, 100_000, 250_000, 500_000, 1_000_000, 2_500_000];

/// How often something took how long, since the start.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Histogram {
    /// How many in each of [`BUCKETS_US`], and beyond the last.
    pub counts: [u64; BUCKETS_US.len() + 1],
    /// All of it together, in microseconds.
    pub sum_us: u64,
}

/// What the checks of one service on this node came to, since the start.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CheckCounts {
    /// Its name.
    pub service: ServiceName,
    /// It was ready.
    pub good: u64,
    /// It was there and would not say whether it is ready.
    pub alive: u64,
    /// It was not ready.
    pub not_ready: u64,
    /// Its port was closed.
    pub refused: u64,
    /// It did not answer in time.
    pub silent: u64,
    /// How long they took.
    pub took: Histogram,
}

/// What was counted on the link since the start. Bytes are payload of UDP, seal included, and of TLS.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct LinkStatus {
    /// Bytes sent.
    pub sent_bytes: u64,
    /// Bytes received.
    pub received_bytes: u64,
    /// Datagrams sent.
    pub sent_datagrams: u64,
    /// Datagrams received, those refused included.
    pub received_datagrams: u64,
    /// Datagrams refused: not of a member, or no datagram of ours at all.
    pub refused_stranger: u64,
    /// Datagrams refused: sealed with a key that is not held.
    pub refused_key: u64,
    /// Datagrams refused: the seal does not hold.
    pub refused_seal: u64,
    /// Datagrams refused: seen before.
    pub refused_replay: u64,
    /// Datagrams refused: the sender had not proven its start yet.
    pub refused_unproven: u64,
    /// What members sent beyond what one may: left out.
    #[serde(default)]
    pub refused_flood: u64,
    /// Connections that had to go for others.
    #[serde(default)]
    pub refused_connections: u64,
    /// Bytes of gossip sent, of those above.
    #[serde(default)]
    pub sent_gossip_bytes: u64,
    /// Pulses sent.
    #[serde(default)]
    pub sent_pulses: u64,
    /// Answers to pulses, and what members said unasked.
    #[serde(default)]
    pub received_answers: u64,
}

/// Where a service is described.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum ServiceSource {
    /// Nowhere: it is as it comes.
    #[default]
    Default,
    /// In this node's own file.
    File,
    /// By the cluster's settings.
    Cluster,
    /// By both, and this node's own file counts here.
    FileOverCluster,
    /// What a later version says.
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
    /// Where it is described.
    pub source: ServiceSource,
    /// How connections are spread.
    pub balance: OpenEnum<Balance>,
    /// Who could serve.
    pub backends: Vec<BackendStatus>,
    /// Connections open now.
    pub connections: u64,
    /// Most connections at once.
    pub maxconn: u32,
    /// Connections refused because of it, since the start.
    pub refused: u64,
    /// What else was counted.
    #[serde(default)]
    pub counted: ServiceCounts,
}

impl ServiceStatus {
    /// Every listener is bound.
    pub fn is_listening(&self) -> bool {
        self.listen.iter().all(|one| one.state == ListenerState::Listening)
    }

    /// Its listeners in words, separated by commas.
    pub fn listeners(&self) -> String {
        let all: Vec<String> = self.listen.iter().map(ToString::to_string).collect();
        all.join(", ")
    }
}

/// How a listener is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ListenerState {
    /// It takes clients.
    Listening,
    /// It could not be bound, and is tried again.
    Failed,
    /// A state of a later version.
    #[serde(other)]
    Other,
}

/// An address that the proxy listens on, or should.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct ListenerStatus {
    /// Which.
    pub address: SocketAddr,
    /// How it is.
    pub state: ListenerState,
    /// Why it failed, as its stable label; none: it did not.
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

/// What this node's proxy counted of a service since the start.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct ServiceCounts {
    /// Clients that were taken.
    pub total: u64,
    /// Most clients at once.
    pub most: u64,
    /// Clients reset because no backend answered.
    pub unserved: u64,
}

/// One backend, as this node sees it.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct BackendStatus {
    /// Name of its node.
    pub node: Name,
    /// Where it is dialled.
    pub address: String,
    /// What it is.
    pub state: BackendState,
    /// Why, as its stable label; none: nothing more is known.
    #[serde(default)]
    pub cause: Option<Cause>,
    /// Why, for people.
    pub reason: Reason,
    /// Since when.
    pub since_unix_ms: UnixMs,
    /// Round-trip time, when known.
    pub rtt_ms: Option<f64>,
    /// Connections open from here.
    pub connections: u64,
    /// Connections made from here since the start.
    pub total: u64,
    /// Share among equals.
    pub weight: u16,
    /// What its node's own last check took, in milliseconds, roughly; none: not known.
    #[serde(default)]
    pub check_ms: Option<u32>,
    /// What was counted of it here.
    #[serde(default)]
    pub counted: BackendCounts,
}

impl BackendStatus {
    /// The status code that its check got, where it was answered by HTTP.
    pub fn check_code(&self) -> Option<u16> {
        self.cause.and_then(Cause::http_status)
    }
}

/// What this node counted of a backend since the start.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct BackendCounts {
    /// Most connections at once.
    pub most: u64,
    /// Bytes from clients to it, of connections that have ended.
    pub bytes_in: u64,
    /// Bytes from it to clients, of connections that have ended.
    pub bytes_out: u64,
    /// Dials that failed.
    pub connect_errors: u64,
    /// Dials to it that began beside another that was late.
    pub races: u64,
    /// First flights sent to it that another had left without an answer.
    pub replays: u64,
    /// First flights that it left without an answer.
    pub silences: u64,
    /// Connections reset because it was down or gone.
    pub resets_down: u64,
    /// Connections closed one by one because it drained or was not ready.
    pub resets_leave: u64,
    /// Changes of its state.
    pub changes: u64,
    /// Doubts about it that were over without having been confirmed.
    pub false_alarms: u64,
    /// Time in which it was neither ready nor alive, in milliseconds.
    pub downtime_ms: u64,
    /// How long dials that were answered took.
    pub dials: Histogram,
}

/// What a member is. `Left` is who stopped on purpose.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum MemberState {
    /// Heard.
    Up,
    /// Not heard for a moment.
    Suspect,
    /// Not heard.
    Down,
    /// Stopped on purpose.
    Left,
    /// What a later version says.
    Other(UnknownWord),
}

open_enum_names!(MemberState: Up = "up", Suspect = "suspect", Down = "down", Left = "left");

impl MemberState {
    /// What another member is: by its own word, by pulses, by gossip where there are none, and, when its
    /// agent is silent, by whether its apiserver answers.
    pub fn of(member: Option<&view::MemberView>, liveness: Option<Liveness>, serves: bool) -> MemberState {
        let liveness = liveness.filter(|liveness| *liveness != Liveness::Unknown);
        match member {
            Some(member) if member.word.left => MemberState::Left,
            _ if liveness == Some(Liveness::Late) => MemberState::Suspect,
            _ if liveness == Some(Liveness::Alive) => MemberState::Up,
            Some(member) if member.heard && liveness.is_none() => MemberState::Up,
            // The machine lives.
            _ if serves => MemberState::Suspect,
            _ => MemberState::Down,
        }
    }
}

/// One member, as this node sees it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct MemberStatus {
    /// Its id.
    pub id: NodeId,
    /// Its name.
    pub name: Name,
    /// Where it is reached; empty when unknown.
    pub address: String,
    /// Its role, as the cluster document has it.
    pub role: OpenEnum<Role>,
    /// How it is.
    pub state: MemberState,
    /// Version of its agent; empty when unknown.
    pub version: String,
    /// Since when `state` has been so.
    pub since_unix_ms: UnixMs,
    /// Round-trip time, when known.
    pub rtt_ms: Option<f64>,
    /// Share of pulses that it left unanswered, in thousandths; none: it is not pulsed.
    #[serde(default)]
    pub loss_permille: Option<u16>,
    /// Hash of the document that it holds; empty when unknown.
    #[serde(default)]
    pub document: String,
    /// Whom it hears, as it says.
    #[serde(default)]
    pub sees: Vec<PeerLinkStatus>,
}

/// How one member hears another.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct PeerLinkStatus {
    /// Name of the one that is heard.
    pub node: Name,
    /// Whether it is.
    pub alive: bool,
    /// Round-trip time, when known.
    pub rtt_ms: Option<f64>,
    /// Share of pulses without an answer, in thousandths.
    pub loss_permille: u16,
}

/// How a virtual IP is, as this node sees it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum VipState {
    /// This node has it.
    OwnedHere,
    /// Another node has it.
    Owned,
    /// No node has it now.
    Unowned,
    /// It can't be had here, and this node knows of no owner; the reason says why.
    Unavailable,
    /// What a later version says.
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
    /// Which.
    pub address: IpAddr,
    /// How it is.
    pub state: VipState,
    /// Who has it.
    pub owner: Option<Name>,
    /// Counts the owners.
    pub epoch: u64,
    /// This node's interface for it; none: it has none.
    pub interface: Option<String>,
    /// Since when `state` and `owner` have been so.
    pub since_unix_ms: UnixMs,
    /// Why it is so, or what is in the way here, as its stable label; none: it is as it should be, or not said.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cause: Option<Cause>,
    /// The same for people; may be empty.
    pub reason: Reason,
    /// Who may have it, the first in line first.
    pub candidates: Vec<VipCandidate>,
    /// How often it came to this node since the start, by why.
    #[serde(default)]
    pub gains: VipTakeovers,
}

/// How often a virtual IP came to a node.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct VipTakeovers {
    /// Nobody had it.
    pub vacant: u64,
    /// Nobody had heard its owner for a while.
    pub silent: u64,
    /// Its owner handed it over.
    pub handed: u64,
    /// Its owner let it go, and whom it named had not taken it.
    pub released: u64,
}

/// A node that may have a virtual IP.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct VipCandidate {
    /// Its name.
    pub node: Name,
    /// Its place in line, from 1.
    pub rank: u32,
    /// It could have it now.
    pub eligible: bool,
    /// Why it could not, as its stable label; none: it could, or it is not said.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cause: Option<Cause>,
    /// The same for people; empty when it could.
    pub reason: Reason,
}

#[cfg(test)]
#[path = "control_tests.rs"]
mod tests;
