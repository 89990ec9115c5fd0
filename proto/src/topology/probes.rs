//! Direct checks of core members that attached nodes have lost: gossip alone needs ten seconds to notice a dead one.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::node::NodeId;
use crate::time::Moment;

/// Time between two probes of one core member.
const RETRY: Duration = Duration::from_millis(250);

/// Time without an answer after which it is dead: six probes. At 10 % loss each way all are lost once in 20,000 checks.
const DEAD: Duration = Duration::from_millis(1_500);

/// How long after an answer it is not probed again, whoever reports it: between the two the path is bad.
const ANSWERED: Duration = Duration::from_secs(5);

/// How long a dead one counts as dead without being reported again.
const KEPT: Duration = Duration::from_secs(60);

/// One that was reported.
#[derive(Debug, Clone, Copy)]
struct Probe {
    began: Moment,
    next: Moment,
    answered: Option<Moment>,
}

/// The core members that attached nodes have reported as lost. A report causes probes and nothing else, so a node that
/// reports falsely costs six datagrams in five seconds.
#[derive(Debug, Clone, Default)]
pub(super) struct CoreProbes(BTreeMap<NodeId, Probe>);

impl CoreProbes {
    /// An attached node has lost it.
    pub(super) fn reported(&mut self, id: NodeId, now: Moment) {
        let begin = Probe { began: now, next: now, answered: None };
        let probe = self.0.entry(id).or_insert(begin);
        if probe.answered.is_some_and(|at| now.since(at) >= ANSWERED) {
            *probe = begin;
        }
    }

    /// It was heard.
    pub(super) fn heard(&mut self, id: &NodeId, now: Moment) {
        if let Some(probe) = self.0.get_mut(id) {
            probe.answered.get_or_insert(now);
        }
    }

    /// Whom to probe now.
    pub(super) fn poll(&mut self, now: Moment) -> Vec<NodeId> {
        self.0.retain(|_, probe| now.since(probe.answered.unwrap_or(probe.began)) < KEPT);
        let mut due = Vec::new();
        for (id, probe) in self.0.iter_mut().filter(|(_, probe)| probe.is_open(now) && probe.next <= now) {
            probe.next = now.after(RETRY);
            due.push(*id);
        }
        due
    }

    /// When [`CoreProbes::poll`] or [`CoreProbes::is_dead`] change next.
    pub(super) fn deadline(&self, now: Moment) -> Option<Moment> {
        let open = self.0.values().filter(|probe| probe.is_open(now));
        open.map(|probe| probe.next.min(probe.began.after(DEAD))).min()
    }

    /// Whether it has answered none of its probes.
    pub(super) fn is_dead(&self, id: &NodeId, now: Moment) -> bool {
        self.0.get(id).is_some_and(|probe| probe.answered.is_none() && !probe.is_open(now))
    }

    /// How many are dead.
    pub(super) fn dead(&self, now: Moment) -> usize {
        self.0.values().filter(|probe| probe.answered.is_none() && !probe.is_open(now)).count()
    }
}

impl Probe {
    fn is_open(&self, now: Moment) -> bool {
        self.answered.is_none() && now.since(self.began) < DEAD
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const REPORTED: NodeId = NodeId([7; NodeId::LEN]);

    fn at(ms: u64) -> Moment {
        Moment::from_millis(ms)
    }

    #[test]
    fn one_that_answers_no_probe_is_dead_until_it_is_heard() {
        let mut probes = CoreProbes::default();
        assert_eq!((probes.poll(at(0)), probes.deadline(at(0))), (vec![], None));
        probes.reported(REPORTED, at(0));
        let sent = (0..2_000).step_by(50).filter(|ms| probes.poll(at(*ms)) == [REPORTED]).count();
        assert_eq!(sent, 6);
        assert!(!probes.is_dead(&REPORTED, at(1_499)) && probes.is_dead(&REPORTED, at(1_500)));
        probes.reported(REPORTED, at(2_000));
        assert!(probes.is_dead(&REPORTED, at(2_000)), "a second report changes nothing");
        probes.heard(&REPORTED, at(3_000));
        assert!(!probes.is_dead(&REPORTED, at(3_000)));
        assert_eq!(probes.dead(at(3_000)), 0);
    }

    #[test]
    fn a_report_of_one_that_answers_costs_a_probe_in_five_seconds() {
        let mut probes = CoreProbes::default();
        let mut sent = 0;
        for ms in (0..20_000).step_by(50) {
            probes.reported(REPORTED, at(ms));
            let due = probes.poll(at(ms));
            sent += due.len();
            due.iter().for_each(|id| probes.heard(id, at(ms + 10)));
            assert!(!probes.is_dead(&REPORTED, at(ms)));
        }
        assert_eq!(sent, 4);
    }
}
