//! keepalived, from Debian's package and configured as its users do.

use std::time::Duration;

use anyhow::{Context, Result, ensure};

use super::contender::Contender;
use super::{ADDRESS, CLIENT};
use crate::lab::{Lab, Node, Proc};

/// The pair as people run it: the owner and its backup.
const PRIORITIES: [u8; 2] = [255, 254];

/// VRRP version.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Version {
    /// As users have it: VRRPv2, an advert per second.
    V2,
    /// The fastest usual setting: VRRPv3, ten adverts per second.
    V3,
}

/// A pair of keepalived processes.
pub struct Keepalived<'lab> {
    nodes: Vec<&'lab Node>,
    processes: Vec<Proc>,
}

impl<'lab> Keepalived<'lab> {
    /// Starts a pair on the first two nodes.
    ///
    /// # Errors
    /// It can't be started.
    pub fn start(lab: &'lab Lab, version: Version) -> Result<Keepalived<'lab>> {
        let nodes: Vec<&Node> = lab.nodes().iter().take(PRIORITIES.len()).collect();
        let mut processes = Vec::new();
        for (node, priority) in nodes.iter().zip(PRIORITIES) {
            std::fs::write(node.dir().join("keepalived.conf"), config(node, version, priority))?;
            processes.push(launch(node)?);
        }
        Ok(Keepalived { nodes, processes })
    }

    /// The last state that it entered.
    fn state(&self, i: usize) -> Result<String> {
        let log = self.processes.get(i).context("no such node")?.log()?;
        let state = log.rsplit("Entering ").next().filter(|_| log.contains("Entering "));
        let word = state.and_then(|rest| rest.split(' ').next()).unwrap_or("no");
        Ok(word.to_owned())
    }
}

fn config(node: &Node, version: Version, priority: u8) -> String {
    let (interface, own) = (node.interface, node.mesh_ip());
    let (globals, interval, auth) = match version {
        Version::V2 => {
            ("", "1", "authentication {\n        auth_type PASS\n        auth_pass secret51\n    }")
        }
        // VRRPv3 has no passwords (RFC 5798).
        Version::V3 => ("vrrp_version 3", "0.1", ""),
    };
    let state = if priority == PRIORITIES[0] { "MASTER" } else { "BACKUP" };
    format!(
        "global_defs {{\n    router_id {name}\n    script_user root\n    enable_script_security\n    {globals}\n}}\n\
         vrrp_script api {{\n    script \"/usr/bin/curl -sfk -m 2 -o /dev/null https://{own}:6443/readyz\"\n    \
         interval 1\n    timeout 2\n    fall 2\n    rise 2\n}}\n\
         vrrp_instance VI_1 {{\n    state {state}\n    interface {interface}\n    virtual_router_id 51\n    \
         priority {priority}\n    advert_int {interval}\n    {auth}\n    virtual_ipaddress {{\n        \
         {ADDRESS}/24 dev {interface} label {interface}:0\n    }}\n    track_script {{\n        api\n    }}\n}}\n",
        name = node.name,
    )
}

fn launch(node: &Node) -> Result<Proc> {
    let config = node.dir().join("keepalived.conf").to_string_lossy().into_owned();
    let command = ["keepalived", "--dont-fork", "--log-console", "--log-detail", "--vrrp", "-f", &config];
    node.spawn("keepalived", &command)
}

impl Contender for Keepalived<'_> {
    fn candidates(&self) -> usize {
        self.nodes.len()
    }

    fn process(&mut self, i: usize) -> Result<&mut Proc> {
        self.processes.get_mut(i).context("no such node")
    }

    fn start(&mut self, i: usize) -> Result<()> {
        let node = *self.nodes.get(i).context("no such node")?;
        // Leftovers of a killed process stay forever, and its pid files prevent a start for as long as nobody
        // has reaped the process that they name.
        node.exec(&["sh", "-c", "rm -f /run/keepalived*.pid /run/vrrp.pid"])?.ok()?;
        node.exec(&["ip", "address", "del", &format!("{ADDRESS}/24"), "dev", node.interface])?;
        self.processes[i] = launch(node)?;
        Ok(())
    }

    fn ready(&mut self) -> Result<usize> {
        let states = [self.state(0)?, self.state(1)?];
        ensure!(states == ["MASTER", "BACKUP"], "they are {}", states.join(" and "));
        Ok(0)
    }

    fn calm(&self) -> Duration {
        // The backup has to have received an advert of the returned node.
        Duration::from_millis(1200)
    }

    fn words(&self) -> String {
        self.processes.iter().map(|process| process.tail(25)).collect()
    }
}

const _: () = assert!(PRIORITIES.len() < CLIENT);
