//! Members as one node sees them, and the order of a list of them.

use std::net::IpAddr;

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
    /// The node-local addresses that it serves.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub node_local: Vec<IpAddr>,
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

/// Completes a list by that of another node, as far as one may say something of others: who is a member, its name and
/// its role stand in the document, and members whose records are here are known better here.
pub fn complete(members: &mut [MemberStatus], said: &[MemberStatus]) {
    for own in members.iter_mut().filter(|own| own.version.is_empty()) {
        // They come in the order of their ids, as members do everywhere.
        let found = said.binary_search_by(|one| one.id.cmp(&own.id));
        let Some(other) = found.ok().and_then(|place| said.get(place)) else { continue };
        let text = |text: &str| text.chars().take(MAX_TEXT).collect();
        if own.address.is_empty() {
            own.address = text(&other.address);
        }
        (own.state, own.since_unix_ms) = (other.state, other.since_unix_ms);
        (own.version, own.document) = (text(&other.version), text(&other.document));
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

/// A list in the order that people read it in: by rank, then by name, where numbers count by their value, `n2` before
/// `n10`.
pub fn in_order<'a, T>(
    list: impl Iterator<Item = &'a T>,
    key: impl Fn(&'a T) -> (u8, &'a str),
) -> Vec<&'a T> {
    let list: Vec<&T> = list.collect();
    let keys = list.iter().map(|one| key(one)).collect();
    order(keys).into_iter().filter_map(|place| list.get(place).copied()).collect()
}

/// The places of these keys in their order.
fn order(keys: Vec<(u8, &str)>) -> Vec<usize> {
    let mut sorted: Vec<(String, usize)> =
        keys.into_iter().enumerate().map(|(place, (rank, name))| (sort_key(rank, name), place)).collect();
    sorted.sort_unstable();
    sorted.into_iter().map(|(_, place)| place).collect()
}

fn sort_key(rank: u8, name: &str) -> String {
    let mut key = String::with_capacity(name.len() + 4);
    key.push(char::from(rank));
    let mut rest = name;
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
            node_local: Vec::new(),
        }
    }

    #[test]
    fn another_node_completes_what_is_not_known_here_and_changes_nothing_else() {
        let known = member(1, "m1", MemberState::Up, "0.1.0");
        let vague = member(2, "w2", MemberState::Up, "");
        let silent = member(3, "w3", MemberState::Down, "");
        let mut list = [known.clone(), vague.clone(), silent.clone()];
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
        complete(&mut list, &said);
        let completed = MemberStatus {
            address: "10.0.0.2".to_owned(),
            state: MemberState::Suspect,
            since_unix_ms: UnixMs(7),
            version: "9".repeat(64),
            document: "ab".to_owned(),
            ..vague
        };
        assert_eq!(list, [known, completed, silent]);
    }

    #[test]
    fn numbers_in_names_count_by_their_value() {
        let sorted = ["10", "a1b2", "a01b10", "n", "n1", "n2", "n10", "n10a", "n010b", "n011", "n100", "w-3"];
        let ordered = in_order(sorted.iter().rev(), |name| (1, name));
        assert_eq!(ordered.into_iter().copied().collect::<Vec<_>>(), sorted);
        let ranked = in_order(["a", "b", "c"].iter(), |name| (u8::from(*name != "c"), name));
        assert_eq!(ranked, [&"c", &"a", &"b"]);
    }
}
