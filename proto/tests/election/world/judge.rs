//! What must hold, judged from outside with all that the nodes can't know.

use proto::election::{Gain, OwnershipState};
use proto::node::NodeId;

use super::{Node, World};

/// Quiet after which all must be settled.
const QUIET: u64 = 3_000;

/// The same while a worker lies, which may hold up a takeover for so much longer.
const QUIET_AND_LIED_TO: u64 = QUIET + 3_300;

/// How long the word of one worker alone holds up a claim.
const SOLO: u64 = 3_000;

#[derive(Default)]
pub(super) struct Memory {
    /// Since when something has been wrong that a lost packet may make wrong for a moment.
    wrong_since: Option<u64>,
    pub(super) last_owner: usize,
    /// Since when two owners have had a witness that hears both.
    doubled_since: Option<u64>,
    pub(super) loss_before: u64,
}

impl World {
    fn breaks(&mut self, text: String) {
        self.note(format!("!! {text}"));
        self.broken.push(format!("{:6} {text}", self.now));
    }

    /// Everything that must hold at every moment.
    pub(super) fn judge(&mut self) {
        for n in 0..self.nodes.len() {
            if let Some(text) = self.judge_node(n) {
                self.breaks(format!("node {n} {text}"));
            }
        }
        if self.now.is_multiple_of(5) {
            self.judge_doubled();
        }
        let quiet = if self.liar.is_some() { QUIET_AND_LIED_TO } else { QUIET };
        let effective = self.now >= self.changed + quiet;
        if effective && !self.now.is_multiple_of(5) {
            return;
        }
        if effective && let Some(text) = self.judge_sides() {
            let since = *self.judged.wrong_since.get_or_insert(self.now);
            let patience = if self.ever_lossy == 0 || self.ever_lossy.saturating_add(QUIET) < self.now {
                0
            } else {
                600
            };
            if self.now - since >= patience {
                self.breaks(text);
            }
        } else {
            self.judged.wrong_since = None;
        }
    }

    fn lossless(&self) -> bool {
        self.ever_lossy == 0 || self.ever_lossy.saturating_add(2_000) < self.now
    }

    /// Whether what these say together is believed: a candidate, a master, or two honest workers.
    fn trusted(&self, witnesses: impl Iterator<Item = usize>) -> bool {
        let mut workers = 0;
        for n in witnesses.filter(|n| !self.lies(*n)) {
            let node = &self.nodes[n];
            workers += if node.master || node.priority.is_some() { 2 } else { 1 };
        }
        workers >= 2
    }

    /// Two owners that one witness hears, and that hear it, become one at once, though they may not hear
    /// each other.
    fn judge_doubled(&mut self) {
        let owners: Vec<usize> =
            (0..self.nodes.len()).filter(|n| self.nodes[*n].runs() && self.nodes[*n].owns()).collect();
        let steady = |a: usize, b: usize| {
            let (there, back) = (self.ways[a][b], self.ways[b][a]);
            !there.udp_cut && !back.udp_cut && self.carriers(a, b)
        };
        let bridged = |a: usize, b: usize| {
            let peer_link = |w: &usize| self.nodes[*w].runs() && steady(*w, a) && steady(*w, b);
            self.trusted((0..self.nodes.len()).filter(|w| *w != a && *w != b).filter(peer_link))
        };
        let doubled = owners.iter().flat_map(|a| owners.iter().map(move |b| (*a, *b)));
        let doubled = doubled.filter(|(a, b)| a < b).find(|(a, b)| bridged(*a, *b));
        let Some((a, b)) = doubled.filter(|_| self.lossless()) else {
            self.judged.doubled_since = None;
            return;
        };
        let since = *self.judged.doubled_since.get_or_insert(self.now);
        if self.now - since > 1_150 + 3 * self.jitter {
            self.breaks(format!("{a} and {b} own it, though others hear both"));
        }
    }

    /// An owner has just woken and read all that had come.
    pub(super) fn judge_waking(&mut self, n: usize) {
        let node = &self.nodes[n];
        let slept = node.woke.map_or(0, |(_, slept)| slept);
        let same = node.agent.as_ref().is_some_and(|agent| node.froze_epoch == Some(agent.epoch()));
        if slept > 1_700 && node.owns() && same {
            self.breaks(format!("node {n} slept for {slept} ms and goes on as owner"));
        }
    }

    fn judge_node(&mut self, n: usize) -> Option<String> {
        let now = self.now;
        let node = &mut self.nodes[n];
        let owns = node.runs() && node.owns();
        node.orphan = node.kernel.filter(|_| !owns).map(|_| node.orphan.unwrap_or(now));
        if let Some(since) = node.orphan {
            // Who runs and does not own has just been started, and deletes with its first action.
            let bound = if node.runs() { 0 } else { 2_500 };
            if now - since > bound {
                return Some(format!("has had the address for {} ms and does not own it", now - since));
            }
        }
        if owns && node.kernel.is_none() && node.missing.is_none_or(|since| now - since > 300) {
            return Some("owns it without having the address".to_owned());
        }
        node.owned_since = owns.then(|| node.owned_since.unwrap_or(now));
        let unfit = node.runs() && (node.bad_checks >= 3 || node.draining || !node.carrier);
        node.unfit_since = unfit.then(|| node.unfit_since.unwrap_or(now));
        if owns && node.unfit_since.is_some_and(|since| now - since > 100) {
            return Some("owns it and is not eligible".to_owned());
        }
        let epoch = node.agent.as_ref().map_or(0, |agent| agent.epoch());
        if node.agent.is_some() {
            if epoch < node.epoch {
                return Some(format!("went back from epoch {} to {epoch}", node.epoch));
            }
            node.stepped = if epoch == node.epoch { node.stepped } else { now };
            node.epoch = epoch;
            node.disk = node.disk.max(epoch);
        }
        None
    }

    /// Whether these two hear each other whole.
    fn joined(&self, a: usize, b: usize) -> bool {
        let (there, back) = (self.ways[a][b], self.ways[b][a]);
        let cut = there.udp_cut || there.l2_cut || back.udp_cut || back.l2_cut;
        !cut && self.carriers(a, b)
    }

    /// Each side that is whole in itself and cut from all else has one owner.
    fn judge_sides(&self) -> Option<String> {
        let live: Vec<usize> = (0..self.nodes.len()).filter(|n| self.nodes[*n].runs()).collect();
        for n in &live {
            let side: Vec<usize> = live.iter().copied().filter(|o| o == n || self.joined(*n, *o)).collect();
            let whole = side.iter().all(|a| side.iter().all(|b| a == b || self.joined(*a, *b)));
            let touches = |o: &usize| {
                side.iter().any(|a| {
                    let (there, back) = (self.ways[*a][*o], self.ways[*o][*a]);
                    let silent = there.udp_cut && there.l2_cut && back.udp_cut && back.l2_cut;
                    self.carriers(*a, *o) && !silent
                })
            };
            let outside = live.iter().any(|o| !side.contains(o) && touches(o));
            // Each side once: by its first.
            if !whole || outside || side.first() != Some(n) {
                continue;
            }
            let owners: Vec<usize> = side.iter().copied().filter(|n| self.nodes[*n].owns()).collect();
            let eligible = side.iter().any(|n| self.nodes[*n].eligible());
            if owners.len() > 1 {
                return Some(format!("{owners:?} own it, all in the side {side:?}"));
            }
            if owners.is_empty() && eligible && !self.stranger {
                return Some(format!("nobody owns it in the side {side:?}"));
            }
            if self.now.is_multiple_of(50)
                && let Some(owner) = owners.first()
                && let Some(text) = self.judge_knowledge(&side, *owner)
            {
                return Some(text);
            }
        }
        None
    }

    /// Everyone knows the owner, and has its neighbour entry.
    fn judge_knowledge(&self, side: &[usize], owner: usize) -> Option<String> {
        let id = self.nodes[owner].id;
        for n in side.iter().copied().filter(|n| *n != owner) {
            let node = &self.nodes[n];
            let agent = node.agent.as_ref()?;
            let status = agent.status(node.local(self.now));
            if status.owner != Some(id) || status.state != OwnershipState::Owned {
                return Some(format!("node {n} does not know of the owner {owner}: {status:?}"));
            }
            if node.neighbour != Some(id) {
                return Some(format!("node {n} has the neighbour entry of {:?}", node.neighbour));
            }
            // A higher number for the same owner, which a worker has asked for, is under way.
            let news = self.nodes[owner].stepped + 100 > self.now;
            if status.epoch != self.nodes[owner].epoch && !news {
                return Some(format!("node {n} knows the epoch {}", status.epoch));
            }
        }
        None
    }

    /// Whether all that one sends has reached the other for so long.
    fn peer_link(&self, from: usize, to: usize, for_ms: u64) -> bool {
        let way = self.ways[from][to];
        let steady = |node: &Node| node.runs() && node.carrier && node.touched + 4_000 < self.now;
        !way.udp_cut
            && (way.changed == 0 || way.changed + for_ms < self.now)
            && steady(&self.nodes[from])
            && steady(&self.nodes[to])
    }

    /// A claim has just been made.
    pub(super) fn judge_claim(&mut self, n: usize, epoch: u64, from: Option<NodeId>, cause: Gain) {
        if epoch <= self.nodes[n].epoch {
            self.breaks(format!("node {n} claims epoch {epoch} after {}", self.nodes[n].epoch));
        }
        let before = from.map(|id| self.index(id));
        match cause {
            Gain::Handed(why) | Gain::Released(why) => {
                let who = before.unwrap_or(n);
                let preempted = self.preempt && why == proto::election::ReleaseReason::Preempt;
                if !preempted && !self.nodes[who].excuses.contains(&why) {
                    self.breaks(format!("node {n} says that {who} released it: {why:?}, which is not so"));
                }
            }
            Gain::Silent { .. } | Gain::Vacant => {}
        }
        // A backup wakes every 200 ms, and what is later than that by less than 150 ms is no sleep: the
        // window of questions alone must do for it.
        if let Some((woke, slept)) = self.nodes[n].woke
            && slept > 370
            && self.now - woke < 250
        {
            self.breaks(format!("node {n} claims {} ms after waking", self.now - woke));
        }
        if !self.lossless() {
            return;
        }
        if let (Gain::Silent { .. }, Some(owner)) = (cause, before)
            && self.peer_link(owner, n, 1_000)
        {
            self.breaks(format!("node {n} says that {owner} is silent, which is not so"));
        }
        for owner in 0..self.nodes.len() {
            // What was claimed a moment ago is still under way.
            let age = self.nodes[owner].owned_since.map_or(0, |since| self.now - since);
            if owner == n || !self.nodes[owner].owns() || !self.nodes[owner].runs() {
                continue;
            }
            if self.peer_link(owner, n, 1_000) && age > self.jitter + 2 {
                return self.breaks(format!("node {n} claims, though it hears the owner {owner}"));
            }
            let witnesses = (0..self.nodes.len()).filter(|w| {
                let asked = self.peer_link(n, *w, 1_000) && self.peer_link(*w, n, 1_000);
                *w != n && *w != owner && asked && self.peer_link(owner, *w, 1_000) && !self.lies(*w)
            });
            let witnesses: Vec<usize> = witnesses.collect();
            // The word of one worker alone holds it up for a while.
            let way = self.ways[owner][n];
            let solo = !witnesses.is_empty() && way.changed > 0 && self.now < way.changed + SOLO;
            let vetoed = solo || self.trusted(witnesses.iter().copied());
            if vetoed && age > 100 + 3 * self.jitter {
                return self.breaks(format!("node {n} claims, though {witnesses:?} hear the owner {owner}"));
            }
        }
    }
}
