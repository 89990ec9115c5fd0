//! The seal of datagrams: a key for each pair of nodes and each direction, AES-256-GCM-SIV under it.
//!
//! ```text
//!   ed25519 seed of this node ─┐
//!                              ├─ X25519 ─► PairSecret ─┐
//!   ed25519 key of the peer ───┘                        ├─ HKDF-SHA256 ─► DatagramKey
//!   gossip key of the cluster ──────────────────────────┤   (one for each direction and boot)
//!   sender, receiver, the sender's boot ────────────────┘
//! ```
//!
//! A key shared by all members would let each of them impersonate every other, so the pair's secret is part
//! of every key; the gossip key is too, so that a rotation locks out a removed node, which keeps its pair
//! secrets.
//!
//! The nonce is the sequence, which counts up within a boot. AES-GCM-SIV (RFC 8452) instead of GCM or
//! ChaCha20-Poly1305, since a virtual machine that is resumed twice from one snapshot repeats boot and
//! sequence: with GCM-SIV that shows at most that two equal datagrams are equal.

use curve25519_dalek::edwards::CompressedEdwardsY;
use ring::hkdf::{HKDF_SHA256, KeyType, Salt};
use zeroize::Zeroize;

use crate::node::{NodeId, PublicKey};
use crate::transport::{DatagramHeader, HEADER_LEN, TAG_LEN};

/// Separates these keys from others that might be derived from the same secrets.
const DOMAIN: &[u8] = b"agent datagram 1";

/// A secret that two nodes share and nobody else knows.
#[derive(Clone)]
pub struct PairSecret([u8; 32]);

impl PairSecret {
    /// The secret of the node with this ed25519 seed and the peer with this ed25519 key; both ends get the
    /// same. None when the key is not a point of the curve, or one with which every secret would be the same.
    pub fn new(seed: &[u8; 32], peer: &PublicKey) -> Option<PairSecret> {
        let point = CompressedEdwardsY(peer.0).decompress()?;
        if point.is_small_order() {
            return None;
        }
        // The secret scalar as RFC 8032, 5.1.5 makes it; clamped below.
        let mut scalar = [0; 32];
        let hash = ring::digest::digest(&ring::digest::SHA512, seed);
        scalar.copy_from_slice(hash.as_ref().get(..32)?);
        let shared = point.to_montgomery().mul_clamped(scalar).to_bytes();
        scalar.zeroize();
        (shared != [0; 32]).then_some(PairSecret(shared))
    }

    /// The key for datagrams from `sender`, in this boot of it, to `receiver`.
    pub fn key(
        &self,
        gossip_key: &[u8; 32],
        sender: &NodeId,
        receiver: &NodeId,
        boot: u64,
    ) -> Option<DatagramKey> {
        let mut secrets = [0; 64];
        secrets[..32].copy_from_slice(&self.0);
        secrets[32..].copy_from_slice(gossip_key);
        let boot = boot.to_be_bytes();
        let info = [sender.0.as_slice(), receiver.0.as_slice(), boot.as_slice()];
        let mut key = [0; 32];
        let extracted = Salt::new(HKDF_SHA256, DOMAIN).extract(&secrets);
        let filled = extracted.expand(&info, KeyLen).and_then(|okm| okm.fill(&mut key));
        secrets.zeroize();
        filled.ok().map(|()| DatagramKey(key))
    }
}

impl Drop for PairSecret {
    fn drop(&mut self) {
        self.0.zeroize();
    }
}

impl std::fmt::Debug for PairSecret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("PairSecret")
    }
}

struct KeyLen;

impl KeyType for KeyLen {
    fn len(&self) -> usize {
        32
    }
}

/// The key of one direction between two nodes, for one boot of the sender. Kept as bytes: expanded for AES it
/// would be thirty times as large, and expanding it takes a fraction of sealing.
#[derive(Clone, PartialEq, Eq)]
pub struct DatagramKey([u8; 32]);

impl Drop for DatagramKey {
    fn drop(&mut self) {
        self.0.zeroize();
    }
}

impl std::fmt::Debug for DatagramKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("DatagramKey")
    }
}

impl DatagramKey {
    /// Seals frames into a datagram. Never called twice with one sequence. None beyond RFC 8452's limits,
    /// which no datagram reaches.
    pub fn seal(&self, header: &DatagramHeader, plaintext: &[u8]) -> Option<Vec<u8>> {
        let head = header.to_bytes();
        let mut datagram = Vec::with_capacity(HEADER_LEN + plaintext.len() + TAG_LEN);
        datagram.extend_from_slice(&head);
        datagram.extend_from_slice(plaintext);
        let tag = datagram_cipher::encrypt(&self.0, &header.nonce(), &head, datagram.get_mut(HEADER_LEN..)?)?;
        datagram.extend_from_slice(&tag);
        Some(datagram)
    }

    /// Opens the ciphertext after the header, in place; `None` when the seal is invalid.
    pub fn open<'a>(&self, header: &DatagramHeader, ciphertext: &'a mut [u8]) -> Option<&'a [u8]> {
        let (body, tag) = ciphertext.split_last_chunk_mut::<TAG_LEN>()?;
        datagram_cipher::decrypt(&self.0, &header.nonce(), &header.to_bytes(), body, tag)?;
        Some(body)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use ring::signature::{Ed25519KeyPair, KeyPair};

    use super::*;
    use crate::transport::{KeyHint, MAX_DATAGRAM, MAX_PLAINTEXT};

    fn public(seed: u8) -> PublicKey {
        let pair = Ed25519KeyPair::from_seed_unchecked(&[seed; 32]).unwrap();
        PublicKey(pair.public_key().as_ref().try_into().unwrap())
    }

    fn secret(own: u8, peer: u8) -> PairSecret {
        PairSecret::new(&[own; 32], &public(peer)).unwrap()
    }

    /// The key of datagrams from node 1 to node 2.
    fn key(gossip: u8, boot: u64) -> DatagramKey {
        secret(1, 2).key(&[gossip; 32], &public(1).id(), &public(2).id(), boot).unwrap()
    }

    fn header(boot: u64, sequence: u64) -> DatagramHeader {
        DatagramHeader { version: 1, key: KeyHint([7; 4]), sender: public(1).id(), boot, sequence }
    }

    #[test]
    fn both_ends_have_one_secret_and_a_third_has_another() {
        assert_eq!(secret(1, 2).0, secret(2, 1).0);
        assert_ne!(secret(1, 2).0, secret(1, 3).0);
        assert_ne!(secret(1, 2).0, secret(3, 2).0);
    }

    #[test]
    fn the_secret_is_x25519s() {
        // The keys of RFC 8032, 7.1, tests 1 and 2; converted and multiplied by RFC 7748, 5, written out with
        // big integers.
        let seeds = [
            "9d61b19deffd5a60ba844af492ec2cc44449c5697b326919703bac031cae7f60",
            "4ccd089b28ff96da9db6c346ec114e0f5b8a319f35aba624da8cf6ed4fb8a6fb",
        ];
        let seed = |text: &str| -> [u8; 32] {
            data_encoding::HEXLOWER.decode(text.as_bytes()).unwrap().try_into().unwrap()
        };
        let peer = Ed25519KeyPair::from_seed_unchecked(&seed(seeds[1])).unwrap();
        let peer = PublicKey(peer.public_key().as_ref().try_into().unwrap());
        let shared = PairSecret::new(&seed(seeds[0]), &peer).unwrap();
        assert_eq!(
            data_encoding::HEXLOWER.encode(&shared.0),
            "5166f24a6918368e2af831a4affadd97af0ac326bdf143596c045967cc00230e"
        );
    }

    #[test]
    fn a_key_that_makes_every_secret_the_same_is_refused() {
        // The eight points of small order, as far as ed25519 encodes them canonically, and values that are no
        // point.
        let hex = |text: &str| {
            PublicKey(data_encoding::HEXLOWER.decode(text.as_bytes()).unwrap().try_into().unwrap())
        };
        for key in [
            "0100000000000000000000000000000000000000000000000000000000000000",
            "ecffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
            "0000000000000000000000000000000000000000000000000000000000000080",
            "0000000000000000000000000000000000000000000000000000000000000000",
            "c7176a703d4dd84fba3c0b760d10670f2a2053fa2c39ccc64ec7fd7792ac037a",
            "c7176a703d4dd84fba3c0b760d10670f2a2053fa2c39ccc64ec7fd7792ac03fa",
            "26e8958fc2b227b045c3f489f2ef98f0d5dfac05d3c63339b13802886d53fc05",
            "26e8958fc2b227b045c3f489f2ef98f0d5dfac05d3c63339b13802886d53fc85",
            "0200000000000000000000000000000000000000000000000000000000000000",
        ] {
            assert!(PairSecret::new(&[1; 32], &hex(key)).is_none(), "{key}");
        }
    }

    #[test]
    fn a_datagram_opens_only_with_the_same_pair_direction_gossip_key_boot_and_bytes() {
        let datagram = key(7, 5).seal(&header(5, 9), b"hello").unwrap();
        let opened = |key: &DatagramKey, datagram: &[u8]| {
            let (header, ciphertext) = DatagramHeader::parse(datagram)?;
            key.open(&header, &mut ciphertext.to_vec()).map(<[u8]>::to_vec)
        };
        assert_eq!(opened(&key(7, 5), &datagram).as_deref(), Some(b"hello".as_slice()));
        let (one, two, three) = (public(1).id(), public(2).id(), public(3).id());
        let pair = secret(2, 1);
        assert_eq!(pair.key(&[7; 32], &one, &two, 5), Some(key(7, 5)), "the other end derives the same");
        for (what, other) in [
            ("another gossip key", key(8, 5)),
            ("another boot", key(7, 6)),
            ("the other direction", pair.key(&[7; 32], &two, &one, 5).unwrap()),
            ("a member that says it is another", secret(3, 2).key(&[7; 32], &one, &two, 5).unwrap()),
            ("another receiver", pair.key(&[7; 32], &one, &three, 5).unwrap()),
        ] {
            assert_eq!(opened(&other, &datagram), None, "{what}");
        }
        for at in 0..datagram.len() {
            let mut bent = datagram.clone();
            bent[at] ^= 1;
            assert_eq!(opened(&key(7, 5), &bent), None, "byte {at}");
        }
    }

    #[test]
    fn a_machine_resumed_twice_shows_only_that_equal_datagrams_are_equal() {
        let seal = |text: &[u8]| key(7, 5).seal(&header(5, 9), text).unwrap();
        let (one, two) = (seal(b"first message"), seal(b"other message"));
        assert_eq!(one, seal(b"first message"));
        let body = HEADER_LEN..one.len() - TAG_LEN;
        // With a stream cipher these would differ exactly where the messages do.
        let differ = one[body.clone()].iter().zip(&two[body]).filter(|(a, b)| a != b).count();
        assert!(differ > 8, "{differ} of 13 bytes differ");
    }

    #[test]
    #[cfg_attr(feature = "next-wire", ignore = "golden bytes are those of builds without it")]
    fn golden_bytes() {
        use crate::transport::DatagramFrame;
        let status = [1, 1, 2, 2, 14, 8, b'k', b'u', b'b', b'e', b'-', b'a', b'p', b'i', 0, 0, 1, 0, 0];
        let peer = |n: u8, ms| (NodeId([n; NodeId::LEN]), std::time::Duration::from_millis(ms));
        let report = crate::heard::to_bytes(vec![peer(1, 40), peer(2, 9_000)]);
        let frames = [
            ("gossip", vec![DatagramFrame::Gossip(b"a message of gossip")]),
            ("challenge", vec![DatagramFrame::Challenge(0x0102_0304_0506_0708)]),
            ("echo", vec![DatagramFrame::Echo(0x0102_0304_0506_0708)]),
            ("pulse", vec![DatagramFrame::Pulse(7)]),
            ("answer", vec![DatagramFrame::Answer(7, &status)]),
            (
                "answer-with-fingerprint",
                vec![DatagramFrame::Answer(7, &status), DatagramFrame::RecordFingerprint(0xfeed)],
            ),
            ("vip", vec![DatagramFrame::Vip(b"a message of virtual IPs")]),
            ("pulse-with-report", vec![DatagramFrame::Pulse(7), DatagramFrame::Heard(&report)]),
            ("attach", vec![DatagramFrame::Attach(b"a report of an attached node")]),
            ("beacon", vec![DatagramFrame::Beacon(b"what a core member says")]),
            ("beside", vec![DatagramFrame::Beside(0x0102_0304_0506_0708)]),
            ("elsewhere", vec![DatagramFrame::Elsewhere(b"a proof of life")]),
        ];
        let stored =
            include_str!("../tests/golden/datagrams.hex").lines().filter(|line| !line.starts_with('#'));
        let written = frames.iter().map(|(name, frames)| {
            let mut plaintext = Vec::new();
            assert!(frames.iter().all(|frame| frame.put(&mut plaintext)));
            assert_eq!(&DatagramFrame::all(&plaintext).collect::<Vec<_>>(), frames);
            let datagram = key(7, 5).seal(&header(5, 9), &plaintext).unwrap();
            let hex = |bytes: &[u8]| data_encoding::HEXLOWER.encode(bytes);
            format!("{name} {} {}", hex(&plaintext), hex(&datagram))
        });
        assert_eq!(stored.collect::<Vec<_>>().join("\n"), written.collect::<Vec<_>>().join("\n"));
    }

    #[test]
    fn the_largest_plaintext_fills_the_largest_datagram() {
        assert_eq!(key(7, 5).seal(&header(5, 9), &[0; MAX_PLAINTEXT]).unwrap().len(), MAX_DATAGRAM);
    }

    /// `cargo test --release -p proto cost_of_the_seal -- --ignored --nocapture`
    #[test]
    #[ignore = "prints what the seal costs"]
    #[allow(clippy::disallowed_methods)]
    fn cost_of_the_seal() {
        use ring::aead::{Aad, CHACHA20_POLY1305, LessSafeKey, Nonce, UnboundKey};
        fn each(mut work: impl FnMut()) -> f64 {
            const ROUNDS: u32 = 20_000;
            let mut best = f64::MAX;
            for _ in 0..5 {
                let began = Instant::now();
                (0..ROUNDS).for_each(|_| work());
                best = best.min(began.elapsed().as_nanos() as f64 / f64::from(ROUNDS));
            }
            best
        }
        println!("ns, best of 5:      seal   open   chacha20 seal  open");
        for length in [100, 1_100] {
            let (key, header, plain) = (key(7, 5), header(5, 9), vec![7; length]);
            let datagram = key.seal(&header, &plain).unwrap();
            let seal = each(|| drop(std::hint::black_box(key.seal(&header, &plain))));
            let open = each(|| {
                let mut body = datagram[HEADER_LEN..].to_vec();
                assert!(std::hint::black_box(key.open(&header, &mut body)).is_some());
            });
            let old = LessSafeKey::new(UnboundKey::new(&CHACHA20_POLY1305, &[7; 32]).unwrap());
            let nonce = || Nonce::assume_unique_for_key(header.nonce());
            let sealed = |plain: &[u8]| {
                let mut body = plain.to_vec();
                old.seal_in_place_append_tag(nonce(), Aad::from(header.to_bytes()), &mut body).unwrap();
                body
            };
            let body = sealed(&plain);
            let old_seal = each(|| drop(std::hint::black_box(sealed(&plain))));
            let old_open = each(|| {
                let mut body = body.clone();
                assert!(old.open_in_place(nonce(), Aad::from(header.to_bytes()), &mut body).is_ok());
            });
            println!("{length:>5} bytes:      {seal:>6.0} {open:>6.0} {old_seal:>10.0} {old_open:>10.0}");
        }
        let pair = secret(1, 2);
        let ids = (public(1).id(), public(2).id());
        let derive = each(|| drop(std::hint::black_box(pair.key(&[7; 32], &ids.0, &ids.1, 5))));
        let peer = public(2);
        let began = Instant::now();
        (0..200).for_each(|_| drop(std::hint::black_box(PairSecret::new(&[1; 32], &peer))));
        println!(
            "a key from the pair secret: {derive:.0} ns; a pair secret: {} ns",
            began.elapsed().as_nanos() / 200
        );
    }
}
