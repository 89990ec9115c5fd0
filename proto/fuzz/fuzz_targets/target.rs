//! The target that FUZZ_TARGET names; see `targets::TARGETS`. One binary for all, since each would be built with
//! all decoders.

#![no_main]

#[path = "../../tests/fuzz/targets.rs"]
mod targets;

use std::sync::LazyLock;

static TARGET: LazyLock<String> = LazyLock::new(|| {
    let name = std::env::var("FUZZ_TARGET").unwrap_or_default();
    let known: Vec<&str> = targets::TARGETS.iter().map(|(name, _)| *name).collect();
    assert!(known.contains(&name.as_str()), "FUZZ_TARGET is {name:?}; it can be one of {known:?}");
    name
});

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| targets::run(&TARGET, bytes));
