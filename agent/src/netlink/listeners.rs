//! What listens on this machine, whoever's it is: as `ss -ltn` has it.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use proto::front::HostListener;

use super::{DIAG, Netlink, attribute};

/// `SOCK_DIAG_BY_FAMILY`.
const BY_FAMILY: u16 = 20;
const TCP: u8 = 6;
/// `TCP_LISTEN` alone.
const STATES: u32 = 1 << 10;
/// `inet_diag_msg`, which attributes follow.
const MESSAGE: usize = 72;
/// `INET_DIAG_SKV6ONLY`.
const ONLY_V6: u16 = 11;
/// `AF_INET` and `AF_INET6`.
const FAMILIES: [u8; 2] = [2, 10];

/// All TCP sockets that listen in this network.
///
/// # Errors
/// The kernel's: it may have no inet_diag.
pub(crate) fn listeners() -> io::Result<Vec<HostListener>> {
    let mut netlink = Netlink::open(DIAG)?;
    let mut all = Vec::new();
    for family in FAMILIES {
        let mut question = vec![family, TCP, 0, 0];
        question.extend_from_slice(&STATES.to_ne_bytes());
        question.resize(question.len() + 48, 0);
        all.extend(netlink.dump(
            BY_FAMILY,
            &question,
            |kind, body| {
                if kind == BY_FAMILY { read(body) } else { None }
            },
        )?);
    }
    Ok(all)
}

fn read(body: &[u8]) -> Option<HostListener> {
    let port = u16::from_be_bytes(*body.get(4..)?.first_chunk()?);
    let ip = body.get(8..)?.first_chunk::<16>()?;
    let ip = match body.first()? {
        2 => IpAddr::V4(Ipv4Addr::from(*ip.first_chunk::<4>()?)),
        _ => IpAddr::V6(Ipv6Addr::from(*ip)),
    };
    let only_v6 = attribute(body.get(MESSAGE..)?, ONLY_V6).and_then(|value| value.first()) == Some(&1);
    Some(HostListener { address: SocketAddr::new(ip, port), only_v6 })
}

#[cfg(test)]
mod tests {
    use socket2::{Domain, Socket, Type};

    use super::*;

    #[test]
    fn what_listens_is_found_with_its_family() {
        let open = |text: &str, only_v6: Option<bool>| {
            let address: SocketAddr = text.parse().unwrap();
            let socket = Socket::new(Domain::for_address(address), Type::STREAM, None).unwrap();
            only_v6.into_iter().for_each(|only| socket.set_only_v6(only).unwrap());
            socket.bind(&address.into()).unwrap();
            let bound = socket.local_addr().unwrap().as_socket().unwrap();
            (socket, HostListener { address: bound, only_v6: only_v6 == Some(true) })
        };
        let sockets = [
            open("127.0.0.1:0", None),
            open("0.0.0.0:0", None),
            open("[::]:0", Some(true)),
            open("[::]:0", Some(false)),
        ];
        let found = |one: &HostListener| listeners().unwrap().contains(one);
        for (socket, expected) in &sockets {
            assert!(!found(expected), "bound only: {expected:?}");
            socket.listen(1).unwrap();
            assert!(found(expected), "{expected:?} is not among {:?}", listeners().unwrap());
        }
    }
}
