//! What a node says of itself by gossip: the only place where gossip key names stand.
//!
//! Values are short plain ASCII, so that a person can read them in a dump. A service's value is
//! `readiness since address weight cause revision detail…`, space-separated: the cause as code and argument,
//! `2:500`, and the detail, which is only shown, last. Whom a node hears is
//! `id heard rtt loss` for each, comma-separated: `+` or `-`, microseconds or nothing, thousandths.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};

use crate::arp::Mac;
use crate::cause::{Cause, Detail, short_text};
use crate::health::{Health, Readiness};
use crate::node::{Name, NodeId};
use crate::service::{MAX_WEIGHT, ServiceName};
use crate::time::UnixMs;

const NAME: &str = "n";
const VERSION: &str = "v";
const ADDRESSES: &str = "a";
const INTERFACE: &str = "i";
const STARTED: &str = "t";
const DOCUMENT: &str = "doc";
const DRAINING: &str = "d";
const LEFT: &str = "x";
const SERVICE: &str = "s:";
const CHECK: &str = "c:";
const HEARS: &str = "h";
const SEGMENTS: &str = "l2";
const VIP: &str = "vip:";
const UNFIT: &str = "no:";

/// Most addresses that a node may say; more are a mistake or an attack on memory.
const MAX_ADDRESSES: usize = 8;
/// Most services that a node may offer.
const MAX_SERVICES: usize = 64;
/// Most nodes that a node says it hears: only masters are pulsed, and few clusters have more than nine.
const MAX_HEARS: usize = 16;
/// Most segments that a node may say: one for each virtual IP at most.
const MAX_SEGMENTS: usize = 16;
/// Most virtual IPs that a node may own.
const MAX_VIPS: usize = 64;

/// A backend that a node offers for one service.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Offer {
    /// Where it is reached.
    pub address: SocketAddr,
    /// Share among equals.
    pub weight: u16,
    /// What the node's own checks say.
    pub health: Health,
    /// What the last of them took, in milliseconds, roughly.
    pub check_ms: Option<u32>,
}

/// How well a node hears another, roughly: what is said of it changes seldom, so that gossip stays quiet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Hears {
    /// It answers.
    pub heard: bool,
    /// Round-trip time in microseconds, when known.
    pub rtt_us: Option<u32>,
    /// Share of pulses without an answer, in thousandths.
    pub loss_permille: u16,
}

/// How a node stands on the segment of a virtual IP, so that others can test whether it is theirs too.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Foot {
    /// Its interface there.
    pub interface: String,
    /// That interface's Ethernet address.
    pub mac: Mac,
    /// Its own address there.
    pub address: IpAddr,
    /// Length of that address's prefix.
    pub prefix: u8,
}

/// A virtual IP that a node owns.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Claim {
    /// The epoch that it owns it in.
    pub epoch: u64,
    /// Since when.
    pub since: UnixMs,
}

/// Everything that a node says of itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Word {
    /// Its name.
    pub name: Name,
    /// Version of its agent.
    pub version: String,
    /// Where its link port is reached; empty while its network is away.
    pub addresses: Vec<SocketAddr>,
    /// Interface that carries the mesh; may be empty.
    pub interface: String,
    /// When its agent started.
    pub started: UnixMs,
    /// Hash of the cluster document that it holds.
    pub document: String,
    /// Since when it takes no new connections.
    pub draining: Option<UnixMs>,
    /// It has stopped on purpose.
    pub left: bool,
    /// What it offers.
    pub services: BTreeMap<ServiceName, Offer>,
    /// Whom it hears.
    pub hears: BTreeMap<NodeId, Hears>,
    /// Where it stands on the segments of virtual IPs.
    pub feet: Vec<Foot>,
    /// The virtual IPs that it owns.
    pub vips: BTreeMap<IpAddr, Claim>,
    /// Why it can't own a virtual IP that it is a candidate for.
    pub unfit: BTreeMap<IpAddr, String>,
}

/// Why a node's keys were not understood.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("gossip key \"{key}\" has the value \"{value}\": {wrong}")]
pub struct BadKey {
    /// The key.
    pub key: String,
    /// Its value, cut.
    pub value: String,
    /// What is wrong with it.
    pub wrong: &'static str,
}

impl Word {
    /// The keys that say this.
    pub fn to_keys(&self) -> BTreeMap<String, String> {
        let mut keys = BTreeMap::new();
        let mut say = |key: &str, value: String| keys.insert(key.to_owned(), value);
        say(NAME, self.name.to_string());
        say(VERSION, short_text(&self.version));
        let addresses: Vec<String> = self.addresses.iter().map(SocketAddr::to_string).collect();
        say(ADDRESSES, addresses.join(","));
        say(INTERFACE, short_text(&self.interface));
        say(STARTED, self.started.0.to_string());
        say(DOCUMENT, self.document.clone());
        if let Some(since) = self.draining {
            say(DRAINING, since.0.to_string());
        }
        if self.left {
            say(LEFT, "1".to_owned());
        }
        for (name, offer) in &self.services {
            let Offer { address, weight, health, check_ms } = offer;
            let Health { readiness, cause, detail, since } = health;
            if let Some(ms) = check_ms {
                say(&format!("{CHECK}{name}"), ms.to_string());
            }
            let ((code, argument), revision) = (cause.to_wire(), detail.revision());
            let value =
                format!("{readiness} {} {address} {weight} {code}:{argument} {revision} {detail}", since.0);
            say(&format!("{SERVICE}{name}"), value);
        }
        if !self.hears.is_empty() {
            let one = |(id, hears): (&NodeId, &Hears)| {
                let heard = if hears.heard { '+' } else { '-' };
                let rtt = hears.rtt_us.map_or_else(String::new, |us| us.to_string());
                format!("{id} {heard} {rtt} {}", hears.loss_permille)
            };
            let all: Vec<String> = self.hears.iter().take(MAX_HEARS).map(one).collect();
            say(HEARS, all.join(","));
        }
        if !self.feet.is_empty() {
            let feet: Vec<String> = self.feet.iter().map(say_foot).collect();
            say(SEGMENTS, feet.join(","));
        }
        for (address, claim) in &self.vips {
            say(&format!("{VIP}{address}"), format!("{} {}", claim.epoch, claim.since.0));
        }
        for (address, reason) in &self.unfit {
            say(&format!("{UNFIT}{address}"), short_text(reason));
        }
        keys
    }

    /// Reads keys that a node has gossiped. Keys of later versions are passed over.
    ///
    /// # Errors
    /// The first key that has no meaning; a member that says such a thing is left out whole, since half of
    /// what it says may be worse than nothing.
    pub fn from_keys<'a>(keys: impl IntoIterator<Item = (&'a str, &'a str)>) -> Result<Word, BadKey> {
        let mut word = Word {
            name: Name::nearest("unknown"),
            version: String::new(),
            addresses: Vec::new(),
            interface: String::new(),
            started: UnixMs(0),
            document: String::new(),
            draining: None,
            left: false,
            services: BTreeMap::new(),
            hears: BTreeMap::new(),
            feet: Vec::new(),
            vips: BTreeMap::new(),
            unfit: BTreeMap::new(),
        };
        let mut checks = Vec::new();
        let mut named = false;
        for (key, value) in keys {
            let bad = |wrong| BadKey {
                key: key.chars().take(40).collect(),
                value: value.chars().take(80).collect(),
                wrong,
            };
            let time = || value.parse().map(UnixMs).map_err(|_| bad("not a time in milliseconds since 1970"));
            match key {
                NAME => {
                    word.name = value.parse().map_err(|_| bad("not a name"))?;
                    named = true;
                }
                VERSION => word.version = short_text(value),
                ADDRESSES => {
                    let parts = value.split(',').filter(|part| !part.is_empty());
                    word.addresses = parts
                        .take(MAX_ADDRESSES)
                        .map(|part| part.parse().map_err(|_| bad("not addresses with ports")))
                        .collect::<Result<_, _>>()?;
                }
                INTERFACE => word.interface = short_text(value),
                STARTED => word.started = time()?,
                DOCUMENT => word.document = short_text(value),
                DRAINING => word.draining = Some(time()?),
                LEFT => word.left = true,
                // Only shown, so what has no meaning is passed over.
                HEARS => word.hears = value.split(',').take(MAX_HEARS).filter_map(parse_hears).collect(),
                _ if key.starts_with(CHECK) => checks.push((key, value)),
                SEGMENTS => {
                    let feet = value.split(',').take(MAX_SEGMENTS).map(parse_foot).collect::<Option<_>>();
                    word.feet = feet.ok_or_else(|| bad("not \"interface mac address/prefix\""))?;
                }
                _ if key.starts_with(VIP) => {
                    let claim = parse_claim(key, value).ok_or_else(|| bad("not \"epoch since\" of an IP"))?;
                    if word.vips.len() >= MAX_VIPS {
                        return Err(bad("more virtual IPs than a node may own"));
                    }
                    word.vips.extend([claim]);
                }
                _ if key.starts_with(UNFIT) => {
                    let address = key.get(UNFIT.len()..).and_then(|address| address.parse().ok());
                    let address = address.ok_or_else(|| bad("not of an IP"))?;
                    if word.unfit.len() >= MAX_VIPS {
                        return Err(bad("more virtual IPs than a node may tell of"));
                    }
                    word.unfit.insert(address, short_text(value));
                }
                _ => {
                    let Some(name) = key.strip_prefix(SERVICE) else { continue };
                    let name = name.parse().map_err(|_| bad("not a service name"))?;
                    let offer = parse_offer(value)
                        .ok_or_else(|| bad("not \"readiness since address weight cause revision detail\""))?;
                    if word.services.len() >= MAX_SERVICES {
                        return Err(bad("more services than a node may offer"));
                    }
                    word.services.insert(name, offer);
                }
            }
        }
        for (key, value) in checks {
            let name = key.strip_prefix(CHECK).and_then(|name| name.parse::<ServiceName>().ok());
            if let Some(offer) = name.and_then(|name| word.services.get_mut(&name)) {
                offer.check_ms = value.parse().ok();
            }
        }
        if !named {
            let wrong = "missing: the node has not said its name yet";
            return Err(BadKey { key: NAME.to_owned(), value: String::new(), wrong });
        }
        Ok(word)
    }
}

fn say_foot(foot: &Foot) -> String {
    // What stands between the parts can't be part of one.
    let interface = short_text(&foot.interface).replace([' ', ','], "?");
    format!("{interface} {} {}/{}", foot.mac, foot.address, foot.prefix)
}

fn parse_foot(value: &str) -> Option<Foot> {
    let mut parts = value.splitn(3, ' ');
    let interface = short_text(parts.next()?);
    let mac = parts.next()?.parse().ok()?;
    let (address, prefix) = parts.next()?.split_once('/')?;
    let address: IpAddr = address.parse().ok()?;
    let most = if address.is_ipv4() { 32 } else { 128 };
    let prefix = prefix.parse().ok().filter(|prefix| *prefix <= most)?;
    Some(Foot { interface, mac, address, prefix })
}

fn parse_claim(key: &str, value: &str) -> Option<(IpAddr, Claim)> {
    let address = key.strip_prefix(VIP)?.parse().ok()?;
    let (epoch, since) = value.split_once(' ')?;
    Some((address, Claim { epoch: epoch.parse().ok()?, since: UnixMs(since.parse().ok()?) }))
}

fn parse_offer(value: &str) -> Option<Offer> {
    let mut parts = value.splitn(7, ' ');
    let readiness = Readiness::from_word(parts.next()?)?;
    let since = UnixMs(parts.next()?.parse().ok()?);
    let address = parts.next()?.parse().ok()?;
    let weight = parts.next()?.parse().ok().filter(|weight| *weight <= MAX_WEIGHT)?;
    let (code, argument) = parts.next()?.split_once(':')?;
    let cause = Cause::from_wire(code.parse().ok()?, argument.parse().ok()?);
    let revision = parts.next()?.parse().ok()?;
    let detail = Detail::new(revision, parts.next().unwrap_or(""));
    Some(Offer { address, weight, health: Health { readiness, cause, detail, since }, check_ms: None })
}

fn parse_hears(text: &str) -> Option<(NodeId, Hears)> {
    let mut parts = text.split(' ');
    let id = parts.next()?.parse().ok()?;
    let heard = parts.next()? == "+";
    let rtt_us = parts.next()?.parse().ok();
    let loss_permille = parts.next()?.parse().ok().filter(|permille| *permille <= 1000)?;
    Some((id, Hears { heard, rtt_us, loss_permille }))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn word() -> Word {
        Word {
            name: "m1".parse().unwrap(),
            version: "0.1.0".into(),
            addresses: vec!["10.0.0.1:7646".parse().unwrap(), "[fd00::1]:7646".parse().unwrap()],
            interface: "wg0".into(),
            started: UnixMs(1_700_000_000_000),
            document: "abcd1234".into(),
            draining: Some(UnixMs(5)),
            left: true,
            services: BTreeMap::from([(
                ServiceName::kube_api(),
                Offer {
                    address: "10.0.0.1:6443".parse().unwrap(),
                    weight: 100,
                    health: Health {
                        readiness: Readiness::NotReady,
                        cause: Cause::Http(500),
                        detail: Detail::new(3, "etcd failed"),
                        since: UnixMs(9),
                    },
                    check_ms: Some(20),
                },
            )]),
            hears: BTreeMap::from([
                (NodeId([1; 10]), Hears { heard: true, rtt_us: Some(420), loss_permille: 5 }),
                (NodeId([2; 10]), Hears { heard: false, rtt_us: None, loss_permille: 1000 }),
            ]),
            feet: vec![
                Foot {
                    interface: "eth0".into(),
                    mac: Mac([2, 0, 0, 0, 0, 1]),
                    address: "10.91.91.1".parse().unwrap(),
                    prefix: 24,
                },
                Foot {
                    interface: "eth0".into(),
                    mac: Mac([2, 0, 0, 0, 0, 1]),
                    address: "fd91::1".parse().unwrap(),
                    prefix: 64,
                },
            ],
            vips: BTreeMap::from([
                ("10.91.91.50".parse().unwrap(), Claim { epoch: 3, since: UnixMs(7) }),
                ("fd91::50".parse().unwrap(), Claim { epoch: 4, since: UnixMs(8) }),
            ]),
            unfit: BTreeMap::from([("10.91.91.51".parse().unwrap(), "no L2 on wg0 (point-to-point)".into())]),
        }
    }

    fn read(keys: &BTreeMap<String, String>) -> Result<Word, BadKey> {
        Word::from_keys(keys.iter().map(|(key, value)| (key.as_str(), value.as_str())))
    }

    #[test]
    fn a_word_reads_back_as_said() {
        let back = read(&word().to_keys()).unwrap();
        assert_eq!(back, word());
        assert_eq!(back.services[&ServiceName::kube_api()].health.detail.to_string(), "etcd failed");
        assert!(word().to_keys().values().all(|value| value.is_ascii()));
    }

    #[test]
    fn a_bad_value_is_named() {
        let mut keys = word().to_keys();
        keys.insert("s:kube-api".into(), "ready soon".into());
        let error = read(&keys).unwrap_err().to_string();
        assert!(error.contains("s:kube-api") && error.contains("ready soon"), "{error}");
        keys.remove("s:kube-api");
        for (key, value) in [
            ("l2", "eth0 02:00:00:00:00:01 10.0.0.1/33"),
            ("l2", "eth0 02:00:00:00:00 10.0.0.1/24"),
            ("vip:10.0.0.300", "1 2"),
            ("vip:10.0.0.3", "1"),
            ("no:10.0.0", "it drains"),
        ] {
            let mut bad = keys.clone();
            bad.insert(key.into(), value.into());
            assert!(read(&bad).unwrap_err().to_string().contains(key), "{key}={value}");
        }
        keys.insert("future".into(), "anything".into());
        assert!(read(&keys).is_ok(), "keys of later versions are passed over");
        keys.remove("n");
        assert!(read(&keys).is_err());
    }

    proptest! {
        #[test]
        fn no_keys_make_it_panic(pairs in proptest::collection::vec(("(n|v|a|i|t|doc|d|x|h|l2|(vip|no):[0-9.:]{0,9}|[sc]:[a-z]{0,4})", ".{0,60}"), 0..12)) {
            let _ = Word::from_keys(pairs.iter().map(|(key, value)| (key.as_str(), value.as_str())));
        }
    }
}
