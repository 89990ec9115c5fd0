//! The file that comes out: settings, what is to be done, and the account of every line.

use super::haproxy::{FoundService, Haproxy, Page, Server, default_of};
use super::keepalived::{Keepalived, Vip};
use super::notes::{FileReport, LineOutcome, wrap};
use crate::config::quoted;
use crate::node::Name;
use crate::service::KUBE_API;

/// Where the remark on a setting begins, so that they stand in one column.
const REMARK: usize = 44;

/// What is known while the file is written.
pub(super) struct ConfigWriter<'a> {
    /// Names of the files, for remarks.
    pub(super) haproxy_file: &'a str,
    pub(super) keepalived_file: &'a str,
    /// The node that the files are of.
    pub(super) node: Option<&'a Name>,
}

impl ConfigWriter<'_> {
    /// Writes it all.
    pub(super) fn write(
        &self,
        haproxy: Option<Haproxy>,
        keepalived: Option<Keepalived>,
        accounts: &[FileReport],
    ) -> String {
        let haproxy = haproxy.unwrap_or_default();
        let keepalived = keepalived.unwrap_or_default();
        let mut settings = String::new();
        self.notify(&keepalived, &mut settings);
        if let Some(page) = &haproxy.page {
            web(page, &mut settings);
        }
        for service in &haproxy.services {
            self.service(service, &mut settings);
        }
        let mut text = String::new();
        head(accounts, &mut text);
        if settings.is_empty() {
            let what = "Nothing to configure: this file may be omitted. The members are found by gossip, \
                        and each node serves them on 127.0.0.1:16443.";
            text.push_str("#\n");
            wrap(&mut text, "# ", what);
        } else {
            text.push_str(&settings);
        }
        self.to_do(&haproxy, &keepalived, settings.is_empty(), &mut text);
        for account in accounts {
            text.push_str(&format!("\n# ==== {}, line by line ====\n#\n", account.file));
            account.render(&mut text);
        }
        text
    }

    fn notify(&self, keepalived: &Keepalived, text: &mut String) {
        if !keepalived.notify.is_empty() {
            text.push('\n');
        }
        for (at, (path, line)) in keepalived.notify.iter().enumerate() {
            let begin = if at == 0 { "notify = [" } else { "    " };
            let end = if at + 1 == keepalived.notify.len() { "]" } else { "," };
            let setting = format!("{begin}{}{end}", quoted(path));
            remark(text, &setting, &place(self.keepalived_file, *line));
        }
    }

    fn service(&self, service: &FoundService, text: &mut String) {
        let from = |line: usize| place(self.haproxy_file, line);
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
    fn to_do(&self, haproxy: &Haproxy, keepalived: &Keepalived, empty: bool, text: &mut String) {
        text.push_str("\n# ==== What to do ====\n");
        let mut step = |words: &str, commands: &[String]| {
            text.push_str("#\n");
            wrap(text, "# ", words);
            for command in commands {
                text.push_str(&format!("#   {command}\n"));
            }
        };
        if !empty {
            let hide = haproxy.page.as_ref().is_some_and(|page| page.login.is_some());
            let mode = if hide { ", with mode 0600 because it contains a password" } else { "" };
            step(
                &format!(
                    "Copy this file to /etc/agent/agent.toml on each node like this one{mode}. What should \
                be the same everywhere can be set once instead: agent set service.NAME.KEY=VALUE."
                ),
                &[],
            );
        }
        let members = members(&haproxy.services);
        let (first, rest) = match members.split_first() {
            None => ("one of the masters", "every other node".to_owned()),
            Some((one, [])) => (one.as_str(), "every other node".to_owned()),
            Some((one, others)) => (one.as_str(), format!("{}, and every other node", others.join(", "))),
        };
        step(&format!("On {first}:"), &["agent init".to_owned()]);
        step(&format!("On {rest}, the command that init prints:"), &["agent join agent1...".to_owned()]);
        let mut held = Vec::new();
        if !self.haproxy_file.is_empty() && !haproxy.services.is_empty() {
            held.push("haproxy");
        }
        if !keepalived.vips.is_empty() {
            held.push("keepalived");
        }
        if !held.is_empty() {
            let ports = if held[0] == "haproxy" { "; the agent binds the ports within a second" } else { "" };
            step(
                &format!("Once \"agent status\" shows the masters, on every node{ports}:"),
                &[format!("systemctl disable --now {}", held.join(" "))],
            );
        }
        let mut commands = self.vips(&keepalived.vips, haproxy.services.iter().any(is_balancer));
        for (command, line) in &haproxy.commands {
            if !commands.iter().any(|(known, _)| known == command) {
                commands.push((command.clone(), place(self.haproxy_file, *line)));
            }
        }
        if commands.is_empty() {
            return;
        }
        let when = if keepalived.vips.is_empty() { "" } else { "; keepalived must be stopped everywhere" };
        let name = if commands.iter().any(|(command, _)| command.contains("NODE")) {
            ". NODE is the name of the node; see agent members"
        } else {
            ""
        };
        let commands: Vec<String> =
            commands.iter().map(|(command, from)| format!("{command:<REMARK$}  # {from}")).collect();
        step(&format!("Once, on a master, for the whole cluster{when}{name}:"), &commands);
        if keepalived.vips.iter().any(|vip| vip.priority.is_some()) {
            let what = format!(
                "The priority in {} is for this node only; take those of the others from their files.",
                self.keepalived_file
            );
            step(&what, &[]);
        }
        if keepalived.vips.iter().any(|vip| vip.preempt.is_some()) {
            let what = "Without preempt, an address stays where it is until its owner fails, which costs \
                        clients one reset less.";
            step(what, &[]);
        }
    }

    /// The commands for virtual IPs, and where they come from.
    fn vips(&self, vips: &[Vip], balancer: bool) -> Vec<(String, String)> {
        let Some(first) = vips.first() else { return Vec::new() };
        let from = |vip: &Vip| place(self.keepalived_file, vip.line);
        let all: Vec<String> = vips.iter().map(|vip| vip.address.to_string()).collect();
        let mut commands = vec![(format!("agent set vip={}", all.join(",")), from(first))];
        for vip in vips {
            let mut set = |key: &str, value: &str| {
                commands.push((format!("agent set vip.{}.{key}={value}", vip.address), from(vip)));
            };
            // Without an apiserver of its own a node is no master, and may have it all the same.
            if balancer {
                set("candidates", "all");
            }
            if let Some(interface) = &vip.interface {
                set("interface", interface);
            }
            if let Some(label) = &vip.label {
                set("label", label);
            }
            if let Some(priority) = vip.priority {
                let node = self.node.map_or("NODE", Name::as_str);
                set(&format!("priority.{node}"), &priority.to_string());
            }
            if let Some(wait) = &vip.preempt {
                set("preempt", wait);
            }
        }
        commands
    }
}

/// Whether it stands before the apiservers on a node that can have none: it listens in their place.
fn is_balancer(service: &FoundService) -> bool {
    let here = |at: &std::net::SocketAddr| at.ip().is_unspecified() && at.port() == service.port;
    service.name == KUBE_API && service.listen.iter().any(|(at, _)| here(at))
}

/// What it is, and how the lines went.
fn head(accounts: &[FileReport], text: &mut String) {
    let files: Vec<&str> = accounts.iter().map(|account| account.file.as_str()).collect();
    wrap(text, "# ", &format!("agent.toml, written by \"agent migrate\" from {}.", files.join(" and ")));
    let counts: Vec<String> = LineOutcome::ALL
        .iter()
        .map(|verdict| (verdict, accounts.iter().map(|account| account.count(*verdict)).sum::<usize>()))
        .filter(|(_, count)| *count > 0)
        .map(|(verdict, count)| format!("{count} {}", verdict.as_str()))
        .collect();
    wrap(text, "# ", &format!("What became of each line is below: {}.", counts.join(", ")));
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

/// Whether a key has a meaning beside this kind of check.
fn belongs(key: &str, check: Option<&str>) -> bool {
    match key {
        "check.path" | "check.expect" => matches!(check, Some("http" | "https")),
        "check.server-name" | "check.ca-file" | "check.cert-file" => check == Some("https"),
        _ => true,
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

fn place(file: &str, line: usize) -> String {
    // The directory says nothing that the head of the file has not said.
    let name = file.rsplit('/').next().unwrap_or(file);
    format!("{name}:{line}")
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
