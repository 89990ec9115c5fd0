//! I/O rules: proto has none, the agent only where it is awaited and bounded.

use std::collections::BTreeSet;

use crate::source::{Breach, Rule, Source};
use crate::{AGENT, IMPURE, LIFECYCLES, OWN_THREADS, PROTO, SPAWNS, UNBOUNDED};

/// Uses of one of these paths, each with its reason.
fn forbidden(source: &Source, rules: &[(&str, &str)]) -> Vec<Breach> {
    let mut lines = BTreeSet::new();
    let mut breaches = Vec::new();
    for one in source.named() {
        for (path, why) in rules {
            if one.is_in(path) && lines.insert((one.line, *why)) {
                breaches.push(source.breach(one.line, format!("{path}: {why}")));
            }
        }
    }
    breaches
}

/// No socket, clock, task, file or randomness in proto, and no order that differs between two runs.
pub(crate) fn purity_of_proto(source: &Source) -> Vec<Breach> {
    match source.module(PROTO) {
        Some(_) => forbidden(source, IMPURE),
        None => Vec::new(),
    }
}

/// Every queue has a bound.
pub(crate) fn queues(source: &Source) -> Vec<Breach> {
    match source.module(AGENT) {
        Some(_) => forbidden(source, UNBOUNDED),
        None => Vec::new(),
    }
}

/// Every task and thread belongs to the process' lifecycle.
pub(crate) fn spawns(source: &Source) -> Vec<Breach> {
    match source.module(AGENT) {
        Some(own) if !LIFECYCLES.contains(&own.as_str()) => {
            let path = source.path.to_string_lossy();
            if OWN_THREADS.iter().any(|(file, _)| path.ends_with(file)) {
                return Vec::new();
            }
            forbidden(source, SPAWNS)
        }
        _ => Vec::new(),
    }
}

/// Files with threads of their own that have none any more.
pub(crate) fn stale(sources: &[Source]) -> Vec<String> {
    let spawns = |file: &str| {
        sources.iter().any(|source| source.path.ends_with(file) && !forbidden(source, SPAWNS).is_empty())
    };
    OWN_THREADS
        .iter()
        .filter(|(file, _)| !spawns(file))
        .map(|(file, _)| format!("a thread in {file}"))
        .collect()
}

/// A lock guard in a field of a literal is held to the end of the whole literal; reading the lock again while
/// a writer waits deadlocks: the thread blocks, and soon all others do.
pub(crate) fn guards_in_literals(source: &Source) -> Vec<Breach> {
    struct Guards<'a>(&'a Source, Vec<Breach>);
    impl Rule for Guards<'_> {
        fn expr(&mut self, expr: &syn::Expr) {
            let syn::Expr::Struct(literal) = expr else { return };
            for field in &literal.fields {
                if let Some(line) = borrowed(&field.expr) {
                    let why = ".borrow() is held to the end of the literal: take the value out before it";
                    self.1.push(self.0.breach(line, why));
                }
            }
        }
    }
    /// The line where an expression borrows; in a closure or a block the guard is held only while that runs.
    fn borrowed(expr: &syn::Expr) -> Option<usize> {
        use syn::Expr::*;
        match expr {
            MethodCall(call) if call.method == "borrow" && call.args.is_empty() => {
                Some(call.method.span().start().line)
            }
            MethodCall(call) => borrowed(&call.receiver).or_else(|| call.args.iter().find_map(borrowed)),
            Call(call) => borrowed(&call.func).or_else(|| call.args.iter().find_map(borrowed)),
            Field(field) => borrowed(&field.base),
            Unary(unary) => borrowed(&unary.expr),
            Reference(reference) => borrowed(&reference.expr),
            Paren(paren) => borrowed(&paren.expr),
            Try(tried) => borrowed(&tried.expr),
            Binary(binary) => borrowed(&binary.left).or_else(|| borrowed(&binary.right)),
            Tuple(tuple) => tuple.elems.iter().find_map(borrowed),
            Index(index) => borrowed(&index.expr),
            Cast(cast) => borrowed(&cast.expr),
            _ => None,
        }
    }
    if source.module(AGENT).is_none() {
        return Vec::new();
    }
    let mut found = Guards(source, Vec::new());
    source.visit(&mut found);
    found.1
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::source::lines_found;

    /// A file of the agent whose module is none of the listed.
    fn file() -> String {
        format!("{AGENT}/part.rs")
    }

    #[test]
    fn impurity_of_proto_is_reported() {
        let of = |text| lines_found(&format!("{PROTO}/path.rs"), text, purity_of_proto);
        assert_eq!(of("// HashMap\nuse std::collections::HashMap;"), [2]);
        for impure in [
            "use std::net::{IpAddr, UdpSocket};",
            "fn x() { let now = std::time::Instant::now(); }",
            "use std::time::Instant as Clock; fn x() { Clock::now(); }",
            "use std::time; fn x() { time::SystemTime::now(); }",
            "use std::time::*; fn x() { Instant::now(); }",
            "fn x() { assert!(std::time::Instant::now() > y); }",
            "fn x() { std::fs::read(y); }",
            "use std::{env, fs};",
            "fn x() { std::thread::sleep(y); }",
            "fn x() { tokio::spawn(y); }",
            "fn x() { println!(\"y\"); }",
        ] {
            assert!(!of(impure).is_empty(), "{impure}");
        }
        let late = "#[cfg(test)]\nuse std::fs;\nfn x() { std::time::Instant::now(); }";
        assert_eq!(of(late), [3], "after the first thing for tests");
        for pure in [
            "use std::net::SocketAddr;\n#[cfg(test)]\nuse std::fs;",
            "use std::time::Duration;",
            "fn x() { env!(\"CARGO_PKG_VERSION\"); }",
            "#[cfg(test)] mod tests { use std::time::Instant; fn x() { Instant::now(); } }",
            "/// Not [`std::time::Instant`].\nfn x() { y(\"std::fs::read\") }",
        ] {
            assert_eq!(of(pure), [0; 0], "{pure}");
        }
    }

    #[test]
    fn unbounded_queues_are_reported() {
        let of = |text| lines_found(&file(), text, queues);
        for bad in [
            "fn x() { tokio::sync::mpsc::unbounded_channel::<u8>(); }",
            "use tokio::sync::mpsc; fn x() { mpsc::unbounded_channel::<u8>(); }",
            "use tokio::sync::mpsc::unbounded_channel as queue;",
            "use std::sync::mpsc; fn x() { let (a, b) = mpsc::channel(); }",
            "use std::sync::mpsc::{Receiver, channel}; fn x() { let (a, b) = channel(); }",
            "#[cfg(test)] use a::b; fn x() { tokio::sync::mpsc::unbounded_channel(); }",
        ] {
            assert!(!of(bad).is_empty(), "{bad}");
        }
        for fine in [
            "use tokio::sync::mpsc; fn x() { mpsc::channel(16); }",
            "use std::sync::mpsc; fn x() { mpsc::sync_channel(16); }",
            "use std::collections::VecDeque; fn x() { VecDeque::new(); }",
            "#[cfg(test)] fn x() { tokio::sync::mpsc::unbounded_channel(); }",
        ] {
            assert_eq!(of(fine), [0; 0], "{fine}");
        }
    }

    #[test]
    fn tasks_and_threads_without_an_owner_are_reported() {
        let of = |path: &str, text| lines_found(path, text, spawns);
        for bad in [
            "fn x() { tokio::spawn(y); }",
            "fn x() { tokio::task::spawn(y); }",
            "use tokio::task; fn x() { task::spawn_local(y); }",
            "fn x() { std::thread::spawn(y); }",
            "use std::thread; fn x() { thread::Builder::new().spawn(y); }",
            "#[cfg(test)] use a::b;\nfn x() { tokio::spawn(y); }",
            "fn x() { tokio::select! { _ = a => { tokio::spawn(y); } } }",
        ] {
            assert!(!of(&file(), bad).is_empty(), "{bad}");
        }
        for fine in [
            "fn x() { life.spawn(y); }",
            "fn x() { tokio::task::spawn_blocking(y); }",
            "#[cfg(test)] mod tests { fn x() { tokio::spawn(y); } }",
        ] {
            assert_eq!(of(&file(), fine), [0; 0], "{fine}");
        }
        let bare = "fn x() { tokio::spawn(y); }";
        assert_eq!(of(&format!("{AGENT}/{}.rs", LIFECYCLES[0]), bare), [0; 0]);
        assert_eq!(of(OWN_THREADS[0].0, bare), [0; 0]);
    }

    #[test]
    fn guards_held_through_a_literal_are_reported() {
        let of = |text| lines_found(&file(), text, guards_in_literals);
        assert_eq!(of("fn x() { Node {\n address: own.borrow().map(|ip| ip.to_string()),\n} }"), [2]);
        assert_eq!(of("fn x() { Node {\n address: *own.borrow(), b,\n} }"), [2]);
        for fine in [
            "fn x() { let address = *own.borrow(); Node { address } }",
            "fn x() { Node { is_member: Arc::new(move |id| trust.borrow().has(id)) } }",
        ] {
            assert_eq!(of(fine), [0; 0], "{fine}");
        }
    }
}
