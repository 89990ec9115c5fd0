//! Who belongs: identity, cluster document, keys, invites, and their exchange.
//!
//! One task, the [`task`], owns the document, the keys, the invites and the pending joins; it alone writes them
//! to [`disk`] and publishes [`TrustedKeys`]. Everything else asks it by a bounded queue of [`MembershipCommand`]s. A
//! connection of a joining node has a task of its own ([`admit`]); so has every exchange with a peer. Any of
//! them may be stopped anywhere: the document on disk is always a whole one, and merging again is harmless.

pub(crate) mod admissions;
pub(crate) mod admit;
pub(crate) mod commands;
pub(crate) mod disk;
pub(crate) mod init;
pub(crate) mod join;
mod settings;
pub(crate) mod sync_scheduler;
pub(crate) mod task;

use std::net::SocketAddr;
use std::sync::Arc;

use proto::cluster::{ClusterId, DocumentHash};
use proto::control::{Request, Response};
use proto::invite::{InviteProof, JoinRefusal};
use proto::node::{Name, NodeId, PublicKey, Role};
use proto::rpc::{SyncSnapshot, Welcome};
use tokio::sync::{mpsc, oneshot, watch};

use crate::transport::{MemberRequest, TrustedKeys};

/// What the keeper is asked for.
pub(crate) enum MembershipCommand {
    /// By the command line.
    Control(Request, oneshot::Sender<Response>),
    /// By a member.
    Incoming(MemberRequest),
    /// By a node that wants to join.
    Join(Applicant, oneshot::Sender<Admission>),
    /// By a node that was approved and has confirmed the cluster.
    Admit(Applicant, Role, oneshot::Sender<Admission>),
    /// What a peer holds has come.
    Compared(NodeId, DocumentHash, Box<SyncSnapshot>),
    /// An exchange has ended.
    Exchanged,
    /// Peers are due to be told of changes.
    Push,
    /// A peer seals with a key that is not held.
    UnknownKey,
}

/// A node that wants to join, as its connection shows it.
#[derive(Clone)]
pub(crate) struct Applicant {
    pub(crate) key: PublicKey,
    pub(crate) name: Name,
    pub(crate) proof: Option<InviteProof>,
    pub(crate) session: [u8; 32],
    pub(crate) from: SocketAddr,
    pub(crate) addresses: Vec<SocketAddr>,
    /// It knows this node's key.
    pub(crate) confirmed: bool,
    /// The cluster that it belongs to already.
    pub(crate) cluster: Option<ClusterId>,
}

/// What became of it.
pub(crate) enum Admission {
    Welcome(Box<Welcome>),
    Refused(JoinRefusal),
    /// This node is a worker; masters are there.
    Redirect(Vec<SocketAddr>),
    /// It has to be approved; the role comes here, or none when it is turned away.
    Wait(oneshot::Receiver<Option<Role>>),
}

/// How the rest of the agent reaches the keeper.
#[derive(Clone)]
pub(crate) struct MembershipHandle {
    pub(crate) commands: mpsc::Sender<MembershipCommand>,
    pub(crate) trust: watch::Receiver<Arc<TrustedKeys>>,
    /// Until when nodes without an invite are let in here; zero: they are not.
    pub(crate) open_until: watch::Receiver<proto::time::UnixMs>,
}

impl MembershipHandle {
    /// Carries out a request of the command line.
    pub(crate) async fn control(&self, request: Request) -> Response {
        let (reply, answer) = oneshot::channel();
        let busy = || Response::Failed("the agent is busy or stopping; try again".to_owned());
        if self.commands.send(MembershipCommand::Control(request, reply)).await.is_err() {
            return busy();
        }
        answer.await.unwrap_or_else(|_| busy())
    }
}
