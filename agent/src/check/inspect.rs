//! Inspects an apiserver without credentials: its certificate, and its response to an anonymous request.
//! Nothing is verified, since this looks for what is wrong.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use proto::service::TlsCheck;
use rustls::ClientConfig;
use rustls::pki_types::ServerName;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use super::credentials::CredentialPaths;
use super::tls::Unverified;

/// Longest time for all of it: a person is waiting.
const WITHIN: Duration = Duration::from_secs(2);

/// What was found.
pub(crate) struct Look {
    /// The certificate, as DER.
    pub(crate) certificate: Option<Vec<u8>>,
    /// The status of the response to `GET /readyz`.
    pub(crate) readyz: Option<u16>,
    /// There is a client certificate that the check can show.
    pub(crate) credentials: bool,
}

/// Inspects the apiserver at `at`; `None`: nothing accepts connections there. The check's credentials are
/// looked for below `root`.
pub(crate) async fn inspect(at: SocketAddr, check: &TlsCheck, root: &Path) -> Option<Look> {
    let places = CredentialPaths::new(check, root);
    let credentials = tokio::task::spawn_blocking(move || places.read().client.is_some());
    let seen = tokio::time::timeout(WITHIN, ask(at)).await.ok()??;
    let (certificate, readyz) = seen;
    // A hung disk must not hold up the caller.
    let credentials = tokio::time::timeout(WITHIN, credentials).await;
    Some(Look { certificate, readyz, credentials: matches!(credentials, Ok(Ok(true))) })
}

async fn ask(at: SocketAddr) -> Option<(Option<Vec<u8>>, Option<u16>)> {
    let stream = TcpStream::connect(at).await.ok()?;
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut config = ClientConfig::builder_with_provider(Arc::clone(&provider))
        .with_safe_default_protocol_versions()
        .ok()?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(Unverified(provider)))
        .with_no_client_auth();
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    let connector = TlsConnector::from(Arc::new(config));
    let Ok(mut stream) = connector.connect(ServerName::from(at.ip()), stream).await else {
        return Some((None, None));
    };
    let shown = stream.get_ref().1.peer_certificates().and_then(<[_]>::first);
    let certificate = shown.map(|one| one.as_ref().to_vec());
    let request = format!("GET /readyz HTTP/1.1\r\nHost: {at}\r\nConnection: close\r\n\r\n");
    let mut head = [0; 12];
    let answered = async {
        stream.write_all(request.as_bytes()).await.ok()?;
        stream.read_exact(&mut head).await.ok()?;
        // `HTTP/1.1 401`
        std::str::from_utf8(head.get(9..)?).ok()?.parse().ok()
    };
    let readyz = answered.await;
    Some((certificate, readyz))
}
