//! Clients of an apiserver inside a node's network: some that keep opening connections, as kubectl does, and
//! some that hold one, as a kubelet does. All on one thread, so that their sockets are the node's.
//!
//! Several proxies are loaded together and in turn, so that each meets the same fault.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow};
use rustls::client::Resumption;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::{MissedTickBehavior, interval, sleep, timeout};
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use crate::lab::Node;

/// Between two requests on a held connection.
pub const BEAT: Duration = Duration::from_millis(200);

/// Before a lost held connection is reopened.
const AGAIN: Duration = Duration::from_millis(50);

/// What the clients do.
#[derive(Debug, Clone)]
pub struct Plan {
    /// The proxies, loaded in turn.
    pub targets: Vec<SocketAddr>,
    /// New connections a second to each: a full TLS handshake and one request.
    pub per_second: u32,
    /// Connections held to each.
    pub held: usize,
    /// How long a client waits before a new connection counts as failed.
    pub patience: Duration,
}

/// A new connection.
#[derive(Debug, Clone)]
pub struct Try {
    /// When it began.
    pub at: Instant,
    /// How long its answer, or its failure, took.
    pub took: Duration,
    /// Who answered, or why nobody did.
    pub result: Result<String, String>,
}

/// An event of a held connection.
#[derive(Debug, Clone)]
pub struct Beat {
    /// When.
    pub at: Instant,
    /// The event.
    pub what: What,
}

/// What happens to a held connection.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum What {
    /// This master answered.
    Answer(String),
    /// It ended: reset or closed by the other side.
    Lost(String),
}

/// Everything that the clients of one proxy saw.
#[derive(Debug, Clone, Default)]
pub struct Record {
    /// New connections, in the order in which they ended.
    pub tries: Vec<Try>,
    /// Each held connection with its replacements.
    pub held: Vec<Vec<Beat>>,
}

impl Record {
    /// Number of held connections whose last answer is from this master.
    pub fn held_on(&self, master: &str) -> usize {
        self.held.iter().filter(|beats| last_answer(beats) == Some(master)).count()
    }
}

/// The last master that answered.
pub(crate) fn last_answer(beats: &[Beat]) -> Option<&str> {
    beats.iter().rev().find_map(|beat| match &beat.what {
        What::Answer(master) => Some(master.as_str()),
        What::Lost(_) => None,
    })
}

/// What the clients have seen so far.
#[derive(Clone)]
pub struct Seen(Arc<Mutex<Vec<Record>>>);

impl Seen {
    /// The record of each target.
    pub fn records(&self) -> MutexGuard<'_, Vec<Record>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn tried(&self, target: usize, one: Try) {
        self.records()[target].tries.push(one);
    }

    fn beat(&self, target: usize, slot: usize, what: What) {
        self.records()[target].held[slot].push(Beat { at: Instant::now(), what });
    }
}

/// Loads the targets from inside a node for as long as `script` runs; then waits for connections in progress.
/// Returns what was seen, and the script's result.
///
/// # Errors
/// The script's, or no client could be started.
pub fn during<T>(
    node: &Node,
    ca: &Path,
    plan: &Plan,
    script: impl FnOnce(&Seen) -> Result<T>,
) -> Result<(Vec<Record>, T)> {
    let connector = connector(ca)?;
    let empty = Record { tries: Vec::new(), held: vec![Vec::new(); plan.held] };
    let seen = Seen(Arc::new(Mutex::new(vec![empty; plan.targets.len()])));
    let (stop, stopped) = watch::channel(false);
    std::thread::scope(|scope| {
        let clients = scope.spawn(|| {
            node.inside(|| {
                let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
                runtime.block_on(clients(plan, connector, seen.clone(), stopped));
                Ok(())
            })
        });
        let result = script(&seen);
        let _ = stop.send(true);
        clients.join().map_err(|_| anyhow!("the clients panicked"))??;
        let records = std::mem::take(&mut *seen.records());
        Ok((records, result?))
    })
}

fn connector(ca: &Path) -> Result<TlsConnector> {
    let mut roots = RootCertStore::empty();
    for cert in CertificateDer::pem_file_iter(ca).with_context(|| ca.display().to_string())? {
        roots.add(cert?)?;
    }
    let mut config = ClientConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
        .with_safe_default_protocol_versions()?
        .with_root_certificates(roots)
        .with_no_client_auth();
    // Every handshake is a full one, as of a new process.
    config.resumption = Resumption::disabled();
    Ok(TlsConnector::from(Arc::new(config)))
}

async fn clients(plan: &Plan, connector: TlsConnector, seen: Seen, mut stop: watch::Receiver<bool>) {
    let mut held = JoinSet::new();
    for slot in 0..plan.held {
        for (target, &address) in plan.targets.iter().enumerate() {
            let (connector, seen, patience) = (connector.clone(), seen.clone(), plan.patience);
            held.spawn(hold(address, connector, patience, move |what| seen.beat(target, slot, what)));
            // One after the other, so that a proxy that counts connections can balance them.
            sleep(Duration::from_millis(20)).await;
        }
    }
    let mut tries = JoinSet::new();
    if plan.per_second > 0 {
        let all = plan.per_second * u32::try_from(plan.targets.len()).unwrap_or(1);
        let mut tick = interval(Duration::from_secs(1) / all);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        for target in (0..plan.targets.len()).cycle() {
            tokio::select! {
                _ = tick.tick() => {}
                _ = stop.changed() => break,
            }
            let (address, connector, seen) = (plan.targets[target], connector.clone(), seen.clone());
            let patience = plan.patience;
            tries.spawn(async move {
                let at = Instant::now();
                let result = once(address, &connector, patience).await;
                seen.tried(target, Try { at, took: at.elapsed(), result });
            });
            while tries.try_join_next().is_some() {}
        }
    } else {
        let _ = stop.changed().await;
    }
    held.shutdown().await;
    while tries.join_next().await.is_some() {}
}

/// A connection for one request.
async fn once(address: SocketAddr, connector: &TlsConnector, patience: Duration) -> Result<String, String> {
    let act = async {
        let mut stream = connect(address, connector).await?;
        ask(&mut stream, "close").await
    };
    timeout(patience, act).await.unwrap_or_else(|_| Err(format!("no answer within {patience:?}")))
}

/// Holds a connection forever, and reopens it when it is lost. A client with an open watch waits for as long
/// as the connection exists, so no time-out here.
async fn hold(
    address: SocketAddr,
    connector: TlsConnector,
    patience: Duration,
    tell: impl Fn(What) + Send + Sync,
) {
    loop {
        let mut answered = false;
        let opened = timeout(patience, connect(address, &connector)).await;
        if let Ok(Ok(mut stream)) = opened {
            let why = loop {
                match ask(&mut stream, "keep-alive").await {
                    Ok(master) => {
                        answered = true;
                        tell(What::Answer(master));
                    }
                    Err(why) => break why,
                }
                // The other side may close it between two requests, and that has to be noticed at once.
                if let Ok(end) = timeout(BEAT, stream.read_u8()).await {
                    break end.map_or_else(|error| error.to_string(), |_| "an answer to nothing".to_owned());
                }
            };
            // A connection without an answer was not held yet.
            if answered {
                tell(What::Lost(why));
            }
        }
        sleep(AGAIN).await;
    }
}

async fn connect(address: SocketAddr, connector: &TlsConnector) -> Result<TlsStream<TcpStream>, String> {
    let stream = TcpStream::connect(address).await.map_err(|error| format!("connect: {error}"))?;
    let _ = stream.set_nodelay(true);
    let name = ServerName::try_from("kubernetes").map_err(|error| error.to_string())?;
    connector.connect(name, stream).await.map_err(|error| format!("handshake: {error}"))
}

/// One request; returns who answered.
async fn ask(stream: &mut TlsStream<TcpStream>, connection: &str) -> Result<String, String> {
    let request = format!("GET /who HTTP/1.1\r\nHost: kubernetes\r\nConnection: {connection}\r\n\r\n");
    let said = |error: std::io::Error| format!("request: {error}");
    stream.write_all(request.as_bytes()).await.map_err(said)?;
    stream.flush().await.map_err(said)?;
    let (mut got, mut part) = (Vec::new(), [0; 1024]);
    loop {
        let read = stream.read(&mut part).await.map_err(said)?;
        if read == 0 {
            return Err("closed without an answer".to_owned());
        }
        got.extend_from_slice(&part[..read]);
        let text = String::from_utf8_lossy(&got);
        // The stand-in's answer is one line with its name.
        if let Some((head, body)) = text.split_once("\r\n\r\n")
            && body.ends_with('\n')
        {
            return match head.starts_with("HTTP/1.1 200 ") {
                true => Ok(body.trim().to_owned()),
                false => Err(head.lines().next().unwrap_or_default().to_owned()),
            };
        }
    }
}
