//! A hostile member, a removed one and a stranger: they speak the transport's protocol with whatever keys
//! they have, and send what no agent would.
//!
//! [`identity`] has identities, from a state directory or fresh, and [`member`] everything that a member has;
//! [`tls`] uses the TCP port, [`datagram`] the UDP port; [`gossip`] writes gossip messages, valid and
//! invalid; [`seed`] is a hostile seed for joining nodes; [`victim`] measures what an attack costs its victim;
//! [`cluster`] is the shared lab, and the check at the end of every attack.
//!
//! Nothing here is limited, checked or polite, so it shares nothing with the agent but the formats.

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
