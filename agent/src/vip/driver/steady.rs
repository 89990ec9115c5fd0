//! An owner's beats, while nothing changes, are no hurry: they may go with the answers to pulses, which most nodes send
//! at the same moments. Anything else is sent at once.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::time::Duration;

use proto::election::wire::{MessageKind, VipMessage, pack};
use proto::node::NodeId;

use super::VipDriver;

/// What each node was told of what this one owns.
#[derive(Default)]
pub(super) struct SteadyBeats {
    told: BTreeMap<NodeId, Vec<VipMessage>>,
    /// What it owned then.
    owned: BTreeSet<IpAddr>,
}

/// How a message is to be sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Urgency {
    /// Its receiver has heard it before.
    Steady,
    /// It has, but not all of the rest, whose ages hold now.
    Mixed,
    News,
}

impl SteadyBeats {
    /// Forgets what nodes were told that are not members any more.
    pub(super) fn retain(&mut self, member: impl Fn(&NodeId) -> bool) {
        self.told.retain(|id, _| member(id));
    }

    /// Notes that a node is told this now.
    fn tell(&mut self, own: NodeId, to: NodeId, messages: &[VipMessage]) -> Urgency {
        let is_beat = |one: &&VipMessage| {
            let holder = one.known.and_then(|known| known.holder());
            one.purpose == MessageKind::Beat && holder == Some(own) && one.heard == Some(Duration::ZERO)
        };
        let beats: Vec<VipMessage> = messages.iter().filter(is_beat).cloned().collect();
        let told = !beats.is_empty() && self.told.get(&to).is_some_and(|told| *told == beats);
        match told {
            true if beats.len() == messages.len() => Urgency::Steady,
            true => Urgency::Mixed,
            false => {
                self.told.insert(to, beats);
                Urgency::News
            }
        }
    }
}

impl VipDriver {
    /// Sends what the elections have to say.
    pub(super) fn send_all(&mut self, outbox: BTreeMap<NodeId, Vec<VipMessage>>) {
        let now = self.life.now();
        let datagrams = self.inputs.link.datagrams();
        let owned: BTreeSet<IpAddr> = self
            .vips
            .active()
            .filter(|vip| vip.election().owns())
            .map(|vip| vip.settings().address)
            .collect();
        if owned != self.beats.owned {
            self.beats = SteadyBeats { owned, ..SteadyBeats::default() };
            datagrams.cancel_beats(|_| true);
        }
        for (node, messages) in outbox {
            let urgency = self.beats.tell(self.own, node, &messages);
            match pack(&messages).as_slice() {
                [beat] if urgency == Urgency::Steady => datagrams.send_beat(node, beat, now),
                all => {
                    if urgency == Urgency::News {
                        datagrams.cancel_beats(|id| *id == node);
                    }
                    all.iter().for_each(|one| datagrams.send_vip(node, one));
                }
            }
        }
        if !self.beats.owned.is_empty() {
            datagrams.keep_beats(now);
        }
    }
}

#[cfg(test)]
mod tests {
    use proto::election::CandidateState;
    use proto::election::wire::{Claim, HighestClaim, Holding};

    use super::super::super::tests::id;
    use super::*;

    fn says(last: u8, owner: u8, heard: u64) -> VipMessage {
        let vip: IpAddr = [10, 0, 0, last].into();
        let claim = Claim::new(vip, 5, 100, id(owner));
        VipMessage {
            vip,
            purpose: MessageKind::Beat,
            known: Some(HighestClaim { claim, holding: Holding::Held }),
            heard: Some(Duration::from_millis(heard)),
            state: CandidateState::Fit,
        }
    }

    #[test]
    fn only_what_a_node_has_heard_before_of_what_this_one_owns_can_wait() {
        let mut beats = SteadyBeats::default();
        let mut tell = |to, messages: Vec<VipMessage>| beats.tell(id(1), id(to), &messages);
        let (own, other) = (says(50, 1, 0), says(51, 2, 20));
        assert_eq!(tell(3, vec![own.clone()]), Urgency::News);
        assert_eq!(tell(3, vec![own.clone()]), Urgency::Steady);
        assert_eq!(tell(4, vec![own.clone()]), Urgency::News, "another node");
        assert_eq!(tell(3, vec![own.clone(), other.clone()]), Urgency::Mixed);
        assert_eq!(tell(3, vec![own.clone()]), Urgency::Steady);
        assert_eq!(tell(3, vec![own.clone(), says(52, 1, 0)]), Urgency::News, "it owns another");
        assert_eq!(tell(3, vec![own.clone()]), Urgency::News);
        assert_eq!(tell(3, vec![other.clone()]), Urgency::News);
        assert_eq!(tell(3, vec![other]), Urgency::News, "the ages in it change");
        let asks = VipMessage { purpose: MessageKind::Ask, ..own };
        assert_eq!([tell(3, vec![asks.clone()]), tell(3, vec![asks])], [Urgency::News; 2]);
    }
}
