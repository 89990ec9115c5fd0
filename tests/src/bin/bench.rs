//! Measures what is promised in numbers: `cargo run --release -p tests --bin bench -- NAME`, as root, with
//! AGENT_BIN naming a release build (`deploy/build` prints its path).
//!
//! Never part of a test: machines differ, and a timed test only says how busy one was.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use tests::lab::{Lab, Master};
use tests::mesh::{Agent, GOSSIP, LISTENER, all_up, form, with_agents};

/// Time that rates are measured over.
const SPAN: Duration = Duration::from_secs(60);

/// Runs of what is timed.
const RUNS: usize = 10;

fn main() -> ExitCode {
    let name = std::env::args().nth(1).unwrap_or_default();
    let result = match name.as_str() {
        "join" => join(),
        "start" => start(),
        "idle" => idle(),
        "gossip" => gossip(),
        _ => Err(anyhow::anyhow!("there is no bench \"{name}\"; there are: join, start, idle, gossip")),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("bench: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn masters(lab: &Lab) -> Result<Vec<Master>> {
    (0..3).map(|i| lab.nginx_master(i)).collect()
}

/// Minimum, median and maximum, in milliseconds.
fn spread(mut times: Vec<Duration>) -> Result<String> {
    ensure!(!times.is_empty(), "nothing was measured");
    times.sort_unstable();
    let ms = |time: Duration| time.as_secs_f64() * 1e3;
    let (first, middle, last) = (times[0], times[times.len() / 2], times[times.len() - 1]);
    Ok(format!("min {:.0}  median {:.0}  max {:.0} ms", ms(first), ms(middle), ms(last)))
}

/// Waits until a master answers through this node's proxy. Plain HTTP to its TLS port: it says that this is
/// wrong, and that is an answer all the same.
fn until_served(agent: &Agent<'_>, began: Instant) -> Result<Duration> {
    agent.node().inside(|| {
        loop {
            if answers() {
                return Ok(began.elapsed());
            }
            ensure!(began.elapsed() < GOSSIP, "nothing serves after {GOSSIP:?}");
            std::thread::sleep(Duration::from_millis(1));
        }
    })
}

fn answers() -> bool {
    let ask = || -> std::io::Result<usize> {
        let mut stream = TcpStream::connect(LISTENER)?;
        stream.set_read_timeout(Some(Duration::from_secs(1)))?;
        stream.write_all(b"GET / HTTP/1.0\r\n\r\n")?;
        stream.read(&mut [0; 12])
    };
    ask().is_ok_and(|read| read > 0)
}

/// From the start of `agent join` to the first answer through the new node's listener.
fn join() -> Result<()> {
    with_agents(Lab::wireguard(5), |lab, agents| {
        let _masters = masters(lab)?;
        let (last, others) = agents.split_last_mut().context("no agents")?;
        let invite = form(others)?;
        others[0].wait_for_backend("n2", &["ready"], GOSSIP)?;
        let mut times = Vec::new();
        for _ in 0..RUNS {
            let began = Instant::now();
            last.begin_join(&invite)?;
            times.push(until_served(last, began)?);
            last.wait_until_asked()?;
            last.cli(&["leave"])?.ok()?;
            last.process()?.ended(Duration::from_secs(15))?;
        }
        println!("join to serving, 5 nodes over WireGuard, {RUNS} runs: {}", spread(times)?);
        Ok(())
    })
}

/// From the start of `agent run` to the first answer, with every other agent off.
fn start() -> Result<()> {
    with_agents(Lab::wireguard(5), |lab, agents| {
        let _masters = masters(lab)?;
        form(agents)?;
        for agent in agents.iter() {
            agent.wait_for_backend("n2", &["ready"], GOSSIP)?;
        }
        for agent in agents.iter_mut() {
            agent.kill()?;
        }
        let last = agents.last_mut().context("no agents")?;
        let mut times = Vec::new();
        for _ in 0..RUNS {
            let began = Instant::now();
            last.run()?;
            times.push(until_served(last, began)?);
            last.kill()?;
        }
        println!("start to serving from state, no other agent up, {RUNS} runs: {}", spread(times)?);
        Ok(())
    })
}

/// Clock ticks a second of /proc/PID/stat (USER_HZ, the same on every Linux).
const TICKS: f64 = 100.0;

fn cpu_seconds(pid: u32) -> Result<f64> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat"))?;
    let after = stat.rsplit_once(')').context("no name in stat")?.1;
    let fields: Vec<&str> = after.split_whitespace().collect();
    let ticks = |i: usize| -> Result<f64> { Ok(fields.get(i).context("a short stat")?.parse()?) };
    Ok((ticks(11)? + ticks(12)?) / TICKS)
}

/// Resident memory, and the part of it that no other process shares, in kilobytes.
fn memory(pid: u32) -> Result<(u64, u64)> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/smaps_rollup"))?;
    let sum = |names: &[&str]| -> u64 {
        let value = |line: &str| line.split_whitespace().nth(1).and_then(|number| number.parse::<u64>().ok());
        let named = |line: &&str| names.iter().any(|name| line.starts_with(name));
        text.lines().filter(named).filter_map(value).sum()
    };
    Ok((sum(&["Rss:"]), sum(&["Private_Clean:", "Private_Dirty:"])))
}

/// Memory and CPU of agents that have nothing to do but to watch.
fn idle() -> Result<()> {
    with_agents(Lab::wireguard(5), |lab, agents| {
        let _masters = masters(lab)?;
        form(agents)?;
        // What a start costs is not what idling costs.
        std::thread::sleep(Duration::from_secs(15));
        let mut pids = Vec::new();
        for agent in agents.iter_mut() {
            let pid = agent.process()?.pid();
            pids.push((agent.name(), pid, cpu_seconds(pid)?));
        }
        std::thread::sleep(SPAN);
        println!("idle, 5 nodes over WireGuard, 3 masters, over {} s:", SPAN.as_secs());
        println!("  node  resident kB  private kB  CPU % of a core");
        for (name, pid, before) in pids {
            let percent = (cpu_seconds(pid)? - before) / SPAN.as_secs_f64() * 100.0;
            let (resident, private) = memory(pid)?;
            println!("  {name:<4}  {resident:>11}  {private:>10}  {percent:>15.2}");
        }
        Ok(())
    })
}

/// What a node's link sends, by the size of the cluster.
fn gossip() -> Result<()> {
    println!("gossip, bytes a second sent by each node (UDP payload with seal), over {} s:", SPAN.as_secs());
    for size in [3, 10, 30] {
        with_agents(Lab::bridge(size), |_, agents| {
            for agent in agents.iter_mut() {
                // No VPN in this lab, so the interface has to be named.
                agent.options = vec!["--log-level".to_owned(), "warn".to_owned()];
            }
            let (first, others) = agents.split_first_mut().context("no agents")?;
            let interface = first.node().interface;
            let invite = first.init_with(&["--iface", interface])?;
            for other in others.iter_mut() {
                other.join(&invite)?;
            }
            all_up(agents)?;
            std::thread::sleep(Duration::from_secs(10));
            let before = agents.iter().map(sent).collect::<Result<Vec<u64>>>()?;
            std::thread::sleep(SPAN);
            let after = agents.iter().map(sent).collect::<Result<Vec<u64>>>()?;
            let mut rates: Vec<u64> =
                before.iter().zip(&after).map(|(before, after)| (after - before) / SPAN.as_secs()).collect();
            rates.sort_unstable();
            if rates.is_empty() {
                bail!("nothing was measured");
            }
            println!(
                "  {size:>2} nodes: min {}  median {}  max {}",
                rates[0],
                rates[rates.len() / 2],
                rates[rates.len() - 1]
            );
            Ok(())
        })?;
    }
    Ok(())
}

fn sent(agent: &Agent<'_>) -> Result<u64> {
    let text = agent.cli(&["status", "--json"])?.ok()?;
    let status: serde_json::Value = serde_json::from_str(&text)?;
    status["node"]["link"]["sent_bytes"].as_u64().context("status tells no sent_bytes")
}
