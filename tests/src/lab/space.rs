//! The namespaces of one node, and the guard that ends them.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, ChildStdin, Command, Stdio};

use anyhow::{Context, Result, bail};

/// A network, a mount and a host name namespace, held open by a sleeping process. `/run` is private, so that
/// sockets there (WireGuard's, an agent's) do not collide with those of other nodes or of the machine.
pub(crate) struct Space {
    name: String,
    holder: Child,
}

const HOLD: &str = "mount -t tmpfs none /run && mkdir /run/lock && hostname \"$1\" && ip link set lo up \
                    && echo ready && exec sleep infinity";

impl Space {
    /// Starts one; it can be entered once [`Space::ready`] has returned.
    pub(crate) fn start(name: &str) -> Result<Space> {
        let holder = Command::new("unshare")
            .args(["--net", "--mount", "--uts", "--", "sh", "-c", HOLD, "sh", name])
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .process_group(0) // a Ctrl-C at the terminal must reach the guard's cleaning first
            .spawn()
            .context("unshare")?;
        Ok(Space { name: name.to_owned(), holder })
    }

    /// Waits until the namespaces exist.
    pub(crate) fn ready(&mut self) -> Result<()> {
        let mut line = String::new();
        if let Some(stdout) = self.holder.stdout.take() {
            BufReader::new(stdout).read_line(&mut line)?;
        }
        if line.trim() != "ready" {
            bail!("could not make the namespaces of {}: {}", self.name, self.holder.wait()?);
        }
        Ok(())
    }

    /// The process whose namespaces these are.
    pub(crate) fn pid(&self) -> u32 {
        self.holder.id()
    }

    /// The name of the network namespace, as the kernel numbers it.
    fn number(&self) -> Result<String> {
        let link = std::fs::read_link(format!("/proc/{}/ns/net", self.pid()))?;
        let text = link.to_string_lossy().into_owned();
        text.strip_prefix("net:[")
            .and_then(|text| text.strip_suffix(']'))
            .map(str::to_owned)
            .with_context(|| format!("unexpected name of a namespace: {text}"))
    }

    /// A command to run inside. `nsenter` execs it, so its process id is the command's.
    pub(crate) fn command(&self, program: &str) -> Command {
        let mut command = Command::new("nsenter");
        command.args(["--target", &self.pid().to_string(), "--net", "--mount", "--uts", "--", program]);
        for name in super::VARIABLES {
            command.env_remove(name);
        }
        command
    }

    /// Runs `ip` with one command a line.
    pub(crate) fn ip(&self, batch: &str) -> Result<()> {
        self.feed("ip", &["-batch", "-"], batch)
    }

    /// Runs a program with this input.
    pub(crate) fn feed(&self, program: &str, args: &[&str], input: &str) -> Result<()> {
        let mut child = self
            .command(program)
            .args(args)
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()?;
        // Taken, so that it is closed before the wait.
        if let Some(mut stdin) = child.stdin.take() {
            stdin.write_all(input.as_bytes())?;
        }
        let output = child.wait_with_output()?;
        if !output.status.success() {
            let said = String::from_utf8_lossy(&output.stderr).trim().to_owned();
            bail!("{program} on {}: {said}\n{input}", self.name);
        }
        Ok(())
    }
}

impl Drop for Space {
    fn drop(&mut self) {
        // The guard has ended it already; this is for a space that no guard watches yet.
        let _ = self.holder.kill();
        let _ = self.holder.wait();
    }
}

/// A process that ends everything in a lab's namespaces and removes its files, once its input is closed: by
/// [`Guard::close`], or by the kernel when the test process is gone, for whatever reason.
pub(crate) struct Guard {
    process: Child,
    input: Option<ChildStdin>,
}

/// Each line of input is a holder's process id and the number of its network namespace. Both are compared
/// before anything is killed, since numbers are reused; the holder is killed last, since it keeps its number.
const CLEAN: &str = r#"
trap '' INT TERM HUP
spaces=$(cat)
echo "$spaces" | while read -r holder number; do
    [ "$(readlink "/proc/$holder/ns/net")" = "net:[$number]" ] || continue
    for round in 1 2 3 4 5; do
        found=$(find /proc/[0-9]*/ns/net -maxdepth 0 -lname "net:\[$number\]" 2>/dev/null |
            cut -d/ -f3 | grep -vx "$holder")
        [ -n "$found" ] || break
        kill -9 $found
        sleep 0.02
    done
    kill -9 "$holder"
done 2>/dev/null
[ -n "$AGENT_LAB_KEEP" ] || rm -rf "$1"
"#;

impl Guard {
    /// Starts one, for a lab with its files in `dir`.
    pub(crate) fn start(dir: &Path) -> Result<Guard> {
        let mut process = Command::new("sh")
            .args(["-c", CLEAN, "sh"])
            .arg(dir)
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .process_group(0)
            .spawn()
            .context("the guard")?;
        let input = process.stdin.take();
        Ok(Guard { process, input })
    }

    /// Makes it responsible for one more space.
    pub(crate) fn watch(&mut self, space: &Space) -> Result<()> {
        let input = self.input.as_mut().context("the guard is closed")?;
        writeln!(input, "{} {}", space.pid(), space.number()?).context("the guard is gone")
    }

    /// Ends everything, and waits for it.
    pub(crate) fn close(&mut self) {
        drop(self.input.take());
        let _ = self.process.wait();
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        self.close();
    }
}
