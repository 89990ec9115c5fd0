//! A whole node: what it offers, from its configuration and its address.

use std::net::IpAddr;

use proto::backends::{KnownBackend, LastKnownGood};
use proto::health::Readiness;
use proto::node::NodeId;
use proto::record::ServiceOffer;
use proto::service::{Service, ServiceName};
use tokio::sync::watch;

use super::super::{OwnHealth, spawn_at, until_checked};
use super::*;
use crate::lifecycle::Lifecycle;

struct Node {
    services: watch::Sender<Arc<Vec<Service>>>,
    own: watch::Sender<Option<IpAddr>>,
    health: watch::Receiver<Arc<OwnHealth>>,
    life: Lifecycle,
    _dir: tempfile::TempDir,
}

impl Drop for Node {
    fn drop(&mut self) {
        self.life.shutdown.cancel();
    }
}

impl Node {
    fn start(services: Vec<Service>, own: Option<&str>) -> Node {
        Node::start_after(OwnHealth::new(), services, own)
    }

    /// Starts with health from before.
    fn start_after(before: OwnHealth, services: Vec<Service>, own: Option<&str>) -> Node {
        let dir = tempfile::tempdir().unwrap();
        let life = Lifecycle::new();
        let (services, services_in) = watch::channel(Arc::new(services));
        let (own, own_in) = watch::channel(own.map(|own| own.parse().unwrap()));
        let (out, health) = watch::channel(Arc::new(before));
        spawn_at(services_in, own_in, out, Arc::default(), &life, dir.path());
        Node { services, own, health, life, _dir: dir }
    }

    /// Waits until the only service's offer is as wanted.
    async fn until(&mut self, wanted: impl Fn(Option<&ServiceOffer>) -> bool) -> Option<ServiceOffer> {
        let found = self.health.wait_for(|health| wanted(health.values().next()));
        let found = tokio::time::timeout(Duration::from_secs(10), found).await;
        let found = found.expect("waited 10 s for a change of health").unwrap();
        found.values().next().cloned()
    }
}

fn http(port: u16) -> Service {
    Service {
        port,
        listen: Vec::new(),
        check: Check {
            kind: CheckKind::Http(readyz()),
            interval: Duration::from_millis(20),
            ..Check::default()
        },
        ..Service::kube_api()
    }
}

fn is(offer: Option<&ServiceOffer>, readiness: Readiness) -> bool {
    offer.is_some_and(|offer| offer.health.readiness == readiness)
}

#[tokio::test]
async fn a_service_is_offered_at_its_first_answer_and_follows_it() {
    let server = Server::start(None, 200, "ok").await;
    let mut service = http(server.address.port());
    service.check.interval = Duration::from_secs(3600);
    let mut node = Node::start(vec![service.clone()], Some("127.0.0.1"));
    let offer = node.until(|offer| offer.is_some()).await.unwrap();
    assert_eq!((offer.address, offer.weight), (server.address, 100));
    assert_eq!((offer.health.readiness, offer.health.cause), (Readiness::Ready, Cause::Http(200)));

    // A new configuration counts at once.
    service.weight = 7;
    service.check.interval = Duration::from_millis(20);
    node.services.send_replace(Arc::new(vec![service]));
    node.until(|offer| offer.is_some_and(|offer| offer.weight == 7)).await;
    server.say(500, "[-]etcd failed: reason withheld");
    let offer = node.until(|offer| is(offer, Readiness::NotReady)).await.unwrap();
    assert_eq!(offer.health.reason().to_string(), "HTTP 500: etcd failed");
    server.say(200, "ok");
    node.until(|offer| is(offer, Readiness::Ready)).await;
    drop(server);
    let offer = node.until(|offer| is(offer, Readiness::Down)).await.unwrap();
    assert_eq!(offer.health.cause, Cause::PortClosed);
    node.services.send_replace(Arc::default());
    node.until(|offer| offer.is_none()).await;
    node.life.shutdown.cancel();
    node.life.finished().await;
}

#[tokio::test]
async fn a_service_that_others_offer_is_not_checked_here() {
    let server = Server::start(None, 200, "ok").await;
    let mut service = http(server.address.port());
    service.offer = false;
    let mut node = Node::start(vec![service.clone()], Some("127.0.0.1"));
    let own = NodeId([1; NodeId::LEN]);
    let before = until_checked(std::slice::from_ref(&service), &served(own, server.address), &own, &[]);
    assert_eq!(before, OwnHealth::new());
    tokio::time::sleep(Duration::from_millis(100)).await;
    assert!(node.health.borrow().is_empty() && server.seen.lock().unwrap().is_empty());
    service.offer = true;
    node.services.send_replace(Arc::new(vec![service.clone()]));
    node.until(|offer| is(offer, Readiness::Ready)).await;
    service.offer = false;
    node.services.send_replace(Arc::new(vec![service]));
    node.until(|offer| offer.is_none()).await;
    assert_eq!(node.health.borrow().len(), 0, "it is withdrawn");
}

#[tokio::test]
async fn a_service_that_appears_later_is_found() {
    let address = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    let mut node = Node::start(vec![http(address.port())], Some("127.0.0.1"));
    tokio::time::sleep(Duration::from_millis(100)).await;
    assert!(node.health.borrow().is_empty());
    let _server = Server::at(&address.to_string(), None, 200, "ok", Duration::ZERO).await;
    node.until(|offer| is(offer, Readiness::Ready)).await;
}

#[tokio::test]
async fn nothing_is_offered_without_an_address_to_offer() {
    let server = Server::at("0.0.0.0:0", None, 200, "ok", Duration::ZERO).await;
    let port = server.address.port();
    let mut node = Node::start(vec![http(port)], None);
    let asked = async {
        while server.seen.lock().unwrap().len() < 3 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(10), asked).await.expect("it checks on loopback meanwhile");
    assert!(node.health.borrow().is_empty());
    node.own.send_replace(Some("127.0.0.2".parse().unwrap()));
    let offer = node.until(|offer| offer.is_some()).await.unwrap();
    assert_eq!(offer.address, SocketAddr::from(([127, 0, 0, 2], port)));
    // The address moves, and the offer with it; it disappears for a while, and the offer is not withdrawn.
    node.own.send_replace(Some("127.0.0.3".parse().unwrap()));
    node.until(|offer| offer.is_some_and(|offer| offer.address.ip() == IpAddr::from([127, 0, 0, 3]))).await;
    let checks = || server.seen.lock().unwrap().len();
    node.own.send_replace(None);
    let before = checks();
    while checks() < before + 3 {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    assert!(is(node.health.borrow().values().next(), Readiness::Ready));
}

#[tokio::test]
async fn an_address_that_comes_with_the_first_check_is_not_checked_twice() {
    // Two checks at the same moment are one observation: `fall` of them would be no reason to report it down.
    for _ in 0..20 {
        let server = Server::start(None, 200, "ok").await;
        let mut service = http(server.address.port());
        service.check.interval = Duration::from_secs(3600);
        let mut node = Node::start(vec![service], Some("127.0.0.2"));
        node.own.send_replace(Some("127.0.0.1".parse().unwrap()));
        node.until(|offer| is(offer, Readiness::Ready)).await;
        tokio::time::sleep(Duration::from_millis(20)).await;
        assert_eq!(server.seen.lock().unwrap().len(), 1);
    }
}

/// The last known good list of a node that has the service at this port of this address.
fn served(node: NodeId, address: SocketAddr) -> LastKnownGood {
    let name = "m1".parse().unwrap();
    vec![(ServiceName::kube_api(), vec![KnownBackend { node, name, address, weight: 100 }])]
}

#[tokio::test]
async fn a_restarting_agent_never_reports_its_apiserver_gone() {
    let own = NodeId([1; NodeId::LEN]);
    // It accepts and does not answer, as under load; then it does.
    let server = Server::at("127.0.0.1:0", None, 200, "ok", Duration::from_millis(400)).await;
    let mut service = http(server.address.port());
    service.check.timeout = Duration::from_millis(150);
    service.check.fall = 3;
    let before = until_checked(std::slice::from_ref(&service), &served(own, server.address), &own, &[]);
    assert_eq!(before[&service.name].health.cause, Cause::NotCheckedYet);
    assert_eq!(before[&service.name].address, server.address);
    let others = served(NodeId([2; NodeId::LEN]), server.address);
    assert_eq!(until_checked(std::slice::from_ref(&service), &others, &own, &[]), OwnHealth::new());

    let mut node = Node::start_after(before, vec![service.clone()], None);
    let mut seen = node.health.clone();
    let watcher = tokio::spawn(async move {
        while seen.changed().await.is_ok() {
            assert!(!seen.borrow_and_update().is_empty(), "it said that there is none");
        }
    });
    // Its address, too, is known only after a moment.
    node.own.send_replace(Some("127.0.0.1".parse().unwrap()));
    node.until(|offer| is(offer, Readiness::Down)).await;
    // A change of the configuration replaces the checker, and the new one also starts without a result.
    service.weight = 7;
    node.services.send_replace(Arc::new(vec![service.clone()]));
    node.until(|offer| offer.is_some_and(|offer| offer.weight == 7)).await;
    service.check.timeout = Duration::from_secs(2);
    node.services.send_replace(Arc::new(vec![service]));
    node.until(|offer| is(offer, Readiness::Ready)).await;
    assert!(!watcher.is_finished(), "it said that there is none");
}

#[tokio::test]
async fn an_apiserver_bound_to_loopback_is_reported() {
    let server = Server::at("0.0.0.0:0", None, 200, "ok", Duration::ZERO).await;
    let port = server.address.port();
    let mut node = Node::start(vec![http(port)], Some("127.0.0.2"));
    node.until(|offer| is(offer, Readiness::Ready)).await;
    drop(server);
    node.until(|offer| is(offer, Readiness::Down)).await;
    let _server = Server::at(&format!("127.0.0.1:{port}"), None, 200, "ok", Duration::ZERO).await;
    let offer =
        node.until(|one| one.is_some_and(|one| one.health.cause == Cause::LoopbackOnly)).await.unwrap();
    let said = "listens on loopback only: 127.0.0.1, not 127.0.0.2";
    assert_eq!(offer.health.reason().to_string(), said);
}

#[tokio::test]
async fn the_agents_own_proxy_is_never_taken_for_an_apiserver() {
    let server = Server::start(None, 200, "ok").await;
    let mut service = http(server.address.port());
    service.listen = vec![SocketAddr::from(([0, 0, 0, 0], server.address.port()))];
    let mut node = Node::start(vec![service.clone()], Some("127.0.0.1"));
    tokio::time::sleep(Duration::from_millis(100)).await;
    assert!(node.health.borrow().is_empty());
    assert!(server.seen.lock().unwrap().is_empty(), "not even asked");
    service.listen.clear();
    node.services.send_replace(Arc::new(vec![service]));
    node.until(|offer| is(offer, Readiness::Ready)).await;
}

#[test]
fn offers_can_be_dialled_by_others() {
    let offered = |check: Option<&str>, own: Option<&str>| {
        let mut service = http(6443);
        service.check.address = check.map(|check| check.parse().unwrap());
        super::super::watcher::offered_address(&service, own.map(|own| own.parse().unwrap()))
            .map(|address| address.to_string())
    };
    let mesh = Some("10.0.0.1");
    assert_eq!(offered(None, mesh).as_deref(), Some("10.0.0.1:6443"));
    assert_eq!(offered(None, None), None);
    assert_eq!(offered(Some("192.0.2.1:7443"), mesh).as_deref(), Some("192.0.2.1:7443"));
    assert_eq!(offered(Some("192.0.2.1:7443"), None).as_deref(), Some("192.0.2.1:7443"));
    assert_eq!(offered(Some("127.0.0.1:7443"), mesh).as_deref(), Some("10.0.0.1:6443"));
    assert_eq!(offered(Some("127.0.0.1:7443"), None), None);
    assert_eq!(offered(Some("127.0.0.9:7443"), Some("127.0.0.8")).as_deref(), Some("127.0.0.9:7443"));
}
