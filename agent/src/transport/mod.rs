//! The link: one port, UDP and TCP, sealed.
//!
//! Parts, each with its own state: [`udp`] moves datagrams, by [`socket`], [`sealer`], [`proofs`], [`responder`] and
//! [`riding_beats`];
//! [`tcp`] accepts connections, and [`dial`] makes them; [`addresses`] knows where members are and
//! what of that is proven; [`inbox`] hands on what arrives, by bounded queues; [`counters`] count. [`Link`] holds
//! them, and does what takes two of them.
//!
//! Tasks: one reads datagrams and answers challenges; one accepts connections and gives each a task of its own;
//! and each peer that large gossip goes to has one. All belong to the `Life`; none holds state that outlives it,
//! so stopping them anywhere is safe.
//!
//! The link knows nothing of why anyone is trusted: it reads the current [`TrustedKeys`], which membership alone
//! writes.

pub(crate) mod addresses;
mod counters;
pub(crate) mod dial;
pub(crate) mod frames;
mod inbox;
mod pairs;
mod places;
mod proofs;
mod refused;
pub(crate) mod repeats;
mod responder;
mod riding_beats;
mod sealer;
mod slots;
mod socket;
mod tcp;
pub(crate) mod tls;
mod udp;

#[cfg(test)]
mod tests;

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use proto::cause::{Cause, Fault};
use proto::cluster::Document;
use proto::handover::HandOver;
use proto::node::{NodeId, PublicKey};
use proto::time::UnixMs;
use proto::transport::{KeyRing, MAX_BODY};
use tokio::net::TcpListener;
use tokio::sync::watch;

use self::addresses::AddressBook;
use self::counters::{Count, LinkCounters};
use self::dial::PeerDialer;
use self::inbox::Arrivals;
pub(crate) use self::inbox::{Inbox, JoinConnection, MemberRequest, PulseAnswer, TopologyFrame};
use self::socket::DatagramSocket;
use self::tcp::ConnectionServer;
use self::tls::Identity;
use self::udp::Datagrams;
use crate::handover::{self, Received};
use crate::lifecycle::{Lifecycle, wall};

/// Time for the answer to one challenge of a node that is dialled back, and how many there are: a datagram or
/// two may be lost.
const CHALLENGE: Duration = Duration::from_millis(400);
const CHALLENGES: u32 = 5;

/// Whom this node trusts now, and with which keys.
#[derive(Debug, Clone)]
pub(crate) struct TrustedKeys {
    pub(crate) document: Arc<Document>,
    pub(crate) ring: Arc<KeyRing>,
}

/// The link's port, taken.
pub(crate) struct BoundPorts {
    udp: DatagramSocket,
    tcp: TcpListener,
    /// When this agent started, or the process that it goes on from.
    began: UnixMs,
    /// The boot of that process, and a number above all that its datagrams had.
    boot: Option<(u64, u64)>,
}

/// The port can't be had.
#[derive(Debug, thiserror::Error)]
#[error("cannot bind port {port}: {why}; to see who uses it, run: ss -lnptu 'sport = {port}'")]
pub(crate) struct BindError {
    port: u16,
    why: io::Error,
}

impl BindError {
    /// Another process has it.
    pub(crate) fn is_in_use(&self) -> bool {
        self.why.kind() == io::ErrorKind::AddrInUse
    }
}

impl BoundPorts {
    /// Binds the port, UDP and TCP.
    pub(crate) fn bind(address: Option<IpAddr>, port: u16) -> Result<BoundPorts, BindError> {
        let bind = || -> io::Result<BoundPorts> {
            Ok(BoundPorts {
                udp: DatagramSocket::bind(address, port)?,
                tcp: tcp::bind(address, port)?,
                began: wall(),
                boot: None,
            })
        };
        bind().map_err(|why| BindError { port, why })
    }

    /// The port as the process before this one had it; `None` where that was another, or nothing was handed over.
    pub(crate) fn handed(address: Option<IpAddr>, port: u16, received: &mut Received) -> Option<BoundPorts> {
        let slots = std::mem::take(&mut received.form.link);
        let mut sockets = slots.into_iter().map(|slot| received.take(slot));
        let (udp, tcp) = (sockets.next()??, sockets.next()??);
        let udp = DatagramSocket::of(udp.into()).ok()?;
        let at = udp.local().ok()?;
        let is_same = at.port() == port && address.map_or(at.ip().is_unspecified(), |ip| ip == at.ip());
        let tcp = is_same.then(|| TcpListener::from_std(tcp.into()).ok())??;
        Some(BoundPorts { udp, tcp, began: received.form.began, boot: received.form.boot })
    }
}

/// The link of this node.
pub(crate) struct Link {
    identity: Arc<Identity>,
    trust: watch::Receiver<Arc<TrustedKeys>>,
    addresses: Arc<AddressBook>,
    datagrams: Arc<Datagrams>,
    dialer: Arc<PeerDialer>,
    server: Arc<ConnectionServer>,
    listener: Arc<TcpListener>,
    counters: Arc<LinkCounters>,
}

impl Link {
    /// The link on its port. Returns also what arrives on it, and the TCP listener to be served.
    pub(crate) fn new(
        ports: BoundPorts,
        identity: Arc<Identity>,
        trust: watch::Receiver<Arc<TrustedKeys>>,
    ) -> (Arc<Link>, Inbox) {
        let BoundPorts { udp, tcp, began, boot } = ports;
        let counters = Arc::new(LinkCounters::default());
        let addresses = Arc::new(AddressBook::new(trust.clone()));
        let (arrivals, inbox) = Arrivals::new(counters.clone());
        let arrivals = Arc::new(arrivals);
        let (who, whom, at) = (|| identity.clone(), || trust.clone(), || addresses.clone());
        let datagrams =
            Datagrams::new(udp, who(), whom(), at(), arrivals.clone(), counters.clone(), (began, boot));
        let dialer = PeerDialer::new(who(), whom(), at(), counters.clone());
        let server = ConnectionServer::new(who(), whom(), at(), arrivals, counters.clone());
        let (datagrams, dialer, server) = (Arc::new(datagrams), Arc::new(dialer), Arc::new(server));
        let listener = Arc::new(tcp);
        let link = Link { identity, trust, addresses, datagrams, dialer, server, listener, counters };
        (Arc::new(link), inbox)
    }

    /// Serves the port until the life is over.
    ///
    /// # Errors
    /// TLS can't be set up, which no input can cause.
    pub(crate) fn serve(&self, life: &Lifecycle) -> Result<(), rustls::Error> {
        self.datagrams.serve(life);
        self.server.serve(self.listener.clone(), life)
    }

    /// Adds the port to what another process needs to go on, for which it stays open.
    pub(crate) fn hand_over(&self, form: &mut HandOver) {
        for socket in self.sockets() {
            handover::keep_open(socket, true);
            let slot = form.place(u64::from(socket.as_raw_fd().unsigned_abs()));
            form.link.push(slot);
        }
        form.boot = Some(self.datagrams.boot());
    }

    /// No other process goes on.
    pub(crate) fn resume(&self) {
        self.sockets().into_iter().for_each(|socket| handover::keep_open(socket, false));
    }

    fn sockets(&self) -> [BorrowedFd<'_>; 2] {
        [self.datagrams.socket().as_fd(), self.listener.as_fd()]
    }

    /// This node.
    pub(crate) fn own(&self) -> NodeId {
        self.identity.id
    }

    /// Its key.
    pub(crate) fn identity(&self) -> &Arc<Identity> {
        &self.identity
    }

    /// Who is a member, and where each is.
    pub(crate) fn document(&self) -> Arc<Document> {
        self.trust.borrow().document.clone()
    }

    /// Where members are reached.
    pub(crate) fn addresses(&self) -> &AddressBook {
        &self.addresses
    }

    /// Pulses, virtual IPs, and who was heard.
    pub(crate) fn datagrams(&self) -> &Datagrams {
        &self.datagrams
    }

    /// Requests to members.
    pub(crate) fn dialer(&self) -> &PeerDialer {
        &self.dialer
    }

    /// What was counted.
    pub(crate) fn counters(&self) -> &LinkCounters {
        &self.counters
    }

    /// Sends a gossip message to a peer: by datagram where it fits, else by TLS. Never waits; what can't be
    /// sent is dropped, since gossip repeats itself.
    pub(crate) fn send_gossip(&self, to: NodeId, message: &[u8], life: &Lifecycle) {
        self.counters.add(Count::SentGossipBytes, message.len());
        if message.len() > MAX_BODY {
            self.dialer.send_gossip(to, message.to_vec(), life);
        } else {
            self.datagrams.send_gossip(to, message);
        }
    }

    /// Whether this node can be reached at this address, by TCP and by UDP. Each answer is none when it can,
    /// else why not.
    pub(crate) async fn dial_back(
        &self,
        key: PublicKey,
        address: SocketAddr,
    ) -> (Option<Fault>, Option<Fault>) {
        let udp = async {
            // The new node answers a challenge only when it holds the cluster's key.
            for _ in 0..CHALLENGES {
                let echo = self.datagrams.probe(key.id(), address);
                if tokio::time::timeout(CHALLENGE, echo).await.is_ok_and(|heard| heard.is_ok()) {
                    return Ok(());
                }
            }
            let detail = format!("no answer from {address} within {}s", (CHALLENGE * CHALLENGES).as_secs());
            Err(Fault::new(Cause::TimedOut, detail))
        };
        let (tcp, udp) = tokio::join!(self.dialer.reach(key, address), udp);
        (tcp.err(), udp.err())
    }

    /// Forgets what is known of nodes that are not members any more.
    pub(crate) fn forget_strangers(&self) {
        let document = self.document();
        let member = |id: &NodeId| document.member(id).is_some();
        self.addresses.retain(member);
        self.datagrams.retain(member);
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    // Nothing that is done under these locks can leave a value half-written.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Random bytes from the kernel.
pub(crate) fn random<const N: usize>() -> [u8; N] {
    let mut bytes = [0; N];
    let rng = ring::rand::SystemRandom::new();
    // getrandom(2) with a good pointer fails only before the kernel's pool is seeded, and then it blocks.
    #[allow(clippy::expect_used)]
    ring::rand::SecureRandom::fill(&rng, &mut bytes).expect("the kernel has no random bytes");
    bytes
}
