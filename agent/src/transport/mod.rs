//! The link: one port, UDP and TCP, sealed.
//!
//! Tasks: [`udp`] reads datagrams and answers challenges; [`tcp`] accepts connections and gives each a task
//! of its own; [`dial`] makes connections and keeps one to each peer that large gossip messages go to. All
//! belong to the `Life`; none holds state that outlives it, so stopping them anywhere is safe. Beside them stand
//! [`pairs`], the keys shared with each member, and [`addresses`], where members are and what of that is proven.
//!
//! The link knows nothing of why anyone is trusted: it reads the current [`TrustedKeys`], which membership alone
//! writes. What arrives is handed on by bounded queues ([`Inbox`]).

pub(crate) mod addresses;
pub(crate) mod dial;
pub(crate) mod frames;
mod pairs;
mod refused;
pub(crate) mod slots;
pub(crate) mod tcp;
pub(crate) mod tls;
pub(crate) mod udp;

#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::ops::RangeInclusive;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use proto::cluster::Document;
use proto::limit::{Rate, RateBucket};
use proto::node::{NodeId, PublicKey};
use proto::pulse::PulseStatus;
use proto::rpc::{FromMember, ToMember};
use proto::session::Sessions;
use proto::time::Moment;
use proto::transport::KeyRing;
use tokio::net::{TcpListener, UdpSocket};
use tokio::sync::{mpsc, oneshot, watch};

use self::addresses::AddressBook;
use self::tls::Identity;

/// Whom this node trusts now, and with which keys.
#[derive(Debug, Clone)]
pub(crate) struct TrustedKeys {
    pub(crate) document: Arc<Document>,
    pub(crate) ring: Arc<KeyRing>,
}

/// A request of a member, and the way for its answer.
pub(crate) struct MemberRequest {
    pub(crate) from: NodeId,
    pub(crate) request: FromMember,
    pub(crate) reply: oneshot::Sender<ToMember>,
}

/// A connection of a node that wants to join.
pub(crate) struct JoinConnection {
    pub(crate) key: PublicKey,
    pub(crate) from: SocketAddr,
    /// The TLS session's exported value, which proofs and codes are bound to.
    pub(crate) session: [u8; 32],
    pub(crate) stream: frames::Framed,
    /// Held as long as the conversation lasts, since there are so many at once.
    #[allow(dead_code)]
    place: slots::ConnectionSlot<IpAddr>,
}

/// Where arrivals go. The queues are small: gossip repeats itself, and members and joining nodes wait for
/// their answer, so what does not fit now is better dropped or refused than kept.
pub(crate) struct Inbox {
    pub(crate) gossip: mpsc::Receiver<(NodeId, Vec<u8>)>,
    pub(crate) members: mpsc::Receiver<MemberRequest>,
    pub(crate) joining: mpsc::Receiver<JoinConnection>,
    /// A peer has proven its boot: it can be gossiped with now.
    pub(crate) proven: mpsc::Receiver<NodeId>,
    /// A member sealed with a key that this node does not hold.
    pub(crate) unknown_key: mpsc::Receiver<NodeId>,
    /// What came of pulses, and what members say unasked.
    pub(crate) answers: mpsc::Receiver<PulseAnswer>,
    /// What members say of virtual IPs.
    pub(crate) vips: mpsc::Receiver<(NodeId, Vec<u8>)>,
    /// Fingerprints of members' current records: whoever has another record of one pulls it.
    pub(crate) fingerprints: mpsc::Receiver<(NodeId, u32)>,
}

/// What came of a pulse.
pub(crate) enum PulseAnswer {
    /// An answer.
    Said {
        from: NodeId,
        /// Of which pulse; 0: unasked.
        number: u64,
        pulse_status: PulseStatus,
    },
    /// "Nothing listens here", said by the machine (ICMP). Nobody has signed that, so it may raise a doubt
    /// and settle nothing.
    NoAgent(NodeId),
}

struct LinkInputs {
    gossip: mpsc::Sender<(NodeId, Vec<u8>)>,
    members: mpsc::Sender<MemberRequest>,
    joining: mpsc::Sender<JoinConnection>,
    proven: mpsc::Sender<NodeId>,
    unknown_key: mpsc::Sender<NodeId>,
    answers: mpsc::Sender<PulseAnswer>,
    vips: mpsc::Sender<(NodeId, Vec<u8>)>,
    fingerprints: mpsc::Sender<(NodeId, u32)>,
}

/// What members send unasked, each at a rate of its own for each member: the queues are shared, and one that
/// floods must not crowd out others.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum MemberTraffic {
    /// chitchat sends a member some three messages a second, of which each is answered.
    Gossip,
    /// Ten pulses a second, twenty in a burst.
    Pulse,
    /// As many, and a few that were not asked for.
    Answer,
    /// Twenty beats a second for each of up to sixteen virtual IPs.
    Vip,
    /// One a second.
    Fingerprint,
}

impl MemberTraffic {
    fn rate(self) -> Rate {
        match self {
            MemberTraffic::Gossip => Rate { every: Duration::from_millis(20), burst: 50 },
            MemberTraffic::Pulse => Rate { every: Duration::from_millis(15), burst: 30 },
            MemberTraffic::Answer => Rate { every: Duration::from_millis(10), burst: 50 },
            MemberTraffic::Vip => Rate { every: Duration::from_millis(2), burst: 100 },
            MemberTraffic::Fingerprint => Rate { every: Duration::from_millis(250), burst: 4 },
        }
    }
}

/// A number that waits to be repeated from where it was sent.
struct PendingProbe {
    peer: NodeId,
    to: SocketAddr,
    answered: oneshot::Sender<()>,
}

/// Who has pulsed this node.
struct PulsePeer {
    from: SocketAddr,
    at: Moment,
    /// When it was last sent the fingerprint of this node's record.
    fingerprint: Option<Moment>,
}

/// What was counted on the link since the start, for logs and tests.
#[derive(Debug, Default)]
pub(crate) struct LinkCounters {
    pub(crate) sent_bytes: AtomicU64,
    pub(crate) received_bytes: AtomicU64,
    pub(crate) sent_datagrams: AtomicU64,
    pub(crate) received_datagrams: AtomicU64,
    pub(crate) refused_stranger: AtomicU64,
    pub(crate) refused_key: AtomicU64,
    pub(crate) refused_seal: AtomicU64,
    pub(crate) refused_replay: AtomicU64,
    pub(crate) refused_unproven: AtomicU64,
    pub(crate) refused_flood: AtomicU64,
    pub(crate) refused_connections: AtomicU64,
    pub(crate) sent_gossip_bytes: AtomicU64,
    pub(crate) sent_pulses: AtomicU64,
    pub(crate) received_answers: AtomicU64,
}

/// Adds to a counter.
pub(crate) fn count(counter: &AtomicU64, by: usize) {
    counter.fetch_add(by as u64, Ordering::Relaxed);
}

/// The link of this node.
pub(crate) struct Link {
    pub(crate) identity: Arc<Identity>,
    pub(crate) trust: watch::Receiver<Arc<TrustedKeys>>,
    pub(crate) addresses: AddressBook,
    pub(crate) counters: LinkCounters,
    boot: u64,
    sequence: AtomicU64,
    pairs: pairs::PairKeyCache,
    flows: Mutex<BTreeMap<(NodeId, MemberTraffic), RateBucket>>,
    /// What requests of members may hold, and what answers of members may.
    requests: Arc<frames::FrameBudget>,
    answers: Arc<frames::FrameBudget>,
    sessions: Mutex<Sessions>,
    pending_probes: Mutex<BTreeMap<u64, PendingProbe>>,
    /// The versions of datagrams that each peer says it speaks.
    versions: Mutex<BTreeMap<NodeId, RangeInclusive<u8>>>,
    /// When the last fresh datagram of each peer came.
    heard: Mutex<BTreeMap<NodeId, Moment>>,
    udp: UdpSocket,
    /// The socket takes IPv6 addresses.
    v6: bool,
    inputs: LinkInputs,
    /// What this node says in every answer to a pulse, as bytes.
    status: Mutex<Vec<u8>>,
    /// Who has pulsed this node, from where and when: they are told of changes at once.
    askers: Mutex<BTreeMap<NodeId, PulsePeer>>,
    /// Of this node's current record; it goes to each asker once a second.
    fingerprint: Mutex<Option<u32>>,
    large: dial::LargeSenders,
}

/// The link's port, taken.
pub(crate) struct BoundPorts {
    udp: UdpSocket,
    tcp: TcpListener,
    /// The UDP socket takes IPv6 addresses.
    v6: bool,
}

/// The port can't be had.
#[derive(Debug, thiserror::Error)]
#[error("cannot bind port {port}: {why}; to see who uses it, run: ss -lnptu 'sport = {port}'")]
pub(crate) struct BindError {
    port: u16,
    why: io::Error,
}

impl BoundPorts {
    /// Binds the port, UDP and TCP.
    pub(crate) fn bind(address: Option<std::net::IpAddr>, port: u16) -> Result<BoundPorts, BindError> {
        let bind = || -> io::Result<BoundPorts> {
            let (udp, tcp) = (udp::bind(address, port)?, tcp::bind(address, port)?);
            let v6 = udp.local_addr()?.is_ipv6();
            Ok(BoundPorts { udp, tcp, v6 })
        };
        bind().map_err(|why| BindError { port, why })
    }
}

impl Link {
    /// The link on its port. Returns also what arrives on it, and the TCP listener to be served.
    pub(crate) fn new(
        ports: BoundPorts,
        identity: Arc<Identity>,
        trust: watch::Receiver<Arc<TrustedKeys>>,
    ) -> (Arc<Link>, Inbox, TcpListener) {
        let BoundPorts { udp, tcp, v6 } = ports;
        let (gossip, gossip_in) = mpsc::channel(256);
        let (members, members_in) = mpsc::channel(32);
        let (joining, joining_in) = mpsc::channel(16);
        let (proven, proven_in) = mpsc::channel(64);
        let (unknown_key, unknown_key_in) = mpsc::channel(4);
        // A second of answers of some hundred masters; what does not fit counts as lost, as on the wire.
        let (answers, answers_in) = mpsc::channel(1024);
        // A second of beats of seven candidates and their witnesses; they repeat themselves.
        let (vips, vips_in) = mpsc::channel(256);
        // Each master says it once a second; what does not fit is said again.
        let (fingerprints, fingerprints_in) = mpsc::channel(256);
        let boot = u64::from_be_bytes(random());
        let link = Link {
            pairs: pairs::PairKeyCache::new(identity.clone(), boot),
            flows: Mutex::new(BTreeMap::new()),
            requests: frames::FrameBudget::new(frames::BUDGET, frames::BUDGET_EACH),
            answers: frames::FrameBudget::new(frames::BUDGET, frames::BUDGET_EACH),
            identity,
            addresses: AddressBook::new(trust.clone()),
            trust,
            counters: LinkCounters::default(),
            boot,
            sequence: AtomicU64::new(0),
            sessions: Mutex::new(Sessions::default()),
            pending_probes: Mutex::new(BTreeMap::new()),
            versions: Mutex::new(BTreeMap::new()),
            heard: Mutex::new(BTreeMap::new()),
            udp,
            v6,
            inputs: LinkInputs { gossip, members, joining, proven, unknown_key, answers, vips, fingerprints },
            status: Mutex::new(Vec::new()),
            askers: Mutex::new(BTreeMap::new()),
            fingerprint: Mutex::new(None),
            large: dial::LargeSenders::default(),
        };
        let inbox = Inbox {
            gossip: gossip_in,
            members: members_in,
            joining: joining_in,
            proven: proven_in,
            unknown_key: unknown_key_in,
            answers: answers_in,
            vips: vips_in,
            fingerprints: fingerprints_in,
        };
        (Arc::new(link), inbox, tcp)
    }

    /// This node.
    pub(crate) fn own(&self) -> NodeId {
        self.identity.id
    }

    /// Whether one more of this kind is taken from a member now.
    fn fits(&self, flow: MemberTraffic, from: NodeId, now: Moment) -> bool {
        let fits = lock(&self.flows).entry((from, flow)).or_default().take(flow.rate(), now);
        if !fits {
            count(&self.counters.refused_flood, 1);
        }
        fits
    }

    /// Whether this node has proven that it is at this address, since it is a member.
    pub(crate) fn proven_at(&self, id: &NodeId, ip: IpAddr) -> bool {
        self.addresses.is_proven(id, ip)
    }

    /// Changes with every address that a member has proven for the first time.
    pub(crate) fn proven_changes(&self) -> watch::Receiver<u64> {
        self.addresses.changes()
    }

    /// Which versions of datagrams a peer says it speaks.
    pub(crate) fn speaks(&self, id: NodeId, versions: RangeInclusive<u8>) {
        if self.trust.borrow().document.member(&id).is_some() {
            lock(&self.versions).insert(id, versions);
        }
    }

    /// The fingerprint of this node's current record, which goes with an answer a second.
    pub(crate) fn set_record_fingerprint(&self, fingerprint: u32) {
        *lock(&self.fingerprint) = Some(fingerprint);
    }

    /// When this peer was last heard itself, by a fresh datagram.
    pub(crate) fn last_heard(&self, peer: &NodeId) -> Option<Moment> {
        lock(&self.heard).get(peer).copied()
    }

    /// Forgets what is known of nodes that are not members any more.
    pub(crate) fn forget_strangers(&self) {
        let document = self.trust.borrow().document.clone();
        let member = |id: &NodeId| document.member(id).is_some();
        lock(&self.sessions).retain(member);
        self.addresses.retain(member);
        self.pairs.retain(member);
        lock(&self.heard).retain(|id, _| member(id));
        lock(&self.flows).retain(|(id, _), _| member(id));
        lock(&self.versions).retain(|id, _| member(id));
        lock(&self.askers).retain(|id, _| member(id));
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
