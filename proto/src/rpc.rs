//! The messages of the transport's TCP port: MessagePack in length-delimited frames over mutual TLS.
//!
//! Two kinds of peers use it, distinguished by ALPN before anything else: members ([`ALPN_MEMBER`]), whose
//! key must be in the cluster document, and joining nodes ([`ALPN_JOIN`]), whose key is not known yet.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use serde::de::{self, DeserializeOwned, Visitor};
use serde::{Deserialize, Deserializer, Serialize};

use crate::backends::LastKnownGood;
use crate::cause::Fault;
use crate::cluster::{ClusterId, DocumentDifference, DocumentHash, KeyId, SealedDocument};
use crate::control::MemberStatus;
use crate::doctor::DoctorAnswer;
use crate::event::Event;
use crate::invite::{Approval, InviteProof, JoinRefusal};
use crate::msgpack;
use crate::next_wire;
use crate::node::{Name, NodeId, Role};
use crate::signed_record::SignedRecord;
use crate::time::UnixMs;
use crate::transport::GossipKey;

/// ALPN of members (RFC 7301), one for each version of these messages that this build speaks, the highest
/// first: the highest common one is used.
pub const ALPN_MEMBER: &[&[u8]] = if next_wire::ON { &[b"agent/2", b"agent/1"] } else { &[b"agent/1"] };

/// ALPN of joining nodes, in the same way.
pub const ALPN_JOIN: &[&[u8]] =
    if next_wire::ON { &[b"agent-join/2", b"agent-join/1"] } else { &[b"agent-join/1"] };

/// Label of the TLS exporter (RFC 8446, 7.5) that proofs and codes are bound to.
pub const EXPORTER_LABEL: &[u8] = b"EXPORTER-agent-join-1";

/// Largest frame: a document of [`crate::cluster::MAX_NODES`] nodes is about 3 MB.
pub const MAX_FRAME: usize = 8 * 1024 * 1024;

/// Largest frame from a node that is not admitted.
pub const MAX_JOIN_FRAME: usize = 4 * 1024;

/// Last known addresses of nodes.
pub type Addresses = BTreeMap<NodeId, Vec<SocketAddr>>;

/// Most addresses of one node accepted from another; they are hints, since TLS proves who answers.
pub const MAX_ADDRESSES: usize = 8;

/// Names what a node has of the shared state.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct SyncDigest {
    /// Its document.
    pub document: DocumentHash,
    /// Its gossip keys.
    pub keys: Vec<KeyId>,
    /// It takes a difference in place of a document.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub differences: bool,
}

/// Shared state, or the part of it that another node lacks.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct SyncSnapshot {
    /// The document; `None`: the other has it, or this one is not sealed yet.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub document: Option<SealedDocument>,
    /// In place of the document, for a node that has it as it was a moment ago. A node that it leads nowhere answers
    /// with another hash than its target, and is sent the whole.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub difference: Option<DocumentDifference>,
    /// Gossip keys; none for a removed node.
    #[serde(default)]
    pub keys: Vec<GossipKey>,
    /// Last known addresses of nodes.
    #[serde(default)]
    pub addresses: Addresses,
}

/// Why a request was not served. The code decides, the text is for people.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "u16", into = "u16")]
pub enum FailCode {
    /// Too busy; try again.
    Busy,
    /// The kind of request is unknown: a later version has it.
    Unsupported,
    /// Only masters may send this.
    NotAllowed,
    /// Only a master could do it, and this node is none.
    NotMaster,
    /// Something else, or a code of a later version.
    Other(u16),
}

impl From<u16> for FailCode {
    fn from(code: u16) -> FailCode {
        match code {
            1 => FailCode::Busy,
            2 => FailCode::Unsupported,
            3 => FailCode::NotAllowed,
            4 => FailCode::NotMaster,
            code => FailCode::Other(code),
        }
    }
}

impl From<FailCode> for u16 {
    fn from(code: FailCode) -> u16 {
        match code {
            FailCode::Busy => 1,
            FailCode::Unsupported => 2,
            FailCode::NotAllowed => 3,
            FailCode::NotMaster => 4,
            FailCode::Other(code) => code,
        }
    }
}

/// Requests of a member.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub enum FromMember {
    /// A gossip message that is too large for a datagram. Not answered.
    Gossip(#[serde(with = "crate::bytes")] Vec<u8>),
    /// Sync: has the sender's digest; the response has what it lacks.
    Compare(SyncDigest),
    /// Push: something has changed, and this is the new shared state.
    Sync(Box<SyncSnapshot>),
    /// An administrator has answered a node that waits at another master. Accepted from masters only.
    Answer {
        /// The code that it shows.
        code: String,
        /// Approve it with this role; `None`: reject it.
        role: Option<Role>,
    },
    /// The sender leaves the cluster for good and asks to be removed. Accepted by masters only.
    Leave,
    /// List the nodes that wait here.
    Waiting,
    /// Count the connections held to this node.
    Held(NodeId),
    /// List all members, as the receiver sees them. A node that is attached itself refuses.
    Members,
    /// List events.
    Events {
        /// Not those before this time.
        since: UnixMs,
        /// Not those with a number up to this one.
        after: u64,
        /// At most so many, the latest.
        most: u32,
    },
    /// Examine yourself and the path back to the sender. The response returns the bytes, which fill packets
    /// to their full size; without any it is short, and leaves out the findings.
    Examine(#[serde(with = "crate::bytes")] Vec<u8>),
    /// List records that are newer than the sender's.
    Records {
        /// The sender's versions, by node: generation and sequence.
        known: Vec<(NodeId, u64, u64)>,
        /// Also those of nodes that are not named.
        all: bool,
        /// Of these only those that every node needs: see [`crate::topology::is_needed`].
        #[serde(default, skip_serializing_if = "std::ops::Not::not")]
        needed: bool,
    },
    /// Known only to the next version.
    #[cfg(feature = "next-wire")]
    Next {
        /// Anything.
        text: String,
    },
}

/// Responses to a member.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub enum ToMember {
    /// This node's document, and what the other lacks.
    Compared(DocumentHash, Box<SyncSnapshot>),
    /// This node's document after the push.
    Synced(DocumentHash),
    /// The result of answering a waiting node.
    Answered(Approval),
    /// The sender was removed.
    Left,
    /// The waiting nodes.
    Waiting(Vec<crate::invite::PendingJoin>),
    /// Their number.
    Held(u64),
    /// The members, without their links.
    Members(Vec<MemberStatus>),
    /// Events of this node, oldest first.
    Events(Vec<Event>),
    /// The findings, and the received bytes.
    Examined(Box<DoctorAnswer>, #[serde(with = "crate::bytes")] Vec<u8>),
    /// Newer records, or as many of them as fit.
    Records(Vec<SignedRecord>),
    /// Known only to the next version.
    #[cfg(feature = "next-wire")]
    Next(String),
    /// The request can't be served.
    Failed {
        /// Why, for the program.
        code: FailCode,
        /// Why, for people.
        reason: String,
    },
}

impl ToMember {
    /// A refusal.
    pub fn failed(code: FailCode, reason: impl Into<String>) -> ToMember {
        ToMember::Failed { code, reason: reason.into() }
    }
}

/// Requests of a joining node.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub enum FromJoining {
    /// Asks to be admitted.
    Join {
        /// Its requested name.
        name: Name,
        /// The proof of an invite; `None`: it waits for approval.
        proof: Option<InviteProof>,
        /// Addresses of its transport port.
        addresses: Vec<SocketAddr>,
        /// It knows the key of the node that it asks, so nobody has to confirm that.
        #[serde(default)]
        confirmed: bool,
        /// The cluster that it already belongs to.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        cluster: Option<ClusterId>,
    },
    /// The confirmation code was typed here: this is the right cluster.
    Confirmed,
    /// It listens now and asks to be dialled back.
    Listening,
}

/// Responses to a joining node.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub enum ToJoining {
    /// An administrator has to approve; both sides can compute the code from the session.
    Wait {
        /// How long it may take, in seconds.
        seconds: u64,
    },
    /// Approved; the joining side has to confirm the cluster.
    Approved {
        /// How long that may take, in seconds.
        seconds: u64,
    },
    /// Only masters admit: these are some.
    Redirect(Vec<SocketAddr>),
    /// Too many join at once: try again in a moment.
    Busy,
    /// Admitted.
    Welcome(Box<Welcome>),
    /// Not admitted.
    Refused(#[serde(deserialize_with = "refusal")] JoinRefusal),
    /// Results of dialling back; `None`: reached.
    Reached {
        /// By TCP.
        tcp: Option<Fault>,
        /// By UDP.
        udp: Option<Fault>,
    },
    /// The request failed.
    Failed {
        /// Why, for the program.
        code: FailCode,
        /// Why, for people.
        reason: String,
    },
}

/// A refusal of a later version is still a refusal.
fn refusal<'de, D: Deserializer<'de>>(deserializer: D) -> Result<JoinRefusal, D::Error> {
    Ok(match Received::deserialize(deserializer)? {
        Received::Known(refusal) => refusal,
        Received::Unknown(kind) => {
            JoinRefusal::NotAdmitted(format!("{kind}, which is unknown to this version"))
        }
    })
}

/// State for an admitted node.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Welcome {
    /// Shared state, including the new node.
    pub snapshot: SyncSnapshot,
    /// Last known good backends, so that the new node can dial before it has heard from anyone.
    pub serving: LastKnownGood,
}

/// A message whose kind this version may not know. Kinds are the variants of an enum, each a text or a map of
/// one entry, so that messages of a later version can be distinguished from broken ones.
#[derive(Debug)]
pub enum Received<T> {
    /// A message.
    Known(T),
    /// One of a kind of a later version, by name.
    Unknown(String),
}

impl<'de, T: Deserialize<'de>> Deserialize<'de> for Received<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Received<T>, D::Error> {
        struct KnownKinds<T>(std::marker::PhantomData<T>);
        impl<'de, T: Deserialize<'de>> Visitor<'de> for KnownKinds<T> {
            type Value = Received<T>;
            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("a kind of message")
            }
            fn visit_str<E: de::Error>(self, kind: &str) -> Result<Received<T>, E> {
                // A kind without content is known or not, nothing else can be wrong.
                let known = T::deserialize(de::value::StrDeserializer::<E>::new(kind));
                Ok(known.map_or_else(|_| Received::Unknown(name(kind)), Received::Known))
            }
            fn visit_map<A: de::MapAccess<'de>>(self, mut map: A) -> Result<Received<T>, A::Error> {
                let kind: String =
                    map.next_key()?.ok_or_else(|| de::Error::custom("a message without a kind"))?;
                let unknown = std::cell::Cell::new(false);
                let tagged = Tagged { kind: &kind, map: &mut map, unknown: &unknown };
                match T::deserialize(tagged) {
                    Ok(message) => Ok(Received::Known(message)),
                    Err(_) if unknown.get() => {
                        map.next_value::<de::IgnoredAny>()?;
                        Ok(Received::Unknown(name(&kind)))
                    }
                    Err(error) => Err(error),
                }
            }
        }
        deserializer.deserialize_any(KnownKinds(std::marker::PhantomData))
    }
}

/// A name from another node, short enough to be logged.
fn name(kind: &str) -> String {
    kind.chars().filter(char::is_ascii_alphanumeric).take(40).collect()
}

/// An enum whose kind has been read already.
struct Tagged<'a, A> {
    kind: &'a str,
    map: &'a mut A,
    unknown: &'a std::cell::Cell<bool>,
}

impl<'de, A: de::MapAccess<'de>> Deserializer<'de> for Tagged<'_, A> {
    type Error = A::Error;

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, A::Error> {
        visitor.visit_enum(self)
    }

    serde::forward_to_deserialize_any! {
        bool i8 i16 i32 i64 u8 u16 u32 u64 f32 f64 char str string bytes byte_buf option unit unit_struct
        newtype_struct seq tuple tuple_struct map struct enum identifier ignored_any
    }
}

impl<'de, A: de::MapAccess<'de>> de::EnumAccess<'de> for Tagged<'_, A> {
    type Error = A::Error;
    type Variant = Self;

    fn variant_seed<V: de::DeserializeSeed<'de>>(self, seed: V) -> Result<(V::Value, Self), A::Error> {
        let kind = seed.deserialize(de::value::StrDeserializer::<A::Error>::new(self.kind));
        let kind = kind.inspect_err(|_| self.unknown.set(true))?;
        Ok((kind, self))
    }
}

impl<'de, A: de::MapAccess<'de>> de::VariantAccess<'de> for Tagged<'_, A> {
    type Error = A::Error;

    fn unit_variant(self) -> Result<(), A::Error> {
        // A later version may have given it content.
        self.map.next_value::<de::IgnoredAny>().map(drop)
    }

    fn newtype_variant_seed<T: de::DeserializeSeed<'de>>(self, seed: T) -> Result<T::Value, A::Error> {
        self.map.next_value_seed(seed)
    }

    fn tuple_variant<V: Visitor<'de>>(self, length: usize, visitor: V) -> Result<V::Value, A::Error> {
        self.map.next_value_seed(Content { length: Some(length), visitor })
    }

    fn struct_variant<V: Visitor<'de>>(
        self,
        _: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, A::Error> {
        self.map.next_value_seed(Content { length: None, visitor })
    }
}

/// The content of a variant: so many values, or named fields.
struct Content<V> {
    length: Option<usize>,
    visitor: V,
}

impl<'de, V: Visitor<'de>> de::DeserializeSeed<'de> for Content<V> {
    type Value = V::Value;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<V::Value, D::Error> {
        match self.length {
            Some(length) => deserializer.deserialize_tuple(length, self.visitor),
            None => deserializer.deserialize_map(self.visitor),
        }
    }
}

/// A message that can't be put into a frame. None of ours is like that; an empty frame would hide it.
#[derive(Debug, thiserror::Error)]
#[error("a message can't be encoded: {0}")]
pub struct BadMessage(#[from] rmp_serde::encode::Error);

/// Encodes a message for a frame.
///
/// # Errors
/// What of it MessagePack has no form for.
pub fn encode<T: Serialize>(message: &T) -> Result<Vec<u8>, BadMessage> {
    Ok(rmp_serde::to_vec_named(&next_wire::grown(message))?)
}

/// A frame that does not hold what it should.
#[derive(Debug, thiserror::Error)]
#[error(transparent)]
pub struct BadFrame(#[from] msgpack::DecodeError);

/// Decodes a frame.
///
/// # Errors
/// What is wrong with it.
pub fn decode<T: DeserializeOwned>(frame: &[u8]) -> Result<T, BadFrame> {
    Ok(msgpack::from_slice(frame)?)
}

#[cfg(test)]
#[path = "rpc_tests.rs"]
mod golden;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn encode<T: Serialize>(message: &T) -> Vec<u8> {
        super::encode(message).unwrap()
    }

    #[test]
    fn a_message_without_a_form_is_an_error_and_no_empty_frame() {
        struct Nothing;
        impl Serialize for Nothing {
            fn serialize<S: serde::Serializer>(&self, _: S) -> Result<S::Ok, S::Error> {
                Err(serde::ser::Error::custom("it has no form"))
            }
        }
        assert!(super::encode(&Nothing).is_err_and(|error| error.to_string().contains("no form")));
    }

    #[test]
    fn a_gossip_message_costs_its_own_length() {
        let frame = encode(&FromMember::Gossip(vec![200; 5000]));
        assert!(frame.len() < 5020, "{}", frame.len());
        assert!(matches!(decode(&frame), Ok(FromMember::Gossip(message)) if message.len() == 5000));
    }

    #[test]
    fn a_refusal_of_a_later_version_is_a_refusal() {
        let later = BTreeMap::from([("Refused", BTreeMap::from([("Frozen", 7)]))]);
        let ToJoining::Refused(refusal) = decode(&encode(&later)).unwrap() else { panic!("no refusal") };
        assert!(refusal.to_string().contains("Frozen, which is unknown to this version"), "{refusal}");
    }

    #[test]
    fn a_request_of_a_later_version_is_not_taken_for_a_broken_one() {
        #[derive(Serialize)]
        enum LaterKind {
            Teleport { to: String },
            Nap,
            Held(NodeId, u32),
        }
        let read = |frame: &[u8]| decode::<Received<FromMember>>(frame);
        let unknown = |later: &LaterKind| matches!(read(&encode(later)), Ok(Received::Unknown(_)));
        assert!(unknown(&LaterKind::Teleport { to: "there".to_owned() }) && unknown(&LaterKind::Nap));
        let node = NodeId([1; 10]);
        assert!(read(&encode(&LaterKind::Held(node, 1))).is_err(), "a known kind with other content");
        for known in [
            FromMember::Waiting,
            FromMember::Leave,
            FromMember::Held(node),
            FromMember::Gossip(vec![1; 300]),
            FromMember::Examine(vec![0; 9]),
            FromMember::Answer { code: "k7qm-2xpd".to_owned(), role: Some(Role::Master) },
            FromMember::Events { since: UnixMs(1), after: 2, most: 3 },
            FromMember::Compare(SyncDigest {
                document: DocumentHash([1; 16]),
                keys: vec![KeyId([2; 16])],
                differences: false,
            }),
            FromMember::Sync(Box::default()),
        ] {
            let Ok(Received::Known(back)) = read(&encode(&known)) else { panic!("{known:?}") };
            assert_eq!(encode(&back), encode(&known));
        }
        let failed = ToMember::failed(FailCode::Other(900), "later");
        let Ok(ToMember::Failed { code, .. }) = decode(&encode(&failed)) else { panic!("a code is lost") };
        assert_eq!(code, FailCode::Other(900));
    }

    proptest! {
        #[test]
        fn no_frame_makes_it_panic(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            let _ = decode::<FromMember>(&bytes);
            let _ = decode::<Received<FromMember>>(&bytes);
            let _ = decode::<ToMember>(&bytes);
            let _ = decode::<FromJoining>(&bytes);
            let _ = decode::<ToJoining>(&bytes);
        }
    }
}
