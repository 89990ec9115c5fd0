//! Form of files: small enough to be read, and without forbidden words.

use std::collections::BTreeSet;
use std::path::Path;

use syn::spanned::Spanned;

use crate::source::{Breach, Source, attributes, for_tests};
use crate::{LONG_FILES, LONGEST_FILE, LONGEST_LINE, MOST_CODE};

/// Lines of the file, without those that are empty or a comment, and without what is for tests.
fn code(source: &Source) -> Vec<usize> {
    if source.only_tests {
        return Vec::new();
    }
    let tests: BTreeSet<usize> = source
        .file
        .items
        .iter()
        .filter(|item| for_tests(attributes(item)))
        .flat_map(|item| {
            let span = item.span();
            span.start().line..=span.end().line
        })
        .collect();
    let is_code = |line: &str| {
        let line = line.trim();
        !line.is_empty() && !line.starts_with("//")
    };
    let lines = source.text.lines().enumerate().map(|(i, line)| (i + 1, line));
    lines.filter(|(i, line)| is_code(line) && !tests.contains(i)).map(|(i, _)| i).collect()
}

/// Files stay small enough to be read.
pub(crate) fn size(source: &Source) -> Vec<Breach> {
    let mut breaches = Vec::new();
    let code = code(source);
    if let Some(line) = code.get(MOST_CODE).filter(|_| !source.path.starts_with("tests")) {
        let why = format!("more than {MOST_CODE} lines of code: split the module into a directory");
        breaches.push(source.breach(*line, why));
    }
    let listed = LONG_FILES.iter().any(|(file, _)| source.path.ends_with(file));
    if source.text.lines().count() > LONGEST_FILE && !listed {
        breaches.push(source.breach(LONGEST_FILE + 1, format!("a file has at most {LONGEST_FILE} lines")));
    }
    for (i, line) in source.text.lines().enumerate() {
        if without_texts(line).chars().count() > LONGEST_LINE {
            breaches.push(source.breach(i + 1, format!("a line has at most {LONGEST_LINE} characters")));
        }
    }
    breaches
}

/// A line without its texts, which can't always be broken; a comment is no text.
fn without_texts(line: &str) -> String {
    match line.trim_start().starts_with("//") {
        true => line.to_owned(),
        false => line.split('"').step_by(2).collect(),
    }
}

/// Listed files that are short now.
pub(crate) fn stale(sources: &[Source]) -> Vec<String> {
    let long = |file: &str| {
        sources.iter().any(|one| one.path.ends_with(file) && one.text.lines().count() > LONGEST_FILE)
    };
    LONG_FILES
        .iter()
        .filter(|(file, _)| !long(file))
        .map(|(file, _)| format!("the length of {file}"))
        .collect()
}

/// Words that belong to a workplace and not into the house; written in pieces, so that they are not here.
pub(crate) fn forbidden_words(path: &Path, text: &str) -> Vec<Breach> {
    let prose = path.extension().is_some_and(|kind| kind == "md");
    let everywhere = [["TO", "DO"], ["FIX", "ME"], ["issue ", "#"], ["/wo", "rk/"]];
    let in_code = [["/tm", "p/"], ["/ho", "me/"]];
    let all = everywhere.iter().chain(in_code.iter().filter(|_| !prose));
    let mut breaches = Vec::new();
    for word in all.map(|halves| halves.concat()) {
        for (i, line) in text.lines().enumerate() {
            // A whole word: "mastodon" and "https://example.net/work/x" are allowed.
            let whole = |(at, _): (usize, &str)| !line[..at].ends_with(|c: char| c.is_alphanumeric());
            if line.match_indices(&word).any(whole) {
                breaches.push(Breach::new(path, i + 1, format!("\"{word}\" has no place in the house")));
            }
        }
    }
    breaches
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::AGENT;
    use crate::source::lines_found;

    #[test]
    fn a_file_that_is_too_long_is_reported() {
        let of = |text: &str| lines_found(&format!("{AGENT}/part.rs"), text, size);
        let lines = |count: usize| "const _: u8 = 1;\n".repeat(count);
        assert_eq!(of(&lines(MOST_CODE)), [0; 0]);
        assert_eq!(of(&lines(MOST_CODE + 1)), [MOST_CODE + 1]);
        let tests = |count| format!("#[cfg(test)]\nmod tests {{\n{}}}\n", lines(count));
        assert_eq!(of(&format!("{}{}", tests(9), lines(MOST_CODE))), [0; 0], "tests are not counted");
        assert_eq!(of(&format!("{}{}", tests(9), lines(MOST_CODE + 1))).len(), 1, "what comes after them is");
        assert_eq!(of(&tests(LONGEST_FILE)), [LONGEST_FILE + 1], "but all lines are");
        assert_eq!(of(&format!("// {}\n", "ü".repeat(LONGEST_LINE - 3))), [0; 0]);
        assert_eq!(of(&format!("\n// {}\n", "ü".repeat(LONGEST_LINE - 2))), [2]);
        assert_eq!(of(&format!("\n// \"{}\"\n", "ü".repeat(LONGEST_LINE))), [2], "a comment is no text");
        assert_eq!(of(&format!("const A: &str = \"{}\";", "ü".repeat(LONGEST_LINE))), [0; 0]);
    }

    #[test]
    fn forbidden_words_are_reported() {
        let of = |path: &str, text: &str| forbidden_words(Path::new(path), text).len();
        assert_eq!(of("agent/src/x.rs", &["// TO", "DO: later"].concat()), 1);
        assert_eq!(of("README.md", &["see issue ", "#4"].concat()), 1);
        assert_eq!(of("agent/src/x.rs", &["\n\"/tm", "p/x\""].concat()), 1);
        assert_eq!(of("README.md", &["run it with --state-dir /tm", "p/x"].concat()), 0);
    }
}
