//! What is known of another member, in one word.

use super::MemberState;
use crate::node::NodeId;
use crate::pulse::Liveness;
use crate::view::ClusterView;

impl MemberState {
    /// By its record, pulses, gossip if it is not pulsed, and its apiserver if it is silent.
    pub fn of(view: &ClusterView, id: &NodeId, liveness: Option<Liveness>, serves: bool) -> MemberState {
        let liveness = liveness.filter(|liveness| *liveness != Liveness::Unknown);
        match view.members.get(id) {
            Some(member) if member.record.left => MemberState::Left,
            _ if liveness == Some(Liveness::Late) => MemberState::Suspect,
            _ if liveness == Some(Liveness::Alive) => MemberState::Up,
            Some(member) if member.heard && liveness.is_none() => MemberState::Up,
            None if view.is_said_alive(id) => MemberState::Up,
            // The machine is alive.
            _ if serves => MemberState::Suspect,
            _ => MemberState::Down,
        }
    }
}
