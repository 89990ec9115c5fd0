//! What the suites share: [`lab`] builds networks of namespaces and breaks them, [`mesh`] runs agents in
//! one, [`browser`] looks at their pages, [`load`] is their clients, [`faults`] what happens to masters,
//! [`hostile`] who means them harm, [`peers`] runs other proxies beside ours, [`vip`] an address that moves
//! and who asks for it, [`wait`] waits for what must come true, [`wire`] records what crosses an interface.
//!
//! Everything here returns `anyhow::Result`: a test that fails says what it tried, on which node, and what
//! came back.

pub mod browser;
pub mod faults;
pub mod hostile;
pub mod lab;
pub mod load;
pub mod mesh;
pub mod peers;
pub mod vip;
pub mod wait;
pub mod wire;
