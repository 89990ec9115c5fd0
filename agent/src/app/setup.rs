//! How a node enters a cluster: `init` on the first, `join` on the others. Each checked fact is reported as
//! it happens, and the last one says what serves.

use std::net::{IpAddr, SocketAddr};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use proto::backends::BackendTable;
use proto::cluster::{ClusterId, Replica};
use proto::config::Config;
use proto::invite::{self, Invite, IssuerPin, JoinRefusal};
use proto::node::Name;
use proto::rpc::Welcome;
use proto::settings::plan;
use proto::transport::KeyRing;
use tokio::sync::watch;

use super::RunningAgent;
use crate::cli::exit::{self, ExitError};
use crate::lifecycle::{Lifecycle, wall};
use crate::membership::commands::not_a_master;
use crate::membership::disk::{LoadError, MemberStore, NodeFile, StoredMember};
use crate::membership::init::{self, FirstInvites};
use crate::membership::join::{JoinCredential, JoinError, JoinProgress, SeedConnection, reach};
use crate::net;
use crate::state::StateDir;
use crate::transport::tls::Identity;
use crate::transport::{BoundPorts, Link, TrustedKeys};

/// How long a node tries again that finds too many others joining.
const BUSY: Duration = Duration::from_secs(60);

/// How often a code may be typed: a slip or two of the finger, no guessing.
const TYPED: usize = 3;

/// What was asked for on the command line or in the configuration.
pub(crate) struct SetupOptions {
    pub(crate) config: Config,
    pub(crate) name: Option<Name>,
    pub(crate) address: Option<IpAddr>,
    pub(crate) interface: Option<String>,
}

/// One checked fact: what, whether it is good, and the details.
pub(crate) type StepReport<'a> = &'a mut (dyn FnMut(&str, bool, &str) + Send);

/// A node that has entered, ready to run.
pub(crate) struct ReadyNode {
    pub(crate) disk: Arc<MemberStore>,
    pub(crate) member: StoredMember,
    /// The lines for other nodes, after `init`.
    pub(crate) invites: Option<FirstInvites>,
}

impl SetupOptions {
    /// This node's name: as told, or as its machine is called.
    fn name(&self) -> Name {
        self.name.clone().or_else(|| self.config.name.clone()).unwrap_or_else(|| {
            let name = rustix::system::uname();
            Name::nearest(name.nodename().to_str().unwrap_or("node").split('.').next().unwrap_or("node"))
        })
    }

    fn address(&self) -> Option<IpAddr> {
        self.address.or(self.config.address)
    }

    fn interface(&self) -> Option<&str> {
        self.interface.as_deref().or(self.config.interface.as_deref())
    }

    fn node(&self, address: IpAddr, interface: String) -> NodeFile {
        NodeFile {
            name: self.name(),
            address,
            interface,
            pinned: self.address().is_some(),
            port: self.config.port,
        }
    }
}

/// Takes over the state directory.
///
/// # Errors
/// Another agent uses it, or it can't be made.
pub(crate) fn open(config: &Config) -> anyhow::Result<Arc<MemberStore>> {
    Ok(Arc::new(MemberStore::new(StateDir::open(Path::new(&config.state_dir))?)))
}

/// Makes a cluster with this node; or, where it is in one already, only new invites.
pub(crate) fn init(
    options: &SetupOptions,
    cluster: Option<Name>,
    vips: &[IpAddr],
    report: StepReport<'_>,
) -> anyhow::Result<ReadyNode> {
    let disk = open(&options.config)?;
    match disk.member() {
        Ok(mut member) => {
            report("cluster", true, &format!("already a member of \"{}\"", member.document().name));
            let own = member.identity.id;
            if !member.document().is_master(&own) {
                return Err(ExitError::error(exit::UNAVAILABLE, not_a_master(member.document())));
            }
            let address = SocketAddr::new(member.node.address, member.node.port);
            let key = member.identity.key;
            let invites = FirstInvites::issue(&mut member.invites, &key, address);
            disk.save_invites(&member.invites);
            set_vips(&disk, &mut member, vips, report)?;
            return Ok(ReadyNode { disk, member, invites: Some(invites) });
        }
        Err(LoadError::NotMember) => {}
        Err(error) => return Err(error.into()),
    }
    let interfaces = net::interfaces()?;
    let net::PickedAddress { address, interface, .. } =
        net::pick_for_init(&interfaces, options.interface(), options.address())?;
    let kind = interfaces.iter().find(|one| one.name == interface).and_then(|one| one.kind.clone());
    let kind = kind.map_or(String::new(), |kind| format!(" ({kind})"));
    report("address", true, &format!("{address} on {interface}{kind}"));
    let identity = disk.identity()?;
    report("identity", true, &format!("{} in {}", identity.id, options.config.state_dir));
    // Free again at once, for the agent itself; a cluster whose first node can't run would have to be undone.
    drop(BoundPorts::bind(options.config.bind, options.config.port)?);
    let node = options.node(address, interface);
    let cluster = cluster.unwrap_or_else(|| Name::nearest("cluster"));
    let (mut member, invites) = init::create(&disk, identity, node, cluster)?;
    let what = format!("\"{}\", this node is \"{}\"", member.document().name, member.node.name);
    report("cluster", true, &what);
    set_vips(&disk, &mut member, vips, report)?;
    Ok(ReadyNode { disk, member, invites: Some(invites) })
}

/// Starts a cluster that takes the place of this node's, which has no master left. The agent must not run.
pub(crate) fn succeed(options: &SetupOptions, report: StepReport<'_>) -> anyhow::Result<ReadyNode> {
    let disk = open(&options.config)?;
    let member = disk.member()?;
    let (old, masters) = (member.document().id.clone(), member.document().master_names());
    report("cluster", true, &format!("replaces {old}, whose masters were: {masters}"));
    let (member, invites) = init::succeed(&disk, member)?;
    let what = format!(
        "\"{}\" is now {}, with this node as its master",
        member.document().name,
        member.document().id
    );
    report("cluster", true, &what);
    Ok(ReadyNode { disk, member, invites: Some(invites) })
}

/// The value of the setting `vip`.
pub(crate) fn vip_setting(vips: &[IpAddr]) -> String {
    vips.iter().map(IpAddr::to_string).collect::<Vec<_>>().join(",")
}

/// Sets the cluster's virtual IPs before the agent runs; none are given: they stay as they are.
fn set_vips(
    disk: &MemberStore,
    member: &mut StoredMember,
    vips: &[IpAddr],
    report: StepReport<'_>,
) -> anyhow::Result<()> {
    if vips.is_empty() {
        return Ok(());
    }
    let options = ("vip".to_owned(), Some(vip_setting(vips)));
    let changes = plan(member.document(), &[options]).map_err(|mistakes| {
        let words: Vec<String> = mistakes.iter().map(ToString::to_string).collect();
        ExitError::error(exit::DATA, words.join("; "))
    })?;
    let identity = member.identity.clone();
    member.replica.change(identity.id, identity.pair(), |document| {
        for change in &changes {
            document.set(&change.key, change.new.clone(), identity.id, wall())?;
        }
        Ok(())
    })?;
    for change in changes {
        report("setting", true, &format!("{} = {}", change.key, change.new.as_deref().unwrap_or("not set")));
    }
    anyhow::ensure!(disk.save_replica(&member.replica), disk.not_kept());
    Ok(())
}

/// How this node asks to be let in.
pub(crate) struct JoinSeed<'a> {
    /// An invite, or the address of a master.
    pub(crate) text: &'a str,
    /// The key that has to answer, when no invite names it.
    pub(crate) key: Option<IssuerPin>,
    /// Reads a line that someone types; none: nobody is there.
    pub(crate) typed: &'a (dyn Fn() -> Option<String> + Send + Sync),
}

/// Joins the cluster of a seed: an invite, or the address of any master.
pub(crate) async fn join(
    options: &SetupOptions,
    seed: &JoinSeed<'_>,
    report: StepReport<'_>,
) -> anyhow::Result<ReadyNode> {
    let text = seed.text.trim();
    let invite = match text.starts_with(invite::PREFIX) {
        true => Some(
            text.parse::<Invite>()
                .map_err(|error| ExitError::error(exit::DATA, format!("invalid invite: {error}")))?,
        ),
        false => None,
    };
    let credential = match (&invite, seed.key) {
        (Some(invite), _) => JoinCredential::Invite(invite),
        (None, Some(pin)) => JoinCredential::Pin(pin),
        (None, None) => JoinCredential::None,
    };
    let addresses = match &invite {
        Some(invite) => invite.addresses.clone(),
        None => net::resolve(text, options.config.port).await?,
    };
    let disk = open(&options.config)?;
    match disk.member() {
        Ok(member) => return rejoin(disk, member, credential, &addresses, report).await,
        Err(LoadError::NotMember) => {}
        // An invite is all that it takes to get the rest back, as long as the key is there.
        Err(LoadError::Lost(lost)) => report("state", false, &lost.to_string()),
        Err(error) => return Err(error.into()),
    }
    let identity = disk.identity()?;
    report("identity", true, &format!("{} in {}", identity.id, options.config.state_dir));
    let first = addresses.first().copied().context("the seed has no address")?;
    let picked = net::pick_for_seed(first.ip(), options.interface(), options.address())?;
    report("address", true, &format!("{} on {}", picked.address, picked.interface));
    if let Some(warning) = &picked.warning {
        report("address", false, warning);
    }
    // Taken before anything is asked for: an invite that is used up by a node that then can't run is lost.
    let ports = BoundPorts::bind(options.config.bind, options.config.port)?;
    let node = options.node(picked.address, picked.interface);
    let own = SocketAddr::new(node.address, node.port);
    let name = node.name.clone();
    let (mut peer, welcome) =
        request_admission(&identity, &addresses, credential, (&name, own, None), seed.typed, report).await?;
    let sealed = welcome.snapshot.document.as_ref().context("it gave no cluster document")?;
    let replica = Replica::join(sealed, &peer.key).map_err(JoinError::NotSealed)?;
    let entered = ready_node(identity, node, replica, &welcome, &peer);
    init::save(&disk, &entered)?;
    let document = entered.document();
    let role = document.role(&entered.identity.id).map_or(String::new(), |role| format!(" ({role})"));
    let members = document.members().count();
    report("admitted", true, &format!("to \"{}\" as \"{name}\"{role}, {members} members", document.name));
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
    for key in &welcome.snapshot.keys {
        ring.add(key.clone());
    }
    let mut peers = welcome.snapshot.addresses.clone();
    peers.entry(peer.key.id()).or_default().insert(0, peer.at);
    StoredMember {
        identity,
        node,
        replica,
        ring,
        invites: Default::default(),
        peers,
        serving: welcome.serving.clone(),
        epochs: Default::default(),
    }
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
) -> anyhow::Result<(SeedConnection, Box<Welcome>)> {
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
        report_reached(&peer, credential, report);
        let mut waits = |code: &str, time: Duration| {
            let minutes = time.as_secs() / 60;
            let text = format!("waiting {minutes} minutes for this on a master: agent approve {code}");
            report("approval", true, &text);
        };
        let asked = peer.ask(name.clone(), credential, vec![own], cluster.clone(), &mut waits).await;
        match asked {
            Ok(JoinProgress::Welcome(welcome)) => return Ok((peer, welcome)),
            Ok(JoinProgress::Approved { code }) => {
                report("approval", true, "approved; type the code that agent approve printed:");
                confirmed(&code, typed)?;
                let welcome = peer.confirm().await?;
                return Ok((peer, welcome));
            }
            // An invite counts at its issuer alone: no other master has its secret, or its key.
            Err(JoinError::Redirected(masters)) if matches!(credential, JoinCredential::Invite(_)) => {
                return Err(JoinError::IssuerDemoted { at: peer.at, masters }.into());
            }
            // Its word alone: the codes are compared with the master, and a pinned key is its own.
            Err(JoinError::Redirected(masters)) if !redirected && !masters.is_empty() => {
                report("seed", true, &format!("{} is a worker; asking a master", peer.at));
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

/// Has the code typed that `agent approve` has printed; a slip of the finger may be mended.
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

fn report_reached(member: &SeedConnection, credential: JoinCredential<'_>, report: StepReport<'_>) {
    let key = match credential {
        JoinCredential::Invite(_) => "its key matches the invite",
        JoinCredential::Pin(_) => "its key matches --key",
        JoinCredential::None => "its key is not known yet; compare the codes",
    };
    let took = member.took.as_secs_f64() * 1e3;
    report("seed", true, &format!("{} answered in {took:.0} ms, {key}", member.at));
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
) -> anyhow::Result<ReadyNode> {
    let cluster = member.document().name.clone();
    report("cluster", true, &format!("already a member of \"{cluster}\""));
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
            let text = take_welcome(&mut member, credential, &welcome, &peer)?;
            init::save(&disk, &member)?;
            report("seed", true, &text);
        }
        // It says nothing of this node: it has no cluster itself.
        Err(error @ JoinError::Refused(JoinRefusal::SeedRemoved)) => {
            report("seed", false, &format!("not asked: {error}"));
        }
        Err(error @ (JoinError::Refused(_) | JoinError::WrongPin(_))) => return Err(error.into()),
        Err(error) => report("seed", false, &format!("not asked: {error}")),
    }
    Ok(ReadyNode { disk, member, invites: None })
}

/// Takes over what a confirmed node gave, and says what that was.
fn take_welcome(
    member: &mut StoredMember,
    credential: JoinCredential<'_>,
    welcome: &Welcome,
    peer: &SeedConnection,
) -> anyhow::Result<String> {
    let sealed = welcome.snapshot.document.as_ref().context("it gave no cluster document")?;
    let ours = member.document().id.clone();
    let invited = matches!(credential, JoinCredential::Invite(_));
    let text = match member.replica.adopt_from_master(sealed, &member.identity.id, wall()) {
        Ok(_) => "it knows this node; its cluster document was adopted".to_owned(),
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
                true => {
                    format!("moved to \"{}\", the successor of this node's cluster", member.document().name)
                }
                false => "its cluster document was adopted as it is: none of the masters that this node \
                          knew is left"
                    .to_owned(),
            }
        }
        Err(error) => return Err(error.into()),
    };
    for key in &welcome.snapshot.keys {
        member.ring.add(key.clone());
    }
    for (id, known) in &welcome.snapshot.addresses {
        member.peers.insert(*id, known.clone());
    }
    Ok(text)
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
        Err(error) => report("port", false, &format!("can't listen on {port}: {error}")),
        Ok(_link) => match peer.dialled_back().await {
            Err(error) => report("port", false, &format!("not tested: {error}")),
            Ok((tcp, udp)) => {
                for (protocol, problem) in [("tcp", tcp), ("udp", udp)] {
                    match problem {
                        None => {
                            report(protocol, true, &format!("port {port} is reachable from {}", peer.at.ip()))
                        }
                        Some(problem) => {
                            let text = format!(
                                "port {port} is not reachable from {}: {problem}; open it for {protocol} in the firewall",
                                peer.at.ip()
                            );
                            report(protocol, false, &text);
                        }
                    }
                }
            }
        },
    }
    life.draining.cancel();
    life.shutdown.cancel();
    life.finished().await;
}

fn listen(ports: BoundPorts, member: &StoredMember, life: &Lifecycle) -> Result<Arc<Link>, rustls::Error> {
    let trust =
        TrustedKeys { document: Arc::new(member.document().clone()), ring: Arc::new(member.ring.clone()) };
    // The sender may go: readers keep its last value.
    let (_, trust) = watch::channel(Arc::new(trust));
    let (link, _, tcp) = Link::new(ports, member.identity.clone(), trust);
    link.serve_udp(life);
    link.serve_tcp(tcp, life)?;
    Ok(link)
}

/// Waits until something serves, for so long at most, and says what: listeners and nodes.
pub(crate) async fn what_serves(running: &RunningAgent, within: Duration) -> (bool, String) {
    let mut table = running.table.clone();
    let good = |table: &Arc<BackendTable>| table.values().flatten().any(|backend| backend.state.is_good());
    let _ = tokio::time::timeout(within, table.wait_for(good)).await;
    super::status::of(running).serving()
}
