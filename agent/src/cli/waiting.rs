//! `agent approve` and `agent reject`: nodes that came without an invite.

use std::process::ExitCode;

use proto::control::{Request, Response};
use proto::invite::{PendingJoin, normalize_code};
use proto::node::Role;
use proto::time::UnixMs;

use super::exit::{self, ExitError};
use super::table::{Cell, Column, Table};
use super::{CommandSettings, ask, out, time};

/// Approve a waiting node; without CODE, list the waiting nodes
///
/// Compare the code with the one shown on the node itself: a man in the middle would show another. Then type
/// the second code, which this command prints, on the node, so that it can trust this cluster too.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  agent approve k7qm-2xpd\n  agent approve k7qm-2xpd --master")]
pub(crate) struct ApproveArgs {
    /// The code that the waiting node shows
    #[arg(value_name = "CODE")]
    code: Option<String>,
    /// Admit it as a master
    #[arg(long, requires = "code")]
    master: bool,
}

/// Reject a waiting node; without CODE, list the waiting nodes
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:\n  agent reject k7qm-2xpd")]
pub(crate) struct RejectArgs {
    /// The code that the waiting node shows
    #[arg(value_name = "CODE")]
    code: Option<String>,
}

/// Runs `agent approve`.
pub(super) async fn approve(args: &ApproveArgs, settings: &CommandSettings) -> anyhow::Result<ExitCode> {
    let role = if args.master { Role::Master } else { Role::Worker };
    answer(args.code.as_deref(), Some(role), settings).await
}

/// Runs `agent reject`.
pub(super) async fn reject(args: &RejectArgs, settings: &CommandSettings) -> anyhow::Result<ExitCode> {
    answer(args.code.as_deref(), None, settings).await
}

async fn answer(
    code: Option<&str>,
    role: Option<Role>,
    settings: &CommandSettings,
) -> anyhow::Result<ExitCode> {
    let Some(typed) = code else {
        return list(settings).await;
    };
    let code = normalize_code(typed);
    if code.len() != 9 {
        let typed: String = typed.chars().take(40).collect();
        let message =
            format!("\"{typed}\" is not a code; a code has 8 letters and digits, such as k7qm-2xpd");
        return Err(ExitError::error(exit::DATA, message));
    }
    ask::run_and_print(settings, &Request::Answer { code, role }).await
}

async fn list(settings: &CommandSettings) -> anyhow::Result<ExitCode> {
    let waiting = match ask::ask(settings, &Request::Waiting).await? {
        Response::Waiting(waiting) => waiting,
        other => return Err(ask::unexpected(&other)),
    };
    out::print(&render(&waiting, crate::lifecycle::wall(), out::columns()))?;
    Ok(ExitCode::SUCCESS)
}

fn render(waiting: &[PendingJoin], now: UnixMs, columns: usize) -> String {
    if waiting.is_empty() {
        return "no node is waiting\n".to_owned();
    }
    let mut table = Table::new(vec![
        Column::left("CODE"),
        Column::left("NAME"),
        Column::left("FROM"),
        Column::left("ID").optional(1),
        Column::left("EXPIRES"),
    ]);
    for one in waiting {
        table.row(vec![
            Cell::plain(&one.code),
            Cell::plain(one.name.as_str()),
            Cell::plain(one.from.to_string()),
            Cell::plain(one.id().to_string()),
            Cell::plain(time::until(one.until, now)),
        ]);
    }
    let mut text = table.render(columns, false);
    text.push_str("compare the codes, then run: agent approve CODE, or agent reject CODE\n");
    text
}

#[cfg(test)]
mod tests {
    use proto::node::PublicKey;

    use super::*;

    #[test]
    fn the_list_says_what_to_do_next() {
        assert_eq!(render(&[], UnixMs(0), 80), "no node is waiting\n");
        let one = PendingJoin {
            code: "k7qm-2xpd".to_owned(),
            key: PublicKey([1; 32]),
            name: "w3".parse().unwrap(),
            from: "10.0.0.9:41234".parse().unwrap(),
            until: UnixMs(900_000),
        };
        let text = render(&[one], UnixMs(300_000), 80);
        assert!(text.contains("k7qm-2xpd  w3"), "{text}");
        assert!(text.contains("in 10m"), "{text}");
        assert!(text.contains("agent approve CODE"), "{text}");
    }
}
