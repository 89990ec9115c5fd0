//! A hostile member, a removed one and a stranger: they speak the link's wire with whatever keys they have,
//! and say what no agent would.
//!
//! [`identity`] is who one is, by the keys of a state directory or by fresh ones, and [`member`] all that a
//! member has; [`tls`] speaks on the TCP port, [`datagram`] on the UDP port; [`gossip`] writes gossip's own
//! messages, right and wrong; [`seed`] is where nodes are led to join; [`victim`] counts what an attack
//! costs whom it is made on; [`cluster`] is the lab that they all work in, and the check that ends every
//! attack.
//!
//! Nothing here is limited, checked or polite, so nothing of it is shared with the agent but the formats.

pub mod cluster;
pub mod datagram;
pub mod gossip;
pub mod identity;
pub mod member;
pub mod seed;
pub mod tls;
pub mod victim;

pub use cluster::{Cluster, Sent};
pub use identity::Identity;
pub use member::Hostile;
pub use seed::FalseSeed;
