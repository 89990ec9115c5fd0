//! Gossip's own messages (chitchat 0.13, protocol version 1), written from the format's description and not
//! by chitchat, which would not write invalid ones.
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

use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use proto::node::NodeId;

/// Most bytes of an uncompressed block.
const BLOCK: usize = 60_000;

/// A node as gossip names it: one start of it.
#[derive(Debug, Clone)]
pub struct Named {
    /// The prefix of its id.
    pub name: String,
    /// Its start.
    pub generation: u64,
    /// Derived from its id too.
    pub address: SocketAddr,
}

impl Named {
    /// How gossip names this node.
    pub fn of(id: &NodeId, generation: u64) -> Named {
        let [a, b, c, d, e, f, ..] = id.0;
        let address = SocketAddr::from((Ipv4Addr::new(a, b, c, d), u16::from_be_bytes([e, f]).max(1)));
        Named { name: id.to_string().chars().take(10).collect(), generation, address }
    }

    fn write(&self, out: &mut Vec<u8>) {
        text(out, &self.name);
        out.extend(self.generation.to_le_bytes());
        match self.address.ip() {
            IpAddr::V4(ip) => {
                out.push(4);
                out.extend(ip.octets());
            }
            IpAddr::V6(ip) => {
                out.push(6);
                out.extend(ip.octets());
            }
        }
        out.extend(self.address.port().to_le_bytes());
    }
}

/// A digest entry of a node.
#[derive(Debug, Clone)]
pub struct Known {
    /// The node.
    pub node: Named,
    /// Its heartbeat.
    pub heartbeat: u64,
    /// Deleted keys up to this version are forgotten.
    pub last_gc: u64,
    /// The highest version of its keys.
    pub version: u64,
}

/// A step of a delta.
#[derive(Debug, Clone)]
pub enum Step {
    /// The following steps are about this node.
    Node {
        /// The node.
        node: Named,
        /// Deleted keys up to this version are forgotten.
        last_gc: u64,
        /// The version after which this delta starts.
        from: u64,
    },
    /// A key has this value.
    Set(String, String, u64),
    /// A key is deleted.
    Delete(String, u64),
    /// A key is deleted when its TTL expires.
    DeleteLater(String, u64),
    /// The node's version is this one.
    SetVersion(u64),
}

fn text(out: &mut Vec<u8>, text: &str) {
    let length = u16::try_from(text.len()).unwrap_or(u16::MAX);
    out.extend(length.to_le_bytes());
    out.extend(text.as_bytes().iter().take(usize::from(length)));
}

fn stream(out: &mut Vec<u8>, plain: &[u8]) {
    for block in plain.chunks(BLOCK) {
        out.push(2);
        out.extend(u16::try_from(block.len()).unwrap_or(u16::MAX).to_le_bytes());
        out.extend(block);
    }
    out.push(0);
}

fn digest(out: &mut Vec<u8>, all: &[Known]) {
    let mut plain = Vec::new();
    for known in all {
        known.node.write(&mut plain);
        for number in [known.heartbeat, known.last_gc, known.version] {
            plain.extend(number.to_le_bytes());
        }
    }
    stream(out, &plain);
}

fn delta(out: &mut Vec<u8>, steps: &[Step]) {
    let mut plain = Vec::new();
    for step in steps {
        let mut value = |key: &str, value: &str, version: u64, status: u8| {
            plain.push(1);
            text(&mut plain, key);
            text(&mut plain, value);
            plain.extend(version.to_le_bytes());
            plain.push(status);
        };
        match step {
            Step::Node { node, last_gc, from } => {
                plain.push(0);
                node.write(&mut plain);
                plain.extend(last_gc.to_le_bytes());
                plain.extend(from.to_le_bytes());
            }
            Step::Set(key, text, version) => value(key, text, *version, 0),
            Step::Delete(key, version) => value(key, "", *version, 1),
            Step::DeleteLater(key, version) => value(key, "", *version, 2),
            Step::SetVersion(version) => {
                plain.push(2);
                plain.extend(version.to_le_bytes());
            }
        }
    }
    stream(out, &plain);
}

fn head(kind: u8) -> Vec<u8> {
    let mut message = 45_139_u16.to_le_bytes().to_vec();
    message.extend([1, kind]);
    message
}

/// SYN: the sender's digest.
pub fn syn(cluster: &str, known: &[Known]) -> Vec<u8> {
    let mut message = head(0);
    digest(&mut message, known);
    text(&mut message, cluster);
    message
}

/// SYN-ACK: the sender's digest, and what the receiver lacks.
pub fn syn_ack(known: &[Known], steps: &[Step]) -> Vec<u8> {
    let mut message = head(1);
    digest(&mut message, known);
    delta(&mut message, steps);
    message
}

/// ACK: what the receiver lacks.
pub fn ack(steps: &[Step]) -> Vec<u8> {
    let mut message = head(2);
    delta(&mut message, steps);
    message
}

/// A delta of `blocks` blocks of zstd, each of which decompresses to 65,535 zeros: run-length blocks (RFC
/// 8878, 3.1.1.2.2), 16 bytes each with gossip's framing.
pub fn bomb(blocks: usize) -> Vec<u8> {
    const UNPACKED: u32 = 65_535;
    // One segment, its size in two bytes (less 256), no checksum.
    let mut packed = 0xfd2f_b528_u32.to_le_bytes().to_vec();
    packed.push(0b0110_0000);
    packed.extend(u16::try_from(UNPACKED - 256).unwrap_or(0).to_le_bytes());
    // The last block, run-length, so long; then the byte.
    let block = 1 | 1 << 1 | UNPACKED << 3;
    packed.extend(&block.to_le_bytes()[..3]);
    packed.push(0);
    let mut message = head(2);
    for _ in 0..blocks {
        message.push(1);
        message.extend(u16::try_from(packed.len()).unwrap_or(0).to_le_bytes());
        message.extend(&packed);
    }
    message.push(0);
    message
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_have_the_bytes_that_chitchat_reads() {
        let node = Named { name: "ab".to_owned(), generation: 7, address: "1.2.3.4:9".parse().unwrap() };
        let known = [Known { node: node.clone(), heartbeat: 1, last_gc: 2, version: 3 }];
        let message = syn("c", &known);
        let named = [2, 0, b'a', b'b', 7, 0, 0, 0, 0, 0, 0, 0, 4, 1, 2, 3, 4, 9, 0];
        let numbers: Vec<u8> = [1_u64, 2, 3].iter().flat_map(|number| number.to_le_bytes()).collect();
        let block = [named.as_slice(), &numbers].concat();
        let expected = [&[0x53, 0xb0, 1, 0, 2, 43, 0], block.as_slice(), &[0, 1, 0, b'c']].concat();
        assert_eq!(message, expected);
        let one = ack(&[
            Step::Node { node: Named::of(&NodeId([1; 10]), 7), last_gc: 0, from: 0 },
            Step::SetVersion(9),
        ]);
        assert_eq!(one.len(), 4 + 3 + 1 + (1 + 2 + 10 + 8 + 7 + 16) + 9);
    }

    #[test]
    fn a_bomb_of_65_kilobytes_unpacks_to_300_megabytes() {
        let message = bomb(4_600);
        assert!((60_000..66_000).contains(&message.len()), "{}", message.len());
    }
}
