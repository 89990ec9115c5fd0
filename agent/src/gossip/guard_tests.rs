use std::sync::{Arc, Mutex};

use chitchat::{
    ChitchatConfig, ChitchatHandle, ChitchatId, FailureDetectorConfig, ProtocolVersion, spawn_chitchat,
};
use proto::node::PublicKey;
use ring::signature::{Ed25519KeyPair, KeyPair};
use tokio::sync::mpsc;

use super::super::codec::{GossipInbox, GossipTransport, NodeAddresses};
use super::*;
use crate::testing::mutate::Mutator;

const CLUSTER: &str = "0123456789abcdef0123456789abcdef";
const WALL: UnixMs = UnixMs(1_700_000_000_000);
const NOW: Moment = Moment::from_millis(1_000);
/// The start of each node in tests without chitchat.
const START: u64 = 1_700_000_000;

fn pair(n: u8) -> (Ed25519KeyPair, PublicKey) {
    let pair = Ed25519KeyPair::from_seed_unchecked(&[n; 32]).unwrap();
    let key = PublicKey(pair.public_key().as_ref().try_into().unwrap());
    (pair, key)
}

fn id(n: u8) -> NodeId {
    pair(n).1.id()
}

fn signed(n: u8, generation: u64, sequence: u64, body: &[u8]) -> SignedRecord {
    let version = RecordVersion { generation, sequence };
    SignedRecord::sign(&pair(n).0, CLUSTER, id(n), version, body.to_vec())
}

/// A guard of node 1 in a cluster of five, and its store.
fn guard() -> (GossipGuard, RecordStore) {
    let mut guard = GossipGuard::new(id(1));
    guard.set_members(CLUSTER, (1..=5).map(id));
    guard.set_generation(START);
    let mut store = RecordStore::default();
    store.set_members(CLUSTER, (1..=5).map(|n| (id(n), pair(n).1)).collect());
    store.publish(signed(1, START, 3, b"own"));
    (guard, store)
}

/// Node names must outlive the messages that hold them.
fn name(n: u8) -> &'static str {
    chitchat_name(&id(n)).leak()
}

fn named(n: u8, generation: u64) -> GossipNode<'static> {
    GossipNode { name: name(n), generation, address: chitchat_address(&id(n)) }
}

fn known(n: u8, heartbeat: u64, version: u64) -> DigestEntry<'static> {
    DigestEntry { node: named(n, START), heartbeat, last_gc: 0, version }
}

fn syn(digest: Vec<DigestEntry<'_>>) -> Vec<u8> {
    GossipMessage::Syn { cluster: CLUSTER, digest }.write()
}

fn delta(record: &SignedRecord) -> Vec<DeltaStep<'static>> {
    let n = (1..=9).find(|n| id(*n) == record.node).unwrap();
    vec![
        DeltaStep::Node { node: named(n, record.version.generation), last_gc: 0, from: 0 },
        DeltaStep::Value {
            key: KEY,
            value: record.to_value().into(),
            version: record.version.sequence,
            status: 0,
        },
    ]
}

fn ack(delta: Vec<DeltaStep<'_>>) -> Vec<u8> {
    GossipMessage::Ack { delta }.write()
}

/// The guard of node 1 filters messages of node 2.
fn pass(guard: &mut GossipGuard, store: &mut RecordStore, message: &[u8]) -> Option<Vec<u8>> {
    guard.pass(id(2), message, store, NOW, WALL).message
}

/// The digest that is left of a message.
fn digest_of(message: Option<Vec<u8>>) -> Vec<(String, u64, u64)> {
    let message = message.unwrap();
    let mut unpacker = Unpacker::new();
    let digest = match unpacker.read(&message, 1 << 20).unwrap() {
        GossipMessage::Syn { digest, .. } | GossipMessage::SynAck { digest, .. } => digest,
        other => panic!("{other:?}"),
    };
    digest.iter().map(|known| (known.node.name.to_owned(), known.heartbeat, known.version)).collect()
}

#[test]
fn messages_that_honest_members_never_send_are_refused_and_count_as_strikes() {
    let mut forged = delta(&signed(3, START, 1, b"x"));
    if let DeltaStep::Value { version, .. } = &mut forged[1] {
        *version = 9;
    }
    let mut other = delta(&signed(3, START, 1, b"x"));
    if let DeltaStep::Node { node, .. } = &mut other[0] {
        *node = named(4, START);
    }
    let value = |key, value: &str, status| {
        let value = Cow::Owned(value.to_owned());
        vec![
            delta(&signed(3, START, 1, b"x"))[0].clone(),
            DeltaStep::Value { key, value, version: 1, status },
        ]
    };
    let good = signed(3, START, 1, b"x").to_value();
    let mut moved = known(3, 1, 1);
    moved.node.address = "10.0.0.1:1".parse().unwrap();
    let collected = DigestEntry { last_gc: u64::MAX, ..known(3, 1, 1) };
    let to = named(3, START);
    for (message, refusal) in [
        (b"gossip".to_vec(), GossipRefusal::Unreadable(WireError::NotV1)),
        (GossipMessage::BadCluster.write(), GossipRefusal::OtherCluster),
        (GossipMessage::Syn { cluster: "other", digest: vec![] }.write(), GossipRefusal::OtherCluster),
        (syn(vec![moved]), GossipRefusal::WrongAddress),
        (syn(vec![collected]), GossipRefusal::Deletion),
        (ack(vec![DeltaStep::Node { node: to, last_gc: 7, from: 0 }]), GossipRefusal::Deletion),
        (
            ack(vec![DeltaStep::Node { node: to, last_gc: 0, from: 0 }, DeltaStep::SetVersion(9)]),
            GossipRefusal::Deletion,
        ),
        (ack(value(KEY, &good, 1)), GossipRefusal::Deletion),
        (ack(value(KEY, &good, 2)), GossipRefusal::Deletion),
        (ack(value("n", "of no node", 0)[1..].to_vec()), GossipRefusal::TooManyValues),
        (ack(value(KEY, &good, 0)[1..].to_vec()), GossipRefusal::TooManyValues),
        (
            ack([vec![value("n", "", 0)[0].clone()], vec![value("n", "", 0)[1].clone(); OTHER_KEYS + 1]]
                .concat()),
            GossipRefusal::TooManyValues,
        ),
        (ack(value(KEY, "short", 0)), GossipRefusal::NoRecord),
        (ack(forged), GossipRefusal::Forged),
        (ack(other), GossipRefusal::Forged),
        // This node's own start, changed by another: 65 bytes that crashed chitchat.
        (ack(delta(&SignedRecordOf::own(9))), GossipRefusal::Forged),
    ] {
        let (mut guard, mut store) = guard();
        assert_eq!(pass(&mut guard, &mut store, &message), None, "{refusal}");
        let offenders = guard.offenders(NOW);
        assert_eq!(offenders, [Offender { node: id(2), refusal, count: 1, ignored: false }]);
        assert!(store.get(&id(3)).is_none() && store.version(&id(1)).sequence == 3);
    }
}

#[test]
fn what_stands_under_other_keys_is_left_out_alone() {
    let (mut guard, mut store) = guard();
    let record = signed(3, START, 5, b"x");
    let other = |key, version, status| DeltaStep::Value { key, value: "later".into(), version, status };
    let [node, value] = &delta(&record)[..] else { panic!("a node and its value") };
    // Before the record and behind it, deleted too; and of a node that is not known here.
    let stranger = DeltaStep::Node { node: named(9, START), last_gc: 0, from: 0 };
    let said = vec![
        stranger,
        other("next", 1, 0),
        node.clone(),
        other("next", 4, 0),
        value.clone(),
        other("next", 6, 0),
        other("gone", 7, 1),
    ];
    let left = pass(&mut guard, &mut store, &ack(said)).unwrap();
    assert_eq!(left, ack(vec![node.clone(), value.clone()]));
    assert_eq!(store.get(&id(3)), Some(&record));
    // Alone, as it comes again until the record has a higher number.
    let again = ack(vec![node.clone(), other("next", 6, 0)]);
    assert_eq!(pass(&mut guard, &mut store, &again), Some(ack(Vec::new())));
    assert!(guard.offenders(NOW).is_empty());
    // One record for each node.
    let twice = ack(vec![node.clone(), value.clone(), value.clone()]);
    assert_eq!(pass(&mut guard, &mut store, &twice), None);
    assert_eq!(guard.offenders(NOW)[0].refusal, GossipRefusal::TooManyValues);
}

/// A record of node 1 that another has signed.
struct SignedRecordOf;

impl SignedRecordOf {
    fn own(sequence: u64) -> SignedRecord {
        let mut record = signed(2, START, sequence, b"I am m1");
        record.node = id(1);
        record
    }
}

#[test]
fn after_a_few_strikes_a_sender_is_ignored_for_a_minute_and_others_are_not() {
    let (mut guard, mut store) = guard();
    for _ in 0..STRIKES {
        assert_eq!(pass(&mut guard, &mut store, b"x"), None);
    }
    let good = syn(vec![known(2, 1, 0)]);
    assert_eq!(pass(&mut guard, &mut store, &good), None);
    assert!(guard.offenders(NOW)[0].ignored);
    assert!(guard.pass(id(3), &syn(vec![known(3, 1, 0)]), &mut store, NOW, WALL).message.is_some());
    let later = NOW.after(IGNORED);
    assert!(guard.pass(id(2), &good, &mut store, later, WALL).message.is_some());
    assert!(!guard.offenders(later)[0].ignored);
    assert!(guard.offenders(later.after(REMEMBERED)).is_empty());
    // Messages of non-members are dropped.
    assert!(guard.pass(id(9), &good, &mut store, NOW, WALL).message.is_none());
}

#[test]
fn a_flood_of_messages_is_limited_to_a_few_per_second() {
    let (mut guard, mut store) = guard();
    let good = syn(vec![known(2, 1, 0)]);
    let passed = (0..10_000u64)
        .filter(|n| {
            let now = NOW.after(Duration::from_millis(*n));
            guard.pass(id(2), &good, &mut store, now, WALL).message.is_some()
        })
        .count();
    assert!((60..=60 + 10 * 13).contains(&passed), "{passed}");
}

/// However a member mutates good messages, the guard can read them, and chitchat reads what it lets pass.
#[test]
fn mutations_of_messages_are_refused_or_what_chitchat_reads() {
    let record = signed(2, START, 4, b"a body");
    let corpus = [
        syn((1..=5).map(|n| known(n, 9, 4)).collect()),
        ack(delta(&record)),
        GossipMessage::SynAck { digest: vec![known(1, 1, 3)], delta: delta(&record) }.write(),
        GossipMessage::BadCluster.write(),
    ];
    let mut mutator = Mutator::new(7);
    let mut passed = 0;
    let (mut guard, mut store) = guard();
    for round in 0..20_000 {
        let message = mutator.of(&corpus);
        // Long after the last one, so that its sender is no longer ignored.
        let now = NOW.after(round * std::time::Duration::from_secs(120));
        if let Some(rest) = guard.pass(id(2), &message, &mut store, now, WALL).message {
            assert!(Unpacker::new().read(&rest, 1 << 20).is_ok(), "{message:02x?}");
            passed += 1;
        }
    }
    assert!(passed > 500, "{passed}");
}

#[test]
fn unproven_nodes_and_starts_are_left_out() {
    let (mut guard, mut store) = guard();
    // Ten thousand invented nodes, and invented starts of a member.
    let names: Vec<String> = (0..1_200).map(|n| format!("{n:010}")).collect();
    let mut digest: Vec<DigestEntry<'_>> = names
        .iter()
        .map(|name| DigestEntry { node: GossipNode { name, ..named(2, START) }, ..known(2, 1, 1) })
        .collect();
    digest.extend((0..50).map(|n| DigestEntry { node: named(3, START + n), ..known(3, 1, 1) }));
    digest.push(known(2, 7, 1));
    assert_eq!(digest_of(pass(&mut guard, &mut store, &syn(digest))), [(name(2).to_owned(), 7, 1)]);
    assert!(guard.offenders(NOW).is_empty(), "members may know others for a moment");
    // A record proves its start.
    let record = signed(3, START, 4, b"x");
    let message = GossipMessage::SynAck { digest: vec![known(3, 5, 4)], delta: delta(&record) }.write();
    let left = pass(&mut guard, &mut store, &message).unwrap();
    assert_eq!(left, GossipMessage::SynAck { digest: vec![known(3, 0, 4)], delta: delta(&record) }.write());
    assert_eq!(store.get(&id(3)), Some(&record));
    // Also one that did not arrive by gossip.
    store.publish(signed(4, START, 1, b"by TLS"));
    assert_eq!(digest_of(pass(&mut guard, &mut store, &syn(vec![known(4, 3, 1)]))).len(), 1);
}

#[test]
fn a_node_that_restarts_forever_takes_little_memory() {
    let (mut guard, mut store) = guard();
    let mut passed = 0;
    for n in 0..900 {
        let now = NOW.after(Duration::from_secs(n));
        let record = signed(2, START + n, 1, b"x");
        let message = guard.pass(id(2), &ack(delta(&record)), &mut store, now, WALL).message.unwrap();
        passed += usize::from(message.len() > 6);
        assert_eq!(store.get(&id(2)), Some(&record), "its latest record counts all the same");
    }
    assert!(passed <= 6 + 30, "{passed} starts in a quarter of an hour");
}

#[test]
fn a_newer_stored_record_replaces_an_older_received_one() {
    let (mut guard, mut store) = guard();
    let (old, new) = (signed(3, START, 4, b"old"), signed(3, START, 6, b"new"));
    assert!(pass(&mut guard, &mut store, &ack(delta(&new))).is_some());
    assert_eq!(pass(&mut guard, &mut store, &ack(delta(&old))), Some(ack(delta(&new))));
    assert_eq!(store.get(&id(3)), Some(&new));
}

#[test]
fn one_member_alone_can_not_make_a_node_look_dead_or_alive() {
    let (mut guard, mut store) = guard();
    assert!(pass(&mut guard, &mut store, &ack(delta(&signed(3, START, 1, b"x")))).is_some());
    let mut heartbeat = |of: u8, value| {
        let message = guard.pass(id(of), &syn(vec![known(3, value, 1)]), &mut store, NOW, WALL).message;
        digest_of(message)[0].1
    };
    assert_eq!(heartbeat(2, u64::MAX), 0, "nobody else has said anything");
    assert_eq!(heartbeat(4, 10), 10, "the second witness counts");
    assert_eq!(heartbeat(5, 12), 12);
    assert_eq!(heartbeat(2, u64::MAX), 12);
    assert_eq!(heartbeat(3, 20), 20, "and what the node says itself");
    assert_eq!(heartbeat(4, 19), 20);
}

#[test]
fn a_later_record_of_this_node_is_noticed_and_can_not_be_forged() {
    let (mut guard, mut store) = guard();
    // Records that this node has published may come back.
    for record in [signed(1, START, 3, b"own"), signed(1, START, 1, b"older")] {
        assert_eq!(pass(&mut guard, &mut store, &ack(delta(&record))), Some(ack(vec![])));
    }
    assert_eq!(guard.overtaken(), None);
    // A machine that was resumed from a snapshot.
    let later = signed(1, START, 9, b"forgotten");
    assert_eq!(pass(&mut guard, &mut store, &ack(delta(&later))), Some(ack(vec![])));
    assert_eq!(guard.overtaken(), Some(later.version));
    // A digest proves nothing, and must show chitchat no more than was published.
    let claim = known(1, 5, u64::MAX);
    assert_eq!(digest_of(pass(&mut guard, &mut store, &syn(vec![claim]))), [(name(1).to_owned(), 5, 3)]);
    assert!(guard.offenders(NOW).is_empty());
    guard.set_generation(START + 1);
    assert_eq!(guard.overtaken(), None);
}

#[test]
fn the_sender_of_a_message_that_crashed_gossip_is_blamed() {
    let (mut guard, mut store) = guard();
    assert_eq!(guard.blame_last(NOW), None);
    assert!(pass(&mut guard, &mut store, &syn(vec![])).is_some());
    assert_eq!(guard.blame_last(NOW), Some(id(2)));
    assert_eq!(guard.offenders(NOW)[0].refusal, GossipRefusal::Crash);
    assert_eq!(pass(&mut guard, &mut store, &syn(vec![])), None, "not listened to for a while");
}

// ---- with chitchat itself

const INTERVAL: Duration = Duration::from_millis(40);
const GRACE: Duration = Duration::from_millis(1_600);

struct TestNames;

impl NodeAddresses for TestNames {
    fn node(&self, address: std::net::SocketAddr) -> Option<NodeId> {
        (1..=6).map(id).find(|id| chitchat_address(id) == address)
    }
    fn address(&self, node: &NodeId) -> std::net::SocketAddr {
        chitchat_address(node)
    }
}

type Inboxes = Arc<Mutex<BTreeMap<NodeId, mpsc::Sender<(NodeId, Vec<u8>)>>>>;

/// A node with chitchat behind its guard; the others are reached by queues.
struct Node {
    n: u8,
    generation: u64,
    sequence: u64,
    guard: Arc<Mutex<GossipGuard>>,
    store: Arc<Mutex<RecordStore>>,
    chitchat: ChitchatHandle,
}

impl Node {
    async fn start(n: u8, generation: u64, inboxes: &Inboxes, began: std::time::Instant) -> Node {
        let mut guard = GossipGuard::new(id(n));
        guard.set_members(CLUSTER, (1..=6).map(id));
        guard.set_generation(generation);
        // Rounds are thirty times as fast as in production.
        guard.judge.each = Duration::from_millis(2);
        let mut store = RecordStore::default();
        store.set_members(CLUSTER, (1..=6).map(|n| (id(n), pair(n).1)).collect());
        let record = signed(n, generation, 1, &[0]);
        store.publish(record.clone());
        let (guard, store) = (Arc::new(Mutex::new(guard)), Arc::new(Mutex::new(store)));
        let (sender, queue) = mpsc::channel(256);
        inboxes.lock().unwrap().insert(id(n), sender);
        let (passing, records) = (guard.clone(), store.clone());
        let pass = move |from: NodeId, message: &[u8]| {
            let now = Moment::from_millis(began.elapsed().as_millis() as u64);
            passing.lock().unwrap().pass(from, message, &mut records.lock().unwrap(), now, WALL).message
        };
        let arrivals = GossipInbox { queue: tokio::sync::Mutex::new(queue), pass: Box::new(pass) };
        let to = inboxes.clone();
        let mesh = GossipTransport {
            send: Arc::new(move |peer, message: &[u8]| {
                if let Some(inbox) = to.lock().unwrap().get(&peer) {
                    let _ = inbox.try_send((id(n), message.to_vec()));
                }
            }),
            arrivals: Arc::new(arrivals),
            names: Arc::new(TestNames),
        };
        let config = ChitchatConfig {
            chitchat_id: ChitchatId::new(chitchat_name(&id(n)), generation, chitchat_address(&id(n))),
            cluster_id: CLUSTER.to_owned(),
            gossip_interval: INTERVAL,
            listen_addr: "127.0.0.1:0".parse().unwrap(),
            seed_nodes: (1..=6).map(|n| chitchat_address(&id(n)).to_string()).collect(),
            failure_detector_config: FailureDetectorConfig {
                phi_threshold: 8.0,
                sampling_window_size: 100,
                max_interval: INTERVAL * 5,
                initial_interval: INTERVAL,
                dead_node_grace_period: GRACE,
            },
            marked_for_deletion_grace_period: GRACE,
            catchup_callback: None,
            extra_liveness_predicate: None,
            protocol_version: ProtocolVersion::V1,
        };
        let keys = vec![(KEY.to_owned(), record.to_value())];
        let chitchat = spawn_chitchat(config, keys, &mesh).await.unwrap();
        Node { n, generation, sequence: 1, guard, store, chitchat }
    }

    /// Publishes another record, and checks that chitchat gives it the number that was signed.
    async fn publish(&mut self) {
        self.sequence += 1;
        let record = signed(self.n, self.generation, self.sequence, &[self.sequence as u8; 40]);
        self.store.lock().unwrap().publish(record.clone());
        let version = self
            .chitchat
            .with_chitchat(|chitchat| {
                let state = chitchat.self_node_state();
                state.set(KEY, record.to_value());
                state.max_version()
            })
            .await;
        assert_eq!(version, self.sequence);
    }

    fn stop(self, inboxes: &Inboxes) {
        inboxes.lock().unwrap().remove(&id(self.n));
        self.chitchat.abort();
    }

    /// Nodes that chitchat calls alive, by name and start.
    async fn alive(&self) -> BTreeSet<(String, u64)> {
        self.chitchat
            .with_chitchat(|chitchat| {
                chitchat.live_nodes().map(|id| (id.node_id.to_string(), id.generation_id)).collect()
            })
            .await
    }
}

/// Waits until all hold the latest records, and chitchat calls all alive.
async fn all_know_all(nodes: &[Node]) {
    let versions: Vec<_> = nodes
        .iter()
        .map(|node| (id(node.n), RecordVersion { generation: node.generation, sequence: node.sequence }))
        .collect();
    let alive: BTreeSet<_> = nodes.iter().map(|node| (chitchat_name(&id(node.n)), node.generation)).collect();
    let deadline = std::time::Instant::now() + Duration::from_secs(20);
    for node in nodes {
        loop {
            let held = {
                let store = node.store.lock().unwrap();
                versions.iter().filter(|(id, version)| store.version(id) != *version).count()
            };
            let seen = node.alive().await;
            if held == 0 && alive.is_subset(&seen) {
                break;
            }
            assert!(
                std::time::Instant::now() < deadline,
                "node {}: {held} records are not the latest; alive {seen:?} of {alive:?}",
                node.n
            );
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_honest_is_refused_through_changes_restarts_and_deaths() {
    let inboxes = Inboxes::default();
    let began = std::time::Instant::now();
    let mut nodes = Vec::new();
    for n in 1..=6 {
        nodes.push(Node::start(n, START, &inboxes, began).await);
    }
    all_know_all(&nodes).await;
    for round in 0..6u64 {
        for _ in 0..5 {
            for node in &mut nodes {
                node.publish().await;
            }
            tokio::time::sleep(INTERVAL).await;
        }
        // One restarts with a new number, with and without a pause.
        let old = nodes.remove(round as usize % nodes.len());
        let (n, generation) = (old.n, old.generation);
        old.stop(&inboxes);
        if round % 2 == 1 {
            tokio::time::sleep(INTERVAL * 10).await;
        }
        nodes.push(Node::start(n, generation + 1 + round, &inboxes, began).await);
        all_know_all(&nodes).await;
    }
    // One stays away until the others have forgotten it, and returns.
    let gone = nodes.remove(0);
    let (n, generation) = (gone.n, gone.generation);
    gone.stop(&inboxes);
    tokio::time::sleep(GRACE * 2).await;
    for node in &mut nodes {
        node.publish().await;
    }
    all_know_all(&nodes).await;
    let remembered = nodes[0].store.lock().unwrap().version(&id(n)).generation;
    assert_eq!(remembered, generation, "chitchat has forgotten it, and its record is still there");
    nodes.push(Node::start(n, generation + 1, &inboxes, began).await);
    all_know_all(&nodes).await;
    for node in &nodes {
        let guard = node.guard.lock().unwrap();
        assert_eq!(guard.offenders(Moment::from_millis(began.elapsed().as_millis() as u64)), []);
        assert!(guard.judge.senders.values().all(|sender| sender.count == 0), "node {}", node.n);
        assert_eq!(guard.overtaken(), None);
    }
}
