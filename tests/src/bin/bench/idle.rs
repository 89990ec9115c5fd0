//! `idle`, `vip-idle` and `gossip`: the cost of idle agents.

use std::net::TcpListener;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use tests::lab::Lab;
use tests::mesh::{Agent, GOSSIP, form, form_by, with_agents};
use tests::vip::vip;
use tests::wait::eventually;

use super::usage::{memory, threads};
use super::{masters, option};

/// Duration of a rate measurement.
const SPAN: Duration = Duration::from_secs(60);

/// As many as a large installation has.
const VIPS: usize = 4;

/// Memory and CPU of idle agents.
pub(crate) fn idle(arguments: &[String]) -> Result<()> {
    let (span, all) = (span(arguments)?, !arguments.iter().any(|one| one == "--segment"));
    if all {
        with_agents(Lab::wireguard(5), |lab, agents| {
            let _masters = masters(lab)?;
            form(agents)?;
            costs("idle, 5 nodes over WireGuard, 3 masters", agents, span)
        })?;
    }
    with_agents(Lab::bridge(10), |lab, agents| {
        let _masters = masters(lab)?;
        let interface = agents[0].node().interface;
        form_by(agents, 3, &["--iface", interface])?;
        costs("idle, 10 nodes on a segment, 3 masters", agents, span)
    })
}

/// `--seconds`.
fn span(arguments: &[String]) -> Result<Duration> {
    option(&mut arguments.to_vec(), "--seconds", SPAN.as_secs()).map(Duration::from_secs)
}

/// The same on a segment, without and with virtual IPs.
pub(crate) fn vips(arguments: &[String]) -> Result<()> {
    let span = span(arguments)?;
    let nodes = option(&mut arguments.to_vec(), "--nodes", 10)?;
    with_agents(Lab::bridge(usize::try_from(nodes)?), |lab, agents| {
        let _masters = masters(lab)?;
        for agent in agents.iter_mut() {
            agent.options = vec!["--iface".to_owned(), agent.node().interface.to_owned()];
        }
        form_by(agents, 3, &[])?;
        costs(&format!("idle, {nodes} nodes on a segment, 3 masters, no VIP"), agents, span)?;
        let all: Vec<String> = (0..VIPS).map(|i| format!("10.91.0.{}", 240 + i)).collect();
        agents[0].cli(&["set", &format!("vip={}", all.join(","))])?.ok()?;
        eventually("each has an owner", GOSSIP, || {
            all.iter().try_for_each(|one| vip(&agents[0], one)?.owner.context("none").map(drop))
        })?;
        costs(&format!("the same with {VIPS} VIPs"), agents, span)
    })
}

fn costs(title: &str, agents: &mut [Agent<'_>], span: Duration) -> Result<()> {
    // A start costs more than idling.
    std::thread::sleep(Duration::from_secs(15));
    let mut before = Vec::new();
    for agent in agents.iter_mut() {
        let pid = agent.process()?.pid();
        before.push((agent.name(), pid, threads(pid)?));
    }
    std::thread::sleep(span);
    println!("{title}, over {} s; of a core in %, and wake-ups/s, in all and by thread:", span.as_secs());
    println!(
        "  node  resident kB  private kB      %  wake-ups/s  main            vip             proxy and others"
    );
    for (name, pid, before) in before {
        let (resident, private) = memory(pid)?;
        let mut of = [(0.0, 0.0); 3];
        for (thread, used) in threads(pid)? {
            let was = before.get(&thread).copied().unwrap_or_default();
            let one = &mut of[match thread.1.as_str() {
                "tokio-rt-worker" | "tokio-runtime-w" | "agent" => 0,
                "vip" => 1,
                _ => 2,
            }];
            one.0 += (used.seconds - was.seconds) / span.as_secs_f64() * 100.0;
            one.1 += (used.wakeups - was.wakeups) as f64 / span.as_secs_f64();
        }
        let all = of.iter().fold((0.0, 0.0), |sum, one| (sum.0 + one.0, sum.1 + one.1));
        let cells = of.map(|(percent, rate)| format!("{percent:>6.3} {rate:>6.1}/s")).join("  ");
        println!("  {name:<4}  {resident:>11}  {private:>10}  {:>5.3}  {:>10.1}  {cells}", all.0, all.1);
    }
    Ok(())
}

/// Traffic of a node's transport by the size of the cluster: at rest, and while one node's record changes
/// once per second.
pub(crate) fn gossip() -> Result<()> {
    println!("bytes a second sent by each node (UDP payload with seal), over {} s:", SPAN.as_secs());
    for size in [3, 10, 30] {
        with_agents(Lab::bridge(size), |lab, agents| {
            for agent in agents.iter_mut() {
                agent.options = vec!["--log-level".to_owned(), "warn".to_owned()];
            }
            let first = agents.first_mut().context("no agents")?;
            let config = lab.dir().join("flipping.toml");
            std::fs::write(&config, FLIPPING)?;
            first.options.extend(["--config".to_owned(), config.to_string_lossy().into_owned()]);
            // No VPN in this lab, so the interface has to be named.
            let (node, interface) = (first.node(), first.node().interface);
            form_by(agents, 3, &["--iface", interface])?;
            std::thread::sleep(Duration::from_secs(10));
            rates(&format!("{size:>2} nodes"), agents, || {
                std::thread::sleep(SPAN);
                Ok(())
            })?;
            rates(&format!("{size:>2} nodes, a change a second"), agents, || {
                node.inside(|| {
                    let mut open = None;
                    for _ in 0..SPAN.as_secs() {
                        open = match open {
                            None => Some(TcpListener::bind((node.mesh_ip(), FLIPPING_PORT))?),
                            Some(_) => None,
                        };
                        std::thread::sleep(Duration::from_secs(1));
                    }
                    Ok(())
                })
            })?;
            let events = agents.first().context("no agents")?.cli(&["events", "--since", "1h"])?.ok()?;
            println!("    changes: {}", events.matches("check flipping").count());
            Ok(())
        })?;
    }
    Ok(())
}

/// A service of the first node whose state follows its port within a second.
const FLIPPING: &str = "[[service]]\nname = \"flipping\"\nlisten = []\nport = 7002\n\
    [service.check]\nkind = \"tcp\"\ninterval = \"250ms\"\nrise = 1\nfall = 1\n";
const FLIPPING_PORT: u16 = 7002;

/// Prints the traffic of each node per second while `happens` runs for the duration of a measurement.
fn rates(what: &str, agents: &[Agent<'_>], happens: impl FnOnce() -> Result<()>) -> Result<()> {
    let before = agents.iter().map(sent).collect::<Result<Vec<u64>>>()?;
    happens()?;
    let after = agents.iter().map(sent).collect::<Result<Vec<u64>>>()?;
    let mut rates: Vec<u64> =
        before.iter().zip(&after).map(|(before, after)| (after - before) / SPAN.as_secs()).collect();
    rates.sort_unstable();
    let (Some(least), Some(most)) = (rates.first(), rates.last()) else { bail!("nothing was measured") };
    println!("  {what}: min {least}  median {}  max {most}", rates[rates.len() / 2]);
    Ok(())
}

/// Bytes that a node's transport has sent since its start.
pub(crate) fn sent(agent: &Agent<'_>) -> Result<u64> {
    counted(agent, "sent_bytes")
}

/// Bytes that it has received.
pub(crate) fn received(agent: &Agent<'_>) -> Result<u64> {
    counted(agent, "received_bytes")
}

fn counted(agent: &Agent<'_>, name: &str) -> Result<u64> {
    let text = agent.cli(&["status", "--json"])?.ok()?;
    let status: serde_json::Value = serde_json::from_str(&text)?;
    status["node"]["link"][name].as_u64().with_context(|| format!("status tells no {name}"))
}
