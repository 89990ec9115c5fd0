//! `agent set`: what holds for the whole cluster, each time as one command, so that nothing holds by halves.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use super::haproxy::{FoundService, Haproxy, belongs, default_of};
use super::keepalived::{Keepalived, Vip};
use super::nodes::{NodeNames, UNKNOWN, shown};
use crate::node::Name;
use crate::service::KUBE_API;
use crate::settings::Settings;

/// Ports that masters alone have beside the apiserver's: RKE2's supervisor, OpenShift's machine configuration.
const MASTERS_PORTS: [u16; 3] = [6443, 9345, 22623];

/// Keys that a service has in a node's own file alone.
const OWN_KEYS: [&str; 3] = ["check.ca-file", "check.cert-file", "check.address"];

/// One `agent set`.
#[derive(Debug, Default)]
pub(super) struct SetCommand(Vec<(String, String)>);

impl SetCommand {
    fn set(&mut self, key: impl Into<String>, value: impl Into<String>) {
        self.0.push((key.into(), value.into()));
    }

    /// As it is typed.
    pub(super) fn shown(&self) -> String {
        let words = self.0.iter().map(|(key, value)| quoted(&format!("{key}={value}")));
        format!("agent set {}", words.collect::<Vec<_>>().join(" "))
    }

    /// What the agent would refuse of it, beside names that are still to be filled in.
    pub(super) fn mistakes(&self) -> Vec<String> {
        let known = self.0.iter().filter(|(key, value)| !key.contains(UNKNOWN) && !value.contains(UNKNOWN));
        let values: BTreeMap<String, String> = known.cloned().collect();
        Settings::read(&values, None).1.iter().map(ToString::to_string).collect()
    }
}

/// A word that any shell takes as it is.
fn quoted(word: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "._:/,=@%+-".contains(c);
    if word.chars().all(plain) { word.to_owned() } else { format!("'{}'", word.replace('\'', "'\\''")) }
}

/// What is known of the nodes that the files are of.
pub(super) struct Nodes<'a> {
    pub(super) names: NodeNames<'a>,
    /// The one that the files are from.
    pub(super) this: Option<&'a Name>,
}

impl Nodes<'_> {
    /// The node that the files are from, and those beside it: names, or what stands for them.
    fn balancers(&self, keepalived: &Keepalived) -> Vec<String> {
        let own = self.this.cloned().or_else(|| self.names.at(keepalived.own?));
        let peers = keepalived.peers.iter().map(|peer| self.names.at(*peer));
        // Without a list of peers there is at least one.
        let peers: Vec<Option<Name>> = if keepalived.peers.is_empty() { vec![None] } else { peers.collect() };
        let all = std::iter::once(own).chain(peers).enumerate();
        all.map(|(at, name)| name.map_or(format!("{UNKNOWN}{}", at + 1), |name| name.to_string())).collect()
    }
}

/// The hosts of the apiservers.
fn apiservers(haproxy: &Haproxy) -> BTreeSet<&str> {
    let services = haproxy.services.iter().filter(|service| service.name == KUBE_API);
    services.flat_map(|service| &service.servers).map(|server| server.host.as_str()).collect()
}

/// A service that others offer, for all nodes at once: nodes that offer it need no file.
pub(super) fn service(service: &FoundService, haproxy: &Haproxy, names: NodeNames<'_>) -> SetCommand {
    let mut command = SetCommand::default();
    let mut set = |key: &str, value: String| command.set(format!("service.{}.{key}", service.name), value);
    set("port", service.port.to_string());
    set("offer", offer(service, haproxy, names));
    if let Some(kind) = service.check.filter(|kind| *kind != "tcp") {
        set("check", kind.to_owned());
    }
    for (key, (value, _)) in &service.keys {
        if value != default_of(key) && belongs(key, service.check) && !OWN_KEYS.contains(key) {
            set(key, bare(value));
        }
    }
    command
}

/// A value of TOML as a setting has it.
fn bare(value: &str) -> String {
    match value.strip_prefix('"').and_then(|value| value.strip_suffix('"')) {
        Some(text) => text.replace("\\\"", "\"").replace("\\\\", "\\"),
        None => value.to_owned(),
    }
}

/// Who offers a service: its servers.
fn offer(service: &FoundService, haproxy: &Haproxy, names: NodeNames<'_>) -> String {
    let masters = apiservers(haproxy);
    let hosts: BTreeSet<&str> = service.servers.iter().map(|server| server.host.as_str()).collect();
    if hosts == masters || (masters.is_empty() && MASTERS_PORTS.contains(&service.port)) {
        return "masters".to_owned();
    }
    let named = service.servers.iter().map(|server| shown(names.of_server(server).as_ref()).to_owned());
    named.collect::<BTreeSet<_>>().into_iter().collect::<Vec<_>>().join(",")
}

/// Whether the nodes that the files are of stand before the masters and are none.
pub(super) fn is_dedicated(haproxy: &Haproxy, keepalived: &Keepalived) -> bool {
    let masters = apiservers(haproxy);
    if let Some(own) = keepalived.own.filter(|_| !masters.is_empty()) {
        return !masters.iter().any(|host| host.parse() == Ok(own));
    }
    // It listens in the apiserver's place, or leads to what is no apiserver.
    let in_place = |service: &FoundService| {
        let here = |at: &std::net::SocketAddr| at.ip().is_unspecified() && at.port() == service.port;
        service.name != KUBE_API || service.listen.iter().any(|(at, _)| here(at))
    };
    haproxy.services.iter().any(in_place)
}

/// All virtual IPs with all that is said of them: until then nobody owns any.
pub(super) fn vips(haproxy: &Haproxy, keepalived: &Keepalived, nodes: &Nodes<'_>) -> SetCommand {
    let mut command = SetCommand::default();
    let all: Vec<String> = keepalived.vips.iter().map(|vip| vip.address.to_string()).collect();
    command.set("vip", all.join(","));
    let balancers = nodes.balancers(keepalived);
    let dedicated = is_dedicated(haproxy, keepalived);
    for vip in &keepalived.vips {
        let mut set = |key: &str, value: String| command.set(format!("vip.{}.{key}", vip.address), value);
        if let Some(service) = fronted(vip, haproxy) {
            set("service", service.to_owned());
        }
        if dedicated {
            set("candidates", balancers.join(","));
        }
        if let Some(interface) = needed_interface(vip, haproxy, keepalived) {
            set("interface", interface.to_owned());
        }
        if let Some(label) = &vip.label {
            set("label", label.clone());
        }
        for (host, priority) in &vip.priorities {
            let host = host.as_ref().map(|host| host.to_lowercase().parse::<Name>());
            let node = match &host {
                None => balancers.first().map_or(UNKNOWN, String::as_str),
                Some(name) => shown(name.as_ref().ok()),
            };
            set(&format!("priority.{node}"), priority.to_string());
        }
        if let Some(wait) = &vip.preempt {
            set("preempt", wait.clone());
        }
    }
    command
}

/// The service that a virtual IP leads to, where that is not the apiservers'.
fn fronted<'a>(vip: &Vip, haproxy: &'a Haproxy) -> Option<&'a str> {
    let reached = |service: &&FoundService| {
        service.listen.iter().any(|(at, _)| {
            at.ip() == vip.address || (at.ip().is_unspecified() && at.is_ipv4() == vip.address.is_ipv4())
        })
    };
    let mut all = haproxy.services.iter().filter(reached);
    let first = all.clone().next()?;
    if all.any(|service| service.name == KUBE_API) { None } else { Some(&first.name) }
}

/// The interface of a virtual IP, where the agent would not find it by the address.
fn needed_interface<'a>(vip: &'a Vip, haproxy: &Haproxy, keepalived: &Keepalived) -> Option<&'a str> {
    let servers = haproxy.services.iter().flat_map(|service| &service.servers);
    let servers = servers.filter_map(|server| server.host.parse::<IpAddr>().ok());
    let known: Vec<IpAddr> = servers
        .filter(|address| !address.is_loopback())
        .chain(keepalived.own)
        .chain(keepalived.peers.iter().copied())
        .filter(|address| address.is_ipv4() == vip.address.is_ipv4())
        .collect();
    let outside = !known.is_empty() && !known.iter().any(|address| vip.is_beside(*address));
    vip.interface.as_deref().filter(|_| vip.on_its_own || outside)
}
