//! Faults of the address's owner, and what a client sees of them.

use std::net::IpAddr;
use std::time::{Duration, Instant, SystemTime};

use anyhow::{Context, Result, ensure};

use super::contender::Contender;
use super::packet::{Arp, Link, Mac, Tap};
use super::prober::{Prober, Record};
use super::{ADDRESS, CLIENT, STRANGER};
use crate::lab::{Lab, Master, Signal};
use crate::wait::eventually;

/// How long a stage may take to be ready again: a candidate that moved too often is held down for a minute.
const SETTLED: Duration = Duration::from_secs(90);

/// How long anything without an end is watched.
const LONGEST: Duration = Duration::from_secs(6);

/// The same for a client that no longer reaches anyone: until its kernel revalidates its cache.
const BLACKOUT: Duration = Duration::from_secs(40);

/// How long owners are cut from each other: long enough to miss three adverts at one per second.
const CUT: Duration = Duration::from_secs(6);

/// One owner for this long ends a run.
const CALM: Duration = Duration::from_millis(700);

/// Between the two announcements of a stranger, as `arping -U -c 2` sends them.
const AGAIN: Duration = Duration::from_secs(1);

/// A fault.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs)] // `title` says it
pub enum Scenario {
    Crash,
    Graceful,
    LinkDown,
    Killed,
    Frozen,
    ApiKilled,
    Cut,
    Removed,
    Stranger,
}

/// A line of the table: a scenario, or the second half of one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Row {
    /// The fault.
    pub scenario: Scenario,
    /// It ended, and this is what followed.
    pub healed: bool,
}

impl Row {
    /// Its name in the table.
    pub fn title(self) -> &'static str {
        if self.healed { "heal after it" } else { self.scenario.title() }
    }
}

impl Scenario {
    /// All of them, in the order of the table.
    pub const ALL: [Scenario; 9] = [
        Scenario::Crash,
        Scenario::Graceful,
        Scenario::LinkDown,
        Scenario::Killed,
        Scenario::Frozen,
        Scenario::ApiKilled,
        Scenario::Cut,
        Scenario::Removed,
        Scenario::Stranger,
    ];

    /// Its name on the command line.
    pub fn word(self) -> &'static str {
        match self {
            Scenario::Crash => "crash",
            Scenario::Graceful => "graceful",
            Scenario::LinkDown => "link-down",
            Scenario::Killed => "killed",
            Scenario::Frozen => "frozen",
            Scenario::ApiKilled => "api-killed",
            Scenario::Cut => "cut",
            Scenario::Removed => "removed",
            Scenario::Stranger => "stranger",
        }
    }

    /// Its name in the table.
    pub fn title(self) -> &'static str {
        match self {
            Scenario::Crash => "crash",
            Scenario::Graceful => "graceful stop",
            Scenario::LinkDown => "link down only",
            Scenario::Killed => "SIGKILL, link up",
            Scenario::Frozen => "SIGSTOP, link up",
            Scenario::ApiKilled => "its apiserver killed",
            Scenario::Cut => "owners cut apart",
            Scenario::Removed => "removed by hand",
            Scenario::Stranger => "a stranger has it",
        }
    }

    /// Watched at least so long, and then until it was calm, at most so long.
    fn watched(self) -> (Duration, Duration) {
        match self {
            Scenario::Cut => (CUT, CUT),
            Scenario::Stranger => (AGAIN * 3, LONGEST),
            _ => (AGAIN, LONGEST),
        }
    }

    /// Whether the address has to move.
    pub fn moves(self) -> bool {
        !matches!(self, Scenario::Cut | Scenario::Removed | Scenario::Stranger)
    }

    /// Whether the old owner can still answer, and must not.
    pub fn lingers(self) -> bool {
        matches!(self, Scenario::Graceful | Scenario::Killed | Scenario::Frozen | Scenario::ApiKilled)
    }

    /// The lines of the table that a run of it fills.
    pub fn rows(self) -> Vec<Row> {
        let row = |healed| Row { scenario: self, healed };
        if self == Scenario::Cut { vec![row(false), row(true)] } else { vec![row(false)] }
    }
}

/// What a client saw of it.
#[derive(Debug, Clone)]
pub struct Outcome {
    /// Probes without an answer, or with one that came too late.
    pub lost: usize,
    /// The longest time without service.
    pub outage: Duration,
    /// Until the first answer from another node; `None` without one.
    pub takeover: Option<Duration>,
    /// Samples that two nodes answered.
    pub by_two: usize,
    /// Until the old owner answered for the last time; `None` when it did to the end.
    pub gone: Option<Duration>,
    /// How often another node than before answered the client.
    pub moves: usize,
    /// The owner at the end: the number of a node; `None` when it is not exactly one.
    pub owner: Option<usize>,
    /// How long it was watched.
    pub watched: Duration,
}

/// Nodes, their apiservers, the client, and the implementation that keeps the address.
pub struct Stage<'stage, C: Contender + ?Sized> {
    /// The network.
    pub lab: &'stage Lab,
    /// The implementation.
    pub contender: &'stage mut C,
    /// The client.
    pub prober: Prober,
    /// The apiservers of the candidates.
    pub masters: &'stage mut [Master],
    links: Vec<Link>,
}

impl<'stage, C: Contender + ?Sized> Stage<'stage, C> {
    /// Sets it up, and waits until the address has its owner.
    ///
    /// # Errors
    /// It does not form.
    pub fn set(
        lab: &'stage Lab,
        masters: &'stage mut [Master],
        contender: &'stage mut C,
    ) -> Result<Stage<'stage, C>> {
        let links = lab.nodes().iter().map(Link::of).collect::<Result<Vec<_>>>()?;
        let prober = Prober::start(lab.node(CLIENT), IpAddr::V4(ADDRESS))?;
        let mut stage = Stage { lab, contender, prober, masters, links };
        stage.settle()?;
        Ok(stage)
    }

    /// Waits until the stage is ready, and returns the owner.
    ///
    /// # Errors
    /// It does not become ready.
    pub fn settle(&mut self) -> Result<usize> {
        let (prober, contender) = (&self.prober, &mut self.contender);
        prober.clear();
        let calm = contender.calm();
        let links = &self.links;
        let (owner, _) = eventually("all is as usual", SETTLED, || {
            let owner = contender.ready()?;
            let mac = prober.sole_owner(calm)?;
            ensure!(mac == links[owner].mac, "n{owner} should own it, and {mac} does");
            Ok(owner)
        })
        .with_context(|| contender.words())?;
        Ok(owner)
    }

    /// The node with this Ethernet address.
    pub fn number(&self, mac: Mac) -> Option<usize> {
        self.links.iter().position(|link| link.mac == mac)
    }

    /// The Ethernet address of a node.
    pub fn mac(&self, node: usize) -> Mac {
        self.links[node].mac
    }

    /// A whole run: waits until ready, causes the fault, watches, and undoes it.
    ///
    /// # Errors
    /// A fault can't be caused, or undone.
    pub fn run(&mut self, scenario: Scenario) -> Result<Vec<(Row, Outcome)>> {
        let owner = self.settle()?;
        // Timers of the watched processes must not run in step with ours.
        std::thread::sleep(jitter());
        self.prober.clear();
        let mut found = Vec::new();
        let mut from = Instant::now();
        self.act(scenario, owner)?;
        for row in scenario.rows() {
            if row.healed {
                from = Instant::now();
                self.lab.heal()?;
            }
            found.push((row, self.watch(row, owner, from)));
        }
        self.undo(scenario, owner)?;
        Ok(found)
    }

    /// Causes it, and leaves it in force.
    ///
    /// # Errors
    /// It can't be caused.
    pub fn act(&mut self, scenario: Scenario, owner: usize) -> Result<()> {
        let node = self.lab.node(owner);
        match scenario {
            Scenario::Crash => {
                node.power_cut()?;
                self.contender.process(owner)?.signal(Signal::KILL)?;
            }
            Scenario::Graceful => self.contender.process(owner)?.signal(Signal::TERM)?,
            Scenario::LinkDown => node.power_cut()?,
            Scenario::Killed => self.contender.process(owner)?.signal(Signal::KILL)?,
            Scenario::Frozen => self.contender.process(owner)?.signal(Signal::STOP)?,
            Scenario::ApiKilled => self.masters[owner].kill()?,
            Scenario::Cut => {
                let others = (0..self.contender.candidates()).filter(|i| *i != owner);
                self.lab.cut_apart(owner, others)?;
            }
            Scenario::Removed => self.remove(owner)?,
            Scenario::Stranger => self.appear()?,
        }
        Ok(())
    }

    /// Removes the address from its owner, as another network manager would.
    fn remove(&self, owner: usize) -> Result<()> {
        let node = self.lab.node(owner);
        let shown = node.exec(&["ip", "-o", "address", "show", "to", &ADDRESS.to_string()])?.ok()?;
        let prefix = shown.split_whitespace().nth(3).context("the owner does not have it")?;
        node.exec(&["ip", "address", "del", prefix, "dev", node.interface])?.ok()?;
        Ok(())
    }

    /// A machine with the same address announces it, and again a second later.
    fn appear(&self) -> Result<()> {
        let node = self.lab.node(STRANGER);
        let address = format!("{ADDRESS}/24");
        let tap = Tap::open(node, Duration::from_secs(1))?;
        let frame = Arp::announcement(self.mac(STRANGER), ADDRESS).frame(Mac::ALL);
        node.exec(&["ip", "address", "add", &address, "dev", node.interface])?.ok()?;
        tap.say(&frame)?;
        std::thread::spawn(move || {
            std::thread::sleep(AGAIN);
            // The interface may be gone already.
            let _ = tap.say(&frame);
        });
        Ok(())
    }

    /// Watches until it is over.
    pub fn watch(&self, row: Row, owner: usize, from: Instant) -> Outcome {
        let (least, most) = if row.healed { (AGAIN * 3, BLACKOUT) } else { row.scenario.watched() };
        let old = self.mac(owner);
        let is_calm = || match self.prober.sole_owner(CALM) {
            Ok(mac) => mac != old || !row.scenario.moves(),
            Err(_) => false,
        };
        while from.elapsed() < least || (from.elapsed() < most && !is_calm()) {
            std::thread::sleep(Duration::from_millis(50));
        }
        let to = Instant::now();
        self.prober.settle();
        self.outcome(&self.prober.between(from, to), owner, from, to)
    }

    fn outcome(&self, record: &Record, owner: usize, from: Instant, to: Instant) -> Outcome {
        let (old, last) = (self.mac(owner), Duration::from_millis(300));
        let gone = record.last_of(old).map_or(Some(Duration::ZERO), |at| {
            let still = to.saturating_duration_since(at) < last;
            (!still).then(|| at.saturating_duration_since(from))
        });
        Outcome {
            lost: record.lost(),
            outage: record.outage(),
            takeover: record.taken_over(old).map(|at| at.saturating_duration_since(from)),
            by_two: record.by_two(),
            gone,
            moves: record.moves(),
            owner: record.between(to - last, to).sole_owner().ok().and_then(|mac| self.number(mac)),
            watched: to.saturating_duration_since(from),
        }
    }

    /// Undoes it.
    ///
    /// # Errors
    /// Something does not recover.
    pub fn undo(&mut self, scenario: Scenario, owner: usize) -> Result<()> {
        let node = self.lab.node(owner);
        match scenario {
            Scenario::Crash => {
                node.power_on()?;
                self.start(owner)?;
            }
            Scenario::Graceful | Scenario::Killed => self.start(owner)?,
            Scenario::LinkDown => node.power_on()?,
            Scenario::Frozen => self.contender.process(owner)?.signal(Signal::CONT)?,
            Scenario::ApiKilled => self.masters[owner].start_again(node)?,
            Scenario::Cut | Scenario::Removed => {}
            Scenario::Stranger => {
                let node = self.lab.node(STRANGER);
                let address = format!("{ADDRESS}/24");
                node.exec(&["ip", "address", "del", &address, "dev", node.interface])?.ok()?;
            }
        }
        Ok(())
    }

    fn start(&mut self, owner: usize) -> Result<()> {
        self.contender.process(owner)?.ended(Duration::from_secs(15))?;
        self.contender.start(owner)
    }
}

/// Up to a second, from the clock's last digits.
fn jitter() -> Duration {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    Duration::from_micros(u64::from(now.subsec_nanos()) / 1000 * 7919 % 1_000_000)
}
