//! TLS for checks: how the server is verified, what it is shown, and what a failure means.

use std::io;
use std::net::IpAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use proto::cause::{Cause, TlsFault};
use proto::health::{CheckAnswer, CheckOutcome};
use proto::service::TlsCheck;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{
    ClientSessionMemoryCache, ClientSessionStore, Resumption, VerifierBuilderError, WebPkiServerVerifier,
};
use rustls::crypto::{CryptoProvider, ring, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::sign::SingleCertAndKey;
use rustls::version::{TLS12, TLS13};
use rustls::{AlertDescription, CertificateError, ClientConfig, DigitallySignedStruct, SignatureScheme};
use tokio::task::JoinHandle;

use super::credentials::{CredentialPaths, FileStamp, FoundCredentials, tail};

/// The name that every Kubernetes apiserver's certificate carries, whatever its address is.
const KUBERNETES: &str = "kubernetes";

/// Longest time that a check waits for the files. They are few and small; anything slower is a hung disk, and
/// the files as read before are used.
const FILES_WITHIN: Duration = Duration::from_millis(250);

/// TLS ready for use, from the files as last read.
pub(super) struct ReadyTls {
    config: Arc<ClientConfig>,
    /// What earlier handshakes have left to resume.
    sessions: Arc<ClientSessionMemoryCache>,
    /// End of the path of the CA that the server is verified against; `None`: it is not verified.
    pub(super) ca: Option<String>,
    /// A client certificate is shown.
    pub(super) client: bool,
    /// A file that exists and could not be used, and why.
    pub(super) problem: Option<String>,
}

impl ReadyTls {
    /// Settings for a handshake in which the server shows and proves its certificate.
    pub(super) fn whole(&self, name: &ServerName<'static>) -> Arc<ClientConfig> {
        while self.sessions.take_tls13_ticket(name).is_some() {}
        self.sessions.remove_tls12_session(name);
        self.resuming()
    }

    /// Settings for a handshake that may resume an earlier one; it is a whole one if the server has given nothing to
    /// resume it with, or does not take it.
    pub(super) fn resuming(&self) -> Arc<ClientConfig> {
        self.config.clone()
    }
}

/// TLS from the newest files, or why that is impossible.
pub(super) type CurrentTls = Result<Arc<ReadyTls>, Unusable>;

/// Why a check can't start TLS.
#[derive(Debug, Clone, thiserror::Error)]
pub(super) enum Unusable {
    /// The server name is invalid.
    #[error("server-name \"{0}\" must be a host name or an address")]
    ServerName(String),
    /// The configured CA can't be read.
    #[error("{}", .0.as_deref().unwrap_or("cannot read the configured CA file"))]
    NoCa(Option<String>),
    /// The CA file contains nothing to verify with.
    #[error("{file}: {source}")]
    Verifier {
        /// The end of its path.
        file: String,
        /// rustls' error.
        source: Arc<VerifierBuilderError>,
    },
    /// rustls rejects its own settings.
    #[error("TLS: {0}")]
    Settings(#[from] rustls::Error),
    /// The files were never read.
    #[error("the disk does not respond")]
    Disk,
}

impl Unusable {
    /// The outcome of a check that can't start TLS.
    pub(super) fn outcome(&self) -> CheckOutcome {
        let cause = match self {
            Unusable::ServerName(_) => Cause::BadCheck,
            _ => Cause::NoCredentials,
        };
        CheckOutcome::new(CheckAnswer::NotReady, cause).with(self.to_string())
    }
}

/// Keeps TLS ready, and watches its files. They are read on tokio's blocking threads: a hung disk must not
/// hold up a thread that also carries the proxy.
pub(super) struct TlsFiles {
    server_name: Option<String>,
    discover: bool,
    job: Option<JoinHandle<TlsLoader>>,
    loader: Option<TlsLoader>,
    places: Arc<CredentialPaths>,
    current: Option<CurrentTls>,
}

impl TlsFiles {
    /// TLS as `check` wants it; Kubernetes' files are looked for below `root`.
    pub(super) fn new(check: &TlsCheck, root: &Path) -> TlsFiles {
        TlsFiles {
            server_name: check.server_name.clone(),
            discover: check.discover,
            job: None,
            loader: None,
            places: Arc::new(CredentialPaths::new(check, root)),
            current: None,
        }
    }

    /// The name that the server has to prove.
    pub(super) fn server_name(&self, target: IpAddr) -> Result<ServerName<'static>, Unusable> {
        let named = |name: &str| {
            ServerName::try_from(name.to_owned()).map_err(|_| Unusable::ServerName(name.to_owned()))
        };
        match &self.server_name {
            Some(name) => named(name),
            None if self.discover => named(KUBERNETES),
            None => Ok(ServerName::from(target)),
        }
    }

    /// The configured server name, also for the `Host` header.
    pub(super) fn configured_name(&self) -> Option<&str> {
        self.server_name.as_deref()
    }

    /// TLS from the files as they were read last, if they were.
    pub(super) async fn as_read(&mut self) -> CurrentTls {
        match &self.current {
            Some(Ok(ready)) => Ok(ready.clone()),
            _ => self.current().await,
        }
    }

    /// TLS from the current files. Stopping it anywhere is safe: a running job is kept and awaited again.
    pub(super) async fn current(&mut self) -> CurrentTls {
        let job = self.job.get_or_insert_with(|| {
            let mut loader = self.loader.take().unwrap_or_else(|| TlsLoader::new(Arc::clone(&self.places)));
            tokio::task::spawn_blocking(move || {
                loader.refresh();
                loader
            })
        });
        match tokio::time::timeout(FILES_WITHIN, job).await {
            Ok(joined) => {
                self.job = None;
                // A loader that panicked is replaced by a new one at the next check.
                if let Ok(loader) = joined {
                    self.current.clone_from(&loader.current);
                    self.loader = Some(loader);
                }
            }
            Err(_) => tracing::debug!("cannot read the credentials of a check at the moment"),
        }
        self.current.clone().unwrap_or(Err(Unusable::Disk))
    }
}

/// Reads the files again when one of them has changed.
struct TlsLoader {
    places: Arc<CredentialPaths>,
    stamps: Vec<Option<FileStamp>>,
    current: Option<CurrentTls>,
}

impl TlsLoader {
    fn new(places: Arc<CredentialPaths>) -> TlsLoader {
        TlsLoader { places, stamps: Vec::new(), current: None }
    }

    fn refresh(&mut self) {
        // Taken before reading: what changes meanwhile is read again at the next check.
        let stamps = self.places.stamps();
        if self.current.is_some() && stamps == self.stamps {
            return;
        }
        self.stamps = stamps;
        let found = self.places.read();
        for problem in &found.problems {
            tracing::warn!("unusable credentials of a check: {problem}");
        }
        let half_written = !found.problems.is_empty();
        if half_written && matches!(&self.current, Some(Ok(ready)) if ready.problem.is_none()) {
            // A rotation in progress: the old pair is better than half of the new one.
            return;
        }
        self.current = Some(build(found, self.places.names_a_ca()));
    }
}

/// Builds TLS from the files.
fn build(found: FoundCredentials, needs_ca: bool) -> CurrentTls {
    let problem = found.problems.into_iter().next();
    if needs_ca && found.ca.is_none() {
        return Err(Unusable::NoCa(problem));
    }
    let provider = Arc::new(ring::default_provider());
    let ca = found.ca.as_ref().map(|ca| tail(&ca.file));
    let verifier: Arc<dyn ServerCertVerifier> = match found.ca {
        Some(ca) => WebPkiServerVerifier::builder_with_provider(ca.roots, Arc::clone(&provider))
            .build()
            .map_err(|error| Unusable::Verifier { file: tail(&ca.file), source: Arc::new(error) })?,
        None => Arc::new(Unverified(Arc::clone(&provider))),
    };
    let builder = ClientConfig::builder_with_provider(provider)
        // Kubernetes' own minimum is 1.2.
        .with_protocol_versions(&[&TLS13, &TLS12])?
        .dangerous()
        .with_custom_certificate_verifier(verifier);
    let client = found.client.is_some();
    let mut config = match found.client {
        Some(key) => builder.with_client_cert_resolver(Arc::new(SingleCertAndKey::from(key))),
        None => builder.with_no_client_auth(),
    };
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    // Of one server, under one name.
    let sessions = Arc::new(ClientSessionMemoryCache::new(1));
    config.resumption = Resumption::store(sessions.clone());
    Ok(Arc::new(ReadyTls { config: Arc::new(config), sessions, ca, client, problem }))
}

/// Accepts any certificate, for services without a configured CA. The connection is still encrypted, and the
/// server still has to own the certificate's key. Only this node's own report depends on it.
#[derive(Debug)]
pub(super) struct Unverified(pub(super) Arc<CryptoProvider>);

impl ServerCertVerifier for Unverified {
    fn verify_server_cert(
        &self,
        _end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls12_signature(message, cert, dss, &self.0.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, cert, dss, &self.0.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}

/// The outcome of a failure, if it is one of TLS.
pub(super) fn outcome_of(error: &io::Error, ready: &ReadyTls, name: &ServerName<'_>) -> Option<CheckOutcome> {
    let error = error.get_ref()?.downcast_ref::<rustls::Error>()?;
    Some(match error {
        rustls::Error::InvalidCertificate(why) => certificate(why, ready, name),
        rustls::Error::InvalidMessage(_) => failed(TlsFault::NotTls),
        rustls::Error::AlertReceived(alert) => refused(*alert, ready),
        other => failed(TlsFault::Failed).with(other.to_string()),
    })
}

fn failed(fault: TlsFault) -> CheckOutcome {
    CheckOutcome::new(CheckAnswer::NotReady, Cause::Tls(fault))
}

/// A server that sends an alert is alive. If it is about the client's certificate, that is TLS' 401.
fn refused(alert: AlertDescription, ready: &ReadyTls) -> CheckOutcome {
    use AlertDescription as A;
    match alert {
        A::UnknownCA
        | A::BadCertificate
        | A::DecryptError
        | A::AccessDenied
        | A::CertificateUnknown
        | A::CertificateExpired
        | A::CertificateRevoked
        | A::UnsupportedCertificate
            if ready.client =>
        {
            CheckOutcome::new(CheckAnswer::Alive, Cause::Tls(TlsFault::ClientCertificateRejected))
        }
        // The last two are what servers sent before TLS 1.3 had an alert for it.
        A::CertificateRequired | A::BadCertificate | A::HandshakeFailure if !ready.client => {
            CheckOutcome::new(CheckAnswer::Alive, Cause::Tls(TlsFault::ClientCertificateRequired))
                .with(ready.problem.as_deref().unwrap_or("none found"))
        }
        _ => failed(TlsFault::Refused).with(format!("{alert:?}")),
    }
}

fn certificate(why: &CertificateError, ready: &ReadyTls, name: &ServerName<'_>) -> CheckOutcome {
    match why {
        CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. } => {
            failed(TlsFault::NameMismatch).with(format!("not for {}", name.to_str()))
        }
        CertificateError::Expired | CertificateError::ExpiredContext { .. } => failed(TlsFault::Expired),
        CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. } => {
            failed(TlsFault::NotYetValid)
        }
        // kubeadm gives every CA the same name, so another cluster's shows as a wrong signature.
        CertificateError::UnknownIssuer | CertificateError::BadSignature => {
            failed(TlsFault::UnknownCa).with(ready.ca.as_deref().unwrap_or_default())
        }
        CertificateError::InvalidPurpose | CertificateError::InvalidPurposeContext { .. } => {
            failed(TlsFault::NotForServers)
        }
        other => failed(TlsFault::Unverifiable).with(other.to_string()),
    }
}
