//! One check of one service: connect, send a request, summarize the response.

use std::io;
use std::net::SocketAddr;
use std::path::Path;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use http_body_util::Full;
use hyper::body::Bytes;
use hyper::{Request, header};
use proto::cause::Cause;
use proto::handshake::SessionReuse;
use proto::health::{CheckAnswer as Found, CheckOutcome};
use proto::service::{Check, CheckKind, HttpCheck};
use proto::time::{Moment, human};
use rustls::pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use super::tls::{self, ReadyTls, TlsFiles};
use crate::faults;
use crate::http::{self, HttpStream};

/// Most bytes read of a response. An apiserver's whole list of failed checks has a few kilobytes.
const MAX_BODY: usize = 64 * 1024;

/// What becomes of a check's TLS hello.
#[derive(Debug, Clone, Copy)]
pub(super) enum HelloEvent {
    /// It is about to be sent.
    Sent,
    /// The first byte came back, or the connection was closed.
    Answered,
}

/// Is told what becomes of the hello.
pub(super) type HelloReporter = Box<dyn Fn(HelloEvent) + Send>;

/// Checks one service repeatedly.
pub(super) struct Probe {
    kind: ProbeKind,
    timeout: Duration,
}

enum ProbeKind {
    Tcp,
    Http(HttpCheck),
    Https(HttpCheck, Box<TlsFiles>, SessionReuse),
}

impl Probe {
    /// The probe that `check` describes; Kubernetes' credentials are looked for below `root`.
    pub(super) fn new(check: &Check, root: &Path) -> Probe {
        let kind = match &check.kind {
            CheckKind::Tcp => ProbeKind::Tcp,
            CheckKind::Http(http) => ProbeKind::Http(http.clone()),
            CheckKind::Https(http, tls) => {
                ProbeKind::Https(http.clone(), Box::new(TlsFiles::new(tls, root)), SessionReuse::default())
            }
        };
        Probe { kind, timeout: check.timeout }
    }

    /// Checks the instance at `target` once. It takes no longer than the check's time-out, and may be dropped
    /// anywhere.
    pub(super) async fn check(
        &mut self,
        now: Moment,
        target: SocketAddr,
        hello: HelloReporter,
    ) -> CheckOutcome {
        let timeout = self.timeout;
        match tokio::time::timeout(timeout, self.attempt(now, target, hello)).await {
            Ok(outcome) => outcome,
            Err(_) => CheckOutcome::new(Found::Silent, Cause::TimedOut).with(human(timeout)),
        }
    }

    async fn attempt(&mut self, now: Moment, target: SocketAddr, hello: HelloReporter) -> CheckOutcome {
        let resumes = match &mut self.kind {
            ProbeKind::Https(_, _, reuse) => reuse.begin(now),
            _ => false,
        };
        let stream = match connect(target).await {
            Ok(stream) => stream,
            Err(error) => return not_connected(&error),
        };
        match &mut self.kind {
            ProbeKind::Tcp => CheckOutcome::new(Found::Good, Cause::Connected),
            ProbeKind::Http(http) => match exchange(Box::new(stream), http, &target.to_string()).await {
                Ok(answer) => evaluate(http, &answer, None),
                Err(failure) => failure.outcome(),
            },
            ProbeKind::Https(http, tls, reuse) => {
                let mut outcome = https(stream, http, tls, resumes, target, hello).await;
                // Files that were read some seconds ago may be to blame: they are replaced together with what the
                // server has.
                if resumes && matches!(outcome.cause, Cause::Tls(_) | Cause::Http(401 | 403)) {
                    outcome = match connect(target).await {
                        Ok(stream) => https(stream, http, tls, false, target, Box::new(|_| ())).await,
                        Err(error) => not_connected(&error),
                    };
                }
                if outcome.answer == Found::Good {
                    reuse.succeeded();
                }
                outcome
            }
        }
    }
}

/// Whether something accepts connections at `target`, within `timeout`.
pub(super) async fn accepts(target: SocketAddr, timeout: Duration) -> bool {
    matches!(tokio::time::timeout(timeout, connect(target)).await, Ok(Ok(_)))
}

async fn connect(target: SocketAddr) -> io::Result<TcpStream> {
    let stream = TcpStream::connect(target).await?;
    // On the same machine, a connect to a closed ephemeral port can reach itself (RFC 9293, 3.5, simultaneous
    // open).
    if stream.local_addr()? == target {
        return Err(io::ErrorKind::ConnectionRefused.into());
    }
    Ok(stream)
}

fn not_connected(error: &io::Error) -> CheckOutcome {
    match error.kind() {
        io::ErrorKind::ConnectionRefused => CheckOutcome::new(Found::Refused, Cause::PortClosed),
        _ => broken(error),
    }
}

fn broken(error: &io::Error) -> CheckOutcome {
    let silent = |cause| CheckOutcome::new(Found::Silent, cause);
    match faults::cause(error) {
        Some(cause) => silent(cause),
        None => silent(Cause::ConnectionBroken).with(error.kind().to_string()),
    }
}

async fn https(
    stream: TcpStream,
    http: &HttpCheck,
    tls: &mut TlsFiles,
    resumes: bool,
    target: SocketAddr,
    hello: HelloReporter,
) -> CheckOutcome {
    // While all is well the files are looked at as seldom as the certificate: each look wakes another thread.
    let current = if resumes { tls.as_read().await } else { tls.current().await };
    let (ready, name) = match (current, tls.server_name(target.ip())) {
        (Ok(ready), Ok(name)) => (ready, name),
        (Err(unusable), _) | (_, Err(unusable)) => return unusable.outcome(),
    };
    let connector = TlsConnector::from(if resumes { ready.resuming() } else { ready.whole(&name) });
    hello(HelloEvent::Sent);
    let stream = FirstRead { stream, hello: Some(hello) };
    let stream = match connector.connect(name.clone(), stream).await {
        Ok(stream) => stream,
        Err(error) => return tls::outcome_of(&error, &ready, &name).unwrap_or_else(|| broken(&error)),
    };
    let host = tls.configured_name().map_or_else(|| target.to_string(), str::to_owned);
    match exchange(Box::new(stream), http, &host).await {
        Ok(answer) => evaluate(http, &answer, Some(&ready)),
        // With TLS 1.3 a server rejects a client certificate only after the handshake.
        Err(failure) => failure.tls(&ready, &name).unwrap_or_else(|| failure.outcome()),
    }
}

/// Reports the first read that brings anything, or an end.
struct FirstRead {
    stream: TcpStream,
    /// `None`: it was reported.
    hello: Option<HelloReporter>,
}

impl AsyncRead for FirstRead {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let read = Pin::new(&mut self.stream).poll_read(cx, buf);
        if read.is_ready()
            && let Some(hello) = self.hello.take()
        {
            hello(HelloEvent::Answered);
        }
        read
    }
}

impl AsyncWrite for FirstRead {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

/// Status and the beginning of the body.
struct HttpAnswer {
    status: u16,
    body: Bytes,
}

/// Why there is no response.
enum ProbeFailure {
    BadPath,
    Hyper(hyper::Error),
}

impl ProbeFailure {
    fn io(&self) -> Option<&io::Error> {
        let ProbeFailure::Hyper(error) = self else { return None };
        std::error::Error::source(error)?.downcast_ref()
    }

    fn tls(&self, ready: &ReadyTls, name: &ServerName<'_>) -> Option<CheckOutcome> {
        tls::outcome_of(self.io()?, ready, name)
    }

    fn outcome(&self) -> CheckOutcome {
        match self {
            ProbeFailure::BadPath => CheckOutcome::new(Found::NotReady, Cause::BadCheck).with("invalid path"),
            ProbeFailure::Hyper(error) if error.is_incomplete_message() || error.is_canceled() => {
                broken(&io::ErrorKind::UnexpectedEof.into())
            }
            ProbeFailure::Hyper(error) if error.is_parse() => {
                CheckOutcome::new(Found::NotReady, Cause::NotHttp)
            }
            ProbeFailure::Hyper(error) => match self.io() {
                Some(io) => broken(io),
                None => CheckOutcome::new(Found::Silent, Cause::ConnectionBroken).with(error.to_string()),
            },
        }
    }
}

/// One GET on a fresh connection. The status alone decides; the body shows what failed.
async fn exchange(
    stream: Box<dyn HttpStream>,
    http: &HttpCheck,
    host: &str,
) -> Result<HttpAnswer, ProbeFailure> {
    let request = Request::get(http.path.as_str())
        .header(header::HOST, host)
        .header(header::USER_AGENT, concat!("agent/", env!("CARGO_PKG_VERSION")))
        .header(header::CONNECTION, "close")
        .body(Full::default())
        .map_err(|_| ProbeFailure::BadPath)?;
    let (status, body) = http::ask(stream, request, MAX_BODY).await.map_err(ProbeFailure::Hyper)?;
    Ok(HttpAnswer { status, body })
}

/// The outcome of a response.
fn evaluate(http: &HttpCheck, answer: &HttpAnswer, tls: Option<&ReadyTls>) -> CheckOutcome {
    let HttpAnswer { status, body } = answer;
    let found = |found| CheckOutcome::new(found, Cause::Http(*status));
    if http.expect.holds(*status) {
        return found(Found::Good);
    }
    match status {
        401 | 403 => found(Found::Alive).with(match tls {
            None => "",
            Some(ReadyTls { client: true, .. }) => "credentials not accepted",
            Some(ReadyTls { problem: Some(problem), .. }) => problem,
            Some(_) => "no credentials found",
        }),
        _ => match first_failed(body) {
            Some(name) => found(Found::NotReady).with(format!("{name} failed")),
            None => found(Found::NotReady),
        },
    }
}

/// The first failed check in the list of an apiserver's /readyz, whose lines are `[+]ping ok` and
/// `[-]etcd failed: reason withheld`.
fn first_failed(body: &[u8]) -> Option<&str> {
    let text = std::str::from_utf8(body).ok()?;
    text.lines().find_map(|line| line.strip_prefix("[-]")?.split_whitespace().next())
}
