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
    /// Variables in it that have no value; they stand in the words as they were written.
    pub(super) missing: Vec<String>,
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

    /// How its variables are given their values.
    pub(super) fn wanted(&self) -> String {
        let all: Vec<String> = self.missing.iter().map(|name| format!("{name}=VALUE")).collect();
        format!("variables without a value; run it again as: {} agent migrate ...", all.join(" "))
    }

    /// A part of it, likewise.
    pub(super) fn shown_from(&self, at: usize, count: usize) -> String {
        shown(self.words.get(at..(at + count).min(self.words.len())).unwrap_or_default())
    }
}

/// The values of variables.
pub(super) type Variables<'a> = dyn Fn(&str) -> Option<String> + 'a;

/// Whose lines are cut into words.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Syntax {
    /// haproxy's (its manual, 2.2): quotes of both kinds, and a comment from `#`.
    Haproxy,
    /// keepalived's: a comment from `!` too, wherever it stands, and no single quotes.
    Keepalived,
}

/// Every line that says something, with the variables in it replaced by their values.
pub(super) fn lines(text: &str, syntax: Syntax, variables: &Variables<'_>) -> Vec<WordLine> {
    let mut lines = Vec::new();
    for (at, text) in text.lines().enumerate() {
        let mut missing = Vec::new();
        let (words, open) = split(text, syntax, variables, &mut missing);
        if !words.is_empty() {
            lines.push(WordLine { number: at + 1, words, open, missing });
        }
    }
    lines
}

/// The words of a line: quotes, `\` before what is meant as it stands, variables. Also whether a quote is left
/// open.
fn split(
    text: &str,
    syntax: Syntax,
    variables: &Variables<'_>,
    missing: &mut Vec<String>,
) -> (Vec<String>, bool) {
    let mut words = Vec::new();
    let mut word: Option<String> = None;
    let mut quote = None;
    let mut rest = text;
    let keepalived = syntax == Syntax::Keepalived;
    while let Some(c) = rest.chars().next() {
        let here = rest;
        rest = &rest[c.len_utf8()..];
        match (c, quote) {
            ('\\', None | Some('"')) => {
                let next = rest.chars().next();
                rest = &rest[next.map_or(0, char::len_utf8)..];
                word.get_or_insert_default().extend(next);
            }
            (c, Some(open)) if c == open => quote = None,
            ('\'', None) if keepalived => word.get_or_insert_default().push(c),
            ('"' | '\'', None) => {
                quote = Some(c);
                word.get_or_insert_default();
            }
            ('#', None) => break,
            ('!', None) if keepalived => break,
            ('$', None | Some('"')) => {
                let (value, length) = variable(here, variables, missing);
                rest = &here[length..];
                if keepalived && quote.is_none() && value.contains(char::is_whitespace) {
                    // There a value may be several words.
                    let all = format!("{}{value}", word.take().unwrap_or_default());
                    words.extend(all.split_whitespace().map(str::to_owned));
                } else {
                    word.get_or_insert_default().push_str(&value);
                }
            }
            (c, None) if c.is_whitespace() => words.extend(word.take()),
            (c, _) => word.get_or_insert_default().push(c),
        }
    }
    words.extend(word);
    (words, quote.is_some())
}

/// The value of the variable that a text begins with, `$NAME`, `${NAME}` or haproxy's `${NAME-default}`, and how many
/// bytes speak of it. One without a value stands as it is.
fn variable(text: &str, variables: &Variables<'_>, missing: &mut Vec<String>) -> (String, usize) {
    let is_name = |b: &u8| b.is_ascii_alphanumeric() || *b == b'_';
    let (begin, closes) = if text.starts_with("${") { (2, true) } else { (1, false) };
    let length = text.bytes().skip(begin).take_while(is_name).count();
    let name = &text[begin..begin + length];
    let after = &text[begin + length..];
    let is_variable = name.bytes().next().is_some_and(|b| !b.is_ascii_digit());
    let (end, default) = match (closes, after.find('}')) {
        (false, _) => (begin + length, None),
        (true, Some(0)) => (begin + length + 1, None),
        (true, Some(at)) if after.starts_with('-') => (begin + length + at + 1, Some(&after[1..at])),
        _ => return ("$".to_owned(), 1),
    };
    if !is_variable {
        return ("$".to_owned(), 1);
    }
    let value = variables(name).or_else(|| default.map(str::to_owned)).unwrap_or_else(|| {
        missing.push(name.to_owned());
        text[..end].to_owned()
    });
    (value, end)
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

    fn words(text: &str) -> (Vec<String>, bool) {
        split(text, Syntax::Haproxy, &|_| None, &mut Vec::new())
    }

    #[test]
    fn words_are_cut_as_haproxy_does() {
        for (text, words) in [
            ("  bind *:6443  # all", &["bind", "*:6443"][..]),
            (r#"a "b c" 'd # e' f\ g \#h"#, &["a", "b c", "d # e", "f g", "#h"]),
            (r#"x "" y"z""#, &["x", "", "yz"]),
            ("# nothing", &[]),
            (r"end\", &["end"]),
        ] {
            let expected = words.iter().map(|word| (*word).to_owned()).collect();
            assert_eq!(super::tests::words(text), (expected, false), "{text}");
        }
        assert!(words("a \"b").1);
    }

    #[test]
    fn a_mark_begins_a_comment_of_keepalived_wherever_it_stands() {
        for (text, expected) in [
            ("! all of it", &[][..]),
            ("interface eth0 ! uplink {", &["interface", "eth0"]),
            ("priority 110 # keep {this}", &["priority", "110"]),
            ("notify \"/x !y\"", &["notify", "/x !y"]),
            ("name it's", &["name", "it's"]),
        ] {
            let found = split(text, Syntax::Keepalived, &|_| None, &mut Vec::new());
            assert_eq!(found, (expected.iter().map(|word| (*word).to_owned()).collect(), false), "{text}");
        }
        assert_eq!(words("acl x ! y").0, ["acl", "x", "!", "y"], "haproxy negates with it");
    }

    #[test]
    fn variables_have_their_values_or_are_asked_for() {
        let value = |name: &str| (name == "VIP").then(|| "10.0.0.50".to_owned());
        for (text, expected, unset) in [
            (r#"bind "${VIP}:6443""#, "10.0.0.50:6443", None),
            ("bind $VIP:6443", "10.0.0.50:6443", None),
            ("bind ${PORT-8443}", "8443", None),
            ("bind '$VIP'", "$VIP", None),
            (r"bind \$VIP", "$VIP", None),
            ("bind $1 ", "$1", None),
            ("bind ^/x$", "^/x$", None),
            ("bind ${VIP", "${VIP", None),
            ("bind ${M1}:6443", "${M1}:6443", Some("M1")),
        ] {
            let mut missing = Vec::new();
            let (words, _) = split(text, Syntax::Haproxy, &value, &mut missing);
            assert_eq!(words[1], expected, "{text}");
            assert_eq!(missing, Vec::from_iter(unset), "{text}");
        }
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
            assert_eq!(shown(&words(text).0), out);
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
