//! chitchat's messages as bytes, without its source: chitchat 0.13 keeps the encoding of its envelopes
//! private (chitchat#207), so its own UDP socket does the encoding, on a pair of loopback sockets that nobody
//! else can reach. An envelope goes in and a datagram comes out, and the other way round; both are then ours
//! to seal.
//!
//! The alternative, pinning 0.11.2 with its public encoding, was rejected: it has no compressed digest, so
//! gossip would cost about three times as much, and it gets no fixes.
//!
//! Any local user can send to a loopback port, and a hostile message can stop chitchat. So chitchat's socket
//! is *connected* to ours without its knowledge: the kernel then drops packets from anywhere else.

use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;

use async_trait::async_trait;
use chitchat::ChitchatEnvelope;
use chitchat::transport::{RecvOutcome, SendOutcome, Socket, Transport, UdpSocket as ChitchatSocket};
use proto::node::NodeId;
use tokio::net::UdpSocket;
use tokio::sync::{Mutex, mpsc};

/// Largest message that chitchat makes.
const MAX_MESSAGE: usize = 65_507;

/// Time for a datagram to pass through loopback and be decoded: it arrives at once or not at all.
const DECODE: std::time::Duration = std::time::Duration::from_millis(100);

/// Sends a gossip message to a node. Must not wait: chitchat's only task calls it.
pub(super) type SendFn = Arc<dyn Fn(NodeId, &[u8]) + std::marker::Send + Sync>;

/// The part of a member's message that may reach chitchat.
pub(super) type GuardFn = Box<dyn Fn(NodeId, &[u8]) -> Option<Vec<u8>> + std::marker::Send + Sync>;

/// Gossip messages received by the transport, filtered by the guard. Shared, since every start of chitchat
/// continues with the same queue.
pub(super) struct GossipInbox {
    pub(super) queue: Mutex<mpsc::Receiver<(NodeId, Vec<u8>)>>,
    pub(super) pass: GuardFn,
}

/// chitchat's connection to the transport. Recreated for every start of chitchat; the queue of arrivals
/// outlives it.
pub(super) struct GossipTransport {
    pub(super) send: SendFn,
    pub(super) arrivals: Arc<GossipInbox>,
    pub(super) names: Arc<dyn NodeAddresses>,
}

/// Nodes as the socket addresses that chitchat uses for them. They are derived from ids and mean nothing to
/// any network: only the transport knows the real address of a node.
pub(super) trait NodeAddresses: std::marker::Send + Sync + 'static {
    /// The node at chitchat's address.
    fn node(&self, address: SocketAddr) -> Option<NodeId>;
    /// chitchat's address of the node.
    fn address(&self, node: &NodeId) -> SocketAddr;
}

#[async_trait]
impl Transport for GossipTransport {
    async fn open(&self, _listen: SocketAddr) -> anyhow::Result<Box<dyn Socket>> {
        let loopback = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
        let codec = ChitchatSocket::open(loopback).await?;
        let ours = UdpSocket::bind(loopback).await?;
        let (theirs_at, ours_at) = (codec.local_addr()?, ours.local_addr()?);
        ours.connect(theirs_at).await?;
        connect_hidden(theirs_at, ours_at)?;
        Ok(Box::new(GossipSocket {
            in_transit: LoopbackState::Nothing,
            codec,
            ours,
            ours_at,
            buffer: vec![0; MAX_MESSAGE],
            send: self.send.clone(),
            arrivals: self.arrivals.clone(),
            names: self.names.clone(),
        }))
    }
}

/// Connects the socket of this process that is bound to `at`, which chitchat does not expose, to `to`.
fn connect_hidden(at: SocketAddr, to: SocketAddr) -> io::Result<()> {
    for entry in std::fs::read_dir("/proc/self/fd").into_iter().flatten().flatten() {
        let Some(number) = entry.file_name().to_str().and_then(|name| name.parse().ok()) else { continue };
        // SAFETY: the descriptor is only queried for its type and address and, when it is the one that was
        // opened above and is still held by `codec`, connected; it is neither closed nor kept. A descriptor
        // that another thread closes meanwhile makes the calls fail, so it is skipped.
        #[allow(unsafe_code)]
        let fd = unsafe { BorrowedFd::borrow_raw(number) };
        if is_bound_to(fd, at) {
            return rustix::net::connect(fd, &to).map_err(io::Error::from);
        }
    }
    // Without /proc (an empty chroot) descriptors are tried one by one.
    for number in 3..4096 {
        // SAFETY: as above.
        #[allow(unsafe_code)]
        let fd = unsafe { BorrowedFd::borrow_raw(number) };
        if is_bound_to(fd, at) {
            return rustix::net::connect(fd, &to).map_err(io::Error::from);
        }
    }
    Err(io::Error::new(io::ErrorKind::NotFound, "chitchat's socket was not found"))
}

fn is_bound_to(fd: impl AsFd, at: SocketAddr) -> bool {
    let udp = rustix::net::sockopt::socket_type(fd.as_fd()) == Ok(rustix::net::SocketType::DGRAM);
    let bound = || rustix::net::getsockname(fd.as_fd()).ok().and_then(|any| SocketAddr::try_from(any).ok());
    udp && bound() == Some(at)
}

/// Where an arrived message is in the pair of sockets.
enum LoopbackState {
    Nothing,
    Arrived(NodeId, Vec<u8>),
    Sent(NodeId),
}

struct GossipSocket {
    in_transit: LoopbackState,
    codec: ChitchatSocket,
    ours: UdpSocket,
    ours_at: SocketAddr,
    buffer: Vec<u8>,
    send: SendFn,
    arrivals: Arc<GossipInbox>,
    names: Arc<dyn NodeAddresses>,
}

#[async_trait]
impl Socket for GossipSocket {
    fn local_addr(&self) -> anyhow::Result<SocketAddr> {
        self.codec.local_addr()
    }

    async fn send(&mut self, to: SocketAddr, envelope: ChitchatEnvelope) -> anyhow::Result<SendOutcome> {
        let sent = self.codec.send(self.ours_at, envelope).await?;
        // Loopback delivers before the send returns, and nothing else is in this queue.
        let length = self.ours.recv(&mut self.buffer).await?;
        if let (Some(node), Some(message)) = (self.names.node(to), self.buffer.get(..length)) {
            (self.send)(node, message);
        }
        Ok(sent)
    }

    /// Safe to cancel at every await: the position of a message in the pair is kept in `in_transit`, so that
    /// the next call continues there and never attributes one node's message to another.
    async fn recv(&mut self) -> anyhow::Result<RecvOutcome> {
        loop {
            if let LoopbackState::Nothing = self.in_transit {
                let arrived = self.arrivals.queue.lock().await.recv().await;
                let Some((from, message)) = arrived else {
                    // The transport has ended; so does this process, and until then nothing arrives.
                    return std::future::pending().await;
                };
                let Some(message) = (self.arrivals.pass)(from, &message) else { continue };
                self.in_transit = LoopbackState::Arrived(from, message);
            }
            if let LoopbackState::Arrived(from, message) = &self.in_transit {
                self.ours.send(message).await?;
                self.in_transit = LoopbackState::Sent(*from);
            }
            if let LoopbackState::Sent(from) = self.in_transit {
                // The datagram is there as soon as it was sent. When nothing comes, chitchat could not decode
                // it, and has logged that.
                let received = tokio::time::timeout(DECODE, self.codec.recv()).await;
                self.in_transit = LoopbackState::Nothing;
                if let Ok(outcome) = received {
                    let RecvOutcome { envelope, num_bytes_received, .. } = outcome?;
                    let from_addr = self.names.address(&from);
                    return Ok(RecvOutcome { from_addr, envelope, num_bytes_received });
                }
            }
        }
    }
}
