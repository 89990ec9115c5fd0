//! Bytes as text: hexadecimal, base32 and base64 of RFC 4648. One loop for all, since a table for each of many
//! alphabets that are not used here takes fifty kilobytes of the binary.

/// An alphabet, and how many bits each of its characters carries.
#[derive(Debug, Clone, Copy)]
pub struct Radix {
    bits: u32,
    alphabet: &'static [u8],
    /// The value of each byte; 255: it is not in the alphabet.
    values: &'static [u8; 256],
    /// `=` fills the last group of four.
    padded: bool,
}

/// A text that no bytes are written as.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("invalid encoding")]
pub struct NotEncoded;

const HEX_DIGITS: &[u8] = b"0123456789abcdef";
const BASE32_DIGITS: &[u8] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZ234567";
const BASE64_DIGITS: &[u8] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";

static HEX_VALUES: [u8; 256] = values(HEX_DIGITS);
static BASE32_VALUES: [u8; 256] = values(BASE32_DIGITS);
static BASE64_VALUES: [u8; 256] = values(BASE64_DIGITS);

/// Hexadecimal in lower case.
pub const HEXLOWER: Radix = Radix { bits: 4, alphabet: HEX_DIGITS, values: &HEX_VALUES, padded: false };
/// Base32 in upper case, without padding.
pub const BASE32_NOPAD: Radix =
    Radix { bits: 5, alphabet: BASE32_DIGITS, values: &BASE32_VALUES, padded: false };
/// Base64 without padding.
pub const BASE64_NOPAD: Radix =
    Radix { bits: 6, alphabet: BASE64_DIGITS, values: &BASE64_VALUES, padded: false };
/// Base64 with padding.
pub const BASE64: Radix = Radix { padded: true, ..BASE64_NOPAD };

const fn values(alphabet: &[u8]) -> [u8; 256] {
    let (mut values, mut at) = ([255; 256], 0);
    while at < alphabet.len() {
        values[alphabet[at] as usize] = at as u8;
        at += 1;
    }
    values
}

impl Radix {
    /// The text of these bytes.
    pub fn encode(&self, bytes: &[u8]) -> String {
        let mut text = String::with_capacity(bytes.len() * 8 / self.bits as usize + 4);
        let (mut held, mut count) = (0_u32, 0);
        let digit = |value: u32| char::from(self.alphabet[value as usize % self.alphabet.len()]);
        for byte in bytes {
            held = held << 8 | u32::from(*byte);
            count += 8;
            while count >= self.bits {
                count -= self.bits;
                text.push(digit(held >> count));
            }
        }
        if count > 0 {
            text.push(digit(held << (self.bits - count)));
        }
        while self.padded && !text.len().is_multiple_of(4) {
            text.push('=');
        }
        text
    }

    /// The bytes of this text. Each list of bytes has one text alone.
    ///
    /// # Errors
    /// It is none.
    pub fn decode(&self, text: &[u8]) -> Result<Vec<u8>, NotEncoded> {
        let mut body = text;
        while let Some((b'=', rest)) = body.split_last().filter(|_| self.padded) {
            body = rest;
        }
        if self.padded && body.len().next_multiple_of(4) != text.len() {
            return Err(NotEncoded);
        }
        let mut bytes = Vec::with_capacity(body.len() * self.bits as usize / 8);
        let (mut held, mut count) = (0_u32, 0);
        for digit in body {
            let value = self.values[usize::from(*digit)];
            if value == 255 {
                return Err(NotEncoded);
            }
            held = held << self.bits | u32::from(value);
            count += self.bits;
            if count >= 8 {
                count -= 8;
                bytes.push((held >> count) as u8);
                held &= (1 << count) - 1;
            }
        }
        // A character too many, or bits that say nothing.
        if count >= self.bits || held != 0 { Err(NotEncoded) } else { Ok(bytes) }
    }
}

#[cfg(test)]
mod tests {
    use data_encoding::Encoding;
    use proptest::prelude::*;

    use super::*;

    /// Each with another implementation of the same.
    fn all() -> [(Radix, Encoding); 4] {
        [
            (HEXLOWER, data_encoding::HEXLOWER),
            (BASE32_NOPAD, data_encoding::BASE32_NOPAD),
            (BASE64_NOPAD, data_encoding::BASE64_NOPAD),
            (BASE64, data_encoding::BASE64),
        ]
    }

    #[test]
    fn examples_of_the_rfc() {
        for (bytes, hex, base32, base64) in [
            ("", "", "", ""),
            ("f", "66", "MY", "Zg=="),
            ("foob", "666f6f62", "MZXW6YQ", "Zm9vYg=="),
            ("fooba", "666f6f6261", "MZXW6YTB", "Zm9vYmE="),
            ("foobar", "666f6f626172", "MZXW6YTBOI", "Zm9vYmFy"),
        ] {
            let texts = [HEXLOWER, BASE32_NOPAD, BASE64].map(|radix| radix.encode(bytes.as_bytes()));
            assert_eq!(texts, [hex, base32, base64]);
        }
    }

    proptest! {
        #[test]
        fn bytes_are_written_and_read_as_elsewhere(bytes in proptest::collection::vec(any::<u8>(), 0..40)) {
            for (radix, other) in all() {
                let text = radix.encode(&bytes);
                prop_assert_eq!(&text, &other.encode(&bytes));
                prop_assert_eq!(radix.decode(text.as_bytes()), Ok(bytes.clone()));
            }
        }

        #[test]
        fn what_is_refused_elsewhere_is_refused(text in "[A-Za-f0-9+/=]{0,12}|[0-9a-f]{0,6}|[A-Z2-7]{0,10}|.{0,3}") {
            for (radix, other) in all() {
                prop_assert_eq!(radix.decode(text.as_bytes()).ok(), other.decode(text.as_bytes()).ok(), "{}", text);
            }
        }
    }
}
