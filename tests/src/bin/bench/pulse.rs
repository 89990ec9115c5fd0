//! `pulse`: the cost of pulses for a master, and how soon its silence is noticed, by the size of the cluster.
//!
//! One real agent next to a real listener is the master; all other members are simulated here with keys of
//! the cluster, seal like the transport and answer its challenges. They send no gossip, so the cost is that
//! of pulses alone. Detection is simulated with the real decision code where all gossip (for larger clusters
//! `proto/tests/attached` does it), and measured with ten agents.

use std::collections::{BTreeMap, VecDeque};
use std::net::{SocketAddr, UdpSocket};
use std::path::Path;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, anyhow, ensure};
use proto::cluster::{Admitted, Document, KeyId, Replica};
use proto::node::{Name, PublicKey, Role};
use proto::pulse::Pace;
use proto::time::UnixMs;
use proto::topology::{ALL_GOSSIP, Place, core_size, pace};
use proto::transport::{DatagramFrame, GossipKey, KeyRing, MAX_DATAGRAM};
use ring::signature::Ed25519KeyPair;
use tests::lab::{Lab, Node};
use tests::mesh::{Agent, GOSSIP, form_by, with_agents};
use tests::wire::{Speaker, public_key};

use super::idle::{received, sent};
use super::simulation;
use super::usage::run_seconds;
use super::{masters, option};

/// Sizes of clusters.
const SIZES: [usize; 4] = [10, 100, 1_000, 5_000];

/// Masters of each: they pulse each other faster than others pulse them.
const MASTERS: usize = 3;

/// Seeds of each simulated number.
const SEEDS: u64 = 200;

/// The gossip key, and the seed of the real node's identity.
const SECRET: [u8; 32] = [7; 32];
const SEED: [u8; 32] = [9; 32];

/// `pulse [--seconds S] [--cuts N] [SIZE…]`; with `--cuts 0` without the ten agents.
pub(crate) fn pulse(arguments: &[String]) -> Result<()> {
    let mut arguments = arguments.to_vec();
    let span = Duration::from_secs(option(&mut arguments, "--seconds", 10)?);
    let cuts = option(&mut arguments, "--cuts", 5)?;
    let sizes: Vec<usize> = match arguments.is_empty() {
        true => SIZES.to_vec(),
        false => arguments.iter().map(|size| size.parse()).collect::<Result<_, _>>()?,
    };
    println!("pulses on one master, over {} s for each size, idle CPU taken off:", span.as_secs());
    println!("  nodes  pulses/s  answers/s  lost %  CPU % of a core  us each  kB/s in  kB/s out");
    for size in &sizes {
        println!("  {}", Cost::measure(*size, span)?.row(*size, span));
    }
    println!("\na master's power is cut, simulated, {SEEDS} seeds, until down: ms with 0 % and 10 % loss");
    println!("each way; and downs an hour of one that is there, at 10 % and 20 %:");
    println!("  nodes  every ms  median  max  median, 10 %  max, 10 %  false, 10 %  false, 20 %");
    for size in sizes.iter().filter(|size| **size <= ALL_GOSSIP) {
        println!("  {}", simulated(*size));
    }
    if cuts > 0 {
        live(cuts)?;
    }
    Ok(())
}

/// Counts of one size.
struct Cost {
    pulses: u64,
    answers: u64,
    bytes_in: u64,
    bytes_out: u64,
    cpu: f64,
    idle: f64,
}

impl Cost {
    fn measure(size: usize, span: Duration) -> Result<Cost> {
        let mut measured = Err(anyhow!("nothing was measured"));
        with_agents(Lab::bridge(2), |lab, agents| {
            let _master = lab.nginx_master(0)?;
            let agent = &mut agents[0];
            let members = members(size)?;
            write_state(agent.state(), lab.node(0), &members)?;
            agent.options = vec!["--log-level".to_owned(), "warn".to_owned()];
            agent.run()?;
            agent.wait_until_asked()?;
            let pid = agent.process()?.pid();
            let mut senders = Senders::new(lab.node(1), lab.node(0), &members)?;
            senders.prove_all()?;
            // Until it has checked and published its service, an answer carries less.
            std::thread::sleep(Duration::from_secs(2));
            let began = run_seconds(pid)?;
            std::thread::sleep(span);
            let idle = run_seconds(pid)? - began;
            senders.run(Duration::from_secs(1))?;
            senders.forget();
            let began = run_seconds(pid)?;
            senders.run(span)?;
            let cpu = run_seconds(pid)? - began;
            let Senders { pulses, answers, bytes_in, bytes_out, .. } = senders;
            measured = Ok(Cost { pulses, answers, bytes_in, bytes_out, cpu, idle });
            Ok(())
        })?;
        measured
    }

    fn row(&self, size: usize, span: Duration) -> String {
        let seconds = span.as_secs_f64();
        let rate = |count: u64| count as f64 / seconds;
        let cpu = (self.cpu - self.idle).max(0.0);
        format!(
            "{size:>5}  {:>8.0}  {:>9.0}  {:>6.1}  {:>15.1}  {:>7.1}  {:>7.1}  {:>8.1}",
            rate(self.pulses),
            rate(self.answers),
            100.0 - 100.0 * self.answers as f64 / self.pulses.max(1) as f64,
            cpu / seconds * 100.0,
            cpu * 1e6 / self.pulses.max(1) as f64,
            rate(self.bytes_in) / 1e3,
            rate(self.bytes_out) / 1e3,
        )
    }
}

/// Pulses per second that one master gets in a cluster of this size.
fn pulses(size: usize) -> f64 {
    let rate = |nodes: usize, place, is_master| {
        nodes as f64 / pace(place, is_master, MASTERS, size).interval.as_secs_f64()
    };
    let masters = rate(MASTERS - 1, Place::Core, true);
    if size <= ALL_GOSSIP {
        return masters + rate(size - MASTERS, Place::Everyone, false);
    }
    let core = core_size(size);
    masters + rate(core - MASTERS, Place::Core, false) + rate(size - core, Place::Attached, false)
}

/// The seed of a member: the real node is the first.
fn seed(i: usize) -> [u8; 32] {
    let mut seed = SEED;
    seed[..8].copy_from_slice(&(i as u64).to_be_bytes());
    if i == 0 { SEED } else { seed }
}

/// The members: the real node first, then the simulated ones.
fn members(size: usize) -> Result<Vec<Admitted>> {
    let keys: Vec<PublicKey> = (0..size).map(|i| public_key(&seed(i))).collect::<Result<_>>()?;
    let by = keys.first().context("no members")?.id();
    let admitted =
        |(i, key)| Admitted::new(Name::nearest(&format!("m{i}")), key, Role::Master, by, UnixMs(1));
    Ok(keys.into_iter().enumerate().map(admitted).collect())
}

/// The state directory of a long-standing member.
fn write_state(dir: &Path, node: &Node, members: &[Admitted]) -> Result<()> {
    let key = KeyId::of_key(&SECRET);
    let first = members.first().context("no members")?;
    let mut document = Document::new([3; 16], Name::nearest("bench"), first.clone(), key);
    for member in members {
        document.admit(member.clone());
    }
    let pair = Ed25519KeyPair::from_seed_unchecked(&SEED).map_err(|_| anyhow!("a key from a seed"))?;
    let replica = Replica::new(document, first.key.id(), &pair);
    let mut keys = KeyRing::default();
    keys.add(GossipKey { epoch: 1, id: key, secret: SECRET, until: None });
    let own = serde_json::json!({
        "name": first.name, "address": node.mesh_ip(), "interface": node.interface,
        "pinned": false, "port": proto::transport::PORT,
    });
    let hex = |bytes: &[u8]| bytes.iter().map(|byte| format!("{byte:02x}")).collect::<String>();
    let files = BTreeMap::from([
        ("identity", serde_json::json!({ "seed": hex(&SEED) })),
        ("node", own),
        ("cluster", serde_json::to_value(&replica)?),
        ("keys", serde_json::to_value(&keys)?),
    ]);
    std::fs::create_dir_all(dir)?;
    for (name, value) in files {
        let body = format!("{}\n", serde_json::json!({ "version": 1, "value": value }));
        let sum = hex(ring::digest::digest(&ring::digest::SHA256, body.as_bytes()).as_ref());
        std::fs::write(dir.join(name), format!("agent-state 1 {sum}\n{body}"))?;
    }
    Ok(())
}

/// All the others, behind one socket.
struct Senders {
    socket: UdpSocket,
    to: SocketAddr,
    master: PublicKey,
    nodes: Vec<Speaker>,
    /// Members whose pulses have no answer yet, oldest first: a datagram does not name its receiver.
    waiting: VecDeque<usize>,
    gap: Duration,
    number: u64,
    pulses: u64,
    answers: u64,
    bytes_in: u64,
    bytes_out: u64,
}

impl Senders {
    fn new(from: &Node, to: &Node, members: &[Admitted]) -> Result<Senders> {
        let bind = SocketAddr::new(from.mesh_ip(), proto::transport::PORT);
        let socket = from.inside(|| Ok(UdpSocket::bind(bind)?))?;
        // Best effort: a second of answers.
        let _ = socket2::SockRef::from(&socket).set_recv_buffer_size(4 << 20);
        let nodes = (1..members.len()).zip(1_000..).map(|(i, boot)| Speaker::new(seed(i), SECRET, boot));
        Ok(Senders {
            socket,
            to: SocketAddr::new(to.mesh_ip(), proto::transport::PORT),
            master: members.first().context("no master")?.key,
            nodes: nodes.collect::<Result<_>>()?,
            waiting: VecDeque::new(),
            gap: Duration::from_secs_f64(1.0 / pulses(members.len())),
            number: 0,
            pulses: 0,
            answers: 0,
            bytes_in: 0,
            bytes_out: 0,
        })
    }

    fn send(&mut self, sender: usize, frame: DatagramFrame<'_>) -> Result<()> {
        let node = self.nodes.get_mut(sender).context("no such sender")?;
        let datagram = node.seal(&self.master, &[frame])?;
        // What does not fit into the socket is lost, as anywhere.
        let _ = self.socket.send_to(&datagram, self.to);
        self.bytes_in += datagram.len() as u64;
        Ok(())
    }

    /// Each sender pulses until it is challenged, and echoes the number. One after the other, since a
    /// challenge does not name its receiver.
    fn prove_all(&mut self) -> Result<()> {
        self.socket.set_read_timeout(Some(Duration::from_millis(50)))?;
        let mut buffer = [0; MAX_DATAGRAM];
        let began = Instant::now();
        for sender in 0..self.nodes.len() {
            let number = 'asked: loop {
                ensure!(began.elapsed() < GOSSIP, "sender {sender} was not challenged");
                self.send(sender, DatagramFrame::Pulse(1))?;
                while let Ok((length, _)) = self.socket.recv_from(&mut buffer) {
                    let opened = self.nodes[sender].open(&self.master, &buffer[..length])?;
                    let challenge = opened.as_deref().and_then(|plain| DatagramFrame::all(plain).next());
                    if let Some(DatagramFrame::Challenge(number)) = challenge {
                        break 'asked number;
                    }
                }
            };
            self.send(sender, DatagramFrame::Echo(number))?;
        }
        self.socket.set_nonblocking(true)?;
        Ok(())
    }

    fn forget(&mut self) {
        (self.pulses, self.answers, self.bytes_in, self.bytes_out) = (0, 0, 0, 0);
    }

    /// Pulses from all, evenly spread, for so long.
    fn run(&mut self, span: Duration) -> Result<()> {
        let mut buffer = [0; MAX_DATAGRAM];
        let began = Instant::now();
        let gap = self.gap;
        let mut sent: u32 = 0;
        // A little longer, for the last answers.
        while began.elapsed() < span + Duration::from_millis(50) {
            while gap * sent < began.elapsed().min(span) {
                self.number += 1;
                let sender = usize::try_from(sent)? % self.nodes.len();
                self.send(sender, DatagramFrame::Pulse(self.number))?;
                self.waiting.push_back(sender);
                self.pulses += 1;
                sent += 1;
            }
            while let Ok((length, _)) = self.socket.recv_from(&mut buffer) {
                if self.answered(&buffer[..length])? {
                    self.answers += 1;
                    self.bytes_out += length as u64;
                }
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        Ok(())
    }

    /// Whether this answers one of the waiting pulses. Answers come in the order of pulses; earlier ones were
    /// lost.
    fn answered(&mut self, datagram: &[u8]) -> Result<bool> {
        for at in 0..self.waiting.len().min(16) {
            let Some(plain) = self.nodes[self.waiting[at]].open(&self.master, datagram)? else { continue };
            self.waiting.drain(..=at);
            return Ok(matches!(DatagramFrame::all(&plain).next(), Some(DatagramFrame::Answer(1.., _))));
        }
        Ok(false)
    }
}

/// A row of simulated detection.
fn simulated(size: usize) -> String {
    let pace = Pace::FAST;
    let took = |loss: u64| -> Vec<u64> {
        let one = |seed: u64| {
            // At varying moments between two pulses.
            let cut = 20_000 + seed * 37 % 1_000;
            let world = simulation::World { cut, reporters: 2, ..simulation::World::new(pace, loss, 40_000) };
            let down = simulation::run(seed, world).downs;
            down.into_iter().find(|ms| *ms >= cut).map_or(u64::MAX, |ms| ms - cut)
        };
        let mut times: Vec<u64> = (0..SEEDS).map(one).collect();
        times.sort_unstable();
        times
    };
    let falsely = |loss: u64| -> f64 {
        let world = simulation::World { reporters: 2, ..simulation::World::new(pace, loss, 600_000) };
        let downs = |seed| simulation::run(seed, world).downs.len();
        (0..SEEDS).map(downs).sum::<usize>() as f64 / (SEEDS as f64 / 6.0)
    };
    let (clean, lossy) = (took(0), took(10));
    let middle = |times: &[u64]| times[times.len() / 2];
    let last = |times: &[u64]| times[times.len() - 1];
    format!(
        "{size:>5}  {:>8}  {:>6}  {:>3}  {:>12}  {:>9}  {:>11.3}  {:>11.3}",
        pace.interval.as_millis(),
        middle(&clean),
        last(&clean),
        middle(&lossy),
        last(&lossy),
        falsely(10),
        falsely(20)
    )
}

/// Ten agents, three of them masters: their traffic, and when each reports a master down after a power cut.
fn live(cuts: u64) -> Result<()> {
    const SPAN: Duration = Duration::from_secs(30);
    const SETTLED: Duration = Duration::from_secs(10);
    with_agents(Lab::bridge(10), |lab, agents| {
        let _masters = masters(lab)?;
        let interface = agents.first().context("no agents")?.node().interface;
        form_by(agents, 3, &["--iface", interface])?;
        for agent in agents.iter() {
            agent.wait_for_backend("n2", &["ready"], GOSSIP)?;
        }
        std::thread::sleep(Duration::from_secs(10));
        println!(
            "\nten agents, three masters, over {} s; bytes are payload of UDP, gossip included:",
            SPAN.as_secs()
        );
        println!("  node  kB/s out  kB/s in  CPU % of a core");
        let mut before = Vec::new();
        for agent in agents.iter_mut() {
            let pid = agent.process()?.pid();
            before.push((pid, sent(agent)?, received(agent)?, run_seconds(pid)?));
        }
        std::thread::sleep(SPAN);
        let (seconds, mut all) = (SPAN.as_secs_f64(), 0.0);
        for (agent, (pid, out, into, cpu)) in agents.iter().zip(before) {
            let cpu = (run_seconds(pid)? - cpu) / seconds * 100.0;
            let rate = |now: u64, before: u64| (now - before) as f64 / seconds / 1e3;
            let (out, into) = (rate(sent(agent)?, out), rate(received(agent)?, into));
            all += out;
            println!("  {:<4}  {out:>8.2}  {into:>7.2}  {cpu:>15.2}", agent.name());
        }
        println!("  mean  {:>8.2}", all / agents.len() as f64);
        let mut times = Vec::new();
        for _ in 0..cuts {
            // One that has been back for a moment is not yet what it was: reports of it are still of its absence.
            std::thread::sleep(SETTLED);
            times.extend(cut(lab, agents)?);
        }
        times.sort_unstable();
        let last = times.last().context("no agent said down")?;
        println!(
            "\n{cuts} power cuts of a master, until each of nine agents said down: min {} median {} max {last} ms",
            times[0],
            times[times.len() / 2]
        );
        Ok(())
    })
}

/// One power cut: after how many milliseconds each other agent reported down.
fn cut(lab: &Lab, agents: &[Agent<'_>]) -> Result<Vec<u64>> {
    const VICTIM: usize = 2;
    let others: Vec<&Agent<'_>> =
        agents.iter().enumerate().filter(|(i, _)| *i != VICTIM).map(|(_, agent)| agent).collect();
    lab.node(VICTIM).power_cut()?;
    let began = u64::try_from(SystemTime::now().duration_since(UNIX_EPOCH)?.as_millis())?;
    for agent in &others {
        agent.wait_for_backend("n2", &["down"], GOSSIP)?;
    }
    let mut times = Vec::new();
    for agent in &others {
        let events = agent.cli(&["events", "--json"])?.ok()?;
        let said = |line: &str| -> Option<u64> {
            let event: serde_json::Value = serde_json::from_str(line).ok()?;
            let is = event["subject"] == "kube-api/n2" && event["to"] == "down";
            event["time_unix_ms"].as_u64().filter(|at| is && *at >= began)
        };
        let at = events.lines().find_map(said).with_context(|| format!("{} tells no event", agent.name()))?;
        times.push(at - began);
    }
    lab.node(VICTIM).power_on()?;
    for agent in &others {
        agent.wait_for_backend("n2", &["ready"], GOSSIP)?;
    }
    Ok(times)
}
