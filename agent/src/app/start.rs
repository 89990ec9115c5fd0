//! Puts the parts together, in the order in which they may start.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use proto::cluster::Replica;
use proto::config::Config;
use proto::event::Event;
use proto::handover::HandOver;
use proto::invite::InviteLedger;
use proto::node::NodeId;
use proto::problem::Problem;
use proto::record::NodeRecord;
use proto::time::UnixMs;
use proto::transport::KeyRing;
use tokio::sync::{mpsc, watch};
use tracing::{info, warn};

use super::clients::ClientPath;
use super::endpoints::{self, EndpointInputs};
use super::own_node::OwnNode;
use super::peers::{PeerArrivals, PeerInputs, PeerWriters, Peers};
use super::record::RecordInputs;
use super::vip::{EligibilityInputs, VipHandle, VipThreadInputs};
use super::{RunningAgent, doctor, event_wiring, history, node_local, record, requests, seeds, status};
use crate::events::TakeOver;
use crate::gossip::GossipBefore;
use crate::lifecycle::{Lifecycle, wall};
use crate::membership::OwnAddress;
use crate::membership::disk::{MemberStore, StoredMember, VipEpochs};
use crate::membership::task::{self as membership, MembershipHandle, MembershipInputs};
use crate::net;
use crate::netlink::listeners::ListenerLookup;
use crate::transport::{BoundPorts, Inbox, JoinConnection, Link, TrustedKeys};
use crate::vip::{self, NodeLocalInputs, NodeLocalReport, veto};
use crate::{control, handover, watchdog};

/// Time between two lines for `systemctl status`.
const STATUS_PAUSE: Duration = Duration::from_secs(1);

/// What every part that starts later reads.
struct Foundation {
    link: Arc<Link>,
    disk: Arc<MemberStore>,
    trust: watch::Receiver<Arc<TrustedKeys>>,
    clients: ClientPath,
    own: OwnNode,
    peers: Peers,
}

/// Starts everything. The configuration is written by whoever reads it again.
///
/// # Errors
/// The port or the control socket is taken.
pub(super) fn start(
    config: Config,
    disk: Arc<MemberStore>,
    mut member: StoredMember,
    life: &Lifecycle,
) -> anyhow::Result<(Arc<RunningAgent>, watch::Sender<Arc<Config>>)> {
    let moved = take_place(&config, &disk, &mut member);
    let mut received = handover::received();
    let began = received.as_ref().map_or_else(wall, |received| received.form.began);
    let places = doctor::places(&config);
    let (bind, runtime_dir) = (config.bind, config.runtime_dir.clone());
    let (config_in, configured) = watch::channel(Arc::new(config));
    let (events, event_ends) = event_wiring::channels(configured.clone());
    let (trust_in, trust) = watch::channel(Arc::new(member.trusted_keys()));
    let (peers, heard) = Peers::new();
    let before = received.as_mut();
    // What is there already is listened on from the start.
    let here = NodeLocalReport { held: vip::on_lo(), ..NodeLocalReport::default() };
    let (node_local_in, node_local) = watch::channel(Arc::new(here));
    let (clients, held, ended) =
        ClientPath::start(configured.clone(), (&disk, &member), (&trust, node_local), &peers, before, life);

    let handed = received.as_mut().and_then(|received| BoundPorts::handed(bind, member.node.port, received));
    if let Some(bind) = bind.filter(|bind| !net::is_here(*bind)) {
        warn!("no interface has the address of bind, {bind}, yet; waiting for it");
    }
    let ports = match handed {
        Some(ports) => ports,
        None => BoundPorts::bind(bind, member.node.port)?,
    };
    // Closes what nobody has taken.
    let form = received.map(|received| received.form);
    let last = form.as_ref().map(|form| taken_over(form, held, ended));
    let before = form.as_ref().map(|form| GossipBefore {
        version: form.record,
        heartbeat: form.at.0.saturating_sub(form.began.0).max(1),
    });
    let (handed_vips, checked) =
        form.map_or_else(Default::default, |form| ((form.vips, form.at), form.health));
    let (link, inbox) = Link::new(ports, member.identity.clone(), trust.clone());
    for (id, addresses) in &member.peers {
        link.addresses().add_hint(*id, addresses, false);
    }
    let listener = control::bind(Path::new(&runtime_dir))?;
    let own = OwnNode::start((&member, moved), (began, &checked), clients.effective().services(), life);
    if moved {
        own.keep_place(disk.clone(), life);
    }
    link.serve(life)?;

    let Inbox { gossip, members, joining, proven, unknown_key, answers, vips: beats, fingerprints, topology } =
        inbox;
    let StoredMember { replica, ring, invites, epochs, node_local: node_local_added, .. } = member;
    let base = Foundation { link, disk, trust, clients, own, peers };
    let node_local = (node_local_in, node_local_added);
    let vips =
        base.start_vips(beats, events.tell(), (epochs, handed_vips), node_local, configured.clone(), life);
    let endpoints = base.start_endpoints(events.tell(), life);
    let record = base.start_record(&vips, life);
    let membership = base.start_membership((replica, ring, invites), (joining, unknown_key), trust_in, life);
    let arrivals = PeerArrivals { gossip, proven, fingerprints, topology, answers };
    base.start_hearing(heard, arrivals, before, record, life);

    let Foundation { link, disk, trust, clients, own, peers } = base;
    let running = Arc::new(RunningAgent {
        link,
        disk,
        trust,
        membership,
        clients,
        own,
        peers,
        vips,
        events,
        endpoints,
        history: history::BackendHistory::default(),
        places,
        taken_over: last,
        configured: configured.clone(),
        life: life.clone(),
    });
    event_wiring::members(&running, members, life);
    seeds::spawn(&running, life);
    event_wiring::spawn(&running, event_ends, life);
    history::spawn(&running, configured, life);
    control::serve(listener, requests::handler(running.clone()), life);
    tell_systemd(running.clone(), life);
    info!(node = %running.own.file().name, cluster = %running.document().name, "agent started");
    Ok((running, config_in))
}

/// Gives the node the place that its configuration has for it by now; true: at an address that is still to be found.
fn take_place(config: &Config, disk: &MemberStore, member: &mut StoredMember) -> bool {
    let changes = config.place_changes(&member.node.place());
    if let Some(why) = changes.name_refused(&member.node.name) {
        warn!("{why}");
    }
    if changes.is_empty() || changes.is_name_alone() {
        return false;
    }
    info!("taken from the configuration: {}", changes.at_restart());
    member.node.apply(&changes);
    let moved = changes.interface.is_some() && config.address.is_none();
    if !moved {
        disk.save_node(&member.node);
    }
    moved
}

/// Says what was taken over.
fn taken_over(form: &HandOver, held: usize, ended: usize) -> TakeOver {
    let HandOver { agent, at, .. } = form;
    info!("took over from version {agent}: {held} connections go on, {ended} had to be ended");
    TakeOver { from: agent.clone(), at: *at, connections: u64::try_from(held).unwrap_or(u64::MAX) }
}

impl Foundation {
    fn start_vips(
        &self,
        beats: mpsc::Receiver<(NodeId, Vec<u8>)>,
        tell: mpsc::Sender<Event>,
        (epochs, handed): (VipEpochs, (Vec<(IpAddr, u64)>, UnixMs)),
        (report, added): (watch::Sender<Arc<NodeLocalReport>>, BTreeSet<IpAddr>),
        configured: watch::Receiver<Arc<Config>>,
        life: &Lifecycle,
    ) -> VipHandle {
        let eligibility = EligibilityInputs {
            lookup: ListenerLookup::default(),
            own: self.own.file().name.clone(),
            services: self.clients.effective().services(),
            proxy: self.clients.proxy().clone(),
            vetoes: veto::spawn(configured, self.clients.effective().settings(), life),
            health: self.own.health(),
            table: self.clients.table(),
            view: self.peers.view(),
            settings: self.clients.effective().settings(),
            aside: self.link.datagrams().aside(),
        };
        let inputs = VipThreadInputs {
            link: self.link.clone(),
            trust: self.trust.clone(),
            liveness: self.peers.liveness(),
            arrivals: beats,
            tell,
            epochs,
            handed,
        };
        let (link, trust, own) = (self.link.clone(), self.trust.clone(), self.own.watch_address());
        let disk = self.disk.clone();
        let node_local = NodeLocalInputs {
            settings: self.clients.effective().settings(),
            members: Box::new(move || node_local::members(&link, &trust.borrow().document, *own.borrow())),
            tell: inputs.tell.clone(),
            added,
            leaves: Box::new(move || disk.is_wiped()),
            report,
        };
        node_local::keep(self.disk.clone(), self.clients.node_local(), life);
        VipHandle::start(eligibility, inputs, node_local, self.disk.clone(), life)
    }

    /// Where pods are led.
    fn start_endpoints(
        &self,
        tell: mpsc::Sender<Event>,
        life: &Lifecycle,
    ) -> watch::Receiver<Option<Problem>> {
        let (link, trust, own) = (self.link.clone(), self.trust.clone(), self.own.watch_address());
        let inputs = EndpointInputs {
            own: self.link.own(),
            settings: self.clients.effective().settings(),
            services: self.clients.effective().services(),
            trust: self.trust.clone(),
            table: self.clients.table(),
            members: Box::new(move || node_local::members(&link, &trust.borrow().document, *own.borrow())),
            tell,
        };
        endpoints::spawn(inputs, life)
    }

    /// What this node says of itself.
    fn start_record(&self, vips: &VipHandle, life: &Lifecycle) -> watch::Receiver<NodeRecord> {
        let inputs = RecordInputs {
            node: self.own.file().clone(),
            began: self.own.began(),
            own_address: self.own.watch_address(),
            interface: self.own.watch_interface(),
            health: self.own.health(),
            trust: self.trust.clone(),
            settings: self.clients.effective().settings(),
            vips: vips.report(),
            effective: self.clients.effective().watch(),
            node_local: self.clients.watch_node_local_served(),
            liveness: self.peers.liveness(),
        };
        record::spawn(inputs, life)
    }

    fn start_membership(
        &self,
        (replica, ring, invites): (Replica, KeyRing, InviteLedger),
        (joining, unknown_key): (mpsc::Receiver<JoinConnection>, mpsc::Receiver<NodeId>),
        trust: watch::Sender<Arc<TrustedKeys>>,
        life: &Lifecycle,
    ) -> MembershipHandle {
        let inputs = MembershipInputs {
            link: self.link.clone(),
            disk: self.disk.clone(),
            replica,
            ring,
            invites,
            view: self.peers.view(),
            serving: self.clients.serving(),
            own_at: OwnAddress::new(self.own.watch_address(), self.own.file().port),
            held: self.clients.connections_to(),
            joining,
            unknown_key,
        };
        membership::spawn(inputs, trust, life)
    }

    /// Pulses and gossip.
    fn start_hearing(
        &self,
        heard: PeerWriters,
        arrivals: PeerArrivals,
        before: Option<GossipBefore>,
        record: watch::Receiver<NodeRecord>,
        life: &Lifecycle,
    ) {
        let inputs = PeerInputs {
            link: self.link.clone(),
            trust: self.trust.clone(),
            settings: self.clients.effective().settings(),
            serving: self.clients.serving(),
            record,
            disk: self.disk.clone(),
            arrivals,
            before,
        };
        heard.start(inputs, life);
    }
}

/// Keeps `systemctl status` up to date with what serves. Not with each round-trip time that is measured: a
/// status costs more than many connections.
fn tell_systemd(running: Arc<RunningAgent>, life: &Lifecycle) {
    let over = life.shutdown.clone();
    life.supervise("systemd", running.clients.table(), move |table| {
        let (running, over) = (running.clone(), over.clone());
        Box::pin(async move {
            loop {
                watchdog::status(&status::of(&running).serving().1);
                let changed = async {
                    tokio::time::sleep(STATUS_PAUSE).await;
                    table.changed().await
                };
                if !matches!(over.run_until_cancelled(changed).await, Some(Ok(()))) {
                    return;
                }
            }
        })
    });
}
