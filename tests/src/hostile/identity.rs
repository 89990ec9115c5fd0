//! Identities on the transport: a key, and what came with it.

use std::path::Path;
use std::sync::Arc;

use anyhow::{Context, Result, anyhow};
use proto::node::{NodeId, PublicKey};
use ring::rand::{SecureRandom, SystemRandom};
use ring::signature::{Ed25519KeyPair, KeyPair};
use rustls::pki_types::{CertificateDer, PrivatePkcs8KeyDer};
use rustls::sign::CertifiedKey;
use serde::de::DeserializeOwned;

/// What precedes an ed25519 key in a SubjectPublicKeyInfo (RFC 8410).
pub(crate) const SPKI_PREFIX: [u8; 12] =
    [0x30, 0x2a, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x03, 0x21, 0x00];

/// What precedes an ed25519 seed in PKCS#8 version 1 (RFC 8410).
const PKCS8_PREFIX: [u8; 16] =
    [0x30, 0x2e, 0x02, 0x01, 0x00, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x04, 0x22, 0x04, 0x20];

/// So many random bytes.
///
/// # Panics
/// The system has none.
pub fn random<const N: usize>() -> [u8; N] {
    let mut bytes = [0; N];
    assert!(SystemRandom::new().fill(&mut bytes).is_ok(), "the system has no random bytes");
    bytes
}

/// A key pair and its id.
pub struct Identity {
    /// The seed of the key.
    pub seed: [u8; 32],
    /// The key.
    pub key: PublicKey,
    /// The id that belongs to it.
    pub id: NodeId,
    /// The same key, for signatures.
    pub pair: Ed25519KeyPair,
    pub(crate) certified: Arc<CertifiedKey>,
}

impl Identity {
    /// The identity of this seed.
    ///
    /// # Errors
    /// ring or rustls refuses it.
    pub fn from_seed(seed: [u8; 32]) -> Result<Identity> {
        let pair = Ed25519KeyPair::from_seed_unchecked(&seed).map_err(|_| anyhow!("a key from a seed"))?;
        let key = PublicKey(pair.public_key().as_ref().try_into()?);
        let pkcs8 = PrivatePkcs8KeyDer::from([PKCS8_PREFIX.as_slice(), &seed].concat());
        let signing = rustls::crypto::ring::sign::any_eddsa_type(&pkcs8)?;
        let spki = CertificateDer::from([SPKI_PREFIX.as_slice(), &key.0].concat());
        let certified = Arc::new(CertifiedKey::new(vec![spki], signing));
        Ok(Identity { seed, key, id: key.id(), pair, certified })
    }

    /// A new identity.
    ///
    /// # Errors
    /// As [`Identity::from_seed`].
    pub fn stranger() -> Result<Identity> {
        Identity::from_seed(random())
    }

    /// The identity in an agent's state directory.
    ///
    /// # Errors
    /// There is none that can be read.
    pub fn of_state(dir: &Path) -> Result<Identity> {
        let identity: serde_json::Value = read_state(dir, "identity")?;
        let seed = identity["seed"].as_str().context("no seed")?;
        let bytes: Vec<u8> = (0..seed.len() / 2)
            .map(|i| u8::from_str_radix(seed.get(2 * i..2 * i + 2).unwrap_or("-"), 16))
            .collect::<Result<_, _>>()?;
        Identity::from_seed(bytes.try_into().map_err(|_| anyhow!("a seed of the wrong length"))?)
    }
}

/// A state file, after its first line.
#[derive(serde::Deserialize)]
struct Versioned<T> {
    value: T,
}

/// The value of a file in an agent's state directory: one line in front, then JSON with a version.
///
/// # Errors
/// There is none, or it holds something else.
pub fn read_state<T: DeserializeOwned>(dir: &Path, name: &str) -> Result<T> {
    let path = dir.join(name);
    let text = std::fs::read_to_string(&path).with_context(|| path.display().to_string())?;
    let (_, body) = text.split_once('\n').context("a state file of one line")?;
    let file: Versioned<T> = serde_json::from_str(body).with_context(|| path.display().to_string())?;
    Ok(file.value)
}
