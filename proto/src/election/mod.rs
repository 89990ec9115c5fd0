//! Who owns a virtual IP: elected by its candidates, witnessed by everyone else, without a quorum.
//!
//! Every member runs one [`Election`] for each VIP. Inputs are methods that take the time and values;
//! after any of them, and at [`Election::deadline`], the shell calls [`Election::poll`] and carries out the
//! actions in their order. A candidate goes this way:
//!
//! ```text
//!      start, candidate now,                      (fit) the owner is silent for 110 ms,
//!      woken after a stall                        released it, or there is none
//!             │                      ┌────────┐                        ┌──────────┐
//!             ▼          0.3 to 2 s  │        │ ─────────────────────► │ Doubting │ asks all others, probes
//!        Listening ────────────────► │ Backup │                        └──────────┘
//!                                    │        │ ◄───────────────────────┘   │ nobody has heard the owner for
//!                                    └────────┘  the owner is heard again,  │ 160 ms, no stranger answers,
//!                                     ▲  │       or a higher claim          │ 50 ms passed, and 50 ms more for
//!     higher claim heard: Delete      │  │                                  │ each better candidate: Add,
//!     stalled for 1.5 s: Delete       │  │ named as successor: at once      │ Announce, epoch + 1
//!     stop, drain, unfit, moved,      │  ▼                                  ▼
//!     preempted, stranger: Delete,   ┌───────────────────────────────────────┐
//!     name a successor, if any       │ Owner: beats, renews, announces,      │
//!                                    │ looks for others with the address     │
//!                                    └───────────────────────────────────────┘
//! ```
//!
//! # Why it is safe, and where not
//!
//! What nodes tell each other only grows ([`HighestClaim`]): a higher claim replaces a lower one, a release ends a
//! claim for ever. So messages may be lost, doubled or late. Any two owners that hear each other, or one
//! witness in common, agree at once who stays: the higher claim. An owner is never taken over while
//! anybody whom the candidate hears has heard it lately; what a worker says counts for less (`authority`). A
//! kernel removes the address by itself when it is not renewed. What can't be promised: sides of a partition
//! that no member bridges have an owner each, since there is no quorum; and a machine whose clock stood still
//! with its kernel (a paused VM) may answer until its first message after waking.

mod action;
mod authority;
mod beats;
mod claims;
mod conflict;
mod contest;
mod eligibility;
mod epoch;
mod knowledge;
mod limiter;
mod listening;
mod machine;
mod move_request;
mod owner;
mod ownership;
mod peers;
mod rank;
mod resumed;
mod status;
mod suspicion;
mod wakeup;
pub mod wire;
mod witness;

pub use self::action::{
    Action, CandidateStatus, ElectionStatus, Gain, LossReason, MoveError, OwnershipState, VipEvent,
};
pub use self::beats::BEAT;
pub use self::eligibility::{EligibilityFact, FALL, RISE};
pub use self::epoch::{CEILING, STEP};
pub use self::limiter::{MessageLimiter, RATE};
pub use self::machine::Election;
pub use self::ownership::LIFETIME;
pub use self::rank::{Candidate, CandidateState, DEFAULT_PRIORITY, MAX_CANDIDATES, NEAR_WITNESSES, VipRules};
pub use self::wire::{Claim, HighestClaim, Holding, MessageKind, ReleaseReason, VipMessage};
pub use self::witness::SOLO;

#[cfg(test)]
mod authority_tests;
#[cfg(test)]
mod tests;
#[cfg(test)]
mod wire_tests;
