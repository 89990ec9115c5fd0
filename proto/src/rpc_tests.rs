//! The bytes of every message of the TCP port: changing them breaks clusters that run two versions.

use ring::signature::{Ed25519KeyPair, KeyPair};

use super::*;
use crate::cause::Cause;
use crate::cluster::{Admitted, Document, DocumentDifference, Replica};
use crate::node::PublicKey;
use crate::signed_record::RecordVersion;

const GOLDEN: &str = include_str!("../tests/golden/rpc.hex");

fn encode<T: Serialize>(message: &T) -> Vec<u8> {
    super::encode(message).unwrap()
}

fn pair() -> (Ed25519KeyPair, PublicKey) {
    let pair = Ed25519KeyPair::from_seed_unchecked(&[1; 32]).unwrap();
    let key = PublicKey(pair.public_key().as_ref().try_into().unwrap());
    (pair, key)
}

fn snapshot() -> SyncSnapshot {
    let (pair, key) = pair();
    let (own, name) = (key.id(), || "n1".parse().unwrap());
    let first = Admitted::new(name(), key, Role::Master, own, UnixMs(5));
    let document = Document::new([7; 16], name(), first, KeyId([3; 16]));
    SyncSnapshot {
        document: Replica::new(document, own, &pair).sealed(),
        keys: vec![GossipKey { epoch: 1, id: KeyId([3; 16]), secret: [4; 32], until: Some(UnixMs(9)) }],
        addresses: Addresses::from([(own, vec!["10.0.0.1:7646".parse().unwrap()])]),
        difference: None,
    }
}

/// The same after a setting, as a difference.
fn difference() -> SyncSnapshot {
    let (pair, key) = pair();
    let before = snapshot().document.unwrap().open().unwrap();
    let mut now = before.clone();
    now.set("a", Some("b".to_owned()), key.id(), UnixMs(6)).unwrap();
    let difference = DocumentDifference::between(&before, &Replica::new(now, key.id(), &pair));
    SyncSnapshot { difference, ..SyncSnapshot::default() }
}

fn from_member() -> Vec<FromMember> {
    let node = NodeId([1; 10]);
    vec![
        FromMember::Gossip(vec![1, 200]),
        FromMember::Compare(SyncDigest {
            document: DocumentHash([1; 16]),
            keys: vec![KeyId([2; 16])],
            differences: false,
        }),
        FromMember::Sync(Box::new(snapshot())),
        FromMember::Sync(Box::new(difference())),
        FromMember::Answer { code: "k7qm-2xpd".to_owned(), role: Some(Role::Worker) },
        FromMember::Answer { code: "k7qm-2xpd".to_owned(), role: None },
        FromMember::Leave,
        FromMember::Waiting,
        FromMember::Held(node),
        FromMember::Members,
        FromMember::Events { since: UnixMs(1), after: 2, most: 3 },
        FromMember::Examine(vec![0; 3]),
        FromMember::Records { known: vec![(node, 4, 5)], all: true, needed: false },
    ]
}

fn to_member() -> Vec<ToMember> {
    let (pair, key) = pair();
    let version = RecordVersion { generation: 6, sequence: 7 };
    let name: Name = "n2".parse().unwrap();
    let waiting = crate::invite::PendingJoin {
        code: "k7qm-2xpd".to_owned(),
        key,
        name: name.clone(),
        from: "[fd00::1]:4000".parse().unwrap(),
        until: UnixMs(8),
    };
    let member = MemberStatus {
        id: key.id(),
        name: name.clone(),
        address: "10.0.0.2".to_owned(),
        role: Role::Worker.into(),
        state: crate::control::MemberState::Suspect,
        version: "0.2.0".to_owned(),
        since_unix_ms: UnixMs(3),
        rtt_ms: Some(0.5),
        loss_permille: None,
        document: "ab".to_owned(),
        sees: Vec::new(),
        node_local: Vec::new(),
    };
    let fault = Fault::new(Cause::TimedOut, "late");
    let (received, sent) = (UnixMs(1), UnixMs(2));
    let answer =
        DoctorAnswer { received, sent, mtu: Some(1420), tcp: Some(fault), udp: None, findings: vec![] };
    vec![
        ToMember::Compared(DocumentHash([1; 16]), Box::default()),
        ToMember::Synced(DocumentHash([1; 16])),
        ToMember::Answered(Approval::Unknown),
        ToMember::Answered(Approval::Gone(name.clone())),
        ToMember::Answered(Approval::Done { name, confirmation: Some("1234-5678".to_owned()) }),
        ToMember::Left,
        ToMember::Waiting(vec![waiting]),
        ToMember::Held(70_000),
        ToMember::Members(vec![member]),
        ToMember::Events(Vec::new()),
        ToMember::Examined(Box::new(answer), vec![0; 3]),
        ToMember::Records(vec![SignedRecord::sign(&pair, "c", key.id(), version, vec![1, 2])]),
        ToMember::failed(FailCode::Busy, "busy"),
        ToMember::failed(FailCode::Other(900), "later"),
    ]
}

fn from_joining() -> Vec<FromJoining> {
    let join = |proof, cluster| FromJoining::Join {
        name: "n2".parse().unwrap(),
        proof,
        addresses: vec!["10.0.0.2:7646".parse().unwrap()],
        confirmed: true,
        cluster,
    };
    let cluster = snapshot().document.and_then(|sealed| sealed.open().ok()).map(|document| document.id);
    vec![
        join(Some(InviteProof { id: [1, 2, 3, 4], mac: [9; 32] }), None),
        join(None, cluster),
        FromJoining::Confirmed,
        FromJoining::Listening,
    ]
}

fn to_joining() -> Vec<ToJoining> {
    vec![
        ToJoining::Wait { seconds: 600 },
        ToJoining::Approved { seconds: 600 },
        ToJoining::Redirect(vec!["10.0.0.1:7646".parse().unwrap()]),
        ToJoining::Busy,
        ToJoining::Welcome(Box::new(Welcome { snapshot: snapshot(), serving: Vec::new() })),
        ToJoining::Refused(JoinRefusal::Expired),
        ToJoining::Refused(JoinRefusal::NameTaken { name: "n2".parse().unwrap(), is_up: true }),
        ToJoining::Reached { tcp: None, udp: Some(Fault::new(Cause::TimedOut, "late")) },
        ToJoining::Failed { code: FailCode::Unsupported, reason: "older".to_owned() },
    ]
}

/// Its bytes as a line, after reading them back both as itself and as a possibly unknown kind.
fn line<T: Serialize + DeserializeOwned>(of: &str, message: &T) -> String {
    let bytes = encode(message);
    assert_eq!(encode(&decode::<T>(&bytes).unwrap()), bytes);
    let Ok(Received::Known(back)) = decode::<Received<T>>(&bytes) else { panic!("{of}: not a known kind") };
    assert_eq!(encode(&back), bytes);
    format!("{of} {}", data_encoding::HEXLOWER.encode(&bytes))
}

#[test]
#[cfg_attr(feature = "next-wire", ignore = "golden bytes are those of builds without it")]
fn every_message_has_the_bytes_of_its_release() {
    let mut lines: Vec<String> = Vec::new();
    lines.extend(from_member().iter().map(|message| line("from-member", message)));
    lines.extend(to_member().iter().map(|message| line("to-member", message)));
    lines.extend(from_joining().iter().map(|message| line("from-joining", message)));
    lines.extend(to_joining().iter().map(|message| line("to-joining", message)));
    let stored: Vec<&str> = GOLDEN.lines().filter(|line| !line.starts_with('#')).collect();
    assert_eq!(lines, stored, "\n{}\n", lines.join("\n"));
}
