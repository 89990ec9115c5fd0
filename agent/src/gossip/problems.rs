//! Failures of gossip, for status.

use std::time::Duration;

use proto::cluster::Document;
use proto::node::NodeId;
use proto::problem::{Problem, ProblemCode};
use proto::time::{UnixMs, human};

use super::guard::Offender;

/// How long a failure stays in status: long enough for a person who looks after an alert.
const SHOWN: Duration = Duration::from_secs(3600);

/// Failures of gossip.
#[derive(Debug, Clone, Default)]
pub(crate) struct GossipProblems {
    failures: u64,
    last: Option<(String, Option<NodeId>, UnixMs)>,
    overtaken: Option<UnixMs>,
    offenders: Vec<Offender>,
}

impl GossipProblems {
    /// chitchat ended unexpectedly.
    pub(super) fn failed(&mut self, error: String, culprit: Option<NodeId>, now: UnixMs) {
        self.failures += 1;
        self.last = Some((error, culprit, now));
    }

    /// A later record of this node was found.
    pub(super) fn overtaken(&mut self, now: UnixMs) {
        self.overtaken = Some(now);
    }

    /// Sets the members whose gossip was refused; true when they have changed.
    pub(super) fn set_offenders(&mut self, offenders: Vec<Offender>) -> bool {
        let changed = self.offenders != offenders;
        self.offenders = offenders;
        changed
    }

    /// The problems that status shows.
    pub(crate) fn problems(&self, document: &Document, now: UnixMs) -> Vec<Problem> {
        let name = |id: &NodeId| document.shown_name(id);
        let ago = |at: UnixMs| Duration::from_millis(now.0.saturating_sub(at.0));
        let mut problems = Vec::new();
        if let Some((error, culprit, at)) = &self.last
            && ago(*at) < SHOWN
        {
            let times =
                if self.failures == 1 { "once".to_owned() } else { format!("{} times", self.failures) };
            let after =
                culprit.as_ref().map_or(String::new(), |id| format!(" after a message of {}", name(id)));
            let last = human(ago(*at));
            let detail =
                format!("gossip failed {times}, most recently {last} ago{after}, and was restarted: {error}");
            let fix = "this is a bug: report it with journalctl -u agent -p warning";
            problems.push(Problem::new(ProblemCode::GossipFailed, detail).fix(fix));
        }
        if let Some(at) = self.overtaken.filter(|at| ago(*at) < SHOWN) {
            let detail = format!(
                "another machine used this node's identity, or this machine was resumed from a snapshot, {} ago",
                human(ago(at))
            );
            let fix = "if this machine was cloned, run this on the clone: agent leave --force";
            problems.push(Problem::new(ProblemCode::IdentityInUse, detail).fix(fix));
        }
        for Offender { node, refusal, count, ignored } in &self.offenders {
            let name = name(node);
            let state = if *ignored { "ignoring its gossip for a minute" } else { "refused" };
            let detail = format!("{name} gossiped {refusal}; {state} ({count} messages)");
            let fix = format!("its agent is broken or hostile; check it, or run: agent remove {name}");
            problems.push(Problem::new(ProblemCode::GossipRefused, detail).about(name.to_string()).fix(fix));
        }
        problems
    }
}
