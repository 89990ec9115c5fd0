//! Virtual IPs: carries out what [`proto::election`] decides, and tells it what the machine sees.
//!
//! One thread of its own, with a runtime of its own, owns everything: the elections, the netlink sockets,
//! the packet sockets. So nothing else that this process does can hold up a beat or the taking away of an
//! address, and the two capabilities that it takes are in effect in this thread alone ([`caps`]), and only
//! while the cluster has virtual IPs. Without any it sleeps: no socket, no timer.
//!
//! Stopping it anywhere is safe: every address that it sets ends by itself two seconds after its last
//! renewal. It alone writes the [`VipReport`].

mod agent_probe;
mod caps;
mod clock;
mod driver;
mod events;
mod kernel;
mod local;
mod lookout;
mod moves;
mod node_local;
mod packet;
mod report;
mod reset;
mod rules;
mod segment;
mod segments;
pub(crate) mod veto;

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use proto::control::{Response, VipStatus};
use proto::node::NodeId;
use proto::pulse::PeerLivenessMap;
use proto::record::{L2Endpoint, VipOwnership};
use proto::settings::Settings;
use proto::time::{Moment, UnixMs};
use proto::unfit::Unfit;
use proto::view::ClusterView;
use tokio::sync::{mpsc, oneshot, watch};
use tracing::error;

use crate::lifecycle::Lifecycle;
use crate::supervisor::supervised;
use crate::transport::{Link, TrustedKeys};

pub(crate) use caps::drop_capabilities;
pub(crate) use node_local::{NodeLocalInputs, NodeLocalReport, host_addresses, on_lo, remove_from_lo};

/// What the thread works with.
pub(crate) struct VipInputs {
    pub(crate) link: Arc<Link>,
    pub(crate) trust: watch::Receiver<Arc<TrustedKeys>>,
    pub(crate) view: watch::Receiver<Arc<ClusterView>>,
    pub(crate) liveness: watch::Receiver<Arc<PeerLivenessMap>>,
    pub(crate) settings: watch::Receiver<Arc<Settings>>,
    pub(crate) fit: watch::Receiver<Arc<LocalEligibility>>,
    /// What members say of virtual IPs.
    pub(crate) arrivals: mpsc::Receiver<(NodeId, Vec<u8>)>,
    pub(crate) orders: mpsc::Receiver<VipOrder>,
    /// Where events are told.
    pub(crate) tell: mpsc::Sender<proto::event::Event>,
    /// The epochs that an earlier agent of this node knew.
    pub(crate) epochs: BTreeMap<IpAddr, u64>,
    /// Those that the process before this one owned when it became this one, with their epochs, and when that was.
    pub(crate) handed: (Vec<(IpAddr, u64)>, UnixMs),
}

/// A virtual IP that the process before this one owned.
#[derive(Debug, Clone, Copy)]
struct HandedVip {
    epoch: u64,
    /// When it was handed over.
    at: Moment,
}

/// What this node could serve, and who is a master.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct LocalEligibility {
    pub(crate) masters: BTreeSet<NodeId>,
    /// For each virtual IP whether its clients would be served here, or why not.
    pub(crate) vips: BTreeMap<IpAddr, Result<(), Unfit>>,
    /// Counts the checks that `vips` comes from.
    pub(crate) checks: u64,
    pub(crate) draining: bool,
    /// This node stands aside for another place of its identity.
    pub(crate) aside: Option<Unfit>,
}

/// What the rest of the agent wants of the thread.
pub(crate) enum VipOrder {
    /// A person wants one moved.
    Move(VipCommand),
    /// This process is about to be replaced, or is not after all; answered once the others have been told.
    Pause(bool, oneshot::Sender<()>),
}

/// A wish of the command line: this virtual IP to that node.
pub(crate) struct VipCommand {
    pub(crate) address: IpAddr,
    pub(crate) node: String,
    pub(crate) reply: oneshot::Sender<Response>,
}

/// What is known of virtual IPs here.
#[derive(Debug, Clone, Default)]
pub(crate) struct VipReport {
    /// For people.
    pub(crate) vips: Vec<VipStatus>,
    /// For gossip: where this node stands on their segments.
    pub(crate) l2_endpoints: Vec<L2Endpoint>,
    /// For gossip: those that this node owns.
    pub(crate) ownerships: BTreeMap<IpAddr, VipOwnership>,
    /// For gossip: those that it may and can't own, and why.
    pub(crate) unfit: BTreeMap<IpAddr, Unfit>,
    /// What keeps this node from taking part at all, for people.
    pub(crate) problem: Option<Unfit>,
    /// For the next start: the highest epoch that is known of each.
    pub(crate) epochs: BTreeMap<IpAddr, u64>,
}

/// Starts the thread, which alone writes the reports: that of virtual IPs, and that of the node-local address.
pub(crate) fn spawn(
    inputs: VipInputs,
    node_local: NodeLocalInputs,
    life: &Lifecycle,
) -> watch::Receiver<Arc<VipReport>> {
    let (report, known) = watch::channel(Arc::default());
    let (ended, end) = oneshot::channel::<()>();
    let own = life.clone();
    let thread = std::thread::Builder::new().name("vip".to_owned()).spawn(move || {
        match tokio::runtime::Builder::new_current_thread().enable_all().build() {
            Ok(runtime) => {
                let over = own.shutdown.clone();
                let driver = driver::VipDriver::new(inputs, report, own.clone());
                let task = node_local::NodeLocalTask::new(node_local, own.draining.clone());
                runtime.block_on(async {
                    let vips = supervised("vip", driver, over.clone(), |driver| Box::pin(driver.run()));
                    let node_local = supervised("node-local", task, over, |task| Box::pin(task.run()));
                    tokio::join!(vips, node_local);
                });
            }
            Err(error) => error!("virtual IPs are disabled on this node: {error}"),
        }
        let _ = ended.send(());
    });
    if let Err(error) = thread {
        error!("virtual IPs are disabled on this node: cannot start their thread: {error}");
    }
    life.spawn(async move {
        if end.await.is_err() {
            error!("the VIP thread failed; its addresses expire within 2 s");
        }
    });
    known
}

#[cfg(test)]
mod tests {
    use proto::cluster::{Admitted, Document, KeyId};
    use proto::node::{NodeId, PublicKey, Role};
    use proto::time::UnixMs;

    /// The id of the node `m1` or another.
    pub(super) fn id(n: u8) -> NodeId {
        PublicKey([n; 32]).id()
    }

    /// A cluster of `m1` to `m3`, of which the last is a worker.
    pub(super) fn document() -> Document {
        let admitted = |n: u8| {
            let role = if n < 3 { Role::Master } else { Role::Worker };
            let name = format!("m{n}").parse().unwrap();
            Admitted::new(name, PublicKey([n; 32]), role, id(1), UnixMs(1))
        };
        let mut document = Document::new([1; 16], "c".parse().unwrap(), admitted(1), KeyId([0; 16]));
        document.admit(admitted(2));
        document.admit(admitted(3));
        document
    }
}
