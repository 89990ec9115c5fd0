//! How a node enters a cluster: [`init()`] on the first, [`join()`] on the others.
//!
//! What happens is told step by step as a [`SetupStep`], and what goes wrong is a [`SetupError`]: the words, the
//! questions to a person and the exit codes belong to whoever asked.

mod join;
mod report;

use std::net::{IpAddr, SocketAddr};
use std::path::Path;
use std::sync::Arc;

use proto::config::Config;
use proto::node::Name;
use proto::settings::plan;
use proto::transport::PORT;

pub(crate) use self::join::{JoinSeed, join};
pub(crate) use self::report::{RejoinOutcome, SeedKey, SetupError, SetupStep, StepReport};
use crate::lifecycle::wall;
use crate::membership::disk::{LoadError, MemberStore, NodeFile, StoredMember};
use crate::membership::init::{self, FirstInvites};
use crate::membership::members::not_a_master;
use crate::net;
use crate::state::{StateDir, StateError};
use crate::transport::BoundPorts;

/// What was asked for: the configuration with the flags of the command line over it.
pub(crate) struct SetupOptions {
    config: Config,
}

/// A node that has entered, ready to run.
pub(crate) struct ReadyNode {
    pub(crate) disk: Arc<MemberStore>,
    pub(crate) member: StoredMember,
    /// The lines for other nodes, after `init`.
    pub(crate) invites: Option<FirstInvites>,
}

impl SetupOptions {
    /// By a configuration.
    pub(crate) fn new(config: Config) -> SetupOptions {
        SetupOptions { config }
    }

    /// This node's name: as told, or as its machine is called.
    fn name(&self) -> Name {
        self.config.name.clone().unwrap_or_else(|| {
            let name = rustix::system::uname();
            Name::nearest(name.nodename().to_str().unwrap_or("node").split('.').next().unwrap_or("node"))
        })
    }

    fn address(&self) -> Option<IpAddr> {
        self.config.address
    }

    fn interface(&self) -> Option<&str> {
        self.config.interface.as_deref()
    }

    fn port(&self) -> u16 {
        self.config.port.unwrap_or(PORT)
    }

    /// Gives a member that does not run the place that was asked for.
    fn apply(
        &self,
        disk: &MemberStore,
        node: &mut NodeFile,
        report: StepReport<'_>,
    ) -> Result<(), SetupError> {
        let changes = self.config.place_changes(&node.place());
        if let Some(why) = changes.name_refused(&node.name) {
            return Err(SetupError::Renamed(why));
        }
        if changes.is_empty() {
            return Ok(());
        }
        let before = node.address;
        node.apply(&changes);
        if changes.interface.is_some() || changes.address.is_some() {
            // An address that was not asked for does not keep the node from another interface.
            let wanted = self.address().or_else(|| changes.interface.is_none().then_some(before));
            let picked = net::pick_for_init(&net::interfaces()?, Some(&node.interface), wanted)?;
            (node.address, node.interface) = (picked.address, picked.interface);
        }
        let (address, interface) = (node.address, node.interface.clone());
        report(SetupStep::Address { address, interface, kind: None });
        if disk.save_node(node) { Ok(()) } else { Err(disk.not_kept().into()) }
    }

    fn node(&self, address: IpAddr, interface: String) -> NodeFile {
        NodeFile {
            name: self.name(),
            address,
            interface,
            pinned: self.address().is_some(),
            port: self.port(),
        }
    }
}

/// Takes over the state directory.
///
/// # Errors
/// Another agent uses it, or it can't be made.
pub(crate) fn open(config: &Config) -> Result<Arc<MemberStore>, StateError> {
    Ok(Arc::new(MemberStore::new(StateDir::open(Path::new(&config.state_dir))?)))
}

/// The state directory of a running agent, to see whether this program could start from it. Nothing is changed.
pub(crate) fn look(config: &Config) -> MemberStore {
    MemberStore::new(StateDir::look(Path::new(&config.state_dir)))
}

/// What a cluster begins with.
pub(crate) struct FirstNode<'a> {
    /// Its name; none: the usual one.
    pub(crate) cluster: Option<Name>,
    /// Virtual IPs.
    pub(crate) vips: &'a [IpAddr],
    /// New invites, also where this node is in a cluster already.
    pub(crate) invites: bool,
}

/// Makes a cluster with this node, and invites; or, where it is in one already, only the invites that `first` wants.
///
/// # Errors
/// Nothing was entered: see [`SetupError`].
pub(crate) fn init(
    options: &SetupOptions,
    first: FirstNode<'_>,
    report: StepReport<'_>,
) -> Result<ReadyNode, SetupError> {
    let FirstNode { cluster, vips, invites } = first;
    let disk = open(&options.config)?;
    match disk.member() {
        Ok(mut member) => {
            report(SetupStep::AlreadyMember(member.document().name.clone()));
            let own = member.identity.id;
            if !member.document().is_master(&own) {
                return Err(SetupError::NotMaster(not_a_master(member.document())));
            }
            options.apply(&disk, &mut member.node, report)?;
            let address = SocketAddr::new(member.node.address, member.node.port);
            let key = member.identity.key;
            let invites = invites.then(|| FirstInvites::issue(&mut member.invites, &key, address));
            if invites.is_some() {
                disk.save_invites(&member.invites);
            }
            set_vips(&disk, &mut member, vips, report)?;
            return Ok(ReadyNode { disk, member, invites });
        }
        Err(LoadError::NotMember) => {}
        Err(error) => return Err(error.into()),
    }
    let interfaces = net::interfaces()?;
    let net::PickedAddress { address, interface, .. } =
        net::pick_for_init(&interfaces, options.interface(), options.address())?;
    let kind = interfaces.iter().find(|one| one.name == interface).and_then(|one| one.kind.clone());
    report(SetupStep::Address { address, interface: interface.clone(), kind });
    let identity = disk.identity()?;
    report(SetupStep::Identity { id: identity.id, dir: options.config.state_dir.clone() });
    // Free again at once, for the agent itself; a cluster whose first node can't run would have to be undone.
    drop(BoundPorts::bind(options.config.bind, options.port())?);
    let node = options.node(address, interface);
    let cluster = cluster.unwrap_or_else(|| Name::nearest("cluster"));
    let (mut member, invites) = init::create(&disk, identity, node, cluster)?;
    report(SetupStep::Created { cluster: member.document().name.clone(), node: member.node.name.clone() });
    set_vips(&disk, &mut member, vips, report)?;
    Ok(ReadyNode { disk, member, invites: Some(invites) })
}

/// Starts a cluster that takes the place of this node's, which has no master left. The agent must not run.
///
/// # Errors
/// The old cluster stands: see [`SetupError`].
pub(crate) fn succeed(options: &SetupOptions, report: StepReport<'_>) -> Result<ReadyNode, SetupError> {
    let disk = open(&options.config)?;
    let member = disk.member()?;
    let (old, masters) = (member.document().id.clone(), member.document().master_names());
    report(SetupStep::Replaces { old, masters });
    let (member, invites) = init::succeed(&disk, member)?;
    let document = member.document();
    report(SetupStep::Succeeded { cluster: document.name.clone(), id: document.id.clone() });
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
) -> Result<(), SetupError> {
    if vips.is_empty() {
        return Ok(());
    }
    let options = ("vip".to_owned(), Some(vip_setting(vips)));
    let changes = plan(member.document(), &[options]).map_err(SetupError::Vips)?;
    let identity = member.identity.clone();
    member.replica.change(identity.id, identity.pair(), |document| {
        for change in &changes {
            document.set(&change.key, change.new.clone(), identity.id, wall())?;
        }
        Ok(())
    })?;
    for change in changes {
        report(SetupStep::Setting { key: change.key, value: change.new });
    }
    if disk.save_replica(&member.replica) { Ok(()) } else { Err(disk.not_kept().into()) }
}
