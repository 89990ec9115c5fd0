//! A person's wish to have the VIP on a node, until its owner has heard it.

use std::time::Duration;

use crate::node::NodeId;
use crate::time::Moment;

/// How long a wish to move is repeated.
const REPEATED: Duration = Duration::from_secs(1);

/// The wish, if there is one.
#[derive(Debug, Clone, Default)]
pub(super) struct MoveRequest {
    /// To which node, and until when the owner is asked.
    wanted: Option<(NodeId, Moment)>,
}

impl MoveRequest {
    /// A person wants the VIP there.
    pub(super) fn begin(&mut self, now: Moment, to: NodeId) {
        self.wanted = Some((to, now.after(REPEATED)));
    }

    /// This node has become owner.
    pub(super) fn owner_changed(&mut self, owner: NodeId) {
        self.wanted.take_if(|(to, _)| *to == owner);
    }

    /// Whom to ask, and for which node; none when it is done, too late or there is nobody.
    pub(super) fn poll(&mut self, now: Moment, holder: Option<NodeId>) -> Option<(NodeId, NodeId)> {
        self.wanted.take_if(|(to, until)| now >= *until || holder == Some(*to));
        self.wanted.zip(holder).map(|((to, _), holder)| (holder, to))
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::{at, id};
    use super::*;

    #[test]
    fn an_owner_is_asked_for_a_second_and_not_once_it_is_done() {
        let wanted = || {
            let mut request = MoveRequest::default();
            request.begin(at(0), id(2));
            request
        };
        assert_eq!(MoveRequest::default().poll(at(0), Some(id(3))), None);
        assert_eq!(wanted().poll(at(999), Some(id(3))), Some((id(3), id(2))));
        for (ms, holder) in [(1_000, Some(id(3))), (1_000, None), (0, Some(id(2)))] {
            let mut request = wanted();
            assert_eq!(request.poll(at(ms), holder), None);
            assert_eq!(request.poll(at(0), Some(id(3))), None, "for good: {ms} {holder:?}");
        }
        let mut request = wanted();
        assert_eq!(request.poll(at(10), None), None, "it is being handed over");
        request.owner_changed(id(4));
        assert!(request.poll(at(0), Some(id(4))).is_some());
        request.owner_changed(id(2));
        assert_eq!(request.poll(at(0), Some(id(3))), None);
    }
}
