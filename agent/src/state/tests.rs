use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;

use super::format::FileContent;
use super::*;
use crate::testing::in_namespaces;
use crate::testing::mutate::Mutator;

const CLUSTER: StateFile = StateFile::first("cluster");
const PREV: StateFile = StateFile::first("cluster.prev");

fn store() -> (tempfile::TempDir, StateDir) {
    let dir = tempfile::tempdir().unwrap();
    let store = StateDir::open(&dir.path().join("state")).unwrap();
    (dir, store)
}

fn text(s: &str) -> String {
    s.to_owned()
}

fn value(store: &StateDir) -> Option<String> {
    let loaded: LoadedFile<String> = store.read(CLUSTER).unwrap();
    assert_eq!(loaded.problem, None);
    loaded.value
}

fn files(store: &StateDir) -> Vec<String> {
    store.names().unwrap().into_iter().filter(|n| n != LOCK).collect()
}

#[test]
fn what_was_written_is_read_and_the_one_before_is_kept() {
    let (_dir, store) = store();
    assert_eq!(value(&store), None);
    store.write(CLUSTER, &"one").unwrap();
    assert_eq!(value(&store), Some(text("one")));
    assert_eq!(files(&store), ["cluster"]);
    store.write(CLUSTER, &"two").unwrap();
    store.write(CLUSTER, &"three").unwrap();
    assert_eq!(value(&store), Some(text("three")));
    assert_eq!(files(&store), ["cluster", "cluster.prev"]);
    assert_eq!(store.read::<String>(PREV).unwrap().value, Some(text("two")));
}

#[test]
fn a_file_can_be_checked_by_hand_with_sha256sum() {
    let (_dir, store) = store();
    store.write(CLUSTER, &"one").unwrap();
    let file = fs::read_to_string(store.dir().join("cluster")).unwrap();
    // tail -n +2 FILE | sha256sum
    let hash = "6637d344be2a58df0e71786fb74dbe017927841faea1e822ef84760e52f3a310";
    assert_eq!(file, format!("agent-state 1 {hash}\n{{\n  \"version\": 1,\n  \"value\": \"one\"\n}}\n"));
}

#[test]
fn only_the_owner_can_read() {
    let (_dir, store) = store();
    store.write(CLUSTER, &"one").unwrap();
    let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode(store.dir()), 0o700);
    assert_eq!(mode(&store.dir().join("cluster")), 0o600);
    assert_eq!(mode(&store.dir().join(LOCK)), 0o600);
}

#[test]
fn two_agents_cannot_share_a_directory() {
    let (_dir, store) = store();
    let own = std::process::id();
    let error = StateDir::open(store.dir()).unwrap_err();
    assert!(matches!(&error, StateError::InUse { dir, pid: Some(pid) } if dir == store.dir() && *pid == own));
    let dir = store.dir().to_owned();
    drop(store);
    StateDir::open(&dir).unwrap();
}

#[test]
fn a_crash_after_any_operation_leaves_the_old_or_the_new_value() {
    for done in 0..=SAVE.len() {
        let (_dir, store) = store();
        store.write(CLUSTER, &"older").unwrap();
        store.write(CLUSTER, &"old").unwrap();
        store.save("cluster", &format::encode(CLUSTER, &"new").unwrap(), &SAVE[..done]).unwrap();
        let changed = SAVE[..done].contains(&SaveStep::Replace);
        assert_eq!(value(&store), Some(text(if changed { "new" } else { "old" })), "after {done}");
        let prev = store.read::<String>(PREV).unwrap().value.unwrap();
        assert!(prev == "old" || prev == "older", "after {done}: {prev}");
        // And whatever lies there, the next save works and cleans up.
        store.write(CLUSTER, &"next").unwrap();
        assert_eq!(value(&store), Some(text("next")));
        assert_eq!(files(&store), ["cluster", "cluster.prev"], "after {done}");
    }
}

#[test]
fn names_that_reach_the_disk_in_any_order_leave_the_old_or_the_new_value() {
    // Before the directory is synced, a power cut may keep any of the renames and lose the others.
    let renames = [SaveStep::LinkOld, SaveStep::KeepOld, SaveStep::Replace];
    for mask in 0..1 << renames.len() {
        let (_dir, store) = store();
        store.write(CLUSTER, &"older").unwrap();
        store.write(CLUSTER, &"old").unwrap();
        let new = format::encode(CLUSTER, &"new").unwrap();
        store.save("cluster", &new, &[SaveStep::Clear, SaveStep::WriteNew]).unwrap();
        for (i, step) in renames.iter().enumerate().filter(|(i, _)| mask & (1 << i) != 0) {
            store.save("cluster", &new, &[*step]).unwrap_or_else(|e| panic!("{mask:b} {i}: {e}"));
        }
        let found = value(&store).unwrap();
        assert!(found == "old" || found == "new", "{mask:b}: {found}");
    }
}

#[test]
fn a_crash_in_the_middle_of_the_first_save_leaves_nothing_and_says_nothing() {
    for done in 0..SAVE.len() - 2 {
        let (_dir, store) = store();
        store.save("cluster", &format::encode(CLUSTER, &"new").unwrap(), &SAVE[..done]).unwrap();
        assert_eq!(value(&store), None, "after {done}");
        store.write(CLUSTER, &"next").unwrap();
        assert_eq!(value(&store), Some(text("next")));
    }
}

/// Every way in which one copy of this value can be damaged a little.
fn damaged(whole: &[u8]) -> Vec<Vec<u8>> {
    let mut all: Vec<Vec<u8>> = (0..whole.len()).map(|len| whole[..len].to_vec()).collect();
    for bit in 0..whole.len() * 8 {
        let mut flipped = whole.to_vec();
        flipped[bit / 8] ^= 1 << (bit % 8);
        all.push(flipped);
    }
    all.push([whole, b"x"].concat());
    all.push(vec![0; whole.len()]);
    all
}

#[test]
fn a_damaged_file_is_set_aside_and_the_previous_copy_used() {
    let (_dir, store) = store();
    let path = store.dir().join("cluster");
    for bytes in damaged(&format::encode(CLUSTER, &"new").unwrap()) {
        // Written without the store, which would wait for the disk some hundred times.
        fs::write(store.dir().join("cluster.prev"), format::encode(CLUSTER, &"old").unwrap()).unwrap();
        fs::write(&path, &bytes).unwrap();
        let shown = String::from_utf8_lossy(&bytes);
        let loaded: LoadedFile<String> = store.read(CLUSTER).unwrap_or_else(|e| panic!("{shown}: {e}"));
        assert_eq!(loaded.value, Some(text("old")), "{shown}");
        let problem = loaded.problem.unwrap();
        let bad: Vec<String> = files(&store).into_iter().filter(|n| n.contains(".bad-")).collect();
        let newest = bad.last().unwrap();
        assert!(bad.len() <= BAD_KEPT);
        assert!(problem.contains(path.to_str().unwrap()), "{problem}");
        assert!(
            problem.contains(newest) && problem.contains("using its previous copy cluster.prev"),
            "{problem}"
        );
        assert_eq!(fs::read(store.dir().join(newest)).unwrap(), bytes, "it is kept as it was");
    }
}

#[test]
fn when_both_copies_are_damaged_the_problem_names_both() {
    let (_dir, store) = store();
    fs::write(store.dir().join("cluster"), "agent-state 1 00\n{}\n").unwrap();
    fs::write(store.dir().join("cluster.prev"), "").unwrap();
    let loaded: LoadedFile<String> = store.read(CLUSTER).unwrap();
    assert_eq!(loaded.value, None);
    let problem = loaded.problem.unwrap();
    assert!(problem.contains("damaged (its checksum does not match) and was moved to"), "{problem}");
    assert!(problem.contains("previous copy cluster.prev is empty and was moved to"), "{problem}");
    assert_eq!(files(&store).len(), 2);
    assert_eq!(value(&store), None, "what was set aside is not a problem for ever");
}

#[test]
fn a_missing_file_with_a_previous_copy_is_a_problem_but_no_loss() {
    let (_dir, store) = store();
    store.write(CLUSTER, &"old").unwrap();
    store.write(CLUSTER, &"new").unwrap();
    fs::remove_file(store.dir().join("cluster")).unwrap();
    let loaded: LoadedFile<String> = store.read(CLUSTER).unwrap();
    assert_eq!(loaded.value, Some(text("old")));
    assert!(loaded.problem.unwrap().ends_with("is missing; using its previous copy cluster.prev"));
}

#[test]
fn a_file_out_of_reach_is_not_taken_for_a_new_node() {
    let (_dir, store) = store();
    // A directory is what not even root can read as a file.
    fs::create_dir(store.dir().join("cluster")).unwrap();
    let error = store.read::<String>(CLUSTER).unwrap_err();
    let StateError::Read { path, source } = &error else { panic!("{error}") };
    assert_eq!((path, source.kind()), (&store.dir().join("cluster"), io::ErrorKind::IsADirectory));
    fs::write(store.dir().join("cluster.prev"), format::encode(CLUSTER, &"old").unwrap()).unwrap();
    let loaded: LoadedFile<String> = store.read(CLUSTER).unwrap();
    assert_eq!(loaded.value, Some(text("old")));
    assert!(loaded.problem.unwrap().contains("can't be read (Is a directory"));
}

/// What lies in the directory, byte by byte.
fn contents(store: &StateDir) -> Vec<(String, Vec<u8>)> {
    files(store).into_iter().map(|n| (n.clone(), fs::read(store.dir().join(n)).unwrap())).collect()
}

#[test]
fn a_whole_file_of_the_wrong_shape_stays_where_it_is_and_is_not_written_over() {
    let (_dir, store) = store();
    store.write(CLUSTER, &6).unwrap();
    store.write(CLUSTER, &7).unwrap();
    let before = contents(&store);
    let error = store.read::<String>(CLUSTER).unwrap_err();
    assert!(error.is_kept() && matches!(error, StateError::NotUnderstood { .. }), "{error}");
    let error = store.write(CLUSTER, &"older").unwrap_err();
    assert!(error.is_kept() && matches!(error, StateError::Kept { .. }), "{error}");
    assert_eq!(contents(&store), before);
    // Whoever moves it away has decided.
    fs::rename(store.dir().join("cluster"), store.dir().join("mine")).unwrap();
    store.write(CLUSTER, &"older").unwrap();
    assert_eq!(value(&store), Some(text("older")));
}

#[test]
fn the_file_of_a_newer_agent_stays_where_it_is_and_is_read_when_that_agent_comes_back() {
    let newer = StateFile { version: 3, ..CLUSTER };
    for read_first in [true, false] {
        let (_dir, store) = store();
        store.write(CLUSTER, &"one").unwrap();
        store.write(newer, &["two"]).unwrap();
        let before = contents(&store);
        if read_first {
            let error = store.read::<String>(CLUSTER).unwrap_err();
            assert!(matches!(error, StateError::Newer { version: 3, highest: 1, .. }), "{error}");
        }
        assert!(store.write(CLUSTER, &"older").unwrap_err().is_kept());
        assert_eq!(contents(&store), before);
        assert_eq!(store.read::<Vec<String>>(newer).unwrap().value, Some(vec![text("two")]));
    }
}

#[test]
fn the_previous_copy_of_a_newer_agent_is_kept_too() {
    let (_dir, store) = store();
    let newer = StateFile { version: 2, ..CLUSTER };
    store.write(newer, &"one").unwrap();
    store.write(newer, &"two").unwrap();
    fs::write(store.dir().join("cluster"), "garbage").unwrap();
    assert!(store.read::<String>(CLUSTER).unwrap_err().is_kept());
    assert!(store.write(CLUSTER, &"older").unwrap_err().is_kept());
    assert_eq!(store.read::<String>(newer).unwrap().value, Some(text("one")));
}

#[test]
fn a_newer_agent_reads_what_an_older_one_wrote_and_the_older_one_ignores_unknown_fields() {
    #[derive(serde::Serialize, serde::Deserialize)]
    struct Old {
        name: String,
    }
    let (_dir, store) = store();
    store.write(CLUSTER, &serde_json::json!({ "name": "m1", "of_next_year": [1, { "x": null }] })).unwrap();
    assert_eq!(store.read::<Old>(CLUSTER).unwrap().value.unwrap().name, "m1");
    store.write(CLUSTER, &Old { name: text("m2") }).unwrap();
    let newer = StateFile { version: 2, ..CLUSTER };
    assert_eq!(store.read::<Old>(newer).unwrap().value.unwrap().name, "m2");
}

#[test]
fn a_file_in_a_newer_format_stays_where_it_is() {
    let (_dir, store) = store();
    fs::write(store.dir().join("cluster"), format::newer_for_test(2, "\"x\"")).unwrap();
    let before = contents(&store);
    let error = store.read::<String>(CLUSTER).unwrap_err();
    assert!(matches!(error, StateError::Newer { what: "format", version: 2, highest: 1, .. }), "{error}");
    assert!(store.write(CLUSTER, &"older").unwrap_err().is_kept());
    assert_eq!(contents(&store), before);
}

#[test]
fn a_damaged_file_does_not_push_out_the_good_previous_copy() {
    let (_dir, store) = store();
    store.write(CLUSTER, &"old").unwrap();
    store.write(CLUSTER, &"new").unwrap();
    fs::write(store.dir().join("cluster"), "garbage").unwrap();
    let bytes = format::encode(CLUSTER, &"next").unwrap();
    store.save("cluster", &bytes, &SAVE[..4]).unwrap();
    assert_eq!(store.read::<String>(CLUSTER).unwrap().value, Some(text("old")));
}

#[test]
fn a_save_that_cannot_begin_keeps_the_old_value_and_leaves_nothing() {
    let (_dir, store) = store();
    store.write(CLUSTER, &"old").unwrap();
    fs::create_dir(store.dir().join("cluster.prev.new")).unwrap();
    let error = store.write(CLUSTER, &"new").unwrap_err();
    assert!(
        matches!(&error, StateError::Write { path, .. } if path.ends_with("cluster.prev.new")),
        "{error}"
    );
    assert_eq!(value(&store), Some(text("old")));
    assert!(!store.dir().join("cluster.new").exists());
}

#[test]
fn removing_all_leaves_foreign_files_alone() {
    let (_dir, store) = store();
    for v in ["one", "two"] {
        store.write(CLUSTER, &v).unwrap();
        store.write(StateFile::first("identity"), &v).unwrap();
    }
    fs::write(store.dir().join("cluster"), "").unwrap();
    fs::write(store.dir().join("cluster.bad-1700"), "junk").unwrap();
    fs::write(store.dir().join("notes.bad-weather"), "mine").unwrap();
    fs::create_dir(store.dir().join("folder")).unwrap();
    let left = store.remove_all().unwrap();
    assert_eq!(left, ["folder", "notes.bad-weather"].map(|n| store.dir().join(n)));
    assert_eq!(files(&store), ["folder", "notes.bad-weather"]);
}

#[test]
fn purging_removes_the_directory_too() {
    let (_dir, store) = store();
    store.write(CLUSTER, &"one").unwrap();
    fs::write(store.dir().join(EVENTS), "{}\n").unwrap();
    fs::write(store.dir().join(EVENTS_OLD), "{}\n").unwrap();
    let dir = store.dir().to_owned();
    assert!(store.purge().unwrap().is_empty());
    assert!(!dir.exists());
}

#[test]
fn a_directory_that_cannot_be_made_is_an_error() {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("file"), "").unwrap();
    let error = StateDir::open(&dir.path().join("file/state")).unwrap_err();
    assert!(matches!(&error, StateError::Create { dir, .. } if dir.ends_with("file/state")), "{error}");
}

/// A file system of its own for one test: 64 kB.
fn small_disk(test: &str) -> Option<PathBuf> {
    let mount = r#"mount -t tmpfs -o size=64k none "$PWD"; cd "$PWD""#;
    in_namespaces(&format!("state::tests::{test}"), &["--mount"], mount)
}

#[test]
fn a_full_disk_keeps_the_old_value_and_says_so() {
    let Some(dir) = small_disk("a_full_disk_keeps_the_old_value_and_says_so") else { return };
    let store = StateDir::open(&dir).unwrap();
    store.write(CLUSTER, &"old").unwrap();
    let error = store.write(CLUSTER, &"x".repeat(100_000)).unwrap_err();
    let StateError::Write { act: "write", source, .. } = &error else { panic!("{error}") };
    assert_eq!(source.kind(), io::ErrorKind::StorageFull);
    assert_eq!(value(&store), Some(text("old")));
    assert_eq!(files(&store), ["cluster"], "the half-written file does not keep the disk full");
    store.write(CLUSTER, &"new").unwrap();
    assert_eq!(value(&store), Some(text("new")));
}

#[test]
fn a_read_only_directory_is_read_and_locked_and_says_so() {
    let Some(dir) = small_disk("a_read_only_directory_is_read_and_locked_and_says_so") else { return };
    let store = StateDir::open(&dir).unwrap();
    store.write(CLUSTER, &"old").unwrap();
    store.write(CLUSTER, &"new").unwrap();
    fs::write(dir.join("cluster"), "garbage").unwrap();
    drop(store);
    let mount = Command::new("mount").args(["-o", "remount,ro"]).arg(&dir).status().unwrap();
    assert!(mount.success());
    let store = StateDir::open(&dir).unwrap();
    assert!(matches!(StateDir::open(&dir), Err(StateError::InUse { .. })));
    let loaded: LoadedFile<String> = store.read(CLUSTER).unwrap();
    assert_eq!(loaded.value, Some(text("old")));
    assert!(loaded.problem.unwrap().contains("and cannot be moved aside (Read-only file system"));
    let error = store.write(CLUSTER, &"next").unwrap_err();
    let StateError::Write { source, .. } = &error else { panic!("{error}") };
    assert_eq!(source.kind(), io::ErrorKind::ReadOnlyFilesystem);
}

#[test]
fn mutations_of_a_file_are_damage_or_read_as_they_stand() {
    let whole = format::encode(CLUSTER, &BTreeMap::from([("one", [1, 2]), ("two", [3, 4])])).unwrap();
    let newer = [b"agent-state 2 ".as_slice(), &whole[14..]].concat();
    let corpus = [whole, newer, b"agent-state ".to_vec()];
    let mut mutator = Mutator::new(7);
    for _ in 0..20_000 {
        let bytes = mutator.of(&corpus);
        if let FileContent::Whole(body) = format::decode(&bytes) {
            assert!(corpus[0].ends_with(body), "{}", String::from_utf8_lossy(&bytes));
        }
        // The body, as if its checksum were right.
        let _ = format::value::<BTreeMap<String, [u8; 2]>>(CLUSTER, &bytes);
    }
}

#[test]
fn a_file_larger_than_any_is_set_aside_and_not_read_whole() {
    let (_dir, store) = store();
    store.write(CLUSTER, &"one").unwrap();
    store.write(CLUSTER, &"two").unwrap();
    fs::File::create(store.dir().join("cluster")).unwrap().set_len(1 << 40).unwrap();
    let loaded: LoadedFile<String> = store.read(CLUSTER).unwrap();
    assert_eq!(loaded.value, Some(text("one")));
    assert!(loaded.problem.is_some_and(|problem| problem.contains("larger")));
}
