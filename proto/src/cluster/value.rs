//! Values of any shape, so that what a later version writes is kept, hashed and merged by this one.
//!
//! A document holds what both MessagePack and JSON can: truth values, whole numbers, text, lists and maps
//! with text as keys. Its canonical form is MessagePack with sorted keys and the shortest form of each
//! number, which every version gives the same bytes.

use std::collections::BTreeMap;
use std::fmt;

use serde::de::{self, MapAccess, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::BadDocument;

/// Any value. The order of the variants decides which of two different ones a merge keeps: maps last, so
/// that merging maps stays associative.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Value {
    /// Nothing.
    Nil,
    /// A truth value.
    Bool(bool),
    /// A negative number.
    Negative(i64),
    /// A number from 0 on.
    Number(u64),
    /// Text.
    Text(String),
    /// A list.
    List(Vec<Value>),
    /// A map.
    Map(BTreeMap<String, Value>),
}

/// Fields that this version does not know, by name.
pub type Extra = BTreeMap<String, Value>;

impl From<&str> for Value {
    fn from(text: &str) -> Value {
        Value::Text(text.to_owned())
    }
}

impl FromIterator<(String, Value)> for Value {
    fn from_iter<I: IntoIterator<Item = (String, Value)>>(fields: I) -> Value {
        Value::Map(fields.into_iter().collect())
    }
}

impl Value {
    /// Which of two values counts: entries with a `clock` by that first, then the greater one.
    fn order(&self) -> (u64, &Value) {
        let clock = match self {
            Value::Map(fields) => match fields.get("clock") {
                Some(Value::Number(clock)) => *clock,
                _ => 0,
            },
            _ => 0,
        };
        (clock, self)
    }
}

impl Value {
    /// The merge patch (RFC 7396) that leads to another value; `None`: they are equal.
    pub(super) fn patch_to(&self, other: &Value) -> Option<Value> {
        if self == other {
            return None;
        }
        let (Value::Map(old), Value::Map(new)) = (self, other) else { return Some(other.clone()) };
        let mut patch = BTreeMap::new();
        for (key, value) in new {
            let change = old.get(key).map_or(Some(value.clone()), |known| known.patch_to(value));
            patch.extend(change.map(|change| (key.clone(), change)));
        }
        let gone = old.keys().filter(|key| !new.contains_key(*key));
        patch.extend(gone.map(|key| (key.clone(), Value::Nil)));
        Some(Value::Map(patch))
    }

    /// Applies such a patch.
    pub(super) fn apply(&mut self, patch: &Value) {
        let Value::Map(changes) = patch else { return self.clone_from(patch) };
        if !matches!(self, Value::Map(_)) {
            *self = Value::Map(BTreeMap::new());
        }
        let Value::Map(fields) = self else { return };
        for (key, change) in changes {
            match change {
                Value::Nil => drop(fields.remove(key)),
                change => fields.entry(key.clone()).or_insert(Value::Nil).apply(change),
            }
        }
    }

    /// Makes this patch one that does what it does, and then what the next does.
    pub(super) fn follow_with(&mut self, next: Value) {
        match (self, next) {
            (Value::Map(changes), Value::Map(more)) => {
                for (key, change) in more {
                    match changes.get_mut(&key) {
                        Some(known) => known.follow_with(change),
                        None => drop(changes.insert(key, change)),
                    }
                }
            }
            (this, next) => *this = next,
        }
    }
}

/// Merges fields that this version does not know. A field that is a map on both sides is taken for a
/// collection: its entries are united, and of two under one key the one with the higher `clock` counts, then
/// the greater. Of anything else the greater value counts. Later versions keep to this rule for fields
/// that they add, so that old and new replicas end with one hash.
pub(super) fn merge_extra(ours: &mut Extra, theirs: &Extra) {
    for (key, value) in theirs {
        match (ours.get_mut(key), value) {
            (None, _) => drop(ours.insert(key.clone(), value.clone())),
            (Some(Value::Map(known)), Value::Map(more)) => {
                for (key, entry) in more {
                    match known.get_mut(key) {
                        Some(held) if held.order() < entry.order() => *held = entry.clone(),
                        Some(_) => {}
                        None => drop(known.insert(key.clone(), entry.clone())),
                    }
                }
            }
            (Some(known), _) if *known < *value => *known = value.clone(),
            (Some(_), _) => {}
        }
    }
}

impl Serialize for Value {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Value::Nil => serializer.serialize_unit(),
            Value::Bool(value) => serializer.serialize_bool(*value),
            Value::Negative(value) => serializer.serialize_i64(*value),
            Value::Number(value) => serializer.serialize_u64(*value),
            Value::Text(value) => serializer.serialize_str(value),
            Value::List(values) => serializer.collect_seq(values),
            Value::Map(values) => serializer.collect_map(values),
        }
    }
}

impl<'de> Deserialize<'de> for Value {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Value, D::Error> {
        struct Any;
        impl<'de> Visitor<'de> for Any {
            type Value = Value;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a truth value, a whole number, text, a list or a map")
            }
            fn visit_unit<E>(self) -> Result<Value, E> {
                Ok(Value::Nil)
            }
            fn visit_none<E>(self) -> Result<Value, E> {
                Ok(Value::Nil)
            }
            fn visit_bool<E>(self, value: bool) -> Result<Value, E> {
                Ok(Value::Bool(value))
            }
            fn visit_u64<E>(self, value: u64) -> Result<Value, E> {
                Ok(Value::Number(value))
            }
            fn visit_i64<E>(self, value: i64) -> Result<Value, E> {
                Ok(u64::try_from(value).map_or(Value::Negative(value), Value::Number))
            }
            fn visit_str<E>(self, value: &str) -> Result<Value, E> {
                Ok(Value::Text(value.to_owned()))
            }
            fn visit_string<E>(self, value: String) -> Result<Value, E> {
                Ok(Value::Text(value))
            }
            fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Value, A::Error> {
                let mut list = Vec::new();
                while let Some(item) = items.next_element()? {
                    list.push(item);
                }
                Ok(Value::List(list))
            }
            fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<Value, A::Error> {
                let mut map = BTreeMap::new();
                while let Some((key, value)) = entries.next_entry::<String, Value>()? {
                    if map.insert(key, value).is_some() {
                        return Err(de::Error::custom("a key stands twice in one map"));
                    }
                }
                Ok(Value::Map(map))
            }
        }
        deserializer.deserialize_any(Any)
    }
}

/// The canonical bytes of anything that can be put in MessagePack.
pub(super) fn canonical<T: Serialize>(value: &T) -> Vec<u8> {
    // Plain values into memory and back: there is nothing that could fail.
    let bytes = rmp_serde::to_vec_named(value).unwrap_or_default();
    let sorted: Option<Value> = crate::msgpack::from_slice(&bytes).ok();
    sorted.and_then(|value| rmp_serde::to_vec_named(&value).ok()).unwrap_or_default()
}

/// The canonical bytes of a map whose values are canonical already.
pub(super) fn canonical_map<K: AsRef<str>>(entries: impl ExactSizeIterator<Item = (K, Vec<u8>)>) -> Vec<u8> {
    let mut bytes = Vec::new();
    match entries.len() {
        length @ 0..=15 => bytes.push(0x80 | length as u8),
        length @ 16..=0xffff => {
            bytes.push(0xde);
            bytes.extend_from_slice(&(length as u16).to_be_bytes());
        }
        length => {
            bytes.push(0xdf);
            bytes.extend_from_slice(&(length as u32).to_be_bytes());
        }
    }
    for (key, value) in entries {
        bytes.extend_from_slice(&rmp_serde::to_vec_named(key.as_ref()).unwrap_or_default());
        bytes.extend_from_slice(&value);
    }
    bytes
}

/// Deepest nesting of a document: its own is 3, the rest is room for later versions.
const MAX_DEPTH: usize = 8;

/// Most values in a document: ten for each of the nodes, removals and settings that it may hold.
const MAX_VALUES: usize = 500_000;

/// Looks over the bytes of a document before anything is reserved for them: their shape, their depth and how
/// many values they hold.
///
/// # Errors
/// What is wrong with them.
pub(super) fn check_bytes(bytes: &[u8]) -> Result<(), BadDocument> {
    let mut reader = Reader { rest: bytes, left: MAX_VALUES };
    reader.skip(0)?;
    if reader.rest.is_empty() { Ok(()) } else { Err(garbled("something follows its end")) }
}

fn garbled(what: &str) -> BadDocument {
    BadDocument::Garbled(what.to_owned())
}

struct Reader<'a> {
    rest: &'a [u8],
    left: usize,
}

impl Reader<'_> {
    fn skip(&mut self, depth: usize) -> Result<(), BadDocument> {
        self.left = self.left.checked_sub(1).ok_or_else(|| garbled("it holds too many values"))?;
        if depth > MAX_DEPTH {
            return Err(garbled("it is nested too deeply"));
        }
        let marker = self.number(1)?;
        let (values, bytes) = match marker {
            0x00..=0x7f | 0xe0..=0xff | 0xc0 | 0xc2 | 0xc3 => (0, 0),
            0xcc | 0xd0 => (0, 1),
            0xcd | 0xd1 => (0, 2),
            0xce | 0xd2 => (0, 4),
            0xcf | 0xd3 => (0, 8),
            0xa0..=0xbf => (0, marker & 0x1f),
            0xd9 => (0, self.number(1)?),
            0xda => (0, self.number(2)?),
            0xdb => (0, self.number(4)?),
            0x90..=0x9f => (marker & 0x0f, 0),
            0xdc => (self.number(2)?, 0),
            0xdd => (self.number(4)?, 0),
            0x80..=0x8f => (2 * (marker & 0x0f), 0),
            0xde => (2 * self.number(2)?, 0),
            0xdf => (2 * self.number(4)?, 0),
            _ => return Err(garbled("it holds a kind of value that documents do not have")),
        };
        self.take(bytes)?;
        for _ in 0..values {
            self.skip(depth + 1)?;
        }
        Ok(())
    }

    fn take(&mut self, count: u64) -> Result<&[u8], BadDocument> {
        let cut = usize::try_from(count).ok().and_then(|count| self.rest.split_at_checked(count));
        let (taken, rest) = cut.ok_or_else(|| garbled("it ends too early"))?;
        self.rest = rest;
        Ok(taken)
    }

    fn number(&mut self, length: u64) -> Result<u64, BadDocument> {
        Ok(self.take(length)?.iter().fold(0, |number, byte| number << 8 | u64::from(*byte)))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn value() -> impl Strategy<Value = Value> {
        let leaf = prop_oneof![
            Just(Value::Nil),
            any::<bool>().prop_map(Value::Bool),
            (i64::MIN..0).prop_map(Value::Negative),
            any::<u64>().prop_map(Value::Number),
            "[a-c]{0,3}".prop_map(Value::Text),
        ];
        leaf.prop_recursive(3, 20, 4, |inner| {
            prop_oneof![
                proptest::collection::vec(inner.clone(), 0..4).prop_map(Value::List),
                proptest::collection::btree_map("[a-c]|clock", inner, 0..4).prop_map(Value::Map),
            ]
        })
    }

    fn extra() -> impl Strategy<Value = Extra> {
        proptest::collection::btree_map("[x-z]", value(), 0..3)
    }

    fn merged(a: &Extra, b: &Extra) -> Extra {
        let mut all = a.clone();
        merge_extra(&mut all, b);
        all
    }

    proptest! {
        #[test]
        fn values_read_back_from_both_encodings_and_are_looked_over(value in value()) {
            let bytes = canonical(&value);
            prop_assert!(check_bytes(&bytes).is_ok());
            prop_assert_eq!(&crate::msgpack::from_slice::<Value>(&bytes).unwrap(), &value);
        }

        #[test]
        fn what_is_unknown_merges_in_any_order(a in extra(), b in extra(), c in extra()) {
            prop_assert_eq!(merged(&a, &b), merged(&b, &a));
            prop_assert_eq!(merged(&merged(&a, &b), &c), merged(&a, &merged(&b, &c)));
            prop_assert_eq!(merged(&a, &a), a.clone());
        }

        #[test]
        fn no_bytes_make_it_panic(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            let _ = check_bytes(&bytes);
        }
    }

    #[test]
    fn what_is_too_deep_too_many_or_cut_off_is_refused_before_it_is_read() {
        assert!(check_bytes(&[0x91; 7]).is_err(), "cut off");
        let mut deep = vec![0x91; 40];
        deep.push(0xc0);
        assert!(check_bytes(&deep).is_err());
        // A list that says that it has four billion entries.
        assert!(check_bytes(&[0xdd, 0xff, 0xff, 0xff, 0xff]).is_err());
        let many = [[0xdd, 0x00, 0x10, 0x00, 0x00].as_slice(), &[0xc0; 1 << 20]].concat();
        assert!(check_bytes(&many).is_err());
        assert!(check_bytes(&[0xcb, 0, 0, 0, 0, 0, 0, 0, 0]).is_err(), "a fraction");
        assert!(check_bytes(&[0xc0, 0xc0]).is_err(), "something follows");
    }
}
