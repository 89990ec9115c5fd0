//! Listening sockets: bound at once, bound again while that fails, and accepted from.

use std::fmt::Write as _;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use proto::service::ServiceName;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::pool::Pool;
use super::{Shared, connection, socket};

/// The first new attempt comes soon: after a reload the address may only have changed hands.
const FIRST_RETRY: Duration = Duration::from_millis(50);

/// Time between further attempts.
const RETRY: Duration = Duration::from_secs(1);

/// Pause after a failed accept. Out of descriptors the kernel would report the same client at once again.
const PAUSE: Duration = Duration::from_millis(100);

/// Clients that had connected before a listener closed and are still taken; a flood must not prevent the
/// end.
const LAST_ACCEPTS: usize = 1024;

/// Where a listener listens, or why it does not.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Bound {
    /// Here; the port is known even when 0 was asked for.
    At(SocketAddr),
    /// Not yet.
    Failed(String),
}

impl Bound {
    /// For [`super::ServiceStats::listens`].
    pub(super) fn shown(&self, configured: SocketAddr) -> (SocketAddr, Option<String>) {
        match self {
            Bound::At(address) => (*address, None),
            Bound::Failed(error) => (configured, Some(error.clone())),
        }
    }
}

/// An address and the attempt to bind it.
pub(super) struct Socket {
    pub(super) address: SocketAddr,
    socket: Result<std::net::TcpListener, String>,
}

impl Socket {
    pub(super) fn bind(service: &ServiceName, address: SocketAddr) -> Socket {
        let socket = socket::listen(address).map_err(|error| explain(&error));
        match &socket {
            Ok(_) => tracing::info!(%service, "listens on {address}"),
            Err(error) => tracing::warn!(%service, "cannot listen on {address}: {error}"),
        }
        Socket { address, socket }
    }

    pub(super) fn bound(&self) -> Bound {
        match &self.socket {
            Ok(socket) => Bound::At(socket.local_addr().unwrap_or(self.address)),
            Err(error) => Bound::Failed(error.clone()),
        }
    }
}

/// Why binding failed, and what would help.
fn explain(error: &io::Error) -> String {
    let mut text = error.to_string();
    let help = match error.kind() {
        io::ErrorKind::AddrInUse => "stop what listens there, or configure another address",
        io::ErrorKind::AddrNotAvailable => "no interface has this address yet",
        io::ErrorKind::PermissionDenied => "ports below 1024 need root or CAP_NET_BIND_SERVICE",
        _ => return text,
    };
    let _ = write!(text, "; {help}");
    text
}

/// Serves one address until `stop`.
pub(super) async fn run(
    first: Socket,
    pool: Arc<Pool>,
    shared: Arc<Shared>,
    stop: CancellationToken,
    say: watch::Sender<Bound>,
) {
    let _open = shared.open.token();
    let address = first.address;
    let Some(listener) = stop.run_until_cancelled(bound(first, &pool, &say)).await else { return };
    let _ = stop.run_until_cancelled(accept_all(&listener, &pool, &shared)).await;
    last_accepts(listener, &pool, &shared);
    tracing::info!(service = %pool.service, "no longer listens on {address}");
}

/// Tries until the address is bound, with a line for each change.
async fn bound(first: Socket, pool: &Pool, say: &watch::Sender<Bound>) -> TcpListener {
    let address = first.address;
    let service = &pool.service;
    let mut socket = first.socket;
    let mut wait = FIRST_RETRY;
    loop {
        let error = match socket.and_then(|socket| TcpListener::from_std(socket).map_err(|e| explain(&e))) {
            Ok(listener) => {
                let bound = Bound::At(listener.local_addr().unwrap_or(address));
                if say.send_replace(bound.clone()) != bound {
                    tracing::info!(%service, "listens on {address}");
                }
                return listener;
            }
            Err(error) => error,
        };
        let bound = Bound::Failed(error);
        if *say.borrow() != bound {
            let (_, error) = bound.shown(address);
            tracing::warn!(%service, "cannot listen on {address}: {}", error.unwrap_or_default());
            say.send_replace(bound);
        }
        tokio::time::sleep(wait).await;
        wait = RETRY;
        socket = socket::listen(address).map_err(|error| explain(&error));
    }
}

async fn accept_all(listener: &TcpListener, pool: &Arc<Pool>, shared: &Arc<Shared>) {
    let now = || shared.life.now();
    loop {
        match listener.accept().await {
            Ok((client, _)) => {
                if shared.starved.relieve(now) {
                    tracing::info!("file descriptors are free again");
                }
                admit(client, pool, shared);
            }
            // The client left before it was accepted.
            Err(error) if error.kind() == io::ErrorKind::ConnectionAborted => {}
            Err(error) => {
                shared.failed_locally(&error);
                tokio::time::sleep(PAUSE).await;
            }
        }
    }
}

/// Takes those that the kernel has already greeted and would reset. Asks the kernel itself, since tokio may
/// not have heard of them yet.
fn last_accepts(listener: TcpListener, pool: &Arc<Pool>, shared: &Arc<Shared>) {
    let Ok(listener) = listener.into_std() else { return };
    for _ in 0..LAST_ACCEPTS {
        let Ok((client, _)) = listener.accept() else { break };
        let client = client.set_nonblocking(true).and_then(|()| TcpStream::from_std(client));
        if let Ok(client) = client {
            admit(client, pool, shared);
        }
    }
}

/// Gives the client a task of its own, or resets it when the service holds as many as it may.
fn admit(client: TcpStream, pool: &Arc<Pool>, shared: &Arc<Shared>) {
    match pool.admit(shared) {
        Some(open) => shared.life.spawn(connection::serve(client, open, Arc::clone(shared))),
        None => socket::reset_on_drop(&client),
    }
}
