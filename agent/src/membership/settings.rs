//! What the command line asks of the keeper about settings of the whole cluster, drains among them.

use proto::cluster::{ChangeError, Document};
use proto::control::{HeldStatus, Response};
use proto::node::{Name, NodeId};
use proto::rpc::{FromMember, ToMember};
use proto::settings::{self, BadSetting, SettingChange};
use tokio::sync::oneshot;
use tracing::info;

use super::task::MembershipTask;
use crate::lifecycle::wall;

/// Why settings are not written.
#[derive(Debug, thiserror::Error)]
enum WriteError {
    /// The document was not changed.
    #[error(transparent)]
    Change(#[from] ChangeError),
    /// Another value of this key is newer, by its author's clock.
    #[error("cannot change {0}: another value takes precedence")]
    Outvoted(String),
}

/// Why a text names no member.
#[derive(Debug, thiserror::Error)]
pub(super) enum NoMember {
    /// None or several are called so.
    #[error(transparent)]
    Named(#[from] BadSetting),
    /// It was one a moment ago.
    #[error("no such member")]
    Gone,
}

impl MembershipTask {
    /// Changes settings: all that is asked for, or nothing.
    pub(super) fn change_settings(
        &mut self,
        wishes: &[(String, Option<String>)],
        reply: oneshot::Sender<Response>,
    ) {
        match settings::plan(self.document(), wishes) {
            Err(mistakes) => {
                let _ = reply.send(Response::Failed(wrong(&mistakes)));
            }
            Ok(changes) => {
                let changed = match self.write(&changes) {
                    Ok(changed) => changed,
                    Err(error) => return drop(reply.send(Response::Failed(error.to_string()))),
                };
                let told = changed.then(|| self.spread_and_count());
                self.life.spawn(async move {
                    let told = match told {
                        Some(told) => told.await,
                        None => "nothing changed".to_owned(),
                    };
                    let _ = reply.send(Response::Changed(changes, told));
                });
            }
        }
    }

    /// Writes changes into the document; true when there were any.
    fn write(&mut self, changes: &[SettingChange]) -> Result<bool, WriteError> {
        let by = self.link.own();
        let changes: Vec<&SettingChange> = changes.iter().filter(|change| change.old != change.new).collect();
        if changes.is_empty() {
            return Ok(false);
        }
        self.change(|document| {
            for SettingChange { key, new, .. } in &changes {
                document.set(key, new.clone(), by, wall())?;
            }
            Ok(())
        })?;
        for SettingChange { key, old, new } in changes {
            let now = self.document().settings.get(key).and_then(|setting| setting.value.as_ref());
            if now != new.as_ref() {
                return Err(WriteError::Outvoted(key.clone()));
            }
            let shown = |value: &Option<String>| value.clone().unwrap_or_else(|| "not set".to_owned());
            info!("setting {key} changed to {} from {}", shown(new), shown(old));
        }
        Ok(true)
    }

    /// Drains a node, or takes it back. Doing it again changes nothing, the time since included.
    pub(super) fn drain(&mut self, on: bool, node: Option<String>, reply: oneshot::Sender<Response>) {
        let name = match self.one_member(node.as_deref()) {
            Ok((_, name)) => name,
            Err(error) => return drop(reply.send(Response::Failed(error.to_string()))),
        };
        let key = format!("drain.{name}");
        let since = self.document().settings.get(&key).and_then(|setting| setting.value.clone());
        let value = match (on, since) {
            (false, None) => {
                return drop(reply.send(Response::Done(format!("{name} is not draining"))));
            }
            (false, Some(_)) => None,
            (true, Some(since)) => Some(since),
            (true, None) => Some(wall().0.to_string()),
        };
        match settings::plan(self.document(), &[(key, value)]) {
            Err(mistakes) => drop(reply.send(Response::Failed(wrong(&mistakes)))),
            Ok(changes) => {
                if let Err(error) = self.write(&changes) {
                    return drop(reply.send(Response::Failed(error.to_string())));
                }
                let what = if on {
                    format!("{name} is draining: it gets no new connections")
                } else {
                    format!("{name} is no longer draining")
                };
                let back = "to undo it, run: agent undrain";
                let then = match (on, node) {
                    (false, _) => String::new(),
                    (true, None) => format!("; {back}"),
                    (true, Some(_)) => format!("; {back} {name}"),
                };
                let told = self.spread_and_count();
                self.life.spawn(async move {
                    let _ = reply.send(Response::Done(format!("{what}{then}\n{}", told.await)));
                });
            }
        }
    }

    /// Counts the connections to a node's backends, wherever they begin: each node knows its own.
    pub(super) fn who_holds(&self, node: Option<String>, reply: oneshot::Sender<Response>) {
        let (id, name) = match self.one_member(node.as_deref()) {
            Ok(found) => found,
            Err(error) => return drop(reply.send(Response::Failed(error.to_string()))),
        };
        let called = |id: &NodeId| self.document().member(id).map(|admitted| admitted.name.clone());
        let names: Vec<(NodeId, Name, bool)> = {
            let view = self.view.borrow();
            let heard = |id: &NodeId| view.members.get(id).is_some_and(|one| one.heard && !one.word.left);
            self.document().members().map(|(id, one)| (*id, one.name.clone(), heard(id))).collect()
        };
        let mut by: Vec<(Name, u64)> =
            called(&self.link.own()).map(|own| (own, (self.held)(&id))).into_iter().collect();
        let answers = self.ask_all(FromMember::Held(id));
        self.life.spawn(async move {
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
            by.sort();
            silent.sort();
            away.sort();
            let _ = reply.send(Response::Held(HeldStatus { node: name, by, silent, away }));
        });
    }

    /// The member that a text names; none: this node.
    fn one_member(&self, text: Option<&str>) -> Result<(NodeId, Name), NoMember> {
        let own = self.link.own();
        let name = match (text, self.document().member(&own)) {
            (None, Some(admitted)) => return Ok((own, admitted.name.clone())),
            (text, _) => settings::member(self.document(), text.unwrap_or_default())?,
        };
        let found = self.document().members().find(|(_, admitted)| admitted.name == name);
        found.map(|(id, _)| (*id, name)).ok_or(NoMember::Gone)
    }
}

/// Every mistake, a line for each.
fn wrong(mistakes: &[proto::config::Mistake]) -> String {
    let mut text = "nothing was changed:".to_owned();
    for mistake in mistakes {
        text.push_str("\n  ");
        text.push_str(&mistake.to_string());
    }
    text
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
