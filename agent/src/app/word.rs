//! What this node says of itself, put together from those who know.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use proto::link::VERSIONS;
use proto::node::NodeId;
use proto::pulse::{Ear, Ears, Hearing};
use proto::record::{Hears, NodeRecord};
use proto::settings::Settings;
use proto::time::UnixMs;
use tokio::sync::watch;

use crate::check::OwnHealth;
use crate::lifecycle::{Life, wall};
use crate::link::Trust;
use crate::membership::disk::NodeFile;
use crate::vip::Report;

/// Between two looks at round trips and losses, which nobody is told of.
const AGAIN: Duration = Duration::from_secs(20);

pub(super) struct Inputs {
    pub(super) node: NodeFile,
    pub(super) began: UnixMs,
    pub(super) own_address: watch::Receiver<Option<IpAddr>>,
    pub(super) health: watch::Receiver<Arc<OwnHealth>>,
    pub(super) trust: watch::Receiver<Arc<Trust>>,
    /// Of the whole cluster: this node's drain and its weight are among them.
    pub(super) settings: watch::Receiver<Arc<Settings>>,
    pub(super) vips: watch::Receiver<Arc<Report>>,
    pub(super) ears: watch::Receiver<Arc<Ears>>,
    pub(super) hears: BTreeMap<NodeId, Hears>,
}

impl Inputs {
    fn word(&mut self, stopping: bool) -> NodeRecord {
        let address = *self.own_address.borrow_and_update();
        let health = self.health.borrow_and_update().clone();
        let document = self.trust.borrow_and_update().document.clone();
        let ears = self.ears.borrow_and_update().clone();
        self.hears =
            ears.iter().filter_map(|(id, ear)| Some((*id, hears(self.hears.get(id), ear)?))).collect();
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
            speaks: (*VERSIONS.start(), *VERSIONS.end()),
            addresses: address.map(|ip| SocketAddr::new(ip, self.node.port)).into_iter().collect(),
            interface: self.node.interface.clone(),
            started: self.began,
            document: document.hash(),
            draining: draining.or_else(|| stopping.then(wall)),
            left: stopping,
            hears: self.hears.clone(),
            services,
            feet: vips.feet.clone(),
            vips: vips.claims.clone(),
            unfit: vips.unfit.clone(),
        }
    }
}

/// What is said of a peer that is pulsed. Round trips and losses vary all the time; what was said stands
/// until it is half wrong, and is said in two digits, so that gossip has little to carry.
fn hears(said: Option<&Hears>, ear: &Ear) -> Option<Hears> {
    let heard = match ear.hearing {
        Hearing::Unknown => return None,
        // A moment's silence is over before gossip has told of it.
        Hearing::Heard | Hearing::Late => true,
        Hearing::Lost => false,
    };
    let rtt_us = ear.rtt.map(|rtt| two_digits(u32::try_from(rtt.as_micros()).unwrap_or(u32::MAX)));
    let loss_permille = ear.loss_permille.min(1000) / 10 * 10;
    let now = Hears { heard, rtt_us, loss_permille };
    let near = |a: u32, b: u32| a.abs_diff(b) <= (a.min(b) / 2).max(200);
    Some(match said {
        Some(said) if said.heard == heard && said.loss_permille.abs_diff(loss_permille) <= 10 => {
            let rtt_us = match (said.rtt_us, rtt_us) {
                (Some(old), Some(new)) if near(old, new) => Some(old),
                _ => rtt_us,
            };
            Hears { rtt_us, ..*said }
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
pub(super) fn spawn(mut inputs: Inputs, life: &Life) -> watch::Receiver<NodeRecord> {
    let (sender, receiver) = watch::channel(inputs.word(false));
    let own = life.clone();
    life.supervise("record", (inputs, sender), move |(inputs, sender)| {
        Box::pin(follow(inputs, sender, own.clone()))
    });
    receiver
}

async fn follow(inputs: &mut Inputs, sender: &watch::Sender<NodeRecord>, life: Life) {
    let mut again = tokio::time::interval(AGAIN);
    again.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        let stopping = tokio::select! {
            Ok(()) = inputs.own_address.changed() => false,
            Ok(()) = inputs.health.changed() => false,
            Ok(()) = inputs.trust.changed() => false,
            Ok(()) = inputs.ears.changed() => false,
            _ = again.tick() => false,
            Ok(()) = inputs.settings.changed() => false,
            Ok(()) = inputs.vips.changed() => false,
            () = life.stopping.cancelled() => true,
        };
        let word = inputs.word(stopping);
        sender.send_if_modified(|old| {
            // By what the others would read: a text may be news where nothing else is.
            let changed = old.to_body() != word.to_body();
            *old = word;
            changed
        });
        if stopping {
            // The last word stands until the end.
            life.over.cancelled().await;
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_said_stands_until_it_is_half_wrong() {
        let ear = |us, loss_permille, hearing| Ear {
            hearing,
            saying: None,
            rtt: Some(Duration::from_micros(us)),
            loss_permille,
        };
        let first = hears(None, &ear(42_345, 14, Hearing::Heard)).unwrap();
        assert_eq!(first, Hears { heard: true, rtt_us: Some(42_000), loss_permille: 10 });
        let again = |us, loss, hearing| hears(Some(&first), &ear(us, loss, hearing)).unwrap();
        assert_eq!(again(60_000, 29, Hearing::Late), first);
        assert_eq!(again(70_000, 10, Hearing::Heard).rtt_us, Some(70_000));
        assert_eq!(again(42_000, 30, Hearing::Heard).loss_permille, 30);
        assert!(!again(42_000, 10, Hearing::Lost).heard);
        assert_eq!(hears(None, &ear(1, 0, Hearing::Unknown)), None);
    }
}
