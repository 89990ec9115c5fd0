//! The first node of a new cluster.

use std::net::SocketAddr;
use std::time::Duration;

use proto::cluster::{Admitted, Document, KeyId};
use proto::invite::{Book, Invite};
use proto::link::{GossipKey, KeyRing};
use proto::node::{Name, Role};

use super::disk::{Disk, Member, NodeFile};
use super::keeper::issue;
use crate::lifecycle::wall;
use crate::link::random;
use crate::link::tls::Identity;

/// Makes a cluster whose only member is this node, and an invite for the others.
///
/// # Errors
/// What could not be written: a cluster that does not outlive its first node is none.
pub(crate) fn create(
    disk: &Disk,
    identity: std::sync::Arc<Identity>,
    node: NodeFile,
    cluster: Name,
    ttl: Duration,
) -> Result<(Member, Invite), String> {
    let secret: [u8; 32] = random();
    let id = KeyId::of_key(&secret);
    let first = Admitted::new(node.name.clone(), identity.key, Role::Master, identity.id, wall());
    let document = Document::new(random(), cluster, first, id);
    let mut ring = KeyRing::default();
    ring.add(GossipKey { epoch: document.key.epoch, id, secret, until: None });
    let mut invites = Book::default();
    let address = SocketAddr::new(node.address, node.port);
    let (invite, _) = issue(&mut invites, &identity.key, address, ttl, None);
    let member = Member {
        identity,
        node,
        document,
        ring,
        invites,
        peers: Default::default(),
        serving: Vec::new(),
        epochs: Default::default(),
    };
    save(disk, &member)?;
    Ok((member, invite))
}

/// Writes everything that a new member starts from; the document last, since it is what makes a member.
///
/// # Errors
/// What could not be written.
pub(crate) fn save(disk: &Disk, member: &Member) -> Result<(), String> {
    let whole = disk.save_node(&member.node)
        && disk.save_keys(&member.ring)
        && disk.save_invites(&member.invites)
        && disk.save_peers(&member.peers)
        && disk.save_serving(&member.serving)
        && disk.save_document(&member.document);
    if whole { Ok(()) } else { Err(disk.problems().join("; ")) }
}
