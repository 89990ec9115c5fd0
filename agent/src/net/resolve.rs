//! Resolves what a user typed as `host[:port]`. Names are resolved by libc, so by what the administrator has
//! set in `/etc/hosts` and `/etc/resolv.conf`; a static libc (musl's, and glibc's since 2.34) does that in an
//! empty chroot too.

#[cfg(test)]
mod tests;

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, ToSocketAddrs};
use std::time::Duration;

use tokio::sync::oneshot;

/// Longest time to resolve a name. A person is waiting.
const PATIENCE: Duration = Duration::from_secs(5);
/// Longest name and longest part of one, in bytes (RFC 1035, section 2.3.4).
const LONGEST: (usize, usize) = (253, 63);
/// The addresses of `localhost`, whatever resolvers say (RFC 6761, section 6.3).
const LOCAL: [IpAddr; 2] = [IpAddr::V4(Ipv4Addr::LOCALHOST), IpAddr::V6(Ipv6Addr::LOCALHOST)];

/// Resolves `host`, `host:port`, an address, or an address with a port. IPv4 addresses come first.
pub(crate) async fn resolve(given: &str, default_port: u16) -> Result<Vec<SocketAddr>, ResolveError> {
    let (host, port) =
        parse(given, default_port).map_err(|why| ResolveError::Syntax { given: given.to_owned(), why })?;
    let mut ips = match host {
        Host::Ip(ip) => vec![ip],
        Host::Name(name) => {
            let short = name.trim_end_matches('.');
            if short == "localhost" || short.ends_with(".localhost") {
                LOCAL.to_vec()
            } else {
                ask(name).await?
            }
        }
    };
    ips.sort_by_key(IpAddr::is_ipv6);
    Ok(ips.into_iter().map(|ip| SocketAddr::new(ip, port)).collect())
}

/// Asks libc on a thread of its own: it can't be cancelled, and neither a task nor the end of the process may
/// wait for it.
async fn ask(name: String) -> Result<Vec<IpAddr>, ResolveError> {
    let (answer, answered) = oneshot::channel();
    let asked = name.clone();
    let thread = std::thread::Builder::new().name("resolver".to_owned()).spawn(move || {
        let found = (asked.as_str(), 0).to_socket_addrs();
        let _ = answer.send(found.map(|found| found.map(|at| at.ip()).collect::<Vec<_>>()));
    });
    let failed = |why| ResolveError::Failed { name: name.clone(), why };
    thread.map_err(|error| failed(LookupError::Thread(error)))?;
    match tokio::time::timeout(PATIENCE, answered).await {
        Ok(Ok(Ok(ips))) if !ips.is_empty() => Ok(ips),
        Ok(Ok(Ok(_))) => Err(failed(LookupError::None)),
        Ok(Ok(Err(error))) => Err(failed(LookupError::Refused(error))),
        Ok(Err(_)) | Err(_) => Err(failed(LookupError::TimedOut)),
    }
}

#[derive(Debug, PartialEq)]
enum Host {
    Ip(IpAddr),
    Name(String),
}

/// Splits the input.
fn parse(given: &str, default_port: u16) -> Result<(Host, u16), BadHost> {
    if given.is_empty() {
        return Err(BadHost::Empty);
    }
    if let Some((scheme, rest)) = given.split_once("://") {
        let host = rest.split('/').next().unwrap_or_default();
        return Err(BadHost::Url { scheme: scheme.to_owned(), host: host.to_owned() });
    }
    if let Some(bad) = given.chars().find(|c| c.is_whitespace() || c.is_control() || "/@?#%,;".contains(*c)) {
        return Err(if bad == '%' { BadHost::Zone } else { BadHost::Odd(bad) });
    }
    if let Some(rest) = given.strip_prefix('[') {
        let (inside, after) = rest.split_once(']').ok_or(BadHost::OpenBracket)?;
        let ip: Ipv6Addr = inside.parse().map_err(|_| BadHost::InBrackets(inside.to_owned()))?;
        let port = match after.strip_prefix(':') {
            Some(port) => parse_port(port)?,
            None if after.is_empty() => default_port,
            None => return Err(BadHost::AfterBracket(after.to_owned())),
        };
        return Ok((Host::Ip(ip.into()), port));
    }
    if let Ok(ip) = given.parse() {
        return Ok((Host::Ip(ip), default_port));
    }
    let (host, port) = match given.split_once(':') {
        None => (given, default_port),
        Some((_, rest)) if rest.contains(':') => {
            return Err(BadHost::NotIpv6);
        }
        Some((host, port)) => (host, parse_port(port)?),
    };
    match host.parse::<Ipv4Addr>() {
        Ok(ip) => Ok((Host::Ip(ip.into()), port)),
        Err(_) => Ok((Host::Name(parse_name(host)?), port)),
    }
}

fn parse_port(port: &str) -> Result<u16, BadHost> {
    // Digits alone: `+1` would parse as a number too.
    let digits = port.bytes().all(|b| b.is_ascii_digit());
    port.parse()
        .ok()
        .filter(|&number: &u16| digits && number > 0)
        .ok_or_else(|| BadHost::Port(port.to_owned()))
}

fn parse_name(host: &str) -> Result<String, BadHost> {
    if !host.is_ascii() {
        return Err(BadHost::NotAscii);
    }
    if host.len() > LONGEST.0 {
        return Err(BadHost::LongName { length: host.len() });
    }
    let labels: Vec<&str> = host.strip_suffix('.').unwrap_or(host).split('.').collect();
    if labels.last().is_some_and(|last| !last.is_empty() && last.bytes().all(|b| b.is_ascii_digit())) {
        return Err(BadHost::NotIpv4);
    }
    for label in labels {
        if label.is_empty() {
            return Err(BadHost::EmptyPart);
        }
        let odd = |c: char| !(c.is_ascii_alphanumeric() || c == '-' || c == '_');
        if let Some(odd) = label.chars().find(|c| odd(*c)) {
            return Err(BadHost::OddInName(odd));
        }
        if label.len() > LONGEST.1 {
            return Err(BadHost::LongPart { length: label.len() });
        }
        if label.starts_with('-') || label.ends_with('-') {
            return Err(BadHost::Hyphen(label.to_owned()));
        }
    }
    Ok(host.to_ascii_lowercase())
}

/// Why the input is neither a name nor an address: the end of a sentence that starts with it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum BadHost {
    #[error("is empty; use a name or an address, such as node1 or 10.0.0.1:7646")]
    Empty,
    #[error("begins with {scheme}://; use only {host}")]
    Url { scheme: String, host: String },
    #[error("has a zone; link-local addresses cannot be used here")]
    Zone,
    #[error("contains {0:?}, which is not allowed in a name or an address")]
    Odd(char),
    #[error("contains {0:?}, which is not allowed in a name")]
    OddInName(char),
    #[error("has a [ without its ]")]
    OpenBracket,
    #[error("has {0:?} in brackets, which is not an IPv6 address")]
    InBrackets(String),
    #[error("has {0:?} after the ]; only :PORT may follow")]
    AfterBracket(String),
    #[error("is not an IPv6 address; with a port, write [fd00::1]:7646")]
    NotIpv6,
    #[error("is not an IPv4 address, and no name ends in a number")]
    NotIpv4,
    #[error("has the port {0:?}, which is not a number from 1 to 65535")]
    Port(String),
    #[error("is not ASCII; use the form that begins with xn--")]
    NotAscii,
    #[error("is {length} bytes long; a name may have at most {}", LONGEST.0)]
    LongName { length: usize },
    #[error("has no name before the port, or two dots in a row")]
    EmptyPart,
    #[error("has a label of {length} bytes; the limit is {}", LONGEST.1)]
    LongPart { length: usize },
    #[error("has the label {0:?}, which begins or ends with a hyphen")]
    Hyphen(String),
}

/// Why a name has no address.
#[derive(Debug, thiserror::Error)]
pub(crate) enum LookupError {
    #[error("it is a name without an address")]
    None,
    #[error("no name server answered")]
    TimedOut,
    // std's prefix of libc's message adds nothing.
    #[error("{}", shown(.0))]
    Refused(io::Error),
    #[error("no thread for it: {0}")]
    Thread(io::Error),
}

/// libc's message alone.
fn shown(error: &io::Error) -> String {
    let words = error.to_string();
    words.strip_prefix("failed to lookup address information: ").unwrap_or(&words).to_owned()
}

/// Why there are no addresses.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ResolveError {
    /// The input is neither a name nor an address.
    #[error("{given:?} {why}")]
    Syntax { given: String, why: BadHost },
    /// The name has no addresses, or there was no answer in time.
    #[error(
        "cannot resolve {name}: {why}; check the spelling, /etc/hosts and /etc/resolv.conf, or use an address"
    )]
    Failed { name: String, why: LookupError },
}
