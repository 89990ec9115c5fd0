//! Listening sockets: binding, retries, and accept loops.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use proto::cause::{Cause, Fault};
use proto::service::ServiceName;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::pool::ServicePool;
use super::reactor::Timer;
use super::stream::{Listener, Stream};
use super::{ProxyShared, connection, socket, taker, workers};
use crate::supervisor::supervised;
use crate::{faults, handover};

/// The first retry comes soon: after a reload the address may only have moved between services.
const FIRST_RETRY: Duration = Duration::from_millis(50);

/// Time between further retries.
const RETRY: Duration = Duration::from_secs(1);

/// Pause after a failed accept. Without descriptors the kernel would report the same client again at once.
const PAUSE: Duration = Duration::from_millis(100);

/// Clients that had connected before a listener closed and are still accepted; a flood must not delay shutdown.
const LAST_ACCEPTS: usize = 1024;

/// Where a listener is bound, or why it is not.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum BindState {
    /// Bound here; the port is known even if 0 was configured.
    At(SocketAddr),
    /// Not bound yet.
    Failed(Fault),
}

impl BindState {
    /// For [`super::ServiceStats::listens`].
    pub(super) fn shown(&self, configured: SocketAddr) -> (SocketAddr, Option<Fault>) {
        match self {
            BindState::At(address) => (*address, None),
            BindState::Failed(error) => (configured, Some(error.clone())),
        }
    }
}

/// An address and the attempt to bind it, with one socket per thread.
pub(super) struct ListenSocket {
    pub(super) address: SocketAddr,
    sockets: Result<Vec<std::net::TcpListener>, Fault>,
}

impl ListenSocket {
    pub(super) fn bind(service: &ServiceName, address: SocketAddr, shared: bool) -> ListenSocket {
        let sockets = listen(address, shared).map_err(|fault| {
            let taker = (fault.cause == Cause::AddressInUse).then(|| taker::listener(address)).flatten();
            let named =
                |taker| Fault::new(fault.cause, format!("stop {taker}, or configure another address"));
            taker.map(named).unwrap_or(fault)
        });
        match &sockets {
            Ok(_) => tracing::info!(%service, "listening on {address}"),
            Err(error) => tracing::warn!(%service, "cannot listen on {address}: {error}"),
        }
        ListenSocket { address, sockets }
    }

    /// The sockets of the process before this one, which listen already.
    pub(super) fn handed(address: SocketAddr, sockets: Vec<std::net::TcpListener>) -> ListenSocket {
        ListenSocket { address, sockets: Ok(sockets) }
    }

    pub(super) fn bound(&self) -> BindState {
        match &self.sockets {
            Ok(sockets) => at(sockets, self.address),
            Err(error) => BindState::Failed(error.clone()),
        }
    }
}

fn listen(address: SocketAddr, shared: bool) -> Result<Vec<std::net::TcpListener>, Fault> {
    socket::listen(address, workers::count(), shared).map_err(|error| explain(&error))
}

fn at(sockets: &[std::net::TcpListener], configured: SocketAddr) -> BindState {
    BindState::At(sockets.first().and_then(|first| first.local_addr().ok()).unwrap_or(configured))
}

/// Why binding failed, and what would help.
fn explain(error: &io::Error) -> Fault {
    match faults::cause(error) {
        Some(cause @ Cause::AddressInUse) => {
            Fault::new(cause, "stop the process that listens there (ss -ltnp), or configure another address")
        }
        Some(cause @ Cause::AddressUnavailable) => Fault::new(cause, "no interface has this address yet"),
        Some(cause @ Cause::NotPermitted) => {
            Fault::new(cause, "ports below 1024 need root or CAP_NET_BIND_SERVICE")
        }
        _ => faults::fault(error),
    }
}

/// Serves one address until `stop`.
pub(super) async fn run(
    first: ListenSocket,
    pool: Arc<ServicePool>,
    shared: Arc<ProxyShared>,
    stop: CancellationToken,
    say: &watch::Sender<BindState>,
) {
    let _open = shared.open.token();
    let address = first.address;
    let Some(sockets) = stop.run_until_cancelled(bound(first, &pool, say)).await else { return };
    let accept = |socket| {
        let accepting = accept_until(stop.clone(), address, socket, Arc::clone(&pool), Arc::clone(&shared));
        shared.workers.next().spawn(&shared.life, accepting)
    };
    let tasks: Vec<_> = sockets.into_iter().map(accept).collect();
    for task in tasks {
        let _ = task.await;
    }
    tracing::info!(service = %pool.service, "no longer listens on {address}");
}

/// Retries until the address is bound, and logs each change.
async fn bound(
    first: ListenSocket,
    pool: &ServicePool,
    say: &watch::Sender<BindState>,
) -> Vec<std::net::TcpListener> {
    let address = first.address;
    let service = &pool.service;
    let mut sockets = first.sockets;
    let mut wait = FIRST_RETRY;
    loop {
        let bound = match sockets {
            Ok(sockets) => {
                let bound = at(&sockets, address);
                if say.send_replace(bound.clone()) != bound {
                    tracing::info!(%service, "listening on {address}");
                }
                return sockets;
            }
            Err(error) => BindState::Failed(error),
        };
        if *say.borrow() != bound {
            if let BindState::Failed(fault) = &bound {
                tracing::warn!(%service, "cannot listen on {address}: {fault}");
            }
            say.send_replace(bound);
        }
        tokio::time::sleep(wait).await;
        wait = RETRY;
        sockets = listen(address, pool.shares_port());
    }
}

/// Accepts from one of an address's sockets, on the thread that serves its clients.
async fn accept_until(
    stop: CancellationToken,
    address: SocketAddr,
    socket: std::net::TcpListener,
    pool: Arc<ServicePool>,
    shared: Arc<ProxyShared>,
) {
    let _open = shared.open.token();
    let _loop = shared.pause.accepting();
    let listener = Listener::new(socket);
    let over = shared.life.shutdown.clone();
    let accepting = supervised("proxy", (&listener, &pool, &shared, &stop), over, |all| {
        let (listener, pool, shared, stop) = *all;
        Box::pin(async move {
            stop.run_until_cancelled(accept_all(address, listener, pool, shared)).await;
        })
    });
    accepting.await;
    last_accepts(&listener, &pool, &shared);
}

async fn accept_all(
    address: SocketAddr,
    listener: &Listener,
    pool: &Arc<ServicePool>,
    shared: &Arc<ProxyShared>,
) {
    let now = || shared.life.now();
    let _rests = listener.accepting();
    // One wait for all clients.
    let mut pausing = shared.pause.until(true);
    loop {
        let accepted = tokio::select! {
            biased;
            () = &mut pausing => {
                handover::keep_open(listener, true);
                pool.hand_listener(address, listener);
                shared.pause.stopped();
                listener.rest();
                shared.pause.until(false).await;
                handover::keep_open(listener, false);
                pausing = shared.pause.until(true);
                continue;
            }
            accepted = listener.accept() => accepted,
        };
        match accepted {
            Ok((client, from)) => {
                if shared.starved.relieve(now) {
                    tracing::info!("file descriptors are available again");
                }
                admit(client, from.ip(), pool, shared);
            }
            // The client disconnected before it was accepted.
            Err(error) if error.kind() == io::ErrorKind::ConnectionAborted => {}
            Err(error) => {
                shared.failed_locally(&error);
                listener.rest();
                Timer::new(PAUSE).await;
            }
        }
    }
}

/// Accepts clients whose handshake the kernel has completed and which it would reset.
fn last_accepts(listener: &Listener, pool: &Arc<ServicePool>, shared: &Arc<ProxyShared>) {
    for _ in 0..LAST_ACCEPTS {
        let Ok(Some((client, from))) = listener.accept_now() else { break };
        admit(client, from.ip(), pool, shared);
    }
}

/// Spawns a task for the client, or resets it when the service is at its limit.
fn admit(client: Stream, source: IpAddr, pool: &Arc<ServicePool>, shared: &Arc<ProxyShared>) {
    match pool.admit(source, shared) {
        Some(open) => workers::spawn_here(&shared.life, connection::serve(client, open, Arc::clone(shared))),
        None => socket::reset_on_drop(&client),
    }
}
