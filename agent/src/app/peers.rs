//! What this node hears of others: their records by gossip, and by pulses who is alive.

use std::collections::BTreeSet;
use std::sync::Arc;

use proto::backends::LastKnownGood;
use proto::node::NodeId;
use proto::pulse::PeerLivenessMap;
use proto::record::NodeRecord;
use proto::settings::Settings;
use proto::topology::Place;
use proto::view::ClusterView;
use tokio::sync::{mpsc, watch};

use crate::gossip::{self, GossipBefore, GossipOutputs, GossipProblems};
use crate::lifecycle::Lifecycle;
use crate::membership::disk::MemberStore;
use crate::pulse::{self, PulseInputs};
use crate::records::SharedRecords;
use crate::transport::{Link, PulseAnswer, TopologyFrame, TrustedKeys};

/// What is heard, for all who read it.
pub(super) struct Peers {
    view: watch::Receiver<Arc<ClusterView>>,
    liveness: watch::Receiver<Arc<PeerLivenessMap>>,
    records: Arc<SharedRecords>,
    problems: watch::Receiver<GossipProblems>,
    place: watch::Receiver<Place>,
}

/// The other ends, which gossip and pulses write. They start after most of their readers, since they publish
/// what those make of it.
pub(super) struct PeerWriters {
    view: watch::Sender<Arc<ClusterView>>,
    liveness: watch::Sender<Arc<PeerLivenessMap>>,
    records: Arc<SharedRecords>,
    problems: watch::Sender<GossipProblems>,
    place: watch::Sender<Place>,
    core: watch::Sender<Arc<BTreeSet<NodeId>>>,
}

/// What gossip and pulses work with.
pub(super) struct PeerInputs {
    pub(super) link: Arc<Link>,
    pub(super) trust: watch::Receiver<Arc<TrustedKeys>>,
    pub(super) settings: watch::Receiver<Arc<Settings>>,
    pub(super) serving: watch::Receiver<Arc<LastKnownGood>>,
    /// What this node says of itself.
    pub(super) record: watch::Receiver<NodeRecord>,
    pub(super) disk: Arc<MemberStore>,
    pub(super) arrivals: PeerArrivals,
    /// Where the process before this one was.
    pub(super) before: Option<GossipBefore>,
}

/// What of the link's arrivals is for them.
pub(super) struct PeerArrivals {
    pub(super) gossip: mpsc::Receiver<(NodeId, Vec<u8>)>,
    pub(super) proven: mpsc::Receiver<NodeId>,
    pub(super) fingerprints: mpsc::Receiver<(NodeId, u32)>,
    pub(super) topology: mpsc::Receiver<(NodeId, TopologyFrame)>,
    pub(super) answers: mpsc::Receiver<PulseAnswer>,
}

impl Peers {
    /// Both ends. Nobody is heard yet.
    pub(super) fn new() -> (Peers, PeerWriters) {
        let records = Arc::new(SharedRecords::default());
        let (view_in, view) = watch::channel(Arc::default());
        let (liveness_in, liveness) = watch::channel(Arc::default());
        let (problems_in, problems) = watch::channel(GossipProblems::default());
        let (place_in, place) = watch::channel(Place::default());
        let peers = Peers { view, liveness, records: records.clone(), problems, place };
        let writers = PeerWriters {
            view: view_in,
            liveness: liveness_in,
            records,
            problems: problems_in,
            place: place_in,
            core: watch::Sender::new(Arc::default()),
        };
        (peers, writers)
    }

    /// The members and what each says of itself.
    pub(super) fn view(&self) -> watch::Receiver<Arc<ClusterView>> {
        self.view.clone()
    }

    /// What pulses show of each.
    pub(super) fn liveness(&self) -> watch::Receiver<Arc<PeerLivenessMap>> {
        self.liveness.clone()
    }

    /// The signed records that the view is made of.
    pub(super) fn records(&self) -> &SharedRecords {
        &self.records
    }

    /// Whether this node gossips.
    pub(super) fn place(&self) -> Place {
        *self.place.borrow()
    }

    /// What went wrong with gossip.
    pub(super) fn gossip_problems(&self) -> GossipProblems {
        self.problems.borrow().clone()
    }
}

impl PeerWriters {
    /// Starts pulses and gossip.
    pub(super) fn start(self, inputs: PeerInputs, life: &Lifecycle) {
        let PeerInputs { link, trust, settings, serving, record, disk, arrivals, before } = inputs;
        let PeerArrivals { gossip: messages, proven, fingerprints, topology, answers } = arrivals;
        let pulses = PulseInputs {
            link: link.clone(),
            view: self.view.subscribe(),
            place: self.place.subscribe(),
            core: self.core.subscribe(),
            record: record.clone(),
            answers,
        };
        pulse::spawn(pulses, self.liveness, life);
        let inputs = gossip::GossipInputs {
            link,
            trust,
            settings,
            serving,
            arrivals: messages,
            proven,
            fingerprints,
            topology,
            record,
            records: self.records,
            next_generation: Box::new(move |above| disk.next_generation(above)),
            before,
        };
        gossip::spawn(
            inputs,
            GossipOutputs { view: self.view, problems: self.problems, place: self.place, core: self.core },
            life,
        );
    }
}
