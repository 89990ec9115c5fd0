//! Evidence about one backend, weighed into one word: can it be reached from here?
//!
//! Two kinds of evidence: how well its node is heard (pulses, or gossip where there are none), and what TCP
//! connects to the backend itself came to, a client's dials or probes of our own.
//!
//! ```text
//!   heard     connects                    verdict
//!   Heard     none failed                 Up
//!   Heard     some failed                 Suspect; Down after 8 in a row, or 2 refused
//!   Late      not tried since             Suspect, and a probe starts at once
//!   any       answered since              Up, "checked directly": the agent is gone, the service is not;
//!                                         ranked behind those that are heard, which say that they serve
//!   Late      failed                      Suspect
//!   Lost      failed twice since          Down
//! ```
//!
//! Suspect is cheap to be wrong about: new connections go elsewhere while another backend is good. Down is
//! not: held connections are reset. So Down needs an answer that says so, or silence in two independent
//! ways.

use std::time::Duration;

use crate::cause::Cause;
use crate::node::NodeId;
use crate::pulse::Liveness;
use crate::service::ServiceName;
use crate::time::{Moment, UnixMs};

/// Time between two probes of a backend that is down, or that is checked directly.
const PROBE_INTERVAL: Duration = Duration::from_secs(1);

/// Longest time that one probe (a TCP connect) may take where the round trip is short or unknown.
const PROBE_TIMEOUT: Duration = Duration::from_millis(400);

/// Connects that must fail in a row while the node itself is heard, before silence counts as down. Three
/// seconds of them: at 20 % loss each way one connect in three fails, and the node has just said that it
/// is there.
const UNANSWERED_WHILE_HEARD: u32 = 8;

/// The same while it is not heard: one could be a lost packet.
const UNANSWERED_WHILE_LOST: u32 = 2;

/// Refusals in a row that count as down: the first could be a restart that is over already.
const REFUSALS: u32 = 2;

/// Whether a backend can be reached from here. The order is from best to worst.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Reachability {
    /// Yes, as far as is known.
    Up,
    /// In doubt: no new connections while another is good.
    Suspect,
    /// No.
    Down,
}

/// One piece of evidence.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Evidence {
    /// How well the node is heard now.
    Liveness(Liveness),
    /// A TCP connect succeeded, by a client's dial or by a probe, and took this long.
    Connected {
        /// Time from SYN to SYN-ACK: one round trip.
        took: Duration,
    },
    /// A TCP connect was answered by "nothing listens here".
    Refused,
    /// A TCP connect got no answer, or "no route".
    Unanswered,
}

/// Evidence about a named backend, on its way to whoever weighs it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EvidenceReport {
    /// Whose backend it is.
    pub node: NodeId,
    /// Of which service.
    pub service: ServiceName,
    /// What was seen.
    pub evidence: Evidence,
}

/// What is known of the way to one backend.
#[derive(Debug, Clone)]
pub struct BackendPath {
    reach: Reachability,
    cause: Option<Cause>,
    since: UnixMs,
    liveness: Liveness,
    /// A connect has succeeded since the node was last heard.
    answered_since: bool,
    unanswered: u32,
    refused: u32,
    rtt: Option<Duration>,
    next_probe: Option<Moment>,
}

impl BackendPath {
    /// A path that nothing is known of: up until shown otherwise, so that a fresh node serves at once.
    pub fn new(wall: UnixMs) -> BackendPath {
        BackendPath {
            reach: Reachability::Up,
            cause: None,
            since: wall,
            liveness: Liveness::Unknown,
            answered_since: false,
            unanswered: 0,
            refused: 0,
            rtt: None,
            next_probe: None,
        }
    }

    /// The verdict.
    pub fn reach(&self) -> Reachability {
        self.reach
    }

    /// Why it is not plainly up; none when it is.
    pub fn cause(&self) -> Option<Cause> {
        self.cause
    }

    /// Up by TCP connects alone: the agent beside it is not heard.
    pub fn is_probe_only(&self) -> bool {
        self.reach == Reachability::Up && matches!(self.liveness, Liveness::Late | Liveness::Silent)
    }

    /// Since when the verdict holds.
    pub fn since(&self) -> UnixMs {
        self.since
    }

    /// Smoothed round-trip time of TCP connects (RFC 6298, alpha 1/8); none before the first.
    pub fn rtt(&self) -> Option<Duration> {
        self.rtt
    }

    /// When the shell should connect to the backend to find out more; none: not needed.
    pub fn next_probe(&self) -> Option<Moment> {
        self.next_probe
    }

    /// How long a probe may take.
    pub fn probe_timeout(&self) -> Duration {
        self.rtt.map_or(PROBE_TIMEOUT, |rtt| PROBE_TIMEOUT.max(rtt * 3))
    }

    /// The shell has started the probe that [`BackendPath::next_probe`] asked for.
    pub fn probe_started(&mut self, now: Moment) {
        self.next_probe = Some(now.after(self.probe_timeout() + PROBE_INTERVAL));
    }

    /// Weighs one piece of evidence; true when the verdict or its cause changed.
    pub fn observe(&mut self, now: Moment, wall: UnixMs, evidence: Evidence) -> bool {
        match evidence {
            Evidence::Liveness(liveness) => self.peer_liveness(liveness),
            Evidence::Connected { took } => {
                self.unanswered = 0;
                self.refused = 0;
                self.answered_since = true;
                self.rtt = Some(self.rtt.map_or(took, |rtt| (rtt * 7 + took) / 8));
            }
            Evidence::Refused => {
                self.refused = self.refused.saturating_add(1);
                self.unanswered = 0;
                self.answered_since = false;
            }
            Evidence::Unanswered => {
                self.unanswered = self.unanswered.saturating_add(1);
                self.answered_since = self.answered_since && self.unanswered < UNANSWERED_WHILE_LOST;
            }
        }
        self.evaluate(now, wall, evidence)
    }

    fn peer_liveness(&mut self, liveness: Liveness) {
        let heard = |liveness| matches!(liveness, Liveness::Alive | Liveness::Unknown);
        match (heard(self.liveness), heard(liveness)) {
            // It has just fallen silent: what came before says nothing of now.
            (true, false) => {
                self.answered_since = false;
                self.unanswered = 0;
            }
            // It is back: connects that failed during the silence failed for the same reason.
            (false, true) => self.unanswered = 0,
            _ => {}
        }
        self.liveness = liveness;
    }

    fn verdict(&self) -> (Reachability, Option<Cause>) {
        if self.refused >= REFUSALS {
            return (Reachability::Down, Some(Cause::PortClosed));
        }
        match self.liveness {
            Liveness::Alive | Liveness::Unknown if self.unanswered >= UNANSWERED_WHILE_HEARD => {
                (Reachability::Down, Some(Cause::ConnectUnanswered))
            }
            _ if self.refused > 0 => (Reachability::Suspect, Some(Cause::PortClosed)),
            Liveness::Alive | Liveness::Unknown if self.unanswered > 0 => {
                (Reachability::Suspect, Some(Cause::ConnectUnanswered))
            }
            Liveness::Alive | Liveness::Unknown => (Reachability::Up, None),
            _ if self.answered_since => (Reachability::Up, Some(Cause::CheckedDirectly)),
            Liveness::Silent if self.unanswered >= UNANSWERED_WHILE_LOST => {
                (Reachability::Down, Some(Cause::NodeUnreachable))
            }
            Liveness::Late | Liveness::Silent => (Reachability::Suspect, Some(Cause::NotHeard)),
        }
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
    const HEARD: Evidence = Evidence::Liveness(Liveness::Alive);
    const LATE: Evidence = Evidence::Liveness(Liveness::Late);
    const LOST: Evidence = Evidence::Liveness(Liveness::Silent);
    use Evidence::{Refused, Unanswered};

    #[test]
    fn every_row_of_the_table() {
        let table: &[(&[Evidence], Reachability)] = &[
            (&[], Reachability::Up),
            (&[HEARD], Reachability::Up),
            (&[LATE], Reachability::Suspect),
            (&[LATE, Unanswered], Reachability::Suspect),
            (&[LATE, Unanswered, Unanswered], Reachability::Suspect),
            (&[LATE, LOST], Reachability::Suspect),
            (&[LATE, Unanswered, LOST], Reachability::Suspect),
            (&[LATE, Unanswered, LOST, Unanswered], Reachability::Down),
            (&[LATE, Unanswered, Unanswered, LOST], Reachability::Down),
            (&[LATE, Unanswered, Unanswered, LOST, HEARD], Reachability::Up),
            (&[LATE, CONNECTED], Reachability::Up),
            (&[LATE, CONNECTED, LOST], Reachability::Up),
            (&[LATE, CONNECTED, LOST, Unanswered], Reachability::Up),
            (&[LATE, CONNECTED, LOST, Unanswered, Unanswered], Reachability::Down),
            (&[CONNECTED, LATE], Reachability::Suspect),
            (&[Refused], Reachability::Suspect),
            (&[Refused, Refused], Reachability::Down),
            (&[Refused, CONNECTED], Reachability::Up),
            (&[HEARD, Unanswered], Reachability::Suspect),
            (&[HEARD, Unanswered, Unanswered], Reachability::Suspect),
            (&[HEARD, Unanswered, Unanswered, Unanswered], Reachability::Suspect),
            (&[Unanswered; 8], Reachability::Down),
            (&[HEARD, Unanswered, CONNECTED, Unanswered], Reachability::Suspect),
            (
                &[
                    Unanswered, Unanswered, Unanswered, Unanswered, Unanswered, Unanswered, Unanswered,
                    Unanswered, CONNECTED,
                ],
                Reachability::Up,
            ),
            (&[HEARD, Refused, Refused, HEARD], Reachability::Down),
        ];
        for (evidence, reach) in table {
            assert_eq!(after(evidence).reach(), *reach, "{evidence:?}");
        }
    }

    #[test]
    fn what_is_in_doubt_is_probed_and_what_is_up_is_left_alone() {
        assert_eq!(after(&[HEARD]).next_probe(), None);
        assert_eq!(after(&[LATE]).next_probe(), Some(Moment::from_millis(1)));
        assert_eq!(after(&[LATE, LATE]).next_probe(), Some(Moment::from_millis(1)), "asked once");
        assert_eq!(after(&[LATE, Unanswered]).next_probe(), Some(Moment::from_millis(2)));
        assert!(after(&[LATE, CONNECTED]).next_probe() > Some(Moment::from_millis(500)));
        assert!(after(&[Refused, Refused]).next_probe() > Some(Moment::from_millis(500)));
        assert_eq!(after(&[Refused, CONNECTED]).next_probe(), None);
    }

    #[test]
    fn a_silent_agent_beside_a_serving_apiserver_stays_up_and_says_so() {
        let path = after(&[LATE, CONNECTED]);
        assert_eq!((path.reach(), path.cause()), (Reachability::Up, Some(Cause::CheckedDirectly)));
    }
}
