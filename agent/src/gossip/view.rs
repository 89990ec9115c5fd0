//! Builds the [`ClusterView`] that all other features use, from records, settings and liveness.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use chitchat::ChitchatHandle;
use proto::backends::LastKnownGood;
use proto::cluster::Document;
use proto::node::NodeId;
use proto::record::{NodeRecord, RecordField};
use proto::settings::Settings;
use proto::signed_record::RecordVersion;
use proto::time::Moment;
use proto::topology::{Place, is_needed};
use proto::view::{Authority, ClusterView, Ignored, IgnoredClaim, OtherMembers, PublishedRecord};
use tracing::warn;

use super::{DIRECT, Gossip, chitchat_name};
use crate::lifecycle::wall;

/// A view is made again after this time though nothing that it is made of has changed, since it also refreshes the
/// addresses of members.
const RENEW: Duration = Duration::from_secs(5);

/// A decoded record.
struct CachedRecord {
    version: RecordVersion,
    fingerprint: u32,
    record: NodeRecord,
    left_out: Vec<RecordField>,
}

/// What was derived from records so far.
#[derive(Default)]
pub(super) struct RecordCache {
    read: BTreeMap<NodeId, CachedRecord>,
    /// The generation of each member's last record, and whose have become later since the last look.
    generations: BTreeMap<NodeId, u64>,
    started: Vec<NodeId>,
    /// Addresses that members have proven to own, among those that their records name.
    proven: BTreeSet<(NodeId, IpAddr)>,
}

impl RecordCache {
    /// Names may have changed: everything is read again.
    pub(super) fn forget(&mut self) {
        self.read.clear();
    }

    /// Reads changed records, and returns whose they are, or were. A node without a record is no longer a member.
    fn read_changes(&mut self, records: &crate::records::SharedRecords, document: &Document) -> Vec<NodeId> {
        let mut fresh = Vec::new();
        let store = records.lock();
        self.read.retain(|id, _| {
            let stays = store.get(id).is_some();
            if !stays {
                fresh.push(*id);
            }
            stays
        });
        self.generations.retain(|id, _| store.get(id).is_some());
        for signed in store.iter() {
            if self.read.get(&signed.node).is_some_and(|read| read.version == signed.version) {
                continue;
            }
            let name = document.shown_name(&signed.node);
            let (record, left_out) = NodeRecord::from_body(name, signed.body());
            let (version, fingerprint) = (signed.version, signed.fingerprint());
            let before = self.generations.insert(signed.node, version.generation);
            if before.is_some_and(|before| before < version.generation) {
                self.started.push(signed.node);
            }
            self.read.insert(signed.node, CachedRecord { version, fingerprint, record, left_out });
            fresh.push(signed.node);
        }
        fresh
    }
}

impl RecordCache {
    /// Whether a member's record was read.
    pub(super) fn has_read(&self, id: &NodeId) -> bool {
        self.read.contains_key(id)
    }

    /// The records that every node needs, by their fingerprints: those of nodes that `needs` names, and those that are
    /// needed for what they say.
    pub(super) fn needed(&self, needs: impl Fn(&NodeId) -> bool) -> BTreeMap<NodeId, u32> {
        let needed = |id: &NodeId, read: &CachedRecord| needs(id) || is_needed(&read.record);
        let all = self.read.iter().filter(|(id, read)| needed(id, read));
        all.map(|(id, read)| (*id, read.fingerprint)).collect()
    }
}

/// What a view was made of, beside the records, and when.
#[derive(Clone)]
pub(super) struct MadeOf {
    document: Arc<Document>,
    settings: Arc<Settings>,
    serving: Arc<LastKnownGood>,
    /// Counts the addresses that were proven.
    proofs: u64,
    alive: BTreeSet<NodeId>,
    others: Option<OtherMembers>,
    core: usize,
    attached_to: Vec<NodeId>,
    at: Moment,
}

impl MadeOf {
    /// Whether a view of now would be the same as the last one, which need not be made again yet.
    fn is_as_good_as(&self, last: &MadeOf) -> bool {
        Arc::ptr_eq(&self.document, &last.document)
            && Arc::ptr_eq(&self.settings, &last.settings)
            && Arc::ptr_eq(&self.serving, &last.serving)
            && (self.proofs, self.core) == (last.proofs, last.core)
            && self.alive == last.alive
            && self.others == last.others
            && self.attached_to == last.attached_to
            && self.at.since(last.at) < RENEW
    }
}

impl Gossip {
    /// Builds a new view from the records and chitchat's state, and publishes it when it differs. Without chitchat
    /// this node is attached.
    pub(super) async fn publish_view(&mut self, handle: Option<&ChitchatHandle>) {
        let document = self.trust.borrow().document.clone();
        let previous = self.view.borrow().clone();
        let fresh = self.seen.read_changes(&self.records, &document);
        self.publish_link_versions(&fresh);
        let own = self.link.own();
        let now = self.life.now();
        for id in std::mem::take(&mut self.seen.started) {
            self.place.topology.has_started(id, now);
        }
        let shown = self.shown(handle, now).await;
        self.place.set_alive(shown, now);
        let made_of = self.made_of(document.clone(), now);
        self.publish_needed(&document);
        if fresh.is_empty() && self.made_of.as_ref().is_some_and(|last| made_of.is_as_good_as(last)) {
            return;
        }
        let view = {
            let published = self.seen.read.iter().map(|(id, read)| PublishedRecord {
                id: *id,
                record: &read.record,
                left_out: &read.left_out,
                alive: made_of.alive.contains(id),
            });
            let settings = &made_of.settings;
            let authority = Authority {
                role: &|id| document.role(id),
                may_offer: &|service, name, role| settings.may_offer(service, name, role),
                may_own: &|vip, name, role| settings.may_own(vip, name, role),
                proven: &|id, ip| self.is_proven(id, ip),
            };
            ClusterView {
                others: made_of.others.clone(),
                core: made_of.core,
                attached_to: made_of.attached_to.clone(),
                ..ClusterView::new(published, &previous, wall(), &authority)
            }
        };
        self.keep_proofs(&view);
        self.ask_for_proofs(&view);
        for member in view.members.values() {
            if member.id != own {
                self.link.addresses().add_hint(member.id, member.addresses(), member.heard);
            }
        }
        for one in &view.not_counted {
            let known = |known: &IgnoredClaim| known.node == one.node && known.what == one.what;
            if !previous.not_counted.iter().any(known) {
                warn!("{}", one.problem());
            }
        }
        // What is not proven is asked for again and again.
        let asks = view.not_counted.iter().any(|one| matches!(one.what, Ignored::Unproven(..)));
        self.made_of = (!asks).then_some(made_of);
        if *previous != view {
            self.view.send_replace(Arc::new(view));
        }
    }

    /// Whom chitchat or a datagram shows to be alive, among those with a record.
    async fn shown(&mut self, handle: Option<&ChitchatHandle>, now: Moment) -> BTreeSet<NodeId> {
        // chitchat needs several rounds before it calls a newcomer alive; a datagram from it shows that at
        // once.
        let direct = |id: &NodeId| *id == self.link.own() || self.link.datagrams().has_heard(id, DIRECT, now);
        let (mut shown, silent): (BTreeSet<NodeId>, BTreeSet<NodeId>) =
            self.seen.read.keys().copied().partition(direct);
        if let Some(handle) = handle.filter(|_| !silent.is_empty()) {
            // The live start must be that of the record: an earlier one can look alive for a while.
            let alive: BTreeSet<(String, u64)> = handle
                .with_chitchat(|chitchat| {
                    chitchat.live_nodes().map(|id| (id.node_id.to_string(), id.generation_id)).collect()
                })
                .await;
            let lives = |id: &NodeId| {
                let read = self.seen.read.get(id);
                read.is_some_and(|read| alive.contains(&(chitchat_name(id), read.version.generation)))
            };
            shown.extend(silent.into_iter().filter(lives));
        }
        shown
    }

    /// What a view would be made of now, apart from the records.
    fn made_of(&self, document: Arc<Document>, now: Moment) -> MadeOf {
        let topology = &self.place.topology;
        let attached_to = match topology.place() {
            Place::Attached => topology.attachment().answering().map(|(id, _)| id).collect(),
            Place::Everyone | Place::Core => Vec::new(),
        };
        let alive = |id: &&NodeId| self.place.is_alive(id, now);
        let (settings, serving) = (self.settings.borrow().clone(), self.serving.borrow().clone());
        let proofs = *self.link.addresses().changes().borrow();
        MadeOf {
            document,
            settings,
            serving,
            proofs,
            alive: self.seen.read.keys().filter(alive).copied().collect(),
            others: self.place.others(now),
            core: topology.core().len(),
            attached_to,
            at: now,
        }
    }

    /// Whether a member has proven that it owns an address. Addresses in the last known good list were proven
    /// to this node in an earlier run, or to the member that admitted it.
    fn is_proven(&self, id: &NodeId, ip: IpAddr) -> bool {
        let served = || {
            let serving = self.serving.borrow();
            serving.iter().any(|(_, all)| all.iter().any(|one| one.node == *id && one.address.ip() == ip))
        };
        *id == self.link.own()
            || self.link.addresses().is_proven(id, ip)
            || self.seen.proven.contains(&(*id, ip))
            || served()
    }

    /// Keeps proofs for as long as the address is named, so that a moment without the transport's does not
    /// remove a backend.
    fn keep_proofs(&mut self, view: &ClusterView) {
        let offered = view
            .members
            .values()
            .flat_map(|member| member.record.services.values().map(|offer| (member.id, offer.address.ip())));
        self.seen.proven = offered.collect();
    }
}

impl Gossip {
    /// Asks members to prove the addresses at which they offer services: that takes a round trip, and the
    /// transport limits how often each is asked.
    fn ask_for_proofs(&self, view: &ClusterView) {
        for one in &view.not_counted {
            let Ignored::Unproven(_, ip) = &one.what else { continue };
            let Some(member) = view.members.get(&one.node) else { continue };
            let port = member.record.addresses.first().map_or(proto::transport::PORT, SocketAddr::port);
            self.link.datagrams().prove(one.node, SocketAddr::new(*ip, port), self.life.now());
        }
    }

    /// Tells the transport which versions of its protocol members speak.
    fn publish_link_versions(&self, read: &[NodeId]) {
        for id in read {
            let speaks = self.seen.read.get(id).map(|read| read.record.link_versions);
            if let Some((lowest, highest)) =
                speaks.filter(|(lowest, highest)| lowest <= highest && *highest > 0)
            {
                self.link.datagrams().speaks(*id, lowest..=highest);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proto::cluster::{Admitted, KeyId};
    use proto::node::{PublicKey, Role};
    use proto::time::UnixMs;

    use super::*;

    fn document() -> Arc<Document> {
        let key = PublicKey([1; 32]);
        let admitted = Admitted::new("m1".parse().unwrap(), key, Role::Master, key.id(), UnixMs(1));
        Arc::new(Document::new([1; 16], "c".parse().unwrap(), admitted, KeyId([0; 16])))
    }

    #[test]
    fn a_view_is_made_again_when_something_has_changed_and_after_a_while() {
        let last = MadeOf {
            document: document(),
            settings: Arc::default(),
            serving: Arc::default(),
            proofs: 1,
            alive: BTreeSet::from([NodeId([1; 10])]),
            others: None,
            core: 0,
            attached_to: Vec::new(),
            at: Moment::from_millis(1_000),
        };
        let later = MadeOf { at: Moment::from_millis(5_999), ..last.clone() };
        assert!(later.is_as_good_as(&last));
        let changes: [fn(&mut MadeOf); 9] = [
            |one| one.document = document(),
            |one| one.settings = Arc::default(),
            |one| one.serving = Arc::default(),
            |one| one.proofs += 1,
            |one| one.alive.clear(),
            |one| one.others = Some(OtherMembers::default()),
            |one| one.core += 1,
            |one| one.attached_to.push(NodeId([2; 10])),
            |one| one.at = Moment::from_millis(6_000),
        ];
        for (at, change) in changes.into_iter().enumerate() {
            let mut now = later.clone();
            change(&mut now);
            assert!(!now.is_as_good_as(&last), "{at}");
        }
    }
}
