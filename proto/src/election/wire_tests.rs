//! What is read back, what is skipped, and the bytes of every message as they were released.

use std::time::Duration;

use proptest::prelude::*;

use super::tests::{VIP, any_message, claim, id};
use super::wire::{MAX_BYTES, MAX_MESSAGES, OLDEST, VERSION, VersionError, mask_of_ages, pack, unpack};
use super::*;
use crate::cause::Cause;
use crate::unfit::Unfit;

/// One message a line: its name and its bytes. A line is never changed, only added: what one version has
/// written all later ones read.
const GOLDEN: &str = include_str!("../../tests/golden/vip.hex");

fn beat() -> VipMessage {
    VipMessage { vip: VIP, purpose: MessageKind::Beat, known: None, heard: None, state: CandidateState::Fit }
}

/// What stands in the file, by name.
fn golden() -> Vec<(String, VipMessage)> {
    let held = Some(HighestClaim { claim: Claim::new(VIP, 7, 100, id(2)), holding: Holding::Held });
    let six = "2001:db8::50".parse().unwrap();
    let claimed_six = Some(HighestClaim { claim: Claim::new(six, 7, 100, id(2)), holding: Holding::Held });
    let heard = Some(Duration::from_millis(1_234));
    let mut all = vec![
        ("beat-of-an-owner".to_owned(), VipMessage { known: held, heard: Some(Duration::ZERO), ..beat() }),
        ("beat-that-knows-nothing".to_owned(), beat()),
        ("beat-ipv6".to_owned(), VipMessage { vip: six, known: claimed_six, heard, ..beat() }),
        ("ask".to_owned(), VipMessage { purpose: MessageKind::Ask, known: held, heard, ..beat() }),
        (
            "answer-of-a-witness".to_owned(),
            VipMessage {
                purpose: MessageKind::Answer,
                known: held,
                heard,
                state: CandidateState::Witness,
                ..beat()
            },
        ),
        (
            "pausing".to_owned(),
            VipMessage { purpose: MessageKind::Pausing, known: held, heard: Some(Duration::ZERO), ..beat() },
        ),
        ("move".to_owned(), VipMessage { purpose: MessageKind::Move(id(3)), ..beat() }),
    ];
    for (name, state) in [
        ("recovering", CandidateState::Recovering),
        ("listening", CandidateState::Listening),
        ("unfit", CandidateState::Unfit(Unfit::new(Unfit::cause_of(None), "no L2 on wg0 (point-to-point)"))),
        ("unfit-with-its-cause", CandidateState::Unfit(Cause::NoSegment.into())),
    ] {
        all.push((format!("state-{name}"), VipMessage { state, ..beat() }));
    }
    for (why, code, _) in ReleaseReason::ALL {
        let successor = (code % 2 == 0).then(|| id(3));
        let released =
            Some(HighestClaim { claim: claim(7, 2), holding: Holding::Released { why, successor } });
        all.push((format!("release-{code}"), VipMessage { known: released, ..beat() }));
    }
    all
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[test]
#[cfg_attr(feature = "next-wire", ignore = "golden bytes are those of builds without it")]
fn every_message_has_the_bytes_that_it_was_released_with() {
    let written: Vec<String> = golden()
        .into_iter()
        .map(|(name, message)| format!("{name} {}", hex(&pack(&[message]).concat())))
        .collect();
    let stored: Vec<&str> = GOLDEN.lines().filter(|line| !line.starts_with('#')).collect();
    assert_eq!(written, stored, "\n{}", written.join("\n"));
    for (line, (name, message)) in stored.iter().zip(golden()) {
        let (_, bytes) = line.split_once(' ').unwrap();
        let bytes: Vec<u8> = (0..bytes.len())
            .step_by(2)
            .map(|at| u8::from_str_radix(&bytes[at..at + 2], 16).unwrap())
            .collect();
        assert_eq!(unpack(&bytes), Ok(vec![message]), "{name}");
    }
}

/// A message as a later version may write it: with other fields before, between and behind, and longer ones.
fn grown(message: &VipMessage, extra: &[(u8, Vec<u8>)], longer: &[u8]) -> Vec<u8> {
    let datagram = pack(std::slice::from_ref(message)).concat();
    let mut rest = &datagram[4..];
    let mut out = Vec::new();
    let mut extra = extra.iter();
    let mut add = |out: &mut Vec<u8>| {
        if let Some((field, value)) = extra.next() {
            out.extend([*field, value.len() as u8]);
            out.extend(value);
        }
    };
    while let [field, length, after @ ..] = rest {
        add(&mut out);
        let (value, after) = after.split_at(usize::from(*length));
        // The address and the reason end where they end; a release may have a successor or not.
        let grows = ![1, 4, 7].contains(field) || (*field == 4 && value.len() > 1);
        let value = if grows { [value, longer].concat() } else { value.to_vec() };
        out.extend([*field, value.len() as u8]);
        out.extend(value);
        rest = after;
    }
    (0..8).for_each(|_| add(&mut out));
    [&(out.len() as u16).to_be_bytes(), out.as_slice()].concat()
}

fn datagram(version: u8, oldest: u8, messages: &[Vec<u8>]) -> Vec<u8> {
    [&[version, oldest], messages.concat().as_slice()].concat()
}

#[test]
fn what_is_not_understood_is_left_out_alone() {
    let good = grown(&beat(), &[], &[]);
    // No address, no purpose, no state, a claim that is too short, an address of five bytes.
    let fields = [vec![1, 4, 10, 91, 91, 50], vec![2, 1, 0], vec![6, 1, 1]];
    let framed = |fields: &[Vec<u8>]| {
        let body = fields.concat();
        [&(body.len() as u16).to_be_bytes(), body.as_slice()].concat()
    };
    let mut bad: Vec<Vec<u8>> = (0..3)
        .map(|gone| {
            framed(
                &fields
                    .iter()
                    .enumerate()
                    .filter(|(n, _)| *n != gone)
                    .map(|(_, f)| f.clone())
                    .collect::<Vec<_>>(),
            )
        })
        .collect();
    bad.push(framed(&[fields.to_vec(), vec![vec![3, 5, 0, 0, 0, 0, 0]]].concat()));
    bad.push(framed(&[vec![1, 5, 10, 91, 91, 50, 0], fields[1].clone(), fields[2].clone()]));
    bad.push(framed(&[]));
    for bad in bad {
        let read = unpack(&datagram(VERSION, OLDEST, &[good.clone(), bad.clone(), good.clone()]));
        assert_eq!(read.unwrap(), [beat(), beat()], "{bad:?}");
        assert_eq!(unpack(&datagram(VERSION, OLDEST, &[bad])).unwrap(), []);
    }
    let cut = [good.as_slice(), &[0, 200, 1]].concat();
    assert_eq!(unpack(&datagram(VERSION, OLDEST, &[cut])).unwrap(), [beat()]);
}

#[test]
fn versions_are_a_range() {
    let good = grown(&beat(), &[], &[]);
    let read = |version, oldest| unpack(&datagram(version, oldest, std::slice::from_ref(&good)));
    assert_eq!(read(9, VERSION).unwrap(), [beat()], "a later version that this one can read");
    assert_eq!(read(9, VERSION + 1), Err(VersionError { version: 9, oldest: VERSION + 1 }));
    assert_eq!(read(OLDEST - 1, 0), Err(VersionError { version: OLDEST - 1, oldest: 0 }));
    assert_eq!(unpack(&[]).unwrap(), []);
}

#[test]
fn one_datagram_has_a_bounded_number_of_messages() {
    let many = vec![grown(&beat(), &[], &[]); 3_000];
    assert_eq!(unpack(&datagram(VERSION, OLDEST, &many)).unwrap().len(), MAX_MESSAGES);
}

#[test]
fn reasons_of_later_versions_survive() {
    for code in 0..=255 {
        assert_eq!(ReleaseReason::from_code(code).code(), code);
    }
    assert_eq!(ReleaseReason::Other(77).to_string(), "a newer agent released it (reason 77)");
}

proptest! {
    #[test]
    fn messages_read_back_as_written_in_datagrams_that_fit(
        messages in proptest::collection::vec(any_message(), 0..100),
    ) {
        let datagrams = pack(&messages);
        prop_assert!(datagrams.iter().all(|datagram| datagram.len() <= MAX_BYTES));
        prop_assert!(MAX_BYTES <= crate::transport::MAX_BODY);
        let read: Result<Vec<Vec<VipMessage>>, _> = datagrams.iter().map(|datagram| unpack(datagram)).collect();
        prop_assert_eq!(read.map(|read| read.concat()), Ok(messages));
    }

    #[test]
    fn the_ages_of_messages_are_masked_and_nothing_else(
        messages in proptest::collection::vec(any_message(), 1..6),
        ages in proptest::collection::vec(0_u64..60_000, 9),
    ) {
        let aged = |messages: &[VipMessage]| -> Vec<VipMessage> {
            let ages = ages.iter().map(|ms| Duration::from_millis(*ms));
            let aged = |(one, age): (&VipMessage, Duration)| {
                VipMessage { heard: one.heard.map(|_| age), ..one.clone() }
            };
            messages.iter().zip(ages).map(aged).collect()
        };
        let (before, after) = (pack(&messages).concat(), pack(&aged(&messages)).concat());
        let masked = |bytes: &[u8]| -> Vec<u8> {
            bytes.iter().zip(mask_of_ages(bytes)).map(|(byte, mask)| byte & mask).collect()
        };
        prop_assert_eq!(masked(&before), masked(&after));
        let hidden = mask_of_ages(&before).iter().filter(|mask| **mask == 0).count();
        prop_assert_eq!(hidden, 2 * messages.iter().filter(|one| one.heard.is_some()).count());
    }

    #[test]
    fn a_message_with_more_in_it_reads_the_same(
        message in any_message(),
        extra in proptest::collection::vec((9_u8..=255, proptest::collection::vec(any::<u8>(), 0..255)), 0..8),
        longer in proptest::collection::vec(any::<u8>(), 0..9),
        version in VERSION..=255,
    ) {
        let read = unpack(&datagram(version, OLDEST, &[grown(&message, &extra, &longer)]));
        prop_assert_eq!(read, Ok(vec![message]));
    }

    #[test]
    fn no_datagram_makes_it_panic(
        mut bytes in proptest::collection::vec(any::<u8>(), 0..200),
        messages in proptest::collection::vec(any_message(), 1..3),
        cut: usize,
        flip: usize,
    ) {
        let _ = unpack(&bytes);
        prop_assert_eq!(mask_of_ages(&bytes).len(), bytes.len());
        if let Some(start) = bytes.first_chunk_mut::<2>() {
            *start = [VERSION, OLDEST];
        }
        let _ = unpack(&bytes);
        let mut damaged = pack(&messages).concat();
        let at = flip % damaged.len();
        damaged[at] ^= 0x55;
        damaged.truncate(1 + cut % damaged.len());
        let _ = unpack(&damaged);
    }
}
