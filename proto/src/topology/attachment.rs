//! Whom an attached node holds: which core members it reports to, and what they have said.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use super::core::{CoreOrder, core_size, suits};
use super::wire::{Attach, Beacon, IdPrefix, Knowledge, MOST_LISTED, MOST_LOST, fingerprint_of_silent};
use crate::node::NodeId;
use crate::time::Moment;

/// Core members that an attached node holds.
const HELD: usize = 3;

/// Size of a core in which masters are held last: they have the most to do, and their share is small for the others.
const SPARES_MASTERS: usize = 20;

/// Time between two messages to a core member that answers. With it, the hundred and fifty nodes that are attached to
/// one cost it 75 messages a second, whatever the size of the cluster.
const INTERVAL: Duration = Duration::from_secs(2);

/// The same to one that has not answered the last.
const RETRY: Duration = Duration::from_millis(500);

/// The same while nobody answers.
const RETRY_SEARCHING: Duration = Duration::from_millis(300);

/// Unanswered messages after which another is held. At 10 % loss each way five are lost in a row once in two hours.
const LOST: u32 = 5;

/// The same while nobody answers.
const LOST_SEARCHING: u32 = 3;

/// How long one that was lost is not asked again; twice as long each time, up to eight times.
const ASIDE: Duration = Duration::from_secs(10);

/// How long one is not asked again that is not in the core: it may be called.
const NOT_IN_CORE: Duration = Duration::from_secs(3);

/// While nobody answers, twice as many are asked each time, up to so many: all nodes may ask at the same time.
const MOST_ASKED: usize = 12;

/// Nodes that have asked one that nobody answers within this time, which shows that the core is lost and not its own
/// network; two of them do.
const ASKED: Duration = Duration::from_secs(2);

/// Time after the first answer of one that was asked while nobody answered until it is sent this node's record.
const FOUND: Duration = Duration::from_secs(1);

/// How long without any answer until an attached node takes part in making up for the core.
const ABANDONED: Duration = Duration::from_secs(6);

/// Time between two choices when nothing has changed: nodes that were aside are asked again.
const CHOICE: Duration = Duration::from_secs(10);

/// A core member that an attached node holds.
#[derive(Debug, Clone)]
struct HeldMember {
    /// It has been sent this node's record, if it had none or another.
    told: bool,
    sent: Moment,
    next: Moment,
    /// Messages since its last answer.
    unanswered: u32,
    answered: Option<Moment>,
    /// The core as it has said last, and its fingerprint.
    core: (u64, BTreeSet<NodeId>),
    /// What else it said.
    said: Option<Heard>,
    /// Fingerprint of the silent members that it has named last.
    silent: u32,
}

/// What a core member has said.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Heard {
    /// What it knows.
    pub knows: Knowledge,
    /// How many members are alive.
    pub up: u32,
    /// Members that are not, or some of them: each once, in order.
    pub silent: Vec<NodeId>,
    /// Fingerprint of this node's record there.
    pub yours: u32,
}

/// Nodes that did not answer.
#[derive(Debug, Clone, Copy)]
struct Aside {
    until: Moment,
    /// How often it was lost; 0: it has answered that it is not in the core.
    times: u32,
}

/// A message to send.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AttachDue {
    /// To whom.
    pub to: NodeId,
    /// It counts this node as alive.
    pub first: bool,
    /// Fingerprint of the core that it has said last.
    pub core: u64,
    /// Fingerprint of this node's record there, if it has said one.
    pub yours: Option<u32>,
    /// Fingerprint of the silent members that it has named last.
    pub silent: u32,
    /// Nobody answers, so that several are asked who may be held or not: this node's record waits for an answer.
    pub searches: bool,
}

/// The attachment of a node that is not in the core.
#[derive(Debug, Clone)]
pub struct Attachment {
    own: NodeId,
    held: BTreeMap<NodeId, HeldMember>,
    aside: BTreeMap<NodeId, Aside>,
    /// The last answer of anyone in the core, or the start.
    answered: Moment,
    /// The core as this node sees it.
    core: BTreeSet<NodeId>,
    /// The core as others have said it last.
    known: BTreeSet<NodeId>,
    /// The last two nodes that have taken this one for a core member.
    asked: [Option<(NodeId, Moment)>; 2],
    /// How many are to be held.
    wanted: usize,
    /// Members that are not alive, as those that it holds said last.
    silent: BTreeSet<NodeId>,
    /// When to choose next: now, if something has changed.
    choice: Moment,
}

impl Attachment {
    /// Nobody is held yet. `silent`: members that are not alive, as far as is known.
    pub fn new(own: NodeId, silent: BTreeSet<NodeId>, now: Moment) -> Attachment {
        Attachment {
            own,
            held: BTreeMap::new(),
            aside: BTreeMap::new(),
            answered: now,
            core: BTreeSet::new(),
            known: BTreeSet::new(),
            asked: [None; 2],
            wanted: HELD,
            silent,
            choice: now,
        }
    }

    /// Whether a node was lost lately.
    fn is_aside(&self, id: &NodeId, now: Moment) -> bool {
        self.aside.get(id).is_some_and(|aside| now < aside.until)
    }

    /// The core as this node sees it: what most of those that it holds say, and without answers the order of the
    /// document, without those that were lost.
    pub fn core(&self) -> &BTreeSet<NodeId> {
        &self.core
    }

    /// What those that are held have said of the core.
    fn lists(&self) -> Vec<&BTreeSet<NodeId>> {
        self.held.values().map(|held| &held.core.1).filter(|core| !core.is_empty()).collect()
    }

    /// Whether all that this node held have stopped answering, and nobody else answers yet.
    pub fn searches(&self) -> bool {
        self.wanted > HELD
    }

    /// A node has taken this one for a core member.
    pub fn asked_by(&mut self, from: NodeId, now: Moment) {
        let other = self.asked.into_iter().flatten().find(|(id, _)| *id != from);
        self.asked = [Some((from, now)), other];
    }

    /// The core if all its workers are lost: the same for all that knew the same.
    fn next_core(&self, order: &CoreOrder) -> BTreeSet<NodeId> {
        order.core(|id| order.is_master(id) || !self.known.contains(id))
    }

    /// The core that this node should be in: most of those that it holds say so, or none answers and the order names
    /// it.
    pub fn called(&self, order: &CoreOrder, now: Moment) -> Option<BTreeSet<NodeId>> {
        let own = self.own;
        let asked = self.asked.iter().flatten().filter(|(_, at)| now.since(*at) < ASKED).count() > 1;
        if self.searches() && asked {
            let core = self.next_core(order);
            return core.contains(&own).then_some(core);
        }
        if now.since(self.answered) >= ABANDONED {
            let core = order.core(|id| *id == own || !self.is_aside(id, now));
            return core.contains(&own).then_some(core);
        }
        let lists = self.lists();
        let called = most(&lists).filter(|id| **id == own).count() > 0;
        called.then(|| most(&lists).copied().collect())
    }

    /// The messages that are due now.
    pub fn poll(&mut self, order: &CoreOrder, now: Moment) -> Vec<AttachDue> {
        self.lose(now);
        if now >= self.choice {
            self.choose(order, now);
        }
        let first = self.first();
        let searches = self.searches();
        let mut due = Vec::new();
        for (id, held) in self.held.iter_mut().filter(|(_, held)| held.next <= now) {
            let yours = held.said.as_ref().map(|said| said.yours);
            let (core, silent) = (held.core.0, held.silent);
            // Others of the core have the record already: one that gets it anew need not pass it on. So it is with one
            // that has lost all of them by a restart.
            let first = first == Some(*id) && held.told && yours != Some(0);
            due.push(AttachDue { to: *id, first, core, yours, silent, searches });
            held.told = !searches;
            (held.sent, held.next) = (now, now.after(if searches { RETRY_SEARCHING } else { RETRY }));
            held.unanswered += 1;
        }
        due
    }

    /// When [`Attachment::poll`] is due next.
    pub fn deadline(&self) -> Moment {
        self.held.values().map(|held| held.next).fold(self.choice, Moment::min)
    }

    /// Says everything again now: this node's record or document has changed.
    pub fn hurry(&mut self, now: Moment) {
        for held in self.held.values_mut().filter(|held| held.unanswered == 0) {
            held.next = now;
        }
    }

    /// Lets those go that do not answer.
    fn lose(&mut self, now: Moment) {
        let answered = self.held.values().any(|held| held.unanswered < LOST && held.answered.is_some());
        let patience = if answered { LOST } else { LOST_SEARCHING };
        let mut lost = false;
        for (id, _) in self.held.extract_if(.., |_, held| held.unanswered >= patience && held.next <= now) {
            let aside = self.aside.entry(id).or_insert(Aside { until: now, times: 0 });
            aside.until = now.after(ASIDE.saturating_mul(1 << aside.times.min(3)));
            aside.times += 1;
            lost = true;
        }
        if lost {
            self.choice = now;
            // They check those that are lost.
            self.hurry(now);
            self.wanted = if answered { HELD } else { (self.wanted * 2).min(MOST_ASKED) };
        }
    }

    /// The core members that have stopped answering this node.
    pub fn lost(&self, now: Moment) -> Vec<NodeId> {
        let lost =
            |(id, aside): &(&NodeId, &Aside)| aside.times > 0 && now < aside.until && self.core.contains(*id);
        self.aside.iter().filter(lost).map(|(id, _)| *id).take(MOST_LOST).collect()
    }

    /// Who in the core can be asked now.
    fn may_ask(&self, now: Moment) -> Vec<NodeId> {
        let may = |id: &&NodeId| **id != self.own && !self.is_aside(id, now);
        self.core.iter().filter(may).copied().collect()
    }

    /// Holds those that suit this node best, and lets others go when these have answered.
    fn choose(&mut self, order: &CoreOrder, now: Moment) {
        let own = self.own;
        self.choice = now.after(CHOICE);
        self.core = most(&self.lists()).copied().collect();
        if !self.core.is_empty() {
            self.known.clone_from(&self.core);
        } else if self.known.is_empty() {
            self.known = order.core(|_| true);
        }
        let mut best = self.may_ask(now);
        if best.len() < HELD {
            let others = order.core(|id| !self.is_aside(id, now));
            self.core.extend(others);
            best = self.may_ask(now);
        }
        if self.searches() {
            // All may have lost the same core: each asks others of those that are next, so that none is asked by all.
            let next = self.next_core(order);
            best.extend(next.into_iter().filter(|id| *id != own && !self.is_aside(id, now)));
            best.sort_unstable();
            best.dedup();
        }
        let spares = core_size(order.members()) >= SPARES_MASTERS;
        best.sort_by_cached_key(|id| (spares && order.is_master(id), std::cmp::Reverse(suits(&own, id))));
        best.truncate(self.wanted);
        for id in &best {
            self.held.entry(*id).or_insert_with(|| HeldMember {
                told: false,
                sent: now,
                next: now,
                unanswered: 0,
                answered: None,
                core: (0, BTreeSet::new()),
                said: None,
                silent: 0,
            });
        }
        if best.iter().all(|id| self.held.get(id).is_some_and(|held| held.answered.is_some())) {
            self.held.retain(|id, _| best.contains(id));
        }
    }

    /// The one that counts this node as alive: of those that answer, the one that suits it best.
    fn first(&self) -> Option<NodeId> {
        let answering = self.held.iter().filter(|(_, held)| held.unanswered < 2 && held.answered.is_some());
        answering.map(|(id, _)| *id).max_by_key(|id| suits(&self.own, id))
    }

    /// Takes what a node has answered, or said unasked. False: it is not held, and the caller believes nothing.
    pub fn heard(
        &mut self,
        from: NodeId,
        beacon: &Beacon,
        find: impl Fn(&IdPrefix) -> Vec<NodeId>,
        now: Moment,
    ) -> bool {
        let searches = self.searches();
        let Some(held) = self.held.get_mut(&from) else { return false };
        let find = |ids: &[IdPrefix]| ids.iter().flat_map(&find).collect::<Vec<_>>();
        if !beacon.core.is_empty() && held.core.0 != beacon.knows.core {
            held.core = (beacon.knows.core, find(&beacon.core).into_iter().collect());
            self.choice = now;
        }
        if !beacon.in_core {
            // What it says of the core counts once, and not for long.
            self.held.remove(&from);
            self.aside.insert(from, Aside { until: now.after(NOT_IN_CORE), times: 0 });
            self.choice = now;
            return false;
        }
        let mut silent = held.said.take().map_or_else(Vec::new, |said| said.silent);
        let is_news = |named: &Vec<IdPrefix>| named.is_empty() || fingerprint_of_silent(named) != held.silent;
        if let Some(named) = beacon.silent.as_ref().filter(|named| is_news(named)) {
            silent = find(named);
            silent.sort_unstable();
            silent.dedup();
            held.silent = fingerprint_of_silent(named);
        }
        held.said = Some(Heard { knows: beacon.knows, up: beacon.up, silent, yours: beacon.yours });
        if held.answered.is_none() {
            self.choice = now;
        }
        if held.unanswered > 0 {
            let found = searches && held.answered.is_none();
            held.next = if found { now.after(FOUND) } else { held.sent.after(INTERVAL) };
        }
        held.unanswered = 0;
        held.answered = Some(now);
        self.answered = now;
        self.wanted = HELD;
        self.aside.remove(&from);
        self.silent = self.said_silent();
        true
    }

    /// Members of which half of those that this node holds say that they are not alive: one may be wrong.
    fn said_silent(&self) -> BTreeSet<NodeId> {
        let lists: Vec<&Vec<NodeId>> = self.answering().map(|(_, heard)| &heard.silent).collect();
        most(&lists).copied().collect()
    }

    /// Members that are not alive. While nobody answers, what was said last stays.
    pub fn silent(&self) -> &BTreeSet<NodeId> {
        &self.silent
    }

    /// Those that are held and answer, and what each has said last.
    pub fn answering(&self) -> impl Iterator<Item = (NodeId, &Heard)> {
        let answering = self.held.iter().filter(|(_, held)| held.unanswered < LOST);
        answering.filter_map(|(id, held)| Some((*id, held.said.as_ref()?)))
    }

    /// When one in the core was last heard; the start, if none was.
    pub fn last_answer(&self) -> Moment {
        self.answered
    }

    /// Forgets nodes that are not members any more.
    pub fn retain(&mut self, member: impl Fn(&NodeId) -> bool) {
        self.held.retain(|id, _| member(id));
        // Whom they name may have been unknown here: they name them again.
        self.held.values_mut().for_each(|held| held.silent = 0);
        self.aside.retain(|id, _| member(id));
        self.silent.retain(&member);
    }
}

/// The nodes that at least half of these sets have.
fn most<'a, S>(sets: &'a [&'a S]) -> impl Iterator<Item = &'a NodeId> + use<'a, S>
where
    &'a S: IntoIterator<Item = &'a NodeId>,
{
    let mut all: Vec<&NodeId> = sets.iter().copied().flatten().collect();
    all.sort();
    let enough = sets.len().div_ceil(2);
    let runs: Vec<&NodeId> =
        all.chunk_by(|a, b| a == b).filter(|run| run.len() >= enough).map(|run| run[0]).collect();
    runs.into_iter()
}

/// Time after which an attached node that was not heard is not alive: two messages may be lost with all their
/// repetitions.
const GONE: Duration = Duration::from_secs(7);

/// Time between two lists to the others of the core.
const LISTS: Duration = Duration::from_secs(5);

/// How long a list counts: three may be lost.
const LISTED: Duration = Duration::from_secs(17);

/// Nodes that are attached to a core member, by what it hears and what others of the core say.
#[derive(Debug, Clone, Default)]
pub struct AttachedNodes {
    here: BTreeMap<NodeId, AttachedNode>,
    /// Until when each counts as alive.
    alive: BTreeMap<NodeId, Moment>,
    next_list: Moment,
}

/// One that is attached here.
#[derive(Debug, Clone, Copy)]
struct AttachedNode {
    at: Moment,
    first: bool,
    /// Fingerprint of the silent members that it knows from here.
    silent: u32,
}

impl AttachedNodes {
    /// A node has sent an [`super::wire::Attach`]. One of the core only checks this one.
    pub fn heard(&mut self, from: NodeId, in_core: bool, attach: &Attach, now: Moment) {
        if !in_core {
            let Attach { first, silent, .. } = *attach;
            self.here.insert(from, AttachedNode { at: now, first, silent });
        }
        self.counts(from, now.after(GONE));
    }

    /// Another of the core has said whom it counts as alive.
    pub fn listed(&mut self, nodes: impl IntoIterator<Item = NodeId>, now: Moment) {
        nodes.into_iter().for_each(|id| self.counts(id, now.after(LISTED)));
    }

    fn counts(&mut self, id: NodeId, until: Moment) {
        let counts = self.alive.entry(id).or_insert(until);
        *counts = until.max(*counts);
    }

    /// Whether an attached node is alive.
    pub fn is_alive(&self, id: &NodeId, now: Moment) -> bool {
        self.alive.get(id).is_some_and(|until| now < *until)
    }

    /// Those attached here, which are told of changes at once, with the fingerprint of the silent members that each
    /// knows from here.
    pub fn here(&self) -> impl Iterator<Item = (NodeId, u32)> {
        self.here.iter().map(|(id, one)| (*id, one.silent))
    }

    /// Whom this node counts as alive for the others of the core, when they are due to hear it.
    pub fn list_due(&mut self, now: Moment) -> Option<Vec<NodeId>> {
        if now < self.next_list {
            return None;
        }
        self.next_list = now.after(LISTS);
        self.here.retain(|_, one| now.since(one.at) < GONE);
        self.alive.retain(|_, until| now < *until);
        Some(self.here.iter().filter(|(_, one)| one.first).map(|(id, _)| *id).take(MOST_LISTED).collect())
    }

    /// Forgets nodes that are not members any more.
    pub fn retain(&mut self, member: impl Fn(&NodeId) -> bool) {
        self.here.retain(|id, _| member(id));
        self.alive.retain(|id, _| member(id));
    }
}

#[cfg(test)]
mod tests {
    use super::super::wire::prefix;
    use super::*;
    use crate::node::Role;

    fn id(n: u8) -> NodeId {
        NodeId([n; NodeId::LEN])
    }

    fn at(ms: u64) -> Moment {
        Moment::from_millis(ms)
    }

    /// Members 1 to 40, of which 1 is a master.
    fn order() -> CoreOrder {
        CoreOrder::new("c", (1..=40).map(|n| (id(n), if n == 1 { Role::Master } else { Role::Worker })))
    }

    /// The node that is attached, as seen from the core.
    fn own(order: &CoreOrder) -> NodeId {
        let core = order.core(|_| true);
        order.iter().copied().find(|id| !core.contains(id)).unwrap()
    }

    fn find(short: &IdPrefix) -> Vec<NodeId> {
        vec![id(short[0])]
    }

    fn beacon(core: &[NodeId]) -> Beacon {
        let knows = Knowledge {
            core: u64::from(core.iter().map(|id| u32::from(id.0[0])).sum::<u32>()),
            ..Knowledge::default()
        };
        Beacon { in_core: true, knows, core: core.iter().map(prefix).collect(), ..Beacon::default() }
    }

    fn asked(attachment: &mut Attachment, order: &CoreOrder, ms: u64) -> Vec<NodeId> {
        attachment.poll(order, at(ms)).into_iter().map(|due| due.to).collect()
    }

    /// A node that has just begun to ask, and whom.
    fn asking() -> (CoreOrder, Attachment, Vec<NodeId>) {
        let order = order();
        let mut attachment = Attachment::new(own(&order), BTreeSet::new(), at(0));
        let held = asked(&mut attachment, &order, 0);
        (order, attachment, held)
    }

    fn whole_core(order: &CoreOrder) -> Vec<NodeId> {
        order.core(|_| true).into_iter().collect()
    }

    #[test]
    fn three_are_held_and_one_that_does_not_answer_is_replaced() {
        let (order, mut attachment, first) = asking();
        assert_eq!(first.len(), 3);
        let core = whole_core(&order);
        let mut ms = 0;
        while !attachment.is_aside(&first[0], at(ms)) {
            for held in attachment.held.keys().copied().collect::<Vec<_>>() {
                if held != first[0] {
                    assert!(attachment.heard(held, &beacon(&core), find, at(ms)));
                }
            }
            ms += 100;
            asked(&mut attachment, &order, ms);
            assert!(ms <= 2_500, "it is still held");
        }
        assert_eq!(attachment.held.len(), 3);
        assert!(attachment.answering().count() >= 2 && !attachment.held.contains_key(&first[0]));
    }

    #[test]
    fn without_answers_twice_as_many_are_asked_each_time_and_then_the_next_in_order() {
        let order = order();
        let own = own(&order);
        let mut attachment = Attachment::new(own, BTreeSet::new(), at(0));
        let mut all = BTreeSet::new();
        for ms in (0..8_000).step_by(100) {
            all.extend(asked(&mut attachment, &order, ms));
        }
        let core = order.core(|_| true);
        assert!(core.is_subset(&all), "all of the core were asked");
        assert!(all.len() > core.len(), "and others");
        assert!(attachment.called(&order, at(8_000)).is_some_and(|core| core.contains(&own)), "it is next");
    }

    #[test]
    fn one_that_has_lost_all_records_is_not_asked_to_pass_this_one_on() {
        let (order, mut attachment, held) = asking();
        let core = whole_core(&order);
        let mut firsts = |yours: u32, ms| {
            for id in &held {
                attachment.heard(*id, &Beacon { yours, ..beacon(&core) }, find, at(ms));
            }
            attachment.poll(&order, at(ms + 2_000)).iter().filter(|due| due.first).count()
        };
        assert_eq!([firsts(7, 10), firsts(0, 2_020), firsts(7, 4_030)], [1, 0, 1]);
    }

    #[test]
    fn what_half_of_those_that_are_held_say_of_the_core_counts() {
        let (order, mut attachment, held) = asking();
        let own = own(&order);
        let core = whole_core(&order);
        let liar = beacon(&[id(30), id(31), own]);
        attachment.heard(held[0], &liar, find, at(10));
        attachment.heard(held[1], &beacon(&core), find, at(10));
        attachment.heard(held[2], &beacon(&core), find, at(10));
        assert_eq!(attachment.called(&order, at(20)), None);
        asked(&mut attachment, &order, 20);
        assert!(attachment.core().iter().eq(&core));
        let calling: Vec<NodeId> = core.iter().copied().chain([own]).collect();
        attachment.heard(held[1], &beacon(&calling), find, at(30));
        assert!(attachment.called(&order, at(40)).is_some());
    }

    #[test]
    fn silent_members_that_were_named_before_stay_and_are_named_again_when_members_change() {
        let (order, mut attachment, held) = asking();
        let core = whole_core(&order);
        let mut says = |silent: Option<&[u8]>, ms| {
            let named = silent.map(|silent| silent.iter().map(|n| prefix(&id(*n))).collect());
            for id in &held {
                attachment.heard(*id, &Beacon { silent: named.clone(), ..beacon(&core) }, find, at(ms));
            }
            let known = attachment.poll(&order, at(ms + 3_000)).iter().map(|due| due.silent).max();
            (
                attachment.silent().iter().map(|id| id.0[0]).collect::<Vec<_>>(),
                known,
                attachment.retain(|_| true),
            )
        };
        let (silent, known, ()) = says(Some(&[30, 31]), 0);
        assert!(silent == [30, 31] && known > Some(0));
        assert_eq!(says(None, 3_000), (vec![30, 31], Some(0), ()), "members have changed");
        assert_eq!(says(Some(&[30, 31]), 6_000), (vec![30, 31], known, ()));
        assert_eq!(says(Some(&[]), 9_000), (vec![], Some(0), ()));
    }

    #[test]
    fn in_a_large_cluster_workers_are_held_before_masters() {
        let wide =
            |n: usize| NodeId(std::array::from_fn(|at| if at < 2 { n.to_be_bytes()[6 + at] } else { 0 }));
        let role = |n| if n < 3 { Role::Master } else { Role::Worker };
        for (members, are_held) in [(900, true), (1_000, false)] {
            let order = CoreOrder::new("c", (0..members).map(|n| (wide(n), role(n))));
            let core = order.core(|_| true);
            let attached = order.iter().filter(|id| !core.contains(id));
            let held =
                attached.flat_map(|id| asked(&mut Attachment::new(*id, BTreeSet::new(), at(0)), &order, 0));
            assert_eq!(held.filter(|id| order.is_master(id)).count() > 0, are_held, "{members}");
        }
    }

    #[test]
    fn one_that_is_not_in_the_core_is_let_go_and_others_are_believed_nothing() {
        let (order, mut attachment, held) = asking();
        assert!(!attachment.heard(held[0], &Beacon { in_core: false, ..beacon(&held) }, find, at(10)));
        assert!(!attachment.held.contains_key(&held[0]));
        let stranger = order.iter().copied().find(|id| !held.contains(id)).unwrap();
        assert!(!attachment.heard(stranger, &beacon(&held), find, at(10)));
        assert_eq!(attachment.answering().count(), 0);
    }

    #[test]
    fn an_attached_node_is_alive_for_all_of_the_core_while_one_hears_it() {
        let (mut here, mut there) = (AttachedNodes::default(), AttachedNodes::default());
        here.heard(id(7), false, &Attach { first: true, silent: 5, ..Attach::default() }, at(0));
        here.heard(id(9), true, &Attach::default(), at(0));
        here.heard(id(8), false, &Attach::default(), at(0));
        assert!(here.here().eq([(id(7), 5), (id(8), 0)]));
        let list = here.list_due(at(100)).unwrap();
        assert_eq!(list, [id(7)], "another counts the other");
        assert_eq!(here.list_due(at(200)), None);
        there.listed(list, at(150));
        assert!(here.is_alive(&id(8), at(6_999)) && !here.is_alive(&id(8), at(7_000)));
        assert!(there.is_alive(&id(7), at(17_149)) && !there.is_alive(&id(7), at(17_150)));
        assert!(here.list_due(at(7_000)).unwrap().is_empty());
    }
}
