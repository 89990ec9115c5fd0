//! Gossiped keys, turned into what this node knows of all others.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use crate::keys::{BadKey, Word};
use crate::node::{NodeId, Role};
use crate::service::ServiceName;
use crate::time::UnixMs;

/// One member as gossip shows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Member {
    /// Its id.
    pub id: NodeId,
    /// What it says of itself.
    pub word: Word,
    /// Gossip hears it.
    pub heard: bool,
    /// Since when `heard` has been so, on this node's wall clock.
    pub since: UnixMs,
}

impl Member {
    /// A master is who offers the default service.
    pub fn role(&self) -> Role {
        if self.word.services.contains_key(&ServiceName::kube_api()) { Role::Master } else { Role::Worker }
    }

    /// Where its link port is reached, best first.
    pub fn addresses(&self) -> &[SocketAddr] {
        &self.word.addresses
    }
}

/// What one node's gossip says, before it is understood.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Heard<'a> {
    /// Who says it.
    pub id: NodeId,
    /// Number of the sayer's start; of two, the higher counts.
    pub generation: u64,
    /// Whether gossip's failure detector counts it as alive.
    pub alive: bool,
    /// Its keys and values.
    pub keys: Vec<(&'a str, &'a str)>,
}

/// Everything that this node knows of all members, itself included.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct View {
    /// The members, by id.
    pub members: BTreeMap<NodeId, Member>,
    /// Members whose word was not understood, and why; they are left out of `members`.
    pub problems: BTreeMap<NodeId, BadKey>,
}

impl View {
    /// Makes a view of what was heard. `previous` tells since when; what `admitted` refuses is passed over,
    /// so that a removed node is gone from every list at once.
    pub fn from_keys<'a>(
        heard: impl IntoIterator<Item = Heard<'a>>,
        previous: &View,
        wall: UnixMs,
        admitted: impl Fn(&NodeId) -> bool,
    ) -> View {
        let mut latest: BTreeMap<NodeId, Heard<'a>> = BTreeMap::new();
        for one in heard.into_iter().filter(|one| admitted(&one.id)) {
            // Old generations of a node can look alive for a while (FIELD: chitchat): the highest counts.
            let newer = latest.get(&one.id).is_none_or(|known| known.generation < one.generation);
            if newer {
                latest.insert(one.id, one);
            }
        }
        let mut view = View::default();
        for (id, one) in latest {
            match Word::from_keys(one.keys.iter().copied()) {
                Ok(word) => {
                    let since = match previous.members.get(&id) {
                        Some(member) if member.heard == one.alive => member.since,
                        _ => wall,
                    };
                    view.members.insert(id, Member { id, word, heard: one.alive, since });
                }
                // A node that has only just been heard of has no keys yet: no problem worth a report.
                Err(_) if one.keys.is_empty() => {}
                Err(error) => {
                    view.problems.insert(id, error);
                }
            }
        }
        view
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(n: u8) -> NodeId {
        NodeId([n; 10])
    }

    fn heard(n: u8, generation: u64, alive: bool, name: &'static str) -> Heard<'static> {
        Heard { id: id(n), generation, alive, keys: vec![("n", name)] }
    }

    #[test]
    fn the_highest_generation_counts_and_strangers_do_not() {
        let view = View::from_keys(
            [heard(1, 5, false, "old"), heard(1, 7, true, "new"), heard(2, 1, true, "removed")],
            &View::default(),
            UnixMs(3),
            |who| *who != id(2),
        );
        assert_eq!(view.members.len(), 1);
        assert_eq!(view.members[&id(1)].word.name.as_str(), "new");
    }

    #[test]
    fn a_bad_member_is_left_out_and_reported() {
        let view = View::from_keys(
            [heard(1, 1, true, "UPPER"), heard(2, 1, true, "fine")],
            &View::default(),
            UnixMs(0),
            |_| true,
        );
        assert_eq!(view.members.keys().collect::<Vec<_>>(), [&id(2)]);
        assert!(view.problems.contains_key(&id(1)));
    }

    #[test]
    fn since_moves_when_hearing_does() {
        let all = |_: &NodeId| true;
        let first = View::from_keys([heard(1, 1, true, "a")], &View::default(), UnixMs(1), all);
        let second = View::from_keys([heard(1, 1, true, "a")], &first, UnixMs(2), all);
        let third = View::from_keys([heard(1, 1, false, "a")], &second, UnixMs(3), all);
        assert_eq!(second.members[&id(1)].since, UnixMs(1));
        assert_eq!(third.members[&id(1)].since, UnixMs(3));
    }
}
