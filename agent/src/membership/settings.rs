//! What the command line asks about settings of the whole cluster, drains among them.

use proto::cluster::{ChangeError, Document};
use proto::control::{HeldStatus, RefusalCode, Response};
use proto::node::{Name, NodeId};
use proto::rpc::{FromMember, ToMember};
use proto::settings::{self, BadSetting, SettingChange};

use super::answer::Answer;
use super::cluster_state::{ClusterState, SettingError};
use super::peer_sync::PeerSync;
use crate::lifecycle::wall;

/// Why a text names no member.
#[derive(Debug, thiserror::Error)]
enum NoMember {
    /// None or several are called so.
    #[error(transparent)]
    Named(#[from] BadSetting),
    /// It was one a moment ago.
    #[error("no such member")]
    Gone,
}

/// What the command line is told of settings that were to be changed.
pub(super) fn changed(
    changes: Result<Vec<SettingChange>, SettingError>,
    cluster: &ClusterState,
    sync: &PeerSync,
) -> Answer {
    let changes = match changes {
        Ok(changes) => changes,
        Err(error @ SettingError::Mistakes(_)) => return Answer::refused(RefusalCode::BadInput, error),
        Err(error) => return Answer::failed(error),
    };
    let told = changes.iter().any(SettingChange::differs).then(|| sync.push_and_count(cluster));
    Answer::later(async move {
        let told = match told {
            Some(told) => told.await,
            None => "nothing changed".to_owned(),
        };
        Response::Changed(changes, told)
    })
}

/// Drains a node, or takes it back. Doing it again changes nothing, the time since included.
pub(super) fn drain(cluster: &mut ClusterState, sync: &PeerSync, on: bool, node: Option<String>) -> Answer {
    let name = match one_member(cluster, node.as_deref()) {
        Ok((_, name)) => name,
        Err(error) => return Answer::refused(RefusalCode::BadInput, error),
    };
    let key = format!("drain.{name}");
    let since = cluster.document().settings.get(&key).and_then(|setting| setting.value.clone());
    let value = match (on, since) {
        (false, None) => return Answer::done(format!("{name} is not draining")),
        (false, Some(_)) => None,
        (true, Some(since)) => Some(since),
        (true, None) => Some(wall().0.to_string()),
    };
    if let Err(error) = cluster.change_settings(&[(key, value)]) {
        return Answer::failed(error);
    }
    let what = match on {
        true => format!("{name} is draining: it gets no new connections"),
        false => format!("{name} is no longer draining"),
    };
    let back = "to undo it, run: agent undrain";
    let then = match (on, node) {
        (false, _) => String::new(),
        (true, None) => format!("; {back}"),
        (true, Some(_)) => format!("; {back} {name}"),
    };
    let told = sync.push_and_count(cluster);
    Answer::later(async move { Response::Done(format!("{what}{then}\n{}", told.await)) })
}

/// Counts the connections to a node's backends, wherever they begin: each node knows its own, this one by
/// `held`.
pub(super) fn who_holds(
    cluster: &ClusterState,
    sync: &PeerSync,
    node: Option<String>,
    held: &(dyn Fn(&NodeId) -> u64 + Send),
) -> Answer {
    let (id, name) = match one_member(cluster, node.as_deref()) {
        Ok(found) => found,
        Err(error) => return Answer::refused(RefusalCode::BadInput, error),
    };
    let document = cluster.document();
    let names: Vec<(NodeId, Name, bool)> =
        document.members().map(|(id, one)| (*id, one.name.clone(), sync.is_heard(id))).collect();
    let own = document.member(&cluster.own()).map(|admitted| (admitted.name.clone(), held(&id)));
    let mut by: Vec<(Name, u64)> = own.into_iter().collect();
    let answers = sync.ask_all(cluster, FromMember::Held(id));
    Answer::later(async move {
        let (mut silent, mut away) = (Vec::new(), Vec::new());
        for (peer, answer) in answers.await {
            let Some((_, name, heard)) = names.iter().find(|(id, ..)| *id == peer) else { continue };
            match answer {
                Some(ToMember::Held(count)) => by.push((name.clone(), count)),
                _ if *heard => silent.push(name.clone()),
                _ => away.push(name.clone()),
            }
        }
        by.retain(|(_, count)| *count > 0);
        by.sort_unstable();
        silent.sort_unstable();
        away.sort_unstable();
        Response::Held(HeldStatus { node: name, by, silent, away })
    })
}

/// The member that a text names; none: this node.
fn one_member(cluster: &ClusterState, text: Option<&str>) -> Result<(NodeId, Name), NoMember> {
    let (own, document) = (cluster.own(), cluster.document());
    let name = match (text, document.member(&own)) {
        (None, Some(admitted)) => return Ok((own, admitted.name.clone())),
        (text, _) => settings::member(document, text.unwrap_or_default())?,
    };
    let found = document.members().find(|(_, admitted)| admitted.name == name);
    found.map(|(id, _)| (*id, name)).ok_or(NoMember::Gone)
}

/// Unsets what was set for a node alone, which goes with it: another machine may get its name.
pub(super) fn forget(document: &mut Document, name: &Name, by: NodeId) -> Result<(), ChangeError> {
    for key in settings::of_node(name) {
        if document.settings.get(&key).is_some_and(|setting| setting.value.is_some()) {
            document.set(&key, None, by, wall())?;
        }
    }
    Ok(())
}
