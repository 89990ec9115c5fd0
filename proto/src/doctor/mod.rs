//! What `agent doctor` thinks: facts in, findings out. Facts are what the shell has read, dialled and asked;
//! nothing here asks anyone. Each finding says what is so, why it matters, and the command that mends it.
//!
//! A node is judged where it is ([`host`], [`kube`]), by whoever stands on it; the ways between nodes are
//! judged by the one that was asked ([`mesh`]). So what travels are findings, not facts.

pub mod cluster;
pub mod host;
pub mod kube;
pub mod mesh;
pub mod x509;

use serde::{Deserialize, Deserializer, Serialize};

use crate::cause::Fault;
use crate::open_enum;
use crate::time::UnixMs;

/// How bad something is; the worst decides the exit code.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Severity {
    /// As it should be.
    Ok,
    /// Good to know; nothing has to be done.
    Note,
    /// Works now, and will not when something else happens.
    Warning,
    /// Does not work.
    Error,
}

impl Severity {
    /// The word that the screen uses.
    pub fn as_str(self) -> &'static str {
        match self {
            Severity::Ok => "ok",
            Severity::Note => "note",
            Severity::Warning => "warning",
            Severity::Error => "error",
        }
    }
}

fn severity<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Severity, D::Error> {
    open_enum::or(deserializer, Severity::Warning)
}

/// What was found.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Finding {
    /// Its name for scripts, as `udp-blocked`; never changes.
    pub code: String,
    /// How bad it is; what a later version says instead is a warning.
    #[serde(deserialize_with = "severity")]
    pub severity: Severity,
    /// What it is about, as [`CheckedItem::area`].
    pub area: String,
    /// The node that has it.
    pub node: String,
    /// What is so.
    pub what: String,
    /// Why it matters.
    pub why: String,
    /// What mends it: commands, or what to write where, in this order.
    pub mend: Vec<String>,
}

impl Finding {
    /// What a member says of itself, as far as it may: nothing of others, no command for any node but
    /// itself, and not endlessly long. People may well type what they read here.
    pub fn said_by(mut self, node: &str) -> Option<Finding> {
        if self.node != node {
            return None;
        }
        let own = on(node, "", "");
        self.mend.truncate(MOST_LINES);
        for line in self.mend.iter_mut().filter(|line| !line.starts_with(&own)) {
            line.insert_str(0, &own);
        }
        let texts = [&mut self.code, &mut self.area, &mut self.what, &mut self.why];
        for text in texts.into_iter().chain(&mut self.mend).filter(|text| text.chars().count() > MOST_CHARS) {
            *text = text.chars().take(MOST_CHARS).collect();
        }
        Some(self)
    }
}

/// Something that was looked at, and how it is where nothing was found.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CheckedItem {
    /// What it is about, as `ports`.
    pub area: String,
    /// In words.
    pub text: String,
}

/// Everything that was looked at and found.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Examination {
    /// What was looked at, in the order of the screen.
    pub checked: Vec<CheckedItem>,
    /// What was found.
    pub findings: Vec<Finding>,
}

impl Examination {
    /// Something was looked at.
    pub fn checked(&mut self, area: &str, text: impl Into<String>) {
        self.checked.push(CheckedItem { area: area.to_owned(), text: text.into() });
    }

    /// Adds a finding.
    pub fn found(&mut self, severity: Severity, area: &str, code: &str, node: &str, words: FindingText<'_>) {
        self.findings.push(Finding {
            code: code.to_owned(),
            severity,
            area: area.to_owned(),
            node: node.to_owned(),
            what: words.what,
            why: words.why.to_owned(),
            mend: words.mend,
        });
    }

    /// Adds what was looked at and found elsewhere.
    pub fn append(&mut self, mut other: Examination) {
        self.checked.append(&mut other.checked);
        self.findings.append(&mut other.findings);
    }

    /// The worst of all.
    pub fn worst(&self) -> Severity {
        self.findings.iter().map(|finding| finding.severity).max().unwrap_or(Severity::Ok)
    }

    /// Puts the worst first; what is equally bad stays in its order.
    pub fn sort(&mut self) {
        self.findings.sort_by_key(|finding| std::cmp::Reverse(finding.severity));
    }
}

/// A finding in words.
#[derive(Debug)]
pub struct FindingText<'a> {
    /// What is so.
    pub what: String,
    /// Why it matters.
    pub why: &'a str,
    /// What mends it.
    pub mend: Vec<String>,
}

/// What a member says when it is asked to look at itself, and at the way back to who asks.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct DoctorAnswer {
    /// When the question came, by its clock.
    pub received: UnixMs,
    /// When it answered, by its clock.
    pub sent: UnixMs,
    /// Largest packet of the interface that carries its mesh; none: not known.
    pub mtu: Option<u32>,
    /// Why it can't reach the asker by TCP; none: it can.
    pub tcp: Option<Fault>,
    /// Why nothing comes back from the asker by UDP; none: it does.
    pub udp: Option<Fault>,
    /// What it found of itself.
    pub findings: Vec<Finding>,
}

/// Most findings of one member that are taken: many times what a node can have.
pub const MOST_FINDINGS: usize = 64;

/// Most commands of one of them, and most characters of one text: twice what is said here.
const MOST_LINES: usize = 12;
const MOST_CHARS: usize = 400;

/// A command that has to be run on another node.
fn on(node: &str, here: &str, command: &str) -> String {
    if node == here { command.to_owned() } else { format!("on {node}: {command}") }
}

#[cfg(test)]
mod tests;
