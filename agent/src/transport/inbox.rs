//! What arrives, handed on to the rest of the agent by bounded queues, as much of it as one member may send.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use proto::limit::{Rate, RateBucket};
use proto::node::{NodeId, PublicKey};
use proto::rpc::{FromMember, ToMember};
use proto::time::Moment;
use tokio::sync::{mpsc, oneshot};

use super::counters::{Count, LinkCounters};
use super::repeats::RepeatedBeats;
use super::{frames, lock, slots};

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
    pub(super) place: slots::ConnectionSlot<IpAddr>,
}

/// What came of a pulse.
pub(crate) enum PulseAnswer {
    /// An answer.
    Said {
        from: NodeId,
        /// Of which pulse; 0: unasked.
        number: u64,
        /// The peer's [`proto::pulse::PulseStatus`] as it came.
        pulse_status: Vec<u8>,
    },
    /// "Nothing listens here", said by the machine (ICMP). Nobody has signed that, so it may raise a doubt
    /// and settle nothing.
    NoAgent(NodeId),
    /// A master, or two others, report that this peer does not answer them.
    Doubted(NodeId),
}

/// What an attached node and a core member say to each other.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum TopologyFrame {
    /// Of an attached node.
    Attach(Vec<u8>),
    /// Of a core member.
    Beacon(Vec<u8>),
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
    /// What attached nodes and core members say to each other.
    pub(crate) topology: mpsc::Receiver<(NodeId, TopologyFrame)>,
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
    /// One with each pulse and with each answer, and of a core member ten a second while a master is silent.
    Report,
    /// One in two seconds, and from a core member as many records as nodes that are attached to it change at once.
    Topology,
}

impl MemberTraffic {
    fn rate(self) -> Rate {
        match self {
            MemberTraffic::Gossip => Rate { every: Duration::from_millis(20), burst: 50 },
            MemberTraffic::Pulse => Rate { every: Duration::from_millis(15), burst: 30 },
            MemberTraffic::Answer => Rate { every: Duration::from_millis(10), burst: 50 },
            MemberTraffic::Vip => Rate { every: Duration::from_millis(2), burst: 100 },
            MemberTraffic::Topology => Rate { every: Duration::from_millis(50), burst: 200 },
            MemberTraffic::Fingerprint => Rate { every: Duration::from_millis(250), burst: 4 },
            MemberTraffic::Report => Rate { every: Duration::from_millis(10), burst: 60 },
        }
    }
}

/// The other end of the [`Inbox`]. Nothing here waits: what does not fit is dropped.
pub(super) struct Arrivals {
    gossip: mpsc::Sender<(NodeId, Vec<u8>)>,
    members: mpsc::Sender<MemberRequest>,
    joining: mpsc::Sender<JoinConnection>,
    proven: mpsc::Sender<NodeId>,
    unknown_key: mpsc::Sender<NodeId>,
    answers: mpsc::Sender<PulseAnswer>,
    vips: mpsc::Sender<(NodeId, Vec<u8>)>,
    fingerprints: mpsc::Sender<(NodeId, u32)>,
    topology: mpsc::Sender<(NodeId, TopologyFrame)>,
    pub(super) repeats: RepeatedBeats,
    /// What each member may still send.
    rates: Mutex<BTreeMap<(NodeId, MemberTraffic), RateBucket>>,
    counters: Arc<LinkCounters>,
}

impl Arrivals {
    /// Both ends of the queues.
    pub(super) fn new(counters: Arc<LinkCounters>) -> (Arrivals, Inbox) {
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
        // A second of what is attached to one core member, if all others of it are lost in a cluster of a thousand.
        let (topology, topology_in) = mpsc::channel(1024);
        let rates = Mutex::default();
        let arrivals = Arrivals {
            gossip,
            members,
            joining,
            proven,
            unknown_key,
            answers,
            vips,
            fingerprints,
            topology,
            repeats: RepeatedBeats::default(),
            rates,
            counters,
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
            topology: topology_in,
        };
        (arrivals, inbox)
    }

    /// Whether one more of this kind is taken from a member now.
    fn fits(&self, traffic: MemberTraffic, from: NodeId, now: Moment) -> bool {
        let fits = lock(&self.rates).entry((from, traffic)).or_default().take(traffic.rate(), now);
        if !fits {
            self.counters.one(Count::RefusedFlood);
        }
        fits
    }

    /// A gossip message.
    pub(super) fn gossip(&self, from: NodeId, message: impl Into<Vec<u8>>, now: Moment) {
        if self.fits(MemberTraffic::Gossip, from, now) {
            let _ = self.gossip.try_send((from, message.into()));
        }
    }

    /// A pulse: whether it is to be answered.
    pub(super) fn pulse(&self, from: NodeId, now: Moment) -> bool {
        self.fits(MemberTraffic::Pulse, from, now)
    }

    /// A report about whom a member hears: whether it is taken.
    pub(super) fn report(&self, from: NodeId, now: Moment) -> bool {
        self.fits(MemberTraffic::Report, from, now)
    }

    /// An answer to a pulse.
    pub(super) fn answer(&self, from: NodeId, number: u64, pulse_status: &[u8], now: Moment) {
        if !self.fits(MemberTraffic::Answer, from, now) {
            return;
        }
        self.counters.one(Count::ReceivedAnswers);
        let _ =
            self.answers.try_send(PulseAnswer::Said { from, number, pulse_status: pulse_status.to_vec() });
    }

    /// A datagram to this peer was refused. What does not fit is refused again with the next pulse.
    pub(super) fn no_agent(&self, peer: NodeId) {
        let _ = self.answers.try_send(PulseAnswer::NoAgent(peer));
    }

    /// Others report that this peer does not answer. What does not fit is reported again.
    pub(super) fn doubted(&self, peer: NodeId) {
        let _ = self.answers.try_send(PulseAnswer::Doubted(peer));
    }

    /// A message of virtual IPs.
    pub(super) fn vip(&self, from: NodeId, message: &[u8], now: Moment) {
        if self.fits(MemberTraffic::Vip, from, now) && !self.repeats.keep(&from, message, now) {
            let _ = self.vips.try_send((from, message.to_vec()));
        }
    }

    /// The fingerprint of a member's record.
    pub(super) fn fingerprint(&self, from: NodeId, fingerprint: u32, now: Moment) {
        if self.fits(MemberTraffic::Fingerprint, from, now) {
            let _ = self.fingerprints.try_send((from, fingerprint));
        }
    }

    /// What an attached node or a core member says.
    pub(super) fn topology(&self, from: NodeId, frame: TopologyFrame, now: Moment) {
        if self.fits(MemberTraffic::Topology, from, now) {
            let _ = self.topology.try_send((from, frame));
        }
    }

    /// A peer has proven its boot.
    pub(super) fn proven(&self, peer: NodeId) {
        let _ = self.proven.try_send(peer);
    }

    /// A member sealed with a key that is not held. Not believed, only a hint to look for new keys, and that by
    /// TLS.
    pub(super) fn unknown_key(&self, from: NodeId) {
        let _ = self.unknown_key.try_send(from);
    }

    /// A request of a member. False: there is no room for it.
    pub(super) fn request(&self, request: MemberRequest) -> bool {
        self.members.try_send(request).is_ok()
    }

    /// A node that wants to join. A full queue closes its connection: it says so and tries again.
    pub(super) fn joining(&self, connection: JoinConnection) {
        let _ = self.joining.try_send(connection);
    }

    /// Forgets everyone who is not a member any more.
    pub(super) fn retain(&self, member: impl Fn(&NodeId) -> bool) {
        lock(&self.rates).retain(|(id, _), _| member(id));
    }
}
