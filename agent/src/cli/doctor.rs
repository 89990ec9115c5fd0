//! `agent doctor`: what is wrong, why it matters, and the fix.

use std::process::ExitCode;

use proto::control::{MemberState, Request, Response, Status};
use proto::doctor::cluster::{self, MasterLink, MemberFacts};
use proto::doctor::{Action, Examination, Finding, Severity as FindingSeverity, Step};
use proto::node::Role;

use super::exit;
use super::table::{Severity, sanitize, wrap};
use super::{CommandSettings, ask, out};
use crate::app::doctor;

/// Version of the shape of `--json`.
const SCHEMA: u32 = 1;

/// Diagnose current and upcoming problems on this node, its peers and the paths between them, and print the fix
///
/// Checks this node's agent, service, files, routes, apiserver and its clients, asks the other members to
/// check themselves, and tests the paths in both directions: ports by TCP and UDP, packets of full size,
/// clocks. Changes nothing. Exits with 0 if there is nothing to fix, with 10 if the worst finding is a
/// warning, and with 11 if it is an error.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  agent doctor
  agent doctor m2              this node, m2, and the path between them
  agent doctor --json | jq -r '.findings[] | .code + \" \" + .node'")]
pub(crate) struct Args {
    /// Print JSON; its format is stable and versioned by "schema"
    #[arg(long)]
    json: bool,
    /// Names or ids of the members to check [default: all]
    #[arg(value_name = "NODE")]
    nodes: Vec<String>,
}

/// Runs the command.
pub(super) async fn run(args: Args, settings: &CommandSettings) -> anyhow::Result<ExitCode> {
    let status = match ask::ask_if_running(settings, &Request::Status).await? {
        Ok(Response::Status(status)) => Some(*status),
        Ok(other) => return Err(ask::unexpected(&other)),
        Err(_) => None,
    };
    let config = &settings.config;
    let places = doctor::places(config);
    let version = Some(env!("CARGO_PKG_VERSION"));
    let mut examined = doctor::own(places, status.as_ref(), &config.services, None, version).await;
    if let Some(status) = &status {
        match ask::ask_if_running(settings, &Request::Doctor(args.nodes)).await? {
            Ok(Response::Doctor(others)) => examined.append(*others),
            Ok(other) => return Err(ask::unexpected(&other)),
            // It ended meanwhile: what was found on this node holds.
            Err(_) => {}
        }
        examined.append(together(status));
    }
    examined.sort();
    let node = status.as_ref().map_or("this node", |status| status.node.name.as_str());
    if args.json {
        out::json(&serde_json::json!({
            "schema": SCHEMA,
            "node": node,
            "taken_unix_ms": crate::lifecycle::wall(),
            "worst": examined.worst(),
            "checked": examined.checked,
            "findings": examined.findings,
        }))?;
    } else {
        out::print(&render(node, &examined, out::columns(), out::colours()))?;
    }
    Ok(match examined.worst() {
        FindingSeverity::Ok | FindingSeverity::Note => ExitCode::SUCCESS,
        FindingSeverity::Warning => ExitCode::from(exit::DEGRADED),
        FindingSeverity::Error => ExitCode::from(exit::FAULTY),
    })
}

/// What only all members together show.
fn together(status: &Status) -> Examination {
    let members: Vec<MemberFacts> = status
        .members
        .iter()
        .filter(|member| member.state != MemberState::Left)
        .map(|member| MemberFacts {
            name: member.name.to_string(),
            // A node does not hear itself.
            version: match member.id == status.node.id {
                true => status.node.version.clone(),
                false => member.version.clone(),
            },
        })
        .collect();
    let masters = || status.members.iter().filter(|member| member.role == Role::Master);
    let mut pairs = Vec::new();
    for from in masters() {
        if from.id == status.node.id {
            pairs.extend(masters().filter(|to| to.id != from.id).map(|to| MasterLink {
                from: from.name.to_string(),
                to: to.name.to_string(),
                at: to.address.clone(),
                rtt_ms: to.rtt_ms,
                loss_permille: to.loss_permille.unwrap_or(0),
            }));
            continue;
        }
        for seen in from.sees.iter().filter(|seen| seen.alive) {
            pairs.extend(masters().find(|to| to.name == seen.node).map(|to| MasterLink {
                from: from.name.to_string(),
                to: seen.node.to_string(),
                at: to.address.clone(),
                rtt_ms: seen.rtt_ms,
                loss_permille: seen.loss_permille,
            }));
        }
    }
    cluster::examine(status.node.name.as_str(), &members, &pairs)
}

fn severity(severity: FindingSeverity) -> Severity {
    match severity {
        FindingSeverity::Ok => Severity::Good,
        FindingSeverity::Note => Severity::Plain,
        FindingSeverity::Warning => Severity::Doubt,
        FindingSeverity::Error => Severity::Bad,
    }
}

/// The screen: a line for each thing that was looked at, then what was found, the worst first.
fn render(node: &str, examined: &Examination, columns: usize, colours: bool) -> String {
    let mut text = format!("checked from {node}\n");
    let mut areas: Vec<(&str, &str)> =
        examined.checked.iter().map(|one| (one.area.as_str(), one.text.as_str())).collect();
    for finding in &examined.findings {
        if !areas.iter().any(|(area, _)| *area == finding.area) {
            areas.push((&finding.area, ""));
        }
    }
    let groups = grouped(&examined.findings);
    for (area, well) in areas {
        let of_it = || groups.iter().filter(|group| group.finding.area == area);
        let worst = of_it().map(|group| group.finding.severity).max().unwrap_or(FindingSeverity::Ok);
        let words = if worst == FindingSeverity::Ok { well.to_owned() } else { summary(of_it()) };
        let mark = severity(worst).paint(&format!("{:<8}", worst.as_str()), colours);
        hanging(&mut text, &format!("  {mark} {area:<12} "), 24, &words, columns);
    }
    for (i, Group { finding, nodes, remedy }) in groups.iter().enumerate() {
        let alike = |other: &&Group<'_>| other.is_like(finding);
        let (before, after) = (&groups[..i], &groups[i + 1..]);
        let printed = before.iter().filter(alike).count();
        if printed >= MOST_ALIKE {
            continue;
        }
        text.push('\n');
        let label = format!("{}: ", finding.severity.as_str());
        let painted = severity(finding.severity).paint(&label, colours);
        let what = match examined.findings.iter().any(|other| other.node != node) {
            true if nodes.len() > 1 => format!("nodes {}: {}", listed(nodes), finding.what),
            true => format!("{}: {}", finding.node, finding.what),
            false => finding.what.clone(),
        };
        hanging(&mut text, &painted, label.len(), &what, columns);
        hanging(&mut text, "  why   ", 8, &finding.why, columns);
        for (i, step) in remedy.iter().enumerate() {
            let before = if i == 0 { "  fix   " } else { "        " };
            print_step(&mut text, before, step, columns);
        }
        let rest = after.iter().filter(alike).count();
        if rest > 0 && printed + 1 == MOST_ALIKE {
            let more = format!("{rest} more like this ({}); all of them: agent doctor --json", finding.code);
            hanging(&mut text, "\n  and   ", 8, &more, columns);
        }
    }
    let serious = groups.iter().filter(|group| group.finding.severity > FindingSeverity::Note).count();
    text.push('\n');
    text.push_str(&match serious {
        0 => Severity::Good.paint("nothing to fix", colours),
        1 => "1 thing to fix".to_owned(),
        many => format!("{many} things to fix"),
    });
    text.push('\n');
    text
}

/// Findings of one kind that are printed: of a thousand nodes that do not answer three say enough.
const MOST_ALIKE: usize = 3;

/// Nodes that are named.
const MOST_NAMED: usize = 12;

/// Names, the first of many.
fn listed(nodes: &[&str]) -> String {
    match nodes.get(..MOST_NAMED) {
        Some(few) if nodes.len() > MOST_NAMED => {
            format!("{} and {} more", few.join(", "), nodes.len() - MOST_NAMED)
        }
        _ => nodes.join(", "),
    }
}

/// What several nodes have, found once.
struct Group<'a> {
    /// The first of them.
    finding: &'a Finding,
    /// All that have it.
    nodes: Vec<&'a str>,
    /// What fixes it on each.
    remedy: Vec<Step>,
}

impl Group<'_> {
    /// Whether it is of the same kind: the same is wrong with something else.
    fn is_like(&self, other: &Finding) -> bool {
        let Finding { code, severity, area, .. } = self.finding;
        (code, severity, area) == (&other.code, &other.severity, &other.area)
    }
}

/// The steps of a finding, each with whether it is done on the finding's own node; without that node's name.
fn by_place(finding: &Finding) -> Vec<(bool, Step)> {
    let own = |step: &Step| step.place().is_none_or(|place| place == finding.node);
    finding
        .remedy
        .iter()
        .map(|step| (own(step), if own(step) { step.clone().here() } else { step.clone() }))
        .collect()
}

/// Findings that say the same but for their node, in the order of the first of each.
fn grouped(findings: &[Finding]) -> Vec<Group<'_>> {
    let mut groups: Vec<Group<'_>> = Vec::new();
    for finding in findings {
        let same = groups.iter_mut().find(|group| {
            let Finding { code, severity, area, what, why, .. } = group.finding;
            (code, severity, area, what, why)
                == (&finding.code, &finding.severity, &finding.area, &finding.what, &finding.why)
                && by_place(group.finding) == by_place(finding)
        });
        match same {
            Some(group) => {
                group.nodes.push(&finding.node);
                let each = |step: Step, here: bool| if here { step.on("each") } else { step };
                group.remedy = by_place(finding).into_iter().map(|(here, step)| each(step, here)).collect();
            }
            None => {
                let (nodes, remedy) = (vec![finding.node.as_str()], finding.remedy.clone());
                groups.push(Group { finding, nodes, remedy });
            }
        }
    }
    groups
}

/// `2 findings: n1, n2`.
fn summary<'a>(of_it: impl Iterator<Item = &'a Group<'a>>) -> String {
    let all: Vec<&Finding> = of_it.map(|group| group.finding).collect();
    let s = if all.len() == 1 { "" } else { "s" };
    let mut codes: Vec<&str> = all.iter().map(|finding| finding.code.as_str()).collect();
    codes.sort_unstable();
    codes.dedup();
    format!("{} finding{s}: {}", all.len(), codes.join(", "))
}

/// A text behind a label that is `hang` columns wide, its further lines below its first.
fn hanging(text: &mut String, label: &str, hang: usize, words: &str, columns: usize) {
    for (i, line) in wrap(words, columns.saturating_sub(hang)).iter().enumerate() {
        let pad = " ".repeat(hang);
        let before = if i == 0 { label } else { pad.as_str() };
        text.push_str(&format!("{before}{line}\n"));
    }
}

/// One step: a command can be copied also where it takes several lines.
fn print_step(text: &mut String, before: &str, step: &Step, columns: usize) {
    let line = step.line();
    let Action::Run { command, remark } = step.action() else {
        return hanging(text, before, before.len(), &line, columns);
    };
    if before.len() + line.chars().count() <= columns {
        // As it is, with the spaces before its remark.
        return text.push_str(&format!("{before}{}\n", sanitize(&line)));
    }
    let on = step.place().map_or_else(String::new, |place| format!("on {place}: "));
    let whole = format!("{on}{command}");
    // A word stays whole even where it is too long: broken, it would be another.
    let (mut lines, last_room) = (vec![String::new()], columns.saturating_sub(before.len()));
    let room = if whole.chars().count() <= last_room { last_room } else { last_room.saturating_sub(4) };
    for word in sanitize(&whole).split_whitespace() {
        match lines.last_mut() {
            Some(last) if last.is_empty() => last.push_str(word),
            Some(last) if last.chars().count() + 1 + word.chars().count() <= room => {
                last.push(' ');
                last.push_str(word);
            }
            _ => lines.push(word.to_owned()),
        }
    }
    for (i, part) in lines.iter().enumerate() {
        let label = if i == 0 { before } else { "          " };
        let more = if i + 1 < lines.len() { " \\" } else { "" };
        text.push_str(&format!("{label}{part}{more}\n"));
    }
    if !remark.is_empty() {
        // A remark ends with its line, whatever stands at its end.
        hanging(text, "          # ", 12, remark, columns);
    }
}

#[cfg(test)]
mod tests {
    use proto::doctor::{FindingText, Step};

    use super::*;

    #[test]
    fn a_healthy_node_is_a_short_screen() {
        let mut examined = Examination::default();
        examined.checked("ports", "2 other members, each by TCP and UDP on 7646, both ways");
        let screen = render("m1", &examined, 80, false);
        assert_eq!(
            screen,
            "checked from m1\n  ok       ports        2 other members, each by TCP and UDP on 7646, \
             both ways\n\nnothing to fix\n"
        );
    }

    #[test]
    fn findings_fit_80_columns_and_long_commands_can_be_copied() {
        let mut examined = Examination::default();
        examined.checked("ports", "well");
        let long = Step::run(format!("kubectl {}", "get nodes ".repeat(12).trim_end()));
        let remedy = vec![long, Step::run("a").remark("b")];
        let words = FindingText { what: "x ".repeat(60), why: "y", remedy };
        examined.found(FindingSeverity::Error, "ports", "udp-blocked", "m2", words);
        let screen = render("m1", &examined, 80, false);
        assert!(screen.lines().all(|line| line.chars().count() <= 80), "{screen}");
        assert!(screen.contains("  error    ports        1 finding: udp-blocked\n"), "{screen}");
        assert!(screen.contains("error: m2: x x"), "{screen}");
        let printed = screen.split("  fix   ").nth(1).unwrap();
        let whole = printed.split("        a   # b\n").next().unwrap().replace(" \\\n          ", " ");
        assert_eq!(whole.trim(), format!("kubectl {}", "get nodes ".repeat(12)).trim());
        assert!(screen.ends_with("\n1 thing to fix\n"));

        let mut text = String::new();
        let step = Step::run("ls /x/y ".repeat(8).trim_end()).remark("why ".repeat(8));
        print_step(&mut text, "  fix   ", &step, 80);
        assert!(!text.contains('\\') && text.lines().count() == 2, "a remark that is continued: {text}");
    }

    #[test]
    fn what_several_nodes_have_is_said_once_with_their_names() {
        let mut examined = Examination::default();
        let words = |step: Step| FindingText { what: "asleep".to_owned(), why: "why", remedy: vec![step] };
        let start = || Step::run("systemctl start agent");
        examined.found(FindingSeverity::Error, "agent", "not-running", "m1", words(start()));
        for node in ["m2", "m3"] {
            examined.found(FindingSeverity::Error, "agent", "not-running", node, words(start().on(node)));
        }
        // Another command, and so another finding.
        let other = words(Step::run("reboot").on("m4"));
        examined.found(FindingSeverity::Error, "agent", "not-running", "m4", other);
        let screen = render("m1", &examined, 80, false);
        let once = "error: nodes m1, m2, m3: asleep\n  why   why\n  fix   on each: systemctl start agent\n";
        assert!(screen.contains(once), "{screen}");
        assert!(screen.contains("error: m4: asleep\n  why   why\n  fix   on m4: reboot\n"), "{screen}");
        assert!(
            screen.contains("2 findings: not-running") && screen.ends_with("2 things to fix\n"),
            "{screen}"
        );
    }

    #[test]
    fn a_thousand_members_that_have_the_same_are_a_short_screen() {
        let mut examined = Examination::default();
        for n in 0..987 {
            let what = format!("w{n} answers neither TCP nor UDP on 10.0.0.9, port 7646");
            let words = FindingText { what, why: "why", remedy: vec![Step::run(format!("ping w{n}"))] };
            examined.found(FindingSeverity::Error, "ports", "unreachable", "m1", words);
            let words = FindingText { what: "asleep".to_owned(), why: "why", remedy: vec![] };
            examined.found(FindingSeverity::Warning, "agent", "old", &format!("w{n}"), words);
        }
        let words = FindingText { what: "two".to_owned(), why: "why", remedy: vec![] };
        examined.found(FindingSeverity::Warning, "clocks", "clock", "w2", words);
        examined.sort();
        let screen = render("m1", &examined, 80, false);
        assert!(screen.lines().count() < 40, "{screen}");
        assert!(screen.lines().all(|line| line.chars().count() <= 80), "{screen}");
        assert_eq!(screen.matches("answers neither").count(), 3, "{screen}");
        let more =
            "  fix   ping w2\n\n  and   984 more like this (unreachable); all of them: agent doctor --json\n";
        assert!(screen.contains(more), "{screen}");
        assert!(
            screen
                .contains("warning: nodes w0, w1, w2, w3, w4, w5, w6, w7, w8, w9, w10, w11 and 975 more:\n"),
            "{screen}"
        );
        assert!(screen.contains("warning: w2: two\n"), "{screen}");
        assert!(screen.ends_with("\n989 things to fix\n"), "{screen}");
    }

    #[test]
    fn a_step_is_a_command_by_its_type_and_not_by_its_text() {
        let print = |step: &Step| {
            let mut text = String::new();
            print_step(&mut text, "  fix   ", step, 60);
            text
        };
        // What looks like words is copied whole, and what looks like a command is not continued.
        let odd = "sed -i 's|server: a|server: b|' /etc/rancher/k3s/config.yaml /etc/x";
        let printed = print(&Step::run(odd));
        assert_eq!(printed.lines().count(), 2);
        assert_eq!(printed.replace(" \\\n          ", " "), format!("  fix   {odd}\n"));
        let words = print(&Step::text(odd));
        assert!(!words.contains('\\') && words.lines().count() == 2, "{words}");
        assert_eq!(print(&Step::run("ls").remark("all").on("m2")), "  fix   on m2: ls   # all\n");
    }
}
