//! The messages of the link's TCP port: MessagePack in length-delimited frames over mutual TLS.
//!
//! Two kinds of peers speak there, told apart by ALPN before anything else: members ([`ALPN_MEMBER`]), whose
//! key must stand in the cluster document, and nodes that want to join ([`ALPN_JOIN`]), whose key nobody
//! knows yet.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use serde::{Deserialize, Serialize, de::DeserializeOwned};

use crate::backends::Serving;
use crate::cause::Fault;
use crate::cluster::Document;
use crate::doctor::Answer;
use crate::event::Event;
use crate::invite::{Proof, Refusal};
use crate::link::GossipKey;
use crate::node::{Name, NodeId};
use crate::signed_record::SignedRecord;
use crate::time::UnixMs;

/// ALPN of members (RFC 7301), one for each version of these messages that this build speaks, the highest
/// first: the highest that both know is taken.
pub const ALPN_MEMBER: &[&[u8]] = &[b"agent/1"];

/// ALPN of nodes that want to join, in the same way.
pub const ALPN_JOIN: &[&[u8]] = &[b"agent-join/1"];

/// Label of the TLS exporter (RFC 8446, 7.5) that proofs and codes are bound to.
pub const EXPORTER_LABEL: &[u8] = b"EXPORTER-agent-join-1";

/// Largest frame: a document of [`crate::cluster::MAX_NODES`] nodes is about 3 MB.
pub const MAX_FRAME: usize = 8 * 1024 * 1024;

/// Largest frame from a node that is not admitted.
pub const MAX_JOIN_FRAME: usize = 4 * 1024;

/// Where nodes were last reached.
pub type Addresses = BTreeMap<NodeId, Vec<SocketAddr>>;

/// One node's copy of what all must know.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Copy {
    /// The document.
    pub document: Document,
    /// The gossip keys; none for a node that was removed.
    pub keys: Vec<GossipKey>,
    /// Where nodes were last reached.
    pub addresses: Addresses,
}

/// From a member.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub enum FromMember {
    /// A gossip message that is too large for a datagram. Not answered.
    Gossip(#[serde(with = "crate::bytes")] Vec<u8>),
    /// "Here is my copy of what all must know; give me yours."
    Sync(Box<Copy>),
    /// "Someone has answered a node that waits at one of us."
    Answer {
        /// The code that it shows.
        code: String,
        /// Let in, or turned away.
        approve: bool,
    },
    /// "Who waits at you?"
    Waiting,
    /// "How many connections do you hold to this node?"
    Held(NodeId),
    /// "What has happened at you?"
    Events {
        /// Not what was before this time.
        since: UnixMs,
        /// Not what has a number up to this one.
        after: u64,
        /// At most so many, the latest.
        most: u32,
    },
    /// "Look at yourself, and at the way back to me." The answer brings as many bytes back, which fill
    /// packets to their full size; without any it is short, and leaves out what was found.
    Examine(#[serde(with = "crate::bytes")] Vec<u8>),
    /// "Which records do you hold that are newer than mine?"
    Records {
        /// What is held, by node: generation and sequence.
        known: Vec<(NodeId, u64, u64)>,
        /// Those of nodes that are not named too.
        all: bool,
    },
}

/// To a member.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub enum ToMember {
    /// What all must know, both copies merged.
    Synced(Box<Copy>),
    /// The name of the node that was answered; none: no one with that code waits here.
    Answered(Option<Name>),
    /// Who waits.
    Waiting(Vec<crate::invite::Waiting>),
    /// So many.
    Held(u64),
    /// What has happened here, oldest first.
    Events(Vec<Event>),
    /// What was found, and the bytes that came.
    Examined(Box<Answer>, #[serde(with = "crate::bytes")] Vec<u8>),
    /// Records that are newer, or as many of them as fit.
    Records(Vec<SignedRecord>),
    /// The request can't be served, and why.
    Failed(String),
}

/// From a node that wants to join.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub enum FromJoining {
    /// "Let me in."
    Join {
        /// What it wants to be called.
        name: Name,
        /// The proof of an invite; none: it waits for approval.
        proof: Option<Proof>,
        /// Where its link port will be reached.
        addresses: Vec<SocketAddr>,
    },
    /// "I listen now: can you reach me?"
    Listening,
}

/// To a node that wants to join.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub enum ToJoining {
    /// Someone has to approve; both sides can compute the code from the session.
    Wait {
        /// How long it may take, in seconds.
        seconds: u64,
    },
    /// Admitted.
    Welcome(Box<Welcome>),
    /// Not admitted.
    Refused(Refusal),
    /// What came of dialling back; none: reached.
    Reached {
        /// By TCP.
        tcp: Option<Fault>,
        /// By UDP.
        udp: Option<Fault>,
    },
}

/// What an admitted node gets.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Welcome {
    /// What all must know, with the new node in it.
    pub copy: Copy,
    /// Who serves now, so that the new node can dial before it has heard anyone.
    pub serving: Serving,
}

/// Encodes a message for a frame.
pub fn encode<T: Serialize>(message: &T) -> Vec<u8> {
    // Plain values into memory: there is nothing that could fail.
    rmp_serde::to_vec_named(message).unwrap_or_default()
}

/// Decodes a frame.
///
/// # Errors
/// What is wrong with it.
pub fn decode<T: DeserializeOwned>(frame: &[u8]) -> Result<T, String> {
    rmp_serde::from_slice(frame).map_err(|error| error.to_string())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_gossip_message_costs_its_own_length() {
        let frame = encode(&FromMember::Gossip(vec![200; 5000]));
        assert!(frame.len() < 5020, "{}", frame.len());
        assert!(matches!(decode(&frame), Ok(FromMember::Gossip(message)) if message.len() == 5000));
    }

    proptest! {
        #[test]
        fn no_frame_makes_it_panic(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            let _ = decode::<FromMember>(&bytes);
            let _ = decode::<ToMember>(&bytes);
            let _ = decode::<FromJoining>(&bytes);
            let _ = decode::<ToJoining>(&bytes);
        }
    }
}
