//! `upgrade`: what clients notice when a proxy is replaced again and again, beside haproxy's and nginx' reload.
//!
//! The agent has two rows, for `agent upgrade` and, in a booted machine, for `systemctl restart`. Each is given the
//! same: connections of which a third carry messages and ten carry bulk both ways, new connections at a steady rate,
//! and a replacement every second. Bytes are compared. A minute after the last one, with the connections still held,
//! the processes and their memory are counted.

use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use tests::hold::{Held, Kind, Watch, echo_once, hold, serve};
use tests::lab::{Lab, Node, Proc, Signal};
use tests::machine::{form, with_machines};
use tests::mesh::{GOSSIP, binary, with_agents};
use tests::peers::{Haproxy, local, nginx_stream, require};
use tests::wait::eventually;

use super::proxy::{PEERS, start_agent};
use super::usage::{members, memory_of, run_seconds};
use super::{option, traffic};

/// Ports of the server and of the first proxy.
const SERVER: u16 = 7_001;
const PROXIES: u16 = 17_001;

/// Connections that carry bulk both ways, unless told otherwise.
const BULK: u64 = 10;

/// What each of them sends, in MB a second, unless told otherwise: 0 is all that it can, and then what is measured is
/// how two processors are shared among thirty threads that never sleep.
const BULK_RATE_MB: u64 = 10;

/// The rows, in their order; arguments may choose among them.
const ROWS: [&str; 4] = ["agent", "haproxy", "nginx", "restart"];

/// New connections are made by so many threads.
const MAKERS: u32 = 6;

/// How long each of them waits between two: 300 a second together.
const PACE: Duration = Duration::from_millis(20);

/// Time between two replacements.
const BETWEEN: Duration = Duration::from_secs(1);

/// What every row is given.
#[derive(Clone, Copy)]
struct Load {
    held: u64,
    /// Of these, in bulk.
    bulk: u64,
    /// Bytes a second of each in bulk; none: all that it can.
    bulk_rate: Option<u32>,
    /// Replacements.
    turns: u64,
    /// Wait before processes are counted.
    after: Duration,
}

/// What clients have seen of one proxy.
#[derive(Default)]
struct Seen {
    made: AtomicU64,
    failed: AtomicU64,
    worst_us: AtomicU64,
}

pub(crate) fn upgrade(arguments: &[String]) -> Result<()> {
    require(&PEERS)?;
    let mut arguments = arguments.to_vec();
    let held = option(&mut arguments, "--held", 2_000)?;
    let turns = option(&mut arguments, "--turns", 20)?;
    let bulk = option(&mut arguments, "--bulk", BULK)?.min(held / 3);
    let rate_mb = option(&mut arguments, "--bulk-rate", BULK_RATE_MB)?;
    let bulk_rate = u32::try_from(rate_mb * 1_000_000).context("--bulk-rate: at most 4294 MB/s")?;
    let bulk_rate = Some(bulk_rate).filter(|rate| *rate > 0);
    let after = Duration::from_secs(option(&mut arguments, "--after", 60)?);
    ensure!(arguments.iter().all(|one| ROWS.contains(&one.as_str())), "{arguments:?}: the rows are {ROWS:?}");
    let wants = |name: &str| arguments.is_empty() || arguments.iter().any(|one| one == name);
    let load = Load { held, bulk, bulk_rate, turns, after };
    let rate = if bulk_rate.is_some() { format!("at {rate_mb} MB/s each") } else { "unlimited".to_owned() };
    println!(
        "{held} connections held, a third active and {bulk} in bulk ({rate}), 300 new a second, \
         {turns} replacements\n"
    );
    println!(
        "{:<8} {:>7} {:>7} {:>7} {:>11} {:>11} {:>9} {:>9}",
        "", "new", "failed", "lost", "worst new", "worst held", "processes", "memory"
    );
    if ROWS[..3].iter().any(|name| wants(name)) {
        in_one_network(load, &wants)?;
    }
    if wants("restart") {
        restart(load)?;
    }
    Ok(())
}

/// The agent, haproxy and nginx, each by its own way.
fn in_one_network(load: Load, wants: &dyn Fn(&str) -> bool) -> Result<()> {
    with_agents(Lab::bridge(1), |lab, agents| {
        let agent = agents.first_mut().context("no agent")?;
        let node = lab.node(0);
        node.exec(&["sysctl", "-qw", "net.ipv4.ip_local_port_range=20000 65000"])?.ok()?;
        let server = SocketAddr::new(node.mesh_ip(), SERVER);
        let over = Arc::new(AtomicBool::new(false));
        serve(node, server, &over)?;

        if wants("agent") {
            let listen = local(PROXIES);
            agent.binary = node.dir().join("agent");
            std::fs::copy(binary()?, &agent.binary)?;
            start_agent(lab, node, agent, &[(listen, SERVER)])?;
            let group = agent.process()?.pid();
            let replace = || agent.cli(&["upgrade"])?.ok().map(|_| ());
            row("agent", node, listen, load, &replace, &|| members(group))?;
        }
        if wants("haproxy") {
            let listen = local(PROXIES + 1);
            let haproxy = Haproxy {
                name: "haproxy",
                listen,
                servers: vec![server],
                maxconn: load.held + 1_000,
                defaults: "option splice-auto",
                server: "weight 100",
            };
            let process = haproxy.start_with_master(node)?;
            let reload = || signal_first(&process, Signal::USR2);
            row("haproxy", node, listen, load, &reload, &|| members(process.pid()))?;
        }
        if wants("nginx") {
            let listen = local(PROXIES + 2);
            let process = nginx_stream(node, listen, server)?;
            let reload = || signal_first(&process, Signal::HUP);
            row("nginx", node, listen, load, &reload, &|| members(process.pid()))?;
        }
        Ok(())
    })
}

/// The row of `systemctl restart`.
fn restart(load: Load) -> Result<()> {
    with_machines(Lab::bridge(1), |lab, machines| {
        let (machine, node) = (machines.first().context("no machine")?, lab.node(0));
        node.exec(&["sysctl", "-qw", "net.ipv4.ip_local_port_range=20000 65000"])?.ok()?;
        let (over, listen) = (Arc::new(AtomicBool::new(false)), local(PROXIES));
        serve(node, SocketAddr::new(node.mesh_ip(), SERVER), &over)?;
        form(machines, &[])?;
        let listens = format!("service.bulk.listen={listen}");
        let port = format!("service.bulk.port={SERVER}");
        machine
            .agent(&["set", &listens, &port, "service.bulk.check=tcp", "service.bulk.maxconn=20000"])?
            .ok()?;
        eventually("the agent carries", GOSSIP, || {
            let status = machine.status()?;
            let service = status.services.iter().find(|one| one.name == "bulk").context("no service")?;
            ensure!(service.backends.iter().any(|one| one.state == "ready"), "{:?}", service.backends);
            Ok(())
        })?;
        let replace = || machine.exec(&["systemctl", "restart", "agent"])?.ok().map(|_| ());
        let systemd = u32::try_from(machine.systemd()?)?;
        let before = run_seconds(systemd)?;
        row("restart", node, listen, load, &replace, &|| machine.processes_of("agent"))?;
        let used = (run_seconds(systemd)? - before) * 1e3;
        println!(
            "\nrestart: `systemctl restart` in a booted machine, whose systemd used {used:.0} ms of CPU in all"
        );
        Ok(())
    })
}

/// A signal to the master process alone, as its users' tools send it.
fn signal_first(process: &Proc, signal: Signal) -> Result<()> {
    let pid = i32::try_from(process.pid()).ok().and_then(rustix::process::Pid::from_raw);
    Ok(rustix::process::kill_process(pid.context("a process id")?, signal)?)
}

fn row(
    name: &str,
    node: &Node,
    listen: SocketAddr,
    Load { held, bulk, bulk_rate, turns, after }: Load,
    replace: &dyn Fn() -> Result<()>,
    processes: &dyn Fn() -> Result<Vec<u32>>,
) -> Result<()> {
    let watch = Arc::new(Watch { bulk_rate, ..Watch::default() });
    let open = || (0..held - held / 3).map(|_| Ok(TcpStream::connect(listen)?)).collect::<Result<Vec<_>>>();
    let silent = node.inside(open)?;
    let kinds = [(Kind::Bulk, bulk), (Kind::Steady, held / 3 - bulk)];
    let all = kinds.iter().flat_map(|(kind, count)| (0..*count).map(|seed| (*kind, seed)));
    let active: Vec<Held> =
        all.map(|(kind, seed)| hold(node, listen, kind, seed + 1, &watch)).collect::<Result<_>>()?;
    std::thread::sleep(BETWEEN);
    watch.longest_us.store(0, Relaxed);
    let (seen, ended) = (Seen::default(), AtomicBool::new(false));
    std::thread::scope(|scope| {
        for _ in 0..MAKERS {
            scope.spawn(|| node.inside(|| make(listen, &seen, &ended)));
        }
        let outcome: Result<()> = (0..turns).try_for_each(|_| {
            let began = Instant::now();
            replace()?;
            std::thread::sleep(BETWEEN.saturating_sub(began.elapsed()));
            Ok(())
        });
        ended.store(true, Relaxed);
        outcome
    })?;
    let worst_held = watch.longest_us.load(Relaxed);
    std::thread::sleep(after);
    let processes = processes()?;
    let ((_, private), processes) = (memory_of(&processes)?, processes.len());
    watch.over.store(true, Relaxed);
    let told =
        |ended: &Result<u64>| ended.as_ref().inspect_err(|error| eprintln!("{name}: {error:#}")).is_err();
    let lost = active.into_iter().map(Held::end).filter(told).count() + traffic::ended(&silent);
    println!(
        "{name:<8} {:>7} {:>7} {lost:>7} {:>8.1} ms {:>8.1} ms {processes:>9} {:>6.1} MB",
        seen.made.load(Relaxed),
        seen.failed.load(Relaxed),
        seen.worst_us.load(Relaxed) as f64 / 1e3,
        worst_held as f64 / 1e3,
        private as f64 / 1e3,
    );
    Ok(())
}

/// New connections for one message each, until the end.
fn make(listen: SocketAddr, seen: &Seen, ended: &AtomicBool) -> Result<()> {
    while !ended.load(Relaxed) {
        let began = Instant::now();
        let counter = if echo_once(listen).is_ok() { &seen.made } else { &seen.failed };
        counter.fetch_add(1, Relaxed);
        let took = began.elapsed();
        seen.worst_us.fetch_max(u64::try_from(took.as_micros()).unwrap_or(u64::MAX), Relaxed);
        std::thread::sleep(PACE.saturating_sub(took));
    }
    Ok(())
}
