//! This node as it finds itself: its name and address, and what its own services are worth.

use std::net::IpAddr;
use std::sync::Arc;

use proto::control::CheckCounts;
use proto::service::Service;
use proto::time::UnixMs;
use tokio::sync::watch;

use crate::check::{self, CheckCounters, OwnHealth};
use crate::lifecycle::Lifecycle;
use crate::membership::disk::{NodeFile, StoredMember};
use crate::net;

/// What is known of this node.
pub(super) struct OwnNode {
    file: NodeFile,
    began: UnixMs,
    address: watch::Receiver<Option<IpAddr>>,
    health: watch::Receiver<Arc<OwnHealth>>,
    checks: Arc<CheckCounters>,
}

impl OwnNode {
    /// Looks after its address and checks its services from now on.
    pub(super) fn start(
        member: &StoredMember,
        began: UnixMs,
        services: watch::Receiver<Arc<Vec<Service>>>,
        life: &Lifecycle,
    ) -> OwnNode {
        let file = member.node.clone();
        let address = net::watch_own(file.interface.clone(), file.address, file.pinned, life);
        let first = check::until_checked(&services.borrow(), &member.serving, &member.identity.id);
        let checks = Arc::<CheckCounters>::default();
        let health = check::spawn(services, address.clone(), first, checks.clone(), life);
        OwnNode { file, began, address, health, checks }
    }

    /// Its name, interface and port.
    pub(super) fn file(&self) -> &NodeFile {
        &self.file
    }

    /// Since when the agent runs.
    pub(super) fn began(&self) -> UnixMs {
        self.began
    }

    /// Its address on the mesh, while its interface has it.
    pub(super) fn address(&self) -> Option<IpAddr> {
        *self.address.borrow()
    }

    /// The same for those who wait for a change.
    pub(super) fn watch_address(&self) -> watch::Receiver<Option<IpAddr>> {
        self.address.clone()
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
