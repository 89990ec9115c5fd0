//! From haproxy and keepalived: what users have today, as a file and as commands of ours.
//!
//! Each format is read by lines that name what becomes of them, so nothing is left out in silence: kept, set
//! for the whole cluster, automatic now, needless, not done, not understood, or wrong. The file that comes out
//! explains itself, and [`crate::config::parse`] takes it.

use std::collections::BTreeMap;
use std::net::IpAddr;

use crate::config;
use crate::node::Name;
use crate::settings::MAX_VIPS;

mod commands;
mod haproxy;
mod keepalived;
mod nodes;
mod notes;
mod weights;
mod words;
mod write;

use haproxy::Haproxy;
use keepalived::Keepalived;
use nodes::NodeNames;
use notes::{FileReport, LineOutcome};

/// A file that someone has.
#[derive(Debug, Clone, Copy)]
pub struct SourceFile<'a> {
    /// Its name, for messages.
    pub name: &'a str,
    /// What stands in it, whatever that is.
    pub bytes: &'a [u8],
}

/// What is known beside the files.
pub struct Surroundings<'a> {
    /// The node that they are from, for what differs between nodes.
    pub node: Option<&'a Name>,
    /// The names of nodes by their addresses, as far as they are known.
    pub names: &'a BTreeMap<IpAddr, Name>,
    /// The value of a variable that the files use.
    pub variables: &'a dyn Fn(&str) -> Option<String>,
}

/// What became of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Migration {
    /// A configuration that [`crate::config::parse`] takes, with what is to be done as comments.
    pub text: String,
    /// What became of each line.
    pub explanation: String,
    /// A script for shells that calls keepalived's notify scripts, where there are any.
    pub notify_script: Option<String>,
    /// What was lost or is left to a person, a line each: file, line, what. None: the result is whole.
    pub problems: Vec<String>,
}

/// Why files become no configuration. Names in it are on one line.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum MigrateError {
    /// It is a file of another program.
    #[error(
        "{file} belongs to neither haproxy nor keepalived: it has no frontend, backend, listen, \
         and no vrrp_instance"
    )]
    NeitherKind {
        /// Its name.
        file: String,
    },
    /// It is nginx's.
    #[error(
        "{file} is a configuration of nginx, which is not read. Three masters behind one listener need no file: \
         run agent init and agent join. For other ports see \"agent help set\", service.NAME"
    )]
    Nginx {
        /// Its name.
        file: String,
    },
    /// Two are of one program.
    #[error("{first} and {second} both belong to {program}; merge them into one")]
    SameKind {
        /// The name of the first.
        first: String,
        /// The name of the other.
        second: String,
        /// Whose they are.
        program: &'static str,
    },
    /// No agent would take what comes out.
    #[error("nothing is written, since no agent would take the result:{}", lines(.mistakes))]
    Invalid {
        /// What is wrong with it.
        mistakes: Vec<String>,
        /// What is wrong with the files.
        problems: Vec<String>,
    },
}

fn lines(mistakes: &[String]) -> String {
    mistakes.iter().map(|mistake| format!("\n  {mistake}")).collect()
}

/// What a file is.
enum FileKind {
    Haproxy,
    Keepalived,
}

/// Reads files of haproxy and keepalived, told apart by what stands in them.
///
/// # Errors
/// A file is neither, two are the same, or nothing valid comes out.
pub fn migrate(sources: &[SourceFile<'_>], around: &Surroundings<'_>) -> Result<Migration, MigrateError> {
    let texts: Vec<(String, String)> =
        sources.iter().map(|one| (tame(one.name), String::from_utf8_lossy(one.bytes).into_owned())).collect();
    let mut haproxy: Option<(&str, &str)> = None;
    let mut keepalived: Option<(&str, &str)> = None;
    for (name, text) in &texts {
        let (place, program) = match kind(text) {
            Some(FileKind::Haproxy) => (&mut haproxy, "haproxy"),
            Some(FileKind::Keepalived) => (&mut keepalived, "keepalived"),
            None if is_nginx(text) => return Err(MigrateError::Nginx { file: name.clone() }),
            None => return Err(MigrateError::NeitherKind { file: name.clone() }),
        };
        if let Some((other, _)) = place.replace((name, text)) {
            let (first, second) = (other.to_owned(), name.clone());
            return Err(MigrateError::SameKind { first, second, program });
        }
    }
    let host = around.node.map(Name::as_str);
    let mut files = Files::default();
    if let Some((name, text)) = keepalived {
        let mut account = FileReport::new(name);
        files.keepalived = keepalived::read(text, host, around.variables, &mut account);
        few_vips(&mut files.keepalived, &mut account);
        files.of_keepalived = Some(account);
    }
    let vips: Vec<IpAddr> = files.keepalived.vips.iter().map(|vip| vip.address).collect();
    if let Some((name, text)) = haproxy {
        let mut account = FileReport::new(name);
        files.haproxy = haproxy::read(text, &vips, around.variables, &mut account);
        let names = NodeNames(around.names);
        files.weights = weights::commands(&files.haproxy.services, names, &mut account);
        files.of_haproxy = Some(account);
    }
    finish(files, around)
}

/// What was read.
#[derive(Default)]
struct Files {
    haproxy: Haproxy,
    keepalived: Keepalived,
    weights: Vec<(String, usize)>,
    of_haproxy: Option<FileReport>,
    of_keepalived: Option<FileReport>,
}

/// A cluster has so many virtual IPs and no more.
fn few_vips(keepalived: &mut Keepalived, account: &mut FileReport) {
    for vip in keepalived.vips.drain(MAX_VIPS.min(keepalived.vips.len())..) {
        let reason = format!("a cluster has at most {MAX_VIPS} virtual IPs");
        account.add(vip.line, &vip.address.to_string(), LineOutcome::NotDone, reason);
    }
}

/// Writes it all down, and reads it as an agent will.
fn finish(mut files: Files, around: &Surroundings<'_>) -> Result<Migration, MigrateError> {
    let name = |account: &Option<FileReport>| account.as_ref().map_or(String::new(), |one| one.file.clone());
    let (haproxy_file, keepalived_file) = (name(&files.of_haproxy), name(&files.of_keepalived));
    let mut accounts: Vec<FileReport> =
        files.of_haproxy.take().into_iter().chain(files.of_keepalived.take()).collect();
    accounts.iter_mut().for_each(FileReport::sort);
    let writer = write::ConfigWriter {
        haproxy_file: &haproxy_file,
        keepalived_file: &keepalived_file,
        haproxy: &files.haproxy,
        keepalived: &files.keepalived,
        nodes: commands::Nodes { names: NodeNames(around.names), this: around.node },
        weights: &files.weights,
    };
    let text = writer.write(&accounts);
    let problems: Vec<String> = accounts.iter().flat_map(FileReport::problems).collect();
    let mut mistakes: Vec<String> = match config::parse(&text) {
        Ok(_) => Vec::new(),
        Err(found) => found.iter().map(ToString::to_string).collect(),
    };
    if text.len() > config::MAX_FILE {
        mistakes.push(format!("it has {} kB; the limit is {}", text.len() / 1024, config::MAX_FILE / 1024));
    }
    let commands = writer.service_commands().into_iter().chain(writer.vip_command());
    mistakes.extend(commands.flat_map(|command| command.mistakes()));
    if !mistakes.is_empty() {
        return Err(MigrateError::Invalid { mistakes, problems });
    }
    let mut explanation = String::new();
    for account in &accounts {
        explanation.push_str(&format!("==== {}, line by line ====\n\n", account.file));
        account.render(&mut explanation);
        explanation.push('\n');
    }
    let vips: Vec<(IpAddr, &str)> =
        files.keepalived.vips.iter().map(|vip| (vip.address, vip.instance.as_str())).collect();
    let calls = &files.keepalived.notify;
    let notify_script = (!calls.is_empty()).then(|| keepalived::script(calls, &vips));
    Ok(Migration { text, explanation, notify_script, problems })
}

fn kind(text: &str) -> Option<FileKind> {
    if keepalived::is_ours(text) {
        Some(FileKind::Keepalived)
    } else {
        haproxy::is_ours(text).then_some(FileKind::Haproxy)
    }
}

/// Whether a text has a block of nginx's.
fn is_nginx(text: &str) -> bool {
    let heads = ["stream", "http", "upstream", "events", "server"];
    text.lines().any(|line| {
        let line = line.split('#').next().unwrap_or_default().trim();
        let head = line.strip_suffix('{').unwrap_or_default();
        heads.contains(&head.split_whitespace().next().unwrap_or_default())
    })
}

/// A name of a file, on one line.
fn tame(name: &str) -> String {
    name.chars().map(|c| if c.is_control() { '?' } else { c }).collect()
}
