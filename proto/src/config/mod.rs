//! Configuration: raw text in, one checked value out, every mistake with its place.
//!
//! [`parse`] reads the file, [`apply_env`] lays the `AGENT_*` variables over it; flags come last and are the
//! shell's. Both report every mistake at once, since a person who fixes a file wants to run the check once.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::ops::RangeInclusive;
use std::str::FromStr;
use std::time::Duration;

use crate::node::Name;
use crate::service::{CheckKind, Service, ServiceName};

mod env;
mod error;
mod fields;
mod file;
mod health;
mod listeners;
mod mistake;
mod notify;
mod overlay;
mod place;
mod services;
#[cfg(test)]
mod tests;
mod vip;
mod walk;
mod web;

pub use env::apply_env;
pub use error::{BadValue, Written};
pub use file::parse;
pub use mistake::Mistake;
pub use notify::WebhookConfig;
pub use overlay::{NodeLocalListen, SHARED_KEYS, add_node_local, overlay, shared_service};
pub use place::{Contradiction, JoinedPlace, PlaceChanges};
pub use web::{HiddenText, WebConfig};

pub(crate) use listeners::{Listener, Listeners};
pub(crate) use mistake::nearest;
pub(crate) use overlay::quoted;
pub(crate) use services::MAX_SERVICES;

/// Largest configuration file: hundreds of times what a person writes.
pub const MAX_FILE: usize = 64 * 1024;

/// How the log is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum LogFormat {
    /// journald's own protocol under systemd, text elsewhere.
    #[default]
    Auto,
    /// Lines for people.
    Text,
    /// One JSON object a line.
    Json,
    /// journald's own protocol.
    Journald,
}

impl LogFormat {
    /// Every format, for messages and completions.
    pub const ALL: [LogFormat; 4] = [LogFormat::Auto, LogFormat::Text, LogFormat::Json, LogFormat::Journald];

    /// The word that configuration and flags use for it.
    pub fn as_str(self) -> &'static str {
        match self {
            LogFormat::Auto => "auto",
            LogFormat::Text => "text",
            LogFormat::Json => "json",
            LogFormat::Journald => "journald",
        }
    }
}

impl fmt::Display for LogFormat {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

impl FromStr for LogFormat {
    type Err = BadValue;

    fn from_str(text: &str) -> Result<LogFormat, BadValue> {
        fields::one_of(text, "a log format", LogFormat::ALL.map(|format| (format.as_str(), format)))
    }
}

/// How much is logged.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub enum LogLevel {
    /// What is broken.
    Error,
    /// What should be looked at.
    Warn,
    /// Every change of state.
    #[default]
    Info,
    /// What was decided and why.
    Debug,
}

impl LogLevel {
    /// Every level, for messages and completions.
    pub const ALL: [LogLevel; 4] = [LogLevel::Error, LogLevel::Warn, LogLevel::Info, LogLevel::Debug];

    /// The word that configuration and flags use for it.
    pub fn as_str(self) -> &'static str {
        match self {
            LogLevel::Error => "error",
            LogLevel::Warn => "warn",
            LogLevel::Info => "info",
            LogLevel::Debug => "debug",
        }
    }
}

impl fmt::Display for LogLevel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

impl FromStr for LogLevel {
    type Err = BadValue;

    fn from_str(text: &str) -> Result<LogLevel, BadValue> {
        fields::one_of(text, "a log level", LogLevel::ALL.map(|level| (level.as_str(), level)))
    }
}

/// The checked configuration of one node. The default is what runs without any file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Config {
    /// This node's name; none: its host name.
    pub name: Option<Name>,
    /// Address that others reach this node at; none: found by the route to the seed.
    pub address: Option<IpAddr>,
    /// Interface that carries the mesh; none: found likewise.
    pub interface: Option<String>,
    /// The link's port, UDP and TCP; none: as the node joined, at first [`crate::transport::PORT`].
    pub port: Option<u16>,
    /// Address that the link's port is bound to; none: all.
    pub bind: Option<IpAddr>,
    /// Where state is kept.
    pub state_dir: String,
    /// Where the control socket is.
    pub runtime_dir: String,
    /// How the log is written.
    pub log_format: LogFormat,
    /// How much is logged.
    pub log_level: LogLevel,
    /// The status page and the metrics.
    pub web: WebConfig,
    /// Where load balancers ask whether to send clients here; empty: nowhere.
    pub health: Vec<SocketAddr>,
    /// Programs that decide whether this node may own a virtual IP.
    pub vip_checks: BTreeMap<IpAddr, String>,
    /// Programs, and directories of programs, that are told of events.
    pub notify: Vec<String>,
    /// Where events are sent.
    pub webhook: Option<WebhookConfig>,
    /// What is proxied; the default service always stands first.
    pub services: Vec<Service>,
    /// The services that the file speaks of: there it counts, whatever the cluster's settings say.
    pub named: Vec<ServiceName>,
}

impl Config {
    /// The files that it names and the agent believes: whoever can write them decides which apiserver is ready,
    /// and who hears of events.
    pub fn believed_files(&self) -> BTreeSet<&str> {
        let webhook = self.webhook.iter().filter_map(|webhook| webhook.ca_file.as_deref());
        let checks = self.services.iter().filter_map(|service| match &service.check.kind {
            CheckKind::Https(_, tls) => Some(tls),
            CheckKind::Tcp | CheckKind::Http(_) => None,
        });
        let named = checks.flat_map(|tls| [&tls.ca_file, &tls.cert_file, &tls.key_file]);
        webhook.chain(named.filter_map(|file| file.as_deref())).collect()
    }
}

impl Default for Config {
    fn default() -> Config {
        Config {
            name: None,
            address: None,
            interface: None,
            port: None,
            bind: None,
            state_dir: "/var/lib/agent".to_owned(),
            runtime_dir: "/run/agent".to_owned(),
            log_format: LogFormat::default(),
            log_level: LogLevel::default(),
            web: WebConfig::default(),
            health: Vec::new(),
            vip_checks: BTreeMap::new(),
            notify: Vec::new(),
            webhook: None,
            services: vec![Service::kube_api()],
            named: Vec::new(),
        }
    }
}

/// Checks an absolute path, as the file's `state-dir` is checked.
///
/// # Errors
/// What is wrong with it.
pub fn check_path(text: &str) -> Result<String, BadValue> {
    fields::path(text)
}

/// Checks a directory for sockets, as the file's `runtime-dir` is checked.
///
/// # Errors
/// What is wrong with it.
pub fn check_runtime_dir(text: &str) -> Result<String, BadValue> {
    fields::runtime_dir(text)
}

/// Checks the name of an interface, as the file's `interface` is checked.
///
/// # Errors
/// What is wrong with it.
pub fn check_interface(text: &str) -> Result<String, BadValue> {
    fields::interface(text)
}

/// Checks a duration within bounds, as the file's are checked.
///
/// # Errors
/// What is wrong with it.
pub fn check_duration(text: &str, bounds: RangeInclusive<Duration>) -> Result<Duration, BadValue> {
    fields::duration(text, bounds)
}

/// Checks an address that others reach this node at, as the file's `address` is checked.
///
/// # Errors
/// What is wrong with it.
pub fn check_address(text: &str) -> Result<IpAddr, BadValue> {
    fields::reachable(text)
}

/// Checks the name that a certificate must carry, as the file's `server-name` is checked.
pub(crate) fn check_server_name(text: &str) -> Result<String, BadValue> {
    fields::server_name(text)
}
