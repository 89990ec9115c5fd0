//! Notify scripts, and the one that calls them as keepalived did.
//!
//! The agent runs one program for every event. keepalived's scripts know the name of their block and nothing but
//! its changes, and `notify_master` and its like have arguments of their own: so one script of ours stands between.

use std::net::IpAddr;

use super::super::notes::FileReport;
use super::super::notes::LineOutcome::{Kept, Needless, NotDone};
use super::tree::Node;

/// Where the script that stands between is put.
pub(in super::super) const WRAPPER: &str = "/usr/local/sbin/agent-vip-notify";

/// A script that was called, and when.
#[derive(Debug)]
pub(in super::super) struct NotifyCall {
    /// The name of its block.
    instance: String,
    /// `MASTER`, `BACKUP` or `FAULT`; none: for each, and it is told which.
    state: Option<&'static str>,
    /// The program and its own arguments.
    command: Vec<String>,
}

/// Reads `notify` and its like; none when the line is not of them.
pub(super) fn read(line: &Node, instance: &str, account: &mut FileReport) -> Option<Option<NotifyCall>> {
    let state = match line.word(0) {
        "notify" => None,
        "notify_master" => Some("MASTER"),
        "notify_backup" => Some("BACKUP"),
        "notify_fault" => Some("FAULT"),
        "notify_stop" | "notify_deleted" | "notify_master_rx_lower_pri" => {
            let reason = "the agent tells MASTER, BACKUP and FAULT, and nothing when it stops";
            account.add(line.line, &line.shown(), NotDone, reason);
            return Some(None);
        }
        _ => return None,
    };
    let command: Vec<String> = line.word(1).split_whitespace().map(str::to_owned).collect();
    let is_path = command.first().is_some_and(|path| path.starts_with('/'));
    if !is_path || command.iter().any(|word| word.contains(char::is_control)) {
        let reason = "a program needs an absolute path, such as /usr/local/bin/vip-changed";
        account.add(line.line, &line.shown(), NotDone, reason);
        return Some(None);
    }
    account.add(line.line, &line.shown(), Kept, format!("called by {WRAPPER} as keepalived did"));
    if line.words.len() > 2 {
        account.add(
            line.line,
            &line.shown_rest(2),
            Needless,
            "programs run with the rights of the agent's unit",
        );
    }
    Some(Some(NotifyCall { instance: instance.to_owned(), state, command }))
}

/// The script that calls all of them, for the addresses of their blocks.
pub(in super::super) fn script(calls: &[NotifyCall], vips: &[(IpAddr, &str)]) -> String {
    let mut text = "#!/bin/sh\n\
                    # Written by \"agent migrate\": calls keepalived's notify scripts as it did.\n\
                    # The agent calls it for every event; those of virtual IPs have arguments.\n\
                    [ \"$1\" = INSTANCE ] || exit 0\n"
        .to_owned();
    for call in calls {
        let addresses: Vec<String> = vips
            .iter()
            .filter(|(_, instance)| *instance == call.instance)
            .map(|(address, _)| format!("{address}/{}", call.state.unwrap_or("*")))
            .collect();
        if addresses.is_empty() {
            continue;
        }
        let mut words: Vec<String> = call.command.iter().map(|word| quoted(word)).collect();
        if call.state.is_none() {
            words.extend(["INSTANCE".to_owned(), quoted(&call.instance), "\"$3\" \"$4\"".to_owned()]);
        }
        text.push_str(&format!("case \"$2/$3\" in\n{}) {} ;;\nesac\n", addresses.join("|"), words.join(" ")));
    }
    text
}

/// A word that a shell takes as it is.
fn quoted(word: &str) -> String {
    format!("'{}'", word.replace('\'', "'\\''"))
}
