//! `memory`: what the agent's cgroup is charged for many held connections and slow readers of large data, for
//! the MemoryMax of the unit. Cgroups charge socket buffers too, which are nearly all of it.
//!
//! In a cgroup of version 2 memory.peak has all of it. Version 1 counts TCP buffers separately, so the sum of
//! both peaks is shown: no less than version 2 would show.

use std::io::Read;
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use tests::lab::{Lab, Node};
use tests::mesh::{Agent, GOSSIP, with_agents};
use tests::peers::local;
use tests::wait::eventually;

use super::option;
use super::proxy::most_held;
use super::traffic;
use super::usage::memory as resident;

/// Ports of the server and of the proxy.
const SERVER: u16 = 7001;
const PROXY: u16 = 17001;

/// Bytes per read of a slow reader, and its interval: 40 kB/s.
const SIP: usize = 4096;
const PAUSE: Duration = Duration::from_millis(100);

/// Where cgroups are.
const ROOT: &str = "/sys/fs/cgroup";

pub(crate) fn memory(arguments: &[String]) -> Result<()> {
    let mut arguments = arguments.to_vec();
    let slow = option(&mut arguments, "--slow", 500)?;
    let held = option(&mut arguments, "--held", 8_000)?.min(most_held()?.saturating_sub(slow));
    let span = Duration::from_secs(option(&mut arguments, "--seconds", 30)?);
    let limit = option(&mut arguments, "--limit-mb", 0)?;
    ensure!(arguments.is_empty(), "what is {arguments:?}?");
    with_agents(Lab::bridge(1), |lab, agents| {
        let agent = agents.first_mut().context("no agent")?;
        let node = lab.node(0);
        node.exec(&["sysctl", "-qw", "net.ipv4.ip_local_port_range=20000 65000"])?.ok()?;
        start(lab, node, agent)?;
        let pid = agent.process()?.pid();
        let group = Group::around(pid, limit)?;
        println!("{:<44} {:>9} {:>9} {:>9}", "MB", "resident", "charged", "peak");
        let show = |what: &str| -> Result<()> {
            let (now, peak) = group.charged()?;
            let own = resident(pid)?.0 * 1024;
            println!("{what:<44} {:>9.1} {:>9.1} {:>9.1}", mb(own), mb(now), mb(peak));
            Ok(())
        };
        show("idle")?;
        let server = SocketAddr::new(node.mesh_ip(), SERVER);
        node.inside(|| {
            let _kept = traffic::serve(server)?;
            eventually("the agent carries", GOSSIP, || traffic::hold(local(PROXY), 1).map(drop))?;
            let idle = traffic::hold(local(PROXY), held)?;
            show(&format!("{held} held"))?;
            let mut readers = traffic::sources(local(PROXY), slow)?;
            let began = Instant::now();
            let mut read = 0;
            for second in 1..=span.as_secs() {
                while began.elapsed() < Duration::from_secs(second) {
                    read += sip(&mut readers)?;
                    std::thread::sleep(PAUSE);
                }
                if second.is_power_of_two() || second == span.as_secs() {
                    show(&format!("{held} held, {slow} slow readers, {second} s"))?;
                }
            }
            println!(
                "slow readers got {:.0} kB/s each",
                read as f64 / 1e3 / slow as f64 / span.as_secs_f64()
            );
            let gone = traffic::ended(&idle);
            ensure!(gone == 0, "{gone} held connections were ended");
            Ok(())
        })?;
        let events = group.events()?;
        println!("{events}");
        ensure!(agent.is_running(), "the agent was killed");
        Ok(())
    })
}

fn mb(bytes: u64) -> f64 {
    bytes as f64 / 1e6
}

/// The agent, with a service in front of the server.
fn start(lab: &Lab, node: &Node, agent: &mut Agent<'_>) -> Result<()> {
    let config = lab.dir().join("memory.toml");
    let listen = local(PROXY);
    let service = "[[service]]\nname = \"bulk\"\ncheck = \"tcp\"\nmaxconn = 20000\n";
    std::fs::write(&config, format!("{service}listen = \"{listen}\"\nport = {SERVER}\n"))?;
    agent.options = vec!["--config".to_owned(), config.to_string_lossy().into_owned()];
    agent.init_with(&["--iface", node.interface])?;
    Ok(())
}

/// Each reader reads a little, if there is something.
fn sip(readers: &mut [TcpStream]) -> Result<u64> {
    let (mut sum, mut buffer) = (0, [0; SIP]);
    for reader in readers {
        match reader.read(&mut buffer) {
            Ok(0) => anyhow::bail!("a slow reader was ended"),
            Ok(read) => sum += read as u64,
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(sum)
}

/// A cgroup with the agent alone in it.
struct Group {
    dir: PathBuf,
    /// Memory is a controller of version 1 here.
    old: bool,
}

impl Group {
    /// Moves a running process into one. Its earlier memory stays charged elsewhere.
    fn around(pid: u32, limit_mb: u64) -> Result<Group> {
        let controllers = std::fs::read_to_string(Path::new(ROOT).join("cgroup.controllers"));
        let old = !controllers.unwrap_or_default().split_whitespace().any(|one| one == "memory");
        let root = if old { Path::new(ROOT).join("memory") } else { ROOT.into() };
        let dir = root.join(format!("agent-bench-{}", std::process::id()));
        std::fs::create_dir(&dir).with_context(|| format!("make {}", dir.display()))?;
        let group = Group { dir, old };
        if old {
            // TCP is counted only with a limit.
            let bytes = if limit_mb == 0 { 1 << 50 } else { limit_mb * 1_000_000 };
            group.write("memory.kmem.tcp.limit_in_bytes", bytes)?;
            group.write("memory.limit_in_bytes", bytes)?;
        } else if limit_mb > 0 {
            group.write("memory.max", limit_mb * 1_000_000)?;
        }
        group.write("cgroup.procs", u64::from(pid))?;
        Ok(group)
    }

    fn write(&self, file: &str, value: u64) -> Result<()> {
        std::fs::write(self.dir.join(file), value.to_string()).with_context(|| format!("write {file}"))
    }

    fn read(&self, file: &str) -> Result<u64> {
        let text = std::fs::read_to_string(self.dir.join(file)).with_context(|| file.to_owned())?;
        Ok(text.trim().parse()?)
    }

    /// The current charge, and the peak.
    fn charged(&self) -> Result<(u64, u64)> {
        if !self.old {
            return Ok((self.read("memory.current")?, self.read("memory.peak")?));
        }
        let both = |user: &str, tcp: &str| Ok(self.read(user)? + self.read(tcp)?);
        let now: Result<u64> = both("memory.usage_in_bytes", "memory.kmem.tcp.usage_in_bytes");
        let peak: Result<u64> = both("memory.max_usage_in_bytes", "memory.kmem.tcp.max_usage_in_bytes");
        Ok((now?, peak?))
    }

    /// How often it hit its limit, as text.
    fn events(&self) -> Result<String> {
        if self.old {
            let (user, tcp) = (self.read("memory.failcnt")?, self.read("memory.kmem.tcp.failcnt")?);
            let kills = std::fs::read_to_string(self.dir.join("memory.oom_control"))?.replace('\n', ", ");
            return Ok(format!("limit met {user} times by memory, {tcp} times by TCP; {kills}"));
        }
        Ok(std::fs::read_to_string(self.dir.join("memory.events"))?.replace('\n', ", "))
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        let out = self.dir.parent().map(|root| root.join("cgroup.procs"));
        let pids = std::fs::read_to_string(self.dir.join("cgroup.procs")).unwrap_or_default();
        for pid in pids.lines() {
            let _ = out.as_ref().map(|out| std::fs::write(out, pid));
        }
        let _ = std::fs::remove_dir(&self.dir);
    }
}
