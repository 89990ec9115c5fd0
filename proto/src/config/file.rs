//! The file: TOML.

use toml::de::DeTable;

use super::error::Written;
use super::mistake::Mistake;
use super::walk::{Mistakes, Section};
use super::{Config, fields, notify, services, web};

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
        mistakes.add(offset, "", format!("not TOML: {}", error.message()));
    }
    let config = read(root.get_ref(), &mut mistakes);
    let mistakes = mistakes.into_vec();
    if mistakes.is_empty() { Ok(config) } else { Err(mistakes) }
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
    config
}
