//! What stood when another process handed over: this one sees all of it for the first time, which is no change.

use std::collections::BTreeMap;

use proto::event::{Event, EventKind, EventRing};

/// The last event of each subject in the process before, until it changes or is seen again.
#[derive(Default)]
pub(super) struct StandingStates(BTreeMap<(EventKind, String), String>);

impl StandingStates {
    /// Reads them from the events of that process.
    pub(super) fn new(ring: &EventRing) -> StandingStates {
        let states = ring.all().filter(|event| is_state(event.kind));
        StandingStates(states.map(|event| ((event.kind, event.subject.clone()), event.to.clone())).collect())
    }

    /// Whether this event finds again what stood.
    pub(super) fn repeats(&mut self, event: &Event) -> bool {
        let key = (event.kind, event.subject.clone());
        self.0.remove(&key).is_some_and(|stood| stood == event.to)
    }
}

/// Whether such events say how a subject is from then on, each a change to the last.
fn is_state(kind: EventKind) -> bool {
    match kind {
        EventKind::Backend
        | EventKind::Check
        | EventKind::Member
        | EventKind::Drain
        | EventKind::Listener
        | EventKind::Document
        | EventKind::Problem
        | EventKind::VipState
        | EventKind::VipOwner => true,
        EventKind::AgentStarted
        | EventKind::AgentStopping
        | EventKind::MemberJoined
        | EventKind::MemberRemoved
        | EventKind::Setting
        | EventKind::KeyRotated
        | EventKind::Limit
        | EventKind::Budget
        | EventKind::Reload
        | EventKind::Stall
        | EventKind::VipProblem
        | EventKind::NodeLocal
        | EventKind::KubernetesEndpoints
        | EventKind::Other => false,
    }
}
