//! What a service's connections share: whose turn it is, who holds what, and how much is too much.

use std::collections::{BTreeMap, HashMap};
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex};

use futures_util::future::AbortHandle;
use proto::backends::{Backend, Balancer, State};
use proto::dial::Budget;
use proto::node::NodeId;
use proto::service::{Balance, Service, ServiceName};
use tokio_util::task::task_tracker::TaskTrackerToken;

use super::alarm::Alarm;
use super::{BackendStats, ServiceStats, Shared, lock};

/// One service's shared state. The counters are relaxed: they steer and inform, nothing is published
/// through them.
pub(super) struct Pool {
    pub(super) service: ServiceName,
    maxconn: AtomicU32,
    open: AtomicU32,
    refused: AtomicU64,
    unserved: AtomicU64,
    /// `maxconn` is reached.
    full: Alarm,
    /// No backend answers.
    alone: Alarm,
    /// The losers of a race are being seen out.
    pub(super) seeing_out: AtomicBool,
    /// What may be tried beside what is under way.
    budget: Mutex<Budget>,
    choice: Mutex<Choice>,
}

struct Choice {
    balance: Balance,
    balancer: Balancer,
    held: BTreeMap<NodeId, Kept>,
}

struct Kept {
    held: Arc<Held>,
    /// What was held at the last verdict has been reset. What connected since knows better than that
    /// verdict and is left alone until the next.
    condemned: bool,
}

/// The connections to one backend.
#[derive(Default)]
struct Held {
    connections: AtomicU64,
    total: AtomicU64,
    handles: Mutex<Handles>,
}

#[derive(Default)]
struct Handles {
    next: u64,
    by_number: HashMap<u64, AbortHandle>,
}

impl Pool {
    pub(super) fn new(service: &Service, own: NodeId) -> Pool {
        // Each node begins elsewhere, or all would prefer the same backend.
        let seed = own.0.iter().fold(0, |seed: u64, byte| seed.rotate_left(8) ^ u64::from(*byte));
        Pool {
            service: service.name.clone(),
            maxconn: AtomicU32::new(service.maxconn),
            open: AtomicU32::new(0),
            refused: AtomicU64::new(0),
            unserved: AtomicU64::new(0),
            full: Alarm::default(),
            alone: Alarm::default(),
            seeing_out: AtomicBool::new(false),
            budget: Mutex::default(),
            choice: Mutex::new(Choice {
                balance: service.balance,
                balancer: Balancer::new(seed),
                held: BTreeMap::new(),
            }),
        }
    }

    /// Takes over the settings that may change while it runs.
    pub(super) fn configure(&self, service: &Service) {
        self.maxconn.store(service.maxconn, Relaxed);
        lock(&self.choice).balance = service.balance;
    }

    /// Counts a client in; `None` when there are as many as there may be.
    pub(super) fn admit(self: &Arc<Pool>, shared: &Shared) -> Option<Open> {
        let now = || shared.life.now();
        let maxconn = self.maxconn.load(Relaxed);
        if self.open.fetch_add(1, Relaxed) >= maxconn {
            self.open.fetch_sub(1, Relaxed);
            self.refused.fetch_add(1, Relaxed);
            if self.full.raise(now()) {
                tracing::warn!(
                    service = %self.service,
                    "maxconn reached: holds {maxconn} connections and resets new ones; \
                     raise maxconn or find who opens them"
                );
            }
            return None;
        }
        lock(&self.budget).connection(now());
        if self.full.relieve(now) {
            tracing::info!(service = %self.service, "below maxconn again, which is {maxconn}");
        }
        Some(Open { pool: Arc::clone(self), _open: shared.open.token() })
    }

    /// Whether one more attempt may be made beside those under way; charges it.
    pub(super) fn may_add(&self, shared: &Shared) -> bool {
        lock(&self.budget).extra(shared.life.now())
    }

    /// `backends` as indices in the order in which to dial them, and the ticket of the first. Both in one
    /// step, or clients that arrive together would all choose the same one.
    pub(super) fn rank(&self, backends: &[Backend], own: NodeId) -> (Vec<usize>, Option<Ticket>) {
        let mut choice = lock(&self.choice);
        let connections =
            |node: &NodeId| choice.held.get(node).map_or(0, |kept| kept.held.connections.load(Relaxed));
        let order = choice.balancer.rank(choice.balance, backends, Some(own), connections);
        let first = order.first().map(|first| choice.ticket(backends, *first));
        (order, first)
    }

    /// Counts a dial of `backends[chosen]`.
    pub(super) fn ticket(&self, backends: &[Backend], chosen: usize) -> Ticket {
        lock(&self.choice).ticket(backends, chosen)
    }

    /// A client got its backend.
    pub(super) fn served(&self, shared: &Shared) {
        if self.alone.relieve(|| shared.life.now()) {
            tracing::info!(service = %self.service, "backends answer again");
        }
    }

    /// A client got none.
    pub(super) fn not_served(&self, tried: usize, shared: &Shared) {
        self.unserved.fetch_add(1, Relaxed);
        if self.alone.raise(shared.life.now()) {
            tracing::warn!(service = %self.service, "none of {tried} backends answers, new connections are reset");
        }
    }

    /// Resets what is held to backends that went down or away. A table that does not know the service at
    /// all says nothing about its backends.
    pub(super) fn follow(&self, backends: Option<&[Backend]>) {
        let Some(backends) = backends else { return };
        lock(&self.choice).held.retain(|node, kept| {
            let before = std::mem::replace(&mut kept.condemned, must_reset(node, backends));
            let backend = backends.iter().find(|one| one.node == *node);
            if kept.condemned && !before {
                let count = kept.held.reset_all();
                if count > 0 {
                    let name = backend.map_or_else(|| node.to_string(), |one| one.name.to_string());
                    let why = backend.map_or("no longer a backend", |one| one.reason.as_str());
                    tracing::warn!(service = %self.service, "{count} connections to {name} reset: {why}");
                }
            }
            backend.is_some() || kept.held.connections.load(Relaxed) > 0
        });
    }

    /// Resets everything that is held.
    pub(super) fn reset_all(&self) {
        for kept in lock(&self.choice).held.values() {
            kept.held.reset_all();
        }
    }

    /// Whether no client is held.
    pub(super) fn is_idle(&self) -> bool {
        self.open.load(Relaxed) == 0
    }

    /// The numbers; the listeners are not known here.
    pub(super) fn stats(&self) -> ServiceStats {
        let of = |held: &Held| BackendStats {
            connections: held.connections.load(Relaxed),
            total: held.total.load(Relaxed),
        };
        ServiceStats {
            listens: Vec::new(),
            connections: self.open.load(Relaxed),
            maxconn: self.maxconn.load(Relaxed),
            refused: self.refused.load(Relaxed),
            unserved: self.unserved.load(Relaxed),
            backends: lock(&self.choice).held.iter().map(|(node, kept)| (*node, of(&kept.held))).collect(),
        }
    }
}

impl Choice {
    fn ticket(&mut self, backends: &[Backend], chosen: usize) -> Ticket {
        self.balancer.took(backends, chosen);
        let held = match backends.get(chosen) {
            Some(backend) => {
                let new = || Kept { held: Arc::default(), condemned: must_reset(&backend.node, backends) };
                Arc::clone(&self.held.entry(backend.node).or_insert_with(new).held)
            }
            None => Arc::default(),
        };
        held.connections.fetch_add(1, Relaxed);
        Ticket { held, number: None }
    }
}

/// Whether connections held to `node` must be reset. A backend that is gone was taken away by people or
/// stopped being one. One that is down keeps its connections while no other is good: there is nowhere
/// better to go, and under load a live one may look down (k3s#10240).
fn must_reset(node: &NodeId, backends: &[Backend]) -> bool {
    match backends.iter().find(|one| one.node == *node) {
        None => true,
        Some(one) => {
            let better = |other: &Backend| other.node != *node && other.state.is_good();
            one.state == State::Down && backends.iter().any(better)
        }
    }
}

/// A client that counts towards `maxconn`.
pub(super) struct Open {
    pub(super) pool: Arc<Pool>,
    _open: TaskTrackerToken,
}

impl Drop for Open {
    fn drop(&mut self) {
        self.pool.open.fetch_sub(1, Relaxed);
    }
}

/// A dial or a connection that counts towards its backend's load.
pub(super) struct Ticket {
    held: Arc<Held>,
    number: Option<u64>,
}

impl Ticket {
    /// It became a connection, which `handle` ends.
    pub(super) fn hold(mut self, handle: AbortHandle) -> Ticket {
        self.held.total.fetch_add(1, Relaxed);
        let mut handles = lock(&self.held.handles);
        let number = handles.next;
        handles.next += 1;
        handles.by_number.insert(number, handle);
        drop(handles);
        self.number = Some(number);
        self
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        self.held.connections.fetch_sub(1, Relaxed);
        if let Some(number) = self.number {
            lock(&self.held.handles).by_number.remove(&number);
        }
    }
}

impl Held {
    fn reset_all(&self) -> usize {
        let handles = lock(&self.handles);
        handles.by_number.values().for_each(AbortHandle::abort);
        handles.by_number.len()
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::{backend, id};
    use super::*;

    #[test]
    fn what_is_held_is_reset_when_there_is_somewhere_better_to_go() {
        use State::{Alive, Down, Draining, NotReady, Ready, Suspect, Unknown};
        // The state of the backend that holds (none: it is gone), of the others, and the verdict.
        let table: &[(Option<State>, &[State], bool)] = &[
            (Some(Down), &[Ready], true),
            (Some(Down), &[Down, Alive], true),
            (Some(Down), &[], false),
            (Some(Down), &[Down], false),
            (Some(Down), &[Suspect, NotReady, Draining, Unknown], false),
            (Some(Suspect), &[Ready], false),
            (Some(NotReady), &[Ready], false),
            (Some(Draining), &[Ready], false),
            (Some(Unknown), &[Ready], false),
            (Some(Ready), &[Ready], false),
            (None, &[Ready], true),
            (None, &[Down], true),
            (None, &[], true),
        ];
        let address = "127.0.0.1:1".parse().unwrap();
        for (own, others, verdict) in table {
            let own = own.iter().map(|state| backend(1, address, *state));
            let others = others.iter().zip(2..).map(|(state, n)| backend(n, address, *state));
            let backends: Vec<Backend> = own.chain(others).collect();
            assert_eq!(must_reset(&id(1), &backends), *verdict, "{backends:?}");
        }
    }
}
