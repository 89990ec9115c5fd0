//! The full list of members. An attached node has the records of few, and asks a core member for the rest.

use std::time::Duration;

use proto::control::{self, MemberStatus, Response, Status};
use proto::node::NodeId;
use proto::rpc::{FailCode, FromMember, ToMember};
use proto::topology::Place;

use super::{RunningAgent, status};

/// Time-out for one core member, and how many are asked one after the other: a person is waiting.
const PATIENCE: Duration = Duration::from_secs(3);
const ASKED: usize = 3;

/// Answers the command line.
pub(super) async fn answer(running: &RunningAgent) -> Response {
    Response::Status(Box::new(full(running).await))
}

/// The status, with what a core member says of members if this node is attached.
pub(super) async fn full(running: &RunningAgent) -> Status {
    let mut status = status::of(running);
    if running.peers.place() != Place::Attached {
        return status;
    }
    // Those that this node is attached to, and then masters.
    let (document, mut asked) = (running.document(), running.peers.view().borrow().attached_to.clone());
    let masters = document.masters().map(|(id, _)| *id);
    let more: Vec<NodeId> = masters.filter(|id| !asked.contains(id)).collect();
    asked.extend(more);
    for id in asked.into_iter().take(ASKED) {
        let answer =
            tokio::time::timeout(PATIENCE, running.link.dialer().call(id, &FromMember::Members)).await;
        // It has another version, or is attached itself, or does not answer: the next one may.
        let Ok(Ok(ToMember::Members(said))) = answer else { continue };
        control::complete(&mut status.members, &said);
        status.members_from = status.members.iter().find(|one| one.id == id).map(|one| one.name.clone());
        break;
    }
    status
}

/// Answers a member.
pub(super) fn answer_member(running: &RunningAgent) -> ToMember {
    if running.peers.place() == Place::Attached {
        return ToMember::failed(
            FailCode::Unsupported,
            "it is attached to others, and has no full list itself",
        );
    }
    let short = |one: MemberStatus| MemberStatus { sees: Vec::new(), ..one };
    ToMember::Members(status::of(running).members.into_iter().map(short).collect())
}
