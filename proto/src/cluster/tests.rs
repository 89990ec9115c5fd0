//! Tests of the document: merge, canonical bytes, bounds, and what a later version has added.

use proptest::prelude::*;

use super::*;

pub(crate) fn key(n: u8) -> PublicKey {
    PublicKey([n; 32])
}

fn admitted(n: u8, at: u64) -> Admitted {
    Admitted::new(format!("n{n}").parse().unwrap(), key(n), Role::Worker, key(0).id(), UnixMs(at))
}

fn new() -> Document {
    Document::new([1; 16], "cluster".parse().unwrap(), admitted(0, 1), KeyId([0; 16]))
}

#[derive(Debug, Clone)]
pub(super) enum Change {
    Admit(u8, u64),
    Remove(u8, u64),
    Role(u8, bool),
    Turn(u8, bool),
    Set(u8, u8),
    Unknown(u8, u8),
}

pub(super) fn change() -> impl Strategy<Value = Change> {
    prop_oneof![
        (0u8..6, 0u64..4).prop_map(|(n, at)| Change::Admit(n, at)),
        (0u8..6, 0u64..4).prop_map(|(n, at)| Change::Remove(n, at)),
        (0u8..6, any::<bool>()).prop_map(|(n, master)| Change::Role(n, master)),
        (0u8..4, any::<bool>()).prop_map(|(n, removal)| Change::Turn(n, removal)),
        (0u8..3, 0u8..3).prop_map(|(key, value)| Change::Set(key, value)),
        (0u8..3, 0u8..3).prop_map(|(key, value)| Change::Unknown(key, value)),
    ]
}

pub(super) fn apply(changes: &[Change], by: u8) -> Document {
    let mut document = new();
    let by = key(by).id();
    for change in changes {
        match change {
            Change::Admit(n, at) => document.admit(admitted(*n, *at)),
            Change::Remove(n, at) => document.remove(key(*n).id(), by, UnixMs(*at)),
            Change::Role(n, master) => {
                let role = if *master { Role::Master } else { Role::Worker };
                document.set_role(key(*n).id(), role, by, UnixMs(1)).unwrap();
            }
            Change::Turn(n, removal) => document.turn_key(KeyId([*n; 16]), by, UnixMs(1), *removal).unwrap(),
            Change::Set(name, value) => {
                document.set(&format!("k{name}"), Some(value.to_string()), by, UnixMs(1)).unwrap();
            }
            Change::Unknown(key, value) => {
                document.extra.insert(format!("x{key}"), Value::Number(u64::from(*value)));
            }
        }
    }
    document
}

fn merged(a: &Document, b: &Document) -> Document {
    let mut document = a.clone();
    document.merge(b).unwrap();
    document
}

proptest! {
    #[test]
    fn merge_is_commutative_associative_and_idempotent(
        a in proptest::collection::vec(change(), 0..8),
        b in proptest::collection::vec(change(), 0..8),
        c in proptest::collection::vec(change(), 0..8),
    ) {
        let (a, b, c) = (apply(&a, 1), apply(&b, 2), apply(&c, 3));
        prop_assert_eq!(merged(&a, &b), merged(&b, &a));
        prop_assert_eq!(merged(&merged(&a, &b), &c), merged(&a, &merged(&b, &c)));
        prop_assert_eq!(merged(&a, &a), a.clone());
        prop_assert_eq!(merged(&a, &b).hash(), merged(&b, &a).hash());
        // What was removed anywhere is out everywhere.
        for id in a.removed.keys().chain(b.removed.keys()) {
            prop_assert!(merged(&a, &b).member(id).is_none());
        }
    }

    #[test]
    fn a_document_reads_back_as_written_with_the_same_hash(changes in proptest::collection::vec(change(), 0..12)) {
        let document = apply(&changes, 1);
        let read = Document::from_bytes(&document.to_bytes()).unwrap();
        prop_assert_eq!(&read, &document);
        prop_assert_eq!(read.digest(), document.digest());
        // The canonical form is that of the whole, not only of its parts.
        prop_assert_eq!(value::canonical(&document), document.to_bytes());
    }

    #[test]
    fn no_bytes_make_the_decoder_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
        let _ = Document::from_bytes(&bytes);
    }

    #[test]
    fn a_bent_document_is_read_or_refused(at in 0usize..600, byte: u8) {
        let mut bytes = apply(&[Change::Admit(1, 1), Change::Remove(1, 1)], 1).to_bytes();
        let at = at % bytes.len();
        bytes[at] = byte;
        let _ = Document::from_bytes(&bytes);
    }
}

#[test]
#[cfg_attr(feature = "next-wire", ignore = "golden bytes are those of builds without it")]
fn the_canonical_bytes_stay_what_they_are() {
    let changes = [
        Change::Admit(1, 1),
        Change::Admit(2, 2),
        Change::Remove(1, 3),
        Change::Role(2, true),
        Change::Set(0, 1),
    ];
    let mut document = apply(&changes, 0);
    document.turn_key(KeyId([3; 16]), key(0).id(), UnixMs(9), true).unwrap();
    let bytes = document.to_bytes();
    let golden = include_str!("../../tests/golden/document-1.hex").split_whitespace().collect::<String>();
    assert_eq!(data_encoding::HEXLOWER.encode(&bytes), golden);
    assert_eq!(Document::from_bytes(&bytes).unwrap(), document);
}

/// A document as a later version might write it: something more at every level.
fn later() -> Document {
    let mut document =
        apply(&[Change::Admit(1, 1), Change::Remove(1, 2), Change::Role(0, false), Change::Set(0, 1)], 0);
    let more = || {
        let entry =
            BTreeMap::from([("clock".to_owned(), Value::Number(7)), ("on".to_owned(), Value::Bool(true))]);
        let map = BTreeMap::from([("one".to_owned(), Value::Map(entry)), ("two".to_owned(), Value::Nil)]);
        Extra::from([
            ("a-first".to_owned(), Value::Negative(-5)),
            ("zones".to_owned(), Value::Map(map)),
            ("list".to_owned(), Value::List(vec![Value::Text("x".to_owned())])),
        ])
    };
    document.extra = more();
    document.key.extra = more();
    document.nodes.values_mut().for_each(|one| one.extra = more());
    document.removed.values_mut().for_each(|one| one.extra = more());
    document.roles.values_mut().for_each(|one| one.extra = more());
    document.settings.values_mut().for_each(|one| one.extra = more());
    document.nodes.get_mut(&key(0).id()).unwrap().role = RoleName("observer".to_owned());
    document
}

#[test]
fn what_a_later_version_added_outlives_an_older_node_s_rewrite_with_the_same_hash() {
    let later = later();
    let read = Document::from_bytes(&later.to_bytes()).unwrap();
    assert_eq!(read.digest(), later.digest());
    // Its disk, too.
    let json = serde_json::to_string(&later).unwrap();
    assert_eq!(serde_json::from_str::<Document>(&json).unwrap().digest(), later.digest());
    // The older one changes something else, and the later one takes it over: both have one hash.
    let mut older = read.clone();
    older.admit(admitted(5, 5));
    assert_eq!(merged(&later, &older).digest(), older.digest());
    assert_eq!(older.settings["k0"], later.settings["k0"]);
    // A role that is not known gives no rights.
    assert_eq!(RoleName("observer".to_owned()).role(), Role::Worker);
}

#[test]
fn an_id_with_another_key_and_another_cluster_are_refused() {
    let mut forged = new();
    forged.nodes.insert(key(5).id(), admitted(6, 1));
    assert_eq!(forged.check(), Err(BadDocument::WrongKey(key(5).id())));
    let other = Document::new([2; 16], "cluster".parse().unwrap(), admitted(0, 1), KeyId([0; 16]));
    assert!(matches!(new().merge(&other), Err(BadDocument::OtherCluster { .. })));
    // An id that someone else's genesis does not make.
    let mut stolen = other;
    stolen.id = new().id;
    assert_eq!(stolen.check(), Err(BadDocument::Genesis));
    let mut renamed = new();
    renamed.name = "other".parse().unwrap();
    assert_eq!(renamed.check(), Err(BadDocument::Genesis));
}

#[test]
fn a_removal_ends_all_earlier_keys_even_when_a_rotation_follows() {
    let mut document = new();
    document.turn_key(KeyId([2; 16]), key(0).id(), UnixMs(2), true).unwrap();
    assert_eq!(document.key.previous, None);
    document.turn_key(KeyId([3; 16]), key(0).id(), UnixMs(3), false).unwrap();
    assert_eq!((document.key.epoch, document.key_floor), (3, 2));
    assert_eq!(document.key.previous, Some(KeyId([2; 16])));
}

#[test]
fn a_role_is_bound_in_the_admission_until_it_is_changed() {
    let mut document = new();
    document.admit(admitted(1, 1));
    let (first, second) = (key(0).id(), key(1).id());
    assert_eq!((document.role(&first), document.role(&second)), (Some(Role::Master), Some(Role::Worker)));
    document.set_role(second, Role::Master, first, UnixMs(2)).unwrap();
    assert!(document.is_master(&second));
    // At once, one master demotes it and another promotes it anew: the demotion counts.
    let (mut a, mut b) = (document.clone(), document.clone());
    a.set_role(second, Role::Worker, first, UnixMs(3)).unwrap();
    b.set_role(second, Role::Worker, second, UnixMs(3)).unwrap();
    b.roles.get_mut(&second).unwrap().role = Role::Master.into();
    assert_eq!(merged(&a, &b).role(&second), Some(Role::Worker));
    document.remove(second, first, UnixMs(4));
    assert_eq!(document.role(&second), None);
}

fn all_shown_alike(document: &Document) {
    let all = document.shown_names();
    assert_eq!(all.len(), document.members().count());
    for (id, name) in all {
        assert_eq!(name, document.shown_name(&id));
        let found: Vec<NodeId> = document.find(name.as_str()).into_iter().map(|(id, _)| id).collect();
        assert_eq!(found, [id], "a command takes what is shown");
    }
}

#[test]
fn a_node_is_found_by_name_id_or_its_beginning_and_never_the_wrong_one() {
    let mut document = new();
    document.admit(admitted(1, 1));
    let id = key(1).id().to_string();
    assert_eq!(document.find("n1").len(), 1);
    assert_eq!(document.find(&id).len(), 1);
    assert_eq!(document.find(&id[..6]).len(), 1);
    assert!(document.find(&id[..3]).is_empty());
    // Two nodes of one name, whenever they say that they were admitted: neither is meant by it.
    for at in [0, 1, 5] {
        let mut document = document.clone();
        document.admit(Admitted { name: "n1".parse().unwrap(), ..admitted(2, at) });
        assert_eq!(document.find("n1").len(), 2);
        assert_eq!(document.shown_name(&key(1).id()).as_str(), id);
        assert_eq!(document.shown_name(&key(2).id()).as_str(), key(2).id().to_string());
        all_shown_alike(&document);
    }
    assert_eq!(document.shown_name(&key(1).id()).as_str(), "n1");
    all_shown_alike(&document);
}

#[test]
fn counters_at_their_end_refuse_aloud_and_too_large_ones_are_not_read() {
    let mut document = new();
    document.set("a", Some("1".to_owned()), key(0).id(), UnixMs(1)).unwrap();
    document.settings.get_mut("a").unwrap().clock = 1 << 53;
    assert_eq!(document.set("a", None, key(0).id(), UnixMs(1)), Err(CounterExhausted("settings")));
    assert!(document.settings["a"].value.is_some(), "nothing has changed");
    document.settings.get_mut("a").unwrap().clock += 1;
    assert!(matches!(document.check(), Err(BadDocument::Counter(_))));
    let mut document = new();
    document.key.epoch = u64::MAX;
    assert!(matches!(document.check(), Err(BadDocument::Counter(_))));
    assert!(document.turn_key(KeyId([1; 16]), key(0).id(), UnixMs(1), true).is_err());
}

#[test]
fn what_is_too_large_is_refused() {
    let mut document = new();
    document.set("a", Some("x".repeat(17 * 1024)), key(0).id(), UnixMs(1)).unwrap();
    assert!(matches!(document.check(), Err(BadDocument::TooLarge { .. })));
    let mut document = new();
    document.set(&"k".repeat(300), None, key(0).id(), UnixMs(1)).unwrap();
    assert!(matches!(document.check(), Err(BadDocument::TooLarge { .. })));
    let mut document = new();
    document.extra.insert("x".to_owned(), Value::Text("x".repeat(MAX_BYTES)));
    assert!(matches!(document.check(), Err(BadDocument::TooLarge { what: "bytes", .. })));
    assert!(Document::from_bytes(&document.to_bytes()).is_err());
    let mut document = new();
    for n in 0..=MAX_NODES as u32 {
        let mut bytes = [1; 32];
        bytes[..4].copy_from_slice(&n.to_be_bytes());
        document.admit(Admitted { key: PublicKey(bytes), ..admitted(1, 1) });
    }
    assert!(matches!(document.check(), Err(BadDocument::TooLarge { what: "nodes", .. })));
}

#[test]
fn a_successor_has_the_name_and_what_is_set_and_one_master() {
    let mut document = apply(&[Change::Admit(1, 1), Change::Set(0, 1), Change::Set(1, 1)], 0);
    document.set("k1", None, key(0).id(), UnixMs(1)).unwrap();
    let new = document.successor([7; 16], admitted(1, 9), KeyId([4; 16]));
    assert_eq!(new.genesis.succeeds, Some(document.id.clone()));
    assert_eq!((new.name.clone(), new.settings.len()), (document.name.clone(), 1));
    assert!(new.is_master(&key(1).id()) && new.members().count() == 1 && new.check().is_ok());
    assert_ne!(new.id, document.id);
}

#[test]
fn the_hash_is_kept_and_forgotten_with_each_change() {
    let mut document = new();
    let mut seen = std::collections::BTreeSet::from([document.hash()]);
    document.admit(admitted(1, 1));
    assert!(seen.insert(document.hash()), "admitted");
    document.set("a", None, key(0).id(), UnixMs(1)).unwrap();
    assert!(seen.insert(document.hash()), "set");
    document.set_role(key(1).id(), Role::Master, key(0).id(), UnixMs(1)).unwrap();
    assert!(seen.insert(document.hash()), "promoted");
    document.remove(key(1).id(), key(0).id(), UnixMs(1));
    assert!(seen.insert(document.hash()), "removed");
    document.turn_key(KeyId([1; 16]), key(0).id(), UnixMs(1), false).unwrap();
    assert!(seen.insert(document.hash()), "turned");
    let more = apply(&[Change::Admit(4, 1)], 1);
    document.merge(&more).unwrap();
    assert!(seen.insert(document.hash()), "merged");
}
