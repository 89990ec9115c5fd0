//! What pulses are answered, and who is told of a change without asking: whoever has pulsed this node lately
//! ([`Askers`]).

use std::net::SocketAddr;
use std::sync::Mutex;

use proto::node::NodeId;
use proto::pulse::PulseStatus;
use proto::time::Moment;
use proto::topology::Askers;
use proto::transport::DatagramFrame;

use super::lock;

/// The answers of this node.
#[derive(Default)]
pub(super) struct PulseResponder {
    /// What this node says in every answer.
    status: Mutex<OwnStatus>,
    /// Of this node's current record; it goes to each asker once a second.
    fingerprint: Mutex<Option<u32>>,
    askers: Mutex<Askers>,
}

/// A status, and the same as bytes.
#[derive(Default)]
struct OwnStatus {
    said: PulseStatus,
    bytes: Vec<u8>,
}

impl PulseResponder {
    /// The answer to a pulse, as the plaintext of a datagram.
    pub(super) fn answer(&self, to: NodeId, number: u64, from: SocketAddr, now: Moment) -> Vec<u8> {
        let record = *lock(&self.fingerprint);
        let fingerprint = lock(&self.askers).pulsed(to, from, record, now);
        let mut plaintext = DatagramFrame::Answer(number, &lock(&self.status).bytes).to_bytes();
        if let Some(fingerprint) = fingerprint {
            DatagramFrame::RecordFingerprint(fingerprint).put(&mut plaintext);
        }
        plaintext
    }

    /// What this node says from now on. `seldom`: some pulse so seldom that they are told more than once.
    pub(super) fn set_status(&self, pulse_status: &PulseStatus, seldom: bool, now: Moment) {
        let mut status = lock(&self.status);
        let said = PulseStatus { pausing: status.said.pausing, ..pulse_status.clone() };
        *status = OwnStatus { bytes: said.to_bytes(), said };
        lock(&self.askers).changed(seldom, now);
    }

    /// Whether this process is about to be replaced.
    pub(super) fn set_pausing(&self, pausing: bool, now: Moment) {
        let mut status = lock(&self.status);
        status.said.pausing = pausing;
        status.bytes = status.said.to_bytes();
        lock(&self.askers).changed(false, now);
    }

    /// The plaintext that tells it unasked, whom now, and when there is more to tell.
    pub(super) fn news(&self, now: Moment) -> (Vec<u8>, Vec<(NodeId, SocketAddr)>, Option<Moment>) {
        let plaintext = DatagramFrame::Answer(0, &lock(&self.status).bytes).to_bytes();
        let mut askers = lock(&self.askers);
        (plaintext, askers.poll(now), askers.deadline())
    }

    /// The fingerprint of this node's current record, which goes with an answer a second.
    pub(super) fn set_fingerprint(&self, fingerprint: u32) {
        *lock(&self.fingerprint) = Some(fingerprint);
    }

    /// Forgets everyone who is not a member any more.
    pub(super) fn retain(&self, member: impl Fn(&NodeId) -> bool) {
        lock(&self.askers).retain(member);
    }
}
