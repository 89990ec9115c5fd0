//! One worker whose root is somebody else's: it speaks as itself, since datagrams are sealed for a pair, and
//! says whatever may hurt. What others hear of it is all that it can do.

use std::rc::Rc;
use std::time::Duration;

use proto::election::wire::{pack, unpack};
use proto::election::{
    CEILING, CandidateState, Claim, HighestClaim, Holding, MessageKind, ReleaseReason, STEP, VipMessage,
};

use super::{Input, VIP, World};

/// What it is after.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Lie {
    /// The address is its own.
    Claim,
    /// Somebody else owns it, with a higher claim.
    Forge,
    /// The owner has released it.
    Release,
    /// Numbers after which there are no more.
    Epoch,
    /// The owner is well.
    Veto,
    /// A person wants it elsewhere.
    Move,
    /// Anything.
    Random,
}

pub(crate) const LIES: [Lie; 7] =
    [Lie::Claim, Lie::Forge, Lie::Release, Lie::Epoch, Lie::Veto, Lie::Move, Lie::Random];

/// The liar of a world.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Liar {
    pub(crate) node: usize,
    /// Always this one; none: another each half second.
    pub(crate) lie: Option<Lie>,
    /// It never says what an honest worker would.
    pub(crate) silent: bool,
    now: Lie,
    /// Who owned it last.
    owner: usize,
}

impl Liar {
    pub(crate) fn new(node: usize, lie: Option<Lie>, silent: bool) -> Liar {
        Liar { node, lie, silent, now: lie.unwrap_or(Lie::Random), owner: 0 }
    }
}

impl World {
    pub(super) fn lies(&self, n: usize) -> bool {
        self.liar.is_some_and(|liar| liar.node == n)
    }

    /// A hundred times a second it tells some of the others something.
    pub(super) fn lie(&mut self) {
        let Some(mut liar) = self.liar.filter(|liar| self.nodes[liar.node].powered) else { return };
        if !self.now.is_multiple_of(10) {
            return;
        }
        if let Some(owner) = self.nodes.iter().position(|node| node.owns()) {
            liar.owner = owner;
            self.liar = Some(liar);
        }
        if self.now.is_multiple_of(500) && liar.lie.is_none() {
            liar.now = LIES[self.dice.next() as usize % LIES.len()];
            self.liar = Some(liar);
        }
        for to in 0..self.nodes.len() {
            if to == liar.node || self.ways[liar.node][to].udp_cut || !self.dice.percent(40) {
                continue;
            }
            let message = self.invent(liar);
            let wire = pack(std::slice::from_ref(&message)).concat();
            assert_eq!(unpack(&wire).as_deref(), Ok(std::slice::from_ref(&message)));
            let from = self.nodes[liar.node].id;
            self.fly(to, Input::Message(from, Rc::new(message)));
        }
    }

    fn invent(&mut self, liar: Liar) -> VipMessage {
        let count = self.nodes.len() as u64;
        let owner = liar.owner;
        let epoch = self.nodes.iter().map(|node| node.epoch).max().unwrap_or(0);
        let claim = |world: &World, n: usize, epoch: u64| {
            Claim::new(VIP, epoch, world.nodes[n].priority.unwrap_or(100), world.nodes[n].id)
        };
        let other = (self.dice.next() % count) as usize;
        let small = self.dice.between(0, 3);
        let huge = match self.dice.next() % 8 {
            0 => u64::MAX,
            1 => u64::MAX - 1,
            2 => CEILING,
            3 => CEILING - 1,
            4 => epoch + STEP,
            5 => epoch + STEP + 1,
            6 => self.dice.next(),
            _ => epoch + self.dice.next() % STEP,
        };
        let successor = self.dice.percent(70).then(|| self.nodes[other].id);
        let why = ReleaseReason::from_code((self.dice.next() % 12) as u8);
        let released = Holding::Released { why, successor };
        let held = Holding::Held;
        let known = |claim, holding| Some(HighestClaim { claim, holding });
        let heard = Some(Duration::ZERO);
        let message = |purpose, known, heard| VipMessage {
            vip: VIP,
            purpose,
            known,
            heard,
            state: CandidateState::Witness,
        };
        match liar.now {
            Lie::Claim => {
                let mine = claim(self, liar.node, epoch + small);
                VipMessage {
                    state: CandidateState::Fit,
                    ..message(MessageKind::Beat, known(mine, held), heard)
                }
            }
            Lie::Forge => {
                let forged = claim(self, other, epoch + small);
                message(MessageKind::Answer, known(forged, held), heard)
            }
            Lie::Release => message(MessageKind::Answer, known(claim(self, owner, epoch), released), None),
            Lie::Epoch => {
                let who = [owner, other, liar.node][self.dice.next() as usize % 3];
                let holding = if self.dice.percent(50) { held } else { released };
                let heard = heard.filter(|_| self.dice.percent(50));
                message(MessageKind::Beat, known(claim(self, who, huge), holding), heard)
            }
            Lie::Veto => message(MessageKind::Answer, known(claim(self, owner, epoch), held), heard),
            Lie::Move => message(MessageKind::Move(self.nodes[other].id), None, None),
            Lie::Random => {
                let purpose = match self.dice.next() % 6 {
                    0 => MessageKind::Beat,
                    1 => MessageKind::Ask,
                    2 => MessageKind::Answer,
                    3 => MessageKind::Move(self.nodes[other].id),
                    4 => MessageKind::Other(77),
                    _ => {
                        let now = LIES[self.dice.next() as usize % 6];
                        return self.invent(Liar { now, ..liar });
                    }
                };
                let epoch = if self.dice.percent(30) { huge } else { epoch + small };
                let holding = if self.dice.percent(50) { held } else { released };
                let heard = Some(Duration::from_millis(self.dice.next() % 2_000));
                let known = known(claim(self, other, epoch), holding).filter(|_| self.dice.percent(80));
                let state = match self.dice.next() % 4 {
                    0 => CandidateState::Fit,
                    1 => CandidateState::Listening,
                    2 => CandidateState::Other(99),
                    _ => CandidateState::Witness,
                };
                VipMessage { vip: VIP, purpose, known, heard, state }
            }
        }
    }
}
