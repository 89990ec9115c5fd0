//! `http-check expect`: which answers are good, as ranges of status codes.

use super::super::notes::LineOutcome::{self, NotDone, Wrong};
use crate::service::Expect;

/// What haproxy takes for good where nothing is expected (its manual, `option httpchk`).
pub(super) const WITHOUT: &str = "200-399";

/// The codes that an answer may have (RFC 9110, 15).
const CODES: std::ops::RangeInclusive<u16> = 100..=599;

/// Options that stand before what is expected, each with a word of its own.
const OPTIONS: [&str; 8] = [
    "min-recv",
    "comment",
    "ok-status",
    "error-status",
    "tout-status",
    "on-success",
    "on-error",
    "status-code",
];

/// Reads the words behind `expect`.
pub(super) fn read(words: &[String]) -> Result<Expect, (LineOutcome, String)> {
    let mut words = words;
    while let Some(word) = words.first()
        && OPTIONS.contains(&word.as_str())
    {
        words = words.get(2..).unwrap_or_default();
    }
    let negated = words.first().is_some_and(|word| word == "!");
    let words = if negated { &words[1..] } else { words };
    let pattern = words.get(1).map_or("", String::as_str);
    let good: Box<dyn Fn(u16) -> bool> = match words.first().map(String::as_str) {
        Some("status") => {
            let codes: Expect = pattern.parse().map_err(|error| (Wrong, format!("{error}")))?;
            if !negated {
                return Ok(codes);
            }
            Box::new(move |code| codes.holds(code))
        }
        Some("rstatus") => {
            let Some(pattern) = Pattern::parse(pattern) else {
                return Err((
                    NotDone,
                    "the pattern is not understood; write the codes: expect status 200-299".to_owned(),
                ));
            };
            Box::new(move |code| pattern.fits(code))
        }
        _ => return Err((NotDone, "a check looks at the status code alone".to_owned())),
    };
    let ranges = ranges(|code| good(code) != negated);
    if ranges.is_empty() {
        return Err((Wrong, "no status code fits it".to_owned()));
    }
    Ok(Expect(ranges))
}

fn ranges(good: impl Fn(u16) -> bool) -> Vec<(u16, u16)> {
    let mut ranges: Vec<(u16, u16)> = Vec::new();
    for code in CODES.filter(|code| good(*code)) {
        match ranges.last_mut() {
            Some((_, last)) if *last + 1 == code => *last = code,
            _ => ranges.push((code, code)),
        }
    }
    ranges
}

/// A regular expression as people write it for codes: `^2`, `^[23][0-9]{2}$` in the form `^(2|3)[0-9][0-9]$`.
struct Pattern(Vec<Branch>);

/// One of the alternatives: a set of digits for each place, found anywhere unless it is held at an end.
struct Branch {
    at_begin: bool,
    at_end: bool,
    places: Vec<Vec<char>>,
}

impl Pattern {
    fn parse(text: &str) -> Option<Pattern> {
        let (inner, begin) = text.strip_prefix('^').map_or((text, false), |inner| (inner, true));
        let (inner, end) = inner.strip_suffix('$').map_or((inner, false), |inner| (inner, true));
        let grouped = inner.strip_prefix('(').and_then(|inner| inner.strip_suffix(')'));
        // Outside of a group, what holds an end belongs to its own alternative.
        let Some(grouped) = grouped.filter(|inner| !inner.contains(['(', ')'])) else {
            return alternatives(text).into_iter().map(one_branch).collect::<Option<_>>().map(Pattern);
        };
        let branch = |one: &str| {
            let mut branch = one_branch(one)?;
            branch.at_begin |= begin;
            branch.at_end |= end;
            Some(branch)
        };
        grouped.split('|').map(branch).collect::<Option<_>>().map(Pattern)
    }

    fn fits(&self, code: u16) -> bool {
        let digits: Vec<char> = code.to_string().chars().collect();
        self.0.iter().any(|branch| {
            let length = branch.places.len();
            (0..=digits.len().saturating_sub(length)).any(|from| {
                let here = digits.get(from..from + length);
                let fits = here.is_some_and(|here| {
                    here.iter().zip(&branch.places).all(|(digit, place)| place.contains(digit))
                });
                fits && (!branch.at_begin || from == 0) && (!branch.at_end || from + length == digits.len())
            })
        })
    }
}

/// The alternatives of a pattern, outside of groups.
fn alternatives(text: &str) -> Vec<&str> {
    let (mut all, mut depth, mut from) = (Vec::new(), 0_usize, 0);
    for (at, c) in text.char_indices() {
        match c {
            '(' => depth += 1,
            ')' => depth = depth.saturating_sub(1),
            '|' if depth == 0 => {
                all.push(&text[from..at]);
                from = at + 1;
            }
            _ => {}
        }
    }
    all.push(&text[from..]);
    all
}

fn one_branch(text: &str) -> Option<Branch> {
    let (text, at_begin) = text.strip_prefix('^').map_or((text, false), |text| (text, true));
    let (text, at_end) = text.strip_suffix('$').map_or((text, false), |text| (text, true));
    let mut places = Vec::new();
    // `.*` at an end says that anything may follow.
    let (text, at_end) = text.strip_suffix(".*").map_or((text, at_end), |text| (text, false));
    let mut chars = text.chars().peekable();
    while let Some(c) = chars.next() {
        let place: Vec<char> = match c {
            '0'..='9' => vec![c],
            '.' => ('0'..='9').collect(),
            '\\' if chars.next()? == 'd' => ('0'..='9').collect(),
            '[' => class(&mut chars)?,
            '(' => group(&mut chars)?,
            _ => return None,
        };
        let again = if chars.peek() == Some(&'{') { times(&mut chars)? } else { 1 };
        for _ in 0..again {
            places.push(place.clone());
        }
    }
    (places.len() <= 3).then_some(Branch { at_begin, at_end, places })
}

/// `(2|3)`.
fn group(chars: &mut std::iter::Peekable<std::str::Chars<'_>>) -> Option<Vec<char>> {
    let mut all = Vec::new();
    loop {
        all.push(chars.next().filter(char::is_ascii_digit)?);
        match chars.next()? {
            ')' => return Some(all),
            '|' => {}
            _ => return None,
        }
    }
}

/// `[23]`, `[0-9]`.
fn class(chars: &mut std::iter::Peekable<std::str::Chars<'_>>) -> Option<Vec<char>> {
    let mut all = Vec::new();
    loop {
        match chars.next()? {
            ']' => return Some(all),
            first @ '0'..='9' if chars.peek() == Some(&'-') => {
                chars.next();
                let last = chars.next()?;
                all.extend(first..=last.min('9'));
            }
            digit @ '0'..='9' => all.push(digit),
            _ => return None,
        }
    }
}

/// `{2}`.
fn times(chars: &mut std::iter::Peekable<std::str::Chars<'_>>) -> Option<usize> {
    chars.next();
    let digit = chars.next()?.to_digit(10)?;
    (chars.next()? == '}').then_some(())?;
    usize::try_from(digit).ok().filter(|times| (1..=3).contains(times))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_expected_becomes_the_same_codes() {
        for (text, codes) in [
            ("status 200", "200"),
            ("status 200-399,401", "200-399,401"),
            ("! status 500-599", "100-499"),
            ("min-recv 10 comment x status 204", "204"),
            ("rstatus ^2", "200-299"),
            ("rstatus ^[23]", "200-399"),
            ("rstatus (2|3)[0-9][0-9]", "200-399"),
            ("rstatus ^(2|3)\\d{2}$", "200-399"),
            ("rstatus ^[2-4]..$", "200-499"),
            ("rstatus ^200|^401$", "200,401"),
            ("rstatus ^2.*", "200-299"),
            ("! rstatus ^5", "100-499"),
        ] {
            let words: Vec<String> = text.split(' ').map(str::to_owned).collect();
            assert_eq!(read(&words).map(|found| found.to_string()), Ok(codes.to_owned()), "{text}");
        }
        for text in ["string ok", "rstatus ^2(?!04)", "rstatus [", "status x", "! status 100-599", ""] {
            let words: Vec<String> = text.split(' ').map(str::to_owned).collect();
            assert!(read(&words).is_err(), "{text}");
        }
    }
}
