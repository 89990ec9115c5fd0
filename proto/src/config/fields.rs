//! The meaning of single values, the same in the file and in the environment.

use std::net::{IpAddr, SocketAddr};
use std::ops::RangeInclusive;
use std::time::Duration;

use super::error::BadValue;
use crate::time::parse_duration;

/// Longest runtime directory: a socket's path may have 107 bytes (unix(7)), and a name follows.
const MAX_RUNTIME_DIR: usize = 80;

/// A value as it is shown in a message: never longer than a line.
pub(super) fn shown(text: &str) -> String {
    text.chars().take(60).map(|c| if c.is_control() { '?' } else { c }).collect()
}

/// One of a few words.
pub(super) fn one_of<T, const N: usize>(
    text: &str,
    what: &'static str,
    words: [(&'static str, T); N],
) -> Result<T, BadValue> {
    let known = words.each_ref().map(|(word, _)| *word);
    match words.into_iter().find(|(word, _)| *word == text) {
        Some((_, value)) => Ok(value),
        None => Err(BadValue::NotOneOf {
            text: shown(text),
            what,
            nearest: super::mistake::nearest(text, &known),
            known: known.to_vec(),
        }),
    }
}

/// An address that others can reach this node at.
pub(super) fn reachable(text: &str) -> Result<IpAddr, BadValue> {
    let ip = ip(text)?;
    if ip.is_unspecified() || ip.is_multicast() {
        return Err(BadValue::Unreachable(ip));
    }
    Ok(ip)
}

/// Any address.
pub(super) fn ip(text: &str) -> Result<IpAddr, BadValue> {
    text.parse().map_err(|_| BadValue::Ip(shown(text)))
}

/// An address and a port.
pub(super) fn socket(text: &str) -> Result<SocketAddr, BadValue> {
    let found = text.parse().ok().filter(|address: &SocketAddr| address.port() != 0);
    found.ok_or_else(|| BadValue::Socket(shown(text)))
}

/// An address and a port that others can dial.
pub(super) fn dialled(text: &str) -> Result<SocketAddr, BadValue> {
    let address = socket(text)?;
    reachable(&address.ip().to_string())?;
    Ok(address)
}

/// The name of a network interface.
pub(super) fn interface(text: &str) -> Result<String, BadValue> {
    // IFNAMSIZ is 16 with the closing zero; the kernel refuses these characters (dev_valid_name).
    let odd = |c: char| c.is_whitespace() || c.is_control() || c == '/' || c == ':';
    if text.is_empty() || text.len() > 15 || text == "." || text == ".." || text.contains(odd) {
        return Err(BadValue::Interface(shown(text)));
    }
    Ok(text.to_owned())
}

/// An absolute path.
pub(super) fn path(text: &str) -> Result<String, BadValue> {
    if !text.starts_with('/') || text.contains('\0') || text.len() > 4000 {
        return Err(BadValue::Path(shown(text)));
    }
    Ok(text.to_owned())
}

/// An absolute path of a directory that will hold a socket.
pub(super) fn runtime_dir(text: &str) -> Result<String, BadValue> {
    let path = path(text)?;
    if path.len() > MAX_RUNTIME_DIR {
        return Err(BadValue::RuntimeDir { bytes: path.len(), most: MAX_RUNTIME_DIR });
    }
    Ok(path)
}

/// A port.
pub(super) fn port(text: &str) -> Result<u16, BadValue> {
    text.parse().ok().filter(|port| *port != 0).ok_or_else(|| BadValue::Port(shown(text)))
}

/// The path that an HTTP check asks for.
pub(super) fn http_path(text: &str) -> Result<String, BadValue> {
    if !text.starts_with('/') || text.len() > 1024 || !text.bytes().all(|b| b.is_ascii_graphic()) {
        return Err(BadValue::HttpPath(shown(text)));
    }
    Ok(text.to_owned())
}

/// The name that a certificate must carry: a DNS name or an address.
pub(super) fn server_name(text: &str) -> Result<String, BadValue> {
    let label = |part: &str| {
        let inner = |b: u8| b.is_ascii_alphanumeric() || b == b'-' || b == b'_';
        (1..=63).contains(&part.len()) && part.bytes().all(inner)
    };
    let good = text.parse::<IpAddr>().is_ok() || (text.len() <= 253 && text.split('.').all(label));
    if good { Ok(text.to_owned()) } else { Err(BadValue::ServerName(shown(text))) }
}

/// A duration within bounds.
pub(super) fn duration(text: &str, bounds: RangeInclusive<Duration>) -> Result<Duration, BadValue> {
    let found = parse_duration(text).map_err(|_| BadValue::Duration(shown(text)))?;
    if bounds.contains(&found) {
        return Ok(found);
    }
    let (least, most) = bounds.into_inner();
    Err(BadValue::OutOfBounds { text: shown(text), found, least, most })
}
