//! Liveness of one peer: small sealed datagrams that it answers at once, and what their absence means.
//!
//! ```text
//!              answer               no answer for LATE, or refused   no answer for SILENT, or
//!                                                                    nobody hears it for SILENT_FOR_ALL
//!   Unknown ──────────► Alive ─────────────────────────────► Late ───────────────────► Silent, CutOff
//!                         ▲          (a miss starts a burst)   │  answer                │ answer
//!                         └────────────────────────────────────┴────────────────────────┘
//! ```
//!
//! What others report ([`crate::heard`]) makes the verdict quicker, and tells what it means:
//!
//! ```text
//!   this node                others                                       verdict
//!   silence SILENT_FOR_ALL   heard by none as long, and two nodes or a    Silent at once
//!                            master report that they do not hear it
//!   silence SILENT           heard by one within SILENT_FOR_ALL           CutOff: the path from here is cut
//!   silence SILENT           no such report                               Silent
//! ```
//!
//! So a liar that claims to hear a dead master delays the verdict to this node's own full time, and one that
//! claims not to hear a live one changes nothing: this node or an honest one hears it.
//!
//! Silence is the time since the first pulse that has no answer, not since the last answer: in a large cluster most
//! nodes pulse seldom ([`Pace`]), and pulse at once what a master, or two others, report as silent. Then it is late as
//! soon as an answer is due.
//!
//! One that has never answered is unknown, until others doubt it: a node that has just started counts its silence from
//! then.
//!
//! A burst ends with the next answer, or when the peer is silent: a dead peer must not get more pulses than a
//! live one. Its pace depends on the size of the cluster, so that a master that stalls is not flooded by all nodes at
//! once.
//!
//! "Refused" means that the peer's machine reports that no agent runs there (ICMP). It is then late at once,
//! so that its services are checked directly; only silence makes it silent, since that message is not signed.
//!
//! The peer's answer also carries its [`PulseStatus`]: what it offers and its readiness, so that a change
//! takes one pulse. Round-trip time and loss are by-products.
//!
//! At 10 % loss each way a round trip is lost one time in five. Late takes five losses in a row, which
//! happens every few minutes and costs nothing; Silent takes nineteen, or eight while others lose as many.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use crate::cause::Cause;
use crate::health::Readiness;
use crate::heard::{LATELY, PeerReports};
use crate::next_wire;
use crate::node::NodeId;
use crate::service::ServiceName;
use crate::time::Moment;

/// Time between two pulses to one peer in a small cluster, and of masters to each other in any.
pub const INTERVAL: Duration = Duration::from_millis(100);

/// Longest interval of pulses to a peer that has never answered.
const UNKNOWN: Duration = Duration::from_secs(2);

/// Pulses with a longer interval keep to their times whatever else makes them due, each peer's to its own, or all
/// nodes would pulse in step after each burst.
const SLOW: Duration = Duration::from_millis(500);

/// Shortest time between two pulses that others give reason for.
const HASTENED: Duration = Duration::from_millis(500);

/// How long a node may be silent while its process is replaced, once it has said so: to those that pulse it, and to
/// those that wait for its virtual IP. If it is not back by then, it is as silent as any.
pub const PAUSE: Duration = Duration::from_secs(2);

/// Silence after which a peer is late: time for four pulses of a burst.
const LATE: Duration = Duration::from_millis(200);

/// Silence after which a peer is silent: time for eighteen.
const SILENT: Duration = Duration::from_millis(900);

/// Time since anyone has heard a peer, beyond [`INTERVAL`], after which it can be silent for all.
const SILENT_FOR_ALL: Duration = Duration::from_millis(350);

/// This node's own silence that this takes: time for four pulses of a burst.
const SILENT_HERE: Duration = Duration::from_millis(200);

/// Age beyond [`INTERVAL`] up to which a report counts: one may be lost, and the next.
const FRESH_REPORT: Duration = Duration::from_millis(300);

/// Pulses that are remembered until their answer arrives: a second's worth of a burst.
const REMEMBERED: usize = 32;

/// Most services in a status, and so in a pulse's answer.
const MAX_SERVICES: usize = 32;

/// Most bytes of a status: with seal and header it must fit into one datagram.
const MAX_STATUS: usize = 1088;

/// Tags of a status' fields.
const FLAGS: u8 = 1;
const SERVICE: u8 = 2;

/// How often a node pulses one peer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Pace {
    /// Time between two pulses while they are answered.
    pub interval: Duration,
    /// The same after a miss.
    pub burst: Duration,
    /// A node that has just started pulses first within this time, unless others say that a peer is silent: all nodes
    /// may have started.
    pub start: Duration,
    /// Regular pulses are due at multiples of the interval on this node's own clock, and so late: all masters are
    /// pulsed at once, and the agent wakes up once for them.
    pub phase: Duration,
}

impl Pace {
    /// The fastest, that of a small cluster.
    pub const FAST: Pace = Pace {
        interval: INTERVAL,
        burst: Duration::from_millis(50),
        start: Duration::ZERO,
        phase: Duration::ZERO,
    };
}

/// Liveness of a peer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Liveness {
    /// It has never answered a pulse, and nobody has doubted it.
    Unknown,
    /// It answers.
    Alive,
    /// It has not answered for a moment.
    Late,
    /// Nobody has heard it for so long that loss does not explain it, as far as is known here.
    Silent,
    /// The same from here alone: others hear it.
    CutOff,
}

/// State of one peer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PeerLiveness {
    /// Its liveness.
    pub liveness: Liveness,
    /// Its own status; `None` before its first answer. Shared, since it hardly ever changes.
    pub status: Option<Arc<PulseStatus>>,
    /// Smoothed round-trip time.
    pub rtt: Option<Duration>,
    /// Share of pulses without an answer, in thousandths.
    pub loss_permille: u16,
}

/// All peers that this node pulses.
pub type PeerLivenessMap = BTreeMap<NodeId, PeerLiveness>;

/// The pulses to one peer.
#[derive(Debug, Clone)]
pub struct PeerPulse {
    pace: Pace,
    /// When the next pulse is due if all is well.
    next: Moment,
    number: u64,
    /// The last pulse was one of a burst.
    bursting: bool,
    /// One is due at once, and when that was last so: others give reason for it.
    hastened: (bool, Moment),
    /// Its machine has reported that no agent runs there, and it has not answered since.
    refused: bool,
    sent: VecDeque<(u64, Moment)>,
    /// When the first pulse was sent that has no answer; later by what was this node's own fault.
    unanswered: Option<Moment>,
    /// Its process is being replaced: until then its silence means nothing.
    paused: Moment,
    answered_once: bool,
    /// It has never answered, and since then others say that it is silent.
    doubted: Option<Moment>,
    rtt: Option<Duration>,
    loss: f64,
}

/// Some part of a time, by a random number.
fn share_of(time: Duration, number: u64) -> Duration {
    time.mul_f64((number % 1_000 + 1) as f64 / 1_000.0)
}

impl PeerPulse {
    /// The first pulse is due now, or within [`Pace::start`]. `number` starts the count: random, so that answers to an
    /// earlier start are not taken for answers to this one.
    pub fn new(now: Moment, pace: Pace, number: u64) -> PeerPulse {
        PeerPulse {
            pace,
            next: now.after(share_of(pace.start, number)),
            number,
            bursting: false,
            hastened: (false, Moment::ZERO),
            refused: false,
            sent: VecDeque::new(),
            unanswered: None,
            paused: Moment::ZERO,
            answered_once: false,
            doubted: None,
            rtt: None,
            loss: 0.0,
        }
    }

    /// The first moment for a regular pulse that is half an interval away.
    fn next_regular(&self, now: Moment) -> Moment {
        let Pace { interval, phase, .. } = self.pace;
        now.before(phase).next_regular(interval).after(phase)
    }

    /// Sets the pace for this node's place and the size of the cluster.
    pub fn set_pace(&mut self, pace: Pace, now: Moment) {
        if self.pace != pace {
            self.pace = pace;
            let slow = pace.interval > SLOW;
            let next = if slow { now.after(self.random_share()) } else { self.next_regular(now) };
            self.next = self.next.min(next);
        }
    }

    /// Some part of an interval: nodes that start together must not pulse in step.
    fn random_share(&self) -> Duration {
        share_of(self.pace.interval, self.number)
    }

    /// This node asks others what they hear: a pulse is due at once, unless one is under way or it was a moment ago.
    pub fn hasten(&mut self, now: Moment) {
        let (_, last) = self.hastened;
        let slow = self.pace.interval > INTERVAL && (self.unanswered.is_none() || !self.answered_once);
        if slow && (last == Moment::ZERO || now.since(last) >= HASTENED) {
            self.hastened = (true, now);
        }
    }

    /// Others say that it is silent: a pulse is due at once, as above. Of one that has never answered nothing was known
    /// so far; from now on its silence counts, too.
    pub fn doubt(&mut self, now: Moment) {
        if !self.answered_once {
            self.doubted.get_or_insert(now);
        }
        self.hasten(now);
    }

    /// When [`PeerPulse::poll`] is due next.
    pub fn deadline(&self) -> Moment {
        if self.hastened.0 {
            return self.hastened.1;
        }
        // The last one has no answer yet, or it would not be remembered.
        match self.sent.back() {
            Some((_, sent)) if self.may_burst(*sent) => self.next.min(sent.after(self.answer_timeout())),
            _ => self.next,
        }
    }

    /// The number of the pulse to send now, if one is due.
    pub fn poll(&mut self, now: Moment) -> Option<u64> {
        if now < self.deadline() {
            return None;
        }
        self.bursting |= now < self.next;
        self.hastened.0 = false;
        // The oldest that is no longer remembered, or that a newer answer has overtaken, was lost.
        if self.sent.len() >= REMEMBERED {
            self.sent.pop_front();
        }
        self.number = self.number.wrapping_add(1);
        self.sent.push_back((self.number, now));
        self.unanswered.get_or_insert(now);
        let slow = self.pace.interval > SLOW;
        if now >= self.next || !slow {
            // Until it has answered once, nothing is known of it.
            let most = if self.answered_once { Duration::MAX } else { UNKNOWN };
            self.next = if slow { now.after(self.pace.interval.min(most)) } else { self.next_regular(now) };
        }
        Some(self.number)
    }

    /// Whether more pulses than usual are useful: it has answered, and is not silent yet.
    fn may_burst(&self, now: Moment) -> bool {
        !matches!(self.liveness(now), Liveness::Unknown | Liveness::Silent)
    }

    /// Time that an answer may take before it counts as missed; within a burst, time until the next pulse.
    fn answer_timeout(&self) -> Duration {
        let pace = self.pace.burst;
        let usual = self.rtt.map_or(pace, |rtt| rtt * 2).max(pace);
        if self.bursting { pace } else { usual }.min(self.pace.interval)
    }

    /// An answer arrived; the round-trip time if its pulse is remembered.
    pub fn answered(&mut self, number: u64, now: Moment) -> Option<Duration> {
        let at = self.sent.iter().position(|(sent, _)| *sent == number)?;
        let (_, sent) = self.sent.get(at).copied()?;
        // Earlier ones are overtaken: lost, or so late that it is the same.
        for _ in 0..at {
            self.loss += (1.0 - self.loss) / 64.0;
        }
        self.loss -= self.loss / 64.0;
        self.sent.drain(..=at);
        self.unanswered = self.sent.front().map(|(_, sent)| *sent);
        if !std::mem::replace(&mut self.answered_once, true) && self.pace.interval > SLOW {
            self.next = now.after(self.random_share());
        }
        (self.bursting, self.refused, self.doubted) = (false, false, None);
        let took = now.since(sent);
        self.rtt = Some(self.rtt.map_or(took, |rtt| (rtt * 7 + took) / 8));
        Some(took)
    }

    /// The peer's machine reports that no agent runs there.
    pub fn refused(&mut self) {
        self.refused = true;
    }

    /// This node's own loop was late: that time counts against nobody. What was before it does: where a loop is late
    /// again and again, as on a machine that has too much to do, a dead peer would stay alive.
    pub fn forgive_silence(&mut self, late: Duration) {
        self.unanswered = self.unanswered.map(|first| first.after(late));
        self.doubted = self.doubted.map(|first| first.after(late));
    }

    /// It has said whether its process is being replaced. Once it is back, its silence counts from then.
    pub fn set_pausing(&mut self, pausing: bool, now: Moment) {
        self.paused = if pausing { now.after(PAUSE) } else { self.paused.min(now) };
    }

    /// How long it has been silent: since the first pulse without an answer; of one that has never answered, since
    /// others doubt it.
    pub fn silence(&self, now: Moment) -> Duration {
        let first = if self.answered_once { self.unanswered } else { self.doubted };
        let since = first.map(|first| first.max(self.paused));
        since.map_or(Duration::ZERO, |since| now.since(since))
    }

    /// Time without an answer that is no silence: a slow path.
    pub fn slack(&self) -> Duration {
        self.rtt.unwrap_or_default() * 2
    }

    /// Liveness of the peer, with what others report. `heard`: when this node last heard it, by any datagram.
    pub fn liveness_for_all(&self, now: Moment, heard: Option<Moment>, reports: &PeerReports) -> Liveness {
        let rtt = self.rtt.unwrap_or_default();
        let (silence, slack) = (self.silence(now), INTERVAL + rtt);
        let heard_within = |time| {
            let here = heard.is_some_and(|heard| now.since(heard) < time);
            here || reports.heard_within(time, now)
        };
        let doubted = || reports.silent_elsewhere(slack + FRESH_REPORT, now);
        let for_all = slack + SILENT_FOR_ALL;
        match self.liveness(now) {
            Liveness::Alive | Liveness::Late
                if silence >= self.slack() + SILENT_HERE && !heard_within(for_all) && doubted() =>
            {
                Liveness::Silent
            }
            Liveness::Alive if silence > rtt && !heard_within(LATELY + rtt) && doubted() => Liveness::Late,
            Liveness::Silent if reports.heard_within(for_all, now) => Liveness::CutOff,
            liveness => liveness,
        }
    }

    /// Liveness of the peer by its answers alone.
    pub fn liveness(&self, now: Moment) -> Liveness {
        let silence = self.silence(now);
        let slack = self.slack();
        if !self.answered_once && self.doubted.is_none() {
            Liveness::Unknown
        } else if silence >= slack + SILENT {
            Liveness::Silent
        } else if silence >= slack + LATE || self.refused {
            Liveness::Late
        } else {
            Liveness::Alive
        }
    }

    /// Smoothed round-trip time (RFC 6298, alpha 1/8).
    pub fn rtt(&self) -> Option<Duration> {
        self.rtt
    }

    /// Share of pulses without an answer, smoothed over about 64 of them.
    pub fn loss(&self) -> f64 {
        self.loss
    }
}

/// A node's status in every answer: readiness of its services, and whether it accepts new connections.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct PulseStatus {
    /// It accepts no new connections.
    pub draining: bool,
    /// It is stopping.
    pub leaving: bool,
    /// Its process is about to be replaced: it may be silent for [`PAUSE`].
    pub pausing: bool,
    /// Its services, their readiness, and why.
    pub services: BTreeMap<ServiceName, (Readiness, Cause)>,
}

impl PulseStatus {
    /// The status as fields, `tag | length | value`: one of flags, and one for each service, with the length
    /// of the name, the name, readiness, code and argument of the cause. A reader skips unknown fields and
    /// what a later version appends to a value.
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut bytes = vec![FLAGS, 1, self.flags()];
        for (name, (readiness, cause)) in self.services.iter().take(MAX_SERVICES) {
            let name = name.as_str().as_bytes();
            let (code, argument) = cause.to_wire();
            let mut entry = Vec::with_capacity(1 + name.len() + 5);
            // A service name has at most 32 bytes.
            entry.push(u8::try_from(name.len()).unwrap_or(0));
            entry.extend_from_slice(name);
            entry.push(readiness.code());
            entry.extend_from_slice(&code.to_be_bytes());
            entry.extend_from_slice(&argument.to_be_bytes());
            if bytes.len() + 2 + entry.len() > MAX_STATUS {
                break;
            }
            bytes.push(SERVICE);
            bytes.push(u8::try_from(entry.len()).unwrap_or(0));
            bytes.extend_from_slice(&entry);
        }
        next_wire::pulse(&mut bytes, SERVICE, MAX_STATUS);
        bytes
    }

    fn flags(&self) -> u8 {
        u8::from(self.draining) | u8::from(self.leaving) << 1 | u8::from(self.pausing) << 2
    }

    /// Reads a status; `None` when it is truncated or invalid. A service that this version does not
    /// understand is skipped.
    pub fn from_bytes(bytes: &[u8]) -> Option<PulseStatus> {
        let (mut rest, mut pulse_status, mut found) = (bytes, PulseStatus::default(), false);
        while let Some((tag, more)) = rest.split_first() {
            let (length, more) = more.split_first()?;
            let (value, more) = more.split_at_checked(usize::from(*length))?;
            rest = more;
            match (tag, value) {
                (&FLAGS, [flags, ..]) => {
                    (pulse_status.draining, pulse_status.leaving) = (flags & 1 != 0, flags & 2 != 0);
                    pulse_status.pausing = flags & 4 != 0;
                    found = true;
                }
                (&SERVICE, entry) if pulse_status.services.len() < MAX_SERVICES => {
                    pulse_status.services.extend(PulseStatus::service(entry));
                }
                _ => {}
            }
        }
        found.then_some(pulse_status)
    }

    fn service(entry: &[u8]) -> Option<(ServiceName, (Readiness, Cause))> {
        let (length, entry) = entry.split_first()?;
        let (name, entry) = entry.split_at_checked(usize::from(*length))?;
        let (&[readiness, c1, c2, a1, a2], _) = entry.split_first_chunk()?;
        let name: ServiceName = std::str::from_utf8(name).ok()?.parse().ok()?;
        let readiness = Readiness::of_code(readiness.into());
        let cause = Cause::from_wire(u16::from_be_bytes([c1, c2]), u16::from_be_bytes([a1, a2]));
        Some((name, (readiness, cause)))
    }
}

#[cfg(test)]
#[path = "pulse_tests.rs"]
mod tests;
