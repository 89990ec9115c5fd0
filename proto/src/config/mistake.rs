//! A mistake, where it is, and what was probably meant.

use std::fmt;

/// Something in the configuration that is not right.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mistake {
    /// Line in the file, from 1; 0 when it is not in the file.
    pub line: usize,
    /// Column in characters, from 1; 0 when it is not in the file.
    pub column: usize,
    /// The key with those above it, as `log.level`; empty when the text is no TOML at all.
    pub key: String,
    /// What is wrong and what would be right.
    pub message: String,
}

impl fmt::Display for Mistake {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.line > 0 {
            write!(f, "{}:{}: ", self.line, self.column)?;
        }
        if !self.key.is_empty() {
            write!(f, "{}: ", self.key)?;
        }
        f.write_str(&self.message)
    }
}

/// Line and column, both from 1, of a byte offset. Columns count characters, as editors do.
pub(super) fn place(text: &str, offset: usize) -> (usize, usize) {
    let mut offset = offset.min(text.len());
    while !text.is_char_boundary(offset) {
        offset -= 1;
    }
    let before = &text[..offset];
    let start = before.rfind('\n').map_or(0, |newline| newline + 1);
    (before.matches('\n').count() + 1, before[start..].chars().count() + 1)
}

/// The one of `known` that `typed` was probably meant to be.
pub(crate) fn nearest<'k>(typed: &str, known: &[&'k str]) -> Option<&'k str> {
    let typed = typed.to_lowercase().replace('_', "-");
    // A third of the letters may be wrong: more and the guess would be noise.
    let bound = (typed.chars().count() / 3).max(1);
    known
        .iter()
        .map(|key| (distance(&typed, &key.to_lowercase().replace('_', "-")), *key))
        .filter(|(distance, _)| *distance <= bound)
        .min_by_key(|(distance, _)| *distance)
        .map(|(_, key)| key)
}

/// Edits (insert, delete, replace, swap of neighbours) from one text to the other.
fn distance(a: &str, b: &str) -> usize {
    // Longer than any key: no guess, and no time lost on a file that is not ours.
    if a.len() > 64 {
        return usize::MAX;
    }
    let (a, b): (Vec<char>, Vec<char>) = (a.chars().collect(), b.chars().collect());
    let mut before_last = Vec::new();
    let mut last: Vec<usize> = (0..=b.len()).collect();
    for i in 1..=a.len() {
        let mut row = vec![i];
        for j in 1..=b.len() {
            let replaced = last[j - 1] + usize::from(a[i - 1] != b[j - 1]);
            let mut best = replaced.min(last[j] + 1).min(row[j - 1] + 1);
            if i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1] {
                best = best.min(before_last[j - 2] + 1);
            }
            row.push(best);
        }
        before_last = std::mem::replace(&mut last, row);
    }
    last.last().copied().unwrap_or(usize::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_meant_is_found_and_noise_is_not() {
        let keys = ["name", "address", "state-dir", "port"];
        for (typed, meant) in [
            ("nmae", Some("name")),
            ("state_dir", Some("state-dir")),
            ("statedir", Some("state-dir")),
            ("adress", Some("address")),
            ("Port", Some("port")),
            ("vip", None),
            ("", None),
        ] {
            assert_eq!(nearest(typed, &keys), meant, "{typed}");
        }
    }

    #[test]
    fn columns_count_characters() {
        let text = "a = 1\nü = \"x\"\n";
        assert_eq!(place(text, 0), (1, 1));
        assert_eq!(place(text, text.find("\"x").unwrap()), (2, 5));
        assert_eq!(place(text, 7), (2, 1), "inside of a character");
        assert_eq!(place(text, 999), (3, 1));
    }
}
