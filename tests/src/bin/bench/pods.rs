//! `pods`: a pod keeps connecting to the Service `kubernetes` while a master loses power, hangs, is killed and comes
//! back: by the node-local address, and beside it by the masters' own addresses, from which a dead master is removed
//! after 20 s, as apiservers do.
//!
//! The rules are written by hand: `tests::pods`. With real apiservers nothing is run here.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use tests::lab::{Lab, Master};
use tests::load::{self, Plan, Record};
use tests::mesh::{Agent, GOSSIP, form_with, with_agents};
use tests::pods::{MASTERS as DIRECT, NODE_LOCAL, attach};
use tests::wait::eventually;

use super::{masters, option};

/// How many masters there are; the worker and its pod follow.
const MASTERS: usize = 3;
const WORKER: usize = 3;
const POD: usize = 4;

/// The master that fails.
const VICTIM: usize = 1;

/// The node-local address.
const ADDRESS: &str = "10.92.91.50";

/// New connections a second by each way, and connections held by each.
const PER_SECOND: u32 = 25;
const HELD: usize = 6;

/// How long a client waits.
const PATIENCE: Duration = Duration::from_secs(10);

/// Before an accident, and after the victim is back.
const BEFORE: Duration = Duration::from_secs(2);
const BACK: Duration = Duration::from_secs(5);

/// When apiservers remove a dead master from the endpoints: 19.5 to 20.2 s were measured on real ones.
const REMOVED: Duration = Duration::from_secs(20);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Accident {
    PowerCut,
    Hang,
    Kill,
}

const ROWS: [(Accident, &str); 3] =
    [(Accident::PowerCut, "power cut"), (Accident::Hang, "hang"), (Accident::Kill, "killed")];

const WHO: [&str; 2] = ["node-local", "masters' own"];

/// What one way's clients noticed of an accident and of the victim's return.
#[derive(Debug, Clone, Copy)]
struct Noticed {
    tries: usize,
    failed: usize,
    slow: usize,
    slowest: Duration,
    /// The longest silence of a held connection, with its replacement.
    silent: Duration,
}

impl Noticed {
    fn of(record: &Record, from: Instant, until: Instant) -> Noticed {
        let tries = || record.tries.iter().filter(|one| one.at + one.took >= from);
        let took = || tries().map(|one| one.took);
        let silent = record.held.iter().map(|beats| {
            let answers = beats.iter().filter(|beat| matches!(beat.what, load::What::Answer(_)));
            let mut times: Vec<Instant> = answers.map(|beat| beat.at).filter(|at| *at >= from).collect();
            times.insert(0, from);
            times.push(until);
            times.windows(2).map(|two| two[1].saturating_duration_since(two[0])).max().unwrap_or_default()
        });
        Noticed {
            tries: tries().count(),
            failed: tries().filter(|one| one.result.is_err()).count(),
            slow: took().filter(|took| *took > Duration::from_millis(500)).count(),
            slowest: took().max().unwrap_or_default(),
            silent: silent.max().unwrap_or_default(),
        }
    }
}

pub(crate) fn pods(arguments: &[String]) -> Result<()> {
    let mut arguments = arguments.to_vec();
    let runs = option(&mut arguments, "--runs", 3)? as usize;
    let after = Duration::from_secs(option(&mut arguments, "--after", 25)?);
    ensure!(after > REMOVED, "--after is more than {} s, when a dead master is removed", REMOVED.as_secs());
    println!(
        "a pod behind rules written by hand, {PER_SECOND} new connections a second and {HELD} held by each way; one \
         of three\nTLS masters is away for {} s and comes back, {runs} runs: median (highest)\n",
        after.as_secs()
    );
    let mut found: Vec<Vec<[Noticed; 2]>> = vec![Vec::new(); ROWS.len()];
    for _ in 0..runs {
        run(after, &mut found)?;
    }
    println!(
        "{:<11}{:<14}{:>7}{:>11}{:>13}{:>18}{:>20}",
        "", "", "tries", "failed", "over 0.5 s", "slowest, ms", "held silent, ms"
    );
    for ((_, title), all) in ROWS.iter().zip(&found) {
        for (i, who) in WHO.iter().enumerate() {
            let column = |value: &dyn Fn(&Noticed) -> u128| {
                let mut all: Vec<u128> = all.iter().map(|one| value(&one[i])).collect();
                all.sort_unstable();
                let at = |i: usize| all.get(i).copied().unwrap_or_default();
                format!("{} ({})", at(all.len() / 2), at(all.len().saturating_sub(1)))
            };
            let tries: usize = all.iter().map(|one| one[i].tries).sum();
            println!(
                "{:<11}{who:<14}{tries:>7}{:>11}{:>13}{:>18}{:>20}",
                if i == 0 { title } else { "" },
                column(&|one| one.failed as u128),
                column(&|one| one.slow as u128),
                column(&|one| one.slowest.as_millis()),
                column(&|one| one.silent.as_millis()),
            );
        }
    }
    println!("\nnot run: real kube-apiservers and kube-proxy; this bench starts none");
    Ok(())
}

fn own(lab: &Lab, without: Option<usize>) -> Vec<SocketAddr> {
    let all = (0..MASTERS).filter(|i| Some(*i) != without);
    all.map(|i| SocketAddr::new(lab.node(i).mesh_ip(), 6443)).collect()
}

/// All accidents once, one after the other in one lab.
fn run(after: Duration, found: &mut [Vec<[Noticed; 2]>]) -> Result<()> {
    with_agents(Lab::wireguard(POD + 1), |lab, agents| {
        let mut masters = masters(lab)?;
        let (agents, _) = agents.split_at_mut(POD);
        form_with(agents, MASTERS)?;
        agents[0].cli(&["set", &format!("node-local={ADDRESS}")])?.ok()?;
        let host = lab.node(WORKER);
        attach(host, lab.node(POD))?;
        NODE_LOCAL.lead(host, &[format!("{ADDRESS}:16443").parse()?])?;
        for ((accident, title), all) in ROWS.into_iter().zip(found.iter_mut()) {
            DIRECT.lead(host, &own(lab, None))?;
            settle(lab, &agents[WORKER]).with_context(|| format!("before: {title}"))?;
            let noticed = row(lab, &mut masters, accident, after).context(title)?;
            eprintln!("{title:<11}{noticed:?}");
            all.push(noticed);
        }
        Ok(())
    })
}

/// Waits until the worker sees all masters, and the pod reaches both Services.
fn settle(lab: &Lab, worker: &Agent<'_>) -> Result<()> {
    for i in 0..MASTERS {
        worker.wait_for_backend(&format!("n{i}"), &["ready"], GOSSIP)?;
    }
    for service in [NODE_LOCAL, DIRECT] {
        let url = format!("https://{}/who", service.v4());
        eventually("the pod reaches it", GOSSIP, || {
            lab.node(POD).exec(&["curl", "-sSfk", "-m", "2", &url])?.ok()
        })?;
    }
    Ok(())
}

fn row(lab: &Lab, masters: &mut [Master], accident: Accident, after: Duration) -> Result<[Noticed; 2]> {
    let targets = vec![NODE_LOCAL.v4(), DIRECT.v4()];
    let plan = Plan { targets, per_second: PER_SECOND, held: HELD, patience: PATIENCE };
    let (pod, ca, host) = (lab.node(POD), lab.certs().ca.clone(), lab.node(WORKER));
    let victim = lab.node(VICTIM);
    let (records, (from, until)) = load::during(pod, &ca, &plan, |_| {
        std::thread::sleep(BEFORE);
        let from = Instant::now();
        match accident {
            Accident::PowerCut => victim.power_cut()?,
            Accident::Hang => masters[VICTIM].hang()?,
            Accident::Kill => masters[VICTIM].kill()?,
        }
        std::thread::sleep(REMOVED);
        DIRECT.lead(host, &own(lab, Some(VICTIM)))?;
        std::thread::sleep(after - REMOVED);
        match accident {
            Accident::PowerCut => victim.power_on()?,
            Accident::Hang => masters[VICTIM].go_on()?,
            Accident::Kill => masters[VICTIM].start_again(victim)?,
        }
        std::thread::sleep(BACK);
        Ok((from, Instant::now()))
    })?;
    let [ours, theirs] = records.as_slice() else { anyhow::bail!("two records") };
    Ok([ours, theirs].map(|record| Noticed::of(record, from, until)))
}
