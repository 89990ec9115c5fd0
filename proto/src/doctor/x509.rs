//! What a certificate says of names and time (RFC 5280). Nothing is verified here: the check does that.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use crate::time::UnixMs;

/// What is read of a certificate.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Certificate {
    /// Host names that it is for.
    pub names: Vec<String>,
    /// Addresses that it is for.
    pub ips: Vec<IpAddr>,
    /// When it ends.
    pub until: UnixMs,
}

const SEQUENCE: u8 = 0x30;
const OCTETS: u8 = 0x04;
const OID: u8 = 0x06;
const BOOLEAN: u8 = 0x01;
const UTC_TIME: u8 = 0x17;
const GENERALIZED_TIME: u8 = 0x18;
/// `[0]`, the version, and `[3]`, the extensions.
const VERSION: u8 = 0xa0;
const EXTENSIONS: u8 = 0xa3;
/// `[2]` and `[7]` of a GeneralName.
const DNS: u8 = 0x82;
const IP: u8 = 0x87;

/// id-ce-subjectAltName, 2.5.29.17.
const SUBJECT_ALT_NAME: [u8; 3] = [0x55, 0x1d, 0x11];

/// Most names that are kept: several times what an apiserver has.
const MOST: usize = 256;

/// Reads a certificate; none: it is not one.
pub fn read(der: &[u8]) -> Option<Certificate> {
    let (certificate, _) = take(der, SEQUENCE)?;
    let (body, _) = take(certificate, SEQUENCE)?;
    let body = take(body, VERSION).map_or(body, |(_, rest)| rest);
    // Serial number, algorithm, issuer.
    let body = next(next(next(body)?.2)?.2)?.2;
    let (validity, body) = take(body, SEQUENCE)?;
    let (tag, until, _) = next(next(validity)?.2)?;
    let until = time(tag, until)?;
    // Subject, key; two ids that nobody uses any more may follow.
    let mut rest = next(next(body)?.2)?.2;
    let mut found = Certificate { names: Vec::new(), ips: Vec::new(), until };
    while let Some((tag, content, after)) = next(rest) {
        if tag == EXTENSIONS {
            extensions(content, &mut found);
        }
        rest = after;
    }
    Some(found)
}

fn extensions(content: &[u8], found: &mut Certificate) -> Option<()> {
    let (mut rest, _) = take(content, SEQUENCE)?;
    while let Some((extension, after)) = take(rest, SEQUENCE) {
        rest = after;
        let (id, value) = take(extension, OID)?;
        if id != SUBJECT_ALT_NAME {
            continue;
        }
        let value = take(value, BOOLEAN).map_or(value, |(_, rest)| rest);
        let (mut names, _) = take(take(value, OCTETS)?.0, SEQUENCE)?;
        while let Some((tag, name, after)) = next(names) {
            names = after;
            if found.names.len() + found.ips.len() >= MOST {
                break;
            }
            match (tag, name.len()) {
                (DNS, _) => found.names.push(String::from_utf8_lossy(name).to_ascii_lowercase()),
                (IP, 4) => found.ips.push(Ipv4Addr::from(<[u8; 4]>::try_from(name).ok()?).into()),
                (IP, 16) => found.ips.push(Ipv6Addr::from(<[u8; 16]>::try_from(name).ok()?).into()),
                _ => {}
            }
        }
    }
    Some(())
}

/// The first value, when it has this tag: its content, and what follows it.
fn take(der: &[u8], wanted: u8) -> Option<(&[u8], &[u8])> {
    let (tag, content, rest) = next(der)?;
    (tag == wanted).then_some((content, rest))
}

/// The first value: its tag, its content, and what follows it.
fn next(der: &[u8]) -> Option<(u8, &[u8], &[u8])> {
    let (&tag, rest) = der.split_first()?;
    let (&first, rest) = rest.split_first()?;
    let (length, rest) = match first {
        0..=0x7f => (usize::from(first), rest),
        // A certificate's length fits into three bytes by far.
        0x81..=0x83 => {
            let (bytes, rest) = rest.split_at_checked(usize::from(first - 0x80))?;
            (bytes.iter().fold(0, |sum, byte| sum << 8 | usize::from(*byte)), rest)
        }
        _ => return None,
    };
    let (content, rest) = rest.split_at_checked(length)?;
    Some((tag, content, rest))
}

/// `YYMMDDHHMMSSZ` or `YYYYMMDDHHMMSSZ`, which is all that RFC 5280 allows.
fn time(tag: u8, text: &[u8]) -> Option<UnixMs> {
    let digits = text.strip_suffix(b"Z")?;
    let two = |at: usize| -> Option<u64> {
        let pair = digits.get(at..at + 2)?;
        pair.iter()
            .all(u8::is_ascii_digit)
            .then(|| u64::from(pair[0] - b'0') * 10 + u64::from(pair[1] - b'0'))
    };
    let (year, at) = match (tag, digits.len()) {
        (UTC_TIME, 12) => (two(0).map(|year| if year < 50 { 2000 + year } else { 1900 + year })?, 2),
        (GENERALIZED_TIME, 14) => (two(0)? * 100 + two(2)?, 4),
        _ => return None,
    };
    let (month, day) = (two(at)?, two(at + 2)?);
    if !(1..=12).contains(&month) || !(1..=31).contains(&day) || year < 1970 {
        return None;
    }
    // Days since 1 March of the year 0, since a leap day then ends a year.
    let (y, m) = if month > 2 { (year, month - 3) } else { (year - 1, month + 9) };
    let days = y * 365 + y / 4 - y / 100 + y / 400 + (153 * m + 2) / 5 + day - 1 - 719_468;
    let seconds = ((days * 24 + two(at + 4)?) * 60 + two(at + 6)?) * 60 + two(at + 8)?;
    Some(UnixMs(seconds * 1000))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// A value with a tag.
    fn value(tag: u8, content: &[u8]) -> Vec<u8> {
        let mut der = vec![tag];
        match u8::try_from(content.len()) {
            Ok(short @ 0..0x80) => der.push(short),
            _ => der.extend([0x82, (content.len() >> 8) as u8, content.len() as u8]),
        }
        der.extend(content);
        der
    }

    fn certificate(names: &[(u8, &[u8])], until: &[u8]) -> Vec<u8> {
        let names: Vec<u8> = names.iter().flat_map(|(tag, name)| value(*tag, name)).collect();
        let alt = [value(OID, &SUBJECT_ALT_NAME), value(OCTETS, &value(SEQUENCE, &names))].concat();
        let other = [value(OID, &[0x55, 0x1d, 0x0f]), value(BOOLEAN, &[0xff]), value(OCTETS, &[3, 2, 5, 0])];
        let extensions = [value(SEQUENCE, &other.concat()), value(SEQUENCE, &alt)].concat();
        let body = [
            value(VERSION, &value(2, &[2])),
            value(2, &[1, 2, 3]),
            value(SEQUENCE, &[]),
            value(SEQUENCE, &[]),
            value(SEQUENCE, &[value(UTC_TIME, b"250101000000Z"), until.to_vec()].concat()),
            value(SEQUENCE, &[]),
            value(SEQUENCE, &[0; 300]),
            value(EXTENSIONS, &value(SEQUENCE, &extensions)),
        ];
        value(SEQUENCE, &[value(SEQUENCE, &body.concat()), value(SEQUENCE, &[]), value(3, &[0; 9])].concat())
    }

    #[test]
    fn names_addresses_and_the_end_are_read() {
        let v6 = Ipv6Addr::LOCALHOST.octets();
        let der = certificate(
            &[(DNS, b"Kubernetes"), (IP, &[127, 0, 0, 1]), (0x81, b"a@b"), (IP, &v6), (IP, &[1, 2])],
            &value(UTC_TIME, b"260301140311Z"),
        );
        let read = read(&der).unwrap();
        assert_eq!(read.names, ["kubernetes"]);
        assert_eq!(read.ips, [IpAddr::from(Ipv4Addr::LOCALHOST), Ipv6Addr::LOCALHOST.into()]);
        assert_eq!(read.until, UnixMs(1_772_373_791_000));
    }

    #[test]
    fn times_are_those_of_the_calendar() {
        let late = certificate(&[], &value(GENERALIZED_TIME, b"21000301000000Z"));
        assert_eq!(read(&late).unwrap().until, UnixMs(4_107_542_400_000));
        assert_eq!(time(UTC_TIME, b"000229000000Z"), Some(UnixMs(951_782_400_000)));
        assert_eq!(time(UTC_TIME, b"700101000000Z"), Some(UnixMs(0)));
        for bad in [&b"2603011403Z"[..], b"261301140311Z", b"26030114031aZ", b"260301140311", b""] {
            assert_eq!(time(UTC_TIME, bad), None);
        }
    }

    proptest! {
        #[test]
        fn no_bytes_make_it_panic(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            let _ = read(&bytes);
        }

        #[test]
        fn no_broken_certificate_makes_it_panic(at in 0usize..420, to: u8, cut in 0usize..420) {
            let mut der = certificate(&[(DNS, b"a"), (IP, &[1, 2, 3, 4])], &value(UTC_TIME, b"260301140311Z"));
            if let Some(byte) = der.get_mut(at) {
                *byte = to;
            }
            der.truncate(der.len().saturating_sub(cut));
            let _ = read(&der);
        }
    }
}
