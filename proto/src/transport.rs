//! The transport's datagrams: header, frames, versions, and which keys open them.
//!
//! ```text
//!   version 1 | key hint 4 | sender 10 | boot 8 | sequence 8 | ciphertext … | tag 16
//!                                                              ╰─ frames: kind 1 | length 2 | body …
//! ```
//!
//! The header is authenticated, not secret. `boot` is random and new at every start of the sender, and the
//! sequence counts within it; [`crate::seal`] uses both, and [`crate::session`] refuses duplicates.
//!
//! # How it grows
//!
//! A frame of an unknown kind is skipped, and so is what follows the known part of a frame's body: a new kind
//! or field needs no new version. Anything else raises the version: a node publishes its versions in its
//! record ([`VERSIONS`]), and is sent the highest common one ([`version_for`]); the lowest before its record
//! arrives.

use std::ops::RangeInclusive;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::cluster::{Document, KeyId};
use crate::next_wire;
use crate::node::NodeId;
use crate::time::UnixMs;

/// The transport's port, UDP and TCP.
pub const PORT: u16 = 7646;

/// Largest datagram sent: fits every tunnel's MTU (IPv6 guarantees 1280), so nothing is fragmented.
pub const MAX_DATAGRAM: usize = 1200;

/// Length of [`DatagramHeader`] on the wire.
pub const HEADER_LEN: usize = 1 + KeyHint::LEN + NodeId::LEN + 8 + 8;

/// Length of the AEAD tag.
pub const TAG_LEN: usize = 16;

/// Most bytes of frames in one datagram.
pub const MAX_PLAINTEXT: usize = MAX_DATAGRAM - HEADER_LEN - TAG_LEN;

/// Kind and length before each frame's body.
const FRAME_HEAD: usize = 1 + 2;

/// Most bytes that the body of a single frame may have.
pub const MAX_BODY: usize = MAX_PLAINTEXT - FRAME_HEAD;

/// The versions of the datagrams that this build speaks, lowest and highest.
pub const VERSIONS: RangeInclusive<u8> = 1..=1 + next_wire::RAISE;

/// The version for a node that speaks `theirs`: the highest common one, or this node's lowest.
pub fn version_for(theirs: Option<RangeInclusive<u8>>) -> u8 {
    let lowest = *VERSIONS.start();
    let Some(theirs) = theirs else { return lowest };
    let common = (*VERSIONS.end()).min(*theirs.end());
    if common >= lowest.max(*theirs.start()) { common } else { lowest }
}

/// The first bytes of a [`KeyId`], which tell the receiver which key to try.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct KeyHint(pub [u8; KeyHint::LEN]);

impl KeyHint {
    /// Length in bytes.
    pub const LEN: usize = 4;

    /// The hint of a key.
    pub fn of(id: KeyId) -> KeyHint {
        let mut hint = [0; KeyHint::LEN];
        hint.copy_from_slice(&id.0[..KeyHint::LEN]);
        KeyHint(hint)
    }
}

/// The part before the ciphertext.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DatagramHeader {
    /// Version of the frames and the seal.
    pub version: u8,
    /// Hint of the gossip key in the seal.
    pub key: KeyHint,
    /// The sender's id.
    pub sender: NodeId,
    /// The sender's boot.
    pub boot: u64,
    /// Counts from 1 within the boot.
    pub sequence: u64,
}

impl DatagramHeader {
    /// The header as bytes.
    pub fn to_bytes(&self) -> [u8; HEADER_LEN] {
        let mut bytes = [0; HEADER_LEN];
        bytes[0] = self.version;
        bytes[1..5].copy_from_slice(&self.key.0);
        bytes[5..15].copy_from_slice(&self.sender.0);
        bytes[15..23].copy_from_slice(&self.boot.to_be_bytes());
        bytes[23..31].copy_from_slice(&self.sequence.to_be_bytes());
        bytes
    }

    /// Splits a datagram into header and ciphertext; `None` when this build does not speak it.
    pub fn parse(datagram: &[u8]) -> Option<(DatagramHeader, &[u8])> {
        let (header, ciphertext) = datagram.split_first_chunk::<HEADER_LEN>()?;
        if !VERSIONS.contains(&header[0]) || ciphertext.len() <= TAG_LEN || datagram.len() > MAX_DATAGRAM {
            return None;
        }
        let mut key = [0; KeyHint::LEN];
        key.copy_from_slice(&header[1..5]);
        let mut sender = [0; NodeId::LEN];
        sender.copy_from_slice(&header[5..15]);
        let number = |from: usize| {
            let mut bytes = [0; 8];
            bytes.copy_from_slice(&header[from..from + 8]);
            u64::from_be_bytes(bytes)
        };
        let header = DatagramHeader {
            version: header[0],
            key: KeyHint(key),
            sender: NodeId(sender),
            boot: number(15),
            sequence: number(23),
        };
        Some((header, ciphertext))
    }

    /// The AEAD nonce of the sequence: unique, since the key belongs to pair, direction and boot.
    pub fn nonce(&self) -> [u8; 12] {
        let mut nonce = [0; 12];
        nonce[4..].copy_from_slice(&self.sequence.to_be_bytes());
        nonce
    }
}

/// A frame of a datagram.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DatagramFrame<'a> {
    /// A gossip message.
    Gossip(&'a [u8]),
    /// Asks the receiver to echo this number, to prove that it is there now.
    Challenge(u64),
    /// The repeated number.
    Echo(u64),
    /// Asks for an immediate answer.
    Pulse(u64),
    /// The answer, with the sender's status ([`crate::pulse::PulseStatus`]). Number 0: unsolicited, because
    /// something has changed.
    Answer(u64, &'a [u8]),
    /// A message of candidates and witnesses about virtual IPs.
    Vip(&'a [u8]),
    /// The fingerprint of the sender's current record: a node with another one pulls it.
    RecordFingerprint(u32),
    /// How long ago the sender last heard its peers ([`crate::heard`]).
    Heard(&'a [u8]),
    /// An attached node reports to a core member ([`crate::topology::Attach`]).
    Attach(&'a [u8]),
    /// A core member's answer, and what it says unasked ([`crate::topology::Beacon`]).
    Beacon(&'a [u8]),
    /// Another boot of the receiver's identity is alive too: asks for a proof of life beside it.
    Beside(u64),
    /// The proof, with where its signer is ([`crate::elsewhere::AliveProof::to_body`]).
    Elsewhere(&'a [u8]),
}

impl<'a> DatagramFrame<'a> {
    const GOSSIP: u8 = 0;
    const CHALLENGE: u8 = 1;
    const ECHO: u8 = 2;
    const PULSE: u8 = 3;
    const ANSWER: u8 = 4;
    const VIP: u8 = 5;
    const RECORD_FINGERPRINT: u8 = 6;
    const HEARD: u8 = 7;
    const ATTACH: u8 = 8;
    const BEACON: u8 = 9;
    const BESIDE: u8 = 10;
    const ELSEWHERE: u8 = 11;

    /// Appends the frame. False when it no longer fits into the datagram: nothing is appended then.
    pub fn put(&self, plaintext: &mut Vec<u8>) -> bool {
        let mut put = |kind: u8, parts: [&[u8]; 2]| {
            let length = parts.iter().map(|part| part.len()).sum::<usize>();
            let fits = plaintext.len() + FRAME_HEAD + length <= MAX_PLAINTEXT;
            let Some(announced) = u16::try_from(length).ok().filter(|_| fits) else { return false };
            plaintext.push(kind);
            plaintext.extend_from_slice(&announced.to_be_bytes());
            parts.iter().for_each(|part| plaintext.extend_from_slice(part));
            true
        };
        match self {
            DatagramFrame::Gossip(message) => put(DatagramFrame::GOSSIP, [message, &[]]),
            DatagramFrame::Challenge(number) => {
                put(DatagramFrame::CHALLENGE, [&number.to_be_bytes(), next_wire::TAIL])
            }
            DatagramFrame::Echo(number) => put(DatagramFrame::ECHO, [&number.to_be_bytes(), next_wire::TAIL]),
            DatagramFrame::Pulse(number) => {
                put(DatagramFrame::PULSE, [&number.to_be_bytes(), next_wire::TAIL])
            }
            DatagramFrame::Answer(number, status) => {
                put(DatagramFrame::ANSWER, [&number.to_be_bytes(), status])
            }
            DatagramFrame::Vip(message) => put(DatagramFrame::VIP, [message, &[]]),
            DatagramFrame::RecordFingerprint(print) => {
                put(DatagramFrame::RECORD_FINGERPRINT, [&print.to_be_bytes(), next_wire::TAIL])
            }
            DatagramFrame::Heard(report) => put(DatagramFrame::HEARD, [report, next_wire::TAIL]),
            DatagramFrame::Attach(message) => put(DatagramFrame::ATTACH, [message, &[]]),
            DatagramFrame::Beacon(message) => put(DatagramFrame::BEACON, [message, &[]]),
            DatagramFrame::Beside(boot) => put(DatagramFrame::BESIDE, [&boot.to_be_bytes(), next_wire::TAIL]),
            DatagramFrame::Elsewhere(proof) => put(DatagramFrame::ELSEWHERE, [proof, next_wire::TAIL]),
        }
    }

    /// The frame alone, as plaintext of a datagram.
    pub fn to_bytes(&self) -> Vec<u8> {
        // Most are pulses, beats and answers with a report behind them.
        let mut plaintext = Vec::with_capacity(128);
        self.put(&mut plaintext);
        plaintext
    }

    /// The known frames of a datagram. Ends where a length does not fit.
    pub fn all(mut plaintext: &'a [u8]) -> impl Iterator<Item = DatagramFrame<'a>> {
        std::iter::from_fn(move || {
            loop {
                let (head, rest) = plaintext.split_first_chunk::<FRAME_HEAD>()?;
                let length = usize::from(u16::from_be_bytes([head[1], head[2]]));
                let (body, rest) = rest.split_at_checked(length)?;
                plaintext = rest;
                if let Some(frame) = DatagramFrame::read(head[0], body) {
                    return Some(frame);
                }
            }
        })
    }

    /// Whether it only proves who is there, which also a boot that is not proven yet may send.
    pub fn is_proof(&self) -> bool {
        use DatagramFrame::{Beside, Challenge, Echo, Elsewhere};
        matches!(self, Challenge(_) | Echo(_) | Beside(_) | Elsewhere(_))
    }

    /// One frame; `None` when its kind is unknown or its body too short. The rest of the body is for later
    /// builds.
    fn read(kind: u8, body: &'a [u8]) -> Option<DatagramFrame<'a>> {
        let number = || body.first_chunk::<8>().map(|bytes| u64::from_be_bytes(*bytes));
        match kind {
            DatagramFrame::GOSSIP => Some(DatagramFrame::Gossip(body)),
            DatagramFrame::CHALLENGE => number().map(DatagramFrame::Challenge),
            DatagramFrame::ECHO => number().map(DatagramFrame::Echo),
            DatagramFrame::PULSE => number().map(DatagramFrame::Pulse),
            DatagramFrame::ANSWER => {
                let (number, status) = body.split_first_chunk::<8>()?;
                Some(DatagramFrame::Answer(u64::from_be_bytes(*number), status))
            }
            DatagramFrame::VIP => Some(DatagramFrame::Vip(body)),
            DatagramFrame::RECORD_FINGERPRINT => body
                .first_chunk::<4>()
                .map(|bytes| DatagramFrame::RecordFingerprint(u32::from_be_bytes(*bytes))),
            DatagramFrame::HEARD => Some(DatagramFrame::Heard(body)),
            DatagramFrame::ATTACH => Some(DatagramFrame::Attach(body)),
            DatagramFrame::BEACON => Some(DatagramFrame::Beacon(body)),
            DatagramFrame::BESIDE => number().map(DatagramFrame::Beside),
            DatagramFrame::ELSEWHERE => Some(DatagramFrame::Elsewhere(body)),
            _ => None,
        }
    }
}

/// How long the key before a rotation is still accepted.
const OLD_KEY_TTL: Duration = Duration::from_secs(600);

/// How long the keys before a removal are still accepted from members. The removed node is none, and every
/// datagram is sealed for a pair as well, so this gives it nothing; without it, nodes that learn of the removal a
/// moment later than others would not hear them, and the owner of a virtual IP would seem silent.
const OLD_KEY_AFTER_REMOVAL: Duration = Duration::from_secs(10);

/// How long a new key is not used towards a peer that was last heard under an older one. Shorter than any old key is
/// accepted, so that the clocks of two nodes may start a few seconds apart.
const HANDOVER: Duration = Duration::from_secs(5);

/// Most gossip keys that are looked at in what a peer sends: the one that counts and the one before.
const MOST_KEYS: usize = 8;

/// One gossip key.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct GossipKey {
    /// Its epoch.
    pub epoch: u64,
    /// Its id.
    pub id: KeyId,
    /// The key.
    pub secret: [u8; 32],
    /// Until when it is accepted; `None`: it is current, or not replaced yet.
    pub until: Option<UnixMs>,
}

impl std::fmt::Debug for GossipKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "GossipKey({} {})", self.epoch, self.id)
    }
}

/// The gossip keys that this node holds.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct KeyRing {
    keys: Vec<GossipKey>,
    /// The document's key, once it is held, and when it replaced another in this run.
    #[serde(skip)]
    current: Option<(KeyId, UnixMs)>,
}

impl KeyRing {
    /// Adds a key; true when it is new. A key that does not match its id is refused.
    pub fn add(&mut self, key: GossipKey) -> bool {
        let known = self.keys.iter().any(|held| held.id == key.id);
        if known || KeyId::of_key(&key.secret) != key.id {
            return false;
        }
        self.keys.push(key);
        true
    }

    /// Adds keys from another node if the document names them: the current one, and the previous one for its ten
    /// minutes. The sender can't choose which. True when one is new.
    pub fn take(&mut self, keys: &[GossipKey], document: &Document, now: UnixMs) -> bool {
        let current = &document.key;
        let mut new = false;
        for key in keys.iter().take(MOST_KEYS) {
            let epoch = if key.id == current.id {
                current.epoch
            } else if Some(key.id) == current.previous
                && now < current.at.after(OLD_KEY_TTL)
                && current.epoch > document.key_floor
            {
                current.epoch - 1
            } else {
                continue;
            };
            new |= self.add(GossipKey { epoch, until: None, ..key.clone() });
        }
        new
    }

    /// Applies the document: its current key, when it is held, retires the others, those below the floor within
    /// seconds. True when something changed.
    pub fn apply_document(&mut self, document: &Document, now: UnixMs) -> bool {
        let before = self.keys.clone();
        let current = document.key.id;
        if self.keys.iter().any(|key| key.id == current) {
            if self.current.is_none_or(|(id, _)| id != current) {
                // The first one of a run replaces none.
                let at = self.current.map_or(UnixMs(0), |_| now);
                self.current = Some((current, at));
            }
            for key in &mut self.keys {
                let ttl = if key.epoch < document.key_floor { OLD_KEY_AFTER_REMOVAL } else { OLD_KEY_TTL };
                let until = now.after(ttl);
                key.until = (key.id != current).then(|| key.until.map_or(until, |before| before.min(until)));
            }
        }
        self.keys.retain(|key| key.until.is_none_or(|until| until > now));
        self.keys != before
    }

    /// The key to seal with: the document's if it is held, otherwise the latest. Until that one has been held for a
    /// moment it is the one that the peer was last heard under, since it may not have a newer one yet: of keys that
    /// change quickly a node may know the last by its name alone, and others not even the one before.
    pub fn sealing(&self, document: &Document, heard: Option<KeyId>, now: UnixMs) -> Option<&GossipKey> {
        let is_settled =
            self.current.is_some_and(|(id, at)| id == document.key.id && now >= at.after(HANDOVER));
        heard
            .filter(|_| !is_settled)
            .and_then(|id| self.get(id, now))
            .or_else(|| self.keys.iter().find(|key| key.id == document.key.id))
            .or_else(|| self.keys.iter().max_by_key(|key| (key.epoch, key.id)))
    }

    /// The key with this id, while it is accepted.
    pub fn get(&self, id: KeyId, now: UnixMs) -> Option<&GossipKey> {
        self.keys.iter().find(|key| key.id == id && key.until.is_none_or(|until| until > now))
    }

    /// The keys that a datagram with this hint may be sealed with: one, unless two ids have the same prefix.
    pub fn hinted(&self, hint: KeyHint, now: UnixMs) -> impl Iterator<Item = &GossipKey> {
        let accepted = move |key: &&GossipKey| key.until.is_none_or(|until| until > now);
        self.keys.iter().filter(accepted).filter(move |key| KeyHint::of(key.id) == hint)
    }

    /// All keys held, for the disk and for members that pull them.
    pub fn keys(&self) -> &[GossipKey] {
        &self.keys
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::cluster::Admitted;
    use crate::node::{Name, PublicKey, Role};

    fn document() -> Document {
        let own = PublicKey([0; 32]);
        let first = Admitted::new(Name::nearest("a"), own, Role::Master, own.id(), UnixMs(1));
        Document::new([0; 16], Name::nearest("c"), first, key(1).id)
    }

    fn key(n: u8) -> GossipKey {
        let secret = [n; 32];
        GossipKey { epoch: u64::from(n), id: KeyId::of_key(&secret), secret, until: None }
    }

    #[test]
    fn a_rotation_leaves_the_old_key_for_ten_minutes_and_a_removal_for_seconds() {
        let by = NodeId([0; 10]);
        let mut document = document();
        let mut ring = KeyRing::default();
        let sealing = |ring: &KeyRing, document: &Document, heard: Option<u8>, now| {
            ring.sealing(document, heard.map(|n| key(n).id), UnixMs(now)).map(|key| key.epoch)
        };
        assert!(ring.add(key(1)) && !ring.add(key(1)));
        ring.apply_document(&document, UnixMs(0));
        document.turn_key(key(2).id, by, UnixMs(0), false).unwrap();
        assert_eq!(sealing(&ring, &document, None, 0), Some(1), "the new one is not here yet");
        ring.add(key(2));
        ring.apply_document(&document, UnixMs(0));
        assert_eq!(sealing(&ring, &document, None, 0), Some(2));
        assert_eq!(sealing(&ring, &document, Some(1), 4_999), Some(1), "the peer may not have it yet");
        assert_eq!(sealing(&ring, &document, Some(1), 5_000), Some(2));
        assert_eq!(sealing(&ring, &document, Some(2), 0), Some(2));
        assert!(ring.get(key(1).id, UnixMs(599_999)).is_some());
        assert!(ring.get(key(1).id, UnixMs(600_000)).is_none());
        document.turn_key(key(3).id, by, UnixMs(9_000), true).unwrap();
        assert_eq!(
            sealing(&ring, &document, Some(1), 9_000),
            Some(1),
            "it may not have the one before either"
        );
        ring.add(key(3));
        ring.apply_document(&document, UnixMs(9_000));
        let held = |ring: &KeyRing| ring.keys().iter().map(|key| key.epoch).collect::<Vec<_>>();
        assert_eq!(sealing(&ring, &document, Some(2), 9_000), Some(2));
        assert_eq!(sealing(&ring, &document, Some(9), 9_000), Some(3), "heard under one that is not held");
        ring.apply_document(&document, UnixMs(18_999));
        assert_eq!(held(&ring), [1, 2, 3]);
        ring.apply_document(&document, UnixMs(19_000));
        assert_eq!(held(&ring), [3]);
    }

    #[test]
    fn nodes_that_learn_of_a_new_key_seconds_apart_always_open_each_others_datagrams() {
        for removal in [false, true] {
            let (mut rings, mut documents) =
                ([KeyRing::default(), KeyRing::default()], [document(), document()]);
            for ring in &mut rings {
                ring.add(key(1));
                ring.apply_document(&documents[0], UnixMs(0));
            }
            let mut heard = [Some(key(1).id); 2];
            for now in (1_000..30_000).step_by(50) {
                for (node, learns_at) in [2_000, 5_500].into_iter().enumerate() {
                    if now == learns_at {
                        documents[node].turn_key(key(2).id, NodeId([0; 10]), UnixMs(2_000), removal).unwrap();
                        rings[node].add(key(2));
                    }
                    rings[node].apply_document(&documents[node], UnixMs(now));
                    let other = 1 - node;
                    let key = rings[node].sealing(&documents[node], heard[node], UnixMs(now)).unwrap();
                    assert!(
                        rings[other].get(key.id, UnixMs(now)).is_some(),
                        "at {now}, by {node}, {removal}"
                    );
                    heard[other] = Some(key.id);
                }
            }
            assert_eq!(heard, [Some(key(2).id); 2]);
        }
    }

    #[test]
    fn a_key_that_does_not_match_its_id_is_refused() {
        let mut forged = key(1);
        forged.id = key(2).id;
        assert!(!KeyRing::default().add(forged));
    }

    #[test]
    fn a_frame_of_an_unknown_kind_and_a_longer_body_lose_nothing_else() {
        let mut plaintext = vec![250, 0, 3, 1, 2, 3];
        assert!(DatagramFrame::Pulse(7).put(&mut plaintext));
        plaintext.extend_from_slice(&[1, 0, 10, 0, 0, 0, 0, 0, 0, 0, 9, 0xaa, 0xbb]);
        plaintext.extend_from_slice(&[2, 0, 3, 1, 2, 3]);
        assert!(DatagramFrame::Vip(b"x").put(&mut plaintext));
        plaintext.extend_from_slice(&[3, 0xff, 0xff, 1]);
        let frames: Vec<_> = DatagramFrame::all(&plaintext).collect();
        assert_eq!(frames, [DatagramFrame::Pulse(7), DatagramFrame::Challenge(9), DatagramFrame::Vip(b"x")]);
    }

    #[test]
    fn a_body_that_does_not_fit_is_not_appended() {
        let mut plaintext = vec![];
        assert!(!DatagramFrame::Gossip(&[0; MAX_BODY + 1]).put(&mut plaintext) && plaintext.is_empty());
        assert!(
            DatagramFrame::Gossip(&[0; MAX_BODY]).put(&mut plaintext) && plaintext.len() == MAX_PLAINTEXT
        );
        assert!(!DatagramFrame::Pulse(1).put(&mut plaintext) && plaintext.len() == MAX_PLAINTEXT);
    }

    #[test]
    fn the_highest_common_version_is_used_and_the_lowest_for_unknown_nodes() {
        assert_eq!(version_for(None), 1);
        assert_eq!(version_for(Some(1..=1)), 1);
        assert_eq!(version_for(Some(1..=200)), *VERSIONS.end());
        assert_eq!(
            version_for(Some(100..=200)),
            1,
            "nothing in common: it will not be understood either way"
        );
    }

    #[test]
    fn two_keys_with_one_hint_are_both_tried() {
        let mut ring = KeyRing::default();
        ring.add(key(1));
        ring.add(key(2));
        let hinted = |hint| ring.hinted(hint, UnixMs(0)).map(|key| key.epoch).collect::<Vec<_>>();
        assert_eq!(hinted(KeyHint::of(key(2).id)), [2]);
        assert_eq!(hinted(KeyHint([0; 4])), [0u64; 0]);
    }

    proptest! {
        #[test]
        fn a_header_reads_back_as_written(key: [u8; 4], sender: [u8; 10], boot: u64, sequence: u64) {
            let header = DatagramHeader { version: 1, key: KeyHint(key), sender: NodeId(sender), boot, sequence };
            let datagram = [header.to_bytes().as_slice(), &[0; 20]].concat();
            prop_assert_eq!(DatagramHeader::parse(&datagram).map(|(header, _)| header), Some(header));
        }

        #[test]
        fn no_datagram_makes_it_panic(bytes in proptest::collection::vec(any::<u8>(), 0..1300)) {
            if let Some((_, rest)) = DatagramHeader::parse(&bytes) {
                let _ = DatagramFrame::all(rest).count();
            }
            let _ = DatagramFrame::all(&bytes).count();
        }
    }
}
