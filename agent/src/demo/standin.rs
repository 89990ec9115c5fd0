//! A stand-in for an apiserver: TLS, `/readyz`, and its own name as the answer to everything else. A process
//! of its own, so that it can be killed, hung and stopped for real.
//!
//! It stops as an apiserver does: at SIGTERM `/readyz` fails while it still serves, and only then it closes.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use rustls::ServerConfig;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio::net::{TcpListener, TcpStream};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio_rustls::TlsAcceptor;

use super::{pki, process};
use crate::http::{self, Request, Response};

/// How long it still serves after SIGTERM: as `--shutdown-delay-duration`.
const DELAY: Duration = Duration::from_secs(3);

/// Longest wait for connections to end after that.
const GRACE: Duration = Duration::from_millis(500);

/// Longest handshake.
const HANDSHAKE: Duration = Duration::from_secs(5);

/// Concurrent connections. A demo has a dozen; more are refused rather than kept.
const MAX_CONNECTIONS: usize = 1_000;

/// Options of a stand-in.
#[derive(Debug)]
pub(crate) struct StandInOptions {
    /// Where it listens.
    pub(crate) listen: SocketAddr,
    /// Its name.
    pub(crate) name: String,
    /// PEM files of its certificate and key; `None`: it makes its own.
    pub(crate) files: Option<(PathBuf, PathBuf)>,
}

/// Serves until SIGTERM.
pub(crate) async fn run(standin: StandInOptions) -> anyhow::Result<()> {
    process::die_with_parent();
    let tls = tls(&standin)?;
    let listener = TcpListener::bind(standin.listen).await.with_context(|| {
        format!("can't listen on {}: choose an address and port that are free", standin.listen)
    })?;
    let mut term = signal(SignalKind::terminate())?;
    let (phase, seen) = watch::channel(DrainPhase::Serving);
    let serving = serve(listener, tls, standin.name.into(), seen);
    let leaving = async {
        term.recv().await;
        phase.send_replace(DrainPhase::Leaving);
        tokio::time::sleep(DELAY).await;
        phase.send_replace(DrainPhase::Gone);
        tokio::time::sleep(GRACE).await;
    };
    tokio::select! {
        () = serving => {}
        () = leaving => {}
    }
    Ok(())
}

/// Phases of its shutdown.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum DrainPhase {
    /// It serves.
    Serving,
    /// It serves, and reports not ready.
    Leaving,
    /// It accepts nothing new, and closes its connections.
    Gone,
}

/// Serves until it is gone and all its connections have ended.
pub(super) async fn serve(
    listener: TcpListener,
    tls: Arc<ServerConfig>,
    name: Arc<str>,
    phase: watch::Receiver<DrainPhase>,
) {
    let mut connections = JoinSet::new();
    let mut accepting = phase.clone();
    loop {
        tokio::select! {
            accepted = listener.accept() => match accepted {
                Ok((stream, _)) if connections.len() < MAX_CONNECTIONS => {
                    let (tls, name) = (TlsAcceptor::from(Arc::clone(&tls)), Arc::clone(&name));
                    connections.spawn(connection(stream, tls, name, phase.clone()));
                }
                Ok(_) => {}
                // Out of descriptors, most likely: wait for some to be released instead of spinning.
                Err(_) => tokio::time::sleep(Duration::from_millis(50)).await,
            },
            Some(_) = connections.join_next() => {}
            () = gone(&mut accepting) => break,
        }
    }
    drop(listener);
    while connections.join_next().await.is_some() {}
}

/// Waits for the end; a dropped sender means the same.
async fn gone(phase: &mut watch::Receiver<DrainPhase>) {
    let _ = phase.wait_for(|phase| *phase == DrainPhase::Gone).await;
}

async fn connection(
    stream: TcpStream,
    tls: TlsAcceptor,
    name: Arc<str>,
    mut phase: watch::Receiver<DrainPhase>,
) {
    let Ok(Ok(stream)) = tokio::time::timeout(HANDSHAKE, tls.accept(stream)).await else { return };
    let now = phase.clone();
    let handler = Arc::new(move |request: Request| {
        let answer = answer(&request, &name, *now.borrow());
        Box::pin(async move { answer }) as http::BoxFuture<Response>
    });
    http::serve(Box::new(stream), handler, Box::pin(async move { gone(&mut phase).await })).await;
}

fn answer(request: &Request, name: &str, phase: DrainPhase) -> Response {
    let (status, text) = match (request.uri().path(), phase) {
        ("/readyz", DrainPhase::Serving) => (200, "ok".to_owned()),
        ("/readyz", _) => (500, "[+]ping ok\n[-]shutdown failed: reason withheld\n".to_owned()),
        _ => (200, format!("{name}\n")),
    };
    http::text(status, "text/plain", text)
}

fn tls(standin: &StandInOptions) -> anyhow::Result<Arc<ServerConfig>> {
    let (cert, key) = match &standin.files {
        Some((cert, key)) => {
            let read = |file: &PathBuf| {
                std::fs::read_to_string(file).with_context(|| format!("can't read {}", file.display()))
            };
            (read(cert)?, read(key)?)
        }
        None => {
            let made = pki::make(&[standin.listen.ip(), IpAddr::V4(Ipv4Addr::LOCALHOST)])?;
            (made.cert, made.key)
        }
    };
    server_config(&cert, &key)
}

/// TLS with this certificate and key, PEM.
pub(super) fn server_config(cert: &str, key: &str) -> anyhow::Result<Arc<ServerConfig>> {
    let chain = CertificateDer::pem_slice_iter(cert.as_bytes())
        .collect::<Result<Vec<_>, _>>()
        .context("the certificate is not a PEM file")?;
    let key = PrivateKeyDer::from_pem_slice(key.as_bytes()).context("the key is not a PEM file")?;
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .with_no_client_auth()
        .with_single_cert(chain, key)?;
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(Arc::new(config))
}
