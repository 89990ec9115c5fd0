//! The file: TOML.

use std::ops::Range;

use toml::de::{DeTable, DeValue};

use super::error::Written;
use super::mistake::{Mistake, place};
use super::walk::{Mistakes, Section};
use super::{Config, fields, health, notify, services, vip, web};

/// The keys of the whole file.
const KEYS: &[&str] = &[
    "name",
    "address",
    "interface",
    "port",
    "bind",
    "state-dir",
    "runtime-dir",
    "notify",
    "webhook",
    "webhook-ca-file",
    "log",
    "web",
    "health",
    "vip",
    "service",
];

/// The keys of `[log]`.
const LOG_KEYS: &[&str] = &["format", "level"];

/// Reads the text of a configuration file.
///
/// # Errors
/// Every mistake in it, in the order of the text.
pub fn parse(text: &str) -> Result<Config, Vec<Mistake>> {
    let mut mistakes = Mistakes::new(text, Written::InFile);
    let (root, errors) = DeTable::parse_recoverable(text);
    for error in errors {
        let offset = error.span().map_or(text.len(), |span| span.start);
        mistakes.broken = true;
        let first = error
            .span()
            .filter(|_| error.message() == DUPLICATE)
            .and_then(|key| first_of(root.get_ref(), text, key));
        match first {
            Some((key, line)) => {
                let message =
                    format!("duplicate key {key}: it is already on line {line}; remove one of the two");
                mistakes.add(offset, "", message);
            }
            None => mistakes.add(offset, "", format!("not TOML: {}", error.message())),
        }
    }
    let config = read(root.get_ref(), &mut mistakes);
    let mistakes = mistakes.into_vec();
    if mistakes.is_empty() { Ok(config) } else { Err(mistakes) }
}

/// What the parser says of a key that a table has already.
const DUPLICATE: &str = "duplicate key";

/// The key at `second`, and the line where the table has had it before.
fn first_of(root: &DeTable<'_>, text: &str, second: Range<usize>) -> Option<(String, usize)> {
    let key = text.get(second.clone())?.trim_matches(['"', '\'', '[', ']', ' ']);
    let key = key.rsplit('.').next().unwrap_or(key);
    let line = match latest(root, key, second.start, 0) {
        Some(before) => place(text, before).0,
        // Of two headers the parser keeps the second.
        None => {
            let is_first = |line: &str| {
                let inside = line.trim().strip_prefix('[').and_then(|rest| rest.split(']').next());
                inside.is_some_and(|found| found.trim() == key)
            };
            text[..second.start].lines().position(is_first)? + 1
        }
    };
    Some((key.chars().take(60).collect(), line))
}

/// Where a key stands for the last time before an offset, in a table or those in it.
fn latest(table: &DeTable<'_>, key: &str, end: usize, depth: usize) -> Option<usize> {
    // Deeper than any file of ours.
    if depth > 8 {
        return None;
    }
    let own = table.keys().filter(|one| one.get_ref().as_ref() == key).map(|one| one.span().start);
    let inside = table.values().filter_map(|value| match value.get_ref() {
        DeValue::Table(table) => latest(table, key, end, depth + 1),
        DeValue::Array(list) => {
            let tables = list.iter().filter_map(|one| match one.get_ref() {
                DeValue::Table(table) => latest(table, key, end, depth + 1),
                _ => None,
            });
            tables.max()
        }
        _ => None,
    });
    own.chain(inside).filter(|start| *start < end).max()
}

fn read(root: &DeTable<'_>, mistakes: &mut Mistakes<'_>) -> Config {
    let mut config = Config::default();
    let top = Section::open("", 0, root, KEYS, mistakes);
    config.name = top.text("name", mistakes, str::parse);
    config.address = top.text("address", mistakes, fields::reachable);
    config.interface = top.text("interface", mistakes, fields::interface);
    config.bind = top.text("bind", mistakes, fields::ip);
    // The bounds of the number are those of the type.
    if let Some(Ok(port)) = top.number("port", mistakes, 1..=65_535).map(u16::try_from) {
        config.port = Some(port);
    }
    if let Some(path) = top.text("state-dir", mistakes, fields::path) {
        config.state_dir = path;
    }
    if let Some(path) = top.text("runtime-dir", mistakes, fields::runtime_dir) {
        config.runtime_dir = path;
    }
    if let Some(field) = top.field("log")
        && let Some(table) = field.table(mistakes)
    {
        let log = Section::open("log", field.offset(), table, LOG_KEYS, mistakes);
        config.log_format = log.text("format", mistakes, str::parse).unwrap_or_default();
        config.log_level = log.text("level", mistakes, str::parse).unwrap_or_default();
    }
    web::read(&top, &mut config, mistakes);
    notify::read(&top, &mut config, mistakes);
    services::read(&top, &mut config, mistakes);
    vip::read(&top, &mut config, mistakes);
    health::read(&top, &mut config, mistakes);
    config
}
