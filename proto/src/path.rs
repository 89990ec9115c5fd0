//! Evidence about one backend, weighed into one word: can it be reached from here?
//!
//! ```text
//!            dial failed, node silent               probe refused, or
//!        ┌──────────────────────────────► Suspect ─ failed while the node ──► Down
//!        │                                   │      is silent, or 3 in a row    │
//!       Up ◄─────────────────────────────────┴──────────────────────────────────┘
//!                    probe or dial connected, or the node said that it works again
//! ```
//!
//! Suspect is cheap to be wrong about: new connections go elsewhere while another backend is good. Down is
//! not: held connections are reset. So Down needs an answer that says so, or silence in two independent
//! ways (gossip and TCP).

use std::time::Duration;

use crate::node::NodeId;
use crate::service::ServiceName;
use crate::time::{Moment, UnixMs};

/// Time between two probes of a backend that is not up, and of one whose agent is silent.
pub const PROBE_INTERVAL: Duration = Duration::from_secs(1);

/// Longest time that one probe (a TCP connect) may take.
pub const PROBE_TIMEOUT: Duration = Duration::from_secs(1);

/// Probes that must fail in a row while the node itself is heard, before silence counts as down.
const FAILED_PROBES: u32 = 3;

/// Whether a backend can be reached from here. The order is from best to worst.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Reach {
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
    /// Gossip hears the node.
    Heard,
    /// Gossip has not heard the node for longer than is usual.
    Silent,
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
pub struct Report {
    /// Whose backend it is.
    pub node: NodeId,
    /// Of which service.
    pub service: ServiceName,
    /// What was seen.
    pub evidence: Evidence,
}

/// What is known of the way to one backend.
#[derive(Debug, Clone)]
pub struct Path {
    reach: Reach,
    reason: &'static str,
    since: UnixMs,
    heard: bool,
    failed_probes: u32,
    rtt: Option<Duration>,
    next_probe: Option<Moment>,
}

impl Path {
    /// A path that nothing is known of: up until shown otherwise, so that a fresh node serves at once.
    pub fn new(wall: UnixMs) -> Path {
        Path {
            reach: Reach::Up,
            reason: "",
            since: wall,
            heard: true,
            failed_probes: 0,
            rtt: None,
            next_probe: None,
        }
    }

    /// The verdict.
    pub fn reach(&self) -> Reach {
        self.reach
    }

    /// Why it is not plainly up; empty when it is.
    pub fn reason(&self) -> &'static str {
        self.reason
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

    /// Weighs one piece of evidence; true when the verdict or its reason changed.
    pub fn observe(&mut self, now: Moment, wall: UnixMs, evidence: Evidence) -> bool {
        let before = (self.reach, self.reason);
        match evidence {
            Evidence::Heard => {
                let returned = !self.heard;
                self.heard = true;
                if returned && self.reach != Reach::Up {
                    // Its agent is back, so its own word counts again; a probe confirms at once.
                    self.next_probe = Some(now);
                } else if self.reach == Reach::Up {
                    self.reason = "";
                    self.next_probe = None;
                }
            }
            Evidence::Silent => {
                if self.heard {
                    self.heard = false;
                    self.next_probe = Some(now);
                    if self.reach == Reach::Up {
                        self.become_(Reach::Suspect, "node not heard", wall);
                    }
                }
            }
            Evidence::Connected { took } => {
                self.failed_probes = 0;
                self.rtt = Some(self.rtt.map_or(took, |rtt| (rtt * 7 + took) / 8));
                let reason = if self.heard { "" } else { "agent not heard, checked directly" };
                self.become_(Reach::Up, reason, wall);
                self.next_probe = (!self.heard).then(|| now.after(PROBE_INTERVAL));
            }
            Evidence::Refused => {
                self.failed_probes = self.failed_probes.saturating_add(1);
                self.next_probe = Some(now.after(PROBE_INTERVAL));
                let reach = if self.reach == Reach::Up { Reach::Suspect } else { Reach::Down };
                self.become_(reach, "connection refused", wall);
                if reach == Reach::Suspect {
                    self.next_probe = Some(now);
                }
            }
            Evidence::Unanswered => {
                self.failed_probes = self.failed_probes.saturating_add(1);
                self.next_probe = Some(now.after(PROBE_INTERVAL));
                let silent = !self.heard && self.reach != Reach::Up;
                if silent || self.failed_probes >= FAILED_PROBES || self.reach == Reach::Down {
                    self.become_(Reach::Down, "no answer to connect", wall);
                } else {
                    self.become_(Reach::Suspect, "no answer to connect", wall);
                    self.next_probe = Some(now);
                }
            }
        }
        before != (self.reach, self.reason)
    }

    /// The shell has started the probe that [`Path::next_probe`] asked for.
    pub fn probe_started(&mut self, now: Moment) {
        self.next_probe = Some(now.after(PROBE_TIMEOUT + PROBE_INTERVAL));
    }

    fn become_(&mut self, reach: Reach, reason: &'static str, wall: UnixMs) {
        if self.reach != reach {
            self.since = wall;
        }
        self.reach = reach;
        self.reason = reason;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn after(evidence: &[Evidence]) -> Path {
        let mut path = Path::new(UnixMs(0));
        for (i, evidence) in evidence.iter().enumerate() {
            let at = 1 + i as u64;
            path.observe(Moment::from_millis(at), UnixMs(at), *evidence);
        }
        path
    }

    const CONNECTED: Evidence = Evidence::Connected { took: Duration::from_millis(8) };

    #[test]
    fn every_transition_of_the_diagram() {
        use Evidence::{Heard, Refused, Silent, Unanswered};
        let table: &[(&[Evidence], Reach)] = &[
            (&[], Reach::Up),
            (&[Heard], Reach::Up),
            (&[Silent], Reach::Suspect),
            (&[Silent, Unanswered], Reach::Down),
            (&[Silent, Refused], Reach::Down),
            (&[Silent, CONNECTED], Reach::Up),
            (&[Refused], Reach::Suspect),
            (&[Refused, Refused], Reach::Down),
            (&[Unanswered], Reach::Suspect),
            (&[Unanswered, Unanswered], Reach::Suspect),
            (&[Unanswered, Unanswered, Unanswered], Reach::Down),
            (&[Unanswered, CONNECTED, Unanswered], Reach::Suspect),
            (&[Silent, Unanswered, Heard], Reach::Down),
            (&[Silent, Unanswered, Heard, CONNECTED], Reach::Up),
        ];
        for (evidence, reach) in table {
            assert_eq!(after(evidence).reach(), *reach, "{evidence:?}");
        }
    }

    #[test]
    fn what_is_in_doubt_is_probed_and_what_is_up_is_left_alone() {
        assert_eq!(after(&[Evidence::Heard]).next_probe(), None);
        assert_eq!(after(&[Evidence::Silent]).next_probe(), Some(Moment::from_millis(1)));
        assert!(after(&[Evidence::Silent, CONNECTED]).next_probe() > Some(Moment::from_millis(500)));
        assert_eq!(after(&[Evidence::Refused, CONNECTED]).next_probe(), None);
    }

    #[test]
    fn a_silent_agent_beside_a_serving_apiserver_stays_up_and_says_so() {
        let path = after(&[Evidence::Silent, CONNECTED]);
        assert_eq!((path.reach(), path.reason()), (Reach::Up, "agent not heard, checked directly"));
    }
}
