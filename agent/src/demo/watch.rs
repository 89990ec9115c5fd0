//! An agent's view of the masters, queried over its control socket as `agent status` does; in a few lines of
//! its own, since features do not depend on each other.

use std::path::{Path, PathBuf};
use std::time::Duration;

use futures_util::{SinkExt, StreamExt};
use hyper::body::Bytes;
use proto::backends::BackendState;
use proto::control::{MAX_FRAME, Request, Response, Status};
use proto::rpc::{decode, encode};
use proto::service::KUBE_API;
use tokio::net::UnixStream;
use tokio::sync::watch;
use tokio_util::codec::{Framed, LengthDelimitedCodec};

/// Interval of the queries.
const EVERY: Duration = Duration::from_millis(200);

/// Longest wait for an answer.
const PATIENCE: Duration = Duration::from_secs(2);

/// One master, as the agent sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct WatchedMaster {
    pub(super) node: String,
    pub(super) state: BackendState,
    pub(super) reason: String,
    pub(super) connections: u64,
}

/// Queries repeatedly; `None`: the agent does not answer. Ends when the receiver is gone.
pub(super) async fn watch_masters(runtime_dir: PathBuf, out: watch::Sender<Option<Vec<WatchedMaster>>>) {
    while !out.is_closed() {
        let seen = tokio::time::timeout(PATIENCE, ask(&runtime_dir)).await.ok().flatten();
        out.send_replace(seen);
        tokio::time::sleep(EVERY).await;
    }
}

async fn ask(runtime_dir: &Path) -> Option<Vec<WatchedMaster>> {
    let stream = UnixStream::connect(runtime_dir.join("agent.sock")).await.ok()?;
    let codec = LengthDelimitedCodec::builder().max_frame_length(MAX_FRAME).new_codec();
    let mut frames = Framed::new(stream, codec);
    frames.send(Bytes::from(encode(&Request::Status).ok()?)).await.ok()?;
    match decode(&frames.next().await?.ok()?) {
        Ok(Response::Status(status)) => Some(masters(*status)),
        _ => None,
    }
}

fn masters(status: Status) -> Vec<WatchedMaster> {
    let service = status.services.into_iter().find(|service| service.name.as_str() == KUBE_API);
    let backends = service.map(|service| service.backends).unwrap_or_default();
    backends
        .into_iter()
        .map(|backend| WatchedMaster {
            node: backend.node.to_string(),
            state: backend.state,
            reason: backend.reason.to_string(),
            connections: backend.connections,
        })
        .collect()
}
