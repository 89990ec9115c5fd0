//! Shared helpers of the suites: [`lab`] builds networks of namespaces and breaks them, [`mesh`] runs agents
//! in one, [`browser`] opens their pages, [`load`] has clients, [`faults`] breaks masters, [`hostile`]
//! attacks, [`peers`] runs other proxies for comparison, [`pods`] has pods, [`scale`] has many nodes join at once,
//! [`vip`] has a moving address and its clients, [`wait`] waits for conditions, [`wire`] records what crosses an
//! interface.
//!
//! Everything here returns `anyhow::Result`: a failing test reports what it tried, on which node, and the
//! result.

pub mod browser;
pub mod faults;
pub mod hold;
pub mod hostile;
pub mod lab;
pub mod load;
pub mod machine;
pub mod mesh;
pub mod peers;
pub mod pods;
pub mod scale;
pub mod vip;
pub mod wait;
pub mod wire;
