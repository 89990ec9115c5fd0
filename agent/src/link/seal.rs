//! Sealing and opening of datagrams: ChaCha20-Poly1305 under a key derived by HKDF-SHA256 from the gossip
//! key, the sender and its boot. ChaCha20, since it is as fast on small boards without AES.

use proto::cluster::KeyId;
use proto::link::{GossipKey, HEADER_LEN, Header, TAG_LEN};
use proto::node::NodeId;
use ring::aead::{Aad, CHACHA20_POLY1305, LessSafeKey, Nonce, UnboundKey};
use ring::hkdf::{HKDF_SHA256, KeyType, Salt};

struct KeyLen;

impl KeyType for KeyLen {
    fn len(&self) -> usize {
        32
    }
}

fn derive(secret: &[u8; 32], sender: &NodeId, boot: u64) -> Option<LessSafeKey> {
    let salt = Salt::new(HKDF_SHA256, b"agent link 1");
    let boot = boot.to_be_bytes();
    let info = [sender.0.as_slice(), boot.as_slice()];
    let mut key = [0; 32];
    salt.extract(secret).expand(&info, KeyLen).ok()?.fill(&mut key).ok()?;
    UnboundKey::new(&CHACHA20_POLY1305, &key).ok().map(LessSafeKey::new)
}

/// The key that this node seals with, kept between datagrams.
pub(crate) struct Sealer {
    id: KeyId,
    key: LessSafeKey,
}

impl Sealer {
    /// The sealer of this sender under a gossip key.
    pub(crate) fn new(key: &GossipKey, sender: &NodeId, boot: u64) -> Option<Sealer> {
        Some(Sealer { id: key.id, key: derive(&key.secret, sender, boot)? })
    }

    /// Which gossip key it was made of.
    pub(crate) fn id(&self) -> KeyId {
        self.id
    }

    /// Seals a payload into a datagram. The caller never uses a sequence twice.
    pub(crate) fn seal(&self, header: &Header, payload: &[u8]) -> Option<Vec<u8>> {
        let head = header.to_bytes();
        let mut datagram = Vec::with_capacity(HEADER_LEN + payload.len() + TAG_LEN);
        datagram.extend_from_slice(&head);
        datagram.extend_from_slice(payload);
        let nonce = Nonce::assume_unique_for_key(header.nonce());
        let body = datagram.get_mut(HEADER_LEN..)?;
        let tag = self.key.seal_in_place_separate_tag(nonce, Aad::from(head), body).ok()?;
        datagram.extend_from_slice(tag.as_ref());
        Some(datagram)
    }
}

/// The key that one sender's datagrams of one boot are opened with. Deriving it costs more than opening a
/// datagram, so that of a sender who has proven its boot is kept.
pub(crate) struct Opener {
    boot: u64,
    /// Both: ids are short, and a later key might have the same.
    of: (u64, KeyId),
    key: LessSafeKey,
}

impl Opener {
    /// The opener of what the sender in `header` has sealed in its boot under a gossip key.
    pub(crate) fn new(key: &GossipKey, header: &Header) -> Option<Opener> {
        let derived = derive(&key.secret, &header.sender, header.boot)?;
        Some(Opener { boot: header.boot, of: (key.epoch, key.id), key: derived })
    }

    /// Whether it is the one for this key and boot; the sender is for the caller to know.
    pub(crate) fn fits(&self, key: &GossipKey, header: &Header) -> bool {
        self.boot == header.boot && self.of == (key.epoch, key.id)
    }

    /// Opens a datagram's ciphertext in place; none when the seal does not hold.
    pub(crate) fn open<'a>(&self, header: &Header, ciphertext: &'a mut [u8]) -> Option<&'a [u8]> {
        let nonce = Nonce::assume_unique_for_key(header.nonce());
        self.key.open_in_place(nonce, Aad::from(header.to_bytes()), ciphertext).ok().map(|plain| &*plain)
    }
}

#[cfg(test)]
mod tests {
    use proto::link::MAX_DATAGRAM;

    use super::*;

    fn key(n: u8) -> GossipKey {
        let secret = [n; 32];
        GossipKey { epoch: 1, id: KeyId::of_key(&secret), secret, until: None }
    }

    #[test]
    fn what_was_sealed_opens_only_with_the_same_key_sender_boot_and_bytes() {
        let sender = NodeId([1; 10]);
        let header = Header { key: key(1).id, sender, boot: 5, sequence: 9 };
        let datagram = Sealer::new(&key(1), &sender, 5).unwrap().seal(&header, b"hello").unwrap();
        let opened = |key: &GossipKey, datagram: &[u8]| {
            let (header, ciphertext) = Header::parse(datagram)?;
            let mut ciphertext = ciphertext.to_vec();
            Opener::new(key, &header)?.open(&header, &mut ciphertext).map(<[u8]>::to_vec)
        };
        assert_eq!(opened(&key(1), &datagram).as_deref(), Some(b"hello".as_slice()));
        assert_eq!(opened(&key(2), &datagram), None);
        for at in 0..datagram.len() {
            let mut bent = datagram.clone();
            bent[at] ^= 1;
            assert_eq!(opened(&key(1), &bent), None, "byte {at}");
        }
    }

    #[test]
    fn the_largest_payload_fills_the_largest_datagram() {
        let sender = NodeId([1; 10]);
        let header = Header { key: key(1).id, sender, boot: 5, sequence: 9 };
        let payload = vec![0; proto::link::MAX_PAYLOAD + 1];
        let datagram = Sealer::new(&key(1), &sender, 5).unwrap().seal(&header, &payload).unwrap();
        assert_eq!(datagram.len(), MAX_DATAGRAM);
    }
}
