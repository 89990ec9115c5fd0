//! Frontends and the backends that they lead to become services, each with places to listen at that no other has.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;

use super::super::notes::FileReport;
use super::super::notes::LineOutcome::{Kept, NotDone, Wrong};
use super::proxy::{Proxy, Server, ServerPort};
use super::sections::{Section, is_api, plain};
use super::{FoundService, Haproxy, expect};
use crate::config::{Config, Listener, Listeners, MAX_SERVICES, quoted};
use crate::service::{KUBE_API, Service};

/// Where a service listens, and the lines that say so.
type Binds = Vec<(SocketAddr, usize)>;

/// What was read of sections, by their names.
pub(super) type ReadSections<'a> = BTreeMap<&'a str, Proxy>;

/// Puts frontends and their backends together.
pub(super) fn join(
    sections: &[Section],
    outcomes: &[Option<String>],
    (fronts, backs): (&ReadSections<'_>, &ReadSections<'_>),
    found: &mut Haproxy,
    account: &mut FileReport,
) {
    let mut made: BTreeMap<(&str, Option<u16>), usize> = BTreeMap::new();
    for (section, _) in
        sections.iter().zip(outcomes).filter(|(section, why)| section.leads() && why.is_none())
    {
        let Some(front) = fronts.get(section.name()) else { continue };
        let behind = section.target().map_or(section.name(), |(name, _)| name);
        let Some(back) = backs.get(behind) else { continue };
        let head = sections.iter().find(|one| one.serves() && one.name() == behind);
        let before_api = head.is_some_and(|head| is_api(head, sections));
        if front.listen.is_empty() {
            let reason = "no address of it can be listened at, so it is not written";
            account.add(section.head.number, &section.head.shown(), NotDone, reason);
            continue;
        }
        let groups = by_port(front, back);
        let several = groups.len() > 1;
        for (own, listen) in groups {
            if let Some(known) = made.get(&(behind, own)) {
                found.services[*known].listen.extend(listen);
                continue;
            }
            let Some(port) = port(&listen, back, account) else {
                let reason = "none of its servers can be used, so it is not written";
                account.add(section.head.number, &section.head.shown(), Wrong, reason);
                continue;
            };
            let api = before_api && (!several || port == 6443);
            let known = found.services.iter().position(|one| api && one.name == KUBE_API);
            if let Some(known) = known {
                // The usual one: a second listener before the same masters.
                let hosts = |all: &[Server]| all.iter().map(|one| one.host.clone()).collect::<BTreeSet<_>>();
                if hosts(&found.services[known].servers) == hosts(&back.servers) {
                    made.insert((behind, own), known);
                    found.services[known].listen.extend(listen);
                    continue;
                }
                let reason = "other masters than those of kube-api; only kube-api's check finds credentials by \
                              itself, so the check of this one is tcp";
                account.add(section.head.number, &section.head.shown(), NotDone, reason);
            }
            let is_api = api && known.is_none();
            let called = if several { format!("{behind}-{port}") } else { behind.to_owned() };
            let name = if is_api { KUBE_API.to_owned() } else { name(&called, &found.services) };
            made.insert((behind, own), found.services.len());
            let kind = if before_api { CheckOf::Apiservers { own: is_api } } else { CheckOf::Others };
            found.services.push(service(name, port, listen, front, back, kind));
        }
    }
    check_ports(found, account);
}

/// Whose check it is.
#[derive(Clone, Copy)]
enum CheckOf {
    /// Apiservers', of the service kube-api or of another one.
    Apiservers {
        own: bool,
    },
    Others,
}

fn service(name: String, port: u16, listen: Binds, front: &Proxy, back: &Proxy, of: CheckOf) -> FoundService {
    let mut keys = back.keys.clone();
    // These two are a frontend's.
    for key in ["maxconn", "access-log"] {
        keys.remove(key);
        keys.extend(front.keys.get_key_value(key).map(|(key, value)| (*key, value.clone())));
    }
    let check = match (of, back.asks) {
        (CheckOf::Apiservers { own: true }, _) => None,
        (CheckOf::Apiservers { .. }, _) | (_, None) => Some("tcp"),
        (CheckOf::Others, Some(line)) => {
            keys.entry("check.expect").or_insert_with(|| (quoted(expect::WITHOUT), line));
            Some(if back.asks_tls { "https" } else { "http" })
        }
    };
    let asked = |server: &Server| back.asked_port.or(server.check_port);
    let servers = back.servers.iter().map(|server| Server { check_port: asked(server), ..server.clone() });
    FoundService { name, listen, port, keys, check, servers: servers.collect() }
}

/// The listeners of a front, apart where servers have the port of the listener: a service has one.
fn by_port(front: &Proxy, back: &Proxy) -> Vec<(Option<u16>, Binds)> {
    let ports: BTreeSet<u16> = front.listen.iter().map(|(address, _)| address.port()).collect();
    let depends = back.servers.iter().any(|server| matches!(server.port, ServerPort::Offset(_)));
    if !depends {
        return vec![(None, front.listen.clone())];
    }
    let of = |port: u16| front.listen.iter().filter(|(at, _)| at.port() == port).copied().collect();
    ports.into_iter().map(|port| (Some(port), of(port))).collect()
}

/// The port of a service: that of its first server.
fn port(listen: &[(SocketAddr, usize)], back: &Proxy, account: &mut FileReport) -> Option<u16> {
    let own = listen.first().map(|(address, _)| address.port());
    let ports = back.servers.iter().map(|server| (server, server.port.behind(own)));
    let first = ports.clone().find_map(|(_, port)| port);
    for (server, port) in ports.filter(|(_, port)| port.is_some() && *port != first) {
        let (port, first) = (port.unwrap_or_default(), first.unwrap_or_default());
        let reason =
            format!("a service has one port, here {first}; let {} listen there too", plain(&server.host));
        account.add(server.line, &format!("{}:{port}", server.host), NotDone, reason);
    }
    first
}

/// A port of its own that is checked.
fn check_ports(found: &Haproxy, account: &mut FileReport) {
    for service in found.services.iter().filter(|service| service.name != KUBE_API) {
        for server in &service.servers {
            let Some(port) = server.check_port else { continue };
            let shown = format!("port {port}");
            if port == service.port {
                account.add(server.line, &shown, Kept, format!("the port of service {}", service.name));
                continue;
            }
            let reason = format!(
                "service {} is checked on its port {}; in agent.toml of {} write check.address = \"{}:{port}\"",
                service.name,
                service.port,
                plain(&server.name),
                plain(&server.host)
            );
            account.add(server.line, &shown, NotDone, reason);
        }
    }
}

/// Sees to it that no two listen at one place, since no agent would take such a file, and that there are no more
/// services than there may be.
pub(super) fn separate(found: &mut Haproxy, account: &mut FileReport) {
    let mut taken = Listeners::new(&Config::default());
    let api = found.services.iter().position(|service| service.name == KUBE_API);
    // The one that counts most keeps its places.
    let others = (0..found.services.len()).filter(|at| Some(*at) != api);
    let order: Vec<usize> = api.into_iter().chain(others).collect();
    for at in order {
        listen(&mut found.services[at], &mut taken, account);
    }
    if let Some(page) = &mut found.page {
        let line = page.line;
        page.listen.retain(|address| {
            let Err((_, who)) = taken.take(*address, Listener::Page) else { return true };
            account.add(
                line,
                &format!("bind {address}"),
                NotDone,
                format!("{who} has it; give the page another port"),
            );
            false
        });
    }
    found.health.retain(|(address, line)| match taken.take(*address, Listener::Health) {
        Ok(()) => true,
        Err((_, Listener::Health)) => false,
        Err((_, who)) => {
            let reason = format!("{who} has it; give load balancers another port");
            account.add(*line, &format!("bind {address}"), NotDone, reason);
            false
        }
    });
    found.services.retain(|service| !service.listen.is_empty());
    // The default service is one of them.
    let default = found.services.iter().all(|service| service.name != KUBE_API);
    let most = MAX_SERVICES - usize::from(default);
    if found.services.len() > most {
        for service in found.services.drain(most..) {
            let line = service.listen.first().map_or(0, |(_, line)| *line);
            let reason = format!("a node has at most {MAX_SERVICES} services, kube-api among them");
            account.add(line, &format!("service {}", service.name), NotDone, reason);
        }
    }
    // What listens without being told to, where the file has nothing like it.
    let here = || Listener::Service(KUBE_API.to_owned());
    let mut usual = Service::kube_api().listen.into_iter();
    found.hides_default = found.services.iter().all(|one| one.name != KUBE_API)
        && usual.any(|at| taken.take(at, here()).is_err());
}

/// Leaves a service those places that nobody has.
fn listen(service: &mut FoundService, taken: &mut Listeners, account: &mut FileReport) {
    let own = Listener::Service(service.name.clone());
    let mut all = std::mem::take(&mut service.listen);
    // The widest first, since it covers the others.
    all.sort_by_key(|(address, _)| !address.ip().is_unspecified());
    for (address, line) in all {
        match taken.take(address, own.clone()) {
            Ok(()) => service.listen.push((address, line)),
            Err((other, who)) if who == own && other == address => {}
            Err((other, who)) if who == own => {
                account.add(line, &format!("bind {address}"), Kept, format!("by {other}, which covers it"));
            }
            Err((other, who)) => {
                let reason = format!(
                    "two can't listen at one place, and {who} has {other}; give service {} another port",
                    service.name
                );
                account.add(line, &format!("bind {address}"), NotDone, reason);
            }
        }
    }
    service.listen.sort_by_key(|(_, line)| *line);
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
