//! Writes HTML. Whatever came from a file or another node goes through [`Html::text`].

use std::fmt::{Display, Write};
use std::time::Duration;

use proto::time::UnixMs;

use crate::times::{age, at};
use crate::tone::Tone;

impl Tone {
    /// Its class, and the id of its shape.
    pub(super) fn word(self) -> &'static str {
        match self {
            Tone::Good => "good",
            Tone::Doubt => "doubt",
            Tone::Bad => "bad",
            // Nothing stands on the page without a shape.
            Tone::Plain | Tone::Dim => "dim",
        }
    }
}

/// A piece of a page.
pub(super) struct Html(pub(super) String);

impl Html {
    /// Our own markup, as it stands.
    pub(super) fn raw(&mut self, markup: &str) -> &mut Html {
        self.0.push_str(markup);
        self
    }

    /// A text of anyone.
    pub(super) fn text(&mut self, text: &str) -> &mut Html {
        for c in text.chars() {
            match c {
                '&' => self.0.push_str("&amp;"),
                '<' => self.0.push_str("&lt;"),
                '>' => self.0.push_str("&gt;"),
                '"' => self.0.push_str("&quot;"),
                '\'' => self.0.push_str("&#39;"),
                // Nor may a text change the direction of what stands around it.
                '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}' => self.0.push('?'),
                c if c.is_control() => self.0.push(' '),
                c => self.0.push(c),
            }
        }
        self
    }

    /// Something that shows itself, as a text of anyone.
    pub(super) fn show(&mut self, what: &dyn Display) -> &mut Html {
        self.text(&what.to_string())
    }

    /// A state: its shape, its word.
    pub(super) fn state(&mut self, tone: Tone, word: &str) -> &mut Html {
        self.raw("<span class=\"s ").raw(tone.word()).raw("\">");
        self.shape(tone).text(word).raw("</span>")
    }

    /// A shape alone, for eyes only: a word stands beside it.
    pub(super) fn shape(&mut self, tone: Tone) -> &mut Html {
        self.raw("<svg class=\"i\" aria-hidden=\"true\"><use href=\"#").raw(tone.word()).raw("\"/></svg>")
    }

    /// Begins a section with its heading.
    pub(super) fn section(&mut self, id: &str, heading: &str) -> &mut Html {
        self.raw("<section id=\"").raw(id).raw("\" aria-labelledby=\"h-").raw(id);
        self.raw("\"><h2 id=\"h-").raw(id).raw("\">").text(heading).raw("</h2>")
    }

    /// Begins a table with its columns. Roles are written out, since on narrow screens rows are shown as cards
    /// and browsers take the roles of a table away with its form. A column named `!x` holds numbers.
    pub(super) fn table(&mut self, caption: &str, columns: &[&str]) -> &mut Html {
        self.raw("<table role=\"table\"><caption>").text(caption);
        self.raw("</caption><thead role=\"rowgroup\"><tr role=\"row\">");
        for column in columns {
            let number = column.strip_prefix('!');
            self.raw("<th role=\"columnheader\" scope=\"col\"");
            self.raw(if number.is_some() { " class=\"n\">" } else { ">" });
            self.text(number.unwrap_or(column)).raw("</th>");
        }
        self.raw("</tr></thead><tbody role=\"rowgroup\">")
    }

    /// Begins a row with its name.
    pub(super) fn row(&mut self, name: &str) -> &mut Html {
        self.raw("<tr role=\"row\"><th role=\"rowheader\" scope=\"row\">").text(name).raw("</th>")
    }

    /// Begins a cell; `label` is its column's name, for narrow screens, `!x` one of a number.
    pub(super) fn cell(&mut self, label: &str) -> &mut Html {
        let number = label.strip_prefix('!');
        self.raw("<td role=\"cell\" data-l=\"").text(number.unwrap_or(label));
        self.raw(if number.is_some() { "\" class=\"n\">" } else { "\">" })
    }

    /// A cell with a number.
    pub(super) fn number(&mut self, label: &str, number: u64) -> &mut Html {
        self.raw("<td role=\"cell\" data-l=\"").text(label).raw("\" class=\"n\">");
        self.show(&number).raw("</td>")
    }

    /// A cell with when, and how long ago.
    pub(super) fn since(&mut self, label: &str, then: UnixMs, now: UnixMs) -> &mut Html {
        self.cell(label);
        if then == UnixMs(0) {
            return self.raw("<span class=\"q\">not known</span></td>");
        }
        self.text(&age(then, now)).raw(" <span class=\"q\">").text(&at(then, now)).raw("</span></td>")
    }

    /// A cell with a time, short.
    pub(super) fn ms(&mut self, label: &str, ms: Option<f64>) -> &mut Html {
        self.cell(label);
        match ms {
            Some(ms) => self.text(&milliseconds(ms)).raw("</td>"),
            None => self.raw("<span class=\"q\">–</span></td>"),
        }
    }
}

/// Milliseconds with as many digits as tell something.
pub(super) fn milliseconds(ms: f64) -> String {
    match ms {
        // Pulses are measured in whole ones.
        ms if ms < 0.005 => "< 1 ms".to_owned(),
        ms if ms < 10.0 => format!("{ms:.2} ms"),
        ms if ms < 100.0 => format!("{ms:.1} ms"),
        ms => format!("{ms:.0} ms"),
    }
}

/// Bytes in units of a person.
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

/// How long, of milliseconds.
pub(super) fn lasted(ms: u64) -> String {
    proto::time::human(Duration::from_secs(ms / 1000)).replace("0ms", "0s")
}

/// A share in thousandths.
pub(super) fn loss(permille: u16) -> String {
    let mut text = String::new();
    // Writing to a text can't fail.
    let _ = write!(text, "{}.{} % lost", permille / 10, permille % 10);
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_that_others_say_becomes_markup() {
        let mut html = Html(String::new());
        html.text("<script>alert(1)</script>\"'&\u{202e}\n");
        assert_eq!(html.0, "&lt;script&gt;alert(1)&lt;/script&gt;&quot;&#39;&amp;? ");
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
