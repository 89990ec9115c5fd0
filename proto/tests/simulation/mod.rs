//! One node that watches one master, in virtual time: pulses, connects, loss, delays, a cut. The tests of
//! liveness count what it concludes, and the bench does the same at the intervals of large clusters.

#[path = "../random/mod.rs"]
mod random;

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::time::Duration;

use proto::path::{BackendPath, Evidence, Reachability};
use proto::pulse::{Liveness, PeerPulse};
use proto::time::{Moment, UnixMs};
use random::Dice;

#[derive(PartialEq, Eq, PartialOrd, Ord)]
enum Event {
    Answer(u64),
    Connected(u64),
    Unanswered,
}

/// What one pair concluded.
#[derive(Default)]
pub(crate) struct Outcome {
    /// How often it had doubts.
    pub(crate) suspicions: u32,
    /// When it said down, in milliseconds.
    pub(crate) downs: Vec<u64>,
}

/// One pair for so long, pulsing at this interval, with this loss each way in percent and delays of 1 to
/// 40 ms; from `cut` on nothing passes. Times in milliseconds.
pub(crate) fn run(seed: u64, interval: Duration, loss: u64, length_ms: u64, cut: u64) -> Outcome {
    let mut dice = Dice(seed);
    let mut pulse = PeerPulse::new(Moment::ZERO, interval, dice.next());
    let mut path = BackendPath::new(UnixMs(0));
    let mut events: BinaryHeap<Reverse<(u64, Event)>> = BinaryHeap::new();
    let mut outcome = Outcome::default();
    let mut liveness = Liveness::Unknown;
    let mut before = Reachability::Up;
    let mut ms = 0;
    while ms < length_ms {
        let now = Moment::from_millis(ms);
        let mut news = Vec::new();
        while events.peek().is_some_and(|Reverse((due, _))| *due <= ms) {
            let Some(Reverse((_, event))) = events.pop() else { break };
            match event {
                Event::Answer(number) => drop(pulse.answered(number, now)),
                Event::Connected(took) => {
                    news.push(Evidence::Connected { took: Duration::from_millis(took) });
                }
                Event::Unanswered => news.push(Evidence::Unanswered),
            }
        }
        let mut passes = |ms: u64| ms < cut && !dice.percent(loss) && !dice.percent(loss);
        if let Some(number) = pulse.poll(now)
            && passes(ms)
        {
            let delay = dice.between(1, 40) + dice.between(1, 40);
            events.push(Reverse((ms + delay, Event::Answer(number))));
        }
        let heard = pulse.liveness(now);
        if heard != liveness {
            liveness = heard;
            news.push(Evidence::Liveness(heard));
        }
        for evidence in news {
            path.observe(now, UnixMs(ms), evidence);
        }
        if path.next_probe().is_some_and(|at| at <= now) {
            let timeout = u64::try_from(path.probe_timeout().as_millis()).unwrap_or(u64::MAX);
            path.probe_started(now);
            // A lost SYN or SYN-ACK is sent again only after a second: too late for this probe.
            let mut passes = |ms: u64| ms < cut && !dice.percent(loss) && !dice.percent(loss);
            if passes(ms) {
                let took = dice.between(2, 80);
                events.push(Reverse((ms + took, Event::Connected(took))));
            } else {
                events.push(Reverse((ms + timeout, Event::Unanswered)));
            }
        }
        if path.reach() != before {
            before = path.reach();
            match before {
                Reachability::Suspect => outcome.suspicions += 1,
                Reachability::Down => outcome.downs.push(ms),
                Reachability::Up => {}
            }
        }
        ms += 5;
    }
    outcome
}
