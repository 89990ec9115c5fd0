//! What this machine's service needs beyond the unit: the directories, file and variables that the installing
//! command was given. Without any there is no drop-in.

use std::fmt::Write;
use std::path::Path;

use proto::config::Config;

use crate::cli::Global;
use crate::cli::exit::{self, ExitError};

/// The drop-in's text for the program at this path below the root; none: the unit alone is right.
pub(super) fn text(
    config: &Config,
    global: &Global,
    environment: impl Iterator<Item = (String, String)>,
    program: &Path,
) -> anyhow::Result<Option<String>> {
    let defaults = Config::default();
    let mut body = String::new();
    for (key, value) in &variables(global, environment) {
        let _ = writeln!(body, "Environment={}", quote(&format!("{key}={value}"))?);
    }
    // The unit makes all but its own directories read-only.
    for (dir, default) in
        [(&config.state_dir, &defaults.state_dir), (&config.runtime_dir, &defaults.runtime_dir)]
    {
        if dir != default {
            let _ = writeln!(body, "ReadWritePaths={}", quote(dir)?);
        }
    }
    if let Some(file) = &global.config {
        let program = format!("/{} --config {}", program.display(), argument(&std::path::absolute(file)?)?);
        let _ = writeln!(body, "ExecStart=\nExecStart={program} run");
        let _ = writeln!(body, "ExecReload=\nExecReload={program} check\nExecReload=/bin/kill -HUP $MAINPID");
    }
    if body.is_empty() {
        return Ok(None);
    }
    let mut head = "# Written by agent install from its own options; overwritten by the next.\n".to_owned();
    // The unit starts nothing where its own directory shows no member.
    if config.state_dir != defaults.state_dir {
        let dir = config.state_dir.replace('%', "%%");
        let _ = writeln!(head, "[Unit]\nConditionPathExists=");
        for file in super::MEMBER {
            let _ = writeln!(head, "ConditionPathExists=|{dir}/{file}");
        }
    }
    Ok(Some(format!("{head}[Service]\n{body}")))
}

/// The AGENT_* variables that the service needs, for what the command was given by options and by variables.
pub(super) fn variables(
    global: &Global,
    environment: impl Iterator<Item = (String, String)>,
) -> Vec<(String, String)> {
    // AGENT_BIN is not ours; every other one was checked when the settings were loaded.
    let is_ours = |key: &str| key.starts_with("AGENT_") && key != "AGENT_BIN";
    let mut variables: Vec<(String, String)> =
        environment.filter(|(key, value)| is_ours(key) && !value.is_empty()).collect();
    let mut set = |key: &str, value: Option<String>| {
        if let Some(value) = value {
            variables.retain(|(existing, _)| existing != key);
            variables.push((key.to_owned(), value));
        }
    };
    set("AGENT_STATE_DIR", global.state_dir.clone());
    set("AGENT_RUNTIME_DIR", global.runtime_dir.clone());
    set("AGENT_LOG_FORMAT", global.log.map(|format| format.to_string()));
    set("AGENT_LOG_LEVEL", global.log_level.map(|level| level.to_string()));
    variables.sort_unstable();
    variables
}

/// A value in quotes, as systemd.syntax(7) wants it: `%` begins a specifier everywhere.
fn quote(value: &str) -> anyhow::Result<String> {
    if value.chars().any(char::is_control) {
        let shown: String = value.chars().map(|c| if c.is_control() { '?' } else { c }).collect();
        let message =
            format!("\"{shown}\" contains a control character, which a unit file cannot have; remove it");
        return Err(ExitError::error(exit::CONFIG, message));
    }
    Ok(format!("\"{}\"", value.replace('\\', "\\\\").replace('"', "\\\"").replace('%', "%%")))
}

/// A path as an argument of ExecStart=, where `$` begins a variable too.
fn argument(path: &Path) -> anyhow::Result<String> {
    Ok(quote(&path.to_string_lossy())?.replace('$', "$$"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(global: &Global, environment: &[(&str, &str)]) -> Option<String> {
        let mut config = Config::default();
        config.state_dir = global.state_dir.clone().unwrap_or(config.state_dir);
        let environment = environment.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned()));
        text(&config, global, environment, Path::new("usr/local/bin/agent")).unwrap()
    }

    #[test]
    fn without_options_there_is_none() {
        assert_eq!(
            of(&Global::default(), &[("PATH", "/bin"), ("AGENT_BIN", "/x"), ("AGENT_NAME", "")]),
            None
        );
    }

    #[test]
    fn the_service_sees_what_the_command_saw() {
        let global = Global {
            config: Some("/etc/other 100%.toml".into()),
            state_dir: Some("/srv/a \"b\"".to_owned()),
            ..Global::default()
        };
        let text = of(&global, &[("AGENT_STATE_DIR", "/ignored"), ("AGENT_NAME", "m1")]).unwrap();
        for line in [
            "Environment=\"AGENT_NAME=m1\"",
            "Environment=\"AGENT_STATE_DIR=/srv/a \\\"b\\\"\"",
            "ReadWritePaths=\"/srv/a \\\"b\\\"\"",
            "ConditionPathExists=",
            "ConditionPathExists=|/srv/a \"b\"/node",
            "ExecStart=",
            "ExecStart=/usr/local/bin/agent --config \"/etc/other 100%%.toml\" run",
            "ExecReload=",
            "ExecReload=/usr/local/bin/agent --config \"/etc/other 100%%.toml\" check",
            "ExecReload=/bin/kill -HUP $MAINPID",
        ] {
            assert!(text.lines().any(|found| found == line), "{line} is not in:\n{text}");
        }
        assert!(!text.contains("/ignored"));
    }

    #[test]
    fn a_value_can_not_add_a_line_to_the_unit() {
        let global = Global { state_dir: Some("/a\nExecStart=/bin/evil".to_owned()), ..Global::default() };
        assert!(text(&Config::default(), &global, std::iter::empty(), Path::new("usr/bin/agent")).is_err());
    }
}
