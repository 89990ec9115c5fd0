//! The settings that there are, and how their keys are written.

use std::fmt;
use std::net::IpAddr;

use super::error::BadSetting;
use crate::config::{SHARED_KEYS, check_address, nearest};
use crate::node::Name;
use crate::service::ServiceName;

/// A setting, as people are told of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SettingInfo {
    /// Its key; words in capitals stand for what is put there.
    pub key: &'static str,
    /// What it does, in a line.
    pub what: &'static str,
    /// What holds while it is not set.
    pub default: &'static str,
    /// Who may see its value.
    pub secrecy: Secrecy,
}

/// Who may see the value of a setting.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Secrecy {
    /// Everyone.
    Public,
    /// Nobody: it is a password or the like.
    Secret,
}

/// Who may see the value under this key. What this version does not understand may be a secret of a later
/// one.
pub fn secrecy(key: &str) -> Secrecy {
    about(key).map_or(Secrecy::Secret, |(_, known)| known.secrecy)
}

const fn known(key: &'static str, what: &'static str, default: &'static str) -> SettingInfo {
    // None is secret so far: what is lies in each node's own file, as config::Secret.
    SettingInfo { key, what, default, secrecy: Secrecy::Public }
}

/// Every setting, in the order in which they are shown.
pub const KNOWN: &[SettingInfo] = &[
    known("vip", "virtual IPs, separated by commas", "none"),
    known("vip.ADDRESS.interface", "interface that carries it", "the one whose prefix covers it"),
    known("vip.ADDRESS.label", "label of the address, such as wg0:0", "none"),
    known("vip.ADDRESS.candidates", "who may own it: masters, workers, all, or names", "masters"),
    known("vip.ADDRESS.priority.NODE", "rank of a candidate, 1 to 255, highest first", "100"),
    known("vip.ADDRESS.preempt", "off, or how long a better candidate waits, such as 30s", "off"),
    known("vip.ADDRESS.service", "service that it fronts", "kube-api"),
    known("balance", "short for service.kube-api.balance", "least-connections"),
    known("service.NAME.listen", "where the proxies listen, separated by commas", "nowhere"),
    known("service.NAME.listen-on", "which nodes do: masters, workers, all, or names", "all"),
    known("service.NAME.port", "port of the backends", "none; 6443 for kube-api"),
    known("service.NAME.node-local", "port on the node-local address", "none; 16443 for kube-api"),
    known("service.NAME.offer", "who may offer it: masters, workers, all, or names", "masters"),
    known(
        "service.NAME.balance",
        "least-connections, round-robin, nearest, first, source",
        "least-connections",
    ),
    known("service.NAME.maxconn", "connection limit of each listener", "10000"),
    known("service.NAME.backend-maxconn", "connections per backend before others go first", "0: no limit"),
    known("service.NAME.send-proxy", "true: send the client's address by PROXY protocol", "false"),
    known("service.NAME.access-log", "true: log each connection", "false"),
    known("service.NAME.check", "tcp, http or https", "tcp; https for kube-api"),
    known("service.NAME.check.path", "path that the check requests", "/; /readyz for kube-api"),
    known("service.NAME.check.expect", "status codes that mean ready, such as 200-299,401", "200"),
    known("service.NAME.check.interval", "time between checks", "1s"),
    known("service.NAME.check.timeout", "time limit of a check", "2500ms"),
    known("service.NAME.check.rise", "successful checks in a row before it is ready", "2"),
    known("service.NAME.check.fall", "failed checks in a row before it is down", "2"),
    known("service.NAME.check.server-name", "name that the certificate must have", "not verified"),
    known("weight.NODE", "share of a node among equals, 0 to 256", "its own file, else 100"),
    known("drain.NODE", "since when it gets no new connections; see: agent drain", "not draining"),
    known("node-local", "address that every node has on lo and serves, one of each family", "none"),
    known("node-local.endpoints", "masters keep pods on it: off, watch, restore", "off"),
    known("haproxy-metrics", "true: also export the metric names of haproxy's exporter", "false"),
    #[cfg(feature = "next-wire")]
    known("next.example", "what only the next version has", "nothing"),
];

/// A key as the document has it, and what is known of it.
///
/// # Errors
/// There is no such setting, and what was probably meant.
pub fn about(text: &str) -> Result<(String, &'static SettingInfo), BadSetting> {
    let key = SettingKey::parse(text)?;
    let pattern = match &key {
        SettingKey::Vip
        | SettingKey::HaproxyMetrics
        | SettingKey::NodeLocal
        | SettingKey::NodeLocalEndpoints => key.to_string(),
        #[cfg(feature = "next-wire")]
        SettingKey::Next => key.to_string(),
        SettingKey::OfVip(address, VipKey::Priority(_)) => format!("vip.{address}.priority.NODE"),
        SettingKey::Service(_, key) => format!("service.NAME.{key}"),
        SettingKey::Weight(_) => "weight.NODE".to_owned(),
        SettingKey::Drain(_) => "drain.NODE".to_owned(),
        SettingKey::OfVip(..) => key.to_string(),
    };
    let pattern = match &key {
        SettingKey::OfVip(address, _) => pattern.replacen(&address.to_string(), "ADDRESS", 1),
        _ => pattern,
    };
    let known = KNOWN.iter().find(|known| known.key == pattern);
    Ok((key.to_string(), known.ok_or_else(|| BadSetting::NoSuch(shown(text)))?))
}

/// What a key of a VIP is about.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum VipKey {
    Interface,
    Label,
    Candidates,
    Priority(Name),
    Preempt,
    Service,
}

/// A key that was understood.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum SettingKey {
    Vip,
    OfVip(IpAddr, VipKey),
    Service(ServiceName, &'static str),
    Weight(Name),
    Drain(Name),
    NodeLocal,
    NodeLocalEndpoints,
    HaproxyMetrics,
    #[cfg(feature = "next-wire")]
    Next,
}

/// The last parts of a VIP's keys.
const OF_VIP: [&str; 6] = ["interface", "label", "candidates", "priority", "preempt", "service"];

/// How keys begin.
pub(super) const HEADS: [&str; 7] =
    ["vip", "service", "balance", "weight", "drain", "node-local", "haproxy-metrics"];

impl fmt::Display for SettingKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            SettingKey::Vip => f.write_str("vip"),
            SettingKey::OfVip(address, of) => {
                let word = match of {
                    VipKey::Interface => "interface",
                    VipKey::Label => "label",
                    VipKey::Candidates => "candidates",
                    VipKey::Priority(node) => return write!(f, "vip.{address}.priority.{node}"),
                    VipKey::Preempt => "preempt",
                    VipKey::Service => "service",
                };
                write!(f, "vip.{address}.{word}")
            }
            SettingKey::Service(name, key) => write!(f, "service.{name}.{key}"),
            SettingKey::Weight(node) => write!(f, "weight.{node}"),
            SettingKey::Drain(node) => write!(f, "drain.{node}"),
            SettingKey::NodeLocal => f.write_str("node-local"),
            SettingKey::NodeLocalEndpoints => f.write_str("node-local.endpoints"),
            SettingKey::HaproxyMetrics => f.write_str("haproxy-metrics"),
            #[cfg(feature = "next-wire")]
            SettingKey::Next => f.write_str("next.example"),
        }
    }
}

impl SettingKey {
    /// Reads a key as people write it.
    pub(super) fn parse(text: &str) -> Result<SettingKey, BadSetting> {
        let (head, rest) = text.split_once('.').unwrap_or((text, ""));
        let needs = |what, example: &str| BadSetting::Missing { what, example: example.to_owned() };
        match (head, rest) {
            ("vip", "") => Ok(SettingKey::Vip),
            ("vip", rest) => of_vip(rest),
            ("balance", "") => Ok(SettingKey::Service(ServiceName::kube_api(), "balance")),
            ("node-local", "") => Ok(SettingKey::NodeLocal),
            ("node-local", "endpoints") => Ok(SettingKey::NodeLocalEndpoints),
            ("node-local", other) => Err(unknown("setting of node-local", other, &["endpoints"])),
            ("haproxy-metrics", "") => Ok(SettingKey::HaproxyMetrics),
            #[cfg(feature = "next-wire")]
            ("next", "example") => Ok(SettingKey::Next),
            ("service", "") => Err(needs("the service", "service.ingress.port")),
            ("service", rest) => of_service(rest),
            ("weight" | "drain", "") => Err(needs("the node", &format!("{head}.NODE"))),
            ("weight", node) => Ok(SettingKey::Weight(name(node)?)),
            ("drain", node) => Ok(SettingKey::Drain(name(node)?)),
            _ => Err(unknown("setting", head, &HEADS)),
        }
    }
}

fn name(text: &str) -> Result<Name, BadSetting> {
    Ok(text.parse()?)
}

/// Cuts a text that is shown in a message.
pub(super) fn shown(text: &str) -> String {
    text.chars().take(60).map(|c| if c.is_control() { '?' } else { c }).collect()
}

fn unknown(what: &'static str, typed: &str, known: &'static [&'static str]) -> BadSetting {
    let nearest = nearest(typed, known).map(str::to_owned);
    BadSetting::Unknown { what, text: shown(typed), nearest, known }
}

/// `10.0.0.50.interface`: addresses have points of their own, so the longest beginning that is one counts.
fn of_vip(rest: &str) -> Result<SettingKey, BadSetting> {
    let ends = rest.match_indices('.').map(|(at, _)| at).chain([rest.len()]);
    let found = ends.filter_map(|at| Some((at, rest[..at].parse::<IpAddr>().ok()?))).next_back();
    let Some((at, address)) = found else {
        let example = "vip.10.0.0.50.interface".to_owned();
        return Err(BadSetting::Missing { what: "the address", example });
    };
    let word = rest[at..].trim_start_matches('.');
    let of = match word.split_once('.') {
        Some(("priority", node)) => VipKey::Priority(name(node)?),
        _ => match word {
            "interface" => VipKey::Interface,
            "label" => VipKey::Label,
            "candidates" => VipKey::Candidates,
            "priority" => {
                return Err(BadSetting::Missing { what: "the node", example: format!("vip.{rest}.NODE") });
            }
            "preempt" => VipKey::Preempt,
            "service" => VipKey::Service,
            // Whoever may change settings would run a program on every node.
            "check" => return Err(BadSetting::OwnFile),
            other => return Err(unknown("setting of a VIP", other, &OF_VIP)),
        },
    };
    Ok(SettingKey::OfVip(address.to_canonical(), of))
}

/// The key of who may offer a service, which is no node's own to say.
pub(super) const OFFER: &str = "offer";

/// The key of which nodes listen, which is no node's own to say either.
pub(super) const LISTEN_ON: &str = "listen-on";

/// The key of the port on the node-local address, which only the cluster's settings know.
pub(super) const NODE_LOCAL: &str = "node-local";

/// The keys of a service.
const OF_SERVICE: [&str; SHARED_KEYS.len() + 3] = {
    let mut keys = [OFFER; SHARED_KEYS.len() + 3];
    keys[SHARED_KEYS.len()] = LISTEN_ON;
    keys[SHARED_KEYS.len() + 1] = NODE_LOCAL;
    let mut i = 0;
    while i < SHARED_KEYS.len() {
        keys[i] = SHARED_KEYS[i];
        i += 1;
    }
    keys
};

/// Keys that a node's own file has, and that mean nothing for all nodes at once.
const OWN: [&str; 4] = ["check.address", "check.ca-file", "check.cert-file", "check.key-file"];

fn of_service(rest: &str) -> Result<SettingKey, BadSetting> {
    let (service, key) = rest.split_once('.').unwrap_or((rest, ""));
    let service: ServiceName = service.parse()?;
    if key == OFFER {
        if service == ServiceName::kube_api() {
            return Err(BadSetting::KubeApiOffer);
        }
        return Ok(SettingKey::Service(service, OFFER));
    }
    if key == LISTEN_ON {
        return Ok(SettingKey::Service(service, LISTEN_ON));
    }
    if key == NODE_LOCAL {
        return Ok(SettingKey::Service(service, NODE_LOCAL));
    }
    let key = if key == "check.kind" { "check" } else { key };
    match SHARED_KEYS.iter().find(|known| **known == key) {
        Some(key) => Ok(SettingKey::Service(service, key)),
        None if key == "weight" => Err(BadSetting::WeightOfService),
        None if OWN.contains(&key) => Err(BadSetting::OwnFile),
        None => Err(unknown("setting of a service", key, &OF_SERVICE)),
    }
}

/// A VIP as people write it: an address, or one with a prefix that is left out.
pub(super) fn vip(text: &str) -> Result<IpAddr, BadSetting> {
    let bare = match text.split_once('/') {
        Some((bare, length)) => {
            let most = if bare.contains(':') { 128 } else { 32 };
            let good = length.parse::<u8>().is_ok_and(|length| length <= most);
            if !good {
                return Err(BadSetting::Prefix(shown(text)));
            }
            bare
        }
        None => text,
    };
    let address = check_address(bare)?.to_canonical();
    let local = match address {
        IpAddr::V4(v4) => v4.is_loopback() || v4.is_link_local() || v4.is_broadcast(),
        IpAddr::V6(v6) => v6.is_loopback() || v6.is_unicast_link_local(),
    };
    if local {
        return Err(BadSetting::NotShared(address));
    }
    Ok(address)
}
