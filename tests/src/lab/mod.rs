//! A network on one machine: every node is a set of namespaces (network, mount, host name), connected by a
//! switch that can inject faults.
//!
//! ```text
//!   n0 ─ eth0 ─── p0 ┐                  Underlay 10.90.0.1…: what the machines' own network would be.
//!   n1 ─ eth0 ─── p1 ┤ bridge in a      Mesh 10.91.0.1…: what the agents live on. On a WireGuard mesh it
//!   n2 ─ eth0 ─── p2 ┘ space "switch"   is wg0, with no layer 2; on a bridge it is eth0 itself.
//! ```
//!
//! All network faults are injected in the switch, so a node under test does not see them coming: a port that
//! goes down, packets that are lost at random or in one direction. What a node does to itself (stop a
//! process, change its address) happens on the node.
//!
//! Nothing is left behind: whatever a lab started ends with it, also after a panic and when the test process
//! itself is killed (see `space::Guard`).

mod api;
mod certs;
mod nginx;
mod node;
mod proc;
mod space;
mod switch;
mod wireguard;

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context, Result, bail};

pub use api::{ApiServer, Store};
pub use certs::Certs;
pub use nginx::Master;
pub use node::Node;
pub use proc::{Proc, Ran};
pub use rustix::process::Signal;

use space::{Guard, Space};
use switch::Switch;

/// Most nodes of one lab: the addresses below have no room for more, and few machines can run as many.
const MAX_NODES: usize = 200;

/// Where the kernel has the limits of its tables of neighbours: each is one table for all namespaces.
const NEIGHBOURS: [&str; 2] = ["/proc/sys/net/ipv4/neigh/default", "/proc/sys/net/ipv6/neigh/default"];

/// What every lab needs, and the Debian package that provides it.
const TOOLS: [(&str, &str); 9] = [
    ("ip", "iproute2"),
    ("nft", "nftables"),
    ("wg", "wireguard-tools"),
    ("wireguard-go", "wireguard-go"),
    ("nginx", "nginx-light"),
    ("curl", "curl"),
    ("ping", "iputils-ping"),
    ("nsenter", "util-linux"),
    ("find", "findutils"),
];

/// Variables of the tests, which agents must not see: they refuse those of their own prefix that they do not know.
pub const VARIABLES: [&str; 3] = ["AGENT_LAB_KEEP", "AGENT_BIN_NEXT", "AGENT_BIN_OLD"];

/// What carries the mesh.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    WireGuard,
    Bridge,
}

/// A network of nodes. Dropping it ends everything in it.
pub struct Lab {
    dir: tempfile::TempDir,
    // Before the spaces: the guard has to find them alive.
    guard: Guard,
    nodes: Vec<Node>,
    switch: Arc<Switch>,
    certs: Certs,
    // Held for their processes.
    tunnels: Vec<Proc>,
    logs: proc::Logs,
}

impl Lab {
    /// Nodes on a full mesh of WireGuard tunnels: a layer 3 network, without ARP, broadcast or multicast.
    ///
    /// # Errors
    /// What could not be built and, where something is missing, what to install.
    pub fn wireguard(nodes: usize) -> Result<Lab> {
        Lab::build(nodes, Kind::WireGuard, false)
    }

    /// The same with IPv6 addresses only on the mesh.
    ///
    /// # Errors
    /// As [`Lab::wireguard`].
    pub fn wireguard_v6(nodes: usize) -> Result<Lab> {
        Lab::build(nodes, Kind::WireGuard, true)
    }

    /// Nodes on one Ethernet segment.
    ///
    /// # Errors
    /// As [`Lab::wireguard`].
    pub fn bridge(nodes: usize) -> Result<Lab> {
        Lab::build(nodes, Kind::Bridge, false)
    }

    fn build(count: usize, kind: Kind, v6: bool) -> Result<Lab> {
        require()?;
        if count == 0 || count > MAX_NODES {
            bail!("a lab has 1 to {MAX_NODES} nodes, not {count}");
        }
        make_room_for_neighbours(count)?;
        let dir = tempfile::Builder::new().prefix("agent-lab-").tempdir()?;
        let mut guard = Guard::start(dir.path())?;
        // All at once, then wait: a mesh of thirty is up as fast as one of three.
        let mut spaces = Vec::new();
        for i in 0..count {
            spaces.push(Space::start(&format!("n{i}"))?);
        }
        let mut bridge = Space::start("switch")?;
        for space in spaces.iter_mut().chain([&mut bridge]) {
            space.ready()?;
            guard.watch(space)?;
        }
        let certs = Certs::make(&dir.path().join("pki"))?;
        let logs = proc::Logs::default();
        let switch = Arc::new(Switch::new(bridge)?);
        let mut nodes = Vec::new();
        for (i, space) in spaces.into_iter().enumerate() {
            let host = u8::try_from(i + 1)?;
            let underlay = Ipv4Addr::new(10, 90, 0, host);
            let mesh = match v6 {
                false => IpAddr::V4(Ipv4Addr::new(10, 91, 0, host)),
                true => IpAddr::V6(Ipv6Addr::new(0xfd91, 0, 0, 0, 0, 0, 0, u16::from(host))),
            };
            let own = dir.path().join(format!("n{i}"));
            std::fs::create_dir(&own)?;
            let underlay = if kind == Kind::Bridge { mesh } else { IpAddr::V4(underlay) };
            switch.plug(i, &space)?;
            nodes.push(Node::new(i, space, own, underlay, mesh, Arc::clone(&switch), logs.clone())?);
        }
        let mut lab = Lab { dir, guard, nodes, switch, certs, tunnels: Vec::new(), logs };
        if kind == Kind::WireGuard {
            lab.tunnels = wireguard::mesh(&mut lab.nodes).context("the WireGuard mesh")?;
        }
        Ok(lab)
    }

    /// How many nodes there are.
    pub fn size(&self) -> usize {
        self.nodes.len()
    }

    /// A node by its number.
    ///
    /// # Panics
    /// There is none with this number.
    pub fn node(&self, i: usize) -> &Node {
        &self.nodes[i]
    }

    /// All nodes, in order.
    pub fn nodes(&self) -> &[Node] {
        &self.nodes
    }

    /// The authority that signed the certificates of all masters of this lab.
    pub fn certs(&self) -> &Certs {
        &self.certs
    }

    /// A directory for this lab's files; it goes away with the lab.
    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// Starts an nginx with TLS on the node's mesh address, port 6443, as a stand-in for an apiserver.
    ///
    /// # Errors
    /// It did not start to listen.
    pub fn nginx_master(&self, i: usize) -> Result<Master> {
        Master::start(&self.nodes[i], &self.certs, nginx::Clients::Anyone)
    }

    /// The same with a certificate that is valid for 127.0.0.1 too.
    ///
    /// # Errors
    /// As [`Lab::nginx_master`].
    pub fn nginx_master_for_the_proxy(&self, i: usize) -> Result<Master> {
        let certs = Certs { server: self.certs.server_proxied.clone(), ..self.certs.clone() };
        Master::start(&self.nodes[i], &certs, nginx::Clients::Anyone)
    }

    /// The same with anonymous access off: without a client certificate of the lab's authority everything is
    /// answered by 401.
    ///
    /// # Errors
    /// As [`Lab::nginx_master`].
    pub fn nginx_master_without_anonymous(&self, i: usize) -> Result<Master> {
        Master::start(&self.nodes[i], &self.certs, nginx::Clients::WithCertificate)
    }

    /// Starts a stand-in for an apiserver that knows the endpoints of the Service `kubernetes`.
    ///
    /// # Errors
    /// It can't listen.
    pub fn api_server(&self, i: usize, store: &Store) -> Result<ApiServer> {
        ApiServer::start(&self.nodes[i], &self.certs, store)
    }

    /// Cuts these nodes from all others, both ways; inside each part everything still works.
    ///
    /// # Errors
    /// The switch refused.
    pub fn partition(&self, island: &[usize]) -> Result<()> {
        let (here, there): (Vec<usize>, Vec<usize>) = (0..self.size()).partition(|i| island.contains(i));
        self.switch.change(|faults| {
            for &a in &here {
                for &b in &there {
                    faults.cuts.insert((a, b));
                    faults.cuts.insert((b, a));
                }
            }
        })
    }

    /// Cuts one node from some others, both ways; everything else still works.
    ///
    /// # Errors
    /// The switch refused.
    pub fn cut_apart(&self, one: usize, others: impl IntoIterator<Item = usize>) -> Result<()> {
        self.switch.change(|faults| {
            for other in others {
                faults.cuts.insert((one, other));
                faults.cuts.insert((other, one));
            }
        })
    }

    /// Ends every cut, partition and loss; ports that are down stay down.
    ///
    /// # Errors
    /// The switch refused.
    pub fn heal(&self) -> Result<()> {
        self.switch.change(|faults| {
            faults.cuts.clear();
            faults.loss.clear();
        })
    }

    /// The last lines of every process's output, for a failing test.
    pub fn tails(&self, lines: usize) -> String {
        self.logs.tails(lines)
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("{}", self.tails(40));
        }
        self.guard.close();
        if std::env::var_os("AGENT_LAB_KEEP").is_some() {
            self.dir.disable_cleanup(true);
            eprintln!("kept: {}", self.dir.path().display());
        }
    }
}

/// Raises the limits of the kernel's tables of neighbours to what a full mesh takes. With the usual ones, of 1,024
/// for all nodes together, a mesh of 33 drops packets, and of a hundred nodes some hear nobody. They stay raised.
fn make_room_for_neighbours(nodes: usize) -> Result<()> {
    let wanted = 2 * nodes * nodes;
    // The highest first: the kernel keeps no order between them, but collects by the lower ones.
    for (table, limit) in NEIGHBOURS.iter().flat_map(|table| [3, 2, 1].map(|limit| (table, limit))) {
        let path = Path::new(table).join(format!("gc_thresh{limit}"));
        // Without IPv6 in the kernel.
        let Ok(text) = std::fs::read_to_string(&path) else { continue };
        if text.trim().parse::<usize>()? < wanted {
            std::fs::write(&path, wanted.to_string()).with_context(|| format!("write {}", path.display()))?;
        }
    }
    Ok(())
}

/// Reports everything that is missing at once.
fn require() -> Result<()> {
    if !rustix::process::geteuid().is_root() {
        bail!("the lab makes network namespaces and needs root: run tests/run as root");
    }
    let missing: Vec<&str> =
        TOOLS.iter().filter(|(tool, _)| which(tool).is_none()).map(|(_, package)| *package).collect();
    if !missing.is_empty() {
        bail!("the lab needs packages that are not installed; run: apt-get install {}", missing.join(" "));
    }
    if !Path::new("/dev/net/tun").exists() {
        bail!("the lab needs /dev/net/tun; run: modprobe tun");
    }
    Ok(())
}

fn which(tool: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    // Debian's root has the sbin directories in its path, a shell that became root by other means may not.
    std::env::split_paths(&path)
        .chain(["/usr/sbin", "/sbin"].map(PathBuf::from))
        .map(|dir| dir.join(tool))
        .find(|file| file.is_file())
}
