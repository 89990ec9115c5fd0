//! A stand-in for an apiserver that knows the endpoints of the Service `kubernetes` and the nodes: what masters' agents
//! read and put right. All instances of a lab share what they know, as apiservers share etcd.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;

use anyhow::{Context, Result};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::WebPkiClientVerifier;
use rustls::{RootCertStore, ServerConfig};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio_rustls::TlsAcceptor;

use super::certs::Certs;
use super::node::Node;

const ENDPOINTS: &str = "/api/v1/namespaces/default/endpoints/kubernetes";
const SLICES: &str = "/apis/discovery.k8s.io/v1/namespaces/default/endpointslices";

/// What is stored.
#[derive(Debug, Clone, Default)]
pub struct Stored {
    /// The Endpoints, as JSON.
    pub endpoints: Option<String>,
    /// The EndpointSlice, as JSON.
    pub slice: Option<String>,
    /// The list of nodes, as JSON.
    pub nodes: String,
    /// Writing is not allowed.
    pub read_only: bool,
    /// How often something was applied.
    pub applied: usize,
}

impl Stored {
    /// Writes both as an apiserver with the default reconciler does.
    pub fn lead_to(&mut self, ips: &[&str], port: u16) {
        let list =
            |form: &dyn Fn(&str) -> String| ips.iter().map(|ip| form(ip)).collect::<Vec<_>>().join(",");
        let ports = format!("[{{\"name\":\"https\",\"port\":{port},\"protocol\":\"TCP\"}}]");
        let addresses = list(&|ip| format!("{{\"ip\":\"{ip}\"}}"));
        self.endpoints = Some(format!("{{\"subsets\":[{{\"addresses\":[{addresses}],\"ports\":{ports}}}]}}"));
        let endpoints = list(&|ip| format!("{{\"addresses\":[\"{ip}\"]}}"));
        self.slice = Some(format!("{{\"endpoints\":[{endpoints}],\"ports\":{ports}}}"));
    }
}

/// The store of a lab's apiservers.
#[derive(Debug, Clone, Default)]
pub struct Store(Arc<Mutex<Stored>>);

impl Store {
    /// What is stored, to look at or to change.
    pub fn lock(&self) -> MutexGuard<'_, Stored> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The status and the body of an answer.
    fn answer(&self, method: &str, target: &str, body: String, known: bool) -> (u16, String) {
        let mut stored = self.lock();
        let path = target.split('?').next().unwrap_or_default();
        let is_write = method == "PATCH";
        let found = |body: &Option<String>| body.clone().map_or((404, "{}".to_owned()), |body| (200, body));
        match (is_write, path) {
            (false, "/readyz") => (200, "ok".to_owned()),
            _ if !known => (401, "{}".to_owned()),
            (true, _) if stored.read_only => (403, "{}".to_owned()),
            (true, ENDPOINTS) => {
                stored.applied += 1;
                stored.endpoints = Some(body);
                (200, "{}".to_owned())
            }
            (true, path) if path.starts_with(SLICES) => {
                stored.slice = Some(body);
                (200, "{}".to_owned())
            }
            (false, ENDPOINTS) => found(&stored.endpoints),
            (false, SLICES) => (200, format!("{{\"items\":[{}]}}", stored.slice.clone().unwrap_or_default())),
            (false, "/api/v1/nodes") => (200, stored.nodes.clone()),
            _ => (404, "{}".to_owned()),
        }
    }
}

/// A running instance; it ends when it is dropped.
pub struct ApiServer {
    stop: watch::Sender<bool>,
    thread: Option<JoinHandle<()>>,
}

impl ApiServer {
    pub(crate) fn start(node: &Node, certs: &Certs, store: &Store) -> Result<ApiServer> {
        let acceptor = TlsAcceptor::from(Arc::new(config(certs)?));
        let at = SocketAddr::new(node.mesh_ip(), 6443);
        let listener = node.inside(|| Ok(std::net::TcpListener::bind(at)?))?;
        listener.set_nonblocking(true)?;
        let (stop, stopped) = watch::channel(false);
        let (store, name) = (store.clone(), node.name.clone());
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let thread = std::thread::spawn(move || {
            runtime.block_on(serve(listener, acceptor, store, name, stopped));
        });
        Ok(ApiServer { stop, thread: Some(thread) })
    }
}

impl Drop for ApiServer {
    fn drop(&mut self) {
        let _ = self.stop.send(true);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn config(certs: &Certs) -> Result<ServerConfig> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut roots = RootCertStore::empty();
    for cert in CertificateDer::pem_file_iter(&certs.ca)? {
        roots.add(cert?)?;
    }
    let clients = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider.clone());
    let clients = clients.allow_unauthenticated().build()?;
    let chain = CertificateDer::pem_file_iter(&certs.server)?.collect::<Result<Vec<_>, _>>()?;
    let key = PrivateKeyDer::from_pem_file(&certs.server_key).context("the server's key")?;
    let builder = ServerConfig::builder_with_provider(provider).with_safe_default_protocol_versions()?;
    Ok(builder.with_client_cert_verifier(clients).with_single_cert(chain, key)?)
}

async fn serve(
    listener: std::net::TcpListener,
    acceptor: TlsAcceptor,
    store: Store,
    name: String,
    mut stopped: watch::Receiver<bool>,
) {
    let Ok(listener) = TcpListener::from_std(listener) else { return };
    let mut clients = tokio::task::JoinSet::new();
    loop {
        tokio::select! {
            Ok((stream, _)) = listener.accept() => {
                let (acceptor, store, name) = (acceptor.clone(), store.clone(), name.clone());
                clients.spawn(async move {
                    let _ = client(stream, acceptor, store, name).await;
                });
            }
            _ = stopped.changed() => return,
        }
        while clients.try_join_next().is_some() {}
    }
}

/// One request of one client.
async fn client(stream: TcpStream, acceptor: TlsAcceptor, store: Store, name: String) -> Result<()> {
    let mut stream = acceptor.accept(stream).await?;
    let known = stream.get_ref().1.peer_certificates().is_some();
    let (mut bytes, mut more) = (Vec::new(), [0; 4096]);
    let head = loop {
        let read = stream.read(&mut more).await?;
        anyhow::ensure!(read > 0 && bytes.len() < 1 << 16, "no request");
        bytes.extend_from_slice(more.get(..read).unwrap_or_default());
        if let Some(end) = bytes.windows(4).position(|four| four == b"\r\n\r\n") {
            break end + 4;
        }
    };
    let text = String::from_utf8_lossy(bytes.get(..head).unwrap_or_default()).into_owned();
    let length = text.lines().find_map(|line| {
        let (key, value) = line.split_once(':')?;
        key.eq_ignore_ascii_case("content-length").then(|| value.trim().parse::<usize>().ok())?
    });
    while bytes.len() < head + length.unwrap_or(0) {
        let read = stream.read(&mut more).await?;
        anyhow::ensure!(read > 0, "half a request");
        bytes.extend_from_slice(more.get(..read).unwrap_or_default());
    }
    let body = String::from_utf8_lossy(bytes.get(head..).unwrap_or_default()).into_owned();
    let mut words = text.split_whitespace();
    let (method, target) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
    let (status, body) = match target {
        "/who" => (200, format!("{name}\n")),
        target => store.answer(method, target, body, known),
    };
    let answer = format!(
        "HTTP/1.1 {status} X\r\ncontent-type: application/json\r\ncontent-length: {}\r\nconnection: close\r\n\r\n{body}",
        body.len()
    );
    stream.write_all(answer.as_bytes()).await?;
    stream.shutdown().await?;
    Ok(())
}
