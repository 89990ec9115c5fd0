//! This node as it finds itself: its name and address, and what its own services are worth.

use std::net::IpAddr;
use std::sync::Arc;

use proto::control::CheckCounts;
use proto::health::ServiceHealth;
use proto::service::{Service, ServiceName};
use proto::time::UnixMs;
use tokio::sync::watch;

use crate::check::{self, CheckCounters, OwnHealth};
use crate::lifecycle::Lifecycle;
use crate::membership::disk::{MemberStore, NodeFile, StoredMember};
use crate::net;

/// What is known of this node.
pub(super) struct OwnNode {
    file: NodeFile,
    began: UnixMs,
    place: net::OwnAddressWatch,
    health: watch::Receiver<Arc<OwnHealth>>,
    checks: Arc<CheckCounters>,
}

impl OwnNode {
    /// Looks after its address and checks its services from now on. `handed`: what the checks of the process before
    /// this one said.
    pub(super) fn start(
        (member, moved): (&StoredMember, bool),
        (began, handed): (UnixMs, &[(ServiceName, ServiceHealth)]),
        services: watch::Receiver<Arc<Vec<Service>>>,
        life: &Lifecycle,
    ) -> OwnNode {
        let file = member.node.clone();
        let (interface, wanted, pinned) = (file.interface.clone(), file.address, file.pinned);
        let place = net::watch_own(net::OwnAddressRule { interface, wanted, pinned, moved }, life);
        let first = check::until_checked(&services.borrow(), &member.serving, &member.identity.id, handed);
        let checks = Arc::<CheckCounters>::default();
        let health = check::spawn(services, place.address.clone(), first, checks.clone(), life);
        OwnNode { file, began, place, health, checks }
    }

    /// Keeps where the node has moved to, once that is found.
    pub(super) fn keep_place(&self, disk: Arc<MemberStore>, life: &Lifecycle) {
        let (mut place, mut file) = (self.place.clone(), self.file.clone());
        let over = life.shutdown.clone();
        life.spawn(async move {
            let found = over.run_until_cancelled(place.address.wait_for(Option::is_some)).await;
            if let Some(Ok(address)) = found.map(|found| found.map(|address| *address)) {
                file.address = address.unwrap_or(file.address);
                disk.save_node(&file);
            }
        });
    }

    /// Its name and port.
    pub(super) fn file(&self) -> &NodeFile {
        &self.file
    }

    /// Since when the agent runs.
    pub(super) fn began(&self) -> UnixMs {
        self.began
    }

    /// Its address on the mesh, while its interface has it.
    pub(super) fn address(&self) -> Option<IpAddr> {
        *self.place.address.borrow()
    }

    /// The same for those who wait for a change.
    pub(super) fn watch_address(&self) -> watch::Receiver<Option<IpAddr>> {
        self.place.address.clone()
    }

    /// The interface that it is on, or why it is on none.
    pub(super) fn interface(&self) -> net::OwnInterface {
        self.place.interface.borrow().clone()
    }

    /// The same for those who wait for a change.
    pub(super) fn watch_interface(&self) -> watch::Receiver<net::OwnInterface> {
        self.place.interface.clone()
    }

    /// What the checks of its own services say.
    pub(super) fn health(&self) -> watch::Receiver<Arc<OwnHealth>> {
        self.health.clone()
    }

    /// What they came to.
    pub(super) fn checks(&self) -> Vec<CheckCounts> {
        self.checks.read()
    }
}
