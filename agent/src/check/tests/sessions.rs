//! Checks resume TLS sessions, and still see what a server would show to a new client.

use rustls::server::{ClientHello, NoServerSessionStorage, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use rustls::version::{TLS12, TLS13};

use super::*;

/// The certificate that a server shows. It is replaced as Kubernetes does it: sessions from before are still resumed.
#[derive(Debug, Default)]
struct Shown(Mutex<Option<Arc<CertifiedKey>>>);

impl Shown {
    fn show(&self, pair: &Pair) {
        let chain = vec![CertificateDer::from_pem_slice(pair.cert.as_bytes()).unwrap()];
        let key = PrivateKeyDer::from_pem_slice(pair.key.as_bytes()).unwrap();
        let provider = rustls::crypto::ring::default_provider();
        let certified = CertifiedKey::from_der(chain, key, &provider).unwrap();
        *self.0.lock().unwrap() = Some(Arc::new(certified));
    }

    fn tls(self: &Arc<Shown>) -> Arc<ServerConfig> {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let builder = ServerConfig::builder_with_provider(provider);
        let builder = builder.with_safe_default_protocol_versions().unwrap().with_no_client_auth();
        Arc::new(builder.with_cert_resolver(self.clone()))
    }
}

impl ResolvesServerCert for Shown {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        self.0.lock().unwrap().clone()
    }
}

/// An apiserver, and its check.
struct Apiserver {
    server: Server,
    probe: Probe,
    /// Until when checks have been made.
    now: u64,
}

impl Apiserver {
    async fn start(pki: &Pki, tls: Arc<ServerConfig>) -> Apiserver {
        let server = Server::start(Some(tls), 200, "ok").await;
        let dir = tempfile::tempdir().unwrap();
        let ca_file = Some(write(dir.path(), "ca.crt", &pki.pem));
        let check = https(TlsCheck { ca_file, discover: true, ..TlsCheck::default() });
        let mut probe = Probe::new(&check, Path::new("/nonexistent"));
        // The files are read by the first check.
        let first = probe.check(Moment::ZERO, server.address, Box::new(|_| ())).await;
        assert_eq!(first, CheckOutcome::new(CheckAnswer::Good, Cause::Http(200)));
        Apiserver { server, probe, now: 0 }
    }

    /// A second later.
    async fn check(&mut self) -> CheckOutcome {
        self.now += 1_000;
        let now = Moment::from_millis(self.now);
        self.probe.check(now, self.server.address, Box::new(|_| ())).await
    }

    /// So many checks, which all succeed; which of them resumed a session.
    async fn resumed(&mut self, checks: usize) -> Vec<bool> {
        let mut resumed = Vec::new();
        for _ in 0..checks {
            assert_eq!(self.check().await.cause, Cause::Http(200));
            resumed.push(self.server.last().resumed);
        }
        resumed
    }
}

fn nine_resumed_and_a_whole_one() -> Vec<bool> {
    (1..=10).map(|check| check < 10).collect()
}

#[tokio::test]
async fn a_check_resumes_the_session_of_the_last_one_for_ten_seconds() {
    let pki = Pki::new();
    for version in [&TLS13, &TLS12] {
        let pair = pki.server(&["kubernetes"]);
        let tls = pair.tls_of(&[version], Clients::Asked(&pki));
        let mut apiserver = Apiserver::start(&pki, tls).await;
        for _ in 0..2 {
            assert_eq!(apiserver.resumed(10).await, nine_resumed_and_a_whole_one(), "{version:?}");
        }
    }
}

#[tokio::test]
async fn after_any_failure_the_server_shows_its_certificate_again() {
    let pki = Pki::new();
    let tls = pki.server(&["kubernetes"]).tls(Clients::Ignored);
    let mut apiserver = Apiserver::start(&pki, tls).await;
    assert_eq!(apiserver.resumed(2).await, [true, true]);
    for (status, whole) in [(500, true), (403, true), (200, true), (200, false)] {
        apiserver.server.say(status, "");
        assert_eq!(apiserver.check().await.cause, Cause::Http(status));
        // The first failure is seen by a session that is still resumed.
        assert_eq!(!apiserver.server.last().resumed, whole && status != 500, "{status}");
    }
}

#[tokio::test]
async fn a_server_that_gives_no_tickets_is_checked_as_before() {
    let pki = Pki::new();
    for version in [&TLS13, &TLS12] {
        let mut tls = pki.server(&["kubernetes"]).tls_of(&[version], Clients::Ignored);
        let config = Arc::get_mut(&mut tls).unwrap();
        config.send_tls13_tickets = 0;
        config.session_storage = Arc::new(NoServerSessionStorage {});
        let mut apiserver = Apiserver::start(&pki, tls).await;
        assert_eq!(apiserver.resumed(12).await, [false; 12]);
    }
}

#[tokio::test]
async fn a_certificate_that_expires_or_is_another_is_noticed_within_ten_seconds() {
    let pki = Pki::new();
    let old = pki.issue(&["kubernetes"], |params| params.not_after = rcgen::date_time_ymd(2020, 1, 1));
    let strange = Pki::new().server(&["kubernetes"]);
    for (next, fault) in [(old, TlsFault::Expired), (strange, TlsFault::UnknownCa)] {
        let shown = Arc::new(Shown::default());
        shown.show(&pki.server(&["kubernetes"]));
        let mut apiserver = Apiserver::start(&pki, shown.tls()).await;
        assert_eq!(apiserver.resumed(1).await, [true]);
        shown.show(&next);
        let mut checks = 0;
        let outcome = loop {
            checks += 1;
            match apiserver.check().await {
                outcome if outcome.cause != Cause::Http(200) => break outcome,
                _ => assert!(apiserver.server.last().resumed && checks < 10),
            }
        };
        assert_eq!((outcome.answer, outcome.cause), (CheckAnswer::NotReady, Cause::Tls(fault)));
        assert_eq!(apiserver.now, 10_000);
        assert_eq!(apiserver.check().await.cause, Cause::Tls(fault), "and at each check from then on");
        shown.show(&pki.server(&["kubernetes"]));
        assert_eq!(apiserver.resumed(2).await, [false, true]);
    }
}

#[tokio::test]
async fn a_ca_that_is_replaced_together_with_the_servers_certificate_is_no_failure() {
    let (before, after) = (Pki::new(), Pki::new());
    let dir = tempfile::tempdir().unwrap();
    let ca_file = Some(write(dir.path(), "ca.crt", &before.pem));
    let check = https(TlsCheck { ca_file, discover: true, ..TlsCheck::default() });
    let mut probe = Probe::new(&check, Path::new("/nonexistent"));
    let old = Server::start(Some(before.server(&["kubernetes"]).tls(Clients::Ignored)), 200, "ok").await;
    // Started again, it knows nothing of earlier sessions.
    let new = Server::start(Some(after.server(&["kubernetes"]).tls(Clients::Ignored)), 200, "ok").await;
    for (at, server, cause) in [
        (0, &old, Cause::Http(200)),
        (1_000, &old, Cause::Http(200)),
        (2_000, &new, Cause::Tls(TlsFault::UnknownCa)),
        (3_000, &old, Cause::Http(200)),
        (4_000, &old, Cause::Http(200)),
        (5_000, &new, Cause::Http(200)),
    ] {
        if at == 5_000 {
            write(dir.path(), "ca.crt", &after.pem);
        }
        let outcome = probe.check(Moment::from_millis(at), server.address, Box::new(|_| ())).await;
        assert_eq!(outcome.cause, cause, "at {at}");
    }
}
