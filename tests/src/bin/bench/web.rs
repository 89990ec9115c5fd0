//! `web`: the cost of the page and the metrics, in memory and in the proxy's latency, and how soon each
//! endpoint responds under a hundred concurrent clients.
//!
//! Four nodes on a segment, three of them masters; everything is measured on the worker, whose proxy also
//! forwards to a server of this process. Once without `[web]`, once with it.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, ensure};
use tests::lab::{Lab, Node};
use tests::mesh::{Agent, GOSSIP, form, with_agents};
use tests::peers::local;
use tests::wait::eventually;

use super::traffic;
use super::usage::{cpu_seconds, memory};
use super::{masters, option};

/// Port of the server, and of the agent's proxy for it.
const SERVER: u16 = 7001;
const CARRIER: u16 = 17001;

const PAGE: (Ipv4Addr, u16) = (Ipv4Addr::LOCALHOST, 1936);

/// Concurrent clients, and clients that never read.
const SCRAPERS: usize = 100;
const DEAF: usize = 5;

/// Requested paths.
const PATHS: [&str; 7] =
    ["/", "/metrics", "/stats;csv", "/api/v1/status", "/api/v1/events?list", "/healthz", "/readyz"];

/// After a start, and after the clients have left.
const SETTLE: Duration = Duration::from_secs(12);

/// One measurement.
struct Row {
    what: &'static str,
    resident: u64,
    private: u64,
    cpu: f64,
    ping: Vec<Duration>,
}

pub(crate) fn web(arguments: &[String]) -> Result<()> {
    let mut arguments = arguments.to_vec();
    let span = Duration::from_secs(option(&mut arguments, "--seconds", 5)?);
    let pause = Duration::from_millis(option(&mut arguments, "--pause", 50)?);
    ensure!(arguments.is_empty(), "what is {arguments:?}?");
    println!(
        "4 nodes, 3 masters, seen from the worker; {SCRAPERS} scrapers, each {} ms after its last answer, and \
         {DEAF} that do not read\n",
        pause.as_millis()
    );
    println!(
        "{:<24} {:>11} {:>10} {:>6} {:>13} {:>8}",
        "", "resident kB", "private kB", "CPU %", "ping-pong p50", "p99 us"
    );
    measured("[web]\nlisten = []\n", |node, pid| {
        std::thread::sleep(SETTLE);
        print(&row("without the page", node, pid, span)?);
        Ok(())
    })?;
    measured("", |node, pid| {
        std::thread::sleep(SETTLE);
        print(&row("with it, nobody asks", node, pid, span)?);
        let (_, all) = crowd(node, &PATHS, span, pause, || row("with it, all ask", node, pid, span / 2))?;
        print(&all);
        std::thread::sleep(SETTLE);
        print(&row("when they have left", node, pid, span)?);
        println!(
            "\n{:<24} {:>10} {:>8} {:>8} {:>8} {:>8}",
            "", "answers/s", "bytes", "p50 ms", "p99 ms", "max"
        );
        for path in PATHS {
            let (answers, ()) = crowd(node, &[path], span, pause, || Ok(()))?;
            endpoint(path, answers, span)?;
        }
        Ok(())
    })
}

/// Sets up the stage with these lines in the worker's configuration, and measures on it.
fn measured(lines: &str, act: impl FnOnce(&Node, u32) -> Result<()>) -> Result<()> {
    with_agents(Lab::bridge(4), |lab, agents| {
        let _masters = masters(lab)?;
        for agent in agents.iter_mut() {
            agent.options = vec!["--iface".to_owned(), agent.node().interface.to_owned()];
        }
        let config = lab.dir().join("worker.toml");
        let service = format!("name = \"bulk\"\nlisten = \"{}\"\nport = {SERVER}\n", local(CARRIER));
        std::fs::write(&config, format!("{lines}[[service]]\n{service}check = \"tcp\"\n"))?;
        let node = lab.node(3);
        node.inside(|| traffic::serve(SocketAddr::new(node.mesh_ip(), SERVER)))?;
        let worker = agents.last_mut().context("no worker")?;
        worker.options.extend(["--config".to_owned(), config.to_string_lossy().into_owned()]);
        form(agents)?;
        let worker = agents.last_mut().context("no worker")?;
        carries(worker)?;
        let pid = worker.process()?.pid();
        act(node, pid)
    })
}

fn carries(agent: &Agent<'_>) -> Result<()> {
    eventually("the worker carries", GOSSIP, || {
        let status = agent.status()?;
        let service = status.services.iter().find(|service| service.name == "bulk").context("no service")?;
        let ready = service.backends.iter().any(|backend| ["ready", "alive"].contains(&&*backend.state));
        ensure!(ready, "its backends are {:?}", service.backends);
        Ok(())
    })
    .map(drop)
}

/// Measures the process while its proxy carries small messages.
fn row(what: &'static str, node: &Node, pid: u32, span: Duration) -> Result<Row> {
    let (before, began) = (cpu_seconds(pid)?, Instant::now());
    std::thread::sleep(span / 2);
    let cpu = (cpu_seconds(pid)? - before) / began.elapsed().as_secs_f64() * 100.0;
    let ping = node.inside(|| traffic::ping_pong(local(CARRIER), span / 2))?;
    let (resident, private) = memory(pid)?;
    Ok(Row { what, resident, private, cpu, ping })
}

fn at(times: &[Duration], percent: usize) -> Duration {
    times.get(times.len() * percent / 100).copied().unwrap_or_default()
}

fn print(row: &Row) {
    let us = |percent| at(&row.ping, percent).as_secs_f64() * 1e6;
    println!(
        "{:<24} {:>11} {:>10} {:>6.1} {:>13.1} {:>8.1}",
        row.what,
        row.resident,
        row.private,
        row.cpu,
        us(50),
        us(99)
    );
}

/// Durations of responses, and the size of one.
type Answers = (Vec<Duration>, usize);

/// Runs `act` while clients request these paths.
fn crowd<T: Send>(
    node: &Node,
    paths: &[&str],
    span: Duration,
    pause: Duration,
    act: impl FnOnce() -> Result<T> + Send,
) -> Result<(Answers, T)> {
    let until = Instant::now() + span;
    let _deaf = (0..DEAF).map(|_| node.inside(stalled)).collect::<Result<Vec<TcpStream>>>()?;
    std::thread::scope(|scope| {
        let crowd: Vec<_> = (0..SCRAPERS)
            .map(|i| scope.spawn(move || node.inside(|| scrape(paths[i % paths.len()], until, pause))))
            .collect();
        let done = act();
        let (mut times, mut size) = (Vec::new(), 0);
        for one in crowd {
            let (own, bytes) = one.join().map_err(|_| anyhow!("a scraper panicked"))??;
            times.extend(own);
            size = bytes;
        }
        times.sort_unstable();
        Ok(((times, size), done?))
    })
}

/// A client that requests the page repeatedly, and reads nothing.
fn stalled() -> Result<TcpStream> {
    let mut stream = TcpStream::connect(PAGE)?;
    stream.set_write_timeout(Some(Duration::from_millis(100)))?;
    for _ in 0..200 {
        if stream.write_all(b"GET / HTTP/1.1\r\nhost: localhost\r\n\r\n").is_err() {
            break;
        }
    }
    Ok(stream)
}

/// A client that sends requests on one connection until then.
fn scrape(path: &str, until: Instant, pause: Duration) -> Result<Answers> {
    let mut stream = TcpStream::connect(PAGE)?;
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(Duration::from_secs(10)))?;
    let request = format!("GET {path} HTTP/1.1\r\nhost: localhost\r\n\r\n");
    let (mut times, mut size, mut buffer) = (Vec::new(), 0, vec![0; 1 << 18]);
    while Instant::now() < until {
        let began = Instant::now();
        stream.write_all(request.as_bytes())?;
        let mut read = 0;
        loop {
            let more = stream.read(&mut buffer[read..])?;
            ensure!(more > 0, "{path}: closed");
            read += more;
            if let Some(whole) = length(&buffer[..read])
                && read >= whole
            {
                size = whole;
                break;
            }
        }
        times.push(began.elapsed());
        std::thread::sleep(pause);
    }
    Ok((times, size))
}

/// Length of the whole response, once its head is there.
fn length(answer: &[u8]) -> Option<usize> {
    let end = answer.windows(4).position(|four| four == b"\r\n\r\n")? + 4;
    let head = String::from_utf8_lossy(&answer[..end]);
    let body = head.lines().find_map(|line| line.strip_prefix("content-length: "))?;
    Some(end + body.parse::<usize>().ok()?)
}

fn endpoint(path: &str, (times, size): Answers, span: Duration) -> Result<()> {
    let ms = |time: Duration| time.as_secs_f64() * 1e3;
    let last = times.last().with_context(|| format!("{path}: no answer"))?;
    println!(
        "{path:<24} {:>10.0} {size:>8} {:>8.2} {:>8.2} {:>8.2}",
        times.len() as f64 / span.as_secs_f64(),
        ms(at(&times, 50)),
        ms(at(&times, 99)),
        ms(*last)
    );
    Ok(())
}
