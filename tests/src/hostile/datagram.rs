//! The transport's UDP port: a node that answers challenges correctly, and otherwise sends whatever it likes.
//!
//! A thread of its own receives, since a challenge has to be answered soon; it ends with the [`Line`].

use std::collections::{BTreeMap, VecDeque};
use std::net::{SocketAddr, UdpSocket};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use proto::node::{NodeId, PublicKey};
use proto::transport::{DatagramFrame, DatagramHeader, MAX_DATAGRAM};

use super::identity::random;
use crate::lab::Node;
use crate::mesh::SOON;
use crate::wait::eventually;
use crate::wire::Speaker;

/// Most received datagrams that are kept.
const KEPT: usize = 10_000;

/// A node to talk to.
#[derive(Debug, Clone, Copy)]
pub struct Peer {
    /// Its key.
    pub key: PublicKey,
    /// Its transport address.
    pub at: SocketAddr,
}

/// Received: the sender, and the frames.
pub type Heard = (NodeId, Vec<u8>);

struct Shared {
    socket: UdpSocket,
    speaker: Mutex<Speaker>,
    peers: BTreeMap<NodeId, Peer>,
    heard: Mutex<VecDeque<Heard>>,
    over: AtomicBool,
    sent: AtomicU64,
}

/// An open UDP port.
pub struct Line {
    shared: Arc<Shared>,
    receiver: Option<JoinHandle<()>>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Line {
    /// Opens the transport's port on a node, with this seed and this gossip key.
    ///
    /// # Errors
    /// The port is taken.
    pub fn open(node: &Node, seed: [u8; 32], gossip_key: [u8; 32], peers: &[Peer]) -> Result<Line> {
        let at = SocketAddr::new(node.mesh_ip(), proto::transport::PORT);
        let socket = node.inside(|| Ok(UdpSocket::bind(at)?))?;
        socket.set_read_timeout(Some(Duration::from_millis(50)))?;
        let speaker = Speaker::new(seed, gossip_key, u64::from_be_bytes(random()))?;
        let shared = Arc::new(Shared {
            socket,
            speaker: Mutex::new(speaker),
            peers: peers.iter().map(|peer| (peer.key.id(), *peer)).collect(),
            heard: Mutex::default(),
            over: AtomicBool::new(false),
            sent: AtomicU64::new(0),
        });
        let behind = shared.clone();
        let receiver = Some(std::thread::spawn(move || {
            let mut buffer = [0; MAX_DATAGRAM];
            while !behind.over.load(Ordering::Relaxed) {
                if let Ok((length, _)) = behind.socket.recv_from(&mut buffer) {
                    behind.take(&buffer[..length]);
                }
            }
        }));
        Ok(Line { shared, receiver })
    }

    /// Sends frames to a peer.
    ///
    /// # Errors
    /// It is no peer, or the kernel refuses.
    pub fn send(&self, to: &NodeId, frames: &[DatagramFrame<'_>]) -> Result<()> {
        let mut plaintext = Vec::new();
        for frame in frames {
            ensure!(frame.put(&mut plaintext), "a frame that does not fit into a datagram");
        }
        self.shared.send(to, &plaintext)
    }

    /// Proves to a peer that this node is there: it answers a challenge, and the peer then accepts its boot.
    ///
    /// # Errors
    /// The peer answers no pulse.
    pub fn prove(&self, to: &NodeId) -> Result<()> {
        lock(&self.shared.heard).clear();
        eventually("a pulse is answered", SOON, || {
            self.send(to, &[DatagramFrame::Pulse(1)])?;
            std::thread::sleep(Duration::from_millis(50));
            let heard = lock(&self.shared.heard);
            let answered = heard.iter().any(|(from, frames)| {
                from == to
                    && DatagramFrame::all(frames).any(|frame| matches!(frame, DatagramFrame::Answer(1, _)))
            });
            ensure!(answered, "none of {} datagrams is the answer", heard.len());
            Ok(())
        })?;
        Ok(())
    }

    /// Frames received since the last call.
    pub fn heard(&self) -> Vec<Heard> {
        lock(&self.shared.heard).drain(..).collect()
    }

    /// Bytes sent, including answers to challenges.
    pub fn sent(&self) -> u64 {
        self.shared.sent.load(Ordering::Relaxed)
    }

    /// Sends bytes as they are.
    ///
    /// # Errors
    /// The kernel refuses.
    pub fn send_raw(&self, to: SocketAddr, datagram: &[u8]) -> Result<()> {
        let sent = self.shared.socket.send_to(datagram, to)?;
        self.shared.sent.fetch_add(sent as u64, Ordering::Relaxed);
        Ok(())
    }
}

impl Shared {
    fn send(&self, to: &NodeId, plaintext: &[u8]) -> Result<()> {
        let peer = self.peers.get(to).context("no peer of this one")?;
        let datagram = lock(&self.speaker).seal_bytes(&peer.key, plaintext)?;
        // What the socket does not accept is lost, as anywhere.
        let sent = self.socket.send_to(&datagram, peer.at).unwrap_or(0);
        self.sent.fetch_add(sent as u64, Ordering::Relaxed);
        Ok(())
    }

    fn take(&self, datagram: &[u8]) {
        let Some((header, _)) = DatagramHeader::parse(datagram) else { return };
        let Some(peer) = self.peers.get(&header.sender) else { return };
        let opened = lock(&self.speaker).open(&peer.key, datagram);
        let Ok(Some(frames)) = opened else { return };
        for frame in DatagramFrame::all(&frames) {
            if let DatagramFrame::Challenge(number) = frame {
                let _ = self.send(&header.sender, &DatagramFrame::Echo(number).to_bytes());
            }
        }
        let mut heard = lock(&self.heard);
        if heard.len() < KEPT {
            heard.push_back((header.sender, frames));
        }
    }
}

impl Drop for Line {
    fn drop(&mut self) {
        self.shared.over.store(true, Ordering::Relaxed);
        if let Some(receiver) = self.receiver.take() {
            let _ = receiver.join();
        }
    }
}
