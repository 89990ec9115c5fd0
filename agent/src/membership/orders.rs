//! What the command line asks of the keeper: invites, removals, rotations, approvals, leaving.

use std::time::Duration;

use proto::cluster::KeyId;
use proto::control::{Request, Response};
use proto::exchange::{FromMember, ToMember};
use proto::invite::Waiting;
use proto::link::GossipKey;
use proto::node::NodeId;
use proto::time::{UnixMs, human};
use tokio::sync::oneshot;
use tracing::{info, warn};

use super::keeper::{Keeper, issue};
use crate::lifecycle::wall;
use crate::link::random;

impl Keeper {
    pub(super) fn control(&mut self, request: Request, reply: oneshot::Sender<Response>) {
        let removed = self.document.member(&self.link.own()).is_none();
        if removed && request != Request::Leave {
            let text = "this node was removed from the cluster; run: agent leave --force";
            let _ = reply.send(Response::Failed(text.to_owned()));
            return;
        }
        let response = match request {
            Request::Invite { seconds, uses } => self.invite(seconds, uses),
            Request::Open { seconds } => self.open(seconds),
            Request::Rotate => return self.rotate(reply),
            Request::Remove { node } => return self.remove(&node, reply),
            Request::Leave => return self.leave(reply),
            Request::Waiting => return self.who_waits(reply),
            Request::Answer { code, approve } => return self.answer_anywhere(code, approve, reply),
            Request::Change(wishes) => return self.change(&wishes, reply),
            Request::Drain { on, node } => return self.drain(on, node, reply),
            Request::Held { node } => return self.who_holds(node, reply),
            Request::Status
            | Request::Settings
            | Request::VipMove { .. }
            | Request::Events(_)
            | Request::Doctor(_) => Response::Failed("that is not the keeper's to answer".to_owned()),
        };
        let _ = reply.send(response);
    }

    fn invite(&mut self, seconds: u64, uses: Option<u32>) -> Response {
        let Some(ip) = *self.own_address.borrow() else {
            return Response::Failed(
                "this node has no address in the mesh now, so nobody could use an invite; \
                 bring its network up first"
                    .to_owned(),
            );
        };
        let address = (ip, self.port).into();
        let ttl = Duration::from_secs(seconds);
        let (invite, expires) = issue(&mut self.invites, &self.link.identity.key, address, ttl, uses);
        if !self.disk.save_invites(&self.invites) {
            return Response::Failed(format!(
                "the invite can't be kept: {}",
                self.disk.problems().join("; ")
            ));
        }
        info!(expires_in = human(ttl), ?uses, "invite made");
        Response::Invite { line: invite.to_string(), expires }
    }

    fn open(&mut self, seconds: u64) -> Response {
        let ttl = Duration::from_secs(seconds);
        let until = if seconds == 0 { UnixMs(0) } else { wall().after(ttl) };
        self.lobby.open(until);
        self.open_until.send_replace(until);
        if seconds == 0 {
            info!("closed to nodes without an invite");
            return Response::Done("closed: nodes without an invite have to be approved".to_owned());
        }
        warn!(for_ = human(ttl), "open to nodes without an invite");
        Response::Done(format!(
            "open for {}: whoever can reach this node may join it\nclose it with: agent open --for 0s",
            human(ttl)
        ))
    }

    fn new_key(&mut self, by_removal: bool) {
        let secret: [u8; 32] = random();
        let id = KeyId::of_key(&secret);
        if self.document.turn_key(id, self.link.own(), wall(), by_removal).is_err() {
            return;
        }
        self.ring.add(GossipKey { epoch: self.document.key.epoch, id, secret, until: None });
    }

    fn rotate(&mut self, reply: oneshot::Sender<Response>) {
        self.new_key(false);
        info!(epoch = self.document.key.epoch, "gossip key changed");
        self.publish();
        let what = format!("gossip key {} made", self.document.key.epoch);
        self.tell(what, "the old one is accepted for 10 minutes", reply);
    }

    fn remove(&mut self, node: &str, reply: oneshot::Sender<Response>) {
        let found = self.document.find(node);
        let failed = |text: String| Response::Failed(text);
        let (id, admitted) = match found.as_slice() {
            [(id, _)] if *id == self.link.own() => {
                let text = "that is this node itself; run here: agent leave".to_owned();
                let _ = reply.send(failed(text));
                return;
            }
            [(id, admitted)] => (*id, (*admitted).clone()),
            [] => {
                let names: Vec<&str> =
                    self.document.members().map(|(_, admitted)| admitted.name.as_str()).collect();
                let text = format!("no member is called \"{node}\"; there are: {}", names.join(", "));
                let _ = reply.send(failed(text));
                return;
            }
            several => {
                let ids: Vec<String> = several.iter().map(|(id, _)| id.to_string()).collect();
                let text = format!("\"{node}\" names several members; use an id: {}", ids.join(", "));
                let _ = reply.send(failed(text));
                return;
            }
        };
        let addresses = self.link.book.all(&id);
        self.document.remove(id, self.link.own(), wall());
        self.forget_settings(&admitted.name);
        self.new_key(true);
        warn!(node = %admitted.name, %id, "node removed");
        self.publish();
        self.tell_removed(addresses, admitted.key);
        let what = format!("{} removed; its identity can't come back", admitted.name);
        self.tell(what, "the gossip key was changed", reply);
    }

    /// Shows a removed node its tombstone, so that it stops by itself; it gets no key.
    fn tell_removed(&self, addresses: Vec<std::net::SocketAddr>, key: proto::node::PublicKey) {
        let copy = self.copy_for(&key.id());
        let link = self.link.clone();
        self.life.spawn(async move {
            let request = FromMember::Sync(Box::new(copy));
            let call = link.call_at(&addresses, key, &request);
            let _ = tokio::time::timeout(Duration::from_secs(3), call).await;
        });
    }

    fn leave(&mut self, reply: oneshot::Sender<Response>) {
        let own = self.link.own();
        let Some(admitted) = self.document.member(&own).cloned() else {
            self.forget_everything();
            let _ = reply.send(Response::Done("this node had been removed; its state is deleted".into()));
            return;
        };
        let alone = self.document.members().count() == 1;
        self.document.remove(own, own, wall());
        self.forget_settings(&admitted.name);
        // The others make a new key themselves when they remove a node; one that leaves is not an enemy.
        let mut told = self.push();
        let (disk, life) = (self.disk.clone(), self.life.clone());
        info!("leaving the cluster");
        self.life.spawn(async move {
            let (mut reached, mut all) = (0, 0);
            while let Some(answer) = told.recv().await {
                all += 1;
                reached += usize::from(answer);
            }
            if reached == 0 && !alone {
                let text = "no other member could be told, so nothing was changed; \
                            bring the network up, or run: agent leave --force";
                let _ = reply.send(Response::Failed(text.to_owned()));
                return;
            }
            disk.wipe();
            let text = format!("left the cluster; {reached} of {all} members were told");
            let _ = reply.send(Response::Done(text));
            // The answer must reach the command line before the socket goes.
            tokio::time::sleep(Duration::from_millis(200)).await;
            life.stopping.cancel();
        });
    }

    fn forget_everything(&self) {
        self.disk.wipe();
        let stopping = self.life.stopping.clone();
        self.life.spawn(async move {
            tokio::time::sleep(Duration::from_millis(200)).await;
            stopping.cancel();
        });
    }

    /// Pushes the document and answers the command line when all have been told or given up on.
    fn tell(&self, what: String, then: &'static str, reply: oneshot::Sender<Response>) {
        let told = self.told();
        self.life.spawn(async move {
            let _ = reply.send(Response::Done(format!("{what}; {then}\n{}", told.await)));
        });
    }

    /// Pushes the document, and says who knows when all have been told or given up on.
    pub(super) fn told(&self) -> impl Future<Output = String> + Send + use<> {
        let mut told = self.push();
        async move {
            let (mut reached, mut all) = (0, 0);
            while let Some(answer) = told.recv().await {
                all += 1;
                reached += usize::from(answer);
            }
            let rest = if reached == all { "" } else { "; the others learn it when they are back" };
            format!("{reached} of {all} other members know{rest}")
        }
    }

    fn who_waits(&self, reply: oneshot::Sender<Response>) {
        let mut waiting: Vec<Waiting> = self.lobby.waiting(wall()).cloned().collect();
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

    fn answer_anywhere(&mut self, code: String, approve: bool, reply: oneshot::Sender<Response>) {
        let done = move |name: &proto::node::Name| {
            let what = if approve { "approved" } else { "rejected" };
            Response::Done(format!("{name} {what}"))
        };
        if let Some(name) = self.answer(&code, approve) {
            let _ = reply.send(done(&name));
            return;
        }
        let answers = self.ask_all(FromMember::Answer { code: code.clone(), approve });
        self.life.spawn(async move {
            let names = answers.await.into_iter().find_map(|(_, answer)| match answer {
                Some(ToMember::Answered(name)) => name,
                _ => None,
            });
            let none = || {
                Response::Failed(format!(
                    "no node with the code \"{code}\" waits at any member; run agent approve without a code \
                     to see who waits"
                ))
            };
            let _ = reply.send(names.as_ref().map_or_else(none, done));
        });
    }

    /// Asks every other member at once; those that do not answer within two seconds have none.
    pub(super) fn ask_all(
        &self,
        request: FromMember,
    ) -> impl Future<Output = Vec<(NodeId, Option<ToMember>)>> + Send + use<> {
        let own = self.link.own();
        let peers: Vec<NodeId> = self.document.members().map(|(id, _)| *id).filter(|id| *id != own).collect();
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
