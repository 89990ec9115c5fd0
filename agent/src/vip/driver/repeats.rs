//! Owners beat twenty times a second and candidates five times, and nearly always say what they have said before. Such
//! a beat wakes this thread up for nothing: the transport keeps when it came ([`RepeatedBeats`]), and it is read when
//! something is due, which it is when an owner has been silent for two beats, and before anything is decided.
//!
//! [`RepeatedBeats`]: crate::transport::repeats::RepeatedBeats

use proto::election::wire::{MessageKind, VipMessage, unpack};
use proto::node::NodeId;
use proto::time::Moment;

use super::VipDriver;

/// Most different datagrams that are expected of one member: what it owns, and every fourth time also how it stands as
/// a candidate, each in two datagrams. Of one that varies more, all is forgotten and learnt anew.
const MOST: usize = 4;

impl VipDriver {
    /// Reads beats that were repeated since the last turn, as of when they came.
    pub(super) fn hear_repeats(&mut self, now: Moment) {
        let link_now = self.life.now();
        for beat in self.inputs.link.datagrams().repeats().take() {
            let at = now.before(link_now.since(beat.came));
            for message in unpack(&beat.message).unwrap_or_default() {
                if let Some(vip) = self.vips.get_mut(&message.vip) {
                    vip.election_mut().receive(at, beat.from, &message);
                }
            }
        }
    }

    /// Nobody is woken for these messages from now on, if they say only what this node knows: that their sender owns
    /// what this node takes it for the owner of, and that it stands as before for what another one owns.
    pub(super) fn expect_repeats(
        &mut self,
        now: Moment,
        from: NodeId,
        datagram: &[u8],
        messages: Vec<VipMessage>,
    ) {
        if self.is_steady(now, &from, &messages) {
            let (expected, of_it) =
                (self.inputs.link.datagrams().repeats(), self.repeats.entry(from).or_default());
            if of_it.len() == MOST {
                of_it.clear();
                expected.forget(&from);
            }
            expected.expect(from, datagram);
            of_it.push(messages);
        }
    }

    /// Beats that say something else than what is known by now are news again. To be called after all that may have
    /// changed that.
    pub(super) fn end_repeats(&mut self, now: Moment) {
        let ended = |(from, all): (&NodeId, &Vec<Vec<VipMessage>>)| {
            (!all.iter().all(|messages| self.is_steady(now, from, messages))).then_some(*from)
        };
        let ended: Vec<NodeId> = self.repeats.iter().filter_map(ended).collect();
        for from in ended {
            self.repeats.remove(&from);
            self.inputs.link.datagrams().repeats().forget(&from);
        }
    }

    fn is_steady(&self, now: Moment, from: &NodeId, messages: &[VipMessage]) -> bool {
        let steady = |message: &VipMessage| {
            let Some(vip) = self.vips.get(&message.vip) else { return false };
            let owns = message.known.and_then(|known| known.holder()) == Some(*from);
            if owns {
                message.purpose == MessageKind::Beat && vip.election().follows(from)
            } else {
                vip.election().knows_all_of(now, from, message)
            }
        };
        !messages.is_empty() && messages.iter().all(steady)
    }
}
