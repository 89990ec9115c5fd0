//! One node of a lab.

use std::fs::File;
use std::net::IpAddr;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result, anyhow};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use super::proc::{Logs, Proc, Ran};
use super::space::Space;
use super::switch::Switch;
use super::wireguard::Tunnel;

/// Longest duration of a command on a node: a hanging test reports nothing.
const EXEC_LIMIT: Duration = Duration::from_secs(60);

/// A machine of its own, as far as its network, host name and `/run` go; files are shared.
pub struct Node {
    /// Its number in the lab.
    pub index: usize,
    /// Its name, which is its host name too: n0, n1…
    pub name: String,
    /// The interface that carries the mesh.
    pub interface: &'static str,
    /// Its address under the mesh; on a bridge the same as the mesh address.
    pub underlay_ip: IpAddr,
    mesh_ip: Mutex<IpAddr>,
    space: Space,
    dir: PathBuf,
    switch: Arc<Switch>,
    logs: Logs,
    pub(crate) tunnel: Option<Tunnel>,
}

impl Node {
    pub(crate) fn new(
        index: usize,
        space: Space,
        dir: PathBuf,
        underlay_ip: IpAddr,
        mesh_ip: IpAddr,
        switch: Arc<Switch>,
        logs: Logs,
    ) -> Result<Node> {
        let bits = if underlay_ip.is_ipv4() { "24" } else { "64 nodad" };
        space.ip(&format!("link set eth0 up\naddr add {underlay_ip}/{bits} dev eth0\n"))?;
        let mesh_ip = Mutex::new(mesh_ip);
        let name = format!("n{index}");
        let interface = "eth0";
        Ok(Node { index, name, interface, underlay_ip, mesh_ip, space, dir, switch, logs, tunnel: None })
    }

    pub(crate) fn space(&self) -> &Space {
        &self.space
    }

    /// Its address on the mesh.
    pub fn mesh_ip(&self) -> IpAddr {
        *self.mesh_ip.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The process whose namespaces these are.
    pub fn pid(&self) -> u32 {
        self.space.pid()
    }

    /// A directory for this node's files.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Runs a command to its end.
    ///
    /// # Errors
    /// It could not be started; a command that fails is no error, see [`Ran::ok`].
    pub fn exec(&self, command: &[&str]) -> Result<Ran> {
        let limit = EXEC_LIMIT.as_secs().to_string();
        let output = self
            .space
            .command("timeout")
            .args(["--kill-after=1", &limit])
            .args(command)
            .stdin(std::process::Stdio::null())
            .output()
            .with_context(|| format!("{} on {}", command.join(" "), self.name))?;
        Ok(Ran::of(format!("{}# {}", self.name, command.join(" ")), &output))
    }

    /// Runs a command to its end with this input.
    ///
    /// # Errors
    /// It can't be started, or fails.
    pub fn feed(&self, program: &str, args: &[&str], input: &str) -> Result<()> {
        self.space.feed(program, args, input)
    }

    /// Starts a command in the background; its output goes to `name`.log in the node's directory.
    ///
    /// # Errors
    /// It could not be started.
    pub fn spawn(&self, name: &str, command: &[&str]) -> Result<Proc> {
        self.spawn_with(name, command, &[])
    }

    /// The same with environment variables.
    ///
    /// # Errors
    /// As [`Node::spawn`].
    pub fn spawn_with(&self, name: &str, command: &[&str], env: &[(&str, &str)]) -> Result<Proc> {
        let (program, args) = command.split_first().context("an empty command")?;
        let mut inside = self.space.command(program);
        inside.args(args).envs(env.iter().copied()).current_dir(&self.dir);
        let log = self.dir.join(format!("{name}.log"));
        self.logs.add(&log);
        Proc::spawn(&format!("{name} on {}", self.name), log, inside)
    }

    /// Runs a closure on a thread inside the node's network: sockets that it opens are the node's, and stay
    /// so when they are returned.
    ///
    /// # Errors
    /// The network can't be entered, or the closure's own.
    pub fn inside<T: Send>(&self, act: impl FnOnce() -> Result<T> + Send) -> Result<T> {
        let network = File::open(format!("/proc/{}/ns/net", self.space.pid()))?;
        std::thread::scope(|scope| {
            scope
                .spawn(|| {
                    move_into_link_name_space(network.as_fd(), Some(LinkNameSpaceType::Network))
                        .with_context(|| format!("enter the network of {}", self.name))?;
                    act()
                })
                .join()
                .map_err(|_| anyhow!("a closure inside {} panicked", self.name))?
        })
    }

    /// Cuts the power: the port of the switch goes down and nothing passes any more.
    ///
    /// # Errors
    /// The switch refused.
    pub fn power_cut(&self) -> Result<()> {
        self.switch.port(self.index, false)
    }

    /// Brings the port up again.
    ///
    /// # Errors
    /// The switch refused.
    pub fn power_on(&self) -> Result<()> {
        self.switch.port(self.index, true)
    }

    /// From now on larger packets vanish on the way to this node, and from it.
    ///
    /// # Errors
    /// The switch refused.
    pub fn largest_packet(&self, bytes: u32) -> Result<()> {
        self.switch.largest(self.index, bytes)
    }

    /// Loses this share of all packets from and to this node, at random.
    ///
    /// # Errors
    /// The switch refused.
    pub fn loss(&self, percent: u32) -> Result<()> {
        self.switch.change(|faults| {
            faults.loss.insert(self.index, percent);
        })
    }

    /// Ends the loss.
    ///
    /// # Errors
    /// The switch refused.
    pub fn no_loss(&self) -> Result<()> {
        self.switch.change(|faults| {
            faults.loss.remove(&self.index);
        })
    }

    /// Drops packets from the other node to this one; the other direction still works.
    ///
    /// # Errors
    /// The switch refused.
    pub fn cut_from(&self, other: &Node) -> Result<()> {
        other.cut_to(self)
    }

    /// Drops packets from this node to the other one; the other direction still works.
    ///
    /// # Errors
    /// The switch refused.
    pub fn cut_to(&self, other: &Node) -> Result<()> {
        self.switch.change(|faults| {
            faults.cuts.insert((self.index, other.index));
        })
    }

    /// Ends every cut from and to this node.
    ///
    /// # Errors
    /// The switch refused.
    pub fn heal(&self) -> Result<()> {
        self.switch.change(|faults| {
            faults.cuts.retain(|(from, to)| *from != self.index && *to != self.index);
        })
    }

    /// Gives the mesh interface another address, as a renewed lease or an operator would; on a WireGuard mesh
    /// the other nodes learn to route it here.
    ///
    /// # Errors
    /// The interface or a tunnel refused.
    pub fn change_address(&self, new: IpAddr, all: &[Node]) -> Result<()> {
        let mut current = self.mesh_ip.lock().unwrap_or_else(PoisonError::into_inner);
        let (bits, host) = if new.is_ipv4() { (24, 32) } else { (64, 128) };
        if let Some(tunnel) = &self.tunnel {
            for other in all.iter().filter(|other| other.index != self.index) {
                let route = format!("{new}/{host}");
                let args = ["wg", "set", other.interface, "peer", &tunnel.public, "allowed-ips", &route];
                other.exec(&args)?.ok()?;
            }
        }
        self.space.ip(&format!(
            "addr add {new}/{bits} dev {0}\naddr del {1}/{bits} dev {0}\n",
            self.interface, *current
        ))?;
        // The kernel removes the primary's secondaries of the same subnet along with it.
        self.space.ip(&format!("addr replace {new}/{bits} dev {}\n", self.interface))?;
        *current = new;
        Ok(())
    }
}
