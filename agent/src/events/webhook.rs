//! The webhook: each event as the body of a POST, retried until it is accepted or too old.
//!
//! One task with a queue. Each attempt is a connection of its own: events are rare, and a server that
//! restarted meanwhile is found again.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::BoxFuture;
use http_body_util::Full;
use hyper::body::Bytes;
use hyper::{Request, header};
use proto::cause::Reason;
use proto::config::WebhookConfig;
use proto::event::Event;
use proto::problem::{Problem, ProblemCode};
use rustls::pki_types::pem::{self, PemObject};
use rustls::pki_types::{CertificateDer, InvalidDnsNameError, ServerName};
use rustls::{ClientConfig, RootCertStore};
use tokio::net::TcpStream;
use tokio::sync::mpsc;
use tokio_rustls::TlsConnector;
use tokio_util::sync::{CancellationToken, DropGuard};

use super::SinkErrors;
use crate::http::{self, HttpStream};
use crate::lifecycle::{Lifecycle, wall};

/// Its name in problems.
const WEBHOOK: &str = "webhook";

/// Events queued while the server is away; later ones are dropped.
const QUEUE: usize = 64;

/// Longest duration of one attempt.
const PATIENCE: Duration = Duration::from_secs(10);

/// Between attempts: from the first, doubled, up to the last.
const PAUSES: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(60));

/// An event that could not be delivered for this long is of no use to anyone.
const STALE: Duration = Duration::from_secs(15 * 60);

/// Where Linux distributions keep the CAs that the system trusts.
const SYSTEM_CAS: [&str; 4] = [
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/pki/tls/certs/ca-bundle.crt",
    "/etc/ssl/ca-bundle.pem",
    "/etc/ssl/cert.pem",
];

/// Resolves a host and a port to addresses.
pub(crate) type Resolve =
    Arc<dyn Fn(String) -> BoxFuture<'static, Result<Vec<std::net::SocketAddr>, Reason>> + Send + Sync>;

/// The queue of the webhook. When it is dropped, queued events are discarded: its address was wrong or is no
/// longer configured.
pub(super) struct WebhookSender {
    pub(super) webhook: WebhookConfig,
    queue: mpsc::Sender<Arc<Event>>,
    dropped: u64,
    sink_errors: SinkErrors,
    _gone: DropGuard,
}

impl WebhookSender {
    /// Starts the task.
    pub(super) fn spawn(
        webhook: WebhookConfig,
        resolve: Resolve,
        sink_errors: SinkErrors,
        life: &Lifecycle,
    ) -> WebhookSender {
        let (queue, events) = mpsc::channel::<Arc<Event>>(QUEUE);
        let (over, said, to) = (life.shutdown.clone(), sink_errors.clone(), webhook.clone());
        let gone = CancellationToken::new();
        let ended = gone.clone();
        life.supervise("webhook", (events, resolve), move |(events, resolve)| {
            let (over, said, to, ended) = (over.clone(), said.clone(), to.clone(), ended.clone());
            Box::pin(async move {
                let work = async {
                    while let Some(event) = events.recv().await {
                        deliver(&to, resolve, &event, &said).await;
                    }
                };
                tokio::select! {
                    () = work => {}
                    () = ended.cancelled() => {}
                    () = over.cancelled() => return,
                }
                // It is no longer configured, and so no problem.
                said.resolved(ProblemCode::EventsDropped, WEBHOOK);
                said.resolved(ProblemCode::Webhook, "");
            })
        });
        WebhookSender { webhook, queue, dropped: 0, sink_errors, _gone: gone.drop_guard() }
    }

    /// Queues an event, or counts it as dropped.
    pub(super) fn enqueue(&mut self, event: &Arc<Event>) {
        if self.queue.try_send(event.clone()).is_err() {
            self.dropped += 1;
            let detail = format!("the webhook is too slow: {} events were dropped", self.dropped);
            self.sink_errors.report_problem(Problem::new(ProblemCode::EventsDropped, detail).about(WEBHOOK));
        }
    }
}

/// Why an attempt failed.
#[derive(Debug, thiserror::Error)]
enum DeliveryError {
    #[error("no answer in {}", proto::time::human(PATIENCE))]
    TimedOut,
    #[error("{0}")]
    Resolve(Reason),
    #[error(transparent)]
    Io(#[from] io::Error),
    #[error(transparent)]
    Tls(#[from] TlsError),
    #[error(transparent)]
    Name(#[from] InvalidDnsNameError),
    #[error("the event can't be written as JSON: {0}")]
    Json(#[from] serde_json::Error),
    /// Of the configuration, which has been checked.
    #[error("no request can be made of its address: {0}")]
    Address(#[from] hyper::http::Error),
    #[error("the response is not HTTP: {0}")]
    NotHttp(hyper::Error),
    #[error("the connection broke: {}", cause(.0))]
    Broken(hyper::Error),
    /// The server may accept it later.
    #[error("it answered {0}")]
    Busy(u16),
    /// The server has read it and refuses it.
    #[error("it answered {0}; the event is dropped")]
    Refused(u16),
}

impl From<hyper::Error> for DeliveryError {
    fn from(error: hyper::Error) -> DeliveryError {
        if error.is_parse() { DeliveryError::NotHttp(error) } else { DeliveryError::Broken(error) }
    }
}

/// The socket's error, if it was one.
fn cause(error: &hyper::Error) -> String {
    std::error::Error::source(error).map_or_else(|| error.to_string(), ToString::to_string)
}

impl DeliveryError {
    /// Whether a retry may succeed.
    fn may_pass(&self) -> bool {
        !matches!(
            self,
            DeliveryError::Refused(_)
                | DeliveryError::Name(_)
                | DeliveryError::Json(_)
                | DeliveryError::Address(_)
        )
    }
}

/// Why TLS can't start.
#[derive(Debug, thiserror::Error)]
enum TlsError {
    #[error("this system has no CA bundle; set webhook-ca-file")]
    NoList,
    #[error("the CA file {}: {source}", file.display())]
    File { file: PathBuf, source: pem::Error },
    #[error("the CA file {} contains no certificate", .0.display())]
    Empty(PathBuf),
    #[error("the CA file can't be read: {0}")]
    Task(#[from] tokio::task::JoinError),
    #[error(transparent)]
    Rustls(#[from] rustls::Error),
}

async fn deliver(webhook: &WebhookConfig, resolve: &Resolve, event: &Event, sink_errors: &SinkErrors) {
    let mut pause = PAUSES.0;
    loop {
        let attempt = tokio::time::timeout(PATIENCE, post(webhook, resolve, event)).await;
        let Err(failure) = attempt.unwrap_or(Err(DeliveryError::TimedOut)) else {
            return sink_errors.resolved(ProblemCode::Webhook, "");
        };
        let detail = format!("the webhook {} failed: {failure}", webhook.shown());
        sink_errors.report_problem(Problem::new(ProblemCode::Webhook, detail));
        let age = Duration::from_millis(wall().0.saturating_sub(event.time_unix_ms.0));
        if !failure.may_pass() || age > STALE {
            return;
        }
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(PAUSES.1);
    }
}

async fn post(webhook: &WebhookConfig, resolve: &Resolve, event: &Event) -> Result<(), DeliveryError> {
    let at = format!("{}:{}", webhook.host, webhook.port);
    let addresses = resolve(at).await.map_err(DeliveryError::Resolve)?;
    let mut stream = Err(io::Error::new(io::ErrorKind::NotFound, "its name does not resolve to an address"));
    for address in addresses {
        stream = tokio::time::timeout(PATIENCE / 4, TcpStream::connect(address))
            .await
            .unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()));
        if stream.is_ok() {
            break;
        }
    }
    let stream = stream?;
    let request = request(webhook, event)?;
    let stream: Box<dyn HttpStream> = if webhook.tls {
        let config = tls(webhook).await?;
        let bare = webhook.host.trim_start_matches('[').trim_end_matches(']').to_owned();
        let name = ServerName::try_from(bare)?;
        Box::new(TlsConnector::from(Arc::new(config)).connect(name, stream).await?)
    } else {
        Box::new(stream)
    };
    // The body of the response is ignored.
    match http::ask(stream, request, 0).await?.0 {
        200..=299 => Ok(()),
        status @ (408 | 429 | 500..) => Err(DeliveryError::Busy(status)),
        status => Err(DeliveryError::Refused(status)),
    }
}

fn request(webhook: &WebhookConfig, event: &Event) -> Result<Request<Full<Bytes>>, DeliveryError> {
    let WebhookConfig { host, port, path, .. } = webhook;
    // What people paste and no URI may hold (RFC 3986, 2).
    let path = [('"', "%22"), ('<', "%3C"), ('>', "%3E"), ('`', "%60")]
        .iter()
        .fold(path.clone(), |path, (held, written)| path.replace(*held, written));
    let request = Request::post(path)
        .header(header::HOST, format!("{host}:{port}"))
        .header(header::USER_AGENT, concat!("agent/", env!("CARGO_PKG_VERSION")))
        .header(header::CONTENT_TYPE, "application/json")
        .header(header::CONNECTION, "close");
    Ok(request.body(Full::from(serde_json::to_vec(event)?))?)
}

/// TLS with the current CAs of the file: events are rare, and CAs change while the agent runs.
async fn tls(webhook: &WebhookConfig) -> Result<ClientConfig, TlsError> {
    let named = webhook.ca_file.clone();
    let read = tokio::task::spawn_blocking(move || {
        let file = match &named {
            Some(file) => Path::new(file),
            None => SYSTEM_CAS.iter().map(Path::new).find(|path| path.is_file()).ok_or(TlsError::NoList)?,
        };
        let bad = |source| TlsError::File { file: file.to_owned(), source };
        let mut roots = RootCertStore::empty();
        for one in CertificateDer::pem_file_iter(file).map_err(bad)? {
            // One unreadable CA of a hundred is no reason to refuse the others.
            let _ = roots.add(one.map_err(bad)?);
        }
        if roots.is_empty() { Err(TlsError::Empty(file.to_owned())) } else { Ok(roots) }
    });
    let roots = read.await??;
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let versions = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions();
    Ok(versions?.with_root_certificates(roots).with_no_client_auth())
}

#[cfg(test)]
#[path = "webhook_tests.rs"]
mod tests;
