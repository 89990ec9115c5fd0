//! What the next version may look like, so that this one is tested with it: the feature `next-wire`.
//!
//! A build with the feature adds to everything that crosses a wire or lies in a file what this version does not
//! know: a field, a kind, a state, a setting, a higher version. The suite `mixed` runs such agents beside usual
//! ones. All that is added is here; where it is added stands one call, which does nothing without the feature.
//! Golden bytes are those of builds without it.

use std::borrow::Cow;
use std::collections::BTreeMap;

use crate::tlv::TlvWriter;

#[cfg(feature = "next-wire")]
mod grown;

/// Whether this build is the next version.
pub const ON: bool = cfg!(feature = "next-wire");

/// What is added to each highest version.
pub const RAISE: u8 = ON as u8;

/// What is added to the highest weight that a record may have.
pub const MORE_WEIGHT: u16 = if ON { 744 } else { 0 };

/// A tag, kind or code that this version does not know, wherever those are numbers.
const LATER: u8 = 200;

/// What follows the known part of a frame's body.
pub const TAIL: &[u8] = if ON { b"next" } else { &[] };

/// Keys of a node in gossip beside that of its record, and what stands there.
pub const GOSSIP: &[(&str, &str)] = if ON { &[("next", "a value")] } else { &[] };

/// Words of the next version for what this one calls otherwise: states, sources, kinds of events.
const WORDS: [(&str, &str); 4] =
    [("left", "resting"), ("unowned", "orphaned"), ("default", "built-in"), ("key-rotated", "key-turned")];

/// The word that is said for this version's.
pub fn say(word: &str) -> &str {
    WORDS.iter().find(|(now, _)| ON && *now == word).map_or(word, |(_, next)| next)
}

/// This version's word for one that was said.
pub fn hear(word: &str) -> &str {
    WORDS.iter().find(|(_, next)| ON && *next == word).map_or(word, |(now, _)| now)
}

/// What is written so that every struct in it has a field more.
#[cfg(not(feature = "next-wire"))]
pub fn grown<T: ?Sized>(value: &T) -> &T {
    value
}

#[cfg(feature = "next-wire")]
pub use grown::grown;

/// The fields that are added to the cluster document and its entries. One is a collection, which documents
/// merge by entries.
pub fn extra<V: From<&'static str> + FromIterator<(String, V)>>() -> BTreeMap<String, V> {
    if !ON {
        return BTreeMap::new();
    }
    let entry = |key: &str, value: V| (key.to_owned(), value);
    let one = V::from_iter([entry("clock", "1".into()), entry("next", "of an entry".into())]);
    BTreeMap::from([entry("next", "a field".into()), entry("next_list", V::from_iter([entry("one", one)]))])
}

/// The frames of a datagram, behind one of an unknown kind where there is room for it.
pub fn frames(plaintext: &[u8], most: usize) -> Cow<'_, [u8]> {
    let frame = [LATER, 0, 4, b'n', b'e', b'x', b't'];
    let fits = ON && plaintext.len() + frame.len() <= most;
    if fits { Cow::Owned([&frame, plaintext].concat()) } else { Cow::Borrowed(plaintext) }
}

/// Adds to what a pulse's answer says: a flag, a byte behind the flags, a field, a service in an unknown state
/// for an unknown cause, and one that can't be read.
pub fn pulse(said: &mut Vec<u8>, service: u8, most: usize) {
    if !ON {
        return;
    }
    const NAME: &[u8] = b"next-pulse";
    let entry = [&[NAME.len() as u8], NAME, &[LATER, 0x23, 0x28, 0, 1], TAIL].concat();
    let mut more = vec![LATER, 2, 1, 2];
    for entry in [&entry, [9, b'?'].as_slice()] {
        more.extend([service, entry.len() as u8]);
        more.extend(entry);
    }
    if 1 + said.len() + more.len() > most {
        return;
    }
    // The flags come first: tag, length, flags.
    if let [_, length, flags, ..] = said.as_mut_slice() {
        *length += 1;
        *flags |= 0x80;
        said.insert(3, LATER);
        said.extend(more);
    }
}

/// The tags of a record that the next version writes more of.
pub struct RecordTags {
    /// An offer.
    pub offer: u8,
    /// Of an offer: name, address, weight, readiness, cause.
    pub of_offer: [u8; 5],
}

/// Adds a field to what attached nodes and core members say to each other.
pub(crate) fn topology(out: &mut TlvWriter) {
    if ON {
        out.bytes(LATER, b"a field");
    }
}

/// Adds to a record: a field, an offer in an unknown state for an unknown cause, and one whose weight is above
/// this version's highest.
pub(crate) fn record(out: &mut TlvWriter, tags: &RecordTags, address: Option<&[u8]>) {
    let Some(address) = address.filter(|_| ON) else { return };
    let [name, place, weight, readiness, cause] = tags.of_offer;
    out.bytes(LATER, b"a field");
    for (called, share, ready) in [("next-state", 100, u64::from(LATER)), ("next-weight", 300, 0)] {
        out.fields(tags.offer, |out| {
            out.bytes(name, called.as_bytes());
            out.bytes(place, address);
            out.number(weight, share);
            out.number(readiness, ready);
            out.bytes(cause, &[0x23, 0x28, 0, 1]);
            out.bytes(LATER, b"a field of an offer");
        });
    }
}

/// The code of a candidate's state: of a witness another.
pub fn say_state(code: u8) -> u8 {
    if ON && code == 0 { LATER } else { code }
}

/// This version's code for one that was said.
pub fn hear_state(code: u8) -> u8 {
    if ON && code == LATER { 0 } else { code }
}

/// The field that is added to a message of virtual IPs.
pub fn vip_field() -> Option<(u8, &'static [u8])> {
    ON.then_some((LATER, b"next"))
}

/// The purpose of a message that is added to each datagram of virtual IPs.
pub fn vip_purpose() -> Option<u8> {
    ON.then_some(LATER)
}
