//! `proxy`: our data path compared with haproxy's and nginx', plain TCP over loopback.
//!
//! All run in the network of one node, forward to the same server, and are measured in turn, one at a time;
//! the others are idle meanwhile. The order rotates with each round.

use std::fmt::Write;
use std::net::SocketAddr;
use std::sync::PoisonError;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use tests::lab::{Lab, Node, Proc};
use tests::mesh::{Agent, GOSSIP, with_agents};
use tests::peers::{Haproxy, local, nginx_stream, require};
use tests::wait::eventually;

use super::option;
use super::traffic::{self, Kept};
use super::usage::{cpu_seconds, memory};

/// Port of the server, and the first port of the proxies.
const SERVER: u16 = 7001;
const PROXIES: u16 = 17001;

/// Threads that open short connections: enough to keep two cores busy.
const CLIENTS: usize = 4;

/// Connections of the last measurement, if the limit of descriptors allows it.
const HELD: u64 = 10_000;

/// Descriptors that a process needs in addition to two for each connection: the agent keeps the most of all for checks,
/// the link and the control socket.
const SPARE: u64 = 1_200;

/// After closing the held connections, until buffers are released.
const SETTLE: Duration = Duration::from_secs(3);

/// A proxy; without a process it is the server itself.
struct Carrier {
    name: &'static str,
    address: SocketAddr,
    pid: Option<u32>,
    /// Keeps it running.
    _process: Option<Proc>,
}

/// Measurements of every round.
const ROWS: [&str; 10] = [
    "bulk, 1 connection, Gbit/s",
    "  CPU s/GB",
    "bulk, 8 connections, Gbit/s",
    "  CPU s/GB",
    "short connections a second",
    "  CPU ms for each 100",
    "ping-pong 100 bytes, p50 us",
    "  p50 over direct, us",
    "ping-pong 100 bytes, p99 us",
    "  p99 over direct, us",
];

/// The other proxies, and the packages that have them.
pub(crate) const PEERS: [(&str, &str); 2] =
    [("haproxy", "haproxy"), ("../../usr/lib/nginx/modules/ngx_stream_module.so", "libnginx-mod-stream")];

pub(crate) fn proxy(arguments: &[String]) -> Result<()> {
    require(&PEERS)?;
    let mut arguments = arguments.to_vec();
    let rounds = option(&mut arguments, "--rounds", 5)?;
    let span = Duration::from_secs(option(&mut arguments, "--seconds", 3)?);
    let held = option(&mut arguments, "--held", HELD)?.min(most_held()?);
    ensure!(arguments.is_empty(), "what is {arguments:?}?");
    with_agents(Lab::bridge(1), |lab, agents| {
        let agent = agents.first_mut().context("no agent")?;
        let node = lab.node(0);
        // Ten thousand connections per second leave many ports in TIME_WAIT.
        node.exec(&["sysctl", "-qw", "net.ipv4.ip_local_port_range=20000 65000"])?.ok()?;
        let server = SocketAddr::new(node.mesh_ip(), SERVER);
        let kept = node.inside(|| traffic::serve(server))?;
        let carriers = carriers(lab, node, agent, server, held)?;
        node.inside(|| {
            let mut samples = vec![vec![Vec::new(); carriers.len()]; ROWS.len()];
            for round in 0..rounds {
                eprintln!("round {} of {rounds}", round + 1);
                one_round(&carriers, usize::try_from(round)?, span, &mut samples)?;
            }
            over_direct(&mut samples);
            println!("plain TCP over loopback, {rounds} rounds, medians; ratio: agent to haproxy's better\n");
            print(&carriers, &samples);
            memory_held(&carriers, &kept, held)
        })
    })
}

/// Starts the agent with a service of this listener and port, and waits until it carries.
pub(crate) fn start_agent(
    lab: &Lab,
    node: &Node,
    agent: &mut Agent<'_>,
    listen: SocketAddr,
    server: u16,
) -> Result<()> {
    let config = lab.dir().join("proxy.toml");
    std::fs::write(
        &config,
        format!(
            "[[service]]\nname = \"bulk\"\nlisten = \"{listen}\"\nport = {server}\ncheck = \"tcp\"\nmaxconn = 20000\n"
        ),
    )?;
    agent.options = vec!["--config".to_owned(), config.to_string_lossy().into_owned()];
    agent.init_with(&["--iface", node.interface])?;
    eventually("the agent carries", GOSSIP, || {
        let status = agent.status()?;
        let service = status.services.iter().find(|service| service.name == "bulk").context("no service")?;
        let ready = service.backends.iter().any(|backend| ["ready", "alive"].contains(&&*backend.state));
        ensure!(ready, "its backends are {:?}", service.backends);
        Ok(())
    })?;
    Ok(())
}

/// Starts all of them; the server itself is the last.
fn carriers(
    lab: &Lab,
    node: &Node,
    agent: &mut Agent<'_>,
    server: SocketAddr,
    held: u64,
) -> Result<Vec<Carrier>> {
    let mut carriers = Vec::new();
    let listen = local(PROXIES);
    start_agent(lab, node, agent, listen, SERVER)?;
    let pid = Some(agent.process()?.pid());
    carriers.push(Carrier { name: "agent", address: listen, pid, _process: None });
    let splices = [("haproxy+splice", "option splice-auto"), ("haproxy", "no option splice-auto")];
    for (i, (name, defaults)) in (1..).zip(splices) {
        let listen = local(PROXIES + i);
        let haproxy = Haproxy {
            name,
            listen,
            servers: vec![server],
            maxconn: held + 50,
            defaults,
            server: "weight 100",
        };
        let process = haproxy.start(node)?;
        let pid = Some(process.pid());
        carriers.push(Carrier { name, address: listen, pid, _process: Some(process) });
    }
    let listen = local(PROXIES + 3);
    let process = nginx_stream(node, listen, server)?;
    let pid = Some(process.pid());
    carriers.push(Carrier { name: "nginx", address: listen, pid, _process: Some(process) });
    carriers.push(Carrier { name: "direct", address: server, pid: None, _process: None });
    Ok(carriers)
}

type Samples = Vec<Vec<Vec<f64>>>;

fn one_round(carriers: &[Carrier], round: usize, span: Duration, samples: &mut Samples) -> Result<()> {
    let turned = |i: usize| (i + round) % carriers.len();
    for (row, count) in [(0, 1), (2, 8)] {
        for at in (0..carriers.len()).map(turned) {
            let (carried, cpu) = carriers[at].costs(|address| traffic::bulk(address, count, span))?;
            let (bytes, took) = carried;
            let gigabytes = bytes as f64 / 1e9;
            samples[row][at].push(gigabytes * 8.0 / took.as_secs_f64());
            samples[row + 1][at].push(cpu / gigabytes);
        }
    }
    for at in (0..carriers.len()).map(turned) {
        let (made, cpu) = carriers[at].costs(|address| traffic::short(address, CLIENTS, span))?;
        let (count, took) = made;
        samples[4][at].push(count as f64 / took.as_secs_f64());
        samples[5][at].push(cpu * 1e5 / count as f64);
    }
    for at in (0..carriers.len()).map(turned) {
        let times = traffic::ping_pong(carriers[at].address, span / 2)?;
        for (row, percent) in [(6, 50), (8, 99)] {
            let time = times.get(times.len() * percent / 100).context("no round trip")?;
            samples[row][at].push(time.as_secs_f64() * 1e6);
        }
    }
    Ok(())
}

impl Carrier {
    /// Runs a measurement, and returns its result with the CPU time of the process.
    fn costs<T>(&self, act: impl FnOnce(SocketAddr) -> Result<T>) -> Result<(T, f64)> {
        let cpu = || self.pid.map_or(Ok(f64::NAN), cpu_seconds);
        let before = cpu()?;
        let result = act(self.address).with_context(|| format!("through {}", self.name))?;
        Ok((result, cpu()? - before))
    }
}

/// A proxy's latency is what it adds to the direct connection of the same round.
fn over_direct(samples: &mut Samples) {
    for row in [6, 8] {
        let Some(direct) = samples[row].last().cloned() else { continue };
        let over = |of: &Vec<f64>| of.iter().zip(&direct).map(|(one, direct)| one - direct).collect();
        samples[row + 1] = samples[row].iter().map(over).collect();
    }
}

fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted.get(sorted.len() / 2).copied().unwrap_or(f64::NAN)
}

fn print(carriers: &[Carrier], samples: &Samples) {
    let mut head = format!("{:<29}", "");
    for carrier in carriers {
        let _ = write!(head, " {:>11}", carrier.name.replace("haproxy+splice", "hap+splice"));
    }
    println!("{head}  ratio");
    for (row, name) in ROWS.iter().enumerate() {
        let medians: Vec<f64> = samples[row].iter().map(|values| median(values)).collect();
        println!("{}", line(name, &medians, [0, 2, 4].contains(&row)));
    }
}

/// A row with the ratio of ours to haproxy's better setting.
fn line(name: &str, values: &[f64], more_is_better: bool) -> String {
    let mut line = format!("{name:<29}");
    for value in values {
        if value.is_nan() {
            let _ = write!(line, " {:>11}", "-");
            continue;
        }
        let digits = if value.abs() >= 1000.0 { 0 } else { 2 };
        let _ = write!(line, " {value:>11.digits$}");
    }
    let better = match more_is_better {
        true => values[1].max(values[2]),
        false => values[1].min(values[2]),
    };
    let _ = write!(line, "  {:>5.2}", values[0] / better);
    line
}

/// Most connections that can be held here: each process involved needs two descriptors for each, and only the
/// machine's real root may raise the hard limit.
pub(crate) fn most_held() -> Result<u64> {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let wanted = HELD * 2 + SPARE;
    let now = getrlimit(Resource::Nofile);
    let raised = Rlimit { current: Some(wanted), maximum: Some(wanted.max(now.maximum.unwrap_or(u64::MAX))) };
    if setrlimit(Resource::Nofile, raised).is_ok() {
        return Ok(HELD);
    }
    let hard = now.maximum.unwrap_or(wanted);
    setrlimit(Resource::Nofile, Rlimit { current: Some(hard), maximum: Some(hard) })?;
    Ok(hard.saturating_sub(SPARE) / 2)
}

/// Resident memory per idle connection: once for each proxy, since a process keeps memory from earlier
/// connections.
fn memory_held(carriers: &[Carrier], kept: &Kept, count: u64) -> Result<()> {
    let mut values = Vec::new();
    for carrier in &carriers[..carriers.len() - 1] {
        let pid = carrier.pid.context("a carrier without a process")?;
        let before = memory(pid)?.0;
        let held =
            traffic::hold(carrier.address, count).with_context(|| format!("through {}", carrier.name))?;
        std::thread::sleep(SETTLE);
        let after = memory(pid)?.0;
        let gone = traffic::ended(&held);
        ensure!(gone == 0, "{} ended {gone} of {count} idle connections", carrier.name);
        values.push(after.saturating_sub(before) as f64 * 1024.0 / count as f64);
        drop(held);
        kept.lock().unwrap_or_else(PoisonError::into_inner).clear();
        std::thread::sleep(SETTLE);
    }
    values.push(f64::NAN);
    println!("{}", line(&format!("bytes for each of {count} idle"), &values, false));
    if count < HELD {
        println!("\n{count} and not {HELD} held: the hard limit of descriptors here allows no more");
    }
    Ok(())
}
