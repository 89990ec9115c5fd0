//! What is told of virtual IPs: to people by status, to the others by gossip.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use proto::cluster::Document;
use proto::control::{VipCandidate, VipState, VipStatus, VipTakeovers};
use proto::election::{self, CandidateState, Gain, OwnershipState};
use proto::node::NodeId;
use proto::record::VipOwnership;
use proto::time::{Moment, UnixMs};
use proto::unfit::Unfit;
use tokio::sync::watch;

use super::VipReport;
use super::local::{LocalVip, LocalVips};
use super::segment::NoSegment;
use crate::lifecycle::wall;

/// What was last said of one, and since when.
#[derive(Debug, Clone, Copy, Default)]
struct ReportedState {
    said: Option<(OwnershipState, Option<NodeId>)>,
    since: UnixMs,
    gains: VipTakeovers,
}

impl ReportedState {
    /// It is so now, since what moment that was.
    fn follow(&mut self, now: Moment, wall: UnixMs, status: &election::ElectionStatus) {
        let said = Some((status.state, status.owner));
        if self.said != said {
            // At first since when it was so before this agent looked, as far as the others know.
            let known = status.since.filter(|_| self.said.is_none());
            let ago = known.map_or(0, |since| now.since(since).as_millis() as u64);
            (self.said, self.since) = (said, UnixMs(wall.0.saturating_sub(ago)));
        }
    }

    fn gained(&mut self, cause: &Gain) {
        let gains = &mut self.gains;
        *match cause {
            Gain::Vacant => &mut gains.vacant,
            Gain::Silent { .. } => &mut gains.silent,
            Gain::Handed(_) => &mut gains.handed,
            Gain::Released(_) => &mut gains.released,
        } += 1;
    }
}

/// The report, and what of it must be remembered from one to the next.
pub(super) struct VipReporter {
    report: watch::Sender<Arc<VipReport>>,
    reported: BTreeMap<IpAddr, ReportedState>,
    /// Something may have changed since the last report.
    stale: bool,
}

impl VipReporter {
    pub(super) fn new(report: watch::Sender<Arc<VipReport>>) -> VipReporter {
        VipReporter { report, reported: BTreeMap::new(), stale: true }
    }

    /// Begins anew; what was reported stands until the next report.
    pub(super) fn restart(&mut self) {
        (self.reported, self.stale) = (BTreeMap::new(), true);
    }

    /// The epochs that were reported last.
    pub(super) fn epochs(&self) -> BTreeMap<IpAddr, u64> {
        self.report.borrow().epochs.clone()
    }

    /// This one begins anew.
    pub(super) fn forget(&mut self, address: IpAddr) {
        self.reported.remove(&address);
    }

    /// Something may have changed.
    pub(super) fn set_stale(&mut self) {
        self.stale = true;
    }

    /// Whether a report is due.
    pub(super) fn take_stale(&mut self) -> bool {
        std::mem::take(&mut self.stale)
    }

    /// Since when an address has been as it was reported last.
    pub(super) fn since(&self, address: IpAddr) -> UnixMs {
        self.reported.get(&address).map_or(UnixMs(0), |reported| reported.since)
    }

    /// This node has become the owner.
    pub(super) fn gained(&mut self, address: IpAddr, cause: &Gain) {
        self.reported.entry(address).or_default().gained(cause);
    }

    /// Says anew what is known. `problem`: what keeps this node from taking part.
    pub(super) fn publish(
        &mut self,
        now: Moment,
        own: NodeId,
        vips: &LocalVips,
        document: &Document,
        problem: Option<&Unfit>,
    ) {
        let problem = problem.filter(|_| vips.any_has_candidate(&own));
        let mut report = VipReport { problem: problem.cloned(), ..VipReport::default() };
        self.reported.retain(|address, _| vips.get(address).is_some());
        for vip in vips.active() {
            let address = vip.settings().address;
            let status = vip.election().status(now);
            if let Ok(place) = vip.place() {
                let endpoint = place.endpoint();
                if !report.l2_endpoints.contains(&endpoint) {
                    report.l2_endpoints.push(endpoint);
                }
            }
            let reported = self.reported.entry(address).or_default();
            reported.follow(now, wall(), &status);
            let shown = shown(vip, own, &status, reported, now, document);
            // At first everything is still being looked at, which is no reason not to wait for this node.
            if let Some(why) = unfit(&status, own).filter(|_| !vip.is_young(now)) {
                report.unfit.insert(address, why);
            }
            if status.state == OwnershipState::OwnedHere {
                let ownership = VipOwnership { epoch: status.epoch, since: shown.since_unix_ms };
                report.ownerships.insert(address, ownership);
            }
            report.epochs.insert(address, status.epoch);
            report.vips.push(shown);
        }
        self.report.send_if_modified(|old| {
            let news = is_news(old, &report);
            *old = Arc::new(report);
            news
        });
    }
}

/// Whether anyone is told: nobody is, several times a second, while all is well and as before. A text may be news by
/// itself.
fn is_news(old: &VipReport, new: &VipReport) -> bool {
    let says_why = |vip: &VipStatus| {
        !vip.reason.is_empty() || vip.candidates.iter().any(|one| !one.eligible || !one.reason.is_empty())
    };
    let decided = |vip: &VipStatus| (vip.address, vip.state, vip.epoch, vip.since_unix_ms, vip.gains);
    let same = |(old, new): (&VipStatus, &VipStatus)| {
        let ranked = |vip: &VipStatus| vip.candidates.iter().map(|one| one.node.clone()).collect::<Vec<_>>();
        decided(old) == decided(new)
            && (&old.owner, &old.interface) == (&new.owner, &new.interface)
            && ranked(old) == ranked(new)
    };
    let sides = [old, new];
    sides.iter().any(|report| report.problem.is_some() || !report.unfit.is_empty())
        || sides.iter().any(|report| report.vips.iter().any(says_why))
        || (&old.l2_endpoints, &old.ownerships, &old.epochs)
            != (&new.l2_endpoints, &new.ownerships, &new.epochs)
        || old.vips.len() != new.vips.len()
        || !old.vips.iter().zip(&new.vips).all(same)
}

fn shown(
    vip: &LocalVip,
    own: NodeId,
    status: &election::ElectionStatus,
    reported: &ReportedState,
    now: Moment,
    document: &Document,
) -> VipStatus {
    // Where nobody has it, what is in the way of this node says more than what others say of themselves.
    let here = match vip.place() {
        Err(NoSegment::Own(why) | NoSegment::Segment(why)) if status.owner.is_none() => Some(why.clone()),
        _ => None,
    };
    // A node that is none itself gets no beats of those in waiting, only what they gossip.
    let witness = status.candidates.iter().all(|place| place.node != own);
    let mut told = vip.candidates().iter().filter_map(|one| one.unfit.clone());
    let gossiped = if witness && status.owner.is_none() { told.next() } else { None };
    let why = here.or(gossiped).or_else(|| status.reason.clone()).or_else(|| vip.election().recovery(now));
    let candidates = status.candidates.iter().zip(1..).map(|(place, rank)| {
        let unheard = witness && place.candidate_state.is_none();
        let why = if unheard { vip.unfit(&place.node) } else { place.reason.clone() };
        VipCandidate {
            node: document.name_of(&place.node),
            rank,
            eligible: why.is_none(),
            cause: why.as_ref().and_then(Unfit::said_cause),
            reason: why.map(|why| why.reason).unwrap_or_default(),
        }
    });
    VipStatus {
        address: vip.settings().address,
        state: match status.state {
            OwnershipState::OwnedHere => VipState::OwnedHere,
            OwnershipState::Owned => VipState::Owned,
            OwnershipState::Unowned => VipState::Unowned,
            OwnershipState::Unavailable => VipState::Unavailable,
        },
        owner: status.owner.map(|owner| document.name_of(&owner)),
        epoch: status.epoch,
        interface: vip.place().ok().map(|place| place.name.clone()),
        since_unix_ms: reported.since,
        cause: why.as_ref().and_then(Unfit::said_cause),
        reason: why.map(|why| why.reason).unwrap_or_default(),
        candidates: candidates.collect(),
        gains: reported.gains,
    }
}

/// What keeps this node, or all of them, from owning it: what a node that only looks on can't know.
fn unfit(status: &election::ElectionStatus, own: NodeId) -> Option<Unfit> {
    let place = status.candidates.iter().find(|place| place.node == own)?;
    match &place.candidate_state {
        Some(CandidateState::Unfit(why)) => Some(why.clone()),
        // A stranger has it.
        Some(CandidateState::Fit | CandidateState::Recovering)
            if status.state == OwnershipState::Unavailable =>
        {
            place.reason.clone().or_else(|| status.reason.clone())
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::vip_status;

    #[test]
    fn what_is_as_before_is_no_news_while_all_is_well() {
        let report = |vips: &[VipStatus]| VipReport { vips: vips.to_vec(), ..VipReport::default() };
        let well = report(&[vip_status(VipState::Owned, "")]);
        assert!(!is_news(&well, &well));
        let unwell = report(&[vip_status(VipState::Owned, "it is draining")]);
        for (old, new) in [
            (&well, &report(&[vip_status(VipState::OwnedHere, "")])),
            (&well, &report(&[])),
            (&well, &VipReport { epochs: [([10, 9, 0, 50].into(), 2)].into(), ..well.clone() }),
            (&well, &unwell),
            (&unwell, &well),
            // It may be another text.
            (&unwell, &unwell),
        ] {
            assert!(is_news(old, new), "{old:?} {new:?}");
        }
    }

    #[test]
    fn a_state_counts_from_its_change_and_the_first_from_what_the_others_know() {
        let (one, other) = (NodeId([1; 10]), NodeId([2; 10]));
        let status = |owner, since| election::ElectionStatus {
            state: OwnershipState::Owned,
            owner: Some(owner),
            epoch: 1,
            since: Some(Moment::from_millis(since)),
            reason: None,
            candidates: Vec::new(),
        };
        let mut reported = ReportedState::default();
        for (ms, status, since) in [
            (50_000, status(one, 20_000), 970_000),
            (60_000, status(one, 20_000), 970_000),
            (70_000, status(other, 69_000), 1_020_000),
        ] {
            reported.follow(Moment::from_millis(ms), UnixMs(950_000 + ms), &status);
            assert_eq!(reported.since, UnixMs(since), "{ms}");
        }
    }
}
