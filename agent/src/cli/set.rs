//! `agent set` and `agent unset`: settings of the whole cluster.

use std::process::ExitCode;

use clap::builder::{PossibleValue, StringValueParser, TypedValueParser};
use proto::control::{Request, Response};
use proto::settings::{KNOWN, SettingChange, about};

use super::kubernetes::{self, Removal};
use super::{CommandSettings, ask, out};

const EXAMPLES: &str = "\
Examples:
  agent set vip=10.0.0.50
  agent set balance=nearest
  agent set service.ingress.listen=127.0.0.1:8443 service.ingress.port=443";

/// Change cluster-wide settings: services, balance, virtual IPs, weights
///
/// All settings are checked together; if one is wrong, nothing changes. A service that a
/// node's own agent.toml describes follows that file on that node.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES, after_long_help = handbook())]
pub(crate) struct SetArgs {
    /// Settings to change
    #[arg(value_name = "KEY=VALUE", required = true, value_parser = Assignment, hide_possible_values = true)]
    pairs: Vec<(String, String)>,
    /// Even while pods are led to the node-local address that it changes
    #[arg(long)]
    force: bool,
}

/// Remove cluster-wide settings
///
/// A key prefix removes everything below it: "agent unset service.ingress".
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  agent unset vip
  agent unset service.ingress weight.m2")]
pub(crate) struct UnsetArgs {
    /// Settings to remove
    #[arg(value_name = "KEY", required = true, value_parser = Key, hide_possible_values = true)]
    keys: Vec<String>,
    /// Even while pods are led to the node-local address that it removes
    #[arg(long)]
    force: bool,
}

/// Reads `KEY=VALUE`, and offers shells the keys that there are.
#[derive(Clone)]
struct Assignment;

impl TypedValueParser for Assignment {
    type Value = (String, String);

    fn parse_ref(
        &self,
        command: &clap::Command,
        arg: Option<&clap::Arg>,
        value: &std::ffi::OsStr,
    ) -> Result<Self::Value, clap::Error> {
        let split = |text: String| match text.split_once('=') {
            Some((key, value)) => Ok((key.trim().to_owned(), value.trim().to_owned())),
            None => Err(format!("write it as KEY=VALUE; to remove it, run: agent unset {text}")),
        };
        StringValueParser::new().try_map(split).parse_ref(command, arg, value)
    }

    fn possible_values(&self) -> Option<Box<dyn Iterator<Item = PossibleValue> + '_>> {
        keys()
    }
}

/// Takes a key as it is, since the agent knows best what there is, and offers shells those that there are.
#[derive(Clone)]
pub(super) struct Key;

impl TypedValueParser for Key {
    type Value = String;

    fn parse_ref(
        &self,
        command: &clap::Command,
        arg: Option<&clap::Arg>,
        value: &std::ffi::OsStr,
    ) -> Result<String, clap::Error> {
        StringValueParser::new().parse_ref(command, arg, value)
    }

    fn possible_values(&self) -> Option<Box<dyn Iterator<Item = PossibleValue> + '_>> {
        keys()
    }
}

/// The keys that there are, for shells.
fn keys<'a>() -> Option<Box<dyn Iterator<Item = PossibleValue> + 'a>> {
    let value = |known: &proto::settings::SettingInfo| PossibleValue::new(known.key).help(known.what);
    Some(Box::new(KNOWN.iter().map(value)))
}

/// Everything that can be set, and what holds without it.
fn handbook() -> String {
    let mut text = format!("{EXAMPLES}\n\nSettings and their defaults:\n");
    for known in KNOWN {
        text.push_str(&format!("  {}  [{}]\n      {}\n", known.key, known.default, known.what));
    }
    text.push_str("\nAddresses and node names are part of the key: vip.10.0.0.50.priority.m1=200");
    text
}

/// Runs `agent set`.
pub(super) async fn set(args: SetArgs, settings: &CommandSettings) -> anyhow::Result<ExitCode> {
    let wishes = args.pairs.into_iter().map(|(key, value)| (key, Some(value))).collect();
    change_unless_used(settings, wishes, args.force).await
}

/// Runs `agent unset`.
pub(super) async fn unset(args: UnsetArgs, settings: &CommandSettings) -> anyhow::Result<ExitCode> {
    let wishes = args.keys.into_iter().map(|key| (key, None)).collect();
    change_unless_used(settings, wishes, args.force).await
}

async fn change_unless_used(
    settings: &CommandSettings,
    wishes: Vec<(String, Option<String>)>,
    force: bool,
) -> anyhow::Result<ExitCode> {
    if !force && kubernetes::removes(&wishes) {
        kubernetes::refuse_while_used(settings, Removal::Setting).await?;
    }
    change(settings, wishes).await
}

/// Asks for changes and prints what they were.
pub(super) async fn change(
    settings: &CommandSettings,
    wishes: Vec<(String, Option<String>)>,
) -> anyhow::Result<ExitCode> {
    match ask::ask(settings, &Request::Change(wishes)).await? {
        Response::Changed(changes, told) => {
            let mut text: String = changes.iter().map(|change| format!("{}\n", line(change))).collect();
            text.push_str(&told);
            out::line(&text)?;
            Ok(ExitCode::SUCCESS)
        }
        other => Err(ask::unexpected(&other)),
    }
}

/// `service.kube-api.balance: least-connections (default) -> nearest`.
pub(super) fn line(change: &SettingChange) -> String {
    let SettingChange { key, old, new } = change;
    let shown = |value: &Option<String>| match value {
        Some(value) if value.is_empty() => "(empty)".to_owned(),
        Some(value) => super::table::sanitize(value),
        None => match about(key) {
            Ok((_, known)) => format!("({})", known.default),
            Err(_) => "(not set)".to_owned(),
        },
    };
    if old == new {
        return format!("{key}: {}, unchanged", shown(new));
    }
    format!("{key}: {} -> {}", shown(old), shown(new))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_change_is_told_with_what_was() {
        let change = |old: Option<&str>, new: Option<&str>| {
            let (old, new) = (old.map(str::to_owned), new.map(str::to_owned));
            line(&SettingChange { key: "service.kube-api.balance".to_owned(), old, new })
        };
        let key = "service.kube-api.balance";
        assert_eq!(change(None, Some("first")), format!("{key}: (least-connections) -> first"));
        assert_eq!(change(Some("first"), None), format!("{key}: first -> (least-connections)"));
        assert_eq!(change(Some("a"), Some("a")), format!("{key}: a, unchanged"));
    }

    #[test]
    fn shells_are_offered_every_key() {
        for keys in [Assignment.possible_values(), Key.possible_values()] {
            let keys: Vec<String> = keys.unwrap().map(|key| key.get_name().to_owned()).collect();
            assert_eq!(keys, KNOWN.iter().map(|known| known.key).collect::<Vec<_>>());
        }
    }

    #[test]
    fn every_setting_is_in_the_handbook_of_set() {
        let text = handbook();
        for known in KNOWN {
            assert!(text.contains(known.key) && text.contains(known.what), "{}", known.key);
        }
    }
}
