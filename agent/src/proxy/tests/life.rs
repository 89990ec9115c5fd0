//! Limits, reload and the end.

use super::*;

#[tokio::test]
async fn clients_over_maxconn_are_reset_and_counted() {
    let rig = Rig::new(
        &Service { maxconn: 2, ..service() },
        vec![backend(1, master(1).await, BackendState::Ready)],
    );
    let (mut one, _) = rig.reach().await;
    let (two, _) = rig.reach().await;
    for _ in 0..3 {
        is_reset(&mut rig.connect().await).await;
    }
    let stats = rig.stats();
    assert_eq!((stats.connections, stats.maxconn, stats.refused), (2, 2, 3));
    echoes(&mut one).await;
    drop(two);
    rig.until(|stats| stats.connections == 1).await;
    rig.reach().await;
}

#[tokio::test]
async fn a_reload_moves_listeners_and_leaves_connections() {
    let rig = Rig::new(&service(), vec![backend(1, master(1).await, BackendState::Ready)]);
    let (mut held, _) = rig.reach().await;
    // An address of its own, where no other test gets a port.
    let second = SocketAddr::from(([127, 77, 0, 1], 16443));
    let old = rig.address();
    let new = Service { listen: vec![second], maxconn: 7, ..service() };
    rig.proxy.reload(std::slice::from_ref(&new)).closed(LONG).await;
    assert!(TcpStream::connect(old).await.is_err(), "a check would find it");
    rig.until(|stats| stats.listens == [(second, None)]).await;
    assert_eq!(rig.stats().maxconn, 7);
    rig.reach().await;
    // The address moves to a service of another name, whose first clients find no backend.
    let renamed = Service { name: "other".parse().unwrap(), ..new };
    rig.proxy.reload(&[renamed]);
    let other = || rig.proxy.stats()[&"other".parse().unwrap()].listens.clone();
    let bound = async {
        while other() != [(second, None)] {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    timeout(LONG, bound).await.unwrap();
    echoes(&mut held).await;
    drop(held);
    let forgotten = async {
        while rig.proxy.stats().contains_key(&ServiceName::kube_api()) {
            rig.table.send_modify(|_| ());
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    timeout(LONG, forgotten).await.unwrap();
}

#[tokio::test]
async fn an_address_in_use_is_reported_and_retried() {
    let squatter = std::net::TcpListener::bind("127.77.0.2:16443").unwrap();
    let address = squatter.local_addr().unwrap();
    let rig = Rig::new(
        &Service { listen: vec![address], ..service() },
        vec![backend(1, master(1).await, BackendState::Ready)],
    );
    let error = rig.stats().listens[0].1.clone().unwrap();
    assert_eq!(error.cause, Cause::AddressInUse);
    assert!(!error.detail.is_empty(), "it says what would help");
    drop(squatter);
    rig.until(|stats| stats.listens == [(address, None)]).await;
    assert_eq!(rig.reach().await.1, 1);
}

#[tokio::test]
async fn a_port_is_shared_only_where_both_let_it_be() {
    let other = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
    other.set_reuse_port(true).unwrap();
    other.bind(&"127.77.0.3:16443".parse::<std::net::SocketAddr>().unwrap().into()).unwrap();
    other.listen(16).unwrap();
    let address = other.local_addr().unwrap().as_socket().unwrap();
    let alone = Service { listen: vec![address], ..service() };
    let rig = Rig::new(&alone, vec![backend(1, master(1).await, BackendState::Ready)]);
    assert_eq!(rig.stats().listens[0].1.clone().unwrap().cause, Cause::AddressInUse);
    rig.proxy.reload(&[Service { share_port: true, ..alone.clone() }]);
    rig.until(|stats| stats.listens == [(address, None)]).await;
    // What listens stays, and is alone once the other has closed.
    rig.proxy.reload(&[alone]);
    drop(other);
    for _ in 0..8 {
        assert_eq!(rig.reach().await.1, 1);
    }
}

#[tokio::test]
async fn draining_closes_listeners_and_shutdown_ends_held_connections() {
    let rig = Rig::new(&service(), vec![backend(1, master(1).await, BackendState::Ready)]);
    let address = rig.address();
    let (mut one, _) = rig.reach().await;
    let (mut two, _) = rig.reach().await;
    rig.life.draining.cancel();
    let closed = async { while TcpStream::connect(address).await.is_ok() {} };
    timeout(LONG, closed).await.unwrap();
    echoes(&mut one).await;
    echoes(&mut two).await;
    rig.life.shutdown.cancel();
    is_reset(&mut one).await;
    is_reset(&mut two).await;
    timeout(LONG, rig.life.finished()).await.unwrap();
}

#[tokio::test]
async fn proxy_threads_serve_and_end_like_one_runtime() {
    let rig = Rig::on(Workers::start, &service(), vec![backend(1, master(1).await, BackendState::Ready)]);
    let mut clients = Vec::new();
    for _ in 0..32 {
        clients.push(rig.reach().await.0);
    }
    assert_eq!(rig.stats().connections, 32);
    rig.set(vec![
        backend(1, refusing().1, BackendState::Down),
        backend(2, master(2).await, BackendState::Ready),
    ]);
    for client in &mut clients {
        is_reset(client).await;
    }
    clients.clear();
    for _ in 0..32 {
        clients.push(rig.reach().await.0);
    }
    rig.life.draining.cancel();
    let closed = async { while TcpStream::connect(rig.address()).await.is_ok() {} };
    timeout(LONG, closed).await.unwrap();
    for client in &mut clients {
        echoes(client).await;
    }
    rig.life.shutdown.cancel();
    for client in &mut clients {
        is_reset(client).await;
    }
    timeout(LONG, rig.life.finished()).await.unwrap();
}

#[tokio::test]
async fn clients_in_the_accept_queue_are_served_after_a_stop() {
    let rig = Rig::new(&service(), vec![backend(1, master(1).await, BackendState::Ready)]);
    rig.reach().await;
    // Both before the listener's task runs again.
    let client = std::net::TcpStream::connect(rig.address()).unwrap();
    rig.life.draining.cancel();
    client.set_nonblocking(true).unwrap();
    let mut client = TcpStream::from_std(client).unwrap();
    assert_eq!(timeout(LONG, client.read_u8()).await.unwrap().unwrap(), 1);
}

#[tokio::test]
async fn a_stop_is_finished_as_soon_as_the_last_connection_is() {
    let rig = Rig::new(&service(), vec![backend(1, master(1).await, BackendState::Ready)]);
    let (mut client, _) = rig.reach().await;
    rig.life.draining.cancel();
    assert!(timeout(Duration::from_millis(100), rig.life.finished()).await.is_err());
    echoes(&mut client).await;
    drop(client);
    timeout(LONG, rig.life.finished()).await.unwrap();
}

#[tokio::test]
async fn a_connection_costs_little_memory() {
    let rig = Rig::new(&service(), vec![]);
    let pool = Arc::new(ServicePool::new(&service(), id(100)));
    let open = pool.admit([127, 0, 0, 1].into(), &rig.proxy.shared).unwrap();
    let client = rig.connect().await;
    let client = stream::Stream::open(client.into_std().unwrap());
    let future = connection::serve(client, open, Arc::clone(&rig.proxy.shared));
    let size = std::mem::size_of_val(&future);
    assert!(size <= 320, "{size} bytes");
}

/// In a process of its own, since the limit applies to the whole process.
#[test]
fn without_descriptors_clients_wait_and_held_connections_continue() {
    const NAME: &str = "proxy::tests::life::without_descriptors_clients_wait_and_held_connections_continue";
    if std::env::var_os("STARVE").is_none() {
        let exe = std::env::current_exe().unwrap();
        let child = std::process::Command::new(exe).args(["--exact", NAME]).env("STARVE", "1").output();
        let child = child.unwrap();
        assert!(child.status.success(), "{}", String::from_utf8_lossy(&child.stdout));
        assert!(String::from_utf8_lossy(&child.stdout).contains("1 passed"), "the child ran something else");
        return;
    }
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(starve());
}

async fn starve() {
    use rustix::process::{Resource, Rlimit, setrlimit};
    let rig = Rig::new(&service(), vec![backend(1, master(1).await, BackendState::Ready)]);
    let (mut held, _) = rig.reach().await;
    setrlimit(Resource::Nofile, Rlimit { current: Some(100), maximum: Some(100) }).unwrap();
    let mut files: Vec<std::fs::File> =
        std::iter::from_fn(|| std::fs::File::open("/dev/null").ok()).collect();
    // One for the client's own end; none is left to accept it with.
    files.pop();
    let mut client = rig.connect().await;
    assert!(timeout(Duration::from_millis(300), client.read_u8()).await.is_err());
    echoes(&mut held).await;
    drop(files);
    assert_eq!(timeout(LONG, client.read_u8()).await.unwrap().unwrap(), 1);
    echoes(&mut held).await;
}
