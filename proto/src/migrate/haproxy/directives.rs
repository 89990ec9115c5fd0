//! The lines of `defaults`, `frontend`, `backend` and `listen`, each read by its kind.

use std::net::IpAddr;

use super::super::notes::LineOutcome::{Automatic, Kept, Needless, NotDone, Unknown, Wrong};
use super::super::notes::{FileReport, row};
use super::super::words::{WordLine, milliseconds};
use super::known::{PROXY, PROXY_CODE, SERVER};
use super::proxy::{
    LOOKED_AT, Place, Proxy, Restriction, Server, ServerPort, param, put, put_duration, put_number, unknown,
};
use super::{bind, check, syntax};
use crate::config::quoted;

/// Time between two checks where none is configured, in ms.
const CHECKED_MS: u64 = 1_000;

/// Time limit of a check where none is configured, in ms.
const CHECK_TIMEOUT_MS: u64 = 2_500;

/// Whether a rule turns clients away, or wants a header before their bytes.
pub(super) fn restricts(line: &WordLine) -> bool {
    let words: &[&str] = match line.word(0) {
        "tcp-request" => &["reject", "silent-drop", "expect-proxy", "expect-netscaler-cip"],
        "http-request" => &["deny", "reject", "silent-drop", "tarpit", "auth"],
        "block" => return true,
        _ => return false,
    };
    line.words.iter().skip(1).take(3).any(|word| words.contains(&word.as_str()))
}

/// Reads one line.
pub(super) fn read(line: &WordLine, place: &Place<'_>, proxy: &mut Proxy, account: &mut FileReport) {
    let mut note = |verdict, reason: &str| account.add(line.number, &line.shown(), verdict, reason);
    if line.open {
        return; // told already
    }
    if let Some(reason) = syntax::refused(line) {
        return note(Wrong, reason);
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
        // As with `inter`: it is long where many balancers ask, and a hung apiserver stays unseen for it.
        ("timeout", "check") if milliseconds(line.word(2)).is_some_and(|ms| ms >= CHECK_TIMEOUT_MS) => {
            note(Automatic, "a check has 2.5 s, so that a hung apiserver is soon known");
        }
        ("timeout", "check") => put_duration(line, 1, "check.timeout", 50..=60_000, proxy, account),
        ("timeout", _) if row(PROXY, &line.words).is_some() && milliseconds(line.word(2)).is_none() => {
            note(Wrong, "not a duration; write it as 30s, or 500 for 500 ms");
        }
        ("tcp-request" | "http-request" | "block", _) if restricts(line) => {
            proxy.restriction = Some(Restriction { line: line.number, shown: line.shown() });
            note(NotDone, "a rule that turns clients away; the agent has none");
        }
        ("tcp-request", "connection" | "content" | "session") if line.word(2) == "accept" => {
            note(Needless, "everyone may connect, and nothing waits for bytes to inspect");
        }
        ("server", _) => server(line, place, proxy, account),
        ("default-server", _) => params(line, 1, place, None, proxy, account),
        ("no", _) => no(line, proxy, account),
        ("option", "tcplog") => put(line, &line.shown(), "access-log", "true".to_owned(), "", proxy, account),
        ("default_backend", _) => note(Kept, "the service that it leads to"),
        ("use_backend", _) if !line.words.iter().any(|word| word == "if" || word == "unless") => {
            note(Kept, "the service that it leads to");
        }
        ("use_backend", _) => {
            let sni = line.words.iter().any(|word| word.contains("ssl_sni"));
            let what = if sni { "by the name in TLS" } else { "by rules" };
            let reason = format!(
                "nothing is routed {what}; clients that it led to {} would come to the default backend",
                line.word(1)
            );
            note(NotDone, &reason)
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
    if (line.word(1), line.word(2)) == ("option", "httpchk") {
        proxy.asks = None;
        return account.add(line.number, &line.shown(), Kept, "check.kind is tcp");
    }
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
        "" | "roundrobin" | "static-rr" => keep("round-robin", "", account),
        "leastconn" => keep("least-connections", "", account),
        "random" => keep("least-connections", ", which is close to random", account),
        "source" => keep("source", "", account),
        "first" => keep("first", ": the first by name", account),
        "uri" | "url_param" | "hdr" | "hash" | "rdp-cookie" | "sticky" => {
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
    let (name, address) = (line.word(1), line.word(2));
    let mut note = |verdict, reason: &str| account.add(line.number, &line.shown(), verdict, reason);
    if address.is_empty() {
        return note(Wrong, "no address; write server m1 10.0.0.1:6443 check");
    }
    if !name.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_.:".contains(&b)) {
        return note(Wrong, "the name of a server has letters, digits, - _ . and : alone");
    }
    if proxy.servers.iter().any(|server| server.name == name) {
        return note(Wrong, "another server of this section has this name");
    }
    if address.starts_with('/') || address.starts_with("unix@") || address.starts_with("abns@") {
        return note(NotDone, "not a TCP address; run agent join on that node");
    }
    let Some((host, port)) = host_and_port(address) else {
        return note(Wrong, "not a port from 1 to 65535; write the address as 10.0.0.1:6443");
    };
    if syntax::is_no_address(host) {
        return note(Wrong, "not an address; write it as 10.0.0.1:6443 or [fd00::1]:6443");
    }
    if [name, host].iter().any(|text| text.to_lowercase().contains("bootstrap")) {
        return note(Needless, "it is there while OpenShift is installed, and is no member");
    }
    let reason = if place.api {
        "a member, found by gossip; run agent init or agent join there"
    } else {
        "its node offers the service; see the commands"
    };
    note(Automatic, reason);
    let (name, host) = (name.to_owned(), host.to_owned());
    let (weight, backup, disabled) = (None, false, false);
    let server = Server { name, host, port, check_port: None, line: line.number, weight, backup, disabled };
    params(line, 3, place, Some(server), proxy, account);
}

/// `10.0.0.1:6443`, `[fd00::1]:6443`, `fd00::1:6443`, `10.0.0.1:+1000`, or without a port. None: the port is none.
pub(super) fn host_and_port(text: &str) -> Option<(&str, ServerPort)> {
    let prefixes = ["ipv4@", "ipv6@", "tcp@", "tcp4@", "tcp6@"];
    let text = prefixes.iter().find_map(|prefix| text.strip_prefix(prefix)).unwrap_or(text);
    let same = ServerPort::Offset(0);
    if text.parse::<IpAddr>().is_ok() && !text.contains("::") {
        return Some((text, same));
    }
    let bare = |host: &'_ str| host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).map(str::len);
    if bare(text).is_some() {
        return Some((&text[1..text.len() - 1], same));
    }
    let Some((host, port)) = text.rsplit_once(':') else { return Some((text, same)) };
    let host = if bare(host).is_some() { &host[1..host.len() - 1] } else { host };
    let digits = |text: &str| !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
    let offset = |text: &str| text.parse::<u16>().ok().filter(|_| digits(text)).map(i32::from);
    let port = match (port.strip_prefix('+'), port.strip_prefix('-')) {
        (Some(more), _) => ServerPort::Offset(offset(more)?),
        (_, Some(less)) => ServerPort::Offset(-offset(less)?),
        _ if port.is_empty() => same,
        _ => ServerPort::Fixed(port.parse().ok().filter(|number| digits(port) && *number != 0)?),
    };
    Some((host, port))
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
        if let Some(reason) = syntax::refused_parameter(line.word(at), line.word(at + 1)) {
            account.add(line.number, &line.shown_from(at, 2), Wrong, reason);
            at += 2;
            continue;
        }
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
            ("slowstart" | "fastinter" | "downinter" | "agent-inter", _)
                if milliseconds(line.word(at + 1)).is_none() =>
            {
                let shown = line.shown_from(at, 2);
                account.add(line.number, &shown, Wrong, "not a duration; write it as 2s, or 500 for 500 ms");
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
            ("port", _) => {
                let port = line.word(at + 1).parse::<u16>().ok().filter(|port| *port != 0);
                match (&mut server, port) {
                    (Some(server), Some(port)) => server.check_port = Some(port),
                    (None, Some(port)) => proxy.check_port = Some(port),
                    (_, None) => {
                        let shown = line.shown_from(at, 2);
                        account.add(line.number, &shown, Wrong, "not a port from 1 to 65535");
                    }
                }
                2
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
    if let Some(mut server) = server {
        server.weight = server.weight.or(proxy.weight);
        server.check_port = server.check_port.or(proxy.check_port);
        proxy.servers.push(server);
    }
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
