//! The file that comes out: settings, and what is to be done.

use super::commands::{self, Nodes, SetCommand};
use super::haproxy::{FoundService, Haproxy, Page, Server, belongs, default_of};
use super::keepalived::{Keepalived, WRAPPER};
use super::nodes::UNKNOWN;
use super::notes::{FileReport, LineOutcome, wrap};
use crate::config::quoted;
use crate::service::KUBE_API;

/// Where the remark on a setting begins, so that they stand in one column.
const REMARK: usize = 44;

/// Most servers that a sentence names.
const MOST_NAMED: usize = 12;

/// What is known while the file is written.
pub(super) struct ConfigWriter<'a> {
    /// Names of the files, for remarks.
    pub(super) haproxy_file: &'a str,
    pub(super) keepalived_file: &'a str,
    pub(super) haproxy: &'a Haproxy,
    pub(super) keepalived: &'a Keepalived,
    /// The nodes that they are of.
    pub(super) nodes: Nodes<'a>,
    /// Weights and drains, with their lines.
    pub(super) weights: &'a [(String, usize)],
}

impl ConfigWriter<'_> {
    /// Writes it all.
    pub(super) fn write(&self, accounts: &[FileReport]) -> String {
        let mut settings = String::new();
        if !self.keepalived.notify.is_empty() {
            settings.push_str(&format!("\nnotify = {}\n", quoted(WRAPPER)));
        }
        if let Some(page) = &self.haproxy.page {
            web(page, &mut settings);
        }
        if let Some((_, line)) = self.haproxy.health.first() {
            let all: Vec<String> =
                self.haproxy.health.iter().map(|(at, _)| quoted(&at.to_string())).collect();
            settings.push_str("\n[health]\n");
            let setting = format!("listen = [{}]", all.join(", "));
            remark(&mut settings, &setting, &place(self.haproxy_file, Some(*line)));
        }
        for vip in &self.keepalived.vips {
            let Some((program, line)) = &vip.check else { continue };
            settings.push_str(&format!("\n[vip.{}]\n", quoted(&vip.address.to_string())));
            let setting = format!("check = {}", quoted(program));
            remark(&mut settings, &setting, &place(self.keepalived_file, Some(*line)));
        }
        if self.haproxy.hides_default {
            settings.push_str(&format!("\n[[service]]\nname = \"{KUBE_API}\"\n"));
            remark(&mut settings, "listen = []", "its place is another service's");
        }
        for service in &self.haproxy.services {
            self.service(service, &mut settings);
        }
        let mut text = String::new();
        head(accounts, &mut text);
        if settings.is_empty() {
            let lost = accounts.iter().any(|account| account.problems().next().is_some());
            let what = if lost && !self.haproxy_file.is_empty() && self.haproxy.services.is_empty() {
                "No listener is carried over. Without a file each node serves the masters on 127.0.0.1:16443."
            } else if lost {
                "What is carried over needs no file: the agents find the masters by gossip, and each node serves \
                 them on 127.0.0.1:16443."
            } else {
                "This file may be left out: the agents find the masters by gossip, and each node serves them on \
                 127.0.0.1:16443."
            };
            text.push_str("#\n");
            wrap(&mut text, "# ", what);
        } else {
            text.push_str(&settings);
        }
        self.to_do(settings.is_empty(), &mut text);
        text
    }

    fn service(&self, service: &FoundService, text: &mut String) {
        let from = |line: usize| place(self.haproxy_file, Some(line));
        let is_default = service.name == KUBE_API;
        let mut lines: Vec<(String, String)> = Vec::new();
        let places: Vec<String> = service.listen.iter().map(|(at, _)| quoted(&at.to_string())).collect();
        if !is_default || (!places.is_empty() && places != ["\"127.0.0.1:16443\""]) {
            let line = service.listen.first().map_or_else(String::new, |(_, line)| from(*line));
            lines.push((format!("listen = [{}]", places.join(", ")), line));
        }
        if !is_default || service.port != 6443 {
            let line = service.servers.first().map_or_else(String::new, |server| from(server.line));
            lines.push((format!("port = {}", service.port), line));
        }
        let mut check: Vec<(String, String)> = Vec::new();
        if let Some(kind) = service.check.filter(|kind| *kind != "tcp") {
            check.push((format!("kind = \"{kind}\""), String::new()));
        }
        for (key, (value, line)) in &service.keys {
            if value == default_of(key) || !belongs(key, service.check) {
                continue;
            }
            match key.strip_prefix("check.") {
                Some(key) => check.push((format!("{key} = {value}"), from(*line))),
                None => lines.push((format!("{key} = {value}"), from(*line))),
            }
        }
        if is_default && lines.is_empty() && check.is_empty() {
            return;
        }
        text.push_str(&format!("\n[[service]]\nname = \"{}\"\n", service.name));
        for (setting, from) in &lines {
            remark(text, setting, from);
        }
        if !check.is_empty() {
            text.push_str("[service.check]\n");
        }
        for (setting, from) in &check {
            remark(text, setting, from);
        }
    }

    /// The way from the one to the other, with the shortest gap: agents first, beside what runs.
    fn to_do(&self, empty: bool, text: &mut String) {
        text.push_str("\n# ==== What to do ====\n");
        let mut step = |words: &str, commands: &[String]| {
            text.push_str("#\n");
            wrap(text, "# ", words);
            for command in commands {
                text.push_str(&format!("#   {command}\n"));
            }
        };
        if !empty {
            let hide = self.haproxy.page.as_ref().is_some_and(|page| page.login.is_some());
            let mode = if hide { ", with mode 0600 because it contains a password" } else { "" };
            step(&format!("Copy this file to /etc/agent/agent.toml on each node like this one{mode}."), &[]);
        }
        if !self.keepalived.notify.is_empty() {
            let what = "The scripts of keepalived know its arguments alone. On each of these nodes:";
            let make = format!("agent migrate --notify-script {} > {WRAPPER}", shell(self.keepalived_file));
            step(what, &[make, format!("chmod 755 {WRAPPER}")]);
        }
        self.enter(&mut step);
        self.services(&mut step);
        self.stop(&mut step);
        self.cluster(&mut step);
    }

    /// Every node enters the cluster.
    fn enter(&self, step: &mut impl FnMut(&str, &[String])) {
        let members = members(&self.haproxy.services);
        let (first, rest) = match members.split_first() {
            None => ("one of the masters", "every other node".to_owned()),
            Some((one, [])) => (one.as_str(), "every other node".to_owned()),
            Some((one, others)) => {
                let shown = others.iter().take(MOST_NAMED).map(String::as_str).collect::<Vec<_>>().join(", ");
                let more = if others.len() > MOST_NAMED { ", ..." } else { "" };
                (one.as_str(), format!("{shown}{more}, and every other node"))
            }
        };
        step(&format!("On {first}:"), &["agent init".to_owned()]);
        step(&format!("On {rest}, the command that init prints:"), &["agent join agent1...".to_owned()]);
    }

    /// What nodes offer that have no file.
    fn services(&self, step: &mut impl FnMut(&str, &[String])) {
        let all: Vec<String> = self.service_commands().iter().map(SetCommand::shown).collect();
        if all.is_empty() {
            return;
        }
        let names = unknown_names(&all);
        let what = format!("Once, on a master, so that the nodes behind these services offer them{names}:");
        step(&what, &all);
    }

    /// What ran so far ends.
    fn stop(&self, step: &mut impl FnMut(&str, &[String])) {
        let mut held = Vec::new();
        if !self.haproxy.services.is_empty() {
            held.push("haproxy");
        }
        if !self.keepalived.vips.is_empty() {
            held.push("keepalived");
        }
        let Some(first) = held.first() else { return };
        let ports = if *first == "haproxy" { "; the agent binds the ports within a second" } else { "" };
        step(
            &format!("Once \"agent status\" shows the masters, on every node{ports}:"),
            &[format!("systemctl disable --now {}", held.join(" "))],
        );
        let manifests = held.iter().map(|name| format!("mv /etc/kubernetes/manifests/{name}.yaml /root/"));
        step(
            "systemctl does not stop a static pod: where the kubelet runs them, take their manifests away instead. A \
             container of docker or podman is stopped by its own command.",
            &manifests.collect::<Vec<_>>(),
        );
    }

    /// What holds for the whole cluster once nothing else does it.
    fn cluster(&self, step: &mut impl FnMut(&str, &[String])) {
        if let Some(vips) = self.vip_command() {
            let command = vips.shown();
            let dedicated = commands::is_dedicated(self.haproxy, self.keepalived);
            let first = if dedicated { "each candidate serves by this file and " } else { "" };
            let mut what = format!("Once, on a master, when {first}keepalived is stopped everywhere");
            if command.contains(UNKNOWN) {
                what.push_str(&format!("; {}", self.balancer_names()));
            }
            what.push(':');
            step(&what, &[command]);
            if self.keepalived.vips.iter().any(|vip| vip.priorities.iter().any(|(host, _)| host.is_none())) {
                let what = format!(
                    "The priority in {} is for this node only; take those of the others from their files.",
                    place(self.keepalived_file, None)
                );
                step(&what, &[]);
            }
            if self.keepalived.vips.iter().any(|vip| vip.preempt.is_some()) {
                let what = "Without preempt, an address stays where it is until its owner fails, which costs \
                            clients one reset less.";
                step(what, &[]);
            }
        }
        if !self.weights.is_empty() {
            let all: Vec<String> = self
                .weights
                .iter()
                .map(|(command, line)| {
                    format!("{command:<REMARK$}  # {}", place(self.haproxy_file, Some(*line)))
                })
                .collect();
            let names = unknown_names(&all);
            step(&format!("Once, on a master, for the nodes of these servers{names}:"), &all);
        }
    }

    /// How the placeholders are filled in.
    fn balancer_names(&self) -> String {
        let peers: Vec<String> = self.keepalived.peers.iter().map(ToString::to_string).collect();
        let own =
            if self.nodes.this.is_some() { "" } else { "NODE1 is the name of this node, the others are " };
        let beside = if peers.is_empty() { String::new() } else { format!(" ({})", peers.join(", ")) };
        format!("{own}the nodes beside it{beside}, as agent members calls them")
    }

    /// The services that are set for all nodes.
    pub(super) fn service_commands(&self) -> Vec<SetCommand> {
        let all = self.haproxy.services.iter().filter(|service| service.name != KUBE_API);
        all.map(|service| commands::service(service, self.haproxy, self.nodes.names)).collect()
    }

    /// The virtual IPs, if there are any.
    pub(super) fn vip_command(&self) -> Option<SetCommand> {
        let any = !self.keepalived.vips.is_empty();
        any.then(|| commands::vips(self.haproxy, self.keepalived, &self.nodes))
    }
}

/// How `NODE` is filled in, where it stands.
fn unknown_names(commands: &[String]) -> String {
    let any = commands.iter().any(|command| command.contains(UNKNOWN));
    if any { "; NODE is the node of the server, as agent members calls it".to_owned() } else { String::new() }
}

/// A file's name as a shell takes it.
fn shell(name: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "._:/,=@%+-".contains(c);
    if name.chars().all(plain) { name.to_owned() } else { format!("'{}'", name.replace('\'', "'\\''")) }
}

/// What it is, and whether it is whole.
fn head(accounts: &[FileReport], text: &mut String) {
    let files: Vec<&str> = accounts.iter().map(|account| account.file.as_str()).collect();
    wrap(text, "# ", &format!("agent.toml, written by \"agent migrate\" from {}.", files.join(" and ")));
    let count = |verdict| accounts.iter().map(|account| account.count(verdict)).sum::<usize>();
    let lost: Vec<String> = LineOutcome::ALL
        .iter()
        .filter(|verdict| verdict.is_problem() && count(**verdict) > 0)
        .map(|verdict| format!("{} {}", count(*verdict), verdict.as_str()))
        .collect();
    let names: Vec<String> = files.iter().map(|file| shell(file)).collect();
    let explain = format!("agent migrate --explain {}", names.join(" "));
    if lost.is_empty() {
        wrap(text, "# ", &format!("Everything is carried over. Line by line: {explain}"));
    } else {
        let what = format!("Not whole: {}; stderr names the lines. All lines: {explain}", lost.join(", "));
        wrap(text, "# ", &what);
    }
    let mut told: Vec<&str> = Vec::new();
    for words in accounts.iter().flat_map(FileReport::differences) {
        if !told.contains(&words) {
            told.push(words);
            wrap(text, "# ", &format!("Different: {words}."));
        }
    }
}

fn web(page: &Page, text: &mut String) {
    let listen: Vec<String> = page.listen.iter().map(|at| quoted(&at.to_string())).collect();
    let by_default = listen.is_empty() || listen == ["\"127.0.0.1:1936\""];
    if by_default && page.login.is_none() && !page.exporter {
        return;
    }
    text.push_str("\n[web]\n");
    if !by_default {
        text.push_str(&format!("listen = [{}]\n", listen.join(", ")));
    }
    if let Some((user, password)) = &page.login {
        text.push_str(&format!("user = {}\npassword = {}\n", quoted(user), quoted(password)));
    }
    if page.exporter {
        text.push_str("haproxy-metrics = true\n");
    }
}

/// A setting, and where it comes from.
fn remark(text: &mut String, setting: &str, from: &str) {
    if from.is_empty() {
        text.push_str(&format!("{setting}\n"));
    } else {
        text.push_str(&format!("{setting:<REMARK$}  # {from}\n"));
    }
}

fn place(file: &str, line: Option<usize>) -> String {
    // The directory says nothing that the head of the file has not said.
    let name = file.rsplit('/').next().unwrap_or(file);
    line.map_or(name.to_owned(), |line| format!("{name}:{line}"))
}

/// Who the servers are: apiservers if there are any, each once.
fn members(services: &[FoundService]) -> Vec<String> {
    let chosen = services.iter().find(|service| service.name == KUBE_API).or(services.first());
    let servers: &[Server] = chosen.map_or(&[], |service| &service.servers);
    let mut all: Vec<(&str, String)> = Vec::new();
    for server in servers {
        let here = server.host.starts_with("127.") || server.host == "localhost" || server.host == "::1";
        if !here && !all.iter().any(|(host, _)| *host == server.host) {
            let clean = |text: &str| text.chars().take(60).filter(|c| !c.is_control()).collect::<String>();
            all.push((&server.host, format!("{} ({})", clean(&server.name), clean(&server.host))));
        }
    }
    all.into_iter().map(|(_, shown)| shown).collect()
}
