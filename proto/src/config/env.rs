//! The environment: `AGENT_*` variables over the file.

use super::error::BadValue;
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
        if let Err(error) = apply(&mut config, &key, &value) {
            mistakes.push(Mistake { line: 0, column: 0, key, message: error.to_string() });
        }
    }
    mistakes.sort_by(|a, b| a.key.cmp(&b.key));
    if mistakes.is_empty() { Ok(config) } else { Err(mistakes) }
}

fn apply(config: &mut Config, key: &str, value: &str) -> Result<(), BadValue> {
    match key {
        "AGENT_NAME" => config.name = Some(value.parse()?),
        "AGENT_ADDRESS" => config.address = Some(fields::reachable(value)?),
        "AGENT_INTERFACE" => config.interface = Some(fields::interface(value)?),
        "AGENT_PORT" => config.port = Some(fields::port(value)?),
        "AGENT_BIND" => config.bind = Some(fields::ip(value)?),
        "AGENT_STATE_DIR" => config.state_dir = fields::path(value)?,
        "AGENT_RUNTIME_DIR" => config.runtime_dir = fields::runtime_dir(value)?,
        "AGENT_LOG_FORMAT" => config.log_format = value.parse()?,
        "AGENT_LOG_LEVEL" => config.log_level = value.parse()?,
        _ => {
            return Err(BadValue::UnknownVariable { nearest: nearest(key, VARIABLES), known: VARIABLES });
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::super::{LogFormat, LogLevel, parse};
    use super::*;

    fn env(variables: &[(&str, &str)]) -> Result<Config, Vec<Mistake>> {
        let owned = variables.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned()));
        apply_env(parse("name = \"file\"\nport = 7000\n").unwrap(), owned)
    }

    #[test]
    fn every_variable_lies_over_the_file() {
        let config = env(&[
            ("AGENT_NAME", "m1"),
            ("AGENT_ADDRESS", "10.0.0.1"),
            ("AGENT_INTERFACE", "wg0"),
            ("AGENT_PORT", "7001"),
            ("AGENT_BIND", "::"),
            ("AGENT_STATE_DIR", "/s"),
            ("AGENT_RUNTIME_DIR", "/r"),
            ("AGENT_LOG_FORMAT", "text"),
            ("AGENT_LOG_LEVEL", "debug"),
            ("PATH", "/bin"),
            ("AGENT_BIN", "not ours"),
        ])
        .unwrap();
        let expected = Config {
            name: "m1".parse().ok(),
            address: "10.0.0.1".parse().ok(),
            interface: Some("wg0".to_owned()),
            port: Some(7001),
            bind: "::".parse().ok(),
            state_dir: "/s".to_owned(),
            runtime_dir: "/r".to_owned(),
            log_format: LogFormat::Text,
            log_level: LogLevel::Debug,
            ..Config::default()
        };
        assert_eq!(config, expected);
        let untouched = env(&[("AGENT_NAME", ""), ("HOME", "/root")]).unwrap();
        assert_eq!((untouched.name.unwrap().as_str(), untouched.port), ("file", Some(7000)));
    }

    #[test]
    fn every_wrong_variable_is_named() {
        for (key, value, words) in [
            ("AGENT_NAME", "M 1", "is not a name"),
            ("AGENT_ADDRESS", "0.0.0.0", "is not reachable"),
            ("AGENT_INTERFACE", "a/b", "is not an interface name"),
            ("AGENT_PORT", "0", "from 1 to 65535"),
            ("AGENT_PORT", "http", "from 1 to 65535"),
            ("AGENT_BIND", "any", "is not an IP address"),
            ("AGENT_STATE_DIR", "x", "must begin with /"),
            ("AGENT_RUNTIME_DIR", "x", "must begin with /"),
            ("AGENT_LOG_FORMAT", "xml", "auto, text, json, journald"),
            ("AGENT_LOG_LEVEL", "inof", "did you mean info?"),
            ("AGENT_NAEM", "m1", "did you mean AGENT_NAME?"),
            ("AGENT_VIP", "x", "the variables are AGENT_NAME, AGENT_ADDRESS"),
        ] {
            let mistakes = env(&[(key, value)]).unwrap_err();
            assert_eq!((mistakes.len(), mistakes[0].key.as_str()), (1, key));
            assert!(mistakes[0].message.contains(words), "{} lacks \"{words}\"", mistakes[0]);
        }
        let all = env(&[("AGENT_PORT", "0"), ("AGENT_NAME", "_")]).unwrap_err();
        assert_eq!(all.len(), 2);
    }
}
