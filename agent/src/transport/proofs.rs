//! What peers have proven by repeating numbers: that a boot is the live one, and that they are at an address.
//! Decided by [`Sessions`]; kept here with when each was last heard, and who waits for an echo.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use proto::elsewhere::AliveProof;
use proto::node::NodeId;
use proto::session::{BootVerdict, EchoVerdict, ProofForOther, Sessions};
use proto::time::Moment;
use proto::transport::DatagramHeader;
use tokio::sync::oneshot;

use super::addresses::AddressBook;
use super::{lock, random};

/// A number that waits to be repeated from where it was sent.
struct PendingProbe {
    peer: NodeId,
    to: SocketAddr,
    answered: oneshot::Sender<()>,
}

/// The proofs of all peers.
pub(super) struct PeerProofs {
    addresses: Arc<AddressBook>,
    sessions: Mutex<Sessions>,
    probes: Mutex<BTreeMap<u64, PendingProbe>>,
    /// When the last fresh datagram of each peer came.
    heard: Mutex<BTreeMap<NodeId, Moment>>,
}

impl PeerProofs {
    /// Nothing is proven yet.
    pub(super) fn new(addresses: Arc<AddressBook>) -> PeerProofs {
        let (sessions, probes, heard) = Default::default();
        PeerProofs { addresses, sessions, probes, heard }
    }

    /// Judges an authentic datagram, `proof_only` if it holds nothing but challenges and echoes. Returns also
    /// the number to send to where it came from.
    pub(super) fn evaluate(
        &self,
        header: &DatagramHeader,
        from: SocketAddr,
        proof_only: bool,
        now: Moment,
    ) -> (BootVerdict, Option<u64>) {
        let verdict = lock(&self.sessions).evaluate(header, from, proof_only, now, number);
        let challenge = match verdict {
            BootVerdict::Challenge(number) => Some(number),
            BootVerdict::Fresh => {
                lock(&self.heard).insert(header.sender, now);
                // It may have moved, or someone passes its datagrams on.
                let known = self.addresses.confirm_address(header.sender, from);
                if known { None } else { self.number_for(header.sender, from, now) }
            }
            BootVerdict::Replayed | BootVerdict::Unproven => None,
        };
        (verdict, challenge)
    }

    /// Whether to answer a challenge of an authentic datagram that was not replayed.
    pub(super) fn may_echo(&self, header: &DatagramHeader, from: SocketAddr, now: Moment) -> bool {
        lock(&self.sessions).answers(header, from, now)
    }

    /// Takes an authentic echo, and returns what follows from it.
    pub(super) fn echoed(&self, header: &DatagramHeader, number: u64, now: Moment) -> Option<EchoVerdict> {
        let sender = header.sender;
        let mut probes = lock(&self.probes);
        let probe = match probes.get(&number) {
            Some(probe) if probe.peer == sender => probes.remove(&number),
            _ => None,
        };
        drop(probes);
        if let Some(probe) = probe {
            self.addresses.proven(sender, probe.to);
            let _ = probe.answered.send(());
        }
        let verdict = lock(&self.sessions).echoed(header, number, now);
        if let Some(EchoVerdict::Proven(proven)) = verdict {
            self.addresses.proven(sender, proven.address);
            if proven.boot {
                self.addresses.confirm_address(sender, proven.address);
                lock(&self.heard).insert(sender, now);
            }
        }
        verdict
    }

    /// Takes a proof of life of another node, and returns where to pass it on.
    pub(super) fn alive(
        &self,
        header: &DatagramHeader,
        proof: &AliveProof,
        now: Moment,
    ) -> Option<ProofForOther> {
        lock(&self.sessions).alive(header, proof, now)
    }

    /// Members whose identity is used in two places: where the one that counts is, and the other.
    pub(super) fn duplicates(&self, now: Moment) -> Vec<(NodeId, [SocketAddr; 2])> {
        lock(&self.sessions).duplicates(now).collect()
    }

    /// The number to send to an address at which this node may be; none when it was asked a moment ago, or
    /// when too many addresses of it were.
    pub(super) fn number_for(&self, peer: NodeId, at: SocketAddr, now: Moment) -> Option<u64> {
        lock(&self.sessions).probe_number(peer, at, now, number)
    }

    /// A number to send to a peer that should be at this address, and what resolves when it is repeated.
    pub(super) fn probe(&self, peer: NodeId, to: SocketAddr) -> (u64, oneshot::Receiver<()>) {
        let (answered, echo) = oneshot::channel();
        let number = number();
        let mut probes = lock(&self.probes);
        probes.retain(|_, probe| !probe.answered.is_closed());
        probes.insert(number, PendingProbe { peer, to, answered });
        (number, echo)
    }

    /// When this peer was last heard itself, by a fresh datagram.
    pub(super) fn last_heard(&self, peer: &NodeId) -> Option<Moment> {
        lock(&self.heard).get(peer).copied()
    }

    /// Forgets everyone who is not a member any more.
    pub(super) fn retain(&self, member: impl Fn(&NodeId) -> bool) {
        lock(&self.sessions).retain(&member);
        lock(&self.heard).retain(|id, _| member(id));
    }
}

/// A number that nobody can guess.
fn number() -> u64 {
    u64::from_be_bytes(random())
}
