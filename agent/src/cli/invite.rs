//! `agent invite`: one line that lets nodes in.

use std::process::ExitCode;
use std::time::Duration;

use proto::control::{Request, Response};
use proto::invite::PREFIX;
use proto::node::Role;
use proto::time::{BadDuration, parse_duration};

use super::{CommandSettings, ask, out};

/// Create an invite: one command to run on the nodes that join
///
/// They join as workers or, with --master, as masters, which may change the cluster and whose apiservers
/// are used. This node redeems the invite, so it has to be up when they join. The command goes to stdout, its
/// limits to stderr.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  agent invite
  agent invite --master --uses 2
  agent invite --for 15m --uses 2")]
pub(crate) struct Args {
    /// How long the invite is valid, such as 90s, 15m, 2h or 7d
    #[arg(long = "for", value_name = "TIME", default_value = "1h", value_parser = ttl)]
    ttl: Duration,
    /// How many nodes may use it [default: any number]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    uses: Option<u32>,
    /// Invite masters
    #[arg(long)]
    master: bool,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// Why the life of an invite is none.
#[derive(Debug, PartialEq, thiserror::Error)]
enum BadTtl {
    #[error(transparent)]
    Duration(#[from] BadDuration),
    #[error("an invite must be valid for at least one second")]
    TooShort,
}

fn ttl(text: &str) -> Result<Duration, BadTtl> {
    let ttl = parse_duration(text)?;
    if ttl < Duration::from_secs(1) {
        return Err(BadTtl::TooShort);
    }
    Ok(ttl)
}

/// Runs the command.
pub(super) async fn run(args: &Args, settings: &CommandSettings) -> anyhow::Result<ExitCode> {
    let role = if args.master { Role::Master } else { Role::Worker };
    let request = Request::Invite { seconds: args.ttl.as_secs(), uses: args.uses, role };
    let (line, expires) = match ask::ask(settings, &request).await? {
        Response::Invite { line, expires } => (line, expires),
        other => return Err(ask::unexpected(&other)),
    };
    // The agent may hand out the invite alone or the whole command.
    let invite = line.split_whitespace().find(|word| word.starts_with(PREFIX)).unwrap_or(&line).to_owned();
    let command = format!("agent join {invite}");
    if args.json {
        out::json(&serde_json::json!({
            "schema": 1,
            "invite": invite,
            "command": command,
            "role": role,
            "uses": args.uses,
            "expires_unix_ms": expires,
        }))?;
        return Ok(ExitCode::SUCCESS);
    }
    out::line(&command)?;
    out::warn(&format!(
        "valid until {} ({}), for {}",
        super::time::at(expires, crate::lifecycle::wall()),
        super::time::until(expires, crate::lifecycle::wall()),
        match args.uses {
            None => format!("any number of {role}s"),
            Some(1) => format!("one {role}"),
            Some(uses) => format!("{uses} {role}s"),
        }
    ));
    Ok(ExitCode::SUCCESS)
}
