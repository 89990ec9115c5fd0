use std::fs;
use std::path::{Path, PathBuf};

use proto::backends::KnownBackend;
use proto::invite::{InviteSecret, IssuedInvite};
use proto::time::UnixMs;
use proto::transport::GossipKey;
use serde_json::{Value, json};

use super::*;

const ALL: [StateFile; 10] =
    [IDENTITY, NODE, CLUSTER, KEYS, INVITES, PEERS, SERVING, EPOCHS, SEEDS, GENERATION];

/// Files of a newer agent without which this one does not start.
const NEEDED: [StateFile; 4] = [IDENTITY, NODE, CLUSTER, KEYS];

/// The bytes of every file, as the first version with this form wrote them.
fn golden() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/state")
}

/// A state directory as [`golden`] has it.
fn written() -> (tempfile::TempDir, PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    let state = dir.path().join("state");
    fs::create_dir(&state).unwrap();
    for file in ALL {
        fs::copy(golden().join(file.name), state.join(file.name)).unwrap();
    }
    (dir, state)
}

fn disk(state: &Path) -> MemberStore {
    MemberStore::new(StateDir::open(state).unwrap())
}

/// Puts a value there that an agent wrote which has this version of the file.
fn put(state: &Path, file: StateFile, version: u32, value: &Value) {
    StateDir::open(state).unwrap().write(StateFile { version, ..file }, value).unwrap();
}

fn value(state: &Path, file: StateFile) -> Value {
    StateDir::open(state).unwrap().read(file).unwrap().value.unwrap()
}

/// What lies there under the name of a file, its copies included.
fn copies(state: &Path, file: StateFile) -> Vec<(String, Vec<u8>)> {
    let mut all: Vec<(String, Vec<u8>)> = fs::read_dir(state)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .filter(|name| name.starts_with(file.name))
        .map(|name| (name.clone(), fs::read(state.join(name)).unwrap()))
        .collect();
    all.sort();
    all
}

/// Everything that a running agent writes.
fn save_all(disk: &MemberStore, member: &StoredMember) {
    disk.save_node(&member.node);
    disk.save_replica(&member.replica);
    disk.save_keys(&member.ring);
    disk.save_rest(member);
    disk.save_epochs(&member.epochs);
    disk.add_seed("m1.example");
    disk.next_generation(0);
}

fn sample() -> StoredMember {
    let identity = Arc::new(Identity::from_seed(&[1; 32]).unwrap());
    let own = identity.id;
    let name = Name::nearest("m1");
    let first = Admitted::new(name.clone(), identity.key, Role::Master, own, UnixMs(1_700_000_000_000));
    let secret = [2; 32];
    let document = Document::new([3; 16], Name::nearest("home"), first, KeyId::of_key(&secret));
    let mut ring = KeyRing::default();
    let until = Some(UnixMs(1_700_000_900_000));
    ring.add(GossipKey { epoch: 1, id: document.key.id, secret, until: None });
    ring.add(GossipKey { epoch: 0, id: KeyId::of_key(&[4; 32]), secret: [4; 32], until });
    let mut invites = InviteLedger::default();
    let expires = UnixMs(1_700_003_600_000);
    let issued =
        IssuedInvite { secret: InviteSecret([5; 16]), expires, uses_left: Some(8), role: Role::Worker };
    invites.issue([6; 4], issued);
    let peer = "10.0.0.2:6444".parse().unwrap();
    let last = KnownBackend {
        node: own,
        name: name.clone(),
        address: "10.0.0.1:6443".parse().unwrap(),
        weight: 100,
    };
    StoredMember {
        replica: Replica::new(document, own, identity.pair()),
        node: NodeFile {
            name,
            address: "10.0.0.1".parse().unwrap(),
            interface: "eth0".to_owned(),
            pinned: false,
            port: 6444,
        },
        ring,
        invites,
        peers: Addresses::from([(own, vec![peer])]),
        serving: vec![("kube-api".parse().unwrap(), vec![last])],
        epochs: VipEpochs::from([("10.0.0.9".parse().unwrap(), 7)]),
        node_local: Default::default(),
        identity,
    }
}

#[test]
#[cfg_attr(feature = "next-wire", ignore = "golden bytes are those of builds without it")]
fn every_file_has_the_bytes_that_it_was_released_with() {
    let dir = tempfile::tempdir().unwrap();
    let disk = disk(dir.path());
    let seed = StoredSeed { seed: data_encoding::HEXLOWER.encode(&[1; 32]) };
    disk.store.write(IDENTITY, &seed).unwrap();
    disk.store.write(GENERATION, &1_700_000_000_u64).unwrap();
    let member = sample();
    assert!(disk.save_node(&member.node) && disk.save_replica(&member.replica));
    assert!(disk.save_keys(&member.ring) && disk.save_rest(&member) && disk.save_epochs(&member.epochs));
    disk.add_seed("m1.example");
    for file in ALL {
        let written = fs::read(dir.path().join(file.name)).unwrap();
        if std::env::var_os("WRITE_GOLDEN").is_some() {
            fs::create_dir_all(golden()).unwrap();
            fs::write(golden().join(file.name), &written).unwrap();
        }
        let stored = fs::read(golden().join(file.name)).unwrap();
        assert_eq!(String::from_utf8_lossy(&written), String::from_utf8_lossy(&stored), "{}", file.name);
    }
}

#[test]
fn what_was_released_is_read() {
    let (_dir, state) = written();
    let disk = disk(&state);
    let (found, member) = (disk.member().unwrap(), sample());
    assert!(disk.found().is_empty(), "{:?}", disk.found());
    assert_eq!(found.identity.id, member.identity.id);
    assert_eq!((found.node, found.replica, found.ring), (member.node, member.replica, member.ring));
    assert_eq!((found.invites, found.peers), (member.invites, member.peers));
    assert_eq!((found.serving, found.epochs), (member.serving, member.epochs));
    assert_eq!(disk.seeds(), ["m1.example"]);
}

#[test]
fn a_needed_file_of_a_newer_agent_stops_the_older_one_and_is_there_when_the_newer_comes_back() {
    for file in NEEDED {
        let (_dir, state) = written();
        let new = json!({ "of_next_year": [1, 2] });
        put(&state, file, 2, &new);
        let before = copies(&state, file);
        let older = disk(&state);
        for error in [older.member_or_degraded().err().unwrap(), older.member().err().unwrap()] {
            let LoadError::Store(error) = error else { panic!("{error}") };
            assert!(error.is_kept() && error.is_about(file), "{error}");
            assert!(matches!(error, StateError::Newer { version: 2, highest: 1, .. }), "{error}");
        }
        save_all(&older, &sample());
        assert_eq!(copies(&state, file), before, "{}", file.name);
        drop(older);
        assert_eq!(value(&state, StateFile { version: 2, ..file }), new);
    }
}

#[test]
fn without_another_file_of_a_newer_agent_the_older_one_goes_on_and_never_writes_over_it() {
    for file in ALL.into_iter().filter(|file| !NEEDED.contains(file)) {
        let (_dir, state) = written();
        let new = json!({ "of_next_year": [1, 2] });
        put(&state, file, 2, &new);
        let before = copies(&state, file);
        let older = disk(&state);
        let member = older.member_or_degraded().unwrap();
        older.next_generation(0);
        older.seeds();
        let problems = older.found();
        let [problem] = problems.as_slice() else { panic!("{}: {problems:?}", file.name) };
        assert_eq!(problem.code, ProblemCode::StateFile);
        assert!(problem.subject.starts_with(file.name), "{problem:?}");
        save_all(&older, &member);
        assert!(older.save_rest(&member), "it is no reason not to become a member again");
        assert_eq!(copies(&state, file), before, "{}", file.name);
        assert_eq!(older.found().len(), 1, "{:?}", older.found());
        drop(older);
        assert_eq!(value(&state, StateFile { version: 2, ..file }), new);
    }
}

#[test]
fn a_whole_file_that_is_not_understood_is_kept() {
    for file in ALL {
        let (_dir, state) = written();
        put(&state, file, 1, &json!({ "document": "odd", "keys": 7, "invites": 7, "odd": 7 }));
        let before = copies(&state, file);
        let older = disk(&state);
        let started = older.member_or_degraded();
        older.next_generation(0);
        older.seeds();
        match &started {
            Err(error) => {
                assert!([IDENTITY, NODE].contains(&file), "{}: {error}", file.name);
                assert!(matches!(error, LoadError::Store(StateError::NotUnderstood { .. })), "{error}");
            }
            Ok(_) => {
                let said = older.not_kept().to_string();
                assert!(
                    said.contains("intact but not understood, perhaps written by a newer agent"),
                    "{said}"
                );
            }
        }
        save_all(&older, &started.unwrap_or_else(|_| sample()));
        assert_eq!(copies(&state, file), before, "{}", file.name);
    }
}

#[test]
fn garbage_is_set_aside_and_the_copy_before_it_used() {
    for file in ALL {
        let (_dir, state) = written();
        let whole = value(&state, file);
        put(&state, file, 1, &whole);
        fs::write(state.join(file.name), "agent-state 1 00\n{}\n").unwrap();
        let older = disk(&state);
        let member = older.member_or_degraded().unwrap();
        older.next_generation(0);
        older.seeds();
        assert_eq!(member.node, sample().node);
        let said = older.not_kept().to_string();
        assert!(said.contains("was moved to") && said.contains(".prev"), "{said}");
    }
}

#[test]
fn what_could_not_be_written_is_tried_again_and_only_its_last_value() {
    let (_dir, state) = written();
    let disk = disk(&state);
    let member = disk.member().unwrap();
    // A directory where the new file would be made: nobody, root included, can write that file.
    let blocked = state.join("node.new");
    fs::create_dir(&blocked).unwrap();
    fs::write(blocked.join("x"), "").unwrap();
    for port in [7001, 7002] {
        assert!(!disk.save_node(&NodeFile { port, ..member.node.clone() }));
    }
    assert_eq!(disk.why_unsaved().unwrap().code, ProblemCode::StateNotSaved);
    disk.retry();
    assert!(disk.why_unsaved().is_some(), "still blocked");
    fs::remove_dir_all(&blocked).unwrap();
    disk.retry();
    assert!(disk.why_unsaved().is_none() && disk.found().is_empty());
    assert_eq!(disk.node().unwrap().unwrap().port, 7002);
    // What was written meanwhile is newer than what waits.
    fs::create_dir_all(blocked.join("x")).unwrap();
    assert!(!disk.save_node(&NodeFile { port: 7003, ..member.node.clone() }));
    fs::remove_dir_all(&blocked).unwrap();
    assert!(disk.save_node(&NodeFile { port: 7004, ..member.node.clone() }));
    disk.retry();
    assert_eq!(disk.node().unwrap().unwrap().port, 7004);
}

#[test]
fn a_field_of_a_newer_agent_is_ignored() {
    for file in [IDENTITY, NODE, CLUSTER, KEYS, INVITES] {
        let (_dir, state) = written();
        let mut whole = value(&state, file);
        whole.as_object_mut().unwrap().insert("of_next_year".to_owned(), json!([1, { "x": null }]));
        put(&state, file, 1, &whole);
        let disk = disk(&state);
        assert_eq!(disk.member().unwrap().node, sample().node);
        assert!(disk.found().is_empty(), "{}: {:?}", file.name, disk.found());
    }
}
