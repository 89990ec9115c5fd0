//! Faults of masters, and what their clients notice: the rows of the lab tests and of the bench.

use std::fmt;
use std::net::{Ipv4Addr, SocketAddr};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use proto::event::EventKind;
use proto::time::UnixMs;

use crate::lab::{Lab, Master, Proc, Signal};
use crate::load::{self, Beat, Plan, Record, Seen, Try, What};
use crate::mesh::{Agent, GOSSIP, SOON, form};
use crate::peers::Haproxy;
use crate::scale::events;
use crate::wait::eventually;

/// Masters of a stage: nodes 0 to 2. The worker is node 3.
const MASTERS: usize = 3;

/// A new connection that takes longer is slow.
pub const SLOW: Duration = Duration::from_millis(500);

/// Between two masters of a rolling restart, and how long each is away.
const ROLL: (Duration, Duration) = (Duration::from_secs(5), Duration::from_secs(2));

/// How long all masters are dead before one returns.
const ALL_DEAD: Duration = Duration::from_secs(3);

/// How long an apiserver does not answer the first check of an agent: longer than that check waits (2.5 s),
/// and less than the second one does, which starts a second later and would report it down.
const UNANSWERED: Duration = Duration::from_millis(3_200);

/// A master that hangs is not ready for others within this time: 1.5 s, and another for a busy machine.
const NOT_READY: Duration = Duration::from_millis(2_500);

/// How long a slow handshake takes, and where what makes it slow listens.
const HELLO: Duration = Duration::from_millis(1_200);
const RELAY: u16 = 6444;

/// Minimum time that is watched after the last step of a fault that takes many.
const LAST: Duration = Duration::from_secs(2);

/// Faults of a process that its kernel hides: that it is not ready has to show in status.
const NOT_READY_FAULTS: &[Fault] = &[Fault::Frozen, Fault::Hang];

/// Packets lost, in percent, each way.
const LOSS: u32 = 10;

/// One row.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs)] // `title` says it
pub enum Fault {
    PowerCut,
    Kill,
    Hang,
    /// Its agent and its apiserver: only the kernel is left, and accepts connections.
    Frozen,
    /// As an apiserver stops: it first accepts no new connection, and keeps serving those that it has.
    Stopping,
    CutToWorker,
    CutFromWorker,
    AgentKilled,
    AgentFrozen,
    AgentRestarted,
    /// The same while the apiserver does not answer, until after the first check of the new agent.
    AgentRestartedUnanswered,
    Drained,
    Loss,
    Rolling,
    AllDead,
    SlowReady,
    /// The first byte of each TLS handshake is late; what is connected already goes on as before.
    SlowHello,
}

impl Fault {
    /// Every row, in the order of the table.
    pub const ALL: [Fault; 17] = [
        Fault::PowerCut,
        Fault::Kill,
        Fault::Hang,
        Fault::Frozen,
        Fault::Stopping,
        Fault::CutToWorker,
        Fault::CutFromWorker,
        Fault::AgentKilled,
        Fault::AgentFrozen,
        Fault::AgentRestarted,
        Fault::AgentRestartedUnanswered,
        Fault::Drained,
        Fault::Loss,
        Fault::Rolling,
        Fault::AllDead,
        Fault::SlowReady,
        Fault::SlowHello,
    ];

    /// Its name on the command line.
    pub fn word(self) -> &'static str {
        self.names().0
    }

    /// Its name in the table.
    pub fn title(self) -> &'static str {
        self.names().1
    }

    fn names(self) -> (&'static str, &'static str) {
        match self {
            Fault::PowerCut => ("power-cut", "power cut"),
            Fault::Kill => ("kill", "killed"),
            Fault::Hang => ("hang", "hung"),
            Fault::Frozen => ("frozen", "all of it frozen"),
            Fault::Stopping => ("stopping", "stops in peace"),
            Fault::CutToWorker => ("cut-to", "cut, to worker"),
            Fault::CutFromWorker => ("cut-from", "cut, from worker"),
            Fault::AgentKilled => ("agent-killed", "its agent killed"),
            Fault::AgentFrozen => ("agent-frozen", "its agent frozen"),
            Fault::AgentRestarted => ("agent-restarted", "its agent restarts"),
            Fault::AgentRestartedUnanswered => ("agent-restarted-unanswered", "the same, 3 s hung"),
            Fault::Drained => ("drained", "drained"),
            Fault::Loss => ("loss", "10 % loss"),
            Fault::Rolling => ("rolling", "rolling restart"),
            Fault::AllDead => ("all-dead", "3 dead, 1 back"),
            Fault::SlowReady => ("slow-ready", "/readyz takes 2 s"),
            Fault::SlowHello => ("slow-hello", "hello takes 1.2 s"),
        }
    }
}

/// The injected fault.
#[derive(Debug, Clone, Copy)]
pub struct Act {
    /// Trouble is counted from here: the fault, or the return of a master when all were dead.
    pub moment: Instant,
    /// Which masters are faulty.
    pub faulty: [bool; MASTERS],
}

impl Act {
    fn is_faulty(&self, master: &str) -> bool {
        (0..MASTERS).any(|i| self.faulty[i] && master == format!("n{i}"))
    }
}

/// Three masters and a worker that see each other.
pub struct Stage<'stage, 'lab> {
    /// The network.
    pub lab: &'stage Lab,
    /// An agent on every node.
    pub agents: &'stage mut [Agent<'lab>],
    masters: Vec<Master>,
    /// What makes a master's handshakes slow.
    relay: Option<Proc>,
}

impl<'stage, 'lab> Stage<'stage, 'lab> {
    /// Starts everything on a lab of four nodes, and waits until the worker sees all masters ready.
    ///
    /// # Errors
    /// It does not form.
    pub fn set(lab: &'stage Lab, agents: &'stage mut [Agent<'lab>]) -> Result<Stage<'stage, 'lab>> {
        ensure!(lab.size() > MASTERS && agents.len() > MASTERS, "three masters and a worker");
        let masters = (0..MASTERS).map(|i| lab.nginx_master(i)).collect::<Result<Vec<_>>>()?;
        form(agents)?;
        let stage = Stage { lab, agents, masters, relay: None };
        stage.wait_until_ready()?;
        Ok(stage)
    }

    /// The node without a master, where the clients are.
    pub fn worker(&self) -> &Agent<'lab> {
        &self.agents[MASTERS]
    }

    fn wait_until_ready(&self) -> Result<()> {
        for i in 0..MASTERS {
            self.worker().wait_for_backend(&format!("n{i}"), &["ready"], GOSSIP * 2)?;
        }
        Ok(())
    }

    /// Injects a fault on a master; returns when it is complete, and leaves it in force.
    ///
    /// # Errors
    /// It can't be injected.
    pub fn act(&mut self, fault: Fault, victim: usize) -> Result<Act> {
        let mut act = Act { moment: Instant::now(), faulty: [false; MASTERS] };
        act.faulty[victim] = true;
        let (node, worker) = (self.lab.node(victim), self.lab.node(MASTERS));
        match fault {
            Fault::PowerCut => node.power_cut()?,
            Fault::Kill => self.masters[victim].kill()?,
            Fault::Hang => self.masters[victim].hang()?,
            Fault::Frozen => {
                self.agents[victim].process()?.signal(Signal::STOP)?;
                self.masters[victim].hang()?;
            }
            Fault::Stopping => self.refuse(victim, true)?,
            Fault::CutToWorker => node.cut_to(worker)?,
            Fault::CutFromWorker => worker.cut_to(node)?,
            Fault::AgentKilled => self.agents[victim].kill()?,
            Fault::AgentFrozen => self.agents[victim].process()?.signal(Signal::STOP)?,
            Fault::AgentRestarted => {
                self.agents[victim].stop()?;
                // As long as a service manager takes, and longer than its absence takes to be noticed.
                std::thread::sleep(LAST);
                // Its first check takes time, during which it must not withdraw its offer.
                self.masters[victim].set_slow(true)?;
                self.agents[victim].run()?;
            }
            Fault::AgentRestartedUnanswered => {
                self.agents[victim].stop()?;
                std::thread::sleep(LAST);
                self.masters[victim].hang()?;
                self.agents[victim].run()?;
                std::thread::sleep(UNANSWERED);
                self.masters[victim].go_on()?;
            }
            Fault::Drained => drop(self.agents[victim].cli(&["drain"])?.ok()?),
            // On the worker: no master is better than another, and all must be kept.
            Fault::Loss => {
                act.faulty = [true; MASTERS];
                worker.loss(LOSS)?;
            }
            Fault::Rolling => {
                act.faulty = [true; MASTERS];
                for i in 0..MASTERS {
                    self.masters[i].stop()?;
                    std::thread::sleep(ROLL.1);
                    self.masters[i].start_again(self.lab.node(i))?;
                    if i + 1 < MASTERS {
                        std::thread::sleep(ROLL.0 - ROLL.1);
                    }
                }
            }
            Fault::AllDead => {
                act.faulty = [true; MASTERS];
                for master in &mut self.masters {
                    master.kill()?;
                }
                std::thread::sleep(ALL_DEAD);
                self.masters[victim].start_again(node)?;
                act.moment = Instant::now();
            }
            Fault::SlowReady => self.masters[victim].set_slow(true)?,
            Fault::SlowHello => self.slow_hello(victim)?,
        }
        Ok(act)
    }

    /// Undoes it, and waits until the worker sees all masters ready.
    ///
    /// # Errors
    /// It does not.
    pub fn undo(&mut self, fault: Fault, victim: usize) -> Result<()> {
        let (node, worker) = (self.lab.node(victim), self.lab.node(MASTERS));
        match fault {
            Fault::PowerCut => node.power_on()?,
            Fault::Kill => self.masters[victim].start_again(node)?,
            Fault::Hang => self.masters[victim].go_on()?,
            Fault::Frozen => {
                self.agents[victim].process()?.signal(Signal::CONT)?;
                self.masters[victim].go_on()?;
            }
            Fault::Stopping => self.refuse(victim, false)?,
            Fault::CutToWorker | Fault::CutFromWorker => node.heal()?,
            Fault::AgentKilled => self.agents[victim].run()?,
            Fault::AgentFrozen => self.agents[victim].process()?.signal(Signal::CONT)?,
            Fault::Drained => drop(self.agents[victim].cli(&["undrain"])?.ok()?),
            Fault::Loss => worker.no_loss()?,
            Fault::AgentRestarted => self.masters[victim].set_slow(false)?,
            Fault::Rolling | Fault::AgentRestartedUnanswered => {}
            Fault::AllDead => {
                for i in (0..MASTERS).filter(|i| *i != victim) {
                    self.masters[i].start_again(self.lab.node(i))?;
                }
            }
            Fault::SlowReady => self.masters[victim].set_slow(false)?,
            Fault::SlowHello => {
                self.lab.node(victim).exec(&["nft", "delete table ip slow-hello"])?.ok()?;
                self.relay = None;
            }
        }
        self.wait_until_ready()
    }

    /// Refuses new connections to a master, as a closed port does, and leaves existing ones alone.
    fn refuse(&self, victim: usize, on: bool) -> Result<()> {
        let port = self.masters[victim].address.port();
        let rule = format!(
            "table inet stopping {{ chain in {{ type filter hook input priority 0; \
             tcp dport {port} tcp flags & (syn | ack) == syn reject with tcp reset; }}; }}"
        );
        let rules = if on { rule.as_str() } else { "delete table inet stopping" };
        self.lab.node(victim).exec(&["nft", rules])?.ok().map(drop)
    }

    /// Leads new connections to a master through a relay, which passes on nothing for a while. Its own are exempt.
    fn slow_hello(&mut self, victim: usize) -> Result<()> {
        let (node, master) = (self.lab.node(victim), self.masters[victim].address);
        let relay = Haproxy {
            name: "slow-hello",
            listen: SocketAddr::from((Ipv4Addr::UNSPECIFIED, RELAY)),
            servers: vec![master],
            maxconn: 1_000,
            defaults: "",
            server: &format!(
                "source 127.0.0.1\n    tcp-request inspect-delay {}\n    tcp-request content accept if WAIT_END",
                HELLO.as_millis()
            ),
        };
        self.relay = Some(relay.start(node)?);
        let lead = format!(
            "ip saddr != 127.0.0.1 tcp dport {} tcp flags & (syn | ack) == syn redirect to :{RELAY}",
            master.port()
        );
        let chain = |hook: &str| format!("chain {hook} {{ type nat hook {hook} priority -100; {lead}; }}; ");
        let rules = format!("table ip slow-hello {{ {}{}}}", chain("prerouting"), chain("output"));
        node.exec(&["nft", &rules])?.ok().map(drop)
    }

    /// Whether a node has taken a master for down since a time.
    ///
    /// # Errors
    /// It does not respond.
    pub fn was_down(&self, node: usize, master: usize, since: UnixMs) -> Result<bool> {
        let agent = self.agents.get(node).context("no such node")?;
        let subject = format!("kube-api/n{master}");
        let mut all = events(agent, since)?.into_iter();
        Ok(all.any(|one| one.kind == EventKind::Backend && one.subject == subject && one.to == "down"))
    }

    /// A whole row: clients for `before`, the fault, clients for `after`. The fault hits the master that
    /// holds most, so that every proxy has held connections on it. Returns what the clients of each target
    /// noticed, and the faulty master; the fault stays in force.
    ///
    /// # Errors
    /// The stage's, or a proxy holds nothing on the master that every other holds something on.
    pub fn row(
        &mut self,
        fault: Fault,
        plan: &Plan,
        before: Duration,
        after: Duration,
    ) -> Result<(Vec<Noticed>, usize)> {
        let (node, ca) = (self.lab.node(MASTERS), self.lab.certs().ca.clone());
        let (records, (act, victim, end)) = load::during(node, &ca, plan, |seen| {
            let (victim, _) = eventually("held connections are open", SOON, || victim(seen, plan))?;
            std::thread::sleep(before);
            let act = self.act(fault, victim)?;
            if NOT_READY_FAULTS.contains(&fault) {
                let others = ["not-ready", "suspect", "down"];
                self.worker().wait_for_backend(&format!("n{victim}"), &others, NOT_READY)?;
            }
            std::thread::sleep((act.moment + after).saturating_duration_since(Instant::now()).max(LAST));
            Ok((act, victim, Instant::now()))
        })?;
        Ok((records.iter().map(|record| Noticed::of(record, &act, end)).collect(), victim))
    }
}

/// The master with held connections of all targets, and most of the one that has fewest.
fn victim(seen: &Seen, plan: &Plan) -> Result<usize> {
    let records = seen.records();
    let open = |record: &Record| record.held.iter().all(|beats| !beats.is_empty());
    ensure!(records.iter().all(open), "not all of them have been answered");
    let fewest = |i: &usize| records.iter().map(|record| record.held_on(&format!("n{i}"))).min();
    let best = (0..MASTERS).max_by_key(fewest).context("no masters")?;
    if plan.held > 0 && fewest(&best) == Some(0) {
        bail!("no master has held connections of every proxy");
    }
    Ok(best)
}

/// What the clients of one proxy noticed of a fault.
#[derive(Debug, Clone, Default)]
pub struct Noticed {
    /// New connections from the fault on.
    pub tries: usize,
    /// Those that got no answer.
    pub failed: usize,
    /// Those that took longer than [`SLOW`], failed ones not counted.
    pub slow: usize,
    /// The median before the fault.
    pub usual: Duration,
    /// The longest that one took, failed or not.
    pub worst: Duration,
    /// From the fault to the beginning of the last one that failed or was slow.
    pub trouble: Duration,
    /// Held connections on the faulty master.
    pub held: usize,
    /// The longest that one of them was without an answer.
    pub silence: Duration,
    /// It lasted until the end.
    pub still_silent: bool,
    /// How many of those were closed.
    pub resets: usize,
    /// How many of the others were closed.
    pub elsewhere: usize,
    /// Why new ones failed, the first reason.
    pub why: Option<String>,
}

impl Noticed {
    fn of(record: &Record, act: &Act, end: Instant) -> Noticed {
        let mut noticed = Noticed::default();
        let (before, after): (Vec<&Try>, Vec<&Try>) =
            record.tries.iter().partition(|one| one.at + one.took < act.moment);
        let mut usual: Vec<Duration> = before.iter().map(|one| one.took).collect();
        usual.sort_unstable();
        noticed.usual = usual.get(usual.len() / 2).copied().unwrap_or_default();
        noticed.tries = after.len();
        for one in after {
            noticed.worst = noticed.worst.max(one.took);
            match &one.result {
                Ok(_) if one.took <= SLOW => continue,
                Ok(_) => noticed.slow += 1,
                Err(why) => {
                    noticed.failed += 1;
                    noticed.why.get_or_insert_with(|| why.clone());
                }
            }
            noticed.trouble = noticed.trouble.max(one.at.saturating_duration_since(act.moment));
        }
        for beats in &record.held {
            noticed.held_one(beats, act, end);
        }
        noticed
    }

    /// Adds one held connection and its replacements.
    fn held_one(&mut self, beats: &[Beat], act: &Act, end: Instant) {
        let at_fault = beats.partition_point(|beat| beat.at < act.moment);
        let mut on = load::last_answer(&beats[..at_fault]).unwrap_or_default();
        let was_on_it = act.is_faulty(on);
        self.held += usize::from(was_on_it);
        let (mut last, mut longest) = (act.moment, Duration::ZERO);
        for beat in beats[at_fault..].iter().filter(|beat| beat.at <= end) {
            match &beat.what {
                What::Answer(master) => {
                    longest = longest.max(beat.at - last);
                    (last, on) = (beat.at, master.as_str());
                }
                What::Lost(_) if act.is_faulty(on) => self.resets += 1,
                What::Lost(_) => self.elsewhere += 1,
            }
        }
        if !was_on_it {
            return;
        }
        let open = end.saturating_duration_since(last);
        // Between two requests every connection is silent.
        let still = open > longest && open > load::BEAT * 4;
        if still || longest > self.silence {
            self.silence = longest.max(open);
            self.still_silent = still;
        }
    }

    /// Merges a second run of the same row: counts are summed, the longest stays.
    pub fn merge(&mut self, other: Noticed) {
        let silent = if other.silence > self.silence { other.still_silent } else { self.still_silent };
        *self = Noticed {
            tries: self.tries + other.tries,
            failed: self.failed + other.failed,
            slow: self.slow + other.slow,
            usual: self.usual.max(other.usual),
            worst: self.worst.max(other.worst),
            trouble: self.trouble.max(other.trouble),
            held: self.held + other.held,
            silence: self.silence.max(other.silence),
            still_silent: silent,
            resets: self.resets + other.resets,
            elsewhere: self.elsewhere + other.elsewhere,
            why: self.why.take().or(other.why),
        };
    }

    /// Column heads for [`Noticed`].
    pub const HEAD: &str = "  new failed >0.5s usual s worst s trouble s held silence s reset elsewhere";
}

impl fmt::Display for Noticed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let open = if self.still_silent { '+' } else { ' ' };
        write!(
            f,
            "{:>5} {:>6} {:>5} {:>7.3} {:>7.2} {:>9.1} {:>4} {:>8.1}{open} {:>5} {:>9}",
            self.tries,
            self.failed,
            self.slow,
            self.usual.as_secs_f64(),
            self.worst.as_secs_f64(),
            self.trouble.as_secs_f64(),
            self.held,
            self.silence.as_secs_f64(),
            self.resets,
            self.elsewhere,
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    #[test]
    fn what_the_clients_saw_is_summarized() {
        let start = Instant::now();
        let at = |ms: u32| start + MS * ms;
        let one = |ms, took: u32, result: Result<&str, &str>| Try {
            at: at(ms),
            took: MS * took,
            result: result.map(str::to_owned).map_err(str::to_owned),
        };
        let answer = |ms, master: &str| Beat { at: at(ms), what: What::Answer(master.to_owned()) };
        let lost = |ms| Beat { at: at(ms), what: What::Lost(String::new()) };
        let record = Record {
            tries: vec![
                one(0, 5, Ok("n1")),
                one(100, 7, Ok("n1")),
                one(990, 600, Ok("n2")),
                one(1500, 900, Err("reset")),
                one(3000, 5, Ok("n2")),
            ],
            held: vec![
                vec![answer(900, "n1"), lost(2400), answer(2500, "n2"), lost(4000), answer(4100, "n2")],
                vec![answer(900, "n2"), answer(1100, "n2")],
                vec![answer(900, "n1")],
            ],
        };
        let act = Act { moment: at(1000), faulty: [false, true, false] };
        let noticed = Noticed::of(&record, &act, at(4500));
        assert_eq!((noticed.tries, noticed.failed, noticed.slow), (3, 1, 1));
        assert_eq!((noticed.usual, noticed.worst, noticed.trouble), (MS * 7, MS * 900, MS * 500));
        assert_eq!((noticed.held, noticed.resets, noticed.elsewhere), (2, 1, 1));
        assert_eq!((noticed.silence, noticed.still_silent), (MS * 3500, true));
        assert!(Noticed::HEAD.len() < 85 && format!("{noticed}").len() <= Noticed::HEAD.len() + 1);
    }
}
