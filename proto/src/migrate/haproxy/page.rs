//! haproxy's own page, and what of it becomes `[web]`.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use super::super::notes::FileReport;
use super::super::notes::LineOutcome::{Automatic, Kept, Needless, NotDone, Wrong};
use super::super::words::WordLine;
use super::bind;
use super::sections::{Section, is_exporter};

/// What becomes `[web]`.
#[derive(Debug, Default)]
pub(in super::super) struct Page {
    /// Where it listens; empty: where it does by default.
    pub(in super::super) listen: Vec<SocketAddr>,
    /// Who may see it.
    pub(in super::super) login: Option<(String, String)>,
    /// haproxy's own exporter was asked.
    pub(in super::super) exporter: bool,
    /// Its line.
    pub(super) line: usize,
}

/// Reads it.
pub(super) fn read(section: &Section, page: &mut Page, account: &mut FileReport) {
    account.add(
        section.head.number,
        &section.head.shown(),
        Automatic,
        "the agent's page shows the whole cluster",
    );
    page.line = section.head.number;
    let mut listen: Vec<(SocketAddr, usize)> = Vec::new();
    for line in &section.lines {
        let mut note = |verdict, reason: &str| account.add(line.number, &line.shown(), verdict, reason);
        match (line.word(0), line.word(1)) {
            ("bind", _) => listen.extend(bind::page(line, account).into_iter().map(|one| (one, line.number))),
            ("stats", "auth") => login(line, page, account),
            ("stats", "admin") => note(Automatic, "with a user and a password, the page has buttons"),
            ("stats", "refresh") => note(Automatic, "the page is live, within a second of a change"),
            ("stats", "uri") => note(Automatic, "the page is at /, haproxy's CSV at /stats;csv"),
            ("stats", _) => {
                note(Automatic, "the page is always on, and every node's shows the whole cluster")
            }
            _ if is_exporter(line) => {
                page.exporter = true;
                note(Kept, "/metrics, also with haproxy's names: web.haproxy-metrics = true");
            }
            ("mode" | "timeout" | "log" | "option" | "maxconn" | "no" | "monitor-uri", _) => {
                note(Needless, "the page has its own limits");
            }
            _ => note(NotDone, "the page has no rules; a user and a password, or a token, restrict it"),
        }
    }
    // Who may see it can stand below where it listens.
    for (address, line) in listen {
        let shown = format!("bind {address}");
        if page.login.is_some() || address.ip().is_loopback() {
            account.add(line, &shown, Kept, format!("web.listen = {address}"));
            page.listen.push(address);
        } else {
            let here = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), address.port());
            let reason = format!(
                "it would be visible without a login: it stays on {here} until web.user and web.password, \
                 or web.token, are set"
            );
            account.add(line, &shown, NotDone, reason);
            page.listen.push(here);
        }
    }
    page.listen.sort_unstable();
    page.listen.dedup();
}

/// `stats auth USER:PASSWORD`, which is never shown.
fn login(line: &WordLine, page: &mut Page, account: &mut FileReport) {
    let shown = line.shown();
    let (verdict, reason) = match line.word(2).split_once(':') {
        _ if page.login.is_some() => (NotDone, "the page has one user, web.user, and a read-only token"),
        None => (Wrong, "not a user and a password; write stats auth USER:PASSWORD"),
        Some((user, _)) if user.is_empty() || user.len() > 64 || user.contains(char::is_control) => {
            (Wrong, "not a user and a password; write stats auth USER:PASSWORD")
        }
        Some((_, password))
            if password.contains(char::is_control) || !(8..=200).contains(&password.len()) =>
        {
            (NotDone, "web.password needs at least 8 characters; choose a longer one")
        }
        Some((user, password)) => {
            page.login = Some((user.to_owned(), password.to_owned()));
            (Kept, "web.user and web.password; keep the file at mode 0600")
        }
    };
    account.add(line.number, &shown, verdict, reason);
}
