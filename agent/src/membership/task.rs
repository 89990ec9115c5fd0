//! The one task that owns the cluster state, the invites and the pending joins, and how the rest of the agent
//! reaches it. Commands come by one queue and are carried out one after the other.

use std::sync::Arc;
use std::time::Duration;

use proto::backends::LastKnownGood;
use proto::cluster::Replica;
use proto::control::{RefusalCode, Request, Response};
use proto::invite::InviteLedger;
use proto::node::NodeId;
use proto::rpc::{Addresses, FailCode, FromMember, SyncSnapshot, ToMember};
use proto::time::UnixMs;
use proto::transport::KeyRing;
use proto::view::ClusterView;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::Instant;

use super::admissions::Admissions;
use super::answer::Answer;
use super::cluster_state::ClusterState;
use super::disk::MemberStore;
use super::peer_sync::PeerSync;
use super::{JoinCall, MembershipCommand, OwnAddress, admit, members, settings};
use crate::lifecycle::Lifecycle;
use crate::timer::Ticks;
use crate::transport::{JoinConnection, Link, MemberRequest, TrustedKeys};

/// How often the task looks after retired keys, differing copies and silence.
const TICK: Duration = Duration::from_secs(1);

/// How often the addresses of peers are written to disk when they changed.
const SAVE_PEERS: Duration = Duration::from_secs(30);

/// How often what could not be written is tried again: each try syncs a file of a disk that has trouble.
const RETRY_SAVING: Duration = Duration::from_secs(5);

/// Commands that wait for the task; each comes from someone who waits for its answer.
const COMMANDS: usize = 64;

/// What membership works with.
pub(crate) struct MembershipInputs {
    pub(crate) link: Arc<Link>,
    pub(crate) disk: Arc<MemberStore>,
    pub(crate) replica: Replica,
    pub(crate) ring: KeyRing,
    pub(crate) invites: InviteLedger,
    pub(crate) view: watch::Receiver<Arc<ClusterView>>,
    pub(crate) serving: watch::Receiver<Arc<LastKnownGood>>,
    pub(crate) own_at: OwnAddress,
    /// How many connections this node holds to another.
    pub(crate) held: Box<dyn Fn(&NodeId) -> u64 + Send>,
    /// Connections of nodes that want to join.
    pub(crate) joining: mpsc::Receiver<JoinConnection>,
    /// Members that seal with a key that is not held.
    pub(crate) unknown_key: mpsc::Receiver<NodeId>,
}

/// Starts the task, which alone writes the watch, and a task for each node that wants to join.
pub(crate) fn spawn(
    inputs: MembershipInputs,
    trust: watch::Sender<Arc<TrustedKeys>>,
    life: &Lifecycle,
) -> MembershipHandle {
    let MembershipInputs {
        link,
        disk,
        replica,
        ring,
        invites,
        view,
        serving,
        own_at,
        held,
        joining,
        unknown_key,
    } = inputs;
    let (commands, queue) = mpsc::channel(COMMANDS);
    let (open_until_in, open_until) = watch::channel(UnixMs(0));
    admit::serve(link.clone(), joining, commands.clone(), life);
    let state = (replica, ring);
    let task = MembershipTask {
        cluster: ClusterState::new(link.clone(), disk.clone(), own_at.clone(), state, trust),
        sync: PeerSync::new(link.clone(), view, commands.clone(), life),
        admissions: Admissions::new(link.clone(), disk.clone(), own_at, serving, invites, open_until_in),
        peers: PeerFile { link, disk: disk.clone(), saved: Addresses::new(), at: Instant::now() },
        disk,
        retried: Instant::now(),
        held,
        life: life.clone(),
    };
    life.supervise("membership", (task, queue, unknown_key), |(task, queue, unknown_key)| {
        Box::pin(task.run(queue, unknown_key))
    });
    MembershipHandle { commands, open_until }
}

/// How the rest of the agent reaches the task.
#[derive(Clone)]
pub(crate) struct MembershipHandle {
    commands: mpsc::Sender<MembershipCommand>,
    open_until: watch::Receiver<UnixMs>,
}

impl MembershipHandle {
    /// Carries out a request of the command line.
    pub(crate) async fn control(&self, request: Request) -> Response {
        let (reply, answer) = oneshot::channel();
        let busy = || Response::Failed("the agent is busy or stopping; try again".to_owned());
        if self.commands.send(MembershipCommand::Control(request, reply)).await.is_err() {
            return busy();
        }
        answer.await.unwrap_or_else(|_| busy())
    }

    /// Hands on a request of a member. False: the task has ended.
    pub(crate) async fn incoming(&self, request: MemberRequest) -> bool {
        self.commands.send(MembershipCommand::Incoming(request)).await.is_ok()
    }

    /// Until when nodes without an invite are let in here; zero: they are not.
    pub(crate) fn open_until(&self) -> UnixMs {
        *self.open_until.borrow()
    }
}

/// The parts, each of which does one thing, and the queue's order between them.
struct MembershipTask {
    cluster: ClusterState,
    sync: PeerSync,
    admissions: Admissions,
    peers: PeerFile,
    disk: Arc<MemberStore>,
    /// When what could not be written was last tried again.
    retried: Instant,
    held: Box<dyn Fn(&NodeId) -> u64 + Send>,
    life: Lifecycle,
}

impl MembershipTask {
    /// Runs until the process stops.
    async fn run(
        &mut self,
        commands: &mut mpsc::Receiver<MembershipCommand>,
        unknown_key: &mut mpsc::Receiver<NodeId>,
    ) {
        // Whoever waits for an earlier run, which has failed, asks again; the document and the keys are only
        // ever replaced whole.
        self.admissions.reset();
        self.sync.reset();
        self.peers.reset();
        let mut tick = Ticks::new(&self.life, TICK);
        let stopping = self.life.draining.clone();
        loop {
            let push = self.sync.push_deadline();
            tokio::select! {
                () = self.life.until(push) => self.sync.push_due(&self.cluster),
                command = commands.recv() => match command {
                    Some(command) => {
                        let mut next = Some(command);
                        while let Some(command) = next {
                            next = self.carry_out(command, commands);
                        }
                    }
                    None => return,
                },
                Some(_) = unknown_key.recv() => self.sync.wake(),
                _ = tick.tick() => {
                    self.cluster.retire_keys();
                    self.cluster.report_rival();
                    self.sync.exchange(&self.cluster);
                    self.peers.save_changes();
                    if self.retried.elapsed() >= RETRY_SAVING {
                        self.disk.retry();
                        self.retried = Instant::now();
                    }
                }
                () = stopping.cancelled() => {
                    self.peers.save();
                    return;
                }
            }
        }
    }

    /// Lets in those that want to join. The ones that stand behind each other in the queue are admitted together:
    /// they have come while the document was written for those before them. Returns what stands behind them.
    fn admit(
        &mut self,
        first: JoinCall,
        commands: &mut mpsc::Receiver<MembershipCommand>,
    ) -> Option<MembershipCommand> {
        let (mut calls, mut behind) = (vec![first], None);
        while behind.is_none() {
            match commands.try_recv() {
                Ok(MembershipCommand::Join(call)) => calls.push(call),
                Ok(command) => behind = Some(command),
                Err(_) => break,
            }
        }
        self.admissions.decide(calls, &mut self.cluster, &mut self.sync);
        behind
    }

    /// Carries out one command. Returns the next one, where it was taken out of the queue.
    fn carry_out(
        &mut self,
        command: MembershipCommand,
        commands: &mut mpsc::Receiver<MembershipCommand>,
    ) -> Option<MembershipCommand> {
        match command {
            MembershipCommand::Control(request, reply) => match self.control(request) {
                Answer::Now(response) => drop(reply.send(warned(&self.disk, response))),
                Answer::Later(response) => {
                    let disk = self.disk.clone();
                    self.life.spawn(async move {
                        let _ = reply.send(warned(&disk, response.await));
                    });
                }
            },
            MembershipCommand::Incoming(MemberRequest { from, request, reply }) => {
                if let Some(answer) = self.incoming(from, request) {
                    let _ = reply.send(answer);
                }
            }
            MembershipCommand::Join(call) => return self.admit(call, commands),
            MembershipCommand::Compared(from, theirs, snapshot) => {
                self.take(&from, &snapshot);
                if self.cluster.document().state() != theirs {
                    let snapshot = self.cluster.snapshot_for(&from, None);
                    if snapshot.document.is_some() {
                        self.sync.hand(from, snapshot);
                    }
                }
            }
            MembershipCommand::Exchanged => self.sync.ended(),
        }
        None
    }

    /// What the command line asks for.
    fn control(&mut self, request: Request) -> Answer {
        let MembershipTask { cluster, sync, admissions, disk, held, life, .. } = self;
        if !cluster.is_member() && !matches!(request, Request::Leave) {
            return Answer::failed("this node was removed from the cluster; run: agent leave --force");
        }
        if !cluster.is_master() && !matches!(request, Request::Leave | Request::Held { .. }) {
            return Answer::refused(RefusalCode::NotMaster, members::not_a_master(cluster.document()));
        }
        let aside = sync.aside();
        if let Some(at) = aside.filter(|_| !matches!(request, Request::Held { .. })) {
            return Answer::failed(format!(
                "this node's identity is in use at {}, and what is changed here would be changed for that machine; \
                 if this is the copy, run: agent leave --force",
                at.ip()
            ));
        }
        match request {
            Request::Invite { seconds, uses, role } => admissions.invite(seconds, uses, role),
            Request::Open { seconds } => admissions.open(seconds),
            Request::Waiting => admissions.waiting_anywhere(cluster, sync),
            Request::Answer { code, role } => admissions.approve_anywhere(code, role, cluster, sync),
            Request::Rotate => members::rotate(cluster, sync),
            Request::Remove { node } => members::remove(cluster, sync, &node),
            Request::SetRole { node, role, force } => members::set_role(cluster, sync, &node, role, force),
            Request::Leave => members::leave(cluster, sync, disk, life),
            Request::Change(wishes) => {
                let changes = cluster.change_settings(&wishes);
                settings::changed(changes, cluster, sync)
            }
            Request::Drain { on, node } => settings::drain(cluster, sync, on, node),
            Request::Held { node } => settings::who_holds(cluster, sync, node, held.as_ref()),
            #[cfg(feature = "next-wire")]
            Request::Next => Answer::failed("unsupported request"),
            Request::Status
            | Request::Members
            | Request::Settings
            | Request::VipMove { .. }
            | Request::Events(_)
            | Request::Replace
            | Request::Seed(_)
            | Request::Doctor(_) => Answer::failed("unsupported request"),
        }
    }

    /// What a member asks for; none: nothing that is answered.
    fn incoming(&mut self, from: NodeId, request: FromMember) -> Option<ToMember> {
        Some(match request {
            FromMember::Gossip(_) => return None,
            FromMember::Compare(known) => {
                let snapshot = self.cluster.snapshot_for(&from, Some(&known));
                ToMember::Compared(self.cluster.document().state(), Box::new(snapshot))
            }
            FromMember::Sync(snapshot) => {
                self.take(&from, &snapshot);
                ToMember::Synced(self.cluster.document().state())
            }
            FromMember::Answer { .. } if !self.cluster.document().is_master(&from) => {
                ToMember::failed(FailCode::NotAllowed, "only masters admit nodes")
            }
            FromMember::Answer { code, role } => ToMember::Answered(self.admissions.approve(&code, role)),
            FromMember::Leave => members::admit_leave(&mut self.cluster, &mut self.sync, from),
            FromMember::Waiting => ToMember::Waiting(self.admissions.waiting()),
            FromMember::Held(node) => ToMember::Held((self.held)(&node)),
            #[cfg(feature = "next-wire")]
            FromMember::Next { text } => ToMember::Next(text),
            _ => ToMember::failed(FailCode::Unsupported, "unsupported request"),
        })
    }

    /// Takes over what a peer has sent.
    fn take(&mut self, from: &NodeId, snapshot: &SyncSnapshot) {
        if let Some((peers, proof)) = self.cluster.take(from, snapshot) {
            peers.into_iter().for_each(|peer| self.sync.hand(peer, proof.clone()));
        }
    }
}

/// An answer that says that something was done, with why it is not on this node's disk.
fn warned(disk: &MemberStore, response: Response) -> Response {
    let Some(why) = disk.why_unsaved() else { return response };
    let with = |text| format!("{text}\nwarning: not saved on this node: {why}");
    match response {
        Response::Done(text) => Response::Done(with(text)),
        Response::Changed(changes, told) => Response::Changed(changes, with(told)),
        other => other,
    }
}

/// The file of peers' addresses.
struct PeerFile {
    link: Arc<Link>,
    disk: Arc<MemberStore>,
    /// What it is known to hold, and since when.
    saved: Addresses,
    at: Instant,
}

impl PeerFile {
    /// What is known now was read from it, or is not worth a write.
    fn reset(&mut self) {
        (self.saved, self.at) = (self.link.addresses().snapshot(), Instant::now());
    }

    /// Writes it from time to time, where something has changed.
    fn save_changes(&mut self) {
        if self.at.elapsed() < SAVE_PEERS {
            return;
        }
        let peers = self.link.addresses().snapshot();
        if peers != self.saved {
            self.disk.save_peers(&peers);
        }
        (self.saved, self.at) = (peers, Instant::now());
    }

    /// Writes it.
    fn save(&self) {
        self.disk.save_peers(&self.link.addresses().snapshot());
    }
}
