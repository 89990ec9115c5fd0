//! Other places of this node's own identity, of which members pass on proofs: decided by [`OwnPlaces`].

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex};

use proto::elsewhere::{AliveProof, OwnPlaces};
use proto::time::{Moment, UnixMs};
use tokio::sync::watch;

use super::lock;
use super::tls::Identity;

/// What this node knows of them.
pub(super) struct IdentityPlaces {
    identity: Arc<Identity>,
    began: UnixMs,
    own: Mutex<OwnPlaces>,
    /// Where the place is for which this node stands aside.
    aside: watch::Sender<Option<SocketAddr>>,
}

impl IdentityPlaces {
    /// There is no other, as far as is known. This agent started at `began`.
    pub(super) fn new(identity: Arc<Identity>, began: UnixMs) -> IdentityPlaces {
        IdentityPlaces { identity, began, own: Mutex::default(), aside: watch::Sender::new(None) }
    }

    /// A frame's body that proves that this node is alive beside another boot.
    pub(super) fn proof(&self, cluster: &str, beside: u64, now: Moment) -> Option<Vec<u8>> {
        if !lock(&self.own).affords_signature(now) {
            return None;
        }
        let aside = self.aside.borrow().is_some();
        let proof = AliveProof::sign(self.identity.pair(), cluster, beside, self.began, aside)?;
        // The member that asked knows where this node is.
        Some(proof.to_body((Ipv4Addr::UNSPECIFIED, 0).into()))
    }

    /// Takes a proof about this node's boot.
    pub(super) fn take(&self, cluster: &str, proof: &AliveProof, at: SocketAddr, now: Moment) {
        let mut own = lock(&self.own);
        if own.affords_signature(now) && proof.verify(cluster, &self.identity.key) {
            own.proven(proof, at, self.began, now);
            self.show(&own, now);
        }
    }

    /// A member has answered this node.
    pub(super) fn accepted(&self, now: Moment) {
        let mut own = lock(&self.own);
        own.accepted(now);
        self.show(&own, now);
    }

    /// Where else the identity was proven to be in use a moment ago.
    pub(super) fn other(&self, now: Moment) -> Option<SocketAddr> {
        lock(&self.own).other(now)
    }

    /// Where the place is for which this node stands aside.
    pub(super) fn aside(&self) -> watch::Receiver<Option<SocketAddr>> {
        self.aside.subscribe()
    }

    fn show(&self, own: &OwnPlaces, now: Moment) {
        let aside = own.aside_for(now);
        self.aside.send_if_modified(|shown| std::mem::replace(shown, aside) != aside);
    }
}
