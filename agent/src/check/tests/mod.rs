//! A server that plays the apiserver, with its own CA; and shared test helpers.

mod files;
mod node;
mod outcomes;
mod sessions;

use std::net::SocketAddr;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::service::service_fn;
use hyper::{Request, Response, header};
use hyper_util::rt::TokioIo;
use proto::cause::{Cause, TlsFault};
use proto::health::{CheckAnswer, CheckOutcome};
use proto::service::{Check, CheckKind, HttpCheck, TlsCheck};
use proto::time::Moment;
use rcgen::{BasicConstraints, CertificateParams, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::{ServerConfig, WebPkiClientVerifier};
use rustls::{HandshakeKind, RootCertStore, SupportedProtocolVersion};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::AbortHandle;
use tokio_rustls::TlsAcceptor;

use super::probe::Probe;

/// A CA, and what it signs.
struct Pki {
    issuer: Issuer<'static, KeyPair>,
    pem: String,
}

/// A certificate and its key, PEM.
struct Pair {
    cert: String,
    key: String,
}

impl Pki {
    fn new() -> Pki {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let pem = params.self_signed(&key).unwrap().pem();
        Pki { issuer: Issuer::new(params, key), pem }
    }

    fn server(&self, names: &[&str]) -> Pair {
        self.issue(names, |params| params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth])
    }

    fn client(&self) -> Pair {
        self.issue(&[], |params| params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth])
    }

    fn issue(&self, names: &[&str], shape: impl FnOnce(&mut CertificateParams)) -> Pair {
        let names: Vec<String> = names.iter().map(|&name| name.to_owned()).collect();
        let mut params = CertificateParams::new(names).unwrap();
        shape(&mut params);
        let key = KeyPair::generate().unwrap();
        Pair { cert: params.signed_by(&key, &self.issuer).unwrap().pem(), key: key.serialize_pem() }
    }

    fn roots(&self) -> Arc<RootCertStore> {
        let mut roots = RootCertStore::empty();
        roots.add(CertificateDer::from_pem_slice(self.pem.as_bytes()).unwrap()).unwrap();
        Arc::new(roots)
    }
}

impl Pair {
    fn der(&self) -> Vec<u8> {
        CertificateDer::from_pem_slice(self.cert.as_bytes()).unwrap().to_vec()
    }

    fn tls(&self, clients: Clients<'_>) -> Arc<ServerConfig> {
        self.tls_of(rustls::DEFAULT_VERSIONS, clients)
    }

    fn tls_of(
        &self,
        versions: &[&'static SupportedProtocolVersion],
        clients: Clients<'_>,
    ) -> Arc<ServerConfig> {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let builder = ServerConfig::builder_with_provider(Arc::clone(&provider))
            .with_protocol_versions(versions)
            .unwrap();
        let verifier = |pki: &Pki| WebPkiClientVerifier::builder_with_provider(pki.roots(), provider.clone());
        let builder = match clients {
            Clients::Ignored => builder.with_no_client_auth(),
            Clients::Asked(pki) => {
                builder.with_client_cert_verifier(verifier(pki).allow_unauthenticated().build().unwrap())
            }
            Clients::Required(pki) => builder.with_client_cert_verifier(verifier(pki).build().unwrap()),
        };
        let chain = vec![CertificateDer::from_pem_slice(self.cert.as_bytes()).unwrap()];
        let key = PrivateKeyDer::from_pem_slice(self.key.as_bytes()).unwrap();
        Arc::new(builder.with_single_cert(chain, key).unwrap())
    }
}

/// What the server requires of its clients.
enum Clients<'a> {
    Ignored,
    Asked(&'a Pki),
    Required(&'a Pki),
}

/// What a request contained.
#[derive(Debug, Clone)]
struct Seen {
    path: String,
    host: String,
    client: Option<Vec<u8>>,
    /// The TLS session of an earlier connection was resumed.
    resumed: bool,
}

/// Answers every request with the same status and text, until it is dropped.
struct Server {
    address: SocketAddr,
    answer: Arc<Mutex<(u16, &'static str)>>,
    seen: Arc<Mutex<Vec<Seen>>>,
    task: AbortHandle,
}

impl Drop for Server {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Server {
    async fn start(tls: Option<Arc<ServerConfig>>, status: u16, text: &'static str) -> Server {
        Server::at("127.0.0.1:0", tls, status, text, Duration::ZERO).await
    }

    async fn at(
        address: &str,
        tls: Option<Arc<ServerConfig>>,
        status: u16,
        text: &'static str,
        delay: Duration,
    ) -> Server {
        let listener = TcpListener::bind(address).await.unwrap();
        let address = listener.local_addr().unwrap();
        let answer = Arc::new(Mutex::new((status, text)));
        let seen = Arc::new(Mutex::new(Vec::new()));
        let shared = (Arc::clone(&answer), Arc::clone(&seen));
        let task = tokio::spawn(async move {
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                let (answer, seen) = shared.clone();
                tokio::spawn(connection(stream, tls.clone(), answer, seen, delay));
            }
        });
        Server { address, answer, seen, task: task.abort_handle() }
    }

    fn say(&self, status: u16, text: &'static str) {
        *self.answer.lock().unwrap() = (status, text);
    }

    fn last(&self) -> Seen {
        self.seen.lock().unwrap().last().unwrap().clone()
    }
}

async fn connection(
    stream: TcpStream,
    tls: Option<Arc<ServerConfig>>,
    answer: Arc<Mutex<(u16, &'static str)>>,
    seen: Arc<Mutex<Vec<Seen>>>,
    delay: Duration,
) {
    let Some(tls) = tls else { return http(stream, (None, false), answer, seen, delay).await };
    let Ok(stream) = TlsAcceptor::from(tls).accept(stream).await else { return };
    let session = stream.get_ref().1;
    let client = session.peer_certificates().map(|chain| chain[0].to_vec());
    let resumed = session.handshake_kind() == Some(HandshakeKind::Resumed);
    http(stream, (client, resumed), answer, seen, delay).await;
}

async fn http<S>(
    stream: S,
    (client, resumed): (Option<Vec<u8>>, bool),
    answer: Arc<Mutex<(u16, &'static str)>>,
    seen: Arc<Mutex<Vec<Seen>>>,
    delay: Duration,
) where
    S: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin,
{
    let service = service_fn(|request: Request<Incoming>| {
        let host = request.headers().get(header::HOST).unwrap().to_str().unwrap().to_owned();
        let path = request.uri().path().to_owned();
        seen.lock().unwrap().push(Seen { path, host, client: client.clone(), resumed });
        let (status, text) = *answer.lock().unwrap();
        async move {
            tokio::time::sleep(delay).await;
            Response::builder().status(status).body(Full::new(Bytes::from(text)))
        }
    });
    let _ = hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), service).await;
}

fn readyz() -> HttpCheck {
    HttpCheck { path: "/readyz".into(), expect: "200".parse().unwrap() }
}

fn https(tls: TlsCheck) -> Check {
    Check { kind: CheckKind::Https(readyz(), tls), ..Check::default() }
}

fn discover() -> TlsCheck {
    TlsCheck { discover: true, ..TlsCheck::default() }
}

/// One check, without any of Kubernetes' files.
async fn once(check: &Check, target: SocketAddr) -> CheckOutcome {
    Probe::new(check, Path::new("/nonexistent")).check(Moment::ZERO, target, Box::new(|_| ())).await
}

fn write(root: &Path, file: &str, text: &str) -> String {
    let path = root.join(file);
    std::fs::create_dir_all(path.parent().unwrap()).unwrap();
    std::fs::write(&path, text).unwrap();
    path.to_str().unwrap().to_owned()
}
