//! Which silent members a core member names to those attached to it.

use std::time::Duration;

use super::wire::MOST_SILENT;
use crate::node::NodeId;
use crate::time::Moment;

/// Up to so many are named as they are. A longer list goes anew to all that are attached with each change, which would
/// be most of what a core member sends while members by the hundred come or go.
const FEW: usize = 8;

/// Time between two changes of a longer list.
const PAUSE: Duration = Duration::from_secs(10);

/// The silent members that are named: of many only some.
#[derive(Debug, Clone, Default)]
pub struct SilentNames {
    named: Vec<NodeId>,
    /// How many of them are needed; they are the first.
    needed: usize,
    /// When a long list may change.
    next: Moment,
}

impl SilentNames {
    /// Takes who is silent. Those whose records every node `needs` are named first, and their change at once; then
    /// those that were named before, so that whoever knows them is told nothing again.
    pub fn update(&mut self, silent: &[NodeId], needs: impl Fn(&NodeId) -> bool, now: Moment) {
        let (needed, mut others): (Vec<NodeId>, Vec<NodeId>) = silent.iter().partition(|id| needs(id));
        let same = self.named.get(..self.needed).is_some_and(|before| *before == needed);
        if same && silent.len() > FEW && now < self.next {
            return;
        }
        others.sort_by_cached_key(|id| !self.named.contains(id));
        let named: Vec<NodeId> = needed.iter().chain(&others).take(MOST_SILENT).copied().collect();
        if named != self.named {
            self.next = now.after(PAUSE);
        }
        (self.named, self.needed) = (named, needed.len().min(MOST_SILENT));
    }

    /// Those that are named, the needed ones first.
    pub fn named(&self) -> &[NodeId] {
        &self.named
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ids(numbers: impl IntoIterator<Item = u8>) -> Vec<NodeId> {
        numbers.into_iter().map(|n| NodeId([n; NodeId::LEN])).collect()
    }

    #[test]
    fn a_few_are_named_as_they_are_and_of_many_the_same_ones_for_a_while() {
        let mut names = SilentNames::default();
        let mut update = |silent: Vec<NodeId>, seconds: u64| {
            names.update(&silent, |id| id.0[0] < 3, Moment::from_millis(seconds * 1_000));
            names.named().iter().map(|id| id.0[0]).collect::<Vec<_>>()
        };
        assert_eq!(update(ids([9, 2]), 1), [2, 9]);
        assert_eq!(update(ids([9]), 2), [9]);
        let twenty: Vec<u8> = [9].into_iter().chain(20..39).collect();
        assert_eq!(update(ids(20..39), 12), (20..39).collect::<Vec<_>>());
        assert_eq!(update(ids(twenty.clone()), 13), (20..39).collect::<Vec<_>>(), "more of them");
        assert_eq!(update(ids(twenty.iter().copied().chain([1])), 14)[..2], [1, 20], "a needed one, at once");
        assert_eq!(update(ids(twenty), 15)[0], 9, "and that it is back");
        assert_eq!(update(ids(5..250), 25)[..3], [9, 20, 21], "those that were named before stay first");
        assert_eq!(update(ids([]), 26), [0; 0]);
    }
}
