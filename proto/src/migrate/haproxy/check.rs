//! How servers were checked.

use super::super::notes::FileReport;
use super::super::notes::LineOutcome::{self, Automatic, Kept, NotDone, Wrong};
use super::super::words::WordLine;
use super::proxy::{LOOKED_AT, Place, Proxy, put};
use crate::config::quoted;
use crate::service::Expect;

const OWN_CHECK: &str = "each master checks GET /readyz of its own apiserver with credentials it finds; 401 means alive, not ready";

/// Whether a line is about checks.
pub(super) fn is_check(line: &WordLine) -> bool {
    let protocols = ["mysql-check", "pgsql-check", "redis-check", "ldap-check", "smtpchk", "spop-check"];
    match line.word(0) {
        "http-check" | "tcp-check" => true,
        "option" => {
            ["httpchk", "tcp-check", "ssl-hello-chk"].contains(&line.word(1))
                || protocols.contains(&line.word(1))
        }
        _ => false,
    }
}

/// A line about checks. An apiserver's are known better than any file says.
pub(super) fn read(line: &WordLine, place: &Place<'_>, proxy: &mut Proxy, account: &mut FileReport) {
    let mut path = None;
    let mut expect = None;
    let mut told: Option<(LineOutcome, String)> = None;
    let after = |word: &str| {
        let at = line.words.iter().position(|one| one == word)?;
        line.words.get(at + 1).cloned()
    };
    match (line.word(0), line.word(1)) {
        ("option", "httpchk") => {
            proxy.asks = true;
            // With one word it is the path, with two the method stands before it.
            let at = if line.words.len() > 3 { 3 } else { 2 };
            path = line.words.get(at).cloned();
        }
        ("option", "tcp-check" | "ssl-hello-chk") | ("tcp-check", "connect") => {}
        ("http-check", "connect") => proxy.asks_tls |= line.words.iter().any(|word| word == "ssl"),
        ("http-check", "send") => {
            path = after("uri");
            if ["hdr", "body"].iter().any(|word| after(word).is_some()) {
                told = Some((NotDone, "a check sends only GET and Host".to_owned()));
            }
        }
        ("http-check", "expect") => match line.words.get(2).map(String::as_str) {
            Some("status") => expect = line.words.get(3).cloned(),
            _ => told = Some((NotDone, "a check evaluates only the status; see check.expect".to_owned())),
        },
        _ => told = Some((NotDone, "a check is tcp, http or https, not a script".to_owned())),
    }
    let is_check_of_http = proxy.asks || line.word(0) == "http-check";
    let shown = line.shown();
    if place.api {
        return account.add(line.number, &shown, Automatic, OWN_CHECK);
    }
    if let Some((verdict, reason)) = told {
        account.add(line.number, &shown, verdict, reason);
    } else if let Some(codes) = expect {
        match codes.parse::<Expect>() {
            Ok(_) => put(line, &shown, "check.expect", quoted(&codes), "", proxy, account),
            Err(error) => account.add(line.number, &shown, Wrong, error.to_string()),
        }
    } else if let Some(path) = path {
        let good = path.starts_with('/') && path.len() <= 1024 && path.bytes().all(|b| b.is_ascii_graphic());
        if good {
            put(line, &shown, "check.path", quoted(&path), ", requested by GET", proxy, account);
        } else {
            account.add(line.number, &shown, NotDone, "not a valid check.path");
        }
    } else {
        let kind = if is_check_of_http { "check.kind is http or https" } else { "check.kind is tcp" };
        account.add(line.number, &shown, Kept, if place.defaults { LOOKED_AT } else { kind });
    }
}

pub(super) fn verify(line: &WordLine, at: usize, place: &Place<'_>, account: &mut FileReport) {
    let shown = format!("verify {}", line.word(at + 1));
    if place.api && line.word(0) != "server" {
        let reason = "a master's check verifies the certificate if it finds the cluster's CA";
        account.add(line.number, &shown, Automatic, reason);
    }
}

/// What a check needs for TLS: the same files, unless they are found by themselves.
pub(super) fn tls(
    line: &WordLine,
    at: usize,
    word: &str,
    place: &Place<'_>,
    proxy: &mut Proxy,
    account: &mut FileReport,
) {
    let value = line.word(at + 1);
    let shown = format!("{word} {value}");
    let absolute = value.starts_with('/');
    match word {
        _ if place.api && line.word(0) == "server" => {}
        _ if place.api => {
            let reason = "the CA and a certificate of k3s, RKE2 or kubeadm are found automatically";
            account.add(line.number, &shown, Automatic, reason);
        }
        "ca-file" if absolute => put(line, &shown, "check.ca-file", quoted(value), "", proxy, account),
        "crt" if absolute => put(line, &shown, "check.cert-file", quoted(value), "", proxy, account),
        "ca-file" | "crt" => {
            account.add(line.number, &shown, NotDone, "not an absolute path; it must begin with /")
        }
        _ => put(line, &shown, "check.server-name", quoted(value), "", proxy, account),
    }
}
