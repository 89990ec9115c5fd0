//! Enums of which a later version may have more: each is a word on the wire and in JSON, and a word that is
//! not known is kept and shown as it came.

use std::fmt;

/// Longest word that is kept whole, in bytes of ASCII.
const MAX: usize = 23;

/// A word that this version does not know.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct OtherWord {
    bytes: [u8; MAX],
    length: u8,
}

impl OtherWord {
    /// What of a text can be shown: printable ASCII, so that a terminal prints it and nothing else.
    pub fn new(text: &str) -> OtherWord {
        let mut bytes = [0; MAX];
        let shown = text.bytes().filter(u8::is_ascii_graphic);
        let mut length = 0;
        for (place, byte) in bytes.iter_mut().zip(shown) {
            *place = byte;
            length += 1;
        }
        OtherWord { bytes, length }
    }

    /// It.
    pub fn as_str(&self) -> &str {
        let bytes = self.bytes.get(..usize::from(self.length)).unwrap_or_default();
        std::str::from_utf8(bytes).ok().filter(|word| !word.is_empty()).unwrap_or("unknown")
    }
}

impl fmt::Debug for OtherWord {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self.as_str(), f)
    }
}

/// Gives an enum with a variant `Other(OtherWord)` its words, and serde by them.
macro_rules! open_words {
    ($type:ident: $($variant:ident = $word:literal),+ $(,)?) => {
        impl $type {
            /// Every state that this version knows.
            pub const KNOWN: &[$type] = &[$($type::$variant),+];

            /// The word that is used everywhere; of a state of a later version the one that it came with.
            pub fn word(&self) -> &str {
                match self {
                    $($type::$variant => $word,)+
                    $type::Other(word) => word.as_str(),
                }
            }

            /// The state of a word.
            pub fn from_word(word: &str) -> $type {
                match word {
                    $($word => $type::$variant,)+
                    other => $type::Other($crate::word::OtherWord::new(other)),
                }
            }
        }

        impl serde::Serialize for $type {
            fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.serialize_str(self.word())
            }
        }

        impl<'de> serde::Deserialize<'de> for $type {
            fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<$type, D::Error> {
                Ok($type::from_word(&String::deserialize(deserializer)?))
            }
        }
    };
}

pub(crate) use open_words;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_word_is_kept_as_far_as_it_can_be_shown() {
        assert_eq!(OtherWord::new("thawing").as_str(), "thawing");
        assert_eq!(OtherWord::new("\u{1b}[2J bö").as_str(), "[2Jb");
        assert_eq!(OtherWord::new("").as_str(), "unknown");
        assert_eq!(OtherWord::new(&"x".repeat(200)).as_str().len(), MAX);
    }
}
