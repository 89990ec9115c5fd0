//! Detects whether the first bytes of a client are a TLS ClientHello and nothing else.
//!
//! Nothing else may be sent to another backend: a ClientHello requests nothing. It changes nothing at a
//! server that reads it, and whatever follows is bound to the one server whose answer the client takes (its
//! key share in TLS 1.3, its random and Finished before), so nothing that one server was sent can be used at
//! another. Early data (RFC 8446, section 2.3) is the exception, since it carries requests, so a hello that
//! announces it does not count.

/// Longest ClientHello that is kept for a replay. A hello has 200 to 2,000 bytes.
pub const MAX_HELLO: usize = 16 * 1024;

/// What the bytes are so far.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ClientHello {
    /// The start of what may become a hello.
    Partial,
    /// One whole ClientHello, without early data, and nothing after it.
    Hello,
    /// Anything else.
    Other,
}

/// Content type of a handshake record (RFC 8446, section 5.1).
const HANDSHAKE: u8 = 22;
/// Handshake type (RFC 8446, section 4).
const CLIENT_HELLO: u8 = 1;
/// Extension that announces early data (RFC 8446, section 4.2.10).
const EARLY_DATA: u16 = 42;
/// Largest plaintext of a record (RFC 8446, section 5.1).
const MAX_RECORD: usize = 1 << 14;

/// Inspects everything that a client has sent so far.
pub fn inspect(bytes: &[u8]) -> ClientHello {
    if bytes.len() > MAX_HELLO {
        return ClientHello::Other;
    }
    let Some((message, whole)) = unframe(bytes) else { return ClientHello::Other };
    if message.first().is_some_and(|kind| *kind != CLIENT_HELLO) {
        return ClientHello::Other;
    }
    let [_, a, b, c, body @ ..] = message.as_slice() else { return ClientHello::Partial };
    let length = usize::from(*a) << 16 | usize::from(*b) << 8 | usize::from(*c);
    if length > MAX_HELLO || body.len() > length {
        return ClientHello::Other;
    }
    if body.len() < length || !whole {
        // An incomplete record after a complete message would carry something else.
        return if body.len() < length { ClientHello::Partial } else { ClientHello::Other };
    }
    match extensions(body).and_then(has_early_data) {
        Some(false) => ClientHello::Hello,
        Some(true) | None => ClientHello::Other,
    }
}

/// The handshake message in these records as far as it has arrived, and whether the last record is complete;
/// `None` when they are no handshake records.
fn unframe(mut bytes: &[u8]) -> Option<(Vec<u8>, bool)> {
    let mut message = Vec::new();
    while !bytes.is_empty() {
        let begins_well = |at: usize, good: fn(u8) -> bool| bytes.get(at).copied().is_none_or(good);
        if !begins_well(0, |kind| kind == HANDSHAKE) || !begins_well(1, |major| major == 3) {
            return None;
        }
        let [_, _, _, high, low, rest @ ..] = bytes else { return Some((message, false)) };
        let length = usize::from(*high) << 8 | usize::from(*low);
        if length == 0 || length > MAX_RECORD {
            return None;
        }
        let (fragment, next) = rest.split_at(length.min(rest.len()));
        message.extend_from_slice(fragment);
        if fragment.len() < length {
            return Some((message, false));
        }
        bytes = next;
    }
    Some((message, true))
}

/// The extensions of a ClientHello (RFC 8446, section 4.1.2); empty before TLS 1.2. None: malformed.
fn extensions(body: &[u8]) -> Option<&[u8]> {
    let body = body.get(2 + 32..)?;
    let body = skip(body, 1)?;
    let body = skip(body, 2)?;
    let body = skip(body, 1)?;
    if body.is_empty() {
        return Some(body);
    }
    let length = number(body, 2)?;
    body.get(2..).filter(|extensions| extensions.len() == length)
}

fn has_early_data(mut extensions: &[u8]) -> Option<bool> {
    let mut found = false;
    while !extensions.is_empty() {
        found |= number(extensions, 2)? == usize::from(EARLY_DATA);
        extensions = skip(extensions.get(2..)?, 2)?;
    }
    Some(found)
}

/// The bytes after a vector whose length takes `width` bytes.
fn skip(bytes: &[u8], width: usize) -> Option<&[u8]> {
    bytes.get(width + number(bytes, width)?..)
}

fn number(bytes: &[u8], width: usize) -> Option<usize> {
    Some(bytes.get(..width)?.iter().fold(0, |sum, byte| sum << 8 | usize::from(*byte)))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// A ClientHello message with these extensions.
    fn hello(extensions: &[(u16, &[u8])]) -> Vec<u8> {
        let mut body = vec![3, 3];
        body.extend([7; 32]);
        body.extend([2, 1, 1]); // session id
        body.extend([0, 2, 0x13, 1]); // cipher suites
        body.extend([1, 0]); // compression
        let mut list = Vec::new();
        for (kind, value) in extensions {
            list.extend(kind.to_be_bytes());
            list.extend((value.len() as u16).to_be_bytes());
            list.extend(*value);
        }
        if !list.is_empty() {
            body.extend((list.len() as u16).to_be_bytes());
            body.extend(list);
        }
        let mut message = vec![CLIENT_HELLO];
        message.extend(&(body.len() as u32).to_be_bytes()[1..]);
        message.extend(body);
        message
    }

    fn records(message: &[u8], size: usize) -> Vec<u8> {
        let mut bytes = Vec::new();
        for part in message.chunks(size) {
            bytes.extend([HANDSHAKE, 3, 1]);
            bytes.extend((part.len() as u16).to_be_bytes());
            bytes.extend(part);
        }
        bytes
    }

    #[test]
    fn a_hello_is_one_in_one_record_or_in_several() {
        let some: &[(u16, &[u8])] = &[(0, b"name"), (43, &[2, 3, 4])];
        for extensions in [&[], some] {
            let message = hello(extensions);
            for size in [1, 7, message.len()] {
                let bytes = records(&message, size);
                assert_eq!(inspect(&bytes), ClientHello::Hello, "{size}");
                for end in 0..bytes.len() {
                    assert_eq!(inspect(&bytes[..end]), ClientHello::Partial, "{end} of {}", bytes.len());
                }
            }
        }
    }

    #[test]
    fn anything_else_is_other() {
        let message = hello(&[(43, &[2, 3, 4])]);
        let good = records(&message, 1000);
        let with = |at: usize, byte: u8| {
            let mut bytes = good.clone();
            bytes[at] = byte;
            bytes
        };
        let mut twice = good.clone();
        twice.extend(&good);
        let mut more = good.clone();
        more.push(23);
        let mut inside = message.clone();
        inside.push(0);
        let long = hello(&[(21, &[0; MAX_HELLO])]);
        let table: Vec<(&str, Vec<u8>)> = vec![
            ("http", b"GET / HTTP/1.1\r\n".to_vec()),
            ("http/2", b"PRI * HTTP/2.0".to_vec()),
            ("early data", records(&hello(&[(43, &[2, 3, 4]), (42, &[])]), 1000)),
            ("alert", with(0, 21)),
            ("application data", with(0, 23)),
            ("no version", with(1, 2)),
            ("empty record", vec![HANDSHAKE, 3, 1, 0, 0]),
            ("record too long", vec![HANDSHAKE, 3, 1, 0x40, 1]),
            ("server hello", with(5, 2)),
            ("session id past the end", with(5 + 4 + 34, 255)),
            ("extensions past the end", with(5 + 4 + 34 + 3 + 4 + 2 + 1, 255)),
            ("two hellos", twice),
            ("a byte after it", more),
            ("a byte after it in its record", records(&inside, 1000)),
            ("too long", records(&long, 1 << 14)),
            ("too long, announced", vec![HANDSHAKE, 3, 1, 1, 0, CLIENT_HELLO, 1, 0, 0]),
        ];
        for (what, bytes) in table {
            assert_eq!(inspect(&bytes), ClientHello::Other, "{what}");
        }
    }

    proptest! {
        #[test]
        fn other_stays_other_and_nothing_panics(mut bytes: Vec<u8>, more: Vec<u8>) {
            let before = inspect(&bytes);
            bytes.extend(more);
            if before == ClientHello::Other {
                prop_assert_eq!(inspect(&bytes), ClientHello::Other);
            }
        }

        #[test]
        fn a_hello_with_bytes_changed_does_not_panic(
            changes in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..4)
        ) {
            let mut bytes = records(&hello(&[(0, b"name"), (42, &[]), (51, &[9; 36])]), 40);
            for (at, byte) in changes {
                let at = at.index(bytes.len());
                bytes[at] = byte;
            }
            inspect(&bytes);
        }
    }
}
