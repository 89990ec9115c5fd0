//! What a connection costs the agent, and what it keeps: counted by the kernel, never timed.

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use tests::lab::{Lab, Node, Signal};
use tests::mesh::{Agent, GOSSIP, SOON, with_agents};
use tests::peers::{local, require};
use tests::wait::eventually;

/// Ports of the server and of the proxy.
const SERVER: u16 = 7_001;
const PROXY: u16 = 17_001;

/// Short connections of which the system calls are counted.
const CONNECTIONS: u32 = 400;

/// Most system calls for one of them: accept, read, socket, connect, write, two registrations, the answer's read and
/// write, shutdown, the end's read, two closes, and what it waits between these.
const MOST_CALLS: f64 = 18.0;

/// What both ends of a short connection send.
const SMALL: [u8; 100] = [7; 100];

/// A server that answers as much once and closes; a client that sends nothing is held.
fn serve(address: SocketAddr) -> Result<()> {
    let listener = TcpListener::bind(address)?;
    std::thread::spawn(move || {
        for mut client in listener.incoming().flatten() {
            std::thread::spawn(move || -> Result<()> {
                let mut question = SMALL;
                client.set_nodelay(true)?;
                client.read_exact(&mut question[..1])?;
                client.read_exact(&mut question)?;
                Ok(client.write_all(&question)?)
            });
        }
    });
    Ok(())
}

/// One byte, a small message, its answer, and the end: in the bench it is called a short connection.
fn short(address: SocketAddr) -> Result<()> {
    let mut client = TcpStream::connect(address)?;
    client.set_nodelay(true)?;
    client.set_read_timeout(Some(Duration::from_secs(10)))?;
    client.write_all(&SMALL[..1])?;
    client.write_all(&SMALL)?;
    let mut answer = Vec::new();
    client.read_to_end(&mut answer)?;
    ensure!(answer == SMALL, "an answer of {} bytes", answer.len());
    Ok(())
}

/// An agent with one service, whose server is on the same node.
fn with_service(test: impl FnOnce(&Node, &mut Agent<'_>) -> Result<()>) -> Result<()> {
    with_agents(Lab::bridge(1), |lab, agents| {
        let agent = agents.first_mut().context("no agent")?;
        let node = lab.node(0);
        node.inside(|| serve(SocketAddr::new(node.mesh_ip(), SERVER)))?;
        let config = lab.dir().join("agent.toml");
        let listen = local(PROXY);
        std::fs::write(
            &config,
            format!(
                "[[service]]\nname = \"short\"\nlisten = \"{listen}\"\nport = {SERVER}\ncheck = \"tcp\"\n"
            ),
        )?;
        agent.options = vec!["--config".to_owned(), config.to_string_lossy().into_owned()];
        agent.init_with(&["--iface", node.interface])?;
        eventually("the agent carries", GOSSIP, || node.inside(|| short(listen)))?;
        test(node, agent)
    })
}

/// The threads that serve clients.
fn proxy_threads(pid: u32) -> Result<Vec<String>> {
    let mut found = Vec::new();
    for task in std::fs::read_dir(format!("/proc/{pid}/task"))? {
        let task = task?;
        if std::fs::read_to_string(task.path().join("comm"))?.trim() == "proxy" {
            found.push(task.file_name().to_string_lossy().into_owned());
        }
    }
    Ok(found)
}

/// How often each system call is in a summary of `strace -c`.
fn calls(summary: &str) -> BTreeMap<String, u32> {
    let call = |line: &str| {
        let fields: Vec<&str> = line.split_whitespace().collect();
        let count = fields.get(3)?.parse().ok()?;
        let name = fields.last().filter(|name| **name != "total")?;
        Some(((*name).to_owned(), count))
    };
    summary.lines().filter_map(call).collect()
}

#[test]
fn a_short_connection_costs_few_system_calls() -> Result<()> {
    require(&[("strace", "strace")])?;
    with_service(|node, agent| {
        let threads = proxy_threads(agent.process()?.pid())?;
        ensure!(!threads.is_empty(), "no thread is named proxy");
        let summary = node.dir().join("strace");
        let file = summary.to_string_lossy().into_owned();
        let mut command = vec!["strace", "-c", "-o", &file];
        command.extend(threads.iter().flat_map(|thread| ["-p", thread]));
        let mut strace = node.spawn("strace", &command)?;
        eventually("strace sees every thread", SOON, || {
            let attached = strace.tail(20).matches(" attached").count();
            ensure!(attached == threads.len(), "it sees {attached} of {}", threads.len());
            Ok(())
        })?;
        node.inside(|| (0..CONNECTIONS).try_for_each(|_| short(local(PROXY))))?;
        strace.signal(Signal::INT)?;
        strace.ended(SOON)?;
        let mut calls = calls(&std::fs::read_to_string(&summary)?);
        // A debug build asks before each close whether the descriptor is open; a release build has no such call.
        calls.remove("fcntl");
        let each = |count: u32| f64::from(count) / f64::from(CONNECTIONS);
        let mut sorted: Vec<(f64, &str)> =
            calls.iter().map(|(name, count)| (each(*count), name.as_str())).collect();
        sorted.sort_by(|a, b| b.0.total_cmp(&a.0));
        let all = each(calls.values().sum());
        for (count, name) in &sorted {
            println!("{count:>6.2} {name}");
        }
        println!("{all:>6.2} in all");
        ensure!(calls.contains_key("connect"), "strace has counted nothing of a connection: {sorted:?}");
        ensure!(all <= MOST_CALLS, "{all:.1} system calls for each: {sorted:?}");
        Ok(())
    })
}

#[test]
fn a_held_connection_is_kept_alive_on_both_sides() -> Result<()> {
    with_service(|node, _| {
        let held = node.inside(|| Ok(TcpStream::connect(local(PROXY))?))?;
        for (side, filter) in
            [("the client's", format!("sport = :{PROXY}")), ("the backend's", format!("dport = :{SERVER}"))]
        {
            eventually(&format!("{side} socket has a timer of keepalive"), SOON, || {
                let shown = node.exec(&["ss", "-Htno", "state", "established", &filter])?.ok()?;
                ensure!(shown.contains("timer:(keepalive,"), "{shown}");
                Ok(())
            })?;
        }
        drop(held);
        Ok(())
    })
}
