//! One node that watches one master, in virtual time: pulses, connects, what others report, loss, delays, a cut.
//! The tests of liveness count what it concludes, and so does the bench. `tests/attached` does it for large clusters.

#[path = "../random/mod.rs"]
mod random;

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::time::Duration;

use proto::heard::{LATELY, PeerReports};
use proto::node::NodeId;
use proto::path::{BackendPath, Evidence, Reachability};
use proto::pulse::{Liveness, Pace, PeerPulse};
use proto::time::{Moment, UnixMs};
use random::Dice;

/// As in the agent: how old the word of others may be before a node asks for it.
const ASK: Duration = Duration::from_millis(300);

/// What is simulated.
#[derive(Debug, Clone, Copy)]
pub(crate) struct World {
    /// Of the node's pulses.
    pub(crate) pace: Pace,
    /// Of those of the reporters.
    pub(crate) reporters_pace: Pace,
    /// Loss each way in percent, independent for each packet.
    pub(crate) loss: u64,
    /// Other masters, which pulse the master and report when they heard it. Their reports come with the answers to
    /// the node's own pulses, of which one is due at once when the master is late and they have said nothing of it.
    pub(crate) reporters: u8,
    /// How long it takes.
    pub(crate) length_ms: u64,
    /// From then on nothing passes to or from the master.
    pub(crate) cut: u64,
    /// From then on nothing passes between the node and the master; others hear it.
    pub(crate) path_cut: u64,
}

impl World {
    /// A node without reporters, and nothing is cut.
    pub(crate) fn new(pace: Pace, loss: u64, length_ms: u64) -> World {
        World { pace, reporters_pace: pace, loss, reporters: 0, length_ms, cut: u64::MAX, path_cut: u64::MAX }
    }
}

#[derive(PartialEq, Eq, PartialOrd, Ord)]
enum Event {
    Answer(u64),
    Connected(u64),
    Unanswered,
    /// A reporter hears the master, or has its own pulse answered.
    Heard(u8, Option<u64>),
    /// A reporter is asked by a pulse.
    Asked(u8, u64),
    /// It has answered, with when it heard the master, if it says so.
    Report(u8, u64, Option<u64>),
}

/// What one pair concluded.
#[derive(Default)]
pub(crate) struct Outcome {
    /// How often it had doubts.
    pub(crate) suspicions: u32,
    /// When it said down, in milliseconds.
    pub(crate) downs: Vec<u64>,
    /// When it first said that the path from here is cut.
    pub(crate) cut_off: Option<u64>,
}

/// Another master.
struct Reporter {
    /// Its pulses to the master, and the node's to it.
    pulse: PeerPulse,
    asked: PeerPulse,
    heard: Option<u64>,
    /// When the master pulses it next.
    next_pulsed: u64,
}

/// One pair, with delays of 1 to 40 ms each way. Times in milliseconds.
pub(crate) fn run(seed: u64, world: World) -> Outcome {
    let World { pace, loss, .. } = world;
    let mut dice = Dice(seed);
    let mut pulse = PeerPulse::new(Moment::ZERO, pace, dice.next());
    let mut path = BackendPath::new(UnixMs(0));
    let mut reports = PeerReports::default();
    let ms_of = |pace: Pace| u64::try_from(pace.interval.as_millis()).unwrap_or(u64::MAX);
    let theirs_ms = ms_of(world.reporters_pace);
    let mut reporters: Vec<Reporter> = (0..world.reporters)
        .map(|_| {
            let start = dice.between(0, theirs_ms);
            let theirs = Pace { phase: Duration::from_millis(start), ..world.reporters_pace };
            let pulse = PeerPulse::new(Moment::from_millis(start), theirs, dice.next());
            let asked = PeerPulse::new(Moment::ZERO, pace, dice.next());
            Reporter { pulse, asked, heard: None, next_pulsed: dice.between(0, theirs_ms) }
        })
        .collect();
    let mut events: BinaryHeap<Reverse<(u64, Event)>> = BinaryHeap::new();
    let mut outcome = Outcome::default();
    let mut liveness = Liveness::Unknown;
    let mut before = Reachability::Up;
    let mut ms = 0;
    while ms < world.length_ms {
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
                Event::Heard(who, answer) => {
                    let reporter = &mut reporters[usize::from(who)];
                    reporter.heard = Some(ms);
                    answer.map(|number| reporter.pulse.answered(number, now));
                }
                Event::Asked(who, number) => {
                    let reporter = &reporters[usize::from(who)];
                    // As in `HeardBook::report`: heard a moment ago, or it does not answer.
                    let lately = |heard| now.since(Moment::from_millis(heard)) < LATELY;
                    let silence = reporter.pulse.silence(now).saturating_sub(reporter.pulse.slack());
                    let says = |heard: &u64| lately(*heard) || silence >= Duration::from_millis(100);
                    if !dice.percent(loss) {
                        // The age in it is of the moment at which it was sent.
                        let delay = dice.between(1, 40);
                        let heard = reporter.heard.filter(says).map(|heard| heard + delay);
                        events.push(Reverse((ms + delay, Event::Report(who, number, heard))));
                    }
                }
                Event::Report(who, number, heard) => {
                    reporters[usize::from(who)].asked.answered(number, now);
                    if let Some(heard) = heard {
                        // As on the wire.
                        let age = Duration::from_millis((ms - heard) / 10 * 10);
                        reports.add(NodeId([who; NodeId::LEN]), true, age, now);
                    }
                }
            }
        }
        let up = ms < world.cut;
        let near = up && ms < world.path_cut;
        let passes = |dice: &mut Dice, up: bool| up && !dice.percent(loss) && !dice.percent(loss);
        if let Some(number) = pulse.poll(now)
            && passes(&mut dice, near)
        {
            let delay = dice.between(1, 40) + dice.between(1, 40);
            events.push(Reverse((ms + delay, Event::Answer(number))));
        }
        let unsaid = pulse.liveness(now) == Liveness::Late && !reports.says(ASK, now);
        for (who, reporter) in (0..).zip(&mut reporters) {
            if let Some(number) = reporter.pulse.poll(now)
                && passes(&mut dice, up)
            {
                let delay = dice.between(1, 40) + dice.between(1, 40);
                events.push(Reverse((ms + delay, Event::Heard(who, Some(number)))));
            }
            if ms >= reporter.next_pulsed {
                reporter.next_pulsed += theirs_ms;
                // The master pulses the reporter, too.
                if up && !dice.percent(loss) {
                    events.push(Reverse((ms + dice.between(1, 40), Event::Heard(who, None))));
                }
            }
            if unsaid {
                reporter.asked.hasten(now);
            }
            if let Some(number) = reporter.asked.poll(now)
                && !dice.percent(loss)
            {
                events.push(Reverse((ms + dice.between(1, 40), Event::Asked(who, number))));
            }
        }
        let heard = pulse.liveness_for_all(now, None, &reports);
        if heard != liveness {
            liveness = heard;
            news.push(Evidence::Liveness(heard));
            if heard == Liveness::CutOff {
                outcome.cut_off.get_or_insert(ms);
            }
        }
        for evidence in news {
            path.observe(now, UnixMs(ms), evidence);
        }
        if path.next_probe().is_some_and(|at| at <= now) {
            let timeout = u64::try_from(path.probe_timeout().as_millis()).unwrap_or(u64::MAX);
            path.probe_started(now);
            // A lost SYN or SYN-ACK is sent again only after a second: too late for this probe.
            if passes(&mut dice, near) {
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
