//! What the command line asks of the keeper: invites, roles, removals, rotations, approvals, leaving.

use std::net::SocketAddr;
use std::pin::Pin;
use std::time::Duration;

use proto::cluster::{Admitted, Document};
use proto::control::{Request, Response};
use proto::invite::{Approval, PendingJoin, pin_of, pin_text};
use proto::node::{Name, NodeId, Role};
use proto::rpc::{FailCode, FromMember, ToMember};
use proto::time::{UnixMs, human};
use tokio::sync::{mpsc, oneshot};
use tracing::{info, warn};

use super::admissions::issue;
use super::settings;
use super::task::MembershipTask;
use crate::lifecycle::wall;

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

impl MembershipTask {
    pub(super) fn control(&mut self, request: Request, reply: oneshot::Sender<Response>) {
        let removed = self.document().member(&self.link.own()).is_none();
        if removed && !matches!(request, Request::Leave) {
            let text = "this node was removed from the cluster; run: agent leave --force";
            let _ = reply.send(Response::Failed(text.to_owned()));
            return;
        }
        if !self.is_master() && !matches!(request, Request::Leave | Request::Held { .. }) {
            let _ = reply.send(Response::Failed(not_a_master(self.document())));
            return;
        }
        let response = match request {
            Request::Invite { seconds, uses, role } => self.invite(seconds, uses, role),
            Request::Open { seconds } => self.open(seconds),
            Request::Rotate => return self.rotate(reply),
            Request::Remove { node } => return self.remove(&node, reply),
            Request::SetRole { node, role, force } => return self.set_role(&node, role, force, reply),
            Request::Leave => return self.leave(reply),
            Request::Waiting => return self.who_waits(reply),
            Request::Answer { code, role } => return self.answer_anywhere(code, role, reply),
            Request::Change(wishes) => return self.change_settings(&wishes, reply),
            Request::Drain { on, node } => return self.drain(on, node, reply),
            Request::Held { node } => return self.who_holds(node, reply),
            #[cfg(feature = "next-wire")]
            Request::Next => Response::Failed("unsupported request".to_owned()),
            Request::Status
            | Request::Settings
            | Request::VipMove { .. }
            | Request::Events(_)
            | Request::Doctor(_) => Response::Failed("unsupported request".to_owned()),
        };
        let _ = reply.send(response);
    }

    fn invite(&mut self, seconds: u64, uses: Option<u32>, role: Role) -> Response {
        let Some(ip) = *self.own_address.borrow() else {
            return Response::Failed(
                "this node has no address on the mesh, so nobody could use an invite; \
                 bring its network up first"
                    .to_owned(),
            );
        };
        let address = (ip, self.port).into();
        let ttl = Duration::from_secs(seconds);
        let key = self.link.identity.key;
        let (invite, expires) = issue(&mut self.invites, &key, address, ttl, uses, role);
        if !self.disk.save_invites(&self.invites) {
            return Response::Failed(format!("cannot save the invite: {}", self.disk.not_kept()));
        }
        info!(expires_in = human(ttl), ?uses, %role, "invite created");
        Response::Invite { line: invite.to_string(), expires }
    }

    fn open(&mut self, seconds: u64) -> Response {
        let ttl = Duration::from_secs(seconds);
        let until = if seconds == 0 { UnixMs(0) } else { wall().after(ttl) };
        self.pending.open(until);
        self.open_until.send_replace(until);
        if seconds == 0 {
            info!("cluster closed to nodes without an invite");
            return Response::Done("closed: nodes without an invite need an approval".to_owned());
        }
        warn!(for_ = human(ttl), "cluster open to workers without an invite");
        let address = self.own_address.borrow().map(|ip| SocketAddr::new(ip, self.port));
        let host = address.map_or_else(|| "HOST".to_owned(), |address| address.to_string());
        Response::Done(format!(
            "open for {}: anyone who can reach this node may join as a worker with\n\n  \
             agent join {host} --key {}\n\nto close it, run: agent open --for 0",
            human(ttl),
            pin_text(&pin_of(&self.link.identity.key)),
        ))
    }

    fn rotate(&mut self, reply: oneshot::Sender<Response>) {
        if let Err(error) = self.change_with_key(false, |_| Ok(())) {
            return drop(reply.send(Response::Failed(error.to_string())));
        }
        let what = format!("new gossip key {}", self.document().key.epoch);
        self.spread_and_answer(what, "the old key is accepted for 10 minutes", reply);
    }

    /// The one other member that a text names.
    fn other_member(&self, node: &str) -> Result<(NodeId, Admitted), NoOther> {
        let document = self.document();
        match document.find(node).as_slice() {
            [(id, admitted)] => Ok((*id, (*admitted).clone())),
            [] => {
                let names: Vec<String> =
                    document.members().map(|(id, _)| document.shown_name(id).to_string()).collect();
                Err(NoOther::None { text: node.to_owned(), names })
            }
            several => {
                let ids: Vec<String> = several.iter().map(|(id, _)| id.to_string()).collect();
                Err(NoOther::Several { text: node.to_owned(), ids })
            }
        }
    }

    fn is_last_master(&self, id: &NodeId) -> bool {
        let mut masters = self.document().masters().map(|(id, _)| id);
        masters.next() == Some(id) && masters.next().is_none()
    }

    fn remove(&mut self, node: &str, reply: oneshot::Sender<Response>) {
        let own = self.link.own();
        let (id, admitted) = match self.other_member(node) {
            Ok((id, _)) if id == own => {
                let text = "that is this node; run: agent leave".to_owned();
                return drop(reply.send(Response::Failed(text)));
            }
            Ok(found) => found,
            Err(error) => return drop(reply.send(Response::Failed(error.to_string()))),
        };
        let addresses = self.link.addresses.all(&id);
        let changed = self.change_with_key(true, |document| {
            document.remove(id, own, wall());
            settings::forget(document, &admitted.name, own)
        });
        if let Err(error) = changed {
            return drop(reply.send(Response::Failed(error.to_string())));
        }
        warn!(node = %admitted.name, %id, "node removed");
        self.send_tombstone(addresses, admitted.key);
        let what = format!("{} removed; its identity can never rejoin", admitted.name);
        self.spread_and_answer(what, "the gossip key was changed", reply);
    }

    fn set_role(&mut self, node: &str, role: Role, force: bool, reply: oneshot::Sender<Response>) {
        let own = self.link.own();
        let (id, admitted) = match self.other_member(node) {
            Ok(found) => found,
            Err(error) => return drop(reply.send(Response::Failed(error.to_string()))),
        };
        let name = &admitted.name;
        if self.document().role(&id) == Some(role) {
            return drop(reply.send(Response::Done(format!("{name} is already a {role}"))));
        }
        if role == Role::Worker && self.is_last_master(&id) && !force {
            let text = format!(
                "{name} is the last master: without it, the cluster can only be replaced with \
                 agent init --successor; promote another node first, or use --force"
            );
            return drop(reply.send(Response::Failed(text)));
        }
        let changed = self.change(|document| Ok(document.set_role(id, role, own, wall())?));
        if let Err(error) = changed {
            return drop(reply.send(Response::Failed(error.to_string())));
        }
        warn!(node = %name, %id, %role, "role changed");
        let then = match role {
            Role::Master => "its apiserver is used, and it may change the cluster",
            Role::Worker => "its apiserver is not used, and it can no longer change the cluster",
        };
        self.spread_and_answer(format!("{name} is now a {role}"), then, reply);
    }

    /// Shows a removed node its tombstone, so that it stops by itself; it gets no key.
    fn send_tombstone(&self, addresses: Vec<SocketAddr>, key: proto::node::PublicKey) {
        let snapshot = self.snapshot_for(&key.id(), None);
        let link = self.link.clone();
        self.life.spawn(async move {
            let request = FromMember::Sync(Box::new(snapshot));
            let call = link.call_at(&addresses, key, &request);
            let _ = tokio::time::timeout(Duration::from_secs(3), call).await;
        });
    }

    /// Removes a member that asks for it itself.
    pub(super) fn admit_leave(&mut self, from: &NodeId) -> ToMember {
        if !self.is_master() {
            return ToMember::failed(FailCode::NotMaster, not_a_master(self.document()));
        }
        let Some(name) = self.document().member(from).map(|admitted| admitted.name.clone()) else {
            return ToMember::Left;
        };
        let from = *from;
        let changed = self.change(|document| {
            document.remove(from, from, wall());
            settings::forget(document, &name, from)
        });
        match changed {
            Ok(()) => {
                info!(node = %name, id = %from, "node left");
                self.push_soon();
                ToMember::Left
            }
            Err(error) => ToMember::failed(FailCode::Other(0), error.to_string()),
        }
    }

    fn leave(&mut self, reply: oneshot::Sender<Response>) {
        let own = self.link.own();
        let Some(name) = self.document().member(&own).map(|admitted| admitted.name.clone()) else {
            self.forget_everything();
            let _ = reply.send(Response::Done("this node had been removed; its state was deleted".into()));
            return;
        };
        let alone = self.others().is_empty();
        if self.is_last_master(&own) && !alone {
            let text = "this node is the last master; promote another node first (agent promote NODE), or run: \
                        agent leave --force";
            return drop(reply.send(Response::Failed(text.to_owned())));
        }
        info!("leaving the cluster");
        let (disk, life) = (self.disk.clone(), self.life.clone());
        let left = self.leaving(&name);
        self.life.spawn(async move {
            let (reached, all) = left.await;
            if reached == 0 && !alone {
                let text = "no master could be reached, so nothing was changed; \
                            bring the network up, or run: agent leave --force";
                let _ = reply.send(Response::Failed(text.to_owned()));
                return;
            }
            disk.wipe();
            let text = format!("left the cluster; {reached} of {all} members were notified");
            let _ = reply.send(Response::Done(text));
            // The answer must reach the command line before the socket goes.
            tokio::time::sleep(Duration::from_millis(200)).await;
            life.draining.cancel();
        });
    }

    /// Tells others that this node leaves: how many know, of how many. A master seals that itself; a worker
    /// asks one master after the other, of which one is enough. Nothing changes here until it is done.
    fn leaving(&self, name: &Name) -> Pin<Box<dyn Future<Output = (usize, usize)> + Send>> {
        let own = self.link.own();
        let (link, identity) = (self.link.clone(), self.link.identity.clone());
        if self.is_master() {
            let mut replica = self.replica.clone();
            let changed = replica.change(own, identity.pair(), |document| {
                document.remove(own, own, wall());
                settings::forget(document, name, own)
            });
            let told = changed.is_ok().then(|| self.push_replica(&replica));
            return Box::pin(async move {
                match told {
                    Some(told) => count(told).await,
                    None => (0, 0),
                }
            });
        }
        let masters: Vec<NodeId> = self.document().masters().map(|(id, _)| *id).collect();
        Box::pin(async move {
            for master in &masters {
                let call = link.call(*master, &FromMember::Leave);
                let answer = tokio::time::timeout(Duration::from_secs(3), call).await;
                if matches!(answer, Ok(Ok(ToMember::Left))) {
                    return (1, masters.len());
                }
            }
            (0, masters.len())
        })
    }

    fn forget_everything(&self) {
        self.disk.wipe();
        let stopping = self.life.draining.clone();
        self.life.spawn(async move {
            tokio::time::sleep(Duration::from_millis(200)).await;
            stopping.cancel();
        });
    }

    /// Pushes the document and answers the command line when all have been told or given up on.
    fn spread_and_answer(&self, what: String, then: &'static str, reply: oneshot::Sender<Response>) {
        let told = self.spread_and_count();
        self.life.spawn(async move {
            let _ = reply.send(Response::Done(format!("{what}; {then}\n{}", told.await)));
        });
    }

    /// Pushes the document, and says who knows when all have been told or given up on.
    pub(super) fn spread_and_count(&self) -> impl Future<Output = String> + Send + use<> {
        let told = self.push();
        async move {
            let (reached, all) = count(told).await;
            let rest = if reached == all { "" } else { "; the others are updated when they are back" };
            format!("{reached} of {all} other members were updated{rest}")
        }
    }

    fn who_waits(&mut self, reply: oneshot::Sender<Response>) {
        self.free_places();
        let mut waiting: Vec<PendingJoin> = self.pending.waiting(wall()).cloned().collect();
        let answers = self.ask_all(FromMember::Waiting);
        self.life.spawn(async move {
            for (_, answer) in answers.await {
                if let Some(ToMember::Waiting(more)) = answer {
                    waiting.extend(more);
                }
            }
            let _ = reply.send(Response::Waiting(waiting));
        });
    }

    fn answer_anywhere(&mut self, code: String, role: Option<Role>, reply: oneshot::Sender<Response>) {
        let here = self.answer(&code, role);
        if here != Approval::Unknown {
            return drop(reply.send(answered(here, &code, role)));
        }
        let answers = self.ask_all(FromMember::Answer { code: code.clone(), role });
        self.life.spawn(async move {
            let found = answers.await.into_iter().find_map(|(_, answer)| match answer {
                Some(ToMember::Answered(approval)) if approval != Approval::Unknown => Some(approval),
                _ => None,
            });
            let _ = reply.send(answered(found.unwrap_or(Approval::Unknown), &code, role));
        });
    }

    /// Asks every other member at once; those that do not answer within two seconds have none.
    pub(super) fn ask_all(
        &self,
        request: FromMember,
    ) -> impl Future<Output = Vec<(NodeId, Option<ToMember>)>> + Send + use<> {
        let peers = self.others();
        let link = self.link.clone();
        async move {
            let mut calls = tokio::task::JoinSet::new();
            for peer in peers {
                let (link, request) = (link.clone(), request.clone());
                calls.spawn(async move {
                    let call = link.call(peer, &request);
                    let answer = tokio::time::timeout(Duration::from_secs(2), call).await;
                    (peer, answer.ok().and_then(Result::ok))
                });
            }
            calls.join_all().await
        }
    }
}

/// How many were reached, of how many.
async fn count(mut told: mpsc::Receiver<bool>) -> (usize, usize) {
    let (mut reached, mut all) = (0, 0);
    while let Some(answer) = told.recv().await {
        all += 1;
        reached += usize::from(answer);
    }
    (reached, all)
}

/// What the command line is told of an answer to a waiting node.
fn answered(approval: Approval, code: &str, role: Option<Role>) -> Response {
    match (approval, role) {
        (Approval::Done { name, .. }, None) => Response::Done(format!("{name} rejected")),
        (Approval::Done { name, confirmation: None }, Some(role)) => {
            Response::Done(format!("{name} approved as a {role}"))
        }
        (Approval::Done { name, confirmation: Some(code) }, Some(role)) => {
            Response::Done(format!("{name} approved as a {role}; to finish, type this code on it: {code}"))
        }
        (Approval::Gone(name), _) => Response::Failed(format!(
            "{name} is no longer waiting and was not admitted; run agent join there again"
        )),
        (Approval::Unknown, _) => Response::Failed(format!(
            "no node with the code \"{code}\" is waiting; run agent approve without a code to list \
             the waiting nodes"
        )),
    }
}
