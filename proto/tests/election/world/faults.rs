//! What goes wrong, and what people do.

use proto::cause::Cause;
use proto::election::{EligibilityFact, ReleaseReason};
use proto::unfit::Unfit;

use super::liar::Liar;
use super::{Dice, Input, World};

/// One thing that happens to a node, or between two.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Act {
    PowerOn,
    Crash,
    Kill,
    Restart,
    Freeze,
    Wake,
    Stop,
    LinkDown,
    LinkUp,
    Sick,
    Well,
    Flap,
    Drain,
    Resume,
    /// Packets and frames from one to the other.
    Cut,
    /// Packets only: the segment still carries ARP.
    CutPackets,
    Reconnect,
    /// Nodes below the first number from those above.
    Split,
    Heal,
    Lossy,
    Clear,
    RemoveByHand,
    Stranger,
    StrangerGone,
    Move,
    /// It is taken from the candidates, and its place is given back.
    Demote,
    Promote,
}

/// What happens in one run.
pub(crate) struct Script {
    pub(crate) candidates: usize,
    pub(crate) witnesses: usize,
    /// The candidates are masters; else workers that the setting names.
    pub(crate) masters: bool,
    pub(crate) liar: Option<Liar>,
    pub(crate) priorities: bool,
    pub(crate) preempt: bool,
    pub(crate) skew: u64,
    pub(crate) loss_permille: u64,
    pub(crate) jitter: u64,
    pub(crate) starts: Vec<u64>,
    pub(crate) acts: Vec<(u64, Act, usize, usize)>,
    pub(crate) length: u64,
}

impl Script {
    /// Nothing: three to five candidates, up to three witnesses, until all is settled.
    pub(crate) fn quiet(dice: &mut Dice, loss_permille: u64) -> Script {
        let candidates = dice.between(3, 5) as usize;
        let witnesses = dice.between(0, 3) as usize;
        Script {
            candidates,
            witnesses,
            masters: true,
            liar: None,
            priorities: false,
            preempt: false,
            skew: 10,
            loss_permille,
            jitter: 1,
            starts: vec![0; candidates + witnesses],
            acts: Vec::new(),
            length: 4_000,
        }
    }

    pub(crate) fn random(dice: &mut Dice) -> Script {
        let candidates = dice.between(2, 7) as usize;
        let witnesses = if dice.percent(30) { 0 } else { dice.between(1, 20) as usize };
        let count = candidates + witnesses;
        let starts = (0..count).map(|_| if dice.percent(60) { 0 } else { dice.between(1, 2_500) });
        let starts = starts.collect();
        let mut script = Script {
            candidates,
            witnesses,
            masters: dice.percent(75),
            liar: (witnesses > 0 && dice.percent(40)).then(|| Liar::new(count - 1, None, dice.percent(50))),
            priorities: dice.percent(40),
            preempt: dice.percent(20),
            skew: [0, 1, 10, 50][dice.next() as usize % 4],
            loss_permille: [0, 0, 0, 1, 10, 50][dice.next() as usize % 6],
            jitter: [0, 1, 3, 20][dice.next() as usize % 4],
            starts,
            acts: Vec::new(),
            length: 0,
        };
        let mut at = dice.between(0, 3_500);
        for _ in 0..dice.between(1, 6) {
            script.add(dice, at);
            // Often into what the last one has begun, sometimes after it has settled.
            at += if dice.percent(60) { dice.between(0, 1_200) } else { dice.between(1_200, 5_500) };
        }
        let last = script.acts.iter().map(|(at, ..)| *at).max().unwrap_or(0);
        script.acts.sort_by_key(|(at, ..)| *at);
        script.length = last.max(2_500) + if script.liar.is_some() { 8_500 } else { 5_000 };
        script
    }

    /// One fault and its end.
    fn add(&mut self, dice: &mut Dice, at: u64) {
        let count = (self.candidates + self.witnesses) as u64;
        // Mostly candidates; who owns is found when it happens.
        let one = if dice.percent(85) { dice.next() % self.candidates as u64 } else { dice.next() % count };
        let two = if dice.percent(60) { dice.next() % self.candidates as u64 } else { dice.next() % count };
        // This index means the owner of that moment.
        let one = if dice.percent(55) { OWNER } else { one as usize };
        let two = two as usize;
        let short = dice.between(20, 1_400);
        let time = if dice.percent(40) { short } else { dice.between(1_400, 6_000) };
        let (first, last) = match dice.next() % 21 {
            0 | 1 => (Act::Crash, Act::PowerOn),
            2 | 3 => (Act::Kill, Act::Restart),
            4..=6 => (Act::Freeze, Act::Wake),
            7 => (Act::Stop, Act::Restart),
            8 => (Act::LinkDown, Act::LinkUp),
            9 => (Act::Sick, Act::Well),
            10 => (Act::Flap, Act::Well),
            11 => (Act::Drain, Act::Resume),
            12 | 13 => (Act::Cut, Act::Reconnect),
            14 => (Act::CutPackets, Act::Reconnect),
            15 | 16 => (Act::Split, Act::Heal),
            17 => (Act::Lossy, Act::Clear),
            18 => match dice.next() % 3 {
                0 => (Act::Stranger, Act::StrangerGone),
                _ => (Act::RemoveByHand, Act::RemoveByHand),
            },
            19 => (Act::Demote, Act::Promote),
            _ => (Act::Move, Act::Clear),
        };
        let (one, two) = if first == Act::Split {
            (1 + dice.next() as usize % (count as usize - 1), two)
        } else {
            (one, two)
        };
        self.acts.push((at, first, one, two));
        // Both ways more often than one.
        if first == Act::Cut && dice.percent(60) {
            self.acts.push((at, first, two, one));
        }
        self.acts.push((at + time, last, if one == OWNER { LAST } else { one }, two));
    }
}

/// Whoever owns the address when it happens.
const OWNER: usize = usize::MAX;
/// Whoever was meant by the last of these.
const LAST: usize = usize::MAX - 1;

impl World {
    fn whom(&mut self, n: usize) -> usize {
        match n {
            OWNER => {
                let owner = self.nodes.iter().position(|node| node.runs() && node.owns()).unwrap_or(0);
                self.judged.last_owner = owner;
                owner
            }
            LAST => self.judged.last_owner,
            n => n,
        }
    }

    pub(crate) fn act(&mut self, act: Act, a: usize, b: usize) {
        let (a, b) = match act {
            Act::Split => (a, b),
            _ => (self.whom(a), self.whom(b)),
        };
        self.note(format!("-- {act:?} {a} {b}"));
        let now = self.now;
        self.changed = now;
        let touches = !matches!(
            act,
            Act::Cut
                | Act::CutPackets
                | Act::Reconnect
                | Act::Split
                | Act::Heal
                | Act::Lossy
                | Act::Clear
                | Act::Move
                | Act::Stranger
                | Act::StrangerGone
        );
        if touches {
            self.nodes[a].touched = now;
        }
        match act {
            Act::PowerOn => {
                if !self.nodes[a].powered {
                    self.nodes[a].powered = true;
                    self.nodes[a].kernel = None;
                    self.start(a);
                }
            }
            Act::Crash => {
                self.nodes[a].powered = false;
                self.nodes[a].agent = None;
                self.nodes[a].kernel = None;
            }
            Act::Kill => self.nodes[a].agent = None,
            Act::Restart => {
                if self.nodes[a].powered && self.nodes[a].agent.is_none() {
                    self.start(a);
                }
            }
            Act::Freeze => {
                if self.nodes[a].runs() {
                    self.nodes[a].frozen = true;
                    self.nodes[a].froze = now;
                    self.nodes[a].woke = None;
                    self.nodes[a].froze_epoch = self.nodes[a].owns().then_some(self.nodes[a].epoch);
                    self.nodes[a].excuses.insert(ReleaseReason::Stall);
                }
            }
            Act::Wake => self.thaw(a),
            Act::Stop => {
                let local = self.nodes[a].local(now);
                self.nodes[a].excuses.insert(ReleaseReason::Stop);
                if self.nodes[a].runs()
                    && let Some(agent) = &mut self.nodes[a].agent
                {
                    agent.stop(local);
                }
            }
            Act::LinkDown | Act::LinkUp => {
                self.nodes[a].carrier = act == Act::LinkUp;
                self.nodes[a].excuses.insert(ReleaseReason::Unfit);
                let holds = if act == Act::LinkUp { Ok(()) } else { Err(Cause::LinkDown.into()) };
                self.fact(a, EligibilityFact::Link, holds);
            }
            Act::Sick => self.nodes[a].sick = true,
            Act::Flap => self.nodes[a].flapping = true,
            Act::Well => {
                self.nodes[a].sick = false;
                self.nodes[a].flapping = false;
            }
            Act::Drain | Act::Resume => {
                self.nodes[a].draining = act == Act::Drain;
                self.nodes[a].excuses.insert(ReleaseReason::Drain);
                let holds = if act == Act::Resume { Ok(()) } else { Err(Cause::Draining.into()) };
                self.fact(a, EligibilityFact::Draining, holds);
            }
            Act::Cut | Act::CutPackets if a != b => {
                let way = &mut self.ways[a][b];
                way.udp_cut = true;
                way.l2_cut = act == Act::Cut;
                way.changed = now;
                if act == Act::CutPackets {
                    self.ways[b][a].udp_cut = true;
                    self.ways[b][a].changed = now;
                }
            }
            Act::Cut | Act::CutPackets => {}
            Act::Reconnect => {
                for (x, y) in [(a, b), (b, a)] {
                    self.ways[x][y] = super::Way { changed: now, ..super::Way::default() };
                }
            }
            Act::Split | Act::Heal => {
                let count = self.nodes.len();
                let bridged = self.dice.percent(40);
                for (x, y) in (0..count).flat_map(|x| (0..count).map(move |y| (x, y))) {
                    // Sometimes two stay cut from each other, whom others hear both.
                    let left = act == Act::Heal && bridged && (x.min(y), x.max(y)) == (a - 1, a);
                    let cut = left || act == Act::Split && (x < a) != (y < a);
                    self.ways[x][y] = super::Way { udp_cut: cut, l2_cut: cut, changed: now };
                }
            }
            Act::Lossy => {
                self.judged.loss_before = self.loss_permille;
                self.loss_permille = 200;
                self.ever_lossy = u64::MAX;
            }
            Act::Clear => {
                if self.loss_permille == 200 {
                    self.loss_permille = self.judged.loss_before;
                    self.ever_lossy = if self.loss_permille > 0 { u64::MAX } else { now };
                }
            }
            Act::RemoveByHand => {
                if self.nodes[a].kernel.take().is_some() {
                    self.nodes[a].missing = Some(now);
                    self.give(a, Input::Address);
                }
            }
            Act::Stranger => {
                self.stranger = true;
                for node in &mut self.nodes {
                    node.excuses.insert(ReleaseReason::Stranger);
                }
            }
            Act::Demote | Act::Promote => {
                if act == Act::Demote {
                    self.nodes[a].priority = None;
                    self.nodes[a].excuses.insert(ReleaseReason::Rules);
                } else if a < self.candidates {
                    self.nodes[a].priority = Some(if self.dice.percent(50) { 100 } else { 200 });
                }
                // Some hear of it later than others.
                self.follow(50);
                self.changed = now + 1_000;
            }
            Act::StrangerGone => {
                self.stranger = false;
                // It is believed to be there for another 3 s, in rounds of a second.
                self.changed = now + 4_000;
            }
            Act::Move => {
                for node in &mut self.nodes {
                    node.excuses.insert(ReleaseReason::Move);
                }
                let (local, to) = (self.nodes[a].local(now), self.nodes[b].id);
                if self.nodes[a].runs()
                    && let Some(agent) = &mut self.nodes[a].agent
                {
                    let asked = agent.move_to(local, to);
                    self.note(format!("   {asked:?}"));
                }
            }
        }
    }

    fn fact(&mut self, n: usize, fact: EligibilityFact, holds: Result<(), Unfit>) {
        let local = self.nodes[n].local(self.now);
        if let Some(agent) = &mut self.nodes[n].agent {
            agent.set_fact(local, fact, holds);
        }
    }

    /// The agent goes on: with its queue or with its timer, whichever it comes to first.
    fn thaw(&mut self, n: usize) {
        if !self.nodes[n].frozen {
            return;
        }
        self.nodes[n].frozen = false;
        self.nodes[n].woke = Some((self.now, self.now - self.nodes[n].froze));
        if self.nodes[n].agent.is_none() {
            return;
        }
        if self.dice.percent(50) {
            self.poll(n);
        }
        let each = self.dice.percent(50);
        while let Some(input) = self.nodes[n].inbox.pop_front() {
            self.give(n, input);
            if each {
                self.poll(n);
            }
        }
        self.poll(n);
        self.judge_waking(n);
    }
}
