//! What a user typed as `host[:port]` to socket addresses, without libc: a static binary in an empty chroot
//! resolves names too. `/etc/hosts` and `/etc/resolv.conf` are honoured where they are, and read each time,
//! since names are resolved rarely and the files change below a running agent.

#[cfg(test)]
mod tests;

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use hickory_resolver::config::{
    ConnectionConfig, LookupIpStrategy, NameServerConfig, ResolveHosts, ResolverConfig, ResolverOpts,
};
use hickory_resolver::net::runtime::TokioRuntimeProvider;
use hickory_resolver::net::{DnsError, NetError};
use hickory_resolver::proto::op::{Query, ResponseCode};
use hickory_resolver::proto::rr::{Name, RecordType};
use hickory_resolver::{Hosts, Resolver, TokioResolver, system_conf};

/// All that a name may cost. A person waits for it.
const PATIENCE: Duration = Duration::from_secs(5);
/// A name server that has not answered in this part of it is passed over, so that there is time for others.
const SHARE: f32 = 0.3;
/// Where libc asks when nobody is named.
const LOCAL: [IpAddr; 2] = [IpAddr::V4(Ipv4Addr::LOCALHOST), IpAddr::V6(Ipv6Addr::LOCALHOST)];

/// Resolves `host`, `host:port`, an address, or an address with a port. `nameservers` are asked instead of
/// those of the system when there are any. IPv4 addresses come first.
pub(crate) async fn resolve(
    host_and_port: &str,
    default_port: u16,
    nameservers: &[IpAddr],
) -> Result<Vec<SocketAddr>, ResolveError> {
    let sources = Sources {
        hosts: "/etc/hosts".into(),
        resolv_conf: "/etc/resolv.conf".into(),
        nameservers: nameservers.to_vec(),
        port: 53,
        patience: PATIENCE,
    };
    resolve_by(host_and_port, default_port, &sources).await
}

/// Where names are looked up. A value, so that tests have their own.
struct Sources {
    hosts: PathBuf,
    resolv_conf: PathBuf,
    nameservers: Vec<IpAddr>,
    port: u16,
    patience: Duration,
}

async fn resolve_by(
    host_and_port: &str,
    default_port: u16,
    sources: &Sources,
) -> Result<Vec<SocketAddr>, ResolveError> {
    let (host, port) = parse(host_and_port, default_port)
        .map_err(|why| ResolveError::Syntax { given: host_and_port.to_owned(), why })?;
    let ips = match host {
        Host::Ip(ip) => vec![ip],
        Host::Name(name) => {
            let text = name.to_utf8();
            let short = text.trim_end_matches('.');
            if short.eq_ignore_ascii_case("localhost") || short.to_ascii_lowercase().ends_with(".localhost") {
                LOCAL.to_vec()
            } else if let Some(ips) = from_hosts(&name, sources) {
                ips
            } else {
                from_servers(name, sources).await?
            }
        }
    };
    Ok(ips.into_iter().map(|ip| SocketAddr::new(ip, port)).collect())
}

#[derive(Debug, PartialEq)]
enum Host {
    Ip(IpAddr),
    Name(Name),
}

/// Splits what was typed. An error is the end of a sentence that begins with it.
fn parse(given: &str, default_port: u16) -> Result<(Host, u16), String> {
    if given.is_empty() {
        return Err("is empty; give a name or an address, like node1 or 10.0.0.1:7646".to_owned());
    }
    if let Some((scheme, rest)) = given.split_once("://") {
        let host = rest.split('/').next().unwrap_or_default();
        return Err(format!("begins with {scheme}://; give only {host}"));
    }
    if let Some(bad) = given.chars().find(|c| c.is_whitespace() || c.is_control() || "/@?#%,;".contains(*c)) {
        return Err(match bad {
            '%' => "has a zone; an address of one link only can't be used here".to_owned(),
            bad => format!("contains {bad:?}, which no name and no address has"),
        });
    }
    if let Some(rest) = given.strip_prefix('[') {
        let (inside, after) = rest.split_once(']').ok_or("has a [ without its ]")?;
        let ip: Ipv6Addr = inside
            .parse()
            .map_err(|_| format!("has {inside:?} in brackets, which is not an IPv6 address"))?;
        let port = match after.strip_prefix(':') {
            Some(port) => parse_port(port)?,
            None if after.is_empty() => default_port,
            None => return Err(format!("has {after:?} after the ]; only :PORT can stand there")),
        };
        return Ok((Host::Ip(ip.into()), port));
    }
    if let Ok(ip) = given.parse() {
        return Ok((Host::Ip(ip), default_port));
    }
    let (host, port) = match given.split_once(':') {
        None => (given, default_port),
        Some((_, rest)) if rest.contains(':') => {
            return Err("is not an IPv6 address; one with a port is written [fd00::1]:7646".to_owned());
        }
        Some((host, port)) => (host, parse_port(port)?),
    };
    match host.parse::<Ipv4Addr>() {
        Ok(ip) => Ok((Host::Ip(ip.into()), port)),
        Err(_) => Ok((Host::Name(parse_name(host)?), port)),
    }
}

fn parse_port(port: &str) -> Result<u16, String> {
    // Digits alone: `+1` parses as a number too.
    let digits = port.bytes().all(|b| b.is_ascii_digit());
    port.parse()
        .ok()
        .filter(|&number: &u16| digits && number > 0)
        .ok_or_else(|| format!("has the port {port:?}, which is not a number from 1 to 65535"))
}

fn parse_name(host: &str) -> Result<Name, String> {
    let labels: Vec<&str> = host.strip_suffix('.').unwrap_or(host).split('.').collect();
    if labels.last().is_some_and(|last| !last.is_empty() && last.bytes().all(|b| b.is_ascii_digit())) {
        return Err("is not an IPv4 address, and no name ends in a number".to_owned());
    }
    for label in labels {
        if label.is_empty() {
            return Err("has no name before the port, or two dots in a row".to_owned());
        }
        let odd = |c: char| !(c.is_alphanumeric() || c == '-' || c == '_');
        if let Some(odd) = label.chars().find(|c| odd(*c)) {
            return Err(format!("contains {odd:?}, which no name has"));
        }
        if label.starts_with('-') || label.ends_with('-') {
            return Err(format!("has the part {label:?}, which begins or ends with a hyphen"));
        }
    }
    // Lengths, and names in other scripts, are hickory's. Its rules for the latter refuse underscores, which
    // many local networks have in names.
    if host.is_ascii() {
        Name::from_ascii(host.to_ascii_lowercase()).map_err(|error| format!("is not a name: {error}"))
    } else {
        Name::from_utf8(host).map_err(|_| "is not a name that can be written in ASCII (IDNA)".to_owned())
    }
}

/// The addresses in `/etc/hosts`. They win over name servers, which are then not asked at all: that a name
/// has only an IPv4 address there is no reason to wait for somebody's answer about IPv6.
fn from_hosts(name: &Name, sources: &Sources) -> Option<Vec<IpAddr>> {
    let mut hosts = Hosts::default();
    hosts.read_hosts_conf(std::fs::File::open(&sources.hosts).ok()?).ok()?;
    let mut ips = Vec::new();
    for kind in [RecordType::A, RecordType::AAAA] {
        if let Some(found) = hosts.lookup_static_host(&Query::query(name.clone(), kind)) {
            ips.extend(found.answers().iter().filter_map(|record| record.data.ip_addr()));
        }
    }
    (!ips.is_empty()).then_some(ips)
}

async fn from_servers(name: Name, sources: &Sources) -> Result<Vec<IpAddr>, ResolveError> {
    let shown = name.to_utf8();
    let (resolver, asked) = resolver(sources)
        .map_err(|error| ResolveError::Failed { name: shown.clone(), why: error.to_string() })?;
    match tokio::time::timeout(sources.patience, resolver.lookup_ip(name)).await {
        Ok(Ok(found)) => {
            let mut ips: Vec<IpAddr> = Vec::new();
            // A name behind two others may come twice.
            for ip in found.iter() {
                if !ips.contains(&ip) {
                    ips.push(ip);
                }
            }
            if ips.is_empty() { Err(ResolveError::NoAddress { name: shown }) } else { Ok(ips) }
        }
        Ok(Err(error)) => Err(explain(shown, asked, &error)),
        Err(_elapsed) => Err(ResolveError::NoAnswer { name: shown, asked }),
    }
}

fn resolver(sources: &Sources) -> Result<(TokioResolver, Vec<IpAddr>), NetError> {
    let (mut config, mut options) = system(sources);
    if !sources.nameservers.is_empty() {
        config.name_servers =
            sources.nameservers.iter().map(|ip| NameServerConfig::udp_and_tcp(*ip)).collect();
    }
    if !config.search.is_empty() {
        // libc guesses a domain from the host's name only when nobody named any.
        config.domain = None;
    }
    for server in &mut config.name_servers {
        server
            .connections
            .iter_mut()
            .for_each(|connection: &mut ConnectionConfig| connection.port = sources.port);
    }
    options.timeout = options.timeout.min(sources.patience.mul_f32(SHARE));
    options.ip_strategy = LookupIpStrategy::Ipv4AndIpv6;
    options.use_hosts_file = ResolveHosts::Never; // it was read before
    options.cache_size = 32; // it lives for one name
    let asked = config.name_servers.iter().map(|server| server.ip).collect();
    let mut builder = Resolver::builder_with_config(config, TokioRuntimeProvider::default());
    *builder.options_mut() = options;
    Ok((builder.build()?, asked))
}

/// The system's settings; this very host when they name no server, as libc does. So also in a chroot
/// without the file, and with one that can't be used.
fn system(sources: &Sources) -> (ResolverConfig, ResolverOpts) {
    let file = std::fs::read_to_string(&sources.resolv_conf).unwrap_or_default();
    let local = || {
        let lines: String = LOCAL.iter().map(|ip| format!("nameserver {ip}\n")).collect();
        system_conf::parse_resolv_conf(format!("{file}\n{lines}"))
    };
    system_conf::parse_resolv_conf(&file).or_else(|_| local()).unwrap_or_else(|error| {
        tracing::warn!("{} can't be used: {error}", sources.resolv_conf.display());
        let servers = LOCAL.iter().map(|ip| NameServerConfig::udp_and_tcp(*ip)).collect();
        (ResolverConfig::from_name_servers(servers), ResolverOpts::default())
    })
}

fn explain(name: String, asked: Vec<IpAddr>, error: &NetError) -> ResolveError {
    match error {
        NetError::Dns(DnsError::NoRecordsFound(none)) => match none.response_code {
            ResponseCode::NoError => ResolveError::NoAddress { name },
            _ => ResolveError::NoSuchName { name, asked },
        },
        NetError::Dns(error) => ResolveError::Failed { name, why: error.to_string() },
        NetError::Io(_) | NetError::Timeout | NetError::NoConnections | NetError::Busy => {
            ResolveError::NoAnswer { name, asked }
        }
        other => ResolveError::Failed { name, why: other.to_string() },
    }
}

/// Why there are no addresses.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum ResolveError {
    /// What was typed is neither a name nor an address.
    Syntax { given: String, why: String },
    /// A server knows that there is none.
    NoSuchName { name: String, asked: Vec<IpAddr> },
    /// The name is there, for something else.
    NoAddress { name: String },
    /// Nobody said anything in time.
    NoAnswer { name: String, asked: Vec<IpAddr> },
    /// A server answered, but not this question.
    Failed { name: String, why: String },
}

impl fmt::Display for ResolveError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let list = |asked: &[IpAddr]| asked.iter().map(IpAddr::to_string).collect::<Vec<_>>().join(", ");
        match self {
            ResolveError::Syntax { given, why } => write!(f, "{given:?} {why}"),
            ResolveError::NoSuchName { name, asked } => {
                write!(f, "no such name: {name} (asked {}); check the spelling", list(asked))
            }
            ResolveError::NoAddress { name } => write!(f, "{name} is a name without an address"),
            ResolveError::NoAnswer { name, asked } => write!(
                f,
                "no name server answered (asked {}) for {name}; give an address, or check /etc/resolv.conf",
                list(asked)
            ),
            ResolveError::Failed { name, why } => {
                write!(f, "can't resolve {name}: {why}; give an address instead")
            }
        }
    }
}

impl std::error::Error for ResolveError {}
