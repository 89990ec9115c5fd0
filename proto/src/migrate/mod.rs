//! From haproxy and keepalived: what users have today, as a file and as commands of ours.
//!
//! Each format is read by lines that name what becomes of them, so nothing is left out in silence: kept, set
//! for the whole cluster, automatic now, needless, not done, not understood, or wrong. The file that comes out
//! explains itself, and [`crate::config::parse`] takes it.

use std::net::IpAddr;

use crate::config;
use crate::node::Name;

mod haproxy;
mod keepalived;
mod notes;
mod words;
mod write;

use haproxy::Haproxy;
use keepalived::Keepalived;
use notes::FileReport;

/// A file that someone has.
#[derive(Debug, Clone, Copy)]
pub struct SourceFile<'a> {
    /// Its name, for messages.
    pub name: &'a str,
    /// What stands in it, whatever that is.
    pub bytes: &'a [u8],
}

/// What became of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Migration {
    /// A configuration, with what is to be done and the account of all lines as comments.
    pub text: String,
    /// What a person has to look at, a line each: file, line, what.
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
}

/// What a file is.
enum FileKind {
    Haproxy,
    Keepalived,
}

/// Reads files of haproxy and keepalived, told apart by what stands in them. `node` is the node that they are
/// of, for settings that differ between nodes.
///
/// # Errors
/// A file is neither, or two are the same.
pub fn migrate(sources: &[SourceFile<'_>], node: Option<&Name>) -> Result<Migration, MigrateError> {
    let texts: Vec<(String, String)> =
        sources.iter().map(|one| (tame(one.name), String::from_utf8_lossy(one.bytes).into_owned())).collect();
    let mut haproxy: Option<(&str, &str)> = None;
    let mut keepalived: Option<(&str, &str)> = None;
    for (name, text) in &texts {
        let (place, program) = match kind(text) {
            Some(FileKind::Haproxy) => (&mut haproxy, "haproxy"),
            Some(FileKind::Keepalived) => (&mut keepalived, "keepalived"),
            None => return Err(MigrateError::NeitherKind { file: name.clone() }),
        };
        if let Some((other, _)) = place.replace((name, text)) {
            let (first, second) = (other.to_owned(), name.clone());
            return Err(MigrateError::SameKind { first, second, program });
        }
    }
    let mut accounts = Vec::new();
    let keepalived = keepalived.map(|(name, text)| {
        let mut account = FileReport::new(name);
        let found = keepalived::read(text, &mut account);
        accounts.push(account);
        found
    });
    let vips: Vec<IpAddr> = keepalived.iter().flat_map(|one| &one.vips).map(|vip| vip.address).collect();
    let haproxy = haproxy.map(|(name, text)| {
        let mut account = FileReport::new(name);
        let found = haproxy::read(text, &vips, &mut account);
        accounts.insert(0, account);
        found
    });
    accounts.iter_mut().for_each(FileReport::sort);
    Ok(finish(haproxy, keepalived, node, &accounts))
}

/// Writes it all down, and reads it as an agent will.
fn finish(
    haproxy: Option<Haproxy>,
    keepalived: Option<Keepalived>,
    node: Option<&Name>,
    accounts: &[FileReport],
) -> Migration {
    let mut problems: Vec<String> = accounts.iter().flat_map(FileReport::problems).collect();
    let (haproxy_file, keepalived_file) = match accounts {
        [haproxy, keepalived] => (haproxy.file.as_str(), keepalived.file.as_str()),
        [one] => (one.file.as_str(), one.file.as_str()),
        _ => ("", ""),
    };
    let writer = write::ConfigWriter { haproxy_file, keepalived_file, node };
    let text = writer.write(haproxy, keepalived, accounts);
    if let Err(mistakes) = config::parse(&text) {
        problems.extend(mistakes.iter().map(|mistake| format!("in the result, {mistake}")));
    }
    Migration { text, problems }
}

fn kind(text: &str) -> Option<FileKind> {
    if keepalived::is_ours(text) {
        Some(FileKind::Keepalived)
    } else {
        haproxy::is_ours(text).then_some(FileKind::Haproxy)
    }
}

/// A name of a file, on one line.
fn tame(name: &str) -> String {
    name.chars().map(|c| if c.is_control() { '?' } else { c }).collect()
}

/// haproxy's name of a server as a name that a node may have; what can't be one is left to the reader.
fn node_name(text: &str) -> String {
    let name = text.to_lowercase().replace(['_', '.'], "-");
    let good = name.parse::<Name>().is_ok();
    if good { name } else { "NODE".to_owned() }
}
