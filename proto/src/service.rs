//! A proxied service, and how a node checks its own instance.

use std::fmt;
use std::net::SocketAddr;
use std::str::FromStr;
use std::time::Duration;

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

/// The service that exists without any configuration.
pub const KUBE_API: &str = "kube-api";

/// A service's name: as a DNS label, at most 32 characters.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ServiceName(String);

impl ServiceName {
    /// The name of the default service.
    pub fn kube_api() -> ServiceName {
        ServiceName(KUBE_API.to_owned())
    }

    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for ServiceName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

/// A text that is not a service name; cut.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("\"{0}\" is not a service name: 1 to 32 characters, a to z, 0 to 9 and -")]
pub struct BadServiceName(pub String);

impl FromStr for ServiceName {
    type Err = BadServiceName;

    fn from_str(text: &str) -> Result<ServiceName, BadServiceName> {
        let edge = |b: Option<u8>| b.is_some_and(|b| b.is_ascii_lowercase() || b.is_ascii_digit());
        let inner = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-';
        let good = text.len() <= 32
            && edge(text.bytes().next())
            && edge(text.bytes().next_back())
            && text.bytes().all(inner);
        if good {
            Ok(ServiceName(text.to_owned()))
        } else {
            Err(BadServiceName(text.chars().take(40).collect()))
        }
    }
}

impl Serialize for ServiceName {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.0)
    }
}

impl<'de> Deserialize<'de> for ServiceName {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<ServiceName, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(de::Error::custom)
    }
}

/// How new connections are spread over backends of the same rank.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Balance {
    /// Fewest connections for its weight; the default, since connections to an apiserver live long.
    #[default]
    LeastConnections,
    /// In turn, as often as their weights allow.
    RoundRobin,
    /// The nearest by round-trip time in coarse steps, the fewest connections among those.
    Nearest,
    /// The first by name, the next when it is not good or full.
    First,
    /// The same one for each client address while it is good, on whichever node the client connects.
    Source,
}

impl Balance {
    /// Every balance, for messages and completions.
    pub const ALL: [Balance; 5] =
        [Balance::LeastConnections, Balance::RoundRobin, Balance::Nearest, Balance::First, Balance::Source];

    /// Its name in configuration.
    pub fn as_str(self) -> &'static str {
        match self {
            Balance::LeastConnections => "least-connections",
            Balance::RoundRobin => "round-robin",
            Balance::Nearest => "nearest",
            Balance::First => "first",
            Balance::Source => "source",
        }
    }
}

impl fmt::Display for Balance {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

/// The HTTP status codes that count as "ready": inclusive ranges.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Expect(pub Vec<(u16, u16)>);

impl Expect {
    /// Whether `status` is among them.
    pub fn holds(&self, status: u16) -> bool {
        self.0.iter().any(|(low, high)| (*low..=*high).contains(&status))
    }
}

impl Default for Expect {
    fn default() -> Expect {
        Expect(vec![(200, 200)])
    }
}

impl fmt::Display for Expect {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, (low, high)) in self.0.iter().enumerate() {
            let comma = if i == 0 { "" } else { "," };
            if low == high { write!(f, "{comma}{low}")? } else { write!(f, "{comma}{low}-{high}")? }
        }
        Ok(())
    }
}

/// A text that is not a list of HTTP status codes.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("\"{0}\" is not a list of HTTP status codes, as 200 or 200-299,401")]
pub struct BadExpect(pub String);

impl FromStr for Expect {
    type Err = BadExpect;

    fn from_str(text: &str) -> Result<Expect, BadExpect> {
        let code = |part: &str| part.trim().parse::<u16>().ok().filter(|code| (100..=599).contains(code));
        text.split(',')
            .map(|part| {
                let (low, high) = part.split_once('-').unwrap_or((part, part));
                match (code(low), code(high)) {
                    (Some(low), Some(high)) if low <= high => Ok((low, high)),
                    _ => Err(BadExpect(text.to_owned())),
                }
            })
            .collect::<Result<Vec<_>, _>>()
            .map(Expect)
    }
}

/// What a check does once connected.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum CheckKind {
    /// Nothing more: a TCP connection is enough.
    Tcp,
    /// An HTTP/1.1 GET.
    Http(HttpCheck),
    /// The same over TLS.
    Https(HttpCheck, TlsCheck),
}

impl CheckKind {
    /// Whether the service speaks TLS from the first byte.
    pub fn speaks_tls(&self) -> bool {
        matches!(self, CheckKind::Https(..))
    }

    /// Its name in configuration.
    pub fn as_str(&self) -> &'static str {
        match self {
            CheckKind::Tcp => "tcp",
            CheckKind::Http(_) => "http",
            CheckKind::Https(..) => "https",
        }
    }
}

/// The HTTP part of a check.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HttpCheck {
    /// Requested path, starting with `/`.
    pub path: String,
    /// Status codes that mean ready. 401 and 403 mean alive and 5xx not ready, unless they are listed here.
    pub expect: Expect,
}

/// The TLS part of a check. All paths are re-read when the files change, since Kubernetes rotates them.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct TlsCheck {
    /// Name that the certificate must have; `None`: `kubernetes` for the default service if a CA is known.
    pub server_name: Option<String>,
    /// PEM file of the CA; `None`: where k3s, RKE2 and kubeadm keep theirs; if there is none either, the
    /// certificate is not verified.
    pub ca_file: Option<String>,
    /// PEM file of the client certificate; `None`: found likewise.
    pub cert_file: Option<String>,
    /// PEM file of its key; `None`: the certificate's file holds both.
    pub key_file: Option<String>,
    /// Look for Kubernetes' credentials and CA when none are configured.
    pub discover: bool,
}

/// How a node checks its own instance of a service.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Check {
    /// What is done once connected.
    pub kind: CheckKind,
    /// Address and port that are checked and offered to others; `None`: the node's own mesh address and
    /// [`Service::port`].
    pub address: Option<SocketAddr>,
    /// Time between two checks.
    pub interval: Duration,
    /// Longest duration of one check.
    pub timeout: Duration,
    /// Consecutive good checks to become ready.
    pub rise: u32,
    /// Consecutive failed checks to become down.
    pub fall: u32,
}

/// A service: a listener on this node, and backends on every node where the service's check succeeds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Service {
    /// Its name, the same on every node.
    pub name: ServiceName,
    /// Where this node's proxy listens; empty: this node only offers a backend.
    pub listen: Vec<SocketAddr>,
    /// The backend's port.
    pub port: u16,
    /// How this node's own instance is checked.
    pub check: Check,
    /// How connections are spread.
    pub balance: Balance,
    /// This node's share among equals, 0 to 256; 0: no new connections while another is good.
    pub weight: u16,
    /// Limit of concurrent connections of this node's listener.
    pub maxconn: u32,
    /// Connections from this node beyond which a backend is ranked after the others; 0: no limit.
    pub backend_maxconn: u32,
    /// Send the client's address to backends by the PROXY protocol, version 2.
    pub send_proxy: bool,
    /// Listen beside another process of root that lets its port be shared (SO_REUSEPORT), as haproxy does: so that
    /// it can be replaced without a moment in which nobody listens.
    pub share_port: bool,
    /// Log a line for each connection.
    pub access_log: bool,
    /// Whether this node checks its own instance and offers it; false where the settings name others.
    pub offer: bool,
}

/// Largest weight, as in haproxy.
pub const MAX_WEIGHT: u16 = 256;

impl Service {
    /// The default service, as it is without configuration.
    pub fn kube_api() -> Service {
        Service {
            name: ServiceName::kube_api(),
            listen: vec![SocketAddr::from(([127, 0, 0, 1], 16443))],
            port: 6443,
            check: Check {
                kind: CheckKind::Https(
                    HttpCheck { path: "/readyz".to_owned(), expect: Expect::default() },
                    TlsCheck { discover: true, ..TlsCheck::default() },
                ),
                ..Check::default()
            },
            balance: Balance::default(),
            weight: 100,
            maxconn: DEFAULT_MAXCONN,
            backend_maxconn: 0,
            send_proxy: false,
            share_port: false,
            access_log: false,
            offer: true,
        }
    }
}

/// Default of [`Service::maxconn`]: above what a node's kubelet, pods and users open, below what would take
/// the descriptors of other services.
pub const DEFAULT_MAXCONN: u32 = 10_000;

impl Default for Check {
    fn default() -> Check {
        Check {
            kind: CheckKind::Tcp,
            address: None,
            interval: Duration::from_secs(1),
            // Longer than a loaded apiserver takes (two seconds have been seen), short enough for two of them in
            // a row, an interval apart, to be known within five seconds.
            timeout: Duration::from_millis(2_500),
            rise: 2,
            fall: 2,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn expected_codes_read_back_as_written() {
        for text in ["200", "200-299", "200,401,500-504"] {
            assert_eq!(text.parse::<Expect>().unwrap().to_string(), text);
        }
        for text in ["", "99", "600", "300-200", "ok", "200,,201"] {
            assert!(text.parse::<Expect>().is_err(), "{text}");
        }
        let expect: Expect = "200-299,401".parse().unwrap();
        assert!(expect.holds(204) && expect.holds(401) && !expect.holds(403));
    }
}
