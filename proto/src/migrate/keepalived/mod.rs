//! `keepalived.conf`: virtual IPs, and who is told of them.

use std::net::IpAddr;

use super::notes::LineOutcome::{Automatic, Kept, Needless, NotDone, Set, Unknown, Wrong};
use super::notes::{FileReport, KeywordRow, row};
use super::words::{Variables, duration, milliseconds};

mod known;
mod notify;
mod scripts;
mod tree;
mod vip;

pub(super) use notify::{NotifyCall, WRAPPER, script};
pub(super) use vip::Vip;

use known::{GLOBAL, HEALTH, INSTANCE, INSTANCE_CODE, TOP};
use scripts::OwnCheck;
use tree::Node;

/// What a file amounts to.
#[derive(Debug, Default)]
pub(super) struct Keepalived {
    pub(super) vips: Vec<Vip>,
    /// Programs that are told.
    pub(super) notify: Vec<NotifyCall>,
    /// This node's own address.
    pub(super) own: Option<IpAddr>,
    /// The addresses of the others.
    pub(super) peers: Vec<IpAddr>,
}

/// Whether a text has any block of keepalived's.
pub(super) fn is_ours(text: &str) -> bool {
    let begins = ["vrrp_instance", "vrrp_script", "vrrp_sync_group", "global_defs", "virtual_server"];
    text.lines().any(|line| {
        let line = line.trim_start();
        begins.iter().any(|word| line.strip_prefix(word).is_some_and(|rest| !rest.starts_with('-')))
    })
}

/// Reads a file as the node `host` does, and the priorities of the nodes that it names.
pub(super) fn read(
    text: &str,
    host: Option<&str>,
    variables: &Variables<'_>,
    account: &mut FileReport,
) -> Keepalived {
    let nodes = tree::read(text, host, variables, account);
    let mut found = blocks(&nodes, account);
    for vip in &mut found.vips {
        if let Some(host) = host {
            vip.priorities.iter_mut().for_each(|(node, _)| *node = Some(host.to_owned()));
        }
    }
    let hosts = tree::hosts(text);
    if !hosts.is_empty() && host.is_none() {
        // What no line names is nobody that is known here.
        found.vips.iter_mut().for_each(|vip| vip.priorities.clear());
    }
    for other in hosts.iter().filter(|other| Some(other.as_str()) != host) {
        let nodes = tree::read(text, Some(other), variables, &mut FileReport::new(""));
        for theirs in blocks(&nodes, &mut FileReport::new("")).vips {
            let Some(vip) = found.vips.iter_mut().find(|vip| vip.address == theirs.address) else { continue };
            let all = theirs.priorities.into_iter().map(|(_, priority)| (Some(other.clone()), priority));
            vip.priorities.extend(all);
        }
    }
    found
}

fn blocks(nodes: &[Node], account: &mut FileReport) -> Keepalived {
    let mut found = Keepalived::default();
    let checks = scripts::own_checks(nodes);
    for node in nodes {
        let mut note =
            |verdict, reason: &str| account.range(node.line, node.last, &node.shown(), verdict, reason);
        match node.word(0) {
            "global_defs" => {
                note_head(node, account);
                each(node, GLOBAL, &[], account);
            }
            "vrrp_script" => match checks.iter().find(|check| check.name == node.word(1)) {
                Some(check) => check.told(node, nodes, account),
                None => note(Automatic, HEALTH),
            },
            "vrrp_instance" => instance(node, &checks, &mut found, account),
            word => match row(TOP, &node.words) {
                Some((_, verdict, reason)) => note(*verdict, reason),
                None if word.starts_with(['$', '@', '~']) => {
                    note(NotDone, "it is not evaluated; write what it stands for");
                }
                None => {
                    let known: Vec<&str> = TOP
                        .iter()
                        .map(|row| row.0)
                        .chain(["vrrp_instance", "vrrp_script", "global_defs"])
                        .collect();
                    note(Unknown, &super::haproxy::unknown(word, &known));
                }
            },
        }
    }
    found
}

/// The head of a block whose lines are told one by one.
fn note_head(node: &Node, account: &mut FileReport) {
    account.add(node.line, &node.shown(), Automatic, "see each line");
}

/// Lines by their table.
fn each(node: &Node, table: &[KeywordRow], code: &[&str], account: &mut FileReport) {
    for line in &node.block {
        match row(table, &line.words) {
            Some((_, verdict, reason)) => {
                account.range(line.line, line.last, &line.shown(), *verdict, *reason)
            }
            None => {
                let known: Vec<&str> = table.iter().map(|row| row.0).chain(code.iter().copied()).collect();
                let what = super::haproxy::unknown(line.word(0), &known);
                account.range(line.line, line.last, &line.shown(), Unknown, what);
            }
        }
    }
}

/// What a block says of all its addresses.
#[derive(Default)]
struct Election {
    priority: Option<u8>,
    delay: Option<String>,
    stays: bool,
}

fn instance(node: &Node, checks: &[OwnCheck<'_>], found: &mut Keepalived, account: &mut FileReport) {
    account.add(node.line, &node.shown(), Kept, "its addresses become cluster-wide settings");
    let mut own: Vec<Vip> = Vec::new();
    let mut election = Election::default();
    let mut check = None;
    let interface = node.block.iter().rev().find(|line| line.word(0) == "interface").map(|line| line.word(1));
    for line in &node.block {
        if let Some(call) = notify::read(line, node.word(1), account) {
            found.notify.extend(call);
            continue;
        }
        let mut note =
            |verdict, reason: &str| account.range(line.line, line.last, &line.shown(), verdict, reason);
        match line.word(0) {
            "priority" | "nopreempt" | "preempt_delay" => elect(line, &mut election, account),
            "virtual_ipaddress" | "virtual_ipaddress_excluded" => {
                note(Set, "vip = its addresses, each a /32 or /128 with its own owner");
                let all = line
                    .block
                    .iter()
                    .filter_map(|address| vip::read(address, (node.word(1), interface), account));
                own.extend(all.collect::<Vec<_>>());
            }
            "track_script" => check = check.or(scripts::tracked(line, checks, account)),
            "track_interface" => track_interface(line, interface, account),
            "unicast_src_ip" => {
                found.own = line.word(1).parse().ok().or(found.own);
                note(Automatic, known::GOSSIP);
            }
            "unicast_peer" => {
                found.peers.extend(line.block.iter().filter_map(|peer| peer.word(0).parse::<IpAddr>().ok()));
                note(Automatic, known::GOSSIP);
            }
            _ => match row(INSTANCE, &line.words) {
                Some((_, verdict, reason)) => note(*verdict, reason),
                None => {
                    let known: Vec<&str> = INSTANCE.iter().map(|row| row.0).chain(INSTANCE_CODE).collect();
                    note(Unknown, &super::haproxy::unknown(line.word(0), &known));
                }
            },
        }
    }
    found.peers.sort_unstable();
    found.peers.dedup();
    if own.is_empty() {
        let reason = "it has no address; write virtual_ipaddress { 10.0.0.50 }";
        account.add(node.line, &node.shown(), Wrong, reason);
    }
    own.iter_mut().for_each(|vip| vip.check.clone_from(&check));
    add(own, election, found, account);
}

/// Who owns the addresses of a block.
fn elect(line: &Node, election: &mut Election, account: &mut FileReport) {
    let mut note = |verdict, reason: &str| account.add(line.line, &line.shown(), verdict, reason);
    match line.word(0) {
        "priority" => match line.word(1).parse::<u8>().ok().filter(|number| *number > 0) {
            Some(number) => {
                election.priority = Some(number);
                note(Set, "vip.ADDRESS.priority.NODE, for this node only; others have 100 until set");
            }
            None => {
                note(Wrong, "not a whole number from 1 to 255; keepalived takes 100, and so does the agent")
            }
        },
        "nopreempt" => {
            election.stays = true;
            note(Automatic, "an address stays where it is until its owner fails");
        }
        _ => match seconds(line.word(1)) {
            Some(text) => {
                election.delay = Some(text);
                note(Set, "vip.ADDRESS.preempt");
            }
            None => note(Wrong, "not a number of seconds from 0 to 3600"),
        },
    }
}

/// The agent gives an address up when its own interface fails; no other counts.
fn track_interface(line: &Node, own: Option<&str>, account: &mut FileReport) {
    let others: Vec<&str> =
        line.block.iter().map(|one| one.word(0)).filter(|name| Some(*name) != own).collect();
    let (verdict, reason) = match others.as_slice() {
        [] => (Automatic, "a node whose interface fails gives its address up".to_owned()),
        others => {
            let reason =
                format!("only the interface of the address counts; {} may fail unseen", others.join(", "));
            (NotDone, reason)
        }
    };
    account.range(line.line, line.last, &line.shown(), verdict, reason);
}

/// Adds the addresses of a block, each once.
fn add(own: Vec<Vip>, election: Election, found: &mut Keepalived, account: &mut FileReport) {
    for mut vip in own {
        vip.priorities.extend(election.priority.map(|priority| (None, priority)));
        // keepalived takes an address back unless it is told not to.
        vip.preempt = (!election.stays && (election.priority.is_some() || election.delay.is_some()))
            .then(|| election.delay.clone().unwrap_or_else(|| "0s".to_owned()));
        match found.vips.iter().find(|known| known.address == vip.address) {
            Some(known) if known.instance == vip.instance => {
                account.add(vip.line, &vip.address.to_string(), Needless, "listed twice");
            }
            Some(_) => {
                account.add(vip.line, &vip.address.to_string(), Wrong, "it is already in another block")
            }
            None => found.vips.push(vip),
        }
    }
}

/// keepalived's seconds, which may have a fraction.
fn seconds(text: &str) -> Option<String> {
    let (whole, part) = text.split_once('.').unwrap_or((text, ""));
    let digits: String = part.chars().chain("000".chars()).take(3).collect();
    let ms = milliseconds(&format!("{whole}s"))?.checked_add(digits.parse().ok()?)?;
    (ms <= 3_600_000).then(|| duration(ms))
}
