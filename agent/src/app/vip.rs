//! What virtual IPs need of the rest: whether this node could serve what they front, and who is a master.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use proto::backends::BackendTable;
use proto::cause::Cause;
use proto::control::Response;
use proto::event::Event;
use proto::front::VipFront;
use proto::node::{Name, NodeId, Role};
use proto::pulse::PeerLivenessMap;
use proto::service::{Service, ServiceName};
use proto::settings::{Settings, VipSettings};
use proto::time::UnixMs;
use proto::unfit::Unfit;
use proto::view::ClusterView;
use tokio::sync::{mpsc, oneshot, watch};

use crate::check::OwnHealth;
use crate::lifecycle::Lifecycle;
use crate::membership::disk::{MemberStore, VipEpochs};
use crate::netlink::listeners::ListenerLookup;
use crate::proxy::Proxy;
use crate::timer::KernelTimer;
use crate::transport::{Link, TrustedKeys};
use crate::vip::veto::Vetoes;
use crate::vip::{LocalEligibility, NodeLocalInputs, VipCommand, VipOrder, VipReport};

/// Time between two looks at health.
const EVERY: Duration = Duration::from_millis(500);
/// The same while what was good is bad: three looks in a row decide.
const HURRY: Duration = Duration::from_millis(100);
/// How many of those.
const DOUBTS: u32 = 3;

/// Longest wait until others were told of a pause.
const TOLD: Duration = Duration::from_millis(200);

/// Wishes about virtual IPs that wait to be read; each comes from someone who waits for its answer.
const ORDERS: usize = 16;

/// What this node's eligibility is derived from.
pub(super) struct EligibilityInputs {
    pub(super) own: Name,
    pub(super) services: watch::Receiver<Arc<Vec<Service>>>,
    pub(super) proxy: Proxy,
    /// What this node's own programs say.
    pub(super) vetoes: watch::Receiver<Arc<Vetoes>>,
    pub(super) health: watch::Receiver<Arc<OwnHealth>>,
    pub(super) table: watch::Receiver<Arc<BackendTable>>,
    pub(super) view: watch::Receiver<Arc<ClusterView>>,
    pub(super) settings: watch::Receiver<Arc<Settings>>,
    /// Where the other place is for which this node stands aside.
    pub(super) aside: watch::Receiver<Option<SocketAddr>>,
    /// Asks the kernel who listens.
    pub(super) lookup: ListenerLookup,
}

/// What the thread reads beside that.
pub(super) struct VipThreadInputs {
    pub(super) link: Arc<Link>,
    pub(super) trust: watch::Receiver<Arc<TrustedKeys>>,
    pub(super) liveness: watch::Receiver<Arc<PeerLivenessMap>>,
    /// What members say of virtual IPs.
    pub(super) arrivals: mpsc::Receiver<(NodeId, Vec<u8>)>,
    pub(super) tell: mpsc::Sender<Event>,
    /// What an earlier agent of this node knew.
    pub(super) epochs: VipEpochs,
    /// What the process before this one owned, and when it became this one.
    pub(super) handed: (Vec<(IpAddr, u64)>, UnixMs),
}

/// Starts the task that writes the watch.
fn spawn(inputs: EligibilityInputs, life: &Lifecycle) -> watch::Receiver<Arc<LocalEligibility>> {
    let (sender, receiver) = watch::channel(Arc::default());
    let own = life.clone();
    life.supervise("vip-fitness", (inputs, sender), move |(inputs, sender)| {
        let life = own.clone();
        Box::pin(async move {
            let mut fit = LocalEligibility::default();
            let mut doubts = 0;
            let (over, mut timer) = (life.shutdown.clone(), KernelTimer::new());
            loop {
                // Without any virtual IP nobody asks.
                let settings = inputs.settings.borrow_and_update().clone();
                if settings.vips.is_empty() {
                    tokio::select! {
                        Ok(()) = inputs.settings.changed() => continue,
                        () = over.cancelled() => return,
                    }
                }
                let vips = inputs.evaluate(&settings);
                let bad = vips.iter().any(|(vip, now)| now.is_err() && fit.vips.get(vip) == Some(&Ok(())));
                doubts = if bad { DOUBTS } else { doubts };
                let draining = settings.drains.contains_key(&inputs.own);
                fit = LocalEligibility {
                    masters: inputs.masters(),
                    vips,
                    checks: fit.checks + 1,
                    draining,
                    aside: inputs.aside.borrow_and_update().map(|at| {
                        let reason = format_args!("this node's identity is in use at {}", at.ip());
                        Unfit::new(Cause::IdentityInUse, reason)
                    }),
                };
                sender.send_replace(Arc::new(fit.clone()));
                // At the moments of beats: the VIP thread wakes up for what is found, too.
                let now = life.now();
                let next = if doubts > 0 { now.after(HURRY) } else { now.next_regular(EVERY) };
                doubts = doubts.saturating_sub(1);
                tokio::select! {
                    () = timer.until(life.monotonic(next)) => {}
                    Ok(()) = inputs.health.changed(), if doubts == 0 => {}
                    Ok(()) = inputs.vetoes.changed(), if doubts == 0 => {}
                    Ok(()) = inputs.settings.changed() => {}
                    Ok(()) = inputs.aside.changed() => {}
                    () = over.cancelled() => return,
                }
            }
        })
    });
    receiver
}

/// Writes the epochs of virtual IPs whenever one has grown: without them they would begin anew when all
/// agents are started at once.
fn save_epochs(
    disk: Arc<MemberStore>,
    saved: VipEpochs,
    report: watch::Receiver<Arc<VipReport>>,
    life: &Lifecycle,
) {
    life.follow("vip", report, (disk, saved), |(disk, saved), now| {
        // One that is no setting any more may come back: what was known of it stays.
        let mut grown = false;
        for (address, epoch) in &now.epochs {
            let known = saved.entry(*address).or_default();
            grown |= epoch > known;
            *known = (*known).max(*epoch);
        }
        if grown {
            disk.save_epochs(saved);
        }
    });
}

/// How the rest of the agent reaches the VIP thread.
pub(super) struct VipHandle {
    report: watch::Receiver<Arc<VipReport>>,
    orders: mpsc::Sender<VipOrder>,
}

impl VipHandle {
    /// Starts the thread, with what this node could serve and the epochs that it knew.
    pub(super) fn start(
        eligibility: EligibilityInputs,
        inputs: VipThreadInputs,
        node_local: NodeLocalInputs,
        disk: Arc<MemberStore>,
        life: &Lifecycle,
    ) -> VipHandle {
        let VipThreadInputs { link, trust, liveness, arrivals, tell, epochs, handed } = inputs;
        let (orders, received) = mpsc::channel(ORDERS);
        let inputs = crate::vip::VipInputs {
            link,
            trust,
            view: eligibility.view.clone(),
            liveness,
            settings: eligibility.settings.clone(),
            fit: spawn(eligibility, life),
            arrivals,
            orders: received,
            tell,
            epochs: epochs.clone(),
            handed,
        };
        let report = crate::vip::spawn(inputs, node_local, life);
        save_epochs(disk, epochs, report.clone(), life);
        VipHandle { report, orders }
    }

    /// What is known of virtual IPs.
    pub(super) fn report(&self) -> watch::Receiver<Arc<VipReport>> {
        self.report.clone()
    }

    /// Has a virtual IP moved, and waits until it is.
    pub(super) async fn move_to(&self, address: IpAddr, node: String) -> Response {
        let (reply, answer) = oneshot::channel();
        let busy = || Response::Failed("the agent is busy or stopping; try again".to_owned());
        if self.orders.try_send(VipOrder::Move(VipCommand { address, node, reply })).is_err() {
            return busy();
        }
        answer.await.unwrap_or_else(|_| busy())
    }

    /// Tells the others that this process is about to be replaced, or is not after all. Returns once they were told,
    /// or that takes too long.
    pub(super) async fn set_pausing(&self, pausing: bool) {
        let (told, done) = oneshot::channel();
        if self.orders.try_send(VipOrder::Pause(pausing, told)).is_ok() {
            let _ = tokio::time::timeout(TOLD, done).await;
        }
    }
}

impl EligibilityInputs {
    /// Who has an apiserver. Who was not heard since this agent's start counts by the last good list.
    fn masters(&mut self) -> BTreeSet<NodeId> {
        let view = self.view.borrow_and_update().clone();
        let table = self.table.borrow_and_update().clone();
        let known =
            view.members.iter().filter(|(_, member)| member.role() == Role::Master).map(|(id, _)| *id);
        let listed = table.get(&ServiceName::kube_api()).into_iter().flatten().map(|backend| backend.node);
        known.chain(listed.filter(|id| !view.members.contains_key(id))).collect()
    }

    /// For each virtual IP whether its clients would be served here.
    fn evaluate(&mut self, settings: &Settings) -> BTreeMap<IpAddr, Result<(), Unfit>> {
        let services = self.services.borrow_and_update().clone();
        let health = self.health.borrow_and_update().clone();
        let table = self.table.borrow().clone();
        let vetoes = self.vetoes.borrow_and_update().clone();
        let listeners = self.proxy.listeners();
        let lookup = &mut self.lookup;
        lookup.begin();
        let mut evaluate = |vip: &VipSettings| {
            let name = &vip.service;
            let Some(service) = services.iter().find(|service| service.name == *name) else {
                let reason = format_args!("{name} is not served here");
                return Err(Unfit::new(Cause::NotServed, reason));
            };
            let own = health.get(name);
            let shared = settings.services.iter().find(|service| service.name == *name);
            let front = VipFront {
                address: vip.address,
                service,
                shared_listen: shared.map_or(&[], |service| &service.listen),
                listeners: listeners.get(name).map_or(&[], Vec::as_slice),
                own,
                listens: own.and_then(|_| lookup.listens(SocketAddr::new(vip.address, service.port))),
                backends: table.get(name).map_or(&[], Vec::as_slice),
            };
            front.evaluate()?;
            vetoes.get(&vip.address).cloned().unwrap_or(Ok(()))
        };
        settings.vips.iter().map(|vip| (vip.address, evaluate(vip))).collect()
    }
}
