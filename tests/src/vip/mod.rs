//! An address that moves between nodes: who answers for it, what a client notices, and other implementations.
//!
//! ```text
//!   n0 n1 n2   candidates, each with an nginx as its apiserver      n4   the client: [`Prober`]
//!   n3         a master without an apiserver: it owns nothing       n5   a stranger, silent until it is not
//! ```
//!
//! [`Scenario`] is a fault of the owner, [`Stage`] causes it and summarizes what the client saw;
//! [`Contender`] keeps the address: [`Agents`], or [`Keepalived`] as its users configure it.

mod contender;
mod keepalived;
mod packet;
mod prober;
mod scenario;

use std::net::Ipv4Addr;

pub use contender::{Agents, Contender, Vip, vip};
pub use keepalived::{Keepalived, Version};
pub use packet::{Arp, Frame, Link, Mac, Says, Tap};
pub use prober::{EVERY, Prober, Record, Sample};
pub use scenario::{Outcome, Row, Scenario, Stage};

/// The contended address.
pub const ADDRESS: Ipv4Addr = Ipv4Addr::new(10, 91, 0, 250);

/// Nodes that a stage needs.
pub const NODES: usize = 6;

/// Nodes that can own the address.
pub const CANDIDATES: usize = 3;

/// Neither a candidate nor the client: a master without an apiserver. A worker's reports about an owner count
/// for three seconds, and it may not order a move.
pub const WORKER: usize = 3;

/// The client.
pub const CLIENT: usize = 4;

/// The stranger.
pub const STRANGER: usize = 5;
