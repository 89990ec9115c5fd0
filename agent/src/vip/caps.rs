//! The two capabilities that virtual IPs need, and nothing else does. Every thread starts without them in
//! effect; only the thread of the virtual IPs takes them up, and only while there are any, or a node-local address.

use std::cell::Cell;

use rustix::thread::{CapabilitySet, capabilities, set_capabilities};

const NEEDED: CapabilitySet = CapabilitySet::NET_ADMIN.union(CapabilitySet::NET_RAW);

/// Capabilities that this process may not take up.
#[derive(Debug, thiserror::Error)]
#[error(
    "{} missing: add it to CapabilityBoundingSet= of the unit, or run the agent as root",
    .0.join(" and ")
)]
pub(super) struct MissingCapabilities(Vec<&'static str>);

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
