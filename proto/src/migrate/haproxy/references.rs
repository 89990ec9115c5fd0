//! What haproxy 2.6 refuses since the rest of the file does not go with it, as `haproxy -c` says.

use super::super::notes::FileReport;
use super::super::notes::LineOutcome::Wrong;
use super::super::words::WordLine;
use super::sections::{Section, plain};

/// Finds servers that name what is nowhere, and checks by TLS that nobody says how to verify.
pub(super) fn check(sections: &[Section], account: &mut FileReport) {
    let global = sections.iter().filter(|section| section.kind() == "global").flat_map(|one| &one.lines);
    let unverified = global.rev().find(|line| line.word(0) == "ssl-server-verify");
    let unverified = unverified.is_some_and(|line| line.word(1) == "none");
    let mut defaults: Option<&Section> = None;
    for section in sections {
        if section.kind() == "defaults" {
            defaults = Some(section);
        }
        let templates = || {
            let all = defaults.into_iter().chain([section]).flat_map(|one| &one.lines);
            all.filter(|line| line.word(0) == "default-server")
        };
        for line in section.lines.iter().filter(|line| line.word(0) == "server") {
            let says = |word: &str| has(line, word) || templates().any(|line| has(line, word));
            if says("check-ssl") && !unverified && !says("verify") && !says("ca-file") {
                let reason = "haproxy refuses it without ca-file or \"verify none\"";
                account.add(line.number, "check-ssl", Wrong, reason);
            }
            if let Some(tracked) = value(line, "track")
                && let Some(reason) = untracked(tracked, section, sections)
            {
                account.add(line.number, &format!("track {tracked}"), Wrong, reason);
            }
            if let Some(name) = value(line, "resolvers")
                && !sections.iter().any(|one| one.kind() == "resolvers" && one.name() == name)
            {
                let reason = format!("there is no section \"resolvers {}\"", plain(name));
                account.add(line.number, &format!("resolvers {name}"), Wrong, reason);
            }
        }
    }
}

/// Whether a server, or what holds for all, has this parameter.
fn has(line: &WordLine, word: &str) -> bool {
    line.words.iter().skip(1).any(|one| one == word)
}

/// The word behind a parameter of a server.
fn value<'a>(line: &'a WordLine, word: &str) -> Option<&'a str> {
    let at = line.words.iter().skip(3).position(|one| one == word)?;
    line.words.get(at + 4).map(String::as_str)
}

/// Why nothing can be tracked by this name: `SERVER` of the same section, or `SECTION/SERVER`.
fn untracked(name: &str, own: &Section, sections: &[Section]) -> Option<String> {
    let (section, server) = match name.split_once('/') {
        None => (Some(own), name),
        Some((section, server)) => {
            (sections.iter().find(|one| one.serves() && one.name() == section), server)
        }
    };
    let found = section.is_some_and(|section| {
        section.lines.iter().any(|line| line.word(0) == "server" && line.word(1) == server)
    });
    (!found).then(|| format!("there is no server \"{}\"", plain(name)))
}
