//! What a configuration says of its node itself, against what the node has joined with, and what a running agent
//! can take over of a new one.

use std::fmt;
use std::net::IpAddr;

use super::Config;
use crate::node::Name;

/// A member's name and place, as it has joined or last started.
#[derive(Debug, Clone, Copy)]
pub struct JoinedPlace<'a> {
    /// Its name in the cluster document.
    pub name: &'a Name,
    /// The address that others were told.
    pub address: IpAddr,
    /// The interface that had it.
    pub interface: &'a str,
    /// The link's port.
    pub port: u16,
}

/// What a configuration says otherwise. What it does not mention stays as it is.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct PlaceChanges {
    /// Another name, which no restart gives it: the cluster document has the old one.
    pub name: Option<Name>,
    /// Another address.
    pub address: Option<IpAddr>,
    /// Another interface. Without an address: any usable one of that interface.
    pub interface: Option<String>,
    /// Another port.
    pub port: Option<u16>,
}

/// A flag of the command line and the configuration say different things, and the agent would start with the latter.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the configuration says {key} = {configured}; change it there, or leave out --{flag}")]
pub struct Contradiction {
    key: &'static str,
    flag: &'static str,
    configured: String,
}

impl PlaceChanges {
    /// Whether the configuration agrees.
    pub fn is_empty(&self) -> bool {
        *self == PlaceChanges::default()
    }

    /// Whether nothing but the name differs.
    pub fn is_name_alone(&self) -> bool {
        self.name.is_some() && PlaceChanges { name: None, ..self.clone() }.is_empty()
    }

    /// The keys of what a restart gives the node, with their values.
    pub fn at_restart(&self) -> String {
        let all: [Option<&dyn fmt::Display>; 3] = [
            self.interface.as_ref().map(|it| it as _),
            self.address.as_ref().map(|it| it as _),
            self.port.as_ref().map(|it| it as _),
        ];
        let told = ["interface", "address", "port"].iter().zip(all);
        let told = told.filter_map(|(key, value)| Some(format!("{key} = {}", value?)));
        told.collect::<Vec<_>>().join(", ")
    }

    /// Why the name has no effect, and what to run.
    pub fn name_refused(&self, joined: &Name) -> Option<String> {
        let new = self.name.as_ref()?;
        Some(format!(
            "the configuration says name = {new}, and this node is {joined} in its cluster, which a restart does not \
             change; set name = \"{joined}\", or rename the node: agent leave, then agent join INVITE --name {new}"
        ))
    }
}

impl Config {
    /// What this configuration says otherwise than the node has joined with.
    pub fn place_changes(&self, joined: &JoinedPlace<'_>) -> PlaceChanges {
        PlaceChanges {
            name: self.name.clone().filter(|name| name != joined.name),
            address: self.address.filter(|address| *address != joined.address),
            interface: self.interface.clone().filter(|interface| interface != joined.interface),
            port: self.port.filter(|port| *port != joined.port),
        }
    }

    /// With what the command line says of the node.
    ///
    /// # Errors
    /// The configuration says otherwise.
    pub fn with_flags(
        mut self,
        name: Option<Name>,
        address: Option<IpAddr>,
        interface: Option<String>,
    ) -> Result<Config, Contradiction> {
        lay(&mut self.name, name, "name", "name")?;
        lay(&mut self.address, address, "address", "addr")?;
        lay(&mut self.interface, interface, "interface", "iface")?;
        Ok(self)
    }

    /// The keys that differ from those of a running agent and that it reads only when it starts.
    pub fn keys_of_a_restart(&self, running: &Config) -> Vec<&'static str> {
        let differ = [
            ("name", self.name != running.name),
            ("address", self.address != running.address),
            ("interface", self.interface != running.interface),
            ("port", self.port != running.port),
            ("bind", self.bind != running.bind),
            ("state-dir", self.state_dir != running.state_dir),
            ("runtime-dir", self.runtime_dir != running.runtime_dir),
            ("log.format", self.log_format != running.log_format),
            ("log.level", self.log_level != running.log_level),
        ];
        differ.into_iter().filter(|(_, differs)| *differs).map(|(key, _)| key).collect()
    }
}

/// Lays a flag over what is configured.
fn lay<T: PartialEq + fmt::Display>(
    configured: &mut Option<T>,
    given: Option<T>,
    key: &'static str,
    flag: &'static str,
) -> Result<(), Contradiction> {
    let Some(given) = given else { return Ok(()) };
    if let Some(configured) = configured.as_ref().filter(|configured| **configured != given) {
        return Err(Contradiction { key, flag, configured: configured.to_string() });
    }
    *configured = Some(given);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::parse;

    fn changes(text: &str) -> PlaceChanges {
        let name = "m1".parse().unwrap();
        let address = "10.0.0.1".parse().unwrap();
        parse(text).unwrap().place_changes(&JoinedPlace {
            name: &name,
            address,
            interface: "eth0",
            port: 7646,
        })
    }

    #[test]
    fn what_the_file_says_otherwise_is_a_change_and_what_it_does_not_mention_is_none() {
        for (text, at_restart, renamed) in [
            ("", "", false),
            ("name = \"m1\"\naddress = \"10.0.0.1\"\ninterface = \"eth0\"\nport = 7646\n", "", false),
            ("interface = \"ens3\"\n", "interface = ens3", false),
            ("address = \"10.0.0.2\"\n", "address = 10.0.0.2", false),
            ("port = 7000\n", "port = 7000", false),
            ("name = \"m2\"\n", "", true),
            (
                "name = \"m2\"\naddress = \"10.0.0.2\"\ninterface = \"ens3\"\nport = 7000\n",
                "interface = ens3, address = 10.0.0.2, port = 7000",
                true,
            ),
        ] {
            let found = changes(text);
            assert_eq!(found.at_restart(), at_restart, "{text}");
            assert_eq!(found.is_empty(), at_restart.is_empty() && !renamed, "{text}");
            assert_eq!(found.is_name_alone(), at_restart.is_empty() && renamed, "{text}");
            let told = found.name_refused(&"m1".parse().unwrap());
            assert_eq!(told.is_some_and(|told| told.contains("this node is m1")), renamed, "{text}");
        }
    }

    #[test]
    fn a_flag_agrees_with_the_file_or_is_refused() {
        let config = || parse("interface = \"eth0\"\n").unwrap();
        let with = |interface: &str| config().with_flags(None, None, Some(interface.to_owned()));
        assert_eq!(with("eth0"), Ok(config()));
        assert_eq!(
            with("ens3").unwrap_err().to_string(),
            "the configuration says interface = eth0; change it there, or leave out --iface"
        );
        let named = config().with_flags("m2".parse().ok(), "10.0.0.2".parse().ok(), None).unwrap();
        assert_eq!((named.name, named.address), ("m2".parse().ok(), "10.0.0.2".parse().ok()));
    }

    #[test]
    fn a_reload_knows_what_takes_a_restart() {
        let running = Config::default();
        for (text, keys) in [
            ("", &[][..]),
            ("notify = [\"/etc/agent/notify.d\"]\n[web]\nlisten = []\n", &[]),
            ("port = 7000\nbind = \"10.0.0.1\"\n", &["port", "bind"]),
            ("state-dir = \"/s\"\nruntime-dir = \"/r\"\n", &["state-dir", "runtime-dir"]),
            ("[log]\nformat = \"json\"\nlevel = \"debug\"\n", &["log.format", "log.level"]),
            ("name = \"a\"\naddress = \"10.0.0.1\"\ninterface = \"e\"\n", &["name", "address", "interface"]),
        ] {
            assert_eq!(parse(text).unwrap().keys_of_a_restart(&running), keys, "{text}");
        }
    }
}
