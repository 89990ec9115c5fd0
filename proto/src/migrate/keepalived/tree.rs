//! The blocks of `keepalived.conf`.

use super::super::notes::FileReport;
use std::collections::BTreeMap;

use super::super::notes::LineOutcome::{Automatic, NotDone, Set, Wrong};
use super::super::words::{Syntax, Variables, WordLine, lines, shown};

/// Deepest block that is opened; keepalived's own are four deep. What lies deeper is read as if it lay here,
/// so that no file is deeper than the stack.
const MAX_DEPTH: usize = 8;

/// A line, and the block that follows it.
pub(super) struct Node {
    pub(super) line: usize,
    /// The last line of its block.
    pub(super) last: usize,
    pub(super) words: Vec<String>,
    pub(super) block: Vec<Node>,
}

impl Node {
    /// The word at a place; empty when there is none.
    pub(super) fn word(&self, at: usize) -> &str {
        self.words.get(at).map_or("", String::as_str)
    }

    /// The line as it may be shown.
    pub(super) fn shown(&self) -> String {
        shown(&self.words)
    }

    /// The words from a place on, likewise.
    pub(super) fn shown_rest(&self, at: usize) -> String {
        shown(self.words.get(at..).unwrap_or_default())
    }

    /// The word that follows another one.
    pub(super) fn after(&self, word: &str) -> Option<&str> {
        let at = self.words.iter().position(|one| one == word)?;
        self.words.get(at + 1).map(String::as_str)
    }
}

/// What is open while a file is read.
struct Reader<'a> {
    /// The node that reads it; none: one that no line names.
    host: Option<&'a str>,
    open: Vec<Node>,
    top: Vec<Node>,
    /// Blocks that lie too deep, and are not opened.
    deeper: usize,
    account: &'a mut FileReport,
}

/// Reads a file as the node `host` does; what does not fit together is noted.
pub(super) fn read(
    text: &str,
    host: Option<&str>,
    variables: &Variables<'_>,
    account: &mut FileReport,
) -> Vec<Node> {
    let defined = definitions(text);
    for (line, name, value) in &defined {
        account.add(*line, &format!("${name}={value}"), Automatic, "its value stands where it is used");
    }
    let known: BTreeMap<&str, &str> =
        defined.iter().map(|(_, name, value)| (name.as_str(), value.as_str())).collect();
    let value = |name: &str| known.get(name).map(|value| (*value).to_owned()).or_else(|| variables(name));
    let mut reader = Reader { host, open: Vec::new(), top: Vec::new(), deeper: 0, account };
    for line in lines(text, Syntax::Keepalived, &value) {
        if !defined.iter().any(|(number, ..)| *number == line.number) {
            reader.line(line);
        }
    }
    while let Some(node) = reader.open.pop() {
        reader.account.add(node.line, &node.shown(), Wrong, "unclosed {; write } after its last line");
        reader.put(node);
    }
    reader.top
}

/// The lines that give a variable its value: `$NAME=value`.
fn definitions(text: &str) -> Vec<(usize, String, String)> {
    let mut all = Vec::new();
    for (at, line) in text.lines().enumerate() {
        let Some((name, value)) = line.trim_start().strip_prefix('$').and_then(|rest| rest.split_once('='))
        else {
            continue;
        };
        let is_name = |b: u8| b.is_ascii_alphanumeric() || b == b'_';
        if !name.is_empty() && name.trim_end().bytes().all(is_name) {
            let value = value.split(['#', '!']).next().unwrap_or_default().trim();
            all.push((at + 1, name.trim_end().to_owned(), value.to_owned()));
        }
    }
    all
}

/// The nodes that lines are for, as `@m1` and `@^m1` name them.
pub(super) fn hosts(text: &str) -> Vec<String> {
    let mut all = Vec::new();
    for line in lines(text, Syntax::Keepalived, &|_| None) {
        let Some(host) = line.word(0).strip_prefix('@').map(|host| host.trim_start_matches('^')) else {
            continue;
        };
        if !host.is_empty() && !all.iter().any(|known| known == host) {
            all.push(host.to_owned());
        }
    }
    all
}

impl Reader<'_> {
    fn line(&mut self, line: WordLine) {
        let number = line.number;
        let mut line = line;
        if let Some(of) = line.word(0).strip_prefix('@').map(str::to_owned) {
            let (host, negated) = of.strip_prefix('^').map_or((of.as_str(), false), |host| (host, true));
            let others = if negated { "nodes other than " } else { "" };
            let elsewhere = (self.host == Some(host)) == negated;
            if elsewhere || negated {
                self.account.add(number, &line.shown(), Set, format!("for {others}{host}; see the commands"));
            }
            if elsewhere {
                return;
            }
            line.words.remove(0);
        }
        if !line.missing.is_empty() {
            self.account.add(number, &line.shown(), NotDone, line.wanted());
            if !line.words.iter().any(|word| word.contains(['{', '}'])) {
                return;
            }
        }
        if line.open {
            self.account.add(number, &line.shown(), Wrong, "unterminated quote; close it on the same line");
        }
        let mut words = Vec::new();
        for word in line.words {
            let bare = word.strip_suffix('{').unwrap_or(&word);
            let opens = bare.len() < word.len();
            if word == "}" {
                self.flush(number, &mut words);
                self.close(number);
                continue;
            }
            if !bare.is_empty() {
                words.push(bare.to_owned());
            }
            if opens {
                self.begin(number, &mut words);
            }
        }
        self.flush(number, &mut words);
    }

    fn siblings(&mut self) -> &mut Vec<Node> {
        match self.open.last_mut() {
            Some(node) => &mut node.block,
            None => &mut self.top,
        }
    }

    fn put(&mut self, node: Node) {
        self.siblings().push(node);
    }

    fn flush(&mut self, line: usize, words: &mut Vec<String>) {
        if !words.is_empty() {
            self.put(Node { line, last: line, words: std::mem::take(words), block: Vec::new() });
        }
    }

    /// `{`, which may stand on a line of its own.
    fn begin(&mut self, line: usize, words: &mut Vec<String>) {
        self.flush(line, words);
        let head = self.siblings().pop();
        match head {
            Some(head) if self.open.len() < MAX_DEPTH => self.open.push(head),
            head => {
                self.deeper += 1;
                let why = if head.is_some() {
                    "nested too deeply; keepalived has no such blocks"
                } else {
                    "unexpected {"
                };
                self.account.add(line, "{", Wrong, why);
                self.siblings().extend(head);
            }
        }
    }

    fn close(&mut self, line: usize) {
        if self.deeper > 0 {
            self.deeper -= 1;
        } else if let Some(mut node) = self.open.pop() {
            node.last = line;
            self.put(node);
        } else {
            self.account.add(line, "}", Wrong, "unexpected }; remove it");
        }
    }
}
