//! The first node of a new cluster.

use std::net::SocketAddr;
use std::sync::Arc;

use proto::cluster::{Admitted, Document, KeyId, Replica};
use proto::invite::{DEFAULT_TTL, Invite, InviteLedger, MASTER_USES, WORKER_USES};
use proto::node::{Name, PublicKey, Role};
use proto::transport::{GossipKey, KeyRing};

use super::admissions::issue;
use super::disk::{MemberStore, NodeFile, NotKept, StoredMember};
use crate::lifecycle::wall;
use crate::transport::random;
use crate::transport::tls::Identity;

/// The invites that `agent init` prints.
pub(crate) struct FirstInvites {
    pub(crate) masters: Invite,
    pub(crate) workers: Invite,
}

impl FirstInvites {
    /// Issues both.
    pub(crate) fn issue(ledger: &mut InviteLedger, key: &PublicKey, address: SocketAddr) -> FirstInvites {
        let mut one = |uses, role| issue(ledger, key, address, DEFAULT_TTL, Some(uses), role).0;
        FirstInvites { masters: one(MASTER_USES, Role::Master), workers: one(WORKER_USES, Role::Worker) }
    }
}

/// Makes a cluster whose only member is this node, a master, and invites for the others.
///
/// # Errors
/// What could not be written: a cluster that does not outlive its first node is none.
pub(crate) fn create(
    disk: &MemberStore,
    identity: Arc<Identity>,
    node: NodeFile,
    cluster: Name,
) -> Result<(StoredMember, FirstInvites), NotKept> {
    let secret: [u8; 32] = random();
    let first = Admitted::new(node.name.clone(), identity.key, Role::Master, identity.id, wall());
    let document = Document::new(random(), cluster, first, KeyId::of_key(&secret));
    found(disk, identity, node, document, secret)
}

/// Makes a cluster that takes the place of the one that this node is a member of.
///
/// # Errors
/// What could not be written.
pub(crate) fn succeed(
    disk: &MemberStore,
    old: StoredMember,
) -> Result<(StoredMember, FirstInvites), NotKept> {
    let secret: [u8; 32] = random();
    let StoredMember { identity, node, replica, epochs, serving, .. } = old;
    let first = Admitted::new(node.name.clone(), identity.key, Role::Master, identity.id, wall());
    let document = replica.document().successor(random(), first, KeyId::of_key(&secret));
    let (mut member, invites) = found(disk, identity, node, document, secret)?;
    // Clients are served meanwhile by who served before, and epochs of virtual IPs go on.
    (member.epochs, member.serving) = (epochs, serving);
    save(disk, &member)?;
    Ok((member, invites))
}

fn found(
    disk: &MemberStore,
    identity: Arc<Identity>,
    node: NodeFile,
    document: Document,
    secret: [u8; 32],
) -> Result<(StoredMember, FirstInvites), NotKept> {
    let mut ring = KeyRing::default();
    ring.add(GossipKey { epoch: document.key.epoch, id: document.key.id, secret, until: None });
    let mut invites = InviteLedger::default();
    let first = FirstInvites::issue(&mut invites, &identity.key, SocketAddr::new(node.address, node.port));
    let member = StoredMember {
        replica: Replica::new(document, identity.id, identity.pair()),
        identity,
        node,
        ring,
        invites,
        peers: Default::default(),
        serving: Vec::new(),
        epochs: Default::default(),
        node_local: Default::default(),
    };
    save(disk, &member)?;
    Ok((member, first))
}

/// Writes everything that a new member starts from; the document last, since it is what makes a member.
///
/// # Errors
/// What could not be written.
pub(crate) fn save(disk: &MemberStore, member: &StoredMember) -> Result<(), NotKept> {
    let whole = disk.save_node(&member.node)
        && disk.save_keys(&member.ring)
        && disk.save_rest(member)
        && disk.save_replica(&member.replica);
    if whole { Ok(()) } else { Err(disk.not_kept()) }
}
