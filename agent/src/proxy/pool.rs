//! What a service's connections share: balancing, held connections, and limits.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::AsRawFd;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use proto::backends::{Backend, BackendLoad, Balancer, HeldAction, held_action};
use proto::cause::Cause;
use proto::dial::{FirstByteLatency, RaceBudget};
use proto::handover::{HandedBackend, HandedConnection, HandedService, Slot};
use proto::node::{Name, NodeId};
use proto::service::{Balance, Service, ServiceName};
use proto::time::{Moment, human};
use tokio_util::task::task_tracker::TaskTrackerToken;

use super::alarm::LimitAlarm;
use super::held::{ConnGuard, DrainState, HeldConnections};
use super::{ProxyShared, ServiceStats, lock};

/// How long connections that another process has made are kept whatever this one thinks of their backend: by then it
/// knows as much. Until it has heard a node, one slow connect would have it down.
const SPARED: Duration = Duration::from_secs(10);

/// One service's shared state. The counters are relaxed: they steer and inform, and publish nothing else.
pub(super) struct ServicePool {
    pub(super) service: ServiceName,
    maxconn: AtomicU32,
    open: AtomicU32,
    most: AtomicU32,
    total: AtomicU64,
    refused: AtomicU64,
    unserved: AtomicU64,
    /// Raced dials, and replayed ClientHellos.
    races: AtomicU64,
    replays: AtomicU64,
    /// Those that the budget did not allow.
    denied: AtomicU64,
    pub(super) send_proxy: AtomicBool,
    share_port: AtomicBool,
    pub(super) access_log: AtomicBool,
    /// `maxconn` is reached.
    full: LimitAlarm,
    /// No backend answers.
    unserved_alarm: LimitAlarm,
    /// The losers of a race are still running.
    pub(super) finishing_losers: AtomicBool,
    /// Budget for races and replays.
    budget: Mutex<RaceBudget>,
    /// How long first bytes take.
    first_byte: Mutex<FirstByteLatency>,
    seed: u64,
    choice: Mutex<BackendChoice>,
    /// What another process needs to go on, as far as it was said.
    handed: Mutex<HandedService>,
}

struct BackendChoice {
    balance: Balance,
    balancer: Balancer,
    backend_maxconn: u32,
    held: BTreeMap<NodeId, PooledBackend>,
}

struct PooledBackend {
    held: Arc<HeldConnections>,
    /// The connections held at the last table were reset. Those made since are newer than that state and are
    /// left alone until it changes.
    condemned: bool,
    /// Connections held when the backend started to drain, while another was better.
    leave: Option<DrainState>,
    /// Until then nothing is reset: its connections come from another process, which has known more.
    spared: Moment,
}

impl PooledBackend {
    fn new(node: NodeId, name: &Name) -> PooledBackend {
        let held = Arc::new(HeldConnections::new(node, name.clone()));
        PooledBackend { held, condemned: false, leave: None, spared: Moment::ZERO }
    }
}

impl ServicePool {
    pub(super) fn new(service: &Service, own: NodeId) -> ServicePool {
        // Each node starts elsewhere, or all would prefer the same backend.
        let seed = own.0.iter().fold(0, |seed: u64, byte| seed.rotate_left(8) ^ u64::from(*byte));
        ServicePool {
            service: service.name.clone(),
            maxconn: AtomicU32::new(service.maxconn),
            open: AtomicU32::new(0),
            most: AtomicU32::new(0),
            total: AtomicU64::new(0),
            refused: AtomicU64::new(0),
            unserved: AtomicU64::new(0),
            races: AtomicU64::new(0),
            replays: AtomicU64::new(0),
            denied: AtomicU64::new(0),
            send_proxy: AtomicBool::new(service.send_proxy),
            share_port: AtomicBool::new(service.share_port),
            access_log: AtomicBool::new(service.access_log),
            full: LimitAlarm::default(),
            unserved_alarm: LimitAlarm::default(),
            finishing_losers: AtomicBool::new(false),
            budget: Mutex::default(),
            first_byte: Mutex::default(),
            seed,
            choice: Mutex::new(BackendChoice {
                balance: service.balance,
                balancer: Balancer::new(seed),
                backend_maxconn: service.backend_maxconn,
                held: BTreeMap::new(),
            }),
            handed: Mutex::default(),
        }
    }

    /// Applies the settings that may change at run time.
    pub(super) fn configure(&self, service: &Service) {
        self.maxconn.store(service.maxconn, Relaxed);
        self.send_proxy.store(service.send_proxy, Relaxed);
        self.share_port.store(service.share_port, Relaxed);
        self.access_log.store(service.access_log, Relaxed);
        let mut choice = lock(&self.choice);
        choice.balance = service.balance;
        choice.backend_maxconn = service.backend_maxconn;
    }

    /// Whether the next attempt to bind an address may share it with another process.
    pub(super) fn shares_port(&self) -> bool {
        self.share_port.load(Relaxed)
    }

    /// Counts a client from `source` in; `None` at the limit.
    pub(super) fn admit(self: &Arc<ServicePool>, source: IpAddr, shared: &ProxyShared) -> Option<OpenClient> {
        let now = || shared.life.now();
        let maxconn = self.maxconn.load(Relaxed);
        if shared.clients.load(Relaxed) >= shared.most {
            self.refused.fetch_add(1, Relaxed);
            shared.out_of_descriptors();
            return None;
        }
        if self.open.fetch_add(1, Relaxed) >= maxconn {
            self.open.fetch_sub(1, Relaxed);
            self.refused.fetch_add(1, Relaxed);
            if self.full.raise(now()) {
                tracing::warn!(
                    service = %self.service,
                    "maxconn reached: resetting new connections beyond {maxconn}; \
                     raise maxconn or find the client that opens them"
                );
            }
            return None;
        }
        self.most.fetch_max(self.open.load(Relaxed), Relaxed);
        self.total.fetch_add(1, Relaxed);
        lock(&self.budget).connection(now());
        if self.full.relieve(now) {
            tracing::info!(service = %self.service, "connections are below maxconn ({maxconn}) again");
        }
        Some(self.open_client(Some(source), shared))
    }

    fn open_client(self: &Arc<ServicePool>, source: Option<IpAddr>, shared: &ProxyShared) -> OpenClient {
        shared.clients.fetch_add(1, Relaxed);
        let clients = Arc::clone(&shared.clients);
        OpenClient { pool: Arc::clone(self), source, clients, _open: shared.open.token() }
    }

    /// Counts a client that another process has admitted.
    pub(super) fn readmit(
        self: &Arc<ServicePool>,
        source: Option<IpAddr>,
        shared: &ProxyShared,
    ) -> OpenClient {
        self.open.fetch_add(1, Relaxed);
        self.open_client(source, shared)
    }

    /// Counts a connection that another process has made.
    pub(super) fn continued(&self, node: NodeId, name: &Name, now: Moment) -> ConnGuard {
        lock(&self.choice).kept(node, name, now).conn_guard(now)
    }

    /// A client has stopped for another process.
    pub(super) fn hand_connection(&self, connection: HandedConnection) {
        lock(&self.handed).connections.push(connection);
    }

    /// A listener has.
    pub(super) fn hand_listener(&self, address: SocketAddr, listener: &impl AsRawFd) {
        let number = Slot::from(listener.as_raw_fd().unsigned_abs());
        lock(&self.handed).listeners.push((address, number));
    }

    /// All that was said for another process, and the counters. A descriptor is its number.
    pub(super) fn handed(&self) -> HandedService {
        let backend = |(node, kept): (&NodeId, &PooledBackend)| HandedBackend {
            node: *node,
            name: kept.held.name.clone(),
            counters: kept.held.counters(),
        };
        HandedService {
            name: Some(self.service.clone()),
            counters: self.counters().map(|counter| counter.load(Relaxed)).to_vec(),
            backends: lock(&self.choice).held.iter().map(backend).collect(),
            ..std::mem::take(&mut *lock(&self.handed))
        }
    }

    /// Goes on with the counters of another process.
    pub(super) fn add(&self, handed: &HandedService, now: Moment) {
        for (to, from) in self.counters().iter().zip(&handed.counters) {
            to.fetch_add(*from, Relaxed);
        }
        let mut choice = lock(&self.choice);
        for backend in &handed.backends {
            choice.kept(backend.node, &backend.name, now).add(&backend.counters);
        }
    }

    fn counters(&self) -> [&AtomicU64; 6] {
        [&self.total, &self.refused, &self.unserved, &self.races, &self.replays, &self.denied]
    }

    /// Has every connection look whether there is a pause.
    pub(super) fn wake_all(&self) {
        lock(&self.choice).held.values().for_each(|kept| kept.held.wake_all());
    }

    /// Whether a dial may race those in progress; charges it to the budget.
    pub(super) fn may_race(&self, now: Moment) -> bool {
        let may = lock(&self.budget).extra(now);
        self.races.fetch_add(u64::from(may), Relaxed);
        self.denied.fetch_add(u64::from(!may), Relaxed);
        may
    }

    /// Whether a ClientHello may be sent again; charges it to the budget.
    pub(super) fn may_replay(&self, now: Moment) -> bool {
        let may = lock(&self.budget).extra(now);
        self.replays.fetch_add(u64::from(may), Relaxed);
        self.denied.fetch_add(u64::from(!may), Relaxed);
        may
    }

    /// How long a silence after a ClientHello is too long.
    pub(super) fn too_long(&self) -> Duration {
        lock(&self.first_byte).too_long()
    }

    /// `held` answered a ClientHello after `took`.
    pub(super) fn answered(&self, held: &HeldConnections, took: Duration) {
        lock(&self.first_byte).observe(took);
        if held.answered() {
            tracing::info!(service = %self.service, "{} responds to clients again", held.name);
        }
    }

    /// `held` left a ClientHello unanswered for too long.
    pub(super) fn silent(&self, held: &HeldConnections, now: Moment) {
        if held.silent(now) {
            tracing::warn!(
                service = %self.service,
                "{} accepts connections but does not respond; deprioritized; check its process",
                held.name
            );
        }
    }

    /// `backends` as indices in the order in which to dial them, and the guard of the first. Both in one step,
    /// or clients that arrive together would all choose the same one.
    pub(super) fn rank(
        &self,
        backends: &[Backend],
        client: PoolClient,
        now: Moment,
    ) -> (Vec<usize>, Option<ConnGuard>) {
        let mut choice = lock(&self.choice);
        let order = choice.rank(backends, client, now);
        let first = order.first().and_then(|first| choice.conn_guard(backends, *first, now));
        (order, first)
    }

    /// The best good backend that is not in `tried`, as an index, and its guard.
    pub(super) fn another(
        &self,
        backends: &[Backend],
        client: PoolClient,
        now: Moment,
        tried: &[NodeId],
    ) -> Option<(usize, ConnGuard)> {
        let mut choice = lock(&self.choice);
        let order = choice.rank(backends, client, now);
        let fit = |one: &&usize| {
            backends.get(**one).is_some_and(|one| one.state.is_good() && !tried.contains(&one.node))
        };
        let found = *order.iter().find(fit)?;
        Some((found, choice.conn_guard(backends, found, now)?))
    }

    /// Counts a dial of `backends[chosen]`.
    pub(super) fn conn_guard(&self, backends: &[Backend], chosen: usize, now: Moment) -> Option<ConnGuard> {
        lock(&self.choice).conn_guard(backends, chosen, now)
    }

    /// A client got its backend.
    pub(super) fn served(&self, shared: &ProxyShared) {
        if self.unserved_alarm.relieve(|| shared.life.now()) {
            tracing::info!(service = %self.service, "backends answer again");
        }
    }

    /// A client got none.
    pub(super) fn not_served(&self, tried: usize, shared: &ProxyShared) {
        self.unserved.fetch_add(1, Relaxed);
        if self.unserved_alarm.raise(shared.life.now()) {
            tracing::warn!(service = %self.service, "none of {tried} backends responds; new connections are reset");
        }
    }

    /// Resets connections to backends that are down or gone, drains those to backends that want no more, and
    /// returns when to check again. A table that does not know the service says nothing about its backends.
    pub(super) fn apply_table(&self, backends: Option<&[Backend]>, now: Moment) -> Option<Moment> {
        let backends = backends?;
        let mut choice = lock(&self.choice);
        choice.balancer.update(backends, now);
        let mut again = None;
        choice.held.retain(|node, kept| {
            let mut held_action = held_action(node, backends);
            if now < kept.spared && held_action == HeldAction::Reset {
                held_action = HeldAction::Keep;
                again = [again, Some(kept.spared)].into_iter().flatten().min();
            }
            let before = std::mem::replace(&mut kept.condemned, held_action == HeldAction::Reset);
            let backend = backends.iter().find(|one| one.node == *node);
            let why = backend.map_or_else(|| Cause::NotOffered.into(), Backend::reason);
            let held = &kept.held;
            if kept.condemned && !before {
                let count = held.reset_all();
                if count > 0 {
                    tracing::warn!(service = %self.service, "reset {count} connections to {}: {why}", held.name);
                }
            }
            if held_action == HeldAction::Drain {
                let leave = kept.leave.get_or_insert_with(|| held.begin_drain(now));
                let spread = human(proto::backends::SPREAD);
                let log = |count| {
                    tracing::warn!(
                        service = %self.service,
                        "closing {count} connections to {} one by one over {spread}: {why}", held.name
                    );
                };
                let next = held.continue_drain(leave, self.seed, now, log);
                again = [again, next].into_iter().flatten().min();
            } else {
                kept.leave = None;
            }
            backend.is_some() || held.connections.load(Relaxed) > 0
        });
        again
    }

    /// Resets all held connections.
    pub(super) fn reset_all(&self) {
        for kept in lock(&self.choice).held.values() {
            kept.held.reset_all();
        }
    }

    /// Whether no client is held.
    pub(super) fn is_idle(&self) -> bool {
        self.open.load(Relaxed) == 0
    }

    /// The counters; the listeners are not known here.
    pub(super) fn stats(&self) -> ServiceStats {
        ServiceStats {
            listens: Vec::new(),
            connections: self.open.load(Relaxed),
            most: self.most.load(Relaxed).into(),
            total: self.total.load(Relaxed),
            maxconn: self.maxconn.load(Relaxed),
            refused: self.refused.load(Relaxed),
            unserved: self.unserved.load(Relaxed),
            races: self.races.load(Relaxed),
            replays: self.replays.load(Relaxed),
            denied: self.denied.load(Relaxed),
            backends: lock(&self.choice).held.iter().map(|(node, kept)| (*node, kept.held.stats())).collect(),
        }
    }

    /// Number of clients, and of connections to backends.
    pub(super) fn counts(&self) -> (u64, u64) {
        let backends = lock(&self.choice).held.values().map(|kept| kept.held.connections.load(Relaxed)).sum();
        (u64::from(self.open.load(Relaxed)), backends)
    }
}

impl BackendChoice {
    fn rank(&self, backends: &[Backend], client: PoolClient, now: Moment) -> Vec<usize> {
        let usage = |node: &NodeId| {
            self.held
                .get(node)
                .map_or(BackendLoad::default(), |kept| kept.held.usage(self.backend_maxconn, now))
        };
        self.balancer.rank(self.balance, backends, Some(client.own), client.source, now, usage)
    }

    /// A backend to which another process has held connections.
    fn kept(&mut self, node: NodeId, name: &Name, now: Moment) -> &Arc<HeldConnections> {
        let new = || PooledBackend { spared: now.after(SPARED), ..PooledBackend::new(node, name) };
        &self.held.entry(node).or_insert_with(new).held
    }

    fn conn_guard(&mut self, backends: &[Backend], chosen: usize, now: Moment) -> Option<ConnGuard> {
        self.balancer.connection_assigned(backends, chosen, now);
        let backend = backends.get(chosen)?;
        let new = || PooledBackend {
            condemned: held_action(&backend.node, backends) == HeldAction::Reset,
            ..PooledBackend::new(backend.node, &backend.name)
        };
        Some(self.held.entry(backend.node).or_insert_with(new).held.conn_guard(now))
    }
}

/// A client that counts towards `maxconn`.
pub(super) struct OpenClient {
    pub(super) pool: Arc<ServicePool>,
    /// Its address; `None`: it went before it could be asked for.
    source: Option<IpAddr>,
    clients: Arc<AtomicU64>,
    _open: TaskTrackerToken,
}

impl OpenClient {
    /// What a backend is chosen for.
    pub(super) fn of(&self, shared: &ProxyShared) -> PoolClient {
        PoolClient { own: shared.own, source: self.source }
    }
}

/// Whom a backend is chosen for.
#[derive(Debug, Clone, Copy)]
pub(super) struct PoolClient {
    /// This node.
    own: NodeId,
    /// The client's address.
    source: Option<IpAddr>,
}

impl Drop for OpenClient {
    fn drop(&mut self) {
        self.pool.open.fetch_sub(1, Relaxed);
        self.clients.fetch_sub(1, Relaxed);
    }
}
