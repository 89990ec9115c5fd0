//! Enums that later versions may extend: each is a word on the wire and in JSON, and an unknown word is kept
//! and shown as received.

use std::fmt;

use serde::de::value::{Error as WordError, StrDeserializer};
use serde::de::{DeserializeOwned, IntoDeserializer};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// Longest word that is kept, in bytes of ASCII.
const MAX: usize = 23;

/// A word that this version does not know.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct UnknownWord {
    bytes: [u8; MAX],
    length: u8,
}

impl UnknownWord {
    /// The printable ASCII part of a text, so that a terminal only prints it.
    pub fn new(text: &str) -> UnknownWord {
        let mut bytes = [0; MAX];
        let shown = text.bytes().filter(u8::is_ascii_graphic);
        let mut length = 0;
        for (place, byte) in bytes.iter_mut().zip(shown) {
            *place = byte;
            length += 1;
        }
        UnknownWord { bytes, length }
    }

    /// The word.
    pub fn as_str(&self) -> &str {
        let bytes = self.bytes.get(..usize::from(self.length)).unwrap_or_default();
        std::str::from_utf8(bytes).ok().filter(|word| !word.is_empty()).unwrap_or("unknown")
    }
}

impl fmt::Debug for UnknownWord {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self.as_str(), f)
    }
}

/// A known value, or the word of a later version: for messages that only show what is decided elsewhere.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OpenEnum<T> {
    /// A value that this version knows.
    Known(T),
    /// A value of a later version.
    Other(UnknownWord),
}

impl<T: Default> Default for OpenEnum<T> {
    fn default() -> OpenEnum<T> {
        OpenEnum::Known(T::default())
    }
}

impl<T> From<T> for OpenEnum<T> {
    fn from(value: T) -> OpenEnum<T> {
        OpenEnum::Known(value)
    }
}

impl<T: PartialEq> PartialEq<T> for OpenEnum<T> {
    fn eq(&self, other: &T) -> bool {
        matches!(self, OpenEnum::Known(value) if value == other)
    }
}

impl<T: fmt::Display> fmt::Display for OpenEnum<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            OpenEnum::Known(value) => value.fmt(f),
            OpenEnum::Other(word) => f.pad(word.as_str()),
        }
    }
}

impl<T: Serialize> Serialize for OpenEnum<T> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            OpenEnum::Known(value) => value.serialize(serializer),
            OpenEnum::Other(word) => serializer.serialize_str(word.as_str()),
        }
    }
}

impl<'de, T: DeserializeOwned> Deserialize<'de> for OpenEnum<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<OpenEnum<T>, D::Error> {
        let word = String::deserialize(deserializer)?;
        let known: StrDeserializer<'_, WordError> = word.as_str().into_deserializer();
        Ok(T::deserialize(known).map_or_else(|_| OpenEnum::Other(UnknownWord::new(&word)), OpenEnum::Known))
    }
}

/// Reads a word that decides how something is shown; an unknown one becomes `unknown`, so that it does not
/// invalidate everything around it.
pub(crate) fn or<'de, T, D>(deserializer: D, unknown: T) -> Result<T, D::Error>
where
    T: DeserializeOwned,
    D: Deserializer<'de>,
{
    Ok(match OpenEnum::deserialize(deserializer)? {
        OpenEnum::Known(value) => value,
        OpenEnum::Other(_) => unknown,
    })
}

/// Gives an enum with a variant `Other(UnknownWord)` its words, and implements serde by them.
macro_rules! open_enum_names {
    ($type:ident: $($variant:ident = $word:literal),+ $(,)?) => {
        impl $type {
            /// Every value that this version knows.
            pub const KNOWN: &[$type] = &[$($type::$variant),+];

            /// The word used everywhere; for a value of a later version the received one.
            pub fn as_str(&self) -> &str {
                match self {
                    $($type::$variant => $word,)+
                    $type::Other(word) => word.as_str(),
                }
            }

            /// The value of a word.
            pub fn from_word(word: &str) -> $type {
                match word {
                    $($word => $type::$variant,)+
                    other => $type::Other($crate::open_enum::UnknownWord::new(other)),
                }
            }
        }

        impl serde::Serialize for $type {
            fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.serialize_str($crate::next_wire::say(self.as_str()))
            }
        }

        impl<'de> serde::Deserialize<'de> for $type {
            fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<$type, D::Error> {
                Ok($type::from_word($crate::next_wire::hear(&String::deserialize(deserializer)?)))
            }
        }
    };
}

pub(crate) use open_enum_names;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_known_word_is_its_value_and_another_is_kept() {
        #[derive(Debug, PartialEq, Serialize, Deserialize)]
        #[serde(rename_all = "kebab-case")]
        enum Role {
            Master,
            Worker,
        }
        impl fmt::Display for Role {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.pad(if *self == Role::Master { "master" } else { "worker" })
            }
        }
        let open: Vec<OpenEnum<Role>> = serde_json::from_str(r#"["master","witness"]"#).unwrap();
        assert!(open[0] == Role::Master && open[1] != Role::Worker);
        assert_eq!(format!("{} {:>8}", open[0], open[1]), "master  witness");
        assert_eq!(serde_json::to_string(&open).unwrap(), r#"["master","witness"]"#);
        assert!(serde_json::from_str::<OpenEnum<Role>>("7").is_err());
    }

    #[test]
    fn the_printable_part_of_a_word_is_kept() {
        assert_eq!(UnknownWord::new("thawing").as_str(), "thawing");
        assert_eq!(UnknownWord::new("\u{1b}[2J bö").as_str(), "[2Jb");
        assert_eq!(UnknownWord::new("").as_str(), "unknown");
        assert_eq!(UnknownWord::new(&"x".repeat(200)).as_str().len(), MAX);
    }
}
