//! What haproxy 2.6 refuses of a line although its first words are right, as `haproxy -c` says.

use super::super::words::{WordLine, milliseconds};

/// Options that stand alone.
const BARE_OPTIONS: [&str; 17] = [
    "abortonclose",
    "allbackups",
    "clitcpka",
    "contstats",
    "dontlog-normal",
    "dontlognull",
    "log-health-checks",
    "log-separate-errors",
    "nolinger",
    "socket-stats",
    "splice-auto",
    "srvtcpka",
    "ssl-hello-chk",
    "tcp-check",
    "tcpka",
    "tcplog",
    "transparent",
];

/// Parameters of servers that take one of a few words.
const CHOICES: [(&str, &[&str]); 5] = [
    ("on-marked-down", &["shutdown-sessions"]),
    ("on-marked-up", &["shutdown-backup-sessions"]),
    ("on-error", &["fastinter", "fail-check", "sudden-death", "mark-down"]),
    ("observe", &["none", "layer4", "layer7"]),
    ("verify", &["none", "required"]),
];

/// What may follow `stats` in a proxy.
const STATS: [&str; 13] = [
    "admin",
    "auth",
    "enable",
    "hide-version",
    "http-request",
    "realm",
    "refresh",
    "scope",
    "show-desc",
    "show-legends",
    "show-modules",
    "show-node",
    "uri",
];

const DURATION: &str = "not a duration; write it as 2s, or 500 for 500 ms";
const TOO_MANY: &str = "haproxy takes no further word here";

/// Why haproxy refuses a line of `defaults`, `frontend`, `backend` or `listen`.
pub(super) fn refused(line: &WordLine) -> Option<&'static str> {
    let words = line.words.len();
    let number = || line.word(1).parse::<u32>();
    match (line.word(0), line.word(1)) {
        ("timeout", _) if words > 3 => Some(TOO_MANY),
        ("option", option) if words > 2 && BARE_OPTIONS.contains(&option) => Some(TOO_MANY),
        ("option", "httpchk") if words > 5 => Some(TOO_MANY),
        ("retries" | "fullconn" | "backlog", _) if number().is_err() => Some("not a whole number"),
        ("id", _) if number().is_ok_and(|id| id > 0) => None,
        ("id", _) => Some("not a whole number from 1"),
        ("log", "global") => None,
        ("log", _) if words < 3 => Some("it needs an address and a facility, or global"),
        ("log-tag" | "description" | "monitor-uri" | "monitor-net" | "errorfile" | "cookie", "") => {
            Some("a word is missing behind it")
        }
        ("acl", _) if words < 3 => Some("it needs a name and a condition"),
        ("default_backend" | "use_backend", "") => Some("the name of a backend is missing"),
        ("tcp-request", "inspect-delay") if milliseconds(line.word(2)).is_none() => Some(DURATION),
        ("clitcpka-idle" | "clitcpka-intvl" | "srvtcpka-idle" | "srvtcpka-intvl", time)
            if milliseconds(time).is_none() =>
        {
            Some(DURATION)
        }
        ("clitcpka-cnt" | "srvtcpka-cnt", _) if number().is_err() => Some("not a whole number"),
        ("server-template", _) if !is_range(line.word(2)) => Some("the number of servers is missing"),
        ("http-check", "send") => {
            let known = ["comment", "meth", "uri", "uri-lf", "ver", "hdr", "body", "body-lf"];
            let known = line.words.get(2).is_none_or(|word| known.contains(&word.as_str())) && words != 3;
            (!known).then_some("not what http-check send takes: meth, uri, ver, hdr or body")
        }
        ("http-check" | "tcp-check", "connect") => refused_connect(line),
        ("stats", word) if !STATS.contains(&word) => Some("not what stats takes"),
        ("stats", "auth") if !line.word(2).contains(':') => {
            Some("not a user and a password; write stats auth USER:PASSWORD")
        }
        ("http-check", "expect") if words < 4 => Some("what is expected is missing, such as status 200"),
        _ => None,
    }
}

/// Why haproxy refuses where a check connects to.
fn refused_connect(line: &WordLine) -> Option<&'static str> {
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
                return Some("a word is missing at its end");
            }
            "addr" | "sni" | "alpn" | "via-socks4" | "proto" => {}
            _ => return Some("not what connect takes: port, addr, ssl, sni or alpn"),
        }
    }
    None
}

/// A port's number, or an expression that haproxy evaluates for each check.
fn is_port(text: &str) -> bool {
    text.parse::<u16>().map_or_else(|_| text.contains('('), |port| port > 0)
}

/// `3` or `1-3`.
fn is_range(text: &str) -> bool {
    text.split('-').all(|part| part.parse::<u32>().is_ok())
}

/// Why haproxy refuses a parameter of a server.
pub(super) fn refused_parameter(word: &str, value: &str) -> Option<String> {
    match word {
        "error-limit" if !value.parse::<u32>().is_ok_and(|limit| limit > 0) => {
            return Some("not a whole number from 1".to_owned());
        }
        "tcp-ut" if milliseconds(value).is_none() => return Some(DURATION.to_owned()),
        "agent-port" if !value.parse::<u16>().is_ok_and(|port| port > 0) => {
            return Some("not a port from 1 to 65535".to_owned());
        }
        _ => {}
    }
    let (_, choices) = CHOICES.iter().find(|(known, _)| *known == word)?;
    (!choices.contains(&value)).then(|| format!("it takes {}", choices.join(", ")))
}

/// Whether a host looks like an address and is none.
pub(super) fn is_no_address(host: &str) -> bool {
    let numbers = !host.is_empty() && host.bytes().all(|b| b.is_ascii_digit() || b == b'.');
    (numbers || host.contains(':')) && host.parse::<std::net::IpAddr>().is_err()
}
