//! `etcd`: a real cluster of three members, with TLS and client certificates, behind our proxy and behind
//! haproxy. A watch through each, as a kubelet's: one long-lived HTTP/2 stream; and puts, each a process and
//! a connection of its own.
//!
//! Each member is cut, killed and hung in turn, so that every watch is on a faulty one at least once for each
//! kind of fault, wherever it started.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, ensure};
use tests::lab::{Lab, Node, Proc, Signal};
use tests::mesh::{Agent, GOSSIP, form, with_agents};
use tests::peers::{CHECKED, Haproxy, local, require};
use tests::wait::eventually;

use super::option;

const MEMBERS: usize = 3;
const ETCD: u16 = 2379;
const PEERS: u16 = 2380;

/// The proxies, with their ports on the worker.
const WHO: [(&str, u16); 2] = [("agent", 12379), ("haproxy", 22379)];

/// Between two puts through a proxy.
const EVERY: Duration = Duration::from_millis(100);

/// Between two polls of a watch's output: how exact its times are.
const LOOK: Duration = Duration::from_millis(5);

/// Time for a watch to begin.
const BEGUN: Duration = Duration::from_secs(2);

/// After a member is back: for haproxy to see it rise, and for the last puts to finish.
const SETTLE: Duration = Duration::from_secs(6);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fault {
    Cut,
    Kill,
    Hang,
}

/// A put that has ended.
struct Put {
    who: usize,
    key: String,
    at: Instant,
    took: Duration,
    acknowledged: bool,
}

/// When each key was first seen by a watch.
type Events = BTreeMap<String, Instant>;

/// Results of a run.
#[derive(Default)]
struct Found {
    puts: Mutex<Vec<Put>>,
    watched: [Mutex<Events>; 2],
}

pub(crate) fn etcd(arguments: &[String]) -> Result<()> {
    require(&[("haproxy", "haproxy"), ("etcd", "etcd-server"), ("etcdctl", "etcd-client")])?;
    let mut arguments = arguments.to_vec();
    let after = Duration::from_secs(option(&mut arguments, "--after", 12)?);
    ensure!(arguments.is_empty(), "what is {arguments:?}?");
    with_agents(Lab::wireguard(MEMBERS + 1), |lab, agents| {
        let worker = lab.node(MEMBERS);
        join(lab, agents)?;
        let mut members: Vec<Proc> = (0..MEMBERS).map(|i| start(lab, i)).collect::<Result<_>>()?;
        all_ready(&agents[MEMBERS])?;
        let _haproxy = haproxy(lab)?;
        let clients: Vec<Vec<String>> = WHO.iter().map(|(_, port)| etcdctl(lab, *port)).collect();
        for client in &clients {
            eventually("etcd answers through a proxy", GOSSIP, || run(worker, client, &["get", "x"]))?;
        }
        let watches: Vec<Watch> = clients
            .iter()
            .zip(WHO)
            .map(|(client, (who, _))| Watch::start(worker, who, client))
            .collect::<Result<_>>()?;
        // A watch prints nothing when it starts; one that starts late would miss the first puts.
        std::thread::sleep(BEGUN);
        let (found, ended, stop) = (Found::default(), AtomicBool::new(false), AtomicBool::new(false));
        let (windows, again) = std::thread::scope(|scope| {
            let mut follows = Vec::new();
            for (who, watch) in watches.into_iter().enumerate() {
                let (found, stop) = (&found, &stop);
                follows.push(scope.spawn(move || watch.follow(&found.watched[who], stop)));
            }
            let mut puts = Vec::new();
            for (who, client) in clients.iter().enumerate() {
                let (found, ended) = (&found, &ended);
                puts.push(scope.spawn(move || put_all(worker, who, client, found, ended)));
            }
            let windows = break_members(lab, &agents[MEMBERS], &mut members, after);
            ended.store(true, Ordering::Relaxed);
            let puts: Vec<_> = puts.into_iter().map(|puts| puts.join()).collect();
            // All puts must have arrived by then.
            std::thread::sleep(SETTLE);
            stop.store(true, Ordering::Relaxed);
            let mut again = Vec::new();
            for follow in follows {
                again.push(follow.join().map_err(|_| anyhow!("a watch panicked"))??);
            }
            ensure!(puts.iter().all(|put| put.is_ok()), "a put panicked");
            anyhow::Ok((windows?, again))
        })?;
        let stored = stored(worker, &clients[0])?;
        report(&found, &windows, &stored, &again);
        Ok(())
    })
}

/// Starts a member of the cluster, or restarts it from its data.
fn start(lab: &Lab, i: usize) -> Result<Proc> {
    let (node, certs) = (lab.node(i), lab.certs());
    let url = |i: usize, scheme: &str, port: u16| format!("{scheme}://{}:{port}", lab.node(i).mesh_ip());
    let all: Vec<String> = (0..MEMBERS).map(|i| format!("n{i}={}", url(i, "http", PEERS))).collect();
    let (clients, peers) = (url(i, "https", ETCD), url(i, "http", PEERS));
    let path = |path: &PathBuf| path.to_string_lossy().into_owned();
    let options: [(&str, &str); 13] = [
        ("name", &node.name),
        // In memory: this machine's disk is not measured.
        ("data-dir", "/run/etcd"),
        ("listen-client-urls", &clients),
        ("advertise-client-urls", &clients),
        ("listen-peer-urls", &peers),
        ("initial-advertise-peer-urls", &peers),
        ("initial-cluster", &all.join(",")),
        ("initial-cluster-state", "new"),
        ("cert-file", &path(&certs.server)),
        ("key-file", &path(&certs.server_key)),
        ("trusted-ca-file", &path(&certs.ca)),
        ("client-cert-auth", "true"),
        ("log-level", "error"),
    ];
    let mut command = vec!["etcd".to_owned()];
    command.extend(options.map(|(name, value)| format!("--{name}={value}")));
    let command: Vec<&str> = command.iter().map(String::as_str).collect();
    node.spawn("etcd", &command)
}

/// Makes a cluster of agents on all nodes.
fn join(lab: &Lab, agents: &mut [Agent<'_>]) -> Result<()> {
    let (certs, config) = (lab.certs(), lab.dir().join("etcd.toml"));
    let text = format!(
        "[[service]]\nname = \"etcd\"\nlisten = \"127.0.0.1:{}\"\nport = {ETCD}\n[service.check]\n\
         kind = \"https\"\npath = \"/health\"\nserver-name = \"localhost\"\n\
         ca-file = \"{}\"\ncert-file = \"{}\"\nkey-file = \"{}\"\n",
        WHO[0].1,
        certs.ca.display(),
        certs.client.display(),
        certs.client_key.display()
    );
    std::fs::write(&config, text)?;
    for agent in agents.iter_mut() {
        agent.options = vec!["--config".to_owned(), config.to_string_lossy().into_owned()];
    }
    form(agents)?;
    Ok(())
}

/// Starts haproxy on the worker.
fn haproxy(lab: &Lab) -> Result<Proc> {
    let certs = lab.certs();
    let both = lab.dir().join("client.pem");
    std::fs::write(&both, [std::fs::read(&certs.client)?, std::fs::read(&certs.client_key)?].concat())?;
    let server = format!("{CHECKED} crt {}", both.display());
    let servers = (0..MEMBERS).map(|i| SocketAddr::new(lab.node(i).mesh_ip(), ETCD)).collect();
    let listen = local(WHO[1].1);
    let defaults = "option httpchk GET /health";
    let haproxy = Haproxy { name: "haproxy", listen, servers, maxconn: 4000, defaults, server: &server };
    haproxy.start(lab.node(MEMBERS))
}

fn all_ready(worker: &Agent<'_>) -> Result<()> {
    eventually("the worker sees all members ready", GOSSIP * 2, || {
        let status = worker.status()?;
        let service = status.services.iter().find(|service| service.name == "etcd").context("no service")?;
        let ready = service.backends.iter().filter(|backend| backend.state == "ready").count();
        ensure!(ready == MEMBERS, "{:?}", service.backends);
        Ok(())
    })?;
    Ok(())
}

/// etcdctl through a proxy.
fn etcdctl(lab: &Lab, port: u16) -> Vec<String> {
    let certs = lab.certs();
    let mut command = vec!["etcdctl".to_owned(), format!("--endpoints=https://localhost:{port}")];
    for (name, file) in [("cacert", &certs.ca), ("cert", &certs.client), ("key", &certs.client_key)] {
        command.push(format!("--{name}={}", file.display()));
    }
    command
}

fn run(worker: &Node, client: &[String], command: &[&str]) -> Result<String> {
    let mut all: Vec<&str> = client.iter().map(String::as_str).collect();
    all.extend(command);
    worker.exec(&all)?.ok()
}

/// A running `etcdctl watch`.
struct Watch<'a> {
    worker: &'a Node,
    who: &'static str,
    client: &'a [String],
    process: Proc,
}

impl<'a> Watch<'a> {
    fn start(worker: &'a Node, who: &'static str, client: &'a [String]) -> Result<Watch<'a>> {
        let process = Watch::spawn(worker, who, client)?;
        Ok(Watch { worker, who, client, process })
    }

    /// From the first revision on, so that a replacement misses nothing.
    fn spawn(worker: &Node, who: &str, client: &[String]) -> Result<Proc> {
        let mut all: Vec<&str> = client.iter().map(String::as_str).collect();
        all.extend(["watch", "--rev=1", "--prefix", "/bench/"]);
        worker.spawn(&format!("watch-{who}"), &all)
    }

    /// Records each key with the time of its line. etcdctl exits when a member reports no leader; it is then
    /// restarted, as a reflector would do. Returns how often.
    fn follow(mut self, seen: &Mutex<Events>, stop: &AtomicBool) -> Result<usize> {
        let (mut lines, mut again) = (0, 0);
        while !stop.load(Ordering::Relaxed) {
            let (log, now) = (self.process.log()?, Instant::now());
            let whole = log.rfind('\n').map_or("", |end| &log[..end]);
            for line in whole.lines().skip(lines) {
                lines += 1;
                if line.starts_with("/bench/") {
                    let mut seen = seen.lock().unwrap_or_else(PoisonError::into_inner);
                    seen.entry(line.to_owned()).or_insert(now);
                }
            }
            if !self.process.is_running() {
                let why = self.process.tail(2);
                ensure!(why.contains("no leader"), "a watch has ended: {why}");
                again += 1;
                // Its log continues in the same file.
                self.process = Watch::spawn(self.worker, self.who, self.client)?;
            }
            std::thread::sleep(LOOK);
        }
        Ok(again)
    }
}

/// Puts a new key at every tick, each from a process of its own, until stopped.
fn put_all(worker: &Node, who: usize, client: &[String], found: &Found, stop: &AtomicBool) {
    let began = Instant::now();
    std::thread::scope(|scope| {
        for n in 0.. {
            if stop.load(Ordering::Relaxed) {
                return;
            }
            scope.spawn(move || {
                let (at, key) = (Instant::now(), format!("/bench/{}/{n:06}", WHO[who].0));
                let said = run(worker, client, &["put", &key, "x", "--command-timeout=5s"]);
                let put = Put { who, key, at, took: at.elapsed(), acknowledged: said.is_ok() };
                found.puts.lock().unwrap_or_else(PoisonError::into_inner).push(put);
            });
            std::thread::sleep((began + EVERY * (n + 1)).saturating_duration_since(Instant::now()));
        }
    });
}

/// A fault and the time until the next.
struct Window {
    fault: Fault,
    from: Instant,
    to: Instant,
}

/// Breaks each member in each way, and repairs it before the next.
fn break_members(
    lab: &Lab,
    worker: &Agent<'_>,
    members: &mut [Proc],
    after: Duration,
) -> Result<Vec<Window>> {
    let mut windows = Vec::new();
    for fault in [Fault::Cut, Fault::Kill, Fault::Hang] {
        for (i, member) in members.iter_mut().enumerate() {
            eprintln!("{fault:?} of n{i}");
            std::thread::sleep(SETTLE);
            let from = Instant::now();
            match fault {
                Fault::Cut => lab.node(i).power_cut()?,
                Fault::Kill => member.kill()?,
                Fault::Hang => member.signal(Signal::STOP)?,
            }
            std::thread::sleep(after);
            match fault {
                Fault::Cut => lab.node(i).power_on()?,
                Fault::Kill => *member = start(lab, i)?,
                Fault::Hang => member.signal(Signal::CONT)?,
            }
            all_ready(worker)?;
            windows.push(Window { fault, from, to: Instant::now() });
        }
    }
    std::thread::sleep(SETTLE);
    Ok(windows)
}

/// All keys at the end.
fn stored(worker: &Node, client: &[String]) -> Result<BTreeSet<String>> {
    let text = run(worker, client, &["get", "--prefix", "/bench/", "--keys-only"])?;
    Ok(text.lines().filter(|line| line.starts_with("/bench/")).map(str::to_owned).collect())
}

/// The longest time without an event, within a window.
fn gap(events: &Events, window: &Window) -> Duration {
    let mut times: Vec<Instant> =
        events.values().copied().filter(|at| (window.from..window.to).contains(at)).collect();
    times.sort_unstable();
    times.push(window.to);
    let mut last = window.from;
    let mut longest = Duration::ZERO;
    for at in times {
        longest = longest.max(at - last);
        last = at;
    }
    longest
}

fn report(found: &Found, windows: &[Window], stored: &BTreeSet<String>, again: &[usize]) {
    let watched = [0, 1].map(|i| found.watched[i].lock().unwrap_or_else(PoisonError::into_inner).clone());
    let puts = found.puts.lock().unwrap_or_else(PoisonError::into_inner);
    let mut anyone = watched[0].clone();
    for (key, at) in &watched[1] {
        anyone.entry(key.clone()).and_modify(|first| *first = (*first).min(*at)).or_insert(*at);
    }
    // Both watches may be on the same faulty member; an acknowledged put shows that the cluster works.
    for put in puts.iter().filter(|put| put.acknowledged) {
        anyone.insert(format!("{} acknowledged", put.key), put.at + put.took);
    }
    println!("etcd 3.4, three members over WireGuard, each cut, killed and hung in turn\n");
    println!("fault  proxy    watch silent s (each member)   longest   puts  failed  slowest acknowledged s");
    for fault in [Fault::Cut, Fault::Kill, Fault::Hang] {
        let of: Vec<&Window> = windows.iter().filter(|window| window.fault == fault).collect();
        let gaps = |events: &Events| -> Vec<f64> {
            of.iter().map(|window| gap(events, window).as_secs_f64()).collect()
        };
        let line = |name: &str, gaps: &[f64]| {
            let each: String = gaps.iter().map(|gap| format!(" {gap:>8.2}")).collect();
            let longest = gaps.iter().copied().fold(0.0, f64::max);
            format!("{:<6} {name:<8}{each:<29} {longest:>9.2}", format!("{fault:?}").to_lowercase())
        };
        for (who, (name, _)) in WHO.iter().enumerate() {
            let within = |put: &&Put| {
                put.who == who && of.iter().any(|window| (window.from..window.to).contains(&put.at))
            };
            let made: Vec<&Put> = puts.iter().filter(within).collect();
            let good = made.iter().filter(|put| put.acknowledged);
            let slowest = good.clone().map(|put| put.took).max().unwrap_or_default().as_secs_f64();
            let failed = made.len() - good.count();
            let gaps = line(name, &gaps(&watched[who]));
            println!("{gaps} {:>6} {failed:>7} {slowest:>23.2}", made.len());
        }
        println!("{}", line("(etcd)", &gaps(&anyone)));
    }
    println!(
        "\n(etcd): without an event or an acknowledged put for anyone, as while a new leader is elected.\n"
    );
    for (who, (name, _)) in WHO.iter().enumerate() {
        let lost: Vec<&String> = stored.iter().filter(|key| !watched[who].contains_key(*key)).collect();
        let acknowledged = puts.iter().filter(|put| put.who == who && put.acknowledged);
        let missing = acknowledged.clone().filter(|put| !stored.contains(&put.key)).count();
        println!(
            "{name:<8} {} of {} events lost by its watch; {missing} of {} acknowledged puts not read back",
            lost.len(),
            stored.len(),
            acknowledged.count()
        );
        if again[who] > 0 {
            println!("         its watch was ended by etcd {} times for want of a leader", again[who]);
        }
        for key in lost.iter().take(5) {
            println!("         lost: {key}");
        }
    }
}
