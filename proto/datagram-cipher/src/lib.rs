//! AES-256-GCM-SIV (RFC 8452) of whole datagrams. The cipher is generic code, which is made where it is used: here, in
//! a crate of a few lines, it costs nothing to make it for speed.

use aes_gcm_siv::aead::AeadInOut;
use aes_gcm_siv::aead::inout::InOutBuf;
use aes_gcm_siv::{Aes256GcmSiv, KeyInit};

/// Bytes of a key.
pub const KEY_LEN: usize = 32;

/// Bytes of a nonce.
pub const NONCE_LEN: usize = 12;

/// Bytes of a tag.
pub const TAG_LEN: usize = 16;

/// Encrypts `body` in place, and returns the tag of it and of `head`. `None` beyond RFC 8452's limits, of 64 GB.
pub fn encrypt(
    key: &[u8; KEY_LEN],
    nonce: &[u8; NONCE_LEN],
    head: &[u8],
    body: &mut [u8],
) -> Option<[u8; TAG_LEN]> {
    let cipher = Aes256GcmSiv::new(key.into());
    let tag = cipher.encrypt_inout_detached(nonce.into(), head, InOutBuf::from(body)).ok()?;
    Some(tag.into())
}

/// Decrypts `body` in place. `None`: the tag is not that of `head` and `body`, which is then of no use.
pub fn decrypt(
    key: &[u8; KEY_LEN],
    nonce: &[u8; NONCE_LEN],
    head: &[u8],
    body: &mut [u8],
    tag: &[u8; TAG_LEN],
) -> Option<()> {
    let cipher = Aes256GcmSiv::new(key.into());
    cipher.decrypt_inout_detached(nonce.into(), head, InOutBuf::from(body), tag.into()).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// RFC 8452, appendix C.2: the first case with a plaintext.
    #[test]
    fn it_is_the_cipher_of_rfc_8452() {
        let (mut key, mut nonce) = ([0; KEY_LEN], [0; NONCE_LEN]);
        (key[0], nonce[0]) = (1, 3);
        let mut body = [1, 0, 0, 0, 0, 0, 0, 0];
        let tag = encrypt(&key, &nonce, &[], &mut body).unwrap();
        assert_eq!(body, [0xc2, 0xef, 0x32, 0x8e, 0x5c, 0x71, 0xc8, 0x3b]);
        assert_eq!(tag[..4], [0x84, 0x31, 0x22, 0x13]);
        assert_eq!(decrypt(&key, &nonce, &[1], &mut body.clone(), &tag), None);
        assert_eq!(decrypt(&key, &nonce, &[], &mut body, &tag), Some(()));
        assert_eq!(body, [1, 0, 0, 0, 0, 0, 0, 0]);
    }
}
