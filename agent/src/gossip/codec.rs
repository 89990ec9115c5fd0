//! chitchat's messages as bytes, without its source: chitchat 0.13 keeps the encoding of its envelopes
//! private (chitchat#207), so its own UDP socket does the encoding, on a pair of loopback sockets that nobody
//! else can reach. An envelope goes in and a datagram comes out, and the other way round; both are then ours
//! to seal.
//!
//! Nothing else of its public interface reads or makes a digest, which every first message has: its fields, its
//! constructor and its decoder are private, as is the file descriptor of its socket.
//!
//! The alternative, pinning 0.11.2 with its public encoding, was rejected: it has no compressed digest, so
//! gossip would cost about three times as much, and it gets no fixes.
//!
//! Any local user can send to a loopback port, and a hostile message can stop chitchat. So chitchat's socket
//! is *connected* to ours without its knowledge, by a descriptor of our own for it: the kernel then drops packets
//! from anywhere else.

use std::io;
use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::os::fd::{BorrowedFd, OwnedFd};
use std::sync::Arc;

use async_trait::async_trait;
use chitchat::ChitchatEnvelope;
use chitchat::transport::{RecvOutcome, SendOutcome, Socket, Transport, UdpSocket as ChitchatSocket};
use proto::node::NodeId;
use rustix::net::RecvFlags;
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
        // Not tokio's: loopback delivers before a send returns, so there is nothing to wait for and to be woken by.
        let ours = UdpSocket::bind(loopback)?;
        ours.set_nonblocking(true)?;
        let (theirs_at, ours_at) = (codec.local_addr()?, ours.local_addr()?);
        ours.connect(theirs_at)?;
        isolate(theirs_at, ours_at)?;
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

/// Makes chitchat's socket, which is bound to `at`, hear nobody but `to`. What strangers sent before that is
/// thrown away unread.
fn isolate(at: SocketAddr, to: SocketAddr) -> io::Result<()> {
    let codec = duplicate_of(at)?;
    rustix::net::connect(&codec, &to)?;
    // Nobody else can add to it any more, so this ends.
    while rustix::net::recv(&codec, &mut [0; 1][..], RecvFlags::DONTWAIT).is_ok() {}
    Ok(())
}

/// A descriptor of our own for this process's UDP socket that is bound to `at`: chitchat does not expose its own.
fn duplicate_of(at: SocketAddr) -> io::Result<OwnedFd> {
    let listed = std::fs::read_dir("/proc/self/fd").into_iter().flatten().flatten();
    let listed = listed.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    // Without /proc (an empty chroot) all numbers are tried.
    let most = rustix::process::getrlimit(rustix::process::Resource::Nofile).current.unwrap_or(4096);
    let all = 3..i32::try_from(most).unwrap_or(i32::MAX);
    for number in listed.chain(all) {
        // SAFETY: the number is not taken for a descriptor that is open or stays open: the kernel either returns a
        // new one, which is ours, for whatever it refers to, or fails. Nothing else is done with the number.
        #[allow(unsafe_code)]
        let ours = rustix::io::fcntl_dupfd_cloexec(unsafe { BorrowedFd::borrow_raw(number) }, 3);
        match ours {
            Ok(ours) if is_bound_to(&ours, at) => return Ok(ours),
            Err(error) if error != rustix::io::Errno::BADF => return Err(error.into()),
            _ => {}
        }
    }
    Err(io::Error::new(io::ErrorKind::NotFound, "chitchat's socket was not found"))
}

fn is_bound_to(socket: &OwnedFd, at: SocketAddr) -> bool {
    let udp = rustix::net::sockopt::socket_type(socket) == Ok(rustix::net::SocketType::DGRAM);
    let bound = || rustix::net::getsockname(socket).ok().and_then(|any| SocketAddr::try_from(any).ok());
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
        match self.ours.recv(&mut self.buffer) {
            Ok(length) => {
                if let (Some(node), Some(message)) = (self.names.node(to), self.buffer.get(..length)) {
                    (self.send)(node, message);
                }
            }
            // The kernel had no memory for it: lost, as on the wire.
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) => return Err(error.into()),
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
                let sent = self.ours.send(message);
                self.in_transit = match sent {
                    Ok(_) => LoopbackState::Sent(*from),
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => LoopbackState::Nothing,
                    Err(error) => return Err(error.into()),
                };
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

#[cfg(test)]
mod tests {
    use super::*;

    /// An acknowledgement without content, as chitchat reads it.
    const ACK: [u8; 5] = [0x53, 0xb0, 1, 2, 0];

    #[tokio::test]
    async fn what_a_stranger_sends_to_the_pair_is_never_read() {
        let loopback = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
        let mut codec = ChitchatSocket::open(loopback).await.unwrap();
        let ours = UdpSocket::bind(loopback).unwrap();
        let stranger = UdpSocket::bind(loopback).unwrap();
        let (theirs_at, ours_at) = (codec.local_addr().unwrap(), ours.local_addr().unwrap());
        stranger.send_to(&ACK, theirs_at).unwrap();
        isolate(theirs_at, ours_at).unwrap();
        // Refused by the kernel; which of the two calls says so depends on it.
        let _ = stranger.send_to(&ACK, theirs_at);
        ours.send_to(&ACK, theirs_at).unwrap();
        let read = codec.recv().await.unwrap();
        assert_eq!(read.from_addr, ours_at);
        assert!(tokio::time::timeout(DECODE, codec.recv()).await.is_err(), "there was one more");
    }

    #[tokio::test]
    async fn a_socket_that_is_not_there_is_not_found() {
        let gone = UdpSocket::bind(SocketAddr::from((Ipv4Addr::LOCALHOST, 0))).unwrap();
        let at = gone.local_addr().unwrap();
        drop(gone);
        assert_eq!(isolate(at, at).unwrap_err().kind(), io::ErrorKind::NotFound);
    }
}
