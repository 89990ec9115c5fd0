//! From what is known to whom to dial: ranked candidates for one service.
//!
//! [`Rank`] derives `Ord`, and the order of its fields is the policy: state before tier before load before
//! chance. Only the best rank gets new connections while it lasts; the rest are what is tried after it.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::health::Readiness;
use crate::keys::Offer;
use crate::node::{Name, NodeId};
use crate::path::{Path, Reach};
use crate::service::{Balance, ServiceName};
use crate::time::UnixMs;
use crate::view::View;

/// What a backend is, seen from this node. The order is the order in which they are tried: when nothing
/// better is left, even what is down is tried once (k3s#10240).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum State {
    /// It says that it is ready and can be reached.
    Ready,
    /// It answers, but its readiness is not known (401, 403).
    Alive,
    /// It finishes what it has and wants nothing new.
    Draining,
    /// Known only from the last good list of an earlier run.
    Unknown,
    /// In doubt: see [`crate::path`].
    Suspect,
    /// It says that it is not ready.
    NotReady,
    /// It does not answer.
    Down,
}

impl State {
    /// The word that status uses.
    pub fn word(self) -> &'static str {
        match self {
            State::Ready => "ready",
            State::Alive => "alive",
            State::Draining => "draining",
            State::Unknown => "unknown",
            State::Suspect => "suspect",
            State::NotReady => "not-ready",
            State::Down => "down",
        }
    }

    /// Whether new connections should go there without a second thought.
    pub fn is_good(self) -> bool {
        matches!(self, State::Ready | State::Alive)
    }
}

/// A backend of one service, as this node sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Backend {
    /// Whose it is.
    pub node: NodeId,
    /// That node's name.
    pub name: Name,
    /// Where it is dialled.
    pub address: SocketAddr,
    /// Share among equals; 0: nothing new while another is good.
    pub weight: u16,
    /// What it is.
    pub state: State,
    /// Why, in a few words.
    pub reason: String,
    /// Since when `state` has been so.
    pub since: UnixMs,
    /// Round-trip time, when known.
    pub rtt: Option<Duration>,
}

/// The backends of every service: what the proxy follows.
pub type Table = BTreeMap<ServiceName, Vec<Backend>>;

/// An entry of the last good list: what a node dials after a restart before it has heard anyone.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LastGood {
    /// Whose it is.
    pub node: NodeId,
    /// That node's name.
    pub name: Name,
    /// Where it is dialled.
    pub address: SocketAddr,
    /// Share among equals.
    pub weight: u16,
}

/// The backends of `service`: what gossip knows, joined with the last good list, so that an empty view
/// never empties the list (k3s#11349). `still_member` drops entries of nodes that were removed.
pub fn backends(
    service: &ServiceName,
    view: &View,
    paths: &BTreeMap<(NodeId, ServiceName), Path>,
    last_good: &[LastGood],
    still_member: impl Fn(&NodeId) -> bool,
) -> Vec<Backend> {
    let mut found: BTreeMap<NodeId, Backend> = BTreeMap::new();
    for old in last_good.iter().filter(|old| still_member(&old.node)) {
        // A member that is heard and offers nothing has said so: the old list must not contradict it.
        if view.members.get(&old.node).is_some_and(|member| member.heard) {
            continue;
        }
        let path = paths.get(&(old.node, service.clone()));
        let reach = path.map_or(Reach::Up, Path::reach);
        let (state, reason) = match reach {
            Reach::Up => (State::Unknown, "from the last good list, not heard yet"),
            Reach::Suspect => (State::Suspect, path.map_or("", Path::reason)),
            Reach::Down => (State::Down, path.map_or("", Path::reason)),
        };
        let LastGood { node, name, address, weight } = old.clone();
        let since = path.map_or(UnixMs(0), Path::since);
        let rtt = path.and_then(Path::rtt);
        let reason = reason.to_owned();
        found.insert(node, Backend { node, name, address, weight, state, reason, since, rtt });
    }
    for member in view.members.values() {
        let Some(offer) = member.word.services.get(service) else { continue };
        let path = paths.get(&(member.id, service.clone()));
        let draining = member.word.draining.or(member.word.left.then_some(member.since));
        let (state, reason, since) = judge(offer, draining, member.word.left, path);
        found.insert(
            member.id,
            Backend {
                node: member.id,
                name: member.word.name.clone(),
                address: offer.address,
                weight: offer.weight,
                state,
                reason,
                since,
                rtt: path.and_then(Path::rtt),
            },
        );
    }
    found.into_values().collect()
}

fn judge(
    offer: &Offer,
    draining: Option<UnixMs>,
    left: bool,
    path: Option<&Path>,
) -> (State, String, UnixMs) {
    let health = &offer.health;
    let of_path = |state, path: &Path| (state, path.reason().to_owned(), path.since());
    match (path.map(|path| (path.reach(), path)), health.readiness, draining) {
        (Some((Reach::Down, path)), ..) => of_path(State::Down, path),
        (_, Readiness::Down, _) => (State::Down, health.reason.clone(), health.since),
        (Some((Reach::Suspect, path)), ..) => of_path(State::Suspect, path),
        (_, Readiness::NotReady, _) => (State::NotReady, health.reason.clone(), health.since),
        (_, _, Some(since)) => {
            let reason = if left { "its agent was stopped" } else { "draining" };
            // The agent alone was stopped: its apiserver serves on, and others may still be used first.
            (State::Draining, reason.to_owned(), since)
        }
        (path, readiness, None) => {
            let state = if readiness == Readiness::Ready { State::Ready } else { State::Alive };
            let direct = path.map_or("", |(_, path)| path.reason());
            let reason = if direct.is_empty() { health.reason.clone() } else { direct.to_owned() };
            (state, reason, health.since)
        }
    }
}

/// Where a backend stands among the others; lower is better. The order of the fields is the policy.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Rank {
    /// What it is.
    pub state: State,
    /// Weight 0 asks for nothing new while another is as good.
    pub unwanted: bool,
    /// Nearness: 0 for this node's own instance, 1 for all others.
    pub tier: u8,
    /// How busy it is for its weight, or how long ago its turn was.
    pub load: u64,
    /// Equal until here: by chance, so that not all nodes prefer the same one.
    pub chance: u64,
}

/// Remembers whose turn it is, and ranks. One for each service, owned by its listener.
#[derive(Debug, Clone, Default)]
pub struct Balancer {
    turns: BTreeMap<NodeId, u64>,
    seed: u64,
}

/// Scale of the loads, so that a division by the weight keeps its precision.
const SCALE: u64 = 1 << 20;

impl Balancer {
    /// A balancer whose choices among equals follow from `seed`; each node uses its own.
    pub fn new(seed: u64) -> Balancer {
        Balancer { turns: BTreeMap::new(), seed }
    }

    /// Orders `backends` from the one to dial first to the one to dial last, as indices. `connections`
    /// tells how many each has from this node; `own` is this node, whose own instance comes first.
    pub fn rank(
        &self,
        balance: Balance,
        backends: &[Backend],
        own: Option<NodeId>,
        connections: impl Fn(&NodeId) -> u64,
    ) -> Vec<usize> {
        // A backend that is new to round-robin starts level with the others: no herd on a newcomer.
        let level = backends.iter().filter_map(|one| self.turns.get(&one.node)).min().copied();
        let mut ranked: Vec<(Rank, usize)> = backends
            .iter()
            .enumerate()
            .map(|(i, backend)| {
                let weight = u64::from(backend.weight.max(1));
                let load = match balance {
                    Balance::LeastConnections => connections(&backend.node).saturating_mul(SCALE) / weight,
                    Balance::RoundRobin => self.turns.get(&backend.node).copied().or(level).unwrap_or(0),
                };
                let rank = Rank {
                    state: backend.state,
                    unwanted: backend.weight == 0,
                    tier: u8::from(own != Some(backend.node)),
                    load,
                    chance: mix(self.seed, &backend.node),
                };
                (rank, i)
            })
            .collect();
        ranked.sort_unstable();
        ranked.into_iter().map(|(_, i)| i).collect()
    }

    /// A connection went to `backends[chosen]`: its next turn comes after a time that its weight gives.
    pub fn took(&mut self, backends: &[Backend], chosen: usize) {
        let Some(backend) = backends.get(chosen) else { return };
        let level = backends.iter().filter_map(|one| self.turns.get(&one.node)).min().copied().unwrap_or(0);
        let step = SCALE / u64::from(backend.weight.max(1));
        let turn = self.turns.entry(backend.node).or_insert(level);
        *turn = turn.saturating_add(step);
        // Of nodes that are gone nothing is kept, and an absence earns no credit.
        self.turns.retain(|node, _| backends.iter().any(|one| one.node == *node));
        for turn in self.turns.values_mut() {
            *turn = (*turn).max(level);
        }
        self.seed = self.seed.wrapping_add(0x9e37_79b9_7f4a_7c15);
    }
}

/// A well-mixed number of a seed and a node (the finaliser of SplitMix64).
fn mix(seed: u64, node: &NodeId) -> u64 {
    let mut x = node.0.iter().fold(seed, |x, byte| (x ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3));
    x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::health::Health;
    use crate::keys::Word;
    use crate::path::Evidence;
    use crate::pulse::Hearing;
    use crate::time::Moment;
    use crate::view::Member;

    fn id(n: u8) -> NodeId {
        NodeId([n; 10])
    }

    fn backend(n: u8, state: State, weight: u16) -> Backend {
        Backend {
            node: id(n),
            name: format!("m{n}").parse().unwrap(),
            address: SocketAddr::from(([10, 0, 0, n], 6443)),
            weight,
            state,
            reason: String::new(),
            since: UnixMs(0),
            rtt: None,
        }
    }

    fn member(n: u8, heard: bool, readiness: Option<Readiness>) -> Member {
        let offer = |readiness| Offer {
            address: SocketAddr::from(([10, 0, 0, n], 6443)),
            weight: 100,
            health: Health { readiness, reason: "said".into(), since: UnixMs(7) },
        };
        let services = readiness.map(|readiness| (ServiceName::kube_api(), offer(readiness)));
        let word = Word {
            name: format!("m{n}").parse().unwrap(),
            version: String::new(),
            addresses: vec![],
            interface: String::new(),
            started: UnixMs(0),
            document: String::new(),
            draining: None,
            left: false,
            services: services.into_iter().collect(),
        };
        Member { id: id(n), word, heard, since: UnixMs(0) }
    }

    fn states(members: &[Member], paths: &[(u8, &[Evidence])], last_good: &[u8]) -> BTreeMap<u8, State> {
        let view = View {
            members: members.iter().map(|member| (member.id, member.clone())).collect(),
            problems: BTreeMap::new(),
        };
        let paths = paths
            .iter()
            .map(|(n, evidence)| {
                let mut path = Path::new(UnixMs(0));
                for one in *evidence {
                    path.observe(Moment::ZERO, UnixMs(0), *one);
                }
                ((id(*n), ServiceName::kube_api()), path)
            })
            .collect();
        let last_good: Vec<LastGood> = last_good
            .iter()
            .map(|n| LastGood {
                node: id(*n),
                name: format!("m{n}").parse().unwrap(),
                address: SocketAddr::from(([10, 0, 0, *n], 6443)),
                weight: 100,
            })
            .collect();
        backends(&ServiceName::kube_api(), &view, &paths, &last_good, |who| *who != id(9))
            .into_iter()
            .map(|one| (one.node.0[0], one.state))
            .collect()
    }

    #[test]
    fn what_is_known_decides_the_state() {
        use Evidence::Unanswered;
        const LOST: Evidence = Evidence::Hearing(Hearing::Lost);
        let ready = Some(Readiness::Ready);
        let table = [
            (states(&[member(1, true, ready)], &[], &[]), Some(State::Ready)),
            (states(&[member(1, true, Some(Readiness::Alive))], &[], &[]), Some(State::Alive)),
            (states(&[member(1, true, Some(Readiness::NotReady))], &[], &[]), Some(State::NotReady)),
            (states(&[member(1, true, Some(Readiness::Down))], &[], &[]), Some(State::Down)),
            (states(&[member(1, false, ready)], &[(1, &[LOST])], &[]), Some(State::Suspect)),
            (
                states(&[member(1, false, ready)], &[(1, &[LOST, Unanswered, Unanswered])], &[]),
                Some(State::Down),
            ),
            // Nobody heard yet: the last good list serves.
            (states(&[], &[], &[1]), Some(State::Unknown)),
            // A member that is heard and offers nothing is no backend, whatever the old list says.
            (states(&[member(1, true, None)], &[], &[1]), None),
            // A removed node is no backend.
            (states(&[], &[], &[9]), None),
        ];
        for (i, (states, expected)) in table.into_iter().enumerate() {
            assert_eq!(states.values().next().copied(), expected, "row {i}");
        }
    }

    #[test]
    fn better_states_come_first_and_the_own_instance_before_its_equals() {
        let backends = [
            backend(1, State::Down, 100),
            backend(2, State::Ready, 100),
            backend(3, State::Ready, 100),
            backend(4, State::Alive, 100),
            backend(5, State::Ready, 0),
        ];
        let order = Balancer::new(1).rank(Balance::LeastConnections, &backends, Some(id(3)), |_| 0);
        assert_eq!(order, [2, 1, 4, 3, 0]);
    }

    fn shares(balance: Balance, weights: &[u16], rounds: usize) -> Vec<usize> {
        let backends: Vec<Backend> =
            weights.iter().enumerate().map(|(i, w)| backend(i as u8 + 1, State::Ready, *w)).collect();
        let mut balancer = Balancer::new(42);
        let mut counts = vec![0; weights.len()];
        for _ in 0..rounds {
            let first =
                balancer.rank(balance, &backends, None, |node| counts[usize::from(node.0[0]) - 1] as u64)[0];
            balancer.took(&backends, first);
            counts[first] += 1;
        }
        counts
    }

    #[test]
    fn both_balances_share_by_weight() {
        for balance in Balance::ALL {
            let equal = shares(balance, &[100, 100, 100], 300);
            assert!(equal.iter().all(|count| (99..=101).contains(count)), "{balance}: {equal:?}");
            let shared = shares(balance, &[200, 100], 300);
            assert!((199..=201).contains(&shared[0]), "{balance}: {shared:?}");
        }
    }

    #[test]
    fn a_newcomer_to_round_robin_gets_its_share_and_no_herd() {
        let old = [backend(1, State::Ready, 100), backend(2, State::Ready, 100)];
        let all = [old[0].clone(), old[1].clone(), backend(3, State::Ready, 100)];
        let mut balancer = Balancer::new(7);
        for _ in 0..1000 {
            let first = balancer.rank(Balance::RoundRobin, &old, None, |_| 0)[0];
            balancer.took(&old, first);
        }
        let mut counts = [0; 3];
        for _ in 0..30 {
            let first = balancer.rank(Balance::RoundRobin, &all, None, |_| 0)[0];
            balancer.took(&all, first);
            counts[first] += 1;
        }
        assert!(counts.iter().all(|count| (9..=11).contains(count)), "{counts:?}");
    }

    fn any_state() -> impl Strategy<Value = State> {
        proptest::sample::select(vec![
            State::Ready,
            State::Alive,
            State::Draining,
            State::Unknown,
            State::Suspect,
            State::NotReady,
            State::Down,
        ])
    }

    proptest! {
        #[test]
        fn ranking_keeps_everyone_and_never_puts_worse_before_better(
            states in proptest::collection::vec((any_state(), 0u16..=256), 0..12),
            seed: u64,
        ) {
            let backends: Vec<Backend> = states
                .iter()
                .enumerate()
                .map(|(i, (state, weight))| backend(i as u8, *state, *weight))
                .collect();
            let order = Balancer::new(seed).rank(Balance::LeastConnections, &backends, None, |_| 3);
            let mut sorted = order.clone();
            sorted.sort_unstable();
            prop_assert_eq!(sorted, (0..backends.len()).collect::<Vec<_>>());
            prop_assert!(order.windows(2).all(|pair| backends[pair[0]].state <= backends[pair[1]].state));
        }
    }
}
