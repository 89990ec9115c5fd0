//! `agent join`: asks a seed to be let in, and takes over what it gives.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use proto::cluster::{ClusterId, Document, Replica};
use proto::invite::{self, Invite, IssuerPin, JoinRefusal};
use proto::node::{Name, NodeId};
use proto::rpc::{Addresses, MAX_ADDRESSES, Welcome};
use proto::transport::KeyRing;
use tokio::sync::watch;

use super::{ReadyNode, RejoinOutcome, SeedKey, SetupError, SetupOptions, SetupStep, StepReport, open};
use crate::lifecycle::{Lifecycle, wall};
use crate::membership::disk::{LoadError, MemberStore, NodeFile, StoredMember};
use crate::membership::init;
use crate::membership::join::{JoinCredential, JoinError, JoinProgress, SeedConnection, reach};
use crate::net;
use crate::transport::tls::Identity;
use crate::transport::{BoundPorts, Link};

/// How long a node tries again that finds too many others joining.
const BUSY: Duration = Duration::from_secs(60);

/// How often a code may be typed: a slip or two of the finger, no guessing.
const TYPED: usize = 3;

/// How this node asks to be let in.
pub(crate) struct JoinSeed<'a> {
    /// An invite, or the address of a master.
    pub(crate) text: &'a str,
    /// The key that has to answer, when no invite names it.
    pub(crate) key: Option<IssuerPin>,
    /// Reads a line that someone types, when a code has to be; none: nobody is there.
    pub(crate) typed: &'a (dyn Fn() -> Option<String> + Send + Sync),
}

/// Joins the cluster of a seed: an invite, or the address of any master.
///
/// # Errors
/// Nothing was entered: see [`SetupError`].
pub(crate) async fn join(
    options: &SetupOptions,
    seed: &JoinSeed<'_>,
    report: StepReport<'_>,
) -> Result<ReadyNode, SetupError> {
    let text = seed.text.trim();
    let invite = match text.starts_with(invite::PREFIX) {
        true => Some(text.parse::<Invite>().map_err(SetupError::Invite)?),
        false => None,
    };
    let credential = match (&invite, seed.key) {
        (Some(invite), _) => JoinCredential::Invite(invite),
        (None, Some(pin)) => JoinCredential::Pin(pin),
        (None, None) => JoinCredential::None,
    };
    let addresses = match &invite {
        Some(invite) => invite.addresses.clone(),
        None => net::resolve(text, options.port()).await?,
    };
    let disk = open(&options.config)?;
    match disk.member() {
        Ok(mut member) => {
            options.apply(&disk, &mut member.node, report)?;
            let entered = rejoin(disk, member, credential, &addresses, report).await?;
            if invite.is_none() {
                entered.disk.add_seed(text);
            }
            return Ok(entered);
        }
        Err(LoadError::NotMember) => {}
        // An invite is all that it takes to get the rest back, as long as the key is there.
        Err(LoadError::Lost(lost)) => report(SetupStep::StateLost(lost)),
        Err(error) => return Err(error.into()),
    }
    let identity = disk.identity()?;
    report(SetupStep::Identity { id: identity.id, dir: options.config.state_dir.clone() });
    let first = addresses.first().copied().ok_or(SetupError::NoSeedAddress)?;
    let net::PickedAddress { address, interface, warning } =
        net::pick_for_seed(first.ip(), options.interface(), options.address())?;
    report(SetupStep::Address { address, interface: interface.clone(), kind: None });
    if let Some(warning) = warning {
        report(SetupStep::AddressDoubt(warning));
    }
    // Taken before anything is asked for: an invite that is used up by a node that then can't run is lost.
    let ports = BoundPorts::bind(options.config.bind, options.port())?;
    let node = options.node(address, interface);
    let own = SocketAddr::new(node.address, node.port);
    let name = node.name.clone();
    let (mut peer, welcome) =
        request_admission(&identity, &addresses, credential, (&name, own, None), seed.typed, report).await?;
    let sealed = welcome.snapshot.document.as_ref().ok_or(SetupError::NoDocument)?;
    let replica = Replica::join(sealed, &peer.key).map_err(JoinError::NotSealed)?;
    let entered = ready_node(identity, node, replica, &welcome, &peer);
    init::save(&disk, &entered)?;
    if invite.is_none() {
        disk.add_seed(text);
    }
    let document = entered.document();
    report(SetupStep::Admitted {
        cluster: document.name.clone(),
        name,
        role: document.role(&entered.identity.id),
        members: document.members().count(),
    });
    dialled_back(ports, &entered, &mut peer, report).await;
    Ok(ReadyNode { disk, member: entered, invites: None })
}

/// What a node starts from that was let in.
fn ready_node(
    identity: Arc<Identity>,
    node: NodeFile,
    replica: Replica,
    welcome: &Welcome,
    peer: &SeedConnection,
) -> StoredMember {
    let mut ring = KeyRing::default();
    ring.take(&welcome.snapshot.keys, replica.document(), wall());
    let mut peers = Addresses::new();
    add_hints(&mut peers, replica.document(), &welcome.snapshot.addresses);
    reached_at(&mut peers, peer.key.id(), peer.at);
    StoredMember {
        identity,
        node,
        replica,
        ring,
        invites: Default::default(),
        peers,
        serving: welcome.serving.clone(),
        epochs: Default::default(),
        node_local: Default::default(),
    }
}

/// Adds where others say that members are: behind the best address that this node knows of each, since nobody
/// has proven the others to it.
fn add_hints(peers: &mut Addresses, document: &Document, hints: &Addresses) {
    for (id, named) in hints.iter().filter(|(id, _)| document.member(id).is_some()) {
        let known = peers.entry(*id).or_default();
        let rest = known.split_off(known.len().min(1));
        for address in named.iter().take(MAX_ADDRESSES).chain(&rest) {
            if !known.contains(address) {
                known.push(*address);
            }
        }
    }
}

/// A member has proven its key here.
fn reached_at(peers: &mut Addresses, id: NodeId, at: SocketAddr) {
    let known = peers.entry(id).or_default();
    known.retain(|address| *address != at);
    known.insert(0, at);
}

/// Asks until this node is let in: follows a worker to a master, waits for an approval, and tries again for a
/// minute when too many join at once.
async fn request_admission(
    identity: &Identity,
    addresses: &[SocketAddr],
    mut credential: JoinCredential<'_>,
    (name, own, cluster): (&Name, SocketAddr, Option<ClusterId>),
    typed: &(dyn Fn() -> Option<String> + Send + Sync),
    report: StepReport<'_>,
) -> Result<(SeedConnection, Box<Welcome>), SetupError> {
    let mut addresses = addresses.to_vec();
    let mut redirected = false;
    let until = tokio::time::Instant::now() + BUSY;
    loop {
        let mut peer = match reach(identity, &addresses, credential).await {
            Ok(peer) => peer,
            // The port closes connections that it has no place for.
            Err(error) if error.is_closed() && tokio::time::Instant::now() < until => {
                tokio::time::sleep(jitter()).await;
                continue;
            }
            Err(error) => return Err(error.into()),
        };
        let key = SeedKey::of(credential);
        report(SetupStep::Reached { at: peer.at, took: peer.took, key });
        let mut waits =
            |code: &str, time: Duration| report(SetupStep::Waiting { code: code.to_owned(), time });
        let asked = peer.ask(name.clone(), credential, vec![own], cluster.clone(), &mut waits).await;
        match asked {
            Ok(JoinProgress::Welcome(welcome)) => return Ok((peer, welcome)),
            Ok(JoinProgress::Approved { code }) => {
                report(SetupStep::TypeCode);
                confirmed(&code, typed)?;
                let welcome = peer.confirm().await?;
                return Ok((peer, welcome));
            }
            // An invite counts at its issuer alone: no other master has its secret, or its key.
            Err(JoinError::Redirected(masters)) if matches!(credential, JoinCredential::Invite(_)) => {
                return Err(JoinError::IssuerDemoted { at: peer.at, masters }.into());
            }
            // It alone says so: the codes are compared with the master, and a pinned key is its own.
            Err(JoinError::Redirected(masters)) if !redirected && !masters.is_empty() => {
                report(SetupStep::Redirected { worker: peer.at });
                (addresses, redirected) = (masters, true);
                if let JoinCredential::Pin(_) = credential {
                    credential = JoinCredential::None;
                }
            }
            Err(JoinError::Busy) if tokio::time::Instant::now() < until => {
                tokio::time::sleep(jitter()).await;
            }
            Err(error) => return Err(error.into()),
        }
    }
}

/// Wait before trying again, by chance, so that those who come at once do not come back at once.
fn jitter() -> Duration {
    Duration::from_millis(300 + u64::from(u16::from_be_bytes(crate::transport::random())) % 1000)
}

/// Has the code typed that `agent approve` has printed; a typing error may be corrected.
fn confirmed(code: &str, typed: &(dyn Fn() -> Option<String> + Send + Sync)) -> Result<(), JoinError> {
    for _ in 0..TYPED {
        let Some(line) = typed() else {
            let text = "the code that agent approve printed was not typed; if nobody can type it, use an invite \
                        or --key";
            return Err(JoinError::NotConfirmed(text.to_owned()));
        };
        if invite::normalize_code(&line) == code {
            return Ok(());
        }
    }
    let text =
        "the typed code does not belong to this session: it was mistyped, or there is a man in the middle";
    Err(JoinError::NotConfirmed(text.to_owned()))
}

/// Joining again: asks the seed whether this node still belongs, and goes on without it when it can't be
/// reached. Nothing is taken from a key that is not a member's; where an invite names the key, also the
/// cluster that succeeds this node's.
async fn rejoin(
    disk: Arc<MemberStore>,
    mut member: StoredMember,
    credential: JoinCredential<'_>,
    addresses: &[SocketAddr],
    report: StepReport<'_>,
) -> Result<ReadyNode, SetupError> {
    report(SetupStep::AlreadyMember(member.document().name.clone()));
    let own = SocketAddr::new(member.node.address, member.node.port);
    let asked = async {
        let mut peer = reach(&member.identity, addresses, credential).await?;
        let known = member.document().member(&peer.key.id()).is_some();
        if !known && !matches!(credential, JoinCredential::Invite(_)) {
            let text = "its key does not belong to a known member";
            return Err(JoinError::NotConfirmed(text.to_owned()));
        }
        // Whoever has to wait here belongs to another cluster.
        let (name, id) = (member.node.name.clone(), member.document().id.clone());
        let mut waits = |_: &str, _: Duration| {};
        // The key was looked at: it answers as a confirmed one would.
        let pin = JoinCredential::Pin(invite::pin_of(&peer.key));
        let credential = if let JoinCredential::Invite(_) = credential { credential } else { pin };
        let ask = peer.ask(name, credential, vec![own], Some(id), &mut waits);
        let progress = tokio::time::timeout(Duration::from_secs(10), ask).await.unwrap_or_else(|_| {
            Err(JoinError::Broken(std::io::Error::other("it is not a member of this cluster")))
        })?;
        match progress {
            JoinProgress::Welcome(welcome) => Ok((peer, welcome)),
            JoinProgress::Approved { .. } => {
                Err(JoinError::Broken(std::io::Error::other("it required an approval")))
            }
        }
    };
    match asked.await {
        Ok((peer, welcome)) => {
            let outcome = take_welcome(&mut member, credential, &welcome, &peer)?;
            init::save(&disk, &member)?;
            report(SetupStep::Rejoined(outcome));
        }
        // It says nothing of this node: it has no cluster itself.
        Err(error @ JoinError::Refused(JoinRefusal::SeedRemoved)) => report(SetupStep::NotAsked(error)),
        Err(error @ (JoinError::Refused(_) | JoinError::WrongPin(_))) => return Err(error.into()),
        Err(error) => report(SetupStep::NotAsked(error)),
    }
    Ok(ReadyNode { disk, member, invites: None })
}

/// Takes over what a confirmed node gave, and returns what that was.
fn take_welcome(
    member: &mut StoredMember,
    credential: JoinCredential<'_>,
    welcome: &Welcome,
    peer: &SeedConnection,
) -> Result<RejoinOutcome, SetupError> {
    let sealed = welcome.snapshot.document.as_ref().ok_or(SetupError::NoDocument)?;
    let ours = member.document().id.clone();
    let invited = matches!(credential, JoinCredential::Invite(_));
    let outcome = match member.replica.adopt_from_master(sealed, &member.identity.id, wall()) {
        Ok(_) => RejoinOutcome::Adopted,
        Err(error) if invited => {
            let replica = Replica::join(sealed, &peer.key).map_err(JoinError::NotSealed)?;
            let document = replica.document();
            if document.id != ours && document.genesis.succeeds.as_ref() != Some(&ours) {
                return Err(error.into());
            }
            let moved = document.id != ours;
            let node = member.node.clone();
            let (identity, epochs) = (member.identity.clone(), std::mem::take(&mut member.epochs));
            *member = ready_node(identity, node, replica, welcome, peer);
            member.epochs = epochs;
            match moved {
                true => RejoinOutcome::Moved(member.document().name.clone()),
                false => RejoinOutcome::Replaced,
            }
        }
        Err(error) => return Err(error.into()),
    };
    // Any member answers here, a worker too: what it gives beside the document counts as in any exchange.
    let document = member.replica.document();
    member.ring.take(&welcome.snapshot.keys, document, wall());
    add_hints(&mut member.peers, document, &welcome.snapshot.addresses);
    reached_at(&mut member.peers, peer.key.id(), peer.at);
    Ok(outcome)
}

/// Listens for a moment and has the member dial back, so that a firewall shows now and not later.
async fn dialled_back(
    ports: BoundPorts,
    member: &StoredMember,
    peer: &mut SeedConnection,
    report: StepReport<'_>,
) {
    let life = Lifecycle::new();
    let port = member.node.port;
    match listen(ports, member, &life) {
        Err(error) => report(SetupStep::NotListening { port, error }),
        Ok(_link) => match peer.dialled_back().await {
            Err(error) => report(SetupStep::PortNotTested(error)),
            Ok((tcp, udp)) => {
                for (protocol, fault) in [("tcp", tcp), ("udp", udp)] {
                    report(SetupStep::Port { protocol, port, from: peer.at.ip(), fault });
                }
            }
        },
    }
    life.draining.cancel();
    life.shutdown.cancel();
    life.finished().await;
}

fn listen(ports: BoundPorts, member: &StoredMember, life: &Lifecycle) -> Result<Arc<Link>, rustls::Error> {
    // The sender may go: readers keep its last value.
    let (_, trust) = watch::channel(Arc::new(member.trusted_keys()));
    let (link, _) = Link::new(ports, member.identity.clone(), trust);
    link.serve(life)?;
    Ok(link)
}

#[cfg(test)]
mod tests {
    use proto::cluster::{Admitted, KeyId};
    use proto::node::{PublicKey, Role};
    use proto::time::UnixMs;
    use proto::transport::GossipKey;

    use super::*;

    fn at(n: u8) -> SocketAddr {
        SocketAddr::from(([10, 0, 0, n], proto::transport::PORT))
    }

    #[test]
    fn where_a_member_says_that_others_are_displaces_nothing_that_this_node_knows() {
        let own = PublicKey([1; 32]);
        let first = Admitted::new(Name::nearest("a"), own, Role::Master, own.id(), UnixMs(1));
        let key = GossipKey { epoch: 1, id: KeyId::of_key(&[1; 32]), secret: [1; 32], until: None };
        let document = Document::new([0; 16], Name::nearest("c"), first, key.id);
        let (member, stranger) = (own.id(), NodeId([7; 10]));
        let mut peers = Addresses::from([(member, vec![at(1), at(2)])]);
        let many: Vec<SocketAddr> = (10..250).map(at).collect();
        let hints = Addresses::from([(member, [vec![at(2)], many].concat()), (stranger, vec![at(9)])]);
        add_hints(&mut peers, &document, &hints);
        assert_eq!(peers[&member][..3], [at(1), at(2), at(10)]);
        assert_eq!(peers[&member].len(), 1 + MAX_ADDRESSES);
        assert!(!peers.contains_key(&stranger), "of no member");
        reached_at(&mut peers, member, at(10));
        assert_eq!(peers[&member][..3], [at(10), at(1), at(2)]);
    }
}
