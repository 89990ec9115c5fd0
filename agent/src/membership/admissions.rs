//! Who is let in, and with which role: invites, nodes that wait for approval, and the time in which none is
//! needed. Decided here alone; the document that they are admitted to is [`ClusterState`]'s.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use proto::admission::{self, Verdict};
use proto::backends::LastKnownGood;
use proto::cluster::{Admitted, ChangeError};
use proto::control::{RefusalCode, Response};
use proto::invite::{
    APPROVAL_TTL, Approval, Invite, InviteLedger, InviteSecret, IssuedInvite, JoinRefusal, PendingJoin,
    PendingJoins, code_of, confirmation_of, pin_of, pin_text,
};
use proto::node::{PublicKey, Role};
use proto::rpc::{BadMessage, FromMember, ToJoining, ToMember, Welcome, encode};
use proto::time::{UnixMs, human};
use tokio::sync::{oneshot, watch};
use tokio_util::bytes::Bytes;
use tracing::{info, warn};

use super::answer::Answer;
use super::cluster_state::ClusterState;
use super::disk::MemberStore;
use super::peer_sync::PeerSync;
use super::{Admission, Applicant, JoinCall, OwnAddress};
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

    /// Decides about nodes that want to join, and answers each. Those that are let in are entered by one change of
    /// the document, and have one welcome.
    pub(super) fn decide(&mut self, calls: Vec<JoinCall>, cluster: &mut ClusterState, sync: &mut PeerSync) {
        let now = wall();
        let (document, own) = (cluster.document(), cluster.own());
        let mut ledger = self.invites.clone();
        let candidates = calls.iter().map(JoinCall::candidate);
        let open = self.pending.is_open(now);
        let verdicts = admission::decide(document, &own, &mut ledger, open, candidates, now);
        let failed = self.admit(&calls, &verdicts, ledger, cluster).err();
        let mut welcome = None;
        for (JoinCall { applicant, reply, .. }, verdict) in calls.into_iter().zip(verdicts) {
            let admission = match verdict {
                Verdict::Refused(refusal) => Admission::Refused(refusal),
                Verdict::NameTaken(name, holder) => {
                    let is_up = holder.is_none_or(|id| sync.is_heard(&id));
                    Admission::Refused(JoinRefusal::NameTaken { name, is_up })
                }
                Verdict::Redirect => Admission::Redirect(self.where_masters_are(cluster)),
                Verdict::Wait => self.wait(applicant, now),
                Verdict::Member | Verdict::Admit(_) => match &failed {
                    Some(error) if cluster.document().member(&applicant.key.id()).is_none() => {
                        Admission::Refused(JoinRefusal::NotAdmitted(error.to_string()))
                    }
                    _ => match welcome.get_or_insert_with(|| self.welcome(cluster, sync)) {
                        Ok(welcome) => Admission::Welcome(welcome.clone()),
                        Err(error) => Admission::Refused(JoinRefusal::NotAdmitted(error.to_string())),
                    },
                },
            };
            let _ = reply.send(admission);
        }
    }

    /// Enters those that are to be admitted into the document, and keeps what is left of their invites.
    fn admit(
        &mut self,
        calls: &[JoinCall],
        verdicts: &[Verdict],
        ledger: InviteLedger,
        cluster: &mut ClusterState,
    ) -> Result<(), ChangeError> {
        let (own, now) = (cluster.own(), wall());
        let admitted = calls.iter().zip(verdicts).filter_map(|(JoinCall { applicant, .. }, verdict)| {
            let Verdict::Admit(role) = verdict else { return None };
            Some((applicant, Admitted::new(applicant.name.clone(), applicant.key, *role, own, now)))
        });
        let admitted: Vec<(&Applicant, Admitted)> = admitted.collect();
        if !admitted.is_empty() {
            cluster.change(|document| {
                admitted.iter().for_each(|(_, admitted)| document.admit(admitted.clone()));
                Ok(())
            })?;
        }
        for (Applicant { key, from, .. }, Admitted { name, role, .. }) in &admitted {
            info!(node = %name, id = %key.id(), role = %role.role(), %from, "node admitted");
        }
        if self.invites != ledger {
            self.invites = ledger;
            self.disk.save_invites(&self.invites);
        }
        // Where members that ask again are now counts too.
        for (JoinCall { applicant, .. }, verdict) in calls.iter().zip(verdicts) {
            if let Verdict::Admit(_) | Verdict::Member = verdict {
                self.link.addresses().add_hint(applicant.key.id(), &applicant.addresses, false);
            }
        }
        Ok(())
    }

    /// What members get that are let in now.
    fn welcome(&self, cluster: &ClusterState, sync: &mut PeerSync) -> Result<Bytes, BadMessage> {
        // All must know them before they speak to them; gossip alone would take seconds.
        sync.push_soon(cluster);
        let serving = self.serving.borrow().as_ref().clone();
        let welcome = Welcome { snapshot: cluster.for_members(), serving };
        encode(&ToJoining::Welcome(Box::new(welcome))).map(Bytes::from)
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
        (Approval::Unknown, _) => Response::refused(
            RefusalCode::BadInput,
            format_args!(
                "no node with the code \"{code}\" is waiting; run agent approve without a code to list \
                 the waiting nodes"
            ),
        ),
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
