//! The sections of a file, and which of them are not done as a whole.

use super::super::notes::FileReport;
use super::super::notes::LineOutcome::{NotDone, Unknown, Wrong};
use super::super::words::{Syntax, Variables, WordLine, lines};
use super::known::SECTIONS;
use super::proxy::{Proxy, Restriction, ServerPort, unknown};
use super::{bind, directives};

/// A section and its lines.
pub(super) struct Section {
    pub(super) head: WordLine,
    pub(super) lines: Vec<WordLine>,
    /// A line of it needs a variable that has no value.
    incomplete: bool,
}

impl Section {
    pub(super) fn kind(&self) -> &str {
        self.head.word(0)
    }

    pub(super) fn name(&self) -> &str {
        self.head.word(1)
    }

    pub(super) fn last(&self) -> usize {
        self.lines.last().map_or(self.head.number, |line| line.number)
    }

    pub(super) fn leads(&self) -> bool {
        ["frontend", "listen"].contains(&self.kind())
    }

    pub(super) fn serves(&self) -> bool {
        ["backend", "listen"].contains(&self.kind())
    }

    /// Where all connections of it go, and the line that says so.
    pub(super) fn target(&self) -> Option<(&str, &WordLine)> {
        let ruled = |line: &WordLine| line.words.iter().any(|word| word == "if" || word == "unless");
        let mut all = self.lines.iter().filter(|line| line.word(0) == "use_backend" && !ruled(line));
        let fallback = || self.lines.iter().rev().find(|line| line.word(0) == "default_backend");
        all.next().or_else(fallback).map(|line| (line.word(1), line))
    }
}

/// Whether a section is there for the page, or for metrics, alone.
pub(super) fn is_page(section: &Section) -> bool {
    let has = |words: &[&str]| {
        section.lines.iter().any(|line| words.iter().enumerate().all(|(at, word)| line.word(at) == *word))
    };
    let serves = ["server", "default_backend", "use_backend", "server-template", "dispatch"];
    let serves = section.lines.iter().any(|line| serves.contains(&line.word(0)));
    !serves && (has(&["stats"]) || section.lines.iter().any(is_exporter))
}

/// Whether a section is there to answer load balancers alone.
pub(super) fn is_health(section: &Section) -> bool {
    let has = |words: &[&str]| section.lines.iter().any(|line| words.contains(&line.word(0)));
    section.leads()
        && has(&["monitor-uri"])
        && !is_page(section)
        && !has(&["server", "default_backend", "use_backend", "server-template", "dispatch"])
}

pub(super) fn is_exporter(line: &WordLine) -> bool {
    line.words.iter().any(|word| word == "prometheus-exporter")
}

/// Cuts a file into its sections.
pub(super) fn sections(text: &str, variables: &Variables<'_>, account: &mut FileReport) -> Vec<Section> {
    let mut sections: Vec<Section> = Vec::new();
    let set = definitions(text);
    let value = |name: &str| {
        let own = set.iter().rev().find(|(known, _)| known == name).map(|(_, value)| value.clone());
        own.or_else(|| variables(name))
    };
    for line in lines(text, Syntax::Haproxy, &value) {
        if !line.missing.is_empty() && !line.open {
            account.add(line.number, &line.shown(), NotDone, line.wanted());
            if let Some(section) = sections.last_mut() {
                section.incomplete = true;
            }
            continue;
        }
        if line.open {
            account.add(line.number, &line.shown(), Wrong, "unterminated quote; close it on the same line");
        }
        if line.word(0).starts_with('.') {
            account.add(line.number, &line.shown(), NotDone, "conditions are ignored; all lines are read");
        } else if SECTIONS.contains(&line.word(0)) {
            sections.push(Section { head: line, lines: Vec::new(), incomplete: false });
        } else if let Some(section) = sections.last_mut() {
            section.lines.push(line);
        } else {
            let what = unknown(line.word(0), &SECTIONS);
            account.add(line.number, &line.shown(), Unknown, format!("before any section: {what}"));
        }
    }
    sections
}

/// What `setenv` and `presetenv` say.
fn definitions(text: &str) -> Vec<(String, String)> {
    let is_set = |line: &WordLine| ["setenv", "presetenv"].contains(&line.word(0)) && line.words.len() > 2;
    let all = lines(text, Syntax::Haproxy, &|_| None);
    all.into_iter().filter(is_set).map(|line| (line.word(1).to_owned(), line.word(2).to_owned())).collect()
}

/// For each section why it is not done as a whole; none when it is.
pub(super) fn outcomes(sections: &[Section], of: &[Proxy]) -> Vec<Option<String>> {
    let mut outcomes: Vec<Option<String>> =
        sections.iter().zip(of).map(|(section, template)| blocked(section, template)).collect();
    let backend = |name: &str| sections.iter().position(|one| one.serves() && one.name() == name);
    // A frontend whose backend is not done, and one that leads nowhere.
    for (at, section) in sections.iter().enumerate() {
        let Some(target) = section.target().filter(|_| section.leads() && outcomes[at].is_none()) else {
            let lost = section.kind() == "frontend"
                && outcomes[at].is_none()
                && !is_page(section)
                && !is_health(section);
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
        "frontend" | "backend" | "listen" if is_page(section) || is_health(section) => return None,
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
    let ruled = section.lines.iter().find(|line| directives::restricts(line));
    let ruled = ruled.map(|line| Restriction { line: line.number, shown: line.shown() });
    if let Some(rule) = ruled.or_else(|| template.restriction.clone()) {
        return Some(format!(
            "line {} turns clients away ({}), and the agent would serve everyone: restrict them by a firewall, \
             remove the line and run this again",
            rule.line, rule.shown
        ));
    }
    if has("disabled") {
        return Some("it is disabled".to_owned());
    }
    let no_server =
        section.serves() && !has("server") && !has("server-template") && section.target().is_none();
    if no_server && section.incomplete {
        return Some("its servers need variables that have no value".to_owned());
    }
    no_server.then(|| "it has no server".to_owned())
}

/// A name of the file's in a message.
pub(super) fn plain(name: &str) -> String {
    name.chars().take(40).map(|c| if c.is_control() { '?' } else { c }).collect()
}

/// Whether the servers of a section are apiservers: by their port, else by its name.
pub(super) fn is_api(section: &Section, sections: &[Section]) -> bool {
    let name = section.name().to_lowercase().replace(['_', '.'], "-");
    let named = ["apiserver", "kube-api", "kubeapi", "kubernetes-api", "k8s-api"];
    let leads_here =
        |one: &&Section| one.leads() && one.target().map_or(one.name(), |(name, _)| name) == section.name();
    let listened = || {
        let lines = sections.iter().filter(leads_here).flat_map(|one| &one.lines);
        let binds = lines.filter(|line| line.word(0) == "bind");
        binds.flat_map(|line| line.word(1).split(',')).any(|part| part.ends_with(":6443"))
    };
    let mut servers = section.lines.iter().filter(|line| line.word(0) == "server");
    let by_port = servers.any(|line| match directives::host_and_port(line.word(2)) {
        Some((_, ServerPort::Fixed(port))) => port == 6443,
        Some((_, ServerPort::Offset(0))) => listened(),
        _ => false,
    });
    by_port || named.iter().any(|part| name.contains(part))
}
