//! Changes found by comparing two states.

use proto::cause::{Cause, Detail};
use proto::cluster::{Admitted, KeyId};
use proto::control::VipCandidate;
use proto::health::ServiceHealth;
use proto::node::{PublicKey, Role};
use proto::pulse::PeerLiveness;
use proto::record::NodeRecord;
use proto::view::MemberView;

use super::*;
use crate::testing::vip_status;

const MINUTE: u64 = 60_000;

fn key(n: u8) -> PublicKey {
    PublicKey([n; 32])
}

fn name(n: u8) -> Name {
    format!("m{n}").parse().unwrap()
}

fn admitted(n: u8) -> Admitted {
    Admitted::new(name(n), key(n), Role::Master, key(0).id(), UnixMs(1))
}

fn document() -> Document {
    let mut document = Document::new([1; 16], "c".parse().unwrap(), admitted(0), KeyId([0; 16]));
    document.admit(admitted(1));
    document
}

fn seen() -> PreviousState {
    PreviousState::new(key(0).id(), UnixMs(0), Arc::new(document()))
}

fn table(state: BackendState, cause: Cause) -> BackendTable {
    let backend = proto::backends::Backend {
        node: key(1).id(),
        name: name(1),
        address: "10.0.0.1:6443".parse().unwrap(),
        weight: 100,
        state,
        cause: Some(cause),
        detail: Detail::default(),
        since: UnixMs(MINUTE),
        rtt: None,
        probe_only: false,
    };
    BackendTable::from([(ServiceName::kube_api(), vec![backend])])
}

fn view(heard: bool, change: impl FnOnce(&mut NodeRecord)) -> ClusterView {
    let mut record = NodeRecord { document: document().hash(), ..NodeRecord::new(name(1)) };
    change(&mut record);
    let id = key(1).id();
    ClusterView {
        members: BTreeMap::from([(id, MemberView { id, record, heard, since: UnixMs(0) })]),
        ..ClusterView::default()
    }
}

fn liveness(liveness: Liveness) -> PeerLivenessMap {
    PeerLivenessMap::from([(
        key(1).id(),
        PeerLiveness { liveness, status: None, rtt: None, loss_permille: 0 },
    )])
}

/// The sentences of the events that `act` makes.
fn said(act: impl FnOnce(&mut Vec<Event>)) -> Vec<String> {
    let mut events = Vec::new();
    act(&mut events);
    events.iter().map(Event::sentence).collect()
}

#[test]
fn a_backend_event_has_both_states_the_cause_and_the_duration() {
    let mut seen = seen();
    let mut step = |state, cause, at| said(|out| seen.table(&table(state, cause), UnixMs(at), out));
    assert!(
        step(BackendState::Unknown, Cause::LastKnownGood, 0).is_empty(),
        "the last known good list is no news"
    );
    assert_eq!(
        step(BackendState::Ready, Cause::Http(200), 2 * MINUTE),
        ["backend kube-api/m1: unknown -> ready after 60s: HTTP 200"]
    );
    assert!(step(BackendState::Ready, Cause::Connected, 3 * MINUTE).is_empty());
    assert_eq!(
        step(BackendState::Down, Cause::PortClosed, 5 * MINUTE),
        ["backend kube-api/m1: ready -> down after 3m: connection refused"]
    );
    let gone = said(|out| seen.table(&BackendTable::new(), UnixMs(6 * MINUTE), out));
    assert_eq!(gone, ["backend kube-api/m1: down -> gone after 60s"]);
    assert!(said(|out| seen.table(&BackendTable::new(), UnixMs(7 * MINUTE), out)).is_empty());
}

#[test]
fn member_events_agree_with_status() {
    let mut seen = seen();
    let (ready, none) = (table(BackendState::Ready, Cause::Connected), BackendTable::new());
    let mut step = |view: &ClusterView, liveness: &PeerLivenessMap, table: &BackendTable, at| {
        said(|out| seen.members(view, liveness, table, UnixMs(at), out))
    };
    assert!(
        step(&ClusterView::default(), &PeerLivenessMap::new(), &none, 1_000).is_empty(),
        "too early to miss anyone"
    );
    assert_eq!(step(&view(true, |_| ()), &PeerLivenessMap::new(), &none, 2_000), ["member m1: up"]);
    assert!(step(&view(true, |_| ()), &liveness(Liveness::Alive), &none, 3_000).is_empty());
    assert_eq!(
        step(&view(true, |_| ()), &liveness(Liveness::Late), &none, 62_000),
        ["member m1: up -> suspect after 60s: answers late"]
    );
    assert_eq!(
        step(&view(false, |_| ()), &liveness(Liveness::Silent), &none, 63_000),
        ["member m1: suspect -> down after 1s: no answer from the node"]
    );
    assert_eq!(
        step(&view(false, |_| ()), &liveness(Liveness::Silent), &ready, 64_000),
        ["member m1: down -> suspect after 1s: no answer from its agent, checked directly"]
    );
    assert_eq!(
        step(&view(true, |record| record.left = true), &PeerLivenessMap::new(), &ready, 65_000),
        ["member m1: suspect -> left after 1s: agent stopped"]
    );
}

#[test]
fn a_member_that_never_answered_is_reported_once_gossip_had_time() {
    let mut seen = seen();
    let mut step = |at| {
        said(|out| {
            seen.members(
                &ClusterView::default(),
                &PeerLivenessMap::new(),
                &BackendTable::new(),
                UnixMs(at),
                out,
            )
        })
    };
    assert!(step(14_000).is_empty());
    assert_eq!(step(16_000), ["member m1: down: no answer from the node"]);
    assert!(step(17_000).is_empty());
}

#[test]
fn a_member_that_was_just_admitted_has_as_long_to_be_heard() {
    let mut seen = seen();
    let mut grown = document();
    grown.admit(admitted(2));
    said(|out| seen.document(&Arc::new(grown), UnixMs(MINUTE), out));
    let mut step = |at| {
        let (view, none) = (view(true, |_| ()), PeerLivenessMap::new());
        said(|out| seen.members(&view, &none, &BackendTable::new(), UnixMs(at), out))
    };
    assert_eq!(step(MINUTE + 1_000), ["member m1: up"]);
    assert!(step(MINUTE + 14_000).is_empty());
    assert_eq!(step(MINUTE + 16_000), ["member m2: down: no answer from the node"]);
}

#[test]
fn in_a_large_cluster_a_member_of_which_nobody_has_said_anything_yet_does_not_go_down() {
    let mut seen = seen();
    let others = |silent: &[u8]| {
        let silent = silent.iter().map(|n| key(*n).id()).collect();
        Some(proto::view::OtherMembers { members: 40, up: 40, silent, differ: Vec::new() })
    };
    let unheard = ClusterView { others: others(&[]), ..view(false, |_| ()) };
    let unknown = ClusterView { others: others(&[]), ..ClusterView::default() };
    let mut step = |view: &ClusterView, liveness: &PeerLivenessMap, at| {
        said(|out| seen.members(view, liveness, &BackendTable::new(), UnixMs(at), out))
    };
    let none = PeerLivenessMap::new();
    assert_eq!(step(&unknown, &none, 1_000), ["member m1: up"], "until core members say otherwise");
    assert!(step(&unheard, &none, 2_000).is_empty(), "its record has arrived, and nothing else");
    assert!(step(&unheard, &liveness(Liveness::Unknown), 3_000).is_empty(), "it was pulsed once");
    assert_eq!(step(&unheard, &none, 16_000), ["member m1: up -> down after 15s: no answer from the node"]);
    let mut answered = liveness(Liveness::Silent);
    answered.values_mut().for_each(|one| one.status = Some(Arc::default()));
    let mut early = self::seen();
    let mut step = |view: &ClusterView, liveness: &PeerLivenessMap, at| {
        said(|out| early.members(view, liveness, &BackendTable::new(), UnixMs(at), out))
    };
    assert_eq!(step(&unknown, &none, 1_000), ["member m1: up"]);
    let down = step(&unheard, &answered, 3_000);
    assert_eq!(down, ["member m1: up -> down after 2s: no answer from the node"], "it has answered before");
}

#[test]
fn in_a_large_cluster_changes_of_workers_may_be_summed_up_and_no_others() {
    let mut seen = seen();
    let mut document = document();
    let one = |kind, subject: &str| Event::new(kind, UnixMs(1), subject, "down");
    assert!(!seen.is_one_of_many(&one(EventKind::Member, "w2")), "a small cluster");
    for n in 2..=16 {
        document.admit(Admitted::new(
            format!("w{n}").parse().unwrap(),
            key(n),
            Role::Worker,
            key(0).id(),
            UnixMs(1),
        ));
    }
    let removed = key(1).id();
    seen.document(&Arc::new(document.clone()), UnixMs(2), &mut Vec::new());
    document.remove(removed, key(0).id(), UnixMs(3));
    seen.document(&Arc::new(document), UnixMs(3), &mut Vec::new());
    assert!(!seen.is_one_of_many(&one(EventKind::Member, "w2")), "16 are a small cluster");
    let mut document = Document::clone(&seen.document);
    document.admit(Admitted::new("w17".parse().unwrap(), key(17), Role::Worker, key(0).id(), UnixMs(1)));
    seen.document(&Arc::new(document), UnixMs(4), &mut Vec::new());
    for (kind, subject, expected) in [
        (EventKind::Member, "w2", true),
        (EventKind::MemberJoined, "w2", true),
        (EventKind::MemberRemoved, "w99", true),
        (EventKind::Drain, "w2", true),
        (EventKind::Document, "w2", true),
        (EventKind::Member, "m0", false),
        (EventKind::MemberRemoved, "m1", false),
        (EventKind::Backend, "kube-api/w2", false),
        (EventKind::Backend, "w2", false),
        (EventKind::VipOwner, "w2", false),
        (EventKind::VipState, "w2", false),
        (EventKind::VipProblem, "w2", false),
        (EventKind::Problem, "w2", false),
        (EventKind::Setting, "w2", false),
    ] {
        assert_eq!(seen.is_one_of_many(&one(kind, subject)), expected, "{kind} {subject}");
    }
}

#[test]
fn draining_starts_and_ends_and_a_stop_is_no_drain() {
    let mut seen = seen();
    let mut step = |view: &ClusterView, at| {
        let mut out = Vec::new();
        seen.members(view, &PeerLivenessMap::new(), &BackendTable::new(), UnixMs(at), &mut out);
        let drains = out.iter().filter(|event| event.kind == EventKind::Drain);
        drains.map(Event::sentence).collect::<Vec<_>>()
    };
    let draining = |record: &mut NodeRecord| record.draining = Some(UnixMs(1));
    assert_eq!(step(&view(true, draining), 1_000), ["drain m1: serving -> draining"]);
    assert!(step(&view(true, draining), 2_000).is_empty());
    assert_eq!(step(&view(true, |_| ()), 61_000), ["drain m1: draining -> serving after 60s"]);
    let stopping = |record: &mut NodeRecord| (record.draining, record.left) = (Some(UnixMs(1)), true);
    assert!(step(&view(true, stopping), 62_000).is_empty());
}

#[test]
fn own_checks_are_reported() {
    let mut seen = seen();
    let offer = |readiness| ServiceOffer {
        address: "10.0.0.1:6443".parse().unwrap(),
        weight: 100,
        health: ServiceHealth {
            readiness,
            cause: Cause::Http(500),
            detail: Detail::new(1, "etcd failed"),
            since: UnixMs(0),
        },
        check_ms: None,
    };
    let of = |readiness| BTreeMap::from([(ServiceName::kube_api(), offer(readiness))]);
    let mut step = |health: &BTreeMap<ServiceName, ServiceOffer>, at| {
        said(|out| seen.checks(health, UnixMs(1 + at * MINUTE), out))
    };
    assert_eq!(step(&of(Readiness::Ready), 0), ["check kube-api: ready: HTTP 500: etcd failed"]);
    assert_eq!(
        step(&of(Readiness::NotReady), 5),
        ["check kube-api: ready -> not-ready after 5m: HTTP 500: etcd failed"]
    );
    assert_eq!(
        step(&BTreeMap::new(), 7),
        ["check kube-api: not-ready -> gone after 2m: no longer on this node"]
    );
}

#[test]
fn this_nodes_vip_state_uses_keepalived_terms() {
    let mut seen = seen();
    let vip = |state, reason: &str| VipStatus {
        address: "10.0.0.9".parse().unwrap(),
        candidates: vec![
            VipCandidate { node: name(1), rank: 1, eligible: true, cause: None, reason: Reason::default() },
            VipCandidate { node: name(0), rank: 2, eligible: true, cause: None, reason: Reason::default() },
        ],
        ..vip_status(state, reason)
    };
    let mut step = |vips: &[VipStatus], at| {
        let mut out = Vec::new();
        seen.vips(vips, UnixMs(at), &mut out);
        out.iter().map(|event| event.keepalived().unwrap().join(" ")).collect::<Vec<_>>()
    };
    assert_eq!(step(&[vip(VipState::Unowned, "")], 1_000), ["INSTANCE 10.0.0.9 BACKUP 254"]);
    assert!(step(&[vip(VipState::Owned, "")], 2_000).is_empty(), "backup it stays");
    assert_eq!(step(&[vip(VipState::OwnedHere, "")], 3_000), ["INSTANCE 10.0.0.9 MASTER 254"]);
    assert_eq!(step(&[vip(VipState::Unavailable, "no interface")], 4_000), ["INSTANCE 10.0.0.9 FAULT 254"]);
    assert_eq!(step(&[], 5_000), ["INSTANCE 10.0.0.9 FAULT 0"]);
    assert!(step(&[], 6_000).is_empty());
}

#[test]
fn a_drain_is_reported_once_with_its_initiator() {
    let mut seen = seen();
    let mut now = document();
    now.set("drain.m1", Some("5".to_owned()), key(0).id(), UnixMs(2)).unwrap();
    assert!(said(|out| seen.document(&Arc::new(now), UnixMs(2), out)).is_empty());
    let draining = view(true, |record| record.draining = Some(UnixMs(1)));
    let told =
        said(|out| seen.members(&draining, &PeerLivenessMap::new(), &BackendTable::new(), UnixMs(3), out));
    assert!(told.contains(&"drain m1: serving -> draining: by m0".to_owned()), "{told:?}");
}

#[test]
fn document_changes_of_members_settings_and_keys_are_reported() {
    let mut seen = seen();
    let mut now = document();
    let mut step = |now: &Document| said(|out| seen.document(&Arc::new(now.clone()), UnixMs(2), out));
    assert!(step(&now).is_empty());
    now.admit(admitted(2));
    assert_eq!(step(&now), ["member-joined m2: member: by m0"]);
    now.set("balance", Some("first".to_owned()), key(2).id(), UnixMs(2)).unwrap();
    now.set("web.password", Some("hunter2".to_owned()), key(2).id(), UnixMs(2)).unwrap();
    assert_eq!(
        step(&now),
        ["setting balance: unset -> first: by m2", "setting web.password: unset -> (not shown): by m2"]
    );
    now.set("service.keycloak.listen", Some("127.0.0.1:8443".to_owned()), key(2).id(), UnixMs(2)).unwrap();
    assert_eq!(step(&now), ["setting service.keycloak.listen: unset -> 127.0.0.1:8443: by m2"], "no secret");
    now.set("balance", None, key(2).id(), UnixMs(2)).unwrap();
    now.remove(key(1).id(), key(2).id(), UnixMs(2));
    now.turn_key(KeyId([2; 16]), key(2).id(), UnixMs(2), true).unwrap();
    assert_eq!(
        step(&now),
        [
            "member-removed m1: member -> removed after 1ms: by m2",
            "setting balance: first -> unset: by m2",
            "key-rotated gossip-key: 1 -> 2 after 1ms: by m2, a node was removed",
        ]
    );
    now.remove(key(2).id(), key(2).id(), UnixMs(2));
    assert_eq!(step(&now), ["member-removed m2: member -> removed after 1ms: it left by itself"]);
}

#[test]
fn listeners_limits_and_problems_start_and_end() {
    let mut seen = seen();
    let mut step = |error: Option<Cause>, refused, denied, problems: &[&str], at| {
        let listens = vec![("127.0.0.1:16443".parse().unwrap(), error.map(Fault::from))];
        let counted = ProxyCounters { listens, refused, denied, maxconn: 10 };
        let found = |text: &&str| Problem::new(ProblemCode::StateFile, text).about("events");
        let problems = problems.iter().map(found).collect();
        let looked = PolledState { services: BTreeMap::from([(ServiceName::kube_api(), counted)]), problems };
        said(|out| seen.poll_state(&looked, &ClusterView::default(), UnixMs(at), out))
    };
    assert!(step(None, 0, 0, &[], 1_000).is_empty());
    assert_eq!(
        step(Some(Cause::AddressInUse), 3, 0, &["7 torn"], 2_000),
        [
            "listener kube-api/127.0.0.1:16443: failed: address in use",
            "limit kube-api: below -> reached: maxconn is 10",
            "problem state-file/events: found: 7 torn",
        ]
    );
    assert!(step(Some(Cause::AddressInUse), 9, 0, &["9 torn"], 3_000).is_empty(), "nothing new");
    assert_eq!(
        step(None, 9, 1, &[], 7_000),
        [
            "listener kube-api/127.0.0.1:16443: failed -> listening after 5s",
            "budget kube-api: available -> used-up: too many slow connects at once",
            "problem state-file/events: found -> resolved after 5s: 9 torn",
        ]
    );
    assert_eq!(step(None, 9, 1, &[], 9_000), ["limit kube-api: reached -> below after 7s"]);
    assert_eq!(step(None, 9, 1, &[], 12_000), ["budget kube-api: used-up -> available after 5s"]);
}

#[test]
fn a_document_that_stays_different_is_reported_once() {
    let mut seen = seen();
    let other = view(true, |record| record.document = "0123".to_owned());
    let mut step =
        |view: &ClusterView, at| said(|out| seen.poll_state(&PolledState::default(), view, UnixMs(at), out));
    assert!(step(&other, 1_000).is_empty());
    assert!(step(&other, 60_000).is_empty());
    let told = step(&other, 61_000);
    assert!(told.len() == 1 && told[0].starts_with("document m1: same -> differs: it has 0123"), "{told:?}");
    assert!(step(&other, 62_000).is_empty());
    assert_eq!(step(&view(true, |_| ()), 121_000), ["document m1: differs -> same after 2m"]);
}

#[test]
fn suspect_is_a_warning_only_after_a_good_state() {
    let level = |states: &[BackendState]| {
        let (mut seen, mut out) = (seen(), Vec::new());
        for (at, state) in states.iter().enumerate() {
            seen.table(&table(*state, Cause::Connected), UnixMs(MINUTE + at as u64), &mut out);
        }
        out.last().map(|event| event.level)
    };
    assert_eq!(level(&[BackendState::Suspect]), Some(EventLevel::Info), "not heard yet");
    assert_eq!(level(&[BackendState::Unknown, BackendState::Suspect]), Some(EventLevel::Info));
    assert_eq!(level(&[BackendState::Ready, BackendState::Suspect]), Some(EventLevel::Warning));
}
