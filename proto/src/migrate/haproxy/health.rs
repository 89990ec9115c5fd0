//! A listener of its own that answers load balancers by `monitor-uri`, which becomes `[health]`.

use std::net::SocketAddr;

use super::super::notes::FileReport;
use super::super::notes::LineOutcome::{Automatic, Kept, Needless, NotDone};
use super::bind;
use super::sections::Section;

/// The path that is asked for the agent as a whole.
const PATH: &str = "/";

/// Reads it, and returns where it listens with the lines that say so.
pub(super) fn read(section: &Section, account: &mut FileReport) -> Vec<(SocketAddr, usize)> {
    account.add(section.head.number, &section.head.shown(), Kept, "[health]: 200 or 503 for load balancers");
    let mut listen = Vec::new();
    for line in &section.lines {
        let mut note = |verdict, reason: &str| account.add(line.number, &line.shown(), verdict, reason);
        match (line.word(0), line.word(1)) {
            ("bind", _) if bind::ends_tls(line) => note(NotDone, "it answers by plain HTTP alone"),
            ("bind", part) => match bind::place(part, line.words.iter().any(|word| word == "v6only")) {
                Ok(places) => {
                    note(Kept, "health.listen");
                    listen.extend(places.into_iter().map(|place| (place, line.number)));
                }
                Err((verdict, reason)) => note(verdict, &reason),
            },
            ("monitor-uri", PATH) => note(Kept, "/ is 200 while the agent serves all that it should"),
            ("monitor-uri", _) => {
                note(NotDone, "its path is / here, or /NAME for a service; tell the load balancer");
            }
            ("monitor", _) => note(Automatic, "503 while the agent does not serve all that it should"),
            ("acl", _) => note(Needless, "it counts where a rule uses it"),
            ("mode" | "timeout" | "log" | "option" | "maxconn" | "no" | "description" | "id", _) => {
                note(Needless, "it has its own limits");
            }
            _ => note(NotDone, "it answers load balancers and nothing else"),
        }
    }
    listen
}
