//! tmp
pub(crate) fn ready() {}
pub(crate) fn stopping() {}
pub(crate) fn spawn_watchdog(_l: &crate::lifecycle::Life) {}
