//! What the suites share: [`lab`] builds networks of namespaces and breaks them, [`mesh`] runs agents in
//! one, [`wait`] waits for what must come true, [`wire`]
//! records what crosses an interface.
//!
//! Everything here returns `anyhow::Result`: a test that fails says what it tried, on which node, and what
//! came back.

pub mod lab;
pub mod mesh;
pub mod wait;
pub mod wire;
