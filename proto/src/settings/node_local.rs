//! One address everywhere: every node has it for itself and serves on it, so that one endpoint is right on all of
//! them and, by a static EndpointSlice, for every pod.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};

use super::known::{NODE_LOCAL, SettingKey, shown};
use super::{BadSetting, SettingMistakes, Settings, list_items, number};
use crate::config::{NodeLocalListen, check_address};
use crate::node::{Name, Role};
use crate::problem::{Problem, ProblemCode};
use crate::service::ServiceName;

/// The port of kube-api unless another is set.
const KUBE_API_PORT: u16 = 16443;

/// Where k3s, RKE2 and kubeadm have servers on all addresses of a master: an apiserver, and k3s' and RKE2's balancers.
const TAKEN: [u16; 3] = [6443, 6444, 7443];

/// What masters do about the endpoints of the service `kubernetes`, which lead pods to the node-local address.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum EndpointsMode {
    /// Nothing: pods do not use the address.
    #[default]
    Off,
    /// They tell when the endpoints are not the address alone.
    Watch,
    /// They tell, and put them right.
    Restore,
}

impl EndpointsMode {
    pub(super) fn parse(value: &str) -> Result<EndpointsMode, BadSetting> {
        match value {
            "off" => Ok(EndpointsMode::Off),
            "watch" => Ok(EndpointsMode::Watch),
            "restore" => Ok(EndpointsMode::Restore),
            _ => Err(BadSetting::NotAMode(shown(value))),
        }
    }
}

/// The address that every node has for itself, and who is served on it.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct NodeLocal {
    /// One of each family at most; none: there is no such address.
    pub addresses: BTreeSet<IpAddr>,
    /// The ports of services that ask for one; kube-api has [`NodeLocal::kube_api_port`].
    ports: BTreeMap<ServiceName, u16>,
    /// What masters do about the endpoints of the service `kubernetes`.
    pub endpoints: EndpointsMode,
}

impl NodeLocal {
    pub(super) fn set_port(&mut self, service: ServiceName, port: u16) {
        self.ports.insert(service, port);
    }

    pub(super) fn has_port(&self, service: &ServiceName) -> bool {
        self.ports.contains_key(service)
    }

    /// The port of kube-api.
    pub fn kube_api_port(&self) -> u16 {
        self.ports.get(&ServiceName::kube_api()).copied().unwrap_or(KUBE_API_PORT)
    }

    /// All ports, of whichever service.
    pub fn ports(&self) -> BTreeSet<u16> {
        self.ports.values().copied().chain([self.kube_api_port()]).collect()
    }
}

impl Settings {
    /// Where a node of this name and role listens on the node-local address. kube-api is for every node; another
    /// service's `listen-on` holds here too.
    pub fn node_local_at(&self, name: &Name, role: Role) -> Vec<NodeLocalListen> {
        let kube_api = ServiceName::kube_api();
        let listen = |service: &ServiceName, port: u16| {
            let key = match self.node_local.has_port(service) {
                true => SettingKey::Service(service.clone(), NODE_LOCAL).to_string(),
                false => SettingKey::NodeLocal.to_string(),
            };
            let all = self.node_local.addresses.iter().map(|ip| SocketAddr::new(*ip, port));
            NodeLocalListen { service: service.clone(), key, addresses: all.collect() }
        };
        if self.node_local.addresses.is_empty() {
            return Vec::new();
        }
        let here = |service: &ServiceName| {
            *service != kube_api && self.listen_on.get(service).is_none_or(|nodes| nodes.includes(name, role))
        };
        let others = self.node_local.ports.iter().filter(|(service, _)| here(service));
        let others = others.map(|(service, port)| listen(service, *port));
        [listen(&kube_api, self.node_local.kube_api_port())].into_iter().chain(others).collect()
    }

    /// What does not fit together.
    pub(super) fn check_node_local(&self, found: &mut SettingMistakes) {
        for vip in &self.vips {
            if self.node_local.addresses.contains(&vip.address) {
                let message = format!("{} is a virtual IP, which one node has; use another", vip.address);
                found.add(SettingKey::NodeLocal, message);
            }
        }
        for service in self.node_local.ports.keys().filter(|name| **name != ServiceName::kube_api()) {
            if self.services.iter().all(|one| one.name != *service) {
                let message = format!("set service.{service}.port too: nothing else describes it");
                found.add(SettingKey::Service(service.clone(), NODE_LOCAL), message);
            }
        }
    }
}

/// The problem of a node that does not have the address, or where something is against it.
pub fn problem(address: IpAddr, held: bool, why: &str) -> Problem {
    let detail = match held {
        true => format!("node-local address: {why}"),
        false => format!("this node does not serve the node-local address: {why}"),
    };
    Problem::new(ProblemCode::NodeLocal, detail)
        .about(address.to_string())
        .fix("remove the cause, or run on a master: agent set node-local=ADDRESS with another")
}

/// What a value of `node-local` says; `None`: it is none.
pub fn read(value: &str) -> Option<BTreeSet<IpAddr>> {
    addresses(value).ok()
}

/// A port of a service on the address.
pub(super) fn port(value: &str) -> Result<u16, BadSetting> {
    let port = number(value, 1, u16::MAX)?;
    if TAKEN.contains(&port) { Err(BadSetting::ApiserverPort(port)) } else { Ok(port) }
}

/// One address of each family, as people write them.
pub(super) fn addresses(value: &str) -> Result<BTreeSet<IpAddr>, BadSetting> {
    let all = list_items(value).map(address).collect::<Result<BTreeSet<IpAddr>, BadSetting>>()?;
    let of_v4 = all.iter().filter(|one| one.is_ipv4()).count();
    match (of_v4, all.len() - of_v4) {
        (0, 0) => Err(BadSetting::NoAddress),
        (0 | 1, 0 | 1) => Ok(all),
        _ => Err(BadSetting::TwoOfAFamily),
    }
}

fn address(text: &str) -> Result<IpAddr, BadSetting> {
    let bare = match text.split_once('/') {
        // Each node has it alone, whatever network it is from.
        Some((bare, "32")) if !bare.contains(':') => bare,
        Some((bare, "128")) if bare.contains(':') => bare,
        Some(_) => return Err(BadSetting::Prefix(shown(text))),
        None => text,
    };
    let address = check_address(bare)?.to_canonical();
    let what = match address {
        IpAddr::V4(v4) if v4.is_loopback() => {
            Some("a loopback address, which Kubernetes' endpoints may not be")
        }
        IpAddr::V6(v6) if v6.is_loopback() => {
            Some("a loopback address, which Kubernetes' endpoints may not be")
        }
        IpAddr::V4(v4) if v4.is_link_local() => Some("link-local, which Kubernetes' endpoints may not be"),
        IpAddr::V6(v6) if v6.is_unicast_link_local() => {
            Some("link-local, which Kubernetes' endpoints may not be")
        }
        IpAddr::V4(v4) if v4.is_broadcast() => Some("the broadcast address"),
        // Nobody can have it, though nothing says so where it is set.
        IpAddr::V4(v4) if v4.octets()[0] == 0 || v4.octets()[0] >= 240 => Some("reserved"),
        _ => None,
    };
    match what {
        Some(what) => Err(BadSetting::NotNodeLocal { address, what }),
        None => Ok(address),
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::{planned, read, with};
    use super::*;
    use crate::config::{Config, add_node_local, overlay, parse};
    use crate::service::Service;

    fn listens(services: &[Service], name: &str) -> Vec<String> {
        let service = services.iter().find(|one| one.name.as_str() == name).unwrap();
        service.listen.iter().map(ToString::to_string).collect()
    }

    /// What a node of this name and role listens to, and what is wrong with it.
    fn at(settings: &Settings, config: &Config, name: &str, role: Role) -> (Vec<Service>, Vec<String>) {
        let name = name.parse().unwrap();
        let (mut services, _) = overlay(config, &settings.services_at(&name, role));
        let mistakes = add_node_local(config, &mut services, &settings.node_local_at(&name, role));
        (services, mistakes.iter().map(ToString::to_string).collect())
    }

    #[test]
    fn every_node_listens_for_kube_api_and_for_each_service_that_asks() {
        let settings = read(&[
            "node-local=10.91.91.50/32, fd91::50",
            "service.join.port=9345",
            "service.join.node-local=9345",
            "service.join.listen-on=workers",
            "service.web.port=443",
            "service.web.listen=127.0.0.1:8443",
        ]);
        let (services, mistakes) = at(&settings, &Config::default(), "m1", Role::Master);
        assert_eq!(
            (listens(&services, "kube-api"), mistakes),
            (["127.0.0.1:16443", "10.91.91.50:16443", "[fd91::50]:16443"].map(str::to_owned).into(), vec![])
        );
        assert!(listens(&services, "join").is_empty(), "its own server has that port");
        assert_eq!(listens(&services, "web"), ["127.0.0.1:8443"]);
        let (services, _) = at(&settings, &Config::default(), "w1", Role::Worker);
        assert_eq!(listens(&services, "join"), ["10.91.91.50:9345", "[fd91::50]:9345"]);
        assert_eq!(
            with(&["node-local=fd91:0::50,10.91.91.50"]).settings["node-local"].value.as_deref(),
            Some("10.91.91.50,fd91::50")
        );
        let none = read(&["service.kube-api.node-local=17443"]);
        assert!(none.node_local_at(&"m1".parse().unwrap(), Role::Master).is_empty());
        let other = read(&["node-local=10.91.91.50", "service.kube-api.node-local=17443"]);
        let (services, _) = at(&other, &Config::default(), "m1", Role::Master);
        assert_eq!(listens(&services, "kube-api"), ["127.0.0.1:16443", "10.91.91.50:17443"]);
    }

    #[test]
    fn a_node_whose_own_file_describes_the_service_listens_too_and_keeps_what_it_uses() {
        let settings = read(&["node-local=10.91.91.50"]);
        let file = |text: &str| parse(text).unwrap();
        let own = file("[[service]]\nname = \"kube-api\"\nlisten = \"127.0.0.1:6443\"\nport = 6443\n");
        let (services, mistakes) = at(&settings, &own, "m1", Role::Master);
        assert_eq!(listens(&services, "kube-api"), ["127.0.0.1:6443", "10.91.91.50:16443"]);
        assert!(mistakes.is_empty());
        let all = file("[[service]]\nname = \"kube-api\"\nlisten = \"0.0.0.0:16443\"\nport = 6443\n");
        let (services, mistakes) = at(&settings, &all, "m1", Role::Master);
        assert_eq!(listens(&services, "kube-api"), ["0.0.0.0:16443"], "one on all addresses is enough");
        assert!(mistakes.is_empty());
        let taken = file(
            "[[service]]\nname = \"kube-api\"\nlisten = \"127.0.0.1:6443\"\nport = 6443\n\
             [[service]]\nname = \"web\"\nlisten = \"0.0.0.0:16443\"\nport = 443\n",
        );
        let (services, mistakes) = at(&settings, &taken, "m1", Role::Master);
        assert_eq!(listens(&services, "kube-api"), ["127.0.0.1:6443"]);
        assert_eq!(mistakes, ["node-local: 10.91.91.50:16443 is used by service web; choose another port"]);
    }

    #[test]
    fn what_no_node_could_have_is_refused_with_what_would_be_right() {
        let base = with(&["vip=10.0.0.50", "service.join.port=9345"]);
        for (text, words) in [
            ("node-local=127.0.0.1", "127.0.0.1"),
            ("node-local=::1", "::1 "),
            ("node-local=169.254.1.1", "169.254.1.1 is link-local"),
            ("node-local=fe80::1", "fe80::1 is link-local"),
            ("node-local=224.0.0.1", "224.0.0.1"),
            ("node-local=ff02::1", "ff02::1"),
            ("node-local=0.0.0.0", "0.0.0.0"),
            ("node-local=::", "::"),
            ("node-local=255.255.255.255", "255.255.255.255"),
            ("node-local=0.1.2.3", "0.1.2.3 is reserved"),
            ("node-local=241.0.0.1", "241.0.0.1 is reserved"),
            ("node-local=10.91.91.50/24", "\"10.91.91.50/24\""),
            ("node-local=10.91.91.50,10.91.91.51", "more than one IPv4 or IPv6 address"),
            ("node-local=", "no address; write one"),
            ("node-local=lo", "\"lo\" is not an IP address"),
            ("node-local=10.0.0.50", "10.0.0.50 is a virtual IP, which one node has; use another"),
            ("node-local.endpoints=on", "\"on\" is not off, watch or restore"),
            ("node-local.port=1", "there is no setting of node-local \"port\"; there are endpoints"),
            ("service.join.node-local=6443", "6443 is a port of Kubernetes' own on masters; choose another"),
            ("service.join.node-local=true", "\"true\" is not a whole number from 1 to 65535"),
            ("service.web.node-local=443", "set service.web.port too: nothing else describes it"),
        ] {
            let wrong = planned(&base, &[text]).unwrap_err();
            assert!(wrong.len() == 1 && wrong[0].contains(words), "{text}: {wrong:?}");
        }
        let wrong = planned(&base, &["node-local=10.91.91.50", "service.join.node-local=16443"]).unwrap_err();
        assert_eq!(
            wrong,
            ["service.join.node-local: 10.91.91.50:16443 is used by service kube-api; choose another port"]
        );
        let wrong = planned(&base, &["node-local=10.91.91.50", "service.join.listen=10.91.91.50:16443"]);
        assert!(wrong.unwrap_err()[0].contains("used by service join"));
        let wrong = planned(&with(&["node-local=10.91.91.50"]), &["vip=10.91.91.50"]).unwrap_err();
        assert_eq!(wrong, ["node-local: 10.91.91.50 is a virtual IP, which one node has; use another"]);
    }

    #[test]
    fn what_belongs_to_the_address_goes_with_it() {
        let document = with(&["node-local=10.91.91.50", "node-local.endpoints=restore"]);
        assert_eq!(Settings::of(&document).0.node_local.endpoints, EndpointsMode::Restore);
        let gone: Vec<String> =
            planned(&document, &["node-local"]).unwrap().into_iter().map(|one| one.key).collect();
        assert_eq!(gone, ["node-local", "node-local.endpoints"]);
    }
}
