//! A seed that nobody has confirmed: it answers whoever wants to join at its address, by a key of its own, and
//! says what would make that node a member of its own cluster.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::{Context, Result};
use proto::cluster::{Document, Replica};
use proto::rpc::{ALPN_JOIN, Addresses, FromJoining, SyncSnapshot, ToJoining, Welcome, encode};
use proto::transport::GossipKey;
use rustls::server::AlwaysResolvesServerRawPublicKeys;
use rustls::{ServerConfig, ServerConnection, StreamOwned};

use super::Identity;
use super::tls::{Anyone, read_message};
use crate::lab::Node;

/// How long it waits for the next connection before it looks whether it is over, and for what a node says.
const LOOK: Duration = Duration::from_millis(50);
const PATIENCE: Duration = Duration::from_secs(20);

#[derive(Default)]
struct Shared {
    over: AtomicBool,
    reached: AtomicU64,
    asked: AtomicU64,
}

/// Such a seed; it ends when it is dropped.
pub struct FalseSeed {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

impl FalseSeed {
    /// Listens at a node's link port. Whoever asks there to be let in is told all of this at once.
    ///
    /// # Errors
    /// The port is taken.
    pub fn listen(node: &Node, identity: &Identity, says: Vec<ToJoining>) -> Result<FalseSeed> {
        let at = SocketAddr::new(node.mesh_ip(), proto::transport::PORT);
        let listener = node.inside(|| Ok(TcpListener::bind(at)?))?;
        listener.set_nonblocking(true)?;
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let mut config = ServerConfig::builder_with_provider(provider.clone())
            .with_protocol_versions(&[&rustls::version::TLS13])?
            .with_client_cert_verifier(Arc::new(Anyone(provider)))
            .with_cert_resolver(Arc::new(AlwaysResolvesServerRawPublicKeys::new(identity.certified.clone())));
        config.alpn_protocols = ALPN_JOIN.iter().map(|one| one.to_vec()).collect();
        let (shared, config) = (Arc::<Shared>::default(), Arc::new(config));
        let behind = shared.clone();
        let thread = Some(std::thread::spawn(move || {
            while !behind.over.load(Ordering::Relaxed) {
                match listener.accept() {
                    // Whoever is led astray sees it in its own log.
                    Ok((stream, _)) => drop(talk(stream, config.clone(), &says, &behind)),
                    Err(_) => std::thread::sleep(LOOK),
                }
            }
        }));
        Ok(FalseSeed { shared, thread })
    }

    /// How many connections shook hands with it, and how many of them asked to be let in.
    pub fn visits(&self) -> (u64, u64) {
        (self.shared.reached.load(Ordering::Relaxed), self.shared.asked.load(Ordering::Relaxed))
    }
}

impl Drop for FalseSeed {
    fn drop(&mut self) {
        self.shared.over.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn talk(mut stream: TcpStream, config: Arc<ServerConfig>, says: &[ToJoining], shared: &Shared) -> Result<()> {
    stream.set_nonblocking(false)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    let mut connection = ServerConnection::new(config)?;
    while connection.is_handshaking() {
        connection.complete_io(&mut stream)?;
    }
    shared.reached.fetch_add(1, Ordering::Relaxed);
    let mut stream = StreamOwned::new(connection, stream);
    read_message::<FromJoining>(&mut stream)?;
    shared.asked.fetch_add(1, Ordering::Relaxed);
    for message in says {
        let frame = encode(message)?;
        stream.write_all(&u32::try_from(frame.len())?.to_be_bytes())?;
        stream.write_all(&frame)?;
    }
    stream.flush()?;
    // Until the other side has had enough.
    let mut rest = Vec::new();
    stream.read_to_end(&mut rest)?;
    Ok(())
}

/// The welcome to a cluster with this document, sealed by this key.
///
/// # Errors
/// None that an input can cause.
pub fn welcome(
    identity: &Identity,
    document: Document,
    key: GossipKey,
    addresses: Addresses,
) -> Result<ToJoining> {
    let document = Replica::new(document, identity.id, &identity.pair).sealed().context("no seal")?;
    let snapshot = SyncSnapshot { document: Some(document), keys: vec![key], addresses, difference: None };
    Ok(ToJoining::Welcome(Box::new(Welcome { snapshot, serving: Vec::new() })))
}
