//! Evaluates the evidence about one backend: can it be reached from here?
//!
//! Two kinds of evidence: the liveness of its node (by pulses, or by gossip if it is not pulsed), and the
//! results of connects to the backend itself, by clients' dials or our own probes. A kernel accepts connections for
//! frozen processes, too: where the service speaks TLS, only an answer to a probe's TLS hello shows that it is there.
//!
//! ```text
//!   node      connects                    verdict
//!   Alive     none failed                 Up
//!   Alive     some failed                 Suspect; Down after 8 in a row, or 2 refused
//!   Late      not tried since             Suspect, and a probe starts at once
//!   any       answered since              Up, "checked directly": the agent is gone, the service is not;
//!                                         ranked behind backends whose agent is alive and reports ready
//!   any       hello unanswered            Suspect; Down after 3 s: the machine is frozen
//!   Late      failed                      Suspect
//!   Silent    failed 4 times since        Down
//!   CutOff    failed 5 times since        Down: the path from here is cut, others hear the node
//! ```
//!
//! When a node falls silent, the first four probes overlap and are short: if nobody hears it, all have failed by the
//! time that this is known. So do those after the first that fails where an agent is gone and its service answers:
//! such a node is silent for as long as its agent needs to start, and one lost connect must not be half of a verdict.
//! Later ones follow each other, with more patience.
//!
//! A wrong Suspect is cheap: new connections go elsewhere while another backend is good. A wrong Down is not:
//! held connections are reset. So Down needs a positive answer, or silence in two independent ways.

use std::time::Duration;

use crate::cause::Cause;
use crate::node::NodeId;
use crate::pulse::Liveness;
use crate::service::ServiceName;
use crate::time::{Moment, UnixMs};

/// Interval of the probes of a backend that is down, or that is checked directly.
const PROBE_INTERVAL: Duration = Duration::from_secs(1);

/// Longest duration of one probe (a TCP connect) if the round trip is short or unknown.
const PROBE_TIMEOUT: Duration = Duration::from_millis(400);

/// Probes that overlap when a node has fallen silent, the longest duration of each, and the time between them.
const OVERLAPPING: u32 = 4;
const OVERLAPPING_TIMEOUT: Duration = Duration::from_millis(200);
const OVERLAP: Duration = Duration::from_millis(25);

/// Time after the end of a probe within which its result arrives.
const PROBE_LATE: Duration = Duration::from_millis(50);

/// Consecutive failed connects while the node itself is alive, before silence counts as down. Three seconds
/// of them: at 20 % loss each way one connect in three fails, and the node has just answered.
const UNANSWERED_WHILE_ALIVE: u32 = 8;

/// The same while it is silent. An agent that restarts is silent for seconds, in which its service is connected to some
/// five times: at 5 % loss each way two in a row were lost to one node in thirty, and four to one in two thousand.
const UNANSWERED_WHILE_SILENT: u32 = 4;

/// The same while others hear it: those that overlap, and a patient one.
const UNANSWERED_WHILE_CUT_OFF: u32 = 5;

/// How long a TLS hello may be unanswered.
pub const HELLO_LATE: Duration = Duration::from_millis(400);

/// How long it has to be unanswered until the backend is down: a machine that is slow answers, one that is frozen
/// does not.
pub const HELLO_PATIENCE: Duration = Duration::from_secs(3);

/// A late hello raises no doubt while another was answered within this time.
const HELLO_QUIET: Duration = Duration::from_millis(1_200);

/// Consecutive refusals that count as down: the first could be a restart that is over already.
const REFUSALS: u32 = 2;

/// Whether a backend can be reached from here. The order is from best to worst.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Reachability {
    /// Reachable, as far as is known.
    Up,
    /// In doubt: no new connections while another is good.
    Suspect,
    /// Not reachable.
    Down,
}

/// One piece of evidence.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Evidence {
    /// The current liveness of its node.
    Liveness(Liveness),
    /// A TCP connect succeeded, by a client's dial or by a probe, and took this long.
    Connected {
        /// Time from SYN to SYN-ACK: one round trip.
        took: Duration,
    },
    /// A probe's TLS hello was answered, by any byte or by closing the connection.
    HelloAnswered,
    /// A probe's TLS hello was not answered yet.
    HelloUnanswered {
        /// Time since it was sent.
        waited: Duration,
    },
    /// A TCP connect was answered by "nothing listens here".
    Refused,
    /// A TCP connect got no answer, or "no route".
    Unanswered,
}

/// Evidence about a backend, sent to the reachability task.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EvidenceReport {
    /// The backend's node.
    pub node: NodeId,
    /// Its service.
    pub service: ServiceName,
    /// The evidence.
    pub evidence: Evidence,
}

/// State of the path to one backend.
#[derive(Debug, Clone)]
pub struct BackendPath {
    reach: Reachability,
    cause: Option<Cause>,
    since: UnixMs,
    liveness: Liveness,
    /// The service speaks TLS: a connect alone does not show that it is there.
    speaks_tls: bool,
    /// It has answered since the node fell silent: a connect, or a hello if it speaks TLS.
    answered_since: bool,
    /// The last answered hello since then, and whether one was late or unanswered after it.
    hello_answered: Option<Moment>,
    hello_late: bool,
    hello_unanswered: bool,
    unanswered: u32,
    refused: u32,
    rtt: Option<Duration>,
    /// The shortest time that a connect has taken.
    shortest: Option<Duration>,
    next_probe: Option<Moment>,
    /// Probes started since the node fell silent, and when the last one will have ended.
    probes: u32,
    probe_ends: Moment,
    /// A connect has succeeded since then, and none has failed after it.
    connected: bool,
    /// Until then a probe that is not answered may have been started while the node was silent.
    outdated_until: Moment,
}

impl BackendPath {
    /// A path without evidence: up until proven otherwise, so that a fresh node serves at once.
    pub fn new(wall: UnixMs) -> BackendPath {
        BackendPath {
            reach: Reachability::Up,
            cause: None,
            since: wall,
            liveness: Liveness::Unknown,
            speaks_tls: false,
            answered_since: false,
            hello_answered: None,
            hello_late: false,
            hello_unanswered: false,
            unanswered: 0,
            refused: 0,
            rtt: None,
            shortest: None,
            next_probe: None,
            probes: 0,
            probe_ends: Moment::ZERO,
            connected: false,
            outdated_until: Moment::ZERO,
        }
    }

    /// Whether the service speaks TLS.
    pub fn set_speaks_tls(&mut self, speaks_tls: bool) {
        self.speaks_tls = speaks_tls;
    }

    /// The verdict.
    pub fn reach(&self) -> Reachability {
        self.reach
    }

    /// Why it is not plainly up; `None` when it is.
    pub fn cause(&self) -> Option<Cause> {
        self.cause
    }

    /// Up by direct checks alone: its agent is silent.
    pub fn is_probe_only(&self) -> bool {
        self.reach == Reachability::Up && self.is_silent()
    }

    /// When the verdict last changed.
    pub fn since(&self) -> UnixMs {
        self.since
    }

    /// Smoothed round-trip time of TCP connects (RFC 6298, alpha 1/8); `None` before the first.
    pub fn rtt(&self) -> Option<Duration> {
        self.rtt
    }

    /// When the shell should probe the backend; `None`: not needed.
    pub fn next_probe(&self) -> Option<Moment> {
        self.next_probe
    }

    /// Longest duration of the next probe.
    pub fn probe_timeout(&self) -> Duration {
        // Connects are rare, so what a busy moment did to the smoothed time lasts: those that overlap go by the
        // shortest.
        let (least, rtt) = match self.overlaps() {
            true => (OVERLAPPING_TIMEOUT, self.shortest),
            false => (PROBE_TIMEOUT, self.rtt),
        };
        rtt.map_or(least, |rtt| least.max(rtt * 3))
    }

    /// The shell has started the probe of [`BackendPath::next_probe`].
    pub fn probe_started(&mut self, now: Moment) {
        self.probe_ends = now.after(self.probe_timeout());
        self.probes = self.probes.saturating_add(1);
        // A loop that is late starts at once what was due meanwhile.
        let due = self.next_probe.map_or(now, |due| due.min(now));
        let patient = now.after(self.probe_timeout() + PROBE_INTERVAL);
        self.next_probe = Some(if self.overlaps() { due.after(OVERLAP) } else { patient });
    }

    fn is_silent(&self) -> bool {
        matches!(self.liveness, Liveness::Late | Liveness::Silent | Liveness::CutOff)
    }

    /// Whether the next probe does not wait for the one before.
    fn overlaps(&self) -> bool {
        self.is_silent() && !self.connected && self.probes < OVERLAPPING
    }

    /// Applies one piece of evidence; true when the verdict or its cause changed.
    pub fn observe(&mut self, now: Moment, wall: UnixMs, evidence: Evidence) -> bool {
        match evidence {
            Evidence::Liveness(liveness) => self.set_liveness(now, liveness),
            Evidence::Connected { took } => {
                self.unanswered = 0;
                self.refused = 0;
                self.answered_since |= !self.speaks_tls;
                if self.overlaps() && self.probes > 0 {
                    self.next_probe = None;
                }
                self.connected = self.is_silent();
                self.rtt = Some(self.rtt.map_or(took, |rtt| (rtt * 7 + took) / 8));
                self.shortest = Some(self.shortest.map_or(took, |shortest| shortest.min(took)));
            }
            Evidence::HelloAnswered => self.hello_is_answered(now),
            Evidence::HelloUnanswered { waited } => self.hello_is_unanswered(now, waited),
            Evidence::Refused => {
                self.refused = self.refused.saturating_add(1);
                self.unanswered = 0;
                self.answered_since = false;
            }
            // Of a probe from before it came back: lost for the same reason as its pulses.
            Evidence::Unanswered if !self.is_silent() && now < self.outdated_until => {}
            Evidence::Unanswered => {
                self.unanswered = self.unanswered.saturating_add(1);
                if self.unanswered == 1 && std::mem::take(&mut self.connected) {
                    self.probes = 0;
                }
                self.answered_since = self.answered_since && self.unanswered < UNANSWERED_WHILE_SILENT;
            }
        }
        self.evaluate(now, wall, evidence)
    }

    fn set_liveness(&mut self, now: Moment, liveness: Liveness) {
        let alive = |liveness| matches!(liveness, Liveness::Alive | Liveness::Unknown);
        match (alive(self.liveness), alive(liveness)) {
            // It has just fallen silent: earlier connects say nothing about now.
            (true, false) => {
                self.answered_since = false;
                self.unanswered = 0;
                (self.probes, self.connected) = (0, false);
                self.hello_answered = None;
                (self.hello_late, self.hello_unanswered) = (false, false);
            }
            // It is back: connects that failed during the silence failed for the same reason.
            (false, true) => {
                self.unanswered = 0;
                self.outdated_until = self.probe_ends.after(PROBE_LATE);
            }
            // What answered while there were only doubts may have ended with them.
            (false, false) if self.liveness == Liveness::Late && self.answered_since => {
                (self.probes, self.connected) = (0, false);
                self.next_probe = Some(now);
            }
            _ => {}
        }
        self.liveness = liveness;
    }

    fn hello_is_answered(&mut self, now: Moment) {
        self.answered_since = true;
        self.hello_answered = Some(now);
        (self.hello_late, self.hello_unanswered) = (false, false);
    }

    /// What was answered since this hello was sent, or just before if it is merely late, counts more.
    fn hello_is_unanswered(&mut self, now: Moment, waited: Duration) {
        let within = if waited < HELLO_PATIENCE { HELLO_QUIET.max(waited) } else { waited };
        if self.hello_answered.is_some_and(|at| now.since(at) < within) {
            return;
        }
        self.answered_since = false;
        self.hello_late = true;
        self.hello_unanswered |= waited >= HELLO_PATIENCE;
    }

    fn verdict(&self) -> (Reachability, Option<Cause>) {
        if self.refused >= REFUSALS {
            return (Reachability::Down, Some(Cause::PortClosed));
        }
        match self.liveness {
            Liveness::Alive | Liveness::Unknown if self.unanswered >= UNANSWERED_WHILE_ALIVE => {
                (Reachability::Down, Some(Cause::ConnectUnanswered))
            }
            _ if self.refused > 0 => (Reachability::Suspect, Some(Cause::PortClosed)),
            Liveness::Alive | Liveness::Unknown if self.unanswered > 0 => {
                (Reachability::Suspect, Some(Cause::ConnectUnanswered))
            }
            Liveness::Alive | Liveness::Unknown => (Reachability::Up, None),
            _ if self.answered_since => (Reachability::Up, Some(Cause::CheckedDirectly)),
            _ if self.hello_unanswered => (Reachability::Down, Some(Cause::HelloUnanswered)),
            Liveness::Silent if self.unanswered >= UNANSWERED_WHILE_SILENT => {
                (Reachability::Down, Some(Cause::NodeUnreachable))
            }
            Liveness::CutOff if self.unanswered >= UNANSWERED_WHILE_CUT_OFF => {
                (Reachability::Down, Some(Cause::PathCut))
            }
            _ if self.hello_late && self.unanswered == 0 => {
                (Reachability::Suspect, Some(Cause::HelloUnanswered))
            }
            Liveness::CutOff => (Reachability::Suspect, Some(Cause::PathCut)),
            Liveness::Late | Liveness::Silent => (Reachability::Suspect, Some(Cause::NotHeard)),
        }
    }

    fn awaits_hello(&self, evidence: Evidence) -> bool {
        let of_hello = matches!(evidence, Evidence::Connected { .. } | Evidence::HelloUnanswered { .. });
        of_hello && self.speaks_tls && self.is_silent()
    }

    fn evaluate(&mut self, now: Moment, wall: UnixMs, evidence: Evidence) -> bool {
        let (reach, cause) = self.verdict();
        let before = (self.reach, self.cause);
        if self.reach != reach {
            self.since = wall;
        }
        (self.reach, self.cause) = (reach, cause);
        let news = !matches!(evidence, Evidence::Liveness(_)) || before != (reach, cause);
        self.next_probe = match reach {
            // Plainly up: nothing to find out.
            Reachability::Up if cause.is_none() => None,
            // Whether its hello is answered is not known yet, and clients' connects must not put off the next one.
            _ if self.awaits_hello(evidence) => {
                let at = now.after(PROBE_INTERVAL);
                Some(self.next_probe.map_or(at, |next| next.min(at)))
            }
            Reachability::Suspect if news && self.overlaps() && self.probes > 0 => self.next_probe,
            Reachability::Up if news && self.overlaps() && self.unanswered > 0 => {
                if self.probes == 0 {
                    Some(now)
                } else {
                    self.next_probe
                }
            }
            Reachability::Suspect if news && self.is_silent() && self.probes > 0 => {
                Some(now.max(self.probe_ends))
            }
            Reachability::Suspect if news => Some(now),
            Reachability::Up | Reachability::Down if news => Some(now.after(PROBE_INTERVAL)),
            _ => self.next_probe,
        };
        before != (reach, cause)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn after(evidence: &[Evidence]) -> BackendPath {
        let mut path = BackendPath::new(UnixMs(0));
        for (i, evidence) in evidence.iter().enumerate() {
            let at = 1 + i as u64;
            path.observe(Moment::from_millis(at), UnixMs(at), *evidence);
        }
        path
    }

    const CONNECTED: Evidence = Evidence::Connected { took: Duration::from_millis(8) };
    const ALIVE: Evidence = Evidence::Liveness(Liveness::Alive);
    const LATE: Evidence = Evidence::Liveness(Liveness::Late);
    const SILENT: Evidence = Evidence::Liveness(Liveness::Silent);
    const CUT_OFF: Evidence = Evidence::Liveness(Liveness::CutOff);
    use Evidence::{Refused, Unanswered};

    type Verdict = (Reachability, Option<Cause>);

    #[test]
    fn what_answered_when_it_was_late_is_checked_again_at_once_when_it_is_silent() {
        let mut path = after(&[LATE, CONNECTED]);
        let now = Moment::from_millis(500);
        assert!(path.next_probe().is_some_and(|at| at > now));
        path.observe(now, UnixMs(500), SILENT);
        assert_eq!((path.reach(), path.next_probe()), (Reachability::Up, Some(now)));
        path.probe_started(now);
        assert_eq!(path.next_probe(), Some(now.after(OVERLAP)));
    }

    #[test]
    fn every_row_of_the_table() {
        let table: &[(&[Evidence], Reachability)] = &[
            (&[], Reachability::Up),
            (&[ALIVE], Reachability::Up),
            (&[LATE], Reachability::Suspect),
            (&[LATE, Unanswered], Reachability::Suspect),
            (&[LATE, Unanswered, Unanswered], Reachability::Suspect),
            (&[LATE, SILENT], Reachability::Suspect),
            (&[LATE, Unanswered, SILENT, Unanswered], Reachability::Suspect),
            (&[LATE, Unanswered, SILENT, Unanswered, Unanswered, Unanswered], Reachability::Down),
            (&[LATE, Unanswered, Unanswered, Unanswered, Unanswered, SILENT], Reachability::Down),
            (&[LATE, Unanswered, Unanswered, Unanswered, Unanswered, SILENT, ALIVE], Reachability::Up),
            (&[LATE, ALIVE, Unanswered], Reachability::Up),
            (&[LATE, Unanswered, Unanswered, Unanswered, Unanswered, CUT_OFF], Reachability::Suspect),
            (
                &[LATE, Unanswered, Unanswered, Unanswered, Unanswered, CUT_OFF, Unanswered],
                Reachability::Down,
            ),
            (&[LATE, Unanswered, Unanswered, Unanswered, Unanswered, CUT_OFF, SILENT], Reachability::Down),
            (&[LATE, CONNECTED, CUT_OFF], Reachability::Up),
            (&[LATE, CONNECTED], Reachability::Up),
            (&[LATE, CONNECTED, SILENT], Reachability::Up),
            (&[LATE, CONNECTED, SILENT, Unanswered], Reachability::Up),
            // An agent restarts, and three connects in a row are lost.
            (&[LATE, CONNECTED, SILENT, Unanswered, Unanswered, Unanswered], Reachability::Up),
            (&[LATE, CONNECTED, SILENT, Unanswered, Unanswered, Unanswered, CONNECTED], Reachability::Up),
            (&[LATE, CONNECTED, SILENT, Unanswered, Unanswered, Unanswered, Unanswered], Reachability::Down),
            (&[CONNECTED, LATE], Reachability::Suspect),
            (&[Refused], Reachability::Suspect),
            (&[Refused, Refused], Reachability::Down),
            (&[Refused, CONNECTED], Reachability::Up),
            (&[ALIVE, Unanswered], Reachability::Suspect),
            (&[ALIVE, Unanswered, Unanswered], Reachability::Suspect),
            (&[ALIVE, Unanswered, Unanswered, Unanswered], Reachability::Suspect),
            (&[Unanswered; 8], Reachability::Down),
            (&[ALIVE, Unanswered, CONNECTED, Unanswered], Reachability::Suspect),
            (
                &[
                    Unanswered, Unanswered, Unanswered, Unanswered, Unanswered, Unanswered, Unanswered,
                    Unanswered, CONNECTED,
                ],
                Reachability::Up,
            ),
            (&[ALIVE, Refused, Refused, ALIVE], Reachability::Down),
        ];
        for (evidence, reach) in table {
            assert_eq!(after(evidence).reach(), *reach, "{evidence:?}");
        }
    }

    /// As [`after`], of a service that speaks TLS, a second apart.
    fn after_tls(evidence: &[Evidence]) -> (Reachability, Option<Cause>) {
        let mut path = BackendPath::new(UnixMs(0));
        path.set_speaks_tls(true);
        for (i, evidence) in evidence.iter().enumerate() {
            let at = 1_000 * i as u64;
            path.observe(Moment::from_millis(at), UnixMs(at), *evidence);
        }
        (path.reach(), path.cause())
    }

    #[test]
    fn where_a_service_speaks_tls_only_an_answered_hello_shows_that_it_is_there() {
        const PENDING: Evidence = Evidence::HelloUnanswered { waited: HELLO_LATE };
        const FROZEN: Evidence = Evidence::HelloUnanswered { waited: HELLO_PATIENCE };
        use Evidence::HelloAnswered;
        let unanswered = Some(Cause::HelloUnanswered);
        let up = (Reachability::Up, Some(Cause::CheckedDirectly));
        let table: &[(&[Evidence], Verdict)] = &[
            (&[LATE, CONNECTED], (Reachability::Suspect, Some(Cause::NotHeard))),
            (&[LATE, CONNECTED, SILENT, CONNECTED], (Reachability::Suspect, Some(Cause::NotHeard))),
            (&[LATE, CONNECTED, HelloAnswered], up),
            (&[LATE, CONNECTED, PENDING], (Reachability::Suspect, unanswered)),
            (&[LATE, CONNECTED, PENDING, HelloAnswered], up),
            (&[LATE, CONNECTED, PENDING, CONNECTED, FROZEN], (Reachability::Down, unanswered)),
            (&[LATE, CONNECTED, PENDING, FROZEN, HelloAnswered], up),
            (&[LATE, CONNECTED, PENDING, FROZEN, ALIVE], (Reachability::Up, None)),
            // A later one was answered.
            (&[LATE, CONNECTED, HelloAnswered, CONNECTED, FROZEN], up),
            // Each handshake takes two seconds.
            (&[LATE, HelloAnswered, PENDING], up),
            (&[LATE, HelloAnswered, CONNECTED, PENDING], (Reachability::Suspect, unanswered)),
            // The machine is gone after all.
            (
                &[LATE, CONNECTED, PENDING, SILENT, Unanswered, Unanswered, Unanswered, Unanswered],
                (Reachability::Down, Some(Cause::NodeUnreachable)),
            ),
            // Its agent answers: what it says counts.
            (&[ALIVE, FROZEN], (Reachability::Up, None)),
        ];
        for (evidence, verdict) in table {
            assert_eq!(after_tls(evidence), *verdict, "{evidence:?}");
        }
    }

    #[test]
    fn clients_that_connect_do_not_put_off_the_next_hello() {
        let mut path = BackendPath::new(UnixMs(0));
        path.set_speaks_tls(true);
        let at = Moment::from_millis;
        for (ms, evidence) in [(0, LATE), (10, CONNECTED), (20, Evidence::HelloAnswered)] {
            path.observe(at(ms), UnixMs(ms), evidence);
        }
        for ms in (100..1_000).step_by(100) {
            path.observe(at(ms), UnixMs(ms), CONNECTED);
        }
        assert_eq!(path.next_probe(), Some(at(1_020)));
    }

    #[test]
    fn a_suspect_backend_is_probed_and_one_that_is_up_is_not() {
        assert_eq!(after(&[ALIVE]).next_probe(), None);
        assert_eq!(after(&[LATE]).next_probe(), Some(Moment::from_millis(1)));
        assert_eq!(after(&[LATE, LATE]).next_probe(), Some(Moment::from_millis(1)), "asked once");
        assert_eq!(after(&[LATE, Unanswered]).next_probe(), Some(Moment::from_millis(2)));
        assert!(after(&[LATE, CONNECTED]).next_probe() > Some(Moment::from_millis(500)));
        assert!(after(&[Refused, Refused]).next_probe() > Some(Moment::from_millis(500)));
        assert_eq!(after(&[Refused, CONNECTED]).next_probe(), None);
    }

    /// Runs the probes of these milliseconds: which were started, and how long each takes at most. `answered` says
    /// whether one that is started then is, which takes 5 ms; each of the others takes its whole time.
    fn probed(
        path: &mut BackendPath,
        span: std::ops::Range<u64>,
        answered: impl Fn(u64) -> bool,
        seen: &[(u64, Evidence)],
    ) -> Vec<(u64, u64)> {
        let mut started: Vec<(u64, u64)> = Vec::new();
        for at in span {
            let now = Moment::from_millis(at);
            let ends = |(from, took): &(u64, u64)| from + if answered(*from) { 5 } else { *took } == at;
            let ended = started.iter().find(|one| ends(one)).map(|(from, _)| answered(*from));
            let result = ended.map(|answered| if answered { CONNECTED } else { Unanswered });
            let seen = seen.iter().filter(|(when, _)| *when == at).map(|(_, evidence)| *evidence);
            for evidence in result.into_iter().chain(seen) {
                path.observe(now, UnixMs(at), evidence);
            }
            if path.next_probe().is_some_and(|due| due <= now) {
                let took = path.probe_timeout().as_millis() as u64;
                path.probe_started(now);
                started.push((at, took));
            }
        }
        started
    }

    #[test]
    fn the_first_four_probes_of_a_silent_node_overlap_and_later_ones_are_patient() {
        let ms = Moment::from_millis;
        let mut path = after(&[ALIVE]);
        let started = probed(&mut path, 300..2_000, |_| false, &[(300, LATE), (1_000, CUT_OFF)]);
        let overlapping = [(300, 200), (325, 200), (350, 200), (375, 200)];
        assert_eq!(started[..6], [overlapping.as_slice(), &[(575, 400), (975, 400)]].concat(), "{started:?}");
        assert_eq!((path.reach(), path.cause()), (Reachability::Down, Some(Cause::PathCut)));
        // A loop that is late by 60 ms starts three at once.
        let mut path = after(&[ALIVE, LATE]);
        path.probe_started(ms(2));
        let mut at_once = 0;
        while path.next_probe().is_some_and(|due| due <= ms(87)) {
            path.probe_started(ms(87));
            at_once += 1;
        }
        assert_eq!(at_once, 3);
        // One slow connect, as on a busy machine, does not make them slow.
        let slow = Evidence::Connected { took: Duration::from_millis(300) };
        assert_eq!(after(&[slow, CONNECTED, LATE]).probe_timeout(), OVERLAPPING_TIMEOUT);
        assert_eq!(after(&[slow, LATE]).probe_timeout(), Duration::from_millis(900), "a long way");
        // While it answers pulses they follow each other, as patient as ever.
        let path = after(&[ALIVE, Unanswered]);
        assert_eq!((path.next_probe(), path.probe_timeout()), (Some(ms(2)), PROBE_TIMEOUT));
    }

    #[test]
    fn while_an_agent_restarts_a_lost_connect_is_checked_four_times_at_once_and_takes_nothing_down() {
        let silent = [(300, LATE), (1_100, SILENT)];
        let times = |started: &[(u64, u64)]| started.iter().map(|(at, _)| *at).collect::<Vec<_>>();
        let mut path = after(&[ALIVE]);
        let started = probed(&mut path, 300..3_000, |_| true, &silent);
        assert_eq!(
            times(&started),
            [300, 1_100, 2_105],
            "one connect a second, and one more when it is silent"
        );
        // The one of 2.1 s is lost, and two of those that follow.
        let mut path = after(&[ALIVE]);
        let started = probed(&mut path, 300..4_000, |at| !(2_000..2_550).contains(&at), &silent);
        assert_eq!(times(&started)[..6], [300, 1_100, 2_105, 2_505, 2_530, 2_555], "{started:?}");
        assert_eq!(path.reach(), Reachability::Up);
        // The machine is gone after all.
        let mut path = after(&[ALIVE]);
        probed(&mut path, 300..2_781, |at| at < 2_000, &silent);
        assert_eq!((path.reach(), path.cause()), (Reachability::Down, Some(Cause::NodeUnreachable)));
    }

    #[test]
    fn a_serving_apiserver_with_a_silent_agent_stays_up_with_a_cause() {
        let path = after(&[LATE, CONNECTED]);
        assert_eq!((path.reach(), path.cause()), (Reachability::Up, Some(Cause::CheckedDirectly)));
    }
}
