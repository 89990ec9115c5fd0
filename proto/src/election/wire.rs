//! What nodes tell each other of a VIP: one small message, in three uses.
//!
//! ```text
//!   datagram:  version 1 | oldest version that can read it 1 | (length 2 | message) …
//!   message:   (field 1 | length 1 | value) …
//!
//!   1 address   4 or 16 bytes
//!   2 purpose   code 1 (| node 10)
//!   3 claim     epoch 8 | priority 1 | owner 10        absent: none is known
//!   4 release   reason 1 (| successor 10)              absent: the claim is held
//!   5 heard     milliseconds 2                         absent: never, or long ago
//!   6 state     code 1
//!   7 reason    ASCII, why the state is "unfit"
//!   8 cause     code 2 | argument 2, of the same       absent: not said
//! ```
//!
//! Numbers are big-endian. It travels sealed for a pair of nodes, so who says it is certain and nothing is
//! taken twice. Every message carries all that its sender knows, so none depends on another and any may be
//! lost.
//!
//! A later version may add fields, lengthen a field at its end, and use further codes: a reader skips what
//! it does not know and keeps a code as it came. Only what changes the meaning of what stands here raises
//! the oldest version. A message without an address, a purpose or a state, or with a field that is too
//! short, is left out alone.

use std::fmt;
use std::net::IpAddr;
use std::time::Duration;

use super::rank::CandidateState;
use crate::next_wire;
use crate::node::NodeId;
#[cfg(doc)]
use crate::pulse::PAUSE;
use crate::unfit::Unfit;

/// The version that is written.
pub const VERSION: u8 = 1 + next_wire::RAISE;

/// The oldest version that is understood, and whose readers understand what is written here.
pub const OLDEST: u8 = 1;

/// Most bytes of one datagram of messages: the link's payload with some room.
pub const MAX_BYTES: usize = 1_100;

/// Most messages that are read from one datagram: more than one of [`MAX_BYTES`] can hold of sensible ones.
pub const MAX_MESSAGES: usize = 48;

/// Longest reason, in bytes of ASCII.
pub const MAX_REASON: usize = 80;

/// An ownership. The order is the rule of conflict: the higher stays, the lower deletes. A later epoch
/// wins; in one epoch (two claimed at once) the priority that each had, then a hash that is the
/// same everywhere. All of it travels, so that two nodes whose configuration differs for a moment agree.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Claim {
    /// Grows with every change of owner.
    pub epoch: u64,
    /// The owner's priority when it claimed.
    pub priority: u8,
    tiebreak: u32,
    /// The owner.
    pub owner: NodeId,
}

impl Claim {
    /// The claim of this node to this address.
    pub fn new(address: IpAddr, epoch: u64, priority: u8, owner: NodeId) -> Claim {
        Claim { epoch, priority, tiebreak: tiebreak(address, owner), owner }
    }
}

/// FNV-1a with a finish that spreads the last bytes: the same at every node, by chance between nodes.
fn tiebreak(address: IpAddr, node: NodeId) -> u32 {
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

/// Why an owner released the address. Codes decide, words are for people.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum ReleaseReason {
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
    /// One that a later version gives, by its code: still a release.
    Other(u8),
}

impl ReleaseReason {
    /// Every reason that this version gives, with its code on the wire and its words.
    pub const ALL: [(ReleaseReason, u8, &str); 9] = [
        (ReleaseReason::Stop, 0, "its agent is stopping"),
        (ReleaseReason::Drain, 1, "it is draining"),
        (ReleaseReason::Unfit, 2, "it cannot serve"),
        (ReleaseReason::Move, 3, "moved by an operator"),
        (ReleaseReason::Preempt, 4, "a preferred node is eligible again"),
        (ReleaseReason::Stranger, 5, "a machine outside of the cluster answers for the address"),
        (ReleaseReason::Rules, 6, "it is no longer a candidate"),
        (ReleaseReason::Stall, 7, "its agent stalled"),
        (ReleaseReason::Restart, 8, "its agent was restarted"),
    ];

    /// Its code on the wire.
    pub fn code(self) -> u8 {
        match self {
            ReleaseReason::Other(code) => code,
            known => {
                ReleaseReason::ALL.iter().find(|(one, ..)| *one == known).map_or(0, |(_, code, _)| *code)
            }
        }
    }

    /// The reason of a code.
    pub fn from_code(code: u8) -> ReleaseReason {
        let known = ReleaseReason::ALL.iter().find(|(_, one, _)| *one == code);
        known.map_or(ReleaseReason::Other(code), |(reason, ..)| *reason)
    }
}

impl fmt::Display for ReleaseReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match ReleaseReason::ALL.iter().find(|(one, ..)| one == self) {
            Some((.., words)) => f.write_str(words),
            None => write!(f, "a newer agent released it (reason {})", self.code()),
        }
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
        /// The reason, as its owner gave it.
        why: ReleaseReason,
        /// Who shall claim at once.
        successor: Option<NodeId>,
    },
}

impl Holding {
    /// Of a claim of this node that an earlier start of its agent has left.
    pub(super) const RESTARTED: Holding = Holding::Released { why: ReleaseReason::Restart, successor: None };
}

/// The highest claim that a node knows of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HighestClaim {
    /// The claim.
    pub claim: Claim,
    /// Whether it stands.
    pub holding: Holding,
}

impl HighestClaim {
    /// The node that holds the address, as far as is known here.
    pub fn holder(&self) -> Option<NodeId> {
        (self.holding == Holding::Held).then_some(self.claim.owner)
    }

    /// Why it was released; none: it is held.
    pub(super) fn release_reason(&self) -> Option<ReleaseReason> {
        match self.holding {
            Holding::Held => None,
            Holding::Released { why, .. } => Some(why),
        }
    }

    /// Whether it was released to this node.
    pub(super) fn names(&self, node: NodeId) -> bool {
        matches!(self.holding, Holding::Released { successor, .. } if successor == Some(node))
    }
}

/// What a message is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MessageKind {
    /// The sender is there.
    Beat,
    /// "How old is the owner's last beat?" It is answered at once, by everyone.
    Ask,
    /// The answer; also sent unasked to an owner that has missed a higher claim.
    Answer,
    /// To the owner: hand over to this node, a person wants it.
    Move(NodeId),
    /// A beat of an owner whose process is being replaced: the next may be late by [`PAUSE`].
    Pausing,
    /// What a later version has, by its code: what the message tells counts like that of a beat.
    Other(u8),
}

/// One message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VipMessage {
    /// The VIP that it is about.
    pub vip: IpAddr,
    /// What it is for.
    pub purpose: MessageKind,
    /// What the sender knows. It holds the address itself when it is the holder of this.
    pub known: Option<HighestClaim>,
    /// How long ago the sender itself heard the holder say so; zero when it is the holder; none: never, or
    /// over a minute ago. Never from hearsay, which would keep a dead owner alive from mouth to mouth.
    pub heard: Option<Duration>,
    /// Whether the sender could own it.
    pub state: CandidateState,
}

/// Packs messages for one receiver into as few datagrams as it takes.
pub fn pack(messages: &[VipMessage]) -> Vec<Vec<u8>> {
    let mut datagrams: Vec<(Vec<u8>, usize)> = Vec::new();
    // None but in a build for tests.
    let later = next_wire::vip_purpose().zip(messages.first());
    let later = later.map(|(code, first)| VipMessage { purpose: MessageKind::Other(code), ..first.clone() });
    for message in messages.iter().chain(&later) {
        let bytes = message.to_bytes();
        let length = u16::try_from(bytes.len()).unwrap_or(u16::MAX).to_be_bytes();
        match datagrams.last_mut() {
            Some((last, count))
                if last.len() + length.len() + bytes.len() <= MAX_BYTES && *count < MAX_MESSAGES =>
            {
                last.extend(length);
                last.extend(bytes);
                *count += 1;
            }
            _ => datagrams.push(([&[VERSION, OLDEST], length.as_slice(), bytes.as_slice()].concat(), 1)),
        }
    }
    datagrams.into_iter().map(|(datagram, _)| datagram).collect()
}

/// The messages of one datagram that are understood, [`MAX_MESSAGES`] at most. A message that is not
/// understood is left out alone, and what is cut off ends the list.
///
/// # Errors
/// The versions of the sender, when there is none in common.
pub fn unpack(datagram: &[u8]) -> Result<Vec<VipMessage>, VersionError> {
    let [version, oldest, rest @ ..] = datagram else { return Ok(Vec::new()) };
    if *version < OLDEST || *oldest > VERSION {
        return Err(VersionError { version: *version, oldest: *oldest });
    }
    let mut rest = rest;
    let mut messages = Vec::new();
    for _ in 0..MAX_MESSAGES {
        let Some((length, after)) = rest.split_first_chunk::<2>() else { break };
        let Some((message, after)) = after.split_at_checked(usize::from(u16::from_be_bytes(*length))) else {
            break;
        };
        messages.extend(VipMessage::read(message));
        rest = after;
    }
    Ok(messages)
}

/// Masks what changes with time alone in a datagram of messages, which is how long ago its sender heard the owners:
/// zeros there, all ones elsewhere.
pub fn mask_of_ages(datagram: &[u8]) -> Vec<u8> {
    let mut mask = vec![u8::MAX; datagram.len()];
    let mut at = 2;
    while let Some((length, after)) = datagram.get(at..).and_then(<[u8]>::split_first_chunk::<2>) {
        let length = usize::from(u16::from_be_bytes(*length));
        let mut message = after.get(..length).unwrap_or_default();
        at += 2;
        let end = at + length;
        while let [field, length, rest @ ..] = message {
            let length = usize::from(*length);
            if *field == field::HEARD
                && let Some(age) = mask.get_mut(at + 2..at + 2 + length)
            {
                age.fill(0);
            }
            at += 2 + length;
            message = rest.get(length..).unwrap_or_default();
        }
        at = end;
    }
    mask
}

/// The sender speaks no version that this agent knows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error(
    "its messages have version {version}, readable from version {oldest}; this agent reads {OLDEST} to {VERSION}"
)]
pub struct VersionError {
    /// What it has written.
    pub version: u8,
    /// The oldest version that can read it.
    pub oldest: u8,
}

/// The fields of a message.
mod field {
    pub(super) const ADDRESS: u8 = 1;
    pub(super) const PURPOSE: u8 = 2;
    pub(super) const CLAIM: u8 = 3;
    pub(super) const RELEASE: u8 = 4;
    pub(super) const HEARD: u8 = 5;
    pub(super) const STATE: u8 = 6;
    pub(super) const REASON: u8 = 7;
    pub(super) const CAUSE: u8 = 8;
}

/// The state whose reason is told: the only code that is not its own.
const UNFIT: u8 = 4;

/// The purpose that names a node.
const MOVE: u8 = 3;

/// The purpose of a beat before a pause.
const PAUSING: u8 = 4;

impl VipMessage {
    fn to_bytes(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(64);
        let mut put = |field: u8, value: &[u8]| {
            // Every value is shorter than a hundred bytes.
            out.extend([field, u8::try_from(value.len()).unwrap_or(u8::MAX)]);
            out.extend(value);
        };
        match self.vip {
            IpAddr::V4(ip) => put(field::ADDRESS, &ip.octets()),
            IpAddr::V6(ip) => put(field::ADDRESS, &ip.octets()),
        }
        match self.purpose {
            MessageKind::Beat => put(field::PURPOSE, &[0]),
            MessageKind::Ask => put(field::PURPOSE, &[1]),
            MessageKind::Answer => put(field::PURPOSE, &[2]),
            MessageKind::Move(node) => put(field::PURPOSE, &[&[MOVE], node.0.as_slice()].concat()),
            MessageKind::Pausing => put(field::PURPOSE, &[PAUSING]),
            MessageKind::Other(code) => put(field::PURPOSE, &[code]),
        }
        if let Some(HighestClaim { claim, holding }) = self.known {
            let epoch = claim.epoch.to_be_bytes();
            put(field::CLAIM, &[epoch.as_slice(), &[claim.priority], &claim.owner.0].concat());
            if let Holding::Released { why, successor } = holding {
                let successor = successor.as_ref().map_or(&[][..], |node| &node.0);
                put(field::RELEASE, &[&[why.code()], successor].concat());
            }
        }
        if let Some(age) = self.heard.and_then(|age| u16::try_from(age.as_millis()).ok()) {
            put(field::HEARD, &age.to_be_bytes());
        }
        match &self.state {
            CandidateState::Witness => put(field::STATE, &[next_wire::say_state(0)]),
            CandidateState::Fit => put(field::STATE, &[1]),
            CandidateState::Recovering => put(field::STATE, &[2]),
            CandidateState::Listening => put(field::STATE, &[3]),
            CandidateState::Unfit(unfit) => {
                put(field::STATE, &[UNFIT]);
                put(field::REASON, &printable(unfit.to_string().as_bytes()));
                if let Some(cause) = unfit.cause_bytes() {
                    put(field::CAUSE, &cause);
                }
            }
            CandidateState::Other(code) => put(field::STATE, &[*code]),
        }
        if let Some((field, value)) = next_wire::vip_field() {
            put(field, value);
        }
        out
    }

    fn read(bytes: &[u8]) -> Option<VipMessage> {
        let fields = MessageFields(bytes);
        let vip = match fields.get(field::ADDRESS)? {
            bytes if bytes.len() == 4 => IpAddr::from(*bytes.first_chunk::<4>()?),
            bytes => IpAddr::from(*bytes.first_chunk::<16>()?),
        };
        let purpose = match fields.get(field::PURPOSE)?.split_first()? {
            (0, _) => MessageKind::Beat,
            (1, _) => MessageKind::Ask,
            (2, _) => MessageKind::Answer,
            (&MOVE, node) => MessageKind::Move(NodeId(*node.first_chunk()?)),
            (&PAUSING, _) => MessageKind::Pausing,
            (code, _) => MessageKind::Other(*code),
        };
        let known = match fields.get(field::CLAIM) {
            None => None,
            Some(value) => {
                let (epoch, value) = value.split_first_chunk()?;
                let (priority, owner) = value.split_first()?;
                let owner = NodeId(*owner.first_chunk()?);
                let claim = Claim::new(vip, u64::from_be_bytes(*epoch), *priority, owner);
                Some(HighestClaim { claim, holding: fields.holding()? })
            }
        };
        let heard = match fields.get(field::HEARD) {
            None => None,
            Some(value) => {
                let ms = u16::from_be_bytes(*value.first_chunk()?);
                Some(Duration::from_millis(u64::from(ms)))
            }
        };
        let state = match &next_wire::hear_state(*fields.get(field::STATE)?.first()?) {
            0 => CandidateState::Witness,
            1 => CandidateState::Fit,
            2 => CandidateState::Recovering,
            3 => CandidateState::Listening,
            &UNFIT => {
                let reason = printable(fields.get(field::REASON).unwrap_or_default());
                let cause = match fields.get(field::CAUSE) {
                    None => None,
                    Some(value) => Some(*value.first_chunk()?),
                };
                let reason = String::from_utf8_lossy(&reason);
                CandidateState::Unfit(Unfit::new(Unfit::cause_of(cause), reason))
            }
            code => CandidateState::Other(*code),
        };
        Some(VipMessage { vip, purpose, known, heard, state })
    }
}

/// What of a text is shown: the terminal of a person prints it.
fn printable(text: &[u8]) -> Vec<u8> {
    text.iter().copied().filter(|b| matches!(b, b' '..=b'~')).take(MAX_REASON).collect()
}

/// The fields of one message. Of a field that comes twice the first counts; what is cut off is not there.
#[derive(Clone, Copy)]
struct MessageFields<'a>(&'a [u8]);

impl<'a> MessageFields<'a> {
    fn get(self, wanted: u8) -> Option<&'a [u8]> {
        let mut rest = self.0;
        loop {
            let (field, after) = rest.split_first()?;
            let (length, after) = after.split_first()?;
            let (value, after) = after.split_at_checked(usize::from(*length))?;
            if *field == wanted {
                return Some(value);
            }
            rest = after;
        }
    }

    /// None: what says that the claim is released can't be read.
    fn holding(self) -> Option<Holding> {
        let Some(value) = self.get(field::RELEASE) else { return Some(Holding::Held) };
        let (why, successor) = value.split_first()?;
        let successor = if successor.is_empty() { None } else { Some(NodeId(*successor.first_chunk()?)) };
        Some(Holding::Released { why: ReleaseReason::from_code(*why), successor })
    }
}
