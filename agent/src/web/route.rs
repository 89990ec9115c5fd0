//! Routes requests to responses.

use proto::control::ServiceStatus;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use http_body_util::{BodyExt, Limited};
use hyper::Method;
use hyper::body::Bytes;
use hyper::header::{self, HeaderName, HeaderValue};
use proto::control;

use super::auth::{self, AuthRefusal, Permission};
use super::snapshot::SnapshotKind;
use super::{WebState, csv, metrics, page, stream};
use crate::http::{Request, Response, text};

/// Largest form, and the longest wait for it: a verb and a name.
const MAX_FORM: usize = 4 * 1024;
const FORM: Duration = Duration::from_secs(5);

const PLAIN: &str = "text/plain; charset=utf-8";
const HTML: &str = "text/html; charset=utf-8";
const JSON: &str = "application/json";

/// Content type of Prometheus' text format.
const METRICS: &str = "text/plain; version=0.0.4; charset=utf-8";

/// On every response: no caching, no framing, no sniffing.
const HEADERS: [(HeaderName, HeaderValue); 5] = [
    (header::CACHE_CONTROL, HeaderValue::from_static("no-store")),
    (header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff")),
    (header::REFERRER_POLICY, HeaderValue::from_static("same-origin")),
    (HeaderName::from_static("cross-origin-resource-policy"), HeaderValue::from_static("same-origin")),
    (HeaderName::from_static("cross-origin-opener-policy"), HeaderValue::from_static("same-origin")),
];

/// Answers one request.
pub(super) async fn answer(request: Request, from: IpAddr, state: Arc<WebState>) -> Response {
    let mut response = route(request, from, &state).await;
    let headers = response.headers_mut();
    for (name, value) in HEADERS {
        headers.insert(name, value);
    }
    if let Ok(policy) = HeaderValue::from_str(page::policy()) {
        headers.insert(header::CONTENT_SECURITY_POLICY, policy);
    }
    response
}

async fn route(request: Request, from: IpAddr, state: &Arc<WebState>) -> Response {
    let path = request.uri().path().to_owned();
    match path.as_str() {
        // Supervisors and orchestrators ask without credentials, and learn nothing but ok.
        "/healthz" => return text(200, PLAIN, "ok\n"),
        "/readyz" => return ready(state),
        _ => {}
    }
    let leave = match state.guard.check(request.headers(), from, state.life.now()) {
        Ok(leave) => leave,
        Err(refusal) => return refused(refusal),
    };
    match (request.method(), path.as_str()) {
        (&Method::POST, "/act") => run_action(request, leave, state).await,
        (&Method::GET | &Method::HEAD, "/api/v1/events") => match request.uri().query() {
            Some("list") => {
                let ring = state.ring.borrow().clone();
                let all: Vec<_> = ring.all().map(|event| &**event).collect();
                text(200, JSON, json(&all))
            }
            _ => stream::open(&request, state),
        },
        (&Method::GET | &Method::HEAD, _) => {
            let page = request.uri().query().and_then(|query| query.strip_prefix("page=")?.parse().ok());
            view_page(&path, page.unwrap_or(1), leave, state)
        }
        _ => {
            let mut response = text(405, PLAIN, "read-only\n");
            response.headers_mut().insert(header::ALLOW, HeaderValue::from_static("GET, HEAD"));
            response
        }
    }
}

fn view_page(path: &str, page: usize, leave: Permission, state: &Arc<WebState>) -> Response {
    let snapshot = state.snapshots.now();
    // With permission to act the page has buttons. Only what everyone asks for is kept.
    let acts = leave == Permission::Act;
    let kept = !acts && page == 1;
    let (kind, body) = match path {
        "/" if kept => {
            (HTML, snapshot.get(SnapshotKind::Page, |all| page::whole(&all.status, &all.ring, false, 1)))
        }
        "/" => (HTML, page::whole(&snapshot.status, &snapshot.ring, acts, page).into()),
        "/main" if kept => {
            (HTML, snapshot.get(SnapshotKind::Main, |all| page::main(&all.status, &all.ring, false, 1)))
        }
        "/main" => (HTML, page::main(&snapshot.status, &snapshot.ring, acts, page).into()),
        "/api/v1/status" => (JSON, snapshot.get(SnapshotKind::Json, |all| json(&all.status))),
        "/metrics" => (
            METRICS,
            snapshot.get(SnapshotKind::Metrics, |all| metrics::write(&all.status, state.haproxy_metrics)),
        ),
        "/stats;csv" | "/stats" => (PLAIN, snapshot.get(SnapshotKind::Csv, |all| csv::write(&all.status))),
        _ => return text(404, PLAIN, "not found: the page is at /, the metrics at /metrics\n"),
    };
    let mut response = text(200, kind, body);
    // Responses with the same number agree.
    response.headers_mut().insert("x-snapshot", snapshot.number.into());
    response
}

fn json(value: &impl serde::Serialize) -> Vec<u8> {
    let mut bytes = serde_json::to_vec_pretty(value).unwrap_or_default();
    bytes.push(b'\n');
    bytes
}

/// Whether clients can use this node's proxy and the agent keeps running.
fn ready(state: &WebState) -> Response {
    let snapshot = state.snapshots.now();
    let mut failed = snapshot.status.services.iter().flat_map(ServiceStatus::failed_listeners);
    let why = if state.life.draining.is_cancelled() {
        "it is stopping".to_owned()
    } else if snapshot.status.node.removed {
        "this node was removed from the cluster".to_owned()
    } else if let Some(broken) = failed.next() {
        format!("it cannot listen on {broken}")
    } else {
        return text(200, PLAIN, "ok\n");
    };
    text(503, PLAIN, format!("not ready: {why}\n"))
}

fn refused(refusal: AuthRefusal) -> Response {
    let mut response = refusal_of(refusal);
    // Otherwise a refused client could keep its slot.
    response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
    response
}

fn refusal_of(refusal: AuthRefusal) -> Response {
    match refusal {
        AuthRefusal::LogIn => {
            let mut response = text(401, PLAIN, "log in with web.user and web.password, or send web.token\n");
            let ask = HeaderValue::from_static("Basic realm=\"agent\", charset=\"UTF-8\"");
            response.headers_mut().insert(header::WWW_AUTHENTICATE, ask);
            response
        }
        AuthRefusal::Wait => {
            let mut response = text(429, PLAIN, "too many wrong passwords: wait a minute\n");
            response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from_static("60"));
            response
        }
        AuthRefusal::Foreign => {
            text(421, PLAIN, "use an address or localhost; host names need web.user and web.password\n")
        }
    }
}

/// Carries out a button's action, as the control socket would.
async fn run_action(request: Request, leave: Permission, state: &WebState) -> Response {
    if !state.guard.has_login() {
        return text(403, PLAIN, "read-only: set web.user and web.password, or use the command line\n");
    }
    if leave != Permission::Act || !auth::is_own(request.headers()) {
        return text(403, PLAIN, "refused: only possible from this node's own page, logged in\n");
    }
    let body = Limited::new(request.into_body(), MAX_FORM).collect();
    let form: Bytes = match tokio::time::timeout(FORM, body).await {
        Ok(Ok(form)) => form.to_bytes(),
        _ => return text(400, PLAIN, "incomplete form\n"),
    };
    let form = String::from_utf8_lossy(&form);
    let field = |key| form.split('&').find_map(|pair| pair.strip_prefix(key)?.strip_prefix('='));
    // Node names are letters, digits and hyphens, which forms send unescaped.
    let node = field("node").unwrap_or_default();
    let ask = match (field("verb"), field("weight")) {
        (Some("drain"), _) => control::Request::Drain { on: true, node: Some(node.to_owned()) },
        (Some("undrain"), _) => control::Request::Drain { on: false, node: Some(node.to_owned()) },
        (Some("weigh"), Some(weight)) => {
            control::Request::Change(vec![(format!("weight.{node}"), Some(weight.to_owned()))])
        }
        _ => return text(400, PLAIN, "unknown action\n"),
    };
    match (state.act)(ask).await {
        control::Response::Done(said) => text(200, HTML, page::message_page(&said)),
        control::Response::Failed(why) | control::Response::Refused(control::Refusal { reason: why, .. }) => {
            text(409, HTML, page::message_page(&why))
        }
        control::Response::Changed(_, who) => text(200, HTML, page::message_page(&who)),
        _ => text(500, PLAIN, "no answer\n"),
    }
}
