//! The node-local address: every node has it on `lo`, beside virtual IPs and in their thread, which alone has the
//! capability to change addresses.
//!
//! Unlike a virtual IP it has no lifetime in the kernel. Nobody else has it, so nothing is wrong when the agent is gone
//! and the address is not: the kernel then refuses clients at once, where without the address their packets would
//! leave by the default route and nobody would answer. So a stop keeps it, and only an end does not: unset, leave,
//! uninstall. What was set is kept on disk, so that an address that is no setting any more is taken away at the next
//! start.
//!
//! Stopping it anywhere is safe: it reads back what is there. It alone writes the [`NodeLocalReport`].

mod host;
mod ping;

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use proto::event::{Event, EventKind, EventLevel};
use proto::node::Name;
use proto::node_local::{AddressConflict, HostAddress, conflict};
use proto::settings::Settings;
use tokio::sync::{mpsc, watch};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use super::caps::RaisedCapabilities;
use crate::lifecycle::wall;
use crate::netlink::route::AddressMessage;
use crate::netlink::{KernelChanges, messages};
pub(crate) use host::{host_addresses, on_lo, remove_from_lo};

/// Between two looks without a cause.
const LOOK: Duration = Duration::from_secs(10);

/// Shortest time between two times that an address is put back: whoever takes it away again and again does not make
/// this node busy.
const PUT_BACK: Duration = Duration::from_secs(1);

/// Shortest time between two events of an address that is put back.
const TELL: Duration = Duration::from_secs(30);

/// After this time it is asked again whether somebody answers at an address.
const ASK_AGAIN: Duration = Duration::from_secs(30);

/// What the task works with.
pub(crate) struct NodeLocalInputs {
    pub(crate) settings: watch::Receiver<Arc<Settings>>,
    /// The addresses of all members.
    pub(crate) members: Box<dyn Fn() -> Vec<(Name, IpAddr)> + Send>,
    /// Where events are told.
    pub(crate) tell: mpsc::Sender<Event>,
    /// What an earlier agent of this node has set.
    pub(crate) added: BTreeSet<IpAddr>,
    /// Whether this node leaves its cluster as it stops.
    pub(crate) leaves: Box<dyn Fn() -> bool + Send>,
    pub(crate) report: watch::Sender<Arc<NodeLocalReport>>,
}

/// What became of the node-local addresses here.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct NodeLocalReport {
    /// Those on `lo`.
    pub(crate) held: BTreeSet<IpAddr>,
    /// What is wrong with one, held or not.
    pub(crate) wrong: BTreeMap<IpAddr, String>,
    /// Those that were set here, to be kept on disk.
    pub(crate) added: BTreeSet<IpAddr>,
}

/// What is open while there are addresses.
struct Opened {
    host: host::Host,
    changes: KernelChanges,
    raised: RaisedCapabilities,
}

impl Opened {
    fn open() -> io::Result<Opened> {
        // Before the socket: what is lost in between is seen by the first look.
        let raised = RaisedCapabilities::raise();
        Ok(Opened { host: host::Host::open()?, changes: KernelChanges::subscribe()?, raised })
    }
}

/// The task.
pub(super) struct NodeLocalTask {
    inputs: NodeLocalInputs,
    stopping: CancellationToken,
    opened: Option<Opened>,
    report: NodeLocalReport,
    /// Addresses at which somebody has answered, and when.
    answered: BTreeMap<IpAddr, Instant>,
    /// When an address was put back last, and told of.
    put_back: Option<Instant>,
    told: Option<Instant>,
}

impl NodeLocalTask {
    pub(super) fn new(inputs: NodeLocalInputs, stopping: CancellationToken) -> NodeLocalTask {
        let report = NodeLocalReport { added: inputs.added.clone(), ..NodeLocalReport::default() };
        NodeLocalTask {
            inputs,
            stopping,
            opened: None,
            report,
            answered: BTreeMap::new(),
            put_back: None,
            told: None,
        }
    }

    /// Runs until the process stops.
    pub(super) async fn run(&mut self) {
        let stopping = self.stopping.clone();
        loop {
            let again = tokio::select! {
                again = self.reconcile() => again,
                () = stopping.cancelled() => Duration::ZERO,
            };
            let NodeLocalTask { inputs, opened, report, .. } = self;
            tokio::select! {
                biased;
                () = stopping.cancelled() => return self.stop(),
                Ok(()) = inputs.settings.changed() => {}
                () = gone(opened, &report.added) => {}
                () = tokio::time::sleep(again), if opened.is_some() => {}
            }
        }
    }

    /// Looks at what is there and makes it what is wanted; returns when to look again.
    async fn reconcile(&mut self) -> Duration {
        let wanted = self.inputs.settings.borrow_and_update().node_local.addresses.clone();
        if wanted.is_empty() && self.report.added.is_empty() {
            self.opened = None;
            self.publish(NodeLocalReport::default());
            return LOOK;
        }
        let mut report = NodeLocalReport { added: self.report.added.clone(), ..NodeLocalReport::default() };
        let again = match self.apply(&wanted, &mut report).await {
            Ok(again) => again,
            Err(error) => {
                let why = format!("cannot query the kernel (netlink): {error}");
                report.wrong.extend(wanted.iter().map(|ip| (*ip, why.clone())));
                LOOK
            }
        };
        self.publish(report);
        again
    }

    async fn apply(
        &mut self,
        wanted: &BTreeSet<IpAddr>,
        report: &mut NodeLocalReport,
    ) -> io::Result<Duration> {
        let opened = match &mut self.opened {
            Some(opened) => opened,
            none => none.insert(Opened::open()?),
        };
        for ip in self.report.added.difference(wanted) {
            match opened.host.remove(*ip) {
                Ok(()) => {
                    info!("node-local address {ip} removed from lo");
                    report.added.remove(ip);
                    let event = Event::new(EventKind::NodeLocal, wall(), ip.to_string(), "removed");
                    let _ = self.inputs.tell.try_send(event.reason("it is no setting any more"));
                }
                Err(error) => warn!("cannot remove the node-local address {ip} from lo: {error}"),
            }
        }
        let addresses = opened.host.addresses()?;
        let members = (self.inputs.members)();
        let mut again = LOOK;
        for ip in wanted {
            let against = conflict(*ip, &addresses, members.iter().map(|(name, ip)| (name, *ip)));
            if is_on_lo(&addresses, *ip) {
                report.held.insert(*ip);
                report.added.insert(*ip);
            } else if self.report.added.contains(ip) {
                if let Some(wait) = self.put_back.and_then(|at| PUT_BACK.checked_sub(at.elapsed())) {
                    again = wait;
                    // Its listeners stay as they are for this moment.
                    report.held.extend(self.report.held.get(ip));
                } else {
                    self.set(*ip, report);
                }
            } else if against.is_none() {
                match self.in_use(*ip, &members).await {
                    true => {
                        report.wrong.insert(*ip, AddressConflict::Answers { address: *ip }.to_string());
                    }
                    false => self.set(*ip, report),
                }
            }
            if let Some(against) = against {
                let kept = if report.held.contains(ip) { "; it stays, since clients use it" } else { "" };
                report.wrong.insert(*ip, format!("{against}{kept}"));
            }
        }
        Ok(again)
    }

    /// Sets an address, for the first time or again.
    fn set(&mut self, ip: IpAddr, report: &mut NodeLocalReport) {
        let Some(opened) = &mut self.opened else { return };
        if let Err(error) = opened.host.add(ip) {
            let why = match opened.raised.missing() {
                Some(missing) => missing.to_string(),
                None => format!("the kernel rejects {ip} on lo: {error}"),
            };
            report.wrong.insert(ip, why);
            return;
        }
        let was_held = self.report.held.contains(&ip);
        report.held.insert(ip);
        report.added.insert(ip);
        let to = if was_held { "put-back" } else { "added" };
        let event = Event::new(EventKind::NodeLocal, wall(), ip.to_string(), to);
        if !was_held {
            info!("node-local address {ip} is on lo");
            let _ = self.inputs.tell.try_send(event);
            return;
        }
        let now = Instant::now();
        self.put_back = Some(now);
        warn!("node-local address {ip} was removed from lo by another program and was put back");
        if self.told.is_none_or(|told| now - told >= TELL) {
            self.told = Some(now);
            let event = event.reason("another program removed it from lo").level(EventLevel::Warning);
            let _ = self.inputs.tell.try_send(event);
        }
    }

    /// Whether another machine answers at an address that is not here yet.
    async fn in_use(&mut self, ip: IpAddr, members: &[(Name, IpAddr)]) -> bool {
        if self.answered.get(&ip).is_some_and(|at| at.elapsed() < ASK_AGAIN) {
            return true;
        }
        let members: Vec<IpAddr> = members.iter().map(|(_, ip)| *ip).collect();
        let asked = self.opened.as_mut().is_some_and(|one| one.host.leaves_the_cluster(ip, &members));
        let answers = asked && ping::answers(ip).await;
        if answers {
            self.answered.insert(ip, Instant::now());
        } else {
            self.answered.remove(&ip);
        }
        answers
    }

    fn publish(&mut self, report: NodeLocalReport) {
        for (ip, why) in &report.wrong {
            if self.report.wrong.get(ip) != Some(why) {
                warn!("node-local address {ip}: {why}");
            }
        }
        self.report = report;
        self.inputs.report.send_if_modified(|known| {
            let changed = **known != self.report;
            if changed {
                *known = Arc::new(self.report.clone());
            }
            changed
        });
    }

    /// The process stops: what is set stays, so that clients are refused until the next one, unless there is none.
    fn stop(&mut self) {
        if !(self.inputs.leaves)() {
            return;
        }
        let Some(opened) = &mut self.opened else { return };
        for ip in std::mem::take(&mut self.report.added) {
            if let Err(error) = opened.host.remove(ip) {
                warn!("cannot remove the node-local address {ip} from lo: {error}");
            }
        }
    }
}

/// Whether the address of one machine is on `lo`.
fn is_on_lo(addresses: &[HostAddress], ip: IpAddr) -> bool {
    addresses.iter().any(|one| one.ip == ip && one.interface == "lo")
}

/// Waits until the kernel says that one of these is gone, or that it does not say everything.
async fn gone(opened: &mut Option<Opened>, ours: &BTreeSet<IpAddr>) {
    let Some(opened) = opened else { return std::future::pending().await };
    loop {
        let told = match opened.changes.next().await {
            Ok(Some(bytes)) => messages(bytes).any(|message| {
                let of = AddressMessage::read(message.kind, message.body);
                of.is_some_and(|one| one.gone && ours.contains(&one.ip))
            }),
            Ok(None) => true,
            Err(error) => {
                warn!("no notifications of address changes, polling instead: {error}");
                return std::future::pending().await;
            }
        };
        if told {
            return;
        }
    }
}
