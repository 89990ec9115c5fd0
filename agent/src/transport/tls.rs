//! TLS 1.3 with raw public keys (RFC 7250): a node is its key. No X.509, nothing expires.

use std::sync::Arc;

use proto::node::{NodeId, PUBLIC_KEY_LEN, PublicKey};
use proto::rpc::{ALPN_JOIN, ALPN_MEMBER, EXPORTER_LABEL};
use proto::seal::PairSecret;
use ring::signature::{Ed25519KeyPair, KeyPair};
use rustls::client::AlwaysResolvesClientRawPublicKeys;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, verify_tls13_signature_with_raw_key};
use rustls::pki_types::{CertificateDer, PrivatePkcs8KeyDer, ServerName, SubjectPublicKeyInfoDer, UnixTime};
use rustls::server::AlwaysResolvesServerRawPublicKeys;
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::sign::CertifiedKey;
use rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, DistinguishedName, Error, ServerConfig,
    SignatureScheme,
};
use tokio::sync::watch;
use zeroize::Zeroizing;

use super::TrustedKeys;

/// What precedes an ed25519 key in a SubjectPublicKeyInfo (RFC 8410).
const SPKI_PREFIX: [u8; 12] = [0x30, 0x2a, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x03, 0x21, 0x00];
/// What precedes an ed25519 seed in PKCS#8 version 1 (RFC 8410).
const PKCS8_PREFIX: [u8; 16] =
    [0x30, 0x2e, 0x02, 0x01, 0x00, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x04, 0x22, 0x04, 0x20];

/// Why a seed makes no identity.
#[derive(Debug, thiserror::Error)]
pub(crate) enum IdentityError {
    /// No key can be made of it.
    #[error("its seed is invalid: {0}")]
    Seed(#[from] ring::error::KeyRejected),
    /// The key is of another kind.
    #[error("not an ed25519 key")]
    NotEd25519,
    /// TLS does not take it.
    #[error("TLS rejects the key: {0}")]
    Tls(#[from] Error),
}

/// This node's key, and who that makes it.
pub(crate) struct Identity {
    pub(crate) id: NodeId,
    pub(crate) key: PublicKey,
    /// What the keys of datagrams are made of.
    seed: Zeroizing<[u8; 32]>,
    pair: Ed25519KeyPair,
    certified: Arc<CertifiedKey>,
    provider: Arc<CryptoProvider>,
}

impl Identity {
    /// The identity that belongs to a secret seed.
    pub(crate) fn from_seed(seed: &[u8; 32]) -> Result<Identity, IdentityError> {
        let pair = Ed25519KeyPair::from_seed_unchecked(seed)?;
        let public: [u8; PUBLIC_KEY_LEN] =
            pair.public_key().as_ref().try_into().map_err(|_| IdentityError::NotEd25519)?;
        let key = PublicKey(public);
        let pkcs8 = PrivatePkcs8KeyDer::from([PKCS8_PREFIX.as_slice(), seed].concat());
        let signing = rustls::crypto::ring::sign::any_eddsa_type(&pkcs8)?;
        let spki = CertificateDer::from([SPKI_PREFIX.as_slice(), &public].concat());
        Ok(Identity {
            id: key.id(),
            key,
            seed: Zeroizing::new(*seed),
            pair,
            certified: Arc::new(CertifiedKey::new(vec![spki], signing)),
            provider: Arc::new(rustls::crypto::ring::default_provider()),
        })
    }

    /// What this node and the one with this key share; none for a key that nothing may be sealed with.
    pub(crate) fn pair_secret(&self, peer: &PublicKey) -> Option<PairSecret> {
        PairSecret::new(&self.seed, peer)
    }

    /// What this node signs with.
    pub(crate) fn pair(&self) -> &Ed25519KeyPair {
        &self.pair
    }

    /// How this node speaks to members: the peer must have exactly this key.
    pub(crate) fn client(&self, expected: PublicKey) -> Result<ClientConfig, Error> {
        self.client_config(AcceptedKeys::Key(expected), ALPN_MEMBER)
    }

    /// How this node asks to join: the key that answers must have this hash, or may be any.
    pub(crate) fn joining_client(
        &self,
        pin: Option<proto::invite::IssuerPin>,
    ) -> Result<ClientConfig, Error> {
        self.client_config(pin.map_or(AcceptedKeys::Any, AcceptedKeys::Pin), ALPN_JOIN)
    }

    fn client_config(&self, pinned: AcceptedKeys, alpn: &[&[u8]]) -> Result<ClientConfig, Error> {
        let verifier = RawKeyVerifier { allow: pinned, provider: self.provider.clone() };
        let mut config = ClientConfig::builder_with_provider(self.provider.clone())
            .with_protocol_versions(&[&rustls::version::TLS13])?
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(verifier))
            .with_client_cert_resolver(Arc::new(AlwaysResolvesClientRawPublicKeys::new(
                self.certified.clone(),
            )));
        config.alpn_protocols = alpn.iter().map(|one| one.to_vec()).collect();
        // A resumed session would not prove the key again.
        config.resumption = rustls::client::Resumption::disabled();
        config.enable_sni = false;
        Ok(config)
    }

    /// How this node answers members: the peer's key must stand in the document at that moment.
    pub(crate) fn member_server(
        &self,
        trust: watch::Receiver<Arc<TrustedKeys>>,
    ) -> Result<ServerConfig, Error> {
        self.server_config(AcceptedKeys::Member(trust), ALPN_MEMBER)
    }

    /// How this node answers those who want to join: any key, as long as it is proven.
    pub(crate) fn joining_server(&self) -> Result<ServerConfig, Error> {
        self.server_config(AcceptedKeys::Any, ALPN_JOIN)
    }

    fn server_config(&self, pinned: AcceptedKeys, alpn: &[&[u8]]) -> Result<ServerConfig, Error> {
        let verifier = RawKeyVerifier { allow: pinned, provider: self.provider.clone() };
        let mut config = ServerConfig::builder_with_provider(self.provider.clone())
            .with_protocol_versions(&[&rustls::version::TLS13])?
            .with_client_cert_verifier(Arc::new(verifier))
            .with_cert_resolver(Arc::new(AlwaysResolvesServerRawPublicKeys::new(self.certified.clone())));
        config.alpn_protocols = alpn.iter().map(|one| one.to_vec()).collect();
        config.send_tls13_tickets = 0;
        config.session_storage = Arc::new(rustls::server::NoServerSessionStorage {});
        Ok(config)
    }
}

impl std::fmt::Debug for Identity {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Identity({})", self.id)
    }
}

/// The public key in a raw public key "certificate".
pub(crate) fn key_of(certificate: &CertificateDer<'_>) -> Option<PublicKey> {
    let key = certificate.as_ref().strip_prefix(&SPKI_PREFIX)?;
    key.try_into().ok().map(PublicKey)
}

/// The value that proofs and codes are bound to (RFC 8446, 7.5).
pub(crate) fn exported_client(connection: &rustls::ClientConnection) -> Result<[u8; 32], Error> {
    connection.export_keying_material([0; 32], EXPORTER_LABEL, None)
}

/// The same on the other side.
pub(crate) fn exported_server(connection: &rustls::ServerConnection) -> Result<[u8; 32], Error> {
    connection.export_keying_material([0; 32], EXPORTER_LABEL, None)
}

/// Which keys are taken.
#[derive(Debug)]
enum AcceptedKeys {
    Any,
    Key(PublicKey),
    Pin(proto::invite::IssuerPin),
    Member(watch::Receiver<Arc<TrustedKeys>>),
}

impl AcceptedKeys {
    fn allows(&self, key: &PublicKey) -> bool {
        match self {
            AcceptedKeys::Any => true,
            AcceptedKeys::Key(expected) => key == expected,
            AcceptedKeys::Pin(pin) => proto::invite::pin_of(key) == *pin,
            AcceptedKeys::Member(trust) => {
                trust.borrow().document.member(&key.id()).is_some_and(|admitted| admitted.key == *key)
            }
        }
    }
}

#[derive(Debug)]
struct RawKeyVerifier {
    allow: AcceptedKeys,
    provider: Arc<CryptoProvider>,
}

impl RawKeyVerifier {
    fn check(&self, certificate: &CertificateDer<'_>) -> Result<(), Error> {
        match key_of(certificate) {
            Some(key) if self.allow.allows(&key) => Ok(()),
            Some(_) => Err(CertificateError::ApplicationVerificationFailure.into()),
            None => Err(CertificateError::BadEncoding.into()),
        }
    }

    fn signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let spki = SubjectPublicKeyInfoDer::from(certificate.as_ref());
        let algorithms = &self.provider.signature_verification_algorithms;
        verify_tls13_signature_with_raw_key(message, &spki, signed, algorithms)
    }
}

/// TLS 1.2 is never negotiated: the configurations name 1.3 alone.
fn no_tls12() -> Error {
    Error::General("TLS 1.2 is not supported".to_owned())
}

impl ServerCertVerifier for RawKeyVerifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        self.check(end_entity).map(|()| ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _certificate: &CertificateDer<'_>,
        _signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Err(no_tls12())
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.signature(message, certificate, signed)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        vec![SignatureScheme::ED25519]
    }

    fn requires_raw_public_keys(&self) -> bool {
        true
    }
}

impl ClientCertVerifier for RawKeyVerifier {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        self.check(end_entity).map(|()| ClientCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _certificate: &CertificateDer<'_>,
        _signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Err(no_tls12())
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.signature(message, certificate, signed)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        vec![SignatureScheme::ED25519]
    }

    fn requires_raw_public_keys(&self) -> bool {
        true
    }
}
