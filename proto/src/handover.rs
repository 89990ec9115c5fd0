//! What an agent hands to the process that takes its place, besides the descriptors: fields as in [`crate::tlv`].
//!
//! It is read by the version before and by the version after. A field that is not known is passed over, except in a
//! connection: one with a field from [`NEEDED`] on that is not known can't be continued and is left out.
//! [`VERSION`] is raised when an older agent must not read the rest at all.

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::str::FromStr;

use crate::cause::{Cause, Detail};
use crate::health::{Readiness, ServiceHealth};
use crate::next_wire;
use crate::node::{Name, NodeId};
use crate::service::ServiceName;
use crate::signed_record::RecordVersion;
use crate::time::UnixMs;
use crate::tlv::{TlvReader, TlvWriter, number, numbers};

/// Version of this form.
pub const VERSION: u64 = 1;

/// Fields of a connection from this tag up to [`NEEDED_END`] must be understood by who continues it.
pub const NEEDED: u8 = 64;

/// The first tag after them.
pub const NEEDED_END: u8 = 128;

/// What every hand-over begins with.
const MAGIC: &[u8] = b"agent hand-over\n";

/// Where a descriptor stands in [`HandOver::descriptors`].
pub type Slot = u64;

/// Everything that goes over.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct HandOver {
    /// Version of the agent that hands over.
    pub agent: String,
    /// When the first of those that have replaced each other started.
    pub began: UnixMs,
    /// When this was written.
    pub at: UnixMs,
    /// The boot of its datagrams, and a number above all that they had: never used again, or a seal would be.
    pub boot: Option<(u64, u64)>,
    /// Version of the node's last signed record.
    pub record: RecordVersion,
    /// The descriptors, as their carrier numbers them.
    pub descriptors: Vec<u64>,
    /// The link's port: UDP, then TCP.
    pub link: Vec<Slot>,
    /// The proxied services.
    pub services: Vec<HandedService>,
    /// Virtual IPs that the node owns, with their epochs.
    pub vips: Vec<(IpAddr, u64)>,
    /// What the last checks of the node's own services said.
    pub health: Vec<(ServiceName, ServiceHealth)>,
    /// Connections that can't be continued.
    pub left_out: usize,
}

/// A service of the proxy.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct HandedService {
    /// Its name; `None` only before it is read.
    pub name: Option<ServiceName>,
    /// Listening sockets, by the configured address.
    pub listeners: Vec<(SocketAddr, Slot)>,
    /// Counters, in an order that only grows.
    pub counters: Vec<u64>,
    /// The same of each backend.
    pub backends: Vec<HandedBackend>,
    /// Its connections.
    pub connections: Vec<HandedConnection>,
}

/// The counters of a backend.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HandedBackend {
    /// Its node.
    pub node: NodeId,
    /// The node's name.
    pub name: Name,
    /// Counters, in an order that only grows.
    pub counters: Vec<u64>,
}

/// A client and, once it has one, its backend.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct HandedConnection {
    /// The client's socket.
    pub client: Slot,
    /// The backend's socket, its node and the node's name; `None`: it is still to be dialled.
    pub backend: Option<(Slot, NodeId, Name)>,
    /// From the client to the backend.
    pub up: HandedDirection,
    /// From the backend to the client.
    pub down: HandedDirection,
    /// What the access log needs; `None`: it is off.
    pub log: Option<HandedLog>,
}

/// One direction of a connection.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct HandedDirection {
    /// Bytes that were read and not written. Without a backend: all that were read.
    pub left: Vec<u8>,
    /// Bytes that were written.
    pub moved: u64,
    /// How far it is.
    pub stage: HandedStage,
}

/// How far a direction is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum HandedStage {
    /// More may come.
    #[default]
    Open,
    /// FIN was read, and is forwarded once nothing is left.
    Ending,
    /// FIN was forwarded.
    Ended,
}

/// What the access log needs of a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct HandedLog {
    /// When the client was accepted.
    pub came: UnixMs,
    /// How long ago that was when this was written, in milliseconds.
    pub age_ms: u64,
    /// How long connecting took, in milliseconds; `None`: not connected yet.
    pub connect_ms: Option<u64>,
    /// Further attempts to connect.
    pub retries: u32,
    /// The backend is not the first that was tried.
    pub moved: bool,
}

/// A hand-over that can't be read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum BadHandOver {
    /// It is something else.
    #[error("this is no hand-over of an agent")]
    NotOne,
    /// An older agent must not read it.
    #[error("the hand-over has version {0}, and this agent knows {VERSION}")]
    Version(u64),
}

mod tag {
    pub(super) const VERSION: u8 = 1;
    pub(super) const AGENT: u8 = 2;
    pub(super) const TIMES: u8 = 3;
    pub(super) const RECORD: u8 = 4;
    pub(super) const DESCRIPTORS: u8 = 5;
    pub(super) const LINK: u8 = 6;
    pub(super) const SERVICE: u8 = 7;
    pub(super) const VIP: u8 = 8;
    pub(super) const BOOT: u8 = 9;
    pub(super) const HEALTH: u8 = 15;

    pub(super) const NAME: u8 = 1;
    pub(super) const LISTENER: u8 = 2;
    pub(super) const COUNTERS: u8 = 3;
    pub(super) const EPOCH: u8 = 3;
    pub(super) const CHECK: u8 = 3;
    pub(super) const BACKEND: u8 = 4;
    pub(super) const CONNECTION: u8 = 5;

    pub(super) const SOCKETS: u8 = 2;
    pub(super) const NODE: u8 = 4;
    pub(super) const UP: u8 = 5;
    pub(super) const DOWN: u8 = 6;
    pub(super) const LOG: u8 = 7;

    pub(super) const LEFT: u8 = 1;
    pub(super) const MOVED: u8 = 2;
    pub(super) const STAGE: u8 = 3;
}

impl HandOver {
    /// The place of a descriptor, which is handed over.
    pub fn place(&mut self, descriptor: u64) -> Slot {
        self.descriptors.push(descriptor);
        self.descriptors.len() as Slot - 1
    }

    /// Writes it.
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut out = TlvWriter::default();
        out.number(tag::VERSION, VERSION);
        next_wire::topology(&mut out);
        out.bytes(tag::AGENT, self.agent.as_bytes());
        out.numbers(tag::TIMES, &[self.began.0, self.at.0]);
        if let Some((boot, sequence)) = self.boot {
            out.numbers(tag::BOOT, &[boot, sequence]);
        }
        out.numbers(tag::RECORD, &[self.record.generation, self.record.sequence]);
        out.numbers(tag::DESCRIPTORS, &self.descriptors);
        out.numbers(tag::LINK, &self.link);
        for service in &self.services {
            out.fields(tag::SERVICE, |out| service.write(out));
        }
        for (address, epoch) in &self.vips {
            write_at(&mut out, tag::VIP, address, (tag::EPOCH, *epoch));
        }
        for (name, health) in &self.health {
            let (cause, argument) = health.cause.to_wire();
            let readiness = health.readiness.code().into();
            out.fields(tag::HEALTH, |out| {
                out.bytes(tag::NAME, name.as_str().as_bytes());
                out.numbers(tag::CHECK, &[readiness, cause.into(), argument.into(), health.since.0]);
            });
        }
        [MAGIC, &out.finish()].concat()
    }

    /// Reads it.
    ///
    /// # Errors
    /// It is none, or of a version that this one must not read.
    pub fn from_bytes(bytes: &[u8]) -> Result<HandOver, BadHandOver> {
        let fields = TlvReader::new(bytes.strip_prefix(MAGIC).ok_or(BadHandOver::NotOne)?);
        let version =
            fields.clone().find(|(tag, _)| *tag == tag::VERSION).and_then(|(_, value)| number(value));
        match version.ok_or(BadHandOver::NotOne)? {
            0 => return Err(BadHandOver::NotOne),
            VERSION => {}
            later => return Err(BadHandOver::Version(later)),
        }
        let mut read = HandOver::default();
        for (tag, value) in fields {
            match tag {
                tag::AGENT => read.agent = text(value).unwrap_or_default(),
                tag::TIMES => (read.began, read.at) = (UnixMs(nth(value, 0)), UnixMs(nth(value, 1))),
                tag::BOOT => read.boot = Some((nth(value, 0), nth(value, 1))),
                tag::RECORD => {
                    read.record = RecordVersion { generation: nth(value, 0), sequence: nth(value, 1) };
                }
                tag::DESCRIPTORS => read.descriptors = numbers(value).collect(),
                tag::LINK => read.link = numbers(value).collect(),
                tag::SERVICE => {
                    let (service, left_out) = HandedService::read(value);
                    read.left_out += left_out;
                    read.services.extend(service);
                }
                tag::VIP => read.vips.extend(read_at(value, tag::EPOCH)),
                tag::HEALTH => read.health.extend(read_health(value)),
                _ => {}
            }
        }
        Ok(read)
    }
}

impl HandedService {
    fn write(&self, out: &mut TlvWriter) {
        out.bytes(tag::NAME, self.name.as_ref().map_or("", ServiceName::as_str).as_bytes());
        for (address, slot) in &self.listeners {
            write_at(out, tag::LISTENER, address, (tag::SOCKETS, *slot));
        }
        out.numbers(tag::COUNTERS, &self.counters);
        for backend in &self.backends {
            out.fields(tag::BACKEND, |out| {
                out.bytes(tag::NAME, backend.name.as_str().as_bytes());
                out.numbers(tag::COUNTERS, &backend.counters);
                out.bytes(tag::NODE, &backend.node.0);
            });
        }
        for connection in &self.connections {
            out.fields(tag::CONNECTION, |out| connection.write(out));
        }
    }

    /// Reads it, and counts connections that can't be continued. Without a valid name those are all.
    fn read(value: &[u8]) -> (Option<HandedService>, usize) {
        let (mut read, mut left_out) = (HandedService::default(), 0);
        for (tag, value) in TlvReader::new(value) {
            match tag {
                tag::NAME => read.name = text(value).and_then(|name| name.parse().ok()),
                tag::LISTENER => read.listeners.extend(read_at(value, tag::SOCKETS)),
                tag::COUNTERS => read.counters = numbers(value).collect(),
                tag::BACKEND => {
                    let (mut counters, mut name, mut node) = (Vec::new(), None, None);
                    for (tag, value) in TlvReader::new(value) {
                        match tag {
                            tag::NAME => name = text(value).and_then(|name| name.parse().ok()),
                            tag::COUNTERS => counters = numbers(value).collect(),
                            tag::NODE => node = value.try_into().ok().map(NodeId),
                            _ => {}
                        }
                    }
                    let whole = node.zip(name);
                    read.backends.extend(whole.map(|(node, name)| HandedBackend { node, name, counters }));
                }
                tag::CONNECTION => match HandedConnection::read(value) {
                    Some(connection) => read.connections.push(connection),
                    None => left_out += 1,
                },
                _ => {}
            }
        }
        match read.name {
            Some(_) => (Some(read), left_out),
            None => (None, left_out + read.connections.len()),
        }
    }
}

impl HandedConnection {
    fn write(&self, out: &mut TlvWriter) {
        next_wire::topology(out);
        match &self.backend {
            None => out.number(tag::SOCKETS, self.client),
            Some((slot, node, name)) => {
                out.numbers(tag::SOCKETS, &[self.client, *slot]);
                out.bytes(tag::NODE, &node.0);
                out.bytes(tag::NAME, name.as_str().as_bytes());
            }
        }
        self.up.write(tag::UP, out);
        self.down.write(tag::DOWN, out);
        if let Some(log) = &self.log {
            let connect = log.connect_ms.map_or(0, |ms| ms.saturating_add(1));
            let (retries, moved) = (u64::from(log.retries), u64::from(log.moved));
            out.numbers(tag::LOG, &[log.came.0, log.age_ms, connect, retries, moved]);
        }
    }

    fn read(value: &[u8]) -> Option<HandedConnection> {
        let (mut read, mut sockets, mut node, mut name) =
            (HandedConnection::default(), Vec::new(), None, None);
        for (tag, value) in TlvReader::new(value) {
            match tag {
                tag::SOCKETS => sockets = numbers(value).collect(),
                tag::NODE => node = Some(NodeId(value.try_into().ok()?)),
                tag::NAME => name = Some(text(value)?.parse().ok()?),
                tag::UP => read.up = HandedDirection::read(value)?,
                tag::DOWN => read.down = HandedDirection::read(value)?,
                tag::LOG => {
                    read.log = Some(HandedLog {
                        came: UnixMs(nth(value, 0)),
                        age_ms: nth(value, 1),
                        connect_ms: nth(value, 2).checked_sub(1),
                        retries: u32::try_from(nth(value, 3)).unwrap_or(u32::MAX),
                        moved: nth(value, 4) != 0,
                    });
                }
                NEEDED..NEEDED_END => return None,
                _ => {}
            }
        }
        read.client = *sockets.first()?;
        read.backend = match (sockets.get(1), node, name) {
            (Some(slot), Some(node), Some(name)) => Some((*slot, node, name)),
            (None, None, None) => None,
            _ => return None,
        };
        Some(read)
    }
}

impl HandedDirection {
    fn write(&self, tag: u8, out: &mut TlvWriter) {
        if *self == HandedDirection::default() {
            return;
        }
        out.fields(tag, |out| {
            out.bytes(tag::LEFT, &self.left);
            out.number(tag::MOVED, self.moved);
            out.number(tag::STAGE, self.stage as u64);
        });
    }

    fn read(value: &[u8]) -> Option<HandedDirection> {
        let mut read = HandedDirection::default();
        for (tag, value) in TlvReader::new(value) {
            match tag {
                tag::LEFT => read.left = value.to_vec(),
                tag::MOVED => read.moved = number(value)?,
                tag::STAGE => {
                    read.stage = match number(value)? {
                        0 => HandedStage::Open,
                        1 => HandedStage::Ending,
                        2 => HandedStage::Ended,
                        _ => return None,
                    }
                }
                NEEDED..NEEDED_END => return None,
                _ => {}
            }
        }
        Some(read)
    }
}

/// A field of an address, and a number that belongs to it.
fn write_at(out: &mut TlvWriter, field: u8, address: &impl fmt::Display, (tag, number): (u8, u64)) {
    out.fields(field, |out| {
        out.bytes(tag::NAME, address.to_string().as_bytes());
        out.number(tag, number);
    });
}

/// What such a field holds.
fn read_at<T: FromStr>(value: &[u8], wanted: u8) -> Option<(T, u64)> {
    let find = |wanted| TlvReader::new(value).find(|(tag, _)| *tag == wanted);
    let address = find(tag::NAME).and_then(|(_, value)| text(value)?.parse().ok());
    address.zip(find(wanted).and_then(|(_, value)| number(value)))
}

/// What the last check of a service said, without details for people.
fn read_health(value: &[u8]) -> Option<(ServiceName, ServiceHealth)> {
    let find = |wanted| TlvReader::new(value).find(|(tag, _)| *tag == wanted);
    let name = find(tag::NAME).and_then(|(_, value)| text(value)?.parse().ok())?;
    let (_, check) = find(tag::CHECK)?;
    let short = |place| u16::try_from(nth(check, place)).ok();
    let health = ServiceHealth {
        readiness: Readiness::of_code(nth(check, 0)),
        cause: Cause::from_wire(short(1)?, short(2)?),
        detail: Detail::default(),
        since: UnixMs(nth(check, 3)),
    };
    Some((name, health))
}

fn text(value: &[u8]) -> Option<String> {
    std::str::from_utf8(value).ok().map(str::to_owned)
}

/// The number at a place of a list; 0 beyond its end.
fn nth(value: &[u8], place: usize) -> u64 {
    numbers(value).nth(place).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn whole() -> HandOver {
        let held = HandedConnection {
            client: 3,
            backend: Some((4, NodeId([7; NodeId::LEN]), "m1".parse().unwrap())),
            up: HandedDirection { left: b"GET /".to_vec(), moved: 300, stage: HandedStage::Ending },
            down: HandedDirection { left: vec![], moved: 70_000, stage: HandedStage::Open },
            log: Some(HandedLog {
                came: UnixMs(1_800_000_000_000),
                age_ms: 5_000,
                connect_ms: Some(0),
                retries: 1,
                moved: true,
            }),
        };
        let new = HandedConnection {
            client: 5,
            up: HandedDirection { left: b"\x16\x03".to_vec(), ..HandedDirection::default() },
            ..HandedConnection::default()
        };
        let service = HandedService {
            name: Some(ServiceName::kube_api()),
            listeners: vec![(([127, 0, 0, 1], 16443).into(), 2)],
            counters: vec![9, 200],
            backends: vec![HandedBackend {
                node: NodeId([7; NodeId::LEN]),
                name: "m1".parse().unwrap(),
                counters: vec![8, 0, 130],
            }],
            connections: vec![held, new],
        };
        HandOver {
            agent: "1.2.3".to_owned(),
            began: UnixMs(1_800_000_000_000),
            at: UnixMs(1_800_000_005_000),
            boot: Some((u64::MAX, 5_000)),
            record: RecordVersion { generation: 1_800_000_000, sequence: 12 },
            descriptors: vec![11, 12, 20, 300, 301, 302],
            link: vec![0, 1],
            services: vec![service],
            vips: vec![([10, 0, 0, 9].into(), 42)],
            health: vec![(
                ServiceName::kube_api(),
                ServiceHealth {
                    readiness: Readiness::NotReady,
                    cause: Cause::Http(500),
                    detail: Detail::default(),
                    since: UnixMs(1_800_000_004_000),
                },
            )],
            left_out: 0,
        }
    }

    #[test]
    fn golden_bytes() {
        let stored = include_str!("../tests/golden/handover.hex").trim_end();
        assert_eq!(data_encoding::HEXLOWER.encode(&whole().to_bytes()), stored);
        assert_eq!(HandOver::from_bytes(&whole().to_bytes()), Ok(whole()));
    }

    /// A hand-over with one connection of these fields.
    fn with(connection: impl FnOnce(&mut TlvWriter)) -> HandOver {
        let mut out = TlvWriter::default();
        out.number(tag::VERSION, VERSION);
        out.bytes(99, b"later");
        out.fields(tag::SERVICE, |out| {
            out.bytes(tag::NAME, b"kube-api");
            out.bytes(199, b"later");
            out.fields(tag::CONNECTION, connection);
        });
        HandOver::from_bytes(&[MAGIC, &out.finish()].concat()).unwrap()
    }

    #[test]
    fn what_is_not_understood_costs_that_connection_and_no_other_thing() {
        let node = [7; NodeId::LEN];
        type Fields<'a> = &'a dyn Fn(&mut TlvWriter);
        let table: [(&str, Fields<'_>, bool); 9] = [
            ("a client alone", &|_| {}, true),
            ("a later field that is only more", &|out| out.bytes(200, b"x"), true),
            ("a later field that is needed", &|out| out.bytes(NEEDED, b"x"), false),
            ("the last of those", &|out| out.bytes(NEEDED_END - 1, b"x"), false),
            ("a backend without its node", &|out| out.numbers(tag::SOCKETS, &[1, 2]), false),
            ("a node without its socket", &|out| out.bytes(tag::NODE, &node), false),
            ("a name that is none", &|out| out.bytes(tag::NAME, b"Not A Name"), false),
            ("a later stage", &|out| out.fields(tag::UP, |out| out.number(tag::STAGE, 3)), false),
            ("a direction that needs more", &|out| out.fields(tag::DOWN, |out| out.number(NEEDED, 3)), false),
        ];
        for (what, fields, is_kept) in table {
            let read = with(|out| {
                out.numbers(tag::SOCKETS, &[1]);
                fields(out);
            });
            assert_eq!(read.services[0].connections.len(), usize::from(is_kept), "{what}");
            assert_eq!(read.left_out, usize::from(!is_kept), "{what}");
        }
        assert_eq!(with(|_| {}).left_out, 1, "no client");
    }

    #[test]
    fn another_version_and_something_else_are_refused() {
        let later = |version| {
            let mut out = TlvWriter::default();
            out.number(tag::VERSION, version);
            HandOver::from_bytes(&[MAGIC, &out.finish()].concat())
        };
        assert_eq!(later(VERSION + 1), Err(BadHandOver::Version(VERSION + 1)));
        assert_eq!(later(0), Err(BadHandOver::NotOne));
        assert_eq!(HandOver::from_bytes(MAGIC), Err(BadHandOver::NotOne));
        assert_eq!(HandOver::from_bytes(b"something else"), Err(BadHandOver::NotOne));
        let bytes = whole().to_bytes();
        for cut in 0..bytes.len() {
            let _ = HandOver::from_bytes(&bytes[..cut]);
        }
    }
}
