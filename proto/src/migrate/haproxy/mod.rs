//! `haproxy.cfg`: which listeners lead to which servers, and what they say.
//!
//! A frontend and the backend that it leads to become one service. What the agent can't do as a whole, as
//! reading HTTP or ending TLS, is told at the head of its section; a service that would be something else
//! than it was is not written.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};

use super::notes::LineOutcome::{Automatic, Kept, NotDone, Unknown};
use super::notes::{FileReport, row};
use super::words::{Syntax, Variables, lines};

mod bind;
mod check;
mod check_syntax;
mod directives;
mod expect;
mod health;
mod known;
mod page;
mod proxy;
mod references;
mod sections;
mod services;
mod syntax;

pub(super) use page::Page;
pub(super) use proxy::{Server, belongs, default_of, unknown};

use known::{GLOBAL, SECTIONS};
use proxy::{Place, Proxy};
use sections::{Section, is_api, is_health, is_page, outcomes, sections};
use services::ReadSections;

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
    /// Where load balancers ask, and the lines that say so.
    pub(super) health: Vec<(SocketAddr, usize)>,
    /// The default service is not listened to: another one has its place.
    pub(super) hides_default: bool,
}

/// Whether a text has any section of haproxy's.
pub(super) fn is_ours(text: &str) -> bool {
    lines(text, Syntax::Haproxy, &|_| None).iter().any(|line| SECTIONS[..5].contains(&line.word(0)))
}

/// Reads a file. `vips` are the addresses that keepalived moves.
pub(super) fn read(
    text: &str,
    vips: &[IpAddr],
    variables: &Variables<'_>,
    account: &mut FileReport,
) -> Haproxy {
    let sections = sections(text, variables, account);
    references::check(&sections, account);
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
            None if is_page(section) => {
                page::read(section, found.page.get_or_insert_default(), account);
            }
            None if is_health(section) => found.health.extend(health::read(section, account)),
            None => {
                let mut read = template.clone();
                let place = Place { api: is_api(section, &sections), defaults: false, vips };
                let reason =
                    if section.leads() { "a service, see above" } else { "the service that leads here" };
                account.add(head.number, &head.shown(), Kept, reason);
                for line in &section.lines {
                    directives::read(line, &place, &mut read, account);
                }
                if section.serves() {
                    backs.insert(section.name(), read.clone());
                }
                if section.leads() {
                    fronts.insert(section.name(), read);
                }
            }
        }
    }
    services::join(&sections, &outcomes, (&fronts, &backs), &mut found, account);
    services::separate(&mut found, account);
    found
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
