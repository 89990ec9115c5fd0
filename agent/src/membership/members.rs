//! What the command line and members ask about membership itself: removals, roles, rotations, leaving.

use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use proto::cluster::{Admitted, Document};
use proto::control::{RefusalCode, Response};
use proto::node::{Name, NodeId, Role};
use proto::rpc::{FailCode, FromMember, ToMember};
use tracing::{info, warn};

use super::answer::Answer;
use super::cluster_state::ClusterState;
use super::disk::MemberStore;
use super::peer_sync::PeerSync;
use super::settings;
use crate::lifecycle::{Lifecycle, wall};

/// Time for an answer to reach the command line before the socket goes.
const GOODBYE: Duration = Duration::from_millis(200);

/// What a worker says to a request that only masters can carry out.
pub(crate) fn not_a_master(document: &Document) -> String {
    format!("this node is a worker; run this on a master: {}", document.master_names())
}

/// Why a text names no one member.
#[derive(Debug, thiserror::Error)]
enum NoOther {
    #[error("there is no member \"{text}\"; the members are: {}", names.join(", "))]
    None { text: String, names: Vec<String> },
    #[error("several members are called \"{text}\"; use an id: {}", ids.join(", "))]
    Several { text: String, ids: Vec<String> },
}

/// The one member that a text names.
fn named(document: &Document, text: &str) -> Result<(NodeId, Admitted), NoOther> {
    match document.find(text).as_slice() {
        [(id, admitted)] => Ok((*id, (*admitted).clone())),
        [] => {
            let names: Vec<String> =
                document.members().map(|(id, _)| document.shown_name(id).to_string()).collect();
            Err(NoOther::None { text: text.to_owned(), names })
        }
        several => {
            let ids: Vec<String> = several.iter().map(|(id, _)| id.to_string()).collect();
            Err(NoOther::Several { text: text.to_owned(), ids })
        }
    }
}

fn is_last_master(document: &Document, id: &NodeId) -> bool {
    let mut masters = document.masters().map(|(id, _)| id);
    masters.next() == Some(id) && masters.next().is_none()
}

/// Pushes the document, and answers when all have been told or given up on.
fn pushed(cluster: &ClusterState, sync: &PeerSync, what: String, then: &'static str) -> Answer {
    let told = sync.push_and_count(cluster);
    Answer::later(async move { Response::Done(format!("{what}; {then}\n{}", told.await)) })
}

/// Makes another gossip key the one that counts.
pub(super) fn rotate(cluster: &mut ClusterState, sync: &PeerSync) -> Answer {
    if let Err(error) = cluster.change_with_key(false, |_| Ok(())) {
        return Answer::failed(error);
    }
    let what = format!("new gossip key {}", cluster.document().key.epoch);
    pushed(cluster, sync, what, "the old key is accepted for 10 minutes")
}

/// Removes another member for good.
pub(super) fn remove(cluster: &mut ClusterState, sync: &PeerSync, node: &str) -> Answer {
    let own = cluster.own();
    let (id, admitted) = match named(cluster.document(), node) {
        Ok((id, _)) if id == own => {
            return Answer::refused(RefusalCode::BadInput, "that is this node; run: agent leave");
        }
        Ok(found) => found,
        Err(error) => return Answer::refused(RefusalCode::BadInput, error),
    };
    let addresses = sync.addresses(&id);
    let changed = cluster.change_with_key(true, |document| {
        document.remove(id, own, wall());
        settings::forget(document, &admitted.name, own)
    });
    if let Err(error) = changed {
        return Answer::failed(error);
    }
    warn!(node = %admitted.name, %id, "node removed");
    sync.send_tombstone(cluster, addresses, admitted.key);
    let what = format!("{} removed; its identity can never rejoin", admitted.name);
    pushed(cluster, sync, what, "the gossip key was changed")
}

/// Gives a member another role.
pub(super) fn set_role(
    cluster: &mut ClusterState,
    sync: &PeerSync,
    node: &str,
    role: Role,
    force: bool,
) -> Answer {
    let own = cluster.own();
    let (id, admitted) = match named(cluster.document(), node) {
        Ok(found) => found,
        Err(error) => return Answer::refused(RefusalCode::BadInput, error),
    };
    let name = &admitted.name;
    if cluster.document().role(&id) == Some(role) {
        return Answer::done(format!("{name} is already a {role}"));
    }
    if role == Role::Worker && is_last_master(cluster.document(), &id) && !force {
        let reason = format_args!(
            "{name} is the last master: without it, the cluster can only be replaced with \
             agent init --successor; promote another node first, or use --force"
        );
        return Answer::refused(RefusalCode::LastMaster, reason);
    }
    let changed = cluster.change(|document| Ok(document.set_role(id, role, own, wall())?));
    if let Err(error) = changed {
        return Answer::failed(error);
    }
    warn!(node = %name, %id, %role, "role changed");
    let then = match role {
        Role::Master => "its apiserver is used, and it may change the cluster",
        Role::Worker => "its apiserver is not used, and it can no longer change the cluster",
    };
    pushed(cluster, sync, format!("{name} is now a {role}"), then)
}

/// Removes a member that asks for it itself.
pub(super) fn admit_leave(cluster: &mut ClusterState, sync: &mut PeerSync, from: NodeId) -> ToMember {
    if !cluster.is_master() {
        return ToMember::failed(FailCode::NotMaster, not_a_master(cluster.document()));
    }
    let Some(name) = cluster.document().member(&from).map(|admitted| admitted.name.clone()) else {
        return ToMember::Left;
    };
    let changed = cluster.change(|document| {
        document.remove(from, from, wall());
        settings::forget(document, &name, from)
    });
    match changed {
        Ok(()) => {
            info!(node = %name, id = %from, "node left");
            sync.push_soon(cluster);
            ToMember::Left
        }
        Err(error) => ToMember::failed(FailCode::Other(0), error.to_string()),
    }
}

/// Leaves the cluster: others are told, the state is deleted, and the agent stops.
pub(super) fn leave(
    cluster: &ClusterState,
    sync: &PeerSync,
    disk: &Arc<MemberStore>,
    life: &Lifecycle,
) -> Answer {
    let own = cluster.own();
    let Some(name) = cluster.document().member(&own).map(|admitted| admitted.name.clone()) else {
        disk.wipe();
        stop_soon(life);
        return Answer::done("this node had been removed; its state was deleted");
    };
    let alone = cluster.others().is_empty();
    if is_last_master(cluster.document(), &own) && !alone {
        return Answer::refused(
            RefusalCode::LastMaster,
            "this node is the last master; promote another node first (agent promote NODE), or run: \
             agent leave --force",
        );
    }
    info!("leaving the cluster");
    let (disk, life) = (disk.clone(), life.clone());
    let left = leaving(cluster, sync, &name);
    Answer::later(async move {
        let (reached, all) = left.await;
        if reached == 0 && !alone {
            let text = "no master could be reached, so nothing was changed; \
                        bring the network up, or run: agent leave --force";
            return Response::Failed(text.to_owned());
        }
        disk.wipe();
        stop_soon(&life);
        Response::Done(format!("left the cluster; {reached} of {all} members were notified"))
    })
}

/// Stops the agent when the answer has had time to reach the command line.
fn stop_soon(life: &Lifecycle) {
    let stopping = life.draining.clone();
    life.spawn(async move {
        tokio::time::sleep(GOODBYE).await;
        stopping.cancel();
    });
}

/// Tells others that this node leaves: how many know, of how many. A master seals that itself; a worker
/// asks one master after the other, of which one is enough. Nothing changes here until it is done.
fn leaving(
    cluster: &ClusterState,
    sync: &PeerSync,
    name: &Name,
) -> Pin<Box<dyn Future<Output = (usize, usize)> + Send>> {
    let own = cluster.own();
    if cluster.is_master() {
        let without = cluster.after(|document| {
            document.remove(own, own, wall());
            settings::forget(document, name, own)
        });
        return match without {
            Ok(without) => Box::pin(sync.push(cluster.others(), without)),
            Err(_) => Box::pin(std::future::ready((0, 0))),
        };
    }
    let masters: Vec<NodeId> = cluster.document().masters().map(|(id, _)| *id).collect();
    Box::pin(sync.ask_until(masters, FromMember::Leave, |answer| matches!(answer, ToMember::Left)))
}
