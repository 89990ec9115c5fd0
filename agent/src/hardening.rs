//! What this process drops for good when it starts.

use rustix::process::{DumpableBehavior, Resource, Rlimit, getrlimit, set_dumpable_behavior, setrlimit};
use rustix::thread::{
    CapabilitySet, capabilities, remove_capability_from_bounding_set, set_capabilities, set_no_new_privs,
};

/// What the unit leaves to the agent: to give its socket to a group, to listen below 1024, and what virtual IPs need.
const KEPT: CapabilitySet = CapabilitySet::CHOWN
    .union(CapabilitySet::NET_BIND_SERVICE)
    .union(CapabilitySet::NET_ADMIN)
    .union(CapabilitySet::NET_RAW);

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

/// Gives up every capability that the unit would not have given, for this thread and those that it starts, for hooks
/// and for the program that an upgrade puts in this one's place: that one is root's and so gets all of the bounding
/// set, which is what the agent needs. To be called before there are threads.
///
/// Under the unit there is nothing left to do. Other supervisors, and people, start the agent with all that root has.
pub(crate) fn keep_only_needed_capabilities() {
    // Without CAP_SETPCAP the bounding set stays as it is: then it was made smaller by whoever started this, or a
    // child can't be root.
    for bit in 0..u64::BITS {
        let one = CapabilitySet::from_bits_retain(1 << bit);
        if !KEPT.contains(one) {
            let _ = remove_capability_from_bounding_set(one);
        }
    }
    if let Ok(mut sets) = capabilities(None) {
        sets.effective = sets.effective.intersection(KEPT);
        sets.permitted = sets.permitted.intersection(KEPT);
        sets.inheritable = sets.inheritable.intersection(KEPT);
        let _ = set_capabilities(None, sets);
    }
    let _ = set_no_new_privs(true);
}

#[cfg(test)]
mod tests {
    use std::os::unix::process::ExitStatusExt;
    use std::process::Command;

    use rustix::thread::capability_is_in_bounding_set;

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

    #[test]
    fn what_is_kept_is_what_the_unit_gives() {
        let line = crate::doctor::UNIT.lines().find_map(|line| line.strip_prefix("CapabilityBoundingSet="));
        let named: Vec<&str> = line.unwrap().split(' ').collect();
        let kept: Vec<String> = KEPT.iter_names().map(|(name, _)| format!("CAP_{name}")).collect();
        assert_eq!(named, kept);
    }

    #[test]
    fn neither_this_thread_nor_what_it_starts_has_more_than_that() {
        let began = std::thread::spawn(|| {
            let before = capabilities(None).unwrap();
            keep_only_needed_capabilities();
            let after = capabilities(None).unwrap();
            assert_eq!(after.permitted, before.permitted.intersection(KEPT));
            assert_eq!(after.effective, before.effective.intersection(KEPT));
            let may_bound = before.effective.contains(CapabilitySet::SETPCAP);
            for one in CapabilitySet::all() {
                let is_left = capability_is_in_bounding_set(one).unwrap_or(false);
                assert!(!is_left || KEPT.contains(one) || !may_bound, "{one:?} is left");
            }
            let child =
                Command::new("grep").args(["-E", "Cap(Eff|Prm)|NoNewPrivs", "/proc/self/status"]).output();
            (before.permitted, String::from_utf8(child.unwrap().stdout).unwrap())
        });
        let (before, child) = began.join().unwrap();
        for line in child.lines() {
            let (name, value) = line.split_once(":\t").unwrap();
            match name {
                "NoNewPrivs" => assert_eq!(value, "1"),
                _ => {
                    let sets = CapabilitySet::from_bits_retain(u64::from_str_radix(value, 16).unwrap());
                    assert_eq!(sets.difference(KEPT.intersection(before)), CapabilitySet::empty(), "{line}");
                }
            }
        }
        assert_eq!(child.lines().count(), 3, "{child}");
        // This thread has what it had.
        assert_eq!(capabilities(None).unwrap().permitted, before);
    }
}
