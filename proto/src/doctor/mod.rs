//! What `agent doctor` thinks: facts in, findings out. Facts are what the shell has read, dialled and asked;
//! nothing here asks anyone. Each finding says what is so, why it matters, and the steps that fix it.
//!
//! A node is judged where it is ([`host`] and [`kube`], by [`facts`]), by whoever stands on it; the ways between
//! nodes are judged by the one that was asked ([`mesh`]). So what travels are findings, not facts.

pub mod cluster;
pub mod facts;
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
#[serde(from = "FindingForm", into = "FindingForm")]
pub struct Finding {
    /// Its name for scripts, as `udp-blocked`; never changes.
    pub code: String,
    /// How bad it is; what a later version says instead is a warning.
    pub severity: Severity,
    /// What it is about, as [`CheckedItem::area`].
    pub area: String,
    /// The node that has it.
    pub node: String,
    /// What is so.
    pub what: String,
    /// Why it matters.
    pub why: String,
    /// What fixes it, in this order.
    pub remedy: Vec<Step>,
}

/// A finding as it is sent and printed as JSON: its steps as lines, and typed where that says more.
#[derive(Serialize, Deserialize)]
struct FindingForm {
    code: String,
    #[serde(deserialize_with = "severity")]
    severity: Severity,
    area: String,
    node: String,
    what: String,
    why: String,
    fix: Vec<String>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    remedy: Vec<StepForm>,
}

impl From<Finding> for FindingForm {
    fn from(finding: Finding) -> FindingForm {
        let Finding { code, severity, area, node, what, why, remedy } = finding;
        let fix = remedy.iter().map(Step::line).collect();
        let only_texts = remedy.iter().all(|step| *step == Step::text(step.line()));
        let remedy = if only_texts { Vec::new() } else { remedy.into_iter().map(StepForm::from).collect() };
        FindingForm { code, severity, area, node, what, why, fix, remedy }
    }
}

impl From<FindingForm> for Finding {
    fn from(form: FindingForm) -> Finding {
        let FindingForm { code, severity, area, node, what, why, fix, remedy } = form;
        let mut lines = fix.into_iter();
        let mut steps: Vec<Step> = Vec::new();
        for step in remedy {
            steps.push(step.read(lines.next()));
        }
        steps.extend(lines.map(Step::text));
        let remedy = steps;
        Finding { code, severity, area, node, what, why, remedy }
    }
}

/// One step of what fixes a finding.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Step {
    /// Where it is done, as `m2` or `every node`; none: on the node that reads it.
    on: Option<String>,
    action: Action,
}

/// What is done in a step.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Action {
    /// A command for a shell, and a remark about it.
    Run {
        /// The command, on one line.
        command: String,
        /// Why, or when; empty: nothing.
        remark: String,
    },
    /// Anything else, in words.
    Do(String),
}

/// What stands between a command and its remark.
const REMARK: &str = "   # ";

impl Step {
    /// A command.
    pub fn run(command: impl Into<String>) -> Step {
        Step { on: None, action: Action::Run { command: command.into(), remark: String::new() } }
    }

    /// Something in words.
    pub fn text(text: impl Into<String>) -> Step {
        Step { on: None, action: Action::Do(text.into()) }
    }

    /// With a remark; words need none.
    #[must_use]
    pub fn remark(mut self, text: impl Into<String>) -> Step {
        if let Action::Run { remark, .. } = &mut self.action {
            *remark = text.into();
        }
        self
    }

    /// Done there.
    #[must_use]
    pub fn on(self, place: impl Into<String>) -> Step {
        Step { on: Some(place.into()), ..self }
    }

    /// Done on the node that reads it.
    #[must_use]
    pub fn here(self) -> Step {
        Step { on: None, ..self }
    }

    /// Done on a node, which is named where it is not the one that reads it.
    #[must_use]
    fn at(self, node: &str, here: &str) -> Step {
        if node == here { self } else { self.on(node) }
    }

    /// Where it is done; none: on the node that reads it.
    pub fn place(&self) -> Option<&str> {
        self.on.as_deref()
    }

    /// What is done.
    pub fn action(&self) -> &Action {
        &self.action
    }

    /// The step on one line: `on m2: systemctl start agent   # as root`.
    pub fn line(&self) -> String {
        let on = self.on.as_ref().map_or_else(String::new, |place| format!("on {place}: "));
        match &self.action {
            Action::Run { command, remark } if remark.is_empty() => format!("{on}{command}"),
            Action::Run { command, remark } => format!("{on}{command}{REMARK}{remark}"),
            Action::Do(text) => format!("{on}{text}"),
        }
    }

    fn texts(&mut self) -> impl Iterator<Item = &mut String> {
        let (first, second) = match &mut self.action {
            Action::Run { command, remark } => (command, Some(remark)),
            Action::Do(text) => (text, None),
        };
        self.on.iter_mut().chain([first]).chain(second)
    }
}

/// A step as it is sent. What a later version does besides is words for this one: the lines have it.
#[derive(Serialize, Deserialize)]
struct StepForm {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    on: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    run: Option<String>,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    remark: String,
    #[serde(default, rename = "do", skip_serializing_if = "String::is_empty")]
    text: String,
}

impl From<Step> for StepForm {
    fn from(Step { on, action }: Step) -> StepForm {
        match action {
            Action::Run { command, remark } => {
                StepForm { on, run: Some(command), remark, text: String::new() }
            }
            Action::Do(text) => StepForm { on, run: None, remark: String::new(), text },
        }
    }
}

impl StepForm {
    /// The step, which stands on this line too.
    fn read(self, line: Option<String>) -> Step {
        let StepForm { on, run, remark, text } = self;
        match run {
            Some(command) => Step { on, action: Action::Run { command, remark } },
            None if !text.is_empty() => Step { on, action: Action::Do(text) },
            None => Step::text(line.unwrap_or_default()),
        }
    }
}

impl Finding {
    /// What a member says of itself, as far as it may: nothing of others, no command for any node but
    /// itself, and not endlessly long. People may well type what they read here.
    pub fn said_by(mut self, node: &str) -> Option<Finding> {
        if self.node != node {
            return None;
        }
        self.remedy.truncate(MOST_STEPS);
        self.remedy.iter_mut().for_each(|step| step.on = Some(node.to_owned()));
        let texts = [&mut self.code, &mut self.area, &mut self.what, &mut self.why];
        let texts = texts.into_iter().chain(self.remedy.iter_mut().flat_map(Step::texts));
        for text in texts.filter(|text| text.chars().count() > MOST_CHARS) {
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
            remedy: words.remedy,
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
    /// What fixes it.
    pub remedy: Vec<Step>,
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

/// Most steps of one of them, and most characters of one text: twice what is said here.
const MOST_STEPS: usize = 12;
const MOST_CHARS: usize = 400;

#[cfg(test)]
mod tests;
