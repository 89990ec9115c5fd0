//! `bind`: where haproxy listens.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use super::super::notes::LineOutcome::{Automatic, Kept, NotDone, Wrong};
use super::super::notes::{FileReport, fits};
use super::super::words::WordLine;
use super::known::BIND;
use super::proxy::{Proxy, param, put_number};

const NO_VARIABLES: &str = "variables are not expanded; write the value and run this again";

/// Reads a line of `bind` into a proxy. `vips` are the addresses that keepalived moves.
pub(super) fn read(line: &WordLine, proxy: &mut Proxy, vips: &[IpAddr], account: &mut FileReport) {
    let both = line.words.iter().any(|word| word == "v4v6");
    for part in line.word(1).split(',').filter(|part| !part.is_empty()) {
        match place(part) {
            Ok(all) => {
                for address in all {
                    listen(line, address, both, proxy, vips, account);
                }
            }
            Err((verdict, reason)) => account.add(line.number, &format!("bind {part}"), verdict, reason),
        }
    }
    if line.word(1).is_empty() {
        account.add(line.number, &line.shown(), Wrong, "no address; write bind 127.0.0.1:16443");
    }
    let mut at = 2;
    while at < line.words.len() {
        let word = line.word(at);
        at += if word == "maxconn" {
            put_number(line, at, "maxconn", 1..=1_048_576, proxy, account);
            2
        } else {
            param(line, at, BIND, |row| !row.2.is_empty(), account)
        };
    }
}

fn listen(
    line: &WordLine,
    address: SocketAddr,
    both: bool,
    proxy: &mut Proxy,
    vips: &[IpAddr],
    account: &mut FileReport,
) {
    let shown = format!("bind {address}");
    let mut places = vec![address];
    let mut reason = format!("listens on {address}");
    if vips.contains(&address.ip()) {
        // The address comes and goes, and a listener on all addresses is what a candidate needs.
        let any =
            if address.is_ipv4() { IpAddr::V4(Ipv4Addr::UNSPECIFIED) } else { Ipv6Addr::UNSPECIFIED.into() };
        places = vec![SocketAddr::new(any, address.port())];
        reason = format!("as {}: the virtual IP comes and goes", places[0]);
    } else if both && address.ip() == IpAddr::V6(Ipv6Addr::UNSPECIFIED) {
        places.push(SocketAddr::new(Ipv4Addr::UNSPECIFIED.into(), address.port()));
        reason = "for both families".to_owned();
    }
    if places.iter().any(|place| place.port() == 6443 && place.ip().is_unspecified()) {
        reason.push_str("; only on nodes without an apiserver, which uses 6443 itself");
    }
    account.add(line.number, &shown, Kept, reason);
    for place in places {
        if !proxy.listen.iter().any(|(known, _)| *known == place) {
            proxy.listen.push((place, line.number));
        }
    }
}

/// The addresses that one part of `bind` means.
pub(super) fn place(text: &str) -> Result<Vec<SocketAddr>, (super::super::notes::LineOutcome, String)> {
    if text.contains('$') {
        return Err((NotDone, NO_VARIABLES.to_owned()));
    }
    if text.starts_with('/')
        || ["unix@", "abns@", "abnsz@", "fd@", "sockpair@", "quic"]
            .iter()
            .any(|begin| text.starts_with(begin))
    {
        return Err((NotDone, "the agent listens on TCP ports only".to_owned()));
    }
    let wrong = || (Wrong, "not an address with a port; write it as 127.0.0.1:16443".to_owned());
    let text = text.strip_prefix("ipv4@").or_else(|| text.strip_prefix("tcp@")).unwrap_or(text);
    let (text, six) = text.strip_prefix("ipv6@").map_or((text, false), |text| (text, true));
    let (host, port) = text.rsplit_once(':').ok_or_else(wrong)?;
    if port.contains('-') {
        return Err((NotDone, "a range of ports; write a service for each port".to_owned()));
    }
    let port: u16 = port.parse().ok().filter(|port| *port != 0).ok_or_else(wrong)?;
    let host = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host);
    let ip: IpAddr = match host {
        "" | "*" if six => Ipv6Addr::UNSPECIFIED.into(),
        "" | "*" => Ipv4Addr::UNSPECIFIED.into(),
        "localhost" => Ipv4Addr::LOCALHOST.into(),
        "::" => Ipv6Addr::UNSPECIFIED.into(),
        host => host.parse().map_err(|_| {
            let name = host.chars().all(|c| c.is_ascii_alphanumeric() || c == '-' || c == '.');
            let numbers = host.chars().all(|c| c.is_ascii_digit() || c == '.');
            if name && !numbers {
                (NotDone, "a name; write its address on this node".to_owned())
            } else {
                wrong()
            }
        })?,
    };
    Ok(vec![SocketAddr::new(ip, port)])
}

/// Whether TLS is ended there.
pub(super) fn ends_tls(line: &WordLine) -> bool {
    line.words.iter().skip(2).any(|word| word == "ssl" || fits("crt*", word))
}

/// What the page takes of a line: its addresses alone.
pub(super) fn page(line: &WordLine, account: &mut FileReport) -> Vec<SocketAddr> {
    let mut all = Vec::new();
    for part in line.word(1).split(',').filter(|part| !part.is_empty()) {
        match place(part) {
            Ok(places) => all.extend(places),
            Err((verdict, reason)) => account.add(line.number, &format!("bind {part}"), verdict, reason),
        }
    }
    if ends_tls(line) {
        account.add(
            line.number,
            "ssl",
            NotDone,
            "the page is plain HTTP; reach it through the mesh or ssh -L",
        );
    }
    if all.is_empty() {
        account.add(line.number, &line.shown(), Automatic, "it stays on 127.0.0.1:1936");
    }
    all
}
