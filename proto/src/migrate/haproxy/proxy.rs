//! What stands in `defaults`, `frontend`, `backend` and `listen`, line by line.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::ops::RangeInclusive;

use super::super::notes::LineOutcome::{Automatic, Kept, Needless, NotDone, Set, Unknown, Wrong};
use super::super::notes::{FileReport, KeywordRow, fits, row};
use super::super::words::{WordLine, duration, milliseconds};
use super::known::{PROXY, PROXY_CODE, SERVER};
use super::{bind, check};
use crate::config::{nearest, quoted};

/// Time between two checks where none is configured, in ms.
const CHECKED_MS: u64 = 1_000;

/// A server, as haproxy names it.
#[derive(Debug, Clone)]
pub(in super::super) struct Server {
    /// haproxy's name of it, which need not be that of the node.
    pub(in super::super) name: String,
    /// Its address, or a name.
    pub(in super::super) host: String,
    /// Its port.
    pub(super) port: Option<u16>,
    /// Its line.
    pub(in super::super) line: usize,
    pub(super) weight: Option<u16>,
    pub(super) backup: bool,
    pub(super) disabled: bool,
}

/// What was read of a section so far, beginning with its `defaults`.
#[derive(Debug, Clone, Default)]
pub(super) struct Proxy {
    /// HTTP is read.
    pub(super) http: bool,
    /// A check asks by HTTP, and over TLS.
    pub(super) asks: bool,
    pub(super) asks_tls: bool,
    /// Where it listens, and the lines that say so.
    pub(super) listen: Vec<(SocketAddr, usize)>,
    /// Our keys, with their values as TOML and the lines that they come from.
    pub(super) keys: BTreeMap<&'static str, (String, usize)>,
    pub(super) servers: Vec<Server>,
    /// The weight of servers that have none of their own.
    pub(super) weight: Option<u16>,
}

/// Where a line stands.
pub(super) struct Place<'a> {
    /// The servers are apiservers, of which more is known.
    pub(super) api: bool,
    /// In `defaults`, which hold for several.
    pub(super) defaults: bool,
    pub(super) vips: &'a [IpAddr],
}

/// What holds without a key.
pub(in super::super) fn default_of(key: &str) -> &'static str {
    match key {
        "balance" => "\"least-connections\"",
        "maxconn" => "10000",
        "backend-maxconn" => "0",
        "check.interval" => "\"1s\"",
        "check.timeout" => "\"2500ms\"",
        "check.rise" | "check.fall" => "2",
        "send-proxy" | "access-log" => "false",
        _ => "",
    }
}

pub(super) const LOOKED_AT: &str = "evaluated in each section it applies to";

/// Puts a key, and notes it unless an earlier line said the same.
pub(super) fn put(
    line: &WordLine,
    shown: &str,
    key: &'static str,
    value: String,
    hint: &str,
    proxy: &mut Proxy,
    account: &mut FileReport,
) {
    let known = proxy.keys.get(key).is_some_and(|(known, from)| *known == value && *from != line.number);
    if !(known && line.word(0) == "server") {
        let is_default = value == default_of(key);
        let what = if is_default { "the default".to_owned() } else { format!("{key} = {value}") };
        account.add(line.number, shown, Kept, format!("{what}{hint}"));
    }
    proxy.keys.insert(key, (value, line.number));
}

/// Puts the number that follows a word, if it is one within bounds.
pub(super) fn put_number(
    line: &WordLine,
    at: usize,
    key: &'static str,
    bounds: RangeInclusive<u32>,
    proxy: &mut Proxy,
    account: &mut FileReport,
) {
    let shown = format!("{} {}", line.word(at), line.word(at + 1));
    match line.word(at + 1).parse::<u32>() {
        Ok(number) if bounds.contains(&number) => {
            let hint = if key == "backend-maxconn" {
                "; beyond it, others are preferred; there is no queue"
            } else {
                ""
            };
            put(line, &shown, key, number.to_string(), hint, proxy, account);
        }
        _ => {
            let reason = format!("not a whole number from {} to {}", bounds.start(), bounds.end());
            account.add(line.number, &shown, Wrong, reason);
        }
    }
}

/// Puts the duration that follows a word, if it is one within bounds, in milliseconds.
fn put_duration(
    line: &WordLine,
    at: usize,
    key: &'static str,
    bounds: RangeInclusive<u64>,
    proxy: &mut Proxy,
    account: &mut FileReport,
) {
    // In a server's line it is one word of many.
    let shown = if line.word(0) == "timeout" {
        line.shown()
    } else {
        format!("{} {}", line.word(at), line.word(at + 1))
    };
    match milliseconds(line.word(at + 1)) {
        Some(ms) if bounds.contains(&ms) => {
            put(line, &shown, key, quoted(&duration(ms)), "", proxy, account);
        }
        Some(_) => {
            let (least, most) = (duration(*bounds.start()), duration(*bounds.end()));
            account.add(line.number, &shown, NotDone, format!("{key} is from {least} to {most}"));
        }
        None => account.add(line.number, &shown, Wrong, "not a duration; write it as 2s, or 500 for 500 ms"),
    }
}

/// Notes a parameter by its table, and says how many words it takes.
pub(super) fn param(
    line: &WordLine,
    at: usize,
    table: &[(usize, KeywordRow)],
    tell: impl Fn(&KeywordRow) -> bool,
    account: &mut FileReport,
) -> usize {
    let word = line.word(at);
    let Some((more, row)) = table.iter().find(|(_, row)| fits(row.0, word)) else {
        let known: Vec<&str> = table.iter().map(|(_, row)| row.0).collect();
        account.add(line.number, &line.shown_from(at, 1), Unknown, unknown(word, &known));
        return 1;
    };
    if tell(row) {
        account.add(line.number, &line.shown_from(at, 1 + more), row.1, row.2);
    }
    1 + more
}

/// What is said of a word that nobody knows here.
pub(in super::super) fn unknown(word: &str, known: &[&str]) -> String {
    let near = nearest(word, known).filter(|near| *near != word && !near.contains('*'));
    let hint = near.map_or_else(String::new, |near| format!(", was {near} meant?"));
    format!("not understood and left out{hint}")
}

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

/// Notes what becomes of a server's weight and state, and gives the commands for it.
pub(super) fn commands(proxy: &Proxy, account: &mut FileReport) -> Vec<(String, usize)> {
    let weight = |server: &Server| match server.weight.or(proxy.weight) {
        _ if server.backup => 0,
        Some(weight) => weight,
        // haproxy's own default.
        None => 1,
    };
    let mut commands = Vec::new();
    let mut others = proxy.servers.iter().filter(|server| !server.backup).map(weight);
    let first = others.next();
    let differ = others.any(|weight| Some(weight) != first);
    for server in &proxy.servers {
        let node = super::super::node_name(&server.name);
        if differ || server.backup {
            let what = if server.backup { "backup".to_owned() } else { format!("weight {}", weight(server)) };
            let command = format!("agent set weight.{node}={}", weight(server));
            account.add(server.line, &what, Set, command.clone());
            commands.push((command, server.line));
        }
        if server.disabled {
            let command = format!("agent drain {node}");
            account.add(server.line, "disabled", Set, command.clone());
            commands.push((command, server.line));
        }
    }
    commands
}
