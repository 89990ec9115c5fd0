//! The two capabilities that virtual IPs need, and nothing else does. Every thread starts without them in
//! effect; only the thread of the virtual IPs takes them up, and only while there are any.

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

/// Puts them into effect for this thread.
///
/// # Errors
/// What is missing.
pub(super) fn raise_capabilities() -> Result<(), MissingCapabilities> {
    let permitted = change(|effective, permitted| effective.union(NEEDED.intersection(permitted)));
    let missing = NEEDED.difference(permitted);
    let names = [(CapabilitySet::NET_ADMIN, "CAP_NET_ADMIN"), (CapabilitySet::NET_RAW, "CAP_NET_RAW")];
    let names: Vec<&'static str> =
        names.into_iter().filter(|(one, _)| missing.contains(*one)).map(|(_, name)| name).collect();
    if names.is_empty() {
        return Ok(());
    }
    Err(MissingCapabilities(names))
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
                assert_eq!(raise_capabilities().is_ok(), permitted);
                assert_eq!(effective().contains(NEEDED), permitted);
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
