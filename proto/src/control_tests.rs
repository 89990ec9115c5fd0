use proptest::prelude::*;

use super::*;
use crate::exchange::{decode, encode};

/// One message a line: its name and its bytes. Neighbouring versions read each other's.
const GOLDEN: &str = include_str!("../tests/golden/control.hex");

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
        ("settings", Request::Settings),
        ("change", Request::Change(settings)),
        ("doctor", Request::Doctor(vec![node()])),
    ]
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
    vec![
        ("invite", Response::Invite { line: "agent join agent1x".to_owned(), expires: UnixMs(1) }),
        ("waiting", Response::Waiting(Vec::new())),
        ("held", Response::Held(held)),
        ("settings", Response::Settings(vec![setting])),
        ("events", Response::Events { events: Vec::new(), silent: vec!["m2".to_owned()] }),
        ("done", Response::Done("done".to_owned())),
        ("failed", Response::Failed("not done".to_owned())),
        ("unsupported", Response::Unsupported { version: "0.1.0".to_owned() }),
    ]
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[test]
fn every_message_has_the_bytes_that_it_was_released_with() {
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
        assert_eq!((state.word(), encode(&state)), (word, encode(&word)));
    }
    assert!(matches!(MemberState::from_word("thawing"), MemberState::Other(_)));
    for word in ["owned-here", "owned", "unowned", "unavailable", "shared"] {
        let state: VipState = decode(&encode(&word)).unwrap();
        assert_eq!((state.word(), encode(&state)), (word, encode(&word)));
    }
    for word in ["default", "file", "cluster", "file-over-cluster", "kubernetes"] {
        let source: ServiceSource = decode(&encode(&word)).unwrap();
        assert_eq!((source.word(), encode(&source)), (word, encode(&word)));
    }
}

#[test]
fn fields_of_a_later_version_are_passed_over() {
    // A map with one field more, and a request with one that this version does not know.
    #[derive(Serialize)]
    enum Later {
        Open { seconds: u64, why: &'static str },
        Thaw,
    }
    assert_eq!(
        decode::<Request>(&encode(&Later::Open { seconds: 5, why: "x" })),
        Ok(Request::Open { seconds: 5 })
    );
    assert!(decode::<Request>(&encode(&Later::Thaw)).is_err(), "it is answered by Unsupported");
}
