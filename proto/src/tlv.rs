//! Fields that grow: `tag u8 | length | value`, one after the other, the length and all numbers as LEB128.
//!
//! A reader skips unknown tags and ignores what follows the known part of a value, so that a later version
//! can add fields and make fields longer.

/// Appends fields to a list of bytes.
#[derive(Debug, Default)]
pub(crate) struct TlvWriter(Vec<u8>);

impl TlvWriter {
    /// The written bytes.
    pub(crate) fn finish(self) -> Vec<u8> {
        self.0
    }

    /// A field of bytes.
    pub(crate) fn bytes(&mut self, tag: u8, value: &[u8]) {
        self.0.push(tag);
        self.raw(value.len() as u64);
        self.0.extend_from_slice(value);
    }

    /// A field of one number.
    pub(crate) fn number(&mut self, tag: u8, value: u64) {
        let mut inner = TlvWriter::default();
        inner.raw(value);
        self.bytes(tag, &inner.0);
    }

    /// A field of numbers, one after the other.
    pub(crate) fn numbers(&mut self, tag: u8, values: &[u64]) {
        let mut inner = TlvWriter::default();
        values.iter().for_each(|value| inner.raw(*value));
        self.bytes(tag, &inner.0);
    }

    /// A field of nested fields.
    pub(crate) fn fields(&mut self, tag: u8, write: impl FnOnce(&mut TlvWriter)) {
        let mut inner = TlvWriter::default();
        write(&mut inner);
        self.bytes(tag, &inner.0);
    }

    fn raw(&mut self, mut value: u64) {
        while value >= 0x80 {
            self.0.push((value & 0x7f) as u8 | 0x80);
            value >>= 7;
        }
        self.0.push(value as u8);
    }
}

/// The fields of a list of bytes, as tag and value. Ends early if the bytes end within a field.
#[derive(Debug, Clone)]
pub(crate) struct TlvReader<'a>(&'a [u8]);

impl<'a> TlvReader<'a> {
    /// A reader of these bytes.
    pub(crate) fn new(bytes: &'a [u8]) -> TlvReader<'a> {
        TlvReader(bytes)
    }
}

impl<'a> Iterator for TlvReader<'a> {
    type Item = (u8, &'a [u8]);

    fn next(&mut self) -> Option<(u8, &'a [u8])> {
        let (tag, rest) = self.0.split_first()?;
        let field = raw(rest).and_then(|(length, rest)| rest.split_at_checked(usize::try_from(length).ok()?));
        let Some((value, rest)) = field else {
            self.0 = &[];
            return None;
        };
        self.0 = rest;
        Some((*tag, value))
    }
}

/// The number at the start of a value.
pub(crate) fn number(value: &[u8]) -> Option<u64> {
    raw(value).map(|(number, _)| number)
}

/// The numbers of a value, up to one that is none.
pub(crate) fn numbers(mut value: &[u8]) -> impl Iterator<Item = u64> {
    std::iter::from_fn(move || {
        let (number, rest) = raw(value)?;
        value = rest;
        Some(number)
    })
}

fn raw(bytes: &[u8]) -> Option<(u64, &[u8])> {
    let mut number = 0u64;
    for (at, byte) in bytes.iter().enumerate().take(10) {
        // Ten bytes hold 70 bits: a number beyond 64 is invalid.
        let part = u64::from(byte & 0x7f);
        let shifted = part.checked_shl(7 * at as u32).filter(|shifted| shifted >> (7 * at) == part)?;
        number |= shifted;
        if byte & 0x80 == 0 {
            return Some((number, bytes.get(at + 1..).unwrap_or_default()));
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_reader_ends_at_a_truncated_field() {
        let mut writer = TlvWriter::default();
        writer.bytes(1, b"abc");
        writer.number(2, 300);
        let bytes = writer.finish();
        assert_eq!(bytes, [1, 3, b'a', b'b', b'c', 2, 2, 0xac, 2]);
        for cut in 0..bytes.len() {
            assert_eq!(TlvReader::new(&bytes[..cut]).count(), usize::from(cut >= 5), "{cut}");
        }
    }

    proptest! {
        #[test]
        fn fields_read_back_as_written(fields in proptest::collection::vec((any::<u8>(), any::<u64>()), 0..8)) {
            let mut writer = TlvWriter::default();
            fields.iter().for_each(|(tag, value)| writer.number(*tag, *value));
            let bytes = writer.finish();
            let reader = TlvReader::new(&bytes);
            let read: Vec<(u8, u64)> = reader.map(|(tag, value)| (tag, number(value).unwrap())).collect();
            prop_assert_eq!(read, fields);
        }

        #[test]
        fn no_bytes_make_it_panic(bytes in proptest::collection::vec(any::<u8>(), 0..64)) {
            TlvReader::new(&bytes).for_each(|(_, value)| { number(value); });
        }
    }
}
