//! What this node says of itself, put together from those who know.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use proto::keys::Word;
use proto::settings::Settings;
use proto::time::UnixMs;
use tokio::sync::watch;

use crate::check::OwnHealth;
use crate::lifecycle::{Life, wall};
use crate::link::Trust;
use crate::membership::disk::NodeFile;
use crate::vip::Report;

pub(super) struct Inputs {
    pub(super) node: NodeFile,
    pub(super) began: UnixMs,
    pub(super) own_address: watch::Receiver<Option<IpAddr>>,
    pub(super) health: watch::Receiver<Arc<OwnHealth>>,
    pub(super) trust: watch::Receiver<Arc<Trust>>,
    /// Of the whole cluster: this node's drain and its weight are among them.
    pub(super) settings: watch::Receiver<Arc<Settings>>,
    pub(super) vips: watch::Receiver<Arc<Report>>,
}

impl Inputs {
    fn word(&mut self, stopping: bool) -> Word {
        let address = *self.own_address.borrow_and_update();
        let health = self.health.borrow_and_update().clone();
        let document = self.trust.borrow_and_update().document.clone();
        let vips = self.vips.borrow_and_update().clone();
        let settings = self.settings.borrow_and_update().clone();
        let draining = settings.drains.get(&self.node.name).copied();
        let mut services = health.as_ref().clone();
        if let Some(weight) = settings.weights.get(&self.node.name) {
            services.values_mut().for_each(|offer| offer.weight = *weight);
        }
        Word {
            name: self.node.name.clone(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            addresses: address.map(|ip| SocketAddr::new(ip, self.node.port)).into_iter().collect(),
            interface: self.node.interface.clone(),
            started: self.began,
            document: document.hash(),
            draining: draining.or_else(|| stopping.then(wall)),
            left: stopping,
            services,
            feet: vips.feet.clone(),
            vips: vips.claims.clone(),
            unfit: vips.unfit.clone(),
        }
    }
}

/// Starts the task that keeps the word up to date; it alone writes it.
pub(super) fn spawn(mut inputs: Inputs, life: &Life) -> watch::Receiver<Word> {
    let (sender, receiver) = watch::channel(inputs.word(false));
    let life = life.clone();
    life.clone().spawn(async move {
        loop {
            let stopping = tokio::select! {
                Ok(()) = inputs.own_address.changed() => false,
                Ok(()) = inputs.health.changed() => false,
                Ok(()) = inputs.trust.changed() => false,
                Ok(()) = inputs.settings.changed() => false,
                Ok(()) = inputs.vips.changed() => false,
                () = life.stopping.cancelled() => true,
            };
            let word = inputs.word(stopping);
            sender.send_if_modified(|old| {
                let changed = *old != word;
                *old = word;
                changed
            });
            if stopping {
                // The last word stands until the end.
                life.over.cancelled().await;
                return;
            }
        }
    });
    receiver
}
