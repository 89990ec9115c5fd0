//! A worker that was admitted like any other, and has turned hostile: everything in its state directory.

use std::net::SocketAddr;

use anyhow::{Context, Result, bail};
use proto::cluster::{Document, Replica};
use proto::invite::{Invite, InviteProof};
use proto::node::NodeId;
use proto::rpc::{
    ALPN_JOIN, ALPN_MEMBER, Addresses, FromJoining, FromMember, SyncSnapshot, ToJoining, ToMember,
};
use proto::signed_record::{RecordVersion, SignedRecord};
use proto::time::UnixMs;
use proto::transport::{DatagramFrame, KeyRing, MAX_BODY};

use super::cluster::{Cluster, HONEST};
use super::datagram::{Line, Peer};
use super::gossip::{self, Named, Step};
use super::identity::{random, read_state};
use super::tls::Connection;
use super::{Identity, cluster};
use crate::lab::Node;
use crate::mesh::SOON;
use crate::wait::eventually;
use crate::wire::Speaker;

/// The only gossip key.
pub const KEY: &str = "r";

/// A hostile member.
pub struct Hostile {
    /// Who it is.
    pub identity: Identity,
    /// Its copy of the document.
    pub document: Document,
    /// Its gossip keys.
    pub ring: KeyRing,
    /// Its node.
    pub node: &'static Node,
    /// Its UDP port.
    pub line: Line,
    gossip_key: [u8; 32],
    targets: Vec<Peer>,
}

impl Cluster {
    /// The hostile worker, from its state directory; its agent does not run.
    ///
    /// # Errors
    /// It can't be read, or the agent runs.
    pub fn turn(&self) -> Result<Hostile> {
        Hostile::of_node(self, self.hostile_node())
    }

    /// The hostile worker under a fresh, proven identity: a caught offender is ignored for a while, and a row
    /// must not succeed because of that.
    ///
    /// # Errors
    /// It is not admitted.
    pub fn fresh(&mut self) -> Result<Hostile> {
        self.readmit()?;
        let hostile = self.turn()?;
        hostile.prove()?;
        Ok(hostile)
    }

    /// A member that has joined from the stranger's node, in the same way.
    ///
    /// # Errors
    /// As [`Cluster::turn`].
    pub fn other(&self) -> Result<Hostile> {
        Hostile::of_node(self, self.stranger_node())
    }

    /// The hostile worker under an identity that was admitted with an invite and has never run an agent: it has
    /// proven no address to anyone, and says that it is at `at`.
    ///
    /// # Errors
    /// It is not let in.
    pub fn unproven(&mut self, at: SocketAddr) -> Result<Hostile> {
        self.remove_hostile()?;
        let invite: Invite = self.invite(&["--uses", "1"])?.parse()?;
        let (identity, node) = (Identity::stranger()?, self.hostile_node());
        let mut connection = identity.connect(node, self.target(), ALPN_JOIN)?;
        let proof = InviteProof::make(invite.id, &invite.secret, &connection.session, &identity.key);
        let (name, addresses) = (node.name.parse()?, vec![at]);
        connection.send(&FromJoining::Join {
            name,
            proof: Some(proof),
            addresses,
            confirmed: true,
            cluster: None,
        })?;
        let answer: ToJoining = connection.receive()?;
        let ToJoining::Welcome(welcome) = answer else { bail!("it was answered {answer:?}") };
        let document = welcome.snapshot.document.as_ref().context("no document")?.open()?;
        let mut ring = KeyRing::default();
        ring.take(&welcome.snapshot.keys, &document, UnixMs(0));
        let hostile = Hostile::new(self, node, identity, document, ring)?;
        for honest in everyone() {
            // An answer: a handshake alone ends on this side before the other has looked at the key.
            eventually(&format!("n{honest} takes it for a member"), SOON, || {
                let mut connection = hostile.dial(honest)?;
                connection.send(&FromMember::Waiting)?;
                let _: ToMember = connection.receive()?;
                Ok(())
            })?;
        }
        Ok(hostile)
    }
}

impl Hostile {
    fn of_node(cluster: &Cluster, node: &'static Node) -> Result<Hostile> {
        let state = cluster.agents[node.index].state();
        let identity = Identity::of_state(state)?;
        let document: Document = read_state::<Replica>(state, "cluster")?.document().clone();
        Hostile::new(cluster, node, identity, document, read_state(state, "keys")?)
    }

    fn new(
        cluster: &Cluster,
        node: &'static Node,
        identity: Identity,
        document: Document,
        ring: KeyRing,
    ) -> Result<Hostile> {
        let gossip_key = ring.sealing(&document, None, UnixMs(0)).context("no gossip key")?.secret;
        let mut targets = Vec::new();
        for (i, agent) in cluster.honest().iter().enumerate() {
            let [(_, admitted)] = document.find(agent.name())[..] else {
                anyhow::bail!("{} is not in the document", agent.name());
            };
            targets.push(Peer { key: admitted.key, at: cluster.link_of(i) });
        }
        let line = Line::open(node, identity.seed, gossip_key, &targets)?;
        Ok(Hostile { identity, document, ring, node, line, gossip_key, targets })
    }

    /// The id of an honest node, by its number.
    pub fn id_of(&self, node: usize) -> NodeId {
        self.targets[node].key.id()
    }

    /// Proves to all honest nodes that it is there, as a member that has just started does.
    ///
    /// # Errors
    /// One of them does not accept it.
    pub fn prove(&self) -> Result<()> {
        self.targets.iter().try_for_each(|peer| self.line.prove(&peer.key.id()))
    }

    /// A connection to an honest node, as a member.
    ///
    /// # Errors
    /// It is refused.
    pub fn dial(&self, node: usize) -> Result<Connection> {
        self.identity.connect(self.node, self.targets[node].at, ALPN_MEMBER)
    }

    /// Sends a gossip message to all honest nodes, by datagram if it fits and otherwise by TLS; returns the
    /// bytes that it took. Whether anyone accepts it is unknown.
    ///
    /// # Errors
    /// The socket refuses.
    pub fn gossip(&self, message: &[u8]) -> Result<u64> {
        let before = self.line.sent();
        let mut sent = 0;
        for node in 0..self.targets.len() {
            if message.len() <= MAX_BODY {
                self.line.send(&self.id_of(node), &[DatagramFrame::Gossip(message)])?;
            }
            // The same over TLS, where nothing is too large. It may be refused.
            if let Ok(mut connection) = self.dial(node) {
                let _ = connection.send(&FromMember::Gossip(message.to_vec()));
                sent += connection.sent;
            }
        }
        Ok(sent + self.line.sent() - before)
    }

    /// Tells all honest nodes by TLS that a node is at these addresses.
    ///
    /// # Errors
    /// One of them does not accept it.
    pub fn place(&self, id: NodeId, at: &[SocketAddr]) -> Result<u64> {
        let addresses = Addresses::from([(id, at.to_vec())]);
        let snapshot = SyncSnapshot { addresses, ..SyncSnapshot::default() };
        let request = FromMember::Sync(Box::new(snapshot));
        everyone().map(|node| Ok(self.ask(node, &request)?.1)).sum()
    }

    /// A node that seals in another's name, with the only available secrets: its own.
    ///
    /// # Errors
    /// None that an input can cause.
    pub fn as_if(&self, other: NodeId) -> Result<Speaker> {
        let mut speaker = Speaker::new(self.identity.seed, self.gossip_key, u64::from_be_bytes(random()))?;
        // Before anything is sealed: the name is part of each key.
        speaker.id = other;
        Ok(speaker)
    }

    /// Sends frames to an honest node in the other node's name.
    ///
    /// # Errors
    /// The kernel refuses.
    pub fn forge(&self, speaker: &mut Speaker, node: usize, frames: &[DatagramFrame<'_>]) -> Result<()> {
        let peer = self.targets[node];
        let datagram = speaker.seal(&peer.key, frames)?;
        self.line.send_raw(peer.at, &datagram)
    }

    /// Sends a request to an honest node.
    ///
    /// # Errors
    /// It does not answer.
    pub fn ask(&self, node: usize, request: &FromMember) -> Result<(ToMember, u64)> {
        let mut connection = self.dial(node)?;
        connection.send(request)?;
        Ok((connection.receive()?, connection.sent))
    }

    /// Signs a record in anyone's name with its own key.
    pub fn sign(&self, node: NodeId, version: RecordVersion, body: Vec<u8>) -> SignedRecord {
        SignedRecord::sign(&self.identity.pair, &self.document.id.to_string(), node, version, body)
    }
}

/// The gossip message with a record, with chitchat's own version.
pub fn bring(record: &SignedRecord, version: u64) -> Vec<u8> {
    let node = Named::of(&record.node, record.version.generation);
    gossip::ack(&[
        Step::Node { node, last_gc: 0, from: 0 },
        Step::Set(KEY.to_owned(), record.to_value(), version),
    ])
}

/// Every honest node, by number.
pub fn everyone() -> std::ops::Range<usize> {
    0..HONEST
}

/// The generation of an honest node's gossip: no secret, since every digest has it.
///
/// # Errors
/// It can't be read.
pub fn generation(cluster: &Cluster, node: usize) -> Result<u64> {
    cluster::Cluster::state(cluster, node, "generation")
}
