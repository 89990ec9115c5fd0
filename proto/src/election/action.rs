//! What an election asks its shell to do, and what it tells people.

use std::time::Duration;

use super::rank::CandidateState;
use super::wire::{ReleaseReason, VipMessage};
use crate::arp::Mac;
use crate::node::NodeId;
use crate::time::Moment;
use crate::unfit::Unfit;

/// Something to carry out, in the order in which it stands. None of it may block the loop for long; what
/// failed for good is told by [`super::Election::set_fact`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Action {
    /// Send this to each of these. Messages of all VIPs to one node go into one datagram
    /// ([`super::wire::pack`]); they become due at the same moments for that purpose.
    Send {
        /// The receivers.
        to: Vec<NodeId>,
        /// What.
        message: VipMessage,
    },
    /// Add the address to the interface with this lifetime; it may be there already.
    Add {
        /// After this the kernel removes it by itself.
        lifetime: Duration,
    },
    /// Renew its lifetime.
    Renew {
        /// Counted from now.
        lifetime: Duration,
    },
    /// Delete the address, if it is there. Connections to it are to be reset, not left in silence.
    Delete,
    /// Ask by ARP (RFC 5227, sender address zero) or neighbour solicitation who has the address. Every
    /// answer is given back by [`super::Election::address_sighted`]; no answer needs no word.
    Probe,
    /// Announce the address: request and reply forms, or an unsolicited neighbour advertisement.
    Announce,
    /// The owner changed: replace this node's neighbour entry for the address, if it shares the segment,
    /// by the owner's hardware address; remove it when there is none.
    Neighbour {
        /// The new owner; never this node.
        owner: NodeId,
    },
    /// Tell people.
    Event(VipEvent),
}

/// Why a node became owner.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Gain {
    /// Nobody is known to have owned it.
    Vacant,
    /// Nobody has heard the owner for so long.
    Silent {
        /// How long.
        quiet: Duration,
    },
    /// The owner let it go, and named this node.
    Handed(ReleaseReason),
    /// The owner let it go, and nobody it named has taken it.
    Released(ReleaseReason),
}

/// Why a node is owner no more.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LossReason {
    /// It let the address go.
    Released(ReleaseReason),
    /// Another owner with a higher claim was heard of.
    Higher,
}

/// What happened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum VipEvent {
    /// This node owns the VIP now.
    Gained {
        /// The epoch of its claim.
        epoch: u64,
        /// Who owned it before.
        from: Option<NodeId>,
        /// Why.
        cause: Gain,
    },
    /// This node owns it no more.
    Lost {
        /// The epoch of the claim that ended.
        epoch: u64,
        /// Who shall own it, or does.
        to: Option<NodeId>,
        /// Why.
        cause: LossReason,
    },
    /// Others have changed the owner.
    Moved {
        /// The epoch of the new claim.
        epoch: u64,
        /// The owner before.
        from: Option<NodeId>,
        /// The owner now.
        to: NodeId,
        /// What is known of the reason; none: the old owner had not released it.
        cause: Option<ReleaseReason>,
    },
    /// Another owner with a lower claim was heard: it deletes, this node has announced again.
    Contested {
        /// This node's epoch.
        epoch: u64,
        /// The other.
        by: NodeId,
    },
    /// Somebody had removed the address from the interface; it was put back.
    PutBack,
    /// Somebody other than the owner had put the address on this node's interface; it was deleted.
    Cleaned,
    /// A hardware address of no member answers for the VIP.
    Stranger {
        /// It.
        mac: Mac,
        /// This node, the owner, has defended the address; false: it has yielded, or did not own it.
        defended: bool,
    },
}

/// Why a VIP can't be moved to a node.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum MoveError {
    /// It owns it.
    #[error("it already owns the VIP")]
    Already,
    /// It is no candidate.
    #[error("it is not a candidate for this VIP")]
    NotCandidate,
    /// It is not heard.
    #[error("its agent does not answer this node")]
    NotHeard,
    /// It can't.
    #[error("it is not eligible: {0}")]
    Unfit(Unfit),
    /// There is nobody to hand it over.
    #[error("the VIP has no owner that could hand it over")]
    NoOwner,
}

/// The state in a word, as status and JSON say it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OwnershipState {
    /// This node owns it.
    OwnedHere,
    /// Another does.
    Owned,
    /// Nobody does, or nobody is known to.
    Unowned,
    /// Nobody can.
    Unavailable,
}

impl OwnershipState {
    /// `owned-here`, `owned`, `unowned` or `unavailable`.
    pub fn as_str(self) -> &'static str {
        match self {
            OwnershipState::OwnedHere => "owned-here",
            OwnershipState::Owned => "owned",
            OwnershipState::Unowned => "unowned",
            OwnershipState::Unavailable => "unavailable",
        }
    }
}

/// One candidate, for show.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CandidateStatus {
    /// The node.
    pub node: NodeId,
    /// Its configured priority.
    pub priority: u8,
    /// How it stands; none: it has not been heard lately.
    pub candidate_state: Option<CandidateState>,
    /// Why it can't own the VIP; none: it can.
    pub reason: Option<Unfit>,
}

/// All there is to show of a VIP.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ElectionStatus {
    /// In a word.
    pub state: OwnershipState,
    /// The owner.
    pub owner: Option<NodeId>,
    /// The highest epoch that is known; 0: none.
    pub epoch: u64,
    /// Since when this node knows of this owner.
    pub since: Option<Moment>,
    /// Why nobody owns it, or what is wrong though somebody does.
    pub reason: Option<Unfit>,
    /// The candidates, in the order in which they would take it; the owner first.
    pub candidates: Vec<CandidateStatus>,
}
