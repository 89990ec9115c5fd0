//! Puts the parts together, in the order in which they may start.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use proto::cluster::Replica;
use proto::config::Config;
use proto::event::Event;
use proto::invite::InviteLedger;
use proto::node::NodeId;
use proto::record::NodeRecord;
use proto::transport::KeyRing;
use tokio::sync::{mpsc, watch};
use tracing::info;

use super::clients::ClientPath;
use super::own_node::OwnNode;
use super::peers::{PeerArrivals, PeerInputs, PeerWriters, Peers};
use super::record::RecordInputs;
use super::vip::{EligibilityInputs, VipHandle, VipThreadInputs};
use super::{RunningAgent, doctor, event_wiring, history, record, requests, status};
use crate::lifecycle::{Lifecycle, wall};
use crate::membership::OwnAddress;
use crate::membership::disk::{MemberStore, StoredMember, VipEpochs};
use crate::membership::task::{self as membership, MembershipHandle, MembershipInputs};
use crate::transport::{BoundPorts, Inbox, JoinConnection, Link, TrustedKeys};
use crate::{control, watchdog};

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
    member: StoredMember,
    life: &Lifecycle,
) -> anyhow::Result<(Arc<RunningAgent>, watch::Sender<Arc<Config>>)> {
    let began = wall();
    let places = doctor::places(&config);
    let (bind, runtime_dir) = (config.bind, config.runtime_dir.clone());
    let (config_in, configured) = watch::channel(Arc::new(config));
    let (events, event_ends) = event_wiring::channels(configured.clone());
    let (trust_in, trust) = watch::channel(Arc::new(member.trusted_keys()));
    let (peers, heard) = Peers::new();
    let clients = ClientPath::start(configured.clone(), (&disk, &member), &trust, &peers, life);

    let ports = BoundPorts::bind(bind, member.node.port)?;
    let (link, inbox, tcp) = Link::new(ports, member.identity.clone(), trust.clone());
    for (id, addresses) in &member.peers {
        link.addresses().add_hint(*id, addresses, false);
    }
    let listener = control::bind(Path::new(&runtime_dir))?;
    let own = OwnNode::start(&member, began, clients.effective().services(), life);
    link.serve(tcp, life)?;

    let Inbox { gossip, members, joining, proven, unknown_key, answers, vips: beats, fingerprints, topology } =
        inbox;
    let StoredMember { replica, ring, invites, epochs, .. } = member;
    let base = Foundation { link, disk, trust, clients, own, peers };
    let vips = base.start_vips(beats, events.tell(), epochs, life);
    let record = base.start_record(&vips, life);
    let membership = base.start_membership((replica, ring, invites), (joining, unknown_key), trust_in, life);
    base.start_hearing(heard, PeerArrivals { gossip, proven, fingerprints, topology, answers }, record, life);

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
        history: history::BackendHistory::default(),
        places,
        life: life.clone(),
    });
    event_wiring::members(&running, members, life);
    event_wiring::spawn(&running, event_ends, life);
    history::spawn(&running, configured, life);
    control::serve(listener, requests::handler(running.clone()), life);
    tell_systemd(running.clone(), life);
    info!(node = %running.own.file().name, cluster = %running.document().name, "agent started");
    Ok((running, config_in))
}

impl Foundation {
    fn start_vips(
        &self,
        beats: mpsc::Receiver<(NodeId, Vec<u8>)>,
        tell: mpsc::Sender<Event>,
        epochs: VipEpochs,
        life: &Lifecycle,
    ) -> VipHandle {
        let eligibility = EligibilityInputs {
            own: self.own.file().name.clone(),
            services: self.clients.effective().services(),
            health: self.own.health(),
            table: self.clients.table(),
            view: self.peers.view(),
            settings: self.clients.effective().settings(),
        };
        let inputs = VipThreadInputs {
            link: self.link.clone(),
            trust: self.trust.clone(),
            liveness: self.peers.liveness(),
            arrivals: beats,
            tell,
            epochs,
        };
        VipHandle::start(eligibility, inputs, self.disk.clone(), life)
    }

    /// What this node says of itself.
    fn start_record(&self, vips: &VipHandle, life: &Lifecycle) -> watch::Receiver<NodeRecord> {
        let inputs = RecordInputs {
            node: self.own.file().clone(),
            began: self.own.began(),
            own_address: self.own.watch_address(),
            health: self.own.health(),
            trust: self.trust.clone(),
            settings: self.clients.effective().settings(),
            vips: vips.report(),
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
