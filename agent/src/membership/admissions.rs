//! Who is let in, and with which role: invites, nodes that wait for approval, and the time in which none is
//! needed. Decided here alone; the document that they are admitted to is [`ClusterState`]'s.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use proto::backends::LastKnownGood;
use proto::cluster::{Admitted, ClusterId};
use proto::control::Response;
use proto::invite::{
    APPROVAL_TTL, Approval, Invite, InviteLedger, InviteSecret, IssuedInvite, JoinRefusal, PendingJoin,
    PendingJoins, code_of, confirmation_of, pin_of, pin_text,
};
use proto::node::{PublicKey, Role};
use proto::rpc::{FromMember, ToMember, Welcome};
use proto::time::{UnixMs, human};
use tokio::sync::{oneshot, watch};
use tracing::{info, warn};

use super::answer::Answer;
use super::cluster_state::ClusterState;
use super::disk::MemberStore;
use super::peer_sync::PeerSync;
use super::{Admission, Applicant, OwnAddress};
use crate::lifecycle::wall;
use crate::transport::{Link, random};

/// Most addresses of masters that a node is sent to.
const MOST_MASTERS: usize = 8;

/// The invites of this node, and those who wait here.
pub(super) struct Admissions {
    link: Arc<Link>,
    disk: Arc<MemberStore>,
    own_at: OwnAddress,
    /// What a new member serves from before it has heard anyone.
    serving: watch::Receiver<Arc<LastKnownGood>>,
    invites: InviteLedger,
    pending: PendingJoins,
    /// The connections of those who wait, by their codes.
    waiting: BTreeMap<String, (Applicant, oneshot::Sender<Option<Role>>)>,
    open_until: watch::Sender<UnixMs>,
}

impl Admissions {
    /// Nobody waits yet.
    pub(super) fn new(
        link: Arc<Link>,
        disk: Arc<MemberStore>,
        own_at: OwnAddress,
        serving: watch::Receiver<Arc<LastKnownGood>>,
        invites: InviteLedger,
        open_until: watch::Sender<UnixMs>,
    ) -> Admissions {
        let (pending, waiting) = (PendingJoins::default(), BTreeMap::new());
        Admissions { link, disk, own_at, serving, invites, pending, waiting, open_until }
    }

    /// Gives up all who wait: they ask again.
    pub(super) fn reset(&mut self) {
        self.waiting.clear();
        self.pending = PendingJoins::default();
    }

    /// What becomes of a node that wants to join.
    pub(super) fn decide(
        &mut self,
        applicant: Applicant,
        cluster: &mut ClusterState,
        sync: &mut PeerSync,
    ) -> Admission {
        let id = applicant.key.id();
        let now = wall();
        if !cluster.is_member() {
            return Admission::Refused(JoinRefusal::SeedRemoved);
        }
        let document = cluster.document();
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
            return self.welcome(&applicant, cluster, sync);
        }
        if !cluster.is_master() {
            return Admission::Redirect(self.where_masters_are(cluster));
        }
        if let Some(proof) = &applicant.proof {
            let mut invites = self.invites.clone();
            let role = match invites.redeem(proof, &applicant.session, &applicant.key, now) {
                Ok(role) => role,
                Err(refusal) => return Admission::Refused(refusal),
            };
            let admission = self.admit(&applicant, role, cluster, sync);
            if matches!(admission, Admission::Welcome(_)) {
                self.invites = invites;
                self.disk.save_invites(&self.invites);
            }
            return admission;
        }
        if let Some(refusal) = name_taken(cluster, &applicant) {
            return Admission::Refused(refusal);
        }
        if self.pending.is_open(now) && applicant.confirmed {
            return self.admit(&applicant, Role::Worker, cluster, sync);
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
    fn free_places(&mut self) {
        self.waiting.retain(|_, (_, sender)| !sender.is_closed());
        let waiting = &self.waiting;
        self.pending.retain(|code| waiting.contains_key(code));
    }

    fn where_masters_are(&self, cluster: &ClusterState) -> Vec<SocketAddr> {
        let masters = cluster.document().masters().filter_map(|(id, _)| self.link.addresses().best(id));
        masters.take(MOST_MASTERS).collect()
    }

    /// Lets a node in.
    pub(super) fn admit(
        &mut self,
        applicant: &Applicant,
        role: Role,
        cluster: &mut ClusterState,
        sync: &mut PeerSync,
    ) -> Admission {
        let id = applicant.key.id();
        if cluster.document().removed.contains_key(&id) {
            return Admission::Refused(JoinRefusal::Removed);
        }
        if let Some(refusal) = name_taken(cluster, applicant) {
            return Admission::Refused(refusal);
        }
        if cluster.document().member(&id).is_none() {
            let admitted = Admitted::new(applicant.name.clone(), applicant.key, role, cluster.own(), wall());
            let changed = cluster.change(|document| {
                document.admit(admitted);
                Ok(())
            });
            if let Err(error) = changed {
                return Admission::Refused(JoinRefusal::NotAdmitted(error.to_string()));
            }
            info!(node = %applicant.name, %id, %role, from = %applicant.from, "node admitted");
        }
        self.welcome(applicant, cluster, sync)
    }

    fn welcome(&self, applicant: &Applicant, cluster: &ClusterState, sync: &mut PeerSync) -> Admission {
        let id = applicant.key.id();
        self.link.addresses().add_hint(id, &applicant.addresses, false);
        // All must know it before it speaks to them; gossip alone would take seconds.
        sync.push_soon();
        let serving = self.serving.borrow().as_ref().clone();
        Admission::Welcome(Box::new(Welcome { snapshot: cluster.snapshot_for(&id, None), serving }))
    }

    /// Answers a node that waits here. It is not admitted by that: first it has to confirm the cluster.
    pub(super) fn approve(&mut self, code: &str, role: Option<Role>) -> Approval {
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

    /// Answers a node, at whichever master it waits.
    pub(super) fn approve_anywhere(
        &mut self,
        code: String,
        role: Option<Role>,
        cluster: &ClusterState,
        sync: &PeerSync,
    ) -> Answer {
        let here = self.approve(&code, role);
        if here != Approval::Unknown {
            return Answer::Now(approved(here, &code, role));
        }
        let answers = sync.ask_all(cluster, FromMember::Answer { code: code.clone(), role });
        Answer::later(async move {
            let found = answers.await.into_iter().find_map(|(_, answer)| match answer {
                Some(ToMember::Answered(approval)) if approval != Approval::Unknown => Some(approval),
                _ => None,
            });
            approved(found.unwrap_or(Approval::Unknown), &code, role)
        })
    }

    /// Who waits here.
    pub(super) fn waiting(&mut self) -> Vec<PendingJoin> {
        self.free_places();
        self.pending.waiting(wall()).cloned().collect()
    }

    /// Who waits at any master.
    pub(super) fn waiting_anywhere(&mut self, cluster: &ClusterState, sync: &PeerSync) -> Answer {
        let mut waiting = self.waiting();
        let answers = sync.ask_all(cluster, FromMember::Waiting);
        Answer::later(async move {
            for (_, answer) in answers.await {
                if let Some(ToMember::Waiting(more)) = answer {
                    waiting.extend(more);
                }
            }
            Response::Waiting(waiting)
        })
    }

    /// Makes an invite.
    pub(super) fn invite(&mut self, seconds: u64, uses: Option<u32>, role: Role) -> Answer {
        let Some(address) = self.own_at.now() else {
            return Answer::failed(
                "this node has no address on the mesh, so nobody could use an invite; \
                 bring its network up first",
            );
        };
        let ttl = Duration::from_secs(seconds);
        let key = self.link.identity().key;
        let (invite, expires) = issue(&mut self.invites, &key, address, ttl, uses, role);
        if !self.disk.save_invites(&self.invites) {
            return Answer::failed(format_args!("cannot save the invite: {}", self.disk.not_kept()));
        }
        info!(expires_in = human(ttl), ?uses, %role, "invite created");
        Answer::Now(Response::Invite { line: invite.to_string(), expires })
    }

    /// Lets workers in without an invite for so long; 0: not any more.
    pub(super) fn open(&mut self, seconds: u64) -> Answer {
        let ttl = Duration::from_secs(seconds);
        let until = if seconds == 0 { UnixMs(0) } else { wall().after(ttl) };
        self.pending.open(until);
        self.open_until.send_replace(until);
        if seconds == 0 {
            info!("cluster closed to nodes without an invite");
            return Answer::done("closed: nodes without an invite need an approval");
        }
        warn!(for_ = human(ttl), "cluster open to workers without an invite");
        let host = self.own_at.now().map_or_else(|| "HOST".to_owned(), |address| address.to_string());
        Answer::done(format!(
            "open for {}: anyone who can reach this node may join as a worker with\n\n  \
             agent join {host} --key {}\n\nto close it, run: agent open --for 0",
            human(ttl),
            pin_text(&pin_of(&self.link.identity().key)),
        ))
    }
}

fn name_taken(cluster: &ClusterState, applicant: &Applicant) -> Option<JoinRefusal> {
    let id = applicant.key.id();
    let mut members = cluster.document().members();
    let taken = members.any(|(other, admitted)| admitted.name == applicant.name && *other != id);
    taken.then(|| JoinRefusal::NameTaken(applicant.name.clone()))
}

/// What the command line is told of an answer to a waiting node.
fn approved(approval: Approval, code: &str, role: Option<Role>) -> Response {
    match (approval, role) {
        (Approval::Done { name, .. }, None) => Response::Done(format!("{name} rejected")),
        (Approval::Done { name, confirmation: None }, Some(role)) => {
            Response::Done(format!("{name} approved as a {role}"))
        }
        (Approval::Done { name, confirmation: Some(code) }, Some(role)) => {
            Response::Done(format!("{name} approved as a {role}; to finish, type this code on it: {code}"))
        }
        (Approval::Gone(name), _) => Response::Failed(format!(
            "{name} is no longer waiting and was not admitted; run agent join there again"
        )),
        (Approval::Unknown, _) => Response::Failed(format!(
            "no node with the code \"{code}\" is waiting; run agent approve without a code to list \
             the waiting nodes"
        )),
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
