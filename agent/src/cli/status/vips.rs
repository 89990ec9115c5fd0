//! Virtual IPs, a block each.

use proto::control::{Status, VipState, VipStatus};
use proto::node::Name;
use proto::time::UnixMs;

use super::Severity;
use super::table::{Cell, Column, Table, paragraph, wrap};
use super::time::{age, at};

/// Candidates shown, the best; the owner is one of them even where it is not.
const MAX_CANDIDATES: usize = 12;

/// Writes all of them.
pub(super) fn show(text: &mut String, status: &Status, now: UnixMs, columns: usize, colours: bool) {
    for vip in &status.vips {
        text.push('\n');
        one(text, vip, now, columns, colours);
    }
}

fn one(text: &mut String, vip: &VipStatus, now: UnixMs, columns: usize, colours: bool) {
    let state = match (vip.state, &vip.owner) {
        (VipState::OwnedHere, _) => "on this node".to_owned(),
        (VipState::Owned, Some(owner)) => format!("on {owner}"),
        (VipState::Owned, None) => "on another node".to_owned(),
        (VipState::Unowned, _) => "no owner".to_owned(),
        (VipState::Unavailable, _) => "unavailable".to_owned(),
        (VipState::Other(state), _) => state.as_str().to_owned(),
    };
    let mut line = state;
    if vip.since_unix_ms != UnixMs(0) {
        line.push_str(&format!(" since {} ({})", at(vip.since_unix_ms, now), age(vip.since_unix_ms, now)));
    }
    if vip.epoch > 0 {
        line.push_str(&format!(", epoch {}", vip.epoch));
    }
    if let Some(interface) = &vip.interface {
        line.push_str(&format!(", {interface} here"));
    }
    paragraph(text, &format!("vip {}  ", vip.address), &line, columns);
    for line in wrap(&vip.reason.to_string(), columns.saturating_sub(2)) {
        text.push_str(&format!("  {line}\n"));
    }
    if vip.candidates.is_empty() {
        return;
    }
    let mut table =
        Table::new(vec![Column::right("#"), Column::left("CANDIDATE"), Column::left("STATE")]).indent(2);
    let is_owner = |node: &Name| vip.owner.as_ref() == Some(node);
    let shown =
        vip.candidates.iter().enumerate().filter(|(i, one)| *i < MAX_CANDIDATES || is_owner(&one.node));
    let mut rest = vip.candidates.len();
    for (_, candidate) in shown {
        rest -= 1;
        let owner = is_owner(&candidate.node);
        let (word, severity) = match (owner, candidate.eligible) {
            (true, _) => ("owner", Severity::Good),
            (false, true) => ("ready", Severity::Plain),
            (false, false) => ("ineligible", Severity::Doubt),
        };
        table.row(vec![
            Cell::plain(candidate.rank.to_string()),
            Cell::plain(candidate.node.as_str()),
            Cell::toned(word, severity),
        ]);
        if !candidate.reason.is_empty() {
            table.note(candidate.reason.to_string());
        }
    }
    text.push_str(&table.render(columns, colours));
    if rest > 0 {
        text.push_str(&format!("  and {rest} more candidates; for all, run: agent status --json\n"));
    }
}
