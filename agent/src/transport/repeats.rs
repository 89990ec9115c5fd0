//! Beats of virtual IPs that repeat what their sender has said before: nobody is woken for them. Only when they came is
//! kept, with how long ago their senders heard the owners, for when the VIP thread wakes up by itself.

use std::collections::BTreeMap;
use std::sync::Mutex;

use proto::election::wire::mask_of_ages;
use proto::node::NodeId;
use proto::time::Moment;

use super::lock;

/// What is expected of one member.
struct ExpectedBeat {
    message: Vec<u8>,
    /// Where it is the same each time.
    mask: Vec<u8>,
    /// When it came last, if that was not taken yet.
    came: Option<Moment>,
}

impl ExpectedBeat {
    fn is(&self, message: &[u8]) -> bool {
        let mut bytes = self.message.iter().zip(&self.mask).zip(message);
        self.message.len() == message.len() && bytes.all(|((a, mask), b)| (a ^ b) & mask == 0)
    }
}

/// A beat that its sender has repeated.
pub(crate) struct RepeatedBeat {
    pub(crate) from: NodeId,
    pub(crate) came: Moment,
    pub(crate) message: Vec<u8>,
}

/// What is expected of each member; the VIP thread says what.
#[derive(Default)]
pub(crate) struct RepeatedBeats(Mutex<BTreeMap<NodeId, Vec<ExpectedBeat>>>);

impl RepeatedBeats {
    /// Whether this is what is expected of a member; then it is kept that it came.
    pub(super) fn keep(&self, from: &NodeId, message: &[u8], now: Moment) -> bool {
        let mut all = lock(&self.0);
        let expected = all.get_mut(from).and_then(|all| all.iter_mut().find(|one| one.is(message)));
        let Some(expected) = expected else { return false };
        expected.message.clear();
        expected.message.extend(message);
        expected.came = Some(now);
        true
    }

    /// This message of a member is no news when it comes again, like those of it that are expected already. The caller
    /// bounds their number by [`RepeatedBeats::forget`].
    pub(crate) fn expect(&self, from: NodeId, message: &[u8]) {
        let mut all = lock(&self.0);
        let of_it = all.entry(from).or_default();
        of_it.retain(|one| !one.is(message));
        of_it.push(ExpectedBeat { message: message.to_vec(), mask: mask_of_ages(message), came: None });
    }

    /// Whatever a member says next is news.
    pub(crate) fn forget(&self, from: &NodeId) {
        lock(&self.0).remove(from);
    }

    /// Who has repeated itself since this was asked last, in the order in which they have.
    pub(crate) fn take(&self) -> Vec<RepeatedBeat> {
        let mut all = lock(&self.0);
        let taken = all.iter_mut().flat_map(|(from, expected)| {
            expected.iter_mut().filter_map(|one| {
                Some(RepeatedBeat { from: *from, came: one.came.take()?, message: one.message.clone() })
            })
        });
        let mut taken: Vec<RepeatedBeat> = taken.collect();
        taken.sort_by_key(|one| one.came);
        taken
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use proto::election::CandidateState;
    use proto::election::wire::{MessageKind, VipMessage, pack};

    use super::*;

    const AT: fn(u64) -> Moment = Moment::from_millis;

    fn node(n: u8) -> NodeId {
        NodeId([n; 10])
    }

    fn taken(beats: &RepeatedBeats) -> Vec<(NodeId, Moment, Vec<u8>)> {
        beats.take().into_iter().map(|RepeatedBeat { from, came, message }| (from, came, message)).collect()
    }

    #[test]
    fn only_what_is_expected_is_kept_and_taken_once() {
        let (one, other) = (node(1), node(2));
        let beats = RepeatedBeats::default();
        assert!(!beats.keep(&one, b"mine", AT(1)), "nothing is expected");
        beats.expect(one, b"mine");
        assert!(!beats.keep(&one, b"yours", AT(2)) && !beats.keep(&other, b"mine", AT(2)));
        assert_eq!(taken(&beats), []);
        assert!(beats.keep(&one, b"mine", AT(3)) && beats.keep(&one, b"mine", AT(4)));
        assert_eq!(taken(&beats), [(one, AT(4), b"mine".to_vec())]);
        assert_eq!(taken(&beats), []);
        beats.keep(&one, b"mine", AT(5));
        beats.forget(&one);
        assert!(!beats.keep(&one, b"mine", AT(6)));
        assert_eq!(taken(&beats), []);
    }

    #[test]
    fn several_beats_of_a_member_are_expected_each_once() {
        let beats = RepeatedBeats::default();
        for text in ["a", "b", "a"] {
            beats.expect(node(1), text.as_bytes());
        }
        assert!(["b", "a"].iter().zip(1..).all(|(text, ms)| beats.keep(&node(1), text.as_bytes(), AT(ms))));
        let kept = taken(&beats);
        assert_eq!(kept, [(node(1), AT(1), b"b".to_vec()), (node(1), AT(2), b"a".to_vec())], "as they came");
    }

    #[test]
    fn when_its_sender_heard_an_owner_makes_it_no_other_beat() {
        let said = |heard: u64, state: CandidateState| {
            let one = |last: u8| VipMessage {
                vip: [10, 0, 0, last].into(),
                purpose: MessageKind::Beat,
                known: None,
                heard: Some(Duration::from_millis(heard)),
                state: state.clone(),
            };
            pack(&[one(1), one(2)]).concat()
        };
        let beats = RepeatedBeats::default();
        beats.expect(node(1), &said(3, CandidateState::Fit));
        assert!(!beats.keep(&node(1), &said(3, CandidateState::Recovering), AT(1)));
        let later = said(520, CandidateState::Fit);
        assert!(beats.keep(&node(1), &later, AT(2)));
        assert_eq!(taken(&beats), [(node(1), AT(2), later)], "as it was said last");
    }
}
