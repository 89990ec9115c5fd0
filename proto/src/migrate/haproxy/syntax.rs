//! What haproxy 2.6 refuses of a line although its first words are right, as `haproxy -c` says.

use super::super::words::{WordLine, milliseconds};
use super::check_syntax;

/// Options that stand alone.
const BARE_OPTIONS: [&str; 19] = [
    "abortonclose",
    "allbackups",
    "clitcpka",
    "contstats",
    "dontlog-normal",
    "dontlognull",
    "ldap-check",
    "log-health-checks",
    "log-separate-errors",
    "nolinger",
    "redis-check",
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
const CHOICES: [(&str, &[&str]); 6] = [
    ("on-marked-down", &["shutdown-sessions"]),
    ("on-marked-up", &["shutdown-backup-sessions"]),
    ("on-error", &["fastinter", "fail-check", "sudden-death", "mark-down"]),
    ("observe", &["none", "layer4", "layer7"]),
    ("verify", &["none", "required"]),
    ("resolve-prefer", &["ipv4", "ipv6"]),
];

/// Where a log goes, and from which level on.
const FACILITIES: [&str; 24] = [
    "audit", "auth", "auth2", "cron", "cron2", "daemon", "ftp", "kern", "local0", "local1", "local2",
    "local3", "local4", "local5", "local6", "local7", "lpr", "mail", "news", "ntp", "security", "syslog",
    "user", "uucp",
];
const LEVELS: [&str; 8] = ["emerg", "alert", "crit", "err", "warning", "notice", "info", "debug"];

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
        ("log", _) => refused_log(line),
        ("option", "mysql-check" | "pgsql-check") => check_syntax::refused(line),
        ("option", "httplog") if !["", "clf"].contains(&line.word(2)) => {
            Some("option httplog takes clf, or nothing")
        }
        ("option", "forwardfor") if !["", "except", "header", "if-none"].contains(&line.word(2)) => {
            Some("option forwardfor takes except, header or if-none")
        }
        ("errorfile" | "errorloc" | "errorloc302" | "errorloc303", _) if words < 3 => {
            Some("it needs a status and what is sent instead")
        }
        ("enabled" | "disabled", word) if !word.is_empty() => Some(TOO_MANY),
        ("max-keep-alive-queue", _) if number().is_err() => Some("not a whole number"),
        ("load-server-state-from-file", word) if !["global", "local", "none"].contains(&word) => {
            Some("it takes global, local or none")
        }
        ("acl", name) if !is_acl_name(name) => Some("a name has letters, digits and - _ . : alone"),
        ("monitor", "fail") if !is_conditional(line) => Some("it needs if or unless, and a condition"),
        ("stats", "admin") if !is_conditional(line) => Some("it needs if or unless, and a condition"),
        ("stats", "uri" | "realm" | "scope") if line.word(2).is_empty() => {
            Some("a word is missing behind it")
        }
        ("stats", "refresh") if milliseconds(line.word(2)).is_none() => Some(DURATION),
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
        ("server-template", _) if words < 4 => Some("it needs a prefix, a number and an address"),
        ("server-template", _) if !is_range(line.word(2)) => Some("the number of servers is missing"),
        ("http-check" | "tcp-check", _) => check_syntax::refused(line),
        ("stats", word) if !STATS.contains(&word) => Some("not what stats takes"),
        ("stats", "auth") if !line.word(2).contains(':') => {
            Some("not a user and a password; write stats auth USER:PASSWORD")
        }
        _ => None,
    }
}

/// Why haproxy refuses a line that says where is logged: an address, parameters, a facility and up to two levels.
fn refused_log(line: &WordLine) -> Option<&'static str> {
    let mut at = 2;
    while ["len", "format", "sample", "ring"].contains(&line.word(at)) {
        at += 2;
    }
    let levels = line.words.iter().skip(at + 1);
    if !FACILITIES.contains(&line.word(at)) {
        Some("not a facility, such as local0 or daemon")
    } else if levels.into_iter().any(|level| !LEVELS.contains(&level.as_str())) {
        Some("not a level, such as notice or info")
    } else {
        None
    }
}

fn is_acl_name(name: &str) -> bool {
    name.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_.:".contains(&b))
}

fn is_conditional(line: &WordLine) -> bool {
    let [.., _, last] = line.words.as_slice() else { return false };
    line.words.iter().skip(2).any(|word| word == "if" || word == "unless") && last != "if" && last != "unless"
}

/// Why haproxy refuses a parameter of a bind.
pub(super) fn refused_bind_parameter(word: &str, value: &str) -> Option<&'static str> {
    let numbers = |text: &str| text.split(['-', ',', '/', ':']).all(|part| part.parse::<u32>().is_ok());
    match word {
        "mss" => (!value.trim_start_matches('-').parse::<u16>().is_ok_and(|mss| mss > 0))
            .then_some("not a segment size in bytes"),
        "tcp-ut" => milliseconds(value).is_none().then_some(DURATION),
        "process" | "thread" => {
            let words = ["all", "odd", "even"];
            let good = value.split('/').all(|part| words.contains(&part) || numbers(part));
            (!good).then_some("not a number or a range, such as 1 or 1-4")
        }
        "id" => (!value.parse::<u32>().is_ok_and(|id| id > 0)).then_some("not a whole number from 1"),
        "level" => {
            (!["user", "operator", "admin"].contains(&value)).then_some("it takes user, operator or admin")
        }
        _ => None,
    }
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
        "fastinter" | "downinter" if milliseconds(value).is_some_and(|ms| ms == 0) => {
            return Some("not more than nothing".to_owned());
        }
        "id" if !value.parse::<u32>().is_ok_and(|id| id > 0) => {
            return Some("not a whole number from 1".to_owned());
        }
        "init-addr" if !value.split(',').all(is_address_method) => {
            return Some("it takes last, libc, none and an address, with commas".to_owned());
        }
        "check-sni" | "sni" | "ca-file" | "crt" | "verifyhost" | "cookie" if value.is_empty() => {
            return Some("a word is missing behind it".to_owned());
        }
        "agent-port" if !value.parse::<u16>().is_ok_and(|port| port > 0) => {
            return Some("not a port from 1 to 65535".to_owned());
        }
        _ => {}
    }
    let (_, choices) = CHOICES.iter().find(|(known, _)| *known == word)?;
    (!choices.contains(&value)).then(|| format!("it takes {}", choices.join(", ")))
}

fn is_address_method(text: &str) -> bool {
    ["last", "libc", "none"].contains(&text) || text.parse::<std::net::IpAddr>().is_ok()
}

/// Whether a host looks like an address and is none.
pub(super) fn is_no_address(host: &str) -> bool {
    let numbers = !host.is_empty() && host.bytes().all(|b| b.is_ascii_digit() || b == b'.');
    (numbers || host.contains(':')) && host.parse::<std::net::IpAddr>().is_err()
}
