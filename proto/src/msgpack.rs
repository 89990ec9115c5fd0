//! MessagePack as serde reads it here: what rmp-serde writes, and no more.
//!
//! rmp-serde reads whatever comes and lets the target refuse it, so that each of our types has code for every kind of
//! MessagePack value: 300 kB in the binary. Here the target says what has to come; a value of another kind is an error.
//! Numbers fit as long as their value does, whatever their width. Nothing allocates for a length that a message claims
//! and does not have.

use std::fmt;

use serde::de::{
    DeserializeOwned, DeserializeSeed, Deserializer, EnumAccess, Error as _, MapAccess, SeqAccess,
    VariantAccess, Visitor,
};
use serde::forward_to_deserialize_any;

/// Deepest nesting: ours is a quarter of that, and a stack holds some thousands.
const DEPTH: usize = 64;

/// What is wrong with a message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DecodeError(String);

impl fmt::Display for DecodeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for DecodeError {}

impl serde::de::Error for DecodeError {
    fn custom<T: fmt::Display>(message: T) -> DecodeError {
        DecodeError(message.to_string())
    }
}

/// Reads a value. What follows it is for later versions.
///
/// # Errors
/// The bytes end too early, or hold something else.
pub fn from_slice<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, DecodeError> {
    T::deserialize(&mut Reader { rest: bytes, depth: 0 })
}

/// The start of a value.
#[derive(Debug, Clone, Copy)]
enum Head<'de> {
    Nil,
    Bool(bool),
    Unsigned(u64),
    Signed(i64),
    Float(f64),
    Text(&'de [u8]),
    Bytes(&'de [u8]),
    Array(usize),
    Map(usize),
}

impl Head<'_> {
    fn kind(self) -> &'static str {
        match self {
            Head::Nil => "nothing",
            Head::Bool(_) => "a truth value",
            Head::Unsigned(_) | Head::Signed(_) | Head::Float(_) => "a number",
            Head::Text(_) => "text",
            Head::Bytes(_) => "bytes",
            Head::Array(_) => "a list",
            Head::Map(_) => "a map",
        }
    }
}

struct Reader<'de> {
    rest: &'de [u8],
    depth: usize,
}

impl<'de> Reader<'de> {
    #[inline(never)]
    fn take(&mut self, length: usize) -> Result<&'de [u8], DecodeError> {
        let split = self.rest.split_at_checked(length);
        let (taken, rest) = split.ok_or_else(|| DecodeError("it ends too early".to_owned()))?;
        self.rest = rest;
        Ok(taken)
    }

    /// A number of so many bytes, the highest first.
    fn number(&mut self, bytes: usize) -> Result<u64, DecodeError> {
        Ok(self.take(bytes)?.iter().fold(0, |number, byte| number << 8 | u64::from(*byte)))
    }

    fn length(&mut self, bytes: usize) -> Result<usize, DecodeError> {
        Ok(usize::try_from(self.number(bytes)?).unwrap_or(usize::MAX))
    }

    #[inline(never)]
    fn head(&mut self) -> Result<Head<'de>, DecodeError> {
        let marker = self.number(1)? as u8;
        let low = usize::from(marker & 0x0f);
        // Of 1, 2, 4 and 8 bytes.
        let wide = 1 << (marker & 3);
        Ok(match marker {
            0x00..=0x7f => Head::Unsigned(marker.into()),
            0x80..=0x8f => Head::Map(low),
            0x90..=0x9f => Head::Array(low),
            0xa0..=0xbf => Head::Text(self.take(usize::from(marker & 0x1f))?),
            0xc0 => Head::Nil,
            0xc2 | 0xc3 => Head::Bool(marker == 0xc3),
            0xc4..=0xc6 => {
                let length = self.length(wide)?;
                Head::Bytes(self.take(length)?)
            }
            0xca => Head::Float(f32::from_bits(self.number(4)? as u32).into()),
            0xcb => Head::Float(f64::from_bits(self.number(8)?)),
            0xcc..=0xcf => Head::Unsigned(self.number(wide)?),
            0xd0..=0xd3 => {
                let unused = 64 - 8 * wide as u32;
                Head::Signed((self.number(wide)? << unused).cast_signed() >> unused)
            }
            0xd9..=0xdb => {
                let length = self.length(1 << (marker - 0xd9))?;
                Head::Text(self.take(length)?)
            }
            0xdc | 0xdd => Head::Array(self.length(2 << (marker - 0xdc))?),
            0xde | 0xdf => Head::Map(self.length(2 << (marker - 0xde))?),
            0xe0..=0xff => Head::Signed(marker.cast_signed().into()),
            0xc1 | 0xc7..=0xc9 | 0xd4..=0xd8 => {
                return Err(DecodeError(format!("a value of kind {marker:#x}")));
            }
        })
    }

    #[inline(never)]
    fn unexpected<T>(head: Head<'_>, expected: &str) -> Result<T, DecodeError> {
        Err(DecodeError(format!("{} where {expected} should be", head.kind())))
    }

    #[inline(never)]
    fn text(&mut self) -> Result<&'de str, DecodeError> {
        match self.head()? {
            Head::Text(text) => utf8(text),
            head => Reader::unexpected(head, "text"),
        }
    }

    #[inline(never)]
    fn array(&mut self) -> Result<usize, DecodeError> {
        match self.head()? {
            Head::Array(length) => Ok(length),
            head => Reader::unexpected(head, "a list"),
        }
    }

    #[inline(never)]
    fn map(&mut self) -> Result<usize, DecodeError> {
        match self.head()? {
            Head::Map(length) => Ok(length),
            head => Reader::unexpected(head, "a map"),
        }
    }

    #[inline(never)]
    fn enter(&mut self) -> Result<(), DecodeError> {
        self.depth += 1;
        if self.depth > DEPTH { Err(DecodeError("it is nested too deeply".to_owned())) } else { Ok(()) }
    }

    #[inline(never)]
    fn leave(&mut self, left: usize) -> Result<(), DecodeError> {
        self.depth -= 1;
        if left > 0 {
            return Err(DecodeError(format!("{left} values too many")));
        }
        Ok(())
    }

    #[inline(never)]
    fn skip(&mut self) -> Result<(), DecodeError> {
        let mut left: usize = 1;
        while left > 0 {
            left -= 1;
            let more = match self.head()? {
                Head::Array(length) => length,
                Head::Map(length) => length.saturating_mul(2),
                _ => 0,
            };
            left = left.saturating_add(more);
        }
        Ok(())
    }

    fn visit_array<V: Visitor<'de>>(&mut self, length: usize, visitor: V) -> Result<V::Value, DecodeError> {
        self.enter()?;
        let mut items = Items { reader: self, left: length };
        let value = visitor.visit_seq(&mut items)?;
        let left = items.left;
        self.leave(left)?;
        Ok(value)
    }

    fn visit_entries<V: Visitor<'de>>(&mut self, length: usize, visitor: V) -> Result<V::Value, DecodeError> {
        self.enter()?;
        let mut items = Items { reader: self, left: length };
        let value = visitor.visit_map(&mut items)?;
        let left = items.left;
        self.leave(left)?;
        Ok(value)
    }
}

fn utf8(text: &[u8]) -> Result<&str, DecodeError> {
    std::str::from_utf8(text).map_err(DecodeError::custom)
}

/// Visits a number with the visitor of a number.
macro_rules! numbers {
    ($($method:ident)*) => {$(
        fn $method<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, DecodeError> {
            match self.head()? {
                Head::Unsigned(number) => visitor.visit_u64(number),
                Head::Signed(number) => visitor.visit_i64(number),
                Head::Float(number) => visitor.visit_f64(number),
                head => Reader::unexpected(head, "a number"),
            }
        }
    )*};
}

/// Visits text with the visitor of text.
macro_rules! texts {
    ($($method:ident)*) => {$(
        fn $method<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, DecodeError> {
            visitor.visit_borrowed_str(self.text()?)
        }
    )*};
}

impl<'de> Deserializer<'de> for &mut Reader<'de> {
    type Error = DecodeError;

    fn is_human_readable(&self) -> bool {
        false
    }

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, DecodeError> {
        match self.head()? {
            Head::Nil => visitor.visit_unit(),
            Head::Bool(value) => visitor.visit_bool(value),
            Head::Unsigned(number) => visitor.visit_u64(number),
            Head::Signed(number) => visitor.visit_i64(number),
            Head::Float(number) => visitor.visit_f64(number),
            Head::Text(text) => visitor.visit_borrowed_str(utf8(text)?),
            Head::Bytes(bytes) => visitor.visit_borrowed_bytes(bytes),
            Head::Array(length) => self.visit_array(length, visitor),
            Head::Map(length) => self.visit_entries(length, visitor),
        }
    }

    numbers! { deserialize_u8 deserialize_u16 deserialize_u32 deserialize_u64 deserialize_i8 deserialize_i16
    deserialize_i32 deserialize_i64 deserialize_f32 deserialize_f64 }

    texts! { deserialize_char deserialize_str deserialize_string deserialize_identifier }

    forward_to_deserialize_any! { i128 u128 bytes byte_buf }

    fn deserialize_bool<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, DecodeError> {
        match self.head()? {
            Head::Bool(value) => visitor.visit_bool(value),
            head => Reader::unexpected(head, "a truth value"),
        }
    }

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, DecodeError> {
        match self.rest.strip_prefix(&[0xc0]) {
            Some(rest) => {
                self.rest = rest;
                visitor.visit_none()
            }
            None => visitor.visit_some(self),
        }
    }

    fn deserialize_unit<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, DecodeError> {
        match self.head()? {
            Head::Nil | Head::Array(0) => visitor.visit_unit(),
            head => Reader::unexpected(head, "nothing"),
        }
    }

    fn deserialize_unit_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        visitor: V,
    ) -> Result<V::Value, DecodeError> {
        self.deserialize_unit(visitor)
    }

    fn deserialize_newtype_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        visitor: V,
    ) -> Result<V::Value, DecodeError> {
        visitor.visit_newtype_struct(self)
    }

    fn deserialize_seq<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, DecodeError> {
        let length = self.array()?;
        self.visit_array(length, visitor)
    }

    fn deserialize_tuple<V: Visitor<'de>>(self, _: usize, visitor: V) -> Result<V::Value, DecodeError> {
        self.deserialize_seq(visitor)
    }

    fn deserialize_tuple_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        _: usize,
        visitor: V,
    ) -> Result<V::Value, DecodeError> {
        self.deserialize_seq(visitor)
    }

    fn deserialize_map<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, DecodeError> {
        let length = self.map()?;
        self.visit_entries(length, visitor)
    }

    fn deserialize_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        _: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, DecodeError> {
        self.deserialize_map(visitor)
    }

    fn deserialize_enum<V: Visitor<'de>>(
        self,
        _: &'static str,
        _: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, DecodeError> {
        // By its name alone, or a map from its name to what it holds.
        let holds = self.rest.first() == Some(&0x81);
        if holds {
            self.map()?;
            self.enter()?;
        }
        let value = visitor.visit_enum(Variant { reader: self, holds })?;
        if holds {
            self.leave(0)?;
        }
        Ok(value)
    }

    fn deserialize_ignored_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, DecodeError> {
        self.skip()?;
        visitor.visit_unit()
    }
}

/// The items of a list, or the entries of a map.
struct Items<'r, 'de> {
    reader: &'r mut Reader<'de>,
    left: usize,
}

impl Items<'_, '_> {
    /// Each takes a byte at least.
    fn hint(&self) -> Option<usize> {
        Some(self.left.min(self.reader.rest.len()))
    }

    fn next(&mut self) -> bool {
        let more = self.left > 0;
        self.left = self.left.saturating_sub(1);
        more
    }
}

impl<'de> SeqAccess<'de> for Items<'_, 'de> {
    type Error = DecodeError;

    fn next_element_seed<T: DeserializeSeed<'de>>(
        &mut self,
        seed: T,
    ) -> Result<Option<T::Value>, DecodeError> {
        if self.next() { seed.deserialize(&mut *self.reader).map(Some) } else { Ok(None) }
    }

    fn size_hint(&self) -> Option<usize> {
        self.hint()
    }
}

impl<'de> MapAccess<'de> for Items<'_, 'de> {
    type Error = DecodeError;

    fn next_key_seed<K: DeserializeSeed<'de>>(&mut self, seed: K) -> Result<Option<K::Value>, DecodeError> {
        if self.next() { seed.deserialize(&mut *self.reader).map(Some) } else { Ok(None) }
    }

    fn next_value_seed<V: DeserializeSeed<'de>>(&mut self, seed: V) -> Result<V::Value, DecodeError> {
        seed.deserialize(&mut *self.reader)
    }

    fn size_hint(&self) -> Option<usize> {
        self.hint()
    }
}

struct Variant<'r, 'de> {
    reader: &'r mut Reader<'de>,
    holds: bool,
}

impl<'r, 'de> Variant<'r, 'de> {
    fn held(self) -> Result<&'r mut Reader<'de>, DecodeError> {
        if self.holds {
            Ok(self.reader)
        } else {
            Err(DecodeError("a name without what belongs to it".to_owned()))
        }
    }
}

impl<'de> EnumAccess<'de> for Variant<'_, 'de> {
    type Error = DecodeError;
    type Variant = Self;

    fn variant_seed<V: DeserializeSeed<'de>>(self, seed: V) -> Result<(V::Value, Self), DecodeError> {
        Ok((seed.deserialize(&mut *self.reader)?, self))
    }
}

impl<'de> VariantAccess<'de> for Variant<'_, 'de> {
    type Error = DecodeError;

    fn unit_variant(self) -> Result<(), DecodeError> {
        // What a later version has added to it is passed over.
        if self.holds { self.reader.skip() } else { Ok(()) }
    }

    fn newtype_variant_seed<T: DeserializeSeed<'de>>(self, seed: T) -> Result<T::Value, DecodeError> {
        seed.deserialize(self.held()?)
    }

    fn tuple_variant<V: Visitor<'de>>(self, _: usize, visitor: V) -> Result<V::Value, DecodeError> {
        self.held()?.deserialize_seq(visitor)
    }

    fn struct_variant<V: Visitor<'de>>(
        self,
        _: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, DecodeError> {
        self.held()?.deserialize_map(visitor)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;
    use serde::{Deserialize, Serialize};

    use super::*;

    #[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
    enum Shape {
        Bare,
        One(u64),
        Two(i64, String),
        Named { at: Option<f64>, bytes: [u8; 3] },
    }

    #[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
    struct Whole {
        text: String,
        yes: bool,
        small: i8,
        char: char,
        unit: (),
        map: BTreeMap<String, Vec<Shape>>,
        nested: Option<Box<Whole>>,
    }

    fn whole() -> impl Strategy<Value = Whole> {
        let shape = prop_oneof![
            Just(Shape::Bare),
            any::<u64>().prop_map(Shape::One),
            (any::<i64>(), ".{0,300}").prop_map(|(number, text)| Shape::Two(number, text)),
            (proptest::option::of(-1e9..1e9), any::<[u8; 3]>())
                .prop_map(|(at, bytes)| Shape::Named { at, bytes }),
        ];
        let map =
            proptest::collection::btree_map("[a-z]{1,4}", proptest::collection::vec(shape, 0..20), 0..20);
        let leaf = (".{0,40}", any::<bool>(), any::<i8>(), any::<char>(), map).prop_map(
            |(text, yes, small, char, map)| Whole { text, yes, small, char, unit: (), map, nested: None },
        );
        (leaf.clone(), leaf).prop_map(|(inner, outer)| Whole { nested: Some(Box::new(inner)), ..outer })
    }

    proptest! {
        #[test]
        fn what_rmp_serde_writes_is_read(whole in whole()) {
            let bytes = rmp_serde::to_vec_named(&whole).unwrap();
            prop_assert_eq!(&from_slice::<Whole>(&bytes).unwrap(), &whole);
            prop_assert!(from_slice::<Whole>(&bytes[..bytes.len() - 1]).is_err());
        }

        #[test]
        fn no_bytes_make_it_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = from_slice::<Whole>(&bytes);
            let _ = from_slice::<Shape>(&bytes);
            let _ = from_slice::<serde::de::IgnoredAny>(&bytes);
        }
    }

    #[test]
    fn unknown_fields_are_passed_over_and_a_wrong_value_is_named() {
        #[derive(Serialize)]
        struct Later {
            new: Vec<BTreeMap<String, Shape>>,
            known: u8,
        }
        #[derive(Debug, Deserialize)]
        struct Earlier {
            known: u8,
        }
        let shape = Shape::Named { at: Some(1.5), bytes: [1, 2, 255] };
        let later = Later { new: vec![[("x".to_owned(), shape)].into()], known: 7 };
        assert_eq!(from_slice::<Earlier>(&rmp_serde::to_vec_named(&later).unwrap()).unwrap().known, 7);
        let error = |bytes: &[u8]| from_slice::<Earlier>(bytes).unwrap_err().to_string();
        assert_eq!(
            error(&[0x81, 0xa5, b'k', b'n', b'o', b'w', b'n', 0xc3]),
            "a truth value where a number should be"
        );
        assert_eq!(error(&[0x81, 0xa5, b'k', b'n']), "it ends too early");
        assert_eq!(error(&[0x90]), "a list where a map should be");
        assert_eq!(error(&[0x80]), "missing field `known`");
    }

    #[test]
    fn a_claimed_length_allocates_nothing_and_deep_nesting_is_refused() {
        assert!(from_slice::<Vec<u8>>(&[0xdd, 0xff, 0xff, 0xff, 0xff]).is_err());
        #[derive(Debug, Deserialize)]
        struct Deep(#[allow(dead_code)] Vec<Deep>);
        let error = from_slice::<Deep>(&[0x91; 100_000]).unwrap_err();
        assert_eq!(error.to_string(), "it is nested too deeply");
        assert!(from_slice::<serde::de::IgnoredAny>(&[0x91; 100_000]).is_err(), "it ends too early");
    }
}
