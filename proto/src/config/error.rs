//! Why a single value of the configuration is none.

use std::net::IpAddr;
use std::time::Duration;

use crate::node::BadName;
use crate::time::human;

/// Where a value is written, and so how to write another.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Written {
    /// In a node's file.
    InFile,
    /// As a setting of the whole cluster.
    AsSetting,
}

impl Written {
    /// How the kind of a check is written there.
    fn check_kind(self) -> &'static str {
        match self {
            Written::InFile => "write kind = ",
            Written::AsSetting => "set check to ",
        }
    }
}

/// Why a value is not what it should be, and what would be right. Values in it are cut, and secrets are never
/// part of it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BadValue {
    /// It is none of a few words.
    #[error(
        "\"{text}\" is not {what}{}: write one of {}",
        nearest.map_or_else(String::new, |word| format!(" (did you mean {word}?)")),
        known.join(", ")
    )]
    NotOneOf {
        /// What was written.
        text: String,
        /// What it should be.
        what: &'static str,
        /// The word that was probably meant.
        nearest: Option<&'static str>,
        /// All that there are.
        known: Vec<&'static str>,
    },
    /// There is no such environment variable.
    #[error(
        "unknown variable{} the variables are {}",
        nearest.map_or_else(|| ";".to_owned(), |near| format!(", did you mean {near}?")),
        known.join(", ")
    )]
    UnknownVariable {
        /// The one that was probably meant.
        nearest: Option<&'static str>,
        /// All that there are.
        known: &'static [&'static str],
    },
    /// It is no name of a node.
    #[error(transparent)]
    Name(#[from] BadName),
    /// Others can't reach this node at it.
    #[error("{0} is not reachable for others; use this node's own address on the mesh")]
    Unreachable(IpAddr),
    /// It is no IP address.
    #[error("\"{0}\" is not an IP address; write it as 10.0.0.1 or fd00::1, without a port")]
    Ip(String),
    /// It is no address with a port.
    #[error("\"{0}\" is not an address with a port; write it as 127.0.0.1:16443 or [::1]:16443")]
    Socket(String),
    /// It is no name of an interface.
    #[error("\"{0}\" is not an interface name of 1 to 15 characters, such as wg0")]
    Interface(String),
    /// It is no absolute path.
    #[error("\"{0}\" is not an absolute path; it must begin with /")]
    Path(String),
    /// A socket in that directory would have too long a path.
    #[error("it has {bytes} bytes; a directory for sockets may have at most {most}")]
    RuntimeDir {
        /// The directory's own.
        bytes: usize,
        /// The most that it may have.
        most: usize,
    },
    /// It is no port.
    #[error("\"{0}\" is not a port from 1 to 65535")]
    Port(String),
    /// It is no path that can be asked for.
    #[error("\"{0}\" is not an HTTP path; it must begin with / and have no spaces, such as /readyz")]
    HttpPath(String),
    /// No certificate carries such a name.
    #[error("\"{0}\" is not a valid certificate name, such as kubernetes")]
    ServerName(String),
    /// It is no duration.
    #[error("\"{0}\" is not a duration; write a number and ms, s, m, h or d, such as 500ms")]
    Duration(String),
    /// It is too short or too long.
    #[error(
        "{text} is {}; allowed are {} to {}",
        if found < least { "too short" } else { "too long" },
        human(*least),
        human(*most)
    )]
    OutOfBounds {
        /// What was written.
        text: String,
        /// The same.
        found: Duration,
        /// The shortest.
        least: Duration,
        /// The longest.
        most: Duration,
    },
    /// It is no number.
    #[error("\"{0}\" is not a whole number")]
    Number(String),
    /// A check of this kind has no such key.
    #[error("a check of kind \"{kind}\" has no {key}: {}{right}", written.check_kind())]
    NotOfKind {
        /// The kind of the check.
        kind: &'static str,
        /// The key.
        key: &'static str,
        /// The kinds that have it.
        right: &'static str,
        /// Where the kind is written.
        written: Written,
    },
    /// It is neither true nor false.
    #[error("\"{0}\" is not true or false")]
    Flag(String),
    /// It is no user of the status page.
    #[error("not a user: 1 to 64 characters without a colon")]
    User,
    /// It is no password; it is never shown.
    #[error("must have {least} to {most} characters")]
    Secret {
        /// The shortest.
        least: usize,
        /// The longest.
        most: usize,
    },
    /// It is no URL of a webhook; it is never shown, since it may hold a secret.
    #[error("{0}; write it as http://host:8080/path or https://host/path")]
    Webhook(&'static str),
}
