//! What is read of `defaults`, `frontend`, `backend` and `listen`, and how each kind of value is put into it.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::ops::RangeInclusive;

use super::super::notes::LineOutcome::{Kept, NotDone, Unknown, Wrong};
use super::super::notes::{FileReport, KeywordRow, fits};
use super::super::words::{WordLine, duration, milliseconds};
use crate::config::{nearest, quoted};

/// A server, as haproxy names it.
#[derive(Debug, Clone)]
pub(in super::super) struct Server {
    /// haproxy's name of it, which need not be that of the node.
    pub(in super::super) name: String,
    /// Its address, or a name.
    pub(in super::super) host: String,
    /// Its port.
    pub(super) port: ServerPort,
    /// The port that is checked instead.
    pub(super) check_port: Option<u16>,
    /// Its line.
    pub(in super::super) line: usize,
    pub(in super::super) weight: Option<u16>,
    pub(in super::super) backup: bool,
    pub(in super::super) disabled: bool,
}

/// The port of a server, which may depend on that of the client's connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum ServerPort {
    /// This one.
    Fixed(u16),
    /// That of the listener, and so many more.
    Offset(i32),
}

impl ServerPort {
    /// The port behind a listener's.
    pub(super) fn behind(self, listener: Option<u16>) -> Option<u16> {
        match self {
            ServerPort::Fixed(port) => Some(port),
            ServerPort::Offset(offset) => {
                let port = i32::from(listener?).checked_add(offset)?;
                u16::try_from(port).ok().filter(|port| *port != 0)
            }
        }
    }
}

/// A rule that turns some clients away, or reads who they are.
#[derive(Debug, Clone)]
pub(super) struct Restriction {
    pub(super) line: usize,
    pub(super) shown: String,
}

/// What was read of a section so far, beginning with its `defaults`.
#[derive(Debug, Clone, Default)]
pub(super) struct Proxy {
    /// HTTP is read.
    pub(super) http: bool,
    /// A check asks by HTTP, as the line says, and over TLS.
    pub(super) asks: Option<usize>,
    pub(super) asks_tls: bool,
    /// Not everyone may connect.
    pub(super) restriction: Option<Restriction>,
    /// Where it listens, and the lines that say so.
    pub(super) listen: Vec<(SocketAddr, usize)>,
    /// Our keys, with their values as TOML and the lines that they come from.
    pub(super) keys: BTreeMap<&'static str, (String, usize)>,
    pub(super) servers: Vec<Server>,
    /// The weight of servers that have none of their own.
    pub(super) weight: Option<u16>,
    /// The port that is checked of those that have none of their own.
    pub(super) check_port: Option<u16>,
    /// The port that a line about checks names: it counts whatever servers say.
    pub(super) asked_port: Option<u16>,
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

/// Whether a key has a meaning beside this kind of check.
pub(in super::super) fn belongs(key: &str, check: Option<&str>) -> bool {
    match key {
        "check.path" | "check.expect" => matches!(check, Some("http" | "https")),
        "check.server-name" | "check.ca-file" | "check.cert-file" => check == Some("https"),
        _ => true,
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
pub(super) fn put_duration(
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
    if *more > 0 && line.word(at + more).is_empty() {
        account.add(line.number, word, Wrong, "a word is missing behind it");
    } else if tell(row) {
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
