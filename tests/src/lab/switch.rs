//! The switch between the nodes, and the faults that it makes.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;
use std::sync::{Mutex, PoisonError};

use anyhow::Result;

use super::space::Space;

/// Faults in force, by the number of a node's port.
#[derive(Debug, Default)]
pub(crate) struct Faults {
    /// Nothing passes from the first to the second.
    pub(crate) cuts: BTreeSet<(usize, usize)>,
    /// Percent of all packets from and to a node that are lost.
    pub(crate) loss: BTreeMap<usize, u32>,
}

impl Faults {
    /// The whole ruleset; loading it replaces the last one atomically.
    fn ruleset(&self) -> String {
        let mut rules = String::new();
        for (from, to) in &self.cuts {
            let _ = writeln!(rules, "iifname \"p{from}\" oifname \"p{to}\" drop");
        }
        for (node, percent) in &self.loss {
            for direction in ["iifname", "oifname"] {
                let _ = writeln!(rules, "{direction} \"p{node}\" numgen random mod 100 < {percent} drop");
            }
        }
        format!(
            "table bridge lab\ndelete table bridge lab\ntable bridge lab {{\n\
             chain faults {{ type filter hook forward priority 0; policy accept;\n{rules}}}\n}}\n"
        )
    }
}

/// A bridge in a space of its own.
pub(crate) struct Switch {
    space: Space,
    faults: Mutex<Faults>,
}

impl Switch {
    pub(crate) fn new(space: Space) -> Result<Switch> {
        space.ip("link add br0 type bridge\nlink set br0 up\n")?;
        // Who sends pays for the way to the receiver here: a switch would not ask iptables about each frame.
        let plain = "for f in /proc/sys/net/bridge/bridge-nf-call-*; do [ ! -e $f ] || echo 0 >$f; done";
        space.feed("sh", &["-c", plain], "")?;
        Ok(Switch { space, faults: Mutex::default() })
    }

    /// Connects a node's `eth0` to a port of its own.
    pub(crate) fn plug(&self, port: usize, node: &Space) -> Result<()> {
        let peer = node.pid();
        self.space.ip(&format!(
            "link add p{port} type veth peer name eth0 netns {peer}\n\
             link set p{port} master br0\nlink set p{port} up\n"
        ))
    }

    /// Sets a port up or down.
    pub(crate) fn port(&self, port: usize, up: bool) -> Result<()> {
        let to = if up { "up" } else { "down" };
        self.space.ip(&format!("link set p{port} {to}\n"))
    }

    /// Makes a port silently drop larger packets.
    pub(crate) fn largest(&self, port: usize, bytes: u32) -> Result<()> {
        self.space.ip(&format!("link set p{port} mtu {bytes}\n"))
    }

    /// Changes the faults.
    pub(crate) fn change(&self, change: impl FnOnce(&mut Faults)) -> Result<()> {
        let mut faults = self.faults.lock().unwrap_or_else(PoisonError::into_inner);
        change(&mut faults);
        self.space.feed("nft", &["-f", "-"], &faults.ruleset())
    }
}
