//! What membership keeps on disk, and how it starts from it.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use proto::backends::LastKnownGood;
use proto::cause::Reason;
use proto::cluster::{Admitted, Document, KeyId, Replica};
use proto::config::{JoinedPlace, PlaceChanges};
use proto::invite::InviteLedger;
use proto::node::{Name, Role};
use proto::problem::{Problem, ProblemCode};
use proto::rpc::Addresses;
use proto::seeds;
use proto::transport::KeyRing;
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use tracing::{error, info, warn};

use crate::state::{self, StateDir, StateError, StateFile};
use crate::transport::tls::{Identity, IdentityError};
use crate::transport::{TrustedKeys, random};

// A version is raised when an older agent must not use the file: a field more is no reason, it is ignored.
const IDENTITY: StateFile = StateFile::first("identity");
const NODE: StateFile = StateFile::first("node");
const CLUSTER: StateFile = StateFile::first("cluster");
const KEYS: StateFile = StateFile::first("keys");
const INVITES: StateFile = StateFile::first("invites");
const PEERS: StateFile = StateFile::first("peers");
const SERVING: StateFile = StateFile::first("serving");
const EPOCHS: StateFile = StateFile::raised_next("epochs");
const NODE_LOCAL: StateFile = StateFile::first("node-local");
const SEEDS: StateFile = StateFile::first("seeds");
const GENERATION: StateFile = StateFile::first("generation");

#[derive(Serialize, Deserialize)]
struct StoredSeed {
    seed: String,
}

/// What this node knows of itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct NodeFile {
    /// Its name.
    pub(crate) name: Name,
    /// The address that it advertises while its interface has it.
    pub(crate) address: IpAddr,
    /// The interface that carries the mesh.
    pub(crate) interface: String,
    /// The address was given by hand: no other of the interface takes its place.
    pub(crate) pinned: bool,
    /// The link's port.
    pub(crate) port: u16,
}

impl NodeFile {
    /// Its name and place, to be compared with a configuration.
    pub(crate) fn place(&self) -> JoinedPlace<'_> {
        JoinedPlace { name: &self.name, address: self.address, interface: &self.interface, port: self.port }
    }

    /// Takes over what a configuration says otherwise, but the name.
    pub(crate) fn apply(&mut self, changes: &PlaceChanges) {
        if let Some(interface) = &changes.interface {
            self.interface.clone_from(interface);
            self.pinned = false;
        }
        if let Some(address) = changes.address {
            (self.address, self.pinned) = (address, true);
        }
        self.port = changes.port.unwrap_or(self.port);
    }
}

/// The state directory, and what went wrong with it.
pub(crate) struct MemberStore {
    store: StateDir,
    /// By file, so that a problem ends when that file is written again.
    problems: Mutex<BTreeMap<String, Problem>>,
    /// The last value of each file that could not be written. Held over a write, so that no earlier one is written
    /// over a later one.
    unsaved: Mutex<BTreeMap<&'static str, (StateFile, Vec<u8>)>>,
    /// The cluster file could not be used: what was put in its place is not written.
    degraded: AtomicBool,
    /// This node has left its cluster.
    wiped: AtomicBool,
}

/// The node-local addresses that the agent of a state directory has set on lo, for a command that ends it.
pub(crate) fn node_local_of(store: &StateDir) -> BTreeSet<IpAddr> {
    store.read(NODE_LOCAL).ok().and_then(|loaded| loaded.value).unwrap_or_default()
}

/// Everything that a member starts from.
pub(crate) struct StoredMember {
    pub(crate) identity: Arc<Identity>,
    pub(crate) node: NodeFile,
    pub(crate) replica: Replica,
    pub(crate) ring: KeyRing,
    pub(crate) invites: InviteLedger,
    pub(crate) peers: Addresses,
    pub(crate) serving: LastKnownGood,
    pub(crate) epochs: VipEpochs,
    /// The node-local addresses that this node has set on lo.
    pub(crate) node_local: BTreeSet<IpAddr>,
}

impl StoredMember {
    /// The cluster document.
    pub(crate) fn document(&self) -> &Document {
        self.replica.document()
    }

    /// Whom it trusts as it starts.
    pub(crate) fn trusted_keys(&self) -> TrustedKeys {
        TrustedKeys { document: Arc::new(self.document().clone()), ring: Arc::new(self.ring.clone()) }
    }
}

/// The highest epoch that was known of each virtual IP.
pub(crate) type VipEpochs = BTreeMap<IpAddr, u64>;

/// What could not be written; what is wrong with each file is in it.
#[derive(Debug, thiserror::Error)]
#[error("{}", .0.iter().map(Problem::to_string).collect::<Vec<_>>().join("; "))]
pub(crate) struct NotKept(Vec<Problem>);

/// Why this node has no identity any more.
#[derive(Debug, thiserror::Error)]
pub(crate) enum LostKey {
    /// The file is whole, and holds something else.
    #[error("the identity file contains no key")]
    NoKey,
    /// What it holds is no key that can be used.
    #[error(transparent)]
    Unusable(#[from] IdentityError),
    /// Its file is away, and something is wrong with the others.
    #[error("{0}")]
    File(Problem),
}

/// Why this node is a member of nothing any more.
#[derive(Debug, Clone, thiserror::Error)]
pub(crate) enum Lost {
    /// A file is away, and nothing else is wrong.
    #[error("the {0} file is missing")]
    Missing(&'static str),
    /// A file can't be read.
    #[error("{0}")]
    File(Problem),
}

/// Why there is nothing to start from.
#[derive(Debug, thiserror::Error)]
pub(crate) enum LoadError {
    /// Nothing is there.
    #[error(
        "this node is not a member of a cluster yet; run: agent init (on the first node) \
         or: agent join SEED"
    )]
    NotMember,
    /// The identity can't be used.
    #[error("{0}; this node has lost its key; run: agent leave --force, then join again")]
    Identity(LostKey),
    /// Something else that can't be done without.
    #[error("{0}; join again with an invite of the same cluster")]
    Lost(Lost),
    /// The directory itself.
    #[error(transparent)]
    Store(#[from] StateError),
}

/// Waits for the disk without keeping the tasks of this thread waiting: a slow disk must not look like a
/// dead node.
fn blocking<T>(work: impl FnOnce() -> T) -> T {
    let runtime = tokio::runtime::Handle::try_current().map(|runtime| runtime.runtime_flavor());
    match runtime {
        Ok(tokio::runtime::RuntimeFlavor::MultiThread) => tokio::task::block_in_place(work),
        _ => work(),
    }
}

/// The name of what was found in a file at this start, which stays true when the file is written anew.
fn as_found(file: StateFile) -> String {
    format!("{}, as found", file.name)
}

impl MemberStore {
    /// Takes the directory over.
    pub(crate) fn new(store: StateDir) -> MemberStore {
        MemberStore {
            store,
            problems: Mutex::new(BTreeMap::new()),
            unsaved: Mutex::new(BTreeMap::new()),
            degraded: AtomicBool::new(false),
            wiped: AtomicBool::new(false),
        }
    }

    /// What is wrong with what is kept, each about its file.
    pub(crate) fn found(&self) -> Vec<Problem> {
        self.problems.lock().unwrap_or_else(PoisonError::into_inner).values().cloned().collect()
    }

    /// The same where something could not be written.
    pub(crate) fn not_kept(&self) -> NotKept {
        NotKept(self.found())
    }

    /// Notes a problem with a file, or with what its name stands for, or that it is over.
    pub(crate) fn problem(&self, file: &str, problem: Option<Reason>) {
        self.report(file, problem.map(|why| Problem::new(ProblemCode::StateFile, why).about(file)));
    }

    /// Notes a problem under a name, or that it is over.
    pub(crate) fn report(&self, file: &str, problem: Option<Problem>) {
        let mut problems = self.problems.lock().unwrap_or_else(PoisonError::into_inner);
        match problem {
            Some(problem) => {
                // Said once: what is tried again and again would fill the log.
                if !problems.contains_key(file) {
                    error!(file, "{problem}");
                }
                problems.insert(file.to_owned(), problem);
            }
            None if problems.remove(file).is_some() => info!(file, "resolved"),
            None => {}
        }
    }

    fn read<T: DeserializeOwned>(&self, file: StateFile) -> Result<Option<T>, StateError> {
        let loaded = blocking(|| self.store.read(file))?;
        if let Some(problem) = loaded.problem {
            self.problem(&as_found(file), Some(Reason::new(problem)));
        }
        Ok(loaded.value)
    }

    /// Reads a file that the node can do without. Where it is another agent's, the node goes on without and
    /// says so.
    fn read_or_default<T: DeserializeOwned + Default>(&self, file: StateFile) -> Result<T, StateError> {
        match self.read(file) {
            Err(error) if error.is_kept() => {
                self.problem(
                    &as_found(file),
                    Some(Reason::new(format_args!("{error}; continuing without it"))),
                );
                Ok(T::default())
            }
            other => Ok(other?.unwrap_or_default()),
        }
    }

    /// Writes one file. What can't be written is a problem that status shows and is tried again, not a reason to stop.
    fn write<T: Serialize>(&self, file: StateFile, value: &T) -> bool {
        match state::encode(file, value) {
            Ok(bytes) => self.write_bytes(file, bytes, &mut self.unsaved()),
            Err(error) => {
                self.problem(file.name, Some(Reason::new(error)));
                false
            }
        }
    }

    fn unsaved(&self) -> MutexGuard<'_, BTreeMap<&'static str, (StateFile, Vec<u8>)>> {
        self.unsaved.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Tries again to write what could not be written: space is freed, a file system made writable, by people who do
    /// not restart the agent for it.
    pub(crate) fn retry(&self) {
        let mut unsaved = self.unsaved();
        for (_, (file, bytes)) in std::mem::take(&mut *unsaved) {
            self.write_bytes(file, bytes, &mut unsaved);
        }
    }

    /// Why something that was to be kept is not; `None`: all is.
    pub(crate) fn why_unsaved(&self) -> Option<Problem> {
        let name = *self.unsaved().keys().next()?;
        self.problems.lock().unwrap_or_else(PoisonError::into_inner).get(name).cloned()
    }

    fn write_bytes(
        &self,
        file: StateFile,
        bytes: Vec<u8>,
        unsaved: &mut BTreeMap<&'static str, (StateFile, Vec<u8>)>,
    ) -> bool {
        match blocking(|| self.store.write_bytes(file, &bytes)) {
            Ok(()) => {
                unsaved.remove(file.name);
                self.problem(file.name, None);
                true
            }
            Err(error) if error.is_kept() => {
                // Said already, and more exactly, if it was read.
                let name = as_found(file);
                let said = self.problems.lock().unwrap_or_else(PoisonError::into_inner).contains_key(&name);
                if !said {
                    self.problem(&name, Some(Reason::new(error)));
                }
                false
            }
            Err(error) => {
                unsaved.insert(file.name, (file, bytes));
                let problem = Problem::new(ProblemCode::StateNotSaved, error);
                self.report(file.name, Some(problem.about(file.name)));
                false
            }
        }
    }

    /// This node's identity; made where there is none yet.
    pub(crate) fn identity(&self) -> Result<Arc<Identity>, LoadError> {
        let seed: [u8; 32] = match self.read::<StoredSeed>(IDENTITY)? {
            Some(StoredSeed { seed }) => data_encoding::HEXLOWER
                .decode(seed.as_bytes())
                .ok()
                .and_then(|seed| seed.try_into().ok())
                .ok_or(LoadError::Identity(LostKey::NoKey))?,
            None => {
                if let Some(problem) = self.found().into_iter().next() {
                    return Err(LoadError::Identity(LostKey::File(problem)));
                }
                let seed: [u8; 32] = random();
                let text = StoredSeed { seed: data_encoding::HEXLOWER.encode(&seed) };
                // Without it on disk the node would be another one after every start.
                self.store.write(IDENTITY, &text)?;
                seed
            }
        };
        Identity::from_seed(&seed).map(Arc::new).map_err(|error| LoadError::Identity(error.into()))
    }

    /// Everything that the agent starts from. A node whose cluster file is unusable is still one that
    /// clients need: it serves from its last good list, says so, and is a member of nothing until it joins
    /// again.
    pub(crate) fn member_or_degraded(&self) -> Result<StoredMember, LoadError> {
        let (lost, kept) = match self.member() {
            Err(LoadError::Lost(problem)) => (problem, false),
            // Whoever wrote it, or whatever lies there, clients need what this node can still do; nothing is
            // written over it.
            Err(LoadError::Store(error @ (StateError::NotUnderstood { .. } | StateError::Read { .. })))
                if error.is_about(CLUSTER) =>
            {
                let problem = Problem::new(ProblemCode::StateFile, error);
                (Lost::File(problem.about(CLUSTER.name)), true)
            }
            other => return other,
        };
        let node: NodeFile = self.read(NODE)?.ok_or_else(|| LoadError::Lost(lost.clone()))?;
        let identity = self.identity()?;
        self.degraded.store(true, Ordering::Relaxed);
        let fix = if kept { "" } else { "; join again with an invite of its cluster" };
        let text = "this node serves from its last known good list, outside of any cluster: its cluster \
                    file is unusable";
        self.problem("degraded", Some(Reason::new(format_args!("{text}{fix} ({lost})"))));
        let own = identity.id;
        let now = crate::lifecycle::wall();
        let first = Admitted::new(node.name.clone(), identity.key, Role::Master, own, now);
        let document = Document::new(random(), Name::nearest("lost"), first, KeyId([0; KeyId::LEN]));
        Ok(StoredMember {
            replica: Replica::new(document, own, identity.pair()),
            identity,
            node,
            ring: KeyRing::default(),
            invites: InviteLedger::default(),
            peers: Addresses::default(),
            serving: self.read_or_default(SERVING)?,
            epochs: self.read_or_default(EPOCHS)?,
            node_local: self.read_or_default(NODE_LOCAL)?,
        })
    }

    /// Whether this node started without its cluster, by [`MemberStore::member_or_degraded`].
    pub(crate) fn is_degraded(&self) -> bool {
        self.degraded.load(Ordering::Relaxed)
    }

    /// Everything that a member starts from.
    pub(crate) fn member(&self) -> Result<StoredMember, LoadError> {
        let lost = |what: &'static str| {
            let problem = self.found().into_iter().next();
            LoadError::Lost(problem.map_or(Lost::Missing(what), Lost::File))
        };
        let Some(replica) = self.read::<Replica>(CLUSTER)? else {
            return if self.found().is_empty() { Err(LoadError::NotMember) } else { Err(lost(CLUSTER.name)) };
        };
        // It was adopted once. What is odd about it now is no reason to leave clients without masters.
        let odd = replica.document().check().err();
        self.problem(
            "odd",
            odd.map(|error| {
                Reason::new(format_args!("the cluster file is used although it is inconsistent: {error}"))
            }),
        );
        Ok(StoredMember {
            identity: self.identity()?,
            node: self.read(NODE)?.ok_or_else(|| lost(NODE.name))?,
            replica,
            ring: self.keys()?,
            invites: self.read_or_default(INVITES)?,
            peers: self.read_or_default(PEERS)?,
            serving: self.read_or_default(SERVING)?,
            epochs: self.read_or_default(EPOCHS)?,
            node_local: self.read_or_default(NODE_LOCAL)?,
        })
    }

    /// What this node knows of itself, if it is a member.
    pub(crate) fn node(&self) -> Result<Option<NodeFile>, StateError> {
        self.read(NODE)
    }

    /// The gossip keys. Without them a node asks others, but those of a newer agent say that it is the wrong
    /// agent that starts.
    fn keys(&self) -> Result<KeyRing, StateError> {
        match self.read(KEYS) {
            Err(error @ StateError::Newer { .. }) => Err(error),
            Err(error) if error.is_kept() => self.read_or_default(KEYS),
            other => Ok(other?.unwrap_or_default()),
        }
    }

    /// Number of the next start of gossip: above every earlier one, also when the clock went back, and above
    /// the one that is given. Only what lies a day ahead is passed over: such a number comes from a clock that
    /// was wrong, and all others rank it behind those that are possible (`proto::record_store`).
    pub(crate) fn next_generation(&self, above: u64) -> u64 {
        let now = crate::lifecycle::wall().0 / 1000;
        let previous: u64 = self.read_or_default(GENERATION).unwrap_or(0);
        let possible = |number: &u64| *number <= now + 24 * 3600;
        let last = [previous, above].into_iter().filter(possible).max().unwrap_or(0);
        let next = now.max(last + 1);
        self.write(GENERATION, &next);
        next
    }

    /// Keeps the document.
    pub(crate) fn save_replica(&self, replica: &Replica) -> bool {
        self.degraded.load(Ordering::Relaxed) || self.write(CLUSTER, replica)
    }

    /// Keeps the gossip keys.
    pub(crate) fn save_keys(&self, ring: &KeyRing) -> bool {
        self.degraded.load(Ordering::Relaxed) || self.write(KEYS, ring)
    }

    /// Keeps what a member can do without, and says whether that went well. What is another agent's stays as
    /// it is, which is no reason not to be a member.
    pub(crate) fn save_rest(&self, member: &StoredMember) -> bool {
        let done = |file, written: bool| written || self.store.is_kept(file);
        done(INVITES, self.save_invites(&member.invites))
            & done(PEERS, self.save_peers(&member.peers))
            & done(SERVING, self.save_serving(&member.serving))
    }

    /// Keeps the invites.
    pub(crate) fn save_invites(&self, invites: &InviteLedger) -> bool {
        self.write(INVITES, invites)
    }

    /// Keeps what this node knows of itself.
    pub(crate) fn save_node(&self, node: &NodeFile) -> bool {
        self.write(NODE, node)
    }

    /// Keeps where peers were reached.
    pub(crate) fn save_peers(&self, peers: &Addresses) -> bool {
        self.write(PEERS, peers)
    }

    /// The names of seeds that are kept, the latest first.
    pub(crate) fn seeds(&self) -> Vec<String> {
        self.read_or_default(SEEDS).unwrap_or_default()
    }

    /// Keeps the name of a seed; an address is not kept.
    pub(crate) fn add_seed(&self, seed: &str) {
        let mut names = self.seeds();
        if seeds::remember(&mut names, seed) {
            self.write(SEEDS, &names);
        }
    }

    /// Keeps who serves.
    pub(crate) fn save_serving(&self, serving: &LastKnownGood) -> bool {
        self.write(SERVING, serving)
    }

    /// Keeps the epochs of virtual IPs, so that they grow even when all agents start anew at once.
    pub(crate) fn save_epochs(&self, epochs: &VipEpochs) -> bool {
        self.write(EPOCHS, epochs)
    }

    /// Keeps which node-local addresses are on lo.
    pub(crate) fn save_node_local(&self, added: &BTreeSet<IpAddr>) -> bool {
        self.is_wiped() || self.write(NODE_LOCAL, added)
    }

    /// Whether everything was forgotten.
    pub(crate) fn is_wiped(&self) -> bool {
        self.wiped.load(Ordering::Relaxed)
    }

    /// Forgets everything: this node is no member any more.
    pub(crate) fn wipe(&self) {
        self.wiped.store(true, Ordering::Relaxed);
        self.unsaved().clear();
        match self.store.remove_all() {
            Ok(left) if left.is_empty() => {}
            Ok(left) => warn!(?left, "kept files in the state directory that do not belong to the agent"),
            Err(error) => error!("cannot delete the state: {error}"),
        }
    }
}

#[cfg(test)]
#[path = "disk_tests.rs"]
mod tests;
