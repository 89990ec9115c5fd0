//! What haproxy 2.6 refuses of lines about checks.

use super::super::words::WordLine;

const MISSING: &str = "what it needs is missing behind it";
const CONNECT: &str = "not what connect takes: port, addr, ssl, sni or alpn";
const HEX: &str = "not bytes as hexadecimal digits, such as 0a0b";

/// What a rule of either kind may be.
const RULES: [&str; 6] = ["comment", "connect", "expect", "set-var", "set-var-fmt", "unset-var"];

/// The same of one kind alone.
const HTTP_RULES: [&str; 3] = ["disable-on-404", "send", "send-state"];
const TCP_RULES: [&str; 4] = ["send", "send-binary", "send-binary-lf", "send-lf"];

/// What an answer is compared with.
const HTTP_MATCHES: [&str; 8] =
    ["fhdr", "hdr", "rstatus", "rstring", "status", "string", "string-lf", "custom"];
const TCP_MATCHES: [&str; 8] =
    ["binary", "binary-lf", "rbinary", "rstring", "string", "string-lf", "custom", "all"];

/// What stands before a match, each with a word of its own.
const MATCH_OPTIONS: [&str; 9] = [
    "comment",
    "error-status",
    "min-recv",
    "ok-status",
    "on-error",
    "on-success",
    "status-code",
    "tout-status",
    "linger",
];

/// Why haproxy refuses a line of `http-check`, `tcp-check`, or an option that says how is checked.
pub(super) fn refused(line: &WordLine) -> Option<&'static str> {
    // As in set-var(check.port).
    let rule = line.word(1).split('(').next().unwrap_or_default();
    match (line.word(0), rule) {
        ("http-check", rule) if !RULES.contains(&rule) && !HTTP_RULES.contains(&rule) => {
            Some("not what http-check takes: send, expect, connect, disable-on-404 or send-state")
        }
        ("tcp-check", rule) if !RULES.contains(&rule) && !TCP_RULES.contains(&rule) => {
            Some("not what tcp-check takes: connect, send, send-binary or expect")
        }
        ("http-check", "disable-on-404" | "send-state") => {
            (line.words.len() > 2).then_some("haproxy takes no further word here")
        }
        ("http-check" | "tcp-check", "connect") => connect(line),
        ("http-check" | "tcp-check", "expect") => expect(line),
        ("http-check", "send") => send(line),
        ("tcp-check", "send-binary") if !is_hex(line.word(2)) => Some(HEX),
        ("http-check" | "tcp-check", "set-var" | "set-var-fmt" | "unset-var")
            if !line.word(1).contains('(') =>
        {
            Some("write it as set-var(check.name) and an expression")
        }
        ("http-check" | "tcp-check", _) if line.word(2).is_empty() => Some(MISSING),
        ("option", "mysql-check") if !["", "user"].contains(&line.word(2)) => {
            Some("option mysql-check takes user and a name, or nothing")
        }
        ("option", "pgsql-check") if line.word(2) != "user" || line.word(3).is_empty() => {
            Some("option pgsql-check needs user and a name")
        }
        _ => None,
    }
}

/// Where a check connects to.
fn connect(line: &WordLine) -> Option<&'static str> {
    let mut words = line.words.iter().skip(2).map(String::as_str);
    while let Some(word) = words.next() {
        match word {
            "default" | "send-proxy" | "ssl" | "linger" => {}
            "port" if !words.next().is_some_and(is_port) => {
                return Some("port needs a number from 1 to 65535");
            }
            "port" => {}
            // All that follows is a text for people.
            "comment" => return None,
            "addr" | "sni" | "alpn" | "via-socks4" | "proto" if words.next().is_none() => {
                return Some(MISSING);
            }
            "addr" | "sni" | "alpn" | "via-socks4" | "proto" => {}
            _ => return Some(CONNECT),
        }
    }
    None
}

/// What is expected.
fn expect(line: &WordLine) -> Option<&'static str> {
    let matches: &[&str] = if line.word(0) == "http-check" { &HTTP_MATCHES } else { &TCP_MATCHES };
    let mut words = line.words.iter().skip(2).map(String::as_str);
    while let Some(word) = words.next() {
        let kind = word.trim_start_matches('!');
        if MATCH_OPTIONS.contains(&word) {
            words.next();
        } else if kind.is_empty() {
            // A ! that stands alone.
        } else if matches.contains(&kind) {
            let Some(value) = words.next().filter(|value| !value.is_empty()) else { return Some(MISSING) };
            return match kind {
                "status" if !is_codes(value) => Some("not status codes, such as 200-399 or 200,401"),
                "binary" if !is_hex(value) => Some(HEX),
                _ => None,
            };
        } else {
            return Some("not what expect takes: status, rstatus, string, rstring or binary");
        }
    }
    Some("what is expected is missing, such as status 200")
}

/// What is asked.
fn send(line: &WordLine) -> Option<&'static str> {
    let mut words = line.words.iter().skip(2).map(String::as_str);
    if line.words.len() < 3 {
        return Some(MISSING);
    }
    while let Some(word) = words.next() {
        let values = match word {
            "comment" | "meth" | "uri" | "uri-lf" | "ver" | "body" | "body-lf" => 1,
            "hdr" => 2,
            _ => return Some("not what http-check send takes: meth, uri, ver, hdr or body"),
        };
        if (0..values).any(|_| words.next().is_none()) {
            return Some(MISSING);
        }
    }
    None
}

/// A port's number, or an expression that haproxy evaluates for each check.
fn is_port(text: &str) -> bool {
    text.parse::<u16>().map_or_else(|_| text.contains('('), |port| port > 0)
}

fn is_codes(text: &str) -> bool {
    let code = |text: &str| text.parse::<u16>().is_ok_and(|code| (1..1000).contains(&code));
    text.split(',').all(|part| part.split_once('-').map_or_else(|| code(part), |(a, b)| code(a) && code(b)))
}

fn is_hex(text: &str) -> bool {
    !text.is_empty() && text.len().is_multiple_of(2) && text.bytes().all(|b| b.is_ascii_hexdigit())
}
