//! `proxy`: our data path compared with haproxy's and nginx', over loopback.
//!
//! All run in the network of one node, forward to the same servers, and are measured in turn, one at a time;
//! the others are idle meanwhile. The order rotates with each round. HAPROXY_BIN names the binary of another haproxy
//! than Debian's, which is then measured too.

use std::net::SocketAddr;
use std::process::Command;
use std::sync::PoisonError;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use tests::lab::{Lab, Node, Proc};
use tests::mesh::{Agent, GOSSIP, with_agents};
use tests::peers::{Haproxy, local, nginx_stream, require};
use tests::wait::eventually;

use super::option;
use super::samples::Row;
use super::tls::Tls;
use super::traffic::{self, Kept};
use super::usage::{memory, run_seconds_of};

/// Ports of the servers, for plain TCP and for TLS.
const SERVERS: [u16; 2] = [7001, 7002];

/// First port of the proxies; each has two, as the servers.
const PROXIES: u16 = 17001;

/// Threads that open short connections: enough to keep two cores busy.
const CLIENTS: usize = 4;

/// Watches held at a time.
const WATCHES: usize = 200;

/// Connections of the last measurement, if the limit of descriptors allows it.
const HELD: u64 = 10_000;

/// Descriptors that a process needs in addition to two for each connection: the agent keeps the most of all for checks,
/// the link and the control socket.
const SPARE: u64 = 1_200;

/// After closing the held connections, until buffers are released.
const SETTLE: Duration = Duration::from_secs(3);

/// The other proxies, and the packages that have them.
pub(crate) const PEERS: [(&str, &str); 2] =
    [("haproxy", "haproxy"), ("../../usr/lib/nginx/modules/ngx_stream_module.so", "libnginx-mod-stream")];

/// What is measured in every round.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Group {
    Bulk,
    ManyBulk,
    Short,
    Ping,
    Tls,
    Watch,
}

const GROUPS: [Group; 6] =
    [Group::Bulk, Group::ManyBulk, Group::Short, Group::Ping, Group::Tls, Group::Watch];

/// The last measurement, which is made once.
const IDLE: &str = "idle";

impl Group {
    /// What chooses it on the command line.
    fn word(self) -> &'static str {
        match self {
            Group::Bulk => "bulk",
            Group::ManyBulk => "bulk8",
            Group::Short => "short",
            Group::Ping => "ping",
            Group::Tls => "tls",
            Group::Watch => "watch",
        }
    }

    fn rows(self) -> &'static [&'static str] {
        match self {
            Group::Bulk => &["bulk, 1 connection, Gbit/s", "bulk, 1 connection, CPU s/GB"],
            Group::ManyBulk => &["bulk, 8 connections, Gbit/s", "bulk, 8 connections, CPU s/GB"],
            Group::Short => &["short connections a second", "short connections, CPU us each"],
            Group::Ping => &[
                "100 bytes and back, p50 us",
                "100 bytes and back, p99 us",
                "100 bytes, p50 us over direct",
                "100 bytes, p99 us over direct",
            ],
            Group::Tls => {
                &["TLS, one request each, a second", "TLS requests, p50 us", "TLS requests, CPU us each"]
            }
            Group::Watch => &[
                "200 TLS watches, message p50 us",
                "200 TLS watches, message p99 us",
                "watches, CPU us a message",
                "watches, p50 us over direct",
                "watches, p99 us over direct",
            ],
        }
    }

    /// One value for each row, but none yet for those that compare with the direct connection.
    fn measure(self, carrier: &Carrier, tls: &Tls, span: Duration) -> Result<Vec<f64>> {
        Ok(match self {
            Group::Bulk | Group::ManyBulk => {
                let count = if self == Group::Bulk { 1 } else { 8 };
                let ((bytes, took), cpu) = carrier.costs(|| traffic::bulk(carrier.plain, count, span))?;
                let gigabytes = bytes as f64 / 1e9;
                vec![gigabytes * 8.0 / took.as_secs_f64(), cpu / gigabytes]
            }
            Group::Short => {
                let ((count, took), cpu) = carrier.costs(|| traffic::short(carrier.plain, CLIENTS, span))?;
                vec![count as f64 / took.as_secs_f64(), cpu * 1e6 / count as f64]
            }
            Group::Ping => {
                let (times, _) = carrier.costs(|| traffic::ping_pong(carrier.plain, span / 2))?;
                vec![percentile(&times, 50)?, percentile(&times, 99)?]
            }
            Group::Tls => {
                let ((times, took), cpu) = carrier.costs(|| tls.requests(carrier.tls, CLIENTS, span))?;
                let count = times.len() as f64;
                vec![count / took.as_secs_f64(), percentile(&times, 50)?, cpu * 1e6 / count]
            }
            Group::Watch => {
                let ((times, before), after) = {
                    let watched = tls.watches(carrier.tls, WATCHES, span, || carrier.cpu())?;
                    (watched, carrier.cpu()?)
                };
                let cpu = (after - before) * 1e6 / times.len() as f64;
                vec![percentile(&times, 50)?, percentile(&times, 99)?, cpu]
            }
        })
    }

    /// Adds what a proxy's latency is over the direct connection's of the same round, which is the last.
    fn compare(self, round: &mut [Vec<f64>]) {
        let Some(direct) = round.last().cloned() else { return };
        let latencies = self.rows().iter().filter(|row| row.ends_with("over direct")).count();
        for values in round {
            let over: Vec<f64> =
                values.iter().zip(&direct).take(latencies).map(|(one, direct)| one - direct).collect();
            values.extend(over);
        }
    }
}

fn percentile(sorted: &[Duration], percent: usize) -> Result<f64> {
    let one = sorted.get(sorted.len() * percent / 100).context("nothing was measured")?;
    Ok(one.as_secs_f64() * 1e6)
}

/// A proxy; without processes it is the servers themselves.
struct Carrier {
    name: String,
    /// Where it takes plain connections and those of TLS.
    plain: SocketAddr,
    tls: SocketAddr,
    pids: Vec<u32>,
    /// Keeps them running.
    processes: Vec<Proc>,
}

pub(crate) fn proxy(arguments: &[String]) -> Result<()> {
    require(&PEERS)?;
    let mut arguments = arguments.to_vec();
    let rounds = usize::try_from(option(&mut arguments, "--rounds", 5)?)?;
    let span = Duration::from_secs(option(&mut arguments, "--seconds", 3)?);
    let held = option(&mut arguments, "--held", HELD)?.min(most_held()?);
    let words: Vec<&str> = GROUPS.iter().map(|group| group.word()).chain([IDLE]).collect();
    if let Some(wrong) = arguments.iter().find(|one| !words.contains(&one.as_str())) {
        bail!("there is no row \"{wrong}\"; there are: {}", words.join(" "));
    }
    let wants = |word: &str| arguments.is_empty() || arguments.iter().any(|one| one == word);
    let groups: Vec<Group> = GROUPS.into_iter().filter(|group| wants(group.word())).collect();
    with_agents(Lab::bridge(1), |lab, agents| {
        let agent = agents.first_mut().context("no agent")?;
        let node = lab.node(0);
        // Ten thousand connections per second leave many ports in TIME_WAIT.
        node.exec(&["sysctl", "-qw", "net.ipv4.ip_local_port_range=20000 65000"])?.ok()?;
        let servers = SERVERS.map(|port| SocketAddr::new(node.mesh_ip(), port));
        let tls = Tls::of(lab.certs())?;
        let kept = node.inside(|| {
            tls.serve(servers[1])?;
            traffic::serve(servers[0])
        })?;
        let mut carriers = carriers(lab, node, agent, servers, held)?;
        let names: Vec<String> = carriers.iter().map(|one| one.name.clone()).collect();
        println!("over loopback, {rounds} rounds of {span:?}\n");
        node.inside(|| {
            let all: Vec<(Group, Vec<Row>)> = groups
                .iter()
                .map(|group| {
                    let row = |name: &&'static str| Row::new(name, 2, carriers.len());
                    (*group, group.rows().iter().map(row).collect())
                })
                .collect();
            let all = measure(all, &carriers, &tls, rounds, span)?;
            for row in all.iter().flat_map(|(_, rows)| rows) {
                println!("{}", row.text(&names));
            }
            if wants(IDLE) {
                println!("{}", memory_held(&carriers, &kept, held)?.text(&names));
                if held < HELD {
                    println!("{held} and not {HELD} held: the hard limit of descriptors here allows no more");
                }
            }
            carriers.iter_mut().try_for_each(Carrier::is_running)
        })
    })
}

fn measure(
    mut all: Vec<(Group, Vec<Row>)>,
    carriers: &[Carrier],
    tls: &Tls,
    rounds: usize,
    span: Duration,
) -> Result<Vec<(Group, Vec<Row>)>> {
    for round in 0..rounds {
        eprintln!("round {} of {rounds}", round + 1);
        for (group, rows) in &mut all {
            let mut values = vec![Vec::new(); carriers.len()];
            for at in (0..carriers.len()).map(|i| (i + round) % carriers.len()) {
                let measured = group.measure(&carriers[at], tls, span);
                values[at] = measured.with_context(|| format!("{group:?} through {}", carriers[at].name))?;
            }
            group.compare(&mut values);
            for (at, values) in values.into_iter().enumerate() {
                rows.iter_mut().zip(values).for_each(|(row, value)| row.push(at, value));
            }
        }
    }
    for (group, rows) in &all {
        let lacks = rows.iter().flat_map(|row| row.incomplete(rounds)).next();
        if let Some(carrier) = lacks.and_then(|at| carriers.get(at)) {
            bail!("{group:?} has fewer than {rounds} values of {}", carrier.name);
        }
    }
    Ok(all)
}

/// Starts the agent with services of these listeners and ports, and waits until it carries.
pub(crate) fn start_agent(
    lab: &Lab,
    node: &Node,
    agent: &mut Agent<'_>,
    services: &[(SocketAddr, u16)],
) -> Result<()> {
    let config = lab.dir().join("proxy.toml");
    let service = |(i, (listen, port)): (usize, &(SocketAddr, u16))| {
        format!(
            "[[service]]\nname = \"bench{i}\"\nlisten = \"{listen}\"\nport = {port}\ncheck = \"tcp\"\n\
             maxconn = 20000\n"
        )
    };
    std::fs::write(&config, services.iter().enumerate().map(service).collect::<String>())?;
    agent.options = vec!["--config".to_owned(), config.to_string_lossy().into_owned()];
    agent.init_with(&["--iface", node.interface])?;
    eventually("the agent carries", GOSSIP, || {
        let status = agent.status()?;
        for i in 0..services.len() {
            let name = format!("bench{i}");
            let service = status.services.iter().find(|one| one.name == name).context("no service")?;
            let ready = service.backends.iter().any(|one| ["ready", "alive"].contains(&&*one.state));
            ensure!(ready, "the backends of {name} are {:?}", service.backends);
        }
        Ok(())
    })?;
    Ok(())
}

/// Starts all of them; the servers themselves are the last.
fn carriers(
    lab: &Lab,
    node: &Node,
    agent: &mut Agent<'_>,
    servers: [SocketAddr; 2],
    held: u64,
) -> Result<Vec<Carrier>> {
    let mut ports = (PROXIES..).step_by(2).map(|port| [local(port), local(port + 1)]);
    let mut next = || ports.next().context("no port is left");
    let listen = next()?;
    start_agent(lab, node, agent, &[(listen[0], SERVERS[0]), (listen[1], SERVERS[1])])?;
    let mut carriers = vec![Carrier::of("agent".to_owned(), listen, Vec::new())];
    carriers[0].pids = vec![agent.process()?.pid()];
    let mut haproxies = vec!["haproxy".to_owned()];
    haproxies.extend(std::env::var("HAPROXY_BIN").ok());
    for (nth, program) in haproxies.iter().enumerate() {
        let version = version_of(program)?;
        let splices = [("+splice", "option splice-auto"), ("", "no option splice-auto")];
        for (i, (suffix, defaults)) in splices.into_iter().enumerate() {
            let listen = next()?;
            let start = |listen: SocketAddr, server: SocketAddr| {
                let name = &format!("haproxy{nth}{i}-{}", listen.port());
                let maxconn = held + 50;
                Haproxy { name, listen, servers: vec![server], maxconn, defaults, server: "weight 100" }
                    .start_program(node, program)
            };
            let processes = vec![start(listen[0], servers[0])?, start(listen[1], servers[1])?];
            carriers.push(Carrier::of(format!("haproxy {version}{suffix}"), listen, processes));
        }
    }
    let listen = next()?;
    let processes =
        vec![nginx_stream(node, listen[0], servers[0])?, nginx_stream(node, listen[1], servers[1])?];
    carriers.push(Carrier::of("nginx".to_owned(), listen, processes));
    carriers.push(Carrier::of("direct".to_owned(), servers, Vec::new()));
    Ok(carriers)
}

/// The version of a haproxy, such as 2.6.12.
fn version_of(program: &str) -> Result<String> {
    let output = Command::new(program).arg("-v").output().with_context(|| format!("run {program} -v"))?;
    let text = String::from_utf8_lossy(&output.stdout);
    let version =
        text.split_whitespace().nth(2).with_context(|| format!("{program} -v tells no version: {text:?}"))?;
    Ok(version.split('-').next().unwrap_or(version).to_owned())
}

impl Carrier {
    fn of(name: String, [plain, tls]: [SocketAddr; 2], processes: Vec<Proc>) -> Carrier {
        let pids = processes.iter().map(Proc::pid).collect();
        Carrier { name, plain, tls, pids, processes }
    }

    /// CPU time of its processes so far, in seconds; not a number where it has none.
    fn cpu(&self) -> Result<f64> {
        match &*self.pids {
            [] => Ok(f64::NAN),
            pids => pids.iter().map(|pid| run_seconds_of(*pid)).sum(),
        }
    }

    /// Runs a measurement, and returns its result with the CPU time of the processes, which have to have had some:
    /// else they were not in the path.
    fn costs<T>(&self, act: impl FnOnce() -> Result<T>) -> Result<(T, f64)> {
        let before = self.cpu()?;
        let result = act()?;
        let cpu = self.cpu()? - before;
        ensure!(cpu != 0.0, "its processes did nothing");
        Ok((result, cpu))
    }

    fn is_running(&mut self) -> Result<()> {
        for process in &mut self.processes {
            ensure!(process.is_running(), "{} has ended: {}", self.name, process.tail(10));
        }
        Ok(())
    }
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
fn memory_held(carriers: &[Carrier], kept: &Kept, count: u64) -> Result<Row> {
    let mut row = Row::new("bytes for each idle connection", 0, carriers.len());
    for (at, carrier) in carriers.iter().enumerate() {
        let Some(pid) = carrier.pids.first() else {
            row.push(at, f64::NAN);
            continue;
        };
        let before = memory(*pid)?.0;
        let held =
            traffic::hold(carrier.plain, count).with_context(|| format!("through {}", carrier.name))?;
        std::thread::sleep(SETTLE);
        let after = memory(*pid)?.0;
        let gone = traffic::ended(&held);
        ensure!(gone == 0, "{} ended {gone} of {count} idle connections", carrier.name);
        row.push(at, after.saturating_sub(before) as f64 * 1024.0 / count as f64);
        drop(held);
        kept.lock().unwrap_or_else(PoisonError::into_inner).clear();
        std::thread::sleep(SETTLE);
    }
    Ok(row)
}
