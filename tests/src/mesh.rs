//! Agents in a lab: started as a person would, and asked as a script would.

use std::fmt::Write;
use std::io::{Read, Write as _};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use proto::control::{MAX_FRAME, Request, Response};
use proto::invite::Invite;
use proto::rpc::{Received, decode, encode};
use serde::Deserialize;

use crate::lab::{Lab, Node, Proc, Ran, Signal};
use crate::wait::eventually;

/// Where every agent's proxy listens unless told otherwise.
pub const LISTENER: &str = "127.0.0.1:16443";

/// Limit for anything that needs a few rounds of gossip: it detects a crash within up to 9 s at its interval
/// of 1 s, and a test machine is busy with other things too.
pub const GOSSIP: Duration = Duration::from_secs(25);

/// Limit for anything that only needs an exchange between two nodes.
pub const SOON: Duration = Duration::from_secs(10);

/// Runs a test with an agent, not yet started, on every node. When it fails, the error includes the last
/// output of all processes.
///
/// # Errors
/// The lab's or the test's.
pub fn with_agents(lab: Result<Lab>, test: impl FnOnce(&Lab, &mut [Agent<'_>]) -> Result<()>) -> Result<()> {
    let lab = lab?;
    let mut agents = lab.nodes().iter().map(Agent::new).collect::<Result<Vec<_>>>()?;
    let result = test(&lab, &mut agents);
    if result.is_err() {
        eprintln!("{}", lab.tails(60));
        for agent in &agents {
            if let Ok(ran) = agent.cli(&["status"]) {
                eprintln!("--- {}: {ran}", agent.name());
            }
            if let Ok(status) = agent.status() {
                eprintln!("--- {}: {:?}", agent.name(), status.node.link);
            }
        }
    }
    result
}

/// The binary under test.
///
/// # Errors
/// There is none, and how to make it.
pub fn binary() -> Result<PathBuf> {
    if let Some(named) = std::env::var_os("AGENT_BIN") {
        let path = PathBuf::from(named);
        ensure!(path.is_file(), "AGENT_BIN is {}, and there is no such file", path.display());
        return Ok(path.canonicalize()?);
    }
    // Tests lie in target/PROFILE/deps, the agent beside that directory.
    let here = std::env::current_exe()?;
    let target = here.ancestors().nth(3).context("a test binary outside of a target directory")?;
    ["release/agent", "debug/agent"]
        .map(|path| target.join(path))
        .into_iter()
        .find(|path| path.is_file())
        .context("there is no agent to test: run cargo build --release, or set AGENT_BIN to one")
}

/// An agent on a node, with its own state and runtime directories.
pub struct Agent<'lab> {
    node: &'lab Node,
    state: PathBuf,
    runtime: PathBuf,
    process: Option<Proc>,
    /// More options for every start.
    pub options: Vec<String>,
    /// The agent binary for starts and commands: [`binary`] by default.
    pub binary: PathBuf,
    /// A wrapper command such as `setpriv` with its options; empty: none.
    pub through: Vec<String>,
}

impl<'lab> Agent<'lab> {
    pub(crate) fn new(node: &'lab Node) -> Result<Agent<'lab>> {
        let (state, runtime) = (node.dir().join("state"), node.dir().join("run"));
        std::fs::create_dir(&runtime)?;
        let binary = binary()?;
        let (options, through) = (Vec::new(), Vec::new());
        Ok(Agent { node, state, runtime, process: None, options, binary, through })
    }

    /// Its node.
    pub fn node(&self) -> &'lab Node {
        self.node
    }

    /// Its name, which is its node's.
    pub fn name(&self) -> &'lab str {
        &self.node.name
    }

    /// Its state directory.
    pub fn state(&self) -> &Path {
        &self.state
    }

    /// `agent init`; returns the printed invite, once the agent responds.
    ///
    /// # Errors
    /// It prints none, or ends.
    pub fn init(&mut self) -> Result<String> {
        self.init_with(&[])
    }

    /// The same with more arguments.
    ///
    /// # Errors
    /// As [`Agent::init`].
    pub fn init_with(&mut self, more: &[&str]) -> Result<String> {
        self.start(&[&["init", "--foreground"], more].concat())?;
        self.wait_until_asked()?;
        let (invite, _) =
            eventually("init prints an invite", SOON, || invite_in(&self.log()?).context("none is printed"))?;
        Ok(invite)
    }

    /// The invite for workers that `agent init` has printed here: the one for masters has 8 uses.
    ///
    /// # Errors
    /// None was printed.
    pub fn workers_invite(&self) -> Result<String> {
        last_invite_in(&self.log()?).context("no invite for workers is printed")
    }

    /// `agent join`; returns once the agent responds.
    ///
    /// # Errors
    /// It ends.
    pub fn join(&mut self, seed: &str) -> Result<()> {
        self.begin_join(seed)?;
        self.wait_until_asked()
    }

    /// `agent join`, without waiting for anything.
    ///
    /// # Errors
    /// It can't be started.
    pub fn begin_join(&mut self, seed: &str) -> Result<()> {
        self.start(&["join", seed, "--foreground"])
    }

    /// `agent join` that must fail: returns how it ended.
    ///
    /// # Errors
    /// It did not end by itself.
    pub fn join_refused(&mut self, seed: &str) -> Result<Ran> {
        let before = self.log().unwrap_or_default().len();
        self.begin_join(seed)?;
        let process = self.process.as_mut().context("it was started")?;
        let code = process.ended(Duration::from_secs(20))?;
        let out = self.log()?.split_off(before);
        self.process = None;
        Ok(Ran { command: format!("{}# agent join {seed}", self.name()), code, out, err: String::new() })
    }

    /// `agent run`: starts from the state directory alone; returns at once.
    ///
    /// # Errors
    /// It can't be started.
    pub fn run(&mut self) -> Result<()> {
        self.start(&["run"])
    }

    fn start(&mut self, command: &[&str]) -> Result<()> {
        ensure!(!self.is_running(), "the agent of {} runs already", self.name());
        let arguments = self.arguments(&self.binary, command, &self.options);
        let arguments: Vec<&str> = self.through.iter().chain(&arguments).map(String::as_str).collect();
        self.process = Some(self.node.spawn("agent", &arguments)?);
        Ok(())
    }

    fn arguments(&self, binary: &Path, command: &[&str], options: &[String]) -> Vec<String> {
        let mut all = vec![binary.to_string_lossy().into_owned()];
        all.extend(command.iter().map(|word| (*word).to_owned()));
        for (flag, dir) in [("--state-dir", &self.state), ("--runtime-dir", &self.runtime)] {
            all.push(flag.to_owned());
            all.push(dir.to_string_lossy().into_owned());
        }
        all.extend(options.iter().cloned());
        all
    }

    /// Runs a command of the agent to its end.
    ///
    /// # Errors
    /// It can't be started.
    pub fn cli(&self, command: &[&str]) -> Result<Ran> {
        self.cli_of(&self.binary, command)
    }

    /// The same with another binary than the running one.
    ///
    /// # Errors
    /// It can't be started.
    pub fn cli_of(&self, binary: &Path, command: &[&str]) -> Result<Ran> {
        let arguments = self.arguments(binary, command, &[]);
        let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
        self.node.exec(&arguments)
    }

    /// Asks by the control socket, without a process for the question: that of a hundred agents would take more
    /// of the machine than they do.
    ///
    /// # Errors
    /// No agent responds within [`SOON`], or with something of a later version.
    pub fn ask(&self, request: &Request) -> Result<Response> {
        let mut stream = UnixStream::connect(self.runtime.join("agent.sock"))?;
        stream.set_read_timeout(Some(SOON))?;
        let frame = encode(request)?;
        stream.write_all(&u32::try_from(frame.len())?.to_be_bytes())?;
        stream.write_all(&frame)?;
        let mut length = [0; 4];
        stream.read_exact(&mut length)?;
        let length = usize::try_from(u32::from_be_bytes(length))?;
        ensure!(length <= MAX_FRAME, "a frame of {length} bytes");
        let mut frame = vec![0; length];
        stream.read_exact(&mut frame)?;
        match decode(&frame)? {
            Received::Known(response) => Ok(response),
            Received::Unknown(kind) => bail!("a response of a later version: {kind}"),
        }
    }

    /// `agent status --json`.
    ///
    /// # Errors
    /// No agent responds, or its response does not have the promised shape.
    pub fn status(&self) -> Result<Status> {
        let ran = self.cli(&["status", "--json"])?;
        // A node that was removed shows it, too, and says so by its exit code.
        let removed = i32::from(proto::invite::JoinRefusal::Removed.exit_code());
        let text = if ran.code == Some(removed) { ran.out } else { ran.ok()? };
        serde_json::from_str(&text).with_context(|| format!("status of {}: {text}", self.name()))
    }

    /// Waits until it responds.
    ///
    /// # Errors
    /// It ends, or does not respond.
    pub fn wait_until_asked(&mut self) -> Result<()> {
        eventually(&format!("the agent of {} answers", self.name()), GOSSIP, || {
            if !self.is_running() {
                // Waiting for an ended process is useless; eventually() has no other way out.
                return Ok(Err(anyhow::anyhow!("it has ended")));
            }
            self.status().map(|_| Ok(()))
        })?
        .0
        .with_context(|| format!("the agent of {}: {}", self.name(), self.tail()))
    }

    /// Its whole output since the lab started.
    ///
    /// # Errors
    /// It was never started.
    pub fn log(&self) -> Result<String> {
        let log = self.node.dir().join("agent.log");
        Ok(String::from_utf8_lossy(&std::fs::read(log)?).into_owned())
    }

    fn tail(&self) -> String {
        self.process.as_ref().map_or_else(String::new, |process| process.tail(30))
    }

    /// Whether it runs.
    pub fn is_running(&mut self) -> bool {
        self.process.as_mut().is_some_and(Proc::is_running)
    }

    /// Its process, to signal it or to wait for its end.
    ///
    /// # Errors
    /// It was never started.
    pub fn process(&mut self) -> Result<&mut Proc> {
        self.process.as_mut().context("it was never started")
    }

    /// Kills it, as a crash would.
    ///
    /// # Errors
    /// It was never started.
    pub fn kill(&mut self) -> Result<()> {
        self.process()?.kill()
    }

    /// Asks it to stop and waits until it has.
    ///
    /// # Errors
    /// It does not stop in time, or not cleanly.
    pub fn stop(&mut self) -> Result<()> {
        let process = self.process()?;
        process.signal(Signal::TERM)?;
        let code = process.ended(Duration::from_secs(15))?;
        ensure!(code == Some(0), "the agent of {} stopped with {code:?}", self.name());
        Ok(())
    }

    /// The master that answers through this node's proxy, as a client sees it.
    ///
    /// # Errors
    /// None answers.
    pub fn who_serves(&self) -> Result<String> {
        let url = format!("https://{LISTENER}/who");
        let said = self.node.exec(&["curl", "-sSk", "-m", "5", &url])?.ok()?;
        Ok(said.trim().to_owned())
    }

    /// The state of a master as this node's proxy sees it; `gone` when it is not in the list.
    ///
    /// # Errors
    /// There is no agent to ask.
    pub fn backend_state(&self, master: &str) -> Result<String> {
        let status = self.status()?;
        let service = status.services.first().context("no service")?;
        let backend = service.backends.iter().find(|backend| backend.node == master);
        Ok(backend.map_or_else(|| "gone".to_owned(), |backend| backend.state.clone()))
    }

    /// Waits until its proxy sees a master in one of these states.
    ///
    /// # Errors
    /// It does not in time.
    pub fn wait_for_backend(&self, master: &str, states: &[&str], limit: Duration) -> Result<Duration> {
        let what = format!("{} sees {master} as {}", self.name(), states.join(" or "));
        let (_, took) = eventually(&what, limit, || {
            let state = self.backend_state(master)?;
            ensure!(states.contains(&state.as_str()), "it is {state}");
            Ok(())
        })?;
        Ok(took)
    }

    /// Waits until exactly these members are up, and no others are listed as up.
    ///
    /// # Errors
    /// They are not in time.
    pub fn wait_for_up(&self, names: &[&str], limit: Duration) -> Result<Duration> {
        let mut wanted: Vec<&str> = names.to_vec();
        wanted.sort_unstable();
        let (_, took) = eventually(&format!("{} sees {wanted:?} up", self.name()), limit, || {
            let status = self.status()?;
            let mut up = status.names_in(&["up"]);
            up.sort_unstable();
            ensure!(up == wanted, "members are {}", status.members_in_words());
            Ok(())
        })?;
        Ok(took)
    }
}

/// The first invite in a text.
pub fn invite_in(text: &str) -> Option<String> {
    let word = text.split(|c: char| !c.is_ascii_alphanumeric()).find(|word| word.parse::<Invite>().is_ok());
    word.map(str::to_owned)
}

/// The first code to approve in a text, as `k7qm-2xpd`.
pub fn code_in(text: &str) -> Option<String> {
    let half =
        |part: &str| part.len() == 4 && part.bytes().all(|b| b.is_ascii_digit() || b.is_ascii_lowercase());
    let mut words = text.split(|c: char| !(c.is_ascii_alphanumeric() || c == '-'));
    let whole = |word: &&str| word.split_once('-').is_some_and(|(a, b)| half(a) && half(b));
    words.find(whole).map(str::to_owned)
}

/// The last invite in a text: of those that init prints, the one for workers.
pub fn last_invite_in(text: &str) -> Option<String> {
    let mut words = text.split(|c: char| !c.is_ascii_alphanumeric());
    words.rfind(|word| word.parse::<Invite>().is_ok()).map(str::to_owned)
}

/// Forms a cluster of all agents: init on the first, join on the others with the invite for masters that it
/// printed. Returns that invite once all see each other.
///
/// # Errors
/// They do not find each other.
pub fn form(agents: &mut [Agent<'_>]) -> Result<String> {
    form_with(agents, usize::MAX)
}

/// The same with so many masters; the others join as workers.
///
/// # Errors
/// As [`form`].
pub fn form_with(agents: &mut [Agent<'_>], masters: usize) -> Result<String> {
    form_by(agents, masters, &[])
}

/// The same, with more arguments for init.
///
/// # Errors
/// As [`form`].
pub fn form_by(agents: &mut [Agent<'_>], masters: usize, init: &[&str]) -> Result<String> {
    let Some((first, others)) = agents.split_first_mut() else { bail!("no agents") };
    let invite = first.init_with(init)?;
    let workers = first.workers_invite()?;
    for (i, other) in others.iter_mut().enumerate() {
        other.begin_join(if i + 1 < masters { &invite } else { &workers })?;
    }
    for other in others.iter_mut() {
        other.wait_until_asked()?;
    }
    all_up(agents)?;
    Ok(invite)
}

/// Waits until these agents see exactly each other.
///
/// # Errors
/// They do not in time.
pub fn all_up(agents: &[Agent<'_>]) -> Result<()> {
    let names: Vec<&str> = agents.iter().map(Agent::name).collect();
    for agent in agents {
        agent.wait_for_up(&names, GOSSIP)?;
    }
    Ok(())
}

/// The promised shape of `agent status --json`; a field that is missing or has another type is an error. A
/// definition of its own, not proto's, since scripts have their own too.
#[derive(Debug, Deserialize)]
#[allow(missing_docs)]
pub struct Status {
    pub schema: u32,
    pub cluster: Cluster,
    pub node: Own,
    pub services: Vec<Service>,
    pub members: Vec<Member>,
    pub vips: Vec<serde_json::Value>,
    pub problems: Vec<Problem>,
}

#[derive(Debug, Deserialize)]
#[allow(missing_docs)]
pub struct Problem {
    pub code: String,
    pub subject: String,
    pub detail: String,
    pub fix: String,
}

#[derive(Debug, Deserialize)]
#[allow(missing_docs)]
pub struct Listener {
    pub address: String,
    pub state: String,
    pub cause: Option<String>,
    pub reason: String,
}

#[derive(Debug, Deserialize)]
#[allow(missing_docs)]
pub struct Link {
    pub sent_datagrams: u64,
    pub received_datagrams: u64,
    pub refused_stranger: u64,
    pub refused_key: u64,
    pub refused_seal: u64,
    pub refused_replay: u64,
    pub refused_unproven: u64,
    pub refused_flood: u64,
}

impl Link {
    /// Datagrams refused, for any reason.
    pub fn refused(&self) -> u64 {
        let of_no_member = self.refused_stranger + self.refused_key + self.refused_seal;
        of_no_member + self.refused_replay + self.refused_unproven + self.refused_flood
    }
}

#[derive(Debug, Deserialize)]
#[allow(missing_docs)]
pub struct Cluster {
    pub id: String,
    pub name: String,
    pub members: usize,
    pub document: String,
    pub key_epoch: u64,
}

#[derive(Debug, Deserialize)]
#[allow(missing_docs)]
pub struct Own {
    pub id: String,
    pub name: String,
    pub address: Option<String>,
    pub interface: String,
    pub role: String,
    /// Its place; empty where all members gossip.
    #[serde(default)]
    pub place: String,
    pub version: String,
    pub started_unix_ms: u64,
    pub removed: bool,
    pub link: Link,
}

#[derive(Debug, Deserialize)]
#[allow(missing_docs)]
pub struct Service {
    pub name: String,
    pub listen: Vec<Listener>,
    pub balance: String,
    pub backends: Vec<Backend>,
}

#[derive(Debug, Deserialize)]
#[allow(missing_docs)]
pub struct Backend {
    pub node: String,
    pub address: String,
    pub state: String,
    pub cause: Option<String>,
    pub reason: String,
    pub since_unix_ms: u64,
    pub rtt_ms: Option<f64>,
    pub connections: u64,
    pub total: u64,
    pub weight: u16,
}

#[derive(Debug, Deserialize)]
#[allow(missing_docs)]
pub struct Member {
    pub id: String,
    pub name: String,
    pub address: String,
    pub role: String,
    pub state: String,
    pub version: String,
    pub since_unix_ms: u64,
    pub rtt_ms: Option<f64>,
}

impl Status {
    /// The owner of the first virtual IP, and its epoch.
    ///
    /// # Errors
    /// There is no virtual IP, or it has no owner.
    pub fn owner_of_vip(&self) -> Result<(String, u64)> {
        let vip = self.vips.first().context("there is no virtual IP yet")?;
        let owner = vip["owner"].as_str().with_context(|| format!("no owner: {vip}"))?;
        Ok((owner.to_owned(), vip["epoch"].as_u64().context("no epoch")?))
    }

    /// Names of the members in one of these states.
    pub fn names_in(&self, states: &[&str]) -> Vec<&str> {
        let members = self.members.iter().filter(|member| states.contains(&member.state.as_str()));
        members.map(|member| member.name.as_str()).collect()
    }

    /// A member by its name.
    ///
    /// # Errors
    /// It is not listed.
    pub fn member(&self, name: &str) -> Result<&Member> {
        let found = self.members.iter().find(|member| member.name == name);
        found.with_context(|| format!("{name} is not among {}", self.members_in_words()))
    }

    /// A backend of the default service by its node.
    ///
    /// # Errors
    /// It is not listed.
    pub fn backend(&self, node: &str) -> Result<&Backend> {
        let backends = &self.services.first().context("no service")?.backends;
        let found = backends.iter().find(|backend| backend.node == node);
        found.with_context(|| format!("{node} is not among {backends:?}"))
    }

    /// The members, for messages.
    pub fn members_in_words(&self) -> String {
        let mut text = String::new();
        for member in &self.members {
            let _ = write!(text, "{} {}, ", member.name, member.state);
        }
        text
    }
}
