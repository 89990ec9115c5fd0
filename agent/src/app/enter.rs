//! How a node enters a cluster: `init` on the first, `join` on the others. Each checked fact is reported as
//! it happens, and the last one says what serves.

use std::net::{IpAddr, SocketAddr};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use proto::backends::Table;
use proto::config::Config;
use proto::invite::{self, Invite};
use proto::link::KeyRing;
use proto::node::Name;
use proto::settings::plan;
use tokio::sync::watch;

use super::Running;
use crate::lifecycle::{Life, wall};
use crate::link::{Link, Ports, Trust};
use crate::membership::disk::{Disk, LoadError, Member, NodeFile};
use crate::membership::join::{JoinError, Reached, reach};
use crate::membership::{init, keeper};
use crate::net;
use crate::state::Store;

/// What was asked for on the command line or in the configuration.
pub(crate) struct Wish {
    pub(crate) config: Config,
    pub(crate) name: Option<Name>,
    pub(crate) address: Option<IpAddr>,
    pub(crate) interface: Option<String>,
}

/// One checked fact: what, whether it is good, and the details.
pub(crate) type Report<'a> = &'a mut (dyn FnMut(&str, bool, &str) + Send);

/// A node that has entered, ready to run.
pub(crate) struct Entered {
    pub(crate) disk: Arc<Disk>,
    pub(crate) member: Member,
    /// The line for other nodes, after `init`.
    pub(crate) invite: Option<Invite>,
}

impl Wish {
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
pub(crate) fn open(config: &Config) -> anyhow::Result<Arc<Disk>> {
    Ok(Arc::new(Disk::new(Store::open(Path::new(&config.state_dir))?)))
}

/// Makes a cluster with this node; or, where it is in one already, only a new invite.
pub(crate) fn init(
    wish: &Wish,
    cluster: Option<Name>,
    vips: &[IpAddr],
    report: Report<'_>,
) -> anyhow::Result<Entered> {
    let disk = open(&wish.config)?;
    match disk.member() {
        Ok(mut member) => {
            report("cluster", true, &format!("already a member of \"{}\"", member.document.name));
            let address = SocketAddr::new(member.node.address, member.node.port);
            let key = &member.identity.key;
            let (invite, _) = keeper::issue(&mut member.invites, key, address, invite::DEFAULT_TTL, None);
            disk.save_invites(&member.invites);
            set_vips(&disk, &mut member, vips, report)?;
            return Ok(Entered { disk, member, invite: Some(invite) });
        }
        Err(LoadError::NotMember) => {}
        Err(error) => return Err(error.into()),
    }
    let interfaces = net::interfaces()?;
    let net::Picked { address, interface, .. } =
        net::pick_for_init(&interfaces, wish.interface(), wish.address())?;
    let kind = interfaces.iter().find(|one| one.name == interface).and_then(|one| one.kind.clone());
    let kind = kind.map_or(String::new(), |kind| format!(" ({kind})"));
    report("address", true, &format!("{address} on {interface}{kind}"));
    let identity = disk.identity()?;
    report("identity", true, &format!("{} in {}", identity.id, wish.config.state_dir));
    // Free again at once, for the agent itself; a cluster whose first node can't run would have to be undone.
    drop(Ports::bind(wish.config.bind, wish.config.port)?);
    let node = wish.node(address, interface);
    let cluster = cluster.unwrap_or_else(|| Name::nearest("cluster"));
    let (mut member, invite) =
        init::create(&disk, identity, node, cluster, invite::DEFAULT_TTL).map_err(anyhow::Error::msg)?;
    let what = format!("\"{}\", this node is \"{}\"", member.document.name, member.node.name);
    report("cluster", true, &what);
    set_vips(&disk, &mut member, vips, report)?;
    Ok(Entered { disk, member, invite: Some(invite) })
}

/// The value of the setting `vip`.
pub(crate) fn vip_setting(vips: &[IpAddr]) -> String {
    vips.iter().map(IpAddr::to_string).collect::<Vec<_>>().join(",")
}

/// Sets the cluster's virtual IPs before the agent runs; none are given: they stay as they are.
fn set_vips(disk: &Disk, member: &mut Member, vips: &[IpAddr], report: Report<'_>) -> anyhow::Result<()> {
    if vips.is_empty() {
        return Ok(());
    }
    let wish = ("vip".to_owned(), Some(vip_setting(vips)));
    let changes = plan(&member.document, &[wish]).map_err(|mistakes| {
        let words: Vec<String> = mistakes.iter().map(ToString::to_string).collect();
        crate::cli::exit::Failure::error(crate::cli::exit::DATA, words.join("; "))
    })?;
    for change in changes {
        report("setting", true, &format!("{} = {}", change.key, change.new.as_deref().unwrap_or("not set")));
        member.document.set(&change.key, change.new, member.identity.id, wall())?;
    }
    anyhow::ensure!(disk.save_document(&member.document), "{}", disk.problems().join("; "));
    Ok(())
}

/// Joins the cluster of a seed: an invite, or the address of any member.
pub(crate) async fn join(wish: &Wish, seed: &str, report: Report<'_>) -> anyhow::Result<Entered> {
    let invite = if seed.trim().starts_with(invite::PREFIX) {
        Some(seed.parse::<Invite>().map_err(|error| {
            crate::cli::exit::Failure::error(
                crate::cli::exit::DATA,
                format!("this invite can't be used: {error}"),
            )
        })?)
    } else {
        None
    };
    let addresses = match &invite {
        Some(invite) => invite.addresses.clone(),
        None => net::resolve(seed, wish.config.port).await?,
    };
    let disk = open(&wish.config)?;
    match disk.member() {
        Ok(member) => return rejoin(disk, member, invite.as_ref(), &addresses, report).await,
        Err(LoadError::NotMember) => {}
        // An invite is all that it takes to get the rest back, as long as the key is there.
        Err(LoadError::Lost(problem)) => report("state", false, &problem),
        Err(error) => return Err(error.into()),
    }
    let identity = disk.identity()?;
    report("identity", true, &format!("{} in {}", identity.id, wish.config.state_dir));
    let first = addresses.first().copied().context("the seed has no address")?;
    let picked = net::pick_for_seed(first.ip(), wish.interface(), wish.address())?;
    report("address", true, &format!("{} on {}", picked.address, picked.interface));
    if let Some(warning) = &picked.warning {
        report("address", false, warning);
    }
    // Taken before anything is asked for: an invite that is used up by a node that then can't run is lost.
    let ports = Ports::bind(wish.config.bind, wish.config.port)?;
    let mut member = reach(&identity, &addresses, invite.as_ref()).await?;
    report_reached(&member, invite.is_some(), report);
    let node = wish.node(picked.address, picked.interface);
    let own = SocketAddr::new(node.address, node.port);
    let name = node.name.clone();
    let welcome = member
        .ask(name.clone(), invite.as_ref(), vec![own], |code, time| {
            let minutes = time.as_secs() / 60;
            let text = format!("waiting {minutes} minutes for a member to run: agent approve {code}");
            report("approval", true, &text);
        })
        .await?;
    let mut ring = KeyRing::default();
    for key in &welcome.copy.keys {
        ring.add(key.clone());
    }
    let mut peers = welcome.copy.addresses.clone();
    peers.entry(member.key.id()).or_default().insert(0, member.at);
    let entered = Member {
        identity,
        node,
        document: welcome.copy.document.clone(),
        ring,
        invites: Default::default(),
        peers,
        serving: welcome.serving.clone(),
        epochs: Default::default(),
    };
    init::save(&disk, &entered).map_err(anyhow::Error::msg)?;
    let members = entered.document.members().count();
    report("admitted", true, &format!("to \"{}\" as \"{name}\", {members} members", entered.document.name));
    dialled_back(ports, &entered, &mut member, report).await;
    Ok(Entered { disk, member: entered, invite: None })
}

fn report_reached(member: &Reached, invited: bool, report: Report<'_>) {
    let key = if invited { "its key is the invite's" } else { "its key is not known yet: compare the code" };
    let took = member.took.as_secs_f64() * 1e3;
    report("seed", true, &format!("{} answered in {took:.0} ms, {key}", member.at));
}

/// Joining again: asks the seed whether this node still belongs, and goes on without it when it can't be
/// reached.
async fn rejoin(
    disk: Arc<Disk>,
    mut member: Member,
    invite: Option<&Invite>,
    addresses: &[SocketAddr],
    report: Report<'_>,
) -> anyhow::Result<Entered> {
    let known = |pin| member.document.nodes.values().any(|node| invite::pin_of(&node.key) == pin);
    if let Some(invite) = invite
        && !known(invite.issuer)
    {
        anyhow::bail!(
            "this node is a member of the cluster \"{}\", and the invite is of another one; \
             to change over, first run: agent leave",
            member.document.name
        );
    }
    report("cluster", true, &format!("already a member of \"{}\"", member.document.name));
    let asked = async {
        let mut peer = reach(&member.identity, addresses, invite).await?;
        let own = vec![SocketAddr::new(member.node.address, member.node.port)];
        // A member is welcomed at once; whoever has to wait here belongs to another cluster.
        let wait = |_: &str, _: Duration| {};
        let ask = peer.ask(member.node.name.clone(), invite, own, wait);
        tokio::time::timeout(Duration::from_secs(10), ask).await.unwrap_or_else(|_| {
            Err(JoinError::Broken(std::io::Error::other("it is no member of this cluster")))
        })
    };
    match asked.await {
        Ok(welcome) => match member.document.merge(&welcome.copy.document) {
            Ok(_) => {
                for key in welcome.copy.keys {
                    member.ring.add(key);
                }
                for (id, known) in welcome.copy.addresses {
                    member.peers.insert(id, known);
                }
                init::save(&disk, &member).map_err(anyhow::Error::msg)?;
                report("seed", true, "it knows this node; its copy of the cluster document was merged");
            }
            Err(error) => report("seed", false, &format!("its cluster document was refused: {error}")),
        },
        Err(error @ (JoinError::Refused(_) | JoinError::WrongPin(_))) => return Err(error.into()),
        Err(error) => report("seed", false, &format!("not asked: {error}")),
    }
    Ok(Entered { disk, member, invite: None })
}

/// Listens for a moment and has the member dial back, so that a firewall shows now and not later.
async fn dialled_back(ports: Ports, member: &Member, peer: &mut Reached, report: Report<'_>) {
    let life = Life::new();
    let port = member.node.port;
    match listen(ports, member, &life) {
        Err(error) => report("port", false, &format!("{port} can't be listened on: {error}")),
        Ok(_link) => match peer.dialled_back().await {
            Err(error) => report("port", false, &format!("not tested: {error}")),
            Ok((tcp, udp)) => {
                for (protocol, problem) in [("tcp", tcp), ("udp", udp)] {
                    match problem {
                        None => {
                            report(protocol, true, &format!("port {port} is reached from {}", peer.at.ip()))
                        }
                        Some(problem) => {
                            let text = format!(
                                "port {port} is not reached from {}: {problem}; open it in the firewall for {protocol}",
                                peer.at.ip()
                            );
                            report(protocol, false, &text);
                        }
                    }
                }
            }
        },
    }
    life.stopping.cancel();
    life.over.cancel();
    life.finished().await;
}

fn listen(ports: Ports, member: &Member, life: &Life) -> Result<Arc<Link>, rustls::Error> {
    let trust = Trust { document: Arc::new(member.document.clone()), ring: Arc::new(member.ring.clone()) };
    // The sender may go: readers keep its last value.
    let (_, trust) = watch::channel(Arc::new(trust));
    let (link, _, tcp) = Link::new(ports, member.identity.clone(), trust);
    link.serve_udp(life);
    link.serve_tcp(tcp, life)?;
    Ok(link)
}

/// Waits until something serves, for so long at most, and says what: listeners and nodes.
pub(crate) async fn what_serves(running: &Running, within: Duration) -> (bool, String) {
    let mut table = running.table.clone();
    let good = |table: &Arc<Table>| table.values().flatten().any(|backend| backend.state.is_good());
    let _ = tokio::time::timeout(within, table.wait_for(good)).await;
    super::status::of(running).serving()
}
