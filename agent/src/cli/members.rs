//! `agent members`: everyone.

use std::process::ExitCode;

use proto::control::{MemberStatus, name_order};
use proto::node::Role;
use proto::time::UnixMs;

use super::table::{Cell, Column, Table};
use super::{CommandSettings, ask, out, time};

/// List the members with their role and state
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// Runs the command.
pub(super) async fn run(args: &Args, settings: &CommandSettings) -> anyhow::Result<ExitCode> {
    let status = ask::status(settings).await?;
    if args.json {
        out::json(&serde_json::json!({ "schema": status.schema, "members": status.members }))?;
    } else {
        let mut members: Vec<&MemberStatus> = status.members.iter().collect();
        members.sort_by_cached_key(|one| (one.role != Role::Master, name_order(&one.name)));
        let now = crate::lifecycle::wall();
        out::print(&table(&members, now, true, 0).render(out::columns(), out::colours()))?;
    }
    Ok(ExitCode::SUCCESS)
}

/// The table of members, which status shows too.
pub(super) fn table(members: &[&MemberStatus], now: UnixMs, ids: bool, indent: usize) -> Table {
    let mut columns = vec![Column::left("NAME")];
    if ids {
        columns.push(Column::left("ID"));
    }
    columns.extend([
        Column::left("ROLE"),
        Column::left("STATE"),
        Column::left("SINCE"),
        Column::left("ADDRESS"),
        Column::right("RTT").optional(2),
        Column::left("VERSION").optional(1),
    ]);
    let mut table = Table::new(columns).indent(indent);
    for member in members {
        let mut cells = vec![Cell::plain(member.name.as_str())];
        if ids {
            cells.push(Cell::plain(member.id.to_string()));
        }
        cells.extend([
            Cell::plain(member.role.to_string()),
            Cell::toned(member.state.as_str(), member.state.into()),
            Cell::plain(time::age(member.since_unix_ms, now)),
            Cell::plain(known(&member.address)),
            Cell::plain(rtt(member.rtt_ms)),
            Cell::plain(known(&member.version)),
        ]);
        table.row(cells);
    }
    table
}

fn known(text: &str) -> &str {
    if text.is_empty() { "-" } else { text }
}

/// A round-trip time, as precise as it is worth.
pub(super) fn rtt(ms: Option<f64>) -> String {
    match ms {
        None => "-".to_owned(),
        Some(ms) if ms < 10.0 => format!("{ms:.1}ms"),
        Some(ms) => format!("{ms:.0}ms"),
    }
}
