//! Services that hold for the whole cluster: read by the file's own parser, and laid under a node's file.

use std::net::SocketAddr;

use toml::de::DeTable;

use super::error::{BadValue, Written};
use super::mistake::Mistake;
use super::services::{self, MAX_SERVICES, link_address, meet};
use super::walk::{Mistakes, Section};
use super::{Config, fields};
use crate::service::{KUBE_API, Service, ServiceName};

/// What a service's key holds.
#[derive(Clone, Copy, PartialEq, Eq)]
enum ValueKind {
    Text,
    Number,
    Flag,
    List,
}

/// The keys of a service that mean the same on every node, with what they hold. Weights, addresses and files
/// of credentials are each node's own.
const KEYS: [(&str, ValueKind); 15] = [
    ("listen", ValueKind::List),
    ("port", ValueKind::Number),
    ("balance", ValueKind::Text),
    ("maxconn", ValueKind::Number),
    ("backend-maxconn", ValueKind::Number),
    ("send-proxy", ValueKind::Flag),
    ("access-log", ValueKind::Flag),
    ("check", ValueKind::Text),
    ("check.path", ValueKind::Text),
    ("check.expect", ValueKind::Text),
    ("check.interval", ValueKind::Text),
    ("check.timeout", ValueKind::Text),
    ("check.rise", ValueKind::Number),
    ("check.fall", ValueKind::Number),
    ("check.server-name", ValueKind::Text),
];

/// The keys that a service of the whole cluster may have.
pub const SHARED_KEYS: [&str; KEYS.len()] = {
    let mut keys = [""; KEYS.len()];
    let mut i = 0;
    while i < KEYS.len() {
        keys[i] = KEYS[i].0;
        i += 1;
    }
    keys
};

/// Reads a service out of keys of [`SHARED_KEYS`] and their values, with every mistake; others are passed
/// over. None when too little of it is right to be of use; the default service always is.
pub fn shared_service<'a>(
    name: &ServiceName,
    values: impl Iterator<Item = (&'a str, &'a str)>,
) -> (Option<Service>, Vec<Mistake>) {
    let (mut top, mut check) = (String::new(), String::new());
    let mut wrong = Vec::new();
    let here = |key: &str| format!("service.{name}.{key}");
    for (key, value) in values {
        let Some((_, kind)) = KEYS.iter().find(|(known, _)| *known == key) else { continue };
        match write(*kind, value) {
            Ok(value) => match key.strip_prefix("check.") {
                Some(key) => check.push_str(&format!("{key} = {value}\n")),
                None if key == "check" => check.push_str(&format!("kind = {value}\n")),
                None => top.push_str(&format!("{key} = {value}\n")),
            },
            Err(error) => {
                let message = error.to_string();
                wrong.push(Mistake { line: 0, column: 0, key: here(key), message });
            }
        }
    }
    let table = if check.is_empty() { "" } else { "[service.check]\n" };
    let text = format!("[[service]]\nname = \"{name}\"\n{top}{table}{check}");
    let mut mistakes = Mistakes::new(&text, Written::AsSetting);
    // What was wrong already is not missing as well.
    mistakes.broken = !wrong.is_empty();
    let (root, _) = DeTable::parse_recoverable(&text);
    let root = Section::open("", 0, root.get_ref(), &["service"], &mut mistakes);
    let service = services::first(&root, name.clone(), &mut mistakes);
    wrong.extend(mistakes.into_vec().into_iter().map(|mistake| {
        let key = mistake.key.strip_prefix("service.").unwrap_or(&mistake.key);
        let key = if key == "check.kind" { "check" } else { key };
        Mistake { line: 0, column: 0, key: here(key), message: mistake.message }
    }));
    let usable = wrong.is_empty() || name.as_str() == KUBE_API;
    (service.filter(|_| usable), wrong)
}

/// A value as TOML.
fn write(kind: ValueKind, value: &str) -> Result<String, BadValue> {
    let value = value.trim();
    match kind {
        ValueKind::Text => Ok(quoted(value)),
        ValueKind::Number => {
            let is_number =
                value.len() <= 9 && !value.is_empty() && value.bytes().all(|b| b.is_ascii_digit());
            let number = value.trim_start_matches('0');
            let number = if number.is_empty() { "0" } else { number };
            if is_number { Ok(number.to_owned()) } else { Err(BadValue::Number(fields::shown(value))) }
        }
        ValueKind::Flag if value == "true" || value == "false" => Ok(value.to_owned()),
        ValueKind::Flag => Err(BadValue::Flag(fields::shown(value))),
        // As the file has it for nowhere.
        ValueKind::List if value == "[]" => Ok(value.to_owned()),
        ValueKind::List => {
            let parts = value.split(',').map(str::trim).filter(|part| !part.is_empty());
            Ok(format!("[{}]", parts.map(quoted).collect::<Vec<_>>().join(", ")))
        }
    }
}

/// A basic string of TOML.
pub(crate) fn quoted(text: &str) -> String {
    let mut quoted = String::from('"');
    for c in text.chars() {
        match c {
            '"' | '\\' => quoted.extend(['\\', c]),
            c if c.is_control() => quoted.push_str(&format!("\\u{:04X}", u32::from(c))),
            c => quoted.push(c),
        }
    }
    quoted.push('"');
    quoted
}

/// What a node proxies: the services of its file, and under them those of the whole cluster. A service that
/// the file speaks of stays as it stands there; a place that the file's services use stays theirs, and the
/// second answer says so.
pub fn overlay(config: &Config, shared: &[Service]) -> (Vec<Service>, Vec<Mistake>) {
    let mut services = config.services.clone();
    let mut mistakes = Vec::new();
    let mut add = |name: &ServiceName, key: &str, message: String| {
        let key = format!("service.{name}{key}");
        mistakes.push(Mistake { line: 0, column: 0, key, message });
    };
    let is_default = |service: &&Service| service.name.as_str() == KUBE_API;
    // The default service first, as everywhere: of two that want one place it keeps it.
    let ordered = shared.iter().filter(is_default).chain(shared.iter().filter(|one| !is_default(one)));
    for service in ordered.filter(|service| !config.named.contains(&service.name)) {
        let mut service = service.clone();
        service.listen.retain(|address| {
            if meet(*address, link_address(config, *address)) {
                add(&service.name, ".listen", format!("{address} is the agent's own port; choose another"));
                return false;
            }
            let others = services.iter().filter(|other| other.name != service.name);
            let mut taken = others.filter(|other| other.listen.iter().any(|one| meet(*one, *address)));
            let Some(other) = taken.next() else { return true };
            let message = format!("{address} is used by service {}; choose another port", other.name);
            add(&service.name, ".listen", message);
            false
        });
        let full = services.len() > MAX_SERVICES;
        match services.iter_mut().find(|other| other.name == service.name) {
            Some(known) => *known = service,
            None if full => add(&service.name, "", format!("more than {MAX_SERVICES} services")),
            None => services.push(service),
        }
    }
    (services, mistakes)
}

/// Where a node listens for a service on the node-local address.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NodeLocalListen {
    /// The service.
    pub service: ServiceName,
    /// The setting that says so.
    pub key: String,
    /// Where.
    pub addresses: Vec<SocketAddr>,
}

/// Adds listeners on the node-local address to services of any source, each with the setting that asks for it. A place
/// that others use stays theirs, and the answer says so.
pub fn add_node_local(
    config: &Config,
    services: &mut [Service],
    listeners: &[NodeLocalListen],
) -> Vec<Mistake> {
    let mut mistakes = Vec::new();
    for NodeLocalListen { service, key, addresses } in listeners {
        for address in addresses {
            let takes = |other: &Service| other.listen.iter().any(|one| meet(*one, *address));
            let message = match services.iter().find(|other| takes(other)) {
                // Its own listener on all addresses is one on this, too.
                Some(other) if other.name == *service => continue,
                Some(other) => {
                    format!("{address} is used by service {}; choose another port", other.name)
                }
                None if meet(*address, link_address(config, *address)) => {
                    format!("{address} is the agent's own port; choose another")
                }
                None => {
                    if let Some(service) = services.iter_mut().find(|one| one.name == *service) {
                        service.listen.push(*address);
                    }
                    continue;
                }
            };
            mistakes.push(Mistake { line: 0, column: 0, key: key.clone(), message });
        }
    }
    mistakes
}

#[cfg(test)]
mod tests {
    use super::super::parse;
    use super::*;
    use crate::service::{Balance, CheckKind};

    fn read(name: &str, values: &[(&'static str, &'static str)]) -> (Option<Service>, Vec<String>) {
        let (service, mistakes) = shared_service(&name.parse().unwrap(), values.iter().copied());
        (service, mistakes.iter().map(Mistake::to_string).collect())
    }

    #[test]
    fn a_shared_service_is_what_the_same_text_in_a_file_is() {
        let (service, mistakes) = read(
            "web",
            &[
                ("check", "https"),
                ("check.interval", "2s"),
                ("check.expect", "200-299,401"),
                ("check.path", "/ok"),
                ("check.rise", "03"),
                ("listen", "127.0.0.1:8443, [::1]:8443"),
                ("port", "443"),
                ("balance", "nearest"),
                ("send-proxy", "true"),
            ],
        );
        assert!(mistakes.is_empty(), "{mistakes:?}");
        let file = "[[service]]\nname = \"web\"\nlisten = [\"127.0.0.1:8443\", \"[::1]:8443\"]\nport = 443\n\
                    balance = \"nearest\"\nsend-proxy = true\n[service.check]\nkind = \"https\"\n\
                    interval = \"2s\"\nexpect = \"200-299,401\"\npath = \"/ok\"\nrise = 3\n";
        assert_eq!(service.as_ref(), parse(file).unwrap().services.get(1));
    }

    #[test]
    fn what_is_wrong_is_named_with_its_setting_and_without_the_file_s_words() {
        for (key, value, words) in [
            ("port", "http", "service.web.port: \"http\" is not a whole number"),
            ("port", "70000", "service.web.port: 70000 is out of range; use a whole number from 1 to 65535"),
            (
                "balance",
                "nearset",
                "service.web.balance: \"nearset\" is not a way to balance (did you mean nearest?)",
            ),
            ("send-proxy", "yes", "service.web.send-proxy: \"yes\" is not true or false"),
            ("check", "icmp", "service.web.check: \"icmp\" is not a kind of check"),
            ("check.path", "/x", "service.web.check.path: a check of kind \"tcp\" has no path: set check to"),
            ("listen", "8443", "service.web.listen: \"8443\" is not an address with a port"),
            ("balance", "a\"\nport = 1\\", "service.web.balance: \"a\"?port = 1\\\" is not a way"),
        ] {
            let mut values = vec![("listen", "127.0.0.1:8443"), ("port", "443")];
            values.retain(|(known, _)| *known != key);
            values.push((key, value));
            let (service, mistakes) = read("web", &values);
            assert_eq!((service.is_none(), mistakes.len()), (true, 1), "{key}: {mistakes:?}");
            assert!(mistakes[0].starts_with(words), "{} is not \"{words}\"", mistakes[0]);
        }
        let (service, mistakes) = read("web", &[("balance", "first")]);
        assert!(
            service.is_none()
                && mistakes == ["service.web.port: missing: the port of the backends, such as 8443"]
        );
        let (service, mistakes) = read("kube-api", &[("balance", "first"), ("maxconn", "0")]);
        let service = service.unwrap();
        assert_eq!((service.balance, service.port, mistakes.len()), (Balance::First, 6443, 1));
        assert!(matches!(service.check.kind, CheckKind::Https(..)));
    }

    #[test]
    fn a_service_is_listened_to_nowhere_unless_it_says_where() {
        for values in [
            &[("port", "9345")][..],
            &[("port", "9345"), ("listen", "[]")],
            &[("port", "9345"), ("listen", "")],
        ] {
            let (service, mistakes) = read("join", values);
            assert!(mistakes.is_empty() && service.unwrap().listen.is_empty(), "{mistakes:?}");
        }
        let (service, mistakes) = read("kube-api", &[("listen", "[]")]);
        assert!(mistakes.is_empty() && service.unwrap().listen.is_empty());
        let (service, _) = read("kube-api", &[("balance", "first")]);
        assert_eq!(service.unwrap().listen.len(), 1, "the default service listens as by default");
    }

    #[test]
    fn a_node_s_own_file_counts_more() {
        let shared = |name: &str, listen: &str| {
            let values = [("listen", listen), ("port", "443")];
            shared_service(&name.parse().unwrap(), values.into_iter()).0.unwrap()
        };
        let listens = |services: &[Service], name: &str| {
            let service = services.iter().find(|service| service.name.as_str() == name).unwrap();
            service.listen.iter().map(ToString::to_string).collect::<Vec<_>>()
        };
        let file = "[[service]]\nname = \"web\"\nlisten = \"127.0.0.1:8443\"\nport = 443\n";
        let config = parse(file).unwrap();
        let all = [
            shared("a", "127.0.0.1:16443,127.0.0.1:9"),
            shared("web", "127.0.0.1:1"),
            shared("z", "0.0.0.0:8443"),
        ];
        let (services, mistakes) = overlay(&config, &all);
        assert_eq!(listens(&services, "web"), ["127.0.0.1:8443"], "the file speaks of it");
        assert_eq!(listens(&services, "a"), ["127.0.0.1:9"], "the default service keeps its place");
        assert!(listens(&services, "z").is_empty(), "so does the file's");
        let mistakes: Vec<String> = mistakes.iter().map(ToString::to_string).collect();
        assert_eq!(
            mistakes,
            [
                "service.a.listen: 127.0.0.1:16443 is used by service kube-api; choose another port",
                "service.z.listen: 0.0.0.0:8443 is used by service web; choose another port"
            ]
        );
        let moved = shared("kube-api", "127.0.0.1:6444");
        let (services, _) = overlay(&config, &[shared("a", "127.0.0.1:16443"), moved]);
        assert_eq!(services[0].listen[0].port(), 6444, "the default service may be changed, and stays first");
        assert_eq!(listens(&services, "a"), ["127.0.0.1:16443"], "what it left is free");
        let (_, mistakes) = overlay(&config, &[shared("l", "127.0.0.1:7646")]);
        assert!(mistakes[0].message.contains("own port"));
    }
}
