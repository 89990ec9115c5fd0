//! The link's datagrams: header, replay protection, and which keys open what.
//!
//! ```text
//!   version 1 | key id 4 | sender 10 | boot 8 | sequence 8 | ciphertext … | tag 16
//! ```
//!
//! The header is authenticated, not secret. `boot` is random and new at every start of the sender, the key
//! is derived from the gossip key, the sender and the boot, and the sequence is the nonce, so no nonce is
//! ever used twice.
//!
//! # Replays, also after a restart
//!
//! Within a boot, a window over the sequence refuses what was seen ([`Window`]). A receiver that has just
//! started has seen nothing, so a boot that it does not know proves nothing: it asks the sender, under the
//! seal, to repeat a random number ([`Sessions`]). Only the live sender can, with its current boot; what was
//! recorded before can't.
//!
//! ```text
//!            unknown boot                    echo of the number, same boot
//!   Unknown ─────────────► Asked (number) ────────────────────────────────► Known (boot, window)
//!                            ▲  dropped: asked again after RETRY                │ another boot
//!                            └──────────────────────────────────────────────────┘ (the old one stays
//!                                                                                  until the new is proven)
//! ```

use std::collections::BTreeMap;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::cluster::{Document, KeyId};
use crate::node::NodeId;
use crate::time::{Moment, UnixMs};

/// The link's port, UDP and TCP.
pub const PORT: u16 = 7646;

/// Largest datagram that is sent: fits every tunnel's MTU (IPv6 promises 1280), so nothing is fragmented.
pub const MAX_DATAGRAM: usize = 1200;

/// Length of [`Header`] on the wire.
pub const HEADER_LEN: usize = 1 + KeyId::LEN + NodeId::LEN + 8 + 8;

/// Length of the AEAD tag.
pub const TAG_LEN: usize = 16;

/// Most payload of one datagram, its kind byte excluded.
pub const MAX_PAYLOAD: usize = MAX_DATAGRAM - HEADER_LEN - TAG_LEN - 1;

const VERSION: u8 = 1;

/// What stands before the ciphertext.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Header {
    /// Which gossip key.
    pub key: KeyId,
    /// Who sends.
    pub sender: NodeId,
    /// Which start of the sender.
    pub boot: u64,
    /// Counts from 1 within the boot.
    pub sequence: u64,
}

impl Header {
    /// The header as bytes.
    pub fn to_bytes(&self) -> [u8; HEADER_LEN] {
        let mut bytes = [0; HEADER_LEN];
        bytes[0] = VERSION;
        bytes[1..5].copy_from_slice(&self.key.0);
        bytes[5..15].copy_from_slice(&self.sender.0);
        bytes[15..23].copy_from_slice(&self.boot.to_be_bytes());
        bytes[23..31].copy_from_slice(&self.sequence.to_be_bytes());
        bytes
    }

    /// Splits a datagram into header and ciphertext; none when it is not one of ours.
    pub fn parse(datagram: &[u8]) -> Option<(Header, &[u8])> {
        let (header, ciphertext) = datagram.split_first_chunk::<HEADER_LEN>()?;
        if header[0] != VERSION || ciphertext.len() <= TAG_LEN || datagram.len() > MAX_DATAGRAM {
            return None;
        }
        let mut key = [0; 4];
        key.copy_from_slice(&header[1..5]);
        let mut sender = [0; 10];
        sender.copy_from_slice(&header[5..15]);
        let number = |from: usize| {
            let mut bytes = [0; 8];
            bytes.copy_from_slice(&header[from..from + 8]);
            u64::from_be_bytes(bytes)
        };
        let header =
            Header { key: KeyId(key), sender: NodeId(sender), boot: number(15), sequence: number(23) };
        Some((header, ciphertext))
    }

    /// The AEAD nonce that belongs to the sequence: unique, since the key belongs to sender and boot.
    pub fn nonce(&self) -> [u8; 12] {
        let mut nonce = [0; 12];
        nonce[4..].copy_from_slice(&self.sequence.to_be_bytes());
        nonce
    }
}

/// What a datagram carries: the first byte under the seal.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Payload<'a> {
    /// A gossip message.
    Gossip(&'a [u8]),
    /// "Repeat this number, so that I know that you are there now."
    Challenge(u64),
    /// The repeated number.
    Echo(u64),
    /// "Answer this at once."
    Pulse(u64),
    /// The answer, with what the sender says of itself ([`crate::pulse::Saying`]). Number 0: not asked for,
    /// but something has changed.
    Answer(u64, &'a [u8]),
    /// What candidates and witnesses say of virtual IPs.
    Vip(&'a [u8]),
}

impl Payload<'_> {
    /// The payload as bytes.
    pub fn to_bytes(&self) -> Vec<u8> {
        let (kind, body) = match self {
            Payload::Gossip(message) => (0, message.to_vec()),
            Payload::Challenge(number) => (1, number.to_be_bytes().to_vec()),
            Payload::Echo(number) => (2, number.to_be_bytes().to_vec()),
            Payload::Pulse(number) => (3, number.to_be_bytes().to_vec()),
            Payload::Answer(number, saying) => (4, [&number.to_be_bytes(), *saying].concat()),
            Payload::Vip(message) => (5, message.to_vec()),
        };
        [vec![kind], body].concat()
    }

    /// Reads a payload; none when this version does not know it.
    pub fn parse(bytes: &[u8]) -> Option<Payload<'_>> {
        let (kind, body) = bytes.split_first()?;
        let number = || <[u8; 8]>::try_from(body).ok().map(u64::from_be_bytes);
        match kind {
            0 => Some(Payload::Gossip(body)),
            1 => number().map(Payload::Challenge),
            2 => number().map(Payload::Echo),
            3 => number().map(Payload::Pulse),
            4 => {
                let (number, saying) = body.split_first_chunk::<8>()?;
                Some(Payload::Answer(u64::from_be_bytes(*number), saying))
            }
            5 => Some(Payload::Vip(body)),
            _ => None,
        }
    }
}

/// Words of the replay window.
const WORDS: usize = 16;

/// A sliding window over sequence numbers (as RFC 6479): true once for each number, never for one that has
/// fallen out behind.
#[derive(Debug, Clone)]
pub struct Window {
    highest: u64,
    seen: [u64; WORDS],
}

impl Window {
    /// How far behind the highest number one may come and still be taken.
    pub const SIZE: u64 = (WORDS as u64 - 1) * 64;

    /// A window that takes only what comes after `sequence`.
    pub fn after(sequence: u64) -> Window {
        let mut seen = [u64::MAX; WORDS];
        // In the word of `sequence` itself, what comes after it is still free.
        seen[(sequence / 64) as usize % WORDS] = u64::MAX >> (63 - sequence % 64);
        Window { highest: sequence, seen }
    }

    /// Whether this number is new; remembers it.
    pub fn take(&mut self, sequence: u64) -> bool {
        let word = |sequence: u64| (sequence / 64) as usize % WORDS;
        if sequence > self.highest {
            // Words between the old and the new highest hold numbers of a round ago.
            let steps = (sequence / 64 - self.highest / 64).min(WORDS as u64);
            for step in 0..steps {
                self.seen[word(sequence - step * 64)] = 0;
            }
            self.highest = sequence;
        } else if self.highest - sequence >= Window::SIZE {
            return false;
        }
        let bit = 1 << (sequence % 64);
        let new = self.seen[word(sequence)] & bit == 0;
        self.seen[word(sequence)] |= bit;
        new
    }
}

/// What to do with an authentic datagram.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// It is new: use it.
    Fresh,
    /// It was seen, or lies too far behind: drop it.
    Replayed,
    /// Its boot is not proven: drop it and send this challenge to where it came from.
    Challenge(u64),
    /// Its boot is not proven and was asked a moment ago: drop it.
    Unproven,
}

/// Time between two challenges to one sender.
pub const RETRY: Duration = Duration::from_millis(200);

#[derive(Debug, Clone, Default)]
struct Session {
    known: Option<(u64, Window)>,
    asked: Option<(u64, u64, Moment)>,
}

/// The proven boots of all senders. Only members are ever entered, so its size is bounded by the document.
#[derive(Debug, Clone, Default)]
pub struct Sessions {
    sessions: BTreeMap<NodeId, Session>,
}

impl Sessions {
    /// Judges an authentic datagram that is neither challenge nor echo. `number` gives a random number; it is
    /// asked for only when the verdict is a challenge, since randomness costs a system call.
    pub fn judge(&mut self, header: &Header, now: Moment, number: impl FnOnce() -> u64) -> Verdict {
        let session = self.sessions.entry(header.sender).or_default();
        if let Some((boot, window)) = &mut session.known
            && *boot == header.boot
        {
            return if window.take(header.sequence) { Verdict::Fresh } else { Verdict::Replayed };
        }
        match session.asked {
            Some((_, boot, asked)) if boot == header.boot && now.since(asked) < RETRY => Verdict::Unproven,
            // Two boots of one sender can't both be alive, but a recording of an old one may be sent in
            // between: the question to the live one must not be lost to it.
            Some((_, boot, asked)) if boot != header.boot && now.since(asked) < RETRY / 4 => {
                Verdict::Unproven
            }
            _ => {
                let number = number();
                session.asked = Some((number, header.boot, now));
                Verdict::Challenge(number)
            }
        }
    }

    /// Judges an authentic echo. True: its boot is proven from now on.
    pub fn echoed(&mut self, header: &Header, number: u64) -> bool {
        let session = self.sessions.entry(header.sender).or_default();
        match session.asked {
            Some((asked, boot, _)) if asked == number && boot == header.boot => {
                session.asked = None;
                session.known = Some((boot, Window::after(header.sequence)));
                true
            }
            _ => false,
        }
    }

    /// Whether this sender's boot is proven.
    pub fn is_proven(&self, sender: &NodeId) -> bool {
        self.sessions.get(sender).is_some_and(|session| session.known.is_some())
    }

    /// Forgets everyone who is not a member any more.
    pub fn retain(&mut self, member: impl Fn(&NodeId) -> bool) {
        self.sessions.retain(|id, _| member(id));
    }
}

/// How long the key before a rotation is still accepted.
pub const OLD_KEY_TTL: Duration = Duration::from_secs(600);

/// One gossip key.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct GossipKey {
    /// Its epoch.
    pub epoch: u64,
    /// Its id.
    pub id: KeyId,
    /// The key.
    pub secret: [u8; 32],
    /// Until when it is accepted; none: it counts, or nothing has taken its place yet.
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
}

impl KeyRing {
    /// Adds a key; true when it was not held yet. A key that is not what its id says is refused.
    pub fn add(&mut self, key: GossipKey) -> bool {
        let known = self.keys.iter().any(|held| held.id == key.id);
        if known || KeyId::of_key(&key.secret) != key.id {
            return false;
        }
        self.keys.push(key);
        true
    }

    /// Follows the document: the key that counts, when it is held, sends the others into retirement; those
    /// below the floor go at once. True when something changed.
    pub fn follow(&mut self, document: &Document, now: UnixMs) -> bool {
        let before = self.clone();
        let current = document.key.id;
        if self.keys.iter().any(|key| key.id == current) {
            for key in &mut self.keys {
                key.until = if key.id == current { None } else { key.until.or(Some(now.after(OLD_KEY_TTL))) };
            }
            self.keys.retain(|key| key.id == current || key.epoch >= document.key_floor);
        }
        self.keys.retain(|key| key.until.is_none_or(|until| until > now));
        *self != before
    }

    /// The key to seal with: the document's where it is held, else the latest.
    pub fn sealing(&self, document: &Document) -> Option<&GossipKey> {
        self.keys
            .iter()
            .find(|key| key.id == document.key.id)
            .or_else(|| self.keys.iter().max_by_key(|key| (key.epoch, key.id)))
    }

    /// The key with this id, while it is accepted.
    pub fn get(&self, id: KeyId, now: UnixMs) -> Option<&GossipKey> {
        self.keys.iter().find(|key| key.id == id && key.until.is_none_or(|until| until > now))
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
    use crate::cluster::{Admitted, ClusterId};
    use crate::node::{Name, PublicKey};

    fn header(boot: u64, sequence: u64) -> Header {
        Header { key: KeyId([1; 4]), sender: NodeId([2; 10]), boot, sequence }
    }

    fn at(ms: u64) -> Moment {
        Moment::from_millis(ms)
    }

    #[test]
    fn a_boot_is_believed_only_after_its_echo() {
        let mut sessions = Sessions::default();
        assert_eq!(sessions.judge(&header(7, 10), at(0), || 99), Verdict::Challenge(99));
        assert_eq!(sessions.judge(&header(7, 11), at(10), || 98), Verdict::Unproven);
        assert!(!sessions.echoed(&header(7, 12), 98), "a number that was not asked");
        assert!(!sessions.echoed(&header(8, 12), 99), "the right number from another boot");
        assert!(sessions.echoed(&header(7, 12), 99));
        assert!(!sessions.echoed(&header(7, 12), 99), "an echo counts once");
        assert_eq!(sessions.judge(&header(7, 13), at(20), || 1), Verdict::Fresh);
        assert_eq!(sessions.judge(&header(7, 13), at(20), || 1), Verdict::Replayed);
        assert_eq!(sessions.judge(&header(7, 11), at(20), || 1), Verdict::Replayed, "sent before the echo");
    }

    #[test]
    fn after_the_receiver_restarts_a_recording_is_refused() {
        let mut sessions = Sessions::default();
        for sequence in 1..100 {
            assert_ne!(sessions.judge(&header(7, sequence), at(sequence * 300), || 5), Verdict::Fresh);
        }
    }

    #[test]
    fn after_the_sender_restarts_its_old_boot_is_refused_and_can_not_displace_the_new() {
        let mut sessions = Sessions::default();
        sessions.judge(&header(7, 1), at(0), || 1);
        sessions.echoed(&header(7, 2), 1);
        assert_eq!(sessions.judge(&header(8, 1), at(1000), || 2), Verdict::Challenge(2));
        assert_eq!(sessions.judge(&header(7, 3), at(1001), || 3), Verdict::Fresh, "still the proven boot");
        assert!(sessions.echoed(&header(8, 2), 2));
        assert_eq!(sessions.judge(&header(7, 4), at(2000), || 4), Verdict::Challenge(4));
        assert_eq!(sessions.judge(&header(8, 3), at(2001), || 5), Verdict::Fresh);
    }

    fn document() -> Document {
        let first = Admitted {
            at: UnixMs(1),
            name: Name::nearest("a"),
            key: PublicKey([0; 32]),
            by: NodeId([0; 10]),
        };
        Document::new(ClusterId::from_random([0; 16]), Name::nearest("c"), first, key(1).id)
    }

    fn key(n: u8) -> GossipKey {
        let secret = [n; 32];
        GossipKey { epoch: u64::from(n), id: KeyId::of_key(&secret), secret, until: None }
    }

    #[test]
    fn a_rotation_leaves_the_old_key_for_ten_minutes_and_a_removal_not_at_all() {
        let by = NodeId([0; 10]);
        let mut document = document();
        let mut ring = KeyRing::default();
        assert!(ring.add(key(1)) && !ring.add(key(1)));
        ring.follow(&document, UnixMs(0));
        document.turn_key(key(2).id, by, UnixMs(0), false);
        assert_eq!(ring.sealing(&document).map(|key| key.epoch), Some(1), "the new one is not here yet");
        ring.add(key(2));
        ring.follow(&document, UnixMs(0));
        assert_eq!(ring.sealing(&document).map(|key| key.epoch), Some(2));
        assert!(ring.get(key(1).id, UnixMs(599_999)).is_some());
        assert!(ring.get(key(1).id, UnixMs(600_000)).is_none());
        document.turn_key(key(3).id, by, UnixMs(0), true);
        ring.add(key(3));
        ring.follow(&document, UnixMs(1));
        assert_eq!(ring.keys().len(), 1);
    }

    #[test]
    fn a_key_that_is_not_what_its_id_says_is_refused() {
        let mut forged = key(1);
        forged.id = key(2).id;
        assert!(!KeyRing::default().add(forged));
    }

    proptest! {
        #[test]
        fn a_header_reads_back_as_written(key: [u8; 4], sender: [u8; 10], boot: u64, sequence: u64) {
            let header = Header { key: KeyId(key), sender: NodeId(sender), boot, sequence };
            let datagram = [header.to_bytes().as_slice(), &[0; 20]].concat();
            prop_assert_eq!(Header::parse(&datagram).map(|(header, _)| header), Some(header));
        }

        #[test]
        fn no_datagram_makes_it_panic(bytes in proptest::collection::vec(any::<u8>(), 0..1300)) {
            if let Some((_, rest)) = Header::parse(&bytes) {
                let _ = Payload::parse(rest);
            }
            let _ = Payload::parse(&bytes);
        }

        #[test]
        fn the_window_takes_each_number_at_most_once_and_each_recent_one(
            numbers in proptest::collection::vec(1u64..3000, 0..400),
        ) {
            let mut window = Window::after(0);
            let mut seen = std::collections::BTreeSet::new();
            let mut highest = 0;
            for number in numbers {
                let taken = window.take(number);
                highest = highest.max(number);
                prop_assert!(!(taken && seen.contains(&number)), "{number} twice");
                if highest - number < Window::SIZE {
                    prop_assert_eq!(taken, !seen.contains(&number), "{}", number);
                }
                seen.insert(number);
            }
        }
    }
}
