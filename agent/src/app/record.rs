//! What this node says of itself, put together from those who know.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use proto::node::NodeId;
use proto::pulse::{Liveness, PeerLiveness, PeerLivenessMap};
use proto::record::{NodeRecord, PeerLink};
use proto::settings::Settings;
use proto::time::{Moment, UnixMs};
use proto::topology::measurements;
use proto::transport::VERSIONS;
use tokio::sync::watch;

use super::effective_config::EffectiveConfig;
use crate::check::OwnHealth;
use crate::lifecycle::{Lifecycle, wall};
use crate::membership::disk::NodeFile;
use crate::net::OwnInterface;
use crate::transport::TrustedKeys;
use crate::vip::VipReport;

/// Between two looks at round trips and losses, which nobody is told of.
const AGAIN: Duration = Duration::from_secs(20);

/// Shortest time between two hashes of the document in the record. While many nodes join it changes all the time,
/// and each new record of each node goes to all others.
const HASHES: Duration = Duration::from_secs(2);

/// What the record is made of.
pub(super) struct RecordInputs {
    pub(super) node: NodeFile,
    pub(super) began: UnixMs,
    pub(super) own_address: watch::Receiver<Option<IpAddr>>,
    pub(super) interface: watch::Receiver<OwnInterface>,
    pub(super) health: watch::Receiver<Arc<OwnHealth>>,
    pub(super) trust: watch::Receiver<Arc<TrustedKeys>>,
    /// Of the whole cluster: this node's drain and its weight are among them.
    pub(super) settings: watch::Receiver<Arc<Settings>>,
    pub(super) vips: watch::Receiver<Arc<VipReport>>,
    /// Says anew that listeners may have changed.
    pub(super) effective: watch::Receiver<Arc<EffectiveConfig>>,
    /// The node-local addresses that this node serves.
    pub(super) node_local: Box<dyn Fn() -> Vec<IpAddr> + Send>,
    pub(super) liveness: watch::Receiver<Arc<PeerLivenessMap>>,
}

/// The task: what it reads, and what was said of each peer.
struct RecordTask {
    inputs: RecordInputs,
    said: BTreeMap<NodeId, PeerLink>,
    /// When measurements were last stated anew.
    measured: Option<Moment>,
    hash: DocumentHash,
}

/// The document's hash as the record has it.
#[derive(Default)]
struct DocumentHash {
    text: String,
    since: Option<Moment>,
    /// The document has another one by now.
    is_old: bool,
}

impl DocumentHash {
    /// What the record has of a document with this hash.
    fn of(&mut self, hash: String, now: Moment) -> String {
        self.is_old = hash != self.text;
        if self.is_old && self.next() <= now {
            *self = DocumentHash { text: hash, since: Some(now), is_old: false };
        }
        self.text.clone()
    }

    /// When it may have the next one.
    fn next(&self) -> Moment {
        self.since.map_or(Moment::ZERO, |since| since.after(HASHES))
    }

    /// When the record has to be made anew because of it.
    fn deadline(&self) -> Option<Moment> {
        self.is_old.then(|| self.next())
    }
}

impl RecordTask {
    /// What this node says of itself now.
    fn record(&mut self, stopping: bool, now: Moment) -> NodeRecord {
        let address = *self.inputs.own_address.borrow_and_update();
        let interface = self.inputs.interface.borrow_and_update().name.clone();
        let health = self.inputs.health.borrow_and_update().clone();
        let document = self.inputs.trust.borrow_and_update().document.clone();
        let liveness = self.inputs.liveness.borrow_and_update().clone();
        let pause = measurements(document.members().count());
        let renew = self.measured.is_none_or(|at| now.since(at) >= pause);
        let said = |(id, peer_liveness): (&NodeId, &PeerLiveness)| {
            Some((*id, peer_link(self.said.get(id), peer_liveness, renew)?))
        };
        let said = liveness.iter().filter_map(said).collect();
        if renew && said != self.said {
            self.measured = Some(now);
        }
        self.said = said;
        let vips = self.inputs.vips.borrow_and_update().clone();
        let settings = self.inputs.settings.borrow_and_update().clone();
        let draining = settings.drains.get(&self.inputs.node.name).copied();
        let mut services = health.as_ref().clone();
        if let Some(weight) = settings.weights.get(&self.inputs.node.name) {
            services.values_mut().for_each(|offer| offer.weight = *weight);
        }
        NodeRecord {
            name: self.inputs.node.name.clone(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            link_versions: (*VERSIONS.start(), *VERSIONS.end()),
            addresses: address.map(|ip| SocketAddr::new(ip, self.inputs.node.port)).into_iter().collect(),
            interface,
            started: self.inputs.began,
            document: self.hash.of(document.hash(), now),
            draining: draining.or_else(|| stopping.then(wall)),
            left: stopping,
            links: self.said.clone(),
            services,
            l2_endpoints: vips.l2_endpoints.clone(),
            vips: vips.ownerships.clone(),
            unfit: vips.unfit.clone(),
            node_local: (self.inputs.node_local)(),
        }
    }
}

/// What is said of a peer that is pulsed. Round trips and losses vary all the time; what was said stands
/// until it is half wrong, and time has come to `renew` it, and is said in two digits, so that gossip has little to
/// carry.
fn peer_link(said: Option<&PeerLink>, peer_liveness: &PeerLiveness, renew: bool) -> Option<PeerLink> {
    let heard = match peer_liveness.liveness {
        Liveness::Unknown => return None,
        // A moment's silence is over before gossip has told of it.
        Liveness::Alive | Liveness::Late => true,
        Liveness::Silent | Liveness::CutOff => false,
    };
    let rtt_us = peer_liveness.rtt.map(|rtt| two_digits(u32::try_from(rtt.as_micros()).unwrap_or(u32::MAX)));
    let loss_permille = peer_liveness.loss_permille.min(1000) / 10 * 10;
    let now = PeerLink { alive: heard, rtt_us, loss_permille };
    let near = |a: u32, b: u32| a.abs_diff(b) <= (a.min(b) / 2).max(200);
    Some(match said {
        Some(said) if said.alive == heard && !renew => *said,
        Some(said) if said.alive == heard && said.loss_permille.abs_diff(loss_permille) <= 10 => {
            let rtt_us = match (said.rtt_us, rtt_us) {
                (Some(old), Some(new)) if near(old, new) => Some(old),
                _ => rtt_us,
            };
            PeerLink { rtt_us, ..*said }
        }
        _ => now,
    })
}

fn two_digits(number: u32) -> u32 {
    let mut unit = 1;
    while number / unit >= 100 {
        unit *= 10;
    }
    number / unit * unit
}

/// Starts the task that keeps the record up to date; it alone writes it.
pub(super) fn spawn(inputs: RecordInputs, life: &Lifecycle) -> watch::Receiver<NodeRecord> {
    let mut task =
        RecordTask { inputs, said: BTreeMap::new(), measured: None, hash: DocumentHash::default() };
    let (sender, receiver) = watch::channel(task.record(false, life.now()));
    let own = life.clone();
    life.supervise("record", (task, sender), move |(task, sender)| {
        Box::pin(watch_inputs(task, sender, own.clone()))
    });
    receiver
}

async fn watch_inputs(task: &mut RecordTask, sender: &watch::Sender<NodeRecord>, life: Lifecycle) {
    let mut again = tokio::time::interval(AGAIN);
    again.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        let stands = task.hash.deadline();
        let stopping = tokio::select! {
            () = life.until(stands) => false,
            Ok(()) = task.inputs.own_address.changed() => false,
            Ok(()) = task.inputs.interface.changed() => false,
            Ok(()) = task.inputs.health.changed() => false,
            Ok(()) = task.inputs.trust.changed() => false,
            Ok(()) = task.inputs.liveness.changed() => false,
            _ = again.tick() => false,
            Ok(()) = task.inputs.settings.changed() => false,
            Ok(()) = task.inputs.vips.changed() => false,
            Ok(()) = task.inputs.effective.changed() => false,
            () = life.draining.cancelled() => true,
        };
        let record = task.record(stopping, life.now());
        sender.send_if_modified(|old| {
            // By what the others would read: a text may be news where nothing else is.
            let changed = old.to_body() != record.to_body();
            *old = record;
            changed
        });
        if stopping {
            // The last record stands until the end.
            life.shutdown.cancelled().await;
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_said_stands_until_it_is_half_wrong() {
        let peer_liveness = |us, loss_permille, liveness| PeerLiveness {
            liveness,
            status: None,
            rtt: Some(Duration::from_micros(us)),
            loss_permille,
        };
        let first = peer_link(None, &peer_liveness(42_345, 14, Liveness::Alive), true).unwrap();
        assert_eq!(first, PeerLink { alive: true, rtt_us: Some(42_000), loss_permille: 10 });
        let again =
            |us, loss, liveness| peer_link(Some(&first), &peer_liveness(us, loss, liveness), true).unwrap();
        assert_eq!(again(60_000, 29, Liveness::Late), first);
        assert_eq!(again(70_000, 10, Liveness::Alive).rtt_us, Some(70_000));
        assert_eq!(again(42_000, 30, Liveness::Alive).loss_permille, 30);
        assert!(!again(42_000, 10, Liveness::Silent).alive);
        let early = |us, liveness| peer_link(Some(&first), &peer_liveness(us, 90, liveness), false).unwrap();
        assert_eq!(early(900_000, Liveness::Alive), first, "not yet");
        assert!(!early(42_000, Liveness::Silent).alive, "that is said at once");
        assert_eq!(peer_link(None, &peer_liveness(1, 0, Liveness::Unknown), true), None);
    }

    #[test]
    fn the_hash_of_a_document_that_changes_all_the_time_is_published_every_two_seconds() {
        let (mut hash, mut published) = (DocumentHash::default(), Vec::new());
        for ms in (1_000..=4_000).step_by(100) {
            published.push(hash.of(ms.to_string(), Moment::from_millis(ms)));
        }
        published.dedup();
        assert_eq!(published, ["1000", "3000"]);
        assert_eq!(hash.deadline(), Some(Moment::from_millis(5_000)), "the last one follows");
        assert_eq!(hash.of("4000".to_owned(), Moment::from_millis(5_000)), "4000");
        assert_eq!(hash.deadline(), None);
        assert_eq!(hash.of("9000".to_owned(), Moment::from_millis(9_000)), "9000", "after a rest at once");
    }
}
