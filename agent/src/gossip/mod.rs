//! Gossip: spreads this node's record to all members, and builds the [`ClusterView`] from theirs.
//!
//! chitchat runs behind the transport's seal and behind the [`guard`], and carries one key for each node: its
//! signed record. It is the slow and reliable path: it decides who exists, not who is alive at this moment.
//! The records themselves are stored separately ([`crate::records`]), and pulled over TLS when gossip does
//! not bring them ([`pull`]). One task owns it all and restarts chitchat, with a higher generation, should it
//! ever end; stopping anywhere is safe, since its whole state is what members publish again.
//!
//! In a large cluster only a core runs chitchat: an attached node reports to core members, and is told what it needs
//! ([`attached`]).
//!
//! This module is the sole publisher of this node's record.

mod attached;
mod codec;
mod guard;
mod problems;
mod pull;
mod view;
mod wire;

use std::collections::{BTreeMap, BTreeSet};
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};
use std::time::Duration;

use chitchat::{
    ChitchatConfig, ChitchatHandle, ChitchatId, FailureDetectorConfig, Heartbeat, NodeState, ProtocolVersion,
    spawn_chitchat,
};
use proto::backends::LastKnownGood;
use proto::cluster::Document;
use proto::next_wire;
use proto::node::NodeId;
use proto::record::NodeRecord;
use proto::settings::Settings;
use proto::signed_record::{RecordVersion, SignedRecord};
use proto::time::Moment;
use proto::topology::Place;
use proto::view::ClusterView;
use tokio::sync::{mpsc, watch};
use tracing::{info, warn};

use self::attached::ClusterPlace;
use self::codec::{GossipInbox, GossipTransport, NodeAddresses};
use self::guard::GossipGuard;
pub(crate) use self::problems::GossipProblems;
use self::pull::RecordPulls;
pub(crate) use self::pull::newer;
use self::view::{MadeOf, RecordCache};
use crate::lifecycle::{Lifecycle, wall};
use crate::records::SharedRecords;
use crate::timer::Ticks;
use crate::transport::{Link, TopologyFrame, TrustedKeys};

/// The one gossip key of each node: its record.
const KEY: &str = "r";

/// Shortest interval of gossip. At a second, ten nodes send 2.3 kB/s each, more than promised; and liveness
/// is the task of pulses.
const MIN_INTERVAL: Duration = Duration::from_millis(1_250);

/// Rounds become rarer by this many nodes a second, so that the traffic of a node stays bounded.
const NODES_PER_SECOND: f64 = 450.0;

/// Phi of the failure detector: below 6 it reports false deaths, at 8 it detects a crash after 4 to 9
/// intervals.
const PHI: f64 = 8.0;

/// How long a dead node's record is kept: an hour's outage must not empty the view, a day's dead incarnations
/// would fill the digest.
const GRACE: Duration = Duration::from_secs(15 * 60);

/// A member whose own datagram arrived within this time is alive, whatever chitchat's statistics say.
const DIRECT: Duration = Duration::from_secs(3);

/// Interval of polling chitchat's state: it reports changes only once a round, and a node that has just
/// joined should not wait for that. As long again for each hundred members, so that polling never costs much.
const LOOK: Duration = Duration::from_millis(200);

/// Shortest time between two restarts of gossip because of a later record of this node than its own: each
/// makes every node learn this one again, and another machine with the same identity would respond in kind.
const OVERTAKEN: Duration = Duration::from_secs(30);

/// A run of gossip that lasted this long has recovered from the previous failure.
const RECOVERED: Duration = Duration::from_secs(120);

/// What gossip needs.
pub(crate) struct GossipInputs {
    pub(crate) link: Arc<Link>,
    pub(crate) trust: watch::Receiver<Arc<TrustedKeys>>,
    pub(crate) settings: watch::Receiver<Arc<Settings>>,
    /// Last known good backends: the addresses of those nodes were proven before.
    pub(crate) serving: watch::Receiver<Arc<LastKnownGood>>,
    pub(crate) arrivals: mpsc::Receiver<(NodeId, Vec<u8>)>,
    pub(crate) proven: mpsc::Receiver<NodeId>,
    /// Fingerprints of members' latest records, from their pulses.
    pub(crate) fingerprints: mpsc::Receiver<(NodeId, u32)>,
    /// What attached nodes and core members say to each other.
    pub(crate) topology: mpsc::Receiver<(NodeId, TopologyFrame)>,
    pub(crate) record: watch::Receiver<NodeRecord>,
    pub(crate) records: Arc<SharedRecords>,
    /// Returns the next generation, above all earlier ones and the given one.
    pub(crate) next_generation: Box<dyn Fn(u64) -> u64 + Send>,
    /// Where the process before this one was.
    pub(crate) before: Option<GossipBefore>,
}

/// Where gossip of the process before this one was: for all others this one is the same start.
#[derive(Debug, Clone, Copy)]
pub(crate) struct GossipBefore {
    /// The version of the last record.
    pub(crate) version: RecordVersion,
    /// A number above all heartbeats that it has sent.
    pub(crate) heartbeat: u64,
}

/// What gossip alone writes.
pub(crate) struct GossipOutputs {
    pub(crate) view: watch::Sender<Arc<ClusterView>>,
    pub(crate) problems: watch::Sender<GossipProblems>,
    pub(crate) place: watch::Sender<Place>,
    /// Who gossips, if not all.
    pub(crate) core: watch::Sender<Arc<BTreeSet<NodeId>>>,
}

/// Starts gossip.
pub(crate) fn spawn(inputs: GossipInputs, outputs: GossipOutputs, life: &Lifecycle) {
    let document = inputs.trust.borrow().document.clone();
    let place = ClusterPlace::new(inputs.link.own(), &document, life.now());
    let guard = Arc::new(Mutex::new(GossipGuard::new(inputs.link.own())));
    let (passing, records, clock) = (guard.clone(), inputs.records.clone(), life.clone());
    let pass = move |from: NodeId, message: &[u8]| {
        let passed = lock(&passing).pass(from, message, &mut records.lock(), clock.now(), wall());
        if passed.news {
            records.wake_waiters();
        }
        passed.message
    };
    let arrivals = GossipInbox { queue: tokio::sync::Mutex::new(inputs.arrivals), pass: Box::new(pass) };
    let task = Gossip {
        names: Arc::new(Registry::default()),
        arrivals: Arc::new(arrivals),
        guard,
        link: inputs.link,
        trust: inputs.trust,
        settings: inputs.settings,
        serving: inputs.serving,
        proven: inputs.proven,
        fingerprints: inputs.fingerprints,
        frames: inputs.topology,
        place,
        record: inputs.record,
        records: inputs.records,
        next_generation: inputs.next_generation,
        before: inputs.before,
        version: RecordVersion::default(),
        body: Vec::new(),
        overtaken: Moment::ZERO,
        seen: RecordCache::default(),
        made_of: None,
        pulls: RecordPulls::default(),
        view: outputs.view,
        report: outputs.problems,
        shown_place: outputs.place,
        shown_core: outputs.core,
        life: life.clone(),
    };
    life.supervise("gossip", task, |task| Box::pin(task.supervise()));
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Each of the guard's methods makes one decision: a panic affects at worst one message.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The name and address that chitchat uses for a node, both derived from its id: short, since they are part
/// of every digest.
fn chitchat_name(id: &NodeId) -> String {
    id.to_string().chars().take(10).collect()
}

fn chitchat_address(id: &NodeId) -> SocketAddr {
    let [a, b, c, d, e, f, ..] = id.0;
    // Port 0 means "none" to chitchat.
    SocketAddr::from((Ipv4Addr::new(a, b, c, d), u16::from_be_bytes([e, f]).max(1)))
}

#[derive(Default)]
struct Registry(RwLock<BTreeMap<SocketAddr, NodeId>>);

impl Registry {
    fn learn_address(&self, document: &Document) {
        let names = document.members().map(|(id, _)| (chitchat_address(id), *id)).collect();
        *self.0.write().unwrap_or_else(PoisonError::into_inner) = names;
    }
}

impl NodeAddresses for Registry {
    fn node(&self, address: SocketAddr) -> Option<NodeId> {
        self.0.read().unwrap_or_else(PoisonError::into_inner).get(&address).copied()
    }

    fn address(&self, node: &NodeId) -> SocketAddr {
        chitchat_address(node)
    }
}

struct Gossip {
    link: Arc<Link>,
    names: Arc<Registry>,
    arrivals: Arc<GossipInbox>,
    guard: Arc<Mutex<GossipGuard>>,
    trust: watch::Receiver<Arc<TrustedKeys>>,
    settings: watch::Receiver<Arc<Settings>>,
    serving: watch::Receiver<Arc<LastKnownGood>>,
    proven: mpsc::Receiver<NodeId>,
    fingerprints: mpsc::Receiver<(NodeId, u32)>,
    frames: mpsc::Receiver<(NodeId, TopologyFrame)>,
    /// Whether this node gossips, and what follows from that.
    place: ClusterPlace,
    record: watch::Receiver<NodeRecord>,
    records: Arc<SharedRecords>,
    next_generation: Box<dyn Fn(u64) -> u64 + Send>,
    before: Option<GossipBefore>,
    /// The version and the fields of this node's last signed record.
    version: RecordVersion,
    body: Vec<u8>,
    /// When gossip last restarted because of a later record of this node.
    overtaken: Moment,
    seen: RecordCache,
    /// What the last view was made of; none where it has to be made again.
    made_of: Option<MadeOf>,
    pulls: RecordPulls,
    view: watch::Sender<Arc<ClusterView>>,
    report: watch::Sender<GossipProblems>,
    shown_place: watch::Sender<Place>,
    shown_core: watch::Sender<Arc<BTreeSet<NodeId>>>,
    life: Lifecycle,
}

/// Why a run of chitchat ended.
enum RunEnd {
    /// The process stops.
    Stopping,
    /// The cluster has grown or shrunk so much that the interval should change.
    Resized,
    /// This node gossips from now on, or does not any more.
    Moved(Place),
    /// A record of this node, signed by its key, is later than its own.
    Overtaken(RecordVersion),
    /// It ended unexpectedly.
    Failed(String),
}

/// Waits for a change of a watch that may not be there.
async fn changed<T>(watch: &mut Option<watch::Receiver<T>>) -> Result<(), watch::error::RecvError> {
    match watch {
        Some(watch) => watch.changed().await,
        None => std::future::pending().await,
    }
}

/// Has chitchat count on from where it was.
fn go_on(state: &mut NodeState, before: GossipBefore, values: &[(String, String)]) {
    state.set_max_version(before.version.sequence);
    // There is no other way to make one.
    if let Ok(heartbeat) = serde_json::from_slice::<Heartbeat>(before.heartbeat.to_string().as_bytes()) {
        state.try_set_heartbeat(heartbeat);
    }
    values.iter().for_each(|(key, value)| state.set(key, value));
}

/// Interval of gossip among this many nodes.
fn interval(members: usize) -> Duration {
    MIN_INTERVAL.max(Duration::from_secs_f64(members as f64 / NODES_PER_SECOND))
}

impl Gossip {
    async fn supervise(&mut self) {
        let mut pause = Duration::from_secs(1);
        let mut above = 0;
        loop {
            let began = self.life.now();
            let ended = match self.run(above).await {
                Ok(ended) => ended,
                Err(error) => RunEnd::Failed(error.to_string()),
            };
            match ended {
                RunEnd::Stopping => return,
                RunEnd::Resized => info!("gossip restarts with an interval for the new cluster size"),
                RunEnd::Moved(place) => {
                    info!(%place, "the cluster's size or core has changed");
                    if place == Place::Core {
                        self.pulls.called(self.life.now());
                    }
                }
                RunEnd::Overtaken(by) => {
                    self.overtaken = self.life.now();
                    above = by.generation;
                    warn!(
                        "a newer record of this node exists than its own; gossip restarts with a higher generation"
                    );
                    self.report.send_modify(|report| report.overtaken(wall()));
                }
                RunEnd::Failed(error) => {
                    let culprit = lock(&self.guard).blame_last(self.life.now());
                    warn!(again_in = ?pause, last_message_of = ?culprit, "gossip failed and restarts: {error}");
                    self.report.send_modify(|report| report.failed(error, culprit, wall()));
                    if self.life.now().since(began) >= RECOVERED {
                        pause = Duration::from_secs(1);
                    }
                    tokio::select! {
                        () = tokio::time::sleep(pause) => {}
                        () = self.life.shutdown.cancelled() => return,
                    }
                    // Doubling up to half a minute: enough to notice in a log, never a storm.
                    pause = (pause * 2).min(Duration::from_secs(30));
                }
            }
        }
    }

    async fn run(&mut self, above: u64) -> anyhow::Result<RunEnd> {
        let (document, own) = (self.trust.borrow_and_update().document.clone(), self.link.own());
        self.watch_document(&document);
        let place = self.place.topology.place();
        self.shown_place.send_replace(place);
        self.show_core();
        let peers = self.place.gossips_with(&document);
        let interval = interval(peers.len());
        let before = self.before.take();
        let start = before
            .map(|before| before.version)
            .unwrap_or_else(|| RecordVersion { generation: (self.next_generation)(above), sequence: 0 });
        let generation = start.generation;
        lock(&self.guard).set_generation(generation);
        self.version = start;
        self.body = self.record.borrow_and_update().to_body();
        let value = self.sign(&document).to_value();
        if place == Place::Attached {
            return Ok(self.watch_record(None, peers.len()).await);
        }
        let config = ChitchatConfig {
            chitchat_id: ChitchatId::new(chitchat_name(&own), generation, chitchat_address(&own)),
            cluster_id: document.id.to_string(),
            gossip_interval: interval,
            listen_addr: SocketAddr::from((Ipv4Addr::LOCALHOST, 0)),
            // All of them, always: a node that was alone for a day still finds the others.
            seed_nodes: peers.iter().map(|id| chitchat_address(id).to_string()).collect(),
            failure_detector_config: FailureDetectorConfig {
                phi_threshold: PHI,
                sampling_window_size: 100,
                max_interval: interval * 5,
                initial_interval: interval,
                dead_node_grace_period: GRACE,
            },
            marked_for_deletion_grace_period: GRACE,
            catchup_callback: None,
            extra_liveness_predicate: None,
            protocol_version: ProtocolVersion::V1,
        };
        let (link, life) = (self.link.clone(), self.life.clone());
        let mesh = GossipTransport {
            send: Arc::new(move |to, message: &[u8]| link.send_gossip(to, message, &life)),
            arrivals: self.arrivals.clone(),
            names: self.names.clone(),
        };
        // chitchat numbers the first value of a start with 1, like this record.
        let values = [(KEY, value.as_str())].into_iter().chain(next_wire::GOSSIP.iter().copied());
        let values: Vec<_> = values.map(|(key, value)| (key.to_owned(), value.to_owned())).collect();
        self.version.sequence += next_wire::GOSSIP.len() as u64;
        let first = if before.is_some() { Vec::new() } else { values.clone() };
        let handle = spawn_chitchat(config, first, &mesh).await?;
        if let Some(before) = before {
            go_on(handle.chitchat().lock().await.self_node_state(), before, &values);
        }
        let ended = self.watch_record(Some(&handle), peers.len()).await;
        let _ = handle.initiate_shutdown();
        handle.abort();
        Ok(ended)
    }

    fn show_core(&self) {
        let core = self.place.topology.core();
        self.shown_core.send_if_modified(|shown| {
            let changed = **shown != *core;
            if changed {
                *shown = Arc::new(core.clone());
            }
            changed
        });
    }

    fn watch_document(&mut self, document: &Document) {
        self.names.learn_address(document);
        self.place.set_members(document, self.life.now());
        self.records.set_members(document);
        lock(&self.guard).set_members(&document.id.to_string(), document.members().map(|(id, _)| *id));
        self.seen.forget();
    }

    /// Follows all that gossip depends on. Without chitchat this node is attached.
    async fn watch_record(&mut self, handle: Option<&ChitchatHandle>, started_with: usize) -> RunEnd {
        let mut live = match handle {
            Some(handle) => Some(handle.with_chitchat(|chitchat| chitchat.live_nodes_watcher()).await),
            None => None,
        };
        let place = self.place.topology.place();
        let more = u32::try_from(self.place.topology.members() / 100).unwrap_or(u32::MAX);
        let mut look = Ticks::new(&self.life, LOOK.saturating_mul(more.saturating_add(1)));
        let records = self.records.clone();
        let mut proofs = self.link.addresses().changes();
        let failed = async {
            match handle {
                Some(handle) => handle.termination_watcher().await,
                None => std::future::pending().await,
            }
        };
        tokio::pin!(failed);
        loop {
            tokio::select! {
                result = &mut failed => {
                    return RunEnd::Failed(result.err().map_or("no reason".to_owned(), |error| error.to_string()));
                }
                () = self.life.shutdown.cancelled() => return RunEnd::Stopping,
                _ = look.tick() => {
                    self.pull();
                    if let Some(ended) = self.look_after() {
                        return ended;
                    }
                }
                () = tokio::time::sleep_until(self.life.instant(self.place.topology.deadline(self.life.now()))) => {
                    let now = self.life.now();
                    if self.place.decide(now) != place {
                        return RunEnd::Moved(self.place.topology.place());
                    }
                    self.show_core();
                    self.poll_topology();
                    continue;
                }
                Some((from, frame)) = self.frames.recv() => {
                    if !self.take_frame(from, &frame) {
                        continue;
                    }
                }
                () = records.changed() => {}
                Ok(()) = proofs.changed() => {}
                Some((node, fingerprint)) = self.fingerprints.recv() => {
                    self.pulls.announced(node, fingerprint, self.life.now());
                    continue;
                }
                changed = changed(&mut live) => if changed.is_err() {
                    return RunEnd::Failed("a watch was closed".to_owned());
                },
                Ok(()) = self.record.changed() => if let Some(ended) = self.publish(handle).await {
                    return ended;
                },
                Ok(()) = self.settings.changed() => { self.settings.borrow_and_update(); }
                Ok(()) = self.trust.changed() => {
                    let document = self.trust.borrow_and_update().document.clone();
                    self.watch_document(&document);
                    let members = self.place.gossips_with(&document).len();
                    let (now, then) = (interval(members), interval(started_with));
                    // Gossip works with any interval, and a restart costs a moment: only for large changes.
                    if now > then * 3 / 2 || now * 3 / 2 < then {
                        return RunEnd::Resized;
                    }
                }
                Some(peer) = self.proven.recv() => {
                    // Its datagrams were dropped until now: do not wait for the next round.
                    if let Some(handle) = handle {
                        let _ = handle.gossip(chitchat_address(&peer));
                    }
                    continue;
                }
            }
            self.publish_view(handle).await;
        }
    }

    /// Signs this node's current record under the next version, and stores it.
    fn sign(&mut self, document: &Document) -> SignedRecord {
        self.version.sequence += 1;
        let identity = &self.link.identity();
        let cluster = document.id.to_string();
        let body = self.body.clone();
        let record = SignedRecord::sign(identity.pair(), &cluster, identity.id, self.version, body);
        self.records.lock().publish(record.clone());
        self.link.datagrams().set_record_fingerprint(record.fingerprint());
        record
    }

    /// Signs this node's record if it has changed, and gives it to chitchat, or to the core members that it holds.
    async fn publish(&mut self, handle: Option<&ChitchatHandle>) -> Option<RunEnd> {
        let body = self.record.borrow_and_update().to_body();
        if body == self.body {
            return None;
        }
        self.body = body;
        let document = self.trust.borrow().document.clone();
        let record = self.sign(&document);
        let (value, sequence) = (record.to_value(), record.version.sequence);
        let Some(handle) = handle else {
            self.place.topology.hurry(self.life.now());
            self.poll_topology();
            return None;
        };
        let published = handle
            .with_chitchat(|chitchat| {
                let state = chitchat.self_node_state();
                state.set(KEY, &value);
                state.max_version()
            })
            .await;
        // Others accept a value only under the number that was signed.
        (published != sequence).then(|| RunEnd::Failed(format!("it numbers {sequence} as {published}")))
    }

    /// Publishes whose gossip was refused. Returns why gossip has to restart, if it has to.
    fn look_after(&mut self) -> Option<RunEnd> {
        let now = self.life.now();
        let (offenders, overtaken) = {
            let guard = lock(&self.guard);
            (guard.offenders(now), guard.overtaken())
        };
        self.report.send_if_modified(|report| report.set_offenders(offenders));
        // Without gossip the guard sees nothing.
        let stored = self.records.lock().version(&self.link.own());
        let attached = self.place.topology.place() == Place::Attached;
        let by = overtaken.or_else(|| (attached && stored > self.version).then_some(stored))?;
        let rested = self.overtaken == Moment::ZERO || now.since(self.overtaken) >= OVERTAKEN;
        rested.then_some(RunEnd::Overtaken(by))
    }
}
