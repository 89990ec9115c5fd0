use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;

use super::*;
use crate::testing::in_namespaces;

fn store() -> (tempfile::TempDir, Store) {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(&dir.path().join("state")).unwrap();
    (dir, store)
}

fn text(s: &str) -> String {
    s.to_owned()
}

fn value(store: &Store) -> Option<String> {
    let loaded: Loaded<String> = store.read("cluster").unwrap();
    assert_eq!(loaded.problem, None);
    loaded.value
}

fn files(store: &Store) -> Vec<String> {
    store.names().unwrap().into_iter().filter(|n| n != LOCK).collect()
}

#[test]
fn what_was_written_is_read_and_the_one_before_is_kept() {
    let (_dir, store) = store();
    assert_eq!(value(&store), None);
    store.write("cluster", &"one").unwrap();
    assert_eq!(value(&store), Some(text("one")));
    assert_eq!(files(&store), ["cluster"]);
    store.write("cluster", &"two").unwrap();
    store.write("cluster", &"three").unwrap();
    assert_eq!(value(&store), Some(text("three")));
    assert_eq!(files(&store), ["cluster", "cluster.prev"]);
    assert_eq!(store.read::<String>("cluster.prev").unwrap().value, Some(text("two")));
}

#[test]
fn a_file_can_be_checked_by_hand_with_sha256sum() {
    let (_dir, store) = store();
    store.write("cluster", &"one").unwrap();
    let file = fs::read_to_string(store.dir().join("cluster")).unwrap();
    // printf '"one"\n' | sha256sum
    let hash = "9b9150f062f17c62a85d839d86fb5253802c63079f6733832008d6e1e14db66e";
    assert_eq!(file, format!("agent-state 1 {hash}\n\"one\"\n"));
}

#[test]
fn only_the_owner_can_read() {
    let (_dir, store) = store();
    store.write("cluster", &"one").unwrap();
    let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode(store.dir()), 0o700);
    assert_eq!(mode(&store.dir().join("cluster")), 0o600);
    assert_eq!(mode(&store.dir().join(LOCK)), 0o600);
}

#[test]
fn two_agents_cannot_share_a_directory() {
    let (_dir, store) = store();
    let error = Store::open(store.dir()).unwrap_err().to_string();
    let pid = std::process::id();
    assert!(error.contains(&format!("(process {pid})")), "{error}");
    assert!(error.contains(store.dir().to_str().unwrap()) && error.contains("--state-dir"), "{error}");
    let dir = store.dir().to_owned();
    drop(store);
    Store::open(&dir).unwrap();
}

#[test]
fn a_crash_after_any_operation_leaves_the_old_or_the_new_value() {
    for done in 0..=SAVE.len() {
        let (_dir, store) = store();
        store.write("cluster", &"older").unwrap();
        store.write("cluster", &"old").unwrap();
        store.save("cluster", &format::encode(&"new").unwrap(), &SAVE[..done]).unwrap();
        let changed = SAVE[..done].contains(&Step::Replace);
        assert_eq!(value(&store), Some(text(if changed { "new" } else { "old" })), "after {done}");
        let prev = store.read::<String>("cluster.prev").unwrap().value.unwrap();
        assert!(prev == "old" || prev == "older", "after {done}: {prev}");
        // And whatever lies there, the next save works and cleans up.
        store.write("cluster", &"next").unwrap();
        assert_eq!(value(&store), Some(text("next")));
        assert_eq!(files(&store), ["cluster", "cluster.prev"], "after {done}");
    }
}

#[test]
fn names_that_reach_the_disk_in_any_order_leave_the_old_or_the_new_value() {
    // Before the directory is synced, a power cut may keep any of the renames and lose the others.
    let renames = [Step::LinkOld, Step::KeepOld, Step::Replace];
    for mask in 0..1 << renames.len() {
        let (_dir, store) = store();
        store.write("cluster", &"older").unwrap();
        store.write("cluster", &"old").unwrap();
        let new = format::encode(&"new").unwrap();
        store.save("cluster", &new, &[Step::Clear, Step::WriteNew]).unwrap();
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
        store.save("cluster", &format::encode(&"new").unwrap(), &SAVE[..done]).unwrap();
        assert_eq!(value(&store), None, "after {done}");
        store.write("cluster", &"next").unwrap();
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
    for bytes in damaged(&format::encode(&"new").unwrap()) {
        // Written without the store, which would wait for the disk some hundred times.
        fs::write(store.dir().join("cluster.prev"), format::encode(&"old").unwrap()).unwrap();
        fs::write(&path, &bytes).unwrap();
        let shown = String::from_utf8_lossy(&bytes);
        let loaded: Loaded<String> = store.read("cluster").unwrap_or_else(|e| panic!("{shown}: {e}"));
        assert_eq!(loaded.value, Some(text("old")), "{shown}");
        let problem = loaded.problem.unwrap();
        let bad: Vec<String> = files(&store).into_iter().filter(|n| n.contains(".bad-")).collect();
        let newest = bad.last().unwrap();
        assert!(bad.len() <= BAD_KEPT);
        assert!(problem.contains(path.to_str().unwrap()), "{problem}");
        assert!(problem.contains(newest) && problem.contains("cluster.prev is used"), "{problem}");
        assert_eq!(fs::read(store.dir().join(newest)).unwrap(), bytes, "it is kept as it was");
    }
}

#[test]
fn when_both_copies_are_damaged_the_problem_names_both() {
    let (_dir, store) = store();
    fs::write(store.dir().join("cluster"), "agent-state 1 00\n{}\n").unwrap();
    fs::write(store.dir().join("cluster.prev"), "").unwrap();
    let loaded: Loaded<String> = store.read("cluster").unwrap();
    assert_eq!(loaded.value, None);
    let problem = loaded.problem.unwrap();
    assert!(problem.contains("garbled (its checksum does not match) and was set aside"), "{problem}");
    assert!(problem.contains("previous copy cluster.prev is empty and was set aside as"), "{problem}");
    assert_eq!(files(&store).len(), 2);
    assert_eq!(value(&store), None, "what was set aside is not a problem for ever");
}

#[test]
fn a_missing_file_with_a_previous_copy_is_a_problem_but_no_loss() {
    let (_dir, store) = store();
    store.write("cluster", &"old").unwrap();
    store.write("cluster", &"new").unwrap();
    fs::remove_file(store.dir().join("cluster")).unwrap();
    let loaded: Loaded<String> = store.read("cluster").unwrap();
    assert_eq!(loaded.value, Some(text("old")));
    assert!(loaded.problem.unwrap().ends_with("is missing; its previous copy cluster.prev is used"));
}

#[test]
fn a_file_out_of_reach_is_not_taken_for_a_new_node() {
    let (_dir, store) = store();
    // A directory is what not even root can read as a file.
    fs::create_dir(store.dir().join("cluster")).unwrap();
    let error = store.read::<String>("cluster").unwrap_err().to_string();
    assert!(error.starts_with("can't read ") && error.contains("cluster: Is a directory"), "{error}");
    fs::write(store.dir().join("cluster.prev"), format::encode(&"old").unwrap()).unwrap();
    let loaded: Loaded<String> = store.read("cluster").unwrap();
    assert_eq!(loaded.value, Some(text("old")));
    assert!(loaded.problem.unwrap().contains("can't be read (Is a directory"));
}

#[test]
fn a_whole_file_of_the_wrong_shape_is_not_lost() {
    let (_dir, store) = store();
    store.write("cluster", &7).unwrap();
    let loaded: Loaded<String> = store.read("cluster").unwrap();
    assert_eq!(loaded.value, None);
    assert!(loaded.problem.unwrap().contains("is whole but not understood (invalid type: integer `7`"));
    assert_eq!(files(&store).len(), 1);
}

#[test]
fn the_file_of_a_newer_agent_stays_where_it_is() {
    let (_dir, store) = store();
    fs::write(store.dir().join("cluster"), format::newer_for_test(2, "\"x\"")).unwrap();
    let error = store.read::<String>("cluster").unwrap_err().to_string();
    assert!(error.contains("written by a newer agent (format 2, this one reads 1)"), "{error}");
    assert_eq!(files(&store), ["cluster"]);
}

#[test]
fn a_damaged_file_does_not_push_out_the_good_previous_copy() {
    let (_dir, store) = store();
    store.write("cluster", &"old").unwrap();
    store.write("cluster", &"new").unwrap();
    fs::write(store.dir().join("cluster"), "garbage").unwrap();
    let bytes = format::encode(&"next").unwrap();
    store.save("cluster", &bytes, &SAVE[..4]).unwrap();
    assert_eq!(store.read::<String>("cluster").unwrap().value, Some(text("old")));
}

#[test]
fn a_save_that_cannot_begin_keeps_the_old_value_and_leaves_nothing() {
    let (_dir, store) = store();
    store.write("cluster", &"old").unwrap();
    fs::create_dir(store.dir().join("cluster.prev.new")).unwrap();
    let error = store.write("cluster", &"new").unwrap_err().to_string();
    assert!(error.contains("cluster.prev.new") && error.contains("goes on without saving"), "{error}");
    assert_eq!(value(&store), Some(text("old")));
    assert!(!store.dir().join("cluster.new").exists());
}

#[test]
fn removing_all_leaves_foreign_files_alone() {
    let (_dir, store) = store();
    for v in ["one", "two"] {
        store.write("cluster", &v).unwrap();
        store.write("identity", &v).unwrap();
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
    store.write("cluster", &"one").unwrap();
    fs::write(store.dir().join(EVENTS), "{}\n").unwrap();
    fs::write(store.dir().join(EVENTS_OLD), "{}\n").unwrap();
    let dir = store.dir().to_owned();
    assert!(store.purge().unwrap().is_empty());
    assert!(!dir.exists());
}

#[test]
fn a_directory_that_cannot_be_made_says_what_to_do() {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("file"), "").unwrap();
    let error = Store::open(&dir.path().join("file/state")).unwrap_err().to_string();
    assert!(error.contains("file/state: ") && error.ends_with("choose another by --state-dir"), "{error}");
}

/// A file system of its own for one test: 64 kB.
fn small_disk(test: &str) -> Option<PathBuf> {
    let mount = r#"mount -t tmpfs -o size=64k none "$PWD"; cd "$PWD""#;
    in_namespaces(&format!("state::tests::{test}"), &["--mount"], mount)
}

#[test]
fn a_full_disk_keeps_the_old_value_and_says_so() {
    let Some(dir) = small_disk("a_full_disk_keeps_the_old_value_and_says_so") else { return };
    let store = Store::open(&dir).unwrap();
    store.write("cluster", &"old").unwrap();
    let error = store.write("cluster", &"x".repeat(100_000)).unwrap_err().to_string();
    let said = format!("state directory {} is full: write ", dir.display());
    assert!(error.starts_with(&said), "{error}");
    assert!(error.ends_with("free space, the agent goes on without saving"), "{error}");
    assert_eq!(value(&store), Some(text("old")));
    assert_eq!(files(&store), ["cluster"], "the half-written file does not keep the disk full");
    store.write("cluster", &"new").unwrap();
    assert_eq!(value(&store), Some(text("new")));
}

#[test]
fn a_read_only_directory_is_read_and_locked_and_says_so() {
    let Some(dir) = small_disk("a_read_only_directory_is_read_and_locked_and_says_so") else { return };
    let store = Store::open(&dir).unwrap();
    store.write("cluster", &"old").unwrap();
    store.write("cluster", &"new").unwrap();
    fs::write(dir.join("cluster"), "garbage").unwrap();
    drop(store);
    let mount = Command::new("mount").args(["-o", "remount,ro"]).arg(&dir).status().unwrap();
    assert!(mount.success());
    let store = Store::open(&dir).unwrap();
    assert!(matches!(Store::open(&dir), Err(StateError::InUse { .. })));
    let loaded: Loaded<String> = store.read("cluster").unwrap();
    assert_eq!(loaded.value, Some(text("old")));
    assert!(loaded.problem.unwrap().contains("and can't be set aside (Read-only file system"));
    let error = store.write("cluster", &"next").unwrap_err().to_string();
    assert!(error.contains("is read-only: ") && error.contains("make it writable"), "{error}");
}
