//! The segments that this node's virtual IPs live on: a packet socket and a test for each.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::IpAddr;
use std::task::{Context, Poll};

use proto::arp::Mac;
use proto::cause::Cause;
use proto::node::NodeId;
use proto::record::{Foot, NodeRecord};
use proto::time::Moment;
use proto::unfit::Unfit;
use proto::view::View;

use super::packet::{Claim, Wire};
use super::segment::{Adjacency, Place, same_network};

/// An interface and a family of addresses on it.
pub(super) type Key = (u32, bool);

/// The ground of a place.
pub(super) fn key(place: &Place) -> Key {
    (place.index, place.source.is_ipv4())
}

/// One segment.
pub(super) struct Ground {
    pub(super) place: Place,
    pub(super) wire: Wire,
    pub(super) test: Adjacency,
    vips: Vec<IpAddr>,
}

/// All segments.
#[derive(Default)]
pub(super) struct Grounds(BTreeMap<Key, Ground>);

impl Grounds {
    /// Keeps exactly those that these virtual IPs need; returns why one can't be had.
    pub(super) fn keep(&mut self, now: Moment, wanted: BTreeMap<Key, (Place, Vec<IpAddr>)>) -> Option<Unfit> {
        self.0.retain(|key, ground| {
            wanted.get(key).is_some_and(|(place, vips)| {
                // Whether it is up changes nothing: the socket outlives it.
                place.mac == ground.place.mac && place.source == ground.place.source && *vips == ground.vips
            })
        });
        let mut problem = None;
        for (key, (place, vips)) in wanted {
            if let Some(ground) = self.0.get_mut(&key) {
                ground.place = place;
                continue;
            }
            match Wire::open(place.index, place.mac, &vips) {
                Ok(wire) => {
                    let ground = Ground { wire, test: Adjacency::new(now), vips, place };
                    self.0.insert(key, ground);
                }
                Err(error) => {
                    let on = &place.name;
                    let reason = format_args!(
                        "cannot open a packet socket on {on}: {error}; it needs CAP_NET_RAW, and AF_PACKET in \
                         RestrictAddressFamilies= of the unit"
                    );
                    problem = Some(Unfit::new(Cause::NotPermitted, reason));
                }
            }
        }
        problem
    }

    pub(super) fn get(&self, key: &Key) -> Option<&Ground> {
        self.0.get(key)
    }

    pub(super) fn get_mut(&mut self, key: &Key) -> Option<&mut Ground> {
        self.0.get_mut(key)
    }

    /// Tells the tests who says to be on their segment.
    pub(super) fn follow(&mut self, now: Moment, own: NodeId, view: &View, trusted: &BTreeSet<NodeId>) {
        for ground in self.0.values_mut() {
            let trusted = |id: &NodeId| trusted.contains(id);
            ground.test.follow(now, own, &feet(view, own, &ground.place), trusted);
        }
    }

    /// Asks what is due; true when something was.
    pub(super) fn test(&mut self, now: Moment) -> bool {
        let mut asked = false;
        for ground in self.0.values_mut().filter(|ground| ground.place.up) {
            for address in ground.test.due(now) {
                ground.wire.ask(ground.place.source, address);
                asked = true;
            }
        }
        asked
    }

    pub(super) fn deadline(&self) -> Option<Moment> {
        let up = self.0.values().filter(|ground| ground.place.up);
        up.filter_map(|ground| ground.test.deadline()).min()
    }

    /// Waits for someone's claim on any of them.
    pub(super) fn poll_claim(&self, context: &mut Context<'_>) -> Poll<(Key, io::Result<Claim>)> {
        for (key, ground) in &self.0 {
            if let Poll::Ready(claim) = ground.wire.poll_claim(context) {
                return Poll::Ready((*key, claim));
            }
        }
        Poll::Pending
    }
}

/// The other members that say to be on the network of a place.
pub(super) fn feet(view: &View, own: NodeId, place: &Place) -> Vec<(NodeId, Foot)> {
    let others = view.members.iter().filter(|(id, _)| **id != own);
    let all = others.flat_map(|(id, member)| member.word.feet.iter().map(|foot| (*id, foot)));
    all.filter(|(_, foot)| place.shares(foot)).map(|(id, foot)| (id, foot.clone())).collect()
}

/// Where a member stands on the network of a virtual IP, by what it gossips.
pub(super) fn foot_of<'a>(view: &'a View, node: &NodeId, vip: IpAddr) -> Option<&'a Foot> {
    foot_in(&view.members.get(node)?.word, vip)
}

/// The same in its own words.
pub(super) fn foot_in(word: &NodeRecord, vip: IpAddr) -> Option<&Foot> {
    word.feet.iter().find(|foot| same_network(foot.address, vip, foot.prefix))
}

/// The member whose own address this is: taking it over would cut that node off. `believed`: whether what
/// it says of its addresses is believed; else a worker could take any virtual IP from its owner with a word.
pub(super) fn node_at(view: &View, address: IpAddr, believed: impl Fn(&NodeId) -> bool) -> Option<NodeId> {
    let at = |word: &NodeRecord| {
        word.addresses.iter().any(|one| one.ip() == address)
            || word.feet.iter().any(|foot| foot.address == address)
    };
    view.members.iter().find(|(id, member)| at(&member.word) && believed(id)).map(|(id, _)| *id)
}

/// The member that an Ethernet address belongs to.
pub(super) fn member_with(view: &View, mac: Mac) -> Option<NodeId> {
    let mut members = view.members.iter();
    members.find(|(_, member)| member.word.feet.iter().any(|foot| foot.mac == mac)).map(|(id, _)| *id)
}
