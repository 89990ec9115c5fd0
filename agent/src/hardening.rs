//! What this process drops for good when it starts.

use rustix::process::{DumpableBehavior, Resource, Rlimit, getrlimit, set_dumpable_behavior, setrlimit};

/// No core dumps: the node's key, the gossip keys and the invites are in memory, and a core is a file, or
/// mail to the distribution's makers.
///
/// The limit alone does not work when cores are piped to a program, which gets them whatever the limit is
/// (core(5)); not being dumpable does. That also prevents other processes of the same user from inspecting
/// this one by /proc or ptrace(2), which is no loss: this process can still read all of its own /proc/self,
/// and root with CAP_SYS_PTRACE, as with gdb or strace, that of every process. It ends with exec, so hooks
/// run as before, except for the soft limit of cores.
pub(crate) fn no_core_dumps() {
    // Neither fails for a process that lowers its own; a failure would not prevent serving.
    let maximum = getrlimit(Resource::Core).maximum;
    let _ = setrlimit(Resource::Core, Rlimit { current: Some(0), maximum });
    let _ = set_dumpable_behavior(DumpableBehavior::NotDumpable);
}

#[cfg(test)]
mod tests {
    use std::os::unix::process::ExitStatusExt;
    use std::process::Command;

    use super::*;

    /// Set in the process that aborts.
    const ABORTS: &str = "AGENT_TEST_ABORTS";

    #[test]
    fn a_process_that_aborts_leaves_no_core() {
        if std::env::var_os(ABORTS).is_some() {
            no_core_dumps();
            // What the agent needs of its own /proc is still there.
            assert!(std::fs::read_dir("/proc/self/fd").unwrap().flatten().count() > 0);
            let own = std::fs::read_link("/proc/self/exe").unwrap();
            assert!(own.is_file() && std::fs::File::open("/proc/self/exe").is_ok());
            // The second measure works without the limit, too.
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
