//! Owners beat twenty times a second, and nearly always say what they have said before. Such a beat wakes this thread
//! up for nothing: the transport keeps when it came ([`RepeatedBeats`]), and it is read when something is due, which
//! it is when an owner has been silent for two beats.
//!
//! [`RepeatedBeats`]: crate::transport::repeats::RepeatedBeats

use proto::election::wire::{MessageKind, VipMessage};
use proto::node::NodeId;
use proto::time::Moment;

use super::VipDriver;

impl VipDriver {
    /// Reads beats that were repeated since the last turn, as of when they came.
    pub(super) fn hear_repeats(&mut self, now: Moment) {
        let link_now = self.life.now();
        for (from, came) in self.inputs.link.datagrams().repeats().take() {
            let at = now.before(link_now.since(came));
            for message in self.repeats.get(&from).into_iter().flatten() {
                if let Some(vip) = self.vips.get_mut(&message.vip) {
                    vip.election_mut().receive(at, from, message);
                }
            }
        }
    }

    /// Nobody is woken for these messages from now on, if they say only that their sender owns what this node takes it
    /// for the owner of.
    pub(super) fn expect_repeats(&mut self, from: NodeId, datagram: &[u8], messages: Vec<VipMessage>) {
        if self.is_steady(&from, &messages) {
            self.inputs.link.datagrams().repeats().expect(from, datagram);
            self.repeats.insert(from, messages);
        }
    }

    /// Beats of who is no owner any more are news again. To be called after all that may have changed one.
    pub(super) fn end_repeats(&mut self) {
        let ended = |(from, messages): (&NodeId, &Vec<VipMessage>)| {
            (!self.is_steady(from, messages)).then_some(*from)
        };
        let ended: Vec<NodeId> = self.repeats.iter().filter_map(ended).collect();
        for from in ended {
            self.repeats.remove(&from);
            self.inputs.link.datagrams().repeats().forget(&from);
        }
    }

    fn is_steady(&self, from: &NodeId, messages: &[VipMessage]) -> bool {
        let steady = |message: &VipMessage| {
            message.purpose == MessageKind::Beat
                && message.known.and_then(|known| known.holder()) == Some(*from)
                && self.vips.get(&message.vip).is_some_and(|vip| vip.election().follows(from))
        };
        !messages.is_empty() && messages.iter().all(steady)
    }
}
