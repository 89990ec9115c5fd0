//! Mutations of known bytes by a seeded generator: the same ones in every run.

/// A generator (SplitMix64), and what it does to bytes.
pub(crate) struct Mutator(u64);

/// Most bytes that a mutation grows to.
const LONGEST: usize = 8 * 1024;

/// Bytes and numbers at which decoders err.
const EDGES: [u8; 10] = [0, 1, 2, 0x7f, 0x80, 0xff, b'\n', b'"', b' ', b'='];

impl Mutator {
    pub(crate) fn new(seed: u64) -> Mutator {
        Mutator(seed)
    }

    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut x = self.0;
        x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        x ^ (x >> 31)
    }

    /// A number below `end`; 0 when that is 0.
    fn below(&mut self, end: usize) -> usize {
        usize::try_from(self.next() % u64::try_from(end.max(1)).unwrap_or(1)).unwrap_or(0)
    }

    /// One of the corpus with a few changes, of which one may be a piece of another.
    pub(crate) fn of(&mut self, corpus: &[Vec<u8>]) -> Vec<u8> {
        let place = self.below(corpus.len());
        let mut bytes = corpus.get(place).cloned().unwrap_or_default();
        for _ in 0..=self.below(4) {
            self.change(&mut bytes, corpus);
        }
        bytes.truncate(LONGEST);
        bytes
    }

    fn change(&mut self, bytes: &mut Vec<u8>, corpus: &[Vec<u8>]) {
        let at = self.below(bytes.len() + 1);
        let length = self.below(16.min(bytes.len() - at) + 1);
        let edge = EDGES[self.below(EDGES.len())];
        match self.below(9) {
            0 => bytes.truncate(at),
            1 => drop(bytes.drain(at..at + length)),
            2 => bytes.insert(at, edge),
            // A length or a number that is far off.
            3 => bytes[at..at + length].fill(edge),
            4 => {
                let piece = bytes[at..at + length].to_vec();
                let to = self.below(bytes.len() + 1);
                bytes.splice(to..to, piece);
            }
            5 => {
                let other = self.below(corpus.len());
                let Some(other) = corpus.get(other) else { return };
                let from = self.below(other.len() + 1);
                let until = from + self.below(64.min(other.len() - from) + 1);
                bytes.splice(at..at + length, other[from..until].iter().copied());
            }
            _ => {
                let bit = self.below(8);
                if let Some(byte) = bytes.get_mut(at) {
                    *byte ^= 1 << bit;
                }
            }
        }
    }
}
