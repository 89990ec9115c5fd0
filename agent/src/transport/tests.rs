//! Two or three links on loopback, with real sockets between them.

use std::net::{IpAddr, Ipv4Addr};
use std::time::Duration;

use proto::cluster::{Admitted, KeyId};
use proto::node::{Name, Role};
use proto::pulse::PulseStatus;
use proto::rpc::{FromMember, ToMember};
use proto::time::UnixMs;
use proto::transport::{DatagramFrame, DatagramHeader, GossipKey, KeyHint};

use super::dial::CallError;
use super::*;
use crate::lifecycle::Lifecycle;
use crate::supervisor;

struct End {
    link: Arc<Link>,
    inbox: Inbox,
    trust: watch::Sender<Arc<TrustedKeys>>,
    at: SocketAddr,
    life: Lifecycle,
}

impl Drop for End {
    fn drop(&mut self) {
        self.life.shutdown.cancel();
    }
}

pub(super) fn identity(n: u8) -> Arc<Identity> {
    Arc::new(Identity::from_seed(&[n; 32]).unwrap())
}

fn key(n: u8) -> GossipKey {
    let secret = [n; 32];
    GossipKey { epoch: u64::from(n), id: KeyId::of_key(&secret), secret, until: None }
}

pub(super) fn trust_of(nodes: &[u8], keys: &[u8]) -> TrustedKeys {
    let admitted = |n: u8| {
        let name = Name::nearest(&format!("n{n}"));
        Admitted::new(name, identity(n).key, Role::Master, identity(1).id, UnixMs(1))
    };
    let current = keys.last().copied().unwrap_or(1);
    let mut document = Document::new([7; 16], Name::nearest("c"), admitted(nodes[0]), key(current).id);
    for n in nodes {
        document.admit(admitted(*n));
    }
    let mut ring = KeyRing::default();
    for n in keys {
        ring.add(key(*n));
    }
    TrustedKeys { document: Arc::new(document), ring: Arc::new(ring) }
}

/// A free port for UDP and TCP at once.
fn end(n: u8, trust: &TrustedKeys) -> End {
    let loopback = Some(IpAddr::V4(Ipv4Addr::LOCALHOST));
    let (trust_in, trust) = watch::channel(Arc::new(trust.clone()));
    let (link, inbox) = (0..100)
        .find_map(|_| {
            let free = std::net::UdpSocket::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
            Some(Link::new(BoundPorts::bind(loopback, free).ok()?, identity(n), trust.clone()))
        })
        .unwrap();
    let at = link.listener.local_addr().unwrap();
    let life = Lifecycle::new();
    link.serve(&life).unwrap();
    End { link, inbox, trust: trust_in, at, life }
}

fn introduce(a: &End, b: &End) {
    a.link.addresses().add_hint(b.link.own(), &[b.at], false);
    b.link.addresses().add_hint(a.link.own(), &[a.at], false);
}

/// Two that have heard each other.
async fn acquainted() -> (End, End) {
    let trust = trust_of(&[1, 2], &[1]);
    let (mut a, mut b) = (end(1, &trust), end(2, &trust));
    introduce(&a, &b);
    gets_through(&a, &mut b, b"known").await;
    gets_through(&b, &mut a, b"both ways").await;
    (a, b)
}

/// A datagram of node `from` to node 2 in this boot of it, sealed as it would with the gossip key `gossip`.
fn sealed(from: u8, gossip: u8, boot: u64, sequence: u64, frame: DatagramFrame<'_>) -> Vec<u8> {
    let (sender, receiver) = (identity(from), identity(2));
    let header =
        DatagramHeader { version: 1, key: KeyHint::of(key(1).id), sender: sender.id, boot, sequence };
    let pair = sender.pair_secret(&receiver.key).unwrap();
    let key = pair.key(&key(gossip).secret, &sender.id, &receiver.id, boot).unwrap();
    key.seal(&header, &frame.to_bytes()).unwrap()
}

const SOON: Duration = Duration::from_secs(5);
/// Long enough for what must not come to have come.
const NEVER: Duration = Duration::from_millis(300);

/// Sends until the boot is proven and a message gets through.
async fn gets_through(from: &End, to: &mut End, message: &[u8]) {
    let send = async {
        loop {
            from.link.send_gossip(to.link.own(), message, &from.life);
            if let Ok(Some((sender, got))) =
                tokio::time::timeout(Duration::from_millis(50), to.inbox.gossip.recv()).await
            {
                assert_eq!(sender, from.link.own());
                // An earlier message was sent several times, too.
                if got == message {
                    return;
                }
            }
        }
    };
    tokio::time::timeout(SOON, send).await.unwrap();
}

#[tokio::test]
async fn a_small_message_goes_by_datagram_and_a_large_one_by_tls() {
    let trust = trust_of(&[1, 2], &[1]);
    let (a, mut b) = (end(1, &trust), end(2, &trust));
    introduce(&a, &b);
    gets_through(&a, &mut b, b"small").await;
    let before = a.link.counters.get(Count::SentDatagrams);
    gets_through(&a, &mut b, &vec![7; 5000]).await;
    assert_eq!(a.link.counters.get(Count::SentDatagrams), before, "no datagram was used");
    assert_eq!(b.inbox.proven.recv().await, Some(a.link.own()));
}

#[tokio::test]
async fn a_panic_in_what_reads_the_port_leaves_the_port_open() {
    supervisor::watch_panics();
    let trust = trust_of(&[1, 2], &[1]);
    let (a, mut b) = (end(1, &trust), end(2, &trust));
    introduce(&a, &b);
    gets_through(&a, &mut b, b"small").await;
    supervisor::tests::fail_once("link-udp");
    gets_through(&a, &mut b, b"small too").await;
    assert!(supervisor::tests::has_failed());
    supervisor::tests::fail_once("link-tcp");
    gets_through(&a, &mut b, &vec![7; 5000]).await;
    assert!(supervisor::tests::has_failed());
}

#[tokio::test]
async fn strangers_and_wrong_keys_get_no_answer() {
    let mut b = end(2, &trust_of(&[1, 2, 3], &[1]));
    let socket = tokio::net::UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let mut stranger = vec![1];
    stranger.extend_from_slice(&[0xaa; 200]);
    let forged = sealed(1, 9, 5, 1, DatagramFrame::Gossip(b"hello"));
    // Node 3 is a member and holds the gossip key, and says that it is node 1.
    let mut imposed = sealed(3, 1, 5, 1, DatagramFrame::Gossip(b"hello"));
    imposed[5..15].copy_from_slice(&identity(1).id.0);
    for datagram in [b"".as_slice(), b"x", &stranger, &forged, &imposed, &[1; 1400]] {
        socket.send_to(datagram, b.at).await.unwrap();
    }
    let mut buffer = [0; 2000];
    assert!(tokio::time::timeout(NEVER, socket.recv_from(&mut buffer)).await.is_err());
    assert!(b.inbox.gossip.try_recv().is_err());
    assert_eq!(b.link.counters.get(Count::RefusedSeal), 2);
}

#[tokio::test]
async fn a_recording_is_refused_at_once_and_after_the_receiver_has_restarted() {
    let trust = trust_of(&[1, 2], &[1]);
    let (mut a, mut b) = (end(1, &trust), end(2, &trust));
    introduce(&a, &b);
    gets_through(&a, &mut b, b"first").await;
    // What an eavesdropper has: a datagram of a's current boot.
    let (boot, sequence) = a.link.datagrams().sealer().next_datagram();
    let recorded = sealed(1, 1, boot, sequence, DatagramFrame::Gossip(b"recorded"));
    let socket = tokio::net::UdpSocket::bind("127.0.0.1:0").await.unwrap();
    socket.send_to(&recorded, b.at).await.unwrap();
    let got = tokio::time::timeout(SOON, b.inbox.gossip.recv()).await.unwrap();
    assert_eq!(got, Some((a.link.own(), b"recorded".to_vec())), "the first time it is a datagram like any");
    socket.send_to(&recorded, b.at).await.unwrap();
    assert!(tokio::time::timeout(NEVER, b.inbox.gossip.recv()).await.is_err(), "the second time a replay");
    drop(b);
    let mut b = end(2, &trust);
    for _ in 0..5 {
        socket.send_to(&recorded, b.at).await.unwrap();
        assert!(tokio::time::timeout(NEVER, b.inbox.gossip.recv()).await.is_err(), "also after a restart");
    }
    // What came back to the eavesdropper is a challenge that it can't read or answer.
    introduce(&a, &b);
    gets_through(&b, &mut a, b"here now").await;
    gets_through(&a, &mut b, b"alive").await;
}

#[tokio::test]
async fn a_removed_node_is_refused_by_datagram_and_by_tls() {
    let trust = trust_of(&[1, 2], &[1]);
    let (a, mut b) = (end(1, &trust), end(2, &trust));
    introduce(&a, &b);
    gets_through(&a, &mut b, b"member").await;
    let mut document = trust.document.as_ref().clone();
    document.remove(a.link.own(), b.link.own(), UnixMs(2));
    b.trust.send_replace(Arc::new(TrustedKeys { document: Arc::new(document), ring: trust.ring.clone() }));
    for _ in 0..3 {
        a.link.send_gossip(b.link.own(), b"removed", &a.life);
        assert!(tokio::time::timeout(NEVER, b.inbox.gossip.recv()).await.is_err());
    }
    assert!(a.link.dialer().call(b.link.own(), &FromMember::Waiting).await.is_err());
}

#[tokio::test]
async fn a_member_is_served_by_tls_and_only_under_its_own_key() {
    let trust = trust_of(&[1, 2], &[1]);
    let (a, mut b) = (end(1, &trust), end(2, &trust));
    introduce(&a, &b);
    let answer = tokio::spawn(async move {
        let MemberRequest { from, reply, .. } = b.inbox.members.recv().await.unwrap();
        reply.send(ToMember::Waiting(Vec::new())).unwrap();
        (from, b)
    });
    let got = a.link.dialer().call(identity(2).id, &FromMember::Waiting).await.unwrap();
    assert!(matches!(got, ToMember::Waiting(list) if list.is_empty()));
    let (from, b) = answer.await.unwrap();
    assert_eq!(from, a.link.own());
    // b's address with another key pinned: the handshake must fail.
    let error = a.link.dialer().call_at(&[b.at], identity(3).key, &FromMember::Waiting).await.unwrap_err();
    let CallError::Connect(error) = error else { panic!("{error}") };
    assert!(error.get_ref().is_some_and(|inner| inner.is::<rustls::Error>()), "{error}");
    // A stranger's key is refused by b.
    let stranger = end(3, &trust_of(&[3, 2], &[1]));
    assert!(stranger.link.dialer().call_at(&[b.at], identity(2).key, &FromMember::Waiting).await.is_err());
}

#[tokio::test]
async fn a_knock_is_answered_by_who_holds_the_key_and_by_nobody_else() {
    let trust = trust_of(&[1, 2], &[1]);
    let (a, b) = (end(1, &trust), end(2, &trust));
    let echo = a.link.datagrams().probe(b.link.own(), b.at);
    assert!(tokio::time::timeout(SOON, echo).await.unwrap().is_ok());
    let other = end(3, &trust_of(&[3, 1], &[2]));
    let echo = a.link.datagrams().probe(other.link.own(), other.at);
    assert!(tokio::time::timeout(NEVER, echo).await.is_err());
}

#[tokio::test]
async fn an_unknown_key_makes_a_hint_and_no_answer() {
    let old = trust_of(&[1, 2], &[1]);
    let mut b = end(2, &old);
    let a = end(1, &trust_of(&[1, 2], &[1, 2]));
    introduce(&a, &b);
    a.link.send_gossip(b.link.own(), b"under the new key", &a.life);
    let hint = tokio::time::timeout(SOON, b.inbox.unknown_key.recv()).await.unwrap();
    assert_eq!(hint, Some(a.link.own()));
    assert_eq!(b.link.counters.get(Count::SentDatagrams), 0);
}

#[tokio::test]
async fn a_datagram_to_a_machine_without_an_agent_comes_back_as_a_hint_and_costs_no_other() {
    let trust = trust_of(&[1, 2, 3], &[1]);
    let (mut a, mut b) = (end(1, &trust), end(2, &trust));
    introduce(&a, &b);
    gets_through(&a, &mut b, b"first").await;
    let free = std::net::UdpSocket::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let gone = identity(3).id;
    a.link.addresses().add_hint(gone, &[free], false);
    for number in 1..20 {
        a.link.datagrams().pulse(gone, number, Duration::ZERO, a.life.now());
        // The kernel hands the refusal to whatever is sent next.
        a.link.send_gossip(b.link.own(), &[7], &a.life);
        let got = tokio::time::timeout(SOON, b.inbox.gossip.recv()).await.unwrap();
        assert!(got.is_some(), "message {number}");
    }
    let hint = async {
        loop {
            if let Some(PulseAnswer::NoAgent(at)) = a.inbox.answers.recv().await {
                return at;
            }
        }
    };
    assert_eq!(tokio::time::timeout(SOON, hint).await.unwrap(), gone);
}

#[tokio::test]
async fn a_derived_key_is_kept_of_proven_senders_only() {
    let trust = trust_of(&[1, 2], &[1]);
    let (a, mut b) = (end(1, &trust), end(2, &trust));
    introduce(&a, &b);
    // Sealed with the right key, of a boot that is not there any more.
    let old = sealed(1, 1, 5, 1, DatagramFrame::Gossip(b"old"));
    let socket = tokio::net::UdpSocket::bind("127.0.0.1:0").await.unwrap();
    socket.send_to(&old, b.at).await.unwrap();
    let mut challenge = [0; 200];
    tokio::time::timeout(SOON, socket.recv_from(&mut challenge)).await.unwrap().unwrap();
    assert!(!b.link.datagrams().sealer().pairs().keeps(&a.link.own(), 5));
    gets_through(&a, &mut b, b"live").await;
    gets_through(&a, &mut b, b"and again").await;
    assert!(
        b.link
            .datagrams()
            .sealer()
            .pairs()
            .keeps(&a.link.own(), a.link.datagrams().sealer().next_datagram().0)
    );
    socket.send_to(&old, b.at).await.unwrap();
    gets_through(&a, &mut b, b"still").await;
    assert!(
        b.link
            .datagrams()
            .sealer()
            .pairs()
            .keeps(&a.link.own(), a.link.datagrams().sealer().next_datagram().0)
    );
    b.trust.send_replace(Arc::new(trust_of(&[2], &[1])));
    b.link.forget_strangers();
    assert_eq!(b.link.datagrams().sealer().pairs().len(), 0);
}

#[tokio::test]
async fn an_address_is_proven_by_an_echo_or_a_handshake_and_not_by_what_comes_from_there() {
    let trust = trust_of(&[1, 2], &[1]);
    let (a, mut b) = (end(1, &trust), end(2, &trust));
    introduce(&a, &b);
    let loopback = IpAddr::V4(Ipv4Addr::LOCALHOST);
    assert!(!b.link.addresses().is_proven(&a.link.own(), loopback));
    let mut changes = b.link.addresses().changes();
    changes.mark_unchanged();
    gets_through(&a, &mut b, b"by its echo").await;
    assert!(b.link.addresses().is_proven(&a.link.own(), loopback) && changes.has_changed().unwrap());
    assert!(!b.link.addresses().is_proven(&a.link.own(), "127.0.0.2".parse().unwrap()));
    // Someone passes a fresh datagram of a on from another address, and can't answer what is asked there.
    let elsewhere = tokio::net::UdpSocket::bind("127.0.0.3:0").await.unwrap();
    let (boot, sequence) = a.link.datagrams().sealer().next_datagram();
    let passed_on = sealed(1, 1, boot, sequence, DatagramFrame::Gossip(b"passed on"));
    elsewhere.send_to(&passed_on, b.at).await.unwrap();
    let got = tokio::time::timeout(SOON, b.inbox.gossip.recv()).await.unwrap();
    assert_eq!(got, Some((a.link.own(), b"passed on".to_vec())));
    let mut asked = [0; 200];
    tokio::time::timeout(SOON, elsewhere.recv_from(&mut asked)).await.unwrap().unwrap();
    assert_eq!(b.link.addresses().best(&a.link.own()), Some(a.at), "answers go on to where it is");
    assert!(!b.link.addresses().is_proven(&a.link.own(), "127.0.0.3".parse().unwrap()));
    // A handshake proves where it was dialled.
    let (tcp, _) = a.link.dial_back(b.link.identity.key, b.at).await;
    assert!(tcp.is_none() && a.link.addresses().is_proven(&b.link.own(), loopback));
}

#[tokio::test]
async fn an_address_that_someone_names_is_asked() {
    let trust = trust_of(&[1, 2], &[1]);
    let (a, b) = (end(1, &trust), end(2, &trust));
    let mut changes = a.link.addresses().changes();
    a.link.datagrams().prove(b.link.own(), b.at, a.life.now());
    tokio::time::timeout(SOON, changes.changed()).await.unwrap().unwrap();
    assert!(a.link.addresses().is_proven(&b.link.own(), b.at.ip()));
    assert_eq!(a.link.addresses().best(&b.link.own()), Some(b.at));
}

#[tokio::test]
async fn a_fingerprint_goes_with_one_answer_a_second() {
    let (mut a, b) = acquainted().await;
    b.link.datagrams().set_status(&PulseStatus::default(), false, b.life.now());
    b.link.datagrams().set_record_fingerprint(0xfeed);
    for number in 1..=5 {
        a.link.datagrams().pulse(b.link.own(), number, Duration::ZERO, a.life.now());
        let answer = tokio::time::timeout(SOON, a.inbox.answers.recv()).await.unwrap();
        assert!(matches!(answer, Some(PulseAnswer::Said { number: got, .. }) if got == number));
    }
    assert_eq!(a.inbox.fingerprints.try_recv().unwrap(), (b.link.own(), 0xfeed));
    assert!(a.inbox.fingerprints.try_recv().is_err());
}

#[tokio::test]
async fn a_beat_that_is_known_goes_with_the_next_answer() {
    let (mut a, b) = acquainted().await;
    let (from, beats) = (b.link.own(), b.link.datagrams());
    // The owner's thread is alive for the rest of this test.
    let later = b.life.now().after(SOON);
    for number in 1..=3 {
        a.link.datagrams().pulse(from, number, Duration::ZERO, a.life.now());
        tokio::time::timeout(SOON, a.inbox.answers.recv()).await.unwrap().unwrap();
        match number {
            1 => {
                beats.send_beat(a.link.own(), b"beat", later);
                beats.keep_beats(later);
                let sent = tokio::time::timeout(SOON, a.inbox.vips.recv()).await.unwrap();
                assert_eq!(sent, Some((from, b"beat".to_vec())), "no pulse was due then");
            }
            2 => {
                assert_eq!(a.inbox.vips.try_recv().unwrap(), (from, b"beat".to_vec()), "with the answer");
                beats.cancel_beats(|_| true);
            }
            _ => assert!(a.inbox.vips.try_recv().is_err()),
        }
    }
}

/// Connections from `from` that say nothing.
async fn silent(from: &str, to: SocketAddr, count: usize) -> Vec<tokio::net::TcpStream> {
    let mut all = Vec::new();
    for _ in 0..count {
        let socket = tokio::net::TcpSocket::new_v4().unwrap();
        socket.bind(SocketAddr::new(from.parse().unwrap(), 0)).unwrap();
        all.push(socket.connect(to).await.unwrap());
    }
    all
}

#[tokio::test]
async fn silent_strangers_keep_neither_members_nor_other_strangers_out() {
    let trust = trust_of(&[1, 2], &[1]);
    let (a, mut b) = (end(1, &trust), end(2, &trust));
    introduce(&a, &b);
    let mut strangers = Vec::new();
    for n in 2..40 {
        strangers.extend(silent(&format!("127.0.1.{n}"), b.at, 10).await);
    }
    let answer = tokio::spawn(async move {
        let MemberRequest { reply, .. } = b.inbox.members.recv().await.unwrap();
        reply.send(ToMember::Waiting(Vec::new())).unwrap();
        b
    });
    let began = std::time::Instant::now();
    a.link.dialer().call(identity(2).id, &FromMember::Waiting).await.unwrap();
    let mut b = answer.await.unwrap();
    // A node that wants to join comes from nowhere that is known.
    let config = identity(3).joining_client(None).unwrap();
    let stream = silent("127.0.2.1", b.at, 1).await.remove(0);
    let connector = tokio_rustls::TlsConnector::from(Arc::new(config));
    let name = rustls::pki_types::ServerName::from(b.at.ip());
    let _stream = tokio::time::timeout(SOON, connector.connect(name, stream)).await.unwrap().unwrap();
    assert_eq!(b.inbox.joining.recv().await.unwrap().key, identity(3).key);
    assert!(began.elapsed() < SOON, "{:?}", began.elapsed());
    assert!(b.link.counters.get(Count::RefusedConnections) >= 300);
}

/// A connection of a member, after its handshake.
async fn connection(of: u8, to: SocketAddr) -> frames::Framed {
    let config = identity(of).client(identity(2).key).unwrap();
    frames::framed(dial::connect(&[to], config).await.unwrap().0, usize::MAX)
}

#[tokio::test]
async fn idle_connections_of_one_member_shut_nobody_out() {
    let trust = trust_of(&[1, 2, 3], &[1]);
    let (a, mut b) = (end(1, &trust), end(2, &trust));
    introduce(&a, &b);
    let mut idle = Vec::new();
    for _ in 0..100 {
        idle.push(connection(3, b.at).await);
    }
    let answer = tokio::spawn(async move {
        let MemberRequest { reply, .. } = b.inbox.members.recv().await.unwrap();
        reply.send(ToMember::Waiting(Vec::new())).unwrap();
        b
    });
    a.link.dialer().call(identity(2).id, &FromMember::Waiting).await.unwrap();
    let b = answer.await.unwrap();
    assert_eq!(b.link.counters.get(Count::RefusedConnections), 92, "eight are kept");
}

#[tokio::test]
async fn large_frames_of_members_share_a_budget() {
    use tokio::io::AsyncWriteExt;
    let nodes = [1, 2, 3, 4, 5, 6, 7];
    let b = end(2, &trust_of(&nodes, &[1]));
    let mut senders = Vec::new();
    for of in nodes.into_iter().filter(|of| *of != 2) {
        for _ in 0..8 {
            let mut stream = connection(of, b.at).await;
            senders.push(tokio::spawn(async move {
                let io = stream.get_mut();
                let mut start = 8_000_000u32.to_be_bytes().to_vec();
                start.extend_from_slice(b"\x81\xa4Sync");
                // All but the end, so that what was sent is held.
                let _ = io.write_all(&start).await;
                for _ in 0..100 {
                    if io.write_all(&[0; 70_000]).await.is_err() {
                        return;
                    }
                }
                let _ = io.flush().await;
                tokio::time::sleep(SOON).await;
            }));
        }
    }
    let mut most = 0;
    for _ in 0..100 {
        tokio::time::sleep(Duration::from_millis(20)).await;
        most = most.max(b.link.server.held());
    }
    senders.iter().for_each(tokio::task::JoinHandle::abort);
    assert!(most <= frames::BUDGET && most > frames::BUDGET / 4, "{most} bytes of {} sent", 48 * 8_000_000);
}

#[tokio::test]
async fn one_member_that_floods_does_not_crowd_out_others() {
    let trust = trust_of(&[1, 2, 3], &[1]);
    let (a, mut b, c) = (end(1, &trust), end(2, &trust), end(3, &trust));
    introduce(&a, &b);
    introduce(&c, &b);
    gets_through(&a, &mut b, b"a").await;
    gets_through(&c, &mut b, b"c").await;
    for _ in 0..20 {
        for n in 0..200u8 {
            c.link.send_gossip(b.link.own(), &[n; 30], &c.life);
        }
        tokio::task::yield_now().await;
    }
    tokio::time::sleep(Duration::from_millis(50)).await;
    a.link.send_gossip(b.link.own(), b"heard all the same", &a.life);
    let heard = async {
        loop {
            let (from, message) = b.inbox.gossip.recv().await.unwrap();
            if from == a.link.own() && message == b"heard all the same" {
                return;
            }
        }
    };
    tokio::time::timeout(SOON, heard).await.unwrap();
    assert!(b.link.counters.get(Count::RefusedFlood) > 1_000);
}

#[tokio::test]
async fn a_later_build_offers_its_own_protocol_and_speaks_this_one() {
    let b = end(2, &trust_of(&[1, 2], &[1]));
    for (offered, spoken) in [
        (&[b"agent/2".as_slice(), b"agent/1"][..], Some(b"agent/1".as_slice())),
        (&[b"agent/2"], None),
        (&[b"h2", b"http/1.1"], None),
    ] {
        let mut config = identity(1).client(identity(2).key).unwrap();
        config.alpn_protocols = offered.iter().map(|one| one.to_vec()).collect();
        let stream = dial::connect(&[b.at], config).await.map(|(stream, _)| stream);
        let got = stream.as_ref().ok().and_then(|stream| stream.get_ref().1.alpn_protocol());
        assert_eq!(got, spoken, "{offered:?}");
    }
}

#[tokio::test]
async fn versions_are_negotiated_with_nodes_that_join_in_the_same_way() {
    use rustls::pki_types::ServerName;
    let (one, two, three): (&[u8], &[u8], &[u8]) = (b"agent-join/1", b"agent-join/2", b"agent-join/3");
    let list = |all: &[&[u8]]| all.iter().map(|one| one.to_vec()).collect::<Vec<_>>();
    // By the port itself.
    let b = end(2, &trust_of(&[1, 2], &[1]));
    for (offered, spoken) in [(&[two, one][..], Some(one)), (&[two], None)] {
        let mut config = identity(9).joining_client(None).unwrap();
        config.alpn_protocols = list(offered);
        let stream = dial::connect(&[b.at], config).await.map(|(stream, _)| stream);
        let got = stream.as_ref().ok().and_then(|stream| stream.get_ref().1.alpn_protocol());
        assert_eq!(got, spoken, "{offered:?}");
    }
    // By builds that speak several: the highest that both know.
    for (client, server, spoken) in [
        (&[three, two, one][..], &[two, one][..], Some(two)),
        (&[one], &[two, one], Some(one)),
        (&[three], &[two, one], None),
    ] {
        let mut ours = identity(9).joining_client(None).unwrap();
        ours.alpn_protocols = list(client);
        let mut theirs = identity(2).joining_server().unwrap();
        theirs.alpn_protocols = list(server);
        let (a, b) = tokio::io::duplex(64 * 1024);
        let name = ServerName::from(IpAddr::V4(Ipv4Addr::LOCALHOST));
        let accepts = tokio_rustls::TlsAcceptor::from(Arc::new(theirs)).accept(b);
        let (connected, _accepted) =
            tokio::join!(tokio_rustls::TlsConnector::from(Arc::new(ours)).connect(name, a), accepts);
        let got = connected.as_ref().ok().and_then(|stream| stream.get_ref().1.alpn_protocol());
        assert_eq!(got, spoken, "{client:?} {server:?}");
    }
}

/// Answers one connection of a member with this message.
async fn answer_once(
    listener: tokio::net::TcpListener,
    trust: &TrustedKeys,
    message: &impl serde::Serialize,
) {
    let (_keep, trust) = watch::channel(Arc::new(trust.clone()));
    let config = identity(2).member_server(trust).unwrap();
    let (stream, _) = listener.accept().await.unwrap();
    let stream = tokio_rustls::TlsAcceptor::from(Arc::new(config)).accept(stream).await.unwrap();
    let mut stream = frames::framed(stream, 1 << 20);
    let _: FromMember = frames::receive(&mut stream, SOON).await.unwrap();
    frames::send(&mut stream, message).await.unwrap();
}

#[tokio::test]
async fn an_answer_of_a_later_version_is_told_from_a_broken_one() {
    #[derive(serde::Serialize)]
    enum Later {
        Napping { minutes: u32 },
        Held(String),
    }
    let trust = trust_of(&[1, 2], &[1]);
    let a = end(1, &trust);
    for later in [Later::Napping { minutes: 5 }, Later::Held("many".to_owned())] {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let at = [listener.local_addr().unwrap()];
        let (got, ()) = tokio::join!(
            a.link.dialer().call_at(&at, identity(2).key, &FromMember::Waiting),
            answer_once(listener, &trust, &later)
        );
        let error = got.unwrap_err();
        match later {
            Later::Napping { .. } => {
                assert!(matches!(&error, CallError::UnknownAnswer(kind) if kind == "Napping"), "{error}");
            }
            Later::Held(_) => assert!(matches!(error, CallError::Answer(_)), "{error}"),
        }
    }
}
