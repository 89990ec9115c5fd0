//! Weights, backups and disabled servers: haproxy has them for each section, and a cluster for each node.

use super::haproxy::{FoundService, Server};
use super::nodes::{NodeNames, shown};
use super::notes::FileReport;
use super::notes::LineOutcome::{NotDone, Set};

/// haproxy's weight of a server that says nothing.
const USUAL: u16 = 1;

/// A server's share of its service: none for a backup.
fn share(server: &Server) -> u16 {
    if server.backup { 0 } else { server.weight.unwrap_or(USUAL) }
}

/// Whether the servers of a service have different shares.
fn differ(service: &FoundService) -> bool {
    let mut all = service.servers.iter().map(share);
    let first = all.next();
    all.any(|other| Some(other) != first)
}

/// The same of those that are no backups.
fn differ_beside_backups(service: &FoundService) -> bool {
    let mut all = service.servers.iter().map(share).filter(|share| *share > 0);
    let first = all.next();
    all.any(|other| Some(other) != first)
}

/// The commands, each with its line; what holds for one service alone is told, since it would hold for all.
pub(super) fn commands(
    services: &[FoundService],
    names: NodeNames<'_>,
    account: &mut FileReport,
) -> Vec<(String, usize)> {
    let mut commands: Vec<(String, usize)> = Vec::new();
    for service in services {
        let mut shares: Vec<(&Server, String)> = Vec::new();
        for server in &service.servers {
            let name = names.of_server(server);
            let node = shown(name.as_ref());
            if differ(service) {
                match against(service, server, services) {
                    // Beside backups all others may be as every node is.
                    Some(_) if share(server) > 0 && !differ_beside_backups(service) => {}
                    Some(other) => {
                        let reason = format!(
                            "a weight holds for all services of a node, and in {} it differs; on that node write \
                             weight = {} for service {} in agent.toml",
                            other.name,
                            share(server),
                            service.name
                        );
                        account.add(server.line, &what(server), NotDone, reason);
                    }
                    None => shares.push((server, format!("agent set weight.{node}={}", share(server)))),
                }
            }
            let mut same = elsewhere(service, server, services);
            match same.find(|(_, one)| !one.disabled) {
                _ if !server.disabled => {}
                Some((other, _)) => {
                    let reason = format!(
                        "a drain holds for all services of a node, and in {} it is not disabled",
                        other.name
                    );
                    account.add(server.line, "disabled", NotDone, reason);
                }
                None => add(&mut commands, format!("agent drain {node}"), "disabled", server, account),
            }
        }
        // What is left may be equal shares, which are those of every node.
        let first = shares.first().map(|(server, _)| share(server));
        if shares.iter().any(|(server, _)| Some(share(server)) != first) {
            for (server, command) in shares {
                add(&mut commands, command, &what(server), server, account);
            }
        }
    }
    commands
}

/// How a server's share is written.
fn what(server: &Server) -> String {
    if server.backup { "backup".to_owned() } else { format!("weight {}", share(server)) }
}

/// The same node as a server of other services.
fn elsewhere<'a>(
    service: &'a FoundService,
    server: &'a Server,
    services: &'a [FoundService],
) -> impl Iterator<Item = (&'a FoundService, &'a Server)> {
    let others = services.iter().filter(|other| other.name != service.name);
    let all = others.flat_map(|other| other.servers.iter().map(move |one| (other, one)));
    all.filter(|(_, one)| one.host == server.host)
}

/// A service in which the node has another share, so that one for all would be wrong.
fn against<'a>(
    service: &'a FoundService,
    server: &'a Server,
    services: &'a [FoundService],
) -> Option<&'a FoundService> {
    let weight = share(server);
    let mut all = elsewhere(service, server, services);
    let other = all
        .find(|(other, one)| (share(one) == 0) != (weight == 0) || (differ(other) && share(one) != weight));
    other.map(|(other, _)| other)
}

fn add(
    commands: &mut Vec<(String, usize)>,
    command: String,
    what: &str,
    server: &Server,
    account: &mut FileReport,
) {
    account.add(server.line, what, Set, command.clone());
    let unnamed = command.contains(super::nodes::UNKNOWN);
    if unnamed || !commands.iter().any(|(known, _)| *known == command) {
        commands.push((command, server.line));
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::net::IpAddr;

    use super::*;
    use crate::migrate::haproxy;

    fn all(text: &str, known: &[(&str, &str)]) -> (Vec<String>, Vec<String>) {
        let mut account = FileReport::new("x");
        let found = haproxy::read(&format!("defaults\n mode tcp\n{text}"), &[], &|_| None, &mut account);
        let known: BTreeMap<IpAddr, _> =
            known.iter().map(|(address, name)| (address.parse().unwrap(), name.parse().unwrap())).collect();
        let commands = commands(&found.services, NodeNames(&known), &mut account);
        (commands.into_iter().map(|(command, _)| command).collect(), account.problems().collect())
    }

    #[test]
    fn nodes_that_are_each_other_s_backup_get_no_weight() {
        let a = "listen a\n bind :1\n server m1 10.0.0.1:6443\n server m2 10.0.0.2:6443 backup\n";
        let b = "listen b\n bind :2\n server m2 10.0.0.2:9345\n server m1 10.0.0.1:9345 backup\n";
        assert_eq!(all(a, &[]).0, ["agent set weight.m1=1", "agent set weight.m2=0"]);
        let (commands, problems) = all(&format!("{a}{b}"), &[]);
        assert!(commands.is_empty(), "{commands:?}");
        assert_eq!(problems.len(), 2, "{problems:?}");
        assert!(
            problems[0].contains("backup: a weight holds for all services of a node, and in b it differs")
        );
        // One that is a backup here and one of many there is none either.
        let b = "listen b\n bind :2\n server m2 10.0.0.2:9345\n server m1 10.0.0.1:9345\n";
        assert!(all(&format!("{a}{b}"), &[]).0.is_empty(), "m1 alone would have what it has by default");
        let b = "listen b\n bind :2\n server m1 10.0.0.1:9345\n server m2 10.0.0.2:9345 backup\n";
        assert_eq!(all(&format!("{a}{b}"), &[]).0.len(), 2, "both say the same");
    }

    #[test]
    fn a_node_that_is_disabled_in_one_service_is_not_drained_for_all() {
        let a = "listen a\n bind :1\n server m1 10.0.0.1:6443\n server m2 10.0.0.2:6443 disabled\n";
        let b = "listen b\n bind :2\n server m2 10.0.0.2:9345\n";
        assert_eq!(all(a, &[]).0, ["agent drain m2"]);
        assert!(all(&format!("{a}{b}"), &[]).0.is_empty());
    }

    #[test]
    fn nodes_are_called_as_the_cluster_calls_them() {
        let text =
            "listen a\n bind :1\n server api_srv.1 10.0.0.1:6443 weight 10\n server API-2 10.0.0.2:6443\n";
        assert_eq!(all(text, &[]).0, ["agent set weight.NODE=10", "agent set weight.api-2=1"]);
        let known = [("10.0.0.1", "m1")];
        assert_eq!(all(text, &known).0, ["agent set weight.m1=10", "agent set weight.NODE=1"]);
    }
}
