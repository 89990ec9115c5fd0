//! Who is let in, and with which role: a part of the keeper, which alone decides it.

use std::net::SocketAddr;
use std::time::Duration;

use proto::cluster::{Admitted, ClusterId};
use proto::invite::{
    APPROVAL_TTL, Approval, Invite, InviteLedger, InviteSecret, IssuedInvite, JoinRefusal, PendingJoin,
    code_of, confirmation_of, pin_of,
};
use proto::node::{PublicKey, Role};
use proto::rpc::Welcome;
use proto::time::UnixMs;
use tokio::sync::oneshot;
use tracing::info;

use super::task::MembershipTask;
use super::{Admission, Applicant};
use crate::lifecycle::wall;
use crate::transport::random;

/// Most addresses of masters that a node is sent to.
const MOST_MASTERS: usize = 8;

impl MembershipTask {
    /// What becomes of a node that wants to join.
    pub(super) fn decide(&mut self, applicant: Applicant) -> Admission {
        let id = applicant.key.id();
        let now = wall();
        let document = self.document();
        if document.member(&self.link.own()).is_none() {
            return Admission::Refused(JoinRefusal::SeedRemoved);
        }
        if document.removed.contains_key(&id) {
            return Admission::Refused(JoinRefusal::Removed);
        }
        let ours =
            |theirs: &ClusterId| *theirs == document.id || Some(theirs) == document.genesis.succeeds.as_ref();
        if !applicant.cluster.as_ref().is_none_or(ours) {
            return Admission::Refused(JoinRefusal::OtherCluster);
        }
        if document.member(&id).is_some() {
            // It has proven its key: joining again only asks for the document once more.
            return self.welcome(&applicant);
        }
        if !self.is_master() {
            return Admission::Redirect(self.where_masters_are());
        }
        if let Some(proof) = &applicant.proof {
            let mut invites = self.invites.clone();
            let role = match invites.redeem(proof, &applicant.session, &applicant.key, now) {
                Ok(role) => role,
                Err(refusal) => return Admission::Refused(refusal),
            };
            if let Some(refusal) = self.name_taken(&applicant) {
                return Admission::Refused(refusal);
            }
            let admission = self.admit(&applicant, role);
            if matches!(admission, Admission::Welcome(_)) {
                self.invites = invites;
                self.disk.save_invites(&self.invites);
            }
            return admission;
        }
        if let Some(refusal) = self.name_taken(&applicant) {
            return Admission::Refused(refusal);
        }
        if self.pending.is_open(now) && applicant.confirmed {
            return self.admit(&applicant, Role::Worker);
        }
        self.wait(applicant, now)
    }

    fn wait(&mut self, applicant: Applicant, now: UnixMs) -> Admission {
        let waiting = PendingJoin {
            code: code_of(&applicant.session),
            key: applicant.key,
            name: applicant.name.clone(),
            from: applicant.from,
            until: now.after(APPROVAL_TTL),
        };
        let code = waiting.code.clone();
        self.free_places();
        if let Err(refusal) = self.pending.request(waiting, now) {
            return Admission::Refused(refusal);
        }
        info!(%code, node = %applicant.name, from = %applicant.from, "node waits for approval");
        let (sender, receiver) = oneshot::channel();
        self.waiting.insert(code, (applicant, sender));
        Admission::Wait(receiver)
    }

    /// Frees the places of those whose connection is gone.
    pub(super) fn free_places(&mut self) {
        self.waiting.retain(|_, (_, sender)| !sender.is_closed());
        let waiting = &self.waiting;
        self.pending.retain(|code| waiting.contains_key(code));
    }

    fn where_masters_are(&self) -> Vec<SocketAddr> {
        let masters = self.document().masters().filter_map(|(id, _)| self.link.addresses.best(id));
        masters.take(MOST_MASTERS).collect()
    }

    fn name_taken(&self, applicant: &Applicant) -> Option<JoinRefusal> {
        let id = applicant.key.id();
        let mut members = self.document().members();
        let taken = members.any(|(other, admitted)| admitted.name == applicant.name && *other != id);
        taken.then(|| JoinRefusal::NameTaken(applicant.name.clone()))
    }

    /// Lets a node in.
    pub(super) fn admit(&mut self, applicant: &Applicant, role: Role) -> Admission {
        let id = applicant.key.id();
        if self.document().removed.contains_key(&id) {
            return Admission::Refused(JoinRefusal::Removed);
        }
        if let Some(refusal) = self.name_taken(applicant) {
            return Admission::Refused(refusal);
        }
        if self.document().member(&id).is_none() {
            let by = self.link.own();
            let admitted = Admitted::new(applicant.name.clone(), applicant.key, role, by, wall());
            let changed = self.change(|document| {
                document.admit(admitted);
                Ok(())
            });
            if let Err(error) = changed {
                return Admission::Refused(JoinRefusal::NotAdmitted(error.to_string()));
            }
            info!(node = %applicant.name, %id, %role, from = %applicant.from, "node admitted");
        }
        self.welcome(applicant)
    }

    fn welcome(&mut self, applicant: &Applicant) -> Admission {
        let id = applicant.key.id();
        self.link.addresses.add_hint(id, &applicant.addresses, false);
        // All must know it before it speaks to them; gossip alone would take seconds.
        self.push_soon();
        let serving = self.serving.borrow().as_ref().clone();
        Admission::Welcome(Box::new(Welcome { snapshot: self.snapshot_for(&id, None), serving }))
    }

    /// Answers a waiting node. It is not admitted by that: first it has to confirm the cluster.
    pub(super) fn answer(&mut self, code: &str, role: Option<Role>) -> Approval {
        let Some(waiting) = self.pending.take(code, wall()) else { return Approval::Unknown };
        let Some((applicant, reply)) = self.waiting.remove(&waiting.code) else {
            return Approval::Gone(waiting.name);
        };
        if reply.send(role).is_err() {
            return Approval::Gone(waiting.name);
        }
        let asked = role.is_some() && !applicant.confirmed;
        let confirmation = asked.then(|| confirmation_of(&applicant.session));
        Approval::Done { name: waiting.name, confirmation }
    }
}

/// Makes an invite and enters it into the ledger.
pub(crate) fn issue(
    ledger: &mut InviteLedger,
    issuer: &PublicKey,
    address: SocketAddr,
    ttl: Duration,
    uses: Option<u32>,
    role: Role,
) -> (Invite, UnixMs) {
    let (id, secret) = (random(), InviteSecret(random()));
    let expires = wall().after(ttl);
    ledger.issue(id, IssuedInvite { secret: secret.clone(), expires, uses_left: uses, role });
    (Invite { issuer: pin_of(issuer), id, secret, addresses: vec![address] }, expires)
}
