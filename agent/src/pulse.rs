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
use proto::pulse::{Ear, Ears, Hearing, Pulse, Saying, interval};
use proto::record::{NodeRecord, Offer};
use proto::time::Moment;
use proto::view::View;
use tokio::sync::{mpsc, watch};
use tracing::warn;

use crate::lifecycle::Life;
use crate::link::{Answer, Link, random};

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
    view: watch::Receiver<Arc<View>>,
    word: watch::Receiver<NodeRecord>,
    answers: mpsc::Receiver<Answer>,
    ears: watch::Sender<Arc<Ears>>,
    life: &Life,
) {
    tell(link.clone(), word, life);
    let task = Pulses { peers: BTreeMap::new(), link, view, answers, ears, life: life.clone() };
    life.supervise("pulse", task, |task| Box::pin(task.run()));
}

/// Keeps what the link answers in step with what this node says by gossip.
fn tell(link: Arc<Link>, mut word: watch::Receiver<NodeRecord>, life: &Life) {
    // What it holds already is said too.
    word.mark_changed();
    let own = life.clone();
    life.follow("pulse", word, (link, None), move |(link, said), word| {
        let saying = saying_of(&word);
        // Much of a word is not said here, and whoever has pulsed this node is told at once.
        if said.as_ref() != Some(&saying) {
            link.say(&saying, own.now());
            *said = Some(saying);
        }
    });
}

fn saying_of(word: &NodeRecord) -> Saying {
    let said = |offer: &Offer| (offer.health.readiness, offer.health.cause);
    Saying {
        draining: word.draining.is_some(),
        leaving: word.left,
        services: word.services.iter().map(|(name, offer)| (name.clone(), said(offer))).collect(),
    }
}

struct Peer {
    pulse: Pulse,
    saying: Option<Saying>,
}

struct Pulses {
    peers: BTreeMap<NodeId, Peer>,
    link: Arc<Link>,
    view: watch::Receiver<Arc<View>>,
    answers: mpsc::Receiver<Answer>,
    ears: watch::Sender<Arc<Ears>>,
    life: Life,
}

impl Pulses {
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
                    peer.pulse.excuse(now);
                }
            }
            wanted = next;
            tokio::select! {
                () = self.life.over.cancelled() => return,
                () = tokio::time::sleep_until(self.life.instant(next)) => {}
                Some(answer) = self.answers.recv() => {
                    self.hear(answer);
                    while let Ok(answer) = self.answers.try_recv() {
                        self.hear(answer);
                    }
                }
                Ok(()) = self.view.changed() => self.follow(),
            }
            self.send();
            self.publish();
        }
    }

    /// Pulses go to every member that offers something, except this node itself.
    fn follow(&mut self) {
        let view = self.view.borrow_and_update().clone();
        let own = self.link.own();
        let wants = |id: &NodeId| {
            *id != own && view.members.get(id).is_some_and(|member| !member.word.services.is_empty())
        };
        self.peers.retain(|id, _| wants(id));
        let interval = interval(view.members.len());
        let now = self.life.now();
        for id in view.members.keys().filter(|id| wants(id)) {
            let peer = self.peers.entry(*id).or_insert_with(|| Peer {
                pulse: Pulse::new(now, interval, u64::from_be_bytes(random()) | 1),
                saying: None,
            });
            peer.pulse.set_interval(interval);
        }
    }

    fn hear(&mut self, answer: Answer) {
        let now = self.life.now();
        match answer {
            Answer::Said { from, number, saying } => {
                let Some(peer) = self.peers.get_mut(&from) else { return };
                if number == 0 || peer.pulse.answered(number, now).is_some() {
                    peer.saying = Some(saying);
                }
            }
            Answer::NoAgent(at) => {
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
                self.link.pulse(*id, number);
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
        view.members.keys().any(|id| self.link.last_heard(id).is_some_and(|at| now.since(at) < OTHERS))
    }

    fn publish(&self) {
        let now = self.life.now();
        let ears = ears(&self.peers, now, || self.hears_anyone(now));
        self.ears.send_if_modified(|old| {
            // Times and losses change with every answer and are read when someone asks; only what is heard
            // and said is news.
            let news = |ears: &Ears| -> Vec<(NodeId, Hearing, Option<Saying>)> {
                ears.iter().map(|(id, ear)| (*id, ear.hearing, ear.saying.clone())).collect()
            };
            let changed = news(old) != news(&ears);
            *old = Arc::new(ears);
            changed
        });
    }
}

/// What is heard of all, with the benefit of the doubt: who hears nobody at all, masters by pulse or others
/// by gossip, has lost its own network, and calls nobody lost.
fn ears(peers: &BTreeMap<NodeId, Peer>, now: Moment, hears_others: impl FnOnce() -> bool) -> Ears {
    let mut known = peers.values().map(|peer| peer.pulse.hearing(now)).filter(|one| *one != Hearing::Unknown);
    let several = known.clone().count() > 1;
    let nobody = several && known.all(|hearing| hearing != Hearing::Heard) && !hears_others();
    peers
        .iter()
        .map(|(id, peer)| {
            let hearing = match peer.pulse.hearing(now) {
                Hearing::Lost if nobody => Hearing::Late,
                hearing => hearing,
            };
            let ear = Ear {
                hearing,
                saying: peer.saying.clone(),
                rtt: peer.pulse.rtt(),
                loss_permille: (peer.pulse.loss() * 1000.0).round() as u16,
            };
            (*id, ear)
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A peer that answered once, at 10 ms, and not since.
    fn silent() -> Peer {
        let mut pulse = Pulse::new(Moment::ZERO, Duration::from_millis(100), 1);
        let number = pulse.poll(Moment::ZERO).unwrap();
        pulse.answered(number, Moment::from_millis(10)).unwrap();
        Peer { pulse, saying: None }
    }

    fn unknown() -> Peer {
        Peer { pulse: Pulse::new(Moment::ZERO, Duration::from_millis(100), 1), saying: None }
    }

    fn hearings(peers: Vec<Peer>, hears_others: bool) -> Vec<Hearing> {
        let peers: BTreeMap<NodeId, Peer> =
            peers.into_iter().enumerate().map(|(i, peer)| (NodeId([i as u8; 10]), peer)).collect();
        let now = Moment::from_millis(5_000);
        ears(&peers, now, || hears_others).into_values().map(|ear| ear.hearing).collect()
    }

    #[test]
    fn who_hears_nobody_calls_nobody_lost() {
        use Hearing::{Late, Lost, Unknown};
        assert_eq!(hearings(vec![silent(), silent()], false), [Late, Late]);
        assert_eq!(hearings(vec![silent(), silent(), unknown()], false), [Late, Late, Unknown]);
        // Others are heard by gossip, so the silence is theirs.
        assert_eq!(hearings(vec![silent(), silent()], true), [Lost, Lost]);
        // Of a single peer nothing can be compared with.
        assert_eq!(hearings(vec![silent()], false), [Lost]);
    }
}
