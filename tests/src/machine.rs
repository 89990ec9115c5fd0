//! Nodes of a lab that are booted machines: a systemd of their own, by systemd-nspawn, with all that only it shows.
//!
//! Their network is the lab's node's, so what listens in one is reached by the other; their files are their own and
//! outlive a reboot. What is started through [`Node`] in the same network is the machine's own, as an apiserver is.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use rustix::process::{Pid, Signal, kill_process};

use crate::lab::{Lab, Node, Proc, Ran};
use crate::mesh::{GOSSIP, Status, binary, invite_in};
use crate::wait::eventually;

/// Longest boot on a busy machine.
const BOOT: Duration = Duration::from_secs(60);

/// Where a distribution's packages and people put the binary.
const PROGRAM: &str = "/usr/local/bin/agent";

/// Joins a control group of its own, or the first that halts would take the others' away, mounts its files, and
/// becomes the container.
const START: &str = r#"
echo $$ >"$1/cgroup.procs" &&
mount -t overlay machine -o "lowerdir=$2,upperdir=$3/upper,workdir=$3/work" "$3/root" &&
SYSTEMD_NSPAWN_UNIFIED_HIERARCHY=1 exec systemd-nspawn --quiet --register=no --keep-unit \
    --kill-signal=SIGRTMIN+3 --directory="$3/root" --machine="$4" --network-namespace-path="$5" \
    --capability=CAP_NET_ADMIN,CAP_NET_RAW --console=pipe --boot
"#;

/// Runs a test with a booted machine on every node, each with the agent's binary but no agent yet. When it fails,
/// the journal of each is printed.
///
/// # Errors
/// The lab's, the machines' or the test's.
pub fn with_machines(
    lab: Result<Lab>,
    test: impl FnOnce(&Lab, &mut [Machine<'_>]) -> Result<()>,
) -> Result<()> {
    let lab = lab?;
    let tree = tree()?;
    let mut machines =
        lab.nodes().iter().map(|node| Machine::start(node, &tree)).collect::<Result<Vec<_>>>()?;
    machines.iter().try_for_each(Machine::wait_until_booted)?;
    let result = test(&lab, &mut machines);
    if result.is_err() {
        for machine in &machines {
            if let Ok(ran) = machine.exec(&["journalctl", "--no-pager", "-n", "60", "-o", "short-precise"]) {
                eprintln!("--- {}: {}", machine.name(), ran.out);
            }
        }
    }
    result
}

/// The files that machines boot from; made where they are missing.
fn tree() -> Result<PathBuf> {
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/machine-tree");
    let ran = Command::new(script).stderr(Stdio::inherit()).output().context(script)?;
    ensure!(ran.status.success(), "{script} failed");
    let said = String::from_utf8(ran.stdout)?;
    Ok(said.lines().last().context("it names no directory")?.into())
}

/// A machine with systemd.
pub struct Machine<'lab> {
    node: &'lab Node,
    tree: PathBuf,
    dir: PathBuf,
    group: PathBuf,
    process: Option<Proc>,
}

impl<'lab> Machine<'lab> {
    /// Puts the binary under test into it and starts it.
    fn start(node: &'lab Node, tree: &Path) -> Result<Machine<'lab>> {
        let dir = node.dir().join("machine");
        for part in ["upper/etc", "upper/usr/local/bin", "work", "root"] {
            std::fs::create_dir_all(dir.join(part))?;
        }
        std::fs::write(dir.join("upper/etc/hostname"), format!("{}\n", node.name))?;
        let program = dir.join("upper").join(PROGRAM.trim_start_matches('/'));
        std::fs::copy(binary()?, program)?;
        let unified = Path::new("/sys/fs/cgroup/unified");
        let hierarchy = if unified.is_dir() { unified } else { Path::new("/sys/fs/cgroup") };
        let group = hierarchy.join(format!("agent-lab-{}-{}", std::process::id(), node.name));
        let mut machine = Machine { node, tree: tree.to_owned(), dir, group, process: None };
        machine.power_on()?;
        Ok(machine)
    }

    /// Boots it; returns at once.
    ///
    /// # Errors
    /// It can't be started.
    pub fn power_on(&mut self) -> Result<()> {
        self.node.power_on()?;
        if !self.group.is_dir() {
            std::fs::create_dir(&self.group)?;
        }
        let network = format!("/proc/{}/ns/net", self.node.pid());
        let mut command = Command::new("unshare");
        command.args(["--mount", "--", "sh", "-c", START, "sh"]);
        command.args([&self.group, &self.tree, &self.dir]).arg(&self.node.name).arg(network);
        let name = format!("the machine {}", self.node.name);
        self.process = Some(Proc::spawn(&name, self.node.dir().join("console.log"), command)?);
        Ok(())
    }

    /// Its node.
    pub fn node(&self) -> &'lab Node {
        self.node
    }

    /// Its name.
    pub fn name(&self) -> &'lab str {
        &self.node.name
    }

    /// Where its file of this path lies here, to be written before it boots or while it runs.
    pub fn file(&self, path: &str) -> PathBuf {
        PathBuf::from(format!("/proc/{}/root{path}", self.systemd().unwrap_or_default()))
    }

    /// The process id of its systemd.
    ///
    /// # Errors
    /// It is off.
    pub fn systemd(&self) -> Result<i32> {
        let nspawn = self.process.as_ref().context("it is off")?.pid();
        let children = std::fs::read_to_string(format!("/proc/{nspawn}/task/{nspawn}/children"))?;
        let first = children.split_whitespace().next().context("it is starting or off")?;
        Ok(first.parse()?)
    }

    /// The processes of a unit, by their ids here.
    ///
    /// # Errors
    /// It is off.
    pub fn processes_of(&self, unit: &str) -> Result<Vec<u32>> {
        let inside = self.property(unit, "ControlGroup")?;
        let systemd = std::fs::read_to_string(format!("/proc/{}/cgroup", self.systemd()?))?;
        let own = systemd.lines().find_map(|line| line.strip_prefix("0::")).context("no control group")?;
        let hierarchy = self.group.parent().context("a control group")?;
        // systemd is in init.scope, below what it takes for the root.
        let root = hierarchy.join(own.trim_start_matches('/').trim_end_matches("init.scope"));
        let list = root.join(inside.trim_start_matches('/')).join("cgroup.procs");
        let text = std::fs::read_to_string(&list).with_context(|| list.display().to_string())?;
        Ok(text.lines().map(str::parse).collect::<Result<_, _>>()?)
    }

    /// Runs a command inside to its end.
    ///
    /// # Errors
    /// It can't be started.
    pub fn exec(&self, command: &[&str]) -> Result<Ran> {
        let systemd = self.systemd()?.to_string();
        let mut inside = Command::new("timeout");
        inside.args(["--kill-after=1", "60", "nsenter", "--target", &systemd]);
        inside.args(["--mount", "--uts", "--ipc", "--pid", "--net", "--cgroup", "--"]);
        inside.args([
            "env",
            "-i",
            "HOME=/root",
            "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
        ]);
        let output = inside.args(command).stdin(Stdio::null()).output()?;
        Ok(Ran::of(format!("{}# {}", self.name(), command.join(" ")), &output))
    }

    /// Runs a command of the agent inside to its end.
    ///
    /// # Errors
    /// It can't be started.
    pub fn agent(&self, command: &[&str]) -> Result<Ran> {
        self.exec(&[&["agent"], command].concat())
    }

    /// `agent status --json`.
    ///
    /// # Errors
    /// No agent responds.
    pub fn status(&self) -> Result<Status> {
        let text = self.agent(&["status", "--json"])?.ok()?;
        serde_json::from_str(&text).with_context(|| format!("status of {}: {text}", self.name()))
    }

    /// A property of a unit.
    ///
    /// # Errors
    /// systemd does not answer.
    pub fn property(&self, unit: &str, property: &str) -> Result<String> {
        let said = self.exec(&["systemctl", "show", "--value", "-p", property, unit])?.ok()?;
        Ok(said.trim().to_owned())
    }

    /// Waits until everything has started that starts at boot, and nothing has failed.
    ///
    /// # Errors
    /// Something failed, or it does not boot.
    pub fn wait_until_booted(&self) -> Result<()> {
        eventually(&format!("{} has booted", self.name()), BOOT, || {
            let state = self.exec(&["systemctl", "is-system-running"])?;
            ensure!(state.out.trim() == "running", "{} {}", state, self.failed());
            Ok(())
        })?;
        Ok(())
    }

    fn failed(&self) -> String {
        let list = self.exec(&["systemctl", "--failed", "--no-legend", "--no-pager"]);
        list.map(|ran| ran.out).unwrap_or_default()
    }

    /// `systemctl reboot`; returns once it has booted again.
    ///
    /// # Errors
    /// It does not.
    pub fn reboot(&mut self) -> Result<()> {
        self.begin_reboot()?;
        self.end_reboot()
    }

    /// Begins to shut down, and does not wait.
    ///
    /// # Errors
    /// It is off.
    pub fn begin_reboot(&mut self) -> Result<()> {
        self.exec(&["systemctl", "reboot", "--no-block"])?.ok().map(|_| ())
    }

    /// Waits until it is down, and boots it.
    ///
    /// # Errors
    /// It does not shut down, or does not boot.
    pub fn end_reboot(&mut self) -> Result<()> {
        self.process.take().context("it is off")?.ended(BOOT)?;
        self.power_on()?;
        self.wait_until_booted()
    }

    /// Cuts its power: all that runs in it is gone at once, and its port at the switch is down.
    ///
    /// # Errors
    /// It is off.
    pub fn power_cut(&mut self) -> Result<()> {
        self.node.power_cut()?;
        let systemd = Pid::from_raw(self.systemd()?).context("a process id")?;
        kill_process(systemd, Signal::KILL)?;
        self.process.take().context("it is off")?.ended(BOOT)?;
        Ok(())
    }
}

impl Drop for Machine<'_> {
    fn drop(&mut self) {
        let _ = self.power_cut();
        // Emptied by the power cut; each has those that its systemd made.
        let name = self.group.file_name().unwrap_or_default();
        for hierarchy in ["/sys/fs/cgroup", "/sys/fs/cgroup/unified", "/sys/fs/cgroup/systemd"] {
            remove_groups(&Path::new(hierarchy).join(name));
        }
    }
}

/// Removes a control group and all below it, as far as they are empty.
fn remove_groups(group: &Path) {
    for below in std::fs::read_dir(group).into_iter().flatten().flatten() {
        if below.file_type().is_ok_and(|kind| kind.is_dir()) {
            remove_groups(&below.path());
        }
    }
    let _ = std::fs::remove_dir(group);
}

/// `agent init` on the first and `agent join` on the others, as a person would: they install the service and start
/// it. Returns once all see each other.
///
/// # Errors
/// One refuses, or they do not find each other.
pub fn form(machines: &[Machine<'_>], init: &[&str]) -> Result<()> {
    let Some((first, others)) = machines.split_first() else { bail!("no machines") };
    let said = first.agent(&[&["init", "--iface", first.node.interface], init].concat())?.ok()?;
    let invite = invite_in(&said).with_context(|| format!("no invite is printed: {said}"))?;
    for other in others {
        other.agent(&["join", &invite])?.ok()?;
    }
    all_up(machines)
}

/// Waits until all see exactly each other.
///
/// # Errors
/// They do not in time.
pub fn all_up(machines: &[Machine<'_>]) -> Result<()> {
    for machine in machines {
        eventually(&format!("{} sees all up", machine.name()), GOSSIP, || {
            let status = machine.status()?;
            let up = status.names_in(&["up"]).len();
            ensure!(up == machines.len(), "members are {}", status.members_in_words());
            Ok(())
        })?;
    }
    Ok(())
}
