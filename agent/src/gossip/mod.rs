//! Gossip: what this node says of itself to all, and the [`View`] of what all others say.
//!
//! chitchat runs behind the link's seal and nothing reaches it that a member has not sent. It is the slow
//! and sure path: it decides who exists, not who is alive at this moment. One task owns it and starts it
//! anew, with a higher generation, should it ever end; stopping anywhere is safe, since its whole state is
//! what the members say again.
//!
//! This module is the sole publisher of this node's keys.

mod codec;

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use chitchat::{
    Chitchat, ChitchatConfig, ChitchatHandle, ChitchatId, FailureDetectorConfig, ProtocolVersion,
    spawn_chitchat,
};
use proto::cluster::Document;
use proto::keys::Word;
use proto::node::NodeId;
use proto::view::{Heard, View};
use tokio::sync::{Mutex, mpsc, watch};
use tracing::{info, warn};

use self::codec::{Arrivals, Mesh, Names};
use crate::lifecycle::{Life, wall};
use crate::link::{Link, Trust};

/// Shortest time between two rounds of gossip. At a second, ten nodes send 2.3 kB/s each, more than is
/// promised; and who is alive at this moment is for pulses to say.
const MIN_INTERVAL: Duration = Duration::from_millis(1_250);

/// Rounds become rarer by this many nodes a second, so that the traffic of a node stays bounded.
const NODES_PER_SECOND: f64 = 450.0;

/// Phi of the failure detector: below 6 it raises false deaths, at 8 a crash shows after 4 to 9 intervals.
const PHI: f64 = 8.0;

/// How long what a dead node said is kept: an hour's outage must not empty the view, a day's dead
/// incarnations would fill the digest.
const GRACE: Duration = Duration::from_secs(15 * 60);

/// A member whose own datagram came within this time is heard, whatever chitchat's statistics say.
const DIRECT: Duration = Duration::from_secs(3);

/// Time between two looks at chitchat's state: it reports changes only once a round, and whoever has just
/// joined should not wait for that. For each member a millisecond more, so that a look never costs much.
const LOOK: Duration = Duration::from_millis(200);

/// What gossip works with.
pub(crate) struct Inputs {
    pub(crate) link: Arc<Link>,
    pub(crate) trust: watch::Receiver<Arc<Trust>>,
    pub(crate) arrivals: mpsc::Receiver<(NodeId, Vec<u8>)>,
    pub(crate) proven: mpsc::Receiver<NodeId>,
    pub(crate) word: watch::Receiver<Word>,
    /// Number of this start, above all earlier ones.
    pub(crate) generation: u64,
}

/// Starts gossip. The view is written here alone.
pub(crate) fn spawn(inputs: Inputs, view: watch::Sender<Arc<View>>, life: &Life) {
    let task = Gossip {
        names: Arc::new(Registry::default()),
        arrivals: Arc::new(Mutex::new(inputs.arrivals)),
        link: inputs.link,
        trust: inputs.trust,
        proven: inputs.proven,
        word: inputs.word,
        generation: inputs.generation,
        said: BTreeMap::new(),
        view,
        life: life.clone(),
    };
    life.spawn(task.supervise());
}

/// The name and address that chitchat knows a node by, both made of its id: short, since they travel in
/// every digest.
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
    fn learn(&self, document: &Document) {
        let names = document.members().map(|(id, _)| (chitchat_address(id), *id)).collect();
        *self.0.write().unwrap_or_else(PoisonError::into_inner) = names;
    }
}

impl Names for Registry {
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
    arrivals: Arrivals,
    trust: watch::Receiver<Arc<Trust>>,
    proven: mpsc::Receiver<NodeId>,
    word: watch::Receiver<Word>,
    generation: u64,
    /// Keys as they were last handed to chitchat.
    said: BTreeMap<String, String>,
    view: watch::Sender<Arc<View>>,
    life: Life,
}

/// Why a run of chitchat ended.
enum Ended {
    /// The process stops.
    Stopping,
    /// The cluster has grown or shrunk so much that the interval should change.
    Resized,
    /// It ended by itself, which it never should.
    Failed(String),
}

/// Interval of gossip in a cluster of this many nodes.
fn interval(members: usize) -> Duration {
    MIN_INTERVAL.max(Duration::from_secs_f64(members as f64 / NODES_PER_SECOND))
}

impl Gossip {
    async fn supervise(mut self) {
        let mut pause = Duration::from_secs(1);
        loop {
            let ended = match self.run().await {
                Ok(ended) => ended,
                Err(error) => Ended::Failed(error.to_string()),
            };
            match ended {
                Ended::Stopping => return,
                Ended::Resized => info!("gossip starts anew with an interval for the cluster's new size"),
                Ended::Failed(error) => {
                    warn!(again_in = ?pause, "gossip ended and is started anew: {error}");
                    tokio::select! {
                        () = tokio::time::sleep(pause) => {}
                        () = self.life.over.cancelled() => return,
                    }
                    // Doubling up to half a minute: enough to see it in a log, never a storm.
                    pause = (pause * 2).min(Duration::from_secs(30));
                }
            }
            self.generation += 1;
        }
    }

    async fn run(&mut self) -> anyhow::Result<Ended> {
        let (document, own) = (self.trust.borrow_and_update().document.clone(), self.link.own());
        self.names.learn(&document);
        let interval = interval(document.members().count());
        self.said = self.word.borrow_and_update().to_keys();
        let config = ChitchatConfig {
            chitchat_id: ChitchatId::new(chitchat_name(&own), self.generation, chitchat_address(&own)),
            cluster_id: document.id.to_string(),
            gossip_interval: interval,
            listen_addr: SocketAddr::from((Ipv4Addr::LOCALHOST, 0)),
            // All members, for ever: a node that was alone for a day still finds the others.
            seed_nodes: document.members().map(|(id, _)| chitchat_address(id).to_string()).collect(),
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
        let mesh = Mesh {
            send: Arc::new(move |to, message: &[u8]| link.send_gossip(to, message, &life)),
            arrivals: self.arrivals.clone(),
            names: self.names.clone(),
        };
        let keys = self.said.clone().into_iter().collect();
        let handle = spawn_chitchat(config, keys, &mesh).await?;
        let ended = self.follow(&handle, document.members().count()).await;
        let _ = handle.initiate_shutdown();
        handle.abort();
        Ok(ended)
    }

    async fn follow(&mut self, handle: &ChitchatHandle, started_with: usize) -> Ended {
        let mut live = handle.with_chitchat(|chitchat| chitchat.live_nodes_watcher()).await;
        let members = u32::try_from(started_with).unwrap_or(u32::MAX);
        let mut look = tokio::time::interval(LOOK + Duration::from_millis(1).saturating_mul(members));
        let failed = handle.termination_watcher();
        tokio::pin!(failed);
        loop {
            tokio::select! {
                result = &mut failed => {
                    return Ended::Failed(result.err().map_or("no reason".to_owned(), |error| error.to_string()));
                }
                () = self.life.over.cancelled() => return Ended::Stopping,
                _ = look.tick() => {}
                changed = live.changed() => if changed.is_err() {
                    return Ended::Failed("its watch was closed".to_owned());
                },
                Ok(()) = self.word.changed() => self.say(handle).await,
                Ok(()) = self.trust.changed() => {
                    let document = self.trust.borrow_and_update().document.clone();
                    self.names.learn(&document);
                    let members = document.members().count();
                    let (now, then) = (interval(members), interval(started_with));
                    // Gossip works with any interval; a start anew costs a moment, so only for much.
                    if now > then * 3 / 2 || now * 3 / 2 < then {
                        return Ended::Resized;
                    }
                }
                Some(peer) = self.proven.recv() => {
                    // Its datagrams were dropped until now: do not wait for the next round.
                    let _ = handle.gossip(chitchat_address(&peer));
                    continue;
                }
            }
            self.look(handle).await;
        }
    }

    /// Hands chitchat what has changed in this node's own word.
    async fn say(&mut self, handle: &ChitchatHandle) {
        let keys = self.word.borrow_and_update().to_keys();
        let said = std::mem::replace(&mut self.said, keys);
        handle
            .with_chitchat(|chitchat| {
                let state = chitchat.self_node_state();
                for (key, value) in &self.said {
                    if said.get(key) != Some(value) {
                        state.set(key, value);
                    }
                }
                for key in said.keys().filter(|key| !self.said.contains_key(*key)) {
                    state.delete(key);
                }
            })
            .await;
    }

    /// Makes a new view of chitchat's state, and publishes it when it differs.
    async fn look(&mut self, handle: &ChitchatHandle) {
        let document = self.trust.borrow().document.clone();
        let previous = self.view.borrow().clone();
        let names: BTreeMap<String, NodeId> =
            document.members().map(|(id, _)| (chitchat_name(id), *id)).collect();
        let own = self.link.own();
        // chitchat needs several rounds before it calls a newcomer alive; a datagram of its own says so at once.
        let now = self.life.now();
        let direct =
            |id: &NodeId| *id == own || self.link.last_heard(id).is_some_and(|at| now.since(at) < DIRECT);
        let view = handle.with_chitchat(|chitchat| make_view(chitchat, &names, &direct, &previous)).await;
        for member in view.members.values() {
            if member.id != own {
                self.link.book.heard(member.id, member.addresses(), member.heard);
            }
        }
        for (id, problem) in &view.problems {
            if !previous.problems.contains_key(id) {
                warn!(node = %id, "what a member says is not understood, so it is left out: {problem}");
            }
        }
        if *previous != view {
            self.view.send_replace(Arc::new(view));
        }
    }
}

fn make_view(
    chitchat: &mut Chitchat,
    names: &BTreeMap<String, NodeId>,
    direct: &dyn Fn(&NodeId) -> bool,
    previous: &View,
) -> View {
    let alive: std::collections::BTreeSet<ChitchatId> = chitchat.live_nodes().cloned().collect();
    let heard: Vec<Heard<'_>> = chitchat
        .node_states()
        .iter()
        .filter_map(|(chitchat_id, state)| {
            let id = *names.get(&*chitchat_id.node_id)?;
            Some(Heard {
                id,
                generation: chitchat_id.generation_id,
                alive: alive.contains(chitchat_id) || direct(&id),
                keys: state.key_values().collect(),
            })
        })
        .collect();
    View::from_keys(heard, previous, wall(), |_| true)
}
