//! Builds the [`ClusterView`] that all other features use, from records, settings and liveness.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use chitchat::ChitchatHandle;
use proto::cluster::Document;
use proto::node::NodeId;
use proto::record::{NodeRecord, RecordField};
use proto::signed_record::RecordVersion;
use proto::topology::{Place, is_needed};
use proto::view::{Authority, ClusterView, Ignored, IgnoredClaim, PublishedRecord};
use tracing::warn;

use super::{DIRECT, Gossip, chitchat_name};
use crate::lifecycle::wall;

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
    /// Addresses that members have proven to own, among those that their records name.
    proven: BTreeSet<(NodeId, IpAddr)>,
}

impl RecordCache {
    /// Names may have changed: everything is read again.
    pub(super) fn forget(&mut self) {
        self.read.clear();
    }

    /// Reads changed records, and returns whose they are. A node without a record is no longer a member.
    fn read_changes(&mut self, records: &crate::records::SharedRecords, document: &Document) -> Vec<NodeId> {
        let mut fresh = Vec::new();
        let store = records.lock();
        self.read.retain(|id, _| store.get(id).is_some());
        for signed in store.iter() {
            if self.read.get(&signed.node).is_some_and(|read| read.version == signed.version) {
                continue;
            }
            let name = document.shown_name(&signed.node);
            let (record, left_out) = NodeRecord::from_body(name, signed.body());
            let (version, fingerprint) = (signed.version, signed.fingerprint());
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
        // The live start must be that of the record: an earlier one can look alive for a while.
        let alive: BTreeSet<(String, u64)> = match handle {
            Some(handle) => {
                handle
                    .with_chitchat(|chitchat| {
                        chitchat.live_nodes().map(|id| (id.node_id.to_string(), id.generation_id)).collect()
                    })
                    .await
            }
            None => BTreeSet::new(),
        };
        // chitchat needs several rounds before it calls a newcomer alive; a datagram from it shows that at
        // once.
        let shown = |id: &NodeId, version: RecordVersion| {
            *id == own
                || self.link.datagrams().last_heard(id).is_some_and(|at| now.since(at) < DIRECT)
                || alive.contains(&(chitchat_name(id), version.generation))
        };
        let shown = self.seen.read.iter().filter(|(id, read)| shown(id, read.version)).map(|(id, _)| *id);
        let shown: BTreeSet<NodeId> = shown.collect();
        self.place.set_alive(shown, now);
        let heard = |id: &NodeId| self.place.is_alive(id, now);
        let view = {
            let published = self.seen.read.iter().map(|(id, read)| PublishedRecord {
                id: *id,
                record: &read.record,
                left_out: &read.left_out,
                alive: heard(id),
            });
            let settings = self.settings.borrow().clone();
            let authority = Authority {
                role: &|id| document.role(id),
                may_offer: &|service, name, role| settings.may_offer(service, name, role),
                may_own: &|vip, name, role| settings.may_own(vip, name, role),
                proven: &|id, ip| self.is_proven(id, ip),
            };
            let topology = &self.place.topology;
            let attached_to = match topology.place() {
                Place::Attached => topology.attachment().answering().map(|(id, _)| id).collect(),
                Place::Everyone | Place::Core => Vec::new(),
            };
            ClusterView {
                others: self.place.others(),
                core: topology.core().len(),
                attached_to,
                ..ClusterView::new(published, &previous, wall(), &authority)
            }
        };
        self.publish_needed(&document);
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
        if *previous != view {
            self.view.send_replace(Arc::new(view));
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
