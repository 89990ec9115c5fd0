//! Probes of backends: one connect, and a TLS hello where the service speaks TLS.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use proto::path::{Evidence, HELLO_LATE, HELLO_PATIENCE};
use rustls::pki_types::ServerName;
use rustls::{ClientConfig, ClientConnection, RootCertStore};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

/// What a probe needs to say hello. Nothing that is answered is believed: any byte shows that a process is there.
pub(super) fn hello_config() -> Result<Arc<ClientConfig>, rustls::Error> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions()?;
    Ok(Arc::new(builder.with_root_certificates(RootCertStore::empty()).with_no_client_auth()))
}

/// Connects within this time, says hello if there is a `hello`, and disconnects. Reports what it finds when it finds
/// it; ends within some seconds.
pub(super) async fn probe(
    address: SocketAddr,
    within: Duration,
    hello: Option<Arc<ClientConfig>>,
    report: impl Fn(Evidence),
) {
    let started = Instant::now();
    match tokio::time::timeout(within, TcpStream::connect(address)).await {
        Ok(Ok(stream)) => {
            report(Evidence::Connected { took: started.elapsed().max(Duration::from_micros(1)) });
            if let Some(bytes) = hello.and_then(|config| hello_bytes(address, config)) {
                greet(stream, &bytes, report).await;
            }
        }
        Ok(Err(error)) if error.kind() == io::ErrorKind::ConnectionRefused => report(Evidence::Refused),
        Ok(Err(_)) | Err(_) => report(Evidence::Unanswered),
    }
}

/// A TLS ClientHello without a name, since none is known that every server has.
fn hello_bytes(address: SocketAddr, config: Arc<ClientConfig>) -> Option<Vec<u8>> {
    let mut bytes = Vec::new();
    let mut hello = ClientConnection::new(config, ServerName::from(address.ip())).ok()?;
    hello.write_tls(&mut bytes).ok()?;
    Some(bytes)
}

/// Whatever ends the wait for the first byte is an answer, an error too: a frozen process closes nothing.
async fn greet(mut stream: TcpStream, hello: &[u8], report: impl Fn(Evidence)) {
    let began = tokio::time::Instant::now();
    let answer = async {
        if stream.write_all(hello).await.is_ok() {
            let _ = stream.read_u8().await;
        }
    };
    tokio::pin!(answer);
    for wait in [HELLO_LATE, HELLO_PATIENCE] {
        match tokio::time::timeout_at(began + wait, &mut answer).await {
            Ok(()) => return report(Evidence::HelloAnswered),
            Err(_) => report(Evidence::HelloUnanswered { waited: wait }),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use tokio::net::TcpListener;

    use super::*;

    async fn probed(listener: &TcpListener, hello: bool) -> Vec<Evidence> {
        let found = Mutex::new(Vec::new());
        let hello = hello.then(|| hello_config().unwrap());
        let report = |evidence| {
            found.lock().unwrap().push(match evidence {
                Evidence::Connected { .. } => Evidence::Connected { took: Duration::ZERO },
                other => other,
            });
        };
        probe(listener.local_addr().unwrap(), Duration::from_secs(1), hello, report).await;
        found.into_inner().unwrap()
    }

    #[tokio::test]
    async fn a_hello_is_answered_by_a_byte_or_a_close_and_not_by_the_kernel() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let connected = Evidence::Connected { took: Duration::ZERO };
        assert_eq!(probed(&listener, false).await, [connected], "a plain service");
        let _plain = listener.accept().await.unwrap();
        let late = |waited| Evidence::HelloUnanswered { waited };
        assert_eq!(
            probed(&listener, true).await,
            [connected, late(HELLO_LATE), late(HELLO_PATIENCE)],
            "nobody accepts"
        );
        let _frozen = listener.accept().await.unwrap();
        for alert in [true, false] {
            let serve = async {
                let (mut stream, _) = listener.accept().await.unwrap();
                let mut hello = [0; 5];
                stream.read_exact(&mut hello).await.unwrap();
                assert_eq!(hello[..2], [22, 3], "a TLS handshake record");
                if alert {
                    stream.write_all(&[21]).await.unwrap();
                    stream.read_to_end(&mut Vec::new()).await.unwrap_or_default();
                }
            };
            let (found, ()) = tokio::join!(probed(&listener, true), serve);
            assert_eq!(found, [connected, Evidence::HelloAnswered]);
        }
    }
}
