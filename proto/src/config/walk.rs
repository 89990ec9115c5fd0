//! Walks a parsed TOML text and collects mistakes with their places, instead of stopping at the first.

use std::fmt;

use std::ops::RangeInclusive;

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::error::Written;
use super::mistake::{Mistake, nearest, place};

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
        let mistake = Mistake { line, column, key: key.to_owned(), message: message.to_string() };
        self.found.push((offset, mistake));
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
            let name: String = name.chars().take(60).filter(|c| !c.is_control()).collect();
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
                let message = format!("expected a string or a list of strings, found {}", kind(other));
                mistakes.add(field.offset(), &field.key, message);
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
            other => {
                let message = format!("expected true or false without quotes, found {}", kind(other));
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
                let what = match found {
                    Some(_) => format!("{} is out of range", field.digits()),
                    None => format!("expected a number, found {}", kind(field.value.get_ref())),
                };
                let message =
                    format!("{what}; use a whole number from {} to {}", bounds.start(), bounds.end());
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
        other => Err(format!("expected a string in quotes, found {}", kind(other))),
    };
    result.map_err(|message| mistakes.add(value.span().start, key, message)).ok()
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
