//! The one task that owns the cluster document, the gossip keys, the invites and the lobby.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use proto::backends::Serving;
use proto::cluster::{Admitted, Document};
use proto::exchange::{Copy, FromMember, ToMember, Welcome};
use proto::invite::{APPROVAL_TTL, Book, Invite, Issued, Lobby, Refusal, Secret, Waiting, code_of, pin_of};
use proto::link::{GossipKey, KeyRing};
use proto::node::{NodeId, Role};
use proto::time::UnixMs;
use proto::view::View;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::Instant;
use tracing::{info, warn};

use super::disk::Disk;
use super::spread::Spread;
use super::{Admission, Applicant, Command};
use crate::lifecycle::{Life, wall};
use crate::link::{Incoming, Link, Trust, random};

/// How often the keeper looks after retired keys, differing copies and silence.
const TICK: Duration = Duration::from_secs(1);

/// How often the addresses of peers are written to disk when they changed.
const SAVE_PEERS: Duration = Duration::from_secs(30);

/// What the keeper works with.
pub(crate) struct Keeper {
    pub(crate) link: Arc<Link>,
    pub(crate) disk: Arc<Disk>,
    pub(crate) document: Document,
    pub(crate) ring: KeyRing,
    pub(crate) invites: Book,
    pub(crate) trust: watch::Sender<Arc<Trust>>,
    pub(crate) open_until: watch::Sender<UnixMs>,
    pub(crate) view: watch::Receiver<Arc<View>>,
    pub(crate) serving: watch::Receiver<Arc<Serving>>,
    pub(crate) own_address: watch::Receiver<Option<std::net::IpAddr>>,
    pub(crate) port: u16,
    /// How many connections this node holds to another.
    pub(crate) held: Box<dyn Fn(&NodeId) -> u64 + Send>,
    pub(crate) commands: mpsc::Sender<Command>,
    pub(crate) life: Life,
    pub(crate) lobby: Lobby,
    pub(crate) waiting: BTreeMap<String, (Applicant, oneshot::Sender<Admission>)>,
}

impl Keeper {
    /// Runs until the process stops.
    pub(crate) async fn run(&mut self, commands: &mut mpsc::Receiver<Command>) {
        // Whoever waits for an earlier run, which has failed, asks again; the document and the keys are only
        // ever replaced whole.
        self.waiting.clear();
        self.lobby = Lobby::default();
        let mut tick = tokio::time::interval(TICK);
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut spread = Spread::new(self.life.now());
        let mut saved = (Instant::now(), self.link.book.snapshot());
        let stopping = self.life.stopping.clone();
        loop {
            tokio::select! {
                command = commands.recv() => match command {
                    Some(Command::Exchanged) => spread.ended(self.life.now()),
                    Some(Command::UnknownKey) => spread.hurry(),
                    Some(command) => self.carry_out(command),
                    None => return,
                },
                _ = tick.tick() => {
                    self.retire_keys();
                    self.exchange(&mut spread);
                    if saved.0.elapsed() >= SAVE_PEERS {
                        let peers = self.link.book.snapshot();
                        if peers != saved.1 {
                            self.disk.save_peers(&peers);
                        }
                        saved = (Instant::now(), peers);
                    }
                }
                () = stopping.cancelled() => {
                    self.disk.save_peers(&self.link.book.snapshot());
                    return;
                }
            }
        }
    }

    fn carry_out(&mut self, command: Command) {
        match command {
            Command::Control(request, reply) => self.control(request, reply),
            Command::Incoming(incoming) => self.incoming(incoming),
            Command::Join(applicant, reply) => {
                let admission = self.judge(applicant);
                let _ = reply.send(admission);
            }
            Command::Merge(copy) => self.merge(&copy),
            Command::Exchanged | Command::UnknownKey => {}
        }
    }

    // ---- the document and the keys

    /// Publishes and writes what has changed.
    pub(super) fn publish(&mut self) {
        self.ring.follow(&self.document, wall());
        let trust = Trust { document: Arc::new(self.document.clone()), ring: Arc::new(self.ring.clone()) };
        self.trust.send_replace(Arc::new(trust));
        self.disk.save_keys(&self.ring);
        self.disk.save_document(&self.document);
        self.link.forget_strangers();
    }

    fn retire_keys(&mut self) {
        if self.ring.follow(&self.document, wall()) {
            self.publish();
        }
    }

    /// This node's copy of what all must know.
    fn copy(&self) -> Copy {
        Copy { document: self.document.clone(), keys: self.ring.keys().to_vec(), addresses: self.addresses() }
    }

    /// The copy that a node may have: one that was removed, or has just left, sees the document and no key.
    pub(super) fn copy_for(&self, peer: &NodeId) -> Copy {
        if self.document.member(peer).is_some() {
            return self.copy();
        }
        Copy { document: self.document.clone(), keys: Vec::new(), addresses: BTreeMap::new() }
    }

    fn addresses(&self) -> proto::exchange::Addresses {
        let mut addresses = self.link.book.snapshot();
        if let Some(ip) = *self.own_address.borrow() {
            addresses.insert(self.link.own(), vec![(ip, self.port).into()]);
        }
        addresses
    }

    fn merge(&mut self, copy: &Copy) {
        let was_member = self.document.member(&self.link.own()).is_some();
        let before = self.document.clone();
        match copy.document.check().and_then(|()| self.document.merge(&copy.document)) {
            Err(error) => return warn!("a peer's cluster document was refused: {error}"),
            Ok(changed) => {
                let mut new_key = false;
                for key in &copy.keys {
                    // Keys of epochs that a removal has ended are not taken back.
                    if key.epoch >= self.document.key_floor {
                        let until = None;
                        new_key |= self.ring.add(GossipKey { until, ..key.clone() });
                    }
                }
                for (id, addresses) in &copy.addresses {
                    if *id != self.link.own() && self.document.member(id).is_some() {
                        self.link.book.heard(*id, addresses, false);
                    }
                }
                if changed {
                    self.log_difference(&before);
                }
                if changed || new_key {
                    self.publish();
                }
            }
        }
        if was_member && self.document.member(&self.link.own()).is_none() {
            warn!("this node was removed from the cluster; it serves from its last good list");
        }
    }

    fn log_difference(&self, before: &Document) {
        for (id, admitted) in self.document.members() {
            if before.member(id).is_none() {
                info!(node = %admitted.name, %id, "node admitted");
            }
        }
        for (id, removed) in &self.document.removed {
            if !before.removed.contains_key(id) {
                info!(node = %removed.name, %id, "node removed");
            }
        }
        for (key, setting) in &self.document.settings {
            if before.settings.get(key).map(|known| &known.value) != Some(&setting.value) {
                info!("setting {key:?} is now {:?}", setting.value.as_deref().unwrap_or("not set"));
            }
        }
        if self.document.key != before.key {
            info!(epoch = self.document.key.epoch, "gossip key changed");
        }
    }

    // ---- exchange with peers

    /// Starts what the moment asks for: see [`Spread`].
    fn exchange(&mut self, spread: &mut Spread) {
        let own = self.link.own();
        if self.document.member(&own).is_none() {
            return;
        }
        let view = self.view.borrow().clone();
        let members: Vec<NodeId> =
            self.document.members().map(|(id, _)| *id).filter(|id| *id != own).collect();
        let hash = self.document.hash();
        let heard =
            |id: &NodeId| view.members.get(id).is_some_and(|member| member.heard && !member.word.left);
        let differ: Vec<NodeId> = members
            .iter()
            .filter(|id| heard(id) && view.members.get(id).is_some_and(|member| member.word.document != hash))
            .copied()
            .collect();
        let anyone = members.iter().any(heard);
        let dice = u64::from_be_bytes(random());
        if let Some(peer) = spread.next(self.life.now(), &members, &differ, anyone, dice) {
            self.start_exchange(peer);
        }
    }

    fn start_exchange(&self, peer: NodeId) {
        let (link, commands, copy) = (self.link.clone(), self.commands.clone(), self.copy());
        let over = self.life.stopping.clone();
        self.life.spawn(async move {
            let work = async {
                let request = FromMember::Sync(Box::new(copy));
                if let Ok(ToMember::Synced(copy)) = link.call(peer, &request).await {
                    let _ = commands.send(Command::Merge(copy)).await;
                }
                let _ = commands.send(Command::Exchanged).await;
            };
            tokio::select! { () = work => {}, () = over.cancelled() => {} }
        });
    }

    /// Hands the changed document to peers at once; what comes of it is counted by the receiver.
    pub(super) fn push(&self) -> mpsc::Receiver<bool> {
        let own = self.link.own();
        let mut peers: Vec<NodeId> =
            self.document.members().map(|(id, _)| *id).filter(|id| *id != own).collect();
        if peers.len() > super::spread::PUSH {
            // Gossip of the document's hash tells the others within seconds.
            let from = u64::from_be_bytes(random()) as usize % peers.len();
            peers.rotate_left(from);
            peers.truncate(super::spread::PUSH);
        }
        let (told, count) = mpsc::channel(super::spread::PUSH);
        for peer in peers {
            let (link, told, copy) = (self.link.clone(), told.clone(), self.copy());
            self.life.spawn(async move {
                let request = FromMember::Sync(Box::new(copy));
                let answered = tokio::time::timeout(Duration::from_secs(3), link.call(peer, &request)).await;
                let _ = told.send(matches!(answered, Ok(Ok(ToMember::Synced(_))))).await;
            });
        }
        count
    }

    fn incoming(&mut self, incoming: Incoming) {
        let Incoming { from, request, reply } = incoming;
        let answer = match request {
            FromMember::Gossip(_) => return,
            FromMember::Sync(copy) => {
                self.merge(&copy);
                ToMember::Synced(Box::new(self.copy_for(&from)))
            }
            FromMember::Answer { code, approve } => ToMember::Answered(self.answer(&code, approve)),
            FromMember::Waiting => ToMember::Waiting(self.lobby.waiting(wall()).cloned().collect()),
            FromMember::Held(node) => ToMember::Held((self.held)(&node)),
            FromMember::Events { .. } | FromMember::Examine(_) | FromMember::Records { .. } => {
                ToMember::Failed("that is not the keeper's to answer".to_owned())
            }
        };
        let _ = reply.send(answer);
    }

    // ---- letting nodes in

    fn judge(&mut self, applicant: Applicant) -> Admission {
        let id = applicant.key.id();
        let now = wall();
        if self.document.member(&self.link.own()).is_none() {
            return Admission::Refused(Refusal::Rejected);
        }
        if self.document.removed.contains_key(&id) {
            return Admission::Refused(Refusal::Removed);
        }
        if self.document.member(&id).is_some() {
            // It has proven its key: joining again only asks for the document once more.
            return self.welcome(&applicant);
        }
        if let Some(proof) = &applicant.proof {
            let mut invites = self.invites.clone();
            if let Err(refusal) = invites.redeem(proof, &applicant.session, &applicant.key, now) {
                return Admission::Refused(refusal);
            }
            if let Some(refusal) = self.name_taken(&applicant) {
                return Admission::Refused(refusal);
            }
            self.invites = invites;
            self.disk.save_invites(&self.invites);
            return self.welcome(&applicant);
        }
        if let Some(refusal) = self.name_taken(&applicant) {
            return Admission::Refused(refusal);
        }
        if self.lobby.is_open(now) {
            return self.welcome(&applicant);
        }
        let waiting = Waiting {
            code: code_of(&applicant.session),
            key: applicant.key,
            name: applicant.name.clone(),
            from: applicant.from,
            until: now.after(APPROVAL_TTL),
        };
        let code = waiting.code.clone();
        if let Err(refusal) = self.lobby.ask(waiting, now) {
            return Admission::Refused(refusal);
        }
        info!(%code, node = %applicant.name, from = %applicant.from, "a node waits for approval");
        let (sender, receiver) = oneshot::channel();
        self.waiting.retain(|_, (_, sender)| !sender.is_closed());
        self.waiting.insert(code, (applicant, sender));
        Admission::Wait(receiver)
    }

    fn name_taken(&self, applicant: &Applicant) -> Option<Refusal> {
        let id = applicant.key.id();
        let taken =
            self.document.members().any(|(other, admitted)| admitted.name == applicant.name && *other != id);
        taken.then(|| Refusal::NameTaken(applicant.name.clone()))
    }

    fn welcome(&mut self, applicant: &Applicant) -> Admission {
        let id = applicant.key.id();
        let by = self.link.own();
        if self.document.member(&id).is_none() {
            let name = applicant.name.clone();
            self.document.admit(Admitted::new(name, applicant.key, Role::Master, by, wall()));
            info!(node = %applicant.name, %id, from = %applicant.from, "node admitted");
        }
        self.publish();
        self.link.book.heard(id, &applicant.addresses, false);
        // All must know it before it speaks to them; gossip alone would take seconds.
        drop(self.push());
        let serving = self.serving.borrow().as_ref().clone();
        Admission::Welcome(Box::new(Welcome { copy: self.copy(), serving }))
    }

    /// Answers a waiting node; its name, or none when no one with this code waits here.
    pub(super) fn answer(&mut self, code: &str, approve: bool) -> Option<proto::node::Name> {
        let waiting = self.lobby.take(code, wall())?;
        let (applicant, reply) = self.waiting.remove(&waiting.code)?;
        let name = applicant.name.clone();
        let admission = if approve {
            self.name_taken(&applicant).map_or_else(|| self.welcome(&applicant), Admission::Refused)
        } else {
            Admission::Refused(Refusal::Rejected)
        };
        reply.send(admission).ok().map(|()| name)
    }
}

/// Makes an invite and enters it into the book.
pub(crate) fn issue(
    book: &mut Book,
    issuer: &proto::node::PublicKey,
    address: std::net::SocketAddr,
    ttl: Duration,
    uses: Option<u32>,
) -> (Invite, UnixMs) {
    let (id, secret) = (random(), Secret(random()));
    let expires = wall().after(ttl);
    book.issue(id, Issued { secret: secret.clone(), expires, uses_left: uses });
    (Invite { issuer: pin_of(issuer), id, secret, addresses: vec![address] }, expires)
}
