//! What this process gives up for good when it starts.

use rustix::process::{DumpableBehavior, Resource, Rlimit, getrlimit, set_dumpable_behavior, setrlimit};

/// No core dumps: the node's key, the gossip keys and the invites lie in memory, and a core is a file, or mail
/// to whoever made the distribution.
///
/// The limit alone does not hold where cores are piped to a program, which gets them whatever the limit is
/// (core(5)); not being dumpable does. What that also takes away, other processes of the same user looking
/// into this one by /proc or ptrace(2), is no loss: this process still reads all of its own /proc/self, and
/// root with CAP_SYS_PTRACE, as with gdb or strace, that of everyone. It ends with exec, so hooks are as they
/// always were, but for the soft limit of cores.
pub(crate) fn no_core_dumps() {
    // Neither fails for a process that lowers its own; if one did, it would be no reason not to serve.
    let maximum = getrlimit(Resource::Core).maximum;
    let _ = setrlimit(Resource::Core, Rlimit { current: Some(0), maximum });
    let _ = set_dumpable_behavior(DumpableBehavior::NotDumpable);
}

#[cfg(test)]
mod tests {
    use std::os::unix::process::ExitStatusExt;
    use std::process::Command;

    use super::*;

    /// Set in the process that ends itself.
    const ABORTS: &str = "AGENT_TEST_ABORTS";

    #[test]
    fn a_process_that_aborts_leaves_no_core() {
        if std::env::var_os(ABORTS).is_some() {
            no_core_dumps();
            // What the agent needs of its own /proc is still there.
            assert!(std::fs::read_dir("/proc/self/fd").unwrap().flatten().count() > 0);
            let own = std::fs::read_link("/proc/self/exe").unwrap();
            assert!(own.is_file() && std::fs::File::open("/proc/self/exe").is_ok());
            // The other half holds without the limit, too.
            let maximum = getrlimit(Resource::Core).maximum;
            setrlimit(Resource::Core, Rlimit { current: maximum, maximum }).unwrap();
            std::process::abort();
        }
        let dir = tempfile::tempdir().unwrap();
        let run = Command::new("sh")
            .args(["-c", r#"ulimit -c unlimited; exec "$0" --exact hardening::tests::a_process_that_aborts_leaves_no_core"#])
            .arg(std::env::current_exe().unwrap())
            .env(ABORTS, "1")
            .current_dir(dir.path())
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&run.stderr);
        assert_eq!(run.status.signal(), Some(6), "{said}");
        assert!(!run.status.core_dumped(), "it left a core");
    }
}
