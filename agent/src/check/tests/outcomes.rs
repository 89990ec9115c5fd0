//! Every kind of response, and its outcome.

use std::time::{Duration, Instant};

use tokio::io::AsyncWriteExt;

use super::*;

fn good(cause: Cause) -> CheckOutcome {
    CheckOutcome::new(CheckAnswer::Good, cause)
}
fn alive(cause: Cause) -> CheckOutcome {
    CheckOutcome::new(CheckAnswer::Alive, cause)
}
fn not_ready(cause: Cause) -> CheckOutcome {
    CheckOutcome::new(CheckAnswer::NotReady, cause)
}
fn silent(cause: Cause) -> CheckOutcome {
    CheckOutcome::new(CheckAnswer::Silent, cause)
}

const FAILED: &str =
    "[+]ping ok\n[-]etcd failed: reason withheld\n[-]poststarthook/x failed: reason withheld\n";

#[tokio::test]
async fn each_status_has_its_outcome() {
    let pki = Pki::new();
    let server = Server::start(Some(pki.server(&["kubernetes"]).tls(Clients::Ignored)), 200, "ok").await;
    let check = https(TlsCheck::default());
    for (status, text, outcome) in [
        (200, "ok", good(Cause::Http(200))),
        (401, "", alive(Cause::Http(401)).with("no credentials found")),
        (403, "", alive(Cause::Http(403)).with("no credentials found")),
        (500, FAILED, not_ready(Cause::Http(500)).with("etcd failed")),
        (500, "oops", not_ready(Cause::Http(500))),
        (503, "", not_ready(Cause::Http(503))),
        (404, "", not_ready(Cause::Http(404))),
        (204, "", not_ready(Cause::Http(204))),
        (302, "", not_ready(Cause::Http(302))),
    ] {
        server.say(status, text);
        assert_eq!(once(&check, server.address).await, outcome);
    }
    assert_eq!(server.last().path, "/readyz");
    assert_eq!(server.last().host, server.address.to_string());
}

#[tokio::test]
async fn an_expected_401_is_good() {
    let server = Server::start(None, 401, "").await;
    let http = HttpCheck { path: "/healthz".into(), expect: "200-299,401".parse().unwrap() };
    let check = Check { kind: CheckKind::Http(http), ..Check::default() };
    assert_eq!(once(&check, server.address).await, good(Cause::Http(401)));
    server.say(403, "");
    assert_eq!(once(&check, server.address).await, alive(Cause::Http(403)));
    server.say(204, "");
    assert_eq!(once(&check, server.address).await, good(Cause::Http(204)));
}

#[tokio::test]
async fn a_closed_port_is_refused_whatever_is_asked() {
    let address = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    let refused = CheckOutcome::new(CheckAnswer::Refused, Cause::PortClosed);
    // Also if the credentials are wrong: a node without the service must not offer it.
    let tls = TlsCheck { ca_file: Some("/nonexistent/ca.crt".into()), ..TlsCheck::default() };
    for check in [Check::default(), https(TlsCheck::default()), https(tls)] {
        assert_eq!(once(&check, address).await, refused);
    }
}

#[tokio::test]
async fn a_hung_server_is_silent_after_the_timeout_and_not_later() {
    // Accepted by the kernel, never by the process: what SIGSTOP looks like.
    let hung = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = hung.local_addr().unwrap();
    let timeout = Duration::from_millis(150);
    for kind in [CheckKind::Http(readyz()), CheckKind::Https(readyz(), TlsCheck::default())] {
        let check = Check { kind, timeout, ..Check::default() };
        let begun = Instant::now();
        assert_eq!(once(&check, address).await, silent(Cause::TimedOut).with("150ms"));
        assert!(begun.elapsed() < Duration::from_secs(2), "{:?}", begun.elapsed());
    }
    // One that sends its headers and hangs in the body is just as dead.
    let half = serve_bytes(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n", true).await;
    let check = Check { kind: CheckKind::Http(readyz()), timeout, ..Check::default() };
    assert_eq!(once(&check, half).await, silent(Cause::TimedOut).with("150ms"));
    // A TCP check accepts it, as documented.
    assert_eq!(once(&Check::default(), address).await, good(Cause::Connected));
}

/// Sends the same bytes to everyone, and closes or waits forever.
async fn serve_bytes(bytes: &'static [u8], wait: bool) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        loop {
            let (mut stream, _) = listener.accept().await.unwrap();
            tokio::spawn(async move {
                // Read first, so that closing sends FIN and no RST.
                let mut request = [0; 4096];
                let _ = tokio::io::AsyncReadExt::read(&mut stream, &mut request).await;
                let _ = stream.write_all(bytes).await;
                if wait {
                    std::future::pending::<()>().await;
                }
            });
        }
    });
    address
}

#[tokio::test]
async fn two_seconds_are_slow_and_not_down() {
    let server = Server::at("127.0.0.1:0", None, 200, "ok", Duration::from_secs(2)).await;
    let check = Check { kind: CheckKind::Http(readyz()), ..Check::default() };
    assert_eq!(once(&check, server.address).await, good(Cause::Http(200)));
}

#[tokio::test]
async fn a_close_and_garbage_have_different_causes() {
    let http = Check { kind: CheckKind::Http(readyz()), ..Check::default() };
    let https = https(TlsCheck::default());
    let closes = serve_bytes(b"", false).await;
    assert_eq!(once(&http, closes).await, silent(Cause::ClosedEarly));
    assert_eq!(once(&https, closes).await, silent(Cause::ClosedEarly));
    let ssh = serve_bytes(b"SSH-2.0-OpenSSH_9.2\r\n", false).await;
    assert_eq!(once(&http, ssh).await, not_ready(Cause::NotHttp));
    assert_eq!(once(&https, ssh).await, not_ready(Cause::Tls(TlsFault::NotTls)));
}

#[tokio::test]
async fn a_reset_is_silence() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        loop {
            let (stream, _) = listener.accept().await.unwrap();
            stream.readable().await.unwrap();
            socket2::SockRef::from(&stream).set_linger(Some(Duration::ZERO)).unwrap();
        }
    });
    let check = Check { kind: CheckKind::Http(readyz()), ..Check::default() };
    assert_eq!(once(&check, address).await, silent(Cause::ConnectionBroken).with("connection reset"));
}

#[tokio::test]
async fn the_certificate_is_verified_where_a_ca_is_known() {
    let (pki, other) = (Pki::new(), Pki::new());
    let dir = tempfile::tempdir().unwrap();
    let ca = write(dir.path(), "pki/ca.crt", &pki.pem);
    let wrong = write(dir.path(), "pki/other.crt", &other.pem);
    let with = |ca: &str, name: Option<&str>, discover: bool| {
        https(TlsCheck {
            ca_file: Some(ca.into()),
            server_name: name.map(str::to_owned),
            discover,
            ..TlsCheck::default()
        })
    };
    let kube = Server::start(Some(pki.server(&["kubernetes"]).tls(Clients::Ignored)), 200, "ok").await;
    let ready = good(Cause::Http(200));
    assert_eq!(once(&with(&ca, None, true), kube.address).await, ready);
    assert_eq!(once(&with(&ca, Some("kubernetes"), false), kube.address).await, ready);
    assert_eq!(kube.last().host, "kubernetes");
    assert_eq!(
        once(&with(&wrong, None, true), kube.address).await,
        not_ready(Cause::Tls(TlsFault::UnknownCa)).with("pki/other.crt")
    );
    // Other services are verified by address unless they have a name.
    assert_eq!(
        once(&with(&ca, None, false), kube.address).await,
        not_ready(Cause::Tls(TlsFault::NameMismatch)).with("not for 127.0.0.1")
    );
    let etcd = Server::start(Some(pki.server(&["127.0.0.1"]).tls(Clients::Ignored)), 200, "ok").await;
    assert_eq!(once(&with(&ca, None, false), etcd.address).await, ready);
    assert_eq!(once(&with(&ca, Some("127.0.0.1"), true), etcd.address).await, ready);
    assert_eq!(
        once(&with(&ca, None, true), etcd.address).await,
        not_ready(Cause::Tls(TlsFault::NameMismatch)).with("not for kubernetes")
    );
    let odd = once(&with(&ca, Some("not a name"), true), etcd.address).await;
    assert_eq!(
        odd,
        not_ready(Cause::BadCheck).with("server-name \"not a name\" must be a host name or an address")
    );
    // Without a CA any certificate is accepted.
    assert_eq!(once(&https(TlsCheck::default()), etcd.address).await, ready);
}

#[tokio::test]
async fn an_expired_certificate_is_seen() {
    let pki = Pki::new();
    let dir = tempfile::tempdir().unwrap();
    let ca = write(dir.path(), "ca.crt", &pki.pem);
    let old = pki.issue(&["kubernetes"], |params| params.not_after = rcgen::date_time_ymd(2020, 1, 1));
    let server = Server::start(Some(old.tls(Clients::Ignored)), 200, "ok").await;
    let check = https(TlsCheck { ca_file: Some(ca), discover: true, ..TlsCheck::default() });
    assert_eq!(once(&check, server.address).await, not_ready(Cause::Tls(TlsFault::Expired)));
}

#[tokio::test]
async fn a_server_may_require_a_client_certificate() {
    let (pki, other) = (Pki::new(), Pki::new());
    let dir = tempfile::tempdir().unwrap();
    let server =
        Server::start(Some(pki.server(&["kubernetes"]).tls(Clients::Required(&pki))), 200, "ok").await;
    let show = |pair: Option<Pair>, name: &str| {
        let files = pair.map(|Pair { cert, key }| {
            let cert = write(dir.path(), &format!("{name}.crt"), &cert);
            (cert, write(dir.path(), &format!("{name}.key"), &key))
        });
        let (cert_file, key_file) = files.unzip();
        https(TlsCheck { cert_file, key_file, ..TlsCheck::default() })
    };
    assert_eq!(once(&show(Some(pki.client()), "right"), server.address).await, good(Cause::Http(200)));
    assert_eq!(
        once(&show(None, "none"), server.address).await,
        alive(Cause::Tls(TlsFault::ClientCertificateRequired)).with("none found")
    );
    assert_eq!(
        once(&show(Some(other.client()), "wrong"), server.address).await,
        alive(Cause::Tls(TlsFault::ClientCertificateRejected))
    );
    // As an apiserver does it: the handshake succeeds, the answer is 401.
    let asking = Server::start(Some(pki.server(&["kubernetes"]).tls(Clients::Asked(&pki))), 401, "").await;
    assert_eq!(
        once(&show(Some(pki.client()), "right"), asking.address).await,
        alive(Cause::Http(401)).with("credentials not accepted")
    );
}
