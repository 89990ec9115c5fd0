//! The transport's TCP port: TLS 1.3 with raw public keys, then length-prefixed frames.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use proto::node::PublicKey;
use proto::rpc::{EXPORTER_LABEL, decode, encode};
use rustls::client::AlwaysResolvesClientRawPublicKeys;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, verify_tls13_signature_with_raw_key};
use rustls::pki_types::{CertificateDer, ServerName, SubjectPublicKeyInfoDer, UnixTime};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::{
    ClientConfig, ClientConnection, DigitallySignedStruct, DistinguishedName, SignatureScheme, StreamOwned,
    client::Resumption,
};
use serde::{Serialize, de::DeserializeOwned};

use super::identity::{Identity, SPKI_PREFIX};
use crate::lab::Node;

/// How long a peer may take for anything.
const PATIENCE: Duration = Duration::from_secs(10);

/// Most bytes of a frame that is read.
const MAX_FRAME: usize = 16 << 20;

/// Bytes per write, so that it is known how much the other side accepted: a TLS record.
const PIECE: usize = 16_384;

/// Opens a TCP connection from a node.
///
/// # Errors
/// It is refused, or nobody answers.
pub fn dial(from: &Node, to: SocketAddr) -> Result<TcpStream> {
    let stream = from.inside(|| Ok(TcpStream::connect_timeout(&to, PATIENCE)?))?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    stream.set_nodelay(true)?;
    Ok(stream)
}

/// A connection to the transport's port, after its handshake.
pub struct Connection {
    stream: StreamOwned<ClientConnection, TcpStream>,
    /// The session's exported value, which proofs and codes are bound to.
    pub session: [u8; 32],
    /// The key that answered.
    pub peer: PublicKey,
    /// Bytes of frames that were sent.
    pub sent: u64,
}

impl Identity {
    /// Connects to a node, offers these protocols, and completes the handshake.
    ///
    /// # Errors
    /// Nobody answers, or the handshake is refused; the other side may report that only later.
    pub fn connect(&self, from: &Node, to: SocketAddr, alpn: &[&[u8]]) -> Result<Connection> {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let resolver = AlwaysResolvesClientRawPublicKeys::new(self.certified.clone());
        let mut config = ClientConfig::builder_with_provider(provider.clone())
            .with_protocol_versions(&[&rustls::version::TLS13])?
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(Anyone(provider)))
            .with_client_cert_resolver(Arc::new(resolver));
        config.alpn_protocols = alpn.iter().map(|one| one.to_vec()).collect();
        config.resumption = Resumption::disabled();
        config.enable_sni = false;
        let mut stream = dial(from, to)?;
        let mut connection = ClientConnection::new(Arc::new(config), ServerName::from(to.ip()))?;
        while connection.is_handshaking() {
            connection.complete_io(&mut stream)?;
        }
        let spki = connection.peer_certificates().and_then(<[_]>::first).context("no key")?;
        let key = spki.strip_prefix(&SPKI_PREFIX).context("not a raw ed25519 key")?;
        let peer = PublicKey(key.try_into()?);
        let session = connection.export_keying_material([0; 32], EXPORTER_LABEL, None)?;
        Ok(Connection { stream: StreamOwned::new(connection, stream), session, peer, sent: 0 })
    }
}

impl Connection {
    /// Sends a message.
    ///
    /// # Errors
    /// The other side has closed.
    pub fn send<T: Serialize>(&mut self, message: &T) -> Result<()> {
        self.send_frame(&encode(message)?)
    }

    /// Sends bytes as a frame.
    ///
    /// # Errors
    /// The other side has closed.
    pub fn send_frame(&mut self, frame: &[u8]) -> Result<()> {
        self.send_part(u32::try_from(frame.len())?, frame)
    }

    /// Announces a frame of this length, and sends a part of it.
    ///
    /// # Errors
    /// The other side has closed.
    pub fn send_part(&mut self, announced: u32, part: &[u8]) -> Result<()> {
        self.stream.write_all(&announced.to_be_bytes())?;
        self.go_on(part)?;
        self.sent += 4;
        Ok(())
    }

    /// Sends more of a frame.
    ///
    /// # Errors
    /// The other side has closed.
    pub fn go_on(&mut self, part: &[u8]) -> Result<()> {
        for piece in part.chunks(PIECE) {
            self.stream.write_all(piece)?;
            self.stream.flush()?;
            self.sent += piece.len() as u64;
        }
        Ok(())
    }

    /// Receives a message.
    ///
    /// # Errors
    /// There is none in time, the other side has closed, or it sends something else.
    pub fn receive<T: DeserializeOwned>(&mut self) -> Result<T> {
        read_message(&mut self.stream)
    }

    /// Sets how long to wait for the other side from now on.
    ///
    /// # Errors
    /// The socket refuses.
    pub fn patience(&self, time: Duration) -> Result<()> {
        self.stream.sock.set_read_timeout(Some(time))?;
        self.stream.sock.set_write_timeout(Some(time))?;
        Ok(())
    }

    /// Whether the other side has closed; waits a moment for that.
    pub fn is_closed(&mut self) -> bool {
        let _ = self.patience(Duration::from_millis(20));
        match self.stream.read(&mut [0]) {
            Ok(count) => count == 0,
            Err(error) => {
                !matches!(error.kind(), std::io::ErrorKind::WouldBlock | std::io::ErrorKind::TimedOut)
            }
        }
    }
}

/// Reads a length-prefixed message.
///
/// # Errors
/// There is none, or it is something else.
pub(super) fn read_message<T: DeserializeOwned>(stream: &mut impl Read) -> Result<T> {
    let mut length = [0; 4];
    stream.read_exact(&mut length)?;
    let length = usize::try_from(u32::from_be_bytes(length))?;
    if length > MAX_FRAME {
        bail!("a frame of {length} bytes");
    }
    let mut frame = vec![0; length];
    stream.read_exact(&mut frame)?;
    decode(&frame).map_err(|error| anyhow::anyhow!("{error}"))
}

/// Accepts any key: an attacker does not care.
#[derive(Debug)]
pub(super) struct Anyone(pub(super) Arc<CryptoProvider>);

impl Anyone {
    fn signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let spki = SubjectPublicKeyInfoDer::from(certificate.as_ref());
        verify_tls13_signature_with_raw_key(message, &spki, signed, &self.0.signature_verification_algorithms)
    }
}

/// TLS 1.2 is offered by none of the configurations.
fn no_tls12() -> rustls::Error {
    rustls::Error::General("only TLS 1.3 is spoken".to_owned())
}

impl ServerCertVerifier for Anyone {
    fn verify_server_cert(
        &self,
        _end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _certificate: &CertificateDer<'_>,
        _signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Err(no_tls12())
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.signature(message, certificate, signed)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        vec![SignatureScheme::ED25519]
    }

    fn requires_raw_public_keys(&self) -> bool {
        true
    }
}

impl ClientCertVerifier for Anyone {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn verify_client_cert(
        &self,
        _end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _now: UnixTime,
    ) -> Result<ClientCertVerified, rustls::Error> {
        Ok(ClientCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _certificate: &CertificateDer<'_>,
        _signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Err(no_tls12())
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.signature(message, certificate, signed)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        vec![SignatureScheme::ED25519]
    }

    fn requires_raw_public_keys(&self) -> bool {
        true
    }
}
