//! Building blocks of the page. maud closes tags and escapes text; [`tame`] removes control characters from
//! what is left.

use std::fmt::{Display, Write};
use std::time::Duration;

use maud::{Markup, html};
use proto::time::UnixMs;

use crate::severity::Severity;
use crate::times::{age, at};

impl Severity {
    /// Its class, and the id of its shape.
    pub(super) fn as_str(self) -> &'static str {
        match self {
            Severity::Good => "good",
            Severity::Doubt => "doubt",
            Severity::Bad => "bad",
            // Every state has a shape.
            Severity::Plain | Severity::Dim => "dim",
        }
    }
}

/// Markup without characters that change the text direction around them or break lines. Our own markup has no
/// line breaks.
pub(super) fn tame(markup: Markup) -> String {
    let mut text = markup.into_string();
    let bidi = |c| matches!(c, '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}');
    if text.contains(|c: char| bidi(c) || c.is_control()) {
        text = text
            .chars()
            .map(|c| {
                if bidi(c) {
                    '?'
                } else if c.is_control() {
                    ' '
                } else {
                    c
                }
            })
            .collect();
    }
    text
}

/// A state: its shape and its text.
pub(super) fn state(severity: Severity, word: &str) -> Markup {
    html! { span class={ "s " (severity.as_str()) } { (shape(severity)) (word) } }
}

/// A shape, hidden from screen readers: its text is next to it.
pub(super) fn shape(severity: Severity) -> Markup {
    html! { svg.i aria-hidden="true" { use href={ "#" (severity.as_str()) } {} } }
}

/// A section with its heading.
pub(super) fn section(id: &str, heading: &str, content: &Markup) -> Markup {
    html! {
        section id=(id) aria-labelledby={ "h-" (id) } {
            h2 id={ "h-" (id) } { (heading) }
            (content)
        }
    }
}

/// A table with its columns. Roles are explicit, since narrow screens show rows as cards and browsers drop a
/// table's roles along with its layout. A column named `!x` holds numbers.
pub(super) fn table(caption: &str, columns: &[&str], rows: &Markup) -> Markup {
    html! {
        table role="table" {
            caption { (caption) }
            thead role="rowgroup" {
                tr role="row" {
                    @for (name, class) in columns.iter().map(|column| labelled(column)) {
                        th role="columnheader" scope="col" class=[class] { (name) }
                    }
                }
            }
            tbody role="rowgroup" { (rows) }
        }
    }
}

/// A row with its name.
pub(super) fn row(name: impl Display, cells: &Markup) -> Markup {
    html! { tr role="row" { th role="rowheader" scope="row" { (name) } (cells) } }
}

/// A cell; `label` is its column's name, for narrow screens; `!x` marks a number.
pub(super) fn cell(label: &str, content: impl Display) -> Markup {
    let (name, class) = labelled(label);
    html! { td role="cell" data-l=(name) class=[class] { (content) } }
}

/// A cell with markup instead of text.
pub(super) fn cell_of(label: &str, content: &Markup) -> Markup {
    let (name, class) = labelled(label);
    html! { td role="cell" data-l=(name) class=[class] { (content) } }
}

/// The name of a column, and its class.
fn labelled(label: &str) -> (&str, Option<&'static str>) {
    match label.strip_prefix('!') {
        Some(name) => (name, Some("n")),
        None => (label, None),
    }
}

/// A muted note.
pub(super) fn quiet(what: impl Display) -> Markup {
    html! { span.q { (what) } }
}

/// A cell with a time, and how long ago it was.
pub(super) fn since(label: &str, then: UnixMs, now: UnixMs) -> Markup {
    match then {
        UnixMs(0) => cell_of(label, &quiet("not known")),
        then => cell_of(label, &html! { (age(then, now)) " " (quiet(at(then, now))) }),
    }
}

/// A cell with a duration in milliseconds.
pub(super) fn ms(label: &str, ms: Option<f64>) -> Markup {
    match ms {
        Some(ms) => cell(label, milliseconds(ms)),
        None => cell_of(label, &quiet("–")),
    }
}

/// Names with their values.
pub(super) fn pairs<V: Display>(pairs: impl IntoIterator<Item = (&'static str, V)>) -> Markup {
    html! {
        @for (name, value) in pairs {
            div { dt { (name) } dd { (value) } }
        }
    }
}

/// Milliseconds with as many digits as are meaningful.
pub(super) fn milliseconds(ms: f64) -> String {
    match ms {
        // Pulses are measured in whole milliseconds.
        ms if ms < 0.005 => "< 1 ms".to_owned(),
        ms if ms < 10.0 => format!("{ms:.2} ms"),
        ms if ms < 100.0 => format!("{ms:.1} ms"),
        ms => format!("{ms:.0} ms"),
    }
}

/// Bytes in readable units.
pub(super) fn bytes(count: u64) -> String {
    let mut value = count as f64;
    for unit in ["B", "kB", "MB", "GB"] {
        if value < 1000.0 {
            return if unit == "B" { format!("{count} B") } else { format!("{value:.1} {unit}") };
        }
        value /= 1000.0;
    }
    format!("{value:.1} TB")
}

/// A duration in milliseconds.
pub(super) fn lasted(ms: u64) -> String {
    proto::time::human(Duration::from_secs(ms / 1000)).replace("0ms", "0s")
}

/// Loss in thousandths.
pub(super) fn loss(permille: u16) -> String {
    let mut text = String::new();
    // Writing to a String can't fail.
    let _ = write!(text, "{}.{} % lost", permille / 10, permille % 10);
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_from_other_nodes_never_becomes_markup() {
        let text = "<script>alert(1)</script>\"'&\u{202e}\n";
        let escaped = "&lt;script&gt;alert(1)&lt;/script&gt;&quot;'&amp;? ";
        let made = tame(html! { p title=(text) { (text) } });
        assert_eq!(made, format!("<p title=\"{escaped}\">{escaped}</p>"));
    }

    #[test]
    fn numbers_are_short() {
        assert_eq!(
            (milliseconds(0.423), milliseconds(42.25), milliseconds(1234.5)),
            ("0.42 ms".into(), "42.2 ms".into(), "1234 ms".into())
        );
        assert_eq!(
            (bytes(999), bytes(1_500), bytes(u64::MAX)),
            ("999 B".into(), "1.5 kB".into(), "18446744.1 TB".into())
        );
        assert_eq!((lasted(0), lasted(61_000)), ("0s".into(), "61s".into()));
    }
}
