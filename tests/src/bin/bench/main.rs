//! Measures the promised numbers: `cargo run --release -p tests --bin bench -- NAME`, as root, with AGENT_BIN
//! naming a release build (`deploy/build` prints its path).
//!
//! Never part of a test: machines differ, and a timed test only shows how busy one was.

mod balancers;
mod etcd;
mod faults;
mod idle;
mod memory;
mod pods;
mod proxy;
mod pulse;
mod samples;
mod scale;
mod serving;
#[path = "../../../../proto/tests/simulation/mod.rs"]
mod simulation;
mod tls;
mod traffic;
mod upgrade;
mod usage;
mod vip;
mod web;

use std::process::ExitCode;

use anyhow::{Result, bail};
use tests::lab::{Lab, Master};

type Bench = fn(&[String]) -> Result<()>;

/// Every bench, with what it measures.
const BENCHES: &[(&str, &str, Bench)] = &[
    ("join", "from `agent join` to the first answer through the new node", |_| serving::join()),
    ("start", "from `agent run` to the first answer, nobody else up", |_| serving::start()),
    ("idle", "memory and CPU of agents that only watch; [--segment] [--seconds S]", idle::idle),
    ("vip-idle", "the same without and with virtual IPs; [--nodes N] [--seconds S]", idle::vips),
    ("gossip", "bytes that a node sends, by the size of the cluster", |_| idle::gossip()),
    (
        "faults",
        "what clients notice of faults, beside haproxy; [--runs N] [--after S] [ROW…]",
        faults::faults,
    ),
    (
        "proxy",
        "the data path, beside haproxy and nginx; [--rounds N] [--seconds S] [--held N] [ROW…]",
        proxy::proxy,
    ),
    (
        "memory",
        "what held connections and slow readers charge a cgroup; [--held N] [--slow N] [--seconds S] [--limit-mb M]",
        memory::memory,
    ),
    ("vip", "the owner of an address fails, beside keepalived; [--runs N] [--labs N] [WORD…]", vip::vip),
    (
        "balancers",
        "a master or a balancer fails, beside haproxy and keepalived; [--runs N] [--after S]",
        balancers::balancers,
    ),
    ("pods", "a pod's way to the API while a master is away; [--runs N] [--after S]", pods::pods),
    (
        "pulse",
        "what pulses cost a master, and how soon it is missed; [--seconds S] [--cuts N] [SIZE…]",
        pulse::pulse,
    ),
    (
        "scale",
        "nodes that join at once, at rest, and while a master is cut; [--sizes N,N…] [--trace]",
        scale::scale,
    ),
    (
        "upgrade",
        "replacements under load, beside haproxy and nginx; [--held N] [--bulk N] [--turns N] [--after S]",
        upgrade::upgrade,
    ),
    ("web", "what page and metrics cost, and how soon they answer; [--seconds S] [--pause MS]", web::web),
    ("etcd", "a watch and puts while members fail, beside haproxy; [--after S]", etcd::etcd),
];

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    match run(&arguments) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("bench: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: &[String]) -> Result<()> {
    let name = arguments.first().map_or("", String::as_str);
    let Some((_, _, bench)) = BENCHES.iter().find(|(one, _, _)| *one == name) else {
        let list: String = BENCHES.iter().map(|(name, what, _)| format!("\n  {name:<8} {what}")).collect();
        bail!("there is no bench \"{name}\"; there are:{list}");
    };
    bench(&arguments[1..])
}

fn masters(lab: &Lab) -> Result<Vec<Master>> {
    (0..3).map(|i| lab.nginx_master(i)).collect()
}

/// Removes `--name NUMBER` from the arguments.
fn option(arguments: &mut Vec<String>, name: &str, default: u64) -> Result<u64> {
    let Some(at) = arguments.iter().position(|one| one == name) else { return Ok(default) };
    let value = arguments.get(at + 1).and_then(|value| value.parse().ok());
    let Some(value) = value else { bail!("{name} wants a number behind it") };
    arguments.drain(at..at + 2);
    Ok(value)
}
