//! Pulses: which masters are alive right now, and their status.
//!
//! One task sends and evaluates ([`proto::pulse`]); the transport answers by itself, so that an answer waits
//! for nothing here. Another task gives the transport this node's status. Stopping either anywhere is safe:
//! all that they hold is refreshed by the next pulses.
//!
//! What others report about whom they hear arrives with pulses and answers; the transport keeps it, and it is read
//! here when a peer is quiet. In a large cluster the core tells others at once of a silent master
//! ([`proto::heard`]).
//!
//! A node whose own loop was late, or that gets no answer at all, reports nobody silent: the fault is its
//! own.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use proto::heard::PeerReports;
use proto::node::NodeId;
use proto::pulse::{Liveness, Pace, PeerLiveness, PeerLivenessMap, PeerPulse, PulseStatus};
use proto::record::{NodeRecord, ServiceOffer};
use proto::time::Moment;
use proto::topology::{Place, pace};
use proto::view::ClusterView;
use tokio::sync::{mpsc, watch};
use tracing::warn;

use crate::lifecycle::Lifecycle;
use crate::timer::KernelTimer;
use crate::transport::{Link, PulseAnswer, random};

/// A loop that is this late has been asleep: answers that it did not get meanwhile say nothing about others.
const LATE_LOOP: Duration = Duration::from_millis(100);

/// Silence after which a peer is watched closely, unless an answer of it takes longer.
const QUIET: Duration = Duration::from_millis(50);

/// How old the word of others about a late peer may be before this node asks for it.
const ASK: Duration = Duration::from_millis(300);

/// Gossip of other members within this time shows that this node's own network works: a little more than its
/// interval, in which each node gets about three messages.
const OTHERS: Duration = Duration::from_millis(900);

/// Interval of the silence check: short enough for a threshold of 300 ms.
const LOOK: Duration = Duration::from_millis(25);

/// What pulses work with.
pub(crate) struct PulseInputs {
    pub(crate) link: Arc<Link>,
    pub(crate) view: watch::Receiver<Arc<ClusterView>>,
    pub(crate) place: watch::Receiver<Place>,
    /// Who gossips, if not all.
    pub(crate) core: watch::Receiver<Arc<BTreeSet<NodeId>>>,
    pub(crate) record: watch::Receiver<NodeRecord>,
    pub(crate) answers: mpsc::Receiver<PulseAnswer>,
}

/// Starts both tasks. Nothing else writes `liveness`.
pub(crate) fn spawn(inputs: PulseInputs, liveness: watch::Sender<Arc<PeerLivenessMap>>, life: &Lifecycle) {
    let PulseInputs { link, view, place, core, record, answers } = inputs;
    let own = StatusPublisher {
        link: link.clone(),
        record,
        place: place.clone(),
        said: None,
        next: None,
        life: life.clone(),
    };
    life.supervise("pulse", own, |own| Box::pin(own.run()));
    let peers = BTreeMap::new();
    let life_of_task = life.clone();
    let task =
        PulseSender { peers, link, view, place, core, answers, doubted: false, liveness, life: life_of_task };
    life.supervise("pulse", task, |task| Box::pin(task.run()));
}

/// Keeps the transport's pulse status in step with this node's record.
struct StatusPublisher {
    link: Arc<Link>,
    record: watch::Receiver<NodeRecord>,
    place: watch::Receiver<Place>,
    said: Option<PulseStatus>,
    /// When more nodes are to be told.
    next: Option<Moment>,
    life: Lifecycle,
}

impl StatusPublisher {
    async fn run(&mut self) {
        // Its current value is published too.
        self.record.mark_changed();
        loop {
            tokio::select! {
                () = self.life.shutdown.cancelled() => return,
                changed = self.record.changed() => if changed.is_err() {
                    return;
                },
                () = self.life.until(self.next) => {
                    self.next = self.link.datagrams().send_status(self.life.now());
                    continue;
                }
            }
            let pulse_status = status_of(&self.record.borrow_and_update());
            // Much of a record is not in the status, and nodes that have pulsed this one are notified at once.
            if self.said.as_ref() != Some(&pulse_status) {
                let now = self.life.now();
                let seldom = *self.place.borrow() != Place::Everyone;
                self.link.datagrams().set_status(&pulse_status, seldom, now);
                self.next = self.link.datagrams().send_status(now);
                self.said = Some(pulse_status);
            }
        }
    }
}

fn status_of(record: &NodeRecord) -> PulseStatus {
    let said = |offer: &ServiceOffer| (offer.health.readiness, offer.health.cause);
    PulseStatus {
        draining: record.draining.is_some(),
        leaving: record.left,
        // Said by the link, which is there until the end.
        pausing: false,
        services: record.services.iter().map(|(name, offer)| (name.clone(), said(offer))).collect(),
    }
}

struct PulsedPeer {
    pulse: PeerPulse,
    pulse_status: Option<Arc<PulseStatus>>,
    /// The same as it came: it is nearly always what it was.
    said: Vec<u8>,
}

impl PulsedPeer {
    fn new(pulse: PeerPulse) -> PulsedPeer {
        PulsedPeer { pulse, pulse_status: None, said: Vec::new() }
    }

    /// Takes an answer to a pulse, or a status that was not asked for. One that can't be read is none.
    fn answered(&mut self, number: u64, said: Vec<u8>, now: Moment) {
        let same = self.pulse_status.is_some() && said == self.said;
        let read = if same { None } else { PulseStatus::from_bytes(&said) };
        if !(same || read.is_some()) || number != 0 && self.pulse.answered(number, now).is_none() {
            return;
        }
        if let Some(pulse_status) = read {
            self.pulse_status = Some(Arc::new(pulse_status));
            self.said = said;
        }
        let pausing = self.pulse_status.as_ref().is_some_and(|pulse_status| pulse_status.pausing);
        self.pulse.set_pausing(pausing, now);
    }
}

struct PulseSender {
    peers: BTreeMap<NodeId, PulsedPeer>,
    link: Arc<Link>,
    view: watch::Receiver<Arc<ClusterView>>,
    place: watch::Receiver<Place>,
    core: watch::Receiver<Arc<BTreeSet<NodeId>>>,
    answers: mpsc::Receiver<PulseAnswer>,
    /// Others have reported that a peer is silent, or this node has told others so.
    doubted: bool,
    liveness: watch::Sender<Arc<PeerLivenessMap>>,
    life: Lifecycle,
}

impl PulseSender {
    async fn run(&mut self) {
        // Peers of an earlier run, which has failed, are measured again.
        self.peers.clear();
        self.view.mark_changed();
        let mut wanted = self.life.now();
        let mut timer = KernelTimer::new();
        loop {
            let now = self.life.now();
            let due = self.peers.values().map(|peer| peer.pulse.deadline()).min();
            let look = now.after(LOOK);
            let idle = now.after(Duration::from_secs(1));
            let next = if self.anyone_silent() { due.unwrap_or(look).min(look) } else { due.unwrap_or(idle) };
            let late = now.since(wanted);
            if late >= LATE_LOOP {
                warn!(by = ?late, "event loop stalled; that time counts against nobody");
                for peer in self.peers.values_mut() {
                    peer.pulse.forgive_silence(late);
                }
            }
            wanted = next;
            tokio::select! {
                () = self.life.shutdown.cancelled() => return,
                () = timer.until(self.life.monotonic(next)) => {}
                Some(answer) = self.answers.recv() => {
                    self.handle_answer(answer);
                    while let Ok(answer) = self.answers.try_recv() {
                        self.handle_answer(answer);
                    }
                }
                Ok(()) = self.view.changed() => self.watch_members(),
                Ok(()) = self.place.changed() => self.watch_members(),
            }
            self.send();
            self.alarm();
            self.publish();
        }
    }

    /// Pulses every member that offers something, except this node itself.
    fn watch_members(&mut self) {
        let view = self.view.borrow_and_update().clone();
        let place = *self.place.borrow_and_update();
        let own = self.link.own();
        let wants = |id: &NodeId| {
            *id != own && view.members.get(id).is_some_and(|member| !member.record.services.is_empty())
        };
        self.peers.retain(|id, _| wants(id));
        let document = self.link.document();
        let masters = document.masters().count();
        let is_master = document.is_master(&own);
        let pace = pace(place, is_master, masters, document.members().count());
        // Every other worker pulses half an interval later: an owner of virtual IPs beats to one half of them and then
        // to the other, and these beats go with the answers.
        let workers = document.members().map(|(id, _)| id).filter(|id| !document.is_master(id));
        let turn = workers.take_while(|id| **id != own).count() % 2;
        let later = place == Place::Everyone && !is_master && turn == 1;
        let phase = if later { pace.interval / 2 } else { pace.phase };
        let pace = Pace { phase, ..pace };
        let now = self.life.now();
        for id in view.members.keys().filter(|id| wants(id)) {
            let peer = self.peers.entry(*id).or_insert_with(|| {
                PulsedPeer::new(PeerPulse::new(now, pace, u64::from_be_bytes(random()) | 1))
            });
            peer.pulse.set_pace(pace, now);
        }
        self.link.datagrams().watch(self.peers.keys().copied(), is_master);
    }

    fn handle_answer(&mut self, answer: PulseAnswer) {
        let now = self.life.now();
        match answer {
            PulseAnswer::Said { from, number, pulse_status } => {
                if let Some(peer) = self.peers.get_mut(&from) {
                    peer.answered(number, pulse_status, now);
                }
            }
            PulseAnswer::NoAgent(at) => {
                if let Some(peer) = self.peers.get_mut(&at) {
                    peer.pulse.refused();
                }
            }
            PulseAnswer::Doubted(peer) => {
                self.doubted = true;
                if let Some(peer) = self.peers.get_mut(&peer) {
                    peer.pulse.doubt(now);
                }
            }
        }
    }

    fn send(&mut self) {
        let now = self.life.now();
        let unsaid = |id: &NodeId| !self.link.datagrams().reports(id).says(ASK, now);
        if self.peers.iter().any(|(id, peer)| peer.pulse.liveness(now) == Liveness::Late && unsaid(id)) {
            // Others' answers say whether they hear it.
            self.peers.values_mut().for_each(|peer| peer.pulse.hasten(now));
        }
        for (id, peer) in &mut self.peers {
            if let Some(number) = peer.pulse.poll(now) {
                self.link.datagrams().pulse(*id, number, peer.pulse.slack(), now);
            }
        }
    }

    /// Tells others of silent masters, in the core of a large cluster.
    fn alarm(&mut self) {
        let doubted = std::mem::take(&mut self.doubted);
        if *self.place.borrow() == Place::Core && (doubted || self.anyone_silent()) {
            let core = self.core.borrow().clone();
            self.doubted = self.link.datagrams().alarm(&core, self.life.now());
        }
    }

    fn anyone_silent(&self) -> bool {
        let now = self.life.now();
        self.peers.values().any(|peer| peer.pulse.silence(now) >= QUIET.max(peer.pulse.slack()))
    }

    /// Whether any datagram of a member, of whatever kind, has arrived lately.
    fn any_gossip_since(&self, now: Moment) -> bool {
        let view = self.view.borrow().clone();
        view.members.keys().any(|id| self.link.datagrams().has_heard(id, OTHERS, now))
    }

    fn publish(&self) {
        let now = self.life.now();
        let datagrams = self.link.datagrams();
        let elsewhere = |id: &NodeId| (datagrams.last_heard(id), datagrams.reports(id));
        let liveness = liveness_map(&self.peers, now, elsewhere, || self.any_gossip_since(now));
        self.liveness.send_if_modified(|old| {
            let changed = is_news(old, &liveness);
            *old = Arc::new(liveness);
            changed
        });
    }
}

/// Whether anyone is told: times and losses change with every answer and are read on demand.
fn is_news(old: &PeerLivenessMap, new: &PeerLivenessMap) -> bool {
    let same = |((a, old), (b, new)): ((&NodeId, &PeerLiveness), (&NodeId, &PeerLiveness))| {
        a == b && old.liveness == new.liveness && old.status == new.status
    };
    old.len() != new.len() || !old.iter().zip(new).all(same)
}

/// Liveness of all peers by pulses, by when each was `heard` at all and by whom else, with the benefit of the doubt:
/// a node that gets answers from nobody, neither pulses of masters nor gossip of others, has lost its own network,
/// and reports nobody silent.
fn liveness_map(
    peers: &BTreeMap<NodeId, PulsedPeer>,
    now: Moment,
    heard: impl Fn(&NodeId) -> (Option<Moment>, PeerReports),
    gossip_arrives: impl FnOnce() -> bool,
) -> PeerLivenessMap {
    let mut known =
        peers.values().map(|peer| peer.pulse.liveness(now)).filter(|one| *one != Liveness::Unknown);
    let several = known.clone().count() > 1;
    let nobody = several && known.all(|liveness| liveness != Liveness::Alive) && !gossip_arrives();
    peers
        .iter()
        .map(|(id, peer)| {
            let liveness = match peer.pulse.liveness(now) {
                Liveness::Silent if nobody => Liveness::Late,
                liveness if peer.pulse.silence(now) == Duration::ZERO => liveness,
                _ => {
                    let (heard, reports) = heard(id);
                    peer.pulse.liveness_for_all(now, heard, &reports)
                }
            };
            let peer_liveness = PeerLiveness {
                liveness,
                status: peer.pulse_status.clone(),
                rtt: peer.pulse.rtt(),
                loss_permille: (peer.pulse.loss() * 1000.0).round() as u16,
            };
            (*id, peer_liveness)
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A peer that answered once, at 10 ms, and not since.
    fn silent() -> PulsedPeer {
        let mut peer = unknown();
        let number = peer.pulse.poll(Moment::ZERO).unwrap();
        peer.pulse.answered(number, Moment::from_millis(10)).unwrap();
        peer.pulse.poll(Moment::from_millis(100)).unwrap();
        peer
    }

    fn unknown() -> PulsedPeer {
        PulsedPeer::new(PeerPulse::new(Moment::ZERO, Pace::FAST, 1))
    }

    #[test]
    fn an_answer_brings_a_status_which_is_read_again_only_when_it_has_changed() {
        let mut peer = unknown();
        let now = Moment::from_millis(10);
        let number = peer.pulse.poll(Moment::ZERO).unwrap();
        for unreadable in [&[][..], &[1]] {
            peer.answered(number, unreadable.to_vec(), now);
            assert_eq!((peer.pulse.liveness(now), &peer.pulse_status), (Liveness::Unknown, &None));
        }
        let said = |draining| PulseStatus { draining, ..PulseStatus::default() }.to_bytes();
        peer.answered(number, said(false), now);
        assert_eq!(peer.pulse.liveness(now), Liveness::Alive);
        let first = peer.pulse_status.clone().unwrap();
        let number = peer.pulse.poll(Moment::from_millis(100)).unwrap();
        peer.answered(number, said(false), Moment::from_millis(110));
        assert!(Arc::ptr_eq(&first, peer.pulse_status.as_ref().unwrap()));
        assert_eq!(peer.pulse.silence(Moment::from_millis(120)), Duration::ZERO, "it counts as an answer");
        peer.answered(number, said(true), now);
        assert_eq!(peer.pulse_status.as_ref(), Some(&first), "of a pulse that was answered");
        peer.answered(0, said(true), now);
        assert!(peer.pulse_status.unwrap().draining, "unasked");
    }

    #[test]
    fn liveness_and_status_are_news_and_measurements_are_not() {
        let one = PeerLiveness { liveness: Liveness::Alive, status: None, rtt: None, loss_permille: 0 };
        let id = NodeId([1; 10]);
        let map = |one: &PeerLiveness| PeerLivenessMap::from([(id, one.clone())]);
        let old = map(&one);
        let measured = PeerLiveness { rtt: Some(Duration::from_millis(3)), loss_permille: 7, ..one.clone() };
        assert!(!is_news(&old, &map(&measured)));
        assert!(is_news(&old, &map(&PeerLiveness { liveness: Liveness::Late, ..one.clone() })));
        assert!(is_news(&old, &map(&PeerLiveness { status: Some(Arc::default()), ..one.clone() })));
        assert!(is_news(&old, &PeerLivenessMap::new()));
        assert!(is_news(&old, &PeerLivenessMap::from([(NodeId([2; 10]), one)])));
    }

    fn liveness_of(peers: Vec<PulsedPeer>, gossip_arrives: bool) -> Vec<Liveness> {
        let peers: BTreeMap<NodeId, PulsedPeer> =
            peers.into_iter().enumerate().map(|(i, peer)| (NodeId([i as u8; 10]), peer)).collect();
        let now = Moment::from_millis(5_000);
        liveness_map(&peers, now, |_| (None, PeerReports::default()), || gossip_arrives)
            .into_values()
            .map(|peer_liveness| peer_liveness.liveness)
            .collect()
    }

    #[test]
    fn an_isolated_node_reports_nobody_silent() {
        use Liveness::{Late, Silent, Unknown};
        assert_eq!(liveness_of(vec![silent(), silent()], false), [Late, Late]);
        assert_eq!(liveness_of(vec![silent(), silent(), unknown()], false), [Late, Late, Unknown]);
        // Gossip of others arrives, so the masters are silent.
        assert_eq!(liveness_of(vec![silent(), silent()], true), [Silent, Silent]);
        // With a single peer there is no comparison.
        assert_eq!(liveness_of(vec![silent()], false), [Silent]);
    }
}
