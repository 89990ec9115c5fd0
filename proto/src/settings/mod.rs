//! Settings that hold for the whole cluster: texts in the cluster document, checked into values.
//!
//! [`plan`] checks what someone wants to change, as a whole and before anything is spread. [`Settings::of`]
//! reads what a document holds, whoever wrote it: what is not understood is reported and passed over, since a
//! later version may have written it, and two nodes may have changed what belongs together at once.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::IpAddr;
use std::time::Duration;

use crate::cluster::Document;
use crate::config::{self, BadValue, Config, Mistake};
use crate::node::{Name, NodeId, Role};
use crate::service::{MAX_WEIGHT, Service, ServiceName};
use crate::time::UnixMs;

mod error;
mod known;
mod node_local;
mod nodes;
mod offering;
mod plan;
#[cfg(test)]
mod tests;

pub use error::BadSetting;
pub use known::{KNOWN, Secrecy, SettingInfo, about, secrecy};
pub use node_local::{EndpointsMode, NodeLocal, problem as node_local_problem, read as read_node_local};
pub use nodes::NodeSelector;
pub use plan::{SettingChange, member, plan};

use known::{SettingKey, VipKey, shown};

/// Most VIPs: each has an election of its own, and all of them travel in one datagram.
pub const MAX_VIPS: usize = 16;

/// Priority of a candidate without one of its own, as in keepalived.
pub const PRIORITY: u8 = 100;

/// Longest wait of a better candidate.
const MAX_PREEMPT: Duration = Duration::from_secs(3600);

/// Longest value: hundreds of names or addresses.
const MAX_VALUE: usize = 8 * 1024;

/// A virtual IP.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VipSettings {
    /// The address.
    pub address: IpAddr,
    /// Interface that carries it; none: the one whose prefix covers it.
    pub interface: Option<String>,
    /// Label of the address on that interface (IFA_LABEL); IPv4 alone has them.
    pub label: Option<String>,
    /// Who may own it.
    pub candidates: NodeSelector,
    /// Ranks of candidates, the highest first; who is not in it has [`PRIORITY`].
    pub priorities: BTreeMap<Name, u8>,
    /// How long a candidate of higher priority is eligible before it takes over; none: it waits until the
    /// owner fails.
    pub preempt: Option<Duration>,
    /// The service that it fronts.
    pub service: ServiceName,
}

impl VipSettings {
    /// An address and nothing more.
    pub fn new(address: IpAddr) -> VipSettings {
        VipSettings {
            address,
            interface: None,
            label: None,
            candidates: NodeSelector::Masters,
            priorities: BTreeMap::new(),
            preempt: None,
            service: ServiceName::kube_api(),
        }
    }
}

/// What the settings say.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Settings {
    /// The virtual IPs, by address.
    pub vips: Vec<VipSettings>,
    /// Services of the whole cluster; [`config::overlay`] lays them under a node's own.
    pub services: Vec<Service>,
    /// Who may offer which service; of one that is not in it, masters may.
    pub offerers: BTreeMap<ServiceName, NodeSelector>,
    /// Which nodes listen for which service; for one that is not in it, every node does.
    pub listen_on: BTreeMap<ServiceName, NodeSelector>,
    /// Shares of nodes, which count more than what their files say.
    pub weights: BTreeMap<Name, u16>,
    /// Nodes that take no new connections, and since when.
    pub drains: BTreeMap<Name, UnixMs>,
    /// The address that every node has for itself.
    pub node_local: NodeLocal,
    /// Whether /metrics has the haproxy exporter's names too.
    pub haproxy_metrics: bool,
}

/// Checks an address for `vip`, as it is checked there.
///
/// # Errors
/// What is wrong with it.
pub fn check_vip(text: &str) -> Result<IpAddr, BadSetting> {
    known::vip(text)
}

/// The keys of a node's own settings, which go with it when it is removed.
pub fn of_node(name: &Name) -> [String; 2] {
    [SettingKey::Weight(name.clone()).to_string(), SettingKey::Drain(name.clone()).to_string()]
}

/// Collects mistakes.
struct SettingMistakes(Vec<Mistake>);

impl SettingMistakes {
    fn add(&mut self, key: impl ToString, message: impl fmt::Display) {
        // Parts of it may be what another node wrote, and it goes to logs and terminals.
        let message = message.to_string().replace(char::is_control, "?");
        self.0.push(Mistake { line: 0, column: 0, key: key.to_string(), message });
    }
}

impl Settings {
    /// Reads the settings of a document, and says what is not understood and passed over.
    pub fn of(document: &Document) -> (Settings, Vec<Mistake>) {
        Settings::read(&values(document), Some(document))
    }

    /// The same of keys and values. `document`: whose members are there; without one, any node may be.
    pub(crate) fn read(
        values: &BTreeMap<String, String>,
        document: Option<&Document>,
    ) -> (Settings, Vec<Mistake>) {
        let mut found = SettingMistakes(Vec::new());
        let mut settings = Settings::default();
        let mut vips: BTreeMap<IpAddr, VipSettings> = BTreeMap::new();
        let mut services: BTreeMap<ServiceName, Vec<(&str, &str)>> = BTreeMap::new();
        // "vip" stands before all of its own in the order of the keys, so the addresses are known first.
        for (text, value) in values {
            let key = match SettingKey::parse(text) {
                Ok(key) => key,
                Err(message) => {
                    found.add(shown(text), message);
                    continue;
                }
            };
            let value = value.as_str();
            let result = match &key {
                SettingKey::Vip => addresses(value)
                    .map(|all| vips.extend(all.into_iter().map(|one| (one, VipSettings::new(one))))),
                SettingKey::OfVip(address, of) => match vips.get_mut(address) {
                    Some(vip) => vip.take(of, value),
                    None => Err(BadSetting::NotAVip(*address)),
                },
                SettingKey::Service(name, known::OFFER) => NodeSelector::parse(value).map(|who| {
                    settings.offerers.insert(name.clone(), who);
                }),
                SettingKey::Service(name, known::LISTEN_ON) => NodeSelector::parse(value).map(|who| {
                    settings.listen_on.insert(name.clone(), who);
                }),
                SettingKey::Service(name, known::NODE_LOCAL) => {
                    node_local::port(value).map(|port| settings.node_local.set_port(name.clone(), port))
                }
                SettingKey::NodeLocal => {
                    node_local::addresses(value).map(|all| settings.node_local.addresses = all)
                }
                SettingKey::NodeLocalEndpoints => {
                    EndpointsMode::parse(value).map(|mode| settings.node_local.endpoints = mode)
                }
                SettingKey::Service(name, key) => {
                    services.entry(name.clone()).or_default().push((key, value));
                    Ok(())
                }
                SettingKey::Weight(node) => number(value, 0, MAX_WEIGHT).map(|weight| {
                    settings.weights.insert(node.clone(), weight);
                }),
                SettingKey::Drain(node) => value
                    .parse()
                    .map(|ms| {
                        settings.drains.insert(node.clone(), UnixMs(ms));
                    })
                    .map_err(|_| BadSetting::NotATime),
                #[cfg(feature = "next-wire")]
                SettingKey::Next => Ok(()),
                SettingKey::HaproxyMetrics => match value {
                    "true" | "false" => {
                        settings.haproxy_metrics = value == "true";
                        Ok(())
                    }
                    _ => Err(BadValue::Flag(shown(value)).into()),
                },
            };
            if let Err(message) = result {
                found.add(&key, message);
            }
        }
        for vip in vips.values() {
            vip.check(&mut found);
        }
        settings.vips = vips.into_values().collect();
        for name in settings.listen_on.keys() {
            let listens = services.get(name).is_some_and(|keys| keys.iter().any(|(key, _)| *key == "listen"));
            let is_node_local = *name != ServiceName::kube_api() && settings.node_local.has_port(name);
            if !listens && !is_node_local {
                let message = format!("set service.{name}.listen too: it says where these nodes listen");
                found.add(SettingKey::Service(name.clone(), known::LISTEN_ON), message);
            }
        }
        for (name, keys) in services {
            let (service, mistakes) = config::shared_service(&name, keys.into_iter());
            settings.services.extend(service);
            found.0.extend(mistakes);
        }
        settings.check_node_local(&mut found);
        found.0.extend(settings.conflicts(document));
        (settings, found.0)
    }

    /// What a node of the cluster could not do, as far as it does not depend on its own file.
    fn conflicts(&self, document: Option<&Document>) -> Vec<Mistake> {
        // Nodes that may join count as well.
        let later = Name::nearest("unnamed");
        let members = document.into_iter().flat_map(|document| {
            let role = |id: &NodeId| document.role(id).unwrap_or(Role::Worker);
            document.members().map(move |(id, one)| (&one.name, role(id)))
        });
        let nodes = members.chain([(&later, Role::Master), (&later, Role::Worker)]);
        let mut seen = BTreeSet::new();
        let mut mistakes = Vec::new();
        for (name, role) in nodes {
            // Most nodes listen in the same places.
            let listens: Vec<bool> =
                self.listen_on.values().map(|nodes| nodes.includes(name, role)).collect();
            if !seen.insert(listens) {
                continue;
            }
            let (mut services, mut wrong) =
                config::overlay(&Config::default(), &self.services_at(name, role));
            let listens = self.node_local_at(name, role);
            wrong.extend(config::add_node_local(&Config::default(), &mut services, &listens));
            for mistake in wrong {
                if !mistakes.contains(&mistake) {
                    mistakes.push(mistake);
                }
            }
        }
        mistakes
    }
}

impl Settings {
    /// The services as a node of this name and role has them: where it listens, and what it offers. One that does
    /// not listen for kube-api keeps the default listener, which its own clients use.
    pub fn services_at(&self, name: &Name, role: Role) -> Vec<Service> {
        let here = |service: &Service| {
            let mut service = service.clone();
            if self.listen_on.get(&service.name).is_some_and(|nodes| !nodes.includes(name, role)) {
                let is_default = service.name == ServiceName::kube_api();
                service.listen = if is_default { Service::kube_api().listen } else { Vec::new() };
            }
            service.offer = self.offerers.get(&service.name).is_none_or(|nodes| nodes.includes(name, role));
            service
        };
        self.services.iter().map(here).collect()
    }

    /// Whether a node of this name and role may offer a service; kube-api is for masters to offer, whatever
    /// anyone has set.
    pub fn may_offer(&self, service: &ServiceName, name: &Name, role: Role) -> bool {
        self.offerers.get(service).unwrap_or(&NodeSelector::Masters).includes(name, role)
    }

    /// Whether a node of this name and role may own a virtual IP. Of an address that is none, nobody goes by
    /// what is said.
    pub fn may_own(&self, address: IpAddr, name: &Name, role: Role) -> bool {
        let vip = self.vips.iter().find(|vip| vip.address == address);
        vip.is_none_or(|vip| vip.candidates.includes(name, role))
    }
}

/// What is set in a document, by key.
fn values(document: &Document) -> BTreeMap<String, String> {
    let set =
        |(key, setting): (&String, &crate::cluster::Setting)| Some((key.clone(), setting.value.clone()?));
    document.settings.iter().filter_map(set).collect()
}

/// The words of a list.
fn list_items(text: &str) -> impl Iterator<Item = &str> {
    text.split(',').map(str::trim).filter(|word| !word.is_empty())
}

fn addresses(text: &str) -> Result<BTreeSet<IpAddr>, BadSetting> {
    let all = list_items(text).map(known::vip).collect::<Result<BTreeSet<IpAddr>, BadSetting>>()?;
    match all.len() {
        0 => Err(BadSetting::NoAddress),
        1..=MAX_VIPS => Ok(all),
        many => Err(BadSetting::TooManyAddresses(many)),
    }
}

fn number(text: &str, least: u16, most: u16) -> Result<u16, BadSetting> {
    let wrong = || BadSetting::Number { text: shown(text), least, most };
    let good = text.bytes().all(|b| b.is_ascii_digit());
    text.parse().ok().filter(|number| good && (least..=most).contains(number)).ok_or_else(wrong)
}

impl VipSettings {
    fn take(&mut self, of: &VipKey, value: &str) -> Result<(), BadSetting> {
        match of {
            VipKey::Interface => self.interface = Some(config::check_interface(value)?),
            VipKey::Label => self.label = Some(label(value)?),
            VipKey::Candidates => self.candidates = NodeSelector::parse(value)?,
            VipKey::Priority(node) => {
                let priority = number(value, 1, 255)?;
                self.priorities.insert(node.clone(), u8::try_from(priority).unwrap_or(PRIORITY));
            }
            VipKey::Preempt if value == "off" => self.preempt = None,
            VipKey::Preempt => {
                let wait = config::check_duration(value, Duration::ZERO..=MAX_PREEMPT);
                self.preempt = Some(wait.map_err(BadSetting::Preempt)?);
            }
            VipKey::Service => self.service = value.parse()?,
        }
        Ok(())
    }

    /// What does not fit together.
    fn check(&self, found: &mut SettingMistakes) {
        let Some(label) = &self.label else { return };
        let key = SettingKey::OfVip(self.address, VipKey::Label);
        if self.address.is_ipv6() {
            found.add(&key, "IPv6 addresses have no labels; unset it");
        } else if let Some(interface) = &self.interface
            && !label.starts_with(interface.as_str())
        {
            found.add(&key, format!("a label must begin with its interface, such as {interface}:0"));
        }
    }
}

/// A label of an address: the kernel takes 15 bytes (IFNAMSIZ).
fn label(value: &str) -> Result<String, BadSetting> {
    let good = (1..=15).contains(&value.len()) && value.bytes().all(|b| b.is_ascii_graphic() && b != b'/');
    let wrong = || BadSetting::Label(shown(value));
    if good { Ok(value.to_owned()) } else { Err(wrong()) }
}
