//! What kubectl and kubelets send, for the rows that measure it: TLS from end to end, one request a connection, and
//! watches that get a small message each second.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Barrier};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, ensure};
use rustls::client::Resumption;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{ClientConfig, ClientConnection, RootCertStore, ServerConfig, ServerConnection, StreamOwned};
use tests::lab::Certs;

/// A request without a body, as large as kubectl's with its headers, and an answer as large as a small object.
const REQUEST: &str = "GET /api/v1/namespaces/default/pods/one HTTP/1.1\r\nHost: kubernetes\r\n\
                       User-Agent: kubectl/v1.33.0 (linux/amd64) kubernetes/8adc0f0\r\nAccept: application/json\r\n\
                       Accept-Encoding: gzip\r\n\r\n";
const ANSWER: usize = 2_000;

/// A request that starts a watch; anything else is answered once.
const WATCH: &str = "GET /api/v1/pods?watch=1 HTTP/1.1\r\nHost: kubernetes\r\n\r\n";

/// Each watch gets one message in this time. Its size is that of a small event.
const BETWEEN: Duration = Duration::from_secs(1);
const EVENT: usize = 300;

/// Longest duration of anything small: a hang must not look slow.
const PATIENCE: Duration = Duration::from_secs(10);

/// Both ends of TLS, and the moment that messages count from.
#[derive(Clone)]
pub(crate) struct Tls {
    client: Arc<ClientConfig>,
    server: Arc<ServerConfig>,
    origin: Instant,
}

impl Tls {
    /// With the lab's certificates. Each connection has a full handshake, as those of kubectl have.
    pub(crate) fn of(certs: &Certs) -> Result<Tls> {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let mut roots = RootCertStore::empty();
        roots.add(CertificateDer::from_pem_file(&certs.ca)?)?;
        let mut client = ClientConfig::builder_with_provider(Arc::clone(&provider))
            .with_safe_default_protocol_versions()?
            .with_root_certificates(roots)
            .with_no_client_auth();
        client.resumption = Resumption::disabled();
        let chain = vec![CertificateDer::from_pem_file(&certs.server)?];
        let key = PrivateKeyDer::from_pem_file(&certs.server_key)?;
        let server = ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()?
            .with_no_client_auth()
            .with_single_cert(chain, key)?;
        Ok(Tls { client: Arc::new(client), server: Arc::new(server), origin: Instant::now() })
    }

    /// Serves for as long as the process lives. Called inside a node's network, and stays there.
    pub(crate) fn serve(&self, address: SocketAddr) -> Result<()> {
        let listener = TcpListener::bind(address).with_context(|| address.to_string())?;
        let tls = self.clone();
        std::thread::spawn(move || {
            for (nth, stream) in (0..).zip(listener.incoming().flatten()) {
                let tls = tls.clone();
                std::thread::spawn(move || tls.serve_one(stream, nth));
            }
        });
        Ok(())
    }

    fn serve_one(&self, stream: TcpStream, nth: u32) -> Result<()> {
        stream.set_nodelay(true)?;
        let mut stream = StreamOwned::new(ServerConnection::new(Arc::clone(&self.server))?, stream);
        let mut request = vec![0; REQUEST.len()];
        let n = stream.read(&mut request)?;
        if request[..n] != *WATCH.as_bytes() {
            let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {ANSWER}\r\n\r\n");
            stream.write_all(&[head.into_bytes(), vec![b' '; ANSWER]].concat())?;
            stream.conn.send_close_notify();
            stream.flush()?;
            return Ok(());
        }
        // The watches' messages are spread over the time between two.
        std::thread::sleep(BETWEEN / 200 * (nth % 200));
        loop {
            let mut event = [0; EVENT];
            let now = u64::try_from(self.origin.elapsed().as_nanos())?;
            event[..8].copy_from_slice(&now.to_be_bytes());
            stream.write_all(&event)?;
            std::thread::sleep(BETWEEN);
        }
    }

    fn open(&self, address: SocketAddr) -> Result<StreamOwned<ClientConnection, TcpStream>> {
        let stream = TcpStream::connect(address).with_context(|| format!("connect to {address}"))?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        let name = ServerName::try_from("kubernetes")?;
        Ok(StreamOwned::new(ClientConnection::new(Arc::clone(&self.client), name)?, stream))
    }

    /// Connections with one request each, from a few threads; returns how many ended well, and each one's duration,
    /// sorted.
    pub(crate) fn requests(
        &self,
        address: SocketAddr,
        threads: usize,
        span: Duration,
    ) -> Result<(Vec<Duration>, Duration)> {
        let began = Instant::now();
        let client = || -> Result<Vec<Duration>> {
            let mut times = Vec::new();
            while began.elapsed() < span {
                let sent = Instant::now();
                let mut stream = self.open(address)?;
                stream.write_all(REQUEST.as_bytes())?;
                let mut answer = Vec::new();
                stream.read_to_end(&mut answer)?;
                ensure!(answer.len() > ANSWER, "an answer of {} bytes", answer.len());
                drop(stream);
                times.push(sent.elapsed());
            }
            Ok(times)
        };
        std::thread::scope(|scope| {
            let clients: Vec<_> = (0..threads).map(|_| scope.spawn(client)).collect();
            let mut all = Vec::new();
            for client in clients {
                all.extend(client.join().map_err(|_| anyhow!("a client panicked"))??);
            }
            let took = began.elapsed();
            all.sort_unstable();
            Ok((all, took))
        })
    }

    /// Opens `count` watches, and calls `begin` when each has had its first message; then returns how long each took
    /// from the third on, sorted, and what `begin` has returned.
    pub(crate) fn watches<T>(
        &self,
        address: SocketAddr,
        count: usize,
        span: Duration,
        begin: impl FnOnce() -> Result<T>,
    ) -> Result<(Vec<Duration>, T)> {
        let opened = Barrier::new(count + 1);
        let client = || -> Result<Vec<Duration>> {
            let mut event = [0; EVENT];
            let first = self.open(address).and_then(|mut stream| {
                stream.write_all(WATCH.as_bytes())?;
                stream.read_exact(&mut event)?;
                Ok(stream)
            });
            opened.wait();
            let (mut stream, mut times, began) = (first?, Vec::new(), Instant::now());
            // It has come while others were opened, and waited here.
            stream.read_exact(&mut event)?;
            while began.elapsed() < span {
                stream.read_exact(&mut event)?;
                let now = u64::try_from(self.origin.elapsed().as_nanos())?;
                let sent = u64::from_be_bytes(event[..8].try_into()?);
                times.push(Duration::from_nanos(now.saturating_sub(sent)));
            }
            Ok(times)
        };
        std::thread::scope(|scope| {
            let clients: Vec<_> = (0..count).map(|_| scope.spawn(client)).collect();
            opened.wait();
            let begun = begin();
            let mut all = Vec::new();
            for client in clients {
                all.extend(client.join().map_err(|_| anyhow!("a client panicked"))??);
            }
            all.sort_unstable();
            Ok((all, begun?))
        })
    }
}
