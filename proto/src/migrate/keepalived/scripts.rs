//! Scripts that decide whether a node may own an address.
//!
//! Most look whether the apiserver, or what stands before it, is there, which the agents know. Any other becomes the
//! check of the addresses that track it.

use super::super::notes::FileReport;
use super::super::notes::LineOutcome::{Automatic, Different, Kept, Needless, NotDone};
use super::tree::Node;

/// A script that looks for something else than the agents do.
pub(super) struct OwnCheck<'a> {
    pub(super) name: &'a str,
    line: usize,
    /// The program, where it can be run as it is.
    program: Option<&'a str>,
}

/// All of them.
pub(super) fn own_checks(nodes: &[Node]) -> Vec<OwnCheck<'_>> {
    let scripts = nodes.iter().filter(|node| node.word(0) == "vrrp_script" && !probes_api(node));
    let of = |node| {
        let script: &Node = node;
        let command = script.block.iter().rev().find(|line| line.word(0) == "script");
        let program = command.map(|line| line.word(1)).filter(|word| {
            let alone = command.is_some_and(|line| line.words.len() == 2);
            alone && word.starts_with('/') && word.chars().all(|c| c.is_ascii_graphic())
        });
        OwnCheck { name: script.word(1), line: script.line, program }
    };
    scripts.map(of).collect()
}

impl OwnCheck<'_> {
    /// Tells what became of its block.
    pub(super) fn told(&self, node: &Node, nodes: &[Node], account: &mut FileReport) {
        let blocks = nodes.iter().flat_map(|node| &node.block).filter(|line| line.word(0) == "track_script");
        let is_tracked = blocks.flat_map(|line| &line.block).any(|one| one.word(0) == self.name);
        let weight = node.block.iter().rev().find(|line| line.word(0) == "weight").map(|line| line.word(1));
        let (verdict, reason) = match self.program {
            _ if !is_tracked => (Needless, "no track_script names it".to_owned()),
            None => {
                let reason = "only a program without arguments can be a check; write one that runs it, and name it as \
                              check under [vip.\"ADDRESS\"]";
                (NotDone, reason.to_owned())
            }
            Some(program) => match weight.filter(|weight| *weight != "0") {
                None => {
                    (Kept, format!("the addresses that track it are owned only where {program} exits with 0"))
                }
                Some(weight) => {
                    let reason = format!(
                        "the addresses that track it are owned only where {program} exits with 0; keepalived changed \
                         the priority by {weight}"
                    );
                    (Different, reason)
                }
            },
        };
        account.range(node.line, node.last, &node.shown(), verdict, reason);
    }
}

/// The check of the addresses of a block, by its `track_script`, and the line that it stands in.
pub(super) fn tracked(
    line: &Node,
    checks: &[OwnCheck<'_>],
    account: &mut FileReport,
) -> Option<(String, usize)> {
    let named = line.block.iter().filter_map(|one| checks.iter().find(|check| check.name == one.word(0)));
    let mut programs = named.clone().filter_map(|check| Some((check.program?.to_owned(), check.line)));
    let first = programs.next();
    let (verdict, reason) = if programs.next().is_some() {
        (NotDone, "an address has one check: the first; write a program that runs all of them")
    } else if named.clone().any(|check| check.program.is_none()) {
        (NotDone, "health excludes a node; it does not lower its priority")
    } else if first.is_some() {
        (Kept, "check of these addresses, on this node")
    } else {
        (Automatic, "health excludes a node; it does not lower its priority")
    };
    account.range(line.line, line.last, &line.shown(), verdict, reason);
    first
}

/// Whether a script looks whether the apiserver, or what stands before it, is there.
fn probes_api(script: &Node) -> bool {
    let words = [
        "haproxy",
        "6443",
        "8443",
        "apiserver",
        "readyz",
        "healthz",
        "livez",
        "kube",
        "k3s",
        "rke2",
        "nginx",
    ];
    let mut lines = script.block.iter().filter(|line| line.word(0) == "script");
    script.block.is_empty()
        || lines.any(|line| line.words.iter().any(|word| words.iter().any(|one| word.contains(one))))
}
