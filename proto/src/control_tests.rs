use proptest::prelude::*;

use super::*;
use crate::rpc::{self, decode};

/// One message a line: its name and its bytes. Neighbouring versions read each other's.
const GOLDEN: &str = include_str!("../tests/golden/control.hex");

fn encode<T: Serialize>(message: &T) -> Vec<u8> {
    rpc::encode(message).unwrap()
}

proptest! {
    #[test]
    fn no_frame_makes_it_panic(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
        let _ = decode::<Request>(&bytes);
        let _ = decode::<Response>(&bytes);
    }
}

fn requests() -> Vec<(&'static str, Request)> {
    let node = || "m2".to_owned();
    let settings = vec![("vip".to_owned(), Some("10.0.0.9".to_owned())), ("balance".to_owned(), None)];
    let after = BTreeMap::from([(node(), 7)]);
    let ask = EventQuery { since: UnixMs(5), after, most: 100, cluster: true };
    vec![
        ("status", Request::Status),
        ("invite", Request::Invite { seconds: 3_600, uses: Some(8), role: Role::Worker }),
        ("waiting", Request::Waiting),
        ("answer", Request::Answer { code: "ABC-123".to_owned(), role: Some(Role::Master) }),
        ("set-role", Request::SetRole { node: node(), role: Role::Master, force: false }),
        ("open", Request::Open { seconds: 900 }),
        ("remove", Request::Remove { node: node() }),
        ("leave", Request::Leave),
        ("rotate", Request::Rotate),
        ("drain", Request::Drain { on: true, node: None }),
        ("vip-move", Request::VipMove { address: [10, 0, 0, 9].into(), node: node() }),
        ("held", Request::Held { node: Some(node()) }),
        ("members", Request::Members),
        ("settings", Request::Settings),
        ("change", Request::Change(settings)),
        ("events", Request::Events(ask)),
        ("doctor", Request::Doctor(vec![node()])),
        ("seed", Request::Seed(vec!["m1.example".to_owned()])),
    ]
}

fn key(byte: u8) -> crate::node::PublicKey {
    crate::node::PublicKey([byte; 32])
}

fn backend() -> BackendStatus {
    BackendStatus {
        node: Name::nearest("m2"),
        address: "10.0.0.2:6443".to_owned(),
        state: BackendState::NotReady,
        cause: Some(Cause::TimedOut),
        reason: Reason::new("no answer"),
        since_unix_ms: UnixMs(3),
        rtt_ms: Some(0.5),
        connections: 1,
        total: 2,
        weight: 100,
        check_ms: Some(7),
        counted: BackendCounts::default(),
    }
}

pub(super) fn service() -> ServiceStatus {
    ServiceStatus {
        name: "kube-api".parse().unwrap(),
        listen: vec![ListenerStatus::new("127.0.0.1:6443".parse().unwrap(), None)],
        source: ServiceSource::File,
        balance: Balance::Nearest.into(),
        backends: vec![backend()],
        connections: 1,
        maxconn: 1_000,
        refused: 0,
        counted: ServiceCounts::default(),
    }
}

fn member() -> MemberStatus {
    MemberStatus {
        id: key(2).id(),
        name: Name::nearest("m2"),
        address: "10.0.0.2:6444".to_owned(),
        role: Role::Worker.into(),
        state: MemberState::Suspect,
        version: "0.1.0".to_owned(),
        since_unix_ms: UnixMs(3),
        rtt_ms: None,
        loss_permille: Some(9),
        document: "ab".to_owned(),
        sees: vec![PeerLinkStatus { node: Name::nearest("m1"), alive: true, rtt_ms: None, loss_permille: 0 }],
        node_local: Vec::new(),
    }
}

fn vip() -> VipStatus {
    let candidate = VipCandidate {
        node: Name::nearest("m1"),
        rank: 1,
        eligible: true,
        cause: None,
        reason: Reason::default(),
    };
    VipStatus {
        address: [10, 0, 0, 9].into(),
        state: VipState::Owned,
        owner: Some(Name::nearest("m1")),
        epoch: 4,
        interface: Some("eth0".to_owned()),
        since_unix_ms: UnixMs(3),
        cause: None,
        reason: Reason::default(),
        candidates: vec![candidate],
        gains: VipTakeovers::default(),
    }
}

/// A status with one of everything.
pub(super) fn status() -> Status {
    use crate::problem::ProblemCode;
    let checks = CheckCounts {
        service: "kube-api".parse().unwrap(),
        good: 1,
        alive: 2,
        not_ready: 3,
        refused: 4,
        silent: 5,
        took: Histogram::default(),
    };
    Status {
        schema: 1,
        cluster: ClusterStatus {
            id: "c1".to_owned(),
            name: "home".to_owned(),
            members: 2,
            core: 0,
            up: None,
            document: "ab".to_owned(),
            key_epoch: 1,
            open_until_unix_ms: None,
        },
        node: NodeStatus {
            id: key(1).id(),
            name: Name::nearest("m1"),
            address: Some("10.0.0.1".to_owned()),
            interface: "eth0".to_owned(),
            role: Role::Master.into(),
            place: Place::Everyone.into(),
            attached_to: Vec::new(),
            version: "0.1.0".to_owned(),
            started_unix_ms: UnixMs(1),
            removed: false,
            descriptors: 1_024,
            link: LinkStatus::default(),
            loop_lag: Histogram::default(),
            checks: vec![checks],
            events: BTreeMap::from([("member".to_owned(), 3)]),
            program: String::new(),
            replaced_unix_ms: None,
            replaced_connections: 0,
        },
        services: vec![service()],
        members: vec![member()],
        members_from: None,
        vips: vec![vip()],
        problems: vec![Problem::new(ProblemCode::StateFile, "peers is kept").about("peers").fix("move it")],
        taken_unix_ms: UnixMs(9),
    }
}

fn examined() -> Examination {
    use crate::doctor::{CheckedItem, Finding, Severity, Step};
    let text = |text: &str| text.to_owned();
    Examination {
        checked: vec![CheckedItem { area: text("ports"), text: text("both ways") }],
        findings: vec![Finding {
            code: text("udp-blocked"),
            severity: Severity::Error,
            area: text("ports"),
            node: text("m2"),
            what: text("no answer"),
            why: text("no gossip"),
            remedy: vec![Step::text("open it")],
        }],
    }
}

fn event() -> Event {
    use crate::event::{EventKind, EventLevel};
    let event = Event::new(EventKind::Member, UnixMs(5), "m2", "down").since("up", UnixMs(2));
    Event { seq: 7, node: "m1".to_owned(), ..event.because(Cause::TimedOut).level(EventLevel::Error) }
}

fn responses() -> Vec<(&'static str, Response)> {
    let name = |text: &str| Name::nearest(text);
    let held =
        HeldStatus { node: name("m1"), by: vec![(name("w1"), 3)], silent: vec![name("m2")], away: vec![] };
    let setting = SettingStatus {
        key: "vip".to_owned(),
        value: "10.0.0.9".to_owned(),
        set_by: "m1".to_owned(),
        set_unix_ms: UnixMs(1_700_000_000_000),
        clock: 4,
        remark: String::new(),
    };
    let change = SettingChange { key: "vip".to_owned(), old: None, new: Some("10.0.0.9".to_owned()) };
    vec![
        ("invite", Response::Invite { line: "agent join agent1x".to_owned(), expires: UnixMs(1) }),
        ("waiting", Response::Waiting(Vec::new())),
        ("held", Response::Held(held)),
        ("settings", Response::Settings(vec![setting])),
        ("events", Response::Events { events: Vec::new(), silent: vec!["m2".to_owned()] }),
        ("events-one", Response::Events { events: vec![event()], silent: Vec::new() }),
        ("status", Response::Status(Box::new(status()))),
        ("doctor", Response::Doctor(Box::new(examined()))),
        ("changed", Response::Changed(vec![change], "two nodes know".to_owned())),
        ("done", Response::Done("done".to_owned())),
        ("failed", Response::Failed("not done".to_owned())),
        ("refused", Response::refused(RefusalCode::LastMaster, "no other")),
        ("refused-later", Response::refused(RefusalCode::Other(900), "later")),
        ("unsupported", Response::Unsupported { version: "0.1.0".to_owned() }),
    ]
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[test]
#[cfg_attr(feature = "next-wire", ignore = "golden bytes are those of builds without it")]
fn every_message_has_the_bytes_of_its_release() {
    let asked = requests().into_iter().map(|(name, one)| format!("request-{name} {}", hex(&encode(&one))));
    let told = responses().into_iter().map(|(name, one)| format!("response-{name} {}", hex(&encode(&one))));
    let written: Vec<String> = asked.chain(told).collect();
    let stored: Vec<&str> = GOLDEN.lines().filter(|line| !line.starts_with('#')).collect();
    assert_eq!(written, stored, "\n{}", written.join("\n"));
}

#[test]
fn a_state_of_a_later_version_is_shown_as_it_came() {
    for word in ["up", "suspect", "down", "left", "thawing"] {
        let state: MemberState = decode(&encode(&word)).unwrap();
        assert_eq!((state.as_str(), encode(&state)), (word, encode(&word)));
    }
    assert!(matches!(MemberState::from_word("thawing"), MemberState::Other(_)));
    for word in ["owned-here", "owned", "unowned", "unavailable", "shared"] {
        let state: VipState = decode(&encode(&word)).unwrap();
        assert_eq!((state.as_str(), encode(&state)), (word, encode(&word)));
    }
    for word in BackendState::ALL.iter().map(BackendState::as_str).chain(["thawing"]) {
        let state: BackendState = decode(&encode(&word)).unwrap();
        assert_eq!((state.as_str(), encode(&state)), (word, encode(&word)));
    }
    for word in ["master", "worker", "witness"] {
        let role: OpenEnum<Role> = decode(&encode(&word)).unwrap();
        assert_eq!((role.to_string().as_str(), encode(&role)), (word, encode(&word)));
    }
    for word in ["default", "file", "cluster", "file-over-cluster", "kubernetes"] {
        let source: ServiceSource = decode(&encode(&word)).unwrap();
        assert_eq!((source.as_str(), encode(&source)), (word, encode(&word)));
    }
}

/// Gives every field of one of these names a value of no version, and every map one more field.
fn of_next_year(value: &mut serde_json::Value) {
    const WORDS: [&str; 9] =
        ["state", "role", "balance", "source", "cause", "code", "kind", "level", "severity"];
    match value {
        serde_json::Value::Object(fields) => {
            for (name, field) in fields.iter_mut() {
                match WORDS.contains(&name.as_str()) && field.is_string() {
                    true => *field = "of-next-year".into(),
                    false => of_next_year(field),
                }
            }
            // Maps that are keyed by names of nodes or kinds hold numbers only.
            fields.insert("of_next_year".to_owned(), 7.into());
        }
        serde_json::Value::Array(items) => items.iter_mut().for_each(of_next_year),
        _ => {}
    }
}

#[test]
fn values_and_fields_of_a_later_version_leave_every_response_readable() {
    use crate::rpc::Received;
    let mut kinds = Vec::new();
    for (name, response) in responses() {
        let mut later = serde_json::to_value(&response).unwrap();
        let serde_json::Value::Object(kind) = &mut later else { panic!("{name}") };
        kind.values_mut().for_each(of_next_year);
        // As JSON: MessagePack has addresses as bytes, which a generic value can't express.
        let Ok(Received::Known(read)) = serde_json::from_value(later) else { panic!("{name}") };
        let shown = serde_json::to_string(&read).unwrap();
        match read {
            Response::Status(status) => {
                assert_eq!(status.node.role.to_string(), "of-next-year");
                assert_eq!(status.services[0].balance.to_string(), "of-next-year");
                assert_eq!(status.services[0].backends[0].state.as_str(), "of-next-year");
                assert!(!status.services[0].backends[0].state.is_good());
                assert_eq!(status.members[0].state.as_str(), "of-next-year");
                assert_eq!(status.members[0].role.to_string(), "of-next-year");
                assert_eq!(status.vips[0].state.as_str(), "of-next-year");
                kinds.push(name);
            }
            Response::Doctor(examined) => {
                assert_eq!(examined.findings[0].severity, crate::doctor::Severity::Warning);
                kinds.push(name);
            }
            Response::Events { events, .. } if !events.is_empty() => {
                assert_eq!(events[0].level, crate::event::EventLevel::Warning);
                kinds.push(name);
            }
            _ => assert!(!shown.is_empty()),
        }
    }
    assert_eq!(kinds, ["events-one", "status", "doctor"]);
}

#[test]
fn fields_of_a_later_version_are_ignored() {
    // A map with one more field, and a request with one that this version does not know.
    #[derive(Serialize)]
    enum Later {
        Open { seconds: u64, why: &'static str },
        Thaw,
    }
    let read: Request = decode(&encode(&Later::Open { seconds: 5, why: "x" })).unwrap();
    assert_eq!(read, Request::Open { seconds: 5 });
    assert!(decode::<Request>(&encode(&Later::Thaw)).is_err(), "it is answered by Unsupported");
}
