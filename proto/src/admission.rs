//! Who is let in: what becomes of nodes that ask at once, decided against one document.
//!
//! Nodes that come together are admitted by one change of the document: it is sealed and written once for all of
//! them, so that a join costs its issuer the same whether one comes or a hundred.

use std::collections::{BTreeMap, BTreeSet};

use crate::cluster::{ClusterId, Document};
use crate::invite::{InviteLedger, InviteProof, JoinRefusal};
use crate::node::{Name, NodeId, PublicKey, Role};
use crate::time::UnixMs;

/// A node that asks.
#[derive(Debug, Clone, Copy)]
pub struct Candidate<'a> {
    /// Its key.
    pub key: PublicKey,
    /// The name that it wants.
    pub name: &'a Name,
    /// Proof of an invite.
    pub proof: Option<&'a InviteProof>,
    /// The exported value of its session.
    pub session: &'a [u8; 32],
    /// It knows the key of the node that it asks.
    pub confirmed: bool,
    /// The cluster that it belongs to already.
    pub cluster: Option<&'a ClusterId>,
    /// The role with which it was approved; none: it was not.
    pub approved: Option<Role>,
}

/// What becomes of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// It is a member already, and has proven its key: it only asks for the document once more.
    Member,
    /// It is admitted.
    Admit(Role),
    /// Someone has to approve it.
    Wait,
    /// This node is a worker: a master has to be asked.
    Redirect,
    /// A member has its name; `None`: one that is admitted with it.
    NameTaken(Name, Option<NodeId>),
    /// It is not let in.
    Refused(JoinRefusal),
}

/// Decides about nodes that ask `own` at the same time, in this order. The uses of invites are taken from the
/// ledger; it is to be kept when those that are to be admitted have been. `open`: no invite is needed.
pub fn decide<'a>(
    document: &Document,
    own: &NodeId,
    ledger: &mut InviteLedger,
    open: bool,
    candidates: impl IntoIterator<Item = Candidate<'a>>,
    now: UnixMs,
) -> Vec<Verdict> {
    let mut batch = Batch {
        document,
        own,
        ledger,
        open,
        now,
        names: document.members().map(|(id, admitted)| (admitted.name.clone(), Some(*id))).collect(),
        admitted: BTreeSet::new(),
    };
    candidates.into_iter().map(|candidate| batch.decide(&candidate)).collect()
}

/// What has been decided so far.
struct Batch<'a> {
    document: &'a Document,
    own: &'a NodeId,
    ledger: &'a mut InviteLedger,
    open: bool,
    now: UnixMs,
    /// Names of members with their ids, and of those that are admitted with them.
    names: BTreeMap<Name, Option<NodeId>>,
    admitted: BTreeSet<NodeId>,
}

impl Batch<'_> {
    fn decide(&mut self, candidate: &Candidate<'_>) -> Verdict {
        let id = candidate.key.id();
        if self.document.member(self.own).is_none() {
            return Verdict::Refused(JoinRefusal::SeedRemoved);
        }
        if self.document.removed.contains_key(&id) {
            return Verdict::Refused(JoinRefusal::Removed);
        }
        let succeeds = self.document.genesis.succeeds.as_ref();
        if candidate.cluster.is_some_and(|theirs| *theirs != self.document.id && Some(theirs) != succeeds) {
            return Verdict::Refused(JoinRefusal::OtherCluster);
        }
        if self.document.member(&id).is_some() || self.admitted.contains(&id) {
            return Verdict::Member;
        }
        if !self.document.is_master(self.own) {
            return Verdict::Redirect;
        }
        let mut ledger = None;
        let role = match (candidate.approved, candidate.proof) {
            (Some(role), _) => Some(role),
            (None, Some(proof)) => {
                // The secret first: a node without it learns nothing of the cluster.
                let ledger = ledger.insert(self.ledger.clone());
                match ledger.redeem(proof, candidate.session, &candidate.key, self.now) {
                    Ok(role) => Some(role),
                    Err(refusal) => return Verdict::Refused(refusal),
                }
            }
            (None, None) => (self.open && candidate.confirmed).then_some(Role::Worker),
        };
        if let Some(holder) = self.names.get(candidate.name) {
            return Verdict::NameTaken(candidate.name.clone(), *holder);
        }
        let Some(role) = role else { return Verdict::Wait };
        if let Some(ledger) = ledger {
            *self.ledger = ledger;
        }
        self.names.insert(candidate.name.clone(), None);
        self.admitted.insert(id);
        Verdict::Admit(role)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cluster::{Admitted, KeyId};
    use crate::invite::{InviteId, InviteSecret, IssuedInvite};

    const SESSION: [u8; 32] = [5; 32];
    const INVITE: InviteId = [1; 4];

    fn key(n: u8) -> PublicKey {
        PublicKey([n; 32])
    }

    /// A cluster of the master "a", and its ledger with an invite of so many uses.
    fn cluster(uses: u32) -> (Document, InviteLedger) {
        let first = Admitted::new(Name::nearest("a"), key(1), Role::Master, key(1).id(), UnixMs(1));
        let document = Document::new([0; 16], Name::nearest("c"), first, KeyId([0; KeyId::LEN]));
        let mut ledger = InviteLedger::default();
        let secret = InviteSecret([9; 16]);
        let issued = IssuedInvite { secret, expires: UnixMs(100), uses_left: Some(uses), role: Role::Worker };
        ledger.issue(INVITE, issued);
        (document, ledger)
    }

    fn proof(n: u8) -> InviteProof {
        InviteProof::make(INVITE, &InviteSecret([9; 16]), &SESSION, &key(n))
    }

    fn candidate<'a>(n: u8, name: &'a Name, proof: Option<&'a InviteProof>) -> Candidate<'a> {
        let key = key(n);
        Candidate { key, name, proof, session: &SESSION, confirmed: true, cluster: None, approved: None }
    }

    fn decided(document: &Document, ledger: &mut InviteLedger, all: &[Candidate<'_>]) -> Vec<Verdict> {
        decide(document, &key(1).id(), ledger, false, all.iter().copied(), UnixMs(2))
    }

    #[test]
    fn an_invite_admits_as_many_at_once_as_it_has_uses() {
        let (document, mut ledger) = cluster(2);
        let (names, proofs): (Vec<Name>, Vec<_>) =
            (2..6).map(|n| (Name::nearest(&format!("n{n}")), proof(n))).unzip();
        let asked = (2..6).zip(names.iter().zip(&proofs));
        let all: Vec<_> = asked.map(|(n, (name, proof))| candidate(n, name, Some(proof))).collect();
        let verdicts = decided(&document, &mut ledger, &all);
        let (admit, used) = (Verdict::Admit(Role::Worker), Verdict::Refused(JoinRefusal::UsedUp));
        assert_eq!(verdicts, [admit.clone(), admit, used.clone(), used]);
        let (again, name) = (proof(7), Name::nearest("n7"));
        let last = decided(&document, &mut ledger, &[candidate(7, &name, Some(&again))]);
        assert_eq!(last, [Verdict::Refused(JoinRefusal::UsedUp)], "the ledger has kept the uses");
    }

    #[test]
    fn two_at_once_do_not_get_one_name_and_the_refused_one_uses_nothing_up() {
        let (document, mut ledger) = cluster(2);
        let (name, other) = (Name::nearest("b"), Name::nearest("d"));
        let proofs = [proof(2), proof(3), proof(4)];
        let [first, second, third] = &proofs;
        let all = [
            candidate(2, &name, Some(first)),
            candidate(3, &name, Some(second)),
            candidate(4, &other, Some(third)),
        ];
        let (admit, taken) = (Verdict::Admit(Role::Worker), Verdict::NameTaken(name.clone(), None));
        assert_eq!(decided(&document, &mut ledger, &all), [admit.clone(), taken, admit]);
        let first = Name::nearest("a");
        let holder = Some(key(1).id());
        let asked = [Candidate { approved: Some(Role::Worker), ..candidate(5, &first, None) }];
        assert_eq!(decided(&document, &mut ledger, &asked), [Verdict::NameTaken(first.clone(), holder)]);
    }

    #[test]
    fn a_node_that_asks_twice_at_once_is_admitted_once() {
        let (document, mut ledger) = cluster(1);
        let (name, proof) = (Name::nearest("b"), proof(2));
        let one = candidate(2, &name, Some(&proof));
        let verdicts = decided(&document, &mut ledger, &[one, one]);
        assert_eq!(verdicts, [Verdict::Admit(Role::Worker), Verdict::Member]);
    }

    #[test]
    fn a_node_without_an_invite_waits_unless_it_was_approved_or_the_cluster_is_open() {
        let (document, mut ledger) = cluster(0);
        let name = Name::nearest("b");
        let one = candidate(2, &name, None);
        assert_eq!(decided(&document, &mut ledger, &[one]), [Verdict::Wait]);
        let approved = Candidate { approved: Some(Role::Master), ..one };
        assert_eq!(decided(&document, &mut ledger, &[approved]), [Verdict::Admit(Role::Master)]);
        let own = key(1).id();
        let unsure = Candidate { confirmed: false, ..one };
        let open = decide(&document, &own, &mut ledger, true, [one, unsure], UnixMs(2));
        assert_eq!(open[0], Verdict::Admit(Role::Worker));
        assert_eq!(open[1], Verdict::Member, "the same node");
        assert_eq!(decide(&document, &own, &mut ledger, true, [unsure], UnixMs(2)), [Verdict::Wait]);
    }

    #[test]
    fn who_is_out_of_place_is_told_so_before_anything_is_looked_at() {
        let (mut document, mut ledger) = cluster(5);
        let (name, other) = (Name::nearest("b"), ClusterId("other".to_owned()));
        let (proof, wrong) = (proof(2), proof(3));
        let one = candidate(2, &name, Some(&proof));
        let refused = |refusal| [Verdict::Refused(refusal)];
        let elsewhere = Candidate { cluster: Some(&other), ..one };
        assert_eq!(decided(&document, &mut ledger, &[elsewhere]), refused(JoinRefusal::OtherCluster));
        let forged = Candidate { proof: Some(&wrong), ..one };
        assert_eq!(decided(&document, &mut ledger, &[forged]), refused(JoinRefusal::WrongSecret));
        let admitted = Admitted::new(name.clone(), key(2), Role::Worker, key(1).id(), UnixMs(2));
        document.admit(admitted);
        assert_eq!(decided(&document, &mut ledger, &[one]), [Verdict::Member]);
        let third = Name::nearest("d");
        let asked = [candidate(3, &third, None)];
        let of_worker = decide(&document, &key(2).id(), &mut ledger, false, asked, UnixMs(2));
        assert_eq!(of_worker, [Verdict::Redirect]);
        document.remove(key(2).id(), key(1).id(), UnixMs(3));
        assert_eq!(decided(&document, &mut ledger, &[one]), refused(JoinRefusal::Removed));
        let of_removed = decide(&document, &key(2).id(), &mut ledger, false, asked, UnixMs(2));
        assert_eq!(of_removed, refused(JoinRefusal::SeedRemoved));
    }
}
