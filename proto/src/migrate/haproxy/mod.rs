//! `haproxy.cfg`: which listeners lead to which servers, and what they say.
//!
//! A frontend and the backend that it leads to become one service. What the agent can't do as a whole, as
//! reading HTTP or ending TLS, is told at the head of its section; a service that would be something else
//! than it was is not written.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};

use super::notes::LineOutcome::{Automatic, Kept, NotDone, Unknown, Wrong};
use super::notes::{FileReport, row};
use super::words::{WordLine, lines};
use crate::service::KUBE_API;

mod bind;
mod check;
mod directives;
mod known;
mod page;
mod proxy;

pub(super) use page::Page;
pub(super) use proxy::{Server, default_of, unknown};

use known::{GLOBAL, SECTIONS};
use proxy::{Place, Proxy};

/// A section and its lines.
struct Section {
    head: WordLine,
    lines: Vec<WordLine>,
}

impl Section {
    fn kind(&self) -> &str {
        self.head.word(0)
    }

    fn name(&self) -> &str {
        self.head.word(1)
    }

    fn last(&self) -> usize {
        self.lines.last().map_or(self.head.number, |line| line.number)
    }

    fn leads(&self) -> bool {
        ["frontend", "listen"].contains(&self.kind())
    }

    fn serves(&self) -> bool {
        ["backend", "listen"].contains(&self.kind())
    }

    /// Where all connections of it go, and the line that says so.
    fn target(&self) -> Option<(&str, &WordLine)> {
        let ruled = |line: &WordLine| line.words.iter().any(|word| word == "if" || word == "unless");
        let mut all = self.lines.iter().filter(|line| line.word(0) == "use_backend" && !ruled(line));
        let fallback = || self.lines.iter().rev().find(|line| line.word(0) == "default_backend");
        all.next().or_else(fallback).map(|line| (line.word(1), line))
    }
}

/// A service as it was.
#[derive(Debug)]
pub(super) struct FoundService {
    /// Its name here.
    pub(super) name: String,
    /// Where it listens, and the lines that say so.
    pub(super) listen: Vec<(SocketAddr, usize)>,
    /// The port of its servers.
    pub(super) port: u16,
    /// Our keys, with their values as TOML and the lines that they come from.
    pub(super) keys: BTreeMap<&'static str, (String, usize)>,
    /// tcp, http or https; none: that of the default service.
    pub(super) check: Option<&'static str>,
    pub(super) servers: Vec<Server>,
}

/// What a file amounts to.
#[derive(Debug, Default)]
pub(super) struct Haproxy {
    pub(super) services: Vec<FoundService>,
    pub(super) page: Option<Page>,
    /// Commands for the whole cluster, and the lines that they come from.
    pub(super) commands: Vec<(String, usize)>,
}

/// What was read of sections, by their names.
type ReadSections<'a> = BTreeMap<&'a str, Proxy>;

/// Whether a text has any section of haproxy's.
pub(super) fn is_ours(text: &str) -> bool {
    lines(text, None).iter().any(|line| SECTIONS[..5].contains(&line.word(0)))
}

/// Reads a file. `vips` are the addresses that keepalived moves.
pub(super) fn read(text: &str, vips: &[IpAddr], account: &mut FileReport) -> Haproxy {
    let sections = sections(text, account);
    let mut found = Haproxy::default();
    let mut templates: BTreeMap<String, Proxy> = BTreeMap::new();
    let mut latest = Proxy::default();
    let mut of = Vec::new();
    for section in &sections {
        let from = section.head.words.iter().position(|word| word == "from");
        let from = from.and_then(|at| templates.get(section.head.word(at + 1)));
        let template = from.unwrap_or(&latest).clone();
        if section.kind() == "defaults" {
            let place = Place { api: false, defaults: true, vips };
            let mut template = if from.is_some() { template.clone() } else { Proxy::default() };
            for line in &section.lines {
                directives::read(line, &place, &mut template, account);
            }
            templates.insert(section.name().to_owned(), template.clone());
            latest = template.clone();
            of.push(template);
        } else {
            of.push(template);
        }
    }
    let outcomes = outcomes(&sections, &of);
    // By what they do, since a frontend and its backend often have one name.
    let (mut fronts, mut backs): (ReadSections<'_>, ReadSections<'_>) = Default::default();
    for ((section, template), outcome) in sections.iter().zip(&of).zip(&outcomes) {
        let head = &section.head;
        match outcome {
            Some(reason) => {
                account.range(head.number, section.last(), &head.shown(), NotDone, reason.as_str())
            }
            None if section.kind() == "global" => global(section, account),
            None if section.kind() == "defaults" => {
                account.add(head.number, &head.shown(), Automatic, "applies to the sections below");
            }
            None if page::is_page(section) => {
                page::read(section, found.page.get_or_insert_default(), account);
            }
            None => {
                let mut read = template.clone();
                let place = Place { api: is_api(section), defaults: false, vips };
                let reason =
                    if section.leads() { "a service, see above" } else { "the service that leads here" };
                account.add(head.number, &head.shown(), Kept, reason);
                for line in &section.lines {
                    directives::read(line, &place, &mut read, account);
                }
                found.commands.extend(proxy::commands(&read, account));
                if section.serves() {
                    backs.insert(section.name(), read.clone());
                }
                if section.leads() {
                    fronts.insert(section.name(), read);
                }
            }
        }
    }
    services(&sections, &outcomes, (&fronts, &backs), &mut found, account);
    found
}

/// Cuts a file into its sections.
fn sections(text: &str, account: &mut FileReport) -> Vec<Section> {
    let mut sections: Vec<Section> = Vec::new();
    for line in lines(text, None) {
        if line.open {
            account.add(line.number, &line.shown(), Wrong, "unterminated quote; close it on the same line");
        }
        if line.word(0).starts_with('.') {
            account.add(line.number, &line.shown(), NotDone, "conditions are ignored; all lines are read");
        } else if SECTIONS.contains(&line.word(0)) {
            sections.push(Section { head: line, lines: Vec::new() });
        } else if let Some(section) = sections.last_mut() {
            section.lines.push(line);
        } else {
            let what = unknown(line.word(0), &SECTIONS);
            account.add(line.number, &line.shown(), Unknown, format!("before any section: {what}"));
        }
    }
    sections
}

/// For each section why it is not done as a whole; none when it is.
fn outcomes(sections: &[Section], of: &[Proxy]) -> Vec<Option<String>> {
    let mut outcomes: Vec<Option<String>> =
        sections.iter().zip(of).map(|(section, template)| blocked(section, template)).collect();
    let backend = |name: &str| sections.iter().position(|one| one.serves() && one.name() == name);
    // A frontend whose backend is not done, and one that leads nowhere.
    for (at, section) in sections.iter().enumerate() {
        let Some(target) = section.target().filter(|_| section.leads() && outcomes[at].is_none()) else {
            let lost = section.kind() == "frontend" && outcomes[at].is_none() && !page::is_page(section);
            if lost {
                outcomes[at] = Some("it has no default_backend, only rules".to_owned());
            }
            continue;
        };
        let name = target.0;
        match backend(name) {
            None => outcomes[at] = Some(format!("there is no backend \"{}\"", plain(name))),
            Some(to) if outcomes[to].is_some() => {
                outcomes[at] = Some(format!("its backend {} is not supported", plain(name)));
            }
            Some(_) => {}
        }
    }
    // A backend that nobody leads to.
    for (at, section) in sections.iter().enumerate() {
        if section.kind() != "backend" || outcomes[at].is_some() {
            continue;
        }
        let led = |from: &(usize, &Section)| from.1.target().is_some_and(|(name, _)| name == section.name());
        let mut all = sections.iter().enumerate().filter(|(_, one)| one.leads()).filter(led).peekable();
        outcomes[at] = match all.peek() {
            None => Some("only rules lead to it".to_owned()),
            Some((_, from)) => {
                let name = plain(from.name());
                let done = all.any(|(from, _)| outcomes[from].is_none());
                (!done).then(|| format!("only {name} leads to it, which is not supported"))
            }
        };
    }
    outcomes
}

/// Why a section is not done as a whole, by what stands in it.
fn blocked(section: &Section, template: &Proxy) -> Option<String> {
    let has = |word: &str| section.lines.iter().any(|line| line.word(0) == word);
    match section.kind() {
        "global" | "defaults" => return None,
        "frontend" | "backend" | "listen" if page::is_page(section) => return None,
        "frontend" | "backend" | "listen" => {}
        "peers" => {
            return Some("there are no stick tables to share; the agents exchange what they see".to_owned());
        }
        "resolvers" => return Some("members are found by gossip, not by name".to_owned()),
        "mailers" => {
            return Some("there is no mail; events go to notify programs or a webhook".to_owned());
        }
        "userlist" => return Some("the page has a single user: web.user and web.password".to_owned()),
        _ => return Some("there is no equivalent".to_owned()),
    }
    if section.name().is_empty() {
        return Some("it has no name; haproxy refuses it too".to_owned());
    }
    let mode = section.lines.iter().rev().find(|line| line.word(0) == "mode");
    let http = mode.map_or(template.http, |line| line.word(1) == "http");
    if http {
        let reason = "mode http: the agent forwards bytes and does not parse HTTP. If it only passes \
                      them on, write mode tcp and run this again";
        return Some(reason.to_owned());
    }
    if mode.is_some_and(|line| !["tcp", "http"].contains(&line.word(1))) {
        return Some("the agent forwards TCP; write mode tcp".to_owned());
    }
    let ends = |line: &&WordLine| line.word(0) == "bind" && bind::ends_tls(line);
    let begins = |line: &&WordLine| {
        ["server", "default-server"].contains(&line.word(0)) && line.words.iter().any(|word| word == "ssl")
    };
    if section.lines.iter().any(|line| ends(&line) || begins(&line)) {
        let reason =
            "it terminates or starts TLS; the agent passes TLS through, from the client to the master";
        return Some(reason.to_owned());
    }
    if has("disabled") {
        return Some("it is disabled".to_owned());
    }
    let no_server =
        section.serves() && !has("server") && !has("server-template") && section.target().is_none();
    no_server.then(|| "it has no server".to_owned())
}

/// A name of the file's in a message.
fn plain(name: &str) -> String {
    name.chars().take(40).map(|c| if c.is_control() { '?' } else { c }).collect()
}

/// Whether the servers of a section are apiservers: by their port, else by its name.
fn is_api(section: &Section) -> bool {
    let name = section.name().to_lowercase().replace(['_', '.'], "-");
    let named = ["apiserver", "kube-api", "kubeapi", "kubernetes-api", "k8s-api"];
    let mut servers = section.lines.iter().filter(|line| line.word(0).starts_with("server"));
    let by_port = servers.any(|line| {
        let address = line.words.iter().skip(2).find(|word| word.contains(':'));
        address.is_some_and(|address| directives::host_and_port(address).1 == Some(6443))
    });
    by_port || named.iter().any(|part| name.contains(part))
}

fn global(section: &Section, account: &mut FileReport) {
    account.add(section.head.number, &section.head.shown(), Automatic, "see each line");
    for line in &section.lines {
        let mut note = |verdict, reason: &str| account.add(line.number, &line.shown(), verdict, reason);
        match row(GLOBAL, &line.words) {
            _ if line.word(0) == "maxconn" => {
                note(Automatic, "each service has its own maxconn, 10000 by default");
            }
            Some((_, verdict, reason)) => note(*verdict, reason),
            None => {
                let known: Vec<&str> = GLOBAL.iter().map(|row| row.0).chain(["maxconn"]).collect();
                note(Unknown, &unknown(line.word(0), &known));
            }
        }
    }
}

/// Puts frontends and their backends together.
fn services(
    sections: &[Section],
    outcomes: &[Option<String>],
    (fronts, backs): (&ReadSections<'_>, &ReadSections<'_>),
    found: &mut Haproxy,
    account: &mut FileReport,
) {
    let mut made: BTreeMap<&str, usize> = BTreeMap::new();
    for (section, _) in
        sections.iter().zip(outcomes).filter(|(section, why)| section.leads() && why.is_none())
    {
        let Some(front) = fronts.get(section.name()) else { continue };
        let behind = section.target().map_or(section.name(), |(name, _)| name);
        let Some(back) = backs.get(behind) else { continue };
        let head = sections.iter().find(|one| one.serves() && one.name() == behind);
        if let Some(known) = made.get(behind) {
            found.services[*known].listen.extend(front.listen.iter().copied());
            continue;
        }
        let Some(port) = port(front, back, account) else {
            let reason = "no server has a port; write it as 10.0.0.1:6443";
            account.add(section.head.number, &section.head.shown(), Wrong, reason);
            continue;
        };
        let before_api = head.is_some_and(is_api);
        let known = found.services.iter().position(|one| before_api && one.name == KUBE_API);
        if let Some(known) = known {
            // The usual one: a second listener before the same masters.
            let hosts = |all: &[Server]| all.iter().map(|one| one.host.clone()).collect::<BTreeSet<_>>();
            if hosts(&found.services[known].servers) == hosts(&back.servers) {
                made.insert(behind, known);
                found.services[known].listen.extend(front.listen.iter().copied());
                continue;
            }
            let reason = "other masters than those of kube-api; only kube-api's check finds credentials by \
                          itself, so the check of this one is tcp";
            account.add(section.head.number, &section.head.shown(), NotDone, reason);
        }
        let is_api = before_api && known.is_none();
        let name = if is_api { KUBE_API.to_owned() } else { name(behind, &found.services) };
        let mut keys = back.keys.clone();
        // These two are a frontend's.
        for key in ["maxconn", "access-log"] {
            keys.remove(key);
            keys.extend(front.keys.get_key_value(key).map(|(key, value)| (*key, value.clone())));
        }
        let check = match (is_api, back.asks && !before_api) {
            (true, _) => None,
            (false, false) => Some("tcp"),
            (false, true) if back.asks_tls => Some("https"),
            (false, true) => Some("http"),
        };
        made.insert(behind, found.services.len());
        let (listen, servers) = (front.listen.clone(), back.servers.clone());
        found.services.push(FoundService { name, listen, port, keys, check, servers });
    }
}

/// The port of a service: that of its first server. A service has one.
fn port(front: &Proxy, back: &Proxy, account: &mut FileReport) -> Option<u16> {
    let own = front.listen.first().map(|(address, _)| address.port());
    let ports = back.servers.iter().map(|server| (server, server.port.or(own)));
    let first = ports.clone().find_map(|(_, port)| port);
    for (server, port) in ports.filter(|(_, port)| port.is_some() && *port != first) {
        let (port, first) = (port.unwrap_or_default(), first.unwrap_or_default());
        let reason = format!(
            "a service has one port, here {first}; on that node write check.address = \"{}:{port}\"",
            plain(&server.host)
        );
        account.add(server.line, &format!("{}:{port}", server.host), NotDone, reason);
    }
    first
}

/// haproxy's name as one of ours, which no other service has.
fn name(text: &str, taken: &[FoundService]) -> String {
    let lower = text.to_lowercase();
    let clean: String =
        lower.chars().map(|c| if c.is_ascii_alphanumeric() { c } else { '-' }).take(28).collect();
    let clean = clean.trim_matches('-');
    let clean = if clean.is_empty() || clean == KUBE_API { "service" } else { clean };
    let is_free = |name: &str| taken.iter().all(|one| one.name != name);
    let mut names = (2..).map(|number| format!("{clean}-{number}"));
    std::iter::once(clean.to_owned())
        .chain(names.by_ref().take(999))
        .find(|name| is_free(name))
        .unwrap_or_else(|| clean.to_owned())
}
