//! The cluster document and the gossip keys that this node holds. They are changed, adopted, published as
//! [`TrustedKeys`] and written to disk here alone, and only ever replaced whole.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::sync::Arc;

use proto::cause::Reason;
use proto::cluster::{
    AdoptError, Adoption, ChangeError, Document, DocumentJournal, KeyId, Replica, SealedDocument,
};
use proto::config::Mistake;
use proto::node::NodeId;
use proto::rpc::{Addresses, MAX_ADDRESSES, SyncDigest, SyncSnapshot};
use proto::settings::{SettingChange, plan};
use proto::transport::{GossipKey, KeyRing};
use tokio::sync::watch;
use tracing::{info, warn};

use super::OwnAddress;
use super::disk::MemberStore;
use super::rival::RivalMaster;
use crate::lifecycle::wall;
use crate::transport::{Link, TrustedKeys, random};

/// Nodes admitted in one change that have a line each in the log.
const FEW: usize = 8;

/// Why settings are not changed.
#[derive(Debug, thiserror::Error)]
pub(super) enum SettingError {
    /// Every mistake in what was asked for, a line for each.
    #[error("nothing was changed:{}", .0.iter().map(|mistake| format!("\n  {mistake}")).collect::<String>())]
    Mistakes(Vec<Mistake>),
    /// The document was not changed.
    #[error(transparent)]
    Change(#[from] ChangeError),
    /// Another value of this key is newer, by its author's clock.
    #[error("cannot change {0}: another value takes precedence")]
    Outvoted(String),
}

/// The document and the keys of this node.
pub(super) struct ClusterState {
    link: Arc<Link>,
    disk: Arc<MemberStore>,
    own_at: OwnAddress,
    replica: Replica,
    /// How the document came to be what it is, for those who have it as it was.
    journal: DocumentJournal,
    /// A difference led nowhere: the whole document is asked for.
    misled: bool,
    ring: KeyRing,
    /// What the file of keys is known to hold.
    saved_ring: Option<KeyRing>,
    trust: watch::Sender<Arc<TrustedKeys>>,
    rival: RivalMaster,
}

impl ClusterState {
    /// What was read from disk, and the watch that it is published by.
    pub(super) fn new(
        link: Arc<Link>,
        disk: Arc<MemberStore>,
        own_at: OwnAddress,
        (replica, ring): (Replica, KeyRing),
        trust: watch::Sender<Arc<TrustedKeys>>,
    ) -> ClusterState {
        let rival = RivalMaster::new(disk.clone());
        let journal = DocumentJournal::default();
        ClusterState {
            link,
            disk,
            own_at,
            replica,
            journal,
            misled: false,
            ring,
            saved_ring: None,
            trust,
            rival,
        }
    }

    /// The document.
    pub(super) fn document(&self) -> &Document {
        self.replica.document()
    }

    /// This node.
    pub(super) fn own(&self) -> NodeId {
        self.link.own()
    }

    /// Whether this node is a member.
    pub(super) fn is_member(&self) -> bool {
        self.document().member(&self.own()).is_some()
    }

    /// Whether it is a master.
    pub(super) fn is_master(&self) -> bool {
        self.document().is_master(&self.own())
    }

    /// All other members.
    pub(super) fn others(&self) -> Vec<NodeId> {
        let own = self.own();
        self.document().members().map(|(id, _)| *id).filter(|id| *id != own).collect()
    }

    /// Changes the document and publishes it; peers are not told yet.
    pub(super) fn change<T>(
        &mut self,
        change: impl FnOnce(&mut Document) -> Result<T, ChangeError>,
    ) -> Result<T, ChangeError> {
        let identity = self.link.identity().clone();
        let result = self.replica.change(identity.id, identity.pair(), change)?;
        self.publish();
        Ok(result)
    }

    /// Changes settings: all that is asked for, or nothing. They are checked as a whole before they spread.
    pub(super) fn change_settings(
        &mut self,
        wishes: &[(String, Option<String>)],
    ) -> Result<Vec<SettingChange>, SettingError> {
        let changes = plan(self.document(), wishes).map_err(SettingError::Mistakes)?;
        let new: Vec<&SettingChange> = changes.iter().filter(|change| change.differs()).collect();
        if new.is_empty() {
            return Ok(changes);
        }
        let by = self.own();
        self.change(|document| {
            for SettingChange { key, new, .. } in &new {
                document.set(key, new.clone(), by, wall())?;
            }
            Ok(())
        })?;
        for SettingChange { key, old, new } in new {
            let now = self.document().settings.get(key).and_then(|setting| setting.value.as_ref());
            if now != new.as_ref() {
                return Err(SettingError::Outvoted(key.clone()));
            }
            let shown = |value: &Option<String>| value.clone().unwrap_or_else(|| "not set".to_owned());
            info!("setting {key} changed to {} from {}", shown(new), shown(old));
        }
        Ok(changes)
    }

    /// Makes another gossip key the one that counts, after `change`.
    pub(super) fn change_with_key(
        &mut self,
        by_removal: bool,
        change: impl FnOnce(&mut Document) -> Result<(), ChangeError>,
    ) -> Result<(), ChangeError> {
        let secret: [u8; 32] = random();
        let id = KeyId::of_key(&secret);
        let identity = self.link.identity().clone();
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

    /// What peers would be told after a change that is not made here: a node that leaves keeps what it has
    /// until others know.
    pub(super) fn after(
        &self,
        change: impl FnOnce(&mut Document) -> Result<(), ChangeError>,
    ) -> Result<SyncSnapshot, ChangeError> {
        let identity = &self.link.identity();
        let mut replica = self.replica.clone();
        replica.change(identity.id, identity.pair(), change)?;
        Ok(self.whole(&replica))
    }

    /// What members are told of changes: the document and every key.
    pub(super) fn current(&self) -> SyncSnapshot {
        let difference = self.journal.since(None, &self.replica);
        SyncSnapshot { difference, ..self.whole(&self.replica) }
    }

    fn whole(&self, replica: &Replica) -> SyncSnapshot {
        SyncSnapshot {
            document: replica.sealed(),
            keys: self.ring.keys().to_vec(),
            ..SyncSnapshot::default()
        }
    }

    /// What a node with this id may have of what all must know: one that was removed, or has just left, sees
    /// the document and no key.
    pub(super) fn snapshot_for(&self, peer: &NodeId, known: Option<&SyncDigest>) -> SyncSnapshot {
        let (document, difference) = match known {
            Some(known) if known.document == self.document().state() => (None, None),
            known => {
                let known = known.filter(|known| known.differences);
                let shorter =
                    known.and_then(|known| self.journal.since(Some(&known.document), &self.replica));
                if shorter.is_some() { (None, shorter) } else { (self.replica.sealed(), None) }
            }
        };
        if self.document().member(peer).is_none() {
            return SyncSnapshot { document, difference, ..SyncSnapshot::default() };
        }
        let lacks = |key: &&GossipKey| known.is_none_or(|known| !known.keys.contains(&key.id));
        let keys = self.ring.keys().iter().filter(lacks).cloned().collect();
        SyncSnapshot { document, difference, keys, addresses: self.addresses() }
    }

    /// What a node may have that is a member.
    pub(super) fn for_members(&self) -> SyncSnapshot {
        SyncSnapshot { addresses: self.addresses(), ..self.whole(&self.replica) }
    }

    /// What this node has, for a peer to send the rest.
    pub(super) fn digest(&self) -> SyncDigest {
        let keys = self.ring.keys().iter().map(|key| key.id).collect();
        SyncDigest { document: self.document().state(), keys, differences: !self.misled }
    }

    fn addresses(&self) -> Addresses {
        let mut addresses = self.link.addresses().snapshot();
        if let Some(at) = self.own_at.now() {
            addresses.insert(self.own(), vec![at]);
        }
        addresses
    }

    /// Ends keys whose time is over.
    pub(super) fn retire_keys(&mut self) {
        if self.ring.apply_document(self.replica.document(), wall()) {
            self.publish();
        }
    }

    /// Tells of a worker that goes on as a master, or that none does any longer.
    pub(super) fn report_rival(&mut self) {
        self.rival.report(self.replica.document());
    }

    /// Publishes and writes what has changed.
    fn publish(&mut self) {
        self.ring.apply_document(self.replica.document(), wall());
        let known = self.trust.borrow().document.clone();
        self.journal.follow(&known, self.replica.document());
        let trust =
            TrustedKeys { document: Arc::new(self.document().clone()), ring: Arc::new(self.ring.clone()) };
        self.trust.send_replace(Arc::new(trust));
        // Of a hundred changes of the document none may concern the keys.
        if self.saved_ring.as_ref() != Some(&self.ring) {
            self.saved_ring = self.disk.save_keys(&self.ring).then(|| self.ring.clone());
        }
        self.disk.save_replica(&self.replica);
        self.link.forget_strangers();
    }

    /// Takes over what a peer has sent, as far as it counts. Returns what the peer, and the master that sealed it,
    /// have to be shown: neither may ever hear from anyone else what made this node a master, and the master may
    /// be gone.
    pub(super) fn take(
        &mut self,
        from: &NodeId,
        snapshot: &SyncSnapshot,
    ) -> Option<(BTreeSet<NodeId>, SyncSnapshot)> {
        let own = self.own();
        let was_member = self.is_member();
        let mut changed = false;
        let followed = if snapshot.document.is_none() { self.follow_difference(snapshot) } else { None };
        let sealed = snapshot.document.as_ref().or(followed.as_ref());
        if let Some(sealed) = sealed {
            changed = self.take_document(from, sealed);
        }
        changed |= self.ring.take(&snapshot.keys, self.replica.document(), wall());
        if changed {
            self.publish();
        }
        for (id, addresses) in &snapshot.addresses {
            if *id != own && self.document().member(id).is_some() {
                let some: Vec<SocketAddr> = addresses.iter().take(MAX_ADDRESSES).copied().collect();
                self.link.addresses().add_hint(*id, &some, false);
            }
        }
        if was_member && !self.is_member() {
            warn!("this node was removed from the cluster; serving from the last known good list");
        }
        let sealed = sealed?;
        let proof = self.replica.proof_for(sealed, &own)?;
        let shown = BTreeSet::from([sealed.by(), *from]);
        Some((shown, SyncSnapshot { document: Some(proof), ..SyncSnapshot::default() }))
    }

    /// The document that a difference leads to from this node's.
    fn follow_difference(&mut self, snapshot: &SyncSnapshot) -> Option<SealedDocument> {
        let difference = snapshot.difference.as_ref()?;
        if difference.target == self.document().state() {
            return None;
        }
        let reached = difference.apply(self.document());
        self.misled = reached.is_none();
        reached
    }

    /// Adopts a copy of the document, and says whether that changed anything here.
    fn take_document(&mut self, from: &NodeId, sealed: &SealedDocument) -> bool {
        let before = self.document().clone();
        match self.adopt(sealed) {
            Err(error) => {
                warn!(peer = %from, "cluster document rejected: {error}");
                if let AdoptError::WorkerSealer(node) = error {
                    self.rival.refused(node);
                }
                // Whoever was removed goes on sealing what nobody takes: nothing to be done about it here.
                if !matches!(error, AdoptError::RemovedSealer(_) | AdoptError::WorkerSealer(_)) {
                    let name = self.document().shown_name(from);
                    let text = format_args!("rejected the cluster document of {name}: {error}");
                    self.disk.problem("refused document", Some(Reason::new(text)));
                }
                false
            }
            Ok(adoption) => {
                self.disk.problem("refused document", None);
                let changed = adoption != Adoption::Nothing;
                if changed {
                    self.log_difference(&before);
                }
                changed
            }
        }
    }

    /// Adopts a copy: a master merges and seals, a worker follows the masters.
    fn adopt(&mut self, sealed: &SealedDocument) -> Result<Adoption, AdoptError> {
        let identity = self.link.identity().clone();
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

    fn log_difference(&self, before: &Document) {
        let document = self.document();
        let new = document.members().filter(|(id, _)| before.member(id).is_none()).count();
        // Nodes that join by the hundred are one line; who admitted them logs each.
        if new > FEW {
            info!(count = new, "nodes admitted");
        }
        for (id, admitted) in document.members() {
            if before.member(id).is_none() {
                if new <= FEW {
                    info!(node = %admitted.name, %id, "node admitted");
                }
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
}
