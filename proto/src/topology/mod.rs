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
//! attached nodes take the next in the order, who are called by that ([`Attachment::called`]).

mod attachment;
mod core;
mod wire;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::time::Duration;

use serde::{Deserialize, Serialize};

pub use self::attachment::{AttachDue, AttachedNodes, Attachment, Heard};
pub use self::core::{ALL_GOSSIP, CoreOrder, CoreWatch, core_size, fingerprint, fingerprint_of_records};
pub use self::wire::{Attach, Beacon, IdPrefix, Knowledge, MOST_LISTED, MOST_SILENT, prefix};
use crate::cluster::Document;
use crate::node::NodeId;
use crate::open_enum::OpenEnum;
use crate::record::NodeRecord;
use crate::time::Moment;

/// A cluster in which only a core gossips returns to gossip of all at this size: with one member that leaves and one
/// that joins it would change with each.
const ALL_AGAIN: usize = ALL_GOSSIP - 4;

/// Time between two decisions about the core.
pub const UPDATE: Duration = Duration::from_secs(2);

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
}

/// A node's place in the cluster, and what follows from it.
#[derive(Debug, Clone)]
pub struct Topology {
    own: NodeId,
    order: CoreOrder,
    prefixes: BTreeMap<IdPrefix, Vec<NodeId>>,
    place: Place,
    core: BTreeSet<NodeId>,
    watch: CoreWatch,
    attachment: Attachment,
    attached: AttachedNodes,
}

impl Topology {
    /// The place of a node that starts, by the document alone.
    pub fn new(own: NodeId, order: CoreOrder, now: Moment) -> Topology {
        let mut topology = Topology {
            own,
            order: CoreOrder::default(),
            prefixes: BTreeMap::new(),
            place: Place::Everyone,
            core: BTreeSet::new(),
            watch: CoreWatch::new(now),
            attachment: Attachment::new(own, now),
            attached: AttachedNodes::default(),
        };
        topology.set_order(order);
        if topology.order.members() > ALL_GOSSIP {
            topology.core = topology.order.core(|_| true);
            topology.place = if topology.core.contains(&own) { Place::Core } else { Place::Attached };
        }
        topology
    }

    /// The members have changed.
    pub fn set_members(&mut self, document: &Document) {
        self.set_order(CoreOrder::of(document));
    }

    fn set_order(&mut self, order: CoreOrder) {
        self.prefixes.clear();
        for id in order.iter() {
            self.prefixes.entry(prefix(id)).or_default().push(*id);
        }
        let members: BTreeSet<NodeId> = order.iter().copied().collect();
        self.attachment.retain(|id| members.contains(id));
        self.attached.retain(|id| members.contains(id));
        self.order = order;
    }

    /// This node's place.
    pub fn place(&self) -> Place {
        self.place
    }

    /// The core; empty where all gossip.
    pub fn core(&self) -> &BTreeSet<NodeId> {
        if self.place == Place::Attached { self.attachment.core() } else { &self.core }
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

    /// Whether a member is alive, by what attached nodes and core members say; `gossips`: by gossip.
    pub fn is_alive(&self, id: &NodeId, gossips: bool, now: Moment) -> bool {
        *id == self.own || gossips || self.attached.is_alive(id, now)
    }

    /// Decides this node's place anew. `gossips` says who is alive by gossip.
    pub fn update(&mut self, gossips: impl Fn(&NodeId) -> bool, now: Moment) -> Place {
        let members = self.order.members();
        let small = if self.place == Place::Everyone { ALL_GOSSIP } else { ALL_AGAIN };
        if members <= small {
            self.core.clear();
            self.place = Place::Everyone;
            return self.place;
        }
        if self.place == Place::Attached {
            let Some(core) = self.attachment.called(&self.order, now) else { return self.place };
            self.watch = CoreWatch::called(&self.order, core, now);
            self.attached = AttachedNodes::default();
        }
        let (own, attached) = (self.own, &self.attached);
        let alive = |id: &NodeId| *id == own || gossips(id) || attached.is_alive(id, now);
        self.core = self.watch.update(&self.order, alive, now).clone();
        if self.core.contains(&own) {
            self.place = Place::Core;
        } else if self.place != Place::Attached {
            self.attachment = Attachment::new(own, now);
            self.place = Place::Attached;
        }
        self.place
    }

    /// When an attached node's [`Topology::poll`] is due next; that of a core member may wait for [`UPDATE`].
    pub fn deadline(&self) -> Option<Moment> {
        (self.place == Place::Attached).then(|| self.attachment.deadline())
    }

    /// What is to be sent now.
    pub fn poll(&mut self, now: Moment) -> TopologyDue {
        match self.place {
            Place::Everyone => TopologyDue::default(),
            Place::Core => TopologyDue { list: self.attached.list_due(now), attach: Vec::new() },
            Place::Attached => TopologyDue { attach: self.attachment.poll(&self.order, now), list: None },
        }
    }

    /// An attached node's record or document has changed: those that it holds hear it at once.
    pub fn hurry(&mut self, now: Moment) {
        self.attachment.hurry(now);
    }

    /// A node has attached itself. What it is answered: see [`Topology::beacon`].
    pub fn attached_by(&mut self, from: NodeId, attach: &Attach, now: Moment) {
        if self.place != Place::Attached {
            self.attached.heard(from, attach.first, now);
        }
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
        let prefixes = &self.prefixes;
        let find = |short: &IdPrefix| prefixes.get(short).cloned().unwrap_or_default();
        if self.place == Place::Attached {
            return self.attachment.heard(from, beacon, find, now);
        }
        if let (Some(listed), true) = (&beacon.attached, self.core.contains(&from)) {
            self.attached.listed(listed.iter().flat_map(find), now);
        }
        false
    }
}
