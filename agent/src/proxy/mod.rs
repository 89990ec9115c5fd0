//! The local TCP proxy: one listener for each address of each service, in front of the backends that the table
//! has when a connection starts.
//!
//! Tasks, and what each owns:
//! - `listen`: one for each address, which retries binding; then one on each of the [`workers`], which owns one
//!   of its listening sockets.
//! - `connection::serve`: one for each client, on the thread that accepted it. Owns both sockets; finds a
//!   backend (`dial`), waits for the answer to a ClientHello that can be sent again (`client_hello`), then copies
//!   (`copy`) until both directions have ended.
//! - `drain_and_reset`: one. Watches the table, resets connections to backends that are down or gone, and
//!   drains those to backends that want no more.
//!
//! They share a [`pool::ServicePool`] for each service. Its locks are held for a few instructions when a
//! connection starts or ends, and never while bytes are copied. Each task may be stopped anywhere: sockets and
//! counts belong to guards.
//!
//! On `draining` the listeners close and held connections continue; on `shutdown` those are reset.

mod alarm;
mod client_hello;
mod connection;
mod copy;
mod dial;
mod handed;
mod held;
mod limits;
mod listen;
mod options;
mod pause;
mod pipes;
mod pool;
mod reactor;
mod socket;
mod stats;
mod stream;
mod taker;
#[cfg(test)]
mod tests;
mod workers;

use std::collections::{BTreeMap, BTreeSet};
use std::future::pending;
use std::net::SocketAddr;
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use proto::backends::BackendTable;
use proto::front::ProxyListener;
use proto::node::NodeId;
use proto::path::EvidenceReport;
use proto::service::{Service, ServiceName};
use proto::time::Moment;
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::handover::Received;
use crate::lifecycle::Lifecycle;

use alarm::LimitAlarm;
pub(crate) use limits::{descriptor_budget, raise_descriptor_limit};
use pause::Pause;
use pool::ServicePool;
pub(crate) use stats::{BackendStats, ServiceStats};
use workers::Workers;

/// Shared by all tasks of the proxy.
struct ProxyShared {
    /// This node, whose own instance is preferred.
    own: NodeId,
    table: watch::Receiver<Arc<BackendTable>>,
    evidence: mpsc::Sender<EvidenceReport>,
    life: Lifecycle,
    workers: Workers,
    /// Counts listeners and connections, so that `drain_and_reset` knows when nothing is left.
    open: TaskTracker,
    pause: Pause,
    /// Clients of all services.
    clients: Arc<AtomicU64>,
    /// Most of them.
    most: u64,
    /// Out of file descriptors.
    starved: LimitAlarm,
}

/// Sockets that are bound and queue clients before anyone serves them: binding comes first at start, so that
/// clients wait for the table instead of being refused.
pub(crate) struct Listeners(Vec<(Service, Vec<listen::ListenSocket>)>);

impl Listeners {
    /// Binds every address of `services`, or goes on with the sockets of the process before this one. A failed one
    /// is retried once [`Proxy::start`] has been called, since its interface may still be coming up.
    pub(crate) fn bind(services: &[Service], mut received: Option<&mut Received>) -> Listeners {
        let mut bind = |service: &Service| {
            let addresses: BTreeSet<SocketAddr> = service.listen.iter().copied().collect();
            let socket = |address| {
                let handed =
                    received.as_deref_mut().map(|all| handed::listeners(all, &service.name, address));
                match handed {
                    Some(sockets) if !sockets.is_empty() => listen::ListenSocket::handed(address, sockets),
                    _ => listen::ListenSocket::bind(&service.name, address, service.share_port),
                }
            };
            addresses.into_iter().map(socket).collect()
        };
        Listeners(services.iter().map(|service| (service.clone(), bind(service))).collect())
    }
}

/// The running proxy. Cloning is cheap; all clones are the same proxy.
#[derive(Clone)]
pub(crate) struct Proxy {
    shared: Arc<ProxyShared>,
    services: Arc<Mutex<BTreeMap<ServiceName, RunningService>>>,
}

/// A service, and its listeners by configured address.
struct RunningService {
    pool: Arc<ServicePool>,
    listeners: BTreeMap<SocketAddr, ServiceListener>,
    /// Removed from the configuration: kept until its last connection has ended.
    retired: bool,
}

/// Listeners that were removed.
pub(crate) struct ClosingListeners(Vec<watch::Receiver<listen::BindState>>);

impl ClosingListeners {
    /// Waits until they have closed, for so long at most.
    pub(crate) async fn closed(self, within: Duration) {
        let all = async {
            for mut listener in self.0 {
                // What says where it is bound ends with its last socket.
                while listener.changed().await.is_ok() {}
            }
        };
        let _ = tokio::time::timeout(within, all).await;
    }
}

struct ServiceListener {
    stop: CancellationToken,
    bound: watch::Receiver<listen::BindState>,
}

impl Proxy {
    /// Starts to serve on `listeners`; must be called in a tokio runtime. `evidence` is never awaited: what
    /// does not fit is dropped, since the next dial says the same.
    pub(crate) fn start(
        listeners: Listeners,
        own: NodeId,
        table: watch::Receiver<Arc<BackendTable>>,
        evidence: mpsc::Sender<EvidenceReport>,
        life: &Lifecycle,
    ) -> Proxy {
        let open = TaskTracker::new();
        let workers = Workers::start(life, &open);
        Proxy::start_on(workers, open, listeners, own, table, evidence, life)
    }

    fn start_on(
        workers: Workers,
        open: TaskTracker,
        listeners: Listeners,
        own: NodeId,
        table: watch::Receiver<Arc<BackendTable>>,
        evidence: mpsc::Sender<EvidenceReport>,
        life: &Lifecycle,
    ) -> Proxy {
        let budget = descriptor_budget();
        pipes::bound(budget.pipes);
        let shared = ProxyShared {
            own,
            table,
            evidence,
            life: life.clone(),
            workers,
            open,
            pause: Pause::default(),
            clients: Arc::default(),
            most: budget.connections,
            starved: LimitAlarm::default(),
        };
        let proxy = Proxy { shared: Arc::new(shared), services: Arc::default() };
        let mut services = lock(&proxy.services);
        for (service, sockets) in listeners.0 {
            let running = proxy.running(&mut services, &service);
            for socket in sockets {
                running.listeners.insert(socket.address, proxy.listen(&running.pool, socket));
            }
        }
        drop(services);
        let followed = proxy.clone();
        life.supervise_each("proxy", move || drain_and_reset(followed.clone()));
        proxy
    }

    /// Makes the proxy serve exactly `services`. Unchanged listeners are not touched, and connections of
    /// removed ones are left to finish. Returns the listeners that close, for who would take one for another process.
    pub(crate) fn reload(&self, services: &[Service]) -> ClosingListeners {
        let mut closing = ClosingListeners(Vec::new());
        let mut running = lock(&self.services);
        // Remove before adding: an address may move from one service to another.
        for (name, old) in running.iter_mut() {
            let new = services.iter().find(|service| service.name == *name);
            old.retired = new.is_none();
            old.listeners.retain(|address, listening| {
                let stays = new.is_some_and(|new| new.listen.contains(address));
                if !stays {
                    listening.stop.cancel();
                    closing.0.push(listening.bound.clone());
                }
                stays
            });
        }
        for service in services {
            let new = self.running(&mut running, service);
            for address in &service.listen {
                if !new.listeners.contains_key(address) {
                    let socket = listen::ListenSocket::bind(&service.name, *address, service.share_port);
                    new.listeners.insert(*address, self.listen(&new.pool, socket));
                }
            }
        }
        running.retain(|_, one| !one.is_over());
        closing
    }

    /// What status and metrics show of each service.
    pub(crate) fn stats(&self) -> BTreeMap<ServiceName, ServiceStats> {
        let services = lock(&self.services);
        let of = |running: &RunningService| {
            let mut stats = running.pool.stats();
            stats.listens =
                running.listeners.iter().map(|(address, one)| one.bound.borrow().shown(*address)).collect();
            stats
        };
        services.iter().map(|(name, running)| (name.clone(), of(running))).collect()
    }

    /// Where each service is listened to, or why it is not.
    pub(crate) fn listeners(&self) -> BTreeMap<ServiceName, Vec<ProxyListener>> {
        let of = |running: &RunningService| {
            running.listeners.iter().map(|(address, one)| one.bound.borrow().shown(*address)).collect()
        };
        lock(&self.services).iter().map(|(name, running)| (name.clone(), of(running))).collect()
    }

    /// Applies the table to held connections; returns when to do so again, if time alone will change something.
    fn reconcile(&self, table: &BackendTable) -> Option<Moment> {
        let now = self.shared.life.now();
        let mut services = lock(&self.services);
        let follow = |(name, running): (&ServiceName, &RunningService)| {
            running.pool.apply_table(table.get(name).map(Vec::as_slice), now)
        };
        let again = services.iter().filter_map(follow).min();
        services.retain(|_, one| !one.is_over());
        again
    }

    fn running<'a>(
        &self,
        services: &'a mut BTreeMap<ServiceName, RunningService>,
        service: &Service,
    ) -> &'a mut RunningService {
        let new = || RunningService {
            pool: Arc::new(ServicePool::new(service, self.shared.own)),
            listeners: BTreeMap::new(),
            retired: false,
        };
        let running = services.entry(service.name.clone()).or_insert_with(new);
        running.pool.configure(service);
        running
    }

    fn listen(&self, pool: &Arc<ServicePool>, socket: listen::ListenSocket) -> ServiceListener {
        let stop = self.shared.life.draining.child_token();
        let (say, bound) = watch::channel(socket.bound());
        let (address, end) = (socket.address, stop.clone());
        let (pool, shared) = (Arc::clone(pool), Arc::clone(&self.shared));
        self.shared.life.supervise("proxy", (Some(socket), say), move |(socket, say)| {
            let (pool, shared, end) = (Arc::clone(&pool), Arc::clone(&shared), end.clone());
            let bind = || listen::ListenSocket::bind(&pool.service, address, pool.shares_port());
            let socket = socket.take().unwrap_or_else(bind);
            Box::pin(listen::run(socket, pool, shared, end, say))
        });
        ServiceListener { stop, bound }
    }
}

impl RunningService {
    fn is_over(&self) -> bool {
        self.retired && self.pool.is_idle()
    }
}

/// Resets or drains connections to backends that are down or drain, while there are listeners or connections.
async fn drain_and_reset(proxy: Proxy) {
    let ProxyShared { life, open, .. } = &*proxy.shared;
    let mut table = proxy.shared.table.clone();
    let mut finished = Box::pin(async {
        life.draining.cancelled().await;
        open.close();
        open.wait().await;
    });
    loop {
        let now = Arc::clone(&table.borrow_and_update());
        let again = proxy.reconcile(&now);
        let due = async {
            match again {
                Some(again) => tokio::time::sleep_until(life.instant(again)).await,
                None => pending().await,
            }
        };
        let changed = async {
            if table.changed().await.is_err() {
                pending::<()>().await; // the publisher is gone: the process is ending
            }
        };
        tokio::select! {
            () = changed => {}
            () = due => {}
            () = &mut finished => return,
            () = life.shutdown.cancelled() => break,
        }
    }
    // A connection that is set up only after this sees `shutdown` by itself.
    for running in lock(&proxy.services).values() {
        running.pool.reset_all();
    }
}

/// Locks; the data stays consistent after a panic, since nothing here panics half-way.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
