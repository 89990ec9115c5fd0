//! Why a node can't own a virtual IP: the cause decides, is sent and is counted; the sentence is for people.

use std::fmt;

use crate::cause::{Cause, Reason};

/// The cause sent by a version that has none.
const NOT_SAID: (u16, u16) = (0, 0);

/// Why a node can't own a virtual IP. Two are equal when their causes are.
#[derive(Debug, Clone)]
pub struct Unfit {
    /// Why.
    pub cause: Cause,
    /// The same for people, with what else is known.
    pub reason: Reason,
}

impl Unfit {
    /// With a sentence of its own.
    pub fn new(cause: Cause, reason: impl fmt::Display) -> Unfit {
        Unfit { cause, reason: Reason::new(reason) }
    }

    /// The cause as four bytes; `None`: there is none.
    pub fn cause_bytes(&self) -> Option<[u8; 4]> {
        let (code, argument) = self.cause.to_wire();
        let ([a, b], [c, d]) = (code.to_be_bytes(), argument.to_be_bytes());
        ((code, argument) != NOT_SAID).then_some([a, b, c, d])
    }

    /// The cause of [`Unfit::cause_bytes`].
    pub fn cause_of(bytes: Option<[u8; 4]>) -> Cause {
        let (code, argument) =
            bytes.map_or(NOT_SAID, |[a, b, c, d]| (u16::from_be_bytes([a, b]), u16::from_be_bytes([c, d])));
        Cause::from_wire(code, argument)
    }

    /// The cause, if there is one.
    pub fn said_cause(&self) -> Option<Cause> {
        Some(self.cause).filter(|cause| cause.to_wire() != NOT_SAID)
    }
}

impl From<Cause> for Unfit {
    fn from(cause: Cause) -> Unfit {
        Unfit::new(cause, cause)
    }
}

impl PartialEq for Unfit {
    fn eq(&self, other: &Unfit) -> bool {
        self.cause == other.cause
    }
}

impl Eq for Unfit {}

impl fmt::Display for Unfit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.reason.fmt(f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cause_reads_back_and_a_missing_one_stays_missing() {
        for cause in [Cause::NoSegment, Cause::Http(503), Cause::Other { code: 9_999, argument: 7 }] {
            let unfit = Unfit::from(cause);
            assert_eq!(Unfit::cause_of(unfit.cause_bytes()), cause);
            assert_eq!(unfit.said_cause(), Some(cause));
        }
        let earlier = Unfit::new(Unfit::cause_of(None), "no L2 on wg0");
        assert_eq!((earlier.cause_bytes(), earlier.said_cause()), (None, None));
        assert_eq!(earlier.to_string(), "no L2 on wg0");
    }
}
