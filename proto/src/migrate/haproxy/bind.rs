//! `bind`: where haproxy listens.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use super::super::notes::LineOutcome::{self, Automatic, Kept, NotDone, Wrong};
use super::super::notes::{FileReport, KeywordRow, fits};
use super::super::words::WordLine;
use super::known::BIND;
use super::proxy::{Proxy, param, put_number};
use super::syntax;

/// What lets only some clients in, or wants a header before their bytes: a listener without it would be open, or
/// would pass the header on as if the client had said it.
const RESTRICTING: [(&str, &str); 4] = [
    ("accept-proxy", "the agent does not read PROXY headers, so the listener is not written"),
    ("accept-netscaler-cip", "the agent does not read this header, so the listener is not written"),
    ("interface", "it is for clients of one interface, and the agent's would be for all: write its address"),
    ("namespace", "the agent listens in its own namespace alone, so the listener is not written"),
];

/// Reads a line of `bind` into a proxy. `vips` are the addresses that keepalived moves.
pub(super) fn read(line: &WordLine, proxy: &mut Proxy, vips: &[IpAddr], account: &mut FileReport) {
    let restricting = RESTRICTING.iter().find(|(word, _)| line.words.iter().skip(2).any(|one| one == word));
    let only_six = line.words.iter().any(|word| word == "v6only");
    for part in line.word(1).split(',').filter(|part| !part.is_empty()) {
        match place(part, only_six) {
            Ok(_) if restricting.is_some() => {
                let reason = restricting.map_or("", |(_, reason)| reason);
                account.add(line.number, &format!("bind {part}"), NotDone, reason);
            }
            Ok(all) => listen(line, part, &all, proxy, vips, account),
            Err((verdict, reason)) => account.add(line.number, &format!("bind {part}"), verdict, reason),
        }
    }
    if line.word(1).is_empty() {
        account.add(line.number, &line.shown(), Wrong, "no address; write bind 127.0.0.1:16443");
    }
    let mut at = 2;
    while at < line.words.len() {
        let word = line.word(at);
        if let Some(reason) = syntax::refused_bind_parameter(word, line.word(at + 1)) {
            account.add(line.number, &line.shown_from(at, 2), Wrong, reason);
            at += 2;
            continue;
        }
        at += if word == "maxconn" {
            put_number(line, at, "maxconn", 1..=1_048_576, proxy, account);
            2
        } else {
            let told =
                |row: &KeywordRow| !row.2.is_empty() && !RESTRICTING.iter().any(|(one, _)| *one == row.0);
            param(line, at, BIND, told, account)
        };
    }
}

/// Listens at what a part of `bind` means.
fn listen(
    line: &WordLine,
    part: &str,
    all: &[SocketAddr],
    proxy: &mut Proxy,
    vips: &[IpAddr],
    account: &mut FileReport,
) {
    let mut places = all.to_vec();
    let mut reason = match all {
        [one] => format!("listens on {one}"),
        _ => "listens on both families, as haproxy does without v6only".to_owned(),
    };
    if let [address] = all
        && vips.contains(&address.ip())
    {
        // The address comes and goes, and a listener on all addresses is what a candidate needs.
        let any =
            if address.is_ipv4() { IpAddr::V4(Ipv4Addr::UNSPECIFIED) } else { Ipv6Addr::UNSPECIFIED.into() };
        places = vec![SocketAddr::new(any, address.port())];
        reason = format!("as {}: the virtual IP comes and goes", places[0]);
    }
    if places.iter().any(|place| place.port() == 6443 && place.ip().is_unspecified()) {
        reason.push_str("; only on nodes without an apiserver, which uses 6443 itself");
    }
    account.add(line.number, &format!("bind {part}"), Kept, reason);
    for place in places {
        if !proxy.listen.iter().any(|(known, _)| *known == place) {
            proxy.listen.push((place, line.number));
        }
    }
}

/// The addresses that one part of `bind` means.
///
/// haproxy listens on both families at `:::PORT` unless the line says `v6only` (its manual, 5.1; the kernel's
/// `bindv6only` is off).
pub(super) fn place(text: &str, only_six: bool) -> Result<Vec<SocketAddr>, (LineOutcome, String)> {
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
    // A sign is none of a port's.
    let digits = !port.is_empty() && port.bytes().all(|b| b.is_ascii_digit());
    let port: u16 = port.parse().ok().filter(|port| digits && *port != 0).ok_or_else(wrong)?;
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
    let mut all = vec![SocketAddr::new(ip, port)];
    if ip == IpAddr::V6(Ipv6Addr::UNSPECIFIED) && !only_six {
        all.insert(0, SocketAddr::new(Ipv4Addr::UNSPECIFIED.into(), port));
    }
    Ok(all)
}

/// Whether TLS is ended there.
pub(super) fn ends_tls(line: &WordLine) -> bool {
    line.words.iter().skip(2).any(|word| word == "ssl" || fits("crt*", word))
}

/// What the page takes of a line: its addresses alone.
pub(super) fn page(line: &WordLine, account: &mut FileReport) -> Vec<SocketAddr> {
    let mut all = Vec::new();
    for part in line.word(1).split(',').filter(|part| !part.is_empty()) {
        match place(part, line.words.iter().any(|word| word == "v6only")) {
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
