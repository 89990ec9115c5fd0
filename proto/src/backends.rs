//! Ranks the candidates of one service for dialling.
//!
//! `BackendRank` derives `Ord`, and the order of its fields is the policy: penalty before state before tier
//! before load before chance. Only the best rank gets new connections while it lasts; the others are
//! fallbacks.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::cause::{Cause, Detail, Reason};
use crate::health::Readiness;
use crate::node::{Name, NodeId};
use crate::open_enum::{UnknownWord, open_enum_names};
use crate::path::{BackendPath, Reachability};
use crate::record::ServiceOffer;
use crate::service::{Balance, ServiceName};
use crate::time::{Moment, UnixMs};
use crate::view::{ClusterView, MemberView};

/// State of a backend, seen from this node. The order is that of dialling: when nothing better is left, even
/// a down backend is tried once (k3s#10240).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum BackendState {
    /// It reports ready and can be reached.
    Ready,
    /// It answers, but its readiness is not known (401, 403).
    Alive,
    /// It finishes its connections and wants nothing new.
    Draining,
    /// Known only from the last known good list of an earlier run.
    Unknown,
    /// In doubt: see [`crate::path`].
    Suspect,
    /// It reports not ready.
    NotReady,
    /// It does not answer.
    Down,
    /// A state of a later version; only in a status.
    Other(UnknownWord),
}

// Best first.
open_enum_names!(BackendState:
    Ready = "ready",
    Alive = "alive",
    Draining = "draining",
    Unknown = "unknown",
    Suspect = "suspect",
    NotReady = "not-ready",
    Down = "down",
);

impl BackendState {
    /// All states that this version knows, best first.
    pub const ALL: &[BackendState] = BackendState::KNOWN;

    /// Whether new connections should go there.
    pub fn is_good(self) -> bool {
        matches!(self, BackendState::Ready | BackendState::Alive)
    }
}

/// A backend of one service, as this node sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Backend {
    /// The node that offers it.
    pub node: NodeId,
    /// That node's name.
    pub name: Name,
    /// The address to dial.
    pub address: SocketAddr,
    /// Share among equals; 0: no new connections while another is good.
    pub weight: u16,
    /// Its state.
    pub state: BackendState,
    /// Why; `None`: nothing more is known.
    pub cause: Option<Cause>,
    /// Details from its node beyond the cause, for people.
    pub detail: Detail,
    /// When `state` last changed.
    pub since: UnixMs,
    /// Round-trip time, when known.
    pub rtt: Option<Duration>,
    /// Its agent is silent, and only its open port is known: a kernel accepts connections for frozen
    /// processes too.
    pub probe_only: bool,
}

impl Backend {
    /// Why it is in this state, for people; may be empty.
    pub fn reason(&self) -> Reason {
        self.cause.map_or_else(Reason::default, |cause| cause.with(&self.detail))
    }
}

/// The backends of every service: what the proxy uses.
pub type BackendTable = BTreeMap<ServiceName, Vec<Backend>>;

/// An entry of the last known good list: what a node dials after a restart before it has heard from anyone.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct KnownBackend {
    /// The node that offers it.
    pub node: NodeId,
    /// That node's name.
    pub name: Name,
    /// The address to dial.
    pub address: SocketAddr,
    /// Share among equals.
    pub weight: u16,
}

/// Last known good backends, by service.
pub type LastKnownGood = Vec<(ServiceName, Vec<KnownBackend>)>;

/// The backends of `service`: gossip joined with the last known good list, so that an empty view never
/// empties the list (k3s#11349). `still_member` drops entries of removed nodes.
pub fn backends(
    service: &ServiceName,
    view: &ClusterView,
    paths: &BTreeMap<(NodeId, ServiceName), BackendPath>,
    last_good: &[KnownBackend],
    still_member: impl Fn(&NodeId) -> bool,
) -> Vec<Backend> {
    let mut found: BTreeMap<NodeId, Backend> = BTreeMap::new();
    for old in last_good.iter().filter(|old| still_member(&old.node)) {
        // A live member without an offer has withdrawn it: the old list must not contradict it.
        if view.members.get(&old.node).is_some_and(|member| member.heard) {
            continue;
        }
        // One address is one backend: the machine was set up anew under another name.
        let offers = |member: &MemberView| {
            let offer = member.record.services.get(service);
            member.id != old.node && offer.is_some_and(|offer| offer.address == old.address)
        };
        if view.members.values().any(offers) {
            continue;
        }
        let path = paths.get(&(old.node, service.clone()));
        let reach = path.map_or(Reachability::Up, BackendPath::reach);
        let (state, cause) = match reach {
            Reachability::Up => (BackendState::Unknown, Some(Cause::LastKnownGood)),
            Reachability::Suspect => (BackendState::Suspect, path.and_then(BackendPath::cause)),
            Reachability::Down => (BackendState::Down, path.and_then(BackendPath::cause)),
        };
        let KnownBackend { node, name, address, weight } = old.clone();
        let since = path.map_or(UnixMs(0), BackendPath::since);
        let rtt = path.and_then(BackendPath::rtt);
        let detail = Detail::default();
        let one =
            Backend { node, name, address, weight, state, cause, detail, since, rtt, probe_only: false };
        found.insert(node, one);
    }
    for member in view.members.values() {
        let Some(offer) = member.record.services.get(service) else { continue };
        let path = paths.get(&(member.id, service.clone()));
        let draining = member.record.draining.or(member.record.left.then_some(member.since));
        let (state, cause, detail, since) = evaluate(offer, draining, member.record.left, path);
        found.insert(
            member.id,
            Backend {
                node: member.id,
                name: member.record.name.clone(),
                address: offer.address,
                weight: offer.weight,
                state,
                cause,
                detail,
                since,
                rtt: path.and_then(BackendPath::rtt),
                probe_only: path.is_some_and(BackendPath::is_probe_only),
            },
        );
    }
    found.into_values().collect()
}

fn evaluate(
    offer: &ServiceOffer,
    draining: Option<UnixMs>,
    left: bool,
    path: Option<&BackendPath>,
) -> (BackendState, Option<Cause>, Detail, UnixMs) {
    let health = &offer.health;
    let of_health = |state| (state, Some(health.cause), health.detail.clone(), health.since);
    let of_path = |state, path: &BackendPath| (state, path.cause(), Detail::default(), path.since());
    match (path.map(|path| (path.reach(), path)), health.readiness, draining) {
        (Some((Reachability::Down, path)), ..) => of_path(BackendState::Down, path),
        (_, Readiness::Down, _) => of_health(BackendState::Down),
        (Some((Reachability::Suspect, path)), ..) => of_path(BackendState::Suspect, path),
        (_, Readiness::NotReady, _) => of_health(BackendState::NotReady),
        (_, Readiness::Other, _) => of_health(BackendState::Suspect),
        (_, _, Some(since)) => {
            let cause = if left { Cause::AgentStopped } else { Cause::Draining };
            // Only the agent was stopped: its apiserver keeps serving, and others may still be preferred.
            (BackendState::Draining, Some(cause), Detail::default(), since)
        }
        (path, readiness, None) => {
            let state = if readiness == Readiness::Ready { BackendState::Ready } else { BackendState::Alive };
            match path.and_then(|(_, path)| path.cause()) {
                Some(direct) => (state, Some(direct), Detail::default(), health.since),
                None => of_health(state),
            }
        }
    }
}

/// Rank of a backend; lower is better. The order of the fields is the policy.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct BackendRank {
    /// 0: good. 1: good as far as its open port shows, see [`Backend::probe_only`]. 2: good, but at its
    /// connection limit, or unresponsive. 3: not good.
    penalty: u8,
    /// Its state.
    state: BackendState,
    /// Weight 0 wants nothing new while another is as good.
    zero_weight: bool,
    /// Distance: 0 for this node's own instance, more for others.
    tier: u8,
    /// How busy it is for its weight, or how long ago its last turn was.
    load: u64,
    /// Tie-break by chance, so that not all nodes prefer the same one.
    chance: u64,
}

/// State of this node's own connections to a backend.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct BackendLoad {
    /// Connections from here.
    pub connections: u64,
    /// It is at its limit of connections from here.
    pub full: bool,
    /// It accepts connections but does not respond.
    pub unresponsive: bool,
}

/// Ranks backends, and keeps turns and returns. One for each service, owned by its listener.
#[derive(Debug, Clone, Default)]
pub struct Balancer {
    turns: BTreeMap<NodeId, u64>,
    seed: u64,
    /// When the first table arrived; backends of the first [`SLOW_START`] are no newcomers.
    begun: Option<Moment>,
    /// Absent backends, and since when returned ones are back.
    returns: BTreeMap<NodeId, Comeback>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Comeback {
    Absent,
    Ramping(Moment),
    Full,
}

/// Scale of the loads, so that a division by the weight keeps its precision.
const SCALE: u64 = 1 << 20;

/// Time in which a returning backend ramps up to its full weight. It has the fewest connections and cold
/// caches, and all nodes would send to it at once (k8s#48610).
const SLOW_START: Duration = Duration::from_secs(30);

/// The share of its weight that a returning backend starts with, in thousandths: some connection has to be
/// the first.
const FIRST_SHARE: u64 = 20;

/// The share of its weight, in thousandths, of a backend that returned so long ago.
fn share(back_for: Duration) -> u64 {
    let (passed, whole) = (back_for.as_millis(), SLOW_START.as_millis());
    let grown = u64::try_from(passed.saturating_mul(1000) / whole).unwrap_or(1000);
    grown.clamp(FIRST_SHARE, 1000)
}

/// Distance classes of [`Balance::Nearest`], in milliseconds: coarse, so that measurement noise does not
/// change the order. Within a class load decides.
const STEPS_MS: [u64; 8] = [2, 5, 10, 20, 50, 100, 200, 500];

/// The tier of a backend at this distance; unknown is further than known.
fn distance(rtt: Option<Duration>) -> u8 {
    let beyond =
        |rtt: Duration| STEPS_MS.iter().take_while(|step| rtt >= Duration::from_millis(**step)).count();
    let steps = rtt.map_or(STEPS_MS.len() + 1, beyond);
    u8::try_from(steps).unwrap_or(u8::MAX)
}

impl Balancer {
    /// A balancer whose choices among equals follow from `seed`; each node uses its own.
    pub fn new(seed: u64) -> Balancer {
        Balancer { seed, ..Balancer::default() }
    }

    /// Records which backends have returned. Must be called with every new table.
    ///
    /// By what this node saw and its own clock, not by [`Backend::since`]: that is another node's wall clock,
    /// and does not change when only the path was cut. Suspect alone is no absence, or one late packet would
    /// cost a backend half a minute of its share.
    pub fn update(&mut self, backends: &[Backend], now: Moment) {
        if self.begun.is_none() && backends.is_empty() {
            return;
        }
        let begun = *self.begun.get_or_insert(now);
        let newcomer = if now.since(begun) < SLOW_START { Comeback::Full } else { Comeback::Absent };
        let mut returned = Vec::new();
        for backend in backends {
            let of = self.returns.entry(backend.node).or_insert(newcomer);
            match (backend.state, *of) {
                (BackendState::Down | BackendState::NotReady | BackendState::Draining, _) => {
                    *of = Comeback::Absent
                }
                (BackendState::Ready | BackendState::Alive, Comeback::Absent) => {
                    *of = Comeback::Ramping(now);
                    returned.push(backend.node);
                }
                _ => {}
            }
        }
        self.returns.retain(|node, _| backends.iter().any(|one| one.node == *node));
        // An absence earns no credit in round-robin either.
        let effective = |one: &&Backend| one.state.is_good() && !returned.contains(&one.node);
        let level =
            backends.iter().filter(effective).filter_map(|one| self.turns.get(&one.node)).min().copied();
        for (node, level) in returned.iter().zip(std::iter::repeat(level.unwrap_or(0))) {
            let turn = self.turns.entry(*node).or_insert(level);
            *turn = (*turn).max(level);
        }
    }

    /// The current weight, in thousandths.
    fn weight(&self, backend: &Backend, now: Moment) -> u64 {
        let share = match self.returns.get(&backend.node) {
            Some(Comeback::Ramping(since)) => share(now.since(*since)),
            _ => 1000,
        };
        u64::from(backend.weight.max(1)) * share
    }

    /// Orders `backends` from the first to dial to the last, as indices. `usage` returns the state of this
    /// node's connections to each; `own` is this node, whose own instance comes first, except by
    /// [`Balance::Source`]; `source` is the client.
    pub fn rank(
        &self,
        balance: Balance,
        backends: &[Backend],
        own: Option<NodeId>,
        source: Option<IpAddr>,
        now: Moment,
        usage: impl Fn(&NodeId) -> BackendLoad,
    ) -> Vec<usize> {
        // A backend that is new to round-robin starts level with the others, so that it does not get all new
        // connections.
        let level = backends.iter().filter_map(|one| self.turns.get(&one.node)).min().copied();
        let before = |one: &Backend| {
            backends.iter().filter(|other| (&other.name, other.node) < (&one.name, one.node)).count() as u64
        };
        let client = source_key(source, own);
        let mut ranked: Vec<(BackendRank, usize)> = backends
            .iter()
            .enumerate()
            .map(|(i, backend)| {
                let usage = usage(&backend.node);
                let load = match balance {
                    // The load including this connection: an idle backend's weight counts too.
                    Balance::LeastConnections | Balance::Nearest => {
                        let connections = usage.connections.saturating_add(1).saturating_mul(1000 * SCALE);
                        connections / self.weight(backend, now)
                    }
                    Balance::RoundRobin => self.turns.get(&backend.node).copied().or(level).unwrap_or(0),
                    Balance::First => before(backend),
                    Balance::Source => source_score(client, backend),
                };
                let is_own = balance != Balance::Source && own == Some(backend.node);
                let far = if balance == Balance::Nearest { distance(backend.rtt) } else { 0 };
                let penalty = match backend.state.is_good() {
                    true if usage.full || usage.unresponsive => 2,
                    true => u8::from(backend.probe_only),
                    false => 3,
                };
                let rank = BackendRank {
                    penalty,
                    state: backend.state,
                    zero_weight: backend.weight == 0,
                    tier: if is_own { 0 } else { 1 + far },
                    load,
                    chance: mix(self.seed, &backend.node),
                };
                (rank, i)
            })
            .collect();
        ranked.sort_unstable();
        ranked.into_iter().map(|(_, i)| i).collect()
    }

    /// A connection went to `backends[chosen]`: its weight decides when its next turn is.
    pub fn connection_assigned(&mut self, backends: &[Backend], chosen: usize, now: Moment) {
        let Some(backend) = backends.get(chosen) else { return };
        let level = backends.iter().filter_map(|one| self.turns.get(&one.node)).min().copied().unwrap_or(0);
        let step = 1000 * SCALE / self.weight(backend, now);
        let turn = self.turns.entry(backend.node).or_insert(level);
        *turn = turn.saturating_add(step);
        // Removed nodes are forgotten, and an absence earns no credit.
        self.turns.retain(|node, _| backends.iter().any(|one| one.node == *node));
        for turn in self.turns.values_mut() {
            *turn = (*turn).max(level);
        }
        self.seed = self.seed.wrapping_add(0x9e37_79b9_7f4a_7c15);
    }
}

/// What a client is told apart by: its address, the same on all nodes. All clients on one machine count as that
/// machine: its loopback address is that of every other machine too, and all nodes would go to one backend.
fn source_key(source: Option<IpAddr>, own: Option<NodeId>) -> u64 {
    let fold = |bytes: &[u8]| finish(bytes.iter().fold(0, |x, byte| hash_step(x, *byte)));
    match source.map(|ip| ip.to_canonical()) {
        Some(IpAddr::V4(ip)) if !ip.is_loopback() => fold(&ip.octets()),
        Some(IpAddr::V6(ip)) if !ip.is_loopback() => fold(&ip.octets()),
        _ => own.map_or(0, |own| fold(&own.0)),
    }
}

/// The place of a backend for a client, the smallest first: rendezvous hashing, by which the loss of a backend moves
/// none but its own clients, and a share follows the weight (Schindelhauer and Schomaker, "Weighted distributed hash
/// tables"). Always of the full weight: a slow start would move clients to and fro.
fn source_score(client: u64, backend: &Backend) -> u64 {
    // 53 bits, as many as a double has, and never 0.
    let chance = ((mix(client, &backend.node) >> 11) + 1) as f64 / (1u64 << 53) as f64;
    // Of doubles that are not negative, the bits have the order of the numbers.
    (-chance.ln() / f64::from(backend.weight.max(1))).abs().to_bits()
}

/// What to do with the connections held to a backend.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HeldAction {
    /// They stay.
    Keep,
    /// They are closed after a grace, not all at once.
    Drain,
    /// They are reset at once.
    Reset,
}

/// What to do with the connections held to `node`. A gone backend was removed by an administrator or stopped
/// being one. One that is down, not ready or draining keeps its connections while no other is good: there is
/// no better place for them, and under load a live one may look down (k3s#10240). One whose agent alone was
/// stopped keeps serving, and keeps them as well.
pub fn held_action(node: &NodeId, backends: &[Backend]) -> HeldAction {
    let Some(one) = backends.iter().find(|one| one.node == *node) else { return HeldAction::Reset };
    let better = backends.iter().any(|other| other.node != *node && other.state.is_good());
    match one.state {
        // The port is closed, so the machine is alive: its kernel ends what a dead process held, and an
        // apiserver that shuts down gracefully closes its port first and answers requests in progress for up
        // to a minute.
        BackendState::Down if better && one.cause.is_some_and(Cause::is_port_closed) => HeldAction::Drain,
        BackendState::Down if better => HeldAction::Reset,
        BackendState::NotReady if better => HeldAction::Drain,
        BackendState::Draining if better && one.cause != Some(Cause::AgentStopped) => HeldAction::Drain,
        _ => HeldAction::Keep,
    }
}

/// How long connections are left alone when their backend is not ready, drains or has closed its port: a
/// restarting apiserver ends them itself within that (its requests take a minute at most), and one that only
/// fails a check for a moment is back.
pub const GRACE: Duration = Duration::from_secs(60);

/// The period over which they are then closed: their clients list everything again, and an apiserver handles
/// some hundred of those per second.
pub const SPREAD: Duration = Duration::from_secs(5);

/// When a connection is closed after its drain has started. Random by `seed`, different on each node, and the
/// connection's number: most nodes have only a few, and must not all start with the first.
pub fn close_delay(seed: u64, number: u64) -> Duration {
    let spread = u64::try_from(SPREAD.as_millis()).unwrap_or(u64::MAX);
    GRACE + Duration::from_millis(finish(seed ^ number.wrapping_mul(0x9e37_79b9_7f4a_7c15)) % spread)
}

/// A well-mixed number of a seed and a node (the finaliser of SplitMix64).
fn mix(seed: u64, node: &NodeId) -> u64 {
    finish(node.0.iter().fold(seed, |x, byte| hash_step(x, *byte)))
}

/// One byte more (FNV-1a).
fn hash_step(x: u64, byte: u8) -> u64 {
    (x ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
}

fn finish(mut x: u64) -> u64 {
    x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}

#[cfg(test)]
#[path = "backends_tests.rs"]
mod tests;
