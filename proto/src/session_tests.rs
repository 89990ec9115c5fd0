//! Tests of boots, proofs and places.

use proptest::prelude::*;

use super::*;
use crate::transport::KeyHint;

fn header(boot: u64, sequence: u64) -> DatagramHeader {
    DatagramHeader { version: 1, key: KeyHint([1; 4]), sender: NodeId([2; 10]), boot, sequence }
}

fn at(ms: u64) -> Moment {
    Moment::from_millis(ms)
}

fn from(n: u8) -> SocketAddr {
    SocketAddr::from(([10, 0, 0, n], 7646))
}

fn proven(verdict: Option<EchoVerdict>) -> bool {
    matches!(verdict, Some(EchoVerdict::Proven(ProvenBoot { boot: true, .. })))
}

/// Sessions in which this boot is proven.
fn known(boot: u64) -> Sessions {
    let mut sessions = Sessions::default();
    assert_eq!(sessions.evaluate(&header(boot, 1), from(1), false, at(0), || 1), BootVerdict::Challenge(1));
    assert_eq!(
        sessions.echoed(&header(boot, 2), 1, at(0)),
        Some(EchoVerdict::Proven(ProvenBoot { address: from(1), boot: true }))
    );
    sessions
}

#[test]
fn a_boot_is_believed_only_after_its_echo() {
    let mut sessions = Sessions::default();
    assert_eq!(sessions.evaluate(&header(7, 10), from(1), false, at(0), || 99), BootVerdict::Challenge(99));
    assert_eq!(sessions.evaluate(&header(7, 11), from(1), false, at(10), || 98), BootVerdict::Unproven);
    assert_eq!(sessions.echoed(&header(7, 12), 98, at(20)), None, "a number that was not asked");
    assert!(proven(sessions.echoed(&header(7, 12), 99, at(20))));
    assert_eq!(sessions.echoed(&header(7, 12), 99, at(20)), None, "an echo counts once");
    assert_eq!(sessions.evaluate(&header(7, 13), from(1), false, at(20), || 1), BootVerdict::Fresh);
    assert_eq!(sessions.evaluate(&header(7, 13), from(1), false, at(20), || 1), BootVerdict::Replayed);
    assert_eq!(
        sessions.evaluate(&header(7, 11), from(1), false, at(20), || 1),
        BootVerdict::Replayed,
        "sent before the echo"
    );
}

#[test]
fn an_echo_that_comes_too_late_proves_nothing() {
    let mut sessions = Sessions::default();
    sessions.evaluate(&header(7, 10), from(1), false, at(0), || 99);
    assert_eq!(sessions.echoed(&header(7, 12), 99, at(2_000)), None);
}

#[test]
fn after_the_receiver_restarts_a_recording_is_refused() {
    let mut sessions = Sessions::default();
    for sequence in 1..100 {
        let verdict =
            sessions.evaluate(&header(7, sequence), from(1), false, at(sequence * 300), || sequence);
        assert_ne!(verdict, BootVerdict::Fresh);
    }
}

#[test]
fn after_the_sender_restarts_its_old_boot_is_refused_and_can_not_displace_the_new() {
    let mut sessions = known(7);
    assert_eq!(sessions.evaluate(&header(8, 1), from(1), false, at(3_000), || 2), BootVerdict::Challenge(2));
    assert_eq!(
        sessions.evaluate(&header(7, 3), from(1), false, at(3_001), || 3),
        BootVerdict::Fresh,
        "still proven"
    );
    assert!(proven(sessions.echoed(&header(8, 2), 2, at(3_002))));
    assert_eq!(sessions.evaluate(&header(7, 4), from(1), false, at(4_000), || 4), BootVerdict::Challenge(4));
    assert_eq!(sessions.evaluate(&header(8, 3), from(1), false, at(4_001), || 5), BootVerdict::Fresh);
}

#[test]
fn a_delayed_echo_does_not_revive_an_older_boot() {
    let mut sessions = Sessions::default();
    sessions.evaluate(&header(7, 1), from(1), false, at(0), || 1);
    // The echo of boot 7 is held back, and the node restarts.
    sessions.evaluate(&header(8, 1), from(2), false, at(500), || 2);
    assert!(proven(sessions.echoed(&header(8, 2), 2, at(510))));
    let late = sessions.echoed(&header(7, 2), 1, at(520));
    let there = EchoVerdict::Proven(ProvenBoot { address: from(1), boot: false });
    assert_eq!(late, Some(there), "it was there, a moment ago");
    assert_eq!(sessions.evaluate(&header(8, 3), from(2), false, at(530), || 3), BootVerdict::Fresh);
}

/// Recordings of `boots` old boots, each replayed every millisecond from the addresses of `source`,
/// starting before the live boot's first datagram. Returns how long the live boot takes to be proven,
/// with a round trip of 100 ms and a datagram every 100 ms.
fn time_to_prove(boots: u64, source: impl Fn(u64) -> SocketAddr) -> Option<u64> {
    let (mut sessions, mut next, mut echoes) = (Sessions::default(), 1_000u64, Vec::new());
    for ms in 0..10_000u64 {
        let mut number = || {
            next += 1;
            next
        };
        let mut send = |boot, sequence, from| {
            let verdict = sessions.evaluate(&header(boot, sequence), from, false, at(ms), &mut number);
            assert_ne!(verdict, BootVerdict::Fresh, "boot {boot}");
            if let BootVerdict::Challenge(number) = verdict
                && from == self::from(1)
                && ms >= 1_000
            {
                // The live node echoes whatever arrives at its address.
                echoes.push((ms + 100, number));
            }
        };
        (0..boots).for_each(|boot| send(boot, 5, source(ms * boots + boot)));
        if ms >= 1_000 && ms % 100 == 0 {
            send(u64::MAX, ms, from(1));
        }
        let due = echoes.iter().filter(|(due, _)| *due == ms).map(|(_, number)| *number);
        let mut proofs = due.map(|number| sessions.echoed(&header(u64::MAX, ms), number, at(ms)));
        if proofs.any(proven) {
            return Some(ms - 1_000);
        }
    }
    None
}

#[test]
fn recordings_of_old_boots_do_not_delay_the_proof_of_the_live_one() {
    let one = |_| from(9);
    let many = |n: u64| SocketAddr::from(([11, (n >> 16) as u8, (n >> 8) as u8, n as u8], 7));
    let own = |_| from(1);
    type Source = fn(u64) -> SocketAddr;
    let cases: [(&str, u64, Source); 8] = [
        ("nobody replays", 0, one),
        ("one boot, from one address", 1, one),
        ("two boots, from one address", 2, one),
        ("two boots, from the live node's address", 2, own),
        ("two boots, from many addresses", 2, many),
        ("as many boots as are remembered, from many addresses", 15, many),
        ("more boots than are remembered, from one address", 40, one),
        ("more boots than are remembered, from the live node's address", 40, own),
    ];
    for (what, boots, source) in cases {
        assert_eq!(time_to_prove(boots, source), Some(100), "{what}");
    }
}

#[test]
fn a_replayed_challenge_is_not_answered_and_others_at_a_limited_rate() {
    let mut sessions = known(7);
    assert_eq!(sessions.evaluate(&header(7, 5), from(1), true, at(0), || 0), BootVerdict::Fresh);
    assert_eq!(sessions.evaluate(&header(7, 5), from(1), true, at(1), || 0), BootVerdict::Replayed);
    assert_eq!(
        sessions.evaluate(&header(6, 5), from(1), true, at(1), || 0),
        BootVerdict::Unproven,
        "unasked"
    );
    // A recording of a dead boot can't be distinguished from a node that has just started.
    let answered = (0..10_000).filter(|ms| sessions.answers(&header(6, 5), from(9), at(*ms))).count();
    assert!((200..=230).contains(&answered), "{answered} in ten seconds");
    // It takes nothing from the live boot, even if it claims to come from there.
    let mut live = 0;
    for ms in 10_000..11_000 {
        sessions.answers(&header(6, 5), from(1), at(ms));
        live += u64::from(ms % 100 == 0 && sessions.answers(&header(7, ms), from(1), at(ms)));
    }
    assert_eq!(live, 10);
}

#[test]
fn answers_to_one_source_are_limited_whatever_was_recorded() {
    let mut sessions = Sessions::default();
    let mut sent = 0;
    for ms in 0..10_000u64 {
        for boot in 0..100 {
            let verdict = sessions.evaluate(&header(boot, 5), from(9), false, at(ms), || ms * 100 + boot);
            sent += u64::from(matches!(verdict, BootVerdict::Challenge(_)));
        }
    }
    assert!(sent <= 5_300, "{sent} in ten seconds, of a million");
}

#[test]
fn an_address_is_proven_by_the_number_that_was_sent_there_and_no_other() {
    let mut sessions = known(7);
    let node = NodeId([2; 10]);
    assert_eq!(sessions.probe_number(node, from(3), at(0), || 30), Some(30));
    assert_eq!(sessions.probe_number(node, from(4), at(0), || 40), Some(40));
    assert_eq!(sessions.probe_number(node, from(3), at(500), || 31), None, "asked a moment ago");
    // It answers a challenge sent to address 3, and claims to be at 4.
    let proven = sessions.echoed(&header(7, 9), 30, at(600));
    assert_eq!(proven, Some(EchoVerdict::Proven(ProvenBoot { address: from(3), boot: false })));
    assert_eq!(sessions.echoed(&header(7, 10), 30, at(600)), None);
    assert_eq!(sessions.probe_number(node, from(3), at(1_600), || 32), Some(32));
    let asked =
        (0..200).filter(|n| sessions.probe_number(node, from(*n), at(1_600), || 50).is_some()).count();
    assert!(asked <= 16, "{asked} addresses that it named are asked at once");
}

/// One place of an identity, as a member meets it.
#[derive(Clone, Copy)]
struct Place {
    boot: u64,
    at: SocketAddr,
    /// When it runs, in milliseconds.
    runs: (u64, u64),
    /// It was told of the other, and stands aside.
    yields: bool,
}

/// Runs places of one identity, each of which sends ten datagrams a second and answers at once, and returns which
/// boot counts at the end, when that came to be, and whether a duplicate was ever reported.
fn meet(places: &mut [Place], until: u64) -> (u64, u64, bool) {
    let key = ring::signature::Ed25519KeyPair::from_seed_unchecked(&[1; 32]).unwrap();
    let (mut sessions, mut sequence, mut reported) = (Sessions::default(), 0, false);
    let mut counts = (0, 0);
    for ms in (0..until).step_by(100) {
        let running: Vec<Place> =
            places.iter().filter(|one| (one.runs.0..one.runs.1).contains(&ms)).copied().collect();
        for place in &running {
            sequence += 1;
            let header = header(place.boot, sequence);
            match sessions.evaluate(&header, place.at, false, at(ms), || ms * 10 + place.boot) {
                BootVerdict::Fresh if counts.0 != place.boot => counts = (place.boot, ms),
                BootVerdict::Challenge(number) => match sessions.echoed(&header, number, at(ms)) {
                    Some(EchoVerdict::AskKnown { known_at }) => {
                        let asked = running.iter().find(|one| one.at == known_at && one.boot != place.boot);
                        let Some(asked) = asked else { continue };
                        let began = crate::time::UnixMs(asked.runs.0);
                        let proof = AliveProof::sign(&key, "c", place.boot, began, asked.yields).unwrap();
                        let passed =
                            sessions.alive(&DatagramHeader { boot: asked.boot, ..header }, &proof, at(ms));
                        assert_eq!(passed, Some(ProofForOther { to: place.at, signer_at: asked.at }));
                    }
                    Some(EchoVerdict::Refused { known, proof, sender_at, .. }) => {
                        assert_eq!((proof.beside, sender_at), (place.boot, place.at));
                        let own = places.iter_mut().find(|one| one.boot == place.boot).unwrap();
                        own.yields = proof.began.0 < own.runs.0;
                        let began = crate::time::UnixMs(place.runs.0);
                        let back = AliveProof::sign(&key, "c", known, began, own.yields).unwrap();
                        let passed = sessions.alive(&header, &back, at(ms)).unwrap();
                        assert_eq!(passed.signer_at, place.at);
                    }
                    _ => {}
                },
                _ => {}
            }
        }
        reported |= sessions.duplicates(at(ms)).count() == 1;
    }
    (counts.0, counts.1, reported)
}

#[test]
fn of_two_places_of_one_identity_the_one_that_is_alive_counts() {
    let forever = u64::MAX;
    let place =
        |boot, host, from_ms, until| Place { boot, at: from(host), runs: (from_ms, until), yields: false };
    // Who runs where and when; which boot counts after 20 s, the latest since when, and whether it is a duplicate.
    let table = [
        ("a copy beside its original", [place(1, 1, 0, forever), place(2, 2, 5_000, forever)], 1, 100, true),
        ("a copy for ten seconds", [place(1, 1, 0, forever), place(2, 2, 5_000, 15_000)], 1, 100, true),
        ("a restart in place", [place(1, 1, 0, 5_000), place(2, 1, 5_000, forever)], 2, 5_100, false),
        (
            "a reboot with a new address",
            [place(1, 1, 0, 5_000), place(2, 2, 5_000, forever)],
            2,
            5_900,
            false,
        ),
        ("one after a long time", [place(1, 1, 0, 1_000), place(2, 2, 9_000, forever)], 2, 9_100, false),
        (
            "a copy that outlives its original",
            [place(1, 1, 0, 9_000), place(2, 2, 5_000, forever)],
            2,
            10_900,
            true,
        ),
        (
            "a copy at the very same address",
            [place(1, 1, 0, forever), place(2, 1, 5_000, forever)],
            2,
            5_400,
            true,
        ),
    ];
    for (what, mut places, counts, by, is_duplicate) in table {
        let (boot, since, reported) = meet(&mut places, 20_000);
        assert_eq!((boot, reported), (counts, is_duplicate), "{what}");
        assert!(since <= by, "{what}: since {since}");
    }
}

#[test]
fn a_source_is_an_address_or_a_network_of_one_host() {
    let source = |text: &str| source(text.parse().unwrap()).to_string();
    assert_eq!(source("10.0.0.1"), "10.0.0.1");
    assert_eq!(source("::ffff:10.0.0.1"), "10.0.0.1");
    assert_eq!(source("2001:db8:1:2:3::4"), "2001:db8:1:2::");
}

proptest! {
    #[test]
    fn the_window_accepts_each_number_at_most_once_and_each_recent_one(
        numbers in proptest::collection::vec(1u64..3000, 0..400),
    ) {
        let mut window = ReplayWindow::after(0);
        let mut seen = std::collections::BTreeSet::new();
        let mut highest = 0;
        for number in numbers {
            let taken = window.take(number);
            highest = highest.max(number);
            prop_assert!(!(taken && seen.contains(&number)), "{number} twice");
            if highest - number < ReplayWindow::SIZE {
                prop_assert_eq!(taken, !seen.contains(&number), "{}", number);
            }
            seen.insert(number);
        }
    }
}
