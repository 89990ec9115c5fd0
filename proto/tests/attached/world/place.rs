//! What gossip's task does by its node's place: in the core, and attached.

use std::collections::BTreeSet;

use proto::node::NodeId;
use proto::pulse::Pace;
use proto::topology::{
    Attach, Beacon, Knowledge, Place, fingerprint, fingerprint_of_records, pace, prefix, unless_known,
};

use super::{Event, Kind, MASTERS, Message, RECORD, World, index};

/// A pull over TLS beside the records in it, sent and received: a handshake with both keys, the request and the
/// versions of 15 records, eight packets of TCP without content.
const PULL: (u64, u64) = (1_400, 1_350);

/// As in the agent: interval in which a core member looks who is alive, with a millisecond more for each member;
/// pause between two beacons that nobody asked for; and between two pulls, with two milliseconds more for each
/// member.
const LOOK_ALIVE: u64 = 200;
const UNASKED: u64 = 1_000;
const PULL_PAUSE: u64 = 2_000;

impl World {
    pub(super) fn attached(&mut self, from: usize, to: usize, attach: &Attach, carried: Option<u32>) {
        let (now, sender) = (self.now(), self.nodes[from].id);
        let node = &mut self.nodes[to];
        node.book.attached(sender, now);
        node.topology.attached_by(sender, attach, now);
        let news = carried.filter(|number| node.records.insert(from, *number) != Some(*number));
        let yours = node.records.get(&from).copied().unwrap_or(0);
        if let Some(number) = news.filter(|_| attach.first) {
            let beacon = Beacon { in_core: true, ..Beacon::default() }.to_bytes();
            for id in self.nodes[to].topology.peers(now) {
                self.send(to, index(&id), Message::Beacon(beacon.clone(), Some((from, number))));
            }
        }
        if self.nodes[to].topology.has_answer() {
            let body = self.says(to, attach.knows.core, attach.silent, yours);
            self.send(to, from, Message::Beacon(body, None));
        }
        self.hurry(to);
    }

    /// What a core member says to one attached to it.
    fn says(&self, of: usize, core_known: u64, silent_known: u32, yours: u32) -> Vec<u8> {
        let node = &self.nodes[of];
        let said = node.topology.beacon(core_known);
        let knows = Knowledge { core: said.knows.core, records: node.needed, document: 1 };
        let up = u32::try_from(self.nodes.len() - node.silent).unwrap_or(u32::MAX);
        let silent = unless_known(node.names.named().iter().map(prefix).collect(), silent_known);
        Beacon { knows, up, silent, yours, ..said }.to_bytes()
    }

    pub(super) fn beacon(&mut self, from: usize, to: usize, beacon: &Beacon, carried: Option<(usize, u32)>) {
        let (now, sender) = (self.now(), self.nodes[from].id);
        let node = &mut self.nodes[to];
        if let Some((of, number)) = carried {
            node.records.insert(of, number);
        }
        let counts = node.topology.heard(sender, beacon, now);
        if counts && beacon.knows.records != node.needed && self.ms >= node.pull {
            let members = self.nodes.len() as u64;
            let pause = PULL_PAUSE + 2 * members;
            let most = self.nodes[to].topology.core().len() as u64;
            let node = &mut self.nodes[to];
            let records = RECORD * (self.changes - node.pulled).clamp(1, most);
            node.pulled = self.changes;
            node.pull = self.ms + pause + self.dice.between(0, pause);
            node.sent.count(Kind::Pulls, PULL.0);
            node.received.count(Kind::Pulls, PULL.1 + records);
            self.nodes[from].sent.count(Kind::Pulls, PULL.1 + records);
            self.nodes[from].received.count(Kind::Pulls, PULL.0);
            let needed = beacon.knows.records;
            self.push(self.ms + 100, Event::Pulled { node: to, needed });
        }
        self.hurry(to);
    }

    /// Its place may be due earlier than it was.
    fn hurry(&mut self, of: usize) {
        let now = self.now();
        let node = &mut self.nodes[of];
        let due = node.topology.deadline(now).as_millis().max(self.ms);
        if due < node.turn {
            node.turn = due;
            self.push(due, Event::Turn(of));
        }
    }

    /// Whom gossip shows as alive to a core member.
    fn shown(&self, of: usize) -> BTreeSet<NodeId> {
        let nodes = self.nodes.iter().enumerate();
        nodes.filter(|(node, _)| self.gossips(of, *node)).map(|(_, node)| node.id).collect()
    }

    pub(super) fn turn(&mut self, of: usize) {
        let now = self.now();
        let before = self.nodes[of].topology.place();
        let shown = if before == Place::Core { self.shown(of) } else { BTreeSet::new() };
        let place = self.nodes[of].topology.update(|id| shown.contains(id), now);
        if place != before {
            let phase = self.nodes[of].phase;
            let pace = Pace { phase, ..pace(place, of < MASTERS, MASTERS, self.nodes.len()) };
            self.nodes[of].peers.iter_mut().for_each(|peer| peer.pulse.set_pace(pace, now));
            self.pulse(of);
        }
        if place == Place::Core {
            self.look(of, &shown);
        }
        self.sends(of);
        let node = &mut self.nodes[of];
        let due = node.topology.deadline(now).as_millis();
        let due = if place == Place::Core { due.min(node.look) } else { due };
        node.turn = due.max(self.ms + 1);
        let at = node.turn;
        self.push(at, Event::Turn(of));
    }

    /// Looks who is alive, and tells those attached here what is news.
    fn look(&mut self, of: usize, shown: &BTreeSet<NodeId>) {
        let now = self.now();
        if self.ms < self.nodes[of].look {
            return;
        }
        let topology = &self.nodes[of].topology;
        let silent = topology.silent(|id| shown.contains(id), now);
        let core = topology.core();
        let record = |id: &NodeId| (*id, self.nodes[index(id)].record);
        let needed = fingerprint_of_records(core.iter().map(record));
        let here: Vec<(NodeId, u32)> = topology.attached().here().collect();
        let knows = (fingerprint(core), needed);
        let look = self.ms + LOOK_ALIVE + self.nodes.len() as u64;
        let node = &mut self.nodes[of];
        // Masters offer a service.
        node.names.update(&silent, |id| index(id) < MASTERS, now);
        (node.silent, node.needed, node.look) = (silent.len(), needed, look);
        let (told, at) = node.told;
        if knows != told && self.ms - at >= UNASKED {
            node.told = (knows, self.ms);
            // Those who know the core already get it again only if it has changed.
            let known = if knows.0 == told.0 { knows.0 } else { 0 };
            for (id, silent) in here {
                let to = index(&id);
                let yours = self.nodes[of].records.get(&to).copied().unwrap_or(0);
                let body = self.says(of, known, silent, yours);
                self.send(of, to, Message::Beacon(body, None));
            }
        }
    }

    fn sends(&mut self, of: usize) {
        let now = self.now();
        let node = &mut self.nodes[of];
        let due = node.topology.poll(now);
        let (own, records) = (node.record, node.needed);
        for one in due.attach {
            let lost = self.nodes[of].topology.lost(now);
            let knows = Knowledge { core: one.core, document: 1, records };
            let attach =
                Attach { knows, record: own, first: one.first, carried: None, lost, silent: one.silent };
            let carried = (one.yours != Some(own) && !one.searches).then_some(own);
            self.send(of, index(&one.to), Message::Attach(attach.to_bytes(), carried));
        }
        for id in due.probes {
            self.send(of, index(&id), Message::Attach(Attach::default().to_bytes(), None));
        }
        if let Some(list) = due.list {
            let attached = Some(list.iter().map(prefix).collect());
            let listed = Beacon { in_core: true, attached, ..Beacon::default() }.to_bytes();
            for id in self.nodes[of].topology.peers(now) {
                self.send(of, index(&id), Message::Beacon(listed.clone(), None));
            }
        }
    }
}
