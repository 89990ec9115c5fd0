//! `scale`: many nodes that join at once, what they cost at rest, and how soon all notice a master that is cut, a core
//! member that is killed, and a master that starts again.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use tests::lab::{Lab, Signal};
use tests::mesh::{Agent, with_agents};
use tests::scale::{
    FalseAlarms, MASTERS, Restarted, cut, join_at_once, join_later, kill_core_member, master_back, now,
    restart_all, status,
};

use super::masters;
use super::usage::{cpu_seconds, memory, peak, traffic};

/// Time for all to see all.
const LIMIT: Duration = Duration::from_secs(90);

/// Between the last join and the measurement: a start costs more than rest.
const CALM: Duration = Duration::from_secs(15);

/// Time at rest.
const SPAN: Duration = Duration::from_secs(60);

/// The time for which a master is away, and is given to return.
const AWAY: Duration = Duration::from_secs(10);

/// Nodes of which `--trace` shows how they noticed the cut: of the fastest, the middle and the slowest so many each.
const SHOWN: usize = 4;

/// How long the masters have run when the others join: longer than a node that has just started is careful.
const BEFORE: Duration = Duration::from_secs(30);

/// `scale [--sizes N,N…] [--trace] [--restart]`.
pub(crate) fn scale(arguments: &[String]) -> Result<()> {
    let (flags, arguments): (Vec<String>, Vec<String>) =
        arguments.iter().cloned().partition(|one| one == "--trace" || one == "--restart");
    let (trace, restart) =
        (flags.iter().any(|one| one == "--trace"), flags.iter().any(|one| one == "--restart"));
    let sizes = match &arguments[..] {
        [] => "10,50,100",
        [name, sizes] if name == "--sizes" => sizes,
        other => anyhow::bail!("what is {other:?}?"),
    };
    let sizes: Vec<usize> = sizes.split(',').map(str::parse).collect::<Result<_, _>>()?;
    ensure!(sizes.iter().all(|size| *size > MASTERS), "more than {MASTERS} nodes");
    if restart {
        return sizes.into_iter().try_for_each(restarts);
    }
    println!(
        "{MASTERS} masters, all others join at once; false alarms are suspect/down of members and of backends, by \
         all nodes;\nat rest over {} s: kB/s out and in, CPU % of a core, MB resident/private (and the peak); a \
         master is cut and\nreturns: s until the median node and the last say so, and the last; an agent in the core \
         is killed: s until the\nlast node has let it go, and says that it is down; a master is away and starts again: \
         s until the last has it ready.\nMedian node (not a master), most of a master:",
        SPAN.as_secs()
    );
    println!(
        "{:>5} | {:>12} {:>12} {:>12} | {:>11} {:>19} {:>19} | {:>11} | {:>9} {:>9} {:>15} | {:>11} | {:>12} {:>12} | {:>12} {:>12} | {:>14}",
        "nodes",
        "serve s",
        "all see s",
        "false alarms",
        "gossip kB/s",
        "all kB/s",
        "of a master",
        "CPU %",
        "MB",
        "most",
        "of a master",
        "false",
        "cut, down s",
        "back, ready s",
        "core, held s",
        "down s",
        "master back s"
    );
    sizes.into_iter().try_for_each(|size| one_size(size, trace))
}

/// All join a cluster whose masters have run for a while, all stop and start again, and all are killed and start again.
fn restarts(size: usize) -> Result<()> {
    with_agents(Lab::bridge(size), |lab, agents| {
        let _masters = masters(lab)?;
        for agent in agents.iter_mut() {
            agent.options = vec!["--iface".to_owned(), agent.node().interface.to_owned()];
        }
        let joined = join_later(agents, BEFORE, LIMIT)?;
        let alarms = FalseAlarms::between(agents, joined.began, now())?;
        println!(
            "{size} nodes join: all serve after {} s and see all after {} s; {alarms} false alarms",
            joined.serve.shown(),
            joined.all.shown()
        );
        for (what, signal) in [("stop", Signal::TERM), ("are killed", Signal::KILL)] {
            std::thread::sleep(CALM);
            let Restarted { all, alarms, mut events } = restart_all(agents, signal, LIMIT)?;
            events.sort_unstable();
            let median = events.get(events.len() / 2).copied().unwrap_or_default();
            let most = events.last().copied().unwrap_or_default();
            let workers = events.iter().map(|(_, workers)| *workers).max().unwrap_or_default();
            println!(
                "all {what} and start again: all see all after {} s; {alarms} false alarms; {} events on the median \
                 node, {} at most, of these {workers} at most about workers",
                all.shown(),
                median.0,
                most.0,
            );
        }
        Ok(())
    })
}

fn one_size(size: usize, trace: bool) -> Result<()> {
    with_agents(Lab::bridge(size), |lab, agents| {
        let _masters = masters(lab)?;
        for agent in agents.iter_mut() {
            agent.options = vec!["--iface".to_owned(), agent.node().interface.to_owned()];
        }
        let joined = join_at_once(agents, LIMIT)?;
        let until = now();
        let ended = agents.iter_mut().filter_map(|agent| (!agent.is_running()).then(|| agent.name()));
        let ended: Vec<&str> = ended.collect();
        ensure!(ended.is_empty(), "the agents of {ended:?} have ended");
        let joining = FalseAlarms::between(agents, joined.began, until)?;
        std::thread::sleep(CALM);
        let (since, before) = (now(), counts(agents)?);
        std::thread::sleep(SPAN);
        let after = counts(agents)?;
        let resting = FalseAlarms::between(agents, since, now())?;
        let usage: Vec<Usage> =
            before.iter().zip(&after).map(|(before, after)| Usage::of(before, after)).collect();
        let (master, other) = usage.split_at_checked(MASTERS).context("no masters")?;
        let noticed = cut(agents, MASTERS - 1, AWAY)?;
        let killed = kill_core_member(agents, LIMIT)?;
        std::thread::sleep(CALM);
        let returned = master_back(agents, MASTERS - 1, AWAY)?;
        let rate = |usage: fn(&Usage) -> f64| (median(other, usage), most(master, usage));
        let (gossip, cpu) = (rate(|one| one.gossip), rate(|one| one.cpu));
        let (out, into) = (rate(|one| one.out), rate(|one| one.into));
        let mb = |pick: Pick, of: &[Usage]| {
            format!("{:.1}/{:.1}", pick(of, |one| one.resident), pick(of, |one| one.private))
        };
        println!(
            "{size:>5} | {:>12} {:>12} {:>12} | {:>11} {:>19} {:>19} | {:>11} | {:>9} {:>9} {:>15} | {:>11} | {:>12} {:>12} | {:>12} {:>12} | {:>14}",
            joined.serve.shown(),
            joined.all.shown(),
            joining,
            format!("{:.2} {:.2}", gossip.0, gossip.1),
            format!("{:.2} {:.2}", out.0, into.0),
            format!("{:.2} {:.2}", out.1, into.1),
            format!("{:.2} {:.2}", cpu.0, cpu.1),
            mb(median, other),
            mb(most, other),
            format!("{} ({:.1})", mb(most, master), most(master, |one| one.peak)),
            resting,
            noticed.down.median_and_last(),
            noticed.back.shown(),
            killed.held.shown(),
            killed.down.shown(),
            returned.shown(),
        );
        let traces = &noticed.traces;
        let middle = (traces.len() / 2).saturating_sub(SHOWN / 2);
        for (at, one) in traces.iter().enumerate().filter(|_| trace) {
            if at < SHOWN || (middle..middle + SHOWN).contains(&at) || at + SHOWN >= traces.len() {
                println!("      cut, {:>3}. of {}: {one}", at + 1, traces.len());
            }
        }
        Ok(())
    })
}

/// What a node has used since its start, and its memory.
struct Counts {
    gossip: u64,
    out: u64,
    into: u64,
    cpu: f64,
    resident: u64,
    private: u64,
    peak: u64,
}

fn counts(agents: &mut [Agent<'_>]) -> Result<Vec<Counts>> {
    let of = |agent: &mut Agent<'_>| {
        let gossip = status(agent)?.node.link.sent_gossip_bytes;
        let pid = agent.process()?.pid();
        let ((resident, private), (into, out)) = (memory(pid)?, traffic(pid, agent.node().interface)?);
        Ok(Counts { gossip, out, into, cpu: cpu_seconds(pid)?, resident, private, peak: peak(pid)? })
    };
    agents.iter_mut().map(of).collect()
}

/// What a node uses: kB/s, percent of a core, MB.
struct Usage {
    gossip: f64,
    out: f64,
    into: f64,
    cpu: f64,
    resident: f64,
    private: f64,
    peak: f64,
}

impl Usage {
    fn of(before: &Counts, after: &Counts) -> Usage {
        let rate = |before: u64, after: u64| after.saturating_sub(before) as f64 / 1e3 / SPAN.as_secs_f64();
        let mb = |kilobytes: u64| kilobytes as f64 * 1024.0 / 1e6;
        Usage {
            gossip: rate(before.gossip, after.gossip),
            out: rate(before.out, after.out),
            into: rate(before.into, after.into),
            cpu: (after.cpu - before.cpu) / SPAN.as_secs_f64() * 100.0,
            resident: mb(after.resident),
            private: mb(after.private),
            peak: mb(after.peak),
        }
    }
}

/// Picks one of what nodes use.
type Pick = fn(&[Usage], fn(&Usage) -> f64) -> f64;

fn sorted(of: &[Usage], usage: fn(&Usage) -> f64) -> Vec<f64> {
    let mut all: Vec<f64> = of.iter().map(usage).collect();
    all.sort_unstable_by(f64::total_cmp);
    all
}

fn median(of: &[Usage], usage: fn(&Usage) -> f64) -> f64 {
    sorted(of, usage).get(of.len() / 2).copied().unwrap_or_default()
}

fn most(of: &[Usage], usage: fn(&Usage) -> f64) -> f64 {
    sorted(of, usage).last().copied().unwrap_or_default()
}
