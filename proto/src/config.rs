//! Configuration: raw text in, one checked value out, every mistake with its place.

use std::net::IpAddr;

use crate::node::Name;
use crate::service::Service;

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
    /// Everything.
    Trace,
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
    /// The link's port, UDP and TCP.
    pub port: u16,
    /// Address that the link's port is bound to; none: all.
    pub bind: Option<IpAddr>,
    /// Where state is kept.
    pub state_dir: String,
    /// Where the control socket is.
    pub runtime_dir: String,
    /// Name servers; empty: those of /etc/resolv.conf.
    pub nameservers: Vec<IpAddr>,
    /// How the log is written.
    pub log_format: LogFormat,
    /// How much is logged.
    pub log_level: LogLevel,
    /// What is proxied; the default service always stands first.
    pub services: Vec<Service>,
}

impl Default for Config {
    fn default() -> Config {
        Config {
            name: None,
            address: None,
            interface: None,
            port: crate::link::PORT,
            bind: None,
            state_dir: "/var/lib/agent".to_owned(),
            runtime_dir: "/run/agent".to_owned(),
            nameservers: Vec::new(),
            log_format: LogFormat::default(),
            log_level: LogLevel::default(),
            services: vec![Service::kube_api()],
        }
    }
}
