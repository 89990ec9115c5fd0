//! The whole proxy, on loopback.

use std::io;
use std::time::{Duration, Instant};

use proto::backends::{Backend, BackendState};
use proto::cause::{Cause, Detail};
use proto::path::Evidence;
use proto::service::Balance;
use proto::time::UnixMs;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::time::timeout;

use super::*;

mod flight;
mod life;
mod manners;

/// Longer than any step here takes; whatever reaches it has failed.
const LONG: Duration = Duration::from_secs(10);

pub(super) fn id(n: u8) -> NodeId {
    NodeId([n; NodeId::LEN])
}

pub(super) fn backend(n: u8, address: SocketAddr, state: BackendState) -> Backend {
    Backend {
        node: id(n),
        name: format!("m{n}").parse().unwrap(),
        address,
        weight: 100,
        state,
        cause: None,
        detail: Detail::default(),
        since: UnixMs(0),
        rtt: None,
        probe_only: false,
    }
}

fn service() -> Service {
    Service { listen: vec!["127.0.0.1:0".parse().unwrap()], ..Service::kube_api() }
}

/// A backend that sends its number to each client and then echoes.
async fn master(n: u8) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((mut client, _)) = listener.accept().await {
            tokio::spawn(async move {
                client.write_all(&[n]).await?;
                let (mut read, mut write) = client.split();
                tokio::io::copy(&mut read, &mut write).await?;
                write.shutdown().await
            });
        }
    });
    address
}

/// A port that refuses connections and stays reserved while the socket lives.
fn refusing() -> (TcpSocket, SocketAddr) {
    let socket = TcpSocket::new_v4().unwrap();
    socket.bind("127.0.0.1:0".parse().unwrap()).unwrap();
    let address = socket.local_addr().unwrap();
    (socket, address)
}

/// A port whose SYNs are dropped: its queue of unaccepted connections is full.
async fn black_hole() -> (TcpListener, Vec<TcpStream>, SocketAddr) {
    let socket = TcpSocket::new_v4().unwrap();
    socket.bind("127.0.0.1:0".parse().unwrap()).unwrap();
    let listener = socket.listen(0).unwrap();
    let address = listener.local_addr().unwrap();
    let mut fill = Vec::new();
    while let Ok(connected) = timeout(Duration::from_millis(200), TcpStream::connect(address)).await {
        fill.push(connected.unwrap());
    }
    (listener, fill, address)
}

struct Rig {
    proxy: Proxy,
    table: watch::Sender<Arc<BackendTable>>,
    reports: mpsc::Receiver<EvidenceReport>,
    life: Lifecycle,
}

impl Rig {
    /// A proxy on node 100, which is no master. All of it runs in the test's runtime, so that nothing happens
    /// unless the test awaits.
    fn new(service: &Service, backends: Vec<Backend>) -> Rig {
        Rig::on(|_, _| Workers::here(), service, backends)
    }

    fn on(
        workers: impl FnOnce(&Lifecycle, &TaskTracker) -> Workers,
        service: &Service,
        backends: Vec<Backend>,
    ) -> Rig {
        let life = Lifecycle::new();
        let open = TaskTracker::new();
        let (table, reader) = watch::channel(Arc::default());
        let (evidence, reports) = mpsc::channel(1000);
        let listeners = Listeners::bind(std::slice::from_ref(service), None);
        let workers = workers(&life, &open);
        let proxy = Proxy::start_on(workers, open, listeners, id(100), reader, evidence, &life);
        let rig = Rig { proxy, table, reports, life };
        rig.set(backends);
        rig
    }

    fn set(&self, backends: Vec<Backend>) {
        self.table.send_replace(Arc::new(BackendTable::from([(ServiceName::kube_api(), backends)])));
    }

    fn stats(&self) -> ServiceStats {
        self.proxy.stats()[&ServiceName::kube_api()].clone()
    }

    fn address(&self) -> SocketAddr {
        self.stats().listens[0].0
    }

    /// Connects without letting the proxy run: it may reset the client at once.
    async fn connect(&self) -> TcpStream {
        let client = std::net::TcpStream::connect(self.address()).unwrap();
        client.set_nonblocking(true).unwrap();
        TcpStream::from_std(client).unwrap()
    }

    /// Connects and reads which backend it got.
    async fn reach(&self) -> (TcpStream, u8) {
        let mut client = self.connect().await;
        let n = timeout(LONG, client.read_u8()).await.unwrap().unwrap();
        (client, n)
    }

    async fn report(&mut self) -> (u8, Evidence) {
        let report = timeout(LONG, self.reports.recv()).await.unwrap().unwrap();
        (report.node.0[0], report.evidence)
    }

    /// Polls, since counters have no event.
    async fn until(&self, holds: impl Fn(&ServiceStats) -> bool) {
        let wait = async {
            while !holds(&self.stats()) {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        assert!(timeout(LONG, wait).await.is_ok(), "{:?}", self.stats());
    }
}

async fn echoes(client: &mut TcpStream) {
    client.write_all(b"ping").await.unwrap();
    let mut answer = [0; 4];
    timeout(LONG, client.read_exact(&mut answer)).await.unwrap().unwrap();
    assert_eq!(&answer, b"ping");
}

async fn is_reset(client: &mut TcpStream) {
    let error = timeout(LONG, client.read_u8()).await.expect("neither data nor reset").unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::ConnectionReset);
}

#[tokio::test]
async fn a_client_reaches_a_master_and_is_counted() {
    let mut rig = Rig::new(&service(), vec![backend(1, master(1).await, BackendState::Ready)]);
    let (mut client, n) = rig.reach().await;
    assert_eq!(n, 1);
    echoes(&mut client).await;
    let stats = rig.stats();
    let BackendStats { connections, total, most, silences, errors, .. } = stats.backends[&id(1)];
    assert_eq!((stats.connections, connections, total, most, silences, errors), (1, 1, 1, 1, 0, 0));
    assert!(matches!(rig.report().await, (1, Evidence::Connected { took }) if took < LONG));
    drop(client);
    rig.until(|stats| stats.connections == 0 && stats.backends[&id(1)].connections == 0).await;
    let one = rig.stats().backends[&id(1)];
    assert_eq!((one.total, one.errors, one.races, one.silences), (1, 0, 0, 0));
    assert!(one.bytes_in > 0 && one.bytes_out > 0, "{one:?}");
}

#[tokio::test]
async fn a_refusal_leads_to_the_next_and_is_reported() {
    let (_socket, refusing) = refusing();
    let mut rig = Rig::new(
        &service(),
        vec![backend(1, refusing, BackendState::Ready), backend(2, master(2).await, BackendState::Alive)],
    );
    assert_eq!(rig.reach().await.1, 2);
    assert_eq!(rig.report().await, (1, Evidence::Refused));
    assert!(matches!(rig.report().await, (2, Evidence::Connected { .. })));
}

#[tokio::test]
async fn a_silent_dial_is_hedged_and_reported_after_a_second() {
    let (_listener, _fill, silent) = black_hole().await;
    let mut rig = Rig::new(
        &service(),
        vec![backend(1, silent, BackendState::Ready), backend(2, master(2).await, BackendState::Alive)],
    );
    let begin = Instant::now();
    assert_eq!(rig.reach().await.1, 2);
    assert!(begin.elapsed() < Duration::from_secs(1), "{:?}", begin.elapsed());
    assert!(matches!(rig.report().await, (2, Evidence::Connected { .. })));
    assert_eq!(rig.report().await, (1, Evidence::Unanswered));
    assert!(begin.elapsed() >= Duration::from_secs(1), "{:?}", begin.elapsed());
    rig.until(|stats| stats.backends[&id(1)].connections == 0).await;
}

#[tokio::test]
async fn the_client_is_reset_when_no_backend_answers_within_the_budget() {
    let (_listener, _fill, silent) = black_hole().await;
    let mut rig = Rig::new(&service(), vec![backend(1, silent, BackendState::Ready)]);
    let begin = Instant::now();
    is_reset(&mut rig.connect().await).await;
    let took = begin.elapsed();
    assert!(took >= proto::dial::BUDGET && took < proto::dial::BUDGET * 2, "{took:?}");
    assert_eq!(rig.report().await, (1, Evidence::Unanswered));
}

#[tokio::test]
async fn when_nobody_answers_the_client_is_reset_at_once() {
    let (_socket, refusing) = refusing();
    let rig = Rig::new(
        &service(),
        vec![backend(1, refusing, BackendState::Down), backend(2, refusing, BackendState::Down)],
    );
    let begin = Instant::now();
    is_reset(&mut rig.connect().await).await;
    rig.set(vec![]);
    is_reset(&mut rig.connect().await).await;
    assert!(begin.elapsed() < Duration::from_secs(1), "{:?}", begin.elapsed());
    rig.until(|stats| stats.unserved == 2 && stats.connections == 0).await;
}

#[tokio::test]
async fn a_backend_that_is_down_is_tried_as_a_last_resort() {
    let (_socket, refusing) = refusing();
    let rig = Rig::new(
        &service(),
        vec![backend(1, master(1).await, BackendState::Down), backend(2, refusing, BackendState::Ready)],
    );
    let (mut client, n) = rig.reach().await;
    assert_eq!(n, 1);
    // A newer table with the same state does not reset connections made despite it.
    rig.set(vec![backend(1, master(1).await, BackendState::Down), backend(2, refusing, BackendState::Ready)]);
    echoes(&mut client).await;
}

#[tokio::test]
async fn each_direction_closes_independently() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let rig = Rig::new(&service(), vec![backend(1, listener.local_addr().unwrap(), BackendState::Ready)]);
    // The client closes first, then the master; each still sends after the other has closed.
    for client_first in [true, false] {
        let mut client = rig.connect().await;
        let (mut master, _) = listener.accept().await.unwrap();
        let (first, second) =
            if client_first { (&mut client, &mut master) } else { (&mut master, &mut client) };
        first.write_all(b"question").await.unwrap();
        first.shutdown().await.unwrap();
        let mut text = String::new();
        timeout(LONG, second.read_to_string(&mut text)).await.unwrap().unwrap();
        assert_eq!(text, "question");
        second.write_all(b"answer").await.unwrap();
        second.shutdown().await.unwrap();
        timeout(LONG, first.read_to_string(&mut text)).await.unwrap().unwrap();
        assert_eq!(text, "questionanswer");
        rig.until(|stats| stats.connections == 0).await;
    }
}

#[tokio::test]
async fn a_reset_on_one_side_resets_the_other() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let rig = Rig::new(&service(), vec![backend(1, listener.local_addr().unwrap(), BackendState::Ready)]);
    for client_first in [true, false] {
        let client = rig.connect().await;
        let (master, _) = listener.accept().await.unwrap();
        let (first, mut second) = if client_first { (client, master) } else { (master, client) };
        socket::reset_on_drop(&first);
        drop(first);
        is_reset(&mut second).await;
    }
}

#[tokio::test]
async fn either_balance_spreads_clients() {
    for balance in [Balance::LeastConnections, Balance::RoundRobin] {
        let backends = vec![
            backend(1, master(1).await, BackendState::Ready),
            backend(2, master(2).await, BackendState::Ready),
            backend(3, master(3).await, BackendState::Ready),
        ];
        let rig = Rig::new(&Service { balance, ..service() }, backends);
        let mut clients = futures_util::future::join_all((0..30).map(|_| rig.reach())).await;
        // Round-robin may give a backend its turn too early while it learns of the others.
        let slack = if balance == Balance::RoundRobin { 1 } else { 0 };
        let shared = |clients: &[(TcpStream, u8)], expected: [i32; 3]| {
            let counts = [1, 2, 3].map(|n| clients.iter().filter(|(_, of)| *of == n).count() as i32);
            let near = counts.iter().zip(expected).all(|(count, expected)| (count - expected).abs() <= slack);
            assert!(near, "{balance}: {counts:?}");
        };
        shared(&clients, [10; 3]);
        // One backend's connections end: it is the least loaded, but gets its turn no more often than the
        // others.
        clients.retain(|(_, n)| *n != 1);
        rig.until(|stats| stats.backends[&id(1)].connections == 0).await;
        let more = futures_util::future::join_all((0..9).map(|_| rig.reach())).await;
        shared(&more, if balance == Balance::LeastConnections { [9, 0, 0] } else { [3; 3] });
    }
}

#[tokio::test]
async fn a_master_prefers_itself() {
    let own = backend(100, master(100).await, BackendState::Ready);
    let rig = Rig::new(&service(), vec![backend(1, master(1).await, BackendState::Ready), own]);
    for _ in 0..3 {
        assert_eq!(rig.reach().await.1, 100);
    }
}

#[tokio::test]
async fn a_backend_that_goes_down_loses_its_connections_if_another_is_good() {
    let (first, second) = (master(1).await, master(2).await);
    let table = |one, two| vec![backend(1, first, one), backend(2, second, two)];
    let rig = Rig::new(&service(), table(BackendState::Ready, BackendState::NotReady));
    let (mut client, n) = rig.reach().await;
    assert_eq!(n, 1);
    // No other backend is better.
    rig.set(table(BackendState::Down, BackendState::NotReady));
    echoes(&mut client).await;
    rig.set(table(BackendState::Suspect, BackendState::Ready));
    let (mut other, n) = rig.reach().await;
    assert_eq!(n, 2);
    echoes(&mut client).await;
    rig.set(table(BackendState::Down, BackendState::Ready));
    is_reset(&mut client).await;
    echoes(&mut other).await;
    // The second is removed from the cluster, and there is no other at all.
    rig.set(vec![]);
    is_reset(&mut other).await;
    rig.until(|stats| stats.connections == 0).await;
}

#[tokio::test]
async fn a_table_that_does_not_know_the_service_resets_nothing() {
    let rig = Rig::new(&service(), vec![backend(1, master(1).await, BackendState::Ready)]);
    let (mut client, _) = rig.reach().await;
    rig.table.send_replace(Arc::default());
    echoes(&mut client).await;
    echoes(&mut client).await;
}
