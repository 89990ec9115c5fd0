//! The virtual IPs of the settings at this node: where each would live, what is known against it, and its election.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::time::Duration;

use proto::arp::Mac;
use proto::cause::Cause;
use proto::cluster::Document;
use proto::election::{Candidate, Election, EligibilityFact, VipRules};
use proto::node::NodeId;
use proto::settings::VipSettings;
use proto::time::Moment;
use proto::unfit::Unfit;
use tracing::{info, warn};

use super::segment::{NoSegment, VipPlacement};
use super::{HandedVip, LocalEligibility};

/// By then all have gossiped where they stand: a few rounds.
const GOSSIPED: Duration = Duration::from_secs(5);

/// For so long the network of an owner's interface may be gone: systemd-networkd takes an interface's addresses away,
/// and sets them again 10 to 20 ms later, when it configures it anew (`netplan apply`). Shorter than others take to
/// miss this node.
const RECONFIGURED: Duration = Duration::from_millis(150);

/// What holds of a virtual IP apart from its service's health.
#[derive(Debug, Clone)]
pub(super) struct VipFacts {
    /// Why addresses can't be set here, or its segment can't be opened.
    pub(super) blocked: Option<Unfit>,
    pub(super) draining: bool,
    /// Why it is the own address of a member.
    pub(super) taken: Option<Unfit>,
    /// Whether the segment of its place is proven.
    pub(super) segment: Result<(), Unfit>,
}

/// One virtual IP.
pub(super) struct LocalVip {
    settings: VipSettings,
    election: Election,
    rules: VipRules,
    place: Result<VipPlacement, NoSegment>,
    /// Since when the network of the place that it is owned at is gone.
    lost: Option<Moment>,
    /// It is no setting any more and only says goodbye.
    leaving: bool,
    made: Moment,
}

impl LocalVip {
    /// `epoch`: the highest that is known from before.
    fn new(own: NodeId, settings: VipSettings, epoch: u64, now: Moment) -> LocalVip {
        let mut election = Election::new(own, settings.address, now);
        if !election.set_minimum_epoch(epoch) {
            warn!(vip = %settings.address, "ignoring the impossible stored epoch {epoch}");
        }
        LocalVip {
            election,
            settings,
            rules: VipRules::default(),
            place: Err(NoSegment::Segment(Unfit::new(Cause::SegmentUntested, "not tested yet"))),
            lost: None,
            leaving: false,
            made: now,
        }
    }

    pub(super) fn settings(&self) -> &VipSettings {
        &self.settings
    }

    pub(super) fn election(&self) -> &Election {
        &self.election
    }

    pub(super) fn election_mut(&mut self) -> &mut Election {
        &mut self.election
    }

    /// Where it would be set, or why nowhere.
    pub(super) fn place(&self) -> Result<&VipPlacement, &NoSegment> {
        self.place.as_ref()
    }

    /// Who may own it.
    pub(super) fn candidates(&self) -> &[Candidate] {
        &self.rules.candidates
    }

    /// Why one that sends no beats here can't own it, as far as is known.
    pub(super) fn unfit(&self, node: &NodeId) -> Option<Unfit> {
        let told = self.rules.candidates.iter().find(|one| one.node == *node)?.unfit.clone();
        let silent = self.rules.silent.contains(node);
        told.or_else(|| silent.then(|| Unfit::new(Cause::NotHeard, "no answer from it")))
    }

    /// Whether this node may.
    pub(super) fn has_candidate(&self, node: &NodeId) -> bool {
        self.rules.candidates.iter().any(|one| one.node == *node)
    }

    /// Whether it was set so lately that not all members have said where they stand.
    pub(super) fn is_young(&self, now: Moment) -> bool {
        now.since(self.made) < GOSSIPED
    }

    /// Whether it only says goodbye.
    pub(super) fn is_leaving(&self) -> bool {
        self.leaving
    }

    /// It is no setting any more, or the agent stops.
    fn leave(&mut self, now: Moment) {
        self.leaving = true;
        self.election.stop(now);
    }

    /// Follows the rules, also when they are the same: what is shown of them may be news. True when they are not.
    pub(super) fn follow_rules(&mut self, now: Moment, rules: VipRules) -> bool {
        let changed = rules != self.rules;
        self.rules = rules.clone();
        self.election.set_rules(now, rules);
        changed
    }

    /// Where it would live, as the interfaces are now. Returns when to look again, if an owner may get its network back
    /// until then: its place is as it was. `up`: the indices of the interfaces that are up.
    pub(super) fn set_place(
        &mut self,
        now: Moment,
        place: Result<VipPlacement, NoSegment>,
        up: impl Fn(u32) -> bool,
    ) -> Option<Moment> {
        let is_gone = matches!(&place, Err(NoSegment::Segment(why)) if why.cause == Cause::NoInterface)
            && self.owns_at(up);
        self.lost = is_gone.then(|| self.lost.unwrap_or(now));
        let until = self.lost.map(|since| since.after(RECONFIGURED)).filter(|until| now < *until);
        if until.is_none() {
            self.place = place;
        }
        until
    }

    /// Whether it is owned here, on an interface that is still up.
    fn owns_at(&self, up: impl Fn(u32) -> bool) -> bool {
        self.election.owns() && self.place.as_ref().is_ok_and(|place| up(place.index))
    }

    /// Someone else has the address, at this Ethernet address. `member`: whose it is.
    pub(super) fn sighted(&mut self, now: Moment, mac: Mac, member: Option<NodeId>) {
        // Members that have started together may not have said which cards are theirs: between owners
        // beats decide. Who does not own it takes everyone unknown for a stranger, and waits.
        if member.is_some() || !self.election.owns() || !self.is_young(now) {
            self.election.address_sighted(now, mac, member);
        }
    }

    /// The kernel has refused the address a moment ago.
    pub(super) fn set_blocked(&mut self, now: Moment, why: Unfit) {
        self.election.set_fact(now, EligibilityFact::Capability, Err(why));
    }

    /// Tells the election what holds and what does not. It is told each time, though it is seldom news: what is shown
    /// of it may be.
    pub(super) fn set_facts(&mut self, now: Moment, facts: VipFacts) {
        let VipFacts { blocked, draining, taken, segment } = facts;
        let holds = |wrong: Option<Unfit>| wrong.map_or(Ok(()), Err);
        let draining = draining.then(|| Unfit::new(Cause::Draining, "it is draining"));
        let mut set = |fact, outcome| self.election.set_fact(now, fact, outcome);
        set(EligibilityFact::Capability, holds(blocked));
        set(EligibilityFact::Draining, holds(draining));
        let (own, segment) = match &self.place {
            Ok(place) => {
                let down = || Unfit::new(Cause::LinkDown, format_args!("{} is down", place.name));
                set(EligibilityFact::Link, holds((!place.up).then(down)));
                (None, segment)
            }
            Err(NoSegment::Own(why)) => (Some(why.clone()), Ok(())),
            Err(NoSegment::Segment(why)) => (None, Err(why.clone())),
        };
        set(EligibilityFact::Address, holds(taken.or(own)));
        set(EligibilityFact::Segment, segment);
    }
}

/// What has changed with the settings.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct SettingsChange {
    /// Those that begin anew.
    pub(super) made: Vec<IpAddr>,
    /// Whether any may have another place.
    pub(super) moved: bool,
}

/// All virtual IPs.
#[derive(Default)]
pub(super) struct LocalVips {
    vips: BTreeMap<IpAddr, LocalVip>,
    /// Which checks of the services the elections know of.
    checks: u64,
}

impl LocalVips {
    /// Follows the settings. `epochs`: what is known from before.
    pub(super) fn reconcile(
        &mut self,
        now: Moment,
        own: NodeId,
        wanted: Vec<VipSettings>,
        epochs: &BTreeMap<IpAddr, u64>,
        mut handed: impl FnMut(IpAddr) -> Option<HandedVip>,
    ) -> SettingsChange {
        for vip in
            self.active_mut().filter(|vip| wanted.iter().all(|one| one.address != vip.settings.address))
        {
            vip.leave(now);
        }
        let mut change = SettingsChange { made: Vec::new(), moved: false };
        for settings in wanted {
            let address = settings.address;
            match self.vips.get_mut(&address).filter(|vip| !vip.leaving) {
                Some(vip) if vip.settings == settings => {}
                Some(vip) => {
                    vip.settings = settings;
                    change.moved = true;
                }
                None => {
                    info!(vip = %address, "virtual IP");
                    let epoch = epochs.get(&address).copied().unwrap_or(0);
                    let mut vip = LocalVip::new(own, settings, epoch, now);
                    if let Some(handed) = handed(address) {
                        vip.election.resume(now, handed.epoch, now.since(handed.at));
                    }
                    self.vips.insert(address, vip);
                    change.made.push(address);
                    change.moved = true;
                }
            }
        }
        change
    }

    pub(super) fn is_empty(&self) -> bool {
        self.vips.is_empty()
    }

    pub(super) fn len(&self) -> usize {
        self.vips.len()
    }

    /// The addresses of all, also of those that say goodbye.
    pub(super) fn addresses(&self) -> Vec<IpAddr> {
        self.vips.keys().copied().collect()
    }

    /// One of all.
    pub(super) fn get(&self, address: &IpAddr) -> Option<&LocalVip> {
        self.vips.get(address)
    }

    /// One of all.
    pub(super) fn get_mut(&mut self, address: &IpAddr) -> Option<&mut LocalVip> {
        self.vips.get_mut(address)
    }

    /// All, also those that say goodbye.
    pub(super) fn all_mut(&mut self) -> impl Iterator<Item = &mut LocalVip> {
        self.vips.values_mut()
    }

    /// Those that are settings.
    pub(super) fn active(&self) -> impl Iterator<Item = &LocalVip> {
        self.vips.values().filter(|vip| !vip.leaving)
    }

    /// Those that are settings.
    pub(super) fn active_mut(&mut self) -> impl Iterator<Item = &mut LocalVip> {
        self.vips.values_mut().filter(|vip| !vip.leaving)
    }

    /// The agent stops.
    pub(super) fn leave_all(&mut self, now: Moment) {
        self.vips.values_mut().for_each(|vip| vip.leave(now));
    }

    /// Removes those that have said goodbye; whether there were any.
    pub(super) fn remove_finished(&mut self, now: Moment) -> bool {
        let before = self.vips.len();
        self.vips.retain(|_, vip| !(vip.leaving && vip.election.is_finished(now)));
        self.vips.len() < before
    }

    /// When an election has something to do.
    pub(super) fn deadline(&self) -> Option<Moment> {
        self.vips.values().map(|vip| vip.election.deadline()).min()
    }

    /// Whether this node may own any of them.
    pub(super) fn any_has_candidate(&self, node: &NodeId) -> bool {
        self.vips.values().any(|vip| vip.has_candidate(node))
    }

    /// Whose word about others and about segments counts: masters and candidates.
    pub(super) fn trusted(&self, document: &Document) -> BTreeSet<NodeId> {
        let candidates = self.vips.values().flat_map(|vip| vip.candidates());
        document.masters().map(|(id, _)| *id).chain(candidates.map(|one| one.node)).collect()
    }

    /// Hands on the last check of the services, once.
    pub(super) fn check(&mut self, now: Moment, fit: &LocalEligibility) {
        if std::mem::replace(&mut self.checks, fit.checks) == fit.checks {
            return;
        }
        for vip in self.vips.values_mut() {
            let VipSettings { address, service, .. } = &vip.settings;
            let absent = || Err(Unfit::new(Cause::NotServed, format_args!("{service} is not served here")));
            vip.election.checked(now, fit.vips.get(address).cloned().unwrap_or_else(absent));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const OWN: NodeId = NodeId([1; 10]);

    fn at(ms: u64) -> Moment {
        Moment::from_millis(ms)
    }

    fn settings(last: u8) -> VipSettings {
        VipSettings::new([10, 9, 0, last].into())
    }

    fn vips(wanted: &[u8]) -> LocalVips {
        let mut vips = LocalVips::default();
        vips.reconcile(
            at(0),
            OWN,
            wanted.iter().map(|last| settings(*last)).collect(),
            &BTreeMap::new(),
            |_| None,
        );
        vips
    }

    fn addresses(vips: &LocalVips) -> Vec<IpAddr> {
        vips.active().map(|vip| vip.settings.address).collect()
    }

    /// Why this node can't own it, as its election says.
    fn reason(vip: &mut LocalVip) -> Option<Cause> {
        let rules = VipRules {
            candidates: vec![Candidate { node: OWN, priority: 100, unfit: None }],
            ..VipRules::default()
        };
        vip.follow_rules(at(0), rules);
        vip.election.checked(at(0), Ok(()));
        // It has listened.
        (0..=60).for_each(|n| drop(vip.election.poll(at(n * 10))));
        vip.election.status(at(600)).candidates[0].reason.clone().map(|why| why.cause)
    }

    #[test]
    fn the_settings_are_followed_and_what_is_gone_says_goodbye_first() {
        let mut vips = vips(&[50, 51]);
        let mut other = settings(51);
        other.label = Some("x".to_owned());
        let epochs = BTreeMap::from([([10, 9, 0, 52].into(), 7)]);
        let change = vips.reconcile(at(1), OWN, vec![other.clone(), settings(52)], &epochs, |_| None);
        assert_eq!(change, SettingsChange { made: vec![[10, 9, 0, 52].into()], moved: true });
        assert_eq!(addresses(&vips), [IpAddr::from([10, 9, 0, 51]), [10, 9, 0, 52].into()]);
        assert_eq!(vips.get(&[10, 9, 0, 52].into()).map(|vip| vip.election.epoch()), Some(7));
        assert_eq!(vips.len(), 3, "one says goodbye");
        let same = vips.reconcile(at(2), OWN, vec![other, settings(52)], &epochs, |_| None);
        assert_eq!(same, SettingsChange { made: vec![], moved: false });
        let back =
            vips.reconcile(at(3), OWN, vec![settings(50), settings(51), settings(52)], &epochs, |_| None);
        assert_eq!(back, SettingsChange { made: vec![[10, 9, 0, 50].into()], moved: true }, "it begins anew");
        vips.leave_all(at(4));
        assert!(vips.remove_finished(at(4)) && vips.is_empty());
    }

    fn place(up: bool) -> VipPlacement {
        let (mac, source) = (Mac([2; 6]), [10, 9, 0, 1].into());
        VipPlacement { index: 2, name: "eth0".to_owned(), mac, source, prefix: 24, up }
    }

    fn fine() -> VipFacts {
        VipFacts { blocked: None, draining: false, taken: None, segment: Ok(()) }
    }

    #[test]
    fn an_owner_keeps_its_place_while_its_interface_is_configured_anew() {
        let gone = || Err(NoSegment::Segment(Cause::NoInterface.into()));
        let after = |ms| at(1000).after(Duration::from_millis(ms));
        let mut vips = vips(&[50]);
        for vip in vips.all_mut() {
            vip.set_place(at(0), Ok(place(true)), |_| true);
            vip.set_facts(at(0), fine());
            // One that does not own it says so at once.
            assert_eq!((vip.set_place(at(1), gone(), |_| true), vip.place().is_ok()), (None, false));
            vip.set_place(at(2), Ok(place(true)), |_| true);
            vip.set_facts(at(2), fine());
            assert_eq!(reason(vip), None);
            assert!(vip.election.owns());
            let until = Some(after(150));
            assert_eq!((vip.set_place(after(0), gone(), |_| true), vip.place().is_ok()), (until, true));
            assert_eq!((vip.set_place(after(149), gone(), |_| true), vip.place().is_ok()), (until, true));
            vip.set_place(after(149), Ok(place(true)), |_| true);
            // Counted anew, and not for ever.
            let until = Some(after(300));
            assert_eq!((vip.set_place(after(150), gone(), |_| true), vip.place().is_ok()), (until, true));
            assert_eq!((vip.set_place(after(300), gone(), |_| true), vip.place().is_ok()), (None, false));
            // A link that is down has no network to come back.
            vip.set_place(after(301), Ok(place(true)), |_| true);
            assert_eq!((vip.set_place(after(302), gone(), |_| false), vip.place().is_ok()), (None, false));
        }
    }

    #[test]
    fn what_is_wrong_is_said_of_the_place_it_has() {
        let wrong = |cause: Cause| Some(Unfit::from(cause));
        let own = NoSegment::Own(Cause::OwnAddress.into());
        for (at_place, facts, reason_is) in [
            (Ok(place(true)), fine(), None),
            (Ok(place(false)), fine(), Some(Cause::LinkDown)),
            (Ok(place(true)), VipFacts { draining: true, ..fine() }, Some(Cause::Draining)),
            (
                Ok(place(true)),
                VipFacts { blocked: wrong(Cause::NotPermitted), ..fine() },
                Some(Cause::NotPermitted),
            ),
            (
                Ok(place(true)),
                VipFacts { taken: wrong(Cause::OwnAddress), ..fine() },
                Some(Cause::OwnAddress),
            ),
            (
                Ok(place(true)),
                VipFacts { segment: Err(Cause::NoSegment.into()), ..fine() },
                Some(Cause::NoSegment),
            ),
            (Err(own), fine(), Some(Cause::OwnAddress)),
            (Err(NoSegment::Segment(Cause::NoInterface.into())), fine(), Some(Cause::NoInterface)),
        ] {
            let mut vips = vips(&[50]);
            for vip in vips.all_mut() {
                vip.set_place(at(0), at_place.clone(), |_| true);
                vip.set_facts(at(0), facts.clone());
                assert_eq!(reason(vip), reason_is, "{at_place:?} {facts:?}");
            }
        }
    }

    #[test]
    fn a_check_counts_once_and_a_service_that_is_not_served_is_none() {
        let mut vips = vips(&[50]);
        let address = settings(50).address;
        let good = LocalEligibility { vips: [(address, Ok(()))].into(), checks: 1, ..Default::default() };
        let none = |checks| LocalEligibility { checks, ..Default::default() };
        for vip in vips.all_mut() {
            vip.set_place(at(0), Err(NoSegment::Own(Cause::OwnAddress.into())), |_| true);
            vip.election.set_fact(at(0), EligibilityFact::Segment, Ok(()));
            assert_eq!(reason(vip), None);
        }
        vips.check(at(0), &good);
        (0..10).for_each(|_| vips.check(at(0), &none(1)));
        assert!(vips.all_mut().all(|vip| vip.election.status(at(600)).candidates[0].reason.is_none()));
        (2..5).for_each(|checks| vips.check(at(0), &none(checks)));
        let why =
            vips.all_mut().next().and_then(|vip| vip.election.status(at(600)).candidates[0].reason.clone());
        assert_eq!(why.map(|why| why.cause), Some(Cause::NotServed));
    }
}
