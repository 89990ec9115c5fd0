//! Draining of connections, bytes returned, backend limits, and the access log.

use std::sync::Mutex;

use tracing::field::{Field, Visit};
use tracing::span;

use super::*;

#[tokio::test]
async fn not_ready_and_draining_backends_keep_connections_for_a_grace() {
    let (first, second) = (master(1).await, master(2).await);
    let table = |one, two| vec![backend(1, first, one), backend(2, second, two)];
    for state in [BackendState::NotReady, BackendState::Draining] {
        let rig = Rig::new(&service(), table(BackendState::Ready, BackendState::Suspect));
        let (mut client, n) = rig.reach().await;
        assert_eq!(n, 1);
        rig.set(table(state, BackendState::Ready));
        assert_eq!(rig.reach().await.1, 2);
        echoes(&mut client).await;
    }
}

#[test]
fn draining_connections_are_closed_after_the_grace_while_another_backend_is_good() {
    let pool = Arc::new(ServicePool::new(&service(), id(100)));
    let table = |one, two| {
        let address = "127.0.0.1:1".parse().unwrap();
        vec![backend(1, address, one), backend(2, address, two)]
    };
    let at = Moment::from_millis;
    let good = table(BackendState::Ready, BackendState::Ready);
    pool.apply_table(Some(&good), at(0));
    let mut conn_guard = pool.conn_guard(&good, 0, at(0)).unwrap();
    let cancel = conn_guard.cancel_handle();
    // No other backend is better: the grace does not even start.
    assert_eq!(pool.apply_table(Some(&table(BackendState::NotReady, BackendState::Suspect)), at(1000)), None);
    let bad = table(BackendState::NotReady, BackendState::Ready);
    assert_eq!(pool.apply_table(Some(&bad), at(60_000)), Some(at(120_000)));
    // It was only for a moment.
    assert_eq!(pool.apply_table(Some(&good), at(70_000)), None);
    let mut next = pool.apply_table(Some(&bad), at(80_000));
    assert_eq!(next, Some(at(140_000)));
    let mut last = at(0);
    while let Some(now) = next.filter(|_| !cancel.is_pulled()) {
        next = pool.apply_table(Some(&bad), now);
        last = now;
    }
    assert!(cancel.is_pulled());
    assert!(last >= at(140_000) && last <= at(145_200), "{last:?}");
}

#[tokio::test]
async fn a_backend_that_is_full_comes_after_the_others() {
    let backends = || async {
        vec![
            backend(1, master(1).await, BackendState::Ready),
            backend(2, master(2).await, BackendState::Ready),
        ]
    };
    let limited = Service { backend_maxconn: 2, balance: Balance::First, ..service() };
    let rig = Rig::new(&limited, backends().await);
    let mut clients = Vec::new();
    for expected in [1, 1, 2, 2, 1] {
        let (client, n) = rig.reach().await;
        assert_eq!(n, expected);
        clients.push(client);
    }
}

/// Collects what is logged for the access log's target.
#[derive(Clone, Default)]
struct Lines(Arc<Mutex<Vec<String>>>);

struct Message<'a>(&'a mut Vec<String>);

impl Visit for Message<'_> {
    fn record_debug(&mut self, field: &Field, value: &dyn std::fmt::Debug) {
        if field.name() == "message" {
            self.0.push(format!("{value:?}"));
        }
    }
}

impl tracing::Subscriber for Lines {
    fn enabled(&self, metadata: &tracing::Metadata<'_>) -> bool {
        metadata.target() == "access"
    }
    fn new_span(&self, _: &span::Attributes<'_>) -> span::Id {
        span::Id::from_u64(1)
    }
    fn record(&self, _: &span::Id, _: &span::Record<'_>) {}
    fn record_follows_from(&self, _: &span::Id, _: &span::Id) {}
    fn event(&self, event: &tracing::Event<'_>) {
        event.record(&mut Message(&mut self.0.lock().unwrap()));
    }
    fn enter(&self, _: &span::Id) {}
    fn exit(&self, _: &span::Id) {}
}

/// In a single-threaded runtime, so that this thread's subscriber gets everything.
#[tokio::test]
async fn a_line_for_each_connection_with_how_it_ended() {
    let lines = Lines::default();
    let _guard = tracing::subscriber::set_default(lines.clone());
    let (_socket, refusing) = refusing();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let logged = Service { access_log: true, balance: Balance::First, ..service() };
    let table = |states: [BackendState; 3], addresses: [SocketAddr; 3]| -> Vec<Backend> {
        (1..).zip(states).zip(addresses).map(|((n, state), address)| backend(n, address, state)).collect()
    };
    let good = [BackendState::Ready; 3];
    let addresses = [refusing, listener.local_addr().unwrap(), refusing];
    let rig = Rig::new(&logged, table(good, addresses));
    let next = async |count: usize| {
        rig.until(|stats| stats.connections == 0).await;
        let lines = lines.0.lock().unwrap();
        assert_eq!(lines.len(), count, "{lines:?}");
        lines[count - 1].clone()
    };

    let mut client = rig.connect().await;
    let from = client.local_addr().unwrap();
    let (mut master, _) = listener.accept().await.unwrap();
    client.write_all(b"question").await.unwrap();
    client.shutdown().await.unwrap();
    master.read_exact(&mut [0; 8]).await.unwrap();
    master.write_all(b"an answer").await.unwrap();
    drop(master);
    client.read_to_end(&mut Vec::new()).await.unwrap();
    let line = next(1).await;
    let fields: Vec<&str> = line.split(' ').collect();
    assert_eq!(fields[0], from.to_string());
    assert!(fields[1].starts_with('[') && fields[1].ends_with(']'), "{line}");
    assert_eq!(fields[2..4], ["kube-api", "kube-api/m2"]);
    assert!(fields[4].starts_with("0/"), "{line}");
    assert_eq!(fields[5..], ["9", "--", "0/0/0/0/+1", "0/0"]);

    let ending = |line: String| {
        let fields: Vec<String> = line.split(' ').map(str::to_owned).collect();
        (fields[3].clone(), fields[6].clone())
    };
    for (client_breaks, code) in [(true, "CD"), (false, "SD")] {
        let mut client = rig.connect().await;
        let (mut master, _) = listener.accept().await.unwrap();
        master.write_all(b"x").await.unwrap();
        client.read_exact(&mut [0]).await.unwrap();
        let (broken, mut other) = if client_breaks { (client, master) } else { (master, client) };
        socket::reset_on_drop(&broken);
        drop(broken);
        is_reset(&mut other).await;
        let count = 2 + usize::from(!client_breaks);
        assert_eq!(ending(next(count).await), ("kube-api/m2".to_owned(), code.to_owned()));
    }
    let mut client = rig.connect().await;
    let (mut master, _) = listener.accept().await.unwrap();
    client.write_all(b"question").await.unwrap();
    master.read_exact(&mut [0; 8]).await.unwrap();
    rig.set(table([BackendState::Ready, BackendState::Down, BackendState::Ready], addresses));
    is_reset(&mut client).await;
    assert_eq!(ending(next(4).await).1, "DD");
    rig.set(table(good, [refusing; 3]));
    is_reset(&mut rig.connect().await).await;
    assert_eq!(ending(next(5).await), ("kube-api/<NOSRV>".to_owned(), "SC".to_owned()));
}
