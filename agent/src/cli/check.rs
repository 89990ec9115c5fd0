//! `agent check`: every mistake of the configuration at once.

use std::path::PathBuf;
use std::process::ExitCode;

use proto::config::{self, Config};

use super::{Global, exit, out, settings};
use crate::{app, net};

/// Check the configuration and print every mistake with its line and column
///
/// Without FILE, it checks what the agent would use: --config or /etc/agent/agent.toml, and the AGENT_*
/// variables. Changes nothing.
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:\n  agent check ./agent.toml")]
pub(crate) struct Args {
    /// The file to check
    #[arg(value_name = "FILE")]
    file: Option<PathBuf>,
}

/// Runs the command. Ends with 78 when there are mistakes.
pub(super) fn run(args: &Args, global: &Global) -> anyhow::Result<ExitCode> {
    let named = args.file.as_deref().or(global.config.as_deref());
    let (source, parsed) = settings::read_file(named)?;
    let mut mistakes: Vec<String> = Vec::new();
    let config = parsed.unwrap_or_else(|found| {
        mistakes.extend(found.iter().map(|mistake| format!("{source}:{mistake}")));
        Config::default()
    });
    for suspicion in settings::permission_warnings(named, &config) {
        out::warn(&format!("warning: {suspicion}"));
    }
    // A file that was named is checked for itself: it may be meant for another machine.
    let config = if args.file.is_some() {
        config
    } else {
        config::apply_env(config, settings::environment()).unwrap_or_else(|found| {
            mistakes.extend(found.iter().map(|mistake| format!("environment: {mistake}")));
            Config::default()
        })
    };
    // A file that was named may be meant for another machine.
    if args.file.is_none() && mistakes.is_empty() {
        mistakes.extend(against_member(&config, global));
    }
    if mistakes.is_empty() {
        mistakes.extend(config.page_conflicts().into_iter().map(|conflict| format!("{source}: {conflict}")));
    }
    if mistakes.is_empty() {
        out::line(&out::tame(&format!("{source}: {}", summary(&config))))?;
        return Ok(ExitCode::SUCCESS);
    }
    out::line(&out::tame(&mistakes.join("\n")))?;
    let s = if mistakes.len() == 1 { "" } else { "s" };
    out::warn(&format!("{} mistake{s}", mistakes.len()));
    Ok(ExitCode::from(exit::CONFIG))
}

/// What of it has no effect on the member that this node is already; what waits for a restart is a warning.
fn against_member(config: &Config, global: &Global) -> Option<String> {
    let config = settings::over(config.clone(), global);
    let node = app::setup::look(&config).node().ok().flatten()?;
    let changes = config.place_changes(&node.place());
    let later = changes.at_restart();
    if !later.is_empty() {
        let now = format!("{} on {}, port {}", node.address, node.interface, node.port);
        let missing = changes.interface.as_deref().filter(|name| matches!(net::interface(name), Ok(None)));
        let missing =
            missing.map_or(String::new(), |name| format!("; there is no interface {name} on this node yet"));
        out::warn(&format!(
            "warning: {later} holds after a restart (this node has joined with {now}){missing}; run: systemctl restart \
             agent"
        ));
    }
    changes.name_refused(&node.name)
}

/// What a good configuration amounts to.
fn summary(config: &Config) -> String {
    let services: Vec<String> = config
        .services
        .iter()
        .map(|service| match service.listen.first() {
            Some(first) => format!("{} on {first}", service.name),
            None => format!("{} (not served here)", service.name),
        })
        .collect();
    format!("ok: {}", services.join(", "))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_good_configuration_is_summed_up() {
        assert_eq!(summary(&Config::default()), "ok: kube-api on 127.0.0.1:16443");
        let text = "[[service]]\nname = \"web\"\nlisten = []\nport = 443\n";
        let config = config::parse(text).unwrap();
        assert_eq!(summary(&config), "ok: kube-api on 127.0.0.1:16443, web (not served here)");
    }
}
