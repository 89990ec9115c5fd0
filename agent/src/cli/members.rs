//! `agent members`: everyone.

use std::process::ExitCode;

use proto::control::{MemberList, MemberStatus, Request, Response, name_order};
use proto::node::{Name, Role};
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
    let status = ask::status(settings).await?;
    let schema = status.schema;
    let known = MemberList { members: status.members, from: None, silent: Vec::new() };
    let list = match status.node.place == Place::Attached {
        true => match ask::ask(settings, &Request::Members).await? {
            Response::Members(list) => list,
            other => return Err(ask::unexpected(&other)),
        },
        false => known,
    };
    if args.json {
        let mut json = serde_json::json!({ "schema": schema, "members": list.members });
        if let Some(from) = &list.from {
            json["from"] = from.as_str().into();
        }
        if !list.silent.is_empty() {
            json["silent"] = list.silent.iter().map(Name::as_str).collect();
        }
        out::json(&json)?;
    } else {
        out::print(&render(&list, crate::lifecycle::wall(), out::columns(), out::colours()))?;
    }
    Ok(ExitCode::SUCCESS)
}

/// The screen: masters first, and on an attached node who has said it.
fn render(list: &MemberList, now: UnixMs, columns: usize, colours: bool) -> String {
    let mut members: Vec<&MemberStatus> = list.members.iter().collect();
    members.sort_by_cached_key(|one| (one.role != Role::Master, name_order(&one.name)));
    let mut text = table(&members, now, true, 0).render(columns, colours);
    let silent: Vec<&str> = list.silent.iter().map(Name::as_str).collect();
    let silent = silent.join(", ");
    let note = match (&list.from, silent.as_str()) {
        (None, "") => return text,
        (Some(from), "") => format!("This node is attached: {from} says the rest of this list."),
        (Some(from), silent) => {
            format!("This node is attached: {from} says the rest of this list; {silent} gave none.")
        }
        (None, silent) => format!(
            "This node is attached, and {silent} gave no list: of other workers it knows who is silent, no more."
        ),
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

#[cfg(test)]
mod tests {
    use proto::control::MemberState;
    use proto::node::NodeId;

    use super::*;

    fn list(from: Option<&str>, silent: &[&str]) -> MemberList {
        let names = ["w10", "w9", "m2", "m1", "w1"];
        let member = |(i, name): (u8, &str)| MemberStatus {
            id: NodeId([i; NodeId::LEN]),
            name: name.parse().unwrap(),
            address: String::new(),
            role: if name.starts_with('m') { Role::Master } else { Role::Worker }.into(),
            state: MemberState::Up,
            version: String::new(),
            since_unix_ms: UnixMs(0),
            rtt_ms: None,
            loss_permille: None,
            document: String::new(),
            sees: Vec::new(),
        };
        MemberList {
            members: (0..).zip(names).map(member).collect(),
            from: from.map(|name| name.parse().unwrap()),
            silent: silent.iter().map(|name| name.parse().unwrap()).collect(),
        }
    }

    #[test]
    fn masters_come_first_numbers_count_by_value_and_who_said_it_is_named() {
        let screen = |from, silent: &[&str]| render(&list(from, silent), UnixMs(1), 80, false);
        let own = screen(None, &[]);
        let names: Vec<&str> = own.lines().skip(1).filter_map(|line| line.split(' ').next()).collect();
        assert_eq!(names, ["m1", "m2", "w1", "w9", "w10"]);
        for (from, silent, note) in [
            (Some("n3"), &[][..], "\nThis node is attached: n3 says the rest of this list.\n"),
            (
                Some("n3"),
                &["n7", "n9"],
                "\nThis node is attached: n3 says the rest of this list; n7, n9 gave none.\n",
            ),
            (
                None,
                &["n7"],
                "\nThis node is attached, and n7 gave no list: of other workers it knows who is\nsilent, no more.\n",
            ),
        ] {
            let shown = screen(from, silent);
            assert!(shown.starts_with(&own) && shown.ends_with(note), "{shown}");
        }
    }
}
