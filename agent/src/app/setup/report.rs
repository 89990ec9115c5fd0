//! What setup tells of itself: the steps that it takes, and why it fails.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use proto::cause::Fault;
use proto::cluster::{AdoptError, ChangeError, ClusterId};
use proto::config::Mistake;
use proto::invite::BadInvite;
use proto::node::{Name, NodeId, Role};

use crate::membership::disk::{LoadError, Lost, NotKept};
use crate::membership::join::{JoinCredential, JoinError};
use crate::net::{NetError, PickError, ResolveError};
use crate::state::StateError;
use crate::transport::BindError;

/// Is told each step when it is done.
pub(crate) type StepReport<'a> = &'a mut (dyn FnMut(SetupStep) + Send);

/// A checked fact on the way into a cluster.
pub(crate) enum SetupStep {
    /// This node is a member of this cluster already.
    AlreadyMember(Name),
    /// Where others will reach this node.
    Address {
        address: IpAddr,
        interface: String,
        /// What kind of interface, where the kernel says so.
        kind: Option<String>,
    },
    /// The address may not be the one that is meant.
    AddressDoubt(String),
    /// Who this node is, and the directory of its key.
    Identity { id: NodeId, dir: String },
    /// A cluster was made, with this node as its master.
    Created { cluster: Name, node: Name },
    /// The cluster that is about to be replaced, and the masters that it had.
    Replaces { old: ClusterId, masters: String },
    /// It was replaced.
    Succeeded { cluster: Name, id: ClusterId },
    /// A cluster-wide setting was made; none: it was unset.
    Setting { key: String, value: Option<String> },
    /// A state file is unusable, and is about to be replaced.
    StateLost(Lost),
    /// The seed answered.
    Reached { at: SocketAddr, took: Duration, key: SeedKey },
    /// The seed is a worker, and named masters.
    Redirected { worker: SocketAddr },
    /// Someone has to approve this code within this time.
    Waiting { code: String, time: Duration },
    /// It was approved: a person has to type the second code.
    TypeCode,
    /// This node was let in.
    Admitted {
        cluster: Name,
        name: Name,
        role: Option<Role>,
        /// How many there are now.
        members: usize,
    },
    /// A node that joins again has taken this over.
    Rejoined(RejoinOutcome),
    /// A node that joins again goes on with what it has.
    NotAsked(JoinError),
    /// Nothing could be dialled back to.
    NotListening { port: u16, error: rustls::Error },
    /// The seed did not dial back.
    PortNotTested(JoinError),
    /// The seed has dialled back by this protocol; no fault: it got through.
    Port { protocol: &'static str, port: u16, from: IpAddr, fault: Option<Fault> },
}

/// How the seed's key is known.
#[derive(Clone, Copy)]
pub(crate) enum SeedKey {
    /// The invite names it.
    Invite,
    /// It was given by hand.
    Given,
    /// Not yet: people compare codes.
    Unknown,
}

impl SeedKey {
    /// By what this node asks with.
    pub(super) fn of(credential: JoinCredential<'_>) -> SeedKey {
        match credential {
            JoinCredential::Invite(_) => SeedKey::Invite,
            JoinCredential::Pin(_) => SeedKey::Given,
            JoinCredential::None => SeedKey::Unknown,
        }
    }
}

/// What came of joining again.
pub(crate) enum RejoinOutcome {
    /// The document was merged with this node's own.
    Adopted,
    /// The document was taken as it is, since this node knows none of its masters.
    Replaced,
    /// This node has moved to the successor of its cluster.
    Moved(Name),
}

/// Why a node did not enter a cluster.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SetupError {
    /// The state directory can't be used.
    #[error(transparent)]
    State(#[from] StateError),
    /// What is in it is nothing to start from.
    #[error(transparent)]
    Load(#[from] LoadError),
    /// Something could not be written.
    #[error(transparent)]
    Save(#[from] NotKept),
    /// The kernel did not list the interfaces.
    #[error(transparent)]
    Interfaces(#[from] NetError),
    /// No address was chosen.
    #[error(transparent)]
    Address(#[from] PickError),
    /// The port is taken.
    #[error(transparent)]
    Port(#[from] BindError),
    /// Only a master invites; the text names them.
    #[error("{0}")]
    NotMaster(String),
    /// The node is a member under another name; the text says what to run.
    #[error("{0}")]
    Renamed(String),
    /// The virtual IPs are no good.
    #[error("{}", .0.iter().map(ToString::to_string).collect::<Vec<_>>().join("; "))]
    Vips(Vec<Mistake>),
    /// The document does not take them.
    #[error(transparent)]
    Change(#[from] ChangeError),
    /// What was given begins as an invite and is none.
    #[error("invalid invite: {0}")]
    Invite(#[source] BadInvite),
    /// The name of the seed has no address.
    #[error(transparent)]
    Seed(#[from] ResolveError),
    /// The invite has none.
    #[error("the seed has no address")]
    NoSeedAddress,
    /// The conversation with the seed failed.
    #[error(transparent)]
    Join(#[from] JoinError),
    /// The seed let this node in and gave it nothing to be a member by.
    #[error("it gave no cluster document")]
    NoDocument,
    /// The document of a node that joins again does not take the seed's.
    #[error(transparent)]
    NotAdopted(#[from] AdoptError),
}
