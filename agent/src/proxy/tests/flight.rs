//! ClientHellos that are sent again, limits on replays, PROXY headers and the access log.

use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

use super::*;

/// A ClientHello as a TLS library makes it.
fn hello(early_data: bool) -> Vec<u8> {
    let mut extensions = vec![0, 43, 0, 3, 2, 3, 4];
    if early_data {
        extensions.extend([0, 42, 0, 0]);
    }
    let mut body = vec![3, 3];
    body.extend([7; 32]);
    body.extend([0, 0, 2, 0x13, 1, 1, 0]);
    body.extend((extensions.len() as u16).to_be_bytes());
    body.extend(extensions);
    let mut bytes = vec![22, 3, 1];
    bytes.extend((body.len() as u16 + 4).to_be_bytes());
    bytes.extend([1, 0]);
    bytes.extend((body.len() as u16).to_be_bytes());
    bytes.extend(body);
    bytes
}

/// How a backend treats a hello.
#[derive(Clone, Copy)]
enum Manner {
    /// Answers with its number and then echoes.
    Answers,
    /// The same after a delay.
    Slow(Duration),
    Silent,
    Resets,
    Closes,
}

/// A backend that reads a hello; the hellos that it has seen are counted.
async fn tls(n: u8, manner: Manner) -> (SocketAddr, Arc<AtomicUsize>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let (address, seen) = (listener.local_addr().unwrap(), Arc::new(AtomicUsize::new(0)));
    let count = Arc::clone(&seen);
    tokio::spawn(async move {
        while let Ok((mut client, _)) = listener.accept().await {
            let count = Arc::clone(&count);
            tokio::spawn(async move {
                let mut bytes = vec![0; hello(false).len()];
                client.read_exact(&mut bytes).await?;
                assert_eq!(bytes[..5], hello(false)[..5]);
                count.fetch_add(1, Relaxed);
                match manner {
                    Manner::Answers => {}
                    Manner::Slow(pause) => tokio::time::sleep(pause).await,
                    Manner::Silent => std::future::pending().await,
                    Manner::Resets => {
                        socket::reset_on_drop(&client);
                        return Ok(());
                    }
                    Manner::Closes => return Ok(()),
                }
                client.write_all(&[n]).await?;
                let (mut read, mut write) = client.split();
                tokio::io::copy(&mut read, &mut write).await?;
                write.shutdown().await
            });
        }
    });
    (address, seen)
}

/// The first is preferred, the others come after it.
async fn rig(manners: &[Manner]) -> (Rig, Vec<Arc<AtomicUsize>>) {
    rig_of(&Service { balance: Balance::First, ..service() }, manners).await
}

async fn rig_of(service: &Service, manners: &[Manner]) -> (Rig, Vec<Arc<AtomicUsize>>) {
    let (mut backends, mut seen) = (Vec::new(), Vec::new());
    for (n, manner) in (1..).zip(manners) {
        let (address, count) = tls(n, *manner).await;
        backends.push(backend(n, address, BackendState::Ready));
        seen.push(count);
    }
    (Rig::new(service, backends), seen)
}

async fn greet(rig: &Rig, bytes: &[u8]) -> (TcpStream, u8, Duration) {
    let mut client = rig.connect().await;
    let begin = Instant::now();
    client.write_all(bytes).await.unwrap();
    let n = timeout(LONG, client.read_u8()).await.unwrap().unwrap();
    (client, n, begin.elapsed())
}

#[tokio::test]
async fn a_hello_is_forwarded_at_once_whole_or_in_parts() {
    let (rig, seen) = rig(&[Manner::Answers, Manner::Answers]).await;
    let (mut client, n, _) = greet(&rig, &hello(false)).await;
    assert_eq!(n, 1);
    echoes(&mut client).await;
    let mut client = rig.connect().await;
    for part in hello(false).chunks(7) {
        client.write_all(part).await.unwrap();
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    assert_eq!(timeout(LONG, client.read_u8()).await.unwrap().unwrap(), 1);
    echoes(&mut client).await;
    assert_eq!((seen[0].load(Relaxed), seen[1].load(Relaxed), rig.stats().replays), (2, 0, 0));
}

#[tokio::test]
async fn a_hello_that_is_answered_by_reset_or_close_goes_to_another_at_once() {
    for manner in [Manner::Resets, Manner::Closes] {
        let (rig, seen) = rig(&[manner, manner, Manner::Answers]).await;
        let (mut client, n, took) = greet(&rig, &hello(false)).await;
        assert_eq!(n, 3);
        assert!(took < Duration::from_millis(250), "{took:?}");
        echoes(&mut client).await;
        assert_eq!((seen[0].load(Relaxed), seen[1].load(Relaxed), rig.stats().replays), (1, 1, 2));
        assert_eq!(rig.stats().backends[&id(3)].total, 1);
        drop(client);
        rig.until(|stats| stats.connections == 0 && stats.backends.values().all(|one| one.connections == 0))
            .await;
    }
}

#[tokio::test]
async fn a_hello_that_is_not_answered_goes_to_another_and_the_first_to_answer_wins() {
    let (rig, _) = rig(&[Manner::Silent, Manner::Answers]).await;
    let (mut client, n, took) = greet(&rig, &hello(false)).await;
    assert_eq!(n, 2);
    // Nothing is known of the service's latency yet.
    assert!(took >= Duration::from_millis(950) && took < Duration::from_millis(1500), "{took:?}");
    echoes(&mut client).await;
    rig.until(|stats| stats.backends[&id(1)].connections == 0).await;
    let stats = rig.stats();
    assert_eq!((stats.backends[&id(1)].silences, stats.backends[&id(1)].total), (1, 0));
    // Now it is, so the next client waits less.
    let (_client, n, took) = greet(&rig, &hello(false)).await;
    assert_eq!(n, 2);
    assert!(took < Duration::from_millis(600), "{took:?}");
    // After the third in a row it is deprioritized.
    greet(&rig, &hello(false)).await;
    rig.until(|stats| stats.backends[&id(1)].silences == 3).await;
    let (_client, n, took) = greet(&rig, &hello(false)).await;
    assert_eq!(n, 2);
    assert!(took < Duration::from_millis(200), "{took:?}");
}

#[tokio::test]
async fn a_slow_backend_keeps_its_connection() {
    let slow = Manner::Slow(Duration::from_millis(1300));
    let (rig, seen) = rig(&[slow, Manner::Silent]).await;
    let (mut client, n, _) = greet(&rig, &hello(false)).await;
    assert_eq!((n, seen[1].load(Relaxed)), (1, 1));
    echoes(&mut client).await;
}

#[tokio::test]
async fn only_a_hello_alone_is_sent_again() {
    // What the client sends, and whether in one piece.
    let mut more = hello(false);
    more.extend(b"more");
    let mut http = b"GET /version HTTP/1.1\r\n\r\n".to_vec();
    http.resize(hello(false).len(), b' ');
    for first in [hello(true), more, http] {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let (other, seen) = tls(2, Manner::Answers).await;
        let one = backend(1, listener.local_addr().unwrap(), BackendState::Ready);
        let rig = Rig::new(
            &Service { balance: Balance::First, ..service() },
            vec![one, backend(2, other, BackendState::Ready)],
        );
        let mut client = rig.connect().await;
        client.write_all(&first).await.unwrap();
        let (mut master, _) = listener.accept().await.unwrap();
        let mut bytes = vec![0; first.len()];
        timeout(LONG, master.read_exact(&mut bytes)).await.unwrap().unwrap();
        assert_eq!(bytes, first);
        socket::reset_on_drop(&master);
        drop(master);
        is_reset(&mut client).await;
        assert_eq!((seen.load(Relaxed), rig.stats().replays), (0, 0));
    }
}

#[tokio::test]
async fn a_client_that_sends_more_than_a_hello_gets_no_other() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let (other, seen) = tls(2, Manner::Answers).await;
    let one = backend(1, listener.local_addr().unwrap(), BackendState::Ready);
    let first = Service { balance: Balance::First, ..service() };
    let rig = Rig::new(&first, vec![one, backend(2, other, BackendState::Ready)]);
    let mut client = rig.connect().await;
    client.write_all(&hello(false)).await.unwrap();
    let (mut master, _) = listener.accept().await.unwrap();
    let mut bytes = vec![0; hello(false).len()];
    timeout(LONG, master.read_exact(&mut bytes)).await.unwrap().unwrap();
    client.write_all(b"more").await.unwrap();
    let mut rest = [0; 4];
    timeout(LONG, master.read_exact(&mut rest)).await.unwrap().unwrap();
    assert_eq!(&rest, b"more");
    tokio::time::sleep(Duration::from_millis(1200)).await;
    assert_eq!((seen.load(Relaxed), rig.stats().replays), (0, 0));
}

#[tokio::test]
async fn without_another_good_backend_a_hello_waits_and_a_close_is_forwarded() {
    let (silent, _) = tls(1, Manner::Closes).await;
    let (other, seen) = tls(2, Manner::Answers).await;
    let rig = Rig::new(
        &service(),
        vec![backend(1, silent, BackendState::Ready), backend(2, other, BackendState::NotReady)],
    );
    let mut client = rig.connect().await;
    client.write_all(&hello(false)).await.unwrap();
    assert_eq!(timeout(LONG, client.read(&mut [0])).await.unwrap().unwrap(), 0, "closed as the backend did");
    assert_eq!(seen.load(Relaxed), 0);
}

#[tokio::test]
async fn a_backend_that_goes_down_while_it_owes_an_answer_is_replaced() {
    let (rig, _) = rig(&[Manner::Silent, Manner::Answers]).await;
    let mut client = rig.connect().await;
    let begin = Instant::now();
    client.write_all(&hello(false)).await.unwrap();
    rig.until(|stats| stats.backends.get(&id(1)).is_some_and(|one| one.connections == 1)).await;
    first_goes_down(&rig);
    assert_eq!(timeout(LONG, client.read_u8()).await.unwrap().unwrap(), 2);
    assert!(begin.elapsed() < Duration::from_millis(900), "{:?}", begin.elapsed());
    echoes(&mut client).await;
}

fn first_goes_down(rig: &Rig) {
    rig.table.send_modify(|table| {
        let mut new = BackendTable::clone(table);
        new.get_mut(&ServiceName::kube_api()).unwrap()[0].state = BackendState::Down;
        *table = Arc::new(new);
    });
}

#[tokio::test]
async fn a_backend_that_goes_down_before_the_client_has_said_all_is_replaced() {
    for said in [0, 20] {
        let (rig, _) = rig(&[Manner::Silent, Manner::Answers]).await;
        let mut client = rig.connect().await;
        let hello = hello(false);
        client.write_all(&hello[..said]).await.unwrap();
        let holds =
            |id| move |stats: &ServiceStats| stats.backends.get(&id).is_some_and(|one| one.connections == 1);
        rig.until(holds(id(1))).await;
        first_goes_down(&rig);
        rig.until(holds(id(2))).await;
        client.write_all(&hello[said..]).await.unwrap();
        assert_eq!(timeout(LONG, client.read_u8()).await.unwrap().unwrap(), 2, "{said} bytes");
        echoes(&mut client).await;
    }
}

#[tokio::test]
async fn a_slow_cluster_does_not_get_every_hello_twice() {
    let slow = Manner::Slow(Duration::from_millis(1500));
    let (rig, seen) = rig_of(&service(), &[slow, slow]).await;
    let hello = hello(false);
    let all = futures_util::future::join_all((0..50).map(|_| greet(&rig, &hello))).await;
    assert!(all.iter().all(|(_, _, took)| *took < Duration::from_millis(2500)));
    let sent = seen[0].load(Relaxed) + seen[1].load(Relaxed);
    assert!((50..=60).contains(&sent), "{sent}");
}

#[tokio::test]
async fn backends_get_a_proxy_header_if_configured() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let one = backend(1, listener.local_addr().unwrap(), BackendState::Ready);
    let rig = Rig::new(&Service { send_proxy: true, ..service() }, vec![one]);
    let mut client = rig.connect().await;
    client.write_all(b"question").await.unwrap();
    let (mut master, _) = listener.accept().await.unwrap();
    let mut expected = proto::proxy_v2::header(client.local_addr().unwrap(), rig.address());
    expected.extend(b"question");
    let mut bytes = vec![0; expected.len()];
    timeout(LONG, master.read_exact(&mut bytes)).await.unwrap().unwrap();
    assert_eq!(bytes, expected);
}

#[tokio::test]
async fn a_replayed_hello_follows_its_own_header() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let leaves = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let service = Service { send_proxy: true, balance: Balance::First, ..service() };
    let other = listener.local_addr().unwrap();
    let rig = Rig::new(
        &service,
        vec![
            backend(1, leaves.local_addr().unwrap(), BackendState::Ready),
            backend(2, other, BackendState::Ready),
        ],
    );
    let mut client = rig.connect().await;
    client.write_all(&hello(false)).await.unwrap();
    drop(leaves.accept().await.unwrap());
    let (mut master, _) = listener.accept().await.unwrap();
    let mut expected = proto::proxy_v2::header(client.local_addr().unwrap(), rig.address());
    expected.extend(hello(false));
    let mut bytes = vec![0; expected.len()];
    timeout(LONG, master.read_exact(&mut bytes)).await.unwrap().unwrap();
    assert_eq!(bytes, expected);
}
