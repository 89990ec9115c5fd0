//! The control socket: MessagePack in length-delimited frames over a Unix socket, one request and its
//! response per connection.
//!
//! The file's mode alone decides who may connect: its owner, and the group `agent` if it exists. One task
//! accepts, and one more serves each connection. Stopping them anywhere is safe: a request without a response
//! is an error for the caller, and whatever it started belongs to the handler.

use std::future::Future;
use std::io;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use futures_util::{SinkExt, StreamExt};
use proto::control::{MAX_FRAME, Request, Response};
use proto::rpc::{BadFrame, BadMessage, Received, decode, encode};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::Semaphore;
use tokio::time::timeout;
use tokio_util::bytes::Bytes;
use tokio_util::codec::{Framed, LengthDelimitedCodec};

use crate::lifecycle::Lifecycle;

/// The socket's name in the runtime directory.
pub(crate) const SOCKET: &str = "agent.sock";

/// Connections served concurrently. People and their scripts send one request at a time; more wait in the
/// kernel's queue, so a runaway script costs no more memory than this.
const MAX_CONNECTIONS: usize = 16;

/// Largest request. They hold a name or a code; a longer length is refused, so that nobody makes the agent
/// reserve [`MAX_FRAME`].
const MAX_REQUEST: usize = 64 * 1024;

/// Longest wait for a request, and for its response to be read. Shorter in tests.
const PATIENCE: Duration = Duration::from_secs(if cfg!(test) { 1 } else { 5 });

/// Longest wait for a response: an approval asks every member, and some of them may be down.
const ANSWER: Duration = Duration::from_secs(30);

/// The group whose members may use the socket.
const GROUP: &str = "agent";

/// Why a call failed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum CallError {
    /// Nobody listens.
    #[error(
        "the agent is not running on this node (no listener at {}); start it with: systemctl start agent",
        socket.display()
    )]
    NotRunning {
        /// Where the socket should be.
        socket: PathBuf,
    },
    /// This user may not connect.
    #[error("permission denied for {}; run this as root or as a member of the group agent", socket.display())]
    NotAllowed {
        /// The socket.
        socket: PathBuf,
    },
    /// There was no response.
    #[error("the agent did not answer within {}; see: journalctl -u agent", proto::time::human(*waited))]
    TimedOut {
        /// How long the caller waited.
        waited: Duration,
    },
    /// It closed the connection instead of responding, as it does when it ends.
    #[error("the agent stopped before it answered; try again, or see: journalctl -u agent")]
    Stopped,
    /// The connection broke, or the response is invalid.
    #[error("cannot read the agent's answer: {why}; see: journalctl -u agent")]
    Broken {
        /// The reason.
        #[from]
        why: BrokenCall,
    },
}

/// Why a call broke.
#[derive(Debug, thiserror::Error)]
pub(crate) enum BrokenCall {
    /// The socket failed.
    #[error(transparent)]
    Socket(#[from] io::Error),
    /// The request can't be put into a frame.
    #[error(transparent)]
    Message(#[from] BadMessage),
    /// The response is no valid frame.
    #[error(transparent)]
    Frame(#[from] BadFrame),
    /// The agent has another version.
    #[error("it answered with {kind}, which this command of version {} does not know", env!("CARGO_PKG_VERSION"))]
    Unknown { kind: String },
    /// It ended before there was a response.
    #[error("it closed the connection")]
    Closed,
}

impl BrokenCall {
    /// Whether the other side ended, between two frames or within one.
    fn is_the_end(&self) -> bool {
        let lost = [io::ErrorKind::ConnectionReset, io::ErrorKind::BrokenPipe, io::ErrorKind::UnexpectedEof];
        match self {
            BrokenCall::Closed => true,
            BrokenCall::Socket(error) => lost.contains(&error.kind()),
            _ => false,
        }
    }
}

fn codec(max_frame: usize) -> LengthDelimitedCodec {
    LengthDelimitedCodec::builder().max_frame_length(max_frame).new_codec()
}

/// Sends a request to the agent with this runtime directory.
pub(crate) async fn call(runtime_dir: &Path, request: &Request) -> Result<Response, CallError> {
    let socket = runtime_dir.join(SOCKET);
    #[cfg(feature = "next-wire")]
    ask_next(&socket).await;
    let stream = match UnixStream::connect(&socket).await {
        Ok(stream) => stream,
        Err(error) => {
            return Err(match error.kind() {
                io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused => {
                    CallError::NotRunning { socket }
                }
                io::ErrorKind::PermissionDenied => CallError::NotAllowed { socket },
                _ => BrokenCall::Socket(error).into(),
            });
        }
    };
    match timeout(ANSWER, exchange(stream, request)).await {
        Ok(Err(why)) if why.is_the_end() => Err(CallError::Stopped),
        Ok(answer) => Ok(answer?),
        Err(_) => Err(CallError::TimedOut { waited: ANSWER }),
    }
}

/// Sends what only the next version knows. An older agent refuses it, and the command continues.
#[cfg(feature = "next-wire")]
async fn ask_next(socket: &Path) {
    let Ok(stream) = UnixStream::connect(socket).await else { return };
    let answer = timeout(ANSWER, exchange(stream, &Request::Next)).await;
    match answer {
        Ok(Ok(Response::Unsupported { .. } | Response::Done(_))) => {}
        other => eprintln!("next-wire: another answer: {other:?}"),
    }
}

async fn exchange(stream: UnixStream, request: &Request) -> Result<Response, BrokenCall> {
    let mut frames = Framed::new(stream, codec(MAX_FRAME));
    frames.send(Bytes::from(encode(request)?)).await?;
    match frames.next().await {
        Some(Ok(frame)) => match decode(&frame)? {
            Received::Known(response) => Ok(response),
            Received::Unknown(kind) => Err(BrokenCall::Unknown { kind: kind.to_string() }),
        },
        Some(Err(error)) => Err(error.into()),
        None => Err(BrokenCall::Closed),
    }
}

/// The socket of a running agent.
pub(crate) struct ControlSocket {
    inner: UnixListener,
    path: PathBuf,
    /// Device and inode: by the end another agent may have put its own here.
    file: (u64, u64),
}

/// Creates the control socket in a runtime directory. Needs a tokio runtime.
///
/// The socket of a killed agent is replaced; a listening agent is an error.
pub(crate) fn bind(runtime_dir: &Path) -> io::Result<ControlSocket> {
    std::fs::create_dir_all(runtime_dir)?;
    let path = runtime_dir.join(SOCKET);
    if let Some(other) = listening(&path) {
        let message = format!(
            "another agent{other} is already running here (listening at {}); stop it, or give this one its own \
             --state-dir and --runtime-dir",
            path.display()
        );
        return Err(io::Error::new(io::ErrorKind::AddrInUse, message));
    }
    // Under a temporary name until its mode is right, then renamed over the old one: nobody can connect who
    // must not.
    let fresh = runtime_dir.join(format!(".{SOCKET}.{}", std::process::id()));
    let _ = std::fs::remove_file(&fresh);
    let inner = UnixListener::bind(&fresh)?;
    let placed = restrict(&fresh).and_then(|()| {
        let about = std::fs::metadata(&fresh)?;
        std::fs::rename(&fresh, &path)?;
        Ok((about.dev(), about.ino()))
    });
    match placed {
        Ok(file) => Ok(ControlSocket { inner, path, file }),
        Err(error) => {
            let _ = std::fs::remove_file(&fresh);
            Err(error)
        }
    }
}

/// Whether an agent listens in this runtime directory.
pub(crate) fn is_running(runtime_dir: &Path) -> bool {
    listening(&runtime_dir.join(SOCKET)).is_some()
}

/// Whether a process listens at `path`; if so, " (pid N)" if the kernel knows it.
fn listening(path: &Path) -> Option<String> {
    let stream = std::os::unix::net::UnixStream::connect(path).ok()?;
    let pid = rustix::net::sockopt::socket_peercred(&stream).ok().map(|peer| peer.pid);
    Some(pid.map_or_else(String::new, |pid| format!(" (pid {})", pid.as_raw_nonzero())))
}

/// Mode 0660 for the group `agent`; without that group, or if it can't be set, 0600: this process' own group
/// was never meant.
fn restrict(path: &Path) -> io::Result<()> {
    let group = std::fs::read_to_string("/etc/group").ok().and_then(|text| gid_of(&text, GROUP));
    let mode = match group.map(|gid| std::os::unix::fs::chown(path, None, Some(gid))) {
        Some(Ok(())) => 0o660,
        Some(Err(error)) => {
            tracing::warn!(%error, "cannot open the control socket to the group {GROUP}");
            0o600
        }
        None => 0o600,
    };
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode))
}

/// The id of a group, from the text of /etc/group. Parsed here because a static binary has no NSS.
fn gid_of(text: &str, group: &str) -> Option<u32> {
    text.lines().find_map(|line| {
        let mut fields = line.split(':');
        let name = fields.next()?;
        let gid = fields.nth(1)?;
        (name == group).then(|| gid.parse().ok()).flatten()
    })
}

impl Drop for ControlSocket {
    fn drop(&mut self) {
        let ours = std::fs::metadata(&self.path).is_ok_and(|about| (about.dev(), about.ino()) == self.file);
        if ours {
            let _ = std::fs::remove_file(&self.path);
        }
    }
}

/// Answers requests with `handler` until shutdown. While draining, status still responds.
pub(crate) fn serve<F, Fut>(listener: ControlSocket, handler: F, life: &Lifecycle)
where
    F: Fn(Request) -> Fut + Send + Sync + 'static,
    Fut: Future<Output = Response> + Send + 'static,
{
    let (accepting, handler) = (life.clone(), Arc::new(handler));
    life.supervise("control", listener, move |listener| {
        let (accepting, handler) = (accepting.clone(), handler.clone());
        Box::pin(async move {
            accepting.shutdown.run_until_cancelled(accept(listener, handler, &accepting)).await;
        })
    });
}

async fn accept<F, Fut>(listener: &ControlSocket, handler: Arc<F>, life: &Lifecycle)
where
    F: Fn(Request) -> Fut + Send + Sync + 'static,
    Fut: Future<Output = Response> + Send + 'static,
{
    let slots = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    let mut failing = false;
    loop {
        // The semaphore is never closed, so there is no error to handle.
        let Ok(slot) = slots.clone().acquire_owned().await else { return };
        let stream = match listener.inner.accept().await {
            Ok((stream, _)) => {
                failing = false;
                stream
            }
            Err(error) => {
                if !std::mem::replace(&mut failing, true) {
                    tracing::warn!(%error, "cannot accept on the control socket");
                }
                // Out of descriptors, most likely: retrying at once would only spin.
                tokio::time::sleep(Duration::from_millis(200)).await;
                continue;
            }
        };
        let (handler, over) = (handler.clone(), life.shutdown.clone());
        life.spawn(async move {
            tokio::select! {
                () = over.cancelled() => {}
                () = answer(stream, &*handler) => {}
            }
            drop(slot);
        });
    }
}

async fn answer<F, Fut>(stream: UnixStream, handler: &F)
where
    F: Fn(Request) -> Fut,
    Fut: Future<Output = Response>,
{
    let mut frames = Framed::new(stream, codec(MAX_REQUEST));
    let response = match timeout(PATIENCE, frames.next()).await {
        Ok(Some(Ok(frame))) => match decode::<Received<Request>>(&frame) {
            Ok(Received::Known(request)) => handler(request).await,
            Ok(Received::Unknown(kind)) => {
                tracing::debug!("a request on the control socket is of the unknown kind {kind}");
                Response::Unsupported { version: env!("CARGO_PKG_VERSION").to_owned() }
            }
            Err(error) => Response::Failed(format!("invalid request: {error}")),
        },
        // Gone, silent, or no frame: nobody to respond to.
        Ok(Some(Err(_)) | None) | Err(_) => return,
    };
    let answer = match encode(&response) {
        Ok(bytes) if bytes.len() > MAX_FRAME => {
            encode(&Response::Failed(format!("the answer is larger than {MAX_FRAME} bytes")))
        }
        Err(error) => encode(&Response::Failed(error.to_string())),
        answer => answer,
    };
    // Without a response the connection is closed.
    let Ok(bytes) = answer else { return };
    frames.codec_mut().set_max_frame_length(MAX_FRAME);
    // The caller may be gone already.
    let _ = timeout(PATIENCE, frames.send(Bytes::from(bytes))).await;
}

#[cfg(test)]
#[path = "control_tests.rs"]
mod tests;
