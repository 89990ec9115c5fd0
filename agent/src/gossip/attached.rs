//! What this node does by its place in a large cluster: see [`proto::topology`], which decides it all.
//!
//! A core member answers those attached to it, tells them of changes at once, and passes their records on. An attached
//! node reports to the core members that it holds, and pulls what they have and it lacks.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use proto::cluster::Document;
use proto::node::NodeId;
use proto::record_store::OfferOutcome;
use proto::signed_record::SignedRecord;
use proto::time::Moment;
use proto::topology::{
    self, Attach, AttachDue, Beacon, CoreOrder, Heard, Knowledge, Place, SilentNames, Topology, prefix,
    unless_known,
};
use proto::view::OtherMembers;

use super::Gossip;
use crate::lifecycle::wall;
use crate::transport::{TopologyFrame, random};

/// Shortest time between two beacons that nobody asked for: a hundred nodes that join change the document as often.
const UNASKED: Duration = Duration::from_secs(1);

/// Shortest time between two pulls of records that a core member has and this node lacks. The more members there are,
/// the more often one of these records changes: so much longer for each.
const PULL: Duration = Duration::from_secs(2);
const PULL_EACH: Duration = Duration::from_millis(2);

/// What a node says of the cluster, and hears of it, beside its record.
pub(super) struct ClusterPlace {
    pub(super) topology: Topology,
    /// The core apart.
    knows: Knowledge,
    /// What those attached here were told last, and when.
    told: (Knowledge, Moment),
    /// Whom gossip or a datagram shows to be alive.
    alive: BTreeSet<NodeId>,
    /// Members that are not alive, and how many are.
    silent: Vec<NodeId>,
    up: usize,
    /// Those who are not that are named.
    names: SilentNames,
    /// When records may be pulled again.
    pull: Moment,
}

impl ClusterPlace {
    pub(super) fn new(own: NodeId, document: &Document, now: Moment) -> ClusterPlace {
        ClusterPlace {
            topology: Topology::new(own, CoreOrder::of(document), now),
            knows: Knowledge::default(),
            told: (Knowledge::default(), now),
            alive: BTreeSet::new(),
            silent: Vec::new(),
            up: 0,
            names: SilentNames::default(),
            pull: now,
        }
    }

    pub(super) fn set_members(&mut self, document: &Document, now: Moment) {
        self.topology.set_members(CoreOrder::of(document), now);
        // The hash is 12 digits of base 16.
        self.knows.document = u64::from_str_radix(&document.hash(), 16).unwrap_or(0);
    }

    /// Whom this node should gossip with.
    pub(super) fn gossips_with(&self, document: &Document) -> Vec<NodeId> {
        match self.topology.place() {
            Place::Everyone => document.members().map(|(id, _)| *id).collect(),
            Place::Core => self.topology.core().iter().copied().collect(),
            Place::Attached => Vec::new(),
        }
    }

    /// Decides anew, when it is time.
    pub(super) fn decide(&mut self, now: Moment) -> Place {
        self.topology.update(|id| self.alive.contains(id), now)
    }

    /// Whether a member is alive.
    pub(super) fn is_alive(&self, id: &NodeId, now: Moment) -> bool {
        self.topology.is_alive(id, self.alive.contains(id), now)
    }

    /// What this node knows, with the core as it is now.
    fn knowledge(&self) -> Knowledge {
        Knowledge { core: topology::fingerprint(self.topology.core()), ..self.knows }
    }

    /// What is known of members whose records this node does not have.
    pub(super) fn others(&self, now: Moment) -> Option<OtherMembers> {
        let members = self.topology.members();
        let all = |silent: BTreeSet<NodeId>| {
            let up = members.saturating_sub(silent.len());
            Some(OtherMembers { members, up, silent, differ: Vec::new() })
        };
        match self.topology.place() {
            Place::Everyone => return self.topology.silent_before(now).cloned().and_then(all),
            // One that was just called does not have all records yet.
            Place::Core => return all(self.silent.iter().copied().collect()),
            Place::Attached => {}
        }
        let heard: Vec<(NodeId, &Heard)> = self.topology.attachment().answering().collect();
        let differs = |heard: &Heard| heard.knows.document != self.knows.document;
        Some(OtherMembers {
            members,
            up: heard.iter().map(|(_, heard)| heard.up as usize).max().unwrap_or(0),
            silent: self.topology.attachment().silent().iter().copied().collect(),
            differ: heard.iter().filter(|(_, heard)| differs(heard)).map(|(id, _)| *id).collect(),
        })
    }

    /// Takes who is alive, of the members that have a record here or are said to be.
    pub(super) fn set_alive(&mut self, alive: BTreeSet<NodeId>, now: Moment) {
        self.alive = alive;
        if self.topology.place() == Place::Attached {
            return;
        }
        self.silent = self.topology.silent(|id| self.alive.contains(id), now);
        self.up = self.topology.members().saturating_sub(self.silent.len());
    }

    /// Takes the records that every node needs.
    fn set_needed(&mut self, needed: &BTreeMap<NodeId, u32>, now: Moment) {
        self.knows.records = topology::fingerprint_of_records(needed.iter().map(|(id, print)| (*id, *print)));
        self.names.update(&self.silent, |id| needed.contains_key(id), now);
    }

    fn beacon(&self, core_known: u64, silent_known: u32, yours: u32) -> Beacon {
        let said = self.topology.beacon(core_known);
        Beacon {
            knows: Knowledge { core: said.knows.core, ..self.knows },
            up: u32::try_from(self.up).unwrap_or(u32::MAX),
            silent: unless_known(self.names.named().iter().map(prefix).collect(), silent_known),
            yours,
            ..said
        }
    }
}

impl Gossip {
    /// Sends what is due by this node's place.
    pub(super) fn poll_topology(&mut self) {
        let now = self.life.now();
        let due = self.place.topology.poll(now);
        for one in due.attach {
            self.attach(&one);
        }
        if let Some(list) = due.list {
            let attached = Some(list.iter().map(prefix).collect());
            self.send_to_core(&Beacon { in_core: true, attached, ..Beacon::default() });
        }
        if !due.probes.is_empty() {
            let (knows, (_, record)) = (self.place.knowledge(), self.own_record());
            let attach = TopologyFrame::Attach(Attach { knows, record, ..Attach::default() }.to_bytes());
            due.probes.into_iter().for_each(|id| self.link.datagrams().send_topology(id, &attach));
        }
    }

    /// This node's record, and its fingerprint.
    fn own_record(&self) -> (Option<SignedRecord>, u32) {
        let record = self.records.lock().get(&self.link.own()).cloned();
        let print = record.as_ref().map_or(0, SignedRecord::fingerprint);
        (record, print)
    }

    fn attach(&self, due: &AttachDue) {
        let (record, print) = self.own_record();
        let attach = Attach {
            knows: Knowledge { core: due.core, ..self.place.knows },
            record: if due.searches { 0 } else { print },
            first: due.first,
            carried: record.filter(|_| due.yours != Some(print) && !due.searches),
            lost: self.place.topology.lost(self.life.now()),
            silent: due.silent,
        };
        self.link.datagrams().send_topology(due.to, &TopologyFrame::Attach(attach.to_bytes()));
    }

    fn send_to_core(&self, beacon: &Beacon) {
        let frame = TopologyFrame::Beacon(beacon.to_bytes());
        for id in self.place.topology.peers(self.life.now()) {
            self.link.datagrams().send_topology(id, &frame);
        }
    }

    fn send_beacon(&self, to: NodeId, core_known: u64, silent_known: u32) {
        let yours = self.records.lock().get(&to).map_or(0, SignedRecord::fingerprint);
        let frame = TopologyFrame::Beacon(self.place.beacon(core_known, silent_known, yours).to_bytes());
        self.link.datagrams().send_topology(to, &frame);
    }

    /// Takes what an attached node or a core member has sent. True: the view may have changed.
    pub(super) fn take_frame(&mut self, from: NodeId, frame: &TopologyFrame) -> bool {
        let now = self.life.now();
        match frame {
            TopologyFrame::Attach(body) => {
                let attach = Attach::from_bytes(body);
                let news = self.take_record(&attach.carried, from);
                self.place.topology.attached_by(from, &attach, now);
                let held = self.records.lock().get(&from).map(SignedRecord::fingerprint);
                let has_another = attach.record != 0 && held != Some(attach.record);
                if has_another && self.place.topology.place() != Place::Attached {
                    self.pulls.announced(from, attach.record, now);
                }
                if let (true, true, Some(carried)) = (news, attach.first, attach.carried) {
                    self.send_to_core(&Beacon { in_core: true, carried: Some(carried), ..Beacon::default() });
                }
                if self.place.topology.has_answer() {
                    self.send_beacon(from, attach.knows.core, attach.silent);
                }
                news
            }
            TopologyFrame::Beacon(body) => {
                let beacon = Beacon::from_bytes(body);
                let counts = self.place.topology.heard(from, &beacon, now);
                if counts && beacon.knows.records != self.place.knows.records && now >= self.place.pull {
                    self.pull_needed(from);
                }
                self.take_record(&beacon.carried, from) || counts
            }
        }
    }

    /// Offers a record that a datagram carried. True: it is new.
    fn take_record(&self, record: &Option<SignedRecord>, sender: NodeId) -> bool {
        let Some(record) = record.clone() else { return false };
        self.records.lock().offer(record, &sender, self.life.now(), wall()) == OfferOutcome::Taken
    }

    /// Pulls the records that every node needs. Spread over a while: many nodes see at once that they lack some.
    fn pull_needed(&mut self, from: NodeId) {
        let dice = f64::from(u32::from_be_bytes(random())) / f64::from(u32::MAX);
        let members = u32::try_from(self.place.topology.members()).unwrap_or(u32::MAX);
        let pause = PULL + PULL_EACH.saturating_mul(members);
        self.place.pull = self.life.now().after(pause + pause.mul_f64(dice));
        let known = self.records.lock().versions();
        self.ask(from, known, true, true);
    }

    /// Computes whose records every node needs, says so to those attached here if it is news, and drops all others on
    /// an attached node.
    pub(super) fn publish_needed(&mut self, document: &Document) {
        let place = self.place.topology.place();
        if place == Place::Everyone {
            return;
        }
        let core = self.place.topology.core();
        let needs = |id: &NodeId| document.is_master(id) || core.contains(id);
        let needed = self.seen.needed(needs);
        let now = self.life.now();
        self.place.set_needed(&needed, now);
        if place == Place::Attached {
            let own = self.link.own();
            // What has just arrived was not read yet.
            let seen = &self.seen;
            self.records.lock().keep(|id| *id == own || needed.contains_key(id) || !seen.has_read(id));
        }
        self.records.set_needed(needed.into_keys().collect());
        let knows = self.place.knowledge();
        let (told, at) = self.place.told;
        if place == Place::Core && knows != told && now.since(at) >= UNASKED {
            self.place.told = (knows, now);
            let here: Vec<(NodeId, u32)> = self.place.topology.attached().here().collect();
            // Those who know the core already get it again only if it has changed.
            let known = if knows.core == told.core { knows.core } else { 0 };
            here.into_iter().for_each(|(id, silent)| self.send_beacon(id, known, silent));
        }
    }
}
