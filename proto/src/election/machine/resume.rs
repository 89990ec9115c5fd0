//! Going on as owner in place of another process of this node.

use std::time::Duration;

use super::super::action::Action;
use super::super::beats::NewsAudience;
use super::super::ownership::Ownership;
use super::super::resumed::{ResumeFacts, ResumeStep, Resumed};
use super::super::wire::{Claim, HighestClaim, Holding, MessageKind};
use super::Election;
use crate::node::NodeId;
#[cfg(doc)]
use crate::pulse::PAUSE;
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

    /// This process is about to be replaced by one that owns on, or goes on itself after all: everyone is told that the
    /// owner may be silent for [`PAUSE`], or is not any more.
    pub fn set_pausing(&mut self, now: Moment, pausing: bool) {
        self.pausing = pausing;
        if self.owns() {
            self.beats.announce(now, NewsAudience::Everyone);
            self.wakeup.at_once(now);
        }
    }

    /// What a message is for, where the owner's process is about to be replaced.
    pub(super) fn purpose(&self, purpose: MessageKind) -> MessageKind {
        match purpose {
            MessageKind::Beat | MessageKind::Answer if self.pausing && self.owns() => MessageKind::Pausing,
            purpose => purpose,
        }
    }

    /// A node says that its process is about to be replaced.
    pub(super) fn heard_of_pause(&mut self, now: Moment, from: NodeId) {
        if self.knowledge.holder() == Some(from) && self.rules.candidate(&from).is_some() {
            self.knowledge.holder_pauses(now);
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
