//! The full list of members. An attached node has the records of few, and asks a core member for the rest.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::time::Duration;

use proto::control::{MemberList, MemberStatus, Response};
use proto::node::NodeId;
use proto::rpc::{FailCode, FromMember, ToMember};
use proto::topology::Place;

use super::{RunningAgent, status};

/// Time-out for one core member, and how many are asked one after the other: a person is waiting.
const PATIENCE: Duration = Duration::from_secs(4);
const ASKED: usize = 4;

/// Answers the command line.
pub(super) async fn answer(running: &RunningAgent) -> Response {
    let mut list = MemberList { members: status::all_members(running), from: None, silent: Vec::new() };
    if running.peers.place() == Place::Attached {
        complete(running, &mut list).await;
    }
    Response::Members(list)
}

/// Where members are, by what a core member says, if this node is attached: it has not heard of most itself.
pub(super) async fn addresses(running: &RunningAgent) -> BTreeMap<NodeId, IpAddr> {
    let mut list = MemberList { members: status::all_members(running), from: None, silent: Vec::new() };
    if running.peers.place() == Place::Attached {
        let _ = tokio::time::timeout(PATIENCE, complete(running, &mut list)).await;
    }
    list.members.into_iter().filter_map(|one| Some((one.id, one.address.parse().ok()?))).collect()
}

/// Asks those that this node is attached to, and then masters.
async fn complete(running: &RunningAgent, list: &mut MemberList) {
    let (document, names) = (running.document(), running.document().shown_names());
    let mut asked: Vec<NodeId> = running.peers.view().borrow().attached_to.clone();
    let masters = document.members().map(|(id, _)| *id).filter(|id| document.is_master(id));
    let more: Vec<NodeId> = masters.filter(|id| !asked.contains(id)).collect();
    asked.extend(more);
    for id in asked.into_iter().take(ASKED) {
        let Some(name) = names.get(&id).cloned() else { continue };
        let answer =
            tokio::time::timeout(PATIENCE, running.link.dialer().call(id, &FromMember::Members)).await;
        match answer {
            Ok(Ok(ToMember::Members(said))) => return list.complete(said, name),
            // It has another version, or is attached itself, or does not answer: the next one may.
            _ => list.silent.push(name),
        }
    }
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
    ToMember::Members(status::all_members(running).into_iter().map(short).collect())
}
