//! The blocks of `keepalived.conf`.

use super::super::notes::FileReport;
use super::super::notes::LineOutcome::Wrong;
use super::super::words::{WordLine, lines, shown};

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
    open: Vec<Node>,
    top: Vec<Node>,
    /// Blocks that lie too deep, and are not opened.
    deeper: usize,
    account: &'a mut FileReport,
}

/// Reads a file; what does not fit together is noted.
pub(super) fn read(text: &str, account: &mut FileReport) -> Vec<Node> {
    let mut reader = Reader { open: Vec::new(), top: Vec::new(), deeper: 0, account };
    for line in lines(text, Some('!')) {
        reader.line(line);
    }
    while let Some(node) = reader.open.pop() {
        reader.account.add(node.line, &node.shown(), Wrong, "unclosed {; write } after its last line");
        reader.put(node);
    }
    reader.top
}

impl Reader<'_> {
    fn line(&mut self, line: WordLine) {
        let number = line.number;
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
