//! What is told of virtual IPs: to people by status, to the others by gossip.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use proto::cluster::Document;
use proto::control::{Response, VipCandidate, VipState, VipStatus, VipTakeovers};
use proto::election::{self, CandidateState, Gain, OwnershipState};
use proto::node::{Name, NodeId};
use proto::record::VipOwnership;
use proto::time::{Moment, UnixMs};
use proto::unfit::Unfit;

use super::VipReport;
use super::driver::{DrivenVip, GOSSIPED, VipDriver};
use super::segment::NoSegment;
use crate::lifecycle::wall;

/// What was last said of one, and since when.
#[derive(Debug, Clone, Default)]
pub(super) struct ReportedState {
    said: Option<(OwnershipState, Option<NodeId>)>,
    pub(super) since: UnixMs,
    gains: VipTakeovers,
}

impl ReportedState {
    /// This node has become the owner.
    pub(super) fn gained(&mut self, cause: &Gain) {
        let gains = &mut self.gains;
        *match cause {
            Gain::Vacant => &mut gains.vacant,
            Gain::Silent { .. } => &mut gains.silent,
            Gain::Handed(_) => &mut gains.handed,
            Gain::Released(_) => &mut gains.released,
        } += 1;
    }
}

impl VipDriver {
    /// Says anew what is known, and ends the wishes that have come true or have not in time.
    pub(super) fn publish(&mut self, now: Moment) {
        let document = self.inputs.trust.borrow().document.clone();
        let own = self.own;
        let mut candidates = self.vips.values().flat_map(|vip| &vip.rules.candidates);
        let takes_part = candidates.any(|one| one.node == own);
        let problem = self.problem.as_ref().or(self.closed.as_ref()).filter(|_| takes_part);
        let mut report = VipReport { problem: problem.cloned(), ..VipReport::default() };
        let mut owners: BTreeMap<IpAddr, Option<NodeId>> = BTreeMap::new();
        for (address, vip) in self.vips.iter_mut().filter(|(_, vip)| !vip.leaving) {
            let status = vip.election.status(now);
            owners.insert(*address, status.owner);
            if let Ok(place) = &vip.place {
                let endpoint = place.endpoint();
                if !report.l2_endpoints.contains(&endpoint) {
                    report.l2_endpoints.push(endpoint);
                }
            }
            let shown = shown(vip, own, &status, now, &document);
            // At first everything is still being looked at, which is no reason not to wait for this node.
            let effective = now.since(vip.made) >= GOSSIPED;
            if let Some(why) = unfit(&status, own).filter(|_| effective) {
                report.unfit.insert(*address, why);
            }
            if status.state == OwnershipState::OwnedHere {
                report
                    .ownerships
                    .insert(*address, VipOwnership { epoch: status.epoch, since: shown.since_unix_ms });
            }
            report.epochs.insert(*address, status.epoch);
            report.vips.push(shown);
        }
        self.report.send_replace(Arc::new(report));
        self.end_moves(now, &owners, &document);
    }

    fn end_moves(&mut self, now: Moment, owners: &BTreeMap<IpAddr, Option<NodeId>>, document: &Document) {
        let moves = std::mem::take(&mut self.moves);
        for (address, to, until, reply) in moves {
            let name = name(document, &to);
            let owner = owners.get(&address).copied().flatten();
            if owner == Some(to) {
                let _ = reply.send(Response::Done(format!("{address} is now on {name}")));
            } else if now >= until {
                let text = format!("{address} did not move to {name} in time; see: agent status");
                let _ = reply.send(Response::Failed(text));
            } else {
                // Again: the wish may have been lost on the way.
                let own = self.own;
                let looks_on = |vip: &DrivenVip| vip.rules.candidates.iter().all(|one| one.node != own);
                if let (Some(owner), Some(true)) = (owner, self.vips.get(&address).map(looks_on)) {
                    self.send_move_request(address, owner, to);
                }
                self.moves.push((address, to, until, reply));
            }
        }
    }
}

fn shown(
    vip: &mut DrivenVip,
    own: NodeId,
    status: &election::ElectionStatus,
    now: Moment,
    document: &Document,
) -> VipStatus {
    let said = Some((status.state, status.owner));
    if vip.seen.said != said {
        // At first since when it was so before this agent looked, as far as the others know.
        let known = status.since.filter(|_| vip.seen.said.is_none());
        let ago = known.map_or(0, |since| now.since(since).as_millis() as u64);
        (vip.seen.said, vip.seen.since) = (said, UnixMs(wall().0.saturating_sub(ago)));
    }
    // Where nobody has it, what is in the way of this node says more than what others say of themselves.
    let here = match &vip.place {
        Err(NoSegment::Own(why) | NoSegment::Segment(why)) if status.owner.is_none() => Some(why.clone()),
        _ => None,
    };
    // A node that is none itself gets no beats of those in waiting, only what they gossip.
    let witness = status.candidates.iter().all(|place| place.node != own);
    let mut told = vip.rules.candidates.iter().filter_map(|one| one.unfit.clone());
    let gossiped = if witness && status.owner.is_none() { told.next() } else { None };
    let why = here.or(gossiped).or_else(|| status.reason.clone()).or_else(|| vip.election.recovery(now));
    let candidates = status.candidates.iter().zip(1..).map(|(place, rank)| {
        let told = vip.rules.candidates.iter().find(|one| one.node == place.node);
        let unheard = witness && place.candidate_state.is_none();
        let why = if unheard { told.and_then(|one| one.unfit.clone()) } else { place.reason.clone() };
        VipCandidate {
            node: name(document, &place.node),
            rank,
            eligible: why.is_none(),
            cause: why.as_ref().and_then(Unfit::said_cause),
            reason: why.map(|why| why.reason).unwrap_or_default(),
        }
    });
    VipStatus {
        address: vip.settings.address,
        state: match status.state {
            OwnershipState::OwnedHere => VipState::OwnedHere,
            OwnershipState::Owned => VipState::Owned,
            OwnershipState::Unowned => VipState::Unowned,
            OwnershipState::Unavailable => VipState::Unavailable,
        },
        owner: status.owner.map(|owner| name(document, &owner)),
        epoch: status.epoch,
        interface: vip.place.as_ref().ok().map(|place| place.name.clone()),
        since_unix_ms: vip.seen.since,
        cause: why.as_ref().and_then(Unfit::said_cause),
        reason: why.map(|why| why.reason).unwrap_or_default(),
        candidates: candidates.collect(),
        gains: vip.seen.gains,
    }
}

/// What keeps this node, or all of them, from owning it: what a node that only looks on can't know.
fn unfit(status: &election::ElectionStatus, own: NodeId) -> Option<Unfit> {
    let place = status.candidates.iter().find(|place| place.node == own)?;
    match &place.candidate_state {
        Some(CandidateState::Unfit(why)) => Some(why.clone()),
        // A stranger has it.
        _ if status.state == OwnershipState::Unavailable && place.reason.is_none() => status.reason.clone(),
        _ => None,
    }
}

fn name(document: &Document, id: &NodeId) -> Name {
    document.nodes.get(id).map_or_else(|| Name::nearest(&id.to_string()), |one| one.name.clone())
}
