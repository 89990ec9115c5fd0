//! Pulses: who is heard right now, and what the masters say of themselves.
//!
//! One task sends and weighs ([`proto::pulse`]); the link answers by itself, so that an answer waits for
//! nothing here. Another task tells the link what this node says. Stopping either anywhere is safe: they
//! hold nothing but what the next pulses say again.
//!
//! A node whose own loop was late, or that hears nobody at all, accuses nobody: the fault is its own.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use proto::node::NodeId;
use proto::pulse::{Liveness, PeerLiveness, PeerLivenessMap, PeerPulse, PulseStatus, interval};
use proto::record::{NodeRecord, ServiceOffer};
use proto::time::Moment;
use proto::view::ClusterView;
use tokio::sync::{mpsc, watch};
use tracing::warn;

use crate::lifecycle::Lifecycle;
use crate::transport::{Link, PulseAnswer, random};

/// A loop that comes this much later than it wanted to has been asleep: nothing that it did not hear
/// meanwhile says anything about others.
const LATE_LOOP: Duration = Duration::from_millis(100);

/// Silence from which on it is looked at closely.
const QUIET: Duration = Duration::from_millis(150);

/// Gossip of other members within this time shows that this node's own network works: a little more than
/// its interval, of which each node hears about three messages.
const OTHERS: Duration = Duration::from_millis(900);

/// Between two looks at who has fallen silent: fine enough for a threshold of 300 ms.
const LOOK: Duration = Duration::from_millis(25);

/// Starts both tasks. `ears` is written here alone.
pub(crate) fn spawn(
    link: Arc<Link>,
    view: watch::Receiver<Arc<ClusterView>>,
    word: watch::Receiver<NodeRecord>,
    answers: mpsc::Receiver<PulseAnswer>,
    liveness: watch::Sender<Arc<PeerLivenessMap>>,
    life: &Lifecycle,
) {
    publish_link_status(link.clone(), word, life);
    let task = PulseSender { peers: BTreeMap::new(), link, view, answers, liveness, life: life.clone() };
    life.supervise("pulse", task, |task| Box::pin(task.run()));
}

/// Keeps what the link answers in step with what this node says by gossip.
fn publish_link_status(link: Arc<Link>, mut word: watch::Receiver<NodeRecord>, life: &Lifecycle) {
    // What it holds already is said too.
    word.mark_changed();
    let own = life.clone();
    life.follow("pulse", word, (link, None), move |(link, said), word| {
        let pulse_status = status_of(&word);
        // Much of a word is not said here, and whoever has pulsed this node is told at once.
        if said.as_ref() != Some(&pulse_status) {
            link.datagrams().set_status(&pulse_status, own.now());
            *said = Some(pulse_status);
        }
    });
}

fn status_of(word: &NodeRecord) -> PulseStatus {
    let said = |offer: &ServiceOffer| (offer.health.readiness, offer.health.cause);
    PulseStatus {
        draining: word.draining.is_some(),
        leaving: word.left,
        services: word.services.iter().map(|(name, offer)| (name.clone(), said(offer))).collect(),
    }
}

struct PulsedPeer {
    pulse: PeerPulse,
    pulse_status: Option<PulseStatus>,
}

struct PulseSender {
    peers: BTreeMap<NodeId, PulsedPeer>,
    link: Arc<Link>,
    view: watch::Receiver<Arc<ClusterView>>,
    answers: mpsc::Receiver<PulseAnswer>,
    liveness: watch::Sender<Arc<PeerLivenessMap>>,
    life: Lifecycle,
}

impl PulseSender {
    async fn run(&mut self) {
        // What an earlier run heard, which has failed, is heard again.
        self.peers.clear();
        self.view.mark_changed();
        let mut wanted = self.life.now();
        loop {
            let now = self.life.now();
            let due = self.peers.values().map(|peer| peer.pulse.deadline()).min();
            let look = now.after(LOOK);
            let idle = now.after(Duration::from_secs(1));
            let next = if self.anyone_silent() { due.unwrap_or(look).min(look) } else { due.unwrap_or(idle) };
            let late = now.since(wanted);
            if late >= LATE_LOOP {
                warn!(by = ?late, "event loop stalled; ignoring missed pulses");
                for peer in self.peers.values_mut() {
                    peer.pulse.forgive_silence(now);
                }
            }
            wanted = next;
            tokio::select! {
                () = self.life.shutdown.cancelled() => return,
                () = tokio::time::sleep_until(self.life.instant(next)) => {}
                Some(answer) = self.answers.recv() => {
                    self.handle_answer(answer);
                    while let Ok(answer) = self.answers.try_recv() {
                        self.handle_answer(answer);
                    }
                }
                Ok(()) = self.view.changed() => self.watch_members(),
            }
            self.send();
            self.publish();
        }
    }

    /// Pulses go to every member that offers something, except this node itself.
    fn watch_members(&mut self) {
        let view = self.view.borrow_and_update().clone();
        let own = self.link.own();
        let wants = |id: &NodeId| {
            *id != own && view.members.get(id).is_some_and(|member| !member.word.services.is_empty())
        };
        self.peers.retain(|id, _| wants(id));
        let interval = interval(view.members.len());
        let now = self.life.now();
        for id in view.members.keys().filter(|id| wants(id)) {
            let peer = self.peers.entry(*id).or_insert_with(|| PulsedPeer {
                pulse: PeerPulse::new(now, interval, u64::from_be_bytes(random()) | 1),
                pulse_status: None,
            });
            peer.pulse.set_interval(interval);
        }
    }

    fn handle_answer(&mut self, answer: PulseAnswer) {
        let now = self.life.now();
        match answer {
            PulseAnswer::Said { from, number, pulse_status } => {
                let Some(peer) = self.peers.get_mut(&from) else { return };
                if number == 0 || peer.pulse.answered(number, now).is_some() {
                    peer.pulse_status = Some(pulse_status);
                }
            }
            PulseAnswer::NoAgent(at) => {
                if let Some(peer) = self.peers.get_mut(&at) {
                    peer.pulse.refused();
                }
            }
        }
    }

    fn send(&mut self) {
        let now = self.life.now();
        for (id, peer) in &mut self.peers {
            if let Some(number) = peer.pulse.poll(now) {
                self.link.datagrams().pulse(*id, number);
            }
        }
    }

    fn anyone_silent(&self) -> bool {
        let now = self.life.now();
        self.peers.values().any(|peer| peer.pulse.silence(now) > QUIET)
    }

    /// Whether any member's datagram has come lately, of whatever kind.
    fn hears_anyone(&self, now: Moment) -> bool {
        let view = self.view.borrow().clone();
        view.members
            .keys()
            .any(|id| self.link.datagrams().last_heard(id).is_some_and(|at| now.since(at) < OTHERS))
    }

    fn publish(&self) {
        let now = self.life.now();
        let liveness = liveness_map(&self.peers, now, || self.hears_anyone(now));
        self.liveness.send_if_modified(|old| {
            // Times and losses change with every answer and are read when someone asks; only what is heard
            // and said is news.
            let news = |liveness: &PeerLivenessMap| -> Vec<(NodeId, Liveness, Option<PulseStatus>)> {
                liveness
                    .iter()
                    .map(|(id, peer_liveness)| (*id, peer_liveness.liveness, peer_liveness.status.clone()))
                    .collect()
            };
            let changed = news(old) != news(&liveness);
            *old = Arc::new(liveness);
            changed
        });
    }
}

/// What is heard of all, with the benefit of the doubt: who hears nobody at all, masters by pulse or others
/// by gossip, has lost its own network, and calls nobody lost.
fn liveness_map(
    peers: &BTreeMap<NodeId, PulsedPeer>,
    now: Moment,
    hears_others: impl FnOnce() -> bool,
) -> PeerLivenessMap {
    let mut known =
        peers.values().map(|peer| peer.pulse.liveness(now)).filter(|one| *one != Liveness::Unknown);
    let several = known.clone().count() > 1;
    let nobody = several && known.all(|liveness| liveness != Liveness::Alive) && !hears_others();
    peers
        .iter()
        .map(|(id, peer)| {
            let liveness = match peer.pulse.liveness(now) {
                Liveness::Silent if nobody => Liveness::Late,
                liveness => liveness,
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
        let mut pulse = PeerPulse::new(Moment::ZERO, Duration::from_millis(100), 1);
        let number = pulse.poll(Moment::ZERO).unwrap();
        pulse.answered(number, Moment::from_millis(10)).unwrap();
        PulsedPeer { pulse, pulse_status: None }
    }

    fn unknown() -> PulsedPeer {
        PulsedPeer { pulse: PeerPulse::new(Moment::ZERO, Duration::from_millis(100), 1), pulse_status: None }
    }

    fn hearings(peers: Vec<PulsedPeer>, hears_others: bool) -> Vec<Liveness> {
        let peers: BTreeMap<NodeId, PulsedPeer> =
            peers.into_iter().enumerate().map(|(i, peer)| (NodeId([i as u8; 10]), peer)).collect();
        let now = Moment::from_millis(5_000);
        liveness_map(&peers, now, || hears_others)
            .into_values()
            .map(|peer_liveness| peer_liveness.liveness)
            .collect()
    }

    #[test]
    fn who_hears_nobody_calls_nobody_lost() {
        use Liveness::{Late, Silent, Unknown};
        assert_eq!(hearings(vec![silent(), silent()], false), [Late, Late]);
        assert_eq!(hearings(vec![silent(), silent(), unknown()], false), [Late, Late, Unknown]);
        // Others are heard by gossip, so the silence is theirs.
        assert_eq!(hearings(vec![silent(), silent()], true), [Silent, Silent]);
        // Of a single peer nothing can be compared with.
        assert_eq!(hearings(vec![silent()], false), [Silent]);
    }
}
