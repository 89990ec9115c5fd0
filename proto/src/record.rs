//! The record that a node publishes, and its encoding: the body of a [`crate::signed_record::SignedRecord`].
//!
//! A record is a list of fields that grows: a reader skips unknown fields, and within known ones only what it
//! does not understand, so that a member of a later version, or one with a single odd value, is never missing
//! as a whole. A field with several values (an address, an offer) is repeated. Records are forwarded as their
//! node has signed them, so nothing is lost on the way.
//!
//! A node's name is not part of it: the cluster document has it.

use std::collections::BTreeMap;
use std::fmt;
use std::net::{IpAddr, SocketAddr};

use crate::arp::Mac;
use crate::cause::{Cause, Detail, short_text};
use crate::health::{Readiness, ServiceHealth};
use crate::next_wire::{self, RecordTags};
use crate::node::{Name, NodeId};
use crate::service::{MAX_WEIGHT, ServiceName};
use crate::time::UnixMs;
use crate::tlv::{TlvReader, TlvWriter, number};
use crate::unfit::Unfit;

/// Format of the records that this version writes. It is raised only when the meaning of a field has changed;
/// new fields need no new format.
pub const FORMAT: u8 = 1;

/// Most addresses that a node may publish; more are a mistake or an attack on memory.
const MAX_ADDRESSES: usize = 8;
/// Most services that a node may offer.
const MAX_SERVICES: usize = 64;
/// Most links that a node may publish: only masters are pulsed, and few clusters have more than nine.
const MAX_LINKS: usize = 16;
/// Most segments that a node may publish: one for each virtual IP at most.
const MAX_SEGMENTS: usize = 16;
/// Most virtual IPs that a node may own, or report why it can't own.
const MAX_VIPS: usize = 64;
/// Most node-local addresses: one of each family.
const MAX_NODE_LOCAL: usize = 2;

/// A backend that a node offers for one service.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServiceOffer {
    /// Its address.
    pub address: SocketAddr,
    /// Share among equals.
    pub weight: u16,
    /// Result of the node's own checks.
    pub health: ServiceHealth,
    /// Duration of the last check, in milliseconds, rounded.
    pub check_ms: Option<u32>,
}

/// A node's link to another, rounded: it changes seldom, so that gossip stays quiet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PeerLink {
    /// The other answers.
    pub alive: bool,
    /// Round-trip time in microseconds, when known.
    pub rtt_us: Option<u32>,
    /// Share of pulses without an answer, in thousandths.
    pub loss_permille: u16,
}

/// A node's endpoint on the segment of a virtual IP, so that others can test whether they are on it too.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct L2Endpoint {
    /// Its interface there.
    pub interface: String,
    /// That interface's Ethernet address.
    pub mac: Mac,
    /// Its own address there.
    pub address: IpAddr,
    /// Length of that address's prefix.
    pub prefix: u8,
}

/// A virtual IP that a node owns.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct VipOwnership {
    /// The epoch of its ownership.
    pub epoch: u64,
    /// Since when.
    pub since: UnixMs,
}

/// Everything that a node publishes about itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NodeRecord {
    /// Its name, from the cluster document.
    pub name: Name,
    /// Version of its agent.
    pub version: String,
    /// The transport versions that it speaks, lowest and highest; 0 and 0: unknown.
    pub link_versions: (u8, u8),
    /// Addresses of its transport port; empty while its network is down.
    pub addresses: Vec<SocketAddr>,
    /// Interface that carries the mesh; may be empty.
    pub interface: String,
    /// When its agent started.
    pub started: UnixMs,
    /// Hash of its cluster document.
    pub document: String,
    /// Since when it accepts no new connections.
    pub draining: Option<UnixMs>,
    /// It has stopped on purpose.
    pub left: bool,
    /// Its offers.
    pub services: BTreeMap<ServiceName, ServiceOffer>,
    /// Its links to others.
    pub links: BTreeMap<NodeId, PeerLink>,
    /// Its endpoints on the segments of virtual IPs.
    pub l2_endpoints: Vec<L2Endpoint>,
    /// The virtual IPs that it owns.
    pub vips: BTreeMap<IpAddr, VipOwnership>,
    /// Why it can't own a virtual IP that it is a candidate for.
    pub unfit: BTreeMap<IpAddr, Unfit>,
    /// The node-local addresses on which its proxy listens for kube-api.
    pub node_local: Vec<IpAddr>,
}

/// The fields of a record, by tag.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub enum RecordField {
    /// The format, a number.
    Format = 1,
    /// The agent's version.
    Version = 2,
    /// The transport versions: two bytes.
    Speaks = 3,
    /// One address, 6 or 18 bytes.
    Address = 4,
    /// The mesh's interface.
    Interface = 5,
    /// When the agent started.
    Started = 6,
    /// The document's hash.
    Document = 7,
    /// Since when it drains.
    Draining = 8,
    /// It has stopped: empty.
    Left = 9,
    /// One offer: fields.
    Offer = 10,
    /// One link: id, a byte that is 1 when it answers, loss in two bytes, rtt in four.
    Hears = 11,
    /// One L2 endpoint: fields.
    Segment = 12,
    /// One virtual IP that it owns: fields.
    Vip = 13,
    /// One that it can't own: fields.
    Unfit = 14,
    /// One node-local address that it serves, 4 or 16 bytes.
    NodeLocal = 15,
}

impl RecordField {
    const ALL: [RecordField; 15] = [
        RecordField::Format,
        RecordField::Version,
        RecordField::Speaks,
        RecordField::Address,
        RecordField::Interface,
        RecordField::Started,
        RecordField::Document,
        RecordField::Draining,
        RecordField::Left,
        RecordField::Offer,
        RecordField::Hears,
        RecordField::Segment,
        RecordField::Vip,
        RecordField::Unfit,
        RecordField::NodeLocal,
    ];

    fn of_tag(tag: u8) -> Option<RecordField> {
        RecordField::ALL.into_iter().find(|field| *field as u8 == tag)
    }
}

impl fmt::Display for RecordField {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            RecordField::Format => "its format",
            RecordField::Version => "its version",
            RecordField::Speaks => "its protocol versions",
            RecordField::Address => "an address",
            RecordField::Interface => "its interface",
            RecordField::Started => "its start time",
            RecordField::Document => "its document",
            RecordField::Draining => "its drain state",
            RecordField::Left => "that it stopped",
            RecordField::Offer => "an offer",
            RecordField::Hears => "a peer link",
            RecordField::Segment => "a segment",
            RecordField::Vip => "a virtual IP that it owns",
            RecordField::Unfit => "a virtual IP that it cannot own",
            RecordField::NodeLocal => "a node-local address",
        })
    }
}

// The fields of an offer.
const NAME: u8 = 1;
const ADDRESS: u8 = 2;
const WEIGHT: u8 = 3;
const READINESS: u8 = 4;
const SINCE: u8 = 5;
const CAUSE: u8 = 6;
const DETAIL: u8 = 7;
const CHECK_MS: u8 = 8;
const TAGS: RecordTags =
    RecordTags { offer: RecordField::Offer as u8, of_offer: [NAME, ADDRESS, WEIGHT, READINESS, CAUSE] };
// Those of a segment.
const INTERFACE: u8 = 1;
const MAC: u8 = 2;
const IP: u8 = 3;
const PREFIX: u8 = 4;
// Those of a virtual IP.
const VIP: u8 = 1;
const EPOCH: u8 = 2;
const OWNED_SINCE: u8 = 3;
const WHY: u8 = 2;
const WHY_CAUSE: u8 = 3;

impl NodeRecord {
    /// An empty record.
    pub fn new(name: Name) -> NodeRecord {
        NodeRecord {
            name,
            version: String::new(),
            link_versions: (0, 0),
            addresses: Vec::new(),
            interface: String::new(),
            started: UnixMs(0),
            document: String::new(),
            draining: None,
            left: false,
            services: BTreeMap::new(),
            links: BTreeMap::new(),
            l2_endpoints: Vec::new(),
            vips: BTreeMap::new(),
            unfit: BTreeMap::new(),
            node_local: Vec::new(),
        }
    }

    /// The record as the body to sign.
    pub fn to_body(&self) -> Vec<u8> {
        let mut out = TlvWriter::default();
        out.number(RecordField::Format as u8, FORMAT.into());
        out.bytes(RecordField::Version as u8, short_text(&self.version).as_bytes());
        out.bytes(RecordField::Speaks as u8, &[self.link_versions.0, self.link_versions.1]);
        for address in self.addresses.iter().take(MAX_ADDRESSES) {
            out.bytes(RecordField::Address as u8, &write_socket(*address));
        }
        out.bytes(RecordField::Interface as u8, short_text(&self.interface).as_bytes());
        out.number(RecordField::Started as u8, self.started.0);
        out.bytes(RecordField::Document as u8, short_text(&self.document).as_bytes());
        if let Some(since) = self.draining {
            out.number(RecordField::Draining as u8, since.0);
        }
        if self.left {
            out.bytes(RecordField::Left as u8, &[]);
        }
        for (name, offer) in self.services.iter().take(MAX_SERVICES) {
            out.fields(RecordField::Offer as u8, |out| write_offer(out, name, offer));
        }
        for (id, peer_link) in self.links.iter().take(MAX_LINKS) {
            let mut bytes = id.0.to_vec();
            bytes.push(peer_link.alive.into());
            bytes.extend_from_slice(&peer_link.loss_permille.to_be_bytes());
            bytes.extend_from_slice(&peer_link.rtt_us.unwrap_or(u32::MAX).to_be_bytes());
            out.bytes(RecordField::Hears as u8, &bytes);
        }
        for endpoint in self.l2_endpoints.iter().take(MAX_SEGMENTS) {
            out.fields(RecordField::Segment as u8, |out| {
                out.bytes(INTERFACE, short_text(&endpoint.interface).as_bytes());
                out.bytes(MAC, &endpoint.mac.0);
                out.bytes(IP, &write_ip(endpoint.address));
                out.number(PREFIX, endpoint.prefix.into());
            });
        }
        for (address, claim) in self.vips.iter().take(MAX_VIPS) {
            out.fields(RecordField::Vip as u8, |out| {
                out.bytes(VIP, &write_ip(*address));
                out.number(EPOCH, claim.epoch);
                out.number(OWNED_SINCE, claim.since.0);
            });
        }
        for (address, why) in self.unfit.iter().take(MAX_VIPS) {
            out.fields(RecordField::Unfit as u8, |out| {
                out.bytes(VIP, &write_ip(*address));
                out.bytes(WHY, short_text(&why.to_string()).as_bytes());
                if let Some(cause) = why.cause_bytes() {
                    out.bytes(WHY_CAUSE, &cause);
                }
            });
        }
        for address in self.node_local.iter().take(MAX_NODE_LOCAL) {
            out.bytes(RecordField::NodeLocal as u8, &write_ip(*address));
        }
        let address = self.addresses.first().map(|address| write_socket(*address));
        next_wire::record(&mut out, &TAGS, address.as_deref());
        out.finish()
    }

    /// Reads a body. What is not understood or exceeds a limit is skipped and returned.
    pub fn from_body(name: Name, body: &[u8]) -> (NodeRecord, Vec<RecordField>) {
        let mut record = NodeRecord::new(name);
        let mut left_out = Vec::new();
        for (tag, value) in TlvReader::new(body) {
            let Some(field) = RecordField::of_tag(tag) else { continue };
            if record.read(field, value).is_none() && !left_out.contains(&field) {
                left_out.push(field);
            }
        }
        (record, left_out)
    }

    fn read(&mut self, field: RecordField, value: &[u8]) -> Option<()> {
        match field {
            RecordField::Format => {
                number(value)?;
            }
            RecordField::Version => self.version = read_text(value)?,
            RecordField::Speaks => self.link_versions = (*value.first()?, *value.get(1)?),
            RecordField::Address => push(&mut self.addresses, MAX_ADDRESSES, read_socket(value)?)?,
            RecordField::Interface => self.interface = read_text(value)?,
            RecordField::Started => self.started = UnixMs(number(value)?),
            RecordField::Document => self.document = read_text(value)?,
            RecordField::Draining => self.draining = Some(UnixMs(number(value)?)),
            RecordField::Left => self.left = true,
            RecordField::Offer => insert(&mut self.services, MAX_SERVICES, read_offer(value)?)?,
            RecordField::Hears => insert(&mut self.links, MAX_LINKS, read_link(value)?)?,
            RecordField::Segment => push(&mut self.l2_endpoints, MAX_SEGMENTS, read_segment(value)?)?,
            RecordField::Vip => insert(&mut self.vips, MAX_VIPS, read_claim(value)?)?,
            RecordField::Unfit => insert(&mut self.unfit, MAX_VIPS, read_unfit(value)?)?,
            RecordField::NodeLocal => push(&mut self.node_local, MAX_NODE_LOCAL, read_ip(value)?)?,
        }
        Some(())
    }
}

fn push<T>(list: &mut Vec<T>, most: usize, value: T) -> Option<()> {
    (list.len() < most).then(|| list.push(value))
}

fn insert<K: Ord, V>(map: &mut BTreeMap<K, V>, most: usize, (key, value): (K, V)) -> Option<()> {
    (map.len() < most && !map.contains_key(&key)).then(|| map.insert(key, value)).map(drop)
}

/// The value of one field among others.
fn field(value: &[u8], tag: u8) -> Option<&[u8]> {
    TlvReader::new(value).find(|(one, _)| *one == tag).map(|(_, value)| value)
}

fn read_text(value: &[u8]) -> Option<String> {
    Some(short_text(std::str::from_utf8(value).ok()?))
}

fn write_ip(ip: IpAddr) -> Vec<u8> {
    match ip {
        IpAddr::V4(ip) => ip.octets().to_vec(),
        IpAddr::V6(ip) => ip.octets().to_vec(),
    }
}

fn read_ip(value: &[u8]) -> Option<IpAddr> {
    let four = <[u8; 4]>::try_from(value).map(IpAddr::from);
    four.or_else(|_| <[u8; 16]>::try_from(value).map(IpAddr::from)).ok()
}

fn write_socket(address: SocketAddr) -> Vec<u8> {
    [write_ip(address.ip()).as_slice(), &address.port().to_be_bytes()].concat()
}

fn read_socket(value: &[u8]) -> Option<SocketAddr> {
    let (ip, port) = value.split_last_chunk::<2>()?;
    Some(SocketAddr::new(read_ip(ip)?, u16::from_be_bytes(*port)))
}

fn write_offer(out: &mut TlvWriter, name: &ServiceName, offer: &ServiceOffer) {
    let ServiceOffer { address, weight, health, check_ms } = offer;
    let ServiceHealth { readiness, cause, detail, since } = health;
    out.bytes(NAME, name.as_str().as_bytes());
    out.bytes(ADDRESS, &write_socket(*address));
    out.number(WEIGHT, (*weight).into());
    out.number(READINESS, readiness.code().into());
    out.number(SINCE, since.0);
    let (code, argument) = cause.to_wire();
    out.bytes(CAUSE, &[code.to_be_bytes(), argument.to_be_bytes()].concat());
    if !detail.is_empty() || detail.revision() != 0 {
        let revision = detail.revision().to_be_bytes();
        out.bytes(DETAIL, &[revision.as_slice(), detail.to_string().as_bytes()].concat());
    }
    if let Some(ms) = check_ms {
        out.number(CHECK_MS, (*ms).into());
    }
}

fn read_offer(value: &[u8]) -> Option<(ServiceName, ServiceOffer)> {
    let name = std::str::from_utf8(field(value, NAME)?).ok()?.parse().ok()?;
    let address = read_socket(field(value, ADDRESS)?)?;
    let weight = u16::try_from(number(field(value, WEIGHT)?)?)
        .ok()
        .filter(|weight| *weight <= MAX_WEIGHT + next_wire::MORE_WEIGHT)?;
    let readiness = Readiness::of_code(number(field(value, READINESS)?)?);
    let since = UnixMs(field(value, SINCE).and_then(number).unwrap_or(0));
    let cause = field(value, CAUSE)
        .and_then(<[u8]>::first_chunk::<4>)
        .map_or(Cause::Other { code: 0, argument: 0 }, |[a, b, c, d]| {
            Cause::from_wire(u16::from_be_bytes([*a, *b]), u16::from_be_bytes([*c, *d]))
        });
    let detail = field(value, DETAIL).and_then(|value| {
        let (revision, text) = value.split_first_chunk::<2>()?;
        Some(Detail::new(u16::from_be_bytes(*revision), std::str::from_utf8(text).ok()?))
    });
    let health = ServiceHealth { readiness, cause, detail: detail.unwrap_or_default(), since };
    let check_ms = field(value, CHECK_MS).and_then(number).and_then(|ms| u32::try_from(ms).ok());
    Some((name, ServiceOffer { address, weight, health, check_ms }))
}

fn read_link(value: &[u8]) -> Option<(NodeId, PeerLink)> {
    let (id, rest) = value.split_first_chunk::<{ NodeId::LEN }>()?;
    let ([heard], rest) = rest.split_first_chunk::<1>()?;
    let (loss, rest) = rest.split_first_chunk::<2>()?;
    let loss_permille = u16::from_be_bytes(*loss);
    let rtt_us = u32::from_be_bytes(*rest.first_chunk::<4>()?);
    if loss_permille > 1000 {
        return None;
    }
    let rtt_us = (rtt_us != u32::MAX).then_some(rtt_us);
    Some((NodeId(*id), PeerLink { alive: *heard == 1, rtt_us, loss_permille }))
}

fn read_segment(value: &[u8]) -> Option<L2Endpoint> {
    let address = read_ip(field(value, IP)?)?;
    let most = if address.is_ipv4() { 32 } else { 128 };
    Some(L2Endpoint {
        interface: read_text(field(value, INTERFACE)?)?,
        mac: Mac(field(value, MAC)?.try_into().ok()?),
        address,
        prefix: u8::try_from(number(field(value, PREFIX)?)?).ok().filter(|prefix| *prefix <= most)?,
    })
}

fn read_claim(value: &[u8]) -> Option<(IpAddr, VipOwnership)> {
    let since = UnixMs(field(value, OWNED_SINCE).and_then(number).unwrap_or(0));
    Some((read_ip(field(value, VIP)?)?, VipOwnership { epoch: number(field(value, EPOCH)?)?, since }))
}

fn read_unfit(value: &[u8]) -> Option<(IpAddr, Unfit)> {
    let cause = Unfit::cause_of(field(value, WHY_CAUSE).and_then(|bytes| bytes.first_chunk()).copied());
    Some((read_ip(field(value, VIP)?)?, Unfit::new(cause, read_text(field(value, WHY)?)?)))
}

#[cfg(test)]
#[path = "record_tests.rs"]
mod tests;
