//! The listening sockets, a task for each connection, and how a change of configuration affects them.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use proto::config::Config;
use proto::event::{Event, EventKind, EventLevel};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{mpsc, watch};
use tokio::time::timeout;

use super::slots::WebSlots;
use super::{WebShared, WebState, route};
use crate::http;
use crate::lifecycle::wall;

/// Longest wait for the first byte of a connection: a round trip around the world takes a tenth of it, and an
/// idle connection takes a slot from others. Shorter in tests.
pub(super) const FIRST_BYTE: Duration = Duration::from_millis(if cfg!(test) { 300 } else { 5_000 });

/// Connections that the kernel queues.
pub(super) const BACKLOG: u32 = 256;

/// Wait before an address in use is retried.
pub(super) const AGAIN: Duration = Duration::from_secs(5);

/// Retries for an address that this agent itself has just released, and the wait between them.
const LEAVING: (u32, Duration) = (50, Duration::from_millis(10));

/// An address and its socket.
struct WebListener {
    address: SocketAddr,
    /// `None` while another process has it.
    listener: Option<Arc<TcpListener>>,
}

/// Listens where the configuration says. A change that can't be applied as a whole is refused and reported,
/// and the old configuration stays.
pub(super) async fn watch_config(
    config: &mut watch::Receiver<Arc<Config>>,
    all: Arc<WebShared>,
    tell: mpsc::Sender<Event>,
) {
    let places = Arc::new(WebSlots::default());
    let mut now = config.borrow_and_update().web.clone();
    let mut open: Vec<WebListener> = now.listen.iter().map(|address| first(*address)).collect();
    let mut state = CurrentSite(WebState::new(&now, &all));
    open.iter().for_each(|place| accept(place, &state, &places));
    while config.changed().await.is_ok() {
        let wanted = config.borrow_and_update().web.clone();
        if wanted == now {
            continue;
        }
        match change(&mut open, &wanted.listen, &state).await {
            Ok(()) => {
                now = wanted;
                tracing::info!("[web] reloaded");
                // The old connections end before new ones start: the old configuration may have asked for
                // less.
                state.ended.cancel();
            }
            Err(error) => refuse(&error, &tell),
        }
        if state.ended.is_cancelled() {
            state = CurrentSite(WebState::new(&now, &all));
            open.iter().for_each(|place| accept(place, &state, &places));
        }
    }
}

/// The site being served; its connections and sockets end with the task that watches the configuration.
struct CurrentSite(Arc<WebState>);

impl std::ops::Deref for CurrentSite {
    type Target = Arc<WebState>;

    fn deref(&self) -> &Arc<WebState> {
        &self.0
    }
}

impl Drop for CurrentSite {
    fn drop(&mut self) {
        self.0.ended.cancel();
    }
}

/// Why a change of the addresses is refused.
#[derive(Debug, thiserror::Error)]
#[error("cannot listen on {address}: {source}")]
struct ListenError {
    address: SocketAddr,
    source: io::Error,
}

/// Reports that the old addresses and credentials stay.
fn refuse(error: &ListenError, tell: &mpsc::Sender<Event>) {
    tracing::error!("[web] not reloaded, the old one stays in use: {error}");
    let event = Event::new(EventKind::Reload, wall(), "web", "refused");
    // When the queue is full, it is being reported already.
    let _ = tell.try_send(event.reason(error).level(EventLevel::Error));
}

/// An address at the start: retried while it is in use.
fn first(address: SocketAddr) -> WebListener {
    let listener = match bind(address) {
        Ok(listener) => Some(Arc::new(listener)),
        Err(error) => {
            tracing::warn!(
                "the status page cannot listen on {address}: {error}; retrying; or set web.listen to \
                 another address"
            );
            None
        }
    };
    WebListener { address, listener }
}

/// Listens at these addresses and no others; on an error, at the old ones. Addresses that stay keep their
/// sockets.
async fn change(
    open: &mut Vec<WebListener>,
    wanted: &[SocketAddr],
    state: &WebState,
) -> Result<(), ListenError> {
    let mut new = Vec::new();
    for address in wanted {
        let kept = open.iter().find(|place| place.address == *address).map(|place| place.listener.clone());
        let listener = match kept {
            Some(listener) => listener,
            None => match instead(open, wanted, *address, state).await {
                Ok(listener) => Some(listener),
                Err(source) => {
                    // Rebinds what was released for it, and releases what was new.
                    drop(new);
                    let left = open.iter_mut().filter(|place| place.listener.is_none());
                    for place in left.filter(|_| state.ended.is_cancelled()) {
                        place.listener = again(place.address).await.ok();
                    }
                    return Err(ListenError { address: *address, source });
                }
            },
        };
        new.push(WebListener { address: *address, listener });
    }
    *open = new;
    Ok(())
}

/// Binds an address. A wildcard and a single address conflict, so what is no longer wanted is released first.
async fn instead(
    open: &mut [WebListener],
    wanted: &[SocketAddr],
    address: SocketAddr,
    state: &WebState,
) -> io::Result<Arc<TcpListener>> {
    let error = match bind(address) {
        Ok(listener) => return Ok(Arc::new(listener)),
        Err(error) => error,
    };
    let goes = |place: &&mut WebListener| {
        place.address.port() == address.port() && !wanted.contains(&place.address) && place.listener.is_some()
    };
    let going: Vec<&mut WebListener> = open.iter_mut().filter(goes).collect();
    if going.is_empty() || error.kind() != io::ErrorKind::AddrInUse {
        return Err(error);
    }
    going.into_iter().for_each(|place| place.listener = None);
    state.ended.cancel();
    again(address).await
}

/// Binds an address that this agent itself is about to release.
async fn again(address: SocketAddr) -> io::Result<Arc<TcpListener>> {
    for _ in 0..LEAVING.0 {
        if let Ok(listener) = bind(address) {
            return Ok(Arc::new(listener));
        }
        tokio::time::sleep(LEAVING.1).await;
    }
    bind(address).map(Arc::new)
}

fn bind(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = match address {
        SocketAddr::V4(_) => tokio::net::TcpSocket::new_v4()?,
        SocketAddr::V6(_) => tokio::net::TcpSocket::new_v6()?,
    };
    // Connections of an earlier start must not block the address.
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;
    socket.listen(BACKLOG)
}

/// Starts the task of an address.
fn accept(place: &WebListener, state: &Arc<WebState>, places: &Arc<WebSlots>) {
    let inputs = (place.address, place.listener.clone(), state.clone(), places.clone());
    state.life.supervise("web", inputs, |(address, listener, state, places)| {
        let (over, ended) = (state.life.shutdown.clone(), state.ended.clone());
        let work = run(*address, listener.clone(), state.clone(), places.clone());
        Box::pin(async move {
            ended.run_until_cancelled(over.run_until_cancelled(work)).await;
        })
    });
}

async fn run(
    address: SocketAddr,
    listener: Option<Arc<TcpListener>>,
    state: Arc<WebState>,
    places: Arc<WebSlots>,
) {
    let listener = match listener {
        Some(listener) => listener,
        None => loop {
            if let Ok(listener) = again(address).await {
                break listener;
            }
            tokio::time::sleep(AGAIN).await;
        },
    };
    tracing::info!("status page and metrics on http://{address}");
    loop {
        let (stream, from) = match listener.accept().await {
            Ok(accepted) => accepted,
            Err(_) => {
                // Out of descriptors, most likely: retrying at once would only spin.
                tokio::time::sleep(Duration::from_millis(200)).await;
                continue;
            }
        };
        // Without a slot it is closed at once: if it waited, it would block those behind it, which may be of
        // a client that has slots left.
        let Some(place) = places.take(from.ip()) else { continue };
        let (over, ended) = (state.life.shutdown.clone(), state.ended.clone());
        let work = serve(stream, from, state.clone());
        state.life.spawn(async move {
            ended.run_until_cancelled(over.run_until_cancelled(work)).await;
            drop(place);
        });
    }
}

async fn serve(stream: TcpStream, from: SocketAddr, state: Arc<WebState>) {
    // Before it costs any memory.
    if !matches!(timeout(FIRST_BYTE, stream.peek(&mut [0])).await, Ok(Ok(1..))) {
        return;
    }
    // Responses are written in one go, and a stream's events should not wait for each other.
    let _ = stream.set_nodelay(true);
    let handler: http::Handler =
        Arc::new(move |request| Box::pin(route::answer(request, from.ip(), state.clone())));
    http::serve(Box::new(stream), handler, Box::pin(std::future::pending())).await;
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU16, Ordering};

    use proto::config::WebConfig;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::super::slots::OWN;
    use super::super::{SnapshotCache, stream};
    use super::*;
    use crate::lifecycle::Lifecycle;

    fn shared(life: &Lifecycle) -> Arc<WebShared> {
        let (changes, ring) = (watch::channel(0).1, watch::channel(Arc::default()).1);
        let status = Box::new(|| unreachable!("/healthz asks for none"));
        Arc::new(WebShared {
            snapshots: SnapshotCache::new(status, changes.clone(), ring.clone(), life),
            changes,
            ring,
            act: Box::new(|_| unreachable!("nobody acts")),
            streams: stream::places(),
            life: life.clone(),
        })
    }

    /// The response from there; `None` when nobody listens.
    async fn ask(address: SocketAddr, path: &str) -> Option<String> {
        let mut stream = TcpStream::connect(address).await.ok()?;
        let request = format!("GET {path} HTTP/1.1\r\nhost: 127.0.0.1\r\nconnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await.ok()?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.ok()?;
        Some(answer).filter(|answer| !answer.is_empty())
    }

    /// A free port, below those that the kernel chooses for other tests, at an address that none of them uses: a client
    /// of another test with the same port by chance would ask for what is not here, and one of these tests listens at
    /// every address.
    fn free() -> std::net::TcpListener {
        static NEXT: AtomicU16 = AtomicU16::new(20_000);
        let mut ports = std::iter::repeat_with(|| NEXT.fetch_add(1, Ordering::Relaxed)).take(10_000);
        ports.find_map(|port| std::net::TcpListener::bind(("127.0.0.77", port)).ok()).unwrap()
    }

    async fn until_answered(address: SocketAddr, begin: &str, path: &str) {
        for _ in 0..500 {
            if ask(address, path).await.is_some_and(|answer| answer.starts_with(begin)) {
                return;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        panic!("{address}{path} does not answer {begin}");
    }

    #[tokio::test]
    async fn an_idle_connection_is_closed_and_one_without_a_slot_at_once() {
        let address = free().local_addr().unwrap();
        let config = Config {
            web: WebConfig { listen: vec![address], by_default: false, ..WebConfig::default() },
            ..Config::default()
        };
        let (_config_in, mut config) = watch::channel(Arc::new(config));
        let life = Lifecycle::new();
        let (over, all) = (life.shutdown.clone(), shared(&life));
        life.spawn(async move {
            over.run_until_cancelled(watch_config(&mut config, all, mpsc::channel(8).0)).await;
        });
        until_answered(address, "HTTP/1.1 200", "/healthz").await;
        let began = tokio::time::Instant::now();
        let mut idle = Vec::new();
        for _ in 0..OWN {
            idle.push(TcpStream::connect(address).await.unwrap());
        }
        let mut late = TcpStream::connect(address).await.unwrap();
        let closed = timeout(FIRST_BYTE / 2, late.read(&mut [0; 8])).await;
        assert_eq!(closed.unwrap().unwrap_or(0), 0, "one too many is not kept waiting");
        until_answered(address, "HTTP/1.1 200", "/healthz").await;
        assert!(began.elapsed() < FIRST_BYTE * 3, "the idle ones were not left in time");
        for mut one in idle {
            assert_eq!(one.read(&mut [0; 8]).await.unwrap_or(0), 0);
        }
        life.shutdown.cancel();
        life.finished().await;
    }

    #[tokio::test]
    async fn a_change_is_applied_as_a_whole_or_not_at_all() {
        let taken = free();
        let [one, other] = [free(), free()].map(|socket| socket.local_addr().unwrap());
        let any = SocketAddr::new([0, 0, 0, 0].into(), one.port());
        let token = || Some(proto::config::HiddenText("0123456789".to_owned()));
        let web = |listen: &[SocketAddr], closed: bool| {
            let token = if closed { token() } else { None };
            let web = WebConfig { listen: listen.to_vec(), by_default: false, token, ..WebConfig::default() };
            Arc::new(Config { web, ..Config::default() })
        };
        let (config_in, config) = watch::channel(web(&[one], false));
        let (tell, mut told) = mpsc::channel(8);
        let life = Lifecycle::new();
        let (over, all) = (life.shutdown.clone(), shared(&life));
        let mut config = config;
        life.spawn(async move {
            over.run_until_cancelled(watch_config(&mut config, all, tell)).await;
        });
        until_answered(one, "HTTP/1.1 200", "/healthz").await;

        config_in.send_replace(web(&[one, other], false));
        until_answered(other, "HTTP/1.1 200", "/healthz").await;
        assert!(ask(one, "/healthz").await.is_some(), "what stays is not closed for a moment");
        let mut held = TcpStream::connect(one).await.unwrap();

        // All of it is refused, the good address too.
        config_in.send_replace(web(&[any, taken.local_addr().unwrap()], false));
        let event = told.recv().await.unwrap();
        assert!(event.kind == EventKind::Reload && event.to == "refused", "{event:?}");
        until_answered(one, "HTTP/1.1 200", "/healthz").await;
        until_answered(other, "HTTP/1.1 200", "/healthz").await;

        config_in.send_replace(web(&[any], true));
        until_answered(one, "HTTP/1.1 401", "/nothing").await;
        assert_eq!(
            held.read(&mut [0; 8]).await.unwrap_or(0),
            0,
            "who came without a token has to come again"
        );
        assert!(ask(other, "/healthz").await.is_none(), "it is closed");
        life.shutdown.cancel();
        life.finished().await;
    }
}
