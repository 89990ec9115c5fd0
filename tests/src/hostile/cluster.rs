//! The lab of the hostile suite, shared by all its rows, and the check at the end of each.
//!
//! ```text
//!   n0 n1 n2   masters, an nginx beside each          n4   the worker that turns hostile
//!   n3         a worker                               n5   on the network, no member
//! ```

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};

use super::Identity;
use super::identity::read_state;
use super::victim::{Cost, Victim};
use crate::lab::{Lab, Master, Node};
use crate::mesh::{Agent, GOSSIP, SOON, Status, form_by};
use crate::vip::{ADDRESS, vip};
use crate::wait::eventually;

/// The link's port.
pub const PORT: u16 = proto::transport::PORT;

/// The masters, which are also the names of their nodes.
pub const MASTERS: [&str; 3] = ["n0", "n1", "n2"];

/// The nodes whose agents stay honest and must never be harmed.
pub const HONEST: usize = 4;

/// The worker that turns hostile, and the node of a stranger.
const HOSTILE: usize = 4;
const STRANGER: usize = 5;

/// Most memory that an attack may cost, beyond what its connections need, in kilobytes.
const MEMORY: u64 = 64 * 1024;

/// Address of the victim's page, on loopback and in the mesh, for the user "ops".
pub const PAGE_PORT: u16 = 1936;

/// That user's password.
pub const PAGE_PASSWORD: &str = "correct horse";

/// What a connection may cost an agent, in kilobytes: its task, TLS with its buffers, and the buffer of a
/// partial message.
const CONNECTION: u64 = 64;

/// A row of the table: what was sent, and over how many connections at once.
#[derive(Debug, Default)]
pub struct Sent {
    /// Bytes.
    pub bytes: u64,
    /// Most connections to the victim at once.
    pub connections: u64,
    /// A note for the table.
    pub note: String,
}

/// Identifies a run of an honest agent: another process or start would be another one.
#[derive(Debug, PartialEq, Eq)]
struct Start {
    pid: u32,
    started_unix_ms: u64,
}

/// The lab and its agents. It stays up for the whole suite.
pub struct Cluster {
    /// The network.
    pub lab: &'static Lab,
    /// One on every node; that of the stranger is never started by itself.
    pub agents: Vec<Agent<'static>>,
    masters: Vec<Master>,
}

static CLUSTER: Mutex<Option<Cluster>> = Mutex::new(None);

/// The one cluster, for one row at a time; the first row builds it. A failed row leaves a cluster in an
/// unknown state, so the next row builds another.
///
/// # Errors
/// It can't be built, or the row's own.
pub fn row(attack: &str, act: impl FnOnce(&mut Cluster) -> Result<Sent>) -> Result<()> {
    let mut shared = lock();
    if shared.is_none() {
        *shared = Some(Cluster::build()?);
    }
    let cluster = shared.as_mut().context("it was just built")?;
    let result = cluster.row(attack, act);
    if result.is_err() {
        eprintln!("{}", cluster.lab.tails(40));
        *shared = None;
    }
    result
}

fn lock() -> MutexGuard<'static, Option<Cluster>> {
    CLUSTER.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Cluster {
    fn build() -> Result<Cluster> {
        // Never freed: everything in it ends with this process, by the lab's guard.
        let lab: &'static Lab = Box::leak(Box::new(Lab::bridge(6)?));
        let masters = (0..3).map(|i| lab.nginx_master(i)).collect::<Result<Vec<_>>>()?;
        let mut agents = lab.nodes().iter().map(Agent::new).collect::<Result<Vec<_>>>()?;
        let config = lab.dir().join("agent.toml");
        let at = format!("[\"127.0.0.1:{PAGE_PORT}\", \"{}:{PAGE_PORT}\"]", lab.node(0).mesh_ip());
        let web = format!("[web]\nlisten = {at}\nuser = \"ops\"\npassword = \"{PAGE_PASSWORD}\"\n");
        std::fs::write(&config, web)?;
        // The others find theirs by the route to the first.
        agents[0].options = vec!["--iface".to_owned(), agents[0].node().interface.to_owned()];
        agents[0].options.extend(["--config".to_owned(), config.to_string_lossy().into_owned()]);
        form_with_vip(&mut agents[..=HONEST])?;
        let mut cluster = Cluster { lab, agents, masters };
        for agent in cluster.honest() {
            for master in MASTERS {
                agent.wait_for_backend(master, &["ready"], GOSSIP)?;
            }
        }
        let (owner, _) = eventually("the address has an owner", GOSSIP, || cluster.vip_owner())?;
        ensure!(MASTERS.contains(&owner.as_str()), "{owner} owns the address");
        cluster.agents[HOSTILE].kill()?;
        println!(
            "\n{:<58} {:>10} {:>5} {:>7} {:>7} {:>9} {:>9}",
            "attack", "bytes", "conns", "s", "CPU s", "RSS kB", "peak +kB"
        );
        Ok(cluster)
    }

    /// The owner of the virtual IP, as all honest agents agree.
    ///
    /// # Errors
    /// They do not agree.
    pub fn vip_owner(&self) -> Result<String> {
        let mut owners = BTreeMap::new();
        for agent in self.honest() {
            let seen = vip(agent, &ADDRESS.to_string())?;
            let owner = seen.owner.clone().with_context(|| format!("no owner: {seen:?}"))?;
            let has = agent.node().exec(&["ip", "-4", "-o", "addr", "show", "dev", "eth0"])?.ok()?;
            let has = has.contains(&format!(" {ADDRESS}/"));
            ensure!(has == (owner == agent.name()), "{owner} owns it, and {} has it: {has}", agent.name());
            owners.entry(owner).or_insert_with(Vec::new).push(agent.name());
        }
        ensure!(owners.len() == 1, "they disagree: {owners:?}");
        owners.into_keys().next().context("nobody was asked")
    }

    /// The agents that stay honest.
    pub fn honest(&self) -> &[Agent<'static>] {
        &self.agents[..HONEST]
    }

    /// The agent that attacks are measured on.
    pub fn victim(&self) -> &Agent<'static> {
        &self.agents[0]
    }

    /// Its transport address.
    pub fn target(&self) -> SocketAddr {
        self.link_of(0)
    }

    /// A node's transport address.
    pub fn link_of(&self, node: usize) -> SocketAddr {
        SocketAddr::new(self.lab.node(node).mesh_ip(), PORT)
    }

    /// The masters' stand-ins.
    pub fn masters(&mut self) -> &mut [Master] {
        &mut self.masters
    }

    /// The node of the hostile worker.
    pub fn hostile_node(&self) -> &'static Node {
        self.lab.node(HOSTILE)
    }

    /// The agent of the hostile worker; it does not run during attacks.
    pub fn hostile_agent(&mut self) -> &mut Agent<'static> {
        &mut self.agents[HOSTILE]
    }

    /// The keys of the hostile worker.
    ///
    /// # Errors
    /// They can't be read.
    pub fn hostile(&self) -> Result<Identity> {
        Identity::of_state(self.agents[HOSTILE].state())
    }

    /// The node of the stranger.
    pub fn stranger_node(&self) -> &'static Node {
        self.lab.node(STRANGER)
    }

    /// An agent that was never a member, on the stranger's node.
    pub fn stranger_agent(&mut self) -> &mut Agent<'static> {
        &mut self.agents[STRANGER]
    }

    /// A value of a node's state directory.
    ///
    /// # Errors
    /// It can't be read.
    pub fn state<T: serde::de::DeserializeOwned>(&self, node: usize, name: &str) -> Result<T> {
        read_state(self.agents[node].state(), name)
    }

    /// The last generation of the hostile worker's agent; 0: it was stopped before it gossiped.
    ///
    /// # Errors
    /// It can't be read.
    pub fn hostile_generation(&self) -> Result<u64> {
        if !self.agents[HOSTILE].state().join("generation").exists() {
            return Ok(0);
        }
        self.state(HOSTILE, "generation")
    }

    /// Removes the hostile worker if it is a member, and waits until all honest nodes know.
    ///
    /// # Errors
    /// They do not in time.
    pub fn remove_hostile(&self) -> Result<()> {
        let name = &self.hostile_node().name;
        let is_member = |status: &Status| status.members.iter().any(|member| member.name == *name);
        if !is_member(&self.victim().status()?) {
            return Ok(());
        }
        self.victim().cli(&["remove", name])?.ok()?;
        for agent in self.honest() {
            eventually(&format!("{} knows that {name} is out", agent.name()), SOON, || {
                ensure!(!is_member(&agent.status()?), "it is listed");
                Ok(())
            })?;
        }
        Ok(())
    }

    /// Makes the hostile worker a member again, under a new identity.
    ///
    /// # Errors
    /// It is not let in.
    pub fn readmit(&mut self) -> Result<()> {
        self.remove_hostile()?;
        let line = self.invite(&[])?;
        let agent = &mut self.agents[HOSTILE];
        agent.cli(&["leave", "--force"])?.ok()?;
        agent.join(&line)?;
        agent.kill()
    }

    /// A new invite.
    ///
    /// # Errors
    /// None is made.
    pub fn invite(&self, options: &[&str]) -> Result<String> {
        let out = self.victim().cli(&[&["invite"], options].concat())?.ok()?;
        crate::mesh::invite_in(&out).with_context(|| format!("no invite in: {out}"))
    }

    fn starts(&mut self) -> Result<BTreeMap<String, Start>> {
        let mut starts = BTreeMap::new();
        for agent in &mut self.agents[..HONEST] {
            ensure!(agent.is_running(), "the agent of {} has ended", agent.name());
            let pid = agent.process()?.pid();
            let started_unix_ms = agent.status()?.node.started_unix_ms;
            starts.insert(agent.name().to_owned(), Start { pid, started_unix_ms });
        }
        Ok(starts)
    }

    fn row(&mut self, attack: &str, act: impl FnOnce(&mut Cluster) -> Result<Sent>) -> Result<()> {
        let starts = self.starts()?;
        let pid = self.agents[0].process()?.pid();
        let watched = Victim::watch(pid)?;
        let sent = act(self)?;
        self.all_is_well(&starts).with_context(|| format!("after: {attack}"))?;
        let cost = watched.cost()?;
        report(attack, &sent, cost);
        let most = MEMORY + sent.connections * CONNECTION;
        let more = cost.peak.saturating_sub(cost.before);
        ensure!(more <= most, "{attack}: {more} kB more at its peak, {most} are allowed");
        Ok(())
    }

    /// The API is reachable from every honest node, at once; no agent was restarted; status is correct and
    /// the same everywhere.
    fn all_is_well(&mut self, starts: &BTreeMap<String, Start>) -> Result<()> {
        for agent in self.honest() {
            let who = agent.who_serves().with_context(|| format!("no API on {}", agent.name()))?;
            ensure!(MASTERS.contains(&who.as_str()), "{} is served by {who}", agent.name());
        }
        let (owner, _) = eventually("the address has one owner", SOON, || self.vip_owner())?;
        ensure!(MASTERS.contains(&owner.as_str()), "{owner} owns the address");
        let now = self.starts()?;
        ensure!(now == *starts, "an agent was started again: {starts:?}, {now:?}");
        let mut documents = BTreeMap::new();
        for agent in &self.agents[..HONEST] {
            let (status, _) = eventually(&format!("status of {} is true", agent.name()), SOON, || {
                let status = agent.status()?;
                self.is_true(&status)?;
                Ok(status)
            })?;
            documents.entry(status.cluster.document).or_insert_with(Vec::new).push(agent.name());
        }
        if documents.len() > 1 {
            eventually("all hold one document", SOON, || {
                let first = self.victim().status()?.cluster.document;
                for agent in self.honest() {
                    let own = agent.status()?.cluster.document;
                    ensure!(own == first, "{} holds {own}, n0 {first}", agent.name());
                }
                Ok(())
            })?;
        }
        Ok(())
    }

    /// The backends are the masters at their own addresses and ready; honest nodes are up; a problem names
    /// the hostile node, or a stranger's address.
    fn is_true(&self, status: &Status) -> Result<()> {
        let [service] = status.services.as_slice() else { bail!("services: {:?}", status.services) };
        let is: BTreeMap<&str, (String, &str)> = service
            .backends
            .iter()
            .map(|backend| (backend.node.as_str(), (backend.address.clone(), backend.state.as_str())))
            .collect();
        let wanted: BTreeMap<&str, (String, &str)> =
            (0..3).map(|i| (MASTERS[i], (format!("{}:6443", self.lab.node(i).mesh_ip()), "ready"))).collect();
        ensure!(is == wanted, "backends: {is:?}");
        for agent in self.honest() {
            let member = status.member(agent.name())?;
            ensure!(member.state == "up", "{} is {}", member.name, member.state);
            let at = agent.node().mesh_ip().to_string();
            ensure!(member.address.contains(&at), "{} is at {}", member.name, member.address);
        }
        let offenders: [IpAddr; 2] = [self.hostile_node().mesh_ip(), self.stranger_node().mesh_ip()];
        for problem in &status.problems {
            let text = format!("{problem:?}");
            let named = text.contains(&self.hostile_node().name)
                || offenders.iter().any(|ip| text.contains(&ip.to_string()));
            ensure!(named, "a problem that names nobody who did wrong: {text}");
        }
        ensure!(!status.node.removed, "it holds itself for removed");
        Ok(())
    }

    /// A change by one master reaches every honest node: sync between members works.
    ///
    /// # Errors
    /// It does not in time.
    pub fn a_change_spreads(&self) -> Result<Duration> {
        let [master, .., worker] = self.honest() else { bail!("too few") };
        master.cli(&["drain", "n2"])?.ok()?;
        let took = worker.wait_for_backend("n2", &["draining"], SOON)?;
        master.cli(&["undrain", "n2"])?.ok()?;
        worker.wait_for_backend("n2", &["ready"], SOON)?;
        Ok(took)
    }
}

/// Forms a cluster whose masters keep an address.
fn form_with_vip(agents: &mut [Agent<'_>]) -> Result<()> {
    form_by(agents, MASTERS.len(), &["--vip", &ADDRESS.to_string()]).map(drop)
}

fn report(attack: &str, sent: &Sent, cost: Cost) {
    let more = cost.peak.saturating_sub(cost.before);
    println!(
        "{attack:<58} {:>10} {:>5} {:>7.2} {:>7.2} {:>9} {:>9}  {}",
        sent.bytes, sent.connections, cost.seconds, cost.cpu, cost.before, more, sent.note
    );
}
