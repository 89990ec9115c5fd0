//! One check of one service: connect, ask, say in a few words what came back.

use std::io;
use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

use http_body_util::Full;
use hyper::body::Bytes;
use hyper::{Request, header};
use proto::cause::Cause;
use proto::health::{Answer as Found, Outcome};
use proto::service::{Check, CheckKind, HttpCheck};
use proto::time::human;
use rustls::pki_types::ServerName;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use super::tls::{self, Ready, Tls};
use crate::faults;
use crate::http::{self, Stream};

/// As much of an answer as is read. An apiserver's whole list of failed checks has a few kilobytes.
const MAX_BODY: usize = 64 * 1024;

/// Checks one service, again and again.
pub(super) struct Probe {
    kind: Kind,
    timeout: Duration,
}

enum Kind {
    Tcp,
    Http(HttpCheck),
    Https(HttpCheck, Box<Tls>),
}

impl Probe {
    /// The probe that `check` describes; Kubernetes' credentials are looked for below `root`.
    pub(super) fn new(check: &Check, root: &Path) -> Probe {
        let kind = match &check.kind {
            CheckKind::Tcp => Kind::Tcp,
            CheckKind::Http(http) => Kind::Http(http.clone()),
            CheckKind::Https(http, tls) => Kind::Https(http.clone(), Box::new(Tls::new(tls, root))),
        };
        Probe { kind, timeout: check.timeout }
    }

    /// Checks the instance at `target` once. It takes no longer than the check's time-out, and may be
    /// dropped anywhere.
    pub(super) async fn check(&mut self, target: SocketAddr) -> Outcome {
        let timeout = self.timeout;
        match tokio::time::timeout(timeout, self.attempt(target)).await {
            Ok(outcome) => outcome,
            Err(_) => Outcome::new(Found::Silent, Cause::TimedOut).with(human(timeout)),
        }
    }

    async fn attempt(&mut self, target: SocketAddr) -> Outcome {
        let stream = match connect(target).await {
            Ok(stream) => stream,
            Err(error) => return not_connected(&error),
        };
        match &mut self.kind {
            Kind::Tcp => Outcome::new(Found::Good, Cause::Connected),
            Kind::Http(http) => match exchange(Box::new(stream), http, &target.to_string()).await {
                Ok(answer) => judge(http, &answer, None),
                Err(failure) => failure.outcome(),
            },
            Kind::Https(http, tls) => https(stream, http, tls, target).await,
        }
    }
}

/// Whether something accepts connections at `target`, within `timeout`.
pub(super) async fn accepts(target: SocketAddr, timeout: Duration) -> bool {
    matches!(tokio::time::timeout(timeout, connect(target)).await, Ok(Ok(_)))
}

async fn connect(target: SocketAddr) -> io::Result<TcpStream> {
    let stream = TcpStream::connect(target).await?;
    // On this very machine a closed port among the ephemeral ones can be connected to itself (RFC 9293,
    // 3.5, simultaneous open).
    if stream.local_addr()? == target {
        return Err(io::ErrorKind::ConnectionRefused.into());
    }
    Ok(stream)
}

fn not_connected(error: &io::Error) -> Outcome {
    match error.kind() {
        io::ErrorKind::ConnectionRefused => Outcome::new(Found::Refused, Cause::PortClosed),
        _ => broken(error),
    }
}

fn broken(error: &io::Error) -> Outcome {
    let silent = |cause| Outcome::new(Found::Silent, cause);
    match faults::cause(error) {
        Some(cause) => silent(cause),
        None => silent(Cause::ConnectionBroken).with(error.kind().to_string()),
    }
}

async fn https(stream: TcpStream, http: &HttpCheck, tls: &mut Tls, target: SocketAddr) -> Outcome {
    let (ready, name) = match (tls.current().await, tls.server_name(target.ip())) {
        (Ok(ready), Ok(name)) => (ready, name),
        (Err(unusable), _) | (_, Err(unusable)) => return unusable.outcome(),
    };
    let connector = TlsConnector::from(ready.config.clone());
    let stream = match connector.connect(name.clone(), stream).await {
        Ok(stream) => stream,
        Err(error) => return tls::outcome_of(&error, &ready, &name).unwrap_or_else(|| broken(&error)),
    };
    let host = tls.configured_name().map_or_else(|| target.to_string(), str::to_owned);
    match exchange(Box::new(stream), http, &host).await {
        Ok(answer) => judge(http, &answer, Some(&ready)),
        // With TLS 1.3 a server refuses a client certificate only after the handshake.
        Err(failure) => failure.tls(&ready, &name).unwrap_or_else(|| failure.outcome()),
    }
}

/// Status and the beginning of the body.
struct Answer {
    status: u16,
    body: Bytes,
}

/// An exchange that brought no answer.
enum Failure {
    BadPath,
    Hyper(hyper::Error),
}

impl Failure {
    fn io(&self) -> Option<&io::Error> {
        let Failure::Hyper(error) = self else { return None };
        std::error::Error::source(error)?.downcast_ref()
    }

    fn tls(&self, ready: &Ready, name: &ServerName<'_>) -> Option<Outcome> {
        tls::outcome_of(self.io()?, ready, name)
    }

    fn outcome(&self) -> Outcome {
        match self {
            Failure::BadPath => {
                Outcome::new(Found::NotReady, Cause::BadCheck).with("invalid path")
            }
            Failure::Hyper(error) if error.is_incomplete_message() || error.is_canceled() => {
                broken(&io::ErrorKind::UnexpectedEof.into())
            }
            Failure::Hyper(error) if error.is_parse() => Outcome::new(Found::NotReady, Cause::NotHttp),
            Failure::Hyper(error) => match self.io() {
                Some(io) => broken(io),
                None => Outcome::new(Found::Silent, Cause::ConnectionBroken).with(error.to_string()),
            },
        }
    }
}

/// One GET on a fresh connection. The body tells what failed; the status alone decides.
async fn exchange(stream: Box<dyn Stream>, http: &HttpCheck, host: &str) -> Result<Answer, Failure> {
    let request = Request::get(http.path.as_str())
        .header(header::HOST, host)
        .header(header::USER_AGENT, concat!("agent/", env!("CARGO_PKG_VERSION")))
        .header(header::CONNECTION, "close")
        .body(Full::default())
        .map_err(|_| Failure::BadPath)?;
    let (status, body) = http::ask(stream, request, MAX_BODY).await.map_err(Failure::Hyper)?;
    Ok(Answer { status, body })
}

/// What an answer means.
fn judge(http: &HttpCheck, answer: &Answer, tls: Option<&Ready>) -> Outcome {
    let Answer { status, body } = answer;
    let found = |found| Outcome::new(found, Cause::Http(*status));
    if http.expect.holds(*status) {
        return found(Found::Good);
    }
    match status {
        401 | 403 => found(Found::Alive).with(match tls {
            None => "",
            Some(Ready { client: true, .. }) => "credentials not accepted",
            Some(Ready { problem: Some(problem), .. }) => problem,
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
