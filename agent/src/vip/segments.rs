//! The segments that this node's virtual IPs live on: a packet socket and a test for each.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::IpAddr;
use std::task::{Context, Poll};

use proto::arp::Mac;
use proto::cause::Cause;
use proto::node::NodeId;
use proto::record::{L2Endpoint, NodeRecord};
use proto::time::Moment;
use proto::unfit::Unfit;
use proto::view::ClusterView;

use super::packet::{AddressSighting, PacketSocket};
use super::segment::{Adjacency, VipPlacement, same_network};

/// An interface and a family of addresses on it.
pub(super) type SegmentKey = (u32, bool);

/// The ground of a place.
pub(super) fn key(place: &VipPlacement) -> SegmentKey {
    (place.index, place.source.is_ipv4())
}

/// One segment.
pub(super) struct L2Segment {
    pub(super) place: VipPlacement,
    pub(super) wire: PacketSocket,
    pub(super) test: Adjacency,
    vips: Vec<IpAddr>,
}

/// All segments.
#[derive(Default)]
pub(super) struct L2Segments(BTreeMap<SegmentKey, L2Segment>);

impl L2Segments {
    /// Keeps exactly those that these virtual IPs need; returns why one can't be had.
    pub(super) fn reconcile(
        &mut self,
        now: Moment,
        wanted: BTreeMap<SegmentKey, (VipPlacement, Vec<IpAddr>)>,
    ) -> Option<Unfit> {
        self.0.retain(|key, segment| {
            wanted.get(key).is_some_and(|(place, vips)| {
                // Whether it is up changes nothing: the socket outlives it.
                place.mac == segment.place.mac
                    && place.source == segment.place.source
                    && *vips == segment.vips
            })
        });
        let mut problem = None;
        for (key, (place, vips)) in wanted {
            if let Some(segment) = self.0.get_mut(&key) {
                segment.place = place;
                continue;
            }
            match PacketSocket::open(place.index, place.mac, &vips) {
                Ok(wire) => {
                    let segment = L2Segment { wire, test: Adjacency::new(now), vips, place };
                    self.0.insert(key, segment);
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

    pub(super) fn get(&self, key: &SegmentKey) -> Option<&L2Segment> {
        self.0.get(key)
    }

    pub(super) fn get_mut(&mut self, key: &SegmentKey) -> Option<&mut L2Segment> {
        self.0.get_mut(key)
    }

    /// Tells the tests who says to be on their segment.
    pub(super) fn apply_records(
        &mut self,
        now: Moment,
        own: NodeId,
        view: &ClusterView,
        trusted: &BTreeSet<NodeId>,
    ) {
        for segment in self.0.values_mut() {
            let trusted = |id: &NodeId| trusted.contains(id);
            segment.test.apply_endpoints(now, own, &endpoints_of(view, own, &segment.place), trusted);
        }
    }

    /// Asks what is due; true when something was.
    pub(super) fn test(&mut self, now: Moment) -> bool {
        let mut asked = false;
        for segment in self.0.values_mut().filter(|segment| segment.place.up) {
            for address in segment.test.due(now) {
                segment.wire.request(segment.place.source, address);
                asked = true;
            }
        }
        asked
    }

    pub(super) fn deadline(&self) -> Option<Moment> {
        let up = self.0.values().filter(|segment| segment.place.up);
        up.filter_map(|segment| segment.test.deadline()).min()
    }

    /// Waits for someone's claim on any of them.
    pub(super) fn poll_claim(
        &self,
        context: &mut Context<'_>,
    ) -> Poll<(SegmentKey, io::Result<AddressSighting>)> {
        for (key, segment) in &self.0 {
            if let Poll::Ready(claim) = segment.wire.poll_claim(context) {
                return Poll::Ready((*key, claim));
            }
        }
        Poll::Pending
    }
}

/// The other members that say to be on the network of a place.
pub(super) fn endpoints_of(
    view: &ClusterView,
    own: NodeId,
    place: &VipPlacement,
) -> Vec<(NodeId, L2Endpoint)> {
    let others = view.members.iter().filter(|(id, _)| **id != own);
    let all = others.flat_map(|(id, member)| member.word.l2_endpoints.iter().map(|endpoint| (*id, endpoint)));
    all.filter(|(_, endpoint)| place.shares(endpoint)).map(|(id, endpoint)| (id, endpoint.clone())).collect()
}

/// Where a member stands on the network of a virtual IP, by what it gossips.
pub(super) fn endpoint_of_member<'a>(
    view: &'a ClusterView,
    node: &NodeId,
    vip: IpAddr,
) -> Option<&'a L2Endpoint> {
    endpoint_in_record(&view.members.get(node)?.word, vip)
}

/// The same in its own words.
pub(super) fn endpoint_in_record(word: &NodeRecord, vip: IpAddr) -> Option<&L2Endpoint> {
    word.l2_endpoints.iter().find(|endpoint| same_network(endpoint.address, vip, endpoint.prefix))
}

/// The member whose own address this is: taking it over would cut that node off. `believed`: whether what
/// it says of its addresses is believed; else a worker could take any virtual IP from its owner with a word.
pub(super) fn node_at(
    view: &ClusterView,
    address: IpAddr,
    believed: impl Fn(&NodeId) -> bool,
) -> Option<NodeId> {
    let at = |word: &NodeRecord| {
        word.addresses.iter().any(|one| one.ip() == address)
            || word.l2_endpoints.iter().any(|endpoint| endpoint.address == address)
    };
    view.members.iter().find(|(id, member)| at(&member.word) && believed(id)).map(|(id, _)| *id)
}

/// The member that an Ethernet address belongs to.
pub(super) fn member_with(view: &ClusterView, mac: Mac) -> Option<NodeId> {
    let mut members = view.members.iter();
    members
        .find(|(_, member)| member.word.l2_endpoints.iter().any(|endpoint| endpoint.mac == mac))
        .map(|(id, _)| *id)
}
