//! The environment: `AGENT_*` variables over the file.

use super::mistake::{Mistake, nearest};
use super::{Config, fields};

/// The variables that are ours.
const VARIABLES: &[&str] = &[
    "AGENT_NAME",
    "AGENT_ADDRESS",
    "AGENT_INTERFACE",
    "AGENT_PORT",
    "AGENT_BIND",
    "AGENT_STATE_DIR",
    "AGENT_RUNTIME_DIR",
    "AGENT_NAMESERVERS",
    "AGENT_LOG_FORMAT",
    "AGENT_LOG_LEVEL",
];

/// Belongs to scripts that hold the path of the binary, not to us.
const FOREIGN: &str = "AGENT_BIN";

/// Lays the `AGENT_*` variables over a configuration. Other variables are passed over; an empty one counts
/// as not set, as systemd and shells leave them.
///
/// # Errors
/// Every mistake, in the order of the variables' names; their line and column are 0.
pub fn apply_env(
    mut config: Config,
    variables: impl Iterator<Item = (String, String)>,
) -> Result<Config, Vec<Mistake>> {
    let mut mistakes = Vec::new();
    let ours = |key: &str| key.starts_with("AGENT_") && key != FOREIGN;
    for (key, value) in variables.filter(|(key, value)| ours(key) && !value.is_empty()) {
        if let Err(message) = apply(&mut config, &key, &value) {
            mistakes.push(Mistake { line: 0, column: 0, key, message });
        }
    }
    mistakes.sort_by(|a, b| a.key.cmp(&b.key));
    if mistakes.is_empty() { Ok(config) } else { Err(mistakes) }
}

fn apply(config: &mut Config, key: &str, value: &str) -> Result<(), String> {
    match key {
        "AGENT_NAME" => config.name = Some(value.parse().map_err(|error| format!("{error}"))?),
        "AGENT_ADDRESS" => config.address = Some(fields::reachable(value)?),
        "AGENT_INTERFACE" => config.interface = Some(fields::interface(value)?),
        "AGENT_PORT" => config.port = fields::port(value)?,
        "AGENT_BIND" => config.bind = Some(fields::ip(value)?),
        "AGENT_STATE_DIR" => config.state_dir = fields::path(value)?,
        "AGENT_RUNTIME_DIR" => config.runtime_dir = fields::runtime_dir(value)?,
        "AGENT_NAMESERVERS" => {
            let parts = value.split([',', ' ']).filter(|part| !part.is_empty());
            config.nameservers = parts.map(fields::reachable).collect::<Result<_, _>>()?;
        }
        "AGENT_LOG_FORMAT" => config.log_format = value.parse()?,
        "AGENT_LOG_LEVEL" => config.log_level = value.parse()?,
        _ => {
            let hint = nearest(key, VARIABLES)
                .map_or_else(|| ";".to_owned(), |near| format!(", did you mean {near}?"));
            return Err(format!("unknown variable{hint} there are {}", VARIABLES.join(", ")));
        }
    }
    Ok(())
}
