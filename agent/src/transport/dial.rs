//! Connections to peers: one for each request, and one kept to each peer that large gossip goes to.

use std::collections::BTreeMap;
use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use proto::cause::{Cause, Fault, TlsFault};
use proto::node::{NodeId, PublicKey};
use proto::rpc::{FromMember, MAX_FRAME, Received, ToMember};
use rustls::ClientConfig;
use rustls::pki_types::ServerName;
use tokio::net::TcpStream;
use tokio::sync::{mpsc, watch};
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tracing::debug;

use super::addresses::AddressBook;
use super::counters::{Count, LinkCounters};
use super::frames::FrameBudget;
use super::tls::Identity;
use super::{TrustedKeys, frames, lock};
use crate::faults;
use crate::lifecycle::Lifecycle;

/// Time for one address to connect and shake hands; then the next is tried.
const CONNECT: Duration = Duration::from_secs(3);

/// Time for an answer: a merge and a write to disk on the other side.
const ANSWER: Duration = Duration::from_secs(10);

/// A connection for large gossip is closed after this long without any.
const IDLE: Duration = Duration::from_secs(60);

/// Large messages that wait for one peer. More would be older than what comes after them.
const QUEUE: usize = 4;

/// Connections for large gossip at once; the fan-out is 3 a second, so this is many times what is used.
const MAX_SENDERS: usize = 256;

/// Connects to the first of these addresses that answers and holds the handshake.
pub(crate) async fn connect(
    addresses: &[SocketAddr],
    config: ClientConfig,
) -> io::Result<(TlsStream<TcpStream>, SocketAddr)> {
    let connector = TlsConnector::from(Arc::new(config));
    let mut last = io::Error::new(io::ErrorKind::NotFound, "no address is known");
    for address in addresses {
        let attempt = async {
            let stream = TcpStream::connect(address).await?;
            stream.set_nodelay(true)?;
            connector.connect(ServerName::from(address.ip()), stream).await
        };
        let error = match tokio::time::timeout(CONNECT, attempt).await {
            Ok(Ok(stream)) => return Ok((stream, *address)),
            Ok(Err(error)) => error,
            Err(_) => io::Error::new(io::ErrorKind::TimedOut, format!("no answer from {address}")),
        };
        // An address may be a hint of someone who wants to be asked instead, so the next is tried too; that
        // another key answered says more than that nobody did.
        if !is_tls(&last) {
            last = error;
        }
    }
    Err(last)
}

fn is_tls(error: &io::Error) -> bool {
    error.get_ref().is_some_and(|inner| inner.is::<rustls::Error>())
}

/// A request to a member has no answer.
#[derive(Debug, thiserror::Error)]
pub(crate) enum CallError {
    /// It is no member, or not any more.
    #[error("not a member")]
    NotMember,
    /// TLS can't be set up, which no input can cause.
    #[error("TLS can't be set up: {0}")]
    Setup(#[source] rustls::Error),
    /// It was not reached at any of its addresses, and the request was not sent.
    #[error("{0}")]
    Connect(#[source] io::Error),
    /// The request may have been taken in part.
    #[error("request refused: {0}")]
    Send(#[source] io::Error),
    /// The request was taken, and what came of it is not known.
    #[error("{0}")]
    Answer(#[source] io::Error),
    /// It was answered with a kind of message of a later version: the caller does without.
    #[error("it answered \"{0}\", which this version does not know; upgrade this node")]
    UnknownAnswer(String),
}

impl CallError {
    /// Nothing came back in time.
    pub(crate) fn is_silence(&self) -> bool {
        match self {
            CallError::Connect(error) | CallError::Send(error) | CallError::Answer(error) => {
                error.kind() == io::ErrorKind::TimedOut
            }
            CallError::NotMember | CallError::Setup(_) | CallError::UnknownAnswer(_) => false,
        }
    }
}

/// Asks what only the next version knows, before anything else: an older member says that it does not know it,
/// and the connection is as good as before.
#[cfg(feature = "next-wire")]
async fn ask_next(stream: &mut frames::Framed, peer: NodeId, alpn: Vec<u8>) -> io::Result<()> {
    let alpn = String::from_utf8_lossy(&alpn).into_owned();
    frames::send(stream, &FromMember::Next { text: "next".to_owned() }).await?;
    let answer = match frames::receive(stream, ANSWER).await? {
        Received::Known(ToMember::Next(text)) if text == "next" => "next".to_owned(),
        Received::Known(ToMember::Failed { code, .. }) => format!("{code:?}"),
        other => return Err(io::Error::other(format!("another answer: {other:?}"))),
    };
    tracing::info!(%peer, alpn, answer, "asked what only the next version knows");
    Ok(())
}

/// Connections from this node to members.
pub(crate) struct PeerDialer {
    identity: Arc<Identity>,
    trust: watch::Receiver<Arc<TrustedKeys>>,
    addresses: Arc<AddressBook>,
    counters: Arc<LinkCounters>,
    /// What answers of members may hold.
    answers: Arc<FrameBudget>,
    /// The queues of the connections for large gossip.
    large: Mutex<BTreeMap<NodeId, mpsc::Sender<Vec<u8>>>>,
}

impl PeerDialer {
    /// No connection is open yet.
    pub(super) fn new(
        identity: Arc<Identity>,
        trust: watch::Receiver<Arc<TrustedKeys>>,
        addresses: Arc<AddressBook>,
        counters: Arc<LinkCounters>,
    ) -> PeerDialer {
        let answers = FrameBudget::new(frames::BUDGET, frames::BUDGET_EACH);
        PeerDialer { identity, trust, addresses, counters, answers, large: Mutex::default() }
    }

    /// Sends one request to a member and waits for its answer.
    pub(crate) async fn call(&self, to: NodeId, request: &FromMember) -> Result<ToMember, CallError> {
        let key = self.key_of(&to).ok_or(CallError::NotMember)?;
        self.call_at(&self.addresses.all(&to), key, request).await
    }

    /// The same, to whoever has this key at these addresses.
    pub(crate) async fn call_at(
        &self,
        addresses: &[SocketAddr],
        key: PublicKey,
        request: &FromMember,
    ) -> Result<ToMember, CallError> {
        let stream = self.open(addresses, key).await?;
        #[cfg(feature = "next-wire")]
        let alpn = stream.get_ref().1.alpn_protocol().unwrap_or_default().to_vec();
        let mut stream = frames::answers(stream, key.id(), &self.answers);
        #[cfg(feature = "next-wire")]
        ask_next(&mut stream, key.id(), alpn).await.map_err(CallError::Answer)?;
        frames::send(&mut stream, request).await.map_err(CallError::Send)?;
        match frames::receive(&mut stream, ANSWER).await.map_err(CallError::Answer)? {
            Received::Known(answer) => Ok(answer),
            Received::Unknown(kind) => Err(CallError::UnknownAnswer(kind)),
        }
    }

    /// Whether whoever has this key can be reached here; else why not.
    pub(super) async fn reach(&self, key: PublicKey, address: SocketAddr) -> Result<(), Fault> {
        match self.open(&[address], key).await {
            Ok(_) => Ok(()),
            Err(CallError::Connect(error)) => Err(faults::fault(&error)),
            Err(error) => Err(Fault::new(Cause::Tls(TlsFault::Failed), error)),
        }
    }

    /// A connection to whoever has this key, which proves that it is there.
    async fn open(
        &self,
        addresses: &[SocketAddr],
        key: PublicKey,
    ) -> Result<TlsStream<TcpStream>, CallError> {
        let config = self.identity.client(key).map_err(CallError::Setup)?;
        let (stream, at) = connect(addresses, config).await.map_err(CallError::Connect)?;
        self.addresses.proven(key.id(), at);
        Ok(stream)
    }

    fn key_of(&self, member: &NodeId) -> Option<PublicKey> {
        self.trust.borrow().document.member(member).map(|admitted| admitted.key)
    }

    /// Queues a large gossip message for a peer, and starts its connection where there is none.
    pub(super) fn send_gossip(self: &Arc<PeerDialer>, to: NodeId, message: Vec<u8>, life: &Lifecycle) {
        let mut large = lock(&self.large);
        let refused = match large.get(&to) {
            Some(sender) => sender.try_send(message),
            None if large.len() >= MAX_SENDERS => return,
            None => Err(mpsc::error::TrySendError::Closed(message)),
        };
        let Err(mpsc::error::TrySendError::Closed(first)) = refused else { return };
        let (sender, mut queue) = mpsc::channel(QUEUE);
        let _ = sender.try_send(first);
        large.insert(to, sender);
        drop(large);
        let (dialer, over) = (self.clone(), life.shutdown.clone());
        life.spawn(async move {
            let work = async {
                if let Err(error) = dialer.drain(to, &mut queue).await {
                    debug!(peer = %to, %error, "connection for large gossip ended");
                }
            };
            tokio::select! { () = work => {}, () = over.cancelled() => {} }
            lock(&dialer.large).remove(&to);
        });
    }

    /// Sends what is queued until nothing has been for a while.
    async fn drain(&self, to: NodeId, queue: &mut mpsc::Receiver<Vec<u8>>) -> Result<(), CallError> {
        let Some(key) = self.key_of(&to) else { return Ok(()) };
        let stream = self.open(&self.addresses.all(&to), key).await?;
        let mut stream = frames::framed(stream, MAX_FRAME);
        while let Ok(Some(message)) = tokio::time::timeout(IDLE, queue.recv()).await {
            self.counters.add(Count::SentBytes, message.len());
            frames::send(&mut stream, &FromMember::Gossip(message)).await.map_err(CallError::Send)?;
        }
        Ok(())
    }
}
