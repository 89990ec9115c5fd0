//! The rules of the house. Each reads syntax and not text, sees all that ships, names the file, the line and
//! itself where it is broken, and is tested on planted breaches.
//!
//! What the rules go by, and what they let pass, stands here. The lists of what they let pass only shrink: an
//! entry that is not needed any more is a failure too.

mod dead;
mod form;
mod imports;
mod runtime;
mod source;
mod texts;

use std::path::Path;

use anyhow::Result;

use source::{Breach, repository};

/// Where the sources of the two crates lie.
const AGENT: &str = "agent/src";
const PROTO: &str = "proto/src";

/// Most lines of code in a file: what can be read in one sitting.
const MOST_CODE: usize = 450;

/// Most lines of a file, with comments and tests.
const LONGEST_FILE: usize = 700;

/// Most characters of a line without its texts: what rustfmt leaves alone, as comments and macros.
const LONGEST_LINE: usize = 120;

/// Longer files, and why.
const LONG_FILES: &[(&str, &str)] =
    &[("tests/tests/web.rs", "page, metrics and CSV are compared with each other in one suite")];

/// Modules of the agent that do one thing each and must not know each other; `app` puts them together.
const FEATURES: &[&str] = &[
    "reachability",
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

/// The agent's modules from below: each uses only those of lower layers.
const LAYERS: &[&[&str]] = &[
    &["notify"],
    &["lifecycle", "times", "histogram", "faults", "trusted", "source", "screen", "hardening", "handover"],
    &["log_limit", "records", "state", "supervisor", "netlink", "http", "watchdog", "verdict", "program"],
    &["log", "severity", "timer", "transport"],
    FEATURES,
    &["demo"],
    &["app"],
    &["cli"],
    &["main"],
];

/// Modules that start tasks and threads for all others.
const LIFECYCLES: &[&str] = &["lifecycle", "supervisor"];

/// Files that start a thread or task by themselves, and why.
const OWN_THREADS: &[(&str, &str)] = &[
    ("agent/src/net/resolve.rs", "libc's resolver blocks and can't be called off: it is left to its end"),
    ("agent/src/vip/mod.rs", "the one that holds capabilities; it is supervised, and its end is waited for"),
    ("agent/src/proxy/workers.rs", "clients stay on the thread that accepted them; each ends with the life"),
    ("agent/src/cli/status/watch.rs", "a read of the terminal can't be called off: it ends with the command"),
    ("agent/src/demo/mod.rs", "a read of the terminal can't be called off: it ends with the command"),
];

/// What starts something that nobody waits for.
const SPAWNS: &[(&str, &str)] = &[
    ("tokio::spawn", "a task that nobody waits for: use the life's spawn"),
    ("tokio::task::spawn", "a task that nobody waits for: use the life's spawn"),
    ("tokio::task::spawn_local", "a task that nobody waits for: use the life's spawn"),
    ("std::thread::spawn", "a thread that nobody waits for: use a supervised part"),
    ("std::thread::Builder", "a thread that nobody waits for: use a supervised part"),
];

/// Queues without a bound.
const UNBOUNDED: &[(&str, &str)] = &[
    ("tokio::sync::mpsc::unbounded_channel", "a queue without a bound"),
    ("tokio::sync::mpsc::UnboundedSender", "a queue without a bound"),
    ("tokio::sync::mpsc::UnboundedReceiver", "a queue without a bound"),
    ("std::sync::mpsc::channel", "a queue without a bound: use sync_channel"),
    ("futures_util::channel::mpsc::unbounded", "a queue without a bound"),
];

/// What proto can't do.
const IMPURE: &[(&str, &str)] = &[
    ("std::time::Instant", "time is an argument: take a Moment"),
    ("std::time::SystemTime", "time is an argument: take a UnixMs"),
    ("std::net::TcpStream", "proto has no sockets"),
    ("std::net::TcpListener", "proto has no sockets"),
    ("std::net::UdpSocket", "proto has no sockets"),
    ("std::net::ToSocketAddrs", "proto resolves no names"),
    ("std::os", "proto knows no system"),
    ("std::fs", "proto has no files"),
    ("std::env", "proto has no environment"),
    ("std::process", "proto has no processes"),
    ("std::thread", "proto has no threads"),
    ("std::io::stdin", "proto reads from nowhere"),
    ("std::io::stdout", "proto writes nowhere"),
    ("std::io::stderr", "proto writes nowhere"),
    ("print!", "proto writes nowhere"),
    ("println!", "proto writes nowhere"),
    ("eprint!", "proto writes nowhere"),
    ("eprintln!", "proto writes nowhere"),
    ("tokio", "proto has no tasks"),
    ("ring::rand", "random bytes are handed in"),
    ("std::collections::HashMap", "iteration order differs between runs: use BTreeMap"),
    ("std::collections::HashSet", "iteration order differs between runs: use BTreeSet"),
];

/// Texts that can only be shown.
const ONLY_SHOWN: &[&str] = &["Reason"];

/// Files that compare a text which they made of a value, and why that decides nothing by its words.
const COMPARED_TEXTS: &[(&str, &str)] = &[
    ("proto/src/cause.rs", "makes the text that is only shown: control characters become spaces"),
    ("proto/src/cluster/mod.rs", "people name a member by the beginning of its id"),
    ("agent/src/net/resolve.rs", "cuts libc's words to what is worth showing"),
    ("agent/src/cli/settings.rs", "cuts the number of an error of the system, which says nothing to people"),
    ("agent/src/state/format.rs", "a version is a number without leading zeros"),
];

#[test]
fn the_rules_of_the_house_are_kept() -> Result<()> {
    let (rust, other) = repository()?;
    let order = imports::order(&rust)?;
    assert!(order.len() > 5 && rust.len() > 20, "the files were not found");
    let graph = imports::graph(&rust);
    assert!(graph.len() > 20, "hardly any use was found");
    for (own, name) in graph.keys() {
        eprintln!("{own} -> {name}");
    }
    let mut breaches: Vec<Breach> = [
        imports::features_in_tests,
        runtime::purity_of_proto,
        runtime::queues,
        runtime::spawns,
        runtime::guards_in_literals,
        texts::errors_are_types,
        texts::texts_decide_nothing,
        texts::shown_texts_stay_closed,
        form::size,
    ]
    .iter()
    .flat_map(|rule| rust.iter().flat_map(rule))
    .collect();
    breaches.extend(imports::layers(&rust));
    breaches.extend(imports::circles(&rust));
    breaches.extend(rust.iter().flat_map(|one| imports::order_of_proto(one, &order)));
    breaches.extend(dead::items(&rust));
    breaches.extend(rust.iter().flat_map(|one| form::forbidden_words(&one.path, &one.text)));
    for one in &other {
        breaches.extend(form::forbidden_words(&one.path, &one.text));
        if one.path == Path::new("proto/Cargo.toml") {
            breaches.extend(imports::dependencies_of_proto(one));
        }
    }
    let mut told: Vec<String> = breaches.iter().map(Breach::to_string).collect();
    let stale = [runtime::stale(&rust), texts::stale(&rust), form::stale(&rust)];
    told.extend(stale.concat().iter().map(|one| format!("{one} is let pass here, and need not be any more")));
    assert!(told.is_empty(), "{} rules are broken:\n{}", told.len(), told.join("\n"));
    Ok(())
}
