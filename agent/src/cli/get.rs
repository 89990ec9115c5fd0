//! `agent get`: settings of the whole cluster, and what holds without them.

use std::process::ExitCode;

use proto::control::{Request, Response, SettingStatus};
use proto::settings::about;
use proto::time::UnixMs;

use super::exit::{self, ExitError};
use super::table::{Cell, Column, Table};
use super::{CommandSettings, ask, out, time};

/// Show cluster-wide settings, who set them and when
///
/// Without a key, shows all of them. "agent set --help" lists what can be set.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  agent get
  agent get balance
  agent get service.ingress --json")]
pub(crate) struct Args {
    /// A setting, or a prefix of settings
    #[arg(value_name = "KEY", value_parser = super::set::Key, hide_possible_values = true)]
    key: Option<String>,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// Runs the command.
pub(super) async fn run(args: &Args, settings: &CommandSettings) -> anyhow::Result<ExitCode> {
    let all = match ask::ask(settings, &Request::Settings).await? {
        Response::Settings(all) => all,
        other => return Err(ask::unexpected(&other)),
    };
    let chosen = choose(all, args.key.as_deref());
    // A key that nobody could set is a mistake; one that nobody has set is a question with an answer.
    let known = match &args.key {
        Some(key) if chosen.is_empty() => {
            Some(about(key).map_err(|error| ExitError::error(exit::DATA, format!("{key}: {error}")))?)
        }
        _ => None,
    };
    if args.json {
        out::json(&serde_json::json!({
            "settings": chosen,
            "default": known.as_ref().map(|(_, known)| known.default),
        }))?;
    } else {
        out::print(&match known {
            Some((key, known)) => format!("{key} is not set: {}\n  {}\n", known.default, known.what),
            None => render(&chosen, crate::lifecycle::wall(), out::columns(), out::colours()),
        })?;
    }
    Ok(ExitCode::SUCCESS)
}

/// Those that a key means: itself, and all below it.
fn choose(mut all: Vec<SettingStatus>, key: Option<&str>) -> Vec<SettingStatus> {
    if let Some(key) = key {
        let key = about(key).map_or_else(|_| key.to_owned(), |(key, _)| key);
        let below = format!("{key}.");
        all.retain(|one| one.key == key || one.key.starts_with(&below));
    }
    all
}

/// A value as people read it: drains hold a time.
fn value(one: &SettingStatus, now: UnixMs) -> String {
    match one.value.parse() {
        Ok(ms) if one.key.starts_with("drain.") => format!("since {}", time::at(UnixMs(ms), now)),
        _ => one.value.clone(),
    }
}

fn render(all: &[SettingStatus], now: UnixMs, columns: usize, colours: bool) -> String {
    if all.is_empty() {
        return "nothing is set; see: agent set --help\n".to_owned();
    }
    let mut table = Table::new(vec![
        Column::left("KEY"),
        Column::left("VALUE"),
        Column::left("SET BY").optional(1),
        Column::left("SINCE").optional(2),
    ]);
    for one in all {
        table.row(vec![
            Cell::plain(&one.key),
            Cell::plain(value(one, now)),
            Cell::plain(&one.set_by),
            Cell::plain(time::age(one.set_unix_ms, now)),
        ]);
        if !one.remark.is_empty() {
            table.note(&one.remark);
        }
    }
    table.render(columns, colours)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn setting(key: &str, value: &str, remark: &str) -> SettingStatus {
        SettingStatus {
            key: key.to_owned(),
            value: value.to_owned(),
            set_by: "m1".to_owned(),
            set_unix_ms: UnixMs(1_000),
            clock: 3,
            remark: remark.to_owned(),
        }
    }

    #[test]
    fn settings_are_listed_with_why_they_do_not_count() {
        let all = [
            setting(
                "service.kube-api.balance",
                "nearest",
                "overridden on this node, whose own file describes kube-api",
            ),
            setting("vip", "10.0.0.50", ""),
            setting("drain.m1", "61000", ""),
        ];
        let text = render(&all, UnixMs(121_000), 80, false);
        let expected = "KEY                       VALUE            SET BY  SINCE\n\
                        service.kube-api.balance  nearest          m1      2m\n    \
                        overridden on this node, whose own file describes kube-api\n\
                        vip                       10.0.0.50        m1      2m\n\
                        drain.m1                  since 00:01:01Z  m1      2m\n";
        assert_eq!(text, expected);
        assert!(render(&[], UnixMs(0), 80, false).contains("agent set --help"));
    }

    #[test]
    fn a_key_chooses_itself_and_what_is_below() {
        let all =
            || vec![setting("service.kube-api.balance", "first", ""), setting("service.web.port", "1", "")];
        let keys = |key: &str| choose(all(), Some(key)).into_iter().map(|one| one.key).collect::<Vec<_>>();
        assert_eq!(keys("balance"), ["service.kube-api.balance"]);
        assert_eq!(keys("service.web"), ["service.web.port"]);
        assert_eq!(keys("service").len(), 2);
        assert!(keys("vip").is_empty());
    }
}
