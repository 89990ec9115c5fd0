//! What became of each line: the account that stands below what was written.

/// What became of a line, or of a part of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum LineOutcome {
    /// It stands in the file that is written.
    Kept,
    /// It is one of the commands for the whole cluster.
    Set,
    /// It happens by itself now.
    Automatic,
    /// Nothing needs it any more.
    Needless,
    /// It is otherwise here, and no service is lost by that.
    Different,
    /// There is nothing like it.
    NotDone,
    /// Nobody here knows the word.
    Unknown,
    /// It can't be read.
    Wrong,
}

impl LineOutcome {
    /// Every verdict, in the order in which they are counted.
    pub(super) const ALL: [LineOutcome; 8] = [
        LineOutcome::Kept,
        LineOutcome::Set,
        LineOutcome::Automatic,
        LineOutcome::Needless,
        LineOutcome::Different,
        LineOutcome::NotDone,
        LineOutcome::Unknown,
        LineOutcome::Wrong,
    ];

    /// Its word in the account.
    pub(super) fn as_str(self) -> &'static str {
        match self {
            LineOutcome::Kept => "kept",
            LineOutcome::Set => "set",
            LineOutcome::Automatic => "automatic",
            LineOutcome::Needless => "not needed",
            LineOutcome::Different => "different",
            LineOutcome::NotDone => "not done",
            LineOutcome::Unknown => "unknown",
            LineOutcome::Wrong => "wrong",
        }
    }

    /// Whether a person has to look at it.
    pub(super) fn is_problem(self) -> bool {
        matches!(self, LineOutcome::NotDone | LineOutcome::Unknown | LineOutcome::Wrong)
    }
}

/// A word, or two, with what becomes of lines that begin with them; `*` at its end stands for any end.
pub(super) type KeywordRow = (&'static str, LineOutcome, &'static str);

/// The row of a line: that of its first two words, or of its first.
pub(super) fn row<'t>(table: &'t [KeywordRow], words: &[String]) -> Option<&'t KeywordRow> {
    let first = words.first()?.as_str();
    let second = words.get(1).map_or("", String::as_str);
    let both = |known: &str| known.split_once(' ').is_some_and(|(a, b)| a == first && fits(b, second));
    table.iter().find(|row| both(row.0)).or_else(|| table.iter().find(|row| fits(row.0, first)))
}

/// Whether a word is the one of a table.
pub(super) fn fits(known: &str, word: &str) -> bool {
    match known.strip_suffix('*') {
        Some(begin) => word.starts_with(begin),
        None => known == word,
    }
}

/// What became of one line, or of several that belong together.
struct LineNote {
    line: usize,
    last: usize,
    shown: String,
    verdict: LineOutcome,
    reason: String,
}

/// What became of all lines of one file.
pub(super) struct FileReport {
    /// The file's name, for messages.
    pub(super) file: String,
    notes: Vec<LineNote>,
}

/// Columns of a line.
const WIDTH: usize = 80;

impl FileReport {
    pub(super) fn new(file: &str) -> FileReport {
        FileReport { file: file.to_owned(), notes: Vec::new() }
    }

    /// Notes what became of a line, or of the part of it that is shown.
    pub(super) fn add(&mut self, line: usize, shown: &str, verdict: LineOutcome, reason: impl Into<String>) {
        self.range(line, line, shown, verdict, reason);
    }

    /// The same for all lines up to `last`.
    pub(super) fn range(
        &mut self,
        line: usize,
        last: usize,
        shown: &str,
        verdict: LineOutcome,
        reason: impl Into<String>,
    ) {
        // Both may hold what the file holds, and go to terminals.
        let tame = |text: &str| text.replace(char::is_control, "?");
        self.notes.push(LineNote { line, last, shown: tame(shown), verdict, reason: tame(&reason.into()) });
    }

    /// Brings what was found out later to its place.
    pub(super) fn sort(&mut self) {
        self.notes.sort_by_key(|note| note.line);
    }

    /// How many notes have this verdict.
    pub(super) fn count(&self, verdict: LineOutcome) -> usize {
        self.notes.iter().filter(|note| note.verdict == verdict).count()
    }

    /// What a person has to look at, a line each: file, line, what.
    pub(super) fn problems(&self) -> impl Iterator<Item = String> {
        self.notes.iter().filter(|note| note.verdict.is_problem()).map(|note| {
            let word = note.verdict.as_str();
            format!("{}:{}: {word}: {}: {}", self.file, note.line, cut(&note.shown, WIDTH), note.reason)
        })
    }

    /// What is otherwise here than it was, each sentence once.
    pub(super) fn differences(&self) -> Vec<&str> {
        let mut all: Vec<&str> = Vec::new();
        for note in self.notes.iter().filter(|note| note.verdict == LineOutcome::Different) {
            if !all.contains(&note.reason.as_str()) {
                all.push(&note.reason);
            }
        }
        all
    }

    /// The account of all lines. A reason that several lines have in a row is said once, below them.
    pub(super) fn render(&self, text: &mut String) {
        let mut before = 0;
        for (at, note) in self.notes.iter().enumerate() {
            let number = if note.line == before { String::new() } else { note.line.to_string() };
            before = note.line;
            let more = match note.last - note.line {
                0 => String::new(),
                1 => " (and 1 line)".to_owned(),
                more => format!(" (and {more} lines)"),
            };
            let shown = cut(&note.shown, WIDTH - 18 - more.len());
            text.push_str(&format!("{number:>5}  {:<10} {shown}{more}\n", note.verdict.as_str()));
            let next = self.notes.get(at + 1);
            if next.is_none_or(|next| (next.verdict, &next.reason) != (note.verdict, &note.reason)) {
                wrap(text, "                  ", &note.reason);
            }
        }
    }
}

/// A text that fits.
fn cut(text: &str, most: usize) -> String {
    if text.chars().count() <= most {
        return text.to_owned();
    }
    text.chars().take(most - 1).chain(['…']).collect()
}

/// Writes words on as many lines as they take, each with the same beginning.
pub(super) fn wrap(text: &mut String, begin: &str, words: &str) {
    let mut column = 0;
    for word in words.split(' ') {
        let length = word.chars().count();
        if column == 0 || column + 1 + length > WIDTH {
            text.push_str(if column == 0 { "" } else { "\n" });
            text.push_str(begin);
            column = begin.chars().count();
        } else {
            text.push(' ');
            column += 1;
        }
        text.push_str(word);
        column += length;
    }
    text.push('\n');
}
