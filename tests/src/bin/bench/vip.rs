//! `vip`: the owner of an address fails in every way, and what a client notices: ours compared with
//! keepalived as its users configure it.
//!
//! Each contender has labs of its own, all at the same time: they mostly wait. A failed run is reported, and
//! the next starts in a fresh lab, so that nothing of it is left.

use std::collections::VecDeque;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use tests::lab::Lab;
use tests::mesh::with_agents;
use tests::peers::require;
use tests::vip::{Agents, Contender, Keepalived, NODES, Outcome, Row, Scenario, Stage, Version};

use super::{masters, option};

/// Failed runs before a contender is dropped.
const FAILURES: usize = 5;

/// The contenders.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Who {
    Agent,
    V2,
    V3,
}

impl Who {
    const ALL: [Who; 3] = [Who::Agent, Who::V2, Who::V3];

    fn word(self) -> &'static str {
        match self {
            Who::Agent => "agent",
            Who::V2 => "vrrp2-1s",
            Who::V3 => "vrrp3-0.1s",
        }
    }
}

/// Remaining work of one contender, and its results.
struct Work {
    who: Who,
    todo: VecDeque<Scenario>,
    found: Vec<(Row, Outcome)>,
    failures: Vec<String>,
}

pub(crate) fn vip(arguments: &[String]) -> Result<()> {
    require(&[("keepalived", "keepalived"), ("curl", "curl")])?;
    let mut arguments = arguments.to_vec();
    let runs = option(&mut arguments, "--runs", 20)? as usize;
    let labs = option(&mut arguments, "--labs", 2)? as usize;
    let (scenarios, who) = chosen(&arguments)?;
    println!(
        "VIP on one Ethernet segment, an echo and an ARP question every 10 ms, {runs} runs; \
         min / median / max\n\
         outage: the longest without an answer; takeover: until another node answers; two: samples that two\n\
         nodes answered; gone: until the old owner answered for the last time; all in ms\n"
    );
    let works: Vec<Mutex<Work>> = who
        .iter()
        .map(|who| {
            // One of each in turn, so that a temporarily busy machine affects all.
            let todo = (0..runs).flat_map(|_| scenarios.clone()).collect();
            Mutex::new(Work { who: *who, todo, found: Vec::new(), failures: Vec::new() })
        })
        .collect();
    std::thread::scope(|scope| {
        for work in &works {
            for _ in 0..labs.max(1) {
                scope.spawn(|| work_off(work));
            }
        }
    });
    let works: Vec<Work> =
        works.into_iter().map(|work| work.into_inner().unwrap_or_else(PoisonError::into_inner)).collect();
    table(&scenarios, &works);
    Ok(())
}

/// Scenarios and contenders by name; all without names.
fn chosen(arguments: &[String]) -> Result<(Vec<Scenario>, Vec<Who>)> {
    let (mut scenarios, mut who) = (Vec::new(), Vec::new());
    for word in arguments.iter().filter(|word| *word != "--only") {
        if let Some(one) = Scenario::ALL.into_iter().find(|one| one.word() == word) {
            scenarios.push(one);
        } else if let Some(one) = Who::ALL.into_iter().find(|one| one.word() == word) {
            who.push(one);
        } else {
            let all = Scenario::ALL.map(Scenario::word).into_iter().chain(Who::ALL.map(Who::word));
            bail!("no scenario or contender \"{word}\"; there are: {}", all.collect::<Vec<_>>().join(" "));
        }
    }
    if scenarios.is_empty() {
        scenarios = Scenario::ALL.to_vec();
    }
    if who.is_empty() {
        who = Who::ALL.to_vec();
    }
    Ok((scenarios, who))
}

fn work_off(work: &Mutex<Work>) {
    while let Err(error) = in_lab(work) {
        let mut work = held(work);
        eprintln!("{}: {error:#}", work.who.word());
        let (first, last) = (error.to_string(), error.root_cause().to_string());
        work.failures.push(format!("{}: {last}", first.lines().next().unwrap_or_default()));
        if work.todo.is_empty() || work.failures.len() >= FAILURES {
            return;
        }
    }
}

fn held(work: &Mutex<Work>) -> MutexGuard<'_, Work> {
    work.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Sets up a stage, and runs the remaining work on it until it is done or something fails.
fn in_lab(work: &Mutex<Work>) -> Result<()> {
    let who = held(work).who;
    match who {
        Who::Agent => with_agents(Lab::bridge(NODES), |lab, agents| {
            let mut masters = masters(lab)?;
            all(&mut Stage::set(lab, &mut masters, &mut Agents::form(agents)?)?, work)
        }),
        Who::V2 | Who::V3 => {
            let lab = Lab::bridge(NODES)?;
            let mut masters = masters(&lab)?;
            let version = if who == Who::V2 { Version::V2 } else { Version::V3 };
            all(&mut Stage::set(&lab, &mut masters, &mut Keepalived::start(&lab, version)?)?, work)
        }
    }
}

fn all<C: Contender>(stage: &mut Stage<'_, C>, work: &Mutex<Work>) -> Result<()> {
    loop {
        let Some(next) = held(work).todo.pop_front() else { return Ok(()) };
        let found = stage.run(next).context(next.title())?;
        let mut work = held(work);
        for (row, outcome) in &found {
            eprintln!("{:<11}{:<21}{}", work.who.word(), row.title(), brief(outcome));
        }
        work.found.extend(found);
    }
}

fn ms(time: Duration) -> u128 {
    time.as_millis()
}

fn brief(one: &Outcome) -> String {
    let or = |time: Option<Duration>| time.map_or("-".to_owned(), |time| ms(time).to_string());
    format!(
        "lost {} outage {} takeover {} two {} gone {} moves {} owner {} watched {}",
        one.lost,
        ms(one.outage),
        or(one.takeover),
        one.by_two,
        or(one.gone),
        one.moves,
        one.owner.map_or("-".to_owned(), |i| format!("n{i}")),
        ms(one.watched),
    )
}

/// Minimum, median and maximum; a missing value is the largest, and marked.
fn spread(mut all: Vec<Option<u128>>) -> String {
    // None is the smallest for Ord, and has to be the largest here.
    all.sort_unstable_by_key(|one| (one.is_none(), *one));
    let word = |one: Option<&Option<u128>>| match one {
        Some(Some(one)) => one.to_string(),
        _ => "never".to_owned(),
    };
    format!("{:>5} {:>5} {:>5}", word(all.first()), word(all.get(all.len() / 2)), word(all.last()))
}

fn table(scenarios: &[Scenario], works: &[Work]) {
    println!(
        "{:<21}{:<11}{:>4}  {:<17}  {:<17}  {:<17}  {:<17}  {:<17}",
        "", "", "runs", "lost probes", "outage", "takeover", "two", "gone"
    );
    for row in scenarios.iter().flat_map(|one| one.rows()) {
        for (i, work) in works.iter().enumerate() {
            let all: Vec<&Outcome> =
                work.found.iter().filter(|(one, _)| *one == row).map(|(_, outcome)| outcome).collect();
            if all.is_empty() {
                continue;
            }
            let column = |applies: bool, value: &dyn Fn(&Outcome) -> Option<u128>| match applies {
                true => spread(all.iter().map(|one| value(one)).collect()),
                false => format!("{:>17}", "-"),
            };
            let one = row.scenario;
            println!(
                "{:<21}{:<11}{:>4}  {}  {}  {}  {}  {}",
                if i == 0 { row.title() } else { "" },
                work.who.word(),
                all.len(),
                column(true, &|one| Some(one.lost as u128)),
                column(true, &|one| Some(ms(one.outage))),
                column(one.moves(), &|one| one.takeover.map(ms)),
                column(true, &|one| Some(one.by_two as u128)),
                column(one.lingers(), &|one| one.gone.map(ms)),
            );
        }
    }
    for work in works {
        for failure in &work.failures {
            println!("a run of {} failed: {failure}", work.who.word());
        }
    }
}
