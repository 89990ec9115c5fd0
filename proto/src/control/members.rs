//! Members as one node sees them, and the order of a list of them.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::node::{Name, NodeId, Role};
use crate::open_enum::{OpenEnum, UnknownWord, open_enum_names};
use crate::pulse::Liveness;
use crate::time::UnixMs;
use crate::view::ClusterView;

/// Longest text of a member that another node may say, in characters: an address or a version.
const MAX_TEXT: usize = 64;

/// State of a member. `Left` is one that stopped on purpose.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum MemberState {
    /// It answers.
    Up,
    /// It has not answered for a moment.
    Suspect,
    /// It does not answer.
    Down,
    /// Stopped on purpose.
    Left,
    /// A state of a later version.
    Other(UnknownWord),
}

open_enum_names!(MemberState: Up = "up", Suspect = "suspect", Down = "down", Left = "left");

/// One member, as this node sees it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct MemberStatus {
    /// Its id.
    pub id: NodeId,
    /// Its name.
    pub name: Name,
    /// Its address; empty when unknown.
    pub address: String,
    /// Its role, as the cluster document has it.
    pub role: OpenEnum<Role>,
    /// Its state.
    pub state: MemberState,
    /// Version of its agent; empty when unknown.
    pub version: String,
    /// Since when `state` has been so.
    pub since_unix_ms: UnixMs,
    /// Round-trip time, when known.
    pub rtt_ms: Option<f64>,
    /// Share of pulses that it left unanswered, in thousandths; `None`: it is not pulsed.
    #[serde(default)]
    pub loss_permille: Option<u16>,
    /// Hash of the document that it holds; empty when unknown.
    #[serde(default)]
    pub document: String,
    /// Its own links to others.
    #[serde(default)]
    pub sees: Vec<PeerLinkStatus>,
}

/// One member's link to another.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct PeerLinkStatus {
    /// Name of the peer.
    pub node: Name,
    /// Whether the peer answers.
    pub alive: bool,
    /// Round-trip time, when known.
    pub rtt_ms: Option<f64>,
    /// Share of pulses without an answer, in thousandths.
    pub loss_permille: u16,
}

/// All members, and who said what this node does not know itself.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct MemberList {
    /// The members.
    pub members: Vec<MemberStatus>,
    /// The core member that the list was completed by; `None`: this node knows all members itself, or nobody answered.
    pub from: Option<Name>,
    /// Core members that were asked and gave no list.
    pub silent: Vec<Name>,
}

impl MemberList {
    /// Completes a list by that of another node, as far as one may say something of others: who is a member, its name
    /// and its role stand in the document, and members whose records are here are known better here.
    pub fn complete(&mut self, said: Vec<MemberStatus>, by: Name) {
        let mut said: BTreeMap<NodeId, MemberStatus> = said.into_iter().map(|one| (one.id, one)).collect();
        for own in self.members.iter_mut().filter(|own| own.version.is_empty()) {
            let Some(other) = said.remove(&own.id) else { continue };
            let text = |text: String| text.chars().take(MAX_TEXT).collect();
            let address =
                if own.address.is_empty() { text(other.address) } else { std::mem::take(&mut own.address) };
            *own = MemberStatus {
                address,
                state: other.state,
                since_unix_ms: other.since_unix_ms,
                version: text(other.version),
                document: text(other.document),
                ..own.clone()
            };
        }
        self.from = Some(by);
    }
}

impl MemberState {
    /// By its record, pulses, gossip if it is not pulsed, and its apiserver if it is silent.
    pub fn of(view: &ClusterView, id: &NodeId, liveness: Option<Liveness>, serves: bool) -> MemberState {
        let liveness = liveness.filter(|liveness| *liveness != Liveness::Unknown);
        match view.members.get(id) {
            Some(member) if member.record.left => MemberState::Left,
            _ if liveness == Some(Liveness::Late) => MemberState::Suspect,
            _ if liveness == Some(Liveness::Alive) => MemberState::Up,
            Some(member) if member.heard && liveness.is_none() => MemberState::Up,
            None if view.is_said_alive(id) => MemberState::Up,
            // The machine is alive.
            _ if serves => MemberState::Suspect,
            _ => MemberState::Down,
        }
    }

    /// What concerns people most comes first: 0 for a member that is down, 4 for one that is up.
    pub fn urgency(self) -> u8 {
        match self {
            MemberState::Down => 0,
            MemberState::Suspect => 1,
            MemberState::Other(_) => 2,
            MemberState::Left => 3,
            MemberState::Up => 4,
        }
    }
}

/// A key by which names are in the order of a list: numbers in them by their value, `n2` before `n10`.
pub fn name_order(name: &Name) -> String {
    let mut key = String::with_capacity(name.as_str().len() + 4);
    let mut rest = name.as_str();
    while let Some(first) = rest.chars().next() {
        let digit = first.is_ascii_digit();
        let end = rest.find(|c: char| c.is_ascii_digit() != digit).unwrap_or(rest.len());
        let (mut part, after) = rest.split_at(end);
        if digit {
            // Of numbers without leading zeros the longer one is the larger.
            part = part.trim_start_matches('0');
            key.push(char::from(u8::try_from(part.len()).unwrap_or(u8::MAX)));
        }
        key.push_str(part);
        rest = after;
    }
    key
}

#[cfg(test)]
mod tests {
    use super::*;

    fn member(n: u8, name: &str, state: MemberState, version: &str) -> MemberStatus {
        MemberStatus {
            id: NodeId([n; NodeId::LEN]),
            name: name.parse().unwrap(),
            address: String::new(),
            role: Role::Worker.into(),
            state,
            version: version.to_owned(),
            since_unix_ms: UnixMs(1),
            rtt_ms: Some(0.5),
            loss_permille: None,
            document: String::new(),
            sees: Vec::new(),
        }
    }

    #[test]
    fn another_node_completes_what_is_not_known_here_and_changes_nothing_else() {
        let known = member(1, "m1", MemberState::Up, "0.1.0");
        let vague = member(2, "w2", MemberState::Up, "");
        let silent = member(3, "w3", MemberState::Down, "");
        let own = vec![known.clone(), vague.clone(), silent.clone()];
        let mut list = MemberList { members: own, from: None, silent: Vec::new() };
        let says = MemberStatus {
            address: "10.0.0.2".to_owned(),
            role: Role::Master.into(),
            since_unix_ms: UnixMs(7),
            rtt_ms: Some(9.0),
            document: "ab".to_owned(),
            ..member(2, "liar", MemberState::Suspect, &"9".repeat(1000))
        };
        let said = vec![
            member(1, "m1", MemberState::Down, "6.6.6"),
            says.clone(),
            member(4, "nobody", MemberState::Up, "0.1.0"),
        ];
        list.complete(said, "m9".parse().unwrap());
        let completed = MemberStatus {
            address: "10.0.0.2".to_owned(),
            state: MemberState::Suspect,
            since_unix_ms: UnixMs(7),
            version: "9".repeat(64),
            document: "ab".to_owned(),
            ..vague
        };
        assert_eq!(list.members, [known, completed, silent]);
        assert_eq!(list.from.unwrap().as_str(), "m9");
    }

    #[test]
    fn numbers_in_names_count_by_their_value() {
        let sorted = ["10", "a1b2", "a01b10", "n", "n1", "n2", "n10", "n10a", "n010b", "n011", "n100", "w-3"];
        let mut names: Vec<Name> = sorted.iter().rev().map(|name| name.parse().unwrap()).collect();
        names.sort_by_cached_key(name_order);
        assert_eq!(names.iter().map(Name::as_str).collect::<Vec<_>>(), sorted);
    }
}
