//! Sysctls of an interface.

use std::path::Path;

/// The effective value of an IPv4 sysctl on an interface: the higher of its own and of "all", as the kernel
/// does for those that are queried here. None if it can't be read, as in the unit's own sandbox.
pub(crate) fn sysctl(root: &Path, interface: &str, name: &str) -> Option<u8> {
    let read = |which: &str| -> Option<u8> {
        let path = root.join("proc/sys/net/ipv4/conf").join(which).join(name);
        std::fs::read_to_string(path).ok()?.trim().parse().ok()
    };
    Some(read(interface)?.max(read("all")?))
}
