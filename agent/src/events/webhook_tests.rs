//! The webhook against small servers.

use std::net::SocketAddr;

use proto::cause::Cause;
use proto::event::EventKind;
use proto::time::UnixMs;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;

use super::*;

fn plain() -> Resolve {
    Arc::new(|at: String| {
        let address = at.parse::<SocketAddr>().map(|address| vec![address]).map_err(Reason::new);
        Box::pin(async move { address })
    })
}

fn event() -> Event {
    Event::new(EventKind::Member, wall(), "m1", "down").because(Cause::NotHeard)
}

/// Answers one request after the other with these lines; returns the requests.
async fn server(answers: Vec<&'static str>) -> (WebhookConfig, tokio::task::JoinHandle<Vec<String>>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let asked = async move {
        let mut asked = Vec::new();
        for answer in answers {
            let (mut stream, _) = listener.accept().await.unwrap();
            let (mut request, mut some) = (Vec::new(), [0; 4096]);
            while !request.ends_with(b"}") {
                let read = stream.read(&mut some).await.unwrap();
                assert!(read > 0, "the request has no end");
                request.extend_from_slice(&some[..read]);
            }
            asked.push(String::from_utf8(request).unwrap());
            stream.write_all(answer.as_bytes()).await.unwrap();
        }
        asked
    };
    let webhook = WebhookConfig::parse(&format!("http://127.0.0.1:{port}/hook?key=1")).unwrap();
    (webhook, tokio::spawn(asked))
}

#[tokio::test]
async fn an_event_is_posted_as_json_and_retried_until_accepted() {
    let answers = vec!["HTTP/1.1 503 Busy\r\n\r\n", "garbage\r\n", "HTTP/1.1 204 No Content\r\n\r\n"];
    let (webhook, asked) = server(answers).await;
    let sink_errors = SinkErrors::default();
    let event = event();
    deliver(&webhook, &plain(), &event, &sink_errors).await;
    let asked = asked.await.unwrap();
    assert_eq!(asked.len(), 3);
    let (head, body) = asked[2].split_once("\r\n\r\n").unwrap();
    assert!(head.starts_with("POST /hook?key=1 HTTP/1.1\r\nHost: 127.0.0.1:"), "{head}");
    assert!(head.contains(&format!("Content-Length: {}", body.len())));
    assert_eq!(body, serde_json::to_string(&event).unwrap());
    assert!(sink_errors.list().is_empty(), "{:?}", sink_errors.list());
}

#[test]
fn every_path_that_the_configuration_accepts_can_be_requested() {
    for byte in (b'!'..=b'~').filter(|byte| *byte != b'#') {
        for path in [format!("/{}", char::from(byte)), format!("/?{}", char::from(byte))] {
            let webhook = WebhookConfig::parse(&format!("http://h{path}")).unwrap();
            assert!(request(&webhook, &event()).is_ok(), "{path}");
        }
    }
}

#[tokio::test]
async fn an_event_that_the_server_refuses_is_not_retried() {
    let (webhook, asked) = server(vec!["HTTP/1.1 404 Not Found\r\n\r\n"]).await;
    let sink_errors = SinkErrors::default();
    deliver(&webhook, &plain(), &event(), &sink_errors).await;
    assert_eq!(asked.await.unwrap().len(), 1);
    let said: String = sink_errors.list().iter().map(Problem::to_string).collect();
    assert!(said.contains("404") && !said.contains("key=1"), "{said}");
}

#[tokio::test]
async fn a_stale_event_is_dropped() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let webhook = WebhookConfig::parse(&format!("http://{}/", listener.local_addr().unwrap())).unwrap();
    drop(listener);
    let old = Event::new(EventKind::Member, UnixMs(1), "m1", "down");
    let sink_errors = SinkErrors::default();
    deliver(&webhook, &plain(), &old, &sink_errors).await;
    assert_eq!(sink_errors.list()[0].key(), (ProblemCode::Webhook, ""));
}

#[tokio::test]
async fn https_is_checked_against_the_ca_that_was_named() {
    let key = rcgen::generate_simple_self_signed(vec!["127.0.0.1".to_owned()]).unwrap();
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("ca.pem");
    std::fs::write(&file, key.cert.pem()).unwrap();
    let der = rustls::pki_types::PrivateKeyDer::try_from(key.signing_key.serialize_der()).unwrap();
    let config =
        rustls::ServerConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(vec![key.cert.der().clone()], der)
            .unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let mut webhook = WebhookConfig::parse(&format!("https://{}/x", listener.local_addr().unwrap())).unwrap();
    let acceptor = tokio_rustls::TlsAcceptor::from(Arc::new(config));
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let Ok(mut stream) = acceptor.accept(stream).await else { continue };
            let mut some = [0; 4096];
            let _ = stream.read(&mut some).await;
            let _ = stream.write_all(b"HTTP/1.1 200 OK\r\n\r\n").await;
        }
    });
    webhook.ca_file = Some(file.display().to_string());
    assert!(post(&webhook, &plain(), &event()).await.is_ok());
    let other = rcgen::generate_simple_self_signed(vec!["127.0.0.1".to_owned()]).unwrap();
    std::fs::write(&file, other.cert.pem()).unwrap();
    assert!(matches!(post(&webhook, &plain(), &event()).await, Err(error) if error.may_pass()));
}
