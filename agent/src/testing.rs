//! Test helpers of several modules: namespaces for tests that need a disk or a network of their own, mutations of
//! known bytes, and the status of a virtual IP.

use std::path::PathBuf;
use std::process::Command;

use proto::cause::Reason;
use proto::control::{VipState, VipStatus, VipTakeovers};
use proto::time::UnixMs;

/// The mutations that proto's decoders are tested with.
#[path = "../../proto/tests/fuzz/mutate.rs"]
pub(crate) mod mutate;

/// Set inside: a directory for the test.
const INSIDE: &str = "AGENT_TEST_NAMESPACES";

/// The status of 10.9.0.50, which has no owner and no candidates.
pub(crate) fn vip_status(state: VipState, reason: &str) -> VipStatus {
    VipStatus {
        address: [10, 9, 0, 50].into(),
        state,
        owner: None,
        epoch: 1,
        interface: None,
        since_unix_ms: UnixMs(1),
        cause: None,
        reason: Reason::new(reason),
        candidates: Vec::new(),
        gains: VipTakeovers::default(),
    }
}

/// Runs one test of this binary again, in its own temporary namespaces, after `setup` has run in a shell
/// there. Returns the test's directory inside, and None outside, once the inside has passed. User namespaces
/// make it work for everyone, not only for root.
pub(crate) fn in_namespaces(test: &str, flags: &[&str], setup: &str) -> Option<PathBuf> {
    if let Some(dir) = std::env::var_os(INSIDE) {
        return Some(dir.into());
    }
    let dir = tempfile::tempdir().unwrap();
    let run = Command::new("unshare")
        .arg("--map-root-user")
        .args(flags)
        .args(["sh", "-ec", &format!(r#"cd "${INSIDE}"; {setup}; exec "$0" --exact "$1" --nocapture"#)])
        .arg(std::env::current_exe().unwrap())
        .arg(test)
        .env(INSIDE, dir.path())
        .output()
        .expect("this test needs `unshare` of util-linux");
    let (out, err) = (String::from_utf8_lossy(&run.stdout), String::from_utf8_lossy(&run.stderr));
    assert!(
        run.status.success() && out.contains("1 passed"),
        "{test} failed in its namespaces, or this system allows no user namespaces:\n{out}{err}"
    );
    None
}

/// A directory whose parents all belong to root or the user who runs the tests: next to the tests' own
/// binary, since everyone may write the usual place.
pub(crate) fn trusted_dir() -> tempfile::TempDir {
    let binary = std::env::current_exe().unwrap();
    let dir = tempfile::tempdir_in(binary.parent().unwrap()).unwrap();
    let open = std::os::unix::fs::PermissionsExt::from_mode(0o755);
    std::fs::set_permissions(dir.path(), open).unwrap();
    dir
}
