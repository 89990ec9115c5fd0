//! What listens on this machine, whoever's it is: as `ss -ltn` has it.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use proto::front::HostListener;

use rustix::io::Errno;

use super::{DIAG, Netlink, attribute, errno, family, octets};

/// `SOCK_DIAG_BY_FAMILY`.
const BY_FAMILY: u16 = 20;
const TCP: u8 = 6;
/// `TCP_LISTEN`.
const LISTEN: u8 = 10;
/// That alone.
const STATES: u32 = 1 << LISTEN;
/// `inet_diag_msg`, which attributes follow.
const MESSAGE: usize = 72;
/// `INET_DIAG_SKV6ONLY`.
const ONLY_V6: u16 = 11;
/// `AF_INET` and `AF_INET6`.
const FAMILIES: [u8; 2] = [2, 10];

/// Any cookie, in the place of a socket's own.
const ANY: [u8; 8] = [0xff; 8];

/// Asks whether clients of an address reach anyone. Its socket stays open: it is asked several times a second.
#[derive(Default)]
pub(crate) struct ListenerLookup {
    netlink: Option<Netlink>,
    /// What was found last, of this round of questions.
    found: Option<HostListener>,
}

impl ListenerLookup {
    /// A round of questions begins: a listener that takes the clients of several addresses is looked for once.
    pub(crate) fn begin(&mut self) {
        self.found = None;
    }

    /// Whether a socket of this machine listens for clients of `at`, whoever's it is; `None`: the kernel does not say.
    pub(crate) fn listens(&mut self, at: SocketAddr) -> Option<bool> {
        if self.found.is_some_and(|found| found.takes(at.ip(), at.port())) {
            return Some(true);
        }
        if self.netlink.is_none() {
            self.netlink = Netlink::open(DIAG).ok();
        }
        match find(self.netlink.as_mut()?, at) {
            Ok(Some(found)) => {
                self.found = Some(found);
                Some(true)
            }
            // One that is bound to an interface is not found without its name.
            Ok(None) => Some(listeners().ok()?.into_iter().any(|one| one.takes(at.ip(), at.port()))),
            Err(_) => {
                self.netlink = None;
                None
            }
        }
    }
}

/// Has the kernel look for the socket that a client of `at` would reach, as for a connection. That costs one question,
/// where a list of all that listen goes through the whole table.
fn find(netlink: &mut Netlink, at: SocketAddr) -> io::Result<Option<HostListener>> {
    let mut question = vec![family(at.ip()), TCP, 0, 0];
    question.extend_from_slice(&STATES.to_ne_bytes());
    // Ports of the listener and of the client, who is nobody.
    question.extend_from_slice(&at.port().to_be_bytes());
    question.extend_from_slice(&[0; 2]);
    question.extend_from_slice(&octets(at.ip()));
    question.resize(8 + 4 + 2 * 16 + 4, 0);
    question.extend_from_slice(&ANY);
    let listens =
        |kind, body: &[u8]| read(body).filter(|_| kind == BY_FAMILY && body.get(1) == Some(&LISTEN));
    match netlink.get(BY_FAMILY, &question, listens) {
        Err(error) if errno(&error) == Some(Errno::NOENT) => Ok(None),
        found => found,
    }
}

/// All TCP sockets that listen in this network.
///
/// # Errors
/// The kernel's: it may have no inet_diag.
fn listeners() -> io::Result<Vec<HostListener>> {
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
        let mut netlink = Netlink::open(DIAG).unwrap();
        let clients = ["10.9.0.50", "127.0.0.1", "fd09::50", "::1"];
        for (socket, expected) in &sockets {
            assert!(!found(expected), "bound only: {expected:?}");
            socket.listen(1).unwrap();
            assert!(found(expected), "{expected:?} is not among {:?}", listeners().unwrap());
            for client in clients {
                let at = SocketAddr::new(client.parse().unwrap(), expected.address.port());
                let takes = expected.takes(at.ip(), at.port());
                let found = find(&mut netlink, at).unwrap();
                assert_eq!(found, Some(*expected).filter(|_| takes), "{at} at {expected:?}");
                assert_eq!(ListenerLookup::default().listens(at), Some(takes), "{at} at {expected:?}");
            }
        }
    }

    #[test]
    fn a_round_looks_for_a_listener_of_all_addresses_once() {
        let listener = std::net::TcpListener::bind("0.0.0.0:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let (one, other) =
            (SocketAddr::from(([10, 9, 0, 50], port)), SocketAddr::from(([10, 9, 0, 51], port)));
        let mut lookup = ListenerLookup::default();
        assert_eq!(lookup.listens(one), Some(true));
        drop(listener);
        assert_eq!(lookup.listens(other), Some(true), "in this round");
        lookup.begin();
        assert_eq!([one, other].map(|at| lookup.listens(at)), [Some(false); 2]);
    }

    #[test]
    fn one_on_an_interface_is_found_too() {
        let listener = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
        listener.bind_device(Some(b"lo")).unwrap();
        listener.bind(&SocketAddr::from(([0, 0, 0, 0], 0)).into()).unwrap();
        listener.listen(1).unwrap();
        let port = listener.local_addr().unwrap().as_socket().unwrap().port();
        assert_eq!(ListenerLookup::default().listens(SocketAddr::from(([10, 9, 0, 50], port))), Some(true));
    }
}
