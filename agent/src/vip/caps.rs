//! The two capabilities that virtual IPs need, and nothing else does. Every thread starts without them in
//! effect; only the thread of the virtual IPs takes them up, and only while there are any, or a node-local address.

use std::cell::Cell;

use rustix::thread::{CapabilitySet, capabilities, set_capabilities};

const NEEDED: CapabilitySet = CapabilitySet::NET_ADMIN.union(CapabilitySet::NET_RAW);

/// Capabilities that this process may not take up.
#[derive(Debug, thiserror::Error)]
#[error("{} missing: {}", .0.join(" and "), remedy(.0, Launcher::of_this_process()))]
pub(super) struct MissingCapabilities(Vec<&'static str>);

/// Who has started the agent, and so may give it more.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Launcher {
    /// systemd, which sets INVOCATION_ID for every service.
    Systemd,
    /// A container's runtime, or another supervisor: it is root, and that is not enough.
    Container,
    /// A user who is not root.
    User,
}

impl Launcher {
    fn of_this_process() -> Launcher {
        if std::env::var_os("INVOCATION_ID").is_some() {
            Launcher::Systemd
        } else if rustix::process::geteuid().is_root() {
            Launcher::Container
        } else {
            Launcher::User
        }
    }
}

/// What gives the capabilities.
fn remedy(names: &[&str], launcher: Launcher) -> String {
    match launcher {
        Launcher::Systemd => "add it to CapabilityBoundingSet= of the unit".to_owned(),
        Launcher::User => "run the agent as root".to_owned(),
        Launcher::Container => {
            let options: Vec<String> =
                names.iter().map(|name| format!("--cap-add={}", name.trim_start_matches("CAP_"))).collect();
            format!(
                "root does not have it here; start the container with {} --network=host",
                options.join(" ")
            )
        }
    }
}

/// Puts them out of effect for this thread and those that it starts. They stay permitted, so that a virtual
/// IP that is set later needs no restart.
pub(crate) fn drop_capabilities() {
    change(|effective, _| effective.difference(NEEDED));
}

thread_local! {
    /// How many want them in effect in this thread.
    static USERS: Cell<usize> = const { Cell::new(0) };
}

/// They are in effect for this thread while there is one of these, which stays in its thread.
#[derive(Debug)]
pub(super) struct RaisedCapabilities {
    permitted: CapabilitySet,
}

impl RaisedCapabilities {
    /// Puts them into effect, as far as they are permitted.
    pub(super) fn raise() -> RaisedCapabilities {
        USERS.set(USERS.get() + 1);
        let permitted = change(|effective, permitted| effective.union(NEEDED.intersection(permitted)));
        RaisedCapabilities { permitted }
    }

    /// What is not permitted.
    pub(super) fn missing(&self) -> Option<MissingCapabilities> {
        let missing = NEEDED.difference(self.permitted);
        let names = [(CapabilitySet::NET_ADMIN, "CAP_NET_ADMIN"), (CapabilitySet::NET_RAW, "CAP_NET_RAW")];
        let names: Vec<&'static str> =
            names.into_iter().filter(|(one, _)| missing.contains(*one)).map(|(_, name)| name).collect();
        (!names.is_empty()).then_some(MissingCapabilities(names))
    }
}

impl Drop for RaisedCapabilities {
    fn drop(&mut self) {
        let users = USERS.get().saturating_sub(1);
        USERS.set(users);
        if users == 0 {
            drop_capabilities();
        }
    }
}

/// Changes what is in effect; returns what is permitted.
fn change(to: impl FnOnce(CapabilitySet, CapabilitySet) -> CapabilitySet) -> CapabilitySet {
    let Ok(mut sets) = capabilities(None) else { return CapabilitySet::empty() };
    let effective = to(sets.effective, sets.permitted);
    if effective != sets.effective {
        sets.effective = effective;
        // Refused only by a filter of system calls; then what was in effect stays so.
        let _ = set_capabilities(None, sets);
    }
    sets.permitted
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_missing_is_asked_of_whoever_can_give_it() {
        let names = ["CAP_NET_ADMIN", "CAP_NET_RAW"];
        assert_eq!(remedy(&names, Launcher::User), "run the agent as root");
        assert!(remedy(&names, Launcher::Systemd).contains("of the unit"));
        let of_container = remedy(&names, Launcher::Container);
        assert!(of_container.contains("--cap-add=NET_ADMIN --cap-add=NET_RAW"), "{of_container}");
        assert!(!of_container.contains("as root"), "{of_container}");
    }

    #[test]
    fn capabilities_are_laid_down_and_taken_up_by_one_thread_alone() {
        let effective = || capabilities(None).unwrap().effective.intersection(NEEDED);
        let before = effective();
        std::thread::spawn(move || {
            drop_capabilities();
            assert_eq!(effective(), CapabilitySet::empty());
            std::thread::spawn(move || {
                assert_eq!(effective(), CapabilitySet::empty(), "threads inherit it");
                let permitted = capabilities(None).unwrap().permitted.contains(NEEDED);
                let first = RaisedCapabilities::raise();
                assert_eq!(first.missing().is_none(), permitted);
                let second = RaisedCapabilities::raise();
                drop(first);
                assert_eq!(effective().contains(NEEDED), permitted, "the second one needs them");
                drop(second);
                assert_eq!(effective(), CapabilitySet::empty());
            })
            .join()
            .unwrap();
            assert_eq!(effective(), CapabilitySet::empty());
        })
        .join()
        .unwrap();
        assert_eq!(effective(), before);
    }
}
