//! What nodes tell each other of a VIP: one small message, in three uses.
//!
//! ```text
//!   datagram:  version 1 | message …
//!   message:   family 1 | address 4 or 16 | purpose 1 (| node 10) | known | heard 2 | standing 1 (| reason)
//!   known:     0  or  1 held, 2 released, 3 released with successor | epoch 8 | priority 1 | owner 10
//!              (| why 1) (| successor 10)
//! ```
//!
//! Numbers are big-endian. It travels sealed, so who says it is certain and nothing is taken twice. Every
//! message carries all that its sender knows, so none depends on another and any may be lost.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::Duration;

use super::rank::Standing;
use crate::node::NodeId;

const VERSION: u8 = 1;

/// Most bytes of one datagram of messages: the link's payload with some room.
pub const MAX_BYTES: usize = 1_100;

/// Longest reason, in bytes of ASCII.
pub const MAX_REASON: usize = 80;

/// An ownership. The order is the rule of conflict: the higher stays, the lower deletes. A later epoch
/// wins; in one epoch (two claimed at once) the priority that each had, then a lot that everybody draws the
/// same. All of it travels, so that two nodes whose configuration differs for a moment still agree.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Claim {
    /// Grows with every change of owner.
    pub epoch: u64,
    /// The owner's priority when it claimed.
    pub priority: u8,
    lot: u32,
    /// The owner.
    pub owner: NodeId,
}

impl Claim {
    /// The claim of this node to this address.
    pub fn new(address: IpAddr, epoch: u64, priority: u8, owner: NodeId) -> Claim {
        Claim { epoch, priority, lot: lot(address, owner), owner }
    }
}

/// FNV-1a with a finish that spreads the last bytes: the same at every node, by chance between nodes.
fn lot(address: IpAddr, node: NodeId) -> u32 {
    let mut hash = 0xcbf2_9ce4_8422_2325_u64;
    let mut eat = |bytes: &[u8]| {
        for byte in bytes {
            hash = (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3);
        }
    };
    match address {
        IpAddr::V4(ip) => eat(&ip.octets()),
        IpAddr::V6(ip) => eat(&ip.octets()),
    }
    eat(&node.0);
    ((hash ^ (hash >> 29)).wrapping_mul(0xbf58_476d_1ce4_e5b9) >> 32) as u32
}

/// Why an owner let the address go.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Why {
    /// Its agent stops.
    Stop,
    /// It drains.
    Drain,
    /// It can't serve, or can't carry the address any more.
    Unfit,
    /// A person moved it.
    Move,
    /// A better one has been fit for the configured time.
    Preempt,
    /// A stranger answers for the address.
    Stranger,
    /// It is no candidate any more.
    Rules,
    /// Its own loop stood still for so long that others had to think it dead.
    Stall,
    /// Its agent was started again and remembers nothing.
    Restart,
}

impl Why {
    const ALL: [(Why, &str); 9] = [
        (Why::Stop, "its agent stops"),
        (Why::Drain, "it drains"),
        (Why::Unfit, "it can't serve"),
        (Why::Move, "moved by a person"),
        (Why::Preempt, "a preferred node is fit again"),
        (Why::Stranger, "a stranger answers for the address"),
        (Why::Rules, "it is no candidate any more"),
        (Why::Stall, "its agent stood still"),
        (Why::Restart, "its agent was restarted"),
    ];

    /// In words of a person.
    pub fn words(self) -> &'static str {
        Why::ALL.iter().find(|(why, _)| *why == self).map_or("", |(_, words)| words)
    }

    fn code(self) -> u8 {
        self as u8
    }

    /// One that a later version says is still a release.
    fn from_code(code: u8) -> Why {
        Why::ALL.get(usize::from(code)).map_or(Why::Unfit, |(why, _)| *why)
    }
}

/// Whether a claim still stands. A claim that is released is never held again: whoever wants the address
/// back claims anew, with a higher epoch. So a release may be believed from anybody, in any order.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Holding {
    /// Not known to be released.
    Held,
    /// The owner has deleted the address.
    Released {
        /// Why.
        why: Why,
        /// Who shall claim at once.
        successor: Option<NodeId>,
    },
}

/// The highest claim that a node knows of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Known {
    /// The claim.
    pub claim: Claim,
    /// Whether it stands.
    pub holding: Holding,
}

impl Known {
    /// The node that holds the address, as far as is known here.
    pub fn holder(&self) -> Option<NodeId> {
        (self.holding == Holding::Held).then_some(self.claim.owner)
    }
}

/// What a message is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Purpose {
    /// The sender is there.
    Beat,
    /// "How old is the owner's last beat?" It is answered at once, by everyone.
    Ask,
    /// The answer; also sent unasked to an owner that has missed a higher claim.
    Answer,
    /// To the owner: hand over to this node, a person wants it.
    Move(NodeId),
}

/// One message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Message {
    /// The VIP that it is about.
    pub vip: IpAddr,
    /// What it is for.
    pub purpose: Purpose,
    /// What the sender knows. It holds the address itself when it is the holder of this.
    pub known: Option<Known>,
    /// How long ago the sender itself heard the holder say so; zero when it is the holder; none: never, or
    /// over a minute ago. Never from hearsay, which would keep a dead owner alive from mouth to mouth.
    pub heard: Option<Duration>,
    /// Whether the sender could own it.
    pub standing: Standing,
}

/// Packs messages for one receiver into as few datagrams as it takes.
pub fn pack(messages: &[Message]) -> Vec<Vec<u8>> {
    let mut datagrams: Vec<Vec<u8>> = Vec::new();
    for message in messages {
        let bytes = message.to_bytes();
        match datagrams.last_mut() {
            Some(last) if last.len() + bytes.len() <= MAX_BYTES => last.extend(bytes),
            _ => datagrams.push([&[VERSION], bytes.as_slice()].concat()),
        }
    }
    datagrams
}

/// The messages of one datagram; none when it is of another version or damaged.
pub fn unpack(datagram: &[u8]) -> Option<Vec<Message>> {
    let (version, mut rest) = datagram.split_first()?;
    if *version != VERSION {
        return None;
    }
    let mut messages = Vec::new();
    while !rest.is_empty() {
        messages.push(Message::read(&mut rest)?);
    }
    Some(messages)
}

impl Message {
    fn to_bytes(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(48);
        match self.vip {
            IpAddr::V4(ip) => {
                out.push(4);
                out.extend(ip.octets());
            }
            IpAddr::V6(ip) => {
                out.push(6);
                out.extend(ip.octets());
            }
        }
        match self.purpose {
            Purpose::Beat => out.push(0),
            Purpose::Ask => out.push(1),
            Purpose::Answer => out.push(2),
            Purpose::Move(node) => {
                out.push(3);
                out.extend(node.0);
            }
        }
        match self.known {
            None => out.push(0),
            Some(Known { claim, holding }) => {
                let tag = match holding {
                    Holding::Held => 1,
                    Holding::Released { successor: None, .. } => 2,
                    Holding::Released { successor: Some(_), .. } => 3,
                };
                out.push(tag);
                out.extend(claim.epoch.to_be_bytes());
                out.push(claim.priority);
                out.extend(claim.owner.0);
                if let Holding::Released { why, successor } = holding {
                    out.push(why.code());
                    out.extend(successor.iter().flat_map(|node| node.0));
                }
            }
        }
        let heard = self.heard.and_then(|age| u16::try_from(age.as_millis()).ok()).unwrap_or(NEVER);
        out.extend(heard.to_be_bytes());
        match &self.standing {
            Standing::Witness => out.push(0),
            Standing::Fit => out.push(1),
            Standing::Recovering => out.push(2),
            Standing::Listening => out.push(3),
            Standing::Unfit(reason) => {
                let reason: Vec<u8> =
                    reason.bytes().filter(|b| matches!(b, b' '..=b'~')).take(MAX_REASON).collect();
                out.push(4);
                out.push(reason.len() as u8);
                out.extend(reason);
            }
        }
        out
    }

    fn read(from: &mut &[u8]) -> Option<Message> {
        let vip = match byte(from)? {
            4 => IpAddr::V4(Ipv4Addr::from(take::<4>(from)?)),
            6 => IpAddr::V6(Ipv6Addr::from(take::<16>(from)?)),
            _ => return None,
        };
        let purpose = match byte(from)? {
            0 => Purpose::Beat,
            1 => Purpose::Ask,
            2 => Purpose::Answer,
            3 => Purpose::Move(NodeId(take(from)?)),
            _ => return None,
        };
        let known = match byte(from)? {
            0 => None,
            tag @ 1..=3 => {
                let epoch = u64::from_be_bytes(take(from)?);
                let claim = Claim::new(vip, epoch, byte(from)?, NodeId(take(from)?));
                let holding = if tag == 1 {
                    Holding::Held
                } else {
                    let why = Why::from_code(byte(from)?);
                    let successor = if tag == 3 { Some(NodeId(take(from)?)) } else { None };
                    Holding::Released { why, successor }
                };
                Some(Known { claim, holding })
            }
            _ => return None,
        };
        let heard = match u16::from_be_bytes(take(from)?) {
            NEVER => None,
            ms => Some(Duration::from_millis(u64::from(ms))),
        };
        let standing = match byte(from)? {
            0 => Standing::Witness,
            1 => Standing::Fit,
            2 => Standing::Recovering,
            3 => Standing::Listening,
            4 => {
                let len = usize::from(byte(from)?);
                let (reason, rest) = from.split_at_checked(len)?;
                *from = rest;
                if len > MAX_REASON || !reason.iter().all(|b| matches!(b, b' '..=b'~')) {
                    return None;
                }
                Standing::Unfit(String::from_utf8_lossy(reason).into_owned())
            }
            _ => return None,
        };
        Some(Message { vip, purpose, known, heard, standing })
    }
}

/// An age that is none.
const NEVER: u16 = u16::MAX;

fn byte(from: &mut &[u8]) -> Option<u8> {
    let (first, rest) = from.split_first()?;
    *from = rest;
    Some(*first)
}

fn take<const N: usize>(from: &mut &[u8]) -> Option<[u8; N]> {
    let (first, rest) = from.split_first_chunk::<N>()?;
    *from = rest;
    Some(*first)
}
