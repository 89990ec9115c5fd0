//! One node by itself: its agent, its service, its kernel, its routes.

use std::net::IpAddr;

use super::facts::{AgentFacts, HostFacts, InterfaceFacts, RouteFacts, UnavailableBackend, UntrustedFile};
use super::{Examination, FindingText, Severity, Step, kube};
use crate::problem::{Problem, ProblemCode};

/// Fewest descriptors beside those of connections: state, gossip, the page, pipes of bulk.
const OTHER_DESCRIPTORS: u64 = 1024;

/// Judges a node by itself.
pub fn examine(host: &HostFacts) -> Examination {
    let mut out = Examination::default();
    agent(host, &mut out);
    service(host, &mut out);
    files(host, &mut out);
    routes(host, &mut out);
    arp(host, &mut out);
    kube::examine(host, &mut out);
    out
}

fn agent(host: &HostFacts, out: &mut Examination) {
    let run = |command: &str| Step::run(command).at(&host.node, &host.here);
    let node = &host.node;
    let Some(agent) = &host.agent else {
        let (remedy, more) = match host.is_member {
            true => (
                vec![
                    run("systemctl start agent"),
                    run("journalctl -u agent -n 20").remark("if it does not stay"),
                ],
                "",
            ),
            false => (
                vec![run("agent join INVITE").remark("or, on the first node: agent init")],
                ", which is not a member",
            ),
        };
        let what = format!("the agent is not running on this node{more}");
        let why = "nothing listens on 127.0.0.1:16443, and the other nodes do not see this one; checks that need a \
                   running agent were skipped";
        out.checked("agent", "");
        out.found(Severity::Error, "agent", "agent-not-running", node, FindingText { what, why, remedy });
        return;
    };
    for problem in &agent.problems {
        let Problem { code, detail, fix, .. } = problem;
        let why = "reported by the agent itself; also in agent status";
        let step = if fix.is_empty() { run("agent status") } else { Step::text(fix.to_string()) };
        let words = FindingText { what: detail.to_string(), why, remedy: vec![step] };
        let severity = match code {
            // What it forgets at the next start may be its keys; and without an address it reaches nobody, of which
            // all that the checks of the others find is a consequence.
            ProblemCode::StateNotSaved | ProblemCode::NoAddress => Severity::Error,
            _ => Severity::Warning,
        };
        out.found(severity, "agent", code.label(), node, words);
    }
    for listener in &agent.closed {
        let what = format!("the proxy cannot listen: {listener}");
        let why = "clients that connect there reach another process, or nothing";
        let words = FindingText {
            what,
            why,
            remedy: vec![run("ss -ltnp").remark("who uses the port"), run("agent check")],
        };
        out.found(Severity::Error, "agent", "not-listening", node, words);
    }
    if let Some(asker) = agent.asked_by.as_ref().filter(|asker| **asker != agent.version) {
        let what = format!("the running agent has version {}, this command has {asker}", agent.version);
        let why = "the binary was replaced, but the old one is still running";
        let remedy = vec![run("agent upgrade").remark("connections go over")];
        out.found(Severity::Warning, "agent", "old-agent-runs", node, FindingText { what, why, remedy });
    }
    let needed = agent.maxconn.saturating_mul(2).saturating_add(OTHER_DESCRIPTORS);
    if agent.descriptors < needed {
        let what = format!(
            "the open file limit is {}, but maxconn of the listeners ({}) needs {needed}",
            agent.descriptors, agent.maxconn
        );
        let why =
            "each connection needs two; beyond the limit, new ones are refused before maxconn is reached";
        let remedy = vec![
            run("systemctl edit agent").remark("[Service] LimitNOFILE=1048576"),
            run("systemctl restart agent"),
        ];
        out.found(Severity::Warning, "agent", "few-descriptors", node, FindingText { what, why, remedy });
    }
    let files = agent.descriptors;
    out.checked(
        "agent",
        format!("{} is running, {files} files for {} connections", agent.version, agent.maxconn),
    );
    backends(host, agent, out);
}

/// Told by the node that was asked alone: the others see the same.
fn backends(host: &HostFacts, agent: &AgentFacts, out: &mut Examination) {
    if host.node != host.here {
        return;
    }
    for (service, has_others) in &agent.unserved {
        let (what, why) = if *has_others {
            let what = format!("no node is ready to serve {service}");
            (what, "connections go to those that are not, for want of others, and may fail there")
        } else {
            (
                format!("no node serves {service}"),
                "a connection to its listener is reset unless one that is down takes it",
            )
        };
        let remedy = vec![
            Step::run("agent status"),
            Step::run("systemctl status k3s rke2-server kubelet").on("a master"),
        ];
        out.found(
            Severity::Error,
            "backends",
            "nobody-serves",
            &host.node,
            FindingText { what, why, remedy },
        );
    }
    for UnavailableBackend { service, node, how } in &agent.away {
        let what = format!("{service} on {node} gets no connections: {how}");
        let why = "the others carry its load; the fewer are left, the closer is an outage";
        let remedy = vec![
            Step::run("systemctl status k3s rke2-server kubelet").at(node, &host.here),
            Step::run("agent events"),
        ];
        out.found(Severity::Warning, "backends", "backend-away", node, FindingText { what, why, remedy });
    }
    out.checked("backends", "every service has one, and none is down");
}

fn service(host: &HostFacts, out: &mut Examination) {
    let run = |command: &str| Step::run(command).at(&host.node, &host.here);
    let node = &host.node;
    let Some(service) = &host.service else { return };
    let Some(unit) = &service.unit else {
        let what = "there is no systemd unit for the agent".to_owned();
        let why = "nothing starts the agent at the next boot, and kubelets then reach no apiserver";
        let words = FindingText { what, why, remedy: vec![run("agent install")] };
        return out.found(Severity::Warning, "service", "no-unit", node, words);
    };
    if !service.as_shipped {
        let what = format!("{unit} differs from the unit of this version");
        let why = "it was edited or belongs to an older version: limits, capabilities or start order may be \
                   wrong";
        let remedy = vec![
            run("agent install").remark("restores it"),
            run("systemctl edit agent").remark("for intended changes, in a drop-in"),
        ];
        out.found(Severity::Warning, "service", "unit-edited", node, FindingText { what, why, remedy });
    }
    if !service.drop_ins.is_empty() {
        let what = format!("the unit is changed by {}", service.drop_ins.join(", "));
        let why = "it overrides the unit, even after an upgrade";
        let words = FindingText { what, why, remedy: vec![run("systemctl cat agent")] };
        out.found(Severity::Note, "service", "unit-drop-in", node, words);
    }
    out.checked("service", format!("{unit}, unchanged"));
}

fn files(host: &HostFacts, out: &mut Examination) {
    let run = |command: &str| Step::run(command).at(&host.node, &host.here);
    for (path, mode) in &host.loose {
        let what = format!("{path} has mode {mode:o} and is accessible to others");
        let why = "it holds the keys of this node; anyone who reads them can impersonate it";
        let words = FindingText { what, why, remedy: vec![run(&format!("chmod go= {path}"))] };
        out.found(Severity::Error, "files", "loose-mode", &host.node, words);
    }
    for UntrustedFile { what, is_config, fix } in &host.untrusted {
        let (severity, code, why) = match is_config {
            true => (
                Severity::Error,
                "open-config",
                "it says which programs and services the agent runs with its own rights",
            ),
            false => (
                Severity::Warning,
                "open-file",
                "the agent believes it: whoever changes it decides which apiserver is ready, or who hears of events",
            ),
        };
        let words = FindingText { what: what.clone(), why, remedy: vec![run(fix)] };
        out.found(severity, "files", code, &host.node, words);
    }
    if !host.unreadable.is_empty() {
        let what = format!("not readable for this user: {}", host.unreadable.join(", "));
        let words =
            FindingText { what, why: "they were not checked", remedy: vec![Step::text("ask again as root")] };
        out.found(Severity::Note, "files", "unreadable", &host.node, words);
    }
    if host.is_member {
        out.checked("files", "the state is accessible only to its owner");
    }
}

fn routes(host: &HostFacts, out: &mut Examination) {
    let Some(agent) = &host.agent else { return };
    let (node, mesh) = (&host.node, &agent.interface);
    let run = |command: &str| Step::run(command).at(node, &host.here);
    let mut astray = false;
    for RouteFacts { name, to, by } in &host.routes {
        let what = match by {
            Ok(interface) if interface == mesh => continue,
            Ok(interface) => {
                format!("packets to {name} ({to}) leave through {interface}, but the mesh is on {mesh}")
            }
            Err(why) => format!("there is no route to {name} ({to}): {why}"),
        };
        astray = true;
        let why = "the VPN does not route this address, so packets go to a gateway that cannot deliver them, or \
                   bypass the VPN";
        let remedy = vec![
            run(&format!("ip route get {to}")),
            run(&format!("ip route replace {to} dev {mesh}")),
            Step::text(format!(
                "to keep it with WireGuard: add {to} to AllowedIPs of that peer; check with wg show {mesh}"
            ))
            .at(node, &host.here),
        ];
        out.found(Severity::Warning, "routes", "route", node, FindingText { what, why, remedy });
    }
    let own = host.interfaces.iter().find(|interface| interface.name == *mesh);
    if astray && own.and_then(|own| own.rp_filter) == Some(1) {
        let what =
            format!("rp_filter is strict on {mesh}, but the return path to some members is asymmetric");
        let why = "the kernel silently drops their packets";
        let remedy = vec![
            run(&format!("sysctl -w net.ipv4.conf.{mesh}.rp_filter=2")),
            run(&format!("echo net.ipv4.conf.{mesh}.rp_filter=2 > /etc/sysctl.d/90-agent.conf")),
        ];
        out.found(Severity::Error, "routes", "rp-filter", node, FindingText { what, why, remedy });
    }
    let count = host.routes.len();
    if count > 0 {
        let s = if count == 1 { "" } else { "s" };
        out.checked("routes", format!("to {count} member{s}, all through {mesh}"));
    }
}

/// Two cards in one network answer ARP for each other's addresses, a virtual IP's too.
fn arp(host: &HostFacts, out: &mut Examination) {
    let Some(agent) = host.agent.as_ref().filter(|agent| !agent.vips.is_empty()) else { return };
    let run = |command: &str| Step::run(command).at(&host.node, &host.here);
    for vip in &agent.vips {
        let holds =
            |one: &&InterfaceFacts| one.speaks_arp && one.addresses.iter().any(|net| in_net(*net, *vip));
        let cards: Vec<&InterfaceFacts> = host.interfaces.iter().filter(holds).collect();
        let answers = |one: &&&InterfaceFacts| one.arp_ignore == Some(0);
        let (true, Some(loose)) = (vip.is_ipv4() && cards.len() > 1, cards.iter().find(answers)) else {
            continue;
        };
        let names: Vec<&str> = cards.iter().map(|card| card.name.as_str()).collect();
        let what = format!(
            "{} are in the network of {vip}, and {} answers ARP for all of them",
            names.join(" and "),
            loose.name
        );
        let why = "clients learn the wrong MAC for the virtual IP and lose it when it moves";
        let remedy = vec![
            run("sysctl -w net.ipv4.conf.all.arp_ignore=1 net.ipv4.conf.all.arp_announce=2"),
            Step::text("to keep it: put these two settings into /etc/sysctl.d/90-agent.conf")
                .at(&host.node, &host.here),
        ];
        out.found(
            Severity::Warning,
            "virtual IPs",
            "arp-flux",
            &host.node,
            FindingText { what, why, remedy },
        );
    }
    let s = if agent.vips.len() == 1 { "" } else { "s" };
    out.checked(
        "virtual IPs",
        format!("{} address{}, one MAC answers", agent.vips.len(), s.replace('s', "es")),
    );
}

fn in_net((net, prefix): (IpAddr, u8), ip: IpAddr) -> bool {
    match (net, ip) {
        // A /32 is no network.
        (IpAddr::V4(a), IpAddr::V4(b)) if prefix < 32 => {
            (a.to_bits() ^ b.to_bits()).checked_shr(32 - u32::from(prefix)).unwrap_or(0) == 0
        }
        _ => false,
    }
}
