//! How servers were checked.

use super::super::notes::FileReport;
use super::super::notes::LineOutcome::{self, Automatic, Kept, NotDone};
use super::super::words::WordLine;
use super::expect;
use super::proxy::{LOOKED_AT, Place, Proxy, put};
use crate::config::{check_server_name, quoted};
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

/// What a line about checks says.
#[derive(Default)]
struct CheckLine {
    path: Option<String>,
    expect: Option<Expect>,
    /// What of it is not done.
    told: Option<(LineOutcome, String)>,
}

/// A line about checks. An apiserver's are known better than any file says.
pub(super) fn read(line: &WordLine, place: &Place<'_>, proxy: &mut Proxy, account: &mut FileReport) {
    let said = said(line, proxy);
    let shown = line.shown();
    if place.api {
        return account.add(line.number, &shown, Automatic, OWN_CHECK);
    }
    let mut quiet = said.path.is_none() && said.expect.is_none();
    if let Some(path) = said.path {
        let good = path.starts_with('/') && path.len() <= 1024 && path.bytes().all(|b| b.is_ascii_graphic());
        if good {
            put(line, &shown, "check.path", quoted(&path), ", requested by GET", proxy, account);
        } else {
            account.add(line.number, &shown, NotDone, "not a valid check.path");
        }
    }
    if let Some(expect) = said.expect {
        put(line, &shown, "check.expect", quoted(&expect.to_string()), "", proxy, account);
    }
    if let Some((verdict, reason)) = said.told {
        account.add(line.number, &shown, verdict, reason);
        quiet = false;
    }
    if quiet {
        let kind = if proxy.asks.is_some() { "check.kind is http or https" } else { "check.kind is tcp" };
        account.add(line.number, &shown, Kept, if place.defaults { LOOKED_AT } else { kind });
    }
}

fn said(line: &WordLine, proxy: &mut Proxy) -> CheckLine {
    let mut said = CheckLine::default();
    let after = |word: &str| {
        let at = line.words.iter().position(|one| one == word)?;
        line.words.get(at + 1).cloned()
    };
    let headers = || Some((NotDone, "a check sends only GET and Host".to_owned()));
    match (line.word(0), line.word(1)) {
        ("option", "httpchk") => {
            proxy.asks = Some(line.number);
            // With one word it is the path, with two the method stands before it.
            let at = if line.words.len() > 3 { 3 } else { 2 };
            said.path = line.words.get(at).cloned();
            // Headers were once written behind the version.
            if line.words.get(4).is_some_and(|version| version.len() > "HTTP/1.1".len()) {
                said.told = headers();
            }
        }
        // The last one says how it is checked, whatever `defaults` said.
        ("option", "tcp-check" | "ssl-hello-chk") => proxy.asks = None,
        ("tcp-check" | "http-check", "connect") => {
            proxy.asks_tls |= line.word(0) == "http-check" && line.words.iter().any(|word| word == "ssl");
            match after("port").map(|port| port.parse()) {
                Some(Ok(port)) => proxy.asked_port = Some(port),
                Some(Err(_)) => {
                    said.told = Some((NotDone, "a check has one port, not an expression".to_owned()))
                }
                None => {}
            }
        }
        ("http-check", "send") => {
            said.path = after("uri");
            if ["hdr", "body"].iter().any(|word| after(word).is_some()) {
                said.told = headers();
            }
        }
        ("http-check", "expect") => match expect::read(line.words.get(2..).unwrap_or_default()) {
            Ok(codes) => said.expect = Some(codes),
            Err(told) => said.told = Some(told),
        },
        (first, _) => {
            if first == "option" {
                proxy.asks = None;
            }
            said.told = Some((NotDone, "a check is tcp, http or https, not a script".to_owned()));
        }
    }
    said
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
        _ => match check_server_name(value) {
            Ok(name) => put(line, &shown, "check.server-name", quoted(&name), "", proxy, account),
            Err(error) => account.add(line.number, &shown, NotDone, error.to_string()),
        },
    }
}
