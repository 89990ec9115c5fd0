//! Filters members' gossip before it reaches chitchat.
//!
//! The seal proves who sent a message; chitchat trusts everything in it, about everybody. So every message is
//! decoded within bounds, and encoded again from what can be proven:
//!
//! - A value is a record that its node has signed. A stored record of the same or a later version replaces
//!   it.
//! - A start of a node (chitchat's "generation") is known from a record signed for it, or from the node
//!   itself. Entries about any other start or about non-members are dropped: members may differ for a moment in
//!   whom they know, and chitchat's memory of starts, and so every digest, stays as small as the cluster.
//! - A heartbeat that the node itself has not sent needs a second witness: one member alone could send a
//!   number that is never reached, and the node would look dead forever.
//! - This node's own start belongs to it: nobody else changes it.
//! - A value under another key than that of records is dropped alone: a later version may publish something there.
//!   So is its number in chitchat's sequence, which nobody has signed.
//!
//! A message that no honest member sends is refused as a whole and counts against its sender, whose gossip is
//! ignored for a while after a few of them. Honest members delete nothing, since there is one key and it is
//! only ever written; so they send neither chitchat's deletions nor versions without a value.

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::time::Duration;

use proto::node::NodeId;
use proto::record_store::{OfferOutcome, RecordStore};
use proto::signed_record::{RecordVersion, SignedRecord};
use proto::time::{Moment, UnixMs};

use super::wire::{DeltaStep, DigestEntry, GossipMessage, GossipNode, Unpacker, WireError};
use super::{KEY, chitchat_address, chitchat_name};

/// Largest decompressed message: chitchat's largest, and for each member its digest entries, a few starts of
/// each.
const MOST_BYTES: (usize, usize) = (65_536, 200);

/// Refused messages within [`REMEMBERED`] after which a sender's gossip is ignored: more than one, since a
/// machine with bad memory may corrupt one.
const STRIKES: u32 = 4;

/// How long a refusal counts against its sender, and is shown in status.
const REMEMBERED: Duration = Duration::from_secs(600);

/// How long a sender is ignored; its record still arrives from others and over TLS.
const IGNORED: Duration = Duration::from_secs(60);

/// Messages of one sender: burst, and the time for each further one. An honest one sends about two in a round
/// of more than a second, and one more to a node that was just proven.
const RATE: (u32, Duration) = (60, Duration::from_millis(83));

/// Starts of one member: burst, and the time for each further one. A node that restarts forever then takes as
/// much of chitchat's memory as one that restarts twice a minute.
const STARTS: (u32, Duration) = (6, Duration::from_secs(30));

/// Most known starts of one member: chitchat shares those of the last seven minutes.
const KNOWN_STARTS: usize = 8;

/// Most values of one node in a message under other keys: a later version has a few.
const OTHER_KEYS: usize = 4;

/// Why a message was refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum GossipRefusal {
    /// It can't be read.
    Unreadable(WireError),
    /// It is for another cluster, or claims that this node is in another.
    OtherCluster,
    /// It gives a member an address other than chitchat's for it.
    WrongAddress,
    /// It has more values for a node than a member has, or a value for no node.
    TooManyValues,
    /// It deletes, or raises a version without a value.
    Deletion,
    /// It has a value that is no record.
    NoRecord,
    /// It has a record with an invalid signature.
    Forged,
    /// Gossip failed while handling it.
    Crash,
}

impl fmt::Display for GossipRefusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            GossipRefusal::Unreadable(what) => return what.fmt(f),
            GossipRefusal::OtherCluster => "a message for another cluster",
            GossipRefusal::WrongAddress => "a member with someone else's address",
            GossipRefusal::TooManyValues => "more values than a member has",
            GossipRefusal::Deletion => "a deletion of a member's record",
            GossipRefusal::NoRecord => "a value that is not a record",
            GossipRefusal::Forged => "a record with an invalid signature",
            GossipRefusal::Crash => "a message that made gossip fail",
        })
    }
}

/// A member whose gossip was refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Offender {
    pub(crate) node: NodeId,
    /// Why its last message was refused.
    pub(crate) refusal: GossipRefusal,
    /// How many of its messages were refused or ignored.
    pub(crate) count: u64,
    /// Its gossip is ignored now.
    pub(crate) ignored: bool,
}

/// The result of filtering a message.
#[derive(Debug, Default)]
pub(super) struct GuardVerdict {
    /// What remains for chitchat.
    pub(super) message: Option<Vec<u8>>,
    /// It brought records that are newer than the stored ones.
    pub(super) news: bool,
}

/// A token bucket.
#[derive(Debug, Clone, Copy)]
struct RefillBucket {
    left: u32,
    at: Moment,
}

impl RefillBucket {
    /// Takes one of at most `most` tokens; one is added every `each`.
    fn take(&mut self, most: u32, each: Duration, now: Moment) -> bool {
        let each = each.as_millis().max(1);
        let earned = u32::try_from(now.since(self.at).as_millis() / each).unwrap_or(u32::MAX);
        if earned > 0 {
            self.left = self.left.saturating_add(earned).min(most);
            self.at = now;
        }
        let enough = self.left > 0;
        self.left = self.left.saturating_sub(1);
        enough
    }
}

/// Strikes of a sender.
#[derive(Debug)]
struct SenderState {
    rate: RefillBucket,
    strikes: u32,
    last: Option<(GossipRefusal, Moment)>,
    count: u64,
    ignored_until: Moment,
}

/// Known starts of a member.
#[derive(Debug)]
struct StartHistory {
    known: Vec<u64>,
    new: RefillBucket,
    /// For the latest start: the heartbeat that was let through, and the two highest that other members have
    /// sent, with their senders.
    latest: u64,
    passed: u64,
    witnesses: [Option<(NodeId, u64)>; 2],
}

impl StartHistory {
    fn new(now: Moment) -> StartHistory {
        let new = RefillBucket { left: STARTS.0, at: now };
        StartHistory { known: Vec::new(), new, latest: 0, passed: 0, witnesses: [None, None] }
    }

    /// Accepts a start as known; false when there were too many lately.
    fn admit(&mut self, generation: u64, now: Moment) -> bool {
        if self.known.contains(&generation) {
            return true;
        }
        if !self.new.take(STARTS.0, STARTS.1, now) {
            return false;
        }
        if self.known.len() >= KNOWN_STARTS {
            self.known.sort_unstable();
            self.known.remove(0);
        }
        self.known.push(generation);
        if generation > self.latest {
            (self.latest, self.passed, self.witnesses) = (generation, 0, [None, None]);
        }
        true
    }

    /// The heartbeat to let through. `alone`: nobody could be a second witness.
    fn heartbeat(&mut self, generation: u64, of: NodeId, sender: NodeId, value: u64, alone: bool) -> u64 {
        if generation != self.latest {
            return value;
        }
        if sender == of || alone {
            self.passed = self.passed.max(value);
            return self.passed;
        }
        let known = self.witnesses.iter().position(|one| one.is_some_and(|(who, _)| who == sender));
        let lowest = usize::from(self.witnesses[1].map(|(_, at)| at) < self.witnesses[0].map(|(_, at)| at));
        let place = &mut self.witnesses[known.unwrap_or(lowest)];
        if place.is_none_or(|(_, at)| at < value) {
            *place = Some((sender, value));
        }
        if let [Some((_, a)), Some((_, b))] = self.witnesses {
            self.passed = self.passed.max(a.min(b));
        }
        self.passed
    }
}

/// Decodes, filters and encodes messages.
pub(super) struct GossipGuard {
    unpacker: Unpacker,
    judge: GuardState,
}

struct GuardState {
    own: NodeId,
    /// This node's own start, for which only it speaks.
    generation: u64,
    cluster: String,
    names: BTreeMap<String, NodeId>,
    /// Refill time of a sender's bucket: [`RATE`].
    each: Duration,
    starts: BTreeMap<NodeId, StartHistory>,
    senders: BTreeMap<NodeId, SenderState>,
    /// Sender of the message that chitchat is handling.
    last: Option<NodeId>,
    /// A record of this node that is later than the last one it has signed.
    overtaken: Option<RecordVersion>,
}

impl GossipGuard {
    pub(super) fn new(own: NodeId) -> GossipGuard {
        let judge = GuardState {
            own,
            generation: 0,
            cluster: String::new(),
            names: BTreeMap::new(),
            each: RATE.1,
            starts: BTreeMap::new(),
            senders: BTreeMap::new(),
            last: None,
            overtaken: None,
        };
        GossipGuard { unpacker: Unpacker::new(), judge }
    }

    /// Takes the cluster and its members from the document.
    pub(super) fn set_members(&mut self, cluster: &str, members: impl Iterator<Item = NodeId>) {
        let members: BTreeSet<NodeId> = members.collect();
        let judge = &mut self.judge;
        cluster.clone_into(&mut judge.cluster);
        judge.names = members.iter().map(|id| (chitchat_name(id), *id)).collect();
        judge.starts.retain(|id, _| members.contains(id));
        judge.senders.retain(|id, _| members.contains(id));
    }

    /// This node starts gossip with this generation.
    pub(super) fn set_generation(&mut self, generation: u64) {
        self.judge.generation = generation;
        self.judge.overtaken = None;
        self.judge.last = None;
    }

    /// A record of this node that is later than its own, and signed by its key: this machine was resumed from
    /// a snapshot, or another one has its identity.
    pub(super) fn overtaken(&self) -> Option<RecordVersion> {
        self.judge.overtaken
    }

    /// Gossip failed on the last handled message: its sender is ignored for a while.
    pub(super) fn blame_last(&mut self, now: Moment) -> Option<NodeId> {
        let node = self.judge.last.take()?;
        let sender = self.judge.sender(node, now);
        sender.refused(GossipRefusal::Crash, now);
        sender.ignored_until = now.after(IGNORED);
        Some(node)
    }

    /// Members whose gossip was refused lately.
    pub(super) fn offenders(&self, now: Moment) -> Vec<Offender> {
        let one = |(node, sender): (&NodeId, &SenderState)| {
            let (refusal, at) = sender.last.filter(|(_, at)| now.since(*at) < REMEMBERED)?;
            let _ = at;
            Some(Offender { node: *node, refusal, count: sender.count, ignored: now < sender.ignored_until })
        };
        self.judge.senders.iter().filter_map(one).collect()
    }

    /// The part of a message that may reach chitchat.
    pub(super) fn pass(
        &mut self,
        sender: NodeId,
        message: &[u8],
        store: &mut RecordStore,
        now: Moment,
        wall: UnixMs,
    ) -> GuardVerdict {
        let GossipGuard { unpacker, judge } = self;
        if !store.is_member(&sender) {
            return GuardVerdict::default();
        }
        let each = judge.each;
        let state = judge.sender(sender, now);
        if now < state.ignored_until || !state.rate.take(RATE.0, each, now) {
            state.count += 1;
            return GuardVerdict::default();
        }
        let most = MOST_BYTES.0 + MOST_BYTES.1 * judge.names.len();
        let mut news = false;
        let mut scene = MessageScope { sender, store, now, wall, news: &mut news };
        let screened = unpacker
            .read(message, most)
            .map_err(GossipRefusal::Unreadable)
            .and_then(|read| judge.screen(read, &mut scene));
        match screened {
            Ok(message) => {
                judge.last = Some(sender);
                GuardVerdict { message: Some(message), news }
            }
            Err(refusal) => {
                let state = judge.sender(sender, now);
                state.refused(refusal, now);
                tracing::warn!(node = %sender, "gossip refused: {refusal}");
                GuardVerdict { message: None, news }
            }
        }
    }
}

impl SenderState {
    fn refused(&mut self, refusal: GossipRefusal, now: Moment) {
        if self.last.is_none_or(|(_, at)| now.since(at) >= REMEMBERED) {
            self.strikes = 0;
        }
        self.count += 1;
        self.strikes += 1;
        self.last = Some((refusal, now));
        if self.strikes >= STRIKES {
            self.ignored_until = now.after(IGNORED);
        }
    }
}

/// One message, and its context.
struct MessageScope<'s> {
    sender: NodeId,
    store: &'s mut RecordStore,
    now: Moment,
    wall: UnixMs,
    news: &'s mut bool,
}

impl GuardState {
    fn sender(&mut self, id: NodeId, now: Moment) -> &mut SenderState {
        self.senders.entry(id).or_insert_with(|| SenderState {
            rate: RefillBucket { left: RATE.0, at: now },
            strikes: 0,
            last: None,
            count: 0,
            ignored_until: Moment::ZERO,
        })
    }

    fn screen(
        &mut self,
        message: GossipMessage<'_>,
        scene: &mut MessageScope<'_>,
    ) -> Result<Vec<u8>, GossipRefusal> {
        let left = match message {
            GossipMessage::Syn { cluster, .. } if cluster != self.cluster => {
                return Err(GossipRefusal::OtherCluster);
            }
            GossipMessage::BadCluster => return Err(GossipRefusal::OtherCluster),
            GossipMessage::Syn { cluster, digest } => {
                GossipMessage::Syn { cluster, digest: self.screen_digest(digest, scene)? }
            }
            GossipMessage::SynAck { digest, delta } => {
                // Records first: they prove the starts in the digest.
                let delta = self.screen_delta(delta, scene)?;
                GossipMessage::SynAck { digest: self.screen_digest(digest, scene)?, delta }
            }
            GossipMessage::Ack { delta } => GossipMessage::Ack { delta: self.screen_delta(delta, scene)? },
        };
        Ok(left.write())
    }

    /// The node's member id; `None` when it is unknown here.
    fn member(&self, node: &GossipNode<'_>) -> Result<Option<NodeId>, GossipRefusal> {
        let Some(id) = self.names.get(node.name).copied() else { return Ok(None) };
        if node.address == chitchat_address(&id) { Ok(Some(id)) } else { Err(GossipRefusal::WrongAddress) }
    }

    fn is_own_start(&self, id: NodeId, generation: u64) -> bool {
        id == self.own && generation >= self.generation
    }

    fn screen_digest<'a>(
        &mut self,
        digest: Vec<DigestEntry<'a>>,
        scene: &mut MessageScope<'_>,
    ) -> Result<Vec<DigestEntry<'a>>, GossipRefusal> {
        let alone = self.names.len() <= 3;
        let mut left = Vec::with_capacity(digest.len());
        for known in digest {
            if known.last_gc != 0 {
                return Err(GossipRefusal::Deletion);
            }
            let Some(id) = self.member(&known.node)? else { continue };
            let generation = known.node.generation;
            if self.is_own_start(id, generation) {
                // Of this node's record, nobody can hold more than it has published.
                let said = scene.store.version(&id);
                if generation == self.generation {
                    left.push(DigestEntry { version: known.version.min(said.sequence), ..known });
                }
                continue;
            }
            let starts = self.starts.entry(id).or_insert_with(|| StartHistory::new(scene.now));
            let itself = id == scene.sender;
            // A record that came over TLS proves it as well as one by gossip.
            let signed = scene.store.version(&id).generation == generation;
            let proven = starts.known.contains(&generation);
            let proven = proven || (itself || signed) && starts.admit(generation, scene.now);
            if !proven {
                continue;
            }
            let heartbeat = starts.heartbeat(generation, id, scene.sender, known.heartbeat, alone);
            left.push(DigestEntry { heartbeat, ..known });
        }
        Ok(left)
    }

    fn screen_delta<'a>(
        &mut self,
        delta: Vec<DeltaStep<'a>>,
        scene: &mut MessageScope<'_>,
    ) -> Result<Vec<DeltaStep<'a>>, GossipRefusal> {
        let mut left = Vec::with_capacity(delta.len());
        // Whose values come next, and from which version on; `None`: a non-member, or its record was read.
        let mut current: Option<(NodeId, GossipNode<'a>, u64)> = None;
        // How many more values the last named node may have: records, others.
        let mut rest = (0, 0);
        for step in delta {
            match step {
                DeltaStep::Node { node, last_gc, from } => {
                    if last_gc != 0 {
                        return Err(GossipRefusal::Deletion);
                    }
                    current = self.member(&node)?.map(|id| (id, node, from));
                    rest = (1, OTHER_KEYS);
                }
                DeltaStep::SetVersion(_) => return Err(GossipRefusal::Deletion),
                DeltaStep::Value { key, .. } if key != KEY => {
                    rest.1 = usize::checked_sub(rest.1, 1).ok_or(GossipRefusal::TooManyValues)?;
                }
                DeltaStep::Value { status, .. } if status != 0 => return Err(GossipRefusal::Deletion),
                DeltaStep::Value { value, version, .. } => {
                    rest.0 = usize::checked_sub(rest.0, 1).ok_or(GossipRefusal::TooManyValues)?;
                    let Some((id, node, from)) = current.take() else { continue };
                    let version = RecordVersion { generation: node.generation, sequence: version };
                    if let Some((value, version)) = self.record(id, version, value, scene)? {
                        left.push(DeltaStep::Node { node, last_gc: 0, from });
                        left.push(DeltaStep::Value { key: KEY, value, version, status: 0 });
                    }
                }
            }
        }
        Ok(left)
    }

    /// The value to let through for a received record, and its version.
    fn record<'a>(
        &mut self,
        id: NodeId,
        version: RecordVersion,
        value: Cow<'a, str>,
        scene: &mut MessageScope<'_>,
    ) -> Result<Option<(Cow<'a, str>, u64)>, GossipRefusal> {
        let record = SignedRecord::from_value(id, version, &value).ok_or(GossipRefusal::NoRecord)?;
        let MessageScope { sender, store, now, wall, news } = scene;
        if self.is_own_start(id, version.generation) {
            if store.is_newer(&id, version, *wall) {
                match store.verify(&record, sender, *now) {
                    OfferOutcome::Taken => self.overtaken = self.overtaken.max(Some(version)),
                    OfferOutcome::Forged => return Err(GossipRefusal::Forged),
                    _ => {}
                }
            }
            return Ok(None);
        }
        let held = store.get(&id).filter(|held| held.version.generation == version.generation);
        if let Some(held) = held.filter(|held| held.version >= version) {
            // The same, or an older one that the latest can replace.
            let (value, sequence) = (held.to_value(), held.version.sequence);
            return Ok(self.known_start(id, version.generation, *now).then_some((value.into(), sequence)));
        }
        let came = if store.is_newer(&id, version, *wall) {
            let came = store.offer(record, sender, *now, *wall);
            **news |= came == OfferOutcome::Taken;
            came
        } else {
            // Of an earlier start, which chitchat keeps for a while in addition to the latest.
            store.verify(&record, sender, *now)
        };
        match came {
            OfferOutcome::Taken if self.known_start(id, version.generation, *now) => {
                Ok(Some((value, version.sequence)))
            }
            OfferOutcome::Forged => Err(GossipRefusal::Forged),
            _ => Ok(None),
        }
    }

    fn known_start(&mut self, id: NodeId, generation: u64, now: Moment) -> bool {
        self.starts.entry(id).or_insert_with(|| StartHistory::new(now)).admit(generation, now)
    }
}

#[cfg(test)]
#[path = "guard_tests.rs"]
mod tests;
