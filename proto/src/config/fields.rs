//! The meaning of single values, the same in the file and in the environment.

use std::net::{IpAddr, SocketAddr};
use std::ops::RangeInclusive;
use std::time::Duration;

use crate::time::{human, parse_duration};

/// Longest runtime directory: a socket's path may have 107 bytes (unix(7)), and a name follows.
pub(super) const MAX_RUNTIME_DIR: usize = 80;

/// A value as it is shown in a message: never longer than a line.
pub(super) fn shown(text: &str) -> String {
    text.chars().take(60).map(|c| if c.is_control() { '?' } else { c }).collect()
}

/// One of a few words.
pub(super) fn one_of<T, const N: usize>(
    text: &str,
    what: &str,
    words: [(&'static str, T); N],
) -> Result<T, String> {
    let known = words.each_ref().map(|(word, _)| *word);
    match words.into_iter().find(|(word, _)| *word == text) {
        Some((_, value)) => Ok(value),
        None => {
            let hint = super::mistake::nearest(text, &known)
                .map_or_else(String::new, |word| format!(" (did you mean {word}?)"));
            Err(format!("\"{}\" is not {what}{hint}: write one of {}", shown(text), known.join(", ")))
        }
    }
}

/// An address that others can reach this node at.
pub(super) fn reachable(text: &str) -> Result<IpAddr, String> {
    let ip = ip(text)?;
    if ip.is_unspecified() || ip.is_multicast() {
        return Err(format!("{ip} can't be reached by others: write this node's own address on the mesh"));
    }
    Ok(ip)
}

/// Any address.
pub(super) fn ip(text: &str) -> Result<IpAddr, String> {
    text.parse().map_err(|_| {
        format!("\"{}\" is not an IP address: write one as 10.0.0.1 or fd00::1, without a port", shown(text))
    })
}

/// An address and a port.
pub(super) fn socket(text: &str) -> Result<SocketAddr, String> {
    text.parse().ok().filter(|address: &SocketAddr| address.port() != 0).ok_or_else(|| {
        format!(
            "\"{}\" is not an address and a port: write it as 127.0.0.1:16443 or [::1]:16443",
            shown(text)
        )
    })
}

/// An address and a port that others can dial.
pub(super) fn dialled(text: &str) -> Result<SocketAddr, String> {
    let address = socket(text)?;
    reachable(&address.ip().to_string())?;
    Ok(address)
}

/// The name of a network interface.
pub(super) fn interface(text: &str) -> Result<String, String> {
    // IFNAMSIZ is 16 with the closing zero; the kernel refuses these characters (dev_valid_name).
    let odd = |c: char| c.is_whitespace() || c.is_control() || c == '/' || c == ':';
    if text.is_empty() || text.len() > 15 || text == "." || text == ".." || text.contains(odd) {
        return Err(format!(
            "\"{}\" is not the name of an interface: 1 to 15 characters, as wg0",
            shown(text)
        ));
    }
    Ok(text.to_owned())
}

/// An absolute path.
pub(super) fn path(text: &str) -> Result<String, String> {
    if !text.starts_with('/') || text.contains('\0') || text.len() > 4000 {
        return Err(format!("\"{}\" is not an absolute path: begin it with /", shown(text)));
    }
    Ok(text.to_owned())
}

/// An absolute path of a directory that will hold a socket.
pub(super) fn runtime_dir(text: &str) -> Result<String, String> {
    let path = path(text)?;
    if path.len() > MAX_RUNTIME_DIR {
        return Err(format!(
            "it has {} bytes: a directory for sockets may have at most {MAX_RUNTIME_DIR}",
            path.len()
        ));
    }
    Ok(path)
}

/// A port.
pub(super) fn port(text: &str) -> Result<u16, String> {
    text.parse()
        .ok()
        .filter(|port| *port != 0)
        .ok_or_else(|| format!("\"{}\" is not a port: write a number from 1 to 65535", shown(text)))
}

/// The path that an HTTP check asks for.
pub(super) fn http_path(text: &str) -> Result<String, String> {
    if !text.starts_with('/') || text.len() > 1024 || !text.bytes().all(|b| b.is_ascii_graphic()) {
        return Err(format!(
            "\"{}\" is not a path to ask for: begin it with /, without spaces, as /readyz",
            shown(text)
        ));
    }
    Ok(text.to_owned())
}

/// The name that a certificate must carry: a DNS name or an address.
pub(super) fn server_name(text: &str) -> Result<String, String> {
    let label = |part: &str| {
        let inner = |b: u8| b.is_ascii_alphanumeric() || b == b'-' || b == b'_';
        (1..=63).contains(&part.len()) && part.bytes().all(inner)
    };
    let good = text.parse::<IpAddr>().is_ok() || (text.len() <= 253 && text.split('.').all(label));
    if good {
        Ok(text.to_owned())
    } else {
        Err(format!("\"{}\" is not a name that a certificate can carry, as kubernetes", shown(text)))
    }
}

/// A duration within bounds.
pub(super) fn duration(text: &str, bounds: RangeInclusive<Duration>) -> Result<Duration, String> {
    let found = parse_duration(text).map_err(|_| {
        format!("\"{}\" is not a duration: write a number and ms, s, m, h or d, as 500ms", shown(text))
    })?;
    if bounds.contains(&found) {
        return Ok(found);
    }
    let side = if found < *bounds.start() { "too short" } else { "too long" };
    Err(format!(
        "{} is {side}: write something from {} to {}",
        shown(text),
        human(*bounds.start()),
        human(*bounds.end())
    ))
}
