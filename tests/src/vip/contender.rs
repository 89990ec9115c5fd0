//! Implementations that keep the address.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde::Deserialize;

use super::{ADDRESS, CANDIDATES, WORKER};
use crate::lab::Proc;
use crate::mesh::{Agent, form_by};

/// An implementation that keeps an address on one of the first nodes of a lab.
pub trait Contender {
    /// Number of nodes that can own the address: the first ones.
    fn candidates(&self) -> usize;

    /// Its process on a node.
    ///
    /// # Errors
    /// There is none.
    fn process(&mut self, node: usize) -> Result<&mut Proc>;

    /// Starts it again on a node, after it was killed or stopped.
    ///
    /// # Errors
    /// It can't be started.
    fn start(&mut self, node: usize) -> Result<()>;

    /// The node that owns the address, once all agree on that and on the next one.
    ///
    /// # Errors
    /// Not yet, with the reason.
    fn ready(&mut self) -> Result<usize>;

    /// How long the client has to see one owner before the stage is ready.
    fn calm(&self) -> Duration;

    /// Its last output, for a failed run.
    fn words(&self) -> String;
}

/// A VIP in `agent status --json`; a definition of its own, since scripts have theirs too.
#[derive(Debug, Clone, Deserialize)]
#[allow(missing_docs)] // README has them
pub struct Vip {
    pub address: String,
    pub state: String,
    pub owner: Option<String>,
    pub epoch: u64,
    pub interface: Option<String>,
    pub since_unix_ms: u64,
    #[serde(default)]
    pub cause: Option<String>,
    pub reason: String,
    pub candidates: Vec<Candidate>,
}

/// A candidate, with the reason if it is not eligible.
#[derive(Debug, Clone, Deserialize)]
#[allow(missing_docs)]
pub struct Candidate {
    pub node: String,
    pub rank: u64,
    pub eligible: bool,
    #[serde(default)]
    pub cause: Option<String>,
    pub reason: String,
}

/// A VIP as an agent sees it.
///
/// # Errors
/// It does not know it, or reports it in another shape.
pub fn vip(agent: &Agent<'_>, address: &str) -> Result<Vip> {
    let status = agent.status()?;
    let all = status.vips.iter().cloned().map(serde_json::from_value::<Vip>);
    let all = all.collect::<Result<Vec<Vip>, _>>().with_context(|| format!("{:?}", status.vips))?;
    all.into_iter()
        .find(|one| one.address == address)
        .with_context(|| format!("{} does not list {address}: {:?}", agent.name(), status.vips))
}

/// Our implementation: an agent on every candidate and on the worker.
pub struct Agents<'stage, 'lab> {
    agents: &'stage mut [Agent<'lab>],
}

impl<'stage, 'lab> Agents<'stage, 'lab> {
    /// Forms a cluster of the candidates and the worker that keeps the address.
    ///
    /// # Errors
    /// It does not form.
    pub fn form(agents: &'stage mut [Agent<'lab>]) -> Result<Agents<'stage, 'lab>> {
        let agents = agents.get_mut(..=WORKER).context("an agent for every candidate and the worker")?;
        let address = ADDRESS.to_string();
        let interface = agents.first().context("no agents")?.node().interface;
        form_by(agents, usize::MAX, &["--iface", interface, "--vip", &address])?;
        Ok(Agents { agents })
    }

    /// The agent of a node.
    pub fn agent(&self, i: usize) -> &Agent<'lab> {
        &self.agents[i]
    }

    /// The agent of a node, to start and stop it.
    pub fn agent_mut(&mut self, i: usize) -> &mut Agent<'lab> {
        &mut self.agents[i]
    }

    /// The address as the worker sees it.
    ///
    /// # Errors
    /// As [`vip`].
    pub fn seen(&self) -> Result<Vip> {
        vip(self.agent(WORKER), &ADDRESS.to_string())
    }
}

impl Contender for Agents<'_, '_> {
    fn candidates(&self) -> usize {
        CANDIDATES
    }

    fn process(&mut self, i: usize) -> Result<&mut Proc> {
        self.agents.get_mut(i).context("no such node")?.process()
    }

    fn start(&mut self, i: usize) -> Result<()> {
        self.agents.get_mut(i).context("no such node")?.run()
    }

    fn ready(&mut self) -> Result<usize> {
        let mut owner = None;
        for agent in &self.agents[..CANDIDATES] {
            let seen = vip(agent, &ADDRESS.to_string())?;
            let eligible = seen.candidates.iter().filter(|one| one.eligible).count();
            ensure!(seen.owner.is_some() && eligible == CANDIDATES, "{}: {seen:?}", agent.name());
            ensure!(owner.is_none() || owner == seen.owner, "{}: {owner:?} and {seen:?}", agent.name());
            owner = seen.owner;
        }
        let found = self.agents.iter().position(|agent| Some(agent.name()) == owner.as_deref());
        found.with_context(|| format!("{owner:?} is no member"))
    }

    fn calm(&self) -> Duration {
        Duration::from_millis(500)
    }

    fn words(&self) -> String {
        let mut all = String::new();
        for agent in self.agents.iter() {
            let status =
                agent.cli(&["status"]).map_or_else(|error| format!("{error:#}"), |ran| ran.to_string());
            let log = agent.log().unwrap_or_default();
            let lines: Vec<&str> = log.lines().collect();
            let last = lines[lines.len().saturating_sub(25)..].join("\n  ");
            all += &format!("--- {}\n{status}\n  {last}\n", agent.name());
        }
        all
    }
}
