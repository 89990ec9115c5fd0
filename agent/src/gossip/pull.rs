//! Pulls records over TLS when gossip does not bring them, or not in time.
//!
//! - Soon after the start, from one member, so that a node has all records before the first round of gossip.
//! - While no member is alive, from one after the other: gossip can't work while keys differ.
//! - From a master whose pulses have another record than the stored one for longer than a moment.
//! - On an attached node, from a core member that has others of those that every node needs.
//! - On a node that was called into the core, from several of it: so far it had the records that every node needs.
//! - Every minute or so, from one random member, in a large cluster of the core: records that gossip does not
//!   deliver for some reason then arrive anyway.

use std::collections::BTreeMap;
use std::time::Duration;

use proto::node::NodeId;
use proto::rpc::{FromMember, ToMember};
use proto::signed_record::{RecordVersion, SignedRecord};
use proto::time::Moment;
use proto::topology::Place;

use super::Gossip;
use crate::records::MOST_BYTES;
use crate::transport::random;

/// Interval while no member is alive.
const ALONE: Duration = Duration::from_secs(2);

/// Interval while all is well, in a cluster of up to [`FEW`] members; proportionally longer in larger ones,
/// since a request names all members.
const USUAL: Duration = Duration::from_secs(60);
const FEW: u32 = 100;

/// Interval on a node that was called into the core, and for how long: others are called at the same time, and have
/// no more than it has.
const CALLED: Duration = Duration::from_secs(3);
const CALLED_FOR: Duration = Duration::from_secs(30);

/// How long gossip has to bring a record that a pulse has announced.
const PATIENCE: Duration = Duration::from_millis(1_500);

/// Longest wait for a response.
const ANSWER: Duration = Duration::from_secs(5);

/// When records were requested.
#[derive(Debug, Default)]
pub(super) struct RecordPulls {
    next: Option<Moment>,
    /// Until when this node has just been called into the core.
    called: Moment,
    /// Fingerprints that differ from the stored records, and since when, or since the last request.
    differ: BTreeMap<NodeId, (u32, Moment)>,
}

impl RecordPulls {
    /// This node was called into the core.
    pub(super) fn called(&mut self, now: Moment) {
        self.next = None;
        self.called = now.after(CALLED_FOR);
    }

    /// A member's pulse has announced its latest record.
    pub(super) fn announced(&mut self, node: NodeId, fingerprint: u32, now: Moment) {
        let since = self.differ.get(&node).map_or(now, |(_, since)| *since);
        self.differ.insert(node, (fingerprint, since));
    }
}

impl Gossip {
    /// Requests what is due.
    pub(super) fn pull(&mut self) {
        let now = self.life.now();
        for (node, version) in self.overdue(now) {
            self.ask(node, vec![(node, version)], false, false);
        }
        let own = self.link.own();
        let view = self.view.borrow().clone();
        if self.pulls.next.is_some_and(|at| now < at) {
            return;
        }
        let document = self.trust.borrow().document.clone();
        let attached = self.place.topology.place() == Place::Attached;
        let members: Vec<NodeId> = match self.place.topology.place() {
            Place::Everyone => document.members().map(|(id, _)| *id).filter(|id| *id != own).collect(),
            // Nobody else has all records.
            Place::Core | Place::Attached => {
                self.place.topology.core().iter().filter(|id| **id != own).copied().collect()
            }
        };
        let heard = |id: &&NodeId| view.members.get(id).is_some_and(|member| member.heard);
        let anyone = members.iter().any(|id| heard(&id));
        let dice = u64::from_be_bytes(random());
        // Of the live ones, if there are any: the others would not answer.
        let asked: Vec<NodeId> = members.iter().filter(|id| !anyone || heard(id)).copied().collect();
        let peer = asked.get((dice % asked.len().max(1) as u64) as usize).copied();
        let share = u32::try_from(members.len()).unwrap_or(u32::MAX).div_ceil(FEW).max(1);
        let lacks =
            now < self.pulls.called && self.records.lock().iter().count() < document.members().count();
        let wait = match (anyone, lacks) {
            (true, true) => CALLED,
            (true, false) => USUAL.saturating_mul(share),
            (false, _) => ALONE,
        };
        let wait = wait + wait.mul_f64((dice >> 32) as f64 / f64::from(u32::MAX) / 2.0);
        self.pulls.next = Some(now.after(wait));
        if let Some(peer) = peer {
            let known = self.records.lock().versions();
            self.ask(peer, known, true, attached);
        }
    }

    /// Members that have had another record than the stored one for too long, and the stored version.
    fn overdue(&mut self, now: Moment) -> Vec<(NodeId, RecordVersion)> {
        let store = self.records.lock();
        let held = |id: &NodeId| store.get(id).map(SignedRecord::fingerprint);
        self.pulls.differ.retain(|id, (says, _)| store.is_member(id) && held(id) != Some(*says));
        let mut overdue = Vec::new();
        for (id, (_, since)) in &mut self.pulls.differ {
            if now.since(*since) >= PATIENCE {
                *since = now;
                overdue.push((*id, store.version(id)));
            }
        }
        overdue
    }

    /// Asks one member for its newer records.
    pub(super) fn ask(&self, peer: NodeId, known: Vec<(NodeId, RecordVersion)>, all: bool, needed: bool) {
        let known = known.into_iter().map(|(id, at)| (id, at.generation, at.sequence)).collect();
        let (link, records, life) = (self.link.clone(), self.records.clone(), self.life.clone());
        self.life.spawn(async move {
            let request = FromMember::Records { known, all, needed };
            let work = tokio::time::timeout(ANSWER, link.dialer().call(peer, &request));
            let answer = tokio::select! {
                answer = work => answer,
                () = life.shutdown.cancelled() => return,
            };
            if let Ok(Ok(ToMember::Records(found))) = answer {
                records.offer(found, &peer, life.now());
            }
        });
    }
}

/// Records that are newer than a peer's.
pub(crate) fn newer(
    records: &crate::records::SharedRecords,
    known: Vec<(NodeId, u64, u64)>,
    all: bool,
    needed: bool,
) -> ToMember {
    let every = records.needed();
    let wants = |id: &NodeId| all && (!needed || every.is_empty() || every.contains(id));
    let version = |(id, generation, sequence)| (id, RecordVersion { generation, sequence });
    let known: Vec<_> = known.into_iter().map(version).collect();
    ToMember::Records(records.lock().newer_than(&known, wants, MOST_BYTES))
}
