//! The nodes of a demo: real agents, and stand-ins for apiservers on the masters.

use std::ffi::OsStr;
use std::fmt::Write;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, bail};
use proto::invite::PREFIX;
use tokio::net::TcpStream;
use tokio::time::{Instant, sleep};

use super::command::{MASTERS, MasterAction};
use super::pki::{self, Pki};
use super::place::{self, DemoDirectory, DemoPorts};
use super::process::{Process, ProcessState};

const NAMES: [&str; 5] = ["m1", "m2", "m3", "w1", "w2"];

/// The worker whose proxy the client uses.
pub(super) const THROUGH: usize = MASTERS;

/// Longest wait for each step of the start; every one takes well under a second.
const STEP_WITHIN: Duration = Duration::from_secs(15);

/// How often a step that raises no event is polled.
const LOOK_EVERY: Duration = Duration::from_millis(10);

/// The whole cluster. Dropping it kills every process first and removes the directory last.
pub(super) struct DemoCluster {
    pub(super) nodes: Vec<DemoNode>,
    pub(super) ports: DemoPorts,
    /// PEM of the CA that signed the stand-ins' certificate.
    pub(super) ca: String,
    _directory: DemoDirectory,
}

/// One node.
pub(super) struct DemoNode {
    pub(super) name: &'static str,
    pub(super) address: IpAddr,
    pub(super) runtime_dir: PathBuf,
    config: PathBuf,
    log: PathBuf,
    program: PathBuf,
    agent: Option<Process>,
    apiserver: Option<Process>,
    /// An unexpected exit was reported; the next start clears it.
    pub(super) failure_reported: bool,
    /// Arguments of the stand-in; empty on a worker.
    standin: Vec<String>,
}

impl DemoCluster {
    /// Picks addresses and ports and writes the files. Nothing runs yet.
    pub(super) fn prepare(program: &Path) -> anyhow::Result<DemoCluster> {
        // The last byte of the addresses counts them, so there are few.
        let (addresses, ports) = place::find(u8::try_from(NAMES.len())?)?;
        let directory = DemoDirectory::make()?;
        let Pki { ca, cert, key } = pki::make(&addresses)?;
        let ca_file = directory.write("ca.crt", &ca)?;
        let files = [directory.write("apiserver.crt", &cert)?, directory.write("apiserver.key", &key)?];
        let mut nodes = Vec::new();
        for (i, (name, address)) in NAMES.into_iter().zip(addresses).enumerate() {
            let home = directory.path().join(name);
            let text = config(name, address, ports, &home, &ca_file);
            let standin = if i < MASTERS {
                let listen = SocketAddr::new(address, ports.api).to_string();
                let [cert, key] = files.each_ref().map(|file| file.display().to_string());
                let args = ["demo-master", "--listen", &listen, "--name", name];
                let mut args: Vec<String> = args.map(str::to_owned).into();
                args.extend(["--cert-file".to_owned(), cert, "--key-file".to_owned(), key]);
                args
            } else {
                Vec::new()
            };
            nodes.push(DemoNode {
                name,
                address,
                runtime_dir: home.join("run"),
                config: directory.write(&format!("{name}.toml"), &text)?,
                log: directory.path().join(format!("{name}.log")),
                program: program.to_owned(),
                agent: None,
                apiserver: None,
                failure_reported: false,
                standin,
            });
        }
        Ok(DemoCluster { nodes, ports, ca, _directory: directory })
    }

    /// Starts everything, with a real invite; calls `say` for each step.
    pub(super) async fn start(&mut self, mut say: impl FnMut(String)) -> anyhow::Result<()> {
        let api = self.ports.api;
        for node in self.nodes.iter_mut().take(MASTERS) {
            node.start_apiserver()?;
        }
        for node in self.nodes.iter_mut().take(MASTERS) {
            node.accepts(api).await?;
            say(format!("{}: a stand-in for an apiserver answers on {}:{api}", node.name, node.address));
        }
        let Some((first, others)) = self.nodes.split_first_mut() else { return Ok(()) };
        first.start_agent(&["init", "--cluster", "demo", "--foreground"])?;
        let (masters, workers) = first.invites().await?;
        say(format!("{}: agent init", first.name));
        for (i, node) in others.iter_mut().enumerate() {
            let invite = if i + 1 < MASTERS { &masters } else { &workers };
            node.start_agent(&["join", invite, "--foreground"])?;
            say(format!("{}: agent join {}…", node.name, &invite[..PREFIX.len() + 6]));
        }
        if let Some(node) = self.nodes.get(THROUGH) {
            say(format!(
                "{}: its page is http://{}",
                node.name,
                SocketAddr::new(node.address, self.ports.web)
            ));
        }
        Ok(())
    }

    /// Why the cluster does not come up: the first process that has ended, and its last output.
    pub(super) fn startup_failure(&mut self) -> Option<String> {
        self.nodes.iter_mut().find_map(DemoNode::trouble)
    }

    /// The address that the client connects to.
    pub(super) fn proxy(&self) -> SocketAddr {
        SocketAddr::new(self.nodes[THROUGH].address, self.ports.proxy)
    }

    /// Applies an action to a master; returns what was done, as text.
    pub(super) fn act(&mut self, act: MasterAction, master: usize) -> String {
        let Some(node) = self.nodes.get_mut(master) else { return String::new() };
        match node.act(act) {
            Ok(done) => format!("{}: {done}", node.name),
            Err(error) => format!("{}: {error:#}", node.name),
        }
    }
}

impl DemoNode {
    /// The states of its agent and its apiserver.
    pub(super) fn states(&mut self) -> (Option<ProcessState>, Option<ProcessState>) {
        (self.agent.as_mut().map(Process::state), self.apiserver.as_mut().map(Process::state))
    }

    fn start_apiserver(&mut self) -> anyhow::Result<()> {
        let args: Vec<&OsStr> = self.standin.iter().map(OsStr::new).collect();
        self.apiserver = Some(self.run(&args)?);
        Ok(())
    }

    fn start_agent(&mut self, command: &[&str]) -> anyhow::Result<()> {
        let mut args = vec![OsStr::new("--config"), self.config.as_os_str()];
        args.extend(command.iter().map(OsStr::new));
        self.agent = Some(self.run(&args)?);
        Ok(())
    }

    fn run(&self, args: &[&OsStr]) -> anyhow::Result<Process> {
        Process::start(&self.program, args, &self.log)
            .with_context(|| format!("can't run {}", self.program.display()))
    }

    fn act(&mut self, act: MasterAction) -> anyhow::Result<&'static str> {
        let (agent, apiserver) = self.states();
        let alive = |state: Option<ProcessState>| state.is_some_and(ProcessState::is_alive);
        let Some(process) = self.apiserver.as_mut() else { return Ok("has no apiserver") };
        Ok(match act {
            MasterAction::Kill if !alive(apiserver) => "its apiserver is not running",
            MasterAction::Kill => {
                process.kill();
                "its apiserver is killed"
            }
            MasterAction::Hang if apiserver != Some(ProcessState::Running) => "its apiserver is not running",
            MasterAction::Hang => {
                process.hang();
                "its apiserver hangs: it accepts connections but never answers"
            }
            MasterAction::Stop if !alive(apiserver) => "its apiserver is not running",
            MasterAction::Stop => {
                process.stop();
                "its apiserver is stopping: not ready now, gone in 3 s"
            }
            MasterAction::KillNode => {
                process.kill();
                if let Some(agent) = &mut self.agent {
                    agent.kill();
                }
                "its apiserver and its agent are killed"
            }
            MasterAction::Back if apiserver == Some(ProcessState::Running) && alive(agent) => {
                "it is already running"
            }
            MasterAction::Back => {
                match apiserver {
                    Some(ProcessState::Running) => {}
                    Some(ProcessState::Hung) => process.resume(),
                    // Dropping the old one ends what is left of it.
                    _ => {
                        process.kill();
                        self.start_apiserver()?;
                    }
                }
                self.failure_reported = false;
                if !alive(agent) {
                    self.start_agent(&["run"])?;
                }
                "it is back"
            }
        })
    }

    /// Waits until its apiserver accepts connections.
    async fn accepts(&mut self, port: u16) -> anyhow::Result<()> {
        let until = Instant::now() + STEP_WITHIN;
        while TcpStream::connect((self.address, port)).await.is_err() {
            self.still_starting(until, "its apiserver does not listen")?;
            sleep(LOOK_EVERY).await;
        }
        Ok(())
    }

    /// Waits for the invites that `agent init` prints: for masters, and for workers.
    async fn invites(&mut self) -> anyhow::Result<(String, String)> {
        let until = Instant::now() + STEP_WITHIN;
        loop {
            let printed = std::fs::read_to_string(&self.log).unwrap_or_default();
            if let [masters, workers] = find_invites(&printed)[..] {
                return Ok((masters.to_owned(), workers.to_owned()));
            }
            self.still_starting(until, "agent init printed no invite")?;
            sleep(LOOK_EVERY).await;
        }
    }

    fn still_starting(&mut self, until: Instant, what: &str) -> anyhow::Result<()> {
        if let Some(trouble) = self.trouble() {
            bail!("{trouble}");
        }
        if Instant::now() > until {
            bail!("{}: {what} within {} s\n{}", self.name, STEP_WITHIN.as_secs(), self.last_output());
        }
        Ok(())
    }

    fn trouble(&mut self) -> Option<String> {
        let (agent, apiserver) = self.states();
        let ended = |state: Option<ProcessState>| state.is_some_and(|state| !state.is_alive());
        let what = match (ended(agent), ended(apiserver)) {
            (true, _) => "agent",
            (_, true) => "apiserver",
            _ => return None,
        };
        Some(format!("{}: its {what} has ended\n{}", self.name, self.last_output()))
    }

    /// The end of its processes' output.
    pub(super) fn last_output(&self) -> String {
        let printed = std::fs::read(&self.log).unwrap_or_default();
        let printed = String::from_utf8_lossy(&printed);
        let lines: Vec<&str> = printed.lines().collect();
        lines[lines.len().saturating_sub(8)..].iter().fold(String::new(), |mut text, line| {
            // Writing to a String can't fail.
            let _ = writeln!(text, "  | {line}");
            text
        })
    }
}

/// The complete invites in the output; a line that has not ended yet may hold half of one.
fn find_invites(printed: &str) -> Vec<&str> {
    let whole = &printed[..printed.rfind('\n').unwrap_or(0)];
    let is_invite = |word: &&str| {
        word.strip_prefix(PREFIX).is_some_and(|rest| {
            rest.len() > 20 && rest.bytes().all(|b| matches!(b, b'a'..=b'z' | b'2'..=b'7'))
        })
    };
    whole.split_whitespace().filter(is_invite).collect()
}

/// The configuration of one node: everything on its own address, so that all can use the same ports.
fn config(name: &str, address: IpAddr, ports: DemoPorts, home: &Path, ca: &Path) -> String {
    let path = |path: PathBuf| place::quoted(&path.display().to_string());
    let (state, run, ca) = (path(home.join("state")), path(home.join("run")), path(ca.to_owned()));
    let DemoPorts { api, proxy, link, web } = ports;
    format!(
        r#"name = "{name}"
address = "{address}"
bind = "{address}"
port = {link}
state-dir = {state}
runtime-dir = {run}

[log]
format = "text"

[web]
listen = ["{address}:{web}"]

[[service]]
name = "kube-api"
listen = ["{address}:{proxy}"]
port = {api}

[service.check]
ca-file = {ca}
"#
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_invite_is_found_once_it_is_whole() {
        let invite = format!("{PREFIX}{}", "abcdefghij234567".repeat(3));
        let text = format!("cluster demo\n  agent join {invite}\n");
        let none: [&str; 0] = [];
        assert_eq!(find_invites(&text), [invite.as_str()]);
        assert_eq!(find_invites(text.trim_end()), none, "the line may go on");
        assert_eq!(find_invites("agent join agent1…\nagent1short\n"), none);
        assert_eq!(find_invites(""), none);
    }
}
