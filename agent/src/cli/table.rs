//! Tables that fit: columns give way in a fixed order when the terminal is narrow.

pub(super) use crate::severity::Severity;

impl Severity {
    /// The text in this tone, where colours are wanted.
    pub(super) fn paint(self, text: &str, colours: bool) -> String {
        let code = match self {
            Severity::Good => "32",
            Severity::Doubt => "33",
            Severity::Bad => "31;1",
            Severity::Dim => "2",
            Severity::Plain => return text.to_owned(),
        };
        if colours { format!("\x1b[{code}m{text}\x1b[0m") } else { text.to_owned() }
    }
}

/// Takes the power from text that came from another node: no control character reaches the terminal.
pub(super) fn sanitize(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { '?' } else { c }).collect()
}

/// Cuts a text to a number of columns and shows that it was.
pub(super) fn cut(text: &str, columns: usize) -> String {
    if text.chars().count() <= columns {
        return text.to_owned();
    }
    text.chars().take(columns.saturating_sub(1)).chain(['…']).collect()
}

/// Breaks a text into lines of at most so many columns, at spaces where there are any.
pub(super) fn wrap(text: &str, columns: usize) -> Vec<String> {
    let columns = columns.max(10);
    let mut lines = vec![String::new()];
    for word in sanitize(text).split_whitespace() {
        for (i, piece) in word.chars().collect::<Vec<_>>().chunks(columns).enumerate() {
            let piece: String = piece.iter().collect();
            let Some(last) = lines.last_mut() else { continue };
            let gap = usize::from(!last.is_empty());
            if i == 0 && last.chars().count() + gap + piece.chars().count() <= columns {
                last.push_str(&" "[..gap]);
                last.push_str(&piece);
            } else {
                lines.push(piece);
            }
        }
    }
    lines.retain(|line| !line.is_empty());
    lines
}

/// A text with its label, its further lines below its first.
pub(super) fn paragraph(text: &mut String, label: &str, words: &str, columns: usize) {
    let hang = label.chars().count();
    for (i, line) in wrap(words, columns.saturating_sub(hang)).iter().enumerate() {
        let before = if i == 0 { label.to_owned() } else { " ".repeat(hang) };
        text.push_str(&format!("{before}{line}\n"));
    }
}

/// One field.
pub(super) struct Cell {
    text: String,
    severity: Severity,
}

impl Cell {
    /// A text without a tone.
    pub(super) fn plain(text: impl AsRef<str>) -> Cell {
        Cell::toned(text, Severity::Plain)
    }

    /// A text with one.
    pub(super) fn toned(text: impl AsRef<str>, severity: Severity) -> Cell {
        Cell { text: sanitize(text.as_ref()), severity }
    }
}

/// How a column is written.
pub(super) struct Column {
    head: &'static str,
    right: bool,
    /// The higher, the earlier it gives way; 0: it stays.
    gives_way: u8,
}

impl Column {
    /// Words.
    pub(super) fn left(head: &'static str) -> Column {
        Column { head, right: false, gives_way: 0 }
    }

    /// Numbers.
    pub(super) fn right(head: &'static str) -> Column {
        Column { head, right: true, gives_way: 0 }
    }

    /// May be left out; the higher `rank`, the earlier.
    pub(super) fn optional(mut self, rank: u8) -> Column {
        self.gives_way = rank;
        self
    }
}

/// A table with notes below its rows.
pub(super) struct Table {
    columns: Vec<Column>,
    rows: Vec<(Vec<Cell>, Option<String>)>,
    indent: usize,
}

const GAP: usize = 2;

/// Narrowest that the first column is cut to.
const NARROWEST: usize = 8;

impl Table {
    /// An empty table.
    pub(super) fn new(columns: Vec<Column>) -> Table {
        Table { columns, rows: Vec::new(), indent: 0 }
    }

    /// Begins every line with so many spaces.
    pub(super) fn indent(mut self, indent: usize) -> Table {
        self.indent = indent;
        self
    }

    /// Appends a row: a cell for each column.
    pub(super) fn row(&mut self, cells: Vec<Cell>) {
        self.rows.push((cells, None));
    }

    /// Says something below the last row.
    pub(super) fn note(&mut self, text: impl Into<String>) {
        if let Some((_, note)) = self.rows.last_mut() {
            *note = Some(text.into());
        }
    }

    /// The table as lines of at most `columns` columns.
    pub(super) fn render(&self, columns: usize, colours: bool) -> String {
        let (shown, widths) = self.fit(columns);
        let mut text = String::new();
        let heads: Vec<Cell> =
            self.columns.iter().map(|column| Cell::toned(column.head, Severity::Dim)).collect();
        self.line(&mut text, &heads, &shown, &widths, colours);
        for (cells, note) in &self.rows {
            self.line(&mut text, cells, &shown, &widths, colours);
            let hang = self.indent + 2 * GAP;
            for line in note.iter().flat_map(|note| wrap(note, columns.saturating_sub(hang))) {
                text.push_str(&format!("{:hang$}{line}\n", ""));
            }
        }
        text
    }

    /// Which columns are shown, and how wide each is.
    fn fit(&self, columns: usize) -> (Vec<usize>, Vec<usize>) {
        let width = |i: usize| {
            let cells = self.rows.iter().filter_map(|(cells, _)| cells.get(i));
            let widest = cells.map(|cell| cell.text.chars().count()).max().unwrap_or(0);
            widest.max(self.columns[i].head.chars().count())
        };
        let mut widths: Vec<usize> = (0..self.columns.len()).map(width).collect();
        let mut shown: Vec<usize> = (0..self.columns.len()).collect();
        let total = |shown: &[usize], widths: &[usize]| {
            let text: usize = shown.iter().map(|i| widths[*i]).sum();
            self.indent + text + GAP * shown.len().saturating_sub(1)
        };
        while total(&shown, &widths) > columns {
            let first_to_go = shown.iter().copied().max_by_key(|i| self.columns[*i].gives_way);
            match first_to_go.filter(|i| self.columns[*i].gives_way > 0) {
                Some(gone) => shown.retain(|i| *i != gone),
                None => break,
            }
        }
        let over = total(&shown, &widths).saturating_sub(columns);
        if let Some(first) = widths.first_mut() {
            *first = first.saturating_sub(over).max(NARROWEST.min(*first));
        }
        (shown, widths)
    }

    fn line(&self, text: &mut String, cells: &[Cell], shown: &[usize], widths: &[usize], colours: bool) {
        let mut line = " ".repeat(self.indent);
        for (place, i) in shown.iter().copied().enumerate() {
            let Some(cell) = cells.get(i) else { continue };
            let word = cut(&cell.text, widths[i]);
            let pad = " ".repeat(widths[i].saturating_sub(word.chars().count()));
            let word = cell.severity.paint(&word, colours);
            let gap = if place == 0 { "" } else { &"  "[..GAP] };
            let (before, after) = if self.columns[i].right { (pad.as_str(), "") } else { ("", pad.as_str()) };
            line.push_str(&format!("{gap}{before}{word}{after}"));
        }
        text.push_str(line.trim_end());
        text.push('\n');
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table() -> Table {
        let mut table = Table::new(vec![
            Column::left("NAME"),
            Column::right("RTT").optional(1),
            Column::right("TOTAL").optional(2),
            Column::left("STATE"),
        ])
        .indent(2);
        table.row(vec![
            Cell::plain("a-long-name"),
            Cell::plain("1.5ms"),
            Cell::plain("7"),
            Cell::toned("down", Severity::Bad),
        ]);
        table.note("connection refused");
        table
    }

    #[test]
    fn columns_give_way_in_their_order_and_then_the_first_is_cut() {
        let whole = "  NAME           RTT  TOTAL  STATE\n  a-long-name  1.5ms      7  down\n      connection refused\n";
        assert_eq!(table().render(80, false), whole);
        assert!(table().render(30, false).starts_with("  NAME           RTT  STATE\n"));
        assert!(table().render(20, false).starts_with("  NAME         STATE\n"));
        assert!(table().render(17, false).contains("  a-long-…  down\n"));
    }

    #[test]
    fn colours_are_only_added() {
        let painted = table().render(80, true);
        assert!(painted.contains("\x1b[31;1mdown\x1b[0m"));
        let bare = painted.split("\x1b[").map(|part| part.split_once('m').map_or(part, |(_, rest)| rest));
        let bare: String = table().render(80, true).split("\x1b[").take(1).chain(bare.skip(1)).collect();
        assert_eq!(bare, table().render(80, false));
    }

    #[test]
    fn what_other_nodes_say_can_not_command_the_terminal() {
        let mut table = Table::new(vec![Column::left("X")]);
        table.row(vec![Cell::plain("\x1b]0;owned\x07")]);
        table.note("\x1b[2J");
        assert!(!table.render(80, false).contains('\x1b'));
        assert!(!table.render(80, false).contains('\x07'));
    }

    #[test]
    fn long_texts_are_broken_at_spaces_and_elsewhere_only_when_they_must() {
        assert_eq!(wrap("one two three four", 10), ["one two", "three four"]);
        assert_eq!(wrap("abcdefghijklmnop q", 10), ["abcdefghij", "klmnop q"]);
        assert!(wrap("  ", 10).is_empty());
    }
}
