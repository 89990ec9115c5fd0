//! Walks a parsed TOML text and collects mistakes with their places, instead of stopping at the first.

use std::fmt;

use std::ops::RangeInclusive;

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::error::Written;
use super::mistake::{Mistake, nearest, place};

/// Keys whose values are never shown.
const SECRET_KEYS: [&str; 3] = ["password", "token", "webhook"];

/// Longest value that is shown.
const MOST_SHOWN: usize = 40;

/// A key without those above it.
fn last_part(key: &str) -> &str {
    key.rsplit('.').next().unwrap_or(key)
}

/// What was found so far.
pub(super) struct Mistakes<'t> {
    text: &'t str,
    found: Vec<(usize, Mistake)>,
    /// The text has syntax errors: what is missing may only be on a line that could not be read.
    pub(super) broken: bool,
    /// Where the values come from.
    pub(super) written: Written,
}

impl<'t> Mistakes<'t> {
    pub(super) fn new(text: &'t str, written: Written) -> Mistakes<'t> {
        Mistakes { text, found: Vec::new(), broken: false, written }
    }

    /// Reports a mistake at a byte offset.
    pub(super) fn add(&mut self, offset: usize, key: &str, message: impl fmt::Display) {
        let (line, column) = place(self.text, offset);
        // Parts of both are as someone wrote them, and go to terminals.
        let tame = |text: &str| text.replace(char::is_control, "?");
        let mistake = Mistake { line, column, key: tame(key), message: tame(&message.to_string()) };
        self.found.push((offset, mistake));
    }

    /// A value that is of the wrong kind, as it is written; only its kind where it may be a secret, or takes more
    /// than a line.
    fn written_value(&self, key: &str, value: &Spanned<DeValue<'_>>) -> String {
        let is_secret = SECRET_KEYS.contains(&last_part(key));
        let text = self.text.get(value.span()).unwrap_or_default();
        match value.get_ref() {
            DeValue::Array(_) | DeValue::Table(_) => kind(value.get_ref()).to_owned(),
            _ if is_secret || text.chars().count() > MOST_SHOWN => kind(value.get_ref()).to_owned(),
            _ => text.to_owned(),
        }
    }

    /// Reports something that is not there, unless it may only have been lost.
    pub(super) fn missing(&mut self, offset: usize, key: &str, message: impl fmt::Display) {
        if !self.broken {
            self.add(offset, key, message);
        }
    }

    /// The mistakes in the order of the file. A line that is no TOML is reported as that alone: whatever
    /// else was found there is its echo.
    pub(super) fn into_vec(mut self) -> Vec<Mistake> {
        self.found.sort_by_key(|(offset, _)| *offset);
        let unread: Vec<usize> =
            self.found.iter().filter(|(_, m)| m.key.is_empty()).map(|(_, m)| m.line).collect();
        let mut list: Vec<Mistake> = self
            .found
            .into_iter()
            .map(|(_, mistake)| mistake)
            .filter(|m| m.key.is_empty() || !unread.contains(&m.line))
            .collect();
        list.dedup_by(|next, kept| next.key.is_empty() && kept.key.is_empty() && next.line == kept.line);
        list
    }
}

/// How keys of `agent set` begin, which people write into the file too.
const CLUSTER_KEYS: [&str; 6] = ["vip", "balance", "weight", "drain", "node-local", "haproxy-metrics"];

/// A table whose keys are known.
pub(super) struct Section<'v, 'i> {
    path: &'static str,
    /// Where the table begins in the text.
    pub(super) offset: usize,
    table: &'v DeTable<'i>,
}

impl<'v, 'i> Section<'v, 'i> {
    /// Opens a table and reports every key that does not belong there.
    pub(super) fn open(
        path: &'static str,
        offset: usize,
        table: &'v DeTable<'i>,
        known: &[&str],
        mistakes: &mut Mistakes<'_>,
    ) -> Section<'v, 'i> {
        let section = Section { path, offset, table };
        for key in table.keys() {
            let name: &str = key.get_ref();
            if known.contains(&name) {
                continue;
            }
            let hint =
                nearest(name, known).map_or_else(String::new, |near| format!(", did you mean {near}?"));
            let name: String = name.chars().take(60).collect();
            if path.is_empty() && CLUSTER_KEYS.contains(&name.as_str()) {
                mistakes.add(
                    key.span().start,
                    &name,
                    "set for the whole cluster, not in a file; see: agent help set",
                );
                continue;
            }
            let colon = if hint.is_empty() { ";" } else { "" };
            let message = format!("unknown key{hint}{colon} the known keys are {}", known.join(", "));
            mistakes.add(key.span().start, &section.dotted(&name), message);
        }
        section
    }

    /// A key with those above it.
    pub(super) fn dotted(&self, key: &str) -> String {
        if self.path.is_empty() { key.to_owned() } else { format!("{}.{key}", self.path) }
    }

    /// The field with this key, if the text has it.
    pub(super) fn field(&self, key: &str) -> Option<Field<'v, 'i>> {
        let (_, value) = self.table.iter().find(|(name, _)| name.get_ref().as_ref() == key)?;
        Some(Field { key: self.dotted(key), value })
    }

    /// Where a key stands, to report that it should not.
    pub(super) fn offset_of(&self, key: &str) -> Option<usize> {
        self.table.keys().find(|name| name.get_ref().as_ref() == key).map(|name| name.span().start)
    }

    /// The value of a text field, read by `read`; none when it is not there or wrong, which is then
    /// reported.
    pub(super) fn text<T, E: ToString>(
        &self,
        key: &str,
        mistakes: &mut Mistakes<'_>,
        read: impl Fn(&str) -> Result<T, E>,
    ) -> Option<T> {
        let field = self.field(key)?;
        read_text(&field.key, field.value, mistakes, &read)
    }

    /// The values of a field that holds one text or a list of them; none when it is not there. Wrong ones
    /// are reported and left out.
    pub(super) fn texts<T, E: ToString>(
        &self,
        key: &str,
        mistakes: &mut Mistakes<'_>,
        read: impl Fn(&str) -> Result<T, E>,
    ) -> Option<Vec<(usize, T)>> {
        let field = self.field(key)?;
        let values: Vec<&Spanned<DeValue<'i>>> = match field.value.get_ref() {
            DeValue::Array(list) => list.iter().collect(),
            DeValue::String(_) => vec![field.value],
            other => {
                let what = "a string or a list of strings";
                mistakes.add(
                    field.offset(),
                    &field.key,
                    not_a_string(what, &field.key, field.value, other, mistakes, &read),
                );
                return None;
            }
        };
        let one = |value: &Spanned<DeValue<'i>>| {
            read_text(&field.key, value, mistakes, &read).map(|read| (value.span().start, read))
        };
        Some(values.into_iter().filter_map(one).collect())
    }

    /// The value of a field that holds true or false.
    pub(super) fn flag(&self, key: &str, mistakes: &mut Mistakes<'_>) -> Option<bool> {
        let field = self.field(key)?;
        match field.value.get_ref() {
            DeValue::Boolean(flag) => Some(*flag),
            _ => {
                let value = mistakes.written_value(&field.key, field.value);
                let form = format!("; write {} = true, or false", last_part(&field.key));
                let message = format!("expected true or false without quotes, found {value}{form}");
                mistakes.add(field.offset(), &field.key, message);
                None
            }
        }
    }

    /// The value of a field that holds a whole number within bounds.
    pub(super) fn number(
        &self,
        key: &str,
        mistakes: &mut Mistakes<'_>,
        bounds: RangeInclusive<u32>,
    ) -> Option<u32> {
        let field = self.field(key)?;
        match field.integer() {
            Some(Some(number)) if bounds.contains(&number) => Some(number),
            found => {
                let (least, most) = (bounds.start(), bounds.end());
                let inside = field.quoted_number().filter(|number| bounds.contains(number));
                let message = match (found, inside) {
                    (Some(_), _) => {
                        format!(
                            "{} is out of range; use a whole number from {least} to {most}",
                            field.digits()
                        )
                    }
                    (None, Some(number)) => {
                        format!(
                            "expected a number, found \"{number}\"; write {} = {number}",
                            last_part(&field.key)
                        )
                    }
                    (None, None) => {
                        let value = mistakes.written_value(&field.key, field.value);
                        format!("expected a number, found {value}; use a whole number from {least} to {most}")
                    }
                };
                mistakes.add(field.offset(), &field.key, message);
                None
            }
        }
    }
}

/// A key and its value.
pub(super) struct Field<'v, 'i> {
    /// The key with those above it.
    pub(super) key: String,
    /// Its value.
    pub(super) value: &'v Spanned<DeValue<'i>>,
}

impl<'v, 'i> Field<'v, 'i> {
    /// Where the value stands.
    pub(super) fn offset(&self) -> usize {
        self.value.span().start
    }

    /// The table that the value is; anything else is reported.
    pub(super) fn table(&self, mistakes: &mut Mistakes<'_>) -> Option<&'v DeTable<'i>> {
        match self.value.get_ref() {
            DeValue::Table(table) => Some(table),
            other => {
                let message = format!("expected a table, found {}; write [{}]", kind(other), self.key);
                mistakes.add(self.offset(), &self.key, message);
                None
            }
        }
    }

    /// The number as it is written, of which no more than a number of ours has.
    fn digits(&self) -> String {
        match self.value.get_ref() {
            DeValue::Integer(number) => {
                let text = number.as_str();
                text.chars().take(20).chain((text.len() > 20).then_some('…')).collect()
            }
            other => kind(other).to_owned(),
        }
    }

    /// The whole number that stands in a string.
    fn quoted_number(&self) -> Option<u32> {
        match self.value.get_ref() {
            DeValue::String(text) if text.bytes().all(|b| b.is_ascii_digit()) => text.parse().ok(),
            _ => None,
        }
    }

    /// The whole number that the value is; inside none when it is larger than any we take.
    fn integer(&self) -> Option<Option<u32>> {
        integer(self.value.get_ref())
    }
}

/// The whole number that a value is; inside none when it is larger than any we take, or negative.
pub(super) fn integer(value: &DeValue<'_>) -> Option<Option<u32>> {
    match value {
        DeValue::Integer(number) => Some(u32::from_str_radix(number.as_str(), number.radix()).ok()),
        _ => None,
    }
}

fn read_text<T, E: ToString>(
    key: &str,
    value: &Spanned<DeValue<'_>>,
    mistakes: &mut Mistakes<'_>,
    read: &impl Fn(&str) -> Result<T, E>,
) -> Option<T> {
    let result = match value.get_ref() {
        DeValue::String(text) => read(text).map_err(|error| error.to_string()),
        other => Err(not_a_string("a string in quotes", key, value, other, mistakes, read)),
    };
    result.map_err(|message| mistakes.add(value.span().start, key, message)).ok()
}

/// What is said of a value that is no text: as what it would be right, or why it would not be as a text either.
fn not_a_string<T, E: ToString>(
    expected: &str,
    key: &str,
    value: &Spanned<DeValue<'_>>,
    found: &DeValue<'_>,
    mistakes: &Mistakes<'_>,
    read: &impl Fn(&str) -> Result<T, E>,
) -> String {
    let written = mistakes.written_value(key, value);
    let said = format!("expected {expected}, found {written}");
    if !is_scalar(found) || SECRET_KEYS.contains(&last_part(key)) {
        return said;
    }
    match read(&written) {
        Ok(_) => format!("{said}; write {} = \"{written}\"", last_part(key)),
        Err(error) => format!("{said}: {}", error.to_string()),
    }
}

/// Whether a value stands on one line.
fn is_scalar(value: &DeValue<'_>) -> bool {
    !matches!(value, DeValue::Array(_) | DeValue::Table(_))
}

/// What a value is, in words.
pub(super) fn kind(value: &DeValue<'_>) -> &'static str {
    match value {
        DeValue::String(_) => "a string",
        DeValue::Integer(_) => "a whole number",
        DeValue::Float(_) => "a decimal number",
        DeValue::Boolean(_) => "true or false",
        DeValue::Datetime(_) => "a date",
        DeValue::Array(_) => "a list",
        DeValue::Table(_) => "a table",
    }
}
