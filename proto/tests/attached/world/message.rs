//! What nodes send each other, and its bytes.

use proto::transport::{HEADER_LEN, TAG_LEN};

/// What a datagram has beside its frames: IP, UDP, header and tag.
pub(crate) const AROUND: u64 = 28 + HEADER_LEN as u64 + TAG_LEN as u64;

/// Kind and length of a frame.
const FRAME: u64 = 3;

/// Frames of a pulse, and of an answer: a status with one service, and the fingerprint of a record.
const PULSE: u64 = FRAME + 8;
const ANSWER: u64 = FRAME + 8 + 19 + 7;

/// A worker's signed record, with its field's head.
pub(crate) const RECORD: u64 = 330;

/// What one node says to another.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Message {
    Pulse(u64, Vec<u8>),
    Answer(u64, Vec<u8>),
    Report(Vec<u8>),
    /// With the number of the sender's record, if it goes along.
    Attach(Vec<u8>, Option<u32>),
    /// With a node and the number of its record.
    Beacon(Vec<u8>, Option<(usize, u32)>),
}

impl Message {
    pub(super) fn bytes(&self) -> u64 {
        let head = |report: &Vec<u8>| if report.is_empty() { 0 } else { FRAME + report.len() as u64 };
        let record = |carried: bool| if carried { RECORD } else { 0 };
        AROUND
            + match self {
                Message::Pulse(_, report) => PULSE + head(report),
                Message::Answer(_, report) => ANSWER + head(report),
                Message::Report(report) => head(report),
                Message::Attach(body, carried) => FRAME + body.len() as u64 + record(carried.is_some()),
                Message::Beacon(body, carried) => FRAME + body.len() as u64 + record(carried.is_some()),
            }
    }

    pub(super) fn kind(&self) -> Kind {
        match self {
            Message::Pulse(..) | Message::Answer(..) => Kind::Pulses,
            Message::Report(_) => Kind::Alarms,
            Message::Attach(..) => Kind::Attaches,
            Message::Beacon(_, None) => Kind::Beacons,
            Message::Beacon(_, Some(_)) => Kind::Records,
        }
    }
}

/// What bytes are for.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Kind {
    /// With their answers.
    Pulses,
    /// Reports that nobody asked for.
    Alarms,
    Attaches,
    /// Also the lists that core members send each other.
    Beacons,
    /// Records that are passed on.
    Records,
    Pulls,
}

/// What a node has sent or received: bytes of each [`Kind`], and datagrams.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Traffic {
    pub(crate) bytes: [u64; 6],
    pub(crate) datagrams: u64,
}

impl Traffic {
    pub(crate) fn all(&self) -> u64 {
        self.bytes.iter().sum()
    }

    /// What is for this.
    pub(crate) fn of(&self, kind: Kind) -> u64 {
        self.bytes[kind as usize]
    }

    pub(super) fn count(&mut self, kind: Kind, bytes: u64) {
        self.bytes[kind as usize] += bytes;
    }
}
