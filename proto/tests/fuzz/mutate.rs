//! Mutations of known bytes by a seeded generator: the same ones in every run.

#[path = "../random/mod.rs"]
mod random;

use random::Dice;

/// A generator, and what it does to bytes.
pub(crate) struct Mutator(Dice);

/// Most bytes that a mutation grows to.
const LONGEST: usize = 8 * 1024;

/// Bytes and numbers at which decoders err.
const EDGES: [u8; 10] = [0, 1, 2, 0x7f, 0x80, 0xff, b'\n', b'"', b' ', b'='];

impl Mutator {
    pub(crate) fn new(seed: u64) -> Mutator {
        Mutator(Dice(seed))
    }

    /// One of the corpus with a few changes, of which one may be a piece of another.
    pub(crate) fn of(&mut self, corpus: &[Vec<u8>]) -> Vec<u8> {
        let place = self.0.below(corpus.len());
        let mut bytes = corpus.get(place).cloned().unwrap_or_default();
        for _ in 0..=self.0.below(4) {
            self.change(&mut bytes, corpus);
        }
        bytes.truncate(LONGEST);
        bytes
    }

    fn change(&mut self, bytes: &mut Vec<u8>, corpus: &[Vec<u8>]) {
        let at = self.0.below(bytes.len() + 1);
        let length = self.0.below(16.min(bytes.len() - at) + 1);
        let edge = EDGES[self.0.below(EDGES.len())];
        match self.0.below(9) {
            0 => bytes.truncate(at),
            1 => drop(bytes.drain(at..at + length)),
            2 => bytes.insert(at, edge),
            // A length or a number that is far off.
            3 => bytes[at..at + length].fill(edge),
            4 => {
                let piece = bytes[at..at + length].to_vec();
                let to = self.0.below(bytes.len() + 1);
                bytes.splice(to..to, piece);
            }
            5 => {
                let other = self.0.below(corpus.len());
                let Some(other) = corpus.get(other) else { return };
                let from = self.0.below(other.len() + 1);
                let until = from + self.0.below(64.min(other.len() - from) + 1);
                bytes.splice(at..at + length, other[from..until].iter().copied());
            }
            _ => {
                let bit = self.0.below(8);
                if let Some(byte) = bytes.get_mut(at) {
                    *byte ^= 1 << bit;
                }
            }
        }
    }
}
