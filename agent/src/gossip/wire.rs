//! chitchat's messages, protocol version 1: bounded decoding, and encoding.
//!
//! chitchat's own decoder decompresses without a bound and trusts every node id. So a message is decoded here
//! first, by a reader that knows only the format (chitchat 0.13: `message_serialize.rs`, `digest.rs`,
//! `delta.rs`, `serialize.rs`), and what the guard lets through is encoded again:
//!
//! ```text
//! message   45139 u16 | 1 u8 | kind u8 | SYN: digest, cluster | SYN-ACK: digest, delta | ACK: delta
//! digest    stream of: name | heartbeat u64 | last gc u64 | version u64
//! delta     stream of: 0 name, last gc u64, from version u64
//!                      1 key, value, version u64, status u8
//!                      2 version u64
//! name      text | generation u64 | 4 or 6, address, port u16
//! text      length u16, bytes
//! stream    blocks: 1 | length u16 | zstd, 2 | length u16 | as it is, 0 at the end
//! ```
//! All numbers are little-endian.

use std::borrow::Cow;
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use zstd::bulk::Decompressor;

/// Start of every message: the magic number and the protocol version.
const HEADER: [u8; 3] = [0x53, 0xb0, 1];

/// chitchat decompresses no block to more than this.
const BLOCK: usize = 65_535;

/// Longer messages are compressed again: more does not fit into a datagram.
const UNPACKED: usize = 60_000;

/// Size of the blocks to compress: chitchat's own.
const PACKED_BLOCK: usize = 16_384;

/// A message that can't be read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum WireError {
    /// It is not of protocol version 1.
    NotV1,
    /// It ends before it should, goes on after it should, or holds what the format does not have.
    Garbled,
    /// Decompressed, it is larger than a message about so many members can be.
    TooLarge,
}

impl fmt::Display for WireError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            WireError::NotV1 => "a message of another gossip protocol version",
            WireError::Garbled => "an unreadable message",
            WireError::TooLarge => "a message that is too large when unpacked",
        })
    }
}

/// A node as gossip names it: one start of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct GossipNode<'a> {
    pub(super) name: &'a str,
    pub(super) generation: u64,
    pub(super) address: SocketAddr,
}

/// What the sender of a message knows of a node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct DigestEntry<'a> {
    pub(super) node: GossipNode<'a>,
    pub(super) heartbeat: u64,
    pub(super) last_gc: u64,
    pub(super) version: u64,
}

/// One step of a delta.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum DeltaStep<'a> {
    Node { node: GossipNode<'a>, last_gc: u64, from: u64 },
    Value { key: &'a str, value: Cow<'a, str>, version: u64, status: u8 },
    SetVersion(u64),
}

/// A message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum GossipMessage<'a> {
    Syn { cluster: &'a str, digest: Vec<DigestEntry<'a>> },
    SynAck { digest: Vec<DigestEntry<'a>>, delta: Vec<DeltaStep<'a>> },
    Ack { delta: Vec<DeltaStep<'a>> },
    BadCluster,
}

/// Decompresses messages. Its buffers are reused, so that a message costs no allocation.
pub(super) struct Unpacker {
    zstd: Decompressor<'static>,
    digest: Vec<u8>,
    delta: Vec<u8>,
    block: Vec<u8>,
}

impl Unpacker {
    pub(super) fn new() -> Unpacker {
        Unpacker {
            zstd: Decompressor::default(),
            digest: Vec::new(),
            delta: Vec::new(),
            block: vec![0; BLOCK],
        }
    }

    /// Reads a message whose streams decompress to at most `most` bytes together.
    pub(super) fn read<'a>(
        &'a mut self,
        message: &'a [u8],
        most: usize,
    ) -> Result<GossipMessage<'a>, WireError> {
        let rest = message.strip_prefix(&HEADER).ok_or(WireError::NotV1)?;
        let (kind, mut rest) = rest.split_first().ok_or(WireError::Garbled)?;
        let Unpacker { zstd, digest, delta, block } = self;
        digest.clear();
        delta.clear();
        if matches!(kind, 0 | 1) {
            unpack(&mut rest, zstd, digest, block, most)?;
        }
        if matches!(kind, 1 | 2) {
            unpack(&mut rest, zstd, delta, block, most.saturating_sub(digest.len()))?;
        }
        let read = match kind {
            0 => GossipMessage::Syn { cluster: text(&mut rest)?, digest: all(digest, known)? },
            1 => GossipMessage::SynAck { digest: all(digest, known)?, delta: all(delta, step)? },
            2 => GossipMessage::Ack { delta: all(delta, step)? },
            3 => GossipMessage::BadCluster,
            _ => return Err(WireError::Garbled),
        };
        if rest.is_empty() { Ok(read) } else { Err(WireError::Garbled) }
    }
}

fn unpack(
    rest: &mut &[u8],
    zstd: &mut Decompressor<'static>,
    into: &mut Vec<u8>,
    scratch: &mut [u8],
    most: usize,
) -> Result<(), WireError> {
    loop {
        let [kind] = array(rest)?;
        if kind == 0 {
            return Ok(());
        }
        let length = usize::from(u16::from_le_bytes(array(rest)?));
        let (block, after) = rest.split_at_checked(length).ok_or(WireError::Garbled)?;
        *rest = after;
        let plain = match kind {
            1 => {
                // What is still allowed, and one byte more, so that an excess shows.
                let room = scratch.len().min(most.saturating_sub(into.len()).saturating_add(1));
                let room = scratch.get_mut(..room).unwrap_or_default();
                let length = zstd.decompress_to_buffer(block, room).map_err(|_| WireError::TooLarge)?;
                room.get(..length).unwrap_or_default()
            }
            2 => block,
            _ => return Err(WireError::Garbled),
        };
        if into.len() + plain.len() > most {
            return Err(WireError::TooLarge);
        }
        into.extend_from_slice(plain);
    }
}

fn all<'a, T>(
    mut bytes: &'a [u8],
    one: impl Fn(&mut &'a [u8]) -> Result<T, WireError>,
) -> Result<Vec<T>, WireError> {
    let mut found = Vec::new();
    while !bytes.is_empty() {
        found.push(one(&mut bytes)?);
    }
    Ok(found)
}

fn array<const N: usize>(rest: &mut &[u8]) -> Result<[u8; N], WireError> {
    let (first, after) = rest.split_first_chunk::<N>().ok_or(WireError::Garbled)?;
    *rest = after;
    Ok(*first)
}

fn number(rest: &mut &[u8]) -> Result<u64, WireError> {
    array(rest).map(u64::from_le_bytes)
}

fn text<'a>(rest: &mut &'a [u8]) -> Result<&'a str, WireError> {
    let length = usize::from(u16::from_le_bytes(array(rest)?));
    let (bytes, after) = rest.split_at_checked(length).ok_or(WireError::Garbled)?;
    *rest = after;
    std::str::from_utf8(bytes).map_err(|_| WireError::Garbled)
}

fn named<'a>(rest: &mut &'a [u8]) -> Result<GossipNode<'a>, WireError> {
    let (name, generation) = (text(rest)?, number(rest)?);
    let ip = match array(rest)? {
        [4] => IpAddr::from(Ipv4Addr::from(array::<4>(rest)?)),
        [6] => IpAddr::from(Ipv6Addr::from(array::<16>(rest)?)),
        _ => return Err(WireError::Garbled),
    };
    let port = u16::from_le_bytes(array(rest)?);
    Ok(GossipNode { name, generation, address: SocketAddr::new(ip, port) })
}

fn known<'a>(rest: &mut &'a [u8]) -> Result<DigestEntry<'a>, WireError> {
    let node = named(rest)?;
    Ok(DigestEntry { node, heartbeat: number(rest)?, last_gc: number(rest)?, version: number(rest)? })
}

fn step<'a>(rest: &mut &'a [u8]) -> Result<DeltaStep<'a>, WireError> {
    match array(rest)? {
        [0] => Ok(DeltaStep::Node { node: named(rest)?, last_gc: number(rest)?, from: number(rest)? }),
        [1] => {
            let (key, value, version) = (text(rest)?, text(rest)?, number(rest)?);
            let [status] = array(rest)?;
            Ok(DeltaStep::Value { key, value: Cow::Borrowed(value), version, status })
        }
        [2] => Ok(DeltaStep::SetVersion(number(rest)?)),
        _ => Err(WireError::Garbled),
    }
}

impl GossipMessage<'_> {
    /// The message as chitchat reads it.
    pub(super) fn write(&self) -> Vec<u8> {
        let mut out = HEADER.to_vec();
        match self {
            GossipMessage::Syn { cluster, digest } => {
                out.push(0);
                pack(&mut out, &written(digest, write_known));
                write_text(&mut out, cluster);
            }
            GossipMessage::SynAck { digest, delta } => {
                out.push(1);
                pack(&mut out, &written(digest, write_known));
                pack(&mut out, &written(delta, write_step));
            }
            GossipMessage::Ack { delta } => {
                out.push(2);
                pack(&mut out, &written(delta, write_step));
            }
            GossipMessage::BadCluster => out.push(3),
        }
        out
    }
}

/// A stream. It only travels within this machine, so it is compressed only if it would not fit into a
/// datagram.
fn pack(out: &mut Vec<u8>, plain: &[u8]) {
    let packed = plain.len() + out.len() > UNPACKED;
    for block in plain.chunks(if packed { PACKED_BLOCK } else { BLOCK }) {
        let small = packed.then(|| zstd::bulk::compress(block, 1).ok()).flatten();
        let small = small.filter(|small| small.len() < block.len());
        let (kind, bytes) = small.as_deref().map_or((2, block), |small| (1, small));
        out.push(kind);
        // A block has at most 65,535 bytes.
        out.extend_from_slice(&u16::try_from(bytes.len()).unwrap_or(u16::MAX).to_le_bytes());
        out.extend_from_slice(bytes);
    }
    out.push(0);
}

fn written<T>(all: &[T], one: impl Fn(&mut Vec<u8>, &T)) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(all.len() * 64);
    all.iter().for_each(|item| one(&mut bytes, item));
    bytes
}

fn write_text(out: &mut Vec<u8>, text: &str) {
    // Texts were read with a length of two bytes.
    out.extend_from_slice(&u16::try_from(text.len()).unwrap_or(u16::MAX).to_le_bytes());
    out.extend_from_slice(text.as_bytes());
}

fn write_named(out: &mut Vec<u8>, node: &GossipNode<'_>) {
    write_text(out, node.name);
    out.extend_from_slice(&node.generation.to_le_bytes());
    match node.address.ip() {
        IpAddr::V4(ip) => {
            out.push(4);
            out.extend_from_slice(&ip.octets());
        }
        IpAddr::V6(ip) => {
            out.push(6);
            out.extend_from_slice(&ip.octets());
        }
    }
    out.extend_from_slice(&node.address.port().to_le_bytes());
}

fn write_known(out: &mut Vec<u8>, known: &DigestEntry<'_>) {
    write_named(out, &known.node);
    for number in [known.heartbeat, known.last_gc, known.version] {
        out.extend_from_slice(&number.to_le_bytes());
    }
}

fn write_step(out: &mut Vec<u8>, step: &DeltaStep<'_>) {
    match step {
        DeltaStep::Node { node, last_gc, from } => {
            out.push(0);
            write_named(out, node);
            out.extend_from_slice(&last_gc.to_le_bytes());
            out.extend_from_slice(&from.to_le_bytes());
        }
        DeltaStep::Value { key, value, version, status } => {
            out.push(1);
            write_text(out, key);
            write_text(out, value);
            out.extend_from_slice(&version.to_le_bytes());
            out.push(*status);
        }
        DeltaStep::SetVersion(version) => {
            out.push(2);
            out.extend_from_slice(&version.to_le_bytes());
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn named(name: &str) -> GossipNode<'_> {
        GossipNode { name, generation: 7, address: "10.0.0.1:9".parse().unwrap() }
    }

    fn digest(nodes: usize) -> Vec<DigestEntry<'static>> {
        vec![DigestEntry { node: named("abcdefghij"), heartbeat: 5, last_gc: 0, version: 3 }; nodes]
    }

    #[test]
    fn a_message_reads_back_as_written_in_one_block_and_in_many() {
        for nodes in [0, 1, 3, 2_000] {
            let delta = vec![
                DeltaStep::Node { node: named("abcdefghij"), last_gc: 1, from: 2 },
                DeltaStep::Value { key: "r", value: "value".into(), version: 3, status: 2 },
                DeltaStep::SetVersion(9),
            ];
            for message in [
                GossipMessage::Syn { cluster: "c", digest: digest(nodes) },
                GossipMessage::SynAck { digest: digest(nodes), delta: delta.clone() },
                GossipMessage::Ack { delta },
                GossipMessage::BadCluster,
            ] {
                let bytes = message.write();
                assert!(bytes.len() < 65_507, "{} bytes do not fit into a datagram", bytes.len());
                assert_eq!(Unpacker::new().read(&bytes, 200_000).unwrap(), message);
            }
        }
    }

    #[test]
    fn a_zip_bomb_is_not_decompressed() {
        // 8 kB that chitchat would decompress to 159 MB.
        let block = zstd::bulk::compress(&[0; BLOCK], 1).unwrap();
        let mut bomb = [HEADER.as_slice(), &[2]].concat();
        for _ in 0..2_400 {
            bomb.push(1);
            bomb.extend_from_slice(&u16::try_from(block.len()).unwrap().to_le_bytes());
            bomb.extend_from_slice(&block);
        }
        bomb.push(0);
        let mut unpacker = Unpacker::new();
        assert_eq!(unpacker.read(&bomb, 70_000), Err(WireError::TooLarge));
        assert!(unpacker.delta.capacity() < 200_000, "{}", unpacker.delta.capacity());
        // One block that decompresses to more than is allowed.
        let whole = zstd::bulk::compress(&[0; 60_000], 1).unwrap();
        let mut one = [HEADER.as_slice(), &[2, 1]].concat();
        one.extend_from_slice(&u16::try_from(whole.len()).unwrap().to_le_bytes());
        one.extend_from_slice(&whole);
        one.push(0);
        assert_eq!(unpacker.read(&one, 59_999), Err(WireError::TooLarge));
    }

    #[test]
    fn another_version_and_trailing_bytes_are_refused() {
        let mut unpacker = Unpacker::new();
        let good = GossipMessage::Ack { delta: Vec::new() }.write();
        assert!(unpacker.read(&good, 100).is_ok());
        let mut v0 = good.clone();
        v0[2] = 0;
        assert_eq!(unpacker.read(&v0, 100), Err(WireError::NotV1));
        assert_eq!(unpacker.read(&[good.as_slice(), &[0]].concat(), 100), Err(WireError::Garbled));
        assert_eq!(unpacker.read(&good[..4], 100), Err(WireError::Garbled));
        assert_eq!(unpacker.read(&[], 100), Err(WireError::NotV1));
    }

    proptest! {
        #[test]
        fn no_bytes_make_it_panic(kind in 0u8..5, rest in proptest::collection::vec(any::<u8>(), 0..300)) {
            let bytes = [HEADER.as_slice(), &[kind], &rest].concat();
            let _ = Unpacker::new().read(&bytes, 1_000);
        }
    }
}
