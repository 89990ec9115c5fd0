//! What the elections are told: settings, members, health, and what the kernel and the segments show.

use std::net::IpAddr;
use std::time::Duration;

use proto::cause::Cause;
use proto::node::NodeId;
use proto::time::Moment;
use proto::unfit::Unfit;

use super::super::clock::now;
use super::super::local::VipFacts;
use super::super::lookout::SETTLE;
use super::super::rules::RulesInputs;
use super::super::segment::{VipPlacement, advice, place};
use super::super::segments::{self, L2Segments};
use super::super::{HandedVip, VipInputs};
use super::VipDriver;
use crate::lifecycle::wall;
use crate::netlink::route::IFF_UP;

/// The second net, should a change go unheard, and for round-trip times and reports.
const TICK: Duration = Duration::from_secs(1);
/// A peer heard within this is alive, so that its silence on a segment means something.
const HEARD: Duration = Duration::from_secs(2);
/// A member whose datagram came within this time is alive, and may bear witness.
const ALIVE: Duration = Duration::from_secs(3);

/// What the elections are told.
impl VipDriver {
    /// What is due apart from the elections.
    pub(super) fn run_due_tasks(&mut self, now: Moment) {
        if self.vips.is_empty() {
            return;
        }
        if now >= self.tick {
            self.tick = now.next_multiple(TICK);
            self.reporter.set_stale();
            self.follow_rules(now);
            if !self.lookout.listen() {
                self.lookout.look_by(now);
            }
            self.update_facts(now);
        }
        if self.lookout.is_due(now) {
            self.look_at_kernel(now);
            self.update_facts(now);
        }
        if self.segments.test(now) {
            self.update_facts(now);
        }
    }

    /// Follows settings, members and health.
    pub(super) fn apply_inputs(&mut self) {
        let now = now();
        self.inputs.trust.borrow_and_update();
        self.inputs.view.borrow_and_update();
        let fit = self.inputs.fit.borrow_and_update().clone();
        let wanted = self.inputs.settings.borrow_and_update().vips.clone();
        let VipInputs { epochs, handed: (handed, at), .. } = &mut self.inputs;
        let at = now.before(Duration::from_millis(wall().0.saturating_sub(at.0)));
        let resume = |address: IpAddr| {
            let found = handed.iter().position(|(handed, _)| *handed == address)?;
            Some(HandedVip { epoch: handed.swap_remove(found).1, at })
        };
        let change = self.vips.reconcile(now, self.own, wanted, epochs, resume);
        for made in change.made {
            self.kernel.forget(made);
            self.agent_probe.forget(made);
            self.reporter.forget(made);
        }
        if change.moved {
            self.lookout.look_by(now);
        }
        self.limiter.set_vips(self.vips.len());
        let document = self.document();
        self.beats.retain(|id| document.member(id).is_some());
        self.open_or_close();
        self.follow_rules(now);
        self.apply_records(now);
        self.vips.check(now, &fit);
        self.update_facts(now);
    }

    /// Takes up what virtual IPs need, or lays it down.
    pub(super) fn open_or_close(&mut self) {
        self.reporter.set_stale();
        if self.vips.is_empty() {
            self.kernel.close();
            self.lookout.stop();
            self.segments = L2Segments::default();
            return;
        }
        self.kernel.open();
        self.lookout.listen();
    }

    fn follow_rules(&mut self, now: Moment) {
        let (document, view, wall) = (self.document(), self.view(), wall());
        let fit = self.inputs.fit.borrow().clone();
        let liveness = self.inputs.liveness.borrow().clone();
        let VipDriver { own, ref inputs, ref life, ref mut vips, ref mut lookout, .. } = *self;
        let heard = |id: &NodeId| inputs.link.datagrams().has_heard(id, ALIVE, life.now());
        let heard = &heard;
        let (document, view, fit, liveness) = (&*document, &*view, &*fit, &*liveness);
        let made_of = RulesInputs { own, document, view, fit, liveness, wall, heard };
        for (turn, vip) in vips.active_mut().enumerate() {
            let rules = made_of.rules(vip.settings(), turn, vip.is_young(now));
            if vip.follow_rules(now, rules) {
                lookout.look_by(now.after(SETTLE));
            }
            // By the rules of now: who is no candidate says nothing of epochs.
            for (id, member) in &view.members {
                if let Some(claim) = member.record.vips.get(&vip.settings().address) {
                    vip.election_mut().gossiped(now, id, claim.epoch);
                }
            }
        }
    }

    /// Tells the tests of the segments who says to be there.
    fn apply_records(&mut self, now: Moment) {
        let trusted = self.vips.trusted(&self.document());
        self.segments.apply_records(now, self.own, &self.view(), &trusted);
    }

    fn look_at_kernel(&mut self, now: Moment) {
        if !self.kernel.list() {
            return;
        }
        let mut wanted: Vec<(IpAddr, VipPlacement)> = Vec::new();
        for vip in self.vips.all_mut() {
            let address = vip.settings().address;
            let others = self.kernel.others(address);
            let interfaces = self.kernel.interfaces();
            let found = place(address, vip.settings().interface.as_deref(), interfaces, &others);
            let up = |index| interfaces.iter().any(|one| one.index == index && one.flags & IFF_UP != 0);
            if let Some(again) = vip.set_place(now, found, up) {
                self.lookout.look_by(again);
            }
            let Ok(found) = vip.place().cloned() else { continue };
            let present = self.kernel.read_back(address, found.index);
            vip.election_mut().address(now, present);
            if vip.has_candidate(&self.own) && !vip.is_leaving() {
                wanted.push((address, found));
            }
        }
        self.segments.reconcile(now, &wanted);
        self.apply_records(now);
        self.reporter.set_stale();
    }

    /// Tells the elections what holds and what does not.
    pub(super) fn update_facts(&mut self, now: Moment) {
        let fit = self.inputs.fit.borrow().clone();
        let (document, view) = (self.document(), self.view());
        let trusted = self.vips.trusted(&document);
        let VipDriver { inputs, life, vips, kernel, segments, .. } = self;
        let link = &inputs.link;
        let heard = |id: &NodeId| link.datagrams().has_heard(id, HEARD, life.now());
        let name = |id: &NodeId| document.name_of(id).to_string();
        kernel.expire_refusals(now);
        for vip in vips.all_mut() {
            let address = vip.settings().address;
            let blocked =
                fit.aside.as_ref().or(kernel.problem()).or(segments.problem()).or(kernel.refusal(address));
            let blocked = blocked.cloned();
            // A worker's word counts where it has proven that it is at that very address.
            let lives = |id: &NodeId| link.addresses().is_proven(id, address);
            let taken = segments::node_at(&view, address, |id| trusted.contains(id) || lives(id));
            let taken = taken.map(|node| {
                let name = name(&node);
                let reason = format_args!("{address} is the own address of {name}; choose an unused one");
                Unfit::new(Cause::OwnAddress, reason)
            });
            let segment = vip.place().map_or(Ok(()), |place| {
                let interface = kernel.interfaces().iter().find(|one| one.index == place.index);
                match interface.and_then(|one| advice(address, one)) {
                    Some(advice) => Err(advice),
                    None => segments.verdict(now, place, heard, name),
                }
            });
            vip.set_facts(now, VipFacts { blocked, draining: fit.draining, taken, segment });
        }
    }
}
