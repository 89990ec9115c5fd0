//! The one task that owns the cluster document, the gossip keys, the invites and the pending joins.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use proto::backends::LastKnownGood;
use proto::cause::Reason;
use proto::cluster::{AdoptError, Adoption, ChangeError, Document, KeyId, Replica, SealedDocument};
use proto::invite::{InviteLedger, PendingJoins};
use proto::node::{NodeId, Role};
use proto::rpc::{Addresses, FailCode, FromMember, MAX_ADDRESSES, SyncDigest, SyncSnapshot, ToMember};
use proto::time::UnixMs;
use proto::transport::{GossipKey, KeyRing, OLD_KEY_TTL};
use proto::view::ClusterView;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::Instant;
use tracing::{info, warn};

use super::disk::MemberStore;
use super::sync_scheduler::SyncScheduler;
use super::{Applicant, MembershipCommand};
use crate::lifecycle::{Lifecycle, wall};
use crate::transport::{Link, MemberRequest, TrustedKeys, random};

/// How often the keeper looks after retired keys, differing copies and silence.
const TICK: Duration = Duration::from_secs(1);

/// How often the addresses of peers are written to disk when they changed.
const SAVE_PEERS: Duration = Duration::from_secs(30);

/// How long admissions are gathered before peers are told: a hundred that come at once are told in a few
/// rounds. No longer, since nobody answers the newcomer before it is known.
const GATHER: Duration = Duration::from_millis(100);

/// Most gossip keys that are looked at in what a peer sends: the one that counts and the one before.
const MOST_KEYS: usize = 8;

/// What the keeper works with.
pub(crate) struct MembershipTask {
    pub(crate) link: Arc<Link>,
    pub(crate) disk: Arc<MemberStore>,
    pub(crate) replica: Replica,
    pub(crate) ring: KeyRing,
    pub(crate) invites: InviteLedger,
    pub(crate) trust: watch::Sender<Arc<TrustedKeys>>,
    pub(crate) open_until: watch::Sender<UnixMs>,
    pub(crate) view: watch::Receiver<Arc<ClusterView>>,
    pub(crate) serving: watch::Receiver<Arc<LastKnownGood>>,
    pub(crate) own_address: watch::Receiver<Option<std::net::IpAddr>>,
    pub(crate) port: u16,
    /// How many connections this node holds to another.
    pub(crate) held: Box<dyn Fn(&NodeId) -> u64 + Send>,
    pub(crate) commands: mpsc::Sender<MembershipCommand>,
    pub(crate) life: Lifecycle,
    pub(crate) pending: PendingJoins,
    pub(crate) waiting: BTreeMap<String, (Applicant, oneshot::Sender<Option<Role>>)>,
    /// Peers are told of changes in a moment.
    pub(crate) push_is_due: bool,
}

impl MembershipTask {
    /// Runs until the process stops.
    pub(crate) async fn run(&mut self, commands: &mut mpsc::Receiver<MembershipCommand>) {
        // Whoever waits for an earlier run, which has failed, asks again; the document and the keys are only
        // ever replaced whole.
        self.waiting.clear();
        self.pending = PendingJoins::default();
        self.push_is_due = false;
        let mut tick = tokio::time::interval(TICK);
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut spread = SyncScheduler::new(self.life.now());
        let mut saved = (Instant::now(), self.link.addresses.snapshot());
        let stopping = self.life.draining.clone();
        loop {
            tokio::select! {
                command = commands.recv() => match command {
                    Some(MembershipCommand::Exchanged) => spread.ended(self.life.now()),
                    Some(MembershipCommand::UnknownKey) => spread.wake(),
                    Some(command) => self.carry_out(command),
                    None => return,
                },
                _ = tick.tick() => {
                    self.retire_keys();
                    self.exchange(&mut spread);
                    if saved.0.elapsed() >= SAVE_PEERS {
                        let peers = self.link.addresses.snapshot();
                        if peers != saved.1 {
                            self.disk.save_peers(&peers);
                        }
                        saved = (Instant::now(), peers);
                    }
                }
                () = stopping.cancelled() => {
                    self.disk.save_peers(&self.link.addresses.snapshot());
                    return;
                }
            }
        }
    }

    fn carry_out(&mut self, command: MembershipCommand) {
        match command {
            MembershipCommand::Control(request, reply) => self.control(request, reply),
            MembershipCommand::Incoming(incoming) => self.incoming(incoming),
            MembershipCommand::Join(applicant, reply) => {
                let admission = self.decide(applicant);
                let _ = reply.send(admission);
            }
            MembershipCommand::Admit(applicant, role, reply) => {
                let admission = self.admit(&applicant, role);
                let _ = reply.send(admission);
            }
            MembershipCommand::Compared(from, theirs, snapshot) => {
                self.take(&from, &snapshot);
                if self.document().state() != theirs {
                    self.send_document(from);
                }
            }
            MembershipCommand::Push => {
                self.push_is_due = false;
                drop(self.push());
            }
            MembershipCommand::Exchanged | MembershipCommand::UnknownKey => {}
        }
    }

    // ---- the document and the keys

    pub(super) fn document(&self) -> &Document {
        self.replica.document()
    }

    pub(super) fn is_master(&self) -> bool {
        self.document().is_master(&self.link.own())
    }

    /// Changes the document and publishes it; nobody else is told yet.
    pub(super) fn change<T>(
        &mut self,
        change: impl FnOnce(&mut Document) -> Result<T, ChangeError>,
    ) -> Result<T, ChangeError> {
        let identity = self.link.identity.clone();
        let result = self.replica.change(identity.id, identity.pair(), change)?;
        self.publish();
        Ok(result)
    }

    /// Makes another gossip key the one that counts, after `change`.
    pub(super) fn change_with_key(
        &mut self,
        by_removal: bool,
        change: impl FnOnce(&mut Document) -> Result<(), ChangeError>,
    ) -> Result<(), ChangeError> {
        let secret: [u8; 32] = random();
        let id = KeyId::of_key(&secret);
        let identity = self.link.identity.clone();
        let epoch = self.replica.change(identity.id, identity.pair(), |document| {
            change(document)?;
            document.turn_key(id, identity.id, wall(), by_removal)?;
            Ok(document.key.epoch)
        })?;
        self.ring.add(GossipKey { epoch, id, secret, until: None });
        info!(epoch, "gossip key changed");
        self.publish();
        Ok(())
    }

    /// Publishes and writes what has changed.
    pub(super) fn publish(&mut self) {
        self.ring.apply_document(self.replica.document(), wall());
        let trust =
            TrustedKeys { document: Arc::new(self.document().clone()), ring: Arc::new(self.ring.clone()) };
        self.trust.send_replace(Arc::new(trust));
        self.disk.save_keys(&self.ring);
        self.disk.save_replica(&self.replica);
        self.link.forget_strangers();
    }

    fn retire_keys(&mut self) {
        if self.ring.apply_document(self.replica.document(), wall()) {
            self.publish();
        }
    }

    /// What a node with this id may have of what all must know: one that was removed, or has just left, sees
    /// the document and no key.
    pub(super) fn snapshot_for(&self, peer: &NodeId, known: Option<&SyncDigest>) -> SyncSnapshot {
        let document = match known {
            Some(known) if known.document == self.document().state() => None,
            _ => self.replica.sealed(),
        };
        if self.document().member(peer).is_none() {
            return SyncSnapshot { document, ..SyncSnapshot::default() };
        }
        let lacks = |key: &&GossipKey| known.is_none_or(|known| !known.keys.contains(&key.id));
        let keys = self.ring.keys().iter().filter(lacks).cloned().collect();
        SyncSnapshot { document, keys, addresses: self.addresses() }
    }

    fn addresses(&self) -> Addresses {
        let mut addresses = self.link.addresses.snapshot();
        if let Some(ip) = *self.own_address.borrow() {
            addresses.insert(self.link.own(), vec![(ip, self.port).into()]);
        }
        addresses
    }

    /// Takes over what a peer has sent, as far as it counts.
    fn take(&mut self, from: &NodeId, snapshot: &SyncSnapshot) {
        let own = self.link.own();
        let was_member = self.document().member(&own).is_some();
        let mut changed = false;
        if let Some(sealed) = &snapshot.document {
            let before = self.document().clone();
            match self.adopt(sealed) {
                Err(error) => {
                    warn!(peer = %from, "cluster document rejected: {error}");
                    // Whoever was removed goes on sealing what nobody takes: nothing to be done about it here.
                    if !matches!(error, AdoptError::RemovedSealer(_) | AdoptError::WorkerSealer(_)) {
                        let name = self.document().shown_name(from);
                        let text = format_args!("rejected the cluster document of {name}: {error}");
                        self.disk.problem("refused document", Some(Reason::new(text)));
                    }
                }
                Ok(Adoption::Nothing) => self.disk.problem("refused document", None),
                Ok(_) => {
                    self.disk.problem("refused document", None);
                    self.log_difference(&before);
                    changed = true;
                }
            }
        }
        changed |= self.take_keys(&snapshot.keys);
        if changed {
            self.publish();
        }
        let proof = |sealed: &SealedDocument| Some((sealed.by(), self.replica.proof_for(sealed, &own)?));
        if let Some((master, proof)) = snapshot.document.as_ref().and_then(proof) {
            // It may never hear from anyone else what made this node a master.
            self.sync(master, SyncSnapshot { document: Some(proof), ..SyncSnapshot::default() });
        }
        for (id, addresses) in &snapshot.addresses {
            if *id != own && self.document().member(id).is_some() {
                let some: Vec<SocketAddr> = addresses.iter().take(MAX_ADDRESSES).copied().collect();
                self.link.addresses.add_hint(*id, &some, false);
            }
        }
        if was_member && self.document().member(&own).is_none() {
            warn!("this node was removed from the cluster; serving from the last known good list");
        }
    }

    /// Adopts a copy: a master merges and seals, a worker follows the masters.
    fn adopt(&mut self, sealed: &SealedDocument) -> Result<Adoption, AdoptError> {
        let identity = self.link.identity.clone();
        let adoption = self.replica.adopt_from_master(sealed, &identity.id, wall())?;
        self.replica.seal(identity.id, identity.pair());
        if self.is_master() && adoption == (Adoption::Merged { key_is_known_to_removed: true }) {
            // Two masters changed the key and removed a node without knowing of each other.
            if let Err(error) = self.change_with_key(true, |_| Ok(())) {
                warn!("cannot change the gossip key: {error}");
            }
        }
        Ok(adoption)
    }

    /// Takes gossip keys that the document names: the one that counts, and the one before for its ten minutes.
    /// Whoever sends them has no say in which these are.
    fn take_keys(&mut self, keys: &[GossipKey]) -> bool {
        let current = self.document().key.clone();
        let floor = self.document().key_floor;
        let mut new = false;
        for key in keys.iter().take(MOST_KEYS) {
            let epoch = if key.id == current.id {
                current.epoch
            } else if Some(key.id) == current.previous
                && wall() < current.at.after(OLD_KEY_TTL)
                && current.epoch > floor
            {
                current.epoch - 1
            } else {
                continue;
            };
            new |= self.ring.add(GossipKey { epoch, until: None, ..key.clone() });
        }
        new
    }

    fn log_difference(&self, before: &Document) {
        let document = self.document();
        for (id, admitted) in document.members() {
            if before.member(id).is_none() {
                info!(node = %admitted.name, %id, "node admitted");
            } else if before.role(id) != document.role(id) {
                let role = document.role(id).map_or(String::new(), |role| role.to_string());
                info!(node = %admitted.name, %id, role, "role changed");
            }
        }
        for (id, removed) in &document.removed {
            if !before.removed.contains_key(id) {
                info!(node = %removed.name, %id, "node removed");
            }
        }
        for (key, setting) in &document.settings {
            if before.settings.get(key).map(|known| &known.value) != Some(&setting.value) {
                info!("setting {key:?} is now {:?}", setting.value.as_deref().unwrap_or("not set"));
            }
        }
        if document.key != before.key {
            info!(epoch = document.key.epoch, "gossip key changed");
        }
    }

    // ---- exchange with peers

    pub(super) fn others(&self) -> Vec<NodeId> {
        let own = self.link.own();
        self.document().members().map(|(id, _)| *id).filter(|id| *id != own).collect()
    }

    /// Starts what the moment asks for: see [`SyncScheduler`].
    fn exchange(&mut self, spread: &mut SyncScheduler) {
        if self.document().member(&self.link.own()).is_none() {
            return;
        }
        let view = self.view.borrow().clone();
        let members = self.others();
        let hash = self.document().hash();
        let heard =
            |id: &NodeId| view.members.get(id).is_some_and(|member| member.heard && !member.word.left);
        let differ: Vec<NodeId> = members
            .iter()
            .filter(|id| heard(id) && view.members.get(id).is_some_and(|member| member.word.document != hash))
            .copied()
            .collect();
        let anyone = members.iter().any(heard);
        let dice = u64::from_be_bytes(random());
        if let Some(peer) = spread.next(self.life.now(), &members, &differ, anyone, dice) {
            self.start_exchange(peer);
        }
    }

    /// Asks a peer for what this node lacks. The document goes over the line only where the two differ.
    fn start_exchange(&self, peer: NodeId) {
        let keys = self.ring.keys().iter().map(|key| key.id).collect();
        let known = SyncDigest { document: self.document().state(), keys };
        let (link, commands) = (self.link.clone(), self.commands.clone());
        let over = self.life.draining.clone();
        self.life.spawn(async move {
            let work = async {
                if let Ok(ToMember::Compared(hash, snapshot)) =
                    link.call(peer, &FromMember::Compare(known)).await
                {
                    let _ = commands.send(MembershipCommand::Compared(peer, hash, snapshot)).await;
                }
                let _ = commands.send(MembershipCommand::Exchanged).await;
            };
            tokio::select! { () = work => {}, () = over.cancelled() => {} }
        });
    }

    /// Hands this node's document to a peer that holds another.
    fn send_document(&self, peer: NodeId) {
        let snapshot = self.snapshot_for(&peer, None);
        if snapshot.document.is_some() {
            self.sync(peer, snapshot);
        }
    }

    fn sync(&self, peer: NodeId, snapshot: SyncSnapshot) {
        let (link, over) = (self.link.clone(), self.life.draining.clone());
        self.life.spawn(async move {
            let request = FromMember::Sync(Box::new(snapshot));
            let call = tokio::time::timeout(Duration::from_secs(3), link.call(peer, &request));
            tokio::select! { _ = call => {}, () = over.cancelled() => {} }
        });
    }

    /// Has peers told of changes in a moment, together with what else changes until then.
    pub(super) fn push_soon(&mut self) {
        if std::mem::replace(&mut self.push_is_due, true) {
            return;
        }
        let (commands, stopping) = (self.commands.clone(), self.life.draining.clone());
        self.life.spawn(async move {
            tokio::select! {
                () = tokio::time::sleep(GATHER) => {}
                () = stopping.cancelled() => {}
            }
            let _ = commands.send(MembershipCommand::Push).await;
        });
    }

    /// Hands the changed document to peers at once; what comes of it is counted by the receiver.
    pub(super) fn push(&self) -> mpsc::Receiver<bool> {
        self.push_replica(&self.replica)
    }

    /// The same with another state of the document.
    pub(super) fn push_replica(&self, replica: &Replica) -> mpsc::Receiver<bool> {
        let mut peers = self.others();
        if peers.len() > super::sync_scheduler::PUSH {
            // Gossip of the document's hash tells the others within seconds.
            let from = u64::from_be_bytes(random()) as usize % peers.len();
            peers.rotate_left(from);
            peers.truncate(super::sync_scheduler::PUSH);
        }
        let (told, count) = mpsc::channel(super::sync_scheduler::PUSH);
        let document = replica.sealed();
        let snapshot = Arc::new(FromMember::Sync(Box::new(SyncSnapshot {
            document,
            keys: self.ring.keys().to_vec(),
            addresses: Addresses::new(),
        })));
        for peer in peers {
            let (link, told, request) = (self.link.clone(), told.clone(), snapshot.clone());
            self.life.spawn(async move {
                let answered = tokio::time::timeout(Duration::from_secs(3), link.call(peer, &request)).await;
                let _ = told.send(matches!(answered, Ok(Ok(ToMember::Synced(_))))).await;
            });
        }
        count
    }

    fn incoming(&mut self, incoming: MemberRequest) {
        let MemberRequest { from, request, reply } = incoming;
        let answer = match request {
            FromMember::Gossip(_) => return,
            FromMember::Compare(known) => {
                let snapshot = self.snapshot_for(&from, Some(&known));
                ToMember::Compared(self.document().state(), Box::new(snapshot))
            }
            FromMember::Sync(snapshot) => {
                self.take(&from, &snapshot);
                ToMember::Synced(self.document().state())
            }
            FromMember::Answer { .. } if !self.document().is_master(&from) => {
                ToMember::failed(FailCode::NotAllowed, "only masters admit nodes")
            }
            FromMember::Answer { code, role } => ToMember::Answered(self.answer(&code, role)),
            FromMember::Leave => self.admit_leave(&from),
            FromMember::Waiting => {
                self.free_places();
                ToMember::Waiting(self.pending.waiting(wall()).cloned().collect())
            }
            FromMember::Held(node) => ToMember::Held((self.held)(&node)),
            #[cfg(feature = "next-wire")]
            FromMember::Next { text } => ToMember::Next(text),
            _ => ToMember::failed(FailCode::Unsupported, "unsupported request"),
        };
        let _ = reply.send(answer);
    }
}
