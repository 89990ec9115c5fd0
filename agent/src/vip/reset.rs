//! Ends the connections of an address that is about to go, so that clients get a reset and not silence:
//! what `ss -K src ADDRESS` does.

use std::net::IpAddr;
use std::time::{Duration, Instant};

use crate::netlink::{DIAG, Netlink, family, octets, put};

const BY_FAMILY: u16 = 20;
const DESTROY: u16 = 21;
const TCP: u8 = 6;
/// All states but LISTEN, TIME_WAIT and CLOSE: whoever serves goes on listening.
const STATES: u32 = 0xfff & !(1 << 10 | 1 << 6 | 1 << 7);
/// The part of a socket's description that names it.
const ID: usize = 48;

/// The address is wanted elsewhere: what is not ended by then dies in silence.
const BUDGET: Duration = Duration::from_millis(30);

/// Resets this node's TCP connections that use `ip`; returns how many. It never takes long, and a kernel
/// that can't (CONFIG_INET_DIAG_DESTROY) leaves them be.
pub(super) fn reset_connections(ip: IpAddr) -> usize {
    let began = Instant::now();
    let mut ended = 0;
    let Ok(mut netlink) = Netlink::open(DIAG) else { return 0 };
    // A listener of both families has sockets of IPv6 for clients of IPv4.
    for family in [2, 10] {
        let question = diag_request(family, &[0; ID], Some(ip));
        let found = netlink.dump(BY_FAMILY, &question, |kind, body| {
            let id = body.get(4..)?.first_chunk::<ID>()?;
            (kind == BY_FAMILY).then_some(*id)
        });
        let found = found.unwrap_or_else(|error| {
            tracing::debug!("cannot list the connections of {ip}: {error}");
            Vec::new()
        });
        for id in found {
            if began.elapsed() > BUDGET {
                return ended;
            }
            match netlink.request(DESTROY, 0, &self::diag_request(family, &id, None)) {
                Ok(()) => ended += 1,
                // It has ended by itself meanwhile, or this kernel can't.
                Err(error) => tracing::debug!("cannot reset a connection of {ip}: {error}"),
            }
        }
    }
    ended
}

/// The kernel's `inet_diag_req_v2`, with a condition on the local address.
fn diag_request(of: u8, id: &[u8; ID], local: Option<IpAddr>) -> Vec<u8> {
    let mut body = vec![of, TCP, 0, 0];
    body.extend_from_slice(&STATES.to_ne_bytes());
    body.extend_from_slice(id);
    if let Some(ip) = local {
        // One instruction: source address, whole, any port. Yes leads to its end, no beyond it.
        let address = octets(ip);
        let length = 12 + address.len();
        let mut code = vec![7, length as u8];
        code.extend_from_slice(&((length + 4) as u16).to_ne_bytes());
        code.extend_from_slice(&[family(ip), address.len() as u8 * 8, 0, 0]);
        code.extend_from_slice(&(-1i32).to_ne_bytes());
        code.extend_from_slice(&address);
        put(&mut body, 1, &code);
    }
    body
}

#[cfg(test)]
mod tests {
    use std::io::Read;
    use std::net::{TcpListener, TcpStream};

    use super::*;
    use crate::testing::in_namespaces;

    #[test]
    fn connections_of_the_address_are_reset_and_no_others() {
        let test = "vip::reset::tests::connections_of_the_address_are_reset_and_no_others";
        let setup =
            "ip link set lo up; ip addr add 10.9.0.50/32 dev lo; ip addr add fd09::50/128 dev lo nodad";
        if in_namespaces(test, &["--net"], setup).is_none() {
            return;
        }
        for (listen, vip, other) in [
            ("0.0.0.0:0", "10.9.0.50", "127.0.0.1"),
            ("[::]:0", "10.9.0.50", "127.0.0.1"),
            ("[::]:0", "fd09::50", "::1"),
        ] {
            let listener = TcpListener::bind(listen).unwrap();
            let port = listener.local_addr().unwrap().port();
            let connect = |to: &str| {
                let to: IpAddr = to.parse().unwrap();
                let client = TcpStream::connect((to, port)).unwrap();
                client.set_read_timeout(Some(Duration::from_millis(300))).unwrap();
                (client, listener.accept().unwrap().0)
            };
            let (mut lost, _a) = connect(vip);
            let (mut kept, _b) = connect(other);
            assert!(reset_connections(vip.parse().unwrap()) >= 1, "{listen} {vip}");
            let reset = lost.read(&mut [0]).unwrap_err();
            // Severed from both ends here, where client and server are one node.
            use std::io::ErrorKind::{ConnectionAborted, ConnectionReset};
            assert!([ConnectionReset, ConnectionAborted].contains(&reset.kind()), "{reset:?}");
            let silent = kept.read(&mut [0]).unwrap_err();
            assert_eq!(silent.kind(), std::io::ErrorKind::WouldBlock);
            let (_, _c) = connect(vip);
        }
    }
}
