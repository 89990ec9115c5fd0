//! Replay protection of the transport: which datagrams are new, and which start of a sender is live.
//!
//! Within a boot, a window over the sequence refuses duplicates ([`ReplayWindow`]). A receiver that has just
//! started has no history, so an unknown boot proves nothing: it challenges the sender, under the seal, to
//! echo a random number ([`Sessions`]). Only the live sender can, with its current boot; a recording can't.
//!
//! ```text
//!            unknown boot                echo of a number, from any boot
//!   Unknown ─────────────► Asked ──────────────────────────────────────────► Known (boot, window)
//!                          ▲  │ the next datagram of a boot, RETRY later          │ another boot is asked,
//!                          └──┘ asked again                                       │ and takes its place
//!                                                                                 ▼ when it repeats a number
//!                                                                               Known (new boot)
//! ```
//!
//! A recording of a dead boot is validly sealed, so it is challenged like a live one, at its own pace: each
//! boot has its own rate, so a recording takes nothing from the live boot. A number belongs to the address
//! that it was sent to, not to the boot that caused it: the node that echoes it is live, and is there. That
//! proves the address too.
//!
//! Two boots of one node that echo are two places of its identity ([`crate::elsewhere`]). So while the known boot was
//! heard lately from another address, it is asked for a proof of life first, and a boot that was known before and is
//! live again is no restart either. With the proof the other boot is refused; without one it takes the place.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use crate::elsewhere::{AliveProof, SHOWN};
use crate::limit::{Rate, RateBucket, RateLimiter};
use crate::node::NodeId;
use crate::time::Moment;
use crate::transport::DatagramHeader;

/// Words of the replay window.
const WORDS: usize = 16;

/// A sliding window over sequence numbers (as RFC 6479): true once for each number, never for one that is
/// behind the window.
#[derive(Debug, Clone)]
pub struct ReplayWindow {
    highest: u64,
    seen: [u64; WORDS],
}

impl ReplayWindow {
    /// How far a number may be behind the highest and still be accepted.
    pub const SIZE: u64 = (WORDS as u64 - 1) * 64;

    /// A window that accepts only numbers after `sequence`.
    pub fn after(sequence: u64) -> ReplayWindow {
        let mut seen = [u64::MAX; WORDS];
        // In the word of `sequence` itself, later numbers are still free.
        seen[(sequence / 64) as usize % WORDS] = u64::MAX >> (63 - sequence % 64);
        ReplayWindow { highest: sequence, seen }
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
        } else if self.highest - sequence >= ReplayWindow::SIZE {
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
pub enum BootVerdict {
    /// It is new: use it.
    Fresh,
    /// It was seen, or is too far behind: drop it.
    Replayed,
    /// Its boot is not proven: drop it and send this challenge to its source.
    Challenge(u64),
    /// Its boot is not proven and was challenged a moment ago: drop it.
    Unproven,
}

/// What follows from an echoed number.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EchoVerdict {
    /// Its sender is there.
    Proven(ProvenBoot),
    /// The known boot was heard lately, from `known_at`: ask it for a proof of life beside the boot of the echo.
    AskKnown {
        /// Where to ask.
        known_at: SocketAddr,
    },
    /// The known boot has proven that it is alive: tell the sender, and ask it for a proof beside `known`.
    Refused {
        /// The known boot.
        known: u64,
        /// Its proof.
        proof: AliveProof,
        /// Its address.
        known_at: SocketAddr,
        /// The sender's address.
        sender_at: SocketAddr,
    },
}

/// What an echoed number proves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ProvenBoot {
    /// The number was sent here, so the sender receives here.
    pub address: SocketAddr,
    /// The boot of the echo is the live one from now on, and was not before.
    pub boot: bool,
}

/// A proof of life that is to be passed on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ProofForOther {
    /// Where the other place is.
    pub to: SocketAddr,
    /// Where the place that has signed it is.
    pub signer_at: SocketAddr,
}

/// Time between two challenges to one boot of a sender because of its datagrams.
pub const RETRY: Duration = Duration::from_millis(200);

/// Longest time until an echo: a satellite link under load.
const NUMBER_TTL: Duration = Duration::from_secs(2);

/// Numbers remembered per sender: with sixteen recorded boots that are replayed from made-up addresses,
/// eighty challenges are sent per second, so that each is remembered for most of a second.
const NUMBERS: usize = 64;

/// Boots of one sender with a rate of their own; beyond them the longest idle one is forgotten and starts
/// again.
const BOOTS: usize = 16;

/// Echoes for each boot of a sender: some for each of its addresses.
const ECHOES: Rate = Rate { every: Duration::from_millis(50), burst: 20 };

/// Challenges and echoes for each source address, above what all recorded boots of one sender may cause.
const SOURCE: Rate = Rate { every: Duration::from_millis(2), burst: 200 };

/// Source addresses remembered; a member sends from a handful.
const SOURCES: usize = 1024;

/// Challenges that may be sent to one node because someone names addresses of it ([`Sessions::request`]).
const ASKS: Rate = Rate { every: Duration::from_millis(500), burst: 16 };

/// An address that was challenged this recently gets the same number again.
const SAME_NUMBER: Duration = Duration::from_secs(1);

/// A known boot that was heard within this time is asked before another one takes its place from another address.
const LATELY: Duration = Duration::from_secs(5);

/// How long its answer is waited for: three questions, of which two may be lost. A machine that comes back with another
/// address waits for it.
const PATIENCE: Duration = Duration::from_millis(500);

/// How long a proof of life counts.
const PROOF: Duration = Duration::from_secs(1);

/// A boot that says nothing for so long is no contender any more.
const GONE: Duration = Duration::from_secs(5);

#[derive(Debug, Clone, Copy)]
struct KnownBoot {
    boot: u64,
    /// When and from where its last new datagram came.
    heard: Moment,
    at: SocketAddr,
}

/// Another live boot than the known one.
#[derive(Debug, Clone, Copy)]
struct Contender {
    boot: u64,
    at: SocketAddr,
    /// When the known boot was first asked for the proof that is waited for.
    asked: Moment,
    /// Its last echo.
    heard: Moment,
    /// The known boot's proof of life, and when it came.
    proof: Option<(AliveProof, Moment)>,
}

#[derive(Debug, Clone, Copy)]
struct PendingProof {
    number: u64,
    to: SocketAddr,
    at: Moment,
    /// No boot was proven since: an echo that someone held back must not revive an older boot.
    proves_boot: bool,
}

#[derive(Debug, Clone, Copy)]
struct Boot {
    boot: u64,
    used: Moment,
    challenged: Option<Moment>,
    echoes: RateBucket,
}

#[derive(Debug, Clone, Default)]
struct Session {
    known: Option<(KnownBoot, ReplayWindow)>,
    /// The boot that was known before.
    previous: Option<u64>,
    contender: Option<Contender>,
    asked: Vec<PendingProof>,
    boots: Vec<Boot>,
    asks: RateBucket,
}

impl Session {
    fn boot(&mut self, boot: u64, now: Moment) -> Option<&mut Boot> {
        let at = self.boots.iter().position(|one| one.boot == boot).or_else(|| {
            if self.boots.len() >= BOOTS
                && let Some((oldest, _)) = self.boots.iter().enumerate().min_by_key(|(_, one)| one.used)
            {
                self.boots.swap_remove(oldest);
            }
            self.boots.push(Boot { boot, used: now, challenged: None, echoes: RateBucket::default() });
            Some(self.boots.len() - 1)
        })?;
        let boot = self.boots.get_mut(at)?;
        boot.used = now;
        Some(boot)
    }

    /// Another boot than the known one is live, at this address. `None`: it may take its place.
    fn contend(&mut self, boot: u64, at: SocketAddr, now: Moment) -> Option<EchoVerdict> {
        let (known, _) = self.known.as_ref()?;
        // What comes from the same address is a restart, unless it was there before.
        let suspicious = known.at != at || self.previous == Some(boot);
        if !suspicious || now.since(known.heard) >= LATELY {
            return None;
        }
        let same = |one: &Contender| one.boot == boot && now.since(one.heard) < GONE;
        let new = Contender { boot, at, asked: now, heard: now, proof: None };
        let contender = self.contender.get_or_insert(new);
        if !same(contender) {
            *contender = new;
        }
        (contender.at, contender.heard) = (at, now);
        let valid = |at: Moment| now.since(at) < PROOF;
        match contender.proof {
            Some((proof, proven)) if valid(proven) => {
                contender.asked = now;
                Some(EchoVerdict::Refused { known: known.boot, proof, known_at: known.at, sender_at: at })
            }
            _ if now.since(contender.asked) < PATIENCE => Some(EchoVerdict::AskKnown { known_at: known.at }),
            _ => None,
        }
    }

    /// The number for an address: the one that was sent there a moment ago, otherwise a new one.
    fn number_for(&mut self, to: SocketAddr, now: Moment, number: impl FnOnce() -> u64) -> u64 {
        self.asked.retain(|asked| now.since(asked.at) < NUMBER_TTL);
        let lately =
            |asked: &&PendingProof| asked.to == to && asked.proves_boot && now.since(asked.at) < SAME_NUMBER;
        if let Some(asked) = self.asked.iter().find(lately) {
            return asked.number;
        }
        if self.asked.len() >= NUMBERS {
            self.asked.remove(0);
        }
        let number = number();
        self.asked.push(PendingProof { number, to, at: now, proves_boot: true });
        number
    }
}

/// The proven boots of all senders. Only members are added, so the document bounds its size.
#[derive(Debug, Clone)]
pub struct Sessions {
    sessions: BTreeMap<NodeId, Session>,
    sources: RateLimiter<IpAddr>,
}

impl Default for Sessions {
    fn default() -> Sessions {
        Sessions { sessions: BTreeMap::new(), sources: RateLimiter::new(SOURCE, SOURCES) }
    }
}

impl Sessions {
    /// Evaluates an authentic datagram. `proof_only` is one that holds nothing but challenges and echoes,
    /// which an unproven boot may send. `number` returns a random number; it is called only when a new one is
    /// needed, since randomness costs a system call.
    pub fn evaluate(
        &mut self,
        header: &DatagramHeader,
        from: SocketAddr,
        proof_only: bool,
        now: Moment,
        number: impl FnOnce() -> u64,
    ) -> BootVerdict {
        let session = self.sessions.entry(header.sender).or_default();
        if let Some((known, window)) = &mut session.known
            && known.boot == header.boot
        {
            if !window.take(header.sequence) {
                return BootVerdict::Replayed;
            }
            (known.heard, known.at) = (now, from);
            return BootVerdict::Fresh;
        }
        if proof_only {
            return BootVerdict::Unproven;
        }
        let Some(boot) = session.boot(header.boot, now) else { return BootVerdict::Unproven };
        if boot.challenged.is_some_and(|at| now.since(at) < RETRY)
            || !self.sources.take(source(from.ip()), now)
        {
            return BootVerdict::Unproven;
        }
        boot.challenged = Some(now);
        BootVerdict::Challenge(session.number_for(from, now, number))
    }

    /// Whether to answer a challenge of an authentic datagram that was not replayed; limits the rate of
    /// answers.
    pub fn answers(&mut self, header: &DatagramHeader, from: SocketAddr, now: Moment) -> bool {
        let session = self.sessions.entry(header.sender).or_default();
        session.boot(header.boot, now).is_some_and(|boot| boot.echoes.take(ECHOES, now))
            && self.sources.take(source(from.ip()), now)
    }

    /// The number to send to a possible address of this node, to see whether it is there. None when that was
    /// challenged a moment ago, or when too many of its addresses were.
    pub fn probe_number(
        &mut self,
        node: NodeId,
        at: SocketAddr,
        now: Moment,
        number: impl FnOnce() -> u64,
    ) -> Option<u64> {
        let session = self.sessions.entry(node).or_default();
        let lately = session.asked.iter().any(|asked| asked.to == at && now.since(asked.at) < SAME_NUMBER);
        if lately || !session.asks.take(ASKS, now) {
            return None;
        }
        Some(session.number_for(at, now, number))
    }

    /// Evaluates an authentic echo: what follows from it, if its number was sent.
    pub fn echoed(&mut self, header: &DatagramHeader, number: u64, now: Moment) -> Option<EchoVerdict> {
        let session = self.sessions.get_mut(&header.sender)?;
        let fits = |asked: &PendingProof| asked.number == number && now.since(asked.at) < NUMBER_TTL;
        let asked = session.asked.swap_remove(session.asked.iter().position(fits)?);
        let known = session.known.as_ref().is_some_and(|(known, _)| known.boot == header.boot);
        let boot = asked.proves_boot && !known;
        if boot {
            if let Some(verdict) = session.contend(header.boot, asked.to, now) {
                return Some(verdict);
            }
            let fresh = KnownBoot { boot: header.boot, heard: now, at: asked.to };
            let before = session.known.replace((fresh, ReplayWindow::after(header.sequence)));
            session.previous = before.map(|(before, _)| before.boot);
            session.contender = None;
            session.asked.iter_mut().for_each(|asked| asked.proves_boot = false);
        }
        Some(EchoVerdict::Proven(ProvenBoot { address: asked.to, boot }))
    }

    /// Takes a proof of life from an authentic datagram. Returns where to pass it on: to the other place of the same
    /// identity, which verifies it.
    pub fn alive(
        &mut self,
        header: &DatagramHeader,
        proof: &AliveProof,
        now: Moment,
    ) -> Option<ProofForOther> {
        let session = self.sessions.get_mut(&header.sender)?;
        let (known, _) = session.known.as_ref()?;
        let contender = session.contender.as_mut()?;
        let other = if known.boot == header.boot && contender.boot == proof.beside {
            if !proof.aside {
                contender.proof = Some((*proof, now));
            }
            ProofForOther { to: contender.at, signer_at: known.at }
        } else if contender.boot == header.boot && known.boot == proof.beside {
            ProofForOther { to: known.at, signer_at: contender.at }
        } else {
            return None;
        };
        Some(other)
    }

    /// Members whose identity was proven to be used in two places within [`SHOWN`]: where the one that counts is, and
    /// the other.
    pub fn duplicates(&self, now: Moment) -> impl Iterator<Item = (NodeId, [SocketAddr; 2])> {
        self.sessions.iter().filter_map(move |(id, session)| {
            let contender = session.contender.filter(|one| {
                now.since(one.heard) < SHOWN && one.proof.is_some_and(|(_, at)| now.since(at) < SHOWN)
            })?;
            Some((*id, [session.known.as_ref()?.0.at, contender.at]))
        })
    }

    /// Forgets all that are no longer members.
    pub fn retain(&mut self, member: impl Fn(&NodeId) -> bool) {
        self.sessions.retain(|id, _| member(id));
    }
}

/// What counts as one source: an IPv4 address, or the /64 of an IPv6 host.
pub fn source(ip: IpAddr) -> IpAddr {
    match ip.to_canonical() {
        IpAddr::V6(ip) => Ipv6Addr::from_bits(ip.to_bits() & !(u128::from(u64::MAX))).into(),
        v4 => v4,
    }
}

#[cfg(test)]
#[path = "session_tests.rs"]
mod tests;
