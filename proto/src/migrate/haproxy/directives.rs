//! The lines of `defaults`, `frontend`, `backend` and `listen`, each read by its kind.

use std::net::IpAddr;

use super::super::notes::LineOutcome::{Automatic, Kept, Needless, NotDone, Unknown, Wrong};
use super::super::notes::{FileReport, row};
use super::super::words::{WordLine, milliseconds};
use super::known::{PROXY, PROXY_CODE, SERVER};
use super::proxy::{LOOKED_AT, Place, Proxy, Server, param, put, put_duration, put_number, unknown};
use super::{bind, check};
use crate::config::quoted;

/// Time between two checks where none is configured, in ms.
const CHECKED_MS: u64 = 1_000;

/// Reads one line.
pub(super) fn read(line: &WordLine, place: &Place<'_>, proxy: &mut Proxy, account: &mut FileReport) {
    let mut note = |verdict, reason: &str| account.add(line.number, &line.shown(), verdict, reason);
    if line.open {
        return; // told already
    }
    match (line.word(0), line.word(1)) {
        ("mode", "tcp") => {
            proxy.http = false;
            note(Automatic, "every service is TCP");
        }
        ("mode", mode) => {
            proxy.http = mode == "http";
            note(Automatic, LOOKED_AT);
        }
        ("bind", _) => bind::read(line, proxy, place.vips, account),
        ("balance", _) => balance(line, proxy, account),
        ("maxconn", _) => put_number(line, 0, "maxconn", 1..=1_048_576, proxy, account),
        ("timeout", "check") => put_duration(line, 1, "check.timeout", 50..=60_000, proxy, account),
        ("server", _) => server(line, place, proxy, account),
        ("default-server", _) => params(line, 1, place, None, proxy, account),
        ("no", _) => no(line, proxy, account),
        ("option", "tcplog") => put(line, &line.shown(), "access-log", "true".to_owned(), "", proxy, account),
        ("default_backend", _) => note(Kept, "the service that it leads to"),
        ("use_backend", _) if !line.words.iter().any(|word| word == "if" || word == "unless") => {
            note(Kept, "the service that it leads to");
        }
        ("use_backend", _) => {
            note(NotDone, "there are no connection rules; a service has one set of backends")
        }
        _ if check::is_check(line) => check::read(line, place, proxy, account),
        (first, second) => match row(PROXY, &line.words) {
            Some((_, verdict, reason)) => note(*verdict, reason),
            None => {
                let two = ["option", "timeout"].contains(&first);
                let heads = PROXY.iter().filter_map(|row| match row.0.split_once(' ') {
                    Some((head, tail)) => (two && head == first).then_some(tail),
                    None => (!two).then_some(row.0),
                });
                let known: Vec<&str> = heads.chain(PROXY_CODE.iter().copied().filter(|_| !two)).collect();
                note(Unknown, &unknown(if two { second } else { first }, &known));
            }
        },
    }
}

/// `no option …`, and `no log`.
fn no(line: &WordLine, proxy: &mut Proxy, account: &mut FileReport) {
    if (line.word(1), line.word(2)) == ("option", "tcplog") {
        return put(line, &line.shown(), "access-log", "false".to_owned(), "", proxy, account);
    }
    match row(PROXY, line.words.get(1..).unwrap_or_default()) {
        Some(_) => account.add(line.number, &line.shown(), Needless, "disabled"),
        None => account.add(line.number, &line.shown(), Unknown, unknown(line.word(1), &[])),
    }
}

fn balance(line: &WordLine, proxy: &mut Proxy, account: &mut FileReport) {
    let shown = line.shown();
    let mut keep = |word: &str, hint: &str, account: &mut FileReport| {
        put(line, &shown, "balance", quoted(word), hint, proxy, account);
    };
    match line.word(1).split('(').next().unwrap_or_default() {
        "roundrobin" | "static-rr" => keep("round-robin", "", account),
        "leastconn" => keep("least-connections", "", account),
        "random" => keep("least-connections", ", which is close to random", account),
        "first" => keep("first", ": the first by name", account),
        "source" | "uri" | "url_param" | "hdr" | "hash" | "rdp-cookie" | "sticky" => {
            let reason = "clients are not bound to a master; least-connections instead";
            account.add(line.number, &shown, NotDone, reason);
        }
        word => {
            let known = ["roundrobin", "leastconn", "first", "source", "random"];
            account.add(line.number, &shown, Unknown, unknown(word, &known));
        }
    }
}

/// `server NAME ADDRESS[:PORT] …`.
fn server(line: &WordLine, place: &Place<'_>, proxy: &mut Proxy, account: &mut FileReport) {
    let address = line.word(2);
    if address.is_empty() {
        return account.add(
            line.number,
            &line.shown(),
            Wrong,
            "no address; write server m1 10.0.0.1:6443 check",
        );
    }
    if address.contains('$') || address.starts_with('/') || address.starts_with("unix@") {
        let reason = "neither an address nor a name; run agent join on that node";
        return account.add(line.number, &line.shown(), NotDone, reason);
    }
    let (host, port) = host_and_port(address);
    let reason = if place.api {
        "a member, found by gossip; run agent init or agent join there"
    } else {
        "found by gossip once agent join was run there and its own check passes"
    };
    account.add(line.number, &line.shown(), Automatic, reason);
    let (name, host) = (line.word(1).to_owned(), host.to_owned());
    let server = Server { name, host, port, line: line.number, weight: None, backup: false, disabled: false };
    params(line, 3, place, Some(server), proxy, account);
}

/// `10.0.0.1:6443`, `[fd00::1]:6443`, `fd00::1:6443`, or without a port.
pub(super) fn host_and_port(text: &str) -> (&str, Option<u16>) {
    let text = text.strip_prefix("ipv4@").or_else(|| text.strip_prefix("ipv6@")).unwrap_or(text);
    if text.parse::<IpAddr>().is_ok() && !text.contains("::") {
        return (text, None);
    }
    match text.rsplit_once(':') {
        Some((host, port)) => {
            let bare = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host);
            (bare, port.parse().ok().filter(|port| *port != 0))
        }
        None => (text, None),
    }
}

/// The parameters of a server, or of all.
fn params(
    line: &WordLine,
    mut at: usize,
    place: &Place<'_>,
    mut server: Option<Server>,
    proxy: &mut Proxy,
    account: &mut FileReport,
) {
    while at < line.words.len() {
        at += match (line.word(at), &mut server) {
            ("weight", server) => {
                weight(
                    line,
                    at,
                    server.as_mut().map_or(&mut proxy.weight, |server| &mut server.weight),
                    account,
                );
                2
            }
            ("backup", Some(server)) => {
                server.backup = true;
                1
            }
            ("disabled", Some(server)) => {
                server.disabled = true;
                1
            }
            // Among many balancers a rare check spares the masters; here each asks only its own.
            ("inter", _) if milliseconds(line.word(at + 1)).is_some_and(|ms| ms >= CHECKED_MS) => {
                let shown = format!("inter {}", line.word(at + 1));
                account.add(line.number, &shown, Automatic, "a master checks its own service once a second");
                2
            }
            ("inter", _) => {
                put_duration(line, at, "check.interval", 100..=300_000, proxy, account);
                2
            }
            (word @ ("rise" | "fall"), _) => {
                let key = if word == "rise" { "check.rise" } else { "check.fall" };
                put_number(line, at, key, 1..=100, proxy, account);
                2
            }
            ("maxconn", _) => {
                put_number(line, at, "backend-maxconn", 0..=1_048_576, proxy, account);
                2
            }
            ("send-proxy" | "send-proxy-v2" | "send-proxy-v2-ssl" | "send-proxy-v2-ssl-cn", _) => {
                let hint = if line.word(at) == "send-proxy" { ", by version 2 of the protocol" } else { "" };
                put(line, line.word(at), "send-proxy", "true".to_owned(), hint, proxy, account);
                1
            }
            ("check-ssl", _) => {
                proxy.asks_tls = true;
                1
            }
            ("verify", _) => {
                check::verify(line, at, place, account);
                2
            }
            (word @ ("ca-file" | "verifyhost" | "check-sni" | "crt"), _) => {
                check::tls(line, at, word, place, proxy, account);
                2
            }
            (_, server) => {
                let all = server.is_none();
                param(line, at, SERVER, |row| all || row.1.is_problem(), account)
            }
        };
    }
    proxy.servers.extend(server);
}

fn weight(line: &WordLine, at: usize, into: &mut Option<u16>, account: &mut FileReport) {
    let word = line.word(at + 1);
    let shown = format!("weight {word}");
    *into = word.parse().ok().filter(|weight| *weight <= crate::service::MAX_WEIGHT);
    if into.is_none() {
        account.add(line.number, &shown, Wrong, "not a whole number from 0 to 256");
    } else if line.word(0) != "server" {
        account.add(line.number, &shown, Needless, "equal weights have no effect");
    }
}
