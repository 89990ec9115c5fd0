//! Lines and words of both formats, and what of them may be shown.

/// Longest text of a line that is kept to be shown.
const MAX_SHOWN: usize = 200;

/// A line that says something.
#[derive(Debug, Clone)]
pub(super) struct WordLine {
    /// Its number, from 1.
    pub(super) number: usize,
    /// Its words, without quotes; at least one.
    pub(super) words: Vec<String>,
    /// A quote in it is not closed.
    pub(super) open: bool,
}

impl WordLine {
    /// The word at a place; empty when there is none.
    pub(super) fn word(&self, at: usize) -> &str {
        self.words.get(at).map_or("", String::as_str)
    }

    /// The line as it may be shown.
    pub(super) fn shown(&self) -> String {
        shown(&self.words)
    }

    /// A part of it, likewise.
    pub(super) fn shown_from(&self, at: usize, count: usize) -> String {
        shown(self.words.get(at..(at + count).min(self.words.len())).unwrap_or_default())
    }
}

/// Every line that says something. `extra` begins a comment too where a line begins with it.
pub(super) fn lines(text: &str, extra: Option<char>) -> Vec<WordLine> {
    let mut lines = Vec::new();
    for (at, text) in text.lines().enumerate() {
        if extra.is_some_and(|extra| text.trim_start().starts_with(extra)) {
            continue;
        }
        let (words, open) = split(text);
        if !words.is_empty() {
            lines.push(WordLine { number: at + 1, words, open });
        }
    }
    lines
}

/// The words of a line, as haproxy cuts them (its manual, 2.2): quotes of both kinds, `\` before what is
/// meant as it stands, and a comment from `#`. Also whether a quote is left open.
fn split(text: &str) -> (Vec<String>, bool) {
    let mut words = Vec::new();
    let mut word: Option<String> = None;
    let mut quote = None;
    let mut chars = text.chars();
    while let Some(c) = chars.next() {
        match (c, quote) {
            ('\\', None | Some('"')) => word.get_or_insert_default().extend(chars.next()),
            (c, Some(open)) if c == open => quote = None,
            ('"' | '\'', None) => {
                quote = Some(c);
                word.get_or_insert_default();
            }
            ('#', None) => break,
            (c, None) if c.is_whitespace() => words.extend(word.take()),
            (c, _) => word.get_or_insert_default().push(c),
        }
    }
    words.extend(word);
    (words, quote.is_some())
}

/// Words as they may be shown: without secrets, and without what a terminal would obey. Rather too much is
/// hidden than too little: words that follow one that speaks of a secret.
pub(super) fn shown(words: &[String]) -> String {
    let mut text = String::new();
    let mut hide = false;
    for word in words {
        let lower = word.to_lowercase();
        let speaks = ["pass", "auth", "secret", "token", "bearer"].iter().any(|part| lower.contains(part));
        // A header in one word holds its value too.
        let whole = lower.contains("authorization:") || lower.contains("bearer ");
        text.push_str(if text.is_empty() { "" } else { " " });
        if whole || (hide && word != "{") {
            text.push('…');
        } else {
            text.extend(word.chars().map(|c| if c.is_control() { '?' } else { c }));
        }
        hide = speaks && lower != "auth_type";
        if text.len() > MAX_SHOWN {
            break;
        }
    }
    text.chars().take(MAX_SHOWN).collect()
}

/// A duration of haproxy's in milliseconds: a number with its unit, milliseconds without one.
pub(super) fn milliseconds(text: &str) -> Option<u64> {
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    let (number, unit) = text.split_at(digits);
    let number: u64 = number.parse().ok()?;
    match unit {
        "us" => Some(number / 1_000),
        "" | "ms" => Some(number),
        "s" => number.checked_mul(1_000),
        "m" => number.checked_mul(60_000),
        "h" => number.checked_mul(3_600_000),
        "d" => number.checked_mul(86_400_000),
        _ => None,
    }
}

/// Milliseconds as a configuration of ours has them.
pub(super) fn duration(ms: u64) -> String {
    if ms.is_multiple_of(1_000) { format!("{}s", ms / 1_000) } else { format!("{ms}ms") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_cut_as_haproxy_does() {
        for (text, words) in [
            ("  bind *:6443  # all", &["bind", "*:6443"][..]),
            (r#"a "b c" 'd # e' f\ g \#h"#, &["a", "b c", "d # e", "f g", "#h"]),
            (r#"x "" y"z""#, &["x", "", "yz"]),
            ("# nothing", &[]),
            (r"end\", &["end"]),
        ] {
            assert_eq!(split(text), (words.iter().map(|word| (*word).to_owned()).collect(), false), "{text}");
        }
        assert!(split("a \"b").1);
    }

    #[test]
    fn secrets_and_controls_are_not_shown() {
        for (text, out) in [
            ("stats auth admin:geheim", "stats auth …"),
            ("auth_pass geheim", "auth_pass …"),
            ("auth_type PASS", "auth_type PASS"),
            ("authentication {", "authentication {"),
            ("user ops insecure-password geheim", "user ops insecure-password …"),
            (r"option httpchk GET / HTTP/1.1\r\nAuthorization:\ Bearer\ geheim", "option httpchk GET / …"),
            ("http-check send hdr Authorization geheim", "http-check send hdr Authorization …"),
            ("mode \u{1b}[2J", "mode ?[2J"),
        ] {
            assert_eq!(shown(&split(text).0), out);
        }
    }

    #[test]
    fn durations_of_haproxy_are_read() {
        for (text, ms) in
            [("500", Some(500)), ("2s", Some(2_000)), ("1m", Some(60_000)), ("99us", Some(0)), ("2x", None)]
        {
            assert_eq!(milliseconds(text), ms, "{text}");
        }
        assert_eq!((duration(2_000), duration(1_500)), ("2s".to_owned(), "1500ms".to_owned()));
        assert_eq!(milliseconds("99999999999999999999s").or(milliseconds("99999999999999999d")), None);
    }
}
