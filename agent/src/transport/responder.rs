//! What pulses are answered, and who is told of a change without asking: whoever has pulsed this node lately.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Mutex;
use std::time::Duration;

use proto::node::NodeId;
use proto::pulse::PulseStatus;
use proto::time::Moment;
use proto::transport::DatagramFrame;

use super::lock;

/// Who has not pulsed for this long has gone, and is not told of changes any more: three intervals of an attached node
/// in a cluster of 5,000.
const ASKER: Duration = Duration::from_secs(150);

/// Time between two fingerprints of this node's record to one asker.
const FINGERPRINT: Duration = Duration::from_secs(1);

/// Who has pulsed this node.
struct Asker {
    from: SocketAddr,
    at: Moment,
    /// When it was last sent the fingerprint of this node's record.
    fingerprint: Option<Moment>,
}

/// The answers of this node.
#[derive(Default)]
pub(super) struct PulseResponder {
    /// What this node says in every answer, as bytes.
    status: Mutex<Vec<u8>>,
    /// Of this node's current record; it goes to each asker once a second.
    fingerprint: Mutex<Option<u32>>,
    askers: Mutex<BTreeMap<NodeId, Asker>>,
}

impl PulseResponder {
    /// The answer to a pulse, as the plaintext of a datagram.
    pub(super) fn answer(&self, to: NodeId, number: u64, from: SocketAddr, now: Moment) -> Vec<u8> {
        let mut plaintext = DatagramFrame::Answer(number, &lock(&self.status)).to_bytes();
        let fingerprint = *lock(&self.fingerprint);
        let mut askers = lock(&self.askers);
        let asker = askers.entry(to).or_insert(Asker { from, at: now, fingerprint: None });
        (asker.from, asker.at) = (from, now);
        if let Some(fingerprint) = fingerprint
            && asker.fingerprint.is_none_or(|at| now.since(at) >= FINGERPRINT)
            && DatagramFrame::RecordFingerprint(fingerprint).put(&mut plaintext)
        {
            asker.fingerprint = Some(now);
        }
        plaintext
    }

    /// What this node says from now on.
    pub(super) fn set_status(&self, pulse_status: &PulseStatus) {
        *lock(&self.status) = pulse_status.to_bytes();
    }

    /// The plaintext that tells it unasked, and whom.
    pub(super) fn news(&self, now: Moment) -> (Vec<u8>, Vec<(NodeId, SocketAddr)>) {
        let plaintext = DatagramFrame::Answer(0, &lock(&self.status)).to_bytes();
        let mut askers = lock(&self.askers);
        askers.retain(|_, asker| now.since(asker.at) < ASKER);
        (plaintext, askers.iter().map(|(id, asker)| (*id, asker.from)).collect())
    }

    /// The fingerprint of this node's current record, which goes with an answer a second.
    pub(super) fn set_fingerprint(&self, fingerprint: u32) {
        *lock(&self.fingerprint) = Some(fingerprint);
    }

    /// Forgets everyone who is not a member any more.
    pub(super) fn retain(&self, member: impl Fn(&NodeId) -> bool) {
        lock(&self.askers).retain(|id, _| member(id));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_has_pulsed_lately_is_told_of_a_change_where_it_was_last() {
        let responder = PulseResponder::default();
        let (id, at) = (|n: u8| NodeId([n; 10]), |n: u8| SocketAddr::from(([10, 0, 0, n], 1)));
        let pulse = |from: NodeId, at: SocketAddr, ms| {
            responder.answer(from, 1, at, Moment::from_millis(ms));
        };
        pulse(id(1), at(1), 0);
        pulse(id(2), at(2), 4_000);
        pulse(id(2), at(3), 4_100);
        responder.set_status(&PulseStatus::default());
        let (plaintext, told) = responder.news(Moment::from_millis(150_000));
        assert_eq!(told, [(id(2), at(3))]);
        let asked_for = |frame| matches!(frame, DatagramFrame::Answer(number, _) if number != 0);
        assert!(!DatagramFrame::all(&plaintext).any(asked_for));
    }
}
