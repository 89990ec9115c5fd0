//! What this node and its peers exchange of the document and the keys, over TLS: whom it is asked of, handed to
//! and pushed to, and when. What goes over the line is [`ClusterState`]'s to say.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use proto::node::{NodeId, PublicKey};
use proto::rpc::{FromMember, SyncSnapshot, ToMember};
use proto::time::Moment;
use proto::view::ClusterView;
use tokio::sync::{mpsc, watch};

use super::MembershipCommand;
use super::cluster_state::ClusterState;
use super::push_scheduler::{PushScheduler, ROUND};
use super::sync_scheduler::SyncScheduler;
use crate::lifecycle::Lifecycle;
use crate::transport::{Link, random};

/// Most peers that are told at once: a round, and the masters besides.
const MOST_AT_ONCE: usize = ROUND + 16;

/// Time for a peer to take a document: a merge and a write to its disk.
const TAKEN: Duration = Duration::from_secs(3);

/// Time for the others to answer a question of a person.
const ANSWER: Duration = Duration::from_secs(2);

/// The exchange with peers.
pub(super) struct PeerSync {
    link: Arc<Link>,
    view: watch::Receiver<Arc<ClusterView>>,
    /// Where the results of calls go: the task takes them in its turn.
    commands: mpsc::Sender<MembershipCommand>,
    scheduler: SyncScheduler,
    /// Hash of this node's document at the last look.
    hash: String,
    pushes: PushScheduler,
    life: Lifecycle,
}

impl PeerSync {
    /// Nothing is exchanged yet.
    pub(super) fn new(
        link: Arc<Link>,
        view: watch::Receiver<Arc<ClusterView>>,
        commands: mpsc::Sender<MembershipCommand>,
        life: &Lifecycle,
    ) -> PeerSync {
        let scheduler = SyncScheduler::new(life.now());
        let pushes = PushScheduler::default();
        PeerSync { link, view, commands, scheduler, hash: String::new(), pushes, life: life.clone() }
    }

    /// Where the other place is for which this node stands aside.
    pub(super) fn aside(&self) -> Option<SocketAddr> {
        *self.link.datagrams().aside().borrow()
    }

    /// Begins anew, as at the start.
    pub(super) fn reset(&mut self) {
        self.scheduler = SyncScheduler::new(self.life.now());
        self.hash.clear();
        self.pushes = PushScheduler::default();
    }

    /// Whether gossip hears this member.
    pub(super) fn is_heard(&self, id: &NodeId) -> bool {
        self.view.borrow().members.get(id).is_some_and(|member| member.heard && !member.record.left)
    }

    /// A datagram came under a key that is not held: someone has a newer one.
    pub(super) fn wake(&mut self) {
        self.scheduler.wake();
    }

    /// The exchange that was started has ended.
    pub(super) fn ended(&mut self) {
        self.scheduler.ended(self.life.now());
    }

    /// Starts what the moment asks for: see [`SyncScheduler`].
    pub(super) fn exchange(&mut self, cluster: &ClusterState) {
        if !cluster.is_member() {
            return;
        }
        let members = cluster.others();
        let hash = cluster.document().hash();
        if hash != self.hash {
            self.scheduler.changed(self.life.now());
            self.hash.clone_from(&hash);
        }
        let differ: Vec<NodeId> = {
            let view = self.view.borrow();
            let said = |id: &NodeId| view.others.as_ref().is_some_and(|others| others.differ.contains(id));
            let gossiped =
                |id: &NodeId| view.members.get(id).is_some_and(|member| member.record.document != hash);
            members.iter().filter(|id| said(id) || gossiped(id)).copied().collect()
        };
        let differ: Vec<NodeId> = differ.into_iter().filter(|id| self.is_heard(id)).collect();
        let anyone = members.iter().any(|id| self.is_heard(id));
        let dice = u64::from_be_bytes(random());
        if let Some(peer) = self.scheduler.next(self.life.now(), &members, &differ, anyone, dice) {
            self.compare(cluster, peer);
        }
    }

    /// Asks a peer for what this node lacks. The document goes over the line only where the two differ.
    fn compare(&self, cluster: &ClusterState, peer: NodeId) {
        let known = cluster.digest();
        let (link, commands) = (self.link.clone(), self.commands.clone());
        let over = self.life.draining.clone();
        self.life.spawn(async move {
            let work = async {
                if let Ok(ToMember::Compared(hash, snapshot)) =
                    link.dialer().call(peer, &FromMember::Compare(known)).await
                {
                    let _ = commands.send(MembershipCommand::Compared(peer, hash, snapshot)).await;
                }
                let _ = commands.send(MembershipCommand::Exchanged).await;
            };
            tokio::select! { () = work => {}, () = over.cancelled() => {} }
        });
    }

    /// Hands something whole to one peer.
    pub(super) fn hand(&self, peer: NodeId, snapshot: SyncSnapshot) {
        let (link, over) = (self.link.clone(), self.life.draining.clone());
        self.life.spawn(async move {
            let request = FromMember::Sync(Box::new(snapshot));
            let call = tokio::time::timeout(TAKEN, link.dialer().call(peer, &request));
            tokio::select! { _ = call => {}, () = over.cancelled() => {} }
        });
    }

    /// Where a member was reached: to be asked before it is removed, since nothing is kept of strangers.
    pub(super) fn addresses(&self, id: &NodeId) -> Vec<SocketAddr> {
        self.link.addresses().all(id)
    }

    /// Shows a removed node its tombstone, so that it stops by itself; it gets no key.
    pub(super) fn send_tombstone(&self, cluster: &ClusterState, addresses: Vec<SocketAddr>, key: PublicKey) {
        let snapshot = cluster.snapshot_for(&key.id(), None);
        let link = self.link.clone();
        self.life.spawn(async move {
            let request = FromMember::Sync(Box::new(snapshot));
            let _ = tokio::time::timeout(TAKEN, link.dialer().call_at(&addresses, key, &request)).await;
        });
    }

    /// Has peers told of changes in a moment, together with what else changes until then: see [`PushScheduler`].
    pub(super) fn push_soon(&mut self, cluster: &ClusterState) {
        self.pushes.changed(self.life.now(), cluster.others().len());
    }

    /// When [`PeerSync::push_due`] is to be called; none: after the next change.
    pub(super) fn push_deadline(&self) -> Option<Moment> {
        self.pushes.deadline()
    }

    /// That moment has come.
    pub(super) fn push_due(&mut self, cluster: &ClusterState) {
        let document = cluster.document();
        let told = self.pushes.due(self.life.now(), &cluster.others(), |id| document.is_master(id));
        if !told.is_empty() {
            drop(self.push(told, cluster.current()));
        }
    }

    /// Hands a changed document to these peers at once. The answer is how many have taken it, of how many
    /// that were told.
    pub(super) fn push(
        &self,
        mut peers: Vec<NodeId>,
        mut snapshot: SyncSnapshot,
    ) -> impl Future<Output = (usize, usize)> + Send + use<> {
        if peers.len() > MOST_AT_ONCE {
            // Gossip of the document's hash tells the others within seconds.
            let from = u64::from_be_bytes(random()) as usize % peers.len();
            peers.rotate_left(from);
            peers.truncate(MOST_AT_ONCE);
        }
        let all = peers.len();
        let (told, mut count) = mpsc::channel(MOST_AT_ONCE);
        let target = snapshot.difference.as_ref().map(|difference| difference.target);
        let document = snapshot.document.take();
        let whole = SyncSnapshot { document, difference: None, ..snapshot.clone() };
        let shorter = target.map(|_| snapshot);
        let requests: Vec<_> =
            shorter.into_iter().chain([whole]).map(Box::new).map(FromMember::Sync).collect();
        let requests = Arc::new(requests);
        for peer in peers {
            let (link, told, requests) = (self.link.clone(), told.clone(), requests.clone());
            self.life.spawn(async move {
                let mut taken = false;
                // A peer whose document was another one before says so, and gets the whole.
                for request in requests.iter() {
                    let answered = tokio::time::timeout(TAKEN, link.dialer().call(peer, request)).await;
                    let Ok(Ok(ToMember::Synced(state))) = answered else { break };
                    taken = true;
                    if Some(state) == target {
                        break;
                    }
                }
                let _ = told.send(taken).await;
            });
        }
        async move {
            let mut reached = 0;
            while let Some(answer) = count.recv().await {
                reached += usize::from(answer);
            }
            (reached, all)
        }
    }

    /// Pushes the document, and says who knows when all have been told or given up on.
    pub(super) fn push_and_count(
        &self,
        cluster: &ClusterState,
    ) -> impl Future<Output = String> + Send + use<> {
        let told = self.push(cluster.others(), cluster.current());
        async move {
            let (reached, all) = told.await;
            let rest = if reached == all { "" } else { "; the others are updated when they are back" };
            format!("{reached} of {all} other members were updated{rest}")
        }
    }

    /// Asks one peer after the other until one answers as it should: 1 or 0, of how many.
    pub(super) fn ask_until(
        &self,
        peers: Vec<NodeId>,
        request: FromMember,
        good: fn(&ToMember) -> bool,
    ) -> impl Future<Output = (usize, usize)> + Send + use<> {
        let link = self.link.clone();
        async move {
            for peer in &peers {
                let answer = tokio::time::timeout(TAKEN, link.dialer().call(*peer, &request)).await;
                if matches!(&answer, Ok(Ok(answer)) if good(answer)) {
                    return (1, peers.len());
                }
            }
            (0, peers.len())
        }
    }

    /// Asks every other member at once; those that do not answer in time have none.
    pub(super) fn ask_all(
        &self,
        cluster: &ClusterState,
        request: FromMember,
    ) -> impl Future<Output = Vec<(NodeId, Option<ToMember>)>> + Send + use<> {
        let peers = cluster.others();
        let link = self.link.clone();
        async move {
            let mut calls = tokio::task::JoinSet::new();
            for peer in peers {
                let (link, request) = (link.clone(), request.clone());
                calls.spawn(async move {
                    let answer = tokio::time::timeout(ANSWER, link.dialer().call(peer, &request)).await;
                    (peer, answer.ok().and_then(Result::ok))
                });
            }
            calls.join_all().await
        }
    }
}
