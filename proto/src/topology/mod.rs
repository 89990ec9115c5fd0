//! Who gossips: in a small cluster all members, in a larger one a core, to which the others are attached.
//!
//! ```text
//!                      ┌── gossip ──┐
//!   attached ─ attach ─► core member │          attach: what I know; I am alive
//!        │ ◄── beacon ─┤     ▲       │          beacon: what you lack; who is in the core; who is not alive
//!        └─ attach ───►└─► core member           to others of the core: whom I count as alive
//! ```
//!
//! Core members decide who is in the core ([`CoreWatch`]) by who is alive, each by itself: they may disagree for a
//! moment, which costs nothing. An attached node holds three core members ([`Attachment`]) and takes from them what
//! it lacks. All differences are fetched over TLS; beacons only show that there are some. If no core member answers,
//! attached nodes take the next in the order, who are called by that ([`Attachment::called`]). An attached node also
//! says which core members it has lost; whoever hears that checks them directly (`probes`), so that a core that loses
//! most of its members is made up within seconds.

mod askers;
mod attachment;
mod core;
mod pace;
mod probes;
mod silent_names;
mod wire;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::time::Duration;

use serde::{Deserialize, Serialize};

pub use self::askers::Askers;
pub use self::attachment::{AttachDue, AttachedNodes, Attachment, Heard};
pub use self::core::{ALL_GOSSIP, CoreOrder, CoreWatch, core_size, fingerprint, fingerprint_of_records};
pub use self::pace::{measurements, pace};
use self::probes::CoreProbes;
pub use self::silent_names::SilentNames;
pub use self::wire::{Attach, Beacon, IdPrefix, Knowledge, MOST_LISTED, MOST_SILENT, prefix, unless_known};
use crate::node::NodeId;
use crate::open_enum::OpenEnum;
use crate::record::NodeRecord;
use crate::time::Moment;

/// A cluster in which only a core gossips returns to gossip of all at this size: with one member that leaves and one
/// that joins it would change with each.
const ALL_AGAIN: usize = ALL_GOSSIP - 4;

/// Time between two decisions about the core.
const UPDATE: Duration = Duration::from_secs(2);

/// The same while less than half of it is alive.
const UPDATE_URGENTLY: Duration = Duration::from_millis(500);

/// How long a node whose place has changed goes by what it knew before: the others of the core say every 5 s whom
/// they count as alive, and two of their lists may be lost.
const INHERITED: Duration = Duration::from_secs(17);

/// How long a member is expected: it has just been admitted, or this node has just started. It has to start, to find
/// core members and to be named in one of their lists, as above.
const EXPECTED: Duration = INHERITED;

/// How long a member lives by its record, where that shows a new start: gossip and core members have to hear of it
/// anew. Gossip alone takes as long to notice that one is gone.
const STARTED: Duration = Duration::from_secs(10);

/// How long a member that said so counts as one of the core for itself: three of its lists may be lost.
const CLAIMED: Duration = Duration::from_secs(17);

/// A node's place.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Place {
    /// All members gossip.
    #[default]
    Everyone,
    /// It gossips, others are attached to it.
    Core,
    /// It is attached to core members.
    Attached,
}

impl Place {
    /// Whether all members gossip, so that there is nothing to say.
    pub(crate) fn is_everyone(place: &OpenEnum<Place>) -> bool {
        *place == Place::Everyone
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Place::Everyone => "everyone",
            Place::Core => "core",
            Place::Attached => "attached",
        })
    }
}

/// Whether every node needs a member's record, beside those of the core: it offers a service, or owns a virtual IP or
/// could.
pub fn is_needed(record: &NodeRecord) -> bool {
    !(record.services.is_empty()
        && record.vips.is_empty()
        && record.unfit.is_empty()
        && record.l2_endpoints.is_empty())
}

/// What is due now.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct TopologyDue {
    /// Messages of an attached node.
    pub attach: Vec<AttachDue>,
    /// Whom a core member counts as alive, for the others of the core.
    pub list: Option<Vec<NodeId>>,
    /// Core members that a core member checks.
    pub probes: Vec<NodeId>,
}

/// What a node that gossips goes by until it has heard from all: it has just begun to, others have just stopped, or
/// most of the core is lost.
#[derive(Debug, Clone, Default)]
struct Inherited {
    /// Until when; zero: it knew nothing before.
    until: Moment,
    /// Members that were not alive before.
    silent: BTreeSet<NodeId>,
}

impl Inherited {
    fn is_valid(&self, now: Moment) -> bool {
        now < self.until
    }

    fn says_alive(&self, id: &NodeId, now: Moment) -> bool {
        self.is_valid(now) && !self.silent.contains(id)
    }
}

/// A node's place in the cluster, and what follows from it.
#[derive(Debug, Clone)]
pub struct Topology {
    own: NodeId,
    order: CoreOrder,
    /// All members, sorted.
    members: Vec<NodeId>,
    place: Place,
    core: BTreeSet<NodeId>,
    watch: CoreWatch,
    attachment: Attachment,
    attached: AttachedNodes,
    probes: CoreProbes,
    /// Members that take themselves for core members, whoever else does, by when they said so. Without the lists of the
    /// core they would not find out that they are not needed.
    claimed: BTreeMap<NodeId, Moment>,
    /// How many were found dead by probes when it was last decided who is in the core.
    dead: usize,
    /// When to decide about it again.
    next: Moment,
    inherited: Inherited,
    /// Until when all members are expected, since this node has just started.
    young: Moment,
    /// Members that were admitted since, by until when they are expected.
    expected: BTreeMap<NodeId, Moment>,
    /// Members that have started again, or changed their place, by when.
    started: BTreeMap<NodeId, Moment>,
}

impl Topology {
    /// The place of a node that starts, by the document alone.
    pub fn new(own: NodeId, order: CoreOrder, now: Moment) -> Topology {
        let mut topology = Topology {
            own,
            order: CoreOrder::default(),
            members: Vec::new(),
            place: Place::Everyone,
            core: BTreeSet::new(),
            watch: CoreWatch::new(now),
            attachment: Attachment::new(own, BTreeSet::new(), now),
            attached: AttachedNodes::default(),
            probes: CoreProbes::default(),
            claimed: BTreeMap::new(),
            dead: 0,
            next: now,
            inherited: Inherited::default(),
            young: now.after(EXPECTED),
            expected: BTreeMap::new(),
            started: BTreeMap::new(),
        };
        topology.set_members(order, now);
        topology.expected.clear();
        if topology.order.members() > ALL_GOSSIP {
            topology.core = topology.order.core(|_| true);
            topology.place = if topology.core.contains(&own) { Place::Core } else { Place::Attached };
        }
        topology
    }

    /// The members have changed.
    pub fn set_members(&mut self, order: CoreOrder, now: Moment) {
        let mut members: Vec<NodeId> = order.iter().copied().collect();
        members.sort_unstable();
        let is_member = |id: &NodeId| members.binary_search(id).is_ok();
        let is_new = |id: &&NodeId| self.members.binary_search(id).is_err();
        self.expected.retain(|id, until| now < *until && is_member(id));
        self.expected.extend(members.iter().filter(is_new).map(|id| (*id, now.after(EXPECTED))));
        self.attachment.retain(is_member);
        self.attached.retain(is_member);
        self.claimed.retain(|id, _| is_member(id));
        self.started.retain(|id, _| is_member(id));
        (self.members, self.order) = (members, order);
    }

    /// This node's place.
    pub fn place(&self) -> Place {
        self.place
    }

    /// The core; empty where all gossip.
    pub fn core(&self) -> &BTreeSet<NodeId> {
        if self.place == Place::Attached { self.attachment.core() } else { &self.core }
    }

    /// To whom this core member says whom it counts as alive.
    pub fn peers(&self, now: Moment) -> BTreeSet<NodeId> {
        let claimed = self.claimed.iter().filter(|(_, at)| now.since(**at) < CLAIMED).map(|(id, _)| id);
        self.core.iter().chain(claimed).filter(|id| **id != self.own).copied().collect()
    }

    /// Number of members.
    pub fn members(&self) -> usize {
        self.order.members()
    }

    /// What an attached node holds and has heard.
    pub fn attachment(&self) -> &Attachment {
        &self.attachment
    }

    /// Those attached to this core member.
    pub fn attached(&self) -> &AttachedNodes {
        &self.attached
    }

    /// Whether a member is alive. `shown`: by gossip, or by a datagram of its own.
    pub fn is_alive(&self, id: &NodeId, shown: bool, now: Moment) -> bool {
        self.counts_as_alive(id, shown, self.is_expected(id, now), now)
    }

    fn counts_as_alive(&self, id: &NodeId, shown: bool, expected: bool, now: Moment) -> bool {
        let shown = shown || self.started.get(id).is_some_and(|at| now.since(*at) < STARTED);
        let inherited = || self.inherited.says_alive(id, now);
        let lives = || match self.place {
            Place::Everyone => shown || inherited(),
            Place::Core => {
                // Masters are pulsed by all nodes, which know within a second.
                let expected = expected && !self.order.is_master(id);
                let named = || self.attached.is_alive(id, now) || inherited();
                (shown || expected || named()) && !self.probes.is_dead(id, now)
            }
            Place::Attached => shown || !self.attachment.silent().contains(id),
        };
        *id == self.own || lives()
    }

    /// A member's record shows a later start than the one known so far: of its process, or of what it does in its
    /// place.
    pub fn has_started(&mut self, id: NodeId, now: Moment) {
        self.started.retain(|_, at| now.since(*at) < STARTED);
        self.started.insert(id, now);
    }

    /// Whether a member was admitted so lately that nobody can be expected to have heard it.
    fn is_new(&self, id: &NodeId, now: Moment) -> bool {
        self.expected.get(id).is_some_and(|until| now < *until)
    }

    /// Whether this node can't be expected to have heard of a member yet.
    fn is_expected(&self, id: &NodeId, now: Moment) -> bool {
        (now < self.young || self.is_new(id, now)) && !self.probes.is_dead(id, now)
    }

    /// Members of which a core member says that they are not alive: none that are expected.
    pub fn silent(&self, shown: impl Fn(&NodeId) -> bool, now: Moment) -> Vec<NodeId> {
        let is_silent = |id: &&NodeId| !self.is_alive(id, shown(id), now) && !self.is_expected(id, now);
        self.order.iter().filter(is_silent).copied().collect()
    }

    /// Whom this node counts as silent although all gossip: it has just begun to, and goes by what core members said.
    /// `None`: gossip has had the time to tell.
    pub fn silent_before(&self, now: Moment) -> Option<&BTreeSet<NodeId>> {
        let valid = self.place == Place::Everyone && self.inherited.is_valid(now);
        valid.then_some(&self.inherited.silent)
    }

    /// Begins to go by what was known until now.
    fn inherit(&mut self, silent: impl IntoIterator<Item = NodeId>, now: Moment) {
        self.inherited = Inherited { until: now.after(INHERITED), silent: silent.into_iter().collect() };
        self.young = Moment::ZERO;
    }

    /// Decides this node's place anew, when it is time. `gossips` says who is alive by gossip.
    pub fn update(&mut self, gossips: impl Fn(&NodeId) -> bool, now: Moment) -> Place {
        let found_dead = self.place == Place::Core && self.probes.dead(now) != self.dead;
        if now < self.next && !found_dead {
            return self.place;
        }
        let place = self.decide(gossips, now);
        let urgent = place == Place::Core && self.watch.is_urgent();
        self.next = now.after(if urgent { UPDATE_URGENTLY } else { UPDATE });
        place
    }

    fn decide(&mut self, gossips: impl Fn(&NodeId) -> bool, now: Moment) -> Place {
        let members = self.order.members();
        let small = if self.place == Place::Everyone { ALL_GOSSIP } else { ALL_AGAIN };
        let before = self.place;
        if members <= small {
            match before {
                Place::Everyone => {}
                // Those who were attached begin to gossip.
                Place::Core => self.inherit(self.silent(gossips, now), now),
                Place::Attached => self.inherit(self.attachment.silent().clone(), now),
            }
            self.core.clear();
            self.place = Place::Everyone;
            return self.place;
        }
        if before == Place::Attached {
            let Some(core) = self.attachment.called(&self.order, now) else { return self.place };
            let mut silent = self.attachment.silent().clone();
            self.watch = CoreWatch::called(&self.order, core, &mut silent, now);
            self.attached = AttachedNodes::default();
            self.probes = CoreProbes::default();
            self.inherit(silent, now);
        }
        // It decides as one of the core, and may find that it is not needed.
        self.place = Place::Core;
        // At a start the watch waits by itself.
        let is_dead = |id: &&NodeId| !self.counts_as_alive(id, gossips(id), self.is_new(id, now), now);
        let dead: BTreeSet<NodeId> = self.order.iter().filter(is_dead).copied().collect();
        self.core = self.watch.update(&self.order, |id| !dead.contains(id), now).clone();
        self.dead = self.probes.dead(now);
        if !self.core.contains(&self.own) {
            if before != Place::Attached {
                let silent = self.silent(&gossips, now).into_iter().collect();
                self.attachment = Attachment::new(self.own, silent, now);
            }
            self.place = Place::Attached;
        } else if before == Place::Everyone {
            // Those who are attached from now on are heard by some of the core only.
            self.inherit(self.silent(&gossips, now), now);
        } else if before == Place::Core && self.watch.is_urgent() {
            // Those who were attached to the others are not heard until they have found this node.
            let silent = if self.inherited.is_valid(now) {
                std::mem::take(&mut self.inherited.silent).into_iter().collect()
            } else {
                self.silent(&gossips, now)
            };
            self.inherit(silent, now);
        }
        self.place
    }

    /// When [`Topology::update`] or [`Topology::poll`] is due next; the list of a core member waits for an update.
    pub fn deadline(&self, now: Moment) -> Moment {
        match self.place {
            Place::Everyone => self.next,
            Place::Core => self.probes.deadline(now).map_or(self.next, |at| at.min(self.next)),
            Place::Attached => self.attachment.deadline().min(self.next),
        }
    }

    /// What is to be sent now.
    pub fn poll(&mut self, now: Moment) -> TopologyDue {
        match self.place {
            Place::Everyone => TopologyDue::default(),
            Place::Core => TopologyDue {
                list: self.attached.list_due(now),
                probes: self.probes.poll(now),
                attach: Vec::new(),
            },
            Place::Attached => {
                let attach = self.attachment.poll(&self.order, now);
                self.decide_soon(now);
                TopologyDue { attach, ..TopologyDue::default() }
            }
        }
    }

    /// One that nobody answers may have to take its place in the core.
    fn decide_soon(&mut self, now: Moment) {
        if self.attachment.searches() && self.attachment.called(&self.order, now).is_some() {
            self.next = now;
        }
    }

    /// Whether this node has an answer for one that takes it for a core member. One that nobody answers itself has
    /// none: it knows no better core, and would send those that ask from one to the next.
    pub fn has_answer(&self) -> bool {
        self.place != Place::Attached || !self.attachment.searches()
    }

    /// An attached node's record or document has changed: those that it holds hear it at once.
    pub fn hurry(&mut self, now: Moment) {
        self.attachment.hurry(now);
    }

    /// A node has attached itself. What it is answered: see [`Topology::beacon`].
    pub fn attached_by(&mut self, from: NodeId, attach: &Attach, now: Moment) {
        if self.place == Place::Attached {
            self.attachment.asked_by(from, now);
            self.decide_soon(now);
            return;
        }
        self.attached.heard(from, self.core.contains(&from), attach, now);
        self.probes.heard(&from, now);
        let named = attach.lost.iter().flat_map(|short| named(&self.members, short));
        let others = |id: &&NodeId| **id != self.own && self.core.contains(*id);
        let lost: Vec<NodeId> = named.filter(others).copied().collect();
        // Where two fail at a time, others may have too.
        let checked = if lost.len() < 2 { lost } else { self.core.iter().filter(others).copied().collect() };
        checked.into_iter().for_each(|id| self.probes.reported(id, now));
    }

    /// Core members that have stopped answering this attached node.
    pub fn lost(&self, now: Moment) -> Vec<IdPrefix> {
        self.attachment.lost(now).iter().map(prefix).collect()
    }

    /// What this node says of the topology to one that knows a core of this fingerprint; the rest of the beacon is
    /// the caller's. A node that is not in the core answers too, with the core that it knows.
    pub fn beacon(&self, core_known: u64) -> Beacon {
        let print = fingerprint(self.core());
        let core = if print == core_known { Vec::new() } else { self.core().iter().map(prefix).collect() };
        let knows = Knowledge { core: print, ..Knowledge::default() };
        Beacon { in_core: self.place != Place::Attached, knows, core, ..Beacon::default() }
    }

    /// A beacon has arrived. True: of a core member that this node holds, so that what it says counts.
    pub fn heard(&mut self, from: NodeId, beacon: &Beacon, now: Moment) -> bool {
        let members = &self.members;
        let find = |short: &IdPrefix| named(members, short).to_vec();
        if self.place == Place::Attached {
            let counts = self.attachment.heard(from, beacon, find, now);
            if !beacon.core.is_empty() && self.attachment.called(&self.order, now).is_some() {
                self.next = now;
            }
            return counts;
        }
        self.probes.heard(&from, now);
        if let Some(listed) = &beacon.attached {
            self.claimed.insert(from, now);
            if self.core.contains(&from) {
                self.attached.listed(listed.iter().flat_map(find), now);
            }
        }
        false
    }
}

/// The members whose ids begin so. `members` are sorted.
fn named<'a>(members: &'a [NodeId], short: &IdPrefix) -> &'a [NodeId] {
    let (_, from) = members.split_at(members.partition_point(|id| prefix(id) < *short));
    from.split_at(from.partition_point(|id| prefix(id) == *short)).0
}
