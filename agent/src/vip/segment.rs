//! Where a virtual IP can live: the interface whose network it belongs to, and the proof that this
//! interface is a segment that others are on too.
//!
//! What the interface says of itself comes first, and where it says that it is none, nothing is sent. Then
//! the addresses that peers gossip are asked for by broadcast, and must answer with the very Ethernet
//! address that they gossip: a router or a proxy that answers for them is no segment, and two sites may use
//! the same numbers.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::time::Duration;

use proto::arp::Mac;
use proto::cause::Cause;
use proto::node::NodeId;
use proto::record::L2Endpoint;
use proto::time::Moment;
use proto::unfit::Unfit;

use super::kernel::{HeldAddress, LinkState};
use crate::netlink::route::{IFF_BROADCAST, IFF_NOARP, IFF_POINTOPOINT, IFF_RUNNING, IFF_UP};

const ETHERNET: u16 = 1;

/// Where a virtual IP would be set.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct VipPlacement {
    pub(super) index: u32,
    pub(super) name: String,
    pub(super) mac: Mac,
    /// This node's own address of the network.
    pub(super) source: IpAddr,
    pub(super) prefix: u8,
    /// Set up, and with a carrier.
    pub(super) up: bool,
}

impl VipPlacement {
    /// As this node gossips it.
    pub(super) fn endpoint(&self) -> L2Endpoint {
        L2Endpoint { interface: self.name.clone(), mac: self.mac, address: self.source, prefix: self.prefix }
    }

    /// Whether a peer that says so is on this network.
    pub(super) fn shares(&self, endpoint: &L2Endpoint) -> bool {
        endpoint.address != self.source && same_network(self.source, endpoint.address, self.prefix)
    }
}

/// Why a virtual IP has no place here.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum NoSegment {
    /// It is an address that this node has for itself.
    Own(Unfit),
    /// There is no segment.
    Segment(Unfit),
}

/// Finds the place of a virtual IP: the one interface, or the named one, of whose network it is.
pub(super) fn place(
    vip: IpAddr,
    wanted: Option<&str>,
    interfaces: &[LinkState],
    addresses: &[HeldAddress],
) -> Result<VipPlacement, NoSegment> {
    let lone = if vip.is_ipv4() { 32 } else { 128 };
    let name = |index: u32| interfaces.iter().find(|one| one.index == index).map_or("?", |one| &one.name);
    // What an agent sets ends by itself.
    if let Some(own) = addresses.iter().find(|held| held.ip == vip && !(held.ends && held.prefix == lone)) {
        let (on, prefix) = (name(own.index), own.prefix);
        let reason = format_args!(
            "{vip}/{prefix} is this node's own address on {on}; choose an unused one, or remove it there"
        );
        return Err(NoSegment::Own(Unfit::new(Cause::OwnAddress, reason)));
    }
    let networks = addresses.iter().filter(|held| held.prefix < lone && held.ip.is_ipv4() == vip.is_ipv4());
    let mut covering: Vec<&HeldAddress> =
        networks.clone().filter(|held| same_network(held.ip, vip, held.prefix)).collect();
    let list = |some: &[&HeldAddress]| {
        let words: Vec<String> =
            some.iter().map(|held| format!("{} {}/{}", name(held.index), held.ip, held.prefix)).collect();
        words.join(", ")
    };
    if let Some(wanted) = wanted {
        let Some(interface) = interfaces.iter().find(|one| one.name == wanted) else {
            let reason = format_args!("there is no interface {wanted} on this node");
            return Err(NoSegment::Segment(Unfit::new(Cause::NoInterface, reason)));
        };
        covering.retain(|held| held.index == interface.index);
    }
    // Of several networks of one interface the narrowest.
    covering.sort_by_key(|held| std::cmp::Reverse(held.prefix));
    let Some(first) = covering.first() else {
        let others: Vec<&HeldAddress> = networks.filter(|held| !held.ip.is_loopback()).take(8).collect();
        let there = if others.is_empty() { "none".to_owned() } else { list(&others) };
        let where_ = wanted.map_or("this node".to_owned(), str::to_owned);
        let reason = format_args!("{vip} is in no network of {where_}; the networks are: {there}");
        return Err(NoSegment::Segment(Unfit::new(Cause::NoInterface, reason)));
    };
    if covering.iter().any(|held| held.index != first.index) {
        let reason = format_args!(
            "several interfaces are in the network of {vip} ({}); choose one: agent set vip.{vip}.interface=NAME",
            list(&covering)
        );
        return Err(NoSegment::Segment(Unfit::new(Cause::SeveralInterfaces, reason)));
    }
    let interface = interfaces.iter().find(|one| one.index == first.index);
    let interface = interface.ok_or_else(|| {
        NoSegment::Segment(Unfit::new(Cause::NoInterface, "its interface was just removed"))
    })?;
    let none = |why: NoL2<'_>| {
        NoSegment::Segment(Unfit::new(Cause::NoSegment, format_args!("no L2 on {} ({why})", interface.name)))
    };
    let mac = l2(interface).map_err(none)?;
    let up = interface.flags & IFF_UP != 0 && interface.flags & IFF_RUNNING != 0;
    let (index, name) = (interface.index, interface.name.clone());
    Ok(VipPlacement { index, name, mac, source: first.ip, prefix: first.prefix, up })
}

/// Why an interface has no segment, by what it says of itself.
#[derive(Debug, thiserror::Error)]
enum NoL2<'a> {
    #[error("point-to-point")]
    PointToPoint,
    #[error("{}", if kind.is_empty() { "no ARP" } else { *kind })]
    NoArp { kind: &'a str },
    #[error("no broadcast")]
    NoBroadcast,
    #[error("not Ethernet")]
    NoEthernet,
}

/// The interface's Ethernet address, or why it has no segment.
fn l2(interface: &LinkState) -> Result<Mac, NoL2<'_>> {
    let flags = interface.flags;
    if flags & IFF_POINTOPOINT != 0 {
        return Err(NoL2::PointToPoint);
    }
    if flags & IFF_NOARP != 0 {
        return Err(NoL2::NoArp { kind: &interface.kind });
    }
    if flags & IFF_BROADCAST == 0 {
        return Err(NoL2::NoBroadcast);
    }
    match interface.mac {
        Some(mac) if interface.hardware == ETHERNET => Ok(mac),
        _ => Err(NoL2::NoEthernet),
    }
}

/// What settings of the kernel would keep others from finding the address, and the remedy.
pub(super) fn advice(vip: IpAddr, interface: &LinkState) -> Option<Unfit> {
    // 2 answers only who is in the network of the address, and the network of a /32 is it alone; 8 answers
    // nobody. The larger of the interface's and of all interfaces' counts.
    let value = interface.arp_ignore.max(interface.all_arp_ignore);
    let breaks = vip.is_ipv4() && (value == 2 || value == 8);
    let which = if interface.all_arp_ignore == value { "all" } else { &interface.name };
    breaks.then(|| {
        let reason = format_args!(
            "arp_ignore is {value}, so ARP for it goes unanswered; run: sysctl net.ipv4.conf.{which}.arp_ignore=1"
        );
        Unfit::new(Cause::ArpIgnored, reason)
    })
}

/// Whether two addresses have a prefix of this length in common.
pub(super) fn same_network(a: IpAddr, b: IpAddr, prefix: u8) -> bool {
    let bits = |ip: IpAddr| match ip {
        IpAddr::V4(ip) => u128::from(ip.to_bits()) << 96,
        IpAddr::V6(ip) => ip.to_bits(),
    };
    let alike = (bits(a) ^ bits(b)).leading_zeros();
    a.is_ipv4() == b.is_ipv4() && alike >= u32::from(prefix)
}

/// Peers that are asked: a few are enough for a proof, and a segment of a thousand is not to be flooded.
const ASKED: usize = 4;
/// Time between two questions to one peer before it has answered: often at first, for it decides how soon
/// the address can be had.
const EAGER: Duration = Duration::from_millis(100);
/// The same when nobody has answered for long.
const PATIENT: Duration = Duration::from_secs(2);
/// The same once it has answered.
const AGAIN: Duration = Duration::from_secs(60);
/// Questions without an answer after which one that is heard otherwise counts as not on the segment.
const ENOUGH: u32 = 5;
/// After this time without anyone to ask, this node counts as alone on the segment.
const ALONE: Duration = Duration::from_secs(4);

/// A peer of the segment.
#[derive(Debug, Clone)]
struct SegmentPeer {
    node: NodeId,
    /// It may own virtual IPs, or is a master: what speaks against the segment counts of it alone.
    trusted: bool,
    mac: Mac,
    unanswered: u32,
    proven: bool,
    /// Answered, but from here.
    wrong: Option<Mac>,
    next: Moment,
}

/// The test of one segment.
#[derive(Debug, Clone)]
pub(super) struct Adjacency {
    since: Moment,
    peers: BTreeMap<IpAddr, SegmentPeer>,
    /// The last proof; it holds while nothing speaks against it.
    proven: bool,
}

impl Adjacency {
    pub(super) fn new(now: Moment) -> Adjacency {
        Adjacency { since: now, peers: BTreeMap::new(), proven: false }
    }

    /// Follows what peers gossip: those that say to be on this segment. Trusted ones first: a worker that
    /// lies must not push them out. Of those the nearest after this node in the order of ids are asked, so
    /// that everybody is asked by a few.
    pub(super) fn apply_endpoints(
        &mut self,
        now: Moment,
        own: NodeId,
        l2_endpoints: &[(NodeId, L2Endpoint)],
        trusted: impl Fn(&NodeId) -> bool,
    ) {
        let mut order: Vec<&(NodeId, L2Endpoint)> = l2_endpoints.iter().collect();
        order.sort_by_key(|(node, endpoint)| (!trusted(node), *node < own, *node, endpoint.address));
        order.dedup_by_key(|(node, _)| *node);
        order.truncate(ASKED);
        self.peers.retain(|address, peer| {
            order.iter().any(|(node, endpoint)| {
                *node == peer.node && endpoint.address == *address && endpoint.mac == peer.mac
            })
        });
        for (node, endpoint) in order {
            let trusted = trusted(node);
            self.peers.entry(endpoint.address).and_modify(|peer| peer.trusted = trusted).or_insert(
                SegmentPeer {
                    node: *node,
                    trusted,
                    mac: endpoint.mac,
                    unanswered: 0,
                    proven: false,
                    wrong: None,
                    next: now,
                },
            );
        }
    }

    /// Addresses to ask for now.
    pub(super) fn due(&mut self, now: Moment) -> Vec<IpAddr> {
        let mut due = Vec::new();
        for (address, peer) in self.peers.iter_mut().filter(|(_, peer)| now >= peer.next) {
            peer.unanswered = peer.unanswered.saturating_add(1);
            if peer.unanswered > ENOUGH {
                peer.proven = false;
            }
            let wait = if peer.unanswered > 2 * ENOUGH { PATIENT } else { EAGER };
            peer.next = now.after(wait);
            due.push(*address);
        }
        due
    }

    /// When something is due next.
    pub(super) fn deadline(&self) -> Option<Moment> {
        let alone = (!self.proven && self.peers.is_empty()).then(|| self.since.after(ALONE));
        self.peers.values().map(|peer| peer.next).chain(alone).min()
    }

    /// Someone says to have this address.
    pub(super) fn answered(&mut self, now: Moment, address: IpAddr, mac: Mac) {
        let Some(peer) = self.peers.get_mut(&address) else { return };
        if peer.mac != mac {
            peer.wrong = Some(mac);
            return;
        }
        *peer =
            SegmentPeer { unanswered: 0, proven: true, wrong: None, next: now.after(AGAIN), ..peer.clone() };
        self.proven = true;
    }

    /// What is known by now. `heard`: whether a peer is heard by the link, so that its silence here means
    /// something; `name`: what to call it.
    pub(super) fn verdict(
        &mut self,
        now: Moment,
        interface: &str,
        heard: impl Fn(&NodeId) -> bool,
        name: impl Fn(&NodeId) -> String,
    ) -> Result<(), Unfit> {
        if self.peers.values().any(|peer| peer.proven) {
            return Ok(());
        }
        let speaks =
            |peer: &SegmentPeer| peer.wrong.is_some() || peer.unanswered > ENOUGH && heard(&peer.node);
        let against = self.peers.iter().filter(|(_, peer)| speaks(peer));
        // One worker may only say that it is here.
        let believed = against.clone().any(|(_, peer)| peer.trusted) || against.clone().count() >= 2;
        let peers = against.filter(|_| believed);
        if let Some((address, wrong)) = peers.clone().find_map(|(address, peer)| Some((address, peer.wrong?)))
        {
            self.proven = false;
            let reason = format_args!(
                "no L2 on {interface}: {address} answers from MAC {wrong}, which is not its node's"
            );
            return Err(Unfit::new(Cause::NoSegment, reason));
        }
        let silent: Vec<String> =
            peers.map(|(address, peer)| format!("{} ({address})", name(&peer.node))).collect();
        if !silent.is_empty() {
            self.proven = false;
            let silent = silent.join(", ");
            let reason = format_args!("no L2 on {interface}: no answer to ARP from {silent}");
            return Err(Unfit::new(Cause::NoSegment, reason));
        }
        // Nobody to ask, or all of them are down: neither speaks against what was known.
        let nobody = self.peers.values().all(|peer| !heard(&peer.node) || speaks(peer));
        if self.proven || nobody && now.since(self.since) >= ALONE {
            self.proven = true;
            return Ok(());
        }
        let reason = format_args!("the segment on {interface} is being tested");
        Err(Unfit::new(Cause::SegmentUntested, reason))
    }
}

#[cfg(test)]
#[path = "segment_tests.rs"]
mod tests;
