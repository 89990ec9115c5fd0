//! README's commands, from top to bottom, as its reader types them: every line of its blocks that a node
//! runs, and every command in its text. A command that nothing here runs fails the test.

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use tests::lab::{Lab, Master, Node, Proc, Ran, Signal};
use tests::mesh::{GOSSIP, SOON, Status, binary, code_in, invite_in, last_invite_in};
use tests::wait::eventually;

/// The nodes of README, in the order of the lab's.
const NODES: [&str; 8] = ["m1", "m2", "m3", "w1", "w2", "w3", "w4", "w5"];

/// Of those, the ones with an apiserver.
const MASTERS: usize = 3;

/// README's placeholders for what only a running cluster knows.
const MASTERS_INVITE: &str = "agent1qk3v…";
const WORKERS_INVITE: &str = "agent1x7fd…";
const CODE: &str = "k7qm-2xpd";
const SEED: &str = "10.0.0.1";
const NETWORK: &str = "10.0.0.";

/// What in README is not the agent's to run, or changes the machine below the lab, and where it is tested.
const ELSEWHERE: &[(&str, &str)] = &[
    (
        "agent uninstall --purge",
        "removes the service of this machine: unit tests of install, below a root of their own",
    ),
    ("agent kubernetes endpoints", "needs an apiserver that lists its nodes: the suite node_local"),
    ("agent status --watch", "needs a terminal: unit tests of the screen"),
    ("agent -f", "an option of the command beside it"),
];

/// A command of README.
#[derive(Debug)]
struct Line {
    /// Its line number, from 1.
    number: usize,
    /// The node at its prompt; m1 for commands in the text.
    node: String,
    command: String,
    /// It is in the text, where a name may stand for a whole command.
    inline: bool,
}

/// The commands of a text in Markdown: `NODE# agent …` in its blocks, and `agent …` between backticks.
fn lines_of(markdown: &str) -> Vec<Line> {
    let mut lines = Vec::new();
    for (index, line) in markdown.lines().enumerate() {
        let number = index + 1;
        if let Some(block) = line.strip_prefix("    ") {
            let Some((node, command)) = block.split_once("# agent ") else { continue };
            let command = command.split(" #").next().unwrap_or(command).trim();
            let (node, command) = (node.to_owned(), format!("agent {command}"));
            lines.push(Line { number, node, command, inline: false });
            continue;
        }
        let quoted = line.split('`').skip(1).step_by(2).filter(|text| text.starts_with("agent "));
        lines.extend(quoted.map(|text| Line {
            number,
            node: NODES[0].to_owned(),
            command: text.to_owned(),
            inline: true,
        }));
    }
    lines
}

/// The cluster that README builds.
struct Readers<'lab> {
    lab: &'lab Lab,
    /// Where `agent` is found on the path.
    path: PathBuf,
    masters: Vec<Master>,
    /// The agents that run in the foreground, by their node.
    running: Vec<(String, Proc)>,
    masters_invite: String,
    workers_invite: String,
}

impl<'lab> Readers<'lab> {
    fn new(lab: &'lab Lab) -> Result<Readers<'lab>> {
        let path = lab.dir().join("bin");
        std::fs::create_dir(&path)?;
        // A copy, since an upgrade puts another in its place.
        std::fs::copy(binary()?, path.join("agent"))?;
        for node in lab.nodes() {
            std::fs::create_dir(node.dir().join("run"))?;
            std::fs::hard_link(path.join("agent"), node.dir().join("agent-new"))?;
        }
        let (masters, running) = (Vec::new(), Vec::new());
        Ok(Readers {
            lab,
            path,
            masters,
            running,
            masters_invite: String::new(),
            workers_invite: String::new(),
        })
    }

    fn node(&self, name: &str) -> Result<&'lab Node> {
        let index = NODES.iter().position(|one| *one == name).with_context(|| format!("no node {name}"))?;
        Ok(self.lab.node(index))
    }

    /// The lab's network in place of README's, without the last number.
    fn network(&self) -> Result<String> {
        let first = self.lab.node(0).mesh_ip().to_string();
        Ok(first.strip_suffix('1').context("m1 is the first of its network")?.to_owned())
    }

    /// The command as a shell line on the node, with this cluster's values in place of README's examples.
    fn shell(&self, name: &str, command: &str) -> Result<String> {
        let node = self.node(name)?;
        let own = node.dir().display();
        let network = self.network()?;
        let command = command
            .replace(MASTERS_INVITE, &self.masters_invite)
            .replace(WORKERS_INVITE, &self.workers_invite)
            .replace(NETWORK, &network)
            .replace("/run/secrets/", &format!("{own}/"))
            .replace("/etc/haproxy/", &format!("{own}/"))
            .replace("/etc/keepalived/", &format!("{own}/"))
            .replace("NODE", NODES[MASTERS])
            .replace("COMMAND", "status");
        let path = self.path.display();
        Ok(format!(
            "cd {own} && export PATH={path}:$PATH AGENT_NAME={name} AGENT_STATE_DIR={own}/state \
             AGENT_RUNTIME_DIR={own}/run && {command}"
        ))
    }

    fn exec(&self, name: &str, command: &str) -> Result<Ran> {
        self.node(name)?.exec(&["sh", "-c", &self.shell(name, command)?])
    }

    fn status(&self, name: &str) -> Result<Status> {
        let text = self.exec(name, "agent status --json")?.ok()?;
        serde_json::from_str(&text).with_context(|| text)
    }

    /// Starts what stays in the foreground; a machine of the lab has no service.
    fn start(&mut self, name: &str, command: &str) -> Result<()> {
        let line = self.shell(name, &format!("exec {command} --foreground"))?;
        let started = self.node(name)?.spawn("agent", &["sh", "-c", &line])?;
        self.running.push((name.to_owned(), started));
        Ok(())
    }

    fn process(&mut self, name: &str) -> Result<&mut Proc> {
        let running = self.running.iter_mut().rev().find(|(node, _)| node == name);
        Ok(&mut running.with_context(|| format!("nothing runs on {name}"))?.1)
    }

    fn wait_until_asked(&self, name: &str) -> Result<()> {
        eventually(&format!("the agent of {name} answers"), GOSSIP, || self.status(name)).map(drop)
    }

    /// Waits until the node sees so many masters ready.
    fn wait_for_masters(&self, name: &str, count: usize) -> Result<()> {
        eventually(&format!("{name} sees {count} masters ready"), GOSSIP, || {
            let status = self.status(name)?;
            let service = status.services.first().context("no service")?;
            let ready = service.backends.iter().filter(|backend| backend.state == "ready").count();
            ensure!(ready == count, "{ready} are");
            Ok(())
        })
        .map(drop)
    }

    fn init(&mut self, line: &Line) -> Result<()> {
        self.start(&line.node, &line.command)?;
        self.wait_until_asked(&line.node)?;
        (self.masters_invite, self.workers_invite) = self.invites(&line.node)?;
        Ok(())
    }

    /// The invites that `agent init` printed for masters and for workers.
    fn invites(&mut self, name: &str) -> Result<(String, String)> {
        let (invites, _) = eventually("init prints both invites", SOON, || {
            let log = self.process(name)?.log()?;
            let masters = invite_in(&log).context("no invite")?;
            let workers = last_invite_in(&log).filter(|workers| *workers != masters);
            Ok((masters, workers.context("no invite for workers")?))
        })?;
        Ok(invites)
    }

    fn join(&mut self, line: &Line) -> Result<()> {
        let invite = self.workers_invite.clone();
        if line.command.contains("--invite-file") {
            let file = self.node(&line.node)?.dir().join("invite");
            std::fs::write(&file, &invite)?;
            std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o600))?;
        }
        self.start(&line.node, &line.command)?;
        if line.command == "agent join -" {
            self.process(&line.node)?.types(&invite)?;
        }
        if line.command.contains(SEED) {
            // It waits for `agent approve`.
            return Ok(());
        }
        self.wait_until_asked(&line.node)?;
        if NODES[..MASTERS].contains(&line.node.as_str()) && self.masters.len() < MASTERS {
            let masters: Result<Vec<_>> = (0..MASTERS).map(|i| self.lab.nginx_master(i)).collect();
            self.masters = masters?;
        }
        Ok(())
    }

    /// The code of the waiting node is approved here; the second code is typed there.
    fn approve(&mut self, line: &Line) -> Result<()> {
        let (waits, _) = self.running.last().context("nobody waits")?;
        let waits = waits.clone();
        let (code, _) = eventually("the node that waits shows its code", SOON, || {
            code_in(&self.process(&waits)?.log()?).context("none is shown")
        })?;
        let out = self.exec(&line.node, &line.command.replace(CODE, &code))?.ok()?;
        let second = code_in(&out.replace(&code, "")).with_context(|| format!("no second code: {out}"))?;
        self.process(&waits)?.types(&second)?;
        self.wait_until_asked(&waits)
    }

    /// Files of existing set-ups that `agent migrate` reads.
    fn write_old_files(&self, name: &str) -> Result<()> {
        let own = self.node(name)?.dir();
        let mut haproxy = "frontend api\n  bind 0.0.0.0:16443\n  mode tcp\n  default_backend masters\n\
             backend masters\n  mode tcp\n  balance roundrobin\n"
            .to_owned();
        for (i, master) in NODES[..MASTERS].iter().enumerate() {
            let address = self.lab.node(i).mesh_ip();
            haproxy += &format!("  server {master} {address}:6443 check\n");
        }
        std::fs::write(own.join("haproxy.cfg"), haproxy)?;
        let keepalived = "vrrp_instance api {\n  state BACKUP\n  interface eth0\n  virtual_router_id 51\n  \
             priority 100\n  virtual_ipaddress {\n    10.91.0.251/24\n  }\n}\n";
        Ok(std::fs::write(own.join("keepalived.conf"), keepalived)?)
    }

    /// Every machine with an apiserver is gone, and its agent.
    fn lose_all_masters(&mut self) -> Result<()> {
        for name in &NODES[..MASTERS] {
            let _ = self.process(name)?.kill();
        }
        self.masters.clear();
        Ok(())
    }

    /// Stops the agent of a node cleanly.
    fn stop(&mut self, name: &str) -> Result<()> {
        let process = self.process(name)?;
        process.signal(Signal::TERM)?;
        let code = process.ended(SOON)?;
        ensure!(code == Some(0), "the agent of {name} stopped with {code:?}");
        Ok(())
    }

    fn run(&mut self, line: &Line) -> Result<()> {
        let words: Vec<&str> = line.command.split_whitespace().skip(1).collect();
        match (words.as_slice(), line.inline) {
            (["init"], false) => self.init(line),
            (["join", _, ..], false) => self.join(line),
            (["approve", _], false) => self.approve(line),
            // Whoever reads on has run his apiservers by now, and looks at the status first.
            (["vip", "move", address, master], false) => {
                self.wait_for_masters(&line.node, MASTERS)?;
                let address = address.replace(NETWORK, &self.network()?);
                eventually("m1 sees who owns the address", GOSSIP, || {
                    let status = self.exec(&line.node, "agent status")?.ok()?;
                    ensure!(
                        status.lines().any(|row| row.contains(&format!("vip {address}  on "))),
                        "{status}"
                    );
                    Ok(())
                })?;
                // A candidate that has just started says so, and takes it a moment later.
                let (said, _) = eventually("the address can be moved", GOSSIP, || {
                    self.exec(&line.node, &line.command)?.ok()
                })?;
                ensure!(said.contains(master), "{said}");
                Ok(())
            }
            // Before the next node is upgraded, this one has heard all members.
            (["upgrade", _], true) => {
                self.exec(&line.node, &line.command)?.ok()?;
                eventually("it hears all members again", GOSSIP, || {
                    let status = self.status(&line.node)?;
                    let away = status.members.iter().find(|member| member.state != "up");
                    ensure!(away.is_none(), "not {}", status.members_in_words());
                    Ok(())
                })
                .map(drop)
            }
            (["migrate", ..], false) => {
                self.write_old_files(&line.node)?;
                self.exec(&line.node, &line.command)?.ok().map(drop)
            }
            // Findings in a lab are no mistake of README's.
            (["doctor"], _) => {
                let ran = self.exec(&line.node, &line.command)?;
                ensure!(ran.code.is_some_and(|code| code < 64), "{ran}");
                Ok(())
            }
            (["init", "--successor"], true) => {
                self.lose_all_masters()?;
                let worker = NODES[MASTERS];
                self.stop(worker)?;
                self.start(worker, &line.command)?;
                self.wait_until_asked(worker)?;
                (self.masters_invite, self.workers_invite) = self.invites(worker)?;
                Ok(())
            }
            // On m3, which `agent remove` removed; its agent is gone with the masters.
            (["leave", "--force"], true) => {
                self.exec("m3", &line.command)?.ok()?;
                let invite = self.workers_invite.clone();
                self.start("m3", &format!("agent join {invite}"))?;
                self.wait_until_asked("m3")
            }
            // A bare name stands for the command as such.
            ([name], true) => self.exec(&line.node, &format!("agent {name} --help"))?.ok().map(drop),
            _ => self.exec(&line.node, &line.command)?.ok().map(drop),
        }
    }
}

fn readme() -> Result<String> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../README.md");
    Ok(std::fs::read_to_string(path)?)
}

#[test]
fn every_command_of_the_readme_works() -> Result<()> {
    let lines = lines_of(&readme()?);
    ensure!(lines.len() > 30, "only {} commands were found in README.md", lines.len());
    let lab = Lab::bridge(NODES.len())?;
    let mut readers = Readers::new(&lab)?;
    for line in &lines {
        if ELSEWHERE.iter().any(|(command, _)| *command == line.command) {
            continue;
        }
        if let Err(error) = readers.run(line) {
            eprintln!("{}", lab.tails(40));
            bail!("README.md:{}: {}# {}: {error:#}", line.number, line.node, line.command);
        }
    }
    Ok(())
}

#[test]
fn commands_are_found_in_blocks_and_in_text() {
    let text = "Run `agent status`, then `other`:\n\n    m1# agent init   # prints\n    k3s server\n";
    let found: Vec<_> =
        lines_of(text).into_iter().map(|line| (line.number, line.node, line.command)).collect();
    let expected = [(1, "m1", "agent status"), (3, "m1", "agent init")];
    assert_eq!(found, expected.map(|(number, node, command)| (number, node.to_owned(), command.to_owned())));
}
