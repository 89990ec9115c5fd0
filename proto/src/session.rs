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

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::time::Duration;

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

/// What an echoed number proves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ProvenBoot {
    /// The number was sent here, so the sender receives here.
    pub address: SocketAddr,
    /// The boot of the echo is the live one from now on, and was not before.
    pub boot: bool,
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
    known: Option<(u64, ReplayWindow)>,
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
        if let Some((boot, window)) = &mut session.known
            && *boot == header.boot
        {
            return if window.take(header.sequence) { BootVerdict::Fresh } else { BootVerdict::Replayed };
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

    /// Evaluates an authentic echo: what it proves, if its number was sent.
    pub fn echoed(&mut self, header: &DatagramHeader, number: u64, now: Moment) -> Option<ProvenBoot> {
        let session = self.sessions.get_mut(&header.sender)?;
        let fits = |asked: &PendingProof| asked.number == number && now.since(asked.at) < NUMBER_TTL;
        let asked = session.asked.swap_remove(session.asked.iter().position(fits)?);
        let known = session.known.as_ref().is_some_and(|(boot, _)| *boot == header.boot);
        let boot = asked.proves_boot && !known;
        if boot {
            session.known = Some((header.boot, ReplayWindow::after(header.sequence)));
            session.asked.iter_mut().for_each(|asked| asked.proves_boot = false);
        }
        Some(ProvenBoot { address: asked.to, boot })
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
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::transport::KeyHint;

    fn header(boot: u64, sequence: u64) -> DatagramHeader {
        DatagramHeader { version: 1, key: KeyHint([1; 4]), sender: NodeId([2; 10]), boot, sequence }
    }

    fn at(ms: u64) -> Moment {
        Moment::from_millis(ms)
    }

    fn from(n: u8) -> SocketAddr {
        SocketAddr::from(([10, 0, 0, n], 7646))
    }

    /// Sessions in which this boot is proven.
    fn known(boot: u64) -> Sessions {
        let mut sessions = Sessions::default();
        assert_eq!(
            sessions.evaluate(&header(boot, 1), from(1), false, at(0), || 1),
            BootVerdict::Challenge(1)
        );
        assert_eq!(
            sessions.echoed(&header(boot, 2), 1, at(0)),
            Some(ProvenBoot { address: from(1), boot: true })
        );
        sessions
    }

    #[test]
    fn a_boot_is_believed_only_after_its_echo() {
        let mut sessions = Sessions::default();
        assert_eq!(
            sessions.evaluate(&header(7, 10), from(1), false, at(0), || 99),
            BootVerdict::Challenge(99)
        );
        assert_eq!(sessions.evaluate(&header(7, 11), from(1), false, at(10), || 98), BootVerdict::Unproven);
        assert_eq!(sessions.echoed(&header(7, 12), 98, at(20)), None, "a number that was not asked");
        assert!(sessions.echoed(&header(7, 12), 99, at(20)).is_some_and(|proven| proven.boot));
        assert_eq!(sessions.echoed(&header(7, 12), 99, at(20)), None, "an echo counts once");
        assert_eq!(sessions.evaluate(&header(7, 13), from(1), false, at(20), || 1), BootVerdict::Fresh);
        assert_eq!(sessions.evaluate(&header(7, 13), from(1), false, at(20), || 1), BootVerdict::Replayed);
        assert_eq!(
            sessions.evaluate(&header(7, 11), from(1), false, at(20), || 1),
            BootVerdict::Replayed,
            "sent before the echo"
        );
    }

    #[test]
    fn an_echo_that_comes_too_late_proves_nothing() {
        let mut sessions = Sessions::default();
        sessions.evaluate(&header(7, 10), from(1), false, at(0), || 99);
        assert_eq!(sessions.echoed(&header(7, 12), 99, at(2_000)), None);
    }

    #[test]
    fn after_the_receiver_restarts_a_recording_is_refused() {
        let mut sessions = Sessions::default();
        for sequence in 1..100 {
            let verdict =
                sessions.evaluate(&header(7, sequence), from(1), false, at(sequence * 300), || sequence);
            assert_ne!(verdict, BootVerdict::Fresh);
        }
    }

    #[test]
    fn after_the_sender_restarts_its_old_boot_is_refused_and_can_not_displace_the_new() {
        let mut sessions = known(7);
        assert_eq!(
            sessions.evaluate(&header(8, 1), from(1), false, at(3_000), || 2),
            BootVerdict::Challenge(2)
        );
        assert_eq!(
            sessions.evaluate(&header(7, 3), from(1), false, at(3_001), || 3),
            BootVerdict::Fresh,
            "still proven"
        );
        assert!(sessions.echoed(&header(8, 2), 2, at(3_002)).is_some_and(|proven| proven.boot));
        assert_eq!(
            sessions.evaluate(&header(7, 4), from(1), false, at(4_000), || 4),
            BootVerdict::Challenge(4)
        );
        assert_eq!(sessions.evaluate(&header(8, 3), from(1), false, at(4_001), || 5), BootVerdict::Fresh);
    }

    #[test]
    fn a_delayed_echo_does_not_revive_an_older_boot() {
        let mut sessions = Sessions::default();
        sessions.evaluate(&header(7, 1), from(1), false, at(0), || 1);
        // The echo of boot 7 is held back, and the node restarts.
        sessions.evaluate(&header(8, 1), from(2), false, at(500), || 2);
        assert!(sessions.echoed(&header(8, 2), 2, at(510)).is_some_and(|proven| proven.boot));
        let late = sessions.echoed(&header(7, 2), 1, at(520));
        assert_eq!(late, Some(ProvenBoot { address: from(1), boot: false }), "it was there, a moment ago");
        assert_eq!(sessions.evaluate(&header(8, 3), from(2), false, at(530), || 3), BootVerdict::Fresh);
    }

    /// Recordings of `boots` old boots, each replayed every millisecond from the addresses of `source`,
    /// starting before the live boot's first datagram. Returns how long the live boot takes to be proven,
    /// with a round trip of 100 ms and a datagram every 100 ms.
    fn time_to_prove(boots: u64, source: impl Fn(u64) -> SocketAddr) -> Option<u64> {
        let (mut sessions, mut next, mut echoes) = (Sessions::default(), 1_000u64, Vec::new());
        for ms in 0..10_000u64 {
            let mut number = || {
                next += 1;
                next
            };
            let mut send = |boot, sequence, from| {
                let verdict = sessions.evaluate(&header(boot, sequence), from, false, at(ms), &mut number);
                assert_ne!(verdict, BootVerdict::Fresh, "boot {boot}");
                if let BootVerdict::Challenge(number) = verdict
                    && from == self::from(1)
                    && ms >= 1_000
                {
                    // The live node echoes whatever arrives at its address.
                    echoes.push((ms + 100, number));
                }
            };
            (0..boots).for_each(|boot| send(boot, 5, source(ms * boots + boot)));
            if ms >= 1_000 && ms % 100 == 0 {
                send(u64::MAX, ms, from(1));
            }
            let due = echoes.iter().filter(|(due, _)| *due == ms).map(|(_, number)| *number);
            let mut proofs = due.filter_map(|number| sessions.echoed(&header(u64::MAX, ms), number, at(ms)));
            if proofs.any(|proven| proven.boot) {
                return Some(ms - 1_000);
            }
        }
        None
    }

    #[test]
    fn recordings_of_old_boots_do_not_delay_the_proof_of_the_live_one() {
        let one = |_| from(9);
        let many = |n: u64| SocketAddr::from(([11, (n >> 16) as u8, (n >> 8) as u8, n as u8], 7));
        let own = |_| from(1);
        type Source = fn(u64) -> SocketAddr;
        let cases: [(&str, u64, Source); 8] = [
            ("nobody replays", 0, one),
            ("one boot, from one address", 1, one),
            ("two boots, from one address", 2, one),
            ("two boots, from the live node's address", 2, own),
            ("two boots, from many addresses", 2, many),
            ("as many boots as are remembered, from many addresses", 15, many),
            ("more boots than are remembered, from one address", 40, one),
            ("more boots than are remembered, from the live node's address", 40, own),
        ];
        for (what, boots, source) in cases {
            assert_eq!(time_to_prove(boots, source), Some(100), "{what}");
        }
    }

    #[test]
    fn a_replayed_challenge_is_not_answered_and_others_at_a_limited_rate() {
        let mut sessions = known(7);
        assert_eq!(sessions.evaluate(&header(7, 5), from(1), true, at(0), || 0), BootVerdict::Fresh);
        assert_eq!(sessions.evaluate(&header(7, 5), from(1), true, at(1), || 0), BootVerdict::Replayed);
        assert_eq!(
            sessions.evaluate(&header(6, 5), from(1), true, at(1), || 0),
            BootVerdict::Unproven,
            "unasked"
        );
        // A recording of a dead boot can't be distinguished from a node that has just started.
        let answered = (0..10_000).filter(|ms| sessions.answers(&header(6, 5), from(9), at(*ms))).count();
        assert!((200..=230).contains(&answered), "{answered} in ten seconds");
        // It takes nothing from the live boot, even if it claims to come from there.
        let mut live = 0;
        for ms in 10_000..11_000 {
            sessions.answers(&header(6, 5), from(1), at(ms));
            live += u64::from(ms % 100 == 0 && sessions.answers(&header(7, ms), from(1), at(ms)));
        }
        assert_eq!(live, 10);
    }

    #[test]
    fn answers_to_one_source_are_limited_whatever_was_recorded() {
        let mut sessions = Sessions::default();
        let mut sent = 0;
        for ms in 0..10_000u64 {
            for boot in 0..100 {
                let verdict = sessions.evaluate(&header(boot, 5), from(9), false, at(ms), || ms * 100 + boot);
                sent += u64::from(matches!(verdict, BootVerdict::Challenge(_)));
            }
        }
        assert!(sent <= 5_300, "{sent} in ten seconds, of a million");
    }

    #[test]
    fn an_address_is_proven_by_the_number_that_was_sent_there_and_no_other() {
        let mut sessions = known(7);
        let node = NodeId([2; 10]);
        assert_eq!(sessions.probe_number(node, from(3), at(0), || 30), Some(30));
        assert_eq!(sessions.probe_number(node, from(4), at(0), || 40), Some(40));
        assert_eq!(sessions.probe_number(node, from(3), at(500), || 31), None, "asked a moment ago");
        // It answers a challenge sent to address 3, and claims to be at 4.
        let proven = sessions.echoed(&header(7, 9), 30, at(600));
        assert_eq!(proven, Some(ProvenBoot { address: from(3), boot: false }));
        assert_eq!(sessions.echoed(&header(7, 10), 30, at(600)), None);
        assert_eq!(sessions.probe_number(node, from(3), at(1_600), || 32), Some(32));
        let asked =
            (0..200).filter(|n| sessions.probe_number(node, from(*n), at(1_600), || 50).is_some()).count();
        assert!(asked <= 16, "{asked} addresses that it named are asked at once");
    }

    #[test]
    fn a_source_is_an_address_or_a_network_of_one_host() {
        let source = |text: &str| source(text.parse().unwrap()).to_string();
        assert_eq!(source("10.0.0.1"), "10.0.0.1");
        assert_eq!(source("::ffff:10.0.0.1"), "10.0.0.1");
        assert_eq!(source("2001:db8:1:2:3::4"), "2001:db8:1:2::");
    }

    proptest! {
        #[test]
        fn the_window_accepts_each_number_at_most_once_and_each_recent_one(
            numbers in proptest::collection::vec(1u64..3000, 0..400),
        ) {
            let mut window = ReplayWindow::after(0);
            let mut seen = std::collections::BTreeSet::new();
            let mut highest = 0;
            for number in numbers {
                let taken = window.take(number);
                highest = highest.max(number);
                prop_assert!(!(taken && seen.contains(&number)), "{number} twice");
                if highest - number < ReplayWindow::SIZE {
                    prop_assert_eq!(taken, !seen.contains(&number), "{}", number);
                }
                seen.insert(number);
            }
        }
    }
}
