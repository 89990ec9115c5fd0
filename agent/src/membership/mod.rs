//! Who belongs: identity, cluster document, keys, invites, and their exchange.
//!
//! One task, the [`task`], owns three parts: the cluster state, which is the document and the keys and alone
//! publishes [`crate::transport::TrustedKeys`]; the exchange of it with peers; and the admissions, which are
//! invites and pending joins. The rest of the agent asks it by a bounded queue of [`MembershipCommand`]s. A
//! connection of a joining node has a task of its own ([`admit`]); so has every exchange with a peer. Any of
//! them may be stopped anywhere: the document on [`disk`] is always a whole one, and merging again is harmless.

pub(crate) mod admissions;
mod admit;
mod answer;
mod cluster_state;
pub(crate) mod disk;
pub(crate) mod init;
pub(crate) mod join;
pub(crate) mod members;
mod peer_sync;
mod push_scheduler;
mod rival;
mod settings;
mod sync_scheduler;
pub(crate) mod task;

use std::net::{IpAddr, SocketAddr};

use proto::admission::Candidate;
use proto::cluster::{ClusterId, DocumentHash};
use proto::control::{Request, Response};
use proto::invite::{InviteProof, JoinRefusal};
use proto::node::{Name, NodeId, PublicKey, Role};
use proto::rpc::SyncSnapshot;
use tokio::sync::{oneshot, watch};
use tokio_util::bytes::Bytes;

use crate::transport::MemberRequest;

/// What the task is asked for.
enum MembershipCommand {
    /// By the command line.
    Control(Request, oneshot::Sender<Response>),
    /// By a member.
    Incoming(MemberRequest),
    /// By a node that wants to join.
    Join(JoinCall),
    /// What a peer holds has come.
    Compared(NodeId, DocumentHash, Box<SyncSnapshot>),
    /// An exchange has ended.
    Exchanged,
}

/// A node that wants to join, and the way for its answer.
struct JoinCall {
    applicant: Applicant,
    /// The role with which it was approved, once it has confirmed the cluster.
    approved: Option<Role>,
    reply: oneshot::Sender<Admission>,
}

/// A node that wants to join, as its connection shows it.
#[derive(Clone)]
struct Applicant {
    key: PublicKey,
    name: Name,
    proof: Option<InviteProof>,
    session: [u8; 32],
    from: SocketAddr,
    addresses: Vec<SocketAddr>,
    /// It knows this node's key.
    confirmed: bool,
    /// The cluster that it belongs to already.
    cluster: Option<ClusterId>,
}

impl JoinCall {
    /// What is decided about.
    fn candidate(&self) -> Candidate<'_> {
        let JoinCall { applicant: Applicant { key, name, proof, session, confirmed, cluster, .. }, .. } =
            self;
        Candidate {
            key: *key,
            name,
            proof: proof.as_ref(),
            session,
            confirmed: *confirmed,
            cluster: cluster.as_ref(),
            approved: self.approved,
        }
    }
}

/// What became of it.
enum Admission {
    /// The encoded welcome, one for all that are admitted together: each has a copy of the document.
    Welcome(Bytes),
    Refused(JoinRefusal),
    /// This node is a worker; masters are there.
    Redirect(Vec<SocketAddr>),
    /// It has to be approved; the role comes here, or none when it is turned away.
    Wait(oneshot::Receiver<Option<Role>>),
}

/// Where other nodes reach this one, while its interface has its address.
#[derive(Clone)]
pub(crate) struct OwnAddress {
    ip: watch::Receiver<Option<IpAddr>>,
    port: u16,
}

impl OwnAddress {
    /// The address as it is watched, and the transport's port.
    pub(crate) fn new(ip: watch::Receiver<Option<IpAddr>>, port: u16) -> OwnAddress {
        OwnAddress { ip, port }
    }

    /// Where that is now.
    fn now(&self) -> Option<SocketAddr> {
        self.ip.borrow().map(|ip| SocketAddr::new(ip, self.port))
    }
}
