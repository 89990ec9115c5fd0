//! What counts as one client where clients are limited.

use std::net::{IpAddr, Ipv4Addr};

/// One client, as far as addresses show: an IPv4 address, or all of an IPv6 /64, since a host with one
/// address of it has 2^64 (RFC 6177 gives a site even more). This machine itself is a kind of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum ClientSource {
    /// This machine.
    Loopback,
    /// An IPv4 address.
    V4(Ipv4Addr),
    /// The first 64 bits of an IPv6 address.
    V6(u64),
}

impl ClientSource {
    /// The client of an address.
    pub(crate) fn of(address: IpAddr) -> ClientSource {
        // An IPv4 client of a dual-stack socket (RFC 4291, 2.5.5.2).
        match address.to_canonical() {
            address if address.is_loopback() => ClientSource::Loopback,
            IpAddr::V4(address) => ClientSource::V4(address),
            IpAddr::V6(address) => ClientSource::V6((u128::from(address) >> 64) as u64),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_ipv6_client_is_its_64_and_this_machine_is_one() {
        let of = |text: &str| ClientSource::of(text.parse().unwrap());
        assert_eq!(of("2001:db8:1:2::1"), of("2001:db8:1:2:ffff::9"));
        assert_ne!(of("2001:db8:1:2::1"), of("2001:db8:1:3::1"));
        assert_eq!(of("::ffff:192.0.2.1"), of("192.0.2.1"));
        assert_ne!(of("192.0.2.1"), of("192.0.2.2"));
        for own in ["127.0.0.1", "127.9.9.9", "::1", "::ffff:127.0.0.1"] {
            assert_eq!(of(own), ClientSource::Loopback, "{own}");
        }
    }
}
