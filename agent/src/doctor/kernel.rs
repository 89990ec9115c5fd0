//! Switches of the kernel, of one interface.

use std::path::Path;

/// What counts of an IPv4 switch on an interface: the higher of its own and of "all", as the kernel does it
/// for those that are asked for here. None where it can't be seen, as in the unit's own sandbox.
pub(crate) fn sysctl(root: &Path, interface: &str, name: &str) -> Option<u8> {
    let read = |which: &str| -> Option<u8> {
        let path = root.join("proc/sys/net/ipv4/conf").join(which).join(name);
        std::fs::read_to_string(path).ok()?.trim().parse().ok()
    };
    Some(read(interface)?.max(read("all")?))
}
