//! The messages of the control socket, and the status that they carry: MessagePack in length-delimited
//! frames, one request and its answer for each connection.
//!
//! [`Status`] is also what `agent status --json` prints. Its shape is stable: fields are added, never
//! renamed or taken away, and `schema` counts the exceptions.

use serde::{Deserialize, Serialize};

use crate::backends::State;
use crate::event::{Ask, Event};
use crate::invite::Waiting;
use crate::node::{Name, NodeId, Role};
use crate::pulse::Hearing;
use crate::service::{Balance, ServiceName};
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
    },
    /// Who waits for approval, anywhere in the cluster?
    Waiting,
    /// Let a waiting node in, or turn it away.
    Answer {
        /// Its code.
        code: String,
        /// Let it in.
        approve: bool,
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
    /// Take no new connections on this node's backends, or take them again.
    Drain {
        /// Take none.
        on: bool,
    },
    /// What has happened?
    Events(Ask),
}

/// What the running agent answers.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
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
    Waiting(Vec<Waiting>),
    /// What has happened, oldest first.
    Events {
        /// The events.
        events: Vec<Event>,
        /// Members that did not answer.
        silent: Vec<String>,
    },
    /// Done; a sentence that says what.
    Done(String),
    /// Not done; a sentence that says why and what would be right.
    Failed(String),
}

/// Everything that a person asks of a node.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
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
    /// Virtual IPs; none in this version.
    pub vips: Vec<VipStatus>,
    /// What is wrong with this node itself, in sentences; empty when nothing is.
    pub problems: Vec<String>,
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
                format!("{} -> {names}", service.listen.join(", "))
            })
            .collect();
        (serves, lines.join("; "))
    }
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
    /// What it is.
    pub role: Role,
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
}

/// One service, as this node's proxy sees it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ServiceStatus {
    /// Its name.
    pub name: ServiceName,
    /// Where the proxy listens; with the reason appended where it could not.
    pub listen: Vec<String>,
    /// How connections are spread.
    pub balance: Balance,
    /// Who could serve.
    pub backends: Vec<BackendStatus>,
    /// Connections open now.
    pub connections: u64,
    /// Most connections at once.
    pub maxconn: u32,
    /// Connections refused because of it, since the start.
    pub refused: u64,
}

/// One backend, as this node sees it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct BackendStatus {
    /// Name of its node.
    pub node: Name,
    /// Where it is dialled.
    pub address: String,
    /// What it is.
    pub state: State,
    /// Why.
    pub reason: String,
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
}

/// What a member is. `Left` is who stopped on purpose.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum MemberState {
    /// Heard.
    Up,
    /// Not heard for a moment.
    Suspect,
    /// Not heard.
    Down,
    /// Stopped on purpose.
    Left,
}

impl MemberState {
    /// What another member is: by its own word, by pulses, by gossip where there are none, and, when its
    /// agent is silent, by whether its apiserver answers.
    pub fn of(member: Option<&view::Member>, hearing: Option<Hearing>, serves: bool) -> MemberState {
        let hearing = hearing.filter(|hearing| *hearing != Hearing::Unknown);
        match member {
            Some(member) if member.word.left => MemberState::Left,
            _ if hearing == Some(Hearing::Late) => MemberState::Suspect,
            _ if hearing == Some(Hearing::Heard) => MemberState::Up,
            Some(member) if member.heard && hearing.is_none() => MemberState::Up,
            // The machine lives.
            _ if serves => MemberState::Suspect,
            _ => MemberState::Down,
        }
    }

    /// The word that status uses.
    pub fn word(self) -> &'static str {
        match self {
            MemberState::Up => "up",
            MemberState::Suspect => "suspect",
            MemberState::Down => "down",
            MemberState::Left => "left",
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
    /// What it is to the cluster; a node that was never heard counts as a worker.
    pub role: Role,
    /// How it is.
    pub state: MemberState,
    /// Version of its agent; empty when unknown.
    pub version: String,
    /// Since when `state` has been so.
    pub since_unix_ms: UnixMs,
    /// Round-trip time, when known.
    pub rtt_ms: Option<f64>,
}

/// A virtual IP. This version has none; the list is there so that readers need not ask for the version.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct VipStatus {}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::exchange::decode;

    proptest! {
        #[test]
        fn no_frame_makes_it_panic(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            let _ = decode::<Request>(&bytes);
            let _ = decode::<Response>(&bytes);
        }
    }
}
