//! Where load balancers ask, without credentials, whether to send clients to this node: 200 or 503, and nothing else
//! that is worth knowing. A name that is no service gets 503 too, so that none can be guessed.
//!
//! One task follows the configuration; one for each address accepts; one for each connection serves it. Stopping them
//! anywhere is safe: they only read.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use hyper::Method;
use hyper::header::{self, HeaderValue};
use proto::config::Config;
use proto::settings::Settings;
use socket2::{Domain, Protocol, Socket, Type};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::time::timeout;
use tokio_util::sync::{CancellationToken, DropGuard};

use super::WebShared;
use super::listen::{AGAIN, BACKLOG, FIRST_BYTE};
use super::slots::WebSlots;
use crate::http::{self, Request, Response, text};

/// Longest life of a connection: some checkers keep theirs, and must not keep a slot for ever.
const LONGEST: Duration = Duration::from_secs(60);

const PLAIN: &str = "text/plain; charset=utf-8";

/// What an answer is made of.
pub(super) struct HealthState {
    pub(super) all: Arc<WebShared>,
    /// Nodes that take no new connections are among them.
    pub(super) settings: watch::Receiver<Arc<Settings>>,
}

/// Listens where the configuration says.
pub(super) async fn watch_config(config: &mut watch::Receiver<Arc<Config>>, state: &Arc<HealthState>) {
    let places = Arc::new(WebSlots::default());
    let mut open: Vec<(SocketAddr, DropGuard)> = Vec::new();
    loop {
        let wanted = config.borrow_and_update().health.clone();
        open.retain(|(address, _)| wanted.contains(address));
        for address in wanted {
            if open.iter().all(|(known, _)| *known != address) {
                open.push((address, accept(address, state, &places)));
            }
        }
        if config.changed().await.is_err() {
            return;
        }
    }
}

/// Starts the task of an address, which ends with the guard.
fn accept(address: SocketAddr, state: &Arc<HealthState>, places: &Arc<WebSlots>) -> DropGuard {
    let ended = CancellationToken::new();
    let inputs = (state.clone(), places.clone(), ended.clone());
    state.all.life.supervise("health", inputs, move |(state, places, ended)| {
        let (over, work) = (state.all.life.shutdown.clone(), run(address, state.clone(), places.clone()));
        let ended = ended.clone();
        Box::pin(async move {
            ended.run_until_cancelled(over.run_until_cancelled(work)).await;
        })
    });
    ended.drop_guard()
}

async fn run(address: SocketAddr, state: Arc<HealthState>, places: Arc<WebSlots>) {
    let listener = bound(address).await;
    tracing::info!("health for load balancers on http://{address}");
    loop {
        let Ok((stream, from)) = listener.accept().await else {
            // Out of descriptors, most likely: retrying at once would only spin.
            tokio::time::sleep(Duration::from_millis(200)).await;
            continue;
        };
        let Some(place) = places.take(from.ip()) else { continue };
        let (over, work) = (state.all.life.shutdown.clone(), serve(stream, state.clone()));
        state.all.life.spawn(async move {
            over.run_until_cancelled(work).await;
            drop(place);
        });
    }
}

async fn bound(address: SocketAddr) -> TcpListener {
    let mut told = false;
    loop {
        match bind(address) {
            Ok(listener) => return listener,
            Err(error) if !told => {
                tracing::warn!("health cannot listen on {address}: {error}; retrying");
                told = true;
            }
            Err(_) => {}
        }
        tokio::time::sleep(AGAIN).await;
    }
}

fn bind(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    socket.set_nonblocking(true)?;
    // Connections of an earlier start must not block the address.
    socket.set_reuse_address(true)?;
    if address.is_ipv6() {
        // Each address stands for itself, as those of services do.
        socket.set_only_v6(true)?;
    }
    socket.bind(&address.into())?;
    socket.listen(BACKLOG.cast_signed())?;
    TcpListener::from_std(socket.into())
}

async fn serve(stream: TcpStream, state: Arc<HealthState>) {
    // Before it costs any memory.
    if !matches!(timeout(FIRST_BYTE, stream.peek(&mut [0])).await, Ok(Ok(1..))) {
        return;
    }
    let handler: http::Handler = Arc::new(move |request| {
        let state = state.clone();
        Box::pin(async move { answer(&request, &state) })
    });
    let leaving = Box::pin(tokio::time::sleep(LONGEST));
    let _ = timeout(LONGEST * 2, http::serve(Box::new(stream), handler, leaving)).await;
}

fn answer(request: &Request, state: &HealthState) -> Response {
    if !matches!(*request.method(), Method::GET | Method::HEAD) {
        let mut response = text(405, PLAIN, "read-only\n");
        response.headers_mut().insert(header::ALLOW, HeaderValue::from_static("GET, HEAD"));
        return response;
    }
    let good = is_good(request.uri().path(), state);
    let mut response = if good { text(200, PLAIN, "ok\n") } else { text(503, PLAIN, "unavailable\n") };
    response.headers_mut().insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response
}

/// Whether clients may come: `/` is about the agent, `/NAME` about a service.
fn is_good(path: &str, state: &HealthState) -> bool {
    let snapshot = state.all.snapshots.now();
    let status = &snapshot.status;
    if state.all.life.draining.is_cancelled()
        || state.settings.borrow().drains.contains_key(&status.node.name)
    {
        return false;
    }
    match path {
        "/" | "/healthz" | "/readyz" => status.is_ready(),
        path => path.strip_prefix('/').is_some_and(|service| status.serves(service)),
    }
}
