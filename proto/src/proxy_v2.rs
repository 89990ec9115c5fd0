//! The PROXY protocol, version 2: tells a backend the client's address.

use std::net::{IpAddr, SocketAddr};

/// Start of every header (section 2.2 of haproxy's proxy-protocol.txt).
const SIGNATURE: [u8; 12] = *b"\r\n\r\n\0\r\nQUIT\n";

/// Version 2, and "on behalf of another".
const PROXY: u8 = 0x21;

/// The header for a TCP connection from `client` that was accepted at `listener`.
pub fn header(client: SocketAddr, listener: SocketAddr) -> Vec<u8> {
    let mut bytes = SIGNATURE.to_vec();
    let (from, to) = (client.ip().to_canonical(), listener.ip().to_canonical());
    match (from, to) {
        (IpAddr::V4(from), IpAddr::V4(to)) => {
            bytes.extend([PROXY, 0x11, 0, 12]);
            bytes.extend(from.octets());
            bytes.extend(to.octets());
        }
        // Both need one family: IPv4 is written as IPv6.
        _ => {
            let wide = |ip| match ip {
                IpAddr::V4(ip) => ip.to_ipv6_mapped(),
                IpAddr::V6(ip) => ip,
            };
            bytes.extend([PROXY, 0x21, 0, 36]);
            bytes.extend(wide(from).octets());
            bytes.extend(wide(to).octets());
        }
    }
    bytes.extend(client.port().to_be_bytes());
    bytes.extend(listener.port().to_be_bytes());
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn headers_match_the_specification() {
        let of = |client: &str, listener: &str| header(client.parse().unwrap(), listener.parse().unwrap());
        let start = b"\x0d\x0a\x0d\x0a\x00\x0d\x0a\x51\x55\x49\x54\x0a\x21";
        let four = of("10.1.2.3:258", "127.0.0.1:16443");
        assert_eq!(four[..13], start[..]);
        assert_eq!(four[13..], [0x11, 0, 12, 10, 1, 2, 3, 127, 0, 0, 1, 1, 2, 0x40, 0x3b]);
        let six = of("[fd00::1]:1", "[::1]:2");
        assert_eq!((six.len(), &six[13..18]), (16 + 36, &[0x21, 0, 36, 0xfd, 0][..]));
        assert_eq!(six[six.len() - 4..], [0, 1, 0, 2]);
        assert_eq!(of("[::ffff:10.1.2.3]:258", "127.0.0.1:16443"), four);
        assert_eq!(of("10.1.2.3:1", "[::1]:2").len(), 16 + 36);
    }
}
