//! A node's record, signed by it.
//!
//! A record is valid by its signature alone, whoever forwards it: gossip, pulses and TLS all carry it, and
//! none of them can change it, hold it back for long, or remove it. Of two records of one node the higher
//! `(generation, sequence)` wins.

use ring::signature::{ED25519, Ed25519KeyPair, UnparsedPublicKey};
use serde::{Deserialize, Serialize};

use crate::node::{NodeId, PublicKey};

/// Length in bytes of an ed25519 signature.
const SIGNATURE_LEN: usize = 64;

/// Largest body: 64 services with a reason each, and as many virtual IPs, stay below it. Gossip's messages
/// have at most 65,507 bytes, so a few records of this size must fit into one.
pub const MAX_BODY: usize = 12 * 1024;

/// Separates these signatures from everything else that the same key signs.
const DOMAIN: &[u8] = b"agent node record, version 1\0";

/// Version of a node's record; the higher one wins.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default, Serialize, Deserialize)]
pub struct RecordVersion {
    /// Number of the node's start: seconds since 1970, or more if the clock was set back.
    pub generation: u64,
    /// Counts the records of that start, from 1.
    pub sequence: u64,
}

/// A record of one node, as every node forwards it.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SignedRecord {
    /// Its node.
    pub node: NodeId,
    /// Its version.
    pub version: RecordVersion,
    #[serde(with = "crate::bytes")]
    body: Vec<u8>,
    #[serde(with = "crate::bytes")]
    signature: Vec<u8>,
}

impl std::fmt::Debug for SignedRecord {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let RecordVersion { generation, sequence } = self.version;
        write!(f, "SignedRecord({} {generation}.{sequence}, {} bytes)", self.node, self.body.len())
    }
}

impl SignedRecord {
    /// Signs a body with the key of its node.
    pub fn sign(
        pair: &Ed25519KeyPair,
        cluster: &str,
        node: NodeId,
        version: RecordVersion,
        body: Vec<u8>,
    ) -> SignedRecord {
        let signature = pair.sign(&signed_bytes(cluster, &node, version, &body)).as_ref().to_vec();
        SignedRecord { node, version, body, signature }
    }

    /// The record from a gossip value: [`SignedRecord::to_value`] of the given node and version. None when
    /// the value is invalid.
    pub fn from_value(node: NodeId, version: RecordVersion, value: &str) -> Option<SignedRecord> {
        if value.len() > (SIGNATURE_LEN + MAX_BODY) * 4 / 3 + 4 {
            return None;
        }
        let bytes = data_encoding::BASE64_NOPAD.decode(value.as_bytes()).ok()?;
        let (signature, body) = bytes.split_at_checked(SIGNATURE_LEN)?;
        Some(SignedRecord { node, version, body: body.to_vec(), signature: signature.to_vec() })
    }

    /// Signature and body as a gossip value; gossip carries node and version itself.
    pub fn to_value(&self) -> String {
        data_encoding::BASE64_NOPAD.encode(&[self.signature.as_slice(), &self.body].concat())
    }

    /// The whole record as bytes, for datagrams: node, generation, sequence, signature, body.
    pub fn to_bytes(&self) -> Vec<u8> {
        let RecordVersion { generation, sequence } = self.version;
        let (generation, sequence) = (generation.to_be_bytes(), sequence.to_be_bytes());
        [self.node.0.as_slice(), &generation, &sequence, &self.signature, &self.body].concat()
    }

    /// The record from [`SignedRecord::to_bytes`]; none when it is too short or too long.
    pub fn from_bytes(bytes: &[u8]) -> Option<SignedRecord> {
        let (node, rest) = bytes.split_first_chunk()?;
        let (generation, rest) = rest.split_first_chunk()?;
        let (sequence, rest) = rest.split_first_chunk()?;
        let (signature, body) = rest.split_at_checked(SIGNATURE_LEN)?;
        let version = RecordVersion {
            generation: u64::from_be_bytes(*generation),
            sequence: u64::from_be_bytes(*sequence),
        };
        (body.len() <= MAX_BODY).then(|| SignedRecord {
            node: NodeId(*node),
            version,
            body: body.to_vec(),
            signature: signature.to_vec(),
        })
    }

    /// The encoded fields: see [`crate::record`].
    pub fn body(&self) -> &[u8] {
        &self.body
    }

    /// Whether the node with this key has signed it for this cluster.
    pub fn verify(&self, cluster: &str, key: &PublicKey) -> bool {
        self.body.len() <= MAX_BODY
            && self.signature.len() == SIGNATURE_LEN
            && self.node == key.id()
            && UnparsedPublicKey::new(&ED25519, &key.0)
                .verify(&signed_bytes(cluster, &self.node, self.version, &self.body), &self.signature)
                .is_ok()
    }

    /// Four bytes that differ for any two records, except for one chance in four billion: pulses carry them,
    /// so that a node notices that its record is outdated.
    pub fn fingerprint(&self) -> u32 {
        let digest = ring::digest::digest(&ring::digest::SHA256, &self.signature);
        digest.as_ref().iter().take(4).fold(0, |all, byte| all << 8 | u32::from(*byte))
    }
}

/// The signed bytes. Every part has a fixed length or a length prefix, so that no two records have the same
/// bytes.
fn signed_bytes(cluster: &str, node: &NodeId, version: RecordVersion, body: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(DOMAIN.len() + cluster.len() + body.len() + 36);
    bytes.extend_from_slice(DOMAIN);
    bytes.extend_from_slice(&(cluster.len() as u64).to_be_bytes());
    bytes.extend_from_slice(cluster.as_bytes());
    bytes.extend_from_slice(&node.0);
    bytes.extend_from_slice(&version.generation.to_be_bytes());
    bytes.extend_from_slice(&version.sequence.to_be_bytes());
    bytes.extend_from_slice(body);
    bytes
}

#[cfg(test)]
pub(crate) mod tests {
    use proptest::prelude::*;
    use ring::signature::KeyPair;

    use super::*;

    pub(crate) const CLUSTER: &str = "0123456789abcdef0123456789abcdef";

    pub(crate) fn pair(n: u8) -> (Ed25519KeyPair, PublicKey) {
        let pair = Ed25519KeyPair::from_seed_unchecked(&[n; 32]).unwrap();
        let key = PublicKey(pair.public_key().as_ref().try_into().unwrap());
        (pair, key)
    }

    pub(crate) fn signed(n: u8, generation: u64, sequence: u64, body: &[u8]) -> SignedRecord {
        let (pair, key) = pair(n);
        let version = RecordVersion { generation, sequence };
        SignedRecord::sign(&pair, CLUSTER, key.id(), version, body.to_vec())
    }

    #[test]
    fn a_record_verifies_only_as_it_was_signed() {
        let record = signed(1, 7, 3, b"hello");
        let key = pair(1).1;
        assert!(record.verify(CLUSTER, &key));
        assert!(!record.verify("another cluster", &key));
        assert!(!record.verify(CLUSTER, &pair(2).1));
        for change in [
            SignedRecord { version: RecordVersion { generation: 8, ..record.version }, ..record.clone() },
            SignedRecord { version: RecordVersion { sequence: 4, ..record.version }, ..record.clone() },
            SignedRecord { body: b"hellp".to_vec(), ..record.clone() },
            SignedRecord { body: Vec::new(), ..record.clone() },
            SignedRecord { node: pair(2).1.id(), ..record.clone() },
            SignedRecord { signature: vec![0; 63], ..record.clone() },
        ] {
            assert!(!change.verify(CLUSTER, &key), "{change:?}");
        }
    }

    #[test]
    fn a_record_reads_back_as_gossip_carries_it() {
        let record = signed(1, 7, 3, b"hello");
        let value = record.to_value();
        assert!(value.is_ascii());
        assert_eq!(SignedRecord::from_value(record.node, record.version, &value), Some(record.clone()));
        let later = RecordVersion { sequence: 9, ..record.version };
        let moved = SignedRecord::from_value(record.node, later, &value).unwrap();
        assert!(!moved.verify(CLUSTER, &pair(1).1), "gossip's own version can't lift it");
        assert_eq!(SignedRecord::from_value(record.node, later, "AAAA"), None);
        assert_eq!(SignedRecord::from_value(record.node, later, &"A".repeat(20_000)), None);
    }

    #[test]
    fn golden_bytes() {
        // Changing these breaks clusters that run two versions.
        let record = signed(1, 1_700_000_000, 3, b"hello");
        assert_eq!(
            record.to_value(),
            "jMghLvdJb4EtIZoL27zR0s5YQgLvGIzjG/xvSD6a5qi4MUXo6LYC2p157zJwBp8193icSrdVC+wUcDLn0OKxCmhlbGxv"
        );
        assert_eq!(record.fingerprint(), 1_618_521_631);
    }

    proptest! {
        #[test]
        fn no_value_makes_it_panic(value in ".{0,200}") {
            let _ = SignedRecord::from_value(NodeId([1; 10]), RecordVersion::default(), &value);
        }
    }
}
