//! Whether another machine answers at an address.

use std::io::{self, Read};
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use socket2::{Domain, Protocol, Socket, Type};
use tokio::io::unix::AsyncFd;

use crate::netlink::watched;

/// Echo requests that are sent, and the wait after each: what does not answer three in a row is not in use.
const TRIES: u16 = 3;
const WAIT: Duration = Duration::from_millis(200);

/// Marks our requests, besides their process's number.
const MARK: [u8; 6] = *b"agent?";

/// Whether something answers an echo request to an address within a moment. What can't be asked does not answer.
pub(super) async fn answers(to: IpAddr) -> bool {
    match ask(to).await {
        Ok(answered) => answered,
        Err(error) => {
            tracing::debug!("cannot ask whether {to} is in use: {error}");
            false
        }
    }
}

async fn ask(to: IpAddr) -> io::Result<bool> {
    let (domain, protocol) = match to {
        IpAddr::V4(_) => (Domain::IPV4, Protocol::ICMPV4),
        IpAddr::V6(_) => (Domain::IPV6, Protocol::ICMPV6),
    };
    let socket = Socket::new(domain, Type::RAW, Some(protocol))?;
    socket.set_nonblocking(true)?;
    // Nobody else's packets come in then.
    socket.connect(&SocketAddr::new(to, 0).into())?;
    let socket = watched(socket)?;
    let id = (std::process::id() & 0xffff) as u16;
    for sequence in 0..TRIES {
        socket.get_ref().send(&request(to, id, sequence))?;
        if let Ok(answered) = tokio::time::timeout(WAIT, answer(&socket, to, id)).await {
            answered?;
            return Ok(true);
        }
    }
    Ok(false)
}

async fn answer(socket: &AsyncFd<Socket>, to: IpAddr, id: u16) -> io::Result<()> {
    let mut buffer = [0; 256];
    loop {
        let mut ready = socket.readable().await?;
        match ready.try_io(|socket| socket.get_ref().read(&mut buffer)) {
            Err(_would_block) => {}
            Ok(length) => {
                let length = length?;
                if buffer.get(..length).is_some_and(|bytes| is_answer(bytes, to, id)) {
                    return Ok(());
                }
            }
        }
    }
}

/// An echo request. The kernel adds the checksum of IPv6.
fn request(to: IpAddr, id: u16, sequence: u16) -> Vec<u8> {
    let kind = if to.is_ipv4() { 8 } else { 128 };
    let mut packet = vec![kind, 0, 0, 0];
    packet.extend_from_slice(&id.to_be_bytes());
    packet.extend_from_slice(&sequence.to_be_bytes());
    packet.extend_from_slice(&MARK);
    if to.is_ipv4() {
        let sum = packet.chunks(2).map(|pair| u32::from(u16::from_be_bytes([pair[0], pair[1]]))).sum::<u32>();
        let sum = (sum & 0xffff) + (sum >> 16);
        packet[2..4].copy_from_slice(&(!((sum & 0xffff) + (sum >> 16)) as u16).to_be_bytes());
    }
    packet
}

/// Whether this is the answer to one of ours. IPv4 comes with its header.
fn is_answer(packet: &[u8], from: IpAddr, id: u16) -> bool {
    let (start, kind) = match from {
        IpAddr::V4(_) => (packet.first().map_or(0, |first| usize::from(first & 15) * 4), 0),
        IpAddr::V6(_) => (0, 129),
    };
    let Some(echo) = packet.get(start..) else { return false };
    echo.first() == Some(&kind)
        && echo.get(4..6) == Some(&id.to_be_bytes()[..])
        && echo.get(8..14) == Some(&MARK[..])
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::testing::in_namespaces;

    #[test]
    fn who_answers_is_there_and_silence_is_nobody() {
        let test = "vip::node_local::ping::tests::who_answers_is_there_and_silence_is_nobody";
        let setup = "ip link set lo up; ip addr add 10.91.91.50/32 dev lo; ip addr add fd91::50/128 dev lo nodad
            ip link add w0 type veth peer name w1; ip addr add 10.9.0.1/24 dev w0; ip link set w0 up; ip link set w1 up";
        if in_namespaces(test, &["--net"], setup).is_none() {
            return;
        }
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            for (at, there) in
                [("10.91.91.50", true), ("fd91::50", true), ("10.9.0.2", false), ("fd92::1", false)]
            {
                assert_eq!(answers(at.parse().unwrap()).await, there, "{at}");
            }
        });
    }

    proptest! {
        #[test]
        fn no_packet_makes_it_panic(bytes in proptest::collection::vec(any::<u8>(), 0..80)) {
            is_answer(&bytes, [10, 0, 0, 1].into(), 1);
            is_answer(&bytes, [1; 16].into(), 1);
        }
    }
}
