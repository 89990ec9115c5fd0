//! A worker that goes on as a master. Two masters that have demoted each other, with no third, end like that:
//! each keeps its own copy of the document until someone decides, so status has to say so.

use std::sync::Arc;
use std::time::Duration;

use proto::cluster::Document;
use proto::node::{NodeId, Role};
use proto::problem::{Problem, ProblemCode};
use tokio::time::Instant;

use super::disk::MemberStore;

/// How long its seal is refused before that is told: a promotion that has not come yet comes within a few
/// exchanges.
const PATIENCE: Duration = Duration::from_secs(10);

/// How long it is remembered that one was refused.
const REMEMBERED: Duration = Duration::from_secs(60);

/// The name of the problem that says so.
const SECOND_MASTER: &str = "second master";

/// The worker whose seal was refused last, since when, and when last.
pub(super) struct RivalMaster {
    disk: Arc<MemberStore>,
    seen: Option<(NodeId, Instant, Instant)>,
}

impl RivalMaster {
    /// None yet.
    pub(super) fn new(disk: Arc<MemberStore>) -> RivalMaster {
        RivalMaster { disk, seen: None }
    }

    /// A document was refused because this worker has sealed it.
    pub(super) fn refused(&mut self, node: NodeId) {
        let now = Instant::now();
        let known = self.seen.filter(|(one, ..)| *one == node);
        self.seen = Some((node, known.map_or(now, |(_, since, _)| since), now));
    }

    /// Says that it goes on, or no longer.
    pub(super) fn report(&mut self, document: &Document) {
        let Some((node, since, last)) = self.seen else { return };
        if last.elapsed() >= REMEMBERED || document.role(&node) != Some(Role::Worker) {
            self.seen = None;
            return self.disk.report(SECOND_MASTER, None);
        }
        if since.elapsed() < PATIENCE {
            return;
        }
        let name = document.shown_name(&node);
        let detail = format!("{name} is a worker here but acts as a master; what it changes is ignored here");
        let fix = "if two masters have demoted each other, keep one; on the other and on each node that follows it, \
                   run: systemctl stop agent; agent join INVITE (an invite of the one that is kept)";
        let problem = Problem::new(ProblemCode::SecondMaster, detail).about(name.to_string()).fix(fix);
        self.disk.report(SECOND_MASTER, Some(problem));
    }
}
