//! Going on as owner in place of another process of this node.

use std::time::Duration;

use super::super::action::Action;
use super::super::beats::NewsAudience;
use super::super::ownership::Ownership;
use super::super::resumed::{ResumeFacts, ResumeStep, Resumed};
use super::super::wire::{Claim, HighestClaim, Holding};
use super::Election;
use crate::time::Moment;

impl Election {
    /// Goes on as owner with this epoch, in place of a process of this node that has handed over so long ago: the
    /// address is where it was, and nobody has heard of an end. To be called first.
    pub fn resume(&mut self, now: Moment, epoch: u64, ago: Duration) {
        self.resumed = Resumed::of(now, epoch, ago).filter(|_| self.knowledge.restore_epoch(epoch));
        if self.resumed.is_some() {
            self.actions.clear();
        }
    }

    /// Owns what another process of this node has owned.
    pub(super) fn maintain_resumed(&mut self, now: Moment) {
        let facts = ResumeFacts {
            is_candidate: self.rules.candidate(&self.own).is_some(),
            owns: self.owns(),
            is_good: self.eligibility.candidate_state(now).is_eligible(),
            heard: self.knowledge.claims().epoch(),
        };
        let Some(resumed) = &mut self.resumed else { return };
        let step = resumed.poll(now, facts);
        self.wakeup.by([resumed.deadline()]);
        match step {
            ResumeStep::Wait => {}
            ResumeStep::Own(epoch) => {
                let priority = self.rules.candidate(&self.own).map_or(0, |one| one.priority);
                let claim = Claim::new(self.address, epoch, priority, self.own);
                self.ownership = Some(Ownership::new(now));
                self.adopt_claim(now, HighestClaim { claim, holding: Holding::Held }, self.own);
                self.beats.announce(now, NewsAudience::Everyone);
            }
            ResumeStep::Over => self.resumed = None,
            ResumeStep::Delete => {
                self.resumed = None;
                self.actions.push(Action::Delete);
            }
        }
    }
}
