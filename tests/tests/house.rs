//! The rules of the house. Each names the file, the line and itself where it is broken.

use std::fmt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

/// Most lines of code in a file: what can be read in one sitting.
const MAX_CODE: usize = 450;

/// Modules of the agent that do one thing each and must not know each other; `app` puts them together. What
/// they stand on, and may know, is not in this list: `lifecycle`, `state`, `link` and `netlink`.
const FEATURES: [&str; 12] = [
    "reach",
    "gossip",
    "membership",
    "pulse",
    "check",
    "proxy",
    "vip",
    "control",
    "web",
    "events",
    "net",
    "doctor",
];

/// Those that know all.
const ASSEMBLERS: [&str; 3] = ["app", "cli", "main"];

/// A source file, its path from the root of the repository.
struct Source {
    path: PathBuf,
    text: String,
}

/// A rule that is broken.
#[derive(PartialEq, Eq)]
struct Breach {
    path: PathBuf,
    line: usize,
    rule: String,
}

impl fmt::Display for Breach {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}: {}", self.path.display(), self.line, self.rule)
    }
}

impl Source {
    fn breach(&self, line: usize, rule: impl Into<String>) -> Breach {
        Breach { path: self.path.clone(), line, rule: rule.into() }
    }

    /// Its lines, numbered from 1, without comments.
    fn code(&self) -> impl Iterator<Item = (usize, &str)> {
        self.text.lines().enumerate().map(|(i, line)| (i + 1, without_comment(line)))
    }

    /// The same up to the tests at its end; none of a file that has only tests.
    fn shipped(&self) -> impl Iterator<Item = (usize, &str)> {
        let only_tests = self.path.iter().any(|part| {
            let part = Path::new(part).file_stem().unwrap_or_default().to_string_lossy();
            part == "tests" || part.ends_with("_tests")
        });
        self.code().take_while(move |(_, line)| !only_tests && *line != "#[cfg(test)]")
    }

    /// The top-level module that it belongs to, below `under`.
    fn module(&self, under: &str) -> Option<String> {
        let below = self.path.strip_prefix(under).ok()?;
        let first = Path::new(below.components().next()?.as_os_str());
        let stem = first.file_stem()?.to_string_lossy();
        // `link_tests.rs` is the tests of `link`, in a file of their own.
        Some(stem.strip_suffix("_tests").unwrap_or(&stem).to_owned())
    }

    /// How many modules it lies below the crate's root.
    fn depth(&self, under: &str) -> usize {
        let below = self.path.strip_prefix(under).map_or(0, |path| path.components().count());
        if self.path.ends_with("mod.rs") { below - 1 } else { below }
    }

    /// The first segments of every path that begins at the crate's root, grouped ones too, by line.
    fn uses_of_crate(&self) -> Vec<(usize, String)> {
        let lines: Vec<(usize, &str)> = self.code().collect();
        let whole: String = lines.iter().flat_map(|(_, line)| [line, "\n"]).collect();
        let mut found = Vec::new();
        for (at, _) in whole.match_indices("crate::") {
            // `$crate::` and `my_crate::` are something else.
            if whole[..at].ends_with(|c: char| c == '$' || c == '_' || c.is_alphanumeric()) {
                continue;
            }
            let line = whole[..at].matches('\n').count() + 1;
            for name in first_segments(&whole[at + "crate::".len()..]) {
                found.push((line, name));
            }
        }
        found
    }
}

fn without_comment(line: &str) -> &str {
    let code = match line.find("//") {
        // An address in a text is no comment.
        Some(at) if !line[..at].ends_with(':') => &line[..at],
        _ => line,
    };
    code.trim_end()
}

/// Of `a::b` only `a`; of `{a::b, c}` `a` and `c`.
fn first_segments(path: &str) -> Vec<String> {
    let segment = |text: &str| -> String {
        text.trim_start().chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect()
    };
    let Some(group) = path.strip_prefix('{') else { return vec![segment(path)] };
    let (mut names, mut level, mut start) = (Vec::new(), 0, 0);
    for (at, c) in group.char_indices() {
        match c {
            '{' => level += 1,
            '}' if level == 0 => {
                names.push(segment(&group[start..at]));
                break;
            }
            '}' => level -= 1,
            ',' if level == 0 => {
                names.push(segment(&group[start..at]));
                start = at + 1;
            }
            _ => {}
        }
    }
    names.retain(|name| !name.is_empty());
    names
}

/// Files stay small enough to be read.
fn size(source: &Source) -> Vec<Breach> {
    let code = source.shipped().filter(|(_, line)| !line.trim().is_empty());
    match code.enumerate().nth(MAX_CODE) {
        Some((_, (line, _))) => {
            vec![source.breach(
                line,
                format!("more than {MAX_CODE} lines of code: split the module into a directory"),
            )]
        }
        None => Vec::new(),
    }
}

/// Feature modules do not know each other.
fn features(source: &Source) -> Vec<Breach> {
    let root = "agent/src";
    let Some(own) = source.module(root).filter(|own| !ASSEMBLERS.contains(&own.as_str())) else {
        return Vec::new();
    };
    let mut used = source.uses_of_crate();
    let up = "super::".repeat(source.depth(root));
    for (line, code) in source.shipped() {
        let from_root = code.split(&up).skip(1).filter(|path| !path.starts_with("super::"));
        used.extend(from_root.flat_map(first_segments).map(|name| (line, name)));
    }
    let others = used.into_iter().filter(|(_, name)| {
        *name != own && (FEATURES.contains(&name.as_str()) || ASSEMBLERS.contains(&name.as_str()))
    });
    others
        .map(|(line, name)| {
            source.breach(line, format!("{own} must not know {name}: put them together in app"))
        })
        .collect()
}

/// Every task belongs to the life of the process, and every queue has a bound.
fn tasks_and_queues(source: &Source) -> Vec<Breach> {
    if source.module("agent/src").is_none_or(|own| own == "lifecycle") {
        return Vec::new();
    }
    let rules = [
        ("tokio::spawn(", "a task that nobody waits for: use Life::spawn"),
        ("unbounded_channel", "a queue without a bound"),
        ("std::sync::mpsc::channel(", "a queue without a bound"),
    ];
    words(source, &rules)
}

/// A lock that is read in a field of a literal is held to the end of the whole literal, and one that is read
/// again while someone waits to write it never comes: the thread stands still, and soon all of them do.
fn guards_in_literals(source: &Source) -> Vec<Breach> {
    if source.module("agent/src").is_none() {
        return Vec::new();
    }
    let is_field = |code: &str| {
        let Some((name, value)) = code.trim_start().split_once(": ") else { return false };
        let Some((before, _)) = value.split_once(".borrow()") else { return false };
        // In a closure it is held while that runs, and no longer.
        name.bytes().all(|b| b.is_ascii_lowercase() || b == b'_') && !before.contains('|')
    };
    let held = source.shipped().filter(|(_, code)| is_field(code));
    held.map(|(line, _)| {
        source.breach(line, ".borrow() is held to the end of the literal: take the value out before it")
    })
    .collect()
}

/// A reason is shown and nothing else: nothing may be decided by its words. Its type has no comparison and
/// no access as text, so what is left is to make a text of it and look into that.
fn reasons_decide_nothing(source: &Source) -> Vec<Breach> {
    if source.path.ends_with("proto/src/cause.rs") {
        return Vec::new();
    }
    const TEXTS: [&str; 4] = ["reason", "reason()", "detail", "fix"];
    const LOOKS: [&str; 12] = [
        "contains(",
        "starts_with(",
        "ends_with(",
        "find(",
        "rfind(",
        "split(",
        "split_once(",
        "strip_prefix(",
        "strip_suffix(",
        "eq(",
        "matches(",
        "parse",
    ];
    // Chains are broken over lines, so that a statement is looked at as a whole.
    let mut statement = (0, String::new());
    let mut breaches = Vec::new();
    for (line, code) in source.shipped() {
        if statement.1.is_empty() {
            statement.0 = line;
        }
        statement.1.push_str(code.trim());
        if !code.trim_end().ends_with([';', '{', '}', ',']) {
            continue;
        }
        let (begins, text) = std::mem::take(&mut statement);
        let looked_into = TEXTS.iter().any(|name| {
            let call = format!("{name}.to_string()");
            text.match_indices(&call).any(|(at, found)| {
                let rest = text[at + found.len()..].trim_start();
                let compared = rest.starts_with("==") || rest.starts_with("!=");
                compared || LOOKS.iter().any(|look| rest.starts_with(&format!(".{look}")))
            })
        });
        let matched = text.starts_with("match ") && text.contains("reason") && text.contains(".to_string()");
        if looked_into || matched {
            breaches.push(source.breach(begins, "a reason is only shown: decide by its cause".to_owned()));
        }
    }
    breaches
}

/// An act that can fail says why by a type of its own: a text can only be shown, or taken apart.
fn errors_are_types(source: &Source) -> Vec<Breach> {
    if source.module("proto/src").or_else(|| source.module("agent/src")).is_none() {
        return Vec::new();
    }
    // Types are broken over lines, so that all of it is looked at as a whole.
    let mut begins = Vec::new();
    let mut whole = String::new();
    for (line, code) in source.shipped() {
        begins.push((whole.len(), line));
        whole.push_str(code);
        whole.push('\n');
    }
    let mut breaches = Vec::new();
    for (at, opening) in whole.match_indices("Result<") {
        let error = second_of(&whole[at + opening.len()..]);
        if error.is_some_and(|error| error == "String" || (error.starts_with('&') && error.ends_with("str")))
        {
            let line = begins.iter().rev().find(|(begin, _)| *begin <= at).map_or(1, |(_, line)| *line);
            breaches.push(source.breach(line, "an error is a type of its act, and not a text"));
        }
    }
    breaches
}

/// The last of two arguments of a type, of a text that begins after its `<`.
fn second_of(text: &str) -> Option<&str> {
    let (mut depth, mut comma, mut before) = (0_usize, None, ' ');
    for (at, c) in text.char_indices() {
        match c {
            '<' | '(' | '[' => depth += 1,
            // An arrow closes nothing.
            '>' if before == '-' => {}
            '>' if depth == 0 => return text.get(comma? + 1..at).map(|last| last.trim().trim_matches(',')),
            '>' | ')' | ']' => depth = depth.saturating_sub(1),
            ',' if depth == 0 && comma.is_none() => comma = Some(at),
            ';' | '{' if depth == 0 => return None,
            _ => {}
        }
        before = c;
    }
    None
}

/// The types of texts that are only shown stay without comparison and access: these lines would undo it.
fn reasons_stay_closed(source: &Source) -> Vec<Breach> {
    if !source.path.ends_with("proto/src/cause.rs") {
        return Vec::new();
    }
    let mut breaches = words(
        source,
        &[
            ("PartialEq for Reason", "a reason has no comparison"),
            ("Ord for Reason", "a reason has no order"),
            ("Hash for Reason", "a reason has no hash"),
            ("AsRef<str>", "a reason has no access as text"),
            ("Deref for", "a reason has no access as text"),
            ("Borrow<str>", "a reason has no access as text"),
            ("fn as_str", "a reason has no access as text"),
        ],
    );
    let mut derives = String::new();
    for (line, code) in source.shipped() {
        if code.trim_start().starts_with("#[derive") {
            derives = code.to_owned();
        } else if code.contains("struct Reason") {
            if derives.contains("Eq") || derives.contains("Ord") || derives.contains("Hash") {
                breaches.push(source.breach(line, "a reason has no comparison".to_owned()));
            }
        } else if !code.trim().is_empty() {
            derives.clear();
        }
    }
    breaches
}

/// The shipped lines that hold one of these, each with its rule.
fn words(source: &Source, rules: &[(&str, &str)]) -> Vec<Breach> {
    let mut breaches = Vec::new();
    for (line, code) in source.shipped() {
        for (word, rule) in rules {
            if code.contains(word) {
                breaches.push(source.breach(line, format!("{word}: {rule}")));
            }
        }
    }
    breaches
}

/// Each module of proto uses only those above it.
fn order_of_proto(source: &Source, order: &[String]) -> Vec<Breach> {
    let Some(own) = source.module("proto/src").filter(|own| own != "lib") else { return Vec::new() };
    let place = |name: &str| order.iter().position(|one| one == name);
    let Some(mine) = place(&own) else {
        return vec![source.breach(1, format!("{own} has no place in the list of lib.rs"))];
    };
    let below =
        source.uses_of_crate().into_iter().filter(|(_, name)| place(name).is_some_and(|at| at > mine));
    below
        .map(|(line, name)| {
            source.breach(line, format!("{own} uses {name}, which stands below it in lib.rs"))
        })
        .collect()
}

/// No socket, clock, task, file or randomness in proto, and no order that differs between two runs.
fn purity_of_proto(source: &Source) -> Vec<Breach> {
    if source.module("proto/src").is_none() {
        return Vec::new();
    }
    let rules = [
        ("TcpStream", "proto has no sockets"),
        ("TcpListener", "proto has no sockets"),
        ("UdpSocket", "proto has no sockets"),
        ("ToSocketAddrs", "proto resolves no names"),
        ("std::fs", "proto has no files"),
        ("std::env", "proto has no environment"),
        ("std::process", "proto has no processes"),
        ("std::thread", "proto has no threads"),
        ("Instant::now", "time is an argument: take a Moment"),
        ("SystemTime::now", "time is an argument: take a UnixMs"),
        ("SystemRandom", "random bytes are handed in"),
        ("HashMap", "iteration order differs between runs: use BTreeMap"),
        ("HashSet", "iteration order differs between runs: use BTreeSet"),
    ];
    words(source, &rules)
}

/// proto depends on nothing that does I/O.
fn dependencies_of_proto(manifest: &Source) -> Vec<Breach> {
    let forbidden = ["tokio", "chitchat", "rustls", "mio", "socket2", "rand", "getrandom"];
    let mut breaches = Vec::new();
    let mut dev = false;
    for (i, line) in manifest.text.lines().enumerate() {
        if line.starts_with('[') {
            dev = line.starts_with("[dev-dependencies");
        }
        let name = line.split(['=', '.', ' ']).next().unwrap_or_default();
        let table = line.strip_prefix("[dependencies.").and_then(|rest| rest.strip_suffix(']'));
        for one in [Some(name), table].into_iter().flatten() {
            if !dev && forbidden.contains(&one) {
                breaches.push(manifest.breach(i + 1, format!("proto must not depend on {one}")));
            }
        }
    }
    breaches
}

/// Words that belong to a workplace and not into the house; written in pieces, so that they are not here.
fn forbidden_words(source: &Source) -> Vec<Breach> {
    let prose = source.path.extension().is_some_and(|kind| kind == "md");
    let everywhere = [["TO", "DO"], ["FIX", "ME"], ["issue ", "#"], ["/wo", "rk/"]];
    let in_code = [["/tm", "p/"], ["/ho", "me/"]];
    let all = everywhere.iter().chain(in_code.iter().filter(|_| !prose));
    let mut breaches = Vec::new();
    for word in all.map(|halves| halves.concat()) {
        for (i, line) in source.text.lines().enumerate() {
            // A whole word: "mastodon" and "https://example.net/work/x" are none of ours.
            let whole = |(at, _): (usize, &str)| !line[..at].ends_with(|c: char| c.is_alphanumeric());
            if line.match_indices(&word).any(whole) {
                breaches.push(source.breach(i + 1, format!("\"{word}\" has no place in the house")));
            }
        }
    }
    breaches
}

/// Every text file of the repository below `dir`.
fn files(root: &Path, dir: &Path, found: &mut Vec<Source>) -> Result<()> {
    for entry in std::fs::read_dir(root.join(dir)).with_context(|| dir.display().to_string())? {
        let entry = entry?;
        let (name, kind) = (entry.file_name().to_string_lossy().into_owned(), entry.file_type()?);
        let path = dir.join(&name);
        if [".git", "target", "proptest-regressions"].contains(&name.as_str()) {
            continue;
        }
        if kind.is_dir() {
            files(root, &path, found)?;
        } else if kind.is_file() && name != "Cargo.lock" && name != "LICENSE" {
            // What is not text has no lines.
            if let Ok(text) = String::from_utf8(std::fs::read(root.join(&path))?) {
                found.push(Source { path, text });
            }
        }
    }
    Ok(())
}

/// The files of this repository; those of Rust in the first list.
fn repository() -> Result<(Vec<Source>, Vec<Source>)> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().context("the root of the repository")?;
    let mut all = Vec::new();
    files(root, Path::new(""), &mut all)?;
    Ok(all.into_iter().partition(|source| source.path.extension().is_some_and(|kind| kind == "rs")))
}

/// The modules of proto, in the order of lib.rs.
fn order(sources: &[Source]) -> Result<Vec<String>> {
    let lib = sources.iter().find(|source| source.path == Path::new("proto/src/lib.rs"));
    let names = lib.context("proto/src/lib.rs")?.code().filter_map(|(_, line)| {
        Some(line.trim().trim_start_matches("pub ").strip_prefix("mod ")?.strip_suffix(';')?.to_owned())
    });
    Ok(names.collect())
}

#[test]
fn the_rules_of_the_house_are_kept() -> Result<()> {
    let (rust, other) = repository()?;
    let order = order(&rust)?;
    assert!(order.len() > 5 && rust.len() > 20, "the files were not found");
    let mut breaches = Vec::new();
    for source in &rust {
        if !source.path.starts_with("tests") {
            breaches.extend(size(source));
        }
        breaches.extend(features(source));
        breaches.extend(tasks_and_queues(source));
        breaches.extend(guards_in_literals(source));
        breaches.extend(order_of_proto(source, &order));
        breaches.extend(purity_of_proto(source));
        breaches.extend(reasons_decide_nothing(source));
        breaches.extend(reasons_stay_closed(source));
        breaches.extend(errors_are_types(source));
    }
    for source in &other {
        if source.path == Path::new("proto/Cargo.toml") {
            breaches.extend(dependencies_of_proto(source));
        }
    }
    breaches.extend(rust.iter().chain(&other).flat_map(forbidden_words));
    let text: Vec<String> = breaches.iter().map(Breach::to_string).collect();
    assert!(breaches.is_empty(), "{} rules are broken:\n{}", text.len(), text.join("\n"));
    Ok(())
}

/// What a rule says of a file.
fn said(path: &str, text: &str, rule: impl Fn(&Source) -> Vec<Breach>) -> Vec<String> {
    let source = Source { path: path.into(), text: text.to_owned() };
    rule(&source).iter().map(|breach| format!("{}:{}", breach.path.display(), breach.line)).collect()
}

#[test]
fn a_file_that_grows_too_long_is_told() {
    let lines = |count: usize| "// not counted\n\nlet x = 1;\n".repeat(count);
    assert!(said("agent/src/app.rs", &lines(MAX_CODE), size).is_empty());
    assert_eq!(said("agent/src/app.rs", &lines(MAX_CODE + 1), size), ["agent/src/app.rs:1353"]);
    let tests = format!("{}#[cfg(test)]\n{}", lines(10), lines(MAX_CODE));
    assert!(said("agent/src/app.rs", &tests, size).is_empty(), "tests at the end are not counted");
}

#[test]
fn features_that_know_each_other_are_told() {
    let of = |path, text| said(path, text, features);
    assert_eq!(of("agent/src/gossip.rs", "\nuse crate::net::Port;"), ["agent/src/gossip.rs:2"]);
    assert_eq!(of("agent/src/proxy/copy.rs", "let x = crate::web::page();"), ["agent/src/proxy/copy.rs:1"]);
    let grouped = "use crate::{\n    lifecycle::{Life, link},\n    pulse::Pulse,\n};";
    assert_eq!(of("agent/src/proxy/mod.rs", grouped), ["agent/src/proxy/mod.rs:1"]);
    assert_eq!(of("agent/src/proxy/copy.rs", "use super::super::net::Port;"), ["agent/src/proxy/copy.rs:1"]);
    assert_eq!(of("agent/src/gossip.rs", "use super::net::Port;"), ["agent/src/gossip.rs:1"]);
    assert_eq!(of("agent/src/link/seal.rs", "use crate::app::App;"), ["agent/src/link/seal.rs:1"]);
    for fine in ["use crate::link::Port;", "use super::gossip::X;", "use crate::config;", "// crate::web"] {
        assert!(of("agent/src/link/seal.rs", fine).is_empty(), "{fine}");
    }
    assert!(of("agent/src/app.rs", "use crate::net::Port;").is_empty());
    assert!(of("agent/src/net_tests.rs", "use crate::net::Port;").is_empty());
    assert_eq!(of("agent/src/link_tests.rs", "use crate::web::Page;").len(), 1, "nor do their tests");
    assert!(of("agent/src/cli/join.rs", "use crate::net::Port;").is_empty());
}

#[test]
fn tasks_without_an_owner_and_queues_without_a_bound_are_told() {
    let of = |path, text| said(path, text, tasks_and_queues);
    assert_eq!(of("agent/src/link/udp.rs", "tokio::spawn(x)"), ["agent/src/link/udp.rs:1"]);
    assert_eq!(of("agent/src/app.rs", "\nmpsc::unbounded_channel()"), ["agent/src/app.rs:2"]);
    assert!(of("agent/src/app.rs", "life.spawn(x)\n#[cfg(test)]\ntokio::spawn(x)").is_empty());
}

#[test]
fn locks_that_are_held_through_a_literal_are_told() {
    let of = |text| said("agent/src/app.rs", text, guards_in_literals);
    assert_eq!(of("Node {\n    address: own.borrow().map(|ip| ip.to_string()),\n}"), ["agent/src/app.rs:2"]);
    for fine in ["let address = *own.borrow();", "is_member: Arc::new(move |id| trust.borrow().has(id)),"] {
        assert!(of(fine).is_empty(), "{fine}");
    }
}

#[test]
fn what_decides_by_the_words_of_a_reason_is_told() {
    let of = |text| said("agent/src/x.rs", text, reasons_decide_nothing);
    for bad in [
        "if one.reason.to_string() == \"refused\" {",
        "let x = one.reason().to_string().contains(\"refused\");",
        "let x = health\n    .reason()\n    .to_string()\n    .starts_with('5');",
        "match one.reason.to_string().as_str() {",
        "let (a, b) = problem.detail.to_string().split_once(\"; \");",
    ] {
        assert_eq!(of(bad), ["agent/src/x.rs:1"], "{bad}");
    }
    for fine in ["html.text(&one.reason.to_string());", "let x = one.cause == Some(Cause::PortClosed);"] {
        assert!(of(fine).is_empty(), "{fine}");
    }
    let closed = |text| said("proto/src/cause.rs", text, reasons_stay_closed);
    assert_eq!(closed("impl PartialEq for Reason {"), ["proto/src/cause.rs:1"]);
    assert_eq!(closed("#[derive(Clone, PartialEq)]\npub struct Reason(Box<str>);"), ["proto/src/cause.rs:2"]);
    assert!(closed("#[derive(Clone, Default)]\npub struct Reason(Box<str>);").is_empty());
}

#[test]
fn errors_that_are_texts_are_told() {
    let of = |text| said("agent/src/x.rs", text, errors_are_types);
    assert_eq!(of("fn a() {}\nfn x() -> Result<(), String> {"), ["agent/src/x.rs:2"]);
    for bad in [
        "by: Result<Vec<(NodeId, &'a Admitted)>, String>,",
        "let all: BTreeMap<Fact, Result<(), String>>;",
        "fn x(\n) -> Result<\n    Map<String, fn() -> u8>,\n    String,\n> {",
        "fn l2() -> Result<Mac, &'static str> {",
        "fn l2() -> Result<Mac, &str> {",
    ] {
        assert_eq!(of(bad).len(), 1, "{bad}");
    }
    for fine in [
        "fn x() -> Result<String, BadFrame> {",
        "fn x() -> Result<String> {",
        "fn x() -> Result<(String, String), Vec<String>> {",
        "// Result<(), String>",
        "#[cfg(test)]\nfn x() -> Result<(), String> {",
    ] {
        assert!(of(fine).is_empty(), "{fine}");
    }
    assert!(said("agent/src/x_tests.rs", "fn x() -> Result<(), String> {", errors_are_types).is_empty());
}

#[test]
fn a_module_of_proto_that_uses_one_below_it_is_told() {
    let order = ["time", "node", "view"].map(str::to_owned);
    let of = |path, text| said(path, text, |source| order_of_proto(source, &order));
    assert_eq!(of("proto/src/node.rs", "use crate::time::X;\nuse crate::view::Y;"), ["proto/src/node.rs:2"]);
    assert_eq!(of("proto/src/new.rs", "fn x() {}"), ["proto/src/new.rs:1"]);
    assert!(of("proto/src/view.rs", "use crate::{node::X, time};\n/// See [`crate::view`].").is_empty());
}

#[test]
fn what_is_not_pure_in_proto_is_told() {
    let of = |text| said("proto/src/path.rs", text, purity_of_proto);
    assert_eq!(of("// HashMap\nuse std::collections::HashMap;"), ["proto/src/path.rs:2"]);
    assert_eq!(of("use std::net::{IpAddr, UdpSocket};").len(), 1);
    assert_eq!(of("let now = Instant::now();").len(), 1);
    assert!(of("use std::net::SocketAddr;\n#[cfg(test)]\nuse std::fs;").is_empty());
    let manifest = |text| said("proto/Cargo.toml", text, dependencies_of_proto);
    assert_eq!(manifest("[dependencies]\nring = \"1\"\ntokio = { version = \"1\" }"), ["proto/Cargo.toml:3"]);
    assert_eq!(manifest("[dependencies.rustls]\nversion = \"1\""), ["proto/Cargo.toml:1"]);
    assert!(
        manifest("[dependencies]\nring = \"1\" # not tokio\n[dev-dependencies]\ntokio = \"1\"").is_empty()
    );
}

#[test]
fn words_of_a_workplace_are_told() {
    let of = |path, text: &str| said(path, text, forbidden_words);
    assert_eq!(of("agent/src/x.rs", &["// TO", "DO: later"].concat()), ["agent/src/x.rs:1"]);
    assert_eq!(of("README.md", &["see issue ", "#4"].concat()), ["README.md:1"]);
    assert_eq!(of("agent/src/x.rs", &["\n\"/tm", "p/x\""].concat()), ["agent/src/x.rs:2"]);
    assert!(of("README.md", &["run it with --state-dir /tm", "p/x"].concat()).is_empty());
}
