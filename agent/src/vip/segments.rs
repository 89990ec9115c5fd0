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

/// Neighbours that are told of an address one by one.
const TOLD: usize = 64;

/// An interface and a family of addresses on it.
pub(super) type SegmentKey = (u32, bool);

/// The segment of a place.
fn key(place: &VipPlacement) -> SegmentKey {
    (place.index, place.source.is_ipv4())
}

/// One segment.
struct L2Segment {
    place: VipPlacement,
    wire: PacketSocket,
    test: Adjacency,
    vips: Vec<IpAddr>,
}

/// All segments.
#[derive(Default)]
pub(super) struct L2Segments {
    segments: BTreeMap<SegmentKey, L2Segment>,
    /// Why one can't be opened.
    problem: Option<Unfit>,
}

impl L2Segments {
    /// Keeps exactly those that these virtual IPs need.
    pub(super) fn reconcile(&mut self, now: Moment, wanted: &[(IpAddr, VipPlacement)]) {
        let mut by_key: BTreeMap<SegmentKey, (&VipPlacement, Vec<IpAddr>)> = BTreeMap::new();
        for (vip, place) in wanted {
            by_key.entry(key(place)).or_insert_with(|| (place, Vec::new())).1.push(*vip);
        }
        self.segments.retain(|key, segment| {
            by_key.get(key).is_some_and(|(place, vips)| {
                // Whether it is up changes nothing: the socket outlives it.
                place.mac == segment.place.mac
                    && place.source == segment.place.source
                    && *vips == segment.vips
            })
        });
        self.problem = None;
        for (key, (place, vips)) in by_key {
            let place = place.clone();
            if let Some(segment) = self.segments.get_mut(&key) {
                segment.place = place;
                continue;
            }
            match PacketSocket::open(place.index, place.mac, &vips) {
                Ok(wire) => {
                    let segment = L2Segment { wire, test: Adjacency::new(now), vips, place };
                    self.segments.insert(key, segment);
                }
                Err(error) => {
                    let on = &place.name;
                    let reason = format_args!(
                        "cannot open a packet socket on {on}: {error}; it needs CAP_NET_RAW, and AF_PACKET in \
                         RestrictAddressFamilies= of the unit"
                    );
                    self.problem = Some(Unfit::new(Cause::NotPermitted, reason));
                }
            }
        }
    }

    /// Why one can't be opened.
    pub(super) fn problem(&self) -> Option<&Unfit> {
        self.problem.as_ref()
    }

    /// Asks who has a virtual IP.
    pub(super) fn probe(&self, vip: IpAddr, place: &VipPlacement) {
        if let Some(segment) = self.segments.get(&key(place)) {
            segment.wire.probe(vip);
        }
    }

    /// Says to all that a virtual IP is here, and to those that say to be on the segment one by one.
    pub(super) fn announce(&self, vip: IpAddr, place: &VipPlacement, own: NodeId, view: &ClusterView) {
        let Some(segment) = self.segments.get(&key(place)) else { return };
        segment.wire.announce(vip);
        for (_, endpoint) in endpoints_of(view, own, &segment.place).into_iter().take(TOLD) {
            segment.wire.announce_to(vip, endpoint.mac, endpoint.address);
        }
    }

    /// Someone on this segment says to have an address.
    pub(super) fn answered(&mut self, now: Moment, key: &SegmentKey, sighting: &AddressSighting) {
        if let Some(segment) = self.segments.get_mut(key) {
            segment.test.answered(now, sighting.ip, sighting.mac);
        }
    }

    /// Whether the segment of a place is proven, by what is known now; see [`Adjacency::verdict`].
    ///
    /// # Errors
    /// It is not, and why.
    pub(super) fn verdict(
        &mut self,
        now: Moment,
        place: &VipPlacement,
        heard: impl Fn(&NodeId) -> bool,
        name: impl Fn(&NodeId) -> String,
    ) -> Result<(), Unfit> {
        let Some(segment) = self.segments.get_mut(&key(place)) else {
            let reason = format_args!("{} is not open yet", place.name);
            return Err(Unfit::new(Cause::SegmentUntested, reason));
        };
        segment.test.verdict(now, &place.name, heard, name)
    }

    /// Tells the tests who says to be on their segment.
    pub(super) fn apply_records(
        &mut self,
        now: Moment,
        own: NodeId,
        view: &ClusterView,
        trusted: &BTreeSet<NodeId>,
    ) {
        for segment in self.segments.values_mut() {
            let trusted = |id: &NodeId| trusted.contains(id);
            segment.test.apply_endpoints(now, own, &endpoints_of(view, own, &segment.place), trusted);
        }
    }

    /// Asks what is due; true when something was.
    pub(super) fn test(&mut self, now: Moment) -> bool {
        let mut asked = false;
        for segment in self.segments.values_mut().filter(|segment| segment.place.up) {
            for address in segment.test.due(now) {
                segment.wire.request(segment.place.source, address);
                asked = true;
            }
        }
        asked
    }

    pub(super) fn deadline(&self) -> Option<Moment> {
        let up = self.segments.values().filter(|segment| segment.place.up);
        up.filter_map(|segment| segment.test.deadline()).min()
    }

    /// Waits for someone's claim on any of them.
    pub(super) fn poll_claim(
        &self,
        context: &mut Context<'_>,
    ) -> Poll<(SegmentKey, io::Result<AddressSighting>)> {
        for (key, segment) in &self.segments {
            if let Poll::Ready(claim) = segment.wire.poll_claim(context) {
                return Poll::Ready((*key, claim));
            }
        }
        Poll::Pending
    }
}

/// The other members that say to be on the network of a place.
fn endpoints_of(view: &ClusterView, own: NodeId, place: &VipPlacement) -> Vec<(NodeId, L2Endpoint)> {
    let others = view.members.iter().filter(|(id, _)| **id != own);
    let all =
        others.flat_map(|(id, member)| member.record.l2_endpoints.iter().map(|endpoint| (*id, endpoint)));
    all.filter(|(_, endpoint)| place.shares(endpoint)).map(|(id, endpoint)| (id, endpoint.clone())).collect()
}

/// Where a member stands on the network of a virtual IP, by what it gossips.
pub(super) fn endpoint_of_member<'a>(
    view: &'a ClusterView,
    node: &NodeId,
    vip: IpAddr,
) -> Option<&'a L2Endpoint> {
    endpoint_in_record(&view.members.get(node)?.record, vip)
}

/// The same in its own words.
pub(super) fn endpoint_in_record(record: &NodeRecord, vip: IpAddr) -> Option<&L2Endpoint> {
    record.l2_endpoints.iter().find(|endpoint| same_network(endpoint.address, vip, endpoint.prefix))
}

/// The member whose own address this is: taking it over would cut that node off. `believed`: whether what
/// it says of its addresses is believed; else a worker could take any virtual IP from its owner with a word.
pub(super) fn node_at(
    view: &ClusterView,
    address: IpAddr,
    believed: impl Fn(&NodeId) -> bool,
) -> Option<NodeId> {
    let at = |record: &NodeRecord| {
        record.addresses.iter().any(|one| one.ip() == address)
            || record.l2_endpoints.iter().any(|endpoint| endpoint.address == address)
    };
    view.members.iter().find(|(id, member)| at(&member.record) && believed(id)).map(|(id, _)| *id)
}

/// The member that an Ethernet address belongs to.
pub(super) fn member_with(view: &ClusterView, mac: Mac) -> Option<NodeId> {
    let mut members = view.members.iter();
    members
        .find(|(_, member)| member.record.l2_endpoints.iter().any(|endpoint| endpoint.mac == mac))
        .map(|(id, _)| *id)
}
