//! The built-in client: like a kubelet, it only knows its node's proxy.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Context;
use http_body_util::{BodyExt, Empty, Limited};
use hyper::body::Bytes;
use hyper::client::conn::http1::{self, SendRequest};
use hyper::{Request, StatusCode, header};
use hyper_util::rt::TokioIo;
use rustls::client::Resumption;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, InvalidDnsNameError, ServerName};
use rustls::{ClientConfig, RootCertStore};
use tokio::net::TcpStream;
use tokio::sync::mpsc;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use super::pki::KUBERNETES;

/// Time between two requests.
pub(super) const EVERY: Duration = Duration::from_millis(100);

/// Longest duration of a request: beyond that it has failed. Shorter than kubectl's time-out.
const TIMEOUT: Duration = Duration::from_secs(2);

/// Pause before the held connection is reopened.
const AGAIN_AFTER: Duration = Duration::from_millis(200);

/// Longest answer: a name.
const MAX_BODY: usize = 1024;

type ProxyConnection = http1::Connection<TokioIo<TlsStream<TcpStream>>, Empty<Bytes>>;

/// Why a request failed.
#[derive(Debug, thiserror::Error)]
pub(super) enum RequestError {
    #[error("{}", words(.0))]
    Connection(#[from] io::Error),
    #[error("no answer in {} s", TIMEOUT.as_secs())]
    TimedOut,
    #[error("closed")]
    Cut,
    #[error("status {0}")]
    Status(StatusCode),
    #[error(transparent)]
    Name(#[from] InvalidDnsNameError),
    #[error(transparent)]
    Request(#[from] hyper::http::Error),
    #[error(transparent)]
    Http(#[from] hyper::Error),
    #[error(transparent)]
    Body(Box<dyn std::error::Error + Send + Sync>),
}

/// Reports of the client.
#[derive(Debug)]
pub(super) enum ClientReport {
    /// A request has ended.
    Request {
        /// Which.
        number: u64,
        /// How long it took.
        took: Duration,
        /// Who answered, or why it failed.
        result: Result<String, RequestError>,
    },
    /// The held connection is open, and to whom.
    Held(String),
    /// The held connection has ended.
    Lost,
}

/// Connects through one proxy.
#[derive(Clone)]
pub(super) struct Client {
    proxy: SocketAddr,
    tls: Arc<ClientConfig>,
    told: mpsc::Sender<ClientReport>,
}

impl Client {
    /// A client that trusts `ca` (PEM).
    pub(super) fn new(
        proxy: SocketAddr,
        ca: &str,
        told: mpsc::Sender<ClientReport>,
    ) -> anyhow::Result<Client> {
        let mut roots = RootCertStore::empty();
        roots.add(CertificateDer::from_pem_slice(ca.as_bytes()).context("the demo's own CA is not PEM")?)?;
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let mut tls = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()?
            .with_root_certificates(roots)
            .with_no_client_auth();
        // Every connection does a full handshake, as from a new client each time.
        tls.resumption = Resumption::disabled();
        Ok(Client { proxy, tls: Arc::new(tls), told })
    }

    /// One request on a connection of its own.
    pub(super) async fn request(self, number: u64) {
        let begun = Instant::now();
        let once = async {
            let (mut sender, connection) = self.connect().await?;
            tokio::pin!(connection);
            let ask = ask(&mut sender);
            tokio::pin!(ask);
            tokio::select! {
                biased;
                answer = &mut ask => answer,
                _ = &mut connection => ask.await,
            }
        };
        let result = match tokio::time::timeout(TIMEOUT, once).await {
            Ok(result) => result,
            Err(_) => Err(RequestError::TimedOut),
        };
        let _ = self.told.send(ClientReport::Request { number, took: begun.elapsed(), result }).await;
    }

    /// One connection that is held, as a watch is, and reopened whenever it ends.
    pub(super) async fn hold(self) {
        loop {
            if let Ok(Ok((sender, connection, name))) = tokio::time::timeout(TIMEOUT, self.open()).await {
                let _ = self.told.send(ClientReport::Held(name)).await;
                // Polled without a request, it ends when the other side closes it.
                let _ = connection.await;
                drop(sender);
                let _ = self.told.send(ClientReport::Lost).await;
            }
            tokio::time::sleep(AGAIN_AFTER).await;
        }
    }

    async fn open(&self) -> Result<(SendRequest<Empty<Bytes>>, ProxyConnection, String), RequestError> {
        let (mut sender, mut connection) = self.connect().await?;
        let name = tokio::select! {
            name = ask(&mut sender) => name?,
            _ = &mut connection => return Err(RequestError::Cut),
        };
        Ok((sender, connection, name))
    }

    async fn connect(&self) -> Result<(SendRequest<Empty<Bytes>>, ProxyConnection), RequestError> {
        let stream = TcpStream::connect(self.proxy).await?;
        let name = ServerName::try_from(KUBERNETES)?;
        let connector = TlsConnector::from(Arc::clone(&self.tls));
        let stream = connector.connect(name, stream).await?;
        Ok(http1::handshake(TokioIo::new(stream)).await?)
    }
}

/// Asks the server for its name.
async fn ask(sender: &mut SendRequest<Empty<Bytes>>) -> Result<String, RequestError> {
    let request = Request::get("/").header(header::HOST, KUBERNETES).body(Empty::new())?;
    let response = sender.send_request(request).await?;
    let status = response.status();
    let body = Limited::new(response.into_body(), MAX_BODY).collect().await;
    let body = body.map_err(RequestError::Body)?.to_bytes();
    if status.is_success() {
        Ok(String::from_utf8_lossy(&body).trim().to_owned())
    } else {
        Err(RequestError::Status(status))
    }
}

fn words(error: &io::Error) -> String {
    match error.get_ref() {
        Some(inner) => inner.to_string(),
        None => error.kind().to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::super::standin::{DrainPhase, serve, server_config};
    use super::*;
    use crate::demo::pki;
    use tokio::net::TcpListener;
    use tokio::sync::watch;

    #[tokio::test]
    async fn it_reports_who_answered_and_when_it_was_disconnected() {
        let pki = pki::make(&[]).unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (phase, seen) = watch::channel(DrainPhase::Serving);
        let tls = server_config(&pki.cert, &pki.key).unwrap();
        let server = tokio::spawn(serve(listener, tls, "m7".into(), seen));
        let (told, mut heard) = mpsc::channel(8);
        let client = Client::new(address, &pki.ca, told).unwrap();

        let holding = tokio::spawn(client.clone().hold());
        assert!(matches!(heard.recv().await, Some(ClientReport::Held(name)) if name == "m7"));
        client.clone().request(3).await;
        let Some(ClientReport::Request { number: 3, result, .. }) = heard.recv().await else {
            panic!("no request")
        };
        assert_eq!(result.unwrap(), "m7");
        // Draining, it still serves; gone, it closes held connections.
        phase.send_replace(DrainPhase::Leaving);
        client.clone().request(4).await;
        assert!(matches!(heard.recv().await, Some(ClientReport::Request { result: Ok(_), .. })));
        phase.send_replace(DrainPhase::Gone);
        assert!(matches!(heard.recv().await, Some(ClientReport::Lost)));
        holding.abort();
        server.await.unwrap();
        client.clone().request(5).await;
        let Some(ClientReport::Request { result, .. }) = heard.recv().await else { panic!("no request") };
        let refused = |error: &io::Error| error.kind() == io::ErrorKind::ConnectionRefused;
        assert!(matches!(&result, Err(RequestError::Connection(error)) if refused(error)), "{result:?}");

        // Another CA's server is not accepted.
        let other = Client::new(address, &pki::make(&[]).unwrap().ca, client.told.clone()).unwrap();
        let listener = TcpListener::bind(address).await.unwrap();
        let (_phase, seen) = watch::channel(DrainPhase::Serving);
        let tls = server_config(&pki.cert, &pki.key).unwrap();
        let server = tokio::spawn(serve(listener, tls, "m7".into(), seen));
        other.request(6).await;
        assert!(matches!(heard.recv().await, Some(ClientReport::Request { result: Err(_), .. })));
        server.abort();
    }

    #[tokio::test]
    async fn readyz_fails_while_it_drains() {
        let pki = pki::make(&[]).unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (phase, seen) = watch::channel(DrainPhase::Serving);
        let tls = server_config(&pki.cert, &pki.key).unwrap();
        let server = tokio::spawn(serve(listener, tls, "m1".into(), seen));
        let (told, _heard) = mpsc::channel(8);
        let client = Client::new(address, &pki.ca, told).unwrap();
        for (now, status) in [(DrainPhase::Serving, 200), (DrainPhase::Leaving, 500)] {
            phase.send_replace(now);
            let (mut sender, connection) = client.connect().await.unwrap();
            tokio::spawn(connection);
            let request = Request::get("/readyz").header(header::HOST, "x").body(Empty::new()).unwrap();
            assert_eq!(sender.send_request(request).await.unwrap().status(), status);
        }
        server.abort();
    }
}
