//! What this node says of itself, put together from those who know.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use proto::node::NodeId;
use proto::pulse::{Liveness, PeerLiveness, PeerLivenessMap};
use proto::record::{NodeRecord, PeerLink};
use proto::settings::Settings;
use proto::time::UnixMs;
use proto::transport::VERSIONS;
use tokio::sync::watch;

use crate::check::OwnHealth;
use crate::lifecycle::{Lifecycle, wall};
use crate::membership::disk::NodeFile;
use crate::transport::TrustedKeys;
use crate::vip::VipReport;

/// Between two looks at round trips and losses, which nobody is told of.
const AGAIN: Duration = Duration::from_secs(20);

pub(super) struct RecordInputs {
    pub(super) node: NodeFile,
    pub(super) began: UnixMs,
    pub(super) own_address: watch::Receiver<Option<IpAddr>>,
    pub(super) health: watch::Receiver<Arc<OwnHealth>>,
    pub(super) trust: watch::Receiver<Arc<TrustedKeys>>,
    /// Of the whole cluster: this node's drain and its weight are among them.
    pub(super) settings: watch::Receiver<Arc<Settings>>,
    pub(super) vips: watch::Receiver<Arc<VipReport>>,
    pub(super) liveness: watch::Receiver<Arc<PeerLivenessMap>>,
    pub(super) peer_link: BTreeMap<NodeId, PeerLink>,
}

impl RecordInputs {
    fn record(&mut self, stopping: bool) -> NodeRecord {
        let address = *self.own_address.borrow_and_update();
        let health = self.health.borrow_and_update().clone();
        let document = self.trust.borrow_and_update().document.clone();
        let liveness = self.liveness.borrow_and_update().clone();
        self.peer_link = liveness
            .iter()
            .filter_map(|(id, peer_liveness)| Some((*id, peer_link(self.peer_link.get(id), peer_liveness)?)))
            .collect();
        let vips = self.vips.borrow_and_update().clone();
        let settings = self.settings.borrow_and_update().clone();
        let draining = settings.drains.get(&self.node.name).copied();
        let mut services = health.as_ref().clone();
        if let Some(weight) = settings.weights.get(&self.node.name) {
            services.values_mut().for_each(|offer| offer.weight = *weight);
        }
        NodeRecord {
            name: self.node.name.clone(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            link_versions: (*VERSIONS.start(), *VERSIONS.end()),
            addresses: address.map(|ip| SocketAddr::new(ip, self.node.port)).into_iter().collect(),
            interface: self.node.interface.clone(),
            started: self.began,
            document: document.hash(),
            draining: draining.or_else(|| stopping.then(wall)),
            left: stopping,
            links: self.peer_link.clone(),
            services,
            l2_endpoints: vips.l2_endpoints.clone(),
            vips: vips.ownerships.clone(),
            unfit: vips.unfit.clone(),
        }
    }
}

/// What is said of a peer that is pulsed. Round trips and losses vary all the time; what was said stands
/// until it is half wrong, and is said in two digits, so that gossip has little to carry.
fn peer_link(said: Option<&PeerLink>, peer_liveness: &PeerLiveness) -> Option<PeerLink> {
    let heard = match peer_liveness.liveness {
        Liveness::Unknown => return None,
        // A moment's silence is over before gossip has told of it.
        Liveness::Alive | Liveness::Late => true,
        Liveness::Silent => false,
    };
    let rtt_us = peer_liveness.rtt.map(|rtt| two_digits(u32::try_from(rtt.as_micros()).unwrap_or(u32::MAX)));
    let loss_permille = peer_liveness.loss_permille.min(1000) / 10 * 10;
    let now = PeerLink { alive: heard, rtt_us, loss_permille };
    let near = |a: u32, b: u32| a.abs_diff(b) <= (a.min(b) / 2).max(200);
    Some(match said {
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

/// Starts the task that keeps the word up to date; it alone writes it.
pub(super) fn spawn(mut inputs: RecordInputs, life: &Lifecycle) -> watch::Receiver<NodeRecord> {
    let (sender, receiver) = watch::channel(inputs.record(false));
    let own = life.clone();
    life.supervise("record", (inputs, sender), move |(inputs, sender)| {
        Box::pin(watch_inputs(inputs, sender, own.clone()))
    });
    receiver
}

async fn watch_inputs(inputs: &mut RecordInputs, sender: &watch::Sender<NodeRecord>, life: Lifecycle) {
    let mut again = tokio::time::interval(AGAIN);
    again.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        let stopping = tokio::select! {
            Ok(()) = inputs.own_address.changed() => false,
            Ok(()) = inputs.health.changed() => false,
            Ok(()) = inputs.trust.changed() => false,
            Ok(()) = inputs.liveness.changed() => false,
            _ = again.tick() => false,
            Ok(()) = inputs.settings.changed() => false,
            Ok(()) = inputs.vips.changed() => false,
            () = life.draining.cancelled() => true,
        };
        let word = inputs.record(stopping);
        sender.send_if_modified(|old| {
            // By what the others would read: a text may be news where nothing else is.
            let changed = old.to_body() != word.to_body();
            *old = word;
            changed
        });
        if stopping {
            // The last word stands until the end.
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
        let first = peer_link(None, &peer_liveness(42_345, 14, Liveness::Alive)).unwrap();
        assert_eq!(first, PeerLink { alive: true, rtt_us: Some(42_000), loss_permille: 10 });
        let again = |us, loss, liveness| peer_link(Some(&first), &peer_liveness(us, loss, liveness)).unwrap();
        assert_eq!(again(60_000, 29, Liveness::Late), first);
        assert_eq!(again(70_000, 10, Liveness::Alive).rtt_us, Some(70_000));
        assert_eq!(again(42_000, 30, Liveness::Alive).loss_permille, 30);
        assert!(!again(42_000, 10, Liveness::Silent).alive);
        assert_eq!(peer_link(None, &peer_liveness(1, 0, Liveness::Unknown)), None);
    }
}
