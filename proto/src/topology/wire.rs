//! What an attached node and a core member say to each other: fields as in [`crate::tlv`], in one frame each.

use super::core::mix;
use crate::next_wire;
use crate::node::NodeId;
use crate::signed_record::SignedRecord;
use crate::tlv::{TlvReader, TlvWriter, number};
use crate::transport::MAX_BODY;

/// A node in a list: the first bytes of its id. Two nodes of 5,000 share them once in 340 clusters, and then both
/// are meant.
pub type IdPrefix = [u8; PREFIX];

/// Its length.
const PREFIX: usize = 4;

/// Most nodes in one list of a frame: a kilobyte.
pub const MOST_LISTED: usize = 250;

/// Most silent members that are named: as many as fit beside the core of 5,000 nodes.
pub const MOST_SILENT: usize = 128;

/// Most lost core members that one node names; others name others.
pub(super) const MOST_LOST: usize = 12;

/// The short form of a node's id.
pub fn prefix(id: &NodeId) -> IdPrefix {
    let [a, b, c, d, ..] = id.0;
    [a, b, c, d]
}

/// What two nodes compare. Each is a fingerprint, so that equal ones need no more words.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Knowledge {
    /// Of the cluster document.
    pub document: u64,
    /// Of the records that every node needs.
    pub records: u64,
    /// Of the core; in an [`Attach`], of what its receiver has said last.
    pub core: u64,
}

/// What an attached node sends to the core members that it holds.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Attach {
    /// What it knows.
    pub knows: Knowledge,
    /// Fingerprint of its record.
    pub record: u32,
    /// The receiver is the one that counts it as alive for the others.
    pub first: bool,
    /// Its record, if the receiver has another.
    pub carried: Option<SignedRecord>,
    /// Core members that have stopped answering it: the receiver checks them.
    pub lost: Vec<IdPrefix>,
    /// Fingerprint of the silent members that its receiver has named last; 0: it has named none.
    pub silent: u32,
}

/// What a core member answers, and says unasked when any of it has changed; and what it says to others of the core.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Beacon {
    /// The sender is in the core.
    pub in_core: bool,
    /// What it knows.
    pub knows: Knowledge,
    /// The core, where the receiver knows another.
    pub core: Vec<IdPrefix>,
    /// How many members are alive.
    pub up: u32,
    /// Members that are not, or some of them; `None`: the same as the receiver was told before.
    pub silent: Option<Vec<IdPrefix>>,
    /// Fingerprint of the receiver's record, as the sender holds it; 0: it holds none.
    pub yours: u32,
    /// To others of the core: whom it counts as alive.
    pub attached: Option<Vec<IdPrefix>>,
    /// To others of the core: the record of an attached node, once.
    pub carried: Option<SignedRecord>,
}

const DOCUMENT: u8 = 1;
const RECORDS: u8 = 2;
const CORE: u8 = 3;
const RECORD: u8 = 4;
const FIRST: u8 = 5;
const CARRIED: u8 = 6;
const IN_CORE: u8 = 7;
const CORE_IDS: u8 = 8;
const UP: u8 = 9;
const SILENT: u8 = 10;
const ATTACHED: u8 = 11;
const LOST: u8 = 12;
const SILENT_KNOWN: u8 = 13;

/// What a beacon names of these silent members to one that has said which it was told last: in a partition they are
/// half a kilobyte, and the same for as long as it lasts.
pub fn unless_known(silent: Vec<IdPrefix>, known: u32) -> Option<Vec<IdPrefix>> {
    (silent.is_empty() || fingerprint_of_silent(&silent) != known).then_some(silent)
}

/// Names a list of silent members, see [`Attach::silent`].
pub(super) fn fingerprint_of_silent(silent: &[IdPrefix]) -> u32 {
    let mixed = silent.iter().fold(0, |all, id| mix(all ^ u64::from(u32::from_be_bytes(*id))));
    u32::try_from(mixed >> 32).unwrap_or_default()
}

impl Knowledge {
    fn write(&self, out: &mut TlvWriter) {
        next_wire::topology(out);
        out.bytes(DOCUMENT, &self.document.to_be_bytes());
        out.bytes(RECORDS, &self.records.to_be_bytes());
        out.bytes(CORE, &self.core.to_be_bytes());
    }

    fn read(&mut self, tag: u8, value: &[u8]) {
        let place = match tag {
            DOCUMENT => &mut self.document,
            RECORDS => &mut self.records,
            CORE => &mut self.core,
            _ => return,
        };
        *place = value.first_chunk().map_or(0, |bytes| u64::from_be_bytes(*bytes));
    }
}

fn carry(out: &mut TlvWriter, record: Option<&SignedRecord>) {
    if let Some(record) = record {
        out.bytes(CARRIED, &record.to_bytes());
    }
}

fn short(value: &[u8]) -> u32 {
    value.first_chunk().map_or(0, |bytes| u32::from_be_bytes(*bytes))
}

fn write_list(out: &mut TlvWriter, tag: u8, ids: &[IdPrefix], most: usize) {
    out.bytes(tag, ids.get(..ids.len().min(most)).unwrap_or_default().as_flattened());
}

fn read_list(value: &[u8], most: usize) -> Vec<IdPrefix> {
    value.as_chunks().0.iter().take(most).copied().collect()
}

impl Attach {
    /// The body of its frame. A record that does not fit is left out: it is pulled.
    pub fn to_bytes(&self) -> Vec<u8> {
        let whole = self.written(self.carried.as_ref());
        if whole.len() <= MAX_BODY { whole } else { self.written(None) }
    }

    fn written(&self, carried: Option<&SignedRecord>) -> Vec<u8> {
        let mut out = TlvWriter::default();
        self.knows.write(&mut out);
        out.bytes(RECORD, &self.record.to_be_bytes());
        if self.first {
            out.bytes(FIRST, &[]);
        }
        if !self.lost.is_empty() {
            write_list(&mut out, LOST, &self.lost, MOST_LOST);
        }
        if self.silent != 0 {
            out.bytes(SILENT_KNOWN, &self.silent.to_be_bytes());
        }
        carry(&mut out, carried);
        out.finish()
    }

    /// Reads the body of a frame. Unknown fields are skipped, absent ones have no value.
    pub fn from_bytes(bytes: &[u8]) -> Attach {
        let mut read = Attach::default();
        for (tag, value) in TlvReader::new(bytes) {
            match tag {
                RECORD => read.record = short(value),
                FIRST => read.first = true,
                LOST => read.lost = read_list(value, MOST_LOST),
                SILENT_KNOWN => read.silent = short(value),
                CARRIED => read.carried = SignedRecord::from_bytes(value),
                tag => read.knows.read(tag, value),
            }
        }
        read
    }
}

impl Beacon {
    /// The body of its frame. What does not fit is left out: a record is pulled, and of lists the end is missing.
    pub fn to_bytes(&self) -> Vec<u8> {
        for carried in [self.carried.as_ref(), None] {
            let whole = self.written(carried, MOST_SILENT);
            if whole.len() <= MAX_BODY {
                return whole;
            }
        }
        // The list's length takes a byte more than an empty one's.
        let room = MAX_BODY.saturating_sub(self.written(None, 0).len() + 1);
        self.written(None, room / PREFIX)
    }

    fn written(&self, carried: Option<&SignedRecord>, silent: usize) -> Vec<u8> {
        let mut out = TlvWriter::default();
        self.knows.write(&mut out);
        if self.in_core {
            out.bytes(IN_CORE, &[]);
        }
        out.bytes(RECORD, &self.yours.to_be_bytes());
        out.number(UP, u64::from(self.up));
        if !self.core.is_empty() {
            write_list(&mut out, CORE_IDS, &self.core, MOST_LISTED);
        }
        if let Some(attached) = &self.attached {
            write_list(&mut out, ATTACHED, attached, MOST_LISTED);
        }
        if let Some(ids) = &self.silent {
            write_list(&mut out, SILENT, ids, silent);
        }
        carry(&mut out, carried);
        out.finish()
    }

    /// Reads the body of a frame. Unknown fields are skipped, absent ones have no value.
    pub fn from_bytes(bytes: &[u8]) -> Beacon {
        let mut read = Beacon::default();
        for (tag, value) in TlvReader::new(bytes) {
            match tag {
                IN_CORE => read.in_core = true,
                RECORD => read.yours = short(value),
                UP => read.up = number(value).and_then(|up| u32::try_from(up).ok()).unwrap_or(0),
                CORE_IDS => read.core = read_list(value, MOST_LISTED),
                SILENT => read.silent = Some(read_list(value, MOST_SILENT)),
                ATTACHED => read.attached = Some(read_list(value, MOST_LISTED)),
                CARRIED => read.carried = SignedRecord::from_bytes(value),
                tag => read.knows.read(tag, value),
            }
        }
        read
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::signed_record::tests::signed;

    fn knows() -> Knowledge {
        Knowledge { document: 0x0102_0304_0506_0708, records: 9, core: 10 }
    }

    fn attach() -> Attach {
        Attach {
            knows: knows(),
            record: 0xfeed,
            first: true,
            carried: Some(signed(1, 9, 2, b"body")),
            lost: vec![[5; 4]],
            silent: 0,
        }
    }

    fn beacon() -> Beacon {
        Beacon {
            in_core: true,
            knows: knows(),
            core: vec![[1; 4], [2; 4]],
            up: 4_999,
            silent: Some(vec![[3; 4]]),
            yours: 0xfeed,
            attached: Some(vec![[4; 4]]),
            carried: Some(signed(1, 9, 2, b"body")),
        }
    }

    #[test]
    fn golden_bytes_of_both_frames() {
        let stored = include_str!("../../tests/golden/topology.hex").lines();
        let hex = |bytes: Vec<u8>| data_encoding::HEXLOWER.encode(&bytes);
        let written = [
            format!("attach {}", hex(attach().to_bytes())),
            format!(
                "attach-to-another {}",
                hex(Attach { first: false, carried: None, lost: vec![], ..attach() }.to_bytes())
            ),
            format!("beacon {}", hex(beacon().to_bytes())),
            format!(
                "beacon-of-equals {}",
                hex(Beacon { knows: knows(), up: 3, silent: Some(vec![]), ..Beacon::default() }.to_bytes())
            ),
            format!("attach-that-knows-the-silent {}", hex(Attach { silent: 0xface, ..attach() }.to_bytes())),
            format!(
                "beacon-of-the-same-silent {}",
                hex(Beacon { knows: knows(), up: 3, ..Beacon::default() }.to_bytes())
            ),
        ];
        let stored: Vec<_> = stored.filter(|line| !line.starts_with('#')).collect();
        assert_eq!(stored.join("\n"), written.join("\n"));
        assert_eq!(Attach::from_bytes(&attach().to_bytes()), attach());
        let knows_silent = Attach { silent: 0xface, ..attach() };
        assert_eq!(Attach::from_bytes(&knows_silent.to_bytes()), knows_silent);
        assert_eq!(Beacon::from_bytes(&beacon().to_bytes()), beacon());
    }

    #[test]
    fn unknown_fields_are_skipped_and_what_does_not_fit_is_left_out() {
        let later = [&[99, 2, 1, 2], attach().to_bytes().as_slice()].concat();
        assert_eq!(Attach::from_bytes(&later), attach());
        let large = Attach { carried: Some(signed(1, 9, 2, &[7; 1_200])), ..attach() };
        assert_eq!(Attach::from_bytes(&large.to_bytes()), Attach { carried: None, ..attach() });
        let full =
            Beacon { core: vec![[1; 4]; 400], silent: Some(vec![[3; 4]; 40]), attached: None, ..beacon() };
        let bytes = full.to_bytes();
        assert!(bytes.len() <= MAX_BODY);
        let read = Beacon::from_bytes(&bytes);
        assert_eq!((read.core.len(), read.carried), (MOST_LISTED, None));
        assert!(read.silent.is_some_and(|silent| !silent.is_empty()), "as many as fit");
        let outage =
            Beacon { core: vec![[1; 4]; 100], silent: Some(vec![[3; 4]; 500]), attached: None, ..beacon() };
        assert_eq!(
            Beacon::from_bytes(&outage.to_bytes()).silent.map(|silent| silent.len()),
            Some(MOST_SILENT)
        );
    }

    #[test]
    fn silent_members_that_are_known_are_not_named_again_and_none_always_are() {
        let silent = vec![[3; 4], [5; 4]];
        let known = fingerprint_of_silent(&silent);
        assert_eq!(unless_known(silent.clone(), 0), Some(silent.clone()));
        assert_eq!(unless_known(silent.clone(), known), None);
        assert_eq!(unless_known(vec![[5; 4], [3; 4]], known), Some(vec![[5; 4], [3; 4]]));
        assert_eq!((unless_known(vec![], known), unless_known(vec![], 0)), (Some(vec![]), Some(vec![])));
    }

    proptest! {
        #[test]
        fn no_bytes_make_it_panic(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            let (attach, beacon) = (Attach::from_bytes(&bytes), Beacon::from_bytes(&bytes));
            prop_assert_eq!(Attach::from_bytes(&attach.to_bytes()), attach);
            prop_assert_eq!(Beacon::from_bytes(&beacon.to_bytes()), beacon);
        }
    }
}
