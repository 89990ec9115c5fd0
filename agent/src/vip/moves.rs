//! Wishes to move a virtual IP, until they have come true or have not in time.

use std::net::IpAddr;
use std::time::Duration;

use proto::cluster::Document;
use proto::control::{RefusalCode, Response};
use proto::election::wire::{MessageKind, VipMessage};
use proto::election::{CandidateState, MoveError};
use proto::node::{Name, NodeId};
use proto::settings;
use proto::time::Moment;
use proto::unfit::Unfit;
use tokio::sync::oneshot;

use super::VipCommand;
use super::local::{LocalVip, LocalVips};

/// Longest wait for a wish to come true: the time of a handover many times over.
const MOVE: Duration = Duration::from_secs(2);

/// One wish.
struct PendingMove {
    address: IpAddr,
    to: NodeId,
    until: Moment,
    reply: oneshot::Sender<Response>,
}

/// Why a virtual IP is not moved.
#[derive(Debug, thiserror::Error)]
enum MoveRefused {
    #[error(
        "{address} is not a virtual IP of this cluster; the virtual IPs are: {}",
        if .all.is_empty() { "none; set one: agent set vip=ADDRESS".to_owned() } else { .all.join(", ") }
    )]
    NotVip { address: IpAddr, all: Vec<String> },
    #[error("cannot move {address} to {to}: {why}")]
    NotNow { address: IpAddr, to: Name, why: Unfit },
    #[error("cannot move {address} to {to}: {why}")]
    Election { address: IpAddr, to: Name, why: MoveError },
}

/// A message to an owner.
pub(super) type ToOwner = (NodeId, VipMessage);

/// All that wait for their end.
#[derive(Default)]
pub(super) struct PendingMoves(Vec<PendingMove>);

impl PendingMoves {
    /// Begins what a person wishes.
    pub(super) fn begin(
        &mut self,
        now: Moment,
        own: NodeId,
        command: VipCommand,
        vips: &mut LocalVips,
        document: &Document,
    ) -> Option<ToOwner> {
        let VipCommand { address, node, reply } = command;
        let all = vips.addresses();
        let Some(vip) = vips.get_mut(&address).filter(|vip| !vip.is_leaving()) else {
            let all = all.iter().map(IpAddr::to_string).collect();
            let refused = MoveRefused::NotVip { address, all };
            let _ = reply.send(Response::refused(RefusalCode::BadInput, refused));
            return None;
        };
        let name = match settings::member(document, &node) {
            Ok(name) => name,
            Err(error) => {
                let _ = reply.send(Response::refused(RefusalCode::BadInput, error));
                return None;
            }
        };
        let (to, _) = document.members().find(|(_, one)| one.name == name)?;
        match ask(now, own, vip, *to, name) {
            Ok(owner) => {
                self.0.push(PendingMove { address, to: *to, until: now.after(MOVE), reply });
                owner.map(|owner| (owner, request(address, *to)))
            }
            // What is wished is so: a playbook that runs twice has nothing to fail on.
            Err(MoveRefused::Election { to, why: MoveError::Already, .. }) => {
                let _ = reply.send(Response::Done(format!("{address} is on {to} already")));
                None
            }
            Err(refused) => {
                let _ = reply.send(Response::Failed(refused.to_string()));
                None
            }
        }
    }

    /// Ends those that have come true or have not in time, and repeats the others.
    pub(super) fn follow(
        &mut self,
        now: Moment,
        own: NodeId,
        vips: &LocalVips,
        document: &Document,
    ) -> Vec<ToOwner> {
        let mut again = Vec::new();
        for PendingMove { address, to, until, reply } in std::mem::take(&mut self.0) {
            let vip = vips.get(&address).filter(|vip| !vip.is_leaving());
            let owner = vip.and_then(|vip| vip.election().status(now).owner);
            let name = document.name_of(&to);
            if owner == Some(to) {
                let _ = reply.send(Response::Done(format!("{address} is now on {name}")));
            } else if now >= until {
                let text = format!("{address} did not move to {name} in time; see: agent status");
                let _ = reply.send(Response::Failed(text));
            } else {
                // Again: the wish may have been lost on the way.
                let looks_on = vip.is_some_and(|vip| !vip.has_candidate(&own));
                again.extend(owner.filter(|_| looks_on).map(|owner| (owner, request(address, to))));
                self.0.push(PendingMove { address, to, until, reply });
            }
        }
        again
    }
}

/// Has the election do it; returns the owner where that is to be asked from here.
fn ask(
    now: Moment,
    own: NodeId,
    vip: &mut LocalVip,
    node: NodeId,
    to: Name,
) -> Result<Option<NodeId>, MoveRefused> {
    let address = vip.settings().address;
    let owner = vip.election().status(now).owner;
    let unfit = vip.unfit(&node);
    match (vip.election_mut().move_to(now, node), owner) {
        (Ok(()), _) => Ok(None),
        // A node that only looks on doesn't hear those in waiting; the owner does.
        (Err(MoveError::NotHeard), Some(owner)) if unfit.is_none() && !vip.has_candidate(&own) => {
            Ok(Some(owner))
        }
        (Err(why), _) => Err(match unfit.filter(|_| why == MoveError::NotHeard) {
            Some(why) => MoveRefused::NotNow { address, to, why },
            None => MoveRefused::Election { address, to, why },
        }),
    }
}

/// Tells an owner what a person wishes. It may come twice: who does not own it passes over it.
fn request(address: IpAddr, to: NodeId) -> VipMessage {
    let (purpose, state) = (MessageKind::Move(to), CandidateState::Witness);
    VipMessage { vip: address, purpose, known: None, heard: None, state }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proto::control::Refusal;
    use proto::election::wire::{Claim, HighestClaim, Holding};
    use proto::election::{Candidate, VipRules};
    use proto::settings::VipSettings;

    use super::super::tests::{document, id};
    use super::*;

    fn at(ms: u64) -> Moment {
        Moment::from_millis(ms)
    }

    fn vip() -> IpAddr {
        [10, 9, 0, 50].into()
    }

    /// A node that only looks on and has heard the owner.
    fn vips(owner: NodeId) -> LocalVips {
        let mut vips = LocalVips::default();
        vips.reconcile(at(0), id(1), vec![VipSettings::new(vip())], &BTreeMap::new(), |_| None);
        let candidate = |node| Candidate { node, priority: 100, unfit: None };
        for one in vips.all_mut() {
            let candidates = vec![candidate(id(2)), candidate(id(3))];
            one.follow_rules(at(0), VipRules { candidates, ..VipRules::default() });
            let claim = HighestClaim { claim: Claim::new(vip(), 5, 100, owner), holding: Holding::Held };
            let state = CandidateState::Fit;
            let (known, heard) = (Some(claim), Some(Duration::ZERO));
            let beat = VipMessage { vip: vip(), purpose: MessageKind::Beat, known, heard, state };
            one.election_mut().receive(at(0), owner, &beat);
        }
        vips
    }

    #[test]
    fn a_node_that_looks_on_asks_the_owner_until_it_is_done_or_too_late() {
        let to: Name = "m3".parse().unwrap();
        for one in vips(id(2)).all_mut() {
            assert!(matches!(ask(at(0), id(1), one, id(3), to.clone()), Ok(Some(owner)) if owner == id(2)));
        }
        for (owner, ms, asks, answer) in [
            (id(2), 100, 1, None),
            (id(2), 2_000, 0, Some("10.9.0.50 did not move to")),
            (id(3), 100, 0, Some("10.9.0.50 is now on")),
        ] {
            let (reply, mut answered) = oneshot::channel();
            let mut moves =
                PendingMoves(vec![PendingMove { address: vip(), to: id(3), until: at(2_000), reply }]);
            let again = moves.follow(at(ms), id(1), &vips(owner), &document());
            assert_eq!(again.len(), asks);
            let text = match answered.try_recv() {
                Ok(Response::Done(text) | Response::Failed(text)) => Some(text),
                _ => None,
            };
            assert_eq!(text.map(|text| text.starts_with(answer.unwrap_or_default())), answer.map(|_| true));
        }
    }

    #[test]
    fn a_move_to_its_owner_is_done() {
        let (reply, mut answered) = oneshot::channel();
        let command = VipCommand { address: vip(), node: "m3".to_owned(), reply };
        assert!(
            PendingMoves::default().begin(at(0), id(1), command, &mut vips(id(3)), &document()).is_none()
        );
        assert!(matches!(answered.try_recv(), Ok(Response::Done(_))));
    }

    #[test]
    fn what_is_no_virtual_ip_is_refused_with_those_that_are() {
        let (reply, mut answered) = oneshot::channel();
        let command = VipCommand { address: [10, 9, 0, 9].into(), node: "m3".to_owned(), reply };
        assert!(
            PendingMoves::default().begin(at(0), id(1), command, &mut vips(id(2)), &document()).is_none()
        );
        let Ok(Response::Refused(Refusal { code, reason })) = answered.try_recv() else {
            panic!("no refusal")
        };
        assert!(code == RefusalCode::BadInput && reason.contains("10.9.0.50"), "{reason}");
    }
}
