//! Datagrams as they cross an interface, and a minimal member that speaks the protocol.

use std::collections::BTreeMap;
use std::io::{ErrorKind, Read};
use std::net::IpAddr;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow};
use proto::node::{NodeId, PublicKey};
use proto::seal::{DatagramKey, PairSecret};
use proto::transport::{DatagramFrame, DatagramHeader, HEADER_LEN, KeyHint, TAG_LEN};
use ring::signature::{Ed25519KeyPair, KeyPair};
use socket2::{Domain, Protocol, Socket, Type};

use crate::lab::Node;

/// The number of "every protocol" (ETH_P_ALL), in network byte order as packet(7) wants it.
const EVERY_PROTOCOL: i32 = 0x0003_u16.to_be() as i32;

/// A UDP datagram.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Datagram {
    /// The source.
    pub from: IpAddr,
    /// The destination.
    pub to: IpAddr,
    /// Source port.
    pub from_port: u16,
    /// Destination port.
    pub to_port: u16,
    /// The payload.
    pub payload: Vec<u8>,
}

/// Records the datagrams from and to a port that cross a node's interfaces, for `span`, or for less where
/// what it has is `enough`.
///
/// # Errors
/// No packet socket can be had.
pub fn record(
    node: &Node,
    port: u16,
    span: Duration,
    enough: impl Fn(&[Datagram]) -> bool,
) -> Result<Vec<Datagram>> {
    let mut socket = node.inside(|| {
        // Cooked: no link header, so that a tunnel and an Ethernet look the same.
        Ok(Socket::new(Domain::PACKET, Type::DGRAM, Some(Protocol::from(EVERY_PROTOCOL)))?)
    })?;
    socket.set_read_timeout(Some(Duration::from_millis(100)))?;
    let (began, mut found, mut buffer) = (Instant::now(), Vec::new(), [0; 65536]);
    while began.elapsed() < span && !enough(&found) {
        match socket.read(&mut buffer) {
            Ok(length) => found
                .extend(parse(&buffer[..length]).filter(|one| one.from_port == port || one.to_port == port)),
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(found)
}

/// Reads an IPv4 packet without fragments, or an IPv6 one without extension headers, that holds UDP.
fn parse(packet: &[u8]) -> Option<Datagram> {
    let (from, to, rest) = match packet.first()? >> 4 {
        4 if *packet.get(9)? == 17 => {
            let header = usize::from(packet[0] & 15) * 4;
            let address = |at: usize| Some(IpAddr::from(<[u8; 4]>::try_from(packet.get(at..at + 4)?).ok()?));
            (address(12)?, address(16)?, packet.get(header..)?)
        }
        6 if *packet.get(6)? == 17 => {
            let address =
                |at: usize| Some(IpAddr::from(<[u8; 16]>::try_from(packet.get(at..at + 16)?).ok()?));
            (address(8)?, address(24)?, packet.get(40..)?)
        }
        _ => return None,
    };
    let port = |at: usize| Some(u16::from_be_bytes([*rest.get(at)?, *rest.get(at + 1)?]));
    let length = usize::from(port(4)?);
    Some(Datagram {
        from,
        to,
        from_port: port(0)?,
        to_port: port(2)?,
        payload: rest.get(8..length)?.to_vec(),
    })
}

/// The ed25519 key that belongs to a seed.
///
/// # Errors
/// None that an input can cause.
pub fn public_key(seed: &[u8; 32]) -> Result<PublicKey> {
    let pair = Ed25519KeyPair::from_seed_unchecked(seed).map_err(|_| anyhow!("a key from a seed"))?;
    Ok(PublicKey(pair.public_key().as_ref().try_into()?))
}

/// A node that seals like the transport, with any identity, gossip key and boot.
pub struct Speaker {
    /// Its real or claimed id.
    pub id: NodeId,
    /// Its boot.
    pub boot: u64,
    /// The last used sequence.
    pub sequence: u64,
    seed: [u8; 32],
    gossip_key: [u8; 32],
    hint: KeyHint,
    pairs: BTreeMap<NodeId, Pair>,
}

/// Keys shared with one peer.
struct Pair {
    secret: PairSecret,
    to: DatagramKey,
    /// From the peer, in its boot.
    from: Option<(u64, DatagramKey)>,
}

impl Speaker {
    /// The node with this seed, in this boot.
    ///
    /// # Errors
    /// None that an input can cause.
    pub fn new(seed: [u8; 32], gossip_key: [u8; 32], boot: u64) -> Result<Speaker> {
        let hint = KeyHint::of(proto::cluster::KeyId::of_key(&gossip_key));
        let id = public_key(&seed)?.id();
        Ok(Speaker { id, boot, sequence: 0, seed, gossip_key, hint, pairs: BTreeMap::new() })
    }

    /// Seals frames for a peer.
    ///
    /// # Errors
    /// The peer's key is none to seal with.
    pub fn seal(&mut self, peer: &PublicKey, frames: &[DatagramFrame<'_>]) -> Result<Vec<u8>> {
        let mut plaintext = Vec::new();
        for frame in frames {
            frame.put(&mut plaintext);
        }
        self.seal_bytes(peer, &plaintext)
    }

    /// Seals any bytes for a peer.
    ///
    /// # Errors
    /// The peer's key is none to seal with.
    pub fn seal_bytes(&mut self, peer: &PublicKey, plaintext: &[u8]) -> Result<Vec<u8>> {
        self.sequence += 1;
        let (id, boot, sequence) = (self.id, self.boot, self.sequence);
        let header = DatagramHeader { version: 1, key: self.hint, sender: id, boot, sequence };
        self.pair(peer)?.to.seal(&header, plaintext).context("it can't be sealed")
    }

    /// The frames of a datagram that this peer has sealed for this node, as bytes; `None` when it has not.
    ///
    /// # Errors
    /// The peer's key is none to seal with.
    pub fn open(&mut self, peer: &PublicKey, datagram: &[u8]) -> Result<Option<Vec<u8>>> {
        let Some((header, ciphertext)) = DatagramHeader::parse(datagram) else { return Ok(None) };
        let (own, gossip_key) = (self.id, self.gossip_key);
        let Pair { secret, from, .. } = self.pair(peer)?;
        if from.as_ref().is_none_or(|(boot, _)| *boot != header.boot) {
            let key = secret.key(&gossip_key, &peer.id(), &own, header.boot);
            *from = Some((header.boot, key.context("a key can't be derived")?));
        }
        let mut body = ciphertext.to_vec();
        let opened = from.as_ref().is_some_and(|(_, key)| key.open(&header, &mut body).is_some());
        body.truncate(datagram.len() - HEADER_LEN - TAG_LEN);
        Ok(opened.then_some(body))
    }

    fn pair(&mut self, peer: &PublicKey) -> Result<&mut Pair> {
        let id = peer.id();
        if !self.pairs.contains_key(&id) {
            let secret = PairSecret::new(&self.seed, peer).context("a key that nothing is sealed with")?;
            let to = secret.key(&self.gossip_key, &self.id, &id, self.boot);
            let to = to.context("a key can't be derived")?;
            self.pairs.insert(id, Pair { secret, to, from: None });
        }
        self.pairs.get_mut(&id).context("no pair")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_packet_is_parsed_and_garbage_is_skipped() {
        let mut packet = vec![0x45, 0, 0, 31, 0, 0, 0, 0, 64, 17, 0, 0, 10, 91, 0, 1, 10, 91, 0, 2];
        packet.extend([0x1d, 0xde, 0, 9, 0, 11, 0, 0, 7, 8, 9, 0xff]);
        let datagram = parse(&packet).unwrap();
        assert_eq!((datagram.from_port, datagram.to_port, datagram.payload), (7646, 9, vec![7, 8, 9]));
        assert_eq!(
            (datagram.from.to_string(), datagram.to.to_string()),
            ("10.91.0.1".into(), "10.91.0.2".into())
        );
        for length in 0..packet.len() - 1 {
            assert!(parse(&packet[..length]).is_none());
        }
        packet[9] = 6;
        assert!(parse(&packet).is_none(), "TCP");
    }
}
