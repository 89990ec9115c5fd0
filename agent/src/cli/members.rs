//! `agent members`: everyone.

use std::process::ExitCode;

use proto::control::{MemberStatus, Request, Response, Status, in_order};
use proto::node::Role;
use proto::time::UnixMs;
use proto::topology::Place;

use super::table::{Cell, Column, Table, paragraph};
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
    let mut status = ask::status(settings).await?;
    if status.node.place == Place::Attached {
        status = match ask::ask(settings, &Request::Members).await? {
            Response::Status(status) => *status,
            other => return Err(ask::unexpected(&other)),
        };
    }
    if args.json {
        let mut json = serde_json::json!({ "schema": status.schema, "members": status.members });
        if let Some(from) = &status.members_from {
            json["from"] = from.as_str().into();
        }
        out::json(&json)?;
    } else {
        out::print(&render(&status, crate::lifecycle::wall(), out::columns(), out::colours()))?;
    }
    Ok(ExitCode::SUCCESS)
}

/// The screen: masters first, and on an attached node who has said it.
pub(super) fn render(status: &Status, now: UnixMs, columns: usize, colours: bool) -> String {
    let rank = |one: &MemberStatus| u8::from(one.role != Role::Master);
    let members = in_order(status.members.iter(), |one| (rank(one), one.name.as_str()));
    let mut text = table(&members, now, true, 0).render(columns, colours);
    let note = match &status.members_from {
        _ if status.node.place != Place::Attached => return text,
        Some(from) => format!("This node is attached: {from} says the rest of this list."),
        None => {
            "This node is attached, and no core member gave a list: of other workers it knows who is silent, \
                 no more."
                .to_owned()
        }
    };
    text.push('\n');
    paragraph(&mut text, "", &note, columns);
    text
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
