//! Beats of virtual IPs that repeat what their sender has said before: nobody is woken for them. Only when they came is
//! kept, for when the VIP thread wakes up by itself.

use std::collections::BTreeMap;
use std::sync::Mutex;

use proto::node::NodeId;
use proto::time::Moment;

use super::lock;

/// What is expected of one member.
struct ExpectedBeat {
    message: Vec<u8>,
    /// When it came last, if that was not taken yet.
    came: Option<Moment>,
}

/// What is expected of each member; the VIP thread says what.
#[derive(Default)]
pub(crate) struct RepeatedBeats(Mutex<BTreeMap<NodeId, ExpectedBeat>>);

impl RepeatedBeats {
    /// Whether this is what is expected of a member; then it is kept that it came.
    pub(super) fn keep(&self, from: &NodeId, message: &[u8], now: Moment) -> bool {
        let mut all = lock(&self.0);
        let expected = all.get_mut(from).filter(|expected| expected.message == message);
        expected.map(|expected| expected.came = Some(now)).is_some()
    }

    /// This message of a member is no news when it comes again.
    pub(crate) fn expect(&self, from: NodeId, message: &[u8]) {
        lock(&self.0).insert(from, ExpectedBeat { message: message.to_vec(), came: None });
    }

    /// Whatever a member says next is news.
    pub(crate) fn forget(&self, from: &NodeId) {
        lock(&self.0).remove(from);
    }

    /// Who has repeated itself since this was asked last, and when.
    pub(crate) fn take(&self) -> Vec<(NodeId, Moment)> {
        let mut all = lock(&self.0);
        all.iter_mut().filter_map(|(id, expected)| Some((*id, expected.came.take()?))).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_expected_is_kept_and_taken_once() {
        let (one, other, at) = (NodeId([1; 10]), NodeId([2; 10]), Moment::from_millis);
        let beats = RepeatedBeats::default();
        assert!(!beats.keep(&one, b"mine", at(1)), "nothing is expected");
        beats.expect(one, b"mine");
        assert!(!beats.keep(&one, b"yours", at(2)) && !beats.keep(&other, b"mine", at(2)));
        assert_eq!(beats.take(), []);
        assert!(beats.keep(&one, b"mine", at(3)) && beats.keep(&one, b"mine", at(4)));
        assert_eq!(beats.take(), [(one, at(4))]);
        assert_eq!(beats.take(), []);
        beats.keep(&one, b"mine", at(5));
        beats.forget(&one);
        assert!(!beats.keep(&one, b"mine", at(6)));
        assert_eq!(beats.take(), []);
    }
}
