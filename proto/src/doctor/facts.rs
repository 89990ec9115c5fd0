//! What is read on a node, before anything is judged.

use std::net::{IpAddr, SocketAddr};

use super::x509::Certificate;
use crate::cause::Reason;
use crate::problem::Problem;
use crate::time::UnixMs;

/// What was read on a node. Whatever could not be looked at is none or empty, and is not judged.
#[derive(Debug, Clone, Default)]
pub struct HostFacts {
    /// Its name.
    pub node: String,
    /// Where this is judged: commands for the node itself need no "on".
    pub here: String,
    /// The time, by its clock.
    pub now: UnixMs,
    /// Its agent; none: it does not run.
    pub agent: Option<AgentFacts>,
    /// Whether there is a membership on disk to start with.
    pub is_member: bool,
    /// The service of systemd; none: systemd does not run here.
    pub service: Option<SystemdService>,
    /// Files and directories that more than their owner may use, with their modes.
    pub loose: Vec<(String, u32)>,
    /// Files that the agent believes and others can change.
    pub untrusted: Vec<UntrustedFile>,
    /// What can't be read by whoever looked.
    pub unreadable: Vec<String>,
    /// Its interfaces.
    pub interfaces: Vec<InterfaceFacts>,
    /// Ways to the other members.
    pub routes: Vec<RouteFacts>,
    /// What there is of Kubernetes.
    pub kubernetes: KubeFacts,
}

/// A running agent, as it says itself.
#[derive(Debug, Clone, Default)]
pub struct AgentFacts {
    /// Its version.
    pub version: String,
    /// Version of the binary that asks; none: it is the same process.
    pub asked_by: Option<String>,
    /// The interface that carries its mesh.
    pub interface: String,
    /// Most files and connections that it may have open.
    pub descriptors: u64,
    /// Connections that its listeners may hold, all together.
    pub maxconn: u64,
    /// Virtual IPs that it knows of.
    pub vips: Vec<IpAddr>,
    /// What it finds wrong with itself.
    pub problems: Vec<Problem>,
    /// Listeners that it could not open, with why: `kube-api on 127.0.0.1:16443 (address in use)`.
    pub closed: Vec<String>,
    /// Backends that it gives no connections though nobody drains them.
    pub away: Vec<UnavailableBackend>,
    /// Services without a good backend, and whether they have others, which get the connections then.
    pub unserved: Vec<(String, bool)>,
}

/// A file that the agent reads and believes, and that others than root and its user can change.
#[derive(Debug, Clone)]
pub struct UntrustedFile {
    /// Which, and how: by itself, or by a directory on the way to it.
    pub what: String,
    /// It is the agent's configuration, which names programs too.
    pub is_config: bool,
    /// The command that fixes it.
    pub fix: String,
}

/// A backend that does not serve.
#[derive(Debug, Clone, Default)]
pub struct UnavailableBackend {
    /// Of which service.
    pub service: String,
    /// On which node.
    pub node: String,
    /// Its state in a word, and why it is so.
    pub how: String,
}

/// The service of systemd.
#[derive(Debug, Clone, Default)]
pub struct SystemdService {
    /// Where its unit was found; none: nowhere.
    pub unit: Option<String>,
    /// The unit is the one that this binary brings.
    pub as_shipped: bool,
    /// Files that change it, without the one that `agent install` writes.
    pub drop_ins: Vec<String>,
}

/// A network interface.
#[derive(Debug, Clone, Default)]
pub struct InterfaceFacts {
    /// Its name.
    pub name: String,
    /// It is up, on an Ethernet-like segment, where ARP is spoken.
    pub speaks_arp: bool,
    /// Its addresses with the lengths of their prefixes.
    pub addresses: Vec<(IpAddr, u8)>,
    /// What counts of `rp_filter`; none: not known.
    pub rp_filter: Option<u8>,
    /// What counts of `arp_ignore`; none: not known.
    pub arp_ignore: Option<u8>,
}

/// The kernel's way to a member.
#[derive(Debug, Clone)]
pub struct RouteFacts {
    /// The member.
    pub name: String,
    /// Its address.
    pub to: IpAddr,
    /// The interface that packets leave by, or why there is none.
    pub by: Result<String, Reason>,
}

/// Who set Kubernetes up, and so where its settings are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Distribution {
    /// k3s.
    K3s,
    /// RKE2.
    Rke2,
    /// kubeadm, or by hand in its places.
    Kubeadm,
}

/// What there is of Kubernetes on a node.
#[derive(Debug, Clone, Default)]
pub struct KubeFacts {
    /// Whose; none: there is none here.
    pub distribution: Option<Distribution>,
    /// The node's own apiserver; none: none answers.
    pub apiserver: Option<ApiserverFacts>,
    /// The check has a client certificate to show.
    pub credentials: bool,
    /// Kubeconfigs, and where they point.
    pub clients: Vec<KubeClient>,
    /// The node runs k3s' or RKE2's agent with a balancer of its own.
    pub own_balancer: bool,
    /// Where this node's proxy listens for apiservers.
    pub api_listeners: Vec<SocketAddr>,
    /// Where it listens for anything.
    pub listeners: Vec<SocketAddr>,
    /// Virtual IPs.
    pub vips: Vec<IpAddr>,
    /// Members and their addresses.
    pub members: Vec<(String, IpAddr)>,
}

/// An apiserver, as its TLS port shows it to anyone.
#[derive(Debug, Clone)]
pub struct ApiserverFacts {
    /// Where.
    pub at: SocketAddr,
    /// Its certificate; none: it could not be read.
    pub certificate: Option<Certificate>,
    /// What `GET /readyz` without credentials was answered with.
    pub readyz: Option<u16>,
}

/// Something that is told in a file where its apiserver is.
#[derive(Debug, Clone, Default)]
pub struct KubeClient {
    /// The file.
    pub path: String,
    /// Who reads it, as `kubelet`.
    pub who: &'static str,
    /// What it says, as `https://10.0.0.1:6443`.
    pub url: String,
    /// Where that is.
    pub at: Vec<SocketAddr>,
}
