//! What pulses, connects and reports do on each node, as in the agent's loop.

use std::time::Duration;

use proto::node::NodeId;
use proto::path::{Evidence, HELLO_LATE, HELLO_PATIENCE, Reachability};
use proto::pulse::Liveness;
use proto::time::{Moment, UnixMs};
use proto::topology::Place;

use super::{Event, MASTERS, Message, Peer, World, id, index};

/// As in the agent: silence after which a node looks more closely, how often, and how old the word of others may be
/// before it asks for it.
const LOOK: u64 = 25;
const ASK: Duration = Duration::from_millis(300);

/// When TCP sends a hello on a connection: at once, and after each of its time-outs, which double.
const RESENT: [u64; 4] = [0, 220, 660, 1_540];

impl World {
    /// What the agent's loop does.
    pub(super) fn pulse(&mut self, of: usize) {
        let now = Moment::from_millis(self.ms);
        let node = &mut self.nodes[of];
        let asks = node.peers.iter().any(|peer| {
            let waits = peer.pulse.liveness(now) == Liveness::Late;
            waits && !node.book.of(&id(peer.master)).says(ASK, now)
        });
        if asks {
            node.peers.iter_mut().for_each(|peer| peer.pulse.hasten(now));
        }
        let mut due = Vec::new();
        for peer in &mut node.peers {
            if let Some(number) = peer.pulse.poll(now) {
                node.book.asked(&id(peer.master), peer.pulse.slack(), peer.heard, now);
                due.push((peer.master, number));
            }
        }
        for (master, number) in due {
            let report = self.report(of, master);
            self.send(of, master, Message::Pulse(number, report));
        }
        self.alarm(of);
        for peer in 0..self.nodes[of].peers.len() {
            let node = &self.nodes[of];
            let one = &node.peers[peer];
            let liveness = one.pulse.liveness_for_all(now, one.heard, &node.book.of(&id(one.master)));
            if liveness != one.liveness {
                self.nodes[of].peers[peer].liveness = liveness;
                self.observe(of, peer, Evidence::Liveness(liveness));
            }
            self.probe(of, peer);
        }
        let node = &mut self.nodes[of];
        let due = node.peers.iter().flat_map(|peer| [Some(peer.pulse.deadline()), peer.path.next_probe()]);
        let next = due.flatten().min().unwrap_or_default().as_millis().max(self.ms + 1);
        let silent = node.peers.iter().any(|peer| peer.pulse.silence(now) > peer.pulse.slack());
        node.wake = if silent { next.min(self.ms + LOOK) } else { next };
        let at = node.wake;
        self.push(at, Event::Wake(of));
    }

    fn alarm(&mut self, of: usize) {
        let now = self.now();
        let node = &mut self.nodes[of];
        if node.topology.place() != Place::Core {
            return;
        }
        let peer = |id: &NodeId| node.peers.iter().find(|peer| peer.master == index(id));
        let heard = |id: &NodeId| peer(id)?.heard;
        let Some(alarm) = node.book.alarm(node.topology.core(), heard, now) else { return };
        let told = alarm.to.iter().map(index).filter(|to| *to != of);
        told.for_each(|to| self.send(of, to, Message::Report(alarm.report.clone())));
    }

    pub(super) fn observe(&mut self, of: usize, peer: usize, evidence: Evidence) {
        let one = &mut self.nodes[of].peers[peer];
        one.path.observe(Moment::from_millis(self.ms), UnixMs(self.ms), evidence);
        let (reach, master) = (one.path.reach(), one.master);
        if std::mem::replace(&mut one.reach, reach) != reach {
            match reach {
                Reachability::Suspect => self.suspicions += 1,
                Reachability::Down => {
                    self.downs.push((self.ms, of, master, one.liveness == Liveness::CutOff));
                }
                Reachability::Up => {}
            }
            self.judge(of);
        }
    }

    /// Whether a node still has a backend: a master that it does not take for down, and that it reaches.
    pub(super) fn judge(&mut self, of: usize) {
        let reaches =
            |peer: &Peer| peer.reach != Reachability::Down && self.cut_since(of, peer.master).is_none();
        // A master has its own apiserver.
        let serves = of < MASTERS || self.nodes[of].peers.iter().any(reaches);
        let ms = self.ms;
        let node = &mut self.nodes[of];
        let since = if serves { node.bare.take() } else { Some(*node.bare.get_or_insert(ms)) };
        node.longest_bare = node.longest_bare.max(since.map_or(0, |at| ms - at));
    }

    fn probe(&mut self, of: usize, peer: usize) {
        let now = Moment::from_millis(self.ms);
        let one = &mut self.nodes[of].peers[peer];
        let master = one.master;
        if one.path.next_probe().is_some_and(|at| at <= now) {
            let timeout = u64::try_from(one.path.probe_timeout().as_millis()).unwrap_or(u64::MAX);
            one.path.probe_started(now);
            // A lost SYN or SYN-ACK is sent again only after a second: too late for this probe.
            let passes = self.passes(of, master) && self.passes(master, of);
            let took = passes.then(|| self.takes() + self.takes());
            self.push(self.ms + took.unwrap_or(timeout), Event::Probed { node: of, peer, took });
        }
    }
    /// What becomes of a probe's hello once it is connected. TCP sends what was lost again.
    pub(super) fn greet(&mut self, node: usize, peer: usize) {
        let master = self.nodes[node].peers[peer].master;
        let sent = RESENT.into_iter().find(|_| self.passes(node, master) && self.passes(master, node));
        let took = sent.map(|after| after + self.takes() + self.takes());
        for wait in [HELLO_LATE, HELLO_PATIENCE].map(|wait| wait.as_millis() as u64) {
            if took.is_none_or(|took| took > wait) {
                self.push(self.ms + wait, Event::Greeted { node, peer, unanswered: Some(wait) });
            }
        }
        if let Some(took) = took {
            self.push(self.ms + took, Event::Greeted { node, peer, unanswered: None });
        }
    }
}
